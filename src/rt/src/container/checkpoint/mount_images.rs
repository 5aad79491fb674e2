//! The images of mounts and of files: `mountpoints-N.img`, `files.img` and `remap-fpath.img`.
//!
//! CRIU mounts and opens what they say, as root of the host, and `restore` looks at the result
//! afterwards. Until then, CRIU is in a mount namespace with all files of the host. A `..` in a
//! name led CRIU to any of them, and a file that CRIU opens can be emptied or overwritten at once.
//! So `restore` refuses what no checkpoint has, before CRIU gets its request.
//!
//! CRIU also follows symbolic links in a tmpfs, whose content the images have, and in a volume.
//! When it makes a deleted file again, such a link led it to the host's files. So CRIU reads images
//! of mounts in which these mounts are `nosymfollow` (Linux 5.10), and `restore` takes that away
//! again before a process runs. It looks at the links of the rootfs and of procfs ([`paths`]).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use protobuf::CodedOutputStream;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::bundle::Bundle;
use crate::container::checkpoint::allowed_mounts;
use crate::container::checkpoint::confinement::Limits;
use crate::container::checkpoint::criu;
use crate::container::checkpoint::external_mounts::{Configured, Offers};
use crate::container::checkpoint::file_kinds::{self, Named};
use crate::container::checkpoint::image_names;
use crate::container::checkpoint::images::{self, Magic, each, is_plain, shown};
use crate::container::checkpoint::paths::{self, KernelFs, Look, Place, Places, Required};
use crate::container::checkpoint::process_images;
use crate::interrupt;
use crate::linux::mounts;
use crate::linux::rootfs;
use crate::walk;

const FILES: &str = "files.img";
const REMAPS: &str = "remap-fpath.img";

/// The first bytes of the images (`magic.h`).
const MOUNTS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x28, 0x39, 0x56, 0x55];
const FILES_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x38, 0x31, 0x30, 0x56];
const REMAPS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x54, 0x39, 0x13, 0x59];
const GHOST_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x05, 0x36, 0x58, 0x52];

/// The kinds of filesystems that CRIU makes anew (`fstype` in `mnt.proto`). The kinds that are not
/// here are a part of another mount.
const KINDS: [(u64, &str); 14] = [
    (1, "proc"),
    (2, "sysfs"),
    (3, "devtmpfs"),
    (4, "binfmt_misc"),
    (5, "tmpfs"),
    (6, "devpts"),
    (8, "pstore"),
    (9, "securityfs"),
    (10, "fusectl"),
    (11, "debugfs"),
    (12, "cgroup"),
    (14, "mqueue"),
    (19, "tracefs"),
    (23, "cgroup2"),
];
const PROC: u64 = 1;
const SYSFS: u64 = 2;
const OVERLAY: u64 = 17;
/// A filesystem that CRIU does not make.
const PART: u64 = 0;

/// The kinds that a container without `CAP_SYS_ADMIN` can have without an entry of `mounts`.
const PLAIN: [&str; 7] = ["cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs"];

/// The kinds of which a part can be a mount: the files in them cannot be links to elsewhere.
const WITHOUT_LINKS: [&str; 3] = ["cgroup", "cgroup2", "devpts"];

/// The flags of filesystems in images: none that makes `mount(2)` do anything else than mount a new
/// filesystem. With `MS_BIND`, a tmpfs is a directory of the host, to which CRIU writes the content
/// of the images.
const FILESYSTEM_FLAGS: u64 = libc::MS_RDONLY
    | libc::MS_NOSUID
    | libc::MS_NODEV
    | libc::MS_NOEXEC
    | libc::MS_SYNCHRONOUS
    | libc::MS_MANDLOCK
    | libc::MS_DIRSYNC
    | libc::MS_NOATIME
    | libc::MS_NODIRATIME
    | libc::MS_RELATIME
    | libc::MS_STRICTATIME;
