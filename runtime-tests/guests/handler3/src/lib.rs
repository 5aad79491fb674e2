//! A handler of WASI 0.3 (`wasi:http/service`). The first part of the path says what it does, and
//! the rest is for that.

use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::sockets::types::{
    IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket,
};
use wasip3::wit_bindgen::{StreamReader, StreamWriter, spawn};
use wasip3::{wit_future, wit_stream};

struct Handler;

wasip3::http::service::export!(Handler);

/// A millisecond, in nanoseconds.
const MILLISECOND: u64 = 1_000_000;

impl wasip3::exports::http::handler::Guest for Handler {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let path = path.trim_start_matches('/').to_owned();
        let (what, rest) = path.split_once('/').unwrap_or((&path, ""));
        let number = rest.parse::<u64>().unwrap_or(0);
        let text = match what {
            "echo" => return Ok(answer(body(request).0)),
            "consume" => consume(request).await,
            "request" => describe(&request),
            "trap" => trap(),
            "loop" => spin(),
            "sleep" => {
                wait_for(number * MILLISECOND).await;
                "slept\n".into()
            }
            "grow" => grow(number).await,
            "exit" => std::process::exit(i32::try_from(number).unwrap_or(1)),
            "error" => return Err(ErrorCode::ConfigurationError),
            "status" => {
                let response = say("");
                let _ = response.set_status_code(u16::try_from(number).unwrap_or(500));
                return Ok(response);
            }
            // A response that is begun, and then something else.
            "trap-after" => return Ok(begin("begun\n", async |_| trap())),
            "loop-after" => return Ok(begin("begun\n", async |_| spin())),
            "large" => return Ok(begin("", async move |out| large(out, number).await)),
            "later" => {
                spawn(async move {
                    wait_for(number * MILLISECOND).await;
                    println!("worked later");
                });
                "answered\n".into()
            }
            // More streams than any guest needs, each with both ends.
            "streams" => {
                let mut all = Vec::new();
                for _ in 0..number {
                    all.push(wit_stream::new::<u8>());
                }
                format!("{} streams\n", all.len())
            }
            // Streams of a directory's entries that nobody reads.
            "hold" => {
                let directories = wasip3::filesystem::preopens::get_directories();
                let (directory, _) = directories.first().expect("a directory");
                let held: Vec<_> = (0..number).map(|_| directory.read_directory()).collect();
                wait_for(60_000 * MILLISECOND).await;
                format!("{} streams\n", held.len())
            }
            "ls" => ls(rest).await.unwrap_or_else(|error| format!("error: {error}")),
            "fields" => {
                let value = vec![b'x'; 20_000];
                let keep = |_| {
                    let fields = Fields::new();
                    fields.append("a", &value).is_ok().then_some(fields)
                };
                let all: Vec<_> = (0..number).map_while(keep).collect();
                format!("{} fields\n", all.len())
            }
            "random" => {
                format!("{} bytes\n", wasip3::random::random::get_random_bytes(number).len())
            }
            "long-error" => {
                let text = "x".repeat(usize::try_from(number).unwrap_or(0));
                return Err(ErrorCode::InternalError(Some(text)));
            }
            "variables" => std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect(),
            "arguments" => std::env::args().collect::<Vec<_>>().join(" "),
            "read" => read(rest).await.unwrap_or_else(|error| format!("error: {error}")),
            "std-read" => std::fs::read_to_string(format!("/{rest}"))
                .unwrap_or_else(|error| format!("error: {:?}", error.kind())),
            "write" => write(rest).await.unwrap_or_else(|error| format!("error: {error}")),
            "connect" => connect(rest).await.unwrap_or_else(|error| format!("error: {error}")),
            "fetch" => fetch(rest).await.unwrap_or_else(|error| format!("error: {error}")),
            _ => "Hello from Wasm!\n".into(),
        };
        Ok(say(&text))
    }
}

fn trap() -> ! {
    core::arch::wasm32::unreachable()
}

/// Computes without end.
fn spin() -> ! {
    let mut number = 1_u64;
    loop {
        number = std::hint::black_box(number.wrapping_mul(3));
    }
}

/// A response with this body.
fn answer(contents: StreamReader<u8>) -> Response {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let (end, trailers) = wit_future::new(|| Ok(None));
    drop(end);
    Response::new(headers, Some(contents), trailers).0
}

fn say(text: &str) -> Response {
    begin(text, async |_| ())
}

/// A response that begins with some text. The guest writes the rest after it has returned.
fn begin(text: &str, rest: impl AsyncFnOnce(&mut StreamWriter<u8>) + 'static) -> Response {
    let (mut out, contents) = wit_stream::new();
    let text = text.as_bytes().to_vec();
    spawn(async move {
        if out.write_all(text).await.is_empty() {
            rest(&mut out).await;
        }
    });
    answer(contents)
}

