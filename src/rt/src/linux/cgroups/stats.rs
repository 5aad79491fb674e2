//! A container's usage, as its cgroup counts it (kernel documentation, `cgroup-v1/`,
//! `admin-guide/cgroup-v2.rst`). The format is runc's, which callers know: times in nanoseconds,
//! sizes in bytes. With v2, "no limit" is the largest number. With v1, it is the kernel's value,
//! the largest number of whole pages. For the number of processes, it is 0.
//!
//! This is our own code. libcgroups returns no numbers at all if one is missing, for example
//! without the controller `cpu` (`docs/upstream/stats-all-or-nothing.md`), and its names are not
//! runc's.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Cgroup, Version, v1};

/// One directory of a cgroup, with the numbers in its files. None for a missing controller.
struct Files<'a>(Option<&'a Path>);

impl Files<'_> {
    /// Returns None without the file: the controller is missing, or the kernel does not count this.
    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0?.join(name)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, name: &str) -> Option<u64> {
        number(&self.text(name)?)
    }

    /// Parses lines of a name and a number.
    fn table(&self, name: &str) -> Map<String, Value> {
        let text = self.text(name).unwrap_or_default();
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), number(value)?.into()))
        };
        text.lines().filter_map(pair).collect()
    }

    /// Pressure stall information (kernel documentation, `accounting/psi.rst`).
    fn pressure(&self, name: &str) -> Option<Value> {
        let text = self.text(name)?;
        let line = |line: &str| {
            let (kind, rest) = line.split_once(' ')?;
            let fields = rest.split(' ').filter_map(|field| {
                let (key, value) = field.split_once('=')?;
                let value: Value = match key {
                    "total" => value.parse::<u64>().ok()?.into(),
                    _ => value.parse::<f64>().ok()?.into(),
                };
                Some((key.to_owned(), value))
            });
            Some((kind.to_owned(), Value::Object(fields.collect())))
        };
        Some(Value::Object(text.lines().filter_map(line).collect()))
    }
}

/// Unlimited is the largest number, as in runc.
fn number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

fn of(table: &Map<String, Value>, key: &str) -> u64 {
    table.get(key).and_then(Value::as_u64).unwrap_or(0)
}

impl Cgroup {
    /// All counts of the container's processes, as the `data` of runc's `events`.
    pub(crate) fn stats(&self) -> Value {
        match self.version {
            Version::V2 => self.paths.first().map_or(Value::Null, |path| v2(&Files(Some(path)))),
            Version::V1 => v1(&self.paths),
        }
    }
}

fn v2(files: &Files<'_>) -> Value {
    let cpu = files.table("cpu.stat");
    let micro = |key: &str| of(&cpu, key).saturating_mul(1000);
    let raw = files.table("memory.stat");
    let usage = files.number("memory.current").unwrap_or(0);
    let swap = files.number("memory.swap.current").unwrap_or(0);
    let limit = |name: &str| files.number(name).unwrap_or(0);
    // As v1 counts it: memory and swap together.
    let swap_limit = limit("memory.max").saturating_add(limit("memory.swap.max"));
    let events = files.table("memory.events");
    let mut stats = json!({
        "cpu": {
            "usage": { "total": micro("usage_usec"), "kernel": micro("system_usec"), "user": micro("user_usec") },
            "throttling": {
                "periods": of(&cpu, "nr_periods"),
                "throttledPeriods": of(&cpu, "nr_throttled"),
                "throttledTime": micro("throttled_usec"),
            },
        },
        "cpuset": {
            "cpus": list(&files.text("cpuset.cpus.effective").unwrap_or_default()),
            "mems": list(&files.text("cpuset.mems.effective").unwrap_or_default()),
        },
        "memory": {
            "cache": of(&raw, "file"),
            "usage": {
                "limit": limit("memory.max"), "usage": usage, "max": files.number("memory.peak").unwrap_or(0), "failcnt": of(&events, "max"),
            },
            "swap": { "limit": swap_limit, "usage": usage.saturating_add(swap), "max": 0, "failcnt": 0 },
            "kernel": { "limit": 0, "usage": of(&raw, "kernel"), "failcnt": 0 },
            "kernelTCP": { "limit": 0, "usage": of(&raw, "sock"), "failcnt": 0 },
            "raw": raw,
            "event_count": events,
        },
        "pids": pids(files),
        "blkio": io(&files.text("io.stat").unwrap_or_default()),
        "hugetlb": huge_pages(files, "current", "max", |files, size| {
            of(&files.table(&format!("hugetlb.{size}.events")), "max")
        }),
    });
    for (key, file) in
        [("cpu", "cpu.pressure"), ("memory", "memory.pressure"), ("blkio", "io.pressure")]
    {
        if let Some(pressure) = files.pressure(file) {
            stats[key]["psi"] = pressure;
        }
    }
    stats
}

