//! `exec`: runs another program in an existing container.
//!
//! This is our own code. libcontainer's tenant builder runs its programs without the container's
//! seccomp filter. It does not keep the user namespace's order of joins, and finds the cgroup only
//! by its configuration.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};

use crate::container::becoming::{self, Ready};
use crate::container::patience::{Birth, Patience};
use crate::container::pid_file;
use crate::container::serve::{self, Child, Offer};
use crate::engine::Engines;
use crate::executor;
use crate::linux::cgroups::{self, Doors};
use crate::linux::helper;
use crate::linux::host_proc::HostProc;
use crate::linux::memory_policy;
use crate::linux::namespaces::{self, Namespaces, Side};
use crate::linux::process;
use crate::linux::rootfs::Rootfs;
use crate::linux::seccomp::{Filter, Receiver};
use crate::linux::terminal;
use crate::log;
use crate::state::{Draft, State, Status};
use crate::sync::{self, Message, Socket};
use crate::syscall;
use crate::workload::{self, Rights};

#[derive(Debug)]
pub(crate) struct ExecOptions<'a> {
    pub(crate) state: &'a State,
    /// The container's configuration, as it was at `create`.
    pub(crate) spec: &'a Spec,
    pub(crate) process: &'a Process,
    /// The engines that may run a module, if the container asks for one.
    pub(crate) engines: Option<Engines<'a>>,
    /// The socket to which the terminal is sent. None for a program without a terminal.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) pid_file: Option<&'a Path>,
    pub(crate) pidfd_socket: Option<&'a Path>,
    /// Below the container's cgroup, see [`Cgroup::doors`](cgroups::Cgroup::doors).
    pub(crate) cgroup: &'a [PathBuf],
    /// Whether `exec` accepts a paused container. The caller then waits until the container runs
    /// again.
    pub(crate) ignore_paused: bool,
    pub(crate) filter: Option<Filter>,
    /// The rights of a module.
    pub(crate) rights: Rights,
    /// The receiver of the filter's listener.
    pub(crate) agent: Option<Receiver>,
    /// From this number on, descriptors are the runtime's own. The caller has passed those below.
    pub(crate) first_own: u32,
}

/// The input of the new process.
#[derive(Debug)]
struct Plan<'a> {
    options: &'a ExecOptions<'a>,
    registered: workload::Registered,
    withhold_devices: bool,
    socket: Socket,
}

/// Starts a program in a container. When this function returns, the program runs. Runs in the
/// runtime process.
pub(crate) fn exec(mut options: ExecOptions<'_>) -> Result<(Pid, OwnedFd)> {
    log::step("exec, step 3: open the container", &options.state.pid);
    let container = open(&options)?;
    process::forget_affinity();
    let affinity = options.process.exec_cpu_affinity().as_ref();
    if let Some(processors) = affinity.and_then(|affinity| affinity.initial().as_deref()) {
        process::set_affinity(None, processors).context("set `execCPUAffinity.initial`")?;
    }
    let doors = options.state.cgroup.doors(options.cgroup)?;
    let New { pid, socket, doors } = clone_new(&options, &container, doors)?;
    options.console = None;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .context("open a pidfd of the new process")?;
    let patience = patience(&options, &doors);
    let new = Child {
        name: "the new process",
        killer: Some("the container ended or is out of memory"),
        socket: &socket,
        pid,
        pidfd: &pidfd,
    };
    attend(&options, doors, &patience, new).map_err(|error| new.give_up(error))?;
    Ok((pid, pidfd))
}

/// A running container.
struct Opened {
    namespaces: Namespaces,
    /// The root of a container without a mount namespace of its own.
    root: Option<OwnedFd>,
}

fn open(options: &ExecOptions<'_>) -> Result<Opened> {
    // The container's processes could otherwise reach this process in their pid namespace, and its
    // open files, until the exec (CVE-2016-9962). Children inherit this.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keep the container out")?;
    let stopped = || anyhow!("cannot exec in a stopped container");
    let init = options.state.process()?.ok_or_else(stopped)?;
    let namespaces = match Namespaces::of(options.state.pid) {
        Err(_) if namespaces::has_ended(init.as_fd())? => return Err(stopped()),
        namespaces => namespaces?,
    };
    let root = if namespaces.has_mount() {
        None
    } else {
        let path = format!("/proc/{}/root", options.state.pid);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(
            rustix::fs::open(&path, flags, Mode::empty())
                .with_context(|| format!("open `{path}`"))?,
        )
    };
    // If init has not ended, its pid was not reused when the namespaces were opened, and all of
    // them existed.
    ensure!(!namespaces::has_ended(init.as_fd())?, stopped());
    Ok(Opened { namespaces, root })
}

