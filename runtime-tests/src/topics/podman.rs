//! podman, with the tested runtime in the place of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::needs;
use super::wasm_cache::has_compiler_of;
use crate::harness::{
    Outcome, Output, Test, WASMTIME, copy_program, ensure, ensure_eq, skip, wait_until,
};

super::tests! { "podman":
    runs_a_linux_container, runs_a_wasm_container, tells_a_missing_program_from_one_that_may_not_run,
    starts_stops_and_removes_a_linux_container, starts_stops_and_removes_a_wasm_container, limits_memory, execs_in_a_container, pauses_a_container, pauses_a_module, knows_no_limit_of_processes, gives_a_user_a_tmpfs, execs_as_another_user, keeps_the_root_read_only,
    mounts_volumes, obeys_the_flags_of_security, says_that_a_container_was_killed, shows_what_a_container_does, asks_after_its_health, has_a_module_beside_a_program_in_a_pod,
    restarts_what_failed, limits_processes, limits_processors, moves_a_container, lays_a_volume_below_changes, publishes_a_port,
    finds_the_runtime_by_the_configuration_that_comes_with_it, runs_a_spin_app_by_its_name_alone, creates_then_starts, tells_its_own_errors_from_the_runtimes, ends_by_the_signal_that_is_named,
    restarts_until_it_is_stopped, restarts_a_module_that_failed, asks_after_the_health_of_a_module, shares_namespaces_in_a_pod, maps_the_ids_of_a_volume,
    runs_an_image_of_the_platform_wasi,
}

pub(super) struct Podman<'a> {
    test: &'a Test,
    /// A process in the network namespace of podman's networks, if there is one.
    network: Option<Child>,
}

