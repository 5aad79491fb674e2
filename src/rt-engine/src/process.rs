//! The engine program's own process: signals, descriptors, limits and names. The only file of this
//! library with `unsafe`.
#![allow(
    unsafe_code,
    reason = "signal handlers, descriptors and C calls without a safe wrapper; nothing else may use unsafe"
)]

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::contract::Descriptor;
use crate::{TIMED_OUT, message};

/// The termination signals.
const ENDING: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

extern "C" fn end(signal: c_int) {
    // SAFETY: _exit(2) is async-signal-safe (signal-safety(7)) and ends the process.
    unsafe { libc::_exit(128 + signal) }
}

/// Makes termination signals end the process at once, with 128+n, and then unblocks them. SIGABRT
/// ends it in the same way. The first process of a pid namespace gets only signals that it handles
/// (`pid_namespaces(7)`).
///
/// Call this before threads start, because they inherit the signal mask.
pub fn end_on_signals() {
    // SAFETY: sigset_t is plain integers, and sigemptyset makes it valid, whatever it contained.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place to write to.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in ENDING {
        let handler = end as extern "C" fn(c_int);
        // SAFETY: the handler has the type that signal(2) requires, and calls one async-signal-safe
        // function.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        // SAFETY: `set` is initialised, and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // abort(3), for example after a failed allocation. As the first process of a pid namespace,
    // this process would not get the signal, and would die of a fault instead (139). SAFETY: as
    // above.
    unsafe { libc::signal(libc::SIGABRT, end as extern "C" fn(c_int) as libc::sighandler_t) };
    // Rust's runtime ignores SIGPIPE. A guest that writes to a closed pipe must end as a C program
    // does.
    // SAFETY: SIG_DFL runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `set` is initialised and only read.
    unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
}

/// Blocks the termination signals again, for a program that becomes another one: it would lose a
/// signal that comes before the other one handles signals.
///
/// Call this before threads start, because they inherit the signal mask.
pub fn hold_signals() {
    block(&ENDING);
}

/// Opens a descriptor on which SIGTERM and SIGINT can be read from now on (`signalfd(2)`), instead
/// of ending the process. The other termination signals still end it.
///
/// Call this before threads start, because they inherit the signal mask.
pub fn hear_endings() -> io::Result<File> {
    // A client that goes away is an error of its connection, and ends nothing else: writev(2) on a
    // socket knows no MSG_NOSIGNAL. Only the first process of a pid namespace would be spared.
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let set = block(&[libc::SIGTERM, libc::SIGINT]);
    // SAFETY: `set` is initialised and only read.
    let number =
        unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has opened this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// Blocks these signals, and returns the set of them.
fn block(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain integers, and sigemptyset makes it valid, whatever it contained.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place to write to.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: `set` is initialised, and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    // SAFETY: `set` is initialised and only read.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    set
}

/// The message that the timer's handler writes. It is set before the handler.
static TIME_IS_OVER: OnceLock<String> = OnceLock::new();

extern "C" fn end_of_time(_signal: c_int) {
    let mut stderr = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
    // A full pipe that nobody reads would hold up the end.
    // SAFETY: poll(2) is async-signal-safe (signal-safety(7)), writes to the one structure that it
    // is given, and does not wait.
    let is_ready = unsafe { libc::poll(&raw mut stderr, 1, 0) } > 0;
    // This is an atomic load, which a signal handler may do.
    if let Some(message) = TIME_IS_OVER.get().filter(|_| is_ready) {
        // If standard error is closed, nobody can see the message.
        // SAFETY: write(2) is async-signal-safe, and the length is the message's own.
        unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
    }
    // SAFETY: _exit(2) is async-signal-safe and ends the process.
    unsafe { libc::_exit(c_int::from(TIMED_OUT)) }
}

/// Ends the process after this many milliseconds, whatever it is doing (`setitimer(2)`).
///
/// Other threads may run, because the timer belongs to the process.
pub fn end_after(milliseconds: c_int) -> Result<(), String> {
    TIME_IS_OVER.get_or_init(|| message::line("its time is over"));
    let handler = end_of_time as extern "C" fn(c_int);
    // SAFETY: the handler has the type that signal(2) requires, reads one atomic value, and calls
    // two async-signal-safe functions.
    unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
    let value = libc::timeval {
        tv_sec: (milliseconds / 1000).into(),
        tv_usec: (milliseconds % 1000 * 1000).into(),
    };
    let timer =
        libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: value };
    // SAFETY: `timer` is initialised and only read. The old value is not requested.
    if unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) } < 0 {
        return Err(format!("set a timer: {}", io::Error::last_os_error()));
    }
    Ok(())
}

