//! `restore`: makes a container's processes again from the files that
//! [`mod@crate::container::checkpoint::dump`] has written. Runs in the runtime process, except for
//! the functions that say that they run in CRIU's process.
//!
//! CRIU makes the processes. `rt` makes their place, as at `create`: the name, the cgroup with its
//! limits, the rootfs with its mount points, and the `prestart` and `createRuntime` hooks. CRIU
//! runs in the container's cgroup, so that its processes can always be found, and in a mount
//! namespace that goes with it. This is our own code: libcontainer cannot restore.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::CapabilitySet;

use crate::bundle::Bundle;
use crate::container::becoming;
use crate::container::checkpoint::allowed_mounts::{self, Allowed};
use crate::container::checkpoint::cgroup_image;
use crate::container::checkpoint::confinement::Limits;
use crate::container::checkpoint::cover::Cover;
use crate::container::checkpoint::criu::{
    self, CgroupsMode, Criu, Criu_opts, Directories, Inherit_fd, Join_namespace, Kind, Notice,
    Prepare,
};
use crate::container::checkpoint::criu_limits;
use crate::container::checkpoint::dump::{self, DESCRIPTORS, NETWORK, PIDS};
use crate::container::checkpoint::external_mounts::Offers;
use crate::container::checkpoint::iptables_images;
use crate::container::checkpoint::memory_pages;
use crate::container::checkpoint::mount_images::{self, Rules};
use crate::container::checkpoint::network_images;
use crate::container::checkpoint::open_files;
use crate::container::checkpoint::process_images;
use crate::container::checkpoint::restored;
use crate::container::checkpoint::restored_cgroups;
use crate::container::checkpoint::restored_limits;
use crate::container::checkpoint::restrictions;
use crate::container::checkpoint::restrictions::{RECORD, Recorded};
use crate::container::delete;
use crate::container::hooks;
use crate::container::hooks::Streams;
use crate::container::pid_file;
use crate::container::plan;
use crate::container::undo;
use crate::failure;
use crate::interrupt::{self, HeldBack};
use crate::linux::cgroups::{self, Manager};
use crate::linux::host_proc::HostProc;
use crate::linux::mounts::{self, Remounted};
use crate::linux::namespaces::{self, Namespaces};
use crate::linux::process;
use crate::linux::rootfs::{self, Rootfs};
use crate::linux::terminal;
use crate::log;
use crate::state::{self, Directory, Root, State};
use crate::sync::{Message, Socket};
use crate::syscall::{self, MountAttr};
use crate::{ids, workload};

#[derive(Debug)]
pub(crate) struct RestoreOptions<'a> {
    pub(crate) common: criu::Options<'a>,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Bundle,
    pub(crate) manager: Manager,
    /// The handler for programs that `exec` starts in the container.
    pub(crate) asked: Option<workload::Handler>,
    pub(crate) pid_file: Option<&'a Path>,
    /// The socket to which the terminal is sent, if the container has a terminal.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) tcp_close: bool,
    pub(crate) lsm_profile: Option<&'a str>,
    pub(crate) lsm_mount_context: Option<&'a str>,
    /// Whether the container does not get the caller's session keyring.
    pub(crate) new_keyring: bool,
}

/// A restored container, which runs again.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) state: State,
    pub(crate) directory: Directory,
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

const LOG: &str = "restore.log";

/// Restores the container. If that fails, removes everything that it has made.
pub(crate) fn restore(root: &Root, options: &RestoreOptions<'_>) -> Result<Restored> {
    state::check_id(options.id)?;
    ensure!(ids::is_host_root(), "a restore requires root of the host");
    rustix::process::umask(Mode::from_raw_mode(0o022));
    process::forget_affinity();
    let namespaces = Namespaces::new(options.bundle.linux())?;
    dump::refuse_what_cannot_be_restored(&options.bundle.spec)?;
    let checkpoint = Checkpoint::read(&options.common)?;
    let resources = options.bundle.linux().resources().as_ref();
    criu_limits::refuse_more_processes(resources, checkpoint.found.threads)?;
    let annotations = options.bundle.annotations().into_iter().collect();
    let streams = Streams::open(&annotations)?;
    let mut state = plan::plan_state(options.id, options.bundle, options.manager, annotations)?;
    state.set_handler(options.asked.clone());
    state.keeps_keyring = !options.new_keyring;
    if options.bundle.process().terminal() != Some(true) {
        state.descriptors = plan::standard_streams();
    }
    let held = HeldBack::new();
    let (directory, _lock) = root.add(options.id)?;
    match make(options, &namespaces, checkpoint, &streams, &directory, &mut state, &held) {
        Ok((pid, pidfd)) => Ok(Restored { state, directory, pid, pidfd }),
        Err(error) => {
            interrupt::forget();
            // The container may run already. Without a cgroup of its own, nothing else would end
            // it.
            let ended = delete::end(&state);
            let limited = state.cgroup.limit_what_stays(criu_limits::exact(resources).as_ref());
            let undone = undo::undo(&directory, &state);
            failure::and_then_cleaned(Err(error), ended.and(limited).and(undone))
        }
    }
}

