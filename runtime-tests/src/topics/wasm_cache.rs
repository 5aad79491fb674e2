//! The compiling of modules, and the cache. The topic `wasm_compiler` tests the compilers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Outcome, Output, Test, ensure, ensure_eq, has_a_changeable_mount, skip,
    wait_up_to,
};

super::tests! { "wasm_cache":
    the_second_start_is_native, can_be_compiled_before_its_start, can_be_left_to_the_interpreter, what_the_host_forbids_no_container_gets,
    a_module_that_exec_starts_is_compiled_too, native_code_is_shared_between_containers, a_truncated_file_is_replaced, a_damaged_file_is_replaced,
    another_modules_file_is_not_taken, a_file_that_others_could_write_is_not_taken, another_processors_file_is_not_taken,
    another_builds_file_is_not_taken, works_where_nothing_can_be_written, works_on_a_full_disk, native_code_of_an_image_is_not_run,
    a_module_with_native_code_is_compiled_again, nobody_in_the_container_can_change_it, a_container_keeps_what_is_removed,
    ends_as_the_interpreter_does, a_stack_overflow_is_a_fault, the_cache_is_listed, hits_are_counted, the_cache_can_be_pruned_and_cleared,
    the_cache_keeps_to_its_size, a_full_disk_loses_what_was_not_used, a_full_disk_is_remembered_for_a_while, a_failure_is_forgotten_when_the_clock_jumps_back, listing_it_is_no_use_of_it,
    a_file_whose_time_was_set_back_is_replaced, the_engine_says_when_native_code_does_not_load, names_do_not_command_a_terminal,
    native_code_needs_no_compiler, wrong_settings_are_errors,
}

pub(super) const COMPILE: &str = "run.oci.wasm.compile";

pub(super) fn has_compiler(test: &Test) -> bool {
    has_compiler_of(test, "wasmedge")
}

/// The same for this engine.
pub(super) fn has_compiler_of(test: &Test, engine: &str) -> bool {
    let prefix = test.host.runtime.parent().and_then(Path::parent);
    prefix.is_some_and(|prefix| prefix.join("libexec/rt").join(engine).join("compiler").is_dir())
}

/// Host settings with which modules are compiled, with the test's own cache.
pub(super) fn host(test: &Test, mut settings: Value) -> Outcome {
    if settings["compiler"]["waitSeconds"].is_null() {
        // Many tests compile at the same time, and each of their containers is a tenant.
        settings["compiler"]["waitSeconds"] = json!(300);
    }
    host_with_defaults(test, settings)
}

/// The same, with the default limit for the wait for other compilers.
pub(super) fn host_with_defaults(test: &Test, settings: Value) -> Outcome {
    host_of(test, "wasmedge", settings)
}

/// The same for modules of one engine.
pub(super) fn host_of(test: &Test, engine: &str, mut settings: Value) -> Outcome {
    test.only_rt()?;
    if !has_compiler_of(test, engine) {
        return skip("the engine's compiler is not installed here");
    }
    if settings["cache"]["directory"].is_null() {
        settings["cache"]["directory"] = json!(cache(test));
    }
    if settings["compiler"]["idle"].is_null() {
        // The host may be busy, and then `rt` would compile nothing in the background.
        settings["compiler"]["idle"] = json!(false);
    }
    fs::write(test.folder.join("wasm.json"), settings.to_string())?;
    Ok(())
}

pub(super) fn cache(test: &Test) -> PathBuf {
    test.folder.join("cache")
}

/// Waits with more patience, because a compiler in the background has the lowest priority.
pub(super) fn wait_for_compiler(what: &str, holds: impl FnMut() -> bool) -> Outcome {
    wait_up_to(Duration::from_secs(120), what, holds)
}

/// The files of the cache with this extension.
pub(super) fn files(test: &Test, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache(test)).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|it| it == end));
    files
}

