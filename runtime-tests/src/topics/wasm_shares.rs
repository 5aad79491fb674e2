//! The shares of tenants in the compilers of modules and in the cache. A tenant is a pod, or a
//! container without a pod. Each test has its own compilers, and compilers of other tests do not
//! wait for them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::wasm_cache::{COMPILE, files, host, host_with_defaults, wait_for_compiler};
use crate::harness::{Bundle, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, wait_until};

super::tests! { "wasm_shares":
    a_slow_module_does_not_hold_up_another_tenants, a_tenant_has_one_compiler_at_a_time, waiting_for_others_has_a_limit_of_its_own,
    small_modules_go_first, the_second_place_is_given_up, killed_compilers_leave_both_places_free, a_killed_start_takes_its_worker_along,
    a_waiter_that_is_stopped_stops_no_other, a_module_that_two_tenants_want_has_the_share_of_both,
    a_pod_does_not_fill_the_queue, a_tenant_drives_out_its_own_first, a_huge_module_drives_out_nothing,
}

const CONTAINERD: &str = "io.kubernetes.cri.sandbox-id";
const CRI_O: &str = "io.kubernetes.cri-o.SandboxID";

pub(super) fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        bytes.push(if number > 0 { low | 0x80 } else { low });
        if number == 0 {
            return bytes;
        }
    }
}

pub(super) fn section(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind], leb(content.len()).as_slice(), content].concat()
}

/// A module that takes a compiler a minute, and does nothing. Its blocks mix many variables.
fn slow(seed: usize) -> Vec<u8> {
    const VARIABLES: usize = 300;
    const BLOCKS: usize = 60_000;
    let mut state = seed + 12_345;
    let mut variable = || {
        state = (state * 1_103_515_245 + 12_345) & 0x7fff_ffff;
        leb((state >> 8) % VARIABLES)
    };
    let mut body = [leb(1), leb(VARIABLES), vec![0x7f]].concat();
    for _ in 0..BLOCKS {
        // block; local.get; br_if 0; local.get; local.get; i32.add; local.set; end
        body.extend([0x02, 0x40, 0x20]);
        body.extend(variable());
        body.extend([0x0d, 0, 0x20]);
        body.extend(variable());
        body.push(0x20);
        body.extend(variable());
        body.extend([0x6a, 0x21]);
        body.extend(variable());
        body.push(0x0b);
    }
    body.push(0x0b);
    let code = [leb(1), leb(body.len()), body].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, b"\x01\x60\0\0"),
        section(3, b"\x01\0"),
        section(5, b"\x01\0\x01"),
        section(7, b"\x02\x06memory\x02\0\x06_start\0\0"),
        section(10, &code),
    ]
    .concat()
}

/// A module that prints its greeting and has this many bytes more.
fn large(test: &Test, seed: u8, bytes: usize) -> Outcome<Vec<u8>> {
    let mut module = fs::read(test.host.guest("hello")?)?;
    module.extend(section(0, &[vec![1, b'x'], vec![seed; bytes]].concat()));
    Ok(module)
}

fn compilers_folder(test: &Test) -> PathBuf {
    test.folder.join("compilers")
}

/// The directory that the test's commands see as `/run/rt-compiler`.
fn compilers_place(test: &Test) -> Outcome<PathBuf> {
    let place = compilers_folder(test);
    fs::create_dir_all(&place)?;
    Ok(place)
}

/// The runtime with the test's own compilers.
fn alone(test: &Test, args: Vec<String>) -> Outcome<Command> {
    let command = test.command(args);
    let mut unshare = Command::new("unshare");
    let script =
        "mkdir -p /run/rt-compiler; mount --bind \"$1\" /run/rt-compiler; shift; exec \"$@\"";
    unshare.args(["--mount", "sh", "-ec", script, "sh"]).arg(compilers_place(test)?);
    unshare.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    Ok(unshare)
}

