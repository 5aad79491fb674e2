//! The root filesystem: opening it, looking up paths in it, protecting its files, and making it the
//! root (`pivot_root(2)`).
//!
//! All of this code runs in init, in the container's mount namespace, while init still sees the
//! host's files. Init looks up a path of the container only through [`Rootfs`], with `openat2(2)`
//! and `RESOLVE_IN_ROOT`. So a symbolic link in an image leads where it would lead inside the
//! container, and never out of it. Init keeps each file that it looked up by descriptor.
#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;

use crate::failure;
use crate::linux::descriptors;
use crate::linux::host_proc::HostProc;
use crate::linux::mount_table::Entry;
use crate::linux::mounts::detached::{self, attach};
use crate::linux::mounts::options::Options;
use crate::procfs;
use crate::syscall::{self, MountAttr};
use crate::walk::{self, MOST_LINKS};

#[derive(Debug)]
pub(crate) struct Rootfs {
    /// Opened with `O_PATH`.
    root: OwnedFd,
    /// Mounts of the kernel's own filesystems (procfs, sysfs), with their paths in the
    /// configuration.
    kernels: Vec<(PathBuf, OwnedFd)>,
    /// For each mount in `kernels`, whether its path leads to it. Empty until the first use.
    shown: OnceCell<Vec<bool>>,
    /// None if this process cannot be sure that `/proc` is the host's.
    proc: Option<HostProc>,
    /// None in a container that already runs.
    read_only_later: Option<ReadOnlyLater>,
    /// Whether another mount namespace may see a new mount as soon as it is attached.
    reaches_others: bool,
    /// The propagation that the configuration gives a mount on `/`. None without such a mount.
    root_propagation: Option<Vec<(u64, bool)>>,
}

/// Mounts that become read-only after everything in them is made.
#[derive(Debug)]
struct ReadOnlyLater {
    mounts: Vec<OwnedFd>,
    /// The number of mounts that this process can hold open.
    room: usize,
}

/// The mounts that cover masked paths. One mount of each kind is cloned for all paths.
#[derive(Debug, Default)]
pub(crate) struct Covers {
    /// An empty filesystem, for directories.
    empty: Option<OwnedFd>,
    /// The host's `/dev/null`, for files.
    null: Option<OwnedFd>,
    /// The ids of the protecting mounts. A path that is listed twice, under any name, is protected
    /// once.
    done: BTreeSet<u64>,
}

impl Covers {
    /// Attaches a cover at its place.
    fn attach(&mut self, cover: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<()> {
        attach(cover, place)?;
        self.done.insert(identity(cover)?.0);
        Ok(())
    }

    fn has(&self, place: BorrowedFd<'_>) -> Result<bool> {
        Ok(!self.done.is_empty() && self.done.contains(&identity(place)?.0))
    }
}

const PROC: &str = "/proc";

/// The inode number of procfs's root directory: `PROC_ROOT_INO`, `<linux/proc_fs.h>`.
const ROOT_OF_PROCFS: u64 = 1;

/// The files in `/proc` that a mount can be attached on: runc's list.
const EMULATED: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

impl Rootfs {
    /// Makes the rootfs a mount of its own, so that it can become the root. Stops the propagation
    /// of the container's mounts to the host.
    pub(crate) fn enter(path: &Path, propagation: Option<&str>, proc: HostProc) -> Result<Rootfs> {
        let rootfs = open_host(path)?;
        match propagation {
            // The container's mounts shall reach the host, so only the mount below the rootfs is
            // made private.
            Some("shared" | "rshared") => make_private(&mount_point(rootfs.as_fd(), &proc)?)?,
            _ => rustix::mount::mount_change(
                "/",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            )
            .context("make the host's mounts slaves")?,
        }
        let reaches_others = matches!(propagation, Some("shared" | "rshared"));
        let rootfs = Rootfs::mount(rootfs.as_fd(), rootfs.as_fd(), propagation, proc)?;
        let later = ReadOnlyLater { mounts: Vec::new(), room: descriptors::room_for_mounts() };
        Ok(Rootfs { read_only_later: Some(later), reaches_others, ..rootfs })
    }

