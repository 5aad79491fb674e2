//! Which directories and files `rt` trusts, and how it opens those that it does not trust.
//!
//! `rt` trusts a directory if only root and the user of this process can change its content, or put
//! another directory in its place. [`directory`] goes along the path from `/` on, and checks each
//! component by descriptor. Nobody else can rename a component of a path that has passed, so the
//! path means the same directory as long as the command runs.
//!
//! A caller may also name files in directories of others: a pid file, a log, a socket. There,
//! [`enter`], [`look_up`] and [`append`] follow no symbolic link that belongs to another user.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::procfs::is_procfs;
use crate::walk::{self, MOST_LINKS};

/// The write permission of the group and of all others. With an access control list, the group's
/// bits are its mask.
const OTHERS: u32 = 0o022;

/// In a directory with this bit, only the owner of a file may rename or remove the file.
const STICKY: u32 = 0o1000;

/// The errno of a missing file is `ENOENT`. If `rt` does not trust a file, the failure has no
/// errno.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Fails with a reason unless a condition holds.
fn require(condition: bool, why: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Failure::other(why())) }
}

/// Whether only root and the user of this process could have written a file, or can change the
/// content of a directory.
pub(crate) fn is_ours(there: &Stat) -> bool {
    is_own(there.st_uid) && there.st_mode & OTHERS == 0
}

fn is_own(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Opens a trusted directory (`O_PATH`). If it does not exist, the error is `ENOENT`.
pub(crate) fn directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Trusted, End::Directory, None)?.directory)
}

/// As [`directory`], but makes a missing directory, for its owner only. Makes missing parents so
/// that others can pass.
pub(crate) fn make_directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Trusted, End::Directory, Some(Mode::RWXU))?.directory)
}

/// As [`directory`], but the last directory may be sticky and writable for others, like `/tmp`.
/// Others can add files there, but cannot change ours. So each directory in it must be checked too
/// ([`directory_in`]).
pub(crate) fn shared_directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Shared, End::Directory, None)?.directory)
}

/// As [`shared_directory`], but makes a missing directory, for its owner only.
pub(crate) fn make_shared_directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Shared, End::Directory, Some(Mode::RWXU))?.directory)
}

/// Opens the directory of this name in a trusted directory (`O_PATH`). `path` is the path of the
/// trusted one, for the error.
pub(crate) fn directory_in(above: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(above, name, flags, Mode::empty())?;
    Rule::Trusted.check(&rustix::fs::fstat(&directory)?, &path.join(name), true)?;
    Ok(directory)
}

/// Opens a directory that only we and root can write to, or one more user. The directories above it
/// may belong to anybody, so use the directory by this descriptor only.
pub(crate) fn own_directory(path: &Path, or_of: Option<u32>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(enter(path)?, ".", flags, Mode::empty())?;
    let mut there = rustix::fs::fstat(&directory)?;
    if or_of == Some(there.st_uid) {
        there.st_uid = 0;
    }
    Rule::Trusted.check(&there, path, true)?;
    Ok(directory)
}

/// As [`own_directory`], but makes a missing directory, for its owner only.
pub(crate) fn make_own_directory(path: &Path, or_of: Option<u32>) -> Result<OwnedFd> {
    let Place { directory, name, .. } = walk(path, Rule::Links, End::File, None)?;
    match rustix::fs::mkdirat(&directory, &name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => own_directory(path, or_of),
        Err(error) => Err(error.into()),
    }
}

/// As [`directory`], but starts from an open directory, whose path `shown` is for the error. The
/// directories above the open one may belong to anybody.
pub(crate) fn directory_from(start: BorrowedFd<'_>, shown: &Path, path: &Path) -> Result<OwnedFd> {
    let start = rustix::io::fcntl_dupfd_cloexec(start, 0)?;
    Ok(walk_from((start, shown.to_owned()), path, Rule::Trusted, End::Directory, None)?.directory)
}

/// Opens a directory that may belong to anybody (`O_PATH`).
pub(crate) fn enter(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Links, End::Directory, None)?.directory)
}

/// Looks up an existing file that may belong to anybody (`O_PATH`).
pub(crate) fn look_up(path: &Path) -> Result<OwnedFd> {
    let Place { directory, name, is_magic } = walk(path, Rule::Links, End::File, None)?;
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !is_magic);
    Ok(rustix::fs::openat(&directory, &name, flags, Mode::empty())?)
}

/// Opens a file that may belong to anybody for appending, or makes it with this mode.
pub(crate) fn append(path: &Path, mode: u32) -> Result<File> {
    let Place { directory, name, is_magic } = walk(path, Rule::Links, End::File, None)?;
    let mut flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOCTTY;
    // Without O_NONBLOCK, a fifo that nobody reads would block this process for ever.
    flags |= OFlags::NONBLOCK | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !is_magic);
    let file = rustix::fs::openat(&directory, &name, flags, Mode::from_raw_mode(mode))?;
    let there = rustix::fs::fstat(&file)?;
    let kind = FileType::from_raw_mode(there.st_mode);
    require(kind != FileType::BlockDevice, || "it is a disk".to_owned())?;
    if kind == FileType::RegularFile {
        // A hard link has the same effect as a symbolic link, if others can make one there.
        let is_only_one = there.st_nlink <= 1 || is_ours(&rustix::fs::fstat(&directory)?);
        require(is_only_one, || {
            "it has more than one link, and others can write to its directory".to_owned()
        })?;
    } else {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    }
    Ok(file.into())
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Rule {
    /// Nobody else can change a directory on the way, or a link.
    Trusted,
    /// The same, but others may add to the last directory.
    Shared,
    /// Nobody else can change a link on the way.
    Links,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    Directory,
    /// A file, which need not exist.
    File,
}

