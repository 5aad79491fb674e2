//! `rt mounts add` and `rt mounts remove`: mounts in a running container, from a file with an array
//! like `mounts` in `config.json`. The command is crun's.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Mount;

use crate::bundle;
use crate::cli::{self, MountsCommand};
use crate::container;
use crate::state::{Root, Status};

/// How long to wait for another command that changes mounts, which takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn execute(root: &Root, args: &cli::Mounts) -> Result<ExitCode> {
    let (intent, change) = match &args.command {
        MountsCommand::Add(change) => ("add mounts to", change),
        MountsCommand::Remove(change) => ("remove mounts from", change),
    };
    run(root, &args.command, change).with_context(|| format!("{intent} `{}`", change.id))?;
    Ok(ExitCode::SUCCESS)
}

fn run(root: &Root, command: &MountsCommand, change: &cli::MountsChange) -> Result<()> {
    let (directory, _) = root.load(&change.id)?;
    let mut entries = read(&change.file)?;
    // Writing the state requires the lock.
    let Some(_lock) = directory.lock(PATIENCE)? else {
        bail!("another process is creating, changing or deleting it")
    };
    let (_, mut state) = root.load(&change.id)?;
    let status = state.status(&directory)?;
    ensure!(
        matches!(status, Status::Created | Status::Running | Status::Paused),
        "the container does not run: {status}"
    );
    bundle::place_mounts(&mut entries, &[&state.rootfs]);
    match command {
        MountsCommand::Remove(_) => container::remove_mounts(&directory, &mut state, &entries),
        MountsCommand::Add(_) => {
            let spec = directory.config();
            let spec = spec.context("read the stored `config.json`")?;
            container::add_mounts(&directory, &mut state, spec, &entries)
        }
    }
}

fn read(file: &Path) -> Result<Vec<Mount>> {
    let text =
        crate::input::read_file(file).with_context(|| format!("read `{}`", file.display()))?;
    // serde_json's error names line and column.
    let entries: Vec<Mount> =
        serde_json::from_slice(&text).with_context(|| format!("parse `{}`", file.display()))?;
    for entry in &entries {
        bundle::check_destination(entry)?;
    }
    Ok(entries)
}
