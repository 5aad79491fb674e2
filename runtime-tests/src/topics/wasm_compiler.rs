//! The compilers of modules: their tenants, rights and limits, and the waits for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::wasm_cache::{
    COMPILE, cache, compiled, files, host, sleeper, started, wait_for_compiler,
};
use crate::harness::{Outcome, Test, ensure, ensure_eq, skip, wait_until};

super::tests! { "wasm_compiler":
    many_starts_compile_once, one_module_is_compiled_at_a_time, its_caller_is_not_kept_waiting, the_compiler_is_confined,
    a_compiler_that_takes_too_long_is_ended, a_compiler_that_takes_too_much_memory_is_ended, what_cannot_be_compiled_is_remembered,
    a_compiler_that_was_killed_leaves_nothing, compile_takes_a_module_or_a_bundle, compile_refuses_what_is_no_module,
    what_was_left_waiting_is_in_nobodys_way, a_start_that_is_held_up_holds_up_no_other, a_signal_ends_the_waiting,
    one_container_does_not_stop_the_others, what_waits_takes_a_part_of_the_cache_only, a_start_that_fails_leaves_no_module_behind,
    who_waits_goes_before_the_background, who_waits_hurries_the_background, the_background_gives_way_to_all_others,
    a_compiler_that_stands_still_is_ended, raised_limits_are_another_chance, old_failures_are_forgotten,
}

