//! Removes a container that could not be made.
#![forbid(unsafe_code)]

use anyhow::Result;

use crate::container::hooks;
use crate::linux::intel_rdt::Groups;
use crate::state::{Directory, State, Status};

/// Removes everything that a failed `create` or `restore` has made. Runs the configured `poststop`
/// hooks, as after every container.
pub(super) fn undo(directory: &Directory, state: &State) -> Result<()> {
    let removed = state.cgroup.undo();
    hooks::run_all("poststop", &state.poststop, state, Status::Stopped);
    // As long as the directories exist, the name is taken, and `delete` can be tried.
    let remove = || {
        state.rdt.as_ref().map_or(Ok(()), Groups::remove)?;
        directory.remove()
    };
    let left = remove();
    removed.and(left)
}
