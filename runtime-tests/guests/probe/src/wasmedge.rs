//! Sockets by the functions that WasmEdge adds to WASI preview1.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use wasmedge_wasi_socket::socket::{Socket, SocketType, WasiAddress};
use wasmedge_wasi_socket::{TcpListener, nslookup};

pub fn accept(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"), false)?;
    super::ready();
    let (mut stream, _) = listener.accept(false)?;
    let mut byte = [0];
    stream.read(&mut byte)?;
    println!("accepted");
    Ok(())
}

pub fn bind(protocol: &str, address: SocketAddr) -> io::Result<()> {
    open(protocol, &address)?.bind(&address)
}

/// The library connects to addresses of IPv4 only.
pub fn connect(protocol: &str, address: SocketAddr) -> io::Result<()> {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn sock_connect(socket: u32, address: *const WasiAddress, port: u32) -> u32;
    }
    let socket = open(protocol, &address)?;
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ip = WasiAddress { buf: octets.as_ptr(), size: octets.len() };
    // SAFETY: the address lives across the call.
    match unsafe { sock_connect(socket.as_raw_fd() as u32, &raw const ip, address.port().into()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error as i32)),
    }
}

pub fn send(address: SocketAddr) -> io::Result<()> {
    open("udp", &address)?.send_to(b"x", address).map(drop)
}

/// Listens without a bind: the kernel chooses the port.
pub fn listen() -> io::Result<()> {
    let socket = open("tcp", &"0.0.0.0:0".parse().expect("an address"))?;
    socket.listen(8)?;
    println!("{}", socket.get_local()?.port());
    super::ready();
    thread::sleep(Duration::from_secs(1_000_000));
    Ok(())
}

/// WasmEdge's function waits for the answer.
pub fn begin_to_resolve(host: &str) -> io::Result<()> {
    resolve(host).map(drop)
}

pub fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    nslookup(host, "80")
}

fn open(protocol: &str, address: &SocketAddr) -> io::Result<Socket> {
    Socket::new(address.into(), if protocol == "tcp" { SocketType::Stream } else { SocketType::Datagram })
}
