//! Opens a path within limits, as `openat2(2)` does, even if a filter around `rt` forbids that call
//! (such as that of an older Docker).
//!
//! Without the call, [`step_by_step`] opens one name after the other, each without following a
//! link, and does the kernel's work itself. It never opens more than the kernel would open with the
//! same limits:
//!
//! - `RESOLVE_IN_ROOT` and `RESOLVE_BENEATH`: the walk holds each directory on the way open, and
//!   `..` goes back to the directory before. So a rename in the meantime cannot make `..` lead out
//!   of the start. An absolute link begins at the start again, or is refused. The kernel checks
//!   after each `..` whether it is still inside, and lets its caller try again if it cannot know.
//! - `RESOLVE_NO_SYMLINKS`: the first link is an error, even at the end of the path.
//! - `RESOLVE_NO_MAGICLINKS`, which the first two imply: a link of procfs is refused, unless it is
//!   directly in the root of a procfs. That root has only links that mean their text. So the walk
//!   refuses some more links than the kernel does.
//! - `RESOLVE_NO_XDEV`: every file that the walk opens, links included, is on the mount of the
//!   start.
//!
//! The kernel refuses an unknown limit (`EINVAL`), and so does the walk.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, Result};

use crate::procfs::is_procfs;

/// More symbolic links than this in one path are a loop, as in the kernel (`path_resolution(7)`).
pub(crate) const MOST_LINKS: u32 = 40;

/// The inode of the root of each procfs: `PROC_ROOT_INO`, `<linux/proc_fs.h>`.
const PROC_ROOT_INO: u64 = 1;

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The limits that [`step_by_step`] knows.
const KNOWN: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::BENEATH)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens an existing file, close-on-exec.
pub(crate) fn open(
    start: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    limits: ResolveFlags,
) -> Result<OwnedFd> {
    /// The kernel also answers EAGAIN, each time, for a file on which a process holds a lease
    /// (`fcntl(2)`).
    const MOST: u32 = 1000;
    let flags = flags | OFlags::CLOEXEC;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(start, path, flags, Mode::empty(), limits) {
            // A file was renamed in the meantime, and the kernel cannot tell what this means for
            // `..` (openat2(2)).
            Err(Errno::AGAIN) if tries < MOST => tries += 1,
            // A filter forbids the call, or the kernel is older.
            Err(Errno::NOSYS | Errno::PERM) => return step_by_step(start, path, flags, limits),
            opened => return opened,
        }
    }
}

fn step_by_step(
    start: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    limits: ResolveFlags,
) -> Result<OwnedFd> {
    let in_root = limits.contains(ResolveFlags::IN_ROOT);
    let is_scoped = limits.intersects(ResolveFlags::IN_ROOT | ResolveFlags::BENEATH);
    if !KNOWN.contains(limits) {
        return Err(Errno::INVAL);
    }
    if path.as_os_str().is_empty() {
        return Err(Errno::NOENT);
    }
    let mount = limits.contains(ResolveFlags::NO_XDEV).then(|| mount(start)).transpose()?;
    let stay = |found: OwnedFd| match mount {
        Some(mount) if self::mount(found.as_fd())? != mount => Err(Errno::XDEV),
        _ => Ok(found),
    };
    // The directories from the start to the current place of the walk.
    let mut way: Vec<OwnedFd> = Vec::new();
    // An absolute path begins at `/`, which is the start or outside of it.
    let begin_again = |way: &mut Vec<OwnedFd>| {
        way.clear();
        match is_scoped {
            true if in_root => {}
            true => return Err(Errno::XDEV),
            false => way.push(stay(rustix::fs::open("/", LOOK, Mode::empty())?)?),
        }
        Ok(())
    };
    let mut names = parts(path);
    if path.is_absolute() {
        begin_again(&mut way)?;
    }
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let here = way.last().map_or(start, AsFd::as_fd);
        let found = rustix::fs::openat(here, &name, LOOK, Mode::empty())?;
        if is_scoped && name == ".." {
            // The walk opened `..` only to learn whether this process may go there.
            if way.pop().is_none() && !in_root {
                return Err(Errno::XDEV);
            }
            continue;
        }
        let found = stay(found)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == FileType::Symlink && !(names.is_empty() && flags.contains(OFlags::NOFOLLOW)) {
            links += 1;
            if links > MOST_LINKS || limits.contains(ResolveFlags::NO_SYMLINKS) {
                return Err(Errno::LOOP);
            }
            if may_be_magic(here, found.as_fd())? {
                let is_named = limits.contains(ResolveFlags::NO_MAGICLINKS);
                return Err(if is_scoped && !is_named { Errno::XDEV } else { Errno::LOOP });
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            if target.is_absolute() {
                begin_again(&mut way)?;
            }
            let mut further = parts(target);
            further.append(&mut names);
            names = further;
        } else if !names.is_empty() {
            way.push(found);
        } else if !flags.contains(OFlags::PATH) {
            // If a link or another mount has appeared here in the meantime, this fails.
            let flags = flags | OFlags::NOFOLLOW;
            return stay(rustix::fs::openat(here, &name, flags, Mode::empty())?);
        } else if flags.contains(OFlags::DIRECTORY) && kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        } else {
            return Ok(found);
        }
    }
    let here = way.last().map_or(start, AsFd::as_fd);
    rustix::fs::openat(here, ".", flags, Mode::empty())
}

