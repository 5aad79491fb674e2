//! Sockets by Rust's standard library.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::Duration;

pub fn accept(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    super::ready();
    let (mut stream, _) = listener.accept()?;
    stream.read_exact(&mut [0])?;
    println!("accepted");
    Ok(())
}

pub fn bind(protocol: &str, address: SocketAddr) -> io::Result<()> {
    match protocol {
        "tcp" => TcpListener::bind(address).map(drop),
        _ => UdpSocket::bind(address).map(drop),
    }
}

pub fn connect(protocol: &str, address: SocketAddr) -> io::Result<()> {
    match protocol {
        "tcp" => TcpStream::connect(address).map(drop),
        _ => UdpSocket::bind(any(address))?.connect(address),
    }
}

pub fn send(address: SocketAddr) -> io::Result<()> {
    UdpSocket::bind(any(address))?.send_to(b"x", address).map(drop)
}

/// WASI 0.2 has no listening without a bind.
pub fn listen() -> io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    println!("{}", listener.local_addr()?.port());
    super::ready();
    thread::sleep(Duration::from_secs(1_000_000));
    Ok(())
}

/// Does not wait for the answer.
pub fn begin_to_resolve(host: &str) -> io::Result<()> {
    use wasip2::sockets::{instance_network::instance_network, ip_name_lookup::resolve_addresses};
    let begun = resolve_addresses(&instance_network(), host);
    begun.map(std::mem::forget).map_err(|error| io::Error::other(error.to_string()))
}

pub fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((host, 80).to_socket_addrs()?.collect())
}

/// Any address of the same family.
fn any(address: SocketAddr) -> SocketAddr {
    if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address")
}
