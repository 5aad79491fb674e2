//! Which workload a container is: a Linux program, or a WebAssembly module for an engine.
//!
//! Only three things decide: the configuration, the name by which `rt` was called, and the first
//! bytes of the program as the container sees it. The rules, with their origin, are in
//! `docs/workload.md`.
#![forbid(unsafe_code)]

mod compile;
mod contents;
mod http;
mod ports;
mod registered;
mod rights;
mod seconds;

use std::os::fd::BorrowedFd;

use std::path::Path;

use anyhow::{Result, bail};
use oci_spec::runtime::Spec;

use serde::{Deserialize, Serialize};

use crate::bundle::annotation;

pub(crate) use compile::{Compile, Wish};
pub(crate) use contents::{Contents, Item};
pub(crate) use registered::{Registered, registered_formats};
#[cfg(test)]
pub(crate) use rights::names_of_annotations;
pub(crate) use rights::{Directory, Rights, is_the_kernels};

/// How many bytes of the program decide.
pub(crate) const HEAD: usize = 8;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Workload {
    Linux,
    /// A module, a component, or an app of several.
    Wasm(Format),
}

/// The handler that a configuration asks for: the annotation's value, or an equivalent.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "String", into = "String")]
pub(crate) enum Handler {
    /// Any engine that runs the program.
    Any,
    /// Any engine that runs the program as a Spin app.
    Spin,
    /// The engine of this name.
    Named(String),
}

/// The values of `run.oci.handler` that do not name one engine. `wasm-smart` means the same as
/// `wasm`, because the program's head decides anyway. All other values are names of engines.
pub(crate) const HANDLERS: [&str; 3] = ["wasm", "wasm-smart", SPIN];
const SPIN: &str = "spin";

impl From<String> for Handler {
    fn from(value: String) -> Handler {
        match value.as_str() {
            SPIN => Handler::Spin,
            any if HANDLERS.contains(&any) => Handler::Any,
            _ => Handler::Named(value),
        }
    }
}

impl From<Handler> for String {
    fn from(handler: Handler) -> String {
        match handler {
            Handler::Any => HANDLERS[0].to_owned(),
            Handler::Spin => SPIN.to_owned(),
            Handler::Named(name) => name,
        }
    }
}

/// The kinds of modules that engines run, as `engine.json` names them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub(crate) enum World {
    /// A core module that exports `_start`, and imports only functions of WASI preview1.
    #[serde(rename = "wasip1-command")]
    Preview1Command,
    /// A core module that exports `_start`, and imports anything.
    #[serde(rename = "core-command")]
    CoreCommand,
    /// A component that exports `wasi:cli/run`.
    #[serde(rename = "wasi:cli/command")]
    CliCommand,
    /// A component that exports `wasi:http/incoming-handler`.
    #[serde(rename = "wasi:http/proxy")]
    HttpProxy,
    /// A component that exports `wasi:http/handler`.
    #[serde(rename = "wasi:http/service")]
    HttpService,
    /// A Spin app: a manifest, and the modules that it names.
    #[serde(rename = "spin")]
    Spin,
    /// A world of a newer contract.
    #[serde(other)]
    Unknown,
}

/// The values of `module.wasm.image/variant`.
const VARIANTS: [&str; 2] = ["compat", "compat-smart"];

/// The keys by which containerd's and CRI-O's CRI servers mark a pod's pause container.
const SANDBOX_MARKS: [&str; 2] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// The handler that the configuration or, failing that, the name of `rt` asks for. It is known
/// before anybody can look at the program.
pub(crate) fn asked(spec: &Spec, argv0: &str) -> Result<Option<Handler>> {
    if SANDBOX_MARKS.iter().any(|key| annotation(spec, key) == Some("sandbox")) {
        return Ok(None);
    }
    if let Some(handler) = annotation(spec, "run.oci.handler") {
        return Ok(Some(Handler::from(handler.to_owned())));
    }
    if let Some(variant) = annotation(spec, "module.wasm.image/variant") {
        if VARIANTS.contains(&variant) {
            return Ok(Some(Handler::Any));
        }
        let known = VARIANTS.map(|name| format!("`{name}`")).join(", ");
        bail!(
            "unknown variant `{variant}` in the annotation `module.wasm.image/variant`: rt knows {known}"
        );
    }
    let name = argv0.rsplit('/').next().unwrap_or(argv0);
    if name.ends_with("-spin") {
        return Ok(Some(Handler::Spin));
    }
    Ok(name.ends_with("-wasm").then_some(Handler::Any))
}

/// The name of the file that describes a Spin app.
pub(crate) const MANIFEST: &str = "spin.toml";

