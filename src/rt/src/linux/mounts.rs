//! Mounts: carries out one entry of `mounts`.
//!
//! This is our own code. libcontainer ignores the propagation of a mount, and does not clear the
//! flags of a bind mount's source. It makes some 50 system calls for each mount. We use the
//! file-descriptor mount calls of Linux 5.2 and 5.12. So init looks up a destination inside the
//! rootfs once, and mounts on the file that it found.
#![forbid(unsafe_code)]

mod copy_up;
pub(crate) mod detached;
mod idmap;
pub(crate) mod options;

use std::cell::OnceCell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, MountFlags, OpenTreeFlags};

use detached::{clone_tree, clone_tree_at, configure, explain, is_in_memory, make, make_with};
pub(crate) use options::{NAMES, Options};

use crate::bundle::Bundle;
use crate::failure::Failure;
use crate::linux::descriptors;
use crate::linux::helper;
use crate::linux::mount_table::{self, Entry};
use crate::linux::namespaces::{self, Namespaces};
use crate::linux::rootfs::{Rootfs, is_directory};
use crate::sync::Message;
use crate::syscall::{self, MountAttr};

/// The annotation for the SELinux mount option that gets `linux.mountLabel` (`mount(8)`,
/// "FILESYSTEM-INDEPENDENT MOUNT OPTIONS").
const CONTEXT: &str = "run.oci.mount_context_type";

/// A mount that is not attached yet.
#[derive(Debug)]
pub(crate) struct Detached {
    mount: OwnedFd,
    /// Whether it has all attributes but the propagation.
    finished: bool,
}

/// The opened source of an entry. One process looks the source up once, and hands the result on: to
/// init, or to the process that is in the container's mount namespace. In that namespace, the same
/// path leads elsewhere.
#[derive(Debug)]
pub(crate) enum Opened {
    Mount(Detached),
    /// A symbolic link to copy (`copy-symlink`): its target.
    Link(CString),
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

/// Opens the mounts that init cannot open: mounts with mapped ids, and, if init is root of a user
/// namespace, sources that only the host's root can reach. Returns one value for each entry of
/// `mounts`. Runs in the runtime process.
pub(crate) fn open_for_init(
    bundle: &Bundle,
    namespaces: &Namespaces,
) -> Result<Vec<Option<Opened>>> {
    let entries = bundle.spec.mounts().as_deref().unwrap_or_default();
    let (pinned, most) = (Pinned::default(), descriptors::room_for_mounts());
    let mut opened = Vec::with_capacity(entries.len());
    let mut held = 0;
    for (number, entry) in entries.iter().enumerate() {
        // If the entries exceed the descriptors that this process may have open, init opens those
        // of the rest that it can.
        let must = held < most || is_mapped(entry)?;
        let mount = must.then(|| open_one(bundle, namespaces, &entries[..number], entry, &pinned));
        let mount = mount.transpose().with_context(|| show(entry))?.flatten();
        held += usize::from(mount.is_some());
        opened.push(mount);
    }
    Ok(opened)
}

fn show(entry: &Mount) -> String {
    format!("mount `{}`", entry.destination().display())
}

fn open_one(
    bundle: &Bundle,
    namespaces: &Namespaces,
    earlier: &[Mount],
    entry: &Mount,
    pinned: &Pinned,
) -> Result<Option<Opened>> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    let mapping = idmap::wanted(entry, &options, bundle.linux())?;
    let user = namespaces.makes(libc::CLONE_NEWUSER) || namespaces.joins(libc::CLONE_NEWUSER);
    let bind = is_bind(entry, &options);
    if mapping.is_none() && !(user && bind) || options.remount {
        return Ok(None);
    }
    if bind && is_made_by(earlier, bundle, entry, &options) {
        return Ok(None);
    }
    let mount = match open(bundle, namespaces, entry, &options, By::Runtime(pinned)) {
        // The runtime process has no more rights than init will have.
        Err(Unopened::Forbidden(_)) if mapping.is_none() => return Ok(None),
        Ok(Opened::Mount(Detached { mount, .. })) => mount,
        other => return Ok(Some(other?)),
    };
    // Init's mount namespace does not propagate to the host's, but this mount does not know that
    // yet.
    let propagation = bundle.linux().rootfs_propagation().as_deref();
    if bind && !matches!(propagation, Some("shared" | "rshared")) {
        let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        syscall::mount_setattr(mount.as_fd(), slave, true).context("make the mount a slave")?;
    }
    if let Some(mapping) = mapping {
        let recursive = options.idmap.as_ref().is_some_and(|idmap| idmap.recursive);
        mapping.apply(mount.as_fd(), recursive, namespaces)?;
    }
    let finished = !options.copy_up;
    if finished {
        let is_new = (!bind).then(|| kind(entry));
        options.finish(mount.as_fd(), is_new, options.is_read_only_later(entry))?;
    }
    Ok(Some(Opened::Mount(Detached { mount, finished })))
}

