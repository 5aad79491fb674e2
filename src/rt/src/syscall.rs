//! System calls that rustix does not wrap, or wraps as `unsafe`. Besides the allocator, the only
//! file with `unsafe`.
//!
//! Every function is named after its manual page, and takes and returns safe types only. All of
//! `rt` is single-threaded (no code starts a thread), and several proofs below rely on that.
#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libcontainer::syscall::linux::LinuxSyscall;
use libcontainer::syscall::{Syscall, SyscallError};
use nix::fcntl::{AtFlags, FcntlArg, fcntl};
use nix::sched::CloneFlags;
use nix::sys::personality::Persona;
use rustix::event::{PollFd, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags, Result};
use rustix::process::{Pid, Resource, Rlimit};

/// Returns the errno of the last libc call if the return value is negative.
fn check(returned: libc::c_long) -> Result<libc::c_long> {
    if returned < 0 { Err(last_errno()) } else { Ok(returned) }
}

/// The same for a call that returns an address.
fn check_mapping(returned: *mut libc::c_void) -> Result<()> {
    if returned == libc::MAP_FAILED { Err(last_errno()) } else { Ok(()) }
}

/// Converts nix's errno to rustix's.
fn errno(error: nix::Error) -> Errno {
    Errno::from_raw_os_error(error as c_int)
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// `clone3(2)` with the semantics of `fork(2)`: the child gets a copy of everything. `flags` are
/// `CLONE_NEW*` and `CLONE_PARENT` only. With `cgroup`, the child is born in that cgroup
/// (`CLONE_INTO_CGROUP`, Linux 5.7). Returns `None` in the child.
pub(crate) fn clone3(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Pid>> {
    if flags & !(NAMESPACES | libc::CLONE_PARENT) != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: `clone_args` is plain integers; all zeroes is the documented default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.unsigned_abs());
    // With CLONE_PARENT, the kernel uses the parent's exit signal and requires 0 here.
    if flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: no CLONE_VM, CLONE_VFORK, CLONE_FILES or CLONE_SETTLS can be among the flags (checked
    // above). So the child runs on its own copy of memory and stack, as after fork(2). The process
    // has one thread, so no thread that the child lacks holds a lock of the C library. `args` lives
    // across the call and its size is passed.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let pid = check(pid)?;
    Ok(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::RANGE)?))
}

/// All flags that make a namespace.
const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP
    | 0x80; // CLONE_NEWTIME, <linux/sched.h>

/// From `<linux/sched.h>`. The libc crate has it as a `c_int`, which is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct mount_attr` of `mount_setattr(2)`: `MOUNT_ATTR_*` bits to set and clear, and
/// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or 0 for the propagation.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
}

/// `mount_setattr(2)` on the mount whose root is `mount` (Linux 5.12). With `recursive`, also on
/// all mounts below it.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attr: MountAttr, recursive: bool) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: 0,
    };
    set_mount_attr(mount, &attr, recursive)
}

/// `mount_setattr(2)` with `MOUNT_ATTR_IDMAP`: maps the owners of a mount's files as a user
/// namespace does.
pub(crate) fn mount_idmap(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().unsigned_abs()),
    };
    set_mount_attr(mount, &attr, recursive)
}

fn set_mount_attr(mount: BorrowedFd<'_>, attr: &libc::mount_attr, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is borrowed and open, the path is a NUL-terminated literal, `attr`
    // lives across the call and its own size is passed. The kernel only reads `attr`, and reports a
    // wrong `userns_fd` as an error.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    check(returned).map(drop)
}

