//! The host's `/proc`, opened while this process still sees the host's files. By `/proc/self/fd`,
//! this process can read, change and unmount the file of an `O_PATH` descriptor. The path `/proc`
//! does not serve for that: in the container's mount namespace, the container decides where it
//! leads.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::linux::mount_table::{self, Entry};
use crate::{procfs, syscall};

#[derive(Debug)]
pub(crate) struct HostProc(OwnedFd);

impl HostProc {
    /// Must be called before this process enters the container's mount namespace, or changes its
    /// root.
    pub(crate) fn open() -> Result<HostProc> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open `/proc`")?;
        ensure!(procfs::is_procfs(&proc)?, "open `/proc`: it is not a procfs");
        Ok(HostProc(proc))
    }

    /// The path of a file, seen from this process's root.
    pub(crate) fn path_of(&self, file: BorrowedFd<'_>) -> Result<PathBuf> {
        let path = rustix::fs::readlinkat(&self.0, link(file), Vec::new())
            .context("find out where a file is")?;
        Ok(OsStr::from_bytes(path.to_bytes()).into())
    }

    /// Opens the same file that an `O_PATH` descriptor refers to.
    pub(crate) fn reopen(
        &self,
        file: BorrowedFd<'_>,
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.0, link(file), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Changes the mode of the same file that an `O_PATH` descriptor refers to.
    pub(crate) fn chmod(&self, file: BorrowedFd<'_>, mode: Mode) -> rustix::io::Result<()> {
        match syscall::chmod_opened(file, mode) {
            // Before Linux 6.6. A filter around `rt` that does not know the call answers EPERM.
            Err(Errno::NOSYS | Errno::PERM) => {
                rustix::fs::chmodat(&self.0, link(file), mode, AtFlags::empty())
            }
            changed => changed,
        }
    }

    /// Unmounts the mount whose root the descriptor refers to, with all mounts below it. Leaves
    /// this process in `/proc`: `umount2(2)` requires a path, and follows the link at the end of a
    /// relative path.
    pub(crate) fn unmount(&self, mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
        rustix::process::fchdir(&self.0)?;
        rustix::mount::unmount(link(mount), UnmountFlags::DETACH)
    }

    /// Opens a file in the host's `/proc`.
    pub(crate) fn open_to_write(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.0, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }

    pub(crate) fn mount_namespace(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, "self/ns/mnt", flags, Mode::empty())
    }

    /// One of the mounts that this process sees.
    pub(crate) fn mount(&self, id: &str) -> Result<Option<Entry>> {
        mount_table::own_one_by(self.0.as_fd(), id)
    }

    /// The mounts that this process sees.
    pub(crate) fn mounts(&self) -> Result<Vec<Entry>> {
        mount_table::own_by(self.0.as_fd())
    }
}

fn link(file: BorrowedFd<'_>) -> String {
    format!("self/fd/{}", file.as_raw_fd())
}
