//! The root filesystem: entered, looked into, protected, and made the root (`pivot_root(2)`).
//!
//! Everything runs in init, in the container's mount namespace, while the host's files can still be
//! seen. A path of the container is only ever looked up through [`Rootfs`], with `openat2(2)` and
//! `RESOLVE_IN_ROOT`: a symbolic link in an image leads to where it would lead inside the
//! container, and never out of it. What was looked up is held by descriptor.
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
use crate::linux::host_proc::{self, HostProc};
use crate::linux::mount_table::Entry;
use crate::linux::mounts::detached::{self, attach};
use crate::linux::mounts::options::Options;
use crate::syscall::{self, MountAttr};
use crate::walk::{self, MOST_LINKS};

#[derive(Debug)]
pub(crate) struct Rootfs {
    /// Opened with `O_PATH`.
    root: OwnedFd,
    /// Mounts of the kernel's own filesystems, with the paths that the configuration gives them.
    kernels: Vec<(PathBuf, OwnedFd)>,
    /// For each of them, whether its path leads to it. None until that is asked.
    shown: OnceCell<Vec<bool>>,
    /// None where it cannot be known to be the host's.
    proc: Option<HostProc>,
    /// Mounts that become read-only when everything in them is made; none where the container runs
    /// already.
    read_only_later: Option<Vec<OwnedFd>>,
    /// Whether what is mounted may be seen elsewhere, as it is when it is attached.
    reaches_others: bool,
    /// What the configuration says of the propagation of a mount on `/`; none without such a mount.
    root_propagation: Option<Vec<(u64, bool)>>,
}

/// What masked paths are covered with. One of each serves all.
#[derive(Debug, Default)]
pub(crate) struct Covers {
    /// An empty filesystem, for directories.
    empty: Option<OwnedFd>,
    /// The host's `/dev/null`, for files.
    null: Option<OwnedFd>,
    /// The numbers of the mounts that protect: what is listed twice, under any name, is protected
    /// once.
    done: BTreeSet<u64>,
}

impl Covers {
    /// Puts one in its place.
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

/// Of its directory: `PROC_ROOT_INO`, `<linux/proc_fs.h>`.
const ROOT_OF_PROCFS: u64 = 1;

/// What can be mounted on in `/proc`: runc's list.
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
    /// Makes the rootfs a mount of its own, so that it can become the root, and cuts what would
    /// carry mounts to the host.
    pub(crate) fn enter(path: &Path, propagation: Option<&str>, proc: HostProc) -> Result<Rootfs> {
        let rootfs = open_host(path)?;
        match propagation {
            // What is mounted in the container shall reach the host: only the mount below the
            // rootfs is cut off.
            Some("shared" | "rshared") => make_private(&mount_point(rootfs.as_fd(), &proc)?)?,
            _ => rustix::mount::mount_change(
                "/",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            )
            .context("make the host's mounts slaves")?,
        }
        let reaches_others = matches!(propagation, Some("shared" | "rshared"));
        let rootfs = Rootfs::mount(rootfs.as_fd(), rootfs.as_fd(), propagation, proc)?;
        Ok(Rootfs { read_only_later: Some(Vec::new()), reaches_others, ..rootfs })
    }

    /// Mounts the rootfs a second time. What the host mounts in it later is seen only if that is
    /// the `propagation`.
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

    /// The root of a container that runs, in whose mount namespace this process is. `proc` was
    /// opened before it entered.
    pub(crate) fn of_running(proc: HostProc) -> Result<Rootfs> {
        Ok(Rootfs { proc: Some(proc), ..Rootfs::open_as_is(Path::new("/"))? })
    }

    /// The rootfs as it is, for a container without a mount namespace of its own.
    pub(crate) fn open_with(path: &Path, proc: HostProc) -> Result<Rootfs> {
        Ok(Rootfs { proc: Some(proc), ..Rootfs::open_as_is(path)? })
    }

    /// The same, to look into it.
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

    /// What is to be masked below a mount of the kernel's own is looked for in this mount, and not
    /// by the way that led to it: who shares a volume with the container could have changed that
    /// since (CVE-2019-19921, CVE-2023-27561).
    pub(crate) fn keep(&mut self, destination: &Path, mount: OwnedFd) {
        self.kernels.push((destination.to_owned(), mount));
        self.look_again();
    }