/// Opens the source of an entry, which [`mount`] then attaches in a container. Runs in the runtime
/// process.
pub(crate) fn open_detached(
    bundle: &Bundle,
    namespaces: &Namespaces,
    entry: &Mount,
) -> Result<Opened> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    let pinned = Pinned::default();
    let opened = open(bundle, namespaces, entry, &options, By::Runtime(&pinned))?;
    let Opened::Mount(Detached { mount, .. }) = opened else { return Ok(opened) };
    if is_bind(entry, &options) {
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        syscall::mount_setattr(mount.as_fd(), private, true).context("make the mount private")?;
    }
    if let Some(mapping) = idmap::wanted(entry, &options, bundle.linux())? {
        let recursive = options.idmap.as_ref().is_some_and(|idmap| idmap.recursive);
        mapping.apply(mount.as_fd(), recursive, namespaces)?;
    }
    Ok(Opened::unfinished(mount))
}

/// Why a source was not opened.
enum Unopened {
    /// The kernel forbids this process to open it. Another process may be allowed to, or there is
    /// another way.
    Forbidden(Failure),
    Otherwise(Error),
}

impl From<Failure> for Unopened {
    fn from(failure: Failure) -> Unopened {
        if failure.is_forbidden() {
            Unopened::Forbidden(failure)
        } else {
            Unopened::Otherwise(failure.into())
        }
    }
}

impl From<Error> for Unopened {
    fn from(error: Error) -> Unopened {
        Unopened::Otherwise(error)
    }
}

impl From<Unopened> for Error {
    fn from(unopened: Unopened) -> Error {
        match unopened {
            Unopened::Forbidden(failure) => failure.into(),
            Unopened::Otherwise(error) => error,
        }
    }
}

/// Whether an entry mounts existing files.
pub(crate) fn binds(entry: &Mount) -> bool {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    options.is_ok_and(|options| is_bind(entry, &options) && !options.remount)
}

/// The destinations of the entries that change the mount of another entry.
pub(crate) type Remounted<'a> = Vec<&'a Path>;

/// Collects them once: with 500 mounts, comparing each with all others took a third of `create`.
pub(crate) fn remounted(entries: &[Mount]) -> Remounted<'_> {
    entries.iter().filter(|it| remounts(it)).map(|it| it.destination().as_path()).collect()
}

/// Whether an entry changes the mount of another entry.
pub(crate) fn remounts(entry: &Mount) -> bool {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    options.is_ok_and(|options| options.remount)
}

/// Whether an entry makes a copy of a link, which is its source, instead of a mount.
pub(crate) fn makes_a_link(entry: &Mount, bundle: &Bundle) -> bool {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    let source = entry.source().as_ref().map(|source| bundle.path.join(source));
    options.is_ok_and(|options| options.copy_symlink && is_bind(entry, &options))
        && source.is_some_and(|source| source.is_symlink())
}

/// Whether an entry copies the files that it hides into the new mount.
pub(crate) fn copies_up(entry: &Mount) -> bool {
    entry.options().iter().flatten().any(|option| option == "tmpcopyup")
}

/// Whether an entry maps the owners of the files.
pub(crate) fn is_mapped(entry: &Mount) -> Result<bool> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    let own = entry.uid_mappings().as_ref().is_some_and(|mappings| !mappings.is_empty());
    Ok(own || options.idmap.is_some())
}

