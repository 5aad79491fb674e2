//! The option `tmpcopyup`: a new tmpfs gets a copy of the directory that it hides. Runs in init.
#![forbid(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Error, Result, ensure};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};

use crate::linux::devices::defaults;
use crate::linux::host_proc::HostProc;

/// The limit of nested directories. Images have a few dozen. Each directory holds three descriptors
/// while its content is copied, and a process usually has 1024.
const DEEPEST: usize = 256;

/// The number of a path's characters that an error shows. An image chooses the path, and must not
/// be able to hide the cause of an error behind it.
const SHOWN: usize = 200;

/// Fills a new tmpfs from the directory that it is about to hide: names, contents, modes and
/// owners.
///
/// The directory may be in a volume, in which neighbours rename and exchange files meanwhile. So
/// init looks up each name once, with `O_PATH`, which never blocks (on a fifo or a device). The
/// file that init found decides the rest. No other process can reach the tmpfs yet.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, proc: &HostProc) -> Result<()> {
    let from = reopen(from).context("open the directory to copy")?;
    let mut copy = Copy { path: PathBuf::new(), depth: 0, proc };
    copy.directory(from.as_fd(), to).context("copy the directory up")
}

fn reopen(directory: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

struct Copy<'a> {
    /// The path that is copied at the moment: one path at any depth. An error names it once.
    path: PathBuf,
    depth: usize,
    proc: &'a HostProc,
}

/// The copy of a name: not yet given to its owner, and without its mode.
struct Made {
    copied: OwnedFd,
    metadata: Stat,
    kind: FileType,
    /// The directory whose content is to be copied into it.
    below: Option<OwnedFd>,
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let names = rustix::fs::Dir::read_from(from).map_err(|error| self.explain(error))?;
        for entry in names {
            let entry = entry.map_err(|error| self.explain(error))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            let made = self.make(from, to, name).map_err(|error| self.explain(error))?;
            if let Some(made) = made {
                if let Some(below) = &made.below {
                    self.depth += 1;
                    self.directory(below.as_fd(), made.copied.as_fd())?;
                    self.depth -= 1;
                }
                self.finish(&made).map_err(|error| self.explain(error))?;
            }
            self.path.pop();
        }
        Ok(())
    }

    fn explain(&self, error: impl Into<Error>) -> Error {
        let path = self.path.to_string_lossy();
        let rest = if path.chars().nth(SHOWN).is_some() { "…" } else { "" };
        let path: String = path.chars().take(SHOWN).collect();
        error.into().context(format!("copy `{path}{rest}`"))
    }

    fn make(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<Option<Made>> {
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, look, Mode::empty())?;
        let metadata = rustix::fs::fstat(&source)?;
        let mode = Mode::from_raw_mode(metadata.st_mode);
        let kind = FileType::from_raw_mode(metadata.st_mode);
        match kind {
            // Without device rules, an image's device node would be the host's device.
            FileType::BlockDevice | FileType::CharacterDevice
                if !defaults::is_default(kind, metadata.st_rdev) =>
            {
                return Ok(None);
            }
            FileType::Directory => {
                ensure!(self.depth < DEEPEST, "more than {DEEPEST} directories in each other");
                rustix::fs::mkdirat(to, name, mode)?;
            }
            FileType::RegularFile => {
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                // The holder of a lease on the file (`fcntl(2)`) could block init for 45 s. With
                // O_NONBLOCK, the lease is an error.
                let mut read = fs::File::from(
                    self.proc.reopen(source.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)?,
                );
                let mut target = fs::File::from(rustix::fs::openat(to, name, write, mode)?);
                std::io::copy(&mut read, &mut target)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&source, "", Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
            }
            kind => rustix::fs::mknodat(to, name, kind, mode, metadata.st_rdev)?,
        }
        let copied = rustix::fs::openat(to, name, look, Mode::empty())?;
        if kind != FileType::Directory {
            return Ok(Some(Made { copied, metadata, kind, below: None }));
        }
        // The earlier descriptors are closed, so that a deep tree requires as few descriptors as
        // possible.
        let below = Some(reopen(source.as_fd())?);
        Ok(Some(Made { copied: reopen(copied.as_fd())?, metadata, kind, below }))
    }

    fn finish(&self, made: &Made) -> Result<()> {
        let Made { copied, metadata, .. } = made;
        let owner = (Uid::from_raw(metadata.st_uid), Gid::from_raw(metadata.st_gid));
        rustix::fs::chownat(copied, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
        if made.kind != FileType::Symlink {
            // The umask cut the mode, and chown(2) cleared the set-id bits.
            self.proc.chmod(copied.as_fd(), Mode::from_raw_mode(metadata.st_mode))?;
        }
        Ok(())
    }
}
