//! `events`: the resources that a container uses, and the lack of memory.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use super::needs;
use crate::harness::{Container, Outcome, Test, ensure, ensure_eq, skip};

super::tests! { "events":
    stats_are_what_callers_parse, stats_know_the_limits, stats_tell_of_a_module, stats_grow_with_what_is_used, lines_come_until_the_end_of_the_container,
    a_killed_process_is_an_event, a_process_that_has_to_wait_for_memory_is_an_event, what_does_not_run_has_no_events,
}

pub(super) fn stats(test: &Test, container: &Container<'_>) -> Outcome<Value> {
    test.only_rt()?;
    let line = container.rt(&["events", "--stats"])?.success()?.stdout;
    ensure_eq(line.matches('\n').count(), 1)?;
    Ok(serde_json::from_str(&line)?)
}

/// go-runc reads all these numbers.
fn stats_are_what_callers_parse(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let event = stats(test, &container)?;
    ensure_eq(&event["type"], &json!("stats"))?;
    ensure_eq(&event["id"], &json!(container.id))?;
    let data = &event["data"];
    for path in [
        "/cpu/usage/total",
        "/cpu/usage/kernel",
        "/cpu/usage/user",
        "/cpu/throttling/periods",
        "/cpu/throttling/throttledPeriods",
        "/cpu/throttling/throttledTime",
        "/memory/cache",
        "/memory/usage/usage",
        "/memory/usage/limit",
        "/memory/swap/usage",
        "/memory/kernel/usage",
        "/memory/kernelTCP/usage",
        "/pids/current",
        "/pids/limit",
    ] {
        ensure(data.pointer(path).is_some_and(Value::is_u64), format!("{path} in {data}"))?;
    }
    for path in ["/blkio/ioServiceBytesRecursive", "/blkio/ioServicedRecursive"] {
        ensure(data.pointer(path).is_some_and(Value::is_array), format!("{path} in {data}"))?;
    }
    ensure(data["hugetlb"].is_object() && data["memory"]["raw"].is_object(), data)
}

/// The engine of a module, its mode, and the memory that the engine itself reports.
fn stats_tell_of_a_module(test: &Test) -> Outcome {
    let container = test.wasm("probe", &["sleep"])?.start()?;
    container.wait_for_output("ready\n")?;
    let module = stats(test, &container)?["data"]["wasm"].clone();
    ensure(
        module["engine"].as_str().is_some_and(|engine| engine.starts_with("wasmedge ")),
        &module,
    )?;
    ensure_eq(&module["mode"], &json!("interpreter"))?;
    has_memory(&module)?;
    let plain = test.sh("exec sleep 60")?.start()?;
    ensure(stats(test, &plain)?["data"]["wasm"].is_null(), "a program is taken for a module")
}

/// Checks the number of pages of a module's memory. The memory of a Rust program begins with 17
/// pages of 64 KiB: 16 for its stack of 1 MiB, and one more, which wasmtime maps from the native
/// code. The number is missing if the kernel does not support names of mappings.
pub(super) fn has_memory(module: &Value) -> Outcome {
    let pages = &module["memoryPages"];
    ensure(pages.is_null() || pages.as_u64().is_some_and(|pages| (16..64).contains(&pages)), pages)
}

fn stats_know_the_limits(test: &Test) -> Outcome {
    needs(test, "memory")?;
    needs(test, "pids")?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        config["linux"]["resources"]["pids"] = json!({ "limit": 33 });
    });
    let data = &stats(test, &bundle.start()?)?["data"];
    ensure_eq(&data["memory"]["usage"]["limit"], &json!(64 << 20))?;
    ensure_eq(&data["pids"], &json!({ "current": 1, "limit": 33 }))
}

fn stats_grow_with_what_is_used(test: &Test) -> Outcome {
    // With v2, the kernel counts time without a controller too.
    let container = test.sh("while :; do :; done")?.start()?;
    let total = || -> Outcome<u64> {
        Ok(stats(test, &container)?["data"]["cpu"]["usage"]["total"].as_u64().unwrap_or(0))
    };
    let first = total()?;
    crate::harness::wait_until("it has used 50 ms more", || {
        total().is_ok_and(|now| now >= first + 50_000_000)
    })
}

fn lines_come_until_the_end_of_the_container(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let mut events = test
        .command(["events", "--interval=50ms", &container.id])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(events.stdout.take().ok_or("no pipe")?).lines();
    for _ in 0..3 {
        let line: Value = serde_json::from_str(&lines.next().ok_or("no line")??)?;
        ensure_eq(&line["type"], &json!("stats"))?;
    }
    container.kill("KILL")?;
    ensure(events.wait()?.success(), "it failed at the end of the container")
}

fn a_killed_process_is_an_event(test: &Test) -> Outcome {
    out_of_memory(test, false)
}

/// With v1, a caller can ask the kernel not to kill.
fn a_process_that_has_to_wait_for_memory_is_an_event(test: &Test) -> Outcome {
    if test.host.lane == "v2" {
        return skip("v2 always kills");
    }
    out_of_memory(test, true)
}

fn out_of_memory(test: &Test, has_to_wait: bool) -> Outcome {
    test.only_rt()?;
    needs(test, "memory")?;
    // The shell continues after the kernel has killed its child.
    let script =
        "while ! test -e /go; do sleep 0.1; done; sh -c 'x=x; while :; do x=$x$x; done'; sleep 60";
    let bundle = test.sh(script)?.edit(|config| {
        config["linux"]["resources"]["memory"] =
            json!({ "limit": 16 << 20, "swap": 16 << 20, "disableOOMKiller": has_to_wait });
    });
    let container = bundle.start()?;
    let mut events =
        test.command(["events", "--interval=1h", &container.id]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(events.stdout.take().ok_or("no pipe")?).lines();
    std::thread::sleep(std::time::Duration::from_millis(300));
    std::fs::write(bundle.rootfs().join("go"), "")?;
    let line: Value = serde_json::from_str(&lines.next().ok_or("no line")??)?;
    container.kill("KILL")?;
    events.wait()?;
    ensure_eq(line, json!({ "type": "oom", "id": container.id }))
}

fn what_does_not_run_has_no_events(test: &Test) -> Outcome {
    test.only_rt()?;
    test.rt(["events", "nobody"])?.fails_with("events of `nobody`: container does not exist")?;
    let container = test.sh("true")?.start()?;
    container.wait()?;
    container.rt(&["events", "--stats"])?.fails_with("is not running")?;
    let container = test.sh("exec sleep 60")?.start()?;
    for wrong in ["0s", "5", "soon", "5000000000000000h", "2562048h"] {
        container.rt(&["events", "--interval", wrong])?.fails_with("`--interval`")?;
    }
    Ok(())
}
