//! podman of an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, ordinary_user, skip, wait_until};

super::tests! { "podman_rootless":
    runs_a_linux_container, runs_as_another_user_on_a_volume, starts_execs_and_stops, runs_a_module, says_why_a_component_does_not_run, execs_on_a_terminal, execs_in_a_module,
    goes_without_limits_where_they_are_roots, limits_and_pauses_what_it_has_a_cgroup_for,
}

const UID: u32 = 1000;

/// Cgroups for callers, below the user's cgroup.
const CALLERS: [&str; 2] = ["session", "later"];

struct Podman<'a> {
    test: &'a Test,
    /// The user's own cgroup, if there is one.
    cgroup: Option<PathBuf>,
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
        let podman = Podman { test, cgroup: None };
        // Of two instances of podman that are the first on a host, one fails to make its locks in
        // shared memory.
        static ONE_BY_ONE: Mutex<()> = Mutex::new(());
        let _turn = ONE_BY_ONE.lock();
        podman.podman(&["import", &archive, "image"])?.success()?;
        Ok(podman)
    }

    /// Makes a cgroup for the user, as systemd does at a login (`Delegate=`). It contains two
    /// cgroups for callers. podman passes on controllers below the first one, which then accepts no
    /// more processes.
    fn delegate(&mut self) -> Outcome {
        let root = Path::new("/sys/fs/cgroup");
        let cgroup = root.join(self.test.id());
        for name in CALLERS {
            fs::create_dir_all(cgroup.join(name))?;
        }
        for parent in [root, &cgroup] {
            fs::write(parent.join("cgroup.subtree_control"), "+memory +pids +cpu")?;
        }
        for folder in ["", CALLERS[0], CALLERS[1]].map(|name| cgroup.join(name)) {
            for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(folder.join(name), Some(UID), Some(UID))?;
            }
        }
        self.cgroup = Some(cgroup);
        Ok(())
    }

    fn podman(&self, args: &[&str]) -> Outcome<Output> {
        let home = self.test.folder.join("home");
        let mut command = ordinary_user(self.test, &home, "tester:100000:65536\n")?;
        if let Some(cgroup) = &self.cgroup {
            let inner = command;
            command = Command::new("sh");
            let names = CALLERS.join(" ");
            let enter =
                format!("for c in {names}; do echo $$ >\"$0/$c/cgroup.procs\" && break; done");
            command.arg("-c").arg(format!("{{ {enter}; }} 2>/dev/null; exec \"$@\"")).arg(cgroup);
            command.arg(inner.get_program()).args(inner.get_args());
            command.current_dir(&self.test.folder);
        }
        for (name, folder) in [("HOME", "home"), ("XDG_RUNTIME_DIR", "runtime")] {
            command.arg(format!("{name}={}", self.test.folder.join(folder).display()));
        }
        command.args(["podman", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none", "--runtime"]).arg(&self.test.host.runtime);
        command.args(args);
        Output::of(command)
    }

    /// Runs podman with limits that a host without CAP_SYS_RESOURCE allows.
    fn run(&self, args: &[&str]) -> Outcome<Output> {
        let common = ["run", "--network", "none", "--ulimit", "nofile=1024:1024"];
        self.podman(&[&common[..], &["--ulimit", "nproc=1000:1000"], args].concat())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // The test fails later if a container is left.
        let _ = self.podman(&["rm", "--force", "--all", "--time", "0"]);
        // This process holds the user namespace of podman.
        let pause = self.test.folder.join("runtime/libpod/tmp/pause.pid");
        let pid = fs::read_to_string(pause).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = wait_until("its processes have ended", || remove_cgroup(cgroup));
        }
    }
}

