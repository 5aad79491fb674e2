//! The images of a network namespace.
//!
//! - CRIU gives `nftables-N.img` to libnftables, and `ifaddr-N.img`, `route-N.img`, `route6-N.img`
//!   and `rule-N.img` to `ip`, as root of the host. They are in the container's network namespace,
//!   but see all files of the host. nftables can `include` a file, and CRIU's log then has lines of
//!   it. `ip` sends every message to the kernel: also one that makes a device in the network
//!   namespace of another process.
//! - CRIU sends the messages of `netns-ct-N.img` and `netns-exp-N.img` (tracked connections) to the
//!   kernel itself, of whatever kind they are. It also trusts their lengths. It does so in a
//!   network namespace of others too, which the container shares. There, CRIU reads empty images in
//!   their place.
//! - `netdev-N.img` has the network devices. CRIU makes a path below `/proc/sys` of a device's
//!   name, and writes a text of the image there.
//!
//! `restore` refuses what no checkpoint has.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, each};

const RULES: &str = "nftables-";
/// The images for `ip`: with their first bytes, and the only kind of message in them (`RTM_NEW*`).
const LISTS: [(&str, u32, u16); 4] = [
    ("ifaddr-", 0x4736_1222, libc::RTM_NEWADDR),
    ("route-", 0x4531_1224, libc::RTM_NEWROUTE),
    ("route6-", 0x4531_1224, libc::RTM_NEWROUTE),
    ("rule-", 0x7170_6986, libc::RTM_NEWRULE),
];

/// The images of tracked connections, with the only kind of message in them: the subsystem
/// (`NFNL_SUBSYS_CTNETLINK*`), and `IPCTNL_MSG_*_NEW`.
const CONNECTIONS: [(&str, u16); 2] = [("netns-ct-", 1 << 8), ("netns-exp-", 2 << 8)];

const DEVICES: &str = "netdev-";
const DEVICES_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x51, 0x39, 0x37, 0x57];
/// `nd_type`: without the devices of OpenVZ.
const DEVICE_KINDS: [u32; 7] = [1, 2, 3, 4, 6, 7, 8];

/// The images of tracked connections.
pub(in crate::container) fn connections(images: BorrowedFd<'_>) -> Result<Vec<String>> {
    let names = CONNECTIONS.iter().map(|(start, _)| images::names_with(images, start));
    Ok(names.collect::<Result<Vec<_>>>()?.concat())
}

/// Fails if an image has more than what belongs to a network namespace. `show` names an image in
/// errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
) -> Result<()> {
    criu::each_image(images, RULES, show, &mut refuse_includes)?;
    for (start, magic, kind) in LISTS {
        criu::each_image(images, start, show, &mut |image| refuse_others(image, magic, kind))?;
    }
    for (start, kind) in CONNECTIONS {
        criu::each_image(images, start, show, &mut |image| check_connections(image, kind))?;
    }
    criu::each_image(images, DEVICES, show, &mut |image| {
        images::each_message(image, &DEVICES_MAGIC, &mut check_device)
    })
}

/// `net_device_entry`.
fn check_device(message: &[u8]) -> Result<()> {
    /// `MAX_ADDR_LEN` of the kernel.
    const LONGEST_ADDRESS: usize = 32;
    each(message, &mut |field, value| {
        match field {
            1 => {
                let kind = value.u32()?;
                ensure!(DEVICE_KINDS.contains(&kind), "a device of the kind {kind}");
            }
            5 => {
                let name = value.bytes()?;
                ensure!(name.len() <= LONGEST_NAME, "the name of a device is too long");
                ensure!(is_device_name(name), "the name `{}` of a device", name.escape_ascii());
            }
            7 => {
                ensure!(value.bytes()?.len() <= LONGEST_ADDRESS, "an address is too long");
            }
            _ => {}
        }
        Ok(())
    })
}

/// `IFNAMSIZ`, without the end of the text.
const LONGEST_NAME: usize = 15;

/// What the kernel accepts (`dev_valid_name`), and no pattern.
fn is_device_name(name: &[u8]) -> bool {
    !name.is_empty()
        && !matches!(name, b"." | b"..")
        && name.iter().all(|byte| !matches!(byte, 0..=b' ' | b'/' | b':' | b'%' | 0x7f))
}

/// Fails if a list of netlink messages, one directly after the other, has one of another kind.
fn check_connections(mut rest: &[u8], kind: u16) -> Result<()> {
    /// `nlmsghdr` and `nfgenmsg`.
    const SHORTEST: usize = 20;
    while !rest.is_empty() {
        let (length, found) = header(rest)?;
        ensure!(found == kind, "it has a message of the kind {found:#x}");
        let next = rest.get(length..).filter(|_| length >= SHORTEST);
        rest = next.context("a message has a wrong length")?;
    }
    Ok(())
}

