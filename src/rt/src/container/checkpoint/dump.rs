//! `checkpoint`: writes a container's processes to files, from which
//! [`mod@crate::container::checkpoint::restore`] makes them again. Runs in the runtime process.
//!
//! CRIU reads nearly everything from the kernel. `rt` must tell it about things of the host that
//! are not in the container. These are mounts of the host's files, shared namespaces, and files
//! that were opened outside.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall, Spec};
use rustix::fs::{AtFlags, CWD, Mode, StatxFlags};
use rustix::io::Errno;

use crate::bundle::{self, Bundle};
use crate::container::checkpoint::allowed_mounts::{self, Allowed};
use crate::container::checkpoint::confinement::{self, Limits, Status};
use crate::container::checkpoint::criu::{
    self, CgroupsMode, Criu, Criu_opts, Criu_page_server_info, Directories, Ext_mount_map, Kind,
};
use crate::container::checkpoint::external_mounts::Offers;
use crate::container::checkpoint::process_images;
use crate::container::checkpoint::restrictions;
use crate::linux::cgroups::{DELEGATE, Manager, Version};
use crate::linux::mount_table::{self, Entry};
use crate::linux::mounts;
use crate::linux::rootfs::{self, Rootfs};
use crate::log;
use crate::state::{Directory, State};
use crate::syscall;

#[derive(Debug)]
pub(crate) struct CheckpointOptions<'a> {
    pub(crate) common: criu::Options<'a>,
    /// The path of the checkpoint before, relative to the images.
    pub(crate) parent: Option<&'a Path>,
    /// Write the memory only, and let the container run on.
    pub(crate) pre_dump: bool,
    pub(crate) leave_running: bool,
    pub(crate) link_remap: bool,
    pub(crate) tcp_close: bool,
    pub(crate) tcp_skip_in_flight: bool,
    /// The address to which CRIU sends the memory's pages.
    pub(crate) page_server: Option<(String, u16)>,
    /// The caller's descriptor for the message that pages can be asked for.
    pub(crate) status: Option<File>,
}

const LOG: &str = "dump.log";

/// The file with the names of the standard streams, beside CRIU's own files. The name and the form
/// are runc's: runc can restore a checkpoint of `rt` (tried with 1.1.5).
pub(in crate::container) const DESCRIPTORS: &str = "descriptors.json";

/// The names of runc and crun for namespaces in a checkpoint that are not the container's own.
pub(in crate::container) const NETWORK: &str = "extRootNetNS";
pub(in crate::container) const PIDS: &str = "extRootPIDNS";

/// Writes the checkpoint. After that, the container has no process, unless the caller asked to
/// leave it running.
pub(crate) fn checkpoint(
    directory: &Directory,
    state: &State,
    bundle: &Bundle,
    mut options: CheckpointOptions<'_>,
) -> Result<()> {
    ensure!(crate::ids::is_host_root(), "a checkpoint requires root of the host");
    log::step("checkpoint, step 1: check that a restore is possible", &state.pid);
    // Only root can enter the directory. At a restore, root of a user namespace reads some of its
    // files.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let init = state.process()?.context("the container is not running")?;
    let was_paused = state.cgroup.is_frozen();
    let mounts = mount_table::of(state.pid)?;
    refuse_what_no_restore_takes(state, bundle, &mounts)?;
    let offers = Offers::new(bundle, &state.cgroup, &directory.notify_folder())?;
    let ext_mnt = offers.of(&mounts)?;
    let limits = Limits::new(bundle, state, None)?;
    let cgroups = allowed_mounts::cgroups_of(&state.cgroup, state.pid)?;
    let allowed = Allowed::new(&offers, bundle, &limits, &cgroups)?;
    allowed.judge(&mounts, true).context("it could not be restored")?;

    let images = options.common.images;
    log::step("checkpoint, step 2: make the directory of the images", &images.display());
    let directories = options.common.make_directories(None)?;
    let mut request = request(state, bundle, &options, &directories, ext_mnt)?;
    criu::program()?;
    let kind = if options.pre_dump { Kind::PRE_DUMP } else { Kind::DUMP };
    if !options.pre_dump {
        let (descriptors, files) = streams(state, &mounts);
        request.external.extend(files);
        let path = options.common.images.join(DESCRIPTORS);
        directories.write(path, serde_json::to_string(&descriptors)?.as_bytes())?;
    }
    log::step("checkpoint, step 3: have CRIU write the processes", &images.display());
    // With a page server, the memory is elsewhere.
    let has_memory = options.page_server.is_none();
    let written = || {
        if has_memory {
            let show = |name: &str| format!("read `{}`", images.join(name).display());
            process_images::refuse_used_rings(directories.images(), &show)
                .context("it could not be restored")?;
        }
        compare_and_record(state, &init, &limits, &allowed, &directories, images)
    };
    // CRIU lets the container continue by itself, unless CRIU was killed.
    call(kind, request, &mut options, &directories, &written).inspect_err(|_| {
        if !was_paused {
            state.cgroup.thaw();
        }
    })
}

