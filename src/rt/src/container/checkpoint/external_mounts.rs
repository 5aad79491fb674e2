//! The mounts of a container that show the host's files, and their replacements at a restore. CRIU
//! leaves these mounts out of a checkpoint, under a name. At a restore, CRIU mounts the path that
//! `rt` names for it (`https://criu.org/External_bind_mounts`).
//!
//! The configuration decides what a restore can offer. A checkpoint does the same check first. So
//! it does not end a container that could not be made again. Runs in the runtime process.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxDevice, LinuxNamespaceType, Mount, Spec};
use rustix::fs::OFlags;

use crate::bundle::Bundle;
use crate::container::checkpoint::criu::Ext_mount_map;
use crate::linux::cgroup_mount;
use crate::linux::cgroups::{self, Cgroup, Version};
use crate::linux::devices;
use crate::linux::mount_table::{self, Entry};
use crate::linux::mounts;
use crate::linux::rootfs::Rootfs;
use crate::linux::sd_notify;

/// The name of all masked files. runc uses the same name.
const NULL: &str = "/dev/null";

/// A filesystem, `MAJOR:MINOR`, and the directory or file of it that is shown.
pub(in crate::container) type Identity = (String, PathBuf);

/// The mounts of a configuration, and the host's files for them.
pub(in crate::container) struct Offers<'a> {
    /// The host's path for each name. A name is the path in the container.
    sources: BTreeMap<PathBuf, PathBuf>,
    /// The mounts of the configuration.
    entries: Vec<Configured<'a>>,
    /// `linux.devices`.
    devices: &'a [LinuxDevice],
    /// `MOUNT_ATTR_*` for the mount under a name that is not in `entries`, and for the mounts below
    /// it too. Decided together with the source, from one look-up.
    restrictions: BTreeMap<PathBuf, (u64, u64)>,
    own_cgroups: bool,
    version: Version,
    /// The host's mounts.
    host: Vec<Entry>,
    /// The filesystem and file that the host shows as `/dev/null`. Read once, in the mount
    /// namespace of the host.
    null: Option<(String, PathBuf)>,
}

/// A mount of the configuration.
pub(in crate::container) struct Configured<'a> {
    /// The path in the container.
    pub(in crate::container) at: PathBuf,
    pub(in crate::container) entry: &'a Mount,
    /// `MOUNT_ATTR_*` for the mount itself, and for the mounts below it too. Includes later
    /// remounts.
    pub(in crate::container) restrictions: (u64, u64),
}

