//! How large a guest's memories may grow: up to the container's limit. If a guest asks for more,
//! `memory.grow` returns -1, and the kernel does not kill the guest.
#![forbid(unsafe_code)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The size of a WebAssembly page, in bytes.
pub const PAGE: u64 = 64 << 10;

/// The largest number of pages of a 32-bit memory.
const MOST: u64 = 65536;

/// The reserve that grows with the guest's usage: the kernel's page tables use a 512th of it, and
/// count against the limit.
const SHARE: u64 = 256;

/// The constant reserve in bytes, for stacks, descriptors and socket buffers.
const RESERVE: u64 = 1 << 20;

/// How many more bytes this process may use, if its container may use `limit` bytes. These bytes
/// are for a module's memories, of which an engine limits each only by itself, for the module's
/// tables, and for an interpreter's stack. The result is never less than the initial size of the
/// memories, given in pages.
///
/// Other threads may run. Their usage so far counts as used.
pub fn most_bytes(initial: impl IntoIterator<Item = u64>, limit: u64) -> u64 {
    let initial = initial.into_iter().map(|pages| pages.saturating_mul(PAGE));
    left(limit, used()).max(initial.fold(RESERVE, u64::saturating_add))
}

fn left(limit: u64, used: u64) -> u64 {
    limit.saturating_sub(used + RESERVE + limit / SHARE)
}

/// How many pages each memory of a module may have, if the container may use `limit` bytes. A
/// module that starts with more pages keeps them, because it may never touch them.
///
/// Other threads may run. Their usage so far counts as used.
pub fn most_pages(initial: impl IntoIterator<Item = u64>, limit: u64) -> u32 {
    pages(limit, used(), initial.into_iter().max().unwrap_or(0))
}

fn pages(limit: u64, used: u64, smallest: u64) -> u32 {
    let pages = (left(limit, used) / PAGE).max(smallest).min(MOST);
    u32::try_from(pages).unwrap_or(u32::MAX)
}

/// The bytes that the instances of a server may still have together, and how many each may have.
#[derive(Debug)]
pub struct Pool {
    left: AtomicU64,
    most: u64,
}

impl Pool {
    /// `limit` is what the container may use, in bytes, `reserve` what the server itself needs for
    /// connections and requests, and `most` the limit of each instance. Without it, an instance may
    /// have half of the pool, so that no instance alone keeps all others out. Other threads may
    /// run. Their usage so far counts as used.
    pub fn new(limit: Option<u64>, reserve: u64, most: Option<u64>) -> Pool {
        let left = limit.map_or(u64::MAX, |limit| left(limit, used()).saturating_sub(reserve));
        Pool { left: AtomicU64::new(left), most: most.unwrap_or(left / 2) }
    }

    /// Any thread may call this.
    pub fn share(self: &Arc<Pool>) -> Share {
        Share { pool: Arc::clone(self), taken: 0 }
    }
}

/// The memory that an instance has of a pool. It returns when this is dropped.
#[derive(Debug)]
pub struct Share {
    pool: Arc<Pool>,
    taken: u64,
}

impl Share {
    /// Whether a memory or a table of the instance may grow by this many bytes.
    pub fn take(&mut self, bytes: u64) -> bool {
        let Some(taken) = self.taken.checked_add(bytes).filter(|it| *it <= self.pool.most) else {
            return false;
        };
        let less = |left: u64| left.checked_sub(bytes);
        let is_there =
            self.pool.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        if is_there {
            self.taken = taken;
        }
        is_there
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

/// The bytes by which all memories and tables of a guest together may still grow.
#[derive(Debug)]
pub struct Budget(u64);

impl Budget {
    /// The budget of a guest whose container may use `limit` bytes. Other threads may run. Their
    /// usage so far counts as used.
    pub fn new(limit: u64) -> Budget {
        Budget(most_bytes([], limit))
    }

    /// Whether a memory or a table may grow by this many bytes.
    ///
    /// Its initial size (`is_initial`) is always allowed: the guest may never touch it, and the
    /// kernel counts only touched pages. Then 1 MiB is left at least, because an adapter of
    /// preview1 begins with an allocation in the guest's memory.
    pub fn take(&mut self, bytes: u64, is_initial: bool) -> bool {
        let rest = self.0.checked_sub(bytes);
        if rest.is_none() && !is_initial {
            return false;
        }
        self.0 = rest.unwrap_or(RESERVE);
        true
    }
}

/// The memory in bytes that this process uses and cannot give back (`RssAnon`,
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
    fn all_memories_share_a_budget() {
        let mut budget = Budget(100);
        assert!(budget.take(40, true));
        assert!(budget.take(40, false));
        assert!(!budget.take(21, false));
        assert!(budget.take(20, false));
        assert!(!budget.take(1, false));
    }

    #[test]
    fn instances_share_a_pool() {
        let pool = |left, most| Arc::new(Pool { left: AtomicU64::new(left), most });
        let shared = pool(100, 60);
        let (mut one, mut other) = (shared.share(), shared.share());
        assert!(one.take(60) && !one.take(1));
        assert!(!other.take(41) && other.take(40) && !other.take(1));
        drop(one);
        assert!(other.take(20) && !other.take(1));
        drop(other);
        assert_eq!(shared.left.load(Ordering::Relaxed), 100);
        let whole = Pool::new(Some(64 * MIB), 16 * MIB, None);
        let left = whole.left.load(Ordering::Relaxed);
        assert!(left < 48 * MIB && whole.most == left / 2, "{whole:?}");
    }

    #[test]
    fn a_guest_that_begins_with_more_than_its_budget_may_grow_a_little() {
        let mut budget = Budget(100);
        assert!(budget.take(1 << 30, true));
        assert!(budget.take(RESERVE, false));
        assert!(!budget.take(1, false));
    }

    #[test]
    fn a_module_has_what_it_begins_with() {
        assert_eq!(pages(MIB, 3 * MIB, 17), 17);
        assert_eq!(pages(u64::MAX / 2, 0, 17), 65536);
    }
}