/// Makes a container in the background.
fn begin(bundle: &Bundle<'_>, id: &str) -> Outcome<Child> {
    bundle.write()?;
    let mut command = alone(bundle.test, bundle.command_line("create", id))?;
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

fn mode(test: &Test, id: &str) -> Outcome<String> {
    let state: Value = serde_json::from_str(&test.rt(["state", id])?.success()?.stdout)?;
    Ok(state["annotations"]["run.oci.engine.mode"].as_str().unwrap_or_default().to_owned())
}

/// Makes a container, and returns the mode of its module.
fn created(bundle: &Bundle<'_>) -> Outcome<String> {
    let id = bundle.test.id();
    bundle.write()?;
    Output::of(alone(bundle.test, bundle.command_line("create", &id))?)?.success()?;
    mode(bundle.test, &id)
}

fn eager<'a>(test: &'a Test, module: &[u8], key: &str, pod: &str) -> Outcome<Bundle<'a>> {
    Ok(test.module(module)?.annotation(COMPILE, "eager").annotation(key, pod))
}

/// The processes of this test with this word in their command lines. `--compile` finds the
/// compilers, and `worker` finds the workers.
fn processes(test: &Test, word: &str) -> Vec<i32> {
    let root = test.state_root().display().to_string();
    let line = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).into_owned()
    };
    let parent = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse::<i32>().ok())
    };
    let is_ours = |pid: &i32| {
        let own = line(*pid);
        own.contains(word)
            && (own.contains(&root) || parent(*pid).is_some_and(|it| line(it).contains(&root)))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
}

fn compilers(test: &Test) -> Vec<i32> {
    processes(test, "--compile")
}

fn workers(test: &Test) -> Vec<i32> {
    processes(test, "worker")
}

fn signal(name: &str, pids: &[i32]) -> Outcome {
    for pid in pids {
        Command::new("kill").args([name, &pid.to_string()]).stderr(Stdio::null()).status()?;
    }
    Ok(())
}

/// The compilers of this test, including those whose parent has ended. Their root is in the test's
/// directory.
fn orphans(test: &Test) -> Vec<i32> {
    let folder = compilers_folder(test).display().to_string();
    let is_ours = |pid: &i32| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.lines().any(|line| {
            let root = line.split(' ').nth(3).unwrap_or_default();
            root.starts_with(&folder) && line.split(' ').nth(4) == Some("/")
        })
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
}

/// Ends the callers of a test. Their workers end with them, and the compilers with their workers.
/// No later worker uses these places, so this function removes their cgroups.
fn end(test: &Test, callers: Vec<Child>) -> Outcome {
    let ended = workers(test);
    for mut caller in callers {
        signal("-KILL", &[i32::try_from(caller.id())?])?;
        caller.wait()?;
    }
    let left = wait_until("the compilers have ended", || {
        workers(test).is_empty() && orphans(test).is_empty()
    });
    signal("-KILL", &workers(test))?;
    signal("-KILL", &orphans(test))?;
    for pid in ended {
        let name = format!("rt-compiler/{pid}");
        for cgroup in cgroups_of(&pid.to_string()).iter().filter(|path| path.ends_with(&name)) {
            wait_until("its cgroup is empty", || {
                fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
            })?;
        }
    }
    left
}

