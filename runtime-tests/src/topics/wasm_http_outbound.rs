//! Requests of handlers to other servers.

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;

use serde_json::json;

use super::wasm_http::client::{Server, handler, has, other_server, serve, start, with};
use super::wasm_http::tls::{
    ALL, Authority, TLS_1_2, TLS_1_3, TRUSTED, VALID, same, serve_bytes, serve_tls,
};
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, kernel, skip};

super::tests! { "wasm_http_outbound":
    nothing_is_allowed_without_a_list, only_listed_servers_get_requests, a_name_does_not_lead_to_addresses_of_the_machine, a_name_does_not_lead_to_the_container,
    an_address_is_reached_if_it_is_listed, the_list_of_ports_holds_too, a_server_that_is_not_there_is_an_error, a_server_that_answers_nonsense_is_an_error,
    https_reaches_a_server_that_the_image_trusts, https_reaches_a_server_by_its_address, https_speaks_both_versions_of_tls,
    a_certificate_that_proves_nothing_is_an_error, the_environment_names_the_trusted_certificates,
    an_image_without_certificates_trusts_public_authorities, a_file_of_certificates_that_is_none_is_an_error,
    https_is_for_listed_servers_only, https_obeys_the_list_of_ports, a_server_without_tls_is_an_error, an_alert_of_a_server_is_told,
    a_server_that_never_greets_is_given_up, a_redirection_is_not_followed, a_response_that_is_cut_off_is_not_complete,
    tls_is_made_at_the_first_request,
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
    for url in ["localhost:9001/", "127.0.0.1:9000/", "localhost/"] {
        fetches(&server, url, DENIED)?;
    }
    // A server may take one of these for another host.
    for url in [
        "user@127.0.0.1:9001/",
        "victim.example:80@localhost:9000/",
        "localhost:+9000/",
        "[::1]localhost:9000/",
    ] {
        let said = server.get(&format!("/fetch/{url}"))?.body;
        let is_refused = said.contains("HttpRequestUriInvalid") || said.contains("is wrong");
        ensure(is_refused, format!("{url}: {said}"))?;
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

/// The container has such an address, too.
fn a_name_does_not_lead_to_the_container(test: &Test) -> Outcome {
    let hosts = "10.9.9.9 self\n";
    for (list, expected) in [("*:*", PROHIBITED), ("*:*,10.9.9.9:*", "200 Hello from Wasm!")] {
        let server = start(named(test, hosts, list)?)?;
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", server.container.pid()?));
        command.args(["ip", "address", "add", "10.9.9.9/32", "dev", "lo"]);
        crate::harness::Output::of(command)?.success()?;
        fetches(&server, "self:8080/", expected)?;
        fetches(&server, "10.9.9.9:8080/", expected)?;
        server.end()?;
    }
    Ok(())
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
    super::wasm_ports::needs_v2(test)?;
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

fn a_server_that_is_not_there_is_an_error(test: &Test) -> Outcome {
    let server = start(named(test, "127.0.0.1 self\n", "127.0.0.1:*,nobody.invalid")?)?;
    fetches(&server, "127.0.0.1:9009/", "error: ErrorCode::ConnectionRefused")?;
    fetches(&server, "nobody.invalid/", "error: ErrorCode::DnsError")?;
    server.end()
}

fn a_server_that_answers_nonsense_is_an_error(test: &Test) -> Outcome {
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

const UNTRUSTED: &str = "error: ErrorCode::TlsCertificateError";
const MISCONFIGURED: &str = "error: ErrorCode::ConfigurationError";

/// A handler whose image has these names, trusts an authority, and may send requests to
/// `server.test` at any port.
fn trusting<'a>(test: &'a Test, authority: &Authority) -> Outcome<Bundle<'a>> {
    let bundle = named(test, "127.0.0.1 server.test\n", "server.test:*,127.0.0.1:*,[::1]:*")?;
    bundle.file(TRUSTED, authority.file())
}

/// The same for `https`.
fn fetches_https(server: &Server<'_>, url: &str, said: &str) -> Outcome {
    let text = server.get(&format!("/fetch-https/{url}"))?.is(200)?.body;
    ensure(text.starts_with(said), format!("https://{url}: {text}"))
}

/// Checks that a line on standard error contains these words.
fn says(server: &Server<'_>, words: &str) -> Outcome {
    let said = server.container.stderr()?;
    ensure(said.contains(words), format!("no `{words}`: {said}"))
}

fn https_reaches_a_server_that_the_image_trusts(test: &Test) -> Outcome {
    let (authority, other) = (Authority::new("good")?, Authority::new("other")?);
    // As in an image: more than one, and text between them.
    let file = format!("# certificates\n{}\ntext\n{}", other.file(), authority.file());
    let bundle = named(test, "127.0.0.1 server.test\n", "server.test,127.0.0.1:*")?;
    let server = start(bundle.file(TRUSTED, file)?)?;
    let config = authority.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:443", config, same)?;
    // The later ones continue the first session.
    for _ in 0..3 {
        fetches_https(&server, "server.test/a?b", "200 GET /a?b HTTP/1.1")?;
    }
    fetches_https(&server, "SERVER.test:443/", "200 GET / HTTP/1.1")?;
    let statistics = server.statistics(test)?;
    has(&statistics, "/outbound", 4)?;
    has(&statistics, "/outboundRefused", 0)?;
    ensure_eq(server.container.stderr()?.as_str(), "")?;
    server.end()
}

fn https_reaches_a_server_by_its_address(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let server = start(trusting(test, &authority)?)?;
    let config = authority.server(&["127.0.0.1", "::1"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", Arc::clone(&config), same)?;
    serve_tls(&server.container, "[::1]:9443", config, same)?;
    fetches_https(&server, "127.0.0.1:9443/", "200 GET / HTTP/1.1")?;
    fetches_https(&server, "[::1]:9443/", "200 GET / HTTP/1.1")?;
    // It does not prove to have this name.
    fetches_https(&server, "server.test:9443/", UNTRUSTED)?;
    server.end()
}

fn https_speaks_both_versions_of_tls(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let server = start(trusting(test, &authority)?)?;
    let of = |versions| authority.server(&["server.test"], VALID, versions);
    serve_tls(&server.container, "127.0.0.1:9442", of(TLS_1_2)?, same)?;
    serve_tls(&server.container, "127.0.0.1:9443", of(TLS_1_3)?, same)?;
    for port in [9442, 9443, 9442, 9443] {
        fetches_https(&server, &format!("server.test:{port}/"), "200 GET / HTTP/1.1")?;
    }
    server.end()
}

fn a_certificate_that_proves_nothing_is_an_error(test: &Test) -> Outcome {
    let (authority, other) = (Authority::new("good")?, Authority::new("other")?);
    let server = start(trusting(test, &authority)?)?;
    for (address, config, why) in [
        ("127.0.0.1:9440", authority.server(&["other.test"], VALID, ALL)?, "not valid for name"),
        ("127.0.0.1:9441", authority.server(&["server.test"], 2020, ALL)?, "expired"),
        ("127.0.0.1:9442", other.server(&["server.test"], VALID, ALL)?, "UnknownIssuer"),
    ] {
        let port = &address[10..];
        serve_tls(&server.container, address, config, same)?;
        fetches_https(&server, &format!("server.test:{port}/"), UNTRUSTED)?;
        says(&server, &format!("rt-wasmtime: TLS with `server.test:{port}`: "))?;
        says(&server, why)?;
    }
    let config = authority.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", config, same)?;
    fetches_https(&server, "server.test:9443/", "200 GET / HTTP/1.1")?;
    server.end()
}

fn the_environment_names_the_trusted_certificates(test: &Test) -> Outcome {
    let (authority, other) = (Authority::new("good")?, Authority::new("other")?);
    let bundle = trusting(test, &other)?.file("/trusted.pem", authority.file())?;
    for (file, said) in [
        ("/trusted.pem", "200 GET / HTTP/1.1"),
        ("trusted.pem", "200 GET / HTTP/1.1"),
        ("", UNTRUSTED),
        (TRUSTED, UNTRUSTED),
        ("/missing", MISCONFIGURED),
    ] {
        let server = start(bundle.clone().edit(|config| {
            config["process"]["env"] = json!(["A=1", format!("SSL_CERT_FILE={file}")]);
        }))?;
        let config = authority.server(&["server.test"], VALID, ALL)?;
        serve_tls(&server.container, "127.0.0.1:9443", config, same)?;
        fetches_https(&server, "server.test:9443/", said)?;
        server.end()?;
    }
    Ok(())
}

fn an_image_without_certificates_trusts_public_authorities(test: &Test) -> Outcome {
    let bundle = named(test, "127.0.0.1 server.test\n", "server.test:*,127.0.0.1:*")?;
    fs::remove_dir_all(bundle.rootfs().join("etc/ssl")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let server = start(bundle)?;
    let config = Authority::new("private")?.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", config, same)?;
    fetches_https(&server, "server.test:9443/", UNTRUSTED)?;
    says(&server, "UnknownIssuer")?;
    server.end()
}

/// The image may have put anything there.
fn a_file_of_certificates_that_is_none_is_an_error(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let bundle = trusting(test, &authority)?;
    let path = bundle.rootfs().join(&TRUSTED[1..]);
    let link = |target: &str| std::os::unix::fs::symlink(target, &path);
    type Put<'a> = &'a dyn Fn() -> std::io::Result<()>;
    let cases: [(Put<'_>, &str); 8] = [
        (&|| fs::write(&path, ""), "it has no certificate"),
        (&|| fs::write(&path, "-----BEGIN CERTIFICATE-----\nnone\n"), "it has no certificate"),
        (&|| fs::write(&path, vec![b'\n'; (1 << 20) + 1]), "it has more than 1048576 bytes"),
        (&|| fs::create_dir(&path), "it is not an ordinary file"),
        (&|| link("/dev/zero"), "it is not an ordinary file"),
        (&|| link("/proc/self/environ"), "it is not an ordinary file"),
        (&|| link("ca-certificates.crt"), "Symbolic link loop"),
        (
            &|| {
                let mode = rustix::fs::Mode::from_raw_mode(0o666);
                let kind = rustix::fs::FileType::Fifo;
                Ok(rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0)?)
            },
            "it is not an ordinary file",
        ),
    ];
    for (put, words) in cases {
        match fs::symlink_metadata(&path).map(|it| it.is_dir()) {
            Ok(true) => fs::remove_dir(&path)?,
            Ok(false) => fs::remove_file(&path)?,
            Err(_) => {}
        }
        put()?;
        let server = start(bundle.clone())?;
        let config = authority.server(&["server.test"], VALID, ALL)?;
        serve_tls(&server.container, "127.0.0.1:9443", config, same)?;
        fetches_https(&server, "server.test:9443/", MISCONFIGURED)?;
        says(&server, words)?;
        server.get("/")?.is(200)?;
        server.end()?;
    }
    Ok(())
}

fn https_is_for_listed_servers_only(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let hosts = "127.0.0.1 server.test\n127.0.0.1 other.test\n169.254.169.254 far.test\n";
    let bundle = named(test, hosts, "server.test,127.0.0.1:443,far.test")?;
    let server = start(bundle.file(TRUSTED, authority.file())?)?;
    let config = authority.server(&["server.test", "other.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:443", Arc::clone(&config), same)?;
    serve_tls(&server.container, "127.0.0.1:80", config, same)?;
    fetches_https(&server, "server.test/", "200 GET / HTTP/1.1")?;
    for url in ["other.test/", "server.test:80/", "server.test:8443/", "127.0.0.1:80/", "[::1]/"] {
        fetches_https(&server, url, DENIED)?;
    }
    // Nor by the port of the other scheme.
    fetches(&server, "server.test:443/", DENIED)?;
    fetches_https(&server, "far.test/", PROHIBITED)?;
    has(&server.statistics(test)?, "/outboundRefused", 7)?;
    server.end()
}

/// As for `http`.
fn https_obeys_the_list_of_ports(test: &Test) -> Outcome {
    super::wasm_ports::needs_v2(test)?;
    if kernel()? < (6, 7) {
        return skip("the kernel's Landlock knows no ports");
    }
    let authority = Authority::new("good")?;
    let server = start(with(trusting(test, &authority)?, &[("connect", "tcp/9443")]))?;
    let config = authority.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", Arc::clone(&config), same)?;
    serve_tls(&server.container, "127.0.0.1:9444", config, same)?;
    fetches_https(&server, "server.test:9443/", "200 GET / HTTP/1.1")?;
    fetches_https(&server, "server.test:9444/", "error: ErrorCode::ConnectionRefused")?;
    server.end()
}

fn a_server_without_tls_is_an_error(test: &Test) -> Outcome {
    let server = serve(test, &[(OUTBOUND, "127.0.0.1:*")])?;
    other_server(&server.container, "127.0.0.1:9443")?;
    fetches_https(&server, "127.0.0.1:9443/", "error: ErrorCode::TlsProtocolError")?;
    says(&server, "rt-wasmtime: TLS with `127.0.0.1:9443`: received corrupt message")?;
    // One that closes the connection instead.
    serve_bytes(&server.container, "127.0.0.1:9444", drop)?;
    fetches_https(&server, "127.0.0.1:9444/", "error: ErrorCode::ConnectionTerminated")?;
    server.end()
}

fn an_alert_of_a_server_is_told(test: &Test) -> Outcome {
    let server = serve(test, &[(OUTBOUND, "127.0.0.1:*")])?;
    serve_bytes(&server.container, "127.0.0.1:9443", |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        // An alert of TLS 1.2: fatal, handshake_failure (RFC 8446, 6).
        let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 40]);
        let _ = stream.read(&mut [0; 4096]);
    })?;
    let text = server.get("/fetch-https/127.0.0.1:9443/")?.is(200)?.body;
    for part in ["TlsAlertReceived", "Some(40)", "HandshakeFailure"] {
        ensure(text.contains(part), &text)?;
    }
    server.end()
}

fn a_server_that_never_greets_is_given_up(test: &Test) -> Outcome {
    let bundle = with(handler(test)?, &[(OUTBOUND, "127.0.0.1:*"), ("timeout", "2")]);
    let server = start(bundle)?;
    let mut kept = Vec::new();
    serve_bytes(&server.container, "127.0.0.1:9443", move |stream| kept.push(stream))?;
    // The guest's own limit.
    let text = server.get("/fetch-https-within/200/127.0.0.1:9443/")?.is(200)?.body;
    ensure(text.starts_with("error: ErrorCode::ConnectionTimeout"), text)?;
    // The limit of the request.
    server.get("/fetch-https/127.0.0.1:9443/")?.is(504)?;
    server.get("/")?.is(200)?;
    server.end()
}

fn a_redirection_is_not_followed(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let server = start(trusting(test, &authority)?)?;
    let config = authority.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", config, |line| {
        let to = if line.contains("http") { "http://127.0.0.1:9000/" } else { "/elsewhere" };
        format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 4\r\n\r\nhere")
    })?;
    fetches_https(&server, "server.test:9443/", "302 here")?;
    fetches_https(&server, "server.test:9443/http", "302 here")?;
    has(&server.statistics(test)?, "/outbound", 2)?;
    server.end()
}

/// Whoever is on the way can end a connection, and must not forge a complete response so.
fn a_response_that_is_cut_off_is_not_complete(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let server = start(trusting(test, &authority)?)?;
    let config = authority.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", config, |line| match line {
        "GET /length HTTP/1.1" => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".into(),
        _ => "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf".into(),
    })?;
    for path in ["length", "rest"] {
        let text = server.get(&format!("/fetch-https/server.test:9443/{path}"))?.is(200)?.body;
        ensure(text.starts_with("200 half") && text.len() > "200 half".len(), text)?;
    }
    server.end()
}

fn tls_is_made_at_the_first_request(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let bundle = trusting(test, &authority)?;
    fs::remove_file(bundle.rootfs().join(&TRUSTED[1..]))?;
    let rootfs = bundle.rootfs();
    let server = start(bundle)?;
    server.get("/")?.is(200)?;
    // Only now.
    fs::write(rootfs.join(&TRUSTED[1..]), authority.file())?;
    let config = authority.server(&["server.test"], VALID, ALL)?;
    serve_tls(&server.container, "127.0.0.1:9443", config, same)?;
    fetches_https(&server, "server.test:9443/", "200 GET / HTTP/1.1")?;
    // And not again.
    fs::remove_file(rootfs.join(&TRUSTED[1..]))?;
    fetches_https(&server, "server.test:9443/", "200 GET / HTTP/1.1")?;
    server.end()
}
