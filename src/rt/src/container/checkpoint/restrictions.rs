//! The restrictions of mounts (read-only, `nosuid` and so on), which must last over a checkpoint
//! and a restore.
//!
//! CRIU forgets some restrictions. 4.2.1 gives the second mount of one filesystem those of the
//! first, and 3.17 forgets those of the root. So a checkpoint records the restrictions of each
//! mount, and a restore sets them again, before a process of the container runs. The configuration
//! comes first ([`Allowed`]). The record is in the images, and can only add to it.
//!
//! `restore` uses the kernel's table of the restored mounts, and the ids in it. It does not look up
//! the configuration's paths of mounts: the container may have moved directories, and put links in
//! their places.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, OFlags, StatxAttributes, StatxFlags};
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::container::checkpoint::allowed_mounts::{Allowed, by_id};
use crate::container::checkpoint::confinement;
use crate::container::live_mounts::Entrance;
use crate::linux::mount_table::{self, Entry};
use crate::linux::mounts;
use crate::linux::rootfs::{self, Covers, Rootfs};
use crate::state::State;
use crate::syscall::{self, MountAttr};

/// `rt`'s own file beside CRIU's images.
pub(in crate::container) const RECORD: &str = "mounts.json";

/// A mount and its restrictions.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::container) struct Recorded {
    /// The path of the mount, and those of the mounts that it is on, up to the root.
    points: Vec<PathBuf>,
    /// `MOUNT_ATTR_*`.
    restrictions: u64,
}

/// Records the mounts of a container whose processes are stopped.
pub(in crate::container) fn record(mounts: &[Entry]) -> Vec<Recorded> {
    let by_id = by_id(mounts);
    let recorded = |entry: &Entry| Recorded {
        points: points(entry, &by_id).into_iter().map(Path::to_owned).collect(),
        restrictions: entry.restrictions,
    };
    mounts.iter().map(recorded).collect()
}

/// Several mounts can be at one path, hidden by another mount at that path or above it. The paths
/// of the mounts that they are on tell them apart.
fn points<'t>(entry: &'t Entry, by_id: &BTreeMap<&str, &'t Entry>) -> Vec<&'t Path> {
    let on = |at: &&Entry| by_id.get(at.parent.as_str()).copied();
    // At most as many as there are mounts.
    let line = std::iter::successors(Some(entry), on).take(by_id.len());
    line.map(|at| at.point.as_path()).collect()
}

/// Gives each restored mount the restrictions of the configuration, and those of the checkpoint
/// besides. Fails for a mount that the container may not have. Returns whether it has masked or
/// covered something. Runs in the runtime process.
pub(in crate::container) fn put_back(
    state: &State,
    bundle: &Bundle,
    allowed: &Allowed<'_>,
    recorded: &[Recorded],
) -> Result<bool> {
    let restored = mount_table::of(state.pid)?.len();
    let rootfs = rustix::fs::stat(&bundle.rootfs).context("find the rootfs")?;
    let rootfs = (rootfs.st_dev, rootfs.st_ino);
    let mut wanted = Wanted { before: BTreeMap::new(), allowed, bundle, rootfs };
    for mount in recorded {
        let points = mount.points.iter().map(PathBuf::as_path).collect();
        *wanted.before.entry(points).or_default() |= mount.restrictions;
    }
    let entrance = Entrance::open(state)?;
    // In the container's mount namespace, `/dev/null` is the container's.
    let masks = bundle.linux().masked_paths().iter().flatten();
    let masks = masks.map(|path| Ok((Path::new(path), Some(mounts::detached::clone_null()?))));
    let mut masks = masks.collect::<Result<Vec<_>>>()?;
    entrance.inside(&mut |root, _| wanted.set(root, &mut masks)).1?;
    // The mount namespaces that the container has made since.
    let processes = confinement::tree(state.pid)?;
    for thread in confinement::other_mount_namespaces(state.pid, &processes)? {
        let entrance = Entrance::open_other(state, &thread)?;
        entrance.inside(&mut |root, _| wanted.set_other(root)).1.with_context(|| {
            format!("the mount namespace of the process `{}`", thread.display())
        })?;
    }
    Ok(mount_table::of(state.pid)?.len() != restored)
}

struct Wanted<'a> {
    /// By [`points`].
    before: BTreeMap<Vec<&'a Path>, u64>,
    allowed: &'a Allowed<'a>,
    bundle: &'a Bundle,
    /// The filesystem and the inode of the rootfs.
    rootfs: (u64, u64),
}

/// The mounts that have other restrictions than they should, and what changes them.
type Wrong<'t> = Vec<(&'t Entry, MountAttr)>;

