//! The privileges of processes that come from a checkpoint, or go into one: no more than the
//! configuration says.
//!
//! CRIU takes credentials, filters, labels and namespaces from the images, and does not know the
//! configuration. So a restore compares every process with the configuration, when each process has
//! its credentials and none runs yet. A checkpoint does so too, while all processes are stopped and
//! none has ended. So it does not end a container that could not be made again.
//!
//! The images alone decide which filters are loaded (but not whether a filter is loaded), the users
//! and groups, and the open files of the processes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::bundle::Bundle;
use crate::linux::namespaces::{self, Namespaces};
use crate::linux::process;
use crate::linux::seccomp;
use crate::state::State;

/// The privileges that a configuration allows.
#[derive(Debug)]
pub(in crate::container) struct Limits<'a> {
    bundle: &'a Bundle,
    /// The most for the bounding set.
    bounding: CapabilitySet,
    /// The most for the other sets: an inheritable capability need not be in the bounding set
    /// (`capabilities(7)`).
    all: CapabilitySet,
    no_new_privileges: bool,
    filtered: bool,
    label: Option<Label>,
    withholds_devices: bool,
}

#[derive(Debug)]
enum Label {
    Selinux(String),
    Apparmor(String),
}

impl<'a> Limits<'a> {
    /// `profile` is the value of `--lsm-profile`, which replaces the configuration's label.
    pub(in crate::container) fn new(
        bundle: &'a Bundle,
        state: &State,
        profile: Option<&str>,
    ) -> Result<Self> {
        let process = bundle.process();
        let sets = process.capabilities().as_ref();
        let mut bounding = process::set(sets.and_then(|sets| sets.bounding().as_ref()))?;
        let mut all = bounding | process::set(sets.and_then(|sets| sets.inheritable().as_ref()))?;
        let withholds_devices =
            state.cgroup.leaves_devices_open(bundle.linux().resources().as_ref())?;
        if withholds_devices {
            bounding -= CapabilitySet::MKNOD;
            all -= CapabilitySet::MKNOD;
        }
        let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let label = match profile.and_then(|profile| profile.split_once(':')) {
            Some(("selinux", label)) => Some(Label::Selinux(label.to_owned())),
            Some(("apparmor", profile)) => Some(Label::Apparmor(profile.to_owned())),
            _ => match said(process.selinux_label()) {
                Some(label) => Some(Label::Selinux(label)),
                None => said(process.apparmor_profile()).map(Label::Apparmor),
            },
        };
        Ok(Limits {
            bundle,
            bounding,
            all,
            no_new_privileges: process.no_new_privileges() == Some(true),
            filtered: seccomp::is_asked_for(&bundle.spec),
            label,
            withholds_devices,
        })
    }

    /// Whether only capabilities and mounts keep the container from the host's devices.
    pub(in crate::container) fn withholds_devices(&self) -> bool {
        self.withholds_devices
    }

    /// Whether a process of the container can get this capability.
    pub(in crate::container) fn gives(&self, capability: CapabilitySet) -> bool {
        self.bounding.contains(capability)
    }

    /// Whether the container has a namespace of this kind that is not the host's.
    pub(in crate::container) fn wants_namespace(&self, kind: LinuxNamespaceType) -> bool {
        let spec = &self.bundle.spec;
        namespace_kinds(spec).any(|there| there == kind)
            && !joins_the_runtimes(spec, kind, namespaces::namespace_file(kind))
    }

    /// Whether the container has made its pid namespace.
    pub(in crate::container) fn has_own_pids(&self) -> bool {
        let (spec, pids) = (&self.bundle.spec, LinuxNamespaceType::Pid);
        namespace_kinds(spec).any(|there| there == pids) && joined(spec, pids).is_none()
    }

    pub(in crate::container) fn has_user_namespace(&self) -> bool {
        namespace_kinds(&self.bundle.spec).any(|kind| kind == LinuxNamespaceType::User)
    }

