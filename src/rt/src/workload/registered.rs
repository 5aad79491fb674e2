//! The formats of programs that the host's kernel runs besides its own (`binfmt_misc`).
#![forbid(unsafe_code)]

use std::fs;

/// What the host's kernel runs natively besides ELF and scripts, as it was told to (`binfmt_misc`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Registered {
    pub(crate) any: bool,
    /// Something whose name has `wasm` in it.
    pub(crate) wasm: bool,
}

/// One file each, beside two of the filesystem's own (kernel documentation, `binfmt-misc.rst`).
pub(crate) fn registered_formats() -> Registered {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.filter(|name| name != "register" && name != "status").collect();
    Registered { any: !names.is_empty(), wasm: names.iter().any(|name| name.contains("wasm")) }
}
