//! `rt`, an OCI container runtime for Linux and WebAssembly workloads.
//!
//! Data flows one way: the command line to a [`command`], which loads a [`bundle`], chooses the
//! [`workload`], opens the [`engine`] if it is a Wasm one, and has [`container`] make the sandbox,
//! in which the [`executor`] starts the program. What outlives the command is in [`state`]. An
//! error is printed here, by [`report`], and nowhere else.

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

use anyhow::Context;
use cli::Parsed;

/// musl maps and unmaps pages for many an allocation; this keeps what it has.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Where a caller ignores it, the kernel reaps children at once: their numbers could be others'
    // by the time that they are waited for.
    syscall::default_signal_action(libc::SIGCHLD);
    // Before anything else, since what was done would be done again by the executable's read-only
    // clone.
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
            // The line says what is wrong; a log that cannot be opened would be a second thing.
            let _ = log::open(log.as_deref(), log_format, log::LogLevel::Error);
            report::fail(&line)
        }
        Parsed::Command(global, command) => {
            let level = if global.debug { log::LogLevel::Debug } else { global.log_level };
            let inherited = command::inherited(&command);
            let failure = command::failure(&command);
            let outcome = log::open(global.log.as_deref(), global.log_format, level)
                .and_then(|()| command::tell_what_began(&command, protected, inherited))
                .and_then(|inherited| command::hide_arguments(&command).map(|()| inherited))
                .and_then(|inherited| command::execute(&global, command, inherited));
            match outcome {
                Ok(code) => code,
                Err(error) => {
                    report::fail(&report::describe(&error));
                    failure
                }
            }
        }
    }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
