//! An HTTP/1.1 server on port 8080 that answers every request with `Hello from Wasm!`.

use std::io::{Read, Write};
#[cfg(target_env = "p2")]
use std::net::{Shutdown, TcpListener, TcpStream};

// Preview1 has no call to open a socket. WasmEdge adds some, and WASI 0.2 has its own.
#[cfg(target_env = "p1")]
use wasmedge_wasi_socket::{Shutdown, TcpListener, TcpStream};

const BODY: &str = "Hello from Wasm!";

fn main() {
    let listener = bind().expect("bind to port 8080");
    eprintln!("listening on 0.0.0.0:8080");
    loop {
        match accept(&listener) {
            Ok((stream, _)) => {
                if let Err(error) = answer(stream) {
                    eprintln!("answer a request: {error}");
                }
            }
            Err(error) => eprintln!("accept a connection: {error}"),
        }
    }
}

#[cfg(target_env = "p1")]
fn bind() -> std::io::Result<TcpListener> {
    TcpListener::bind("0.0.0.0:8080", false)
}

#[cfg(target_env = "p2")]
fn bind() -> std::io::Result<TcpListener> {
    TcpListener::bind("0.0.0.0:8080")
}

#[cfg(target_env = "p1")]
fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, std::net::SocketAddr)> {
    listener.accept(false)
}

#[cfg(target_env = "p2")]
fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, std::net::SocketAddr)> {
    listener.accept()
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    // The head of a request ends with an empty line; this service has no use for what it says, or
    // for a body.
    let mut request = Vec::new();
    let mut bytes = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(&bytes[..length]);
    }
    let length = BODY.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(BODY.as_bytes())?;
    stream.shutdown(Shutdown::Both)
}
