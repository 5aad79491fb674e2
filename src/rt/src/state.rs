//! The files that `rt` keeps about a container between commands: one directory per container, below
//! the root of the state.
//!
//! - `state.json`: [`State`]. `rt` replaces the whole file, and never edits it.
//! - `config.json`: the bundle's configuration at the time of `create`.
//! - `root`: an empty directory, while the container is restored from a checkpoint.
//! - `notify`: the directory of a socket for `sd_notify(3)`, if the caller has a service manager
//!   that wants readiness messages.
//! - `start`: a fifo, as long as the container's first process waits for `start` on it.
//!
//! A state has no field for the status. `rt` derives the status each time from the process, the
//! fifo and the freezer, so nothing has to be written when a container starts or ends. `rt`
//! identifies a process by its pid *and* its start time. If the kernel has given the pid to another
//! process, `rt` never takes that process for the container's.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use oci_spec::runtime::{Hook, Spec};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

pub(crate) use crate::draft::Draft;
use crate::linux::cgroups::{Cgroup, Held};
use crate::linux::intel_rdt::Groups;
use crate::{ids, procfs, trust, workload};

/// The version of the format that this `rt` writes. It reads all versions up to this one.
const VERSION: u32 = 1;

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";

/// Root acts on the content of the files, and an environment may contain secrets.
const FOR_ITS_OWNER: Mode = Mode::RUSR.union(Mode::WUSR);

/// The engine of the versions that had one only.
const ONLY_ENGINE: &str = "wasmedge";

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    version: u32,
    pub(crate) oci_version: String,
    pub(crate) id: String,
    /// 0 until the first process exists.
    pub(crate) pid: i32,
    /// In clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// RFC 3339, in UTC.
    pub(crate) created: String,
    /// The user who made the container.
    pub(crate) uid: u32,
    pub(crate) cgroup: Cgroup,
    /// The handler that was asked for. It applies to programs that `exec` starts too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handler: Option<workload::Handler>,
    /// What earlier versions have in place of the handler: the name of an engine. The first of them
    /// can read no other name than that of their only engine, so this `rt` writes that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    engine: Option<String>,
    /// How the container's module is run, if its program is a module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<Run>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rdt: Option<Groups>,
    /// The container's standard streams when init was made, as `/proc` names them. `checkpoint`
    /// requires them. Empty with a terminal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) descriptors: Vec<String>,
    /// `create --no-new-keyring`, which applies to programs that `exec` starts too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keeps_keyring: bool,
    /// The container's own mount namespace, as device and inode of its file in `/proc`. `None` if
    /// the container has no mount namespace of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mount_namespace: Option<(u64, u64)>,
    /// The mounts that `mounts add` has made, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) added: Vec<AddedMount>,
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststop: Vec<Hook>,
}

/// A mount that `mounts add` has made. The container can move the mount, but cannot change which
/// one it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct AddedMount {
    /// The requested destination.
    pub(crate) destination: PathBuf,
    /// The mount's id in the kernel's table of mounts. When the mount is gone, another mount can
    /// get this id.
    pub(crate) id: u64,
    /// An id that no other mount gets, if the kernel has such ids (`STATX_MNT_ID_UNIQUE`, Linux
    /// 6.8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unique: Option<u64>,
}

/// How a module is run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Run {
    /// The engine's name, with its version if the description has one: `wasmedge 0.17.1`.
    pub(crate) engine: String,
    pub(crate) mode: RunMode,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunMode {
    Interpreter,
    /// Native code, compiled ahead of time.
    Aot,
}