impl Podman<'_> {
    /// Makes separate storage, and an image from a directory.
    pub(super) fn new<'a>(test: &'a Test, wasm: bool) -> Outcome<Podman<'a>> {
        Podman::new_in(test, "image", wasm)
    }

    /// The image has this name.
    pub(super) fn new_in<'a>(test: &'a Test, image: &str, wasm: bool) -> Outcome<Podman<'a>> {
        if Command::new("podman").arg("--version").output().is_err() {
            return skip("podman is not installed");
        }
        // podman sets limits even if the user asks for none.
        needs(test, "memory")?;
        needs(test, "pids")?;
        let archive = test.image_archive(image, wasm)?;
        let podman = Podman { test, network: None };
        // Of two instances of podman that are the first on a host, one fails to make its locks in
        // shared memory.
        static ONE_BY_ONE: Mutex<()> = Mutex::new(());
        let _turn = ONE_BY_ONE.lock();
        podman.podman(&["import", &archive, image])?.success()?;
        Ok(podman)
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let runtime = self.test.host.runtime.display().to_string();
        self.bare_command(&[&["--runtime", &runtime], args].concat())
    }

    /// Makes a network namespace for podman, and returns the process that holds it.
    pub(super) fn have_network(&mut self) -> Outcome<u32> {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", "ip link set lo up; exec sleep 600"]);
        holder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let holder = holder.spawn()?;
        let pid = holder.id();
        self.network = Some(holder);
        Ok(pid)
    }

    /// podman chooses the runtime.
    fn bare_command(&self, args: &[&str]) -> Command {
        let folder = |name: &str| self.test.folder.join(name).display().to_string();
        let mut command = match &self.network {
            None => Command::new("podman"),
            Some(process) => self.in_network(process, "podman"),
        };
        command.args([
            "--root",
            &folder("storage"),
            "--runroot",
            &folder("run"),
            "--tmpdir",
            &folder("tmp"),
        ]);
        command.args([
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
        ]);
        command.args(args);
        command
    }

    pub(super) fn podman(&self, args: &[&str]) -> Outcome<Output> {
        Output::of(self.command(args))
    }

    fn in_network(&self, process: &Child, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", process.id())).arg(program);
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Outcome<Output> {
        self.limited("run", args)
    }

    /// `podman run` or `podman create` with these arguments, and with limits that a host without
    /// CAP_SYS_RESOURCE allows.
    fn limited(&self, command: &str, args: &[&str]) -> Outcome<Output> {
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        self.podman(&[&[command, "--network", "none"], &limits[..], args].concat())
    }

    pub(super) fn inspect(&self, format: &str, name: &str) -> Outcome<String> {
        let output = self.podman(&["inspect", "--format", format, name])?.success()?;
        Ok(output.stdout.trim().to_owned())
    }

    fn is(&self, state: &str) -> Outcome {
        let mut last = String::new();
        let is = wait_until("it is in this state", || {
            last = self.inspect("{{.State.Status}} {{.State.ExitCode}}", "c").unwrap_or_default();
            last == state
        });
        ensure(is.is_ok(), format!("{last:?}, not {state:?}"))
    }

    fn remove(&self) -> Outcome {
        self.podman(&["rm", "--force", "--time", "0", "c"])?.success().map(drop)
    }

    fn logs(&self) -> String {
        self.podman(&["logs", "c"]).map(|output| output.stdout).unwrap_or_default()
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // The test fails later if a container is left.
        let _ = self.podman(&["pod", "rm", "--force", "--all", "--time", "0"]);
        let _ = self.podman(&["rm", "--force", "--all", "--time", "0"]);
        let _ = Command::new("umount")
            .arg("--quiet")
            .arg(self.test.folder.join("storage/vfs"))
            .status();
        if let Some(mut process) = self.network.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn execs_in_a_container(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman.run(&["--detach", "--name", "c", "image", "/bin/sleep", "60"])?.success()?;
    podman.podman(&["exec", "c", "/bin/sh", "-c", "echo in; exit 7"])?.code(7)?.stdout("in\n")?;
    podman
        .podman(&[
            "exec",
            "--user",
            "5:6",
            "--workdir",
            "/tmp",
            "--env",
            "A=b",
            "c",
            "/bin/sh",
            "-c",
            "id -u; pwd; echo $A",
        ])?
        .success()?
        .stdout("5\n/tmp\nb\n")?;
    let tty =
        podman.podman(&["exec", "--tty", "c", "/bin/sh", "-c", "test -t 1 && echo terminal"])?;
    ensure(tty.success()?.stdout.contains("terminal"), "no terminal")?;
    podman.podman(&["exec", "c", "no-such-program"])?.code(127)?;
    podman.podman(&["exec", "c", "/etc"])?.code(126)?;
    podman.podman(&["exec", "--detach", "c", "/bin/sleep", "61"])?.success()?;
    let listed = podman.podman(&["exec", "c", "ps"])?.success()?.stdout;
    ensure(listed.contains("sleep 61"), listed)
}

fn pauses_a_container(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman.run(&["--detach", "--name", "c", "image", "/bin/sleep", "60"])?.success()?;
    podman.podman(&["pause", "c"])?.success()?;
    podman
        .podman(&["inspect", "--format", "{{.State.Status}}", "c"])?
        .success()?
        .stdout("paused\n")?;
    podman.podman(&["unpause", "c"])?.success()?;
    podman.podman(&["exec", "c", "/bin/true"])?.success().map(drop)
}

fn pauses_a_module(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    podman
        .run(&[&["-d", "--name", "c"], &WASM[..], &["image", "/probe.wasm", "sleep"]].concat())?
        .success()?;
    podman.podman(&["pause", "c"])?.success()?;
    podman.podman(&["unpause", "c"])?.success()?;
    std::thread::sleep(Duration::from_millis(100));
    let state = podman.podman(&["inspect", "--format", "{{.State.Status}}", "c"])?;
    state.success()?.stdout("running\n").map(drop)
}

/// podman writes 0 for each of these limits.
fn knows_no_limit_of_processes(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    for limit in ["-1", "0"] {
        let args = ["--rm", "--pids-limit", limit, "image", "/bin/sh", "-c", "(true); echo forked"];
        podman.run(&args)?.success()?.stdout("forked\n")?;
    }
    Ok(())
}

fn gives_a_user_a_tmpfs(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let script = "touch /cache/x /run/x /var/tmp/x && echo written";
    let flags = ["--rm", "--user", "1000", "--read-only", "--tmpfs", "/cache"];
    podman
        .run(&[&flags[..], &["image", "/bin/sh", "-c", script]].concat())?
        .success()?
        .stdout("written\n")
        .map(drop)
}

fn execs_as_another_user(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let flags = ["-d", "--name", "c", "--user", "1000:1000", "--cap-add", "NET_BIND_SERVICE"];
    podman.run(&[&flags[..], &["image", "/bin/sleep", "60"]].concat())?.success()?;
    podman
        .podman(&["exec", "--user", "0", "c", "/bin/id", "-u"])?
        .success()?
        .stdout("0\n")
        .map(drop)
}

const WASM: [&str; 2] = ["--annotation", "run.oci.handler=wasm"];

fn runs_a_linux_container(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman
        .run(&["--rm", "image", "/bin/sh", "-c", "echo hello; exit 7"])?
        .code(7)?
        .stdout("hello\n")
        .map(drop)
}

fn runs_a_wasm_container(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    podman
        .run(&[&["--rm"], &WASM[..], &["image", "/hello.wasm"]].concat())?
        .success()?
        .stdout("Hello from Wasm!\n")?;
    podman
        .run(&[&["--rm"], &WASM[..], &["image", "/probe.wasm", "exit", "7"]].concat())?
        .code(7)?;
    let env = podman
        .run(
            &[&["--rm", "--env", "KEY=value"], &WASM[..], &["image", "/probe.wasm", "env"]]
                .concat(),
        )?
        .success()?;
    ensure(env.stdout.contains("KEY=value\n"), env.stdout)
}

fn tells_a_missing_program_from_one_that_may_not_run(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman.run(&["--rm", "image", "/no/such/program"])?.code(127)?;
    podman.run(&["--rm", "image", "no-such-program"])?.code(127)?;
    podman.run(&["--rm", "image", "/data"])?.code(126)?;
    podman.run(&["--rm", "image", "/bin"])?.code(126).map(drop)
}

fn creates_then_starts(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let _module = Podman::new_in(test, "wasm", true)?;
    let program = ["image", "/bin/sh", "-c", "echo hello; exit 7"];
    podman.limited("create", &[&["--name", "c"], &program[..]].concat())?.success()?;
    podman.is("created 0")?;
    // podman calls the runtime's `create`, and not its `start`.
    podman.podman(&["init", "c"])?.success()?;
    podman.is("initialized 0")?;
    podman.podman(&["start", "--attach", "c"])?.code(7)?.stdout("hello\n")?;
    podman.is("exited 7")?;
    podman.podman(&["start", "--attach", "c"])?.code(7)?.stdout("hello\n")?;
    podman.remove()?;
    let module = ["--name", "c", WASM[0], WASM[1], "wasm", "/probe.wasm", "exit", "9"];
    podman.limited("create", &module)?.success()?;
    podman.podman(&["start", "--attach", "c"])?.code(9)?;
    podman.is("exited 9")
}

/// 125 is an error of podman before it calls the runtime. An error of the runtime is 126, or 127 if
/// its words say so.
fn tells_its_own_errors_from_the_runtimes(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman.run(&["--rm", "-v", "/none:/x", "image", "/bin/true"])?.code(125)?;
    podman.run(&["--rm", "--sysctl", "kernel.panic=1", "image", "/bin/true"])?.code(125)?;
    let run = ["run", "--rm", "--network", "none", "image", "/bin/true"];
    podman.podman(&[&["--runtime", "/none"], &run[..]].concat())?.code(125)?;
    let refused = podman.podman(&[&["--runtime-flag", "invalidflag"], &run[..]].concat())?;
    ensure(refused.code(126)?.stderr.contains("invalidflag"), "the flag is not named")?;
    test.only_rt()?;
    let unknown = ["--rm", "--annotation", "run.oci.handler=none", "image", "/bin/true"];
    let refused = podman.run(&unknown)?.code(126)?;
    ensure(refused.stderr.contains("unknown handler `none`"), refused.stderr)
}

/// podman passes the signal's number to the runtime, whatever its user has named.
fn ends_by_the_signal_that_is_named(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let _module = Podman::new_in(test, "wasm", true)?;
    let script = "trap 'exit 33' USR1; trap 'exit 44' HUP; echo ready; while :; do sleep 0.1; done";
    let native = ["image", "/bin/sh", "-c", script];
    // In the host's pid namespace, the process dies of a signal that it does not handle.
    let beside = ["--pid", "host", "image", "/bin/sh", "-c", "echo ready; exec sleep 60"];
    let module = [WASM[0], WASM[1], "wasm", "/probe.wasm", "sleep"];
    for (program, signal, code) in [
        (&native[..], "USR1", 33),
        (&native[..], "SIGHUP", 44),
        (&native[..], "SIGKILL", 137),
        (&beside[..], "TERM", 143),
        (&beside[..], "10", 138),
        (&module[..], "SIGTERM", 143),
        (&module[..], "INT", 130),
        (&module[..], "9", 137),
    ] {
        podman.run(&[&["--detach", "--name", "c"], program].concat())?.success()?;
        wait_until("it is ready", || podman.logs().contains("ready"))?;
        podman.podman(&["kill", "--signal", signal, "c"])?.success()?;
        podman.podman(&["wait", "c"])?.success()?.stdout(&format!("{code}\n"))?;
        podman.remove()?;
    }
    // In a new pid namespace, the kernel drops signals that the first process does not handle.
    podman.run(&[&["--detach", "--name", "c"], &native[..]].concat())?.success()?;
    wait_until("it is ready", || podman.logs().contains("ready"))?;
    podman.podman(&["kill", "--signal", "TERM", "c"])?.success()?;
    podman.is("running 0")
}

fn stops(podman: &Podman<'_>, args: &[&str], code: &str) -> Outcome {
    podman.run(&[&["--detach", "--name", "c"], args].concat())?.success()?;
    wait_until("it is ready", || podman.logs().contains("ready"))?;
    let start = Instant::now();
    podman.podman(&["stop", "--time", "30", "c"])?.success()?;
    ensure(start.elapsed() < Duration::from_secs(20), "SIGTERM did not end it")?;
    let inspected = podman
        .podman(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "c"])?
        .success()?;
    ensure_eq(inspected.stdout.trim(), code)?;
    podman.podman(&["rm", "c"])?.success().map(drop)
}

fn starts_stops_and_removes_a_linux_container(test: &Test) -> Outcome {
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    stops(&Podman::new(test, false)?, &["image", "/bin/sh", "-c", script], "exited 3")
}

fn starts_stops_and_removes_a_wasm_container(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    stops(&podman, &[&WASM[..], &["image", "/probe.wasm", "sleep"]].concat(), "exited 143")
}

fn limits_memory(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let file = match test.host.lane.as_str() {
        "v2" => "/sys/fs/cgroup/memory.max",
        _ => "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    };
    podman
        .run(&["--rm", "--memory", "64m", "image", "/bin/cat", file])?
        .success()?
        .stdout("67108864\n")
        .map(drop)
}

fn keeps_the_root_read_only(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let script = "touch /new 2>/dev/null || echo refused; echo x > /tmp/new && cat /tmp/new";
    podman
        .run(&["--rm", "--read-only", "image", "/bin/sh", "-c", script])?
        .success()?
        .stdout("refused\nx\n")
        .map(drop)
}

/// `packaging/callers/podman/rt.conf`, with the paths of an installation.
fn installed(test: &Test) -> Outcome<PathBuf> {
    let prefix = test.folder.join("prefix");
    fs::create_dir_all(prefix.join("bin"))?;
    // `rt` looks for the engines beside its program.
    fs::create_dir_all(prefix.join("libexec"))?;
    copy_program(&test.host.runtime, prefix.join("bin/rt"))?;
    for link in ["bin/rt-wasm", "bin/rt-spin"] {
        std::os::unix::fs::symlink("rt", prefix.join(link))?;
    }
    let engines = test.host.runtime.ancestors().nth(2).ok_or("no prefix")?.join("libexec/rt");
    std::os::unix::fs::symlink(engines, prefix.join("libexec/rt"))?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers/podman/rt.conf");
    let text = fs::read_to_string(file)?.replace("@PREFIX@", &prefix.display().to_string());
    let conf = test.folder.join("containers.conf");
    fs::write(&conf, text)?;
    Ok(conf)
}

fn finds_the_runtime_by_the_configuration_that_comes_with_it(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    let conf = installed(test)?;
    for (runtime, arguments) in [
        ("rt", &["--annotation", "run.oci.handler=wasm"][..]),
        // This name needs no annotation.
        ("rt-wasm", &[]),
    ] {
        let mut command =
            podman.command(&["--runtime", runtime, "run", "--rm", "--network", "none"]);
        command
            .args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"])
            .args(arguments);
        command.args(["image", "/hello.wasm"]);
        command.env("CONTAINERS_CONF", &conf);
        let output = Output::of(command)?.success()?;
        ensure(!output.stdout.is_empty(), output.stderr)?;
    }
    Ok(())
}

fn runs_a_spin_app_by_its_name_alone(test: &Test) -> Outcome {
    if !has_compiler_of(test, WASMTIME) {
        return skip("the engine's compiler is not installed here");
    }
    let podman = Podman::new(test, true)?;
    let conf = installed(test)?;
    let mut command = podman.command(&["--runtime", "rt-spin", "run", "--detach", "--name", "c"]);
    command.args(["--network", "none", "--sysctl", "net.ipv4.ip_unprivileged_port_start=0"]);
    command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]);
    command.args(["image", "/spin.toml"]).env("CONTAINERS_CONF", &conf);
    Output::of(command)?.success()?;
    let pid = podman.inspect("{{.State.Pid}}", "c")?;
    let mut wget = Command::new("nsenter");
    wget.arg(format!("--net=/proc/{pid}/ns/net"));
    wget.args(["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:80/"]);
    // The server listens before `podman run` returns.
    let said = Output::of(wget)?;
    // Without its configuration, podman does not know the runtime of the container.
    let mut remove = podman.command(&["rm", "--force", "--time", "20", "c"]);
    remove.env("CONTAINERS_CONF", &conf);
    Output::of(remove)?.success()?;
    ensure_eq(said.stdout.trim(), "Hello from Spin!")
}

