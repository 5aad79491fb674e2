//! `rt wasm inspect MODULE|BUNDLE`: what a module is, which engine would run it, what it would be
//! allowed, and what it would lack. Reads the outermost sections only, and changes nothing.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::program::Program;
use crate::bundle::Bundle;
use crate::cli::{CheckFormat, Global, WasmInspect};
use crate::engine::{Description, Engines};
use crate::linux::ports::{Allowed, Ports};
use crate::report::visible;
use crate::state::Root;
use crate::workload::{self, Contents, Format, Item, Rights};

pub(super) fn inspect(root: &Root, global: &Global, args: &WasmInspect) -> Result<()> {
    let program = Program::open(&args.path)?;
    // A manifest has no sections. The modules that it names are known only to its compiler.
    let contents = match program.format {
        Format::Manifest => Contents::default(),
        format => format.contents(program.module.as_fd())?,
    };
    let mut missing = Vec::new();
    let world = world(program.format, &contents);
    let of_an_app = contents.part_of_an_app(program.format).is_some();
    if of_an_app && program.bundle.is_some() {
        missing.push(format!("the manifest `{}` of its app", workload::MANIFEST));
    } else if world.is_none() && !of_an_app {
        missing.push(match program.format {
            Format::Component => "an export that an engine calls: `wasi:cli/run@0.2`, \
                                  `wasi:cli/run@0.3`, `wasi:http/incoming-handler@0.2` or \
                                  `wasi:http/handler@0.3`"
                .to_owned(),
            _ => "the exported function `_start`".to_owned(),
        });
    }
    let engine = match engine(root, global, &program, &contents, &mut missing) {
        Ok(engine) => engine,
        Err(error) => {
            missing.push(format!("an engine: {error:#}"));
            Value::Null
        }
    };
    let is_known = program.format != Format::Manifest;
    let bytes = rustix::fs::fstat(&program.module).context("read its size")?.st_size;
    let report = json!({
        "name": program.name,
        "bytes": bytes,
        "kind": match program.format {
            Format::Component => "component",
            Format::Manifest => "Spin app",
            _ => "core module",
        },
        "world": world,
        "partOf": of_an_app.then_some("Spin app"),
        "engine": engine,
        // Unknown for an app: its modules have them.
        "exports": is_known.then(|| items(&contents.exports)),
        "imports": is_known.then(|| items(&contents.imports)),
        "allowed": allowed(&program, &contents)?,
        "missing": missing,
    });
    match args.format {
        CheckFormat::Json => super::super::print(&format!("{report}\n")),
        CheckFormat::Text => super::super::print(&text(&report)),
    }
}

/// The world that the exports belong to, as `engine.json` names it.
fn world(format: Format, contents: &Contents) -> Option<&'static str> {
    let exports = |name: &str| {
        let is_it = |rest: &str| rest.is_empty() || rest.starts_with('.');
        contents.exports.iter().any(|it| it.name.strip_prefix(name).is_some_and(is_it))
    };
    match format {
        Format::Manifest => Some("spin"),
        Format::Component if exports("wasi:cli/run@0.2") || exports("wasi:cli/run@0.3") => {
            Some("wasi:cli/command")
        }
        Format::Component if exports("wasi:http/handler@0.3") => Some("wasi:http/service"),
        Format::Component if exports("wasi:http/incoming-handler@0.2") => Some("wasi:http/proxy"),
        Format::Module if exports("_start") && contents.beyond_preview1().is_none() => {
            Some("wasip1-command")
        }
        Format::Module if exports("_start") => Some("core-command"),
        _ => None,
    }
}

