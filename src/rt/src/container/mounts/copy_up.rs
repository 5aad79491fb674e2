//! The option `tmpcopyup`: a new tmpfs gets what it hides. Runs in init.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use super::super::devices;
use super::super::host_proc::HostProc;

/// Fills a new tmpfs from the directory that it is about to hide: names, contents, modes and owners.
///
/// The directory may be a volume's, where others rename and exchange files meanwhile. So each name is looked up once, with
/// `O_PATH`, which waits for nobody (a fifo, a device); what was looked up decides what is done. The tmpfs is nobody else's yet.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, proc: &HostProc) -> Result<()> {
    let from = reopen(from).context("open the directory to copy")?;
    copy_directory(from.as_fd(), to, Path::new(""), proc).context("copy the directory up")
}

fn reopen(directory: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn copy_directory(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    path: &Path,
    proc: &HostProc,
) -> Result<()> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path: PathBuf = path.join(name.to_string_lossy().as_ref());
        let copy = || -> Result<()> {
            let mut source = rustix::fs::openat(from, name, look, Mode::empty())?;
            let metadata = rustix::fs::fstat(&source)?;
            let mode = Mode::from_raw_mode(metadata.st_mode);
            let kind = FileType::from_raw_mode(metadata.st_mode);
            match kind {
                // Where no rules for devices hold, an image's own would be the host's.
                FileType::BlockDevice | FileType::CharacterDevice
                    if !devices::is_default(kind, metadata.st_rdev) =>
                {
                    return Ok(());
                }
                FileType::Directory => rustix::fs::mkdirat(to, name, mode)?,
                FileType::RegularFile => {
                    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    // Who holds a lease on it (`fcntl(2)`) could hold this process up for 45 s: it is an error.
                    let mut read = fs::File::from(
                        proc.reopen(source.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)?,
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
            let mut copied = rustix::fs::openat(to, name, look, Mode::empty())?;
            if kind == FileType::Directory {
                // In their places: a deep tree takes as few descriptors as it can.
                source = reopen(source.as_fd())?;
                copied = reopen(copied.as_fd())?;
                copy_directory(source.as_fd(), copied.as_fd(), &path, proc)?;
            }
            let owner = (Uid::from_raw(metadata.st_uid), Gid::from_raw(metadata.st_gid));
            rustix::fs::chownat(&copied, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
            if kind != FileType::Symlink {
                // The umask cut the mode, and chown(2) the set-id bits.
                proc.chmod(copied.as_fd(), mode)?;
            }
            Ok(())
        };
        copy().with_context(|| format!("copy `{}`", path.display()))?;
    }
    Ok(())
}
