//! What the tests are written with: a host that has a runtime, a test with its own folder, bundles
//! and containers.

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

/// Why a test did not pass.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It cannot run here.
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

/// Whether a process's executable is on a read-only mount. Writing to it cannot tell: that is
/// refused as busy as long as any container runs the same file.
pub(crate) fn executable_is_read_only(container: &Container<'_>) -> Outcome<bool> {
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
    let exe =
        rustix::fs::open(format!("/proc/{}/exe", container.pid()?), OFlags::PATH, Mode::empty())?;
    Ok(rustix::fs::fstatvfs(exe)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether any process of a container has a file open on a mount that whoever is root of a user
/// namespace of their own could make writable, by `mount_setattr(2)`: one that is attached nowhere
/// and alive. The host's root asks, who has no other rights over those.
pub(crate) fn has_a_changeable_mount(container: &Container<'_>) -> Outcome<bool> {
    // Perl is on every Debian; 442 is mount_setattr on every architecture, 0x200000 O_PATH, 0x1000
    // AT_EMPTY_PATH.
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

/// Waits until something holds, for ten seconds at the most.
pub(crate) fn wait_until(what: &str, holds: impl FnMut() -> bool) -> Outcome {
    wait_up_to(Duration::from_secs(10), what, holds)
}

pub(crate) fn wait_up_to(most: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + most;
    while !holds() {
        ensure(Instant::now() < end, format!("waited {most:?} in vain until {what}"))?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The machine, and the runtime that is tested.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) runtime: PathBuf,
    /// Whether it is `rt`: some tests are of what only that does.
    pub(crate) is_rt: bool,
    /// `hybrid`, `v1` or `v2`.
    pub(crate) lane: String,
    /// Whether systemd makes the cgroups (`RT_TESTS_MANAGER`), which it does where it is process 1.
    pub(crate) by_systemd: bool,
    /// The folder of this run.
    pub(crate) folder: PathBuf,
    /// Where the compiled guests are.
    guests: PathBuf,
}

/// What the busybox of a rootfs answers to.
const APPLETS: [&str; 30] = [
    "sh", "ash", "cat", "chmod", "cp", "cut", "dd", "echo", "env", "false", "grep", "head",
    "hostname", "id", "ip", "kill", "ls", "mkdir", "mknod", "mount", "printf", "ps", "pwd",
    "readlink", "sleep", "stat", "test", "touch", "true", "wc",
];

impl Host {
    pub(crate) fn find() -> Result<Host, String> {
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?.to_owned();
        let runtime = runtime()?;
        let version =
            Command::new(&runtime).arg("--version").output().map_err(|error| error.to_string())?;
        let is_rt = version.stdout.starts_with(b"rt ");
        // Short: podman wants its folders below 50 characters, and a socket's path has 108.
        let folder = std::env::temp_dir().join(format!("rt-tests-{}", std::process::id()));
        let guests = workspace.join("target/guests");
        let lane = std::env::var("RT_TESTS_LANE").unwrap_or_else(|_| "hybrid".into());
        let by_systemd =
            std::env::var("RT_TESTS_MANAGER").is_ok_and(|manager| manager == "systemd");
        let host = Host { runtime, is_rt, lane, by_systemd, folder, guests };
        host.make_rootfs().map_err(|error| format!("make `{}`: {error}", host.folder.display()))?;
        Ok(host)
    }

    /// One tree that all bundles' trees are hard links of.
    fn make_rootfs(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::copy("/bin/busybox", self.folder.join("busybox"))?;
        let compile = std::env::var("RT_TESTS_COMPILE").unwrap_or_else(|_| "off".into());
        let cache = self.folder.join("native");
        let mut settings = json!({ "compile": compile, "cache": { "directory": cache } });
        if compile == "eager" {
            // Many tests compile at a time.
            settings["compiler"] = json!({ "waitSeconds": 300 });
        }
        fs::write(self.folder.join("wasm.json"), settings.to_string())
    }

    /// A Linux rootfs with a busybox in it.
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

    /// The module of a guest; a test that needs one is skipped where they were not built.
    pub(crate) fn guest(&self, name: &str) -> Outcome<PathBuf> {
        let module = self.guests.join(format!("{name}.wasm"));
        if module.exists() {
            Ok(module)
        } else {
            skip("the Wasm guests are not built: run `make guests`")
        }
    }

    pub(crate) fn remove(&self) {
        // A leftover in the temporary folder fails no test; what matters is checked after each one.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The runtime that is tested: that of `make build`, or of `OCI_RUNTIME`.
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

/// One test: its folder, and the root of the runtime's state in it.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) host: &'static Host,
    pub(crate) folder: PathBuf,
    /// A prefix of all container names of this test.
    prefix: String,
    count: AtomicU32,
}

impl Test {
    /// Runs a test, and checks that it has left nothing behind.
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

    /// What the host decides about modules: that none is compiled, unless the test has a file of
    /// its own (`wasm.json` in its folder).
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

    /// A bundle with a Linux rootfs, that runs a shell script.
    pub(crate) fn sh(&self, script: &str) -> Outcome<Bundle<'_>> {
        self.linux(&["/bin/sh", "-c", script])
    }

    pub(crate) fn linux(&self, args: &[&str]) -> Outcome<Bundle<'_>> {
        let bundle = Bundle::new(self, args)?;
        self.host.fill_rootfs(&bundle.rootfs())?;
        Ok(bundle)
    }

    /// A bundle that runs a Perl script, which can make any system call. Perl is the host's.
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

    /// A bundle whose rootfs holds nothing but a Wasm guest, which it runs with these arguments.
    pub(crate) fn wasm(&self, guest: &str, args: &[&str]) -> Outcome<Bundle<'_>> {
        self.only_rt()?;
        let program = format!("/{guest}.wasm");
        let bundle = Bundle::new(self, &[&[program.as_str()], args].concat())?;
        fs::copy(self.host.guest(guest)?, bundle.rootfs().join(format!("{guest}.wasm")))?;
        Ok(bundle.annotation("run.oci.handler", "wasm"))
    }

    /// A bundle that runs a module given as bytes.
    pub(crate) fn module(&self, bytes: &[u8]) -> Outcome<Bundle<'_>> {
        self.only_rt()?;
        let bundle = Bundle::new(self, &["/module.wasm"])?;
        fs::write(bundle.rootfs().join("module.wasm"), bytes)?;
        Ok(bundle.annotation("run.oci.handler", "wasm"))
    }

    /// A folder that an image is made of: with a Linux rootfs, or with nothing but guests.
    pub(crate) fn image(&self, name: &str, wasm: bool) -> Outcome<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        if wasm {
            self.only_rt()?;
            for guest in ["hello", "probe", "http-server"] {
                fs::copy(self.host.guest(guest)?, folder.join(format!("{guest}.wasm")))?;
            }
        } else {
            self.host.fill_rootfs(&folder)?;
            // A file of its own: tar fails when another test makes a link to one that it reads.
            fs::remove_file(folder.join("bin/busybox"))?;
            fs::copy("/bin/busybox", folder.join("bin/busybox"))?;
            fs::write(folder.join("data"), "#!/bin/sh\n")?;
        }
        Ok(folder)
    }

    /// The same as an archive.
    pub(crate) fn image_archive(&self, name: &str, wasm: bool) -> Outcome<String> {
        let archive = self.folder.join(format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.image(name, wasm)?).arg("-cf").arg(&archive).arg(".");
        ensure(tar.status()?.success(), "tar")?;
        Ok(archive.display().to_string())
    }

    /// Deletes what the test made, then looks for what should be gone.
    fn clean(&self) -> Outcome {
        // What belongs to no container that is still there is left over, and must not be tidied up
        // by this.
        let ids: Vec<String> = fs::read_dir(self.state_root())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            // Beside them, a runtime keeps what is of no container, under a name that is none.
            .filter(|id| !id.starts_with(['@', '.']))
            .collect();
        let mut early = Vec::new();
        find_cgroups(Path::new("/sys/fs/cgroup"), &self.prefix, &mut early);
        early.retain(|path| !ids.iter().any(|id| path.to_string_lossy().contains(id.as_str())));
        ensure(early.is_empty(), format!("cgroups are left: {early:?}"))?;
        // A user's own, which root does not take for one of its own.
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
        // podman's conmon takes a moment to clean up after itself.
        // A compiler waits until that of another test is done.
        wait_up_to(Duration::from_secs(60), "no process is left", || !has_process(&folder))?;
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

/// A filesystem in memory that the host sees, for as long as the test needs it.
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
        // Whatever is left fails the test where that is checked.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Major and minor number of the kernel's release.
pub(crate) fn kernel() -> Outcome<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || -> Outcome<u32> { Ok(numbers.next().ok_or("no release")??) };
    Ok((next()?, next()?))
}

