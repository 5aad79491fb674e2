//! Instances: a new one for each request.
#![forbid(unsafe_code)]

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hyper::Request;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use wasmtime::{
    Engine, InstanceAllocationStrategy, PoolConcurrencyLimitError, PoolingAllocationConfig, Store,
    Trap,
};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::inside::Call;
use super::router::Handler;
use super::statistics::{Counter, Now, count};
use super::{Server, say};
use crate::limits::Limits;
use crate::native;
use crate::world::MOST;

/// The slice of processor time, in milliseconds, after which a guest lets others go on. With n
/// guests that compute, another request waits at most n slices for its turn.
const SLICE: u16 = 10;

/// The most bytes that one call copies from a guest. A value of a key-value store has 4 MiB.
const COPIED: usize = 8 << 20;

/// Lets the guests of these engines take turns.
pub(crate) fn interrupt(engines: Vec<Engine>) -> Result<(), String> {
    native::interrupt_each_slice(engines, SLICE)
}

/// How wasmtime keeps memories and stacks for this many instances: made once, and used again.
pub(crate) fn allocation(instances: usize, asynchronous: bool) -> InstanceAllocationStrategy {
    /// The most of one component, in all its core modules. A component of one program has four core
    /// modules: the program, an adapter and two small ones of wit-component. A component that is
    /// composed of several programs has as many for each of them.
    const MODULES: u32 = 64;
    const MEMORIES: u32 = 8;
    const TABLES: u32 = 32;
    /// The most memories of all instances. Each reserves 4 GiB of addresses, a process has 128 TiB
    /// of them, and it may have two engines. `rt` allows 8192 requests, and half as many inside of
    /// an app, so there is at least one memory for each instance.
    const ALL_MEMORIES: u32 = 3 << 12;
    /// An asynchronous function gets another stack while its caller waits. So a component has about
    /// as many stacks as core modules at most, and the further stacks are for some such components.
    /// Each costs 3.5 µs at the start of the server, and 0.4 kB.
    const STACKS: u32 = 2;
    const FURTHER: u32 = 256;
    /// The most stacks of all instances. Each is two mappings (`vm.max_map_count` is 65530 by
    /// default), and the other engine has some, too.
    const ALL_STACKS: u32 = 17_000;
    let count = u32::try_from(instances).unwrap_or(u32::MAX);
    let stacks = match asynchronous {
        true => count.saturating_mul(STACKS).saturating_add(FURTHER).min(ALL_STACKS),
        false => count,
    };
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(count)
        .total_core_instances(count.saturating_mul(MODULES))
        .total_memories(count.saturating_mul(MEMORIES).min(ALL_MEMORIES))
        .total_tables(count.saturating_mul(TABLES))
        .total_stacks(stacks)
        // No component takes the places of others.
        .max_core_instances_per_component(MODULES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        // What an idle server keeps.
        .max_unused_warm_slots(4);
    pool.into()
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum End {
    /// It runs, or it has done its work.
    Good = 0,
    Failed,
    /// Its time was over.
    TimedOut,
    /// There was no memory for it, or no place.
    Short,
}

/// The state of a guest, for those who wait for its response.
#[derive(Debug, Default)]
struct Ending(AtomicU8);

impl Ending {
    fn set(&self, end: End) {
        self.0.store(end as u8, Ordering::Relaxed);
    }

    fn get(&self) -> End {
        let all = [End::Good, End::Failed, End::TimedOut, End::Short];
        let now = self.0.load(Ordering::Relaxed);
        all.into_iter().find(|end| *end as u8 == now).unwrap_or(End::Failed)
    }
}

/// A guest at work. It ends when this is dropped, except after [`Guest::leave`].
#[derive(Debug)]
pub(super) struct Guest {
    task: Option<JoinHandle<()>>,
    ending: Arc<Ending>,
}

impl Guest {
    pub(super) fn has_failed(&self) -> bool {
        self.ending.get() != End::Good
    }

    /// Lets the guest go on: its response is complete, but its work may not be.
    pub(super) fn leave(&mut self) {
        self.task = None;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Lets a new instance answer a request, until `deadline`. `level` is that of [`super::inside`].
pub(super) async fn answer(
    server: &Arc<Server>,
    handler: Arc<dyn Handler>,
    request: Request<WasiBody>,
    deadline: Instant,
    level: usize,
) -> Result<(hyper::Response<HyperOutgoingBody>, Guest), End> {
    let Some(place) = server.places.take(level, deadline).await else { return Err(End::Short) };
    let (respond, response) = oneshot::channel();
    let ending = Arc::new(Ending::default());
    let task = {
        let (server, ending) = (Arc::clone(server), Arc::clone(&ending));
        tokio::spawn(async move {
            let _place = place;
            let _now = Now::new(Counter::InstancesNow);
            count(Counter::Instances);
            let mut world = handler.world(Limits::shared(server.memory.share()));
            world.begin(Call::new(&server, level, deadline));
            let mut store = Store::new(handler.engine(), world);
            store.limiter(|world| &mut world.limits);
            // The host's side of a guest is not in the memory of the guest.
            store.set_max_component_handles(MOST);
            store.set_hostcall_fuel(COPIED);
            if let Some(table) = store.concurrent_resource_table() {
                table.set_max_capacity(MOST);
            }
            store.set_epoch_deadline(1);
            store.epoch_deadline_async_yield_and_update(1);
            let fueled = server.settings.fuel.map_or(Ok(()), |fuel| store.set_fuel(fuel));
            let called = match fueled {
                Ok(()) => timeout_at(deadline, handler.call(&mut store, request, respond)).await,
                Err(error) => Ok(Err(error)),
            };
            let end = match called {
                Ok(Ok(())) => End::Good,
                Ok(Err(error)) => failed(&error, store.data().limits.were_reached()),
                Err(_) => End::TimedOut,
            };
            // Before the store is dropped, and with it the other end of the response.
            ending.set(end);
        })
    };
    let guest = Guest { task: Some(task), ending };
    match response.await {
        Ok(Ok(response)) => Ok((response, guest)),
        Ok(Err(code)) => {
            let code = match code {
                // That of WASI 0.3 is in the text.
                ErrorCode::InternalError(Some(text)) => brief(format_args!("{text}")),
                code => brief(format_args!("{code:?}")),
            };
            say(&format!("the guest answered with the error {code}"));
            Err(End::Failed)
        }
        Err(_) => Err(match guest.ending.get() {
            End::Good => {
                say("the guest returned and did not answer");
                End::Failed
            }
            end => end,
        }),
    }
}

/// Says why a guest failed, and counts traps.
fn failed(error: &wasmtime::Error, is_short: bool) -> End {
    if let Some(I32Exit(status)) = error.downcast_ref() {
        // The response may be complete by now.
        if *status == 0 {
            return End::Good;
        }
        say(&format!("the guest exited with status {status}"));
        return End::Failed;
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return End::Short;
    }
    match error.downcast_ref::<Trap>() {
        Some(trap) => {
            count(Counter::Traps);
            let text = trap.to_string();
            say(&format!("trap: {}", text.trim_start_matches("wasm trap: ")));
            End::Failed
        }
        // An instance that did not even begin for lack of memory.
        None if is_short => End::Short,
        None => {
            // The rest is the guest's stack, by names of the guest.
            say(&brief(format_args!("{}", error.root_cause())));
            End::Failed
        }
    }
}

/// The beginning of a text that may have parts of a guest's. The rest is not even formatted: it may
/// be as long as the memory of the guest.
pub(super) fn brief(text: fmt::Arguments<'_>) -> String {
    /// In bytes.
    const LONGEST: usize = 200;
    struct Brief(String);
    impl fmt::Write for Brief {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = LONGEST.saturating_sub(self.0.len());
            self.0.push_str(&text[..text.floor_char_boundary(room)]);
            if text.len() > room { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut brief = Brief(String::new());
    if brief.write_fmt(text).is_err() {
        brief.0.push('…');
    }
    brief.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_text_is_cut() {
        assert_eq!(brief(format_args!("{:?}", Some(1))), "Some(1)");
        let long = "ü".repeat(1 << 20);
        let cut = brief(format_args!("error: {long}"));
        assert_eq!(cut, format!("error: {}…", "ü".repeat(96)));
        assert_eq!(brief(format_args!("{}", "x".repeat(200))).len(), 200);
    }
}
