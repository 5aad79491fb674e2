//! What clients and guests of a server may use up, and that it answers others meanwhile.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::wasm_http::client::{
    Server, answer, answers, begin_http_2, frames, get, handler, has, inside, number, serve, start,
    with,
};
use crate::harness::{Bundle, Outcome, Test, cgroups_of, ensure, ensure_eq, wait_until};

super::tests! { "wasm_http_limits":
    a_body_that_is_too_large_is_refused, a_body_of_a_gigabyte_is_refused_early, headers_are_limited,
    a_hundred_thousand_headers_take_no_memory, connections_are_limited, many_streams_do_not_fill_a_container, slow_headers_are_ended, a_slow_body_is_ended,
    an_idle_connection_is_closed, ten_thousand_connections_keep_nobody_out, a_guest_that_traps_is_an_error, a_response_that_is_cut_off_is_not_complete,
    a_guest_that_loops_is_ended, many_guests_that_loop_hold_up_nobody, a_loop_after_the_response_is_ended, a_guest_that_sleeps_too_long_is_ended,
    more_requests_than_may_run_wait, requests_that_wait_too_long_are_refused, an_instance_has_its_share_of_memory, the_memory_of_all_is_limited,
    a_container_is_not_filled_by_connections, a_client_that_does_not_read_is_ended, a_client_that_goes_away_ends_its_guest,
    each_request_has_a_new_instance,
}

fn count(server: &Server<'_>, test: &Test, path: &str) -> Outcome<u64> {
    number(&server.statistics(test)?, path)
}

fn wait_for(server: &Server<'_>, test: &Test, path: &str, expected: u64) -> Outcome {
    wait_until(&format!("{path} is {expected}"), || {
        count(server, test, path).is_ok_and(|it| it == expected)
    })
}

/// A container that may use this much memory.
fn in_memory<'a>(
    test: &'a Test,
    mebibytes: u64,
    annotations: &[(&str, &str)],
) -> Outcome<Bundle<'a>> {
    super::needs(test, "memory")?;
    let limit = mebibytes << 20;
    Ok(with(handler(test)?, annotations).edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
    }))
}

