//! Devices: the nodes and links that every container has in `/dev` (runtime-spec, `config-linux.md`, "Default Devices"),
//! and those that the configuration lists. Runs in init, before the root is changed.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use libcontainer::oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mounts;
use super::rootfs::Rootfs;

/// Character devices, their numbers from the kernel's `Documentation/admin-guide/devices.txt`.
pub(crate) const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Whether a device is one that every container has.
pub(super) fn is_default(kind: FileType, number: u64) -> bool {
    let is_it = |&(_, major, minor): &(_, u32, u32)| rustix::fs::makedev(major, minor) == number;
    kind == FileType::CharacterDevice && DEFAULT.iter().any(is_it)
}

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    // Not the specification's, but crun's and runc's.
    ("core", "/proc/kcore"),
];

struct Node {
    kind: FileType,
    major: u32,
    minor: u32,
    mode: Mode,
    owner: Option<(Uid, Gid)>,
}

/// Fills `/dev`, but for what the configuration has mounted there (`-v /dev/urandom:/dev/random`). With `bind`, where the kernel
/// lets nobody make device nodes (a user namespace), the host's are mounted.
pub(crate) fn make(
    rootfs: &Rootfs,
    listed: &[LinuxDevice],
    mounted: &[Mount],
    bind: bool,
) -> Result<()> {
    let dev = rootfs.make(Path::new("/dev"), true)?;
    for (name, major, minor) in DEFAULT {
        let path = Path::new("/dev").join(name);
        if listed.iter().any(|device| *device.path() == path)
            || mounted.iter().any(|mount| *mount.destination() == path)
        {
            continue;
        }
        let node = Node {
            kind: FileType::CharacterDevice,
            major,
            minor,
            mode: Mode::from_raw_mode(0o666),
            owner: None,
        };
        make_node(rootfs, &dev, &path, &node, bind)
            .with_context(|| format!("make device `{}`", path.display()))?;
    }
    for device in listed {
        make_listed(rootfs, device, bind)
            .with_context(|| format!("make device `{}`", device.path().display()))?;
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("make link `/dev/{name}`")),
        }
    }
    Ok(())
}

fn make_listed(rootfs: &Rootfs, device: &LinuxDevice, bind: bool) -> Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => bail!("`a` is no type of a device node"),
    };
    let number = |number: i64| {
        u32::try_from(number).with_context(|| format!("wrong device number {number}"))
    };
    let (major, minor) = match kind {
        FileType::Fifo => (0, 0),
        _ => (number(device.major())?, number(device.minor())?),
    };
    let node = Node {
        kind,
        major,
        minor,
        mode: Mode::from_raw_mode(device.file_mode().unwrap_or(0o666)),
        owner: Some((
            Uid::from_raw(device.uid().unwrap_or(0)),
            Gid::from_raw(device.gid().unwrap_or(0)),
        )),
    };
    let above = device.path().parent().context("not a path")?;
    let directory = rootfs.make(above, true)?;
    make_node(rootfs, &directory, device.path(), &node, bind)
}

fn make_node(
    rootfs: &Rootfs,
    directory: &OwnedFd,
    path: &Path,
    node: &Node,
    bind: bool,
) -> Result<()> {
    if bind && node.kind != FileType::Fifo {
        let host: PathBuf = Path::new("/").join(path);
        let mount =
            mounts::clone_device(&host).with_context(|| format!("open `{}`", host.display()))?;
        // The path is the container's; the host may have another device there, or a file.
        let there = rustix::fs::fstat(&mount)?;
        let number = rustix::fs::makedev(node.major, node.minor);
        ensure!(
            FileType::from_raw_mode(there.st_mode) == node.kind && there.st_rdev == number,
            "the host's `{}` is another file",
            host.display()
        );
        let place = rootfs.make(path, false)?;
        return rootfs.attach(mount.as_fd(), place.as_fd(), path);
    }
    let name = path.file_name().context("not a path")?;
    let number = rustix::fs::makedev(node.major, node.minor);
    let made = match rustix::fs::mknodat(directory, name, node.kind, node.mode, number) {
        Ok(()) => true,
        // An image may bring its own node.
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    // Whoever shares this directory, as a volume, may have put another file there, or a link to one: what is opened here is
    // looked at, and nothing is done by the name any more. With O_PATH, a device is not touched.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let there = rustix::fs::fstat(&file)?;
    let same = FileType::from_raw_mode(there.st_mode) == node.kind
        && (node.kind == FileType::Fifo || there.st_rdev == number);
    ensure!(same, "another file is in its place");
    if !made {
        return Ok(());
    }
    // The umask cut the mode of mknod(2).
    rootfs.proc()?.chmod(file.as_fd(), node.mode).context("set its mode")?;
    if let Some((uid, gid)) = node.owner.filter(|(uid, gid)| !uid.is_root() || !gid.is_root()) {
        rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}
