//! The container of a compiler, which is necessary because a module is hostile input for a
//! compiler. The container has:
//!
//! - an unprivileged user, no capabilities and no network
//! - a read-only root, with the engine and an empty working directory
//! - few system calls, and limits of memory and time
//! - a cgroup of its own and, in the background, the lowest priority
//!
//! A background compiler gives way to one for which a process waits.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde_json::json;

use super::slot::Slot;
use crate::bundle::{self, Bundle};
use crate::container::{self, Container, Options, Wait};
use crate::engine::{self, CompilerSettings, Installed};
use crate::linux::cgroups::{self, Cgroup, Manager};
use crate::syscall;

/// Without systemd, the cgroup above the compilers' cgroups. Its weight is what counts beside all
/// other cgroups.
const CGROUP: &str = "rt-compiler";

/// The engine's directory, in the compiler's container.
const ENGINE: &str = "/engine";

/// The compiler's working directory.
const WORK: &str = "/work";

/// The system calls that the C library, LLVM and its linker use. Other calls fail with ENOSYS. Init
/// uses `recvmsg`, `sendmsg`, `chdir` and `capset` while it waits for its start.
const SYSCALLS: &str = "\
    access arch_prctl brk capset chdir clock_getres clock_gettime clock_nanosleep clone clone3 close close_range copy_file_range \
    dup dup2 dup3 execve exit exit_group faccessat faccessat2 fadvise64 fallocate fchmod fcntl fstat fstatfs ftruncate \
    futex getcwd getdents64 getegid geteuid getgid getpid getrandom gettid getuid ioctl lseek lstat madvise membarrier \
    mmap mprotect mremap munmap nanosleep newfstatat open openat poll ppoll prctl pread64 prlimit64 pwrite64 read \
    readlink readlinkat readv recvmsg rename renameat renameat2 restart_syscall riscv_hwprobe rseq rt_sigaction rt_sigprocmask \
    rt_sigreturn sched_getaffinity sched_yield sendfile sendmsg set_robust_list set_tid_address sigaltstack stat statx tgkill \
    uname unlink unlinkat write writev";

/// Moves a background worker out of the caller's cgroup and out of the caller's session. The cgroup
/// may be a pod's, which somebody must be able to remove. Returns true in the process that goes
/// back to the caller.
pub(super) fn leave_caller(manager: Manager) -> Result<bool> {
    // A systemd scope belongs to one process, so the name contains the worker's pid.
    let id = format!("worker-{}", std::process::id());
    // Not below the compiler's cgroup: its priority is too low for a worker that has to end the
    // compiler.
    let path = (manager == Manager::Cgroupfs).then(|| Path::new("/rt-compiler-worker"));
    let own = Cgroup::plan(manager, path, &id);
    // The worker also works without a cgroup of its own.
    let mut own = own.inspect_err(|error| tracing::debug!("stay in the cgroup: {error:#}")).ok();
    let birthplace = own.as_mut().and_then(|own| own.make_for_birth("").ok()).flatten();
    if syscall::clone3(0, birthplace.as_ref().map(AsFd::as_fd))
        .context("go on in the background")?
        .is_some()
    {
        return Ok(true);
    }
    rustix::process::setsid().context("start a session")?;
    let pid = rustix::process::getpid();
    if let Some(own) = &mut own
        && let Err(error) = enter(own, pid)
    {
        tracing::debug!("stay in the cgroup: {error:#}");
    }
    Ok(false)
}

fn enter(own: &mut Cgroup, pid: Pid) -> Result<()> {
    for tasks in own.prepare(pid, None)? {
        cgroups::enter(&tasks).context("enter the cgroup")?;
    }
    Ok(())
}

/// A path beside the containers' cgroups. systemd makes a scope from a name, as it does for
/// containers.
fn cgroup_path(manager: Manager, name: &str) -> Option<PathBuf> {
    (manager == Manager::Cgroupfs).then(|| Path::new("/").join(CGROUP).join(name))
}

/// Sets whether a compiler gets only the processor time that no other process on the host wants.
/// `SCHED_IDLE` applies only among the processes of one cgroup. Between cgroups, weights count
/// (kernel documentation, `cgroup-v2.rst`, "CPU"; `sched-design-CFS.rst`).
pub(super) fn set_idle(cgroup: &Cgroup, idle: bool) {
    let above = |path: &Path| {
        let above = path.parent().filter(|above| above.file_name().is_some_and(|it| it == CGROUP));
        above.map(Path::to_owned)
    };
    let directories =
        cgroup.paths.iter().flat_map(|path| above(path).into_iter().chain([path.clone()]));
    for directory in directories {
        // `cpu.idle` came with Linux 5.15. The others are the weights of v1 and v2, each with its
        // lowest and its usual value.
        let files =
            [("cpu.idle", "1", "0"), ("cpu.shares", "2", "1024"), ("cpu.weight", "1", "100")];
        let mut there = files.iter().filter(|(name, ..)| directory.join(name).exists());
        if let Some((name, least, usual)) = there.next()
            && let Err(error) = fs::write(directory.join(name), if idle { least } else { usual })
        {
            tracing::debug!("set the priority of `{}`: {error}", directory.display());
        }
    }
}