    /// Compares stopped processes with the configuration. One of them is the first process.
    /// `joined` are the namespaces that a restore has joined.
    pub(in crate::container) fn check(
        &self,
        first: i32,
        processes: &[i32],
        joined: Option<&Namespaces>,
    ) -> Result<()> {
        self.check_user_namespace(first)?;
        if let Some(joined) = joined {
            self.check_joined(first, joined)?;
        }
        // In another mount namespace, nothing is masked, and no mount must match the configuration.
        // Making such a namespace requires this capability.
        if !self.gives(CapabilitySet::SYS_ADMIN)
            && let Some(thread) = other_mount_namespaces(first, processes)?.first()
        {
            bail!(
                "{}: it is in another mount namespace than the first process, and the container cannot make one without CAP_SYS_ADMIN",
                show(thread)
            );
        }
        for pid in processes {
            let show = || show(Path::new(&format!("/proc/{pid}")));
            for thread in threads(*pid).with_context(show)? {
                self.check_thread(first, &thread).with_context(show)?;
            }
        }
        Ok(())
    }

    fn check_thread(&self, first: i32, thread: &Path) -> Result<()> {
        let status = Status::read(thread)?;
        if status.has_ended()? {
            return Ok(());
        }
        for (name, most) in [
            ("CapBnd", self.bounding),
            ("CapPrm", self.all),
            ("CapEff", self.all),
            ("CapInh", self.all),
            ("CapAmb", self.all),
        ] {
            let text = status.field(name)?;
            let has = u64::from_str_radix(text, 16)
                .with_context(|| format!("`{text}` is not a set of capabilities"))?;
            let over = CapabilitySet::from_bits_retain(has) - most;
            ensure!(
                over.is_empty(),
                "it has capabilities that `process.capabilities` lacks ({name}: {}), as by `exec --cap`",
                names(over)
            );
        }
        ensure!(
            !self.no_new_privileges || status.field("NoNewPrivs")? == "1",
            "it can get new privileges, which `process.noNewPrivileges` forbids"
        );
        ensure!(
            !self.filtered || status.field("Seccomp")? == "2",
            "it has no seccomp filter, which `linux.seccomp` asks for"
        );
        self.check_label(thread)?;
        // Capabilities count in the process's user namespace. In one of its own, the process would
        // have all of them.
        let user = |process: &Path| fs::read_link(process.join("ns/user"));
        ensure!(
            user(thread)? == user(&PathBuf::from(format!("/proc/{first}")))?,
            "it is in another user namespace than the first process"
        );
        for kind in namespace_kinds(&self.bundle.spec) {
            let (file, name) = (namespaces::namespace_file(kind), namespaces::name_of(kind));
            let joins_the_runtimes = joins_the_runtimes(&self.bundle.spec, kind, file);
            ensure!(
                joins_the_runtimes
                    || fs::read_link(thread.join("ns").join(file))? != own_namespace(file)?,
                "it is in the host's {name} namespace, and `linux.namespaces` asks for another"
            );
        }
        Ok(())
    }

