//! Notification of processes that the kernel killed for lack of memory.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::EventfdFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::{Cgroup, Version, v1, write};

/// The source of the notifications, and the last count.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Readable after an event.
    descriptor: OwnedFd,
    /// The file with the count.
    count: PathBuf,
    version: Version,
    last: u64,
}

impl Cgroup {
    /// Returns None if nothing counts the kills: without a cgroup, or without a memory controller.
    pub(crate) fn watch_oom(&self) -> Result<Option<Watch>> {
        let watch = match self.version {
            Version::V2 => self.paths.first().map(|path| path.join("memory.events")),
            Version::V1 => {
                v1::of_controller(&self.paths, "memory").map(|path| path.join("memory.oom_control"))
            }
        };
        let Some(count) = watch.filter(|file| file.exists()) else { return Ok(None) };
        let show = || format!("watch `{}`", count.display());
        let descriptor = match self.version {
            Version::V2 => {
                let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
                let descriptor = inotify::init(flags).with_context(show)?;
                inotify::add_watch(&descriptor, &count, WatchFlags::MODIFY).with_context(show)?;
                descriptor
            }
            Version::V1 => {
                // kernel documentation, `cgroup-v1/memory.rst`, "OOM Control"
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let descriptor = rustix::event::eventfd(0, flags).with_context(show)?;
                let control = File::open(&count).with_context(show)?;
                let line = format!("{} {}", descriptor.as_raw_fd(), control.as_raw_fd());
                write(&count.with_file_name("cgroup.event_control"), &line)?;
                descriptor
            }
        };
        let mut watch = Watch { descriptor, count, version: self.version, last: 0 };
        watch.last = watch.read("oom_kill ");
        Ok(Some(watch))
    }
}

impl Cgroup {
    /// Whether a process of the cgroup was killed for lack of memory, by the cgroup's own limit and
    /// not by the host's.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let Ok(Some(watch)) = self.watch_oom() else { return false };
        let reached = match self.version {
            Version::V2 => watch.read("max "),
            Version::V1 => {
                let failures = fs::read_to_string(watch.count.with_file_name("memory.failcnt"));
                failures.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
            }
        };
        watch.last > 0 && reached > 0
    }
}

/// How long the kernel may take from the notification to the count.
const COUNTING: Duration = Duration::from_millis(500);

impl Watch {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The number of processes that were killed since the last call. With
    /// `memory.disableOOMKiller`, processes that wait instead count too. A missing cgroup reports
    /// nothing more.
    pub(crate) fn killed(&mut self) -> u64 {
        let mut events = [0; 4096];
        let mut noticed = false;
        while matches!(rustix::io::read(&self.descriptor, &mut events), Ok(1..)) {
            noticed = true;
        }
        let mut now = self.read("oom_kill ");
        if noticed && self.version == Version::V1 {
            if self.read("oom_kill_disable ") == 1 {
                return 1;
            }
            // The kernel first notifies, then looks for a process to kill, and then counts.
            let end = Instant::now() + COUNTING;
            while now == self.last && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
                now = self.read("oom_kill ");
            }
        }
        let killed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        killed
    }

    /// A line of the file. Both versions have `oom_kill` (Linux 4.13).
    fn read(&self, key: &str) -> u64 {
        let text = fs::read_to_string(&self.count).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}
