//! System calls that are newer than libseccomp, or than its table of an architecture. A filter that
//! lets all calls pass but some would let these calls pass too.
#![forbid(unsafe_code)]

use libseccomp::{ScmpArch, ScmpSyscall};

/// The number of a call of x32 has this bit: `__X32_SYSCALL_BIT`, `<asm/unistd.h>`.
pub(super) const X32: u32 = 0x4000_0000;

/// The kernel up to which [`number`] and libseccomp together know every call.
const KNOWN: (u32, u32) = (6, 19);

/// From 424 on, a call has the same number on every architecture that `rt` makes filters for
/// (`arch/*/tools/syscall.tbl`, `scripts/syscall.tbl` of the kernel).
const COMMON: [(&str, u32); 48] = [
    ("pidfd_send_signal", 424),
    ("io_uring_setup", 425),
    ("io_uring_enter", 426),
    ("io_uring_register", 427),
    ("open_tree", 428),
    ("move_mount", 429),
    ("fsopen", 430),
    ("fsconfig", 431),
    ("fsmount", 432),
    ("fspick", 433),
    ("pidfd_open", 434),
    ("clone3", 435),
    ("close_range", 436),
    ("openat2", 437),
    ("pidfd_getfd", 438),
    ("faccessat2", 439),
    ("process_madvise", 440),
    ("epoll_pwait2", 441),
    ("mount_setattr", 442),
    ("quotactl_fd", 443),
    ("landlock_create_ruleset", 444),
    ("landlock_add_rule", 445),
    ("landlock_restrict_self", 446),
    ("memfd_secret", 447),
    ("process_mrelease", 448),
    ("futex_waitv", 449),
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
    ("rseq_slice_yield", 471),
];

/// `arch/x86/entry/syscalls/syscall_64.tbl`.
const X86_64: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];

/// The number of a call on an architecture. Returns None if the architecture has no such call, or
/// if the call is unknown.
pub(super) fn number(name: &str, arch: ScmpArch) -> Option<u32> {
    by_libseccomp(name, arch).or_else(|| by_table(name, arch))
}

/// The same, if libseccomp does not know the call.
pub(super) fn unknown_to_libseccomp(name: &str, arch: ScmpArch) -> Option<u32> {
    if by_libseccomp(name, arch).is_some() { None } else { by_table(name, arch) }
}

fn by_libseccomp(name: &str, arch: ScmpArch) -> Option<u32> {
    let call = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
    // libseccomp gives its own negative numbers to calls that an architecture lacks.
    u32::try_from(call.as_raw_syscall()).ok()
}

fn by_table(name: &str, arch: ScmpArch) -> Option<u32> {
    let of = |table: &[(&str, u32)]| {
        table.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    match arch {
        ScmpArch::X8664 => of(&COMMON).or_else(|| of(&X86_64)),
        ScmpArch::X32 => of(&COMMON).map(|number| number | X32),
        _ => of(&COMMON),
    }
}

/// Whether a kernel of this release may have calls whose names `rt` does not know.
pub(super) fn may_have_others(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) > KNOWN,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_no_gap() {
        assert!(COMMON.iter().zip(424..).all(|((_, number), expected)| *number == expected));
    }

    #[test]
    fn libseccomp_and_the_table_agree() {
        let mut compared = 0;
        for arch in [ScmpArch::X8664, ScmpArch::Aarch64, ScmpArch::X86, ScmpArch::X32] {
            for (name, _) in COMMON.iter().chain(&X86_64) {
                if let Some(number) = by_libseccomp(name, arch) {
                    // The number of an emulated architecture lacks the bit of x32.
                    assert_eq!(Some(number), by_table(name, arch), "{name} {arch:?}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 80, "{compared}");
    }

    #[test]
    fn only_a_newer_kernel_may_have_unknown_calls() {
        for old in ["5.10.0-28-amd64", "6.18.44", "6.19.0-rc1"] {
            assert!(!may_have_others(old), "{old}");
        }
        for new in ["6.20.1", "7.0.0", "x", ""] {
            assert!(may_have_others(new), "{new}");
        }
    }
}
