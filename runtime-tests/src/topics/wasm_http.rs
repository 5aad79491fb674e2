//! Handlers of requests (`wasi:http/proxy`): what they are given, how they are served, and how a
//! server ends. The topics `wasm_http_limits`, `wasm_http_protocol` and `wasm_http_outbound` have
//! the rest.

pub(super) mod client;
mod newer;
mod others;
pub(super) mod tls;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use super::wasm_cache;
use super::wasm_components;
use crate::harness::{Outcome, Test, WASMTIME, ensure, ensure_eq, kernel, skip, wait_until};
use client::{
    answer, answers, frames, get, handler, has, inside, next_frame, serve, start, start_at, up,
    with,
};

use others::{
    a_client_that_hangs_up_ends_nothing, a_component_of_several_programs_runs,
    a_component_of_too_many_programs_is_an_error, a_directory_is_read_as_a_whole,
    a_fifo_holds_up_nobody, a_guests_error_is_cut, a_handler_of_another_version_is_an_error,
    a_request_that_nests_does_not_take_all, directories_that_nobody_reads_hold_up_nobody,
    what_the_host_keeps_for_a_guest_is_limited,
};

use newer::{
    a_guest_of_wasi_0_3_is_limited, a_guest_of_wasi_0_3_that_fails_is_an_error,
    a_guest_of_wasi_0_3_that_loops_holds_up_nobody, a_handler_of_wasi_0_3_answers_requests,
    a_handler_of_wasi_0_3_gets_what_others_get, a_handler_of_wasi_0_3_sends_requests_where_it_may,
    a_server_of_wasi_0_3_finishes_what_runs,
};

super::tests! { "wasm_http":
    a_handler_answers_requests, an_annotation_has_the_address, speaks_http_2_without_tls, a_body_goes_both_ways, a_connection_is_used_again,
    a_handler_gets_what_a_command_gets, a_handler_sees_only_the_directories_that_are_listed, a_handler_opens_no_file_of_the_kernel,
    serves_where_sockets_are_off, serves_where_no_port_is_listed, a_port_in_use_is_an_error, an_address_that_is_not_there_is_an_error,
    an_import_that_nobody_offers_is_an_error, wrong_values_are_errors, a_command_ignores_how_to_serve, sigterm_finishes_what_runs,
    sigterm_cuts_off_what_takes_too_long, a_second_signal_ends_at_once, a_probe_is_answered_without_the_guest, the_access_log_has_a_line_for_each_request,
    the_access_log_commands_no_terminal, a_log_that_nobody_reads_stops_nothing, statistics_are_told_of_by_events, fuel_is_for_each_request,
    work_goes_on_after_the_response, what_a_guest_prints_is_the_containers_output, exec_serves_too, an_engine_that_serves_nothing_is_named,
    a_handler_of_wasi_0_3_answers_requests, a_handler_of_wasi_0_3_gets_what_others_get, a_handler_of_wasi_0_3_sends_requests_where_it_may,
    a_guest_of_wasi_0_3_that_fails_is_an_error, a_guest_of_wasi_0_3_that_loops_holds_up_nobody, a_guest_of_wasi_0_3_is_limited,
    a_server_of_wasi_0_3_finishes_what_runs, a_client_that_hangs_up_ends_nothing, directories_that_nobody_reads_hold_up_nobody,
    a_directory_is_read_as_a_whole, a_fifo_holds_up_nobody, what_the_host_keeps_for_a_guest_is_limited, a_guests_error_is_cut,
    a_component_of_several_programs_runs, a_component_of_too_many_programs_is_an_error, a_request_that_nests_does_not_take_all,
    a_handler_of_another_version_is_an_error,
}

fn a_handler_answers_requests(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for _ in 0..3 {
        let answer = server.get("/")?.is(200)?.says("Hello from Wasm!\n")?;
        ensure(answer.head.contains("content-type: text/plain"), &answer.head)?;
        ensure(answer.head.contains("date: "), &answer.head)?;
    }
    let state = server.container.state()?;
    let annotations = &state["annotations"];
    ensure_eq(&annotations["run.oci.engine.mode"], &json!("aot"))?;
    ensure(annotations["run.oci.engine"].to_string().contains("wasmtime 48."), &state)?;
    server.end()
}

fn an_annotation_has_the_address(test: &Test) -> Outcome {
    let server = start_at(with(handler(test)?, &[("http", "127.0.0.1:9000")]), 9000)?;
    answers(&server)?;
    server.end()?;
    let server = start_at(with(handler(test)?, &[("http", "[::]:9001")]), 9001)?;
    answers(&server)?;
    server.end()
}