fn mounts_volumes(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "the host's\n")?;
    let volume = |rest: &str| format!("{}:{rest}", folder.display());
    let script =
        "cat /fixed/file; echo x > /own/new; echo y > /fixed/other 2>/dev/null || echo fixed";
    podman
        .run(&[
            "--rm",
            "-v",
            &volume("/own"),
            "-v",
            &volume("/fixed:ro"),
            "image",
            "/bin/sh",
            "-c",
            script,
        ])?
        .success()?
        .stdout("the host's\nfixed\n")?;
    ensure_eq(fs::read_to_string(folder.join("new"))?.as_str(), "x\n")?;
    // With these mapped ids, root's file belongs to user 1000.
    let mapped = volume("/mapped:idmap=uids=0-1000-1;gids=0-1000-1");
    let seen = podman.run(&[
        "--rm",
        "-v",
        &mapped,
        "image",
        "/bin/sh",
        "-c",
        "stat -c %u /mapped/file",
    ])?;
    seen.success()?.stdout("1000\n").map(drop)
}

/// The ids of the container's user namespace become the host's ids in the volume.
fn maps_the_ids_of_a_volume(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let _module = Podman::new_in(test, "wasm", true)?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "")?;
    chown(folder.join("file"), Some(5), Some(6))?;
    let range = ["--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "-v"];
    let run = |options: &str, rest: &[&str]| {
        let volume = format!("{}:/shared{options}", folder.display());
        podman.run(&[&range[..], &[volume.as_str()], rest].concat())
    };
    let look = ["image", "/bin/sh", "-c", "stat -c '%u %g' /shared/file"];
    run("", &look)?.success()?.stdout("65534 65534\n")?;
    run(":idmap", &look)?.success()?.stdout("5 6\n")?;
    run(":idmap", &["image", "/bin/touch", "/shared/native"])?.success()?;
    let write = ["wasm", "/probe.wasm", "write", "/shared/module", "text"];
    run(":idmap", &[&WASM[..], &write].concat())?.success()?;
    for name in ["native", "module"] {
        ensure_eq(fs::metadata(folder.join(name))?.uid(), 0)?;
    }
    Ok(())
}