/// Holds one of the two places for compilers.
fn hold(test: &Test, place: &str) -> Outcome<fs::File> {
    let folder = compilers_place(test)?.join(place);
    fs::create_dir_all(&folder)?;
    let lock = fs::File::options().create(true).append(true).open(folder.join("@lock"))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

const FIRST: &str = "";
const SECOND: &str = "@second";

/// Three pods with modules that take a minute each would be one tenant too many. Here one pod has
/// three such modules.
fn a_slow_module_does_not_hold_up_another_tenants(test: &Test) -> Outcome {
    host_with_defaults(test, json!({ "compile": "eager" }))?;
    let mut callers = Vec::new();
    for seed in 0..3 {
        callers.push(begin(&eager(test, &slow(seed), CONTAINERD, "slow")?, &test.id())?);
        wait_for_compiler("a slow module is compiled", || compilers(test).len() == 1)?;
    }
    let module = fs::read(test.host.guest("hello")?)?;
    let small = created(&eager(test, &module, CONTAINERD, "small")?);
    let without_pod = created(&test.wasm("wasi", &["none"])?.annotation(COMPILE, "eager"));
    let still = (compilers(test).len(), callers[0].try_wait()?.is_none());
    end(test, callers)?;
    ensure_eq((small?.as_str(), without_pod?.as_str()), ("aot", "aot"))?;
    ensure_eq(still, (1, true))
}

fn a_tenant_has_one_compiler_at_a_time(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let mut most = 0;
    let mut callers = vec![begin(&eager(test, &slow(0), CRI_O, "a")?, &test.id())?];
    wait_for_compiler("a slow module is compiled", || compilers(test).len() == 1)?;
    callers.push(begin(&eager(test, &slow(1), CRI_O, "a")?, &test.id())?);
    wait_for_compiler("the other one waits", || workers(test).len() == 2)?;
    // Some turns of the waiting worker.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        most = most.max(compilers(test).len());
    }
    callers.push(begin(&eager(test, &slow(2), CRI_O, "b")?, &test.id())?);
    let two = wait_for_compiler("another tenant has one too", || compilers(test).len() == 2);
    end(test, callers)?;
    two?;
    ensure_eq(most, 1)
}

fn waiting_for_others_has_a_limit_of_its_own(test: &Test) -> Outcome {
    host(test, json!({ "compiler": { "seconds": 3600, "waitSeconds": 1 } }))?;
    let held = [hold(test, FIRST)?, hold(test, SECOND)?];
    let hello = test.wasm("hello", &[])?.annotation(COMPILE, "eager");
    hello.write()?;
    let output = Output::of(alone(test, hello.command_line("run", &test.id()))?)?;
    let output = output.success()?.stdout("Hello from Wasm!\n")?;
    let words = "is interpreted: the compilers of others have not ended in time";
    ensure(output.stderr.contains(words), &output.stderr)?;
    ensure_eq((files(test, "job").len(), files(test, "failed").len()), (0, 0))?;
    // The same applies to a module that another tenant is about to have compiled.
    let mut caller = begin(&eager(test, &slow(0), CONTAINERD, "a")?, &test.id())?;
    wait_until("it waits", || files(test, "job").len() == 1)?;
    let same = eager(test, &slow(0), CONTAINERD, "b")?;
    ensure_eq(created(&same)?.as_str(), "interpreter")?;
    drop(held);
    ensure(caller.wait()?.success(), "it failed")
}

fn small_modules_go_first(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let (first, second) = (hold(test, FIRST)?, hold(test, SECOND)?);
    let begin = |module: &[u8], pod: &str, waiting: usize| {
        let caller = begin(&eager(test, module, CONTAINERD, pod)?, &test.id())?;
        wait_for_compiler("it waits", || workers(test).len() == waiting)?;
        std::thread::sleep(Duration::from_millis(200));
        Outcome::Ok(caller)
    };
    let large = begin(&large(test, 1, 3 << 20)?, "a", 1)?;
    let small = begin(&fs::read(test.host.guest("hello")?)?, "b", 2)?;
    drop(second);
    for mut caller in [large, small] {
        ensure(caller.wait()?.success(), "it failed")?;
    }
    drop(first);
    let mut kept = Vec::new();
    for file in files(test, "so") {
        let there = fs::metadata(file)?;
        kept.push((there.modified()?, there.len()));
    }
    kept.sort_unstable();
    ensure(kept.len() == 2 && kept[0].1 < kept[1].1, format!("{kept:?}"))
}