/// The kind of the program's file, by its first bytes. A manifest is text, so its name decides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    Elf,
    Script,
    /// A core module: magic number and version 1 (WebAssembly core specification 5.5.16).
    Module,
    /// A component: the same magic number, layer 1 (component-model, `Binary.md`).
    Component,
    /// The manifest of a Spin app.
    Manifest,
    Unknown,
}

impl Format {
    pub(crate) fn of(path: &Path, head: &[u8]) -> Format {
        match head {
            [0x7f, b'E', b'L', b'F', ..] => Format::Elf,
            [b'#', b'!', ..] => Format::Script,
            [0, b'a', b's', b'm', _, _, 1, 0, ..] => Format::Component,
            [0, b'a', b's', b'm', ..] => Format::Module,
            _ if path.file_name().is_some_and(|name| name == MANIFEST) => Format::Manifest,
            _ => Format::Unknown,
        }
    }

    /// Reads what the file imports and exports.
    pub(crate) fn contents(self, file: BorrowedFd<'_>) -> Result<Contents> {
        contents::read(file, self)
    }

    /// The world of a component that handles requests of HTTP, and is not a command. The compiler
    /// says best what is wrong with a broken file, so that counts as a command.
    pub(crate) fn handler(self, file: BorrowedFd<'_>) -> Option<World> {
        if self != Format::Component {
            return None;
        }
        self.contents(file).ok()?.handler()
    }

    /// The worlds that the program may belong to, as far as its head tells.
    pub(crate) fn worlds(self) -> &'static [World] {
        match self {
            Format::Module => &[World::Preview1Command, World::CoreCommand],
            Format::Component => &[World::CliCommand, World::HttpProxy, World::HttpService],
            Format::Manifest => &[World::Spin],
            Format::Elf | Format::Script | Format::Unknown => &[],
        }
    }
}

