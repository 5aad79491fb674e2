//! Control groups: where a container's cgroups are, and how `rt` makes, fills, limits and removes
//! them (`cgroups(7)`).
//!
//! This is our own code, except for most limits of v2. libcgroups parses the mount table of v1 once
//! per controller. It moves a process into its cgroup, although with v2 the process can be born
//! there. It does not remove cgroups below a cgroup. [`systemd`] says why we do not use its systemd
//! manager either.
#![forbid(unsafe_code)]

mod bpf;
mod delegation;
mod devices;
mod modules;
mod oom;
mod ownership;
mod resources;
mod stats;
mod systemd;
mod tree;
mod v1;
mod v2;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::event::PollFlags;
use rustix::fs::{FsWord, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::is_host_root;
use crate::interrupt::is_ready;
use crate::syscall;
pub(crate) use ownership::Held;

/// The maker of the cgroup. The state keeps it, because callers do not repeat it (`delete`,
/// `update`).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Manager {
    Cgroupfs,
    Systemd,
    Disabled,
}

/// The wishes of a container's annotations for its cgroup.
#[derive(Clone, Debug, Default)]
struct Wishes {
    /// `org.systemd.property.*`.
    properties: Vec<systemd::Property>,
    /// `run.oci.systemd.subgroup`.
    subgroup: Option<String>,
    /// `run.oci.delegate-cgroup`.
    delegate: Option<String>,
}

pub(crate) const NONE: &str = "the container has no cgroup of its own";

pub(crate) const SUBGROUP: &str = "run.oci.systemd.subgroup";
pub(crate) const DELEGATE: &str = "run.oci.delegate-cgroup";

/// How this host mounts cgroups.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Version {
    /// One hierarchy per controller, even if a v2 hierarchy is mounted beside them (hybrid).
    V1,
    V2,
}

/// The cgroup of one container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Cgroup {
    pub(crate) manager: Manager,
    pub(crate) version: Version,
    /// `linux.cgroupsPath`, for systemd: `slice:prefix:name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    /// The cgroup's directories: one, or one per hierarchy.
    pub(crate) paths: Vec<PathBuf>,
    /// The cgroup of the container's processes, if they are in a cgroup below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inner: Option<PathBuf>,
    /// The mark of the cgroup's directory, which says that it is this container's. Another
    /// container may get the same path when the cgroup is empty. If the container's state is
    /// damaged, this is only the end of the mark. None if the directory could not be marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    /// The id by which systemd distinguishes this scope from others of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    invocation: Option<String>,
    /// A part of the mark, which no other container has.
    #[serde(skip)]
    name: String,
    /// The wishes of the annotations.
    #[serde(skip)]
    wishes: Wishes,
    /// The directories that this process has made for the cgroup, including those above it. A
    /// failed `create` removes them.
    #[serde(skip)]
    made: Vec<PathBuf>,
    /// Whether the cgroup belongs to this container alone. Only then may a command end the
    /// processes in it.
    #[serde(skip)]
    is_claimed: bool,
    /// The lock of the cgroup, until the runtime process has published the state. With v1 alone,
    /// possibly the locked directory itself.
    #[serde(skip)]
    claim: Option<Rc<OwnedFd>>,
}

pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// From `<linux/magic.h>`.
const CGROUP2_SUPER_MAGIC: FsWord = 0x6367_7270;
const CGROUP_SUPER_MAGIC: FsWord = 0x0027_e0eb;

pub(crate) fn version() -> Result<Version> {
    let root = rustix::fs::statfs(ROOT).with_context(|| format!("find the cgroups at `{ROOT}`"))?;
    Ok(if root.f_type == CGROUP2_SUPER_MAGIC { Version::V2 } else { Version::V1 })
}

/// The roots of the hierarchies of a host with v1.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    v1::hierarchies()
}

/// The controllers of this host, by their names in v2.
pub(crate) fn controllers() -> Vec<String> {
    if version().is_ok_and(|version| version == Version::V2) {
        let text = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
        return text.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    }
    let hierarchies = hierarchies().unwrap_or_default();
    let names = hierarchies.iter().filter_map(|path| path.file_name()?.to_str());
    let named = |name: &str| if name == "blkio" { "io".to_owned() } else { name.to_owned() };
    names.flat_map(|names| names.split(',').map(named).collect::<Vec<_>>()).collect()
}

/// Whether this process may restrict the devices of a v2 cgroup by a program. Loads such a program,
/// and does not attach it.
pub(crate) fn can_filter_devices() -> Result<()> {
    devices::load(&[]).map(drop).context("load a device program")
}

