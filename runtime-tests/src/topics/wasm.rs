//! A Wasm module is a process like any other.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Bundle, Container, Outcome, Output, Test, WASMTIME, ensure, ensure_eq, executable_is_read_only,
    has_a_changeable_mount, skip, wait_until,
};

super::tests! { "wasm":
    the_kernels_files_are_out_of_reach, a_start_function_is_part_of_the_run, every_exit_code_is_kept, a_deep_recursion_of_calls_is_a_trap, what_is_no_command_is_told, takes_three_hundred_preopens, a_directory_with_a_colon_is_told, a_small_address_space_is_told, is_ended_by_each_signal,
    prints_to_standard_output, gets_its_arguments, gets_its_environment_in_order, gets_no_variable_that_nobody_has_configured, gets_none_of_the_callers_environment,
    gets_its_working_directory_as_pwd, reads_standard_input, passes_on_its_exit_code, a_trap_is_134_with_its_text,
    a_deep_recursion_is_a_trap, sigterm_ends_it_at_once, sigint_ends_it_at_once, sigkill_ends_it, a_signal_before_the_start_ends_it, a_signal_right_after_the_start_is_not_lost,
    an_unknown_import_is_named, a_module_without_start_is_refused, reads_and_writes_its_rootfs,
    a_read_only_root_is_read_only, a_read_only_mount_is_read_only, a_writable_mount_in_a_read_only_root_is_writable,
    cannot_leave_its_rootfs, runs_as_its_user, an_image_cannot_inject_libraries, the_engine_cannot_be_written_to,
    serves_http, resolves_names_from_etc_hosts, asks_the_server_in_resolv_conf, runs_without_any_capability, leaves_descriptors_behind,
    prints_nothing_of_its_own, native_sections_are_not_executed, runs_where_openat2_is_forbidden, is_told_of_by_state_and_list,
    takes_ten_thousand_arguments, binds_a_low_port_with_the_capability_only, has_a_terminal,
    what_the_engine_says_is_one_line, a_module_of_an_enormous_size_is_refused, an_environment_of_an_enormous_size_is_refused,
}

/// Whether the tests ask for wasmtime, which runs native code only, and modules as components.
pub(super) fn by_wasmtime(test: &Test) -> bool {
    test.host.handler == WASMTIME
}

/// Skips a test of a module that is not compiled.
fn only_where_it_interprets(test: &Test) -> Outcome {
    if by_wasmtime(test) { skip("wasmtime interprets nothing") } else { Ok(()) }
}

fn prints_to_standard_output(test: &Test) -> Outcome {
    test.wasm("hello", &[])?.run()?.success()?.stdout("Hello from Wasm!\n").map(drop)
}

fn gets_its_arguments(test: &Test) -> Outcome {
    let output =
        test.wasm("probe", &["args", "a b", "", "ä", "--dir=x", "--"])?.run()?.success()?;
    output.stdout("/probe.wasm\nargs\na b\n\nä\n--dir=x\n--\n").map(drop)
}

fn gets_its_environment_in_order(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["env"])?;
    let bundle = bundle.edit(|config| {
        config["process"]["env"] = json!(["B=2", "A=1=1", "EMPTY=", "HOME=/h", "ä=ö"]);
    });
    bundle.run()?.success()?.stdout("B=2\nA=1=1\nEMPTY=\nHOME=/h\nä=ö\n").map(drop)
}

/// With no variable, one and several, and also for `exec`.
fn gets_no_variable_that_nobody_has_configured(test: &Test) -> Outcome {
    for env in [json!([]), json!(["ONE=1"]), json!(["A=a", "PATH=/", "C=", "D=d d"])] {
        let lines = env.as_array().into_iter().flatten().filter_map(|variable| variable.as_str());
        let lines: String = lines.map(|variable| format!("{variable}\n")).collect();
        let bundle = test.wasm("probe", &["env"])?;
        let bundle = bundle.edit(|config| config["process"]["env"] = env.clone());
        bundle.run()?.success()?.stdout(&lines)?;
        // A module cannot use the sockets of a service manager or of a caller, so it must not see
        // them.
        let manager = std::os::unix::net::UnixDatagram::bind(test.folder.join("manager"))?;
        let mut command = test.command(bundle.command_line("run", &test.id()));
        command.env("NOTIFY_SOCKET", test.folder.join("manager"));
        Output::of(command)?.success()?.stdout(&lines)?;
        drop(manager);
        fs::remove_file(test.folder.join("manager"))?;
        let container = bundle.args(&["/probe.wasm", "sleep"]).start()?;
        test.rt(["exec", &container.id, "/probe.wasm", "env"])?.success()?.stdout(&lines)?;
    }
    Ok(())
}

