//! Limits: `linux.resources` as values for the files of a cgroup (runtime-spec, `config-linux.md`,
//! "Control groups").
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, LinuxThrottleDevice,
};

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;
use rustix::io::Errno;

use super::{devices, v1, write};
use crate::failure::Failure;

/// Sets limits in v2 files. libcgroups 0.7.0 writes those that it handles correctly
/// ([`for_libcgroups`]). This file writes the others. `docs/upstream` describes how libcgroups
/// handles them.
pub(super) fn apply_v2(cgroup: &Path, resources: &LinuxResources) -> Result<()> {
    let set = |file: &str, value: &str| write(&cgroup.join(file), value);
    if let Some(memory) = resources.memory() {
        // Swap goes first: the memory limit may only fit after the swap limit was lowered.
        unlimited_memory_and_swap(memory, &set)?;
    }
    // This goes first too, because libcgroups writes a weight, which an idle cgroup cannot have.
    if let Some(idle) = idle(resources) {
        set("cpu.idle", &idle)?;
    }
    // libcgroups writes the burst only after the quota (docs/upstream/burst-after-quota.md). A
    // lower burst has to come first, and a higher one last.
    let burst = resources.cpu().as_ref().and_then(|cpu| cpu.burst());
    let set_burst = || burst.map_or(Ok(()), |burst| set("cpu.max.burst", &burst.to_string()));
    let first = set_burst();
    for limit in resources.hugepage_limits().iter().flatten() {
        // libcgroups's error for a page size would not name the size.
        let file = format!("hugetlb.{}.max", limit.page_size());
        ensure!(cgroup.join(&file).exists(), "set `{file}`: this host has no pages of that size");
    }
    let resources_left = for_libcgroups(cgroup, resources);
    need_files(cgroup, &resources_left)?;
    let options = ControllerOpt {
        resources: &resources_left,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    Manager::new(cgroup.to_owned(), PathBuf::new())
        .and_then(|manager| manager.apply(&options))
        // The error's text contains the cause, and its source is the same cause.
        .map_err(|error| anyhow!("set the limits: {error}"))?;
    first.or_else(|_| set_burst())?;
    if let Some(io) = resources.block_io() {
        io_weights_v2(io, &set)?;
    }
    // libcgroups drops these limits without an error (docs/upstream/limits-dropped.md).
    for (device, limit) in resources.rdma().iter().flatten() {
        set("rdma.max", &rdma(device, limit.hca_handles(), limit.hca_objects()))?;
    }
    let has_weight = !becomes_idle(resources);
    for (file, value) in resources.unified().iter().flatten() {
        // libcgroups takes the name for a path (docs/upstream/unified-leaves-the-cgroup.md).
        ensure!(!file.contains('/'), "`{file}` in `unified` is not a file name");
        if file == "cpu.idle" || !has_weight && file.starts_with("cpu.weight") {
            continue;
        }
        // Each line is for one device, and the kernel accepts one line per write.
        for line in value.lines() {
            set(file, line)?;
        }
    }
    Ok(())
}

/// Fails for a limit whose file is missing, for example without its controller. The error of
/// libcgroups would not name the limit.
fn need_files(cgroup: &Path, resources: &LinuxResources) -> Result<()> {
    let (memory, cpu) = (resources.memory().as_ref(), resources.cpu().as_ref());
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let period = || cpu.and_then(LinuxCpu::period).map(|period| period.to_string());
    let throttled = resources.block_io().iter().flat_map(|io| {
        let of_bytes = [io.throttle_read_bps_device(), io.throttle_write_bps_device()];
        let of_calls = [io.throttle_read_iops_device(), io.throttle_write_iops_device()];
        of_bytes.into_iter().chain(of_calls).flatten().flatten()
    });
    let mut throttled = throttled.map(|device| format!("{}:{}", device.major(), device.minor()));
    for (file, value) in [
        ("memory.max", number(memory.and_then(LinuxMemory::limit))),
        ("memory.low", number(memory.and_then(LinuxMemory::reservation))),
        ("cpu.weight", cpu.and_then(LinuxCpu::shares).map(|shares| shares.to_string())),
        ("cpu.max", number(cpu.and_then(LinuxCpu::quota)).or_else(period)),
        ("cpuset.cpus", cpu.and_then(|cpu| cpu.cpus().clone())),
        ("cpuset.mems", cpu.and_then(|cpu| cpu.mems().clone())),
        ("pids.max", resources.pids().map(|pids| pids.limit().to_string())),
        ("io.max", throttled.next()),
    ] {
        let Some(value) = value else { continue };
        let path = cgroup.join(file);
        path.metadata().with_context(|| format!("write `{value}` to `{}`", path.display()))?;
    }
    Ok(())
}

/// The limits that libcgroups 0.7.0 writes correctly. Leaves out "no limit" where the controller is
/// missing: then there is no limit.
fn for_libcgroups(cgroup: &Path, resources: &LinuxResources) -> LinuxResources {
    let is_limited = |limit: i64, file: &str| limit >= 0 || cgroup.join(file).exists();
    let mut left = LinuxResources::default();
    // Only memory limits of at least 0. libcgroups also sets swap for a limit of -1, which not
    // every kernel supports, and takes "0 above the memory" for "not set"
    // (docs/upstream/swap-equal-to-memory.md).
    if let Some(memory) = resources.memory().filter(|memory| memory.limit() >= Some(0)) {
        let mut limits = LinuxMemory::default();
        limits.set_limit(memory.limit());
        limits.set_reservation(memory.reservation().map(|limit| limit.max(-1)));
        left.set_memory(Some(limits));
    }
    // Without empty strings and zeroes (docs/upstream/unset-cpu-values.md), and without `idle` and
    // the burst. Also without realtime, which v2 does not have: libcgroups refuses it, but other
    // runtimes ignore it.
    if let Some(cpu) = resources.cpu() {
        let mut limits = LinuxCpu::default();
        limits.set_shares(cpu.shares().filter(|_| !becomes_idle(resources)));
        if is_limited(cpu.quota().unwrap_or(0), "cpu.max") {
            limits.set_quota(cpu.quota());
            limits.set_period(cpu.period().filter(|period| *period != 0));
        }
        limits.set_cpus(cpu.cpus().clone().filter(|cpus| !cpus.is_empty()));
        limits.set_mems(cpu.mems().clone().filter(|mems| !mems.is_empty()));
        left.set_cpu(Some(limits));
    }
    // libcgroups turns 0 into 1, whatever `ociVersion` is; see `limit_of_processes`.
    let pids = resources.pids().filter(|pids| pids.limit() != 0);
    left.set_pids(pids.filter(|pids| is_limited(pids.limit(), "pids.max")));
    // Without weights (docs/upstream/io-weight-overflows.md), and without `leafWeight`, which
    // libcgroups refuses.
    if let Some(io) = resources.block_io() {
        let mut limits = LinuxBlockIo::default();
        limits.set_throttle_read_bps_device(io.throttle_read_bps_device().clone());
        limits.set_throttle_write_bps_device(io.throttle_write_bps_device().clone());
        limits.set_throttle_read_iops_device(io.throttle_read_iops_device().clone());
        limits.set_throttle_write_iops_device(io.throttle_write_iops_device().clone());
        left.set_block_io(Some(limits));
    }
    left.set_hugepage_limits(resources.hugepage_limits().clone());
    left
}

/// The wanted value of `cpu.idle`. An idle cgroup (Linux 5.15) has no weight: the kernel refuses
/// one, and has forgotten the previous one. So `rt` writes `cpu.idle` first, and a weight only to a
/// cgroup that is not idle then.
fn idle(resources: &LinuxResources) -> Option<String> {
    let unified = resources.unified().as_ref().and_then(|files| files.get("cpu.idle"));
    let of_cpu = || Some(resources.cpu().as_ref()?.idle()?.to_string());
    unified.map(|value| value.trim().to_owned()).or_else(of_cpu)
}

pub(super) fn becomes_idle(resources: &LinuxResources) -> bool {
    idle(resources).as_deref() == Some("1")
}

/// Adds values that systemd requires together, because it would forget the missing ones.
pub(super) fn complete_v2(cgroup: &Path, resources: &mut LinuxResources) -> Result<()> {
    complete_quota(cgroup, resources)?;
    complete_weight(cgroup, resources);
    Ok(())
}

/// For systemd, only a weight ends idleness. Without a weight, its next write would make the cgroup
/// idle again. The kernel has given the cgroup the default weight by then.
fn complete_weight(cgroup: &Path, resources: &mut LinuxResources) {
    let is_idle =
        || std::fs::read_to_string(cgroup.join("cpu.idle")).is_ok_and(|now| now.trim() == "1");
    let mut cpu = resources.cpu().clone().unwrap_or_default();
    let unified = resources.unified().as_ref();
    let has_weight = cpu.shares().is_some_and(|shares| shares != 0)
        || unified.is_some_and(|files| files.contains_key("cpu.weight"));
    if idle(resources).as_deref() == Some("0") && !has_weight && is_idle() {
        cpu.set_shares(Some(DEFAULT_SHARES));
        resources.set_cpu(Some(cpu));
    }
}

/// For systemd, a period without a quota means no limit.
fn complete_quota(cgroup: &Path, resources: &mut LinuxResources) -> Result<()> {
    let Some(mut cpu) = resources.cpu().clone() else { return Ok(()) };
    if cpu.quota().is_none() && cpu.period().is_none() {
        return Ok(());
    }
    let file = cgroup.join("cpu.max");
    let now =
        std::fs::read_to_string(&file).with_context(|| format!("read `{}`", file.display()))?;
    let mut now = now.split_whitespace();
    let (quota, period) = (now.next().unwrap_or("max"), now.next().unwrap_or("100000"));
    if cpu.quota().is_none() {
        cpu.set_quota(Some(quota.parse().unwrap_or(-1)));
    }
    if cpu.period().is_none() {
        cpu.set_period(Some(period.parse().context("parse `cpu.max`")?));
    }
    resources.set_cpu(Some(cpu));
    Ok(())
}

/// A limit of -1 means no limit.
fn max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

type Set<'a> = &'a dyn Fn(&str, &str) -> Result<(), Failure>;

/// The limit of memory and swap together. 0 means not set, as in runc. If memory is unlimited and
/// swap is not set, swap is unlimited too, as in runc: a previous limit would be lower than that of
/// memory.
fn swap_limit(memory: &LinuxMemory) -> Option<i64> {
    let said = memory.swap().filter(|swap| *swap != 0);
    said.or_else(|| memory.limit().filter(|limit| *limit < 0))
}

/// The limit of swap alone, as in v2. A value less than 0 means no limit.
pub(super) fn swap_alone(memory: &LinuxMemory) -> Result<Option<i64>> {
    let limit = memory.limit().unwrap_or(0);
    Ok(match swap_limit(memory) {
        Some(swap) if swap > 0 && limit >= 0 => {
            ensure!(limit > 0, "`memory.swap` needs `memory.limit`");
            ensure!(swap >= limit, "`memory.swap` {swap} is less than `memory.limit` {limit}");
            Some(swap - limit)
        }
        // An unlimited memory has no value to subtract.
        swap => swap,
    })
}

/// Ignores the missing file of a kernel without swap accounting, or of a missing controller, if the
/// value means no limit, or no swap. Callers write a swap limit equal to the memory limit, whether
/// the host has swap or not.
fn pass_over_missing(result: Result<(), Failure>, can_be_missing: bool) -> Result<(), Failure> {
    match result {
        Err(failure) if can_be_missing && failure.is(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Sets the memory values that libcgroups does not write: swap, and the removal of limits.
fn unlimited_memory_and_swap(memory: &LinuxMemory, set: Set<'_>) -> Result<()> {
    if let Some(swap) = swap_alone(memory)? {
        pass_over_missing(set("memory.swap.max", &max(swap)), swap <= 0)?;
    }
    if memory.limit() >= Some(0) {
        return Ok(());
    }
    if memory.limit().is_some() {
        pass_over_missing(set("memory.max", "max"), true)?;
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        set("memory.low", &max(reservation))?;
    }
    Ok(())
}

/// The shares that correspond to the weight 100.
const DEFAULT_SHARES: u64 = 1024;

/// Converts shares of v1 (2 to 262144, default 1024) to a weight of v2 (1 to 10000, default 100).
/// The quadratic fit keeps both ends and the default, as in runc and crun since 2025.
pub(super) fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10f64.powf(exponent).ceil();
    #[expect(clippy::cast_sign_loss, reason = "a power of ten is positive")]
    let weight = weight as u64;
    weight.clamp(1, 10_000)
}

/// Converts a weight of 10 to 1000 to one of 1 to 10000.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.max(10)) - 10) * 9_999 / 990
}

fn io_weights_v2(io: &LinuxBlockIo, set: Set<'_>) -> Result<()> {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // BFQ has its own file, with the range of v1. Without BFQ, the weight is spread over 1 to
        // 10000.
        if set("io.bfq.weight", &weight.to_string()).is_err() {
            set("io.weight", &io_weight(weight).to_string())?;
        }
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            set("io.bfq.weight", &format!("{}:{} {weight}", device.major(), device.minor()))?;
        }
    }
    Ok(())
}

