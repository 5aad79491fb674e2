//! The limits of a container while CRIU restores its processes.
//!
//! CRIU is in the container's cgroup, and uses memory and processes of its own there. With the
//! exact limits, a container that had nearly reached them could not be restored. Without a limit of
//! memory, a short image of many pages (a file with holes) could take all memory of the host. So
//! the limits of memory are raised twice: by what CRIU needs at most, and then, before the
//! container begins to run, by what it has. `restore` sets the exact limits when CRIU has ended.
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Result, ensure};
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use rustix::process::Pid;

/// The limits of memory in `unified`.
const MEMORY: [&str; 2] = ["memory.max", "memory.high"];

/// The limits under which CRIU can begin its work. `processes` is the number of living processes in
/// the images.
pub(in crate::container) fn first(
    resources: Option<&LinuxResources>,
    processes: u64,
) -> Option<LinuxResources> {
    /// In bytes. With each process, CRIU used up to 0.9 MiB more, and 7 MiB with one of them.
    const SOME: u64 = 128 << 20;
    const MORE: u64 = 2 << 20;
    let mut limits = resources?.clone();
    let raised = raise(resources, SOME + processes.saturating_mul(MORE)).unwrap_or_default();
    let mut unified = raised.unified().clone();
    if let Some(unified) = &mut unified {
        unified.retain(|key, _| key.starts_with("memory."));
    }
    limits.set_pids(None).set_memory(*raised.memory()).set_unified(unified);
    Some(limits)
}

/// The limits for the time until CRIU ends. If `rt` set limits only after the container has begun
/// to run, the container would keep the processes and memory that it has taken meanwhile.
pub(in crate::container) fn last(
    resources: Option<&LinuxResources>,
    criu: Pid,
) -> Option<LinuxResources> {
    raise(resources, memory_of(criu))
}

/// The limits of memory that [`first`] and [`last`] raise, as they are in the configuration.
pub(in crate::container) fn exact(resources: Option<&LinuxResources>) -> Option<LinuxResources> {
    let mut limits = raise(resources, 0)?;
    let mut unified = limits.unified().clone().unwrap_or_default();
    unified.retain(|key, _| MEMORY.contains(&key.as_str()));
    limits.set_pids(None).set_unified(Some(unified).filter(|unified| !unified.is_empty()));
    Some(limits)
}

/// Fails if the images have more processes and threads than the container may have. The kernel
/// counts those that have ended, too, until their parents wait for them.
pub(in crate::container) fn refuse_more_processes(
    resources: Option<&LinuxResources>,
    threads: u64,
) -> Result<()> {
    let Some(resources) = resources else { return Ok(()) };
    let of_pids = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit > 0);
    let of_pids = of_pids.and_then(|limit| u64::try_from(limit).ok());
    let unified = resources.unified().as_ref().and_then(|unified| unified.get("pids.max"));
    // A value in `unified` replaces the other.
    let limit = unified.map_or(of_pids, |value| value.trim().parse().ok());
    if let Some(limit) = limit {
        ensure!(
            threads <= limit,
            "the checkpoint has {threads} processes and threads, and the limit is {limit}"
        );
    }
    Ok(())
}

/// The limits of memory, higher by a number of bytes, and those of processes.
fn raise(resources: Option<&LinuxResources>, bytes: u64) -> Option<LinuxResources> {
    let resources = resources?;
    let more = i64::try_from(bytes).unwrap_or(i64::MAX);
    let raised = |limit: Option<i64>| {
        limit.map(|limit| if limit > 0 { limit.saturating_add(more) } else { limit })
    };
    let mut limits = LinuxResources::default();
    limits.set_pids(*resources.pids());
    limits.set_memory(resources.memory().as_ref().map(|memory| {
        let mut limited = LinuxMemory::default();
        limited.set_limit(raised(memory.limit())).set_swap(raised(memory.swap()));
        limited
    }));
    limits.set_unified(resources.unified().clone().map(|mut unified| {
        for key in MEMORY {
            if let Some(value) = unified.get_mut(key)
                && let Some(limit) = size(value)
            {
                *value = limit.saturating_add(bytes).to_string();
            }
        }
        unified
    }));
    let any = limits.pids().is_some() || limits.memory().is_some() || limits.unified().is_some();
    any.then_some(limits)
}

/// A number of bytes as the kernel reads it (`memparse`): with a unit of one letter, or without.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit = text.chars().last().filter(char::is_ascii_alphabetic);
    let shift = match unit {
        None => 0,
        Some(unit) => 10 * (1 + "kmgtpe".find(unit.to_ascii_lowercase())?),
    };
    let number: u64 = text.trim_end_matches(|letter| Some(letter) == unit).parse().ok()?;
    number.checked_mul(1 << shift)
}

/// The container's memory that CRIU's process may use until it ends, in bytes: twice the memory
/// that it has now, and some more.
fn memory_of(pid: Pid) -> u64 {
    const SOME: u64 = 16 << 20;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let used = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    SOME + used.unwrap_or(0).saturating_mul(2 * 1024)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resources(json: Value) -> LinuxResources {
        serde_json::from_value(json).expect("resources")
    }

    #[test]
    fn each_process_gives_memory_to_criu() {
        let limited =
            resources(json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 } }));
        let limits = first(Some(&limited), 3).expect("limits");
        assert_eq!(limits.memory().and_then(|memory| memory.limit()), Some((64 + 128 + 6) << 20));
        assert!(limits.pids().is_none());
    }

    #[test]
    fn limits_in_any_form_are_raised() {
        for (form, expected) in
            [("4096", "5120"), ("4k", "5120"), (" 1M ", "1049600"), ("max", "max"), ("4x", "4x")]
        {
            let limited = resources(json!({ "unified": { "memory.max": form } }));
            let limits = raise(Some(&limited), 1024).expect("limits");
            let unified = limits.unified().as_ref().expect("unified");
            assert_eq!(unified["memory.max"], expected, "{form}");
        }
    }

    #[test]
    fn more_processes_than_the_limit_are_refused() {
        let may = |json: Value| refuse_more_processes(Some(&resources(json)), 3).is_ok();
        assert!(may(json!({})) && may(json!({ "pids": { "limit": 3 } })));
        assert!(may(json!({ "pids": { "limit": 0 } })) && may(json!({ "pids": { "limit": -1 } })));
        assert!(!may(json!({ "pids": { "limit": 2 } })));
        assert!(!may(json!({ "unified": { "pids.max": "2" } })));
        assert!(may(json!({ "pids": { "limit": 2 }, "unified": { "pids.max": "max" } })));
    }
}