/// How much memory the container uses now, and how often the kernel killed for lack of it.
fn memory(server: &Server<'_>) -> Outcome<(u64, u64)> {
    let mut used = 0;
    let mut kills = 0;
    for cgroup in cgroups_of(&server.container.id) {
        let read = |name: &str| std::fs::read_to_string(cgroup.join(name)).unwrap_or_default();
        for name in ["memory.current", "memory.usage_in_bytes"] {
            used = used.max(read(name).trim().parse().unwrap_or(0));
        }
        for name in ["memory.events", "memory.oom_control"] {
            let text = read(name);
            let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            kills += line.and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    ensure(used > 0, "the cgroup was not found")?;
    Ok((used, kills))
}

/// The most memory that the container has used so far. It was never killed for lack of memory.
fn peak(server: &Server<'_>) -> Outcome<u64> {
    // Linux before 5.19 does not count it with v2.
    let (mut peak, kills) = memory(server)?;
    for cgroup in cgroups_of(&server.container.id) {
        for name in ["memory.peak", "memory.max_usage_in_bytes"] {
            let text = std::fs::read_to_string(cgroup.join(name)).unwrap_or_default();
            peak = peak.max(text.trim().parse().unwrap_or(0));
        }
    }
    ensure(kills == 0, format!("killed {kills} times"))?;
    Ok(peak)
}

/// Checks that the container stayed below this limit all the time.
fn stayed_below(server: &Server<'_>, mebibytes: u64) -> Outcome {
    let peak = peak(server)?;
    ensure(peak < mebibytes << 20, format!("{peak} bytes"))
}

fn a_body_that_is_too_large_is_refused(test: &Test) -> Outcome {
    let server = serve(test, &[("http-body", "1000")])?;
    server.post("/consume", &[b'x'; 1000])?.is(200)?.says("1000 bytes\n")?;
    server.post("/consume", &[b'x'; 1001])?.is(413)?;
    // Before the guest is asked.
    has(&server.statistics(test)?, "/instances", 1)?;
    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
    let chunked = |chunks: usize| {
        let head = "POST /consume HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}{}0\r\n\r\n", chunk.repeat(chunks))
    };
    server.send(chunked(1))?.is(200)?.says("1000 bytes\n")?;
    server.send(chunked(2))?.is(413)?;
    server.end()?;
    let server = serve(test, &[("http-body", "0")])?;
    server.post("/consume", b"x")?.is(413)?;
    answers(&server)?;
    server.end()
}

fn a_body_of_a_gigabyte_is_refused_early(test: &Test) -> Outcome {
    let server = start(in_memory(test, 64, &[])?)?;
    let mut stream = server.connect()?;
    stream.write_all(b"POST /consume HTTP/1.1\r\nhost: a\r\ncontent-length: 1073741824\r\n\r\n")?;
    let sent = pour(&mut stream, 1 << 30);
    ensure(sent < 64 << 20, sent)?;
    answer(stream)?.is(413)?;
    let mut stream = server.connect()?;
    stream.write_all(
        b"POST /consume HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n40000000\r\n",
    )?;
    let sent = pour(&mut stream, 1 << 30);
    ensure(sent < 64 << 20, sent)?;
    answers(&server)?;
    stayed_below(&server, 64)?;
    server.end()
}

/// Sends bytes until the server takes no more, and returns how many.
fn pour(stream: &mut TcpStream, most: usize) -> usize {
    let chunk = [b'x'; 64 << 10];
    let mut sent = 0;
    while sent < most && stream.write_all(&chunk).is_ok() {
        sent += chunk.len();
    }
    sent
}

fn headers_are_limited(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let headers = |count: usize, length: usize| {
        let value = "x".repeat(length);
        let lines: String = (0..count).map(|it| format!("h{it}: {value}\r\n")).collect();
        format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{lines}\r\n")
    };
    server.send(headers(98, 1))?.is(200)?;
    server.send(headers(99, 1))?.is(431)?;
    server.send(headers(1, 30_000))?.is(200)?;
    server.send(headers(1, 40_000))?.is(431)?;
    server.send(headers(100_000, 1))?.is(431)?;
    answers(&server)?;
    has(&server.statistics(test)?, "/instances", 3)?;
    server.end()?;
    let server = serve(test, &[("http-headers", "1000"), ("http-header-bytes", "65536")])?;
    server.send(headers(998, 1))?.is(200)?;
    server.send(headers(999, 1))?.is(431)?;
    server.send(headers(1, 60_000))?.is(200)?;
    server.send(headers(1, 70_000))?.is(431)?;
    server.end()
}

fn a_hundred_thousand_headers_take_no_memory(test: &Test) -> Outcome {
    let server = start(in_memory(test, 64, &[])?)?;
    let lines: String = (0..100_000).map(|it| format!("h{it}: x\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{lines}\r\n");
    for _ in 0..10 {
        server.send(&request)?.is(431)?;
    }
    answers(&server)?;
    stayed_below(&server, 64)?;
    server.end()
}

fn connections_are_limited(test: &Test) -> Outcome {
    let server = serve(test, &[("http-connections", "4"), ("http-idle-timeout", "600")])?;
    let mut idle = (0..10).map(|_| server.connect()).collect::<Outcome<Vec<_>>>()?;
    wait_for(&server, test, "/connections", 10)?;
    ensure(count(&server, test, "/connectionsNow")? <= 4, "more than four")?;
    // The one that waits longest was closed.
    ensure_eq(idle[0].read(&mut [0; 1])?, 0)?;
    answers(&server)?;
    drop(idle);
    wait_for(&server, test, "/connectionsNow", 0)?;
    // Connections with requests are not closed. A further one waits for the end of one of them.
    let running = (0..4).map(|_| {
        let mut stream = server.connect()?;
        stream.write_all(get("/sleep/60000").as_bytes())?;
        Ok(stream)
    });
    let mut running = running.collect::<Outcome<Vec<_>>>()?;
    wait_for(&server, test, "/instancesNow", 4)?;
    let mut waiting = server.connect()?;
    waiting.write_all(get("/").as_bytes())?;
    waiting.set_read_timeout(Some(Duration::from_millis(300)))?;
    ensure(waiting.read(&mut [0; 1]).is_err(), "it was served")?;
    drop(running.pop());
    waiting.set_read_timeout(Some(Duration::from_secs(60)))?;
    answer(waiting)?.is(200)?;
    server.container.kill("KILL")?;
    server.container.wait()
}

/// Each stream of HTTP/2 is a request, with a part of its body.
fn many_streams_do_not_fill_a_container(test: &Test) -> Outcome {
    // As many at once as requests may run in such a container.
    const STREAMS: u32 = 64;
    const CONNECTIONS: u64 = 20;
    const MOST: u64 = STREAMS as u64 * CONNECTIONS;
    let server = start(in_memory(test, 64, &[("timeout", "2")])?)?;
    let connections = (0..CONNECTIONS).map(|_| {
        let mut stream = server.connect()?;
        begin_http_2(&mut stream)?;
        for number in 0..STREAMS {
            let id = 2 * number + 1;
            // All of them together fill the window of the connection.
            let part = frames::frame(frames::DATA, 0, id, &[b'x'; 65_535 / STREAMS as usize]);
            stream.write_all(&[frames::post(id, "/sleep/300"), part].concat())?;
        }
        Ok(stream)
    });
    let connections = connections.collect::<Outcome<Vec<_>>>()?;
    let mut statistics = serde_json::Value::Null;
    let over = wait_until("all requests are over", || {
        statistics = server.statistics(test).unwrap_or_default();
        let number = |path| number(&statistics, path).unwrap_or(u64::MAX);
        number("/requests") >= MOST && number("/requestsNow") == 0
    });
    ensure(over.is_ok(), statistics)?;
    stayed_below(&server, 64)?;
    drop(connections);
    answers(&server)?;
    server.end()
}

fn slow_headers_are_ended(test: &Test) -> Outcome {
    let server = serve(test, &[("http-header-timeout", "0.5"), ("http-idle-timeout", "600")])?;
    let begun = Instant::now();
    let mut slow = server.connect()?;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n")?;
    let mut silent = server.connect()?;
    answers(&server)?;
    let text = dribble(&mut slow)?;
    ensure(text.is_empty() || text.starts_with("HTTP/1.1 408 "), text)?;
    let took = begun.elapsed();
    ensure(
        took > Duration::from_millis(400) && took < Duration::from_secs(10),
        format!("{took:?}"),
    )?;
    // A client that never said anything gets no answer.
    ensure_eq(silent.read(&mut [0; 1])?, 0)?;
    // A later request of a connection has the same time. It begins with a byte after the response
    // to the one before.
    let mut later = server.connect()?;
    later.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n")?;
    let text = dribble(&mut later)?;
    ensure(text.starts_with("HTTP/1.1 200 ") && text.contains("HTTP/1.1 408 "), text)?;
    server.end()
}

/// Sends one more line of a head from time to time, until the server has ended the connection.
/// Returns what the server has sent.
fn dribble(stream: &mut TcpStream) -> Outcome<String> {
    let begun = Instant::now();
    let mut text = Vec::new();
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    while begun.elapsed() < Duration::from_secs(20) {
        let is_open = stream.write_all(b"x: y\r\n").is_ok();
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(String::from_utf8(text)?),
            Ok(length) => text.extend(&bytes[..length]),
            Err(_) if !is_open => return Ok(String::from_utf8(text)?),
            Err(_) => {}
        }
    }
    Err("the server goes on to wait".into())
}

fn a_slow_body_is_ended(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "0.5")])?;
    let mut slow = server.connect()?;
    slow.write_all(b"POST /consume HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")?;
    answers(&server)?;
    answer(slow)?.is(408)?;
    has(&server.statistics(test)?, "/timedOut", 1)?;
    wait_for(&server, test, "/instancesNow", 0)?;
    server.end()
}

