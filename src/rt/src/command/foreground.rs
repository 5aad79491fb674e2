//! The foreground part of `run` and `exec`: waits for the program, forwards signals and, with a
//! terminal, its input and output. Ends with the program's exit code.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Process;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::linux::namespaces::Ending;
use crate::linux::sd_notify::Relay;
use crate::linux::terminal;
use crate::{signals, syscall};

/// The forwarded signals: all by which a process can be asked to end or to change.
pub(super) struct Signals {
    descriptor: OwnedFd,
    /// Until they are blocked, these signals have their usual effect on this process.
    pub(super) passed: Vec<i32>,
}

impl Signals {
    /// Once the signals are [blocked](Signals::block), signals to this process are for the program.
    /// Init and hooks start with no signal blocked.
    pub(super) fn new() -> Result<Signals> {
        // Signals about this process's own faults and children are not forwarded.
        let own = [
            libc::SIGKILL,
            libc::SIGSTOP,
            libc::SIGCHLD,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGABRT,
            libc::SIGTRAP,
            libc::SIGSYS,
            libc::SIGPIPE,
        ];
        let passed: Vec<i32> = (1..=64)
            .filter(|signal| !own.contains(signal) && *signal != 32 && *signal != 33)
            .collect();
        let descriptor = syscall::signalfd(&passed).context("open a signalfd")?;
        Ok(Signals { descriptor, passed })
    }

    /// From now on, the signals are for the program.
    pub(super) fn block(&self) {
        syscall::block_only(&self.passed);
    }
}

/// How the terminal gets from init to its user.
#[derive(Default)]
pub(super) struct Console {
    /// For init: the socket to which it sends the terminal. `None` without a terminal.
    pub(super) theirs: Option<OwnedFd>,
    /// The socket from which this process receives the terminal, if it does.
    pub(super) ours: Option<OwnedFd>,
}

/// The errors about a terminal that is not wanted, and about a terminal that nobody receives.
pub(super) type Refusals = [&'static str; 2];

pub(super) const OF_BUNDLE: Refusals = [
    "`--console-socket` is given, and `process.terminal` is not set",
    "`process.terminal` is set: cannot allocate a terminal without `--console-socket`",
];

pub(super) const OF_EXEC: Refusals = [
    "`--console-socket` is given, and no terminal is asked for",
    "cannot allocate a terminal without `--console-socket` when detached",
];

impl Console {
    /// A process must want a terminal if, and only if, somebody receives it: the caller, at its
    /// socket, or this process, if it `stays` in the foreground.
    pub(super) fn choose(
        process: &Process,
        socket: Option<&Path>,
        stays: bool,
        [unwanted, untaken]: &Refusals,
    ) -> Result<Console> {
        match (process.terminal() == Some(true), socket) {
            (false, None) => Ok(Console::default()),
            (false, Some(_)) => bail!(*unwanted),
            (true, Some(socket)) => {
                let socket = terminal::connect(socket).context("open the console socket")?;
                Ok(Console { theirs: Some(socket), ours: None })
            }
            (true, None) => {
                ensure!(stays, *untaken);
                let flags = SocketFlags::CLOEXEC;
                let pair =
                    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
                let (ours, theirs) = pair.context("make a socket pair")?;
                Ok(Console { theirs: Some(theirs), ours: Some(ours) })
            }
        }
    }
}

/// Waits for the end of a program that is this process's child, and returns its exit code.
pub(super) fn follow(
    pid: Pid,
    pidfd: BorrowedFd<'_>,
    signals: &Signals,
    master: Option<OwnedFd>,
    relay: Option<&Relay>,
) -> Result<ExitCode> {
    match master {
        Some(master) => {
            let proxy = terminal::Proxy::new(master)?;
            proxy.run(pidfd, &signals.descriptor, relay, |signal| forward(pidfd, signal))?;
        }
        None => wait(pidfd, signals, relay)?,
    }
    // A shell's convention for a program that a signal ended.
    let code = match crate::linux::namespaces::ending(pid)?.context("it ended in an unknown way")? {
        Ending::Code(code) => code,
        Ending::Signal(signal) => 128 + signal,
    };
    let code = u8::try_from(code).context("an exit code above 255")?;
    Ok(ExitCode::from(code))
}

fn wait(pidfd: BorrowedFd<'_>, signals: &Signals, relay: Option<&Relay>) -> Result<()> {
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::new(&signals.descriptor, PollFlags::IN),
            Relay::polled(relay, &signals.descriptor),
        ];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the container"),
        }
        let [ended, signalled, said] = polled.map(|polled| !polled.revents().is_empty());
        if let (true, Some(relay)) = (said, relay) {
            relay.pass()?;
        }
        if signalled {
            for signal in signals::read(&signals.descriptor)? {
                forward(pidfd, signal);
            }
        }
        if ended {
            return Ok(());
        }
    }
}

fn forward(pidfd: BorrowedFd<'_>, signal: i32) {
    if let Err(error) = syscall::pidfd_send_signal(pidfd.as_fd(), signal) {
        tracing::debug!("pass on signal {signal}: {error}");
    }
}
