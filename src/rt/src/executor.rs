//! The last step: finds the program, and becomes it or its engine. Runs in init, as the container's
//! user, after all mounts, in two parts: [`prepare`] while `create` can still fail, and
//! [`Program::exec`] when the container is started.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, FdFlags};

use crate::engine::{self, CommandLine, Engines, Files, Guest};
use crate::failure::Failure;
use crate::sync::Given;
use crate::workload::{self, Format, Rights, Workload};
use crate::{procfs, signals, syscall, walk};

/// What init needs to choose a program and to start it.
pub(crate) struct Request<'a> {
    pub(crate) args: &'a [String],
    /// The environment of a Linux program.
    pub(crate) env: &'a [String],
    /// The environment of a module: the configured variables only.
    pub(crate) configured_env: &'a [String],
    pub(crate) cwd: &'a Path,
    /// The descriptions of the engines that may run the program, if the container asks for an
    /// engine. Init gets the directory of one when it is clear that the program needs it
    /// ([`Given`]). Until then, no name that the container chooses can lead there.
    pub(crate) engines: Option<&'a Engines<'a>>,
    pub(crate) registered: workload::Registered,
    pub(crate) mounts: &'a [Mount],
    /// The rights of a module.
    pub(crate) rights: &'a Rights,
    /// The container's memory limit in bytes, for an engine.
    pub(crate) memory: Option<u64>,
    /// Sends a module and the number of its engine to the runtime process, and receives the files
    /// to run it.
    pub(crate) ask: &'a dyn Fn(usize, BorrowedFd<'_>) -> Result<Given>,
    /// Sends one of several modules and its name to the runtime process, and receives its native
    /// code.
    pub(crate) ask_for_part: &'a dyn Fn(&str, BorrowedFd<'_>) -> Result<OwnedFd>,
}

/// A program that was found and can be started.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
    pub(crate) is_module: bool,
    /// For a module: the descriptor by which init enters its cgroup.
    pub(crate) cgroup: Option<OwnedFd>,
    /// The signals that the program finds blocked.
    blocked: Vec<i32>,
    /// Open until the exec, and after it.
    descriptors: Vec<OwnedFd>,
}

/// Finds the program, and chooses how to start it.
pub(crate) fn prepare(request: &Request<'_>) -> Result<Program> {
    let name = &request.args[0];
    let found = find(request).with_context(|| format!("exec: `{name}`"))?;
    let head = head(&found)?;
    let chosen = match &head {
        // A program that its user may run but not read (mode 0711) is a Linux program: an engine
        // could not read it either.
        None => Workload::Linux,
        Some((_, head)) => {
            let format = Format::of(&found.path, head);
            workload::choose(request.engines.is_some(), format, request.registered)
                .with_context(|| format!("exec: `{}`", found.path.display()))?
        }
    };
    match (chosen, head) {
        (Workload::Wasm(format), Some((module, _))) => wasm(request, format, &found.path, module)
            .with_context(|| format!("exec: `{}`", found.path.display())),
        (_, head) => {
            executable(&found.file).with_context(|| format!("exec: `{name}`"))?;
            if let Some((file, head)) = &head
                && head.starts_with(b"#!")
            {
                check_interpreter(file).with_context(|| format!("exec: `{name}`"))?;
            }
            native(request, &found.path)
        }
    }
}

/// A file of the container, and the path that leads to it.
struct Found {
    path: PathBuf,
    /// Opened with `O_PATH`.
    file: OwnedFd,
}

/// The words, in lower case, by which callers (podman, Docker, CRI-O) distinguish a missing program
/// from one that must not be run.
fn refusal(error: Errno) -> Error {
    match error {
        Errno::NOENT => anyhow!("no such file or directory"),
        Errno::NOTDIR => anyhow!("not a directory: no such file or directory"),
        Errno::ACCESS | Errno::PERM => anyhow!("permission denied"),
        Errno::XDEV => anyhow!("leads out of the container: permission denied"),
        error => error.into(),
    }
}

/// Looks up a path of the container (`O_PATH`).
///
/// Without magic links on the way (`/proc/self/fd/N`, `/proc/1/root`), a path that begins in the
/// container stays there. The root and the working directory are the container's. A magic link may
/// lead anywhere, so its target must be on one of the container's mounts.
fn look_up(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match walk::open(CWD, path, flags, ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::LOOP) => {
            let file = rustix::fs::open(path, flags, Mode::empty())?;
            if is_of_the_container(&file)? { Ok(file) } else { Err(Errno::XDEV) }
        }
        opened => opened,
    }
}

