//! Calls every function of WASI preview1 by itself, and prints a line for each: `NAME ok`, or
//! `NAME: what it did`. Descriptor 3 is the root, where `/work` is an empty directory that can be
//! written to.

use wasi::{Ciovec, Errno, Fd, Iovec};

type Check = fn() -> Result<(), String>;

const ROOT: Fd = 3;
const HEAD: &[u8] = b"0123456789";

fn main() {
    let checks: [(&str, Check); 44] = [
        ("args_sizes_get", args_sizes_get),
        ("args_get", args_get),
        ("environ_sizes_get", environ_sizes_get),
        ("environ_get", environ_get),
        ("clock_res_get", clock_res_get),
        ("clock_time_get", clock_time_get),
        ("random_get", random_get),
        ("sched_yield", || call(unsafe { wasi::sched_yield() }).map(drop)),
        ("fd_prestat_get", fd_prestat_get),
        ("fd_prestat_dir_name", fd_prestat_dir_name),
        ("path_create_directory", path_create_directory),
        ("path_open", path_open),
        ("fd_write", fd_write),
        ("fd_seek", fd_seek),
        ("fd_tell", fd_tell),
        ("fd_read", fd_read),
        ("fd_pread", fd_pread),
        ("fd_pwrite", fd_pwrite),
        ("fd_filestat_get", fd_filestat_get),
        ("fd_filestat_set_size", fd_filestat_set_size),
        ("fd_filestat_set_times", fd_filestat_set_times),
        ("fd_allocate", fd_allocate),
        ("fd_advise", || with_file(|fd| call(unsafe { wasi::fd_advise(fd, 0, 4, wasi::ADVICE_WILLNEED) }))),
        ("fd_sync", || with_file(|fd| call(unsafe { wasi::fd_sync(fd) }))),
        ("fd_datasync", || with_file(|fd| call(unsafe { wasi::fd_datasync(fd) }))),
        ("fd_fdstat_get", fd_fdstat_get),
        ("fd_fdstat_set_flags", fd_fdstat_set_flags),
        ("fd_fdstat_set_rights", fd_fdstat_set_rights),
        ("fd_renumber", fd_renumber),
        ("fd_close", fd_close),
        ("fd_readdir", fd_readdir),
        ("path_filestat_get", path_filestat_get),
        ("path_filestat_set_times", path_filestat_set_times),
        ("path_link", path_link),
        ("path_symlink", path_symlink),
        ("path_readlink", path_readlink),
        ("path_rename", path_rename),
        ("path_unlink_file", path_unlink_file),
        ("path_remove_directory", path_remove_directory),
        ("poll_oneoff", poll_oneoff),
        ("poll_files", poll_files),
        ("escapes", escapes),
        ("sock_recv, sock_send, sock_shutdown", on_no_socket),
        ("proc_raise", proc_raise),
    ];
    for (name, check) in checks {
        match check() {
            Ok(()) => println!("{name} ok"),
            Err(what) => println!("{name}: {what}"),
        }
    }
    // The last of them.
    unsafe { wasi::proc_exit(45) };
}

fn call<T>(result: Result<T, Errno>) -> Result<T, String> {
    result.map_err(|error| error.name().to_owned())
}

fn same<T: PartialEq + std::fmt::Debug>(left: T, right: T) -> Result<(), String> {
    if left == right { Ok(()) } else { Err(format!("{left:?}, not {right:?}")) }
}

fn open(path: &str, oflags: wasi::Oflags) -> Result<Fd, String> {
    let rights = wasi::RIGHTS_FD_READ
        | wasi::RIGHTS_FD_WRITE
        | wasi::RIGHTS_FD_SEEK
        | wasi::RIGHTS_FD_TELL
        | wasi::RIGHTS_FD_ADVISE
        | wasi::RIGHTS_FD_ALLOCATE
        | wasi::RIGHTS_FD_SYNC
        | wasi::RIGHTS_FD_DATASYNC
        | wasi::RIGHTS_FD_FDSTAT_SET_FLAGS
        | wasi::RIGHTS_FD_FILESTAT_GET
        | wasi::RIGHTS_FD_FILESTAT_SET_SIZE
        | wasi::RIGHTS_FD_FILESTAT_SET_TIMES;
    call(unsafe { wasi::path_open(ROOT, 0, path, oflags, rights, rights, 0) })
}

