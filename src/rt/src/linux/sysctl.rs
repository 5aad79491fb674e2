//! `linux.sysctl`: kernel parameters that belong to one of the container's own namespaces.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Spec;

use crate::linux::namespaces::Namespaces;

/// Refuses parameters that would change the host, or that another field sets. Runs in the runtime
/// process.
pub(crate) fn check(
    parameters: &HashMap<String, String>,
    spec: &Spec,
    namespaces: &Namespaces,
) -> Result<()> {
    let own = |flag| namespaces.makes(flag) || namespaces.joins(flag);
    for name in parameters.keys() {
        let path = path(name);
        let field = match path.as_str() {
            "kernel/hostname" => spec.hostname().as_ref().map(|_| "hostname"),
            "kernel/domainname" => spec.domainname().as_ref().map(|_| "domainname"),
            _ => None,
        };
        if let Some(field) = field {
            bail!("sysctl `{name}` and `{field}` set the same: give one of them");
        }
        let allowed = match path.split('/').collect::<Vec<_>>()[..] {
            _ if path.split('/').any(|part| part == "..") => false,
            ["kernel", "domainname" | "hostname"] => own(libc::CLONE_NEWUTS),
            [
                "kernel",
                "msgmax" | "msgmnb" | "msgmni" | "sem" | "shmall" | "shmmax" | "shmmni"
                | "shm_rmid_forced",
            ]
            | ["fs", "mqueue", ..] => own(libc::CLONE_NEWIPC),
            ["net", ..] => own(libc::CLONE_NEWNET),
            ["user", ..] => own(libc::CLONE_NEWUSER),
            _ => false,
        };
        ensure!(allowed, "sysctl `{name}` is not in a namespace of the container's own");
    }
    Ok(())
}

/// Sets the parameters. Runs in init, in its namespaces, while init still sees the host's `/proc`.
/// The container's `/proc` may be read-only.
pub(crate) fn set(parameters: &HashMap<String, String>) -> Result<()> {
    // A parameter for all devices comes before one for a single device: `net.ipv4.ip_forward` sets
    // `net.ipv4.conf.eth0.forwarding` too.
    let mut parameters: Vec<(&String, &String)> = parameters.iter().collect();
    parameters.sort_by_key(|(name, _)| (path(name).matches('/').count(), *name));
    for (name, value) in parameters {
        let path = format!("/proc/sys/{}", path(name));
        fs::write(&path, value).with_context(|| format!("set sysctl `{name}` to `{value}`"))?;
    }
    Ok(())
}

/// `net.ipv4.conf.eth0/1.mtu` and `net/ipv4/conf/eth0.1/mtu` are the same parameter (sysctl(8)):
/// the first separator in the name is the separator.
fn path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_separators_are_understood() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.mtu", "net/ipv4/conf/eth0.1/mtu"),
            ("net/ipv4/conf/eth0.1/mtu", "net/ipv4/conf/eth0.1/mtu"),
        ] {
            assert_eq!(super::path(name), path);
        }
    }
}
