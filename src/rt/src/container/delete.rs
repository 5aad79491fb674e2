//! `delete`: removes a container. Runs in the runtime process. Each step can be done twice, so a
//! later `delete` can finish an interrupted one. The last step removes the state directory, and so
//! frees the name.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::container::hooks;
use crate::linux::cgroups::{Cgroup, Held};
use crate::state::{Directory, State, Status};
use crate::{log, report, syscall};

/// `DYING`: how long `rt` waits for a killed process before it kills the whole container.
/// `PATIENCE`: how long it waits after that.
const DYING: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

/// Deletes a stopped or a created container. With `force`, also a running one.
pub(crate) fn delete(directory: &Directory, state: &State, force: bool) -> Result<()> {
    log::step("delete, step 1: end init", &state.pid);
    // Runs before the first process is killed: until then, no other container can have the cgroup.
    let held = if state.pid == 0 { None } else { state.hold_cgroup()? };
    match state.status(directory)? {
        Status::Stopped => {}
        // A container that was never started has nothing to lose. runc and crun kill it too.
        Status::Created | Status::Creating => end(state)?,
        Status::Running | Status::Paused if force => end(state)?,
        // A caller that has killed the container need not wait before `delete`. A frozen container
        // stays as it is.
        Status::Running if is_dying(state.pid) => {
            if let Some(process) = state.process()? {
                dies_killed(state, &process)?;
            }
        }
        status => bail!("cannot delete container `{}` that is not stopped: {status}", state.id),
    }
    let cgroup = state.cgroup.paths.first().map_or(Path::new("none"), PathBuf::as_path);
    log::step("delete, step 2: remove the cgroup", &cgroup.display());
    // Until a process is recorded, it is unknown whether the cgroup became this container's or
    // belongs to another one.
    let removed = match state.pid {
        0 => state.cgroup.remove_unused(),
        _ => held.map_or(Ok(()), Held::remove),
    };
    log::step("delete, step 3: run `poststop` hooks", &state.poststop.len());
    hooks::run_all("poststop", &state.poststop, state, Status::Stopped);
    removed?;
    log::step("delete, step 4: remove the state", &directory.path().display());
    if let Some(groups) = &state.rdt {
        groups.remove()?;
    }
    directory.remove()
}

/// Deletes a container whose state is damaged. Its cgroup follows from its id and from the recorded
/// configuration, and the processes in that cgroup are the container. Its `poststop` hooks do not
/// run.
pub(crate) fn delete_unreadable(directory: &Directory, id: &str) -> Result<()> {
    let config = directory.config();
    let linux = config.as_ref().and_then(|config| config.linux().as_ref());
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = Cgroup::guess(path, id, &directory.mark()?)?;
    match cgroup.hold(&|| Ok(false))? {
        Some(held) => held.remove()?,
        // Any other container or service could have that path.
        None => report::warn(&format!(
            "the cgroup `{}` is not marked as the container's: it is left alone",
            cgroup.paths.first().map_or(Path::new(""), PathBuf::as_path).display()
        )),
    }
    directory.remove()
}

/// Kills the first process and waits until it is dead.
pub(crate) fn end(state: &State) -> Result<()> {
    let Some(process) = state.process()? else { return Ok(()) };
    match syscall::pidfd_send_signal(process.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).context("kill it"),
    }
    state.cgroup.thaw();
    if dies(&process, DYING)? {
        return Ok(());
    }
    // A process in the container can trace the first process, and keep it from ending.
    if let Err(error) = state.cgroup.signal(libc::SIGKILL) {
        tracing::debug!("kill all its processes: {error:#}");
    }
    dies_killed(state, &process)
}

/// Waits until a process that has been killed is dead. The first process of a pid namespace dies
/// last. On v1, a killed process stays while it is frozen, and a process of the container can
/// freeze another one, or itself, at any time before it dies. So `rt` thaws all of them again and
/// again.
fn dies_killed(state: &State, process: &OwnedFd) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !dies(process, DYING)? {
        ensure!(Instant::now() < end, "it did not die within {} s of SIGKILL", PATIENCE.as_secs());
        state.cgroup.thaw();
    }
    Ok(())
}

/// Whether each thread of a process has SIGKILL pending, or is about to end. The first thread alone
/// may have ended by itself.
fn is_dying(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut threads = threads.map(|thread| is_thread_dying(&thread.path())).peekable();
    threads.peek().is_some() && threads.all(|dying| dying)
}

fn is_thread_dying(thread: &Path) -> bool {
    const EXITING: u64 = 0x4; // PF_EXITING, <linux/sched.h>, which has not changed since Linux 2.0.
    // A thread that has ended meanwhile does not count.
    let Ok(status) = fs::read_to_string(thread.join("status")) else { return true };
    let pending = status.lines().any(|line| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        set.is_some_and(|set| set & (1 << (libc::SIGKILL - 1)) != 0)
    });
    // The ninth field. The second field is in brackets, and may contain anything
    // (proc_pid_stat(5)).
    let Ok(stat) = fs::read_to_string(thread.join("stat")) else { return true };
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    pending || flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|it| it & EXITING != 0)
}

fn dies(process: &OwnedFd, limit: Duration) -> Result<bool> {
    let limit = Timespec::try_from(limit)?;
    Ok(rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))? > 0)
}
