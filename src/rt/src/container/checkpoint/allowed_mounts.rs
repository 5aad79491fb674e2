//! The mounts that a container may have, and the restrictions of each, by the configuration alone.
//!
//! CRIU mounts as root of the host whatever the images say: a second procfs without masks, or a
//! volume at another place, without the configuration's `ro`. So a restore compares every mount
//! with the configuration, before a process of the container runs. A checkpoint does so before it
//! ends anything. So it does not end a container that could not be made again.
//!
//! Runs in the runtime process, except for [`Allowed::judge`], which looks up nothing by a path.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Mount;
use rustix::thread::CapabilitySet;

use crate::bundle::Bundle;
use crate::container::checkpoint::confinement::Limits;
use crate::container::checkpoint::external_mounts::{Configured, Identity, Offers};
use crate::linux::cgroups::{self, Cgroup, Version};
use crate::linux::mount_table::Entry;
use crate::linux::mounts::{self, Options};

/// The kernel's filesystems that show a namespace or a cgroup of the container. To mount one,
/// `CAP_SYS_ADMIN` in a user namespace is enough (`user_namespaces(7)`).
const OF_NAMESPACES: [&str; 6] = ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts"];

/// The filesystems that show things of the host. Only root of the host can mount one.
const OF_THE_HOST: [&str; 8] = [
    "binfmt_misc",
    "configfs",
    "debugfs",
    "devtmpfs",
    "fusectl",
    "pstore",
    "securityfs",
    "tracefs",
];

/// Options of an overlay that name directories of the host.
const LAYERS: [&str; 5] = ["lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"];

/// Fails if a mount namespace has more mounts than `rt` compares with each other. The kernel allows
/// 100 000 (`fs.mount-max`), for which that would take hours.
pub(in crate::container) fn refuse_many(mounts: usize) -> Result<()> {
    const MOST: usize = 4096;
    ensure!(mounts <= MOST, "it has more than {MOST} mounts");
    Ok(())
}

/// The mounts that a configuration allows.
pub(in crate::container) struct Allowed<'a> {
    bundle: &'a Bundle,
    offers: &'a Offers<'a>,
    /// The host's filesystem and directory for each name that a restore offers.
    shown: BTreeMap<&'a Path, Identity>,
    rootfs: Option<Identity>,
    /// `MOUNT_ATTR_*` for the root.
    root: u64,
    /// The cgroup of the container in each hierarchy.
    cgroups: Vec<Identity>,
    /// Whether the container's processes can mount by themselves, and whether they are in a user
    /// namespace then.
    mounts: bool,
    user_namespace: bool,
    /// `MOUNT_ATTR_*` for each filesystem that the container has made.
    own: u64,
}

