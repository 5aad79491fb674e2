//! The rights of a module, if the annotations of its container limit them.

use std::fs;
use std::io::{Read, Write};

use serde_json::json;

use super::wasm::{by_wasmtime, exiting};
use crate::harness::{Outcome, Test, ensure, ensure_eq, wait_until};

super::tests! { "wasm_rights":
    sees_only_the_directories_that_are_listed, a_listed_directory_can_be_read_only, none_can_be_shown, a_directory_that_is_not_there_is_an_error, a_directory_that_is_a_link_is_an_error, a_directory_is_the_one_that_was_there_at_create,
    has_no_sockets_when_they_are_off, has_no_sockets_where_privileges_may_be_gained, exec_has_no_sockets_either, a_native_program_has_sockets,
    is_ended_when_its_time_is_over, is_ended_in_a_blocking_call, is_ended_when_nobody_reads_what_it_says, is_ended_when_its_fuel_is_burnt, is_counted_in_native_code_too, wrong_values_are_errors,
}

const SOCKETS: &str = "run.oci.wasm.sockets";
const DIRS: &str = "run.oci.wasm.dirs";
const TIMEOUT: &str = "run.oci.wasm.timeout";

fn sees_only_the_directories_that_are_listed(test: &Test) -> Outcome {
    let read = |path: &str| -> Outcome<String> {
        let bundle = test
            .wasm("probe", &["read", path])?
            .file("/data/file", "shown")?
            .file("/etc/file", "hidden")?
            .annotation(DIRS, "/data");
        Ok(bundle.run()?.stdout)
    };
    ensure_eq(read("/data/file")?.as_str(), "shown")?;
    for path in ["/etc/file", "/data/../etc/file", "/probe.wasm"] {
        let seen = read(path)?;
        ensure(seen.starts_with("error: "), format!("{path}: {seen}"))?;
    }
    Ok(())
}

fn a_listed_directory_can_be_read_only(test: &Test) -> Outcome {
    let write = |path: &str| -> Outcome<String> {
        let bundle = test.wasm("probe", &["write", path, "x"])?.annotation(DIRS, "/fixed:ro,/own");
        for folder in ["fixed", "own"] {
            fs::create_dir(bundle.rootfs().join(folder))?;
        }
        Ok(bundle.run()?.stdout)
    };
    ensure_eq(write("/own/file")?.as_str(), "")?;
    ensure(write("/fixed/file")?.starts_with("error: "), "it was written")
}

fn none_can_be_shown(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["ls", "/"])?.annotation(DIRS, "");
    ensure(bundle.run()?.stdout.starts_with("error: "), "it saw the root")
}

fn a_directory_that_is_not_there_is_an_error(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.annotation(DIRS, "/none");
    bundle
        .try_create(&test.id())?
        .fails_with("`run.oci.wasm.dirs`: `/none`: it is not a directory")
        .map(drop)
}

/// By such a link, an image could show its root in the place of a directory of data.
fn a_directory_that_is_a_link_is_an_error(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.annotation(DIRS, "/data");
    std::os::unix::fs::symlink("/", bundle.rootfs().join("data"))?;
    bundle
        .try_create(&test.id())?
        .fails_with("`run.oci.wasm.dirs`: `/data`: it leads elsewhere")
        .map(drop)
}

/// Until `start`, a neighbour who shares a volume could exchange the directory.
fn a_directory_is_the_one_that_was_there_at_create(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["read", "/vol/etc/file"])?.annotation(DIRS, "/vol/etc");
    let bundle = bundle.file("/vol/etc/file", "listed\n")?.file("/etc/file", "secret\n")?;
    let container = bundle.create()?;
    fs::rename(bundle.rootfs().join("vol"), bundle.rootfs().join("old"))?;
    std::os::unix::fs::symlink("/", bundle.rootfs().join("vol"))?;
    container.start()?;
    container.wait()?;
    ensure_eq(container.stdout()?.as_str(), "listed\n")
}

/// The guest's library panics if it gets no socket.
fn has_no_socket(output: &crate::harness::Output) -> Outcome {
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure(output.code != Some(0) && !said.contains("ready"), said)
}

fn has_no_sockets_when_they_are_off(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["accept", "8080"])?.annotation(SOCKETS, "off");
    has_no_socket(&bundle.run()?)
}

/// Without `noNewPrivileges`, the filter must be loaded before init gives up its privileges.
fn has_no_sockets_where_privileges_may_be_gained(test: &Test) -> Outcome {
    let bundle = test
        .wasm("probe", &["accept", "8080"])?
        .annotation(SOCKETS, "off")
        .edit(|config| config["process"]["noNewPrivileges"] = json!(false));
    has_no_socket(&bundle.run()?)
}

fn exec_has_no_sockets_either(test: &Test) -> Outcome {
    let container = test.wasm("probe", &["sleep"])?.annotation(SOCKETS, "off").start()?;
    has_no_socket(&test.rt(["exec", &container.id, "/probe.wasm", "accept", "8080"])?)
}

