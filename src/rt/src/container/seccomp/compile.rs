//! From a configuration's filter to a program of the kernel's classic BPF. libseccomp knows the system calls of every
//! architecture and lays the program out; what it cannot do is put in front of its program.
//!
//! A call that is newer than the configuration would be refused with the default's errno, EPERM as a rule, which a C library
//! takes for a refusal where ENOSYS would have it fall back to an older call (runc#2750). So calls with numbers above all that the
//! configuration names fail with ENOSYS, as in runc.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, Result, ensure};
use libc::sock_filter;
use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use rustix::fs::MemfdFlags;

pub(super) fn compile(seccomp: &LinuxSeccomp, strict: bool) -> Result<Vec<sock_filter>> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    ensure!(default != ScmpAction::Notify, "SCMP_ACT_NOTIFY cannot be the default action");
    let mut context = ScmpFilterContext::new(default)?;
    // A tree in place of a chain of comparisons: the kernel runs the program for every system call number once, when it is
    // loaded, to learn which are always allowed (Linux 5.11). libseccomp 2.5.
    let _ = context.set_ctl_optimize(2);
    let architectures: Vec<ScmpArch> =
        seccomp.architectures().iter().flatten().map(|arch| architecture(*arch)).collect();
    for &arch in &architectures {
        context.add_arch(arch).with_context(|| format!("add the architecture {arch:?}"))?;
    }
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    // Each takes an instruction at least, and libseccomp's time grows with the square of their number: 20000 take minutes.
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
    let mut program = newer_calls(seccomp, rules, &architectures);
    program.extend(export(&context)?);
    ensure!(program.len() <= super::LONGEST, "it is longer than {} instructions", super::LONGEST);
    Ok(program)
}

/// One entry of `syscalls`.
fn add(
    context: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
    strict: bool,
) -> Result<()> {
    let action = action(rule.action(), rule.errno_ret())?;
    // libseccomp refuses a rule that says what is said already.
    if action == default && !strict {
        return Ok(());
    }
    let comparisons: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(comparison).collect();
    let mut arguments: Vec<usize> =
        rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    arguments.sort_unstable();
    ensure!(arguments.last().is_none_or(|last| *last < 6), "a system call has 6 arguments");
    arguments.dedup();
    // One rule can compare an argument once; several comparisons of one mean any of them, as in runc.
    let any = arguments.len() < comparisons.len();
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else {
            ensure!(!strict, "unknown system call `{name}`");
            tracing::debug!("the seccomp filter names an unknown system call `{name}`");
            continue;
        };
        if action == default {
            continue;
        }
        // The agent's own answer would have to come through it: nothing could be said to it any more (runc).
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
    let errno = errno.context("`errnoRet` is no errno")?;
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
        // `value` is the mask, `valueTwo` what is left of the argument behind it (config-linux.md, "Seccomp").
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(value), argument.value_two().unwrap_or(0))
        }
    };
    // Six arguments: `add` has checked it.
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

/// What `seccomp_data.arch` says: `AUDIT_ARCH_*`, `<linux/audit.h>`. None for an architecture whose calls are left as
/// libseccomp has them.
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

const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // All codes of classic BPF fit a byte.
    sock_filter { code: code as u16, jt, jf, k }
}

const fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

const fn jump(comparison: u32, with: u32, yes: u8, no: u8) -> sock_filter {
    instruction(libc::BPF_JMP | comparison | libc::BPF_K, with, yes, no)
}

/// Goes over the next so many instructions.
const fn skip(count: u32) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, count, 0, 0)
}

const NO_SUCH_CALL: sock_filter =
    instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0, 0);

/// The number of a call of x32 has this bit: `__X32_SYSCALL_BIT`, `<asm/unistd.h>`.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`, `<linux/seccomp.h>`.
const NR: u32 = 0;
const ARCH: u32 = 4;

/// What comes before libseccomp's program: ENOSYS for calls that are newer than the configuration.
fn newer_calls(
    seccomp: &LinuxSeccomp,
    rules: &[LinuxSyscall],
    architectures: &[ScmpArch],
) -> Vec<sock_filter> {
    // Where the default lets calls pass, there is nothing to tell apart; a tracer decides for itself, as in runc.
    let allows = matches!(
        seccomp.default_action(),
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    );
    if allows {
        return Vec::new();
    }
    let native = ScmpArch::native();
    let mut all = vec![native];
    for &arch in architectures {
        let arch = if arch == ScmpArch::Native { native } else { arch };
        if !all.contains(&arch) {
            all.push(arch);
        }
    }
    let newest = |arch: ScmpArch| -> Option<u32> {
        let names = rules.iter().flat_map(|rule| rule.names());
        let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
        // Calls that an architecture lacks have negative numbers of libseccomp's own.
        numbers.filter_map(|call| u32::try_from(call.as_raw_syscall()).ok()).max()
    };
    let above = |newest: u32| [jump(libc::BPF_JGT, newest, 0, 1), NO_SUCH_CALL];
    let mut sections = Vec::new();
    for &arch in all.iter().filter(|arch| **arch != ScmpArch::X32) {
        let (Some(audit), Some(last)) = (audit(arch), newest(arch)) else { continue };
        let mut section = vec![load(NR)];
        if arch == ScmpArch::X8664 {
            // x32 is told apart by the number alone. Where it is not allowed, libseccomp's program refuses it.
            let x32 = all.contains(&ScmpArch::X32).then(|| newest(ScmpArch::X32)).flatten();
            match x32 {
                None => section.push(jump(libc::BPF_JGE, X32, 2, 0)),
                Some(last) => {
                    section.push(jump(libc::BPF_JGE, X32, 0, 3));
                    section.extend(above(last));
                    section.push(skip(2));
                }
            }
        }
        section.extend(above(last));
        sections.push((audit, section));
    }
    if sections.is_empty() {
        return Vec::new();
    }
    // Each section knows how far the end is, so the last comes first here.
    let mut program: Vec<sock_filter> = Vec::new();
    for (audit, mut section) in sections.into_iter().rev() {
        if !program.is_empty() {
            // The architecture is still in the accumulator only for those that skip this section.
            section.push(skip(u32::try_from(program.len()).unwrap_or(0)));
        }
        let length = u8::try_from(section.len()).unwrap_or(u8::MAX);
        section.insert(0, jump(libc::BPF_JEQ, audit, 0, length));
        section.extend(program);
        program = section;
    }
    program.insert(0, load(ARCH));
    program
}
