//! System call filters (`seccomp(2)`, `linux.seccomp` in `config.json`). The runtime process
//! compiles a filter, and init loads it.
//!
//! This is our own code. libcontainer compiles in init, where every page that it touches is copied
//! first. It has no cache, and can set only the flags that its libseccomp knows. libseccomp still
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
use crate::syscall;

/// A filter that is ready to be loaded.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u64,
    /// Whether another process decides on some calls.
    notifies: bool,
    /// The kernel may refuse the program, because it did not come from libseccomp.
    raw: bool,
}

/// Fails if the configuration names a call that neither libseccomp nor `rt` knows. Without this
/// annotation, `rt` leaves such a rule out if that is safe: the rule allows something, or the
/// kernel is too old to have such a call.
const FAIL_UNKNOWN: &str = "run.oci.seccomp_fail_unknown_syscall";

/// A whole filter in the kernel's format, in base64. It replaces the filter of the configuration.
const RAW: &str = "run.oci.seccomp_bpf_data";

/// The longest program that the kernel accepts, in instructions: `BPF_MAXINSNS`,
/// `<linux/bpf_common.h>`.
const LONGEST: usize = 4096;

/// Whether [`prepare`] makes a filter.
pub(crate) fn is_asked_for(spec: &Spec) -> bool {
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    annotation(spec, RAW).is_some() || seccomp.is_some()
}

/// The filter that a configuration asks for, if any. `cache` keeps compiled filters. Runs in the
/// runtime process.
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
            // The kernel accepts both flags only together with this one, which lets it report a
            // failure by an errno (seccomp(2)).
            flags |= libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        }
    } else {
        // The flag concerns notifications only, and the kernel refuses it without them.
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

/// Converts bytes to a program as the kernel has it in memory. Returns None if they are not a
/// program.
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
    /// Whether init can load the filter at the last moment: no agent waits for its listener, and
    /// the kernel will accept it.
    pub(crate) fn can_wait(&self) -> bool {
        !self.notifies && !self.raw && syscall::seccomp_knows_flags(self.flags)
    }

    /// Loads a filter that [can wait](Filter::can_wait).
    pub(crate) fn load_unheard(&self) -> Result<()> {
        syscall::seccomp_set_mode_filter(self.flags, &self.program)
            .context("load the seccomp filter")
            .map(drop)
    }

    /// Whether the filter requires an agent.
    pub(crate) fn notifies(&self) -> bool {
        self.notifies
    }

    /// Loads the filter into this process, for good. Runs in init. If the filter notifies an agent,
    /// `announce` runs before: it tells the runtime process of the listener, which the kernel will
    /// open as the lowest free descriptor. After the filter is loaded, init may not be able to send
    /// messages. The returned listener has to stay open until the runtime process has taken its own
    /// ([`Receiver::serve`]).
    pub(crate) fn load(&self, announce: impl FnOnce() -> Result<()>) -> Result<Option<OwnedFd>> {
        if self.notifies {
            announce()?;
        }
        syscall::seccomp_set_mode_filter(self.flags, &self.program)
            .context("load the seccomp filter")
    }
}

/// Connects to the agent that gets the listener of a notifying filter. This happens before anything
/// is made, so that a missing agent is an error of `create`. Runs in the runtime process.
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
