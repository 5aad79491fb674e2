//! The owner of a cgroup. When a container's first process has ended and its cgroup is empty,
//! another container can get the same path: with cgroupfs the same directory, with systemd a new
//! scope of the same name. So `rt` marks each cgroup as one container's. A command on a stopped
//! container that ends processes or removes the cgroup holds the cgroup from the check to the
//! action.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::{
    Cgroup, Manager, Refusal, Version, attribute, open_directory, refuse_others, refuse_processes,
    systemd, tree, v1, v2,
};
use crate::ids::is_host_root;
use crate::syscall::{self, Lock};
use crate::trust;

/// How long a command waits for another command that holds the cgroup: `PATIENCE`, and in a
/// `create` `CLAIMING`.
const PATIENCE: Duration = Duration::from_secs(10);
const CLAIMING: Duration = Duration::from_secs(3);
const NAP: Duration = Duration::from_millis(5);

/// A cgroup in which no container can be made while this value exists. With systemd, that holds for
/// the directory only: a new scope gets a new directory.
#[derive(Debug)]
pub(super) struct Kept {
    /// The claimed directory. None if it does not exist any more.
    directory: Option<OwnedFd>,
    _lock: Option<OwnedFd>,
}

/// The cgroup of a container that still owns it, and keeps it while this value exists.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    cgroup: &'a Cgroup,
    /// With v2, the cgroup by its open directory, and not by its path, which could lead to
    /// another's.
    reached: Cgroup,
    kept: Kept,
}

impl Cgroup {
    /// Holds the cgroup, so that no other container can get it meanwhile. Returns None if another
    /// container has it. But if the container still `lives`, it keeps others out, whatever the mark
    /// says. A container that may write to its cgroup, or that has `CAP_SYS_ADMIN` of the host, can
    /// change the mark.
    pub(crate) fn hold(&self, lives: &dyn Fn() -> Result<bool>) -> Result<Option<Held<'_>>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let Some(kept) = self.keep_out()? else {
                if !lives()? {
                    return Ok(None);
                }
                // The other `create` will find that the cgroup is in use.
                ensure!(Instant::now() < end, "another container is being made in its cgroup");
                std::thread::sleep(NAP);
                continue;
            };
            let Some(directory) = &kept.directory else {
                return Ok(Some(Held { cgroup: self, reached: self.clone(), kept }));
            };
            // A process that has claimed the cgroup itself does not need a mark.
            let is_own =
                self.claim.is_some() || !self.is_marked_for_another(directory.as_fd()) || lives()?;
            if !is_own {
                return Ok(None);
            }
            let paths = match self.version {
                Version::V1 => self.paths.clone(),
                Version::V2 => vec![format!("/proc/self/fd/{}", directory.as_raw_fd()).into()],
            };
            return Ok(Some(Held {
                cgroup: self,
                reached: Cgroup { paths, ..self.clone() },
                kept,
            }));
        }
    }

    /// Keeps new containers out. Returns None if a container is being made in the cgroup.
    pub(super) fn keep_out(&self) -> Result<Option<Kept>> {
        let Some(path) = self.claimed_path().0 else {
            return Ok(Some(Kept { directory: None, _lock: None }));
        };
        let show = || format!("hold the cgroup `{}`", path.display());
        loop {
            let directory = match open_directory(path) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NODEV) => {
                    return Ok(Some(Kept { directory: None, _lock: None }));
                }
                Err(error) => return Err(error).with_context(show),
            };
            if self.manager == Manager::Systemd || self.claim.is_some() {
                return Ok(Some(Kept { directory: Some(directory), _lock: None }));
            }
            let Some(lock) = lock_out(&directory).with_context(show)? else { return Ok(None) };
            // Otherwise the directory was removed meanwhile, and another one may have been made.
            if is_at(directory.as_fd(), path) {
                return Ok(Some(Kept { directory: Some(directory), _lock: Some(lock) }));
            }
        }
    }

    /// Whether another container has the cgroup's path. Without [`Cgroup::hold`], the answer may be
    /// out of date at once.
    pub(crate) fn is_of_another(&self) -> bool {
        let directory = self.claimed_path().0.and_then(|path| open_directory(path).ok());
        directory.is_some_and(|directory| self.is_marked_for_another(directory.as_fd()))
    }

    fn is_marked_for_another(&self, directory: BorrowedFd<'_>) -> bool {
        // systemd has written its id before a process was in the scope.
        if let Some(own) = &self.invocation {
            return systemd::invocation(directory).as_ref() != Some(own);
        }
        match (marked(directory), self.mark.as_deref()) {
            (Some(mark), own) => !own.is_some_and(|own| mark.ends_with(own)),
            // `rt` only guesses that the cgroup is the container's, and no mark confirms it.
            (None, Some(own)) if own.starts_with(' ') => true,
            // A program that does not write marks has made the cgroup again.
            (None, Some(own)) => own.starts_with(USERS) || may_read_marks(),
            (None, None) => false,
        }
    }

    /// The cgroup's directories, with the claimed one last. While the claimed one exists and is
    /// locked, no other container gets the others.
    pub(super) fn claimed_last(&self) -> impl Iterator<Item = &PathBuf> {
        let claimed = self.claimed_path().0;
        self.paths.iter().filter(move |path| Some(*path) != claimed).chain(claimed)
    }

    /// Makes the directory that is to be claimed, and claims it.
    pub(super) fn make_and_claim(
        &mut self,
        path: &Path,
    ) -> Result<(OwnedFd, Option<OwnedFd>), Refusal> {
        let mut waited = Duration::ZERO;
        loop {
            match self.version {
                Version::V2 => v2::make(path, &mut self.made)?,
                Version::V1 => v1::make(path, &mut self.made)
                    .with_context(|| format!("make cgroup `{}`", path.display()))?,
            }
            if let Some(claimed) = claim(path)? {
                return Ok(claimed);
            }
            if waited > CLAIMING {
                let why = format!("{}: a command for another container holds it", show(path));
                return Err(Refusal::Taken(why));
            }
            std::thread::sleep(NAP);
            waited += NAP;
        }
    }
}

