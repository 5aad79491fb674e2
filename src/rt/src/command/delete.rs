//! `rt delete`: removes the remains of a container.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::cli;
use crate::container;
use crate::state::{Root, Unread};

pub(super) fn execute(root: &Root, args: &cli::Delete) -> Result<ExitCode> {
    let one = |id: &str| delete(root, id, args.force).with_context(|| format!("delete `{id}`"));
    super::each(root, &args.id, args.regex, one)?;
    Ok(ExitCode::SUCCESS)
}

fn delete(root: &Root, id: &str, force: bool) -> Result<()> {
    let Some(directory) = root.find(id)? else {
        // CRI-O takes any failure of a forced deletion as "the container still exists".
        if force {
            return Ok(());
        }
        bail!("container does not exist");
    };
    // A process that makes the container holds the lock. A forced deletion waits a while for it.
    let patience = Duration::from_secs(if force { 10 } else { 0 });
    let mut lock = directory.lock(patience)?;
    for signal in [Signal::TERM, Signal::KILL].into_iter().filter(|_| force) {
        match directory.read() {
            _ if lock.is_some() => break,
            // The holder of the lock may be waiting for the container, and so the container delays
            // it.
            Ok(Some(state)) if state.pid != 0 => container::end(&state)?,
            // It is making the container, and may be waiting for a hook. If it ends, the hook and
            // init end too.
            Ok(_) => directory.signal_holder(signal)?,
            Err(_) => break,
        }
        lock = directory.lock(patience)?;
    }
    let Some(_lock) = lock else { bail!("another process is creating or deleting it") };
    match directory.read() {
        Ok(Some(state)) => container::delete(&directory, &state, force),
        // The creation was interrupted before it had made anything.
        Ok(None) if force => directory.remove(),
        Err(Unread::Otherwise(error)) if force => {
            crate::report::warn(&format!("delete `{id}` without its state: {error:#}"));
            container::delete_unreadable(&directory, id)
        }
        Err(error) => Err(error.into()),
        Ok(None) => bail!(
            "container does not exist: its creation was interrupted, `--force` removes the rest"
        ),
    }
}
