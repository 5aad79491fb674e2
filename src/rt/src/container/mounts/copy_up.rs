//! The option `tmpcopyup`: a new tmpfs gets what it hides. Runs in init.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

/// Fills a new tmpfs from the directory that it is about to hide: names, contents, modes and owners. The mode of the tmpfs itself
/// may be its own, by an option.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, own_mode: bool) -> Result<()> {
    let from = reopen(from).context("open the directory to copy")?;
    let metadata = rustix::fs::fstat(&from)?;
    if !own_mode {
        rustix::fs::fchmod(reopen(to)?, Mode::from_raw_mode(metadata.st_mode))?;
    }
    copy_directory(from.as_fd(), to, Path::new("")).context("copy the directory up")
}

fn reopen(directory: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
    use rustix::fs::{AtFlags, FileType};
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path: PathBuf = path.join(name.to_string_lossy().as_ref());
        let copy = || -> Result<()> {
            let metadata = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let mode = Mode::from_raw_mode(metadata.st_mode);
            match FileType::from_raw_mode(metadata.st_mode) {
                FileType::Directory => {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::mkdirat(to, name, mode)?;
                    let below = rustix::fs::openat(from, name, flags, Mode::empty())?;
                    let copied = rustix::fs::openat(to, name, flags, Mode::empty())?;
                    copy_directory(below.as_fd(), copied.as_fd(), &path)?;
                }
                FileType::RegularFile => {
                    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    let mut source =
                        fs::File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
                    let mut target = fs::File::from(rustix::fs::openat(to, name, write, mode)?);
                    std::io::copy(&mut source, &mut target)?;
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                    rustix::fs::symlinkat(target, to, name)?;
                }
                kind => rustix::fs::mknodat(to, name, kind, mode, metadata.st_rdev)?,
            }
            let owner = (
                rustix::fs::Uid::from_raw(metadata.st_uid),
                rustix::fs::Gid::from_raw(metadata.st_gid),
            );
            rustix::fs::chownat(to, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(metadata.st_mode) != FileType::Symlink {
                // The umask cut the mode, and chown(2) the set-id bits.
                rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
            }
            Ok(())
        };
        copy().with_context(|| format!("copy `{}`", path.display()))?;
    }
    Ok(())
}
