//! Modules that reach outside of their memories, tables, arrays and types. Each of them must end in
//! a trap, in each mode.

use std::fs;

use serde_json::json;

use super::wasm_cache::{COMPILE, compiled, files, host, wait_for_compiler};
use super::wasm_limits::limited;
use super::wasm_shares::{leb, section};
use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq};

super::tests! { "wasm_hostile":
    native_code_stays_inside, native_code_that_counts_stays_inside,
    the_interpreter_keeps_wide_memories_and_arrays_inside,
    a_memory_of_64_bits_is_kept_inside_when_compiled_at_once,
    a_memory_of_64_bits_is_kept_inside_when_compiled_later,
    a_memory_of_64_bits_is_kept_inside_when_interpreted,
    a_memory_of_64_bits_is_kept_inside_with_fuel,
    what_is_always_interpreted_is_told_and_remembered, what_is_not_run_is_named,
    many_arguments_of_tail_calls_keep_the_stack, tables_and_memories_grow_in_place,
    a_memory_that_cannot_grow_keeps_its_guard_pages, structures_are_read_within_limits, structures_are_compiled_within_limits,
}

const FUEL: &str = "run.oci.wasm.fuel";

/// Ends the module with an exit code.
const EXIT: &str = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;

/// A module with a function for each case. `_start` calls the function whose number is the number
/// of arguments. So the module is compiled only once for all cases.
fn cases(head: &str, cases: &[String]) -> Outcome<Vec<u8>> {
    let functions: String = cases
        .iter()
        .enumerate()
        .map(|(number, case)| format!("(func $case{number} (type $case) {case})"))
        .collect();
    let names: String = (0..cases.len()).map(|number| format!(" $case{number}")).collect();
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
           {EXIT} (memory (export "memory") 1) (type $case (func)) {head} {functions}
           (table $cases funcref (elem{names}))
           (func (export "_start") (drop (call $args (i32.const 0) (i32.const 4)))
             (call_indirect $cases (type $case) (i32.sub (i32.load (i32.const 0)) (i32.const 1)))))"#
    );
    Ok(wat::parse_str(text)?)
}

/// Runs every case. Each case must trap with one line.
fn all_trap(bundle: &Bundle<'_>, cases: &[String]) -> Outcome {
    for (number, case) in cases.iter().enumerate() {
        let mut arguments = vec!["/module.wasm"];
        arguments.resize(number + 1, "x");
        let Output { code, stderr, .. } = bundle.clone().args(&arguments).run()?;
        ensure(code == Some(134), format!("{case}: {code:?} {stderr}"))?;
        ensure(stderr.starts_with("rt-wasmedge: trap: "), format!("{case}: {stderr}"))?;
        ensure_eq(stderr.lines().count(), 1)?;
    }
    Ok(())
}

/// The memories, tables and data for the cases below.
const HEAD: &str = r#"
    (memory $second 1) (memory $empty 0) (data $data "abcd")
    (data (i32.const 64) "\00\00\00\80\ff\ff\ff\ff\00\00\00\00\00\00\00\80\ff\ff\ff\ff\ff\ff\ff\ff\00\00\c0\7f")
    (type $other (func (param i64) (result i64))) (table $t 4 4 funcref) (table $u 2 funcref)
    (elem $elements func $f $g) (elem (table $t) (i32.const 0) func $f $g)
    (func $f) (func $g (param i64) (result i64) (local.get 0))"#;

