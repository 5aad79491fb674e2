//! `rt run`: create, start, wait and delete in one command. It ends with the container's exit code.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::Inherited;
use super::create;
use super::foreground::{self, Console, OF_BUNDLE, Signals};
use crate::bundle::Bundle;
use crate::cli::{self, Global};
use crate::container::{self, Container, Wait};
use crate::failure;
use crate::linux::sd_notify::Relay;
use crate::linux::terminal;
use crate::log;
use crate::state::Root;

pub(super) fn execute(
    root: &Root,
    global: &Global,
    args: &cli::Run,
    inherited: Inherited,
) -> Result<ExitCode> {
    run(root, global, args, inherited).with_context(|| format!("run `{}`", args.create.id))
}

fn run(root: &Root, global: &Global, args: &cli::Run, inherited: Inherited) -> Result<ExitCode> {
    log::step("create, step 3: read the configuration", &args.create.bundle.display());
    let mut bundle = Bundle::load(&args.create.bundle, args.create.config.as_deref())?;
    create::tell_of_console(&args.create);
    let socket = args.create.handover.console_socket.as_deref();
    let console = Console::choose(bundle.process(), socket, !args.detach, &OF_BUNDLE)?;
    if let (Some(_), Some(process)) = (&console.ours, bundle.spec.process_mut()) {
        terminal::begin_with_own_size(process);
    }
    let signals = if args.detach { None } else { Some(Signals::new()?) };
    let blocked = signals.as_ref().map(|signals| signals.passed.as_slice()).unwrap_or_default();
    let wait = Wait::ForRuntime { blocked };
    let container =
        create::container(root, global, &args.create, &bundle, console.theirs, wait, inherited)?;
    let outcome = start_and_wait(&container, signals.as_ref(), console.ours);
    let lives_on = args.detach && outcome.is_ok();
    // A failing `poststart` hook has already deleted the container.
    if lives_on || args.keep || !container.directory.is_there() {
        return outcome;
    }
    let deleted = container::delete(&container.directory, &container.state, true);
    failure::and_then_cleaned(outcome, deleted)
}

fn start_and_wait(
    container: &Container,
    signals: Option<&Signals>,
    terminal: Option<OwnedFd>,
) -> Result<ExitCode> {
    let master = terminal.map(|socket| terminal::receive(socket.as_fd())).transpose()?;
    let relay = Relay::open(&container.directory.notify_folder())?;
    log::step("start, step 3: init becomes the program", &container.pid);
    container.go()?;
    container::started(&container.directory, &container.state)?;
    let pidfd = container.pidfd.as_fd();
    let Some(signals) = signals else {
        container::tell_of_manager(relay.is_some());
        if let Some(relay) = relay {
            relay.wait_until_ready(container.pid, pidfd)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    container::tell_of_manager(relay.is_some());
    foreground::follow(container.pid, pidfd, signals, master, relay.as_ref())
}
