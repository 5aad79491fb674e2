//! The cgroup of a container's modules, below the container's own, in which their ports are
//! limited. Landlock cannot limit UDP's ports. Native programs of the container stay outside.
//!
//! The cgroup's programs decide on sockets that were made in it. They run at a bind, a connect and
//! a send, and when a packet reaches a socket (`Documentation/bpf/libbpf/program_types.rst`;
//! `struct bpf_sock_addr` and `struct __sk_buff`, `<linux/bpf.h>`).
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use super::bpf::{
    CALL, JUMP_IF, JUMP_IF_ABOVE, JUMP_IF_BELOW, JUMP_IF_NOT, LOAD_POINTER, LOAD_WORD, MOVE,
    Program, TO_BIG_ENDIAN,
};
use super::{Cgroup, Manager, Version, delegation, v1};
use crate::linux::ports::{Allowed, Ports};
use crate::syscall;

const NAME: &str = "rt-modules";

// From `<linux/bpf.h>`.
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET_INGRESS: u32 = 0;
/// `BPF_CGROUP_INET4_BIND`, `…6_BIND`.
const BINDING: [u32; 2] = [8, 9];
/// `BPF_CGROUP_INET4_CONNECT`, `…6_CONNECT`, `BPF_CGROUP_UDP4_SENDMSG`, `…6_SENDMSG`.
const REACHING: [u32; 4] = [10, 11, 14, 15];

impl Cgroup {
    /// Makes the cgroup that limits these ports, and opens the file by which a process enters it.
    /// Returns None if that is not possible, or not required.
    pub(crate) fn for_modules(&mut self, ports: &Ports) -> Result<Option<OwnedFd>> {
        let listen = listeners(&ports.tcp.bind)?;
        if !ports.udp.is_divided() && listen.is_none() || !crate::ids::is_host_root() {
            return Ok(None);
        }
        let above = match (self.manager, self.version) {
            (Manager::Disabled, _) => None,
            (_, Version::V1) => v1::unified(&self.paths),
            (_, Version::V2) => self.paths.first(),
        };
        let Some(path) = above.map(|above| above.join(NAME)) else { return Ok(None) };
        delegation::make(&path)?;
        self.made.push(path.clone());
        limit(&path, listen.as_deref(), ports)
            .with_context(|| format!("limit the ports in cgroup `{}`", path.display()))?;
        delegation::entrance(&path).map(Some)
    }
}

fn limit(path: &Path, listen: Option<&[u64]>, ports: &Ports) -> Result<()> {
    let cgroup = super::open_directory(path)?;
    if let Some(program) = listen {
        put(&cgroup, BPF_PROG_TYPE_CGROUP_SKB, &[BPF_CGROUP_INET_INGRESS], program)?;
    }
    if ports.udp.is_divided() {
        for (allowed, places) in [(&ports.udp.bind, &BINDING[..]), (&ports.udp.connect, &REACHING)]
        {
            if let Some(ranges) = allowed {
                put(&cgroup, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, places, &udp(ranges)?)?;
            }
        }
    }
    Ok(())
}

/// Attaches one program at each place. The next `exec` replaces it by an equal one.
fn put(cgroup: &OwnedFd, kind: u32, places: &[u32], program: &[u64]) -> Result<()> {
    for place in places {
        let program =
            syscall::bpf_prog_load(kind, *place, program).context("load a program (Linux 5.18)")?;
        syscall::bpf_prog_attach(cgroup.as_fd(), program.as_fd(), *place, 0)
            .context("attach a program")?;
    }
    Ok(())
}

/// Answers yes and ends if the port in register 2 is in one of these ranges.
fn allow(program: &mut Program, ranges: &[RangeInclusive<u16>]) {
    for range in ranges {
        let next = program.label();
        program.jump_if(JUMP_IF_BELOW, 2, (*range.start()).into(), next);
        program.jump_if(JUMP_IF_ABOVE, 2, (*range.end()).into(), next);
        program.answer(YES);
        program.put(next);
    }
}

/// Answers yes and ends unless a comparison of a register holds.
fn only_if(program: &mut Program, comparison: u8, register: u8, value: i32) {
    let holds = program.label();
    program.jump_if(comparison, register, value, holds);
    program.answer(YES);
    program.put(holds);
}

