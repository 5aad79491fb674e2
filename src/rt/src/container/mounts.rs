//! Mounts: the options of `config.json` (those of `mount(8)`), and how one entry of `mounts` is carried out.
//!
//! Own code, not libcontainer's, which ignores the propagation of a mount and clears no flag of a bind mount's source, and
//! takes some 50 system calls a mount. Everything goes through the file-descriptor mount calls of Linux 5.2 and 5.12: a
//! destination is looked up inside the rootfs once, and what was looked up is what is mounted on.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libcontainer::oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::rootfs::Rootfs;
use crate::bundle::Bundle;
use crate::syscall::{self, MountAttr};

/// The options of one mount, taken apart.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Options {
    /// `Some(true)`: `rbind`.
    pub(crate) bind: Option<bool>,
    /// For the mount itself.
    pub(crate) attr: MountAttr,
    /// For it and everything below it: the `r…` options.
    pub(crate) recursive: MountAttr,
    /// `MS_SHARED` and so on, and whether everything below is meant too. Kept apart, since each has to be set alone.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// What the filesystem as a whole is told: `sync`, `dirsync`, `lazytime`.
    pub(crate) superblock: Vec<&'static str>,
    /// Everything else: the filesystem's own options.
    pub(crate) data: Vec<(String, Option<String>)>,
    /// Fill a new tmpfs with what the rootfs has in its place.
    pub(crate) copy_up: bool,
}

/// Every option that is not the filesystem's own, for `features`.
pub(crate) const NAMES: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
];

/// `MOUNT_ATTR_NOSYMFOLLOW`, Linux 5.14, `<linux/mount.h>`.
const NOSYMFOLLOW: u64 = 0x0020_0000;

impl Options {
    pub(crate) fn parse(options: &[String]) -> Result<Options> {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        if let Some(set) = attribute(option) {
            apply(&mut self.attr, set);
            return Ok(());
        }
        if let Some(set) = option.strip_prefix('r').and_then(attribute) {
            apply(&mut self.recursive, set);
            return Ok(());
        }
        match option {
            // Defaults, and flags that no kernel still has a use for.
            "defaults" | "async" | "loud" | "silent" | "mand" | "nomand" | "iversion"
            | "noiversion" | "" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "shared" => self.propagation.push((libc::MS_SHARED, false)),
            "rshared" => self.propagation.push((libc::MS_SHARED, true)),
            "slave" => self.propagation.push((libc::MS_SLAVE, false)),
            "rslave" => self.propagation.push((libc::MS_SLAVE, true)),
            "private" => self.propagation.push((libc::MS_PRIVATE, false)),
            "rprivate" => self.propagation.push((libc::MS_PRIVATE, true)),
            "unbindable" => self.propagation.push((libc::MS_UNBINDABLE, false)),
            "runbindable" => self.propagation.push((libc::MS_UNBINDABLE, true)),
            "sync" => self.superblock.push("sync"),
            "dirsync" => self.superblock.push("dirsync"),
            "lazytime" => self.superblock.push("lazytime"),
            "tmpcopyup" => self.copy_up = true,
            "idmap" | "ridmap" | "copy-symlink" | "src-nofollow" | "dest-nofollow" | "remount" => {
                bail!("the mount option `{option}` is not implemented yet")
            }
            _ => self.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            }),
        }
        Ok(())
    }
}

/// Bits to set and to clear.
type Change = (u64, u64);

fn attribute(option: &str) -> Option<Change> {
    use libc::{
        MOUNT_ATTR__ATIME as ATIME, MOUNT_ATTR_NOATIME as NOATIME, MOUNT_ATTR_NODEV as NODEV,
        MOUNT_ATTR_NODIRATIME as NODIRATIME, MOUNT_ATTR_NOEXEC as NOEXEC,
        MOUNT_ATTR_NOSUID as NOSUID, MOUNT_ATTR_RDONLY as RDONLY, MOUNT_ATTR_RELATIME as RELATIME,
        MOUNT_ATTR_STRICTATIME as STRICTATIME,
    };
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        // The three ways to keep access times are one field, which mount_setattr wants cleared to change it.
        "noatime" => (NOATIME, ATIME),
        "atime" | "relatime" | "nostrictatime" => (RELATIME, ATIME),
        "strictatime" | "norelatime" => (STRICTATIME, ATIME),
        _ => return None,
    })
}

/// The last option wins, as in mount(8).
fn apply(attr: &mut MountAttr, (set, clear): Change) {
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !set | clear;
}

impl Options {
    /// Sets what `open_tree` and `fsmount` could not.
    fn finish(&self, mount: BorrowedFd<'_>, is_new: bool) -> Result<()> {
        let set = |attr: MountAttr, recursive| {
            if attr == MountAttr::default() {
                return Ok(());
            }
            syscall::mount_setattr(mount, attr, recursive)
                .context("set the attributes of the mount")
        };
        if !is_new {
            set(self.attr, false)?;
        }
        set(self.recursive, true)
    }

    fn propagate(&self, mount: BorrowedFd<'_>) -> Result<()> {
        for &(propagation, recursive) in &self.propagation {
            let attr = MountAttr { propagation, ..MountAttr::default() };
            syscall::mount_setattr(mount, attr, recursive)
                .context("set the propagation of the mount")?;
        }
        Ok(())
    }
}

