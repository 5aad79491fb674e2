//! `rt-wasmtime`: the engine program that runs WebAssembly with wasmtime, as the first process of a
//! container that `rt` has made. It runs a command, or serves HTTP with a handler of requests or
//! with the components of a Spin app. `docs/engine.md` describes the steps, and `docs/wasmtime.md`
//! the engine and its source files.
//!
//! This program contains no compiler. It runs native code that `rt-wasmtime-compiler` has made.

mod config;
mod engines;
mod kept;
mod limits;
mod native;
mod open;
mod run;
mod serve;
mod spin;
mod streams;
mod world;

use std::process::ExitCode;

use rt_engine::{Program, Start, Work};

const PROGRAM: Program = Program {
    name: "rt-wasmtime",
    options: &["fuel", "http", "memory", "native", "part", "timeout"],
};

/// musl maps and unmaps pages for many allocations. dlmalloc keeps its pages.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    rt_engine::run(&PROGRAM, |work| match work {
        Work::Run(contract) => run::run(Start::new(contract)?),
        Work::Compile { .. } => Err("this program contains no compiler".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn the_description_lists_the_options_of_the_program() {
        let line = format!("\"options\": {:?},\n", PROGRAM.options);
        assert!(include_str!("../../../packaging/wasmtime/build").contains(&line), "{line}");
    }
}