/// Waits for the only file of native code.
pub(super) fn compiled(test: &Test) -> Outcome<PathBuf> {
    wait_for_compiler("a module is compiled", || !files(test, "so").is_empty())?;
    wait_for_compiler("the compiler has ended", || files(test, "job").is_empty())?;
    let found = files(test, "so");
    ensure_eq(found.len(), 1)?;
    Ok(found[0].clone())
}

/// The mode of the container's module: `interpreter` or `aot`.
pub(super) fn mode(container: &Container<'_>) -> Outcome<String> {
    let state = container.state()?;
    Ok(state["annotations"]["run.oci.engine.mode"].as_str().unwrap_or_default().to_owned())
}

pub(super) fn sleeper(test: &Test) -> Outcome<Bundle<'_>> {
    test.wasm("probe", &["sleep"])
}

/// Starts a container, and returns the mode of its module.
pub(super) fn started(bundle: &Bundle<'_>) -> Outcome<String> {
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    mode(&container)
}

/// Says that it is ready, and sleeps. It is so small that its compilation takes no time.
const SLEEP: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 512) "ready\n")
  (func (export "_start")
    (i32.store (i32.const 256) (i32.const 512))
    (i32.store (i32.const 260) (i32.const 6))
    (drop (call $fd_write (i32.const 1) (i32.const 256) (i32.const 1) (i32.const 264)))
    (i32.store (i32.const 16) (i32.const 1)) ;; a clock's subscription: the monotonic clock,
    (i64.store (i32.const 24) (i64.const 1000000000000000)) ;; in so many nanoseconds
    (drop (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

/// A sleeping module with native code.
fn with_native_code(test: &Test) -> Outcome<Bundle<'_>> {
    has_native_code(test, test.module(&wat::parse_str(SLEEP)?)?)
}

/// Has the module of a bundle compiled.
fn has_native_code<'a>(test: &'a Test, bundle: Bundle<'a>) -> Outcome<Bundle<'a>> {
    host(test, json!({ "compile": "eager" }))?;
    ensure_eq(started(&bundle)?.as_str(), "aot")?;
    // The next starts compile nothing by themselves.
    host(test, json!({ "compile": "lazy" }))?;
    Ok(bundle)
}

fn the_second_start_is_native(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let bundle = sleeper(test)?;
    ensure_eq(started(&bundle)?.as_str(), "interpreter")?;
    compiled(test)?;
    ensure_eq(started(&bundle)?.as_str(), "aot")?;
    bundle
        .args(&["/probe.wasm", "args", "a", ""])
        .run()?
        .success()?
        .stdout("/probe.wasm\nargs\na\n\n")
        .map(drop)
}

fn can_be_compiled_before_its_start(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    ensure_eq(started(&sleeper(test)?)?.as_str(), "aot")?;
    host(test, json!({}))?;
    let bundle = test.wasm("hello", &[])?.annotation(COMPILE, "eager");
    bundle.run()?.success()?.stdout("Hello from Wasm!\n")?;
    ensure_eq(files(test, "so").len(), 2)
}

fn can_be_left_to_the_interpreter(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    ensure_eq(started(&bundle.clone().annotation(COMPILE, "off"))?.as_str(), "interpreter")?;
    ensure_eq(started(&bundle)?.as_str(), "aot")
}

fn what_the_host_forbids_no_container_gets(test: &Test) -> Outcome {
    host(test, json!({ "compile": "off" }))?;
    let bundle = sleeper(test)?.annotation(COMPILE, "eager");
    ensure_eq(started(&bundle)?.as_str(), "interpreter")?;
    ensure(!cache(test).exists(), "something was kept")
}

fn a_module_that_exec_starts_is_compiled_too(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let container = sleeper(test)?.annotation(COMPILE, "lazy").start()?;
    compiled(test)?;
    fs::copy(
        test.host.guest("hello")?,
        Path::new(&format!("/proc/{}/root", container.pid()?)).join("hello.wasm"),
    )?;
    for _ in 0..2 {
        test.rt(["exec", &container.id, "/hello.wasm"])?.success()?.stdout("Hello from Wasm!\n")?;
        wait_for_compiler("it is compiled", || files(test, "so").len() == 2)?;
    }
    Ok(())
}

/// The native code that a process has mapped: the inode of the file, and the part that is shared
/// with other processes, in kB.
fn mapped(container: &Container<'_>) -> Outcome<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", container.pid()?))?;
    let (mut inode, mut shared, mut inside) = (0, 0, false);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0].contains('-') && words.len() >= 5 {
            // `smaps` shows the path of a single-file mount as `/`.
            inside = words.get(5) == Some(&"/") && words[1].contains('x');
            if inside {
                inode = words[4].parse()?;
            }
        } else if inside && words[0] == "Shared_Clean:" {
            shared += words[1].parse::<u64>()?;
        }
    }
    Ok((inode, shared))
}