impl Held<'_> {
    /// The cgroup by which its processes are reached. None if the cgroup is gone, and its processes
    /// with it.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.kept.directory.as_ref().map(|_| &self.reached)
    }

    /// Ends the remaining processes of the cgroup, and removes it and all cgroups below it.
    pub(crate) fn remove(self) -> Result<()> {
        self.remove_those(|_| true)
    }

    /// The same for some of the cgroup's directories.
    pub(super) fn remove_those(self, wanted: impl Fn(&PathBuf) -> bool) -> Result<()> {
        self.cgroup.refuse_roots()?;
        if self.cgroup.manager == Manager::Systemd {
            self.end_scope()?;
        }
        for path in self.cgroup.claimed_last().filter(|path| wanted(path)) {
            if self.is_claimed(path) && !self.is_there() {
                continue;
            }
            tree::remove(path, &mut || self.end_processes(path))?;
        }
        Ok(())
    }

    fn is_claimed(&self, path: &Path) -> bool {
        self.cgroup.claimed_path().0.is_some_and(|claimed| claimed == path)
    }

    /// Whether the path still leads to the held directory.
    fn is_there(&self) -> bool {
        let path = self.cgroup.claimed_path().0;
        let directory = self.kept.directory.as_ref();
        path.zip(directory).is_some_and(|(path, directory)| is_at(directory.as_fd(), path))
    }

    fn end_scope(&self) -> Result<()> {
        if let Some(reached) = self.cgroup() {
            reached.end_processes()?;
        }
        let cgroup = self.cgroup;
        match (&cgroup.unit, &cgroup.invocation) {
            (Some(unit), Some(invocation)) => systemd::stop(unit, invocation),
            // If the container's own scope has gone, a scope of that name with processes is another
            // container's.
            (Some(unit), None) => {
                let is_ending = self.kept.directory.is_some() || cgroup.paths.is_empty();
                systemd::stop_when_empty(unit, is_ending);
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// Ends the processes in one of the cgroup's directories. Returns false if the directory is
    /// another container's by now.
    fn end_processes(&self, path: &Path) -> Result<bool> {
        if self.is_claimed(path) && !self.is_there() {
            return Ok(false);
        }
        let reached = self.cgroup();
        let reached = reached.context("processes are in it, and nothing says whose they are")?;
        reached.end_processes()?;
        // With v1, a process may have left only the hierarchy that lists the processes.
        if self.cgroup.version == Version::V1 {
            Cgroup { paths: vec![path.to_owned()], ..self.cgroup.clone() }.end_processes()?;
        }
        Ok(true)
    }
}

fn is_at(directory: BorrowedFd<'_>, path: &Path) -> bool {
    let number = |there: rustix::fs::Stat| (there.st_dev, there.st_ino);
    let there = rustix::fs::stat(path).map(number);
    there.is_ok() && there == rustix::fs::fstat(directory).map(number)
}

fn show(path: &Path) -> String {
    format!("claim the cgroup `{}`", path.display())
}

/// Opens a cgroup that shall be one container's, and locks it: of two concurrent `create`s, only
/// one gets the cgroup. The lock ends when its descriptor is closed. By then a process has to be in
/// the cgroup, which keeps others out from then on.
///
/// The cgroup may have existed before, empty: callers may make it beforehand, and a killed `create`
/// leaves one. The owner of a cgroup can freeze and kill its processes, so the owner has to be the
/// user that `rt` runs as. Returns the cgroup's directory, and the lock. Without a lock file, the
/// directory itself is locked. Returns None while a command holds the cgroup of a stopped
/// container.
fn claim(path: &Path) -> Result<Option<(OwnedFd, Option<OwnedFd>)>, Refusal> {
    let show = || show(path);
    let directory = open_directory(path).with_context(show)?;
    let there = rustix::fs::fstat(&directory).with_context(show)?;
    let lock = open_claims(&directory).with_context(show)?;
    let locked = match &lock {
        Some(file) => syscall::lock(file.as_fd(), Lock::Write, place_of(&there), 2),
        None => rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive),
    };
    match locked {
        Err(Errno::AGAIN | Errno::ACCESS) => {
            if let Some(file) = &lock
                && !is_claimed(file, &there).with_context(show)?
            {
                return Ok(None);
            }
            let why = format!("{}: another container is being made in it", show());
            return Err(Refusal::Taken(why));
        }
        locked => locked.with_context(show)?,
    }
    refuse_others(directory.as_fd(), path)?;
    refuse_processes(path)?;
    Ok(Some((directory, lock)))
}

/// Keeps new containers out of a cgroup until the returned descriptor is closed. Returns None while
/// a container is being made in the cgroup.
fn lock_out(directory: &OwnedFd) -> Result<Option<OwnedFd>> {
    let there = rustix::fs::fstat(directory)?;
    let lock = open_claims(directory)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let locked = match &lock {
            Some(file) => syscall::lock(file.as_fd(), Lock::Write, place_of(&there) + 1, 1),
            None => rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive),
        };
        match locked {
            Ok(()) => return Ok(Some(lock.map_or_else(|| directory.try_clone(), Ok)?)),
            Err(Errno::AGAIN | Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(file) = &lock
            && is_claimed(file, &there)?
        {
            return Ok(None);
        }
        if Instant::now() > end {
            // The holder of a lock on a directory is unknown.
            ensure!(lock.is_none(), "another command holds it");
            return Ok(None);
        }
        std::thread::sleep(NAP);
    }
}

/// Whether a container is being made in a cgroup.
fn is_claimed(file: &OwnedFd, there: &rustix::fs::Stat) -> Result<bool> {
    Ok(syscall::locked(file.as_fd(), Lock::Write, place_of(there), 1)?.is_some())
}

/// Opens the lock file, in which two bytes stand for a cgroup. A `create` locks both bytes. A
/// command on the cgroup of a stopped container locks the second byte. We do not lock the cgroup's
/// directory, because every user of the host may open it, and so lock it. Returns None if the file
/// cannot be made, for example for an ordinary user without a directory in `/run`. With v2 and for
/// root, a file of the cgroup that no other user can open replaces the lock file.
fn open_claims(directory: &OwnedFd) -> Result<Option<OwnedFd>> {
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(own) if !is_host_root() => PathBuf::from(own),
        _ => PathBuf::from("/run"),
    };
    let path = folder.join("rt-claims");
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::ACCESS | Errno::ROFS | Errno::NOENT | Errno::PERM) => {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return match rustix::fs::openat(directory, "cgroup.kill", flags, Mode::empty()) {
                Ok(file) => Ok(Some(file)),
                Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::NODEV) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        file => file.with_context(|| format!("open `{}`", path.display()))?,
    };
    let there = rustix::fs::fstat(&file)?;
    ensure!(trust::is_ours(&there), "others can change `{}`", path.display());
    Ok(Some(file))
}

