//! `rt wasm`: modules before they are started. `docs/wasm-cache.md` is the page for operators.
#![forbid(unsafe_code)]

mod cache;
mod compile;
mod confine;
mod worker;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::cli::{self, Global, WasmCommand};
use crate::engine::{self, Description, Native, Settings};
use crate::state::Root;
use crate::workload;

/// The engine that modules are compiled for.
const ENGINE: workload::Engine = workload::Engine::WasmEdge;

pub(super) fn execute(root: &Root, global: &Global, args: &cli::Wasm) -> Result<ExitCode> {
    match &args.command {
        WasmCommand::Compile(args) => {
            compile::compile(root, global, args)
                .with_context(|| format!("compile `{}`", args.path.display()))?;
        }
        WasmCommand::Cache(args) => cache::execute(root, global, args)?,
        WasmCommand::Worker(args) => {
            return worker::work(root, global, args)
                .with_context(|| format!("compile `{}`", args.name));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What runs compiled modules here.
fn native(root: &Root, global: &Global) -> Result<(Description, Native)> {
    let path = engine::path(ENGINE)?;
    let show = || format!("open engine `{}` in `{}`", ENGINE.name(), path.display());
    let description = engine::describe(&path).with_context(show)?;
    let host = super::host(root, global);
    let native = Native::new(&description, Settings::read(host.config)?, &host)?;
    Ok((description, native.context("it does not run native code").with_context(show)?))
}

/// What compiles modules here.
fn compiler(root: &Root, global: &Global) -> Result<(Description, Native)> {
    let (description, native) = native(root, global)?;
    ensure!(native.can_compile, "this installation compiles no modules");
    Ok((description, native))
}
