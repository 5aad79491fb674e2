//! The compiler: reads a module from standard input, and writes native code, a shared library, to
//! standard output (`docs/engine.md`, "How it compiles"). It runs in a container of its own, and
//! keeps temporary files in its working directory.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use object::{Object, ObjectSegment, ObjectSymbol};
use wasmedge_sdk::config::{CompilerConfigOptions, ConfigBuilder, StatisticsConfigOptions};
use wasmedge_sdk::{Compiler, CompilerOptimizationLevel, CompilerOutputFormat, RunMode};

use crate::load::check_head;
use crate::run::explain;
use crate::{config, os};

/// The section in which WasmEdge's tools put native code into a module.
const NATIVE: &[u8] = b"wasmedge";

/// The name of the temporary result.
const NAME: &str = "module";

pub(crate) fn run(counting: bool) -> Result<(), String> {
    os::keep_log();
    rt_engine::process::keep_to_parent();
    let mut module = Vec::new();
    std::io::stdin()
        .read_to_end(&mut module)
        .map_err(|error| format!("read the module: {error}"))?;
    check_head(&module)?;
    let module = without_native_code(&module).ok_or("malformed: a section goes beyond its end")?;
    config::check_native(&module)?;
    let options = CompilerConfigOptions::default()
        .optimization_level(CompilerOptimizationLevel::O3)
        .out_format(CompilerOutputFormat::Native);
    let statistics = StatisticsConfigOptions::default().measure_cost(counting);
    let config = ConfigBuilder::new(config::options(RunMode::Aot))
        .with_compiler_config(options)
        .with_statistics_config(statistics);
    let compile = || {
        let config = config.build()?;
        Compiler::new(Some(&config))?.compile_from_bytes(&module, NAME, Path::new("."))
    };
    let path = compile().map_err(|error| explain(&error))?;
    let mut library = fs::read(&path).map_err(|error| format!("read the native code: {error}"))?;
    // A library that cannot be shortened is good too.
    shorten(&mut library, &module).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    out.write_all(&library)
        .and_then(|()| out.flush())
        .map_err(|error| format!("write the native code: {error}"))
}

/// Makes the module in the library as short as possible. Each start copies it twice, and runs the
/// native code of its functions. Returns `None` and leaves the library as it is if it is not as
/// expected.
fn shorten(library: &mut [u8], module: &[u8]) -> Option<()> {
    let short = without_functions(module)?;
    let (code, size) = (place(library, "wasm.code")?, place(library, "wasm.size")?);
    let number = |module: &[u8]| u32::try_from(module.len()).ok().map(u32::to_le_bytes);
    let is_expected = library.get(code.clone())? == module
        && library.get(size.clone())? == number(module)?
        && short.len() <= module.len();
    if !is_expected {
        return None;
    }
    library[code.clone()].fill(0);
    library[code][..short.len()].copy_from_slice(&short);
    library[size].copy_from_slice(&number(&short)?);
    Some(())
}

/// The place of a symbol in a library.
fn place(library: &[u8], name: &str) -> Option<Range<usize>> {
    let file = object::File::parse(library).ok()?;
    let symbol = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(name))?;
    let inside = |segment: &object::Segment<'_, '_>| {
        symbol.address().checked_sub(segment.address()).is_some_and(|at| at < segment.size())
    };
    let segment = file.segments().find(inside)?;
    let start = segment.file_range().0 + (symbol.address() - segment.address());
    Some(usize::try_from(start).ok()?..usize::try_from(start + symbol.size()).ok()?)
}

const HEAD: usize = 8;
const CUSTOM: u8 = 0;
const CODE: u8 = 10;

/// A section: its number, its content, and the whole section.
type Section<'a> = (u8, &'a [u8], &'a [u8]);

/// Returns `None` if the module is not a sequence of sections.
fn sections(module: &[u8]) -> Option<Vec<Section<'_>>> {
    let mut rest = module.get(HEAD..)?;
    let mut sections = Vec::new();
    while let [kind, after @ ..] = rest {
        let (length, content) = number(after)?;
        let (content, next) = content.split_at_checked(length)?;
        sections.push((*kind, content, &rest[..rest.len() - next.len()]));
        rest = next;
    }
    Some(sections)
}

/// The module without the sections that contain native code, because only this compiler may make
/// native code. Returns `None` if the module is not a sequence of sections.
fn without_native_code(module: &[u8]) -> Option<Vec<u8>> {
    let mut kept = module.get(..HEAD)?.to_vec();
    for (kind, content, section) in sections(module)? {
        let is_native = kind == CUSTOM
            && number(content).is_some_and(|(length, name)| name.get(..length) == Some(NATIVE));
        if !is_native {
            kept.extend_from_slice(section);
        }
    }
    Some(kept)
}

/// The module with functions that only trap, and without custom sections.
fn without_functions(module: &[u8]) -> Option<Vec<u8>> {
    /// A length of 3, and three bytes: no variables, `unreachable`, `end`.
    const TRAP: [u8; 4] = [3, 0, 0, 0x0b];
    let mut kept = module.get(..HEAD)?.to_vec();
    for (kind, content, section) in sections(module)? {
        match kind {
            CUSTOM => {}
            CODE => {
                let (count, functions) = number(content)?;
                let count_as_it_is = &content[..content.len() - functions.len()];
                let length = u32::try_from(count_as_it_is.len() + count * TRAP.len()).ok()?;
                kept.push(CODE);
                kept.extend((0..5).map(|at| {
                    // In LEB128, with the maximum number of bytes.
                    let bits = (length >> (7 * at)) as u8 & 0x7f;
                    if at < 4 { bits | 0x80 } else { bits }
                }));
                kept.extend_from_slice(count_as_it_is);
                kept.extend(std::iter::repeat_n(TRAP, count).flatten());
            }
            _ => kept.extend_from_slice(section),
        }
    }
    Some(kept)
}

/// An unsigned number of at most 32 bits in LEB128, and the bytes after it (WebAssembly core
/// specification 5.2.2).
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).ok()?;
            return Some((usize::try_from(value).ok()?, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_code_is_left_out() {
        let head = b"\0asm\x01\0\0\0";
        let custom =
            |name: &[u8]| [&[0, name.len() as u8 + 2, name.len() as u8][..], name, b"x"].concat();
        let other = [1, 4, 1, 0x60, 0, 0];
        let module =
            [&head[..], &custom(b"wasmedge"), &other, &custom(b"name"), &custom(b"wasmedge")]
                .concat();
        let expected = [&head[..], &other, &custom(b"name")].concat();
        assert_eq!(without_native_code(&module), Some(expected));
        assert_eq!(without_native_code(head), Some(head.to_vec()));
    }

    #[test]
    fn functions_trap_where_they_are_native() {
        // Two functions of the type () -> (), one that calls the other, and a name for both.
        let types = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x03\x02\0\0";
        let module =
            [&types[..], b"\x0a\x09\x02\x02\0\x0b\x04\0\x10\0\x0b", b"\0\x05\x04name"].concat();
        let trap = [3, 0, 0, 0x0b];
        let expected =
            [&types[..], &[10, 0x89, 0x80, 0x80, 0x80, 0, 2], &trap[..], &trap[..]].concat();
        assert_eq!(without_functions(&module), Some(expected));
    }

    #[test]
    fn what_is_cut_short_is_no_module() {
        for wrong in [
            &b"\0asm"[..],
            b"\0asm\x01\0\0\0\x01\x05\0",
            b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\xff",
            b"\0asm\x01\0\0\0\x01",
        ] {
            assert_eq!(without_native_code(wrong), None);
        }
    }
}
