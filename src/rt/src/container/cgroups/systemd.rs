//! cgroups by systemd: a transient scope, made over D-Bus by libcgroups' manager (cgroup v2 only).
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt};
use libcontainer::oci_spec::runtime::LinuxResources;
use rustix::process::Pid;

use super::ROOT;

/// Where the scope of `SLICE:PREFIX:NAME` is, `system.slice` being the default; None for a text of another form. A slice `a-b.slice`
/// is in `a.slice` (systemd.slice(5)).
pub(super) fn path(unit: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = unit.split(':').collect();
    let [slice, prefix, name] = parts[..] else { return None };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let mut path = PathBuf::from(ROOT);
    let stem = slice.strip_suffix(".slice")?;
    let dashes = stem.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    for end in dashes.chain([stem.len()]).filter(|_| stem != "-") {
        path.push(format!("{}.slice", &stem[..end]));
    }
    let scope = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") };
    path.push(format!("{scope}.scope"));
    path.components().all(|part| part != std::path::Component::ParentDir).then_some(path)
}

/// Has systemd move the process into a new scope; returns the scope's cgroup.
pub(super) fn enter(unit: &str, id: &str, pid: Pid) -> Result<Vec<PathBuf>> {
    let manager = manager(unit, id)?;
    let task = nix_pid(pid);
    manager
        .add_task(task)
        .map_err(|error| anyhow!("make a systemd scope for `{unit}`: {error}"))?;
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

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn a_slice_is_in_those_that_its_name_begins_with() {
        let show = |unit| path(unit).map(|path| path.display().to_string());
        for (unit, expected) in [
            (":rt:c", Some("/sys/fs/cgroup/system.slice/rt-c.scope")),
            ("a-b.slice:crio:c", Some("/sys/fs/cgroup/a.slice/a-b.slice/crio-c.scope")),
            ("-.slice::c", Some("/sys/fs/cgroup/c.scope")),
            ("/a/b", None),
            ("a:b", None),
        ] {
            assert_eq!(show(unit).as_deref(), expected, "{unit}");
        }
    }
}
