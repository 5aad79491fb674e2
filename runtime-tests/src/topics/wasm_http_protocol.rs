//! Requests that are written wrongly, or so that two readers may understand them in two ways.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::wasm_http::client::{
    Server, answer, answers, begin_http_2, frames, get, has, next_frame, number, parse, serve,
    status_of,
};
use crate::harness::{Outcome, Test, ensure, ensure_eq, wait_until};

super::tests! { "wasm_http_protocol":
    a_request_with_two_lengths_is_refused, chunks_count_and_not_the_length, a_chunk_that_is_none_ends_the_request, a_header_on_two_lines_is_refused,
    a_request_needs_one_host, the_target_comes_before_the_host, old_requests_need_no_host, only_paths_are_targets,
    hop_by_hop_headers_do_not_reach_the_guest, garbage_is_refused, a_request_that_is_cut_off_reaches_nobody, half_a_body_is_not_taken_for_all,
    requests_of_http_2_that_are_reset_hold_up_nobody, http_2_has_limits_too, a_body_of_http_2_is_limited,
    slow_clients_of_http_2_are_ended, a_header_that_is_not_text_is_passed_on,
}

/// Sends a request after which another one might be smuggled: the second one must not be answered
/// on its own.
fn only_one(server: &Server<'_>, head: &str, body: &str, status: u16) -> Outcome<String> {
    let mut stream = server.connect()?;
    stream
        .write_all(format!("POST /consume HTTP/1.1\r\nhost: a\r\n{head}\r\n{body}").as_bytes())?;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes)?;
    ensure(text.matches("HTTP/1.1 ").count() == 1, &text)?;
    Ok(parse(text.as_bytes())?.is(status)?.body)
}

const SMUGGLED: &str = "GET /status/418 HTTP/1.1\r\nhost: a\r\n\r\n";

fn a_request_with_two_lengths_is_refused(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for lengths in [
        "content-length: 0\r\ncontent-length: 42\r\n",
        "content-length: 0, 42\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length:\r\n",
        "content-length : 5\r\n",
    ] {
        only_one(&server, lengths, SMUGGLED, 400)?;
    }
    has(&server.statistics(test)?, "/instances", 0)?;
    answers(&server)?;
    server.end()
}

/// RFC 9112 lets a server either refuse such a request or read the chunks.
fn chunks_count_and_not_the_length(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for head in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\nconnection: close\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\nconnection: close\r\n",
    ] {
        let body = only_one(&server, head, "4\r\nabcd\r\n0\r\n\r\n", 200)?;
        ensure_eq(body.as_str(), "4 bytes\n")?;
    }
    for head in [
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    ] {
        only_one(&server, head, &format!("0\r\n\r\n{SMUGGLED}"), 400)?;
    }
    server.end()
}

fn a_chunk_that_is_none_ends_the_request(test: &Test) -> Outcome {
    let server = serve(test, &[("http-idle-timeout", "1")])?;
    for chunk in [
        "x\r\n",
        "-1\r\nabc\r\n",
        "ffffffffffffffffff\r\nabc",
        "5;\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
    ] {
        let mut stream = server.connect()?;
        let head = "POST /consume HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}{chunk}{SMUGGLED}").as_bytes())?;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        ensure(
            !text.contains(" 418 ") && !text.contains("bytes\n0"),
            format!("{chunk:?}: {text}"),
        )?;
    }
    answers(&server)?;
    server.end()
}

fn a_header_on_two_lines_is_refused(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for header in [
        "x: a\r\n b\r\n",
        "x: a\r\n\tb\r\n",
        "x\r\n: a\r\n",
        " x: a\r\n",
        "x y: a\r\n",
        ": a\r\n",
        "x\0: a\r\n",
        "x: \0\r\n",
    ] {
        let answer = server
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\n{header}connection: close\r\n\r\n"))?;
        ensure(answer.status == 400, format!("{header:?}: {answer:?}"))?;
    }
    server.end()
}