fn gets_none_of_the_callers_environment(test: &Test) -> Outcome {
    let output = test.wasm("probe", &["env"])?.run()?.success()?;
    ensure(!output.stdout.contains("CARGO") && !output.stdout.contains("RT_"), output.stdout)
}

fn gets_its_working_directory_as_pwd(test: &Test) -> Outcome {
    let output = test
        .wasm("probe", &["env"])?
        .edit(|config| config["process"]["cwd"] = json!("/new/folder"))
        .run()?
        .success()?;
    ensure(output.stdout.contains("\nPWD=/new/folder\n"), output.stdout)
}

fn reads_standard_input(test: &Test) -> Outcome {
    test.wasm("probe", &["cat"])?.run_with("some\ntext")?.success()?.stdout("some\ntext").map(drop)
}

fn passes_on_its_exit_code(test: &Test) -> Outcome {
    for code in [0, 1, 7, 134, 255] {
        exiting(test, code)?.run()?.code(i32::try_from(code)?)?;
    }
    exiting(test, 256)?.run()?.code(0).map(drop)
}

/// A module that ends with this code, whatever its arguments are. Rust's standard library for WASI
/// 0.2 knows success and failure only, so this is never a component.
pub(super) fn exiting(test: &Test, code: u32) -> Outcome<Bundle<'_>> {
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func (export "_start") (call $exit (i32.const {code}))))"#
    );
    test.module(&wat::parse_str(text)?)
}

fn a_trap_is_134_with_its_text(test: &Test) -> Outcome {
    for (trap, text) in
        [("unreachable", "unreachable"), ("out-of-bounds", "out of bounds memory access")]
    {
        let output = test.wasm("probe", &[trap])?.run()?.code(134)?.stdout("")?;
        let words = output.stderr.split_once(": trap: ").map(|(_, words)| words);
        ensure(words.is_some_and(|words| words.contains(text)), &output.stderr)?;
    }
    Ok(())
}

fn a_deep_recursion_is_a_trap(test: &Test) -> Outcome {
    let output = test.wasm("probe", &["overflow", "100000000"])?.run()?.code(134)?;
    ensure(output.stderr.contains("trap: ") && output.stderr.len() < 2000, output.stderr)
}

/// Sends a signal to a guest that is busy, asleep or waiting for a connection. The guest must end
/// at once, with 128 plus the signal's number.
fn ends_by(test: &Test, signal: &str, code: i32) -> Outcome {
    for waiting in [&["busy"][..], &["sleep"], &["accept", "8080"]] {
        let bundle = test.wasm("probe", waiting)?;
        bundle.write()?;
        let folder = bundle.folder.display().to_string();
        let id = test.id();
        // `run` in the foreground returns the exit code.
        let mut run = test
            .command(["run", "--bundle", &folder, &id])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        run.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut ready)?;
        ensure_eq(&ready, b"ready\n")?;
        let start = Instant::now();
        test.rt(["kill", &id, signal])?.success()?;
        ensure_eq(run.wait()?.code(), Some(code))?;
        ensure(
            start.elapsed() < Duration::from_secs(5),
            format!("{waiting:?} took {:?}", start.elapsed()),
        )?;
    }
    Ok(())
}

fn sigterm_ends_it_at_once(test: &Test) -> Outcome {
    ends_by(test, "TERM", 143)
}

fn sigint_ends_it_at_once(test: &Test) -> Outcome {
    ends_by(test, "INT", 130)
}

fn sigkill_ends_it(test: &Test) -> Outcome {
    ends_by(test, "KILL", 137)
}

fn a_signal_before_the_start_ends_it(test: &Test) -> Outcome {
    for signal in ["TERM", "INT", "HUP"] {
        let container = test.wasm("probe", &["sleep"])?.create()?;
        container.kill(signal)?;
        container.wait()?;
        container.rt(&["start"])?.fails_with("has stopped")?;
    }
    Ok(())
}

