//! The module: loaded as native code, if there is some that loads, or else to be interpreted.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rt_engine::message::say;
use rt_engine::read;
use wasmedge_sdk::config::{CommonConfigOptions, ConfigBuilder};
use wasmedge_sdk::{ExternalInstanceType, Module, RunMode};
use wasmparser::MemoryType;

use crate::run::explain;
use crate::{config, memory};

/// A module that WasmEdge has understood.
pub(crate) struct Loaded {
    pub(crate) module: Module,
    /// How it runs.
    pub(crate) options: CommonConfigOptions,
    pub(crate) memories: Vec<MemoryType>,
    /// Of the file, in bytes.
    pub(crate) length: u64,
    pub(crate) source: Source,
}

/// Where a module comes from.
pub(crate) enum Source {
    Bytes(Vec<u8>),
    /// What it was compiled to.
    Native(OwnedFd),
}

impl Loaded {
    /// Loads a module from its native code, or from the file. The container may use `limit` bytes
    /// of memory.
    pub(crate) fn new(
        file: &File,
        native: Option<OwnedFd>,
        limit: Option<u64>,
        program: &str,
    ) -> Result<Loaded, String> {
        if let Some(native) = native {
            match Loaded::from_native(file, native) {
                Ok(loaded) => return Ok(loaded),
                // Slower than it could be, which somebody may look for.
                Err(why) => say(&format!(
                    "the native code of `{program}` does not load, so it is interpreted: {why}"
                )),
            }
        }
        Loaded::from_bytes(file, limit)
    }

    fn from_native(file: &File, native: OwnedFd) -> Result<Loaded, String> {
        let options = config::options(RunMode::Aot);
        // The compiler has validated all of it, and WasmEdge will look at the module that is with
        // the native code. This third look depends on neither.
        let memories = memory::of_native(file)?;
        // The module is in there too. A path, since what is shared with other processes is a file:
        // `rt` has made this one, and what it leads to cannot be changed.
        let path = format!("/proc/self/fd/{}", native.as_raw_fd());
        let loading = ConfigBuilder::new(options).build().map_err(|error| explain(&error))?;
        let module = Module::from_file(Some(&loading), path).map_err(|error| explain(&error))?;
        let source = Source::Native(native);
        Ok(Loaded { module, options, memories, length: length(file), source })
    }

    /// Native code inside of a module is not looked at.
    fn from_bytes(file: &File, limit: Option<u64>) -> Result<Loaded, String> {
        let bytes = read(file, limit).map_err(|error| format!("read the module: {error}"))?;
        check_head(&bytes)?;
        let options = config::options(RunMode::Interpreter);
        let loading = ConfigBuilder::new(options).build().map_err(|error| explain(&error))?;
        let module = Module::from_bytes(Some(&loading), &bytes).map_err(|error| {
            // WasmEdge takes what it does not know for damage.
            config::refusal(&bytes).unwrap_or_else(|| explain(&error))
        })?;
        let memories = memory::of_bytes(&bytes);
        let source = Source::Bytes(bytes);
        Ok(Loaded { module, options, memories, length: length(file), source })
    }

    /// Fails if this is no WASI command: a module that exports a function `_start` without
    /// arguments and results.
    pub(crate) fn check_command(&self) -> Result<(), String> {
        match self.module.get_export("_start") {
            Some(ExternalInstanceType::Func(kind)) if kind.args_len() + kind.returns_len() == 0 => {
                Ok(())
            }
            Some(_) => Err("its `_start` is no function without arguments".into()),
            None => Err("it exports no `_start`: a WASI command module is needed".into()),
        }
    }

    /// How many pages each memory has at first.
    pub(crate) fn initial_pages(&self) -> impl Iterator<Item = u64> {
        self.memories.iter().map(|memory| memory.initial)
    }
}

fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |file| file.len())
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
