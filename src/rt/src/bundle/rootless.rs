//! Containers of ordinary users (`user_namespaces(7)`): completes their configuration.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Spec,
};

use crate::ids;

/// Adds a user namespace if there is none, because without one an ordinary user cannot make other
/// namespaces. Adds missing mappings: root is the user, followed by the ids that the system assigns
/// to the user's containers (`subuid(5)`). A container that root makes has all ids that root has,
/// each mapped to itself. crun has defaults for both too, runc refuses.
pub(crate) fn complete(spec: &mut Spec) -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let user = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let joins = |path: &PathBuf| !path.as_os_str().is_empty();
    match user {
        Some(user) if user.path().as_ref().is_some_and(joins) => return Ok(()),
        Some(_) => {}
        None if uid.is_root() => return Ok(()),
        None => {
            let user = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User).build()?;
            namespaces.push(user);
            linux.set_namespaces(Some(namespaces));
        }
    }
    let missing =
        |mappings: &Option<Vec<LinuxIdMapping>>| mappings.as_ref().is_none_or(Vec::is_empty);
    if !missing(linux.uid_mappings()) || !missing(linux.gid_mappings()) {
        return Ok(());
    }
    if uid.is_root() {
        linux.set_uid_mappings(Some(all_as_they_are("/proc/self/uid_map")?));
        linux.set_gid_mappings(Some(all_as_they_are("/proc/self/gid_map")?));
    } else {
        linux.set_uid_mappings(Some(all_of_the_user("/etc/subuid", uid.as_raw(), uid.as_raw())?));
        linux.set_gid_mappings(Some(all_of_the_user("/etc/subgid", uid.as_raw(), gid.as_raw())?));
    }
    Ok(())
}

/// The ids of this process's user namespace, from a file whose lines are `FIRST FIRST-OUTSIDE
/// COUNT` (`user_namespaces(7)`).
fn all_as_they_are(file: &str) -> Result<Vec<LinuxIdMapping>> {
    let show = || format!("read `{file}`");
    let table = fs::read_to_string(file).with_context(show)?;
    let mappings = ids::parse_map(&table).with_context(show)?;
    let as_it_is = |mapping: LinuxIdMapping| {
        let first = mapping.container_id();
        let builder = LinuxIdMappingBuilder::default().container_id(first).host_id(first);
        Ok(builder.size(mapping.size()).build()?)
    };
    mappings.into_iter().map(as_it_is).collect()
}

fn all_of_the_user(file: &str, uid: u32, own: u32) -> Result<Vec<LinuxIdMapping>> {
    let mapping = |container: u32, host: u32, size: u32| {
        LinuxIdMappingBuilder::default().container_id(container).host_id(host).size(size).build()
    };
    let mut mappings = vec![mapping(0, own, 1)?];
    let table = fs::read_to_string(file).unwrap_or_default();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut next = 1;
    for (first, size) in ranges(&table, uid, name(&passwd, uid)) {
        mappings.push(mapping(next, first, size)?);
        next += size;
    }
    Ok(mappings)
}

/// The ranges of the user's entries, `NAME:FIRST:COUNT` or `UID:FIRST:COUNT` (`subuid(5)`).
fn ranges(table: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next().filter(|owner| *owner == uid || Some(*owner) == name)?;
        let range = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        Some((owner, range)).filter(|(_, (_, size))| *size > 0)
    });
    lines.map(|(_, range)| range).collect()
}

/// The name in `NAME:PASSWORD:UID:…` (`passwd(5)`).
fn name(passwd: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').next()
}

/// Whether this user can have more than one id in a container. That requires a range in the
/// system's files, and the programs that map the range.
pub(crate) fn helpers() -> Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    for (file, program) in [("/etc/subuid", "newuidmap"), ("/etc/subgid", "newgidmap")] {
        let table = fs::read_to_string(file).unwrap_or_default();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ensure!(
            !ranges(&table, uid, name(&passwd, uid)).is_empty(),
            "`{file}` has no range for user {uid}"
        );
        // Without arguments, the program prints its usage and fails.
        Command::new(program).output().with_context(|| format!("run `{program}`"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_of_a_user_go_by_name_or_number() {
        let table = "root:1:2\nuser:100000:65536\n1000:300000:10\nother:5:5\nuser:x:1\nuser:7:0\n";
        assert_eq!(ranges(table, 1000, Some("user")), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(table, 1000, None), [(300_000, 10)]);
        assert_eq!(name("root:x:0:0::/:\nuser:x:1000:1000::/:\n", 1000), Some("user"));
    }
}