async fn large(out: &mut StreamWriter<u8>, mut left: u64) {
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(4096);
        if !out.write_all(vec![b'x'; length]).await.is_empty() {
            return;
        }
        left -= length as u64;
    }
}

type Trailers = wasip3::wit_bindgen::FutureReader<Result<Option<Fields>, ErrorCode>>;

/// The body of a request, and how it ends.
fn body(request: Request) -> (StreamReader<u8>, Trailers) {
    let (done, result) = wit_future::new(|| Ok(()));
    drop(done);
    Request::consume_body(request, result)
}

async fn consume(request: Request) -> String {
    let (contents, end) = body(request);
    let length = contents.collect().await.len();
    match end.await {
        Ok(_) => format!("{length} bytes\n"),
        Err(error) => format!("error after {length} bytes: {error:?}\n"),
    }
}

fn describe(request: &Request) -> String {
    let mut text = format!(
        "{:?} {:?} {:?} {:?}\n",
        request.get_method(),
        request.get_scheme(),
        request.get_authority().unwrap_or_default(),
        request.get_path_with_query().unwrap_or_default()
    );
    for (name, value) in request.get_headers().copy_all() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(&value)));
    }
    text
}

/// Takes memory, and touches it, until it has this many MiB or gets no more. Then keeps it for a
/// while.
async fn grow(mebibytes: u64) -> String {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        let mut more = Vec::new();
        if more.try_reserve_exact(1 << 20).is_err() {
            break;
        }
        more.resize(1 << 20, 1);
        all.push(more);
    }
    wait_for(200 * MILLISECOND).await;
    format!("{} MiB\n", all.len())
}

/// Opens a file by WASI 0.3. The standard library opens files by WASI 0.2.
async fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, String> {
    let directories = wasip3::filesystem::preopens::get_directories();
    let path = format!("/{path}");
    let inside = directories.iter().filter_map(|(directory, name)| {
        let rest = path.strip_prefix(name.trim_end_matches('/'))?;
        let rest = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
        Some((directory, name.len(), rest))
    });
    let (directory, _, rest) =
        inside.max_by_key(|it| it.1).ok_or_else(|| "no such directory".to_owned())?;
    let opened = directory.open_at(PathFlags::SYMLINK_FOLLOW, rest.to_owned(), open, flags).await;
    opened.map_err(|error| format!("{error:?}"))
}

async fn read(path: &str) -> Result<String, String> {
    let file = open(path, OpenFlags::empty(), DescriptorFlags::READ).await?;
    let (contents, end) = file.read_via_stream(0);
    let bytes = contents.collect().await;
    end.await.map_err(|error| format!("{error:?}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn ls(path: &str) -> Result<String, String> {
    let directory = open(path, OpenFlags::DIRECTORY, DescriptorFlags::READ).await?;
    let (entries, end) = directory.read_directory();
    let mut names: Vec<String> = entries.collect().await.into_iter().map(|it| it.name).collect();
    end.await.map_err(|error| format!("{error:?}"))?;
    names.sort();
    Ok(names.join(" "))
}

async fn write(path: &str) -> Result<String, String> {
    let file = open(path, OpenFlags::CREATE, DescriptorFlags::WRITE).await?;
    let (mut out, contents) = wit_stream::new();
    let end = file.write_via_stream(contents, 0);
    out.write_all(b"x".to_vec()).await;
    drop(out);
    end.await.map_err(|error| format!("{error:?}"))?;
    Ok("ok".into())
}

/// Connects to an address of IPv4.
async fn connect(address: &str) -> Result<String, String> {
    let address: std::net::SocketAddrV4 = address.parse().map_err(|_| "no address".to_owned())?;
    let [a, b, c, d] = address.ip().octets();
    let address = Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) };
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(|error| format!("{error:?}"))?;
    let connected = socket.connect(IpSocketAddress::Ipv4(address)).await;
    connected.map_err(|error| format!("{error:?}"))?;
    Ok("connected".into())
}

/// Sends a request to `AUTHORITY/PATH`, and returns the status and the body.
async fn fetch(url: &str) -> Result<String, String> {
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let (end, trailers) = wit_future::new(|| Ok(None));
    drop(end);
    let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
    request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))))
        .map_err(|()| "the request is wrong".to_owned())?;
    let response = client::send(request).await.map_err(|error| format!("{error:?}"))?;
    let status = response.get_status_code();
    let (done, result) = wit_future::new(|| Ok(()));
    drop(done);
    let (contents, end) = Response::consume_body(response, result);
    let bytes = contents.collect().await;
    end.await.map_err(|error| format!("{error:?}"))?;
    Ok(format!("{status} {}", String::from_utf8_lossy(&bytes)))
}