impl<'a> Offers<'a> {
    /// The offers for a container with this cgroup. The folder of its service manager's socket is
    /// `notify`.
    pub(in crate::container) fn new(
        bundle: &'a Bundle,
        cgroup: &Cgroup,
        notify: &Path,
    ) -> Result<Offers<'a>> {
        // This path has no links, and `rt` opened the rootfs by it.
        let rootfs = Rootfs::open_as_is(&bundle.rootfs).context("open the rootfs")?;
        let root = bundle.rootfs.clone();
        let mut offers = Offers {
            sources: BTreeMap::new(),
            entries: Vec::new(),
            devices: bundle.linux().devices().as_deref().unwrap_or_default(),
            restrictions: BTreeMap::new(),
            own_cgroups: has_own(&bundle.spec, LinuxNamespaceType::Cgroup),
            version: cgroup.version,
            host: mount_table::own()?,
            null: None,
        };
        let null = offers.shown_at(Path::new(NULL));
        offers.null = null.map(|(device, root)| (device.to_owned(), root));
        // If nodes cannot be made, devices are mounts of the host's nodes, unless the configuration
        // mounts something at these paths.
        let default = devices::defaults::DEFAULT.map(|(name, ..)| Path::new("/dev").join(name));
        let listed = bundle.linux().devices().iter().flatten().map(|device| device.path().clone());
        for path in default.into_iter().chain(listed) {
            // The container must not change the host's nodes.
            offers.restrictions.insert(path.clone(), (libc::MOUNT_ATTR_RDONLY, 0));
            offers.sources.insert(path.clone(), path);
        }
        offers.sources.insert(sd_notify::FOLDER.into(), notify.to_owned());
        offers.restrictions.insert(sd_notify::FOLDER.into(), (sd_notify::RESTRICTIONS, 0));
        offers.add_below(&root, Path::new("/"));
        for entry in bundle.spec.mounts().iter().flatten() {
            let destination = resolve(&rootfs, &root, entry.destination());
            ensure!(
                destination != Path::new("/") || mounts::remounts(entry),
                "a mount on `/` replaces the rootfs: it could not be restored"
            );
            offers.add(bundle, cgroup, entry, &destination);
            offers.restrict(entry, destination)?;
        }
        Ok(offers)
    }

    fn add(&mut self, bundle: &Bundle, cgroup: &Cgroup, entry: &Mount, destination: &Path) {
        // Without a cgroup namespace of the container, this entry shows a directory of the host.
        if is_cgroup(entry) && !self.own_cgroups {
            for path in cgroup.of_init() {
                let below = path.strip_prefix(cgroups::ROOT).unwrap_or(path);
                match (cgroup.version, below.components().next()) {
                    (Version::V2, _) => {
                        self.sources.insert(destination.to_owned(), path.clone());
                    }
                    (Version::V1, Some(Component::Normal(hierarchy))) => {
                        self.sources.insert(destination.join(hierarchy), path.clone());
                    }
                    _ => {}
                }
            }
        }
        let Some(source) = entry.source().as_ref().filter(|_| mounts::binds(entry)) else { return };
        let source = bundle.path.join(source);
        let source = source.canonicalize().unwrap_or(source);
        self.sources.insert(destination.to_owned(), source.clone());
        self.add_below(&source, destination);
    }

    fn restrict(&mut self, entry: &'a Mount, destination: PathBuf) -> Result<()> {
        let options = mounts::Options::parse(entry.options().as_deref().unwrap_or_default())?;
        let mut own = options.attr.set & mount_table::ALL_RESTRICTIONS;
        let mut below = options.recursive.set & mount_table::ALL_RESTRICTIONS;
        if mounts::remounts(entry) {
            // A remount adds to the restrictions of the existing mount.
            let last = self.entries.iter_mut().rfind(|it| it.at == destination);
            let there = match last {
                Some(last) => &mut last.restrictions,
                None => self.restrictions.entry(destination).or_default(),
            };
            *there = (there.0 & !options.attr.clear | own, there.1 | below);
            return Ok(());
        }
        if is_cgroup(entry) {
            // The options apply to each hierarchy (`cgroup_mount.rs`).
            below |= own;
            if self.version == Version::V1 {
                own = own & libc::MOUNT_ATTR_RDONLY | cgroup_mount::RESTRICTIONS;
            }
        }
        // A mount over another one inherits none of its restrictions.
        self.restrictions.remove(&destination);
        self.entries.push(Configured { at: destination, entry, restrictions: (own, below) });
        Ok(())
    }

    /// The configuration's restrictions for the host's files under a name.
    pub(in crate::container) fn restrictions(&self, name: &Path) -> u64 {
        // The last of the entries at this name or above it counts. Mounts of other kinds there do
        // not show the host's files.
        let gives = |it: &&Configured<'_>| {
            mounts::binds(it.entry) || is_cgroup(it.entry) && !self.own_cgroups
        };
        let above = self.entries.iter().filter(|it| name.starts_with(&it.at)).filter(gives);
        let giver = above.max_by_key(|it| it.at.components().count());
        let of = |at: &Path, (own, below)| below | if at == name { own } else { 0 };
        let (from, given) = match giver {
            Some(it) => (it.at.as_path(), of(&it.at, it.restrictions)),
            None => (Path::new("/"), 0),
        };
        let rest = self.restrictions.iter();
        let rest = rest.filter(|(at, _)| name.starts_with(at) && at.starts_with(from));
        rest.fold(given, |all, (at, restrictions)| all | of(at, *restrictions))
    }

    /// The host's filesystem and file under each name.
    pub(in crate::container) fn shown(&self) -> BTreeMap<&Path, Identity> {
        let shown = self.sources.iter().map(|(name, source)| {
            let (device, root) = self.shown_at(source)?;
            Some((name.as_path(), (device.to_owned(), root)))
        });
        shown.flatten().collect()
    }

    /// Whether the host has mounted this filesystem too.
    pub(in crate::container) fn is_the_hosts(&self, device: &str) -> bool {
        self.host.iter().any(|mount| mount.device == device)
    }

    pub(in crate::container) fn entries(&self) -> &[Configured<'a>] {
        &self.entries
    }

    pub(in crate::container) fn own_cgroups(&self) -> bool {
        self.own_cgroups
    }

    /// Whether a mount shows the host's `/dev/null`, which masks files.
    pub(in crate::container) fn is_null(&self, entry: &Entry) -> bool {
        let null = self.null.as_ref();
        null.is_some_and(|(device, root)| (device.as_str(), root) == (&entry.device, &entry.root))
    }

    /// Adds the mounts below a directory of the host, for mounts that include them.
    fn add_below(&mut self, source: &Path, destination: &Path) {
        for mount in &self.host {
            if let Ok(below) = mount.point.strip_prefix(source)
                && !below.as_os_str().is_empty()
            {
                self.sources.insert(destination.join(below), mount.point.clone());
            }
        }
    }

    /// For a restore: the path to mount for each name that a checkpoint may contain.
    pub(in crate::container) fn all(&self) -> Result<Vec<Ext_mount_map>> {
        let mut all = self.sources.clone();
        all.entry(NULL.into()).or_insert_with(|| NULL.into());
        all.iter().map(|(name, source)| external(name, source)).collect()
    }

    /// The path of the host that a restore offers under this name.
    pub(in crate::container) fn source(&self, name: &Path) -> Option<&Path> {
        let null = || Some(Path::new(NULL)).filter(|null| name == *null);
        self.sources.get(name).map(PathBuf::as_path).or_else(null)
    }

    /// For a checkpoint: the container's mounts that CRIU must leave out. Fails for a mount that a
    /// restore would not find.
    pub(in crate::container) fn of(&self, mounts: &[Entry]) -> Result<Vec<Ext_mount_map>> {
        let host: BTreeSet<&str> = self.host.iter().map(|entry| entry.device.as_str()).collect();
        let mut names: BTreeMap<&Path, Option<&Path>> = BTreeMap::new();
        for entry in mounts {
            let name = if self.is_a_made_device(entry) {
                // A restore shows the host's device.
                if !self.host_has(&entry.point) {
                    bail!(
                        "the host has no device `{}`: it could not be restored",
                        entry.point.display()
                    );
                }
                Some(entry.point.as_path())
            } else if !self.shows_the_host(entry, &host) {
                None
            } else if self.is_null(entry) && self.name_of_masks_is_free() {
                Some(Path::new(NULL))
            } else if self.is_offered(entry) {
                Some(entry.point.as_path())
            } else if mounts.iter().any(|other| self.holds(other, entry, &host)) {
                None
            } else {
                bail!(
                    "the mount `{}` shows the host's files, and not those of an entry of `mounts`: it could not be restored",
                    entry.point.display()
                );
            };
            // CRIU identifies mounts by their paths.
            if names.insert(&entry.point, name).is_some_and(|other| other != name) {
                bail!(
                    "two mounts are stacked on `{}`, one of them of host files: `criu` cannot tell them apart",
                    entry.point.display()
                );
            }
        }
        names.iter().filter_map(|(point, name)| Some(external(point, (*name)?))).collect()
    }

    /// Whether a mount shows the file that a restore would mount in its place. The container may
    /// have mounted another one there, and the host may have replaced or removed the file.
    fn is_offered(&self, entry: &Entry) -> bool {
        let source = self.sources.get(&entry.point);
        source.is_some_and(|source| self.shown_at(source) == Some(identity(entry)))
    }

    /// The filesystem that the host shows at a path, and the path in that filesystem.
    pub(in crate::container) fn shown_at(&self, path: &Path) -> Option<(&str, PathBuf)> {
        fs::symlink_metadata(path).ok()?;
        let above = self.host.iter().filter(|mount| path.starts_with(&mount.point));
        // Of several mounts at one path, the last is on top.
        let mount = above.max_by_key(|mount| mount.point.components().count())?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some((&mount.device, mount.root.join(below).components().collect()))
    }

    /// Whether a mount is of a node that was made for the container alone.
    fn is_a_made_device(&self, entry: &Entry) -> bool {
        let name = |(number, device): (usize, &LinuxDevice)| {
            *device.path() == entry.point
                && entry.root == Path::new("/").join(devices::made_name(number))
        };
        entry.kind == "tmpfs" && self.devices.iter().enumerate().any(name)
    }

    /// Whether the listed device for a path is at that path on the host too.
    fn host_has(&self, path: &Path) -> bool {
        let listed = self.devices.iter().find(|device| device.path() == path);
        listed.is_some_and(devices::is_on_the_host)
    }

    /// Whether no mount of the configuration has the name that stands for all masks.
    fn name_of_masks_is_free(&self) -> bool {
        self.sources.get(Path::new(NULL)).is_none_or(|source| source == Path::new(NULL))
    }

    /// Whether a mount shows the same directory as another one, or a part of it. If so, CRIU makes
    /// it from the other one.
    fn holds(&self, other: &Entry, entry: &Entry, host: &BTreeSet<&str>) -> bool {
        other.device == entry.device
            && entry.root.starts_with(&other.root)
            && (!self.shows_the_host(other, host) || self.is_offered(other))
    }

    fn shows_the_host(&self, entry: &Entry, host: &BTreeSet<&str>) -> bool {
        let configured = self.configured(&entry.point);
        let bound = configured.is_some_and(|it| mounts::binds(it.entry));
        let anew = configured.is_some_and(|it| it.at == entry.point) && !bound;
        match entry.kind.as_str() {
            // The caller prepares the rootfs, which is shown at `/`.
            _ if entry.point == Path::new("/") => false,
            "cgroup" | "cgroup2" => !self.own_cgroups || bound,
            // One filesystem of these kinds can be both the host's and the container's. Its
            // contents depend on who mounts it.
            "sysfs" | "mqueue" => bound,
            _ => !anew && host.contains(entry.device.as_str()),
        }
    }

    /// The last mount of the configuration at this path or above it.
    fn configured(&self, point: &Path) -> Option<&Configured<'a>> {
        let above = self.entries.iter().filter(|it| point.starts_with(&it.at));
        above.max_by_key(|it| it.at.components().count())
    }
}