fn outside() -> Vec<String> {
    let mut cases = Vec::new();
    // The farthest address, the first one behind the memory, and one in the middle of the guard
    // pages.
    let places = [
        "offset=4294967295 (i32.const -1)",
        "offset=65535 (i32.const 1)",
        "(i32.const 0x80000000)",
    ];
    for place in places {
        for load in [
            "i32.load8_u",
            "i32.load16_u",
            "i32.load",
            "i64.load",
            "f32.load",
            "f64.load",
            "v128.load",
            "v128.load8_splat",
            "v128.load64_zero",
            "v128.load32x2_u",
        ] {
            cases.push(format!("(drop ({load} {place}))"));
        }
        for (store, value) in [
            ("i32.store8", "(i32.const 1)"),
            ("i32.store", "(i32.const 1)"),
            ("i64.store", "(i64.const 1)"),
            ("f64.store", "(f64.const 1)"),
            ("v128.store", "(v128.const i64x2 1 1)"),
        ] {
            cases.push(format!("({store} {place} {value})"));
        }
        for memory in ["$second", "$empty"] {
            cases.push(format!("(i32.store {memory} {place} (i32.const 1))"));
        }
    }
    let rest = [
        "(drop (v128.load8_lane offset=4294967295 15 (i32.const -1) (v128.const i64x2 0 0)))",
        "(v128.store64_lane offset=4294967295 1 (i32.const -1) (v128.const i64x2 0 0))",
        "(drop (memory.grow (i32.const 3))) (i32.store (i32.const 262141) (i32.const 1))",
        "(drop (memory.grow (i32.const -1))) (i32.store (i32.const 65536) (i32.const 1))",
        // The sum of offset and length does not fit in 32 bits.
        "(memory.copy (i32.const -1) (i32.const 0) (i32.const 2))",
        "(memory.copy (i32.const 0) (i32.const -8) (i32.const 16))",
        "(memory.copy 0 $second (i32.const 0) (i32.const 65535) (i32.const 2))",
        "(memory.copy $second 0 (i32.const 65535) (i32.const 0) (i32.const 2))",
        "(memory.fill (i32.const -1) (i32.const 7) (i32.const 2))",
        "(memory.fill (i32.const 16) (i32.const 7) (i32.const -1))",
        "(memory.init $data (i32.const -1) (i32.const 0) (i32.const 2))",
        "(memory.init $data (i32.const 0) (i32.const -1) (i32.const 2))",
        "(memory.init $data (i32.const 0) (i32.const 1) (i32.const 4))",
        "(data.drop $data) (memory.init $data (i32.const 0) (i32.const 0) (i32.const 1))",
        // Calls of missing functions, and of functions with another type.
        "(call_indirect $t (type $case) (i32.const 4))",
        "(call_indirect $t (type $case) (i32.const -1))",
        "(call_indirect $u (type $case) (i32.const 0x10000000))",
        "(call_indirect $t (type $case) (i32.const 2))",
        "(call_indirect $t (type $case) (i32.const 1))",
        "(drop (call_indirect $t (type $other) (i64.const 1) (i32.const 0)))",
        "(return_call_indirect $t (type $case) (i32.const 4))",
        "(return_call_indirect $t (type $case) (i32.const 1))",
        "(return_call_indirect $t (type $case) (i32.const 2))",
        "(drop (table.get $t (i32.const 4)))",
        "(drop (table.get $t (i32.const -1)))",
        "(table.set $t (i32.const 4) (ref.null func))",
        "(table.set $t (i32.const -1) (ref.func $f))",
        "(table.fill $t (i32.const -1) (ref.func $f) (i32.const 2))",
        "(table.fill $t (i32.const 1) (ref.func $f) (i32.const -1))",
        "(table.copy $t $u (i32.const -1) (i32.const 0) (i32.const 2))",
        "(table.copy $t $u (i32.const 0) (i32.const -1) (i32.const 2))",
        "(table.copy $t $t (i32.const 1) (i32.const 0) (i32.const -1))",
        "(table.init $t $elements (i32.const -1) (i32.const 0) (i32.const 2))",
        "(table.init $t $elements (i32.const 0) (i32.const -1) (i32.const 2))",
        "(table.init $t $elements (i32.const 0) (i32.const 1) (i32.const 2))",
        "(drop (table.grow $u (ref.null func) (i32.const 5))) (table.set $u (i32.const 7) (ref.null func))",
        // Arithmetic without a result.
        "(drop (i32.div_s (i32.load (i32.const 64)) (i32.load (i32.const 68))))",
        "(drop (i64.div_s (i64.load (i32.const 72)) (i64.load (i32.const 80))))",
        "(drop (i64.rem_u (i64.const 1) (i64.load (i32.const 128))))",
        "(drop (i32.trunc_f32_s (f32.load (i32.const 88))))",
        "(drop (i64.trunc_f64_u (f64.neg (f64.const 1))))",
        // Addresses that the engine would read or write.
        "(i32.store (i32.const 8) (i32.const -8)) (i32.store (i32.const 12) (i32.const 65536))
         (br_if 0 (i32.eqz (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)))) (unreachable)",
        "(br_if 0 (i32.eqz (call $write (i32.const 1) (i32.const -4) (i32.const 0x20000001) (i32.const 8)))) (unreachable)",
        "(br_if 0 (i32.eqz (call $random (i32.const -1) (i32.const 16)))) (unreachable)",
    ];
    cases.extend(rest.map(str::to_owned));
    cases
}

fn native_code_stays_inside(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let outside = outside();
    all_trap(&test.module(&cases(HEAD, &outside)?)?, &outside)?;
    compiled(test).map(drop)
}

