//! The command line that starts an engine program: `docs/engine.md`, "How it is started". Init
//! builds it as the container's user, after all mounts.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, MemfdFlags, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::{CONTRACT, Description};
use crate::walk;
use crate::workload::{self, Directory, Rights};

/// What the engine is told about the guest.
pub(crate) struct Guest<'a> {
    pub(crate) args: &'a [String],
    /// The configured variables only.
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a Path,
    pub(crate) mounts: &'a [Mount],
    pub(crate) rights: &'a Rights,
    /// The container's memory limit, in bytes.
    pub(crate) memory: Option<u64>,
    /// The manifest, if the guest is an app.
    pub(crate) manifest: Option<&'a Path>,
}

impl Guest<'_> {
    /// Writes the guest's environment to a file that only the engine reads.
    pub(crate) fn environment(&self) -> Result<OwnedFd> {
        let mut text = Vec::new();
        for variable in self.env {
            text.extend(variable.as_bytes());
            text.push(0);
        }
        // WASI preview1 has no working directory. The runtimes of some languages (Go, for one) use
        // PWD instead, and start in the root without it. So, in the root, a guest gets no variable
        // that is not configured.
        let has_pwd = self.env.iter().any(|variable| variable.starts_with("PWD="));
        if !has_pwd && self.cwd != Path::new("/") {
            text.extend([b"PWD=", self.cwd.as_os_str().as_bytes(), b"\0"].concat());
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
}

/// The files that are open for an engine.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) directory: OwnedFd,
    pub(crate) module: OwnedFd,
    /// The guest's: [`Guest::environment`].
    pub(crate) environment: OwnedFd,
    /// The module's native code.
    pub(crate) native: Option<OwnedFd>,
    /// The native code of an app's modules, in the order of its plan.
    pub(crate) parts: Vec<OwnedFd>,
    /// The directory of the plugins.
    pub(crate) plugins: Option<OwnedFd>,
    /// The socket on which a handler of requests listens.
    pub(crate) listener: Option<OwnedFd>,
}

/// How an engine is started.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub(crate) path: CString,
    pub(crate) argv: Vec<CString>,
    /// The descriptors that `argv` names. They stay open across the exec.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl CommandLine {
    /// `plugins` are files in the plugins' directory.
    pub(crate) fn new(
        engine: &Description,
        files: Files,
        plugins: &[PathBuf],
        guest: &Guest<'_>,
    ) -> Result<CommandLine> {
        let Files { directory, module, environment, native, parts, plugins: plugin_dir, listener } =
            files;
        let (path, mut argv) = program(engine, &directory, plugin_dir.as_ref())?;
        for option in [
            format!("--contract={CONTRACT}"),
            format!("--engine-dir={}", directory.as_raw_fd()),
            format!("--module={}", module.as_raw_fd()),
            format!("--env={}", environment.as_raw_fd()),
        ] {
            argv.push(CString::new(option)?);
        }
        if let Some(native) = &native {
            argv.push(CString::new(format!("--native={}", native.as_raw_fd()))?);
        }
        for part in &parts {
            argv.push(CString::new(format!("--part={}", part.as_raw_fd()))?);
        }
        if let Some(directory) = &plugin_dir {
            argv.push(CString::new(format!("--plugin-dir={}", directory.as_raw_fd()))?);
            for file in plugins {
                argv.push(CString::new([b"--plugin=", file.as_os_str().as_bytes()].concat())?);
            }
        }
        // The kernel enforces the limit, whether or not the engine knows it.
        if let Some(limit) = guest.memory.filter(|_| engine.knows("memory")) {
            argv.push(CString::new(format!("--memory={limit}"))?);
        }
        if let Some(timeout) = guest.rights.timeout {
            argv.push(CString::new(format!("--timeout={}", timeout.as_millis()))?);
        }
        if let Some(fuel) = guest.rights.fuel {
            argv.push(CString::new(format!("--fuel={fuel}"))?);
        }
        if let Some(listener) = &listener {
            argv.push(CString::new(format!("--http={}", listener.as_raw_fd()))?);
            for option in guest.rights.http.options() {
                argv.push(CString::new(option)?);
            }
        }
        let (options, directories) = preopens(guest)?;
        argv.extend(options);
        argv.push(c"--".to_owned());
        for arg in guest.args {
            argv.push(CString::new(arg.as_str())?);
        }
        let descriptors = [directory, module, environment]
            .into_iter()
            .chain(native)
            .chain(parts)
            .chain(plugin_dir)
            .chain(listener)
            .chain(directories)
            .collect();
        Ok(CommandLine { path, argv, descriptors })
    }
}