/// CRIU writes both into one text, `mnt[KEY]:VALUE`, and parses it again. If a container or an
/// image chooses the name, CRIU could parse it as another name.
fn external(key: &Path, value: &Path) -> Result<Ext_mount_map> {
    let text = |path: &Path| {
        let text =
            path.to_str().filter(|text| !text.contains("]:") && !text.contains(char::is_control));
        let why = || format!("a mount `{}`: `criu` cannot be told of such a name", path.display());
        text.map(str::to_owned).with_context(why)
    };
    Ok(Ext_mount_map { key: Some(text(key)?), val: Some(text(value)?), ..Ext_mount_map::default() })
}

/// Whether an entry mounts the container's cgroup, in each hierarchy.
fn is_cgroup(entry: &Mount) -> bool {
    entry.typ().as_deref() == Some("cgroup") && !mounts::binds(entry)
}

fn has_own(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.into_iter().any(|namespace| namespace.typ() == kind)
}

/// The filesystem that a mount shows, and the path in it.
fn identity(entry: &Entry) -> (&str, PathBuf) {
    (&entry.device, entry.root.clone())
}

/// The place in the rootfs to which a path leads, as in the kernel's mount table. The components
/// that do not exist stay as they are written.
fn resolve(rootfs: &Rootfs, path: &Path, destination: &Path) -> PathBuf {
    for above in destination.ancestors() {
        let Ok(found) = rootfs.open(above, OFlags::PATH) else { continue };
        let Ok(real) = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())) else { break };
        let (Ok(inside), Ok(rest)) = (real.strip_prefix(path), destination.strip_prefix(above))
        else {
            break;
        };
        let resolved: PathBuf =
            Path::new("/").join(inside).components().chain(rest.components()).collect();
        return resolved;
    }
    destination.to_owned()
}