fn an_idle_connection_is_closed(test: &Test) -> Outcome {
    let server = serve(test, &[("http-idle-timeout", "0.3")])?;
    let mut stream = server.connect()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let mut text = String::new();
    // Ends only when the server closes.
    stream.read_to_string(&mut text)?;
    ensure(text.starts_with("HTTP/1.1 200 ") && text.matches("HTTP/1.1").count() == 1, text)?;
    server.end()
}

fn ten_thousand_connections_keep_nobody_out(test: &Test) -> Outcome {
    const COUNT: usize = 10_000;
    let files = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(files);
    let more = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(files, more)?;
    if limit.maximum.is_some_and(|most| most < 2 * COUNT as u64) {
        return crate::harness::skip("this process may not open enough files");
    }
    let bundle =
        in_memory(test, 64, &[("http-header-timeout", "600"), ("http-idle-timeout", "600")])?;
    let server = start(bundle)?;
    // Some begin a request, and others say nothing.
    let connections = inside(&server.container, || {
        let mut connections = Vec::new();
        for number in 0..COUNT {
            let mut stream = TcpStream::connect("127.0.0.1:8080")?;
            if number % 2 == 0 {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ");
            }
            connections.push(stream);
        }
        Ok(connections)
    })?;
    answers(&server)?;
    let statistics = server.statistics(test)?;
    ensure(number(&statistics, "/connections")? > COUNT as u64 - 1, &statistics)?;
    ensure(number(&statistics, "/connectionsNow")? <= 1024, &statistics)?;
    stayed_below(&server, 64)?;
    drop(connections);
    answers(&server)?;
    server.end()
}

