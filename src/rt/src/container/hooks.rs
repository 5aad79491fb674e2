//! Hooks: programs that the configuration has run at certain points (runtime-spec, `config.md`, "POSIX-platform Hooks").
//!
//! Own code, not libcontainer's, which starts a thread for a timeout: `rt` has one thread.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libcontainer::oci_spec::runtime::Hook;
use rustix::fs::{Access, MemfdFlags};

use super::interrupt;
use crate::exe;
use crate::state::{State, Status};
use crate::syscall;

/// The state of the container as a hook reads it from its standard input (runtime-spec, `runtime.md`, "State").
pub(crate) fn state_json(state: &State, status: Status) -> String {
    serde_json::json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "status": status,
        "pid": if status == Status::Stopped { 0 } else { state.pid },
        "bundle": state.bundle,
        "annotations": state.annotations,
    })
    .to_string()
}

/// Where hooks print to: files that annotations name, or nowhere and `rt`'s own standard error.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdout: Option<File>,
    stderr: Option<File>,
}

const STDOUT: &str = "run.oci.hooks.stdout";
const STDERR: &str = "run.oci.hooks.stderr";

impl Streams {
    /// Opens the files, or makes them. Runs in the caller's process, where they can be reached.
    pub(crate) fn open(annotations: &BTreeMap<String, String>) -> Result<Streams> {
        let open = |key: &str| -> Result<Option<File>> {
            let Some(path) = annotations.get(key) else { return Ok(None) };
            let file = OpenOptions::new().append(true).create(true).mode(0o700).open(path);
            let show = || format!("open `{path}`, the annotation `{key}`");
            file.with_context(show).map(Some)
        };
        Ok(Streams { stdout: open(STDOUT)?, stderr: open(STDERR)? })
    }
}

/// What hooks find, besides the state on their standard input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Their working directory; none for the one that this process is in.
    pub(crate) folder: Option<&'a Path>,
    /// The environment of a hook that has none of its own; none for this process's, as with runc and crun.
    pub(crate) environment: Option<&'a [String]>,
}

impl<'a> Place<'a> {
    /// On the host: in the bundle, unless that is gone, or closed to root of a user namespace.
    pub(crate) fn bundle(state: &'a State) -> Place<'a> {
        let folder = Some(state.bundle.as_path());
        let open = |folder: &&Path| rustix::fs::access(*folder, Access::EXEC_OK).is_ok();
        Place { folder: folder.filter(open), environment: None }
    }
}

/// Runs hooks one after the other; the first that fails is the end.
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

/// Runs all, whatever becomes of any: for the hooks after which there is no way back.
pub(crate) fn run_all(kind: &str, hooks: &[Hook], state: &State, status: Status) {
    if hooks.is_empty() {
        return;
    }
    let json = state_json(state, status);
    // A file that cannot be opened any more is no reason not to run them.
    let streams = Streams::open(&state.annotations).unwrap_or_else(|error| {
        crate::warn(&format!("run {kind} hooks: {error:#}"));
        Streams::default()
    });
    let place = Place::bundle(state);
    for hook in hooks {
        if let Err(error) = run_one(hook, &json, place, &streams) {
            crate::warn(&format!(
                "run {kind} hook `{}`: {}",
                hook.path().display(),
                crate::describe(&error)
            ));
        }
    }
}

/// A standard input that holds the state. Not a pipe: a hook that does not read it would hold up who writes to it, over its timeout.
fn input(state: &str) -> Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn run_one(hook: &Hook, state: &str, place: Place<'_>, streams: &Streams) -> Result<()> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    // Of the caller's, this one is not.
    command.env_remove(exe::ENGINES);
    if let Some(environment) = hook.env().as_deref().or(place.environment) {
        let variables = environment.iter().filter_map(|variable| variable.split_once('='));
        command.env_clear().envs(variables);
    }
    if let Some(folder) = place.folder {
        command.current_dir(folder);
    }
    command.stdin(input(state).context("have the state ready")?);
    let stream = |file: &Option<File>| file.as_ref().map(File::try_clone).transpose();
    command.stdout(stream(&streams.stdout)?.map_or_else(Stdio::null, Stdio::from));
    if let Some(file) = stream(&streams.stderr)? {
        command.stderr(file);
    }
    syscall::end_with_parent(&mut command);
    let mut child = command.spawn()?;
    // `bundle` refuses one that is not greater than 0.
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    if let Err(error) = interrupt::wait_for(&child, seconds.map(Duration::from_secs)) {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }
    let status = child.wait()?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("exit status {code}"),
        (None, signal) => bail!("killed by signal {}", signal.unwrap_or(0)),
    }
}
