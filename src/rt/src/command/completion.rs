//! `rt completion`: prints a script by which a shell completes command lines.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Completion};

pub(super) fn execute(args: &Completion) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rt", &mut script);
    super::print(&for_both_names(&String::from_utf8_lossy(&script), args.shell))?;
    Ok(ExitCode::SUCCESS)
}

/// The program is also called `rt-wasm`, with the same command line.
fn for_both_names(script: &str, shell: clap_complete::Shell) -> String {
    match shell {
        clap_complete::Shell::Bash => script.replace("-o default rt\n", "-o default rt rt-wasm\n"),
        clap_complete::Shell::Zsh => script
            .replace("#compdef rt\n", "#compdef rt rt-wasm\n")
            .replace("compdef _rt rt\n", "compdef _rt rt rt-wasm\n"),
        _ => format!("{script}complete -c rt-wasm -w rt\n"),
    }
}