/// The engine that would run the module, and its native code.
fn engine(
    root: &Root,
    global: &Global,
    program: &Program,
    contents: &Contents,
    missing: &mut Vec<String>,
) -> Result<Value> {
    let Program { module, format, handler, rights, .. } = program;
    let engines = Engines::find(handler, super::super::host(root, global), &rights.plugins)?;
    let world = if *format == Format::Component { contents.handler() } else { None };
    let is_part = contents.part_of_an_app(*format).is_some();
    // A part of an app runs in an engine that runs apps.
    let whole = if is_part { Format::Manifest } else { *format };
    let number = engines.choose(whole, world, module.as_fd(), rights)?;
    if whole == Format::Manifest {
        rights.check_for_an_app()?;
    }
    let description = &engines.get(number)?.description;
    // An app has further interfaces, and starts whatever its modules import.
    if !is_part {
        missing.extend(unknown(description, contents, rights));
    }
    let native = match engines.native(number) {
        Err(_) => "none",
        Ok(native) => {
            let key = native.key(module.as_fd(), rights.wish().counting)?;
            match key {
                None => "too large",
                Some(key) if native.cache.find(&key).is_some() => "ready",
                Some(key) => match native.failure(&key) {
                    Some(failure) => {
                        missing.push(format!("native code: {}", failure.why));
                        "failed"
                    }
                    None if native.can_compile => "not yet",
                    None => "none",
                },
            }
        }
    };
    if native == "none" && !description.interprets {
        missing.push("native code: neither a compiler nor a cache for this user".to_owned());
    }
    Ok(json!({
        "name": description.name, "version": description.version,
        "interprets": description.interprets, "native": native,
    }))
}

/// The imports that the engine does not have. A plugin may have any.
fn unknown(engine: &Description, contents: &Contents, rights: &Rights) -> Vec<String> {
    let is_unknown = |import: &&Item| engine.gives(import) == Some(false);
    let unknown = contents.imports.iter().filter(is_unknown).filter(|_| rights.plugins.is_empty());
    unknown.map(|import| format!("the import {}", named(import))).collect()
}

fn named(item: &Item) -> String {
    let of = if item.module.is_empty() { String::new() } else { format!(" of `{}`", item.module) };
    format!("`{}`{of}", item.name)
}

fn items(items: &[Item]) -> Value {
    let one = |item: &Item| {
        let mut value = json!({ "name": item.name, "kind": item.kind });
        if !item.module.is_empty() {
            value["module"] = json!(item.module);
        }
        value
    };
    items.iter().map(one).collect()
}

/// What the annotations and mounts give the module. The manifest of a Spin app says the rest: `rt`
/// does not read it.
fn allowed(program: &Program, contents: &Contents) -> Result<Value> {
    let Program { format, rights, bundle, .. } = program;
    let is_app = *format == Format::Manifest || contents.part_of_an_app(*format).is_some();
    let listed = |directory: &workload::Directory| {
        let right = if directory.read_only { ":ro" } else { "" };
        format!("{}{right}", directory.path.display())
    };
    let directories: Vec<String> = match &rights.directories {
        _ if is_app => Vec::new(),
        Some(directories) => directories.iter().map(listed).collect(),
        None => {
            let mounts = bundle.as_ref().and_then(|bundle| bundle.spec.mounts().as_ref());
            let mounts = mounts.into_iter().flatten().map(|mount| mount.destination().as_path());
            let mounts = mounts.filter(|path| !workload::is_the_kernels(path));
            [Path::new("/")].into_iter().chain(mounts).map(|it| it.display().to_string()).collect()
        }
    };
    let ports = |tcp: &Allowed, udp: &Allowed| -> Value {
        if tcp.is_none() && udp.is_none() {
            return json!("all");
        }
        let list = |name: &str, allowed: &Allowed| -> Vec<String> {
            let all = vec![0..=u16::MAX];
            let ranges = allowed.as_ref().unwrap_or(&all).iter();
            ranges.map(|it| format!("{name}/{}-{}", it.start(), it.end())).collect()
        };
        json!([list("tcp", tcp), list("udp", udp)].concat())
    };
    let Ports { tcp, udp } = &rights.ports;
    let is_server = is_app || *format == Format::Component && contents.handler().is_some();
    let http = match is_server {
        true => {
            let process = bundle.as_ref().map(Bundle::process);
            let env = process.and_then(|it| it.env().clone()).unwrap_or_default();
            let values: serde_json::Map<String, Value> =
                rights.http.values().map(|(name, value)| (name.into(), json!(value))).collect();
            json!({
                "address": rights.http.address(is_app, &env)?.to_string(),
                "outbound": rights.http.outbound(),
                "values": values,
            })
        }
        false => Value::Null,
    };
    Ok(json!({
        "byManifest": is_app,
        "directories": directories,
        "sockets": rights.sockets,
        "bind": ports(&tcp.bind, &udp.bind),
        "connect": ports(&tcp.connect, &udp.connect),
        "timeoutSeconds": rights.timeout.map(|timeout| timeout.as_secs_f64()),
        "fuel": rights.fuel,
        "plugins": rights.plugins,
        "http": http,
    }))
}

