//! `rt list`: the containers below one root.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::state::{Report, user_name};
use crate::cli::{self, ListFormat};
use crate::report;
use crate::state::Root;

pub(super) fn execute(root: &Root, args: &cli::List) -> Result<ExitCode> {
    list(root, args).context("list")?;
    Ok(ExitCode::SUCCESS)
}

fn list(root: &Root, args: &cli::List) -> Result<()> {
    let listed = root.all()?;
    root.require()?;
    for (id, error) in &listed.unreadable {
        report::warn(&format!("leave out container `{id}`: {}", report::describe(error)));
    }
    // Usually all containers have the same owner.
    let mut owners = HashMap::new();
    let reports = listed
        .containers
        .iter()
        .map(|(directory, state)| {
            let owner = owners.entry(state.uid).or_insert_with(|| user_name(state.uid));
            Report::new(directory, state, owner.clone())
        })
        .collect::<Result<Vec<_>>>()?;
    if args.quiet {
        let names: String = reports.iter().map(|report| format!("{}\n", report.id)).collect();
        return super::print(&names);
    }
    match args.format {
        ListFormat::Json => super::print(&format!("{}\n", serde_json::to_string(&reports)?)),
        ListFormat::Table => super::print(&table(&reports)),
    }
}

/// Formats columns as wide as their widest entry, three spaces apart, as runc does.
fn table(reports: &[Report<'_>]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = reports.iter().map(|report| {
        [
            report.id.to_owned(),
            report.pid.to_string(),
            report.status.to_string(),
            report.bundle.display().to_string(),
            report.created.to_owned(),
            report.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(9) + 3
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("{}\n", cells.collect::<String>().trim_end())
        })
        .collect()
}
