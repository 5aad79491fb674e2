//! Network devices that move into the container (`linux.netDevices`; runtime-spec,
//! `config-linux.md`, "Network Devices"). `rt` sends the same messages to the kernel as
//! libcontainer. Runs in the runtime process.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Linux, LinuxNetDevice};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::thread::LinkNameSpaceType;

use crate::linux::namespaces::Namespaces;
use crate::linux::netlink::Netlink;

type Devices = HashMap<String, LinuxNetDevice>;

/// The name that a device gets.
fn resolved<'a>(device: &'a str, settings: &'a LinuxNetDevice) -> &'a str {
    settings.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(device)
}

/// The checks that are possible before anything is made.
pub(crate) fn check(linux: &Linux, namespaces: &Namespaces) -> Result<()> {
    let Some(devices) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(());
    };
    ensure!(
        namespaces.makes(libc::CLONE_NEWNET) || namespaces.joins(libc::CLONE_NEWNET),
        "`linux.netDevices` needs a network namespace of the container's own"
    );
    let mut names = Vec::new();
    for (device, settings) in devices {
        let name = resolved(device, settings);
        for name in [device, name] {
            // The kernel's rule, `dev_valid_name` in net/core/dev.c: the name becomes a file name
            // in sysfs.
            let good = (1..libc::IFNAMSIZ).contains(&name.len())
                && !matches!(name, "." | "..")
                && !name.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace());
            ensure!(good, "`linux.netDevices`: `{name}` is not the name of a network device");
        }
        ensure!(!names.contains(&name), "`linux.netDevices`: two devices get the name `{name}`");
        names.push(name);
    }
    Ok(())
}

/// Moves the devices into the network namespace of init, with their addresses, and brings them up.
pub(crate) fn move_to(pid: Pid, namespaces: &Namespaces, devices: &Devices) -> Result<()> {
    let made;
    let target = match namespaces.joined(libc::CLONE_NEWNET) {
        Some(joined) => joined,
        None => {
            made = open(&format!("/proc/{pid}/ns/net"))?;
            made.as_fd()
        }
    };
    for (device, settings) in devices {
        move_one(target, device, resolved(device, settings))
            .with_context(|| format!("move network device `{device}`"))?;
    }
    Ok(())
}

fn move_one(target: BorrowedFd<'_>, device: &str, name: &str) -> Result<()> {
    let here = Netlink::open()?;
    let index = here.index(device)?;
    let there = open_netlink_in(target)?;
    // The kernel would move the device before it refuses the name. A virtual device then ends with
    // the namespace.
    ensure!(there.index(name).is_err(), "the network namespace has a device `{name}` already");
    // The device loses its addresses when it moves.
    let addresses = here.addresses(index).context("read its addresses")?;
    here.move_to(index, target, name)?;
    let index = there.index(name)?;
    for address in &addresses {
        there.add_address(index, address).context("give it its addresses")?;
    }
    there.bring_up(index).context("bring it up")
}

/// A socket stays in the network namespace in which it was opened.
fn open_netlink_in(namespace: BorrowedFd<'_>) -> Result<Netlink> {
    let enter = |namespace: BorrowedFd<'_>| {
        rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
            .context("enter the network namespace")
    };
    let home = open("/proc/self/ns/net")?;
    enter(namespace)?;
    let netlink = Netlink::open();
    enter(home.as_fd())?;
    netlink
}

fn open(namespace: &str) -> Result<OwnedFd> {
    rustix::fs::open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `{namespace}`"))
}