fn native_code_is_shared_between_containers(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let file = fs::metadata(compiled(test)?)?.ino();
    let containers = [bundle.start()?, bundle.start()?];
    for container in &containers {
        container.wait_for_output("ready\n")?;
    }
    for container in &containers {
        let (inode, shared) = mapped(container)?;
        ensure_eq(inode, file)?;
        ensure(shared > 0, "none of its pages is shared")?;
    }
    Ok(())
}

/// After a change of the file of native code, the engine interprets the module, and `rt` replaces
/// the file by a valid one.
fn is_replaced(test: &Test, change: impl FnOnce(&Path) -> Outcome) -> Outcome {
    let bundle = with_native_code(test)?;
    let file = compiled(test)?;
    let before = fs::read(&file)?;
    change(&file)?;
    ensure_eq(started(&bundle)?.as_str(), "interpreter")?;
    let file = compiled(test)?;
    ensure_eq(started(&bundle)?.as_str(), "aot")?;
    // The size differs only by the recorded compile time.
    let after = fs::read(file)?;
    ensure(
        before.len().abs_diff(after.len()) < 16,
        format!("{} and {} bytes", before.len(), after.len()),
    )
}

fn a_truncated_file_is_replaced(test: &Test) -> Outcome {
    is_replaced(test, |file| {
        let length = fs::metadata(file)?.len();
        fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
        Ok(fs::File::options().write(true).open(file)?.set_len(length / 2)?)
    })
}

fn a_damaged_file_is_replaced(test: &Test) -> Outcome {
    use std::os::unix::fs::FileExt;
    is_replaced(test, |file| {
        let open = fs::File::options().read(true).write(true).open(file)?;
        let mut byte = [0];
        let middle = open.metadata()?.len() / 2;
        open.read_exact_at(&mut byte, middle)?;
        Ok(open.write_all_at(&[!byte[0]], middle)?)
    })
}

fn another_modules_file_is_not_taken(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let own = compiled(test)?;
    let hello = test.host.guest("hello")?.display().to_string();
    test.rt(["wasm", "compile", &hello])?.success()?;
    let other = files(test, "so").into_iter().find(|path| *path != own).ok_or("no file")?;
    fs::rename(&other, &own)?;
    ensure_eq(started(&bundle)?.as_str(), "interpreter")?;
    ensure_eq(compiled(test)?, own)?;
    ensure_eq(started(&bundle)?.as_str(), "aot")
}

fn a_file_that_others_could_write_is_not_taken(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let file = compiled(test)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    ensure_eq(started(&bundle)?.as_str(), "interpreter")?;
    wait_for_compiler("it is replaced", || {
        fs::metadata(&file).is_ok_and(|file| file.mode() & 0o777 == 0o444)
    })?;
    fs::set_permissions(cache(test), fs::Permissions::from_mode(0o777))?;
    ensure_eq(started(&bundle)?.as_str(), "interpreter")
}

/// Runs a command in a mount namespace in which files of the host are different. The processes that
/// it starts in the background see these files too.
pub(super) fn elsewhere(test: &Test, script: &str, args: Vec<String>) -> Outcome<Output> {
    let command = test.command(args);
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-ec", &format!("{script}; exec \"$@\""), "sh"]).args(words);
    unshare.current_dir(&test.folder);
    Output::of(unshare)
}