/// The report for people: one fact a line.
fn text(report: &Value) -> String {
    let string = |value: &Value| match value {
        Value::String(text) => visible(text),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) => {
            let list = list.iter().map(|it| visible(it.as_str().unwrap_or_default()));
            list.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let or = |value: &Value, other: &str| match value {
        Value::Null => other.to_owned(),
        value => string(value),
    };
    let mut lines: Vec<(&str, String)> = vec![
        ("name", string(&report["name"])),
        ("size", format!("{} bytes", report["bytes"])),
        ("kind", string(&report["kind"])),
    ];
    match report["partOf"].as_str() {
        Some(whole) => lines.push(("part of", format!("a {whole}"))),
        None => lines.push(("world", or(&report["world"], "none that an engine runs"))),
    }
    let engine = &report["engine"];
    if engine.is_null() {
        lines.push(("engine", "none".to_owned()));
    } else {
        lines.push((
            "engine",
            format!("{} {}", string(&engine["name"]), or(&engine["version"], "")),
        ));
        lines.push(("native code", string(&engine["native"])));
    }
    for (key, title) in [("exports", "exports"), ("imports", "imports")] {
        for item in report[key].as_array().into_iter().flatten() {
            let of =
                item["module"].as_str().map_or(String::new(), |it| format!("{} ", visible(it)));
            lines.push((
                title,
                format!("{of}{} ({})", string(&item["name"]), string(&item["kind"])),
            ));
        }
    }
    let allowed = &report["allowed"];
    let (is_app, http) = (allowed["byManifest"] == json!(true), &allowed["http"]);
    let ports =
        format!("bind {}, connect {}", string(&allowed["bind"]), string(&allowed["connect"]));
    let sockets = match (&allowed["sockets"], is_app) {
        (Value::Bool(true), false) => format!("sockets: {ports}"),
        (Value::Bool(true), true) => {
            format!("sockets: none but to hosts that the manifest lists for all schemes; {ports}")
        }
        _ => "no sockets".to_owned(),
    };
    let (files, hosts) = match is_app {
        true => (
            "files: none but those that the manifest lists".to_owned(),
            "none but those that the manifest lists".to_owned(),
        ),
        false => {
            (format!("directories: {}", string(&allowed["directories"])), string(&http["outbound"]))
        }
    };
    lines.push(("allowed", files));
    lines.push(("allowed", sockets));
    lines.push(("allowed", format!("seconds: {}", or(&allowed["timeoutSeconds"], "no limit"))));
    lines.push(("allowed", format!("instructions: {}", or(&allowed["fuel"], "no limit"))));
    lines.push(("allowed", format!("plugins: {}", string(&allowed["plugins"]))));
    if !http.is_null() {
        lines.push(("allowed", format!("requests to: {hosts}")));
        lines.push(("serves", string(&http["address"])));
        for (name, value) in http["values"].as_object().into_iter().flatten() {
            lines.push(("serves", format!("{name}: {}", string(value))));
        }
    }
    for missing in report["missing"].as_array().into_iter().flatten() {
        lines.push(("missing", string(missing)));
    }
    let mut text = String::new();
    let mut last = "";
    for (title, line) in lines {
        // A title stands before the first of its lines.
        let shown = if title == last { "" } else { title };
        last = title;
        text += format!("{shown:<13}{line}").trim_end();
        text.push('\n');
    }
    text
}
