//! The bundle: a directory with a `config.json` and, usually, a rootfs (OCI runtime-spec,
//! `bundle.md`).
#![forbid(unsafe_code)]

pub(crate) mod rootless;
mod template;

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use oci_spec::runtime::{
    Capability, Linux, LinuxNamespaceType, LinuxSchedulerFlag, LinuxSchedulerPolicy, Mount,
    Process, Root, Scheduler, Spec,
};
use serde_json::Value;

use crate::trust;

pub(crate) use template::{SPECIFICATION, template};

#[derive(Debug)]
pub(crate) struct Bundle {
    /// An absolute path without symbolic links.
    pub(crate) path: PathBuf,
    /// `root.path`, made absolute.
    pub(crate) rootfs: PathBuf,
    /// The configuration as it was read, byte for byte.
    pub(crate) config: Vec<u8>,
    pub(crate) spec: Spec,
}

impl Bundle {
    /// Reads and checks the configuration. Afterwards it has everything that every container must
    /// have.
    pub(crate) fn load(directory: &Path, config: Option<&Path>) -> Result<Bundle> {
        Bundle::read(directory, config)
            .with_context(|| format!("open bundle `{}`", directory.display()))
    }

    fn read(directory: &Path, config: Option<&Path>) -> Result<Bundle> {
        let path = directory.canonicalize()?;
        let file = config.map_or_else(|| path.join("config.json"), Path::to_owned);
        let name = config.unwrap_or(Path::new("config.json")).display();
        let config = crate::input::read_file(&file).with_context(|| format!("read `{name}`"))?;
        let parsed = spec(&config).with_context(|| format!("parse `{name}`"))?;
        let mut spec = complete(parsed).with_context(|| format!("check `{name}`"))?;
        let rootfs = spec.root().as_ref().map(Root::path).context("`root` is missing")?;
        let named = path.join(rootfs);
        let rootfs = named.clone();
        ensure!(
            fs::metadata(&rootfs)
                .with_context(|| format!("open rootfs `{}`", rootfs.display()))?
                .is_dir(),
            "open rootfs `{}`: Not a directory",
            rootfs.display()
        );
        let rootfs =
            canonical(&rootfs).with_context(|| format!("open rootfs `{}`", rootfs.display()))?;
        place_mounts_of(&mut spec, &[&rootfs, &named]);
        Ok(Bundle { path, rootfs, config, spec })
    }

    pub(crate) fn process(&self) -> &Process {
        self.spec.process().as_ref().expect("`load` refuses a configuration without a process")
    }

    pub(crate) fn linux(&self) -> &Linux {
        self.spec.linux().as_ref().expect("`load` puts an empty one where there is none")
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        annotation(&self.spec, key)
    }

    pub(crate) fn annotations(&self) -> HashMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default()
    }
}

/// Makes every destination begin at the container's root. A relative destination means this
/// (runtime-spec, `config.md`, "Mounts": a runtime MAY accept one). If a destination begins with
/// the path of the rootfs, that part is removed, as runc does.
pub(crate) fn place_mounts(mounts: &mut [Mount], rootfs: &[&Path]) {
    for mount in mounts {
        let destination = mount.destination();
        let inside = rootfs.iter().find_map(|rootfs| {
            let inside = destination.strip_prefix(rootfs).ok()?;
            (*rootfs != Path::new("/") && !inside.as_os_str().is_empty()).then_some(inside)
        });
        let placed: PathBuf = match inside {
            Some(inside) => Path::new("/").join(inside),
            None if destination.is_absolute() => continue,
            None => {
                // `..` at the root stays at the root.
                let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
                let below = destination.components().skip_while(|part| !is_name(part));
                Path::new("/").join(below.collect::<PathBuf>())
            }
        };
        mount.set_destination(placed);
    }
}

/// Does the same for a checked configuration.
pub(crate) fn place_mounts_of(spec: &mut Spec, rootfs: &[&Path]) {
    if let Some(mut mounts) = spec.mounts_mut().take() {
        place_mounts(&mut mounts, rootfs);
        spec.set_mounts(Some(mounts));
    }
}