/// Two tenants with slow modules have both places. The second one makes way for a third tenant, and
/// no third compiler runs.
fn the_second_place_is_given_up(test: &Test) -> Outcome {
    host(test, json!({ "compiler": { "waitSeconds": 20 } }))?;
    let mut callers = Vec::new();
    for (seed, pod) in ["a", "b"].into_iter().enumerate() {
        callers.push(begin(&eager(test, &slow(seed), CONTAINERD, pod)?, &test.id())?);
        wait_for_compiler("it is compiled", || compilers(test).len() == seed + 1)?;
    }
    let first = compilers(test);
    let id = test.id();
    let third = eager(test, &fs::read(test.host.guest("hello")?)?, CONTAINERD, "c")?;
    let mut caller = begin(&third, &id)?;
    let mut most = 0;
    let ended = wait_for_compiler("the third one is compiled", || {
        most = most.max(compilers(test).len());
        caller.try_wait().is_ok_and(|status| status.is_some())
    });
    let left = compilers(test);
    end(test, callers)?;
    ended?;
    ensure_eq((mode(test, &id)?.as_str(), most), ("aot", 2))?;
    ensure(left.iter().any(|pid| first.contains(pid)), "the one in the first place was ended")
}

fn killed_compilers_leave_both_places_free(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let mut callers = Vec::new();
    for (seed, pod) in ["a", "b"].into_iter().enumerate() {
        callers.push(begin(&eager(test, &slow(seed), CONTAINERD, pod)?, &test.id())?);
        wait_for_compiler("it is compiled", || compilers(test).len() == seed + 1)?;
    }
    end(test, callers)?;
    for (guest, pod) in [("hello", "a"), ("wasi", "b")] {
        let module = fs::read(test.host.guest(guest)?)?;
        ensure_eq(created(&eager(test, &module, CONTAINERD, pod)?)?.as_str(), "aot")?;
    }
    let held = [hold(test, FIRST)?, hold(test, SECOND)?];
    drop(held);
    // The next worker in a place removes the leftovers of a killed one.
    let left = |place: &str| -> Outcome<usize> {
        let entries = fs::read_dir(compilers_place(test)?.join(place))?.flatten();
        Ok(entries.filter(|it| it.file_name().to_string_lossy().starts_with("compiler-")).count())
    };
    ensure_eq(left(FIRST)?, 0)
}

/// Otherwise the worker would keep its turn, for a module that nobody waits for.
fn a_killed_start_takes_its_worker_along(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let mut callers = Vec::new();
    for (seed, pod) in ["a", "a"].into_iter().enumerate() {
        callers.push(begin(&eager(test, &slow(seed), CONTAINERD, pod)?, &test.id())?);
        wait_for_compiler("it has a worker", || workers(test).len() == seed + 1)?;
    }
    wait_for_compiler("one is compiled, and one waits", || compilers(test).len() == 1)?;
    let pids: Vec<u32> = callers.iter().map(Child::id).collect();
    signal("-KILL", &pids.into_iter().map(i32::try_from).collect::<Result<Vec<_>, _>>()?)?;
    let gone = wait_until("the workers have ended", || workers(test).is_empty());
    end(test, callers)?;
    gone
}

/// A worker in a cgroup without processor time would be stopped like this.
fn a_waiter_that_is_stopped_stops_no_other(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let (first, second) = (hold(test, FIRST)?, hold(test, SECOND)?);
    let stopped = begin(&eager(test, &slow(0), CONTAINERD, "a")?, &test.id())?;
    wait_for_compiler("it waits", || workers(test).len() == 1)?;
    std::thread::sleep(Duration::from_millis(300));
    signal("-STOP", &workers(test))?;
    drop((first, second));
    // The larger module is behind the other one in the queue.
    let mode = created(&eager(test, &large(test, 1, 1 << 20)?, CONTAINERD, "b")?);
    end(test, vec![stopped])?;
    ensure_eq(mode?.as_str(), "aot")
}