/// `rt`'s own files in a checkpoint.
struct Checkpoint {
    images: OwnedFd,
    /// CRIU's own standard streams that replace streams of the checkpoint, by their names in the
    /// checkpoint.
    inherited: Vec<Inherit_fd>,
    cgroups: cgroup_image::Image,
    found: process_images::Found,
}

impl Checkpoint {
    fn read(options: &criu::Options<'_>) -> Result<Checkpoint> {
        let show = || read_error(options, DESCRIPTORS);
        let images = options.open_images().with_context(show)?;
        let names: Vec<String> = criu::read_json(images.as_fd(), DESCRIPTORS).with_context(show)?;
        let cgroups = cgroup_image::Image::read(images.as_fd())
            .with_context(|| read_error(options, cgroup_image::IMAGE))?;
        // Before anything is read, there is an end.
        criu::each_checkpoint(images.as_fd(), options.images, &mut |_, _| Ok(()))?;
        let found = process_images::check(images.as_fd(), &|name| read_error(options, name))?;
        memory_pages::check(images.as_fd(), options.images, options.lazy_pages, &found.sizes)?;
        network_images::check(images.as_fd(), &|name| read_error(options, name))?;
        iptables_images::check(images.as_fd(), &|name| read_error(options, name))?;
        let external = |name: &str| name.starts_with("pipe:") || name.starts_with("file[");
        let names = names.into_iter().zip(0..3).filter(|(name, _)| external(name));
        let inherited = names.map(|(name, number)| inherit(&name, number)).collect();
        Ok(Checkpoint { images, inherited, cgroups, found })
    }

    fn mounts(&self, options: &criu::Options<'_>) -> Result<Vec<Recorded>> {
        criu::read_json(self.images.as_fd(), RECORD).with_context(|| read_error(options, RECORD))
    }
}

fn read_error(options: &criu::Options<'_>, name: &str) -> String {
    format!("read `{}` of the checkpoint", options.images.join(name).display())
}

fn inherit(key: &str, descriptor: i32) -> Inherit_fd {
    Inherit_fd { key: Some(key.to_owned()), fd: Some(descriptor), ..Inherit_fd::default() }
}

/// Step 1 from the claim on the name on, and steps 2 to 9.
fn make(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    checkpoint: Checkpoint,
    streams: &Streams,
    directory: &Directory,
    state: &mut State,
    held: &HeldBack,
) -> Result<(Pid, OwnedFd)> {
    let recorded = checkpoint.mounts(&options.common)?;
    let Checkpoint { images, inherited, cgroups, found } = checkpoint;
    let places = record(options, namespaces, images, directory, state)?;
    // The files that CRIU reads instead of some images of the checkpoint, above all those of mounts
    // and of cgroups.
    let mut covered = mount_images::names(places.directories.images())?;
    covered.push(cgroup_image::IMAGE.to_owned());
    covered.extend(found.written.iter().map(|(name, _)| name.clone()));
    if namespaces.joined(libc::CLONE_NEWNET).is_some() {
        // The network is not the container's alone.
        covered.extend(network_images::connections(places.directories.images())?);
    }
    let cover = Cover::new(directory.cover_folder(), covered)?;
    let mut criu =
        clone_criu(options, namespaces, &places, &cover, found.processes, directory, state)?;
    let mut watch = Watch {
        limits: Limits::new(options.bundle, state, options.lsm_profile)?,
        cgroups: allowed_mounts::cgroups_of(&state.cgroup, state.pid)?,
        home: restored_cgroups::table(Path::new(&format!("/proc/{}", state.pid)))?,
        criu: criu.process(),
        held,
        has_covered: false,
        options,
        namespaces,
        streams,
        directory,
        notify: &places.notify,
        recorded: &recorded,
        state,
    };
    criu.refuse_ended()?;
    let mounts = watch.mounts(places.directories.images())?;
    mounts.iter().chain(&found.written).try_for_each(|(name, image)| cover.write(name, image))?;
    let request = watch.request(&places, inherited)?;
    let cgroups = cgroups_for_criu(&cgroups, options.bundle, namespaces, watch.state, &watch.home)?;
    cover.write(cgroup_image::IMAGE, &cgroups)?;
    let directories = &places.directories;
    if let Some(images) = show_to_container(options, namespaces, cover.folder(), directories) {
        criu.read_through(images);
    }
    let yards = directories.yards().context("look for what `criu` has left")?;
    criu.guard(&watch.state.cgroup, &yards)?;
    let restored = criu.call(request, &mut |notice| watch.hear(notice));
    cover.remove();
    restored.map_err(|error| {
        if let Err(left) = yards.remove_new() {
            tracing::debug!("remove what `criu` has left: {left:#}");
        }
        criu::explain(error, directories, &options.common, LOG)
    })?;
    publish(options, namespaces, &places, directory, state)
}