fn kind(entry: &Mount) -> &str {
    entry.typ().as_deref().unwrap_or("none")
}

fn is_bind(entry: &Mount, options: &Options) -> bool {
    options.bind.is_some() || entry.typ().as_deref() == Some("bind")
}

/// Carries out one entry of `mounts`. Runs in init, before init changes the root. A relative source
/// is relative to the bundle.
pub(crate) fn mount(
    rootfs: &mut Rootfs,
    bundle: &Bundle,
    namespaces: &Namespaces,
    entry: &Mount,
    opened: Option<Opened>,
    remounted: &[&Path],
) -> Result<()> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    if options.remount {
        let remounted = remount(rootfs, entry, &options);
        rootfs.look_again();
        return remounted;
    }
    let bind = is_bind(entry, &options);
    let opened = match opened {
        Some(opened) => opened,
        None => {
            // The runtime process maps the ids of the mounts that it or `open_to_be_mapped` opens.
            // Both used the source's path.
            let mapping = idmap::wanted(entry, &options, bundle.linux())?;
            ensure!(mapping.is_none(), "its source has changed: its ids are not mapped");
            open(bundle, namespaces, entry, &options, By::Init(rootfs))?
        }
    };
    let Detached { mount, finished } = match opened {
        Opened::Mount(mount) => mount,
        Opened::Link(target) => return make_link(rootfs, entry, &target),
    };
    let is_kernels = !bind && matches!(entry.typ().as_deref(), Some("proc" | "sysfs"));
    let directory = !bind || is_directory(mount.as_fd())?;
    let is_tmpfs = !bind && kind(entry) == "tmpfs";
    let own_mode = options.data.iter().any(|(name, _)| name == "mode");
    let copy_up = options.copy_up && !bind;
    // A destination that is made now has nothing to copy, not even a mode.
    let covers = (copy_up || is_tmpfs && !own_mode)
        && rootfs.open(entry.destination(), OFlags::PATH).is_ok();
    let no_follow = options.destination_no_follow && entry.destination().file_name().is_some();
    let destination = if no_follow || is_kernels {
        rootfs.make_without_following(entry.destination(), directory)?
    } else {
        rootfs.make(entry.destination(), directory)?
    };
    ensure!(
        !is_kernels || is_directory(destination.as_fd())?,
        "in the rootfs, it is not a directory: Not a directory"
    );
    if covers && !own_mode {
        // As with runc and crun, the tmpfs gets the mode of the directory below. The kernel's
        // default is 1777.
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&destination)?.st_mode & 0o7777);
        rootfs.proc()?.chmod(mount.as_fd(), mode).context("set its mode")?;
    }
    if covers && copy_up {
        copy_up::copy_up(destination.as_fd(), mount.as_fd(), rootfs.proc()?)?;
    }
    let can_wait = options.is_read_only_later(entry);
    let read_only_later = can_wait && rootfs.delays_read_only();
    if !finished {
        let is_new = (!bind).then(|| kind(entry));
        options.finish(mount.as_fd(), is_new, read_only_later)?;
    } else if can_wait && !read_only_later {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        syscall::mount_setattr(mount.as_fd(), attr, false).context("make the mount read-only")?;
    }
    let place = destination.as_fd();
    let attached = rootfs.attach(mount.as_fd(), place, entry.destination());
    let is_root = attached?;
    if options.propagation.iter().any(|&(kind, _)| kind == libc::MS_SHARED) {
        rootfs.reach_others();
    }
    if is_root {
        rootfs.propagate_root_later(options.propagation);
    } else {
        options.propagate(mount.as_fd())?;
    }
    rootfs.cover(entry.destination());
    let of_hosts =
        || [Path::new("/proc"), Path::new("/sys")].contains(&entry.destination().as_path());
    let is_remounted = || remounted.contains(&entry.destination().as_path());
    let keeps = is_kernels || bind && of_hosts() || is_remounted();
    if keeps && read_only_later {
        rootfs.make_read_only_later(mount.try_clone()?)?;
        rootfs.keep(entry.destination(), mount);
    } else if keeps {
        rootfs.keep(entry.destination(), mount);
    } else if read_only_later {
        rootfs.make_read_only_later(mount)?;
    }
    Ok(())
}

