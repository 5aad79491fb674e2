//! The resources of its container that a module may use.

use serde_json::json;

use super::needs;
use super::wasm::by_wasmtime;
use super::wasm_shares::{leb, section};
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, skip};

super::tests! { "wasm_limits":
    memory_grows_to_the_limit_and_no_further, all_memories_share_the_limit, a_large_memory_leaves_less_to_the_others, a_table_is_counted_too, a_limit_above_counts_too, without_a_limit_memory_grows,
    exec_is_limited_too, what_it_fills_beyond_the_limit_ends_it, a_module_has_what_it_begins_with, a_module_may_bring_much_along,
}

/// Grows one memory after the other by one mebibyte at a time, and touches the new pages. Ends with
/// the number of mebibytes, but at most with 200.
fn growing(memories: usize) -> Outcome<Vec<u8>> {
    growing_from(&vec![1; memories])
}

/// The memories begin with these numbers of pages.
fn growing_from(pages: &[u32]) -> Outcome<Vec<u8>> {
    let memories = pages.len();
    // WASI requires that the first one is exported.
    let memory = pages.iter().enumerate().map(|(number, pages)| match number {
        0 => format!("(memory (export \"memory\") {pages})"),
        _ => format!("(memory {pages})"),
    });
    let memory: String = memory.collect();
    let grow: String = (0..memories)
        .map(|memory| {
            format!(
                "(block $full{memory} (loop $more{memory}
                   (local.set $at (memory.size {memory}))
                   (br_if $full{memory} (i32.eq (memory.grow {memory} (i32.const 16)) (i32.const -1)))
                   (memory.fill {memory} (i32.mul (local.get $at) (i32.const 65536)) (i32.const 7) (i32.const 1048576))
                   (local.set $count (i32.add (local.get $count) (i32.const 1)))
                   (br_if $more{memory} (i32.lt_u (local.get $count) (i32.const 200)))))"
            )
        })
        .collect();
    let text = format!(
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32))) {memory}
           (func (export \"_start\") (local $at i32) (local $count i32) {grow} (call $exit (local.get $count))))"
    );
    Ok(wat::parse_str(text)?)
}

pub(super) fn limited<'a>(test: &'a Test, module: &[u8], mebibytes: u64) -> Outcome<Bundle<'a>> {
    needs(test, "memory")?;
    Ok(test.module(module)?.edit(|config| {
        let bytes = mebibytes << 20;
        config["linux"]["resources"]["memory"] = json!({ "limit": bytes, "swap": bytes });
    }))
}

/// The number of mebibytes that the module could get.
fn grown(bundle: &Bundle<'_>) -> Outcome<i32> {
    let output = bundle.run()?;
    ensure(output.stderr.is_empty(), &output.stderr)?;
    Ok(output.code.unwrap_or(-1))
}

/// Files in memory count too. The kernel kills the module, which sees no error before.
fn what_it_fills_beyond_the_limit_ends_it(test: &Test) -> Outcome {
    needs(test, "memory")?;
    let bundle = test.wasm("probe", &["fill", "/dev/shm/file"])?.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20, "swap": 64 << 20 });
    });
    let bundle = bundle.mount(json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=200m"] }));
    bundle.run()?.code(137)?;
    let container = bundle.start()?;
    container.wait()?;
    test.rt(["kill", &container.id, "TERM"])?.fails_with("container not running").map(drop)
}

fn memory_grows_to_the_limit_and_no_further(test: &Test) -> Outcome {
    let grown = grown(&limited(test, &growing(1)?, 64)?)?;
    ensure((50..64).contains(&grown), format!("{grown} MiB of 64"))
}

fn all_memories_share_the_limit(test: &Test) -> Outcome {
    let grown = grown(&limited(test, &growing(3)?, 64)?)?;
    ensure((50..64).contains(&grown), format!("{grown} MiB of 64"))
}

