//! Containers: made, and unmade. One file per thing that the kernel or the OCI specification has a name for.
#![forbid(unsafe_code)]

mod allowed_mounts;
mod becoming;
mod cgroup_mount;
pub(crate) mod cgroups;
mod checkpoint;
mod confinement;
mod create;
pub(crate) mod criu;
mod delete;
mod descriptors;
mod devices;
mod exec;
mod external_mounts;
mod hooks;
mod host_proc;
mod init;
pub(crate) mod intel_rdt;
mod landlock;
mod live_mounts;
mod memory_policy;
mod module;
mod mount_table;
mod mounts;
mod namespaces;
mod net_devices;
mod netlink;
mod newuidmap;
pub(crate) mod notify_socket;
mod open_files;
mod patience;
mod pid_file;
mod plan;
mod process;
mod restore;
mod restored_cgroups;
mod restored_limits;
mod restrictions;
mod rootfs;
pub(crate) mod seccomp;
mod serve;
mod start;
mod sysctl;
pub(crate) mod terminal;
mod undo;

pub(crate) use checkpoint::{CheckpointOptions, checkpoint};
pub(crate) use create::{Container, create};
pub(crate) use delete::{delete, delete_unreadable, end};
pub(crate) use exec::{ExecOptions, exec};
pub(crate) use live_mounts::{add as add_mounts, remove as remove_mounts};
pub(crate) use mounts::NAMES as MOUNT_OPTIONS;
pub(crate) use namespaces::{Ending, ending, root_on_the_host, wait};
pub(crate) use plan::{Options, Wait};
pub(crate) use restore::{RestoreOptions, Restored, restore};
pub(crate) use start::{start, started};

/// What reads things from outside, for tests that make them up.
#[cfg(test)]
pub(crate) mod fuzzed {
    use anyhow::Result;
    use oci_spec::runtime::{Linux, LinuxSeccomp, Mount, Spec};

    use super::{
        memory_policy, mounts, namespaces, net_devices, netlink, process, seccomp, sysctl,
    };

    pub(crate) use super::cgroups::fuzzed::{cgroup, message};

    pub(crate) fn mount(entry: &Mount, linux: &Linux) -> Result<()> {
        mounts::understand(entry, linux)
    }

    pub(crate) fn seccomp(filter: &LinuxSeccomp) -> Result<()> {
        seccomp::understand(filter)
    }

    pub(crate) fn process(spec: &Spec, linux: &Linux) -> Result<()> {
        let namespaces = namespaces::Namespaces::default();
        if let Some(parameters) = linux.sysctl() {
            let _ = sysctl::check(parameters, spec, &namespaces);
        }
        let _ = net_devices::check(linux, &namespaces);
        let _ = linux.memory_policy().as_ref().map(memory_policy::understand);
        spec.process().as_ref().map_or(Ok(()), process::understand)
    }

    pub(crate) fn hear(message: &[u8]) {
        super::cgroups::fuzzed::hear(message);
        netlink::understand(message);
    }
}
