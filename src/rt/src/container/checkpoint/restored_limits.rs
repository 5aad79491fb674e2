//! Rlimits, priorities and the OOM score of restored processes: no more than `create` would give.
//!
//! CRIU takes these values from the images, as root of the host. If the configuration does not name
//! a value, a new container has the caller's, so `restore` uses the values of its own process. A
//! process may have less by now, and keeps that. Runs in the runtime process, while all restored
//! processes are stopped.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{PosixRlimitType, Process};
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::CapabilitySet;

use crate::container::checkpoint::confinement::{self, Limits, Status};
use crate::linux::process;
use crate::syscall::{self, SchedAttr};

/// `SCHED_FIFO`, `SCHED_RR` and `SCHED_DEADLINE` of `<linux/sched.h>`, which run before all other
/// policies.
const REAL_TIME: [u32; 3] = [1, 2, DEADLINE];
const DEADLINE: u32 = 6;

/// Lowers the rlimits and priorities of stopped processes.
pub(in crate::container) fn lower(
    processes: &[i32],
    process: &Process,
    limits: &Limits<'_>,
) -> Result<()> {
    let own = Path::new("/proc/self");
    // These capabilities count in the initial user namespace only.
    let gives = |capability| limits.gives(capability) && !limits.has_user_namespace();
    let most = Most {
        process,
        score: process.oom_score_adj().map_or_else(|| oom_score_adj(own), Ok)?,
        scheduling: match process.scheduler() {
            Some(scheduler) => process::scheduling(scheduler)?,
            None => scheduling(own)?,
        },
        raises_limits: gives(CapabilitySet::SYS_RESOURCE),
        raises_priorities: gives(CapabilitySet::SYS_NICE),
    };
    for pid in processes {
        for thread in confinement::threads(*pid)? {
            if !Status::read(&thread)?.has_ended()? {
                let show = || format!("limit the process `{}`", thread.display());
                most.hold(&thread).with_context(show)?;
            }
        }
    }
    Ok(())
}

/// The most that a process may use.
struct Most<'a> {
    process: &'a Process,
    score: i32,
    scheduling: SchedAttr,
    /// Whether the process can raise these itself.
    raises_limits: bool,
    raises_priorities: bool,
}

impl Most<'_> {
    fn hold(&self, thread: &Path) -> Result<()> {
        let number = thread.file_name().and_then(|name| name.to_str()?.parse().ok());
        let id = number.and_then(Pid::from_raw).context("it is not a thread")?;
        // CRIU does not restore the I/O priority.
        process::set_io_priority(id, self.process)?;
        if self.raises_limits {
            return Ok(());
        }
        // Writes the score even if it is right: how far a process can lower it depends on the last
        // writer.
        process::set_oom_score_adj(Some(id), oom_score_adj(thread)?.max(self.score))?;
        let listed = self.process.rlimits().as_deref().unwrap_or_default();
        for limit in listed {
            lower_limit(id, process::resource(limit.typ()), process::limit_of(limit))?;
        }
        if self.raises_priorities {
            return Ok(());
        }
        let highest = |kind, resource| {
            let limit = listed.iter().find(|limit| limit.typ() == kind);
            let most =
                limit.map_or_else(|| rustix::process::getrlimit(resource), process::limit_of);
            let limit = lower_limit(id, resource, most)?;
            // These limits go to 40 and to 99 (`getrlimit(2)`).
            anyhow::Ok(limit.maximum.map_or(99, |most| most.min(99)))
        };
        let nice = highest(PosixRlimitType::RlimitNice, Resource::Nice)?;
        let priority = highest(PosixRlimitType::RlimitRtprio, Resource::Rtprio)?;
        let is_over = is_before(
            scheduling(thread)?,
            self.scheduling,
            20_i32.saturating_sub_unsigned(u32::try_from(nice)?),
            u32::try_from(priority)?,
        );
        if is_over {
            syscall::sched_setattr(id, self.scheduling).context("set the scheduler")?;
        }
        Ok(())
    }
}

/// Lowers a limit that is higher, and returns the new limit.
fn lower_limit(id: Pid, resource: Resource, most: Rlimit) -> Result<Rlimit> {
    let show = || format!("set the limit {resource:?}");
    let before = syscall::getrlimit_of(id, resource).with_context(show)?;
    let lower = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let maximum = lower(before.maximum, most.maximum);
    let limit = Rlimit { current: lower(before.current, maximum), maximum };
    if limit != before {
        rustix::process::prlimit(Some(id), resource, limit).with_context(show)?;
    }
    Ok(limit)
}

/// Whether a thread runs before others that it must not precede. A thread can set its `nice` value
/// and its real-time priority itself, as far as its limits allow.
fn is_before(has: SchedAttr, most: SchedAttr, least_nice: i32, highest: u32) -> bool {
    let is_real_time = |it: SchedAttr| REAL_TIME.contains(&it.policy);
    match has.policy {
        _ if most.policy == DEADLINE => false,
        DEADLINE => true,
        _ if is_real_time(has) => {
            let most = if is_real_time(most) { most.priority } else { 0 };
            has.priority > most.max(highest)
        }
        _ => !is_real_time(most) && has.nice < most.nice.min(least_nice),
    }
}

fn oom_score_adj(process: &Path) -> Result<i32> {
    let path = process.join("oom_score_adj");
    let read = || -> Result<i32> { Ok(fs::read_to_string(&path)?.trim().parse()?) };
    read().with_context(|| format!("read `{}`", path.display()))
}

fn scheduling(process: &Path) -> Result<SchedAttr> {
    let path = process.join("stat");
    let read = || -> Result<SchedAttr> {
        let text = fs::read(&path)?;
        let text = String::from_utf8_lossy(&text);
        // The name is the second field. It is in parentheses, and can contain anything. The first
        // field after it is the third (`proc_pid_stat(5)`).
        let (_, rest) = text.rsplit_once(')').context("it has no name")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).context("it is too short");
        Ok(SchedAttr {
            nice: field(19)?.parse()?,
            priority: field(40)?.parse()?,
            policy: field(41)?.parse()?,
            ..SchedAttr::default()
        })
    };
    read().with_context(|| format!("read `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_a_processor_first() {
        let it =
            |policy, nice, priority| SchedAttr { policy, nice, priority, ..SchedAttr::default() };
        let (other, fifo, deadline) = (it(0, 0, 0), it(1, 0, 10), it(DEADLINE, 0, 0));
        for (has, most, is_over) in [
            (other, other, false),
            (it(0, -1, 0), other, true),
            (it(0, 5, 0), other, false),
            (it(3, -5, 0), it(0, -5, 0), false),
            (fifo, other, true),
            (fifo, fifo, false),
            (it(2, 0, 11), fifo, true),
            (it(0, -5, 0), fifo, false),
            (deadline, fifo, true),
            (fifo, deadline, false),
        ] {
            assert_eq!(is_before(has, most, 20, 0), is_over, "{has:?} {most:?}");
        }
        assert!(!is_before(it(0, -5, 0), other, -5, 0), "its limit lets it");
        assert!(!is_before(fifo, other, 20, 10), "its limit lets it");
    }

    #[test]
    fn scheduling_is_read() {
        assert!(scheduling(Path::new("/proc/self")).is_ok());
    }
}