/// Whether a write to this file does not wait: it has room for `PIPE_BUF` bytes, or nobody reads it
/// any more (poll(2)). Any thread may call this.
pub fn can_write(file: &impl AsFd) -> bool {
    let mut polled =
        libc::pollfd { fd: file.as_fd().as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll(2) writes to the one structure that it is given, and does not wait.
    (unsafe { libc::poll(&raw mut polled, 1, 0) }) > 0
}

/// The function that a timer's handler calls. It is set before the handler.
static SLICE_IS_OVER: OnceLock<fn()> = OnceLock::new();

extern "C" fn end_of_slice(_signal: c_int) {
    // This is an atomic load, which a signal handler may do.
    if let Some(call) = SLICE_IS_OVER.get() {
        call();
    }
}

/// Calls a function each time that this process has used this many milliseconds of processor time
/// (`setitimer(2)`, `ITIMER_PROF`): an idle process is not woken up. Only the first call has an
/// effect.
///
/// Other threads may run, because the timer belongs to the process.
///
/// # Safety
///
/// `call` runs in a signal handler, so it may do only what is async-signal-safe
/// (signal-safety(7)).
pub unsafe fn at_each_slice(milliseconds: u16, call: fn()) -> Result<(), String> {
    SLICE_IS_OVER.get_or_init(|| call);
    // SAFETY: `sigaction` is plain integers and pointers, for which zeroes are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler = end_of_slice as extern "C" fn(c_int);
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler has the type that sigaction(2) requires, reads one atomic value and calls
    // a function that is async-signal-safe by this function's contract.
    if unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) } < 0 {
        return Err(format!("handle SIGPROF: {}", io::Error::last_os_error()));
    }
    let slice = libc::timeval { tv_sec: 0, tv_usec: (u32::from(milliseconds) * 1000).into() };
    let timer = libc::itimerval { it_interval: slice, it_value: slice };
    // SAFETY: `timer` is initialised and only read. The old value is not requested.
    if unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) } < 0 {
        return Err(format!("set a timer: {}", io::Error::last_os_error()));
    }
    Ok(())
}

/// For a compiler, whose output `rt` keeps. The kernel ends this process when its parent has ended.
/// The process ends itself when its processor time is over (SIGXCPU). Other processes cannot access
/// it.
///
/// The main thread calls this before other threads start, because `PR_SET_PDEATHSIG` belongs to a
/// thread.
pub fn keep_to_parent() {
    // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // The parent may have ended before. Then no process has the other end of the pipe, and no
    // signal comes.
    let mut out = libc::pollfd { fd: 1, events: 0, revents: 0 };
    // SAFETY: poll(2) writes to the one structure that it is given, and does not wait.
    if unsafe { libc::poll(&raw mut out, 1, 0) } > 0 && out.revents & libc::POLLERR != 0 {
        end(libc::SIGPIPE);
    }
    // The first process of a pid namespace gets SIGXCPU only if it handles it.
    let handler = end as extern "C" fn(c_int);
    // SAFETY: the handler has the type that signal(2) requires, and calls one async-signal-safe
    // function.
    unsafe { libc::signal(libc::SIGXCPU, handler as libc::sighandler_t) };
    // Another process of the same user must not change the compiler's output.
    // SAFETY: prctl(2) with PR_SET_DUMPABLE takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Ends the process without destructors or exit handlers: those of an engine would only free
/// memory. Any thread may call this.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status.into()) }
}

/// Shows that the descriptors of the command line are open, and that no others from 3 on were.
#[derive(Debug)]
pub(crate) struct Open(());

/// Closes each descriptor from 3 on that is not one of these. Nothing that this process starts
/// inherits these. Fails if one of them is not open.
///
/// Call this before threads start, and before the process opens a file: it would be closed.
pub(crate) fn close_all_but<'d>(
    kept: impl Iterator<Item = &'d Descriptor>,
) -> Result<Open, String> {
    let mut kept: Vec<c_int> = kept.map(Descriptor::number).collect();
    kept.sort_unstable();
    let failed = || format!("close what is not needed: {}", io::Error::last_os_error());
    let mut first = 3;
    for kept in kept {
        if first < kept {
            close_range(first.unsigned_abs(), kept.unsigned_abs() - 1).map_err(|()| failed())?;
        }
        // SAFETY: fcntl(2) with F_SETFD touches no memory. It fails for a number that is not open.
        if unsafe { libc::fcntl(kept, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(format!("take over descriptor {kept}: {}", io::Error::last_os_error()));
        }
        first = kept + 1;
    }
    close_range(first.unsigned_abs(), u32::MAX).map_err(|()| failed())?;
    Ok(Open(()))
}

impl Open {
    /// Takes over a descriptor of the command line.
    pub(crate) fn own(&self, descriptor: Descriptor) -> File {
        // SAFETY: the descriptor is open, as `self` shows, and by the contract `rt` has passed it
        // for this program to own. Only the parser makes a `Descriptor`. It refuses one number in
        // two places. A `Descriptor` cannot be copied, and is consumed here.
        unsafe { File::from_raw_fd(descriptor.take()) }
    }
}

fn close_range(first: u32, last: u32) -> Result<(), ()> {
    // SAFETY: no code of this process owns a descriptor from 3 on yet. The descriptors of the
    // command line get an owner after this, and the program has opened none.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
        Err(())
    } else {
        Ok(())
    }
}

