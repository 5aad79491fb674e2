//! The NUMA nodes from which the kernel takes memory (`linux.memoryPolicy`, `set_mempolicy(2)`).
//! Runs in the process that becomes the program. The nodes must be among those of its cgroup, so
//! the process enters the cgroup first.
//!
//! This is our own code. libcontainer's `setup_memory_policy` links all of its system calls, 37 kB,
//! for this one. It loses the last node of each word of 64, and builds a list of all numbers of a
//! range, however long (`docs/upstream/memory-policy-nodes.md`).
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode,
};

use crate::syscall::{self, NODES, Nodes};

pub(crate) fn set_memory_policy(policy: Option<&LinuxMemoryPolicy>) -> Result<()> {
    let Some(policy) = policy else { return Ok(()) };
    let what = "set `linux.memoryPolicy`";
    let (mode, nodes) = understand(policy).context(what)?;
    syscall::set_mempolicy(mode, nodes.as_ref()).context(what)
}

/// Returns the mode with its flags, and the nodes. Some modes have no nodes.
pub(crate) fn understand(policy: &LinuxMemoryPolicy) -> Result<(u32, Option<Nodes>)> {
    let mode = policy.mode();
    let flags = policy.flags().as_deref().unwrap_or_default();
    let nodes = nodes(policy.nodes().as_deref().unwrap_or_default())?;
    let is_relative = flags.contains(&Flag::MpolFRelativeNodes);
    let is_static = flags.contains(&Flag::MpolFStaticNodes);
    ensure!(
        !is_static || !is_relative,
        "`MPOL_F_STATIC_NODES` and `MPOL_F_RELATIVE_NODES` exclude each other"
    );
    ensure!(
        mode == Mode::MpolBind || !flags.contains(&Flag::MpolFNumaBalancing),
        "`MPOL_F_NUMA_BALANCING` is for `MPOL_BIND` only"
    );
    match mode {
        Mode::MpolDefault | Mode::MpolLocal => {
            ensure!(nodes.is_none(), "`{mode}` does not allow nodes");
            ensure!(flags.is_empty(), "`{mode}` does not allow flags");
        }
        // Without nodes, the kernel prefers the node of the requesting processor.
        Mode::MpolPreferred => ensure!(
            nodes.is_some() || !is_static && !is_relative,
            "`{mode}` without nodes does not allow `MPOL_F_STATIC_NODES` or `MPOL_F_RELATIVE_NODES`"
        ),
        _ => ensure!(nodes.is_some(), "`{mode}` requires nodes"),
    }
    let flags = flags.iter().fold(0, |all, flag| all | number_of_flag(*flag));
    Ok((number_of_mode(mode) | flags, nodes))
}

/// From `<linux/mempolicy.h>`, as the next function.
fn number_of_mode(mode: Mode) -> u32 {
    match mode {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    }
}

fn number_of_flag(flag: Flag) -> u32 {
    match flag {
        Flag::MpolFNumaBalancing => 1 << 13,
        Flag::MpolFRelativeNodes => 1 << 14,
        Flag::MpolFStaticNodes => 1 << 15,
    }
}

/// Parses nodes as in `0-3,7`, ignoring empty parts. Returns None if there are no nodes.
fn nodes(text: &str) -> Result<Option<Nodes>> {
    let mut nodes: Nodes = [0; NODES / 64];
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let node = |text: &str| text.trim().parse().ok().filter(|node: &usize| *node < NODES);
        let (Some(first), Some(last)) = (node(first), node(last)) else {
            bail!("`{part}` in `nodes` is not a node or a range of nodes below {NODES}")
        };
        ensure!(first <= last, "the range `{part}` in `nodes` ends before it begins");
        (first..=last).for_each(|node| nodes[node / 64] |= 1 << (node % 64));
    }
    Ok(nodes.iter().any(|word| *word != 0).then_some(nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: &str, nodes: &str, flags: &[&str]) -> Result<(u32, Option<Nodes>)> {
        let json = serde_json::json!({ "mode": mode, "nodes": nodes, "flags": flags });
        understand(&serde_json::from_value(json)?)
    }

    #[test]
    fn nodes_become_bits() {
        let bits = |text: &str| nodes(text).map(|nodes| nodes.map(|nodes| (nodes[0], nodes[15])));
        assert_eq!(bits("0-2, 5").ok(), Some(Some((0b10_0111, 0))));
        assert_eq!(bits("63,1023").ok(), Some(Some((1 << 63, 1 << 63))));
        assert_eq!(bits(" , ").ok(), Some(None));
        for text in ["2-1", "x", "0-", "-1", "1024", "0-4294967295"] {
            assert!(bits(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mode_has_the_nodes_and_flags_that_it_takes() {
        for (mode, nodes, flags, expected) in [
            ("MPOL_DEFAULT", "", &[][..], Some(0)),
            ("MPOL_DEFAULT", "0", &[], None),
            ("MPOL_LOCAL", "", &["MPOL_F_STATIC_NODES"], None),
            ("MPOL_PREFERRED", "", &[], Some(1)),
            ("MPOL_PREFERRED", "", &["MPOL_F_STATIC_NODES"], None),
            ("MPOL_PREFERRED", "1", &["MPOL_F_STATIC_NODES"], Some(1 | 1 << 15)),
            ("MPOL_BIND", "0", &["MPOL_F_NUMA_BALANCING"], Some(2 | 1 << 13)),
            ("MPOL_BIND", "", &[], None),
            ("MPOL_BIND", "0", &["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"], None),
            ("MPOL_INTERLEAVE", "0", &["MPOL_F_NUMA_BALANCING"], None),
            ("MPOL_WEIGHTED_INTERLEAVE", "0-1", &["MPOL_F_RELATIVE_NODES"], Some(6 | 1 << 14)),
        ] {
            let understood = policy(mode, nodes, flags).ok().map(|(mode, _)| mode);
            assert_eq!(understood, expected, "{mode} {nodes} {flags:?}");
        }
    }
}
