//! The one door to `unsafe`: calls of WasmEdge's C interface that its Rust one lacks. Two rooms lie
//! behind it: a run whose instructions are counted, and functions in the place of libraries'.
#![allow(
    unsafe_code,
    reason = "C calls without a safe wrapper, and functions that C calls; nothing else may use unsafe"
)]

mod fuel;
mod interposed;

use std::sync::Mutex;

pub(crate) use fuel::run_with_fuel;
pub(crate) use interposed::{guard_files, limit_pieces};
use rt_engine::process;
use wasmedge_sdk::AsInstance;
use wasmedge_sys::ffi;

/// Gives a module's memory a name, as far as it may grow ([`process::name_memory`]).
pub(crate) fn name_memory(instance: &wasmedge_sys::Instance) {
    // SAFETY: the instance is borrowed for the time of the call.
    name_memory_of(unsafe { instance.as_ptr() });
}

fn name_memory_of(instance: *const ffi::WasmEdge_ModuleInstanceContext) {
    const MOST: usize = 4 << 30;
    // SAFETY: the literal is NUL-terminated, and copied.
    let name = unsafe { ffi::WasmEdge_StringCreateByCString(c"memory".as_ptr()) };
    // SAFETY: the instance lives; what is found in it lives as long.
    let memory = unsafe { ffi::WasmEdge_ModuleInstanceFindMemory(instance, name) };
    if memory.is_null() {
        return;
    }
    // SAFETY: `memory` is one; a range that it has not is answered by null.
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
