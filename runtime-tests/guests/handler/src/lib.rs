//! A handler of requests (`wasi:http/proxy`). The first part of the path says what it does, and the
//! rest is for that.

use std::io::Write;
use std::time::Duration;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, IncomingResponse, Method, OutgoingBody,
    OutgoingRequest, OutgoingResponse, RequestOptions, ResponseOutparam, Scheme,
};
use wasip2::io::streams::{OutputStream, StreamError};

struct Handler;

wasip2::http::proxy::export!(Handler);

impl wasip2::exports::http::incoming_handler::Guest for Handler {
    fn handle(request: IncomingRequest, respond: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let path = path.trim_start_matches('/');
        let (what, rest) = path.split_once('/').unwrap_or((path, ""));
        let what = what.split('?').next().unwrap_or_default();
        let number = || rest.parse::<u64>().unwrap_or(0);
        match what {
            "echo" => echo(&request, respond),
            "request" => text(respond, &describe(&request)),
            "consume" => text(respond, &format!("{}\n", consume(&request))),
            "trap" => unreachable(),
            "loop" => spin(u64::MAX),
            "spin" => {
                spin(number());
                text(respond, "spun\n");
            }
            "sleep" => {
                std::thread::sleep(Duration::from_millis(number()));
                text(respond, "slept\n");
            }
            "grow" => text(respond, &grow(number())),
            "exit" => std::process::exit(i32::try_from(number()).unwrap_or(1)),
            "silent" => {}
            "error" => ResponseOutparam::set(respond, Err(ErrorCode::InternalError(None))),
            "status" => {
                let response = OutgoingResponse::new(Fields::new());
                let _ = response.set_status_code(u16::try_from(number()).unwrap_or(500));
                ResponseOutparam::set(respond, Ok(response));
            }
            // A response that is begun, and then something else.
            "trap-after" => begin(respond, "begun\n", |_| unreachable()),
            "loop-after" => begin(respond, "begun\n", |_| spin(u64::MAX)),
            "large" => begin(respond, "", |out| large(out, number())),
            "later" => {
                text(respond, "answered\n");
                std::thread::sleep(Duration::from_millis(number()));
                println!("worked later");
            }
            "say" => {
                print!("{rest}");
                let _ = std::io::stdout().flush();
                text(respond, "said\n");
            }
            "variables" => {
                let all: Vec<_> = std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect();
                text(respond, &all.concat());
            }
            "arguments" => text(respond, &std::env::args().collect::<Vec<_>>().join(" ")),
            "read" => text(respond, &result(std::fs::read_to_string(format!("/{rest}")))),
            "write" => text(respond, &result(std::fs::write(format!("/{rest}"), "x").map(|()| "ok".into()))),
            "ls" => {
                let names = std::fs::read_dir(format!("/{rest}")).map(|all| {
                    let all = all.flatten().map(|it| it.file_name().to_string_lossy().into_owned());
                    all.collect::<Vec<_>>().join(" ")
                });
                text(respond, &result(names));
            }
            "connect" => {
                let connected = std::net::TcpStream::connect(rest).map(|_| "connected".to_owned());
                text(respond, &result(connected));
            }
            // For ever.
            "again" => {
                let own = request.authority().unwrap_or_default();
                text(respond, &fetch(&format!("{own}/again"), Scheme::Http, None));
            }
            "fetch" => text(respond, &fetch(rest, Scheme::Http, None)),
            "fetch-https" => text(respond, &fetch(rest, Scheme::Https, None)),
            "post" => text(respond, &post(rest)),
            "fetch-connect" => text(respond, &with_method(rest, &Method::Connect)),
            // With headers of 250 bytes, as many as the number says.
            "fetch-headers" => {
                let (count, url) = rest.split_once('/').unwrap_or((rest, ""));
                text(respond, &with_headers(url, count.parse().unwrap_or(0)));
            }
            // Fields of 20 kB, which the host keeps.
            "fields" => {
                let value = vec![b'x'; 20_000];
                let keep = |_| {
                    let fields = Fields::new();
                    fields.append("a", &value).is_ok().then_some(fields)
                };
                let all: Vec<_> = (0..number()).map_while(keep).collect();
                text(respond, &format!("{} fields\n", all.len()));
            }
            // The time to connect, in milliseconds, and the URL.
            "fetch-https-within" => {
                let (time, url) = rest.split_once('/').unwrap_or((rest, ""));
                text(respond, &fetch(url, Scheme::Https, time.parse().ok()));
            }
            _ => text(respond, "Hello from Wasm!\n"),
        }
    }
}

fn unreachable() {
    core::arch::wasm32::unreachable()
}

/// Computes for a while.
fn spin(times: u64) {
    let mut number = 1_u64;
    for turn in 0..times {
        number = std::hint::black_box(number.wrapping_mul(turn | 1));
    }
}

fn result(result: std::io::Result<String>) -> String {
    result.unwrap_or_else(|error| format!("error: {:?}", error.kind()))
}

fn text(respond: ResponseOutparam, text: &str) {
    begin(respond, text, |_| ());
}