/// Whether a file is on a mount in this process's table of mounts. The ids of mounts are unique
/// while they are in use.
fn is_of_the_container(file: &OwnedFd) -> rustix::io::Result<bool> {
    const LONGEST: u64 = 16 << 20;
    let there = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let proc = walk::open(CWD, Path::new("/proc"), flags, ResolveFlags::NO_MAGICLINKS)?;
    if !procfs::is_procfs(&proc)? {
        return Ok(false);
    }
    let table = Path::new("thread-self/mountinfo");
    let table = walk::open(proc.as_fd(), table, OFlags::RDONLY, ON_ONE_MOUNT)?;
    let mut text = Vec::new();
    std::fs::File::from(table)
        .take(LONGEST)
        .read_to_end(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let id = there.stx_mnt_id.to_string();
    let is_it = |line: &[u8]| line.split(|byte| *byte == b' ').next() == Some(id.as_bytes());
    Ok(text.split(|byte| *byte == b'\n').any(is_it))
}

fn kind(file: &OwnedFd) -> rustix::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// Finds the program. Init looks up a path with a slash directly, and any other name in the
/// directories of PATH (`execvp(3)`). A module may also be in the cwd, because images `FROM
/// scratch` have no PATH.
fn find(request: &Request<'_>) -> Result<Found> {
    let name = Path::new(&request.args[0]);
    ensure!(!name.as_os_str().is_empty(), "no such file or directory");
    // The command of an image that is a Spin app, as containerd's shim for Spin expects it.
    if request.engines.is_some() && name == Path::new("/") {
        let path = name.join(workload::MANIFEST);
        match look_up(&path) {
            Ok(file) if kind(&file)? == FileType::RegularFile => return Ok(Found { path, file }),
            _ => {}
        }
    }
    if name.as_os_str().as_bytes().contains(&b'/') {
        let file = look_up(name).map_err(refusal)?;
        return match kind(&file)? {
            FileType::RegularFile => Ok(Found { path: name.to_owned(), file }),
            FileType::Directory => Err(anyhow!("is a directory: permission denied")),
            _ => Err(anyhow!("is not a regular file: permission denied")),
        };
    }
    let path = request.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let file_at = |path: &Path| {
        look_up(path).ok().filter(|file| kind(file).is_ok_and(|it| it == FileType::RegularFile))
    };
    let mut refused = false;
    // An empty entry means the cwd (environ(7)).
    for directory in
        path.split(':').map(|directory| if directory.is_empty() { "." } else { directory })
    {
        let candidate = Path::new(directory).join(name);
        let Some(file) = file_at(&candidate) else { continue };
        if request.engines.is_some() || executable(&file).is_ok() {
            return Ok(Found { path: candidate, file });
        }
        refused = true;
    }
    let here = Path::new(".").join(name);
    if request.engines.is_some()
        && let Some(file) = file_at(&here)
    {
        return Ok(Found { path: here, file });
    }
    ensure!(!refused, "permission denied");
    bail!("executable file not found in $PATH")
}

fn executable(file: &OwnedFd) -> Result<()> {
    match syscall::may_execute(file.as_fd()) {
        // This error may come from a filter around `rt` or from an old kernel, so it is not an
        // answer. execve(2) decides.
        Err(Errno::NOSYS | Errno::PERM) => {
            let mode = Mode::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
            ensure!(mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH), refusal(Errno::ACCESS));
            Ok(())
        }
        answer => answer.map_err(refusal),
    }
}

/// Opens the program for reading, and reads its first bytes. Returns `None` if its user may not
/// read it.
fn head(found: &Found) -> Result<Option<(OwnedFd, Vec<u8>)>> {
    let path = &found.path;
    // Looks the path up again, because `/proc` may be missing, and without it a descriptor cannot
    // be opened again.
    let file = match rustix::fs::open(path, FOR_READING, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ACCESS) => return Ok(None),
        Err(error) => {
            return Err(refusal(error)).with_context(|| format!("exec: `{}`", path.display()));
        }
    };
    let head = read_head(path, &file, &found.file)?;
    Ok(Some((file, head)))
}

/// A file of the container: without waiting for the other end of a fifo, and without a terminal.
const FOR_READING: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The first bytes of a file. Fails unless it is the file that was found at the path before.
fn read_head(path: &Path, file: &OwnedFd, found: &OwnedFd) -> Result<Vec<u8>> {
    ensure!(
        identity(file)? == identity(found)?,
        "exec: `{}`: another file has taken its place",
        path.display()
    );
    let mut head = vec![0; workload::HEAD];
    let length = rustix::io::pread(file, &mut head, 0)
        .with_context(|| format!("read `{}`", path.display()))?;
    head.truncate(length);
    Ok(head)
}