fn a_signal_right_after_the_start_is_not_lost(test: &Test) -> Outcome {
    for _ in 0..20 {
        let container = test.wasm("probe", &["sleep"])?.start()?;
        container.kill("TERM")?;
        container.wait()?;
        container.delete()?;
    }
    Ok(())
}

fn an_unknown_import_is_named(test: &Test) -> Outcome {
    let text = r#"(module (import "env" "missing" (func)) (func (export "_start")))"#;
    let output = test.module(&wat::parse_str(text)?)?.run()?;
    if by_wasmtime(test) {
        return output
            .code(1)?
            .fails_with("imports `missing` of `env`, which the engine `wasmtime` does not have")
            .map(drop);
    }
    output.code(126)?.fails_with("unknown import `missing` from `env`").map(drop)
}

fn a_module_without_start_is_refused(test: &Test) -> Outcome {
    let output =
        test.module(&wat::parse_str(r#"(module (memory (export "memory") 1))"#)?)?.run()?;
    output.code(if by_wasmtime(test) { 1 } else { 126 })?.fails_with("`_start`").map(drop)
}

fn reads_and_writes_its_rootfs(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["read", "/text"])?.file("/text", "hello")?;
    bundle.run()?.success()?.stdout("hello")?;
    let bundle = test.wasm("probe", &["write", "/new", "written"])?;
    bundle.run()?.success()?;
    ensure_eq(fs::read_to_string(bundle.rootfs().join("new"))?.as_str(), "written")
}

const CHANGES: [&[&str]; 5] = [
    &["write", "FOLDER/new", "x"],
    &["append", "FOLDER/old", "x"],
    &["remove", "FOLDER/old"],
    &["rename", "FOLDER/old", "FOLDER/new"],
    &["mkdir", "FOLDER/new"],
];

/// Every change below a directory of the container is refused.
fn refuses_changes(
    test: &Test,
    folder: &str,
    prepare: impl Fn(Bundle<'_>) -> Outcome<Bundle<'_>>,
) -> Outcome {
    for change in CHANGES {
        let words: Vec<String> = change.iter().map(|word| word.replace("FOLDER", folder)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = prepare(test.wasm("probe", &words)?)?.run()?;
        ensure(
            output.code == Some(1) && output.stdout.starts_with("error: "),
            format!("{change:?}: {output:?}"),
        )?;
    }
    let folder = format!("{folder}/old");
    prepare(test.wasm("probe", &["read", &folder])?)?.run()?.success()?.stdout("old").map(drop)
}

fn a_read_only_root_is_read_only(test: &Test) -> Outcome {
    refuses_changes(test, "", |bundle| {
        bundle.edit(|config| config["root"]["readonly"] = json!(true)).file("/old", "old")
    })
}

fn a_read_only_mount_is_read_only(test: &Test) -> Outcome {
    let host = test.folder.join("volume");
    fs::create_dir(&host)?;
    fs::write(host.join("old"), "old")?;
    refuses_changes(test, "/volume", |bundle| {
        Ok(bundle
            .mount(json!({ "destination": "/volume", "source": host, "options": ["bind", "ro"] })))
    })?;
    ensure_eq(fs::read_dir(host)?.count(), 1)
}

fn a_writable_mount_in_a_read_only_root_is_writable(test: &Test) -> Outcome {
    let host = test.folder.join("volume");
    fs::create_dir(&host)?;
    let bundle = test.wasm("probe", &["write", "/volume/new", "x"])?;
    let bundle = bundle.edit(|config| config["root"]["readonly"] = json!(true));
    fs::create_dir(bundle.rootfs().join("volume"))?;
    bundle
        .mount(json!({ "destination": "/volume", "source": host, "options": ["bind"] }))
        .run()?
        .success()?;
    ensure(host.join("new").exists(), "not written")
}

fn cannot_leave_its_rootfs(test: &Test) -> Outcome {
    fs::write(test.folder.join("secret"), "secret")?;
    let outside = test.folder.join("secret");
    for path in ["/../../secret", "/link"] {
        let bundle = test.wasm("probe", &["read", path])?;
        std::os::unix::fs::symlink(&outside, bundle.rootfs().join("link"))?;
        let output = bundle.run()?;
        ensure(
            output.code == Some(1) && !output.stdout.contains("secret\n"),
            format!("{path}: {output:?}"),
        )?;
    }
    Ok(())
}

fn runs_as_its_user(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["write", "/tmp/new", "x"])?;
    fs::create_dir(bundle.rootfs().join("tmp"))?;
    std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(1000), Some(1000))?;
    let bundle =
        bundle.edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    bundle.run()?.success()?;
    let made = fs::metadata(bundle.rootfs().join("tmp/new"))?;
    ensure_eq(std::os::unix::fs::MetadataExt::uid(&made), 1000)?;
    // The engine does not run a module that the user may not read.
    let bundle = test
        .wasm("hello", &[])?
        .edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    fs::set_permissions(
        bundle.rootfs().join("hello.wasm"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )?;
    bundle.try_create(&test.id())?.fails_with("permission denied").map(drop)
}

/// The image contains every file by which the C library of a dynamic program would load code. The
/// engine must not look at them.
fn an_image_cannot_inject_libraries(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["resolve", "name.example"])?;
    let evil = "not a library: loading it would be an error on standard error";
    let bundle = bundle
        .file("/etc/ld.so.preload", "/evil.so\n")?
        .file("/evil.so", evil)?
        .file("/etc/nsswitch.conf", "hosts: evil files\n")?
        .file("/lib/x86_64-linux-gnu/libnss_evil.so.2", evil)?
        .file("/lib/x86_64-linux-gnu/libc.so.6", evil)?
        .file("/lib/libgcc_s.so.1", evil)?
        .file("/usr/lib/wasmedge/libwasmedgePluginEvil.so", evil)?
        .file("/.wasmedge/plugin/libwasmedgePluginEvil.so", evil)?
        .file("/etc/hosts", "10.1.2.3 name.example\n")?;
    let bundle = bundle.edit(|config| {
        config["process"]["env"] = json!([
            "LD_PRELOAD=/evil.so",
            "LD_LIBRARY_PATH=/lib",
            "LD_AUDIT=/evil.so",
            "GCONV_PATH=/",
            "LOCPATH=/",
            "HOME=/",
            "WASMEDGE_PLUGIN_PATH=/.wasmedge/plugin",
        ]);
    });
    let output = bundle.run()?.success()?;
    ensure_eq(output.stderr.as_str(), "")?;
    ensure(output.stdout.contains("10.1.2.3"), output.stdout)
}

fn the_engine_cannot_be_written_to(test: &Test) -> Outcome {
    let container = waiting(test)?;
    let engine = fs::read_link(format!("/proc/{}/exe", container.pid()?))?;
    let program = if by_wasmtime(test) { "/rt-wasmtime" } else { "/ld.so" };
    ensure_eq(engine.display().to_string().as_str(), program)?;
    ensure(executable_is_read_only(&container)?, "it can be written to")?;
    test.only_rt()?;
    let message = "it can be made writable";
    ensure(!has_a_changeable_mount(&container)?, message)?;
    // The same before the start.
    let container = test.wasm("probe", &["sleep"])?.create()?;
    ensure(!has_a_changeable_mount(&container)?, message)
}

fn waiting(test: &Test) -> Outcome<Container<'_>> {
    let container = test.wasm("probe", &["sleep"])?.start()?;
    container.wait_for_output("ready")?;
    Ok(container)
}

