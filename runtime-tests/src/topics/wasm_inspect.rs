//! `rt wasm inspect`: what a module is, before anybody starts it.

use std::fs;

use serde_json::{Value, json};

use super::wasm_cache;
use crate::harness::{Bundle, Outcome, Test, WASMTIME, ensure, ensure_eq};

super::tests! { "wasm_inspect":
    a_module_and_a_component_go_to_their_engines, imports_and_exports_are_listed, the_annotations_say_what_is_allowed, what_is_missing_is_named,
    an_app_is_told_by_its_manifest, a_part_of_an_app_is_told_from_a_program, how_a_handler_is_served_is_listed,
    what_is_no_module_is_an_error, names_cannot_change_the_terminal, native_code_that_is_there_is_ready,
}

fn inspect(test: &Test, path: &std::path::Path) -> Outcome<Value> {
    let path = path.display().to_string();
    let out = test.rt(["wasm", "inspect", "--format", "json", &path])?.success()?.stdout;
    Ok(serde_json::from_str(&out)?)
}

/// A file with this content.
fn file(test: &Test, name: &str, content: &[u8]) -> Outcome<std::path::PathBuf> {
    let path = test.folder.join(name);
    fs::write(&path, content)?;
    Ok(path)
}

fn both_engines(test: &Test) -> Outcome {
    test.only_rt()?;
    wasm_cache::host_of(test, "wasmedge", json!({}))?;
    wasm_cache::host_of(test, WASMTIME, json!({}))
}

fn a_module_and_a_component_go_to_their_engines(test: &Test) -> Outcome {
    both_engines(test)?;
    let module = inspect(test, &test.host.guest("hello")?)?;
    ensure_eq(module["kind"].as_str(), Some("core module"))?;
    ensure_eq(module["world"].as_str(), Some("wasip1-command"))?;
    ensure_eq(module["engine"]["name"].as_str(), Some("wasmedge"))?;
    let component = inspect(test, &test.host.component("hello")?)?;
    ensure_eq(component["kind"].as_str(), Some("component"))?;
    ensure_eq(component["world"].as_str(), Some("wasi:cli/command"))?;
    ensure_eq(component["engine"]["name"].as_str(), Some("wasmtime"))?;
    ensure_eq(component["missing"].clone(), json!([]))?;
    for (guest, world) in [
        ("command3", "wasi:cli/command"),
        ("handler3", "wasi:http/service"),
        ("handler", "wasi:http/proxy"),
    ] {
        let component = inspect(test, &test.host.component(guest)?)?;
        ensure_eq((guest, component["world"].as_str()), (guest, Some(world)))?;
        ensure_eq(component["engine"]["name"].as_str(), Some("wasmtime"))?;
        ensure_eq(component["missing"].clone(), json!([]))?;
    }
    let server = inspect(test, &test.host.guest("http-server")?)?;
    ensure_eq(server["world"].as_str(), Some("core-command"))
}

fn imports_and_exports_are_listed(test: &Test) -> Outcome {
    both_engines(test)?;
    let module = inspect(test, &test.host.guest("hello")?)?;
    let write = json!({ "kind": "func", "module": "wasi_snapshot_preview1", "name": "fd_write" });
    ensure(module["imports"].as_array().is_some_and(|list| list.contains(&write)), &module)?;
    let start = json!({ "kind": "func", "name": "_start" });
    ensure(module["exports"].as_array().is_some_and(|list| list.contains(&start)), &module)?;
    let component = inspect(test, &test.host.component("hello")?)?;
    let run = component["exports"][0]["name"].as_str().unwrap_or_default();
    ensure(run.starts_with("wasi:cli/run@0.2."), &component)?;
    let path = test.host.component("hello")?.display().to_string();
    let text = test.rt(["wasm", "inspect", &path])?.success()?.stdout;
    ensure(text.contains(&format!("exports      {run} (instance)\n")), &text)
}

fn the_annotations_say_what_is_allowed(test: &Test) -> Outcome {
    both_engines(test)?;
    let bundle = test
        .wasm("hello", &[])?
        .annotation("run.oci.wasm.dirs", "/data:ro")
        .annotation("run.oci.wasm.bind", "tcp/80")
        .annotation("run.oci.wasm.fuel", "5")
        .annotation("run.oci.wasm.timeout", "1.5");
    bundle.write()?;
    let allowed = inspect(test, &bundle.folder)?["allowed"].clone();
    ensure_eq(allowed["directories"].clone(), json!(["/data:ro"]))?;
    ensure_eq(allowed["bind"].clone(), json!(["tcp/80-80"]))?;
    ensure_eq(allowed["connect"].clone(), json!("all"))?;
    ensure_eq(allowed["fuel"].clone(), json!(5))?;
    ensure_eq(allowed["timeoutSeconds"].clone(), json!(1.5))?;
    let open = test.wasm("hello", &[])?;
    open.write()?;
    let allowed = inspect(test, &open.folder)?["allowed"].clone();
    ensure_eq(allowed["directories"][0].as_str(), Some("/"))?;
    ensure(!allowed["directories"].to_string().contains("/proc"), allowed)
}