/// The tenant that has claimed the module already has a compiler. The other tenant does not wait
/// for that compiler.
fn a_module_that_two_tenants_want_has_the_share_of_both(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let hello = fs::read(test.host.guest("hello")?)?;
    let mut callers = vec![begin(&eager(test, &slow(0), CONTAINERD, "a")?, &test.id())?];
    wait_for_compiler("a slow module is compiled", || compilers(test).len() == 1)?;
    callers.push(begin(&eager(test, &hello, CONTAINERD, "a")?, &test.id())?);
    wait_for_compiler("the other one waits", || workers(test).len() == 2)?;
    let mode = created(&eager(test, &hello, CONTAINERD, "b")?);
    let runs = compilers(test).len();
    end(test, callers)?;
    ensure_eq((mode?.as_str(), runs), ("aot", 1))
}

fn a_pod_does_not_fill_the_queue(test: &Test) -> Outcome {
    host(test, json!({}))?;
    let lock = hold(test, FIRST)?;
    let lazy = |seed: u8, pod: &str| {
        let bundle = test.module(&large(test, seed, 100)?)?.annotation(CONTAINERD, pod);
        created(&bundle).map(drop)
    };
    for seed in 0..4 {
        lazy(seed, "a")?;
    }
    ensure_eq(files(test, "job").len(), 2)?;
    lazy(9, "b")?;
    ensure_eq(files(test, "job").len(), 3)?;
    drop(lock);
    wait_for_compiler("all are compiled", || files(test, "so").len() == 3)?;
    wait_for_compiler("the workers have ended", || workers(test).is_empty())
}

/// A tenant's module, which is the first in the cache, and its native code.
fn with_a_neighbour(test: &Test) -> Outcome<(Bundle<'_>, PathBuf)> {
    host(test, json!({ "cache": { "maxBytes": 4 << 20 } }))?;
    let module = fs::read(test.host.guest("wasi")?)?;
    let bundle = eager(test, &module, CONTAINERD, "neighbour")?.args(&["/module.wasm", "none"]);
    ensure_eq(created(&bundle)?.as_str(), "aot")?;
    let kept = files(test, "so");
    ensure_eq(kept.len(), 1)?;
    // The last use was an hour ago.
    let before = SystemTime::now() - Duration::from_secs(3600);
    for file in [kept[0].clone(), kept[0].with_extension("hits")] {
        fs::File::open(file)?.set_modified(before)?;
    }
    Ok((bundle, kept[0].clone()))
}

fn a_tenant_drives_out_its_own_first(test: &Test) -> Outcome {
    let (_, kept) = with_a_neighbour(test)?;
    for seed in 0..8 {
        let module = large(test, seed, 700 << 10)?;
        ensure_eq(created(&eager(test, &module, CONTAINERD, "a")?)?.as_str(), "aot")?;
    }
    ensure(kept.exists(), "another tenant's native code is gone")?;
    let sizes =
        files(test, "so").into_iter().filter_map(|file| Some(fs::metadata(file).ok()?.len()));
    let all: u64 = sizes.sum();
    // If the cache has room, a tenant may use more than its share.
    ensure((2 << 20..=4 << 20).contains(&all), format!("{all} bytes are kept"))
}

fn a_huge_module_drives_out_nothing(test: &Test) -> Outcome {
    let (_, kept) = with_a_neighbour(test)?;
    let huge = large(test, 1, 5 << 20)?;
    let bundle = eager(test, &huge, CONTAINERD, "a")?;
    ensure_eq(created(&bundle)?.as_str(), "interpreter")?;
    ensure(kept.exists(), "another tenant's native code is gone")?;
    let list = test.rt(["wasm", "cache", "list"])?.success()?.stdout;
    ensure(list.contains("its native code is more than half of the cache"), list)?;
    // The administrator of the cache may use all of it.
    host(test, json!({ "cache": { "maxBytes": 8 << 20 } }))?;
    let module = bundle.rootfs().join("module.wasm").display().to_string();
    let compile = ["wasm", "compile", "--force", &module].map(str::to_owned).to_vec();
    Output::of(alone(test, compile)?)?.success()?;
    ensure_eq((files(test, "so").len(), files(test, "failed").len()), (2, 0))
}
