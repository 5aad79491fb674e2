//! `rt restore`: makes a container from a checkpoint. Without `--detach`, it waits for the
//! container's end and then deletes the container, as `run` does.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::foreground::{self, Console, OF_BUNDLE, Signals};
use super::{Inherited, checkpoint};
use crate::bundle::Bundle;
use crate::cli;
use crate::container::{self, RestoreOptions, Restored};
use crate::failure;
use crate::linux::cgroups::Manager;
use crate::linux::terminal;
use crate::state::Root;
use crate::workload;

pub(super) fn execute(
    root: &Root,
    manager: Manager,
    args: &cli::Restore,
    inherited: Inherited,
) -> Result<ExitCode> {
    restore(root, manager, args, inherited).with_context(|| format!("restore `{}`", args.id))
}

fn restore(
    root: &Root,
    manager: Manager,
    args: &cli::Restore,
    inherited: Inherited,
) -> Result<ExitCode> {
    let bundle = Bundle::load(&args.bundle, args.config.as_deref())?;
    let socket = args.console_socket.as_deref();
    let console = Console::choose(bundle.process(), socket, !args.detach, &OF_BUNDLE)?;
    inherited.close();
    let signals = if args.detach { None } else { Some(Signals::new()?) };
    let argv0 = std::env::args_os().next().unwrap_or_default();
    let options = RestoreOptions {
        common: checkpoint::options(&args.images, &bundle),
        id: &args.id,
        bundle: &bundle,
        manager,
        asked: workload::asked(&bundle.spec, &argv0.to_string_lossy())?,
        pid_file: args.pid_file.as_deref(),
        console: console.theirs,
        tcp_close: args.tcp_close,
        lsm_profile: args.lsm_profile.as_deref(),
        lsm_mount_context: args.lsm_mount_context.as_deref(),
        new_keyring: !args.no_new_keyring,
    };
    signals.iter().for_each(Signals::block);
    let container = container::restore(root, &options)?;
    // If this process kept its copy of the socket, it would never read the end of the terminal.
    drop(options);
    container::started(&container.directory, &container.state)?;
    let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
    let outcome = follow(&container, &signals, console.ours);
    let deleted = container::delete(&container.directory, &container.state, true);
    failure::and_then_cleaned(outcome, deleted)
}

fn follow(container: &Restored, signals: &Signals, terminal: Option<OwnedFd>) -> Result<ExitCode> {
    let master = terminal.map(|socket| terminal::receive(socket.as_fd())).transpose()?;
    foreground::follow(container.pid, container.pidfd.as_fd(), signals, master, None)
}