fn what_is_missing_is_named(test: &Test) -> Outcome {
    both_engines(test)?;
    let library = file(test, "library.wasm", b"\0asm\x01\0\0\0")?;
    let missing = inspect(test, &library)?["missing"].to_string();
    ensure(missing.contains("the exported function `_start`"), missing)?;
    // A component that imports an instance, and exports nothing.
    let keys = b"\0asm\x0d\0\x01\0\x07\x03\x01\x42\0\x0a\x0c\x01\0\x07a:b/c@1\x05\0";
    let missing = inspect(test, &file(test, "keys.wasm", keys)?)?["missing"].to_string();
    ensure(missing.contains("the import `a:b/c@1`"), &missing)?;
    ensure(missing.contains("`wasi:cli/run@0.2`"), &missing)?;
    // A core module with another import.
    let other = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x09\x01\x03env\x01f\0\0";
    let missing = inspect(test, &file(test, "other.wasm", other)?)?["missing"].to_string();
    ensure(missing.contains("the import `f` of `env`"), missing)?;
    let bundle = test.wasm("hello", &[])?.annotation("run.oci.handler", "nobody");
    bundle.write()?;
    let missing = inspect(test, &bundle.folder)?["missing"].to_string();
    ensure(missing.contains("unknown handler `nobody`"), missing)
}

fn an_app_is_told_by_its_manifest(test: &Test) -> Outcome {
    both_engines(test)?;
    let manifest = file(test, "spin.toml", b"spin_manifest_version = 2\n")?;
    let app = inspect(test, &manifest)?;
    ensure_eq(app["kind"].as_str(), Some("Spin app"))?;
    ensure_eq(app["world"].as_str(), Some("spin"))?;
    ensure_eq(app["engine"]["name"].as_str(), Some("wasmtime"))?;
    ensure_eq(app["missing"].clone(), json!([]))?;
    // Its modules have imports and exports, which nobody has looked at.
    ensure_eq((&app["imports"], &app["exports"]), (&Value::Null, &Value::Null))?;
    ensure_eq(&app["allowed"]["directories"], &json!([]))?;
    ensure_eq(&app["allowed"]["byManifest"], &json!(true))?;
    let path = manifest.display().to_string();
    let text = test.rt(["wasm", "inspect", &path])?.success()?.stdout;
    for line in [
        "allowed      files: none but those that the manifest lists\n",
        "sockets: none but to hosts that the manifest lists for all schemes; bind all",
        "requests to: none but those that the manifest lists\n",
        "serves       0.0.0.0:80\n",
    ] {
        ensure(text.contains(line), format!("no `{line}`: {text}"))?;
    }
    ensure(!text.contains("directories: /"), text)?;
    let bundle = Bundle::new(test, &["/"])?
        .file("/spin.toml", "spin_manifest_version = 2\n")?
        .annotation("run.oci.handler", "spin")
        .annotation("run.oci.wasm.http-health", "/healthy")
        .edit(|config| config["process"]["env"] = json!(["SPIN_HTTP_LISTEN_ADDR=[::1]:8081"]));
    bundle.write()?;
    let app = inspect(test, &bundle.folder)?;
    ensure_eq(app["kind"].as_str(), Some("Spin app"))?;
    ensure_eq(&app["allowed"]["http"]["address"], &json!("[::1]:8081"))?;
    ensure_eq(&app["allowed"]["http"]["values"], &json!({ "http-health": "/healthy" }))?;
    let wrong = bundle.annotation("run.oci.wasm.dirs", "/data");
    wrong.write()?;
    let missing = inspect(test, &wrong.folder)?["missing"].to_string();
    ensure(missing.contains("`run.oci.wasm.dirs` is not for a Spin app"), missing)
}