/// The offset of the first byte. It has 62 bits, because a file offset is not larger, and the
/// cgroup's inode number has 64.
fn place_of(there: &rustix::fs::Stat) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&there.st_dev.to_ne_bytes()).update(&there.st_ino.to_ne_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    (u64::from_ne_bytes([a, b, c, d, e, f, g, h]) >> 2) & !1
}

/// The extended attribute that names the owner of a cgroup. Only the host's administrator can write
/// or read it.
const MARK: &str = "trusted.rt.container";

/// The same attribute for an ordinary user. That user's containers can change it if they may write
/// to their cgroups. Its value begins with a letter.
const USERS_MARK: &str = "user.rt.container";
const USERS: char = 'u';

/// Marks a cgroup with a random number that no container has ever had, and with a name that only
/// this container has while it exists. Returns None if the kernel does not allow it. For an
/// ordinary user, that is before Linux 5.7.
pub(super) fn mark(directory: BorrowedFd<'_>, name: &str) -> Result<Option<String>> {
    let mut random = [0; 8];
    let show = "mark the cgroup";
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).context(show)?;
    let text = format!("{:016x}{name}", u64::from_ne_bytes(random));
    for (attribute, text) in [(MARK, text.clone()), (USERS_MARK, format!("{USERS}{text}"))] {
        match rustix::fs::fsetxattr(directory, attribute, text.as_bytes(), XattrFlags::empty()) {
            Ok(()) => return Ok(Some(text)),
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error).context(show),
        }
    }
    Ok(None)
}

fn may_read_marks() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

fn marked(directory: BorrowedFd<'_>) -> Option<String> {
    attribute(directory, MARK).or_else(|| attribute(directory, USERS_MARK))
}