/// The file to exec, and the arguments before the options.
fn program(
    engine: &Description,
    directory: &OwnedFd,
    plugins: Option<&OwnedFd>,
) -> Result<(CString, Vec<CString>)> {
    let inside = |path: &Path| {
        let mut text = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        text.extend(path.as_os_str().as_bytes());
        CString::new(text)
    };
    let program = inside(&engine.program)?;
    let Some(loader) = &engine.loader else { return Ok((program.clone(), vec![program])) };
    let libraries = engine.libraries.as_ref();
    let libraries = libraries.context("its `engine.json` has a `loader` and no `libraries`")?;
    let name = CString::new(engine.program.as_os_str().as_bytes())?;
    // Libraries that plugins require are beside the plugins. The engine's own libraries come first.
    let mut path = inside(libraries)?.into_bytes();
    if let Some(plugins) = plugins {
        path.extend(format!(":/proc/self/fd/{}", plugins.as_raw_fd()).into_bytes());
    }
    let loader_options =
        [c"--inhibit-cache".to_owned(), c"--library-path".to_owned(), CString::new(path)?];
    Ok((inside(loader)?, [vec![name], loader_options.to_vec(), vec![program]].concat()))
}

/// The directories that the guest may use. By default these are the rootfs and each directory that
/// is mounted in it, read-only if its mount is. If the container lists directories, these are
/// opened here, so that nobody can put another directory in the place of one before the start.
fn preopens(guest: &Guest<'_>) -> Result<(Vec<CString>, Vec<OwnedFd>)> {
    if let Some(manifest) = guest.manifest {
        let (option, opened) = preopen_manifest(&guest.cwd.join(manifest))?;
        return Ok((vec![option], vec![opened]));
    }
    if let Some(directories) = &guest.rights.directories {
        let opened = directories.iter().map(|directory| {
            preopen_listed(directory).with_context(|| {
                format!("the annotation `run.oci.wasm.dirs`: `{}`", directory.path.display())
            })
        });
        return Ok(opened.collect::<Result<Vec<_>>>()?.into_iter().unzip());
    }
    let mounted = guest.mounts.iter().map(|mount| mount.destination().as_path());
    let mounted = mounted.filter(|path| !workload::is_the_kernels(path) && *path != Path::new("/"));
    let mut preopens = Vec::new();
    for path in [Path::new("/")].into_iter().chain(mounted) {
        preopens.extend(preopen(path)?);
    }
    Ok((preopens, Vec::new()))
}

/// Opens the directory of a manifest, for the files that the manifest lists.
fn preopen_manifest(manifest: &Path) -> Result<(CString, OwnedFd)> {
    let directory = manifest.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let opened = walk::open(CWD, directory, flags, ResolveFlags::NO_MAGICLINKS)
        .with_context(|| format!("open `{}`", directory.display()))?;
    let option = format!("--dir-fd={}:ro:", opened.as_raw_fd());
    Ok((CString::new([option.as_bytes(), directory.as_os_str().as_bytes()].concat())?, opened))
}

/// Opens a listed directory. Follows no symbolic link, because the image's author could make a link
/// to the root.
fn preopen_listed(directory: &Directory) -> Result<(CString, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let opened = match walk::open(CWD, &directory.path, flags, ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => bail!("it leads elsewhere"),
        Err(Errno::NOENT | Errno::NOTDIR) => bail!("it is not a directory"),
        opened => opened?,
    };
    let flags = rustix::fs::fstatvfs(&opened).context("statvfs")?.f_flag;
    let read_only = directory.read_only || flags.contains(StatVfsMountFlags::RDONLY);
    let right = if read_only { "ro" } else { "rw" };
    let option = format!("--dir-fd={}:{right}:", opened.as_raw_fd());
    let option = [option.as_bytes(), directory.path.as_os_str().as_bytes()].concat();
    Ok((CString::new(option)?, opened))
}