fn speaks_http_2_without_tls(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let mut stream = server.connect()?;
    stream.write_all(&[frames::PREFACE, &frames::frame(frames::SETTINGS, 0, 0, &[])].concat())?;
    // Two requests at once.
    stream.write_all(&[frames::get(1), frames::get(3)].concat())?;
    let (mut good, mut text) = (0, Vec::new());
    while good < 2 || text.len() < 2 * "Hello from Wasm!\n".len() {
        let (kind, id, content) = next_frame(&mut stream)?;
        match kind {
            // `:status` 200 has the place 8 in HPACK's table.
            frames::HEADERS => {
                ensure(
                    content.first() == Some(&0x88) && [1, 3].contains(&id),
                    format!("{content:?}"),
                )?;
                good += 1;
            }
            frames::DATA => text.extend(content),
            frames::RESET | frames::GO_AWAY => return Err(format!("{kind} {content:?}").into()),
            _ => {}
        }
    }
    ensure_eq(String::from_utf8(text)?, "Hello from Wasm!\n".repeat(2))?;
    server.end()
}

fn a_body_goes_both_ways(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let body = "0123456789abcdef".repeat(1 << 16);
    server.post("/echo", body.as_bytes())?.is(200)?.says(&body)?;
    server.post("/echo", b"")?.is(200)?.says("")?;
    let chunked = "POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n6\r\n again\r\n0\r\n\r\n";
    server.send(chunked)?.is(200)?.says("hello again")?;
    // The client waits until the server wants the body.
    let mut stream = server.connect()?;
    let expecting = "POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(expecting.as_bytes())?;
    let mut interim = [0; 25];
    stream.read_exact(&mut interim)?;
    ensure_eq(std::str::from_utf8(&interim)?, "HTTP/1.1 100 Continue\r\n\r\n")?;
    stream.write_all(b"ok")?;
    answer(stream)?.is(200)?.says("ok")?;
    server.end()
}

fn a_connection_is_used_again(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let stream = server.connect()?;
    let keep = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    // Two requests at once, and the last one.
    (&stream).write_all(format!("{keep}{keep}{}", get("/")).as_bytes())?;
    let mut text = String::new();
    (&stream).read_to_string(&mut text)?;
    ensure_eq(text.matches("HTTP/1.1 200 OK").count(), 3)?;
    has(&server.statistics(test)?, "/connections", 1)?;
    server.end()
}

fn a_handler_gets_what_a_command_gets(test: &Test) -> Outcome {
    let bundle =
        handler(test)?.file("/data/file", "content")?.args(&["/handler.wasm", "one", "two"]);
    let server = start(bundle.edit(|config| {
        config["process"]["env"] = json!(["NAME=value", "OTHER=x=y"]);
    }))?;
    server.get("/variables")?.says("NAME=value\nOTHER=x=y\n")?;
    server.get("/arguments")?.says("/handler.wasm one two")?;
    server.get("/read/data/file")?.says("content")?;
    server.get("/write/data/new")?.says("ok")?;
    server.get("/ls/data")?.is(200).and_then(|answer| {
        ensure(["file new", "new file"].contains(&answer.body.as_str()), &answer.body)
    })?;
    server.get("/connect/127.0.0.1:8080")?.says("connected")?;
    server.end()
}

fn a_handler_sees_only_the_directories_that_are_listed(test: &Test) -> Outcome {
    let bundle = handler(test)?.file("/data/file", "content")?.file("/secret", "secret")?;
    let server = start(with(bundle.clone(), &[("dirs", "/data:ro")]))?;
    server.get("/read/data/file")?.says("content")?;
    ensure(server.get("/read/secret")?.body.starts_with("error: "), "secret")?;
    ensure(server.get("/write/data/new")?.body.starts_with("error: "), "write")?;
    server.end()?;
    let server = start(with(bundle, &[("dirs", "")]))?;
    for path in ["/read/data/file", "/read/secret", "/ls/"] {
        ensure(server.get(path)?.body.starts_with("error: "), path)?;
    }
    server.end()
}

fn a_handler_opens_no_file_of_the_kernel(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for path in
        ["/read/proc/self/mem", "/read/proc/version", "/read/sys/kernel/uevent_seqnum", "/ls/proc"]
    {
        ensure_eq((path, server.get(path)?.body.as_str()), (path, "error: PermissionDenied"))?;
    }
    server.end()
}