fn serves_http(test: &Test) -> Outcome {
    let container = test.wasm("http-server", &[])?.edit(|config| {
        // Without its own network namespace, the container shares the host's loopback device.
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    });
    if TcpStream::connect("127.0.0.1:8080").is_ok() {
        return skip("port 8080 of this host is taken");
    }
    let container = container.start()?;
    wait_until("it listens", || {
        container.stderr().is_ok_and(|err| err.contains("listening on 0.0.0.0:8080"))
    })?;
    for _ in 0..3 {
        let mut stream = TcpStream::connect("127.0.0.1:8080")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure(
            answer.starts_with("HTTP/1.1 200 OK\r\n")
                && answer.ends_with("\r\n\r\nHello from Wasm!"),
            answer,
        )?;
    }
    container.kill("TERM")?;
    container.wait()
}

fn resolves_names_from_etc_hosts(test: &Test) -> Outcome {
    let output = test
        .wasm("probe", &["resolve", "db.example"])?
        .file("/etc/hosts", "10.9.8.7 db.example\n")?
        .run()?
        .success()?;
    ensure(output.stdout.contains("10.9.8.7"), output.stdout)
}

/// The image contains only the module. The caller mounts `resolv.conf`.
fn asks_the_server_in_resolv_conf(test: &Test) -> Outcome {
    // The server of this test, on the host's loopback device.
    let Ok(server) = UdpSocket::bind("127.77.0.1:53") else {
        return skip("the port of DNS cannot be had");
    };
    server.set_read_timeout(Some(Duration::from_secs(10)))?;
    let answers = std::thread::spawn(move || {
        // The guest may ask for an IPv4 and for an IPv6 address (RFC 1035, 4.1).
        let mut buffer = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            let query = &buffer[..length];
            let Some(end) = query.iter().skip(12).position(|byte| *byte == 0) else { return };
            let question = &query[12..(12 + end + 5).min(length)];
            let is_v4 = question.ends_with(&[0, 1, 0, 1]);
            let head = [0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0];
            let address: &[u8] =
                if is_v4 { &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 6, 5, 4] } else { &[] };
            let _ = server.send_to(&[&query[..2], &head, question, address].concat(), from);
            if question.starts_with(b"\x04last") {
                return;
            }
        }
    });
    let mounted = test.folder.join("resolv.conf");
    fs::write(&mounted, "nameserver 127.77.0.1\n")?;
    let bundle = test.wasm("probe", &["resolve", "db.example"])?.edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    });
    let bundle = bundle.mount(
        json!({ "destination": "/etc/resolv.conf", "source": mounted, "options": ["bind", "ro"] }),
    );
    let output = bundle.run();
    // This message ends the server.
    let stop = UdpSocket::bind("127.0.0.1:0")?;
    stop.send_to(b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x04last\0\0\x01\0\x01", "127.77.0.1:53")?;
    answers.join().map_err(|_| "the server")?;
    let output = output?.success()?;
    ensure(output.stdout.contains("10.6.5.4"), output.stdout)
}

