//! `create` in the runtime process. Init's part is in [`crate::container::init`]. The two processes
//! talk over [`crate::sync`]. `docs/operation.md` describes the whole order.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};

use crate::bundle::Bundle;
use crate::container::becoming;
use crate::container::hooks;
use crate::container::hooks::Streams;
use crate::container::init;
use crate::container::patience::{Birth, Patience};
use crate::container::pid_file;
use crate::container::plan::{self, Options, Wait};
use crate::container::serve::{self, Child, Offer, Served};
use crate::container::undo;
use crate::failure;
use crate::linux::cgroups::{Cgroup, Manager};
use crate::linux::descriptors;
use crate::linux::devices;
use crate::linux::host_proc::HostProc;
use crate::linux::mounts::{self, Opened};
use crate::linux::namespaces::{self, Namespaces, Side};
use crate::linux::net_devices;
use crate::linux::process;
use crate::linux::sd_notify;
use crate::linux::seccomp::{self, Filter, Receiver};
use crate::linux::terminal;
use crate::log;
use crate::state::{self, Directory, Draft, Root, State, Status};
use crate::sync::{self, Message, Socket};
use crate::workload::Rights;
use crate::{ids, interrupt, syscall};

/// crun's name for `--pidfd-socket`.
const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";

/// A container that is ready to start.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) state: State,
    pub(crate) directory: Directory,
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    socket: Socket,
}

impl Container {
    /// Lets the program run, for [`Wait::ForRuntime`].
    pub(crate) fn go(&self) -> Result<()> {
        self.socket.send(&Message::Start)
    }
}

/// The results of all checks before `create` makes anything.
#[derive(Debug)]
struct Prepared {
    namespaces: Namespaces,
    filter: Option<Filter>,
    /// The rights of a module.
    rights: Rights,
    /// The receiver of the filter's listener.
    agent: Option<Receiver>,
    /// One for each entry of `mounts`. Only init uses them.
    mounts: Vec<Option<Opened>>,
    /// The nodes of `linux.devices` that init cannot make. Only init uses them.
    devices: Option<OwnedFd>,
    /// Only init uses it.
    proc: Option<HostProc>,
    /// The files to which hooks print.
    streams: Streams,
    /// The caller's limit of open descriptors.
    descriptors: descriptors::Before,
    /// Whether the container must not use device nodes in the rootfs.
    ignores_devices: bool,
}

/// Makes a container. If that fails, removes everything that it has made.
pub(crate) fn create(root: &Root, mut options: Options<'_>) -> Result<Container> {
    state::check_id(options.id)?;
    let (mut prepared, mut state) = prepare(root, &options)?;
    // Nothing is made yet. Until here, a signal ends this process at once.
    if let Wait::ForRuntime { blocked: blocked @ [_, ..] } = options.wait {
        syscall::block_only(blocked);
    }
    log::step("create, step 7: claim the name", &root.path().join(options.id).display());
    let (directory, lock) = root.add(options.id)?;
    let mut lock = Some(lock);
    match make(&mut options, &mut prepared, &directory, &mut lock, &mut state) {
        Ok((pid, pidfd, socket)) => Ok(Container { state, directory, pid, pidfd, socket }),
        Err(error) => {
            interrupt::forget();
            // `poststop` hooks run with this limit.
            let given_back = descriptors::give_back(prepared.descriptors.take());
            let undone = undo::undo(&directory, &state);
            let cleaned = undone.and(given_back.context(descriptors::GIVE_BACK));
            failure::and_then_cleaned(Err(error), cleaned)
        }
    }
}

