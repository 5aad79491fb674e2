//! A filter that refuses sockets. It is for a module that may have no sockets, or only those whose
//! ports can be limited: TCP's and UDP's. Init loads it, and it stays over the exec.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use libc::{c_long, sock_filter};

use super::program::{self, ARCH, NR, Program};
use crate::linux::assembler::Way;
use crate::linux::ports::Ports;
use crate::syscall;

/// `AUDIT_ARCH_*` of this program, `<linux/audit.h>`: the value of `seccomp_data.arch` for its
/// calls.
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

/// The calls from this number on are those of x32, a second set under the same architecture's value
/// (`seccomp(2)`, "Caveats").
const X32: u32 = 0x4000_0000;

/// Calls besides `socket(2)` that can make a socket. A ring can make one without a call of that
/// name (`io_uring_enter(2)`, `IORING_OP_SOCKET`).
const REFUSED: &[c_long] = &[
    libc::SYS_socketpair,
    libc::SYS_io_uring_setup,
    // All socket calls by one number (`socketcall(2)`).
    #[cfg(any(target_arch = "powerpc64", target_arch = "s390x"))]
    libc::SYS_socketcall,
];

/// Refuses sockets from now on, with `EACCES`: all of them, or those that do not have these ports.
/// Requires `no_new_privs`.
pub(crate) fn refuse(allowed: Option<&Ports>) -> Result<()> {
    syscall::seccomp_set_mode_filter(0, &program(allowed)?)
        .context("load the filter that refuses sockets")?;
    Ok(())
}

/// A call's number, as a filter sees it. No number is negative.
fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// Loads an argument that the kernel reads as an `int`: the low half of the 64 bits that the filter
/// sees. The high half may hold any bits.
fn load_argument(program: &mut Program, number: u32) {
    program.load(program::half(number, false));
}

fn end(program: &mut Program, allowed: bool) {
    program.answer(if allowed {
        libc::SECCOMP_RET_ALLOW
    } else {
        libc::SECCOMP_RET_ERRNO | libc::EACCES as u32
    });
}

/// Continues if the loaded word is one of the two. Otherwise refuses the call.
fn one_of(program: &mut Program, one: u32, other: u32) {
    let next = program.label();
    program.compare(libc::BPF_JEQ, one, &[(Way::Yes, next)]);
    program.compare(libc::BPF_JEQ, other, &[(Way::Yes, next)]);
    end(program, false);
    program.put(next);
}

/// Runs the block if the loaded word equals `word`.
fn when(program: &mut Program, word: u32, block: &dyn Fn(&mut Program)) {
    let next = program.label();
    program.compare(libc::BPF_JEQ, word, &[(Way::No, next)]);
    block(program);
    program.put(next);
}

fn on(program: &mut Program, call: c_long, block: &dyn Fn(&mut Program)) {
    when(program, number(call), block);
}

fn refuse_call(program: &mut Program, call: c_long) {
    on(program, call, &|program| end(program, false));
}

/// Allows sockets of TCP and UDP that have ports. Other sockets would bypass the limits: MPTCP, SMC
/// and SCTP carry connections that Landlock does not check. Netlink can reconfigure a network. A
/// Unix socket can ask another process to act.
fn socket(program: &mut Program, ports: &Ports) {
    load_argument(program, 0);
    one_of(program, libc::AF_INET as u32, libc::AF_INET6 as u32);
    load_argument(program, 1);
    // Without the flags (`SOCK_TYPE_MASK`, `<linux/net.h>`).
    program.and(0xf);
    for (kind, number, protocol) in [
        (libc::SOCK_STREAM as u32, libc::IPPROTO_TCP as u32, &ports.tcp),
        (libc::SOCK_DGRAM as u32, libc::IPPROTO_UDP as u32, &ports.udp),
    ] {
        when(program, kind, &|program| {
            load_argument(program, 2);
            one_of(program, 0, number);
            end(program, !protocol.is_refused());
        });
    }
    end(program, false);
}