/// The runtime, with a filter around it that answers one system call with an error. Calls newer
/// than 424 have one number on all processors.
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

/// The runtime, with a filter around it as systemd makes it for `RestrictAddressFamilies=`: these
/// two families alone.
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

/// By another process: what this one has open for writing, a child that another test starts
/// meanwhile has too, and a program that somebody has open for writing cannot be executed
/// (ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: impl AsRef<Path>) -> Outcome {
    let copied = Command::new("cp").arg(from).arg(to.as_ref()).status()?.success();
    ensure(copied, format!("cp {}", from.display()))
}

/// Runs what its arguments say as an ordinary user, `tester` with the id 1000, for whom the system
/// has these further ids. The first arguments can be env(1)'s. What the user is called is seen by
/// these processes only.
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
                  exec setpriv --reuid 1000 --regid 1000 --clear-groups env \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).current_dir(&test.folder);
    Ok(command)
}

/// The cgroups, in any hierarchy, that have this in their names.
pub(crate) fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    find_cgroups(Path::new("/sys/fs/cgroup"), id, &mut found);
    found
}

fn find_cgroups(folder: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // Where nothing is mounted, a directory is no cgroup, although crun makes some there.
            // `<linux/magic.h>`.
            let is_cgroup = rustix::fs::statfs(entry.path())
                .is_ok_and(|there| matches!(there.f_type, 0x6367_7270 | 0x0027_e0eb));
            if is_cgroup && entry.file_name().to_string_lossy().contains(prefix) {
                found.push(entry.path());
            }
            find_cgroups(&entry.path(), prefix, found);
        }
    }
}

/// Whether a process was started with this text among its arguments.
pub(crate) fn has_process(text: &str) -> bool {
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(text)
    })
}