fn write(fd: Fd, bytes: &[u8]) -> Result<usize, String> {
    call(unsafe { wasi::fd_write(fd, &[Ciovec { buf: bytes.as_ptr(), buf_len: bytes.len() }]) })
}

fn read(fd: Fd) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; 64];
    let vector = [Iovec { buf: bytes.as_mut_ptr(), buf_len: bytes.len() }];
    let length = call(unsafe { wasi::fd_read(fd, &vector) })?;
    bytes.truncate(length);
    Ok(bytes)
}

fn close(fd: Fd) -> Result<(), String> {
    call(unsafe { wasi::fd_close(fd) })
}

/// Does something with a new file that holds ten digits and is at its beginning.
fn with_file<T>(act: impl Fn(Fd) -> Result<T, String>) -> Result<(), String> {
    let fd = open("work/file", wasi::OFLAGS_CREAT | wasi::OFLAGS_TRUNC)?;
    same(write(fd, HEAD)?, HEAD.len())?;
    call(unsafe { wasi::fd_seek(fd, 0, wasi::WHENCE_SET) })?;
    let outcome = act(fd).map(drop);
    close(fd)?;
    outcome
}

fn args_sizes_get() -> Result<(), String> {
    // "/wasi.wasm", "one", "", each with its end.
    same(call(unsafe { wasi::args_sizes_get() })?, (3, 11 + 4 + 1))
}

fn strings(count: usize, size: usize, get: impl Fn(*mut *mut u8, *mut u8) -> Result<(), Errno>) -> Result<Vec<u8>, String> {
    let mut pointers = vec![core::ptr::null_mut(); count];
    let mut bytes = vec![1; size];
    call(get(pointers.as_mut_ptr(), bytes.as_mut_ptr()))?;
    same(pointers.first().copied(), Some(bytes.as_mut_ptr()))?;
    Ok(bytes)
}

fn args_get() -> Result<(), String> {
    let bytes = strings(3, 16, |pointers, bytes| unsafe { wasi::args_get(pointers, bytes) })?;
    same(&bytes[..], b"/wasi.wasm\0one\0\0")
}

fn environ_sizes_get() -> Result<(), String> {
    // "A=1" with its end, and nothing else.
    same(call(unsafe { wasi::environ_sizes_get() })?, (1, 4))
}

fn environ_get() -> Result<(), String> {
    let (count, size) = call(unsafe { wasi::environ_sizes_get() })?;
    let bytes = strings(count, size, |pointers, bytes| unsafe { wasi::environ_get(pointers, bytes) })?;
    same(bytes.starts_with(b"A=1\0"), true)
}

fn clock_res_get() -> Result<(), String> {
    for clock in [wasi::CLOCKID_REALTIME, wasi::CLOCKID_MONOTONIC] {
        same((1..1_000_000_000).contains(&call(unsafe { wasi::clock_res_get(clock) })?), true)?;
    }
    Ok(())
}

fn clock_time_get() -> Result<(), String> {
    let now = |clock| call(unsafe { wasi::clock_time_get(clock, 1) });
    // After 2020.
    same(now(wasi::CLOCKID_REALTIME)? > 1_577_836_800_000_000_000, true)?;
    let (first, second) = (now(wasi::CLOCKID_MONOTONIC)?, now(wasi::CLOCKID_MONOTONIC)?);
    same(second >= first, true)?;
    for clock in [wasi::CLOCKID_PROCESS_CPUTIME_ID, wasi::CLOCKID_THREAD_CPUTIME_ID] {
        now(clock)?;
    }
    Ok(())
}

fn random_get() -> Result<(), String> {
    let random = || {
        let mut bytes = [0; 32];
        call(unsafe { wasi::random_get(bytes.as_mut_ptr(), bytes.len()) }).map(|()| bytes)
    };
    same(random()? != random()?, true)
}