    fn check_label(&self, thread: &Path) -> Result<()> {
        let read = |files: &[&str]| -> Result<String> {
            let read = |file: &&str| fs::read_to_string(thread.join("attr").join(file));
            let text = files.iter().map(read).find(Result::is_ok);
            let text = text.context("its security label cannot be read")??;
            Ok(text.trim_end_matches(['\0', '\n']).to_owned())
        };
        let (has, wanted, good) = match &self.label {
            None => return Ok(()),
            Some(Label::Selinux(label)) => {
                let has = read(&["current"])?;
                let good = has == *label;
                (has, label, good)
            }
            Some(Label::Apparmor(profile)) => {
                let has = read(&["apparmor/current", "current"])?;
                // `PROFILE (MODE)`. A profile may have other profiles for programs that it starts
                // (`PROFILE//CHILD`).
                let name = has.split(" (").next().unwrap_or_default();
                let rest = name.strip_prefix(profile.as_str());
                let good = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("//"))
                    || profile == "unconfined";
                (has, profile, good)
            }
        };
        ensure!(good, "its security label is `{}`, not `{wanted}`", has.escape_debug());
        Ok(())
    }

    /// Checks the user namespace of the first process. All other processes share it.
    fn check_user_namespace(&self, first: i32) -> Result<()> {
        if !self.has_user_namespace() {
            let own = fs::read_link(format!("/proc/{first}/ns/user"))? == own_namespace("user")?;
            ensure!(own, "it has a user namespace, and `linux.namespaces` has none");
            return Ok(());
        }
        let read = |file: &str| -> Result<BTreeSet<[u32; 3]>> {
            let path = format!("/proc/{first}/{file}");
            let map = fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
            let row = |line: &str| {
                let numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
                let numbers = numbers.collect::<std::result::Result<Vec<_>, _>>().ok();
                let row = numbers.and_then(|numbers| <[u32; 3]>::try_from(numbers).ok());
                row.with_context(|| format!("read `{path}`: `{line}`"))
            };
            map.lines().map(row).collect()
        };
        self.check_mappings(&[read("uid_map")?, read("gid_map")?])
    }

    /// Compares the mappings of a user namespace with the configuration: those for users, and those
    /// for groups. A mapping is the first id in the container, the first one outside, and their
    /// number.
    pub(in crate::container) fn check_mappings(
        &self,
        there: &[BTreeSet<[u32; 3]>; 2],
    ) -> Result<()> {
        let linux = self.bundle.linux();
        let wanted = [("uid_map", linux.uid_mappings()), ("gid_map", linux.gid_mappings())];
        for ((file, mappings), there) in wanted.into_iter().zip(there) {
            let row = |mapping: &LinuxIdMapping| {
                [mapping.container_id(), mapping.host_id(), mapping.size()]
            };
            let wanted: BTreeSet<[u32; 3]> = mappings.iter().flatten().map(row).collect();
            ensure!(*there == wanted, "its `{file}` is not the mapping that the configuration has");
        }
        Ok(())
    }

    fn check_joined(&self, first: i32, joined: &Namespaces) -> Result<()> {
        for kind in namespace_kinds(&self.bundle.spec) {
            let (file, name) = (namespaces::namespace_file(kind), namespaces::name_of(kind));
            let Some(wanted) = joined.joined_kind(kind) else { continue };
            let wanted = rustix::fs::fstat(wanted)?;
            let there = rustix::fs::stat(format!("/proc/{first}/ns/{file}"))?;
            ensure!(
                (wanted.st_dev, wanted.st_ino) == (there.st_dev, there.st_ino),
                "it is not in the {name} namespace that `linux.namespaces` names"
            );
        }
        Ok(())
    }
}

/// A process or a thread, for errors.
pub(in crate::container) fn show(process: &Path) -> String {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let number = process.file_name().unwrap_or_default().display();
    format!("process {number} (`{}`)", name.trim_end().escape_debug())
}

/// Returns a thread of the stopped processes for each mount namespace except that of the first
/// process.
pub(in crate::container) fn other_mount_namespaces(
    first: i32,
    processes: &[i32],
) -> Result<Vec<PathBuf>> {
    let mut known = BTreeSet::from([mount_namespace(Path::new(&format!("/proc/{first}")))?]);
    let mut found = Vec::new();
    for pid in processes {
        for thread in threads(*pid)? {
            if !Status::read(&thread)?.has_ended()? && known.insert(mount_namespace(&thread)?) {
                found.push(thread);
            }
        }
    }
    Ok(found)
}

fn mount_namespace(process: &Path) -> Result<PathBuf> {
    let path = process.join("ns/mnt");
    fs::read_link(&path).with_context(|| format!("read `{}`", path.display()))
}