/// The places on the host that CRIU uses.
struct Places {
    /// The mount point of the rootfs, in CRIU's mount namespace.
    root: PathBuf,
    /// For a container that had a socket for `sd_notify(3)`. In other containers, it is not
    /// mounted.
    notify: PathBuf,
    /// The images and the log.
    directories: Directories,
}

/// Writes the files that `delete` needs, and makes the places.
fn record(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    images: OwnedFd,
    directory: &Directory,
    state: &State,
) -> Result<Places> {
    state.cgroup.refuse_if_in_use()?;
    directory.write_config(&options.bundle.config)?;
    directory.write(state)?;
    let root = directory.make_root_folder(namespaces.makes(libc::CLONE_NEWUSER))?;
    let directories = options.common.make_directories(Some(images))?;
    directories.refuse_others_files(options.common.images)?;
    let notify = directory.notify_folder();
    fs::create_dir(&notify).with_context(|| format!("make `{}`", notify.display()))?;
    directories.remove_log(LOG)?;
    Ok(Places { root, notify, directories })
}

/// Starts CRIU in the container's cgroup. CRIU then waits for the request.
fn clone_criu(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    places: &Places,
    cover: &Cover,
    processes: u64,
    directory: &Directory,
    state: &mut State,
) -> Result<Criu> {
    let (bundle, linux) = (options.bundle, options.bundle.linux());
    let keep: Vec<_> = shared(namespaces).into_iter().map(|(namespace, _)| namespace).collect();
    let birthplace = state.cgroup.make_for_birth(&directory.mark()?)?;
    log::step("restore, step 2: clone CRIU's process", &"");
    Criu::start(
        Kind::RESTORE,
        (&options.common, &places.directories),
        birthplace.as_ref().map(AsFd::as_fd),
        &keep,
        &Prepare {
            place: &|socket| {
                socket.carry_log();
                let root = places.root.display();
                log::step("restore, step 3: CRIU's process prepares the root", &root);
                // The processes that CRIU makes become the container's.
                if options.new_keyring {
                    becoming::leave_session_keyring(options.id)?;
                }
                prepare_place(socket, bundle, namespaces, &places.root)?;
                log::step("restore, step 4: CRIU's process becomes CRIU", &"");
                Ok(())
            },
            images: &|images| cover.put_on(images),
        },
        |pid, socket| {
            // If this command is killed from here on, `delete` ends CRIU's process.
            plan::belongs_to(state, pid)?;
            if let (Some(groups), Some(rdt)) = (&mut state.rdt, linux.intel_rdt()) {
                groups.make(rdt, pid)?;
            }
            let limits = criu_limits::first(linux.resources().as_ref(), processes);
            let tasks = state.cgroup.prepare(pid, limits.as_ref())?;
            if plan::wants_its_cgroup(bundle, namespaces) {
                state.cgroup.give(namespaces::root_on_the_host(linux))?;
            }
            state.cgroup.filter_devices(linux.resources().as_ref())?;
            directory.write(state)?;
            let tasks: Vec<_> = tasks.iter().map(AsFd::as_fd).collect();
            socket.send_with(&Message::Cgroup { memory: None }, &tasks)
        },
    )
}

