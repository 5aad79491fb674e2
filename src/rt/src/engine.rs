//! Engines: their directories on the host, and their command lines. `docs/engine.md` is the
//! contract.
#![forbid(unsafe_code)]

pub(crate) mod cache;
mod command_line;
mod description;
mod installed;
mod native;
mod plan;
mod plugins;
mod settings;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
pub(crate) use command_line::{CommandLine, Files, Guest};
pub(crate) use description::{Description, Installed};
pub(crate) use installed::{ENGINES, Engines, all, what_for};
pub(crate) use native::{BUSY, Found, Host, Later, Native};
pub(crate) use plan::{PLAN, modules, place};
pub(crate) use plugins::Plugins;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
pub(crate) use settings::{CompilerSettings, Settings};

use crate::state::{Run, RunMode, State};
use crate::syscall::{self, MountAttr};
use crate::workload::Wish;

/// The version of the engine contract that `rt` speaks.
pub(crate) const CONTRACT: u32 = 2;

/// An engine that can be started: its description, and its directory on a read-only mount that
/// nobody can change.
#[derive(Debug)]
pub(crate) struct Directory {
    label: String,
    pub(crate) mount: OwnedFd,
    /// `None` for an engine that only interprets.
    pub(crate) native: Option<Native>,
}

impl Directory {
    /// Opens an engine's directory. Fails for a user who may not clone mounts, because a container
    /// gets nothing weaker than a mount of its own.
    fn open(engine: &Installed, settings: &Settings, host: &Host<'_>) -> Result<Directory> {
        // Without AT_RECURSIVE: a mount below the directory is not part of an engine.
        let mount = cut_off(CWD, &engine.path).context("have a mount of its own for it")?;
        let native = Native::new(&engine.name, &engine.description, settings.clone(), host)?;
        Ok(Directory { label: engine.description.label(), mount, native })
    }

    /// What `state` reports about a module that this engine runs.
    pub(crate) fn run(&self, found: &Found) -> Run {
        let mode = if found.native.is_some() { RunMode::Aot } else { RunMode::Interpreter };
        Run { engine: self.label.clone(), mode }
    }

    /// Finds native code for a module that the engine is about to run. Fails if the engine needs
    /// native code, and there is none.
    pub(crate) fn look_up(
        &self,
        wish: Wish,
        module: Option<&OwnedFd>,
        name: &str,
        state: &State,
    ) -> Result<Found> {
        match (&self.native, module) {
            (Some(native), Some(module)) => native.look_up(wish, module.as_fd(), name, state),
            _ => Ok(Found::default()),
        }
    }
}

/// Opens a file or a directory of the host for use in a container. Nobody can ever write through
/// the returned descriptor. Code can be executed through it, whatever the mount options of the
/// host's filesystem are.
///
/// The descriptor is on a mount that is attached nowhere (a *detached* mount). The kernel keeps a
/// detached mount as long as the descriptor that `open_tree(2)` made is open. In that time, a
/// process with `CAP_SYS_ADMIN` in a user namespace of its own can make the mount writable by
/// `mount_setattr(2)`. Every user can have such a namespace. So we close that descriptor here,
/// before another process gets it. The kernel then dissolves the mount, and nobody can change a
/// dissolved mount (`dissolve_on_fput` and `do_mount_setattr` in the kernel's `fs/namespace.c`). A
/// descriptor that was opened on the mount before stays as it is.
fn cut_off(at: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    let alive = rustix::mount::open_tree(at, path, flags).context("clone the mount")?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attr = MountAttr { set, clear: libc::MOUNT_ATTR_NOEXEC, ..MountAttr::default() };
    syscall::mount_setattr(alive.as_fd(), attr, false).context("make the mount read-only")?;
    let link = format!("/proc/self/fd/{}", alive.as_raw_fd());
    rustix::fs::open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `{link}`"))
}

/// Does the same as [`cut_off`], for an open file.
pub(crate) fn cut_off_file(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    cut_off(file, Path::new(""))
}