/// Removes a cgroup with the cgroups that podman has made below it.
fn remove_cgroup(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok()
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

/// The engine for components runs native code only, and the cache of native code is root's.
fn says_why_a_component_does_not_run(test: &Test) -> Outcome {
    test.host.component("article")?;
    let podman = Podman::new(test, true)?;
    for (handler, program) in [("wasm", "/article.wasm"), ("spin", "/spin.toml")] {
        let handler = format!("run.oci.handler={handler}");
        let sysctl = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=0"];
        let args = ["--rm", "--annotation", &handler];
        let said = podman.run(&[&args[..], &sysctl[..], &["image", program]].concat())?;
        let words = format!(
            "the engine `wasmtime` runs native code only, and `{program}` has none, because ordinary users have no cache of it"
        );
        ensure(said.code != Some(0) && said.stderr.contains(&words), said.stderr)?;
    }
    Ok(())
}

fn execs_on_a_terminal(test: &Test) -> Outcome {
    let podman = Podman::new(test, false)?;
    podman.run(&["--detach", "--name", "c", "image", "/bin/sleep", "60"])?.success()?;
    let script = "test -t 0 && test -t 1 && echo terminal; exit 6";
    let said = podman.podman(&["exec", "--tty", "c", "/bin/sh", "-c", script])?.code(6)?;
    ensure_eq(said.stdout.trim(), "terminal")
}

fn execs_in_a_module(test: &Test) -> Outcome {
    let podman = Podman::new(test, true)?;
    let wasm = ["--annotation", "run.oci.handler=wasm", "image", "/probe.wasm", "sleep"];
    podman.run(&[&["--detach", "--name", "c"], &wasm[..]].concat())?.success()?;
    let ready = || podman.podman(&["logs", "c"]).is_ok_and(|logs| logs.stdout.contains("ready"));
    wait_until("it is ready", ready)?;
    let said = podman.podman(&["exec", "c", "/hello.wasm"])?.success()?;
    said.stdout("Hello from Wasm!\n")?;
    podman.podman(&["exec", "--tty", "c", "/probe.wasm", "exit", "3"])?.code(3)?;
    podman.podman(&["stop", "--time", "10", "c"])?.success()?;
    podman.podman(&["wait", "c"])?.success()?.stdout("143\n").map(drop)
}

/// With v1, podman gives no cgroup to a container of an ordinary user.
fn goes_without_limits_where_they_are_roots(test: &Test) -> Outcome {
    if test.host.lane == "v2" {
        return skip("a test of cgroup v1");
    }
    let podman = Podman::new(test, false)?;
    let flags = ["--detach", "--name", "c", "--memory", "64m", "--pids-limit", "20"];
    let said = podman.run(&[&flags[..], &["image", "/bin/sleep", "60"]].concat())?.success()?;
    ensure(said.stderr.contains("Resource limits are not supported and ignored"), said.stderr)?;
    let said = podman.podman(&["pause", "c"])?.code(125)?;
    ensure(said.stderr.contains("rootless containers with cgroup V1"), said.stderr)?;
    podman.podman(&["exec", "c", "/bin/true"])?.success().map(drop)
}

fn limits_and_pauses_what_it_has_a_cgroup_for(test: &Test) -> Outcome {
    // If v1 has controllers, podman uses its hierarchies, mounted or not.
    if fs::read_to_string("/proc/self/cgroup")?.lines().count() != 1 {
        return skip("only with cgroup v2 alone may an ordinary user have cgroups");
    }
    let mut podman = Podman::new(test, false)?;
    podman.delegate()?;
    let flags = ["--detach", "--name", "c", "--cgroups", "split", "--memory", "64m"];
    let limits = ["--pids-limit", "20", "--cpus", "0.5", "image", "/bin/sleep", "60"];
    podman.run(&[&flags[..], &limits].concat())?.success()?;
    let look = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max";
    let seen = podman.podman(&["exec", "c", "/bin/sh", "-c", look])?.success()?;
    seen.stdout("67108864\n20\n50000 100000\n")?;
    podman.podman(&["pause", "c"])?.success()?;
    let state = ["inspect", "--format", "{{.State.Status}}", "c"];
    podman.podman(&state)?.success()?.stdout("paused\n")?;
    podman.podman(&["unpause", "c"])?.success()?;
    podman.podman(&["exec", "c", "/bin/true"])?.success().map(drop)
}
