//! The images of a network namespace that CRIU does not read itself: `nftables-N.img`,
//! `ifaddr-N.img`, `route-N.img`, `route6-N.img` and `rule-N.img`.
//!
//! CRIU gives the first one to libnftables, and the others to `ip`, as root of the host. They are
//! in the container's network namespace, but see all files of the host. nftables can `include` a
//! file, and CRIU's log then has lines of it. `ip` sends every message to the kernel: also one that
//! makes a device in the network namespace of another process. So `restore` refuses what no
//! checkpoint has.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::mount_images;

const RULES: &str = "nftables-";
/// The images for `ip`: with their first bytes, and the only kind of message in them (`RTM_NEW*`).
const LISTS: [(&str, u32, u16); 4] = [
    ("ifaddr-", 0x4736_1222, libc::RTM_NEWADDR),
    ("route-", 0x4531_1224, libc::RTM_NEWROUTE),
    ("route6-", 0x4531_1224, libc::RTM_NEWROUTE),
    ("rule-", 0x7170_6986, libc::RTM_NEWRULE),
];

/// Fails if an image has more than what belongs to a network namespace. `show` names an image in
/// errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
) -> Result<()> {
    for name in mount_images::names_with(images, RULES)? {
        let read = || refuse_includes(&criu::read_in(images, &name)?);
        read().with_context(|| show(&name))?;
    }
    for (start, magic, kind) in LISTS {
        for name in mount_images::names_with(images, start)? {
            let read = || refuse_others(&criu::read_in(images, &name)?, magic, kind);
            read().with_context(|| show(&name))?;
        }
    }
    Ok(())
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
        // `nlmsghdr`: the length with this header, and the kind.
        let length = rest.first_chunk().map(|length| u32::from_ne_bytes(*length));
        let length = usize::try_from(length.context("it is too short")?)?;
        let found = rest.get(4..6).and_then(|kind| kind.first_chunk());
        let found = u16::from_ne_bytes(*found.context("it is too short")?);
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
}
