//! `rt wasm cache list|prune|clear`: the native code in the cache.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::{Global, ListFormat, WasmCache, WasmCacheCommand};
use crate::engine::cache::{Entry, Kind};
use crate::engine::{Engines, Native};
use crate::state::Root;
use crate::workload::Handler;

pub(super) fn execute(root: &Root, global: &Global, args: &WasmCache) -> Result<()> {
    let open = || Engines::find(&Handler::Any, super::super::host(root, global), &[])?.natives();
    match &args.command {
        WasmCacheCommand::List(args) => list(&open()?, args.format).context("list the cache"),
        WasmCacheCommand::Prune(args) => {
            // An error on the command line is reported even on a host without an engine.
            let asked = args.size.as_deref().map(limit).transpose()?;
            let natives = open()?;
            let settings = &any(&natives)?.settings.cache;
            prune(&natives, asked.unwrap_or(settings.max_bytes)).context("prune the cache")
        }
        WasmCacheCommand::Clear => prune(&open()?, 0).context("clear the cache"),
    }
}

fn limit(text: &str) -> Result<u64> {
    let size = super::super::update::bytes(text).ok().and_then(|size| u64::try_from(size).ok());
    size.with_context(|| format!("wrong value `{text}` for `--size`"))
}

/// One of the engines: all share the settings and the cache.
fn any(natives: &[Native]) -> Result<&Native> {
    natives.first().context("no engine runs native code")
}

/// Whether an installed engine can use the entry.
fn is_useful(natives: &[Native], entry: &Entry) -> bool {
    natives.iter().any(|native| native.is_useful(entry))
}

fn prune(natives: &[Native], most: u64) -> Result<()> {
    let cache = &any(natives)?.cache;
    let (entries, bytes) = cache.prune(most, |entry| is_useful(natives, entry), None)?;
    let noun = if entries == 1 { "entry" } else { "entries" };
    super::super::print(&format!("removed {entries} {noun}, {}\n", size(bytes)))
}

fn list(natives: &[Native], format: ListFormat) -> Result<()> {
    let entries = any(natives)?.cache.entries()?;
    match format {
        ListFormat::Json => {
            let all: Vec<Value> = entries.iter().map(|entry| json_of(natives, entry)).collect();
            super::super::print(&format!("{}\n", serde_json::to_string(&all)?))
        }
        ListFormat::Table => super::super::print(&table(natives, &entries)),
    }
}

/// The status as `list` shows it.
fn status(natives: &[Native], entry: &Entry) -> &'static str {
    match &entry.kind {
        Kind::Job => "compiling",
        Kind::Useless => "useless",
        // Native code of another engine, of another build, or for another processor.
        _ if !is_useful(natives, entry) => "foreign",
        Kind::Native(_) => "native",
        Kind::Failed(_) => "failed",
    }
}

fn json_of(natives: &[Native], entry: &Entry) -> Value {
    let used = entry.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut value = json!({
        "key": entry.key, "status": status(natives, entry), "bytes": entry.bytes, "used": used,
        "hits": entry.hits,
    });
    match &entry.kind {
        Kind::Native(about) => value["native"] = json!(about),
        Kind::Failed(failure) => value["failure"] = json!(failure),
        Kind::Job | Kind::Useless => {}
    }
    value
}

fn table(natives: &[Native], entries: &[Entry]) -> String {
    let head =
        ["KEY", "STATUS", "SIZE", "MODULE", "COMPILED", "USED", "HITS", "NAME"].map(str::to_owned);
    let rows = entries.iter().map(|entry| {
        let (module, compiled, name) = match &entry.kind {
            Kind::Native(about) => {
                let compiled =
                    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(about.compiled);
                (short(&about.module), age(compiled), crate::report::visible(&about.name))
            }
            Kind::Failed(failure) => {
                let said = format!("{}: {}", failure.name, failure.why);
                let said = crate::report::visible(&said);
                (short(&failure.module), String::new(), said)
            }
            Kind::Job | Kind::Useless => Default::default(),
        };
        let key = short(&entry.key);
        let status = status(natives, entry).to_owned();
        let hits = entry.hits.to_string();
        [key, status, size(entry.bytes), module, compiled, age(entry.used), hits, name]
    });
    let rows: Vec<[String; 8]> = [head].into_iter().chain(rows).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + 3;
    let widths: Vec<usize> = (0..8).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("{}\n", cells.collect::<String>().trim_end())
        })
        .collect()
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// Formats a size in the largest unit that leaves a digit before the point.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn age(then: SystemTime) -> String {
    let seconds = then.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn a_size_has_one_digit_after_the_point() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
