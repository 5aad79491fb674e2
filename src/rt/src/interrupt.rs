//! Waits that a termination signal ends: for the other processes that make a container, and for
//! programs of the host.
//!
//! The runtime process may have blocked signals to forward them to the container's program (`run`
//! and `exec` in the foreground). A termination signal is for that program, if the program starts
//! soon. Otherwise the signal ends the wait.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::BorrowedFd;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::signals::{self, ENDING, is_interrupted};
use crate::syscall;

/// How often a waiting process checks for signals.
pub(crate) const TURN: Duration = Duration::from_secs(1);

/// What a waiting process has seen of signals.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    asked: bool,
}

impl Watch {
    /// Call this when nothing has come in a [`TURN`]. Fails if a termination signal was pending a
    /// turn ago, and still is.
    pub(crate) fn turn(&mut self) -> Result<()> {
        let asked_before = std::mem::replace(&mut self.asked, is_interrupted());
        ensure!(!(asked_before && self.asked), "stopped by a termination signal");
        Ok(())
    }
}

/// Call this often during work whose length somebody else decides. Fails if a termination signal
/// was pending a [`TURN`] ago or longer, and still is.
pub(crate) fn glance() -> Result<()> {
    thread_local! {
        /// When this process looked for signals, and whether one was pending.
        static LAST: Cell<Option<(Instant, bool)>> = const { Cell::new(None) };
    }
    let (now, last) = (Instant::now(), LAST.get());
    if last.is_some_and(|(then, _)| now - then < TURN) {
        return Ok(());
    }
    let mut watch = Watch { asked: last.is_some_and(|(_, asked)| asked) };
    watch.turn()?;
    LAST.set(Some((now, watch.asked)));
    Ok(())
}

/// Holds termination signals back while this process must not end half-way. This does not affect
/// signals that are blocked for the container's program.
#[derive(Debug)]
pub(crate) struct HeldBack(Vec<i32>);

impl HeldBack {
    pub(crate) fn new() -> HeldBack {
        HeldBack(syscall::block_too(&ENDING))
    }

    /// Fails if a signal has come that would have ended this process.
    pub(crate) fn refuse_interrupted(&self) -> Result<()> {
        ensure!(!syscall::pending(&self.0), "stopped by a termination signal");
        Ok(())
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        syscall::unblock(&self.0);
    }
}

/// Takes the pending termination signals, so that they do not also end the cleanup, such as a hook.
pub(crate) fn forget() {
    let taken = syscall::signalfd(&ENDING).map_err(anyhow::Error::from);
    if let Err(error) = taken.and_then(|taken| signals::read(&taken)) {
        tracing::debug!("take the signals that came: {error:#}");
    }
}

/// Waits for the end of a child, at most as long as the limit.
pub(crate) fn wait_for(pid: Pid, limit: Option<Duration>) -> Result<()> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd")?;
    let begun = Instant::now();
    let mut watch = Watch::default();
    loop {
        let left = limit.map_or(TURN, |limit| limit.saturating_sub(begun.elapsed()).min(TURN));
        let turn = Timespec::try_from(left)?;
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&turn)) {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for its end"),
        }
        if let Some(limit) = limit.filter(|limit| begun.elapsed() >= *limit) {
            bail!("it took longer than {} s", limit.as_secs());
        }
        watch.turn()?;
    }
}

/// Whether the file becomes ready within the limit.
pub(crate) fn is_ready(file: BorrowedFd<'_>, what: PollFlags, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        match rustix::event::poll(&mut [PollFd::new(&file, what)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the other process"),
        }
    }
}

/// How long a program of the host may take to read the processes or files of others.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs such a program and returns its output. A container can block the program: `ps(1)` reads the
/// memory of every process, which may be a file of a filesystem that does not answer. The program
/// writes to memory files, not to pipes, so that this process can leave it alone. A process that is
/// blocked in the kernel does not even die.
pub(crate) fn output(mut command: Command) -> Result<Output> {
    let memory = || rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC).map(File::from);
    let (mut stdout, mut stderr) = (memory()?, memory()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn()?;
    if let Err(error) = wait_for(Pid::from_child(&child), Some(PATIENCE)) {
        child.kill()?;
        return Err(error);
    }
    let status = child.wait()?;
    let read = |file: &mut File| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    Ok(Output { status, stdout: read(&mut stdout)?, stderr: read(&mut stderr)? })
}