impl<'a> Allowed<'a> {
    /// `cgroups` are from [`cgroups_of`].
    pub(in crate::container) fn new(
        offers: &'a Offers<'a>,
        bundle: &'a Bundle,
        limits: &Limits<'_>,
        cgroups: &[PathBuf],
    ) -> Result<Allowed<'a>> {
        let owned = |(device, root): (&str, PathBuf)| (device.to_owned(), root);
        let rootfs = bundle.rootfs.canonicalize().context("find the rootfs")?;
        let mut root = offers.restrictions(Path::new("/"));
        if bundle.spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
            root |= libc::MOUNT_ATTR_RDONLY;
        }
        let mut own = 0;
        if limits.withholds_devices() {
            own |= libc::MOUNT_ATTR_NODEV;
            if offers.entries().iter().any(|it| it.at == Path::new("/dev")) {
                root |= libc::MOUNT_ATTR_NODEV;
            }
        }
        Ok(Allowed {
            bundle,
            offers,
            shown: offers.shown(),
            rootfs: offers.shown_at(&rootfs).map(owned),
            root,
            cgroups: cgroups.iter().filter_map(|path| offers.shown_at(path).map(owned)).collect(),
            mounts: limits.gives(CapabilitySet::SYS_ADMIN),
            user_namespace: limits.has_user_namespace(),
            own,
        })
    }

    pub(in crate::container) fn offers(&self) -> &Offers<'a> {
        self.offers
    }

    /// The restrictions that each mount of a table must have: `MOUNT_ATTR_*`. Fails for a mount
    /// that the container may not have, and for a missing mount of the configuration. In the mount
    /// namespace of the `first` process, other code compares the root.
    pub(in crate::container) fn judge(&self, table: &[Entry], first: bool) -> Result<Vec<u64>> {
        refuse_many(table.len())?;
        let numbers: BTreeMap<&str, usize> =
            table.iter().enumerate().map(|(number, entry)| (entry.id.as_str(), number)).collect();
        let hidden = Hidden::new(table);
        let configured = |entry: &Entry| {
            let is_root = entry.point == Path::new("/")
                && (entry.parent == entry.id || !numbers.contains_key(entry.parent.as_str()));
            if first && is_root {
                return Some(self.root);
            }
            self.configured(entry, &|| hidden.has(entry))
        };
        let configured: Vec<_> = table.iter().map(configured).collect();
        let wanted = |(number, entry): (usize, &Entry)| {
            let mut at = number;
            // The loop needs at most as many steps as there are mounts.
            for _ in table {
                if let Some(wanted) = configured[at] {
                    // A read-only path is a mount of the file or directory that is already there.
                    // Another mount, on a part of such a path, would be the container's way out of
                    // it.
                    let covers = at != number && !self.mounts;
                    return Ok(wanted | if covers { libc::MOUNT_ATTR_RDONLY } else { 0 });
                }
                // The mount may show the same file as the mount that it is on.
                let on = numbers.get(table[at].parent.as_str()).copied();
                match on.filter(|on| shows_the_same(&table[at], &table[*on])) {
                    Some(on) => at = on,
                    None => break,
                }
            }
            if let Some(wanted) = self.made_inside(entry, table, &configured) {
                return Ok(wanted);
            }
            bail!(
                "the mount `{}` ({}) is not a mount of the configuration{}",
                entry.point.display(),
                entry.kind,
                if self.mounts {
                    ""
                } else {
                    ", and the container cannot make mounts without CAP_SYS_ADMIN"
                }
            )
        };
        let wanted = table.iter().enumerate().map(wanted).collect::<Result<_>>()?;
        if first && !self.mounts {
            self.refuse_without(table, &hidden)?;
        }
        Ok(wanted)
    }

    /// Fails if a mount of the configuration is not visible. The container would see the place that
    /// it should cover: a directory of a volume, which may be writable there.
    fn refuse_without(&self, table: &[Entry], hidden: &Hidden<'_>) -> Result<()> {
        let entries = self.offers.entries();
        let masks = self.bundle.linux().masked_paths().iter().flatten();
        let masks: Vec<&Path> = masks.map(Path::new).collect();
        for (number, Configured { at, entry, .. }) in entries.iter().enumerate() {
            let is_covered = entries[number + 1..].iter().any(|later| at.starts_with(&later.at))
                || masks.iter().any(|mask| at.starts_with(mask));
            let is_there = || table.iter().any(|it| it.point == *at && !hidden.has(it));
            ensure!(
                is_covered || is_there() || mounts::makes_a_link(entry, self.bundle),
                "the configuration has a mount on `{}`, which is missing",
                at.display()
            );
        }
        Ok(())
    }

    /// The restrictions of a mount that the configuration gives, or that gives the container
    /// nothing.
    fn configured(&self, entry: &Entry, is_hidden: &dyn Fn() -> bool) -> Option<u64> {
        let is = |identity: &Identity| (&identity.0, &identity.1) == (&entry.device, &entry.root);
        if entry.point == Path::new("/") && self.rootfs.as_ref().is_some_and(is) {
            return Some(self.root);
        }
        if self.offers.is_null(entry) {
            return Some(libc::MOUNT_ATTR_RDONLY);
        }
        if self.shown.get(entry.point.as_path()).is_some_and(is) {
            return Some(self.offers.restrictions(&entry.point));
        }
        let made = self.offers.entries().iter().filter_map(|it| self.made_for(it, entry));
        if let Some(wanted) = made.reduce(|one, other| one & other) {
            // The host's mount for this name can be below the filesystem that an entry makes. CRIU
            // can make both of them new.
            let below = self.shown.contains_key(entry.point.as_path()) && is_hidden();
            return Some(if below {
                wanted & self.offers.restrictions(&entry.point)
            } else {
                wanted
            });
        }
        // The contents of these filesystems are the container's.
        let is_own = matches!(entry.kind.as_str(), "tmpfs" | "devpts")
            && !self.offers.is_the_hosts(&entry.device);
        is_own.then_some(self.own)
    }

    /// Returns restrictions if a mount can be the filesystem that an entry of the configuration
    /// makes.
    fn made_for(&self, configured: &Configured<'_>, entry: &Entry) -> Option<u64> {
        let Configured { at, entry: asked, restrictions: (own, below) } = configured;
        if mounts::binds(asked) {
            return None;
        }
        let (asked_kind, kind) = (asked.typ().as_deref()?, entry.kind.as_str());
        let whole = entry.root == Path::new("/");
        let here = entry.point == *at;
        match (asked_kind, kind) {
            // The directory that contains the hierarchies of v1.
            ("cgroup", "tmpfs") => {
                (here && whole && !self.offers.is_the_hosts(&entry.device)).then_some(*own)
            }
            ("cgroup" | "cgroup2", "cgroup" | "cgroup2") if self.is_own_cgroup(entry) => {
                let inside = asked_kind == "cgroup" && entry.point.parent() == Some(at);
                if here { Some(own | below) } else { inside.then_some(*below) }
            }
            (_, "cgroup" | "cgroup2") => None,
            ("overlay", "overlay") => {
                (here && whole && has_layers_of(&entry.data, asked)).then_some(own | below)
            }
            _ => {
                let is_known = match kind {
                    "tmpfs" | "devpts" => !self.offers.is_the_hosts(&entry.device),
                    _ => OF_NAMESPACES.contains(&kind) || OF_THE_HOST.contains(&kind),
                };
                let is_it = here && whole && is_known && asked_kind == kind;
                (is_it && (kind != "proc" || hides_as_much(entry, asked))).then_some(own | below)
            }
        }
    }

    /// Whether a mount shows the cgroup of a container with a cgroup namespace, or a cgroup below
    /// it.
    fn is_own_cgroup(&self, entry: &Entry) -> bool {
        self.offers.own_cgroups()
            && self
                .cgroups
                .iter()
                .any(|(device, root)| *device == entry.device && entry.root.starts_with(root))
    }

    /// The restrictions of a mount that a container with `CAP_SYS_ADMIN` can have made.
    fn made_inside(
        &self,
        entry: &Entry,
        table: &[Entry],
        configured: &[Option<u64>],
    ) -> Option<u64> {
        if !self.mounts {
            return None;
        }
        let kind = entry.kind.as_str();
        if kind.starts_with("cgroup") && self.offers.own_cgroups() {
            return self.is_own_cgroup(entry).then_some(0);
        }
        if OF_NAMESPACES.contains(&kind) || !self.user_namespace && OF_THE_HOST.contains(&kind) {
            return Some(0);
        }
        // The mount is a part of a filesystem that the container has, with the container's rights
        // there. If the container has one directory twice, it can have made the mount from the one
        // with more rights.
        let holding = table.iter().zip(configured).filter(|(other, _)| {
            other.device == entry.device && entry.root.starts_with(&other.root)
        });
        holding.filter_map(|(_, wanted)| *wanted).reduce(|one, other| one & other)
    }
}

