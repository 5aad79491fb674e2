//! The last steps of loading this program, which the loader leaves to it.
//!
//! The build joins the program and its libraries to one file (`packaging/wasmedge/join`). A loader
//! knows less about such a file than about many.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use libc::Elf64_Phdr;
use rt_engine::process::hold_signals;

/// The program header of names: text for messages, at a fixed address. `packaging/wasmedge/join`
/// writes it.
const NAMES: u32 = 0x6072_7401;

/// The program whose libraries are separate files, in the engine's directory.
const SHARED: &str = "rt-wasmedge-shared";

/// This program's own headers, and the address at which it is.
struct Loaded {
    base: usize,
    headers: Vec<Elf64_Phdr>,
}

/// Copies what the loader tells about a file. The first one is the program.
unsafe extern "C" fn first(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    loaded: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid structure for the time of the call.
    let info = unsafe { &*info };
    // SAFETY: `own_headers` passes its own `Loaded`, which nobody else uses.
    let loaded = unsafe { &mut *loaded.cast::<Loaded>() };
    loaded.base = usize::try_from(info.dlpi_addr).unwrap_or(0);
    // SAFETY: a program has this many headers at this address, as long as it runs.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    loaded.headers = headers.to_vec();
    1
}

fn own_headers() -> Loaded {
    let mut loaded = Loaded { base: 0, headers: Vec::new() };
    // SAFETY: the callback has the required type, and `loaded` lives across the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut loaded).cast()) };
    loaded
}

impl Loaded {
    fn of(&self, kind: u32) -> impl Iterator<Item = &Elf64_Phdr> {
        self.headers.iter().filter(move |header| header.p_type == kind)
    }

    /// Whether this program's libraries are joined to it.
    fn is_joined(&self) -> bool {
        self.of(libc::PT_GNU_RELRO).count() > 1
    }

    /// Makes the pointers read-only that the loader has relocated. The loader does this for one
    /// range of a file only, and a joined file has one for each library.
    fn protect_pointers(&self) -> Result<(), String> {
        // Programs are joined for x86-64 only.
        const PAGE: usize = 4096;
        for range in self.of(libc::PT_GNU_RELRO) {
            let start = self.base + range.p_vaddr as usize;
            let end = (start + range.p_memsz as usize) & !(PAGE - 1);
            let start = start & !(PAGE - 1);
            if start >= end {
                continue;
            }
            let length = end - start;
            // SAFETY: the range is a part of this program that nobody writes to after loading.
            if unsafe { libc::mprotect(start as *mut c_void, length, libc::PROT_READ) } < 0 {
                return Err(format!("protect pointers: {}", io::Error::last_os_error()));
            }
        }
        Ok(())
    }

    /// Maps the names at their address.
    fn map_names(&self) -> Result<(), String> {
        for names in self.of(NAMES) {
            // The loader was started with this path.
            let path = std::env::args_os().next().unwrap_or_default();
            let failed = |error: io::Error| format!("map names of the engine: {error}");
            let program = std::fs::File::open(path).map_err(failed)?;
            // SAFETY: the call maps new, read-only pages, and replaces none.
            let mapped = unsafe {
                libc::mmap(
                    names.p_vaddr as *mut c_void,
                    names.p_memsz as usize,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE,
                    program.as_raw_fd(),
                    names.p_offset.cast_signed(),
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(failed(io::Error::last_os_error()));
            }
            // Before Linux 4.17, the kernel takes the address as a wish.
            if mapped as u64 != names.p_vaddr {
                return Err("map names of the engine: their address is in use".into());
            }
        }
        Ok(())
    }
}

/// Finishes loading, before anything of WasmEdge runs.
pub(crate) fn finish_loading() -> Result<(), String> {
    let loaded = own_headers();
    if loaded.is_joined() {
        loaded.protect_pointers()?;
        loaded.map_names()?;
    }
    Ok(())
}

/// Prepares for plugins. They need libraries by name, as separate files. A joined program becomes
/// the one with such libraries, with the same command line and the same open files. The loader then
/// searches the directory of the plugins too.
pub(crate) fn use_separate_libraries(engine_dir: RawFd, plugin_dir: RawFd) -> Result<(), String> {
    if !own_headers().is_joined() {
        return Ok(());
    }
    let directory = format!("/proc/self/fd/{engine_dir}");
    let loader = format!("{directory}/ld.so");
    let head = [
        loader.clone(),
        "--inhibit-cache".into(),
        "--library-path".into(),
        format!("{directory}/lib:/proc/self/fd/{plugin_dir}"),
        format!("{directory}/{SHARED}"),
    ];
    let arguments = head.into_iter().map(OsString::from).chain(std::env::args_os().skip(1));
    let arguments = arguments.map(|it| CString::new(it.as_bytes()));
    let arguments: Vec<CString> = arguments.collect::<Result<_, _>>().unwrap_or_default();
    let mut pointers: Vec<*const c_char> = arguments.iter().map(|it| it.as_ptr()).collect();
    pointers.push(ptr::null());
    let environment = [ptr::null()];
    // The new program has no handlers at first. A signal waits until it has.
    hold_signals();
    // SAFETY: both lists end with null, and their strings are NUL-terminated. All live across the
    // call, which returns only if it fails.
    unsafe { libc::execve(pointers[0], pointers.as_ptr(), environment.as_ptr()) };
    Err(format!("start `{SHARED}` for plugins: {}", io::Error::last_os_error()))
}
