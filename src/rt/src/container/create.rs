//! Making a container, as the caller's process sees it. What init does meanwhile is in
//! [`crate::container::init`]; the two talk over [`crate::sync`]. The whole order is told in
//! `docs/operation.md`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};

use crate::bundle::Bundle;
use crate::container::becoming;
use crate::container::hooks;
use crate::container::hooks::Streams;
use crate::container::init;
use crate::container::pid_file;
use crate::container::plan::{self, Options, Wait};
use crate::container::serve::{self, Served};
use crate::container::undo;
use crate::failure;
use crate::linux::cgroups::{self, Cgroup, Manager};
use crate::linux::descriptors;
use crate::linux::devices;
use crate::linux::host_proc::HostProc;
use crate::linux::mounts::{self, Opened};
use crate::linux::namespaces::{self, Ending, Namespaces, Side};
use crate::linux::net_devices;
use crate::linux::patience::Patience;
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
    /// Lets the program run, for [`Wait::ForCaller`].
    pub(crate) fn go(&self) -> Result<()> {
        self.socket.send(&Message::Start)
    }
}

/// What is known before anything is made.
#[derive(Debug)]
struct Prepared {
    namespaces: Namespaces,
    filter: Option<Filter>,
    /// Of a module.
    rights: Rights,
    /// Who takes the filter's listener.
    agent: Option<Receiver>,
    /// One for each entry of `mounts`; only init uses them.
    mounts: Vec<Option<Opened>>,
    /// Those of `linux.devices` that init cannot make; only init uses it.
    devices: Option<OwnedFd>,
    /// Only init uses it.
    proc: Option<HostProc>,
    /// Where hooks print to.
    streams: Streams,
    /// The limit of descriptors that is the caller's.
    descriptors: descriptors::Before,
    /// Nodes in the rootfs are not to be used.
    ignores_devices: bool,
}

/// Makes a container. When that fails, nothing of it is left.
pub(crate) fn create(root: &Root, mut options: Options<'_>) -> Result<Container> {
    state::check_id(options.id)?;
    let (mut prepared, mut state) = prepare(root, &options)?;
    // Until here nothing was made: a signal ends this process at once.
    if let Wait::ForCaller { blocked: blocked @ [_, ..] } = options.wait {
        syscall::block_only(blocked);
    }
    log::step("create, step 7: claim the name", &root.path().join(options.id).display());
    let (directory, lock) = root.add(options.id)?;
    let mut lock = Some(lock);
    match make(&mut options, &mut prepared, &directory, &mut lock, &mut state) {
        Ok((pid, pidfd, socket)) => Ok(Container { state, directory, pid, pidfd, socket }),
        Err(error) => {
            interrupt::forget();
            // For `poststop` hooks.
            let given_back = descriptors::give_back(prepared.descriptors.take());
            let undone = undo::undo(&directory, &state);
            let cleaned = undone.and(given_back.context(descriptors::GIVE_BACK));
            failure::and_then_cleaned(Err(error), cleaned)
        }
    }
}

/// Checks and opens what init needs, and decides on the state.
fn prepare(root: &Root, options: &Options<'_>) -> Result<(Prepared, State)> {
    let rootfs = options.bundle.rootfs.display();
    log::step("create, step 6: check and open what init needs", &rootfs);
    if ids::is_host_root() {
        // Init has this from its parent: a neighbour in a pid namespace that is joined, and of the
        // same user, could reach it.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .context("keep others out of init")?;
    }
    // What is made in the rootfs is for the container's users to look at and for nobody else to
    // write to, whatever the caller's umask: containerd's is 0.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Init has this from its parent too, and hooks.
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
    state.engine = options.asked.clone();
    state.keeps_keyring = !options.new_keyring;
    if options.console.is_none() {
        state.descriptors = plan::standard_streams();
    }
    Ok((prepared, state))
}

/// Steps 7 to 21. The claim on the name comes first, and is made already.
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
    // Only init needs it, and the receiver shall see its end when init is gone.
    options.console = None;
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd of init")?;
    let init = Init { socket: &socket, pid, pidfd: &pidfd };
    let served = map_and_limit(options, prepared, directory, state, init)
        .and_then(|limited| attend(options, prepared, directory, state, init, limited))
        .and_then(|ready| publish(options, prepared, state, init, ready));
    match served {
        Ok(()) => {
            state.cgroup.leave_claim();
            Ok((pid, pidfd, socket))
        }
        Err(error) => {
            // It may be in any state; its exit code is of no interest.
            cgroups::end(pid, pidfd.as_fd());
            // What cannot be done for a process that has given up is no news beside why it has.
            Err(socket.last_words().map_or(error, anyhow::Error::msg))
        }
    }
}

/// What is made in the state directory for init.
struct ForInit {
    start_fifo: Option<OwnedFd>,
    notify: Option<sd_notify::Folder>,
}