/// Init listens before the filter is there, and the guest has no sockets of its own.
fn serves_where_sockets_are_off(test: &Test) -> Outcome {
    let server = serve(test, &[("sockets", "off")])?;
    answers(&server)?;
    ensure_eq(server.get("/connect/127.0.0.1:8080")?.body.as_str(), "error: PermissionDenied")?;
    server.end()?;
    let bundle = with(handler(test)?, &[("sockets", "off"), ("http-outbound", "a")]);
    let output = bundle.run()?.code(1)?;
    output.fails_with(
        "`run.oci.wasm.http-outbound` requires sockets, and `run.oci.wasm.sockets` is `off`",
    )?;
    Ok(())
}

fn serves_where_no_port_is_listed(test: &Test) -> Outcome {
    if kernel()? < (6, 7) {
        return skip("the kernel's Landlock knows no ports");
    }
    let server = serve(test, &[("bind", ""), ("connect", "")])?;
    answers(&server)?;
    ensure_eq(server.get("/connect/127.0.0.1:8080")?.body.as_str(), "error: PermissionDenied")?;
    server.end()?;
    if test.host.lane == "v1" {
        return Ok(());
    }
    // A list of some ports keeps clients away from all others, by a program of the cgroup.
    let server = serve(test, &[("bind", "tcp/9000"), ("connect", "tcp/9000")])?;
    answers(&server)?;
    server.end()
}

fn a_port_in_use_is_an_error(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let network = format!("/proc/{}/ns/net", server.container.pid()?);
    let second = handler(test)?.edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|it| it["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": network }));
    });
    let output = second.run()?.code(1)?;
    output.fails_with("listen on `0.0.0.0:8080` (`run.oci.wasm.http`): Address in use")?;
    answers(&server)?;
    server.end()
}

fn an_address_that_is_not_there_is_an_error(test: &Test) -> Outcome {
    let bundle = with(handler(test)?, &[("http", "192.0.2.1:80")]);
    let output = bundle.run()?.code(1)?;
    output.fails_with("listen on `192.0.2.1:80` (`run.oci.wasm.http`): Address not available")?;
    // The container's user must have the right to a low port.
    let bundle = with(handler(test)?, &[("http", "0.0.0.0:80")]).edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({});
    });
    let output = bundle.run()?.code(1)?;
    output.fails_with("listen on `0.0.0.0:80` (`run.oci.wasm.http`): Permission denied")?;
    ensure_eq(test.rt(["list", "--quiet"])?.stdout.as_str(), "")
}

/// A handler in text, with an import of its own making.
fn importing(name: &str) -> Outcome<Vec<u8>> {
    let text = format!(
        r#"(component
            (import "{name}" (instance $i (export "f" (func))))
            (core func $f (canon lower (func $i "f")))
            (core module $m (import "" "f" (func)) (func (export "handle")))
            (core instance $c (instantiate $m (with "" (instance (export "f" (func $f))))))
            (func $handle (canon lift (core func $c "handle")))
            (instance (export "wasi:http/incoming-handler@0.2.0") (export "handle" (func $handle))))"#
    );
    Ok(wat::parse_str(text)?)
}

fn an_import_that_nobody_offers_is_an_error(test: &Test) -> Outcome {
    let bundle = handler(test)?;
    fs::write(bundle.rootfs().join("handler.wasm"), importing("acme:rockets/launch@1.0.0")?)?;
    let output = bundle.run()?.code(126)?;
    let words = "rt-wasmtime: start `/handler.wasm`: component imports instance `acme:rockets/launch@1.0.0`";
    output.fails_with(words)?;
    // The interface is there, and its function is of another type.
    fs::write(bundle.rootfs().join("handler.wasm"), importing("wasi:cli/environment@0.2.0")?)?;
    let output = bundle.run()?.code(126)?;
    output.fails_with("rt-wasmtime: start `/handler.wasm`: ").map(drop)
}

