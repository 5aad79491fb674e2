//! What the container's first process does between its birth and its exec. Everything here runs in
//! that process, in the container's namespaces, and the order matters: see `docs/operation.md`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Hook, Hooks, Mount};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::container::becoming::{self, Ready};
use crate::container::hooks;
use crate::container::hooks::Streams;
use crate::container::module;
use crate::container::plan::{self, Options};
use crate::executor;
use crate::linux::cgroup_mount;
use crate::linux::cgroups;
use crate::linux::cgroups::Manager;
use crate::linux::descriptors;
use crate::linux::devices;
use crate::linux::host_proc::HostProc;
use crate::linux::memory_policy;
use crate::linux::mounts;
use crate::linux::mounts::Opened;
use crate::linux::namespaces::{self, Namespaces};
use crate::linux::process;
use crate::linux::rootfs::{Covers, Rootfs};
use crate::linux::sd_notify;
use crate::linux::seccomp::Filter;
use crate::linux::sysctl;
use crate::linux::terminal;
use crate::log;
use crate::state::{State, Status};
use crate::sync::{Message, Socket};
use crate::syscall;
use crate::workload::{self, Rights};

/// What init was born with.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) options: &'a Options<'a>,
    pub(super) namespaces: &'a Namespaces,
    pub(super) filter: Option<&'a Filter>,
    /// Of a module.
    pub(super) rights: &'a Rights,
    /// What the caller's process has opened for `mounts`.
    pub(super) mounts: Vec<Option<Opened>>,
    /// What it has made for `linux.devices`.
    pub(super) devices: Option<OwnedFd>,
    /// The limit of descriptors that is the container's.
    pub(super) descriptors: descriptors::Before,
    /// Nodes in the rootfs are not to be used.
    pub(super) ignores_devices: bool,
    /// Where hooks print to.
    pub(super) streams: Streams,
    /// What holds the container's socket for `sd_notify(3)`.
    pub(super) notify: Option<sd_notify::Folder>,
    /// Opened before a mount namespace was joined, where anything may be in its place. None when it
    /// is taken.
    pub(super) proc: Option<HostProc>,
    /// Readable when the program may start; none when the caller says so over the socket.
    pub(super) start_fifo: Option<OwnedFd>,
    pub(super) socket: Socket,
    /// From this number on, descriptors are this runtime's and not the caller's gifts.
    pub(super) first_own: u32,
    pub(super) state: &'a State,
}

/// The exit codes of a shell for a program that cannot be run, and one that is not there.
const CANNOT_RUN: i32 = 126;
const NOT_THERE: i32 = 127;

/// Runs init. Ends in the program, or in the end of the process.
pub(super) fn main(mut plan: Plan<'_>) -> ! {
    let set_up = Given::take(&mut plan).and_then(|given| set_up(&plan, given));
    let (ready, environment) = match set_up {
        Ok(made) => made,
        Err(error) => {
            // The caller prints it. If it is gone, nobody is interested.
            let _ = plan.socket.send(&Message::Failed(format!("{error:#}")));
            syscall::exit_now(1)
        }
    };
    let Ready { program, listener, filter, cgroup, endings } = ready;
    let begun = wait_for_start(&plan, listener, endings.as_ref())
        .and_then(|()| becoming::load_last(filter))
        .and_then(|()| run_start_hooks(&plan, &environment))
        .and_then(|()| module::enter(cgroup));
    let (error, code) = match begun {
        Ok(()) => {
            // The kernel looks the program up once more.
            drop(std::mem::take(&mut plan.streams));
            let failure = program.exec();
            let code = if failure.is(Errno::NOENT) { NOT_THERE } else { CANNOT_RUN };
            (failure.into(), code)
        }
        // Nothing is said about the program: a hook may be missing.
        Err(error) => (error, 1),
    };
    // The caller has gone: the one place left is the container's own standard error.
    let line = format!("rt: start `{}`: {}\n", plan.options.id, crate::report::describe(&error));
    let _ = std::io::stderr().write_all(line.as_bytes());
    syscall::exit_now(code)
}

/// What the runtime process has opened for init alone.
struct Given {
    mounts: Vec<Option<Opened>>,
    devices: Option<OwnedFd>,
    notify: Option<sd_notify::Folder>,
    proc: HostProc,
}

