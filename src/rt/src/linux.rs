//! The nouns: one module for each thing that the kernel has a name for. A noun knows no container,
//! no state directory and no verb. It acts on its arguments, in the calling process or in a helper
//! that the noun starts.
#![forbid(unsafe_code)]

mod assembler;
pub(crate) mod cgroup_mount;
pub(crate) mod cgroups;
pub(crate) mod descriptors;
pub(crate) mod devices;
pub(crate) mod helper;
pub(crate) mod host_proc;
pub(crate) mod intel_rdt;
pub(crate) mod landlock;
pub(crate) mod memory_policy;
pub(crate) mod mount_table;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod net_devices;
pub(crate) mod netlink;
pub(crate) mod newuidmap;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod rootfs;
pub(crate) mod sd_notify;
pub(crate) mod seccomp;
pub(crate) mod sysctl;
pub(crate) mod terminal;

/// Parsers of input from outside, for tests that generate this input.
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
