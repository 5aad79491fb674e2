//! `rt delete`: removes the remains of a container.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::cli;
use crate::container;
use crate::state::{Directory, Root, Unread};

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
    // A process that makes the container holds the lock.
    let lock = if force { wait_for_lock(&directory)? } else { directory.lock(Duration::ZERO)? };
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

/// Waits for the lock of a container, and ends whatever holds it up. Returns `None` if that takes
/// too long.
fn wait_for_lock(directory: &Directory) -> Result<Option<OwnedFd>> {
    const PATIENCE: Duration = Duration::from_secs(10);
    for signal in [Signal::TERM, Signal::KILL] {
        if let Some(lock) = directory.lock(PATIENCE)? {
            return Ok(Some(lock));
        }
        match directory.read() {
            // The holder of the lock may be waiting for the container.
            Ok(Some(state)) if state.pid != 0 => {
                container::end(&state)?;
                break;
            }
            // The holder is making the container, and may be waiting for a hook. If it ends, the
            // hook and init end too.
            Ok(_) => directory.signal_holder(signal)?,
            Err(_) => return Ok(None),
        }
    }
    directory.lock(PATIENCE)
}