impl Given {
    fn take(plan: &mut Plan<'_>) -> Result<Given> {
        Ok(Given {
            mounts: std::mem::take(&mut plan.mounts),
            devices: plan.devices.take(),
            notify: plan.notify.take(),
            proc: plan.proc.take().context("the host's `/proc` was not opened")?,
        })
    }
}

/// Everything up to that point. Returns the program's environment besides, which `startContainer`
/// hooks have too.
fn set_up<'a>(plan: &Plan<'a>, given: Given) -> Result<(Ready<'a>, Vec<String>)> {
    let is_service = given.notify.is_some();
    let place = enter_namespaces(plan)?;
    let (mut rootfs, place) = mount(plan, given.proc, given.mounts, place)?;
    let memory = make_devices_and_terminal(plan, &mut rootfs, given.devices, given.notify, place)?;
    run_hooks(plan)?;
    let withhold_devices = mask_and_limit(plan, &mut rootfs)?;
    let process = plan.options.bundle.process();
    let home = becoming::home(&rootfs, process);
    let registered = workload::registered_formats();
    change_root(plan, &rootfs)?;
    drop(rootfs);
    let env = becoming::environment(process, home, plan.options.listen_fds, is_service);
    let ready = become_ready(plan, &env, registered, memory, withhold_devices)?;
    Ok((ready, env))
}

/// Returns the place in the cgroup, where that is entered already.
fn enter_namespaces(plan: &Plan<'_>) -> Result<Option<Place>> {
    let (spec, namespaces) = (&plan.options.bundle.spec, plan.namespaces);
    // Until the caller has recorded it. What changes the user ends this too; from then on init
    // notices by itself, since it waits for the caller's word.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("end with the caller")?;
    rustix::process::setsid().context("start a session")?;
    if namespaces.makes(libc::CLONE_NEWUSER) {
        plan.socket.expect(&Message::Mapped)?;
        namespaces::become_root(namespaces::dumpable()?)?;
        namespaces.keep_neighbours_out()?;
    }
    // systemd looks at the process that it moves: one that failed meanwhile leaves a scope that
    // nobody knows.
    let by_systemd = plan.options.manager == Manager::Systemd;
    let place = by_systemd.then(|| enter_cgroup(plan)).transpose()?;
    namespaces.join_rest()?;
    if namespaces.makes(libc::CLONE_NEWNET) {
        namespaces::bring_loopback_up()?;
    }
    if let Some(hostname) = spec.hostname() {
        rustix::system::sethostname(hostname.as_bytes()).context("set the hostname")?;
    }
    if let Some(domainname) = spec.domainname() {
        rustix::system::setdomainname(domainname.as_bytes()).context("set the domainname")?;
    }
    Ok(place)
}

/// Makes the rootfs a mount, and carries out `mounts`.
fn mount(
    plan: &Plan<'_>,
    proc: HostProc,
    opened: Vec<Option<Opened>>,
    place: Option<Place>,
) -> Result<(Rootfs, Option<Place>)> {
    let bundle = plan.options.bundle;
    log::step("create, step 12: init mounts", &bundle.rootfs.display());
    let propagation = bundle.linux().rootfs_propagation().as_deref();
    let mut rootfs = if plan.namespaces.has_mount() {
        Rootfs::enter(&bundle.rootfs, propagation, proc)
    } else {
        Rootfs::open_with(&bundle.rootfs, proc)
    }
    .with_context(|| format!("prepare rootfs `{}`", bundle.rootfs.display()))?;
    let entries = bundle.spec.mounts().as_deref().unwrap_or_default();
    let place = mount_all(plan, &mut rootfs, entries, opened, place)?;
    Ok((rootfs, place))
}