/// The flags of mounts. CRIU does not give those of propagation to the filesystem.
const FLAGS: u64 =
    FILESYSTEM_FLAGS | libc::MS_UNBINDABLE | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_SHARED;

/// The length of all images of mounts, in bytes. The kernel allows 100 000 mounts in a namespace
/// (`fs.mount-max`).
const LONGEST: usize = 64 << 20;
const MOST_FILES: usize = 1 << 22;

/// `mnt_entry`.
#[derive(Debug, Default)]
struct Mount<'i> {
    kind: u64,
    id: u64,
    /// The filesystem. CRIU makes a mount of a filesystem that it has mounted already a part of
    /// that.
    device: u64,
    /// `MS_*` of `mount(2)`.
    flags: u64,
    /// `MS_*` of the filesystem.
    filesystem_flags: u64,
    root: &'i [u8],
    point: &'i [u8],
    options: &'i [u8],
    /// The name of a mount of the host's files.
    external: Option<&'i [u8]>,
    /// Whether `flags` are those of the mount alone. In images of CRIU before 2.0, they are not,
    /// and CRIU does not make the mount read-only.
    is_separate: bool,
    /// Whether it has a filesystem of a name that only the images know, or of a plugin.
    is_other: bool,
    is_deleted: bool,
}

/// A deleted file that CRIU makes again, a file that it finds by another name, or a file of procfs
/// of an ended process: an entry of `remap-fpath.img`.
#[derive(Debug)]
struct Remap {
    /// The numbers of files: of the deleted one, and of the other name.
    files: Vec<u64>,
    /// The number of a deleted file whose content is in the images.
    ghost: Option<u64>,
}

/// What is known of a mount, by its number.
#[derive(Debug, Default)]
struct Known {
    is_read_only: bool,
    is_rootfs: bool,
}

/// CRIU makes a mount of a filesystem that it has mounted already a part of that mount, by the
/// device that the images give for both. Without the restrictions of a volume, or below a link of a
/// volume or of the rootfs, that part would be files of the host.
#[derive(Debug, Default)]
struct Shared {
    /// The devices and roots of the rootfs and of the host's files.
    hosts: BTreeSet<(u64, PathBuf)>,
    /// Other mounts that CRIU mounts anew, with their mount points.
    others: Vec<(u64, PathBuf, String)>,
}

impl Shared {
    fn add(&mut self, mount: &Mount<'_>) {
        let root = Path::new(OsStr::from_bytes(mount.root)).components().collect();
        if mount.external.is_some() || mount.is_root() {
            self.hosts.insert((mount.device, root));
        } else if mount.kind != PART && !mount.is_read_only() {
            self.others.push((mount.device, root, shown(mount.point)));
        }
    }

    fn check(&self) -> Result<()> {
        for (device, root, point) in &self.others {
            let mut above = root.ancestors();
            ensure!(
                !above.any(|above| self.hosts.contains(&(*device, above.to_owned()))),
                "the mount `{point}` shows the rootfs or a volume again, and the container cannot make mounts without CAP_SYS_ADMIN"
            );
        }
        Ok(())
    }
}

/// The host's files that a mount shows: which of these filesystems they are in, and their path in
/// that filesystem. The images do not decide about that.
#[derive(Debug)]
struct Source {
    kind: Option<KernelFs>,
    root: PathBuf,
}

/// The mounts in which CRIU follows links.
#[derive(Debug, Default)]
struct Links {
    /// The kinds of filesystems, by their devices, and whether a procfs is one of the host.
    kinds: BTreeMap<u64, (Option<KernelFs>, bool)>,
    /// All mount points.
    points: BTreeSet<PathBuf>,
    places: Places,
}

