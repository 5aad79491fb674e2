//! Which directories and files `rt` trusts, and how it opens those that it does not.
//!
//! `rt` trusts a directory if only root and the own user can change its content, or put another
//! directory in its place. [`directory`] goes along the path from `/` on and looks at each
//! component by descriptor. Nobody else can rename a component of a path that has passed, so the
//! path means the same directory for as long as the command runs.
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
use crate::walk::{self, MOST_LINKS};

/// The write permission of the group and of all others. With an access control list, the group's
/// bits are its mask.
const OTHERS: u32 = 0o022;

/// In a directory that has this bit, only the owner of a file may rename or remove it.
const STICKY: u32 = 0o1000;

/// `<linux/magic.h>`.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// The number of what is not there is `ENOENT`; what `rt` does not trust has none.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Fails with a reason unless a condition holds.
fn require(condition: bool, why: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Failure::other(why())) }
}

/// Whether nobody but root and the own user could have written a file, or can change what is in a
/// directory.
pub(crate) fn is_ours(there: &Stat) -> bool {
    is_own(there.st_uid) && there.st_mode & OTHERS == 0
}

fn is_own(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Opens a trusted directory (`O_PATH`). The error of one that is not there is `ENOENT`.
pub(crate) fn directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Trusted, End::Directory, None)?.directory)
}

/// As [`directory`], and makes it, for its owner alone, if it is not there. Those above it are made
/// so that others can pass.
pub(crate) fn make_directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Trusted, End::Directory, Some(Mode::RWXU))?.directory)
}

/// As [`directory`], but the last directory may be sticky and writable for others, as `/tmp`: they
/// can add to it, but not change what is ours. So each directory in it has to be looked at too
/// ([`directory_in`]).
pub(crate) fn shared_directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Shared, End::Directory, None)?.directory)
}

/// As [`shared_directory`], and makes it, for its owner alone, if it is not there.
pub(crate) fn make_shared_directory(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Shared, End::Directory, Some(Mode::RWXU))?.directory)
}

/// Opens a directory of that name in one that is trusted (`O_PATH`), whose path is given for the
/// error.
pub(crate) fn directory_in(above: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(above, name, flags, Mode::empty())?;
    Rule::Trusted.check(&rustix::fs::fstat(&directory)?, &path.join(name), true)?;
    Ok(directory)
}

/// Opens a directory that only we and root can write to, or one more user. The directories above it
/// may be anybody's, so it may be used by this descriptor only.
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

/// As [`own_directory`], and makes it, for its owner alone, if it is not there.
pub(crate) fn make_own_directory(path: &Path, or_of: Option<u32>) -> Result<OwnedFd> {
    let Place { directory, name, .. } = walk(path, Rule::Links, End::File, None)?;
    match rustix::fs::mkdirat(&directory, &name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => own_directory(path, or_of),
        Err(error) => Err(error.into()),
    }
}

/// As [`directory`], from a directory on that is open already, whose path is given for the error.
/// The directories above that one may be anybody's.
pub(crate) fn directory_from(start: BorrowedFd<'_>, shown: &Path, path: &Path) -> Result<OwnedFd> {
    let start = rustix::io::fcntl_dupfd_cloexec(start, 0)?;
    Ok(walk_from((start, shown.to_owned()), path, Rule::Trusted, End::Directory, None)?.directory)
}

/// Opens a directory of anybody's (`O_PATH`).
pub(crate) fn enter(path: &Path) -> Result<OwnedFd> {
    Ok(walk(path, Rule::Links, End::Directory, None)?.directory)
}

/// Looks up a file of anybody's that is there (`O_PATH`).
pub(crate) fn look_up(path: &Path) -> Result<OwnedFd> {
    let Place { directory, name, is_magic } = walk(path, Rule::Links, End::File, None)?;
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !is_magic);
    Ok(rustix::fs::openat(&directory, &name, flags, Mode::empty())?)
}

/// Opens a file of anybody's for appending, or makes it with that mode.
pub(crate) fn append(path: &Path, mode: u32) -> Result<File> {
    let Place { directory, name, is_magic } = walk(path, Rule::Links, End::File, None)?;
    let mut flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOCTTY;
    // Without O_NONBLOCK, a fifo that nobody reads would hold up this process for ever.
    flags |= OFlags::NONBLOCK | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !is_magic);
    let file = rustix::fs::openat(&directory, &name, flags, Mode::from_raw_mode(mode))?;
    let there = rustix::fs::fstat(&file)?;
    let kind = FileType::from_raw_mode(there.st_mode);
    require(kind != FileType::BlockDevice, || "it is a disk".to_owned())?;
    if kind == FileType::RegularFile {
        // A hard link is as good as a symbolic one, to whoever may make it there.
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
    /// A file, which need not be there.
    File,
}

/// Where a path leads.
struct Place {
    directory: OwnedFd,
    /// Of the file in it; nothing for a directory.
    name: OsString,
    /// The file is a link of procfs, whose text is not where it leads.
    is_magic: bool,
}

/// Goes along a path. Each part is opened without following a link, and looked at by the
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
                    // Another one may be as far as this one.
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
                if is_last && end == End::File && is_on_procfs(&at)? {
                    return Ok(Place { directory: at, name, is_magic: true });
                }
                // It leads to what a process has there, whatever its text says.
                require(!is_on_procfs(&at)? || !is_magic(&at, &name), || {
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
    // A file has a name; what leads to nothing but a directory has none.
    if end == End::File {
        return Err(Errno::ISDIR.into());
    }
    Ok(Place { directory: at, name: OsString::new(), is_magic: false })
}

/// Puts the parts of a path on a stack, the first on top.
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

/// Whether a link of procfs is followed by the kernel in another way than by its text
/// (`symlink(7)`, "Magic links").
fn is_magic(at: &OwnedFd, name: &OsStr) -> bool {
    // Whatever else is wrong with where it leads is found on the way.
    let found = walk::open(at.as_fd(), Path::new(name), OFlags::PATH, ResolveFlags::NO_MAGICLINKS);
    found.err() == Some(Errno::LOOP)
}

fn is_on_procfs(file: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(u64::try_from(rustix::fs::fstatfs(file)?.f_type) == Ok(PROC_SUPER_MAGIC))
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
        // In a sticky directory, others cannot rename what is ours or root's; and nothing else is
        // gone through.
        let may_be_sticky = !is_last || self == Rule::Shared;
        require(mode & OTHERS == 0 || may_be_sticky && mode & STICKY != 0, || {
            let mode = mode & 0o7777;
            format!("others can write to `{}`, which has mode {mode:04o}", path.display())
        })
    }
}

/// A user namespace without all of the host's ids shows one id for all that it lacks
/// (`user_namespaces(7)`, "Unmapped user and group IDs"). Root of the host, who owns `/`, is one of
/// them; any other user of the host may be too, and looks the same. Such a user gains nothing as
/// the owner of a directory on the way: the last directory has to be our own, and nobody else can
/// make one that is.
fn is_perhaps_roots(uid: u32) -> bool {
    const OVERFLOW: u32 = 65534;
    let overflow = || {
        let text = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW)
    };
    crate::ids::lacks_ids() && uid == overflow()
}
