//! A run: from the command line to the guest's end, phase by phase.
#![forbid(unsafe_code)]

use rt_engine::{End, Run, Start, memory, process};
use wasmedge_sdk::config::{ConfigBuilder, RuntimeConfigOptions};
use wasmedge_sdk::error::{CoreCommonError, CoreError, WasmEdgeError};
use wasmedge_sdk::vm::SyncInst;
use wasmedge_sdk::wasi::WasiModule;
use wasmedge_sdk::{AsInstance, Module, Store, Vm};

use crate::load::Loaded;
use crate::os;
use crate::wasi::World;

const NO_ADDRESSES: &str =
    "too few addresses for its memory, which requires 12 GiB of them (`RLIMIT_AS`)";

/// Runs a module. Fails if it never started.
pub(crate) fn run(start: Start) -> Result<End, String> {
    let program = start.run.program().to_owned();
    run_module(start, &program).map_err(|why| format!("start `{program}`: {why}"))
}

fn run_module(start: Start, program: &str) -> Result<End, String> {
    os::keep_log();
    let Start { environment, mut run } = start;
    let loaded = Loaded::new(&run.module, run.native.take(), run.memory, program)?;
    loaded.check_command()?;
    let world = World::new(&mut run, &environment, &loaded.module)?;
    let most_pages = limit(&loaded, run.memory)?;
    // Only the directories of the engine and of the plugins stay open.
    let Run { engine_dir, plugin_dir, module, timeout, fuel, .. } = run;
    drop((environment, module));
    let end = match fuel {
        Some(fuel) => run_counted(loaded, world, most_pages, timeout, fuel),
        None => run_freely(loaded, world, most_pages, timeout),
    };
    drop((engine_dir, plugin_dir));
    end
}

/// Limits the memory of this process. Returns how many pages each memory may have, if the container
/// has a limit.
fn limit(loaded: &Loaded, limit: Option<u64>) -> Result<Option<u32>, String> {
    // A piece may be as large as the module, because a data segment is copied in one piece.
    let length = usize::try_from(loaded.length).unwrap_or(usize::MAX);
    os::limit_pieces(largest_piece(limit).max(length));
    let Some(limit) = limit else { return Ok(None) };
    process::limit_data(memory::most_bytes(loaded.initial_pages(), limit))?;
    Ok(Some(memory::most_pages(loaded.initial_pages(), limit)))
}

/// The largest piece of memory for the engine. The interpreter's stack, with 16 bytes for each
/// value, doubles when it is full. For a moment, the old and the new stack both exist. The limit is
/// a fourth of the container's memory, and at most what a million calls require.
fn largest_piece(memory: Option<u64>) -> usize {
    const MOST: u64 = 128 << 20;
    const LEAST: u64 = 1 << 20;
    let piece = memory.map_or(MOST, |memory| (memory / 4).clamp(LEAST, MOST));
    usize::try_from(piece).unwrap_or(usize::MAX)
}

/// Runs a module for a number of instructions.
fn run_counted(
    loaded: Loaded,
    world: World,
    most_pages: Option<u32>,
    timeout: Option<i32>,
    fuel: u64,
) -> Result<End, String> {
    // The virtual machine makes its own instances of the plugins' modules, and loads the module
    // again.
    let Loaded { module, source, .. } = loaded;
    let World { mut wasi, offered } = world;
    drop((module, offered));
    match os::run_with_fuel(source, wasi.as_mut(), most_pages, timeout, fuel).map_err(one_line)? {
        Ok(()) => Ok(exited(&wasi)),
        Err(error) => Ok(End::Trapped(one_line(error))),
    }
}

/// Runs a module until it ends, or until its time is over.
fn run_freely(
    loaded: Loaded,
    mut world: World,
    most_pages: Option<u32>,
    timeout: Option<i32>,
) -> Result<End, String> {
    let Loaded { module, options, source, .. } = loaded;
    drop(source);
    let mut config = ConfigBuilder::new(options);
    if let Some(pages) = most_pages {
        let options = RuntimeConfigOptions::default().max_memory_pages(pages);
        config = config.with_runtime_config(options);
    }
    let config = config.build().map_err(|error| explain(&error))?;
    let store = Store::new(Some(&config), world.instances()).map_err(|error| explain(&error))?;
    let mut vm = Vm::new(store);
    if let Some(timeout) = timeout {
        process::end_after(timeout)?;
    }
    let instantiated = instantiate(&mut vm, module)?;
    if let Instantiated::Ended = instantiated {
        drop(vm);
        return Ok(exited(&world.wasi));
    }
    if let Instantiated::Trapped(why) = instantiated {
        return Ok(End::Trapped(why));
    }
    os::take_log();
    // The leftovers of loading are of no use to the guest, which may run for months.
    process::trim_memory();
    if let Some(instance) = vm.active_module() {
        os::name_memory(instance);
    }
    let result = vm.run_func(None, "_start", []);
    drop(vm);
    match result {
        // `proc_exit` ends the run with success, and WasmEdge stores its code elsewhere.
        Ok(_) => Ok(exited(&world.wasi)),
        Err(error) => Ok(End::Trapped(explain(&error))),
    }
}

/// The result of an instantiation.
enum Instantiated {
    Ready,
    /// The guest's start function has ended the run.
    Ended,
    Trapped(String),
}

/// Instantiates the module. This runs the module's start function, which may end the run.
fn instantiate<'i>(
    vm: &mut Vm<'i, dyn SyncInst + 'i>,
    module: Module,
) -> Result<Instantiated, String> {
    match vm.register_module(None, module).map(drop) {
        // If `proc_exit` ended the start function, there is no instance.
        Ok(()) if vm.active_module().is_none_or(|it| it.get_func("_start").is_err()) => {
            Ok(Instantiated::Ended)
        }
        Ok(()) => Ok(Instantiated::Ready),
        Err(error) => match *error {
            WasmEdgeError::Core(CoreError::Common(CoreCommonError::Terminated)) => {
                Ok(Instantiated::Ended)
            }
            WasmEdgeError::Core(CoreError::Execution(_)) => {
                let why = explain(&error);
                // WasmEdge reports this when it first writes to a memory that does not exist. The
                // error has no type of its own. `wasm::a_small_address_space_is_told` fails if the
                // text changes.
                if why.contains("Unable to find usable memory address") {
                    return Err(NO_ADDRESSES.into());
                }
                Ok(Instantiated::Trapped(why))
            }
            _ => Err(explain(&error)),
        },
    }
}

/// exit(3) keeps the lowest eight bits.
fn exited(wasi: &WasiModule) -> End {
    End::Exited((wasi.exit_code() & 0xff) as u8)
}

/// An error on one line: the text of the API, and the place of the error from WasmEdge's log.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    one_line(error.to_string())
}

pub(crate) fn one_line(error: String) -> String {
    let lines = os::take_log();
    let lines: Vec<String> = lines
        .iter()
        // Removes the decoration of the log, and the number of instructions so far.
        .filter(|line| !line.contains("====") && !line.contains("Gas costs:"))
        .map(|line| shorten(&line.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    if lines.is_empty() { error } else { format!("{error} ({})", lines.join("; ")) }
}

/// A stack overflow lists its whole stack.
fn shorten(line: &str) -> String {
    const LONGEST: usize = 400;
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
