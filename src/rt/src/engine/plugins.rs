//! Plugins of an engine that a container asks for and the host's administrator allows. Runs in the caller's process.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::CWD;

use super::settings::PluginSettings;

/// What an engine is to load.
#[derive(Debug)]
pub(crate) struct Plugins {
    /// Their directory, on a read-only mount of its own that nobody can change: the container cannot write to it, and finds nothing above it.
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
        let metadata = fs::metadata(directory)?;
        let own = rustix::process::geteuid().as_raw();
        ensure!(
            [0, own].contains(&metadata.uid()) && metadata.mode() & 0o022 == 0,
            "others can write to it"
        );
        for file in &files {
            let metadata = fs::metadata(directory.join(file))
                .with_context(|| format!("find `{}`", file.display()))?;
            ensure!(
                [0, own].contains(&metadata.uid()) && metadata.mode() & 0o022 == 0,
                "others can write to `{}`",
                file.display()
            );
        }
        super::cut_off(CWD, directory)
    };
    let mount = open().with_context(|| format!("open the plugins in `{}`", directory.display()))?;
    Ok(Some(Plugins { mount, files }))
}