/// Checks and opens the files that init needs, and plans the state.
fn prepare(root: &Root, options: &Options<'_>) -> Result<(Prepared, State)> {
    let rootfs = options.bundle.rootfs.display();
    log::step("create, step 6: check and open what init needs", &rootfs);
    if ids::is_host_root() {
        // Init inherits this. A neighbour of the same user in a joined pid namespace could
        // otherwise reach init.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .context("keep others out of init")?;
    }
    // The container's users can read the files that `rt` makes in the rootfs, and no other user can
    // write to them. This does not depend on the caller's umask: containerd's is 0.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Init and hooks inherit this too.
    process::forget_affinity();
    let spec = &options.bundle.spec;
    let linux = options.bundle.linux();
    let namespaces = Namespaces::new(linux)?;
    plan::check(options, &namespaces)?;
    let annotations: BTreeMap<String, String> = options.bundle.annotations().into_iter().collect();
    let rights = Rights::of(spec)?;
    let filter = seccomp::prepare(spec, &root.filters())?;
    let agent = seccomp::receiver(spec, filter.as_ref())?;
    let devices = linux.devices().as_ref().map_or(0, Vec::len);
    let descriptors = descriptors::raise_for(devices + spec.mounts().as_ref().map_or(0, Vec::len));
    let mounts = mounts::open_for_init(options.bundle, &namespaces)?;
    let devices = devices::open_for_init(options.bundle, &namespaces)?;
    let streams = match spec.hooks() {
        Some(_) => Streams::open(&annotations)?,
        None => Streams::default(),
    };
    let proc = Some(HostProc::open()?);
    let prepared = Prepared {
        namespaces,
        filter,
        rights,
        agent,
        mounts,
        devices,
        proc,
        streams,
        descriptors,
        ignores_devices: Cgroup::may_lack_device_rules(linux.resources().as_ref())?,
    };
    let mut state = plan::plan_state(options.id, options.bundle, options.manager, annotations)?;
    state.cgroup.refuse_limits_without(linux.resources().as_ref())?;
    state.set_handler(options.asked.clone());
    state.keeps_keyring = !options.new_keyring;
    if options.console.is_none() {
        state.descriptors = plan::standard_streams();
    }
    Ok((prepared, state))
}

/// Steps 7 to 21. The claim on the name comes first, and is already made.
fn make(
    options: &mut Options<'_>,
    prepared: &mut Prepared,
    directory: &Directory,
    lock: &mut Option<OwnedFd>,
    state: &mut State,
) -> Result<(Pid, OwnedFd, Socket)> {
    let for_init = record(options, prepared, directory, state)?;
    let cgroup = state.cgroup.paths.first().map_or(Path::new("none"), PathBuf::as_path);
    log::step("create, step 8: claim the cgroup", &cgroup.display());
    let birthplace = state.cgroup.make_for_birth(&directory.mark()?)?;
    let (pid, socket) = clone_init(options, prepared, lock, state, birthplace, for_init)?;
    prepared.mounts.clear();
    prepared.devices = None;
    prepared.proc = None;
    descriptors::give_back(prepared.descriptors.take()).context(descriptors::GIVE_BACK)?;
    // Only init needs the terminal. The receiver must see its end when init has ended.
    options.console = None;
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd of init")?;
    let is_limited = state.cgroup.manager != Manager::Disabled;
    let init = Child {
        name: "init",
        killer: is_limited.then_some("the container's memory limit may be too low"),
        socket: &socket,
        pid,
        pidfd: &pidfd,
    };
    map_and_limit(options, prepared, directory, state, init)
        .and_then(|limited| attend(options, prepared, directory, state, init, limited))
        .and_then(|ready| publish(options, prepared, state, init, ready))
        .map_err(|error| init.give_up(error))?;
    state.cgroup.leave_claim();
    Ok((pid, pidfd, socket))
}

/// The files in the state directory that init gets.
struct ForInit {
    start_fifo: Option<OwnedFd>,
    notify: Option<sd_notify::Folder>,
}

/// Writes the files that `delete` needs, and makes init's files in the state directory.
fn record(
    options: &Options<'_>,
    prepared: &Prepared,
    directory: &Directory,
    state: &State,
) -> Result<ForInit> {
    // Runs before anything is recorded, because `delete` must only remove things of this container.
    state.cgroup.refuse_if_in_use()?;
    directory.write_config(&options.bundle.config)?;
    // Runs before the cgroup is made. If this process is killed, `delete --force` finds the things
    // to remove.
    directory.write(state)?;
    let start_fifo = match options.wait {
        Wait::ForRuntime { .. } => None,
        Wait::ForStart => {
            directory.make_start_fifo()?;
            // Without O_NONBLOCK, this would wait for `start`.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Some(
                rustix::fs::open(directory.start_fifo(), flags, Mode::empty())
                    .context("open the start fifo")?,
            )
        }
    };
    let notify = match prepared.namespaces.has_mount() {
        true => sd_notify::prepare(directory.notify_folder())?,
        false => None,
    };
    Ok(ForInit { start_fifo, notify })
}

