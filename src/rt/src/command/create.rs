//! `rt create`: makes a container whose program waits for `rt start`. What is said here of flags
//! holds for `run` too.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::Inherited;
use crate::bundle::Bundle;
use crate::cli::{self, Global};
use crate::container::{self, Container, Options, Wait};
use crate::engine::Engines;
use crate::linux::terminal;
use crate::state::Root;
use crate::workload::{self, Rights};

pub(super) fn execute(
    root: &Root,
    global: &Global,
    args: &cli::Create,
    inherited: Inherited,
) -> Result<ExitCode> {
    let create = move || {
        let bundle = Bundle::load(&args.bundle, args.config.as_deref())?;
        let console = connect_console(&bundle, args.handover.console_socket.as_deref())?;
        container(root, global, args, &bundle, console, Wait::ForStart, inherited)
    };
    create().with_context(|| format!("create `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

/// The one to send the terminal to. The container must want a terminal if, and only if, somebody
/// takes it.
pub(super) fn connect_console(bundle: &Bundle, socket: Option<&Path>) -> Result<Option<OwnedFd>> {
    let terminal = bundle.process().terminal() == Some(true);
    match socket {
        Some(socket) => {
            ensure!(terminal, "`--console-socket` is given, and `process.terminal` is not set");
            terminal::connect(socket).context("open the console socket").map(Some)
        }
        None => {
            ensure!(
                !terminal,
                "`process.terminal` is set: cannot allocate a terminal without `--console-socket`"
            );
            Ok(None)
        }
    }
}

/// Makes the container.
pub(super) fn container(
    root: &Root,
    global: &Global,
    args: &cli::Create,
    bundle: &Bundle,
    console: Option<OwnedFd>,
    wait: Wait<'_>,
    inherited: Inherited,
) -> Result<Container> {
    inherited.close();
    let argv0 = std::env::args_os().next().unwrap_or_default();
    let asked = workload::asked(&bundle.spec, &argv0.to_string_lossy())?;
    // Found on the host. Whether the program is a module at all, only init can see.
    let rights = Rights::of(&bundle.spec)?;
    let find = |handler| Engines::find(handler, super::host(root, global), &rights.plugins);
    let engines = asked.as_ref().map(find).transpose()?;
    let options = Options {
        id: &args.id,
        bundle,
        manager: super::manager(global),
        wait,
        asked,
        engines,
        pid_file: args.handover.pid_file.as_deref(),
        console,
        pidfd_socket: args.handover.pidfd_socket.as_deref(),
        no_pivot: args.no_pivot,
        new_keyring: !args.no_new_keyring,
        listen_fds: super::listen_fds(),
        first_own: 3 + args.handover.preserve_fds + super::listen_fds(),
    };
    container::create(root, options)
}
