//! The devices that a container may use: a list of rules, for the files of cgroup v1 or as a
//! program for v2.
//!
//! v2 has no files for devices. The kernel runs a BPF program, attached to the cgroup, before a
//! process opens or makes a device (kernel documentation, `cgroup-v2.rst`, "Device controller").
//! This file writes the program, rule by rule.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::io::Errno;

use super::bpf::{
    AND, JUMP_IF, JUMP_IF_NOT, JUMP_IF_NOT_REGISTER, LOAD_WORD, MOVE_REGISTER, Program, SHIFT_RIGHT,
};
use crate::syscall;

/// A rule matches every type or number that it does not name. Of several matching rules, the last
/// one wins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    allow: bool,
    /// `BPF_DEVCG_DEV_BLOCK` or `BPF_DEVCG_DEV_CHAR`, `<linux/bpf.h>`.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    /// `BPF_DEVCG_ACC_*` bits.
    access: i32,
}

const BLOCK: i32 = 1;
const CHAR: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// The rules of the configuration, then those for the devices that every container has, as in runc
/// and crun.
pub(super) fn rules(configured: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = parse(configured)?;
    rules.extend(defaults(&rules));
    Ok(rules)
}

/// The same for the files of v1. They have a default, to allow or to forbid all, and exceptions
/// (kernel documentation, `cgroup-v1/devices.rst`). From an exception for many devices, the kernel
/// cannot remove a single device, and reports no error: a forbidden device would be allowed. The
/// kernel also takes a rule for all types as one for all devices, whatever its numbers are.
pub(super) fn for_files(configured: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let rules = parse(configured)?;
    let mut lines: Vec<Rule> = Vec::new();
    let mut exceptions: Vec<Rule> = Vec::new();
    let mut everything = false;
    for rule in &rules {
        if rule.is_for_all() {
            everything = rule.allow;
            lines.push(*rule);
            continue;
        }
        for kind in rule.kind.map_or(vec![CHAR, BLOCK], |kind| vec![kind]) {
            let rule = Rule { kind: Some(kind), ..*rule };
            lines.push(rule);
            if rule.allow != everything {
                exceptions.push(rule);
                continue;
            }
            for before in exceptions.iter_mut().filter(|before| before.overlaps(&rule)) {
                ensure!(
                    before.is_of(&rule),
                    "{WHERE}: `{}` cannot be taken back from `{}` with cgroup v1",
                    rule.line(),
                    before.line()
                );
                before.access &= !rule.access;
            }
        }
    }
    lines.extend(defaults(&rules));
    Ok(lines)
}

fn parse(configured: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    // A new cgroup of v1 allows the same as the one above it, but a program forbids everything that
    // no rule allows.
    let nothing = Rule { allow: false, kind: None, major: None, minor: None, access: ALL };
    let mut rules = vec![nothing];
    for configured in configured {
        let mut rule = rule(configured)?;
        if rule.is_for_all() {
            rules.clear();
        }
        // If one rule allows reading and another one writing, a process may do both at once, as
        // with the files of v1.
        let before = rules.iter().rev().take_while(|before| before.allow && rule.allow);
        let same = before.filter(|before| before.is_of(&rule));
        rule.access |= same.fold(0, |access, before| access | before.access);
        rules.push(rule);
    }
    Ok(rules)
}

/// The default rules: making nodes (harmless, because the rules control opening them), the default
/// devices, consoles and terminals.
fn defaults(rules: &[Rule]) -> Vec<Rule> {
    let allow =
        |kind, major, minor, access| Rule { allow: true, kind: Some(kind), major, minor, access };
    let many = [
        allow(CHAR, None, None, MAKE),
        allow(BLOCK, None, None, MAKE),
        allow(CHAR, Some(136), None, ALL),
    ];
    // If everything but the named devices is allowed, the named devices stay forbidden.
    let everything = rules.first().is_some_and(|first| first.allow);
    let is_needed = |many: &Rule| !everything || rules.iter().any(|rule| rule.is_of(many));
    let mut defaults: Vec<Rule> = many.into_iter().filter(is_needed).collect();
    // null, zero, full, random, urandom, tty, ptmx, net/tun
    // (Documentation/admin-guide/devices.txt).
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)] {
        defaults.push(allow(CHAR, Some(major), Some(minor), ALL));
    }
    defaults
}

/// Fails for a rule that it does not understand. Taken for "any", such a rule would allow devices
/// that it was to forbid.
fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let number = |name: &str, number: Option<i64>| match number {
        // Callers write -1 for a missing number.
        None | Some(-1) => Ok(None),
        Some(number) => match i32::try_from(number) {
            Ok(number @ 0..) => Ok(Some(number)),
            _ => bail!("{WHERE}: `{name}` is {number}, which is not a device number"),
        },
    };
    let letters = rule.access().as_deref().unwrap_or_default();
    ensure!(!letters.is_empty(), "{WHERE}: `access` is empty: use letters of `rwm`");
    let access = letters.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MAKE),
        // As with runc.
        'a' => Ok(ALL),
        _ => Err(anyhow!("{WHERE}: unknown access `{letter}`")),
    })?;
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHAR),
        LinuxDeviceType::P => bail!("{WHERE}: the type `p` is a fifo, not a device"),
    };
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number("major", rule.major())?,
        minor: number("minor", rule.minor())?,
        access,
    })
}