fn mode_of(test: &Test, id: &str) -> Outcome<String> {
    let state: Value = serde_json::from_str(&test.rt(["state", id])?.success()?.stdout)?;
    Ok(state["annotations"]["run.oci.engine.mode"].as_str().unwrap_or_default().to_owned())
}

fn another_processors_file_is_not_taken(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?.annotation(COMPILE, "lazy");
    fs::write(test.folder.join("other"), "cpu:type:x86,ven0000fam0006mod0001:feature:,0000\n")?;
    let script = "mount --bind other /sys/devices/system/cpu/modalias";
    let id = test.id();
    elsewhere(test, script, bundle.command_line("create", &id))?.success()?;
    ensure_eq(mode_of(test, &id)?.as_str(), "interpreter")?;
    let list = ["wasm", "cache", "list"].map(str::to_owned).to_vec();
    let listed = elsewhere(test, script, list)?.success()?.stdout;
    ensure(listed.contains(" foreign "), listed)?;
    wait_for_compiler("it is compiled for the other one", || files(test, "so").len() == 2)?;
    // The cache keeps both.
    ensure_eq(started(&bundle)?.as_str(), "aot")
}

/// A script for [`elsewhere`], after which the engine is of another build.
pub(super) fn as_another_build(test: &Test, engine: &str) -> Outcome<String> {
    let prefix = test.host.runtime.parent().and_then(Path::parent).ok_or("no place")?;
    let folder = prefix.join("libexec/rt").join(engine);
    let mut other: Value = serde_json::from_slice(&fs::read(folder.join("engine.json"))?)?;
    other["build"] = json!("another");
    fs::write(test.folder.join("engine.json"), other.to_string())?;
    // The mount is not recursive, because `rt` opens the engine's directory without the mounts
    // below. So the script replaces the whole directory.
    Ok(format!(
        "mkdir engine; cp -al '{0}'/. engine; rm engine/engine.json; cp engine.json engine; mount --bind engine '{0}'",
        folder.display()
    ))
}

fn another_builds_file_is_not_taken(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    bundle.write()?;
    let script = as_another_build(test, "wasmedge")?;
    let id = test.id();
    elsewhere(test, &script, bundle.command_line("create", &id))?.success()?;
    ensure_eq(mode_of(test, &id)?.as_str(), "interpreter")?;
    wait_for_compiler("it is compiled by the other one", || files(test, "so").len() == 2)?;
    wait_for_compiler("the compiler has ended", || files(test, "job").is_empty())?;
    // `prune` removes foreign entries first.
    test.rt(["wasm", "cache", "prune"])?
        .success()?
        .stdout
        .contains("removed 1 entry")
        .then_some(())
        .ok_or("nothing was removed")?;
    ensure_eq(started(&bundle)?.as_str(), "aot")
}

fn works_where_nothing_can_be_written(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let script = "mount --bind cache cache; mount -o remount,bind,ro,noexec cache";
    let id = test.id();
    bundle.write()?;
    elsewhere(test, script, bundle.command_line("create", &id))?.success()?;
    ensure_eq(mode_of(test, &id)?.as_str(), "aot")?;
    let hello = test.wasm("hello", &[])?;
    hello.write()?;
    elsewhere(test, script, hello.command_line("run", &test.id()))?
        .success()?
        .stdout("Hello from Wasm!\n")?;
    ensure_eq(files(test, "so").len(), 1)
}

fn works_on_a_full_disk(test: &Test) -> Outcome {
    for (size, compile) in [("4k", "eager"), ("60k", "eager"), ("4k", "lazy")] {
        host(test, json!({ "compile": compile }))?;
        let hello = test.wasm("hello", &[])?;
        hello.write()?;
        let script =
            format!("mkdir -p -m 700 cache; mount -t tmpfs -o size={size},mode=700 tmpfs cache");
        elsewhere(test, &script, hello.command_line("run", &test.id()))?
            .success()?
            .stdout("Hello from Wasm!\n")?;
    }
    ensure(files(test, "so").is_empty(), "something was kept")
}