/// The modules of the SDKs run in an app only. There, a function that the engine does not have is
/// an error when it is called.
fn a_part_of_an_app_is_told_from_a_program(test: &Test) -> Outcome {
    both_engines(test)?;
    let parts = ["spin1", "spin2", "spin3", "spin4", "spin5"].map(|name| test.host.module(name));
    let newer = ["spin6", "spin7"].map(|name| test.host.component(name));
    for file in parts.into_iter().chain(newer) {
        let file = file?;
        let part = inspect(test, &file)?;
        let shown = || format!("{}: {part}", file.display());
        ensure(part["partOf"] == json!("Spin app"), shown())?;
        ensure(part["engine"]["name"] == json!("wasmtime"), shown())?;
        ensure(part["missing"] == json!([]), shown())?;
        ensure(part["allowed"]["byManifest"] == json!(true), shown())?;
    }
    let path = test.host.module("spin3")?.display().to_string();
    let text = test.rt(["wasm", "inspect", &path])?.success()?.stdout;
    ensure(text.contains("part of      a Spin app\n"), text)?;
    for whole in [test.host.module("hello")?, test.host.component("handler3")?] {
        ensure_eq(&inspect(test, &whole)?["partOf"], &Value::Null)?;
    }
    // A container of such a file does not run.
    let module = fs::read(test.host.module("spin3")?)?;
    let bundle = Bundle::new(test, &["/spin3.wasm"])?
        .file("/spin3.wasm", module)?
        .annotation("run.oci.handler", "wasm");
    bundle.write()?;
    let missing = inspect(test, &bundle.folder)?["missing"].to_string();
    ensure(missing.contains("the manifest `spin.toml` of its app"), missing)
}

fn how_a_handler_is_served_is_listed(test: &Test) -> Outcome {
    both_engines(test)?;
    let handler = fs::read(test.host.component("handler")?)?;
    let bundle = Bundle::new(test, &["/handler.wasm"])?
        .file("/handler.wasm", handler)?
        .annotation("run.oci.handler", "wasm")
        .annotation("run.oci.wasm.http", "127.0.0.1:9000")
        .annotation("run.oci.wasm.http-requests", "5")
        .annotation("run.oci.wasm.http-grace", "1.5")
        .annotation("run.oci.wasm.http-outbound", "a.example:81,b.example");
    bundle.write()?;
    let http = inspect(test, &bundle.folder)?["allowed"]["http"].clone();
    let expected = json!({
        "address": "127.0.0.1:9000",
        "outbound": ["a.example:81", "b.example"],
        "values": { "http-grace": "1500", "http-requests": "5" },
    });
    ensure_eq(&http, &expected)?;
    let folder = bundle.folder.display().to_string();
    let text = test.rt(["wasm", "inspect", &folder])?.success()?.stdout;
    let expected = "             requests to: a.example:81, b.example\n\
        serves       127.0.0.1:9000\n             http-grace: 1500\n             http-requests: 5\n";
    ensure(text.contains(expected), text)?;
    // A command serves nothing.
    let command = inspect(test, &test.host.component("hello")?)?;
    ensure_eq(&command["allowed"]["http"], &Value::Null)
}

fn what_is_no_module_is_an_error(test: &Test) -> Outcome {
    both_engines(test)?;
    for (name, content, error) in [
        ("text", &b"hello"[..], "it is not a WebAssembly module"),
        ("empty", b"", "it is not a WebAssembly module"),
        ("short", b"\0asm\x01\0\0\0\x02\x7f\x01", "the file ends within a section"),
        ("endless", b"\0asm\x01\0\0\0\x02\xff\xff\xff\xff\x0f", "larger than 4 MiB"),
    ] {
        let path = file(test, name, content)?.display().to_string();
        test.rt(["wasm", "inspect", &path])?.fails_with(error)?;
    }
    test.rt(["wasm", "inspect", "/dev/zero"])?.fails_with("it is not a regular file")?;
    test.rt(["wasm", "inspect", "/nothing"])?.fails_with("No such file").map(drop)
}

/// The names in a module are anybody's.
fn names_cannot_change_the_terminal(test: &Test) -> Outcome {
    both_engines(test)?;
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0c\x01\x03\x1b[J\x04a\nb\r\0\0";
    let path = file(test, "names.wasm", module)?.display().to_string();
    let text = test.rt(["wasm", "inspect", &path])?.success()?.stdout;
    ensure(!text.contains(['\u{1b}', '\r']) && text.contains("\\u{1b}[J"), text)
}

fn native_code_that_is_there_is_ready(test: &Test) -> Outcome {
    both_engines(test)?;
    let component = test.host.component("hello")?;
    let before = inspect(test, &component)?;
    ensure_eq(before["engine"]["native"].as_str(), Some("not yet"))?;
    test.rt(["wasm", "compile", &component.display().to_string()])?.success()?;
    let after = inspect(test, &component)?;
    ensure_eq(after["engine"]["native"].as_str(), Some("ready"))
}