impl Links {
    /// Whether CRIU must not follow links of a mount. The links of the rootfs and of procfs are
    /// looked at. `source` is for a mount of the host's files.
    fn add(&mut self, mount: &Mount<'_>, source: Option<Source>) -> Result<bool> {
        let is_the_hosts = source.is_some();
        let Source { kind, root } = source.unwrap_or_else(|| mount.own());
        let is_proc = kind == Some(KernelFs::Proc);
        // CRIU makes a mount of a device that it has mounted already a part of that mount.
        let there = (kind, is_proc && is_the_hosts);
        let is_same = *self.kinds.entry(mount.device).or_insert(there) == there;
        ensure!(is_same, "the mount `{}` is of two kinds", shown(mount.point));
        let is_looked_at = is_proc && !is_the_hosts;
        if is_looked_at {
            let leads = root.ancestors().any(paths::is_link);
            ensure!(!leads, "the mount `{}` goes through a link of procfs", shown(mount.point));
        }
        let point = PathBuf::from(OsStr::from_bytes(mount.point));
        if let Some(kind) = kind {
            self.places.add(Place { kind, point: point.clone(), root, is_the_hosts })?;
        }
        self.points.insert(point);
        Ok(!mount.is_root() && !is_looked_at)
    }
}

/// `reg_file_entry`.
#[derive(Debug, Default)]
struct File {
    name: Vec<u8>,
    /// The number of its mount. Without one, CRIU looks in the root.
    mount: Option<u64>,
}

/// What is allowed.
pub(in crate::container) struct Rules<'a> {
    pub(in crate::container) bundle: &'a Bundle,
    pub(in crate::container) offers: &'a Offers<'a>,
    pub(in crate::container) limits: &'a Limits<'a>,
}

