//! The last step: finding the program, and becoming it or its engine. Runs in init, as the container's user, after all
//! mounts, in two parts: [`prepare`] while `create` can still fail, [`Program::exec`] when the container is started.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use libcontainer::oci_spec::runtime::Mount;
use rustix::fs::{
    Access, AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, StatVfsMountFlags,
    StatxFlags,
};
use rustix::io::{Errno, FdFlags};

use crate::engine;
use crate::syscall;
use crate::workload::{self, Directory, Rights, Workload};

/// What is needed to choose a program and to start it.
pub(crate) struct Request<'a> {
    pub(crate) args: &'a [String],
    /// Without HOME, as it is in the configuration; order and duplicates are kept.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: &'a Path,
    pub(crate) asked: Option<workload::Engine>,
    pub(crate) engine: Option<&'a engine::Directory>,
    pub(crate) registered: workload::Registered,
    pub(crate) mounts: &'a [Mount],
    /// Of a module.
    pub(crate) rights: &'a Rights,
    /// What the container may use of memory, in bytes: for an engine.
    pub(crate) memory: Option<u64>,
    /// Asks the caller's process what a module was compiled to.
    pub(crate) native: &'a dyn Fn(BorrowedFd<'_>) -> Result<Option<OwnedFd>>,
}

/// A program that is there and can be started.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
    pub(crate) is_module: bool,
    /// Signals that arrive blocked.
    blocked: Vec<i32>,
    /// Open until the exec, and beyond.
    _descriptors: Vec<OwnedFd>,
}

/// Finds the program and chooses how it is started.
pub(crate) fn prepare(request: &Request<'_>) -> Result<Program> {
    let name = &request.args[0];
    let found = find(request).with_context(|| format!("exec: `{name}`"))?;
    let head = head(&found)?;
    let chosen = match &head {
        // A program that its user may run but not read (mode 0711) is a native one: no engine could read it either.
        None => Workload::Linux,
        Some((_, head)) => workload::choose(request.asked, head, request.registered)
            .with_context(|| format!("exec: `{}`", found.display()))?,
    };
    match (chosen, head) {
        (Workload::Wasm(_), Some((module, _))) => {
            let engine = request.engine.context("no engine was opened")?;
            wasm(request, engine, module)
                .with_context(|| format!("prepare engine `{}`", engine.description.name))
        }
        _ => {
            executable(&found).with_context(|| format!("exec: `{name}`"))?;
            native(request, &found)
        }
    }
}

/// The words, in lower case, by which callers tell a missing program from one that may not be run (podman, Docker, CRI-O).
fn refusal(error: Errno) -> Error {
    match error {
        Errno::NOENT => anyhow!("no such file or directory"),
        Errno::NOTDIR => anyhow!("not a directory: no such file or directory"),
        Errno::ACCESS | Errno::PERM => anyhow!("permission denied"),
        error => error.into(),
    }
}

/// The path of the program: as it stands if it holds a slash, or else from PATH (`execvp(3)`). A module may also lie in the
/// cwd, since images `FROM scratch` have no PATH.
fn find(request: &Request<'_>) -> Result<PathBuf> {
    let name = Path::new(&request.args[0]);
    ensure!(!name.as_os_str().is_empty(), "no such file or directory");
    if name.as_os_str().as_bytes().contains(&b'/') {
        let metadata = rustix::fs::stat(name).map_err(refusal)?;
        return match FileType::from_raw_mode(metadata.st_mode) {
            FileType::RegularFile => Ok(name.to_owned()),
            FileType::Directory => Err(anyhow!("is a directory: permission denied")),
            _ => Err(anyhow!("is not a regular file: permission denied")),
        };
    }
    let path = request.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let is_file = |path: &Path| {
        rustix::fs::stat(path)
            .is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::RegularFile)
    };
    let mut refused = None;
    // An empty entry means the cwd (environ(7)).
    for directory in
        path.split(':').map(|directory| if directory.is_empty() { "." } else { directory })
    {
        let candidate = Path::new(directory).join(name);
        if !is_file(&candidate) {
            continue;
        }
        if request.asked.is_some() || executable(&candidate).is_ok() {
            return Ok(candidate);
        }
        refused = Some(candidate);
    }
    let here = Path::new(".").join(name);
    if request.asked.is_some() && is_file(&here) {
        return Ok(here);
    }
    match refused {
        Some(_) => Err(anyhow!("permission denied")),
        None => Err(anyhow!("executable file not found in $PATH")),
    }
}