fn rdma(device: &str, handles: Option<u32>, objects: Option<u32>) -> String {
    let part = |key: &str, value: Option<u32>| {
        value.map(|value| format!(" {key}={value}")).unwrap_or_default()
    };
    format!("{device}{}{}", part("hca_handle", handles), part("hca_object", objects))
}

/// The values that mean no limit in v1 files. Without the controller, there is none.
const NO_LIMIT: [&str; 2] = ["-1", "max"];

fn set_v1(cgroups: &[PathBuf], file: &str, value: &str) -> Result<(), Failure> {
    let controller = file.split('.').next().unwrap_or_default();
    match v1::of_controller(cgroups, controller) {
        Some(cgroup) => write(&cgroup.join(file), value),
        None if NO_LIMIT.contains(&value) => Ok(()),
        None => Err(Failure::other(format!(
            "set `{file}`: this host has no cgroup controller `{controller}`"
        ))),
    }
}

/// Sets the device rules in v1 files.
pub(super) fn apply_devices_v1(cgroups: &[PathBuf], rules: &[devices::Rule]) -> Result<()> {
    for rule in rules {
        let file = if rule.is_allowing() { "devices.allow" } else { "devices.deny" };
        match set_v1(cgroups, file, &rule.line()) {
            // As for the program of v2.
            Err(failure) if failure.is_forbidden() && !crate::ids::is_host_root() => {}
            result => result?,
        }
    }
    Ok(())
}