fn wrong_values_are_errors(test: &Test) -> Outcome {
    for (name, value, words) in [
        ("http", "8080", "`8080` is not an address with a port"),
        ("http-requests", "0", "`0` is not a number from 1 to 8192"),
        ("http-body", "1M", "`1M` is not a number from 0 on"),
        ("http-grace", "soon", "`soon` is not a number of seconds"),
        ("http-health", "healthz", "`healthz` is not a path"),
        ("http-access-log", "/dev/stdout", "neither `stdout` nor `stderr`"),
        ("http-outbound", "http://a", "`http://a` is not a server"),
        ("http-request", "1", "rt knows "),
    ] {
        let output = with(handler(test)?, &[(name, value)]).run()?.code(1)?;
        let output = output.fails_with(&format!("the annotation `run.oci.wasm.{name}`: "))?;
        output.fails_with(words)?;
    }
    ensure_eq(test.rt(["list", "--quiet"])?.stdout.as_str(), "")
}

/// Annotations can be those of a pod, for all of its containers.
fn a_command_ignores_how_to_serve(test: &Test) -> Outcome {
    let bundle = wasm_components::lazy(test, "hello", &[])?;
    let output = with(bundle, &[("http", "192.0.2.1:80"), ("http-requests", "1")]).run()?;
    output.success()?.stdout("Hello from Wasm!\n").map(drop)
}

/// The exit status of a container that runs in the foreground of `rt run`.
struct Foreground {
    child: std::process::Child,
}

impl Foreground {
    fn code(mut self) -> Outcome<Option<i32>> {
        Ok(self.child.wait()?.code())
    }
}

/// Starts a handler whose exit status somebody waits for.
fn in_the_foreground<'a>(
    test: &'a Test,
    annotations: &[(&str, &str)],
) -> Outcome<(Foreground, client::Server<'a>)> {
    let bundle = with(handler(test)?, annotations);
    bundle.write()?;
    let id = test.id();
    let mut command = test.command(bundle.command_line("run", &id));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Foreground { child: command.spawn()? };
    let server = client::Server::named(test, &id);
    wait_until("it runs", || server.container.status().is_ok_and(|it| it == "running"))?;
    up(&server.container)?;
    answers(&server)?;
    Ok((child, server))
}

fn sigterm_finishes_what_runs(test: &Test) -> Outcome {
    for (signal, grace) in [("TERM", "30"), ("INT", "30")] {
        let (child, server) = in_the_foreground(test, &[("http-grace", grace)])?;
        let mut running = server.connect()?;
        let mut idle = server.connect()?;
        running.write_all(get("/sleep/1000").as_bytes())?;
        wait_until("it sleeps", || {
            server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(1))
        })?;
        server.container.kill(signal)?;
        // The idle connection ends at once, and nobody listens any more.
        ensure_eq(idle.read(&mut [0; 1])?, 0)?;
        ensure(server.connect().is_err(), "it still listens")?;
        answer(running)?.is(200)?.says("slept\n")?;
        ensure_eq(child.code()?, Some(0))?;
    }
    Ok(())
}

fn sigterm_cuts_off_what_takes_too_long(test: &Test) -> Outcome {
    let (child, server) = in_the_foreground(test, &[("http-grace", "0.2")])?;
    let mut running = server.connect()?;
    running.write_all(get("/sleep/60000").as_bytes())?;
    wait_until("it sleeps", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(1))
    })?;
    server.container.kill("TERM")?;
    ensure_eq(child.code()?, Some(143))?;
    ensure_eq(running.read(&mut [0; 1]).unwrap_or(0), 0)
}

fn a_second_signal_ends_at_once(test: &Test) -> Outcome {
    let (child, server) = in_the_foreground(test, &[("http-grace", "600")])?;
    let mut running = server.connect()?;
    let mut idle = server.connect()?;
    running.write_all(get("/sleep/60000").as_bytes())?;
    wait_until("it sleeps", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(1))
    })?;
    server.container.kill("TERM")?;
    ensure_eq(idle.read(&mut [0; 1])?, 0)?;
    server.container.kill("INT")?;
    ensure_eq(child.code()?, Some(130))
}

fn a_probe_is_answered_without_the_guest(test: &Test) -> Outcome {
    let server = serve(test, &[("http-health", "/healthz"), ("http-requests", "1")])?;
    server.get("/healthz")?.is(200)?.says("ok\n")?;
    server.post("/healthz", b"x")?.is(405)?;
    // Also while no other request gets a turn.
    let mut busy = server.connect()?;
    busy.write_all(get("/sleep/60000").as_bytes())?;
    wait_until("it sleeps", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(1))
    })?;
    server.get("/healthz")?.is(200)?;
    has(&server.statistics(test)?, "/instances", 1)?;
    // Without the annotation, the path is the guest's.
    drop(busy);
    server.container.kill("QUIT")?;
    server.container.wait()?;
    let server = serve(test, &[])?;
    server.get("/healthz")?.says("Hello from Wasm!\n")?;
    server.end()
}

