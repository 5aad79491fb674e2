//! Detached mounts: making them, cloning them from other mounts, and attaching them.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::options::Options;
use crate::failure::Failure;
use crate::syscall::{self, MountAttr};

/// Clones the mount that a path is on, starting at that path, as a detached mount. With
/// `recursive`, the mounts below are cloned too.
pub(crate) fn clone_tree(
    at: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::empty();
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    clone_tree_at(at, path, flags)
}

/// Clones a device node of the host, to show it in a container. The container can read and write
/// the device, but cannot change the node's mode or owner.
pub(crate) fn clone_device(path: &Path) -> rustix::io::Result<OwnedFd> {
    let mount = clone_tree(CWD, path, false)?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    syscall::mount_setattr(mount.as_fd(), MountAttr { set, ..MountAttr::default() }, false)?;
    Ok(mount)
}

/// The host's null device. If this process has joined a mount namespace, another file may be in its
/// place.
pub(crate) fn clone_null() -> Result<OwnedFd> {
    let null = clone_device(Path::new("/dev/null")).context("open `/dev/null`")?;
    ensure!(is_null(null.as_fd()), "open `/dev/null`: it is another file");
    Ok(null)
}

pub(crate) fn is_null(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(file).is_ok_and(|there| {
        FileType::from_raw_mode(there.st_mode) == FileType::CharacterDevice
            && there.st_rdev == rustix::fs::makedev(1, 3)
    })
}

pub(crate) fn clone_tree_at(
    at: BorrowedFd<'_>,
    path: &Path,
    flags: OpenTreeFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    rustix::mount::open_tree(at, path, flags)
}

/// Makes a new filesystem as a detached mount with all attributes in `options`.
pub(crate) fn make(
    kind: &str,
    source: Option<&Path>,
    options: &Options,
) -> Result<OwnedFd, Failure> {
    make_with(kind, source, options, options.attr.set)
}

pub(crate) fn make_with(
    kind: &str,
    source: Option<&Path>,
    options: &Options,
    attributes: u64,
) -> Result<OwnedFd, Failure> {
    let filesystem = open_filesystem(kind)?;
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), "source", source).map_err(
            |error| explain(&filesystem, error, format!("set source `{}`", source.display())),
        )?;
    }
    configure(&filesystem, options, !is_in_memory(kind) && options.is_read_only())?;
    rustix::mount::fsconfig_create(filesystem.as_fd())
        .map_err(|error| explain(&filesystem, error, format!("make a `{kind}`")))?;
    let attributes = u32::try_from(attributes)
        .map_err(|error| Failure::other(format!("mount attributes: {error}")))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    rustix::mount::fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| explain(&filesystem, error, format!("mount a `{kind}`")))
}

/// Asks the kernel whether a filesystem of this type accepts these options, without making one.
pub(crate) fn check_data(kind: &str, options: &Options) -> Result<(), Failure> {
    configure(&open_filesystem(kind)?, options, false)
}

fn open_filesystem(kind: &str) -> Result<OwnedFd, Failure> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Failure::new(errno, format!("open filesystem type `{kind}`")))
}

/// For a filesystem in memory, a read-only mount is enough. A disk must not even replay its
/// journal, so its filesystem must be read-only too.
pub(crate) fn is_in_memory(kind: &str) -> bool {
    matches!(kind, "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2")
}

/// Passes a filesystem's own options to the kernel.
pub(crate) fn configure(
    filesystem: &OwnedFd,
    options: &Options,
    read_only: bool,
) -> Result<(), Failure> {
    for flag in options.superblock.iter().copied().chain(read_only.then_some("ro")) {
        rustix::mount::fsconfig_set_flag(filesystem.as_fd(), flag)
            .map_err(|error| explain(filesystem, error, format!("set option `{flag}`")))?;
    }
    for (key, value) in &options.data {
        let result = match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(filesystem.as_fd(), key.as_str(), value.as_str())
            }
            None => rustix::mount::fsconfig_set_flag(filesystem.as_fd(), key.as_str()),
        };
        result.map_err(|error| explain(filesystem, error, format!("set option `{key}`")))?;
    }
    Ok(())
}

/// Adds the kernel's messages about a filesystem to an error. Each `read(2)` returns one message,
/// after its level (`e `, `w `, `i `).
pub(crate) fn explain(filesystem: &OwnedFd, errno: Errno, what: String) -> Failure {
    let mut texts = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(filesystem, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        texts.push(text.trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    let message = texts.join(", ");
    Failure::new(errno, if message.is_empty() { what } else { format!("{what}: {message}") })
}

/// Attaches a detached mount at its place.
pub(crate) fn attach(mount: BorrowedFd<'_>, destination: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let attached = rustix::mount::move_mount(mount, "", destination, "", flags);
    if let Err(Errno::INVAL | Errno::NOTDIR) = attached {
        // For a directory on a file, or a file on a directory, the kernel only says `Invalid
        // argument`.
        return match (is_directory(mount), is_directory(destination)) {
            (Ok(true), Ok(false)) => Err(Errno::NOTDIR).context("a directory on a file"),
            (Ok(false), Ok(true)) => Err(Errno::NOTDIR).context("a file on a directory"),
            _ => attached.context("attach the mount"),
        };
    }
    attached.context("attach the mount")
}

fn is_directory(file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::Directory)
}