/// A module with a section of native code in the format of WasmEdge's own compiler. Its content is
/// not valid code.
fn universal(test: &Test) -> Outcome<Vec<u8>> {
    let mut module = fs::read(test.host.guest("hello")?)?;
    let content = [b"\x08wasmedge".as_slice(), b"\x03\x01\x01this would be run"].concat();
    module.extend([0, u8::try_from(content.len())?]);
    module.extend(content);
    Ok(module)
}

fn native_code_of_an_image_is_not_run(test: &Test) -> Outcome {
    host(test, json!({ "compile": "off" }))?;
    test.module(&universal(test)?)?.run()?.success()?.stdout("Hello from Wasm!\n").map(drop)
}

fn a_module_with_native_code_is_compiled_again(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let bundle = test.module(&universal(test)?)?;
    bundle.run()?.success()?.stdout("Hello from Wasm!\n")?;
    let native = fs::read(compiled(test)?)?;
    ensure(!native.windows(17).any(|part| part == b"this would be run"), "it is still there")
}

/// Not even the container's root can change it, through the kernel's files about the process.
fn nobody_in_the_container_can_change_it(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let all = json!([
        "CAP_SYS_ADMIN",
        "CAP_DAC_OVERRIDE",
        "CAP_SYS_PTRACE",
        "CAP_FOWNER",
        "CAP_CHECKPOINT_RESTORE"
    ]);
    let bundle = bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = all.clone();
        }
    });
    fs::create_dir(bundle.rootfs().join("bin"))?;
    fs::copy("/bin/busybox", bundle.rootfs().join("bin/busybox"))?;
    let file = compiled(test)?;
    let before = fs::read(&file)?;
    let container = bundle.create()?;
    ensure(!has_a_changeable_mount(&container)?, "it can be made writable before the start")?;
    container.start()?;
    container.wait_for_output("ready\n")?;
    ensure(!has_a_changeable_mount(&container)?, "it can be made writable")?;
    ensure_eq(mode(&container)?.as_str(), "aot")?;
    // The process has no open descriptor of the file, and the mapped file is on a read-only mount.
    let script = "cd /proc/1; busybox ls -l fd | busybox grep -c '\\.so'; n=0; for file in map_files/*; do n=$((n+1)); \
                  echo x 2>/dev/null >>$file && echo \"written: $file\"; done; [ $n -gt 3 ] && echo tried";
    let output = test.rt([
        "exec",
        &container.id,
        "/bin/busybox",
        "sh",
        "-c",
        &format!("alias busybox=/bin/busybox; {}", script.replace("busybox", "/bin/busybox")),
    ])?;
    ensure_eq(output.stdout.as_str(), "0\ntried\n")?;
    ensure(fs::read(file)? == before, "it was changed")
}

fn a_container_keeps_what_is_removed(test: &Test) -> Outcome {
    let bundle = has_native_code(test, sleeper(test)?)?.args(&["/probe.wasm", "sleep", "300"]);
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    test.rt(["wasm", "cache", "clear"])?.success()?;
    ensure(files(test, "so").is_empty(), "it is still there")?;
    container.wait()?;
    container.wait_for_output("awake\n")
}

fn ends_as_the_interpreter_does(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let probe = |args: &[&str]| test.wasm("probe", args)?.run();
    for code in [0, 7, 255] {
        probe(&["exit", &code.to_string()])?.code(code)?;
    }
    probe(&["unreachable"])?.code(134)?.fails_with("rt-wasmedge: trap: unreachable")?;
    probe(&["out-of-bounds"])?.code(134)?.fails_with("out of bounds memory access")?;
    let busy = test.wasm("probe", &["busy"])?.start()?;
    busy.wait_for_output("ready\n")?;
    ensure_eq(mode(&busy)?.as_str(), "aot")?;
    busy.kill("TERM")?;
    busy.wait()?;
    test.wasm("probe", &["busy"])?
        .annotation("run.oci.wasm.timeout", "0.2")
        .run()?
        .code(124)
        .map(drop)
}

