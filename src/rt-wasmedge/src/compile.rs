//! The compiler: a module from standard input becomes native code, a shared library, on standard output (`docs/engine.md`, "How it
//! compiles"). It runs in a container of its own, and in its working directory it writes what it needs on the way.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use wasmedge_sdk::config::{
    CommonConfigOptions, CompilerConfigOptions, ConfigBuilder, StatisticsConfigOptions,
};
use wasmedge_sdk::{Compiler, CompilerOptimizationLevel, CompilerOutputFormat};

use crate::{os, wasi};

/// The section by which WasmEdge's tools put native code into a module.
const NATIVE: &[u8] = b"wasmedge";

/// Where the result is on its way.
const NAME: &str = "module";

pub(crate) fn run(counting: bool) -> Result<(), String> {
    os::keep_log();
    os::keep_to_parent();
    let mut module = Vec::new();
    std::io::stdin()
        .read_to_end(&mut module)
        .map_err(|error| format!("read the module: {error}"))?;
    wasi::check_head(&module)?;
    let module = without_native_code(&module).ok_or("malformed: a section goes beyond its end")?;
    let options = CompilerConfigOptions::default()
        .optimization_level(CompilerOptimizationLevel::O3)
        .out_format(CompilerOutputFormat::Native);
    let statistics = StatisticsConfigOptions::default().measure_cost(counting);
    let config = ConfigBuilder::new(CommonConfigOptions::default())
        .with_compiler_config(options)
        .with_statistics_config(statistics);
    let compile = || {
        let config = config.build()?;
        Compiler::new(Some(&config))?.compile_from_bytes(&module, NAME, Path::new("."))
    };
    let path = compile().map_err(|error| wasi::explain(&error))?;
    let mut file = File::open(&path).map_err(|error| format!("open the native code: {error}"))?;
    let mut out = std::io::stdout().lock();
    std::io::copy(&mut file, &mut out)
        .and_then(|_| out.flush())
        .map_err(|error| format!("write the native code: {error}"))
}

/// The module without the sections that hold native code, which nobody but this compiler shall have made. None when it is no
/// sequence of sections.
fn without_native_code(module: &[u8]) -> Option<Vec<u8>> {
    const HEAD: usize = 8;
    const CUSTOM: u8 = 0;
    let (head, mut rest) = module.split_at_checked(HEAD)?;
    let mut kept = head.to_vec();
    while let [kind, after @ ..] = rest {
        let (length, content) = number(after)?;
        let (content, next) = content.split_at_checked(length)?;
        let section = &rest[..rest.len() - next.len()];
        let is_native = *kind == CUSTOM
            && number(content).is_some_and(|(length, name)| name.get(..length) == Some(NATIVE));
        if !is_native {
            kept.extend_from_slice(section);
        }
        rest = next;
    }
    Some(kept)
}

/// An unsigned number of at most 32 bits in LEB128, and what follows it (WebAssembly core specification 5.2.2).
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
