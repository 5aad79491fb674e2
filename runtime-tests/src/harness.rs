//! The tools of a test: a host with a runtime, a test with its own directory, bundles and
//! containers.

mod bundle;
mod container;
pub(crate) mod lookups;

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) use bundle::Bundle;
pub(crate) use container::{Container, Output};
use serde_json::json;

/// The reason why a test did not pass.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The test cannot run on this host.
    Skipped(String),
    Failed(String),
}

pub(crate) type Outcome<T = ()> = Result<T, Stop>;

impl<E: Display> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// Fails unless the condition holds.
pub(crate) fn ensure(condition: bool, message: impl Display) -> Outcome {
    if condition { Ok(()) } else { Err(Stop::Failed(message.to_string())) }
}

pub(crate) fn ensure_eq<T: PartialEq + std::fmt::Debug>(left: T, right: T) -> Outcome {
    ensure(left == right, format!("\n     got: {left:?}\nexpected: {right:?}"))
}

pub(crate) fn skip<T>(reason: impl Display) -> Outcome<T> {
    Err(Stop::Skipped(reason.to_string()))
}

/// Whether the container's executable is on a read-only mount. A write would not show that, because
/// the kernel refuses a write (ETXTBSY) while any container runs the same file.
pub(crate) fn executable_is_read_only(container: &Container<'_>) -> Outcome<bool> {
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
    let exe =
        rustix::fs::open(format!("/proc/{}/exe", container.pid()?), OFlags::PATH, Mode::empty())?;
    Ok(rustix::fs::fstatvfs(exe)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether the first process of a container has a detached mount open that the root of a user
/// namespace could make writable (`mount_setattr(2)`). The host's root tries it here, and has no
/// further rights over a detached mount.
pub(crate) fn has_a_changeable_mount(container: &Container<'_>) -> Outcome<bool> {
    // Perl is on every Debian. 442 is mount_setattr on every architecture, 0x200000 is O_PATH, and
    // 0x1000 is AT_EMPTY_PATH.
    const SCRIPT: &str = r#"
        my $found = 0;
        for my $path (glob "/proc/$ARGV[0]/fd/*") {
            sysopen(my $file, $path, 0x200000) or next;
            my $attr = pack "Q4", 0, 1, 0, 0;
            $found++ if syscall(442, fileno($file), my $empty = "", 0x1000, $attr, 32) == 0;
        }
        print $found;"#;
    if !Path::new("/usr/bin/perl").exists() {
        return skip("no perl");
    }
    let mut perl = Command::new("/usr/bin/perl");
    perl.args(["-e", SCRIPT]).arg(container.pid()?.to_string());
    Ok(Output::of(perl)?.success()?.stdout != "0")
}

/// Waits until a condition holds. An emulated machine can need tens of seconds.
pub(crate) fn wait_until(what: &str, holds: impl FnMut() -> bool) -> Outcome {
    wait_up_to(Duration::from_secs(40), what, holds)
}

pub(crate) fn wait_up_to(most: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + most;
    while !holds() {
        ensure(Instant::now() < end, format!("waited {most:?} in vain until {what}"))?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The host, and the tested runtime.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) runtime: PathBuf,
    /// Whether the tested runtime is `rt`. Some tests are for `rt` only.
    pub(crate) is_rt: bool,
    /// `hybrid`, `v1` or `v2`.
    pub(crate) lane: String,
    /// Whether systemd makes the cgroups (`RT_TESTS_MANAGER`). systemd must be process 1 then.
    pub(crate) by_systemd: bool,
    /// The directory of this run.
    pub(crate) folder: PathBuf,
    /// The directory of the compiled guests.
    guests: PathBuf,
    /// The handler that modules ask for: `wasm`, or the name of an engine (`RT_TESTS_ENGINE`).
    pub(crate) handler: String,
}

/// The names under which busybox is in a rootfs.
const APPLETS: [&str; 30] = [
    "sh", "ash", "cat", "chmod", "cp", "cut", "dd", "echo", "env", "false", "grep", "head",
    "hostname", "id", "ip", "kill", "ls", "mkdir", "mknod", "mount", "printf", "ps", "pwd",
    "readlink", "sleep", "stat", "test", "touch", "true", "wc",
];

/// The manifest of a Spin app that answers each request.
const SPIN_APP: &str = r#"
spin_manifest_version = 2
[application]
name = "app"
[[trigger.http]]
route = "/..."
component = "hello"
[component.hello]
source = "spin3.wasm"
"#;

/// The engine for components, and the handler that names it.
pub(crate) const WASMTIME: &str = "wasmtime";

impl Host {
    pub(crate) fn find() -> Result<Host, String> {
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?.to_owned();
        let runtime = runtime()?;
        let version =
            Command::new(&runtime).arg("--version").output().map_err(|error| error.to_string())?;
        let is_rt = version.stdout.starts_with(b"rt ");
        // The name is short: podman wants its directories below 50 characters, and the path of a
        // socket has at most 108.
        let folder = std::env::temp_dir().join(format!("rt-tests-{}", std::process::id()));
        let guests = workspace.join("target/guests");
        let lane = std::env::var("RT_TESTS_LANE").unwrap_or_else(|_| "hybrid".into());
        let by_systemd =
            std::env::var("RT_TESTS_MANAGER").is_ok_and(|manager| manager == "systemd");
        let handler = std::env::var("RT_TESTS_ENGINE").unwrap_or_else(|_| "wasm".into());
        let host = Host { runtime, is_rt, lane, by_systemd, folder, guests, handler };
        host.make_rootfs().map_err(|error| format!("make `{}`: {error}", host.folder.display()))?;
        Ok(host)
    }

    /// Makes the files that all bundles share. The busybox of each rootfs is a hard link to this
    /// one.
    fn make_rootfs(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::copy("/bin/busybox", self.folder.join("busybox"))?;
        // An engine that interprets nothing compiles each module before its first start.
        let usual = if self.handler == WASMTIME { "lazy" } else { "off" };
        let compile = std::env::var("RT_TESTS_COMPILE").unwrap_or_else(|_| usual.into());
        let cache = self.folder.join("native");
        let mut settings = json!({ "compile": compile, "cache": { "directory": cache } });
        if compile == "eager" || self.handler == WASMTIME {
            // Many tests compile at the same time.
            settings["compiler"] = json!({ "waitSeconds": 300 });
        }
        fs::write(self.folder.join("wasm.json"), settings.to_string())
    }

    /// Fills a directory with a Linux rootfs that has busybox in it.
    pub(crate) fn fill_rootfs(&self, rootfs: &Path) -> Outcome {
        for folder in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(folder))?;
        }
        fs::hard_link(self.folder.join("busybox"), rootfs.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )?;
        Ok(())
    }

    /// The module of a guest, or its component, if the tests ask for wasmtime. If the guests are
    /// not built, the test is skipped.
    pub(crate) fn guest(&self, name: &str) -> Outcome<PathBuf> {
        match self.component(name) {
            Ok(component) if self.handler == WASMTIME => Ok(component),
            _ => self.module(name),
        }
    }

    /// The core module of a guest.
    pub(crate) fn module(&self, name: &str) -> Outcome<PathBuf> {
        self.built(&format!("{name}.wasm"))
    }

    /// A guest as a component.
    pub(crate) fn component(&self, name: &str) -> Outcome<PathBuf> {
        self.built(&format!("components/{name}.wasm"))
    }

    fn built(&self, name: &str) -> Outcome<PathBuf> {
        let file = self.guests.join(name);
        if file.exists() {
            Ok(file)
        } else {
            skip("the Wasm guests are not built: run `make guests`")
        }
    }

    pub(crate) fn remove(&self) {
        // A directory that stays in /tmp fails no test. Each test checks its own leftovers.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The tested runtime: the one in `OCI_RUNTIME`, or else the one that `make build` has built.
pub(crate) fn runtime() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let default = workspace.join("target/dist/bin/rt");
    let runtime = std::env::var_os("OCI_RUNTIME").map_or(default, PathBuf::from);
    find_program(&runtime).ok_or_else(|| format!("no runtime `{}`", runtime.display()))
}

fn find_program(path: &Path) -> Option<PathBuf> {
    if path.components().count() > 1 {
        return path.canonicalize().ok();
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(path))
        .find(|candidate| candidate.is_file())
}

/// One test: its directory, with the root of the runtime's state in it.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) host: &'static Host,
    pub(crate) folder: PathBuf,
    /// A prefix of all container names of this test.
    prefix: String,
    count: AtomicU32,
}

