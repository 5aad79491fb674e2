//! `rt delete`: removes what is left of a container.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli;
use crate::container;
use crate::state::{Newer, Root};

pub(super) fn execute(root: &Root, args: &cli::Delete) -> Result<ExitCode> {
    let one = |id: &str| delete(root, id, args.force).with_context(|| format!("delete `{id}`"));
    super::each(root, &args.id, args.regex, one)?;
    Ok(ExitCode::SUCCESS)
}

fn delete(root: &Root, id: &str, force: bool) -> Result<()> {
    let Some(directory) = root.find(id)? else {
        // CRI-O takes any failure of a forced deletion for a container that is still there.
        if force {
            return Ok(());
        }
        bail!("container does not exist");
    };
    // Whoever makes it holds the lock; to a forced deletion that is worth some waiting.
    let patience = Duration::from_secs(if force { 10 } else { 0 });
    let mut lock = directory.lock(patience)?;
    if let (None, true, Ok(Some(state))) = (&lock, force, directory.read()) {
        // Who has it could be waiting for the container, which holds it up.
        container::end(&state)?;
        lock = directory.lock(patience)?;
    }
    let Some(_lock) = lock else { bail!("another process is creating or deleting it") };
    match directory.read() {
        Ok(Some(state)) => container::delete(&directory, &state, force),
        // Nothing was made yet when its creation was cut short.
        Ok(None) if force => directory.remove(),
        Err(error) if force && !error.is::<Newer>() => {
            crate::report::warn(&format!("delete `{id}` without its state: {error:#}"));
            container::delete_unreadable(&directory, id)
        }
        Err(error) => Err(error),
        Ok(None) => bail!(
            "container does not exist: its creation was interrupted, `--force` removes the rest"
        ),
    }
}
