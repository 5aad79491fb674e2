//! The settings of the host's administrator for modules: `/etc/rt/wasm.json`, in JSON, where every
//! key is optional. `docs/wasm-cache.md` describes them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::workload::Compile;

/// The file, unless `--wasm-config` names another one.
const FILE: &str = "/etc/rt/wasm.json";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) compile: Compile,
    pub(crate) cache: CacheSettings,
    pub(crate) compiler: CompilerSettings,
    pub(crate) plugins: PluginSettings,
    /// The engines that come before others that run the same file, by the names of their
    /// directories.
    pub(crate) engines: Vec<String>,
}

/// Libraries by which an engine gives modules more than WASI.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PluginSettings {
    /// A directory of the host, with the plugins and the libraries that they require.
    pub(crate) directory: PathBuf,
    /// The plugins that a container may ask for: a name, and the file in the directory.
    pub(crate) allow: BTreeMap<String, PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CacheSettings {
    pub(crate) directory: PathBuf,
    /// The maximum size of the cache in bytes. The least recently used entries are removed first.
    pub(crate) max_bytes: u64,
}

impl Default for CacheSettings {
    fn default() -> CacheSettings {
        CacheSettings { directory: "/var/cache/rt/wasm".into(), max_bytes: 1 << 30 }
    }
}

/// The limits of the compiler.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CompilerSettings {
    /// Its user and group, which should own nothing on the host.
    pub(crate) user: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) seconds: u64,
    /// How long, in seconds, a container that wants native code waits for the compilers of others.
    pub(crate) wait_seconds: u64,
    /// In the background, the compiler gets only the processor time that no other process wants.
    pub(crate) idle: bool,
}

impl Default for CompilerSettings {
    fn default() -> CompilerSettings {
        // An id that nobody uses. It is not the overflow id 65534, which many programs run as. It
        // is above the ranges that systemd and subuid(5) give to containers.
        CompilerSettings {
            user: 1_879_048_192,
            memory_bytes: 2 << 30,
            seconds: 600,
            wait_seconds: 10,
            idle: true,
        }
    }
}

impl Settings {
    pub(crate) fn read(path: Option<&Path>) -> Result<Settings> {
        let file = path.unwrap_or(Path::new(FILE));
        let read = || -> Result<Settings> {
            let text = match crate::input::read_file(file) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound && path.is_none() => {
                    return Ok(Settings::default());
                }
                Err(error) => return Err(error.into()),
            };
            let settings: Settings = serde_json::from_slice(&text)?;
            settings.check()?;
            Ok(settings)
        };
        read().with_context(|| format!("read `{}`", file.display()))
    }

    /// The place of an engine in the administrator's order.
    pub(crate) fn rank(&self, engine: &str) -> usize {
        self.engines.iter().position(|name| name == engine).unwrap_or(usize::MAX)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.cache.directory.is_absolute(), "`cache.directory` is not an absolute path");
        ensure!(
            self.compiler.user != 0,
            "`compiler.user` is 0: root must not compile modules that nobody trusts"
        );
        ensure!(self.compiler.seconds > 0, "`compiler.seconds` is 0");
        ensure!(self.compiler.memory_bytes > 0, "`compiler.memoryBytes` is 0");
        let PluginSettings { directory, allow } = &self.plugins;
        ensure!(
            allow.is_empty() || directory.is_absolute(),
            "`plugins.directory` is not an absolute path"
        );
        for file in allow.values() {
            let mut parts = file.components();
            let is_name =
                matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            ensure!(is_name, "`plugins.allow`: `{}` is not a file's name", file.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        let settings: Settings = serde_json::from_str(text)?;
        settings.check()?;
        Ok(settings)
    }

    #[test]
    fn every_key_has_a_default() {
        let settings = parse(r#"{ "compile": "off", "cache": { "maxBytes": 5 } }"#).expect("good");
        assert_eq!(settings.compile, Compile::Off);
        assert_eq!(settings.cache.max_bytes, 5);
        assert_eq!(settings.cache.directory, Path::new("/var/cache/rt/wasm"));
        assert_eq!(settings.compiler.user, 0x7000_0000);
        assert_eq!(settings.compiler.wait_seconds, 10);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for wrong in [
            r#"{ "compile": "always" }"#,
            r#"{ "cach": {} }"#,
            r#"{ "cache": { "directory": "here" } }"#,
            r#"{ "compiler": { "user": 0 } }"#,
            r#"{ "compiler": { "seconds": -1 } }"#,
            r#"{ "plugins": { "allow": { "x": "x.so" } } }"#,
            r#"{ "plugins": { "directory": "/p", "allow": { "x": "../x.so" } } }"#,
            "",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