/// Whether an earlier entry mounts the source of a bind mount in the rootfs. The runtime process
/// does not see that mount.
fn is_made_by(earlier: &[Mount], bundle: &Bundle, entry: &Mount, options: &Options) -> bool {
    let Some(source) = in_rootfs(bundle, entry, options) else { return false };
    earlier.iter().any(|earlier| {
        // Only links of the image can lie between the two. A source that no earlier entry makes
        // does not need init to open it.
        let destination = earlier.destination().strip_prefix("/");
        destination.is_ok_and(|destination| source.starts_with(destination))
    })
}

/// The source of a bind mount, relative to the rootfs.
fn in_rootfs(bundle: &Bundle, entry: &Mount, options: &Options) -> Option<PathBuf> {
    let source = bundle.path.join(entry.source().as_deref()?);
    // If mounts make the last parts of the path, the parts above them decide. The same holds for a
    // link that is not followed.
    source.ancestors().skip(usize::from(options.keeps_link())).find_map(|above| {
        let rest = source.strip_prefix(above).ok()?;
        let above = above.canonicalize().ok()?;
        // Collecting the parts drops a `/` at the end, which would ask for a directory.
        Some(
            above
                .strip_prefix(&bundle.rootfs)
                .ok()?
                .components()
                .chain(rest.components())
                .collect(),
        )
    })
}

/// Opens the source of a bind mount that an earlier entry has made, if the ids are to be mapped.
/// The runtime process then maps them. Runs in init.
pub(crate) fn open_to_be_mapped(
    rootfs: &Rootfs,
    bundle: &Bundle,
    entry: &Mount,
) -> Result<Option<Opened>> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    let bind = is_bind(entry, &options) && !options.remount;
    if !bind || idmap::wanted(entry, &options, bundle.linux())?.is_none() {
        return Ok(None);
    }
    refuse_data(&options)?;
    let Some(source) = in_rootfs(bundle, entry, &options) else { return Ok(None) };
    // Init looks the source up as the container sees it.
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, options.keeps_link());
    let mount = rootfs
        .open(&Path::new("/").join(&source), flags)
        .and_then(|source| clone_tree(source.as_fd(), Path::new(""), options.bind.unwrap_or(true)))
        .with_context(|| format!("open source `{}` in the rootfs", source.display()))?;
    Opened::source(mount, &options).map(Some)
}

/// Maps the ids of a mount that [`open_to_be_mapped`] has opened. Runs in the runtime process.
pub(crate) fn map(
    bundle: &Bundle,
    namespaces: &Namespaces,
    number: usize,
    mount: BorrowedFd<'_>,
) -> Result<()> {
    let entry = bundle.spec.mounts().as_ref().and_then(|mounts| mounts.get(number));
    let entry = entry.context("init sent the number of no mount")?;
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    let mapping = idmap::wanted(entry, &options, bundle.linux())?;
    let recursive = options.idmap.is_some_and(|idmap| idmap.recursive);
    let Some(mapping) = mapping else { return Ok(()) };
    mapping.apply(mount, recursive, namespaces).with_context(|| show(entry))
}

