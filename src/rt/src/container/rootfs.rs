//! The root filesystem: entered, looked into, protected, and made the root (`pivot_root(2)`).
//!
//! Everything runs in init, in the container's mount namespace, while the host's files can still be seen. A path of the
//! container is only ever looked up through [`Rootfs`], with `openat2(2)` and `RESOLVE_IN_ROOT`: a symbolic link in an image
//! leads to where it would lead inside the container, and never out of it. What was looked up is held by descriptor.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::mount_table;
use super::mounts::{self, Options};
use crate::syscall::{self, MountAttr};
use crate::walk::{self, MOST_LINKS};

#[derive(Debug)]
pub(crate) struct Rootfs {
    /// Opened with `O_PATH`.
    root: OwnedFd,
    /// Mounts of the kernel's own filesystems, with the paths that the configuration gives them.
    kernels: Vec<(PathBuf, OwnedFd)>,
}

impl Rootfs {
    /// Makes the rootfs a mount of its own, so that it can become the root, and cuts what would carry mounts to the host.
    pub(crate) fn enter(path: &Path, propagation: Option<&str>) -> Result<Rootfs> {
        match propagation {
            // What is mounted in the container shall reach the host: only the mount below the rootfs is cut off.
            Some("shared" | "rshared") => make_private(&mount_point(path)?)?,
            _ => rustix::mount::mount_change(
                "/",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            )
            .context("make the host's mounts slaves")?,
        }
        Rootfs::mount(path, path)
    }

    /// Mounts the rootfs a second time.
    pub(crate) fn mount(path: &Path, place: &Path) -> Result<Rootfs> {
        let tree = mounts::clone_tree(CWD, path, true).context("clone the mount of the rootfs")?;
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        syscall::mount_setattr(tree.as_fd(), private, false).context("make the rootfs private")?;
        let place = rustix::fs::open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mounts::attach(tree.as_fd(), place.as_fd())?;
        Ok(Rootfs { root: tree, kernels: Vec::new() })
    }

    /// The rootfs as it is, for a container without a mount namespace of its own.
    pub(crate) fn open_as_is(path: &Path) -> Result<Rootfs> {
        Ok(Rootfs {
            root: rustix::fs::open(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?,
            kernels: Vec::new(),
        })
    }

    /// What is to be masked below a mount of the kernel's own is looked for in this mount, and not by the way that led to it: who
    /// shares a volume with the container could have changed that since (CVE-2019-19921, CVE-2023-27561).
    pub(super) fn keep(&mut self, destination: &Path, mount: OwnedFd) {
        self.kernels.push((destination.to_owned(), mount));
    }

    /// What is below a newer mount is not seen any more.
    pub(super) fn cover(&mut self, destination: &Path) {
        self.kernels.retain(|(covered, _)| !covered.starts_with(destination));
    }

    /// The mount that [`Rootfs::keep`] was told of, and the way from there.
    fn kernels<'a>(&self, path: &'a Path) -> Option<(BorrowedFd<'_>, &'a Path)> {
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.components().all(plain) {
            return None;
        }
        self.kernels.iter().rev().find_map(|(destination, mount)| {
            let rest = path.strip_prefix(destination).ok()?;
            let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
            Some((mount.as_fd(), rest))
        })
    }

    /// Opens what `path` is for the container.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_in(self.root.as_fd(), path, flags)
    }

    /// Opens a place to mount on (`O_PATH`); makes it, and the directories on the way, if it is not there.
    pub(crate) fn make(&self, path: &Path, is_directory: bool) -> Result<OwnedFd> {
        self.make_counted(path, is_directory, 0)
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
        match rustix::fs::openat(&above, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => self.make(path, is_directory),
            place => place.with_context(|| format!("open `{}`", path.display())),
        }
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
        let made = if is_directory {
            rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        };
        match made {
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

    /// Makes a path unreadable: `/dev/null` over a file, `empty` over a directory. What is not there needs no mask.
    pub(crate) fn mask(&self, path: &Path, empty: &mut Option<OwnedFd>) -> Result<()> {
        let Some(place) = self.find(path)? else { return Ok(()) };
        let is_directory = is_directory(place.as_fd())?;
        let cover = match (is_directory, empty.as_ref()) {
            (false, _) => mounts::clone_tree(CWD, Path::new("/dev/null"), false)
                .context("open `/dev/null`")?,
            // One empty filesystem serves all masked directories.
            (true, Some(empty)) => mounts::clone_tree(empty.as_fd(), Path::new(""), false)?,
            (true, None) => {
                let options =
                    ["ro", "nosuid", "nodev", "noexec", "size=0k", "mode=755"].map(str::to_owned);
                mounts::make("tmpfs", Some(Path::new("tmpfs")), &Options::parse(&options)?)?
            }
        };
        mounts::attach(cover.as_fd(), place.as_fd())?;
        if is_directory && empty.is_none() {
            *empty = Some(cover);
        }
        Ok(())
    }

    /// Makes a path, and all below it, read-only. What is not there needs no protection.
    pub(crate) fn make_read_only(&self, path: &Path) -> Result<()> {
        let Some(place) = self.find(path)? else { return Ok(()) };
        let tree = mounts::clone_tree(place.as_fd(), Path::new(""), true)?;
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        syscall::mount_setattr(tree.as_fd(), attr, true)?;
        mounts::attach(tree.as_fd(), place.as_fd())
    }

    /// None when it is not there.
    pub(super) fn find(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let (root, path) = self.kernels(path).unwrap_or((self.root.as_fd(), path));
        match open_in(root, path, OFlags::PATH) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes device nodes that came with the rootfs useless, if the container's own are not in it.
    pub(crate) fn ignore_devices(&self) -> Result<()> {
        let Some(dev) = self.find(Path::new("/dev"))? else { return Ok(()) };
        if rustix::fs::fstat(&dev)?.st_dev == rustix::fs::fstat(&self.root)?.st_dev {
            return Ok(());
        }
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
        // The new root on top of the old one, in one place: no directory is needed for the old (pivot_root(2), NOTES).
        rustix::process::pivot_root(".", ".").context("change the root")?;
        // What is unmounted here must stay mounted on the host.
        let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        syscall::mount_setattr(old.as_fd(), slave, true).context("make the old root a slave")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("let go of the old root")?;
        rustix::process::chdir("/").context("enter the new root")?;
        self.propagate(propagation)
    }

    /// For a host whose root is a ramdisk, which pivot_root(2) refuses: the mount is moved over it instead.
    pub(crate) fn move_and_chroot(&self, path: &Path, propagation: Option<&str>) -> Result<()> {
        rustix::process::fchdir(&self.root).context("enter the rootfs")?;
        rustix::mount::mount_move(path, "/").context("move the rootfs over the root")?;
        self.chroot()?;
        self.propagate(propagation)
    }

    pub(crate) fn chroot(&self) -> Result<()> {
        rustix::process::fchdir(&self.root).context("enter the rootfs")?;
        rustix::process::chroot(".").context("change the root")?;
        rustix::process::chdir("/").context("enter the new root")
    }

    fn propagate(&self, propagation: Option<&str>) -> Result<()> {
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

fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            // Something was renamed meanwhile; the kernel cannot tell what this means for `..` (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS | Errno::PERM) => return walk::open(root, path, flags),
            result => return result,
        }
    }
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

/// Where the mount that a path is on is mounted (`proc_pid_mountinfo(5)`).
fn mount_point(path: &Path) -> Result<PathBuf> {
    let id =
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let mount = mount_table::own()?.into_iter().find(|mount| mount.id == id);
    Ok(mount.context("the rootfs is on no mount")?.point)
}
