//! procfs: whether a file is on it, and its information about other processes (`proc(5)`).
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::syscall::{self, MemoryMap};

/// Whether a file is on a procfs, and not on a filesystem that a container has mounted there.
pub(crate) fn is_procfs(file: impl AsFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == PROC_SUPER_MAGIC)
}

/// The fields of `/proc/PID/stat` that `rt` reads (`proc_pid_stat(5)`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stat {
    /// The process has ended, and exists only until its parent has read its exit status. A process
    /// of which only the first thread has ended is alive.
    pub(crate) dead: bool,
    /// Stopped by a signal.
    pub(crate) stopped: bool,
    pub(crate) parent: i32,
    pub(crate) start_time: u64,
    /// The wait status of a dead process (`wait(2)`).
    pub(crate) status: i32,
}

/// Returns `None` if the process certainly does not exist. An unreadable file is an error, because
/// a living container must not be taken for an ended one.
pub(crate) fn stat(pid: Pid) -> Result<Option<Stat>> {
    let path = format!("/proc/{pid}/stat");
    let show = || format!("read `{path}`");
    match read_line(&path, &mut [0; 1024]) {
        Ok(line) => {
            let stat = parse_stat(&line);
            Ok(Some(stat.with_context(|| format!("{}: it is not a line of procfs", show()))?))
        }
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(error) => Err(error).with_context(show),
    }
}

/// Where the kernel keeps the parts of this process's memory (`proc_pid_stat(5)`).
pub(crate) fn own_memory() -> Option<MemoryMap> {
    let mut text = [0; 1024];
    parse_memory(&read_line("/proc/self/stat", &mut text).ok()?)
}

/// One read is enough: a line has less than 400 bytes.
fn read_line<'a>(path: &str, text: &'a mut [u8; 1024]) -> rustix::io::Result<Cow<'a, str>> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&file, &mut text[..])?;
    Ok(String::from_utf8_lossy(&text[..length]))
}

fn parse_memory(text: &str) -> Option<MemoryMap> {
    // The program's name, in parentheses, can contain anything, parentheses and spaces included.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    // The fields from the third one on are left.
    let mut skip = |number| fields.nth(number)?.parse().ok();
    Some(MemoryMap {
        start_code: skip(26 - 3)?,
        end_code: skip(0)?,
        start_stack: skip(0)?,
        start_data: skip(45 - 29)?,
        end_data: skip(0)?,
        start_brk: skip(0)?,
        brk: 0,
        arg_start: skip(0)?,
        arg_end: skip(0)?,
        env_start: skip(0)?,
        env_end: skip(0)?,
    })
}

/// The process that has locked a file (`flock(2)`), if it still has the file open: after its end, a
/// child could keep the lock, and its number could be another process's (`proc_locks(5)`).
pub(crate) fn locker(file: &OwnedFd) -> Result<Option<OwnedFd>> {
    let ours = rustix::fs::fstat(file)?;
    let is_it = |path: &Path| {
        rustix::fs::stat(path)
            .is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
    };
    let has_it = |pid: Pid| -> bool {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.map(|file| file.path()).any(|file| is_it(&file))
    };
    let locks = fs::read_to_string("/proc/locks").context("read `/proc/locks`")?;
    for line in locks.lines() {
        // A line of a process that waits for the lock has one field more. The device may not be
        // that of `stat(2)`.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[_, "FLOCK", _, _, pid, place, ..] = fields.as_slice() else { continue };
        let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else { continue };
        if place.rsplit(':').next() != Some(&ours.st_ino.to_string()) {
            continue;
        }
        // Once the descriptor is open, the number cannot become another process's unnoticed.
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            && has_it(pid)
            && syscall::pidfd_send_signal(pidfd.as_fd(), 0).is_ok()
        {
            return Ok(Some(pidfd));
        }
    }
    Ok(None)
}

/// How often the first thread of a process has given up a processor. Each time that the thread has
/// run counts at least once (`proc_pid_status(5)`). Returns `None` if the process is gone.
pub(crate) fn switches(pid: Pid) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/status");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("read `{path}`")),
    };
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(':')?;
        name.ends_with("ctxt_switches").then(|| count.trim().parse::<u64>().ok())?
    });
    Ok(Some(counts.sum()))
}

/// The parent of a process, or `None` if the process is gone.
pub(crate) fn parent(pid: Pid) -> Result<Option<i32>> {
    Ok(stat(pid)?.map(|stat| stat.parent))
}

/// Whether `/proc` hides a living process that could be a container's. `hidepid` hides the
/// processes of others from an ordinary user, who may not signal them either.
pub(crate) fn is_hidden(pidfd: &OwnedFd) -> Result<bool> {
    if syscall::pidfd_send_signal(pidfd.as_fd(), 0).is_err() {
        return Ok(false);
    }
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    let ended = rustix::event::poll(&mut polled, Some(&Timespec::default()));
    Ok(ended.context("ask whether a process has ended")? == 0)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The program's name, in parentheses, can contain anything, parentheses and spaces included.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let (ended, stopped) = (matches!(state, "Z" | "X" | "x"), matches!(state, "T" | "t"));
    let parent = fields.next()?.parse().ok()?;
    // The state is that of the first thread, which can end before the others. The fields are 20, 22
    // and 52.
    let threads: u64 = fields.nth(15)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    let status = fields.nth(29).and_then(|status| status.parse().ok()).unwrap_or(0);
    Some(Stat { dead: ended && threads <= 1, stopped, parent, start_time, status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_process_is_where_it_says() {
        let map = own_memory().expect("a line of procfs");
        let function = (own_memory as fn() -> _ as usize) as u64;
        assert!((map.start_code..map.end_code).contains(&function));
        assert!(map.start_data < map.end_data && map.end_data <= map.start_brk);
        assert!(map.start_stack < map.arg_start && map.arg_start < map.arg_end);
        assert!(map.arg_end <= map.env_start && map.env_start < map.env_end);
        assert_eq!(parse_memory("7 (a) b) S 1 2"), None);
    }

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        for (text, threads, dead) in [
            ("7 (sh) S", 1, false),
            ("7 (a) b) S (c) R", 1, false),
            ("7 (x) Z", 1, true),
            ("7 (x) Z", 2, false),
        ] {
            let rest = format!("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18 4711 20 21");
            assert_eq!(
                parse_stat(&format!("{text} {rest}")),
                Some(Stat { dead, stopped: false, parent: 1, start_time: 4711, status: 0 }),
                "{text}"
            );
        }
        assert_eq!(parse_stat("7 (sh) S 1"), None);
    }
}
