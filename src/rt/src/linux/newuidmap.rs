//! The programs that map more ids than an ordinary user's own (`newuidmap(1)`, `newgidmap(1)`).
//! Runs in the runtime process.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::LinuxIdMapping;
use rustix::process::Pid;

use crate::interrupt;

/// Whether an ordinary user may write these mappings without help: only the user's own id.
pub(crate) fn is_own_only(mappings: &[LinuxIdMapping], own: u32) -> bool {
    matches!(mappings, [only] if only.size() == 1 && only.host_id() == own)
}

/// Runs a privileged program that maps ids, `newuidmap(1)` or `newgidmap(1)`. The program checks
/// which ids the user may use.
pub(crate) fn map(program: &str, pid: Pid, mappings: &[LinuxIdMapping]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for mapping in mappings {
        for number in [mapping.container_id(), mapping.host_id(), mapping.size()] {
            command.arg(number.to_string());
        }
    }
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    }
    let output = interrupt::output(command).with_context(|| {
        format!("run `{program}`, which maps more than the user's own id (package uidmap)")
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("`{program}`: {}", text.trim().lines().next().unwrap_or("it failed"));
    }
    Ok(())
}
