//! Waits for an unfinished process that a container can hold up. The owner of a cgroup can freeze
//! the process. A neighbour in the same pid namespace, with the rights for it, can stop the process
//! (SIGSTOP). So each wait has a limit. Runs in the runtime process.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use rustix::event::PollFlags;
use rustix::process::Pid;

use crate::interrupt::{self, Watch, is_ready};
use crate::linux::cgroups::Freezers;
use crate::linux::namespaces;
use crate::sync::{Message, Socket};
use crate::{log, procfs};

/// How often the runtime process checks whether a silent process is held up.
const TICK: Duration = Duration::from_millis(100);

/// How long a process may be frozen or stopped without a break.
const HELD: Duration = Duration::from_secs(2);

/// How long a process may be frozen or stopped in all. A neighbour that may stop the process may
/// also let it run for a moment in between.
const HELD_IN_ALL: Duration = Duration::from_secs(20);

/// How long a process may take until its next message, if it waits for no other process.
const LONGEST: Duration = Duration::from_secs(30);

/// The limits of the wait for a message.
#[derive(Debug)]
pub(super) struct Patience {
    /// The files that tell whether the process is frozen.
    freezers: Freezers,
    /// None if the process waits for others that may take their time: hooks, or an agent that
    /// decides on system calls.
    longest: Option<Duration>,
}

impl Patience {
    /// For init, which runs hooks.
    pub(super) fn with_init(freezers: Freezers) -> Patience {
        Patience { freezers, longest: None }
    }

    /// For a process that joins a running container. `paused` means that the caller knows
    /// that the container is frozen, and waits until it is thawed. `agent` means that another
    /// process decides on the filter's calls.
    pub(super) fn with_new(freezers: Freezers, paused: bool, agent: bool) -> Patience {
        Patience {
            freezers: if paused { Freezers::default() } else { freezers },
            longest: Some(LONGEST).filter(|_| !paused && !agent),
        }
    }

    pub(super) fn receive(&self, socket: &Socket, pid: Pid) -> Result<Option<Message>> {
        loop {
            self.wait(socket, pid)?;
            let Some(message) = socket.receive()? else { return Ok(None) };
            if let Some(message) = message.unless_said() {
                return Ok(Some(message));
            }
        }
    }

    pub(super) fn receive_with(
        &self,
        socket: &Socket,
        pid: Pid,
    ) -> Result<(Option<Message>, Vec<OwnedFd>)> {
        loop {
            self.wait(socket, pid)?;
            let (message, files) = socket.receive_with()?;
            let Some(message) = message else { return Ok((None, files)) };
            if let Some(message) = message.unless_said() {
                return Ok((Some(message), files));
            }
        }
    }

    /// Waits for a message or the end of the stream.
    fn wait(&self, socket: &Socket, pid: Pid) -> Result<()> {
        let start = Instant::now();
        let mut held: Option<(Instant, Held)> = None;
        let mut held_in_all = Duration::ZERO;
        let (mut watch, mut turn) = (Watch::default(), start + interrupt::TURN);
        while !is_ready(socket.as_fd(), PollFlags::IN, TICK)? {
            if Instant::now() >= turn {
                watch.turn().context("wait for the other process")?;
                turn += interrupt::TURN;
            }
            // If the runtime process holds the other end of the socket too, the death of the
            // process does not end the stream.
            if procfs::stat(pid)?.is_none_or(|stat| stat.dead)
                && !is_ready(socket.as_fd(), PollFlags::IN, Duration::ZERO)?
            {
                bail!("the new process in the container was killed");
            }
            let now = self.what_holds(pid)?;
            if let Some(Held { reason, .. }) = &now {
                held_in_all += TICK;
                if held_in_all > HELD_IN_ALL {
                    bail!("the new process in the container is held up: {reason}, again and again")
                }
            }
            held = match (now, held) {
                (Some(now), Some((since, before))) if now == before => {
                    if since.elapsed() > HELD {
                        let reason = now.reason;
                        bail!("the new process in the container is held up: {reason}")
                    }
                    Some((since, before))
                }
                (now, _) => now.map(|now| (Instant::now(), now)),
            };
            if let Some(longest) = self.longest.filter(|longest| start.elapsed() > *longest) {
                bail!("the new process has said nothing for {} s", longest.as_secs());
            }
        }
        Ok(())
    }

    fn what_holds(&self, pid: Pid) -> Result<Option<Held>> {
        if self.freezers.are_closed() {
            return Ok(Some(Held { reason: "its cgroup is frozen", ran: None }));
        }
        if !procfs::stat(pid)?.is_some_and(|stat| stat.stopped) {
            return Ok(None);
        }
        Ok(Some(Held { reason: "a signal has stopped it", ran: procfs::switches(pid)? }))
    }
}

/// Reports over the socket pair of the new process: see [`namespaces::spawn`].
pub(super) struct Birth<'a> {
    /// The end of the runtime process.
    pub(super) ours: &'a Socket,
    /// The end of the new process, which its helper has too.
    pub(super) theirs: &'a Socket,
    pub(super) patience: &'a Patience,
}

impl namespaces::Birth for Birth<'_> {
    fn tell(&self, born: Result<Pid>) {
        let failed = |error: Error| Message::Failed(format!("{error:#}"));
        let message = born.map_or_else(failed, |pid| Message::Init(pid.as_raw_nonzero().get()));
        // If this fails, the runtime process reads the end of the stream.
        let _ = self.theirs.send(&message);
    }

    fn hear(&self, helper: Pid) -> Result<Pid> {
        // The new process may report a step of its own before the runtime process knows the new
        // process.
        log::hold();
        match self.patience.receive(self.ours, helper)? {
            Some(Message::Init(pid)) => Pid::from_raw(pid).context("the helper sent no process id"),
            Some(Message::Failed(text)) => bail!(text),
            other => bail!("the process that joins namespaces sent {other:?}"),
        }
    }
}

/// The reason why a process is held up. Two equal results mean one and the same stop: a process
/// under `strace` stops at each system call, but runs in between.
#[derive(Debug, Eq, PartialEq)]
struct Held {
    reason: &'static str,
    /// How often the process had run: [`procfs::switches`].
    ran: Option<u64>,
}
