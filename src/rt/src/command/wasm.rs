//! `rt wasm`: handles modules before they are started. `docs/wasm-cache.md` is the page for
//! operators.
#![forbid(unsafe_code)]

mod cache;
mod compile;
mod inspect;
mod program;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cli::{self, Global, WasmCommand, WasmWorker};
use crate::compiler::{self, Ended, Order};
use crate::engine::{BUSY, Engines, Native};
use crate::report;
use crate::state::Root;
use crate::workload::Handler;

pub(super) fn execute(root: &Root, global: &Global, args: &cli::Wasm) -> Result<ExitCode> {
    match &args.command {
        WasmCommand::Compile(args) => {
            compile::compile(root, global, args)
                .with_context(|| format!("compile `{}`", args.path.display()))?;
        }
        WasmCommand::Inspect(args) => {
            inspect::inspect(root, global, args)
                .with_context(|| format!("inspect `{}`", args.path.display()))?;
        }
        WasmCommand::Cache(args) => cache::execute(root, global, args)?,
        WasmCommand::Worker(args) => {
            return work(root, global, args).with_context(|| format!("compile `{}`", args.name));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn work(root: &Root, global: &Global, args: &WasmWorker) -> Result<ExitCode> {
    let handler = Handler::Named(args.engine.clone());
    let engines = Engines::find(&handler, super::host(root, global), &[])?;
    let native = compiler(&engines, 0)?;
    let order = Order {
        name: args.name.clone(),
        counting: args.counting,
        tenant: args.tenant,
        wait: (!args.background).then(|| Duration::from_millis(args.wait)),
    };
    match compiler::work(&order, engines.get(0)?, &native, super::manager(global))? {
        Ended::Well => Ok(ExitCode::SUCCESS),
        Ended::Busy => {
            report::fail("the compilers of others have not ended in time");
            Ok(ExitCode::from(BUSY))
        }
    }
}

/// Returns the means to compile modules for the engine with this number.
fn compiler(engines: &Engines<'_>, number: usize) -> Result<Native> {
    let native = engines.native(number)?;
    ensure!(native.can_compile, "this installation compiles no modules");
    Ok(native)
}
