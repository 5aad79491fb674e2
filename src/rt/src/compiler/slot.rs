//! The slots for compilers on this host, each with the state of one compiler's container.
#![forbid(unsafe_code)]

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::container;
use crate::state::Root;

/// The state of a compiler's container, separate from the containers of callers. All roots of a
/// host share one directory for compilers. Two compilers can run at a time, each in a slot of its
/// own below that directory.
pub(super) struct Slot {
    pub(super) root: Root,
    /// An empty directory.
    pub(super) rootfs: PathBuf,
    path: PathBuf,
}

/// The first slot, and the directory of the second slot and of the locks.
pub(super) const DIRECTORY: &str = "/run/rt-compiler";

/// The second slot. It is only for compilers for which a process waits.
pub(super) const SECOND: &str = "@second";

impl Slot {
    pub(super) fn new(name: &str) -> Result<Slot> {
        let rootfs = Path::new(DIRECTORY).join("@rootfs");
        let path = Path::new(DIRECTORY).join(name);
        for folder in [&rootfs, &path] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(folder)
                .with_context(|| format!("make `{}`", folder.display()))?;
        }
        Ok(Slot { root: Root::new(Some(&path)), rootfs, path })
    }

    /// Takes the slot, unless another process has it. A process that inherits the descriptor also
    /// has the lock.
    pub(super) fn take(&self) -> Result<Option<OwnedFd>> {
        let lock = open(&self.path.join("@lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error).context("wait for other compilers"),
        }
    }

    /// Removes the leftovers of a killed worker. No other process works in this slot.
    pub(super) fn clean(&self) -> Result<()> {
        for id in self.root.ids()? {
            let Some(directory) = self.root.find(&id)? else { continue };
            match directory.read() {
                Ok(Some(state)) => container::delete(&directory, &state, true),
                Ok(None) => directory.remove(),
                Err(_) => container::delete_unreadable(&directory, &id),
            }
            .with_context(|| format!("delete `{id}`"))?;
        }
        Ok(())
    }
}

/// Opens a file beside the slots, which exists for its locks.
pub(super) fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("open `{}`", path.display()))
}
