//! `rt pause` and `rt resume`: pause all processes of a container, and let them continue.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::cli;
use crate::linux::cgroups::Cgroup;
use crate::state::{Root, Status};

pub(super) fn pause(root: &Root, args: &cli::Id) -> Result<ExitCode> {
    let pause = || {
        let (directory, state) = root.load(&args.id)?;
        match state.status(&directory)? {
            Status::Created | Status::Running | Status::Paused => state.cgroup.freeze(),
            // runc's words, which callers look for.
            Status::Creating | Status::Stopped => bail!("container not running"),
        }
    };
    pause().with_context(|| format!("pause `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn resume(root: &Root, args: &cli::Id) -> Result<ExitCode> {
    let resume = || {
        let (_, state) = root.load(&args.id)?;
        // While the first process lives, nobody else can have the cgroup.
        if state.process()?.is_some() {
            return unfreeze(&state.cgroup);
        }
        match state.hold_cgroup()? {
            Some(held) => held.cgroup().map_or_else(|| bail!(NOT_PAUSED), unfreeze),
            None => bail!(NOT_PAUSED),
        }
    };
    resume().with_context(|| format!("resume `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

const NOT_PAUSED: &str = "container not paused";

/// A created container can be frozen too, but its status does not show it.
fn unfreeze(cgroup: &Cgroup) -> Result<()> {
    ensure!(cgroup.is_frozen(), NOT_PAUSED);
    cgroup.unfreeze()
}