/// Chooses the workload, or says why the program cannot run. The choice of an engine is a separate
/// step.
pub(crate) fn choose(asked: bool, format: Format, registered: Registered) -> Result<Workload> {
    match (format, asked) {
        (Format::Elf | Format::Script, _) => Ok(Workload::Linux),
        (Format::Module | Format::Component | Format::Manifest, true) => Ok(Workload::Wasm(format)),
        (Format::Module | Format::Component, false) if registered.wasm => Ok(Workload::Linux),
        (Format::Manifest | Format::Unknown, false) if registered.any => Ok(Workload::Linux),
        (Format::Module | Format::Component, false) => {
            bail!(
                "a WebAssembly module, but nothing asks for an engine: set the annotation `run.oci.handler` to `wasm`"
            )
        }
        (Format::Manifest, false) => {
            bail!(
                "a Spin manifest, but nothing asks for an engine: set the annotation `run.oci.handler` to `spin`"
            )
        }
        (Format::Unknown, true) => bail!("neither a WebAssembly module nor a native program"),
        (Format::Unknown, false) => {
            bail!("exec format error: neither an ELF program nor a `#!` script")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELF: &[u8] = b"\x7fELF\x02\x01\x01\x00";
    const SCRIPT: &[u8] = b"#!/bin/s";
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    const TEXT: &[u8] = b"hello wo";

    /// The workload for these annotations (`key=value` each), this name of `rt`, and this program's
    /// head.
    fn workload(annotations: &[&str], argv0: &str, head: &[u8]) -> Result<Workload> {
        let mut spec = Spec::default();
        let pairs = annotations.iter().filter_map(|pair| pair.split_once('='));
        spec.set_annotations(Some(
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ));
        let format = Format::of(Path::new("/app/program"), head);
        choose(asked(&spec, argv0)?.is_some(), format, Registered::default())
    }

    #[test]
    fn is_chosen_by_this_table() {
        const WASM: Option<Workload> = Some(Workload::Wasm(Format::Module));
        const PARTS: Option<Workload> = Some(Workload::Wasm(Format::Component));
        const LINUX: Option<Workload> = Some(Workload::Linux);
        const REFUSED: Option<Workload> = None;
        type Row = (&'static [&'static str], &'static str, &'static [u8], Option<Workload>);
        let table: &[Row] = &[
            (&[], "rt", ELF, LINUX),
            (&[], "rt", SCRIPT, LINUX),
            (&[], "rt", MODULE, REFUSED),
            (&[], "rt", COMPONENT, REFUSED),
            (&[], "rt", TEXT, REFUSED),
            (&[], "rt", b"", REFUSED),
            (&["run.oci.handler=wasm"], "rt", MODULE, WASM),
            (&["run.oci.handler=wasm-smart"], "rt", MODULE, WASM),
            (&["run.oci.handler=wasmedge"], "rt", MODULE, WASM),
            (&["run.oci.handler=wasm"], "rt", ELF, LINUX),
            (&["run.oci.handler=wasm"], "rt", SCRIPT, LINUX),
            (&["run.oci.handler=wasm"], "rt", TEXT, REFUSED),
            (&["run.oci.handler=wasm"], "rt", COMPONENT, PARTS),
            (&["run.oci.handler=wasm"], "rt", b"\0as", REFUSED),
            (&["module.wasm.image/variant=compat"], "rt", MODULE, WASM),
            (&["module.wasm.image/variant=compat-smart"], "rt", MODULE, WASM),
            (&["module.wasm.image/variant=compat"], "rt", ELF, LINUX),
            (&["module.wasm.image/variant=other"], "rt", MODULE, REFUSED),
            // The handler comes before the variant, and both come before the name.
            (&["run.oci.handler=wasm", "module.wasm.image/variant=other"], "rt", MODULE, WASM),
            (&[], "rt-wasm", MODULE, WASM),
            (&[], "/usr/bin/rt-wasm", MODULE, WASM),
            (&[], "crun-wasm", MODULE, WASM),
            (&[], "rt-wasm", ELF, LINUX),
            (&[], "/usr/lib-wasm/rt", MODULE, REFUSED),
            // A pause container stays Linux, whatever the pod's annotations say.
            (
                &["run.oci.handler=wasm", "io.kubernetes.cri.container-type=sandbox"],
                "rt",
                ELF,
                LINUX,
            ),
            (
                &["run.oci.handler=wasm", "io.kubernetes.cri-o.ContainerType=sandbox"],
                "rt",
                MODULE,
                REFUSED,
            ),
            (
                &["run.oci.handler=other", "io.kubernetes.cri-o.ContainerType=sandbox"],
                "rt",
                ELF,
                LINUX,
            ),
            (&["io.kubernetes.cri-o.ContainerType=sandbox"], "rt-wasm", ELF, LINUX),
            (
                &["run.oci.handler=wasm", "io.kubernetes.cri-o.ContainerType=container"],
                "rt",
                MODULE,
                WASM,
            ),
        ];
        for (annotations, argv0, head, expected) in table {
            let chosen = workload(annotations, argv0, head);
            assert_eq!(
                chosen.as_ref().ok(),
                expected.as_ref(),
                "{annotations:?} {argv0} {head:?}: {chosen:?}"
            );
        }
    }

    #[test]
    fn a_handler_comes_before_a_variant_and_both_before_a_name() {
        let handler = |annotations: &[(&str, &str)], argv0: &str| {
            let mut spec = Spec::default();
            let pairs = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into()));
            spec.set_annotations(Some(pairs.collect()));
            asked(&spec, argv0).expect("good")
        };
        let (named, variant) = (("run.oci.handler", "x"), ("module.wasm.image/variant", "compat"));
        let x = Some(Handler::Named("x".into()));
        assert_eq!(handler(&[named, variant], "rt-wasm"), x);
        assert_eq!(handler(&[variant], "rt-wasm"), Some(Handler::Any));
        assert_eq!(handler(&[("run.oci.handler", "")], "rt"), Some(Handler::Named(String::new())));
        for (value, expected) in HANDLERS.iter().zip([Handler::Any, Handler::Any, Handler::Spin]) {
            assert_eq!(handler(&[("run.oci.handler", value)], "rt"), Some(expected));
        }
        assert_eq!(handler(&[], "/usr/bin/rt-spin"), Some(Handler::Spin));
    }

    #[test]
    fn a_handler_is_kept_in_a_state() {
        for handler in [Handler::Any, Handler::Spin, Handler::Named("wasmedge".into())] {
            let text = serde_json::to_string(&handler).expect("written");
            assert_eq!(serde_json::from_str::<Handler>(&text).expect("read"), handler);
        }
    }

    #[test]
    fn an_unknown_format_is_left_to_the_kernel_where_it_may_know_it() {
        let other = Registered { any: true, wasm: false };
        assert_eq!(choose(false, Format::Unknown, other).ok(), Some(Workload::Linux));
        assert!(choose(false, Format::Module, other).is_err());
        let wasm = Registered { any: true, wasm: true };
        assert_eq!(choose(false, Format::Module, wasm).ok(), Some(Workload::Linux));
    }

    #[test]
    fn a_manifest_is_known_by_its_name() {
        let format = |path| Format::of(Path::new(path), b"spin_man");
        for path in ["/spin.toml", "spin.toml", "/a/b/spin.toml"] {
            assert_eq!(format(path), Format::Manifest, "{path}");
        }
        for path in ["/", "/spin.toml.bak", "/xspin.toml", "/spin.toml/x"] {
            assert_eq!(format(path), Format::Unknown, "{path}");
        }
        assert_eq!(Format::of(Path::new("/spin.toml"), ELF), Format::Elf);
        let none = Registered::default();
        let app = Some(Workload::Wasm(Format::Manifest));
        assert_eq!(choose(true, Format::Manifest, none).ok(), app);
        assert!(choose(false, Format::Manifest, none).is_err());
    }
}
