//! `rt exec`: runs another program in an existing container. `--process` describes the program as
//! in `config.json`. Otherwise it is the container's own process with other arguments and the
//! changes of the flags.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{Capabilities, Process, Spec};

use super::Inherited;
use super::foreground::{self, Console, OF_EXEC, Signals};
use crate::bundle;
use crate::cli::{self, Global};
use crate::container::{self, ExecOptions};
use crate::draft;
use crate::engine::Engines;
use crate::linux::seccomp;
use crate::linux::terminal;
use crate::log;
use crate::state::{Root, Status};
use crate::workload::Rights;

pub(super) fn execute(
    root: &Root,
    global: &Global,
    args: &cli::Exec,
    inherited: Inherited,
) -> Result<ExitCode> {
    exec(root, global, args, inherited).with_context(|| format!("exec in `{}`", args.words.id()))
}

fn exec(root: &Root, global: &Global, args: &cli::Exec, inherited: Inherited) -> Result<ExitCode> {
    log::step("exec, step 2: read the state", &root.path().join(args.words.id()).display());
    // CRI-O makes an empty pid file beforehand. conmon takes the content of this file for the
    // process, even if there is no process.
    if let Some(path) = &args.handover.pid_file {
        draft::remove(path).with_context(|| format!("remove pid file `{}`", path.display()))?;
    }
    let (directory, state) = root.load(args.words.id())?;
    // runc's words, which callers show.
    match state.status(&directory)? {
        Status::Created | Status::Running => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Status::Creating => bail!("the container is not created yet"),
        Status::Stopped => bail!("cannot exec in a stopped container"),
    }
    let spec = directory.config().context("read the stored `config.json`")?;
    let mut process = process(&spec, args)?;
    let socket = args.handover.console_socket.as_deref();
    let console = Console::choose(&process, socket, !args.detach, &OF_EXEC)?;
    if console.ours.is_some() {
        terminal::begin_with_own_size(&mut process);
    }
    inherited.close();
    let signals = if args.detach { None } else { Some(Signals::new()?) };
    let filter = seccomp::prepare(&spec, &root.filters())?;
    let agent = seccomp::receiver(&spec, filter.as_ref())?;
    let rights = Rights::of(&spec)?;
    let find = |handler| Engines::find(handler, super::host(root, global), &rights.plugins);
    // The handler that `create` stored, whatever name this `rt` was called by.
    let engines = state.handler().as_ref().map(find).transpose()?;
    let options = ExecOptions {
        state: &state,
        spec: &spec,
        process: &process,
        engines,
        console: console.theirs,
        pid_file: args.handover.pid_file.as_deref(),
        pidfd_socket: args.handover.pidfd_socket.as_deref(),
        cgroup: &args.cgroup,
        ignore_paused: args.ignore_paused,
        filter,
        rights,
        agent,
        // Sockets are for the container's first process.
        first_own: 3 + args.handover.preserve_fds,
    };
    // Until here, a termination signal ends this process at once.
    signals.iter().for_each(Signals::block);
    let (pid, pidfd) = container::exec(options)?;
    let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
    let master = console.ours.map(|socket| terminal::receive(socket.as_fd())).transpose()?;
    foreground::follow(pid, pidfd.as_fd(), &signals, master, None)
}

/// The process to start.
fn process(spec: &Spec, args: &cli::Exec) -> Result<Process> {
    let mut process = match &args.process {
        Some(file) => {
            ensure!(args.words.others().is_empty(), "a program and `--process` exclude each other");
            read(file, spec)?
        }
        None => {
            ensure!(
                !args.words.others().is_empty(),
                "no program given: name one, or use `--process`"
            );
            let mut process = spec.process().clone().context("the container has no process")?;
            process.set_args(Some(args.words.others().to_vec()));
            process.set_terminal(Some(false));
            process
        }
    };
    if args.tty {
        process.set_terminal(Some(true));
    }
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    for variable in &args.env {
        let (name, _) = variable
            .split_once('=')
            .ok_or_else(|| anyhow!("wrong value `{variable}` for `--env`: NAME=VALUE"))?;
        env.retain(|there| there.split('=').next() != Some(name));
        env.push(variable.clone());
    }
    process.set_env(Some(env));
    let mut user = process.user().clone();
    if let Some(text) = &args.user {
        let wrong = || format!("wrong value `{text}` for `--user`: UID or UID:GID, as numbers");
        // Digits only: the parser would accept a sign.
        let id = |text: &str| {
            let digits = text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse().ok().filter(|_| digits).with_context(wrong)
        };
        match text.split_once(':') {
            None => user.set_uid(id(text)?),
            Some((uid, gid)) => user.set_uid(id(uid)?).set_gid(id(gid)?),
        };
    }
    if !args.additional_gids.is_empty() {
        let gids = user.additional_gids().iter().flatten().chain(&args.additional_gids);
        let gids = gids.copied().collect();
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    add_capabilities(&mut process, &args.cap)?;
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    bundle::check_process(&process)?;
    Ok(process)
}

/// The keys that a file may omit. `exec` then takes the value of the container's own process. crun
/// does the same, with two exceptions. crun and runc keep their own caller's `rlimits`, and take a
/// missing `noNewPrivileges` for false.
const INHERITED: [&str; 9] = [
    "apparmorProfile",
    "capabilities",
    "cwd",
    "env",
    "noNewPrivileges",
    "oomScoreAdj",
    "rlimits",
    "selinuxLabel",
    "user",
];

fn read(file: &Path, spec: &Spec) -> Result<Process> {
    let text =
        crate::input::read_file(file).with_context(|| format!("read `{}`", file.display()))?;
    // serde_json's error names line and column.
    let show = || format!("parse `{}`", file.display());
    let mut process: serde_json::Value = serde_json::from_slice(&text).with_context(show)?;
    bundle::warn_of_unknown_capabilities(&bundle::suit_process(&mut process));
    let own = spec.process().as_ref().map(serde_json::to_value).transpose()?;
    if let (Some(process), Some(own)) = (process.as_object_mut(), &own) {
        for key in INHERITED {
            if let Some(value) = own.get(key).filter(|value| !value.is_null()) {
                process.entry(key).or_insert_with(|| value.clone());
            }
        }
    }
    serde_json::from_value(process).with_context(show)
}

/// Adds capabilities to the bounding, permitted, effective and ambient sets, as runc does. Without
/// the ambient set, a user other than root would lose a capability at the exec. They are not added
/// to the inheritable set, because they would outlive a change of the user there (CVE-2022-29162).
/// The kernel makes only inheritable capabilities ambient, so a capability becomes ambient only if
/// the configuration lists it as inheritable.
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut added = Capabilities::new();
    for name in names {
        let quoted = serde_json::Value::String(name.to_uppercase());
        added.insert(
            serde_json::from_value(quoted)
                .with_context(|| format!("wrong value `{name}` for `--cap`"))?,
        );
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<Capabilities>| {
        Some(set.iter().flatten().chain(&added).copied().collect::<Capabilities>())
    };
    sets.set_bounding(with(sets.bounding()));
    sets.set_permitted(with(sets.permitted()));
    sets.set_effective(with(sets.effective()));
    sets.set_ambient(with(sets.ambient()));
    process.set_capabilities(Some(sets));
    Ok(())
}
