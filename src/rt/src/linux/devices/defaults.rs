//! The devices that every container has (runtime-spec, `config-linux.md`, "Default Devices").
#![forbid(unsafe_code)]

use rustix::fs::FileType;

/// Character devices, with their numbers from the kernel's `Documentation/admin-guide/devices.txt`.
pub(crate) const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Whether every container has this device.
pub(crate) fn is_default(kind: FileType, number: u64) -> bool {
    let is_it = |&(_, major, minor): &(_, u32, u32)| rustix::fs::makedev(major, minor) == number;
    kind == FileType::CharacterDevice && DEFAULT.iter().any(is_it)
}