fn executable(path: &Path) -> Result<()> {
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(refusal)
}

/// The program, open for reading, and its first bytes; None if its user may not read it.
fn head(path: &Path) -> Result<Option<(OwnedFd, Vec<u8>)>> {
    let open =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let file = match open {
        Ok(file) => file,
        Err(Errno::ACCESS) => return Ok(None),
        Err(error) => {
            return Err(refusal(error)).with_context(|| format!("exec: `{}`", path.display()));
        }
    };
    let mut head = vec![0; workload::HEAD];
    let length = rustix::io::pread(&file, &mut head, 0)
        .with_context(|| format!("read `{}`", path.display()))?;
    head.truncate(length);
    Ok(Some((file, head)))
}

fn native(request: &Request<'_>, path: &Path) -> Result<Program> {
    Ok(Program {
        path: CString::new(path.as_os_str().as_bytes())?,
        argv: c_strings(request.args)?,
        envp: c_strings(&request.env)?,
        is_module: false,
        blocked: Vec::new(),
        _descriptors: Vec::new(),
    })
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>> {
    Ok(strings.iter().map(|string| CString::new(string.as_str())).collect::<Result<_, _>>()?)
}

/// The engine's command line: the contract is in `docs/engine.md`.
fn wasm(request: &Request<'_>, engine: &engine::Directory, module: OwnedFd) -> Result<Program> {
    prove_proc(&engine.mount)
        .context("an engine is started through `/proc`, which this container lacks")?;
    let env = environment(request)?;
    let native = (request.native)(module.as_fd())?;
    let engine_dir = rustix::io::fcntl_dupfd_cloexec(&engine.mount, 3)?;
    let inside = |path: &Path| {
        let mut text = format!("/proc/self/fd/{}/", engine_dir.as_raw_fd()).into_bytes();
        text.extend(path.as_os_str().as_bytes());
        CString::new(text)
    };
    let plugins = engine.plugins.as_ref();
    let plugin_dir = plugins.map(|plugins| rustix::io::fcntl_dupfd_cloexec(&plugins.mount, 3));
    let plugin_dir = plugin_dir.transpose()?;
    let description = &engine.description;
    let program = inside(&description.program)?;
    let (path, mut argv) = match (&description.loader, &description.libraries) {
        (Some(loader), Some(libraries)) => {
            let name = CString::new(description.program.as_os_str().as_bytes())?;
            // What plugins need lies beside them; the engine's own libraries come first.
            let mut path = inside(libraries)?.into_bytes();
            if let Some(directory) = &plugin_dir {
                path.extend(format!(":/proc/self/fd/{}", directory.as_raw_fd()).into_bytes());
            }
            let path = CString::new(path)?;
            let loader_options =
                [c"--inhibit-cache".to_owned(), c"--library-path".to_owned(), path];
            (inside(loader)?, [vec![name], loader_options.to_vec(), vec![program]].concat())
        }
        (Some(_), None) => anyhow::bail!("its `engine.json` has a `loader` and no `libraries`"),
        (None, _) => (program.clone(), vec![program]),
    };
    for option in [
        format!("--contract={}", engine::CONTRACT),
        format!("--engine-dir={}", engine_dir.as_raw_fd()),
        format!("--module={}", module.as_raw_fd()),
        format!("--env={}", env.as_raw_fd()),
    ] {
        argv.push(CString::new(option)?);
    }
    if let Some(native) = &native {
        argv.push(CString::new(format!("--native={}", native.as_raw_fd()))?);
    }
    if let (Some(plugins), Some(directory)) = (plugins, &plugin_dir) {
        argv.push(CString::new(format!("--plugin-dir={}", directory.as_raw_fd()))?);
        for file in &plugins.files {
            argv.push(CString::new([b"--plugin=", file.as_os_str().as_bytes()].concat())?);
        }
    }
    if let Some(limit) = request.memory {
        argv.push(CString::new(format!("--memory={limit}"))?);
    }
    if let Some(timeout) = request.rights.timeout {
        argv.push(CString::new(format!("--timeout={}", timeout.as_millis()))?);
    }
    if let Some(fuel) = request.rights.fuel {
        argv.push(CString::new(format!("--fuel={fuel}"))?);
    }
    let (options, directories) = preopens(request)?;
    argv.extend(options);
    argv.push(c"--".to_owned());
    argv.extend(c_strings(request.args)?);
    let descriptors = [engine_dir, module, env]
        .into_iter()
        .chain(native)
        .chain(plugin_dir)
        .chain(directories)
        .collect();
    Ok(Program {
        path,
        argv,
        // The loader would obey an image's LD_PRELOAD.
        envp: Vec::new(),
        is_module: true,
        // As PID 1 the engine would lose those that come before it has its handlers.
        blocked: vec![libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP],
        _descriptors: descriptors,
    })
}

/// The guest's environment, as a file that only the engine reads.
fn environment(request: &Request<'_>) -> Result<OwnedFd> {
    let mut text = Vec::new();
    for variable in &request.env {
        text.extend(variable.as_bytes());
        text.push(0);
    }
    // WASI preview1 has no working directory; PWD is what language runtimes look at instead (Go's, for one).
    if !request.env.iter().any(|variable| variable.starts_with("PWD=")) {
        text.extend([b"PWD=", request.cwd.as_os_str().as_bytes(), b"\0"].concat());
    }
    let file = rustix::fs::memfd_create("environment", MemfdFlags::CLOEXEC)
        .context("make a memory file")?;
    let mut written = 0;
    while written < text.len() {
        written += rustix::io::pwrite(&file, &text[written..], written as u64)
            .context("write the environment")?;
    }
    Ok(file)
}

/// What the guest may see: the rootfs, and each directory that is mounted in it, with the mount's own right. Or those that its
/// container lists, which are open from now on: what is put in their places until the start is not meant.
fn preopens(request: &Request<'_>) -> Result<(Vec<CString>, Vec<OwnedFd>)> {
    if let Some(directories) = &request.rights.directories {
        let opened = directories.iter().map(|directory| {
            preopen_listed(directory).with_context(|| {
                format!("the annotation `run.oci.wasm.dirs`: `{}`", directory.path.display())
            })
        });
        return Ok(opened.collect::<Result<Vec<_>>>()?.into_iter().unzip());
    }
    let mounted = request.mounts.iter().map(|mount| mount.destination().as_path());
    let mounted = mounted.filter(|path| !workload::is_the_kernels(path) && *path != Path::new("/"));
    let mut preopens = Vec::new();
    for path in [Path::new("/")].into_iter().chain(mounted) {
        preopens.extend(preopen(path)?);
    }
    Ok((preopens, Vec::new()))
}

/// The image's author could make it a link to the root: none is followed.
fn preopen_listed(directory: &Directory) -> Result<(CString, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = match rustix::fs::openat2(CWD, &directory.path, flags, Mode::empty(), resolve) {
        // Forbidden by a filter around this runtime, or older than the kernel.
        Err(Errno::NOSYS | Errno::PERM) => open_without_links(&directory.path),
        opened => opened,
    };
    let opened = match opened {
        Err(Errno::LOOP) => bail!("it leads elsewhere"),
        Err(Errno::NOENT | Errno::NOTDIR) => bail!("it is no directory"),
        opened => opened?,
    };
    let flags = rustix::fs::fstatvfs(&opened).context("statvfs")?.f_flag;
    let read_only = directory.read_only || flags.contains(StatVfsMountFlags::RDONLY);
    let right = if read_only { "ro" } else { "rw" };
    let option = format!("--dir-fd={}:{right}:", opened.as_raw_fd());
    let option = [option.as_bytes(), directory.path.as_os_str().as_bytes()].concat();
    Ok((CString::new(option)?, opened))
}

/// Step by step.
fn open_without_links(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut there = rustix::fs::open("/", flags, Mode::empty())?;
    for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        there = rustix::fs::openat(&there, part.as_os_str(), flags, Mode::empty())?;
    }
    Ok(there)
}

