//! A run: from the command line to the guest's end, phase by phase.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use rt_engine::memory::{self, Budget, Pool};
use rt_engine::{End, Run, Start, process, reserved, variables};
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi::{I32Exit, p2, p3};

use crate::engines::{Engines, Loaded};
use crate::limits::Limits;
use crate::serve::{Allowed, Every, Exported, Outbound, Settings, TRUSTED, Tls, Wasi};
use crate::world::{Given, World};
use crate::{kept, serve, spin, world};

/// Runs a component. Fails if it never started.
pub(crate) fn run(start: Start) -> Result<End, String> {
    let program = start.run.program().to_owned();
    let end = match start.run.http {
        Some(_) if !start.run.parts.is_empty() => spin::serve(start),
        Some(_) => serve_component(start),
        None => run_component(start),
    };
    end.map_err(|why| format!("start `{program}`: {why}"))
}

fn run_component(start: Start) -> Result<End, String> {
    let Start { environment, run } = start;
    let mut engines = Engines::of_a_command(run.fuel.is_some())?;
    let command = Command::load(&mut engines, run.native.as_ref())?;
    let Run { engine_dir, module, native, directories, arguments, .. } = run;
    // Of the host's files, only the native code stays open, read-only, on a mount of its own:
    // wasmtime keeps it. The guest cannot reach it, because no magic link is followed.
    drop((engine_dir, module, native));
    let limits = Limits::Alone(run.memory.map(Budget::new));
    let given = Given::new(arguments, &environment, &directories, true)?;
    drop((environment, directories));
    let (memory, timeout, fuel) = (run.memory, run.timeout, run.fuel);
    let mut store = Store::new(command.engine(), given.world(limits, Outbound::default()));
    store.limiter(|world| &mut world.limits);
    if let Some(fuel) = fuel {
        store.set_fuel(fuel).map_err(|error| format!("limit its instructions: {error:#}"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("wait for events: {error}"))?;
    if let Some(timeout) = timeout {
        process::end_after(timeout)?;
    }
    let end = runtime.block_on(run_command(store, &command, memory));
    // The guest has ended. A thread may still wait for a name's address or for a file, and nothing
    // waits for that thread.
    runtime.shutdown_background();
    end
}

/// Serves HTTP. Each request gets an instance of the component.
fn serve_component(start: Start) -> Result<End, String> {
    let Start { environment, run } = start;
    let Run { engine_dir, module, native, directories, arguments, http, .. } = run;
    let http = *http.ok_or("there is nothing to listen on")?;
    kept::limit(run.memory);
    let settings = Settings::new(&http.limits, run.memory, run.timeout, run.fuel);
    let memory = Arc::new(Pool::new(run.memory, settings.reserve(), settings.memory));
    let mut engines = Engines::of_a_server(run.fuel.is_some(), settings.instances())?;
    let loaded = engines.load(native.as_ref().ok_or(NO_NATIVE_CODE)?)?;
    // As for a command.
    drop((engine_dir, module, native));
    let is_service = loaded.exports(SERVICE);
    if !loaded.is_proxy() {
        loaded.check_version(SERVICE)?;
    }
    let Loaded { component, is_asynchronous } = loaded;
    let exported = world::http_linker(component.engine(), is_asynchronous)?
        .instantiate_pre(&component)
        .and_then(|linked| Exported::new(linked, is_service))
        .map_err(|error| format!("{error:#}"))?;
    let given = Given::new(arguments, &environment, &directories, false)?;
    let trusted = variables(&environment)?.into_iter().find_map(|variable| {
        variable.strip_prefix(TRUSTED).and_then(|rest| rest.strip_prefix('='))
    });
    let tls = Arc::new(Tls::new(trusted));
    drop((environment, directories));
    let allowed = Allowed::parse(http.outbound.iter().map(String::as_str))?;
    serve::interrupt(engines.into_all())?;
    reserved::name_all();
    let handler = Wasi { exported, given, outbound: Outbound::new(Arc::new(allowed), tls) };
    serve::serve(Box::new(Every(Arc::new(handler))), http, settings, memory)
}

const NO_NATIVE_CODE: &str = "it has no native code, and this engine interprets nothing";

/// What a command of WASI 0.3 and a handler of it export.
const RUN: &str = "wasi:cli/run@0.3.0";
pub(crate) const SERVICE: &str = "wasi:http/handler@0.3.0";

/// A command, of one of both versions of WASI.
enum Command {
    Older(p2::bindings::CommandPre<World>),
    Newer(p3::bindings::CommandPre<World>),
}

/// An instance of it.
enum Instance {
    Older(p2::bindings::Command),
    Newer(p3::bindings::Command),
}

impl Command {
    /// Loads the native code, and finds everything that it imports.
    fn load(engines: &mut Engines, native: Option<&File>) -> Result<Command, String> {
        let loaded = engines.load(native.ok_or(NO_NATIVE_CODE)?)?;
        let is_newer = loaded.is_asynchronous && loaded.exports(RUN);
        let Loaded { component, is_asynchronous } = loaded;
        let linker = world::linker(component.engine(), is_asynchronous)?;
        let command = linker.instantiate_pre(&component).and_then(|linked| match is_newer {
            true => p3::bindings::CommandPre::new(linked).map(Command::Newer),
            false => p2::bindings::CommandPre::new(linked).map(Command::Older),
        });
        command.map_err(|error| format!("{error:#}"))
    }

    fn engine(&self) -> &wasmtime::Engine {
        match self {
            Command::Older(command) => command.engine(),
            Command::Newer(command) => command.engine(),
        }
    }

    async fn instantiate(&self, store: &mut Store<World>) -> wasmtime::Result<Instance> {
        match self {
            Command::Older(command) => command.instantiate_async(store).await.map(Instance::Older),
            Command::Newer(command) => command.instantiate_async(store).await.map(Instance::Newer),
        }
    }
}

impl Instance {
    async fn run(&self, store: &mut Store<World>) -> wasmtime::Result<Result<(), ()>> {
        match self {
            Instance::Older(command) => command.wasi_cli_run().call_run(store).await,
            Instance::Newer(command) => {
                let run = async |accessor: &Accessor<World>| {
                    command.wasi_cli_run().call_run(accessor).await
                };
                store.run_concurrent(run).await?
            }
        }
    }
}

/// `memory` is the container's limit, in bytes.
async fn run_command(
    mut store: Store<World>,
    command: &Command,
    memory: Option<u64>,
) -> Result<End, String> {
    // This runs the start functions of the component's modules.
    let instance = match command.instantiate(&mut store).await {
        Ok(instance) => instance,
        Err(error) => return ended(error).map_err(|error| not_started(&error)),
    };
    reserved::name_all();
    if let Some(limit) = memory {
        process::limit_data(memory::most_bytes([], limit))?;
    }
    match instance.run(&mut store).await {
        Ok(Ok(())) => Ok(End::Exited(0)),
        Ok(Err(())) => Ok(End::Exited(1)),
        Err(error) => Ok(ended(error).unwrap_or_else(|error| End::Trapped(format!("{error:#}")))),
    }
}

/// Why a component was not instantiated.
fn not_started(error: &wasmtime::Error) -> String {
    let why = format!("{error:#}");
    // wasmtime has no type for this. `wasm::a_small_address_space_is_told` fails if the text
    // changes.
    if why.contains("failed to reserve") {
        return "too few addresses for its memory, which requires 4 GiB of them (`RLIMIT_AS`)"
            .into();
    }
    why
}

/// The end that an error stands for, if it stands for one: an exit, or a trap.
fn ended(error: wasmtime::Error) -> Result<End, wasmtime::Error> {
    if let Some(I32Exit(status)) = error.downcast_ref() {
        // exit(3) keeps the lowest eight bits.
        return Ok(End::Exited(status.to_le_bytes()[0]));
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(trap) => {
            let text = trap.to_string();
            Ok(End::Trapped(text.trim_start_matches("wasm trap: ").to_owned()))
        }
        None => Err(error),
    }
}