/// Refuses an empty destination.
pub(crate) fn check_destination(mount: &Mount) -> Result<()> {
    let destination = mount.destination();
    ensure!(!destination.as_os_str().is_empty(), "the destination of a mount is empty");
    if destination.is_relative() {
        crate::report::warn(&format!(
            "the mount destination `{}` is not absolute: it is taken from `/`",
            destination.display()
        ));
    }
    Ok(())
}

/// The path of a directory without symbolic links. Does not follow a symbolic link of another user,
/// because it could lead to the host's root.
fn canonical(path: &Path) -> Result<PathBuf> {
    let directory = trust::enter(path)?;
    Ok(fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?)
}

pub(crate) fn annotation<'spec>(spec: &'spec Spec, key: &str) -> Option<&'spec str> {
    spec.annotations().as_ref()?.get(key).map(String::as_str)
}

/// A configuration that follows the rules of `config.md`, with a `linux`.
pub(crate) fn parse(config: &[u8]) -> Result<Spec> {
    complete(spec(config)?)
}

/// Checks the result of [`spec`], and adds what every container must have.
fn complete((mut spec, unknown): (Spec, Vec<String>)) -> Result<Spec> {
    warn_of_unknown_capabilities(&unknown);
    if spec.linux().is_none() {
        // Without `linux`, nothing is configured: not even the namespaces and masked paths of the
        // type's own default.
        spec.set_linux(Some(serde_json::from_str("{}")?));
    }
    rootless::complete(&mut spec)?;
    check(&spec)?;
    limit_to_one_process(&mut spec);
    Ok(spec)
}

/// Since runtime-spec 1.3, a `pids.limit` of 0 is a limit. For the kernel and systemd it means the
/// same as 1, so `rt` uses 1, as runc 1.4 does. Earlier versions left the meaning open, and podman
/// up to 5.4 writes 0 for no limit.
fn limit_to_one_process(spec: &mut Spec) {
    let is_a_limit = minor_version(spec.version()).is_some_and(|minor| minor >= 3);
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(pids) = resources.and_then(|resources| resources.pids_mut().as_mut())
        && is_a_limit
        && pids.limit() == 0
    {
        pids.set_limit(1);
    }
}

/// The number after `1.`, or `None` for another major version.
fn minor_version(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("1.")?.split(['.', '-', '+']).next()?;
    minor.parse().ok().filter(|_| minor.bytes().all(|digit| digit.is_ascii_digit()))
}

/// A configuration without changes, and the unknown capabilities in it.
pub(crate) fn spec(config: &[u8]) -> serde_json::Result<(Spec, Vec<String>)> {
    // serde_json's error names line and column.
    let error = match serde_json::from_slice(config) {
        Ok(spec) => return Ok((spec, Vec::new())),
        Err(error) => error,
    };
    // Handles values that the specification allows and the types do not.
    let Ok(mut json) = serde_json::from_slice::<Value>(config) else { return Err(error) };
    let unknown = json.pointer_mut("/process").map(suit_process);
    json.pointer_mut("/linux/resources/hugepageLimits").map(cap_limits_of_huge_pages);
    // Reports the first error, because it names a line.
    let spec = serde_json::from_value(json).map_err(|_| error)?;
    Ok((spec, unknown.unwrap_or_default()))
}

/// Changes a `process` so that the types can read it. Returns the unknown capabilities in it.
pub(crate) fn suit_process(process: &mut Value) -> Vec<String> {
    rename_scheduler_flags(process);
    leave_out_unknown_capabilities(process)
}

/// The types have other names for these flags than the specification (`config.md`, "Linux Process",
/// `scheduler`).
fn rename_scheduler_flags(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        for (name, theirs) in [
            ("SCHED_FLAG_RESET_ON_FORK", LinuxSchedulerFlag::SchedResetOnFork),
            ("SCHED_FLAG_DL_OVERRUN", LinuxSchedulerFlag::SchedFlagDLOverrun),
        ] {
            if *flag == name {
                *flag = serde_json::json!(theirs);
            }
        }
    }
}

/// Removes unknown capabilities. They cause a warning, not an error (runtime-spec, `config.md`,
/// "Linux Process"): a name may be newer than this `rt`.
fn leave_out_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else {
        return unknown;
    };
    for names in sets.values_mut().filter_map(Value::as_array_mut) {
        names.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if let (false, Some(text)) = (known, name.as_str())
                && !unknown.contains(&text.to_owned())
            {
                unknown.push(text.to_owned());
            }
            known || !name.is_string()
        });
    }
    unknown
}

