//! The subcommands, one file each, and what they share.
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

/// The first line is what Docker and CRI-O show; no other line may hold the word "version", which
/// Docker looks for.
pub(crate) fn version() -> String {
    let mut text = format!("rt version {}\n", env!("CARGO_PKG_VERSION"));
    if let Some(commit) = option_env!("RT_COMMIT").filter(|commit| !commit.is_empty()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "commit: {commit}");
    }
    text + &format!(
        "spec: {SPECIFICATION}\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +WASM:wasmedge\n"
    )
}

/// Callers ask `checkpoint --help` whether checkpoints can be made at all (CRI-O, go-runc): not
/// without CRIU.
pub(crate) fn can_be_helped() -> Result<()> {
    if std::env::args_os().any(|arg| arg == "checkpoint") {
        ensure!(criu::version().is_some(), "checkpoint: `criu` is not installed");
    }
    Ok(())
}

/// Whether the command is one that enters a container, or could be, for all that a look at the
/// words tells: they are not parsed yet, since the read-only clone of the executable would parse
/// them again. One too many costs an exec.
pub(crate) fn may_enter_container(args: &[OsString]) -> bool {
    let entering = ["create", "run", "exec", "restore", "wasm"];
    args.iter().skip(1).any(|arg| entering.iter().any(|name| arg == name))
}

/// For a command that enters a container: closes what the caller left open. Comes before everything
/// else, the log included, which it would close. If the command line names a file as `/dev/fd/N` or
/// `/proc/self/fd/N`, all are closed as soon as its files are open ([`Inherited::close`]).
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
    // No process has this many descriptors; rustix and the kernel count them as int.
    const MOST: u32 = 1 << 20;
    ensure!(listen_fds < MOST, "`LISTEN_FDS` is {listen_fds}: no process has that many");
    // As runc: something else is meant than what would be passed.
    let there = |number: &u32| Path::new("/proc/self/fd").join(number.to_string()).is_symlink();
    if let Some(missing) = (3..3 + preserve_fds.min(MOST)).find(|number| !there(number)) {
        bail!("`--preserve-fds` {preserve_fds}: descriptor {missing} is not open");
    }
    // What rt opens itself would have such a number, and be taken for the caller's.
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

/// What this process was started with and passes on to nobody. What it starts meanwhile does not
/// get it.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// Before anything of a container's is looked up.
    pub(crate) fn close(self) {
        self.0.into_iter().for_each(drop);
    }
}

/// Tells of the steps that come before the log is open, and of what became of them.
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

/// For a command that enters a container, where this process or one of its children is seen: of the
/// command line, only the command and the container's name can be read from then on, and nothing of
/// the environment (`proc(5)`).
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

/// How many sockets the caller passes, from 3 on (`sd_listen_fds(3)`).
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") == Some(std::process::id()) {
        number("LISTEN_FDS").unwrap_or(0)
    } else {
        0
    }
}

/// What a command that failed ends with. Of `exec`, as with runc and crun, a program's own 1 can be
/// told from it.
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

/// What an engine has to know of the command line.
fn host<'a>(root: &'a Root, global: &'a Global) -> engine::Host<'a> {
    let cgroups = match manager(global) {
        Manager::Cgroupfs => None,
        Manager::Systemd => Some("--cgroup-manager=systemd"),
        Manager::Disabled => Some("--cgroup-manager=disabled"),
    };
    engine::Host { root: root.path(), config: global.wasm_config.as_deref(), cgroups }
}

/// Does something with a container, or with all whose names a regular expression is found in. Goes
/// on after a failure, and returns the first.
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

/// Prints on standard output, and says so when that fails: a caller would parse half an answer.
fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("write to standard output")
}
