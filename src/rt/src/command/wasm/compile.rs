//! `rt wasm compile MODULE|BUNDLE`: has a module compiled before its first start, and shows the
//! elapsed time.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::program::Program;
use crate::cli::{Global, WasmCompile};
use crate::engine::{self, Engines, Later, Native, cache};
use crate::state::Root;
use crate::workload::Format;

pub(super) fn compile(root: &Root, global: &Global, args: &WasmCompile) -> Result<()> {
    let Program { module, format, name, handler, rights, place, .. } = Program::open(&args.path)?;
    let engines = Engines::find(&handler, super::super::host(root, global), &[])?;
    let world = format.handler(module.as_fd());
    // A part of a Spin app is compiled for an engine that runs apps.
    let contents = format.contents(module.as_fd()).unwrap_or_default();
    let whole = if contents.part_of_an_app(format).is_some() { Format::Manifest } else { format };
    let number = engines.choose(whole, world, module.as_fd(), &rights)?;
    let native = super::compiler(&engines, number)?;
    let counting = rights.wish().counting;
    let compiled = one(&native, module, &name, counting, args.force)?;
    if format != Format::Manifest {
        return Ok(());
    }
    for path in engine::modules(&engine::cut_off_file(compiled.as_fd())?)? {
        let path = engine::place(&place.path, &path);
        let name = path.display().to_string();
        let module = place.open(&path).with_context(|| format!("open its module `{name}`"))?;
        one(&native, module, &name, counting, args.force)?;
    }
    Ok(())
}

/// Has one file compiled, and returns the result.
fn one(
    native: &Native,
    module: OwnedFd,
    name: &str,
    counting: bool,
    force: bool,
) -> Result<OwnedFd> {
    let key = native.key(module.as_fd(), counting)?.context("it is too large to be compiled")?;
    let shown = crate::report::visible(name);
    if let Some(file) = native.cache.find(&key) {
        super::super::print(&format!("{shown}: is compiled already\n"))?;
        return Ok(file.into());
    }
    if let Some(failure) = native.failure(&key).filter(|_| !force) {
        bail!("it could not be compiled before (`--force` tries again): {}", failure.why);
    }
    native.cache.forget_failure(&key);
    let begun = Instant::now();
    let (mut said, mut patience) = (String::new(), native.administrators_patience());
    match native.cache.claim(&key, module.as_fd(), None)? {
        Some(job) => {
            let name = name.to_owned();
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
    let Some(file) = native.cache.find(&key) else {
        match native.cache.failure(&key) {
            Some(failure) => bail!(failure.why),
            None if said.is_empty() => bail!("another process has not compiled it: try again"),
            None => bail!("{}", said.trim_end().trim_start_matches("rt: ")),
        }
    };
    let seconds = begun.elapsed().as_secs_f32();
    super::super::print(&format!("{shown}: compiled in {seconds:.1} s\n"))?;
    Ok(file.into())
}