fn fd_prestat_get() -> Result<(), String> {
    let prestat = call(unsafe { wasi::fd_prestat_get(ROOT) })?;
    same(prestat.tag, wasi::PREOPENTYPE_DIR.raw())?;
    same(unsafe { prestat.u.dir.pr_name_len }, 1)?;
    same(unsafe { wasi::fd_prestat_get(99) }.err(), Some(wasi::ERRNO_BADF))
}

fn fd_prestat_dir_name() -> Result<(), String> {
    let mut name = [0];
    call(unsafe { wasi::fd_prestat_dir_name(ROOT, name.as_mut_ptr(), 1) })?;
    same(&name, b"/")
}

fn path_create_directory() -> Result<(), String> {
    call(unsafe { wasi::path_create_directory(ROOT, "work/folder") })?;
    same(unsafe { wasi::path_create_directory(ROOT, "work/folder") }.err(), Some(wasi::ERRNO_EXIST))
}

fn path_open() -> Result<(), String> {
    same(open("work/none", 0).err().as_deref(), Some("NOENT"))?;
    close(open("work/file", wasi::OFLAGS_CREAT)?)?;
    same(open("work/file", wasi::OFLAGS_CREAT | wasi::OFLAGS_EXCL).err().as_deref(), Some("EXIST"))?;
    same(open_directory("work/file").err().as_deref(), Some("NOTDIR"))
}

fn fd_write() -> Result<(), String> {
    with_file(|fd| same(write(fd, b"ab")?, 2))?;
    same(write(99, b"x").err().as_deref(), Some("BADF"))
}

fn fd_seek() -> Result<(), String> {
    with_file(|fd| {
        same(call(unsafe { wasi::fd_seek(fd, -3, wasi::WHENCE_END) })?, 7)?;
        same(call(unsafe { wasi::fd_seek(fd, 1, wasi::WHENCE_CUR) })?, 8)?;
        same(unsafe { wasi::fd_seek(fd, -1, wasi::WHENCE_SET) }.err(), Some(wasi::ERRNO_INVAL))
    })
}

fn fd_tell() -> Result<(), String> {
    with_file(|fd| {
        call(unsafe { wasi::fd_seek(fd, 4, wasi::WHENCE_SET) })?;
        same(call(unsafe { wasi::fd_tell(fd) })?, 4)
    })
}

fn fd_read() -> Result<(), String> {
    with_file(|fd| {
        same(read(fd)?, HEAD.to_vec())?;
        same(read(fd)?, Vec::new())
    })
}

fn fd_pread() -> Result<(), String> {
    with_file(|fd| {
        let mut bytes = [0; 3];
        let vector = [Iovec { buf: bytes.as_mut_ptr(), buf_len: 3 }];
        same(call(unsafe { wasi::fd_pread(fd, &vector, 4) })?, 3)?;
        same(&bytes, b"456")?;
        same(call(unsafe { wasi::fd_tell(fd) })?, 0)
    })
}

fn fd_pwrite() -> Result<(), String> {
    with_file(|fd| {
        let vector = [Ciovec { buf: b"xy".as_ptr(), buf_len: 2 }];
        same(call(unsafe { wasi::fd_pwrite(fd, &vector, 4) })?, 2)?;
        same(read(fd)?, b"0123xy6789".to_vec())
    })
}

fn fd_filestat_get() -> Result<(), String> {
    with_file(|fd| {
        let stat = call(unsafe { wasi::fd_filestat_get(fd) })?;
        same((stat.size, stat.filetype, stat.nlink), (10, wasi::FILETYPE_REGULAR_FILE, 1))
    })
}

fn fd_filestat_set_size() -> Result<(), String> {
    with_file(|fd| {
        call(unsafe { wasi::fd_filestat_set_size(fd, 4) })?;
        same(read(fd)?, b"0123".to_vec())
    })
}

const TIMES: wasi::Fstflags = wasi::FSTFLAGS_ATIM | wasi::FSTFLAGS_MTIM;

