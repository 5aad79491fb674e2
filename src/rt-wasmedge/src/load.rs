//! Loads the module: as native code, if there is any that loads, or to be interpreted.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use rt_engine::message::say;
use rt_engine::read;
use wasmedge_sdk::config::{CommonConfigOptions, ConfigBuilder};
use wasmedge_sdk::{ExternalInstanceType, Module, RunMode};
use wasmparser::MemoryType;

use crate::run::explain;
use crate::{config, memory};

/// A module that WasmEdge has parsed.
pub(crate) struct Loaded {
    pub(crate) module: Module,
    /// How the module runs.
    pub(crate) options: CommonConfigOptions,
    pub(crate) memories: Vec<MemoryType>,
    /// The length of the module's file, in bytes.
    pub(crate) length: u64,
    pub(crate) source: Source,
}

/// The source of a module.
pub(crate) enum Source {
    Bytes(Vec<u8>),
    /// The module's native code.
    Native(File),
}

impl Loaded {
    /// Loads a module from its native code, or from the file. The container may use `limit` bytes
    /// of memory.
    pub(crate) fn new(
        file: &File,
        native: Option<File>,
        limit: Option<u64>,
        program: &str,
    ) -> Result<Loaded, String> {
        if let Some(native) = native {
            match Loaded::from_native(file, native) {
                Ok(loaded) => return Ok(loaded),
                // The module runs slower than it could, and somebody may look for the reason.
                Err(why) => say(&format!(
                    "the native code of `{program}` does not load, so it is interpreted: {why}"
                )),
            }
        }
        Loaded::from_bytes(file, limit)
    }

    fn from_native(file: &File, native: File) -> Result<Loaded, String> {
        let options = config::options(RunMode::Aot);
        // The compiler has validated the whole module, and WasmEdge will check the module that is
        // in the native code. This third check depends on neither.
        let memories = memory::of_native(file)?;
        // The file contains the module too. WasmEdge gets a path, because only a file can be shared
        // with other processes. `rt` has made this file, and nobody can change the path's target.
        let path = format!("/proc/self/fd/{}", native.as_raw_fd());
        let loading = ConfigBuilder::new(options).build().map_err(|error| explain(&error))?;
        let module = Module::from_file(Some(&loading), path).map_err(|error| explain(&error))?;
        let source = Source::Native(native);
        Ok(Loaded { module, options, memories, length: length(file), source })
    }

    /// Loads the module's own bytes. Ignores native code inside the module.
    fn from_bytes(file: &File, limit: Option<u64>) -> Result<Loaded, String> {
        let bytes = read(file, limit).map_err(|error| format!("read the module: {error}"))?;
        check_head(&bytes)?;
        let options = config::options(RunMode::Interpreter);
        let loading = ConfigBuilder::new(options).build().map_err(|error| explain(&error))?;
        let module = Module::from_bytes(Some(&loading), &bytes).map_err(|error| {
            // WasmEdge reports a feature that it does not know as damage.
            config::refusal(&bytes).unwrap_or_else(|| explain(&error))
        })?;
        let memories = memory::of_bytes(&bytes);
        let source = Source::Bytes(bytes);
        Ok(Loaded { module, options, memories, length: length(file), source })
    }

    /// Fails if this is not a WASI command: a module that exports a function `_start` without
    /// arguments and results.
    pub(crate) fn check_command(&self) -> Result<(), String> {
        match self.module.get_export("_start") {
            Some(ExternalInstanceType::Func(kind)) if kind.args_len() + kind.returns_len() == 0 => {
                Ok(())
            }
            Some(_) => Err("its `_start` is not a function without arguments and results".into()),
            None => Err("it exports no `_start`: a WASI command module is required".into()),
        }
    }

    /// The initial number of pages of each memory.
    pub(crate) fn initial_pages(&self) -> impl Iterator<Item = u64> {
        self.memories.iter().map(|memory| memory.initial)
    }
}

fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |file| file.len())
}

/// Reports some errors more clearly than the parser.
pub(crate) fn check_head(bytes: &[u8]) -> Result<(), String> {
    match bytes {
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => {
            Err("a component: WasmEdge runs core modules (WASI preview1)".into())
        }
        [0, b'a', b's', b'm', ..] => Ok(()),
        _ => Err("not a WebAssembly module".into()),
    }
}
