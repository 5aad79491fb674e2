//! Handlers of requests: what one request, or one client, must not do to the others.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

use super::client::{Server, answer, answers, get, handler, start, with};
use super::newer::newer;
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, wait_until};
use crate::topics::wasm_spin;

/// The handlers of both versions, with these annotations.
fn both<'a>(test: &'a Test, annotations: &[(&str, &str)]) -> Outcome<[Bundle<'a>; 2]> {
    Ok([with(handler(test)?, annotations), newer(test, annotations)?])
}

/// Whoever writes to a client that has gone gets SIGPIPE. The kernel spares the first process of a
/// pid namespace, and a server need not be that.
pub(super) fn a_client_that_hangs_up_ends_nothing(test: &Test) -> Outcome {
    for bundle in both(test, &[])? {
        let server = start(bundle.edit(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|it| it["type"] != "pid");
        }))?;
        for turn in 0..100 {
            let mut stream = server.connect()?;
            stream.write_all(get("/large/100000000").as_bytes())?;
            // While the server writes.
            stream.read_exact(&mut vec![0; 1000 * turn + 1])?;
        }
        wait_until("no instance is left", || {
            server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(0))
        })?;
        answers(&server)?;
        server.end()?;
    }
    Ok(())
}

/// Sends a request, whose answer nobody waits for, and waits until it runs.
fn run<'a>(test: &Test, server: &Server<'a>, path: &str) -> Outcome<std::net::TcpStream> {
    let mut stream = server.connect()?;
    stream.write_all(get(path).as_bytes())?;
    wait_until("it runs", || {
        server.statistics(test).is_ok_and(|it| it["instancesNow"] == json!(1))
    })?;
    Ok(stream)
}

pub(super) fn directories_that_nobody_reads_hold_up_nobody(test: &Test) -> Outcome {
    let bundle = newer(test, &[("timeout", "20")])?.file("/data/file", "content")?;
    let server = start(bundle)?;
    let held = run(test, &server, "/hold/100")?;
    let begun = Instant::now();
    for _ in 0..3 {
        server.get("/read/data/file")?.is(200)?.says("content")?;
        server.get("/ls/data")?.is(200)?.says("file")?;
    }
    ensure(begun.elapsed() < Duration::from_secs(10), format!("{:?}", begun.elapsed()))?;
    drop(held);
    server.end()
}

pub(super) fn a_directory_is_read_as_a_whole(test: &Test) -> Outcome {
    let bundle = newer(test, &[])?.file("/data/file", "content")?;
    let many = bundle.rootfs().join("many");
    std::fs::create_dir(&many)?;
    for number in 0..3000 {
        std::fs::write(many.join(format!("{number:04}")), "")?;
    }
    let server = start(bundle)?;
    let names: Vec<String> = (0..3000).map(|number| format!("{number:04}")).collect();
    server.get("/ls/many")?.is(200)?.says(&names.join(" "))?;
    server.get("/ls/data")?.is(200)?.says("file")?;
    ensure(server.get("/ls/data/file")?.body.starts_with("error: "), "a file")?;
    server.end()
}

pub(super) fn a_fifo_holds_up_nobody(test: &Test) -> Outcome {
    for bundle in both(test, &[("timeout", "3")])? {
        let bundle = bundle.file("/data/file", "content")?;
        mknodat(CWD, bundle.rootfs().join("data/fifo"), FileType::Fifo, Mode::from(0o666), 0)?;
        std::os::unix::fs::symlink("fifo", bundle.rootfs().join("data/link"))?;
        let server = start(bundle)?;
        // As many as there are threads for files, and then some.
        let requests: Vec<_> = (0..20)
            .map(|number| {
                let mut stream = server.connect()?;
                let path = if number % 2 == 0 { "/read/data/fifo" } else { "/read/data/link" };
                stream.write_all(get(path).as_bytes())?;
                Ok(stream)
            })
            .collect::<Outcome<_>>()?;
        for stream in requests {
            let said = answer(stream)?.is(200)?.body;
            ensure(said.contains("PermissionDenied") || said.contains("Access"), said)?;
        }
        server.get("/read/data/file")?.says("content")?;
        server.get("/write/data/new")?.says("ok")?;
        server.end()?;
    }
    Ok(())
}

