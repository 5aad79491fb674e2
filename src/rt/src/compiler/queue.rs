//! The order in which modules are compiled. Of all workers on this host, one or two have a turn.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::slot::{DIRECTORY, SECOND, Slot, open};
use crate::engine::cache;
use crate::syscall::{self, Lock};

/// A worker that wants to compile a module.
pub(super) struct Applicant<'a> {
    /// The tenants for whom the module is compiled. The turn of any of them will do.
    pub(super) tenants: &'a dyn Fn() -> Vec<u64>,
    /// Whether a process waits for the module.
    pub(super) is_awaited: &'a dyn Fn() -> bool,
    /// The size of the module.
    pub(super) bytes: u64,
    /// Whether the worker had the second slot, and gave way there.
    pub(super) gave_way: bool,
    /// How long a process that waits for a compiler waits for others.
    pub(super) wait: Duration,
}

/// The queue of all workers on this host that want to compile, as one of them sees it.
///
/// | file | its locks |
/// |---|---|
/// | `@lock` in each slot | the worker that has the slot |
/// | `@urgent` | shared by all workers for which a process waits, while they wait or compile |
/// | `@tenants` | the byte of each tenant that has a slot, so no tenant has both slots |
/// | `@queue` | shared, the byte of each worker whose tenants have no slot: the lowest first |
///
/// Each lock ends with its process.
struct Queue {
    slots: [Slot; 2],
    urgent: OwnedFd,
    tenants: OwnedFd,
    queue: OwnedFd,
    is_urgent: bool,
    /// The locked byte in `@queue`.
    at: Option<u64>,
    /// Since when a slot has been free that an earlier worker in the queue did not take.
    free: Option<Instant>,
}

/// While this value exists, the process has one of the slots, and its tenant cannot have the
/// other.
pub(super) struct Turn {
    pub(super) slot: Slot,
    pub(super) is_urgent: bool,
    is_second: bool,
    begun: Instant,
    /// How long the worker may have the second slot while others wait.
    share: Duration,
    queue: OwnedFd,
    urgent: OwnedFd,
    _locks: [OwnedFd; 2],
}

impl Turn {
    /// Whether the worker must give its slot to another worker. A background worker gives way to a
    /// worker for which a process waits. A worker in the second slot gives way to another tenant
    /// after half of the time that a start waits for others.
    pub(super) fn is_wanted(&self) -> Result<bool> {
        if !self.is_urgent {
            return is_urgent(&self.urgent);
        }
        let is_long = self.is_second && self.begun.elapsed() >= self.share;
        let waits = || syscall::locked(self.queue.as_fd(), Lock::Write, 0, Queue::LAST);
        Ok(is_long && waits().context("ask whether somebody waits")?.is_some())
    }
}

fn is_urgent(urgent: &OwnedFd) -> Result<bool> {
    let locked = syscall::locked(urgent.as_fd(), Lock::Write, 0, 1);
    Ok(locked.context("ask whether somebody waits")?.is_some())
}

