//! Where modules are compiled: in a container, since a module is hostile input for a compiler. It
//! has an unprivileged user, no capabilities, no network, a read-only root that holds the engine
//! and an empty folder of its own, few system calls, limits of memory and time, a cgroup of its own
//! and, in the background, the lowest priority: then it gives way to one that somebody waits for.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use serde_json::json;

use crate::bundle::{self, Bundle};
use crate::cli::WasmWorker;
use crate::container::{self, Container, Options, Wait};
use crate::engine::{self, CompilerSettings, Description, cache};
use crate::linux::cgroups::{self, Cgroup, Manager};
use crate::state::Root;
use crate::syscall::{self, Lock};

/// Above the compilers' cgroups, where there is no systemd to make them: what counts beside those
/// of all others.
const CGROUP: &str = "rt-compiler";

/// Where the engine is, for the compiler.
const ENGINE: &str = "/engine";

/// Its working directory.
const WORK: &str = "/work";

/// What the C library, LLVM and its linker ask of the kernel; others do not exist for them
/// (ENOSYS). `recvmsg`, `sendmsg`, `chdir` and `capset` are init's, which waits for its start.
const SYSCALLS: &str = "\
    access arch_prctl brk capset chdir clock_getres clock_gettime clock_nanosleep clone clone3 close close_range copy_file_range \
    dup dup2 dup3 execve exit exit_group faccessat faccessat2 fadvise64 fallocate fchmod fcntl fstat fstatfs ftruncate \
    futex getcwd getdents64 getegid geteuid getgid getpid getrandom gettid getuid ioctl lseek lstat madvise membarrier \
    mmap mprotect mremap munmap nanosleep newfstatat open openat poll ppoll prctl pread64 prlimit64 pwrite64 read \
    readlink readlinkat readv recvmsg rename renameat renameat2 restart_syscall riscv_hwprobe rseq rt_sigaction rt_sigprocmask \
    rt_sigreturn sched_getaffinity sched_yield sendfile sendmsg set_robust_list set_tid_address sigaltstack stat statx tgkill \
    uname unlink unlinkat write writev";