/// Which process opens a mount.
#[derive(Clone, Copy)]
enum By<'a> {
    /// The runtime process.
    Runtime(&'a Pinned),
    /// Init, in its own mount namespace, where a filesystem can be mounted on the rootfs for a
    /// moment.
    Init(&'a Rootfs),
}

/// The files that keep mount namespaces alive (`unshare --mount=FILE`, snapd). The kernel does not
/// attach a tree with such a file to a newer mount namespace, because that namespace could keep
/// itself alive. Empty until the first use.
#[derive(Default)]
struct Pinned(OnceCell<Vec<PathBuf>>);

impl Pinned {
    fn is_below(&self, path: &Path) -> bool {
        let find = || {
            let is_pinned = |mount: &Entry| {
                mount.kind == "nsfs" && mount.root.as_os_str().as_bytes().starts_with(b"mnt:")
            };
            let table = mount_table::own().unwrap_or_default();
            table.into_iter().filter(is_pinned).map(|mount| mount.point).collect()
        };
        let pinned = self.0.get_or_init(find);
        !pinned.is_empty()
            && path.canonicalize().is_ok_and(|path| pinned.iter().any(|it| it.starts_with(&path)))
    }
}

/// Opens the source of an entry as a detached mount.
fn open(
    bundle: &Bundle,
    namespaces: &Namespaces,
    entry: &Mount,
    options: &Options,
    by: By<'_>,
) -> Result<Opened, Unopened> {
    let rootfs = match by {
        By::Init(rootfs) => Some(rootfs),
        By::Runtime(_) => None,
    };
    if is_bind(entry, options) {
        refuse_data(options)?;
        let mount = clone(&bundle.path, entry, options, by)?;
        return Ok(Opened::source(mount, options)?);
    }
    let kind = kind(entry);
    let source = entry.source().as_deref();
    let label = if matches!(kind, "proc" | "sysfs") { None } else { label(bundle)? };
    let made = match label {
        None => make_in(kind, source, options, rootfs),
        Some(label) => {
            let mut options = options.clone();
            options.data.push(label);
            make_in(kind, source, &options, rootfs)
        }
    };
    let mount = match made {
        // Root of a user namespace may make these filesystems only if it also owns the namespace
        // that they show (`user_namespaces(7)`). Without a network, pid or ipc namespace of its
        // own, the container would see the host's, which it can see anyway.
        Err(Unopened::Forbidden(failure)) => {
            let there = match kind {
                "sysfs" if !namespaces.has(libc::CLONE_NEWNET) => "/sys",
                "proc" if !namespaces.has(libc::CLONE_NEWPID) => "/proc",
                "mqueue" if !namespaces.has(libc::CLONE_NEWIPC) => "/dev/mqueue",
                _ => return Err(failure.into()),
            };
            let mount = clone_tree(CWD, Path::new(there), true)
                .with_context(|| format!("open `{there}`"))?;
            syscall::mount_setattr(mount.as_fd(), options.attr, true)
                .context("set the attributes of the mount")?;
            mount
        }
        made => made?,
    };
    Ok(Opened::unfinished(mount))
}

/// A bind mount does not make a filesystem, so it cannot have options of a filesystem. An unknown
/// option is a mistake, for example `readonly` for `ro`, and must not be ignored.
fn refuse_data(options: &Options) -> Result<()> {
    let Some((name, _)) = options.data.first() else { return Ok(()) };
    bail!("a bind mount has no option `{name}`")
}

/// The mount option that labels a new filesystem for SELinux, if the configuration has a label.
fn label(bundle: &Bundle) -> Result<Option<(String, Option<String>)>> {
    let label = bundle.linux().mount_label().clone().filter(|label| !label.is_empty());
    let Some(label) = label else { return Ok(None) };
    let key = bundle.annotation(CONTEXT).unwrap_or("context");
    ensure!(
        matches!(key, "context" | "fscontext" | "defcontext" | "rootcontext"),
        "the annotation `{CONTEXT}` is `{key}`, which is not an SELinux mount option"
    );
    Ok(Some((key.to_owned(), Some(label))))
}

/// Makes a filesystem that has space for `count` device nodes and nothing else (a size of 0 would
/// mean no limit). A container with a user namespace uses it. A process with a descriptor can look
/// into its root.
pub(crate) fn make_for_devices(bundle: &Bundle, count: usize) -> Result<OwnedFd> {
    let inodes = format!("nr_inodes={}", count + 1);
    let flags = ["nosuid", "noexec", "size=4k", "mode=0711", &inodes];
    let mut options = Options::parse(&flags.map(str::to_owned))?;
    options.data.extend(label(bundle)?);
    Ok(make("tmpfs", Some(Path::new("tmpfs")), &options)?)
}

/// Opens the source of a bind mount as a new detached mount.
fn clone(bundle: &Path, entry: &Mount, options: &Options, by: By<'_>) -> Result<OwnedFd, Unopened> {
    let source = entry.source().as_ref().context("a bind mount without a source")?;
    let source = bundle.join(source);
    let mut flags = OpenTreeFlags::empty();
    flags.set(OpenTreeFlags::AT_RECURSIVE, options.bind.unwrap_or(true));
    // `Opened::source` checks the cloned mount, not the path, for a link. The path would be a
    // second look-up.
    flags.set(OpenTreeFlags::AT_SYMLINK_NOFOLLOW, options.keeps_link());
    let show = || format!("open source `{}`", source.display());
    let mount = clone_tree_at(CWD, &source, flags).map_err(|it| Failure::new(it, show()))?;
    match by {
        By::Runtime(pinned) if pinned.is_below(&source) => {
            Ok(clone_without_namespaces(&source, flags).with_context(show)?)
        }
        _ => Ok(mount),
    }
}

/// As [`clone_tree_at`], but without the files that keep mount namespaces alive. A new mount
/// namespace has none of these files, so a process in a new mount namespace makes the copy.
fn clone_without_namespaces(source: &Path, flags: OpenTreeFlags) -> Result<OwnedFd> {
    let helper = helper::start(libc::CLONE_NEWNS, "make a mount namespace", |socket| {
        let _ = helper::end_with_the_runtime_process();
        let mount = clone_tree_at(CWD, source, flags)?;
        socket.send_with(&Message::Ready, &[mount.as_fd()])
    })?;
    let answer = helper.socket.receive_with();
    namespaces::wait(helper.pid)?;
    let (message, mut files) = answer?;
    helper::ready(message, "the process in a new mount namespace")?;
    files.pop().context("no mount came")
}

/// The longest value that `fsconfig(2)` accepts (`strndup_user` in the kernel's `fs/fsopen.c`), in
/// bytes. `mount(2)` accepts a page of options.
const LONGEST_VALUE: usize = 255;

/// Makes a new filesystem as a detached mount. If an option is too long for `fsconfig(2)`, this
/// function uses `mount(2)`. Examples are the layers of an overlay and the options of a network's
/// disk.
fn make_in(
    kind: &str,
    source: Option<&Path>,
    options: &Options,
    rootfs: Option<&Rootfs>,
) -> Result<OwnedFd, Unopened> {
    let values = options.data.iter().filter_map(|(_, value)| value.as_deref());
    let source_bytes = source.map_or(0, |source| source.as_os_str().len());
    if values.map(str::len).chain([source_bytes]).all(|length| length <= LONGEST_VALUE) {
        return Ok(make_with(kind, source, options, options.at_birth(kind))?);
    }
    let rootfs = rootfs
        .with_context(|| format!("a source or an option of more than {LONGEST_VALUE} bytes"))?;
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for flag in &options.superblock {
        match *flag {
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            other => data.push(other.to_owned()),
        }
    }
    flags.set(MountFlags::RDONLY, !is_in_memory(kind) && options.is_read_only());
    data.extend(options.data.iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    }));
    let data = CString::new(data.join(",")).context("its options")?;
    let source = source.unwrap_or(Path::new("none"));
    let made = rootfs.in_a_scratch_place(|folder, name, place| {
        rustix::mount::mount(source, place, kind, flags, Some(data.as_c_str()))
            .with_context(|| format!("mount a `{kind}`"))?;
        clone_tree(folder, name, false).context("open the new mount")
    })?;
    let attr = MountAttr { set: options.at_birth(kind), ..options.attr };
    syscall::mount_setattr(made.as_fd(), attr, false).context("set the attributes of the mount")?;
    Ok(made)
}

