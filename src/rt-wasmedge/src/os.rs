//! The one door to `unsafe`: the process itself, and the two calls of WasmEdge's C API that its Rust API lacks.
#![allow(
    unsafe_code,
    reason = "signal handlers, descriptors and C calls without a safe wrapper; nothing else may use unsafe"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use wasmedge_sdk::{AsInstance, RunMode};
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

/// Ends the process at once with 128+n on the signals that ask for an end, then lets those through that are waiting. The
/// first process of a pid namespace gets only signals that it handles (`pid_namespaces(7)`).
pub(crate) fn end_on_signals() {
    // SAFETY: sigset_t is plain integers, and sigemptyset makes it valid whatever was in it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place to write to.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in ENDING {
        let handler = end as extern "C" fn(c_int);
        // SAFETY: the handler has the type that signal(2) wants and calls one async-signal-safe function.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        // SAFETY: `set` is initialised, and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // Rust's runtime ignores it; a guest that writes to a closed pipe shall end as a C program does.
    // SAFETY: SIG_DFL runs no code.
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
    // SAFETY: the handler has the type that signal(2) wants and calls two async-signal-safe functions.
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

/// What WasmEdge waits by for clocks and sockets (`epoll_wait(2)`), in the C library's place: the build exports this name, and
/// the loader takes the program's before any library's.
///
/// A process that was stopped and goes on, by SIGCONT, a freezer or a tracer, is told EINTR here though no handler ran
/// (`signal(7)`, "Interruption of system calls and library functions by stop signals"); WasmEdge hands that to the guest, whose
/// library takes it for a failure. So the wait goes on, for what is left of its time.
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
    let end = u64::try_from(timeout).map(|ms| Instant::now() + Duration::from_millis(ms)).ok();
    let mut left = timeout;
    loop {
        // SAFETY: the arguments are the caller's, who keeps the contract above; the null signal mask is not read.
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

/// Filesystems by which the kernel shows itself, `<linux/magic.h>`: proc, sysfs, both cgroups, debugfs, tracefs, securityfs, bpf,
/// pstore, efivarfs, binfmt_misc, selinuxfs, configfs, nsfs, devpts.
const KERNELS: [u64; 15] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x4249_4e4d,
    0xf97c_ff8c,
    0x6265_6570,
    0x6e73_6673,
    0x1cd1,
];

/// Devices that are no more than a file: null, zero, full, random, urandom.
const PLAIN: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// Whether what is opened is a guest's wish: the engine's own are over then.
static GUARDED: AtomicBool = AtomicBool::new(false);

/// From now on, what is opened is looked at ([`openat`]).
pub(crate) fn guard_files() {
    GUARDED.store(true, Ordering::Relaxed);
}

/// How WasmEdge opens what a guest names (`openat(2)`), in the C library's place, as [`epoll_wait`].
///
/// The root of a container shows `/proc`, `/sys` and `/dev`. By `/proc/self/mem` a guest could write to this process, and so would
/// be no guest any longer: what is the kernel's or a device is refused, `EACCES`, and no magic link is followed.
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
    // SAFETY: the path is the caller's, who keeps the contract above; `how` lives across the call, and its size is passed.
    let mut opened =
        unsafe { libc::syscall(libc::SYS_openat2, directory, path, &raw const how, size) };
    // Forbidden by a filter, or older than the kernel: WasmEdge follows links itself, and gets to none of procfs's.
    let error = io::Error::last_os_error().raw_os_error();
    if opened < 0 && matches!(error, Some(libc::ENOSYS | libc::EPERM)) {
        // SAFETY: as above.
        opened = unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) };
    }
    let opened = c_int::try_from(opened).unwrap_or(-1);
    if opened >= 0 && guarded && !is_for_guests(opened) {
        drop(own(opened));
        // SAFETY: takes nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the address of this thread's errno is always valid.
        unsafe { *errno = libc::EACCES };
        return -1;
    }
    opened
}