    /// Mounts the rootfs a second time. The new mount receives later mounts of the host only if
    /// `propagation` asks for that.
    pub(crate) fn mount(
        rootfs: BorrowedFd<'_>,
        place: BorrowedFd<'_>,
        propagation: Option<&str>,
        proc: HostProc,
    ) -> Result<Rootfs> {
        let tree = detached::clone_tree(rootfs, Path::new(""), true)
            .context("clone the mount of the rootfs")?;
        let kind = match propagation {
            Some("slave" | "rslave") => libc::MS_SLAVE,
            _ => libc::MS_PRIVATE,
        };
        let cut_off = MountAttr { propagation: kind, ..MountAttr::default() };
        syscall::mount_setattr(tree.as_fd(), cut_off, false)
            .context("cut the rootfs off from the host's mounts")?;
        attach(tree.as_fd(), place)?;
        Ok(Rootfs {
            root: tree,
            kernels: Vec::new(),
            shown: OnceCell::new(),
            proc: Some(proc),
            read_only_later: None,
            reaches_others: false,
            root_propagation: None,
        })
    }

    /// The root of a running container, whose mount namespace this process has entered. The caller
    /// of this function opened `proc` before it entered.
    pub(crate) fn of_running(proc: HostProc) -> Result<Rootfs> {
        Ok(Rootfs { proc: Some(proc), ..Rootfs::open_as_is(Path::new("/"))? })
    }

    /// The rootfs without a new mount, for a container without a mount namespace of its own.
    pub(crate) fn open_with(path: &Path, proc: HostProc) -> Result<Rootfs> {
        Ok(Rootfs { proc: Some(proc), ..Rootfs::open_as_is(path)? })
    }

    /// The same without `proc`, for looking up files only.
    pub(crate) fn open_as_is(path: &Path) -> Result<Rootfs> {
        Ok(Rootfs {
            root: open_host(path)?,
            kernels: Vec::new(),
            shown: OnceCell::new(),
            proc: None,
            read_only_later: None,
            reaches_others: false,
            root_propagation: None,
        })
    }

    pub(crate) fn proc(&self) -> Result<&HostProc> {
        self.proc.as_ref().context("the host's `/proc` was not opened")
    }

    /// Registers a mount of one of the kernel's own filesystems. A path below this mount is masked
    /// by a look-up that starts at this mount, and not at the rootfs. A neighbour that shares a
    /// volume could have changed the way to the mount since (CVE-2019-19921, CVE-2023-27561).
    pub(crate) fn keep(&mut self, destination: &Path, mount: OwnedFd) {
        self.kernels.push((destination.to_owned(), mount));
        self.look_again();
    }

    /// Forgets registered mounts that a newer mount hides.
    pub(crate) fn cover(&mut self, destination: &Path) {
        self.kernels.retain(|(covered, _)| !covered.starts_with(destination));
        self.look_again();
    }

    /// Forgets the answers of `is_shown`, because the mounts have changed.
    pub(crate) fn look_again(&mut self) {
        self.shown = OnceCell::new();
    }

    /// The registered mount ([`Rootfs::keep`]) that `path` is below, and the rest of the path from
    /// there.
    fn kernels<'a>(&self, path: &'a Path) -> Option<(usize, &'a Path)> {
        if !is_plain(path) {
            return None;
        }
        self.kernels.iter().enumerate().rev().find_map(|(number, (destination, _))| {
            let rest = path.strip_prefix(destination).ok()?;
            let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
            Some((number, rest))
        })
    }

    /// Whether the path of a registered mount leads to this mount, and not to another mount that
    /// was attached there under another name.
    fn is_shown(&self, number: usize) -> bool {
        let shown = self.shown.get_or_init(|| {
            let shown = |(destination, mount): &(PathBuf, OwnedFd)| {
                let there =
                    self.open(destination, OFlags::PATH).and_then(|it| identity(it.as_fd()));
                there.is_ok_and(|there| identity(mount.as_fd()) == Ok(there))
            };
            self.kernels.iter().map(shown).collect()
        });
        shown[number]
    }

