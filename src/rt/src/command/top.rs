//! `rt top`: a live table of containers. A program of its own draws the table, so that the
//! libraries for terminals are no part of `rt`. That program runs `rt list` and `rt events`.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{self, ExitCode};

use anyhow::{Context, Result, anyhow};

use crate::cli::{self, ListFormat};
use crate::exe;
use crate::state::Root;

pub(super) fn execute(root: &Root, args: &cli::Top) -> Result<ExitCode> {
    // A file, because each directory there is an engine.
    let program = exe::engines()?.join("rt-top");
    let mut flag = std::ffi::OsString::from("--root=");
    flag.push(root.path());
    let mut command = process::Command::new(&program);
    command.arg(exe::path()?).arg(flag);
    if let Some(interval) = &args.interval {
        command.arg(format!("--interval={interval}"));
    }
    if args.once {
        command.arg("--once");
    }
    if args.format == ListFormat::Json {
        command.arg("--format=json");
    }
    let error = command.exec();
    let program = program.display();
    let error = match error.kind() {
        ErrorKind::NotFound => anyhow!("the program `{program}` is not installed"),
        _ => anyhow!(error).context(format!("run `{program}`")),
    };
    Err(error).context("top")
}