pub(super) fn what_the_host_keeps_for_a_guest_is_limited(test: &Test) -> Outcome {
    for bundle in both(test, &[])? {
        let server = start(bundle)?;
        server.get("/fields/500")?.is(200)?.says("500 fields\n")?;
        // More than any guest needs.
        server.get("/fields/5000")?.is(500)?;
        let said = server.container.stderr()?;
        ensure(said.contains("resource") && !said.contains("backtrace"), said)?;
        answers(&server)?;
        server.end()?;
    }
    let server = start(newer(test, &[])?)?;
    server.get("/random/100000")?.is(200)?.says("100000 bytes\n")?;
    server.get("/random/60000000")?.is(200)?.says("1048576 bytes\n")?;
    answers(&server)?;
    server.end()
}

pub(super) fn a_guests_error_is_cut(test: &Test) -> Outcome {
    let server = start(newer(test, &[])?)?;
    server.get("/long-error/1000000")?.is(500)?;
    server.get("/long-error/10000000")?.is(500)?;
    let said = server.container.stderr()?;
    ensure(said.contains("the guest answered with the error ") && said.len() < 1000, said)?;
    answers(&server)?;
    server.end()
}

/// A handler in text that has these core modules besides its own, and does not answer. Each line is
/// the content of one.
fn composed(modules: &[&str]) -> Outcome<Vec<u8>> {
    let mut inner = String::new();
    for content in modules {
        write!(
            inner,
            "(component $c (core module $m {content}) (core instance (instantiate $m)))"
        )?;
        write!(inner, "(instance (instantiate $c))")?;
        inner = inner.replace("$c", &format!("$c{}", inner.len()));
    }
    let text = format!(
        r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $req))
            (alias export $types "response-outparam" (type $out))
            {inner}
            (core module $main (func (export "handle") (param i32 i32)))
            (core instance $i (instantiate $main))
            (func $h (param "request" (own $req)) (param "response-out" (own $out))
                (canon lift (core func $i "handle")))
            {SHIM}
            (instance $s (instantiate $shim
                (with "req" (type $req)) (with "out" (type $out)) (with "h" (func $h))))
            (export "wasi:http/incoming-handler@0.2.0" (instance $s)))"#
    );
    Ok(wat::parse_str(text)?)
}

/// Gives an exported function the names of its types.
const SHIM: &str = r#"(component $shim
    (import "req" (type $req (sub resource))) (import "out" (type $out (sub resource)))
    (import "h" (func $h (param "request" (own $req)) (param "response-out" (own $out))))
    (export $r "incoming-request" (type $req)) (export $o "response-outparam" (type $out))
    (export "handle" (func $h)
        (func (param "request" (own $r)) (param "response-out" (own $o)))))"#;

fn of(test: &Test, component: Vec<u8>) -> Outcome<Bundle<'_>> {
    let bundle = handler(test)?;
    std::fs::write(bundle.rootfs().join("handler.wasm"), component)?;
    Ok(bundle)
}

/// As many parts as a tool that composes components makes of several programs.
pub(super) fn a_component_of_several_programs_runs(test: &Test) -> Outcome {
    let program = "(memory 1) (table 10 funcref)";
    let modules = [&[program; 8][..], &["(table 1 funcref)"; 16], &[""; 30]].concat();
    // Each request takes all that a component may have.
    let server = start(of(test, composed(&modules)?)?)?;
    for _ in 0..3 {
        server.get("/")?.is(500)?;
    }
    let said = server.container.stderr()?;
    ensure_eq(said.matches("the guest returned and did not answer").count(), 3)?;
    server.end()
}

pub(super) fn a_component_of_too_many_programs_is_an_error(test: &Test) -> Outcome {
    for (modules, what) in
        [([""; 70], "core module instances"), (["(memory 1)"; 70], "core module instances")]
    {
        let output = of(test, composed(&modules)?)?.run()?.code(126)?;
        output.fails_with(what)?;
    }
    let output = of(test, composed(&["(memory 1)"; 9])?)?.run()?.code(126)?;
    output.fails_with("memories")?;
    let output = of(test, composed(&["(table 1 funcref)"; 33])?)?.run()?.code(126)?;
    output.fails_with("tables").map(drop)
}

