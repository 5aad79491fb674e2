//! `start`: starts a created container. Runs in the runtime process.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::container::delete;
use crate::container::hooks::{self, Place, Streams};
use crate::failure;
use crate::interrupt;
use crate::linux::process;
use crate::linux::sd_notify::Relay;
use crate::log;
use crate::state::{Directory, State, Status};

/// Lets the program of a created container run.
pub(crate) fn start(directory: &Directory, state: &State) -> Result<()> {
    log::step("start, step 1: check the status", &state.id);
    match state.status(directory)? {
        Status::Created => {}
        Status::Creating => bail!("the container is not created yet"),
        Status::Running | Status::Paused => bail!("cannot start an already running container"),
        Status::Stopped => bail!("cannot start a container that has stopped"),
    }
    let path = directory.start_fifo();
    log::step("start, step 2: claim the start", &path.display());
    let fifo = match rustix::fs::open(
        &path,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fifo) => fifo,
        Err(Errno::NOENT) => bail!("cannot start an already running container"),
        // No process reads the fifo.
        Err(Errno::NXIO) => bail!("cannot start a container that has stopped"),
        Err(error) => return Err(error).with_context(|| format!("open `{}`", path.display())),
    };
    // Removing the fifo is the claim. Of two `start` commands, one wins.
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("cannot start an already running container")
        }
        result => result.with_context(|| format!("remove `{}`", path.display()))?,
    }
    let relay = Relay::open(&directory.notify_folder())?;
    let process = state.process()?;
    log::step("start, step 3: init becomes the program", &state.pid);
    rustix::io::write(&fifo, b"s").context("start the program")?;
    started(directory, state)?;
    tell_of_manager(relay.is_some());
    match (relay, process, Pid::from_raw(state.pid)) {
        (Some(relay), Some(process), Some(pid)) => relay.wait_until_ready(pid, process.as_fd()),
        _ => Ok(()),
    }
}

/// `is_told`: a service manager waits for the container's readiness.
pub(crate) fn tell_of_manager(is_told: bool) {
    let what = if is_told { "as its service manager asks" } else { "none asks" };
    log::step("start, step 5: wait until the container is ready", &what);
}

/// The steps after a start. If a `poststart` hook fails, this function kills and deletes the
/// container (runtime-spec 1.3, `runtime.md`, "Lifecycle").
pub(crate) fn started(directory: &Directory, state: &State) -> Result<()> {
    log::step("start, step 4: run `poststart` hooks", &state.poststart.len());
    if state.poststart.is_empty() {
        return Ok(());
    }
    process::forget_affinity();
    let mark = directory.mark()?;
    let json = state.report(Status::Running).to_string();
    let streams = Streams::open_or_none("poststart", state);
    let ran = hooks::run("poststart", &state.poststart, &json, Place::bundle(state), &streams);
    let Err(error) = ran else { return Ok(()) };
    // A hook may have deleted the container itself.
    if !directory.mark().is_ok_and(|now| now == mark) {
        return Err(error);
    }
    // A signal that has cut a hook short must not cut the clean-up's hooks short.
    interrupt::forget();
    failure::and_then_cleaned(Err(error), delete(directory, state, true))
}
