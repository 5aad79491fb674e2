//! Looking up a path inside a root, step by step: for a machine where a filter around this runtime
//! forbids `openat2(2)` (such as that of an older Docker), or a kernel before 5.6. It means what
//! `RESOLVE_IN_ROOT` means: no magic link is followed, its text is.
//!
//! Each directory on the way is held open, and `..` goes back to the one before: what is renamed
//! meanwhile cannot make it lead out of the root.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// More symbolic links than this in one path are a loop, as for the kernel (`path_resolution(7)`).
pub(crate) const MOST_LINKS: u32 = 40;

pub(crate) fn open(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut way: Vec<OwnedFd> = Vec::new();
    let mut names: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        if name == ".." {
            way.pop();
            continue;
        }
        let here = way.last().map_or(root, AsFd::as_fd);
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(here, &name, look, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            if target.is_absolute() {
                way.clear();
            }
            for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                names.push_front(part);
            }
            continue;
        }
        if names.is_empty() && !flags.contains(OFlags::PATH) {
            return rustix::fs::openat(here, &name, flags | OFlags::NOFOLLOW, Mode::empty());
        }
        way.push(found);
    }
    match way.pop() {
        Some(found) => Ok(found),
        None => rustix::fs::openat(root, ".", flags, Mode::empty()),
    }
}

/// Opens a directory of the host's (`O_PATH`) by a path in which a link is an error, as for
/// `RESOLVE_NO_SYMLINKS`.
pub(crate) fn open_without_links(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let start = if path.is_absolute() { "/" } else { "." };
    let mut here = rustix::fs::open(start, flags, Mode::empty())?;
    for name in parts(path) {
        here = rustix::fs::openat(&here, &name, flags, Mode::empty())?;
    }
    Ok(here)
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, ResolveFlags};

    use super::*;

    /// The same file, or the same error, as the kernel's own look.
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
        ] {
            symlink(target, folder.join("root").join(link)).expect("a link");
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder.join("root"), flags, Mode::empty()).expect("a root");
        for path in [
            "/",
            "",
            "a",
            "/a/b",
            "a/file",
            "relative/file",
            "absolute/..",
            "out",
            "loop",
            "dangling",
            "a/far",
            "a/root/a/b",
            "a/up/a/up/absolute",
            "../../a",
            "a/file/below",
            "nothing",
            "a/nothing/below",
            "/a/b/../../../outside",
            "./a/./b",
        ] {
            let same = |found: rustix::io::Result<OwnedFd>| {
                found.and_then(rustix::fs::fstat).map(|there| (there.st_dev, there.st_ino))
            };
            let kernel = match path {
                // openat2(2) refuses an empty path, which nobody looks up.
                "" => rustix::fs::openat(&root, ".", flags, Mode::empty()),
                // Refused for a moment when something is mounted or renamed meanwhile, anywhere.
                path => loop {
                    let resolve = ResolveFlags::IN_ROOT;
                    match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
                        Err(Errno::AGAIN) => {}
                        answer => break answer,
                    }
                },
            };
            assert_eq!(same(open(root.as_fd(), Path::new(path), flags)), same(kernel), "{path:?}");
        }
        for path in ["", "root/a/b", "root/relative", "root/relative/b", "root/a/file", "root/none"]
        {
            let path = folder.join(path);
            let flags = flags | OFlags::DIRECTORY;
            let kernel =
                rustix::fs::openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
            assert_eq!(open_without_links(&path).is_ok(), kernel.is_ok(), "{path:?}");
        }
        let read = open(root.as_fd(), Path::new("relative/file"), OFlags::RDONLY | OFlags::CLOEXEC);
        assert!(read.is_ok());
        rustix::fs::accessat(
            CWD,
            folder.join("outside"),
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .expect("it is there");
        fs::remove_dir_all(folder).expect("removed");
    }
}