impl Rules<'_> {
    /// Fails if the images have CRIU mount or open what no checkpoint of this container has.
    /// Returns the images of mounts for CRIU, by their names: a mount of the host's files is
    /// read-only from its beginning, if the configuration says so. `show` names an image in errors.
    pub(in crate::container) fn check(
        &self,
        images: BorrowedFd<'_>,
        show: &dyn Fn(&str) -> String,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let (mut mounts, mut written, mut room) =
            (BTreeMap::<u64, Known>::new(), Vec::new(), LONGEST);
        let mut shared = Shared::default();
        let may_mount = self.limits.gives(CapabilitySet::SYS_ADMIN);
        image_names::check(images, show, self.limits)?;
        let namespace = process_images::mount_namespace(images, show, self.limits)?;
        let (files, named) = files(images, self.limits).with_context(|| show(FILES))?;
        let remaps = remaps(images).with_context(|| show(REMAPS))?;
        let mut links = Links::default();
        let own = namespace.map(|number| format!("mountpoints-{number}.img"));
        for name in names(images)? {
            // Of an earlier checkpoint. A root in it would be one of any kind.
            if !may_mount && own.as_ref() != Some(&name) {
                written.push((name, MOUNTS_MAGIC.to_vec()));
                continue;
            }
            let mut new = MOUNTS_MAGIC.to_vec();
            let mut read = || {
                let image = criu::read_in(images, &name)?;
                room =
                    room.checked_sub(image.len()).context("the images of mounts are too long")?;
                let mut number = 0;
                images::each_message(&image, &MOUNTS_MAGIC, &mut |message| {
                    let mount = mount(message)?;
                    number += 1;
                    allowed_mounts::refuse_many(number)?;
                    self.check_mount(&mount)?;
                    shared.add(&mount);
                    let read_only = if self.is_read_only(&mount) { libc::MS_RDONLY } else { 0 };
                    let source = mount.external.map(|name| self.source(name)).transpose()?;
                    let closed = if links.add(&mount, source)? { libc::MS_NOSYMFOLLOW } else { 0 };
                    let more = mount.with(read_only | closed)?;
                    let length = u32::try_from(message.len() + more.len())?.to_le_bytes();
                    new.extend([&length[..], message, &more[..]].concat());
                    let known = mounts.entry(mount.id).or_default();
                    known.is_read_only |=
                        self.is_read_only(&mount) || mount.flags & libc::MS_RDONLY != 0;
                    known.is_rootfs |= mount.is_root();
                    Ok(())
                })
            };
            read().with_context(|| show(&name))?;
            written.push((name, new));
        }
        if !may_mount {
            shared.check()?;
        }
        self.check_remaps(&remaps, &files, &mounts).with_context(|| show(REMAPS))?;
        let deleted = self.ghosts(images, &remaps, show)?;
        named.check_unnamed(&deleted).with_context(|| show(FILES))?;
        let Links { points, places, .. } = links;
        let points = points.iter().map(PathBuf::as_path);
        let own = own.as_deref().unwrap_or("mountpoints");
        self.check_paths(points, &places, None).with_context(|| show(own))?;
        let opened = files.values().map(|file| Path::new(OsStr::from_bytes(&file.name)));
        let has_own_pids = self.limits.has_own_pids();
        let look = |path: &Path| {
            for Required { capability, is_the_hosts } in places.required(path, has_own_pids) {
                // In a user namespace, a capability does not count for an object of the host.
                let has = self.limits.gives(capability)
                    && !(is_the_hosts && self.limits.has_user_namespace());
                ensure!(
                    has,
                    "to open it requires {}, which the container lacks",
                    file_kinds::capability_name(capability)
                );
            }
            Ok(())
        };
        self.check_paths(opened, &places, Some(&look)).with_context(|| show(FILES))?;
        self.check_paths(named.paths(), &places, None).with_context(|| show(FILES))?;
        Ok(written)
    }

    /// Fails if CRIU would go out of the container.
    fn check_paths<'p>(
        &self,
        paths: impl Iterator<Item = &'p Path>,
        places: &Places,
        opened: Option<Look<'_>>,
    ) -> Result<()> {
        let rootfs = rootfs::open_host(&self.bundle.rootfs)?;
        // The name of a standard stream of the caller is not a path.
        let paths: BTreeSet<_> = paths.filter(|path| path.is_absolute()).collect();
        paths.into_iter().try_for_each(|path| places.check(rootfs.as_fd(), path, opened))
    }

    /// Whether the configuration has a mount of the host's files read-only, or the rootfs.
    fn is_read_only(&self, mount: &Mount<'_>) -> bool {
        if mount.is_root() {
            let root = self.bundle.spec.root().as_ref();
            return root.and_then(|root| root.readonly()) == Some(true);
        }
        mount.external.is_some_and(|name| {
            let wanted = self.offers.restrictions(Path::new(OsStr::from_bytes(name)));
            wanted & libc::MOUNT_ATTR_RDONLY != 0
        })
    }

    /// The host's files under a name, as the host has them.
    fn source(&self, name: &[u8]) -> Result<Source> {
        const OF_PROC: i64 = 0x9fa0;
        const OF_SYSFS: i64 = 0x6265_6572;
        let none = || format!("the configuration gives no mount `{}`", shown(name));
        let path = self.offers.source(Path::new(OsStr::from_bytes(name))).with_context(none)?;
        let show = || format!("open `{}`", path.display());
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let about = file.and_then(rustix::fs::fstatfs).with_context(show)?;
        let kind = match about.f_type {
            OF_PROC => Some(KernelFs::Proc),
            OF_SYSFS => Some(KernelFs::Sysfs),
            _ => None,
        };
        let root = || self.offers.shown_at(path).map(|(_, root)| root);
        let root = kind.map(|_| root().with_context(|| format!("find `{}`", path.display())));
        Ok(Source { kind, root: root.transpose()?.unwrap_or_default() })
    }

    fn check_mount(&self, mount: &Mount<'_>) -> Result<()> {
        let point = || shown(mount.point);
        let is_plain = is_plain(mount.root) && is_plain(mount.point);
        ensure!(is_plain, "the mount `{}`: its path is not a plain one", point());
        ensure!(!mount.is_other, "the mount `{}` is of a kind that no checkpoint has", point());
        let flags = mount.flags & !FLAGS | mount.filesystem_flags & !FILESYSTEM_FLAGS;
        ensure!(flags == 0, "the mount `{}` has the flags {flags:#x}, which no mount has", point());
        if let Some(name) = mount.external {
            // Whatever its name is, CRIU mounts the rootfs there.
            ensure!(
                !mount.is_root(),
                "the mount `/` is not the rootfs, but a mount of the configuration: `{}`",
                shown(name)
            );
            // CRIU has keys of its own too, with which it mounts any filesystem.
            ensure!(
                self.offers.source(Path::new(OsStr::from_bytes(name))).is_some(),
                "the mount `{}` is not a mount of the configuration: `{}`",
                point(),
                shown(name)
            );
            ensure!(!mount.is_deleted, "the mount `{}` shows something that was deleted", point());
            return Ok(());
        }
        // Such a container could mount all this by itself.
        if self.limits.gives(CapabilitySet::SYS_ADMIN) {
            return Ok(());
        }
        ensure!(!mount.is_deleted, "the mount `{}` shows something that was deleted", point());
        if mount.is_root() {
            return Ok(());
        }
        let kind = KINDS.iter().find(|(number, _)| *number == mount.kind).map(|(_, name)| *name);
        let is_configured = |Configured { at, entry, .. }: &Configured<'_>| {
            let is_here = at.as_os_str().as_bytes() == mount.point && !mounts::binds(entry);
            is_here
                && match entry.typ().as_deref() {
                    Some("overlay") => {
                        let options = String::from_utf8_lossy(mount.options);
                        mount.kind == OVERLAY && allowed_mounts::has_layers_of(&options, entry)
                    }
                    asked => kind.is_some() && asked == kind,
                }
        };
        let is_known = mount.kind == PART
            || kind.is_some_and(|kind| PLAIN.contains(&kind))
            || self.offers.entries().iter().any(is_configured);
        let name = match mount.kind {
            OVERLAY => "overlay",
            _ => kind.unwrap_or("a part of another"),
        };
        ensure!(
            is_known,
            "the mount `{}` ({name}) is not a mount of the configuration, and the container cannot make mounts without CAP_SYS_ADMIN",
            point()
        );
        // Such a mount would be of the host's hierarchy, and could change its options.
        ensure!(
            self.offers.own_cgroups() || !matches!(kind, Some("cgroup" | "cgroup2")),
            "the mount `{}` ({name}) does not show files of the host, and the container has no cgroup namespace of its own",
            point()
        );
        let is_whole = mount.root == b"/" && mount.kind != PART;
        let has_no_links = kind.is_some_and(|kind| WITHOUT_LINKS.contains(&kind));
        let mut paths = self.bundle.linux().readonly_paths().iter().flatten();
        let shows_the_same = mount.point.ends_with(mount.root) || mount.root.ends_with(mount.point);
        let mut is_read_only_path = || {
            let is_listed = paths.any(|path| path.as_bytes() == mount.point);
            is_listed && mount.is_read_only() && shows_the_same
        };
        ensure!(
            is_whole || has_no_links || is_read_only_path(),
            "the mount `{}` ({name}) is not one of `readonlyPaths`, and the container cannot make mounts without CAP_SYS_ADMIN",
            point()
        );
        if mount.kind == PART {
            let rootfs = rootfs::open_host(&self.bundle.rootfs)?;
            refuse_links(rootfs.as_fd(), Path::new(OsStr::from_bytes(mount.point)))?;
        }
        Ok(())
    }

    /// CRIU makes deleted files again. It makes a mount writable for that, and follows links to the
    /// host's files.
    fn check_remaps(
        &self,
        remaps: &[Remap],
        files: &BTreeMap<u64, File>,
        mounts: &BTreeMap<u64, Known>,
    ) -> Result<()> {
        if remaps.is_empty() {
            return Ok(());
        }
        let rootfs = rootfs::open_host(&self.bundle.rootfs)?;
        let is_root_read_only = mounts.values().any(|it| it.is_rootfs && it.is_read_only);
        let mut looked_at = BTreeSet::new();
        for remap in remaps {
            // CRIU looks for both names on the mount of the first file.
            let both = || remap.files.iter().filter_map(|id| Some((*id, files.get(id)?)));
            let of = |file: &File| file.mount.and_then(|mount| mounts.get(&mount));
            let is_in_rootfs = both().any(|(_, file)| of(file).is_none_or(|mount| mount.is_rootfs));
            for (id, file) in both() {
                ensure!(
                    !of(file).map_or(is_root_read_only, |mount| mount.is_read_only),
                    "the deleted file `{}` is on a read-only mount",
                    shown(&file.name)
                );
                refuse_below_ghosts(&file.name)?;
                // Many entries can be about one file.
                if is_in_rootfs && looked_at.insert(id) {
                    let path = Path::new(OsStr::from_bytes(&file.name));
                    refuse_links(rootfs.as_fd(), path.parent().unwrap_or(path))?;
                }
            }
        }
        Ok(())
    }

    /// The deleted files whose content is in the images. Fails if one is a device that the
    /// container could not make: it would be on a volume until the restore's end.
    fn ghosts(
        &self,
        images: BorrowedFd<'_>,
        remaps: &[Remap],
        show: &dyn Fn(&str) -> String,
    ) -> Result<BTreeSet<file_kinds::Identity>> {
        let (mut deleted, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for number in remaps.iter().filter_map(|remap| remap.ghost) {
            if !numbers.insert(number) {
                continue;
            }
            let name = format!("ghost-file-{number:x}.img");
            let read = || {
                // The content follows.
                let start = criu::read_beginning(images, &name)?;
                ghost(images::message(&start, &GHOST_MAGIC)?)
            };
            let (mode, identity) = read().with_context(|| show(&name))?;
            let is_device = matches!(
                FileType::from_raw_mode(mode),
                FileType::CharacterDevice | FileType::BlockDevice
            );
            ensure!(
                !is_device || self.limits.gives(CapabilitySet::MKNOD),
                "{}: it is a device, and the container has no CAP_MKNOD",
                show(&name)
            );
            deleted.insert(identity);
        }
        Ok(deleted)
    }
}