/// The work of the runtime process while CRIU restores.
struct Watch<'a> {
    options: &'a RestoreOptions<'a>,
    namespaces: &'a Namespaces,
    streams: &'a Streams,
    directory: &'a Directory,
    notify: &'a Path,
    recorded: &'a [Recorded],
    state: &'a mut State,
    limits: Limits<'a>,
    /// The cgroups of CRIU. `rt` does not ask where the images put the first process.
    cgroups: Vec<PathBuf>,
    home: Vec<(String, PathBuf)>,
    criu: Pid,
    held: &'a HeldBack,
    /// Whether `rt` has covered something that the configuration masks.
    has_covered: bool,
}

impl Watch<'_> {
    /// The images of mounts that CRIU reads, by their names. Fails if the images have CRIU mount or
    /// open what no checkpoint of this container has.
    fn mounts(&self, images: BorrowedFd<'_>) -> Result<Vec<(String, Vec<u8>)>> {
        let (options, bundle) = (self.options, self.options.bundle);
        let offers = Offers::new(bundle, &self.state.cgroup, self.notify)?;
        let rules = Rules { bundle, offers: &offers, limits: &self.limits };
        rules.check(images, &|name| read_error(&options.common, name))
    }

    /// The request to CRIU.
    fn request(&self, places: &Places, inherited: Vec<Inherit_fd>) -> Result<Criu_opts> {
        let (options, cgroup) = (self.options, &self.state.cgroup);
        log::step("restore, step 5: send the request", &options.common.images.display());
        let shared = shared(self.namespaces);
        let keys: Vec<_> =
            shared.iter().map(|(namespace, name)| inherit(name, namespace.as_raw_fd())).collect();
        let annotation = |key: &str| options.bundle.annotation(key).map(str::to_owned);
        let mut request = Criu_opts {
            root: Some(places.root.to_string_lossy().into_owned()),
            rst_sibling: Some(true),
            evasive_devices: Some(true),
            tcp_close: Some(options.tcp_close),
            lsm_profile: options.lsm_profile.map(str::to_owned),
            lsm_mount_context: options.lsm_mount_context.map(str::to_owned),
            inherit_fd: [inherited, keys].concat(),
            join_ns: join_namespaces(self.namespaces),
            ext_mnt: Offers::new(options.bundle, cgroup, self.notify)?.all()?,
            mntns_compat_mode: Some(criu::shares_mounts_wrongly()),
            ..options.common.request(LOG, annotation)?
        };
        if options.common.cgroups.is_none() && cgroup.manager == Manager::Disabled {
            request.manage_cgroups_mode = Some(CgroupsMode::IGNORE.into());
        }
        Ok(request)
    }

    /// Does the step that belongs to a notification.
    fn hear(&mut self, notice: Notice) -> Result<()> {
        match notice.script.as_str() {
            "setup-namespaces" => self.run_hooks(notice.pid),
            "orphan-pts-master" => {
                log::step("restore, step 7: send the terminal", &"");
                self.send_terminal(notice.descriptor)
            }
            // The first process has its memory and its files, and does not run yet.
            "post-restore" => self.restrict_mounts(notice.pid),
            criu::BEFORE_IT_RUNS => self.compare(),
            _ => Ok(()),
        }
    }

    fn run_hooks(&mut self, pid: i32) -> Result<()> {
        log::step("restore, step 6: run hooks", &pid);
        plan::belongs_to(self.state, Pid::from_raw(pid).context("no process")?)?;
        // If this command is killed during a hook, and the container has no cgroup, `delete` finds
        // the process by this record.
        self.directory.write(self.state)?;
        let hooks = self.options.bundle.spec.hooks().as_ref();
        hooks::run_before_creation(hooks, self.state, self.streams)
    }

    fn send_terminal(&self, master: Option<OwnedFd>) -> Result<()> {
        let master = master.context("`criu` sent no terminal")?;
        let console = self.options.console.as_ref();
        let console = console.context("it has a terminal: `--console-socket` is missing")?;
        terminal::send(console.as_fd(), "/dev/ptmx", master.as_fd())
    }

    fn restrict_mounts(&mut self, pid: i32) -> Result<()> {
        let (state, bundle) = (&mut *self.state, self.options.bundle);
        if self.options.console.is_none() {
            log::step("restore, step 7: send the terminal", &"none");
        }
        log::step("restore, step 8: compare the processes with the configuration", &pid);
        let pid = Pid::from_raw(pid).context("no process")?;
        plan::belongs_to(state, pid)?;
        state.mount_namespace = self.namespaces.mount_namespace(pid);
        // A hook may have mounted something on the host.
        let offers = Offers::new(bundle, &state.cgroup, self.notify)?;
        let allowed = Allowed::new(&offers, bundle, &self.limits, &self.cgroups)?;
        self.has_covered = restrictions::put_back(state, bundle, &allowed, self.recorded)?;
        state.cgroup.hand_down();
        self.directory.write(state)
    }

    /// Compares the processes with the configuration, and limits them.
    fn compare(&self) -> Result<()> {
        let (state, bundle) = (&*self.state, self.options.bundle);
        let processes = restored::processes(state.pid, self.criu)?;
        self.limits.check(state.pid, &processes, Some(self.namespaces))?;
        restored_cgroups::refuse_others(
            &processes,
            restored_cgroups::own(&state.cgroup),
            &self.home,
        )?;
        // With this capability, the container can make mounts, and remove covers itself.
        let may_mount = self.limits.gives(CapabilitySet::SYS_ADMIN);
        // In a user namespace, the files of its mounts are still all that it has.
        if !may_mount || self.limits.has_user_namespace() {
            open_files::refuse_outside(&processes)?;
        }
        if !may_mount && self.has_covered {
            open_files::refuse_covered(state.pid, &processes)?;
        }
        restored_limits::lower(&processes, bundle.process(), &self.limits)?;
        let resources = bundle.linux().resources().as_ref().filter(|_| is_limited(self.options));
        if let Some(limits) = criu_limits::last(resources, self.criu) {
            state.cgroup.update(limits).context("limit what is restored")?;
            if let Err(error) = state.cgroup.take_out(self.criu) {
                // Until CRIU ends, the container may have one process less.
                tracing::debug!("take `criu` out of the container's cgroup: {error:#}");
            }
        }
        self.held.refuse_interrupted()
    }
}