/// Without an annotation: podman's table of runtimes for platforms decides.
fn runs_an_image_of_the_platform_wasi(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    let version = podman.podman(&["--version"])?.success()?.stdout;
    let version = version.trim().trim_start_matches("podman version ");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    if (numbers.next(), numbers.next()) < (Some(4), Some(4)) {
        return skip(format!("podman {version} has no `platform_to_oci_runtime`, 4.4 brought it"));
    }
    let conf = installed(test)?;
    let archive = test.folder.join("image.tar").display().to_string();
    podman.podman(&["import", "--os", "wasi", "--arch", "wasm", &archive, "wasi"])?.success()?;
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "--platform",
        "wasi/wasm",
        "--ulimit",
        "nofile=1024:1024",
    ];
    let rest = ["--ulimit", "nproc=1000:1000", "wasi", "/hello.wasm"];
    let mut command = podman.bare_command(&[&run[..], &rest].concat());
    command.env("CONTAINERS_CONF", conf);
    Output::of(command)?.success()?.stdout("Hello from Wasm!\n").map(drop)
}

/// The changes of the container stay in the container.
fn lays_a_volume_below_changes(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "the host's\n")?;
    let volume = format!("{}:/layer:O", folder.display());
    let script = "cat /layer/file; echo mine > /layer/file; cat /layer/file";
    podman
        .run(&["--rm", "-v", &volume, "image", "/bin/sh", "-c", script])?
        .success()?
        .stdout("the host's\nmine\n")?;
    ensure_eq(fs::read_to_string(folder.join("file"))?.as_str(), "the host's\n")
}