/// The entries of `remap-fpath.img`.
fn remaps(images: BorrowedFd<'_>) -> Result<Vec<Remap>> {
    /// A deleted file whose content is in the images, and a file of procfs of an ended process.
    const GHOST: u32 = 1;
    const PROCESS: u32 = 2;
    /// The bit for a ghost in images without a kind.
    const OLD_GHOST: u64 = 1 << 31;
    let mut found = Vec::new();
    let Some(image) = criu::read_if_there(images, REMAPS)? else { return Ok(found) };
    images::each_message(&image, &REMAPS_MAGIC, &mut |message| {
        let (mut ids, mut kind) = ([0; 2], None);
        each(message, &mut |field, value| {
            match field {
                1 => ids[0] = value.u32()?.into(),
                2 => ids[1] = value.u32()?.into(),
                3 => kind = Some(value.u32()?),
                _ => {}
            }
            Ok(())
        })?;
        // The second number of a ghost is not that of a file.
        let (names, ghost) = match kind {
            Some(PROCESS) => return Ok(()),
            Some(GHOST) => (1, Some(ids[1])),
            None if ids[1] & OLD_GHOST != 0 => (1, Some(ids[1] & !OLD_GHOST)),
            _ => (2, None),
        };
        ensure!(found.len() < MOST_FILES, "it has too many files");
        found.push(Remap { files: ids[..names].to_vec(), ghost });
        Ok(())
    })?;
    Ok(found)
}