/// The length of a netlink message with its header, and its kind: the start of `nlmsghdr`.
fn header(message: &[u8]) -> Result<(usize, u16)> {
    let length = message.first_chunk().map(|length| u32::from_ne_bytes(*length));
    let length = usize::try_from(length.context("it is too short")?)?;
    let kind = message.get(4..6).and_then(|kind| kind.first_chunk());
    Ok((length, u16::from_ne_bytes(*kind.context("it is too short")?)))
}

/// Fails if a text for nftables may include a file. The word can also be in a comment, which is
/// refused too.
fn refuse_includes(text: &[u8]) -> Result<()> {
    const WORD: &[u8] = b"include";
    let is_part = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let includes = text.windows(WORD.len()).enumerate().any(|(at, part)| {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        part == WORD && !is_part(before) && !is_part(text.get(at + WORD.len()))
    });
    ensure!(!includes, "it has the word `include`, by which nftables reads a file");
    Ok(())
}

/// Fails if a list of netlink messages has one of another kind.
fn refuse_others(image: &[u8], magic: u32, kind: u16) -> Result<()> {
    // CRIU does nothing with it.
    if image.is_empty() {
        return Ok(());
    }
    let start = magic.to_ne_bytes();
    let mut rest = image.strip_prefix(&start[..]).context("it is an image of another kind")?;
    while !rest.is_empty() {
        let (length, found) = header(rest)?;
        ensure!(found == kind, "it has a message of the kind {found}");
        let next = length.checked_next_multiple_of(4).filter(|_| length >= 16);
        rest = next.and_then(|next| rest.get(next..)).context("a message has a wrong length")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_include_no_file() {
        for text in ["table inet t {\n}\n", "add set ip t include_all", "includes", "re-include"] {
            refuse_includes(text.as_bytes()).expect(text);
        }
        for text in ["include \"/etc/shadow\"", "table ip t {};include\\\n\"/x\"", "\tinclude"] {
            refuse_includes(text.as_bytes()).expect_err(text);
        }
    }

    #[test]
    fn lists_have_one_kind_of_message() {
        let (_, magic, kind) = LISTS[1];
        let message = |length: u32, kind: u16| {
            let padding = vec![0; usize::try_from(length.max(6)).expect("short") - 6];
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &padding].concat()
        };
        let image = |messages: &[Vec<u8>]| [&magic.to_ne_bytes()[..], &messages.concat()].concat();
        let check = |messages: &[Vec<u8>]| refuse_others(&image(messages), magic, kind);
        refuse_others(&[], magic, kind).expect("it is empty");
        check(&[]).expect("it has none");
        check(&[message(16, kind), message(28, kind)]).expect("it is good");
        let other = check(&[message(16, kind), message(32, libc::RTM_NEWLINK)]);
        assert_eq!(other.expect_err("a link").to_string(), "it has a message of the kind 16");
        check(&[message(0, kind)]).expect_err("it has no end");
        check(&[message(16, kind)[..12].to_vec()]).expect_err("it is cut short");
        refuse_others(&message(16, kind), magic, kind).expect_err("it is another image");
    }

    #[test]
    fn tracked_connections_are_only_made() {
        let message = |length: u32, kind: u16, real: usize| {
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &vec![0; real - 6]].concat()
        };
        let check = |messages: &[Vec<u8>]| check_connections(&messages.concat(), 1 << 8);
        check(&[]).expect("it has none");
        check(&[message(20, 1 << 8, 20), message(25, 1 << 8, 25)]).expect("it is good");
        for (length, kind, real) in [
            // One that deletes all, one that makes a set, and lengths that are not so.
            (20, 1 << 8 | 2, 20),
            (20, 6 << 8 | 2, 20),
            (4, 1 << 8, 20),
            (0, 1 << 8, 20),
            (16, 1 << 8, 16),
            (21, 1 << 8, 20),
            (u32::MAX, 1 << 8, 20),
        ] {
            check(&[message(length, kind, real)]).expect_err("it is bad");
        }
    }

    #[test]
    fn a_device_has_a_name_of_the_kernels() {
        for name in ["lo", "eth0", "veth-1.2@x", "fifteen-letters"] {
            assert!(is_device_name(name.as_bytes()), "{name}");
        }
        for name in ["", "..", "a/b", "../../kernel", "a b", "a\n", "x:1", "d%d"] {
            assert!(!is_device_name(name.as_bytes()), "{name}");
        }
    }
}
