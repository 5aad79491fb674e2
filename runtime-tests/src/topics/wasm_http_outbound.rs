//! Requests of handlers to other servers.

use super::wasm_http::client::{Server, handler, has, other_server, serve, start, with};
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, kernel, skip};

super::tests! { "wasm_http_outbound":
    nothing_is_allowed_without_a_list, only_listed_servers_get_requests, a_name_does_not_lead_to_addresses_of_the_machine,
    an_address_is_reached_if_it_is_listed, the_list_of_ports_holds_too, https_is_an_error_that_says_so, a_server_that_is_not_there_is_an_error,
    a_server_that_answers_nonsense_is_an_error,
}

const OUTBOUND: &str = "http-outbound";

fn fetches(server: &Server<'_>, url: &str, said: &str) -> Outcome {
    let text = server.get(&format!("/fetch/{url}"))?.is(200)?.body;
    ensure(text.starts_with(said), format!("{url}: {text}"))
}

const DENIED: &str = "error: ErrorCode::HttpRequestDenied";
const PROHIBITED: &str = "error: ErrorCode::DestinationIpProhibited";

/// The image's own names for addresses.
fn named<'a>(test: &'a Test, hosts: &str, list: &str) -> Outcome<Bundle<'a>> {
    Ok(with(handler(test)?.file("/etc/hosts", hosts)?, &[(OUTBOUND, list)]))
}

fn nothing_is_allowed_without_a_list(test: &Test) -> Outcome {
    for annotations in [&[][..], &[(OUTBOUND, "")]] {
        let server = serve(test, annotations)?;
        other_server(&server.container, "127.0.0.1:9000")?;
        for url in ["127.0.0.1:9000/", "localhost:9000/", "169.254.169.254/latest/meta-data/"] {
            fetches(&server, url, DENIED)?;
        }
        let statistics = server.statistics(test)?;
        has(&statistics, "/outbound", 3)?;
        has(&statistics, "/outboundRefused", 3)?;
        let said = server.container.stderr()?;
        ensure(said.contains("rt-wasmtime: a request to `127.0.0.1:9000` is not allowed\n"), said)?;
        server.end()?;
    }
    Ok(())
}

fn only_listed_servers_get_requests(test: &Test) -> Outcome {
    let list = "localhost:9000,127.0.0.1:9001";
    let server = start(named(test, "127.0.0.1 localhost\n", list)?)?;
    other_server(&server.container, "127.0.0.1:9000")?;
    other_server(&server.container, "127.0.0.1:9001")?;
    fetches(&server, "localhost:9000/a?b", "200 GET /a?b HTTP/1.1")?;
    fetches(&server, "LOCALHOST:9000/a", "200 GET /a HTTP/1.1")?;
    fetches(&server, "127.0.0.1:9001/", "200 GET / HTTP/1.1")?;
    for url in ["localhost:9001/", "127.0.0.1:9000/", "localhost/", "user@127.0.0.1:9000/"] {
        fetches(&server, url, DENIED)?;
    }
    server.end()
}

/// Whoever answers for a name chooses its address.
fn a_name_does_not_lead_to_addresses_of_the_machine(test: &Test) -> Outcome {
    let hosts = "169.254.169.254 metadata\n127.0.0.1 self\n::ffff:127.0.0.1 mapped\n0.0.0.0 zero\n";
    let server = start(named(test, hosts, "metadata,*:*")?)?;
    for name in ["metadata", "self:8080", "mapped:8080", "zero:8080"] {
        fetches(&server, &format!("{name}/"), PROHIBITED)?;
    }
    fetches(&server, "169.254.169.254/", PROHIBITED)?;
    has(&server.statistics(test)?, "/outboundRefused", 5)?;
    server.end()
}

fn an_address_is_reached_if_it_is_listed(test: &Test) -> Outcome {
    let server = start(named(test, "127.0.0.1 self\n", "self:9000,127.0.0.1:*")?)?;
    other_server(&server.container, "127.0.0.1:9000")?;
    fetches(&server, "self:9000/", "200 GET / HTTP/1.1")?;
    fetches(&server, "127.0.0.1:9000/", "200 GET / HTTP/1.1")?;
    server.end()
}

/// The kernel allows less than the list of servers.
fn the_list_of_ports_holds_too(test: &Test) -> Outcome {
    if kernel()? < (6, 7) {
        return skip("the kernel's Landlock knows no ports");
    }
    let server = serve(test, &[(OUTBOUND, "127.0.0.1:*"), ("connect", "tcp/9000")])?;
    other_server(&server.container, "127.0.0.1:9000")?;
    other_server(&server.container, "127.0.0.1:9001")?;
    fetches(&server, "127.0.0.1:9000/", "200 GET / HTTP/1.1")?;
    fetches(&server, "127.0.0.1:9001/", "error: ErrorCode::ConnectionRefused")?;
    server.end()
}

fn https_is_an_error_that_says_so(test: &Test) -> Outcome {
    let server = serve(test, &[(OUTBOUND, "127.0.0.1:*")])?;
    let text = server.get("/fetch-https/127.0.0.1:9000/")?.is(200)?.body;
    ensure(text.contains("this engine has no TLS: use `http`"), text)?;
    server.end()
}

fn a_server_that_is_not_there_is_an_error(test: &Test) -> Outcome {
    let server = start(named(test, "127.0.0.1 self\n", "127.0.0.1:*,nobody.invalid")?)?;
    fetches(&server, "127.0.0.1:9009/", "error: ErrorCode::ConnectionRefused")?;
    fetches(&server, "nobody.invalid/", "error: ErrorCode::DnsError")?;
    server.end()
}

fn a_server_that_answers_nonsense_is_an_error(test: &Test) -> Outcome {
    use std::io::Write;
    let server = serve(test, &[(OUTBOUND, "127.0.0.1:*")])?;
    let listen = || std::net::TcpListener::bind("127.0.0.1:9000");
    let listener = super::wasm_http::client::inside(&server.container, listen)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"nonsense\r\n\r\n");
        }
    });
    let text = server.get("/fetch/127.0.0.1:9000/")?.is(200)?.body;
    ensure(text.starts_with("error: ErrorCode::"), &text)?;
    ensure_eq(server.get("/")?.status, 200)?;
    server.end()
}
