//! Chooses the engine of a module: from the installed engines that its container allows.
#![forbid(unsafe_code)]

use std::cell::LazyCell;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};

use super::{Description, Directory, Host, Installed, Native, Plugins, Settings, plugins};
use crate::exe;
use crate::workload::{Format, HANDLERS, Handler, Item, MANIFEST, Rights, World};

/// The engines that a container may use. The runtime process finds them on the host before the
/// container exists, because only init can see what the program is.
#[derive(Debug)]
pub(crate) struct Engines<'a> {
    host: Host<'a>,
    settings: Settings,
    /// Whether the program must be a Spin app.
    spin: bool,
    /// In the order of the settings, and then by name.
    engines: Vec<Installed>,
    /// Why other engines cannot be used.
    broken: Vec<String>,
    /// `None` if the container asks for no plugins.
    pub(crate) plugins: Option<Plugins>,
}

impl<'a> Engines<'a> {
    /// Finds the engines that a handler allows, and the named plugins. Fails if there is no engine.
    pub(crate) fn find(
        handler: &Handler,
        host: Host<'a>,
        plugins: &[String],
    ) -> Result<Engines<'a>> {
        let folder = exe::engines()?;
        let settings = Settings::read(host.config)?;
        let (mut engines, mut broken) = (Vec::new(), Vec::new());
        match handler {
            Handler::Any | Handler::Spin => {
                for (_, engine) in all(&folder)? {
                    match engine {
                        Ok(engine) => engines.push(engine),
                        Err(error) => broken.push(error),
                    }
                }
                // Those that the administrator has not named stay in the order of their names.
                engines.sort_by_key(|engine: &Installed| settings.rank(&engine.name));
                if engines.is_empty() {
                    let none = || anyhow!("no Wasm engine is installed in `{}`", folder.display());
                    return Err(broken.into_iter().next().unwrap_or_else(none));
                }
            }
            Handler::Named(name) => engines.push(named(&folder, name)?),
        }
        let broken = broken.iter().map(|error| format!("{error:#}")).collect();
        let plugins = plugins::open(&settings.plugins, plugins)?;
        let spin = *handler == Handler::Spin;
        Ok(Engines { host, settings, spin, engines, broken, plugins })
    }

    /// The number of the first engine that can run a program of this format with these rights.
    /// `handler` is the program's world, if it handles requests of HTTP.
    pub(crate) fn choose(
        &self,
        format: Format,
        handler: Option<World>,
        program: BorrowedFd<'_>,
        rights: &Rights,
    ) -> Result<usize> {
        let descriptions = self.engines.iter().map(|engine| &engine.description);
        // Reads the file at most once. The engine reports what is wrong with a file that cannot be
        // read here.
        let contents = LazyCell::new(|| format.contents(program).ok());
        let beyond = || contents.as_ref()?.beyond_preview1().cloned();
        let descriptions = descriptions.collect::<Vec<_>>();
        if format == Format::Module
            && let Some(contents) = &*contents
            && let Some(export) = contents.part_of_an_app(format)
        {
            bail!(
                "a part of a Spin app, which does not run by itself, because it exports `{}` and no `_start`: run the app's manifest `{MANIFEST}`",
                export.name
            );
        }
        let chosen = choose(&descriptions, format, handler, &beyond, rights).map_err(|error| {
            let broken = &self.broken;
            if broken.is_empty() { error } else { anyhow!("{error}; {}", broken.join("; ")) }
        })?;
        if self.spin && format != Format::Manifest {
            let name = &self.get(chosen)?.name;
            bail!(
                "{}, not a Spin manifest: with the annotation `run.oci.handler=wasm`, the engine `{name}` runs it",
                what(format)
            );
        }
        Ok(chosen)
    }

    pub(crate) fn get(&self, number: usize) -> Result<&Installed> {
        self.engines.get(number).context("there is no such engine")
    }

    /// Opens the directory of the engine with this number.
    pub(crate) fn open(&self, number: usize) -> Result<Directory> {
        let engine = self.get(number)?;
        Directory::open(engine, &self.settings, &self.host).with_context(|| {
            format!("open engine `{}` in `{}`", engine.name, engine.path.display())
        })
    }

    /// The native code of the engine with this number: its cache, and how to compile.
    pub(crate) fn native(&self, number: usize) -> Result<Native> {
        let Installed { name, path, description } = self.get(number)?;
        let native = Native::new(name, description, self.settings.clone(), &self.host)?;
        native
            .context("it does not run native code")
            .with_context(|| format!("open engine `{name}` in `{}`", path.display()))
    }

    /// The same for each engine that runs native code. Fails if there is no such engine.
    pub(crate) fn natives(&self) -> Result<Vec<Native>> {
        let (mut natives, mut why) = (Vec::new(), None);
        for number in 0..self.engines.len() {
            match self.native(number) {
                Ok(native) => natives.push(native),
                Err(error) => why = why.or(Some(error)),
            }
        }
        match why.filter(|_| natives.is_empty()) {
            Some(error) => Err(error),
            None => Ok(natives),
        }
    }

    /// The files of the plugins to load, relative to the plugins' directory.
    pub(crate) fn plugin_files(&self) -> &[PathBuf] {
        self.plugins.as_ref().map_or(&[], |plugins| &plugins.files)
    }
}