    /// Attaches a mount at a place in the container. Programs trust the content of `/proc` as the
    /// kernel's word. So, as with runc, only a whole procfs can be attached on `/proc`, and only
    /// the few files that lxcfs emulates can be attached inside.
    ///
    /// A mount on `/` is the root from then on. Returns whether this mount is one.
    pub(crate) fn attach(
        &mut self,
        mount: BorrowedFd<'_>,
        place: BorrowedFd<'_>,
        destination: &Path,
    ) -> Result<bool> {
        let proc = self.proc()?;
        let (root, at) = (proc.path_of(self.root.as_fd())?, proc.path_of(place)?);
        let at = at.strip_prefix(root).context("its place was moved out of the rootfs")?;
        let at = Path::new("/").join(at);
        let named = is_plain(destination).then_some(destination);
        let in_proc = |path: &Path| path.starts_with(PROC);
        if in_proc(&at) || named.is_some_and(in_proc) {
            let is = |path: &Path| at == path || named == Some(path);
            if is(Path::new(PROC)) {
                let whole =
                    procfs::is_procfs(mount)? && rustix::fs::fstat(mount)?.st_ino == ROOT_OF_PROCFS;
                ensure!(whole, "only a procfs can be mounted on `/proc`");
            } else {
                ensure!(
                    EMULATED.iter().any(|name| is(&Path::new(PROC).join(name))),
                    "nothing can be mounted inside of `/proc`, except on {}",
                    EMULATED.join(", ")
                );
            }
        }
        let is_root = at == Path::new("/");
        ensure!(
            !is_root || self.read_only_later.is_some(),
            "the root of a container that is there already: its processes would not see it"
        );
        // A link in the image could turn a mount for `/dev` into a mount of the root.
        ensure!(!is_root || leads_to_root(destination), "it is a link to the root");
        if is_root {
            // pivot_root(2) requires a root that is not shared. As a slave, this mount still
            // receives the mounts that the host makes in its source.
            set_propagation(mount, libc::MS_SLAVE, false).context("make the root a slave")?;
        }
        attach(mount, place)?;
        if is_root {
            // The old root descriptor would lead below this mount.
            self.root = mount.try_clone_to_owned().context("keep the new root")?;
            self.kernels.clear();
            self.look_again();
            self.root_propagation = Some(Vec::new());
        }
        Ok(is_root)
    }

    /// Keeps the propagation of a mount on `/` until that mount is the root.
    pub(crate) fn propagate_root_later(&mut self, propagation: Vec<(u64, bool)>) {
        self.root_propagation = Some(propagation);
    }

    /// Whether mounts become read-only only at the end.
    pub(crate) fn delays_read_only(&self) -> bool {
        self.read_only_later.is_some() && !self.reaches_others
    }

    /// Records that a mount is shared: another mount namespace may see the mounts in it.
    pub(crate) fn reach_others(&mut self) {
        self.reaches_others = true;
    }

    /// Makes a mount read-only after everything in it is made.
    pub(crate) fn make_read_only_later(&mut self, mount: OwnedFd) -> Result<()> {
        let later = self.read_only_later.as_mut().context("the container already runs")?;
        later.mounts.push(mount);
        // If this process can hold no more descriptors, all of these mounts become read-only now.
        if later.mounts.len() >= later.room { self.finish_read_only() } else { Ok(()) }
    }

    pub(crate) fn finish_read_only(&mut self) -> Result<()> {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        for mount in self.read_only_later.iter_mut().flat_map(|later| later.mounts.drain(..)) {
            match syscall::mount_setattr(mount.as_fd(), attr, false) {
                // A hook has unmounted it.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error).context("make a mount read-only"),
            }
        }
        Ok(())
    }

    /// Calls `work` with a directory, the name of an empty directory in it, and a path to that
    /// empty directory by a descriptor. `work` can mount something there for a moment. Only this
    /// process reaches the mount that holds these directories. Below the rootfs's own path, the
    /// owner of a higher directory could exchange the directory.
    pub(crate) fn in_a_scratch_place<T>(
        &self,
        work: impl FnOnce(BorrowedFd<'_>, &Path, &Path) -> Result<T>,
    ) -> Result<T> {
        let name = Path::new("place");
        let folder = detached::make("tmpfs", None, &Options::default())?;
        let proc = self.proc()?;
        attach(folder.as_fd(), self.root.as_fd())?;
        let worked = rustix::fs::mkdirat(&folder, name, Mode::RWXU)
            .and_then(|()| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::openat(&folder, name, flags, Mode::empty())
            })
            .context("make a place to mount in")
            .and_then(|place| {
                let path = format!("/proc/self/fd/{}", place.as_raw_fd());
                work(folder.as_fd(), name, Path::new(&path))
            });
        let tidy_up = || {
            let here = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            proc.unmount(folder.as_fd())?;
            rustix::process::fchdir(here)
        };
        failure::and_then_cleaned(worked, tidy_up().context("tidy up a mount"))
    }

