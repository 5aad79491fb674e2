//! WASI preview1, function by function: the guest `wasi` calls each function by itself and prints
//! the result.

use serde_json::json;

use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq};

super::tests! { "wasi": every_function_does_what_it_says, also_on_a_mount, also_for_an_ordinary_user }

/// The guest with the directory `/work`, and a file outside it that the guest must not reach from
/// there.
fn guest(test: &Test) -> Outcome<Bundle<'_>> {
    let bundle = test.wasm("wasi", &["one", ""])?.file("/secret", "secret")?;
    std::fs::create_dir(bundle.rootfs().join("work"))?;
    Ok(bundle.edit(|config| config["process"]["env"] = json!(["A=1"])))
}

fn all_is_well(bundle: &Bundle<'_>) -> Outcome {
    let output = bundle.run()?;
    let wrong: Vec<&str> = output.stdout.lines().filter(|line| !line.ends_with(" ok")).collect();
    ensure_eq(wrong, Vec::new())?;
    ensure_eq(output.stdout.lines().count(), 44)?;
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