/// The place that a path leads to.
struct Place {
    directory: OwnedFd,
    /// The file's name in the directory; empty for a directory.
    name: OsString,
    /// The file is a link of procfs, which does not lead to the path in its text.
    is_magic: bool,
}

/// Goes along a path. Opens each component without following a link, and checks it by the
/// descriptor.
fn walk(path: &Path, rule: Rule, end: End, make: Option<Mode>) -> Result<Place> {
    let root = (open_root()?, PathBuf::from("/"));
    let path = std::path::absolute(path).map_err(|error| Failure::other(error.to_string()))?;
    walk_from(root, &path, rule, end, make)
}

fn walk_from(
    (mut at, mut shown): (OwnedFd, PathBuf),
    path: &Path,
    rule: Rule,
    end: End,
    make: Option<Mode>,
) -> Result<Place> {
    let mut rest = Vec::new();
    push_parts(&mut rest, path);
    rule.check(&rustix::fs::fstat(&at)?, &shown, rest.is_empty())?;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        let is_last = rest.is_empty();
        let next = match open_part(&at, &name) {
            Err(Errno::NOENT) if is_last && end == End::File => {
                return Ok(Place { directory: at, name, is_magic: false });
            }
            Err(Errno::NOENT) if make.is_some() => {
                let mode = make.filter(|_| is_last).unwrap_or(Mode::from_raw_mode(0o711));
                match rustix::fs::mkdirat(&at, &name, mode) {
                    // Another process may be making the same directory.
                    Ok(()) | Err(Errno::EXIST) => open_part(&at, &name)?,
                    Err(error) => return Err(error.into()),
                }
            }
            next => next?,
        };
        let there = rustix::fs::fstat(&next)?;
        match FileType::from_raw_mode(there.st_mode) {
            FileType::Symlink => {
                let uid = there.st_uid;
                let show = || shown.join(&name).display().to_string();
                require(is_own(uid) || is_perhaps_roots(uid), || {
                    format!("the link `{}` belongs to user {uid}, who could change it", show())
                })?;
                if is_last && end == End::File && is_procfs(&at)? {
                    return Ok(Place { directory: at, name, is_magic: true });
                }
                // A magic link leads to a process's object there, whatever its text says.
                require(!is_procfs(&at)? || !is_magic(&at, &name), || {
                    format!("`{}` is a magic link", show())
                })?;
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    (at, shown) = (open_root()?, PathBuf::from("/"));
                    rule.check(&rustix::fs::fstat(&at)?, &shown, false)?;
                }
                push_parts(&mut rest, &target);
            }
            _ if is_last && end == End::File => {
                return Ok(Place { directory: at, name, is_magic: false });
            }
            FileType::Directory => {
                if name == ".." {
                    shown.pop();
                } else {
                    shown.push(&name);
                }
                rule.check(&there, &shown, is_last)?;
                at = next;
            }
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    // A file has a name. A path that can only lead to a directory has none.
    if end == End::File {
        return Err(Errno::ISDIR.into());
    }
    Ok(Place { directory: at, name: OsString::new(), is_magic: false })
}

/// Puts the components of a path on a stack, the first on top.
fn push_parts(stack: &mut Vec<OsString>, path: &Path) {
    stack.extend(path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    }));
}

fn open_root() -> rustix::io::Result<OwnedFd> {
    open_part(CWD, OsStr::from_bytes(b"/"))
}

fn open_part(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Whether the kernel follows a link of procfs in another way than by its text (`symlink(7)`,
/// "Magic links").
fn is_magic(at: &OwnedFd, name: &OsStr) -> bool {
    // Other errors about the link's target are found on the way.
    let found = walk::open(at.as_fd(), Path::new(name), OFlags::PATH, ResolveFlags::NO_MAGICLINKS);
    found.err() == Some(Errno::LOOP)
}

impl Rule {
    fn check(self, there: &Stat, path: &Path, is_last: bool) -> Result<()> {
        if self == Rule::Links {
            return Ok(());
        }
        let (uid, mode) = (there.st_uid, there.st_mode);
        require(is_own(uid) || !is_last && is_perhaps_roots(uid), || {
            format!("`{}` belongs to user {uid}, who could change what is in it", path.display())
        })?;
        // In a sticky directory, others cannot rename our files or root's, and the walk goes
        // through no others.
        let may_be_sticky = !is_last || self == Rule::Shared;
        require(mode & OTHERS == 0 || may_be_sticky && mode & STICKY != 0, || {
            let mode = mode & 0o7777;
            format!("others can write to `{}`, which has mode {mode:04o}", path.display())
        })
    }
}

/// A user namespace without all of the host's ids shows one id for all missing ids
/// (`user_namespaces(7)`, "Unmapped user and group IDs"). The host's root, who owns `/`, is one of
/// them. Other users of the host may be among them, and look the same. Such a user gains nothing as
/// the owner of a directory on the way, because the last directory must be our own. Nobody else can
/// make a directory that is.
fn is_perhaps_roots(uid: u32) -> bool {
    const OVERFLOW: u32 = 65534;
    let overflow = || {
        let text = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW)
    };
    crate::ids::lacks_ids() && uid == overflow()
}
