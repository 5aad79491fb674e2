//! A process that kills all that CRIU has restored, should `rt` or CRIU end before it was looked at.
//!
//! Restored processes run as soon as nobody traces them any more, with whatever the images have
//! given them. CRIU lets go of them at its end, and when its last notice is answered, or can no
//! longer be answered: it does not ask what the answer is. So:
//!
//! - The guard holds `rt`'s end of CRIU's socket too. Without `rt`, CRIU waits at its next notice.
//! - CRIU does not end with `rt` by itself (`PR_SET_PDEATHSIG`). The guard stops it, kills what it
//!   traces, and then the container's cgroup with CRIU in it.
//! - If CRIU ends, the guard kills the cgroup at once, whatever `rt` does at that moment.
//!
//! `rt` dismisses the guard when all is checked and limited, before it answers the last notice.
//! Otherwise the end of `rt`'s pipe means that nothing was: of a failed restore the guard kills the
//! rest, too. It has a session of its own, so that no signal of a terminal reaches it, and nothing
//! of the container's. Who kills both, `rt` and its guard, has to be root of the host.
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
use crate::{procfs, syscall};

/// The kernel chooses no such process when memory is short (`proc_pid_oom_score_adj(5)`).
const NEVER: i32 = -1000;

/// How long CRIU may take to stop; it can be in a call to the kernel that does not end.
const STOPPING: Duration = Duration::from_secs(1);

/// How long the guard may take. More than the time in which a cgroup can be frozen and signalled.
const KILLING: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(in crate::container) struct Guard {
    /// None when it was dismissed, or has seen the end of it.
    pipe: Option<OwnedFd>,
    pid: Pid,
    pidfd: OwnedFd,
    /// What it kills.
    victims: Victims,
}

/// CRIU, and the cgroup that it restores into.
#[derive(Debug)]
struct Victims {
    criu: Pid,
    criu_fd: OwnedFd,
    cgroup: Cgroup,
}

impl Guard {
    /// Starts one, before CRIU is asked for anything.
    pub(in crate::container) fn start(
        criu: Pid,
        criu_fd: BorrowedFd<'_>,
        cgroup: &Cgroup,
        yards: &Yards,
    ) -> Result<Guard> {
        let criu_fd = criu_fd.try_clone_to_owned().context("duplicate a descriptor")?;
        let victims = Victims { criu, criu_fd, cgroup: cgroup.clone() };
        let (theirs, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        let Some(pid) = syscall::clone3(0, None).context("make a guard for the restore")? else {
            drop(pipe);
            syscall::exit_now(i32::from(watch(&theirs, &victims, yards).is_err()));
        };
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("open a pidfd of the guard")?;
        Ok(Guard { pipe: Some(pipe), pid, pidfd, victims })
    }

    /// Ends it, when all that was restored may run.
    pub(in crate::container) fn dismiss(mut self) -> Result<()> {
        let pipe = self.pipe.as_ref().context("the guard was dismissed already")?;
        let told = rustix::io::write(pipe, &[0]);
        told.context("dismiss the guard: it was killed")?;
        let ended = self.ends().context("dismiss the guard")?;
        ensure!(ended, "the guard of the restore has failed, or was killed");
        self.pipe = None;
        Ok(())
    }

    /// Whether it has ended well, and in time.
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

/// Waits for the end of `rt`, or of CRIU, or to be dismissed. Runs in the guard.
fn watch(pipe: &OwnedFd, victims: &Victims, yards: &Yards) -> Result<()> {
    // The signals that `rt` holds back are held back here too. This cannot fail: a process that its
    // parent has just made leads no process group.
    let _ = rustix::process::setsid();
    // Where it may: not every root of a host has this right.
    let _ = process::set_oom_score_adj(None, NEVER);
    loop {
        let mut polled =
            [PollFd::new(pipe, PollFlags::IN), PollFd::new(&victims.criu_fd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // It cannot watch: nothing may run on.
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
    // `rt` does it too, if it is there. What has ended has no mounts any more.
    if matches!(interrupt::is_ready(victims.criu_fd.as_fd(), PollFlags::IN, STOPPING), Ok(true)) {
        let _ = yards.remove_new();
    }
    ended
}

impl Victims {
    fn end(&self) -> Result<()> {
        // Stopped, CRIU lets go of nothing.
        let _ = syscall::pidfd_send_signal(self.criu_fd.as_fd(), libc::SIGSTOP);
        let traced = if self.stops() { restored::kill_traced_by(self.criu) } else { Ok(()) };
        let rest = if self.cgroup.has_none() { Ok(()) } else { self.cgroup.signal(libc::SIGKILL) };
        self.cgroup.thaw();
        let _ = syscall::pidfd_send_signal(self.criu_fd.as_fd(), libc::SIGKILL);
        traced.and(rest)
    }

    /// False if CRIU has ended: then it traces nothing.
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

/// Has the kernel choose others when memory is short: what CRIU traces would run on. Only once the
/// first process is there, which all others come from, and which would inherit it.
pub(in crate::container) fn spare(criu: Pid) {
    if let Err(error) = process::set_oom_score_adj(Some(criu), NEVER) {
        tracing::debug!("keep `criu` from being killed for memory: {error:#}");
    }
}