/// Refuses calls that Landlock does not check.
fn ways_around(program: &mut Program, ports: &Ports) {
    // The flag makes the call connect (`tcp(7)`, "MSG_FASTOPEN").
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        on(program, call, &|program| {
            load_argument(program, flags);
            let plain = program.label();
            program.compare(libc::BPF_JSET, libc::MSG_FASTOPEN as u32, &[(Way::No, plain)]);
            end(program, false);
            program.put(plain);
            end(program, true);
        });
    }
    // The option can turn a socket into one of SMC.
    on(program, libc::SYS_setsockopt, &|program| {
        load_argument(program, 1);
        when(program, libc::SOL_TCP as u32, &|program| {
            load_argument(program, 2);
            when(program, libc::TCP_ULP as u32, &|program| end(program, false));
        });
        end(program, true);
    });
    // `listen` gives a free port to a socket that was not bound.
    if ports.tcp.bind.as_ref().is_some_and(Vec::is_empty) {
        refuse_call(program, libc::SYS_listen);
    }
}

fn program(allowed: Option<&Ports>) -> Result<Vec<sock_filter>> {
    let mut program = Program::default();
    // No engine makes calls of another architecture, or of x32.
    program.load(ARCH);
    one_of(&mut program, OWN, OWN);
    program.load(NR);
    let own = program.label();
    program.compare(libc::BPF_JGE, X32, &[(Way::No, own)]);
    end(&mut program, false);
    program.put(own);
    for call in REFUSED {
        refuse_call(&mut program, *call);
    }
    if let Some(ports) = allowed {
        on(&mut program, libc::SYS_socket, &|program| socket(program, ports));
        ways_around(&mut program, ports);
    } else {
        refuse_call(&mut program, libc::SYS_socket);
    }
    end(&mut program, true);
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::ports::Protocol;

    const REFUSED_ANSWER: u32 = libc::SECCOMP_RET_ERRNO | 13;

    fn some(port: u16) -> Protocol {
        Protocol { bind: Some(vec![port..=port]), connect: Some(vec![port..=port]) }
    }

    fn none() -> Protocol {
        Protocol { bind: Some(Vec::new()), connect: Some(Vec::new()) }
    }

    /// The program's answer, computed as the kernel runs the program.
    fn answer(allowed: Option<&Ports>, arch: u32, nr: u32, arguments: &[u64]) -> u32 {
        let (program, mut at, mut value) = (program(allowed).expect("short jumps"), 0, 0);
        loop {
            let i = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match (u32::from(i.code), i.k) {
                (0x20, 0) => value = nr,
                (0x20, 4) => value = arch,
                (0x20, offset) => {
                    let argument = arguments[usize::try_from((offset - 16) / 8).expect("small")];
                    let low = offset % 8 == if cfg!(target_endian = "big") { 4 } else { 0 };
                    value = if low { argument as u32 } else { (argument >> 32) as u32 };
                }
                (0x54, mask) => value &= mask,
                (0x15, k) => at += jump(value == k),
                (0x35, k) => at += jump(value >= k),
                (0x45, k) => at += jump(value & k != 0),
                (0x06, answer) => return answer,
                (other, _) => panic!("{other:#x}"),
            }
        }
    }

    fn is_refused(allowed: Option<&Ports>, call: c_long, arguments: &[u64]) -> bool {
        match answer(allowed, OWN, number(call), arguments) {
            REFUSED_ANSWER => true,
            libc::SECCOMP_RET_ALLOW => false,
            other => panic!("{other:#x}"),
        }
    }

    #[test]
    fn only_sockets_are_refused() {
        for call in REFUSED.iter().chain(&[libc::SYS_socket]) {
            assert!(is_refused(None, *call, &[2, 1, 0]));
        }
        let limited = Ports { tcp: some(80), udp: some(53) };
        for allowed in [None, Some(&limited)] {
            for call in [libc::SYS_read, libc::SYS_connect, libc::SYS_exit_group, libc::SYS_openat]
            {
                assert!(!is_refused(allowed, call, &[0; 6]));
            }
            assert_eq!(answer(allowed, OWN, X32 | 1, &[0; 6]), REFUSED_ANSWER);
            assert_eq!(answer(allowed, 0x4000_0003, 1, &[0; 6]), REFUSED_ANSWER);
        }
    }

    #[test]
    fn only_sockets_with_ports_are_left() {
        let is_refused =
            |ports: Ports, socket: [u64; 3]| is_refused(Some(&ports), libc::SYS_socket, &socket);
        let both = || Ports { tcp: some(80), udp: some(53) };
        // By numbers, so that types that the kernel has added are refused as well. The allowed list
        // has `SOCK_NONBLOCK`, `SOCK_CLOEXEC`, and bits outside of an int.
        for allowed in
            [[2, 1, 0], [10, 1, 6], [2, 2, 17], [10, 2, 0], [2, 0o2004001, 6], [1 << 32 | 2, 1, 0]]
        {
            assert!(!is_refused(both(), allowed), "{allowed:?}");
        }
        for refused in [
            [1, 1, 0],      // Unix
            [16, 3, 0],     // Netlink
            [17, 3, 0x300], // packet
            [40, 1, 0],     // vsock
            [43, 1, 0],     // SMC
            [2, 1, 256],    // SMC by its protocol
            [2, 1, 262],    // MPTCP
            [2, 1, 132],    // SCTP
            [2, 5, 132],
            [2, 3, 1], // raw
            [2, 3, 6],
            [2, 2, 1],   // ping
            [2, 2, 136], // UDP-Lite
            [2, 10, 0],
            [2, 1, 17],
        ] {
            assert!(is_refused(both(), refused), "{refused:?}");
        }
        let tcp = || Ports { tcp: some(80), udp: none() };
        assert!(!is_refused(tcp(), [2, 1, 0]) && is_refused(tcp(), [2, 2, 0]));
        let udp = || Ports { tcp: none(), udp: some(53) };
        assert!(is_refused(udp(), [2, 1, 0]) && !is_refused(udp(), [2, 2, 0]));
    }

    #[test]
    fn what_gets_around_landlock_is_refused() {
        let limited = |tcp| Ports { tcp, udp: none() };
        let fast = 0x2000_0000;
        for (call, at) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
            let flags = |flags| {
                let mut arguments = [0; 6];
                arguments[at] = flags;
                is_refused(Some(&limited(some(80))), call, &arguments)
            };
            assert!(flags(fast) && flags(fast | 0x4000) && !flags(0x4000));
        }
        let set = |level, option| {
            is_refused(Some(&limited(some(80))), libc::SYS_setsockopt, &[3, level, option])
        };
        assert!(set(6, 31) && !set(6, 1) && !set(1, 31));
        let listen = |bind| {
            let tcp = Protocol { bind, connect: None };
            is_refused(Some(&limited(tcp)), libc::SYS_listen, &[3, 1])
        };
        assert!(listen(Some(Vec::new())) && !listen(Some(vec![80..=80])) && !listen(None));
    }

    /// Checks with the kernel and Landlock. Filter and ruleset restrict one thread only, and end
    /// with it.
    #[test]
    fn the_kernel_takes_it() {
        use rustix::io::Errno;
        use rustix::net::{AddressFamily, RawProtocol, SendFlags, SocketType, ipproto};
        let test = || {
            let socket = |kind, protocol| rustix::net::socket(AddressFamily::INET, kind, protocol);
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
            let listening = listener.local_addr().expect("an address");
            let connect = || std::net::TcpStream::connect(listening).map_err(|error| error.kind());
            let open =
                |protocol: u32| RawProtocol::new(protocol).map(rustix::net::Protocol::from_raw);
            let ports = Ports { tcp: some(1), udp: none() };
            rustix::thread::set_no_new_privs(true).expect("no_new_privs");
            match crate::linux::landlock::restrict(&ports.tcp) {
                Ok(()) => {}
                Err(error) => return eprintln!("skipped: {error:#}"),
            }
            refuse(Some(&ports)).expect("loaded");
            assert_eq!(connect().err(), Some(std::io::ErrorKind::PermissionDenied));
            // Landlock alone would allow this.
            let stream = socket(SocketType::STREAM, None).expect("a socket");
            let flags = SendFlags::from_bits_retain(0x2000_0000);
            let sent = rustix::net::sendto(&stream, b"x", flags, &listening);
            assert_eq!(sent, Err(Errno::ACCESS));
            for (kind, protocol) in [
                (SocketType::STREAM, open(262)),
                (SocketType::RAW, Some(ipproto::ICMP)),
                (SocketType::DGRAM, None),
            ] {
                assert_eq!(socket(kind, protocol).err(), Some(Errno::ACCESS), "{kind:?}");
            }
        };
        std::thread::spawn(test).join().expect("what is asserted");
    }
}
