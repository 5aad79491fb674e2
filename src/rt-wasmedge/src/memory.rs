//! How large a module's memories may grow: as far as the container's limit goes, so that a guest that asks for more is told so
//! (`memory.grow` gives -1) and not killed.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use wasmparser::{MemoryType, Parser, Payload, TypeRef};

/// Bytes in a page of WebAssembly's.
const PAGE: u64 = 64 << 10;

/// The largest number of pages that a memory of 32 bits has.
const MOST: u64 = 65536;

/// What else is counted against the limit, and grows with what the guest uses: the kernel's page tables take a 512th of it.
const SHARE: u64 = 256;

/// And what does not: stacks, descriptors, buffers of sockets.
const RESERVE: u64 = 1 << 20;

/// How many bytes more this process may use, when its container may use so many: for a module's memories, of which WasmEdge caps only
/// each for itself, its tables, and the interpreter's stack. Never less than what the memories begin with.
pub(crate) fn most_bytes(memories: &[MemoryType], limit: u64) -> u64 {
    let initial = memories.iter().map(|memory| memory.initial.saturating_mul(PAGE));
    left(limit, used()).max(initial.fold(RESERVE, u64::saturating_add))
}

fn left(limit: u64, used: u64) -> u64 {
    limit.saturating_sub(used + RESERVE + limit / SHARE)
}

/// How many pages each memory of a module may have, when the container may use this many bytes. A module that begins with
/// more gets what it begins with: it may never touch it.
pub(crate) fn most_pages(memories: &[MemoryType], limit: u64) -> u32 {
    let smallest = memories.iter().map(|memory| memory.initial).max().unwrap_or(0);
    pages(limit, used(), smallest)
}

fn pages(limit: u64, used: u64, smallest: u64) -> u32 {
    let pages = (left(limit, used) / PAGE).max(smallest).min(MOST);
    u32::try_from(pages).unwrap_or(u32::MAX)
}

/// The memories of a module that has native code, of which no more is read than it takes.
pub(crate) fn of_file(module: &File) -> Vec<MemoryType> {
    let mut bytes = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        let read = module.read_at(&mut bytes[length..], length as u64).unwrap_or(0);
        length += read;
        let (memories, whole) = parse(&bytes[..length]);
        // What has native code is no larger than that.
        if whole || read == 0 || length as u64 >= crate::LARGEST {
            return memories;
        }
        bytes.resize(bytes.len() * 2, 0);
    }
}

pub(crate) fn of_bytes(module: &[u8]) -> Vec<MemoryType> {
    parse(module).0
}

/// The memories, and whether these are all. What the parser cannot understand, WasmEdge has refused already, or understands better;
/// then nothing is known of it.
fn parse(module: &[u8]) -> (Vec<MemoryType>, bool) {
    let mut memories = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        match payload {
            Ok(Payload::ImportSection(imports)) => {
                let imports = imports.into_imports().filter_map(Result::ok);
                memories.extend(imports.filter_map(|import| match import.ty {
                    TypeRef::Memory(memory) => Some(memory),
                    _ => None,
                }));
            }
            Ok(Payload::MemorySection(section)) => {
                memories.extend(section.into_iter().filter_map(Result::ok));
            }
            // All memories come before.
            Ok(Payload::CodeSectionStart { .. } | Payload::End(_)) => return (memories, true),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    (memories, false)
}

/// The memory that this process uses and cannot give back, in bytes (`RssAnon`, `proc_pid_status(5)`).
fn used() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // Measured: 2 MB after a small module was loaded.
    number.map_or(4 << 20, |number| number << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_memory_may_have_what_is_left() {
        assert_eq!(pages(64 * MIB, 3 * MIB, 17), ((60 * MIB - 64 * MIB / SHARE) / PAGE) as u32);
    }

    #[test]
    fn all_may_have_what_they_begin_with() {
        // (module (import "a" "b" (memory 3)) (memory 5 6))
        let module = b"\0asm\x01\0\0\0\x02\x08\x01\x01a\x01b\x02\0\x03\x05\x04\x01\x01\x05\x06";
        assert_eq!(most_bytes(&of_bytes(module), 0), 8 * PAGE + RESERVE);
        assert!(most_bytes(&[], 1 << 40) > 1 << 39);
    }

    #[test]
    fn a_module_has_what_it_begins_with() {
        assert_eq!(pages(MIB, 3 * MIB, 17), 17);
        assert_eq!(pages(u64::MAX / 2, 0, 17), 65536);
    }

    #[test]
    fn memories_are_found_in_imports_too() {
        // (module (import "a" "b" (memory 3)) (memory 5 6))
        let module = b"\0asm\x01\0\0\0\x02\x08\x01\x01a\x01b\x02\0\x03\x05\x04\x01\x01\x05\x06";
        let initial: Vec<u64> = of_bytes(module).iter().map(|memory| memory.initial).collect();
        assert_eq!(initial, [3, 5]);
        assert!(of_bytes(b"nonsense").is_empty());
    }

    #[test]
    fn memories_are_found_in_a_file_behind_much_else() {
        // A custom section of 300000 bytes, (memory 5 6), and the beginning of the functions.
        let mut module = b"\0asm\x01\0\0\0\0\xe0\xa7\x12\0".to_vec();
        module.resize(module.len() + 299_999, 1);
        module.extend(b"\x05\x04\x01\x01\x05\x06\x0a\x7f\x01");
        let path = std::env::temp_dir().join(format!("rt-wasmedge-memory-{}", std::process::id()));
        fs::write(&path, &module).expect("written");
        let found = of_file(&File::open(&path).expect("open"));
        fs::remove_file(path).expect("removed");
        assert_eq!(found.iter().map(|memory| memory.initial).collect::<Vec<_>>(), [5]);
    }
}
