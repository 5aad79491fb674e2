//! Making a container's processes again from what [`super::checkpoint`] has written. Runs in the caller's process, but for what
//! is said to run in CRIU's.
//!
//! The processes are CRIU's work; their place is ours, as at a creation: the name, the cgroup with its limits, the rootfs with
//! what is to be mounted on, and the `prestart` and `createRuntime` hooks. CRIU runs in the container's cgroup, so that whatever
//! becomes of it can be found, and in a mount namespace that goes with it. Own code: libcontainer cannot restore.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags};

use super::cgroups::{self, Cgroup, Manager, Version};
use super::checkpoint::{self, DESCRIPTORS, NETWORK, NULL, PIDS, external_mount, joined};
use super::criu::{
    self, Cgroup_root, Criu, Criu_opts, Ext_mount_map, Inherit_fd, Join_namespace, Kind,
};
use super::hooks::Streams;
use super::mount_table;
use super::mounts;
use super::namespaces::{self, Namespaces};
use super::rootfs::Rootfs;
use super::sync::{Message, Socket};
use super::{create, delete, devices, notify_socket, terminal};
use crate::bundle::Bundle;
use crate::state::{self, Directory, Root, State};
use crate::syscall::{self, MountAttr};
use crate::workload;

#[derive(Debug)]
pub(crate) struct RestoreOptions<'a> {
    pub(crate) common: criu::Options<'a>,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Bundle,
    pub(crate) manager: Manager,
    /// For what `exec` starts in it.
    pub(crate) asked: Option<workload::Engine>,
    pub(crate) pid_file: Option<&'a Path>,
    /// Where to send the terminal, if it has one.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) tcp_close: bool,
    pub(crate) lsm_profile: Option<&'a str>,
    pub(crate) lsm_mount_context: Option<&'a str>,
}

/// A container that runs again.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) state: State,
    pub(crate) directory: Directory,
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

const LOG: &str = "restore.log";

/// Makes the container again. When that fails, nothing of it is left.
pub(crate) fn restore(root: &Root, options: &RestoreOptions<'_>) -> Result<Restored> {
    state::check_id(options.id)?;
    ensure!(state::is_host_root(), "a restore takes root of the host");
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let namespaces = Namespaces::new(options.bundle.linux())?;
    for (flag, name) in [
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWUSER, "user"),
        (libc::CLONE_NEWCGROUP, "cgroup"),
    ] {
        ensure!(
            !namespaces.joins(flag),
            "`criu` cannot restore into a {name} namespace that is there already"
        );
    }
    ensure!(
        namespaces.has_mount(),
        "`criu` cannot restore without a mount namespace of the container's own"
    );
    checkpoint::refuse_mapped_mounts(&options.bundle.spec)?;
    let inherited = read_descriptors(options.common.images)?;
    let annotations = options.bundle.annotations().into_iter().collect();
    let streams = Streams::open(&annotations)?;
    let mut state = create::plan_state(options.id, options.bundle, options.manager, annotations)?;
    state.engine = options.asked;
    if options.bundle.process().terminal() != Some(true) {
        state.descriptors = create::standard_streams();
    }
    let (directory, _lock) = root.add(options.id)?;
    match make(options, &namespaces, &inherited, &streams, &directory, &mut state) {
        Ok((pid, pidfd)) => Ok(Restored { state, directory, pid, pidfd }),
        Err(error) => {
            // It may run already, and without a cgroup of its own nothing else would end it.
            if let Err(left) = delete::end(&state).and_then(|()| create::undo(&directory, &state)) {
                return Err(error.context(format!("{left:#}, and before that")));
            }
            Err(error)
        }
    }
}

/// Which of CRIU's own standard streams takes the place of what, by the names in the checkpoint.
fn read_descriptors(images: &Path) -> Result<Vec<Inherit_fd>> {
    let path = images.join(DESCRIPTORS);
    let read = || -> Result<Vec<String>> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
    let names = read().with_context(|| format!("read `{}` of the checkpoint", path.display()))?;
    let external = |name: &str| name.starts_with("pipe:") || name.starts_with("file[");
    let names = names.into_iter().zip(0..3).filter(|(name, _)| external(name));
    Ok(names.map(|(name, number)| inherit(&name, number)).collect())
}