/// None for what is no directory: a file is reached through the directory that it is in; what the user may not look at, a guest
/// could not either.
fn preopen(path: &Path) -> Result<Option<CString>> {
    let is_directory =
        |there: rustix::fs::Stat| FileType::from_raw_mode(there.st_mode) == FileType::Directory;
    if !rustix::fs::stat(path).is_ok_and(is_directory) {
        return Ok(None);
    }
    let flags =
        rustix::fs::statvfs(path).with_context(|| format!("statvfs `{}`", path.display()))?.f_flag;
    let right: &[u8] = if flags.contains(StatVfsMountFlags::RDONLY) { b"ro:" } else { b"rw:" };
    Ok(Some(CString::new([b"--dir=", right, path.as_os_str().as_bytes()].concat())?))
}

/// That `/proc/self/fd/N` leads to descriptor N, and not to what an image put there: `/proc` is procfs, nothing is mounted
/// between it and the link, and behind the link is the same file on the same mount.
fn prove_proc(descriptor: &OwnedFd) -> Result<()> {
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0; // <linux/magic.h>
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open `/proc`")?;
    ensure!(rustix::fs::fstatfs(&proc)?.f_type == PROC_SUPER_MAGIC, "`/proc` is not procfs");
    // `/proc/self` is a symbolic link, not a magic one, so this stays on one mount.
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
    let links = match rustix::fs::openat2(&proc, "self/fd", flags, Mode::empty(), resolve) {
        // Forbidden by a filter around this runtime, or older than the kernel.
        Err(Errno::NOSYS | Errno::PERM) => open_own_links(&proc),
        links => links,
    };
    let links = links.context("open `/proc/self/fd`")?;
    let number = descriptor.as_raw_fd().to_string();
    let behind = rustix::fs::openat(&links, &number, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `/proc/self/fd/{number}`"))?;
    let identity = |file: &OwnedFd| {
        let flags = StatxFlags::INO | StatxFlags::MNT_ID;
        let there = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, flags)?;
        Ok::<_, Errno>((there.stx_mnt_id, there.stx_ino, there.stx_dev_major, there.stx_dev_minor))
    };
    ensure!(
        identity(&behind)? == identity(descriptor)?,
        "`/proc/self/fd/{number}` is another file"
    );
    Ok(())
}

