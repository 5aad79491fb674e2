//! Components (WASI 0.2), which wasmtime runs, beside modules, which WasmEdge runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::wasm::exiting;
use super::wasm_cache::{self, COMPILE, files, mode};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, WASMTIME, ensure, ensure_eq, wait_until,
};

super::tests! { "wasm_components":
    the_file_chooses_the_engine, a_handler_forces_an_engine, the_administrator_prefers_wasmtime_for_modules,
    is_compiled_once_before_its_first_start, a_long_first_start_is_told, a_component_without_native_code_is_an_error,
    a_slow_compiler_is_not_awaited_for_ever, the_articles_server_runs_as_it_is, exec_runs_components_and_modules_side_by_side,
    an_import_that_nobody_offers_is_an_error, a_component_that_is_no_command_is_an_error, a_broken_component_is_an_error, a_broken_cache_is_not_run, native_code_of_another_module_is_not_run,
    memory_is_told_of_by_events, a_component_is_limited_by_its_container, the_last_line_is_kept_when_a_signal_comes,
    ends_although_a_look_up_goes_on, a_moved_directory_of_the_kernel_is_not_preopened,
    a_directory_that_cannot_be_read_is_not_preopened, a_command_of_wasi_0_3_runs, a_command_of_wasi_0_3_gets_what_others_get,
    a_command_of_wasi_0_3_opens_no_file_of_the_kernel, a_command_of_wasi_0_3_has_the_same_limits, a_command_of_wasi_0_3_ends_with_a_signal,
    a_component_without_asynchronous_functions_is_compiled_as_before,
}

const HELLO: &str = "Hello from Wasm!\n";

/// How long a start waits for native code, at most, in seconds. Other tests compile too.
const TIMEOUT: &str = "run.oci.wasm.compile-timeout";

/// A bundle that runs a guest as a component, on a host with these settings for modules.
fn component<'a>(
    test: &'a Test,
    guest: &str,
    args: &[&str],
    settings: Value,
) -> Outcome<Bundle<'a>> {
    test.only_rt()?;
    let component = test.host.component(guest)?;
    wasm_cache::host_of(test, WASMTIME, settings)?;
    let program = format!("/{guest}.wasm");
    let bundle = test.module(b"")?.file(&program, fs::read(component)?)?;
    let bundle = bundle.args(&[&[program.as_str()], args].concat());
    Ok(bundle.annotation("run.oci.handler", "wasm").annotation(TIMEOUT, "300"))
}

/// The same, with the cache that most of these tests share.
pub(super) fn lazy<'a>(test: &'a Test, guest: &str, args: &[&str]) -> Outcome<Bundle<'a>> {
    component(
        test,
        guest,
        args,
        json!({ "cache": { "directory": test.host.folder.join("native") } }),
    )
}

/// The same, with a cache of its own.
fn alone<'a>(test: &'a Test, guest: &str) -> Outcome<Bundle<'a>> {
    component(test, guest, &[], json!({ "compile": "lazy" }))
}

/// The name and the version of the engine that runs a container.
fn engine(container: &Container<'_>) -> Outcome<String> {
    let state = container.state()?;
    Ok(state["annotations"]["run.oci.engine"].as_str().unwrap_or_default().to_owned())
}

/// Where people look: in the container's output.
fn a_long_first_start_is_told(test: &Test) -> Outcome {
    let bundle = alone(test, "large")?;
    let mut told = Vec::new();
    for _ in 0..2 {
        let begun = Instant::now();
        let container = bundle.create()?;
        let took = begun.elapsed();
        let said = fs::read_to_string(container.file("err"))?;
        let is_told = said.starts_with("rt: warning: `/large.wasm` waited ")
            && said.ends_with(": a later start on this host does not wait\n");
        // What else takes time may take a second too.
        let is_clear = took < Duration::from_secs(1) || took > Duration::from_secs(2);
        ensure(
            !is_clear || is_told == (took > Duration::from_secs(1)),
            format!("{took:?} {said}"),
        )?;
        told.push(is_told);
    }
    ensure(!told[1], "the second start has waited")
}

