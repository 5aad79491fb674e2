//! The workload of a container. A unit test of `rt` has the whole table. These tests show that the
//! choice takes effect.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Outcome, Output, Test, copy_program, ensure, ensure_eq};

super::tests! { "workload":
    every_handler_runs_a_module, every_variant_runs_a_module, a_runtime_called_wasm_runs_a_module,
    a_native_program_runs_under_every_handler, a_script_runs_under_a_handler, a_sandbox_stays_linux,
    a_module_nobody_asked_for_is_explained, an_unknown_handler_is_told_the_known_ones, an_unknown_variant_is_told_the_known_ones,
    a_file_that_is_neither_is_refused, an_elf_file_named_wasm_runs_as_what_it_is, a_component_is_told_its_engine,
    a_truncated_module_ends_with_126, a_module_needs_no_execute_bit, a_module_is_found_in_path_or_cwd,
    a_missing_engine_is_an_error, an_engine_of_another_contract_is_an_error, a_container_without_proc_is_an_error,
    a_proc_of_the_images_is_an_error, the_engine_is_chosen_by_the_file, an_engine_is_chosen_by_its_name,
    the_administrator_orders_the_engines, a_module_goes_to_an_engine_that_has_its_imports,
    an_option_that_the_engine_lacks_is_an_error, an_engine_that_is_broken_keeps_no_other_from_running,
}

const HELLO: &str = "Hello from Wasm!\n";

fn unannotated<'a>(test: &'a Test, guest: &str) -> Outcome<Bundle<'a>> {
    Ok(test.wasm(guest, &[])?.edit(|config| {
        config.as_object_mut().map(|config| config.remove("annotations"));
    }))
}

fn every_handler_runs_a_module(test: &Test) -> Outcome {
    for handler in ["wasm", "wasm-smart", "wasmedge"] {
        unannotated(test, "hello")?
            .annotation("run.oci.handler", handler)
            .run()?
            .success()?
            .stdout(HELLO)?;
    }
    Ok(())
}

fn every_variant_runs_a_module(test: &Test) -> Outcome {
    for variant in ["compat", "compat-smart"] {
        unannotated(test, "hello")?
            .annotation("module.wasm.image/variant", variant)
            .run()?
            .success()?
            .stdout(HELLO)?;
    }
    Ok(())
}

fn a_runtime_called_wasm_runs_a_module(test: &Test) -> Outcome {
    let bundle = unannotated(test, "hello")?;
    bundle.write()?;
    let link = test.folder.join("rt-wasm");
    symlink(&test.host.runtime, &link)?;
    let mut command = Command::new(link);
    command
        .arg("--root")
        .arg(test.state_root())
        .args(["run", "--bundle"])
        .arg(&bundle.folder)
        .arg(test.id());
    Output::of(command)?.success()?.stdout(HELLO).map(drop)
}

fn a_native_program_runs_under_every_handler(test: &Test) -> Outcome {
    test.only_rt()?;
    for handler in ["wasm", "wasm-smart", "wasmedge"] {
        test.sh("echo native")?
            .annotation("run.oci.handler", handler)
            .run()?
            .success()?
            .stdout("native\n")?;
    }
    Ok(())
}

fn a_script_runs_under_a_handler(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.linux(&["/run.sh"])?.file("/run.sh", "#!/bin/sh\necho script\n")?;
    fs::set_permissions(bundle.rootfs().join("run.sh"), fs::Permissions::from_mode(0o755))?;
    bundle.annotation("run.oci.handler", "wasm").run()?.success()?.stdout("script\n").map(drop)
}

fn a_sandbox_stays_linux(test: &Test) -> Outcome {
    for key in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"] {
        let bundle = test.wasm("hello", &[])?.annotation(key, "sandbox");
        bundle.try_create(&test.id())?.fails_with("nothing asks for an engine")?;
        test.sh("echo pause")?
            .annotation(key, "sandbox")
            .annotation("run.oci.handler", "nonsense")
            .run()?
            .stdout("pause\n")?;
    }
    Ok(())
}

fn a_module_nobody_asked_for_is_explained(test: &Test) -> Outcome {
    let bundle = unannotated(test, "hello")?;
    bundle
        .try_create(&test.id())?
        .fails_with("set the annotation `run.oci.handler` to `wasm`")
        .map(drop)
}