fn fd_filestat_set_times() -> Result<(), String> {
    with_file(|fd| {
        call(unsafe { wasi::fd_filestat_set_times(fd, 5_000_000_000, 7_000_000_000, TIMES) })?;
        let stat = call(unsafe { wasi::fd_filestat_get(fd) })?;
        same((stat.atim, stat.mtim), (5_000_000_000, 7_000_000_000))
    })
}

fn fd_allocate() -> Result<(), String> {
    with_file(|fd| {
        call(unsafe { wasi::fd_allocate(fd, 0, 100) })?;
        same(call(unsafe { wasi::fd_filestat_get(fd) })?.size, 100)
    })
}

fn fd_fdstat_get() -> Result<(), String> {
    with_file(|fd| {
        let stat = call(unsafe { wasi::fd_fdstat_get(fd) })?;
        same(stat.fs_filetype, wasi::FILETYPE_REGULAR_FILE)?;
        same(stat.fs_rights_base & wasi::RIGHTS_FD_WRITE != 0, true)
    })?;
    same(call(unsafe { wasi::fd_fdstat_get(ROOT) })?.fs_filetype, wasi::FILETYPE_DIRECTORY)
}

fn fd_fdstat_set_flags() -> Result<(), String> {
    with_file(|fd| {
        call(unsafe { wasi::fd_fdstat_set_flags(fd, wasi::FDFLAGS_APPEND) })?;
        write(fd, b"end")?;
        same(call(unsafe { wasi::fd_filestat_get(fd) })?.size, 13)
    })
}

fn fd_fdstat_set_rights() -> Result<(), String> {
    with_file(|fd| {
        let stat = call(unsafe { wasi::fd_fdstat_get(fd) })?;
        let fewer = stat.fs_rights_base & !wasi::RIGHTS_FD_WRITE;
        call(unsafe { wasi::fd_fdstat_set_rights(fd, fewer, 0) })?;
        same(write(fd, b"x").is_err(), true)?;
        // None can be taken back.
        same(unsafe { wasi::fd_fdstat_set_rights(fd, stat.fs_rights_base, 0) }.is_err(), true)
    })
}

fn fd_renumber() -> Result<(), String> {
    let from = open("work/file", 0)?;
    let to = open("work/file", wasi::OFLAGS_CREAT)?;
    call(unsafe { wasi::fd_renumber(from, to) })?;
    same(unsafe { wasi::fd_tell(from) }.err(), Some(wasi::ERRNO_BADF))?;
    close(to)
}

fn fd_close() -> Result<(), String> {
    let fd = open("work/file", 0)?;
    close(fd)?;
    same(close(fd).err().as_deref(), Some("BADF"))
}

fn open_directory(path: &str) -> Result<Fd, String> {
    let rights = wasi::RIGHTS_FD_READDIR | wasi::RIGHTS_PATH_OPEN;
    call(unsafe { wasi::path_open(ROOT, 0, path, wasi::OFLAGS_DIRECTORY, rights, rights, 0) })
}

fn fd_readdir() -> Result<(), String> {
    let fd = open_directory("work")?;
    let mut bytes = vec![0; 1024];
    let length = call(unsafe { wasi::fd_readdir(fd, bytes.as_mut_ptr(), bytes.len(), 0) })?;
    let (mut names, mut at) = (Vec::new(), 0);
    while at + 24 <= length {
        let size = u32::from_le_bytes(bytes[at + 16..at + 20].try_into().expect("four bytes")) as usize;
        names.push(String::from_utf8_lossy(&bytes[at + 24..at + 24 + size]).into_owned());
        at += 24 + size;
    }
    names.retain(|name| !matches!(name.as_str(), "." | ".."));
    names.sort();
    close(fd)?;
    same(names, vec!["file".to_owned(), "folder".to_owned()])
}

fn path_filestat_get() -> Result<(), String> {
    let stat = |path: &str| unsafe { wasi::path_filestat_get(ROOT, 0, path) };
    same(call(stat("work"))?.filetype, wasi::FILETYPE_DIRECTORY)?;
    same(stat("work/none").err(), Some(wasi::ERRNO_NOENT))
}

