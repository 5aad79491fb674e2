//! The module that `rt wasm compile` and `rt wasm inspect` are called with: a file, or the module
//! of a bundle.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use crate::bundle::Bundle;
use crate::walk;
use crate::workload::{self, Format, Handler, Rights};

/// A module, as its container has it.
pub(super) struct Program {
    pub(super) module: OwnedFd,
    pub(super) format: Format,
    pub(super) name: String,
    pub(super) handler: Handler,
    pub(super) rights: Rights,
    /// `None` for a file.
    pub(super) bundle: Option<Bundle>,
    pub(super) place: Place,
}

/// Where a program was found, and where an app's modules are looked up.
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// The rootfs of a bundle.
    root: Option<OwnedFd>,
}

impl Place {
    pub(super) fn open(&self, path: &Path) -> Result<OwnedFd> {
        let Some(root) = &self.root else { return open_file(CWD, path, ResolveFlags::empty()) };
        let inside = path.strip_prefix("/").unwrap_or(path);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_file(root.as_fd(), inside, resolve)
    }
}

impl Program {
    /// Opens a module. Fails if the file is not one.
    pub(super) fn open(path: &Path) -> Result<Program> {
        let program = open(path)?;
        ensure!(!program.format.worlds().is_empty(), "it is not a WebAssembly module");
        Ok(program)
    }
}

fn open(path: &Path) -> Result<Program> {
    if !path.is_dir() {
        let module = open_file(CWD, path, ResolveFlags::empty()).context("open it")?;
        let (name, rights) = (path.display().to_string(), Rights::default());
        let format = format(path, module.as_fd())?;
        let (handler, place) = (Handler::Any, Place { path: path.to_owned(), root: None });
        return Ok(Program { module, format, name, handler, rights, bundle: None, place });
    }
    let bundle = Bundle::load(path, None)?;
    let rights = Rights::of(&bundle.spec)?;
    let handler = workload::asked(&bundle.spec, "")?.unwrap_or(Handler::Any);
    let process = bundle.process();
    let name = process.args().iter().flatten().next().context("`process.args` is empty")?.clone();
    let root = rustix::fs::open(&bundle.rootfs, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("open the rootfs")?;
    // The paths where an engine would find the module, as far as they are known without mounts.
    let cwd = process.cwd().as_path();
    let mut places: Vec<PathBuf> = vec![cwd.join(&name)];
    if !name.contains('/') {
        let path = process.env().iter().flatten().find_map(|it| it.strip_prefix("PATH="));
        let folders = path.unwrap_or_default().split(':');
        places.splice(0..0, folders.map(|folder| cwd.join(folder).join(&name)));
    }
    if name == "/" {
        places.push(cwd.join(&name).join(workload::MANIFEST));
    }
    let mut place = Place { path: PathBuf::new(), root: Some(root) };
    for path in places {
        if let Ok(module) = place.open(&path) {
            let format = format(&path, module.as_fd())?;
            place.path = path;
            let bundle = Some(bundle);
            return Ok(Program { module, format, name, handler, rights, bundle, place });
        }
    }
    bail!("its program `{name}` is not in the rootfs")
}

fn format(path: &Path, module: BorrowedFd<'_>) -> Result<Format> {
    let mut head = [0; workload::HEAD];
    let length = rustix::io::pread(module, &mut head, 0).context("read it")?;
    Ok(Format::of(path, &head[..length]))
}

/// Opens a regular file. Merely opening another kind of file, such as a device, may have an effect.
fn open_file(from: BorrowedFd<'_>, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd> {
    let found = walk::open(from, path, OFlags::PATH, resolve)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    ensure!(kind == FileType::RegularFile, "it is not a regular file");
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(rustix::fs::open(&again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
