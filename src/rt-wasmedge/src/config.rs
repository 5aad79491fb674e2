//! What WebAssembly a module may use, and how such a module runs: the one list that the compiler, the interpreter and runs with fuel
//! have their configurations from. WasmEdge's own defaults grow with each of its versions, so none of them is taken.
//!
//! The list is held twice, by two programs: WasmEdge gets it as its configuration, and before native code is made, `wasmparser`
//! validates the module by it ([`check_native`]).
#![forbid(unsafe_code)]

use wasmedge_sdk::RunMode;
use wasmedge_sdk::config::CommonConfigOptions;
use wasmparser::{Validator, WasmFeatures};

/// How a module runs that uses a proposal.
#[derive(Clone, Copy, Eq, PartialEq)]
enum How {
    /// Native code, or interpreted where there is none. Its native code keeps a guest in its memories and tables, which the tests of
    /// the topic `wasm_hostile` try.
    Native,
    /// The interpreter alone, which checks every access. It is never compiled.
    Interpreted,
    /// Not at all.
    Refused,
}

struct Proposal {
    /// As the WebAssembly community group calls it.
    name: &'static str,
    how: How,
    /// What it is to `wasmparser`.
    feature: WasmFeatures,
    /// What it is to WasmEdge; none for what WasmEdge does not know.
    option: Option<Setter>,
}

/// How it is set in both kinds of configurations: those of a builder, and those for the C interface.
type Setter =
    (fn(CommonConfigOptions, bool) -> CommonConfigOptions, fn(&mut wasmedge_sys::Config, bool));

/// One proposal that WasmEdge knows by a name.
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

/// One that WasmEdge has no code for.
macro_rules! unknown {
    ($name:literal, $feature:ident) => {
        Proposal { name: $name, how: How::Refused, feature: WasmFeatures::$feature, option: None }
    };
}

/// All of them. WasmEdge takes one away only after those that need it: `gc`, then `function-references`, then `reference-types`.
const PROPOSALS: [Proposal; 21] = [
    // The native code adds the 64-bit address of an access to the memory's base, without a check; the guard pages around a memory are
    // enough for 32 bits only. An index into a 64-bit table loses its upper half in `call_indirect`.
    known!("memory64", Interpreted, MEMORY64, memory64),
    // Kotlin, Java, OCaml, Scheme. Their native code goes through the same checks as the interpreter, but such modules use exceptions too,
    // which WasmEdge does not compile: so there is nothing to be gained.
    known!("gc", Interpreted, GC, gc),
    known!("function-references", Interpreted, FUNCTION_REFERENCES, function_references),
    // WasmEdge has no native code for it. The older form, of `try` and `catch`, it does not know at all.
    known!("exception-handling", Interpreted, EXCEPTIONS, exception_handling),
    // References are two words that only the engine makes; tables have a length, which native code compares with, and calls through
    // them the type of what is called.
    known!("reference-types", Native, REFERENCE_TYPES, reference_types),
    // Each memory has 4 GiB of guard pages before it and as much as 8 GiB from its beginning on, of which an access reaches
    // 2^32 - 1 + 2^32 - 1: one that is 16 bytes wide and begins at the last of them meets a guard page with its first byte.
    known!("multi-memory", Native, MULTI_MEMORY, multi_memories),
    // Done by functions of the engine, which check offset and length together in 64 bits.
    known!("bulk-memory-operations", Native, BULK_MEMORY, bulk_memory_operations),
    // Loads and stores are those of other types.
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

/// What `wasmparser` has a name for, and WebAssembly has had from the beginning: floats, and the types of references, which each need
/// a proposal too.
const ALWAYS: WasmFeatures = WasmFeatures::FLOATS.union(WasmFeatures::GC_TYPES);

/// Whether it is on for a module that runs in this way.
fn is_on(how: How, mode: RunMode) -> bool {
    match how {
        How::Native => true,
        How::Interpreted => mode == RunMode::Interpreter,
        How::Refused => false,
    }
}

/// The options of a module that is interpreted, or that is compiled or was.
pub(crate) fn options(mode: RunMode) -> CommonConfigOptions {
    // Two that change nothing of what runs: another form of text, and what is no core module.
    let options = CommonConfigOptions::default().annotations(false).component_model(false);
    PROPOSALS.iter().fold(options.run_mode(mode), |options, proposal| match proposal.option {
        Some((set, _)) => set(options, is_on(proposal.how, mode)),
        None => options,
    })
}

/// The same for the C interface.
pub(crate) fn c_options(mode: RunMode) -> Result<wasmedge_sys::Config, String> {
    let mut config = wasmedge_sys::Config::create().map_err(|error| error.to_string())?;
    config.annotations(false);
    config.component_model(false);
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

/// The names of those that a module uses, of the ones that run in such ways, if it is valid with all that there is.
fn used(module: &[u8], is_in: impl Fn(How) -> bool) -> Option<String> {
    let all = features(|_| true);
    validate(module, all).ok()?;
    let of = PROPOSALS.iter().filter(|proposal| is_in(proposal.how));
    let used = of.filter(|proposal| validate(module, all - proposal.feature).is_err());
    let names: Vec<_> = used.map(|proposal| format!("`{}`", proposal.name)).collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

/// Whether native code may be made of a module; else why not, in one line.
pub(crate) fn check_native(module: &[u8]) -> Result<(), String> {
    let is_native = |how| how == How::Native;
    let Err(why) = validate(module, features(is_native)) else { return Ok(()) };
    Err(match used(module, |how| !is_native(how)) {
        Some(names) => format!("it uses {names}, and such a module is never compiled"),
        None => format!("it is not valid WebAssembly: {why}"),
    })
}

/// Why a module is not run at all, if that is for what it uses.
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
        // A type of a structure.
        let gc = b"\0asm\x01\0\0\0\x01\x05\x01\x5f\x01\x7e\0".to_vec();
        assert_eq!(check_native(&memory(1)), Ok(()));
        for (module, name) in [(memory(5), "memory64"), (memory(3), "threads"), (gc, "gc")] {
            let said = format!("it uses `{name}`, and such a module is never compiled");
            assert_eq!(check_native(&module), Err(said));
            let said =
                (name == "threads").then_some("it uses `threads`, which WasmEdge does not run");
            assert_eq!(refusal(&module).as_deref(), said);
        }
        assert!(check_native(b"\0asm\x01\0\0\0\x01").is_err_and(|why| why.contains("not valid")));
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