fn path_filestat_set_times() -> Result<(), String> {
    call(unsafe { wasi::path_filestat_set_times(ROOT, 0, "work/file", 3_000_000_000, 4_000_000_000, TIMES) })?;
    let stat = call(unsafe { wasi::path_filestat_get(ROOT, 0, "work/file") })?;
    same((stat.atim, stat.mtim), (3_000_000_000, 4_000_000_000))
}

fn path_link() -> Result<(), String> {
    call(unsafe { wasi::path_link(ROOT, 0, "work/file", ROOT, "work/second") })?;
    same(call(unsafe { wasi::path_filestat_get(ROOT, 0, "work/second") })?.nlink, 2)?;
    call(unsafe { wasi::path_unlink_file(ROOT, "work/second") })
}

fn path_symlink() -> Result<(), String> {
    call(unsafe { wasi::path_symlink("file", ROOT, "work/link") })?;
    let stat = |flags| call(unsafe { wasi::path_filestat_get(ROOT, flags, "work/link") });
    same(stat(0)?.filetype, wasi::FILETYPE_SYMBOLIC_LINK)?;
    same(stat(wasi::LOOKUPFLAGS_SYMLINK_FOLLOW)?.filetype, wasi::FILETYPE_REGULAR_FILE)
}

fn path_readlink() -> Result<(), String> {
    let mut target = [0; 16];
    let length = call(unsafe { wasi::path_readlink(ROOT, "work/link", target.as_mut_ptr(), 16) })?;
    same(&target[..length], b"file")
}

fn path_rename() -> Result<(), String> {
    call(unsafe { wasi::path_unlink_file(ROOT, "work/link") })?;
    close(open("work/old", wasi::OFLAGS_CREAT)?)?;
    call(unsafe { wasi::path_rename(ROOT, "work/old", ROOT, "work/folder/moved") })?;
    same(unsafe { wasi::path_filestat_get(ROOT, 0, "work/old") }.err(), Some(wasi::ERRNO_NOENT))
}

fn path_unlink_file() -> Result<(), String> {
    call(unsafe { wasi::path_unlink_file(ROOT, "work/folder/moved") })?;
    same(unsafe { wasi::path_unlink_file(ROOT, "work/folder") }.is_err(), true)
}

fn path_remove_directory() -> Result<(), String> {
    call(unsafe { wasi::path_create_directory(ROOT, "work/folder/inner") })?;
    same(unsafe { wasi::path_remove_directory(ROOT, "work/folder") }.err(), Some(wasi::ERRNO_NOTEMPTY))?;
    for path in ["work/folder/inner", "work/folder"] {
        call(unsafe { wasi::path_remove_directory(ROOT, path) })?;
    }
    Ok(())
}

fn poll_oneoff() -> Result<(), String> {
    let clock = wasi::SubscriptionClock {
        id: wasi::CLOCKID_MONOTONIC,
        timeout: 20_000_000,
        precision: 1,
        flags: 0,
    };
    let subscription = wasi::Subscription {
        userdata: 7,
        u: wasi::SubscriptionU {
            tag: wasi::EVENTTYPE_CLOCK.raw(),
            u: wasi::SubscriptionUU { clock },
        },
    };
    let mut event = core::mem::MaybeUninit::<wasi::Event>::uninit();
    let now = || call(unsafe { wasi::clock_time_get(wasi::CLOCKID_MONOTONIC, 1) });
    let before = now()?;
    same(call(unsafe { wasi::poll_oneoff(&subscription, event.as_mut_ptr(), 1) })?, 1)?;
    let event = unsafe { event.assume_init() };
    same((event.userdata, event.error), (7, wasi::ERRNO_SUCCESS))?;
    same(now()? - before >= 20_000_000, true)
}