fn the_access_log_has_a_line_for_each_request(test: &Test) -> Outcome {
    for stream in ["stdout", "stderr"] {
        let server = serve(test, &[("http-access-log", stream), ("http-health", "/healthz")])?;
        let text = "GET /a?b=c HTTP/1.1\r\nhost: a\r\nconnection: close\r\nreferer: http://r/\r\nuser-agent: test/1\r\n\r\n";
        server.send(text)?.is(200)?;
        server.get("/healthz")?.is(200)?;
        server.get("/status/204")?.is(204)?;
        server.end()?;
        let written = |name| match name {
            "stdout" => server.container.stdout(),
            _ => server.container.stderr(),
        };
        let log = written(stream)?;
        let lines: Vec<&str> = log.lines().collect();
        ensure_eq(lines.len(), 3)?;
        let year = |line: &str| line.split_once('[').map(|(_, rest)| rest.contains("+0000] \""));
        ensure(
            lines
                .iter()
                .all(|line| line.starts_with("127.0.0.1 - - [") && year(line) == Some(true)),
            &log,
        )?;
        ensure(
            lines[0].ends_with("] \"GET /a?b=c HTTP/1.1\" 200 17 \"http://r/\" \"test/1\""),
            &log,
        )?;
        ensure(lines[1].ends_with("] \"GET /healthz HTTP/1.1\" 200 3 \"-\" \"-\""), &log)?;
        ensure(lines[2].ends_with("] \"GET /status/204 HTTP/1.1\" 204 - \"-\" \"-\""), &log)?;
        ensure_eq(written(if stream == "stdout" { "stderr" } else { "stdout" })?.as_str(), "")?;
    }
    Ok(())
}