impl Cgroup {
    /// Decides where a container's cgroup shall be. Makes nothing yet.
    pub(crate) fn plan(manager: Manager, path: Option<&Path>, id: &str) -> Result<Cgroup> {
        let version = version()?;
        let mut cgroup = Cgroup {
            manager,
            version,
            unit: None,
            paths: Vec::new(),
            inner: None,
            mark: None,
            invocation: None,
            name: String::new(),
            wishes: Wishes::default(),
            made: Vec::new(),
            is_claimed: false,
            claim: None,
        };
        let path = path.filter(|path| !path.as_os_str().is_empty());
        match manager {
            Manager::Disabled => {}
            Manager::Systemd => {
                if version != Version::V2 || !Path::new("/run/systemd/system").is_dir() {
                    bail!(
                        "cgroups by systemd require a running systemd and cgroup v2: omit `--systemd-cgroup`"
                    );
                }
                let path = path.map(|path| path.to_string_lossy().into_owned());
                let unit = path.unwrap_or_else(|| format!(":rt:{id}"));
                systemd::check(&unit)?;
                cgroup.unit = Some(unit);
            }
            Manager::Cgroupfs => {
                let path = path.map_or_else(|| PathBuf::from(format!("rt-{id}")), Path::to_owned);
                let root =
                    |part: &Component<'_>| matches!(part, Component::RootDir | Component::CurDir);
                let relative: PathBuf = path.components().filter(|part| !root(part)).collect();
                if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
                    bail!("the cgroup path `{}` contains `..`", path.display());
                }
                if relative.as_os_str().is_empty() {
                    bail!(
                        "the cgroup path `{}` is the root, which no container can have",
                        path.display()
                    );
                }
                cgroup.paths = match version {
                    Version::V1 => {
                        v1::hierarchies()?.into_iter().map(|root| root.join(&relative)).collect()
                    }
                    Version::V2 => vec![Path::new(ROOT).join(relative)],
                };
            }
        }
        Ok(cgroup)
    }

    /// Reads the wishes of the annotations. Makes nothing yet.
    pub(crate) fn wish(&mut self, annotations: &BTreeMap<String, String>) -> Result<()> {
        let name = |key: &str| -> Result<Option<String>> {
            let Some(name) = annotations.get(key).filter(|name| !name.is_empty()) else {
                return Ok(None);
            };
            ensure!(
                !name.contains('/') && !matches!(name.as_str(), "." | ".."),
                "the annotation `{key}`: `{name}` is not a cgroup name"
            );
            Ok(Some(name.clone()))
        };
        let delegate = name(DELEGATE)?;
        ensure!(
            delegate.is_none() || self.version == Version::V2 && self.manager != Manager::Disabled,
            "the annotation `{DELEGATE}` is for cgroup v2: handing on cgroups of v1 is not safe"
        );
        let by_systemd = self.manager == Manager::Systemd;
        let properties =
            if by_systemd { systemd::of_annotations(annotations)? } else { Vec::new() };
        let subgroup = name(SUBGROUP)?.filter(|_| by_systemd);
        self.wishes = Wishes { properties, subgroup, delegate };
        Ok(())
    }

    /// For a container whose state is damaged: the cgroup that a container of this id and
    /// configuration must have had, whoever made it. `name` is the name in the mark of its
    /// directory.
    pub(crate) fn guess(path: Option<&Path>, id: &str, name: &str) -> Result<Cgroup> {
        let unit = path.map_or_else(|| format!(":rt:{id}"), |path| path.display().to_string());
        if let Some(path) = systemd::path(&unit).filter(|path| path.is_dir()) {
            let mut cgroup = Cgroup::plan(Manager::Disabled, None, id)?;
            cgroup.manager = Manager::Systemd;
            (cgroup.unit, cgroup.paths, cgroup.mark) =
                (Some(unit), vec![path], Some(name.to_owned()));
            return Ok(cgroup);
        }
        let path = path.filter(|_| !unit.contains(':'));
        Ok(Cgroup { mark: Some(name.to_owned()), ..Cgroup::plan(Manager::Cgroupfs, path, id)? })
    }

    /// If an ordinary user may not make the cgroup, the container goes without one. If the
    /// configuration has limits, this is an error, because nothing would enforce them.
    pub(crate) fn go_without_if_forbidden(
        &mut self,
        limits: Option<&LinuxResources>,
    ) -> Result<()> {
        if self.manager != Manager::Cgroupfs {
            return Ok(());
        }
        let writable = |path: &PathBuf| {
            // The nearest existing directory above the cgroup.
            let mut tried = path
                .ancestors()
                .skip(1)
                .map(|above| rustix::fs::access(above, rustix::fs::Access::WRITE_OK));
            tried.find(|result| *result != Err(Errno::NOENT)) == Some(Ok(()))
        };
        // The other hierarchies have the same rights as the first.
        let Some(path) = self.paths.first().filter(|path| !writable(path)) else { return Ok(()) };
        if is_host_root() {
            // Making the cgroup will fail with the cause.
            return Ok(());
        }
        ensure!(
            !are_limits(limits),
            "limits need a cgroup, and this user may not make `{}`: use `--systemd-cgroup`",
            path.display()
        );
        *self = Cgroup { manager: Manager::Disabled, paths: Vec::new(), ..self.clone() };
        Ok(())
    }

    /// Fails if the cgroup has processes. Such a cgroup belongs to something else, whose processes
    /// would be killed with this container. Makes nothing yet.
    pub(crate) fn refuse_if_in_use(&self) -> Result<()> {
        for path in &self.paths {
            refuse_processes(path)?;
        }
        Ok(())
    }

    /// Claims the cgroup. If it has a v2 directory (on a hybrid host one of several), a process can
    /// be born there (`CLONE_INTO_CGROUP`). That saves the move. Then this function returns the
    /// directory, and the claim lasts until it is closed.
    ///
    /// `name` is the part of the mark that no other container has: see [`ownership::mark`].
    pub(crate) fn make_for_birth(&mut self, name: &str) -> Result<Option<OwnedFd>> {
        name.clone_into(&mut self.name);
        if self.manager != Manager::Cgroupfs {
            return Ok(None);
        }
        let (path, is_birthplace) = self.claimed_path();
        let Some(path) = path.cloned() else { return Ok(None) };
        let (directory, lock) = self.make_and_claim(&path).inspect_err(|refusal| {
            // The cgroup is not this container's, so its deletion must not remove it.
            if let Refusal::Taken(_) = refusal {
                self.made.retain(|made| *made != path);
            }
        })?;
        self.is_claimed = true;
        self.mark = ownership::mark(directory.as_fd(), name)?;
        if is_birthplace {
            ensure!(!v2::is_frozen(directory.as_fd())?, FROZEN);
            self.claim = lock.map(Rc::new);
            return Ok(Some(directory));
        }
        self.claim = Some(Rc::new(lock.unwrap_or(directory)));
        Ok(None)
    }

    /// The cgroup's v2 directory, if it is known. systemd chooses it.
    pub(crate) fn in_second_version(&self) -> Option<&Path> {
        match self.version {
            Version::V2 => self.paths.first(),
            Version::V1 => v1::unified(&self.paths),
        }
        .map(PathBuf::as_path)
    }

    /// The directory that is claimed for the container, and whether a process can be born in it.
    fn claimed_path(&self) -> (Option<&PathBuf>, bool) {
        match self.version {
            Version::V2 => (self.paths.first(), true),
            Version::V1 => match v1::unified(&self.paths) {
                Some(unified) => (Some(unified), true),
                None => (self.process_path(), false),
            },
        }
    }

    /// Ends the claim, when init is in the cgroup. Also called in init before that, because init
    /// inherits the open files of its parent.
    pub(crate) fn leave_claim(&mut self) {
        self.claim = None;
    }

    /// Makes the missing parts of the cgroup and sets its limits. With systemd, the process is in
    /// the cgroup afterwards. Otherwise the process was born in it, or has to [`enter`] by the
    /// returned files.
    pub(crate) fn prepare(
        &mut self,
        pid: Pid,
        resources: Option<&LinuxResources>,
    ) -> Result<Vec<OwnedFd>> {
        match (self.manager, self.version) {
            (Manager::Disabled, _) => {}
            (Manager::Systemd, _) => self.enter_unit(pid, resources)?,
            (Manager::Cgroupfs, Version::V2) => self.limit(resources)?,
            (Manager::Cgroupfs, Version::V1) => {
                for path in &self.paths {
                    v1::make(path, &mut self.made)
                        .with_context(|| format!("make cgroup `{}`", path.display()))?;
                }
                ensure!(!self.is_frozen(), FROZEN);
                self.limit(resources)?;
                return v1::tasks(&self.paths);
            }
        }
        Ok(Vec::new())
    }

    fn enter_unit(&mut self, pid: Pid, resources: Option<&LinuxResources>) -> Result<()> {
        let unit = self.unit.clone().unwrap_or_default();
        let rules = device_rules(resources)?;
        let wishes = &self.wishes.properties;
        let scope = systemd::start(&unit, pid, resources, &rules, wishes);
        // If init has ended meanwhile, the scope exists or is about to, but has no process by which
        // `rt` could find it.
        self.is_claimed = !scope.as_ref().is_err_and(|failure| failure.is_taken);
        self.paths = vec![scope?];
        let directory = open_directory(&self.paths[0])
            .with_context(|| format!("open cgroup `{}`", self.paths[0].display()))?;
        self.mark = ownership::mark(directory.as_fd(), &self.name)?;
        self.invocation = systemd::invocation(directory.as_fd());
        // Sets the limits that systemd does not support, and the exact quota, which systemd rounds.
        self.limit(resources)?;
        if let Some(name) = &self.wishes.subgroup {
            let inner = self.paths[0].join(name);
            delegation::make(&inner)?;
            write(&inner.join("cgroup.procs"), &pid.to_string())?;
            v2::hand_down(&self.paths[0]);
            self.inner = Some(inner);
        }
        Ok(())
    }

    fn limit(&self, resources: Option<&LinuxResources>) -> Result<()> {
        if self.has_device_files() {
            resources::apply_devices_v1(&self.paths, &device_lines(resources)?)?;
        }
        resources.map_or(Ok(()), |resources| self.apply(resources))
    }

    /// Whether a v1 hierarchy has the device rules.
    fn has_device_files(&self) -> bool {
        self.version == Version::V1 && v1::of_controller(&self.paths, "devices").is_some()
    }

    fn apply(&self, resources: &LinuxResources) -> Result<()> {
        match self.version {
            Version::V1 => resources::apply_v1(&self.paths, resources),
            Version::V2 => resources::apply_v2(&self.paths[0], resources),
        }
    }

    /// Whether the container has no cgroup: the caller wanted none, or an ordinary user may not
    /// make one.
    pub(crate) fn has_none(&self) -> bool {
        self.manager == Manager::Disabled || self.paths.is_empty()
    }

    /// Changes limits. Limits that are not in `resources` stay the same. Device rules stay too,
    /// because callers pass the ones that are in force.
    pub(crate) fn update(&self, mut resources: LinuxResources) -> Result<()> {
        resources.set_devices(None);
        ensure!(!self.has_none(), NONE);
        self.refuse_what_is_in_use(&resources)?;
        match self.manager {
            Manager::Disabled | Manager::Cgroupfs => self.apply(&resources),
            Manager::Systemd => {
                resources::complete_v2(&self.paths[0], &mut resources)?;
                self.limit_unit(&resources)
            }
        }
    }

    /// systemd keeps its own copy of the limits, and applies it again when it reloads its
    /// configuration. So systemd gets the limits first. Then `rt` writes the limits that systemd
    /// does not support.
    fn limit_unit(&self, resources: &LinuxResources) -> Result<()> {
        systemd::limit(self.unit.as_deref().unwrap_or_default(), resources)?;
        self.apply(resources)
    }

    /// With `memory.checkBeforeUpdate`: refuses a limit below the current usage, which would get
    /// the container killed.
    fn refuse_what_is_in_use(&self, resources: &LinuxResources) -> Result<()> {
        let Some(memory) = resources.memory() else { return Ok(()) };
        let (Some(true), Some(limit @ 1..)) = (memory.check_before_update(), memory.limit()) else {
            return Ok(());
        };
        let file = match self.version {
            Version::V2 => self.paths.first().map(|path| path.join("memory.current")),
            Version::V1 => v1::of_controller(&self.paths, "memory")
                .map(|path| path.join("memory.usage_in_bytes")),
        };
        let file = file.context("the container has no memory cgroup")?;
        let text =
            fs::read_to_string(&file).with_context(|| format!("read `{}`", file.display()))?;
        let used: i64 = text.trim().parse().context("parse the memory in use")?;
        ensure!(
            used <= limit,
            "the container uses {used} bytes of memory, more than the limit {limit}"
        );
        Ok(())
    }

    /// Fails for device rules that are invalid or could not be enforced, and for properties that
    /// annotations may not replace. Makes nothing yet.
    pub(crate) fn check(&self, resources: Option<&LinuxResources>) -> Result<()> {
        device_rules(resources)?;
        if self.has_device_files() {
            device_lines(resources)?;
        }
        if let Some(resources) = resources {
            systemd::refuse_replaced(&self.wishes.properties, resources)?;
        }
        ensure!(
            self.manager != Manager::Cgroupfs
                || self.version == Version::V2
                || v1::of_controller(&self.paths, "devices").is_some()
                || v1::unified(&self.paths).is_some()
                || !is_host_root(),
            "device rules cannot be enforced: no cgroup controller `devices` is mounted at \
             `{ROOT}/devices`, and no cgroup v2 at `{ROOT}/unified`"
        );
        Ok(())
    }

    /// Fails for limits if the caller wants no cgroup, because nothing would enforce them.
    pub(crate) fn refuse_limits_without(&self, resources: Option<&LinuxResources>) -> Result<()> {
        ensure!(
            self.manager != Manager::Disabled || !are_limits(resources),
            "limits in `linux.resources` need a cgroup, and `--cgroup-manager=disabled` makes none"
        );
        Ok(())
    }

    /// Whether only the capabilities keep the container from the host's devices, although not all
    /// devices are allowed.
    pub(crate) fn leaves_devices_open(&self, resources: Option<&LinuxResources>) -> Result<bool> {
        Ok(self.manager == Manager::Disabled
            && is_host_root()
            && !devices::allow_everything(&device_rules(resources)?))
    }

    /// Whether the kernel may refuse to enforce these rules. It refuses in a user namespace, and to
    /// ordinary users. They cannot make device nodes there, but can use existing ones.
    pub(crate) fn may_lack_device_rules(resources: Option<&LinuxResources>) -> Result<bool> {
        Ok(!is_host_root() && !devices::allow_everything(&device_rules(resources)?))
    }

    /// Attaches the device rules as a program, unless a v1 hierarchy has them among its limits.
    pub(crate) fn filter_devices(&self, resources: Option<&LinuxResources>) -> Result<()> {
        let path = match (self.manager, self.version) {
            (Manager::Disabled, _) => None,
            (_, Version::V2) => self.paths.first(),
            (_, Version::V1) if v1::of_controller(&self.paths, "devices").is_some() => None,
            // The kernel runs programs in both versions, whichever has the controller.
            (_, Version::V1) => v1::unified(&self.paths),
        };
        let Some(path) = path else { return Ok(()) };
        let cgroup =
            open_directory(path).with_context(|| format!("open cgroup `{}`", path.display()))?;
        devices::attach(cgroup.as_fd(), &device_rules(resources)?)
    }

    /// Whether the freezer has stopped the cgroup. A missing cgroup is not frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        match self.version {
            Version::V2 => self
                .paths
                .first()
                .is_some_and(|path| read(path.join("cgroup.freeze")).trim() == "1"),
            Version::V1 => v1::of_controller(&self.paths, "freezer").is_some_and(|path| {
                matches!(read(path.join("freezer.state")).trim(), "FROZEN" | "FREEZING")
            }),
        }
    }

    /// Freezes all processes, and waits until the kernel has done so.
    pub(crate) fn freeze(&self) -> Result<()> {
        ensure!(!self.has_none(), NONE);
        let frozen = match self.version {
            Version::V2 => v2::freeze(&self.paths[0], true),
            Version::V1 => v1::freeze(self.freezer()?),
        };
        // A failure must not leave the cgroup half frozen.
        frozen.inspect_err(|_| self.thaw())
    }

    pub(crate) fn unfreeze(&self) -> Result<()> {
        ensure!(!self.has_none(), NONE);
        match self.version {
            Version::V2 => v2::freeze(&self.paths[0], false),
            Version::V1 => Ok(write(&self.freezer()?.join("freezer.state"), "THAWED")?),
        }
    }

    /// The directory whose freezer stops all processes of the cgroup.
    pub(crate) fn freezer_directory(&self) -> Option<&PathBuf> {
        match self.version {
            Version::V2 => self.paths.first(),
            Version::V1 => v1::of_controller(&self.paths, "freezer"),
        }
    }

    fn freezer(&self) -> Result<&PathBuf> {
        v1::of_controller(&self.paths, "freezer")
            .context("this host has no cgroup controller `freezer`")
    }

    /// Thaws frozen processes, so that they can receive a signal: v1 does not even deliver SIGKILL
    /// to them. With v1, a container that may write to its cgroup can also have frozen a cgroup
    /// below. Such a cgroup stays frozen when those above are thawed.
    pub(crate) fn thaw(&self) {
        // If thawing fails, the wait for the processes will notice it.
        match self.version {
            Version::V2 => {
                if let Some(path) = self.paths.first() {
                    let _ = fs::write(path.join("cgroup.freeze"), "0");
                }
            }
            Version::V1 => {
                if let Some(path) = v1::of_controller(&self.paths, "freezer") {
                    let _ = tree::thaw(path);
                }
            }
        }
    }

    /// The directories that the first process is in.
    pub(crate) fn of_init(&self) -> &[PathBuf] {
        self.inner.as_ref().map_or(&self.paths, std::slice::from_ref)
    }

    /// The rest of the memory limit for one more process: the limit without the memory that the
    /// cgroup's processes use and cannot give back.
    pub(crate) fn memory_left(&self) -> Option<u64> {
        let limit = self.memory_limit()?;
        // Read for each process, because the cgroup's own count is seconds late (`memory.stat`). In
        // kB (proc_pid_status(5)).
        let used = |pid: Pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        let used = self
            .processes()
            .unwrap_or_default()
            .into_iter()
            .map(|pid| used(pid).unwrap_or(0).saturating_mul(1024).saturating_add(KERNELS));
        Some(limit.saturating_sub(used.fold(0, u64::saturating_add)))
    }

    /// The lowest memory limit that applies to the cgroup, its own or that of a cgroup above, in
    /// bytes.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        if self.version == Version::V1 {
            // Page-aligned, and near the largest number if there is no limit (kernel documentation,
            // `cgroup-v1/memory.rst`).
            let stat = v1::of_controller(&self.paths, "memory")?.join("memory.stat");
            let stat = fs::read_to_string(stat).ok()?;
            let mut lines = stat.lines();
            let limit = lines.find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
            return limit.parse().ok().filter(|limit| *limit < 1 << 62);
        }
        let limit = |path: &Path| {
            fs::read_to_string(path.join("memory.max")).ok()?.trim().parse::<u64>().ok()
        };
        let above = self.of_init().first()?.ancestors();
        above.take_while(|path| path.starts_with(ROOT)).filter_map(limit).min()
    }

    /// All processes in the cgroup and below it.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        self.process_path().map_or_else(|| Ok(Vec::new()), |path| tree::processes(path))
    }

    /// The directory that lists the processes. With v1, any hierarchy works.
    fn process_path(&self) -> Option<&PathBuf> {
        match self.version {
            Version::V1 => v1::of_controller(&self.paths, "pids").or(self.paths.first()),
            Version::V2 => self.paths.first(),
        }
    }

    /// Sends a signal to all processes in the cgroup and below it.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL && self.version == Version::V2 && self.kill()? {
            return Ok(());
        }
        // A frozen process neither forks nor ends, so no other process can get its pid until it has
        // received the signal.
        let held = !self.is_frozen() && self.freeze().is_ok();
        let signalled = self.signal_one_by_one(signal);
        if held {
            self.thaw();
        }
        signalled
    }

    /// Kills all processes in the cgroup and below it in one step, so that no process can fork
    /// meanwhile (Linux 5.14). Returns false if the kernel cannot: it is older, or the cgroup is
    /// threaded.
    fn kill(&self) -> Result<bool> {
        let Some(path) = self.paths.first().map(|path| path.join("cgroup.kill")) else {
            return Ok(false);
        };
        match fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(b"1")) {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| format!("write `1` to `{}`", path.display())),
        }
    }

    /// If nothing could be frozen, a process that is forked between two passes is found by the next
    /// pass. The last pass is the one that finds no new process.
    fn signal_one_by_one(&self, signal: i32) -> Result<()> {
        let end = Instant::now() + SIGNALLING;
        let mut signalled = HashSet::new();
        loop {
            let fresh: Vec<Pid> =
                self.processes()?.into_iter().filter(|pid| !signalled.contains(pid)).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "send signal {signal}: its processes fork faster than rt can signal them"
            );
            for pid in fresh {
                match syscall::kill(pid, signal) {
                    Ok(()) | Err(Errno::SRCH) => signalled.insert(pid),
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("send signal {signal} to process {pid}"));
                    }
                };
            }
        }
    }

    /// Moves a process into this process's own cgroup, so that the container's limit of processes
    /// no longer counts it. With v1, only in the hierarchy of the `pids` controller.
    pub(crate) fn take_out(&self, pid: Pid) -> Result<()> {
        let (path, controller) = match self.version {
            Version::V2 => (self.paths.first(), ""),
            Version::V1 => (v1::of_controller(&self.paths, "pids"), "pids"),
        };
        let Some(path) = path.filter(|_| self.manager != Manager::Disabled) else { return Ok(()) };
        let table = fs::read_to_string("/proc/self/cgroup").context("read the own cgroup")?;
        let own = table.lines().find_map(|line| {
            let (controllers, own) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == controller).then_some(own)
        });
        let own = own.context("no cgroup of its own")?.trim_start_matches('/');
        // With v1, each hierarchy has a directory in the root.
        let depth = Path::new(ROOT).components().count() + usize::from(!controller.is_empty());
        let root: PathBuf = path.components().take(depth).collect();
        let file = root.join(own).join("cgroup.procs");
        write(&file, &pid.to_string()).with_context(|| format!("write to `{}`", file.display()))
    }

    /// Sets limits in the cgroup if it existed before: [`Cgroup::undo`] does not remove it.
    pub(crate) fn limit_what_stays(&self, resources: Option<&LinuxResources>) -> Result<()> {
        let stays = self.paths.iter().any(|path| !self.made.contains(path));
        let Some(resources) = resources.filter(|_| stays && self.is_claimed) else { return Ok(()) };
        if self.manager != Manager::Cgroupfs {
            return Ok(());
        }
        self.apply(resources).context("limit the cgroup that was there before")
    }

    /// Removes the cgroups that this process has made for a failed `create`. Cgroups that existed
    /// before stay.
    pub(crate) fn undo(&self) -> Result<()> {
        let by_systemd = self.manager == Manager::Systemd;
        // If the scope of that name was not made for this container, it is another container's.
        if self.is_claimed
            && let Some(held) = self.hold(&|| Ok(false))?
        {
            held.remove_those(|path| by_systemd || self.made.contains(path))?;
        }
        for above in self.made.iter().rev() {
            // Another container may be using it by now.
            let _ = fs::remove_dir(above);
        }
        Ok(())
    }

    /// Removes the cgroup if it has no processes. For a `create` that was cut short: the
    /// container's own process ends with its maker. A process that stays is another container's,
    /// which has the same path.
    pub(crate) fn remove_unused(&self) -> Result<()> {
        if let (Manager::Systemd, Some(unit)) = (self.manager, &self.unit) {
            systemd::stop_when_empty(unit, true);
            return Ok(());
        }
        self.refuse_roots()?;
        // A `create` that is using this cgroup may have no process in it yet.
        let Some(_kept) = self.keep_out()? else { return Ok(()) };
        for path in &self.paths {
            if !tree::becomes_empty(path)? {
                return Ok(());
            }
        }
        self.claimed_last().try_for_each(|path| tree::remove(path, &mut || Ok(true)))
    }

    /// Whatever a state file says, a hierarchy's root is never a container's cgroup.
    fn refuse_roots(&self) -> Result<()> {
        for path in &self.paths {
            let depth = path.strip_prefix(ROOT).map_or(0, |path| path.components().count());
            let shallowest = if self.version == Version::V2 { 1 } else { 2 };
            ensure!(depth >= shallowest, "`{}` is not a container's cgroup", path.display());
        }
        Ok(())
    }

    /// Kills all processes in the cgroup and below it, and thaws them so that they can die.
    fn end_processes(&self) -> Result<()> {
        if self.version == Version::V1 && self.processes()?.is_empty() {
            return Ok(());
        }
        let killed = self.signal(libc::SIGKILL);
        self.thaw();
        killed
    }
}

