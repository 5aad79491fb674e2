//! containerd, by its own client `ctr`, which names the runtime's binary. In the virtual machine, where systemd runs the daemon.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip, wait_until};

super::tests! { "containerd":
    runs_a_linux_container, runs_a_module, starts_pauses_and_kills_a_task, execs_in_a_task, limits_memory, counts_what_a_task_uses, gives_a_terminal,
    says_what_is_wrong,
}

struct Containerd<'a> {
    test: &'a Test,
    id: String,
    rootfs: String,
}

impl<'a> Containerd<'a> {
    /// With a folder as the root: no image has to be pulled.
    fn new(test: &'a Test, wasm: bool) -> Outcome<Containerd<'a>> {
        test.only_rt()?;
        if !Path::new("/usr/bin/ctr").exists() || !Path::new("/run/systemd/system").exists() {
            return skip("no containerd that systemd could start");
        }
        let started = Command::new("systemctl").args(["start", "containerd.service"]).output()?;
        ensure(started.status.success(), String::from_utf8_lossy(&started.stderr))?;
        let rootfs = test.image("rootfs", wasm)?;
        Ok(Containerd { test, id: test.id(), rootfs: rootfs.display().to_string() })
    }

    fn ctr(&self, args: &[&str]) -> Outcome<Output> {
        let mut command = Command::new("ctr");
        command.args(["--namespace", "tests"]).args(args);
        Output::of(command)
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Outcome<Output> {
        let binary = self.test.host.runtime.display().to_string();
        let mut common = vec!["run", "--runc-binary", &binary, "--rootfs"];
        let group = format!("system.slice:rt:{}", self.id);
        if self.test.host.by_systemd {
            common.extend(["--runc-systemd-cgroup", "--cgroup", &group]);
        }
        self.ctr(&[&common, flags, &[self.rootfs.as_str(), &self.id], program].concat())
    }

    fn tasks(&self, args: &[&str]) -> Outcome<Output> {
        self.ctr(&[&["tasks"], args].concat())
    }

    fn start(&self, program: &[&str]) -> Outcome {
        self.run(&["--detach"], program)?.success().map(drop)
    }

    fn is(&self, status: &str) -> Outcome {
        wait_until(&format!("it is {status}"), || {
            self.tasks(&["list"]).is_ok_and(|list| {
                list.stdout.lines().any(|line| line.starts_with(&self.id) && line.ends_with(status))
            })
        })
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // Whatever is left fails the test where that is checked.
        let _ = self.tasks(&["delete", "--force", &self.id]);
        let _ = self.ctr(&["containers", "delete", &self.id]);
    }
}

fn runs_a_linux_container(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    containerd
        .run(&["--rm"], &["/bin/sh", "-c", "echo hello; exit 7"])?
        .code(7)?
        .stdout("hello\n")
        .map(drop)
}

fn runs_a_module(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, true)?;
    let flags = ["--rm", "--annotation", "run.oci.handler=wasm"];
    containerd.run(&flags, &["/hello.wasm"])?.success()?.stdout("Hello from Wasm!\n")?;
    containerd.run(&flags, &["/probe.wasm", "exit", "42"])?.code(42).map(drop)
}

fn starts_pauses_and_kills_a_task(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    containerd.start(&["/bin/sleep", "100"])?;
    containerd.is("RUNNING")?;
    containerd.tasks(&["pause", &containerd.id])?.success()?;
    containerd.is("PAUSED")?;
    containerd.tasks(&["resume", &containerd.id])?.success()?;
    containerd.is("RUNNING")?;
    containerd.tasks(&["kill", "--signal", "SIGKILL", &containerd.id])?.success()?;
    containerd.is("STOPPED")?;
    let deleted = containerd.tasks(&["delete", &containerd.id])?.success()?;
    ensure(deleted.stderr.contains("exit code 137"), deleted.stderr)
}

fn execs_in_a_task(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    containerd.start(&["/bin/sleep", "100"])?;
    let exec = |program: &[&str]| {
        containerd.tasks(&[&["exec", "--exec-id", "e", &containerd.id], program].concat())
    };
    exec(&["/bin/sh", "-c", "echo in; exit 3"])?.code(3)?.stdout("in\n")?;
    let missing = exec(&["/none"])?;
    ensure(missing.code != Some(0) && missing.stderr.contains("no such file"), missing.stderr)?;
    let listed = containerd.tasks(&["ps", &containerd.id])?.success()?.stdout;
    ensure(listed.lines().count() == 2, listed)
}

fn limits_memory(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    containerd
        .run(&["--detach", "--memory-limit", "67108864"], &["/bin/sleep", "100"])?
        .success()?;
    let list = containerd.tasks(&["list"])?.success()?.stdout;
    let line = list.lines().find(|line| line.starts_with(&containerd.id)).ok_or("no task")?;
    let pid = line.split_whitespace().nth(1).ok_or("no pid")?;
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup")?;
    let limit = fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("memory.max"))?;
    ensure_eq(limit.trim(), "67108864")
}

/// By its own reading of the cgroup that `rt` has made.
fn counts_what_a_task_uses(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    containerd.start(&["/bin/sleep", "100"])?;
    let metrics = containerd.tasks(&["metrics", &containerd.id])?.success()?.stdout;
    let current = metrics.lines().find(|line| line.starts_with("pids.current"));
    ensure(current.is_some_and(|line| line.trim().ends_with('1')), metrics)
}

fn gives_a_terminal(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    // Its client wants one of its own to pass on.
    let binary = test.host.runtime.display().to_string();
    let line = format!(
        "ctr --namespace tests run --tty --rm --runc-binary {binary} --rootfs {} {} /bin/sh -c 'test -t 0 && echo terminal'",
        containerd.rootfs, containerd.id
    );
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let output = Output::of(command)?.success()?;
    ensure(output.stdout.contains("terminal"), output.stdout)
}

/// From the log that the shim reads.
fn says_what_is_wrong(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    let failed = containerd.run(&["--rm"], &["/none"])?;
    ensure(failed.code != Some(0), "it ran")?;
    ensure(failed.stderr.contains("exec: `/none`: no such file or directory"), failed.stderr)
}
