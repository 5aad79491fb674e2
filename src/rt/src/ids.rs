//! The host's ids that this process has (`user_namespaces(7)`).
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

/// Whether this process is root of the host, and not only of a user namespace. A namespace can map
/// every id to itself, as the initial one does (systemd's `PrivateUsers=full`), so the map does not
/// tell.
///
/// If root cannot find out, it counts as root of the host: then `rt` ignores fewer failures.
pub(crate) fn is_host_root() -> bool {
    let own = || rustix::fs::stat("/proc/self/ns/user");
    rustix::process::geteuid().is_root() && own().map_or(true, |own| own.st_ino == INITIAL_USER)
}

/// `PROC_USER_INIT_INO`, `<linux/proc_ns.h>`: the fixed inode number of the initial user namespace.
const INITIAL_USER: u64 = 0xEFFF_FFFD;

/// Whether this process is in a user namespace without all of the host's ids.
pub(crate) fn lacks_ids() -> bool {
    fs::read_to_string(UID_MAP).is_ok_and(|map| !is_whole(&map))
}

const UID_MAP: &str = "/proc/self/uid_map";

/// Whether a map is that of the initial user namespace (`user_namespaces(7)`).
fn is_whole(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Parses the text of `/proc/PID/uid_map` or `gid_map` (`user_namespaces(7)`).
pub(crate) fn parse_map(table: &str) -> Result<Vec<LinuxIdMapping>> {
    let mapping = |line: &str| {
        let numbers: Vec<u32> =
            line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let &[first, outside, size] = numbers.as_slice() else {
            bail!("`{line}` is not three numbers")
        };
        let mapping = LinuxIdMappingBuilder::default().container_id(first).host_id(outside);
        Ok(mapping.size(size).build()?)
    };
    table.lines().map(mapping).collect()
}