/// Whether there are limits besides device rules.
fn are_limits(limits: Option<&LinuxResources>) -> bool {
    let Some(mut limits) = limits.cloned() else { return false };
    limits.set_devices(None);
    !serde_json::to_value(limits).is_ok_and(|json| json == serde_json::json!({}))
}

/// Without rules of the configuration, a container has the default devices, as with runc.
fn device_rules(resources: Option<&LinuxResources>) -> Result<Vec<devices::Rule>> {
    devices::rules(configured_devices(resources))
}

fn device_lines(resources: Option<&LinuxResources>) -> Result<Vec<devices::Rule>> {
    devices::for_files(configured_devices(resources))
}

fn configured_devices(resources: Option<&LinuxResources>) -> &[LinuxDeviceCgroup] {
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}

/// The ways into a cgroup for a new process: by birth in it, and by the `tasks` files for
/// [`enter`].
#[derive(Debug, Default)]
pub(crate) struct Doors {
    pub(crate) birthplace: Option<OwnedFd>,
    pub(crate) tasks: Vec<OwnedFd>,
    pub(crate) freezers: Freezers,
}

/// The files that tell whether the processes of a cgroup are frozen: its own, and with v2 those of
/// all cgroups above it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Freezers(Vec<PathBuf>);

impl Freezers {
    fn of(version: Version, paths: &[PathBuf]) -> Freezers {
        let (v1, v2) = match version {
            Version::V2 => (None, paths.first()),
            Version::V1 => (v1::of_controller(paths, "freezer"), v1::unified(paths)),
        };
        let above = v2.into_iter().flat_map(|path| path.ancestors());
        let above = above.take_while(|path| path.starts_with(ROOT));
        let files = above.map(|path| path.join("cgroup.freeze"));
        Freezers(files.chain(v1.map(|path| path.join("freezer.state"))).collect())
    }

