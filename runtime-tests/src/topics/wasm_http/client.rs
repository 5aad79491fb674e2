//! A client of HTTP in a container's network, byte by byte: the tests also send what no library
//! would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::harness::{Bundle, Container, Outcome, Output, Test, ensure, ensure_eq};
use crate::topics::{events, wasm_components};

/// A running handler, which listens on this port.
pub(in crate::topics) struct Server<'a> {
    pub(in crate::topics) container: Container<'a>,
    port: u16,
}

/// A response.
#[derive(Debug)]
pub(in crate::topics) struct Answer {
    pub(in crate::topics) status: u16,
    /// The status line and the headers.
    pub(in crate::topics) head: String,
    pub(in crate::topics) body: String,
}

impl Answer {
    pub(in crate::topics) fn is(self, status: u16) -> Outcome<Answer> {
        ensure(self.status == status, format!("{status} was expected: {self:?}")).map(|()| self)
    }

    pub(in crate::topics) fn says(self, body: &str) -> Outcome<Answer> {
        ensure(self.body == body, format!("`{body}` was expected: {self:?}")).map(|()| self)
    }
}

/// How long a client waits for an answer, at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bundle that runs the handler of the tests.
pub(in crate::topics) fn handler(test: &Test) -> Outcome<Bundle<'_>> {
    wasm_components::lazy(test, "handler", &[])
}

/// The annotation `run.oci.wasm.NAME`.
pub(in crate::topics) fn with<'a>(bundle: Bundle<'a>, annotations: &[(&str, &str)]) -> Bundle<'a> {
    annotations.iter().fold(bundle, |bundle, (name, value)| {
        bundle.annotation(&format!("run.oci.wasm.{name}"), value)
    })
}

/// Starts the handler of the tests, with these annotations.
pub(in crate::topics) fn serve<'a>(
    test: &'a Test,
    annotations: &[(&str, &str)],
) -> Outcome<Server<'a>> {
    start(with(handler(test)?, annotations))
}

/// Starts a bundle that listens on port 8080.
pub(in crate::topics) fn start(bundle: Bundle<'_>) -> Outcome<Server<'_>> {
    start_at(bundle, 8080)
}

pub(in crate::topics) fn start_at(bundle: Bundle<'_>, port: u16) -> Outcome<Server<'_>> {
    let server = Server { container: bundle.create()?, port };
    up(&server.container)?;
    server.container.start()?;
    Ok(server)
}

/// Switches the loopback device of a container on.
pub(in crate::topics) fn up(container: &Container<'_>) -> Outcome {
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", container.pid()?));
    command.args(["ip", "link", "set", "lo", "up"]).stdin(std::process::Stdio::null());
    Output::of(command)?.success().map(drop)
}

/// Does something in the network namespace of a container.
pub(in crate::topics) fn inside<T: Send>(
    container: &Container<'_>,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> Outcome<T> {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", container.pid()?))?;
    // A namespace of the network belongs to a thread.
    let done = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        work.join()
    });
    Ok(done.map_err(|_| "the thread panicked")??)
}

impl<'a> Server<'a> {
    /// The server in a container that `rt run` makes.
    pub(in crate::topics) fn named(test: &'a Test, id: &str) -> Server<'a> {
        Server { container: Container::named(test, id), port: 8080 }
    }

    pub(in crate::topics) fn connect(&self) -> Outcome<TcpStream> {
        let port = self.port;
        inside(&self.container, move || {
            let stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// Sends some bytes, and reads until the server closes the connection.
    pub(in crate::topics) fn send(&self, bytes: impl AsRef<[u8]>) -> Outcome<Answer> {
        let mut stream = self.connect()?;
        // The server may refuse the request before it has all of it.
        let _ = stream.write_all(bytes.as_ref());
        answer(stream)
    }

    /// Sends a `GET`.
    pub(in crate::topics) fn get(&self, path: &str) -> Outcome<Answer> {
        self.send(get(path))
    }

    pub(in crate::topics) fn post(&self, path: &str, body: &[u8]) -> Outcome<Answer> {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        self.send([head.as_bytes(), body].concat())
    }

    /// The statistics of the server.
    pub(in crate::topics) fn statistics(&self, test: &Test) -> Outcome<Value> {
        Ok(events::stats(test, &self.container)?["data"]["wasm"]["http"].clone())
    }

    /// Ends the server, which has nothing left to do.
    pub(in crate::topics) fn end(&self) -> Outcome {
        self.container.kill("TERM")?;
        self.container.wait()
    }
}

pub(in crate::topics) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
}

/// Reads a response until the connection ends, and removes the chunks' sizes.
pub(in crate::topics) fn answer(mut stream: TcpStream) -> Outcome<Answer> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // The server has refused bytes that were still on their way.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        read => drop(read?),
    }
    parse(&bytes)
}

pub(in crate::topics) fn parse(bytes: &[u8]) -> Outcome<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    let status = status.ok_or_else(|| format!("not a response: {text:?}"))?;
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { joined(body) } else { body.to_owned() };
    Ok(Answer { status, head: head.to_owned(), body })
}

