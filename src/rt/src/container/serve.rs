//! What the caller's process does for one that becomes a program, as `create` and `exec` both have
//! it.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use oci_spec::runtime::Process;

use crate::engine::{self, Found};
use crate::state::State;
use crate::sync::Socket;
use crate::workload::Rights;

/// Answers a process that has found a module: hands over the engine, and what the module was
/// compiled to.
pub(super) fn give_engine(
    socket: &Socket,
    engine: Option<&engine::Directory>,
    rights: &Rights,
    process: &Process,
    module: Option<&OwnedFd>,
    cgroup: Option<&OwnedFd>,
    state: &State,
) -> Result<Found> {
    let engine = engine.context("no engine was opened")?;
    let name = &process.args().as_deref().unwrap_or_default()[0];
    let found = engine.look_up(rights.wish(), module, name, state);
    let plugins = engine.plugins.as_ref().map(|plugins| plugins.mount.as_fd());
    let (cgroup, native) = (cgroup.map(AsFd::as_fd), found.native.as_ref());
    socket.give_engine(engine.mount.as_fd(), plugins, cgroup, native.map(AsFd::as_fd))?;
    Ok(found)
}
