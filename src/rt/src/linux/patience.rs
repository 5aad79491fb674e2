//! Waiting for a process that is half made, and that a container can hold up: who has a cgroup can
//! freeze it, and a neighbour in the same pid namespace, with the rights for it, can stop it
//! (SIGSTOP). No such wait is without an end. Runs in the caller's process.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::PollFlags;
use rustix::process::Pid;

use crate::interrupt::{self, Watch, is_ready};
use crate::linux::cgroups::Freezers;
use crate::procfs;
use crate::sync::{Message, Socket};

/// How often rt looks whether a process that says nothing is held up.
const TICK: Duration = Duration::from_millis(100);

/// How long a process may be frozen or stopped.
const HELD: Duration = Duration::from_secs(2);

/// How long in all, if it runs for a moment in between: who may stop it may let it go on, too.
const HELD_IN_ALL: Duration = Duration::from_secs(20);

/// How long a process may take to its next message, when it works for nobody else.
const LONGEST: Duration = Duration::from_secs(30);

/// What ends the wait for a message.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Where it is said that the process is frozen.
    freezers: Freezers,
    /// None where the process waits for others that may take their time: hooks, an agent that
    /// decides on system calls.
    longest: Option<Duration>,
}

impl Patience {
    /// With init, which runs hooks.
    pub(crate) fn with_init(freezers: Freezers) -> Patience {
        Patience { freezers, longest: None }
    }

    /// With a process that joins a container which runs. `paused` is for a caller who knows that it
    /// is frozen and waits until it is not, and `agent` for a filter that lets another process
    /// decide.
    pub(crate) fn with_new(freezers: Freezers, paused: bool, agent: bool) -> Patience {
        Patience {
            freezers: if paused { Freezers::default() } else { freezers },
            longest: Some(LONGEST).filter(|_| !paused && !agent),
        }
    }

    pub(crate) fn receive(&self, socket: &Socket, pid: Pid) -> Result<Option<Message>> {
        loop {
            self.wait(socket, pid)?;
            let Some(message) = socket.receive()? else { return Ok(None) };
            if let Some(message) = message.unless_said() {
                return Ok(Some(message));
            }
        }
    }

    pub(crate) fn receive_with(
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

    /// Until there is a message, or the end of the stream.
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
            // Where this process has the other end of the socket too, that is not the end of a
            // stream.
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

/// What holds a process up. Two looks that find the same have found one stop: a process under
/// `strace` stops at each system call, and runs in between.
#[derive(Debug, Eq, PartialEq)]
struct Held {
    reason: &'static str,
    /// How often it had run: [`procfs::switches`].
    ran: Option<u64>,
}