/// 0 means no limit, and a new cgroup has none: podman writes 0 for `--pids-limit -1`. In an
/// update, 0 changes nothing, as in runc and crun.
pub(super) fn limit_of_processes(resources: &LinuxResources) -> Option<i64> {
    resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0)
}

/// Sets limits in v1 files, each in the hierarchy of its controller.
pub(super) fn apply_v1(cgroups: &[PathBuf], resources: &LinuxResources) -> Result<()> {
    let set = |file: &str, value: &str| set_v1(cgroups, file, value);
    if let Some(file) = resources.unified().iter().flatten().map(|(file, _)| file).next() {
        bail!("set `{file}`: `resources.unified` is for cgroup v2, and this host has v1");
    }
    if let Some(memory) = resources.memory() {
        memory_v1(memory, &set)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v1(cpu, &set)?;
    }
    if let Some(pids) = limit_of_processes(resources) {
        set("pids.max", &max(pids))?;
    }
    if let Some(io) = resources.block_io() {
        io_v1(io, &set)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let (size, limit) = (limit.page_size(), limit.limit().to_string());
        set(&format!("hugetlb.{size}.limit_in_bytes"), &limit)?;
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        let there = v1::of_controller(cgroups, "hugetlb");
        if there.is_some_and(|cgroup| cgroup.join(&reserved).exists()) {
            set(&reserved, &limit)?;
        }
    }
    if let Some(network) = resources.network() {
        network_v1(network, &set)?;
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        set("rdma.max", &rdma(device, limit.hca_handles(), limit.hca_objects()))?;
    }
    Ok(())
}