fn native_code_that_counts_stays_inside(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let outside = outside();
    let bundle = test.module(&cases(HEAD, &outside)?)?;
    all_trap(&bundle.annotation(FUEL, "100000"), &outside)?;
    compiled(test).map(drop)
}

/// Features that only the interpreter supports: 64-bit memories, and the types and arrays of the GC
/// proposal.
fn the_interpreter_keeps_wide_memories_and_arrays_inside(test: &Test) -> Outcome {
    const HEAD: &str = r#"
        (memory $wide i64 1) (table $far i64 2 funcref) (data $data "abcdefgh")
        (type $s (sub (struct (field (mut i64))))) (type $larger (sub $s (struct (field (mut i64)) (field (mut i64)))))
        (type $bytes (array (mut i8))) (type $words (array (mut i64))) (type $functions (array (mut funcref)))
        (type $other (func (param i64) (result i64))) (elem $elements funcref (ref.func $f)) (func $f)
        (func $words (result (ref $words)) (array.new_default $words (i32.const 8)))
        (func $bytes (result (ref $bytes)) (array.new_default $bytes (i32.const 8)))
        (func $any (result anyref) (struct.new_default $s))"#;
    let outside: Vec<String> = [
        "(drop (i32.load $wide (i64.const 0x200200000)))",
        "(drop (i64.load $wide offset=0x100 (i64.const 0xffffffffffffff00)))",
        "(i64.store $wide (i64.const 0x7f0000001000) (i64.const 1))",
        "(memory.fill $wide (i64.const 0x200000000) (i32.const 1) (i64.const 1))",
        "(memory.copy $wide $wide (i64.const 0) (i64.const -8) (i64.const 16))",
        "(memory.init $wide $data (i64.const 0x100000000) (i32.const 0) (i32.const 1))",
        "(call_indirect $far (type $case) (i64.const 0x100000000))",
        "(table.set $far (i64.const 0x100000000) (ref.func $f))",
        "(table.copy $far $far (i64.const 0) (i64.const 0) (i64.const 0x100000001))",
        "(drop (struct.get $s 0 (ref.null $s)))",
        "(drop (array.len (ref.null array)))",
        "(call_ref $case (ref.null $case))",
        "(drop (array.get $words (call $words) (i32.const 8)))",
        "(drop (array.get_u $bytes (call $bytes) (i32.const -1)))",
        "(array.set $words (call $words) (i32.const 0x20000000) (i64.const 1))",
        "(array.fill $words (call $words) (i32.const 2) (i64.const 1) (i32.const -1))",
        "(array.copy $words $words (call $words) (i32.const -1) (call $words) (i32.const 0) (i32.const 2))",
        "(array.copy $words $words (call $words) (i32.const 0) (call $words) (i32.const -1) (i32.const 2))",
        // Eight bytes times 2^29 is 0 in 32 bits.
        "(array.init_data $words $data (call $words) (i32.const 0) (i32.const 8) (i32.const 0x20000000))",
        "(drop (array.new_data $words $data (i32.const 0) (i32.const 0x20000001)))",
        "(drop (array.new_elem $functions $elements (i32.const 1) (i32.const -1)))",
        "(drop (array.new $words (i64.const 7) (i32.const -1)))",
        "(drop (ref.cast (ref $larger) (call $any)))",
        "(drop (ref.cast (ref $words) (call $any)))",
        "(drop (ref.cast (ref $words) (any.convert_extern (extern.convert_any (ref.i31 (i32.const 77))))))",
        "(drop (ref.cast (ref $other) (ref.func $f)))",
    ]
    .map(str::to_owned)
    .into();
    all_trap(&test.module(&cases(HEAD, &outside)?)?.annotation(COMPILE, "off"), &outside)
}

/// Modules that read or call something far behind a 64-bit memory or table, and then end without an
/// error.
fn far() -> Outcome<Vec<Vec<u8>>> {
    [
        // The libraries of the engine begin there, behind the guard pages.
        r#"(memory i64 1) (func (export "_start") (drop (i64.load (i64.const 0x200200000))))"#,
        r#"(memory i64 1) (func (export "_start") (i64.store (i64.const 0x2004a8000) (i64.const 1)))"#,
        r#"(memory 1) (memory $w i64 1) (func (export "_start") (drop (i32.load $w (i64.const 0x200200000))))"#,
        // The sum of offset and address is 0 in 64 bits.
        r#"(memory i64 1) (func (export "_start") (drop (i64.load offset=0x100 (i64.const 0xffffffffffffff00))))"#,
        // The lower half of the index is the index of a function.
        r#"(memory 1) (type $v (func)) (table i64 2 funcref) (elem (i64.const 0) func $f) (func $f)
           (func (export "_start") (call_indirect (type $v) (i64.const 0x100000000)))"#,
        // A start function is a part of the run.
        r#"(memory i64 1) (func $s (drop (i64.load (i64.const 0x200200000)))) (start $s) (func (export "_start"))"#,
    ]
    .iter()
    .map(|text| Ok(wat::parse_str(format!("(module {text})"))?))
    .collect()
}