/// Whether the kernel might follow a link in another way than by its text (`symlink(7)`, "Magic
/// links"). Only the root of a procfs is known to have no such link, and only while nothing is
/// mounted on the link.
fn may_be_magic(above: BorrowedFd<'_>, link: BorrowedFd<'_>) -> Result<bool> {
    if !is_procfs(link)? {
        return Ok(false);
    }
    let is_root = rustix::fs::fstat(above)?.st_ino == PROC_ROOT_INO;
    Ok(!is_root || mount(above)? != mount(link)?)
}

fn mount(file: BorrowedFd<'_>) -> Result<u64> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(found.stx_mnt_id)
}

/// The names of a path. A path that ends in a slash or a dot ends in a directory.
fn parts(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let text = path.as_os_str().as_bytes();
    let is_directory = text == b"." || text.ends_with(b"/") || text.ends_with(b"/.");
    names.chain(is_directory.then(|| ".".into())).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    const LIMITS: [ResolveFlags; 6] = [
        ResolveFlags::IN_ROOT,
        ResolveFlags::BENEATH,
        ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS),
        ResolveFlags::BENEATH.union(ResolveFlags::NO_XDEV),
        ResolveFlags::NO_SYMLINKS,
        ResolveFlags::NO_MAGICLINKS,
    ];

    /// Checks that the walk finds the same file as the kernel, or fails with the same error.
    fn is_as_the_kernels(start: BorrowedFd<'_>, path: &str, flags: OFlags, limits: ResolveFlags) {
        let same = |found: Result<OwnedFd>| {
            let found = found?;
            let there = rustix::fs::fstat(&found)?;
            let is_open = !rustix::fs::fcntl_getfl(&found)?.contains(OFlags::PATH);
            Ok((there.st_dev, there.st_ino, is_open))
        };
        let kernel = loop {
            match rustix::fs::openat2(start, path, flags, Mode::empty(), limits) {
                // Another process mounts or renames something in the meantime, anywhere.
                Err(Errno::AGAIN) => {}
                answer => break answer,
            }
        };
        let walked = step_by_step(start, Path::new(path), flags, limits);
        let same: [Result<_>; 2] = [same(walked), same(kernel)];
        assert_eq!(same[0], same[1], "{path:?} {flags:?} {limits:?}");
    }

    #[test]
    fn finds_what_openat2_finds() {
        let folder = std::env::temp_dir().join(format!("rt-walk-{}", std::process::id()));
        fs::create_dir_all(folder.join("root/a/b")).expect("folders");
        fs::write(folder.join("outside"), "").expect("a file");
        fs::write(folder.join("root/a/file"), "").expect("a file");
        for (target, link) in [
            ("a", "relative"),
            ("/a/b", "absolute"),
            ("../../outside", "out"),
            ("loop", "loop"),
            ("/nothing", "dangling"),
            ("relative/b/../file", "a/far"),
            ("/", "a/root"),
            ("..", "a/up"),
            ("/proc/self/root", "magic"),
        ] {
            symlink(target, folder.join("root").join(link)).expect("a link");
        }
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder.join("root"), path, Mode::empty()).expect("a root");
        let paths = [
            "/",
            "",
            ".",
            "..",
            "a",
            "a/b/..",
            "a/file/",
            "relative/",
            "a/far/.",
            "dangling/",
            "/a/b",
            "a/file",
            "a/file/..",
            "relative",
            "relative/file",
            "absolute",
            "absolute/..",
            "out",
            "loop",
            "dangling",
            "a/far",
            "a/root/a/b",
            "a/up/a/up/absolute",
            "a/up/../outside",
            "../../a",
            "a/file/below",
            "nothing",
            "a/nothing/below",
            "/a/b/../../../outside",
            "./a/./b",
            "magic",
            "/proc/self",
            "/proc/self/exe",
            "/proc/self/cwd/.",
            "/proc/mounts",
        ];
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let ways = [
            path,
            path | OFlags::DIRECTORY,
            path | OFlags::NOFOLLOW,
            read,
            read | OFlags::NOFOLLOW,
        ];
        for name in paths {
            for flags in ways {
                for limits in LIMITS {
                    is_as_the_kernels(root.as_fd(), name, flags, limits);
                    let long = folder.join("root").join(name);
                    is_as_the_kernels(CWD, long.to_str().expect("a text"), flags, limits);
                }
            }
        }
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn finds_in_procfs_what_openat2_finds() {
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", path, Mode::empty()).expect("procfs");
        let own = format!("self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&proc));
        let names =
            ["self/fd", "thread-self/mountinfo", "mounts", "self/exe", "self/root/etc", &own];
        for limits in LIMITS {
            for name in names {
                is_as_the_kernels(proc.as_fd(), name, path, limits);
            }
            // Not a name that both look up, because the numbers of descriptors change.
            let walked = |name: &str| step_by_step(proc.as_fd(), Path::new(name), path, limits);
            assert_eq!(walked("self").is_ok(), limits != ResolveFlags::NO_SYMLINKS);
            assert!(walked("self/ns/mnt").is_err());
        }
    }

    #[test]
    fn a_mount_on_the_way_is_an_error_where_it_is_to_be() {
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", path, Mode::empty()).expect("the root");
        let one = ResolveFlags::NO_XDEV;
        for name in ["proc", "proc/self", "dev/null", "etc", "proc/.."] {
            for limits in [one, one | ResolveFlags::BENEATH, one | ResolveFlags::IN_ROOT] {
                is_as_the_kernels(root.as_fd(), name, path, limits);
            }
        }
        let unknown = step_by_step(root.as_fd(), Path::new("etc"), path, ResolveFlags::CACHED);
        assert_eq!(unknown.err(), Some(Errno::INVAL));
    }
}