/// The annotation is for modules. In a pod, a native program may have the same annotations, and
/// keeps its sockets.
fn a_native_program_has_sockets(test: &Test) -> Outcome {
    test.only_rt()?;
    // `ip` opens a Netlink socket.
    let bundle = test
        .linux(&["/bin/ip", "address"])?
        .annotation("run.oci.handler", "wasm")
        .annotation(SOCKETS, "off");
    let output = bundle.run()?.success()?;
    ensure(output.stdout.contains("127.0.0.1"), output.stdout)
}

fn is_ended_when_its_time_is_over(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["busy"])?.annotation(TIMEOUT, "0.3");
    bundle.run()?.code(124)?.fails_with(": its time is over").map(drop)
}

fn is_ended_in_a_blocking_call(test: &Test) -> Outcome {
    let container = test.wasm("probe", &["cat"])?.annotation(TIMEOUT, "0.3");
    let id = test.id();
    container.write()?;
    let mut command = test.command(container.command_line("run", &id));
    let mut child =
        command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().ok_or("no pipe")?;
    wait_until("it has ended", || child.try_wait().is_ok_and(|end| end.is_some()))?;
    ensure_eq(child.wait()?.code(), Some(124))?;
    ensure(input.write_all(b"x").is_err(), "it reads still")?;
    let mut said = String::new();
    child.stderr.take().ok_or("no pipe")?.read_to_string(&mut said)?;
    let engine = if by_wasmtime(test) { "rt-wasmtime" } else { "rt-wasmedge" };
    ensure_eq(said, format!("{engine}: its time is over\n"))
}

/// The engine's last line has no place in the pipe.
fn is_ended_when_nobody_reads_what_it_says(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["busy"])?.annotation(TIMEOUT, "0.3");
    bundle.write()?;
    let (_reader, writer) = std::io::pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    while (&writer).write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false)?;
    let mut run = test.command(bundle.command_line("run", &test.id()));
    let mut run = run.stderr(writer).spawn()?;
    wait_until("it has ended", || run.try_wait().is_ok_and(|end| end.is_some()))?;
    ensure_eq(run.wait()?.code(), Some(124))
}

const FUEL: &str = "run.oci.wasm.fuel";

/// The engine's message.
fn fuel_is_burnt(test: &Test) -> &'static str {
    if by_wasmtime(test) {
        "rt-wasmtime: trap: all fuel consumed by WebAssembly"
    } else {
        "rt-wasmedge: trap: cost limit exceeded"
    }
}

/// A trap ends the module, however long the module takes, and not before its fuel is used up.
fn is_ended_when_its_fuel_is_burnt(test: &Test) -> Outcome {
    let busy = test.wasm("probe", &["busy"])?.annotation(FUEL, "5000000");
    busy.run()?.code(134)?.fails_with(fuel_is_burnt(test))?;
    let hello = test.wasm("hello", &[])?.annotation(FUEL, "5000000");
    hello.run()?.success()?.stdout("Hello from Wasm!\n")?;
    exiting(test, 7)?.annotation(FUEL, "5000000").run()?.code(7)?;
    let container = test.wasm("probe", &["sleep"])?.annotation(FUEL, "5000000").start()?;
    test.rt(["exec", &container.id, "/probe.wasm", "busy"])?.code(134)?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn is_counted_in_native_code_too(test: &Test) -> Outcome {
    super::wasm_cache::host(test, json!({ "compile": "eager" }))?;
    let busy = test.wasm("probe", &["busy"])?;
    let container = busy.clone().annotation(FUEL, "100000000000").start()?;
    container.wait_for_output("ready\n")?;
    ensure_eq(super::wasm_cache::mode(&container)?.as_str(), "aot")?;
    busy.annotation(FUEL, "5000000").run()?.code(134)?.fails_with(fuel_is_burnt(test))?;
    // `rt` does not use native code that was compiled without the counter.
    test.wasm("probe", &["args"])?.run()?.success()?;
    ensure_eq(super::wasm_cache::files(test, "so").len(), 2)
}

fn wrong_values_are_errors(test: &Test) -> Outcome {
    for (key, value, words) in [
        (SOCKETS, "no", "`run.oci.wasm.sockets`: `no` is neither `on` nor `off`"),
        (DIRS, "data", "`run.oci.wasm.dirs`: `data`: not an absolute path"),
        (DIRS, "/proc", "never shown to a module"),
        (FUEL, "1k", "`1k` is not a number of instructions"),
        (TIMEOUT, "1h", "`1h` is not a number of seconds"),
        ("run.oci.wasm.socket", "off", "the annotation `run.oci.wasm.socket`: rt knows"),
    ] {
        let bundle = test.wasm("hello", &[])?.annotation(key, value);
        bundle.try_create(&test.id())?.fails_with(words)?;
    }
    Ok(())
}
