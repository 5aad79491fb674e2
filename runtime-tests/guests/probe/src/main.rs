//! Does one thing per run, named by its first argument, and prints what it saw: the tests read the
//! container's inside through it.

// Preview1 has no call to open a socket. WasmEdge adds some, and WASI 0.2 has its own.
#[cfg_attr(target_env = "p1", path = "wasmedge.rs")]
#[cfg_attr(target_env = "p2", path = "standard.rs")]
mod sockets;

use std::io::{Read, Write};
use std::time::Duration;
use std::{env, fs, io, process, thread};

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
        ["prompt"] => {
            print!("name: ");
            io::stdout().flush()?;
            thread::sleep(Duration::from_secs(1_000_000));
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
        ["accept", port] => sockets::accept(port)?,
        ["bind", protocol, address] => {
            sockets::bind(protocol, address.parse().expect("an address"))?;
            println!("bound");
        }
        ["connect", protocol, address] => {
            sockets::connect(protocol, address.parse().expect("an address"))?;
            println!("connected");
        }
        ["send", address] => {
            sockets::send(address.parse().expect("an address"))?;
            println!("sent");
        }
        ["listen"] => sockets::listen()?,
        ["begin-to-resolve", host] => sockets::begin_to_resolve(host)?,
        ["resolve", host] => sockets::resolve(host)?.iter().for_each(|address| println!("{address}")),
        _ => {
            eprintln!("usage: probe args|env|exit N|unreachable|busy|sleep|cat|read PATH|write PATH TEXT|…");
            process::exit(2);
        }
    }
    Ok(())
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
