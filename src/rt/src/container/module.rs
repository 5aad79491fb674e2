//! The kernel's restrictions of a module that does not have all rights. A guest could get past an
//! engine's own checks. This code runs in the process that becomes the engine, and the restrictions
//! stay in force over the exec.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};

use crate::linux::cgroups;
use crate::linux::landlock;
use crate::linux::mount_table;
use crate::linux::seccomp;
use crate::workload::Rights;

/// Forbids sockets and ports to this process. With `cgroup`, the process will enter the container's
/// cgroup for modules later.
pub(super) fn confine(rights: &Rights, cgroup: Option<&OwnedFd>) -> Result<()> {
    let ports = &rights.ports;
    if rights.sockets && !ports.are_limited() {
        return Ok(());
    }
    // An engine gains no privileges by an exec. With this flag, the process may load a filter.
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    if rights.sockets && ports.tcp.is_divided() {
        landlock::restrict(&ports.tcp).context("limit the ports of TCP")?;
    }
    if rights.sockets && ports.listens_at_some() {
        ensure!(
            cgroup.is_some(),
            "limit the ports of TCP: this requires cgroup v2 and root of the host, because a module can listen without a bind"
        );
    }
    if rights.sockets && ports.udp.is_divided() {
        check_cgroup(cgroup).context("limit the ports of UDP")?;
    }
    seccomp::refuse_sockets(rights.sockets.then_some(ports))
}

/// Enters the cgroup for modules. Runs at the last moment: a caller that asks at `create` for the
/// container's cgroup must get the one with the container's limits.
pub(super) fn enter(cgroup: Option<OwnedFd>) -> Result<()> {
    let enter = |cgroup: OwnedFd| cgroups::enter(&cgroup).context("enter the cgroup for modules");
    cgroup.map_or(Ok(()), enter)
}

/// Fails unless the cgroup can limit the ports, and the container cannot leave the cgroup.
fn check_cgroup(cgroup: Option<&OwnedFd>) -> Result<()> {
    ensure!(cgroup.is_some(), "this requires cgroup v2 and root of the host");
    // `/proc` is procfs: this process has found an engine by it.
    for mount in mount_table::own()? {
        ensure!(
            mount.kind != "cgroup2" || !mount.writable,
            "the container may write to its cgroup, at `{}`, and could leave the cgroup for modules",
            mount.point.display()
        );
    }
    Ok(())
}
