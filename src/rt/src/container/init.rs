//! `create` in init: the steps of the container's first process between its birth and its exec. All
//! of this code runs in that process, in the container's namespaces. The order matters: see
//! `docs/operation.md`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Hook, Hooks, Mount};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::container::becoming::{self, Ready};
use crate::container::hooks;
use crate::container::hooks::Streams;
use crate::container::plan::{self, Options};
use crate::executor;
use crate::linux::cgroup_mount;
use crate::linux::cgroups;
use crate::linux::cgroups::Manager;
use crate::linux::descriptors;
use crate::linux::devices;
use crate::linux::helper;
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

/// The input of init, which it has from its birth.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) options: &'a Options<'a>,
    pub(super) namespaces: &'a Namespaces,
    pub(super) filter: Option<&'a Filter>,
    /// The rights of a module.
    pub(super) rights: &'a Rights,
    /// The mounts that the runtime process has opened for `mounts`.
    pub(super) mounts: Vec<Option<Opened>>,
    /// The nodes that the runtime process has made for `linux.devices`.
    pub(super) devices: Option<OwnedFd>,
    /// The container's limit of open descriptors.
    pub(super) descriptors: descriptors::Before,
    /// Whether the container must not use device nodes in the rootfs.
    pub(super) ignores_devices: bool,
    /// The files to which hooks print.
    pub(super) streams: Streams,
    /// The folder with the container's socket for `sd_notify(3)`.
    pub(super) notify: Option<sd_notify::Folder>,
    /// The host's `/proc`, which the runtime process has opened. If init joins a mount namespace,
    /// anything may be at that path there. None after init has taken it.
    pub(super) proc: Option<HostProc>,
    /// Readable when the program may start. None if the runtime process sends the start over the
    /// socket.
    pub(super) start_fifo: Option<OwnedFd>,
    pub(super) socket: Socket,
    /// From this number on, descriptors are the runtime's own. The caller has passed those below.
    pub(super) first_own: u32,
    pub(super) state: &'a State,
}

/// A shell's exit codes for a program that it cannot run, and for a missing program.
const CANNOT_RUN: i32 = 126;
const NOT_THERE: i32 = 127;

/// Runs init. Ends in the program, or in the end of the process.
pub(super) fn main(mut plan: Plan<'_>) -> ! {
    let set_up = Given::take(&mut plan).and_then(|given| set_up(&plan, given));
    let (ready, environment) = match set_up {
        Ok(made) => made,
        Err(error) => {
            // The runtime process prints the message. If the runtime process has ended, nobody
            // reads it.
            let _ = plan.socket.send(&Message::Failed(format!("{error:#}")));
            syscall::exit_now(1)
        }
    };
    let Ready { program, listener, filter, cgroup, endings } = ready;
    let hooks = || run_start_hooks(&plan, &environment);
    let begun = wait_for_start(&plan, listener, endings.as_ref())
        .and_then(|()| becoming::last_steps(cgroup, filter, hooks));
    let (error, code) = match begun {
        Ok(()) => {
            // The kernel looks up the program's name once more.
            drop(std::mem::take(&mut plan.streams));
            let failure = program.exec();
            let code = if failure.is(Errno::NOENT) { NOT_THERE } else { CANNOT_RUN };
            (failure.into(), code)
        }
        // This error does not concern the program: a hook may be missing.
        Err(error) => (error, 1),
    };
    // The runtime process has ended, so only the container's own standard error is left for the
    // message.
    let line = format!("rt: start `{}`: {}\n", plan.options.id, crate::report::describe(&error));
    let _ = std::io::stderr().write_all(line.as_bytes());
    syscall::exit_now(code)
}

/// The files that the runtime process has opened for init alone.
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

/// Does all steps until init is ready. Also returns the program's environment, which
/// `startContainer` hooks get too.
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

/// Returns the place in the cgroup, if init has entered it already.
fn enter_namespaces(plan: &Plan<'_>) -> Result<Option<Place>> {
    let (spec, namespaces) = (&plan.options.bundle.spec, plan.namespaces);
    // Holds until the runtime process has recorded init. A change of the user ends this too. From
    // then on, init waits for a message of the runtime process, and so notices the end by itself.
    helper::end_with_the_runtime_process()?;
    rustix::process::setsid().context("start a session")?;
    if namespaces.makes(libc::CLONE_NEWUSER) {
        plan.socket.expect(&Message::Mapped)?;
        namespaces::become_root(namespaces::dumpable()?)?;
        namespaces.keep_neighbours_out()?;
    }
    // systemd looks at the process that it moves. If init failed meanwhile, it would leave a scope
    // that belongs to no container.
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

/// Makes the rootfs a mount, and makes the mounts of `mounts`.
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

/// Returns the memory limit that init tells an engine, in bytes.
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
    // Until here, init has opened nothing that could be a device node of the image.
    place.expect_restrictions(plan)?;
    if let Some(console) = &plan.options.console {
        terminal::set_up(rootfs, process, console.as_fd(), true).context("set up the terminal")?;
    }
    Ok(place.memory)
}