fn an_unknown_handler_is_told_the_known_ones(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.annotation("run.oci.handler", "krun");
    bundle.try_create(&test.id())?.fails_with("unknown handler `krun`").and_then(|output| {
        ensure(output.stderr.contains("`wasm`, `wasm-smart`, `spin`, `wasmedge`"), output.stderr)
    })
}

fn an_unknown_variant_is_told_the_known_ones(test: &Test) -> Outcome {
    let bundle = unannotated(test, "hello")?.annotation("module.wasm.image/variant", "fast");
    bundle.try_create(&test.id())?.fails_with("`compat`, `compat-smart`").map(drop)
}

fn a_file_that_is_neither_is_refused(test: &Test) -> Outcome {
    for bytes in [b"just a text".as_slice(), b"", b"\0as"] {
        test.module(bytes)?
            .try_create(&test.id())?
            .fails_with("neither a WebAssembly module nor a native program")?;
    }
    Ok(())
}

/// The file runs as a native program in the container, and never in an engine.
fn an_elf_file_named_wasm_runs_as_what_it_is(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.linux(&["/echo.wasm", "native"])?.annotation("run.oci.handler", "wasm");
    fs::hard_link(test.host.folder.join("busybox"), bundle.rootfs().join("echo"))?;
    fs::copy("/bin/busybox", bundle.rootfs().join("echo.wasm"))?;
    // Without an execute bit, the file is not a program either, and `create` fails.
    fs::set_permissions(bundle.rootfs().join("echo.wasm"), fs::Permissions::from_mode(0o644))?;
    bundle.try_create(&test.id())?.fails_with("permission denied")?;
    fs::set_permissions(bundle.rootfs().join("echo.wasm"), fs::Permissions::from_mode(0o755))?;
    // busybox chooses an applet by its name, and has none with this name. Its error shows that the
    // file ran natively.
    let output = bundle.run()?;
    ensure(output.stderr.contains("applet not found"), output.stderr)
}

fn a_component_is_told_its_engine(test: &Test) -> Outcome {
    let bundle = test.module(b"\0asm\x0d\0\x01\0")?.annotation("run.oci.handler", "wasmedge");
    bundle.try_create(&test.id())?.fails_with("needs an engine such as `wasmtime`").map(drop)
}

fn a_truncated_module_ends_with_126(test: &Test) -> Outcome {
    let module = fs::read(test.host.guest("hello")?)?;
    for length in [8, 9, 100, module.len() / 2, module.len() - 1] {
        let container = test.module(&module[..length])?.create()?;
        container.start()?;
        container.wait()?;
        let stderr = container.stderr()?;
        ensure(
            stderr.starts_with("rt-wasmedge: ") && stderr.matches('\n').count() == 1,
            format!("{length}: {stderr}"),
        )?;
        test.module(&module[..length])?.run()?.code(126)?.stdout("")?;
    }
    Ok(())
}

fn a_module_needs_no_execute_bit(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?;
    fs::set_permissions(bundle.rootfs().join("hello.wasm"), fs::Permissions::from_mode(0o444))?;
    bundle.run()?.success()?.stdout(HELLO).map(drop)
}

fn a_module_is_found_in_path_or_cwd(test: &Test) -> Outcome {
    test.wasm("hello", &[])?.args(&["hello.wasm"]).run()?.success()?.stdout(HELLO)?;
    let bundle = test.wasm("hello", &[])?.args(&["app.wasm"]);
    fs::create_dir(bundle.rootfs().join("bin"))?;
    fs::rename(bundle.rootfs().join("hello.wasm"), bundle.rootfs().join("bin/app.wasm"))?;
    bundle.run()?.success()?.stdout(HELLO)?;
    test.wasm("hello", &[])?
        .args(&["other.wasm"])
        .try_create(&test.id())?
        .fails_with("executable file not found in $PATH")?;
    Ok(())
}

/// A copy of the installation, from which a test can remove files.
fn installation(test: &Test) -> Outcome<std::path::PathBuf> {
    let runtime = test.host.runtime.canonicalize()?;
    let prefix = runtime.parent().and_then(|bin| bin.parent()).ok_or("not in a bin folder")?;
    let copy = test.folder.join("prefix");
    fs::create_dir_all(copy.join("bin"))?;
    copy_program(&runtime, copy.join("bin/rt"))?;
    if prefix.join("libexec/rt/wasmedge/engine.json").exists() {
        fs::create_dir_all(copy.join("libexec/rt/wasmedge"))?;
        fs::copy(
            prefix.join("libexec/rt/wasmedge/engine.json"),
            copy.join("libexec/rt/wasmedge/engine.json"),
        )?;
    }
    Ok(copy)
}

