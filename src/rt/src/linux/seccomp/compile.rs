//! Compiles a configuration's filter to a program of the kernel's classic BPF. libseccomp knows the
//! system calls of every architecture and lays the program out. This file puts the parts that
//! libseccomp cannot express in front of its program.
//!
//! libseccomp's program would refuse a call that is newer than the configuration with the default's
//! errno, usually EPERM. A C library takes EPERM for a refusal, but with ENOSYS it falls back to an
//! older call (runc#2750). So calls with numbers above all that the configuration names fail with
//! ENOSYS, as in runc.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, Result, bail, ensure};
use libc::sock_filter;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;

use super::calls;
use super::program::{self, ARCH, NR, Program};
use crate::linux::assembler::{Label, Way};

pub(super) fn compile(seccomp: &LinuxSeccomp, strict: bool) -> Result<Vec<sock_filter>> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    ensure!(default != ScmpAction::Notify, "SCMP_ACT_NOTIFY cannot be the default action");
    let mut context = ScmpFilterContext::new(default)?;
    // A tree in place of a chain of comparisons (libseccomp 2.5). When the kernel loads the
    // program, it runs it once for every system call number, to learn which calls are always
    // allowed (Linux 5.11).
    let _ = context.set_ctl_optimize(2);
    let architectures: Vec<ScmpArch> =
        seccomp.architectures().iter().flatten().map(|arch| architecture(*arch)).collect();
    for &arch in &architectures {
        context.add_arch(arch).with_context(|| format!("add the architecture {arch:?}"))?;
    }
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    // Each rule requires at least one instruction. libseccomp's time grows with the square of the
    // number of rules: 20000 take minutes.
    let conditional = |rule: &LinuxSyscall| {
        if rule.args().iter().flatten().next().is_some() { rule.names().len() } else { 0 }
    };
    let conditional: usize = rules.iter().map(conditional).sum();
    ensure!(
        conditional <= super::LONGEST,
        "{conditional} rules with arguments, of which a filter has {} at most",
        super::LONGEST
    );
    for rule in rules {
        add(&mut context, rule, default, strict)?;
    }
    let mut program = before(seccomp, rules, &architectures)?;
    program.extend(export(&context)?);
    ensure!(program.len() <= super::LONGEST, "it is longer than {} instructions", super::LONGEST);
    Ok(program)
}

/// Adds one entry of `syscalls`.
fn add(
    context: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
    strict: bool,
) -> Result<()> {
    let action = action(rule.action(), rule.errno_ret())?;
    // libseccomp refuses a rule that repeats the default.
    if action == default && !strict {
        return Ok(());
    }
    let comparisons: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(comparison).collect();
    let any = means_any(rule)?;
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else {
            // Otherwise the call is among those of `before`.
            if calls::number(name, ScmpArch::native()).is_none() {
                pass_over(name, action, default, strict)?;
            }
            continue;
        };
        if action == default {
            continue;
        }
        // The agent's own answer requires `write`, so after this rule, no process could tell it
        // anything (runc).
        ensure!(
            action != ScmpAction::Notify || name != "write",
            "SCMP_ACT_NOTIFY cannot be used for the system call `write`"
        );
        let added = if any {
            comparisons.iter().try_for_each(|one| {
                context.add_rule_conditional(action, call, std::slice::from_ref(one)).map(drop)
            })
        } else {
            context.add_rule_conditional(action, call, &comparisons).map(drop)
        };
        added.with_context(|| format!("add a rule for `{name}`"))?;
    }
    Ok(())
}

