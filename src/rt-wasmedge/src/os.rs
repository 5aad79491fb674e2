//! The one door to `unsafe`: the process itself, and calls of WasmEdge's C interface that its Rust
//! one lacks. Two rooms lie behind it: a run whose instructions are counted, and functions in the
//! place of libraries'.
#![allow(
    unsafe_code,
    reason = "signal handlers, descriptors and C calls without a safe wrapper; nothing else may use unsafe"
)]

mod fuel;
mod interposed;

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;

pub(crate) use fuel::{Source, run_with_fuel};
pub(crate) use interposed::{guard_files, limit_pieces};
use wasmedge_sdk::AsInstance;
use wasmedge_sys::ffi;

unsafe extern "C" {
    /// glibc, `<nss.h>`.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// The signals that end a container.
const ENDING: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

extern "C" fn end(signal: c_int) {
    // SAFETY: _exit(2) is async-signal-safe (signal-safety(7)) and ends the process.
    unsafe { libc::_exit(128 + signal) }
}

/// Ends the process at once with 128+n on the signals that ask for an end, then lets those through
/// that are waiting. The first process of a pid namespace gets only signals that it handles
/// (`pid_namespaces(7)`).
pub(crate) fn end_on_signals() {
    // SAFETY: sigset_t is plain integers, and sigemptyset makes it valid whatever was in it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place to write to.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in ENDING {
        let handler = end as extern "C" fn(c_int);
        // SAFETY: the handler has the type that signal(2) wants and calls one async-signal-safe
        // function.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        // SAFETY: `set` is initialised, and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // Rust's runtime ignores it; a guest that writes to a closed pipe shall end as a C program
    // does. SAFETY: SIG_DFL runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `set` is initialised and only read.
    unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
}

/// What timeout(1) ends with too.
const TIMED_OUT: c_int = 124;

extern "C" fn end_of_time(_signal: c_int) {
    const MESSAGE: &[u8] = b"rt-wasmedge: its time is over\n";
    // With standard error closed there is nobody to tell.
    // SAFETY: write(2) is async-signal-safe (signal-safety(7)); the message is as long as it says.
    unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: _exit(2) is async-signal-safe and ends the process.
    unsafe { libc::_exit(TIMED_OUT) }
}

/// Ends the process when so many milliseconds are over, whatever it does then (`setitimer(2)`).
pub(crate) fn end_after(milliseconds: c_int) -> Result<(), String> {
    let handler = end_of_time as extern "C" fn(c_int);
    // SAFETY: the handler has the type that signal(2) wants and calls two async-signal-safe
    // functions.
    unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
    let value = libc::timeval {
        tv_sec: (milliseconds / 1000).into(),
        tv_usec: (milliseconds % 1000 * 1000).into(),
    };
    let timer =
        libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: value };
    // SAFETY: `timer` is initialised and only read; the old value is not asked for.
    if unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) } < 0 {
        return Err(format!("set a timer: {}", io::Error::last_os_error()));
    }
    Ok(())
}