fn refuse_what_no_restore_takes(state: &State, bundle: &Bundle, mounts: &[Entry]) -> Result<()> {
    allowed_mounts::refuse_many(mounts.len()).context("it could not be restored")?;
    if state.handler().is_some() {
        refuse_engine(state, mounts)?;
    }
    refuse_what_cannot_be_restored(&bundle.spec)?;
    let rootfs = Rootfs::open_as_is(&bundle.rootfs).context("open the rootfs")?;
    refuse_without_a_place(&rootfs, bundle)
}

/// The request to CRIU.
fn request(
    state: &State,
    bundle: &Bundle,
    options: &CheckpointOptions<'_>,
    directories: &Directories,
    ext_mnt: Vec<Ext_mount_map>,
) -> Result<Criu_opts> {
    let annotation = |key: &str| bundle::annotation(&bundle.spec, key).map(str::to_owned);
    let mut request = Criu_opts {
        pid: Some(state.pid),
        root: Some(state.rootfs.to_string_lossy().into_owned()),
        leave_running: Some(options.leave_running),
        link_remap: Some(options.link_remap),
        tcp_close: Some(options.tcp_close),
        tcp_skip_in_flight: Some(options.tcp_skip_in_flight),
        freeze_cgroup: freezer(state)?.map(|path| path.to_string_lossy().into_owned()),
        ext_mnt,
        external: external_namespaces(state, &bundle.spec)?,
        ..options.common.request(LOG, annotation)?
    };
    if let Some(parent) = options.parent {
        ensure!(
            !has_user_namespace(&bundle.spec),
            "`--parent-path`: the earlier checkpoint cannot be reached at a restore with a user namespace"
        );
        ensure!(parent.is_relative(), "`--parent-path` is relative to the checkpoint's directory");
        let there = options.common.images.join(parent);
        directories
            .check_parent(parent, options.common.images)
            .with_context(|| format!("`--parent-path`: open `{}`", there.display()))?;
        request.parent_img = Some(parent.to_string_lossy().into_owned());
    }
    let (own, whole) = hierarchies(state.pid)?;
    if whole {
        request.cgroup_dump_controller = own;
    }
    let nothing = whole && request.cgroup_dump_controller.is_empty();
    if options.common.cgroups.is_none() && (nothing || state.cgroup.manager == Manager::Disabled) {
        request.manage_cgroups_mode = Some(CgroupsMode::IGNORE.into());
    }
    if options.pre_dump || options.parent.is_some() {
        request.track_mem = Some(true);
    }
    if let Some((address, port)) = &options.page_server {
        request.ps = Some(Criu_page_server_info {
            address: Some(address.clone()),
            port: Some((*port).into()),
            ..Criu_page_server_info::default()
        })
        .into();
    }
    Ok(request)
}

/// The directory of the freezer that CRIU may use. Without one, CRIU stops the processes one by
/// one. With v1, nobody can trace a frozen process that a signal has stopped, and CRIU would wait
/// for ever.
fn freezer(state: &State) -> Result<Option<&PathBuf>> {
    let directory = state.cgroup.freezer_directory();
    if state.cgroup.version == Version::V2 || directory.is_none() {
        return Ok(directory);
    }
    for pid in confinement::tree(state.pid)? {
        for thread in confinement::threads(pid)? {
            // A thread may have ended since.
            if Status::read(&thread).and_then(|status| status.is_stopped()).unwrap_or(false) {
                ensure!(
                    !state.cgroup.is_frozen(),
                    "it is paused, and {} was stopped by a signal: `criu` would wait for ever",
                    confinement::show(&thread)
                );
                return Ok(None);
            }
        }
    }
    Ok(directory)
}

