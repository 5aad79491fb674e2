//! What becomes of a container that could not be made.
#![forbid(unsafe_code)]

use anyhow::Result;

use crate::container::hooks;
use crate::state::{Directory, State, Status};

/// Removes what a failed creation has made. The configured `poststop` hooks run as after every
/// container.
pub(super) fn undo(directory: &Directory, state: &State) -> Result<()> {
    let removed = state.cgroup.undo();
    hooks::run_all("poststop", &state.poststop, state, Status::Stopped);
    if let Some(groups) = &state.rdt {
        groups.remove()?;
    }
    directory.remove()?;
    removed
}