    /// Opens `path` as the container sees it.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_in(self.root.as_fd(), path, flags)
    }

    /// Opens the relative `path` as a process of the host would, starting at the rootfs. If the
    /// path leads out of the rootfs, the error is `EXDEV`.
    pub(crate) fn open_beneath(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let limits = ResolveFlags::BENEATH;
        walk::open(self.root.as_fd(), path, OFlags::PATH, limits)
    }

    /// Whether the mount of the rootfs is read-only.
    pub(crate) fn is_read_only(&self) -> Result<bool> {
        let there = rustix::fs::fstatvfs(&self.root).context("statvfs the rootfs")?;
        Ok(there.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    /// Opens a regular file for reading, and does not open other kinds of files. Opening a device
    /// may already have an effect.
    pub(crate) fn open_regular(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let is_regular = |file: OwnedFd| {
            let there = rustix::fs::fstat(&file)?;
            if there.st_mode & libc::S_IFMT == libc::S_IFREG { Ok(file) } else { Err(Errno::INVAL) }
        };
        let file = self.open(path, OFlags::PATH).and_then(is_regular)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        match &self.proc {
            Some(proc) => proc.reopen(file.as_fd(), flags),
            // A second look-up by name. In a running container, the rules of its cgroup decide
            // which devices can be opened.
            None => self.open(path, flags).and_then(is_regular),
        }
    }

    /// Opens a place to mount on (`O_PATH`). If the place or a directory on the way does not exist,
    /// this function makes it.
    pub(crate) fn make(&self, path: &Path, is_directory: bool) -> Result<OwnedFd> {
        // A slash at the end of the path would ask the kernel for a directory.
        let path: PathBuf = path.components().collect();
        self.make_counted(&path, is_directory, 0)
            .with_context(|| format!("make `{}` in the rootfs", path.display()))
    }

    /// Returns the directory that contains `path`, made if it does not exist, and the last part of
    /// the path.
    pub(crate) fn make_parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let (Some(name), Some(above)) = (last_name(path), path.parent()) else {
            bail!("`{}` is not a path that can be made", path.display())
        };
        Ok((self.make(above, true)?, name))
    }

    /// As [`Rootfs::make`], but if the path ends in a symbolic link, the link itself is the place.
    pub(crate) fn make_without_following(
        &self,
        path: &Path,
        is_directory: bool,
    ) -> Result<OwnedFd> {
        let (above, name) = self.make_parent(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&above, name, flags, Mode::empty());
        let place = match open() {
            // The look-up uses the name alone, because a neighbour that shares a volume could have
            // made a link there by now.
            Err(Errno::NOENT) => match make_one(&above, name, is_directory) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(error) => Err(error),
            },
            place => place,
        };
        place.with_context(|| format!("make `{}` in the rootfs", path.display()))
    }

    fn make_counted(&self, path: &Path, is_directory: bool, links: u32) -> Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
        if links == MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let Some(above) = path.parent() else { bail!("not a path that can be made") };
        let parent = self.make_counted(above, true, links)?;
        // The last part is `..`, and the directory before it did not exist.
        let Some(name) = last_name(path) else { return Ok(self.open(path, OFlags::PATH)?) };
        match make_one(&parent, name, is_directory) {
            Ok(()) => Ok(self.open(path, OFlags::PATH)?),
            // The name is a link to a missing file, or another process made the file first.
            Err(Errno::EXIST) => match rustix::fs::readlinkat(&parent, name, Vec::new()) {
                Ok(target) => {
                    let target: &OsStr =
                        std::os::unix::ffi::OsStrExt::from_bytes(target.to_bytes());
                    self.make_counted(&above.join(target), is_directory, links + 1)
                }
                Err(_) => Ok(self.open(path, OFlags::PATH)?),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a path unreadable: covers a file by `/dev/null` and a directory by an empty
    /// filesystem. A missing path needs no mask.
    pub(crate) fn mask(&self, path: &Path, covers: &mut Covers) -> Result<()> {
        for place in self.find(path)? {
            if covers.has(place.as_fd())? {
                continue;
            }
            let is_directory = is_directory(place.as_fd())?;
            let first = if is_directory { &mut covers.empty } else { &mut covers.null };
            let cover = match first {
                Some(first) => detached::clone_tree(first.as_fd(), Path::new(""), false)?,
                None if is_directory => make_empty()?,
                None => detached::clone_null()?,
            };
            first.get_or_insert(cover.try_clone()?);
            covers.attach(cover.as_fd(), place.as_fd())?;
        }
        Ok(())
    }

    /// Makes a path, and everything below it, read-only. A missing path needs no protection.
    pub(crate) fn make_read_only(&self, path: &Path, covers: &mut Covers) -> Result<()> {
        for place in self.find(path)? {
            if covers.has(place.as_fd())? {
                continue;
            }
            Rootfs::cover_read_only(place.as_fd(), covers)?;
        }
        Ok(())
    }

    pub(crate) fn cover_read_only(place: BorrowedFd<'_>, covers: &mut Covers) -> Result<()> {
        let tree = detached::clone_tree(place, Path::new(""), true)?;
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        syscall::mount_setattr(tree.as_fd(), attr, true)?;
        covers.attach(tree.as_fd(), place)
    }

    /// Returns the file at `path` in the registered mount (see `keep`), and the file that the
    /// container sees at `path`, if the two differ. Returns no file if `path` does not exist.
    pub(crate) fn find(&self, path: &Path) -> Result<Vec<OwnedFd>> {
        let mut places = Vec::new();
        let mut look = |root: BorrowedFd<'_>, path: &Path| -> Result<()> {
            match open_in(root, path, OFlags::PATH) {
                Ok(place) => places.push(place),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(())
        };
        let kernels = self.kernels(path);
        if let Some((number, rest)) = kernels {
            look(self.kernels[number].1.as_fd(), rest)?;
        }
        if kernels.is_none_or(|(number, _)| !self.is_shown(number)) {
            look(self.root.as_fd(), path)?;
        }
        if let [one, other] = &places[..]
            && identity(one.as_fd())? == identity(other.as_fd())?
        {
            places.pop();
        }
        Ok(places)
    }

    /// Whether the container's device nodes are made in the rootfs itself.
    pub(crate) fn has_own_devices(&self) -> Result<bool> {
        let dev = match self.open(Path::new("/dev"), OFlags::PATH) {
            Ok(dev) => dev,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // We compare the mounts, not the filesystems: the mount on `/dev` may be of the rootfs's
        // filesystem.
        Ok(mount_id(dev.as_fd())? == mount_id(self.root.as_fd())?)
    }

    /// Disables the device nodes that came with the rootfs. Device nodes on other mounts still
    /// work.
    pub(crate) fn ignore_devices(&self) -> Result<()> {
        let attr = MountAttr { set: libc::MOUNT_ATTR_NODEV, ..MountAttr::default() };
        Ok(syscall::mount_setattr(self.root.as_fd(), attr, false)?)
    }

    /// `root.readonly`: makes the rootfs itself read-only, but not the mounts in it.
    pub(crate) fn make_root_read_only(&self) -> Result<()> {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        syscall::mount_setattr(self.root.as_fd(), attr, false).context("make the rootfs read-only")
    }

    /// Makes the rootfs the root, and unmounts the host's files.
    pub(crate) fn pivot(&self, propagation: Option<&str>) -> Result<()> {
        let old = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::process::fchdir(&self.root).context("enter the rootfs")?;
        // pivot_root(2) puts the new root on top of the old root, in the same place. So the old
        // root needs no directory (pivot_root(2), NOTES).
        rustix::process::pivot_root(".", ".").context("change the root")?;
        // Unmounting the old root here must not unmount it on the host.
        let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        syscall::mount_setattr(old.as_fd(), slave, true).context("make the old root a slave")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("let go of the old root")?;
        rustix::process::chdir("/").context("enter the new root")?;
        self.propagate(propagation)
    }

    /// For a host whose root is a ramdisk, which pivot_root(2) refuses: moves the rootfs's mount
    /// over the host's root instead. The old root cannot be unmounted and stays below.
    pub(crate) fn move_and_chroot(&self, propagation: Option<&str>) -> Result<()> {
        // Init enters the root of the mount namespace, even if `rt` was started in a chroot. The
        // files outside of the chroot are in this namespace too, and a process that joins the
        // namespace starts at its root.
        let own = self.proc()?.mount_namespace().context("open the mount namespace")?;
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))
            .context("enter the root of the mount namespace")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let old = rustix::fs::open("/", flags, Mode::empty())?;
        // Neither the move nor later mounts of the host may propagate.
        set_propagation(old.as_fd(), libc::MS_PRIVATE, false).context("make the root private")?;
        attach(self.root.as_fd(), old.as_fd()).context("move the rootfs over the root")?;
        OldRoot::new(self, &old)?.empty().context("empty the old root")?;
        self.chroot()?;
        self.propagate(propagation)
    }

    pub(crate) fn chroot(&self) -> Result<()> {
        rustix::process::fchdir(&self.root).context("enter the rootfs")?;
        rustix::process::chroot(".").context("change the root")?;
        rustix::process::chdir("/").context("enter the new root")
    }

    fn propagate(&self, propagation: Option<&str>) -> Result<()> {
        for &(kind, recursive) in self.root_propagation.iter().flatten() {
            set_propagation(self.root.as_fd(), kind, recursive)
                .context("set the propagation of the mount on `/`")?;
        }
        let Some(propagation) = propagation.filter(|propagation| !propagation.is_empty()) else {
            return Ok(());
        };
        let options = Options::parse(&[propagation.to_owned()])?;
        let [(kind, recursive)] = options.propagation[..] else {
            bail!("unknown `rootfsPropagation` `{propagation}`");
        };
        let attr = MountAttr { propagation: kind, ..MountAttr::default() };
        syscall::mount_setattr(self.root.as_fd(), attr, recursive)
            .context("set `rootfsPropagation`")
    }
}

