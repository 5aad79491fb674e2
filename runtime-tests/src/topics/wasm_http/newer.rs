//! Handlers of WASI 0.3 (`wasi:http/service`): served as those of WASI 0.2 are.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{
    Server, answer, answers, get, handler, has, number, other_server, start, with,
};
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, wait_until};
use crate::topics::wasm_components;

pub(super) fn newer<'a>(test: &'a Test, annotations: &[(&str, &str)]) -> Outcome<Bundle<'a>> {
    Ok(with(wasm_components::lazy(test, "handler3", &[])?, annotations))
}

fn serve<'a>(test: &'a Test, annotations: &[(&str, &str)]) -> Outcome<Server<'a>> {
    start(newer(test, annotations)?)
}

pub(super) fn a_handler_of_wasi_0_3_answers_requests(test: &Test) -> Outcome {
    let server = serve(test, &[("http-health", "/healthz"), ("http-access-log", "stdout")])?;
    for _ in 0..3 {
        let answer = server.get("/")?.is(200)?.says("Hello from Wasm!\n")?;
        ensure(answer.head.contains("content-type: text/plain"), &answer.head)?;
    }
    let body = "0123456789abcdef".repeat(1 << 16);
    server.post("/echo", body.as_bytes())?.is(200)?.says(&body)?;
    server.post("/echo", b"")?.is(200)?.says("")?;
    server.post("/consume", body.as_bytes())?.says("1048576 bytes\n")?;
    server.get("/status/404")?.is(404)?.says("")?;
    let large = server.get("/large/3000000")?.is(200)?;
    ensure_eq(large.body.len(), 3_000_000)?;
    let described = server.get("/request/x?y=z")?.is(200)?.body;
    let line = "Method::Get Some(Scheme::Http) \"a\" \"/request/x?y=z\"\n";
    ensure(described.starts_with(line) && !described.contains("connection:"), described)?;
    server.get("/healthz")?.is(200)?.says("ok\n")?;
    let statistics = server.statistics(test)?;
    has(&statistics, "/requests", 10)?;
    has(&statistics, "/instances", 9)?;
    has(&statistics, "/traps", 0)?;
    let logged = server.container.stdout()?;
    ensure(logged.contains("\"GET /status/404 HTTP/1.1\" 404 - "), logged)?;
    let annotations = server.container.state()?["annotations"].clone();
    ensure_eq(&annotations["run.oci.engine.mode"], &json!("aot"))?;
    server.end()
}

pub(super) fn a_handler_of_wasi_0_3_gets_what_others_get(test: &Test) -> Outcome {
    let bundle = newer(test, &[])?.file("/data/file", "content")?.file("/secret", "secret")?;
    let bundle = bundle.args(&["/handler3.wasm", "one", "two"]).edit(|config| {
        config["process"]["env"] = json!(["NAME=value", "OTHER=x=y"]);
    });
    let server = start(bundle.clone())?;
    server.get("/variables")?.says("NAME=value\nOTHER=x=y\n")?;
    server.get("/arguments")?.says("/handler3.wasm one two")?;
    server.get("/read/data/file")?.says("content")?;
    server.get("/std-read/data/file")?.says("content")?;
    server.get("/write/data/new")?.says("ok")?;
    server.get("/connect/127.0.0.1:8080")?.says("connected")?;
    // No file of the kernel, by either version of WASI.
    for path in ["proc/self/mem", "proc/version", "sys/kernel/uevent_seqnum"] {
        server.get(&format!("/read/{path}"))?.says("error: ErrorCode::Access")?;
        server.get(&format!("/std-read/{path}"))?.says("error: PermissionDenied")?;
    }
    server.end()?;
    let server = start(with(bundle, &[("dirs", "/data:ro"), ("sockets", "off")]))?;
    server.get("/read/data/file")?.says("content")?;
    server.get("/read/secret")?.says("error: no such directory")?;
    server.get("/read/data/../secret")?.says("error: ErrorCode::NotPermitted")?;
    server.get("/write/data/other")?.says("error: ErrorCode::NotPermitted")?;
    server.get("/connect/127.0.0.1:8080")?.says("error: ErrorCode::AccessDenied")?;
    server.end()
}

pub(super) fn a_handler_of_wasi_0_3_sends_requests_where_it_may(test: &Test) -> Outcome {
    let server = serve(test, &[("http-outbound", "127.0.0.1:9000,*:81")])?;
    other_server(&server.container, "127.0.0.1:9000")?;
    server.get("/fetch/127.0.0.1:9000/a?b")?.says("200 GET /a?b HTTP/1.1")?;
    server.get("/fetch/127.0.0.1:9001/")?.says("error: ErrorCode::HttpRequestDenied")?;
    server.get("/fetch/169.254.169.254:81/")?.says("error: ErrorCode::DestinationIpProhibited")?;
    has(&server.statistics(test)?, "/outboundRefused", 2)?;
    server.end()?;
    let server = serve(test, &[])?;
    server.get("/fetch/127.0.0.1:8080/")?.says("error: ErrorCode::HttpRequestDenied")?;
    server.end()
}

