//! The subcommands, one file each, and their common functions.
#![forbid(unsafe_code)]

mod check;
mod checkpoint;
mod completion;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod kill;
mod list;
mod mounts;
mod pause;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod top;
mod update;
mod wasm;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::bundle::SPECIFICATION;
use crate::cli::{CgroupManager, Command, Global, WasmCommand};
use crate::container::checkpoint::criu;
use crate::engine;
use crate::linux::cgroups::Manager;
use crate::log;
use crate::state::Root;
use crate::syscall;

/// Docker and CRI-O show the first line. No other line may contain the word "version", because
/// Docker looks for it.
pub(crate) fn version() -> String {
    let mut text = format!("rt version {}\n", env!("CARGO_PKG_VERSION"));
    if let Some(commit) = option_env!("RT_COMMIT").filter(|commit| !commit.is_empty()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "commit: {commit}");
    }
    text + &format!(
        "spec: {SPECIFICATION}\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +WASM:wasmedge +WASM:wasmtime\n"
    )
}

/// Callers (CRI-O, go-runc) run `checkpoint --help` to find out whether checkpoints work. Without
/// CRIU they do not, so the command fails then.
pub(crate) fn can_be_helped() -> Result<()> {
    if std::env::args_os().any(|arg| arg == "checkpoint") {
        ensure!(criu::version().is_some(), "checkpoint: `criu` is not installed");
    }
    Ok(())
}

/// Whether the command enters a container, or could, judged by the words alone. The words are not
/// parsed here, because a process that execs the read-only clone of the executable would parse them
/// again. A false positive costs 0.1 ms.
pub(crate) fn may_enter_container(args: &[OsString]) -> bool {
    let entering = ["create", "run", "exec", "restore", "wasm"];
    args.iter().skip(1).any(|arg| entering.iter().any(|name| arg == name))
}

/// For a command that enters a container: closes the descriptors that the caller left open. This
/// comes before everything else, the log included, because it would close the log too. If the
/// command line names a file as `/dev/fd/N` or `/proc/self/fd/N`, the descriptors are closed as
/// soon as the command's files are open ([`Inherited::close`]).
pub(crate) fn inherited(command: &Command) -> Result<Inherited> {
    let (preserve_fds, listen_fds) = match command {
        Command::Create(create) => (create.create.handover.preserve_fds, listen_fds()),
        Command::Run(run) => (run.create.handover.preserve_fds, listen_fds()),
        // Sockets are for the container's first process.
        Command::Exec(exec) => (exec.handover.preserve_fds, 0),
        Command::Restore(_) => (0, 0),
        Command::Wasm(wasm) if matches!(wasm.command, WasmCommand::Worker(_)) => (0, 0),
        _ => return Ok(Inherited::default()),
    };
    // No process has this many descriptors. rustix and the kernel count them as int.
    const MOST: u32 = 1 << 20;
    ensure!(listen_fds < MOST, "`LISTEN_FDS` is {listen_fds}: no process has that many");
    // Fails as runc does: the caller means other descriptors than `rt` would pass.
    let there = |number: &u32| Path::new("/proc/self/fd").join(number.to_string()).is_symlink();
    if let Some(missing) = (3..3 + preserve_fds.min(MOST)).find(|number| !there(number)) {
        bail!("`--preserve-fds` {preserve_fds}: descriptor {missing} is not open");
    }
    // A file that `rt` opens itself would get the missing number, and pass for the caller's.
    if let Some(missing) = (3..3 + preserve_fds + listen_fds).find(|number| !there(number)) {
        bail!("`LISTEN_FDS` is {listen_fds}: descriptor {missing} is not open");
    }
    let first = 3 + preserve_fds + listen_fds;
    let names_one = |arg: OsString| arg.as_bytes().windows(4).any(|part| part == b"/fd/");
    if std::env::args_os().any(names_one) {
        return syscall::inherited_from(first)
            .map(Inherited)
            .context("look at the caller's descriptors");
    }
    syscall::close_from(first).context("close the caller's descriptors")?;
    Ok(Inherited::default())
}

/// Descriptors that this process inherited and does not pass on. Programs that it starts in the
/// meantime do not get them.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// Call this before looking anything up in a container.
    pub(crate) fn close(self) {
        self.0.into_iter().for_each(drop);
    }
}