/// The host's root below a rootfs that was moved over it. No path reaches this root. But a whole
/// procfs or sysfs in the mount namespace has an effect: the kernel lets root of any user namespace
/// mount another one, in which nothing is masked. The kernel assumes that this user sees the same
/// data already (`mount_too_revealing`, `fs/namespace.c`). Only these two filesystems have that
/// rule. Of other filesystems, a user namespace may mount only those that show its own objects.
/// Init uses this type while the old root is still its root.
struct OldRoot<'a> {
    proc: &'a HostProc,
    /// The ids of the two mounts.
    rootfs: String,
    id: String,
}

/// Ends the search for a mount that cannot be reached.
const HIDDEN: &str = "it is hidden by other mounts";

impl OldRoot<'_> {
    fn new<'a>(rootfs: &'a Rootfs, old: &OwnedFd) -> Result<OldRoot<'a>> {
        let (rootfs, proc) = (mount_id(rootfs.root.as_fd())?, rootfs.proc()?);
        Ok(OldRoot { proc, rootfs, id: mount_id(old.as_fd())? })
    }

    /// Unmounts all mounts that are attached on the old root. In a user namespace, the kernel
    /// forbids that. Then this function covers every whole procfs and sysfs.
    fn empty(&self) -> Result<()> {
        // Each round unmounts one mount.
        for _ in 0..self.proc.mounts()?.len() {
            let table = self.proc.mounts()?;
            // A mount that is hidden by another mount comes after it.
            let first = self.on_it(&table).min_by_key(|it| it.point.components().count());
            let Some(first) = first else { return Ok(()) };
            let show = || format!("unmount `{}`", first.point.display());
            let there = open_place(&first.point).with_context(show)?;
            // The host keeps its mount.
            set_propagation(there.as_fd(), libc::MS_PRIVATE, true).with_context(show)?;
            match self.proc.unmount(there.as_fd()) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::PERM) => return self.cover_kernels(),
                Err(error) => return Err(error).with_context(show),
            }
        }
        let table = self.proc.mounts()?;
        ensure!(self.on_it(&table).next().is_none(), "unmount what is on it: {HIDDEN}");
        Ok(())
    }

    fn on_it<'t>(&self, table: &'t [Entry]) -> impl Iterator<Item = &'t Entry> {
        table.iter().filter(|it| it.parent == self.id && it.id != self.rootfs)
    }

    fn cover_kernels(&self) -> Result<()> {
        for mount in self.on_it(&self.proc.mounts()?) {
            let show = || format!("cut off `{}`", mount.point.display());
            let there = open_place(&mount.point).with_context(show)?;
            set_propagation(there.as_fd(), libc::MS_PRIVATE, true).with_context(show)?;
        }
        let table = self.proc.mounts()?;
        let by_id: BTreeMap<&str, &Entry> = table.iter().map(|it| (it.id.as_str(), it)).collect();
        let is_in_rootfs = |mount: &Entry| {
            // The number of mounts limits the steps up.
            let up = |at: &&Entry| by_id.get(at.parent.as_str()).copied();
            let mut line = std::iter::successors(Some(mount), up).take(table.len());
            line.any(|at| at.id == self.rootfs)
        };
        let is_covered =
            |mount: &Entry| table.iter().any(|it| it.parent == mount.id && it.point == mount.point);
        for mount in &table {
            let is_kernels = matches!(mount.kind.as_str(), "proc" | "sysfs");
            let is_whole = is_kernels && mount.root == Path::new("/");
            if !is_whole || is_covered(mount) || is_in_rootfs(mount) {
                continue;
            }
            let show = || format!("cover `{}`", mount.point.display());
            let place = open_place(&mount.point).with_context(show)?;
            ensure!(mount_id(place.as_fd())? == mount.id, "{}: {HIDDEN}", show());
            attach(make_empty()?.as_fd(), place.as_fd()).with_context(show)?;
        }
        Ok(())
    }
}

