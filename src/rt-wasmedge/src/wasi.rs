//! The module and its world: loading, WASI preview1, and the run.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use wasmedge_sdk::config::{ConfigBuilder, RuntimeConfigOptions};
use wasmedge_sdk::error::{CoreCommonError, CoreError, WasmEdgeError};
use wasmedge_sdk::plugin::PluginManager;
use wasmedge_sdk::vm::SyncInst;
use wasmedge_sdk::wasi::WasiModule;
use wasmedge_sdk::{AsInstance, ExternalInstanceType, Instance, Module, RunMode, Store, Vm};

use crate::End;
use crate::contract::Contract;
use crate::os::Source;
use crate::{config, memory, os, read, say};

const WASI: &str = "wasi_snapshot_preview1";

const NO_ADDRESSES: &str =
    "too few addresses for its memory, which takes 12 GiB of them (`RLIMIT_AS`)";

pub(crate) fn run(file: File, contract: &Contract, environment: &[u8]) -> Result<End, String> {
    os::keep_log();
    let program = contract.arguments.first().map(String::as_str).unwrap_or_default();
    let refused = |why: String| format!("start `{program}`: {why}");
    let build = |builder: ConfigBuilder| builder.build().map_err(|error| refused(explain(&error)));
    let mut loaded = None;
    if let Some(native) = contract.native {
        let common = config::options(RunMode::Aot);
        let load = || {
            // The compiler has validated all of it, and WasmEdge will look at the module that is
            // with the native code. This third look depends on neither.
            let memories = memory::of_native(&file)?;
            // The module is in there too. A path, since what is shared with other processes is a
            // file: `rt` has made this one, and what it leads to cannot be changed.
            let path = format!("/proc/self/fd/{native}");
            let loading = ConfigBuilder::new(common).build().map_err(|error| explain(&error))?;
            let module =
                Module::from_file(Some(&loading), path).map_err(|error| explain(&error))?;
            Ok((common, module, memories))
        };
        // Slower than it could be, which somebody may look for.
        let told = load().inspect_err(|why: &String| {
            say(&format!(
                "the native code of `{program}` does not load, so it is interpreted: {why}"
            ));
        });
        loaded = told.ok();
    }
    let is_native = loaded.is_some();
    let mut bytes = Vec::new();
    let (common, module, memories) = match loaded {
        // All that runs is in there.
        Some(loaded) => loaded,
        // Native code inside of a module is not looked at.
        None => {
            bytes = read(&file, contract.memory)
                .map_err(|error| refused(format!("read the module: {error}")))?;
            check_head(&bytes).map_err(refused)?;
            let common = config::options(RunMode::Interpreter);
            let loading = build(ConfigBuilder::new(common))?;
            let module = Module::from_bytes(Some(&loading), &bytes).map_err(|error| {
                // WasmEdge takes what it does not know for damage.
                refused(config::refusal(&bytes).unwrap_or_else(|| explain(&error)))
            })?;
            (common, module, memory::of_bytes(&bytes))
        }
    };
    let length = file.metadata().map_or(0, |file| file.len());
    drop(file);
    let most_pages = contract.memory.map(|limit| memory::most_pages(&memories, limit));
    match module.get_export("_start") {
        Some(ExternalInstanceType::Func(kind)) if kind.args_len() + kind.returns_len() == 0 => {}
        Some(_) => return Err(refused("its `_start` is no function without arguments".into())),
        None => {
            return Err(refused("it exports no `_start`: a WASI command module is needed".into()));
        }
    }
    let environment = variables(environment)?;
    let mut wasi = world(contract, &environment)?;
    load_plugins(contract).map_err(refused)?;
    os::guard_files();
    let mut offered: HashMap<String, Instance> = HashMap::new();
    for import in module.imports() {
        let (from, name) = (import.module_name(), import.name());
        let known = if from == WASI {
            wasi.as_mut().get_func(name.as_ref()).is_ok()
        } else {
            if !offered.contains_key(from.as_ref())
                && let Some(instance) = plugin_module(&from)
            {
                offered.insert(from.to_string(), instance);
            }
            offered.get(from.as_ref()).is_some_and(|it| it.get_func(name.as_ref()).is_ok())
        };
        if !known {
            return Err(refused(format!("unknown import `{name}` from `{from}`")));
        }
    }
    // What the module brings along, it may have: a data segment is copied in one piece.
    os::limit_pieces(largest_piece(contract.memory).max(length as usize));
    if let Some(limit) = contract.memory {
        os::limit_data(memory::most_bytes(&memories, limit))?;
    }
    if let Some(fuel) = contract.fuel {
        // The machine makes its own of what plugins offer.
        drop((module, offered));
        let source =
            contract.native.filter(|_| is_native).map_or(Source::Bytes(&bytes), Source::Native);
        let result = os::run_with_fuel(source, wasi.as_mut(), most_pages, contract.timeout, fuel)
            .map_err(|error| refused(one_line(error)))?;
        return Ok(match result {
            Ok(()) => End::Exited((wasi.exit_code() & 0xff) as u8),
            Err(error) => End::Trapped(one_line(error)),
        });
    }
    drop(bytes);
    if let Some(native) = contract.native {
        os::close(native);
    }
    let mut instances: HashMap<String, &mut dyn SyncInst> = HashMap::new();
    instances.insert(WASI.to_owned(), wasi.as_mut());
    for (name, instance) in &mut offered {
        instances.insert(name.clone(), instance);
    }
    let mut running = ConfigBuilder::new(common);
    if let Some(pages) = most_pages {
        let options = RuntimeConfigOptions::default().max_memory_pages(pages);
        running = running.with_runtime_config(options);
    }
    let store =
        Store::new(Some(&build(running)?), instances).map_err(|error| refused(explain(&error)))?;
    let mut vm = Vm::new(store);
    if let Some(timeout) = contract.timeout {
        os::end_after(timeout)?;
    }
    // A start function runs in here, and may end everything.
    match vm.register_module(None, module).map(drop) {
        // Ended by `proc_exit`, it leaves no instance.
        Ok(()) if vm.active_module().is_none_or(|it| it.get_func("_start").is_err()) => {
            return Ok(End::Exited((wasi.exit_code() & 0xff) as u8));
        }
        Ok(()) => {}
        Err(error) => {
            return match *error {
                WasmEdgeError::Core(CoreError::Common(CoreCommonError::Terminated)) => {
                    Ok(End::Exited((wasi.exit_code() & 0xff) as u8))
                }
                WasmEdgeError::Core(CoreError::Execution(_)) => {
                    let why = explain(&error);
                    // The first thing that is written to a memory that is not there.
                    if why.contains("Unable to find usable memory address") {
                        return Err(refused(NO_ADDRESSES.into()));
                    }
                    Ok(End::Trapped(why))
                }
                _ => Err(refused(explain(&error))),
            };
        }
    }
    os::take_log();
    // What loading has left behind is of no use to the guest, which may run for months.
    os::trim_memory();
    if let Some(instance) = vm.active_module() {
        os::name_memory(instance);
    }
    let result = vm.run_func(None, "_start", []);
    drop(vm);
    match result {
        // `proc_exit` ends the run with success, and its code is kept aside; exit(3) keeps the
        // lowest eight bits.
        Ok(_) => Ok(End::Exited((wasi.exit_code() & 0xff) as u8)),
        Err(error) => Ok(End::Trapped(explain(&error))),
    }
}