/// The status of an open file (`fstat(2)`).
pub(crate) fn stat(file: BorrowedFd<'_>) -> Option<libc::stat> {
    // SAFETY: `stat` is plain integers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is a valid place to write to.
    let done = unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) };
    (done == 0).then_some(stat)
}

/// The magic number of an open file's filesystem (`fstatfs(2)`). The kernel's number has 32 bits.
pub(crate) fn filesystem(file: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: `statfs` is plain integers.
    let mut there: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `there` is a valid place to write to.
    let done = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut there) };
    u32::try_from(there.f_type & 0xffff_ffff).ok().filter(|_| done == 0)
}

/// Makes the C library look up host names in `/etc/hosts` and by DNS, whatever an image's
/// `/etc/nsswitch.conf` says. That file could name a library of the image, which this process would
/// load. Both lookups are part of the C library itself (glibc 2.34). Fails if the C library
/// refuses.
///
/// Call this before threads start, because glibc's table belongs to the process.
#[cfg(target_env = "gnu")]
pub(crate) fn fix_name_lookups() -> Result<(), String> {
    use std::ffi::c_char;

    unsafe extern "C" {
        /// glibc, `<nss.h>`.
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    let fixed = [
        (c"hosts", c"files dns"),
        (c"services", c"files"),
        (c"passwd", c"files"),
        (c"group", c"files"),
    ];
    let is_fixed = fixed.iter().all(|(database, services)| {
        // SAFETY: both strings are NUL-terminated literals that live for ever.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) == 0 }
    });
    let why = "keep the libraries that /etc/nsswitch.conf names away";
    if is_fixed { Ok(()) } else { Err(why.into()) }
}

/// Other C libraries (musl) do not have `/etc/nsswitch.conf`.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn fix_name_lookups() -> Result<(), String> {
    Ok(())
}

/// Names a guest's memory, `length` bytes from this address on. The kernel shows the name in
/// `/proc/PID/maps`, where `rt events` finds it. A kernel without such names (before 5.17, or built
/// without them) shows none. Any thread may call this.
pub fn name_memory(address: usize, length: usize) {
    // <linux/prctl.h>
    const PR_SET_VMA: c_int = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: libc::c_ulong = 0;
    // SAFETY: prctl(2) names mappings, wherever they are, and does not change their content.
    unsafe {
        libc::prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, length, c"wasm-memory".as_ptr())
    };
}

/// The number of counters of a server's statistics: those that fit into a page.
pub const COUNTERS: usize = 512;

/// Makes the counters of a server's statistics (`docs/engine.md`, "Statistics"). They are in a
/// memory file, whose name every kernel shows in `/proc/PID/maps`, where `rt events` finds it.
/// Fails where a filter forbids memory files. Any thread may call this.
pub fn statistics() -> io::Result<&'static [AtomicU64; COUNTERS]> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is NUL-terminated and only read.
    let number = unsafe { libc::memfd_create(c"http-statistics".as_ptr(), flags) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has opened this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(number) };
    let length = size_of::<[AtomicU64; COUNTERS]>();
    file.set_len(length as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl(2) with F_ADD_SEALS takes a number and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, where the kernel finds room.
    let there = unsafe { libc::mmap(ptr::null_mut(), length, rights, libc::MAP_SHARED, number, 0) };
    if there == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is as long as the array, begins at a page, holds zeroes, which are valid,
    // and stays until the process ends. Its file cannot become shorter. Only atomic operations
    // change it, here and in a process that reads this memory.
    Ok(unsafe { &*there.cast::<[AtomicU64; COUNTERS]>() })
}

/// Names the process after the guest's program, for ps(1). The kernel cuts the name to 15 bytes.
///
/// The main thread calls this, because the name belongs to a thread.
pub(crate) fn name_process(program: &str) {
    let name = program.rsplit('/').next().unwrap_or(program);
    if let Ok(name) = CString::new(name) {
        // SAFETY: the name is NUL-terminated and only read.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// From now on, this process may map only this many more writable bytes (`RLIMIT_DATA`,
/// getrlimit(2)). Then a memory does not grow, or an allocation fails, before the kernel would kill
/// the process at its container's limit.
///
/// The stacks of threads count. An engine with threads calls this after they have started.
pub fn limit_data(more: u64) -> Result<(), String> {
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

/// Returns free memory to the kernel, if the C library can (`malloc_trim(3)`). Any thread may call
/// this.
pub fn trim_memory() {
    // SAFETY: works on the allocator's own free memory, which it locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
