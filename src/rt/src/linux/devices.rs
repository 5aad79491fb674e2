//! Devices: the nodes and links that every container has in `/dev` (runtime-spec,
//! `config-linux.md`, "Default Devices"), and the devices that the configuration lists. Runs in
//! init, before init changes the root.
#![forbid(unsafe_code)]

pub(crate) mod defaults;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxIdMapping, Mount};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::bundle::Bundle;
use crate::ids::is_host_root;
use crate::linux::mounts;
use crate::linux::namespaces::{self, Namespaces};
use crate::linux::rootfs::Rootfs;

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    // crun and runc have this link too, but the specification does not.
    ("core", "/proc/kcore"),
];

struct Node {
    kind: FileType,
    major: u32,
    minor: u32,
    mode: Mode,
    owner: Option<(Uid, Gid)>,
}

/// Makes the listed devices of a container with a user namespace, in which no process may make
/// device nodes (`user_namespaces(7)`). The nodes get their owners and modes. They are in a
/// filesystem of their own, from which init mounts each node. Returns None if no node is to be
/// made. Runs in the runtime process.
pub(crate) fn open_for_init(bundle: &Bundle, namespaces: &Namespaces) -> Result<Option<OwnedFd>> {
    let listed = bundle.linux().devices().as_deref().unwrap_or_default();
    if listed.is_empty() || !namespaces.has(libc::CLONE_NEWUSER) || !is_host_root() {
        return Ok(None);
    }
    let (users, groups) = match namespaces.joined(libc::CLONE_NEWUSER) {
        Some(user) => namespaces::mappings_of(user)?,
        None => {
            let own = |mappings: &Option<Vec<LinuxIdMapping>>| mappings.clone().unwrap_or_default();
            (own(bundle.linux().uid_mappings()), own(bundle.linux().gid_mappings()))
        }
    };
    let folder =
        mounts::make_for_devices(bundle, listed.len()).context("make a place for devices")?;
    for (number, device) in listed.iter().enumerate() {
        let make = || -> Result<()> {
            let node = Node::of(device)?;
            if node.kind == FileType::Fifo {
                return Ok(());
            }
            let map = |kind: &str, id: u32, mappings: &[LinuxIdMapping]| {
                namespaces::on_the_host(id, mappings)
                    .with_context(|| format!("the user namespace has no {kind} {id}"))
            };
            let (uid, gid) = node.owner.unwrap_or((Uid::ROOT, Gid::ROOT));
            let uid = Uid::from_raw(map("user", uid.as_raw(), &users)?);
            let gid = Gid::from_raw(map("group", gid.as_raw(), &groups)?);
            let name = made_name(number);
            match rustix::fs::mknodat(&folder, &name, node.kind, node.mode, node.number()) {
                // The runtime process is in a container itself, and may not make nodes. Init will
                // show the host's node instead.
                Err(Errno::PERM) => return Ok(()),
                made => made?,
            }
            // The umask cut the mode of mknod(2). Using the name is safe: no other process reaches
            // this filesystem.
            rustix::fs::chownat(&folder, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(rustix::fs::chmodat(&folder, &name, node.mode, AtFlags::empty())?)
        };
        make().with_context(|| show(number, device))?;
    }
    Ok(Some(folder))
}

/// Returns each node that [`open_for_init`] made as a detached mount. Linux before 6.15 cannot
/// clone a part of a mount that is detached itself. So init attaches the filesystem for that time,
/// where no other process sees it.
fn mounts_of(rootfs: &Rootfs, made: &OwnedFd, count: usize) -> Result<Vec<Option<OwnedFd>>> {
    let mount_of =
        |number| match mounts::detached::clone_tree(made.as_fd(), &made_name(number), false) {
            Err(Errno::NOENT) => Ok(None),
            mount => mount.map(Some).context("copy the mount of the devices"),
        };
    rootfs.in_a_scratch_place(|folder, name, _| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        mounts::detached::attach(made.as_fd(), place.as_fd())?;
        (0..count).map(mount_of).collect()
    })
}

/// The name of a node of [`open_for_init`] in its filesystem. The mount table of a container shows
/// it.
pub(crate) fn made_name(number: usize) -> PathBuf {
    format!("device-{number}").into()
}

/// Whether the host has this device at the same path as the container.
pub(crate) fn is_on_the_host(device: &LinuxDevice) -> bool {
    let there = rustix::fs::lstat(device.path());
    Node::of(device).is_ok_and(|node| {
        there.is_ok_and(|there| {
            FileType::from_raw_mode(there.st_mode) == node.kind && there.st_rdev == node.number()
        })
    })
}

