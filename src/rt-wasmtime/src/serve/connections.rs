//! All connections: accepted, limited, and ended when the server ends.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rt_engine::End;
use tokio::net::unix::pipe::Receiver;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::Server;
use super::connection::{Connection, Order};
use super::statistics::{Counter, count};

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Arc<Connection>>,
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.table().open.len()
    }

    fn add(&self, connection: Arc<Connection>) -> u64 {
        let mut table = self.table();
        table.last += 1;
        let number = table.last;
        table.open.insert(number, connection);
        number
    }

    fn remove(&self, number: u64) {
        self.table().open.remove(&number);
    }

    /// Ends the connection that waits for its client for the longest time.
    fn displace_one(&self) {
        let table = self.table();
        let idle = table.open.values().filter_map(|it| Some((it.idle_since()?, it)));
        if let Some((_, connection)) = idle.min_by_key(|(since, _)| *since) {
            count(Counter::ConnectionsDisplaced);
            connection.order(Order::End);
        }
    }

    fn order_all(&self, order: Order) {
        for connection in self.table().open.values() {
            connection.order(order);
        }
    }
}

/// The signals after which the server finishes its requests. To tokio, their descriptor is a pipe
/// like others: it becomes readable, and then is read.
struct Endings(Receiver);

impl Endings {
    /// Waits for one of them, and returns its number.
    async fn next(&mut self) -> u8 {
        /// The size of `signalfd_siginfo` (signalfd(2)), which begins with the signal's number.
        const SIZE: usize = 128;
        let mut heard = [0; SIZE];
        loop {
            if self.0.readable().await.is_err() {
                return 0;
            }
            match self.0.try_read(&mut heard) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return heard[0],
            }
        }
    }
}

/// Accepts connections until a signal comes, and then waits for those that have requests.
pub(super) async fn accept(
    server: Arc<Server>,
    listener: std::net::TcpListener,
    endings: File,
) -> Result<End, String> {
    let endings = Receiver::from_file_unchecked(endings);
    let mut endings = Endings(endings.map_err(|error| format!("hear signals: {error}"))?);
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|error| format!("listen: {error}"))?;
    let signal = loop {
        let accepted = tokio::select! {
            biased;
            signal = endings.next() => break signal,
            accepted = accept_one(&server, &listener) => accepted,
        };
        match accepted {
            Ok((stream, client)) => open(&server, stream, client),
            Err(error) => wait_after(&server, &error).await?,
        }
    };
    drop(listener);
    server.connections.order_all(Order::Finish);
    let finish = async {
        while server.connections.count() > 0 {
            server.idle.notified().await;
        }
        // A guest may have more to do than its response.
        server.places.all_free().await;
    };
    tokio::select! {
        finished = timeout(server.settings.grace, finish) => match finished {
            Ok(()) => Ok(End::Exited(0)),
            Err(_) => Ok(End::Exited(128 + signal)),
        },
        again = endings.next() => Ok(End::Exited(128 + again)),
    }
}

/// Accepts a connection, if there is room for it or an idle one to close for it.
async fn accept_one(
    server: &Server,
    listener: &TcpListener,
) -> io::Result<(TcpStream, std::net::SocketAddr)> {
    let accepted = listener.accept().await?;
    while server.connections.count() >= server.settings.connections {
        server.connections.displace_one();
        // A connection that ends, or that begins to wait.
        server.idle.notified().await;
    }
    Ok(accepted)
}

fn open(server: &Arc<Server>, stream: TcpStream, client: std::net::SocketAddr) {
    count(Counter::Connections);
    // A response is sent when it is there.
    let _ = stream.set_nodelay(true);
    let connection = Arc::new(Connection::new(stream, client));
    let number = server.connections.add(Arc::clone(&connection));
    let server = Arc::clone(server);
    tokio::spawn(async move {
        connection.serve(Arc::clone(&server)).await;
        server.connections.remove(number);
        server.idle.notify_one();
    });
}

/// After an error of accept(2) that may pass: makes room, and waits a little. Other errors are for
/// ever.
async fn wait_after(server: &Server, error: &io::Error) -> Result<(), String> {
    const WAIT: Duration = Duration::from_millis(20);
    let number = error.raw_os_error().unwrap_or(0);
    // accept(2): the client has gone away, or the network has an error of its own.
    let of_the_client = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::ENETDOWN,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
    ];
    if of_the_client.contains(&number) {
        return Ok(());
    }
    if [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].contains(&number) {
        server.connections.displace_one();
        sleep(WAIT).await;
        return Ok(());
    }
    Err(format!("accept a connection: {error}"))
}
