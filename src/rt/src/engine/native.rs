//! Native code for a container's module: found in the cache, or compiled for the module's next
//! start. Runs in the runtime process.
//!
//! Only code that `rt` itself had compiled is ever run, never code from an image. The runtime
//! process reads the module by the descriptor that init opened as the container's user. It finds
//! native code by the digest of the bytes that it read, and the native code contains the module. So
//! the examined bytes are the bytes that run.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::Description;
use super::cache::{self, Cache, Entry, Failure, Job, Key, Kind, Patience};
use super::settings::{CacheSettings, CompilerSettings, Settings};
use crate::state::State;
use crate::workload::{Compile, Wish};
use crate::{exe, ids, signals};

/// Raise this number when native code changes for a reason that the key does not contain.
const FORMAT: u32 = 2;

/// The kernel's description of the processor and its features, in one line. If the line is the same
/// on two processors, code for one runs on the other.
const PROCESSOR: &str = "/sys/devices/system/cpu/modalias";

/// The data that all modules of an engine share on this host.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) settings: Settings,
    pub(crate) cache: Cache,
    /// The name of the engine's directory.
    engine: String,
    /// Everything that native code depends on, except the module.
    surroundings: String,
    /// The global flags of this `rt`, which a worker gets too.
    flags: Vec<String>,
    /// The root of the state, as an absolute path.
    root: PathBuf,
    /// If false, only native code that is already in the cache is used.
    pub(crate) can_compile: bool,
    /// Whether the engine runs a module without native code.
    interprets: bool,
}

/// The parts of the command line that a worker requires.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    /// The root of the state.
    pub(crate) root: &'a Path,
    pub(crate) config: Option<&'a Path>,
    /// The flag that selects who makes cgroups.
    pub(crate) cgroups: Option<&'static str>,
}

/// The native code for a module, or a module to compile later.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The file, alone on a read-only mount that nobody can change.
    pub(crate) native: Option<OwnedFd>,
    /// To be compiled when the container is made.
    pub(crate) later: Option<Later>,
}

/// A module that is to be compiled.
#[derive(Debug)]
pub(crate) struct Later {
    pub(crate) key: Key,
    pub(crate) module: OwnedFd,
    /// The module's name in its container.
    pub(crate) name: String,
    /// The native code counts instructions.
    pub(crate) counting: bool,
    /// The tenant for which the module is compiled, or `None` for the administrator.
    pub(crate) tenant: Option<u64>,
}

/// The annotations in which the CRI servers of containerd and CRI-O name a container's pod. The
/// configuration comes from the trusted caller, so `rt` believes the pod's name.
const PODS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

/// How long a start waits for native code if the engine interprets nothing: for the compilers of
/// others, and then for its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// A start that has waited longer for native code says so: in the log, and to people who look at
/// the container's output.
const NOTICED: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(1);

/// The exit status of a worker that had no turn in time.
pub(crate) const BUSY: u8 = 75;