/// A `ghost_file_entry`: its mode, and what it was before it was deleted.
fn ghost(message: &[u8]) -> Result<(u32, file_kinds::Identity)> {
    let (mut mode, mut device, mut inode) = (0, 0, 0);
    each(message, &mut |field, value| {
        match field {
            3 => mode = value.u32()?,
            4 => device = value.u32()?.into(),
            5 => inode = value.u64()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((mode, (device, inode)))
}

/// Fails for a path below a deleted file that CRIU makes again, which can be a link. CRIU calls it
/// `NAME.cr.NUMBER.ghost`, and cuts the name if the whole path is longer than `PATH_MAX`.
fn refuse_below_ghosts(name: &[u8]) -> Result<()> {
    const LONGEST: usize = 3000;
    ensure!(name.len() <= LONGEST, "the path of a deleted file is too long");
    let path = Path::new(OsStr::from_bytes(name));
    let is_ghost = |part: &OsStr| part.as_bytes().ends_with(b".ghost");
    ensure!(
        !path.parent().is_some_and(|above| above.iter().any(is_ghost)),
        "the deleted file `{}` is below another one",
        shown(name)
    );
    Ok(())
}

/// Fails if a part of a path is a link.
fn refuse_links(rootfs: BorrowedFd<'_>, path: &Path) -> Result<()> {
    interrupt::glance()?;
    let path = path.strip_prefix("/").unwrap_or(path);
    if path == Path::new("") {
        return Ok(());
    }
    let limits = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match walk::open(rootfs, path, OFlags::PATH, limits) {
        // CRIU makes a missing directory.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("open `{}` in the rootfs", path.display()))
        }
    }
}

impl Mount<'_> {
    /// Fields that give the mount more flags (`MS_*`). Of a field that is there twice, the last one
    /// counts.
    fn with(&self, more: libc::c_ulong) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if more == 0 || self.is_separate && self.flags & more == more {
            return Ok(bytes);
        }
        let flags = u32::try_from(self.flags | more)?;
        let mut out = CodedOutputStream::vec(&mut bytes);
        out.write_uint32(5, flags)?;
        if !self.is_separate {
            out.write_uint32(17, 0)?;
        }
        out.flush()?;
        drop(out);
        Ok(bytes)
    }

    /// Whether CRIU mounts the rootfs there: it goes by the mount point alone.
    fn is_root(&self) -> bool {
        self.point == b"/"
    }

    /// A filesystem that CRIU mounts, or a part of it.
    fn own(&self) -> Source {
        let kind = match self.kind {
            PROC => Some(KernelFs::Proc),
            SYSFS => Some(KernelFs::Sysfs),
            _ => None,
        };
        Source { kind, root: PathBuf::from(OsStr::from_bytes(self.root)) }
    }

    fn is_read_only(&self) -> bool {
        self.is_separate && self.flags & libc::MS_RDONLY != 0
    }
}