/// Hides things that the program must not see, and protects things that it must not change. Sets
/// limits while init still has the host's `/proc` and the privileges. Returns true if no device
/// rules are in force. Then the program must not get `CAP_MKNOD`.
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
    // Runs while init still has the host's `/proc`, which says whose root this is.
    let withhold_devices = plan.state.cgroup.leaves_devices_open(linux.resources().as_ref())?;
    let ignores_devices = plan.ignores_devices || withhold_devices && !rootfs.has_own_devices()?;
    if namespaces.has_mount() && ignores_devices {
        rootfs.ignore_devices().context("ignore the devices of the rootfs")?;
    }
    // These steps require the host's `/proc`, or privileges. Init loses both later.
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

/// The remaining steps, which `exec` has too.
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
            ask_for_part: &|name, module| plan.socket.ask_for_part(name, module),
        },
    };
    becoming::ready(&becoming, plan.filter)
}

/// Makes the mounts of `mounts` in order. A cgroup mount shows the cgroup namespace in which it is
/// made. So before the first one, init waits until it is in its cgroup. Until then, init and the
/// runtime process work side by side. Returns the place in the cgroup, if init has entered it.
fn mount_all(
    plan: &Plan<'_>,
    rootfs: &mut Rootfs,
    entries: &[Mount],
    opened: Vec<Option<Opened>>,
    mut place: Option<Place>,
) -> Result<Option<Place>> {
    let remounted = mounts::remounted(entries);
    for (number, (entry, opened)) in entries.iter().zip(opened).enumerate() {
        let show = || format!("mount `{}`", entry.destination().display());
        let is_cgroup = matches!(entry.typ().as_deref(), Some("cgroup" | "cgroup2"));
        // The memory of the copied files counts for the container.
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
                    // The runtime process sends these messages before the answer, so init must read
                    // them first.
                    let mut entered = place.map_or_else(|| enter_cgroup(plan), Ok)?;
                    entered.expect_restrictions(plan)?;
                    place = Some(entered);
                    plan.socket.send_with(&Message::Map(number), &[mount.as_fd()])?;
                    plan.socket.expect(&Message::MapDone)?;
                }
            }
            mounts::mount(rootfs, bundle, namespaces, entry, opened, &remounted)
                .with_context(show)?;
        }
    }
    Ok(place)
}

/// Init's knowledge of its cgroup.
struct Place {
    /// The memory limit that init tells an engine, in bytes.
    memory: Option<u64>,
    /// Whether init knows that the device rules are in force.
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

/// Waits for the cgroup, and makes the cgroup namespace, whose root is this cgroup.
fn enter_cgroup(plan: &Plan<'_>) -> Result<Place> {
    let (memory, mut files) = plan.socket.expect_cgroup()?;
    let delegate = plan.options.bundle.annotation(cgroups::DELEGATE);
    let delegated = delegate.filter(|name| !name.is_empty()).and_then(|_| files.pop());
    for tasks in files {
        cgroups::enter(&tasks).context("enter the cgroup")?;
    }
    plan.namespaces.unshare_cgroup()?;
    // The root of the cgroup namespace is the cgroup above the delegated one, which has the limits.
    if let Some(entrance) = delegated {
        cgroups::enter(&entrance).context("enter the delegated cgroup")?;
    }
    Ok(Place { memory, restricted: false })
}

/// Logs the number of hooks that the runtime process runs.
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

/// Lets the runtime process run its hooks, and runs the hooks in the container's namespaces.
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

/// Says that init is ready, and waits for the start. The runtime process has its own copy of the
/// listener by then. If init kept its copy, the kernel could not notice that the agent has ended.
fn wait_for_start(
    plan: &Plan<'_>,
    listener: Option<OwnedFd>,
    endings: Option<&OwnedFd>,
) -> Result<()> {
    plan.socket.send(&Message::Ready)?;
    match &plan.start_fifo {
        Some(fifo) => {
            // If init were not recorded and outlived the runtime process, no command could find it
            // and end it.
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
    // These hooks run in the container and belong to it, so they get the same things as the
    // program.
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

/// The highest descriptor that [`becoming::ready`] leaves open: those that the caller has passed,
/// and those that it is told to keep. Descriptors that init opened since then have the lowest free
/// numbers. So they are not higher, or are just above these.
fn highest_descriptor(plan: &Plan<'_>) -> RawFd {
    const SINCE: RawFd = 16;
    let kept = plan.start_fifo.iter().map(AsFd::as_fd).chain(plan.streams.files());
    let kept = kept.chain([plan.socket.as_fd()]).map(|file| file.as_raw_fd());
    let gifts = RawFd::try_from(plan.first_own).unwrap_or(RawFd::MAX - 2 * SINCE);
    kept.chain([gifts]).max().unwrap_or(gifts) + SINCE
}

/// Waits for the start, or for a termination signal that a module's engine has blocked.
fn wait_for_byte(fifo: &OwnedFd, endings: Option<&OwnedFd>) -> Result<()> {
    let mut poll = [
        PollFd::new(fifo, PollFlags::IN),
        // The fifo stands in for a missing signalfd, and is in the list already.
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
    // The kernel looks for data first, and then for writers (`pipe_poll`). If `start` writes and
    // closes the fifo in between, poll tells of the close alone. A second look sees the byte.
    if !poll[0].revents().contains(PollFlags::IN) {
        syscall::poll(&mut poll[..1], Some(&Timespec::default())).context("wait for the start")?;
    }
    // `start` claims the fifo, then writes. If a `start` ended in between, no other one can start
    // this container.
    ensure!(poll[0].revents().contains(PollFlags::IN), "wait for the start: it was cut short");
    Ok(())
}
