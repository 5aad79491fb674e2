//! Plugins of the engine, which give modules more than WASI. The tests compile the plugin that they
//! load.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, has_a_changeable_mount, skip};

super::tests! { "wasm_plugins":
    a_module_gets_what_a_plugin_offers, exec_gets_it_too, native_code_gets_it_too, counted_code_gets_it_too, without_asking_there_is_none,
    what_the_host_does_not_allow_is_refused, a_plugin_of_an_image_is_not_loaded, a_directory_that_others_can_write_to_is_refused, a_plugin_that_is_none_is_told,
    a_plugin_can_bring_libraries, the_container_cannot_change_it,
}

const PLUGINS: &str = "run.oci.wasm.plugins";

/// A plugin that offers the module `rt_test` with one function. Another library of the plugin
/// returns the answer.
const SOURCE: &str = r#"
#include <wasmedge/wasmedge.h>
extern int the_answer(void);
static WasmEdge_Result answer(void *data, const WasmEdge_CallingFrameContext *frame, const WasmEdge_Value *in, WasmEdge_Value *out) {
  out[0] = WasmEdge_ValueGenI32(the_answer());
  return WasmEdge_Result_Success;
}
static WasmEdge_ModuleInstanceContext *create(const WasmEdge_ModuleDescriptor *descriptor) {
  WasmEdge_ModuleInstanceContext *module = WasmEdge_ModuleInstanceCreate(WasmEdge_StringCreateByCString("rt_test"));
  WasmEdge_ValType result = WasmEdge_ValTypeGenI32();
  WasmEdge_FunctionTypeContext *type = WasmEdge_FunctionTypeCreate(NULL, 0, &result, 1);
  WasmEdge_ModuleInstanceAddFunction(module, WasmEdge_StringCreateByCString("answer"), WasmEdge_FunctionInstanceCreate(type, answer, NULL, 0));
  return module;
}
static WasmEdge_ModuleDescriptor modules[] = { { "rt_test", "a test", create } };
static WasmEdge_PluginDescriptor descriptor = { "rt_test", "a test", WasmEdge_Plugin_CurrentAPIVersion, { 0, 0, 1, 0 }, 1, 0, modules, NULL };
WASMEDGE_CAPI_PLUGIN_EXPORT const WasmEdge_PluginDescriptor *WasmEdge_Plugin_GetDescriptor(void) { return &descriptor; }
"#;

/// Makes the plugin's directory, and host settings that allow it.
fn host(test: &Test, compile: &str) -> Outcome {
    test.only_rt()?;
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/wasmedge/root/usr/include");
    if !include.is_dir() || !Path::new("/usr/bin/cc").exists() {
        return skip("no C compiler, or no headers of WasmEdge");
    }
    let folder = test.folder.join("plugins");
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    fs::write(folder.join("plugin.c"), SOURCE)?;
    fs::write(folder.join("answer.c"), "int the_answer(void) { return 42; }")?;
    let compile_c = |args: &[&str]| -> Outcome {
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC"]).args(args).current_dir(&folder);
        ensure(cc.status()?.success(), format!("cc {args:?}"))
    };
    compile_c(&["-o", "libanswer.so", "-Wl,-soname,libanswer.so", "answer.c"])?;
    let include = format!("-I{}", include.display());
    compile_c(&[&include, "-o", "plugin.so", "plugin.c", "-L.", "-lanswer"])?;
    fs::write(folder.join("none.so"), "no library")?;
    for file in ["plugin.so", "libanswer.so", "none.so"] {
        fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o644))?;
    }
    settings(test, compile)
}

fn settings(test: &Test, compile: &str) -> Outcome {
    let settings = json!({
        "compile": compile,
        "cache": { "directory": test.folder.join("cache") },
        "plugins": {
            "directory": test.folder.join("plugins"),
            "allow": { "test": "plugin.so", "none": "none.so", "missing": "missing.so" },
        },
    });
    Ok(fs::write(test.folder.join("wasm.json"), settings.to_string())?)
}

/// A module that ends with the plugin's answer.
fn asking(test: &Test) -> Outcome<Bundle<'_>> {
    let text = r#"(module
        (import "rt_test" "answer" (func $answer (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit (call $answer))))"#;
    test.module(&wat::parse_str(text)?)
}

fn a_module_gets_what_a_plugin_offers(test: &Test) -> Outcome {
    host(test, "off")?;
    asking(test)?.annotation(PLUGINS, "test").run()?.code(42).map(drop)
}

fn exec_gets_it_too(test: &Test) -> Outcome {
    host(test, "off")?;
    let bundle = asking(test)?.annotation(PLUGINS, "test");
    fs::copy(test.host.guest("probe")?, bundle.rootfs().join("probe.wasm"))?;
    let container = bundle.args(&["/probe.wasm", "sleep"]).start()?;
    test.rt(["exec", &container.id, "/module.wasm"])?.code(42).map(drop)
}

