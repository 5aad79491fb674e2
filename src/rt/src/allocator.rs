//! The allocator: dlmalloc, with a lock and with pages that suit a short process.
//!
//! musl's own allocator maps and unmaps pages for many allocations; dlmalloc keeps its pages. The
//! crate `dlmalloc` has a global allocator too. Its lock is the C library's, which takes a third of
//! the time of an allocation, and each of its pages is mapped by a page fault of its own.
#![allow(unsafe_code, reason = "`GlobalAlloc` and `dlmalloc::Allocator` are unsafe traits")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use dlmalloc::Dlmalloc;

/// `rt` has one thread. The lock is for the threads of unit tests.
pub(crate) struct Allocator {
    heap: UnsafeCell<Dlmalloc<Pages>>,
    locked: AtomicBool,
}

// SAFETY: `with` gives the heap to one thread at a time.
unsafe impl Sync for Allocator {}

impl Allocator {
    pub(crate) const fn new() -> Allocator {
        let heap = UnsafeCell::new(Dlmalloc::new_with_allocator(Pages));
        Allocator { heap, locked: AtomicBool::new(false) }
    }

    /// Calls `work` with the heap. `work` does not allocate by this allocator and does not panic.
    fn with<T>(&self, work: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> T {
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

/// Gets memory from the kernel.
struct Pages;

/// dlmalloc asks for at least this much, in bytes.
const LEAST: usize = 64 * 1024;

// SAFETY: the memory comes from mmap(2) and belongs to nothing else. Sizes and addresses that are
// given back are those that `alloc` and `remap` have returned.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        // A command uses most of its first pages. One call maps all of them, where each would be a
        // page fault.
        let populate = if size == LEAST { libc::MAP_POPULATE } else { 0 };
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | populate;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: maps new memory at an address of the kernel's choice.
        let new = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if new == libc::MAP_FAILED { (ptr::null_mut(), 0, 0) } else { (new.cast(), size, 0) }
    }

    fn remap(&self, old: *mut u8, old_size: usize, size: usize, can_move: bool) -> *mut u8 {
        let flags = if can_move { libc::MREMAP_MAYMOVE } else { 0 };
        // SAFETY: dlmalloc owns the region, and uses only the result if it has moved.
        let new = unsafe { libc::mremap(old.cast(), old_size, size, flags) };
        if new == libc::MAP_FAILED { ptr::null_mut() } else { new.cast() }
    }

    fn free_part(&self, region: *mut u8, old_size: usize, size: usize) -> bool {
        // SAFETY: dlmalloc owns the region, and no longer uses its end.
        unsafe { libc::munmap(region.wrapping_add(size).cast(), old_size - size) == 0 }
    }

    fn free(&self, region: *mut u8, size: usize) -> bool {
        // SAFETY: dlmalloc owns the region, and no longer uses it.
        unsafe { libc::munmap(region.cast(), size) == 0 }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}