/// Refuses a script whose interpreter is not the container's. The kernel looks up the interpreter
/// itself, and the next one if the interpreter is a script too. So this only reports early what can
/// be seen at `create`. The kernel stays inside the container because no file of the host is open
/// then.
fn check_interpreter(script: &OwnedFd) -> Result<()> {
    // As much as the kernel reads: `BINPRM_BUF_SIZE`, `<linux/binfmts.h>`.
    let mut head = [0; 256];
    let length = rustix::io::pread(script, &mut head, 0).context("read the script")?;
    let Some(line) = head[..length].strip_prefix(b"#!") else { return Ok(()) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words = line.split(|byte| matches!(byte, b' ' | b'\t' | 0));
    let Some(path) = words.into_iter().find(|word| !word.is_empty()) else { return Ok(()) };
    let path = Path::new(OsStr::from_bytes(path));
    match look_up(path) {
        Err(Errno::XDEV) => {
            Err(refusal(Errno::XDEV)).with_context(|| format!("interpreter `{}`", path.display()))
        }
        // The kernel reports other errors.
        _ => Ok(()),
    }
}

/// Refuses a hook that runs in the container but is not the container's. As with an interpreter,
/// this only reports early what can be seen now: the container can make or change the file until
/// the hook starts.
pub(crate) fn check_hook(path: &Path) -> Result<()> {
    match look_up(path) {
        Err(Errno::XDEV) => Err(refusal(Errno::XDEV)),
        // The process that runs the hook reports other errors.
        _ => Ok(()),
    }
}

/// Identifies a descriptor's file and mount.
fn identity(file: &OwnedFd) -> rustix::io::Result<(u64, u64, u32, u32)> {
    let flags = StatxFlags::INO | StatxFlags::MNT_ID;
    let there = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, flags)?;
    Ok((there.stx_mnt_id, there.stx_ino, there.stx_dev_major, there.stx_dev_minor))
}

