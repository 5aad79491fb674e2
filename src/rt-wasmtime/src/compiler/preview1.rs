//! Core modules of WASI preview1. They become components: wasmtime's adapter, itself a small
//! module, implements preview1 by the functions of WASI 0.2. So both kinds run by the same code,
//! under the same checks.
#![forbid(unsafe_code)]

use anyhow::Result;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{
    ExportKind, ExportSection, ImportSection, MemorySection, MemoryType, Module, SectionId,
};
use wasmparser::{ExportSectionReader, Imports, MemorySectionReader, Parser, Payload, TypeRef};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Where a module finds the function that ends it with a status.
const EXIT: (&str, &str) = ("wasi:cli/exit@0.2.12", "exit-with-code");

/// The world of that function, for the description that a component requires.
const WORLD: &str = "
    package rt:guest;
    world guest { import wasi:cli/exit@0.2.12; }
    package wasi:cli@0.2.12 {
        interface exit {
            exit: func(status: result);
            exit-with-code: func(status-code: u8);
        }
    }";

/// The name by which preview1 finds a module's memory.
const MEMORY: &str = "memory";

/// The interfaces by which a core module answers requests: an export's name is one of them, with
/// what follows here. Such modules come from the SDKs of Spin before version 4.
const HANDLERS: [(&str, [char; 2]); 2] =
    [("wasi:http/incoming-handler", ['@', '#']), ("fermyon:spin/inbound-http", ['@', '#'])];

/// Makes a component of a module that exports `_start`, or a handler of requests.
pub(crate) fn component(module: &[u8]) -> Result<Vec<u8>, String> {
    let encode = || {
        let (module, adapter) = match is_handler(module) {
            true => (module.to_vec(), WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER),
            false => (adapted(module)?, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER),
        };
        ComponentEncoder::default()
            .module(&module)?
            .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter)?
            .encode()
    };
    encode().map_err(|error| format!("{error:#}"))
}

/// Whether a core module exports a handler of requests. The encoder reports what is wrong in the
/// bytes.
fn is_handler(module: &[u8]) -> bool {
    let is_one = |name: &str| {
        HANDLERS.iter().any(|(handler, next)| {
            name.strip_prefix(handler).is_some_and(|rest| rest.starts_with(next))
        })
    };
    Parser::new(0).parse_all(module).map_while(Result::ok).any(|payload| match payload {
        Payload::ExportSection(exports) => {
            exports.into_iter().map_while(Result::ok).any(|export| is_one(export.name))
        }
        _ => false,
    })
}

/// The module, with two changes:
///
/// - Its `proc_exit` is WASI 0.2's `exit-with-code`, which has the same type in a core module. The
///   adapter's own knows success and failure only.
/// - It exports its first memory, if it does not, or an empty one, if it has none. The adapter
///   requires that of every module, also of one that shares no data with WASI.
fn adapted(module: &[u8]) -> Result<Vec<u8>> {
    let mut change = Change::default();
    let mut adapted = Module::new();
    change.parse_core_module(&mut adapted, Parser::new(0), module)?;
    let mut adapted = adapted.finish();
    if change.exits {
        let mut wit = Resolve::default();
        let package = wit.push_source("guest.wit", WORLD)?;
        let world = wit.select_world(&[package], None)?;
        embed_component_metadata(&mut adapted, &wit, world, StringEncoding::UTF8)?;
    }
    Ok(adapted)
}

#[derive(Default)]
struct Change {
    /// Whether the module imports `proc_exit`.
    exits: bool,
    /// Whether the module has a memory by now.
    has_memory: bool,
}

impl Reencode for Change {
    type Error = std::convert::Infallible;

    fn parse_imports(
        &mut self,
        section: &mut ImportSection,
        imports: Imports<'_>,
    ) -> Result<(), Error<Self::Error>> {
        let mut imports = imports;
        if let Imports::Single(_, import) = &mut imports {
            self.has_memory |= matches!(import.ty, TypeRef::Memory(_));
            if (import.module, import.name) == (WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, "proc_exit") {
                self.exits = true;
                (import.module, import.name) = EXIT;
            }
        }
        wasm_encoder::reencode::utils::parse_imports(self, section, imports)
    }

    fn parse_memory_section(
        &mut self,
        section: &mut MemorySection,
        memories: MemorySectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        self.has_memory |= memories.count() > 0;
        wasm_encoder::reencode::utils::parse_memory_section(self, section, memories)
    }

    /// Between the place of the memories and that of the exports.
    fn intersperse_section_hook(
        &mut self,
        module: &mut Module,
        _after: Option<SectionId>,
        before: Option<SectionId>,
    ) -> Result<(), Error<Self::Error>> {
        let is_late =
            matches!(before, Some(SectionId::Tag | SectionId::Global | SectionId::Export));
        if is_late && !self.has_memory {
            self.has_memory = true;
            let mut section = MemorySection::new();
            section.memory(MemoryType {
                minimum: 0,
                maximum: None,
                memory64: false,
                shared: false,
                page_size_log2: None,
            });
            module.section(&section);
        }
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        section: &mut ExportSection,
        exports: ExportSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        let is_known = exports.clone().into_iter().flatten().any(|export| export.name == MEMORY);
        wasm_encoder::reencode::utils::parse_export_section(self, section, exports)?;
        if !is_known {
            section.export(MEMORY, ExportKind::Memory, 0);
        }
        Ok(())
    }
}
