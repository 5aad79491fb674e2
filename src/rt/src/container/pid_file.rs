//! Pid files: a caller reads the pid of a container's process from such a file.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::draft::Draft;

pub(super) fn write(path: &Path, pid: Pid) -> Result<()> {
    draft(path, pid)?.publish()
}

/// The file is not visible until it is published.
pub(super) fn draft(path: &Path, pid: Pid) -> Result<Draft> {
    // Without a newline: callers parse the whole file as a number.
    let text = pid.to_string();
    Draft::write(path.to_owned(), text.as_bytes(), 0o644)
        .with_context(|| format!("write pid file `{}`", path.display()))
}