fn runs_without_any_capability(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.edit(|config| {
        config["process"]["capabilities"] = json!({});
        config["process"]["user"] = json!({ "uid": 65534, "gid": 65534 });
    });
    bundle.run()?.success()?.stdout("Hello from Wasm!\n").map(drop)
}

fn leaves_descriptors_behind(test: &Test) -> Outcome {
    let container = waiting(test)?;
    let mut open: Vec<String> = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", container.pid()?))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        if number > 2 {
            open.push(fs::read_link(entry.path())?.display().to_string());
        }
    }
    // The module's directory, the preopened root, copies of the standard streams, and the
    // descriptors with which the engine polls.
    let streams = test.folder.display().to_string();
    let expected = |link: &String| {
        link == "/" || link.starts_with("anon_inode:[") || link.starts_with(&streams)
    };
    ensure(open.iter().all(expected), format!("{open:?}"))
}

fn prints_nothing_of_its_own(test: &Test) -> Outcome {
    let output = test.wasm("probe", &["exit", "0"])?.run()?.success()?;
    ensure_eq((output.stdout.as_str(), output.stderr.as_str()), ("", ""))
}

/// WasmEdge's compiler puts native code in a custom section `wasmedge`. The engine must ignore such
/// a section of an image.
fn native_sections_are_not_executed(test: &Test) -> Outcome {
    let mut module = fs::read(test.host.guest("hello")?)?;
    let payload = b"\x08wasmedge\x03\0\0\0garbage that is no native code";
    module.push(0);
    module.push(u8::try_from(payload.len())?);
    module.extend(payload);
    test.module(&module)?.run()?.success()?.stdout("Hello from Wasm!\n").map(drop)
}

fn runs_where_openat2_is_forbidden(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?;
    let output = super::mounts::run_without_openat2(test, &bundle)?.success()?;
    ensure(!output.stdout.is_empty(), output.stderr)
}

/// The engine and its mode. An operator learns them from `state`, because `ps` shows the engine's
/// loader.
fn is_told_of_by_state_and_list(test: &Test) -> Outcome {
    let container = test.wasm("probe", &["sleep"])?.start()?;
    let annotations = container.state()?["annotations"].clone();
    let engine = annotations["run.oci.engine"].as_str().unwrap_or_default().to_owned();
    let (name, native) = match by_wasmtime(test) {
        true => ("wasmtime 48.", true),
        false => {
            let compile = std::env::var("RT_TESTS_COMPILE");
            ("wasmedge 0.", compile.is_ok_and(|compile| compile == "eager"))
        }
    };
    ensure(engine.starts_with(name), &annotations)?;
    let mode = if native { "aot" } else { "interpreter" };
    ensure_eq(annotations["run.oci.engine.mode"].as_str(), Some(mode))?;
    let list = test.rt(["list", "--format=json"])?.success()?.stdout;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    ensure_eq(list[0]["annotations"]["run.oci.engine"].as_str(), Some(engine.as_str()))?;
    // A native program with the same annotation is not a module.
    let native = test.sh("exec sleep 60")?.annotation("run.oci.handler", "wasm").start()?;
    ensure(native.state()?["annotations"]["run.oci.engine"].is_null(), "it is said to be a module")
}

