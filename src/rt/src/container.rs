//! Containers: made, and unmade. One room per thing that the kernel or the OCI specification has a name for.
#![forbid(unsafe_code)]

mod cgroup_mount;
pub(crate) mod cgroups;
mod create;
mod delete;
mod devices;
mod exec;
mod hooks;
mod init;
pub(crate) mod intel_rdt;
mod mounts;
mod namespaces;
mod net_devices;
mod netlink;
pub(crate) mod notify_socket;
mod process;
mod rootfs;
pub(crate) mod rootless;
pub(crate) mod seccomp;
mod start;
mod sync;
mod sysctl;
pub(crate) mod terminal;

pub(crate) use create::{Container, Options, Wait, create};
pub(crate) use delete::{delete, delete_unreadable};
pub(crate) use exec::{ExecOptions, exec};
pub(crate) use mounts::NAMES as MOUNT_OPTIONS;
pub(crate) use namespaces::wait;
pub(crate) use start::{start, started};