/// Each of these modules traps, and its last line says so. No module is compiled.
fn far_traps(test: &Test, change: impl Fn(Bundle<'_>) -> Bundle<'_>, starts: usize) -> Outcome {
    for (number, module) in far()?.iter().enumerate() {
        let bundle = change(test.module(module)?);
        for start in 1..=starts {
            let stderr = bundle.run()?.code(134)?.stderr;
            let last = stderr.lines().last().unwrap_or_default();
            ensure(last.starts_with("rt-wasmedge: trap: "), format!("{number}: {stderr}"))?;
            if start < starts {
                let done = || files(test, "failed").len() + files(test, "so").len() > number;
                wait_for_compiler("the compiler has looked at it", done)?;
            }
        }
    }
    ensure_eq(files(test, "so").len(), 0)
}

fn a_memory_of_64_bits_is_kept_inside_when_compiled_at_once(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    far_traps(test, |bundle| bundle, 1)
}

fn a_memory_of_64_bits_is_kept_inside_when_compiled_later(test: &Test) -> Outcome {
    host(test, json!({}))?;
    far_traps(test, |bundle| bundle, 2)
}

fn a_memory_of_64_bits_is_kept_inside_when_interpreted(test: &Test) -> Outcome {
    far_traps(test, |bundle| bundle.annotation(COMPILE, "off"), 1)
}

fn a_memory_of_64_bits_is_kept_inside_with_fuel(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    far_traps(test, |bundle| bundle.annotation(FUEL, "100000"), 1)
}

fn what_is_always_interpreted_is_told_and_remembered(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    for (number, (name, text)) in [
        (
            "memory64",
            "(memory i64 1) (func $do (i32.store (i64.const 65532) (i32.const 42))
            (call $exit (i32.load (i64.const 65532))))",
        ),
        (
            "gc",
            "(memory 1) (type $s (struct (field i32))) (func $do
            (call $exit (struct.get $s 0 (struct.new $s (i32.const 42)))))",
        ),
        (
            "function-references",
            "(memory 1) (type $f (func (param i32))) (elem declare func $exit) (func $do
            (call_ref $f (i32.const 42) (ref.func $exit)))",
        ),
        (
            "exception-handling",
            "(memory 1) (tag $e (param i32)) (func $do (block $caught (result i32)
            (try_table (catch $e $caught) (throw $e (i32.const 42))) (unreachable)) (call $exit))",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let module = format!("(module {EXIT} {text} (func (export \"_start\") (call $do)))");
        let bundle = test.module(&wat::parse_str(module)?)?;
        let said = format!("it uses `{name}`, and such a module is never compiled");
        bundle
            .run()?
            .code(42)?
            .fails_with(&format!("is interpreted: it cannot be compiled: rt-wasmedge: {said}"))?;
        let failed = files(test, "failed");
        ensure_eq((failed.len(), files(test, "so").len()), (number + 1, 0))?;
        let times = |paths: &[std::path::PathBuf]| -> Outcome<Vec<_>> {
            paths.iter().map(|path| Ok(fs::metadata(path)?.modified()?)).collect()
        };
        let before = times(&failed)?;
        bundle.run()?.code(42)?.fails_with(&said)?;
        let path = bundle.rootfs().join("module.wasm").display().to_string();
        test.rt(["wasm", "compile", &path])?.fails_with(&said)?;
        ensure_eq(times(&failed)?, before)?;
        test.rt(["wasm", "compile", "--force", &path])?.fails_with(&said)?;
    }
    Ok(())
}