fn takes_ten_thousand_arguments(test: &Test) -> Outcome {
    let many: Vec<String> = (0..10_000).map(|number| format!("argument {number}")).collect();
    let args: Vec<&str> = ["args"].into_iter().chain(many.iter().map(String::as_str)).collect();
    let output = test.wasm("probe", &args)?.run()?.success()?.stdout;
    ensure_eq(output.lines().count(), 10_002)?;
    ensure_eq(output.lines().last(), Some("argument 9999"))
}

/// As for a native program, a port below 1024 requires CAP_NET_BIND_SERVICE.
fn binds_a_low_port_with_the_capability_only(test: &Test) -> Outcome {
    let bundle = test.wasm("probe", &["accept", "80"])?;
    let container = bundle.start()?;
    container.wait_for_output("ready")?;
    let none = json!([]);
    let bundle = test.wasm("probe", &["accept", "80"])?.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = none.clone();
        }
    });
    let output = bundle.run()?;
    ensure(output.code != Some(0) && !output.stdout.contains("ready"), output.stdout)
}

fn has_a_terminal(test: &Test) -> Outcome {
    let path = test.folder.join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    let container = test
        .wasm("probe", &["cat"])?
        .edit(|config| config["process"]["terminal"] = json!(true))
        .flag(format!("--console-socket={}", path.display()))
        .start()?;
    let mut master: fs::File = super::terminal::receive(&listener)?.into();
    master.write_all(b"typed\n")?;
    super::terminal::read_until(&mut master, "typed\n")?;
    // The end of the input. Then the guest prints the text that it has read.
    master.write_all(b"\x04")?;
    super::terminal::read_until(&mut master, "typed\n")?;
    container.wait()
}

/// Through its memory in `/proc`, a guest could write to its engine.
fn the_kernels_files_are_out_of_reach(test: &Test) -> Outcome {
    let probe = |args: &[&str]| test.wasm("probe", args)?.run();
    for (args, words) in [
        (&["write", "/proc/self/mem", "x"][..], "PermissionDenied"),
        (&["read", "/proc/self/status"], "PermissionDenied"),
        (&["read", "/proc/self/fd/3/engine.json"], "error"),
        (&["ls", "/proc"], "PermissionDenied"),
        (&["ls", "/sys/kernel"], "PermissionDenied"),
        (&["ls", "/dev/pts"], "PermissionDenied"),
        (&["write", "/dev/tty", "x"], "error"),
    ] {
        let output = probe(args)?.code(1)?;
        ensure(output.stdout.contains(words), format!("{args:?}: {}", output.stdout))?;
    }
    // A device that is no more than a file stays usable. A link in the image does not lead to the
    // kernel's files.
    probe(&["write", "/dev/null", "x"])?.success()?;
    let linked = test.wasm("probe", &["read", "/status"])?;
    std::os::unix::fs::symlink("/proc/self/status", linked.rootfs().join("status"))?;
    linked.run()?.code(1)?;
    // The same with an explicit list of directories.
    let listed = test.wasm("probe", &["read", "/proc/self/status"])?;
    listed.annotation("run.oci.wasm.dirs", "/").run()?.code(1).map(drop)
}

/// A module with two functions: the start function, and `_start`.
fn starting(test: &Test, start: &str, main: &str) -> Outcome<Output> {
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func $s {start}) (start $s) (memory (export "memory") 1) (func (export "_start") {main}))"#
    );
    test.module(&wat::parse_str(text)?)?.annotation("run.oci.wasm.timeout", "0.5").run()
}

