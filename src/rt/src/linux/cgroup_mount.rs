//! Mounts of type `cgroup`: the container's view of its own cgroup (`cgroup_namespaces(7)`). Runs
//! in init, which is in the container's cgroup.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::linux::cgroups::{self, ROOT, Version};
use crate::linux::mounts::{self, Options};
use crate::linux::namespaces::Namespaces;
use crate::linux::rootfs::Rootfs;
use crate::syscall::{self, MountAttr};

/// `MOUNT_ATTR_*` of the directory that contains the hierarchies of v1. They do not depend on the
/// mount's options.
pub(crate) const RESTRICTIONS: u64 =
    libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// `cgroup` is the container's directory in the v2 hierarchy, if it is known.
pub(crate) fn mount(
    rootfs: &mut Rootfs,
    namespaces: &Namespaces,
    entry: &Mount,
    cgroup: Option<&Path>,
) -> Result<()> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    // In the container's own cgroup namespace, a new mount shows the container's cgroup as the root
    // of the hierarchy.
    let own = namespaces.makes(libc::CLONE_NEWCGROUP) || namespaces.joins(libc::CLONE_NEWCGROUP);
    let version = cgroups::version()?;
    check_options(entry, &options, version)?;
    let view = View { own, attr: options.attr, data: &options.data, cgroup };
    let destination = rootfs.make(entry.destination(), true)?;
    match version {
        Version::V2 => {
            let mount = view.v2(Path::new(ROOT))?;
            rootfs.attach(mount.as_fd(), destination.as_fd(), entry.destination()).map(drop)
        }
        Version::V1 => all_v1(rootfs, entry.destination(), &destination, &view),
    }
}

fn directory(above: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

/// The kernel checks the options of a `cgroup2`, although they may have no effect: a mount in a
/// cgroup namespace changes nothing in the hierarchy, nor does a bind mount of a directory. The
/// hierarchies of v1 exist already, and accept no more options.
fn check_options(entry: &Mount, options: &Options, version: Version) -> Result<()> {
    let Some((name, _)) = options.data.first() else { return Ok(()) };
    ensure!(
        version == Version::V2 || entry.typ().as_deref() == Some("cgroup2"),
        "a `cgroup` mount has no option `{name}`"
    );
    Ok(mounts::detached::check_data("cgroup2", options)?)
}

struct View<'a> {
    own: bool,
    attr: MountAttr,
    /// Options of `cgroup2`.
    data: &'a [(String, Option<String>)],
    /// The container's v2 cgroup.
    cgroup: Option<&'a Path>,
}

/// Makes one directory for each hierarchy in a tmpfs, named as on the host. Each of several
/// controllers that share a hierarchy gets a link. Init makes the directories through the
/// descriptor of the tmpfs, because its path in the rootfs could lead to another filesystem by
/// then.
fn all_v1(rootfs: &mut Rootfs, path: &Path, destination: &OwnedFd, view: &View<'_>) -> Result<()> {
    let options = Options {
        attr: MountAttr { set: RESTRICTIONS, ..MountAttr::default() },
        data: vec![("mode".to_owned(), Some("755".to_owned()))],
        ..Options::default()
    };
    let tmpfs = mounts::detached::make("tmpfs", Some(Path::new("tmpfs")), &options)?;
    rootfs.attach(tmpfs.as_fd(), destination.as_fd(), path)?;
    let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    for hierarchy in cgroups::hierarchies()? {
        let Some(name) = hierarchy.file_name().map(|name| name.to_string_lossy().into_owned())
        else {
            continue;
        };
        let show = || format!("mount the hierarchy `{name}`");
        let place = directory(&tmpfs, &name).with_context(show)?;
        let mount = if name == "unified" {
            view.v2(&hierarchy)
        } else {
            view.v1(&hierarchy, &name, &table)
        };
        mounts::detached::attach(mount.with_context(show)?.as_fd(), place.as_fd())
            .with_context(show)?;
        let controllers: Vec<&str> = name.split(',').collect();
        if controllers.len() > 1 {
            for controller in controllers {
                match rustix::fs::symlinkat(&name, &tmpfs, controller) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error).context("make a link to a hierarchy"),
                }
            }
        }
    }
    let attr = MountAttr { set: view.attr.set & libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    syscall::mount_setattr(tmpfs.as_fd(), attr, false)
        .context("make the list of hierarchies read-only")
}

impl View<'_> {
    fn v2(&self, root: &Path) -> Result<OwnedFd> {
        if self.own {
            // The kernel refuses the mount in a user namespace that does not own the cgroup
            // namespace. Then we show the container's cgroup, and not the root of that namespace,
            // because its path on the host is unknown in the container.
            match mounts::detached::make(
                "cgroup2",
                Some(Path::new("cgroup")),
                &Options { attr: self.attr, data: self.data.to_vec(), ..Options::default() },
            ) {
                Err(failure) if failure.is(Errno::PERM) => self.clone(self.cgroup.ok_or(failure)?),
                made => Ok(made?),
            }
        } else {
            self.bind(root, "")
        }
    }

    /// `table` is the kernel's table of the controllers, `proc_cgroups(5)`.
    fn v1(&self, root: &Path, name: &str, table: &str) -> Result<OwnedFd> {
        if self.own {
            let is_named = !table
                .lines()
                .any(|line| name.split(',').any(|n| line.split('\t').next() == Some(n)));
            let data = if is_named {
                vec![("none".to_owned(), None), ("name".to_owned(), Some(name.to_owned()))]
            } else {
                name.split(',').map(|controller| (controller.to_owned(), None)).collect()
            };
            let options = Options { attr: self.attr, data, ..Options::default() };
            return Ok(mounts::detached::make("cgroup", Some(Path::new("cgroup")), &options)?);
        }
        self.bind(root, name)
    }

    /// Clones the directory of init's own cgroup.
    fn bind(&self, root: &Path, controllers: &str) -> Result<OwnedFd> {
        let table = fs::read_to_string("/proc/self/cgroup").context("read `/proc/self/cgroup`")?;
        let entry = table.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            (names.strip_prefix("name=").unwrap_or(names) == controllers).then_some(path)
        });
        self.clone(&root.join(entry.context("init is not in a cgroup")?.trim_start_matches('/')))
    }

    fn clone(&self, path: &Path) -> Result<OwnedFd> {
        let mount = mounts::detached::clone_tree(CWD, path, true)
            .with_context(|| format!("open `{}`", path.display()))?;
        syscall::mount_setattr(mount.as_fd(), self.attr, true)
            .context("set the attributes of the mount")?;
        Ok(mount)
    }
}
