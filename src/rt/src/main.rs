//! `rt`, an OCI container runtime for Linux and WebAssembly workloads.
//!
//! Data flows one way: the command line to a [`command`], which loads a [`bundle`], chooses the [`workload`], opens the
//! [`engine`] if it is a Wasm one, and has [`container`] make the sandbox, in which the [`executor`] starts the program.
//! What outlives the command is in [`state`]. An error is printed here and nowhere else.

mod bundle;
mod cli;
mod command;
mod container;
mod draft;
mod engine;
mod exe;
mod executor;
#[cfg(test)]
mod fuzz;
mod log;
mod signals;
mod state;
mod syscall;
mod trust;
mod walk;
mod workload;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cli::Parsed;

/// musl maps and unmaps pages for many an allocation; this keeps what it has.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Where a caller ignores it, the kernel reaps children at once: their numbers could be others' by the time that they are waited for.
    syscall::default_signal_action(libc::SIGCHLD);
    // Before anything else, since what was done would be done again by the executable's read-only clone.
    let protected = if command::may_enter_container(&args) {
        exe::protect().context("protect the runtime's executable")
    } else {
        Ok(())
    };
    match cli::parse(args) {
        Parsed::Version => print(&command::version()),
        Parsed::Help(text) => match command::can_be_helped() {
            Ok(()) => print(&text),
            Err(error) => fail(&describe(&error)),
        },
        Parsed::Wrong { line, log, log_format } => {
            // The line says what is wrong; a log that cannot be opened would be a second thing.
            let _ = log::open(log.as_deref(), log_format, log::LogLevel::Error);
            fail(&line)
        }
        Parsed::Command(global, command) => {
            let level = if global.debug { log::LogLevel::Debug } else { global.log_level };
            let inherited = command::inherited(&command);
            let failure = command::failure(&command);
            let outcome = log::open(global.log.as_deref(), global.log_format, level)
                .and(protected)
                .and(inherited)
                .and_then(|inherited| command::hide_arguments(&command).map(|()| inherited))
                .and_then(|inherited| command::execute(&global, command, inherited));
            match outcome {
                Ok(code) => code,
                Err(error) => {
                    fail(&describe(&error));
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

/// One `write(2)`: conmon reads standard error once, and takes what that read returns.
fn fail(line: &str) -> ExitCode {
    let line = &format!("{line}{}", what_a_filter_forbids(line));
    log::error(line);
    // With standard error closed there is nobody left to tell.
    let _ = io::stderr().write_all(format!("rt: {line}\n").as_bytes());
    ExitCode::FAILURE
}

/// Of an error that looks like it: which calls are forbidden by a filter that a service manager or a sandbox has put around `rt`.
fn what_a_filter_forbids(line: &str) -> String {
    let errors = [
        "Operation not permitted",
        "Function not implemented",
        "Address family not supported by protocol",
        "Permission denied",
    ];
    if !errors.iter().any(|error| line.ends_with(error)) {
        return String::new();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.contains("\nSeccomp:\t2\n") {
        return String::new();
    }
    match syscall::forbidden()[..] {
        [] => String::new(),
        ref calls => format!(": a filter around rt forbids `{}`", calls.join("`, `")),
    }
}

/// What went wrong without being the command's failure.
fn warn(line: &str) {
    // As for an error.
    let _ = io::stderr().write_all(format!("rt: warning: {}\n", one_line(line)).as_bytes());
}

/// No file is larger that is read as a whole, for its size alone: the largest configurations have some megabytes.
const LARGEST_FILE: u64 = 256 << 20;

/// All of a file of the caller's or the administrator's.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read_all(&File::open(path)?)
}

/// All of a file that is open, which may claim any size: a sparse one takes no space.
fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("it is larger than {LARGEST_FILE} bytes"));
    let length = file.metadata()?.len();
    if length > LARGEST_FILE {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // A pipe has no length.
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE { Err(too_large()) } else { Ok(bytes) }
}

/// The causes of an error on one line, outermost first, without Rust's ` (os error N)`.
fn describe(error: &anyhow::Error) -> String {
    one_line(&format!("{error:#}"))
}

fn one_line(text: &str) -> String {
    let mut line = text.replace('\n', " ");
    while let Some(start) = line.find(" (os error ") {
        let Some(length) = line[start..].find(')') else { break };
        line.replace_range(start..=start + length, "");
    }
    visible(&line)
}

/// For a terminal, which obeys what is not to be seen: the names of programs and modules are an image's to choose.
fn visible(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            // Marks and overrides of the direction of writing, and what has no width.
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_without_numbers() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOENT))
            .context("read `config.json`")
            .context("open bundle `/b`")
            .expect_err("it is one");
        assert_eq!(
            describe(&error),
            "open bundle `/b`: read `config.json`: No such file or directory"
        );
    }
}