/// Makes init. Returns in the runtime process only. Init continues in [`init::main`].
fn clone_init(
    options: &Options<'_>,
    prepared: &mut Prepared,
    lock: &mut Option<OwnedFd>,
    state: &mut State,
    birthplace: Option<OwnedFd>,
    for_init: ForInit,
) -> Result<(Pid, Socket)> {
    log::step("create, step 9: clone init", &"");
    let (ours, init) = sync::pair()?;
    let first = || {
        init.carry_log();
        log::step("create, step 11: init enters the namespaces", &"");
        // `createContainer` hooks run in init and inherit the environment.
        if !has_create_container_hooks(options.bundle) {
            syscall::forget_environment();
        }
        if options.new_keyring { becoming::leave_session_keyring(options.id) } else { Ok(()) }
    };
    let patience = Patience::with_init(state.cgroup.freezers());
    let side = namespaces::spawn(
        &prepared.namespaces,
        options.bundle.linux(),
        birthplace.as_ref().map(AsFd::as_fd),
        &Birth { ours: &ours, theirs: &init, patience: &patience },
        &first,
    )?;
    if let Side::Runtime(pid) = side {
        return Ok((pid, ours));
    }
    // If init held this end too, it would never read the end of the runtime process, and the
    // container would be locked until init's exec.
    drop(ours);
    *lock = None;
    // The agent must see the end of the stream when the runtime process has ended.
    prepared.agent = None;
    // When init opens the container's files, it must have no cgroup of the host open.
    drop(birthplace);
    state.cgroup.leave_claim();
    init::main(init::Plan {
        options,
        namespaces: &prepared.namespaces,
        filter: prepared.filter.as_ref(),
        rights: &prepared.rights,
        mounts: std::mem::take(&mut prepared.mounts),
        devices: prepared.devices.take(),
        descriptors: prepared.descriptors,
        ignores_devices: prepared.ignores_devices,
        streams: std::mem::take(&mut prepared.streams),
        notify: for_init.notify,
        proc: prepared.proc.take(),
        start_fifo: for_init.start_fifo,
        socket: init,
        first_own: options.first_own,
        state,
    })
}

/// The things that the runtime process has prepared for init by now.
struct Limited {
    /// The state with init's pid, which is not published yet.
    record: Draft,
    /// The way into the cgroup for modules.
    modules: Option<OwnedFd>,
}

/// Does the steps for init that init cannot do itself, while init starts.
fn map_and_limit(
    options: &Options<'_>,
    prepared: &Prepared,
    directory: &Directory,
    state: &mut State,
    Child { socket, pid, .. }: Child<'_>,
) -> Result<Limited> {
    log::step("create, step 10: map ids, set limits", &pid);
    let linux = options.bundle.linux();
    if prepared.namespaces.makes(libc::CLONE_NEWUSER) {
        namespaces::write_id_mappings(pid, linux)?;
        socket.send(&Message::Mapped)?;
    }
    plan::belongs_to(state, pid)?;
    state.mount_namespace = prepared.namespaces.mount_namespace(pid);
    if let (Some(groups), Some(rdt)) = (&mut state.rdt, linux.intel_rdt()) {
        groups.make(rdt, pid)?;
    }
    if let Some(devices) = linux.net_devices() {
        net_devices::move_to(pid, &prepared.namespaces, devices)?;
    }
    let mut tasks = state.cgroup.prepare(pid, linux.resources().as_ref())?;
    let root = namespaces::root_on_the_host(linux);
    if plan::wants_its_cgroup(options.bundle, &prepared.namespaces) {
        state.cgroup.give(root)?;
    }
    // The delegated cgroup is the last one, if it exists. Init enters it by itself.
    tasks.extend(state.cgroup.delegate(root)?);
    // systemd removes a cgroup with its last process, so this must be done before init can fail.
    // Without systemd, this is done while init continues: init makes device nodes, and uses none.
    let systemd = state.cgroup.manager == Manager::Systemd;
    if systemd {
        state.cgroup.filter_devices(linux.resources().as_ref())?;
    }
    let memory = options.engines.as_ref().and_then(|_| state.cgroup.memory_limit());
    let modules = match options.engines {
        Some(_) => state.cgroup.for_modules(&prepared.rights.ports)?,
        None => None,
    };
    let files: Vec<_> = tasks.iter().map(AsFd::as_fd).collect();
    socket.send_with(&Message::Cgroup { memory }, &files)?;
    drop(tasks);
    // Init works meanwhile.
    let record = directory.draft(state)?;
    if !systemd {
        state.cgroup.filter_devices(linux.resources().as_ref())?;
    }
    socket.send(&Message::Restricted)?;
    Ok(Limited { record, modules })
}