/// Has the kernel end this process when the one that started it has ended, and keep others out of
/// it. That one reads what this process prints.
pub(crate) fn keep_to_parent() {
    // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // It may have ended before; then nobody has the other end of the pipe, and no signal comes.
    let mut out = libc::pollfd { fd: 1, events: 0, revents: 0 };
    // SAFETY: poll(2) writes to the one structure that it is given, and does not wait.
    if unsafe { libc::poll(&raw mut out, 1, 0) } > 0 && out.revents & libc::POLLERR != 0 {
        exit_now(128 + libc::SIGPIPE);
    }
    // The first process of a pid namespace gets it only by a handler.
    let handler = end as extern "C" fn(c_int);
    // SAFETY: the handler has the type that signal(2) wants and calls one async-signal-safe
    // function.
    unsafe { libc::signal(libc::SIGXCPU, handler as libc::sighandler_t) };
    // Nor shall another process of its user change what it makes.
    // SAFETY: prctl(2) with PR_SET_DUMPABLE takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Ends the process without running destructors or exit handlers: those of WasmEdge would only free
/// memory.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Takes over a descriptor that `rt` named on the command line.
pub(crate) fn own(descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_GETFD reads nothing of this process's memory; it fails for a number
    // that is not open.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (just checked) and, by the contract, was passed for this
    // program to own; the contract's parser refuses one number in two places, and each of its
    // numbers is taken over once.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Closes every descriptor from 3 on but these, which no program that this one might start would
/// inherit.
pub(crate) fn close_all_but(kept: &[c_int]) -> Result<(), String> {
    let number = |kept: &c_int| u32::try_from(*kept).map_err(|_| "not a descriptor".to_owned());
    let mut kept = kept.iter().map(number).collect::<Result<Vec<u32>, String>>()?;
    kept.sort_unstable();
    let failed = || format!("close what is not needed: {}", io::Error::last_os_error());
    let mut first = 3;
    for kept in kept {
        if first < kept {
            close_range(first, kept - 1).map_err(|()| failed())?;
        }
        // SAFETY: fcntl(2) with F_SETFD touches no memory.
        if unsafe { libc::syscall(libc::SYS_fcntl, kept, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(failed());
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX).map_err(|()| failed())
}

fn close_range(first: u32, last: u32) -> Result<(), ()> {
    // SAFETY: what was read through descriptors is in memory, and their owners are gone; no other
    // code of this process holds one yet.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
        Err(())
    } else {
        Ok(())
    }
}

/// Closes a descriptor that was kept ([`close_all_but`]) and is not needed any longer.
pub(crate) fn close(kept: c_int) {
    // It may be closed already; then nothing is left to be done.
    drop(own(kept));
}

/// Host names are looked up in `/etc/hosts` and by DNS, whatever an image's `/etc/nsswitch.conf`
/// says: it could name a library of the image's, which would be loaded here. Both are part of the C
/// library itself (glibc 2.34). Whether that could be had.
#[must_use]
pub(crate) fn fix_name_lookups() -> bool {
    let fixed = [
        (c"hosts", c"files dns"),
        (c"services", c"files"),
        (c"passwd", c"files"),
        (c"group", c"files"),
    ];
    fixed.iter().all(|(database, services)| {
        // SAFETY: both strings are NUL-terminated literals that live for ever.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) == 0 }
    })
}

/// Gives a module's memory a name that the kernel shows in `/proc/PID/maps`, by which `rt events`
/// finds it, as far as it may grow. A kernel that has no such names (before 5.17, or built without)
/// shows none.
pub(crate) fn name_memory(instance: &wasmedge_sys::Instance) {
    // SAFETY: the instance is borrowed for the time of the call.
    name_memory_of(unsafe { instance.as_ptr() });
}

fn name_memory_of(instance: *const ffi::WasmEdge_ModuleInstanceContext) {
    // <linux/prctl.h>
    const PR_SET_VMA: c_int = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: libc::c_ulong = 0;
    const MOST: libc::c_ulong = 4 << 30;
    // SAFETY: the literal is NUL-terminated, and copied.
    let name = unsafe { ffi::WasmEdge_StringCreateByCString(c"memory".as_ptr()) };
    // SAFETY: the instance lives; what is found in it lives as long.
    let memory = unsafe { ffi::WasmEdge_ModuleInstanceFindMemory(instance, name) };
    if memory.is_null() {
        return;
    }
    // SAFETY: `memory` is one; a range that it has not is answered by null.
    let base = unsafe { ffi::WasmEdge_MemoryInstanceGetPointerConst(memory, 0, 1) };
    if base.is_null() {
        return;
    }
    // SAFETY: prctl(2) names mappings, and changes nothing in them.
    unsafe { libc::prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, base, MOST, c"wasm-memory".as_ptr()) };
}

/// Names the process after the guest's program, for ps(1): the kernel cuts it to 15 bytes.
pub(crate) fn name_process(program: &str) {
    let name = program.rsplit('/').next().unwrap_or(program);
    if let Ok(name) = CString::new(name) {
        // SAFETY: the name is NUL-terminated and only read.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// From now on, this process may map so many bytes more that it can write to (`RLIMIT_DATA`,
/// getrlimit(2)): then a memory does not grow, or an allocation fails, before the kernel would kill
/// it for its container's limit.
pub(crate) fn limit_data(more: u64) -> Result<(), String> {
    let status = std::fs::read_to_string("/proc/self/status");
    let status = status.map_err(|error| format!("read `/proc/self/status`: {error}"))?;
    let mapped = status.lines().find_map(|line| {
        line.strip_prefix("VmData:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    let most = mapped.unwrap_or(0).saturating_mul(1024).saturating_add(more);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place to write to.
    if unsafe { libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit) } < 0 {
        return Err(format!("get RLIMIT_DATA: {}", io::Error::last_os_error()));
    }
    limit.rlim_cur = limit.rlim_cur.min(most);
    // SAFETY: `limit` is initialised and only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) } < 0 {
        return Err(format!("set RLIMIT_DATA: {}", io::Error::last_os_error()));
    }
    Ok(())
}

/// Gives memory that is free back to the kernel (`malloc_trim(3)`).
pub(crate) fn trim_memory() {
    // SAFETY: works on the allocator's own free memory; the process has one thread.
    unsafe { libc::malloc_trim(0) };
}

static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

unsafe extern "C" fn keep(message: *const ffi::WasmEdge_LogMessage) {
    // SAFETY: WasmEdge passes a valid message for the time of the call (its `basic.h`).
    let Some(message) = (unsafe { message.as_ref() }) else { return };
    let text = message.Message;
    if text.Buf.is_null() {
        return;
    }
    // SAFETY: a WasmEdge_String is `Length` bytes at `Buf`, which is not null here.
    let bytes = unsafe { std::slice::from_raw_parts(text.Buf.cast::<u8>(), text.Length as usize) };
    if let Ok(mut log) = LOG.lock() {
        log.push(String::from_utf8_lossy(bytes).into_owned());
    }
}

/// Keeps WasmEdge's own log for [`take_log`]: it would go to standard output, which is the guest's.
pub(crate) fn keep_log() {
    // SAFETY: sets a level; takes no pointer.
    unsafe { ffi::WasmEdge_LogSetErrorLevel() };
    // SAFETY: the callback has the type that WasmEdge wants and lives as long as the program.
    unsafe { ffi::WasmEdge_LogSetCallback(Some(keep)) };
}

/// What WasmEdge has logged so far.
pub(crate) fn take_log() -> Vec<String> {
    LOG.lock().map(|mut log| std::mem::take(&mut *log)).unwrap_or_default()
}
