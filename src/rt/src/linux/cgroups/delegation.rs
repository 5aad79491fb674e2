//! Cgroups of v2 that a container manages itself (kernel documentation, `cgroup-v2.rst`,
//! "Delegation").
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{Gid, Uid};

use super::{Cgroup, Manager, Version, v2};

impl Cgroup {
    /// Makes the cgroup that the container shall manage itself, if it asks for one. Opens the file
    /// by which init enters the cgroup after it has made its cgroup namespace.
    pub(crate) fn delegate(&mut self, owner: (Uid, Gid)) -> Result<Option<OwnedFd>> {
        let above = self.inner.as_ref().or(self.paths.first());
        // An ordinary user's container may have no cgroup at all.
        let (Some(name), Some(above)) = (&self.wishes.delegate, above) else { return Ok(None) };
        let inner = above.join(name);
        make(&inner)?;
        give(&inner, owner)?;
        let entrance = entrance(&inner)?;
        self.inner = Some(inner);
        Ok(Some(entrance))
    }

    /// Hands the controllers down to a delegated cgroup. The kernel requires that no process is
    /// left above it.
    pub(crate) fn hand_down(&self) {
        if let (Some(_), Some(inner)) = (&self.wishes.delegate, &self.inner)
            && let Some(above) = inner.parent()
        {
            v2::hand_down(above);
        }
    }

    /// Gives the cgroup to root of the container's user namespace, so that a systemd in the
    /// container can make its own cgroups.
    pub(crate) fn give(&self, owner: (Uid, Gid)) -> Result<()> {
        match (self.manager, self.version) {
            (Manager::Disabled, _) | (_, Version::V1) => Ok(()),
            (_, Version::V2) => give(&self.paths[0], owner),
        }
    }
}

pub(super) fn make(path: &Path) -> Result<()> {
    let made = match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => v2::take_processes(path),
    };
    made.with_context(|| format!("make cgroup `{}`", path.display()))
}

/// Opens the file by which a process enters.
pub(super) fn entrance(path: &Path) -> Result<OwnedFd> {
    let file = path.join("cgroup.procs");
    rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `{}`", file.display()))
}

/// Changes the owner of the directory and of the files that the kernel lists for that. The limits
/// stay with the cgroup above.
fn give(path: &Path, (uid, gid): (Uid, Gid)) -> Result<()> {
    // One name per line. Linux before 4.15 has no list.
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