fn run_installed(test: &Test, prefix: &std::path::Path, bundle: &Bundle<'_>) -> Outcome<Output> {
    run_configured(test, prefix, &json!({}), bundle)
}

/// Runs an installation on a host with these settings for modules.
fn run_configured(
    test: &Test,
    prefix: &std::path::Path,
    settings: &Value,
    bundle: &Bundle<'_>,
) -> Outcome<Output> {
    bundle.write()?;
    let file = prefix.join("wasm.json");
    fs::write(&file, settings.to_string())?;
    let mut command = Command::new(prefix.join("bin/rt"));
    command
        .arg("--root")
        .arg(test.state_root())
        .arg("--wasm-config")
        .arg(&file)
        .args(["run", "--bundle"])
        .arg(&bundle.folder)
        .arg(test.id());
    Output::of(command)
}

fn a_missing_engine_is_an_error(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?;
    let prefix = installation(test)?;
    fs::remove_dir_all(prefix.join("libexec"))?;
    run_installed(test, &prefix, &bundle)?.fails_with("no Wasm engine is installed in `")?;
    // Linux containers need no engine.
    run_installed(test, &prefix, &test.sh("echo linux")?)?.success()?.stdout("linux\n").map(drop)
}

fn an_engine_of_another_contract_is_an_error(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?;
    let prefix = installation(test)?;
    let file = prefix.join("libexec/rt/wasmedge/engine.json");
    fs::write(&file, fs::read_to_string(&file)?.replace("\"contract\": 2", "\"contract\": 1"))?;
    run_installed(test, &prefix, &bundle)?.fails_with("version 1 of the engine contract")?;
    fs::write(&file, r#"{"contract":2,"name":"x","version":"1","program":"../../bin/sh"}"#)?;
    run_installed(test, &prefix, &bundle)?.fails_with("leads out of the directory").map(drop)
}

fn a_container_without_proc_is_an_error(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
    });
    bundle.try_create(&test.id())?.fails_with("an engine is started through `/proc`").map(drop)
}

fn a_proc_of_the_images_is_an_error(test: &Test) -> Outcome {
    let bundle = test.wasm("hello", &[])?.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
    });
    let bundle = bundle.file("/proc/self/fd/3/ld.so", "#!/bin/evil")?;
    bundle.try_create(&test.id())?.fails_with("`/proc` is not procfs").map(drop)
}

/// Installs an engine for these worlds, with busybox under this name as its program.
fn install(prefix: &std::path::Path, name: &str, program: &str, worlds: &[&str]) -> Outcome {
    let engine = prefix.join("libexec/rt").join(name);
    fs::create_dir_all(&engine)?;
    copy_program("/bin/busybox".as_ref(), engine.join(program))?;
    let description = json!({ "contract": 2, "name": name, "program": program, "worlds": worlds, "options": ["of-tomorrow"] });
    Ok(fs::write(engine.join("engine.json"), description.to_string())?)
}

/// An installation with an engine for modules, which prints its options, and an engine for
/// components, which prints nothing.
fn two_engines(test: &Test) -> Outcome<std::path::PathBuf> {
    let prefix = installation(test)?;
    fs::remove_dir_all(prefix.join("libexec"))?;
    install(&prefix, "b", "echo", &["wasip1-command", "of:tomorrow/world"])?;
    install(&prefix, "a", "true", &["wasi:cli/command"])?;
    Ok(prefix)
}

fn the_engine_is_chosen_by_the_file(test: &Test) -> Outcome {
    let prefix = two_engines(test)?;
    let module = run_installed(test, &prefix, &test.module(b"\0asm\x01\0\0\0")?)?.success()?;
    ensure(module.stdout.starts_with("--contract=2 --engine-dir="), &module.stdout)?;
    ensure(!module.stdout.contains("--memory"), &module.stdout)?;
    run_installed(test, &prefix, &test.module(b"\0asm\x0d\0\x01\0")?)?
        .success()?
        .stdout("")
        .map(drop)
}