/// CRIU has written everything and ended nothing yet. If init has been alive until now, its pid was
/// not reused meanwhile: the processes that CRIU has stopped and `rt` has compared are the
/// container's.
fn compare_and_record(
    state: &State,
    init: &OwnedFd,
    limits: &Limits<'_>,
    allowed: &Allowed<'_>,
    directories: &Directories,
    images: &Path,
) -> Result<()> {
    log::step("checkpoint, step 4: compare what was written with the configuration", &state.pid);
    syscall::pidfd_send_signal(init.as_fd(), 0).context("the container has ended")?;
    let processes = confinement::tree(state.pid)?;
    limits.check(state.pid, &processes, None).context("it could not be restored")?;
    for thread in confinement::other_mount_namespaces(state.pid, &processes)? {
        allowed
            .judge(&mount_table::seen_by(&thread)?, false)
            .with_context(|| format!("the mount namespace of the process `{}`", thread.display()))
            .context("it could not be restored")?;
    }
    let mounts = restrictions::record(&mount_table::of(state.pid)?);
    let text = serde_json::to_string(&mounts)?;
    directories.write(images.join(restrictions::RECORD), text.as_bytes())
}

/// Returns the controllers of the hierarchies in which a process is in a cgroup of its own. Also
/// returns whether there are other hierarchies, in which it is in the root. CRIU writes all cgroups
/// below that of a process. From the root, these are all cgroups of the host, and a restore would
/// make all of them again.
fn hierarchies(pid: i32) -> Result<(Vec<String>, bool)> {
    let path = format!("/proc/{pid}/cgroup");
    let table = fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
    // `ID:CONTROLLERS:PATH` (cgroups(7)).
    let lines = table.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let (roots, own): (Vec<_>, Vec<_>) = lines.partition(|(_, path)| *path == "/");
    let names = own.iter().flat_map(|(controllers, _)| controllers.split(','));
    Ok((names.map(str::to_owned).collect(), !roots.is_empty()))
}

fn has_user_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.into_iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

fn call(
    kind: Kind,
    request: Criu_opts,
    options: &mut CheckpointOptions<'_>,
    directories: &Directories,
    written: &dyn Fn() -> Result<()>,
) -> Result<()> {
    directories.remove_log(LOG)?;
    let opened = (&options.common, directories);
    let criu = Criu::start(kind, opened, None, &[], &criu::NOTHING, |_, _| Ok(()))?;
    let status = &mut options.status;
    criu.call(request, &mut |notice| match (notice.script.as_str(), status.take()) {
        ("status-ready", Some(mut descriptor)) => criu::say_ready(&mut descriptor),
        (script, kept) => {
            *status = kept;
            if script == "post-dump" { written() } else { Ok(()) }
        }
    })
    .map_err(|error| criu::explain(error, directories, &options.common, LOG))
}

/// The container of a module runs an engine, which is a program of the host. A restore would not
/// find it in the container.
fn refuse_engine(state: &State, mounts: &[Entry]) -> Result<()> {
    let path = format!("/proc/{}/exe", state.pid);
    let program = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID)
        .with_context(|| format!("stat `{path}`"))?;
    let mount = program.stx_mnt_id.to_string();
    ensure!(
        mounts.iter().any(|entry| entry.id == mount),
        "its program is a WebAssembly module: its engine is a file of the host and cannot be restored"
    );
    Ok(())
}

/// A restore requires a directory `/tmp` in a read-only root, and makes it if it can. CRIU looks
/// for `/tmp` while CRIU's root is still the host's, where a link may lead elsewhere. A restore
/// runs this check too, in the mount that becomes the root.
pub(in crate::container) fn refuse_without_a_place(rootfs: &Rootfs, bundle: &Bundle) -> Result<()> {
    let is_directory = match rootfs.open_beneath(Path::new("tmp")) {
        Ok(there) => rootfs::is_directory(there.as_fd())?,
        Err(Errno::NOENT) => false,
        // Other errors are of a path that leads nowhere, or that is unknown.
        Err(Errno::XDEV) => {
            bail!(
                "`/tmp` in its root is a link that leads out of it, which `criu` would follow on the host"
            )
        }
        Err(error) => return Err(error).context("look for `/tmp` in its root"),
    };
    let read_only = bundle.spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true));
    ensure!(
        !read_only || is_directory || !rootfs.is_read_only()?,
        "its root is read-only and has no directory `/tmp`, which `criu` needs at a restore"
    );
    Ok(())
}

