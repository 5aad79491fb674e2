//! How large a guest's memories may grow: as far as the container's limit goes, so that a guest
//! that asks for more is told so (`memory.grow` gives -1) and not killed.
#![forbid(unsafe_code)]

use std::fs;

/// Bytes in a page of WebAssembly's.
pub const PAGE: u64 = 64 << 10;

/// The largest number of pages that a memory of 32 bits has.
const MOST: u64 = 65536;

/// What else is counted against the limit, and grows with what the guest uses: the kernel's page
/// tables take a 512th of it.
const SHARE: u64 = 256;

/// And what does not: stacks, descriptors, buffers of sockets.
const RESERVE: u64 = 1 << 20;

/// How many bytes more this process may use, when its container may use `limit` bytes: for a
/// module's memories, of which an engine caps only each for itself, its tables, and an
/// interpreter's stack. Never less than what the memories begin with, in pages.
///
/// Threads may run. What they use by then counts as used.
pub fn most_bytes(initial: impl IntoIterator<Item = u64>, limit: u64) -> u64 {
    let initial = initial.into_iter().map(|pages| pages.saturating_mul(PAGE));
    left(limit, used()).max(initial.fold(RESERVE, u64::saturating_add))
}

fn left(limit: u64, used: u64) -> u64 {
    limit.saturating_sub(used + RESERVE + limit / SHARE)
}

/// How many pages each memory of a module may have, when the container may use `limit` bytes. A
/// module that begins with more gets what it begins with: it may never touch it.
///
/// Threads may run. What they use by then counts as used.
pub fn most_pages(initial: impl IntoIterator<Item = u64>, limit: u64) -> u32 {
    pages(limit, used(), initial.into_iter().max().unwrap_or(0))
}

fn pages(limit: u64, used: u64, smallest: u64) -> u32 {
    let pages = (left(limit, used) / PAGE).max(smallest).min(MOST);
    u32::try_from(pages).unwrap_or(u32::MAX)
}

/// The memory that this process uses and cannot give back, in bytes (`RssAnon`,
/// `proc_pid_status(5)`).
fn used() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // Measured: 2 MB after WasmEdge has loaded a small module.
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
        assert_eq!(most_bytes([3, 5], 0), 8 * PAGE + RESERVE);
        assert!(most_bytes([], 1 << 40) > 1 << 39);
    }

    #[test]
    fn a_module_has_what_it_begins_with() {
        assert_eq!(pages(MIB, 3 * MIB, 17), 17);
        assert_eq!(pages(u64::MAX / 2, 0, 17), 65536);
    }
}
