//! The processes that CRIU has restored: those that it traces.
//!
//! The images decide the tree of children. If a parent ends during the restore (the images can call
//! it dead), its child becomes a child of the first process of its pid namespace. In a shared pid
//! namespace, that process is outside of the container. No image can change which processes CRIU
//! traces.
//!
//! At [`BEFORE_IT_RUNS`](super::criu::BEFORE_IT_RUNS), CRIU traces every live thread of every
//! process that it has made (`attach_to_tasks`). Each of these threads is stopped (`catch_tasks`,
//! `compel_stop_on_syscall`). `finalize_restore_detach` lets them go later. If CRIU cannot stop a
//! thread, the restore ends. We have read this in 4.2.1, where these functions are in
//! `criu/cr-restore.c`. 3.17 passes the same tests.
//!
//! Runs in the runtime process, and in the [guard](super::guard).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::container::checkpoint::confinement::{self, Status};
use crate::syscall;

/// The processes that CRIU has restored, all stopped. Fails unless they are exactly the first
/// process and its descendants.
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
            ensure!(
                is_held(&thread, criu)?,
                "{} of the checkpoint is not stopped by `criu`",
                confinement::show(&thread)
            );
        }
    }
    ensure!(traced.contains(&first), "the first process of the checkpoint has ended");
    Ok(tree)
}

/// Whether a thread has ended, or its tracer is CRIU and holds it. The images can have CRIU go on
/// before each thread is stopped.
fn is_held(thread: &Path, criu: Pid) -> Result<bool> {
    /// The stop of a thread may be on its way.
    const PATIENCE: Duration = Duration::from_secs(1);
    let end = Instant::now() + PATIENCE;
    loop {
        let status = Status::read(thread)?;
        if status.has_ended()? {
            return Ok(true);
        }
        if status.tracer()? != criu.as_raw_nonzero().get() {
            return Ok(false);
        }
        if status.is_held()? || Instant::now() >= end {
            return status.is_held();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills all processes that a process traces, and their descendants.
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

/// All processes with a live thread that this process traces, by their pids in this pid namespace.
/// CRIU makes no process outside of this pid namespace.
fn traced_by(tracer: Pid) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    let folder = fs::read_dir("/proc").context("read `/proc`")?;
    for entry in folder {
        let name = entry.context("read `/proc`")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        for thread in confinement::threads(pid)? {
            let text = match fs::read(thread.join("status")) {
                Ok(text) => text,
                // The thread has ended since. It was not one of CRIU's, because those are stopped.
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

    /// A thread that its tracer lets run is not held.
    #[test]
    fn a_process_that_runs_is_not_stopped() {
        use std::process::{Command, Stdio};
        let mut strace = Command::new("strace");
        strace.args(["-o", "/dev/null", "sleep", "60"]).stdin(Stdio::null());
        // The host may lack it.
        let Ok(mut strace) = strace.spawn() else { return };
        let tracer = Pid::from_child(&strace);
        let end = Instant::now() + Duration::from_secs(10);
        let mut sleep = None;
        // While it begins, strace stops it at each call. Then it sleeps, and is not stopped.
        let sleeps = |pid: &i32| {
            let status = fs::read_to_string(process(*pid).join("status")).unwrap_or_default();
            status.contains("Name:\tsleep\n") && status.contains("State:\tS")
        };
        while sleep.is_none() && Instant::now() < end {
            sleep = traced_by(tracer).expect("it is readable").first().copied().filter(sleeps);
        }
        let found = sleep.map(|pid| processes(pid, tracer));
        kill(sleep.expect("strace traces it")).expect("killed");
        strace.wait().expect("it ends");
        let error = found.expect("found").expect_err("it runs").to_string();
        assert!(error.contains("is not stopped by `criu`"), "{error}");
    }

    #[test]
    fn who_traces_nobody_has_restored_nothing() {
        let own = rustix::process::getpid();
        assert_eq!(traced_by(own).expect("it is readable"), BTreeSet::new());
        processes(own.as_raw_nonzero().get(), own).expect_err("nobody traces this one");
    }
}