/// Sends a status, some text, and whatever `rest` writes.
fn begin(respond: ResponseOutparam, text: &str, rest: impl FnOnce(&OutputStream)) {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("the first");
    ResponseOutparam::set(respond, Ok(response));
    let out = body.write().expect("the first");
    for chunk in text.as_bytes().chunks(4096) {
        if out.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
    rest(&out);
    drop(out);
    let _ = OutgoingBody::finish(body, None);
}

fn large(out: &OutputStream, mut left: u64) {
    let chunk = [b'x'; 4096];
    while left > 0 {
        let length = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if out.blocking_write_and_flush(&chunk[..length]).is_err() {
            return;
        }
        left -= length as u64;
    }
}

/// Reads a body, and hands each part over.
fn read(body: &IncomingBody, mut take: impl FnMut(&[u8])) -> Result<(), String> {
    let input = body.stream().map_err(|()| "no stream".to_owned())?;
    loop {
        match input.blocking_read(64 << 10) {
            Ok(part) => take(&part),
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
}

fn echo(request: &IncomingRequest, respond: ResponseOutparam) {
    let body = request.consume().expect("the first");
    begin(respond, "", |out| {
        let _ = read(&body, |part| {
            for chunk in part.chunks(4096) {
                let _ = out.blocking_write_and_flush(chunk);
            }
        });
    });
}

fn consume(request: &IncomingRequest) -> String {
    let body = request.consume().expect("the first");
    let mut length = 0;
    match read(&body, |part| length += part.len()) {
        Ok(()) => format!("{length} bytes"),
        Err(error) => format!("error after {length} bytes: {error}"),
    }
}

fn describe(request: &IncomingRequest) -> String {
    let mut text = format!(
        "{:?} {:?} {:?}\n",
        request.method(),
        request.authority().unwrap_or_default(),
        request.path_with_query().unwrap_or_default()
    );
    for (name, value) in request.headers().entries() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(&value)));
    }
    text
}

/// Takes memory, and touches it, until it has this many MiB or gets no more. Then keeps it for a
/// while.
fn grow(mebibytes: u64) -> String {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        let mut more = Vec::new();
        if more.try_reserve_exact(1 << 20).is_err() {
            break;
        }
        more.resize(1 << 20, 1);
        all.push(more);
    }
    std::thread::sleep(Duration::from_millis(200));
    format!("{} MiB\n", all.len())
}

/// Sends a request to `AUTHORITY/PATH`, and returns the status and the body. May limit the time to
/// connect, in milliseconds.
fn fetch(url: &str, scheme: Scheme, time: Option<u64>) -> String {
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))));
    if set.is_err() {
        return "error: the request is wrong".into();
    }
    let options = time.map(|time| {
        let options = RequestOptions::new();
        let _ = options.set_connect_timeout(Some(time * 1_000_000));
        options
    });
    told(sent(request, options))
}

/// Sends a request of another method.
fn with_method(url: &str, method: &Method) -> String {
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_method(method)
        .and_then(|()| request.set_scheme(Some(&Scheme::Http)))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))));
    if set.is_err() {
        return "error: the request is wrong".into();
    }
    told(sent(request, None))
}

/// Sends a request with many headers.
fn with_headers(url: &str, count: usize) -> String {
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let headers = Fields::new();
    for number in 0..count {
        if headers.append(&format!("x-{number}"), &[b'x'; 250]).is_err() {
            return "error: too many headers".into();
        }
    }
    let request = OutgoingRequest::new(headers);
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))));
    if set.is_err() {
        return "error: the request is wrong".into();
    }
    told(sent(request, None))
}

/// Sends a request with some bytes to `LENGTH/AUTHORITY/PATH`, and returns the status and the body.
fn post(what: &str) -> String {
    let (length, url) = what.split_once('/').unwrap_or((what, ""));
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_method(&Method::Post)
        .and_then(|()| request.set_scheme(Some(&Scheme::Http)))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))));
    if set.is_err() {
        return "error: the request is wrong".into();
    }
    let body = request.body().expect("the first");
    let response = match outgoing_handler::handle(request, None) {
        Ok(response) => response,
        Err(error) => return format!("error: {error:?}"),
    };
    let out = body.write().expect("the first");
    // The server may refuse the rest.
    large(&out, length.parse().unwrap_or(0));
    drop(out);
    let _ = OutgoingBody::finish(body, None);
    response.subscribe().block();
    told(response.get().expect("it is ready").expect("the first"))
}

/// What a response says.
fn told(response: Result<IncomingResponse, ErrorCode>) -> String {
    match response {
        Ok(response) => {
            let mut text = format!("{} ", response.status()).into_bytes();
            let body = response.consume().expect("the first");
            let end = read(&body, |part| text.extend_from_slice(part));
            let mut text = String::from_utf8_lossy(&text).into_owned();
            if let Err(error) = end {
                text.push_str(&error);
            }
            text
        }
        Err(error) => format!("error: {error:?}"),
    }
}

fn sent(
    request: OutgoingRequest,
    options: Option<RequestOptions>,
) -> Result<IncomingResponse, ErrorCode> {
    let response = outgoing_handler::handle(request, options)?;
    response.subscribe().block();
    response.get().expect("it is ready").expect("the first")
}
