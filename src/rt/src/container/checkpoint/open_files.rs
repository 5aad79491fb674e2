//! The open files of restored processes: those that are not in the container, and those below a
//! mount that now covers them.
//!
//! CRIU opens files again by their names, as root of the host, and before `restore` masks paths
//! that the checkpoint did not mask. By an open directory, or by its working directory, a process
//! could reach files below a mask or a read-only path. Runs in the runtime process, while all
//! restored processes are stopped.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, MemfdFlags, StatxFlags};

use crate::container::checkpoint::confinement::{self, Status};
use crate::interrupt;
use crate::linux::mount_table::{self, Entry};

/// Fails if a stopped process has a file open below another mount of the first process.
pub(in crate::container) fn refuse_covered(first: i32, processes: &[i32]) -> Result<()> {
    let table = mount_table::of(first)?;
    each_link(processes, &|link| check(link, &table))
}

/// Fails if a stopped process has a file open that is on no mount of these processes. The images
/// have led CRIU to it.
pub(in crate::container) fn refuse_outside(processes: &[i32]) -> Result<()> {
    let mut tables = BTreeMap::new();
    for pid in processes {
        let path = format!("/proc/{pid}/ns/mnt");
        // An ended process has none.
        if let Ok(namespace) = fs::read_link(&path)
            && let Place::Vacant(table) = tables.entry(namespace)
        {
            table.insert(mount_table::of(*pid)?);
        }
    }
    let table: Vec<_> = tables.into_values().flatten().collect();
    let inside = Inside::new(&table)?;
    each_link(processes, &|link| {
        let path = || fs::read_link(link).unwrap_or_default().display().to_string();
        let show = || format!("read `{}`", link.display());
        ensure!(
            inside.has(link).with_context(show)?,
            "it has `{}` open, which is not in the container",
            path().escape_debug()
        );
        Ok(())
    })
}

/// What a process of a container may have open.
struct Inside<'t> {
    mounts: BTreeSet<&'t str>,
    /// The kernel's own mounts, on which files in memory are: also those of huge pages.
    memory: Vec<String>,
    /// The filesystems and inodes of the caller's standard streams.
    streams: Vec<(u64, u64)>,
}

