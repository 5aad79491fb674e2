//! Hooks: programs that the configuration names, which `rt` runs at certain points (runtime-spec,
//! `config.md`, "POSIX-platform Hooks").
//!
//! This is our own code. libcontainer's code starts a thread for a timeout, and lets a hook inherit
//! open descriptors. `rt` has one thread.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Hook, Hooks};
use rustix::fs::{Access, MemfdFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use crate::failure;
use crate::linux::descriptors;
use crate::linux::namespaces;
use crate::linux::process;
use crate::state::{State, Status};
use crate::{exe, interrupt, syscall, trust};

/// The files to which hooks print, as annotations name them. Without an annotation, a hook's
/// standard output goes nowhere, and its standard error to `rt`'s own.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdout: Option<File>,
    stderr: Option<File>,
}

const STDOUT: &str = "run.oci.hooks.stdout";
const STDERR: &str = "run.oci.hooks.stderr";

impl Streams {
    /// The open files.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.stdout.iter().chain(&self.stderr).map(AsFd::as_fd)
    }

    /// Opens the files, or makes them. Runs in the runtime process, which can reach them.
    pub(crate) fn open(annotations: &BTreeMap<String, String>) -> Result<Streams> {
        let open = |key: &str| -> Result<Option<File>> {
            let Some(path) = annotations.get(key) else { return Ok(None) };
            let show = || format!("open `{path}`, the annotation `{key}`");
            trust::append(Path::new(path), 0o600).with_context(show).map(Some)
        };
        Ok(Streams { stdout: open(STDOUT)?, stderr: open(STDERR)? })
    }

    /// For later hooks: if a file can no longer be opened, the hooks still run.
    pub(crate) fn open_or_none(kind: &str, state: &State) -> Streams {
        Streams::open(&state.annotations).unwrap_or_else(|error| {
            crate::report::warn(&format!("run {kind} hooks: {error:#}"));
            Streams::default()
        })
    }
}

/// The surroundings of hooks, besides the state on their standard input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// The working directory of the hooks. None for the working directory of this process.
    pub(crate) folder: Option<&'a Path>,
    /// The environment of a hook that does not set its own. None for the environment of this
    /// process, as with runc and crun.
    pub(crate) environment: Option<&'a [String]>,
    /// The hooks' limit of open descriptors, if this process has raised its own.
    pub(super) descriptors: descriptors::Before,
    /// The highest descriptor that is open in this process when the hooks start, or a higher
    /// number.
    pub(super) highest: RawFd,
}

/// The highest descriptor of a process to which no caller has passed descriptors with high numbers.
pub(super) const FEW: RawFd = 1023;

impl<'a> Place<'a> {
    /// On the host. The working directory is the bundle, unless it is gone or root of a user
    /// namespace may not enter it.
    pub(crate) fn bundle(state: &'a State) -> Place<'a> {
        let folder = Some(state.bundle.as_path());
        let open = |folder: &&Path| rustix::fs::access(*folder, Access::EXEC_OK).is_ok();
        Place { folder: folder.filter(open), environment: None, descriptors: None, highest: FEW }
    }
}

/// Runs hooks one after the other. The first failure ends the list.
pub(crate) fn run(
    kind: &str,
    hooks: &[Hook],
    state: &str,
    place: Place<'_>,
    streams: &Streams,
) -> Result<()> {
    for hook in hooks {
        run_one(hook, state, place, streams)
            .with_context(|| format!("run {kind} hook `{}`", hook.path().display()))?;
    }
    Ok(())
}

/// Runs the hooks on the host that come before a container is made or restored: `prestart` and
/// `createRuntime`.
pub(super) fn run_before_creation(
    hooks: Option<&Hooks>,
    state: &State,
    streams: &Streams,
) -> Result<()> {
    let Some(hooks) = hooks else { return Ok(()) };
    let json = state.report(Status::Creating).to_string();
    let list = |hooks: &Option<Vec<Hook>>| hooks.clone().unwrap_or_default();
    let place = Place::bundle(state);
    run("prestart", &list(hooks.prestart()), &json, place, streams)?;
    run("createRuntime", &list(hooks.create_runtime()), &json, place, streams)
}

/// Runs all hooks, even if some fail: for hooks at points from which a command cannot go back.
pub(crate) fn run_all(kind: &str, hooks: &[Hook], state: &State, status: Status) {
    if hooks.is_empty() {
        return;
    }
    process::forget_affinity();
    let json = state.report(status).to_string();
    let streams = Streams::open_or_none(kind, state);
    let place = Place::bundle(state);
    for hook in hooks {
        if let Err(error) = run_one(hook, &json, place, &streams) {
            crate::report::warn(&format!(
                "run {kind} hook `{}`: {}",
                hook.path().display(),
                crate::report::describe(&error)
            ));
        }
    }
}

/// A standard input that contains the state. This is not a pipe: a hook that does not read its
/// input would block the writer beyond the hook's timeout.
fn input(state: &str) -> Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn run_one(hook: &Hook, state: &str, place: Place<'_>, streams: &Streams) -> Result<()> {
    let pid = start(hook, state, place, streams)?;
    // `bundle` refuses a timeout that is not greater than 0.
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    if let Err(error) = interrupt::wait_for(pid, seconds.map(Duration::from_secs)) {
        let killed = rustix::process::kill_process(pid, Signal::KILL).context("kill it");
        let ended = killed.and_then(|()| namespaces::wait(pid).map(drop));
        return failure::and_then_cleaned(Err(error), ended);
    }
    let status = namespaces::wait(pid)?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("exit status {code}"),
        (None, signal) => bail!("killed by signal {}", signal.unwrap_or(0)),
    }
}

