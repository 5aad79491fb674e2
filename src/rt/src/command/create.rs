//! `rt create`: makes a container whose program waits for `rt start`. The remarks on flags in this
//! file apply to `run` too.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::Inherited;
use super::foreground::{Console, OF_BUNDLE};
use crate::bundle::Bundle;
use crate::cli::{self, Global};
use crate::container::{self, Container, Options, Wait};
use crate::engine::Engines;
use crate::log;
use crate::state::Root;
use crate::workload::{self, Rights};

pub(super) fn execute(
    root: &Root,
    global: &Global,
    args: &cli::Create,
    inherited: Inherited,
) -> Result<ExitCode> {
    let create = move || {
        log::step("create, step 3: read the configuration", &args.bundle.display());
        let bundle = Bundle::load(&args.bundle, args.config.as_deref())?;
        tell_of_console(args);
        let socket = args.handover.console_socket.as_deref();
        let console = Console::choose(bundle.process(), socket, false, &OF_BUNDLE)?.theirs;
        container(root, global, args, &bundle, console, Wait::ForStart, inherited)
    };
    create().with_context(|| format!("create `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn tell_of_console(args: &cli::Create) {
    let socket = args.handover.console_socket.as_deref().unwrap_or(Path::new("none"));
    log::step("create, step 4: connect to the console socket", &socket.display());
}

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
    let handler = if asked.is_some() { "for a module" } else { "none" };
    log::step("create, step 5: find the engines", &handler);
    // The engines are found on the host. Only init can see whether the program is a module.
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