fn a_guest_that_traps_is_an_error(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for (path, said) in [
        ("/trap", "trap: wasm `unreachable` instruction executed"),
        ("/exit/3", "the guest exited with status 1"),
        ("/silent", "the guest returned and did not answer"),
        ("/error", "the guest answered with the error"),
    ] {
        server.get(path)?.is(500)?.says("500 Internal Server Error\n")?;
        let stderr = server.container.stderr()?;
        ensure(stderr.contains(&format!("rt-wasmtime: {said}")), format!("{path}: {stderr}"))?;
    }
    server.get("/status/103")?.is(500)?;
    answers(&server)?;
    has(&server.statistics(test)?, "/traps", 1)?;
    server.end()
}

fn a_response_that_is_cut_off_is_not_complete(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let answer = server.get("/trap-after")?.is(200)?;
    ensure_eq(answer.body.as_str(), "begun\n[cut off]")?;
    server.end()
}

fn a_guest_that_loops_is_ended(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "2")])?;
    let mut looping = server.connect()?;
    looping.write_all(get("/loop").as_bytes())?;
    wait_for(&server, test, "/instancesNow", 1)?;
    // Others get their turns meanwhile.
    for _ in 0..10 {
        let begun = Instant::now();
        server.get("/")?.is(200)?;
        ensure(begun.elapsed() < Duration::from_secs(1), format!("{:?}", begun.elapsed()))?;
    }
    has(&server.statistics(test)?, "/instancesNow", 1)?;
    answer(looping)?.is(504)?;
    has(&server.statistics(test)?, "/timedOut", 1)?;
    server.end()
}

fn many_guests_that_loop_hold_up_nobody(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "3"), ("http-requests", "20")])?;
    let looping = (0..19).map(|_| {
        let mut stream = server.connect()?;
        stream.write_all(get("/loop").as_bytes())?;
        Ok(stream)
    });
    let looping = looping.collect::<Outcome<Vec<_>>>()?;
    wait_for(&server, test, "/instancesNow", 19)?;
    answers(&server)?;
    for stream in looping {
        answer(stream)?.is(504)?;
    }
    server.end()
}

fn a_loop_after_the_response_is_ended(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "0.5")])?;
    let answer = server.get("/loop-after")?.is(200)?;
    ensure_eq(answer.body.as_str(), "begun\n[cut off]")?;
    wait_for(&server, test, "/instancesNow", 0)?;
    answers(&server)?;
    server.end()
}

fn a_guest_that_sleeps_too_long_is_ended(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "0.3")])?;
    server.get("/sleep/60000")?.is(504)?.says("504 Gateway Timeout\n")?;
    server.get("/sleep/10")?.is(200)?;
    server.end()
}

fn more_requests_than_may_run_wait(test: &Test) -> Outcome {
    let server = serve(test, &[("http-requests", "2")])?;
    let sleeping = (0..6).map(|_| {
        let mut stream = server.connect()?;
        stream.write_all(get("/sleep/100").as_bytes())?;
        Ok(stream)
    });
    for stream in sleeping.collect::<Outcome<Vec<_>>>()? {
        ensure(count(&server, test, "/instancesNow")? <= 2, "more than two")?;
        answer(stream)?.is(200)?.says("slept\n")?;
    }
    has(&server.statistics(test)?, "/instances", 6)?;
    server.end()
}

