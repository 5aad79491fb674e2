//! WASI preview1, function by function: the guest `wasi` calls each function by itself and prints
//! the result.

use std::fs::File;

use serde_json::json;

use super::wasm::by_wasmtime;
use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "wasi":
    every_function_does_what_it_says, also_on_a_mount, also_for_an_ordinary_user,
    a_guest_has_the_variables_of_its_configuration_only, standard_input_that_never_blocks_is_ready, what_is_no_socket_is_not_shut_down,
}

/// The guest with the directory `/work`, and a file outside it that the guest must not reach from
/// there.
fn guest(test: &Test) -> Outcome<Bundle<'_>> {
    let bundle = test.wasm("wasi", &["one", ""])?.file("/secret", "secret")?;
    std::fs::create_dir(bundle.rootfs().join("work"))?;
    Ok(bundle.edit(|config| config["process"]["env"] = json!(["A=1"])))
}

/// For wasmtime, a module becomes a component, and WASI 0.2 lacks some of preview1: clocks of
/// processor time, the allocation of space in files, and rights of descriptors.
const UNKNOWN_TO_WASI_2: [&str; 3] =
    ["clock_time_get: BADF", "fd_allocate: NOTSUP", "fd_fdstat_set_rights: NOTSUP"];

/// `poll` of WASI 0.2 returns when one of its files is ready. It does not wait for the others, so
/// it tells of two of the three or of all, by chance.
const BY_CHANCE_IN_WASI_2: &str = "poll_files: 2, not 3";

fn all_is_well(bundle: &Bundle<'_>) -> Outcome {
    let output = bundle.run()?;
    let wrong: Vec<&str> = output.stdout.lines().filter(|line| !line.ends_with(" ok")).collect();
    let count = output.stdout.lines().count();
    if by_wasmtime(bundle.test) {
        let wrong: Vec<&str> = wrong.into_iter().filter(|it| *it != BY_CHANCE_IN_WASI_2).collect();
        ensure_eq(wrong, UNKNOWN_TO_WASI_2.to_vec())?;
        // The next function is `sock_recv`, where the adapter traps.
        return ensure_eq((count, output.code), (42, Some(134)));
    }
    ensure_eq(wrong, Vec::new())?;
    ensure_eq(count, 44)?;
    // `proc_exit` is the last function.
    ensure(output.code == Some(45), format!("{:?}: {}", output.code, output.stderr))
}

fn every_function_does_what_it_says(test: &Test) -> Outcome {
    all_is_well(&guest(test)?)
}

fn also_on_a_mount(test: &Test) -> Outcome {
    all_is_well(
        &guest(test)?.mount(json!({ "destination": "/work", "type": "tmpfs", "source": "tmpfs" })),
    )
}

fn also_for_an_ordinary_user(test: &Test) -> Outcome {
    let bundle =
        guest(test)?.edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    std::os::unix::fs::chown(bundle.rootfs().join("work"), Some(1000), Some(1000))?;
    all_is_well(&bundle)
}

/// A module whose exit status is what these instructions leave.
fn module<'t>(test: &'t Test, instructions: &str) -> Outcome<Bundle<'t>> {
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sock_shutdown" (func $sock_shutdown (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit {instructions})))"#
    );
    test.module(&wat::parse_str(text)?)
}

fn a_guest_has_the_variables_of_its_configuration_only(test: &Test) -> Outcome {
    // The number of variables. It is 99 if the call fails.
    let count = "(if (result i32) (call $environ_sizes_get (i32.const 0) (i32.const 4))
        (then (i32.const 99)) (else (i32.load (i32.const 0))))";
    for (variables, number) in [(json!([]), 0), (json!(["A=1", "B=", "HOME=/x"]), 3)] {
        let bundle = module(test, count)?.edit(|config| config["process"]["env"] = variables);
        bundle.run()?.code(number)?;
    }
    Ok(())
}

/// Waits to read from standard input, and for ten seconds to pass. The result has three digits: the
/// number of events, the type of the first one (1: ready to read), and its error.
const POLL: &str = "(block (result i32)
    (i64.store (i32.const 0) (i64.const 7)) (i32.store8 (i32.const 8) (i32.const 1))
    (i64.store (i32.const 48) (i64.const 8)) (i32.store8 (i32.const 56) (i32.const 0))
    (i32.store (i32.const 64) (i32.const 1)) (i64.store (i32.const 72) (i64.const 10000000000))
    (if (result i32) (call $poll_oneoff (i32.const 0) (i32.const 200) (i32.const 2) (i32.const 400))
        (then (i32.const 99))
        (else (i32.add (i32.mul (i32.load (i32.const 400)) (i32.const 100))
            (i32.add (i32.mul (i32.load8_u (i32.const 210)) (i32.const 10))
                (i32.load16_u (i32.const 208)))))))";

fn standard_input_that_never_blocks_is_ready(test: &Test) -> Outcome {
    let bundle = module(test, POLL)?;
    bundle.run()?.code(110)?;
    // A regular file, with content and empty.
    for text in ["text", ""] {
        bundle.write()?;
        let path = test.folder.join("input");
        std::fs::write(&path, text)?;
        let mut command = test.command(bundle.command_line("run", &test.id()));
        command.stdin(File::open(&path)?);
        Output::of(command)?.code(110)?;
    }
    // A pipe with content.
    bundle.run_with("text")?.code(110).map(drop)
}

/// Without directories, the first descriptor that is not open is 3. With the root, 3 is a
/// directory.
fn what_is_no_socket_is_not_shut_down(test: &Test) -> Outcome {
    if by_wasmtime(test) {
        return skip("the adapter of modules traps in functions of sockets");
    }
    const BADF: i32 = 8;
    const NOTSOCK: i32 = 57;
    let shut_down = |descriptor: i32, directories: &str, errno: i32| -> Outcome {
        for how in 1..=3 {
            let call = format!("(call $sock_shutdown (i32.const {descriptor}) (i32.const {how}))");
            let bundle = module(test, &call)?.annotation("run.oci.wasm.dirs", directories);
            bundle.run()?.code(errno)?;
        }
        Ok(())
    };
    for descriptor in [0, 1, 2] {
        shut_down(descriptor, "", NOTSOCK)?;
    }
    for descriptor in [3, 99, -1] {
        shut_down(descriptor, "", BADF)?;
    }
    shut_down(3, "/", NOTSOCK)
}