fn the_file_chooses_the_engine(test: &Test) -> Outcome {
    lazy(test, "hello", &[])?.run()?.success()?.stdout(HELLO)?;
    let component = lazy(test, "probe", &["sleep"])?.start()?;
    ensure(engine(&component)?.starts_with("wasmtime 48."), engine(&component)?)?;
    ensure_eq(mode(&component)?.as_str(), "aot")?;
    let module = test.wasm("probe", &["sleep"])?.annotation("run.oci.handler", "wasm");
    fs::copy(test.host.module("probe")?, module.rootfs().join("probe.wasm"))?;
    let module = module.start()?;
    ensure(engine(&module)?.starts_with("wasmedge 0."), engine(&module)?)
}

fn a_handler_forces_an_engine(test: &Test) -> Outcome {
    let output = lazy(test, "hello", &[])?.annotation("run.oci.handler", "wasmedge").run()?;
    let words = "a WebAssembly component, which the engine `wasmedge` does not run: \
                 it needs an engine such as `wasmtime`";
    output.fails_with(words)?;
    for code in [0, 7, 255] {
        let bundle = exiting(test, code)?.annotation("run.oci.handler", WASMTIME);
        bundle.run()?.code(i32::try_from(code)?)?;
        let module = bundle.clone().args(&["/module.wasm"]).create()?;
        ensure(engine(&module)?.starts_with("wasmtime 48."), engine(&module)?)?;
    }
    Ok(())
}

/// WasmEdge keeps the modules that import what wasmtime does not have.
fn the_administrator_prefers_wasmtime_for_modules(test: &Test) -> Outcome {
    let settings = json!({ "engines": ["wasmtime", "gone"] });
    for (guest, wanted) in [("hello", "wasmtime 48."), ("http-server", "wasmedge 0.")] {
        let module = component(test, "hello", &[], settings.clone())?;
        let module = module.annotation("run.oci.handler", "wasm");
        fs::copy(test.host.module(guest)?, module.rootfs().join("hello.wasm"))?;
        let module = module.create()?;
        ensure(engine(&module)?.starts_with(wanted), engine(&module)?)?;
    }
    let report = test.rt(["check"])?.stdout;
    ensure(report.contains("named by `engines` in the settings, but not installed"), report)
}

fn is_compiled_once_before_its_first_start(test: &Test) -> Outcome {
    let bundle = alone(test, "hello")?;
    let log = test.folder.join("log");
    let run = || -> Outcome<String> {
        bundle.write()?;
        let id = test.id();
        let log_flags = ["--log", &log.display().to_string(), "--log-level", "info"];
        let run = bundle.command_line("run", &id);
        let args = log_flags.iter().copied().chain(run.iter().map(String::as_str));
        test.rt(args)?.success()?.stdout(HELLO)?;
        let said = fs::read_to_string(&log)?;
        fs::remove_file(&log)?;
        Ok(said)
    };
    let said = run()?;
    ensure(
        said.contains("`/hello.wasm` waited ") && said.contains("until it was compiled"),
        &said,
    )?;
    ensure_eq(files(test, "so").len(), 1)?;
    let said = run()?;
    ensure(!said.contains("waited"), said)?;
    // A component that counts instructions is another one.
    bundle.clone().annotation("run.oci.wasm.fuel", "1000000").run()?.success()?.stdout(HELLO)?;
    ensure_eq(files(test, "so").len(), 2)
}

/// Nothing interprets it, whoever switched compiling off.
fn a_component_without_native_code_is_an_error(test: &Test) -> Outcome {
    let needs = "the engine `wasmtime` runs native code only, and `/hello.wasm` has none: ";
    let off = component(test, "hello", &[], json!({ "compile": "off" }))?;
    let output = off.run()?.code(1)?;
    output.fails_with(&format!("{needs}`compile` is `off` in the configuration of modules"))?;
    ensure_eq(test.rt(["list", "--quiet"])?.stdout.as_str(), "")?;
    let off = lazy(test, "hello", &[])?.annotation(COMPILE, "off");
    let output = off.run()?.code(1)?;
    output.fails_with(&format!("{needs}the annotation `{COMPILE}` is `off`")).map(drop)
}