/// Returns the limit of memory that an engine is told, in bytes.
fn make_devices_and_terminal(
    plan: &Plan<'_>,
    rootfs: &mut Rootfs,
    devices: Option<OwnedFd>,
    notify: Option<sd_notify::Folder>,
    place: Option<Place>,
) -> Result<Option<u64>> {
    log::step("create, step 13: init makes devices and the terminal", &"");
    let (bundle, namespaces) = (plan.options.bundle, plan.namespaces);
    let (linux, process) = (bundle.linux(), bundle.process());
    if namespaces.has_mount() {
        // Only the initial user namespace may make device nodes (`user_namespaces(7)`).
        let bind = namespaces.makes(libc::CLONE_NEWUSER) || !crate::ids::is_host_root();
        let listed = linux.devices().as_deref().unwrap_or_default();
        let entries = bundle.spec.mounts().as_deref().unwrap_or_default();
        devices::make(rootfs, listed, devices, entries, bind)?;
        if let Some(folder) = notify {
            sd_notify::mount(rootfs, folder)?;
        }
    }
    rootfs.make(process.cwd(), true).context("make the working directory")?;
    if let Some(parameters) = linux.sysctl() {
        sysctl::set(parameters)?;
    }
    let mut place = place.map_or_else(|| enter_cgroup(plan), Ok)?;
    // Until here nothing was opened that could be a device of the image's.
    place.expect_restrictions(plan)?;
    if let Some(console) = &plan.options.console {
        terminal::set_up(rootfs, process, console.as_fd(), true).context("set up the terminal")?;
    }
    Ok(place.memory)
}

/// Hides what the program shall not see or change, and sets limits while the host's `/proc` and the
/// rights for it are there. Returns whether only the rights to make a device node keep the program
/// from the host's devices.
fn mask_and_limit(plan: &Plan<'_>, rootfs: &mut Rootfs) -> Result<bool> {
    let (bundle, namespaces) = (plan.options.bundle, plan.namespaces);
    let linux = bundle.linux();
    rootfs.finish_read_only()?;
    descriptors::give_back(plan.descriptors).context(descriptors::GIVE_BACK)?;
    let mut covers = Covers::default();
    for path in linux.masked_paths().iter().flatten() {
        rootfs.mask(Path::new(path), &mut covers).with_context(|| format!("mask `{path}`"))?;
    }
    for path in linux.readonly_paths().iter().flatten() {
        rootfs
            .make_read_only(Path::new(path), &mut covers)
            .with_context(|| format!("make `{path}` read-only"))?;
    }
    if bundle.spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        ensure!(
            namespaces.has_mount(),
            "a read-only root needs a mount namespace of the container's own"
        );
        rootfs.make_root_read_only()?;
    }
    // While the host's `/proc` is there, which says whose root this is.
    let withhold_devices = plan.state.cgroup.leaves_devices_open(linux.resources().as_ref())?;
    let ignores_devices = plan.ignores_devices || withhold_devices && !rootfs.has_own_devices()?;
    if namespaces.has_mount() && ignores_devices {
        rootfs.ignore_devices().context("ignore the devices of the rootfs")?;
    }
    // What needs the host's /proc, or privileges, before both are gone.
    if !plan::limits_it(plan.state, namespaces) {
        process::limit(None, bundle.process())?;
    }
    if let Some(personality) = linux.personality() {
        process::set_personality(personality)?;
    }
    memory_policy::set_memory_policy(linux.memory_policy().as_ref())?;
    Ok(withhold_devices)
}

fn change_root(plan: &Plan<'_>, rootfs: &Rootfs) -> Result<()> {
    let bundle = plan.options.bundle;
    log::step("create, step 16: init changes the root", &bundle.rootfs.display());
    becoming::set_security_label(bundle.process(), rootfs.proc()?)?;
    let propagation = bundle.linux().rootfs_propagation().as_deref();
    if !plan.namespaces.has_mount() {
        rootfs.chroot()
    } else if plan.options.no_pivot {
        rootfs.move_and_chroot(propagation)
    } else {
        rootfs.pivot(propagation)
    }
}

