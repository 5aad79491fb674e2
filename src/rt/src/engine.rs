//! An engine's directory, opened on the host: `docs/engine.md` is the contract.
//!
//! Everything here runs in the caller's process, before the container exists.
#![forbid(unsafe_code)]

pub(crate) mod cache;
mod native;
mod plugins;
mod settings;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
pub(crate) use native::{BUSY, Found, Host, Later, Native};
pub(crate) use plugins::Plugins;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use serde::Deserialize;
pub(crate) use settings::{CompilerSettings, Settings};

use crate::exe;
use crate::state::{Run, RunMode, State};
use crate::syscall::{self, MountAttr};
use crate::workload::{self, Rights, Wish};

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
    /// What tells this build from others of the same version.
    build: Option<String>,
    /// There if the program compiles modules, and runs what they are compiled to.
    pub(crate) compiler: Option<Compiler>,
    /// What it takes to compile is there too.
    #[serde(skip)]
    pub(crate) can_compile: bool,
}

/// How the program is started to compile.
#[derive(Debug, Deserialize)]
pub(crate) struct Compiler {
    /// A directory of libraries that come before the others.
    pub(crate) libraries: Option<PathBuf>,
}

/// An engine that can be started: its description, and its directory on a read-only mount that
/// nobody can change.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) description: Description,
    pub(crate) mount: OwnedFd,
    /// None for an engine that only interprets.
    pub(crate) native: Option<Native>,
    /// None when the container asks for none.
    pub(crate) plugins: Option<Plugins>,
}

impl Directory {
    /// The files of plugins to load, in their own directory.
    pub(crate) fn plugin_files(&self) -> &[PathBuf] {
        self.plugins.as_ref().map_or(&[], |plugins| &plugins.files)
    }

    /// What `state` says of a module that it runs.
    pub(crate) fn run(&self, found: &Found) -> Run {
        let mode = if found.native.is_some() { RunMode::Aot } else { RunMode::Interpreter };
        Run { engine: self.description.label(), mode }
    }

    /// What there is of native code for a module that it is to run.
    pub(crate) fn look_up(
        &self,
        wish: Wish,
        module: Option<&OwnedFd>,
        name: &str,
        state: &State,
    ) -> Found {
        match (&self.native, module) {
            (Some(native), Some(module)) => native.look_up(wish, module.as_fd(), name, state),
            _ => Found::default(),
        }
    }
}

impl Description {
    /// The engine's name, and its version if it tells.
    pub(crate) fn label(&self) -> String {
        let Description { name, version, .. } = self;
        version.as_ref().map_or_else(|| name.clone(), |version| format!("{name} {version}"))
    }
}

/// The directory of an engine.
pub(crate) fn path(engine: workload::Engine) -> Result<PathBuf> {
    Ok(exe::engines()?.join(engine.name()))
}

/// Opens the directory of an engine. A user who may not clone mounts gets an error: nothing weaker
/// is handed to a container.
pub(crate) fn open(
    engine: workload::Engine,
    host: &Host<'_>,
    rights: &Rights,
) -> Result<Directory> {
    let path = path(engine)?;
    open_directory(&path, host, rights)
        .with_context(|| format!("open engine `{}` in `{}`", engine.name(), path.display()))
}

fn open_directory(path: &Path, host: &Host<'_>, rights: &Rights) -> Result<Directory> {
    let description = describe(path)?;
    // Not AT_RECURSIVE: a mount below the directory is no part of an engine.
    let files =
        [Some(&description.program), description.loader.as_ref(), description.libraries.as_ref()];
    for file in files.into_iter().flatten() {
        fs::metadata(path.join(file)).with_context(|| format!("find `{}`", file.display()))?;
    }
    let mount = cut_off(CWD, path).context("have a mount of its own for it")?;
    let settings = Settings::read(host.config)?;
    let plugins = plugins::open(&settings.plugins, &rights.plugins)?;
    let native = Native::new(&description, settings, host)?;
    Ok(Directory { description, mount, native, plugins })
}

/// A file or a directory of the host's that goes into a container: through what is returned nothing
/// can be written, ever, and code can be run, whatever the host has its filesystem mounted with.
///
/// It is on a mount that is nowhere. A detached mount is alive as long as the descriptor that
/// `open_tree(2)` made is open, and so long whoever has `CAP_SYS_ADMIN` in a user namespace of
/// their own, which is anybody, may make it writable by `mount_setattr(2)`. So that one is closed
/// here, before any other process has it: the kernel lets go of the mount, and nobody can change
/// one that is let go of (`dissolve_on_fput` and `do_mount_setattr` in its `fs/namespace.c`), while
/// what was opened on it before stays as it is.
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

/// [`cut_off`], of a file that is open.
pub(crate) fn cut_off_file(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    cut_off(file, Path::new(""))
}

/// Reads and checks `engine.json`.
pub(crate) fn describe(path: &Path) -> Result<Description> {
    let text = crate::input::read_file(&path.join("engine.json")).context("read `engine.json`")?;
    let mut description: Description =
        serde_json::from_slice(&text).context("parse `engine.json`")?;
    let contract = description.contract;
    ensure!(
        contract == CONTRACT,
        "it speaks version {contract} of the engine contract, and rt version {CONTRACT}"
    );
    let compiler = description.compiler.as_ref().and_then(|compiler| compiler.libraries.as_ref());
    let Description { program, loader, libraries, .. } = &description;
    let paths = [Some(program), loader.as_ref(), libraries.as_ref(), compiler];
    for path in paths.into_iter().flatten() {
        let inside = path.components().all(|component| matches!(component, Component::Normal(_)));
        ensure!(inside, "`{}` in `engine.json` leads out of the directory", path.display());
    }
    // A distributor may leave them away: they are the largest part of an engine.
    let is_there = compiler.is_none_or(|libraries| path.join(libraries).is_dir());
    description.can_compile = description.compiler.is_some() && is_there;
    Ok(description)
}
