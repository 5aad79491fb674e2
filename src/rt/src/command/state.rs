//! `rt state`: prints the state of a container as JSON (runtime-spec, `runtime.md`, "State").
#![forbid(unsafe_code)]

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli;
use crate::state::{Directory, Root, State, Status};

/// runc's fields, in runc's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report<'a> {
    oci_version: &'a str,
    pub(super) id: &'a str,
    /// 0 if the process has ended.
    pub(super) pid: i32,
    pub(super) status: Status,
    pub(super) bundle: &'a std::path::Path,
    rootfs: &'a std::path::Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
    pub(super) owner: String,
}

impl Report<'_> {
    pub(super) fn new<'a>(
        directory: &Directory,
        state: &'a State,
        owner: String,
    ) -> Result<Report<'a>> {
        let status = state.status(directory)?;
        Ok(Report {
            oci_version: &state.oci_version,
            id: &state.id,
            pid: if status == Status::Stopped { 0 } else { state.pid },
            status,
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: &state.created,
            annotations: state.reported_annotations(),
            owner,
        })
    }
}

pub(super) fn execute(root: &Root, args: &cli::Id) -> Result<ExitCode> {
    let report = || {
        let (directory, state) = root.load(&args.id)?;
        serde_json::to_string_pretty(&Report::new(&directory, &state, user_name(state.uid))?)
            .context("write JSON")
    };
    let json = report().with_context(|| format!("state `{}`", args.id))?;
    super::print(&format!("{json}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads `/etc/passwd` itself, because NSS would load libraries into this static program. A user
/// who is only in a directory service is shown by number.
pub(super) fn user_name(uid: u32) -> String {
    let uid = uid.to_string();
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = table.lines().find(|line| line.split(':').nth(2) == Some(&uid));
    line.and_then(|line| line.split(':').next()).map_or(uid.clone(), str::to_owned)
}