    /// A missing cgroup, and the kernel's root cgroup, are not frozen.
    pub(crate) fn are_closed(&self) -> bool {
        let frozen = |file: &PathBuf| {
            let text = fs::read_to_string(file).unwrap_or_default();
            matches!(text.trim(), "1" | "FROZEN" | "FREEZING")
        };
        self.0.iter().any(frozen)
    }
}

impl Cgroup {
    /// The ways into the cgroup, or into cgroups below it, for a process that joins the container.
    /// `below` is the argument of `exec --cgroup`: a path, or with v1
    /// `CONTROLLER[,CONTROLLER]:PATH` for some hierarchies. A path without controllers is for all
    /// others.
    pub(crate) fn doors(&self, below: &[PathBuf]) -> Result<Doors> {
        if let ([], Some(inner)) = (below, &self.inner) {
            return self.open_doors(std::slice::from_ref(inner));
        }
        let mut paths: Vec<Option<PathBuf>> = vec![None; self.paths.len()];
        let mut everywhere = None;
        for given in below {
            let text = given.to_str().unwrap_or_default();
            let (controllers, path) = match text.split_once(':') {
                Some((controllers, path)) => (Some(controllers), Path::new(path)),
                None => (None, given.as_path()),
            };
            let show = || format!("`--cgroup` `{}`", given.display());
            let path = path.strip_prefix("/").unwrap_or(path);
            let stays = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            ensure!(
                path.components().all(stays),
                "{}: it leads out of the container's cgroup",
                show()
            );
            let Some(controllers) = controllers else {
                ensure!(everywhere.is_none(), "{}: there is another one already", show());
                everywhere = Some(path);
                continue;
            };
            ensure!(
                self.version == Version::V1 && self.manager != Manager::Disabled,
                "{}: cgroup v2 has no hierarchies of controllers",
                show()
            );
            for controller in controllers.split(',') {
                let name = controller.strip_prefix("name=").unwrap_or(controller);
                let own = v1::of_controller(&self.paths, name);
                let at = own.and_then(|own| self.paths.iter().position(|path| path == own));
                let at = at.with_context(|| {
                    format!("{}: the container has no cgroup of `{controller}`", show())
                })?;
                let place = self.paths[at].join(path);
                ensure!(
                    paths[at].as_ref().is_none_or(|there| *there == place),
                    "{}: `{controller}` has another one already",
                    show()
                );
                paths[at] = Some(place);
            }
        }
        let everywhere = everywhere.unwrap_or(Path::new(""));
        let paths = paths.into_iter().zip(&self.paths);
        let paths: Vec<_> =
            paths.map(|(path, own)| path.unwrap_or_else(|| own.join(everywhere))).collect();
        self.open_doors(&paths)
    }