fn a_slow_compiler_is_not_awaited_for_ever(test: &Test) -> Outcome {
    let bundle = alone(test, "http-server")?;
    let output = bundle.clone().annotation(TIMEOUT, "0.001").run()?.code(1)?;
    output.fails_with("it was not compiled in time")?;
    bundle.clone().annotation(TIMEOUT, "soon").run()?.fails_with(TIMEOUT)?;
    bundle.create().map(drop)
}

/// Its `main.rs` is written for any machine: `std::net::TcpListener`.
fn the_articles_server_runs_as_it_is(test: &Test) -> Outcome {
    let bundle = lazy(test, "article", &[])?;
    let container = bundle.start()?;
    let network = format!("--net=/proc/{}/ns/net", container.pid()?);
    let inside = |args: &[&str]| -> Outcome<Output> {
        let mut command = Command::new("nsenter");
        command.arg(&network).args(args).stdin(std::process::Stdio::null());
        Output::of(command)
    };
    inside(&["ip", "link", "set", "lo", "up"])?.success()?;
    let mut answer = String::new();
    wait_until("it answers", || {
        let asked = inside(&["busybox", "nc", "127.0.0.1", "8080"]);
        asked.is_ok_and(|output| {
            answer = output.stdout;
            output.code == Some(0)
        })
    })?;
    ensure(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\nHello from Wasm!"),
        answer,
    )?;
    container.rt(&["kill"])?.success()?;
    container.wait()
}

fn exec_runs_components_and_modules_side_by_side(test: &Test) -> Outcome {
    let bundle = lazy(test, "probe", &["sleep"])?;
    fs::copy(test.host.module("hello")?, bundle.rootfs().join("module.wasm"))?;
    fs::copy(test.host.component("hello")?, bundle.rootfs().join("component.wasm"))?;
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    for program in ["/module.wasm", "/component.wasm"] {
        test.rt(["exec", &container.id, program])?.success()?.stdout(HELLO)?;
    }
    container.rt(&["kill"])?.success()?;
    container.wait()
}