pub(super) fn a_guest_of_wasi_0_3_that_fails_is_an_error(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "2")])?;
    for (path, said) in [
        ("/trap", "rt-wasmtime: trap: wasm `unreachable` instruction executed\n"),
        ("/exit/3", "rt-wasmtime: the guest exited with status 1\n"),
        (
            "/error",
            "rt-wasmtime: the guest answered with the error ErrorCode::ConfigurationError\n",
        ),
        ("/status/101", ""),
    ] {
        server.get(path)?.is(500)?;
        let all = server.container.stderr()?;
        ensure(all.contains(said), all)?;
        answers(&server)?;
    }
    has(&server.statistics(test)?, "/traps", 1)?;
    // What has begun is cut off, and not complete.
    for path in ["/trap-after", "/loop-after"] {
        let cut = server.get(path)?.is(200)?;
        ensure(cut.body.starts_with("begun\n") && cut.body.ends_with("[cut off]"), cut.body)?;
        answers(&server)?;
    }
    // A guest may go on after its response.
    server.get("/later/50")?.is(200)?.says("answered\n")?;
    wait_until("it works later", || {
        server.container.stdout().is_ok_and(|it| it.contains("worked later\n"))
    })?;
    wait_until("no instance is left", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(0))
    })?;
    server.end()
}

pub(super) fn a_guest_of_wasi_0_3_that_loops_holds_up_nobody(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "3")])?;
    let begun = Instant::now();
    let mut looping = Vec::new();
    for path in ["/loop", "/loop", "/sleep/60000"] {
        let mut stream = server.connect()?;
        stream.write_all(get(path).as_bytes())?;
        looping.push(stream);
    }
    wait_until("they run", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(3))
    })?;
    for _ in 0..3 {
        answers(&server)?;
    }
    for stream in looping {
        answer(stream)?.is(504)?;
    }
    ensure(begun.elapsed() < Duration::from_secs(30), format!("{:?}", begun.elapsed()))?;
    has(&server.statistics(test)?, "/timedOut", 3)?;
    server.end()?;
    // Instructions are counted for each request.
    let server = serve(test, &[("fuel", "10000000")])?;
    server.get("/loop")?.is(500)?;
    ensure(server.container.stderr()?.contains("all fuel consumed"), server.container.stderr()?)?;
    answers(&server)?;
    server.end()
}

/// The same, in a container that may use 96 MiB.
fn limited(bundle: Bundle<'_>) -> Bundle<'_> {
    let limit = 96 << 20;
    bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
    })
}

pub(super) fn a_guest_of_wasi_0_3_is_limited(test: &Test) -> Outcome {
    crate::topics::needs(test, "memory")?;
    // As one of WASI 0.2.
    let memory = |bundle: Bundle<'_>| -> Outcome<u64> {
        let server = start(bundle)?;
        let text = server.get("/grow/1000")?.is(200)?.body;
        answers(&server)?;
        server.end()?;
        Ok(text.trim_end_matches(" MiB\n").parse()?)
    };
    let (older, newer_got) =
        (memory(limited(handler(test)?))?, memory(limited(newer(test, &[])?))?);
    ensure(older.abs_diff(newer_got) <= 2, format!("{older} {newer_got}"))?;
    let server = start(limited(newer(test, &[("http-body", "1000")])?))?;
    server.post("/consume", &[b'x'; 1001])?.is(413)?;
    // The host's side of its streams is limited, too.
    server.get("/streams/100")?.is(200)?.says("100 streams\n")?;
    server.get("/streams/10000000")?.is(500)?;
    answers(&server)?;
    ensure_eq(number(&server.statistics(test)?, "/instancesNow")?, 0)?;
    server.end()
}

pub(super) fn a_server_of_wasi_0_3_finishes_what_runs(test: &Test) -> Outcome {
    let server = serve(test, &[("http-grace", "30")])?;
    let mut running = server.connect()?;
    let mut idle = server.connect()?;
    running.write_all(get("/sleep/1000").as_bytes())?;
    wait_until("it sleeps", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(1))
    })?;
    server.container.kill("TERM")?;
    ensure_eq(idle.read(&mut [0; 1])?, 0)?;
    ensure(server.connect().is_err(), "it still listens")?;
    answer(running)?.is(200)?.says("slept\n")?;
    server.container.wait()
}
