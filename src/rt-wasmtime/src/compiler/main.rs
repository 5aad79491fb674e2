//! `rt-wasmtime-compiler`: compiles a WebAssembly component or module from standard input to native
//! code on standard output, for `rt-wasmtime`. Of a Spin manifest, it makes the app's plan. It runs
//! in a container that `rt` makes for it (`docs/engine.md`, "How it compiles").
#![forbid(unsafe_code)]

#[path = "../config.rs"]
mod config;
mod handler;
mod preview1;
mod preview3;

use std::io::{Read, Write};
use std::process::ExitCode;

use config::Form;
use rt_engine::{End, LARGEST, Program, Work, process};

const PROGRAM: Program = Program { name: "rt-wasmtime-compiler", options: &[] };

/// musl maps and unmaps pages for many allocations. dlmalloc keeps its pages.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    rt_engine::run(&PROGRAM, |work| match work {
        Work::Run(_) => Err("this program only compiles".into()),
        Work::Compile { counting } => compile(counting).map(|()| End::Exited(0)),
    })
}

fn compile(counting: bool) -> Result<(), String> {
    process::keep_to_parent();
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("read the module: {error}"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("it has more than {LARGEST} bytes"));
    }
    if !bytes.starts_with(b"\0asm") {
        return write(&rt_spin::manifest::compile(&bytes)?);
    }
    let component = if is_module(&bytes) { preview1::component(&bytes)? } else { bytes };
    let component = preview3::of_the_release(component)?;
    let form = Form {
        counting,
        yielding: handler::is_one(&component),
        asynchronous: preview3::is_asynchronous(&component),
    };
    let engine = config::engine(&config::config(form))?;
    let native = engine.precompile_component(&component).map_err(|error| format!("{error:#}"))?;
    write(&native)
}

fn write(native: &[u8]) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    out.write_all(native)
        .and_then(|()| out.flush())
        .map_err(|error| format!("write native code: {error}"))
}

/// Whether these are the bytes of a core module (WebAssembly core specification 5.5.16) and not of
/// a component.
fn is_module(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\0asm\x01\0\0\0")
}
