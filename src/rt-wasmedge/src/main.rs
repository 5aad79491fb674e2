//! `rt-wasmedge`: the engine program that runs a WebAssembly module with WasmEdge, as the first
//! process of a container that `rt` has made. The steps are those of `docs/engine.md`.

mod compile;
mod config;
mod contract;
mod memory;
mod os;
mod wasi;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::ExitCode;

use contract::{Contract, Work};

/// The module never started.
const NOT_STARTED: u8 = 126;
/// A trap: 128 + SIGABRT.
const TRAPPED: u8 = 134;

/// How a run ended, when not by an error of the engine.
enum End {
    /// The guest's own exit code.
    Exited(u8),
    /// The kind of trap, in WasmEdge's words.
    Trapped(String),
}

fn main() -> ExitCode {
    // Before anything else: a signal that arrives from now on ends the process.
    os::end_on_signals();
    std::panic::set_hook(Box::new(|panic| {
        // Through the same line as any other error; the default would print several.
        say(&format!("internal error: {}", panic.to_string().replace('\n', " ")));
        os::exit_now(i32::from(NOT_STARTED));
    }));
    let code = match run(std::env::args_os()) {
        Ok(End::Exited(code)) => code,
        Ok(End::Trapped(kind)) => {
            say(&format!("trap: {kind}"));
            TRAPPED
        }
        Err(message) => {
            say(&message);
            NOT_STARTED
        }
    };
    // Nothing is left to be torn down that the end of the process does not tear down faster.
    os::exit_now(i32::from(code))
}

fn run(args: impl Iterator<Item = OsString>) -> Result<End, String> {
    match Work::parse(args)? {
        Work::Run(contract) => start(&contract),
        Work::Compile { counting } => compile::run(counting).map(|()| End::Exited(0)),
    }
}

fn start(contract: &Contract) -> Result<End, String> {
    let open = |descriptor| os::own(descriptor).map(File::from);
    let module = open(contract.module).map_err(|error| format!("read the module: {error}"))?;
    let environment = open(contract.environment)
        .map_err(|error| error.to_string())
        .and_then(|file| read(&file, None))
        .map_err(|error| format!("read the environment: {error}"))?;
    os::name_process(contract.arguments.first().map(String::as_str).unwrap_or_default());
    let directories = contract.directories.iter().filter_map(|directory| directory.descriptor);
    let kept = [contract.engine_dir, contract.module].into_iter().chain(contract.native);
    let kept: Vec<i32> = kept.chain(contract.plugin_dir).chain(directories).collect();
    os::close_all_but(&kept)?;
    if !os::fix_name_lookups() {
        return Err("keep the libraries that /etc/nsswitch.conf names away".to_owned());
    }
    wasi::run(module, contract, &environment)
}

/// No file that is read into memory is larger: a module, or the environment.
const LARGEST: u64 = 1 << 30;

/// All of a file, which may claim any size: a sparse one takes no space.
fn read(mut file: &File, memory: Option<u64>) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let length = file.metadata().map_err(failed)?.len();
    let most = memory.map_or(LARGEST, |memory| memory.min(LARGEST));
    if length > most {
        let of = if most < LARGEST { ", all that the container may use" } else { "" };
        return Err(format!("it has {length} bytes, more than {most}{of}"));
    }
    let mut bytes = Vec::new();
    file.rewind().map_err(failed)?;
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(wanted).map_err(|_| format!("no memory for its {length} bytes"))?;
    // It may grow meanwhile.
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// One line on standard error.
fn say(message: &str) {
    // With standard error closed there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("rt-wasmedge: {}\n", visible(message)).as_bytes());
}

/// One line for a terminal, which obeys what is not to be seen: names are the module's to choose. A
/// longer one than the kernel writes in one piece (`PIPE_BUF`, pipe(7)) is cut.
fn visible(message: &str) -> String {
    const LONGEST: usize = 4000;
    let is_hidden = |c: char| {
        c.is_control()
            // Marks and overrides of the direction of writing, and what has no width.
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::new();
    for c in message.chars() {
        if shown.len() > LONGEST {
            shown.push('…');
            break;
        }
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_commands_no_terminal() {
        assert_eq!(visible("a\u{1b}[31m\nb\u{202e}ü"), "a\\u{1b}[31m\\nb\\u{202e}ü");
        assert!(visible(&"\n".repeat(10_000)).len() < 4096);
    }

    #[test]
    fn a_file_is_not_larger_than_the_memory() {
        let path = std::env::temp_dir().join(format!("rt-wasmedge-read-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.expect("made");
        std::fs::remove_file(path).expect("removed");
        for (length, memory, good) in [
            (5, None, true),
            (5, Some(5), true),
            (5, Some(4), false),
            (LARGEST + 1, None, false),
            (200 << 30, None, false),
        ] {
            file.set_len(length).expect("it is sparse");
            assert_eq!(read(&file, memory).is_ok(), good, "{length} {memory:?}");
        }
    }
}