    /// The ways into the cgroup that a process is in now.
    pub(crate) fn doors_of(&self, pid: i32) -> Result<Doors> {
        let file = format!("/proc/{pid}/cgroup");
        let table = fs::read_to_string(&file).with_context(|| format!("read `{file}`"))?;
        let path = table.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.with_context(|| format!("`{file}` does not name a cgroup of v2"))?;
        let path = Path::new(ROOT).join(path);
        // The container's first process controls this path.
        ensure!(
            self.paths.first().is_some_and(|own| path.starts_with(own)),
            "the container's first process has left its cgroup for `{}`",
            path.display()
        );
        self.open_doors(&[path])
    }

    fn open_doors(&self, paths: &[PathBuf]) -> Result<Doors> {
        let (birthplace, tasks) = match (self.manager, self.version) {
            (Manager::Disabled, _) => (None, Vec::new()),
            (_, Version::V2) => (paths.first(), Vec::new()),
            (_, Version::V1) => (v1::unified(paths), v1::tasks(paths)?),
        };
        let open = |path: &PathBuf| {
            open_directory(path).with_context(|| format!("open cgroup `{}`", path.display()))
        };
        let freezers = Freezers::of(self.version, paths);
        Ok(Doors { birthplace: birthplace.map(open).transpose()?, tasks, freezers })
    }

