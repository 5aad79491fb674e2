//! The open files of restored processes below a mount that now covers them.
//!
//! CRIU opens files again by their names, before `restore` masks paths that the checkpoint did not
//! mask. By an open directory, or by its working directory, a process could reach files below a
//! mask or a read-only path. Runs in the runtime process, while all restored processes are stopped.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::container::checkpoint::confinement::{self, Status};
use crate::linux::mount_table::{self, Entry};

/// Fails if a stopped process has a file open below another mount of the first process.
pub(in crate::container) fn refuse_covered(first: i32, processes: &[i32]) -> Result<()> {
    let table = mount_table::of(first)?;
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
                check(&link, &table).with_context(show)?;
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