/// A handler in text, each of whose `count` inner components waits on a stack of its own.
fn nested(count: usize) -> Outcome<Vec<u8>> {
    let each = |form: &dyn Fn(usize) -> String| (0..count).map(form).collect::<String>();
    let instances = each(&|n| {
        format!(r#"(instance $i{n} (instantiate $inner (with "w" (func $clock "wait-for"))))"#)
    });
    let lowered = each(&|n| {
        format!(
            r#"(import "r{n}" (func $f{n} async)) (core func $r{n} (canon lower (func $f{n}) async))"#
        )
    });
    let imported = each(&|n| format!(r#"(import "" "r{n}" (func $r{n} (result i32)))"#));
    let called = each(&|n| format!("(drop (call $r{n}))"));
    let given = each(&|n| format!(r#"(export "r{n}" (func $r{n}))"#));
    let linked = each(&|n| format!(r#"(with "r{n}" (func $i{n} "run"))"#));
    let text = format!(
        r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $req))
            (alias export $types "response-outparam" (type $out))
            (import "wasi:io/poll@0.2.0" (instance $poll
                (export "pollable" (type $p (sub resource)))
                (export "[method]pollable.block" (func (param "self" (borrow $p))))))
            (alias export $poll "pollable" (type $pollable))
            (import "wasi:clocks/monotonic-clock@0.2.0" (instance $older
                (alias outer 1 $pollable (type $p)) (export "pollable" (type $pp (eq $p)))
                (export "subscribe-duration" (func (param "when" u64) (result (own $pp))))))
            (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
                (export "wait-for" (func async (param "how-long" u64)))))
            (component $inner
                (import "w" (func $w async (param "how-long" u64)))
                (core func $cw (canon lower (func $w)))
                (core module $m (import "" "w" (func $w (param i64)))
                    (func (export "run") i64.const 60000000000 call $w))
                (core instance $i (instantiate $m (with "" (instance (export "w" (func $cw))))))
                (func (export "run") async (canon lift (core func $i "run"))))
            {instances}
            (component $mainc
                (import "req" (type $req (sub resource))) (import "out" (type $out (sub resource)))
                (import "p" (type $p (sub resource)))
                (import "sub" (func $subf (param "when" u64) (result (own $p))))
                (import "blk" (func $blkf (param "self" (borrow $p))))
                {lowered}
                (core func $sub (canon lower (func $subf)))
                (core func $blk (canon lower (func $blkf)))
                (core module $main
                    (import "" "sub" (func $sub (param i64) (result i32)))
                    (import "" "blk" (func $blk (param i32)))
                    {imported}
                    (func (export "handle") (param i32 i32)
                        {called}
                        (call $blk (call $sub (i64.const 60000000000)))))
                (core instance $mi (instantiate $main (with "" (instance
                    (export "sub" (func $sub)) (export "blk" (func $blk)) {given}))))
                (func (export "handle")
                    (param "request" (own $req)) (param "response-out" (own $out))
                    (canon lift (core func $mi "handle"))))
            (instance $mm (instantiate $mainc
                (with "req" (type $req)) (with "out" (type $out)) (with "p" (type $pollable))
                (with "sub" (func $older "subscribe-duration"))
                (with "blk" (func $poll "[method]pollable.block")) {linked}))
            {SHIM}
            (instance $s (instantiate $shim
                (with "req" (type $req)) (with "out" (type $out)) (with "h" (func $mm "handle"))))
            (export "wasi:http/incoming-handler@0.2.0" (instance $s)))"#
    );
    Ok(wat::parse_str(text)?)
}

/// Each asynchronous function that waits has a stack.
pub(super) fn a_request_that_nests_does_not_take_all(test: &Test) -> Outcome {
    let bundle = wasm_spin::beside(test, nested(40)?)?;
    let bundle = with(bundle, &[("http-requests", "8"), ("timeout", "20")]);
    let server = super::client::start_at(bundle, 80)?;
    let nests = run(test, &server, "/beside")?;
    for _ in 0..3 {
        server.get("/")?.is(200)?.says("Hello from Spin!")?;
    }
    drop(nests);
    server.end()
}

pub(super) fn a_handler_of_another_version_is_an_error(test: &Test) -> Outcome {
    let text = r#"(component (instance $i) (export "wasi:http/handler@0.3.0-rc-2025-09-16" (instance $i)))"#;
    let output = of(test, wat::parse_str(text)?)?.run()?.code(126)?;
    output
        .fails_with("it exports `wasi:http/handler@0.3.0-rc-2025-09-16`, and this engine calls")
        .map(drop)
}
