//! `rt update`: changes the limits of an existing container, from `linux.resources` as JSON or from
//! flags. Limits that are not given stay as they are. Device rules cannot be updated.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::cli;
use crate::state::{Root, Status};

pub(super) fn execute(root: &Root, args: &cli::Update) -> Result<ExitCode> {
    let update = || {
        let (directory, state) = root.load(&args.id)?;
        match state.status(&directory)? {
            Status::Created | Status::Running | Status::Paused => {}
            // runc's words, which callers look for.
            Status::Creating | Status::Stopped => bail!("container not running"),
        }
        let (cache, bandwidth) = (args.l3_cache_schema.as_deref(), args.mem_bw_schema.as_deref());
        if cache.is_some() || bandwidth.is_some() {
            let groups = state.rdt.as_ref().context("the container has no `linux.intelRdt`")?;
            groups.update(cache, bandwidth)?;
        }
        state.cgroup.update(resources(args)?)
    };
    update().with_context(|| format!("update `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

fn resources(args: &cli::Update) -> Result<LinuxResources> {
    let flags = from_flags(args)?;
    let Some(file) = &args.resources else {
        return serde_json::from_value(flags).context("read the limits from the flags");
    };
    ensure!(
        flags.as_object().is_none_or(serde_json::Map::is_empty),
        "`--resources` and flags for single limits exclude each other"
    );
    let text = if file.as_os_str() == "-" {
        // Duplicates standard input, because the file is closed after reading.
        let input = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
        input.and_then(|input| crate::input::read_all(&input)).context("read standard input")?
    } else {
        crate::input::read_file(file).with_context(|| format!("read `{}`", file.display()))?
    };
    // serde_json's error names line and column.
    serde_json::from_slice(&text).with_context(|| format!("parse `{}`", file.display()))
}

/// The limits of the flags, as in `linux.resources`.
fn from_flags(args: &cli::Update) -> Result<Value> {
    let mut resources = json!({});
    let mut put = |part: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources[part][name] = value;
        }
    };
    let size = |flag: &str, text: &Option<String>| -> Result<Option<Value>> {
        let wrong = || format!("wrong value `{}` for `{flag}`", text.clone().unwrap_or_default());
        text.as_deref().map(|text| bytes(text).with_context(wrong).map(Value::from)).transpose()
    };
    put("memory", "limit", size("--memory", &args.memory)?);
    put("memory", "swap", size("--memory-swap", &args.memory_swap)?);
    put("memory", "reservation", size("--memory-reservation", &args.memory_reservation)?);
    put("memory", "kernel", size("--kernel-memory", &args.kernel_memory)?);
    put("memory", "kernelTCP", size("--kernel-memory-tcp", &args.kernel_memory_tcp)?);
    put("cpu", "shares", args.cpu_share.map(Value::from));
    put("cpu", "quota", args.cpu_quota.map(Value::from));
    put("cpu", "period", args.cpu_period.map(Value::from));
    put("cpu", "burst", args.cpu_burst.map(Value::from));
    put("cpu", "idle", args.cpu_idle.map(Value::from));
    put("cpu", "realtimePeriod", args.cpu_rt_period.map(Value::from));
    put("cpu", "realtimeRuntime", args.cpu_rt_runtime.map(Value::from));
    put("cpu", "cpus", args.cpuset_cpus.clone().map(Value::from));
    put("cpu", "mems", args.cpuset_mems.clone().map(Value::from));
    put("pids", "limit", args.pids_limit.map(Value::from));
    put("blockIO", "weight", args.blkio_weight.map(Value::from));
    Ok(resources)
}

/// Parses a number of bytes, or of kibi-, mebi- or gibibytes with the suffix `k`, `m` or `g`. -1
/// means no limit.
pub(super) fn bytes(text: &str) -> Result<i64> {
    let lower = text.to_ascii_lowercase();
    let (number, shift) = match lower.strip_suffix('b').unwrap_or(&lower) {
        number if number.ends_with('k') => (&number[..number.len() - 1], 10),
        number if number.ends_with('m') => (&number[..number.len() - 1], 20),
        number if number.ends_with('g') => (&number[..number.len() - 1], 30),
        number => (number, 0),
    };
    let number: i64 = number.parse()?;
    ensure!(number >= -1, "less than -1");
    number.checked_mul(1 << shift).context("too large")
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn a_size_has_a_unit_or_none() {
        for (text, expected) in
            [("-1", -1), ("0", 0), ("4096", 4096), ("2k", 2048), ("3M", 3 << 20), ("1gb", 1 << 30)]
        {
            assert_eq!(bytes(text).expect(text), expected, "{text}");
        }
        for wrong in ["", "k", "x", "1x", "-2", "9999999999g"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