pub(crate) fn warn_of_unknown_capabilities(names: &[String]) {
    for name in names {
        crate::report::warn(&format!("unknown capability `{name}`: it is ignored"));
    }
}

/// The specification's type is `uint64`, the crate's is `i64`.
fn cap_limits_of_huge_pages(limits: &mut Value) {
    for limit in limits.as_array_mut().into_iter().flatten() {
        if limit["limit"].as_u64().is_some_and(|limit| i64::try_from(limit).is_err()) {
            limit["limit"] = i64::MAX.into();
        }
    }
}

/// The rules that the types cannot express.
fn check(spec: &Spec) -> Result<()> {
    let version = spec.version();
    ensure!(!version.is_empty(), "`ociVersion` is missing");
    // Every 1.x is compatible with `rt`, even if `rt` does not know it yet (semantic versioning;
    // CRI-O 1.36 writes 1.3.0).
    ensure!(minor_version(version).is_some(), "`ociVersion` {version} is not 1.x");
    let root = spec.root().as_ref().ok_or_else(|| anyhow!("`root` is missing"))?;
    ensure!(!root.path().as_os_str().is_empty(), "`root.path` is missing");
    let process = spec.process().as_ref().ok_or_else(|| anyhow!("`process` is missing"))?;
    check_process(process)?;
    let hooks = spec.hooks().iter().flat_map(|hooks| {
        let kinds = [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ];
        kinds.into_iter().flatten().flatten()
    });
    for hook in hooks {
        ensure!(
            hook.path().is_absolute(),
            "the hook path `{}` is not absolute",
            hook.path().display()
        );
        if let Some(timeout) = hook.timeout() {
            ensure!(
                timeout > 0,
                "the timeout {timeout} of the hook `{}` is not greater than 0",
                hook.path().display()
            );
        }
    }
    for mount in spec.mounts().iter().flatten() {
        check_destination(mount)?;
    }
    if let Some(linux) = spec.linux() {
        let namespaces = linux.namespaces().iter().flatten();
        let mut seen = Vec::new();
        for namespace in namespaces {
            ensure!(
                !seen.contains(&namespace.typ()),
                "the {} namespace is listed twice",
                namespace.typ()
            );
            seen.push(namespace.typ());
        }
        // Offsets can be set only before a process is in the namespace (`time_namespaces(7)`).
        if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
            for (clock, offset) in linux.time_offsets().iter().flatten() {
                ensure!(
                    matches!(clock.as_str(), "boottime" | "monotonic"),
                    "`linux.timeOffsets` has the clock `{clock}`: a time namespace has `boottime` and `monotonic`"
                );
                ensure!(
                    offset.nanosecs().unwrap_or(0) < 1_000_000_000,
                    "`linux.timeOffsets.{clock}.nanosecs` is a second or more"
                );
            }
            let mut namespaces = linux.namespaces().iter().flatten();
            let time = namespaces.find(|there| there.typ() == LinuxNamespaceType::Time);
            let joined = |path: &PathBuf| !path.as_os_str().is_empty();
            let is_new = time.is_some_and(|time| !time.path().as_ref().is_some_and(joined));
            ensure!(
                is_new,
                "`linux.timeOffsets` needs a new time namespace{}",
                match time {
                    Some(_) => ", and `linux.namespaces` names one to join",
                    None => " in `linux.namespaces`",
                }
            );
        }
    }
    Ok(())
}