/// The rest, which `exec` has too.
fn become_ready<'a>(
    plan: &Plan<'a>,
    env: &[String],
    registered: workload::Registered,
    memory: Option<u64>,
    withhold_devices: bool,
) -> Result<Ready<'a>> {
    let (options, bundle) = (plan.options, plan.options.bundle);
    let process = bundle.process();
    let keep_groups = bundle.annotation(becoming::KEEP_GROUPS).is_some_and(|value| value != "0");
    let kept = plan.start_fifo.iter().map(AsFd::as_fd).chain(plan.streams.files()).collect();
    let becoming = becoming::Plan {
        process,
        can_be_ended: plan.start_fifo.is_some(),
        socket: &plan.socket,
        first_own: plan.first_own,
        kept,
        withhold_devices,
        keep_groups,
        lacks_root: namespaces::lacks_root(Some(bundle.linux())),
        by_root: plan.state.uid == 0,
        rights: plan.rights,
        start_hooks: start_hooks(plan),
        step: log::step,
        request: executor::Request {
            args: process.args().as_deref().unwrap_or_default(),
            env,
            configured_env: &becoming::configured_environment(process),
            cwd: process.cwd(),
            engines: options.engines.as_ref(),
            registered,
            mounts: bundle.spec.mounts().as_deref().unwrap_or_default(),
            rights: plan.rights,
            memory,
            ask: &|number, module| plan.socket.ask_for_engine(number, module),
        },
    };
    becoming::ready(&becoming, plan.filter)
}

/// Carries out `mounts` in order. A cgroup mount shows the cgroup namespace that it is made in, so
/// the first one waits until init is in its cgroup; until then both processes work side by side.
/// Returns the place in it when that has happened.
fn mount_all(
    plan: &Plan<'_>,
    rootfs: &mut Rootfs,
    entries: &[Mount],
    opened: Vec<Option<Opened>>,
    mut place: Option<Place>,
) -> Result<Option<Place>> {
    for (number, (entry, opened)) in entries.iter().zip(opened).enumerate() {
        let show = || format!("mount `{}`", entry.destination().display());
        let is_cgroup = matches!(entry.typ().as_deref(), Some("cgroup" | "cgroup2"));
        // The memory that is filled counts for the container.
        if (is_cgroup || mounts::copies_up(entry)) && place.is_none() {
            place = Some(enter_cgroup(plan)?);
        }
        if is_cgroup {
            let own = plan.state.cgroup.in_second_version();
            cgroup_mount::mount(rootfs, plan.namespaces, entry, own).with_context(show)?;
        } else {
            let (bundle, namespaces) = (plan.options.bundle, plan.namespaces);
            let mut opened = opened;
            if opened.is_none() {
                opened = mounts::open_to_be_mapped(rootfs, bundle, entry).with_context(show)?;
                if let Some(Opened::Mount(mount)) = &opened {
                    // These messages come before the answer, wherever they are waited for.
                    let mut entered = place.map_or_else(|| enter_cgroup(plan), Ok)?;
                    entered.expect_restrictions(plan)?;
                    place = Some(entered);
                    plan.socket.send_with(&Message::Map(number), &[mount.as_fd()])?;
                    plan.socket.expect(&Message::MapDone)?;
                }
            }
            mounts::mount(rootfs, bundle, namespaces, entry, opened).with_context(show)?;
        }
    }
    Ok(place)
}

/// What there is to know of the cgroup that init is in.
struct Place {
    /// The limit of memory that an engine is told, in bytes.
    memory: Option<u64>,
    /// The rules for devices are known to be in force.
    restricted: bool,
}

impl Place {
    fn expect_restrictions(&mut self, plan: &Plan<'_>) -> Result<()> {
        if !self.restricted {
            plan.socket.expect(&Message::Restricted)?;
            self.restricted = true;
        }
        Ok(())
    }
}

/// Waits for the cgroup, and makes the cgroup namespace, whose root it becomes.
fn enter_cgroup(plan: &Plan<'_>) -> Result<Place> {
    let (memory, mut files) = plan.socket.expect_cgroup()?;
    let delegate = plan.options.bundle.annotation(cgroups::DELEGATE);
    let delegated = delegate.filter(|name| !name.is_empty()).and_then(|_| files.pop());
    for tasks in files {
        cgroups::enter(&tasks).context("enter the cgroup")?;
    }
    plan.namespaces.unshare_cgroup()?;
    // The namespace shows what is above it as its root, where the limits are.
    if let Some(entrance) = delegated {
        cgroups::enter(&entrance).context("enter the delegated cgroup")?;
    }
    Ok(Place { memory, restricted: false })
}