/// `fchmodat2(2)` with `AT_EMPTY_PATH`: changes the mode of exactly the file of an `O_PATH`
/// descriptor (Linux 6.6).
pub(crate) fn chmod_opened(file: BorrowedFd<'_>, mode: Mode) -> Result<()> {
    // The number is the same on every architecture that Rust supports. The libc crate lacks it for
    // some.
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: the descriptor is borrowed and open, the path is a NUL-terminated literal that is
    // only read.
    let returned = unsafe {
        libc::syscall(
            SYS_FCHMODAT2,
            file.as_raw_fd(),
            c"".as_ptr(),
            mode.as_raw_mode(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(returned).map(drop)
}

/// Closes the descriptors from `first` on, permanently (`close_range(2)`). This is for descriptors
/// that this process inherited. Call it before the process opens any descriptor with such a number.
pub(crate) fn close_from(first: u32) -> Result<()> {
    // SAFETY: the caller of this function is at the start of the process. No `OwnedFd` exists yet
    // for any number from `first` on (see the contract above), so no owned descriptor is closed
    // behind its owner's back.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// The descriptors from `first` on that this process inherited. From now on, an exec closes them.
/// Call this once, before the process opens any descriptor with such a number.
pub(crate) fn inherited_from(first: u32) -> Result<Vec<OwnedFd>> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2; // <linux/close_range.h>
    // SAFETY: sets a flag of descriptors, which nobody owns yet.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })?;
    // Reads the process's own table instead of trying numbers: a descriptor can have any number.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    let own = folder.as_raw_fd();
    let mut inherited = Vec::new();
    for entry in rustix::fs::Dir::new(folder)? {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|&number: &RawFd| {
            number != own && u32::try_from(number).is_ok_and(|number| number >= first)
        }) else {
            continue;
        };
        // SAFETY: by the contract above, no `OwnedFd` has this number, except that of the folder,
        // which is left out.
        inherited.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(inherited)
}

/// Closes the descriptors from `first` on, permanently, except those in `kept` (`close_range(2)`).
///
/// This is for a process that ends in an exec or in [`exit_now`]: from now on, it neither uses nor
/// drops the other descriptors that it owned.
pub(crate) fn close_all_but(first: u32, kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|file| file.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut next = first;
    for number in kept.into_iter().filter(|number| *number >= first) {
        if number > next {
            close_range(next, number - 1)?;
        }
        next = number + 1;
    }
    close_range(next, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: by the contract of `close_all_but`, nobody uses or closes an owned descriptor of
    // these numbers any more. The borrowed descriptors in `kept` are outside of every closed range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Does the same as [`close_all_but`] by `close(2)`, for the descriptors of these numbers and with
/// one exception. Its contract applies here too.
pub(crate) fn close_each_but(numbers: std::ops::Range<RawFd>, kept: BorrowedFd<'_>) -> Result<()> {
    for number in numbers.filter(|number| *number != kept.as_raw_fd()) {
        // SAFETY: as for `close_range`; a number without a descriptor is an error.
        match check(unsafe { libc::close(number) }.into()) {
            Ok(_) | Err(Errno::BADF) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A descriptor that this process inherited, except the standard streams. Fails with `EBADF` for
/// any other number.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: reads a flag; a number without a descriptor is an error.
    let flags = check(unsafe { libc::fcntl(number, libc::F_GETFD) }.into())?;
    if number < 3 || flags & libc::c_long::from(libc::FD_CLOEXEC) != 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: an exec closes every descriptor that this process opens, but did not close those that
    // it inherited. So without that flag, the number belongs to no `OwnedFd` or `File`. The flag is
    // set below, so that the descriptor is owned once.
    let inherited = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&inherited, FdFlags::CLOEXEC)?;
    Ok(inherited)
}

/// `ppoll(2)`, or `poll(2)` if a seccomp filter forbids `ppoll` and the machine has `poll`.
pub(crate) fn poll(polled: &mut [PollFd<'_>], limit: Option<&Timespec>) -> Result<usize> {
    match rustix::event::poll(polled, limit) {
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {}
        done => return done,
    }
    let limit = limit.map_or(-1, |limit| {
        let milliseconds =
            limit.tv_sec.saturating_mul(1000).saturating_add(limit.tv_nsec / 1_000_000);
        c_int::try_from(milliseconds).unwrap_or(c_int::MAX)
    });
    // SAFETY: a `PollFd` is a `struct pollfd`, as its documentation says, and the slice has the
    // passed length.
    let ready = check(
        unsafe { libc::poll(polled.as_mut_ptr().cast(), polled.len() as libc::nfds_t, limit) }
            .into(),
    )?;
    Ok(usize::try_from(ready).unwrap_or(0))
}

/// `unshare(2)`, for namespaces only, by libcontainer. rustix calls it unsafe because of
/// `CLONE_FILES`.
pub(crate) fn unshare(namespaces: c_int) -> Result<()> {
    if namespaces & !NAMESPACES != 0 {
        return Err(Errno::INVAL);
    }
    LinuxSyscall.unshare(CloneFlags::from_bits_retain(namespaces)).map_err(|error| match error {
        SyscallError::Nix(error) => errno(error),
        // An error of the calls that do more than one thing.
        _ => Errno::IO,
    })
}

/// `execve(2)`. Returns only if it failed.
pub(crate) fn execve(path: &CStr, argv: &[CString], envp: &[CString]) -> Errno {
    nix::unistd::execve(path, argv, envp).map_or_else(errno, |never| match never {})
}

/// `execveat(2)` of the file `program`. Returns only if it failed.
pub(crate) fn fexecve(program: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> Errno {
    let program = Some(program.as_raw_fd());
    nix::unistd::execveat(program, c"", argv, envp, AtFlags::AT_EMPTY_PATH)
        .map_or_else(errno, |never| match never {})
}

/// Where the kernel keeps the parts of a process's memory: the head of `struct prctl_mm_map`
/// (`PR_SET_MM(2const)`). Addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct MemoryMap {
    pub(crate) start_code: u64,
    pub(crate) end_code: u64,
    pub(crate) start_data: u64,
    pub(crate) end_data: u64,
    pub(crate) start_brk: u64,
    /// [`run_from`] sets this one.
    pub(crate) brk: u64,
    pub(crate) start_stack: u64,
    pub(crate) arg_start: u64,
    pub(crate) arg_end: u64,
    pub(crate) env_start: u64,
    pub(crate) env_end: u64,
}

/// Makes this process run from `file`, which must be the file that it was started from, on another
/// mount. Maps the program's code from `file`, and moves its data to memory of no file. Then
/// `/proc/PID/exe` and `/proc/PID/map_files` lead to `file` only (`PR_SET_MM_MAP`). `map` is the
/// process's own, as `/proc/self/stat` has it. The kernel requires `CAP_SYS_ADMIN`, or
/// `CAP_CHECKPOINT_RESTORE`, in the user namespace. If this fails, the process goes on and may be
/// executed anew. Fails with `ENOTSUP` for a program that the kernel has not loaded itself, that
/// was relocated, or that is not static with musl.
pub(crate) fn run_from(file: BorrowedFd<'_>, map: MemoryMap) -> Result<()> {
    for part in loaded_parts(map)? {
        let is_data = part.protection & libc::PROT_WRITE != 0;
        let (flags, fd, offset) = match is_data {
            true => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            false => (libc::MAP_PRIVATE, file.as_raw_fd(), part.offset),
        };
        // SAFETY: makes a mapping at an address of the kernel's choice.
        let new =
            unsafe { libc::mmap(ptr::null_mut(), part.length, part.protection, flags, fd, offset) };
        check_mapping(new)?;
        let at: *mut libc::c_void = ptr::with_exposed_provenance_mut(part.start);
        if is_data {
            // SAFETY: both ranges have this length and are mapped. They do not overlap.
            unsafe { ptr::copy_nonoverlapping(at.cast::<u8>(), new.cast(), part.length) };
        }
        let move_there = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the range gets the same bytes at the same addresses with the same protection. The
        // code that runs here may be in it. Code: the kernel has mapped the range from the same
        // part of the same file (`loaded_parts`), and nothing has changed it, because it is not
        // writable. Data: it was just copied, and since then the process's only thread has written
        // no static variable. No code uses the address of the new mapping afterwards. The kernel
        // exchanges the mappings in one call.
        let moved = unsafe { libc::mremap(new, part.length, part.length, move_there, at) };
        check_mapping(moved)?;
    }
    /// The whole `struct prctl_mm_map`. Without an auxiliary vector, the kernel keeps its own.
    #[repr(C)]
    struct Whole {
        map: MemoryMap,
        auxv: *const u64,
        auxv_size: u32,
        exe_fd: u32,
    }
    const PR_SET_MM_MAP: c_int = 14;
    // SAFETY: asks the kernel where the heap ends.
    let brk = unsafe { libc::syscall(libc::SYS_brk, 0) };
    let whole = Whole {
        map: MemoryMap { brk: brk.unsigned_abs(), ..map },
        auxv: ptr::null(),
        auxv_size: 0,
        exe_fd: file.as_raw_fd().unsigned_abs(),
    };
    // SAFETY: the structure is complete and its size is passed. The call changes what the kernel
    // says about this process, and no memory.
    let set = unsafe {
        libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const whole, size_of::<Whole>(), 0)
    };
    check(set.into()).map(drop)
}

/// A part of this program that the kernel has mapped from its file.
struct LoadedPart {
    /// In bytes, at the begin of a page.
    start: usize,
    /// In bytes, up to the end of a page.
    length: usize,
    offset: libc::off_t,
    protection: c_int,
}

/// The parts of this program.
fn loaded_parts(map: MemoryMap) -> Result<Vec<LoadedPart>> {
    // SAFETY: reads a number of the auxiliary vector of this process.
    let number = |name| unsafe { libc::getauxval(name) };
    let (at, count) = (number(libc::AT_PHDR), number(libc::AT_PHNUM));
    // With glibc, a part of the data is read-only. `run_from` would make it writable.
    if at == 0 || !cfg!(all(target_env = "musl", target_feature = "crt-static")) {
        return Err(Errno::NOTSUP);
    }
    let headers: *const libc::Elf64_Phdr = ptr::with_exposed_provenance(at as usize);
    // SAFETY: the kernel says that so many program headers are there. They are in a part that is
    // mapped and that nothing writes.
    let headers = unsafe { std::slice::from_raw_parts(headers, count as usize) };
    parts_of(headers, at, number(libc::AT_PAGESZ), map)
}

/// The parts of a program, as its program headers at the address `at` have them (`elf(5)`). `map`
/// says where the kernel has mapped its executable: at the same addresses, if the executable is
/// this program. Otherwise fails with `ENOTSUP`.
fn parts_of(
    headers: &[libc::Elf64_Phdr],
    at: u64,
    page: u64,
    map: MemoryMap,
) -> Result<Vec<LoadedPart>> {
    /// The only place of the program headers that linkers use: behind the ELF header.
    const HEADERS: u64 = size_of::<libc::Elf64_Ehdr>() as u64;
    let (mut parts, mut last) = (Vec::new(), 0);
    let mut own = MemoryMap { start_code: u64::MAX, ..MemoryMap::default() };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        let has = |flag, protection| if header.p_flags & flag != 0 { protection } else { 0 };
        let (first, end) = (header.p_vaddr, header.p_vaddr + header.p_filesz);
        if header.p_flags & libc::PF_X != 0 {
            own.start_code = own.start_code.min(first);
            own.end_code = own.end_code.max(end);
        }
        own.start_data = own.start_data.max(first);
        own.end_data = own.end_data.max(end);
        let start = first & !(page - 1);
        // Two parts share a page, or the program was relocated: then it is not where its headers
        // say, and a part of its data is read-only since.
        if start < last || header.p_offset == 0 && start + HEADERS != at {
            return Err(Errno::NOTSUP);
        }
        last = end.next_multiple_of(page);
        parts.push(LoadedPart {
            start: start as usize,
            length: (last - start) as usize,
            offset: (header.p_offset & !(page - 1)).cast_signed(),
            protection: has(libc::PF_R, libc::PROT_READ)
                | has(libc::PF_W, libc::PROT_WRITE)
                | has(libc::PF_X, libc::PROT_EXEC),
        });
    }
    let places = |map: MemoryMap| (map.start_code, map.end_code, map.start_data, map.end_data);
    if places(own) == places(map) { Ok(parts) } else { Err(Errno::NOTSUP) }
}

/// Whether this process, with its effective user, may execute a file (`faccessat2(2)` with
/// `AT_EMPTY_PATH`, Linux 5.8). The mount counts too (`noexec`).
pub(crate) fn may_execute(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is borrowed and open, the path is a NUL-terminated literal.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::X_OK,
            libc::AT_EMPTY_PATH | libc::AT_EACCESS,
        )
    };
    check(returned).map(drop)
}

/// `fork(2)`: as [`clone3`] without flags, for a seccomp filter that may know only the older call.
pub(crate) fn fork() -> Result<Option<Pid>> {
    // SAFETY: the process has one thread, so no thread that the child lacks holds a lock of the C
    // library.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::RANGE)?))
}

/// Resets every signal to its default action. Ignored signals survive `execve(2)`, and both Rust's
/// runtime (SIGPIPE) and callers such as `nohup` leave some ignored.
pub(crate) fn default_signal_actions() {
    (1..=64).for_each(default_signal_action);
}

/// As [`default_signal_actions`], for one signal.
pub(crate) fn default_signal_action(signal: c_int) {
    // The kernel's `struct sigaction`: a handler (0 is SIG_DFL), flags, a restorer and 8 bytes of
    // mask. All are zero.
    const DEFAULT: [u64; 4] = [0; 4];
    // SAFETY: SIG_DFL runs no code of this process. The structure lives for ever, is as large as
    // the kernel's, and is only read. We use the system call because the C library's function
    // refuses the two signals that it keeps for itself. A caller may have left those ignored too.
    // The kernel refuses SIGKILL and SIGSTOP with EINVAL.
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), ptr::null_mut::<u64>(), 8);
    }
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain integers; sigemptyset makes it valid, whatever it contained.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place to write to.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` is initialised; a wrong number is refused with EINVAL.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// From now on, until an exec, each of these signals ends this process with a shell's exit status:
/// 128 and the signal's number.
pub(crate) fn end_on(signals: &[c_int]) {
    extern "C" fn end(signal: c_int) {
        exit_now(128 + signal)
    }
    for signal in signals {
        // SAFETY: `sigaction` is plain integers; all zeroes are an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = end as extern "C" fn(c_int) as libc::sighandler_t;
        // SAFETY: the handler takes a number and makes system calls only, which is allowed at any
        // moment (signal-safety(7)). The structure lives across the call, which only reads it.
        unsafe { libc::sigaction(*signal, &raw const action, ptr::null_mut()) };
    }
}

/// Blocks exactly these signals, and no others (`sigprocmask(2)`, `SIG_SETMASK`).
pub(crate) fn block_only(signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: `set` is initialised and only read; blocking runs no code. It cannot fail with a
    // valid `how`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) };
}

/// Blocks these signals in addition to those already blocked (`sigprocmask(2)`, `SIG_BLOCK`).
/// Returns the signals that were not blocked before.
pub(crate) fn block_too(signals: &[c_int]) -> Vec<c_int> {
    let (set, mut before) = (signal_set(signals), signal_set(&[]));
    // SAFETY: `set` is initialised and only read, `before` is a valid place to write to; blocking
    // runs no code. It cannot fail with a valid `how`.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
    // SAFETY: `before` is initialised and only read; for a number that is not a signal's, the
    // answer is -1.
    let free = |signal: &c_int| unsafe { libc::sigismember(&raw const before, *signal) } == 0;
    signals.iter().copied().filter(free).collect()
}

/// Unblocks these signals (`sigprocmask(2)`, `SIG_UNBLOCK`).
pub(crate) fn unblock(signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: `set` is initialised and only read. No signal has a handler except those of `end_on`,
    // which end the process.
    unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
}

/// A descriptor that reads `signalfd_siginfo` records for these signals, which must be blocked.
pub(crate) fn signalfd(signals: &[c_int]) -> Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: `set` is initialised and only read.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd.into())?;
    // SAFETY: the call just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether one of these blocked signals has arrived (`sigpending(2)`).
pub(crate) fn pending(signals: &[c_int]) -> bool {
    let mut set = signal_set(&[]);
    // SAFETY: `set` is a valid place to write to.
    unsafe { libc::sigpending(&raw mut set) };
    // SAFETY: `set` is initialised and only read; for a number that is not a signal's, the answer
    // is -1.
    signals.iter().any(|&signal| unsafe { libc::sigismember(&raw const set, signal) } == 1)
}

/// The kind of a lock on a part of a file, which belongs to an open file description (`fcntl(2)`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lock {
    /// Other processes may hold a read lock too.
    Read,
    Write,
    /// Releases the lock.
    Free,
}

/// A lock on `length` bytes of a file, from `start` on. A length of 0 means all bytes that follow.
fn lock_of(lock: Lock, start: u64, length: u64) -> Result<libc::flock> {
    let kind = match lock {
        Lock::Read => libc::F_RDLCK,
        Lock::Write => libc::F_WRLCK,
        Lock::Free => libc::F_UNLCK,
    };
    Ok(libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::INVAL)?,
        l_start: libc::off_t::try_from(start).map_err(|_| Errno::INVAL)?,
        l_len: libc::off_t::try_from(length).map_err(|_| Errno::INVAL)?,
        // The kernel requires 0 for locks of an open file description.
        l_pid: 0,
    })
}

/// `F_OFD_SETLK`: fails with `EAGAIN` if another lock conflicts. A process that inherits the
/// descriptor also has the lock.
pub(crate) fn lock(file: BorrowedFd<'_>, lock: Lock, start: u64, length: u64) -> Result<()> {
    let of = lock_of(lock, start, length)?;
    fcntl(file.as_raw_fd(), FcntlArg::F_OFD_SETLK(&of)).map(drop).map_err(errno)
}

/// `F_OFD_GETLK`: where the first conflicting lock begins. Takes no lock.
pub(crate) fn locked(
    file: BorrowedFd<'_>,
    lock: Lock,
    start: u64,
    length: u64,
) -> Result<Option<u64>> {
    let mut of = lock_of(lock, start, length)?;
    fcntl(file.as_raw_fd(), FcntlArg::F_OFD_GETLK(&mut of)).map_err(errno)?;
    let free = c_int::from(of.l_type) == libc::F_UNLCK;
    Ok(u64::try_from(of.l_start).ok().filter(|_| !free))
}

/// `pidfd_send_signal(2)` with any signal number, including 0 (a test) and the real-time signals.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<()> {
    // SAFETY: the descriptor is borrowed and open; a null siginfo means the same information as
    // from kill(2).
    let returned = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(returned).map(drop)
}

// `bpf(2)`: the two commands for a filter of a cgroup, with numbers from `<linux/bpf.h>`.
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;

/// Loads a BPF program for a cgroup; the kernel verifies it. `kind` is a `BPF_PROG_TYPE_*`. `place`
/// is the `BPF_*` number of the place where the program will be attached.
pub(crate) fn bpf_prog_load(kind: u32, place: u32, program: &[u64]) -> Result<OwnedFd> {
    /// The first members of `union bpf_attr` for this command. The kernel takes missing members as
    /// zero.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        /// The log, name, flags and interface: none.
        others: [u32; 11],
        expected_attach_type: u32,
    }
    let attributes = Load {
        prog_type: kind,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        others: [0; 11],
        expected_attach_type: place,
    };
    const { assert!(std::mem::offset_of!(Load, expected_attach_type) == 68) };
    // SAFETY: the attributes, the instructions that they point to and the NUL-terminated licence
    // outlive the call and are only read. The counts are those of the passed data.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Load>())
    };
    let fd = c_int::try_from(check(fd)?).map_err(|_| Errno::RANGE)?;
    // SAFETY: the call just returned this descriptor (close-on-exec, as always with bpf(2)), and
    // nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a BPF program to a cgroup, with `BPF_F_*` flags. An access is allowed only if the
/// programs of the cgroups above allow it too.
pub(crate) fn bpf_prog_attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    place: u32,
    flags: u32,
) -> Result<()> {
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let attributes = Attach {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: place,
        attach_flags: flags,
    };
    // SAFETY: both descriptors are borrowed and open; the attributes outlive the call, are only
    // read, and their size is passed.
    let returned = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of::<Attach>())
    };
    check(returned).map(drop)
}

// From `<linux/landlock.h>`.
pub(crate) const LANDLOCK_ACCESS_NET_BIND_TCP: u64 = 1;
pub(crate) const LANDLOCK_ACCESS_NET_CONNECT_TCP: u64 = 2;

/// `landlock_create_ruleset(2)`: a ruleset that refuses these uses of the network, except those
/// that its rules allow (Linux 6.7).
pub(crate) fn landlock_create_ruleset(handled: u64) -> Result<OwnedFd> {
    // `struct landlock_ruleset_attr`: no access to files, and these uses of the network.
    let attributes: [u64; 2] = [0, handled];
    // SAFETY: the structure outlives the call, is only read, and its size is passed.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            attributes.as_ptr(),
            size_of_val(&attributes),
            0,
        )
    };
    let fd = c_int::try_from(check(fd)?).map_err(|_| Errno::RANGE)?;
    // SAFETY: the call just returned this descriptor (close-on-exec, as the manual page says), and
    // nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `landlock_add_rule(2)`, `LANDLOCK_RULE_NET_PORT`.
pub(crate) fn landlock_add_rule(ruleset: BorrowedFd<'_>, allowed: u64, port: u16) -> Result<()> {
    const LANDLOCK_RULE_NET_PORT: c_int = 2;
    // `struct landlock_net_port_attr`.
    let attributes: [u64; 2] = [allowed, port.into()];
    // SAFETY: the descriptor is borrowed and open. The structure outlives the call, is only read,
    // and has the size that the kernel requires for this kind of rule.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            LANDLOCK_RULE_NET_PORT,
            attributes.as_ptr(),
            0,
        )
    };
    check(returned).map(drop)
}

/// `landlock_restrict_self(2)`.
pub(crate) fn landlock_restrict_self(ruleset: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is borrowed and open. A ruleset can refuse calls, but changes no
    // memory of this process.
    let returned =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    check(returned).map(drop)
}

/// Lets this process run on every processor that its cgroup allows, now and after a change
/// (`sched_setaffinity(2)`).
pub(crate) fn run_on_all_processors() -> Result<()> {
    // No kernel is built for more than 8192 processors. The kernel ignores processors that it does
    // not know or allow.
    const ALL: [u8; 1024] = [u8::MAX; 1024];
    // SAFETY: the set outlives the call, has the passed length, and is only read. 0 is this
    // process's only thread.
    let returned =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&ALL), ALL.as_ptr()) };
    check(returned).map(drop)
}

/// The attributes for `sched_setattr(2)`: `SCHED_*`, `SCHED_FLAG_*`, and times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct SchedAttr {
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// `sched_setattr(2)`.
pub(crate) fn sched_setattr(pid: Pid, attr: SchedAttr) -> Result<()> {
    /// `struct sched_attr` as of Linux 3.14, without later members.
    #[repr(C)]
    struct Attr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let SchedAttr { policy, flags, nice, priority, runtime, deadline, period } = attr;
    // The size of the structure is 48, SCHED_ATTR_SIZE_VER0.
    let mut attr = Attr { size: 48, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the structure has the size that it states (checked below), outlives the call, and is
    // only read. The exception is its size, which the kernel may write to when it refuses the
    // structure.
    let returned = unsafe {
        libc::syscall(libc::SYS_sched_setattr, pid.as_raw_nonzero().get(), &raw mut attr, 0)
    };
    const { assert!(size_of::<Attr>() == 48) };
    check(returned).map(drop)
}

/// `prlimit(2)` of another process, without setting a limit.
pub(crate) fn getrlimit_of(pid: Pid, resource: Resource) -> Result<Rlimit> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = ptr::null::<libc::rlimit64>();
    // SAFETY: the call fills this structure, which outlives the call. Without a new limit, it
    // touches nothing else.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw_nonzero().get(),
            resource as libc::c_uint,
            none,
            &raw mut limit,
        )
    };
    check(returned)?;
    // RLIM_INFINITY is the largest number. In rustix it is `None`.
    let number = |number| Some(number).filter(|number| *number != u64::MAX);
    Ok(Rlimit { current: number(limit.rlim_cur), maximum: number(limit.rlim_max) })
}

/// `ioprio_set(2)` for one process; the class is `IOPRIO_CLASS_*`.
pub(crate) fn ioprio_set(pid: Pid, class: c_int, level: c_int) -> Result<()> {
    // From `<linux/ioprio.h>`.
    const IOPRIO_WHO_PROCESS: c_int = 1;
    const IOPRIO_CLASS_SHIFT: c_int = 13;
    // SAFETY: takes integers, touches no memory of this process.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            pid.as_raw_nonzero().get(),
            class << IOPRIO_CLASS_SHIFT | level,
        )
    };
    check(returned).map(drop)
}

/// `seccomp(2)`, `SECCOMP_SET_MODE_FILTER`: loads a filter into this process. Returns the listener
/// if the flags have `SECCOMP_FILTER_FLAG_NEW_LISTENER`. An exec closes the listener.
pub(crate) fn seccomp_set_mode_filter(
    flags: u64,
    program: &[libc::sock_filter],
) -> Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the instructions and the structure that points to them outlive the call, are only
    // read, and have the stated number. The kernel checks the program. A filter can refuse system
    // calls, but changes no memory of this process.
    let returned = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let returned = check(returned)?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = c_int::try_from(returned).map_err(|_| Errno::RANGE)?;
    // SAFETY: with this flag the call returns a new descriptor, which nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether the kernel knows these flags of `SECCOMP_SET_MODE_FILTER`. The kernel checks the flags
/// before it reads the filter (`seccomp(2)` describes the same for single flags).
pub(crate) fn seccomp_knows_flags(flags: u64) -> bool {
    // SAFETY: without a filter, there is nothing to load. The call reads nothing, and fails with
    // EFAULT or EINVAL.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            ptr::null::<libc::sock_fprog>(),
        )
    };
    check(returned) == Err(Errno::FAULT)
}

/// `kill(2)` for one process, with any signal number.
pub(crate) fn kill(pid: Pid, signal: c_int) -> Result<()> {
    // SAFETY: kill(2) reads and writes no memory of this process; the pid is positive by type.
    check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into()).map(drop)
}

/// Whether the kernel has `keyctl(2)`, forbidden or not. Asks for the number of the session keyring
/// (`KEYCTL_GET_KEYRING_ID`) without making one.
pub(crate) fn has_keyctl() -> bool {
    const KEYCTL_GET_KEYRING_ID: c_int = 0; // <linux/keyctl.h>
    const KEY_SPEC_SESSION_KEYRING: c_int = -3;
    // SAFETY: takes integers, touches no memory of this process.
    let returned = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
    };
    !matches!(check(returned), Err(Errno::NOSYS))
}

/// Joins a session keyring of this name (`keyctl(2)`, `KEYCTL_JOIN_SESSION_KEYRING`). The keyring
/// is new, unless this process may search an existing one of that name.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1; // <linux/keyctl.h>
    // SAFETY: the name is NUL-terminated and only read.
    let returned =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    check(returned).map(drop)
}

/// Brings up the loopback interface of this network namespace (`netdevice(7)`, `SIOCSIFFLAGS`).
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: `ifreq` is plain integers and bytes; zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo\0") {
        *to = c_char::from_ne_bytes([from]);
    }
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is borrowed and open. `request` is a valid ifreq, which the kernel
    // only reads for SIOCSIFFLAGS.
    let returned = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request)
    };
    check(returned.into()).map(drop)
}

/// `personality(2)`.
pub(crate) fn personality(persona: c_int) -> Result<()> {
    nix::sys::personality::set(Persona::from_bits_retain(persona)).map(drop).map_err(errno)
}

/// No kernel is built for more NUMA nodes (`CONFIG_NODES_SHIFT` is at most 10).
pub(crate) const NODES: usize = 1024;

/// A set of NUMA nodes: bit N of the whole is node N.
pub(crate) type Nodes = [u64; NODES / 64];

/// `set_mempolicy(2)`: the mode with its flags, and a bit for each node.
pub(crate) fn set_mempolicy(mode: u32, nodes: Option<&Nodes>) -> Result<()> {
    // The kernel subtracts one from the number of bits before it uses it.
    let bits = nodes.map_or(0, |_| NODES + 1);
    let nodes = nodes.map_or(ptr::null(), |nodes| nodes.as_ptr());
    // SAFETY: the bits outlive the call, have the passed number, and are only read. For a null
    // pointer, the number is 0.
    let returned = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes, bits) };
    check(returned).map(drop)
}

/// Ends the process at once, without running anything else (`_exit(2)`): for a child that shares
/// its parent's buffers.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::syscall(libc::SYS_exit_group, status) };
    // SAFETY: the same, for a process with one thread.
    unsafe { libc::syscall(libc::SYS_exit, status) };
    // A filter forbids both calls. A fault ends every process.
    std::process::abort()
}

unsafe extern "C" {
    /// `environ(7)`.
    static mut environ: *const *const c_char;
}

/// The bytes of each string of an array that a null pointer ends, without the zero byte that ends
/// the string.
struct Strings(*const *const c_char);

impl Strings {
    /// # Safety
    /// `array` is such an array. Its strings are writable, and have no other reference while the
    /// result is used.
    unsafe fn of(array: *const *const c_char) -> Strings {
        Strings(array)
    }
}

impl Iterator for Strings {
    type Item = &'static mut [u8];

    fn next(&mut self) -> Option<&'static mut [u8]> {
        // SAFETY: the pointer is at or before the null pointer: this function never goes beyond it.
        let string = unsafe { self.0.read() };
        if string.is_null() {
            return None;
        }
        self.0 = self.0.wrapping_add(1);
        // SAFETY: a string, by `of`.
        let length = unsafe { libc::strlen(string) };
        // SAFETY: the string has this many bytes. They are writable, and nothing else refers to
        // them, by `of`. Each string is returned once.
        Some(unsafe { std::slice::from_raw_parts_mut(string.cast_mut().cast(), length) })
    }
}

/// Overwrites the command line except the `kept` words, and the environment, where others can read
/// both: `/proc/PID/cmdline` is open to everybody who sees the process. This process and its
/// children get a copy of the environment. Of the first word, the last component of the path stays.
/// Fails with `ENOTSUP` if the words are not where the processor's ABI puts them.
pub(crate) fn hide_arguments(kept: &[&[u8]]) -> Result<()> {
    let count = std::env::args_os().count();
    // SAFETY: a static of the C library; no other thread writes it.
    let envp = unsafe { environ };
    if envp.is_null() {
        return Err(Errno::NOTSUP);
    }
    // No code of `rt` changes the environment, so `environ` is the C library's initial array. The
    // ABIs of x86-64 and aarch64 ("Process Initialization") define the content there: the number of
    // words, the pointers to the words, a null pointer, the pointers of the environment, another
    // null pointer, in this order.
    let argv = envp.wrapping_sub(count + 1);
    // SAFETY: this is on the stack that the kernel has made, where at least a number and a null
    // pointer come before.
    let end = unsafe { envp.wrapping_sub(1).read() };
    // SAFETY: before it are as many pointers as Rust's library has counted, and the number.
    let number = unsafe { argv.wrapping_sub(1).cast::<usize>().read() };
    if !end.is_null() || number != count {
        return Err(Errno::NOTSUP);
    }
    let mut own = Vec::new();
    // SAFETY: this is the environment's array, as just checked. The strings are the kernel's, on
    // the stack, which is writable. Rust's library copies them when it returns them.
    for string in unsafe { Strings::of(envp) } {
        own.push(CString::new(&*string).unwrap_or_default().into_raw().cast_const());
        string.fill(0);
    }
    own.push(ptr::null());
    // SAFETY: as for reading it. The array and its strings are leaked, and live as long as the
    // process.
    unsafe { environ = Vec::leak(own).as_ptr() };
    // SAFETY: as for the environment.
    for (number, word) in unsafe { Strings::of(argv) }.enumerate() {
        if number == 0 {
            let name = word.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
            word.copy_within(name.., 0);
            let length = word.len() - name;
            word[length..].fill(0);
        } else if !kept.contains(&&*word) {
            word.fill(0);
        }
    }
    Ok(())
}

/// Overwrites the environment that [`hide_arguments`] has left: for a process that becomes the
/// container's.
pub(crate) fn forget_environment() {
    // SAFETY: a static of the C library; no other thread writes it.
    let array = unsafe { environ };
    if array.is_null() {
        return;
    }
    // SAFETY: `environ` is such an array, with the kernel's strings or with those that
    // `hide_arguments` has leaked. Both are writable. Rust's library copies them when it returns
    // them.
    unsafe { Strings::of(array) }.for_each(|string| string.fill(0));
    // SAFETY: as for reading it. The new array is leaked.
    unsafe { environ = Vec::leak(vec![ptr::null()]).as_ptr() };
}

/// The calls and the address families that a filter around this process forbids, of those that `rt`
/// may need. This is for an error that looks like a filter's. It makes each call once, in a form
/// that the kernel refuses with another error before it does anything. `privileged` includes the
/// calls that the kernel, like a filter, refuses at once to anybody but the host's root.
pub(crate) fn forbidden(privileged: bool) -> Vec<&'static str> {
    let wrong = -1 as libc::c_long;
    let calls = [
        ("capset", libc::SYS_capset),
        ("chdir", libc::SYS_chdir),
        ("clone3", libc::SYS_clone3),
        ("close_range", libc::SYS_close_range),
        ("execveat", libc::SYS_execveat),
        ("fchdir", libc::SYS_fchdir),
        ("fchownat", libc::SYS_fchownat),
        ("flock", libc::SYS_flock),
        ("fsconfig", libc::SYS_fsconfig),
        ("fstatfs", libc::SYS_fstatfs),
        ("getdents64", libc::SYS_getdents64),
        ("getrandom", libc::SYS_getrandom),
        ("keyctl", libc::SYS_keyctl),
        ("memfd_create", libc::SYS_memfd_create),
        ("mkdirat", libc::SYS_mkdirat),
        ("mknodat", libc::SYS_mknodat),
        ("mount", libc::SYS_mount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("move_mount", libc::SYS_move_mount),
        ("open_tree", libc::SYS_open_tree),
        ("openat2", libc::SYS_openat2),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        ("pivot_root", libc::SYS_pivot_root),
        ("ppoll", libc::SYS_ppoll),
        ("prctl", libc::SYS_prctl),
        ("prlimit64", libc::SYS_prlimit64),
        ("readlinkat", libc::SYS_readlinkat),
        ("recvmsg", libc::SYS_recvmsg),
        ("seccomp", libc::SYS_seccomp),
        ("sendmsg", libc::SYS_sendmsg),
        ("setns", libc::SYS_setns),
        ("setresgid", libc::SYS_setresgid),
        ("setresuid", libc::SYS_setresuid),
        ("setsockopt", libc::SYS_setsockopt),
        ("signalfd4", libc::SYS_signalfd4),
        ("socketpair", libc::SYS_socketpair),
        ("statfs", libc::SYS_statfs),
        ("statx", libc::SYS_statx),
        ("symlinkat", libc::SYS_symlinkat),
        ("umount2", libc::SYS_umount2),
        ("unlinkat", libc::SYS_unlinkat),
        ("unshare", libc::SYS_unshare),
        ("wait4", libc::SYS_wait4),
        ("waitid", libc::SYS_waitid),
    ];
    let of_roots = [
        ("bpf", libc::SYS_bpf),
        ("fsmount", libc::SYS_fsmount),
        ("fsopen", libc::SYS_fsopen),
        ("setdomainname", libc::SYS_setdomainname),
        ("setgroups", libc::SYS_setgroups),
        ("sethostname", libc::SYS_sethostname),
    ];
    let families = [
        ("socket(AF_UNIX)", libc::AF_UNIX),
        ("socket(AF_INET)", libc::AF_INET),
        ("socket(AF_NETLINK)", libc::AF_NETLINK),
    ];
    let is_forbidden = |returned| {
        matches!(
            check(returned),
            Err(Errno::PERM | Errno::NOSYS | Errno::ACCESS | Errno::AFNOSUPPORT)
        )
    };
    let of_roots = of_roots.into_iter().filter(|_| privileged);
    let calls = calls.into_iter().chain(of_roots).filter(|(_, number)| {
        // SAFETY: the descriptors, flags, sizes and pointers are impossible. The kernel checks one
        // of them first, and does nothing.
        is_forbidden(unsafe { libc::syscall(*number, wrong, wrong, wrong, wrong, wrong, wrong) })
    });
    let families = families.into_iter().filter(|(_, family)| {
        // SAFETY: the kernel first refuses unknown flags.
        is_forbidden(unsafe { libc::syscall(libc::SYS_socket, *family, wrong, 0) })
    });
    calls.map(|(name, _)| name).chain(families.map(|(name, _)| name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_moved_only_if_it_is_its_executable() {
        let header = |p_flags, p_offset, p_vaddr, p_filesz| libc::Elf64_Phdr {
            p_type: libc::PT_LOAD,
            p_flags,
            p_offset,
            p_vaddr,
            p_paddr: p_vaddr,
            p_filesz,
            p_memsz: p_filesz + 8,
            p_align: 4096,
        };
        let code = header(libc::PF_R | libc::PF_X, 0x1000, 0x40_1000, 0x2345);
        let data = header(libc::PF_R | libc::PF_W, 0x3578, 0x40_5578, 0x100);
        let good = [header(libc::PF_R, 0, 0x40_0000, 0x224), code, data];
        let map = MemoryMap {
            start_code: 0x40_1000,
            end_code: 0x40_3345,
            start_data: 0x40_5578,
            end_data: 0x40_5678,
            ..MemoryMap::default()
        };
        let parts = parts_of(&good, 0x40_0040, 4096, map).expect("it is");
        let places: Vec<_> = parts.iter().map(|it| (it.start, it.length, it.offset)).collect();
        let expected =
            [(0x40_0000, 4096, 0), (0x40_1000, 0x3000, 0x1000), (0x40_5000, 4096, 0x3000)];
        assert_eq!(places, expected);
        assert_eq!(parts[2].protection, libc::PROT_READ | libc::PROT_WRITE);
        // A loader of its own, or an emulator, has started it.
        for other in [
            MemoryMap { start_code: 0x1000, ..map },
            MemoryMap { end_code: 0x40_3346, ..map },
            MemoryMap { start_data: 0, ..map },
            MemoryMap { end_data: 0x40_6000, ..map },
        ] {
            parts_of(&good, 0x40_0040, 4096, other).err().expect("it is not");
        }
        parts_of(&good, 0x7f_0000_0040, 4096, map).err().expect("it was relocated");
        parts_of(&good, 0x40_0040, 65536, map).err().expect("two parts share a page");
    }
}