/// Starts a hook. This is our own code, not the standard library's. A hook in the container is
/// looked up by a name that its image chooses. So by then, its process may have only two things
/// open: its streams, and a pipe on which it reports a failed exec.
fn start(hook: &Hook, state: &str, place: Place<'_>, streams: &Streams) -> Result<Pid> {
    let c_string = |text: &[u8]| CString::new(text).context("a NUL byte");
    let path = c_string(hook.path().as_os_str().as_bytes())?;
    let argv = match hook.args().as_deref() {
        Some(args @ [_, ..]) => {
            args.iter().map(|arg| c_string(arg.as_bytes())).collect::<Result<_>>()?
        }
        _ => vec![path.clone()],
    };
    let envp: Vec<CString> = match hook.env().as_deref().or(place.environment) {
        Some(given) => {
            // Of two variables with one name, the last one counts.
            let counts = |(at, variable): &(usize, &String)| {
                let own = name(variable);
                own.is_some() && !given[*at + 1..].iter().any(|later| name(later) == own)
            };
            let counting = given.iter().enumerate().filter(counts);
            counting.map(|(_, variable)| c_string(variable.as_bytes())).collect::<Result<_>>()?
        }
        None => std::env::vars_os()
            // Hooks get the caller's environment without this variable.
            .filter(|(name, _)| name != exe::ENGINES)
            .map(|(name, value)| c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<_>>()?,
    };
    let input = input(state).context("have the state ready")?;
    let nowhere = match streams.stdout {
        None => Some(nowhere().context("open `/dev/null`")?),
        Some(_) => None,
    };
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    let Some(pid) = syscall::fork().context("make a process")? else {
        let become_hook = || -> rustix::io::Result<Errno> {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            syscall::default_signal_actions();
            syscall::block_only(&[]);
            rustix::stdio::dup2_stdin(&input)?;
            match (&streams.stdout, &nowhere) {
                (Some(file), _) => rustix::stdio::dup2_stdout(file)?,
                (None, Some(nowhere)) => rustix::stdio::dup2_stdout(nowhere)?,
                (None, None) => {}
            }
            if let Some(file) = &streams.stderr {
                rustix::stdio::dup2_stderr(file)?;
            }
            if let Some(folder) = place.folder {
                rustix::process::chdir(folder)?;
            }
            descriptors::give_back(place.descriptors)?;
            close_all_but(tell.as_fd(), place.highest)?;
            Ok(syscall::execve(&path, &argv, &envp))
        };
        let error = become_hook().unwrap_or_else(|error| error);
        // The reader has ended, or waits for this number.
        let _ = rustix::io::write(&tell, &error.raw_os_error().to_ne_bytes());
        syscall::exit_now(1)
    };
    drop(tell);
    let mut number = [0; 4];
    // The hook's exec closes the pipe.
    if rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut number))? == number.len() {
        namespaces::wait(pid)?;
        return Err(Errno::from_raw_os_error(i32::from_ne_bytes(number)).into());
    }
    Ok(pid)
}

/// The name of an environment variable. None for a text that is not a variable.
fn name(variable: &str) -> Option<&str> {
    variable.split_once('=').map(|(name, _)| name)
}

/// Runs in the hook's process.
fn close_all_but(tell: BorrowedFd<'_>, highest: RawFd) -> rustix::io::Result<()> {
    /// The number of descriptors that are opened for one hook. The kernel gives each the lowest
    /// free number.
    const NEW: RawFd = 16;
    match syscall::close_all_but(3, &[tell]) {
        // The container's seccomp filter forbids the call. It is loaded before the hooks that run
        // in the container.
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
            syscall::close_each_but(3..highest.max(FEW) + NEW, tell)
        }
        closed => closed,
    }
}

/// The standard output of a hook if no annotation names a file. An image may have something else at
/// the path of `/dev/null`, or nothing.
fn nowhere() -> Result<OwnedFd> {
    let null = process::open_null()
        .map_or_else(|| rustix::fs::memfd_create("null", MemfdFlags::CLOEXEC), Ok);
    Ok(null?)
}