fn open_place(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn set_propagation(mount: BorrowedFd<'_>, kind: u64, recursive: bool) -> rustix::io::Result<()> {
    let attr = MountAttr { propagation: kind, ..MountAttr::default() };
    syscall::mount_setattr(mount, attr, recursive)
}

/// Opens a directory of the host by a path without symbolic links (from `canonicalize`). If a part
/// of the path has become a link since, the call fails.
pub(crate) fn open_host(path: &Path) -> Result<OwnedFd> {
    walk::open(CWD, path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
        .with_context(|| format!("open `{}`", path.display()))
}

fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    walk::open(root, path, flags, ResolveFlags::IN_ROOT)
}

/// Follows no link: any existing file of that name is an error.
fn make_one(parent: &OwnedFd, name: &OsStr, is_directory: bool) -> rustix::io::Result<()> {
    if is_directory {
        return rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// Makes a filesystem that is empty and stays empty.
pub(crate) fn make_empty() -> Result<OwnedFd> {
    // Both limits are as low as possible: a size of 0 would mean no limit, and the root is one
    // inode.
    let options = ["ro", "nosuid", "nodev", "noexec", "size=4k", "nr_inodes=1", "mode=755"];
    let options = Options::parse(&options.map(str::to_owned))?;
    Ok(detached::make("tmpfs", Some(Path::new("tmpfs")), &options)?)
}

/// Whether a path leads to `/` without any link.
fn leads_to_root(path: &Path) -> bool {
    let mut depth = 0_usize;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    depth == 0
}

/// The id of the mount that a file is seen through, and the inode number of the file.
fn identity(file: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::INO;
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
    Ok((found.stx_mnt_id, found.stx_ino))
}

/// The id in the form of the kernel's mount table.
fn mount_id(file: BorrowedFd<'_>) -> rustix::io::Result<String> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(found.stx_mnt_id.to_string())
}

/// Whether a path contains neither `..` nor `.`.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn last_name(path: &Path) -> Option<&OsStr> {
    match path.components().next_back()? {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

pub(crate) fn is_directory(file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstat(file)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn make_private(path: &Path) -> Result<()> {
    rustix::mount::mount_change(path, MountPropagationFlags::PRIVATE)
        .with_context(|| format!("make the mount `{}` private", path.display()))
}

/// The mount point of the mount that a file is on (`proc_pid_mountinfo(5)`).
fn mount_point(file: BorrowedFd<'_>, proc: &HostProc) -> Result<PathBuf> {
    Ok(proc.mount(&mount_id(file)?)?.context("the rootfs is not on a mount")?.point)
}
