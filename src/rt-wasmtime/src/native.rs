//! Loads native code, and interrupts it. The only file of this program with `unsafe`.
#![allow(unsafe_code, reason = "wasmtime trusts native code, and says so by `unsafe`")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rt_engine::process;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Maps the native code of a component. All processes that run it share its pages.
///
/// By the contract, `rt` passes only a file that this build's own compiler has made, on a mount
/// that nobody can write to.
pub(crate) fn load(engine: &Engine, native: &File) -> Result<Component, String> {
    let path = format!("/proc/self/fd/{}", native.as_raw_fd());
    // SAFETY: the file comes from wasmtime's own compiler in this version. `rt` keeps it in a cache
    // that only root can write to, has checked its digest, and has proved that `/proc` is procfs,
    // so that the path leads to this descriptor.
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.map_err(|error| format!("load its native code: {error:#}"))
}

static ENGINES: OnceLock<Vec<Engine>> = OnceLock::new();

/// Lets the guests of these engines yield to others each time that this process has used this many
/// milliseconds of processor time. Only the first call has an effect.
pub(crate) fn interrupt_each_slice(engines: Vec<Engine>, milliseconds: u16) -> Result<(), String> {
    ENGINES.get_or_init(|| engines);
    let interrupt = || {
        for engine in ENGINES.get().into_iter().flatten() {
            engine.increment_epoch();
        }
    };
    // SAFETY: the function reads one atomic value and increments one of each engine
    // (`increment_epoch`, "Signal Safety").
    unsafe { process::at_each_slice(milliseconds, interrupt) }
}