/// WasmEdge limits each memory by itself.
fn a_large_memory_leaves_less_to_the_others(test: &Test) -> Outcome {
    let bundle = limited(test, &growing_from(&[1, 640])?, 64)?;
    let output = bundle.run()?;
    ensure(output.code.is_some_and(|grown| (8..24).contains(&grown)), format!("{output:?}"))
}

fn a_table_is_counted_too(test: &Test) -> Outcome {
    let text = r#"(module (table 1 funcref) (memory (export "memory") 1)
        (func (export "_start") (loop $more (drop (table.grow 0 (ref.null func) (i32.const 1000000))) (br $more))))"#;
    let output = limited(test, &wat::parse_str(text)?, 64)?.run()?.code(134)?;
    ensure(output.stderr.contains("trap: "), output.stderr)
}

/// The cgroup of the pod has a limit, and the container has none.
fn a_limit_above_counts_too(test: &Test) -> Outcome {
    needs(test, "memory")?;
    if test.host.by_systemd {
        return skip("the cgroup above is made by hand");
    }
    let name = test.id();
    let root = if test.host.lane == "v2" { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    let pod = std::path::Path::new(root).join(&name);
    std::fs::create_dir(&pod)?;
    if test.host.lane == "v2" {
        std::fs::write(pod.join("cgroup.subtree_control"), "+memory")?;
        std::fs::write(pod.join("memory.max"), (48 << 20).to_string())?;
    } else {
        std::fs::write(pod.join("memory.use_hierarchy"), "1").or(Ok::<(), std::io::Error>(()))?;
        std::fs::write(pod.join("memory.limit_in_bytes"), (48 << 20).to_string())?;
    }
    let bundle = test
        .module(&growing(1)?)?
        .edit(|config| config["linux"]["cgroupsPath"] = json!(format!("/{name}/container")));
    let grown = grown(&bundle);
    for left in crate::harness::cgroups_of(&name) {
        let _ = std::fs::remove_dir(left);
    }
    let grown = grown?;
    ensure((36..48).contains(&grown), format!("{grown} MiB of 48"))
}

fn without_a_limit_memory_grows(test: &Test) -> Outcome {
    ensure_eq(grown(&test.module(&growing(1)?)?)?, 200)
}

fn exec_is_limited_too(test: &Test) -> Outcome {
    let bundle = limited(test, &growing(1)?, 64)?;
    std::fs::copy(test.host.guest("probe")?, bundle.rootfs().join("probe.wasm"))?;
    let container = bundle.args(&["/probe.wasm", "sleep"]).start()?;
    container.wait_for_output("ready")?;
    let output = test.rt(["exec", &container.id, "/module.wasm"])?;
    let grown = output.code.unwrap_or(-1);
    ensure((45..64).contains(&grown), format!("{grown} MiB of 64: {}", output.stderr))
}

/// Many modules ask for much memory and touch little of it.
fn a_module_has_what_it_begins_with(test: &Test) -> Outcome {
    let text = "(module (memory (export \"memory\") 2048) (func (export \"_start\")))";
    limited(test, &wat::parse_str(text)?, 32)?.run()?.success().map(drop)
}

/// The module has 130 MiB of data in one piece, which is more than the interpreter's stack may
/// have.
fn a_module_may_bring_much_along(test: &Test) -> Outcome {
    let data = vec![7; 130 << 20];
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, b"\x01\x60\0\0"),
        section(3, b"\x01\0"),
        section(5, &[b"\x01\0", &leb(2200)[..]].concat()),
        section(7, b"\x01\x06_start\0\0"),
        section(10, b"\x01\x02\0\x0b"),
        section(11, &[b"\x01\0\x41\0\x0b", &leb(data.len())[..], &data].concat()),
    ];
    let bundle = test.module(&module.concat())?;
    if by_wasmtime(test) {
        return skip("130 MiB more would be compiled");
    }
    bundle.annotation("run.oci.wasm.compile", "off").run()?.success().map(drop)
}