    /// The files that tell whether the cgroup's processes are frozen.
    pub(crate) fn freezers(&self) -> Freezers {
        Freezers::of(self.version, &self.paths)
    }

    /// Ends the children of this process that are in the cgroup: processes that were only half
    /// made.
    pub(crate) fn end_children(&self) -> Result<()> {
        let own = i32::try_from(std::process::id())?;
        for path in &self.paths {
            for pid in tree::processes(path)? {
                let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                    continue;
                };
                if crate::procfs::parent(pid)? == Some(own) {
                    end(pid, pidfd.as_fd());
                }
            }
        }
        Ok(())
    }
}

/// How long a killed process may take to die before `rt` looks for a reason, and how long in all.
const DYING: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills a child that is not needed any more, in any state, and reaps it. A child in a call to the
/// kernel that does not return cannot die. Its next parent has to reap it.
pub(crate) fn end(pid: Pid, pidfd: BorrowedFd<'_>) {
    let _ = syscall::pidfd_send_signal(pidfd, libc::SIGKILL);
    let dies = |limit| is_ready(pidfd, PollFlags::IN, limit).unwrap_or(false);
    if !dies(DYING) {
        // v1 does not even deliver SIGKILL to a frozen process.
        if let Err(error) = take_out_of_freezer(pid) {
            tracing::debug!("take process {pid} out of the freezer: {error:#}");
        }
        if !dies(PATIENCE) {
            return;
        }
    }
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
}