impl Native {
    /// Returns `None` if the engine does not run native code. `name` is the name of the engine's
    /// directory.
    pub(crate) fn new(
        name: &str,
        description: &Description,
        settings: Settings,
        host: &Host<'_>,
    ) -> Result<Option<Native>> {
        if !description.knows("native") {
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
        let CacheSettings { directory, max_bytes } = &settings.cache;
        let cache = Cache::new(directory, host.root.join("@wasm"), *max_bytes);
        let root = absolute(host.root)?;
        let mut flags = vec![format!("--root={}", root.display())];
        if let Some(config) = host.config {
            flags.push(format!("--wasm-config={}", absolute(config)?.display()));
        }
        flags.extend(host.cgroups.map(str::to_owned));
        Ok(Some(Native {
            settings,
            cache,
            engine: name.to_owned(),
            surroundings,
            flags,
            root,
            can_compile: description.can_compile,
            interprets: description.interprets,
        }))
    }

    /// Returns `None` if the module is too large.
    pub(crate) fn key(&self, module: BorrowedFd<'_>, counting: bool) -> Result<Option<Key>> {
        Ok(cache::digest(module)?.map(|digest| self.key_of(digest, counting)))
    }

    fn key_of(&self, digest: blake3::Hash, counting: bool) -> Key {
        let counting = if counting { "\ncounting" } else { "" };
        Key::new(&format!("{}{counting}", self.surroundings), digest)
    }

    /// The number of a container's tenant: of the pod, or of the container itself if it has no pod.
    /// A tenant has a share of the compilers and of the cache.
    fn tenant(&self, state: &State) -> u64 {
        let pod = PODS.iter().find_map(|key| state.annotations.get(*key));
        cache::number_of(&match pod {
            Some(pod) => format!("pod {pod}"),
            None => format!("container {} of {}", state.id, self.root.display()),
        })
    }

    /// Finds native code for a module, as its container wishes. Fails only if the engine cannot run
    /// the module without native code.
    pub(crate) fn look_up(
        &self,
        wish: Wish,
        module: BorrowedFd<'_>,
        name: &str,
        state: &State,
    ) -> Result<Found> {
        // A container cannot override the administrator's `off`.
        let mode = match self.settings.compile {
            Compile::Off => Compile::Off,
            own => wish.compile.unwrap_or(own),
        };
        if !self.interprets {
            return self.require(mode, wish, module, name, state);
        }
        let CompilerSettings { seconds, wait_seconds, .. } = self.settings.compiler;
        let patience = match wish.patience {
            Some(all) => Patience { before: all, during: all },
            None => Patience {
                before: Duration::from_secs(wait_seconds),
                during: Duration::from_secs(seconds),
            },
        };
        let found = self.try_look_up(mode, wish.counting, patience, module, name, state);
        Ok(found.unwrap_or_else(|error| {
            let line = format!("the module `{name}` is interpreted: {error:#}");
            if mode == Compile::Eager {
                // The container asked for native code, so the caller should see the warning.
                crate::report::warn(&line);
            } else {
                tracing::warn!("{line}");
            }
            Found::default()
        }))
    }

    /// Finds or makes native code for an engine that interprets nothing.
    fn require(
        &self,
        mode: Compile,
        wish: Wish,
        module: BorrowedFd<'_>,
        name: &str,
        state: &State,
    ) -> Result<Found> {
        let all = wish.patience.unwrap_or(PATIENCE);
        let patience = Patience { before: all, during: all };
        let found = match mode {
            Compile::Off if self.settings.compile == Compile::Off => {
                Err(anyhow!("`compile` is `off` in the configuration of modules"))
            }
            Compile::Off => Err(anyhow!("the annotation `run.oci.wasm.compile` is `off`")),
            Compile::Lazy | Compile::Eager => {
                let begun = Instant::now();
                let eager = Compile::Eager;
                let found = self.try_look_up(eager, wish.counting, patience, module, name, state);
                let took = begun.elapsed();
                let line =
                    format!("`{name}` waited {:.1} s until it was compiled", took.as_secs_f32());
                if took > LONG && found.is_ok() {
                    // Not in the log: callers take each entry for the error of a failed command.
                    // Standard error is the container's, so its output shows the line.
                    crate::report::warn(&format!(
                        "{line}: a later start on this host does not wait"
                    ));
                } else if took > NOTICED {
                    tracing::info!("{line}");
                }
                found
            }
        };
        found.with_context(|| {
            let why = if ids::is_host_root() {
                ""
            } else {
                ", because ordinary users have no cache of it"
            };
            format!(
                "the engine `{}` runs native code only, and `{name}` has none{why}",
                self.engine
            )
        })
    }

    fn try_look_up(
        &self,
        mode: Compile,
        counting: bool,
        patience: Patience,
        module: BorrowedFd<'_>,
        name: &str,
        state: &State,
    ) -> Result<Found> {
        if mode == Compile::Off {
            return Ok(Found::default());
        }
        let hopeless = |why: String| {
            ensure!(mode != Compile::Eager, why);
            tracing::debug!("the module `{name}` is interpreted: {why}");
            Ok(Found::default())
        };
        let Some(key) = self.key(module, counting)? else {
            return hopeless("it is too large to be compiled".to_owned());
        };
        if let Some(file) = self.cache.find(&key) {
            self.cache.count_hit(&key);
            return detach(file.as_fd());
        }
        if !self.can_compile {
            return hopeless("this installation compiles no modules".to_owned());
        }
        if let Some(failure) = self.failure(&key) {
            return hopeless(format!("it cannot be compiled: {}", failure.why));
        }
        let module = module.try_clone_to_owned().context("keep the module open")?;
        let tenant = self.tenant(state);
        let (key, name) = (key.clone(), name.to_owned());
        let later = Later { key, module, name, counting, tenant: Some(tenant) };
        if mode == Compile::Lazy {
            // The module is not claimed yet: this process continues only when init lets it, and
            // others may delay that.
            return Ok(Found { native: None, later: Some(later) });
        }
        let compiled = self.compile_now(&later, tenant, patience);
        let Some(file) = self.cache.find(&later.key) else {
            if let Some(failure) = self.failure(&later.key) {
                // The recorded failure says more than the worker's exit status.
                return hopeless(format!("it cannot be compiled: {}", failure.why));
            }
            compiled?;
            bail!("the compiler of modules failed");
        };
        self.cache.count_hit(&later.key);
        detach(file.as_fd())
    }

    /// Why a module cannot be compiled, if an earlier try failed and another try would fail too.
    pub(crate) fn failure(&self, key: &Key) -> Option<Failure> {
        self.cache.failure(key).filter(|failure| failure.holds(&self.settings.compiler))
    }

    /// Has a module compiled while its container waits, or waits for the process that has claimed
    /// it.
    fn compile_now(&self, what: &Later, tenant: u64, mut patience: Patience) -> Result<()> {
        // In each round except the last, another process had the claim and did not compile the
        // module.
        const MOST_ROUNDS: usize = 16;
        for _ in 0..MOST_ROUNDS {
            if let Some(job) = self.cache.claim(&what.key, what.module.as_fd(), None)? {
                let worker = self.start(job, what, Some(patience.before), Stdio::null())?;
                // The worker itself limits how long it waits for others.
                let end = Instant::now() + patience.before + patience.during;
                return Self::wait(worker, || {
                    ensure_uninterrupted()?;
                    ensure!(Instant::now() < end, "it was not compiled in time");
                    Ok(())
                });
            }
            self.cache.wait_for(&what.key, tenant, &mut patience)?;
            if self.cache.find(&what.key).is_some() || self.failure(&what.key).is_some() {
                return Ok(());
            }
        }
        bail!("others have not compiled it in time")
    }

    /// How long the administrator waits for the compilers of others.
    pub(crate) fn administrators_patience(&self) -> Patience {
        const LEAST: u64 = 60;
        let seconds = Duration::from_secs(self.settings.compiler.seconds.max(LEAST));
        Patience { before: seconds, during: seconds }
    }

    /// Has a module compiled. The worker inherits only the module from this process. If the worker
    /// held a pipe of the caller open, the caller would wait for the worker. `wait` is the time
    /// that the worker waits for other compilers. Without it, the worker compiles in the
    /// background.
    pub(crate) fn start(
        &self,
        job: Job,
        what: &Later,
        wait: Option<Duration>,
        errors: Stdio,
    ) -> Result<Child> {
        let Job { key, file } = job;
        let start = || -> Result<Child> {
            let mut worker = exe::again()?;
            worker.args(&self.flags).args(["wasm", "worker", "--engine", &self.engine]);
            worker.args(["--name", &what.name]);
            match wait {
                Some(wait) => worker.arg(format!("--wait={}", wait.as_millis())),
                None => worker.arg("--background"),
            };
            if let Some(tenant) = what.tenant {
                worker.arg(format!("--tenant={tenant}"));
            }
            if what.counting {
                worker.arg("--counting");
            }
            let worker = worker.stdin(Stdio::from(file)).stdout(Stdio::null()).stderr(errors);
            Ok(worker.current_dir("/").spawn()?)
        };
        // A worker that was started ends the job itself.
        start().context("start a compiler of modules").inspect_err(|_| self.cache.done(&key))
    }

    /// Waits for a worker: for one in the background, only until it has left the caller. Calls
    /// `meanwhile` from time to time, and kills the worker if that fails.
    pub(crate) fn wait(mut worker: Child, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        let mut wait = || -> Result<ExitStatus> {
            let pidfd = rustix::process::pidfd_open(Pid::from_child(&worker), PidfdFlags::empty())?;
            loop {
                if let Some(status) = worker.try_wait()? {
                    return Ok(status);
                }
                meanwhile()?;
                let turn = Timespec::try_from(cache::TURN)?;
                match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&turn)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        };
        match wait() {
            Ok(status) => {
                let is_busy = status.code() == Some(i32::from(BUSY));
                ensure!(!is_busy, "the compilers of others have not ended in time");
                ensure!(status.success(), "the compiler of modules failed");
                Ok(())
            }
            Err(error) => {
                // The compiler ends with the worker.
                let _ = worker.kill();
                let _ = worker.wait();
                Err(error).context("wait for a compiler of modules")
            }
        }
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

    /// Has a module compiled in the background. Its container is already made, whatever the result.
    pub(crate) fn compile_later(&self, later: Option<Later>) {
        let Some(later) = later else { return };
        let start = || {
            let job = self.cache.claim(&later.key, later.module.as_fd(), later.tenant)?;
            job.map_or(Ok(()), |job| {
                Self::wait(self.start(job, &later, None, Stdio::null())?, || Ok(()))
            })
        };
        if let Err(error) = start() {
            tracing::warn!("the module `{}` is not compiled: {error:#}", later.name);
        }
    }
}

fn ensure_uninterrupted() -> Result<()> {
    ensure!(!signals::is_interrupted(), "a signal came while it was compiled");
    Ok(())
}

/// What init gives to the engine: the file, alone on a mount.
fn detach(file: BorrowedFd<'_>) -> Result<Found> {
    Ok(Found { native: Some(super::cut_off_file(file)?), later: None })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find `{}`", path.display()))
}
