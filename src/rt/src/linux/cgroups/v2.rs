//! cgroup v2 by cgroupfs: one hierarchy (kernel documentation, `cgroup-v2.rst`).
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{FREEZING, ROOT};

/// Makes a cgroup with all controllers of the host.
pub(super) fn make(path: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    let wanted = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))
        .context("read `cgroup.controllers`")?;
    let mut above: Vec<&Path> =
        path.ancestors().skip(1).take_while(|above| above.starts_with(ROOT)).collect();
    above.reverse();
    for directory in above {
        if make_directory(directory, made)? {
            take_processes(directory).with_context(|| show(directory))?;
        }
        enable(directory, &wanted);
    }
    make_directory(path, made)?;
    take_processes(path).with_context(|| show(path))
}

/// Makes a `domain invalid` cgroup threaded. A new cgroup is `domain invalid` below a threaded
/// cgroup, or below one that has processes and hands controllers down. It accepts no process until
/// it is threaded too (cgroup-v2.rst, "Threads"). A threaded cgroup does not have the controllers
/// of memory and I/O.
pub(super) fn take_processes(path: &Path) -> io::Result<()> {
    let file = path.join("cgroup.type");
    // Linux before 4.14 has no threaded cgroups.
    let kind = fs::read_to_string(&file).unwrap_or_default();
    if kind.trim() == "domain invalid" { fs::write(&file, "threaded") } else { Ok(()) }
}

/// Whether a process that is born in a cgroup is frozen, by this cgroup or by one above it. On a
/// kernel without a freezer, the answer is false.
pub(super) fn is_frozen(cgroup: BorrowedFd<'_>) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(cgroup, "cgroup.events", flags, Mode::empty());
    let mut text = String::new();
    File::from(file.context("open `cgroup.events`")?)
        .read_to_string(&mut text)
        .context("read `cgroup.events`")?;
    Ok(text.lines().any(|line| line == "frozen 1"))
}

/// Freezes or thaws a cgroup, and waits until `cgroup.events` reports it.
pub(super) fn freeze(path: &Path, frozen: bool) -> Result<()> {
    super::write(&path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let file = path.join("cgroup.events");
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    let end = Instant::now() + FREEZING;
    // The kernel reports a change by POLLPRI (cgroup-v2.rst, "cgroup.events"), on a file that was
    // read before.
    let mut events = File::open(&file).with_context(|| format!("open `{}`", file.display()))?;
    loop {
        let mut text = String::new();
        events.rewind().and_then(|()| events.read_to_string(&mut text))?;
        if text.lines().any(|line| line == wanted) {
            return Ok(());
        }
        let Some(left) = end.checked_duration_since(Instant::now()) else {
            bail!("`{}` does not say `{wanted}` after {} s", file.display(), FREEZING.as_secs());
        };
        let mut polled = [PollFd::new(&events, PollFlags::PRI)];
        match rustix::event::poll(&mut polled, Some(&Timespec::try_from(left)?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the freezer"),
        }
    }
}

fn show(path: &Path) -> String {
    format!("make cgroup `{}`", path.display())
}

/// Returns whether the directory is new.
fn make_directory(path: &Path, made: &mut Vec<PathBuf>) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => {
            made.push(path.to_owned());
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| show(path)),
    }
}

/// Hands all controllers of a cgroup down to the cgroups below.
pub(super) fn hand_down(directory: &Path) {
    if let Ok(own) = fs::read_to_string(directory.join("cgroup.controllers")) {
        enable(directory, &own);
    }
}

/// Hands the controllers down. Controllers that a cgroup does not have itself, or that a delegated
/// one may not hand down, are left out here: a limit that requires them will fail. A read is cheap,
/// but a write takes the lock of all cgroups.
fn enable(directory: &Path, wanted: &str) {
    let file = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    let missing: Vec<String> = wanted
        .split_ascii_whitespace()
        .filter(|controller| !enabled.split_ascii_whitespace().any(|name| name == *controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() || fs::write(&file, missing.join(" ")).is_ok() {
        return;
    }
    // The kernel enables all or none. A refused controller must not keep the others out.
    for controller in missing {
        if let Err(error) = fs::write(&file, &controller) {
            tracing::debug!("write `{controller}` to `{}`: {error}", file.display());
        }
    }
}