/// Native code has no stack counter of its own, so the kernel ends the process (docs/workload.md).
fn a_stack_overflow_is_a_fault(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let output = test.wasm("probe", &["overflow", "100000000"])?.run()?;
    ensure(matches!(output.code, Some(134 | 139)), format!("{:?}: {}", output.code, output.stderr))
}

fn the_cache_is_listed(test: &Test) -> Outcome {
    host(test, json!({}))?;
    test.rt(["wasm", "cache", "list"])?
        .success()?
        .stdout("KEY   STATUS   SIZE   MODULE   COMPILED   USED   HITS   NAME\n")?;
    let module = test.host.guest("hello")?;
    let name = module.display().to_string();
    test.rt(["wasm", "compile", &name])?.success()?;
    let table = test.rt(["wasm", "cache", "list"])?.success()?.stdout;
    ensure(
        table.lines().count() == 2
            && table.contains(" native ")
            && table.contains(" s ago")
            && table.contains(&name),
        &table,
    )?;
    let json = test.rt(["wasm", "cache", "list", "--format=json"])?.success()?.stdout;
    let entries: Value = serde_json::from_str(&json)?;
    ensure_eq(entries[0]["bytes"].as_u64(), Some(fs::metadata(compiled(test)?)?.len()))?;
    let about = &entries[0]["native"];
    ensure_eq(about["moduleBytes"].as_u64(), Some(fs::metadata(module)?.len()))?;
    ensure_eq(about["name"].as_str(), Some(name.as_str()))?;
    ensure(about["engine"].as_str().is_some_and(|engine| engine.starts_with("wasmedge ")), json)
}

fn hits_are_counted(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let hits = || -> Outcome<Option<u64>> {
        let json = test.rt(["wasm", "cache", "list", "--format=json"])?.success()?.stdout;
        Ok(serde_json::from_str::<Value>(&json)?[0]["hits"].as_u64())
    };
    let before = hits()?.ok_or("no hits")?;
    started(&bundle)?;
    started(&bundle)?;
    ensure_eq(hits()?, Some(before + 2))
}

fn the_cache_can_be_pruned_and_cleared(test: &Test) -> Outcome {
    host(test, json!({}))?;
    for guest in ["hello", "probe", "http-server"] {
        test.rt(["wasm", "compile", &test.host.guest(guest)?.display().to_string()])?.success()?;
    }
    fs::write(cache(test).join("x.part"), "")?;
    let said = test.rt(["wasm", "cache", "prune"])?.success()?.stdout;
    ensure(said.starts_with("removed 1 entry, "), said)?;
    // The largest entry is then the one that was not used for the longest time.
    let sizes = || {
        files(test, "so")
            .iter()
            .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
            .collect::<Vec<_>>()
    };
    ensure_eq(sizes().len(), 3)?;
    test.rt(["wasm", "cache", "prune", "--size=700k"])?.success()?;
    let left: u64 = sizes().iter().sum();
    ensure((1..=700 << 10).contains(&left), format!("{left} bytes are left"))?;
    test.rt(["wasm", "cache", "prune", "--size=much"])?
        .fails_with("wrong value `much` for `--size`")?;
    test.rt(["wasm", "cache", "clear"])?.success()?;
    ensure_eq(sizes().len(), 0)
}

fn the_cache_keeps_to_its_size(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager", "cache": { "maxBytes": 450 << 10 } }))?;
    for guest in ["hello", "probe", "http-server"] {
        test.rt(["wasm", "compile", &test.host.guest(guest)?.display().to_string()])?.success()?;
    }
    let sizes: u64 =
        files(test, "so").iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum();
    ensure((1..=450 << 10).contains(&sizes), format!("{sizes} bytes are kept"))
}

