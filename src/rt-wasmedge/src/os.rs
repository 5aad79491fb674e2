//! The only part of this program with `unsafe`: calls of WasmEdge's C interface that its Rust
//! interface lacks. It has three submodules: a run with counted instructions, functions that
//! replace those of libraries, and the last steps of loading.
#![allow(
    unsafe_code,
    reason = "C calls without a safe wrapper, and functions that C calls; nothing else may use unsafe"
)]

mod fuel;
mod interposed;
mod loaded;

use std::sync::Mutex;

pub(crate) use fuel::run_with_fuel;
pub(crate) use interposed::{guard_files, limit_pieces};
pub(crate) use loaded::{finish_loading, use_separate_libraries};
use rt_engine::process;
use wasmedge_sdk::AsInstance;
use wasmedge_sys::ffi;

/// Names a module's memory, for as many addresses as it may grow to ([`process::name_memory`]).
pub(crate) fn name_memory(instance: &wasmedge_sys::Instance) {
    // SAFETY: the instance is borrowed for the time of the call.
    name_memory_of(unsafe { instance.as_ptr() });
}

fn name_memory_of(instance: *const ffi::WasmEdge_ModuleInstanceContext) {
    const MOST: usize = 4 << 30;
    // SAFETY: the literal is NUL-terminated, and copied.
    let name = unsafe { ffi::WasmEdge_StringCreateByCString(c"memory".as_ptr()) };
    // SAFETY: the instance lives, and the memory in it lives as long.
    let memory = unsafe { ffi::WasmEdge_ModuleInstanceFindMemory(instance, name) };
    if memory.is_null() {
        return;
    }
    // SAFETY: `memory` is a memory. For a range outside of it, the function returns null.
    let base = unsafe { ffi::WasmEdge_MemoryInstanceGetPointerConst(memory, 0, 1) };
    if !base.is_null() {
        process::name_memory(base as usize, MOST);
    }
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

/// Keeps WasmEdge's own log for [`take_log`]. Otherwise it would go to standard output, which is
/// the guest's.
pub(crate) fn keep_log() {
    // SAFETY: sets a level; takes no pointer.
    unsafe { ffi::WasmEdge_LogSetErrorLevel() };
    // SAFETY: the callback has the type that WasmEdge requires, and lives as long as the program.
    unsafe { ffi::WasmEdge_LogSetCallback(Some(keep)) };
}

/// Takes all that WasmEdge has logged so far.
pub(crate) fn take_log() -> Vec<String> {
    LOG.lock().map(|mut log| std::mem::take(&mut *log)).unwrap_or_default()
}