fn memory_v1(memory: &LinuxMemory, set: Set<'_>) -> Result<()> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let swap = swap_limit(memory);
    let set_limit =
        || limit.map_or(Ok(()), |limit| set("memory.limit_in_bytes", &limit.to_string()));
    let set_swap = || {
        let Some(swap) = swap else { return Ok(()) };
        let result = set("memory.memsw.limit_in_bytes", &swap.to_string());
        pass_over_missing(result, swap < 0 || Some(swap) == limit)
    };
    // The kernel requires memory <= memory and swap at every moment. A lower memory limit has to
    // come first, and a higher one last.
    if let Err(error) = set_limit() {
        // The first error says why, if both fail.
        set_swap().map_err(|_| error)?;
        set_limit()?;
    }
    set_swap()?;
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        set("memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(kernel_tcp) = memory.kernel_tcp().filter(|limit| *limit != 0) {
        set("memory.kmem.tcp.limit_in_bytes", &kernel_tcp.to_string())?;
    }
    if let Some(swappiness) = memory.swappiness() {
        set("memory.swappiness", &swappiness.to_string())?;
    }
    if memory.disable_oom_killer() == Some(true) {
        set("memory.oom_control", "1")?;
    }
    Ok(())
}

fn cpu_v1(cpu: &LinuxCpu, set: Set<'_>) -> Result<()> {
    // As with v2, an idle cgroup has no weight.
    if let Some(idle) = cpu.idle() {
        set("cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = cpu.shares().filter(|shares| cpu.idle() != Some(1) && *shares != 0) {
        set("cpu.shares", &shares.to_string())?;
    }
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let set_period =
        || period.map_or(Ok(()), |period| set("cpu.cfs_period_us", &period.to_string()));
    let set_quota = || quota.map_or(Ok(()), |quota| set("cpu.cfs_quota_us", &quota.to_string()));
    // Their ratio must fit the cgroups above and below at every moment.
    if set_period().is_err() {
        set_quota()?;
        set_period()?;
    }
    let set_burst =
        || cpu.burst().map_or(Ok(()), |burst| set("cpu.cfs_burst_us", &burst.to_string()));
    // The burst must never exceed the quota. A lower burst has to come first, and a higher one
    // last.
    let first = set_burst();
    set_quota()?;
    first.or_else(|_| set_burst())?;
    realtime_v1(cpu, set)?;
    if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
        set("cpuset.cpus", cpus)?;
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
        set("cpuset.mems", mems)?;
    }
    Ok(())
}