/// The configuration of a compiler's container.
pub(super) fn bundle(
    slot: &Slot,
    engine: &Installed,
    settings: &CompilerSettings,
    manager: Manager,
    counting: bool,
    is_idle: bool,
) -> Result<Bundle> {
    let mut config = config(&slot.rootfs, engine, settings, manager);
    if let Some(argv) = config["process"]["args"].as_array_mut().filter(|_| counting) {
        argv.push(json!("--counting"));
    }
    if is_idle {
        config["process"]["scheduler"] = json!({ "policy": "SCHED_IDLE" });
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    }
    let config = serde_json::to_vec(&config).context("write its configuration")?;
    let spec = bundle::parse(&config).context("check its configuration")?;
    // Canonical for the same reason as every bundle's rootfs: the kernel uses this name.
    let rootfs = fs::canonicalize(&slot.rootfs).context("find the root")?;
    Ok(Bundle { path: rootfs.clone(), rootfs, config, spec })
}

pub(super) fn create(slot: &Slot, bundle: &Bundle, manager: Manager) -> Result<Container> {
    let id = format!("compiler-{}", std::process::id());
    container::create(
        &slot.root,
        Options {
            id: &id,
            bundle,
            manager,
            wait: Wait::ForRuntime { blocked: &[] },
            asked: None,
            engines: None,
            pid_file: None,
            console: None,
            pidfd_socket: None,
            no_pivot: false,
            new_keyring: true,
            listen_fds: 0,
            first_own: 3,
        },
    )
    .context("make a container for the compiler")
}

fn config(
    rootfs: &Path,
    engine: &Installed,
    settings: &CompilerSettings,
    manager: Manager,
) -> serde_json::Value {
    let Installed { path: engine, description, .. } = engine;
    let inside = |path: &Path| Path::new(ENGINE).join(path).display().to_string();
    let compiler = description.compiler.as_ref();
    let libraries = compiler.and_then(|compiler| compiler.libraries.as_ref());
    let libraries = libraries.into_iter().chain(&description.libraries);
    let libraries = libraries.map(|path| inside(path)).collect::<Vec<_>>().join(":");
    let program = compiler.and_then(|compiler| compiler.program.as_ref());
    let program = inside(program.unwrap_or(&description.program));
    let mut args = match &description.loader {
        Some(loader) => {
            vec![
                inside(loader),
                "--inhibit-cache".into(),
                "--library-path".into(),
                libraries,
                program,
            ]
        }
        None => vec![program],
    };
    args.extend([format!("--contract={}", engine::CONTRACT), "--compile".to_owned()]);
    let user = settings.user;
    let owner = format!("uid={user},gid={user},mode=0700");
    let bind = ["bind", "ro", "nosuid", "nodev", "exec"];
    let mut config = bundle::template();
    config["hostname"] = json!("compiler");
    config["root"] = json!({ "path": rootfs, "readonly": true });
    config["process"] = json!({
        "user": { "uid": user, "gid": user },
        "args": args,
        "cwd": WORK,
        "noNewPrivileges": true,
        "oomScoreAdj": 1000,
        "rlimits": [
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            { "type": "RLIMIT_CPU", "soft": settings.seconds, "hard": settings.seconds.saturating_add(5) },
            { "type": "RLIMIT_FSIZE", "soft": settings.memory_bytes, "hard": settings.memory_bytes },
            { "type": "RLIMIT_DATA", "soft": settings.memory_bytes, "hard": settings.memory_bytes },
            { "type": "RLIMIT_NOFILE", "soft": 256, "hard": 256 },
        ],
    });
    let size = format!("size={}", settings.memory_bytes);
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] == "/proc" || mount["destination"] == "/dev");
        mounts.push(json!({
            "destination": ENGINE, "type": "bind", "source": engine, "options": bind,
        }));
        let mut options = vec!["nosuid", "nodev", "noexec", size.as_str()];
        options.extend(owner.split(','));
        mounts.push(json!({
            "destination": WORK, "type": "tmpfs", "source": "tmpfs", "options": options,
        }));
    }
    let names: Vec<&str> = SYSCALLS.split_ascii_whitespace().collect();
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
    });
    // If the host lacks a controller, the rlimits of the compiler's user have to suffice.
    let controllers = cgroups::controllers();
    let has = |name: &str| controllers.iter().any(|controller| controller == name);
    if manager != Manager::Disabled && has("memory") {
        config["linux"]["resources"]["memory"] = json!({ "limit": settings.memory_bytes });
    }
    if manager != Manager::Disabled && has("pids") {
        config["linux"]["resources"]["pids"] = json!({ "limit": 64 });
    }
    if let Some(path) = cgroup_path(manager, &std::process::id().to_string()) {
        config["linux"]["cgroupsPath"] = json!(path);
    }
    config
}