impl Wanted<'_> {
    /// Runs in a process in the container's mount namespace.
    fn set(&self, root: &Rootfs, masks: &mut [(&Path, Option<OwnedFd>)]) -> Result<()> {
        let there = rustix::fs::fstat(root.open(Path::new("/"), OFlags::PATH)?)?;
        ensure!((there.st_dev, there.st_ino) == self.rootfs, "its root is not the rootfs");
        self.restrict(root, &|table| self.wrong(table))?;
        self.cover(root, masks)
    }

    /// Runs in a process in another mount namespace. Only a container that could remove masks
    /// itself has such a namespace.
    fn set_other(&self, root: &Rootfs) -> Result<()> {
        self.restrict(root, &|table| Ok(wrong(table, self.allowed.judge(table, false)?)))
    }

    fn restrict(
        &self,
        root: &Rootfs,
        wrong: &dyn for<'t> Fn(&'t [Entry]) -> Result<Wrong<'t>>,
    ) -> Result<()> {
        let table = root.proc()?.mounts()?;
        for (entry, attr) in wrong(&table)? {
            let show = || format!("restrict the mount `{}`", entry.point.display());
            let place = match find(root, entry) {
                // Nobody sees that links are not followed in a mount that is hidden.
                Err(_) if attr.set == 0 => continue,
                place => place.with_context(show)?,
            };
            syscall::mount_setattr(place.as_fd(), attr, false).with_context(show)?;
        }
        // The restrictions are in force, or the container does not run.
        let table = root.proc()?.mounts()?;
        if let Some((entry, attr)) = wrong(&table)?.iter().find(|(_, attr)| attr.set != 0) {
            let missing = attr.set;
            bail!("the mount `{}` lacks {missing:#x} (MOUNT_ATTR_*)", entry.point.display());
        }
        Ok(())
    }

    fn wrong<'t>(&self, table: &'t [Entry]) -> Result<Wrong<'t>> {
        let (mut seen, by_id) = (Vec::new(), by_id(table));
        let mut wanted = self.allowed.judge(table, true)?;
        for (entry, wanted) in table.iter().zip(&mut wanted) {
            let key = points(entry, &by_id);
            *wanted |= self.before.get(&key).with_context(|| {
                format!("the mount `{}` is not a mount of the checkpoint", entry.point.display())
            })?;
            seen.push(key);
        }
        if let Some(key) = self.before.keys().find(|key| !seen.contains(key)) {
            let point = key.first().copied().unwrap_or(Path::new("/"));
            bail!("the mount `{}` of the checkpoint was not restored", point.display());
        }
        Ok(wrong(table, wanted))
    }

    /// Masks or makes read-only the configured paths that are not yet, as at `create`. The
    /// checkpoint may be of a configuration with fewer of these paths, or of a kernel that did not
    /// have all of them.
    fn cover(&self, root: &Rootfs, masks: &mut [(&Path, Option<OwnedFd>)]) -> Result<()> {
        // Read each time, because a path can be below one that has just been made read-only.
        let mount = |place: &OwnedFd| -> Result<(Entry, bool)> {
            let (id, is_root) = mount_of(place)?;
            let mount = root.proc()?.mount(&id)?;
            Ok((mount.context("it is not on a mount of the container")?, is_root))
        };
        let mut covers = Covers::default();
        for path in self.bundle.linux().readonly_paths().iter().flatten().map(Path::new) {
            let show = || format!("make `{}` read-only", path.display());
            for place in root.find(path).with_context(show)? {
                // Includes the mounts below, as at `create`.
                if mount_of(&place).with_context(show)?.1 {
                    let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
                    syscall::mount_setattr(place.as_fd(), attr, true).with_context(show)?;
                } else {
                    Rootfs::cover_read_only(place.as_fd(), &mut covers).with_context(show)?;
                }
            }
        }
        for (path, null) in masks {
            let show = || format!("mask `{}`", path.display());
            for place in root.find(path).with_context(show)? {
                let (mount, is_root) = mount(&place).with_context(show)?;
                let is_directory = rootfs::is_directory(place.as_fd())?;
                let is_cover = (is_directory && mount.kind == "tmpfs")
                    || self.allowed.offers().is_null(&mount);
                if is_root && is_cover && !mount.writable {
                    continue;
                }
                let cover = match null.take().filter(|_| !is_directory) {
                    Some(null) => null,
                    None => rootfs::make_empty()?,
                };
                mounts::detached::attach(cover.as_fd(), place.as_fd()).with_context(show)?;
            }
        }
        Ok(())
    }
}

/// A mount may have more restrictions than it should. But `restore` itself has made some mounts
/// `nosymfollow`, for CRIU ([`mount_images`](super::mount_images)).
fn wrong(table: &[Entry], wanted: Vec<u64>) -> Wrong<'_> {
    let changes = table.iter().zip(wanted).map(|(entry, wanted)| {
        let set = wanted & !entry.restrictions;
        let clear = entry.restrictions & !wanted & libc::MOUNT_ATTR_NOSYMFOLLOW;
        (entry, MountAttr { set, clear, ..MountAttr::default() })
    });
    changes.filter(|(_, attr)| attr.set | attr.clear != 0).collect()
}

/// Opens a mount of the table, and no other mount at its path.
fn find(root: &Rootfs, entry: &Entry) -> Result<OwnedFd> {
    let place = root.open(&entry.point, OFlags::PATH)?;
    ensure!(mount_of(&place)? == (entry.id.clone(), true), "it is hidden by another mount");
    Ok(place)
}

/// The id of the mount that a file is on, and whether the file is its root.
fn mount_of(file: &OwnedFd) -> Result<(String, bool)> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok((found.stx_mnt_id.to_string(), is_root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_one_place_are_told_apart() {
        let entry = Entry::sample;
        let table = [entry("1", "0", "/"), entry("4", "3", "/a"), entry("3", "1", "/a")];
        let points: Vec<_> = record(&table).into_iter().map(|mount| mount.points).collect();
        assert_eq!(
            points,
            [vec!["/"], vec!["/a", "/a", "/"], vec!["/a", "/"]]
                .map(|points| { points.into_iter().map(PathBuf::from).collect::<Vec<_>>() })
        );
    }
}