impl Test {
    /// Runs a test, and checks that the test has left nothing behind.
    pub(crate) fn run(host: &'static Host, test: fn(&Test) -> Outcome) -> Outcome {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = host.folder.join(number.to_string());
        fs::create_dir_all(&folder)?;
        let prefix = format!("t{}-{number}-", std::process::id());
        let this = Test { host, folder, prefix, count: AtomicU32::new(0) };
        let outcome = test(&this);
        let left = this.clean();
        outcome?;
        left
    }

    /// A name that no other container has.
    pub(crate) fn id(&self) -> String {
        format!("{}{}", self.prefix, self.count.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn only_rt(&self) -> Outcome {
        if self.host.is_rt { Ok(()) } else { skip("a test of what only rt does") }
    }

    pub(crate) fn state_root(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The host's settings for Wasm. The default settings compile no module. A test can have its
    /// own settings, in `wasm.json` in its directory.
    pub(crate) fn wasm_config(&self) -> PathBuf {
        let own = self.folder.join("wasm.json");
        if own.exists() { own } else { self.host.folder.join("wasm.json") }
    }

    /// The runtime with these arguments, after its `--root`.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(&self.host.runtime);
        command.arg("--root").arg(self.state_root());
        if self.host.by_systemd {
            command.arg("--systemd-cgroup");
        }
        if self.host.is_rt {
            command.arg("--wasm-config").arg(self.wasm_config());
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn rt<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Outcome<Output> {
        Output::of(self.command(args))
    }

    /// A bundle with a Linux rootfs. It runs a shell script.
    pub(crate) fn sh(&self, script: &str) -> Outcome<Bundle<'_>> {
        self.linux(&["/bin/sh", "-c", script])
    }

    pub(crate) fn linux(&self, args: &[&str]) -> Outcome<Bundle<'_>> {
        let bundle = Bundle::new(self, args)?;
        self.host.fill_rootfs(&bundle.rootfs())?;
        Ok(bundle)
    }

    /// A bundle that runs a Perl script, which can make any system call. It mounts the host's Perl.
    pub(crate) fn perl(&self, script: &str) -> Outcome<Bundle<'_>> {
        if !Path::new("/usr/bin/perl").exists() {
            return skip("the host has no perl");
        }
        let bundle = self.linux(&["/usr/bin/perl", "-e", script])?;
        for folder in ["lib", "lib64"] {
            symlink(Path::new("usr").join(folder), bundle.rootfs().join(folder))?;
        }
        Ok(bundle.mount(serde_json::json!({
            "destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"],
        })))
    }

