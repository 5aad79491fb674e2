//! Docker, with the configuration that comes with `rt`. Only in the machine, where systemd runs
//! Docker's daemon.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::wasm_cache::has_compiler_of;
use crate::harness::{Outcome, Output, Test, Tmpfs, WASMTIME, ensure, ensure_eq, skip, wait_until};

super::tests! { "docker":
    runs_a_linux_container, runs_a_module_without_an_annotation, runs_a_spin_app_without_an_annotation, tells_a_missing_program_from_one_that_may_not_run, stops_a_container, stops_a_module,
    execs_in_a_container, keeps_logs, limits_what_a_container_uses, shows_what_a_container_uses, pauses_a_container, pauses_a_module, changes_limits, obeys_the_flags_of_security,
    mounts_volumes, mounts_volumes_read_only_below_too, restarts_what_failed, asks_after_its_health, knows_the_runtime,
}

struct Docker<'a> {
    test: &'a Test,
    image: String,
}

/// Writes `daemon.json` with the paths of the tested runtime, and starts the daemon, once for all
/// tests.
fn daemon(test: &Test) -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || -> Outcome {
        let prefix = test.host.runtime.ancestors().nth(2).ok_or("no prefix")?;
        for link in ["bin/rt-wasm", "bin/rt-spin"].map(|name| prefix.join(name)) {
            if !link.exists() {
                std::os::unix::fs::symlink("rt", link)?;
            }
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers/docker/daemon.json");
        let text = fs::read_to_string(file)?.replace("@PREFIX@", &prefix.display().to_string());
        fs::create_dir_all("/etc/docker")?;
        fs::write("/etc/docker/daemon.json", text)?;
        let started = Command::new("systemctl").args(["start", "docker.service"]).output()?;
        ensure(started.status.success(), String::from_utf8_lossy(&started.stderr))
    };
    STARTED.get_or_init(|| start().map_err(|error| format!("{error:?}"))).clone()
}

