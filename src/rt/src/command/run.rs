//! `rt run`: create, start, wait and delete in one, with the container's exit code as its own.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::create;
use crate::bundle::Bundle;
use crate::cli;
use crate::container::cgroups::Manager;
use crate::container::{self, Container, Wait, terminal};
use crate::state::Root;
use crate::syscall;

pub(super) fn execute(root: &Root, manager: Manager, args: &cli::Run) -> Result<ExitCode> {
    run(root, manager, args).with_context(|| format!("run `{}`", args.create.id))
}

fn run(root: &Root, manager: Manager, args: &cli::Run) -> Result<ExitCode> {
    let bundle = Bundle::load(&args.create.bundle, args.create.config.as_deref())?;
    let foreground_terminal = !args.detach
        && args.create.console_socket.is_none()
        && bundle.process().terminal() == Some(true);
    let (console, terminal) = if foreground_terminal {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        (Some(theirs), Some(ours))
    } else {
        (create::connect_console(&bundle, &args.create)?, None)
    };
    // From now on, what is sent to this process is for the container. Init and hooks start with nothing blocked.
    let signals = if args.detach { None } else { Some(Signals::take()?) };
    let container =
        create::container(root, manager, &args.create, &bundle, console, Wait::ForCaller)?;
    let outcome = start_and_wait(&container, signals.as_ref(), terminal);
    let lives_on = args.detach && outcome.is_ok();
    if !lives_on && !args.keep {
        container::delete(&container.directory, &container.state, true)?;
    }
    outcome
}

fn start_and_wait(
    container: &Container,
    signals: Option<&Signals>,
    terminal: Option<OwnedFd>,
) -> Result<ExitCode> {
    let master = terminal.map(|socket| terminal::receive(socket.as_fd())).transpose()?;
    container.go()?;
    container::started(&container.state);
    let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
    match master {
        Some(master) => terminal::Proxy::new(master)?.run(
            container.pidfd.as_fd(),
            &signals.descriptor,
            |signal| {
                forward(container, signal);
            },
        )?,
        None => wait(container, signals)?,
    }
    let status = container::wait(container.pid)?;
    // A shell's convention for a program that a signal ended.
    let code =
        status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    let code = u8::try_from(code.context("it ended in no known way")?)
        .context("an exit code above 255")?;
    Ok(ExitCode::from(code))
}

/// The signals that are passed on: all that a process can be asked to end or change by.
struct Signals {
    descriptor: OwnedFd,
}

impl Signals {
    fn take() -> Result<Signals> {
        // Not those that tell of this process's own faults and children.
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
        syscall::block_only(&passed);
        Ok(Signals { descriptor: syscall::signalfd(&passed).context("open a signalfd")? })
    }
}

/// Waits for the end of the container, and passes on signals meanwhile.
fn wait(container: &Container, signals: &Signals) -> Result<()> {
    loop {
        let mut polled = [
            PollFd::new(&container.pidfd, PollFlags::IN),
            PollFd::new(&signals.descriptor, PollFlags::IN),
        ];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the container"),
        }
        let [ended, signalled] = polled.map(|polled| !polled.revents().is_empty());
        if signalled {
            for signal in terminal::read_signals(&signals.descriptor)? {
                forward(container, signal);
            }
        }
        if ended {
            return Ok(());
        }
    }
}

fn forward(container: &Container, signal: i32) {
    if let Err(error) = syscall::pidfd_send_signal(container.pidfd.as_fd(), signal) {
        tracing::debug!("pass on signal {signal}: {error}");
    }
}
