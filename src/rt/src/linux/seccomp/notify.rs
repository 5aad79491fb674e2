//! Calls that another process decides on (`seccomp_unotify(2)`). The runtime process sends the
//! listener of a filter to an agent's socket, with a description of the process (runtime-spec,
//! `config-linux.md`, "The Container Process State"). Runs in the runtime process.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdGetfdFlags};
use serde_json::Value;

use crate::bundle::annotation;
use crate::linux::terminal;

/// crun's annotation for `linux.seccomp.listenerPath`, and the environment variable that replaces
/// it.
const ANNOTATION: &str = "run.oci.seccomp.receiver";
const VARIABLE: &str = "RUN_OCI_SECCOMP_RECEIVER";

/// How long a process may take to load a filter after it has announced that.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(100);

/// The connected agent.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: OwnedFd,
    metadata: String,
}

impl Receiver {
    /// Returns None if the configuration names no agent.
    pub(super) fn connect(spec: &Spec) -> Result<Option<Receiver>> {
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let variable = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
        let path = annotation(spec, ANNOTATION)
            .map(Path::new)
            .or_else(|| seccomp?.listener_path().as_deref())
            .or(variable.as_deref().map(Path::new));
        let Some(path) = path else { return Ok(None) };
        ensure!(
            path.is_absolute(),
            "the seccomp listener path `{}` is not absolute",
            path.display()
        );
        let socket = terminal::connect(path).context("open the seccomp listener's socket")?;
        let metadata = seccomp.and_then(|seccomp| seccomp.listener_metadata().clone());
        Ok(Some(Receiver { socket, metadata: metadata.unwrap_or_default() }))
    }

    /// Takes the listener that a process has under `number`, and sends it to the agent, with the
    /// state of the container. If the process has ended, it has reported the reason itself.
    pub(crate) fn serve(
        &self,
        pidfd: &OwnedFd,
        number: i32,
        pid: Pid,
        state: &Value,
    ) -> Result<()> {
        let Some(listener) = take(pidfd, number)? else { return Ok(()) };
        let text = serde_json::json!({
            "ociVersion": state["ociVersion"],
            "fds": ["seccompFd"],
            "pid": pid.as_raw_nonzero().get(),
            "metadata": self.metadata,
            "state": state,
        });
        terminal::send(self.socket.as_fd(), &text.to_string(), listener.as_fd())
            .context("send the seccomp listener")
    }
}

/// Takes the listener that a process has, or is about to have, under `number`. The process cannot
/// announce it, because its next call may already wait for the agent. Returns None if the process
/// has ended.
fn take(pidfd: &OwnedFd, number: i32) -> Result<Option<OwnedFd>> {
    let end = Instant::now() + PATIENCE;
    loop {
        match rustix::process::pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(listener) => return Ok(Some(listener)),
            Err(Errno::SRCH) => return Ok(None),
            // Not yet.
            Err(Errno::BADF) => {}
            Err(error) => return Err(error).context("take the seccomp listener"),
        }
        ensure!(Instant::now() < end, "no seccomp listener within {} s", PATIENCE.as_secs());
        let pause = Timespec::try_from(PAUSE)?;
        let ended = rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&pause))?;
        if ended > 0 {
            return Ok(None);
        }
    }
}