/// Leaves out a rule for an unknown call. Fails if the kernel may have this call, and the rule was
/// to keep it from the container.
fn pass_over(name: &str, action: ScmpAction, default: ScmpAction, strict: bool) -> Result<()> {
    ensure!(!strict, "unknown system call `{name}`");
    if strictness(action) <= strictness(default) || strictness(default) > PASSING {
        tracing::debug!("the seccomp filter names an unknown system call `{name}`");
        return Ok(());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    ensure!(
        !calls::may_have_others(&release),
        "a rule restricts the unknown system call `{name}`, which Linux {release}, newer than rt, \
         may have"
    );
    crate::report::warn(&format!(
        "the seccomp filter restricts `{name}`, which is not a system call of Linux {release}"
    ));
    Ok(())
}

/// The kernel makes a call for actions up to this strictness.
const PASSING: u8 = 2;

/// Of several actions, the kernel takes the strictest (`seccomp(2)`).
fn strictness(action: ScmpAction) -> u8 {
    match action {
        ScmpAction::Log => 1,
        ScmpAction::Trace(_) => PASSING,
        ScmpAction::Notify => 3,
        ScmpAction::Errno(_) => 4,
        ScmpAction::Trap => 5,
        ScmpAction::KillThread => 6,
        ScmpAction::KillProcess => 7,
        _ => 0,
    }
}

/// One rule can compare an argument once. Several comparisons of one argument mean any of them, as
/// in runc.
fn means_any(rule: &LinuxSyscall) -> Result<bool> {
    let mut arguments: Vec<usize> =
        rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    let comparisons = arguments.len();
    arguments.sort_unstable();
    ensure!(arguments.last().is_none_or(|last| *last < 6), "a system call has 6 arguments");
    arguments.dedup();
    Ok(arguments.len() < comparisons)
}

fn export(context: &ScmpFilterContext) -> Result<Vec<sock_filter>> {
    let mut file = File::from(rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)?);
    context.export_bpf(&file)?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    super::instructions(&bytes).context("libseccomp wrote no program, or one that is too long")
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    let errno = i32::try_from(errno.unwrap_or(libc::EPERM.unsigned_abs()));
    let errno = errno.context("`errnoRet` is not an errno")?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(errno).context("`errnoRet` is above 65535")?)
        }
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let value = argument.value();
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        // `value` is the mask, and `valueTwo` is the expected value of the masked argument
        // (config-linux.md, "Seccomp").
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(value), argument.value_two().unwrap_or(0))
        }
    };
    // There are six arguments: `add` has checked the index.
    ScmpArgCompare::new(u32::try_from(argument.index()).unwrap_or(u32::MAX), operator, value)
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// The value of `seccomp_data.arch`: `AUDIT_ARCH_*`, `<linux/audit.h>`. None for an architecture
/// whose calls only libseccomp's program decides.
fn audit(arch: ScmpArch) -> Option<u32> {
    Some(match arch {
        ScmpArch::X86 => 0x4000_0003,
        ScmpArch::X8664 | ScmpArch::X32 => 0xc000_003e,
        ScmpArch::Arm => 0x4000_0028,
        ScmpArch::Aarch64 => 0xc000_00b7,
        ScmpArch::Ppc64 => 0x8000_0015,
        ScmpArch::Ppc64Le => 0xc000_0015,
        ScmpArch::S390 => 0x0000_0016,
        ScmpArch::S390X => 0x8000_0016,
        ScmpArch::Riscv64 => 0xc000_00f3,
        ScmpArch::Loongarch64 => 0xc000_0102,
        _ => return None,
    })
}

/// `SECCOMP_RET_*` for a call that this kernel does not have.
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// One architecture's part of [`before`].
struct Section<'a> {
    arch: ScmpArch,
    /// The value of `seccomp_data.arch`.
    audit: u32,
    unknown: Vec<(u32, Rules<'a>)>,
    /// Calls above these fail with ENOSYS.
    newest: Option<u32>,
    newest_x32: Option<u32>,
}