/// `self/fd` below `/proc`, step by step, with nothing mounted on the way.
fn open_own_links(proc: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let mount = |file: &OwnedFd| {
        rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .map(|there| there.stx_mnt_id)
    };
    let step = |from: &OwnedFd, name: &CStr| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(from, name, flags, Mode::empty())?;
        if mount(&found)? == mount(proc)? { Ok(found) } else { Err(Errno::XDEV) }
    };
    let own = rustix::fs::readlinkat(proc, "self", Vec::new())?;
    if !own.to_bytes().iter().all(u8::is_ascii_digit) {
        return Err(Errno::XDEV);
    }
    step(&step(proc, &own)?, c"fd")
}

impl Program {
    /// Blocks what the program wants to find blocked, and nothing else; a signal that is sent before the start waits then. None is
    /// ignored any more. Before a filter of system calls is loaded, which need not allow either.
    pub(crate) fn take_signals(&self) {
        syscall::default_signal_actions();
        syscall::block_only(&self.blocked);
    }

    /// Becomes the program. Returns only when that failed.
    pub(crate) fn exec(&self) -> Error {
        for descriptor in &self._descriptors {
            if let Err(error) = rustix::io::fcntl_setfd(descriptor.as_fd(), FdFlags::empty()) {
                return Error::from(error).context("hand a descriptor to the engine");
            }
        }
        let error = syscall::execve(&self.path, &self.argv, &self.envp);
        Error::from(error).context(format!("exec `{}`", self.path.to_string_lossy()))
    }
}