const YES: i32 = 1;
const NO: i32 = 0;

/// The program for the address of a bind, connect or sendmsg. It decides only on UDP: Landlock
/// decides on TCP.
fn udp(ranges: &[RangeInclusive<u16>]) -> Result<Vec<u64>> {
    const BPF_FUNC_SET_RETVAL: i32 = 187;
    let mut program = Program::default();
    // `protocol`.
    program.load(LOAD_WORD, 2, 1, 36);
    only_if(&mut program, JUMP_IF, 2, libc::IPPROTO_UDP);
    // `user_port`, in network byte order.
    program.load(LOAD_WORD, 2, 1, 24);
    program.add(TO_BIG_ENDIAN, 2, 0, 16);
    allow(&mut program, ranges);
    // Without this call, the error would be EPERM, but all other refusals are EACCES.
    program.add(MOVE, 1, 0, -libc::EACCES);
    program.add(CALL, 0, 0, BPF_FUNC_SET_RETVAL);
    program.answer(NO);
    program.finish()
}

/// The program for a packet that reaches a socket. A socket that listens without a bind got a free
/// port, and Landlock did not check it. Returns None if that is allowed, as port 0.
fn listeners(allowed: &Allowed) -> Result<Option<Vec<u64>>> {
    const TCP_LISTEN: i32 = 10;
    // If no port is allowed, the filter refuses listen(2) already.
    let is_limited = |ranges: &&Vec<RangeInclusive<u16>>| {
        !ranges.is_empty() && ranges.iter().all(|range| *range.start() != 0)
    };
    let Some(ranges) = allowed.as_ref().filter(is_limited) else { return Ok(None) };
    let mut program = Program::default();
    // `sk`, which may be null.
    program.load(LOAD_POINTER, 2, 1, 168);
    only_if(&mut program, JUMP_IF_NOT, 2, 0);
    // `state` and `src_port` of `struct bpf_sock`.
    program.load(LOAD_WORD, 3, 2, 72);
    only_if(&mut program, JUMP_IF, 3, TCP_LISTEN);
    program.load(LOAD_WORD, 2, 2, 44);
    allow(&mut program, ranges);
    program.answer(NO);
    program.finish().map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::bpf;
    use super::*;

    /// The answer for an address of this protocol and port, in the kernel's layout.
    fn asked(program: &[u64], protocol: i32, port: u16) -> (i32, Option<i32>) {
        bpf::run(program, |_, offset| match offset {
            36 => protocol,
            24 => i32::from(port.to_be()),
            other => panic!("{other}"),
        })
    }

    #[test]
    fn ports_of_udp_are_compared() {
        let program = udp(&[0..=0, 53..=53, 6000..=6010]).expect("short jumps");
        for port in [0, 53, 6000, 6005, 6010] {
            assert_eq!(asked(&program, 17, port), (1, None), "{port}");
        }
        for port in [1, 52, 54, 5999, 6011, 13568, u16::MAX] {
            assert_eq!(asked(&program, 17, port), (0, Some(-13)), "{port}");
        }
        assert_eq!(asked(&program, 6, 1), (1, None));
        assert_eq!(asked(&udp(&[]).expect("short jumps"), 17, 0), (0, Some(-13)));
    }

    #[test]
    fn only_what_listens_at_another_port_is_out_of_reach() {
        let program = listeners(&Some(vec![80..=81, 443..=443])).expect("short jumps");
        let program = program.expect("a program");
        let reached = |socket: i32, state: i32, port: i32| {
            let word = |register, offset| match (register, offset) {
                (1, 168) => socket,
                (2, 72) => state,
                (2, 44) => port,
                other => panic!("{other:?}"),
            };
            bpf::run(&program, word).0 == 1
        };
        assert!(reached(0, 0, 0) && reached(2, 1, 40000) && reached(2, 7, 40000));
        assert!(reached(2, 10, 80) && reached(2, 10, 443) && !reached(2, 10, 40000));
        assert_eq!(listeners(&Some(vec![80..=80, 0..=0])).expect("short jumps"), None);
    }
}