fn is_limited(options: &RestoreOptions<'_>) -> bool {
    options.manager != Manager::Disabled
}

/// Sets the exact limits of the container, and publishes it.
fn publish(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    places: &Places,
    directory: &Directory,
    state: &mut State,
) -> Result<(Pid, OwnedFd)> {
    log::step("restore, step 9: publish the container", &state.pid);
    let resources = options.bundle.linux().resources().as_ref();
    if let Some(resources) = resources.filter(|_| is_limited(options)) {
        let limited = state.cgroup.update(resources.clone()).context("limit what was restored");
        // systemd releases the scope of a container that has ended.
        if state.process()?.is_some() {
            limited?;
        }
    }
    // The rootfs was mounted here only in CRIU's mount namespace, which is gone.
    let _ = fs::remove_dir(&places.root);
    if namespaces.makes(libc::CLONE_NEWUSER) {
        directory.close()?;
    }
    let pid = Pid::from_raw(state.pid).context("no process")?;
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd of init")?;
    if let Some(path) = options.pid_file {
        pid_file::write(path, pid)?;
    }
    state.cgroup.leave_claim();
    Ok((pid, pidfd))
}

/// In a user namespace, CRIU reads the checkpoint as the host's root without its privileges, and
/// later as the container's root. The checkpoint must be open to both, and to no other user. So
/// CRIU reads it through a mount that only CRIU has: an overlay of an open directory over the
/// closed one. None without a user namespace, or without overlayfs. None also for a checkpoint with
/// an earlier one: in the overlay, its link could lead to files that `rt` has not checked. Then
/// others must be able to read the checkpoint.
fn show_to_container(
    options: &RestoreOptions<'_>,
    namespaces: &Namespaces,
    open: &Path,
    checkpoint: &Directories,
) -> Option<OwnedFd> {
    let is_unsuitable = options.common.auto_dedup || checkpoint.has_parent();
    if !namespaces.makes(libc::CLONE_NEWUSER) || is_unsuitable {
        return None;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).ok();
    let open = directory(open)?;
    // By number: a path may contain the character that separates layers.
    let layers = [open.as_fd(), checkpoint.images()]
        .map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()));
    let options = mounts::Options {
        attr: MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() },
        data: vec![("lowerdir".to_owned(), Some(layers.join(":")))],
        ..mounts::Options::default()
    };
    mounts::detached::make("overlay", Some(Path::new("overlay")), &options)
        .map_err(anyhow::Error::from)
        .inspect_err(|error| {
            tracing::debug!("lay an open directory over the checkpoint: {error:#}");
        })
        .ok()
}

