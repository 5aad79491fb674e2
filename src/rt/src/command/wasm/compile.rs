//! `rt wasm compile MODULE|BUNDLE`: has a module compiled before its first start, and shows how long it takes.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::bundle::Bundle;
use crate::cli::{Global, WasmCompile};
use crate::engine::Later;
use crate::state::Root;
use crate::workload::{self, Format};

pub(super) fn compile(root: &Root, global: &Global, args: &WasmCompile) -> Result<()> {
    let (module, name) = open(&args.path)?;
    let mut head = [0; workload::HEAD];
    let length = rustix::io::pread(&module, &mut head, 0).context("read it")?;
    ensure!(Format::of(&head[..length]) == Format::Module, "it is not a WebAssembly module");
    let (_, native) = super::compiler(root, global)?;
    let key = native.key(module.as_fd(), false)?.context("it is too large to be compiled")?;
    if native.cache.find(&key).is_some() {
        return super::super::print(&format!("{name}: is compiled already\n"));
    }
    if let Some(failure) = native.cache.failure(&key).filter(|_| !args.force) {
        bail!("it could not be compiled before (`--force` tries again): {}", failure.why);
    }
    native.cache.forget_failure(&key);
    let begun = Instant::now();
    let mut said = String::new();
    match native.cache.claim(&key, module.as_fd())? {
        Some(job) => {
            let what = Later { job, name: name.clone(), counting: false };
            let mut worker = native.start(what, false, Stdio::piped())?;
            // A line that is written again and again is for eyes.
            let watched = std::io::stderr().is_terminal();
            while worker.try_wait().context("wait for the compiler")?.is_none() {
                if watched {
                    // With standard error closed there is nobody to tell.
                    let _ = write!(std::io::stderr(), "\r{name}: {} s", begun.elapsed().as_secs());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            if watched {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
            // One line, after which it has ended.
            if let Some(mut errors) = worker.stderr.take() {
                errors.read_to_string(&mut said).context("read what the compiler says")?;
            }
        }
        None => native.cache.wait_for(&key)?,
    }
    if native.cache.find(&key).is_none() {
        match native.cache.failure(&key) {
            Some(failure) => bail!(failure.why),
            None => bail!("{}", said.trim_end().trim_start_matches("rt: ")),
        }
    }
    super::super::print(&format!("{name}: compiled in {:.1} s\n", begun.elapsed().as_secs_f32()))
}

/// The module, and what its container calls it.
fn open(path: &Path) -> Result<(OwnedFd, String)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if !path.is_dir() {
        let module = rustix::fs::open(path, flags, Mode::empty()).context("open it")?;
        return Ok((module, path.display().to_string()));
    }
    let bundle = Bundle::load(path, None)?;
    let process = bundle.process();
    let name = process.args().iter().flatten().next().context("`process.args` is empty")?.clone();
    let root = rustix::fs::open(&bundle.rootfs, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("open the rootfs")?;
    // Where an engine finds it, as far as that can be told without mounts.
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
        if let Ok(module) = rustix::fs::openat2(&root, inside, flags, Mode::empty(), resolve) {
            return Ok((module, name));
        }
    }
    bail!("its program `{name}` is not in the rootfs")
}
