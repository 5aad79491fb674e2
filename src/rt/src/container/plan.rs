//! The checks before a container is made, and their results. `create`, `restore` and init use them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Mount;
use rustix::process::Pid;

use crate::bundle::Bundle;
use crate::linux::cgroups::{Cgroup, Manager};
use crate::linux::intel_rdt::Groups;
use crate::linux::namespaces::Namespaces;
use crate::linux::net_devices;
use crate::linux::sysctl;
use crate::state::State;
use crate::{engine, procfs, workload};

/// How long the program of a new container waits before it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wait<'a> {
    /// Until `start` writes to a fifo, at any time.
    ForStart,
    /// Until [`super::Container::go`] in the same process. This process blocks these signals from
    /// the moment when it begins to make the container.
    ForRuntime { blocked: &'a [i32] },
}

#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Bundle,
    pub(crate) manager: Manager,
    pub(crate) wait: Wait<'a>,
    pub(crate) asked: Option<workload::Handler>,
    /// The engines that may run a module, if the configuration asks for one.
    pub(crate) engines: Option<engine::Engines<'a>>,
    pub(crate) pid_file: Option<&'a Path>,
    /// The socket to which the terminal is sent. None for a container without a terminal.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) pidfd_socket: Option<&'a Path>,
    pub(crate) no_pivot: bool,
    pub(crate) new_keyring: bool,
    /// The number of descriptors from 3 on that are sockets for the program (`sd_listen_fds(3)`).
    pub(crate) listen_fds: u32,
    /// From this number on, descriptors are the runtime's own. The caller has passed those below.
    pub(crate) first_own: u32,
}

/// The state of a container that is not made yet.
pub(super) fn plan_state(
    id: &str,
    bundle: &Bundle,
    manager: Manager,
    annotations: BTreeMap<String, String>,
) -> Result<State> {
    let (spec, linux) = (&bundle.spec, bundle.linux());
    let mut cgroup = Cgroup::plan(manager, linux.cgroups_path().as_deref(), id)?;
    cgroup.wish(&annotations)?;
    cgroup.go_without_if_forbidden(linux.resources().as_ref())?;
    cgroup.check(linux.resources().as_ref())?;
    let mut state = State::new(id, spec.version(), &bundle.path, &bundle.rootfs, cgroup);
    let rdt = linux.intel_rdt().as_ref();
    state.rdt = rdt.map(|rdt| Groups::plan(rdt, id)).transpose()?;
    state.annotations = annotations;
    if let Some(hooks) = spec.hooks() {
        state.poststart = hooks.poststart().clone().unwrap_or_default();
        state.poststop = hooks.poststop().clone().unwrap_or_default();
    }
    Ok(state)
}

/// The names of this process's standard streams, which the container's first process inherits:
/// `pipe:[INODE]`, a path and the like.
pub(super) fn standard_streams() -> Vec<String> {
    let name = |number| fs::read_link(format!("/proc/self/fd/{number}"));
    let text =
        |path: std::io::Result<PathBuf>| path.unwrap_or_default().to_string_lossy().into_owned();
    (0..3).map(|number| text(name(number))).collect()
}

/// The checks that are possible before anything is made.
pub(super) fn check(options: &Options<'_>, namespaces: &Namespaces) -> Result<()> {
    let linux = options.bundle.linux();
    net_devices::check(linux, namespaces)?;
    if let Some(parameters) = linux.sysctl() {
        sysctl::check(parameters, &options.bundle.spec, namespaces)?;
    }
    if !namespaces.has_mount() {
        let masks = [linux.masked_paths(), linux.readonly_paths()];
        let masks = masks.into_iter().flatten().any(|paths| !paths.is_empty());
        let mounts = options.bundle.spec.mounts().as_ref().is_some_and(|mounts| !mounts.is_empty());
        ensure!(
            !masks && !mounts,
            "mounts, masked and read-only paths need a mount namespace of the container's own"
        );
    }
    let own_names = namespaces.makes(libc::CLONE_NEWUTS) || namespaces.joins(libc::CLONE_NEWUTS);
    for (name, value) in [
        ("hostname", options.bundle.spec.hostname()),
        ("domainname", options.bundle.spec.domainname()),
    ] {
        ensure!(
            value.is_none() || own_names,
            "`{name}` needs a uts namespace of the container's own"
        );
    }
    Ok(())
}

/// Whether the runtime process sets the rlimits of init. In a user namespace, init has lost the
/// right to raise them, or to be killed later than others (`CAP_SYS_RESOURCE` of the initial
/// namespace). If an ordinary user runs `rt`, the runtime process has no more rights than init
/// there, but fewer over init.
pub(super) fn limits_it(state: &State, namespaces: &Namespaces) -> bool {
    let user = libc::CLONE_NEWUSER;
    state.uid == 0 && (namespaces.makes(user) || namespaces.joins(user))
}

/// Records a process as the container's first process.
pub(super) fn belongs_to(state: &mut State, pid: Pid) -> Result<()> {
    state.pid = pid.as_raw_nonzero().get();
    state.start_time = procfs::stat(pid)?.context("init is gone")?.start_time;
    Ok(())
}

/// Whether root of a user namespace gets a cgroup that it can write to, which a systemd in it
/// requires. runc decides in the same way.
pub(super) fn wants_its_cgroup(bundle: &Bundle, namespaces: &Namespaces) -> bool {
    let writable = |mount: &Mount| {
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && !mount.options().iter().flatten().any(|option| option == "ro")
    };
    namespaces.makes(libc::CLONE_NEWUSER)
        && namespaces.makes(libc::CLONE_NEWCGROUP)
        && bundle.spec.mounts().iter().flatten().any(writable)
}