impl RunMode {
    fn name(self) -> &'static str {
        match self {
            RunMode::Interpreter => "interpreter",
            RunMode::Aot => "aot",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The annotations by which `state` and `list` describe a module.
const RUN_ENGINE: &str = "run.oci.engine";
const RUN_MODE: &str = "run.oci.engine.mode";

impl State {
    /// The state of a container that has no process yet.
    pub(crate) fn new(
        id: &str,
        oci_version: &str,
        bundle: &Path,
        rootfs: &Path,
        cgroup: Cgroup,
    ) -> State {
        State {
            version: VERSION,
            oci_version: oci_version.to_owned(),
            id: id.to_owned(),
            pid: 0,
            start_time: 0,
            bundle: bundle.to_owned(),
            rootfs: rootfs.to_owned(),
            created: format!("{:.6}", jiff::Timestamp::now()),
            uid: rustix::process::getuid().as_raw(),
            cgroup,
            handler: None,
            engine: None,
            run: None,
            rdt: None,
            descriptors: Vec::new(),
            keeps_keyring: false,
            mount_namespace: None,
            added: Vec::new(),
            annotations: BTreeMap::new(),
            poststart: Vec::new(),
            poststop: Vec::new(),
        }
    }

    /// The handler that was asked for.
    pub(crate) fn handler(&self) -> Option<workload::Handler> {
        self.handler.clone().or_else(|| self.engine.clone().map(workload::Handler::from))
    }

    pub(crate) fn set_handler(&mut self, handler: Option<workload::Handler>) {
        self.engine = handler.as_ref().map(|_| ONLY_ENGINE.to_owned());
        self.handler = handler;
    }

    /// The first process, if it is alive, as a descriptor that cannot come to mean another process.
    pub(crate) fn process(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            // If descendants of the process live on, the kernel keeps the pid as the id of a
            // session or of a process group. It then has no process for the pid, and reports that
            // by these errors. It does so for the id of a thread too (`pidfd_prepare`, Linux 6.1
            // and 6.15).
            Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open process {pid}")),
        };
        // Reads the start time after opening the descriptor: if the start time is right now, the
        // descriptor is the right process.
        match procfs::stat(pid)? {
            Some(stat) => Ok((stat.start_time == self.start_time && !stat.dead).then_some(pidfd)),
            None if procfs::is_hidden(&pidfd)? => {
                bail!("process {pid} exists, but `/proc` does not show it")
            }
            None => Ok(None),
        }
    }

    /// Holds the container's cgroup, so that no other container gets it in the meantime. Returns
    /// `None` if another container has the cgroup, which can happen after this container has
    /// stopped.
    pub(crate) fn hold_cgroup(&self) -> Result<Option<Held<'_>>> {
        self.cgroup.hold(&|| Ok(self.process()?.is_some()))
    }

    /// The processes in the container's cgroup and below it. Empty if another container has the
    /// cgroup.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        let processes = self.cgroup.processes()?;
        // This check comes last: a cgroup is marked before a process of its next container enters
        // it.
        let is_own =
            processes.is_empty() || self.process()?.is_some() || !self.cgroup.is_of_another();
        Ok(if is_own { processes } else { Vec::new() })
    }

    /// The configuration's annotations, and those that describe a module.
    pub(crate) fn reported_annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = self.annotations.clone();
        if let Some(run) = &self.run {
            annotations.insert(RUN_ENGINE.into(), run.engine.clone());
            annotations.insert(RUN_MODE.into(), run.mode.name().into());
        }
        annotations
    }

    /// The state as hooks and agents read it (runtime-spec, `runtime.md`, "State").
    pub(crate) fn report(&self, status: Status) -> serde_json::Value {
        serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status,
            "pid": if status == Status::Stopped { 0 } else { self.pid },
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }

    pub(crate) fn status(&self, directory: &Directory) -> Result<Status> {
        if self.pid == 0 {
            return Ok(Status::Creating);
        }
        if self.process()?.is_none() {
            return Ok(Status::Stopped);
        }
        if directory.start_fifo().exists() {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup.is_frozen() { Status::Paused } else { Status::Running })
    }
}

/// The root of the state: the directory that holds one directory per container.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    /// Whether the caller has named the root.
    is_given: bool,
}