const WHERE: &str = "a rule of `linux.resources.devices`";

/// Whether the rules forbid nothing.
pub(super) fn allow_everything(rules: &[Rule]) -> bool {
    rules.first().is_some_and(|rule| rule.allow && rule.is_for_all())
        && rules.iter().all(|rule| rule.allow)
}

impl Rule {
    /// Whether both rules name the same devices.
    fn is_of(&self, other: &Rule) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// Whether this rule overrides all rules before it.
    fn is_for_all(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    pub(super) fn is_allowing(&self) -> bool {
        self.allow
    }

    /// A line for `devices.allow` or `devices.deny`: `TYPE MAJOR:MINOR ACCESS` (kernel
    /// documentation, `cgroup-v1/devices.rst`).
    pub(super) fn line(&self) -> String {
        let kind = match self.kind {
            Some(BLOCK) => 'b',
            Some(_) => 'c',
            None => 'a',
        };
        let number = |number: Option<i32>| {
            number.map_or_else(|| "*".to_owned(), |number| number.to_string())
        };
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.letters())
    }

    fn letters(&self) -> String {
        let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
        let asked = letters.iter().filter(|(bit, _)| self.access & bit != 0);
        asked.map(|(_, letter)| letter).collect()
    }

    /// Whether both rules match the same access to some device.
    fn overlaps(&self, other: &Rule) -> bool {
        let both =
            |one: Option<i32>, other: Option<i32>| one.is_none() || other.is_none() || one == other;
        both(self.kind, other.kind)
            && both(self.major, other.major)
            && both(self.minor, other.minor)
            && self.access & other.access != 0
    }
}

/// The allowed devices in systemd's form: a device and letters for the access
/// (`systemd.resource-control(5)`, "DeviceAllow="). None if the rules allow everything, or forbid
/// some devices that they allow elsewhere, because systemd cannot express that.
pub(super) fn allowed(rules: &[Rule]) -> Option<Vec<(String, String)>> {
    let mut everything = false;
    let mut list: Vec<Rule> = Vec::new();
    for rule in rules {
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() {
            if rule.access != ALL {
                return None;
            }
            everything = rule.allow;
            list.clear();
        } else if rule.allow {
            list.push(*rule);
        } else if everything || list.iter().any(|other| rule.overlaps(other)) {
            return None;
        }
    }
    if everything {
        return None;
    }
    let groups = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut entries = Vec::new();
    for rule in list {
        let kinds: &[i32] = if rule.kind.is_none() { &[CHAR, BLOCK] } else { &[rule.kind?] };
        for &kind in kinds {
            let (word, heading) =
                if kind == CHAR { ("char", "Character") } else { ("block", "Block") };
            let device = match (rule.major, rule.minor) {
                (Some(major), Some(minor)) => format!("/dev/{word}/{major}:{minor}"),
                (Some(major), None) => format!("{word}-{}", group(&groups, heading, major)?),
                (None, None) => format!("{word}-*"),
                (None, Some(_)) => return None,
            };
            entries.push((device, rule.letters()));
        }
    }
    Some(entries)
}

/// The name of the driver that has a major number (`proc_devices(5)`).
fn group<'a>(table: &'a str, heading: &str, major: i32) -> Option<&'a str> {
    let lines = table.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
    let mut lines = lines.take_while(|line| !line.is_empty());
    let major = major.to_string();
    lines
        .find_map(|line| line.trim().split_once(' ').filter(|(number, _)| *number == major))
        .map(|(_, name)| name.trim())
}

// From `<linux/bpf.h>`.
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads a program that decides by these rules.
pub(super) fn load(rules: &[Rule]) -> rustix::io::Result<OwnedFd> {
    // Each rule has a few instructions, and no jump goes beyond them.
    let program = program(rules).map_err(|_| Errno::TOOBIG)?;
    syscall::bpf_prog_load(BPF_PROG_TYPE_CGROUP_DEVICE, BPF_CGROUP_DEVICE, &program)
}

