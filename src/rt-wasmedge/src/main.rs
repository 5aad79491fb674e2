//! `rt-wasmedge`: the engine program that runs a WebAssembly module with WasmEdge, as the first process of a container
//! that `rt` has made. The steps are those of `docs/engine.md`.

mod compile;
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
        .and_then(|file| read(&file))
        .map_err(|error| format!("read the environment: {error}"))?;
    os::name_process(contract.arguments.first().map(String::as_str).unwrap_or_default());
    let directories = contract.directories.iter().filter_map(|directory| directory.descriptor);
    let kept = [contract.engine_dir, contract.module].into_iter().chain(contract.native);
    let kept: Vec<i32> = kept.chain(contract.plugin_dir).chain(directories).collect();
    os::close_all_but(&kept)?;
    os::fix_name_lookups();
    wasi::run(module, contract, &environment)
}

/// All of a file.
fn read(mut file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    bytes.reserve_exact(usize::try_from(file.metadata()?.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One line on standard error.
fn say(message: &str) {
    // With standard error closed there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("rt-wasmedge: {message}\n").as_bytes());
}
