//! Program formats that the host's kernel runs in addition to its own (`binfmt_misc`).
#![forbid(unsafe_code)]

use std::fs;

/// The formats that are registered with the host's kernel in addition to ELF and scripts
/// (`binfmt_misc`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Registered {
    pub(crate) any: bool,
    /// Whether a name contains `wasm`.
    pub(crate) wasm: bool,
}

/// Each format is a file, beside two files of the filesystem itself (kernel documentation,
/// `binfmt-misc.rst`).
pub(crate) fn registered_formats() -> Registered {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.filter(|name| name != "register" && name != "status").collect();
    Registered { any: !names.is_empty(), wasm: names.iter().any(|name| name.contains("wasm")) }
}
