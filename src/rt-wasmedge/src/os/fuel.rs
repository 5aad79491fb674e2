//! A run with counted instructions. It uses WasmEdge's C interface, because wasmedge-sys frees the
//! statistics, which count, as soon as an executor has them.

use std::ffi::{CStr, CString, c_int};
use std::os::fd::AsRawFd;
use std::ptr;

use rt_engine::process::{end_after, trim_memory};
use wasmedge_sdk::{AsInstance, RunMode};
use wasmedge_sys::ffi;

use super::{name_memory_of, take_log};
use crate::config;
use crate::load::Source;

/// Runs a module's `_start` for this many instructions. The outer error means that the module never
/// started, the inner one is a trap.
pub(crate) fn run_with_fuel(
    source: Source,
    wasi: &mut wasmedge_sys::Instance,
    most_pages: Option<u32>,
    timeout: Option<c_int>,
    fuel: u64,
) -> Result<Result<(), String>, String> {
    let mut config = config::c_options(match &source {
        Source::Bytes(_) => RunMode::Interpreter,
        Source::Native(_) => RunMode::Aot,
    })?;
    config.measure_cost(true);
    if let Some(pages) = most_pages {
        config.set_max_memory_pages(pages);
    }
    // SAFETY: the configuration lives across the call. For null, WasmEdge makes a store of its own.
    // The machine is never freed: the process ends with it.
    let vm = unsafe { ffi::WasmEdge_VMCreate(config.as_ptr(), ptr::null_mut()) };
    if vm.is_null() {
        return Err("make a virtual machine".into());
    }
    // SAFETY: `vm` is a machine, and its statistics live as long as it does.
    let statistics = unsafe { ffi::WasmEdge_VMGetStatisticsContext(vm) };
    // SAFETY: as above; this sets a number.
    unsafe { ffi::WasmEdge_StatisticsSetCostLimit(statistics, fuel) };
    // SAFETY: the instance is borrowed, and not freed before the machine has run for the last time.
    let wasi = unsafe { wasi.as_ptr() };
    // SAFETY: `vm` is a machine and `wasi` is an instance.
    check(unsafe { ffi::WasmEdge_VMRegisterModuleFromImport(vm, wasi) })?;
    let loaded = match source {
        Source::Bytes(bytes) => {
            // SAFETY: the bytes are copied (`wasmedge_basic.h`).
            let copy = unsafe {
                ffi::WasmEdge_BytesCreate(bytes.as_ptr(), u32::try_from(bytes.len()).unwrap_or(0))
            };
            drop(bytes);
            // SAFETY: `copy` was just made, and is not freed.
            unsafe { ffi::WasmEdge_VMLoadWasmFromBytes(vm, copy) }
        }
        Source::Native(native) => {
            let path = format!("/proc/self/fd/{}", native.as_raw_fd());
            let path = CString::new(path).unwrap_or_default();
            // SAFETY: the path is NUL-terminated and lives across the call.
            unsafe { ffi::WasmEdge_VMLoadWasmFromFile(vm, path.as_ptr()) }
        }
    };
    check(loaded)?;
    // SAFETY: the machine has a module.
    check(unsafe { ffi::WasmEdge_VMValidate(vm) })?;
    if let Some(timeout) = timeout {
        end_after(timeout)?;
    }
    // SAFETY: the module is validated. Its start function runs in this call, and may end the run.
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
    // SAFETY: the machine has an active module, which lives as long as the machine.
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

/// Whether the result is a trap: the codes of execution begin at 0x400, and the code of the cost
/// limit is 3 (`enum_errcode.h`).
fn is_of_execution(result: ffi::WasmEdge_Result) -> bool {
    // SAFETY: takes a plain value.
    let code = unsafe { ffi::WasmEdge_ResultGetCode(result) };
    (0x400..0x500).contains(&code) || code == 3
}

/// The text of an error. An end by `proc_exit` is not an error.
fn check(result: ffi::WasmEdge_Result) -> Result<(), String> {
    // SAFETY: takes a plain value.
    if unsafe { ffi::WasmEdge_ResultOK(result) } {
        return Ok(());
    }
    // SAFETY: takes a plain value, and returns a literal of the library (`wasmedge_basic.h`).
    let message = unsafe { ffi::WasmEdge_ResultGetMessage(result) };
    // SAFETY: a literal is NUL-terminated, and lives for ever.
    let message = unsafe { CStr::from_ptr(message) };
    Err(message.to_string_lossy().into_owned())
}