/// Logs the steps that come before the log is open, and returns their results.
pub(crate) fn tell_what_began(
    command: &Command,
    protected: Result<()>,
    inherited: Result<Inherited>,
) -> Result<Inherited> {
    match command {
        Command::Create(_) | Command::Run(_) => {
            log::step("create, step 1: protect the executable", &"");
            protected?;
            log::step("create, step 2: parse the command line, close descriptors", &"");
            return inherited;
        }
        Command::Exec(_) => {
            log::step("exec, step 1: protect the executable, close descriptors", &"");
        }
        Command::Restore(_) => log::step("restore, step 1: check, open and claim", &""),
        _ => {}
    }
    protected.and(inherited)
}

/// For a command that enters a container, where others see this process or one of its children.
/// From then on, the command line shows only the command and the container's name, and the
/// environment cannot be read (`proc(5)`).
pub(crate) fn hide_arguments(command: &Command) -> Result<()> {
    let (name, id) = match command {
        Command::Create(create) => ("create", create.create.id.as_str()),
        Command::Run(run) => ("run", run.create.id.as_str()),
        Command::Exec(exec) => ("exec", exec.words.id()),
        Command::Restore(restore) => ("restore", restore.id.as_str()),
        _ => return Ok(()),
    };
    syscall::hide_arguments(&[name.as_bytes(), id.as_bytes()])
        .context("hide the command line from other processes")
}

/// The number of sockets that the caller passes, from 3 on (`sd_listen_fds(3)`).
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") == Some(std::process::id()) {
        number("LISTEN_FDS").unwrap_or(0)
    } else {
        0
    }
}

/// The exit status of a command that failed. `exec` uses 255, as runc and crun do, so that callers
/// can tell it from a program's own 1.
pub(crate) fn failure(command: &Command) -> ExitCode {
    ExitCode::from(if matches!(command, Command::Exec(_)) { 255 } else { 1 })
}

pub(crate) fn execute(global: &Global, command: Command, inherited: Inherited) -> Result<ExitCode> {
    let root = Root::new(global.root.as_deref());
    match command {
        Command::Create(args) => create::execute(&root, global, &args.create, inherited),
        Command::Start(args) => start::execute(&root, &args),
        Command::State(args) => state::execute(&root, &args),
        Command::Exec(args) => exec::execute(&root, global, &args, inherited),
        Command::Pause(args) => pause::pause(&root, &args),
        Command::Resume(args) => pause::resume(&root, &args),
        Command::Checkpoint(args) => checkpoint::execute(&root, &args),
        Command::Restore(args) => restore::execute(&root, manager(global), &args, inherited),
        Command::Events(args) => events::execute(&root, &args),
        Command::Mounts(args) => mounts::execute(&root, &args),
        Command::Ps(args) => ps::execute(&root, &args),
        Command::Update(args) => update::execute(&root, &args),
        Command::Kill(args) => kill::execute(&root, &args),
        Command::Delete(args) => delete::execute(&root, &args),
        Command::Run(args) => run::execute(&root, global, &args, inherited),
        Command::List(args) => list::execute(&root, &args),
        Command::Top(args) => top::execute(&root, &args),
        Command::Spec(args) => spec::execute(&args),
        Command::Features => features::execute(),
        Command::Check(args) => check::execute(&root, global, &args),
        Command::Wasm(args) => {
            inherited.close();
            wasm::execute(&root, global, &args)
        }
        Command::Completion(args) => completion::execute(&args),
    }
}

fn manager(global: &Global) -> Manager {
    match global.cgroup_manager {
        Some(CgroupManager::Cgroupfs) => Manager::Cgroupfs,
        Some(CgroupManager::Systemd) => Manager::Systemd,
        Some(CgroupManager::Disabled) => Manager::Disabled,
        None if global.systemd_cgroup => Manager::Systemd,
        None => Manager::Cgroupfs,
    }
}

/// The parts of the command line that an engine requires.
fn host<'a>(root: &'a Root, global: &'a Global) -> engine::Host<'a> {
    let cgroups = match manager(global) {
        Manager::Cgroupfs => None,
        Manager::Systemd => Some("--cgroup-manager=systemd"),
        Manager::Disabled => Some("--cgroup-manager=disabled"),
    };
    engine::Host { root: root.path(), config: global.wasm_config.as_deref(), cgroups }
}

/// Acts on one container, or on all whose names match a regular expression. Continues after a
/// failure, and returns the first error.
fn each(root: &Root, id: &str, regex: bool, act: impl Fn(&str) -> Result<()>) -> Result<()> {
    if !regex {
        return act(id);
    }
    let mut first = None;
    for id in root.matching(id)? {
        if let Err(error) = act(&id) {
            match first {
                None => first = Some(error),
                Some(_) => crate::report::warn(&crate::report::describe(&error)),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// Prints on standard output. Reports a failure, because a caller would parse half an answer.
fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("write to standard output")
}
