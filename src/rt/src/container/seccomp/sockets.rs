//! A filter that refuses sockets, for a module that may have none. By the kernel: an engine's own check would be the guest's to
//! get past. Runs in init, and stays over the exec.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use libc::{c_long, sock_filter};

use crate::syscall;

/// `AUDIT_ARCH_*` of this program, `<linux/audit.h>`: what `seccomp_data.arch` says of its calls.
#[cfg(target_arch = "x86_64")]
const OWN: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const OWN: u32 = 0xc000_00f3;
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
const OWN: u32 = 0xc000_0015;
#[cfg(target_arch = "s390x")]
const OWN: u32 = 0x8000_0016;

/// Calls from here on are those of x32, a second set by the same architecture's name (`seccomp(2)`, "Caveats").
const X32: u32 = 0x4000_0000;

/// What makes a socket. A ring makes one without a call of that name (`io_uring_enter(2)`, `IORING_OP_SOCKET`).
const REFUSED: [c_long; 3] = [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_io_uring_setup];

/// Refuses them from now on: `EACCES`. An engine gains no privileges by an exec, so that it may load a filter.
pub(crate) fn refuse() -> Result<()> {
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    syscall::seccomp_set_mode_filter(0, &program())
        .context("load the filter that refuses sockets")?;
    Ok(())
}

/// A call's number, as a filter sees it; none is negative.
fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn program() -> Vec<sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // Each code is below 256, and each jump is within a program of ten instructions.
    let instruction = |code: u32, jt: usize, jf: usize, k: u32| sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    // The offsets of `nr` and `arch` in `struct seccomp_data`.
    let (nr, arch) = (0, 4);
    let refused = REFUSED.len();
    let mut program = vec![
        instruction(LOAD, 0, 0, arch),
        // Another architecture's calls, and x32's, are no engine's.
        instruction(EQUAL, 0, refused + 3, OWN),
        instruction(LOAD, 0, 0, nr),
        instruction(AT_LEAST, refused + 1, 0, X32),
    ];
    for (at, call) in REFUSED.iter().enumerate() {
        program.push(instruction(EQUAL, refused - at, 0, number(*call)));
    }
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers, run as the kernel runs it.
    fn answer(arch: u32, nr: u32) -> u32 {
        let (program, mut at, mut value) = (program(), 0, 0);
        loop {
            let i = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match u32::from(i.code) {
                0x20 => value = if i.k == 4 { arch } else { nr },
                0x15 => at += jump(value == i.k),
                0x35 => at += jump(value >= i.k),
                0x06 => return i.k,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn only_sockets_are_refused() {
        let refused = libc::SECCOMP_RET_ERRNO | 13;
        for call in REFUSED {
            assert_eq!(answer(OWN, number(call)), refused);
        }
        for call in [libc::SYS_read, libc::SYS_connect, libc::SYS_exit_group, libc::SYS_openat] {
            assert_eq!(answer(OWN, number(call)), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(answer(OWN, X32 | 1), refused);
        assert_eq!(answer(0x4000_0003, 1), refused);
    }
}