/// Moves what is in the background out of the caller's cgroup, which may be a pod's that has to be
/// removed, and out of its session. True in the process that goes back to the caller.
pub(super) fn leave_caller(manager: Manager) -> Result<bool> {
    // A scope of systemd's is one process's.
    let id = format!("worker-{}", std::process::id());
    // Not below the compiler's, whose priority is too low for somebody who has to end it.
    let path = (manager == Manager::Cgroupfs).then(|| Path::new("/rt-compiler-worker"));
    let own = Cgroup::plan(manager, path, &id);
    // Without a cgroup of its own it works as well.
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

/// Beside the containers' cgroups; systemd makes a scope of a name as it makes those of containers.
fn cgroup_path(manager: Manager, name: &str) -> Option<PathBuf> {
    (manager == Manager::Cgroupfs).then(|| Path::new("/").join(CGROUP).join(name))
}

/// Whether a compiler gets only the time that nobody else on this host wants. `SCHED_IDLE` says so
/// to the processes of its own cgroup and no others; beside these, weights count (kernel
/// documentation, `cgroup-v2.rst`, "CPU"; `sched-design-CFS.rst`).
pub(super) fn set_idle(cgroup: &Cgroup, idle: bool) {
    let above = |path: &Path| {
        let above = path.parent().filter(|above| above.file_name().is_some_and(|it| it == CGROUP));
        above.map(Path::to_owned)
    };
    let directories =
        cgroup.paths.iter().flat_map(|path| above(path).into_iter().chain([path.clone()]));
    for directory in directories {
        // The first of them is Linux 5.15's; the others are of v1 and of v2, each with its least
        // and its usual value.
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

/// The state of a compiler's container, apart from the containers of callers: in one place for all
/// of a host, whatever their roots. Two compilers may run at a time, each in a place of its own
/// below that one.
pub(super) struct Place {
    root: Root,
    rootfs: PathBuf,
    path: PathBuf,
}

/// The first place, and what is beside it.
const PLACE: &str = "/run/rt-compiler";

/// The second place. Only compilers that somebody waits for run there.
const SECOND: &str = "@second";

impl Place {
    fn new(name: &str) -> Result<Place> {
        let rootfs = Path::new(PLACE).join("@rootfs");
        let path = Path::new(PLACE).join(name);
        for folder in [&rootfs, &path] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(folder)
                .with_context(|| format!("make `{}`", folder.display()))?;
        }
        Ok(Place { root: Root::new(Some(&path)), rootfs, path })
    }

    /// Takes it, unless another process has it. The lock goes with the descriptor.
    fn take(&self) -> Result<Option<OwnedFd>> {
        let lock = open(&self.path.join("@lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error).context("wait for other compilers"),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("open `{}`", path.display()))
}

/// Who wants to compile a module.
pub(super) struct Applicant<'a> {
    /// The tenants for whom the module is compiled: it is compiled in the turn of any of them.
    pub(super) tenants: &'a dyn Fn() -> Vec<u64>,
    /// Whether somebody waits for it.
    pub(super) is_awaited: &'a dyn Fn() -> bool,
    /// The size of the module.
    pub(super) bytes: u64,
    /// It has had the second place, and given way there.
    pub(super) gave_way: bool,
    /// How long somebody who waits for a compiler waits for others.
    pub(super) wait: Duration,
}

/// The queue of all those on this host who want to compile, as one of them sees it.
///
/// | file | its locks |
/// |---|---|
/// | `@lock` in each place | who has the place |
/// | `@urgent` | shared by all whose compilers somebody waits for, as long as these wait or run |
/// | `@tenants` | the byte of each tenant that has a place: so none has both |
/// | `@queue` | shared, the bytes of those whose tenant has no place: the lower one goes first |
///
/// Each lock ends with its process.
struct Queue {
    places: [Place; 2],
    urgent: OwnedFd,
    tenants: OwnedFd,
    queue: OwnedFd,
    is_urgent: bool,
    /// The byte in `@queue` that is locked.
    at: Option<u64>,
    /// Since when a place was free that somebody before this one did not take.
    free: Option<Instant>,
}

/// As long as it is there, this process has one of the places, and its tenant cannot have the
/// other.
pub(super) struct Turn {
    pub(super) place: Place,
    pub(super) is_urgent: bool,
    is_second: bool,
    begun: Instant,
    /// How long it may have the second place while others wait.
    share: Duration,
    queue: OwnedFd,
    urgent: OwnedFd,
    _locks: [OwnedFd; 2],
}

impl Turn {
    /// Whether another one is to have it. In the background, one that somebody waits for. In the
    /// second place, after half of the time that others may have to wait, one of another tenant.
    pub(super) fn is_wanted(&self) -> Result<bool> {
        if !self.is_urgent {
            return is_urgent(&self.urgent);
        }
        let is_long = self.is_second && self.begun.elapsed() >= self.share;
        let waits = || syscall::locked(self.queue.as_fd(), Lock::Write, 0, Queue::LAST);
        Ok(is_long && waits().context("ask whether somebody waits")?.is_some())
    }
}

fn is_urgent(urgent: &OwnedFd) -> Result<bool> {
    let place = syscall::locked(urgent.as_fd(), Lock::Write, 0, 1);
    Ok(place.context("ask whether somebody waits")?.is_some())
}

/// Waits for a turn to compile, until then at the most. Those that somebody waits for come first.
pub(super) fn turn(who: &Applicant<'_>, end: Instant) -> Result<Turn> {
    let mut queue = Queue::open()?;
    loop {
        let is_awaited = (who.is_awaited)();
        queue.set_urgent(is_awaited)?;
        let got = if is_awaited {
            queue.try_urgent(who)?
        } else if is_urgent(&queue.urgent)? {
            None
        } else {
            queue.places[0].take()?.map(|lock| (0, lock))
        };
        if let Some((number, lock)) = got {
            let Queue { places: [first, second], urgent, tenants, queue, is_urgent, .. } = queue;
            return Ok(Turn {
                place: if number == 0 { first } else { second },
                is_urgent,
                is_second: number > 0,
                begun: Instant::now(),
                share: who.wait / 2,
                queue,
                urgent,
                _locks: [lock, tenants],
            });
        }
        if Instant::now() >= end {
            return Err(Busy.into());
        }
        std::thread::sleep(cache::TURN);
    }
}

/// There was no turn in time.
#[derive(Debug)]
pub(super) struct Busy;

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the compilers of others have not ended in time")
    }
}

impl std::error::Error for Busy {}

impl Queue {
    /// Beyond the bytes of all others: those who have had the second place, and nobody gives way to
    /// them.
    const LAST: u64 = 1 << 60;

    fn open() -> Result<Queue> {
        let places = [Place::new("")?, Place::new(SECOND)?];
        let [urgent, tenants, queue] =
            ["@urgent", "@tenants", "@queue"].map(|name| open(&Path::new(PLACE).join(name)));
        let (urgent, tenants, queue) = (urgent?, tenants?, queue?);
        Ok(Queue { places, urgent, tenants, queue, is_urgent: false, at: None, free: None })
    }

    fn set_urgent(&mut self, is_urgent: bool) -> Result<()> {
        if is_urgent != self.is_urgent {
            let lock = if is_urgent { Lock::Read } else { Lock::Free };
            syscall::lock(self.urgent.as_fd(), lock, 0, 1).context("say that somebody waits")?;
            self.is_urgent = is_urgent;
        }
        if !is_urgent {
            self.leave()?;
        }
        Ok(())
    }

    /// Takes one of the places, if it is this one's turn.
    fn try_urgent(&mut self, who: &Applicant<'_>) -> Result<Option<(usize, OwnedFd)>> {
        let has_place = |tenant: &u64| -> Result<bool> {
            let place = syscall::locked(self.tenants.as_fd(), Lock::Write, *tenant, 1);
            Ok(place.context("ask who compiles")?.is_some())
        };
        let mut without = None;
        for tenant in (who.tenants)() {
            if !has_place(&tenant)? {
                without = Some(tenant);
                break;
            }
        }
        let Some(tenant) = without else {
            // Its tenants have what they may have. When one of them has no place any more, this one
            // is behind all who wait by then.
            self.leave()?;
            return Ok(None);
        };
        let at = self.enter(who)?;
        /// How long a free place is left to who is before this one, and may have been stopped.
        const GRACE: Duration = Duration::from_millis(500);
        let numbers = if who.gave_way { 0..1 } else { 0..2 };
        for number in numbers {
            let Some(lock) = self.places[number].take()? else { continue };
            let first = syscall::locked(self.queue.as_fd(), Lock::Write, 0, at);
            let is_first = at == 0 || first.context("ask who is before")?.is_none();
            if !is_first && self.free.get_or_insert_with(Instant::now).elapsed() < GRACE {
                return Ok(None);
            }
            match syscall::lock(self.tenants.as_fd(), Lock::Write, tenant, 1) {
                Ok(()) => {}
                // Another one of its tenant's was faster.
                Err(Errno::AGAIN | Errno::ACCESS) => return Ok(None),
                Err(error) => return Err(error).context("take a turn"),
            }
            self.leave()?;
            return Ok(Some((number, lock)));
        }
        self.free = None;
        Ok(None)
    }

    /// Enters the queue, if that has not been done. Who came first goes first; but a small module
    /// goes before a large one that came a little earlier, by at most half the time that this one
    /// waits.
    fn enter(&mut self, who: &Applicant<'_>) -> Result<u64> {
        /// Less than a compiler takes for most modules.
        const BYTES_PER_MILLISECOND: u64 = 256;
        if let Some(at) = self.at {
            return Ok(at);
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(Queue::LAST);
        let now = milliseconds(Duration::try_from(now).unwrap_or_default());
        let behind = (who.bytes / BYTES_PER_MILLISECOND).min(milliseconds(who.wait / 2));
        let at = now + behind + if who.gave_way { Queue::LAST } else { 0 };
        syscall::lock(self.queue.as_fd(), Lock::Read, at, 1).context("enter the queue")?;
        self.at = Some(at);
        Ok(at)
    }

    fn leave(&mut self) -> Result<()> {
        if let Some(at) = self.at.take() {
            syscall::lock(self.queue.as_fd(), Lock::Free, at, 1).context("leave the queue")?;
        }
        self.free = None;
        Ok(())
    }
}

impl Place {
    /// Removes what a worker has left that was killed: nobody else is at work here.
    pub(super) fn clean(&self) -> Result<()> {
        for id in self.root.ids()? {
            let Some(directory) = self.root.find(&id)? else { continue };
            match directory.read() {
                Ok(Some(state)) => container::delete(&directory, &state, true),
                Ok(None) => directory.remove(),
                Err(_) => container::delete_unreadable(&directory, &id),
            }
            .with_context(|| format!("delete `{id}`"))?;
        }
        Ok(())
    }

    pub(super) fn bundle(
        &self,
        description: &Description,
        settings: &CompilerSettings,
        manager: Manager,
        args: &WasmWorker,
        is_idle: bool,
    ) -> Result<Bundle> {
        let engine = engine::path(super::ENGINE)?;
        let mut config = config(&self.rootfs, &engine, description, settings, manager);
        if let Some(argv) = config["process"]["args"].as_array_mut().filter(|_| args.counting) {
            argv.push(json!("--counting"));
        }
        if is_idle {
            config["process"]["scheduler"] = json!({ "policy": "SCHED_IDLE" });
            config["process"]["ioPriority"] =
                json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
        }
        let config = serde_json::to_vec(&config).context("write its configuration")?;
        let spec = bundle::parse(&config).context("check its configuration")?;
        // `canonicalize` for the same reason as with every bundle's: the kernel names it so.
        let rootfs = fs::canonicalize(&self.rootfs).context("find the root")?;
        Ok(Bundle { path: rootfs.clone(), rootfs, config, spec })
    }

    pub(super) fn create(&self, bundle: &Bundle, manager: Manager) -> Result<Container> {
        let id = format!("compiler-{}", std::process::id());
        container::create(
            &self.root,
            Options {
                id: &id,
                bundle,
                manager,
                wait: Wait::ForCaller { blocked: &[] },
                asked: None,
                engine: None,
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
}

fn config(
    rootfs: &Path,
    engine: &Path,
    description: &Description,
    settings: &CompilerSettings,
    manager: Manager,
) -> serde_json::Value {
    let inside = |path: &Path| Path::new(ENGINE).join(path).display().to_string();
    let libraries = description.compiler.as_ref().and_then(|compiler| compiler.libraries.as_ref());
    let libraries = libraries.into_iter().chain(&description.libraries);
    let libraries = libraries.map(|path| inside(path)).collect::<Vec<_>>().join(":");
    let program = inside(&description.program);
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
    let mut config = super::super::spec::linux();
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
    // What a host has no controllers for, its user's own limits have to do.
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
