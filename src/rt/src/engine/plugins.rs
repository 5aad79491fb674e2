//! Engine plugins that a container asks for and the host's administrator allows. Runs in the
//! runtime process.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD};

use super::settings::PluginSettings;
use crate::trust;

/// The plugins that an engine is to load.
#[derive(Debug)]
pub(crate) struct Plugins {
    /// Their directory, on a read-only mount of its own that nobody can change. The container
    /// cannot write to it, and cannot reach anything above it.
    pub(crate) mount: OwnedFd,
    /// Files in that directory.
    pub(crate) files: Vec<PathBuf>,
}

/// Returns `None` if the container asks for no plugins.
pub(super) fn open(settings: &PluginSettings, names: &[String]) -> Result<Option<Plugins>> {
    if names.is_empty() {
        return Ok(None);
    }
    let file = |name: &String| {
        settings.allow.get(name).cloned().with_context(|| {
            let known = settings.allow.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            format!("the plugin `{name}` is not allowed on this host, which allows {known}")
        })
    };
    let files = names.iter().map(file).collect::<Result<Vec<_>>>()?;
    let directory = &settings.directory;
    let open = || -> Result<OwnedFd> {
        // Containers run the files in this directory without a further check.
        let opened = trust::directory(directory)?;
        for file in &files {
            let there = rustix::fs::statat(&opened, file, AtFlags::empty())
                .with_context(|| format!("find `{}`", file.display()))?;
            ensure!(trust::is_ours(&there), "others can write to `{}`", file.display());
        }
        super::cut_off(CWD, directory)
    };
    let mount = open().with_context(|| format!("open the plugins in `{}`", directory.display()))?;
    Ok(Some(Plugins { mount, files }))
}
