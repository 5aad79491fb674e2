//! cgroups by systemd: a transient scope, made over D-Bus by libcgroups' manager (cgroup v2 only).
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt};
use libcontainer::oci_spec::runtime::LinuxResources;
use rustix::process::Pid;

use super::ROOT;

/// Has systemd move the process into a new scope with these limits; returns the scope's cgroup.
pub(super) fn enter(
    unit: &str,
    id: &str,
    pid: Pid,
    resources: Option<&LinuxResources>,
) -> Result<Vec<PathBuf>> {
    let manager = manager(unit, id)?;
    let task = nix_pid(pid);
    manager
        .add_task(task)
        .map_err(|error| anyhow!("make a systemd scope for `{unit}`: {error}"))?;
    if let Some(resources) = resources {
        limit(unit, id, resources)?;
    }
    // The slice that systemd chose is where it is; asking the kernel is the simplest way to learn it.
    let table =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read the cgroup of init")?;
    let path =
        table.lines().find_map(|line| line.strip_prefix("0::/")).context("init is in no cgroup")?;
    Ok(vec![Path::new(ROOT).join(path)])
}

fn manager(unit: &str, id: &str) -> Result<AnyCgroupManager> {
    let config = CgroupConfig {
        cgroup_path: unit.into(),
        systemd_cgroup: true,
        container_name: id.to_owned(),
    };
    libcgroups::common::create_cgroup_manager(config)
        .map_err(|error| anyhow!("use systemd: {error}"))
}

/// Has systemd limit the scope, which keeps the limits over a reload of its configuration.
pub(super) fn limit(unit: &str, id: &str, resources: &LinuxResources) -> Result<()> {
    let options = ControllerOpt {
        resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager(unit, id)?
        .apply(&options)
        .map_err(|error| anyhow!("limit the systemd scope for `{unit}`: {error}"))
}

fn nix_pid(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get())
}
