//! The names of the images in a checkpoint: a closed list.
//!
//! CRIU reads more images than it writes. Earlier versions of CRIU had other images for the same
//! things, and each plugin of CRIU has images of its own. `rt` checks the images of today. So
//! `restore` refuses any other `*.img`.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use anyhow::{Result, ensure};
use rustix::thread::CapabilitySet;

use crate::container::checkpoint::confinement::Limits;
use crate::container::checkpoint::images;

/// Images that exist once.
const SINGLE: [&str; 15] = [
    "apparmor",
    "cgroup",
    "cpuinfo",
    "fifo-data",
    "filelocks",
    "files",
    "inventory",
    "memfd",
    "pipes-data",
    "pstree",
    "remap-fpath",
    "seccomp",
    "sk-queues",
    "tty-data",
    "tty-info",
];

/// Images that exist for each number: `KIND-NUMBER`.
const NUMBERED: [&str; 32] = [
    "core",
    "fdinfo",
    "fs",
    "ghost-file",
    "ids",
    "ifaddr",
    "ip6tables",
    "ipcns-msg",
    "ipcns-sem",
    "ipcns-shm",
    "ipcns-var",
    "iptables",
    "mm",
    "mountpoints",
    "netdev",
    "netns",
    "netns-ct",
    "netns-exp",
    "nftables",
    "pagemap",
    "pagemap-shmem",
    "pages",
    "pidns",
    "route",
    "route6",
    "rule",
    "tcp-stream",
    "timens",
    "tmpfs",
    "tmpfs-dev",
    "userns",
    "utsns",
];

/// Images of things that only a container with `CAP_SYS_ADMIN` can have made.
const MOUNTERS: [&str; 2] = ["binfmt-misc", "bpfmap-data"];
const MOUNTERS_NUMBERED: &str = "autofs";

/// Fails if the checkpoint has an image that `rt` does not know. `show` names an image in errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
    limits: &Limits<'_>,
) -> Result<()> {
    let may_mount = limits.gives(CapabilitySet::SYS_ADMIN);
    for name in images::names_with(images, "")? {
        ensure!(
            is_known(&name, may_mount),
            "{}: no checkpoint of this container has such an image",
            show(&name)
        );
    }
    Ok(())
}

fn is_known(name: &str, may_mount: bool) -> bool {
    let Some(name) = name.strip_suffix(".img") else { return true };
    let is_single = |list: &[&str]| list.contains(&name);
    if is_single(&SINGLE) || may_mount && is_single(&MOUNTERS) {
        return true;
    }
    let Some((kind, number)) = name.rsplit_once('-') else { return false };
    let archived = number.strip_suffix(".tar.gz").filter(|_| kind.starts_with("tmpfs"));
    let number = archived.unwrap_or(number);
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number && (NUMBERED.contains(&kind) || may_mount && kind == MOUNTERS_NUMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_of_today_are_known() {
        for name in [
            "core-1.img",
            "ghost-file-1f.img",
            "tmpfs-dev-41.tar.gz.img",
            "pagemap-shmem-57116.img",
            "files.img",
            "dump.log",
            "mounts.json",
        ] {
            assert!(is_known(name, false), "{name}");
        }
        for name in [
            "reg-files.img",
            "inotify-wd.img",
            "tunfile.img",
            "creds-1.img",
            "amdgpu-kfd-1.img",
            "core-.img",
            "core.img",
            "core-1.tar.gz.img",
            "-1.img",
            ".img",
        ] {
            assert!(!is_known(name, true), "{name}");
        }
        for name in ["autofs-7.img", "binfmt-misc.img"] {
            assert!(is_known(name, true) && !is_known(name, false), "{name}");
        }
    }
}