impl<'a> Docker<'a> {
    /// A client, and an image made of a directory.
    fn new(test: &'a Test, wasm: bool) -> Outcome<Docker<'a>> {
        test.only_rt()?;
        if !Path::new("/usr/sbin/dockerd").exists() || !Path::new("/run/systemd/system").exists() {
            return skip("no Docker that systemd could start");
        }
        if !test.host.by_systemd {
            return skip("Docker has its cgroups made by systemd here");
        }
        daemon(test)?;
        let archive = test.image_archive("image", wasm)?;
        let docker = Docker { test, image: test.id() };
        docker.docker(&["import", &archive, &docker.image])?.success()?;
        Ok(docker)
    }

    fn docker(&self, args: &[&str]) -> Outcome<Output> {
        let mut command = Command::new("docker");
        command.args(args);
        Output::of(command)
    }

    fn run_by(&self, runtime: &str, flags: &[&str], program: &[&str]) -> Outcome<Output> {
        let name = self.name();
        let common = ["run", "--runtime", runtime, "--network", "none", "--name", &name];
        self.docker(&[&common, flags, &[&self.image], program].concat())
    }

    /// `docker run` with these flags.
    fn run(&self, flags: &[&str], program: &[&str]) -> Outcome<Output> {
        self.run_by("rt", flags, program)
    }

    fn name(&self) -> String {
        format!("c-{}", self.image)
    }

    fn inspect(&self, format: &str) -> Outcome<String> {
        let output = self.docker(&["inspect", "--format", format, &self.name()])?.success()?;
        Ok(output.stdout.trim().to_owned())
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // The test fails later if a container is left.
        let _ = self.docker(&["rm", "--force", &self.name()]);
        let _ = self.docker(&["rmi", "--force", &self.image]);
        let _ = self.test;
    }
}

fn runs_a_linux_container(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker
        .run(&["--rm"], &["/bin/sh", "-c", "echo hello; exit 7"])?
        .code(7)?
        .stdout("hello\n")
        .map(drop)
}

fn runs_a_module_without_an_annotation(test: &Test) -> Outcome {
    let docker = Docker::new(test, true)?;
    docker
        .run_by("rt-wasm", &["--rm"], &["/hello.wasm"])?
        .success()?
        .stdout("Hello from Wasm!\n")?;
    docker.run_by("rt-wasm", &["--rm"], &["/probe.wasm", "exit", "9"])?.code(9).map(drop)
}

fn runs_a_spin_app_without_an_annotation(test: &Test) -> Outcome {
    if !has_compiler_of(test, WASMTIME) {
        return skip("the engine's compiler is not installed here");
    }
    let docker = Docker::new(test, true)?;
    docker.run_by("rt-spin", &["--detach"], &["/spin.toml"])?.success()?;
    let pid = docker.inspect("{{.State.Pid}}")?;
    let mut last = String::new();
    let answers = wait_until("it answers", || {
        let mut wget = Command::new("nsenter");
        wget.arg(format!("--net=/proc/{pid}/ns/net"));
        wget.args(["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:80/"]);
        last = Output::of(wget).map(|output| output.stdout).unwrap_or_default();
        last.trim() == "Hello from Spin!"
    });
    ensure(answers.is_ok(), format!("it answers {last:?}"))?;
    docker.docker(&["stop", "--time", "60", &docker.name()])?.success()?;
    ensure_eq(docker.inspect("{{.State.ExitCode}}")?.as_str(), "0")
}

fn tells_a_missing_program_from_one_that_may_not_run(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    for (program, code) in [("/none", 127), ("none", 127), ("/data", 126), ("/bin", 126)] {
        docker.run(&["--rm"], &[program])?.code(code)?;
    }
    Ok(())
}

fn stops(docker: &Docker<'_>, runtime: &str, program: &[&str], code: &str) -> Outcome {
    docker.run_by(runtime, &["--detach"], program)?.success()?;
    let logs = || docker.docker(&["logs", &docker.name()]).map(|output| output.stdout);
    wait_until("it is ready", || logs().is_ok_and(|logs| logs.contains("ready")))?;
    let start = Instant::now();
    docker.docker(&["stop", "--time", "60", &docker.name()])?.success()?;
    ensure(start.elapsed() < Duration::from_secs(40), "SIGTERM did not end it")?;
    ensure_eq(docker.inspect("{{.State.Status}} {{.State.ExitCode}}")?.as_str(), code)
}

fn stops_a_container(test: &Test) -> Outcome {
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    stops(&Docker::new(test, false)?, "rt", &["/bin/sh", "-c", script], "exited 3")
}

fn stops_a_module(test: &Test) -> Outcome {
    stops(&Docker::new(test, true)?, "rt-wasm", &["/probe.wasm", "sleep"], "exited 143")
}

fn execs_in_a_container(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker.run(&["--detach"], &["/bin/sleep", "100"])?.success()?;
    let name = docker.name();
    docker.docker(&["exec", &name, "/bin/sh", "-c", "echo in; exit 5"])?.code(5)?.stdout("in\n")?;
    let flags = ["exec", "--user", "5:6", "--workdir", "/tmp", "--env", "A=b", &name];
    let look = ["/bin/sh", "-c", "id -u; pwd; echo $A"];
    docker.docker(&[&flags[..], &look].concat())?.success()?.stdout("5\n/tmp\nb\n")?;
    // Docker before version 28 returns 126, because it does not recognize the error.
    let missing = docker.docker(&["exec", &name, "/none"])?.code;
    ensure(matches!(missing, Some(126 | 127)), format!("{missing:?}"))?;
    let top = docker.docker(&["top", &name])?.success()?.stdout;
    ensure(top.contains("/bin/sleep 100"), top)
}

fn keeps_logs(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker.run(&["--tty"], &["/bin/sh", "-c", "test -t 1 && echo terminal"])?.success()?;
    docker.docker(&["logs", &docker.name()])?.success()?.stdout("terminal\r\n").map(drop)
}

fn limits_what_a_container_uses(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    let script = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max";
    let flags = ["--rm", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5"];
    docker
        .run(&flags, &["/bin/sh", "-c", script])?
        .success()?
        .stdout("67108864\n50\n50000 100000\n")
        .map(drop)
}

fn shows_what_a_container_uses(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker.run(&["--detach"], &["/bin/sleep", "100"])?.success()?;
    let stats = ["stats", "--no-stream", "--format", "{{.PIDs}}", &docker.name()];
    docker.docker(&stats)?.success()?.stdout("1\n").map(drop)
}

fn pauses_a_container(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker.run(&["--detach"], &["/bin/sleep", "100"])?.success()?;
    docker.docker(&["pause", &docker.name()])?.success()?;
    ensure_eq(docker.inspect("{{.State.Status}}")?.as_str(), "paused")?;
    docker.docker(&["unpause", &docker.name()])?.success()?;
    docker.docker(&["exec", &docker.name(), "/bin/true"])?.success().map(drop)
}

fn pauses_a_module(test: &Test) -> Outcome {
    let docker = Docker::new(test, true)?;
    docker.run_by("rt-wasm", &["--detach"], &["/probe.wasm", "sleep"])?.success()?;
    docker.docker(&["pause", &docker.name()])?.success()?;
    docker.docker(&["unpause", &docker.name()])?.success()?;
    std::thread::sleep(Duration::from_millis(200));
    ensure_eq(docker.inspect("{{.State.Status}}")?.as_str(), "running")
}

fn changes_limits(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker.run(&["--detach", "--memory", "64m"], &["/bin/sleep", "100"])?.success()?;
    docker
        .docker(&["update", "--memory", "32m", "--memory-swap", "32m", &docker.name()])?
        .success()?;
    let look = ["exec", &docker.name(), "/bin/cat", "/sys/fs/cgroup/memory.max"];
    docker.docker(&look)?.success()?.stdout("33554432\n").map(drop)
}

fn obeys_the_flags_of_security(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    let script = "touch /new 2>/dev/null || echo refused; echo x > /tmp/y && cat /tmp/y; id -u; \
                  grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'";
    // A tmpfs gets the mode of the directory that it covers.
    let tmpfs = "/tmp:mode=1777";
    let flags = ["--rm", "--read-only", "--tmpfs", tmpfs, "--user", "7", "--cap-drop", "ALL"];
    docker
        .run(
            &[&flags[..], &["--security-opt", "no-new-privileges"]].concat(),
            &["/bin/sh", "-c", script],
        )?
        .success()?
        .stdout("refused\nx\n7\nCapEff:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n")
        .map(drop)
}

fn mounts_volumes(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "the host's\n")?;
    let (own, fixed) =
        (format!("{}:/own", folder.display()), format!("{}:/fixed:ro", folder.display()));
    let script =
        "cat /fixed/file; echo x > /own/new; echo y > /fixed/other 2>/dev/null || echo fixed";
    docker
        .run(&["--rm", "-v", &own, "-v", &fixed], &["/bin/sh", "-c", script])?
        .success()?
        .stdout("the host's\nfixed\n")?;
    ensure_eq(fs::read_to_string(folder.join("new"))?.as_str(), "x\n")
}

/// Docker 25 and later does this for each `ro` volume, if the runtime's `features` lists the option
/// `rro`.
fn mounts_volumes_read_only_below_too(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    let version = docker.docker(&["version", "--format", "{{.Server.Version}}"])?.success()?.stdout;
    if version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok())
        .is_none_or(|major| major < 25)
    {
        return skip("this Docker knows no recursive read-only volumes");
    }
    let folder = test.folder.join("shared");
    fs::create_dir_all(folder.join("below"))?;
    let _below = Tmpfs::mount(folder.join("below"))?;
    let script =
        "for f in /v/new /v/below/new; do touch $f 2>/dev/null && echo made || echo refused; done";
    let mount =
        |rest: &str| format!("type=bind,source={},target=/v,readonly{rest}", folder.display());
    for (mount, expected) in [
        (mount(""), "refused\nrefused\n"),
        (mount(",bind-recursive=readonly,bind-propagation=rprivate"), "refused\nrefused\n"),
        (mount(",bind-recursive=writable"), "refused\nmade\n"),
    ] {
        let output = docker.run(&["--rm", "--mount", &mount], &["/bin/sh", "-c", script])?;
        output.success()?.stdout(expected)?;
    }
    Ok(())
}