/// A component with an import of its own making, in text.
fn importing(name: &str) -> Outcome<Vec<u8>> {
    let text = format!(
        r#"(component
            (import "{name}" (instance $i (export "f" (func))))
            (core func $f (canon lower (func $i "f")))
            (core module $m (import "" "f" (func)) (func (export "run") (result i32) i32.const 0))
            (core instance $c (instantiate $m (with "" (instance (export "f" (func $f))))))
            (func $run (result (result)) (canon lift (core func $c "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    );
    Ok(wat::parse_str(text)?)
}

fn an_import_that_nobody_offers_is_an_error(test: &Test) -> Outcome {
    for name in [
        "acme:rockets/launch@1.0.0",
        "wasi:nn/graph@0.2.0-rc-2024-10-28",
        "spin:key-value/store@1.0.0",
    ] {
        let bundle = lazy(test, "hello", &[])?;
        fs::write(bundle.rootfs().join("hello.wasm"), importing(name)?)?;
        let output = bundle.run()?.code(126)?;
        output.fails_with(&format!(
            "rt-wasmtime: start `/hello.wasm`: component imports instance `{name}`"
        ))?;
    }
    Ok(())
}

fn a_component_that_is_no_command_is_an_error(test: &Test) -> Outcome {
    let bundle = lazy(test, "hello", &[])?;
    fs::write(bundle.rootfs().join("hello.wasm"), wat::parse_str("(component)")?)?;
    bundle.run()?.code(126)?.fails_with("wasi:cli/run").map(drop)
}

fn a_broken_component_is_an_error(test: &Test) -> Outcome {
    let good = fs::read(test.host.component("hello")?)?;
    let (half, head) = (&good[..good.len() / 2], &good[..8]);
    let flipped: Vec<u8> =
        good.iter().enumerate().map(|(at, byte)| if at == 20 { !byte } else { *byte }).collect();
    for (broken, code) in [(half, 1), (&flipped[..], 1), (head, 126)] {
        let bundle = lazy(test, "hello", &[])?;
        fs::write(bundle.rootfs().join("hello.wasm"), broken)?;
        let output = bundle.run()?.code(code)?;
        ensure_eq(output.stderr.lines().count(), 1)?;
    }
    ensure_eq(test.rt(["list", "--quiet"])?.stdout.as_str(), "")
}

/// wasmtime does not notice a changed byte, so `rt` has to.
fn a_broken_cache_is_not_run(test: &Test) -> Outcome {
    let bundle = alone(test, "hello")?;
    bundle.run()?.success()?;
    let file = wasm_cache::compiled(test)?;
    let good = fs::read(&file)?;
    let changed: Vec<u8> = good
        .iter()
        .enumerate()
        .map(|(at, byte)| if at == good.len() / 2 { !byte } else { *byte })
        .collect();
    for broken in [&good[..good.len() / 2], &changed, b"", b"\x7fELF"] {
        fs::write(&file, broken)?;
        bundle.run()?.success()?.stdout(HELLO)?;
    }
    Ok(())
}

/// Native code of another module, or of another build of the engine, under the name of this one.
fn native_code_of_another_module_is_not_run(test: &Test) -> Outcome {
    let bundle = alone(test, "hello")?;
    bundle.run()?.success()?.stdout(HELLO)?;
    let own = wasm_cache::compiled(test)?;
    let not_own = || -> Outcome<Vec<u8>> {
        let other = files(test, "so").into_iter().find(|file| *file != own).ok_or("no file")?;
        let bytes = fs::read(&other)?;
        fs::rename(other, &own)?;
        Ok(bytes)
    };
    let replaced = |foreign: &[u8]| -> Outcome {
        bundle.run()?.success()?.stdout(HELLO)?;
        ensure(fs::read(&own)? != foreign, "it was left there")
    };
    let probe = test.host.component("probe")?.display().to_string();
    test.rt(["wasm", "compile", &probe])?.success()?;
    replaced(&not_own()?)?;
    bundle.write()?;
    let script = wasm_cache::as_another_build(test, WASMTIME)?;
    let run = bundle.command_line("run", &test.id());
    wasm_cache::elsewhere(test, &script, run)?.success()?.stdout(HELLO)?;
    ensure_eq(files(test, "so").len(), 2)?;
    replaced(&not_own()?)
}

fn memory_is_told_of_by_events(test: &Test) -> Outcome {
    let container = lazy(test, "probe", &["sleep"])?.start()?;
    container.wait_for_output("ready\n")?;
    let module = super::events::stats(test, &container)?["data"]["wasm"].clone();
    ensure(module["engine"].as_str().is_some_and(|it| it.starts_with("wasmtime ")), &module)?;
    super::events::has_memory(&module)
}

fn a_component_is_limited_by_its_container(test: &Test) -> Outcome {
    super::needs(test, "memory")?;
    // Its stack overflows its memory, which is not larger than it was.
    let bundle = lazy(test, "probe", &["overflow", "100000000"])?.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20, "swap": 64 << 20 });
    });
    bundle.run()?.code(134)?.fails_with("rt-wasmtime: trap: ").map(drop)
}

/// The image's `/etc/hosts` is a fifo, so the look-up waits for a writer.
fn ends_although_a_look_up_goes_on(test: &Test) -> Outcome {
    let bundle = lazy(test, "probe", &["begin-to-resolve", "db.example"])?;
    let hosts = bundle.file("/etc/hosts", "")?;
    fs::remove_file(hosts.rootfs().join("etc/hosts"))?;
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        hosts.rootfs().join("etc/hosts"),
        rustix::fs::Mode::RUSR,
    )?;
    let container = hosts.start()?;
    container.wait()?;
    ensure_eq(container.stderr()?.as_str(), "")
}