impl<'t> Inside<'t> {
    fn new(table: &'t [Entry]) -> Result<Inside<'t>> {
        let huge = [MemfdFlags::HUGETLB, MemfdFlags::HUGE_2MB, MemfdFlags::HUGE_1GB];
        let huge = huge.map(|size| MemfdFlags::HUGETLB | size);
        let kinds = std::iter::once(MemfdFlags::empty()).chain(huge);
        // Not every kernel has huge pages, or those of this size.
        let memory = kinds
            .filter_map(|kind| rustix::fs::memfd_create("rt", MemfdFlags::CLOEXEC | kind).ok());
        let memory = memory.map(|file| {
            let about = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
            Ok(about.stx_mnt_id.to_string())
        });
        let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let streams = streams.into_iter().filter_map(|stream| rustix::fs::fstat(stream).ok());
        Ok(Inside {
            mounts: table.iter().map(|entry| entry.id.as_str()).collect(),
            memory: memory.collect::<Result<_>>()?,
            streams: streams.map(|there| (there.st_dev, there.st_ino)).collect(),
        })
    }

    /// Whether an open file is one of them, by its link in procfs.
    fn has(&self, link: &Path) -> Result<bool> {
        /// Filesystems that nobody can mount (`<linux/magic.h>`): of pipes, sockets, eventfd and
        /// the like, namespaces, pidfds, rings for AIO, and secret memory.
        const INTERNAL: [i64; 7] = [
            0x5049_5045,
            0x534f_434b,
            0x0904_1934,
            0x6e73_6673,
            0x5049_4446,
            0xa10a_10a1,
            0x5345_434d,
        ];
        let wanted = StatxFlags::MNT_ID | StatxFlags::BASIC_STATS;
        let found = rustix::fs::statx(CWD, link, AtFlags::empty(), wanted)?;
        let mount = found.stx_mnt_id.to_string();
        if self.mounts.contains(mount.as_str()) || self.memory.contains(&mount) {
            return Ok(true);
        }
        let kind = rustix::fs::statfs(link)?.f_type;
        let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
        Ok(INTERNAL.contains(&kind) || self.streams.contains(&(device, found.stx_ino)))
    }
}

/// Calls `look` for the link in procfs of each open file of stopped processes.
fn each_link(processes: &[i32], look: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    for pid in processes {
        for thread in confinement::threads(*pid)? {
            if Status::read(&thread)?.has_ended()? {
                continue;
            }
            let show = || format!("process {pid}");
            let mut links = list(&thread.join("fd")).with_context(show)?;
            links.extend(list(&Path::new("/proc").join(pid.to_string()).join("map_files"))?);
            links.extend(["cwd", "root", "exe"].map(|name| thread.join(name)));
            for link in links {
                interrupt::glance()?;
                look(&link).with_context(show)?;
            }
        }
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let show = || format!("read `{}`", folder.display());
    let links = fs::read_dir(folder).with_context(show)?;
    links.map(|link| Ok(link.with_context(show)?.path())).collect()
}

fn check(link: &Path, table: &[Entry]) -> Result<()> {
    let show = || format!("read `{}`", link.display());
    let path = fs::read_link(link).with_context(show)?;
    if path.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
        // Descriptors that were sent to the socket and not received yet are open too, and cannot be
        // checked.
        let name = link.file_name().unwrap_or_default();
        let information = link.with_file_name("..").join("fdinfo").join(name);
        let text = fs::read_to_string(&information)
            .with_context(|| format!("read `{}`", information.display()))?;
        let sent = text.lines().find_map(|line| line.strip_prefix("scm_fds:"));
        ensure!(
            sent.is_none_or(|number| number.trim() == "0"),
            "one of its sockets holds descriptors that were sent to it: the configuration masks more than the checkpoint did"
        );
        return Ok(());
    }
    let found =
        rustix::fs::statx(CWD, link, AtFlags::empty(), StatxFlags::MNT_ID).with_context(show)?;
    if let Some(cover) = cover(&found.stx_mnt_id.to_string(), &path, table) {
        bail!(
            "it has `{}` open, below the mount `{}`: the configuration masks more than the checkpoint did",
            path.display(),
            cover.point.display()
        );
    }
    Ok(())
}

/// Returns the mount that covers a path on another mount, or that covers one of the mounts below
/// that one.
fn cover<'t>(mount: &str, path: &Path, table: &'t [Entry]) -> Option<&'t Entry> {
    let mut on = mount;
    let mut below = None;
    // The loop needs at most as many steps as there are mounts.
    for _ in table {
        let covers = |other: &&Entry| {
            other.parent == on && Some(other.id.as_str()) != below && path.starts_with(&other.point)
        };
        if let Some(cover) = table.iter().find(covers) {
            return Some(cover);
        }
        below = Some(on);
        on = &table.iter().find(|entry| entry.id == on && entry.parent != on)?.parent;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_in_the_container() {
        use std::os::fd::{AsFd, AsRawFd};

        let own = mount_table::own().expect("read");
        let all = Inside::new(&own).expect("made");
        let none = Inside { streams: Vec::new(), ..Inside::new(&[]).expect("made") };
        let link =
            |file: &dyn AsFd| PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()));
        let (file, pipe) = (fs::File::open("/proc/self/exe"), rustix::pipe::pipe());
        let (file, (pipe, _writer)) = (file.expect("opened"), pipe.expect("made"));
        let memory = rustix::fs::memfd_create("rt", MemfdFlags::CLOEXEC).expect("made");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        for internal in [link(&pipe), link(&memory), link(&event.expect("made"))] {
            assert!(none.has(&internal).expect("read"), "{}", internal.display());
        }
        assert!(all.has(&link(&file)).expect("read"));
        assert!(!none.has(&link(&file)).expect("read"));
    }

    #[test]
    fn what_covers_a_mount_covers_what_is_mounted_below() {
        let entry = Entry::sample;
        let table = [
            entry("1", "0", "/"),
            entry("2", "1", "/a/b/c"),
            entry("3", "1", "/a"),
            entry("4", "3", "/a/d"),
        ];
        let covered = |mount, path: &str| cover(mount, Path::new(path), &table).map(|it| &*it.id);
        assert_eq!(covered("1", "/a/x"), Some("3"));
        assert_eq!(covered("2", "/a/b/c"), Some("3"));
        assert_eq!(covered("4", "/a/d/x"), None);
        assert_eq!(covered("3", "/a/x"), None);
        assert_eq!(covered("3", "/a/d/x"), Some("4"));
        assert_eq!(covered("1", "/x"), None);
    }
}
