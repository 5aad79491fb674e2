//! System call filters (`seccomp(2)`, `linux.seccomp` in `config.json`): compiled in the caller's
//! process, loaded by init.
//!
//! Own code, not libcontainer's: that compiles in init, where every page it touches is copied
//! first, knows no cache, and can set only the flags that its libseccomp knows. libseccomp still
//! does the compiling, in [`compile`].
#![forbid(unsafe_code)]

mod cache;
mod calls;
mod compile;
mod notify;
mod program;
mod sockets;

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use libc::sock_filter;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag, Spec};

pub(crate) use notify::Receiver;
pub(crate) use sockets::refuse as refuse_sockets;

use crate::bundle::annotation;
use crate::sync::{Message, Socket};
use crate::syscall;

/// A filter that is ready to be loaded.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u64,
    /// Whether some call is to be decided by another process.
    notifies: bool,
    /// The kernel may find it wrong: not libseccomp has made it.
    raw: bool,
}

/// Fails where the configuration names a call that neither libseccomp nor rt knows. Otherwise such
/// a rule is left out where that takes nothing away: it allows something, or the kernel is old
/// enough that it has no such call.
const FAIL_UNKNOWN: &str = "run.oci.seccomp_fail_unknown_syscall";

/// A whole filter in the kernel's format, in base64, in place of the configuration's.
const RAW: &str = "run.oci.seccomp_bpf_data";

/// The longest program that the kernel takes: `BPF_MAXINSNS`, `<linux/bpf_common.h>`.
const LONGEST: usize = 4096;

/// Whether [`prepare`] makes a filter.
pub(crate) fn is_asked_for(spec: &Spec) -> bool {
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    annotation(spec, RAW).is_some() || seccomp.is_some()
}

/// The filter that a configuration asks for, if it does. Compiled filters are kept in `cache`. Runs
/// in the caller's process.
pub(crate) fn prepare(spec: &Spec, cache: &Path) -> Result<Option<Filter>> {
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let program = match (annotation(spec, RAW), seccomp) {
        (None, None) => return Ok(None),
        (Some(text), _) => raw(text).with_context(|| format!("read the annotation `{RAW}`"))?,
        (None, Some(seccomp)) => {
            let strict = annotation(spec, FAIL_UNKNOWN).is_some_and(|value| value != "0");
            compiled(seccomp, strict, cache).context("compile the seccomp filter")?
        }
    };
    let notifies = program.iter().any(is_notification);
    let flags = seccomp.and_then(|seccomp| seccomp.flags().as_deref()).unwrap_or_default();
    let mut flags = flags.iter().fold(0, |flags, flag| flags | number(*flag));
    if notifies {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        if flags & libc::SECCOMP_FILTER_FLAG_TSYNC != 0 {
            // The kernel takes both only if it may report a failure by an errno (seccomp(2)).
            flags |= libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        }
    } else {
        // It is about notifications only, and refused without.
        flags &= !libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    }
    Ok(Some(Filter { program, flags, notifies, raw: annotation(spec, RAW).is_some() }))
}

fn number(flag: LinuxSeccompFilterFlag) -> u64 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        }
    }
}

/// `ret` of `SECCOMP_RET_USER_NOTIF`.
fn is_notification(instruction: &sock_filter) -> bool {
    u32::from(instruction.code) == libc::BPF_RET | libc::BPF_K
        && instruction.k & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_USER_NOTIF
}

fn raw(text: &str) -> Result<Vec<sock_filter>> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim())?;
    instructions(&bytes).context("not a list of BPF instructions, which have 8 bytes each")
}

fn compiled(seccomp: &LinuxSeccomp, strict: bool, cache: &Path) -> Result<Vec<sock_filter>> {
    let key = cache::key(seccomp, strict)?;
    if let Some(program) = cache::read(cache, &key).as_deref().and_then(instructions) {
        return Ok(program);
    }
    let program = compile::compile(seccomp, strict)?;
    cache::write(cache, &key, &bytes(&program));
    Ok(program)
}

/// A program as the kernel has it in memory; None if that is not what the bytes are.
fn instructions(bytes: &[u8]) -> Option<Vec<sock_filter>> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let instruction = |&[a, b, jt, jf, k @ ..]: &[u8; 8]| sock_filter {
        code: u16::from_ne_bytes([a, b]),
        jt,
        jf,
        k: u32::from_ne_bytes(k),
    };
    (rest.is_empty() && (1..=LONGEST).contains(&chunks.len()))
        .then(|| chunks.iter().map(instruction).collect())
}

fn bytes(program: &[sock_filter]) -> Vec<u8> {
    let instruction = |i: &sock_filter| {
        let ([a, b], [c, d, e, f]) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
        [a, b, i.jt, i.jf, c, d, e, f]
    };
    program.iter().flat_map(instruction).collect()
}

impl Filter {
    /// Whether nothing is lost when it is loaded at the last moment: nobody waits for its listener,
    /// and the kernel will take it.
    pub(crate) fn can_wait(&self) -> bool {
        !self.notifies && !self.raw && syscall::seccomp_knows_flags(self.flags)
    }

    /// Loads a filter that [can wait](Filter::can_wait).
    pub(crate) fn load_unheard(&self) -> Result<()> {
        syscall::seccomp_set_mode_filter(self.flags, &self.program)
            .context("load the seccomp filter")
            .map(drop)
    }

    /// Whether somebody has to be there who decides.
    pub(crate) fn notifies(&self) -> bool {
        self.notifies
    }

    /// Loads the filter into this process, for good. Runs in init. The listener that may be
    /// returned has to stay open until the caller's process has taken its own
    /// ([`Receiver::serve`]).
    pub(crate) fn load(&self, socket: &Socket) -> Result<Option<OwnedFd>> {
        if self.notifies {
            // Once the filter is loaded, this process may not be able to say anything. What the
            // kernel opens next has the lowest number that is free.
            socket.send(&Message::Listener(socket.next_descriptor()?))?;
        }
        syscall::seccomp_set_mode_filter(self.flags, &self.program)
            .context("load the seccomp filter")
    }
}

/// Where the listener of a filter that notifies is sent. Connected before anything is made: an
/// agent that is not there is an error of `create`. Runs in the caller's process.
pub(crate) fn receiver(spec: &Spec, filter: Option<&Filter>) -> Result<Option<Receiver>> {
    if !filter.is_some_and(Filter::notifies) {
        return Ok(None);
    }
    match Receiver::connect(spec)? {
        None => bail!(
            "the seccomp filter has SCMP_ACT_NOTIFY, and there is no `linux.seccomp.listenerPath`"
        ),
        receiver => Ok(receiver),
    }
}

#[cfg(test)]
pub(crate) fn understand(seccomp: &LinuxSeccomp) -> Result<()> {
    cache::key(seccomp, false)?;
    compile::compile(seccomp, false).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_the_same_after_it_was_stored() {
        let program = [
            sock_filter { code: 0x20, jt: 0, jf: 0, k: 4 },
            sock_filter { code: 0x15, jt: 1, jf: 255, k: 0xc000_003e },
        ];
        let same = |read: &[sock_filter]| {
            read.iter()
                .zip(&program)
                .all(|(a, b)| (a.code, a.jt, a.jf, a.k) == (b.code, b.jt, b.jf, b.k))
        };
        assert!(same(&instructions(&bytes(&program)).expect("a program")));
        for wrong in [&[][..], &[0; 7], &[0; 12], &[0; 8 * (LONGEST + 1)]] {
            assert!(instructions(wrong).is_none());
        }
    }
}
