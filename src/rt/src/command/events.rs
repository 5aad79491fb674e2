//! `rt events`: a container's resource usage, once or repeatedly, and the OOM kills in it. Prints
//! one JSON object per line, in runc's form.
#![forbid(unsafe_code)]

mod http;

use std::ops::Range;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::json;

use crate::cli;
use crate::linux::cgroups::NONE;
use crate::state::{Root, State, Status};

pub(super) fn execute(root: &Root, args: &cli::Events) -> Result<ExitCode> {
    events(root, args).with_context(|| format!("events of `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

fn events(root: &Root, args: &cli::Events) -> Result<()> {
    let interval = duration(&args.interval)?;
    let (directory, state) = root.load(&args.id)?;
    // runc's words.
    ensure!(
        !matches!(state.status(&directory)?, Status::Stopped | Status::Creating),
        "container with id {} is not running",
        state.id
    );
    ensure!(!state.cgroup.has_none(), NONE);
    if args.stats {
        return print_stats(&state);
    }
    follow(&state, interval)
}

/// Prints events until the first process has ended.
fn follow(state: &State, interval: Duration) -> Result<()> {
    let Some(process) = state.process()? else { return Ok(()) };
    let mut watch = state.cgroup.watch_oom()?;
    let after =
        |instant: Instant| instant.checked_add(interval).context("`--interval` is too long");
    let mut next = after(Instant::now())?;
    loop {
        let left = Timespec::try_from(next.saturating_duration_since(Instant::now()))?;
        let killing = watch.as_ref().map_or(process.as_fd(), |watch| watch.descriptor());
        let mut polled = [
            PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(killing, PollFlags::IN),
        ];
        match rustix::event::poll(&mut polled, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        let ended = !polled[0].revents().is_empty();
        for _ in 0..watch.as_mut().map_or(0, |watch| watch.killed()) {
            super::print(&format!("{}\n", json!({ "type": "oom", "id": state.id })))?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(state)?;
            // Skips statistics that could not be printed in time.
            next = after(next)?.max(Instant::now());
        }
    }
}

fn print_stats(state: &State) -> Result<()> {
    let mut data = state.cgroup.stats();
    if let (Some(run), Some(data)) = (&state.run, data.as_object_mut()) {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", state.pid)).unwrap_or_default();
        let mut module = json!({
            "engine": run.engine, "mode": run.mode, "memoryPages": memory_pages(&maps)
        });
        if let Some(statistics) = http::statistics(state.pid, &maps) {
            module["http"] = statistics;
        }
        data.insert("wasm".into(), module);
    }
    let event = json!({ "type": "stats", "id": state.id, "data": data });
    super::print(&format!("{event}\n"))
}

/// The number of WebAssembly pages (64 KiB each) in a module's memory. The engine names this memory
/// (`docs/engine.md`). Returns `None` if the kernel does not show names.
fn memory_pages(maps: &str) -> Option<u64> {
    const PAGE: u64 = 64 << 10;
    let mut bytes = None;
    for Mapping { range, rest } in mappings(maps, "[anon:wasm-memory]") {
        // The reserved part, into which the memory may grow, is not readable.
        let there = if rest.starts_with("rw") { range.end - range.start } else { 0 };
        bytes = Some(bytes.unwrap_or(0) + there);
    }
    bytes.map(|bytes| bytes / PAGE)
}

/// A mapping of a process.
struct Mapping<'a> {
    range: Range<u64>,
    /// The rest of the line, which begins with the mapping's rights.
    rest: &'a str,
}

/// The mappings of this name in a process's table (`proc_pid_maps(5)`).
fn mappings<'a>(maps: &'a str, name: &str) -> impl Iterator<Item = Mapping<'a>> {
    maps.lines().filter(move |line| line.ends_with(name)).filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let range = address(start)?..address(end)?;
        (range.start <= range.end).then_some(Mapping { range, rest })
    })
}

/// Parses a duration as Go writes it: `5s`, `500ms`, `1m30s`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("wrong value `{text}` for `--interval`: a duration as 5s or 1m30s");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => bail!(wrong()),
        };
        total += number.parse::<f64>().with_context(wrong)? * seconds;
        rest = after;
    }
    let total = Duration::try_from_secs_f64(total).with_context(wrong)?;
    // Go's limit: 292 years.
    i64::try_from(total.as_nanos()).with_context(wrong)?;
    ensure!(!total.is_zero(), "`--interval` must be greater than 0");
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, milliseconds) in
            [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500)]
        {
            assert_eq!(duration(text).expect(text), Duration::from_millis(milliseconds));
        }
        for wrong in ["", "0s", "5", "s", "5x", "-5s", "1e9999s", "5000000000000000h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
