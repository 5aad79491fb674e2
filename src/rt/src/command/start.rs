//! `rt start`: lets the program of a created container run.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli;
use crate::container;
use crate::state::Root;

pub(super) fn execute(root: &Root, args: &cli::Id) -> Result<ExitCode> {
    root.load(&args.id)
        .and_then(|(directory, state)| container::start(&directory, &state))
        .with_context(|| format!("start `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}