fn patience(options: &ExecOptions<'_>, doors: &Doors) -> Patience {
    let agent = options.agent.is_some();
    Patience::with_new(doors.freezers.clone(), options.ignore_paused, agent)
}

/// The new process, and the ways into the cgroup that it was made with.
struct New {
    pid: Pid,
    socket: Socket,
    doors: Doors,
}

/// Makes the new process. Returns in the runtime process only. The new process continues in
/// [`main`].
fn clone_new(options: &ExecOptions<'_>, container: &Opened, mut doors: Doors) -> Result<New> {
    log::step("exec, step 4: clone the new process", &"");
    let registered = workload::registered_formats();
    let resources = options.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let withhold_devices = options.state.cgroup.leaves_devices_open(resources)?;
    let (ours, socket) = sync::pair()?;
    let kept: Vec<_> = options.console.iter().map(AsFd::as_fd).chain([socket.as_fd()]).collect();
    // Runs in the helper, which sees the host's `/proc`, and which the container does not see. The
    // new process inherits all of these settings.
    let first = || {
        socket.carry_log();
        syscall::forget_environment();
        if !options.state.keeps_keyring {
            becoming::leave_session_keyring(&options.state.id)?;
        }
        becoming::set_security_label(options.process, &HostProc::open()?)
    };
    let spawn = |doors: &Doors| {
        ensure!(options.ignore_paused || !doors.freezers.are_closed(), FROZEN);
        namespaces::spawn_inside(
            &container.namespaces,
            container.root.as_ref().map(AsFd::as_fd),
            doors.birthplace.as_ref().map(AsFd::as_fd),
            &Birth { ours: &ours, theirs: &socket, patience: &patience(options, doors) },
            (options.first_own, &kept),
            &first,
        )
    };
    let side = match spawn(&doors) {
        // The container's processes have made cgroups with controllers of their own below the
        // container's cgroup, which then accepts no processes itself (cgroup-v2.rst, "No Internal
        // Process Constraint"). So the new process goes to init's cgroup.
        Ok(None) if options.cgroup.is_empty() => {
            doors = options.state.cgroup.doors_of(options.state.pid)?;
            spawn(&doors)
        }
        side => side,
    };
    let is_born = |side: Option<Side>| side.ok_or(Errno::BUSY).context(namespaces::CLONE);
    let side = side.and_then(is_born).inspect_err(|_| {
        // The helper that joins namespaces was held up. The process that it has made could exist
        // already.
        if let Err(error) = options.state.cgroup.end_children() {
            tracing::debug!("end what was half made: {error:#}");
        }
    });
    match side? {
        Side::Runtime(pid) => Ok(New { pid, socket: ours, doors }),
        // The other descriptors of this process are closed already.
        Side::Init => main(&Plan { options, registered, withhold_devices, socket }),
    }
}

/// The new process sends no messages besides those of every process that becomes a program.
struct Execution<'a>(&'a State);

impl serve::Command for Execution<'_> {
    fn state(&self) -> &State {
        self.0
    }
}

/// Does the steps for the new process that require the host's privileges, until its program runs.
/// Runs in the runtime process.
fn attend(
    options: &ExecOptions<'_>,
    doors: Doors,
    patience: &Patience,
    new: Child<'_>,
) -> Result<()> {
    let Child { socket, pid, pidfd, .. } = new;
    log::step("exec, step 5: limit the new process", &pid);
    process::limit(Some(pid), options.process)?;
    if let Some(groups) = &options.state.rdt {
        groups.enter(pid)?;
    }
    let affinity = options.process.exec_cpu_affinity().as_ref();
    let memory = options.engines.as_ref().and_then(|_| options.state.cgroup.memory_left());
    let modules = match options.engines {
        Some(_) => options.state.cgroup.clone().for_modules(&options.rights.ports)?,
        None => None,
    };
    let files: Vec<_> = doors.tasks.iter().map(AsFd::as_fd).collect();
    socket.send_with(&Message::Cgroup { memory }, &files)?;
    drop(doors);
    let offer = Offer {
        process: options.process,
        engines: options.engines.as_ref(),
        rights: &options.rights,
        modules,
        filter: options.filter.as_ref(),
        agent: options.agent.as_ref(),
        status: Status::Running,
    };
    let served = serve::attend(new, &offer, patience, &mut Execution(options.state))?;
    log::step("exec, step 7: start the program", &pid);
    process::set_priorities(pid, options.process)?;
    if let Some(processors) = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref())
    {
        process::set_affinity(Some(pid), processors).context("set `execCPUAffinity.final`")?;
    }
    if let Some(path) = options.pidfd_socket {
        let receiver = terminal::connect(path)?;
        terminal::send(receiver.as_fd(), "pidfd", pidfd.as_fd())?;
    }
    // Before the program runs, this process knows whether it can write the pid file. Before the pid
    // file appears, the program runs.
    let pid_file = options.pid_file.map(|path| pid_file::draft(path, pid)).transpose()?;
    socket.send(&Message::Start)?;
    // The exec closes the new process's end of the socket.
    match patience.receive(socket, pid)? {
        None => {}
        Some(Message::Failed(text)) => bail!(text),
        Some(message) => bail!("the new process sent {message:?}"),
    }
    if let Some(engine) = served {
        engine.compile_later();
    }
    let shown = options.pid_file.unwrap_or(Path::new("none"));
    log::step("exec, step 8: publish the pid file", &shown.display());
    pid_file.map_or(Ok(()), Draft::publish)
}