fn inherit(key: &str, descriptor: i32) -> Inherit_fd {
    Inherit_fd { key: Some(key.to_owned()), fd: Some(descriptor), ..Inherit_fd::default() }
}

fn make(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    inherited: &[Inherit_fd],
    streams: &Streams,
    directory: &Directory,
    state: &mut State,
) -> Result<(Pid, OwnedFd)> {
    let bundle = options.bundle;
    let linux = bundle.linux();
    state.cgroup.refuse_if_in_use()?;
    directory.write_config(&bundle.config)?;
    directory.write(state)?;
    let place = directory.make_root_folder()?;
    options.common.make_directories(false)?;
    // For a container that had one; in another it is not mounted.
    let notify = directory.notify_folder();
    fs::create_dir(&notify).with_context(|| format!("make `{}`", notify.display()))?;
    let mut mounts = external_mounts(bundle, &state.cgroup, namespaces)?;
    mounts.push(external_mount(Path::new(notify_socket::FOLDER), &notify));
    let (shared, keys) = open_shared(&bundle.spec)?;
    let keep: Vec<_> = shared.iter().map(AsFd::as_fd).collect();
    let log = options.common.log(LOG);
    // What another one failed of is not to be quoted.
    let _ = fs::remove_file(&log);
    let birthplace = state.cgroup.make_for_birth()?;
    let images = show_to_container(options, namespaces, &notify);
    let mut criu = Criu::start(
        &options.common,
        birthplace.as_ref().map(AsFd::as_fd),
        &keep,
        &|socket| prepare_place(socket, bundle, namespaces, &place),
        |pid, socket| {
            // Killed from here on, it is this process that a deletion ends.
            create::belongs_to(state, pid)?;
            if let (Some(groups), Some(rdt)) = (&state.rdt, linux.intel_rdt()) {
                groups.make(rdt, pid)?;
            }
            let tasks = state.cgroup.prepare(pid, linux.resources().as_ref())?;
            if create::wants_its_cgroup(bundle, namespaces) {
                state.cgroup.give(namespaces::root_on_the_host(linux))?;
            }
            state.cgroup.filter_devices(linux.resources().as_ref())?;
            directory.write(state)?;
            let tasks: Vec<_> = tasks.iter().map(AsFd::as_fd).collect();
            socket.send_with(&Message::Cgroup, &tasks)
        },
    )?;
    if let Some(images) = images {
        criu.read_through(images);
    }
    let annotation = |key: &str| bundle.annotation(key).map(str::to_owned);
    let request = Criu_opts {
        root: Some(place.to_string_lossy().into_owned()),
        rst_sibling: Some(true),
        evasive_devices: Some(true),
        tcp_close: Some(options.tcp_close),
        lsm_profile: options.lsm_profile.map(str::to_owned),
        lsm_mount_context: options.lsm_mount_context.map(str::to_owned),
        inherit_fd: [inherited, &keys].concat(),
        join_ns: join_namespaces(&bundle.spec),
        ext_mnt: mounts,
        cg_root: cgroup_roots(state.pid)?,
        ..options.common.request(LOG, annotation)
    };
    let hooks = bundle.spec.hooks().as_ref();
    let restored = criu.call(Kind::RESTORE, request, &mut |notice| match notice.script.as_str() {
        "setup-namespaces" => {
            create::belongs_to(state, Pid::from_raw(notice.pid).context("no process")?)?;
            create::run_create_hooks(hooks, state, streams)
        }
        "orphan-pts-master" => {
            let master = notice.descriptor.context("`criu` sent no terminal")?;
            let console = options.console.as_ref();
            let console = console.context("it has a terminal: `--console-socket` is missing")?;
            terminal::send(console.as_fd(), "/dev/ptmx", master.as_fd())
        }
        // It has its memory and its files, and does not run yet.
        "post-restore" => {
            create::belongs_to(state, Pid::from_raw(notice.pid).context("no process")?)?;
            state.cgroup.hand_down();
            directory.write(state)
        }
        _ => Ok(()),
    });
    restored.map_err(|error| criu::explain(error, &log))?;
    // Mounted on in CRIU's mount namespace only, which is gone.
    let _ = fs::remove_dir(&place);
    let pid = Pid::from_raw(state.pid).context("no process")?;
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd of init")?;
    if let Some(path) = options.pid_file {
        create::write_pid_file(path, pid)?;
    }
    Ok((pid, pidfd))
}