fn native_code_gets_it_too(test: &Test) -> Outcome {
    host(test, "eager")?;
    if !super::wasm_cache::has_compiler(test) {
        return skip("the engine's compiler is not installed here");
    }
    asking(test)?.annotation(PLUGINS, "test").run()?.code(42)?;
    ensure_eq(super::wasm_cache::files(test, "so").len(), 1)
}

fn counted_code_gets_it_too(test: &Test) -> Outcome {
    host(test, "off")?;
    let bundle = asking(test)?.annotation(PLUGINS, "test").annotation("run.oci.wasm.fuel", "1000");
    bundle.run()?.code(42).map(drop)
}

fn without_asking_there_is_none(test: &Test) -> Outcome {
    host(test, "off")?;
    asking(test)?.run()?.code(126)?.fails_with("unknown import `answer` from `rt_test`").map(drop)
}

fn what_the_host_does_not_allow_is_refused(test: &Test) -> Outcome {
    host(test, "off")?;
    let refused = |names: &str, words: &str| -> Outcome {
        asking(test)?.annotation(PLUGINS, names).try_create(&test.id())?.fails_with(words).map(drop)
    };
    refused(
        "test,wasi_nn",
        "the plugin `wasi_nn` is not allowed on this host, which allows `missing`, `none`, `test`",
    )?;
    refused("../test", "the plugin `../test` is not allowed")?;
    refused("missing", "find `missing.so`: No such file or directory")?;
    fs::write(test.folder.join("wasm.json"), "{}")?;
    refused("test", "is not allowed on this host, which allows none")
}

/// Neither the directory that WasmEdge itself would search nor its variable has an effect.
fn a_plugin_of_an_image_is_not_loaded(test: &Test) -> Outcome {
    host(test, "off")?;
    let bundle = asking(test)?.edit(|config| {
        config["process"]["env"] = json!(["WASMEDGE_PLUGIN_PATH=/usr/lib/wasmedge"]);
    });
    for folder in ["usr/lib/wasmedge", "usr/local/lib/wasmedge", "plugin"] {
        fs::create_dir_all(bundle.rootfs().join(folder))?;
        for file in ["plugin.so", "libanswer.so"] {
            fs::copy(
                test.folder.join("plugins").join(file),
                bundle.rootfs().join(folder).join(file),
            )?;
        }
    }
    bundle.run()?.code(126)?.fails_with("unknown import `answer`").map(drop)
}

fn a_directory_that_others_can_write_to_is_refused(test: &Test) -> Outcome {
    host(test, "off")?;
    let folder = test.folder.join("plugins");
    let refused = |words: &str| -> Outcome {
        asking(test)?
            .annotation(PLUGINS, "test")
            .try_create(&test.id())?
            .fails_with(words)
            .map(drop)
    };
    fs::set_permissions(folder.join("plugin.so"), fs::Permissions::from_mode(0o666))?;
    refused("others can write to `plugin.so`")?;
    fs::set_permissions(folder.join("plugin.so"), fs::Permissions::from_mode(0o644))?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    refused("others can write to")?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    // The owner of a directory above could exchange the plugin's directory.
    std::os::unix::fs::chown(&test.folder, Some(1000), None)?;
    let outcome = refused("belongs to user 1000");
    std::os::unix::fs::chown(&test.folder, Some(0), None)?;
    outcome
}

fn a_plugin_that_is_none_is_told(test: &Test) -> Outcome {
    host(test, "off")?;
    asking(test)?
        .annotation(PLUGINS, "none")
        .run()?
        .code(126)?
        .fails_with("load the plugin `none.so`: ")
        .map(drop)
}

/// The library comes from the plugin's directory. Without the library, the plugin does not load.
fn a_plugin_can_bring_libraries(test: &Test) -> Outcome {
    host(test, "off")?;
    fs::remove_file(test.folder.join("plugins/libanswer.so"))?;
    asking(test)?
        .annotation(PLUGINS, "test")
        .run()?
        .code(126)?
        .fails_with("load the plugin `plugin.so`: ")
        .map(drop)
}

fn the_container_cannot_change_it(test: &Test) -> Outcome {
    host(test, "off")?;
    let bundle = test.wasm("probe", &["sleep"])?.annotation(PLUGINS, "test");
    fs::create_dir(bundle.rootfs().join("bin"))?;
    fs::copy("/bin/busybox", bundle.rootfs().join("bin/busybox"))?;
    let all =
        json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE"]);
    let bundle = bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = all.clone();
        }
    });
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    ensure(!has_a_changeable_mount(&container)?, "it can be made writable")?;
    // The directory stays open, because a plugin may load files from it later.
    let script = "n=0; for folder in /proc/1/fd/*; do [ -e $folder/plugin.so ] || continue; n=$((n+1)); \
                  for file in $folder/plugin.so $folder/new $folder/../new; do (echo x >$file) 2>/dev/null && echo \"written: $file\"; done; done; echo $n";
    let output = test.rt(["exec", &container.id, "/bin/busybox", "sh", "-c", script])?.success()?;
    ensure_eq(output.stdout.as_str(), "1\n")
}