/// Returns `None` if the path is not a directory: the guest reaches a file through the file's
/// directory. A directory that the user may not look at is left out too, because the guest could
/// not use it either.
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use rt_engine::contract::Descriptor;
    use rt_engine::{Program, Work};
    use rustix::fs::Mode;

    use super::*;

    const OPTIONS: &[&str] = &["fuel", "http", "memory", "native", "part", "plugin", "timeout"];
    const PROGRAM: Program = Program { name: "program", options: OPTIONS };

    fn file() -> OwnedFd {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open("/", flags, Mode::empty()).expect("opened")
    }

    /// The command line for an engine that knows these options, and an engine's reading of it.
    fn read(options: &str, all: bool, guest: &Guest<'_>) -> (CommandLine, rt_engine::Contract) {
        let engine = Description::sample("engine", options, "[]");
        let files = Files {
            directory: file(),
            module: file(),
            environment: guest.environment().expect("made"),
            native: all.then(file),
            parts: if all { vec![file(), file()] } else { Vec::new() },
            plugins: all.then(file),
            listener: all.then(file),
        };
        let plugins: &[PathBuf] = if all { &["a.so".into(), "b.so".into()] } else { &[] };
        let line = CommandLine::new(&engine, files, plugins, guest).expect("made");
        let program = format!("/proc/self/fd/{}/program", line.descriptors[0].as_raw_fd());
        let at = line.argv.iter().position(|arg| arg.to_bytes() == program.as_bytes());
        let args = line.argv[at.expect("it is there")..].iter();
        let args = args.map(|arg| OsString::from_vec(arg.to_bytes().to_vec()));
        match Work::parse(args, &PROGRAM).expect("understood") {
            Work::Run(contract) => (line, contract),
            Work::Compile { .. } => panic!("it is to run"),
        }
    }

    #[test]
    fn an_engine_reads_what_is_written() {
        let args = ["/app.wasm", "--dir=ro:/x", "--", ""].map(str::to_owned);
        let rights = Rights::sample(&[
            ("fuel", "7"),
            ("timeout", "1.5"),
            ("dirs", "/tmp,/usr:ro"),
            ("plugins", "a"),
            ("http-requests", "5"),
            ("http-outbound", "a,b:81"),
        ]);
        let env = ["A=B".to_owned()];
        let memory = Some(1 << 20);
        let guest = Guest {
            args: &args,
            env: &env,
            cwd: Path::new("/w"),
            mounts: &[],
            rights: &rights,
            memory,
            manifest: None,
        };
        let options = r#"["fuel", "http", "memory", "native", "plugin", "timeout"]"#;
        let (line, contract) = read(options, true, &guest);
        let run = &contract.run;
        assert_eq!(run.arguments, args);
        assert_eq!((run.fuel, run.timeout, run.memory), (Some(7), Some(1500), memory));
        assert_eq!(run.plugins, ["a.so", "b.so"]);
        let http = run.http.as_ref().expect("it serves");
        assert_eq!((http.limits.requests, http.outbound.len()), (Some(5), 2));
        assert_eq!(run.parts.len(), 2);
        let listed: Vec<_> =
            run.directories.iter().map(|it| (it.path.as_str(), it.read_only)).collect();
        assert_eq!(listed, [("/tmp", false), ("/usr", true)]);
        // Each number is a descriptor that stays open, and each open descriptor has a number.
        let sorted = |mut numbers: Vec<i32>| {
            numbers.sort_unstable();
            numbers
        };
        let read = contract.descriptors().map(Descriptor::number).collect();
        let open = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!(sorted(read), sorted(open));
        let mut environment = [0; 64];
        let length = rustix::io::pread(&line.descriptors[2], &mut environment, 0).expect("read");
        assert_eq!(rt_engine::variables(&environment[..length]), Ok(vec!["A=B", "PWD=/w"]));
    }

    #[test]
    fn an_engine_gets_no_option_that_it_does_not_know() {
        let args = ["/app.wasm".to_owned()];
        let rights = Rights::sample(&[]);
        let guest = Guest {
            args: &args,
            env: &[],
            cwd: Path::new("/"),
            mounts: &[],
            rights: &rights,
            memory: Some(1 << 20),
            manifest: None,
        };
        let (_, contract) = read("[]", false, &guest);
        assert_eq!((contract.run.memory, contract.run.directories.len()), (None, 1));
        let app = Guest { manifest: Some(Path::new("usr/spin.toml")), ..guest };
        let (line, contract) = read("[]", false, &app);
        let directory = &contract.run.directories[0];
        assert_eq!((directory.path.as_str(), directory.read_only), ("/usr", true));
        assert!(directory.descriptor.is_some() && line.descriptors.len() == 4);
    }
}
