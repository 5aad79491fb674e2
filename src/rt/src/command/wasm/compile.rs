//! `rt wasm compile MODULE|BUNDLE`: has a module compiled before its first start, and shows the
//! elapsed time.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use crate::bundle::Bundle;
use crate::cli::{Global, WasmCompile};
use crate::engine::{Engines, Later, Native, cache};
use crate::state::Root;
use crate::walk;
use crate::workload::{self, Format, Handler, Rights};

pub(super) fn compile(root: &Root, global: &Global, args: &WasmCompile) -> Result<()> {
    let Program { module, name, handler, rights } = open(&args.path)?;
    let mut head = [0; workload::HEAD];
    let length = rustix::io::pread(&module, &mut head, 0).context("read it")?;
    let format = Format::of(&head[..length]);
    ensure!(!format.worlds().is_empty(), "it is not a WebAssembly module");
    let engines = Engines::find(&handler, super::super::host(root, global), &[])?;
    let native = super::compiler(&engines, engines.choose(format, &rights)?)?;
    let counting = rights.wish().counting;
    let key = native.key(module.as_fd(), counting)?.context("it is too large to be compiled")?;
    let shown = crate::report::visible(&name);
    if native.cache.find(&key).is_some() {
        return super::super::print(&format!("{shown}: is compiled already\n"));
    }
    if let Some(failure) = native.failure(&key).filter(|_| !args.force) {
        bail!("it could not be compiled before (`--force` tries again): {}", failure.why);
    }
    native.cache.forget_failure(&key);
    let begun = Instant::now();
    let (mut said, mut patience) = (String::new(), native.administrators_patience());
    match native.cache.claim(&key, module.as_fd(), None)? {
        Some(job) => {
            let what = Later { key: key.clone(), module, name, counting, tenant: None };
            let mut worker = native.start(job, &what, Some(patience.before), Stdio::piped())?;
            let errors = worker.stderr.take();
            // Only a person at a terminal wants a line that is rewritten again and again.
            let watched = std::io::stderr().is_terminal();
            let show = || {
                if watched {
                    let seconds = begun.elapsed().as_secs();
                    // If standard error is closed, nobody can see this line.
                    let _ = write!(std::io::stderr(), "\r{shown}: {seconds} s");
                }
                Ok(())
            };
            let outcome = Native::wait(worker, show);
            if watched {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
            // The worker writes one line, and then ends.
            if let Some(mut errors) = errors {
                errors.read_to_string(&mut said).context("read what the compiler says")?;
            }
            // The worker's message says more than its exit status.
            outcome.or_else(|error| if said.is_empty() { Err(error) } else { Ok(()) })?;
        }
        None => native.cache.wait_for(&key, cache::ADMINISTRATOR, &mut patience)?,
    }
    if native.cache.find(&key).is_none() {
        match native.cache.failure(&key) {
            Some(failure) => bail!(failure.why),
            None if said.is_empty() => bail!("another process has not compiled it: try again"),
            None => bail!("{}", said.trim_end().trim_start_matches("rt: ")),
        }
    }
    super::super::print(&format!("{shown}: compiled in {:.1} s\n", begun.elapsed().as_secs_f32()))
}

/// A module, as its container has it.
struct Program {
    module: OwnedFd,
    name: String,
    handler: Handler,
    rights: Rights,
}

fn open(path: &Path) -> Result<Program> {
    if !path.is_dir() {
        let module = open_file(CWD, path, ResolveFlags::empty()).context("open it")?;
        let (name, rights) = (path.display().to_string(), Rights::default());
        return Ok(Program { module, name, handler: Handler::Any, rights });
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
    for place in places {
        let inside = place.strip_prefix("/").unwrap_or(&place);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if let Ok(module) = open_file(root.as_fd(), inside, resolve) {
            return Ok(Program { module, name, handler, rights });
        }
    }
    bail!("its program `{name}` is not in the rootfs")
}

/// Opens a regular file. Merely opening another kind of file, such as a device, may have an effect.
fn open_file(from: BorrowedFd<'_>, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd> {
    let found = walk::open(from, path, OFlags::PATH, resolve)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    ensure!(kind == FileType::RegularFile, "it is not a regular file");
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(rustix::fs::open(&again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
