//! What a module may do, if its container's annotations give it less than everything:
//! `docs/annotations.md`, "Modules".
#![forbid(unsafe_code)]

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Spec;

use super::compile::{Compile, Wish};
use super::http::{self, Http};
use super::ports;
use super::{World, seconds};
use crate::linux::ports::Ports;

/// The prefix of the annotations' names. No other name may begin with it.
const PREFIX: &str = "run.oci.wasm.";

/// The rest of the annotations' names.
const NAMES: [&str; 9] = [
    "bind",
    "compile",
    "compile-timeout",
    "connect",
    "dirs",
    "fuel",
    "plugins",
    "sockets",
    "timeout",
];

/// The rests of the names of all annotations for modules.
fn names() -> impl Iterator<Item = &'static &'static str> {
    NAMES.iter().chain(&http::NAMES)
}

/// The names of all annotations for modules.
#[cfg(test)]
pub(crate) fn names_of_annotations() -> impl Iterator<Item = String> {
    names().map(|name| format!("{PREFIX}{name}"))
}

/// Directories that show objects of the kernel or of the machine. A module never sees them.
pub(crate) const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rights {
    /// The module's directories, instead of all that the container has.
    pub(crate) directories: Option<Vec<Directory>>,
    pub(crate) sockets: bool,
    pub(crate) ports: Ports,
    /// The time limit of each program.
    pub(crate) timeout: Option<Duration>,
    /// The number of instructions that each program may run.
    pub(crate) fuel: Option<u64>,
    /// The engine's plugins, which it loads for the module.
    pub(crate) plugins: Vec<String>,
    /// Whether and when the module is compiled.
    pub(crate) compile: Option<Compile>,
    /// How long a start waits until the module is compiled.
    pub(crate) compile_timeout: Option<Duration>,
    /// How requests are served, if the module is a handler of requests.
    pub(crate) http: Http,
}

/// A directory of the container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
}

impl Default for Rights {
    /// Everything that the container has.
    fn default() -> Rights {
        Rights {
            directories: None,
            sockets: true,
            ports: Ports::default(),
            timeout: None,
            fuel: None,
            plugins: Vec::new(),
            compile: None,
            compile_timeout: None,
            http: Http::default(),
        }
    }
}

#[cfg(test)]
impl Rights {
    /// Those of a container with these annotations, without their prefix.
    pub(crate) fn sample(annotations: &[(&str, &str)]) -> Rights {
        let mut spec = Spec::default();
        let annotations = annotations.iter();
        let annotations =
            annotations.map(|(key, value)| (format!("{PREFIX}{key}"), (*value).into()));
        spec.set_annotations(Some(annotations.collect()));
        Rights::of(&spec).expect("rights")
    }
}

impl Rights {
    pub(crate) fn of(spec: &Spec) -> Result<Rights> {
        let mut rights = Rights::default();
        for (key, value) in spec.annotations().iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            rights.take(name, value).with_context(|| format!("the annotation `{key}`"))?;
        }
        ensure!(
            rights.sockets || !rights.http.sends(),
            "the annotation `{PREFIX}http-outbound` requires sockets, and `{PREFIX}sockets` is `off`"
        );
        Ok(rights)
    }

    pub(crate) fn wish(&self) -> Wish {
        Wish {
            compile: self.compile,
            counting: self.fuel.is_some(),
            patience: self.compile_timeout,
        }
    }

    /// Fails if an annotation is not for a Spin app.
    pub(crate) fn check_for_an_app(&self) -> Result<()> {
        let wrong = |name, what| {
            format!(
                "the annotation `{PREFIX}{name}` is not for a Spin app, whose manifest lists its {what}"
            )
        };
        ensure!(self.directories.is_none(), wrong("dirs", "files"));
        ensure!(!self.http.sends(), wrong("http-outbound", "hosts"));
        Ok(())
    }

    /// The options of the engine contract that a module requires with these rights, each with what
    /// requires it. `handler` is the module's world, if it handles
    /// requests of HTTP.
    pub(crate) fn needs(
        &self,
        handler: Option<World>,
    ) -> impl Iterator<Item = (&'static str, &'static str)> {
        let export = match handler {
            Some(World::HttpService) => "`wasi:http/handler`",
            _ => "`wasi:http/incoming-handler`",
        };
        [
            (handler.is_some(), ("http", export)),
            (self.fuel.is_some(), ("fuel", "the annotation `run.oci.wasm.fuel`")),
            (self.timeout.is_some(), ("timeout", "the annotation `run.oci.wasm.timeout`")),
            (!self.plugins.is_empty(), ("plugin", "the annotation `run.oci.wasm.plugins`")),
        ]
        .into_iter()
        .filter_map(|(needed, option)| needed.then_some(option))
    }

    fn take(&mut self, name: &str, value: &str) -> Result<()> {
        let Ports { tcp, udp } = &mut self.ports;
        match name {
            // Port 0 stands for any free port.
            "bind" => (tcp.bind, udp.bind) = ports::parse(value, 0)?,
            "connect" => (tcp.connect, udp.connect) = ports::parse(value, 1)?,
            "dirs" => self.directories = Some(directories(value)?),
            "sockets" => {
                self.sockets = match value {
                    "on" => true,
                    "off" => false,
                    _ => bail!("`{value}` is neither `on` nor `off`"),
                }
            }
            "timeout" => self.timeout = Some(seconds::parse(value)?),
            "fuel" => {
                let fuel = value.parse().ok().filter(|fuel| *fuel > 0);
                let wrong = || format!("`{value}` is not a number of instructions greater than 0");
                self.fuel = Some(fuel.with_context(wrong)?);
            }
            "plugins" => {
                let names = value.split(',').filter(|_| !value.is_empty());
                self.plugins = names.map(str::to_owned).collect();
            }
            "compile" => self.compile = Some(Compile::parse(value)?),
            "compile-timeout" => self.compile_timeout = Some(seconds::parse(value)?),
            _ if http::NAMES.contains(&name) => self.http.take(name, value)?,
            _ => {
                let known = names();
                let known: Vec<_> = known.map(|name| format!("`{PREFIX}{name}`")).collect();
                bail!("rt knows {}", known.join(", "))
            }
        }
        Ok(())
    }
}