/// Returns a process and all its descendants.
pub(in crate::container) fn tree(first: i32) -> Result<Vec<i32>> {
    let mut found = vec![first];
    let mut known = BTreeSet::from([first]);
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for thread in threads(pid)? {
            let path = thread.join("children");
            let children = match fs::read_to_string(&path) {
                Ok(children) => children,
                // The thread has ended since.
                Err(_) if !thread.exists() => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("read `{}`", path.display()));
                }
            };
            for child in children.split_ascii_whitespace() {
                let child = child.parse().with_context(|| format!("`{child}` is not a process"))?;
                if known.insert(child) {
                    found.push(child);
                }
            }
        }
    }
    Ok(found)
}

/// The directories of the threads of a process, in procfs. A process that has ended has none.
pub(in crate::container) fn threads(pid: i32) -> Result<Vec<PathBuf>> {
    let path = format!("/proc/{pid}/task");
    let threads: io::Result<Vec<PathBuf>> =
        fs::read_dir(&path).and_then(|threads| threads.map(|thread| Ok(thread?.path())).collect());
    match threads {
        // Its children can no longer be found by it. While a process ends, procfs gives ESRCH.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)) => {
            Ok(Vec::new())
        }
        threads => threads.with_context(|| format!("read `{path}`")),
    }
}

/// `NAME:\tVALUE` (`proc_pid_status(5)`).
pub(in crate::container) struct Status(BTreeMap<String, String>);

impl Status {
    pub(in crate::container) fn read(thread: &Path) -> Result<Status> {
        let path = thread.join("status");
        let text = fs::read(&path).with_context(|| format!("read `{}`", path.display()))?;
        Ok(Status::parse(&text))
    }

    pub(in crate::container) fn parse(text: &[u8]) -> Status {
        let text = String::from_utf8_lossy(text);
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Status(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// The pid of the tracer, or 0.
    pub(in crate::container) fn tracer(&self) -> Result<i32> {
        self.field("TracerPid")?.parse().context("parse its `TracerPid`")
    }

    /// Whether the thread has ended, and never runs again.
    pub(in crate::container) fn has_ended(&self) -> Result<bool> {
        Ok(matches!(self.field("State")?.chars().next(), Some('Z' | 'X')))
    }

    /// Whether a signal has stopped the thread.
    pub(in crate::container) fn is_stopped(&self) -> Result<bool> {
        Ok(self.field("State")?.starts_with('T'))
    }

    /// Whether its tracer holds the thread (`proc_pid_stat(5)`, state `t`).
    pub(in crate::container) fn is_held(&self) -> Result<bool> {
        Ok(self.field("State")?.starts_with('t'))
    }

    fn field(&self, name: &str) -> Result<&str> {
        match self.0.get(name) {
            Some(value) => Ok(value),
            None => bail!("the kernel does not show its `{name}`"),
        }
    }
}

fn namespace_kinds(spec: &Spec) -> impl Iterator<Item = LinuxNamespaceType> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.map(|namespace| namespace.typ())
}

fn own_namespace(file: &str) -> Result<PathBuf> {
    let path = format!("/proc/self/ns/{file}");
    fs::read_link(&path).with_context(|| format!("read `{path}`"))
}

/// The path of a namespace that the container did not make but joined.
pub(in crate::container) fn joined(spec: &Spec, kind: LinuxNamespaceType) -> Option<PathBuf> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let path = namespaces.into_iter().find(|namespace| namespace.typ() == kind)?.path().clone();
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Whether a configuration names the runtime process's own namespace, by a path.
fn joins_the_runtimes(spec: &Spec, kind: LinuxNamespaceType, file: &str) -> bool {
    let path = joined(spec, kind);
    let same = |path: &Path| {
        let (there, own) =
            (fs::metadata(path).ok()?, fs::metadata(format!("/proc/self/ns/{file}")).ok()?);
        use std::os::unix::fs::MetadataExt;
        Some((there.dev(), there.ino()) == (own.dev(), own.ino()))
    };
    path.is_some_and(|path| same(&path) == Some(true))
}

fn names(set: CapabilitySet) -> String {
    let names: Vec<_> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    if names.is_empty() { format!("{:#x}", set.bits()) } else { names.join(", ") }
}