/// Whether what was opened is a file, and not the kernel's own or a device.
fn is_for_guests(descriptor: c_int) -> bool {
    // SAFETY: `stat` is plain integers.
    let mut file: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `file` is a valid place to write to.
    if unsafe { libc::fstat(descriptor, &raw mut file) } < 0 {
        return false;
    }
    if matches!(file.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
        let number = (libc::major(file.st_rdev), libc::minor(file.st_rdev));
        return file.st_mode & libc::S_IFMT == libc::S_IFCHR && PLAIN.contains(&number);
    }
    // SAFETY: `statfs` is plain integers.
    let mut filesystem: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `filesystem` is a valid place to write to.
    if unsafe { libc::fstatfs(descriptor, &raw mut filesystem) } < 0 {
        return false;
    }
    // As the kernel has it, a number of 32 bits.
    let kind = filesystem.f_type.cast_unsigned() & 0xffff_ffff;
    !KERNELS.contains(&kind)
}

/// The largest piece of memory that WasmEdge may ask for by itself: the interpreter's stack is one, and grows by doubling, without
/// end.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on, larger ones are a trap. A linear memory is none of them: it is mapped.
pub(crate) fn limit_pieces(bytes: usize) {
    LARGEST.store(bytes, Ordering::Relaxed);
}

/// C++'s `operator new`, in its library's place, as [`epoll_wait`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _Znwm(size: usize) -> *mut c_void {
    let end = |message: &'static [u8]| -> ! {
        // SAFETY: write(2) reads as many bytes as the message has. With standard error closed there is nobody to tell.
        unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
        exit_now(TRAPPED)
    };
    if size > LARGEST.load(Ordering::Relaxed) {
        end(b"rt-wasmedge: trap: call stack exhausted, or a table too large\n");
    }
    // SAFETY: malloc(3) takes any size; 0 may give null.
    let piece = unsafe { libc::malloc(size.max(1)) };
    if piece.is_null() {
        end(b"rt-wasmedge: trap: out of memory\n");
    }
    piece
}

/// As in `main`.
const TRAPPED: c_int = 134;

