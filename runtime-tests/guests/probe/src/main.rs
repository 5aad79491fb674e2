//! Does one thing per run, named by its first argument, and prints what it saw: the tests read the container's inside
//! through it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::{env, fs, io, process, thread};

use wasmedge_wasi_socket::socket::{Socket, SocketType, WasiAddress};

fn main() {
    let args: Vec<String> = env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if let Err(error) = act(&args, &words) {
        println!("error: {:?}: {error}", error.kind());
        process::exit(1);
    }
}

fn act(args: &[String], words: &[&str]) -> io::Result<()> {
    match words {
        ["args", ..] => args.iter().for_each(|arg| println!("{arg}")),
        ["env"] => env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["exit", code] => process::exit(code.parse().expect("a number")),
        ["unreachable"] => core::arch::wasm32::unreachable(),
        ["out-of-bounds"] => {
            // SAFETY: none: the address is beyond the memory, and the trap is what is tested.
            let value = unsafe { core::ptr::read_volatile(0xffff_fff0 as *const u8) };
            println!("read {value}");
        }
        ["overflow", depth] => println!("{}", overflow(depth.parse().expect("a number"))),
        ["busy"] => {
            ready();
            let mut number = 0_u64;
            loop {
                number = std::hint::black_box(number.wrapping_add(1));
            }
        }
        ["sleep"] => {
            ready();
            thread::sleep(Duration::from_secs(1_000_000));
        }
        ["sleep", milliseconds] => {
            ready();
            thread::sleep(Duration::from_millis(milliseconds.parse().expect("a number")));
            println!("awake");
        }
        ["cat"] => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            print!("{text}");
        }
        ["read", path] => print!("{}", fs::read_to_string(path)?),
        ["write", path, text] => fs::write(path, text)?,
        ["append", path, text] => fs::OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())?,
        ["fill", path] => {
            let (mut file, mebibyte) = (fs::File::create(path)?, vec![7; 1 << 20]);
            loop {
                file.write_all(&mebibyte)?;
            }
        }
        ["remove", path] => fs::remove_file(path)?,
        ["rename", from, to] => fs::rename(from, to)?,
        ["mkdir", path] => fs::create_dir(path)?,
        ["ls", path] => {
            let mut names: Vec<String> =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<_>>()?;
            names.sort();
            names.iter().for_each(|name| println!("{name}"));
        }
        ["accept", port] => {
            let listener = wasmedge_wasi_socket::TcpListener::bind(format!("0.0.0.0:{port}"), false)?;
            ready();
            let (mut stream, _) = listener.accept(false)?;
            let mut byte = [0];
            stream.read(&mut byte)?;
            println!("accepted");
        }
        ["bind", protocol, address] => {
            let address = address.parse().expect("an address");
            open(protocol, &address)?.bind(&address)?;
            println!("bound");
        }
        ["connect", protocol, address] => {
            let address = address.parse().expect("an address");
            connect(&open(protocol, &address)?, &address)?;
            println!("connected");
        }
        ["send", address] => {
            let address = address.parse().expect("an address");
            open("udp", &address)?.send_to(b"x", address)?;
            println!("sent");
        }
        ["listen"] => {
            let socket = open("tcp", &"0.0.0.0:0".parse().expect("an address"))?;
            socket.listen(8)?;
            println!("{}", socket.get_local()?.port());
            ready();
            thread::sleep(Duration::from_secs(1_000_000));
        }
        ["resolve", host] => {
            use wasmedge_wasi_socket::nslookup;
            for address in nslookup(host, "80")? {
                println!("{address}");
            }
        }
        _ => {
            eprintln!("usage: probe args|env|exit N|unreachable|busy|sleep|cat|read PATH|write PATH TEXT|…");
            process::exit(2);
        }
    }
    Ok(())
}

fn open(protocol: &str, address: &SocketAddr) -> io::Result<Socket> {
    Socket::new(address.into(), if protocol == "tcp" { SocketType::Stream } else { SocketType::Datagram })
}

/// The library connects to addresses of IPv4 only.
fn connect(socket: &Socket, address: &SocketAddr) -> io::Result<()> {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn sock_connect(socket: u32, address: *const WasiAddress, port: u32) -> u32;
    }
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

/// Says that the waiting has begun.
fn ready() {
    println!("ready");
    io::stdout().flush().expect("flush");
}

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let mut frame = [depth; 64];
    if depth > 0 {
        frame[1] = overflow(std::hint::black_box(depth - 1));
    }
    std::hint::black_box(frame)[1]
}