/// Parses `PATH` and `PATH:ro`, separated by commas.
fn directories(value: &str) -> Result<Vec<Directory>> {
    let entries = value.split(',').filter(|_| !value.is_empty());
    let entries = entries.map(|entry| directory(entry).with_context(|| format!("`{entry}`")));
    let directories = entries.collect::<Result<Vec<_>>>()?;
    for inner in directories.iter().filter(|directory| directory.read_only) {
        let outer = directories.iter().find(|it| !it.read_only && inner.path.starts_with(&it.path));
        if let Some(outer) = outer {
            let (inner, outer) = (inner.path.display(), outer.path.display());
            bail!("`{inner}:ro` is writable through `{outer}`");
        }
    }
    Ok(directories)
}

fn directory(entry: &str) -> Result<Directory> {
    let (path, read_only) = match entry.split_once(':') {
        None => (entry, false),
        Some((path, "ro")) => (path, true),
        Some((_, _)) => bail!("a path may be followed by `:ro` only"),
    };
    let path = Path::new(path);
    ensure!(path.is_absolute(), "not an absolute path");
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    ensure!(path.components().all(plain), "a path with `..`");
    ensure!(!is_the_kernels(path), "{} are never shown to a module", KERNELS.join(", "));
    Ok(Directory { path: path.components().collect(), read_only })
}

pub(crate) fn is_the_kernels(path: &Path) -> bool {
    KERNELS.iter().any(|kernel| path.starts_with(kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Result<Rights> {
        let mut spec = Spec::default();
        spec.set_annotations(Some([(format!("{PREFIX}{name}"), value.to_owned())].into()));
        Rights::of(&spec)
    }

    #[test]
    fn directories_are_listed() {
        let entry = |path: &str, read_only| Directory { path: path.into(), read_only };
        let of = |value| of("dirs", value).expect(value).directories;
        assert_eq!(of("/data,/etc/x:ro"), Some(vec![entry("/data", false), entry("/etc/x", true)]));
        let narrower = vec![entry("/a", true), entry("/a/b", false)];
        assert_eq!(of("/a:ro,/a/b"), Some(narrower));
        assert_eq!(of("/"), Some(vec![entry("/", false)]));
        assert_eq!(of(""), Some(Vec::new()));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for wrong in [
            "data",
            "/a/../b",
            "/a:rw",
            "/a:ro:ro",
            "/a,",
            "/proc/self",
            "/sys",
            "/dev",
            "/a,/a/b:ro",
            "/a:ro,/a",
        ] {
            assert!(of("dirs", wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "no", "OFF"] {
            assert!(of("sockets", wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "-1", "1k", "18446744073709551616"] {
            assert!(of("fuel", wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "on", "Lazy"] {
            assert!(of("compile", wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "-1", "1h", "inf", "NaN", "1e9", "0.0001"] {
            assert!(of("timeout", wrong).is_err(), "{wrong}");
            assert!(of("compile-timeout", wrong).is_err(), "{wrong}");
        }
        assert!(of("socket", "off").is_err());
        assert_eq!(of("timeout", "1.5").expect("good").timeout, Some(Duration::from_millis(1500)));
    }
}