/// Of those that the runtime process runs.
pub(super) fn tell_of_hooks(hooks: Option<&Hooks>) {
    let number = hooks.map_or(0, |hooks| {
        let all = [hooks.prestart(), hooks.create_runtime()];
        all.into_iter().flatten().map(Vec::len).sum::<usize>()
    });
    log::step("create, step 14: the runtime process runs hooks", &number);
}

fn tell_of_masks() {
    log::step("create, step 15: init runs hooks, masks paths, sets limits", &"");
}

/// Lets the runtime process run its hooks, and runs those in the container's namespaces.
fn run_hooks(plan: &Plan<'_>) -> Result<()> {
    let Some(hooks) = plan.options.bundle.spec.hooks() else {
        tell_of_hooks(None);
        tell_of_masks();
        return Ok(());
    };
    plan.socket.send(&Message::BeforePivot)?;
    plan.socket.expect(&Message::HooksDone)?;
    tell_of_masks();
    let list: &[Hook] = hooks.create_container().as_deref().unwrap_or_default();
    hooks::run(
        "createContainer",
        list,
        &plan.state.report(Status::Creating).to_string(),
        hooks::Place { descriptors: plan.descriptors, ..hooks::Place::bundle(plan.state) },
        &plan.streams,
    )?;
    syscall::forget_environment();
    Ok(())
}

/// Says that everything is ready, and waits for the start. The caller's process has its own
/// listener then: kept here, it would hide from the kernel that the agent is gone.
fn wait_for_start(
    plan: &Plan<'_>,
    listener: Option<OwnedFd>,
    endings: Option<&OwnedFd>,
) -> Result<()> {
    plan.socket.send(&Message::Ready)?;
    match &plan.start_fifo {
        Some(fifo) => {
            // Without a record of it, an init that outlives its caller could not be found to be
            // ended.
            plan.socket.expect(&Message::Recorded)?;
            drop(listener);
            wait_for_byte(fifo, endings)?;
        }
        None => plan.socket.expect(&Message::Start)?,
    }
    Ok(())
}

fn start_hooks<'a>(plan: &Plan<'a>) -> &'a [Hook] {
    let hooks = plan.options.bundle.spec.hooks().as_ref();
    hooks.and_then(|hooks| hooks.start_container().as_deref()).unwrap_or_default()
}

fn run_start_hooks(plan: &Plan<'_>, environment: &[String]) -> Result<()> {
    // In the container, they are the container's, and have what its program has.
    let place = hooks::Place {
        folder: None,
        environment: Some(environment),
        descriptors: None,
        highest: highest_descriptor(plan),
    };
    hooks::run(
        "startContainer",
        start_hooks(plan),
        &plan.state.report(Status::Created).to_string(),
        place,
        &plan.streams,
    )
}

/// Of those that `becoming::ready` leaves open: the caller's gifts and what it is told to keep.
/// What was opened since has the lowest numbers that were free: no higher ones, or right above
/// these.
fn highest_descriptor(plan: &Plan<'_>) -> RawFd {
    const SINCE: RawFd = 16;
    let kept = plan.start_fifo.iter().map(AsFd::as_fd).chain(plan.streams.files());
    let kept = kept.chain([plan.socket.as_fd()]).map(|file| file.as_raw_fd());
    let gifts = RawFd::try_from(plan.first_own).unwrap_or(RawFd::MAX - 2 * SINCE);
    kept.chain([gifts]).max().unwrap_or(gifts) + SINCE
}

/// Waits for the start, or for a signal of those that a module's engine has blocked, which asks for
/// an end.
fn wait_for_byte(fifo: &OwnedFd, endings: Option<&OwnedFd>) -> Result<()> {
    let mut poll = [
        PollFd::new(fifo, PollFlags::IN),
        // What stands in for it is in the list already.
        endings.map_or(PollFd::new(fifo, PollFlags::empty()), |it| PollFd::new(it, PollFlags::IN)),
    ];
    loop {
        match syscall::poll(&mut poll, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the start"),
        }
    }
    if poll[1].revents().contains(PollFlags::IN) {
        syscall::exit_now(128 + libc::SIGTERM);
    }
    // Whoever starts claims the fifo, then writes: one that ended in between leaves nobody who
    // could start this.
    ensure!(poll[0].revents().contains(PollFlags::IN), "wait for the start: it was cut short");
    Ok(())
}
