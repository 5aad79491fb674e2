//! `rt-wasmedge`: the engine program that runs a WebAssembly module with WasmEdge, as the first
//! process of a container that `rt` has made. `docs/engine.md` describes the steps.

mod compile;
mod config;
mod load;
mod memory;
mod os;
mod run;
mod wasi;

use std::process::ExitCode;

use rt_engine::{End, Program, Start, Work};

const PROGRAM: Program =
    Program { name: "rt-wasmedge", options: &["fuel", "memory", "native", "plugin", "timeout"] };

fn main() -> ExitCode {
    rt_engine::run(&PROGRAM, |work| {
        os::finish_loading()?;
        match work {
            Work::Run(contract) => {
                if let Some(plugins) = &contract.run.plugin_dir {
                    let engine = contract.run.engine_dir.number();
                    os::use_separate_libraries(engine, plugins.number())?;
                }
                run::run(Start::new(contract)?)
            }
            Work::Compile { counting } => compile::run(counting).map(|()| End::Exited(0)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn the_description_lists_the_options_of_the_program() {
        let line = format!("\"options\": {:?},\n", PROGRAM.options);
        assert!(include_str!("../../../packaging/wasmedge/build").contains(&line), "{line}");
    }
}
