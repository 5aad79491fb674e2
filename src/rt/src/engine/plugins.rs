//! Plugins of an engine that a container asks for and the host's administrator allows. Runs in the
//! caller's process.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD};

use super::settings::PluginSettings;
use crate::trust;

/// What an engine is to load.
#[derive(Debug)]
pub(crate) struct Plugins {
    /// Their directory, on a read-only mount of its own that nobody can change: the container
    /// cannot write to it, and finds nothing above it.
    pub(crate) mount: OwnedFd,
    /// Files in it.
    pub(crate) files: Vec<PathBuf>,
}

/// None when none are asked for.
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
        // What is in it runs in containers without being looked at.
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
