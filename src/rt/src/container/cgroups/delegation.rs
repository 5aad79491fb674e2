//! Cgroups of v2 that a container manages itself (kernel documentation, `cgroup-v2.rst`, "Delegation").
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::thread::{Gid, Uid};

pub(super) fn make(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("make cgroup `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

/// Gives away the directory, and those of its files that may be: not the limits, which are for whoever is above.
pub(super) fn give(path: &Path, (uid, gid): (Uid, Gid)) -> Result<()> {
    // One name to a line; before Linux 4.15 there was no list.
    let list = fs::read_to_string("/sys/kernel/cgroup/delegate");
    let list =
        list.unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".into());
    let own = |path: &Path| match chown(path, Some(uid.as_raw()), Some(gid.as_raw())) {
        // A file of a controller that this cgroup does not have.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("give away `{}`", path.display())),
    };
    own(path)?;
    list.lines().try_for_each(|name| own(&path.join(name)))
}