/// Attaches the rules to a v2 cgroup.
pub(super) fn attach(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> Result<()> {
    let program = match load(rules) {
        Ok(program) => program,
        // In a user namespace, no process may load the program, and the kernel lets none make a
        // device node there. Device nodes that came with the rootfs cannot be used: see
        // `Cgroup::may_lack_device_rules`.
        Err(Errno::PERM) if !crate::ids::is_host_root() => return Ok(()),
        Err(error) => return Err(error).context("load the device program"),
    };
    syscall::bpf_prog_attach(cgroup, program.as_fd(), BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
        .context("attach the device program")
}

/// Tries the rules from the last to the first. The first match decides. Without a match, the answer
/// is no.
fn program(rules: &[Rule]) -> Result<Vec<u64>> {
    let mut program = Program::default();
    // Register 1 points to `struct bpf_cgroup_dev_ctx`: a word with the access in the high half and
    // the type in the low half, then two numbers.
    program.load(LOAD_WORD, 2, 1, 0);
    program.add(AND, 2, 0, 0xffff);
    program.load(LOAD_WORD, 3, 1, 0);
    program.add(SHIFT_RIGHT, 3, 0, 16);
    program.load(LOAD_WORD, 4, 1, 4);
    program.load(LOAD_WORD, 5, 1, 8);
    for rule in rules.iter().rev() {
        let next = program.label();
        if rule.access != ALL {
            program.add(MOVE_REGISTER, 1, 3, 0);
            program.add(AND, 1, 0, rule.access);
        }
        let numbers = [(2, rule.kind), (4, rule.major), (5, rule.minor)];
        for (register, number) in numbers {
            if let Some(number) = number {
                program.jump_if(JUMP_IF_NOT, register, number, next);
            }
        }
        // An allowing rule must contain all of the requested access, a denying rule any of it.
        match (rule.access, rule.allow) {
            (ALL, _) => {}
            (_, true) => program.jump_if_register(JUMP_IF_NOT_REGISTER, 1, 3, next),
            (_, false) => program.jump_if(JUMP_IF, 1, 0, next),
        }
        program.answer(i32::from(rule.allow));
        program.put(next);
        if rule.is_for_all() {
            // The rules before this one never match, and the kernel refuses unreachable
            // instructions.
            return program.finish();
        }
    }
    program.answer(0);
    program.finish()
}

#[cfg(test)]
pub(super) fn understand(rules: &[Rule]) -> usize {
    program(rules).map_or(0, |program| program.len())
        + rules.iter().map(|rule| rule.line().len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::super::bpf;
    use super::*;

    #[test]
    fn what_systemd_can_say_is_said() {
        let rule = |allow, kind, major, minor, access| Rule { allow, kind, major, minor, access };
        let nothing = rule(false, None, None, None, ALL);
        let null = rule(true, Some(CHAR), Some(1), Some(3), READ | WRITE);
        let entry = |device: &str, access: &str| (device.to_owned(), access.to_owned());
        assert_eq!(allowed(&[nothing, null]), Some(vec![entry("/dev/char/1:3", "rw")]));
        let make = rule(true, Some(BLOCK), None, None, MAKE);
        assert_eq!(allowed(&[nothing, make]), Some(vec![entry("block-*", "m")]));
        // Everything, and a device that a later rule removes again.
        assert_eq!(allowed(&[rule(true, None, None, None, ALL), null]), None);
        assert_eq!(allowed(&[nothing, null, rule(false, Some(CHAR), Some(1), None, READ)]), None);
    }

    #[test]
    fn a_driver_is_found_by_its_number() {
        let table = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        assert_eq!(group(table, "Character", 136), Some("pts"));
        assert_eq!(group(table, "Block", 8), Some("sd"));
        assert_eq!(group(table, "Block", 136), None);
    }

    #[test]
    fn a_missing_number_means_every_device() {
        let configured: Vec<LinuxDeviceCgroup> = serde_json::from_str(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
        )
        .expect("rules");
        let rules = rules(&configured).expect("rules");
        assert_eq!((rules[0].is_allowing(), rules[0].line().as_str()), (false, "a *:* rwm"));
        assert_eq!((rules[1].is_allowing(), rules[1].line().as_str()), (true, "c 10:229 rw"));
    }

    /// The program's answer.
    fn ask(rules: &[Rule], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [kind | access << 16, major, minor];
        let word = |_, offset| context[usize::try_from(offset / 4).expect("forwards")];
        bpf::run(&program(rules).expect("short jumps"), word).0 == 1
    }

    #[test]
    fn the_program_answers_by_the_last_rule_that_matches() {
        let configured: Vec<LinuxDeviceCgroup> = serde_json::from_str(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"access":"r"},
                {"allow":true,"type":"c","major":10,"minor":200,"access":"rwm"},{"allow":false,"type":"b","major":8,"minor":1,"access":"r"}]"#,
        )
        .expect("rules");
        let rules = rules(&configured).expect("rules");
        for (kind, major, minor, access, allowed) in [
            (CHAR, 1, 3, READ | WRITE, true),
            (CHAR, 136, 77, READ, true),
            (CHAR, 1, 11, READ, false),
            (CHAR, 1, 11, MAKE, true),
            (CHAR, 10, 200, ALL, true),
            (CHAR, 10, 201, READ, false),
            (BLOCK, 8, 0, READ, true),
            (BLOCK, 8, 0, READ | WRITE, false),
            (BLOCK, 8, 1, READ, false),
            (BLOCK, 9, 0, READ, false),
        ] {
            assert_eq!(
                ask(&rules, kind, major, minor, access),
                allowed,
                "{kind} {major}:{minor} {access}"
            );
        }
    }
}
