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

/// Makes a cgroup with all controllers that the host has.
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

/// Below a threaded cgroup, or one with processes that hands controllers down, a new one is
/// `domain invalid`: it takes no process until it is threaded too (cgroup-v2.rst, "Threads"), which
/// leaves it without the controllers of memory and I/O.
pub(super) fn take_processes(path: &Path) -> io::Result<()> {
    let file = path.join("cgroup.type");
    // Linux before 4.14 has no threaded cgroups.
    let kind = fs::read_to_string(&file).unwrap_or_default();
    if kind.trim() == "domain invalid" { fs::write(&file, "threaded") } else { Ok(()) }
}

/// Whether what is born in a cgroup is frozen, by itself or by one above it. Where the kernel
/// cannot freeze, it is not.
pub(super) fn is_frozen(cgroup: BorrowedFd<'_>) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(cgroup, "cgroup.events", flags, Mode::empty());
    let mut text = String::new();
    File::from(file.context("open `cgroup.events`")?)
        .read_to_string(&mut text)
        .context("read `cgroup.events`")?;
    Ok(text.lines().any(|line| line == "frozen 1"))
}

/// Freezes a cgroup or lets it go on, and waits until `cgroup.events` says so.
pub(super) fn freeze(path: &Path, frozen: bool) -> Result<()> {
    super::write(&path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let file = path.join("cgroup.events");
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    let end = Instant::now() + FREEZING;
    // The kernel tells of a change by POLLPRI (cgroup-v2.rst, "cgroup.events"), on a file that was
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

/// Says whether it was not there before.
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

/// Hands all controllers that a cgroup has down to those below.
pub(super) fn hand_down(directory: &Path) {
    if let Ok(own) = fs::read_to_string(directory.join("cgroup.controllers")) {
        enable(directory, &own);
    }
}

/// Hands the controllers down. What a cgroup does not have itself, or a delegated one may not hand
/// on, is left out here, and noticed where a limit needs it. A reading is cheap; a write takes the
/// lock of all cgroups.
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
    // All or none: one that is refused must not keep the others out.
    for controller in missing {
        if let Err(error) = fs::write(&file, &controller) {
            tracing::debug!("write `{controller}` to `{}`: {error}", file.display());
        }
    }
}
