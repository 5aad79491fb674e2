//! The allocator: dlmalloc, with a lock that suits a process with one thread.
//!
//! musl's own allocator maps and unmaps pages for many allocations; dlmalloc keeps its pages. The
//! crate `dlmalloc` has a global allocator too. Its lock is the C library's mutex, which takes half
//! of the time of an allocation.
#![allow(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

use dlmalloc::Dlmalloc;

/// `rt` has one thread. The lock is for the threads of unit tests.
pub(crate) struct Allocator {
    heap: UnsafeCell<Dlmalloc>,
    locked: AtomicBool,
}

// SAFETY: `with` gives the heap to one thread at a time.
unsafe impl Sync for Allocator {}

impl Allocator {
    pub(crate) const fn new() -> Allocator {
        let heap = UnsafeCell::new(Dlmalloc::new());
        Allocator { heap, locked: AtomicBool::new(false) }
    }

    /// Calls `work` with the heap. `work` does not allocate by this allocator and does not panic.
    fn with<T>(&self, work: impl FnOnce(&mut Dlmalloc) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: the lock is held, so no other reference exists.
        let result = work(unsafe { &mut *self.heap.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

// SAFETY: dlmalloc keeps the promises of an allocator. Its functions get the layouts that they were
// called with before, because the callers of this trait promise to pass them.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout has a size and an alignment that dlmalloc accepts.
        self.with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that the block has this layout.
        self.with(|heap| unsafe { heap.free(block, layout.size(), layout.align()) });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        self.with(|heap| unsafe { heap.calloc(layout.size(), layout.align()) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`.
        self.with(|heap| unsafe { heap.realloc(block, layout.size(), layout.align(), size) })
    }
}
