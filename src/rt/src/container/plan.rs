//! What is known, and checked, before a container is made: by `create`, by `restore`, and by init.
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

/// How the new container's program is kept from running before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wait<'a> {
    /// Until `start` writes to a fifo, whenever that is.
    ForStart,
    /// Until [`super::Container::go`], by the same process, which blocks these signals from the
    /// moment that something is made.
    ForCaller { blocked: &'a [i32] },
}

#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Bundle,
    pub(crate) manager: Manager,
    pub(crate) wait: Wait<'a>,
    pub(crate) asked: Option<workload::Handler>,
    /// Those that a module may run on, if one is asked for.
    pub(crate) engines: Option<engine::Engines<'a>>,
    pub(crate) pid_file: Option<&'a Path>,
    /// Where to send the terminal; none for a container without one.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) pidfd_socket: Option<&'a Path>,
    pub(crate) no_pivot: bool,
    pub(crate) new_keyring: bool,
    /// How many of the descriptors from 3 on are sockets for the program (`sd_listen_fds(3)`).
    pub(crate) listen_fds: u32,
    /// From this number on, descriptors are this runtime's and not the caller's gifts.
    pub(crate) first_own: u32,
}

/// The state of a container that has to be made yet.
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

/// What this process's own are, which the container's first process inherits; `pipe:[INODE]`, a
/// path and the like.
pub(super) fn standard_streams() -> Vec<String> {
    let name = |number| fs::read_link(format!("/proc/self/fd/{number}"));
    let text =
        |path: std::io::Result<PathBuf>| path.unwrap_or_default().to_string_lossy().into_owned();
    (0..3).map(|number| text(name(number))).collect()
}

/// What can be found out before anything is made.
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

/// Whether the caller's process sets the limits of init, which in a user namespace has lost the
/// right to raise them, or to be killed later than others (`CAP_SYS_RESOURCE` of the initial one).
/// An ordinary user has no more rights than init there, but fewer over it.
pub(super) fn limits_it(state: &State, namespaces: &Namespaces) -> bool {
    let user = libc::CLONE_NEWUSER;
    state.uid == 0 && (namespaces.makes(user) || namespaces.joins(user))
}

/// Makes a process the one that the state is of.
pub(super) fn belongs_to(state: &mut State, pid: Pid) -> Result<()> {
    state.pid = pid.as_raw_nonzero().get();
    state.start_time = procfs::stat(pid)?.context("init is gone")?.start_time;
    Ok(())
}

/// Whether root of a user namespace gets a cgroup that it can write to, as a systemd in it needs:
/// as runc decides it.
pub(super) fn wants_its_cgroup(bundle: &Bundle, namespaces: &Namespaces) -> bool {
    let writable = |mount: &Mount| {
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && !mount.options().iter().flatten().any(|option| option == "ro")
    };
    namespaces.makes(libc::CLONE_NEWUSER)
        && namespaces.makes(libc::CLONE_NEWCGROUP)
        && bundle.spec.mounts().iter().flatten().any(writable)
}