fn native(request: &Request<'_>, path: &Path) -> Result<Program> {
    Ok(Program {
        path: CString::new(path.as_os_str().as_bytes())?,
        argv: c_strings(request.args)?,
        envp: c_strings(request.env)?,
        is_module: false,
        cgroup: None,
        blocked: Vec::new(),
        descriptors: Vec::new(),
    })
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>> {
    Ok(strings.iter().map(|string| CString::new(string.as_str())).collect::<Result<_, _>>()?)
}

/// Prepares an engine to run a module or an app, whose file is at this path.
fn wasm(request: &Request<'_>, format: Format, path: &Path, module: OwnedFd) -> Result<Program> {
    let engines = request.engines.context("no engine was found")?;
    let world = format.handler(module.as_fd());
    let number = engines.choose(format, world, module.as_fd(), request.rights)?;
    let description = &engines.get(number)?.description;
    let is_app = format == Format::Manifest;
    if is_app {
        request.rights.check_for_an_app()?;
    }
    let listener = match world.is_some() || is_app {
        true => Some(listen(request.rights.http.address(is_app, request.configured_env)?)?),
        false => None,
    };
    let start = || -> Result<Program> {
        let guest = Guest {
            args: request.args,
            env: request.configured_env,
            cwd: request.cwd,
            mounts: request.mounts,
            rights: request.rights,
            memory: request.memory,
            manifest: Some(path).filter(|_| is_app),
        };
        let environment = guest.environment()?;
        let Given { engine: directory, plugins, cgroup, native } =
            (request.ask)(number, module.as_fd())?;
        prove_proc(&directory)
            .context("an engine is started through `/proc`, which this container lacks")?;
        let parts = match is_app {
            true => parts(request, path, native.as_ref())?,
            false => Vec::new(),
        };
        let files = Files { directory, module, environment, native, parts, plugins, listener };
        let CommandLine { path, argv, descriptors } =
            CommandLine::new(description, files, engines.plugin_files(), &guest)?;
        Ok(Program {
            path,
            argv,
            // The loader would obey an image's LD_PRELOAD.
            envp: Vec::new(),
            is_module: true,
            cgroup,
            // As PID 1, the engine would lose signals that arrive before it has installed its
            // handlers.
            blocked: vec![libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP],
            descriptors,
        })
    };
    start().with_context(|| format!("prepare engine `{}`", description.name))
}

/// Finds the modules of an app, and has them compiled. Each is opened inside the container, and as
/// its user. The engine's directory is open meanwhile, and so no magic link may be on the way.
fn parts(request: &Request<'_>, manifest: &Path, plan: Option<&OwnedFd>) -> Result<Vec<OwnedFd>> {
    let plan = plan.context("the engine has no compiler for an app")?;
    let part = |path: PathBuf| -> Result<OwnedFd> {
        let path = engine::place(manifest, &path);
        let open = || -> Result<OwnedFd> {
            let look_up = |flags| {
                let opened = walk::open(CWD, &path, flags, ResolveFlags::NO_MAGICLINKS);
                opened.map_err(|error| match error {
                    Errno::LOOP => anyhow!("a loop of links, or a link of procfs, is on the way"),
                    error => refusal(error),
                })
            };
            let file = look_up(OFlags::PATH | OFlags::CLOEXEC)?;
            ensure!(kind(&file)? == FileType::RegularFile, "it is not a regular file");
            let module = look_up(FOR_READING)?;
            let head = read_head(&path, &module, &file)?;
            ensure!(
                matches!(Format::of(&path, &head), Format::Module | Format::Component),
                "it is not a WebAssembly module"
            );
            Ok(module)
        };
        let module = open().with_context(|| format!("the module `{}`", path.display()))?;
        (request.ask_for_part)(&path.to_string_lossy(), module.as_fd())
    };
    engine::modules(plan)?.into_iter().map(part).collect()
}

/// Listens for a handler of requests. This process does so, and not the engine, because what
/// restricts a module's sockets and ports must not keep the server from its own.
fn listen(address: SocketAddr) -> Result<OwnedFd> {
    /// Connections that wait until the engine accepts them. The kernel has a limit of its own
    /// (`net.core.somaxconn`).
    const BACKLOG: i32 = 1024;
    let listen = || -> Result<OwnedFd> {
        let listener = OwnedFd::from(TcpListener::bind(address)?);
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    };
    listen().with_context(|| format!("listen on `{address}` (`run.oci.wasm.http`)"))
}

/// For lookups in procfs: no mount may be between procfs and the link.
const ON_ONE_MOUNT: ResolveFlags = ResolveFlags::NO_XDEV.union(ResolveFlags::BENEATH);

/// Proves that `/proc/self/fd/N` leads to descriptor N, and not to a file from an image: `/proc` is
/// procfs, nothing is mounted between it and the link, and the link leads to the same file on the
/// same mount.
fn prove_proc(descriptor: &OwnedFd) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open `/proc`")?;
    ensure!(procfs::is_procfs(&proc)?, "`/proc` is not procfs");
    // `/proc/self` is a symbolic link, not a magic one, so this lookup stays on one mount.
    let links = walk::open(proc.as_fd(), Path::new("self/fd"), flags, ON_ONE_MOUNT)
        .context("open `/proc/self/fd`")?;
    let number = descriptor.as_raw_fd().to_string();
    let behind = rustix::fs::openat(&links, &number, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `/proc/self/fd/{number}`"))?;
    ensure!(
        identity(&behind)? == identity(descriptor)?,
        "`/proc/self/fd/{number}` is another file"
    );
    Ok(())
}

impl Program {
    /// Blocks the signals that the program expects to be blocked, and no others. Such a signal
    /// stays pending if it is sent before the start. Resets ignored signals to their default
    /// action. This comes before a seccomp filter is loaded, so that the filter need not allow
    /// these calls.
    pub(crate) fn set_signal_mask(&self) {
        syscall::default_signal_actions();
        syscall::block_only(&self.blocked);
    }

    /// Lets a termination signal end this process until the exec. By default, the kernel protects
    /// the first process of a pid namespace from such signals (`pid_namespaces(7)`). If the signals
    /// have to stay blocked, returns a descriptor instead, which is readable when one has come.
    pub(crate) fn can_be_ended(&self) -> Result<Option<OwnedFd>> {
        if self.blocked.is_empty() {
            syscall::end_on(&signals::ENDING);
            return Ok(None);
        }
        syscall::signalfd(&self.blocked).context("open a signalfd").map(Some)
    }

    /// Becomes the program. Returns only if that failed.
    pub(crate) fn exec(&self) -> Failure {
        for descriptor in &self.descriptors {
            if let Err(errno) = rustix::io::fcntl_setfd(descriptor.as_fd(), FdFlags::empty()) {
                return Failure::new(errno, "hand a descriptor to the engine".to_owned());
            }
        }
        let errno = syscall::execve(&self.path, &self.argv, &self.envp);
        Failure::new(errno, format!("exec `{}`", self.path.to_string_lossy()))
    }
}