/// The state directory of one container.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Root {
    /// `--root`, or the default: `/run/rt` for root of the initial user namespace,
    /// `$XDG_RUNTIME_DIR/rt` for others.
    pub(crate) fn new(path: Option<&Path>) -> Root {
        let is_given = path.is_some();
        let path = path.map(Path::to_owned).unwrap_or_else(|| {
            let own = std::env::var_os("XDG_RUNTIME_DIR")
                .filter(|dir| !dir.is_empty() && !ids::is_host_root());
            own.map_or_else(|| "/run/rt".into(), |dir| Path::new(&dir).join("rt"))
        });
        Root { path, is_given }
    }

    /// Makes the directory of a new container. This claims the name, so that one of two callers
    /// wins. Also returns the lock, which the creating process holds until the container is made.
    pub(crate) fn add(&self, id: &str) -> Result<(Directory, OwnedFd)> {
        check_id(id)?;
        let show = |path: &Path| format!("make state directory `{}`", path.display());
        let root = self.make().with_context(|| show(&self.path))?;
        let path = self.path.join(id);
        match rustix::fs::mkdirat(&root, id, Mode::RWXU) {
            Ok(()) => {
                let directory = Directory { path };
                let lock = || -> Result<OwnedFd> {
                    let lock = directory.open()?;
                    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                        .context("lock the state directory")?;
                    Ok(lock)
                };
                match lock() {
                    Ok(lock) => Ok((directory, lock)),
                    Err(error) => {
                        // The first error is the one to report.
                        let _ = directory.remove();
                        Err(error)
                    }
                }
            }
            Err(Errno::EXIST) => bail!("container with given ID already exists"),
            Err(error) => Err(error).with_context(|| show(&path)),
        }
    }

    /// Makes the root for its owner only. An existing root keeps its mode.
    fn make(&self) -> trust::Result<OwnedFd> {
        trust::make_shared_directory(&self.path)
    }

    /// Fails if others could change the content of the root. The root need not exist.
    pub(crate) fn check(&self) -> Result<()> {
        self.open().map(drop)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of compiled seccomp filters. No container has this name ([`check_id`]).
    pub(crate) fn filters(&self) -> PathBuf {
        self.path.join("@seccomp")
    }

    /// The directory of a container, or `None` if there is no such container.
    pub(crate) fn find(&self, id: &str) -> Result<Option<Directory>> {
        check_id(id)?;
        let Some(root) = self.open()? else { return Ok(None) };
        Ok(self.find_in(&root, id)?.map(|(directory, _)| directory))
    }

    /// The same, with the opened directory.
    fn find_in(&self, root: &OwnedFd, id: &str) -> Result<Option<(Directory, OwnedFd)>> {
        let there = self.unless_missing(trust::directory_in(root, id, &self.path))?;
        Ok(there.map(|there| (Directory { path: self.path.join(id) }, there)))
    }

    /// Returns `None` if there is no container yet. Fails if others could change the content of the
    /// root.
    fn open(&self) -> Result<Option<OwnedFd>> {
        self.unless_missing(trust::shared_directory(&self.path))
    }

    fn unless_missing(&self, opened: trust::Result<OwnedFd>) -> Result<Option<OwnedFd>> {
        match opened {
            Err(failure) if failure.is(Errno::NOENT) || failure.is(Errno::NOTDIR) => Ok(None),
            opened => {
                opened.map(Some).with_context(|| format!("use root `{}`", self.path.display()))
            }
        }
    }

    /// The directory and the state of a container. Fails if it does not exist.
    pub(crate) fn load(&self, id: &str) -> Result<(Directory, State)> {
        check_id(id)?;
        let root = self.open()?.context("container does not exist")?;
        self.load_in(&root, id)
    }

    fn load_in(&self, root: &OwnedFd, id: &str) -> Result<(Directory, State)> {
        let (directory, there) = self.find_in(root, id)?.context("container does not exist")?;
        match directory.read_in(&there)? {
            Some(state) => Ok((directory, state)),
            None => bail!("container does not exist: its creation was interrupted"),
        }
    }

    /// All containers, sorted by their names, and the names of those whose state cannot be read.
    /// Leaves out one that is just being made or deleted.
    pub(crate) fn all(&self) -> Result<Listed> {
        let mut listed = Listed::default();
        let ids = self.ids()?;
        // Once for all, because the way to the root is checked at each step.
        let Some(root) = self.open()? else { return Ok(listed) };
        for id in ids {
            let state = self.find_in(&root, &id).and_then(|found| {
                let Some((directory, there)) = found else { return Ok(None) };
                Ok(directory.read_in(&there)?.map(|state| (directory, state)))
            });
            match state {
                Ok(Some(container)) => listed.containers.push(container),
                Ok(None) => tracing::debug!("leave out `{id}`: it has no state"),
                Err(error) => listed.unreadable.push((id, error)),
            }
        }
        Ok(listed)
    }

    /// The names that match a regular expression, sorted.
    pub(crate) fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        let pattern = regex_lite::Regex::new(pattern)
            .with_context(|| format!("`{pattern}` is not a regular expression"))?;
        Ok(self.ids()?.into_iter().filter(|id| pattern.is_match(id)).collect())
    }

    /// Fails if the caller has named a root that does not exist, which may be a mistake.
    pub(crate) fn require(&self) -> Result<()> {
        let there = fs::symlink_metadata(&self.path).map(drop);
        if self.is_given {
            there.with_context(|| format!("read `{}`", self.path.display()))?;
        }
        Ok(())
    }

    /// The names of all containers, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        self.check()?;
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("read `{}`", self.path.display()));
            }
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<String> = names.filter(|name| check_id(name).is_ok()).collect();
        ids.sort();
        Ok(ids)
    }
}

