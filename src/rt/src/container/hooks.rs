//! Hooks: programs that the configuration has run at certain points (runtime-spec, `config.md`, "POSIX-platform Hooks").
//!
//! Own code, not libcontainer's, which starts a thread for a timeout: `rt` has one thread.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libcontainer::oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::state::{State, Status};
use crate::syscall;

/// The state of the container as a hook reads it from its standard input (runtime-spec, `runtime.md`, "State").
pub(crate) fn state_json(state: &State, status: Status) -> String {
    serde_json::json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "status": status,
        "pid": if status == Status::Stopped { 0 } else { state.pid },
        "bundle": state.bundle,
        "annotations": state.annotations,
    })
    .to_string()
}

/// Runs hooks one after the other; the first that fails is the end.
pub(crate) fn run(kind: &str, hooks: &[Hook], state: &str) -> Result<()> {
    for hook in hooks {
        run_one(hook, state)
            .with_context(|| format!("run {kind} hook `{}`", hook.path().display()))?;
    }
    Ok(())
}

/// Runs all, whatever becomes of any: for the hooks after which there is no way back.
pub(crate) fn run_all(kind: &str, hooks: &[Hook], state: &str) {
    for hook in hooks {
        if let Err(error) = run_one(hook, state) {
            crate::warn(&format!(
                "run {kind} hook `{}`: {}",
                hook.path().display(),
                crate::describe(&error)
            ));
        }
    }
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    let variables = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(variables).stdin(Stdio::piped()).stdout(Stdio::null());
    syscall::end_with_parent(&mut command);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        match stdin.write_all(state.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(error).context("send it the state");
            }
            _ => {}
        }
    }
    if let Some(seconds) =
        hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| *s > 0)
    {
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("no process")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let limit = Timespec::try_from(Duration::from_secs(seconds))?;
        let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))?;
        if ended == 0 {
            child.kill()?;
            child.wait()?;
            bail!("it took longer than {seconds} s");
        }
    }
    let status = child.wait()?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("exit status {code}"),
        (None, signal) => bail!("killed by signal {}", signal.unwrap_or(0)),
    }
}
