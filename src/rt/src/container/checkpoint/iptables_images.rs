//! The images for `iptables-restore`: `iptables-N.img` and `ip6tables-N.img`.
//!
//! CRIU gives them to the program as root of the host, in the container's network namespace. A rule
//! of it can have options that only a command line should have: `--modprobe` names a program of the
//! host, which it runs if it has to load a module. So `restore` refuses a line that `iptables-save`
//! does not write, and an option that is not on a list. The list has what rules of containers have.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use anyhow::{Result, ensure};

use crate::container::checkpoint::criu;

const KINDS: [&str; 2] = ["iptables-", "ip6tables-"];

/// The program reads a line of more than 10240 bytes as two lines.
const LONGEST: usize = 4096;

const OPTIONS: [&[u8]; 66] = [
    b"-A",
    b"-d",
    b"-f",
    b"-g",
    b"-i",
    b"-j",
    b"-m",
    b"-o",
    b"-p",
    b"-s",
    b"--clamp-mss-to-pmtu",
    b"--comment",
    b"--connlimit-above",
    b"--connlimit-mask",
    b"--connlimit-saddr",
    b"--connlimit-upto",
    b"--ctdir",
    b"--ctmask",
    b"--ctorigdst",
    b"--ctorigdstport",
    b"--ctstate",
    b"--ctstatus",
    b"--dport",
    b"--dports",
    b"--dst-range",
    b"--dst-type",
    b"--every",
    b"--gid-owner",
    b"--icmp-type",
    b"--icmpv6-type",
    b"--length",
    b"--limit",
    b"--limit-burst",
    b"--limit-iface-in",
    b"--log-level",
    b"--log-prefix",
    b"--mac-source",
    b"--mark",
    b"--mode",
    b"--mss",
    b"--nfmask",
    b"--notrack",
    b"--on-ip",
    b"--on-port",
    b"--packet",
    b"--persistent",
    b"--probability",
    b"--random",
    b"--random-fully",
    b"--reject-with",
    b"--restore-mark",
    b"--save-mark",
    b"--set-mss",
    b"--set-xmark",
    b"--sport",
    b"--sports",
    b"--src-range",
    b"--src-type",
    b"--state",
    b"--tcp-flags",
    b"--to-destination",
    b"--to-ports",
    b"--to-source",
    b"--tproxy-mark",
    b"--uid-owner",
    b"--zone",
];

/// Fails if an image has other lines or options. `show` names an image in errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
) -> Result<()> {
    KINDS.iter().try_for_each(|kind| criu::each_image(images, kind, show, &mut check_text))
}

fn check_text(text: &[u8]) -> Result<()> {
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let is_text = line.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
        ensure!(is_text && line.len() <= LONGEST, "its line {} is not plain text", number + 1);
        let is_known = match line {
            [] | [b'#', ..] | b"COMMIT" => true,
            [b'*', table @ ..] => is_name(table),
            [b':', chain @ ..] => is_chain(chain),
            [b'-', b'A', b' ', ..] => is_rule(line),
            _ => false,
        };
        ensure!(
            is_known,
            "its line {} is not one that `rt` knows: `{}`",
            number + 1,
            line.escape_ascii()
        );
    }
    Ok(())
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.+".contains(byte))
        && !name.starts_with(b"-")
}

/// `NAME POLICY [PACKETS:BYTES]`, with `-` for no policy.
fn is_chain(line: &[u8]) -> bool {
    let parts: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [name, policy, counters] = parts[..] else { return false };
    let is_policy = policy == b"-" || policy.iter().all(u8::is_ascii_uppercase);
    let is_counter = |byte: &u8| byte.is_ascii_digit() || b"[:]".contains(byte);
    is_name(name) && is_policy && counters.iter().all(is_counter)
}

/// Each word that could be an option is one of the list. A word can begin at a quote too. In the
/// words of a quoted text, an option is refused as well.
fn is_rule(line: &[u8]) -> bool {
    let mut words = line
        .split(|byte| matches!(byte, b' ' | b'\t' | b'"' | b'\''))
        .filter(|word| !word.is_empty());
    let mut last: &[u8] = b"";
    let is_good = words.all(|word| {
        let names = matches!(last, b"-A" | b"-g" | b"-j" | b"-m");
        last = word;
        if names {
            return is_name(word);
        }
        let is_option = word.starts_with(b"-");
        // An address or a mark with its mask, and no path.
        let is_address = |byte: &u8| byte.is_ascii_hexdigit() || b"./:x,".contains(byte);
        let is_path = word.contains(&b'/') && !word.iter().all(is_address) && !is_rate(word);
        !word.contains(&b'\\') && !is_path && (!is_option || OPTIONS.contains(&word))
    });
    is_good && last != b"-A"
}

/// `NUMBER/UNIT`.
fn is_rate(word: &[u8]) -> bool {
    let mut parts = word.splitn(2, |byte| *byte == b'/');
    let (number, unit) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    number.iter().all(u8::is_ascii_digit) && unit.iter().all(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_known_options() {
        let saved = concat!(
            "# Generated by iptables-save v1.8.9 on Mon Nov 30 01:12:52 2026\n",
            "*filter\n:INPUT ACCEPT [12:345]\n:CRIU - [0:0]\n",
            "-A INPUT -j CRIU\n-A CRIU -m mark --mark 0xc114 -j ACCEPT\n-A CRIU -j DROP\n",
            "-A INPUT ! -s 10.0.0.0/8 -i eth0 -p tcp -m multiport --dports 80,443 -j ACCEPT\n",
            "-A INPUT -s fe80::/64 -m limit --limit 3/min -j LOG --log-prefix \"dropped: \"\n",
            "-A OUTPUT -m comment --comment \"a note\" -j MARK --set-xmark 0x1/0xffffffff\n",
            "COMMIT\n# Completed\n\n"
        );
        check_text(saved.as_bytes()).expect("it is as saved");
        for line in [
            "-A INPUT -M /tmp/program -j nothing",
            "-A INPUT \"-M\" /tmp/program",
            "-A INPUT \"x\"-M",
            "-A INPUT --modprobe=/tmp/program",
            "-A INPUT --modpr /tmp/program",
            "-A INPUT -fM /tmp/program",
            "-A INPUT -m ../../tmp/library",
            "-A INPUT -j -M",
            "-A INPUT -m bpf --object-pinned /sys/fs/bpf/x",
            "-A INPUT -i /etc/shadow",
            "-A INPUT --comment a\\\"b",
            "-A",
            "-I INPUT -j DROP",
            "-D INPUT -j DROP",
            "[0:0] -A INPUT",
            " -A INPUT",
            "-X CRIU",
            ":INPUT ACCEPT",
            ":INPUT ACCEPT [0:0] -M",
            "*filter -M",
            "#\r-A INPUT",
            "#\0",
        ] {
            check_text(line.as_bytes()).expect_err(line);
        }
        check_text(&[b'#'; LONGEST + 1]).expect_err("it is two lines");
    }
}