/// A program and a module in containers, which podman's network in a separate namespace reaches.
fn publishes_a_port(test: &Test) -> Outcome {
    for program in ["/usr/sbin/iptables", "/usr/lib/podman/netavark"] {
        if !Path::new(program).exists() {
            return skip(format!("no `{program}`"));
        }
    }
    let mut podman = Podman::new(test, false)?;
    podman.have_network()?;
    let wasm = test.image_archive("wasm", true)?;
    podman.podman(&["import", &wasm, "wasm"])?.success()?;
    let publish = |name: &str, port: &str, rest: &[&str]| {
        let args = ["run", "--detach", "--name", name, "--network", "podman", "--publish", port];
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        podman.podman(&[&args[..], &limits[..], rest].concat())?.success()
    };
    let serve = "echo native >/tmp/index.html; exec busybox httpd -f -p 80 -h /tmp";
    publish("c", "8081:80", &["image", "/bin/sh", "-c", serve])?;
    publish("w", "8082:8080", &[&WASM[..], &["wasm", "/http-server.wasm"]].concat())?;
    for (port, answer) in [(8081, "native\n"), (8082, "Hello from Wasm!")] {
        let mut last = String::new();
        let answers = wait_until("the port answers", || {
            let process = podman.network.as_ref().expect("it was made above");
            let mut wget = podman.in_network(process, "busybox");
            // The address of the bridge.
            wget.args(["wget", "-q", "-O", "-", &format!("http://10.88.0.1:{port}/")]);
            last = Output::of(wget).map(|output| output.stdout).unwrap_or_default();
            last == answer
        });
        ensure(answers.is_ok(), format!("{port} answers {last:?}"))?;
    }
    Ok(())
}