/// The images of mounts: one for each mount namespace.
pub(in crate::container) fn names(images: BorrowedFd<'_>) -> Result<Vec<String>> {
    images::names_with(images, "mountpoints-")
}

fn mount(message: &[u8]) -> Result<Mount<'_>> {
    let mut mount = Mount::default();
    each(message, &mut |field, value| {
        match field {
            1 => mount.kind = value.u32()?.into(),
            2 => mount.id = value.u32()?.into(),
            3 => mount.device = value.u32()?.into(),
            5 => mount.flags = value.u32()?.into(),
            6 => mount.root = value.bytes()?,
            7 => mount.point = value.bytes()?,
            9 => mount.options = value.bytes()?,
            // A plugin mounts it. Or the name is in `root`, as in images of CRIU before 2.0.
            12 | 13 => mount.is_other |= value.flag()?,
            14 => mount.is_other = true,
            16 => mount.is_deleted = value.flag()?,
            17 => {
                mount.is_separate = true;
                mount.filesystem_flags = value.u32()?.into();
            }
            18 => mount.external = Some(value.bytes()?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(mount)
}

/// The regular files, by their numbers, and what CRIU looks up for others.
fn files(images: BorrowedFd<'_>, limits: &Limits<'_>) -> Result<(BTreeMap<u64, File>, Named)> {
    let (mut files, mut named) = (BTreeMap::new(), Named::default());
    // CRIU says by itself that it is missing.
    let Some(image) = criu::read_if_there(images, FILES)? else { return Ok((files, named)) };
    images::each_message(&image, &FILES_MAGIC, &mut |message| {
        // `file_entry`
        file_kinds::check(message, limits, &mut named)?;
        each(message, &mut |field, value| {
            if field != 3 {
                return Ok(());
            }
            let (id, file) = file(value.bytes()?)?;
            ensure!(files.insert(id, file).is_none(), "it has the file {id} twice");
            ensure!(files.len() <= MOST_FILES, "it has too many files");
            Ok(())
        })
    })?;
    Ok((files, named))
}

/// `reg_file_entry`: its number and what is known of it.
fn file(message: &[u8]) -> Result<(u64, File)> {
    let (mut id, mut file) = (0, File::default());
    each(message, &mut |field, value| {
        match field {
            1 => id = value.u32()?.into(),
            2 => images::refuse_changing(value.u32()?)?,
            6 => {
                let name = value.bytes()?;
                // CRIU leaves out the first character, whatever it is. The other form is that of a
                // standard stream of the caller (`file[DEVICE:INODE]`).
                let is_stream =
                    name.starts_with(b"file[") && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
                ensure!(
                    is_plain(name) || is_stream,
                    "the file `{}`: its path is not a plain one",
                    shown(name)
                );
                file.name = name.to_owned();
            }
            // Zigzag: even numbers are not negative.
            7 => {
                let number = value.u32()?;
                file.mount = (number & 1 == 0).then_some((number >> 1).into());
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok((id, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount<'m>(kind: u64, point: &'m [u8], root: &'m [u8]) -> Mount<'m> {
        Mount { kind, point, root, device: 7, ..Mount::default() }
    }

    fn hosts(kind: Option<KernelFs>, root: &str) -> Option<Source> {
        Some(Source { kind, root: root.into() })
    }

    #[test]
    fn links_are_followed_in_the_rootfs_and_in_procfs_only() {
        let is_closed = |kind, point, source| {
            Links::default().add(&mount(kind, point, b"/"), source).expect("it is one of these")
        };
        assert!(!is_closed(PART, b"/", None));
        assert!(!is_closed(PROC, b"/proc", None));
        assert!(is_closed(5, b"/dev", None));
        assert!(is_closed(PART, b"/vol", hosts(None, "/srv")));
        // A volume whose image says that it is a procfs, and a procfs of the host.
        assert!(is_closed(PROC, b"/vol", hosts(None, "/srv")));
        assert!(is_closed(PROC, b"/vol", hosts(Some(KernelFs::Proc), "/")));
        let mut links = Links::default();
        links.add(&mount(PROC, b"/proc", b"/"), None).expect("it is a procfs");
        let volume = mount(PROC, b"/vol", b"/");
        links.add(&volume, hosts(None, "/srv")).expect_err("it is of two kinds");
    }

    #[test]
    fn the_host_decides_about_its_procfs() {
        let mut links = Links::default();
        let mut add = |mount: Mount<'_>, source| links.add(&mount, source);
        let proc = || hosts(Some(KernelFs::Proc), "/");
        add(mount(PART, b"/host", b"/"), proc()).expect("it is one");
        add(mount(PROC, b"/again", b"/"), proc()).expect("it is the same one");
        add(Mount { device: 8, ..mount(PROC, b"/proc", b"/") }, None).expect("it is one");
        for kind in [PART, PROC] {
            add(mount(kind, b"/part", b"/1"), None).expect_err("CRIU makes it a part of the first");
        }
        for (path, is_the_hosts) in
            [("/host/1/mem", true), ("/again/1/mem", true), ("/proc/1/mem", false)]
        {
            let required = links.places.required(Path::new(path), false);
            assert_eq!(required[0].is_the_hosts, is_the_hosts, "{path}");
        }
    }
}
