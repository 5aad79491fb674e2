//! podman, with the runtime in place of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::needs;
use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip, wait_until};

super::tests! { "podman":
    runs_a_linux_container, runs_a_wasm_container, tells_a_missing_program_from_one_that_may_not_run,
    starts_stops_and_removes_a_linux_container, starts_stops_and_removes_a_wasm_container, limits_memory, execs_in_a_container, pauses_a_container, pauses_a_module, knows_no_limit_of_processes, gives_a_user_a_tmpfs, execs_as_another_user, keeps_the_root_read_only,
    mounts_volumes, obeys_the_flags_of_security, says_that_a_container_was_killed, shows_what_a_container_does, asks_after_its_health, has_a_module_beside_a_program_in_a_pod,
    restarts_what_failed, limits_processes, limits_processors, moves_a_container, lays_a_volume_below_changes, publishes_a_port,
    finds_the_runtime_by_the_configuration_that_comes_with_it,
}

struct Podman<'a> {
    test: &'a Test,
    /// A process in the network namespace that podman's networks are in, if it has any.
    network: Option<Child>,
}

impl Podman<'_> {
    /// With storage of its own and an image made of a folder.
    fn new<'a>(test: &'a Test, wasm: bool) -> Outcome<Podman<'a>> {
        Podman::new_in(test, "image", wasm)
    }

    /// With an image of another name.
    fn new_in<'a>(test: &'a Test, image: &str, wasm: bool) -> Outcome<Podman<'a>> {
        if Command::new("podman").arg("--version").output().is_err() {
            return skip("podman is not installed");
        }
        // It sets limits that nobody asked for.
        needs(test, "memory")?;
        needs(test, "pids")?;
        let archive = test.image_archive(image, wasm)?;
        let podman = Podman { test, network: None };
        // Of two that are the first on a host, one fails to make the locks in shared memory.
        static ONE_BY_ONE: Mutex<()> = Mutex::new(());
        let _turn = ONE_BY_ONE.lock();
        podman.podman(&["import", &archive, image])?.success()?;
        Ok(podman)
    }

    fn command(&self, args: &[&str]) -> Command {
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
        command.arg("--runtime").arg(&self.test.host.runtime).args(args);
        command
    }

    fn podman(&self, args: &[&str]) -> Outcome<Output> {
        Output::of(self.command(args))
    }

    fn in_network(&self, process: &Child, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", process.id())).arg(program);
        command
    }

    /// `podman run` with these arguments; the limits are what a machine without CAP_SYS_RESOURCE allows.
    fn run(&self, args: &[&str]) -> Outcome<Output> {
        let common = [
            "run",
            "--network",
            "none",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1000:1000",
        ];
        self.podman(&[&common, args].concat())
    }

    fn logs(&self) -> String {
        self.podman(&["logs", "c"]).map(|output| output.stdout).unwrap_or_default()
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Whatever is left fails the test where that is checked.
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

/// podman writes 0 for both.
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

/// `packaging/callers/podman/rt.conf`, as it is installed.
fn finds_the_runtime_by_the_configuration_that_comes_with_it(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    let prefix = test.folder.join("prefix");
    fs::create_dir_all(prefix.join("bin"))?;
    // The engines are looked for beside the program.
    fs::create_dir_all(prefix.join("libexec"))?;
    fs::copy(&test.host.runtime, prefix.join("bin/rt"))?;
    std::os::unix::fs::symlink("rt", prefix.join("bin/rt-wasm"))?;
    let engines = test.host.runtime.ancestors().nth(2).ok_or("no prefix")?.join("libexec/rt");
    std::os::unix::fs::symlink(engines, prefix.join("libexec/rt"))?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers/podman/rt.conf");
    let text = fs::read_to_string(file)?.replace("@PREFIX@", &prefix.display().to_string());
    fs::write(test.folder.join("containers.conf"), text)?;
    for (runtime, arguments) in [
        ("rt", &["--annotation", "run.oci.handler=wasm"][..]),
        // Without an annotation.
        ("rt-wasm", &[]),
    ] {
        let mut command =
            podman.command(&["--runtime", runtime, "run", "--rm", "--network", "none"]);
        command
            .args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"])
            .args(arguments);
        command.args(["image", "/hello.wasm"]);
        command.env("CONTAINERS_CONF", test.folder.join("containers.conf"));
        let output = Output::of(command)?.success()?;
        ensure(!output.stdout.is_empty(), output.stderr)?;
    }
    Ok(())
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
    // With ids mapped, root's files are another's: shown as nobody's where the range has no such id.
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

/// What the container changes stays its own.
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

/// To a program and to a module, from a network of podman's in a namespace of its own.
fn publishes_a_port(test: &Test) -> Outcome {
    for program in ["/usr/sbin/iptables", "/usr/lib/podman/netavark"] {
        if !Path::new(program).exists() {
            return skip(format!("no `{program}`"));
        }
    }
    let mut podman = Podman::new(test, false)?;
    let mut holder = Command::new("unshare");
    holder.args(["--net", "sh", "-c", "ip link set lo up; exec sleep 600"]);
    holder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    podman.network = Some(holder.spawn()?);
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
            // The bridge's own address.
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
    podman.podman(&["healthcheck", "run", "c"])?.success()?;
    // What a probe of a module's container does; podman 4.3 takes only a shell's line for a health check.
    let module = Podman::new_in(test, "wasm", true)?;
    module
        .run(
            &[&["--detach", "--name", "w"], &WASM[..], &["wasm", "/probe.wasm", "sleep"]].concat(),
        )?
        .success()?;
    let probe = module.podman(&["exec", "w", "/hello.wasm"])?;
    probe.success()?.stdout("Hello from Wasm!\n").map(drop)
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
    wait_until("it was tried three times", || podman.logs().lines().count() == 3)
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

/// With CRIU, where it runs.
fn moves_a_container(test: &Test) -> Outcome {
    super::checkpoint::needs_criu()?;
    let podman = Podman::new(test, false)?;
    let count = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done";
    podman.run(&["--detach", "--name", "c", "image", "/bin/sh", "-c", count])?.success()?;
    wait_until("it counts", || podman.logs().contains("3\n"))?;
    let archive = test.folder.join("checkpoint.tar.gz").display().to_string();
    podman.podman(&["container", "checkpoint", "--export", &archive, "c"])?.success()?;
    let before = podman.logs().lines().count();
    podman.podman(&["rm", "c"])?.success()?;
    podman.podman(&["container", "restore", "--import", &archive, "--name", "d"])?.success()?;
    let logs = || podman.podman(&["logs", "d"]).map(|output| output.stdout);
    wait_until("it goes on", || {
        logs().is_ok_and(|logs| logs.contains(&format!("{}\n", before + 2)))
    })?;
    ensure(!logs()?.contains("\n1\n"), "it began anew")
}