/// Writes down what a deletion finds, and makes what init gets of the state directory.
fn record(
    options: &Options<'_>,
    prepared: &Prepared,
    directory: &Directory,
    state: &State,
) -> Result<ForInit> {
    // Before anything is recorded: what is deleted later is only what is this container's own.
    state.cgroup.refuse_if_in_use()?;
    directory.write_config(&options.bundle.config)?;
    // Before the cgroup is made: if this process is killed, `delete --force` finds what there is to
    // remove.
    directory.write(state)?;
    let start_fifo = match options.wait {
        Wait::ForCaller { .. } => None,
        Wait::ForStart => {
            directory.make_start_fifo()?;
            // Without O_NONBLOCK this would wait for the one who starts.
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

/// Makes init. Returns in the runtime process only: init goes on in [`init::main`].
fn clone_init(
    options: &Options<'_>,
    prepared: &mut Prepared,
    lock: &mut Option<OwnedFd>,
    state: &mut State,
    birthplace: Option<OwnedFd>,
    for_init: ForInit,
) -> Result<(Pid, Socket)> {
    log::step("create, step 9: clone init", &"");
    let (caller, init) = sync::pair()?;
    let first = || {
        init.carry_log();
        log::step("create, step 11: init enters the namespaces", &"");
        // Hooks that run in init inherit it.
        if !has_create_container_hooks(options.bundle) {
            syscall::forget_environment();
        }
        if options.new_keyring { becoming::leave_session_keyring(options.id) } else { Ok(()) }
    };
    let side = namespaces::spawn(
        &prepared.namespaces,
        options.bundle.linux(),
        birthplace.as_ref().map(AsFd::as_fd),
        &caller,
        &init,
        &first,
        &Patience::with_init(state.cgroup.freezers()),
    )?;
    if let Side::Caller(pid) = side {
        return Ok((pid, caller));
    }
    // Held by init too, it would never read the caller's end; and the container would be locked
    // until its exec.
    drop(caller);
    *lock = None;
    // The agent shall see the end of the stream when the caller has ended.
    prepared.agent = None;
    // Of the host's cgroups nothing is open any more when init looks at what is the container's.
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

/// Init, seen from the runtime process.
#[derive(Clone, Copy)]
struct Init<'a> {
    socket: &'a Socket,
    pid: Pid,
    pidfd: &'a OwnedFd,
}

/// What init has of the host's by now.
struct Limited {
    /// The state with the process, which nobody sees yet.
    record: Draft,
    /// The way into the cgroup for modules.
    modules: Option<OwnedFd>,
}

/// Does for init what it cannot do itself, while it begins.
fn map_and_limit(
    options: &Options<'_>,
    prepared: &Prepared,
    directory: &Directory,
    state: &mut State,
    Init { socket, pid, .. }: Init<'_>,
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
    // The last, if there is one: init enters it by itself.
    tasks.extend(state.cgroup.delegate(root)?);
    // systemd removes a cgroup with its last process: before init can fail. Otherwise while init
    // goes on: it makes device nodes, and uses none.
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
    // While init is at work.
    let record = directory.draft(state)?;
    if !systemd {
        state.cgroup.filter_devices(linux.resources().as_ref())?;
    }
    socket.send(&Message::Restricted)?;
    Ok(Limited { record, modules })
}

/// Answers init until it is ready. Returns the state to publish, and the engine of its module, if it
/// is one.
fn attend(
    options: &Options<'_>,
    prepared: &Prepared,
    directory: &Directory,
    state: &mut State,
    Init { socket, pid, pidfd }: Init<'_>,
    Limited { mut record, modules }: Limited,
) -> Result<(Draft, Option<Served>)> {
    let mut served = None;
    let patience = Patience::with_init(state.cgroup.freezers());
    loop {
        let (message, files) = patience.receive_with(socket, pid)?;
        match message {
            Some(Message::BeforePivot) => {
                let hooks = options.bundle.spec.hooks().as_ref();
                init::tell_of_hooks(hooks);
                hooks::run_before_creation(hooks, state, &prepared.streams)?;
                socket.send(&Message::HooksDone)?;
            }
            Some(Message::Listener(number)) => {
                if let Some(agent) = &prepared.agent {
                    agent.serve(pidfd, number, pid, &state.report(Status::Creating))?;
                }
            }
            Some(Message::Module(number)) => {
                let engine = serve::give_engine(
                    socket,
                    (options.engines.as_ref(), number),
                    &prepared.rights,
                    options.bundle.process(),
                    files.first(),
                    modules.as_ref(),
                    state,
                )?;
                state.run = Some(engine.run());
                served = Some(engine);
                record = directory.draft(state)?;
            }
            Some(Message::Map(number)) => {
                let mount = files.first().context("init sent no mount")?;
                mounts::map(options.bundle, &prepared.namespaces, number, mount.as_fd())?;
                socket.send(&Message::MapDone)?;
            }
            Some(Message::Ready) => return Ok((record, served)),
            Some(Message::Failed(text)) => bail!(text),
            Some(message) => bail!("init sent {message:?}"),
            None => {
                let process = options.bundle.process();
                let filter = prepared.filter.as_ref();
                return Err(how_init_died(pid, state, becoming::what_is_left(process, filter)));
            }
        }
    }
}

/// Tells everybody of the container.
fn publish(
    options: &Options<'_>,
    prepared: &Prepared,
    state: &State,
    Init { socket, pid, pidfd }: Init<'_>,
    (record, served): (Draft, Option<Served>),
) -> Result<()> {
    log::step("create, step 21: the runtime process publishes the state and ends", &pid);
    if plan::limits_it(state, &prepared.namespaces) {
        process::limit(Some(pid), options.bundle.process())?;
    }
    process::set_priorities(pid, options.bundle.process())?;
    state.cgroup.hand_down();
    record.publish()?;
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
    // Last: whoever waits for this file finds the container complete.
    options.pid_file.map_or(Ok(()), |path| pid_file::write(path, pid))
}

fn has_create_container_hooks(bundle: &Bundle) -> bool {
    let hooks = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_deref());
    hooks.is_some_and(|hooks| !hooks.is_empty())
}

fn how_init_died(pid: Pid, state: &State, left: &str) -> anyhow::Error {
    match namespaces::ending(pid) {
        Ok(Some(Ending::Signal(libc::SIGKILL))) if state.cgroup.manager != Manager::Disabled => {
            anyhow!("init was killed: the container's memory limit may be too low")
        }
        Ok(Some(Ending::Signal(signal))) => anyhow!("init was killed by signal {signal}{left}"),
        _ => anyhow!("init ended without a message{left}"),
    }
}