/// A short extended attribute of a cgroup's directory.
fn attribute(directory: BorrowedFd<'_>, name: &str) -> Option<String> {
    let mut text = [0; 64];
    let length = rustix::fs::fgetxattr(directory, name, &mut text[..]).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// Moves a process out of the freezer of v1, which would not let it die.
pub(crate) fn take_out_of_freezer(pid: Pid) -> Result<()> {
    Ok(write(&Path::new(ROOT).join("freezer/cgroup.procs"), &pid.to_string())?)
}

/// Moves this process, which must have one thread only, into the cgroup of this `tasks` file. Runs
/// in init.
///
/// In `tasks`, 0 means the writing thread. The kernel moves this thread without taking the lock
/// that keeps a process's threads from changing. That lock waits for an RCU grace period, 10 ms and
/// more (`cgroup_procs_write_start`, Linux 5.4).
pub(crate) fn enter(tasks: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::write(tasks, b"0").map(drop)
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The kernel's own memory for one process, in bytes: stack, page tables, descriptors. Measured:
/// 200 kB.
const KERNELS: u64 = 512 << 10;

/// How long sending a signal to all of a container's processes may take.
const SIGNALLING: Duration = Duration::from_secs(10);

/// How long the freezer may take.
const FREEZING: Duration = Duration::from_secs(2);

/// runc's wording. A process would stop in this cgroup, and nothing would thaw it.
const FROZEN: &str = "container's cgroup unexpectedly frozen";

/// Why a cgroup cannot be this container's.
enum Refusal {
    /// It belongs to another container or user.
    Taken(String),
    Otherwise(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Otherwise(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Taken(why) => Error::msg(why),
            Refusal::Otherwise(error) => error,
        }
    }
}

/// Fails if the file belongs to another user.
fn refuse_others(file: BorrowedFd<'_>, path: &Path) -> Result<(), Refusal> {
    let owner =
        rustix::fs::fstat(file).with_context(|| format!("look at `{}`", path.display()))?.st_uid;
    if owner != rustix::process::geteuid().as_raw() {
        return Err(Refusal::Taken(format!(
            "the cgroup `{}` belongs to user {owner}, who could freeze and kill the container",
            path.display()
        )));
    }
    Ok(())
}

/// Fails if processes are in a cgroup or below it.
fn refuse_processes(path: &Path) -> Result<(), Refusal> {
    let count = tree::count(path)?;
    if count > 0 {
        return Err(Refusal::Taken(format!(
            "the cgroup `{}` is not empty: {count} processes are in it",
            path.display()
        )));
    }
    Ok(())
}

/// A cgroup file requires a value in one `write(2)`.
fn write(path: &Path, value: &str) -> Result<(), Failure> {
    let result = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    result.map_err(|error| {
        // The error has a number, unless the kernel has accepted only a part of the value.
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Failure::new(errno, format!("write `{value}` to `{}`", path.display()))
    })
}

#[cfg(test)]
pub(crate) mod fuzzed {
    use super::*;

    pub(crate) use systemd::fuzzed::{hear, message};

    pub(crate) fn cgroup(
        path: Option<&Path>,
        resources: Option<&LinuxResources>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<()> {
        for manager in [Manager::Cgroupfs, Manager::Systemd] {
            let mut cgroup = Cgroup::plan(Manager::Disabled, None, "c")?;
            cgroup.manager = manager;
            cgroup.version = Version::V2;
            let _ = cgroup.wish(annotations);
        }
        let _ = Cgroup::plan(Manager::Cgroupfs, path, "c");
        let _ = Cgroup::guess(path, "c", " 0:0");
        let Some(resources) = resources else { return Ok(()) };
        let rules = device_rules(Some(resources))?;
        let _ = devices::understand(&rules);
        systemd::fuzzed::limits(resources, &rules);
        resources::understand(resources)
    }
}