/// Changes the mount at the destination. Unless `bind` limits the change to the mount, its
/// filesystem changes too. Attributes that the options do not name stay the same.
fn remount(rootfs: &mut Rootfs, entry: &Mount, options: &Options) -> Result<()> {
    if options.bind.is_some() {
        refuse_data(options)?;
    }
    // So that the last option wins.
    rootfs.finish_read_only()?;
    let places = rootfs.find(entry.destination())?;
    ensure!(!places.is_empty(), "the option `remount`: there is nothing to mount again");
    let whole =
        options.bind.is_none() && !(options.data.is_empty() && options.superblock.is_empty());
    for place in places {
        if whole {
            let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
            let filesystem = rustix::mount::fspick(place.as_fd(), "", flags)
                .context("the option `remount`: nothing is mounted there")?;
            configure(&filesystem, options, false)?;
            rustix::mount::fsconfig_reconfigure(filesystem.as_fd())
                .map_err(|error| explain(&filesystem, error, "change the filesystem".to_owned()))?;
        }
        options.finish(place.as_fd(), None, false).context("the option `remount`")?;
        options.propagate(place.as_fd())?;
    }
    Ok(())
}

impl Opened {
    fn unfinished(mount: OwnedFd) -> Opened {
        Opened::Mount(Detached { mount, finished: false })
    }