const FROZEN: &str =
    "cannot exec in a paused container: its cgroup is frozen (use --ignore-paused to override)";

/// Runs the new process. Ends in the program, or in the end of the process.
fn main(plan: &Plan<'_>) -> ! {
    let error = match set_up(plan).and_then(|ready| {
        plan.socket.send(&Message::Ready)?;
        plan.socket.expect(&Message::Start)?;
        drop(ready.listener);
        // `exec` runs no hooks.
        becoming::last_steps(ready.cgroup, ready.filter, || Ok(()))?;
        Ok(ready.program)
    }) {
        Ok(program) => program.exec().into(),
        Err(error) => error,
    };
    // The runtime process prints the message. If the runtime process has ended, nobody reads it.
    let _ = plan.socket.send(&Message::Failed(format!("{error:#}")));
    syscall::exit_now(1)
}

/// Does everything except the start and the exec.
fn set_up<'a>(plan: &Plan<'a>) -> Result<Ready<'a>> {
    let (options, process) = (plan.options, plan.options.process);
    let name = process.args().iter().flatten().next().map_or("", String::as_str);
    log::step("exec, step 6: prepare the program", &name);
    helper::end_with_the_runtime_process()?;
    rustix::process::setsid().context("start a session")?;
    let (memory, files) = plan.socket.expect_cgroup()?;
    for tasks in files {
        cgroups::enter(&tasks).context("enter the cgroup")?;
    }
    let rootfs = Rootfs::open_as_is(Path::new("/")).context("open the container's root")?;
    if let Some(console) = &options.console {
        terminal::set_up(&rootfs, process, console.as_fd(), false)
            .context("set up the terminal")?;
    }
    let linux = options.spec.linux().as_ref();
    if let Some(personality) = linux.and_then(|linux| linux.personality().as_ref()) {
        process::set_personality(personality)?;
    }
    memory_policy::set_memory_policy(linux.and_then(|linux| linux.memory_policy().as_ref()))?;
    let home = becoming::home(&rootfs, process);
    drop(rootfs);

    let annotations = options.spec.annotations().as_ref();
    let keep_groups = annotations.and_then(|all| all.get(becoming::KEEP_GROUPS));
    let env = becoming::environment(process, home, 0, false);
    let plan = becoming::Plan {
        process,
        can_be_ended: false,
        socket: &plan.socket,
        first_own: options.first_own,
        kept: Vec::new(),
        withhold_devices: plan.withhold_devices,
        keep_groups: keep_groups.is_some_and(|value| value != "0"),
        lacks_root: namespaces::lacks_root(linux),
        by_root: options.state.uid == 0,
        rights: &options.rights,
        start_hooks: &[],
        // These steps are a part of step 6 of `exec`.
        step: |_, _| {},
        request: executor::Request {
            args: process.args().as_deref().unwrap_or_default(),
            env: &env,
            configured_env: &becoming::configured_environment(process),
            cwd: process.cwd(),
            engines: options.engines.as_ref(),
            registered: plan.registered,
            mounts: options.spec.mounts().as_deref().unwrap_or_default(),
            rights: &options.rights,
            memory,
            ask: &|number, module| plan.socket.ask_for_engine(number, module),
            ask_for_part: &|name, module| plan.socket.ask_for_part(name, module),
        },
    };
    becoming::ready(&plan, options.filter.as_ref())
}
