//! `rt kill`: sends a signal to a container's first process, or with `--all` to all its processes.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use crate::cli;
use crate::container::cgroups::Manager;
use crate::signals;
use crate::state::{Root, State};
use crate::syscall;

pub(super) fn execute(root: &Root, args: &cli::Kill) -> Result<ExitCode> {
    let one = |id: &str| kill(root, id, args).with_context(|| format!("kill `{id}`"));
    super::each(root, &args.id, args.regex, one)?;
    Ok(ExitCode::SUCCESS)
}

fn kill(root: &Root, id: &str, args: &cli::Kill) -> Result<()> {
    let signal = signals::parse(&args.signal)?;
    let (_, state) = root.load(id)?;
    // Callers clean up with `--all` after the first process has ended, so for that nobody left is no error.
    if args.all && state.cgroup.manager != Manager::Disabled {
        all(&state, signal)
    } else {
        first(&state, signal, args.all)
    }
}

fn first(state: &State, signal: i32, may_be_gone: bool) -> Result<()> {
    // The words are what callers look for.
    let Some(process) = state.process()? else {
        if may_be_gone {
            return Ok(());
        }
        bail!("container not running");
    };
    match syscall::pidfd_send_signal(process.as_fd(), signal) {
        Ok(()) => {}
        Err(Errno::SRCH) => bail!("container not running"),
        Err(error) => return Err(error).with_context(|| format!("send signal {signal}")),
    }
    wake(state, signal);
    Ok(())
}

fn all(state: &State, signal: i32) -> Result<()> {
    if state.process()?.is_none() && state.cgroup.is_anothers() {
        return Ok(());
    }
    state.cgroup.signal(signal)?;
    wake(state, signal);
    Ok(())
}

/// A frozen process dies of SIGKILL only when it runs again (v1), and the first process of a pid
/// namespace waits for all others to die.
fn wake(state: &State, signal: i32) {
    if signal == libc::SIGKILL {
        state.cgroup.thaw();
    }
}
