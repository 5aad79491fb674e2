//! Serves HTTP: hands each request to a new instance of a component (`docs/wasm-http.md`).
//!
//! A [`Router`] says which component answers a request, so one component at every path and an app
//! of many components are the same to the rest. Everything runs in one thread.
#![forbid(unsafe_code)]

mod access_log;
mod body;
mod connection;
mod connections;
mod inside;
mod instances;
mod outbound;
mod requests;
pub(crate) mod router;
mod service;
mod settings;
mod statistics;
mod tls;

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use rt_engine::End;
use rt_engine::contract::{Http, Stream};
use rt_engine::memory::Pool;
use rt_engine::process;
use tokio::sync::Notify;

use access_log::AccessLog;
use connections::Connections;
use inside::Places;
pub(crate) use router::{Every, Exported, Handler, Outcome, Respond, Router, Wasi};

pub(crate) use inside::{Call, DOMAIN, Target};
pub(crate) use instances::{allocation, interrupt};
#[cfg(test)]
pub(crate) use outbound::leads_to_no_address_of_the_machine;
pub(crate) use outbound::{Allowed, Outbound, Policy, Protocol};
pub(crate) use settings::Settings;
pub(crate) use tls::{Tls, VARIABLE as TRUSTED};

/// Everything that connections share.
pub(crate) struct Server {
    settings: Settings,
    router: Box<dyn Router>,
    health: Option<String>,
    log: Option<AccessLog>,
    http: auto::Builder<TokioExecutor>,
    connections: Connections,
    /// One for each instance that may run.
    places: Places,
    /// Where the server listens.
    address: String,
    memory: Arc<Pool>,
    /// Told when a connection has ended or waits for its client.
    idle: Notify,
}

/// After this many turns of guests and connections, the server looks for new ones.
const TURNS: u32 = 8;

/// Serves until a termination signal comes. `memory` is shared by all instances.
pub(crate) fn serve(
    router: Box<dyn Router>,
    http: Http<File>,
    settings: Settings,
    memory: Arc<Pool>,
) -> Result<End, String> {
    let Http { listener, health, access_log, .. } = http;
    let endings = process::hear_endings().map_err(|error| format!("hear signals: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A guest may compute for a whole slice each time that it gets a turn.
        .event_interval(TURNS)
        .max_blocking_threads(settings.threads)
        .build()
        .map_err(|error| format!("wait for events: {error}"))?;
    let listener = TcpListener::from(OwnedFd::from(listener));
    let server = Server {
        http: protocol(&settings),
        connections: Connections::default(),
        places: Places::new(settings.requests, settings.inside),
        address: listener.local_addr().map(|it| it.to_string()).unwrap_or_default(),
        idle: Notify::new(),
        log: access_log.map(AccessLog::new).transpose()?,
        settings,
        router,
        health,
        memory,
    };
    statistics::publish();
    let end =
        runtime.block_on(async { connections::accept(Arc::new(server), listener, endings).await });
    // A thread may still wait for a name's address or for a file, and nothing waits for that
    // thread.
    runtime.shutdown_background();
    end
}

/// hyper's smallest buffer of a request's line and headers, in bytes.
const SMALLEST_BUFFER: usize = 8 << 10;

/// How HTTP is spoken, in both versions.
fn protocol(settings: &Settings) -> auto::Builder<TokioExecutor> {
    /// What a client may send in a stream of HTTP/2, and in all of a connection, before the guest
    /// has read it, in bytes.
    const WINDOW: u32 = 64 << 10;
    /// hyper's own limit of the number of headers, for which it allocates no memory.
    const HEADERS: usize = 100;
    let mut http = auto::Builder::new(TokioExecutor::new());
    let mut one = http.http1();
    one.timer(TokioTimer::new())
        // A connection has its own timer, which also answers.
        .header_read_timeout(None)
        // hyper refuses a request whose headers do not fit.
        .max_buf_size(settings.header_bytes.max(SMALLEST_BUFFER));
    if settings.headers != HEADERS {
        one.max_headers(settings.headers);
    }
    let streams = u32::try_from(settings.requests.min(100)).unwrap_or(100);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_send_buf_size(WINDOW as usize)
        .max_header_list_size(u32::try_from(settings.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(20);
    http
}

/// Writes one line about a request to standard error, if that is possible without a wait.
fn say(message: &str) {
    if process::can_write(&std::io::stderr()) {
        rt_engine::message::say(message);
    }
}

impl Server {
    fn log(&self, entry: &access_log::Entry<'_>) {
        if let Some(log) = &self.log {
            log.write(entry);
        }
    }
}

/// The stream of an access log.
fn standard(stream: Stream) -> std::io::Result<File> {
    use std::os::fd::AsFd;
    let own = match stream {
        Stream::Stdout => std::io::stdout().as_fd().try_clone_to_owned(),
        Stream::Stderr => std::io::stderr().as_fd().try_clone_to_owned(),
    };
    own.map(File::from)
}