/// Both `restore` and `checkpoint` run this check. So `checkpoint` ends nothing that could not be
/// made again.
pub(in crate::container) fn refuse_what_cannot_be_restored(spec: &Spec) -> Result<()> {
    for (kind, name) in [
        (LinuxNamespaceType::Mount, "mount"),
        (LinuxNamespaceType::User, "user"),
        (LinuxNamespaceType::Cgroup, "cgroup"),
    ] {
        ensure!(
            confinement::joined(spec, kind).is_none(),
            "`criu` cannot restore into a {name} namespace that is there already"
        );
    }
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    ensure!(
        namespaces.into_iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount),
        "`criu` cannot restore without a mount namespace of the container's own"
    );
    let seccomp = spec.linux().iter().filter_map(|linux| linux.seccomp().as_ref());
    let notifies = |filter: &LinuxSeccomp| {
        let actions = filter.syscalls().iter().flatten().map(LinuxSyscall::action);
        actions.chain([filter.default_action()]).any(|it| it == LinuxSeccompAction::ScmpActNotify)
    };
    ensure!(
        !seccomp.into_iter().any(notifies),
        "its seccomp filter has SCMP_ACT_NOTIFY, and `criu` loads it without a listener"
    );
    ensure!(
        bundle::annotation(spec, DELEGATE).is_none_or(str::is_empty),
        "the annotation `{DELEGATE}`: a restored container would not have that cgroup"
    );
    // CRIU would mount them without the mapping, and files would change their owners.
    for entry in spec.mounts().iter().flatten() {
        ensure!(
            !mounts::is_mapped(entry)?,
            "the mount `{}` has mapped ids, which `criu` cannot restore",
            entry.destination().display()
        );
    }
    Ok(())
}

/// Returns `net[INODE]:NAME`. Other kinds of namespaces contain little, which CRIU writes with the
/// rest. The namespace is read from the process: the path by which it was joined may lead to
/// another namespace by now.
fn external_namespaces(state: &State, spec: &Spec) -> Result<Vec<String>> {
    let mut external = Vec::new();
    for (kind, file, name) in
        [(LinuxNamespaceType::Network, "net", NETWORK), (LinuxNamespaceType::Pid, "pid", PIDS)]
    {
        if confinement::joined(spec, kind).is_some() {
            let path = format!("/proc/{}/ns/{file}", state.pid);
            let there = fs::metadata(&path).with_context(|| format!("stat `{path}`"))?;
            external.push(format!("{file}[{}]:{name}", there.ino()));
        }
    }
    Ok(external)
}

/// Returns the names of the three standard streams in a checkpoint. Also returns the streams that
/// `rt` must tell CRIU about: files that are not on the container's mounts.
fn streams(state: &State, mounts: &[Entry]) -> (Vec<String>, Vec<String>) {
    let mut external = Vec::new();
    let name = |(number, at_birth): (usize, &String)| {
        let name = external_file(state.pid, number, at_birth, mounts);
        external.extend(name.clone());
        name.unwrap_or_else(|| at_birth.clone())
    };
    let names = state.descriptors.iter().enumerate().map(name).collect();
    (names, external)
}

/// Returns `file[MOUNT:INODE]`, both in hexadecimal: CRIU's name for a regular file that was opened
/// outside.
fn external_file(pid: i32, number: usize, at_birth: &str, mounts: &[Entry]) -> Option<String> {
    let path = format!("/proc/{pid}/fd/{number}");
    // The descriptor may be of another file by now.
    let same = fs::read_link(&path).is_ok_and(|now| now == Path::new(at_birth));
    let file = fs::metadata(&path).ok().filter(|file| same && file.is_file())?;
    let information = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let mount = information.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    if mounts.iter().any(|entry| entry.id == mount) {
        return None;
    }
    Some(format!("file[{:x}:{:x}]", mount.parse::<u64>().ok()?, file.ino()))
}