/// The content of chunks. What is cut off ends with a mark.
fn joined(mut chunks: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 {
            return text;
        }
        text.push_str(rest.get(..size).unwrap_or(rest));
        chunks = rest.get(size + 2..).unwrap_or_default();
    }
    text + "[cut off]"
}

/// A server in a container's network that gives each client the same answer, with the request's
/// first line.
pub(in crate::topics) fn other_server(container: &Container<'_>, address: &'static str) -> Outcome {
    let listener = inside(container, move || {
        TcpListener::bind(address.parse::<SocketAddr>().map_err(std::io::Error::other)?)
    })?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let line = text.lines().next().unwrap_or_default().to_owned();
            let length = line.len();
            let _ = stream.write_all(
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{line}"
                )
                .as_bytes(),
            );
        }
    });
    Ok(())
}

/// Frames of HTTP/2 (RFC 9113).
pub(in crate::topics) mod frames {
    pub(in crate::topics) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(in crate::topics) const DATA: u8 = 0;
    pub(in crate::topics) const HEADERS: u8 = 1;
    pub(in crate::topics) const RESET: u8 = 3;
    pub(in crate::topics) const SETTINGS: u8 = 4;
    pub(in crate::topics) const GO_AWAY: u8 = 7;

    pub(in crate::topics) fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
    }

    /// A `GET` for `/`, complete in one frame: `:method`, `:scheme` and `:path` by their places in
    /// HPACK's table (RFC 7541, appendix A), and `:authority`.
    pub(in crate::topics) fn get(stream: u32) -> Vec<u8> {
        frame(HEADERS, 0x5, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'a'])
    }

    /// The head of a `POST`, whose body follows.
    pub(in crate::topics) fn post(stream: u32, path: &str) -> Vec<u8> {
        let length = u8::try_from(path.len()).expect("short");
        let head = [&[0x83, 0x86, 0x44, length], path.as_bytes(), &[0x41, 1, b'a']].concat();
        frame(HEADERS, 0x4, stream, &head)
    }

    /// The status in a response's headers, which begin with it: by its place in HPACK's table, or
    /// as digits, maybe in HPACK's code (RFC 7541, appendices A and B).
    pub(in crate::topics) fn status(headers: &[u8]) -> Option<u16> {
        const PLACES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        match headers {
            [place @ 0x88..=0x8e, ..] => Some(PLACES[usize::from(place - 0x88)]),
            [0x48 | 0x08, 3, digits @ ..] => {
                std::str::from_utf8(digits.get(..3)?).ok()?.parse().ok()
            }
            [0x48 | 0x08, length @ 0x80..=0xff, code @ ..] => {
                let code = code.get(..usize::from(length & 0x7f))?;
                let bits = code.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
                let mut bits = bits.map(u16::from);
                let (mut status, mut digits) = (0, 0);
                while digits < 3 {
                    let mut value = 0;
                    for _ in 0..5 {
                        value = value << 1 | bits.next()?;
                    }
                    // Five bits for 0 to 2, and six for the other digits.
                    let digit = match value {
                        0..=2 => value,
                        _ => (value << 1 | bits.next()?).checked_sub(0x19)? + 3,
                    };
                    (status, digits) = (status * 10 + digit, digits + 1);
                }
                Some(status)
            }
            _ => None,
        }
    }
}

/// Reads the next frame of HTTP/2: its kind, its stream and its content.
pub(in crate::topics) fn next_frame(stream: &mut TcpStream) -> Outcome<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut content = vec![0; length as usize];
    stream.read_exact(&mut content)?;
    Ok((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), content))
}

/// Begins a connection of HTTP/2.
pub(in crate::topics) fn begin_http_2(stream: &mut TcpStream) -> Outcome {
    let settings = frames::frame(frames::SETTINGS, 0, 0, &[]);
    Ok(stream.write_all(&[frames::PREFACE, &settings].concat())?)
}

/// Waits for the response to a request of HTTP/2, and returns its status.
pub(in crate::topics) fn status_of(stream: &mut TcpStream, request: u32) -> Outcome<u16> {
    loop {
        let (kind, id, content) = next_frame(stream)?;
        match kind {
            frames::HEADERS if id == request => {
                let status = frames::status(&content);
                return Ok(status.ok_or_else(|| format!("no status: {content:?}"))?);
            }
            frames::RESET | frames::GO_AWAY => return Err(format!("{kind}: {content:?}").into()),
            _ => {}
        }
    }
}

/// Checks that the server still answers others, and soon.
pub(in crate::topics) fn answers(server: &Server<'_>) -> Outcome {
    let begun = std::time::Instant::now();
    server.get("/")?.is(200)?.says("Hello from Wasm!\n")?;
    let took = begun.elapsed();
    ensure(took < Duration::from_secs(5), format!("it took {took:?}"))
}

/// The number under a name.
pub(in crate::topics) fn number(statistics: &Value, path: &str) -> Outcome<u64> {
    let number = statistics.pointer(path).and_then(Value::as_u64);
    Ok(number.ok_or_else(|| format!("no {path} in {statistics}"))?)
}

/// Checks a number under a name.
pub(in crate::topics) fn has(statistics: &Value, path: &str, expected: u64) -> Outcome {
    ensure_eq((path, number(statistics, path)?), (path, expected))
}