fn realtime_v1(cpu: &LinuxCpu, set: Set<'_>) -> Result<(), Failure> {
    let period = cpu.realtime_period().filter(|period| *period != 0);
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let set_period =
        || period.map_or(Ok(()), |period| set("cpu.rt_period_us", &period.to_string()));
    let set_runtime =
        || runtime.map_or(Ok(()), |runtime| set("cpu.rt_runtime_us", &runtime.to_string()));
    // At every moment, the runtime must fit in the period, and their ratio must fit the cgroups
    // above and below.
    if set_period().is_err() {
        set_runtime()?;
        set_period()?;
    }
    set_runtime()
}

fn io_v1(io: &LinuxBlockIo, set: Set<'_>) -> Result<()> {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let weight = weight.to_string();
        set("blkio.weight", &weight).or_else(|_| set("blkio.bfq.weight", &weight))?;
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            set("blkio.weight_device", &value)
                .or_else(|_| set("blkio.bfq.weight_device", &value))?;
        }
    }
    let limits: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
    ];
    for (file, devices) in limits {
        for device in devices.iter().flatten() {
            set(file, &format!("{}:{} {}", device.major(), device.minor(), device.rate()))?;
        }
    }
    Ok(())
}

fn network_v1(network: &LinuxNetwork, set: Set<'_>) -> Result<()> {
    if let Some(class) = network.class_id() {
        set("net_cls.classid", &class.to_string())?;
    }
    for priority in network.priorities().iter().flatten() {
        set("net_prio.ifpriomap", &format!("{} {}", priority.name(), priority.priority()))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn understand(resources: &LinuxResources) -> Result<()> {
    let set = |_: &str, _: &str| Ok(());
    if let Some(memory) = resources.memory() {
        let _ = memory_v1(memory, &set);
        unlimited_memory_and_swap(memory, &set)?;
    }
    if let Some(cpu) = resources.cpu() {
        let _ = cpu_v1(cpu, &set);
    }
    if let Some(io) = resources.block_io() {
        let _ = io_v1(io, &set);
        io_weights_v2(io, &set)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_a_weight_that_keeps_the_ends_and_the_default() {
        for (shares, expected) in
            [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1_000_000, 10_000)]
        {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    /// Checks values that `apply_v2` writes to the files of a cgroup, and that libcgroups would get
    /// wrong.
    #[test]
    fn what_libcgroups_gets_wrong_is_right() {
        let folder = std::env::temp_dir().join(format!("rt-limits-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        for (number, (limits, files, expected)) in [
            (r#"{"memory":{"limit":8,"swap":8}}"#, "memory.max memory.swap.max", "8 0"),
            (r#"{"memory":{"swap":-1}}"#, "memory.swap.max", "max"),
            (r#"{"memory":{"limit":-1,"reservation":4}}"#, "memory.max memory.low", "max 4"),
            (r#"{"blockIO":{"weight":500}}"#, "io.weight", "4950"),
            (r#"{"blockIO":{"weight":500,"leafWeight":1}}"#, "io.bfq.weight", "500"),
            (r#"{"pids":{"limit":0}}"#, "pids.max", ""),
            (r#"{"cpu":{"cpus":"","mems":"","quota":5,"period":0}}"#, "cpu.max", "5"),
            (r#"{"cpu":{"shares":1024,"idle":1}}"#, "cpu.weight cpu.idle", " 1"),
            (r#"{"cpu":{"realtimePeriod":1,"burst":7}}"#, "cpu.max.burst", "7"),
            (r#"{"rdma":{"x":{"hcaHandles":1}}}"#, "rdma.max", "x hca_handle=1"),
            (r#"{"unified":{"../a/cgroup.controllers":"1"}}"#, "", "`unified` is not a file name"),
            (r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#, "", "`hugetlb.3MB.max`"),
        ]
        .into_iter()
        .enumerate()
        {
            let cgroup = folder.join(number.to_string());
            std::fs::create_dir_all(&cgroup).expect("a directory");
            for file in files.split_whitespace().chain(["cgroup.controllers"]) {
                std::fs::write(cgroup.join(file), "").expect("a file");
            }
            let read = |file| std::fs::read_to_string(cgroup.join(file)).expect("a file");
            let limits = serde_json::from_str(limits).expect("limits");
            match apply_v2(&cgroup, &limits) {
                Ok(()) => {
                    let left: Vec<String> = files.split_whitespace().map(read).collect();
                    assert_eq!(left.join(" "), expected, "{limits:?}");
                }
                Err(error) => assert!(format!("{error:#}").contains(expected), "{error:#}"),
            }
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    /// On a kernel without swap accounting.
    #[test]
    fn only_a_limit_of_swap_needs_its_file() {
        let memory = |limit: i64, swap: i64| {
            let json = serde_json::json!({ "limit": limit, "swap": swap });
            serde_json::from_value::<LinuxMemory>(json).expect("limits")
        };
        let set = |file: &str, _: &str| {
            let missing = file.contains("swap") || file.contains("memsw");
            let failure = || Failure::new(Errno::NOENT, "write".to_owned());
            if missing { Err(failure()) } else { Ok(()) }
        };
        for (limit, swap, is_good) in
            [(8, 0, true), (8, -1, true), (8, 8, true), (-1, 0, true), (8, 9, false)]
        {
            assert_eq!(
                unlimited_memory_and_swap(&memory(limit, swap), &set).is_ok(),
                is_good,
                "{limit} {swap}"
            );
            assert_eq!(memory_v1(&memory(limit, swap), &set).is_ok(), is_good, "{limit} {swap}");
        }
    }
}