fn wrong_settings_are_errors(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.wasm("hello", &[])?;
    let file = test.folder.join("wasm.json");
    for (text, words) in [
        ("{ \"compile\": \"always\" }", "unknown variant `always`"),
        ("{ \"cach\": {} }", "unknown field `cach`"),
        ("{ \"compiler\": { \"user\": 0 } }", "`compiler.user`"),
        ("{", "EOF"),
    ] {
        fs::write(&file, text)?;
        let output = bundle.try_create(&test.id())?;
        output.fails_with("wasm.json`: ")?.fails_with(words)?;
    }
    fs::write(&file, "{}")?;
    let bundle = bundle.annotation(COMPILE, "always");
    bundle
        .try_create(&test.id())?
        .fails_with("the annotation `run.oci.wasm.compile`: `always` is not `lazy`")
        .map(drop)
}

/// A command for a shell.
fn line(test: &Test, args: &[&str]) -> String {
    let command = test.command(args);
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| format!("'{}' ", word.display())).collect()
}

/// The entries of a cache on a disk of this size after some commands, as
/// `rt wasm cache list --format=json` prints them.
fn on_a_disk(test: &Test, size: &str, commands: &[String]) -> Outcome<Vec<Value>> {
    let script = format!(
        "mkdir -m 700 cache; mount -t tmpfs -o size={size},mode=700 tmpfs cache; set +e; ({}) >said 2>&1; set -e",
        commands.join("; ")
    );
    let list = ["wasm", "cache", "list", "--format=json"].map(str::to_owned).to_vec();
    Ok(serde_json::from_str(&elsewhere(test, &script, list)?.success()?.stdout)?)
}

fn a_full_disk_loses_what_was_not_used(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let [first, second] = [test.host.guest("hello")?, test.host.guest("probe")?];
    let [first, second] = [first.display().to_string(), second.display().to_string()];
    let compile = |file: &str| line(test, &["wasm", "compile", file]);
    let left = on_a_disk(test, "600k", &[compile(&first), compile(&second)])?;
    let names: Vec<_> = left.iter().map(|entry| entry["native"]["name"].as_str()).collect();
    let said = fs::read_to_string(test.folder.join("said"))?;
    ensure(names == [Some(second.as_str())], format!("{names:?}: {said}"))
}

fn a_full_disk_is_remembered_for_a_while(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let compile =
        line(test, &["wasm", "compile", &test.host.guest("hello")?.display().to_string()]);
    let left = on_a_disk(test, "80k", &[compile.clone(), compile])?;
    let said = fs::read_to_string(test.folder.join("said"))?;
    ensure_eq(left.len(), 1)?;
    ensure(left[0]["failure"]["until"].as_u64().is_some(), format!("{left:?}: {said}"))?;
    ensure(said.contains("could not be compiled before") && said.contains("No space left"), said)
}

/// The clock was a year ahead when the compiler failed, and has been set back since.
fn a_failure_is_forgotten_when_the_clock_jumps_back(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let compile =
        line(test, &["wasm", "compile", &test.host.guest("hello")?.display().to_string()]);
    let ahead = "sed -i -E 's/\"until\":([0-9])/\"until\":9\\1/' cache/*.failed".to_owned();
    let room = "mount -o remount,size=4m cache".to_owned();
    let left = on_a_disk(test, "80k", &[compile.clone(), ahead, room, compile])?;
    let said = fs::read_to_string(test.folder.join("said"))?;
    ensure(left.len() == 1 && left[0]["failure"].is_null(), format!("{left:?}: {said}"))
}

fn listing_it_is_no_use_of_it(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    for end in ["so", "hits"] {
        fs::File::open(&files(test, end)[0])?.set_modified(an_hour_ago)?;
    }
    let used = || -> Outcome<Option<u64>> {
        let json = test.rt(["wasm", "cache", "list", "--format=json"])?.success()?.stdout;
        Ok(serde_json::from_str::<Value>(&json)?[0]["used"].as_u64())
    };
    let before = used()?.ok_or("no time")?;
    fs::read(compiled(test)?)?;
    ensure_eq(used()?, Some(before))?;
    started(&bundle)?;
    ensure(used()? > Some(before), "its use was not noted")
}

