//! cgroups by systemd: a transient scope, made over D-Bus by libcgroups' manager (cgroup v2 only).
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt};
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
    let config = CgroupConfig {
        cgroup_path: unit.into(),
        systemd_cgroup: true,
        container_name: id.to_owned(),
    };
    let manager = libcgroups::common::create_cgroup_manager(config)
        .map_err(|error| anyhow!("use systemd: {error}"))?;
    let task = nix_pid(pid);
    manager
        .add_task(task)
        .map_err(|error| anyhow!("make a systemd scope for `{unit}`: {error}"))?;
    if let Some(resources) = resources {
        let options = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager
            .apply(&options)
            .map_err(|error| anyhow!("limit the systemd scope for `{unit}`: {error}"))?;
    }
    // The slice that systemd chose is where it is; asking the kernel is the simplest way to learn it.
    let table =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read the cgroup of init")?;
    let path =
        table.lines().find_map(|line| line.strip_prefix("0::/")).context("init is in no cgroup")?;
    Ok(vec![Path::new(ROOT).join(path)])
}

fn nix_pid(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get())
}