/// The rules for a `process`, which may come from `exec`.
pub(crate) fn check_process(process: &Process) -> Result<()> {
    ensure!(
        process.args().as_ref().is_some_and(|args| !args.is_empty()),
        "`process.args` is empty"
    );
    ensure!(
        process.cwd().is_absolute(),
        "`process.cwd` `{}` is not absolute",
        process.cwd().display()
    );
    let strings = process.args().iter().flatten().chain(process.env().iter().flatten());
    for string in strings {
        ensure!(
            !string.contains('\0'),
            "a NUL byte in `process.args` or `process.env`: {string:?}"
        );
    }
    let user = process.user();
    let ids = [user.uid(), user.gid()]
        .into_iter()
        .chain(user.additional_gids().iter().flatten().copied());
    for id in ids {
        // For the kernel, this number is -1, "no change": the process would stay root
        // (setresuid(2)).
        ensure!(id != u32::MAX, "`process.user` holds {id}, which is not an id");
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (number, limit) in limits.iter().enumerate() {
        let kind = limit.typ();
        ensure!(
            limits[..number].iter().all(|earlier| earlier.typ() != kind),
            "`process.rlimits[{number}]`: {kind} is listed twice"
        );
        ensure!(
            limit.soft() <= limit.hard(),
            "`process.rlimits[{number}]`: {kind} has the soft limit {}, more than the hard limit {}",
            limit.soft(),
            limit.hard()
        );
    }
    if let Some(scheduler) = process.scheduler() {
        check_scheduler(scheduler)?;
    }
    Ok(())
}

/// Checks the numbers that the kernel would refuse without saying which one is wrong (`sched(7)`).
fn check_scheduler(scheduler: &Scheduler) -> Result<()> {
    use LinuxSchedulerPolicy::{SchedDeadline, SchedFifo, SchedRr};
    let policy = scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    ensure!((-20..=19).contains(&nice), "`process.scheduler.nice` is {nice}, not -20 to 19");
    let priority = scheduler.priority().unwrap_or(0);
    let (lowest, highest) = if matches!(policy, SchedFifo | SchedRr) { (1, 99) } else { (0, 0) };
    ensure!(
        (lowest..=highest).contains(&priority),
        "`process.scheduler.priority` is {priority}: with {policy}, it is {}",
        if highest == 0 { "0" } else { "1 to 99" }
    );
    let runtime = scheduler.runtime().unwrap_or(0);
    let deadline = scheduler.deadline().unwrap_or(0);
    // The kernel's default.
    let period = scheduler.period().filter(|period| *period != 0).unwrap_or(deadline);
    let times = [("runtime", runtime), ("deadline", deadline), ("period", period)];
    if *policy != SchedDeadline {
        for (name, value) in times {
            ensure!(
                value == 0,
                "`process.scheduler.{name}` is {value}: it is for SCHED_DEADLINE, not {policy}"
            );
        }
        return Ok(());
    }
    for (name, value) in times {
        ensure!(value != 0, "`process.scheduler.{name}` is missing, or 0: SCHED_DEADLINE needs it");
        // The highest bit is for the kernel's own use; `__checkparam_dl` in
        // `kernel/sched/deadline.c`.
        ensure!(value >> 63 == 0, "`process.scheduler.{name}` is {value}, 2^63 ns or more");
    }
    const SHORTEST: u64 = 1 << 10;
    ensure!(
        runtime >= SHORTEST,
        "`process.scheduler.runtime` is {runtime}, less than {SHORTEST} ns"
    );
    ensure!(
        runtime <= deadline,
        "`process.scheduler.runtime` is {runtime}, more than `deadline`, {deadline}"
    );
    ensure!(
        deadline <= period,
        "`process.scheduler.deadline` is {deadline}, more than `period`, {period}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    fn check(json: &str) -> String {
        let spec = serde_json::from_str(json).expect("valid JSON");
        super::check(&spec).map_or_else(|error| format!("{error:#}"), |()| "good".to_owned())
    }

    #[test]
    fn names_what_is_missing() {
        let process = r#""process":{"cwd":"/","args":["x"],"user":{"uid":0,"gid":0}}"#;
        for (json, text) in [
            ("{}".to_owned(), "`ociVersion` is missing"),
            (r#"{"ociVersion":"2.0.0"}"#.to_owned(), "`ociVersion` 2.0.0 is not 1.x"),
            (r#"{"ociVersion":"1.99.7"}"#.to_owned(), "`root` is missing"),
            (r#"{"ociVersion":"1.0.2","root":{"path":"r"}}"#.to_owned(), "`process` is missing"),
            (format!(r#"{{"ociVersion":"1.3.0","root":{{"path":"r"}},{process}}}"#), "good"),
        ] {
            assert_eq!(check(&json), text);
        }
    }
}
