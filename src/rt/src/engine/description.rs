//! `engine.json`: the description of an engine. It is read on the host, before a container exists.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::CONTRACT;
use crate::workload::{Item, World};

/// `engine.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Description {
    contract: u32,
    pub(crate) name: String,
    /// The engine's version.
    pub(crate) version: Option<String>,
    pub(crate) program: PathBuf,
    pub(crate) loader: Option<PathBuf>,
    pub(crate) libraries: Option<PathBuf>,
    /// Distinguishes this build from others of the same version.
    pub(super) build: Option<String>,
    /// The optional options of the contract that the engine knows.
    #[serde(default)]
    options: Vec<String>,
    /// The kinds of modules that it runs.
    #[serde(default)]
    worlds: Vec<World>,
    /// What the program gives its guests to import. `None` if nobody has listed it.
    imports: Option<Vec<String>>,
    /// Whether the program runs a module without native code.
    #[serde(default = "yes")]
    pub(crate) interprets: bool,
    /// Present if the engine compiles modules.
    pub(crate) compiler: Option<Compiler>,
    /// Whether the files that the compiler requires are installed too.
    #[serde(skip)]
    pub(crate) can_compile: bool,
}

fn yes() -> bool {
    true
}

/// How a compiler is started.
#[derive(Debug, Deserialize)]
pub(crate) struct Compiler {
    /// The program, if it is not the one that runs modules.
    pub(crate) program: Option<PathBuf>,
    /// A directory of libraries that are searched before the others.
    pub(crate) libraries: Option<PathBuf>,
}

/// An engine, and its directory on the host.
#[derive(Debug)]
pub(crate) struct Installed {
    /// The name of its directory.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) description: Description,
}

impl Installed {
    /// Reads the description of the engine in a directory, and finds its files.
    pub(crate) fn find(folder: &Path, name: &str) -> Result<Installed> {
        let path = folder.join(name);
        let find = || -> Result<Description> {
            let description = Description::read(&path)?;
            for file in description.files() {
                fs::metadata(path.join(file))
                    .with_context(|| format!("find `{}`", file.display()))?;
            }
            Ok(description)
        };
        let description =
            find().with_context(|| format!("open engine `{name}` in `{}`", path.display()))?;
        Ok(Installed { name: name.to_owned(), path, description })
    }
}

impl Description {
    /// Reads and checks the `engine.json` of a directory.
    pub(crate) fn read(path: &Path) -> Result<Description> {
        let text =
            crate::input::read_file(&path.join("engine.json")).context("read `engine.json`")?;
        let mut description: Description =
            serde_json::from_slice(&text).context("parse `engine.json`")?;
        let contract = description.contract;
        ensure!(
            contract == CONTRACT,
            "it speaks version {contract} of the engine contract, and rt version {CONTRACT}"
        );
        ensure!(
            description.interprets || description.knows("native"),
            "it interprets no modules, and lacks the option `native`"
        );
        let compiler = description.compiler.as_ref();
        let compiler = compiler.map(|it| [it.program.as_ref(), it.libraries.as_ref()]);
        let compiler: Vec<&PathBuf> = compiler.into_iter().flatten().flatten().collect();
        for path in description.files().chain(compiler.iter().copied()) {
            let inside =
                path.components().all(|component| matches!(component, Component::Normal(_)));
            ensure!(inside, "`{}` in `engine.json` leads out of the directory", path.display());
        }
        // A distributor may omit the compiler's files, which are the largest part of an engine.
        let is_there = compiler.iter().all(|file| path.join(file).exists());
        description.can_compile = description.compiler.is_some() && is_there;
        Ok(description)
    }

    /// The files in the engine's directory that running a module requires.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [Some(&self.program), self.loader.as_ref(), self.libraries.as_ref()].into_iter().flatten()
    }

    /// The engine's name, with its version if the description has one.
    pub(crate) fn label(&self) -> String {
        let Description { name, version, .. } = self;
        version.as_ref().map_or_else(|| name.clone(), |version| format!("{name} {version}"))
    }

    /// Whether the engine knows an option of the contract.
    pub(crate) fn knows(&self, option: &str) -> bool {
        self.options.iter().any(|known| known == option)
    }

    /// Whether the engine gives its guests what this import wants: a module of a core module, or an
    /// interface of a package. `None` if the description does not say.
    pub(crate) fn gives(&self, import: &Item) -> Option<bool> {
        let imports = self.imports.as_ref()?;
        if !import.module.is_empty() {
            return Some(imports.contains(&import.module));
        }
        // `namespace:package/interface@version`. A version of 0.x is compatible with others of 0.x.
        let (name, version) = import.name.split_once('@').unwrap_or((&import.name, ""));
        let package = name.split_once('/').map_or(name, |(package, _)| package);
        Some(imports.iter().any(|given| {
            let (given, wanted) = given.split_once('@').unwrap_or((given, ""));
            let rest = version.strip_prefix(wanted);
            given == package && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }))
    }

    /// Whether the engine runs one of these worlds.
    pub(crate) fn runs(&self, worlds: &[World]) -> bool {
        worlds.iter().any(|world| self.worlds.contains(world))
    }
}

#[cfg(test)]
impl Description {
    /// A description with these options and worlds, given in JSON.
    pub(super) fn sample(name: &str, options: &str, worlds: &str) -> Description {
        let text = format!(
            r#"{{ "contract": 2, "name": "{name}", "program": "program", "loader": "ld.so",
                "libraries": "lib", "options": {options}, "worlds": {worlds} }}"#
        );
        serde_json::from_str(&text).expect("a description")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_given_by_its_package_and_version() {
        let mut engine = Description::sample("a", "[]", "[]");
        let of = |engine: &Description, module: &str, name: &str| {
            let (module, name) = (module.to_owned(), name.to_owned());
            engine.gives(&Item { module, name, kind: "instance" })
        };
        assert_eq!(of(&engine, "", "wasi:cli/exit@0.2.0"), None);
        let given = ["wasi:cli@0.2", "wasi_snapshot_preview1"].map(str::to_owned);
        engine.imports = Some(given.to_vec());
        for (name, expected) in [
            ("wasi:cli/exit@0.2.0", true),
            ("wasi:cli/exit@0.2.12", true),
            ("wasi:cli/exit@0.3.0", false),
            ("wasi:cli/exit@0.20.0", false),
            ("wasi:cli/exit", false),
            ("wasi:clis/exit@0.2.0", false),
            ("exit", false),
        ] {
            assert_eq!(of(&engine, "", name), Some(expected), "{name}");
        }
        assert_eq!(of(&engine, "wasi_snapshot_preview1", "fd_write"), Some(true));
        assert_eq!(of(&engine, "env", "fd_write"), Some(false));
    }
}