    /// What is below a newer mount is not seen any more.
    pub(crate) fn cover(&mut self, destination: &Path) {
        self.kernels.retain(|(covered, _)| !covered.starts_with(destination));
        self.look_again();
    }

    /// Mounts have changed.
    pub(crate) fn look_again(&mut self) {
        self.shown = OnceCell::new();
    }

    /// Which mount that [`Rootfs::keep`] was told of a path is below, and the way from there.
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

    /// Whether the path of a kept mount leads to it, and not to another one that was mounted there
    /// under another name.
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

    /// Mounts on a place of the container's. What is in `/proc` is the kernel's word, which
    /// programs trust: as with runc, nothing is mounted there but a whole procfs, and the few files
    /// that lxcfs shows in another way.
    ///
    /// What is mounted on `/` is the root from then on. Returns whether it is.
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
                let whole = host_proc::is_procfs(mount)?
                    && rustix::fs::fstat(mount)?.st_ino == ROOT_OF_PROCFS;
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
        // A link of the image's would take what is for `/dev` for the root.
        ensure!(!is_root || leads_to_root(destination), "it is a link to the root");
        if is_root {
            // The kernel changes the root to none that is shared; this one still receives what the
            // host mounts in its source.
            set_propagation(mount, libc::MS_SLAVE, false).context("make the root a slave")?;
        }
        attach(mount, place)?;
        if is_root {
            // By the old root, each path would lead below this mount.
            self.root = mount.try_clone_to_owned().context("keep the new root")?;
            self.kernels.clear();
            self.look_again();
            self.root_propagation = Some(Vec::new());
        }
        Ok(is_root)
    }

    /// Of a mount on `/`: when it is the root.
    pub(crate) fn propagate_root_later(&mut self, propagation: Vec<(u64, bool)>) {
        self.root_propagation = Some(propagation);
    }

    /// Whether mounts become read-only at the end only.
    pub(crate) fn delays_read_only(&self) -> bool {
        self.read_only_later.is_some() && !self.reaches_others
    }

    /// A mount is shared: what is mounted in it may be seen elsewhere.
    pub(crate) fn reach_others(&mut self) {
        self.reaches_others = true;
    }

    /// Makes a mount read-only when all that has to be made in it is there.
    pub(crate) fn make_read_only_later(&mut self, mount: BorrowedFd<'_>) -> Result<()> {
        self.read_only_later.get_or_insert_default().push(mount.try_clone_to_owned()?);
        // At once, if this process can hold no more.
        if self.read_only_later.iter().flatten().count() >= descriptors::room_for_mounts() {
            self.finish_read_only()?;
        }
        Ok(())
    }

    pub(crate) fn finish_read_only(&mut self) -> Result<()> {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        for mount in self.read_only_later.iter_mut().flat_map(|mounts| mounts.drain(..)) {
            match syscall::mount_setattr(mount.as_fd(), attr, false) {
                // A hook has unmounted it.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error).context("make a mount read-only"),
            }
        }
        Ok(())
    }

    /// Calls a function with a folder, the name of an empty folder in it, and a path to that by a
    /// descriptor: something can be mounted there for a moment. It is below a mount that nobody but
    /// this process can reach: below the rootfs' own path, who owns a directory above it could put
    /// another in its place.
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

    /// Opens what `path` is for the container.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_in(self.root.as_fd(), path, flags)
    }

    /// Opens what `path`, which is relative, is for a process that takes it for a path of the
    /// host's, if it leads to something in the rootfs; otherwise the error is `EXDEV`.
    pub(crate) fn open_beneath(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let limits = ResolveFlags::BENEATH;
        walk::open(self.root.as_fd(), path, OFlags::PATH, limits)
    }

    /// Whether nothing in the filesystem of the rootfs can be changed by way of its mount.
    pub(crate) fn is_read_only(&self) -> Result<bool> {
        let there = rustix::fs::fstatvfs(&self.root).context("statvfs the rootfs")?;
        Ok(there.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    /// Opens a regular file for reading. What else may be there is not opened: with a device, that
    /// may do something already.
    pub(crate) fn open_regular(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let is_regular = |file: OwnedFd| {
            let there = rustix::fs::fstat(&file)?;
            if there.st_mode & libc::S_IFMT == libc::S_IFREG { Ok(file) } else { Err(Errno::INVAL) }
        };
        let file = self.open(path, OFlags::PATH).and_then(is_regular)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        match &self.proc {
            Some(proc) => proc.reopen(file.as_fd(), flags),
            // By its name again. In a container that runs, the rules of its cgroup say which
            // devices can be opened.
            None => self.open(path, flags).and_then(is_regular),
        }
    }

    /// Opens a place to mount on (`O_PATH`); makes it, and the directories on the way, if it is not
    /// there.
    pub(crate) fn make(&self, path: &Path, is_directory: bool) -> Result<OwnedFd> {
        // A slash at its end would ask the kernel for a directory.
        let path: PathBuf = path.components().collect();
        self.make_counted(&path, is_directory, 0)
            .with_context(|| format!("make `{}` in the rootfs", path.display()))
    }

    /// The directory that `path` is in, made if it is not there, and the last part of the path.
    pub(crate) fn make_parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let (Some(name), Some(above)) = (last_name(path), path.parent()) else {
            bail!("`{}` is not a path that can be made", path.display())
        };
        Ok((self.make(above, true)?, name))
    }

    /// As [`Rootfs::make`], but a symbolic link at the end of the path is the place itself.
    pub(crate) fn make_without_following(
        &self,
        path: &Path,
        is_directory: bool,
    ) -> Result<OwnedFd> {
        let (above, name) = self.make_parent(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&above, name, flags, Mode::empty());
        let place = match open() {
            // By the name alone: of whoever shares a volume, a link could be there by now.
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
        // `..`, of which the directory before it was not there.
        let Some(name) = last_name(path) else { return Ok(self.open(path, OFlags::PATH)?) };
        match make_one(&parent, name, is_directory) {
            Ok(()) => Ok(self.open(path, OFlags::PATH)?),
            // A link to what is not there, or somebody was faster.
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

    /// Makes a path unreadable: `/dev/null` over a file, `empty` over a directory. What is not
    /// there needs no mask.
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

    /// Makes a path, and all below it, read-only. What is not there needs no protection.
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

    /// What a path is in the mount of the kernel's that is called so, and what it is for the
    /// container, which can be another one. None when it is not there.
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

    /// Whether the nodes that are made for the container are in the rootfs.
    pub(crate) fn has_own_devices(&self) -> Result<bool> {
        let dev = match self.open(Path::new("/dev"), OFlags::PATH) {
            Ok(dev) => dev,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // The mount, not the filesystem: what is mounted on `/dev` may be of the same.
        Ok(mount_id(dev.as_fd())? == mount_id(self.root.as_fd())?)
    }

    /// Makes device nodes that came with the rootfs useless. Those that are mounted are not.
    pub(crate) fn ignore_devices(&self) -> Result<()> {
        let attr = MountAttr { set: libc::MOUNT_ATTR_NODEV, ..MountAttr::default() };
        Ok(syscall::mount_setattr(self.root.as_fd(), attr, false)?)
    }

    /// `root.readonly`: the rootfs itself, not what is mounted in it.
    pub(crate) fn make_root_read_only(&self) -> Result<()> {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        syscall::mount_setattr(self.root.as_fd(), attr, false).context("make the rootfs read-only")
    }

    /// Makes it the root, and lets go of the host's files.
    pub(crate) fn pivot(&self, propagation: Option<&str>) -> Result<()> {
        let old = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::process::fchdir(&self.root).context("enter the rootfs")?;
        // The new root on top of the old one, in one place: no directory is needed for the old
        // (pivot_root(2), NOTES).
        rustix::process::pivot_root(".", ".").context("change the root")?;
        // What is unmounted here must stay mounted on the host.
        let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        syscall::mount_setattr(old.as_fd(), slave, true).context("make the old root a slave")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("let go of the old root")?;
        rustix::process::chdir("/").context("enter the new root")?;
        self.propagate(propagation)
    }

    /// For a host whose root is a ramdisk, which pivot_root(2) refuses: the mount is moved over it
    /// instead. The old root cannot be unmounted and stays below.
    pub(crate) fn move_and_chroot(&self, propagation: Option<&str>) -> Result<()> {
        // The root of the mount namespace, also where this runtime was started in a chroot: what is
        // outside of that is in the namespace too, and whoever joins it starts there.
        let own = self.proc()?.mount_namespace().context("open the mount namespace")?;
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))
            .context("enter the root of the mount namespace")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let old = rustix::fs::open("/", flags, Mode::empty())?;
        // Neither the move nor what the host mounts later may reach the other.
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

/// The host's root below a rootfs that was moved over it. Nobody reaches it by a path, but where a
/// whole procfs or sysfs is in the mount namespace, the kernel lets root of any user namespace
/// mount another one, in which nothing is masked: what that shows, it takes for seen already
/// (`mount_too_revealing`, `fs/namespace.c`). These two are the only filesystems with that rule; of
/// others, a user namespace may mount only what shows what belongs to it. Used in init, which still
/// has it as its root.
struct OldRoot<'a> {
    proc: &'a HostProc,
    /// The mounts' ids.
    rootfs: String,
    id: String,
}

/// Ends the search for something that cannot be reached.
const HIDDEN: &str = "it is hidden by other mounts";

impl OldRoot<'_> {
    fn new<'a>(rootfs: &'a Rootfs, old: &OwnedFd) -> Result<OldRoot<'a>> {
        let (rootfs, proc) = (mount_id(rootfs.root.as_fd())?, rootfs.proc()?);
        Ok(OldRoot { proc, rootfs, id: mount_id(old.as_fd())? })
    }

    /// Unmounts all that is mounted on it. In a user namespace the kernel forbids that; then every
    /// whole procfs and sysfs is covered.
    fn empty(&self) -> Result<()> {
        // Each round unmounts one.
        for _ in 0..self.proc.mounts()?.len() {
            let table = self.proc.mounts()?;
            // What is hidden by another one comes after it.
            let first = self.on_it(&table).min_by_key(|it| it.point.components().count());
            let Some(first) = first else { return Ok(()) };
            let show = || format!("unmount `{}`", first.point.display());
            let there = open_place(&first.point).with_context(show)?;
            // On the host it stays.
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
            // As many steps up as there are mounts, at the most.
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

/// Opens a directory of the host's by a path that has no symbolic links (`canonicalize`): a part
/// that has become one since is an error.
pub(crate) fn open_host(path: &Path) -> Result<OwnedFd> {
    walk::open(CWD, path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
        .with_context(|| format!("open `{}`", path.display()))
}

fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    walk::open(root, path, flags, ResolveFlags::IN_ROOT)
}

/// Follows no link: what is there under that name, whatever it is, is an error.
fn make_one(parent: &OwnedFd, name: &OsStr, is_directory: bool) -> rustix::io::Result<()> {
    if is_directory {
        return rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// A filesystem that is empty, and stays so.
pub(crate) fn make_empty() -> Result<OwnedFd> {
    // Of the two, a size of 0 would be no limit, and one inode is its root.
    let options = ["ro", "nosuid", "nodev", "noexec", "size=4k", "nr_inodes=1", "mode=755"];
    let options = Options::parse(&options.map(str::to_owned))?;
    Ok(detached::make("tmpfs", Some(Path::new("tmpfs")), &options)?)
}

/// Which mount a file is looked at through, and which file of it.
/// Whether a path is one of `/`, without any link.
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

fn identity(file: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::INO;
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
    Ok((found.stx_mnt_id, found.stx_ino))
}

/// As the kernel's table has it.
fn mount_id(file: BorrowedFd<'_>) -> rustix::io::Result<String> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(found.stx_mnt_id.to_string())
}

/// Without `..` and `.`.
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

/// Where the mount that a file is on is mounted (`proc_pid_mountinfo(5)`).
fn mount_point(file: BorrowedFd<'_>, proc: &HostProc) -> Result<PathBuf> {
    Ok(proc.mount(&mount_id(file)?)?.context("the rootfs is not on a mount")?.point)
}
