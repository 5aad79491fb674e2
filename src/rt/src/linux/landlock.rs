//! Restricts the TCP ports that this process and its children may use, by Landlock (`landlock(7)`).
//! A process restricts itself, for good, and needs no privilege for that.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::linux::ports::{Allowed, Protocol};
use crate::syscall::{
    LANDLOCK_ACCESS_NET_BIND_TCP, LANDLOCK_ACCESS_NET_CONNECT_TCP, landlock_add_rule,
    landlock_create_ruleset, landlock_restrict_self,
};

/// Landlock has no ranges: each port is a rule, which costs half a microsecond and 64 bytes of the
/// container's memory. Landlock requires `no_new_privs`.
pub(crate) fn restrict(tcp: &Protocol) -> Result<()> {
    let rights = [
        (LANDLOCK_ACCESS_NET_BIND_TCP, &tcp.bind),
        (LANDLOCK_ACCESS_NET_CONNECT_TCP, &tcp.connect),
    ];
    let handled = |(right, ports): &(u64, &Allowed)| if ports.is_some() { *right } else { 0 };
    let ruleset = match landlock_create_ruleset(rights.iter().map(handled).sum()) {
        Ok(ruleset) => ruleset,
        Err(error) => {
            return Err(error).context(match error {
                Errno::NOSYS => "this kernel has no Landlock",
                Errno::OPNOTSUPP => "Landlock is switched off (`lsm=` of the kernel)",
                // An earlier version of Landlock does not have these bits.
                Errno::TOOBIG => {
                    "this kernel's Landlock does not know ports: use Linux 6.7 or later"
                }
                _ => "make a ruleset of Landlock",
            });
        }
    };
    for (right, ports) in rights {
        for port in ports.iter().flatten().cloned().flatten() {
            landlock_add_rule(ruleset.as_fd(), right, port).context("allow a port by Landlock")?;
        }
    }
    landlock_restrict_self(ruleset.as_fd()).context("restrict by Landlock")
}