/// A neighbour that shares the volume moves the directory of an inner mount, and leaves a link.
fn a_moved_directory_of_the_kernel_is_not_preopened(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    fs::create_dir_all(volume.join("inner"))?;
    let bind = |destination: &str, source: &Path| json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind"] });
    let bundle = lazy(test, "probe", &["ls", "/volume/inner"])?.mount(bind("/volume", &volume));
    let inner = test.folder.join("inner");
    fs::create_dir(&inner)?;
    let container = bundle.mount(bind("/volume/inner", &inner)).create()?;
    fs::rename(volume.join("inner"), volume.join("moved"))?;
    std::os::unix::fs::symlink("/proc", volume.join("inner"))?;
    container.start()?;
    container.wait()?;
    ensure_eq(container.stdout()?.as_str(), "")?;
    ensure(
        container.stderr()?.contains("preopen `/volume/inner`: it belongs to the kernel"),
        container.stderr()?,
    )
}

/// The owner of the rootfs lets others search it, and not read it. A module in WasmEdge does not
/// see it either.
fn a_directory_that_cannot_be_read_is_not_preopened(test: &Test) -> Outcome {
    for handler in ["wasm", "wasmedge"] {
        let bundle = lazy(test, "probe", &["read", "/file"])?.file("/file", "text")?;
        if handler == "wasmedge" {
            fs::copy(test.host.module("probe")?, bundle.rootfs().join("probe.wasm"))?;
        }
        fs::set_permissions(bundle.rootfs(), fs::Permissions::from_mode(0o711))?;
        let bundle = bundle.annotation("run.oci.handler", handler).edit(|config| {
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        });
        let output = bundle.run()?.code(1)?;
        ensure(output.stdout.starts_with("error: "), format!("{handler}: {}", output.stdout))?;
    }
    Ok(())
}

/// It has written a part of a line, and no more.
fn the_last_line_is_kept_when_a_signal_comes(test: &Test) -> Outcome {
    let container = lazy(test, "probe", &["prompt"])?.start()?;
    container.wait_for_output("name: ")?;
    container.rt(&["kill"])?.success()?;
    container.wait()
}

fn a_command_of_wasi_0_3_runs(test: &Test) -> Outcome {
    lazy(test, "command3", &[])?.run()?.success()?.stdout(HELLO)?;
    lazy(test, "command3", &["fail"])?.run()?.code(1)?;
    lazy(test, "command3", &["exit", "7"])?.run()?.code(7)?;
    let output = lazy(test, "command3", &["trap"])?.run()?.code(134)?;
    output.fails_with("rt-wasmtime: trap: wasm `unreachable` instruction executed")?;
    let bundle = lazy(test, "command3", &["sleep"])?;
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    ensure(engine(&container)?.starts_with("wasmtime 48."), engine(&container)?)?;
    ensure_eq(mode(&container)?.as_str(), "aot")?;
    // A component beside it, and another instance of itself.
    fs::copy(test.host.component("hello")?, bundle.rootfs().join("hello.wasm"))?;
    for program in ["/hello.wasm", "/command3.wasm"] {
        test.rt(["exec", &container.id, program])?.success()?.stdout(HELLO)?;
    }
    container.rt(&["kill"])?.success()?;
    container.wait()
}