/// The part before libseccomp's program: rules for calls that libseccomp does not know, and ENOSYS
/// for calls that are newer than the configuration.
fn before(
    seccomp: &LinuxSeccomp,
    rules: &[LinuxSyscall],
    architectures: &[ScmpArch],
) -> Result<Vec<sock_filter>> {
    let native = ScmpArch::native();
    let mut all = vec![native];
    for &arch in architectures {
        let arch = if arch == ScmpArch::Native { native } else { arch };
        if !all.contains(&arch) {
            all.push(arch);
        }
    }
    let mut sections = Vec::new();
    for &arch in all.iter().filter(|arch| **arch != ScmpArch::X32) {
        let Some(audit) = audit(arch) else { continue };
        let mut unknown = unknown_calls(rules, arch)?;
        // Only the number of a call distinguishes x32 from x86-64.
        let x32 = arch == ScmpArch::X8664 && all.contains(&ScmpArch::X32);
        if x32 {
            unknown.extend(unknown_calls(rules, ScmpArch::X32)?);
        }
        let newest = newest(seccomp, rules, arch);
        let newest_x32 = newest.filter(|_| x32).and_then(|_| newest_call(rules, ScmpArch::X32));
        if !unknown.is_empty() || newest.is_some() {
            sections.push(Section { arch, audit, unknown, newest, newest_x32 });
        }
    }
    let mut program = Program::default();
    let end = program.label();
    if !sections.is_empty() {
        program.load(ARCH);
    }
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut left = sections.len();
    for Section { arch, audit, unknown, newest, newest_x32 } in sections {
        left -= 1;
        let next = program.label();
        program.only(audit, next);
        program.load(NR);
        for (number, rules) in unknown {
            decide(&mut program, number, rules, default)?;
        }
        if let Some(newest) = newest {
            refuse_newer(&mut program, arch, newest, newest_x32);
        }
        if left > 0 {
            // Only the calls that skip this section still have the architecture in the accumulator.
            program.go(end);
        }
        program.put(next);
    }
    program.put(end);
    program.finish()
}

/// The newest call that the configuration names.
fn newest_call(rules: &[LinuxSyscall], arch: ScmpArch) -> Option<u32> {
    let names = rules.iter().flat_map(|rule| rule.names());
    names.filter_map(|name| calls::number(name, arch)).max()
}

/// The newest call: all calls above are newer than the configuration. None if the default lets
/// calls pass, so that no distinction is required. A tracer decides for itself, as in runc.
fn newest(seccomp: &LinuxSeccomp, rules: &[LinuxSyscall], arch: ScmpArch) -> Option<u32> {
    let allows = matches!(
        seccomp.default_action(),
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    );
    if allows { None } else { newest_call(rules, arch) }
}

/// Adds ENOSYS for calls that are newer than the configuration.
fn refuse_newer(program: &mut Program, arch: ScmpArch, newest: u32, newest_x32: Option<u32>) {
    let refuse_above = |program: &mut Program, newest: u32| {
        let older = program.label();
        program.compare(libc::BPF_JGT, newest, &[(Way::No, older)]);
        program.answer(NO_SUCH_CALL);
        program.put(older);
    };
    let end = program.label();
    if arch == ScmpArch::X8664 {
        // If x32 is not allowed, libseccomp's program refuses it.
        match newest_x32 {
            None => program.compare(libc::BPF_JGE, calls::X32, &[(Way::Yes, end)]),
            Some(newest) => {
                let own = program.label();
                program.compare(libc::BPF_JGE, calls::X32, &[(Way::No, own)]);
                refuse_above(program, newest);
                program.go(end);
                program.put(own);
            }
        }
    }
    refuse_above(program, newest);
    program.put(end);
}

/// Rules for one call.
type Rules<'a> = Vec<(ScmpAction, Vec<&'a LinuxSeccompArg>)>;

/// The rules for calls of an architecture that libseccomp does not know, by the number of the call.
fn unknown_calls(rules: &[LinuxSyscall], arch: ScmpArch) -> Result<Vec<(u32, Rules<'_>)>> {
    let mut calls: BTreeMap<u32, Rules<'_>> = BTreeMap::new();
    for rule in rules {
        let action = action(rule.action(), rule.errno_ret())?;
        let arguments: Vec<&LinuxSeccompArg> = rule.args().iter().flatten().collect();
        let any = means_any(rule)?;
        for name in rule.names() {
            let Some(number) = calls::unknown_to_libseccomp(name, arch) else { continue };
            let of_call = calls.entry(number).or_default();
            if any {
                of_call.extend(arguments.iter().map(|argument| (action, vec![*argument])));
            } else {
                of_call.push((action, arguments.clone()));
            }
        }
    }
    Ok(calls.into_iter().collect())
}