/// Carries out one entry of `mounts`. Runs in init, before the root is changed. A relative source is relative to the bundle.
pub(crate) fn mount(rootfs: &Rootfs, bundle: &Bundle, entry: &Mount) -> Result<()> {
    let mut options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    let kind = entry.typ().as_deref().unwrap_or("none");
    let bind = options.bind.is_some() || kind == "bind";
    if let Some(label) = bundle.linux().mount_label().as_ref().filter(|label| !label.is_empty())
        && !bind
        && !matches!(kind, "proc" | "sysfs")
    {
        options.data.push(("context".to_owned(), Some(label.clone())));
    }
    let mount = if bind {
        clone(&bundle.path, entry, &options)?
    } else {
        make(kind, entry.source().as_deref(), &options)?
    };
    let is_directory = !bind || rustix::fs::fstat(&mount)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let destination = rootfs.make(entry.destination(), is_directory)?;
    if options.copy_up && !bind {
        copy_up(destination.as_fd(), mount.as_fd())?;
    }
    options.finish(mount.as_fd(), !bind)?;
    attach(mount.as_fd(), destination.as_fd())?;
    options.propagate(mount.as_fd())
}

/// The source of a bind mount, as a detached mount of its own.
fn clone(bundle: &Path, entry: &Mount, options: &Options) -> Result<OwnedFd> {
    let Some(source) = entry.source() else { bail!("a bind mount without a source") };
    let source = bundle.join(source);
    clone_tree(CWD, &source, options.bind.unwrap_or(true))
        .with_context(|| format!("open source `{}`", source.display()))
}

pub(crate) fn clone_tree(
    at: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(at, path, flags)
}

/// A new filesystem, as a detached mount.
pub(crate) fn make(kind: &str, source: Option<&Path>, options: &Options) -> Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .with_context(|| format!("open filesystem type `{kind}`"))?;
    let explain = |error: Errno, what: String| -> anyhow::Error {
        let message = messages(filesystem.as_fd());
        let context = if message.is_empty() { what } else { format!("{what}: {message}") };
        anyhow::Error::from(error).context(context)
    };
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), "source", source)
            .map_err(|error| explain(error, format!("set source `{}`", source.display())))?;
    }
    // A mount's rights are enough for what lives in memory; a disk must not even replay its journal.
    let in_memory =
        matches!(kind, "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2");
    let read_only = !in_memory && options.attr.set & libc::MOUNT_ATTR_RDONLY != 0;
    for flag in options.superblock.iter().copied().chain(read_only.then_some("ro")) {
        rustix::mount::fsconfig_set_flag(filesystem.as_fd(), flag)
            .map_err(|error| explain(error, format!("set option `{flag}`")))?;
    }
    for (key, value) in &options.data {
        let result = match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(filesystem.as_fd(), key.as_str(), value.as_str())
            }
            None => rustix::mount::fsconfig_set_flag(filesystem.as_fd(), key.as_str()),
        };
        result.map_err(|error| explain(error, format!("set option `{key}`")))?;
    }
    rustix::mount::fsconfig_create(filesystem.as_fd())
        .map_err(|error| explain(error, format!("make a `{kind}`")))?;
    // A mount that is just made has no attribute that would have to be cleared.
    let attributes = MountAttrFlags::from_bits_retain(
        u32::try_from(options.attr.set).context("mount attributes")?,
    );
    rustix::mount::fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| explain(error, format!("mount a `{kind}`")))
}

/// What the kernel has to say about a filesystem that could not be made: one message per `read(2)`, after its level
/// (`e `, `w `, `i `).
fn messages(filesystem: BorrowedFd<'_>) -> String {
    let mut texts = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(filesystem, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        texts.push(text.trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    texts.join(", ")
}

/// Puts a detached mount in its place.
pub(crate) fn attach(mount: BorrowedFd<'_>, destination: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", destination, "", flags).context("attach the mount")
}

/// Fills a new tmpfs from the directory that it is about to hide: names, contents, modes and owners.
fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let from = reopen(from).context("open the directory to copy")?;
    let metadata = rustix::fs::fstat(&from)?;
    rustix::fs::fchmod(reopen(to)?, Mode::from_raw_mode(metadata.st_mode))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Options::parse(&options).expect("known options")
    }

    #[test]
    fn the_last_of_two_opposite_options_wins() {
        assert_eq!(parse(&["ro", "rw"]).attr, parse(&["rw"]).attr);
        assert_eq!(parse(&["noexec", "exec", "noexec"]).attr, parse(&["noexec"]).attr);
        let attr = parse(&["noatime", "relatime"]).attr;
        assert_eq!((attr.set, attr.clear), (0, libc::MOUNT_ATTR__ATIME));
    }

    #[test]
    fn recursive_options_are_kept_apart() {
        let options = parse(&["rbind", "rro", "nosuid", "rslave"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.propagation, [(libc::MS_SLAVE, true)]);
    }

    #[test]
    fn what_is_left_is_the_filesystems() {
        let options = parse(&["mode=755", "size=64k", "newinstance"]);
        let data: Vec<_> =
            options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(data, [("mode", Some("755")), ("size", Some("64k")), ("newinstance", None)]);
    }
}