    /// The cloned source of a bind mount. With `copy-symlink`, the clone is a link that was not
    /// followed.
    fn source(mount: OwnedFd, options: &Options) -> Result<Opened> {
        let is_link = || -> rustix::io::Result<bool> {
            let mode = rustix::fs::fstat(&mount)?.st_mode;
            Ok(FileType::from_raw_mode(mode) == FileType::Symlink)
        };
        if options.copy_symlink && is_link()? {
            let target = rustix::fs::readlinkat(&mount, "", Vec::new());
            return Ok(Opened::Link(target.context("read the link")?));
        }
        Ok(Opened::unfinished(mount))
    }
}

/// Makes a symbolic link at the destination. An existing link there must have the same target.
fn make_link(rootfs: &Rootfs, entry: &Mount, target: &CStr) -> Result<()> {
    let (above, name) = rootfs.make_parent(entry.destination())?;
    match rustix::fs::symlinkat(target, &above, name) {
        Err(Errno::EXIST) => {
            let there = rustix::fs::readlinkat(&above, name, Vec::new()).ok();
            ensure!(there.as_deref() == Some(target), "something else is in the place of the link");
            Ok(())
        }
        made => made.context("make the link"),
    }
}

impl Options {
    /// Whether a link as source is not followed: the link itself is mounted or copied.
    fn keeps_link(&self) -> bool {
        self.source_no_follow || self.copy_symlink
    }

    /// Whether init may have to make something in a mount that becomes read-only: the place of
    /// another mount, or a device.
    fn is_read_only_later(&self, entry: &Mount) -> bool {
        (self.attr.set | self.recursive.set) & libc::MOUNT_ATTR_RDONLY != 0
            && (is_bind(entry, self) || kind(entry) == "tmpfs")
    }

    /// The attributes that a new mount is made with. A new mount has no attribute to clear.
    fn at_birth(&self, kind: &str) -> u64 {
        // Init must fill the mount or set its mode first.
        let writable = self.copy_up || kind == "tmpfs";
        self.attr.set & !if writable { libc::MOUNT_ATTR_RDONLY } else { 0 }
    }

    /// Sets the attributes that `open_tree` and `fsmount` could not set. For a new filesystem,
    /// `is_new` is its type. With `read_only_later`, the mount itself stays writable if it is
    /// writable now.
    fn finish(
        &self,
        mount: BorrowedFd<'_>,
        is_new: Option<&str>,
        read_only_later: bool,
    ) -> Result<()> {
        const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
        let set = |attr: MountAttr, recursive| {
            if attr == MountAttr::default() {
                return Ok(());
            }
            syscall::mount_setattr(mount, attr, recursive)
                .context("set the attributes of the mount")
        };
        let mut attr = self.attr;
        attr.set &= !if read_only_later { READ_ONLY } else { 0 };
        if is_new.is_none_or(|kind| self.at_birth(kind) != attr.set) {
            set(attr, false)?;
        }
        let reopens = read_only_later
            && self.recursive.set & READ_ONLY != 0
            && !rustix::fs::fstatvfs(mount)?.f_flag.contains(StatVfsMountFlags::RDONLY);
        set(self.recursive, true)?;
        if reopens {
            set(MountAttr { clear: READ_ONLY, ..MountAttr::default() }, false)?;
        }
        Ok(())
    }

    fn propagate(&self, mount: BorrowedFd<'_>) -> Result<()> {
        for &(propagation, recursive) in &self.propagation {
            let attr = MountAttr { propagation, ..MountAttr::default() };
            syscall::mount_setattr(mount, attr, recursive)
                .context("set the propagation of the mount")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) fn understand(entry: &Mount, linux: &oci_spec::runtime::Linux) -> Result<()> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default())?;
    idmap::wanted(entry, &options, linux).map(drop)
}