/// Decides one call, whose number is in the accumulator. Of the matching rules, the strictest wins.
fn decide(
    program: &mut Program,
    number: u32,
    mut rules: Rules<'_>,
    default: ScmpAction,
) -> Result<()> {
    rules.sort_by_key(|(action, _)| Reverse(strictness(*action)));
    let other_call = program.label();
    program.only(number, other_call);
    for (action, arguments) in rules {
        let next_rule = program.label();
        for argument in arguments {
            let (yes, no) = (program.label(), program.label());
            compare(program, argument, yes, no);
            program.put(no);
            program.go(next_rule);
            program.put(yes);
        }
        program.answer(answer(action)?);
        program.put(next_rule);
    }
    program.answer(answer(default)?);
    program.put(other_call);
    Ok(())
}

/// `SECCOMP_RET_*`.
fn answer(action: ScmpAction) -> Result<u32> {
    Ok(match action {
        ScmpAction::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ScmpAction::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::Notify => libc::SECCOMP_RET_USER_NOTIF,
        ScmpAction::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(u16::try_from(errno)?),
        ScmpAction::Trace(message) => libc::SECCOMP_RET_TRACE | u32::from(message),
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        other => bail!("unknown action {other:?}"),
    })
}

/// The target of a step of a comparison.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The comparison holds.
    Yes,
    No,
}

/// Compares an argument by halves, because classic BPF has words of 32 bits. Goes to one of two
/// labels.
fn compare(program: &mut Program, argument: &LinuxSeccompArg, yes: Label, no: Label) {
    use To::{Next, No, Yes};
    use libc::{BPF_JEQ, BPF_JGE, BPF_JGT};
    let value = argument.value();
    let (mask, value) = match argument.op() {
        // `value` is the mask, and `valueTwo` is the expected value of the masked argument
        // (config-linux.md, "Seccomp").
        LinuxSeccompOperator::ScmpCmpMaskedEq => (value, argument.value_two().unwrap_or(0)),
        _ => (u64::MAX, value),
    };
    // For each half the comparisons, and the targets of both results.
    let (high, low): (&[_], _) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq | LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (&[(BPF_JEQ, Next, No)], (BPF_JEQ, Yes, No))
        }
        LinuxSeccompOperator::ScmpCmpNe => (&[(BPF_JEQ, Next, Yes)], (BPF_JEQ, No, Yes)),
        LinuxSeccompOperator::ScmpCmpGt => {
            (&[(BPF_JGT, Yes, Next), (BPF_JEQ, Next, No)], (BPF_JGT, Yes, No))
        }
        LinuxSeccompOperator::ScmpCmpGe => {
            (&[(BPF_JGT, Yes, Next), (BPF_JEQ, Next, No)], (BPF_JGE, Yes, No))
        }
        LinuxSeccompOperator::ScmpCmpLt => {
            (&[(BPF_JGT, No, Next), (BPF_JEQ, Next, Yes)], (BPF_JGE, No, Yes))
        }
        LinuxSeccompOperator::ScmpCmpLe => {
            (&[(BPF_JGT, No, Next), (BPF_JEQ, Next, Yes)], (BPF_JGT, No, Yes))
        }
    };
    let half = |number: u64, high: bool| {
        #[expect(clippy::cast_possible_truncation, reason = "the other half is compared by itself")]
        let half = if high { (number >> 32) as u32 } else { number as u32 };
        half
    };
    // There are six arguments: `means_any` has checked the index.
    let number = u32::try_from(argument.index()).unwrap_or(0);
    let label = |to: To| match to {
        Next => None,
        Yes => Some(yes),
        No => Some(no),
    };
    for (is_high, tests) in [(true, high), (false, &[low])] {
        program.load(program::half(number, is_high));
        if mask != u64::MAX {
            program.and(half(mask, is_high));
        }
        for &(test, if_yes, if_no) in tests {
            let ways = [(Way::Yes, label(if_yes)), (Way::No, label(if_no))];
            let ways = ways.into_iter().filter_map(|(way, label)| Some((way, label?)));
            program.compare(test, half(value, is_high), &ways.collect::<Vec<_>>());
        }
    }
}
