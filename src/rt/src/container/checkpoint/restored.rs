//! Which processes CRIU has restored: those that it traces.
//!
//! The tree of children is the images' to decide. A process whose parent ends during the restore
//! (one that the images call dead) becomes a child of the first process of its pid namespace. In
//! one that is shared, that is a process outside of the container. No image changes who is traced.
//!
//! At [`BEFORE_IT_RUNS`](super::criu::BEFORE_IT_RUNS) CRIU traces every thread that lives, of every
//! process that it has made (`attach_to_tasks`), and each is stopped (`catch_tasks`,
//! `compel_stop_on_syscall`; `finalize_restore_detach` lets them go, later). What it cannot stop
//! there ends the restore. Read in 4.2.1, where these are in `criu/cr-restore.c`; 3.17 passes the
//! same tests.
//!
//! Runs in the caller's process, and in the [guard](super::guard).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::container::checkpoint::confinement::{self, Status};
use crate::syscall;

/// The processes that CRIU has restored, all stopped. Fails unless they are the first process and
/// its descendants, no more and no fewer.
pub(in crate::container) fn processes(first: i32, criu: Pid) -> Result<Vec<i32>> {
    let tree = confinement::tree(first)?;
    let traced = traced_by(criu)?;
    let descendants: BTreeSet<i32> = tree.iter().copied().collect();
    for pid in &traced {
        ensure!(
            descendants.contains(pid),
            "{} of the checkpoint is not a descendant of its first process",
            confinement::show(&process(*pid))
        );
    }
    for pid in &tree {
        for thread in confinement::threads(*pid)? {
            let status = Status::read(&thread)?;
            ensure!(
                status.has_ended()? || status.tracer()? == criu.as_raw_nonzero().get(),
                "{} of the checkpoint is not stopped by `criu`",
                confinement::show(&thread)
            );
        }
    }
    ensure!(traced.contains(&first), "the first process of the checkpoint has ended");
    Ok(tree)
}

/// Kills all that a process traces, and what descends from that.
pub(in crate::container) fn kill_traced_by(tracer: Pid) -> Result<()> {
    let mut killed = BTreeSet::new();
    for traced in traced_by(tracer)? {
        for pid in confinement::tree(traced)? {
            if killed.insert(pid) {
                kill(pid)?;
            }
        }
    }
    Ok(())
}

fn kill(pid: i32) -> Result<()> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(()) };
    let killed = rustix::process::pidfd_open(number, PidfdFlags::empty())
        .and_then(|process| syscall::pidfd_send_signal(process.as_fd(), libc::SIGKILL));
    match killed {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill process {pid}")),
    }
}

fn process(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// All processes with a thread that lives and is traced by this process, by the numbers that they
/// have here: CRIU makes none that this pid namespace does not hold.
fn traced_by(tracer: Pid) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    let folder = fs::read_dir("/proc").context("read `/proc`")?;
    for entry in folder {
        let name = entry.context("read `/proc`")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        for thread in confinement::threads(pid)? {
            let text = match fs::read(thread.join("status")) {
                Ok(text) => text,
                // It has ended since, and it was none of CRIU's, which are stopped.
                Err(_) if !thread.exists() => continue,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("read `{}`", thread.join("status").display()));
                }
            };
            let status = Status::parse(&text);
            if status.tracer()? == tracer.as_raw_nonzero().get() && !status.has_ended()? {
                found.insert(pid);
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_traces_nobody_has_restored_nothing() {
        let own = rustix::process::getpid();
        assert_eq!(traced_by(own).expect("it is readable"), BTreeSet::new());
        processes(own.as_raw_nonzero().get(), own).expect_err("nobody traces this one");
    }
}