/// In a user namespace, CRIU reads the checkpoint as the host's root without its rights, and later as the container's root: it has to
/// be open to both, and to nobody else. So it is read through a mount that only CRIU has, with an open directory laid over the
/// closed one. None without a user namespace, and where there is no overlayfs; then others must be able to read it.
fn show_to_container(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    open: &Path,
) -> Option<OwnedFd> {
    if !namespaces.makes(libc::CLONE_NEWUSER) || options.common.auto_dedup {
        return None;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).ok();
    let layers = [directory(open)?, directory(options.common.images)?];
    // By number: a path may hold what separates layers.
    let layers = layers.each_ref().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()));
    let options = mounts::Options {
        attr: MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() },
        data: vec![("lowerdir".to_owned(), Some(layers.join(":")))],
        ..mounts::Options::default()
    };
    mounts::make("overlay", Some(Path::new("overlay")), &options)
        .inspect_err(|error| {
            tracing::debug!("lay an open directory over the checkpoint: {error:#}");
        })
        .ok()
}

/// Enters the cgroup, and mounts the rootfs in the place that becomes the root, with everything in it that is to be mounted on.
/// CRIU wants a mount whose parent is not covered by another; a caller's rootfs may be. Runs in CRIU's process.
fn prepare_place(
    socket: &Socket,
    bundle: &Bundle,
    namespaces: &Namespaces,
    place: &Path,
) -> Result<()> {
    for tasks in socket.expect_with(&Message::Cgroup)? {
        cgroups::enter(&tasks).context("enter the cgroup")?;
    }
    syscall::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?;
    let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slaves).context("make the host's mounts slaves")?;
    let rootfs = Rootfs::mount(&bundle.rootfs, place)?;
    make_mount_points(&rootfs, bundle, namespaces)?;
    drop(rootfs);
    rustix::mount::unmount(place, UnmountFlags::DETACH).context("unmount the rootfs")?;
    Rootfs::mount(&bundle.rootfs, place).map(drop)
}

/// A rootfs that was made anew has no directories for the mounts. Those on a filesystem that CRIU restores come with it; those
/// in what is mounted from the host are made there, as at a creation.
fn make_mount_points(rootfs: &Rootfs, bundle: &Bundle, namespaces: &Namespaces) -> Result<()> {
    let mut restored: Vec<&Path> = Vec::new();
    for entry in bundle.spec.mounts().iter().flatten() {
        let destination = entry.destination().as_path();
        if restored.iter().any(|above| destination.starts_with(above) && destination != *above) {
            continue;
        }
        let show = || format!("mount `{}`", destination.display());
        if mounts::binds(entry) {
            mounts::mount(rootfs, bundle, namespaces, entry, None).with_context(show)?;
        } else {
            rootfs.make(destination, true).with_context(show)?;
            restored.push(destination);
        }
    }
    Ok(())
}

