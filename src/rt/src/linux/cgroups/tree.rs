//! A cgroup with all cgroups below it. The container may have made them: as many as it likes, as
//! deep as it likes.
//!
//! The path of the deepest cgroup can be longer than the kernel accepts (`PATH_MAX`). So `rt` walks
//! from directory to directory by descriptors, and returns by `..`. Two are open at a time.
//! cgroupfs has no links, and does not let a process move a directory to another parent.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// How long a killed process may stay in its cgroup, and how long one walk, and a whole removal,
/// may take. With some controllers of v1, the host's memory is the only limit of the number of
/// cgroups.
const GOING: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(30);

/// Returns None if the directory does not exist, or does not exist any more.
fn open(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if is_gone(error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_top(path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if is_gone(error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kernel's errors for a removed cgroup, by name and by descriptor.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NODEV)
}

/// The cgroups directly below one.
fn below(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    let entries = match Dir::read_from(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(error) => return Ok(names),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_gone(error) => break,
            Err(error) => return Err(error),
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn parent(directory: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    open(directory.as_fd(), c"..")?.ok_or(Errno::NOENT)
}

/// Visits a cgroup, then all cgroups below it. A missing cgroup is not an error.
fn walk(
    path: &Path,
    visit: &mut dyn FnMut(BorrowedFd<'_>) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let Some(mut here) = open_top(path)? else { return Ok(()) };
    visit(here.as_fd())?;
    let mut levels = vec![below(here.as_fd())?];
    let end = Instant::now() + LONGEST;
    while let Some(level) = levels.last_mut() {
        match level.pop() {
            Some(name) => {
                let Some(directory) = open(here.as_fd(), &name)? else { continue };
                if Instant::now() > end {
                    return Err(Errno::TIMEDOUT);
                }
                visit(directory.as_fd())?;
                levels.push(below(directory.as_fd())?);
                here = directory;
            }
            None => {
                levels.pop();
                if !levels.is_empty() {
                    here = parent(&here)?;
                }
            }
        }
    }
    Ok(())
}

/// All processes in a cgroup and below it that this process can see.
pub(super) fn processes(path: &Path) -> Result<Vec<Pid>> {
    Ok(all_processes(path)?.0)
}

/// The number of processes in a cgroup and below it.
pub(super) fn count(path: &Path) -> Result<usize> {
    let (seen, unseen) = all_processes(path)?;
    Ok(seen.len() + unseen)
}

/// The processes that this process can see, and the number of those that it cannot: the kernel
/// lists a process of a pid namespace above as 0.
fn all_processes(path: &Path) -> Result<(Vec<Pid>, usize)> {
    let mut pids = Vec::new();
    let mut unseen = 0;
    let (mut is_top, mut is_threaded) = (true, false);
    let mut collect = |directory: BorrowedFd<'_>| {
        let top = std::mem::replace(&mut is_top, false);
        let text = match read(directory, c"cgroup.procs") {
            // This cgroup is threaded, and the cgroup above lists its processes (cgroup-v2.rst,
            // "Threads"). If the cgroup above is outside of the walk, we find the processes by
            // their threads, here and in all cgroups below.
            Err(Errno::OPNOTSUPP) if top || is_threaded => {
                is_threaded = true;
                read(directory, c"cgroup.threads")?
            }
            Err(Errno::OPNOTSUPP) => None,
            text => text?,
        };
        let text = text.unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
        unseen += text.lines().filter(|line| *line == "0").count();
        Ok(())
    };
    walk(path, &mut collect)
        .with_context(|| format!("list the processes in the cgroup `{}`", path.display()))?;
    if is_threaded {
        pids = pids.into_iter().map(process_of).collect();
        pids.sort_by_key(|pid| pid.as_raw_nonzero());
        pids.dedup();
    }
    Ok((pids, unseen))
}

/// The process of a thread. An ended thread counts as its own process: it will receive no signal
/// any more.
fn process_of(thread: Pid) -> Pid {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|process| Pid::from_raw(process.trim().parse().ok()?)).unwrap_or(thread)
}

/// Whether a cgroup and all cgroups below it have no processes, or have none soon: init ends with
/// its maker.
pub(super) fn becomes_empty(path: &Path) -> Result<bool> {
    let end = Instant::now() + GOING;
    loop {
        if count(path)? == 0 {
            return Ok(true);
        }
        if Instant::now() > end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Thaws a cgroup of v1 and all cgroups below it.
pub(super) fn thaw(path: &Path) -> rustix::io::Result<()> {
    walk(path, &mut |directory| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, c"freezer.state", flags, Mode::empty()) {
            Ok(state) => rustix::io::write(&state, b"THAWED").map(drop),
            Err(error) if is_gone(error) => Ok(()),
            Err(error) => Err(error),
        }
    })
}

fn read(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(error) if is_gone(error) => return Ok(None),
        file => file?,
    };
    let mut text = String::new();
    match File::from(file).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(error) if is_gone(error) => Ok(None),
            error => Err(error.unwrap_or(Errno::IO)),
        },
    }
}

/// Removes a cgroup and all cgroups below it. While a cgroup has processes, this function calls
/// `busy` again and again: a killed process stays in its cgroup a little longer, and v1 has no
/// event for its end. `busy` returns whether the cgroup shall still be removed.
pub(super) fn remove(path: &Path, busy: &mut dyn FnMut() -> Result<bool>) -> Result<()> {
    let show = || format!("remove cgroup `{}`", path.display());
    let end = Instant::now() + LONGEST;
    let mut pause = Duration::from_micros(200);
    let mut progress = Instant::now();
    loop {
        match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(error) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error).with_context(show),
        }
        let busied = busy();
        if let Ok(false) = busied {
            return Ok(());
        }
        if remove_below(path, end).with_context(show)? {
            (pause, progress) = (Duration::from_micros(200), Instant::now());
        } else {
            busied?;
        }
        let now = Instant::now();
        if now.duration_since(progress) > GOING {
            bail!("{}: processes are still in it", show());
        }
        if now > end {
            bail!("{}: too many are below it to remove all in time", show());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Removes the removable cgroups below a cgroup, the deepest first, until the time `end`. Returns
/// whether it removed any.
fn remove_below(path: &Path, end: Instant) -> rustix::io::Result<bool> {
    let Some(mut here) = open_top(path)? else { return Ok(true) };
    let mut levels = vec![below(here.as_fd())?];
    let mut names: Vec<CString> = Vec::new();
    let mut removed = false;
    while let Some(level) = levels.last_mut() {
        match level.pop() {
            Some(name) => {
                if drop_directory(&here, &name, &mut removed)? {
                    continue;
                }
                if Instant::now() > end {
                    break;
                }
                let Some(directory) = open(here.as_fd(), &name)? else { continue };
                levels.push(below(directory.as_fd())?);
                names.push(name);
                here = directory;
            }
            None => {
                levels.pop();
                let Some(name) = names.pop() else { break };
                here = parent(&here)?;
                drop_directory(&here, &name, &mut removed)?;
            }
        }
    }
    Ok(removed)
}

/// Returns false while processes or cgroups are in the directory.
fn drop_directory(
    directory: &OwnedFd,
    name: &CStr,
    removed: &mut bool,
) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) => {
            *removed = true;
            Ok(true)
        }
        Err(error) if is_gone(error) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(error) => Err(error),
    }
}