fn a_request_needs_one_host(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for hosts in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a\r\nhost: b\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: \x7f\r\n",
        // What two programs may read as two hosts.
        "host: b@a\r\n",
        "host: a:80@b\r\n",
        "host: [::1]a\r\n",
        "host: a:+80\r\n",
    ] {
        let answer = server.send(format!("GET / HTTP/1.1\r\n{hosts}connection: close\r\n\r\n"))?;
        ensure(answer.status == 400, format!("{hosts:?}: {answer:?}"))?;
    }
    has(&server.statistics(test)?, "/instances", 0)?;
    server.end()
}

/// RFC 9112, "absolute-form".
fn the_target_comes_before_the_host(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let text =
        "GET http://real.example/request?x HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n";
    server.send(text)?.is(200)?.says("Method::Get \"real.example\" \"/request?x\"\n")?;
    server.end()
}

fn old_requests_need_no_host(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let answer = server.send("GET /request HTTP/1.0\r\n\r\n")?.is(200)?;
    answer.says("Method::Get \"127.0.0.1:8080\" \"/request\"\n")?;
    server.send("GET /request\r\n\r\n")?.is(400)?;
    server.end()
}

fn only_paths_are_targets(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let tail = "HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    server.send(format!("CONNECT other:80 {tail}"))?.is(501)?;
    for target in ["other:80", "a b", "\x01", ""] {
        server.send(format!("GET {target} {tail}"))?.is(400)?;
    }
    let long = "a".repeat(70_000);
    let answer = server.send(format!("GET /{long} {tail}"))?;
    ensure([414, 431].contains(&answer.status), answer.status)?;
    answers(&server)?;
    server.end()
}

fn hop_by_hop_headers_do_not_reach_the_guest(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let text = "GET /request HTTP/1.1\r\nhost: a\r\nconnection: close, x-secret\r\nkeep-alive: 5\r\n\
                upgrade: websocket\r\nproxy-authorization: x\r\nx-kept: 1\r\n\r\n";
    server.send(text)?.is(200)?.says("Method::Get \"a\" \"/request\"\nx-kept: 1\n")?;
    server.end()
}

fn garbage_is_refused(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
    ] {
        let mut stream = server.connect()?;
        stream.write_all(bytes)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        ensure(
            text.is_empty() || text.starts_with(b"HTTP/1.1 400 "),
            String::from_utf8_lossy(&text),
        )?;
    }
    answers(&server)?;
    has(&server.statistics(test)?, "/instances", 1)?;
    server.end()
}

fn a_request_that_is_cut_off_reaches_nobody(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let whole = get("/");
    for length in [1, 10, whole.len() - 2] {
        let mut stream = server.connect()?;
        stream.write_all(&whole.as_bytes()[..length])?;
    }
    answers(&server)?;
    has(&server.statistics(test)?, "/instances", 1)?;
    server.end()
}

