//! `rt`, an OCI container runtime for Linux and WebAssembly workloads.
//!
//! Data flows one way. The command line becomes a [`command`]. The command loads a [`bundle`].
//! [`workload`] says whether the configuration asks for an [`engine`], and the command finds the
//! installed engines. Then [`container`] makes the container. In it, the [`executor`] looks at the
//! program and starts it, or an engine for it. Information that outlives the command is in
//! [`state`]. An error is printed here, by [`report`], and nowhere else.

mod allocator;
#[cfg(test)]
mod annotations;
mod bundle;
mod cli;
mod command;
mod compiler;
mod container;
mod draft;
mod engine;
mod exe;
mod executor;
mod failure;
#[cfg(test)]
mod fuzz;
mod ids;
#[cfg(test)]
mod imports;
mod input;
mod interrupt;
mod linux;
mod log;
mod procfs;
mod report;
mod scm_rights;
mod signals;
mod state;
mod sync;
mod syscall;
mod trust;
mod walk;
mod workload;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use cli::{Command, Global, Parsed};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator::new();

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // If the caller ignores SIGCHLD, the kernel reaps children at once. Then their pids could
    // belong to other processes by the time that `rt` waits for them.
    syscall::default_signal_action(libc::SIGCHLD);
    // This comes before everything else, because it may exec, and then earlier steps would be
    // repeated.
    let protected = if command::may_enter_container(&args) {
        exe::protect().context("protect the runtime's executable")
    } else {
        Ok(())
    };
    match cli::parse(args) {
        Parsed::Version => print(&command::version()),
        Parsed::Help(text) => match command::can_be_helped() {
            Ok(()) => print(&text),
            Err(error) => report::fail(&report::describe(&error)),
        },
        Parsed::Wrong { line, log, log_format } => {
            // The line already says what is wrong. A log that cannot be opened would be a second
            // error.
            let _ = log::open(log.as_deref(), log_format, log::LogLevel::Error);
            report::fail(&line)
        }
        Parsed::Command(global, command) => {
            let failure = command::failure(&command);
            run(&global, command, protected).unwrap_or_else(|error| {
                report::fail(&report::describe(&error));
                failure
            })
        }
    }
}

/// Runs a command. The steps before the log is open are reported when it is open, in their order.
fn run(global: &Global, command: Command, protected: Result<()>) -> Result<ExitCode> {
    // Before the log is open, because it would close the log too.
    let inherited = command::inherited(&command);
    let level = if global.debug { log::LogLevel::Debug } else { global.log_level };
    log::open(global.log.as_deref(), global.log_format, level)?;
    let inherited = command::tell_what_began(&command, protected, inherited)?;
    command::hide_arguments(&command)?;
    command::execute(global, command, inherited)
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