fn obeys_the_flags_of_security(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let script = "id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status | tr -d '\\t'";
    let flags = ["--rm", "--user", "7", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
    podman
        .run(&[&flags[..], &["image", "/bin/sh", "-c", script]].concat())?
        .success()?
        .stdout("7\nCapEff:0000000000000000\nNoNewPrivs:1\n")
        .map(drop)
}

fn says_that_a_container_was_killed(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman.run(&["--detach", "--name", "c", "image", "/bin/sleep", "60"])?.success()?;
    podman.podman(&["kill", "c"])?.success()?;
    podman.podman(&["wait", "c"])?.success()?.stdout("137\n")?;
    podman.podman(&["rm", "c"])?.success().map(drop)
}

fn shows_what_a_container_does(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman
        .run(&["--detach", "--name", "c", "image", "/bin/sh", "-c", "echo said; exec sleep 60"])?
        .success()?;
    let top = podman.podman(&["top", "c", "args"])?.success()?.stdout;
    ensure(top.contains("sleep 60"), top)?;
    let stats = ["stats", "--no-stream", "--no-reset", "--format", "{{.PIDs}}", "c"];
    podman.podman(&stats)?.success()?.stdout("1\n")?;
    podman.podman(&["logs", "c"])?.success()?.stdout("said\n").map(drop)
}

fn asks_after_its_health(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let health = ["--health-cmd", "test -e /tmp", "--health-interval", "disable"];
    podman
        .run(&[&["--detach", "--name", "c"], &health[..], &["image", "/bin/sleep", "60"]].concat())?
        .success()?;
    podman.podman(&["healthcheck", "run", "c"])?.success().map(drop)
}

/// The health check is a module or a native program. `exec` runs it in the module's container.
fn asks_after_the_health_of_a_module(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    let busybox = format!("{}:/busybox:ro", test.host.folder.join("busybox").display());
    for (command, code, health) in [
        ("CMD /hello.wasm", 0, "healthy"),
        ("CMD /probe.wasm exit 3", 1, "unhealthy"),
        ("CMD /busybox test -e /hello.wasm", 0, "healthy"),
        ("CMD /busybox false", 1, "unhealthy"),
    ] {
        let flags = ["--detach", "--name", "c", "-v", &busybox, "--health-cmd", command];
        let once = ["--health-interval", "disable", "--health-retries", "1"];
        let program = ["image", "/probe.wasm", "sleep"];
        podman.run(&[&flags[..], &once, &WASM, &program].concat())?.success()?;
        podman.podman(&["healthcheck", "run", "c"])?.code(code)?;
        ensure_eq(podman.inspect("{{.State.Health.Status}}", "c")?.as_str(), health)?;
        podman.remove()?;
    }
    Ok(())
}

/// An infra container holds the namespaces of the pod as long as the pod lives.
fn shares_namespaces_in_a_pod(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        let mut all = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
        if let Some(folder) = all.find(|path| !path.join("cgroup.procs").exists()) {
            return skip(format!("podman takes `{}` for a hierarchy", folder.display()));
        }
    }
    let images = Podman::new(test, false)?;
    let _module = Podman::new_in(test, "wasm", true)?;
    let conf = test.folder.join("containers.conf");
    // The flag `--ulimit` does not work for an infra container.
    let limits = "default_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]";
    fs::write(&conf, format!("[containers]\n{limits}\n"))?;
    let podman = |args: &[&str]| {
        let mut command = images.command(args);
        Output::of({
            command.env("CONTAINERS_CONF", &conf);
            command
        })
    };
    let infra =
        ["--infra-image", "image", "--infra-command", "/bin/sleep 600", "--infra-name", "i"];
    let shared = ["--share", "pid,ipc,uts,net", "--network", "none", "--hostname", "of-the-pod"];
    // With v2, podman 4.3 forbids all devices in a pod's own cgroup, with any runtime.
    let cgroup: &[&str] = if test.host.lane == "v2" { &["--share-parent=false"] } else { &[] };
    let create = ["pod", "create", "--name", "pod"];
    podman(&[&create[..], &infra, &shared, cgroup].concat())?.success()?;
    let in_pod = ["run", "--detach", "--pod", "pod", "--name"];
    podman(&[&in_pod[..], &["c", "image", "/bin/sleep", "600"]].concat())?.success()?;
    podman(&[&in_pod[..], &["w"], &WASM, &["wasm", "/http-server.wasm"]].concat())?.success()?;
    let namespace = |of: &str, kind: &str| -> Outcome<String> {
        let pid = images.inspect("{{.State.Pid}}", of)?;
        Ok(fs::read_link(format!("/proc/{pid}/ns/{kind}"))?.display().to_string())
    };
    for container in ["c", "w"] {
        for kind in ["pid", "ipc", "uts", "net"] {
            ensure_eq(namespace(container, kind)?, namespace("i", kind)?)?;
        }
        ensure(namespace(container, "mnt")? != namespace("i", "mnt")?, "one mount namespace")?;
    }
    podman(&["exec", "c", "/bin/hostname"])?.success()?.stdout("of-the-pod\n")?;
    let processes = podman(&["exec", "c", "/bin/ps"])?.success()?.stdout;
    ensure(processes.contains("1 root     /bin/sleep 600"), &processes)?;
    ensure(processes.contains("/http-server.wasm"), processes)?;
    // Through the loopback device that they share.
    let ask = ["exec", "c", "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"];
    wait_until("the module answers", || {
        podman(&ask).is_ok_and(|answer| answer.stdout == "Hello from Wasm!")
    })?;
    podman(&["pod", "pause", "pod"])?.success()?;
    ensure_eq(images.inspect("{{.State.Status}}", "w")?.as_str(), "paused")?;
    podman(&["pod", "unpause", "pod"])?.success()?;
    // The end of one container does not end the others, and the others do not hide it.
    podman(&["kill", "--signal", "TERM", "w"])?.success()?;
    podman(&["wait", "w"])?.success()?.stdout("143\n")?;
    podman(&["exec", "c", "/bin/true"])?.success()?;
    podman(&["start", "w"])?.success()?;
    podman(&["pod", "stop", "--time", "1", "pod"])?.success()?;
    for name in ["c", "w", "i"] {
        ensure_eq(images.inspect("{{.State.Status}}", name)?.as_str(), "exited")?;
    }
    podman(&["pod", "start", "pod"])?.success()?;
    podman(&["exec", "c", "/bin/hostname"])?.success()?.stdout("of-the-pod\n")?;
    podman(&["pod", "rm", "--force", "--time", "1", "pod"])?.success().map(drop)
}