fn a_file_whose_time_was_set_back_is_replaced(test: &Test) -> Outcome {
    use std::os::unix::fs::FileExt;
    is_replaced(test, |file| {
        let open = fs::File::options().read(true).write(true).open(file)?;
        let before = open.metadata()?;
        let (mut byte, middle) = ([0], before.len() / 2);
        open.read_exact_at(&mut byte, middle)?;
        open.write_all_at(&[!byte[0]], middle)?;
        Ok(open.set_modified(before.modified()?)?)
    })
}

fn the_engine_says_when_native_code_does_not_load(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let engine = test.host.runtime.parent().and_then(Path::parent).ok_or("no place")?;
    let engine = engine.join("libexec/rt/wasmedge").display().to_string();
    let script = format!(
        "exec 3<{engine} 4<{} 5</dev/null 6</bin/busybox; exec {engine}/ld.so --inhibit-cache --library-path {engine}/lib \
         {engine}/rt-wasmedge --contract=2 --engine-dir=3 --module=4 --env=5 --native=6 -- /hello.wasm",
        test.host.guest("hello")?.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]);
    let output = Output::of(shell)?.success()?.stdout("Hello from Wasm!\n")?;
    let words =
        "rt-wasmedge: the native code of `/hello.wasm` does not load, so it is interpreted: ";
    ensure(output.stderr.starts_with(words) && output.stderr.lines().count() == 1, output.stderr)
}

fn names_do_not_command_a_terminal(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let name = "/\u{1b}[2J\u{9b}2J\u{202e}.wasm";
    let file = name.trim_start_matches('/');
    let good = test.wasm("hello", &[])?.file(file, fs::read(test.host.guest("hello")?)?)?;
    let bad = test.wasm("hello", &[])?.file(file, b"\0asm\x01\0\0\0\x01\x05\0")?;
    for bundle in [good.args(&[name]), bad.args(&[name])] {
        bundle.write()?;
        let folder = bundle.folder.display().to_string();
        let output = test.rt(["wasm", "compile", &folder])?;
        let said = output.stdout + &output.stderr;
        ensure(!said.contains(['\u{1b}', '\u{9b}', '\u{202e}']), said)?;
    }
    let table = test.rt(["wasm", "cache", "list"])?.success()?.stdout;
    ensure(!table.contains(['\u{1b}', '\u{9b}', '\u{202e}']), &table)?;
    ensure_eq(table.matches("/\\u{1b}[2J\\u{9b}2J\\u{202e}.wasm").count(), 2)
}

fn native_code_needs_no_compiler(test: &Test) -> Outcome {
    let bundle = with_native_code(test)?;
    bundle.write()?;
    let engine = test.host.runtime.parent().and_then(Path::parent).ok_or("no place")?;
    let script = format!(
        "mkdir engine; cp -al '{0}'/. engine; rm -r engine/compiler; mount --bind engine '{0}'",
        engine.join("libexec/rt/wasmedge").display()
    );
    let id = test.id();
    elsewhere(test, &script, bundle.command_line("create", &id))?.success()?;
    ensure_eq(mode_of(test, &id)?.as_str(), "aot")?;
    let again = "mount --bind engine";
    let script = script.split_once("; mount").map(|(_, rest)| format!("mount{rest}"));
    let script = script.filter(|script| script.starts_with(again)).ok_or("no mount")?;
    let list = ["wasm", "cache", "list"].map(str::to_owned).to_vec();
    let listed = elsewhere(test, &script, list)?.success()?.stdout;
    ensure(listed.contains(" native "), listed)?;
    let hello = test.wasm("hello", &[])?.annotation(COMPILE, "eager");
    hello.write()?;
    let output = elsewhere(test, &script, hello.command_line("run", &test.id()))?.success()?;
    ensure(output.stderr.contains("this installation compiles no modules"), output.stderr)?;
    let clear = ["wasm", "cache", "clear"].map(str::to_owned).to_vec();
    elsewhere(test, &script, clear)?.success()?;
    ensure_eq(files(test, "so").len(), 0)
}
