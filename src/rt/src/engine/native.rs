//! Native code for a container's module: found in the cache, or had made for its next start. Runs in the caller's process.
//!
//! Only what `rt` itself had compiled is ever run, never what an image holds. The module is read by the descriptor that init
//! opened as the container's user, and native code is found by the digest of what was read, with the module inside of it: so the
//! bytes that were looked at are the ones that run.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Description;
use super::cache::{self, Cache, Entry, Job, Key, Kind};
use super::settings::Settings;
use crate::exe;
use crate::workload::{Compile, Wish};

/// To be raised when what a module is compiled to changes for a reason that the key does not hold.
const FORMAT: u32 = 1;

/// What the kernel says of the processor, features included, in one line; the same words mean that code for one runs on the other.
const PROCESSOR: &str = "/sys/devices/system/cpu/modalias";

/// What is the same for all modules of an engine on this host.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) settings: Settings,
    pub(crate) cache: Cache,
    /// All that native code depends on, but for the module.
    surroundings: String,
    /// The arguments of this runtime that a compiler of modules is started with too.
    flags: Vec<String>,
}

/// What the command line says that a compiler of modules has to know.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    /// The root of the containers' state.
    pub(crate) root: &'a Path,
    pub(crate) config: Option<&'a Path>,
    /// Flags that say who makes cgroups.
    pub(crate) cgroups: Option<&'static str>,
}

/// What there is for a module.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The one file, on a read-only mount of its own that nobody can change.
    pub(crate) native: Option<OwnedFd>,
    /// To be started when the container is made.
    pub(crate) later: Option<Later>,
}

/// A module that is compiled in the background.
#[derive(Debug)]
pub(crate) struct Later {
    pub(crate) job: Job,
    /// What its container calls it.
    pub(crate) name: String,
    /// Its instructions are to be counted.
    pub(crate) counting: bool,
}

impl Native {
    /// None when the engine cannot compile.
    pub(crate) fn new(
        description: &Description,
        settings: Settings,
        host: &Host<'_>,
    ) -> Result<Option<Native>> {
        if description.compiler.is_none() {
            return Ok(None);
        }
        let Ok(processor) = fs::read_to_string(PROCESSOR) else {
            tracing::debug!("no `{PROCESSOR}`: modules are not compiled");
            return Ok(None);
        };
        let surroundings = format!(
            "{FORMAT}\n{}\n{}\n{}\n{}\n{processor}",
            description.name,
            description.version.as_deref().unwrap_or_default(),
            description.build.as_deref().unwrap_or_default(),
            std::env::consts::ARCH,
        );
        let cache = Cache::new(&settings.cache.directory, host.root.join("@wasm"));
        let mut flags = vec![format!("--root={}", absolute(host.root)?.display())];
        if let Some(config) = host.config {
            flags.push(format!("--wasm-config={}", absolute(config)?.display()));
        }
        flags.extend(host.cgroups.map(str::to_owned));
        Ok(Some(Native { settings, cache, surroundings, flags }))
    }

    /// None for a module that is too large.
    pub(crate) fn key(&self, module: BorrowedFd<'_>, counting: bool) -> Result<Option<Key>> {
        Ok(cache::digest(module)?.map(|digest| self.key_of(digest, counting)))
    }

    fn key_of(&self, digest: blake3::Hash, counting: bool) -> Key {
        let counting = if counting { "\ncounting" } else { "" };
        Key::new(&format!("{}{counting}", self.surroundings), digest)
    }

    /// What there is for a module, when its container wishes this. Without native code a module is interpreted: nothing that goes
    /// wrong here keeps it from running.
    pub(crate) fn look_up(&self, wish: Wish, module: BorrowedFd<'_>, name: &str) -> Found {
        // The administrator's `off` is not a container's to change.
        let mode = match self.settings.compile {
            Compile::Off => Compile::Off,
            own => wish.compile.unwrap_or(own),
        };
        self.try_look_up(mode, wish.counting, module, name).unwrap_or_else(|error| {
            tracing::warn!("the module `{name}` is interpreted: {error:#}");
            Found::default()
        })
    }

    fn try_look_up(
        &self,
        mode: Compile,
        counting: bool,
        module: BorrowedFd<'_>,
        name: &str,
    ) -> Result<Found> {
        if mode == Compile::Off {
            return Ok(Found::default());
        }
        let Some(key) = self.key(module, counting)? else { return Ok(Found::default()) };
        if let Some(file) = self.cache.find(&key) {
            return detach(file.as_fd());
        }
        if let Some(failure) = self.cache.failure(&key) {
            tracing::debug!("the module `{name}` cannot be compiled: {}", failure.why);
            return Ok(Found::default());
        }
        let job = self.cache.claim(&key, module)?;
        if mode == Compile::Lazy {
            let later = job.map(|job| Later { job, name: name.to_owned(), counting });
            return Ok(Found { native: None, later });
        }
        match job {
            Some(job) => self.compile(Later { job, name: name.to_owned(), counting }, false)?,
            None => self.cache.wait_for(&key, self.patience())?,
        }
        self.cache.find(&key).map_or_else(|| Ok(Found::default()), |file| detach(file.as_fd()))
    }

    /// How long somebody who waits for a module waits for the compilers of others, before it goes without.
    pub(crate) fn patience(&self) -> Duration {
        const LEAST: u64 = 60;
        Duration::from_secs(self.settings.compiler.seconds.max(LEAST))
    }

    /// Has a module compiled. It takes nothing of this process with it but the module: a pipe of the caller's that it held open
    /// would keep the caller waiting.
    pub(crate) fn start(&self, what: Later, background: bool, errors: Stdio) -> Result<Child> {
        let Later { job, name, counting } = what;
        let mut worker = exe::again().context("start a compiler of modules")?;
        worker.args(&self.flags).args(["wasm", "worker", "--name", &name]);
        if background {
            worker.arg("--background");
        }
        if counting {
            worker.arg("--counting");
        }
        worker
            .stdin(Stdio::from(job.file))
            .stdout(Stdio::null())
            .stderr(errors)
            .current_dir("/")
            .spawn()
            .context("start a compiler of modules")
    }

    /// And waits for it: in the background, until it has left.
    fn compile(&self, what: Later, background: bool) -> Result<()> {
        let worker = self.start(what, background, Stdio::null())?.wait();
        let status = worker.context("wait for a compiler of modules")?;
        ensure!(status.success(), "the compiler of modules failed");
        Ok(())
    }

    /// Whether an entry of the cache is for this engine and this processor.
    pub(crate) fn is_useful(&self, entry: &Entry) -> bool {
        let module = match &entry.kind {
            Kind::Native(about) => &about.module,
            Kind::Failed(failure) => &failure.module,
            Kind::Job => return true,
            Kind::Useless => return false,
        };
        blake3::Hash::from_hex(module).is_ok_and(|module| {
            [false, true]
                .iter()
                .any(|counting| self.key_of(module, *counting).to_string() == entry.key)
        })
    }

    /// As [`Native::compile`], in the background: the container is made, whatever becomes of it.
    pub(crate) fn compile_later(&self, later: Option<Later>) {
        let Some(later) = later else { return };
        let name = later.name.clone();
        if let Err(error) = self.compile(later, true) {
            tracing::warn!("the module `{name}` is not compiled: {error:#}");
        }
    }
}

/// What init hands to the engine: the one file, on a mount of its own.
fn detach(file: BorrowedFd<'_>) -> Result<Found> {
    Ok(Found { native: Some(super::cut_off_file(file)?), later: None })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find `{}`", path.display()))
}