/// The containers below a root.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) containers: Vec<(Directory, State)>,
    pub(crate) unreadable: Vec<(String, Error)>,
}

/// Why a state was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The format of the state is newer than this `rt`, so this `rt` must not do anything to the
    /// container.
    Newer(Error),
    Otherwise(Error),
}

impl Unread {
    fn context(self, what: String) -> Unread {
        match self {
            Unread::Newer(error) => Unread::Newer(error.context(what)),
            Unread::Otherwise(error) => Unread::Otherwise(error.context(what)),
        }
    }
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread::Otherwise(error)
    }
}

impl From<Unread> for Error {
    fn from(unread: Unread) -> Error {
        match unread {
            Unread::Newer(error) | Unread::Otherwise(error) => error,
        }
    }
}

impl Directory {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty())
            .with_context(|| format!("open `{}`", self.path.display()))
    }

    /// A text that no other container has while this directory exists: ` DEVICE:INODE`.
    pub(crate) fn mark(&self) -> Result<String> {
        let there = rustix::fs::lstat(&self.path)
            .with_context(|| format!("look at `{}`", self.path.display()))?;
        Ok(format!(" {:x}:{:x}", there.st_dev, there.st_ino))
    }

    /// Whether the container has not been deleted.
    pub(crate) fn is_there(&self) -> bool {
        self.path.is_dir()
    }

    /// Waits until no other process is making or deleting the container. Returns `None` if that
    /// takes longer than the patience.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Option<OwnedFd>> {
        let lock = self.open()?;
        let end = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(lock)),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error).context("lock the state directory"),
            }
        }
    }

    /// Signals the process that is making or deleting the container. Does nothing if there is none.
    pub(crate) fn signal_holder(&self, signal: Signal) -> Result<()> {
        let Some(holder) = procfs::locker(&self.open()?)? else { return Ok(()) };
        match rustix::process::pidfd_send_signal(&holder, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("signal the process that is creating it"),
        }
    }

    /// Returns `None` if the creation of the container was interrupted.
    pub(crate) fn read(&self) -> Result<Option<State>, Unread> {
        match self.open() {
            Ok(directory) => self.read_in(&directory),
            Err(_) if !self.is_there() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, from the opened directory.
    fn read_in(&self, directory: &OwnedFd) -> Result<Option<State>, Unread> {
        let read = || -> Result<Option<State>, Unread> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = match rustix::fs::openat(directory, STATE, flags, Mode::empty()) {
                Ok(file) => fs::File::from(file),
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(Error::from(error).into()),
            };
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(Error::from)?;
            parse(&text).map(Some)
        };
        read().map_err(|error| error.context(format!("read `{}`", self.path.join(STATE).display())))
    }

    pub(crate) fn write(&self, state: &State) -> Result<()> {
        self.draft(state)?.publish()
    }

    /// Writes a state that no process sees until it is published.
    pub(crate) fn draft(&self, state: &State) -> Result<Draft> {
        let path = self.path.join(STATE);
        let write = || -> Result<Draft> {
            let text = serde_json::to_vec(state)?;
            Draft::write_in(self.open()?, path.clone(), &text, FOR_ITS_OWNER.as_raw_mode())
        };
        write().with_context(|| format!("write `{}`", path.display()))
    }

    /// Writes the configuration of a container that has no state yet. So no process reads a part
    /// of it.
    pub(crate) fn write_config(&self, config: &[u8]) -> Result<()> {
        let path = self.path.join(CONFIG);
        let write = || -> Result<()> {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(self.open()?, CONFIG, flags, FOR_ITS_OWNER)?;
            Ok(fs::File::from(file).write_all(config)?)
        };
        write().with_context(|| format!("write `{}`", path.display()))
    }

    /// The configuration at the time of `create`. Returns `None` if the file is missing or cannot
    /// be parsed.
    pub(crate) fn config(&self) -> Option<Spec> {
        let (spec, _) = crate::bundle::spec(&fs::read(self.path.join(CONFIG)).ok()?).ok()?;
        Some(spec)
    }

    pub(crate) fn start_fifo(&self) -> PathBuf {
        self.path.join("start")
    }

    /// The container sees one thing of this directory: the socket for its readiness message.
    pub(crate) fn notify_folder(&self) -> PathBuf {
        self.path.join("notify")
    }

    /// The directory with which `restore` covers a file of the checkpoint. CRIU finds it there
    /// while it restores a container.
    pub(crate) fn cover_folder(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Makes the directory that is a restored container's root for a while, in a mount namespace
    /// that no other process sees. With a user namespace, CRIU reaches it by name as the
    /// container's root, so others must be able to pass.
    pub(crate) fn make_root_folder(&self, others_pass: bool) -> Result<PathBuf> {
        let path = self.path.join("root");
        DirBuilder::new()
            .mode(if others_pass { 0o711 } else { 0o700 })
            .create(&path)
            .with_context(|| format!("make `{}`", path.display()))?;
        if others_pass {
            // The root of the state stays passable: another restore may require that, and the
            // containers' directories are closed.
            for path in self.path.parent().into_iter().chain([self.path.as_path()]) {
                self.set_passable(path, true)?;
            }
        }
        // CRIU requires a path without symbolic links.
        path.canonicalize().with_context(|| format!("find `{}`", path.display()))
    }

    /// After a restore, others no longer have to pass.
    pub(crate) fn close(&self) -> Result<()> {
        self.set_passable(&self.path, false)
    }

    /// Lets others search a directory by name, or forbids it.
    fn set_passable(&self, path: &Path, passable: bool) -> Result<()> {
        const SEARCH: u32 = 0o011;
        let change = || -> Result<()> {
            let mode = fs::metadata(path)?.permissions().mode();
            let wanted = if passable { mode | SEARCH } else { mode & !SEARCH };
            if wanted != mode {
                fs::set_permissions(path, fs::Permissions::from_mode(wanted & 0o7777))?;
            }
            Ok(())
        };
        change().with_context(|| format!("set the mode of `{}`", path.display()))
    }

    pub(crate) fn make_start_fifo(&self) -> Result<()> {
        rustix::fs::mknodat(CWD, self.start_fifo(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .with_context(|| format!("make fifo `{}`", self.start_fifo().display()))
    }

    /// Removes the directory. This is the last step of a deletion: until then, the name is taken.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove `{}`", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn parse(text: &[u8]) -> Result<State, Unread> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    // Reads the version first, because a later format may not parse as this one.
    let version = serde_json::from_slice::<Version>(text).map_err(Error::from)?.version;
    if version > VERSION {
        return Err(Unread::Newer(anyhow!(
            "format {version} was written by a newer rt; this one knows up to {VERSION}"
        )));
    }
    Ok(serde_json::from_slice(text).map_err(Error::from)?)
}

/// A stored state, for tests of functions that read one.
#[cfg(test)]
pub(crate) fn sample() -> Vec<u8> {
    let cgroup = serde_json::json!({ "manager": "cgroupfs", "version": "v2", "paths": ["/sys/fs/cgroup/x"] });
    let cgroup = serde_json::from_value(cgroup).expect("a cgroup");
    let state = State::new("c", "1.0.2", Path::new("/b"), Path::new("/b/rootfs"), cgroup);
    serde_json::to_vec(&state).expect("a state")
}

/// runc's rule for names.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    // A name becomes a file name, which has at most 255 bytes.
    let good =
        !id.is_empty() && id.len() <= 255 && id.chars().all(allowed) && !matches!(id, "." | "..");
    ensure!(
        good,
        "invalid container ID format: 1 to 255 letters, digits and `_+-.`, not `.` or `..`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_name() {
        for id in ["c", "a-b_c+d.e", ".x", "0", &"x".repeat(255)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "/", "a/b", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn versions_with_one_engine_read_its_name() {
        let stored = |handler: &str| {
            let mut state = parse(&sample()).expect("a state");
            state.set_handler(Some(workload::Handler::from(handler.to_owned())));
            serde_json::to_value(&state).expect("JSON")
        };
        for handler in ["wasm", "wasmtime", "spin"] {
            let text = stored(handler);
            assert_eq!((&text["engine"], &text["handler"]), (&"wasmedge".into(), &handler.into()));
            let state = parse(text.to_string().as_bytes()).expect("a state");
            assert_eq!(state.handler(), Some(workload::Handler::from(handler.to_owned())));
        }
        let mut old = stored("wasm");
        old.as_object_mut().expect("an object").remove("handler");
        old["engine"] = "wasmtime".into();
        let old = parse(old.to_string().as_bytes()).expect("a state").handler();
        assert_eq!(old, Some(workload::Handler::Named("wasmtime".to_owned())));
    }

    #[test]
    fn others_pass_only_to_a_root_that_is_being_restored() {
        let folder = std::env::temp_dir().join(format!("rt-state-{}", std::process::id()));
        let root = Root::new(Some(&folder.join("above/root")));
        let (own, _lock) = root.add("own").expect("a container");
        let (other, _lock) = root.add("other").expect("a container");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
        let modes = || [mode(&root.path), mode(&own.path), mode(&other.path)];
        assert_eq!(modes(), [0o700; 3]);
        other.make_root_folder(false).expect("a folder");
        assert_eq!(modes(), [0o700; 3]);
        let place = own.make_root_folder(true).expect("a folder");
        assert_eq!((modes(), mode(&place)), ([0o711, 0o711, 0o700], 0o711));
        own.close().expect("closed");
        assert_eq!(modes(), [0o711, 0o700, 0o700]);
        fs::remove_dir_all(folder).expect("removed");
    }
}