fn half_a_body_is_not_taken_for_all(test: &Test) -> Outcome {
    let server = serve(test, &[("http-idle-timeout", "1")])?;
    for head in
        ["content-length: 10\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let mut stream = server.connect()?;
        stream.write_all(format!("POST /consume HTTP/1.1\r\nhost: a\r\n{head}").as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        ensure(!text.contains("4 bytes\n"), text)?;
    }
    // A client that goes away ends the guest.
    wait_until("no guest is left", || {
        server.statistics(test).is_ok_and(|it| number(&it, "/instancesNow").is_ok_and(|it| it == 0))
    })?;
    server.end()
}

/// CVE-2023-44487.
fn requests_of_http_2_that_are_reset_hold_up_nobody(test: &Test) -> Outcome {
    let server = serve(test, &[("http-idle-timeout", "1")])?;
    let mut stream = server.connect()?;
    begin_http_2(&mut stream)?;
    let cancel = 8_u32.to_be_bytes();
    for number in 0..20_000_u32 {
        let id = 2 * number + 1;
        let both = [frames::get(id), frames::frame(frames::RESET, 0, id, &cancel)].concat();
        // The server ends the connection at some time.
        if stream.write_all(&both).is_err() {
            break;
        }
    }
    answers(&server)?;
    let mut went_away = false;
    while let Ok((kind, _, _)) = next_frame(&mut stream) {
        went_away |= kind == frames::GO_AWAY;
    }
    ensure(went_away, "the connection went on")?;
    wait_until("no guest is left", || {
        server.statistics(test).is_ok_and(|it| number(&it, "/instancesNow").is_ok_and(|it| it == 0))
    })?;
    ensure(number(&server.statistics(test)?, "/instances")? < 5000, "every one ran")?;
    server.end()
}

fn http_2_has_limits_too(test: &Test) -> Outcome {
    let server = serve(test, &[("http-headers", "10"), ("http-idle-timeout", "1")])?;
    let mut stream = server.connect()?;
    begin_http_2(&mut stream)?;
    // Eleven headers of one letter each.
    let mut headers = vec![0x82, 0x86, 0x84, 0x41, 1, b'a'];
    for name in b'a'..=b'k' {
        headers.extend([0, 1, name, 1, b'x']);
    }
    stream.write_all(&frames::frame(frames::HEADERS, 0x5, 1, &headers))?;
    ensure_eq(status_of(&mut stream, 1)?, 431)?;
    // A list of headers without an end.
    let mut stream = server.connect()?;
    begin_http_2(&mut stream)?;
    stream.write_all(&frames::frame(frames::HEADERS, 0, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']))?;
    let more =
        frames::frame(9, 0, 1, &[&[0, 1, b'x', 0x7f, 0x81, 0x7f][..], &[b'y'; 16_000]].concat());
    for _ in 0..1000 {
        if stream.write_all(&more).is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    answers(&server)?;
    server.end()
}

fn a_body_of_http_2_is_limited(test: &Test) -> Outcome {
    let server = serve(test, &[("http-body", "1000")])?;
    let send = |data: usize, flags: u8| -> Outcome<u16> {
        let mut stream = server.connect()?;
        begin_http_2(&mut stream)?;
        let body = frames::frame(frames::DATA, flags, 1, &vec![b'x'; data]);
        stream.write_all(&[frames::post(1, "/consume"), body].concat())?;
        status_of(&mut stream, 1)
    };
    const END: u8 = 1;
    ensure_eq(send(1000, END)?, 200)?;
    ensure_eq(send(1001, END)?, 413)?;
    // Nobody waits for the rest of it.
    ensure_eq(send(1001, 0)?, 413)?;
    answers(&server)?;
    server.end()
}

fn slow_clients_of_http_2_are_ended(test: &Test) -> Outcome {
    let limits = [("http-header-timeout", "0.5"), ("http-idle-timeout", "600"), ("timeout", "0.5")];
    let server = serve(test, &limits)?;
    // A body that does not end.
    let mut slow = server.connect()?;
    begin_http_2(&mut slow)?;
    let half = frames::frame(frames::DATA, 0, 1, b"half");
    slow.write_all(&[frames::post(1, "/consume"), half].concat())?;
    // Headers that do not end.
    let mut headers = server.connect()?;
    begin_http_2(&mut headers)?;
    let begun = Instant::now();
    headers.write_all(&frames::frame(frames::HEADERS, 0, 1, &[0x82, 0x86, 0x84]))?;
    answers(&server)?;
    ensure_eq(status_of(&mut slow, 1)?, 408)?;
    let mut rest = Vec::new();
    let _ = headers.read_to_end(&mut rest);
    let took = begun.elapsed();
    ensure(took > Duration::from_millis(400), format!("{took:?}"))?;
    ensure(took < Duration::from_secs(10), format!("{took:?}"))?;
    has(&server.statistics(test)?, "/timedOut", 1)?;
    server.end()
}

fn a_header_that_is_not_text_is_passed_on(test: &Test) -> Outcome {
    let server = serve(test, &[])?;
    let mut stream = server.connect()?;
    stream.write_all(
        b"GET /request HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: \xff\xfe\r\n\r\n",
    )?;
    answer(stream)?.is(200)?.says("Method::Get \"a\" \"/request\"\nx: \u{fffd}\u{fffd}\n")?;
    server.end()
}
