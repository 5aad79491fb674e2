//! Functions that WasmEdge uses instead of those of the C and C++ libraries, which would let a
//! guest do more than it should, or less. The build exports their names, and the loader prefers a
//! program's functions to those of libraries.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rt_engine::process::exit_now;
use rt_engine::{TRAPPED, files};

/// Replaces the C library's `epoll_wait(2)`, by which WasmEdge waits for clocks and sockets.
///
/// If a process was stopped and SIGCONT, a freezer or a tracer continues it, `epoll_wait` fails
/// with EINTR. No handler has run (`signal(7)`, "Interruption of system calls and library functions
/// by stop signals"). WasmEdge returns that error to the guest, whose library takes it for a
/// failure. So this function continues to wait for the rest of the time.
///
/// # Safety
///
/// As `epoll_wait(2)`: `events` points to `most` places.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    if let Some(count) = ready_files(epoll, events, most) {
        return count;
    }
    let end = u64::try_from(timeout).map(|ms| Instant::now() + Duration::from_millis(ms)).ok();
    let mut left = timeout;
    loop {
        // SAFETY: the arguments come from the caller of this function, which keeps the contract
        // above. The null signal mask is not read.
        let ready = unsafe {
            libc::syscall(libc::SYS_epoll_pwait, epoll, events, most, left, ptr::null::<u8>(), 8)
        };
        let interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if ready >= 0 || !interrupted {
            return c_int::try_from(ready).unwrap_or(-1);
        }
        if let Some(end) = end {
            let rest = end.saturating_duration_since(Instant::now()).as_millis();
            left = c_int::try_from(rest).unwrap_or(c_int::MAX);
        }
    }
}

/// A file that `epoll(7)` refuses, because it never blocks: a regular file, a directory, or
/// `/dev/null`.
struct Ready {
    epoll: c_int,
    descriptor: c_int,
    event: libc::epoll_event,
    /// Whether it was not reported yet.
    is_new: bool,
}

static READY: Mutex<Vec<Ready>> = Mutex::new(Vec::new());

fn ready() -> MutexGuard<'static, Vec<Ready>> {
    READY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the C library's `epoll_ctl(2)`, by which WasmEdge chooses what [`epoll_wait`] waits
/// for.
///
/// A guest may wait for any file (`poll_oneoff`). A file that never blocks is ready, as for
/// `poll(2)`.
///
/// # Safety
///
/// As `epoll_ctl(2)`: `event` points to an event, except with `EPOLL_CTL_DEL`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    descriptor: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    // SAFETY: the arguments come from the caller of this function, which keeps the contract above.
    let done = unsafe { libc::syscall(libc::SYS_epoll_ctl, epoll, operation, descriptor, event) };
    let refused = done < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
    let mut ready = ready();
    // The number may belong to another file by now, so this removes its entry too.
    ready.retain(|file| (file.epoll, file.descriptor) != (epoll, descriptor));
    if !refused || operation == libc::EPOLL_CTL_DEL {
        return if refused { 0 } else { c_int::try_from(done).unwrap_or(-1) };
    }
    // SAFETY: the caller's event, by the contract above.
    let event = unsafe { event.read() };
    ready.push(Ready { epoll, descriptor, event, is_new: true });
    0
}

/// Reports the files that never block, each once, together with the files that the kernel reports
/// as ready now. Returns `None` if there is no unreported file that never blocks.
fn ready_files(epoll: c_int, events: *mut libc::epoll_event, most: c_int) -> Option<c_int> {
    let most = usize::try_from(most).ok()?;
    let mut ready = ready();
    let mut new = ready.iter_mut().filter(|file| file.epoll == epoll && file.is_new);
    let mut count = 0;
    while count < most
        && let Some(file) = new.next()
    {
        file.is_new = false;
        let mut event = file.event;
        event.events &= (libc::EPOLLIN | libc::EPOLLOUT).unsigned_abs();
        // SAFETY: by the contract of `epoll_wait` there are `most` places, more than `count`.
        let place = unsafe { events.add(count) };
        // SAFETY: the place is the caller's, to be written to.
        unsafe { place.write(event) };
        count += 1;
    }
    if count == 0 {
        return None;
    }
    if count < most {
        let rest = c_int::try_from(most - count).unwrap_or(c_int::MAX);
        // SAFETY: there are `most` places, more than `count`.
        let places = unsafe { events.add(count) };
        // SAFETY: `rest` places are left there. The call does not wait, and the null signal mask is
        // not read.
        let others = unsafe {
            libc::syscall(libc::SYS_epoll_pwait, epoll, places, rest, 0, ptr::null::<u8>(), 8)
        };
        count += usize::try_from(others).unwrap_or(0);
    }
    c_int::try_from(count).ok()
}

/// Whether files are opened for the guest: the engine has opened its own files by then.
static GUARDED: AtomicBool = AtomicBool::new(false);

/// From now on, [`openat`] checks the files that it opens.
pub(crate) fn guard_files() {
    GUARDED.store(true, Ordering::Relaxed);
}