/// What nobody has to wait for is ready: a file, and `/dev/null` as standard input.
fn poll_files() -> Result<(), String> {
    let waits = |fd: u32, userdata: u64| {
        let read = wasi::SubscriptionFdReadwrite { file_descriptor: fd };
        let u = wasi::SubscriptionU {
            tag: wasi::EVENTTYPE_FD_READ.raw(),
            u: wasi::SubscriptionUU { fd_read: read },
        };
        wasi::Subscription { userdata, u }
    };
    let writes = |fd: u32, userdata: u64| {
        let write = wasi::SubscriptionFdReadwrite { file_descriptor: fd };
        let u = wasi::SubscriptionU {
            tag: wasi::EVENTTYPE_FD_WRITE.raw(),
            u: wasi::SubscriptionUU { fd_write: write },
        };
        wasi::Subscription { userdata, u }
    };
    let clock = wasi::SubscriptionClock {
        id: wasi::CLOCKID_MONOTONIC,
        timeout: 60_000_000_000,
        precision: 1,
        flags: 0,
    };
    let never = wasi::Subscription {
        userdata: 9,
        u: wasi::SubscriptionU {
            tag: wasi::EVENTTYPE_CLOCK.raw(),
            u: wasi::SubscriptionUU { clock },
        },
    };
    let poll = |subscriptions: &[wasi::Subscription]| -> Result<Vec<(u64, u16)>, String> {
        let mut events = [core::mem::MaybeUninit::<wasi::Event>::uninit(); 8];
        let count = call(unsafe {
            wasi::poll_oneoff(
                subscriptions.as_ptr(),
                events.as_mut_ptr().cast(),
                subscriptions.len(),
            )
        })?;
        let told = events[..count].iter().map(|event| unsafe { event.assume_init_ref() });
        let mut told: Vec<_> = told.map(|event| (event.userdata, event.error.raw())).collect();
        told.sort_unstable();
        Ok(told)
    };
    // Twice each, and again when the number is another file's.
    for _ in 0..2 {
        with_file(|fd| {
            for _ in 0..2 {
                same(poll(&[waits(fd, 1), never])?, vec![(1, 0)])?;
                same(poll(&[writes(fd, 2), never])?, vec![(2, 0)])?;
                same(poll(&[waits(fd, 1), writes(fd, 2), waits(0, 3), never])?.len(), 3)?;
            }
            Ok(())
        })?;
        same(poll(&[waits(0, 3), never])?, vec![(3, 0)])?;
        let soon = wasi::Subscription {
            userdata: 5,
            u: wasi::SubscriptionU {
                tag: wasi::EVENTTYPE_CLOCK.raw(),
                u: wasi::SubscriptionUU {
                    clock: wasi::SubscriptionClock { timeout: 1_000_000, ..clock },
                },
            },
        };
        // Nothing is left of them.
        same(poll(&[soon])?, vec![(5, 0)])?;
    }
    Ok(())
}

/// Out of the directory that it was given, by every way that there is.
fn escapes() -> Result<(), String> {
    let work = open_directory("work")?;
    let open = |path: &str| unsafe { wasi::path_open(work, wasi::LOOKUPFLAGS_SYMLINK_FOLLOW, path, 0, wasi::RIGHTS_FD_READ, 0, 0) };
    for path in ["../secret", "/secret", "file/../../secret", "./../secret"] {
        same((path, open(path).is_err()), (path, true))?;
    }
    for target in ["../secret", "/secret"] {
        // Making it may be refused too.
        if unsafe { wasi::path_symlink(target, ROOT, "work/out") }.is_ok() {
            let outcome = open("out").is_err();
            call(unsafe { wasi::path_unlink_file(ROOT, "work/out") })?;
            same((target, outcome), (target, true))?;
        }
    }
    close(work)
}

fn on_no_socket() -> Result<(), String> {
    with_file(|fd| {
        let mut byte = [0];
        let to = [Iovec { buf: byte.as_mut_ptr(), buf_len: 1 }];
        let from = [Ciovec { buf: b"x".as_ptr(), buf_len: 1 }];
        same(unsafe { wasi::sock_recv(fd, &to, 0) }.is_err(), true)?;
        same(unsafe { wasi::sock_send(fd, &from, 0) }.is_err(), true)?;
        same(unsafe { wasi::sock_shutdown(fd, wasi::SDFLAGS_RD) }.is_err(), true)
    })
}

/// No signal ends it; WASI has dropped them.
fn proc_raise() -> Result<(), String> {
    same(unsafe { wasi::proc_raise(wasi::SIGNAL_NONE) }.err().is_none_or(|error| error == wasi::ERRNO_NOSYS), true)
}
