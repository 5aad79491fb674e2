//! The configuration of wasmtime. The program that runs native code and the compiler must agree on
//! it: wasmtime refuses native code that was made with another one.
#![forbid(unsafe_code)]

use wasmtime::{Config, Engine, WasmFeatures};

/// The proposals that a component may use. The list is explicit, because wasmtime's own defaults
/// change with its versions.
///
/// 64-bit memories are not in it: for them, native code checks each access, while guard pages are
/// enough for 32 bits.
const PROPOSALS: WasmFeatures = WasmFeatures::BULK_MEMORY
    .union(WasmFeatures::COMPONENT_MODEL)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::TAIL_CALL);

/// What a component may use besides these, if it waits for several things at once, as those of
/// WASI 0.3 do: functions that are asynchronous, streams and futures.
const ASYNCHRONOUS: WasmFeatures = WasmFeatures::CM_ASYNC;

/// What native code does besides its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// It counts instructions, for a limit of them.
    pub(crate) counting: bool,
    /// It looks from time to time whether others wait. Only handlers of requests do, because a
    /// command has its process for itself. Measured: a computation takes a third longer.
    pub(crate) yielding: bool,
    /// It is that of a component of WASI 0.3, or of another one with asynchronous functions. Each
    /// call between such a component and the host costs more.
    pub(crate) asynchronous: bool,
}

/// The proposals that a component of this form may use.
pub(crate) fn proposals(form: Form) -> WasmFeatures {
    match form.asynchronous {
        true => PROPOSALS.union(ASYNCHRONOUS),
        false => PROPOSALS,
    }
}

pub(crate) fn config(form: Form) -> Config {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(proposals(form), true)
        .concurrency_support(form.asynchronous)
        .consume_fuel(form.counting)
        .epoch_interruption(form.yielding)
        // No debugger looks at a guest, so its native code needs no tables for one.
        .native_unwind_info(false)
        .generate_address_map(false);
    config
}

pub(crate) fn engine(config: &Config) -> Result<Engine, String> {
    Engine::new(config).map_err(|error| format!("configure wasmtime: {error:#}"))
}
