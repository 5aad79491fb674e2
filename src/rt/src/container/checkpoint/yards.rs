//! The directories in which CRIU mounts cgroups, beside its log. CRIU removes them at its end,
//! unless it was killed. Runs in the runtime process, and in the [guard](super::guard).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType};

use crate::trust;

/// The directories that existed before a restore.
#[derive(Debug)]
pub(in crate::container) struct Yards {
    folder: OwnedFd,
    before: BTreeSet<OsString>,
}

/// The prefix of their names (`prepare_cgroup_sfd` in `criu/cgroup.c`).
const YARD: &str = ".criu.cgyard.";

fn yards_in(folder: &OwnedFd) -> Result<BTreeSet<OsString>> {
    let mut found = BTreeSet::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name.as_bytes().starts_with(YARD.as_bytes()) {
            found.insert(name);
        }
    }
    Ok(found)
}

impl AsFd for Yards {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Yards {
    pub(in crate::container) fn look(folder: &OwnedFd) -> Result<Yards> {
        let before = yards_in(folder)?;
        Ok(Yards { folder: folder.try_clone().context("duplicate a descriptor")?, before })
    }

    /// Removes the directory that an ended CRIU has left: an empty directory of our own user.
    /// Another restore from the same images may have one too, which is a mount point for its CRIU.
    pub(in crate::container) fn remove_new(&self) -> Result<()> {
        for name in yards_in(&self.folder)?.difference(&self.before) {
            let there = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
            if is_directory && trust::is_ours(&there) && !is_mount_point(name)? {
                // A directory that is not empty stays.
                let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::REMOVEDIR);
            }
        }
        Ok(())
    }
}

/// Whether a process has a mount on a path that ends with this name, which is unique.
fn is_mount_point(name: &OsStr) -> Result<bool> {
    let name = [b"/", name.as_bytes(), b" "].concat();
    for process in fs::read_dir("/proc")? {
        // An entry that is not a process, or is one that has ended, has no mounts.
        let table = fs::read(process?.path().join("mountinfo")).unwrap_or_default();
        if table.windows(name.len()).any(|part| part == name) {
            return Ok(true);
        }
    }
    Ok(false)
}
