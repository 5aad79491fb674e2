//! An engine's directory, opened on the host: `docs/engine.md` is the contract.
//!
//! Everything here runs in the caller's process, before the container exists.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use serde::Deserialize;

use crate::exe;
use crate::state::{Run, RunMode};
use crate::syscall::{self, MountAttr};
use crate::workload;

/// The version of the engine contract that this runtime speaks.
pub(crate) const CONTRACT: u32 = 1;

/// `engine.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Description {
    contract: u32,
    pub(crate) name: String,
    /// The engine's own.
    pub(crate) version: Option<String>,
    pub(crate) program: PathBuf,
    pub(crate) loader: Option<PathBuf>,
    pub(crate) libraries: Option<PathBuf>,
}

/// An engine that can be started: its description, and its directory as a detached, read-only mount.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) description: Description,
    pub(crate) mount: OwnedFd,
}

impl Directory {
    /// What `state` says of a module that it runs.
    pub(crate) fn run(&self) -> Run {
        let Description { name, version, .. } = &self.description;
        let engine =
            version.as_ref().map_or_else(|| name.clone(), |version| format!("{name} {version}"));
        Run { engine, mode: RunMode::Interpreter }
    }
}

/// Opens the directory of an engine. A user who may not clone mounts gets an error: nothing weaker is handed to a container.
pub(crate) fn open(engine: workload::Engine) -> Result<Directory> {
    let path = exe::engines()?.join(engine.name());
    open_directory(&path)
        .with_context(|| format!("open engine `{}` in `{}`", engine.name(), path.display()))
}

fn open_directory(path: &Path) -> Result<Directory> {
    let description = describe(path)?;
    // Not AT_RECURSIVE: a mount below the directory is no part of an engine.
    let files =
        [Some(&description.program), description.loader.as_ref(), description.libraries.as_ref()];
    for file in files.into_iter().flatten() {
        fs::metadata(path.join(file)).with_context(|| format!("find `{}`", file.display()))?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, path, flags).context("clone its mount")?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attr = MountAttr { set, clear: libc::MOUNT_ATTR_NOEXEC, ..MountAttr::default() };
    syscall::mount_setattr(mount.as_fd(), attr, false).context("make its mount read-only")?;
    Ok(Directory { description, mount })
}

/// Reads and checks `engine.json`.
pub(crate) fn describe(path: &Path) -> Result<Description> {
    let text = fs::read(path.join("engine.json")).context("read `engine.json`")?;
    let description: Description = serde_json::from_slice(&text).context("parse `engine.json`")?;
    let contract = description.contract;
    ensure!(
        contract == CONTRACT,
        "it speaks version {contract} of the engine contract, and rt version {CONTRACT}"
    );
    let paths =
        [Some(&description.program), description.loader.as_ref(), description.libraries.as_ref()];
    for path in paths.into_iter().flatten() {
        let inside = path.components().all(|component| matches!(component, Component::Normal(_)));
        ensure!(inside, "`{}` in `engine.json` leads out of the directory", path.display());
    }
    Ok(description)
}