fn many_starts_compile_once(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let bundle = sleeper(test)?;
    bundle.write()?;
    let ids: Vec<String> = (0..6).map(|_| test.id()).collect();
    let start = |id: &String| {
        test.command(bundle.command_line("create", id))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let callers = ids.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    for mut caller in callers {
        ensure(caller.wait()?.success(), "a creation failed")?;
    }
    for id in &ids {
        let state: Value = serde_json::from_str(&test.rt(["state", id])?.success()?.stdout)?;
        ensure_eq(state["annotations"]["run.oci.engine.mode"].as_str(), Some("aot"))?;
    }
    compiled(test).map(drop)
}

/// The running compilers of this test.
fn compilers(test: &Test) -> Vec<i32> {
    let root = test.state_root().display().to_string();
    let is_ours = |pid: &i32| {
        let read = |pid: i32, file: &str| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        // The parent of a compiler is a worker, and the worker's command line contains the root of
        // the state.
        let parent = read(*pid, "status");
        let parent = parent.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok());
        read(*pid, "cmdline").contains("--compile")
            && parent.is_some_and(|parent| read(parent, "cmdline").contains(&root))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
}

fn one_module_is_compiled_at_a_time(test: &Test) -> Outcome {
    host(test, json!({}))?;
    for guest in ["probe", "wasi", "http-server", "hello"] {
        let id = test.id();
        let bundle = test.wasm(guest, &["args"])?;
        bundle.try_create(&id)?.success()?;
    }
    let mut most = 0;
    wait_for_compiler("all are compiled", || {
        most = most.max(compilers(test).len());
        files(test, "so").len() == 4
    })?;
    ensure_eq(most, 1)
}

/// The reader of the command's output reaches the end while the compiler still waits.
fn its_caller_is_not_kept_waiting(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let lock = hold_compilers()?;
    let bundle = test.wasm("wasi", &["none"])?;
    bundle.write()?;
    let output =
        test.command(bundle.command_line("run", &test.id())).stderr(Stdio::piped()).output()?;
    let waiting = files(test, "job").len();
    ensure(output.status.code().is_some(), "it was ended")?;
    ensure_eq(waiting, 1)?;
    drop(lock);
    compiled(test).map(drop)
}

fn the_compiler_is_confined(test: &Test) -> Outcome {
    host(test, json!({}))?;
    sleeper(test)?.start()?;
    let pid = a_compiler(test)?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let status = read("status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default().to_owned()
    };
    for (name, value) in [
        ("Uid", "1879048192\t1879048192\t1879048192\t1879048192"),
        ("Gid", "1879048192\t1879048192\t1879048192\t1879048192"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        ensure_eq((name, field(name).as_str()), (name, value))?;
    }
    for namespace in ["net", "pid", "mnt", "ipc", "uts", "cgroup"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        ensure(
            link(&pid.to_string())? != link("self")?,
            format!("the {namespace} namespace is ours"),
        )?;
    }
    ensure_eq(read("oom_score_adj")?.trim(), "1000")?;
    let cgroup = read("cgroup")?;
    ensure(cgroup.contains("rt-compiler") || cgroup.contains("compiler-"), cgroup)?;
    // No descriptor of the container or of the caller.
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let targets: Vec<String> = links
        .filter_map(|link| Some(fs::read_link(link.path()).ok()?.display().to_string()))
        .collect();
    let folder = test.folder.display().to_string();
    let foreign = targets.iter().find(|target| {
        target.starts_with(&folder) && !target.contains("/cache/") || target.starts_with("socket:")
    });
    ensure_eq(foreign, None)?;
    compiled(test).map(drop)
}

/// A module that takes a compiler a while, does nothing and prints nothing.
fn many_functions() -> Outcome<Vec<u8>> {
    let mut text = String::from("(module");
    for number in 0..20_000 {
        text += &format!(
            "(func (param i32) (result i32) (i32.add (local.get 0) (i32.const {number})))"
        );
    }
    Ok(wat::parse_str(text + "(memory (export \"memory\") 1) (func (export \"_start\")))")?)
}

/// Compiling such a module fails with these words, and only once. The module runs all the same.
fn fails_to_compile(test: &Test, words: &str) -> Outcome {
    let bundle = test.module(&many_functions()?)?;
    let output = bundle.run()?.success()?.stdout("")?;
    ensure(
        output.stderr.starts_with("rt: warning: the module `/module.wasm` is interpreted: "),
        output.stderr,
    )?;
    let failed = files(test, "failed");
    let left = ["so", "job", "part"].map(|end| files(test, end).len());
    ensure_eq((failed.len(), left), (1, [0, 0, 0]))?;
    let listed = test.rt(["wasm", "cache", "list"])?.success()?.stdout;
    ensure(listed.contains(" failed ") && listed.contains(words), listed)?;
    let time = fs::metadata(&failed[0])?.modified()?;
    bundle.run()?.success()?.stdout("")?;
    ensure_eq(fs::metadata(&failed[0])?.modified()?, time)
}

fn a_compiler_that_takes_too_long_is_ended(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager", "compiler": { "seconds": 1 } }))?;
    fails_to_compile(test, "it takes longer than 1 s of the processor")
}

fn a_compiler_that_takes_too_much_memory_is_ended(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager", "compiler": { "memoryBytes": 48 << 20 } }))?;
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let counted = Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists()
        || v2.is_ok_and(|list| list.contains("memory"));
    // Without the memory controller, the compiler itself gets no more memory, and says so.
    let words =
        if counted { "it requires more memory than the compiler may use" } else { "out of memory" };
    fails_to_compile(test, words)
}

fn what_cannot_be_compiled_is_remembered(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    let bundle = test.module(b"\0asm\x01\0\0\0\x01\x05\0")?;
    bundle.run()?.code(126)?;
    let failed = files(test, "failed");
    ensure_eq(failed.len(), 1)?;
    let why = fs::read_to_string(&failed[0])?;
    ensure(why.contains("malformed"), why)?;
    bundle.run()?.code(126)?;
    let path = bundle.rootfs().join("module.wasm").display().to_string();
    test.rt(["wasm", "compile", &path])?.fails_with("could not be compiled before")?;
    test.rt(["wasm", "compile", "--force", &path])?.fails_with("malformed").map(drop)
}

fn a_compiler_that_was_killed_leaves_nothing(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let bundle = sleeper(test)?;
    bundle.start()?;
    let worker = a_worker(test)?;
    let state = Path::new("/run/rt-compiler").join(format!("compiler-{worker}"));
    ensure(state.exists(), "it has another state")?;
    signal("-KILL", &worker)?;
    wait_until("the compiler ends with it", || compilers(test).is_empty())?;
    // The next worker takes over.
    ensure_eq(started(&bundle)?.as_str(), "interpreter")?;
    compiled(test)?;
    ensure_eq(files(test, "part").len(), 0)?;
    // Another test's compiler may use the directory above, so the test looks at its own state only.
    ensure(!state.exists(), "its state is left")
}

fn compile_takes_a_module_or_a_bundle(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let bundle = test.wasm("hello", &[])?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let said = test.rt(["wasm", "compile", &folder])?.success()?.stdout;
    ensure(said.starts_with("/hello.wasm: compiled in ") && said.lines().count() == 1, said)?;
    let file = bundle.rootfs().join("hello.wasm").display().to_string();
    test.rt(["wasm", "compile", &file])?
        .success()?
        .stdout(&format!("{file}: is compiled already\n"))?;
    // As the container finds its program: by PATH, in the working directory, and through a link
    // that stays inside.
    let rootfs = bundle.rootfs();
    fs::create_dir_all(rootfs.join("opt/bin"))?;
    fs::rename(rootfs.join("hello.wasm"), rootfs.join("opt/bin/app.wasm"))?;
    std::os::unix::fs::symlink("/opt/bin/app.wasm", rootfs.join("opt/bin/link.wasm"))?;
    for name in ["app.wasm", "link.wasm", "/opt/bin/link.wasm"] {
        let bundle = bundle
            .clone()
            .args(&[name])
            .edit(|config| config["process"]["env"] = json!(["PATH=/bin:/opt/bin"]));
        bundle.write()?;
        test.rt(["wasm", "compile", &folder])?
            .success()?
            .stdout(&format!("{name}: is compiled already\n"))?;
    }
    Ok(())
}

fn compile_refuses_what_is_no_module(test: &Test) -> Outcome {
    host(test, json!({}))?;
    test.rt(["wasm", "compile", "/bin/busybox"])?
        .fails_with("compile `/bin/busybox`: it is not a WebAssembly module")?;
    test.rt(["wasm", "compile", "/none"])?
        .fails_with("compile `/none`: open it: No such file or directory")?;
    // A component, for an engine that runs modules only.
    let component = test.module(b"\0asm\x0d\0\x01\0")?.annotation("run.oci.handler", "wasmedge");
    component.write()?;
    test.rt(["wasm", "compile", &component.folder.display().to_string()])?
        .fails_with("needs an engine such as `wasmtime`")?;
    let bundle = test.sh("true")?;
    bundle.write()?;
    test.rt(["wasm", "compile", &bundle.folder.display().to_string()])?
        .fails_with("it is not a WebAssembly module")?;
    ensure(!cache(test).exists(), "something was kept")
}

/// Killed workers have left these files.
fn what_was_left_waiting_is_in_nobodys_way(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    fs::create_dir(cache(test))?;
    fs::set_permissions(cache(test), fs::Permissions::from_mode(0o700))?;
    for number in 0..20 {
        fs::write(cache(test).join(format!("{number}.job")), "")?;
    }
    ensure_eq(started(&sleeper(test)?)?.as_str(), "aot")?;
    ensure_eq(files(test, "job").len(), 0)
}

fn signal(name: &str, pid: &str) -> Outcome {
    ensure(Command::new("kill").args([name, pid]).status()?.success(), format!("kill {name} {pid}"))
}

/// The first compiler of this test.
fn a_compiler(test: &Test) -> Outcome<i32> {
    let mut found = Vec::new();
    wait_for_compiler("a compiler runs", || {
        found = compilers(test);
        !found.is_empty()
    })?;
    Ok(found[0])
}

/// The worker that has started a compiler.
fn a_worker(test: &Test) -> Outcome<String> {
    let mut found = None;
    wait_for_compiler("a worker waits for a compiler", || {
        // The compiler may have made way for another test's compiler meanwhile.
        let compiler = compilers(test).first().copied().unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{compiler}/status")).unwrap_or_default();
        found = status.lines().find_map(|line| line.strip_prefix("PPid:\t").map(str::to_owned));
        found.is_some()
    })?;
    found.ok_or_else(|| "no worker".into())
}

/// The start of one tenant's module must not hold up another tenant. Here an agent must decide on a
/// system call that init makes after it has asked for native code. The agent never answers.
fn a_start_that_is_held_up_holds_up_no_other(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let path = test.folder.join("agent");
    let agent = UnixListener::bind(&path)?;
    let held = sleeper(test)?.edit(|config| {
        config["process"]["noNewPrivileges"] = json!(false);
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{ "names": ["capset"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    held.write()?;
    let id = test.id();
    let mut command = test.command(held.command_line("create", &id));
    let mut caller = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let (stream, _) = agent.accept()?;
    // The filter is in force when its listener arrives. The test leaves the listener in the queue.
    rustix::net::recv(&stream, &mut [0], rustix::net::RecvFlags::PEEK)?;
    std::thread::sleep(Duration::from_millis(500));
    let waits = caller.try_wait()?.is_none();
    let mode = started(&sleeper(test)?.annotation(COMPILE, "eager"));
    caller.kill()?;
    caller.wait()?;
    ensure(waits, "it was not held up")?;
    ensure_eq(mode?.as_str(), "aot")
}

/// `run` passes the signal on to the module, which the engine interprets.
fn a_signal_ends_the_waiting(test: &Test) -> Outcome {
    host(test, json!({}))?;
    sleeper(test)?.start()?;
    let worker = a_worker(test)?;
    signal("-STOP", &worker)?;
    let bundle = sleeper(test)?.annotation(COMPILE, "eager");
    bundle.write()?;
    let log = test.folder.join("stderr");
    let mut command = test.command(bundle.command_line("run", &test.id()));
    let mut caller = command.stdout(Stdio::null()).stderr(fs::File::create(&log)?).spawn()?;
    let pid = caller.id().to_string();
    let waits = || {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = links.filter_map(|link| fs::read_link(link.path()).ok());
        targets.any(|target| target.extension().is_some_and(|end| end == "job"))
    };
    let waited = wait_until("it waits", waits).and_then(|()| signal("-TERM", &pid));
    let code = waited.and_then(|()| Ok(caller.wait()?.code()));
    signal("-KILL", &worker)?;
    ensure_eq(code?, Some(143))?;
    let said = fs::read_to_string(log)?;
    ensure(said.contains("is interpreted: a signal came while others compile it"), said)
}

/// While this lock is held, no other compiler starts on this host.
fn hold_compilers() -> Outcome<fs::File> {
    fs::create_dir_all("/run/rt-compiler")?;
    let lock = fs::File::options().create(true).append(true).open("/run/rt-compiler/@lock")?;
    wait_for_compiler("others have ended", || {
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&lock, operation).is_ok()
    })?;
    Ok(lock)
}

fn one_container_does_not_stop_the_others(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let lock = hold_compilers()?;
    let bundle = sleeper(test)?;
    for guest in ["hello", "wasi", "http-server"] {
        fs::copy(test.host.guest(guest)?, bundle.rootfs().join(format!("{guest}.wasm")))?;
    }
    let container = bundle.start()?;
    for guest in ["hello", "wasi"] {
        test.rt(["exec", "--detach", &container.id, &format!("/{guest}.wasm")])?.success()?;
    }
    ensure_eq(files(test, "job").len(), 2)?;
    test.wasm("http-server", &[])?.create()?;
    ensure_eq(files(test, "job").len(), 3)?;
    drop(lock);
    wait_for_compiler("all are compiled", || files(test, "so").len() == 3)
}

fn what_waits_takes_a_part_of_the_cache_only(test: &Test) -> Outcome {
    host(test, json!({ "cache": { "maxBytes": 300 << 10 } }))?;
    let lock = hold_compilers()?;
    for guest in ["hello", "wasi", "probe"] {
        test.wasm(guest, &["none"])?.create()?;
    }
    ensure_eq(files(test, "job").len(), 1)?;
    drop(lock);
    compiled(test).map(drop)
}

fn a_start_that_fails_leaves_no_module_behind(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let bundle = sleeper(test)?.flag("--pidfd-socket=/nowhere");
    bundle.try_create(&test.id())?.fails_with("/nowhere")?;
    ensure_eq(files(test, "job").len(), 0)
}

fn who_waits_goes_before_the_background(test: &Test) -> Outcome {
    host(test, json!({}))?;
    test.module(&many_functions()?)?.create()?;
    a_compiler(test)?;
    ensure_eq(started(&sleeper(test)?.annotation(COMPILE, "eager"))?.as_str(), "aot")?;
    ensure_eq((files(test, "so").len(), files(test, "job").len()), (1, 1))?;
    wait_for_compiler("the other one is compiled too", || files(test, "so").len() == 2)
}

/// SCHED_IDLE is 5 (sched(7)), in field 41 of proc_pid_stat(5).
fn is_idle(pid: i32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().nth(38)? == "5")
}

/// The `cpu.idle` values of a compiler's cgroup and of our cgroups above it.
fn idle_files(pid: i32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut files = Vec::new();
    for line in table.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let root = if names.is_empty() { "" } else { names };
        let own = Path::new("/sys/fs/cgroup").join(root).join(path.trim_start_matches('/'));
        let ours = own.ancestors().filter(|path| path.to_string_lossy().contains("compiler"));
        files.extend(ours.filter_map(|path| fs::read_to_string(path.join("cpu.idle")).ok()));
    }
    files.iter().map(|text| text.trim().to_owned()).collect()
}

fn who_waits_hurries_the_background(test: &Test) -> Outcome {
    host(test, json!({ "compiler": { "idle": true } }))?;
    let bundle = test.module(&many_functions()?)?;
    bundle.create()?;
    let first = a_compiler(test)?;
    let eager = bundle.annotation(COMPILE, "eager");
    eager.write()?;
    let mut caller = test.command(eager.command_line("run", &test.id())).spawn()?;
    let mut files_of_its = Vec::new();
    wait_for_compiler("it is compiled at once", || {
        let urgent = compilers(test).into_iter().find(|pid| is_idle(*pid) == Some(false));
        urgent.filter(|pid| *pid != first).is_some_and(|pid| {
            files_of_its = idle_files(pid);
            true
        })
    })?;
    ensure(files_of_its.iter().all(|idle| idle == "0"), format!("{files_of_its:?}"))?;
    ensure(caller.wait()?.success(), "it failed")?;
    compiled(test).map(drop)
}

fn the_background_gives_way_to_all_others(test: &Test) -> Outcome {
    host(test, json!({ "compiler": { "idle": true } }))?;
    let bundle = test.module(&many_functions()?)?;
    bundle.create()?;
    let mut files = Vec::new();
    let waited = wait_for_compiler("a compiler has what nobody else wants", || {
        files = compilers(test).first().map(|pid| idle_files(*pid)).unwrap_or_default();
        compilers(test).first().is_some_and(|pid| is_idle(*pid) == Some(true))
    });
    // From here on, the module need not wait.
    bundle.annotation(COMPILE, "eager").run()?.success()?;
    waited?;
    if files.is_empty() {
        return skip("no controller of the processor's time, or no `cpu.idle`");
    }
    ensure(files.iter().all(|idle| idle == "1"), format!("{files:?}"))
}

fn a_compiler_that_stands_still_is_ended(test: &Test) -> Outcome {
    host(test, json!({ "compiler": { "seconds": 1 } }))?;
    test.module(&many_functions()?)?.create()?;
    wait_for_compiler("it is ended", || {
        // The test stops each compiler, because one may have made way for another test's.
        compilers(test).iter().for_each(|pid| drop(signal("-STOP", &pid.to_string())));
        !files(test, "failed").is_empty()
    })?;
    let listed = test.rt(["wasm", "cache", "list"])?.success()?.stdout;
    ensure(listed.contains("it was not compiled in 10 s"), listed)?;
    wait_until("its module is gone", || files(test, "job").is_empty())?;
    ensure_eq(compilers(test).len(), 0)
}

fn raised_limits_are_another_chance(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager", "compiler": { "seconds": 1 } }))?;
    let bundle = test.module(&many_functions()?)?;
    bundle.run()?.success()?;
    ensure_eq(files(test, "failed").len(), 1)?;
    host(test, json!({ "compile": "eager", "compiler": { "seconds": 600 } }))?;
    bundle.run()?.success()?;
    ensure_eq((files(test, "so").len(), files(test, "failed").len()), (1, 0))
}

fn old_failures_are_forgotten(test: &Test) -> Outcome {
    host(test, json!({ "compile": "eager" }))?;
    test.module(b"\0asm\x01\0\0\0\x01\x05\0")?.run()?.code(126)?;
    let month = Duration::from_secs(31 * 24 * 3600);
    let failed = fs::File::open(&files(test, "failed")[0])?;
    failed.set_modified(std::time::SystemTime::now() - month)?;
    started(&sleeper(test)?)?;
    ensure_eq(files(test, "failed").len(), 0)
}
