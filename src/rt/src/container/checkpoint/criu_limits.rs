//! The limits of a container while CRIU restores its processes.
//!
//! CRIU is in the container's cgroup, and uses memory and processes of its own there. With the
//! exact limits, a container that had nearly reached them could not be restored. Without a limit of
//! memory, a short image of many pages (a file with holes) could take all memory of the host. So
//! the limits of memory are raised twice: by what CRIU needs at most, and then, before the
//! container begins to run, by what it has. `restore` sets the exact limits when CRIU has ended.
//! Until the container begins to run, there is no limit of processes. Then the limit is exact, and
//! CRIU is no longer counted ([`Cgroup::take_out`]).
//!
//! [`Cgroup::take_out`]: crate::linux::cgroups::Cgroup::take_out
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Result, ensure};
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use rustix::process::Pid;

/// The limits in `unified`.
const MEMORY: [&str; 2] = ["memory.max", "memory.high"];
const PROCESSES: &str = "pids.max";

/// The limits under which CRIU can begin its work. `processes` is the number of living processes in
/// the images.
///
/// With each process, CRIU used up to 0.9 MiB more, and 7 MiB with one of them. Those processes had
/// 0.12 MiB each themselves. So for as many processes as a container has room for, a multiple of
/// its own memory is enough. Whoever writes images can put any number into them.
pub(in crate::container) fn first(
    resources: Option<&LinuxResources>,
    processes: u64,
) -> Option<LinuxResources> {
    /// In bytes.
    const SOME: u64 = 128 << 20;
    const MORE: u64 = 2 << 20;
    const TIMES: u64 = 4;
    let mut limits = resources?.clone();
    let more = |limit: u64| SOME + processes.saturating_mul(MORE).min(limit.saturating_mul(TIMES));
    let raised = raise(resources, &more).unwrap_or_default();
    let mut unified = raised.unified().clone();
    if let Some(unified) = &mut unified {
        unified.retain(|key, _| key.starts_with("memory.") || key == PROCESSES);
        if let Some(limit) = unified.get_mut(PROCESSES) {
            "max".clone_into(limit);
        }
    }
    // A cgroup that was there before may have a limit.
    let pids = raised.pids().map(|mut pids| *pids.set_limit(-1));
    limits.set_pids(pids).set_memory(*raised.memory()).set_unified(unified);
    Some(limits)
}

/// The limits for the time until CRIU ends. If `rt` set limits only after the container has begun
/// to run, the container would keep the processes and memory that it has taken meanwhile.
pub(in crate::container) fn last(
    resources: Option<&LinuxResources>,
    criu: Pid,
) -> Option<LinuxResources> {
    let more = memory_of(criu);
    raise(resources, &|_| more)
}

/// The limits that [`first`] and [`last`] change, as they are in the configuration.
pub(in crate::container) fn exact(resources: Option<&LinuxResources>) -> Option<LinuxResources> {
    let mut limits = raise(resources, &|_| 0)?;
    let mut unified = limits.unified().clone().unwrap_or_default();
    unified.retain(|key, _| MEMORY.contains(&key.as_str()) || key == PROCESSES);
    limits.set_unified(Some(unified).filter(|unified| !unified.is_empty()));
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
    let unified = resources.unified().as_ref().and_then(|unified| unified.get(PROCESSES));
    // A value in `unified` replaces the other. The kernel refuses what is no number, but `max`.
    let limit = unified.map_or(of_pids, |value| number(value.trim().trim_start_matches('+')));
    if let Some(limit) = limit {
        ensure!(
            threads <= limit,
            "the checkpoint has {threads} processes and threads, and the limit is {limit}"
        );
    }
    Ok(())
}

/// The limits of memory, higher by a number of bytes, which can depend on the limit. And the limits
/// of processes.
fn raise(resources: Option<&LinuxResources>, more: &dyn Fn(u64) -> u64) -> Option<LinuxResources> {
    let resources = resources?;
    let raised = |limit: i64| match u64::try_from(limit) {
        Ok(given @ 1..) => limit.saturating_add(i64::try_from(more(given)).unwrap_or(i64::MAX)),
        _ => limit,
    };
    let mut limits = LinuxResources::default();
    limits.set_pids(*resources.pids());
    limits.set_memory(resources.memory().as_ref().map(|memory| {
        let mut limited = LinuxMemory::default();
        limited.set_limit(memory.limit().map(raised)).set_swap(memory.swap().map(raised));
        limited
    }));
    limits.set_unified(resources.unified().clone().map(|mut unified| {
        for key in MEMORY {
            if let Some(value) = unified.get_mut(key)
                && let Some(limit) = size(value)
            {
                *value = limit.saturating_add(more(limit)).to_string();
            }
        }
        unified
    }));
    let any = limits.pids().is_some() || limits.memory().is_some() || limits.unified().is_some();
    any.then_some(limits)
}

/// A number as the kernel reads it (`kstrtoull`): in any of three bases.
fn number(text: &str) -> Option<u64> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let octal = text.strip_prefix('0').filter(|digits| !digits.is_empty());
    let (digits, base) = match (hexadecimal, octal) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) => (digits, 8),
        (None, None) => (text, 10),
    };
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    u64::from_str_radix(digits, base).ok().filter(|_| is_plain)
}

/// A number of bytes as the kernel reads it (`memparse`): with a unit of one letter, or without.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(bytes) = number(text) {
        return Some(bytes);
    }
    let unit = text.chars().last()?.to_ascii_lowercase();
    let shift = 10 * (1 + "kmgtpe".find(unit)?);
    number(&text[..text.len() - 1])?.checked_mul(1 << shift)
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
        for (processes, more) in [(3, 128 + 2 * 3), (128, 128 + 4 * 64), (100_000, 128 + 4 * 64)] {
            let limits = first(Some(&limited), processes).expect("limits");
            let limit = limits.memory().and_then(|memory| memory.limit());
            assert_eq!(limit, Some((64 + more) << 20), "{processes}");
            assert_eq!(limits.pids().map(|pids| pids.limit()), Some(-1));
        }
    }

    #[test]
    fn a_limit_of_processes_is_exact_when_the_container_runs() {
        let text = r#"{ "pids": { "limit": 2 }, "unified": { "pids.max": "3", "a.b": "4" } }"#;
        let limited: LinuxResources = serde_json::from_str(text).expect("resources");
        let of = |limits: Option<LinuxResources>| {
            let limits = limits.expect("limits");
            let unified = limits.unified().clone().expect("unified");
            (limits.pids().map(|pids| pids.limit()), unified["pids.max"].clone(), unified.len())
        };
        assert_eq!(of(first(Some(&limited), 1)), (Some(-1), "max".to_owned(), 1));
        assert_eq!(of(raise(Some(&limited), &|_| 1)), (Some(2), "3".to_owned(), 2));
        assert_eq!(of(exact(Some(&limited))), (Some(2), "3".to_owned(), 1));
    }

    #[test]
    fn limits_in_any_form_are_raised() {
        for (form, expected) in [
            ("4096", "5120"),
            ("0x1000", "5120"),
            ("010k", "9216"),
            ("4k", "5120"),
            (" 1M ", "1049600"),
            ("max", "max"),
            ("4x", "4x"),
            ("", ""),
        ] {
            let limited = resources(json!({ "unified": { "memory.max": form } }));
            let limits = raise(Some(&limited), &|_| 1024).expect("limits");
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
        assert!(!may(json!({ "unified": { "pids.max": "0x2\n" } })));
        assert!(may(json!({ "pids": { "limit": 2 }, "unified": { "pids.max": "max" } })));
    }
}