fn the_access_log_commands_no_terminal(test: &Test) -> Outcome {
    let server = serve(test, &[("http-access-log", "stdout")])?;
    let request = |agent: &[u8]| {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nuser-agent: ";
        [&head[..], agent, b"\r\n\r\n"].concat()
    };
    server.send(request(b"a\"b\\c\xff\xc2\x9b31m"))?.is(200)?;
    // What is not allowed in a header does not get so far.
    server.send(request(b"a\x1b[31m"))?.is(400)?;
    server.send(request(b"a\rb"))?.is(400)?;
    server.send(request(&[b'x'; 20_000]))?.is(200)?;
    server.end()?;
    let log = server.container.stdout()?;
    let lines: Vec<&str> = log.lines().collect();
    ensure_eq(lines.len(), 2)?;
    ensure(lines[0].ends_with(r#""-" "a\"b\\c\xff\xc2\x9b31m""#), lines[0])?;
    ensure(lines[1].len() < 4096 && lines[1].ends_with("xxx...\""), lines[1].len())
}

fn a_log_that_nobody_reads_stops_nothing(test: &Test) -> Outcome {
    let bundle = with(handler(test)?, &[("http-access-log", "stdout")]);
    bundle.write()?;
    let id = test.id();
    let mut command = test.command(bundle.command_line("run", &id));
    // Nobody reads this pipe.
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let server = client::Server::named(test, &id);
    wait_until("it runs", || server.container.status().is_ok_and(|it| it == "running"))?;
    up(&server.container)?;
    let stream = server.connect()?;
    let agent = "x".repeat(3000);
    let keep = format!("GET / HTTP/1.1\r\nhost: a\r\nuser-agent: {agent}\r\n\r\n");
    let mut all = String::new();
    for turn in 0..100 {
        let last = if turn == 99 { get("/") } else { keep.clone() };
        (&stream).write_all(last.as_bytes())?;
    }
    (&stream).read_to_string(&mut all)?;
    ensure_eq(all.matches("HTTP/1.1 200 OK").count(), 100)?;
    let lost = client::number(&server.statistics(test)?, "/logLinesLost")?;
    ensure(lost > 0 && lost < 100, lost)?;
    server.container.kill("KILL")?;
    child.wait()?;
    Ok(())
}

fn statistics_are_told_of_by_events(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for path in ["/", "/status/404", "/status/301", "/trap", "/sleep/20"] {
        server.get(path)?;
    }
    server.post("/consume", &[b'x'; 5000])?.says("5000 bytes\n")?;
    let idle = server.connect()?;
    wait_until("it is accepted", || {
        server.statistics(test).is_ok_and(|it| it["connections"] == json!(7))
    })?;
    let statistics = server.statistics(test)?;
    for (path, expected) in [
        ("/requests", 6),
        ("/requestsNow", 0),
        ("/responses/1xx", 0),
        ("/responses/2xx", 3),
        ("/responses/3xx", 1),
        ("/responses/4xx", 1),
        ("/responses/5xx", 1),
        ("/instances", 6),
        ("/instancesNow", 0),
        ("/traps", 1),
        ("/timedOut", 0),
        ("/refused", 0),
        ("/bytesReceived", 5000),
        ("/outbound", 0),
        ("/logLinesLost", 0),
    ] {
        has(&statistics, path, expected)?;
    }
    ensure(client::number(&statistics, "/microseconds")? >= 20_000, &statistics)?;
    let durations = statistics["durations"].as_object().ok_or("no durations")?;
    let sum: u64 = durations.values().filter_map(serde_json::Value::as_u64).sum();
    ensure_eq(sum, 6)?;
    drop(idle);
    // A command has none.
    let command = wasm_components::lazy(test, "probe", &["sleep"])?.start()?;
    ensure(super::events::stats(test, &command)?["data"]["wasm"].get("http").is_none(), "http")?;
    server.end()
}

fn fuel_is_for_each_request(test: &Test) -> Outcome {
    let server = serve(test, &[("fuel", "10000000")])?;
    for _ in 0..3 {
        server.get("/spin/100000")?.is(200)?.says("spun\n")?;
        server.get("/spin/100000000")?.is(500)?;
        server.get("/loop")?.is(500)?;
    }
    let said = server.container.stderr()?;
    ensure(said.contains("rt-wasmtime: trap: all fuel consumed by WebAssembly\n"), said)?;
    server.end()
}

fn work_goes_on_after_the_response(test: &Test) -> Outcome {
    let server = serve(test, &[("http-grace", "30")])?;
    server.get("/later/300")?.is(200)?.says("answered\n")?;
    // The end of the server waits for it too.
    server.end()?;
    ensure_eq(server.container.stdout()?.as_str(), "worked later\n")
}

fn what_a_guest_prints_is_the_containers_output(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    server.get("/say/hello")?.is(200)?;
    ensure_eq(server.container.stdout()?.as_str(), "hello")?;
    server.end()
}

fn exec_serves_too(test: &Test) -> Outcome {
    let bundle =
        with(wasm_components::lazy(test, "probe", &["sleep"])?, &[("http", "127.0.0.1:9002")]);
    fs::copy(test.host.component("handler")?, bundle.rootfs().join("handler.wasm"))?;
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    up(&container)?;
    test.rt(["exec", "--detach", &container.id, "/handler.wasm"])?.success()?;
    let mut stream = inside(&container, || std::net::TcpStream::connect("127.0.0.1:9002"))?;
    stream.write_all(get("/").as_bytes())?;
    answer(stream)?.is(200)?;
    // A second one finds the port in use.
    let output = test.rt(["exec", &container.id, "/handler.wasm"])?;
    output.fails_with("listen on `127.0.0.1:9002`")?;
    container.kill("KILL")?;
    container.wait()
}

/// An engine of an earlier version, which knows the world and not the option.
fn an_engine_that_serves_nothing_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    let prefix = test.folder.join("prefix");
    let own = test.host.runtime.parent().and_then(Path::parent).ok_or("no prefix")?;
    let engine = prefix.join("libexec/rt").join(WASMTIME);
    fs::create_dir_all(prefix.join("bin"))?;
    fs::create_dir_all(&engine)?;
    fs::copy(&test.host.runtime, prefix.join("bin/rt"))?;
    let from = own.join("libexec/rt").join(WASMTIME);
    fs::copy(from.join("rt-wasmtime"), engine.join("rt-wasmtime"))?;
    let text = fs::read_to_string(from.join("engine.json"))?;
    fs::write(engine.join("engine.json"), text.replace("\"http\", ", ""))?;
    wasm_cache::host_of(test, WASMTIME, json!({}))?;
    let bundle = handler(test)?;
    bundle.write()?;
    let id = test.id();
    let mut command = std::process::Command::new(prefix.join("bin/rt"));
    command.arg("--root").arg(test.state_root()).args(bundle.command_line("run", &id));
    let output = crate::harness::Output::of(command)?.code(1)?;
    output.fails_with(
        "the engine `wasmtime` lacks the option `http`, which `wasi:http/incoming-handler` requires",
    )?;
    Ok(())
}