fn restarts_what_failed(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    docker
        .run(&["--detach", "--restart", "on-failure:2"], &["/bin/sh", "-c", "echo try; exit 4"])?
        .success()?;
    let tries =
        || docker.docker(&["logs", &docker.name()]).map(|output| output.stdout.lines().count());
    wait_until("it was tried three times", || tries().is_ok_and(|tries| tries == 3))?;
    wait_until("it has ended", || {
        docker.inspect("{{.State.Status}}").is_ok_and(|status| status == "exited")
    })?;
    ensure_eq(docker.inspect("{{.State.ExitCode}}")?.as_str(), "4")
}

fn asks_after_its_health(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    let flags = ["--detach", "--health-cmd", "test -e /tmp", "--health-interval", "1s"];
    docker.run(&flags, &["/bin/sleep", "100"])?.success()?;
    wait_until("it is healthy", || {
        docker.inspect("{{.State.Health.Status}}").is_ok_and(|status| status == "healthy")
    })
}

fn knows_the_runtime(test: &Test) -> Outcome {
    let docker = Docker::new(test, false)?;
    let info = docker.docker(&["info", "--format", "{{json .Runtimes}}"])?.success()?.stdout;
    ensure(info.contains("\"rt\"") && info.contains("\"rt-wasm\""), info)
}
