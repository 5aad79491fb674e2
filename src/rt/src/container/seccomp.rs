//! System call filters (`seccomp(2)`), compiled and loaded by libcontainer with libseccomp. Runs in init.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use libcontainer::oci_spec::runtime::LinuxSeccomp;
use libcontainer::seccomp::{initialize_seccomp, is_notify};

/// Refuses what is not supported, before anything is made. Runs in the caller's process.
pub(crate) fn check(seccomp: &LinuxSeccomp) -> Result<()> {
    ensure!(!is_notify(seccomp), "the seccomp action SCMP_ACT_NOTIFY is not supported yet");
    ensure!(seccomp.listener_path().is_none(), "`seccomp.listenerPath` is not supported yet");
    Ok(())
}

pub(crate) fn load(seccomp: &LinuxSeccomp) -> Result<()> {
    initialize_seccomp(seccomp).map(drop).context("load the seccomp filter")
}