fn the_administrator_orders_the_engines(test: &Test) -> Outcome {
    let prefix = installation(test)?;
    fs::remove_dir_all(prefix.join("libexec"))?;
    install(&prefix, "a", "true", &["wasip1-command"])?;
    install(&prefix, "b", "echo", &["wasip1-command"])?;
    for (engines, first) in [
        (json!([]), "a"),
        (json!(["b"]), "b"),
        (json!(["gone", "b", "a"]), "b"),
        (json!(["a"]), "a"),
    ] {
        let settings = json!({ "engines": engines });
        let module = test.module(b"\0asm\x01\0\0\0")?;
        let out = run_configured(test, &prefix, &settings, &module)?.success()?.stdout;
        ensure_eq(if out.is_empty() { "a" } else { "b" }, first)?;
    }
    let wrong = json!({ "engines": "b" });
    run_configured(test, &prefix, &wrong, &test.module(b"\0asm\x01\0\0\0")?)?
        .fails_with("wasm.json`: ")
        .map(drop)
}

/// A core module that imports one function.
fn importing(module: &str, name: &str) -> Outcome<Vec<u8>> {
    let text = |text: &str| -> Outcome<Vec<u8>> {
        Ok([&[u8::try_from(text.len())?], text.as_bytes()].concat())
    };
    let entry = [&[1][..], &text(module)?, &text(name)?, &[0, 0]].concat();
    Ok([&b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02"[..], &[u8::try_from(entry.len())?], &entry]
        .concat())
}

fn a_module_goes_to_an_engine_that_has_its_imports(test: &Test) -> Outcome {
    let prefix = installation(test)?;
    fs::remove_dir_all(prefix.join("libexec"))?;
    install(&prefix, "a", "true", &["wasip1-command"])?;
    install(&prefix, "b", "echo", &["wasip1-command", "core-command"])?;
    for (module, name, engine) in [
        ("wasi_snapshot_preview1", "fd_write", "a"),
        ("wasi_snapshot_preview1", "sock_open", "b"),
        ("wasi_snapshot_preview1", "sock_shutdown", "a"),
        ("wasi_ephemeral_nn", "load", "b"),
        ("env", "fd_write", "b"),
    ] {
        let bundle = test.module(&importing(module, name)?)?;
        let out = run_installed(test, &prefix, &bundle)?.success()?.stdout;
        ensure_eq((name, if out.is_empty() { "a" } else { "b" }), (name, engine))?;
    }
    let forced = test.module(&importing("wasi_snapshot_preview1", "sock_open")?)?;
    run_installed(test, &prefix, &forced.annotation("run.oci.handler", "a"))?
        .fails_with("imports `sock_open` of `wasi_snapshot_preview1`, which the engine `a` does not have: it needs an engine such as `wasmedge`")
        .map(drop)
}

fn an_engine_is_chosen_by_its_name(test: &Test) -> Outcome {
    let prefix = two_engines(test)?;
    let module = |name| -> Outcome<Output> {
        let bundle = test.module(b"\0asm\x01\0\0\0")?.annotation("run.oci.handler", name);
        run_installed(test, &prefix, &bundle)
    };
    module("b")?.success()?;
    module("a")?.fails_with("which the engine `a` does not run: it needs an engine such as")?;
    module("wasmedge")?.fails_with("the engine `wasmedge` is not installed in `")?;
    module("../rt/b")?.fails_with("rt knows `wasm`, `wasm-smart`, `spin`, `a`, `b`").map(drop)
}

fn an_option_that_the_engine_lacks_is_an_error(test: &Test) -> Outcome {
    let prefix = two_engines(test)?;
    for (option, value) in [("fuel", "5"), ("timeout", "1")] {
        let annotation = format!("run.oci.wasm.{option}");
        let bundle = test.module(b"\0asm\x01\0\0\0")?.annotation(&annotation, value);
        run_installed(test, &prefix, &bundle)?.fails_with(&format!(
            "the engine `b` lacks the option `{option}`, which the annotation `{annotation}` requires"
        ))?;
    }
    Ok(())
}

fn an_engine_that_is_broken_keeps_no_other_from_running(test: &Test) -> Outcome {
    let prefix = two_engines(test)?;
    let broken = prefix.join("libexec/rt/a/engine.json");
    fs::write(&broken, "{")?;
    run_installed(test, &prefix, &test.module(b"\0asm\x01\0\0\0")?)?.success()?;
    run_installed(test, &prefix, &test.module(b"\0asm\x0d\0\x01\0")?)?
        .fails_with("parse `engine.json`")
        .map(drop)
}