fn a_command_of_wasi_0_3_gets_what_others_get(test: &Test) -> Outcome {
    let bundle = |args: &[&str]| -> Outcome<Bundle<'_>> {
        let bundle = lazy(test, "command3", args)?.file("/data/a", "content")?;
        Ok(bundle.file("/data/b", "")?.file("/secret", "secret")?.edit(|config| {
            config["process"]["env"] = json!(["NAME=value", "OTHER=x=y"]);
            config["process"]["cwd"] = json!("/data");
        }))
    };
    let says = |bundle: Bundle<'_>, text: &str| -> Outcome {
        bundle.run()?.success()?.stdout(text).map(drop)
    };
    says(bundle(&["variables"])?, "NAME=value\nOTHER=x=y\nPWD=/data\n")?;
    says(bundle(&["directory"])?, "/data")?;
    says(bundle(&["read", "/data/a"])?, "content")?;
    says(bundle(&["ls", "/data"])?, "a b")?;
    let writing = bundle(&["write", "/data/new"])?;
    says(writing.clone(), "ok\n")?;
    ensure_eq(fs::read_to_string(writing.rootfs().join("data/new"))?.as_str(), "written")?;
    // Only what is listed.
    let listed = |args: &[&str]| -> Outcome<Bundle<'_>> {
        Ok(bundle(args)?.annotation("run.oci.wasm.dirs", "/data:ro"))
    };
    says(listed(&["read", "/data/a"])?, "content")?;
    says(listed(&["write", "/data/other"])?, "error: ErrorCode::NotPermitted")?;
    says(listed(&["read", "/secret"])?, "error: no such directory")?;
    says(listed(&["read", "/data/../secret"])?, "error: ErrorCode::NotPermitted")
}

fn a_command_of_wasi_0_3_opens_no_file_of_the_kernel(test: &Test) -> Outcome {
    for path in ["/proc/self/mem", "/proc/version", "/sys/kernel/uevent_seqnum"] {
        let output = lazy(test, "command3", &["read", path])?.run()?.success()?;
        ensure_eq((path, output.stdout.as_str()), (path, "error: ErrorCode::Access"))?;
    }
    let output = lazy(test, "command3", &["ls", "/proc"])?.run()?.success()?;
    ensure_eq(output.stdout.as_str(), "error: ErrorCode::Access")
}

fn a_command_of_wasi_0_3_has_the_same_limits(test: &Test) -> Outcome {
    let looping = lazy(test, "command3", &["loop"])?;
    let slow = looping.clone().annotation("run.oci.wasm.timeout", "0.5");
    slow.run()?.code(124)?;
    let output = looping.annotation("run.oci.wasm.fuel", "1000000").run()?.code(134)?;
    output.fails_with("all fuel consumed by WebAssembly")?;
    super::needs(test, "memory")?;
    let limited = lazy(test, "command3", &["grow", "1000"])?.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20, "swap": 64 << 20 });
    });
    let output = limited.run()?.success()?;
    let got = output.stdout.trim_end_matches(" MiB\n").parse::<u64>();
    ensure(got.is_ok_and(|got| (16..64).contains(&got)), &output.stdout)
}

fn a_command_of_wasi_0_3_ends_with_a_signal(test: &Test) -> Outcome {
    let container = lazy(test, "command3", &["prompt"])?.start()?;
    container.wait_for_output("name: ")?;
    container.rt(&["kill"])?.success()?;
    container.wait()
}

/// An import of WASI 0.3 alone asks for the other form of native code.
fn a_component_without_asynchronous_functions_is_compiled_as_before(test: &Test) -> Outcome {
    for (version, good) in [("0.2.0", true), ("0.3.0", true), ("0.4.0", false)] {
        let text = format!(
            r#"(component
                (import "wasi:random/random@{version}" (instance $i (export "get-random-u64" (func (result u64)))))
                (core func $f (canon lower (func $i "get-random-u64")))
                (core module $m
                    (import "" "f" (func $f (result i64)))
                    (func (export "run") (result i32) call $f drop i32.const 0))
                (core instance $c (instantiate $m (with "" (instance (export "f" (func $f))))))
                (func $run (result (result)) (canon lift (core func $c "run")))
                (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
        );
        let bundle = lazy(test, "hello", &[])?;
        fs::write(bundle.rootfs().join("hello.wasm"), wat::parse_str(text)?)?;
        match good {
            true => bundle.run()?.success()?,
            false => bundle.run()?.code(126)?.fails_with("`wasi:random/random@0.4.0`")?,
        };
    }
    Ok(())
}
