//! The answers of the runtime process to a process that becomes a program. `create` and `exec`
//! share them.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use oci_spec::runtime::Process;

use crate::engine::{Directory, Engines, Found};
use crate::state::{Run, State};
use crate::sync::{Message, Socket};
use crate::workload::Rights;

/// The engine that runs a module, and the module's native code, if there is any.
pub(super) struct Served {
    directory: Directory,
    found: Found,
}

impl Served {
    /// The engine's entry in the state.
    pub(super) fn run(&self) -> Run {
        self.directory.run(&self.found)
    }

    /// Has the module compiled in the background, if it should be.
    pub(super) fn compile_later(self) {
        if let Some(native) = &self.directory.native {
            native.compile_later(self.found.later);
        }
    }
}

/// Answers a process that has found a module for the engine of this number. Sends the engine, and
/// the module's native code.
pub(super) fn give_engine(
    socket: &Socket,
    (engines, number): (Option<&Engines<'_>>, usize),
    rights: &Rights,
    process: &Process,
    module: Option<&OwnedFd>,
    cgroup: Option<&OwnedFd>,
    state: &State,
) -> Result<Served> {
    let engines = engines.context("no engine was found")?;
    let directory = engines.open(number)?;
    let name = &process.args().as_deref().unwrap_or_default()[0];
    let found = directory.look_up(rights.wish(), module, name, state)?;
    let plugins = engines.plugins.as_ref().map(|plugins| plugins.mount.as_fd());
    let (cgroup, native) = (cgroup.map(AsFd::as_fd), found.native.as_ref());
    socket.give_engine(directory.mount.as_fd(), plugins, cgroup, native.map(AsFd::as_fd))?;
    Ok(Served { directory, found })
}

/// Answers a process that has found one of several modules for the engine that it has got. Sends
/// the module's native code.
pub(super) fn give_part(
    socket: &Socket,
    served: Option<&Served>,
    rights: &Rights,
    (name, module): (&str, Option<&OwnedFd>),
    state: &State,
) -> Result<()> {
    let directory = &served.context("a part of a program came before the program")?.directory;
    let module = module.context("no module came")?;
    let found = directory.look_up(rights.wish(), Some(module), name, state)?;
    let native = found.native.with_context(|| format!("`{name}` has no native code"))?;
    socket.send_with(&Message::PartNative, &[native.as_fd()])
}