fn what_is_not_run_is_named(test: &Test) -> Outcome {
    for (name, text) in [
        ("threads", "(memory 1 2 shared)"),
        (
            "threads",
            "(memory 1) (func (drop (i32.atomic.rmw.add offset=0xfffffffc (i32.const -4) (i32.const 1))))",
        ),
        ("custom-page-sizes", "(memory 1 (pagesize 1))"),
    ] {
        let module = wat::parse_str(format!("(module {text} (func (export \"_start\")))"))?;
        let words = format!("start `/module.wasm`: it uses `{name}`, which WasmEdge does not run");
        test.module(&module)?.annotation(COMPILE, "off").run()?.code(126)?.fails_with(&words)?;
    }
    Ok(())
}

/// A callee with more arguments than its caller has room for.
fn many_arguments_of_tail_calls_keep_the_stack(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let (many, numbers, sum) = (40, "(i64.const 1)".repeat(40), 40);
    let add = (1..many).map(|at| format!("(i64.add (local.get {at}))")).collect::<String>();
    let text = format!(
        r#"(module {EXIT} (memory 1) (type $many (func (param {types}) (result i64)))
           (table funcref (elem $many)) (func $many (type $many) (local.get 0) {add})
           (func $direct (result i64) (return_call $many {numbers}))
           (func $indirect (param i64) (result i64) (return_call_indirect (type $many) {numbers} (i32.const 0)))
           (func $keeps (param i64 i64 i64 i64 i64 i64 i64 i64) (result i64) (local $i i64)
             (loop $again
               (br_if $again (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.div_u
                 (i64.add (call $direct) (call $indirect (i64.const 5))) (i64.const {twice})))) (i64.const 100000))))
             (i64.add (local.get $i) (local.get 7)))
           (func $even (param i64) (result i64) (if (i64.eqz (local.get 0)) (then (return (i64.const 0))))
             (return_call $odd (i64.sub (local.get 0) (i64.const 1)) {numbers}))
           (func $odd (param i64 {types}) (result i64) (return_call $even (local.get 0)))
           (func (export "_start")
             (if (i64.ne (call $keeps (i64.const 0) (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4) (i64.const 5)
               (i64.const 6) (i64.const 7)) (i64.const 100007)) (then (call $exit (i32.const 1))))
             (if (i64.ne (call $even (i64.const 5000000)) (i64.const 0)) (then (call $exit (i32.const 2))))
             (call $exit (i32.const 42))))"#,
        types = "i64 ".repeat(many),
        twice = 2 * sum,
    );
    let output = test.module(&wat::parse_str(text)?)?.run()?.code(42)?;
    ensure(output.stderr.is_empty(), output.stderr)?;
    compiled(test).map(drop)
}

/// A callee makes tables and memories grow. Native code must not use old values about them.
fn tables_and_memories_grow_in_place(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let text = format!(
        r#"(module {EXIT} (memory 1) (memory $m 1) (type $i (func (result i64))) (table $t 2 funcref) (elem declare func $f $g)
           (func $f (result i64) (i64.const 11)) (func $g (result i64) (i64.const 22))
           (func $grow (drop (table.grow $t (ref.func $g) (i32.const 1000)))
             (drop (memory.grow (i32.const 10))) (drop (memory.grow $m (i32.const 1))))
           (func $check (param i64 i64) (if (i64.ne (local.get 0) (local.get 1)) (then (call $exit (i32.const 1)))))
           (func (export "_start") (local $i i32)
             (table.set $t (i32.const 0) (ref.func $f)) (i64.store $m (i32.const 8) (i64.const 33))
             (loop $again
               (call $check (i64.const 11) (call_indirect $t (type $i) (i32.const 0)))
               (call $grow)
               (call $check (i64.const 33) (i64.load $m (i32.const 8)))
               (i64.store $m (i32.sub (i32.mul (memory.size $m) (i32.const 65536)) (i32.const 8)) (i64.const 1))
               (table.set $t (i32.sub (table.size $t) (i32.const 1)) (table.get $t (i32.const 0)))
               (call $check (i64.const 11) (call_indirect $t (type $i) (i32.sub (table.size $t) (i32.const 1))))
               (call $check (i64.const 22) (call_indirect $t (type $i) (i32.sub (table.size $t) (i32.const 2))))
               (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 200))))
             (if (i32.ne (table.size $t) (i32.const 200002)) (then (call $exit (i32.const 2))))
             (call $exit (i32.const 42))))"#
    );
    let output = test.module(&wat::parse_str(text)?)?.run()?.code(42)?;
    ensure(output.stderr.is_empty(), output.stderr)?;
    compiled(test).map(drop)
}