fn v1(paths: &[PathBuf]) -> Value {
    let controller = |name: &str| Files(v1::of_controller(paths, name).map(PathBuf::as_path));
    let (cpu, account, memory) = (controller("cpu"), controller("cpuacct"), controller("memory"));
    let throttling = cpu.table("cpu.stat");
    let modes = account.table("cpuacct.stat");
    // In ticks. A second has a hundred of them on every architecture (USER_HZ, `time(7)`).
    let ticks = |key: &str| of(&modes, key).saturating_mul(10_000_000);
    let per_processor = account.text("cpuacct.usage_percpu").unwrap_or_default();
    let per_processor: Vec<u64> = per_processor.split(' ').filter_map(number).collect();
    let raw = memory.table("memory.stat");
    let entry = |prefix: &str| {
        let read = |name: &str| memory.number(&format!("memory.{prefix}{name}")).unwrap_or(0);
        json!({
            "limit": read("limit_in_bytes"),
            "usage": read("usage_in_bytes"),
            "max": read("max_usage_in_bytes"),
            "failcnt": read("failcnt"),
        })
    };
    let cpuset = controller("cpuset");
    let blkio = controller("blkio");
    let either = |name: &str| {
        let text = blkio.text(&format!("blkio.bfq.{name}"));
        // If another scheduler has the disks, only the throttling counts.
        text.filter(|text| text.lines().count() > 1)
            .or_else(|| blkio.text(&format!("blkio.throttle.{name}")))
            .unwrap_or_default()
    };
    json!({
        "cpu": {
            "usage": {
                "total": account.number("cpuacct.usage").unwrap_or(0),
                "percpu": per_processor,
                "kernel": ticks("system"),
                "user": ticks("user"),
            },
            "throttling": {
                "periods": of(&throttling, "nr_periods"),
                "throttledPeriods": of(&throttling, "nr_throttled"),
                "throttledTime": of(&throttling, "throttled_time"),
            },
        },
        "cpuset": {
            "cpus": list(&cpuset.text("cpuset.cpus").unwrap_or_default()),
            "mems": list(&cpuset.text("cpuset.mems").unwrap_or_default()),
        },
        "memory": {
            "cache": of(&raw, "cache"),
            "usage": entry(""),
            "swap": entry("memsw."),
            "kernel": entry("kmem."),
            "kernelTCP": entry("kmem.tcp."),
            "raw": raw,
        },
        "pids": pids(&controller("pids")),
        "blkio": {
            "ioServiceBytesRecursive": operations(&either("io_service_bytes_recursive")),
            "ioServicedRecursive": operations(&either("io_serviced_recursive")),
        },
        "hugetlb": huge_pages(&controller("hugetlb"), "usage_in_bytes", "max_usage_in_bytes", |files, size| {
            files.number(&format!("hugetlb.{size}.failcnt")).unwrap_or(0)
        }),
    })
}

/// No limit is 0 here, as with runc.
fn pids(files: &Files<'_>) -> Value {
    let limit = files.number("pids.max").filter(|limit| *limit != u64::MAX);
    json!({ "current": files.number("pids.current").unwrap_or(0), "limit": limit.unwrap_or(0) })
}

/// `io.stat`: `MAJOR:MINOR rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(text: &str) -> Value {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut fields = line.split(' ');
        let Some((major, minor)) = fields.next().and_then(device) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let Some(value) = number(value) else { continue };
            let (list, operation) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "dbytes" => (&mut bytes, "Discard"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                "dios" => (&mut operations, "Discard"),
                _ => continue,
            };
            list.push(json!({ "major": major, "minor": minor, "op": operation, "value": value }));
        }
    }
    json!({ "ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations })
}

/// `MAJOR:MINOR OPERATION VALUE`, and a last line that is the sum of all.
fn operations(text: &str) -> Vec<Value> {
    let entry = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = device(fields.next()?)?;
        let operation = fields.next()?;
        let value = number(fields.next()?)?;
        Some(json!({ "major": major, "minor": minor, "op": operation, "value": value }))
    };
    text.lines().filter_map(entry).collect()
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// By page size, for example `2MB`.
fn huge_pages(
    files: &Files<'_>,
    usage: &str,
    max: &str,
    failures: impl Fn(&Files<'_>, &str) -> u64,
) -> Value {
    let names = files.0.and_then(|path| fs::read_dir(path).ok()).into_iter().flatten().flatten();
    let sizes = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (size, file) = name.strip_prefix("hugetlb.")?.split_once('.')?;
        (file == usage).then(|| size.to_owned())
    });
    let read =
        |size: &str, file: &str| files.number(&format!("hugetlb.{size}.{file}")).unwrap_or(0);
    Value::Object(
        sizes
            .map(|size| {
                // With v2, `max` is the limit, and not the highest usage.
                let most = if max == "max" { 0 } else { read(&size, max) };
                let failures = failures(files, &size);
                let stats =
                    json!({ "usage": read(&size, usage), "max": most, "failcnt": failures });
                (size, stats)
            })
            .collect(),
    )
}

/// Parses `0-2,7` to 0, 1, 2, 7.
fn list(text: &str) -> Vec<u16> {
    let range = |range: &str| -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_the_kernel_are_understood() {
        assert_eq!(list("0-2,7"), [0, 1, 2, 7]);
        assert_eq!(list(""), Vec::<u16>::new());
        let io = io("8:0 rbytes=1 wbytes=2 rios=3 dios=4\nnonsense");
        assert_eq!(
            io["ioServiceBytesRecursive"][1],
            json!({ "major": 8, "minor": 0, "op": "Write", "value": 2 })
        );
        assert_eq!(io["ioServicedRecursive"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            operations("8:0 Read 4\nTotal 4"),
            [json!({ "major": 8, "minor": 0, "op": "Read", "value": 4 })]
        );
    }
}