/// Replaces the C library's `openat(2)`, by which WasmEdge opens the files that a guest names.
///
/// The root of a container shows `/proc`, `/sys` and `/dev`. By `/proc/self/mem`, a guest could
/// write to this process, and would no longer be a guest. So this function refuses files of the
/// kernel and devices with `EACCES`, and follows no magic link.
///
/// # Safety
///
/// As `openat(2)`: `path` is NUL-terminated.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn openat(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: libc::mode_t,
) -> c_int {
    let creates = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    let mode = if creates { mode } else { 0 };
    // SAFETY: `open_how` is plain integers; all zeroes is its default.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from(flags.unsigned_abs());
    how.mode = mode.into();
    let guarded = GUARDED.load(Ordering::Relaxed);
    how.resolve = if guarded { libc::RESOLVE_NO_MAGICLINKS } else { 0 };
    let size = size_of::<libc::open_how>();
    // SAFETY: the path comes from the caller of this function, which keeps the contract above.
    // `how` lives across the call, and its size is passed.
    let mut opened =
        unsafe { libc::syscall(libc::SYS_openat2, directory, path, &raw const how, size) };
    // A filter forbids openat2, or the kernel is older. WasmEdge follows links itself, and cannot
    // reach the magic links of procfs.
    let error = io::Error::last_os_error().raw_os_error();
    if opened < 0 && matches!(error, Some(libc::ENOSYS | libc::EPERM)) {
        // SAFETY: as above.
        opened = unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) };
    }
    let opened = c_int::try_from(opened).unwrap_or(-1);
    // SAFETY: this call has just opened it, and nobody else knows its number.
    if opened >= 0 && guarded && !files::is_for_guests(unsafe { BorrowedFd::borrow_raw(opened) }) {
        // SAFETY: as above.
        unsafe { libc::close(opened) };
        // SAFETY: takes nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the address of this thread's errno is always valid.
        unsafe { *errno = libc::EACCES };
        return -1;
    }
    opened
}

/// The addresses that WasmEdge reserves for a guest's memories, from 4 GiB before each memory on.
/// At first, all of them are guard pages.
static KEPT: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

/// How many addresses WasmEdge reserves for one memory.
const KEPT_FOR_ONE: usize = 12 << 30;

/// Replaces the C library's `mmap(2)`, by which WasmEdge reserves addresses for a memory and makes
/// the memory grow.
///
/// WasmEdge maps new pages over guard pages (`MAP_FIXED`). Before Linux 6.12, the kernel removes
/// the old pages first. If it then has no memory to promise (`vm.overcommit_memory`), the addresses
/// are free. The engine's next mapping could get them, and the guest's native code would read and
/// write it. So a memory grows by a change of protection, which has no effect if it fails.
///
/// # Safety
///
/// As `mmap(2)`: with `MAP_FIXED`, nobody needs the old mapping.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    descriptor: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    const GROWS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let range = address as usize..(address as usize).saturating_add(length);
    if flags == GROWS
        && let Ok(kept) = KEPT.lock()
        && kept.iter().any(|kept| kept.start <= range.start && range.end <= kept.end)
    {
        // SAFETY: the range is inside one that WasmEdge reserves for a memory, so it is mapped, and
        // only WasmEdge uses it. Pages that were never used are zero.
        let changed = unsafe { libc::mprotect(address, length, protection) };
        return if changed == 0 { address } else { libc::MAP_FAILED };
    }
    // SAFETY: the arguments come from the caller of this function, which keeps the contract above.
    // On failure the call sets errno and returns -1, which is `MAP_FAILED`.
    let mapped = unsafe {
        libc::syscall(libc::SYS_mmap, address, length, protection, flags, descriptor, offset)
    } as *mut c_void;
    if mapped != libc::MAP_FAILED
        && length == KEPT_FOR_ONE
        && protection == libc::PROT_NONE
        && let Ok(mut kept) = KEPT.lock()
    {
        kept.push(mapped as usize..mapped as usize + length);
    }
    mapped
}

/// The largest piece of memory that WasmEdge may allocate for itself. The interpreter's stack is
/// such a piece, and grows by doubling, without end.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on, larger allocations are a trap. A linear memory does not count, because it is
/// mapped.
pub(crate) fn limit_pieces(bytes: usize) {
    LARGEST.store(bytes, Ordering::Relaxed);
}

/// Replaces `operator new` of the C++ library.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _Znwm(size: usize) -> *mut c_void {
    let end = |message: &'static [u8]| -> ! {
        // SAFETY: write(2) reads as many bytes as the message has. If standard error is closed,
        // nobody can see the message.
        unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
        exit_now(TRAPPED)
    };
    if size > LARGEST.load(Ordering::Relaxed) {
        end(b"rt-wasmedge: trap: call stack exhausted, or a table or array too large\n");
    }
    // SAFETY: malloc(3) takes any size; 0 may give null.
    let piece = unsafe { libc::malloc(size.max(1)) };
    if piece.is_null() {
        end(b"rt-wasmedge: trap: out of memory\n");
    }
    piece
}

/// Replaces the constructor of the C++ library's `std::random_device`, which asks the processor for
/// its features. In a virtual machine, the answer takes some 10 µs, several times at each start.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _ZNSt13random_device7_M_initERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE(
    _device: *mut c_void,
    _token: *const c_void,
) {
}

/// Replaces the destructor of `std::random_device`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _ZNSt13random_device7_M_finiEv(_device: *mut c_void) {}

/// Replaces `std::random_device`'s numbers by those of the kernel.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _ZNSt13random_device9_M_getvalEv(_device: *mut c_void) -> c_uint {
    let mut number: c_uint = 0;
    let size = size_of::<c_uint>();
    // SAFETY: `number` is a place for as many bytes.
    while unsafe { libc::getrandom((&raw mut number).cast(), size, 0) } != 4 {}
    number
}
