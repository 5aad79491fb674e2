//! What restored processes have open below what has been covered since.
//!
//! CRIU opens files again by their names, before `restore` masks what the checkpoint did not mask.
//! By a directory that is open, or the working directory, a process would reach what is below a
//! mask or a read-only path. Runs in the caller's process, while all restored processes are
//! stopped.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::container::checkpoint::confinement::{self, Status};
use crate::linux::mount_table::{self, Entry};

/// Fails for what a stopped process has open below another mount of the first one's.
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
        // What was sent and not taken yet is open too, and cannot be looked at.
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

/// The mount that covers a path on another mount, or what that one is on.
fn cover<'t>(mount: &str, path: &Path, table: &'t [Entry]) -> Option<&'t Entry> {
    let mut on = mount;
    let mut below = None;
    // As many steps as there are mounts, at the most.
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
