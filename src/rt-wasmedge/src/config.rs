//! The WebAssembly features that a module may use, and how such a module runs. The compiler, the
//! interpreter and runs with fuel get their configurations from this one list. WasmEdge's own
//! defaults grow with each of its versions, so this program uses none of them.
//!
//! Two programs follow the list: WasmEdge has it as its configuration, and `wasmparser` validates a
//! module by it before native code is made ([`check_native`]).
#![forbid(unsafe_code)]

use wasmedge_sdk::config::CommonConfigOptions;
use wasmedge_sdk::{RunMode, WasmStandard};
use wasmparser::{Validator, WasmFeatures};

/// How a module that uses a proposal runs.
#[derive(Clone, Copy, Eq, PartialEq)]
enum How {
    /// As native code, or interpreted if there is none. Native code keeps a guest inside its
    /// memories and tables. The tests of the topic `wasm_hostile` try to get out.
    Native,
    /// Only in the interpreter, which checks every access. The module is never compiled.
    Interpreted,
    /// Not at all.
    Refused,
}

struct Proposal {
    /// The name that the WebAssembly community group uses.
    name: &'static str,
    how: How,
    /// Its feature in `wasmparser`.
    feature: WasmFeatures,
    /// Its option in WasmEdge, or `None` if WasmEdge does not know the proposal.
    option: Option<Setter>,
}

/// Sets the option in both kinds of configurations: the builder's, and the C interface's.
type Setter =
    (fn(CommonConfigOptions, bool) -> CommonConfigOptions, fn(&mut wasmedge_sys::Config, bool));

/// A proposal that WasmEdge knows by a name.
macro_rules! known {
    ($name:literal, $how:ident, $feature:ident, $option:ident) => {
        Proposal {
            name: $name,
            how: How::$how,
            feature: WasmFeatures::$feature,
            option: Some((|it, on| it.$option(on), |it, on| it.$option(on))),
        }
    };
}

/// A proposal that WasmEdge does not implement.
macro_rules! unknown {
    ($name:literal, $feature:ident) => {
        Proposal { name: $name, how: How::Refused, feature: WasmFeatures::$feature, option: None }
    };
}

/// All proposals. WasmEdge switches a proposal off only after the proposals that require it. So the
/// order matters: `gc`, `function-references`, `reference-types`.
const PROPOSALS: [Proposal; 21] = [
    // Native code adds the 64-bit address of an access to the memory's base without a check. The
    // guard pages around a memory are enough for 32 bits only. In `call_indirect`, an index into a
    // 64-bit table loses its upper half.
    known!("memory64", Interpreted, MEMORY64, memory64),
    // For Kotlin, Java, OCaml and Scheme. No way out of their native code is known. But the modules
    // of these languages also use exceptions, so they would be interpreted anyway.
    known!("gc", Interpreted, GC, gc),
    known!("function-references", Interpreted, FUNCTION_REFERENCES, function_references),
    // WasmEdge cannot compile exceptions.
    known!("exception-handling", Interpreted, EXCEPTIONS, exception_handling),
    // Only the engine makes a reference. Native code compares each index with the table's length.
    // Before a call, it compares the callee's type with the required one.
    known!("reference-types", Native, REFERENCE_TYPES, reference_types),
    // Each memory has its own 8 GiB of addresses. All addresses behind the memory's end are guard
    // pages. The farthest access begins at 2^32 - 1 (address) + 2^32 - 1 (offset), 2 bytes before
    // the end of the 8 GiB. A wider access goes beyond, but its first bytes are in a guard page, so
    // it faults.
    known!("multi-memory", Native, MULTI_MEMORY, multi_memories),
    // The engine's own functions do this, and check the sum of offset and length in 64 bits.
    known!("bulk-memory-operations", Native, BULK_MEMORY, bulk_memory_operations),
    // Loads and stores are the same as those of other types.
    known!("simd", Native, SIMD, simd),
    // The same as the strict instructions.
    known!("relaxed-simd", Native, RELAXED_SIMD, relax_simd),
    // With any number of arguments on either side.
    known!("tail-call", Native, TAIL_CALL, tail_call),
    // Arithmetic and types, without an address.
    known!("mutable-global", Native, MUTABLE_GLOBAL, mutable_globals),
    known!(
        "nontrapping-float-to-int-conversions",
        Native,
        SATURATING_FLOAT_TO_INT,
        non_trap_conversions
    ),
    known!("sign-extension-ops", Native, SIGN_EXTENSION, sign_extension_operators),
    known!("multi-value", Native, MULTI_VALUE, multi_value),
    known!("extended-const", Native, EXTENDED_CONST, extended_const),
    // WASI preview1 starts no threads.
    known!("threads", Refused, THREADS, threads),
    unknown!("legacy exception-handling", LEGACY_EXCEPTIONS),
    unknown!("custom-page-sizes", CUSTOM_PAGE_SIZES),
    unknown!("wide-arithmetic", WIDE_ARITHMETIC),
    unknown!("stack-switching", STACK_SWITCHING),
    unknown!("shared-everything-threads", SHARED_EVERYTHING_THREADS),
];

