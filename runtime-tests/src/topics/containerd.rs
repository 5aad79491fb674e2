//! containerd, with its client `ctr`. The test passes the runtime's executable to `ctr`. In the
//! machine, systemd runs the daemon. Elsewhere the test runs its own daemon.

use std::path::Path;
use std::process::Command;

use super::needs;
use crate::harness::{Outcome, Output, Test, cgroups_of, ensure, ensure_eq, skip, wait_until};
use crate::kubelet::{Daemon, kill_shim};

super::tests! { "containerd":
    runs_a_linux_container, runs_a_module, starts_pauses_and_kills_a_task, execs_in_a_task, limits_memory, counts_what_a_task_uses, gives_a_terminal,
    says_what_is_wrong, pauses_a_module, cleans_up_after_a_shim_that_was_killed,
}

struct Containerd<'a> {
    test: &'a Test,
    id: String,
    rootfs: String,
    /// None if systemd runs the daemon.
    daemon: Option<Daemon>,
}

impl<'a> Containerd<'a> {
    /// A client whose containers use a directory as their root, so that no image is necessary.
    fn new(test: &'a Test, wasm: bool) -> Outcome<Containerd<'a>> {
        test.only_rt()?;
        // containerd sets CPU shares for each container.
        needs(test, "cpu")?;
        if !Path::new("/usr/bin/ctr").exists() {
            return skip("no `/usr/bin/ctr`");
        }
        let daemon = if Path::new("/run/systemd/system").exists() {
            let started =
                Command::new("systemctl").args(["start", "containerd.service"]).output()?;
            ensure(started.status.success(), String::from_utf8_lossy(&started.stderr))?;
            None
        } else {
            Some(Daemon::new(test)?)
        };
        let rootfs = test.image("rootfs", wasm)?.display().to_string();
        let containerd = Containerd { test, id: test.id(), rootfs, daemon };
        let answers = wait_until("containerd answers", || {
            containerd.tasks(&["list"]).is_ok_and(|list| list.code == Some(0))
        });
        let log = containerd.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        ensure(answers.is_ok(), format!("containerd does not answer: {log}"))?;
        Ok(containerd)
    }

    fn ctr(&self, args: &[&str]) -> Outcome<Output> {
        if let Some(daemon) = &self.daemon {
            return daemon.ctr("tests", args);
        }
        let mut command = Command::new("ctr");
        command.args(["--namespace", "tests"]).args(args);
        Output::of(command)
    }

    /// The flags by which `ctr run` calls the tested runtime.
    fn flags(&self) -> Vec<String> {
        let mut flags =
            vec!["--runc-binary".to_owned(), self.test.host.runtime.display().to_string()];
        flags.extend(["--runc-root".into(), self.test.state_root().display().to_string()]);
        let group = if self.test.host.by_systemd {
            flags.push("--runc-systemd-cgroup".into());
            format!("system.slice:rt:{}", self.id)
        } else {
            format!("/{}", self.id)
        };
        flags.extend(["--cgroup".into(), group]);
        // A killed shim leaves its fifos behind.
        flags.extend(["--fifo-dir".into(), self.test.folder.join("fifo").display().to_string()]);
        flags
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Outcome<Output> {
        let common = self.flags();
        let common: Vec<&str> =
            ["run", "--rootfs"].into_iter().chain(common.iter().map(String::as_str)).collect();
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
        // The test fails later if a container is left.
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
    needs(test, "memory")?;
    let containerd = Containerd::new(test, false)?;
    containerd
        .run(&["--detach", "--memory-limit", "67108864"], &["/bin/sleep", "100"])?
        .success()?;
    ensure_eq(super::cri::memory_limit(&containerd.id)?, 64 << 20)
}

/// containerd itself reads the cgroup that `rt` has made.
fn counts_what_a_task_uses(test: &Test) -> Outcome {
    needs(test, "pids")?;
    let containerd = Containerd::new(test, false)?;
    containerd.start(&["/bin/sleep", "100"])?;
    let metrics = containerd.tasks(&["metrics", &containerd.id])?.success()?.stdout;
    let current = metrics.lines().find(|line| line.starts_with("pids.current"));
    ensure(current.is_some_and(|line| line.trim().ends_with('1')), metrics)
}

fn gives_a_terminal(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    // `ctr` must have a terminal itself.
    let address = containerd.daemon.as_ref().map(|daemon| daemon.socket().display().to_string());
    let address = address.map_or_else(String::new, |address| format!("--address {address}"));
    let line = format!(
        "ctr {address} --namespace tests run --tty --rm {} --rootfs {} {} /bin/sh -c 'test -t 0 && echo terminal'",
        containerd.flags().join(" "),
        containerd.rootfs,
        containerd.id
    );
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let output = Output::of(command)?.success()?;
    ensure(output.stdout.contains("terminal"), output.stdout)
}

/// The shim reads the error in the log.
fn says_what_is_wrong(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, false)?;
    let failed = containerd.run(&["--rm"], &["/none"])?;
    ensure(failed.code != Some(0), "it ran")?;
    ensure(failed.stderr.contains("exec: `/none`: no such file or directory"), failed.stderr)
}

fn pauses_a_module(test: &Test) -> Outcome {
    let containerd = Containerd::new(test, true)?;
    let flags = ["--detach", "--annotation", "run.oci.handler=wasm"];
    containerd.run(&flags, &["/probe.wasm", "sleep"])?.success()?;
    containerd.is("RUNNING")?;
    containerd.tasks(&["pause", &containerd.id])?.success()?;
    containerd.is("PAUSED")?;
    containerd.tasks(&["resume", &containerd.id])?.success()?;
    containerd.is("RUNNING")?;
    // The module still waits. If the pause had cut its wait short, the module would have ended.
    std::thread::sleep(std::time::Duration::from_millis(200));
    containerd.is("RUNNING")?;
    let exec = ["exec", "--exec-id", "e", &containerd.id, "/probe.wasm", "exit", "3"];
    containerd.tasks(&exec)?.code(3)?;
    containerd.tasks(&["kill", "--signal", "SIGTERM", &containerd.id])?.success()?;
    containerd.is("STOPPED")?;
    let deleted = containerd.tasks(&["delete", &containerd.id])?.success()?;
    ensure(deleted.stderr.contains("exit code 143"), deleted.stderr)
}

/// containerd starts another shim, which calls `delete --force` without the flag
/// `--systemd-cgroup`.
fn cleans_up_after_a_shim_that_was_killed(test: &Test) -> Outcome {
    let mut containerd = Containerd::new(test, false)?;
    let wasm = test.image("wasm", true)?.display().to_string();
    let program = ["/bin/sh", "-c", "sleep 100 & exec sleep 100"];
    let module = ["/probe.wasm", "sleep"];
    for (flags, program) in [
        (&["--detach"][..], &program[..]),
        (&["--detach", "--annotation", "run.oci.handler=wasm"], &module),
    ] {
        containerd.run(flags, program)?.success()?;
        containerd.is("RUNNING")?;
        ensure(!cgroups_of(&containerd.id).is_empty(), "no cgroup")?;
        let state = test.state_root().join("tests").join(&containerd.id);
        ensure(state.exists(), "no state")?;
        kill_shim(&containerd.id)?;
        wait_until("its state is gone", || !state.exists())?;
        ensure_eq(cgroups_of(&containerd.id), Vec::new())?;
        wait_until("its task is gone", || {
            containerd.tasks(&["list"]).is_ok_and(|list| !list.stdout.contains(&containerd.id))
        })?;
        containerd.ctr(&["containers", "delete", &containerd.id])?.success()?;
        // The id is free again.
        containerd.run(flags, program)?.success()?;
        containerd.is("RUNNING")?;
        containerd.tasks(&["delete", "--force", &containerd.id])?.success()?;
        containerd.ctr(&["containers", "delete", &containerd.id])?.success()?;
        containerd.rootfs.clone_from(&wasm);
    }
    Ok(())
}
