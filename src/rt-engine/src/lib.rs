//! The common part of all engine programs of `rt`: the command line of the engine contract,
//! descriptors, signals, limits, messages and exit statuses (`docs/engine.md`). An engine program
//! adds the engine itself.
//!
//! An engine program has one thread until its engine starts others. A function says whether it must
//! run before that, if it uses anything that all threads share. The parsers of the command line use
//! nothing of that kind.

pub mod contract;
pub mod files;
pub mod memory;
pub mod message;
pub mod process;
pub mod reserved;
mod start;

use std::process::ExitCode;

pub use contract::{Contract, Run, Work};
pub use start::{LARGEST, Start, read, variables};

/// An engine program.
#[derive(Debug)]
pub struct Program {
    /// The name at the beginning of its messages.
    pub name: &'static str,
    /// The optional options of the contract that the program knows. Its `engine.json` lists them.
    pub options: &'static [&'static str],
}

/// How a run ended without an error of the engine.
#[derive(Debug, Eq, PartialEq)]
pub enum End {
    /// The guest's own exit status.
    Exited(u8),
    /// The kind of trap, in the engine's words.
    Trapped(String),
}

/// The exit status of a module that never started.
pub const NOT_STARTED: u8 = 126;
/// The exit status after a trap: 128 + SIGABRT.
pub const TRAPPED: u8 = 134;
/// The exit status when the guest's time is over. timeout(1) uses the same.
pub const TIMED_OUT: u8 = 124;

/// Runs an engine program from its first instruction to its end. `main` calls this first, before
/// any thread starts.
pub fn run(program: &'static Program, work: impl FnOnce(Work) -> Result<End, String>) -> ExitCode {
    // Before anything else: from now on, a termination signal ends the process.
    process::end_on_signals();
    message::set_name(program.name);
    std::panic::set_hook(Box::new(|panic| {
        // Reports a panic on one line, as any other error. The default would print several lines.
        message::say(&format!("internal error: {}", panic.to_string().replace('\n', " ")));
        process::exit_now(NOT_STARTED);
    }));
    let status = match Work::parse(std::env::args_os(), program).and_then(work) {
        Ok(End::Exited(status)) => status,
        Ok(End::Trapped(kind)) => {
            message::say(&format!("trap: {kind}"));
            TRAPPED
        }
        Err(error) => {
            message::say(&error);
            NOT_STARTED
        }
    };
    // The end of the process frees everything, and does so faster than destructors.
    process::exit_now(status)
}