fn requests_that_wait_too_long_are_refused(test: &Test) -> Outcome {
    let server = serve(test, &[("http-requests", "1"), ("timeout", "1")])?;
    let mut busy = server.connect()?;
    busy.write_all(get("/sleep/60000").as_bytes())?;
    wait_for(&server, test, "/instancesNow", 1)?;
    // A request waits for half of its time.
    server.get("/")?.is(503)?.says("503 Service Unavailable\n")?;
    answer(busy)?.is(504)?;
    has(&server.statistics(test)?, "/refused", 1)?;
    answers(&server)?;
    server.end()
}

fn an_instance_has_its_share_of_memory(test: &Test) -> Outcome {
    let server = serve(test, &[("http-memory", "20000000")])?;
    let grown = server.get("/grow/1000")?.is(200)?.body;
    let mebibytes: u64 = grown.trim_end_matches(" MiB\n").parse()?;
    ensure((10..=19).contains(&mebibytes), grown)?;
    server.end()?;
    // Not even enough to begin with.
    let server = serve(test, &[("http-memory", "65536")])?;
    server.get("/")?.is(503)?;
    has(&server.statistics(test)?, "/refused", 1)?;
    server.end()
}

fn the_memory_of_all_is_limited(test: &Test) -> Outcome {
    let server = start(in_memory(test, 128, &[])?)?;
    let growing = (0..12).map(|_| {
        let mut stream = server.connect()?;
        stream.write_all(get("/grow/1000").as_bytes())?;
        Ok(stream)
    });
    let growing = growing.collect::<Outcome<Vec<_>>>()?;
    let mut most = 0;
    wait_until("all have grown", || {
        most = most.max(memory(&server).map_or(0, |it| it.0));
        count(&server, test, "/instancesNow").is_ok_and(|it| it == 0)
    })?;
    for stream in growing {
        let answer = answer(stream)?;
        ensure([200, 500, 503].contains(&answer.status), format!("{answer:?}"))?;
    }
    let (_, kills) = memory(&server)?;
    ensure(most > 32 << 20 && most <= 128 << 20 && kills == 0, format!("{most} {kills}"))?;
    // All of it is free again.
    let grown = server.get("/grow/1000")?.is(200)?.body;
    ensure(grown.trim_end_matches(" MiB\n").parse::<u64>()? >= 30, grown)?;
    server.end()
}

/// Each of them sends as much as the kernel takes.
fn a_container_is_not_filled_by_connections(test: &Test) -> Outcome {
    let server = start(in_memory(test, 128, &[("timeout", "5")])?)?;
    let full = (0..40).map(|_| {
        let mut stream = server.connect()?;
        stream.set_write_timeout(Some(Duration::from_millis(20)))?;
        stream.write_all(
            b"POST /sleep/2000 HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n",
        )?;
        pour(&mut stream, 10_000_000);
        Ok(stream)
    });
    let full = full.collect::<Outcome<Vec<_>>>()?;
    answers(&server)?;
    let (used, kills) = memory(&server)?;
    ensure(used <= 128 << 20 && kills == 0, format!("{used} {kills}"))?;
    drop(full);
    server.container.kill("KILL")?;
    server.container.wait()
}

fn a_client_that_does_not_read_is_ended(test: &Test) -> Outcome {
    let server = serve(test, &[("timeout", "0.5")])?;
    let mut stream = server.connect()?;
    stream.write_all(get("/large/1000000000").as_bytes())?;
    wait_for(&server, test, "/connectionsNow", 0)?;
    ensure(count(&server, test, "/bytesSent")? < 100 << 20, "it was sent")?;
    answers(&server)?;
    server.end()
}

fn a_client_that_goes_away_ends_its_guest(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let mut stream = server.connect()?;
    stream.write_all(get("/sleep/50000").as_bytes())?;
    wait_for(&server, test, "/instancesNow", 1)?;
    drop(stream);
    wait_for(&server, test, "/instancesNow", 0)?;
    has(&server.statistics(test)?, "/responses/4xx", 1)?;
    server.end()
}

/// What one request leaves in its memory, the next one does not find.
fn each_request_has_a_new_instance(test: &Test) -> Outcome {
    let server = serve(test, &[("http-memory", "20000000")])?;
    let first = server.get("/grow/1000")?.is(200)?.body;
    for _ in 0..5 {
        server.get("/grow/1000")?.is(200)?.says(&first)?;
    }
    has(&server.statistics(test)?, "/instances", 6)?;
    server.end()
}
