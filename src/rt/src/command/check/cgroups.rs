//! Control groups: their version, their controllers, and whether the user may make them.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::{Finding, Verdict};
use crate::ids;
use crate::linux::cgroups::{self, ROOT, Version};

const TOPIC: &str = "cgroups";

/// The controllers with which callers set limits.
const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

pub(super) fn all() -> Vec<Finding> {
    let version = match cgroups::version() {
        Ok(version) => version,
        Err(error) => {
            let fix = format!("mount -t cgroup2 none {ROOT}; or use `--cgroup-manager=disabled`");
            return vec![Finding::bad(
                TOPIC,
                "version",
                Verdict::Missing,
                format!("{error:#}"),
                fix,
            )];
        }
    };
    let hierarchies = match version {
        Version::V2 => vec![PathBuf::from(ROOT)],
        Version::V1 => cgroups::hierarchies().unwrap_or_default(),
    };
    let hybrid = hierarchies.iter().any(|path| path.ends_with("unified"));
    let name = match (version, hybrid) {
        (Version::V2, _) => "2",
        (Version::V1, true) => "1, with version 2 beside it (hybrid)",
        (Version::V1, false) => "1",
    };
    let mut findings = vec![Finding::good(TOPIC, "version", name)];
    findings.push(controllers());
    findings.push(match version {
        Version::V1 if hierarchies.iter().any(|path| path.ends_with("devices")) => {
            Finding::good(TOPIC, DEVICE_RULES, "enforced by the hierarchy `devices`")
        }
        Version::V1 if !hybrid && ids::is_host_root() => Finding::bad(
            TOPIC,
            DEVICE_RULES,
            Verdict::Missing,
            format!("neither the hierarchy `devices` nor cgroup v2 at `{ROOT}/unified` is mounted"),
            format!("mount -t cgroup -o devices none {ROOT}/devices"),
        ),
        _ => device_programs(),
    });
    findings.push(systemd(version));
    findings.push(rights(&hierarchies));
    findings
}

fn controllers() -> Finding {
    let names = cgroups::controllers();
    let lacks: Vec<&str> =
        WANTED.into_iter().filter(|wanted| !names.iter().any(|name| name == wanted)).collect();
    if lacks.is_empty() {
        return Finding::good(TOPIC, "controllers", names.join(" "));
    }
    let fix = if lacks.contains(&"memory") {
        "enable them on the kernel command line (cgroup_enable=memory), and leave none to v1 (cgroup_no_v1=all)"
    } else {
        "leave no controller to v1 (cgroup_no_v1=all on the kernel command line)"
    };
    let detail = format!("{} not available: limits of these fail", lacks.join(" "));
    Finding::bad(TOPIC, "controllers", Verdict::Limited, detail, fix)
}

const DEVICE_RULES: &str = "device rules";

/// In v2, device rules are BPF programs.
fn device_programs() -> Finding {
    let name = DEVICE_RULES;
    if !ids::is_host_root() {
        return Finding::good(
            TOPIC,
            name,
            "not for ordinary users, who cannot make devices either",
        );
    }
    match cgroups::can_filter_devices() {
        Ok(()) => Finding::good(TOPIC, name, "programs can be loaded"),
        Err(error) => Finding::bad(
            TOPIC,
            name,
            Verdict::Missing,
            format!("{error:#}"),
            "use a kernel with CONFIG_CGROUP_BPF, and give rt CAP_BPF or CAP_SYS_ADMIN",
        ),
    }
}

fn systemd(version: Version) -> Finding {
    let running = Path::new("/run/systemd/system").is_dir();
    match (running, version) {
        (true, Version::V2) => Finding::good(TOPIC, "systemd", "runs: `--systemd-cgroup` works"),
        (true, Version::V1) => Finding::bad(
            TOPIC,
            "systemd",
            Verdict::Limited,
            "runs with cgroup v1: `--systemd-cgroup` does not work",
            "boot with systemd.unified_cgroup_hierarchy=1, or use cgroupfs",
        ),
        (false, _) => Finding::bad(
            TOPIC,
            "systemd",
            Verdict::Limited,
            "does not run: `--systemd-cgroup` does not work",
            "use cgroupfs: cgroup_manager = \"cgroupfs\" in the caller's configuration",
        ),
    }
}

fn rights(hierarchies: &[PathBuf]) -> Finding {
    let name = "rights";
    let writable =
        hierarchies.iter().all(|path| rustix::fs::access(path, Access::WRITE_OK).is_ok());
    if writable {
        return Finding::good(TOPIC, name, "cgroups can be made");
    }
    let verdict = if ids::is_host_root() { Verdict::Missing } else { Verdict::Limited };
    Finding::bad(
        TOPIC,
        name,
        verdict,
        format!("`{ROOT}` is not writable: only containers without limits work"),
        "use `--systemd-cgroup`, or have a cgroup delegated (systemd: Delegate=yes)",
    )
}