fn a_start_function_is_part_of_the_run(test: &Test) -> Outcome {
    starting(test, "(loop (br 0))", "")?.code(124)?;
    let output = starting(test, "unreachable", "")?.code(134)?;
    ensure(
        output.stderr.contains("trap: ") && output.stderr.contains("unreachable"),
        output.stderr,
    )?;
    starting(test, "(call $exit (i32.const 7))", "unreachable")?.code(7)?;
    starting(test, "nop", "(call $exit (i32.const 9))")?.code(9).map(drop)
}

fn every_exit_code_is_kept(test: &Test) -> Outcome {
    let container = waiting(test)?;
    for code in (0..=255).step_by(3).chain([126, 127, 128, 130, 134, 137, 139, 143, 254]) {
        let module = exiting(test, code)?.rootfs().join("module.wasm");
        // A new file each time: the last one may be in use.
        let name = format!("exit-{code}.wasm");
        fs::copy(module, Path::new(&format!("/proc/{}/root", container.pid()?)).join(&name))?;
        let output = test.rt(["exec", &container.id, &format!("/{name}")])?;
        output.code(i32::try_from(code)?)?;
    }
    Ok(())
}

/// The interpreter's own stack overflows, and not the stack of a Rust program in the module's
/// memory.
fn a_deep_recursion_of_calls_is_a_trap(test: &Test) -> Outcome {
    // The function does something after each call, because a compiler would turn a tail call into a
    // loop.
    let text = r#"(module (memory (export "memory") 1)
        (func $f (param i32)
            (call $f (i32.add (local.get 0) (i32.const 1)))
            (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (local.get 0))))
        (func (export "_start") (call $f (i32.const 0))))"#;
    let output = test.module(&wat::parse_str(text)?)?.run()?;
    if std::env::var("RT_TESTS_COMPILE").is_ok_and(|compile| compile == "eager") {
        // Native code uses the stack of the process (docs/wasm-cache.md).
        return output.code(139).map(drop);
    }
    output.code(134)?.fails_with("call stack exhausted").map(drop)
}

