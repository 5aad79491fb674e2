//! Messages to the kernel about network devices (`rtnetlink(7)`).
//!
//! This is our own code. libcontainer uses netlink-packet-route, which knows every message, and
//! makes the program half a megabyte larger. We use five messages.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

// Types of messages, <linux/rtnetlink.h>.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

// Attributes of links, <linux/if_link.h>, and of addresses, <linux/if_addr.h>.
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

const IFA_F_PERMANENT: u32 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// Sizes of `struct nlmsghdr`, `ifaddrmsg` and `rtattr`, in bytes.
const HEADER: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// A connection to the kernel, in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

/// An address of a device, as the kernel describes it.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

struct Received {
    kind: u16,
    /// The bytes after the header.
    body: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Netlink> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE, which is 0.
            None,
        )
        .context("open a netlink socket")?;
        Ok(Netlink(socket))
    }

    /// The index of the device with this name.
    pub(crate) fn index(&self, name: &str) -> Result<u32> {
        let body = [link(0, 0, 0), attribute(IFLA_IFNAME, &name_bytes(name))].concat();
        let answers = self.ask(RTM_GETLINK, 0, &body)?;
        let answer = answers.iter().find(|answer| answer.kind == RTM_NEWLINK);
        let index = answer.and_then(|answer| number(&answer.body, 4));
        index.with_context(|| format!("the kernel did not say which device `{name}` is"))
    }

    /// Moves a device to another network namespace and renames it in the same step. The kernel
    /// takes the device down first.
    pub(crate) fn move_to(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let body = [
            link(index, 0, 0),
            attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes()),
            attribute(IFLA_IFNAME, &name_bytes(name)),
        ];
        self.ask(RTM_SETLINK, libc::NLM_F_ACK, &body.concat()).map(drop)
    }

    pub(crate) fn bring_up(&self, index: u32) -> Result<()> {
        let up = libc::IFF_UP.unsigned_abs();
        self.ask(RTM_SETLINK, libc::NLM_F_ACK, &link(index, up, up)).map(drop)
    }

    /// The permanent addresses of a device with global scope: not those that the device has found
    /// by itself, or that are valid on this link or host only.
    pub(crate) fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        let mut body = vec![0; ADDRESS];
        body[4..].copy_from_slice(&index.to_ne_bytes());
        let answers = self.ask(RTM_GETADDR, libc::NLM_F_DUMP, &body)?;
        let found = answers.iter().filter(|answer| answer.kind == RTM_NEWADDR);
        Ok(found.filter_map(|answer| lasting(&answer.body, index)).collect())
    }

    pub(crate) fn add_address(&self, index: u32, address: &Address) -> Result<()> {
        let mut body = vec![address.family, address.prefix, 0, RT_SCOPE_UNIVERSE];
        body.extend(index.to_ne_bytes());
        for (kind, value) in &address.attributes {
            if matches!(*kind, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST) {
                body.extend(attribute(*kind, value));
            }
        }
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.ask(RTM_NEWADDR, flags, &body).map(drop)
    }

    /// Sends a request and receives all answers.
    fn ask(&self, kind: u16, flags: i32, body: &[u8]) -> Result<Vec<Received>> {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST)?;
        let mut request = u32::try_from(HEADER + body.len())?.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, &request, SendFlags::empty(), &kernel)
            .context("ask the kernel")?;
        let dump = flags & u16::try_from(libc::NLM_F_DUMP)? == u16::try_from(libc::NLM_F_DUMP)?;
        let mut answers = Vec::new();
        loop {
            // The size of the largest piece of a dump that the kernel sends (netlink(7)).
            let mut buffer = vec![0; 32768];
            let (_, length) = rustix::net::recv(&self.0, &mut buffer, RecvFlags::TRUNC)
                .context("hear from the kernel")?;
            let mut rest = buffer.get(..length).context("the kernel's answer is too long")?;
            while let Some((answer, others)) = split(rest) {
                rest = others;
                match i32::from(answer.kind) {
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => {
                        // The negative of an errno. 0 is an acknowledgement.
                        let code = number(&answer.body, 0).unwrap_or(0).cast_signed();
                        if code != 0 {
                            bail!(Errno::from_raw_os_error(-code));
                        }
                        return Ok(answers);
                    }
                    _ => answers.push(answer),
                }
            }
            if !dump && i32::from(flags) & libc::NLM_F_ACK == 0 {
                return Ok(answers);
            }
        }
    }
}

/// `struct ifinfomsg`: the device, its flags, and a mask of the flags to change.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat()
}

fn name_bytes(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// `struct rtattr`, padded to the next multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Names, addresses and numbers are a few bytes long.
    let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The first message, and the bytes after it.
fn split(bytes: &[u8]) -> Option<(Received, &[u8])> {
    let length = usize::try_from(number(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER..length)?.to_vec();
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Received { kind: short(bytes, 4)?, body }, rest))
}

/// Parses `struct ifaddrmsg`. Returns None for an address that `addresses` leaves out.
fn lasting(body: &[u8], index: u32) -> Option<Address> {
    let &[family, prefix, flags, scope, ..] = body else { return None };
    let mut attributes = Vec::new();
    let mut rest = body.get(ADDRESS..)?;
    while let (Some(length), Some(kind)) = (short(rest, 0), short(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(ATTRIBUTE..length) else { break };
        attributes.push((kind, value.to_vec()));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let long = attributes.iter().find(|(kind, _)| *kind == IFA_FLAGS);
    let flags = long.and_then(|(_, value)| number(value, 0)).unwrap_or(u32::from(flags));
    let lasts = number(body, 4) == Some(index)
        && scope == RT_SCOPE_UNIVERSE
        && flags & IFA_F_PERMANENT != 0;
    lasts.then_some(Address { family, prefix, attributes })
}

#[cfg(test)]
pub(crate) fn understand(mut bytes: &[u8]) {
    while let Some((answer, rest)) = split(bytes) {
        let _ = lasting(&answer.body, 1);
        assert!(rest.len() < bytes.len(), "no step forward");
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_with_its_number() {
        let netlink = Netlink::open().expect("a socket");
        assert_eq!(netlink.index("lo").expect("loopback"), 1);
        let error = netlink.index("no-such-device").expect_err("no device");
        assert_eq!(error.downcast_ref(), Some(&Errno::NODEV));
        // 127.0.0.1 and ::1 are valid on this host only.
        assert!(netlink.addresses(1).expect("a list").is_empty());
    }
}
