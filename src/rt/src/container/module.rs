//! What the kernel keeps a module from, where its rights are less than all: an engine's own checks
//! would be the guest's to get past. Runs in the process that becomes the engine, and stays over
//! the exec.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};

use crate::linux::cgroups;
use crate::linux::landlock;
use crate::linux::mount_table;
use crate::linux::seccomp;
use crate::workload::Rights;

/// Takes sockets and ports from this process. With `cgroup` it will enter the container's cgroup
/// for modules.
pub(super) fn confine(rights: &Rights, cgroup: Option<&OwnedFd>) -> Result<()> {
    let ports = &rights.ports;
    if rights.sockets && !ports.are_limited() {
        return Ok(());
    }
    // An engine gains no privileges by an exec, so that it may load a filter.
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    if rights.sockets && ports.tcp.is_divided() {
        landlock::restrict(&ports.tcp).context("limit the ports of TCP")?;
    }
    if rights.sockets && ports.listens_at_some() {
        ensure!(
            cgroup.is_some(),
            "limit the ports of TCP: who listens without a bind is kept out by a cgroup of v2, made by root of the host"
        );
    }
    if rights.sockets && ports.udp.is_divided() {
        check_cgroup(cgroup).context("limit the ports of UDP")?;
    }
    seccomp::refuse_sockets(rights)
}

/// Enters the cgroup for modules. At the last moment: a caller that asks at `create` which cgroup
/// the container has shall be told the one with its limits.
pub(super) fn enter(cgroup: Option<OwnedFd>) -> Result<()> {
    let enter = |cgroup: OwnedFd| cgroups::enter(&cgroup).context("enter the cgroup for modules");
    cgroup.map_or(Ok(()), enter)
}

/// Whether a cgroup can do it, and cannot be left.
fn check_cgroup(cgroup: Option<&OwnedFd>) -> Result<()> {
    ensure!(cgroup.is_some(), "this requires cgroup v2 and root of the host");
    // /proc is procfs: an engine was found to start by it.
    for mount in mount_table::own()? {
        ensure!(
            mount.kind != "cgroup2" || !mount.writable,
            "the container may write to its cgroup, at `{}`, and could leave the cgroup for modules",
            mount.point.display()
        );
    }
    Ok(())
}