fn what_is_no_command_is_told(test: &Test) -> Outcome {
    for (text, words) in [
        (r#"(module (func (export "_initialize")))"#, "it exports no `_start`"),
        (
            r#"(module (func (export "_start") (param i32)))"#,
            "its `_start` is not a function without arguments and results",
        ),
        (
            r#"(module (memory (export "_start") 1))"#,
            "its `_start` is not a function without arguments and results",
        ),
    ] {
        if by_wasmtime(test) {
            test.module(&wat::parse_str(text)?)?
                .run()?
                .code(1)?
                .fails_with("cannot be compiled")?;
            continue;
        }
        test.module(&wat::parse_str(text)?)?.run()?.code(126)?.fails_with(words)?;
    }
    Ok(())
}

fn takes_three_hundred_preopens(test: &Test) -> Outcome {
    let mut bundle = test.wasm("probe", &["read", "/many/299/file"])?;
    for number in 0..300 {
        let folder = test.folder.join(number.to_string());
        fs::create_dir(&folder)?;
        fs::write(folder.join("file"), format!("{number}\n"))?;
        bundle = bundle.mount(json!({
            "destination": format!("/many/{number}"), "type": "bind", "source": folder, "options": ["bind"],
        }));
    }
    bundle.run()?.success()?.stdout("299\n").map(drop)
}

fn a_directory_with_a_colon_is_told(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.mount(json!({
        "destination": "/a:b", "type": "tmpfs", "source": "tmpfs",
    }));
    if by_wasmtime(test) {
        return bundle.run()?.success().map(drop);
    }
    bundle.run()?.code(126)?.fails_with("WasmEdge cannot name a directory with a colon").map(drop)
}

/// A linear memory reserves 12 GiB of address space.
fn a_small_address_space_is_told(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.edit(|config| {
        config["process"]["rlimits"] =
            json!([{ "type": "RLIMIT_AS", "soft": 4_u64 << 30, "hard": 4_u64 << 30 }]);
    });
    bundle.run()?.code(126)?.fails_with("too few addresses for its memory").map(drop)
}

fn is_ended_by_each_signal(test: &Test) -> Outcome {
    for args in [&["busy"][..], &["sleep"], &["accept", "8080"]] {
        for (signal, code) in
            [("TERM", 143), ("INT", 130), ("QUIT", 131), ("HUP", 129), ("ABRT", 134)]
        {
            let bundle = test.wasm("probe", args)?;
            bundle.write()?;
            let (id, out) = (test.id(), test.folder.join("out"));
            let mut run = test.command(bundle.command_line("run", &id));
            let mut run = run.stdout(fs::File::create(&out)?).spawn()?;
            wait_until("it is ready", || {
                fs::read_to_string(&out).is_ok_and(|out| out.contains("ready"))
            })?;
            test.rt(["kill", &id, signal])?.success()?;
            ensure_eq(run.wait()?.code(), Some(code))?;
        }
    }
    Ok(())
}

/// The module and the image choose these names. A terminal obeys some characters in them.
fn what_the_engine_says_is_one_line(test: &Test) -> Outcome {
    only_where_it_interprets(test)?;
    let name = "a\n\u{1b}[31m\u{9b}2J\u{202e}";
    let importing = |name: &str| {
        let name: String = name.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        wat::parse_str(format!(
            r#"(module (import "{name}" "{name}" (func)) (func (export "_start")))"#
        ))
    };
    let file = format!("/{name}.wasm");
    let unknown = test.module(&importing(name)?)?;
    let long = test.module(&importing(&"\n".repeat(60_000))?)?;
    let no_module = test.module(b"")?.file(&file, b"\0asm\x01\0\0\0\x01\x05\0")?.args(&[&file]);
    let no_start = test.module(b"")?.file(&file, b"\0asm\x01\0\0\0")?.args(&[&file]);
    let place = format!("/{name}:b");
    let colon = test
        .wasm("hello", &[])?
        .mount(json!({ "destination": place, "type": "tmpfs", "source": "tmpfs" }));
    for (bundle, words) in [
        (unknown, "unknown import `a\\n\\u{1b}[31m"),
        (long, "unknown import `\\n\\n"),
        (no_module, "start `/a\\n\\u{1b}[31m"),
        (no_start, "start `/a\\n\\u{1b}[31m"),
        (colon, "preopen `/a\\n\\u{1b}[31m"),
    ] {
        // Otherwise a warning would say that the module cannot be compiled.
        let output = bundle.annotation("run.oci.wasm.compile", "off").run()?;
        ensure(output.code != Some(0) && output.stderr.contains(words), &output.stderr)?;
        let lines: Vec<&str> = output.stderr.lines().collect();
        let hidden = ['\u{1b}', '\u{9b}', '\u{202e}'];
        ensure(!output.stderr.contains(hidden) && lines.len() == 1, &output.stderr)?;
        ensure(output.stderr.len() <= 4096, format!("{} bytes", output.stderr.len()))?;
    }
    Ok(())
}

/// A sparse file needs no space.
fn a_module_of_an_enormous_size_is_refused(test: &Test) -> Outcome {
    only_where_it_interprets(test)?;
    let bundle = test.module(&wat::parse_str(r#"(module (func (export "_start")))"#)?)?;
    // Otherwise a warning would say that the module cannot be compiled.
    let bundle = bundle.annotation("run.oci.wasm.compile", "off");
    let file = fs::File::options().write(true).open(bundle.rootfs().join("module.wasm"))?;
    for length in [200 << 30, (1 << 30) + 1] {
        file.set_len(length)?;
        let words = format!("read the module: it has {length} bytes, more than 1073741824");
        bundle.run()?.code(126)?.fails_with(&words)?;
    }
    super::needs(test, "memory")?;
    file.set_len(100 << 20)?;
    let small = bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    });
    let words = "it has 104857600 bytes, more than 67108864, all that the container may use";
    small.run()?.code(126)?.fails_with(words).map(drop)
}

/// Only a neighbour of the engine could make such an environment.
fn an_environment_of_an_enormous_size_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let engine = test.host.runtime.parent().and_then(Path::parent).ok_or("no place")?;
    let engine = engine.join("libexec/rt/wasmedge").display().to_string();
    let large = test.folder.join("environment");
    fs::File::create(&large)?.set_len(200 << 30)?;
    let script = format!(
        "exec 3<{engine} 4<{} 5<{}; exec {engine}/ld.so --inhibit-cache --library-path {engine}/lib \
         {engine}/rt-wasmedge --contract=2 --engine-dir=3 --module=4 --env=5 -- /hello.wasm",
        test.host.guest("hello")?.display(),
        large.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]);
    let words =
        "rt-wasmedge: read the environment: it has 214748364800 bytes, more than 1073741824";
    Output::of(shell)?.code(126)?.fails_with(words).map(drop)
}
