//! `rt kill`: sends a signal to a container's first process, or with `--all` to all its processes.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::io::Errno;

use crate::cli;
use crate::linux::cgroups::{Cgroup, Manager};
use crate::signals;
use crate::state::{Directory, Root, State};
use crate::syscall;

pub(super) fn execute(root: &Root, args: &cli::Kill) -> Result<ExitCode> {
    let one = |id: &str| kill(root, id, args).with_context(|| format!("kill `{id}`"));
    super::each(root, &args.id, args.regex, one)?;
    Ok(ExitCode::SUCCESS)
}

fn kill(root: &Root, id: &str, args: &cli::Kill) -> Result<()> {
    let signal = signals::parse(&args.signal)?;
    let (directory, state) = root.load(id)?;
    // Callers clean up with `--all` after the first process has ended, so with `--all` an ended
    // process is not an error.
    if state.cgroup.manager == Manager::Disabled {
        return first(&state, signal, args.all);
    }
    if args.all {
        return all(&state, signal);
    }
    if signal == libc::SIGKILL && !has_own_pids(&directory) {
        // The other processes would outlive the first process.
        ensure!(
            state.process()?.is_some() || !state.processes()?.is_empty(),
            "container not running"
        );
        return all(&state, signal);
    }
    first(&state, signal, false)
}

/// Whether the kernel ends all processes of a container with its first. It does so in a pid
/// namespace that was made for this container alone.
fn has_own_pids(directory: &Directory) -> bool {
    // Without a configuration, assume what configurations usually have: a pid namespace.
    let Some(spec) = directory.config() else { return true };
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    namespaces.iter().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Pid
            && namespace.path().as_ref().is_none_or(|path| path.as_os_str().is_empty())
    })
}

fn first(state: &State, signal: i32, may_be_gone: bool) -> Result<()> {
    // Callers look for these words.
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
    wake(&state.cgroup, signal);
    Ok(())
}

fn all(state: &State, signal: i32) -> Result<()> {
    // While the first process lives, nobody else can have the cgroup.
    if state.process()?.is_some() {
        return signal_all(&state.cgroup, signal);
    }
    match state.hold_cgroup()? {
        Some(held) => held.cgroup().map_or(Ok(()), |cgroup| signal_all(cgroup, signal)),
        None => Ok(()),
    }
}

fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<()> {
    cgroup.signal(signal)?;
    wake(cgroup, signal);
    Ok(())
}

/// A frozen process dies of SIGKILL only when it runs again (v1), and the first process of a pid
/// namespace waits until all others are dead.
fn wake(cgroup: &Cgroup, signal: i32) {
    if signal == libc::SIGKILL {
        cgroup.thaw();
    }
}