fn show(number: usize, device: &LinuxDevice) -> String {
    format!("make device `{}` (`linux.devices[{number}]`)", device.path().display())
}

/// Fills `/dev`, except for mounts of the configuration there (`-v /dev/urandom:/dev/random`). With
/// `bind`, the kernel lets no process make device nodes (a user namespace). Then init mounts the
/// listed nodes that the runtime process has `made`, and the host's nodes.
pub(crate) fn make(
    rootfs: &mut Rootfs,
    listed: &[LinuxDevice],
    made: Option<OwnedFd>,
    mounted: &[Mount],
    bind: bool,
) -> Result<()> {
    let dev = rootfs.make(Path::new("/dev"), true)?;
    for (name, major, minor) in defaults::DEFAULT {
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
    let mut made = match made {
        Some(made) => mounts_of(rootfs, &made, listed.len())?,
        None => Vec::new(),
    };
    for (number, device) in listed.iter().enumerate() {
        let mount = made.get_mut(number).and_then(Option::take);
        make_listed(rootfs, device, mount, bind).with_context(|| show(number, device))?;
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("make link `/dev/{name}`")),
        }
    }
    Ok(())
}

impl Node {
    fn of(device: &LinuxDevice) -> Result<Node> {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => bail!("`a` is not a type of a device node"),
        };
        let number = |number: i64| {
            u32::try_from(number).with_context(|| format!("wrong device number {number}"))
        };
        let (major, minor) = match kind {
            FileType::Fifo => (0, 0),
            _ => (number(device.major())?, number(device.minor())?),
        };
        let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        Ok(Node {
            kind,
            major,
            minor,
            mode: Mode::from_raw_mode(device.file_mode().unwrap_or(0o666)),
            owner: Some((Uid::from_raw(uid), Gid::from_raw(gid))),
        })
    }

    fn number(&self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }
}

fn make_listed(
    rootfs: &mut Rootfs,
    device: &LinuxDevice,
    mount: Option<OwnedFd>,
    bind: bool,
) -> Result<()> {
    let node = Node::of(device)?;
    let above = device.path().parent().context("not a path")?;
    let directory = rootfs.make(above, true)?;
    match mount {
        Some(mount) => {
            let place = rootfs.make(device.path(), false)?;
            rootfs.attach(mount.as_fd(), place.as_fd(), device.path()).map(drop)
        }
        None => make_node(rootfs, &directory, device.path(), &node, bind),
    }
}

/// Opens the host's node of a device, as a mount through which the node cannot be changed. The path
/// is the container's. The host may have the device under another name, or another file at this
/// path.
fn open_the_hosts(path: &Path, node: &Node) -> Result<OwnedFd> {
    let folder = if node.kind == FileType::BlockDevice { "block" } else { "char" };
    // The kernel's name for the device (`Documentation/ABI/stable/sysfs-dev`).
    let named = || {
        let event = format!("/sys/dev/{folder}/{}:{}/uevent", node.major, node.minor);
        let event = std::fs::read_to_string(event).ok()?;
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(Path::new("/dev").join(name))
    };
    let same = |path: PathBuf| {
        let mount = mounts::detached::clone_device(&path).ok()?;
        let there = rustix::fs::fstat(&mount).ok()?;
        let same =
            FileType::from_raw_mode(there.st_mode) == node.kind && there.st_rdev == node.number();
        same.then_some(mount)
    };
    let mount = same(Path::new("/").join(path)).or_else(|| named().and_then(same));
    mount.with_context(|| {
        format!(
            "the host has no {folder} device {}:{} at that path, nor where the kernel names it",
            node.major, node.minor
        )
    })
}

fn make_node(
    rootfs: &mut Rootfs,
    directory: &OwnedFd,
    path: &Path,
    node: &Node,
    bind: bool,
) -> Result<()> {
    if bind && node.kind != FileType::Fifo {
        let mount = open_the_hosts(path, node)?;
        let place = rootfs.make(path, false)?;
        return rootfs.attach(mount.as_fd(), place.as_fd(), path).map(drop);
    }
    let name = path.file_name().context("not a path")?;
    let number = node.number();
    let made = match rustix::fs::mknodat(directory, name, node.kind, node.mode, number) {
        Ok(()) => true,
        // An image may contain its own node.
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    // A neighbour that shares this directory, for example a volume, may have put another file
    // there, or a link to one. So init checks the file that it opens, and does not use the name any
    // more. With O_PATH, opening a device has no effect.
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
