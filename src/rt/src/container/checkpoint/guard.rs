//! The guard: a process that kills all processes that CRIU has restored, if `rt` or CRIU ends
//! before `rt` has checked them.
//!
//! Restored processes run as soon as no process traces them any more, with whatever the images have
//! given them. CRIU lets go of them at its end. It also does so when its last notification is
//! answered, or can no longer be answered, and it ignores the answer. So:
//!
//! - The guard holds `rt`'s end of CRIU's socket too, and so does CRIU itself. Without `rt`, CRIU
//!   waits at its next notification, even if somebody has it continue (SIGCONT).
//! - The end of `rt` stops CRIU, and does not end it (`PR_SET_PDEATHSIG`). So the processes that
//!   CRIU traces stay stopped, even if nobody is left. The guard kills them, and then kills the
//!   container's cgroup with CRIU in it.
//! - If CRIU ends, the guard kills the cgroup at once, whatever `rt` does at that moment.
//!
//! `rt` dismisses the guard when everything is checked and limited, before it answers the last
//! notification. If `rt`'s end of the pipe closes before that, the restore has failed, and the
//! guard kills the rest of it, too. The guard has a session of its own, so no signal of a terminal
//! reaches it, and nothing of the container does. A kill of `rt`'s whole cgroup reaches the guard
//! too. Then CRIU stays stopped, or waits, until somebody deletes the container.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::container::checkpoint::restored;
use crate::container::checkpoint::yards::Yards;
use crate::interrupt;
use crate::linux::cgroups::Cgroup;
use crate::linux::process;
use crate::{log, procfs, syscall};

/// With this score, the kernel does not kill a process when memory is short
/// (`proc_pid_oom_score_adj(5)`).
const NEVER: i32 = -1000;

/// How long CRIU may take to stop. It can be in a kernel call that does not end.
const STOPPING: Duration = Duration::from_secs(1);

/// How long the guard may take. This is more than the time in which `rt` can freeze and signal a
/// cgroup.
const KILLING: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(in crate::container) struct Guard {
    /// None if the guard has been dismissed, or has seen the end of the pipe.
    pipe: Option<OwnedFd>,
    pid: Pid,
    pidfd: OwnedFd,
    /// The processes that the guard kills.
    victims: Victims,
}

/// CRIU, and the cgroup into which it restores.
#[derive(Debug)]
struct Victims {
    criu: Pid,
    criu_fd: OwnedFd,
    cgroup: Cgroup,
}

impl Guard {
    /// Starts a guard, before CRIU gets any request. `socket` is this process's end of CRIU's.
    pub(in crate::container) fn start(
        criu: Pid,
        criu_fd: BorrowedFd<'_>,
        socket: BorrowedFd<'_>,
        cgroup: &Cgroup,
        yards: &Yards,
    ) -> Result<Guard> {
        let criu_fd = criu_fd.try_clone_to_owned().context("duplicate a descriptor")?;
        let victims = Victims { criu, criu_fd, cgroup: cgroup.clone() };
        let (theirs, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        let Some(pid) = syscall::clone3(0, None).context("make a guard for the restore")? else {
            drop(pipe);
            log::end();
            // The lock on the container's name is among those that it closes: `delete` need not
            // wait for a guard that somebody has stopped.
            let kept = [theirs.as_fd(), victims.criu_fd.as_fd(), socket, yards.as_fd()];
            let watched = match syscall::close_all_but(3, &kept) {
                Ok(()) => watch(&theirs, &victims, yards),
                Err(error) => victims.end().and(Err(error.into())),
            };
            syscall::exit_now(i32::from(watched.is_err()));
        };
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("open a pidfd of the guard")?;
        Ok(Guard { pipe: Some(pipe), pid, pidfd, victims })
    }

    /// Ends the guard, when all restored processes may run.
    pub(in crate::container) fn dismiss(mut self) -> Result<()> {
        let pipe = self.pipe.as_ref().context("the guard was dismissed already")?;
        let told = rustix::io::write(pipe, &[0]);
        told.context("dismiss the guard: it was killed")?;
        let ended = self.ends().context("dismiss the guard")?;
        ensure!(ended, "the guard of the restore has failed, or was killed");
        self.pipe = None;
        Ok(())
    }

    /// Whether the guard has ended successfully and in time.
    fn ends(&self) -> Result<bool> {
        if !interrupt::is_ready(self.pidfd.as_fd(), PollFlags::IN, KILLING)? {
            let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        }
        let waited = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        })?;
        Ok(waited.is_some_and(|(_, status)| status.exit_status() == Some(0)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.pipe.take().is_none() {
            return;
        }
        if !matches!(self.ends(), Ok(true))
            && let Err(error) = self.victims.end()
        {
            tracing::debug!("kill what was restored: {error:#}");
        }
    }
}

/// Waits until `rt` ends, CRIU ends, or `rt` dismisses the guard. Runs in the guard.
fn watch(pipe: &OwnedFd, victims: &Victims, yards: &Yards) -> Result<()> {
    // The guard blocks the signals that `rt` holds back. This call cannot fail: a process that its
    // parent has just made does not lead a process group.
    let _ = rustix::process::setsid();
    // If the guard may do so: not every root of a host has this right.
    let _ = process::set_oom_score_adj(None, NEVER);
    loop {
        let mut polled =
            [PollFd::new(pipe, PollFlags::IN), PollFd::new(&victims.criu_fd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // The guard cannot watch, so no process may run on.
            Err(_) => break,
        }
        if polled[0].revents().is_empty() {
            break;
        }
        match rustix::io::read(pipe, &mut [0]) {
            Ok(1..) => return Ok(()),
            Err(Errno::INTR) => {}
            _ => break,
        }
    }
    let ended = victims.end();
    // `rt` does this too, if it is still running. An ended process has no mounts any more.
    if matches!(interrupt::is_ready(victims.criu_fd.as_fd(), PollFlags::IN, STOPPING), Ok(true)) {
        let _ = yards.remove_new();
    }
    ended
}

impl Victims {
    fn end(&self) -> Result<()> {
        // A stopped CRIU lets go of no process.
        let _ = syscall::pidfd_send_signal(self.criu_fd.as_fd(), libc::SIGSTOP);
        let traced = if self.stops() { restored::kill_traced_by(self.criu) } else { Ok(()) };
        let rest = if self.cgroup.has_none() { Ok(()) } else { self.cgroup.signal(libc::SIGKILL) };
        self.cgroup.thaw();
        let _ = syscall::pidfd_send_signal(self.criu_fd.as_fd(), libc::SIGKILL);
        traced.and(rest)
    }

    /// Returns false if CRIU has ended. Then it traces no process.
    fn stops(&self) -> bool {
        let end = Instant::now() + STOPPING;
        loop {
            let stopped =
                procfs::stat(self.criu).is_ok_and(|stat| stat.is_some_and(|it| it.stopped));
            let turn = if stopped { Duration::ZERO } else { Duration::from_millis(1) };
            let ended = interrupt::is_ready(self.criu_fd.as_fd(), PollFlags::IN, turn);
            if matches!(ended, Ok(true)) {
                return false;
            }
            if stopped || Instant::now() >= end {
                return true;
            }
        }
    }
}

/// Makes the kernel choose other processes when memory is short: otherwise the processes that CRIU
/// traces would run on. Runs only when the first process exists: all other processes descend from
/// it, and it would otherwise inherit the score.
pub(in crate::container) fn spare(criu: Pid) {
    if let Err(error) = process::set_oom_score_adj(Some(criu), NEVER) {
        tracing::debug!("keep `criu` from being killed for memory: {error:#}");
    }
}
