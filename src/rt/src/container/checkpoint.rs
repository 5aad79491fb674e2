//! Writing a container's processes to files, from which they can be made again ([`super::restore`]). Runs in the caller's
//! process.
//!
//! CRIU reads nearly everything from the kernel. It has to be told what it would find on the host and not in the container:
//! mounts of the host's files, namespaces that are shared, and files that are open from outside.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{AtFlags, CWD, Mode, StatxFlags};

use super::cgroups::Version;
use super::criu::{self, Criu, Criu_opts, Criu_page_server_info, Ext_mount_map, Kind};
use super::mount_table::{self, Entry};
use super::mounts;
use crate::bundle;
use crate::state::{Draft, State};

#[derive(Debug)]
pub(crate) struct CheckpointOptions<'a> {
    pub(crate) common: criu::Options<'a>,
    /// The checkpoint before, relative to the images.
    pub(crate) parent: Option<&'a Path>,
    /// Write the memory only, and let the container run on.
    pub(crate) pre_dump: bool,
    pub(crate) leave_running: bool,
    pub(crate) link_remap: bool,
    pub(crate) tcp_skip_in_flight: bool,
    /// Where to send the memory's pages.
    pub(crate) page_server: Option<(String, u16)>,
    /// Who wants to know that pages can be asked for.
    pub(crate) status: Option<File>,
}

const LOG: &str = "dump.log";

/// What the standard streams were: a file beside CRIU's own. runc's name and form: it can restore what this writes (tried with 1.1.5).
pub(super) const DESCRIPTORS: &str = "descriptors.json";

/// How runc and crun name namespaces that are not the container's own, in a checkpoint.
pub(super) const NETWORK: &str = "extRootNetNS";
pub(super) const PIDS: &str = "extRootPIDNS";

/// What stands for all files that are masked.
pub(super) const NULL: &str = "/dev/null";

/// Writes the checkpoint. Unless it was asked to leave it running, the container has no process then.
pub(crate) fn checkpoint(
    state: &State,
    spec: &Spec,
    mut options: CheckpointOptions<'_>,
) -> Result<()> {
    ensure!(crate::state::is_host_root(), "a checkpoint takes root of the host");
    // The directory is for root alone; of what is in it, root of a user namespace reads a part at a restore.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mounts = mount_table::of(state.pid)?;
    if state.engine.is_some() {
        refuse_engine(state, &mounts)?;
    }
    refuse_mapped_mounts(spec)?;
    options.common.make_directories(true)?;
    let annotation = |key: &str| bundle::annotation(spec, key).map(str::to_owned);
    let mut request = Criu_opts {
        pid: Some(state.pid),
        leave_running: Some(options.leave_running),
        ..options.common.request(LOG, annotation)
    };
    if let Some(parent) = options.parent {
        ensure!(parent.is_relative(), "`--parent-path` is relative to the checkpoint's directory");
        let there = options.common.images.join(parent);
        ensure!(there.is_dir(), "`--parent-path`: `{}` is no directory", there.display());
        request.parent_img = Some(parent.to_string_lossy().into_owned());
        request.track_mem = Some(true);
    }
    if options.pre_dump {
        request.track_mem = Some(true);
        return call(Kind::PRE_DUMP, request, &mut options);
    }
    request.root = Some(state.rootfs.to_string_lossy().into_owned());
    request.link_remap = Some(options.link_remap);
    request.tcp_skip_in_flight = Some(options.tcp_skip_in_flight);
    if let Some((address, port)) = &options.page_server {
        request.ps = Some(Criu_page_server_info {
            address: Some(address.clone()),
            port: Some((*port).into()),
            ..Criu_page_server_info::default()
        })
        .into();
    }
    request.freeze_cgroup =
        state.cgroup.freezer_directory().map(|path| path.to_string_lossy().into_owned());
    request.ext_mnt = external_mounts(state, spec, &mounts)?;
    request.external = external_namespaces(spec)?;
    let (descriptors, files) = streams(state, &mounts);
    request.external.extend(files);
    let path = options.common.images.join(DESCRIPTORS);
    Draft::write(path.clone(), serde_json::to_string(&descriptors)?.as_bytes(), 0o600)
        .with_context(|| format!("write `{}`", path.display()))?
        .publish()?;
    call(Kind::DUMP, request, &mut options)
}

fn call(kind: Kind, request: Criu_opts, options: &mut CheckpointOptions<'_>) -> Result<()> {
    let log = options.common.log(LOG);
    // What another one failed of is not to be quoted.
    let _ = fs::remove_file(&log);
    let criu = Criu::start(&options.common, None, &[], &|_| Ok(()), |_, _| Ok(()))?;
    let status = &mut options.status;
    criu.call(kind, request, &mut |notice| match (notice.script.as_str(), status.take()) {
        ("status-ready", Some(mut descriptor)) => criu::say_ready(&mut descriptor),
        (_, kept) => {
            *status = kept;
            Ok(())
        }
    })
    .map_err(|error| criu::explain(error, &log))
}