fn has_a_module_beside_a_program_in_a_pod(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let module = Podman::new_in(test, "wasm", true)?;
    podman.podman(&["pod", "create", "--infra=false", "--name", "pod"])?.success()?;
    podman
        .run(&["--detach", "--pod", "pod", "--name", "c", "image", "/bin/sleep", "60"])?
        .success()?;
    module
        .run(
            &[
                &["--detach", "--pod", "pod", "--name", "w"],
                &WASM[..],
                &["wasm", "/probe.wasm", "sleep"],
            ]
            .concat(),
        )?
        .success()?;
    for name in ["c", "w"] {
        let show = ["inspect", "--format", "{{.State.Status}} {{len .Pod}}", name];
        podman.podman(&show)?.success()?.stdout("running 64\n")?;
    }
    podman.podman(&["pod", "rm", "--force", "--time", "5", "pod"])?.success().map(drop)
}

fn restarts_what_failed(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman
        .run(&[
            "--detach",
            "--name",
            "c",
            "--restart",
            "on-failure:2",
            "image",
            "/bin/sh",
            "-c",
            "echo try; exit 4",
        ])?
        .success()?;
    wait_until("it was tried three times", || podman.logs().lines().count() == 3)?;
    podman.is("exited 4")?;
    podman.remove()?;
    // podman does not restart a container that has not failed.
    let flags = ["--detach", "--name", "c", "--restart", "on-failure:2"];
    podman.run(&[&flags[..], &["image", "/bin/true"]].concat())?.success()?;
    podman.is("exited 0")?;
    ensure_eq(podman.inspect("{{.RestartCount}}", "c")?.as_str(), "0")
}