/// The interpreter's stack, of 16 bytes a value, is doubled when it is full, and both halves are
/// there for a moment: a part of what the container may use, and no more than a million calls need.
fn largest_piece(memory: Option<u64>) -> usize {
    const MOST: u64 = 128 << 20;
    const LEAST: u64 = 1 << 20;
    let piece = memory.map_or(MOST, |memory| (memory / 4).clamp(LEAST, MOST));
    usize::try_from(piece).unwrap_or(usize::MAX)
}

/// Loads the plugins that the host allows and the container asks for. No other place is looked at.
fn load_plugins(contract: &Contract) -> Result<(), String> {
    let Some(directory) = contract.plugin_dir else { return Ok(()) };
    for file in &contract.plugins {
        let path = format!("/proc/self/fd/{directory}/{file}");
        let before = PluginManager::count();
        let loaded = PluginManager::load(Some(Path::new(&path)));
        // It says nothing of a file that it passes over, but in its log.
        if loaded.is_err() || PluginManager::count() == before {
            let why =
                one_line("it is no plugin of this WasmEdge's, or needs what is not there".into());
            return Err(format!("load the plugin `{file}`: {why}"));
        }
    }
    Ok(())
}

/// A module by this name that a plugin offers.
fn plugin_module(name: &str) -> Option<Instance> {
    let plugins = PluginManager::names();
    let plugins = plugins.iter().filter_map(|plugin| PluginManager::find(plugin).ok());
    let mut offering = plugins.filter(|plugin| plugin.mod_names().iter().any(|it| it == name));
    offering.next()?.mod_instance(name).ok()
}

/// What can be said of the bytes better than the parser says it.
pub(crate) fn check_head(bytes: &[u8]) -> Result<(), String> {
    match bytes {
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => {
            Err("a component: WasmEdge runs core modules (WASI preview1)".into())
        }
        [0, b'a', b's', b'm', ..] => Ok(()),
        _ => Err("not a WebAssembly module".into()),
    }
}

/// The entries of the environment file. A name alone is no variable.
fn variables(environment: &[u8]) -> Result<Vec<&str>, String> {
    let text =
        std::str::from_utf8(environment).map_err(|_| "the environment is not UTF-8".to_owned())?;
    Ok(text.split_terminator('\0').filter(|variable| variable.contains('=')).collect())
}

/// WASI preview1 with what the contract gives the guest. Strings from the command line and a
/// NUL-separated file hold no NUL, which the Rust API would panic on.
fn world(contract: &Contract, environment: &[&str]) -> Result<WasiModule, String> {
    let mut preopens = Vec::new();
    for directory in &contract.directories {
        // WasmEdge's syntax is GUEST:HOST[:readonly], without a way to write a colon in a path.
        if directory.path.contains(':') {
            return Err(format!(
                "preopen `{}`: WasmEdge cannot name a directory with a colon",
                directory.path
            ));
        }
        let right = if directory.read_only { ":readonly" } else { "" };
        let place = match directory.descriptor {
            // The last part is no link: WasmEdge follows none there.
            Some(descriptor) => format!("/proc/self/fd/{descriptor}/."),
            None => directory.path.clone(),
        };
        preopens.push(format!("{}:{place}{right}", directory.path));
    }
    let arguments = contract.arguments.iter().map(String::as_str).collect();
    let preopens = preopens.iter().map(String::as_str).collect();
    let wasi = WasiModule::create(Some(arguments), Some(environment.to_vec()), Some(preopens));
    // It has opened them by itself.
    contract.directories.iter().filter_map(|directory| directory.descriptor).for_each(os::close);
    wasi.map_err(|error| format!("make the WASI module: {error}"))
}

/// An error on one line: what the API says of it, and what WasmEdge's log says about where.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    one_line(error.to_string())
}

fn one_line(error: String) -> String {
    let lines = os::take_log();
    let lines: Vec<String> = lines
        .iter()
        // What an error is told with, and what it counts so far, is not of it.
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