/// The engines that `rt` was tested with. A host may have others.
pub(crate) const ENGINES: [&str; 2] = ["wasmedge", "wasmtime"];

/// What does not run without one of these engines.
pub(crate) fn what_for(name: &str) -> &'static str {
    match name {
        "wasmtime" => "no components, handlers of HTTP requests and Spin apps",
        _ => "no core modules, unless another engine runs them",
    }
}

/// All engines in a folder, sorted by name, each with its description or the reason why it cannot
/// be used.
pub(crate) fn all(folder: &Path) -> Result<Vec<(String, Result<Installed>)>> {
    let all = names(folder)?.into_iter().map(|name| {
        let engine = Installed::find(folder, &name);
        (name, engine)
    });
    Ok(all.collect())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let show = || format!("read `{}`", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(show)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(show)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        // A packager's tool hides a directory that it is still working on.
        if !name.is_empty() && !name.starts_with('.') && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The engine of this name, which comes from a configuration.
fn named(folder: &Path, name: &str) -> Result<Installed> {
    let mut parts = Path::new(name).components();
    let is_name = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    if is_name && !name.starts_with('.') && folder.join(name).is_dir() {
        return Installed::find(folder, name);
    }
    if ENGINES.contains(&name) {
        bail!("the engine `{name}` is not installed in `{}`", folder.display());
    }
    let known = HANDLERS.iter().map(|name| (*name).to_owned()).chain(names(folder)?);
    let known = known.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    bail!("unknown handler `{name}` in the annotation `run.oci.handler`: rt knows {known}")
}

/// The first engine that runs this format with these rights. `beyond` returns a core module's first
/// import that is not one of preview1.
fn choose(
    engines: &[&Description],
    format: Format,
    handler: Option<World>,
    beyond: &dyn Fn() -> Option<Item>,
    rights: &Rights,
) -> Result<usize> {
    let worlds: &[World] = match (format, &handler) {
        (Format::Component, Some(handler)) => std::slice::from_ref(handler),
        (Format::Component, None) => &[World::CliCommand],
        _ => format.worlds(),
    };
    let mut lacks = None;
    let import = LazyCell::new(beyond);
    for (number, engine) in engines.iter().enumerate() {
        let name = &engine.name;
        if !engine.runs(worlds) {
            continue;
        }
        if format == Format::Module
            && !engine.runs(&[World::CoreCommand])
            && let Some(Item { module, name: function, .. }) = &*import
        {
            lacks.get_or_insert_with(|| {
                anyhow!(
                    "a WebAssembly core module that imports `{function}` of `{module}`, which the engine `{name}` does not have: it needs an engine such as `wasmedge`"
                )
            });
            continue;
        }
        let of_an_app = match format {
            Format::Manifest => &[("http", "a Spin app"), ("part", "a Spin app")][..],
            _ => &[],
        };
        let mut needs = of_an_app.iter().copied().chain(rights.needs(handler));
        match needs.find(|(option, _)| !engine.knows(option)) {
            None => return Ok(number),
            Some((option, cause)) => {
                lacks.get_or_insert_with(|| {
                    anyhow!(
                        "the engine `{name}` lacks the option `{option}`, which {cause} requires"
                    )
                });
            }
        }
    }
    Err(lacks.unwrap_or_else(|| mismatch(engines, format)))
}

/// Why no engine runs the format.
fn mismatch(engines: &[&Description], format: Format) -> Error {
    let names = engines.iter().map(|engine| format!("`{}`", engine.name)).collect::<Vec<_>>();
    let which = match names.as_slice() {
        [name] => format!("the engine {name} does not run"),
        names => format!("none of the engines {} runs", names.join(", ")),
    };
    let example = if format == Format::Module { "wasmedge" } else { "wasmtime" };
    anyhow!("{}, which {which}: it needs an engine such as `{example}`", what(format))
}

/// What an error calls a file.
fn what(format: Format) -> &'static str {
    match format {
        Format::Component => "a WebAssembly component",
        Format::Manifest => "a Spin manifest",
        _ => "a WebAssembly core module (WASI preview1)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_to_the_first_engine_that_runs_it() {
        let modules = Description::sample("a", "[]", r#"["wasip1-command"]"#);
        let components = Description::sample("b", "[]", r#"["wasi:cli/command", "x:y/z"]"#);
        let both = Description::sample(
            "c",
            r#"["fuel", "timeout"]"#,
            r#"["wasi:http/proxy", "wasip1-command"]"#,
        );
        let plain = Rights::default();
        let proxy = Description::sample("d", r#"["http"]"#, r#"["wasi:http/proxy"]"#);
        let (module, component) = ((Format::Module, None), (Format::Component, None));
        let handler = (Format::Component, Some(World::HttpProxy));
        let newer = (Format::Component, Some(World::HttpService));
        let apps = Description::sample("e", r#"["http", "part"]"#, r#"["spin"]"#);
        let app = (Format::Manifest, None);
        let service = Description::sample("f", r#"["http"]"#, r#"["wasi:http/service"]"#);
        for (engines, (format, handler), expected) in [
            (vec![&modules, &components], module, Some(0)),
            (vec![&modules, &components], component, Some(1)),
            (vec![&components, &both], module, Some(1)),
            (vec![&modules, &proxy], handler, Some(1)),
            (vec![&both, &proxy], handler, Some(1)),
            (vec![&proxy, &service], newer, Some(1)),
            (vec![&both, &proxy], newer, None),
            (vec![&modules], component, None),
            (vec![&components], module, None),
            (vec![&components], handler, None),
            (vec![&modules, &components, &both], app, None),
            (vec![&modules, &apps], app, Some(1)),
        ] {
            let chosen = choose(&engines, format, handler, &|| None, &plain).ok();
            assert_eq!(chosen, expected, "{format:?} {handler:?}");
        }
        let error = choose(&[&both], handler.0, handler.1, &|| None, &plain);
        let error = error.expect_err("refused").to_string();
        assert!(error.contains("lacks the option `http`, which `wasi:http/incoming"), "{error}");
        let fuel = Rights::sample(&[("fuel", "5"), ("timeout", "1")]);
        assert_eq!(choose(&[&modules, &both], Format::Module, None, &|| None, &fuel).ok(), Some(1));
        let error = choose(&[&modules], Format::Module, None, &|| None, &fuel)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("lacks the option `fuel`"), "{error}");
        assert!(error.contains("`run.oci.wasm.fuel`"), "{error}");
    }

    #[test]
    fn a_module_with_other_imports_goes_to_an_engine_that_may_have_them() {
        let narrow = Description::sample("a", "[]", r#"["wasip1-command"]"#);
        let wide = Description::sample("b", "[]", r#"["wasip1-command", "core-command"]"#);
        let socket = || {
            let (module, name) = ("wasi_snapshot_preview1".to_owned(), "sock_open".to_owned());
            Some(Item { module, name, kind: "func" })
        };
        let of = |engines: &[&Description], beyond: &dyn Fn() -> Option<Item>| {
            choose(engines, Format::Module, None, beyond, &Rights::default())
        };
        assert_eq!(of(&[&narrow, &wide], &socket).ok(), Some(1));
        assert_eq!(of(&[&narrow, &wide], &|| None).ok(), Some(0));
        // The first engine has everything: nobody reads the file.
        assert_eq!(of(&[&wide, &narrow], &|| panic!("read")).ok(), Some(0));
        let error = of(&[&narrow], &socket).expect_err("refused").to_string();
        assert!(error.contains("imports `sock_open` of `wasi_snapshot_preview1`"), "{error}");
        assert!(error.contains("engine `a` does not have"), "{error}");
    }

    #[test]
    fn a_handler_is_the_name_of_a_folder() {
        let folder = std::env::temp_dir().join(format!("rt-engines-{}", std::process::id()));
        fs::create_dir_all(folder.join("b/lib")).expect("made");
        fs::create_dir_all(folder.join(".c")).expect("made");
        for wrong in ["", ".", "..", ".c", "b/", "b/lib", "/", "../b", "d"] {
            let error = named(&folder, wrong).expect_err(wrong).to_string();
            assert!(error.contains("`wasm`, `wasm-smart`, `spin`, `b`"), "{error}");
        }
        let error = named(&folder, "b").expect_err("empty").to_string();
        assert!(error.starts_with("open engine `b` in"), "{error}");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