/// Features that have a name in `wasmparser` but are not proposals: floats, and the types of
/// references, each of which also requires a proposal.
const ALWAYS: WasmFeatures = WasmFeatures::FLOATS.union(WasmFeatures::GC_TYPES);

/// Whether a feature is on for a module that runs in this mode.
fn is_on(how: How, mode: RunMode) -> bool {
    match how {
        How::Native => true,
        How::Interpreted => mode == RunMode::Interpreter,
        How::Refused => false,
    }
}

/// The options of a module: for the interpreter, or for the compiler and its native code.
pub(crate) fn options(mode: RunMode) -> CommonConfigOptions {
    // The smallest set that WasmEdge has: for example, without the component model.
    let options = CommonConfigOptions::from_wasm_standard(WasmStandard::Wasm1);
    PROPOSALS.iter().fold(options.run_mode(mode), |options, proposal| match proposal.option {
        Some((set, _)) => set(options, is_on(proposal.how, mode)),
        None => options,
    })
}

/// Makes the same options for the C interface.
pub(crate) fn c_options(mode: RunMode) -> Result<wasmedge_sys::Config, String> {
    let mut config = wasmedge_sys::Config::create().map_err(|error| error.to_string())?;
    config.set_wasm_standard(WasmStandard::Wasm1);
    for proposal in &PROPOSALS {
        if let Some((_, set)) = proposal.option {
            set(&mut config, is_on(proposal.how, mode));
        }
    }
    config.set_run_mode(mode);
    Ok(config)
}

fn features(is_in: impl Fn(How) -> bool) -> WasmFeatures {
    let of = PROPOSALS.iter().filter(|proposal| is_in(proposal.how));
    of.fold(ALWAYS, |all, proposal| all | proposal.feature)
}

fn validate(module: &[u8], features: WasmFeatures) -> Result<(), String> {
    let valid = Validator::new_with_features(features).validate_all(module);
    valid.map(drop).map_err(|error| error.to_string())
}

/// The names of those proposals that a module uses and that run in one of these ways. Returns
/// `None` too if the module is not valid even with all proposals.
fn used(module: &[u8], is_in: impl Fn(How) -> bool) -> Option<String> {
    let all = features(|_| true);
    validate(module, all).ok()?;
    let of = PROPOSALS.iter().filter(|proposal| is_in(proposal.how));
    let used = of.filter(|proposal| validate(module, all - proposal.feature).is_err());
    let names: Vec<_> = used.map(|proposal| format!("`{}`", proposal.name)).collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

/// Whether a module may be compiled to native code. Otherwise returns the reason, in one line.
pub(crate) fn check_native(module: &[u8]) -> Result<(), String> {
    let is_native = |how| how == How::Native;
    let Err(why) = validate(module, features(is_native)) else { return Ok(()) };
    Err(match used(module, |how| !is_native(how)) {
        Some(names) => format!("it uses {names}, and such a module is never compiled"),
        None => format!("no native code is made of it: {why}"),
    })
}

/// Why a module cannot run at all, if the reason is a proposal that it uses.
pub(crate) fn refusal(module: &[u8]) -> Option<String> {
    let names = used(module, |how| how == How::Refused)?;
    Some(format!("it uses {names}, which WasmEdge does not run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(module (memory 1))`, with other flags for the memory.
    fn memory(flags: u8) -> Vec<u8> {
        [&b"\0asm\x01\0\0\0\x05"[..], &[4, 1, flags, 1, 2]].concat()
    }

    #[test]
    fn a_module_is_compiled_for_what_it_uses() {
        // A structure type.
        let gc = b"\0asm\x01\0\0\0\x01\x05\x01\x5f\x01\x7e\0".to_vec();
        assert_eq!(check_native(&memory(1)), Ok(()));
        for (module, name) in [(memory(5), "memory64"), (memory(3), "threads"), (gc, "gc")] {
            let said = format!("it uses `{name}`, and such a module is never compiled");
            assert_eq!(check_native(&module), Err(said));
            let said =
                (name == "threads").then_some("it uses `threads`, which WasmEdge does not run");
            assert_eq!(refusal(&module).as_deref(), said);
        }
        let cut_off = check_native(b"\0asm\x01\0\0\0\x01");
        assert!(cut_off.is_err_and(|why| why.starts_with("no native code is made of it: ")));
    }

    #[test]
    fn both_engines_have_the_same_list() {
        for (mode, memory64) in [(RunMode::Interpreter, true), (RunMode::Aot, false)] {
            let config = c_options(mode).expect("made");
            let on = [
                config.memory64_enabled(),
                config.gc_enabled(),
                config.function_references_enabled(),
                config.exception_handling_enabled(),
            ];
            assert_eq!(on, [memory64; 4]);
            assert!(config.reference_types_enabled() && config.simd_enabled());
            assert!(!config.threads_enabled() && !config.component_model_enabled());
            let built = wasmedge_sdk::config::ConfigBuilder::new(options(mode)).build();
            let built = built.expect("built");
            let on = [
                built.memory64_enabled(),
                built.gc_enabled(),
                built.function_references_enabled(),
                built.exception_handling_enabled(),
            ];
            assert_eq!(on, [memory64; 4]);
            assert!(built.reference_types_enabled() && !built.threads_enabled());
            assert_eq!(built.run_mode(), mode);
        }
    }
}