/// Has the kernel end this process when the one that started it has ended, and keep others out of it.
pub(crate) fn keep_to_parent() {
    // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // The first process of a pid namespace gets it only by a handler.
    let handler = end as extern "C" fn(c_int);
    // SAFETY: the handler has the type that signal(2) wants and calls one async-signal-safe function.
    unsafe { libc::signal(libc::SIGXCPU, handler as libc::sighandler_t) };
    // Nor shall another process of its user change what it makes.
    // SAFETY: prctl(2) with PR_SET_DUMPABLE takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Ends the process without running destructors or exit handlers: those of WasmEdge would only free memory.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Takes over a descriptor that `rt` named on the command line.
pub(crate) fn own(descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_GETFD reads nothing of this process's memory; it fails for a number that is not open.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (just checked) and, by the contract, was passed for this program to own; the contract's
    // parser refuses one number in two places, and each of its numbers is taken over once.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Closes every descriptor from 3 on but these, which no program that this one might start would inherit.
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
    // SAFETY: what was read through descriptors is in memory, and their owners are gone; no other code of this process holds
    // one yet.
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

/// Host names are looked up in `/etc/hosts` and by DNS, whatever an image's `/etc/nsswitch.conf` says: it could name a
/// library of the image's, which would be loaded here. Both are part of the C library itself (glibc 2.34).
pub(crate) fn fix_name_lookups() {
    for (database, services) in [
        (c"hosts", c"files dns"),
        (c"services", c"files"),
        (c"passwd", c"files"),
        (c"group", c"files"),
    ] {
        // SAFETY: both strings are NUL-terminated literals that live for ever.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}

/// Where a module comes from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Bytes(&'a [u8]),
    /// The descriptor of what it was compiled to, which is closed when it was loaded.
    Native(c_int),
}

/// Runs a module's `_start` for so many instructions. By WasmEdge's virtual machine, since wasmedge-sys frees the statistics,
/// which count, as soon as an executor has them. The outer error is of a module that never started, the inner one a trap.
pub(crate) fn run_with_fuel(
    source: Source<'_>,
    wasi: &mut wasmedge_sys::Instance,
    most_pages: Option<u32>,
    timeout: Option<c_int>,
    fuel: u64,
) -> Result<Result<(), String>, String> {
    let mut config = wasmedge_sys::Config::create().map_err(|error| error.to_string())?;
    config.measure_cost(true);
    config.set_run_mode(match source {
        Source::Bytes(_) => RunMode::Interpreter,
        Source::Native(_) => RunMode::Aot,
    });
    if let Some(pages) = most_pages {
        config.set_max_memory_pages(pages);
    }
    // SAFETY: the configuration lives across the call, and a store of its own is made for null. The machine is never freed: the
    // process ends with it.
    let vm = unsafe { ffi::WasmEdge_VMCreate(config.as_ptr(), ptr::null_mut()) };
    if vm.is_null() {
        return Err("make a virtual machine".into());
    }
    // SAFETY: `vm` is a machine, and its statistics live as long as it does.
    let statistics = unsafe { ffi::WasmEdge_VMGetStatisticsContext(vm) };
    // SAFETY: as above; a number is set.
    unsafe { ffi::WasmEdge_StatisticsSetCostLimit(statistics, fuel) };
    // SAFETY: the instance is borrowed, and not freed before the machine has run for the last time.
    let wasi = unsafe { wasi.as_ptr() };
    // SAFETY: both are what they are said to be.
    check(unsafe { ffi::WasmEdge_VMRegisterModuleFromImport(vm, wasi) })?;
    let loaded = match source {
        Source::Bytes(bytes) => {
            // SAFETY: the bytes are copied (`wasmedge_basic.h`).
            let copy = unsafe {
                ffi::WasmEdge_BytesCreate(bytes.as_ptr(), u32::try_from(bytes.len()).unwrap_or(0))
            };
            // SAFETY: `copy` was just made, and is not freed.
            unsafe { ffi::WasmEdge_VMLoadWasmFromBytes(vm, copy) }
        }
        Source::Native(descriptor) => {
            let path = CString::new(format!("/proc/self/fd/{descriptor}")).unwrap_or_default();
            // SAFETY: the path is NUL-terminated and lives across the call.
            let loaded = unsafe { ffi::WasmEdge_VMLoadWasmFromFile(vm, path.as_ptr()) };
            close(descriptor);
            loaded
        }
    };
    check(loaded)?;
    // SAFETY: the machine has a module.
    check(unsafe { ffi::WasmEdge_VMValidate(vm) })?;
    if let Some(timeout) = timeout {
        end_after(timeout)?;
    }
    // SAFETY: it is validated. A start function runs in here, and may end everything.
    let result = unsafe { ffi::WasmEdge_VMInstantiate(vm) };
    if check(result).is_err() || ended(result) {
        return if ended(result) || is_of_execution(result) {
            Ok(check(result))
        } else {
            Err(check(result).err().unwrap_or_default())
        };
    }
    take_log();
    trim_memory();
    // SAFETY: the machine has an active module, which lives as long as it does.
    name_memory_of(unsafe { ffi::WasmEdge_VMGetActiveModule(vm) });
    // SAFETY: the literal is NUL-terminated, and copied.
    let start = unsafe { ffi::WasmEdge_StringCreateByCString(c"_start".as_ptr()) };
    // SAFETY: no arguments and no results are passed, as their numbers say.
    let result = unsafe { ffi::WasmEdge_VMExecute(vm, start, ptr::null(), 0, ptr::null_mut(), 0) };
    Ok(check(result))
}

/// Whether the guest has ended by `proc_exit` (`WasmEdge_ErrCode_Terminated`).
fn ended(result: ffi::WasmEdge_Result) -> bool {
    // SAFETY: takes a plain value.
    unsafe { ffi::WasmEdge_ResultGetCode(result) == 1 }
}

/// Whether it is a trap: the codes of execution are from 0x400 on, and that of costs is 3 (`enum_errcode.h`).
fn is_of_execution(result: ffi::WasmEdge_Result) -> bool {
    // SAFETY: takes a plain value.
    let code = unsafe { ffi::WasmEdge_ResultGetCode(result) };
    (0x400..0x500).contains(&code) || code == 3
}

/// The text of an error. What ended by `proc_exit` is none.
fn check(result: ffi::WasmEdge_Result) -> Result<(), String> {
    // SAFETY: takes a plain value.
    if unsafe { ffi::WasmEdge_ResultOK(result) } {
        return Ok(());
    }
    // SAFETY: takes a plain value, and returns a literal of the library's (`wasmedge_basic.h`).
    let message = unsafe { ffi::WasmEdge_ResultGetMessage(result) };
    // SAFETY: a literal is NUL-terminated, and lives for ever.
    let message = unsafe { CStr::from_ptr(message) };
    Err(message.to_string_lossy().into_owned())
}

/// Gives a module's memory a name that the kernel shows in `/proc/PID/maps`, by which `rt events` finds it, as far as it may grow.
/// A kernel that has no such names (before 5.17, or built without) shows none.
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