/// Enters the cgroup, mounts the rootfs at the place that becomes the root, and makes the mount
/// points in it. CRIU requires a mount whose parent is not covered by another mount, and the parent
/// of a caller's rootfs may be. Runs in CRIU's process.
fn prepare_place(
    socket: &Socket,
    bundle: &Bundle,
    namespaces: &Namespaces,
    place: &Path,
) -> Result<()> {
    for tasks in socket.expect_cgroup()?.1 {
        cgroups::enter(&tasks).context("enter the cgroup")?;
    }
    syscall::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?;
    let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slaves).context("make the host's mounts slaves")?;
    // `rt` checks the same descriptor that CRIU gets.
    let tree = rootfs::open_host(&bundle.rootfs).context("open the rootfs")?;
    let below = rootfs::open_host(place)?;
    let mount = || Rootfs::mount(tree.as_fd(), below.as_fd(), None, HostProc::open()?);
    let mut rootfs = mount()?;
    dump::refuse_without_a_place(&rootfs, bundle)?;
    make_mount_points(&mut rootfs, bundle, namespaces)?;
    drop(rootfs);
    rustix::mount::unmount(place, UnmountFlags::DETACH).context("unmount the rootfs")?;
    dump::refuse_without_a_place(&mount()?, bundle)?;
    if bundle.process().no_new_privileges() == Some(true) {
        // The processes that CRIU makes inherit this flag, and cannot lose it. CRIU before 4.0 does
        // not know the flag, and later versions follow the images.
        rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    }
    Ok(())
}

/// A new rootfs has no directories for the mounts. Directories on a filesystem that CRIU restores
/// come with that filesystem. Directories in mounts from the host are made there, as at `create`.
fn make_mount_points(rootfs: &mut Rootfs, bundle: &Bundle, namespaces: &Namespaces) -> Result<()> {
    let mut restored: Vec<&Path> = Vec::new();
    let remounted = Remounted::default();
    // On its way to the new root, CRIU requires a directory of this name. CRIU cannot make the
    // directory in a read-only root.
    if bundle.spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        rootfs.make(Path::new("/tmp"), true).context("make a place for `criu`")?;
    }
    for entry in bundle.spec.mounts().iter().flatten().filter(|entry| !mounts::remounts(entry)) {
        let destination = entry.destination().as_path();
        if restored.iter().any(|above| destination.starts_with(above) && destination != *above) {
            continue;
        }
        let show = || format!("mount `{}`", destination.display());
        if mounts::binds(entry) {
            mounts::mount(rootfs, bundle, namespaces, entry, None, &remounted)
                .with_context(show)?;
        } else {
            rootfs.make(destination, true).with_context(show)?;
            restored.push(destination);
        }
    }
    Ok(())
}

/// The namespaces that the container shares again, with their names. CRIU must inherit them.
fn shared(namespaces: &Namespaces) -> Vec<(BorrowedFd<'_>, &'static str)> {
    let kinds = [(libc::CLONE_NEWNET, NETWORK), (libc::CLONE_NEWPID, PIDS)];
    kinds.into_iter().filter_map(|(flag, name)| Some((namespaces.joined(flag)?, name))).collect()
}

/// The shared namespaces of other kinds, which CRIU enters by itself.
fn join_namespaces(namespaces: &Namespaces) -> Vec<Join_namespace> {
    let kinds = [
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWUTS, "uts"),
        (namespaces::CLONE_NEWTIME, "time"),
    ];
    let joined =
        kinds.into_iter().filter_map(|(flag, name)| Some((namespaces.joined(flag)?, name)));
    let own = std::process::id();
    joined
        .map(|(namespace, name)| Join_namespace {
            ns: Some(name.to_owned()),
            // The opened namespace, because the path may lead to another one by then.
            ns_file: Some(format!("/proc/{own}/fd/{}", namespace.as_raw_fd())),
            ..Join_namespace::default()
        })
        .collect()
}

/// The image of cgroups that CRIU reads.
fn cgroups_for_criu(
    image: &cgroup_image::Image,
    bundle: &Bundle,
    namespaces: &Namespaces,
    state: &State,
    home: &[(String, PathBuf)],
) -> Result<Vec<u8>> {
    let (mut owner, own) = ((0, 0), restored_cgroups::own(&state.cgroup));
    if plan::wants_its_cgroup(bundle, namespaces) {
        let (user, group) = namespaces::root_on_the_host(bundle.linux());
        owner = (user.as_raw(), group.as_raw());
    }
    let homes = restored_cgroups::homes(own, home)?;
    let has_namespace = namespaces.makes(libc::CLONE_NEWCGROUP);
    image
        .written_for(&cgroup_image::Place { homes: &homes, has_namespace, owner })
        .context("write the image of cgroups")
}