    /// A bundle whose rootfs contains only a Wasm guest. It runs the guest with these arguments.
    pub(crate) fn wasm(&self, guest: &str, args: &[&str]) -> Outcome<Bundle<'_>> {
        self.only_rt()?;
        let program = format!("/{guest}.wasm");
        let bundle = Bundle::new(self, &[&[program.as_str()], args].concat())?;
        fs::copy(self.host.guest(guest)?, bundle.rootfs().join(format!("{guest}.wasm")))?;
        Ok(self.handled(bundle))
    }

    /// A bundle that runs a module given as bytes.
    pub(crate) fn module(&self, bytes: &[u8]) -> Outcome<Bundle<'_>> {
        self.only_rt()?;
        let bundle = Bundle::new(self, &["/module.wasm"])?;
        fs::write(bundle.rootfs().join("module.wasm"), bytes)?;
        Ok(self.handled(bundle))
    }

    /// The bundle, with the handler that modules ask for.
    fn handled<'a>(&self, bundle: Bundle<'a>) -> Bundle<'a> {
        let bundle = bundle.annotation("run.oci.handler", &self.host.handler);
        if self.host.handler != WASMTIME {
            return bundle;
        }
        // Many tests compile at the same time.
        bundle.annotation("run.oci.wasm.compile-timeout", "300")
    }

    /// A directory from which to make an image: with a Linux rootfs, or with guests only.
    pub(crate) fn image(&self, name: &str, wasm: bool) -> Outcome<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        if wasm {
            self.only_rt()?;
            for guest in ["hello", "probe", "http-server"] {
                fs::copy(self.host.guest(guest)?, folder.join(format!("{guest}.wasm")))?;
            }
            if let (Ok(component), Ok(handler), Ok(app)) = (
                self.host.component("article"),
                self.host.component("handler"),
                self.host.module("spin3"),
            ) {
                fs::copy(component, folder.join("article.wasm"))?;
                fs::copy(handler, folder.join("handler.wasm"))?;
                fs::copy(app, folder.join("spin3.wasm"))?;
                fs::write(folder.join("spin.toml"), SPIN_APP)?;
            }
        } else {
            self.host.fill_rootfs(&folder)?;
            // A separate file: tar fails if another test makes a link to a file that tar reads.
            fs::remove_file(folder.join("bin/busybox"))?;
            fs::copy("/bin/busybox", folder.join("bin/busybox"))?;
            fs::write(folder.join("data"), "#!/bin/sh\n")?;
        }
        Ok(folder)
    }

    /// The image of [`Test::image`] as an archive.
    pub(crate) fn image_archive(&self, name: &str, wasm: bool) -> Outcome<String> {
        let archive = self.folder.join(format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.image(name, wasm)?).arg("-cf").arg(&archive).arg(".");
        ensure(tar.status()?.success(), "tar")?;
        Ok(archive.display().to_string())
    }

    /// Deletes the containers of the test, then looks for leftovers.
    fn clean(&self) -> Outcome {
        // A cgroup whose container has no state is a leftover. This must be checked first, because
        // the deletions below could remove such a cgroup.
        let ids: Vec<String> = fs::read_dir(self.state_root())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            // The runtime keeps other files beside the states. Their names are not valid container
            // names.
            .filter(|id| !id.starts_with(['@', '.']))
            .collect();
        let mut early = Vec::new();
        find_cgroups(Path::new("/sys/fs/cgroup"), &self.prefix, &mut early);
        early.retain(|path| !ids.iter().any(|id| path.to_string_lossy().contains(id.as_str())));
        ensure(early.is_empty(), format!("cgroups are left: {early:?}"))?;
        // The state may belong to an ordinary user, and then root's `rt` would not accept it.
        let own = |path: &Path| std::os::unix::fs::lchown(path, Some(0), Some(0));
        for id in &ids {
            own(&self.state_root())?;
            own(&self.state_root().join(id))?;
            self.rt(["delete", "--force", id])?.success()?;
        }
        let folder = self.folder.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure(!mounts.contains(&folder), format!("a mount below {folder} is left"))?;
        let mut left = Vec::new();
        find_cgroups(Path::new("/sys/fs/cgroup"), &self.prefix, &mut left);
        ensure(left.is_empty(), format!("cgroups are left: {left:?}"))?;
        // podman's conmon takes a moment to clean up, and a compiler waits until another test's
        // compiler is done.
        wait_up_to(Duration::from_secs(60), "no process is left", || !has_process(&folder))?;
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

/// A tmpfs that the host sees while the test needs it.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(path: PathBuf) -> Outcome<Tmpfs> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "tmpfs"]).arg(&path);
        Output::of(mount)?.success()?;
        Ok(Tmpfs(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // The test fails later if the mount is left.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Major and minor number of the kernel's version.
pub(crate) fn kernel() -> Outcome<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || -> Outcome<u32> { Ok(numbers.next().ok_or("no release")??) };
    Ok((next()?, next()?))
}

/// The runtime under a seccomp filter that answers one system call with an error. A call with a
/// number above 424 has the same number on all processors.
pub(crate) fn under_a_filter(
    test: &Test,
    call: u32,
    errno: u32,
    args: &[String],
) -> Outcome<Command> {
    if !Path::new("/usr/bin/perl").exists() || !cfg!(target_arch = "x86_64") {
        return skip("it takes perl, and the numbers of x86-64");
    }
    // prctl(PR_SET_NO_NEW_PRIVS), prctl(PR_SET_SECCOMP).
    let script = r#"
        ($call, $errno) = splice(@ARGV, 0, 2);
        $filter = pack("SCCL" x 4, 0x20,0,0,0, 0x15,0,1,$call, 0x06,0,0,0x50000 | $errno, 0x06,0,0,0x7fff0000);
        syscall(157, 38, 1, 0, 0, 0) == 0 or die; syscall(157, 22, 2, pack("S x6 P", 4, $filter)) == 0 or die;
        exec @ARGV"#;
    let mut command = Command::new("/usr/bin/perl");
    command.args(["-e", script, &call.to_string(), &errno.to_string()]);
    let runtime = test.command(args);
    command.arg(runtime.get_program()).args(runtime.get_args()).stdin(Stdio::null());
    Ok(command)
}

/// The runtime under a filter like the one of systemd's `RestrictAddressFamilies=`. It allows only
/// these two address families.
pub(crate) fn under_a_filter_of_families(
    test: &Test,
    allowed: &[u32; 2],
    args: &[String],
) -> Outcome<Command> {
    if !Path::new("/usr/bin/perl").exists() || !cfg!(target_arch = "x86_64") {
        return skip("it takes perl, and the numbers of x86-64");
    }
    // socket(2) is 41, and EAFNOSUPPORT 97.
    let script = r#"
        ($one, $other) = splice(@ARGV, 0, 2);
        $filter = pack("SCCL" x 7, 0x20,0,0,0, 0x15,0,4,41, 0x20,0,0,16, 0x15,2,0,$one, 0x15,1,0,$other,
            0x06,0,0,0x50061, 0x06,0,0,0x7fff0000);
        syscall(157, 38, 1, 0, 0, 0) == 0 or die; syscall(157, 22, 2, pack("S x6 P", 7, $filter)) == 0 or die;
        exec @ARGV"#;
    let mut command = Command::new("/usr/bin/perl");
    command.args(["-e", script, &allowed[0].to_string(), &allowed[1].to_string()]);
    let runtime = test.command(args);
    command.arg(runtime.get_program()).args(runtime.get_args()).stdin(Stdio::null());
    Ok(command)
}

/// Copies a program by another process. If this process wrote the file, a child that another test
/// starts meanwhile would inherit the descriptor. Nobody can execute a program that is open for
/// writing (ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: impl AsRef<Path>) -> Outcome {
    let copied = Command::new("cp").arg(from).arg(to.as_ref()).status()?.success();
    ensure(copied, format!("cp {}", from.display()))
}

/// Runs its arguments as an ordinary user: `tester`, with id 1000 and these subordinate ids. The
/// first arguments can be arguments of env(1). Only these processes see the user's name.
pub(crate) fn ordinary_user(test: &Test, home: &Path, subids: &str) -> Outcome<Command> {
    for file in ["/usr/bin/newuidmap", "/etc/subuid", "/etc/subgid"] {
        if !Path::new(file).exists() {
            return skip(format!("no `{file}`"));
        }
    }
    let passwd = fs::read_to_string("/etc/passwd")?;
    let others = passwd.lines().filter(|line| line.split(':').nth(2) != Some("1000"));
    let passwd: String = others.map(|line| format!("{line}\n")).collect();
    let user = format!("tester:x:1000:1000::{}:/bin/sh\n", home.display());
    fs::write(test.folder.join("passwd"), passwd + &user)?;
    fs::write(test.folder.join("subids"), subids)?;
    let script = "mount --bind passwd /etc/passwd; for f in /etc/subuid /etc/subgid; do mount --bind subids $f; done; \
                  exec setpriv --reuid 1000 --regid 1000 --clear-groups env USER=tester \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).current_dir(&test.folder);
    Ok(command)
}

/// The cgroups with this text in their names, in all hierarchies.
pub(crate) fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    find_cgroups(Path::new("/sys/fs/cgroup"), id, &mut found);
    found
}

fn find_cgroups(folder: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A directory is a cgroup only if a cgroup filesystem is mounted there. crun makes some
            // directories elsewhere. The numbers are from `<linux/magic.h>`.
            let is_cgroup = rustix::fs::statfs(entry.path())
                .is_ok_and(|there| matches!(there.f_type, 0x6367_7270 | 0x0027_e0eb));
            if is_cgroup && entry.file_name().to_string_lossy().contains(prefix) {
                found.push(entry.path());
            }
            find_cgroups(&entry.path(), prefix, found);
        }
    }
}

/// Whether any process has this text among its arguments.
pub(crate) fn has_process(text: &str) -> bool {
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(text)
    })
}
