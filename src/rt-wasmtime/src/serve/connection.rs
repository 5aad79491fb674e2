//! One connection: its socket, its requests and its time.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::requests;
use super::statistics::{Counter, Now};
use super::{Server, Settings};

/// How long after the end of a request's time its client may still read the response.
const LINGER: Duration = Duration::from_secs(2);

/// How long a closed connection is read, so that the client gets the last response: the kernel
/// would discard it if the client still sent something.
const DRAIN: Duration = Duration::from_secs(1);

/// The most bytes that are read so.
const DRAIN_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    state: Mutex<State>,
    /// Told when the state asks for something.
    told: Notify,
    _now: Now,
}

#[derive(Debug)]
struct State {
    /// The requests that run: a number, and when its time is over.
    running: Vec<(u64, Instant)>,
    /// The number of requests so far.
    count: u64,
    /// Since when no request runs.
    since: Instant,
    /// When the next request's first byte came.
    heard: Option<Instant>,
    version: Spoken,
    /// The client sends nothing more.
    is_ended: bool,
    order: Order,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spoken {
    Nothing,
    Http1,
    Http2,
}

/// What a connection is asked to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    GoOn,
    /// End after the requests that run.
    Finish,
    End,
}

/// What is due.
#[derive(Debug, Eq, PartialEq)]
enum Due {
    At(Instant),
    /// The client did not send a request's headers in time.
    Late,
    Over,
}

impl State {
    fn due(&self, settings: &Settings, now: Instant) -> Due {
        let (at, due) = match (self.running.iter().map(|(_, end)| *end).min(), self.heard) {
            (Some(first), _) => (first + LINGER, Due::Over),
            (None, Some(heard)) if self.version == Spoken::Http1 => {
                (heard + settings.header_time, Due::Late)
            }
            // Nothing was ever asked, or a version of HTTP was begun and not more.
            (None, _) if self.count == 0 => (self.since + settings.header_time, Due::Over),
            (None, _) => (self.since + settings.idle_time, Due::Over),
        };
        if at <= now { due } else { Due::At(at) }
    }
}

/// A request that runs. The connection waits for the next one when this is dropped.
pub(super) struct Ticket {
    connection: Arc<Connection>,
    server: Arc<Server>,
    number: u64,
    begun: Instant,
    deadline: Instant,
}

impl Ticket {
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn client(&self) -> IpAddr {
        self.connection.client.ip().to_canonical()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.connection.state();
        state.running.retain(|(number, _)| *number != self.number);
        state.since = Instant::now();
        state.heard = None;
        drop(state);
        // Something else is due now.
        self.connection.told.notify_one();
        self.server.idle.notify_one();
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, client: SocketAddr) -> Connection {
        let state = State {
            running: Vec::new(),
            count: 0,
            since: Instant::now(),
            heard: None,
            version: Spoken::Nothing,
            is_ended: false,
            order: Order::GoOn,
        };
        Connection {
            stream,
            client,
            state: Mutex::new(state),
            told: Notify::new(),
            _now: Now::new(Counter::ConnectionsNow),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address by which the client has reached this server.
    pub(super) fn own_address(&self) -> String {
        self.stream.local_addr().map(|it| it.to_string()).unwrap_or_default()
    }

    /// Begins a request whose time is over at `deadline`.
    pub(super) fn begin(self: &Arc<Connection>, server: &Arc<Server>, deadline: Instant) -> Ticket {
        let mut state = self.state();
        let number = state.count;
        state.count += 1;
        state.running.push((number, deadline));
        drop(state);
        Ticket {
            connection: Arc::clone(self),
            server: Arc::clone(server),
            number,
            begun: Instant::now(),
            deadline,
        }
    }

    /// Since when the connection waits for its client, if it does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.running.is_empty() && state.order != Order::End).then_some(state.since)
    }

    pub(super) fn order(&self, order: Order) {
        self.state().order = order;
        self.told.notify_one();
    }

    /// Serves the connection until its end.
    pub(super) async fn serve(self: Arc<Connection>, server: Arc<Server>) {
        let service = {
            let (connection, server) = (Arc::clone(&self), Arc::clone(&server));
            service_fn(move |request| {
                requests::answer(Arc::clone(&server), Arc::clone(&connection), request)
            })
        };
        let is_late = {
            let io = TokioIo::new(Io(Arc::clone(&self)));
            let mut serving = pin!(server.http.serve_connection(io, service));
            let mut timer = pin!(sleep_until(Instant::now() + server.settings.header_time));
            let mut is_finishing = false;
            loop {
                tokio::select! {
                    biased;
                    // The client has got an answer to whatever was wrong.
                    _ = serving.as_mut() => break false,
                    () = self.told.notified() => {}
                    () = timer.as_mut() => {}
                }
                let (order, due) = {
                    let state = self.state();
                    (state.order, state.due(&server.settings, Instant::now()))
                };
                match (order, due) {
                    (Order::End, _) | (_, Due::Over) => return,
                    (_, Due::Late) => break true,
                    (_, Due::At(instant)) => timer.as_mut().reset(instant),
                }
                if order == Order::Finish && !is_finishing {
                    is_finishing = true;
                    serving.as_mut().graceful_shutdown();
                }
            }
        };
        if is_late {
            const ANSWER: &[u8] =
                b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            // The socket has sent everything before, so it has room for this.
            let _ = self.stream.try_write(ANSWER);
        }
        self.close().await;
    }

    /// Ends the connection so that the client gets everything that was sent.
    async fn close(&self) {
        let _ = socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write);
        if self.state().is_ended {
            return;
        }
        let drain = async {
            let (mut buffer, mut left) = ([0; 4096], DRAIN_BYTES);
            while self.stream.readable().await.is_ok() {
                match self.stream.try_read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => left = left.saturating_sub(length),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
                if left == 0 {
                    break;
                }
            }
        };
        // Until the server needs the room.
        let ordered = async {
            while self.state().order != Order::End {
                self.told.notified().await;
            }
        };
        tokio::select! {
            _ = timeout(DRAIN, drain) => {}
            () = ordered => {}
        }
    }
}

/// The connection's socket, for hyper. The connection can still write to it when hyper is gone.
struct Io(Arc<Connection>);

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_read_ready(context))?;
            let before = buffer.filled().len();
            match stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
                Ok(length) => {
                    self.0.heard(&buffer.filled()[before..]);
                    self.0.state().is_ended |= length == 0;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Connection {
    /// Notes that the client has sent something.
    fn heard(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.version == Spoken::Nothing && !bytes.is_empty() {
            // The beginning of the preface (RFC 9113, "HTTP/2 Connection Preface").
            let is_2 = bytes.starts_with(b"PRI ");
            state.version = if is_2 { Spoken::Http2 } else { Spoken::Http1 };
        }
        if state.running.is_empty() && state.heard.is_none() && !bytes.is_empty() {
            state.heard = Some(Instant::now());
            drop(state);
            self.told.notify_one();
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&self.0.stream).shutdown(Shutdown::Write))
    }
}

impl Io {
    fn write(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(context))?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}