/// The mounts that other mounts cover, so that no path leads to them.
struct Hidden<'t> {
    by_id: BTreeMap<&'t str, &'t Entry>,
    /// By the mount that they are on.
    above: BTreeMap<&'t str, Vec<&'t Entry>>,
}

impl<'t> Hidden<'t> {
    fn new(table: &'t [Entry]) -> Hidden<'t> {
        let mut above: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in table {
            above.entry(&entry.parent).or_default().push(entry);
        }
        Hidden { by_id: by_id(table), above }
    }

    fn has(&self, entry: &Entry) -> bool {
        let mut at = Some(entry);
        let mut below = entry;
        // The loop needs at most as many steps as there are mounts.
        for _ in 0..self.by_id.len() {
            let Some(mount) = at else { break };
            // If two mounts are on one mount, the later one is above. Otherwise the path to the
            // earlier one would lead through it.
            let covers =
                |other: &&Entry| other.id != below.id && below.point.starts_with(&other.point);
            if self.above.get(mount.id.as_str()).into_iter().flatten().any(covers) {
                return true;
            }
            below = mount;
            at = self.by_id.get(mount.parent.as_str()).copied();
        }
        false
    }
}

pub(in crate::container) fn by_id(table: &[Entry]) -> BTreeMap<&str, &Entry> {
    table.iter().map(|entry| (entry.id.as_str(), entry)).collect()
}

/// Whether a mount covers a place with the same file that is already there.
fn shows_the_same(entry: &Entry, on: &Entry) -> bool {
    let below = entry.point.strip_prefix(&on.point);
    entry.device == on.device && below.is_ok_and(|below| entry.root == on.root.join(below))
}

/// Whether a procfs hides as much from the container as an entry says, by its own options
/// (`proc(5)`, "Mount options").
fn hides_as_much(entry: &Entry, asked: &Mount) -> bool {
    let options = Options::parse(asked.options().as_deref().unwrap_or_default());
    let Ok(options) = options else { return false };
    // The kernel shows names since Linux 5.8.
    let value = |text: &str| match text {
        "0" => "off".to_owned(),
        "1" => "noaccess".to_owned(),
        "2" => "invisible".to_owned(),
        "4" => "ptraceable".to_owned(),
        text => text.to_owned(),
    };
    let has = |name: &str| {
        let options = entry.data.split(',').filter_map(|option| option.split_once('='));
        options.into_iter().filter(|(it, _)| *it == name).map(|(_, text)| value(text)).next_back()
    };
    ["hidepid", "subset"].into_iter().all(|name| {
        let asked = options.data.iter().filter(|(it, _)| it == name);
        let asked = asked.filter_map(|(_, text)| text.as_deref().map(value)).next_back();
        asked.is_none_or(|asked| asked == "off" || has(name) == Some(asked))
    })
}

/// Whether an overlay consists of the directories that an entry names.
pub(in crate::container) fn has_layers_of(data: &str, asked: &Mount) -> bool {
    let options = Options::parse(asked.options().as_deref().unwrap_or_default());
    let Ok(options) = options else { return false };
    let is_layer = |name: &str| LAYERS.contains(&name);
    let wanted: BTreeSet<(&str, &str)> = options
        .data
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
        .filter(|(name, _)| is_layer(name))
        .collect();
    let has: BTreeSet<(&str, &str)> = data
        .split(',')
        .filter_map(|option| option.split_once('='))
        .filter(|(name, _)| is_layer(name))
        .collect();
    has == wanted
}

/// The place where each hierarchy begins for a container. This is the container's cgroup. In a
/// hierarchy without such a cgroup, it is the cgroup of this process of the container.
pub(in crate::container) fn cgroups_of(cgroup: &Cgroup, pid: i32) -> Result<Vec<PathBuf>> {
    let mut places = cgroup.of_init().to_vec();
    if cgroup.version == Version::V2 {
        return Ok(places);
    }
    let path = format!("/proc/{pid}/cgroup");
    let table = fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
    for line in table.lines() {
        // `ID:CONTROLLERS:PATH` (cgroups(7)).
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, it)| it.split_once(':'))
        else {
            continue;
        };
        let name = match controllers {
            "" => "unified",
            controllers => controllers.strip_prefix("name=").unwrap_or(controllers),
        };
        let hierarchy = Path::new(cgroups::ROOT).join(name);
        if !places.iter().any(|place| place.starts_with(&hierarchy)) {
            places.push(hierarchy.join(path.trim_start_matches('/')));
        }
    }
    Ok(places)
}
