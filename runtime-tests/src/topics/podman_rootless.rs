//! podman, as an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::harness::{Outcome, Output, Test, ensure, ordinary_user, skip};

super::tests! { "podman_rootless":
    runs_a_linux_container, runs_as_another_user_on_a_volume, starts_execs_and_stops, runs_a_module,
}

const UID: u32 = 1000;

struct Podman<'a> {
    test: &'a Test,
}

impl<'a> Podman<'a> {
    fn new(test: &'a Test, wasm: bool) -> Outcome<Podman<'a>> {
        if !Path::new("/usr/bin/podman").exists() {
            return skip("podman is not installed");
        }
        let home = test.folder.join("home");
        for folder in [&home, &test.folder.join("runtime")] {
            fs::create_dir(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            chown(folder, Some(UID), Some(UID))?;
        }
        let archive = test.image_archive("image", wasm)?;
        let podman = Podman { test };
        podman.podman(&["import", &archive, "image"])?.success()?;
        Ok(podman)
    }

    fn podman(&self, args: &[&str]) -> Outcome<Output> {
        let home = self.test.folder.join("home");
        let mut command = ordinary_user(self.test, &home, "tester:100000:65536\n")?;
        for (name, folder) in [("HOME", "home"), ("XDG_RUNTIME_DIR", "runtime")] {
            command.arg(format!("{name}={}", self.test.folder.join(folder).display()));
        }
        command.args(["podman", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none", "--runtime"]).arg(&self.test.host.runtime);
        command.args(args);
        Output::of(command)
    }

    /// With limits that a machine without CAP_SYS_RESOURCE allows.
    fn run(&self, args: &[&str]) -> Outcome<Output> {
        let common = ["run", "--network", "none", "--ulimit", "nofile=1024:1024"];
        self.podman(&[&common[..], &["--ulimit", "nproc=1000:1000"], args].concat())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Whatever is left fails the test where that is checked.
        let _ = self.podman(&["rm", "--force", "--all", "--time", "0"]);
        // The process that holds its user namespace.
        let pause = self.test.folder.join("runtime/libpod/tmp/pause.pid");
        let pid = fs::read_to_string(pause).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn runs_a_linux_container(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let script = "id -u; wc -l < /proc/self/uid_map; exit 7";
    podman.run(&["--rm", "image", "/bin/sh", "-c", script])?.code(7)?.stdout("0\n2\n").map(drop)
}

fn runs_as_another_user_on_a_volume(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    chown(&folder, Some(UID), Some(UID))?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    let volume = format!("{}:/shared", folder.display());
    podman
        .run(&[
            "--rm",
            "--user",
            "5",
            "-v",
            &volume,
            "image",
            "/bin/sh",
            "-c",
            "id -u; touch /shared/x",
        ])?
        .success()?
        .stdout("5\n")?;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(folder.join("x"))?);
    ensure(owner == 100_004, format!("{owner}"))
}

fn starts_execs_and_stops(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman
        .run(&[
            "--detach",
            "--name",
            "c",
            "image",
            "/bin/sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 0.1; done",
        ])?
        .success()?;
    podman.podman(&["exec", "c", "/bin/sh", "-c", "echo in; exit 6"])?.code(6)?.stdout("in\n")?;
    podman.podman(&["stop", "--time", "10", "c"])?.success()?;
    podman
        .podman(&["inspect", "--format", "{{.State.ExitCode}}", "c"])?
        .success()?
        .stdout("3\n")?;
    podman.podman(&["rm", "c"])?.success().map(drop)
}

fn runs_a_module(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    podman
        .run(&["--rm", "--annotation", "run.oci.handler=wasm", "image", "/hello.wasm"])?
        .success()?
        .stdout("Hello from Wasm!\n")
        .map(drop)
}