/// The answers that only `create` gives.
struct Creation<'a> {
    options: &'a Options<'a>,
    prepared: &'a Prepared,
    directory: &'a Directory,
    state: &'a mut State,
    socket: &'a Socket,
    record: Draft,
}

impl serve::Command for Creation<'_> {
    fn state(&self) -> &State {
        self.state
    }

    /// Writes the new draft of the state while init continues.
    fn note_engine(&mut self, engine: &Served) -> Result<()> {
        self.state.run = Some(engine.run());
        self.record = self.directory.draft(self.state)?;
        Ok(())
    }

    fn answer(&mut self, message: &Message, files: &[OwnedFd]) -> Result<bool> {
        let bundle = self.options.bundle;
        match *message {
            Message::BeforePivot => {
                let hooks = bundle.spec.hooks().as_ref();
                init::tell_of_hooks(hooks);
                hooks::run_before_creation(hooks, self.state, &self.prepared.streams)?;
                self.socket.send(&Message::HooksDone)?;
            }
            Message::Map(number) => {
                let mount = files.first().context("init sent no mount")?;
                mounts::map(bundle, &self.prepared.namespaces, number, mount.as_fd())?;
                self.socket.send(&Message::MapDone)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Answers init until it is ready. Returns the state to publish and, for a module, its engine.
fn attend(
    options: &Options<'_>,
    prepared: &Prepared,
    directory: &Directory,
    state: &mut State,
    init: Child<'_>,
    Limited { record, modules }: Limited,
) -> Result<(Draft, Option<Served>)> {
    let offer = Offer {
        process: options.bundle.process(),
        engines: options.engines.as_ref(),
        rights: &prepared.rights,
        modules,
        filter: prepared.filter.as_ref(),
        agent: prepared.agent.as_ref(),
        status: Status::Creating,
    };
    let patience = Patience::with_init(state.cgroup.freezers());
    let mut creation =
        Creation { options, prepared, directory, state, socket: init.socket, record };
    let served = serve::attend(init, &offer, &patience, &mut creation)?;
    Ok((creation.record, served))
}

/// Publishes the state, and sends the pidfd and the pid to the receivers that the caller named.
fn publish(
    options: &Options<'_>,
    prepared: &Prepared,
    state: &State,
    Child { socket, pid, pidfd, .. }: Child<'_>,
    (record, served): (Draft, Option<Served>),
) -> Result<()> {
    log::step("create, step 21: the runtime process publishes the state and ends", &pid);
    if plan::limits_it(state, &prepared.namespaces) {
        process::limit(Some(pid), options.bundle.process())?;
    }
    process::set_priorities(pid, options.bundle.process())?;
    state.cgroup.hand_down();
    record.exchange()?;
    if options.wait == Wait::ForStart {
        socket.send(&Message::Recorded)?;
    }
    let receiver = options.bundle.annotation(PIDFD_RECEIVER).map(Path::new);
    for path in options.pidfd_socket.into_iter().chain(receiver) {
        let receiver = terminal::connect(path)?;
        terminal::send(receiver.as_fd(), "pidfd", pidfd.as_fd())?;
    }
    if let Some(engine) = served {
        engine.compile_later();
    }
    // The pid file comes last: a caller that waits for this file finds the container complete.
    options.pid_file.map_or(Ok(()), |path| pid_file::write(path, pid))
}

fn has_create_container_hooks(bundle: &Bundle) -> bool {
    let hooks = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_deref());
    hooks.is_some_and(|hooks| !hooks.is_empty())
}
