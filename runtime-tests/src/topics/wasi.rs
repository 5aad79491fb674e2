//! WASI preview1, function by function: the guest `wasi` calls each function by itself and prints
//! the result.

use serde_json::json;

use super::wasm::by_wasmtime;
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq};

super::tests! { "wasi": every_function_does_what_it_says, also_on_a_mount, also_for_an_ordinary_user }

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