/// If a mapping over guard pages fails, older kernels leave a hole there. So a memory must grow in
/// another way. A filter refuses such a mapping here.
fn a_memory_that_cannot_grow_keeps_its_guard_pages(test: &Test) -> Outcome {
    const PAGES: u64 = 101;
    let text = format!(
        r#"(module {EXIT} (memory 1) (func (export "_start")
             (call $exit (memory.grow (i32.const {PAGES})))))"#
    );
    let bundle = test.module(&wat::parse_str(text)?)?.edit(|config| {
        // MAP_PRIVATE, MAP_ANONYMOUS and MAP_FIXED.
        let over = json!([
            { "index": 1, "value": PAGES << 16, "op": "SCMP_CMP_EQ" },
            { "index": 3, "value": 0x32, "op": "SCMP_CMP_EQ" },
        ]);
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{
                "names": ["mmap"], "action": "SCMP_ACT_ERRNO", "errnoRet": 12, "args": over,
            }],
        });
    });
    // `memory.grow` returns the old size, one page. If it failed, it would return -1.
    bundle.annotation(COMPILE, "off").run()?.code(1).map(drop)
}

/// Modules that claim to be larger than they are, or that could cost a reader more than their size.
/// Each has its exit code, and the words of its only line, if there is one.
fn structures() -> Vec<(&'static str, Vec<u8>, i32, &'static str)> {
    const MOST: usize = u32::MAX as usize;
    let module = |sections: &[Vec<u8>]| [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat();
    // One type and one function, `_start`.
    let head = || {
        [section(1, b"\x01\x60\0\0"), section(3, b"\x01\0"), section(7, b"\x01\x06_start\0\0")]
            .concat()
    };
    let with = |body: Vec<u8>| {
        let code = [leb(1), leb(body.len()), body].concat();
        module(&[head(), section(10, &code)])
    };
    let locals = |count| with([leb(1), leb(count), b"\x7e\x0b".to_vec()].concat());
    let imports = [leb(300_000), b"\x01a\x01b\0\0".repeat(300_000)].concat();
    let targets = [leb(3_000_000), vec![0; 3_000_001]].concat();
    vec![
        ("2^32 locals", locals(MOST), 126, "too many locals"),
        ("5 million locals", locals(5_000_000), 134, "call stack exhausted"),
        (
            "200,000 blocks in each other",
            with([vec![0], b"\x02\x40".repeat(200_000), vec![0x0b; 200_001]].concat()),
            0,
            "",
        ),
        (
            "3 million targets of a jump",
            with([b"\0\x02\x40\x41\0\x0e".to_vec(), targets, vec![0x0b; 2]].concat()),
            0,
            "",
        ),
        (
            "300,000 imports",
            module(&[
                section(1, b"\x01\x60\0\0"),
                section(2, &imports),
                section(3, b"\x01\0"),
                section(7, &[b"\x01\x06_start\0".to_vec(), leb(300_000)].concat()),
                section(10, b"\x01\x02\0\x0b"),
            ]),
            126,
            "unknown import `b` from `a`",
        ),
        ("a long section", module(&[vec![1], leb(MOST), b"\x01\x60\0\0".to_vec()]), 126, "length"),
        ("a long vector", module(&[section(1, &leb(MOST))]), 126, "loading failed"),
        ("a long name", module(&[section(0, &leb(MOST))]), 126, "length out of bounds"),
        (
            "a long body",
            module(&[head(), section(10, &[leb(1), leb(MOST), b"\0\x0b".to_vec()].concat())]),
            126,
            "loading failed",
        ),
    ]
}

fn structures_are_read_within_limits(test: &Test) -> Outcome {
    for (what, module, code, words) in structures() {
        let output = limited(test, &module, 256)?.annotation(COMPILE, "off").run()?;
        let is_told = output.stderr.contains(words) && output.stderr.lines().count() <= 1;
        ensure(
            output.code == Some(code) && is_told && output.stderr.is_empty() == words.is_empty(),
            format!("{what}: {output:?}"),
        )?;
    }
    Ok(())
}

/// If a module cannot be compiled, a line of the runtime says so first.
fn structures_are_compiled_within_limits(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    for (what, module, code, words) in structures() {
        let output = limited(test, &module, 256)?.run()?;
        let mut lines = output.stderr.lines().rev();
        let is_told = lines.next().unwrap_or_default().contains(words);
        let is_warned = lines.all(|line| line.starts_with("rt: warning: the module"));
        ensure(output.code == Some(code) && is_told && is_warned, format!("{what}: {output:?}"))?;
        wait_for_compiler("the compiler has ended", || files(test, "job").is_empty())?;
    }
    Ok(())
}