fn restarts_a_module_that_failed(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    let flags = ["--detach", "--name", "c", "--restart", "on-failure:2"];
    let program = ["image", "/probe.wasm", "exit", "5"];
    podman.run(&[&flags[..], &WASM, &program].concat())?.success()?;
    wait_until("it was tried three times", || {
        podman.inspect("{{.RestartCount}}", "c").is_ok_and(|count| count == "2")
    })?;
    podman.is("exited 5")
}

/// podman restarts the container even if it has not failed. A container that its user has stopped
/// stays stopped.
fn restarts_until_it_is_stopped(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    // The third run waits.
    let script =
        "echo try | busybox tee -a /tries; test $(busybox wc -l </tries) = 3 && exec sleep 60";
    for (policy, code) in [("always", "0"), ("always", "4"), ("unless-stopped", "0")] {
        let script = format!("{script}; exit {code}");
        let flags = ["--detach", "--name", "c", "--restart", policy];
        podman.run(&[&flags[..], &["image", "/bin/sh", "-c", &script]].concat())?.success()?;
        wait_until("it was tried three times", || podman.logs().lines().count() == 3)?;
        podman.is("running 0")?;
        podman.podman(&["stop", "--time", "0", "c"])?.success()?;
        podman.is("exited 137")?;
        std::thread::sleep(Duration::from_millis(300));
        podman.is("exited 137")?;
        podman.remove()?;
    }
    Ok(())
}

fn limits_processes(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let file = match test.host.lane.as_str() {
        "v2" => "/sys/fs/cgroup/pids.max",
        _ => "/sys/fs/cgroup/pids/pids.max",
    };
    podman
        .run(&["--rm", "--pids-limit", "44", "image", "/bin/cat", file])?
        .success()?
        .stdout("44\n")
        .map(drop)
}

fn limits_processors(test: &Test) -> Outcome {
    needs(test, "cpu")?;
    let podman = Podman::new(test, false)?;
    let file = match test.host.lane.as_str() {
        "v2" => "/sys/fs/cgroup/cpu.max",
        _ => "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    };
    let limit =
        podman.run(&["--rm", "--cpus", "0.5", "image", "/bin/cat", file])?.success()?.stdout;
    ensure(limit.starts_with("50000"), limit)
}

/// With CRIU, if CRIU works on this host.
fn moves_a_container(test: &Test) -> Outcome {
    super::checkpoint::needs_criu()?;
    let podman = Podman::new(test, false)?;
    let count = "read now idle </proc/uptime; echo began $now; i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done";
    podman.run(&["--detach", "--name", "c", "image", "/bin/sh", "-c", count])?.success()?;
    wait_until("it counts", || podman.logs().contains("3\n"))?;
    let archive = test.folder.join("checkpoint.tar.gz").display().to_string();
    podman.podman(&["container", "checkpoint", "--export", &archive, "c"])?.success()?;
    let before = podman.logs();
    podman.podman(&["rm", "c"])?.success()?;
    podman.podman(&["container", "restore", "--import", &archive, "--name", "d"])?.success()?;
    let logs = || podman.podman(&["logs", "d"]).map(|output| output.stdout);
    let next = format!("{}\n", before.lines().count() + 2);
    wait_until("it goes on", || logs().is_ok_and(|logs| logs.contains(&next)))?;
    // The log of the checkpoint may contain the lines that the container printed before.
    let logs = logs()?;
    let mut began = logs.lines().filter(|line| line.starts_with("began"));
    ensure(began.all(|line| before.contains(line)), logs)
}