/// Waits for a turn to compile, until `end` at most. Workers for which a process waits come first.
/// Returns `None` if there was no turn until then.
pub(super) fn turn(who: &Applicant<'_>, end: Instant) -> Result<Option<Turn>> {
    let mut queue = Queue::open()?;
    loop {
        let is_awaited = (who.is_awaited)();
        queue.set_urgent(is_awaited)?;
        let got = if is_awaited {
            queue.try_urgent(who)?
        } else if is_urgent(&queue.urgent)? {
            None
        } else {
            queue.slots[0].take()?.map(|lock| (0, lock))
        };
        if let Some((number, lock)) = got {
            let Queue { slots: [first, second], urgent, tenants, queue, is_urgent, .. } = queue;
            return Ok(Some(Turn {
                slot: if number == 0 { first } else { second },
                is_urgent,
                is_second: number > 0,
                begun: Instant::now(),
                share: who.wait / 2,
                queue,
                urgent,
                _locks: [lock, tenants],
            }));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(cache::TURN);
    }
}

impl Queue {
    /// Beyond the bytes of all other workers: the workers that had the second slot, to which no
    /// worker gives way.
    const LAST: u64 = 1 << 60;

    fn open() -> Result<Queue> {
        let slots = [Slot::new("")?, Slot::new(SECOND)?];
        let [urgent, tenants, queue] =
            ["@urgent", "@tenants", "@queue"].map(|name| open(&Path::new(DIRECTORY).join(name)));
        let (urgent, tenants, queue) = (urgent?, tenants?, queue?);
        Ok(Queue { slots, urgent, tenants, queue, is_urgent: false, at: None, free: None })
    }

    fn set_urgent(&mut self, is_urgent: bool) -> Result<()> {
        if is_urgent != self.is_urgent {
            let lock = if is_urgent { Lock::Read } else { Lock::Free };
            syscall::lock(self.urgent.as_fd(), lock, 0, 1).context("say that somebody waits")?;
            self.is_urgent = is_urgent;
        }
        if !is_urgent {
            self.leave()?;
        }
        Ok(())
    }

    /// Takes one of the slots, if it is this worker's turn.
    fn try_urgent(&mut self, who: &Applicant<'_>) -> Result<Option<(usize, OwnedFd)>> {
        let has_place = |tenant: &u64| -> Result<bool> {
            let locked = syscall::locked(self.tenants.as_fd(), Lock::Write, *tenant, 1);
            Ok(locked.context("ask who compiles")?.is_some())
        };
        let mut without = None;
        for tenant in (who.tenants)() {
            if !has_place(&tenant)? {
                without = Some(tenant);
                break;
            }
        }
        let Some(tenant) = without else {
            // All of the worker's tenants have a slot, and no tenant gets a second one. When one
            // of them no longer has a slot, this worker is behind all that wait by then.
            self.leave()?;
            return Ok(None);
        };
        let at = self.enter(who)?;
        /// How long a free slot is left to an earlier worker, which may be stopped.
        const GRACE: Duration = Duration::from_millis(500);
        let numbers = if who.gave_way { 0..1 } else { 0..2 };
        for number in numbers {
            let Some(lock) = self.slots[number].take()? else { continue };
            let first = syscall::locked(self.queue.as_fd(), Lock::Write, 0, at);
            let is_first = at == 0 || first.context("ask who is before")?.is_none();
            if !is_first && self.free.get_or_insert_with(Instant::now).elapsed() < GRACE {
                return Ok(None);
            }
            match syscall::lock(self.tenants.as_fd(), Lock::Write, tenant, 1) {
                Ok(()) => {}
                // Another worker of the same tenant was faster.
                Err(Errno::AGAIN | Errno::ACCESS) => return Ok(None),
                Err(error) => return Err(error).context("take a turn"),
            }
            self.leave()?;
            return Ok(Some((number, lock)));
        }
        self.free = None;
        Ok(None)
    }

    /// Enters the queue, if the worker is not in it yet. Workers go in the order of their arrival,
    /// with one exception. A small module goes before a large one that came a little earlier: by at
    /// most half of the time that the large one waits.
    fn enter(&mut self, who: &Applicant<'_>) -> Result<u64> {
        /// Slower than a compiler is for most modules.
        const BYTES_PER_MILLISECOND: u64 = 256;
        if let Some(at) = self.at {
            return Ok(at);
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(Queue::LAST);
        let now = milliseconds(Duration::try_from(now).unwrap_or_default());
        let behind = (who.bytes / BYTES_PER_MILLISECOND).min(milliseconds(who.wait / 2));
        let at = now + behind + if who.gave_way { Queue::LAST } else { 0 };
        syscall::lock(self.queue.as_fd(), Lock::Read, at, 1).context("enter the queue")?;
        self.at = Some(at);
        Ok(at)
    }

    fn leave(&mut self) -> Result<()> {
        if let Some(at) = self.at.take() {
            syscall::lock(self.queue.as_fd(), Lock::Free, at, 1).context("leave the queue")?;
        }
        self.free = None;
        Ok(())
    }
}