/// The container of a module runs an engine, which is a program of the host's: no restore would find it in the container.
fn refuse_engine(state: &State, mounts: &[Entry]) -> Result<()> {
    let path = format!("/proc/{}/exe", state.pid);
    let program = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID)
        .with_context(|| format!("stat `{path}`"))?;
    let mount = program.stx_mnt_id.to_string();
    ensure!(
        mounts.iter().any(|entry| entry.id == mount),
        "its program is a WebAssembly module: the engine that runs it is a file of the host's, and cannot be restored"
    );
    Ok(())
}

/// CRIU would mount what is mapped as it is, and files would change their owners.
pub(super) fn refuse_mapped_mounts(spec: &Spec) -> Result<()> {
    for entry in spec.mounts().iter().flatten() {
        ensure!(
            !mounts::is_mapped(entry)?,
            "the mount `{}` has mapped ids, which `criu` cannot restore",
            entry.destination().display()
        );
    }
    Ok(())
}

/// Mounts of files that are the host's: CRIU leaves them out, and mounts at a restore what it is told then. The name of each
/// is where it is.
fn external_mounts(state: &State, spec: &Spec, mounts: &[Entry]) -> Result<Vec<Ext_mount_map>> {
    let host: BTreeSet<String> =
        mount_table::own()?.into_iter().map(|entry| entry.device).collect();
    let masked: BTreeSet<&Path> = spec
        .linux()
        .iter()
        .flat_map(|linux| linux.masked_paths().iter().flatten())
        .map(Path::new)
        .collect();
    let bound = |point: &Path| {
        let entries = spec.mounts().iter().flatten().filter(|entry| mounts::binds(entry));
        entries.into_iter().any(|entry| point.starts_with(entry.destination()))
    };
    let own_cgroups = has_own(spec, LinuxNamespaceType::Cgroup);
    let is_external = |entry: &Entry| match entry.kind.as_str() {
        // Of these, one filesystem can be the host's and the container's: what it shows depends on who mounts it.
        "sysfs" | "mqueue" => bound(&entry.point),
        // In a namespace of its own, mounted anew. Without one, the second version is: it shows the same everywhere.
        "cgroup" => !own_cgroups || bound(&entry.point),
        "cgroup2" => bound(&entry.point) || !own_cgroups && state.cgroup.version == Version::V1,
        _ => host.contains(&entry.device),
    };
    let external =
        mounts.iter().filter(|entry| entry.point != Path::new("/") && is_external(entry));
    Ok(external
        .map(|entry| {
            let name =
                if masked.contains(entry.point.as_path()) { Path::new(NULL) } else { &entry.point };
            external_mount(&entry.point, name)
        })
        .collect())
}

pub(super) fn external_mount(key: &Path, value: &Path) -> Ext_mount_map {
    Ext_mount_map {
        key: Some(key.to_string_lossy().into_owned()),
        val: Some(value.to_string_lossy().into_owned()),
        ..Ext_mount_map::default()
    }
}

fn has_own(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.into_iter().any(|namespace| namespace.typ() == kind)
}

/// The path of a namespace that the container did not make but joined.
pub(super) fn joined(spec: &Spec, kind: LinuxNamespaceType) -> Option<PathBuf> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let path = namespaces.into_iter().find(|namespace| namespace.typ() == kind)?.path().clone();
    path.filter(|path| !path.as_os_str().is_empty())
}

/// `net[INODE]:NAME`. What other kinds hold is small, and is written with the rest.
fn external_namespaces(spec: &Spec) -> Result<Vec<String>> {
    let mut external = Vec::new();
    for (kind, file, name) in
        [(LinuxNamespaceType::Network, "net", NETWORK), (LinuxNamespaceType::Pid, "pid", PIDS)]
    {
        if let Some(path) = joined(spec, kind) {
            let there =
                fs::metadata(&path).with_context(|| format!("stat `{}`", path.display()))?;
            external.push(format!("{file}[{}]:{name}", there.ino()));
        }
    }
    Ok(external)
}

/// What the three standard streams are called in a checkpoint, and which of them CRIU has to be told of: a file that the
/// container's mounts do not hold.
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

/// `file[MOUNT:INODE]`, both in hexadecimal: CRIU's name for a regular file that is open from outside.
fn external_file(pid: i32, number: usize, at_birth: &str, mounts: &[Entry]) -> Option<String> {
    let path = format!("/proc/{pid}/fd/{number}");
    // What it is by now may be another one.
    let same = fs::read_link(&path).is_ok_and(|now| now == Path::new(at_birth));
    let file = fs::metadata(&path).ok().filter(|file| same && file.is_file())?;
    let information = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let mount = information.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    if mounts.iter().any(|entry| entry.id == mount) {
        return None;
    }
    Some(format!("file[{:x}:{:x}]", mount.parse::<u64>().ok()?, file.ino()))
}