/// What to mount for each name that a checkpoint may hold; one too many does no harm.
fn external_mounts(
    bundle: &Bundle,
    cgroup: &Cgroup,
    namespaces: &Namespaces,
) -> Result<Vec<Ext_mount_map>> {
    let mut external = vec![external_mount(Path::new(NULL), Path::new(NULL))];
    let host = mount_table::own()?;
    let rootfs = Rootfs::open_as_is(&bundle.rootfs).context("open the rootfs")?;
    for entry in bundle.spec.mounts().iter().flatten() {
        let destination = resolve(&rootfs, &bundle.rootfs, entry.destination());
        let own_cgroups = namespaces.makes(libc::CLONE_NEWCGROUP);
        if entry.typ().as_deref() == Some("cgroup") && cgroup.version == Version::V1 && !own_cgroups
        {
            for path in &cgroup.paths {
                let below = path.strip_prefix(cgroups::ROOT).unwrap_or(path);
                if let Some(Component::Normal(hierarchy)) = below.components().next() {
                    external.push(external_mount(&destination.join(hierarchy), path));
                }
            }
        }
        let Some(source) = entry.source().as_ref().filter(|_| mounts::binds(entry)) else {
            continue;
        };
        let source = bundle.path.join(source);
        let source = source.canonicalize().unwrap_or(source);
        external.push(external_mount(&destination, &source));
        // And what is mounted below it, for those that take that along.
        for mount in &host {
            match mount.point.strip_prefix(&source) {
                Ok(below) if !below.as_os_str().is_empty() => {
                    external.push(external_mount(&destination.join(below), &mount.point));
                }
                _ => {}
            }
        }
    }
    // Where no nodes can be made, devices are mounts of the host's.
    let default = devices::DEFAULT.map(|(name, ..)| Path::new("/dev").join(name));
    let listed = bundle.linux().devices().iter().flatten().map(|device| device.path().clone());
    for path in default.into_iter().chain(listed) {
        external.push(external_mount(&path, &path));
    }
    Ok(external)
}

/// Where a path leads in the rootfs, as the kernel has it in its table of mounts. What is not there is there in the end as it is
/// written.
fn resolve(rootfs: &Rootfs, path: &Path, destination: &Path) -> PathBuf {
    for above in destination.ancestors() {
        let Ok(found) = rootfs.open(above, OFlags::PATH) else { continue };
        let Ok(real) = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())) else { break };
        let (Ok(inside), Ok(rest)) = (real.strip_prefix(path), destination.strip_prefix(above))
        else {
            break;
        };
        let resolved: PathBuf =
            Path::new("/").join(inside).components().chain(rest.components()).collect();
        return resolved;
    }
    destination.to_owned()
}

/// Opens the namespaces that are to be shared again, which CRIU has to inherit, and says what each is called.
fn open_shared(spec: &Spec) -> Result<(Vec<OwnedFd>, Vec<Inherit_fd>)> {
    let (mut opened, mut keys) = (Vec::new(), Vec::new());
    for (kind, name) in [(LinuxNamespaceType::Network, NETWORK), (LinuxNamespaceType::Pid, PIDS)] {
        let Some(path) = joined(spec, kind) else { continue };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(&path, flags, Mode::empty())
            .with_context(|| format!("open namespace `{}`", path.display()))?;
        keys.push(inherit(name, namespace.as_raw_fd()));
        opened.push(namespace);
    }
    Ok((opened, keys))
}

/// Those of other kinds, which CRIU enters by itself.
fn join_namespaces(spec: &Spec) -> Vec<Join_namespace> {
    let kinds = [
        (LinuxNamespaceType::Ipc, "ipc"),
        (LinuxNamespaceType::Uts, "uts"),
        (LinuxNamespaceType::Time, "time"),
    ];
    let joined = kinds.into_iter().filter_map(|(kind, name)| Some((joined(spec, kind)?, name)));
    joined
        .map(|(path, name)| Join_namespace {
            ns: Some(name.to_owned()),
            ns_file: Some(path.to_string_lossy().into_owned()),
            ..Join_namespace::default()
        })
        .collect()
}

/// Where CRIU is, is where the first process shall be, in each hierarchy by itself: for all at once, CRIU would make the path in
/// hierarchies that the container is not in.
fn cgroup_roots(pid: i32) -> Result<Vec<Cgroup_root>> {
    let path = format!("/proc/{pid}/cgroup");
    let table = fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
    let mut roots = Vec::new();
    for line in table.lines() {
        // `ID:CONTROLLERS:PATH` (cgroups(7)).
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            bail!("`{line}` is no cgroup")
        };
        roots.push(Cgroup_root {
            ctrl: Some(controllers.to_owned()),
            path: Some(path.to_owned()),
            ..Cgroup_root::default()
        });
    }
    Ok(roots)
}
