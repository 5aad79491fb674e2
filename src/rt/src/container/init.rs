//! What the container's first process does between its birth and its exec. Everything here runs in that process, in the
//! container's namespaces, and the order matters: see `docs/operation.md`.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use libcontainer::oci_spec::runtime::{Hook, Mount, Process};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Signal};

use super::cgroups::Manager;
use super::create::{self, Options};
use super::hooks::Streams;
use super::mounts::Detached;
use super::namespaces::{self, Namespaces};
use super::rootfs::Rootfs;
use super::seccomp::Filter;
use super::sync::{Message, Socket};
use super::{
    cgroup_mount, cgroups, devices, hooks, module, mounts, notify_socket, process, sysctl, terminal,
};
use crate::executor::{self, Program};
use crate::state::{State, Status};
use crate::syscall;
use crate::workload::Rights;

/// What init was born with.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) options: &'a Options<'a>,
    pub(super) namespaces: &'a Namespaces,
    pub(super) filter: Option<&'a Filter>,
    /// Of a module.
    pub(super) rights: &'a Rights,
    /// What the caller's process has opened for `mounts`.
    pub(super) mounts: Vec<Option<Detached>>,
    /// Where hooks print to.
    pub(super) streams: &'a Streams,
    /// What holds the container's socket for `sd_notify(3)`.
    pub(super) notify: Option<notify_socket::Folder>,
    /// Readable when the program may start; none when the caller says so over the socket.
    pub(super) start_fifo: Option<OwnedFd>,
    pub(super) socket: Socket,
    pub(super) state: &'a State,
}

/// The annotation that keeps the caller's additional groups.
pub(super) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// The exit codes of a shell for a program that cannot be run, and one that is not there.
const CANNOT_RUN: i32 = 126;
const NOT_THERE: i32 = 127;

/// Runs init. Ends in the program, or in the end of the process.
pub(super) fn main(mut plan: Plan<'_>) -> ! {
    let opened = std::mem::take(&mut plan.mounts);
    let notify = plan.notify.take();
    let plan = &plan;
    let ready = match set_up(plan, opened, notify) {
        Ok(ready) => ready,
        Err(error) => {
            // The caller prints it. If it is gone, nobody is interested.
            let _ = plan.socket.send(&Message::Failed(format!("{error:#}")));
            syscall::exit_now(1)
        }
    };
    // From now on the container can be signalled.
    ready.program.take_signals();
    let error = match wait_for_start(plan, ready.listener)
        .and_then(|()| load_last(ready.filter))
        .and_then(|()| run_start_hooks(plan))
        .and_then(|()| module::enter(ready.modules))
    {
        Ok(()) => ready.program.exec(),
        Err(error) => error,
    };
    // The caller has gone: the one place left is the container's own standard error.
    let code = if error.downcast_ref() == Some(&Errno::NOENT) { NOT_THERE } else { CANNOT_RUN };
    let line = format!("rt: start `{}`: {}\n", plan.options.id, crate::describe(&error));
    let _ = std::io::stderr().write_all(line.as_bytes());
    syscall::exit_now(code)
}

/// What is there when only the start is missing.
pub(super) struct Ready<'a> {
    pub(super) program: Program,
    /// Of a filter that notifies.
    pub(super) listener: Option<OwnedFd>,
    /// A filter that is loaded when nothing is left to do but the exec.
    pub(super) filter: Option<&'a Filter>,
    /// The way into the cgroup for modules.
    pub(super) modules: Option<OwnedFd>,
}

/// Everything up to that point.
fn set_up<'a>(
    plan: &Plan<'a>,
    opened: Vec<Option<Detached>>,
    notify: Option<notify_socket::Folder>,
) -> Result<Ready<'a>> {
    let options = plan.options;
    let bundle = options.bundle;
    let spec = &bundle.spec;
    let linux = bundle.linux();
    let process = bundle.process();
    let namespaces = plan.namespaces;

    let is_service = notify.is_some();
    // Until the caller has recorded it. What changes the user ends this too; from then on init notices by itself, since it
    // waits for the caller's word.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("end with the caller")?;
    rustix::process::setsid().context("start a session")?;
    if namespaces.makes(libc::CLONE_NEWUSER) {
        plan.socket.expect(&Message::Mapped)?;
        namespaces::become_root()?;
    }
    // systemd looks at the process that it moves: one that failed meanwhile leaves a scope that nobody knows.
    let mut place = None;
    if options.manager == Manager::Systemd {
        place = Some(enter_cgroup(plan)?);
    }
    namespaces.join_rest()?;
    if options.new_keyring {
        join_session_keyring(options.id)?;
    }
    if namespaces.makes(libc::CLONE_NEWNET) {
        namespaces::bring_loopback_up()?;
    }
    if let Some(hostname) = spec.hostname() {
        rustix::system::sethostname(hostname.as_bytes()).context("set the hostname")?;
    }
    if let Some(domainname) = spec.domainname() {
        rustix::system::setdomainname(domainname.as_bytes()).context("set the domainname")?;
    }

    let propagation = linux.rootfs_propagation().as_deref();
    let mut rootfs = if namespaces.has_mount() {
        Rootfs::enter(&bundle.rootfs, propagation)
    } else {
        Rootfs::open_as_is(&bundle.rootfs)
    }
    .with_context(|| format!("prepare rootfs `{}`", bundle.rootfs.display()))?;
    let entries = spec.mounts().as_deref().unwrap_or_default();
    let place = mount_all(plan, &mut rootfs, entries, opened, place)?;
    if namespaces.has_mount() {
        // Only the initial user namespace may make device nodes (`user_namespaces(7)`).
        let bind = namespaces.makes(libc::CLONE_NEWUSER) || !crate::state::is_host_root();
        devices::make(&rootfs, linux.devices().as_deref().unwrap_or_default(), entries, bind)?;
        if let Some(folder) = notify {
            notify_socket::mount(&rootfs, folder)?;
        }
    }
    rootfs.make(process.cwd(), true).context("make the working directory")?;
    if let Some(console) = &options.console {
        terminal::set_up(&rootfs, process, console.as_fd(), true).context("set up the terminal")?;
    }
    if let Some(parameters) = linux.sysctl() {
        sysctl::set(parameters)?;
    }
    let mut place = place.map_or_else(|| enter_cgroup(plan), Ok)?;
    run_hooks_before_pivot(plan)?;

    let mut empty = None;
    for path in linux.masked_paths().iter().flatten() {
        rootfs.mask(Path::new(path), &mut empty).with_context(|| format!("mask `{path}`"))?;
    }
    for path in linux.readonly_paths().iter().flatten() {
        rootfs
            .make_read_only(Path::new(path))
            .with_context(|| format!("make `{path}` read-only"))?;
    }
    if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        ensure!(
            namespaces.has_mount(),
            "a read-only root needs a mount namespace of the container's own"
        );
        rootfs.make_root_read_only()?;
    }

    // What needs the host's /proc, or privileges, before both are gone.
    if !create::limits_it(plan.state, namespaces) {
        process::limit(None, process)?;
    }
    if let Some(personality) = linux.personality() {
        process::set_personality(personality)?;
    }
    process::set_memory_policy(linux.memory_policy().as_ref())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open `/proc`")?;
    let label = security_label(proc.as_fd(), process)?;
    drop(proc);
    let home = home(&rootfs, process);
    let registered = create::registered_formats();

    if !namespaces.has_mount() {
        rootfs.chroot()?;
    } else if options.no_pivot {
        rootfs.move_and_chroot(&bundle.rootfs, propagation)?;
    } else {
        rootfs.pivot(propagation)?;
    }
    // No descriptor of the host's is left when the working directory is entered (CVE-2024-21626).
    drop(rootfs);
    drop(empty);

    let keep = options.bundle.annotation(KEEP_GROUPS).is_some_and(|value| value != "0");
    let listener = become_unprivileged(process, plan.filter, &plan.socket, keep)?;
    // Of the same user and in the same pid namespace, another container could reach this process's descriptors, and start it
    // or hold its engine's directory. The exec ends this.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keep others out of init")?;
    let request = executor::Request {
        args: process.args().as_deref().unwrap_or_default(),
        env: environment(process, home, options.listen_fds, is_service),
        cwd: process.cwd(),
        asked: options.asked,
        engine: options.engine.as_ref(),
        registered,
        mounts: spec.mounts().as_deref().unwrap_or_default(),
        rights: plan.rights,
        memory: place.memory,
        native: &|module| plan.socket.ask_for_native(module),
    };
    let program = executor::prepare(&request)?;
    if !program.is_module {
        place.modules = None;
    }
    set_label(label)?;
    if program.is_module {
        module::confine(plan.rights, place.modules.as_ref())?;
    }
    let (now, filter) = load_or_keep(process, plan.filter, &plan.socket)?;
    let listener = listener.or(now);
    Ok(Ready { program, listener, filter, modules: place.modules })
}

/// Where there are no new privileges, a filter is loaded without any: last of all, so that it need not allow what is done before. One
/// that notifies is loaded while there is somebody to serve its listener, and one that the kernel might refuse while `create` can
/// fail. Returns the listener, or the filter that is left.
pub(super) fn load_or_keep<'a>(
    process: &Process,
    filter: Option<&'a Filter>,
    socket: &Socket,
) -> Result<(Option<OwnedFd>, Option<&'a Filter>)> {
    match filter.filter(|_| process.no_new_privileges() == Some(true)) {
        Some(filter) if filter.can_wait() => Ok((None, Some(filter))),
        Some(filter) => Ok((filter.load(socket)?, None)),
        None => Ok((None, None)),
    }
}

pub(super) fn load_last(filter: Option<&Filter>) -> Result<()> {
    filter.map_or(Ok(()), Filter::load_unheard)
}

/// Carries out `mounts` in order. A cgroup mount shows the cgroup namespace that it is made in, so the first one waits until
/// init is in its cgroup; until then both processes work side by side. Returns the place in it when that has happened.
fn mount_all(
    plan: &Plan<'_>,
    rootfs: &mut Rootfs,
    entries: &[Mount],
    opened: Vec<Option<Detached>>,
    mut place: Option<Place>,
) -> Result<Option<Place>> {
    for (entry, opened) in entries.iter().zip(opened) {
        let show = || format!("mount `{}`", entry.destination().display());
        let is_cgroup = matches!(entry.typ().as_deref(), Some("cgroup" | "cgroup2"));
        if is_cgroup && place.is_none() {
            place = Some(enter_cgroup(plan)?);
        }
        if is_cgroup {
            cgroup_mount::mount(rootfs, plan.namespaces, entry).with_context(show)?;
        } else {
            let (bundle, namespaces) = (plan.options.bundle, plan.namespaces);
            mounts::mount(rootfs, bundle, namespaces, entry, opened).with_context(show)?;
        }
    }
    Ok(place)
}

/// What there is to know of the cgroup that init is in.
struct Place {
    /// The limit of memory that an engine is told, in bytes.
    memory: Option<u64>,
    /// The way into the cgroup for modules.
    modules: Option<OwnedFd>,
}

/// Waits for the cgroup, and makes the cgroup namespace, whose root it becomes.
fn enter_cgroup(plan: &Plan<'_>) -> Result<Place> {
    let (memory, mut files, modules) = plan.socket.expect_cgroup()?;
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
    Ok(Place { memory, modules })
}

pub(super) fn join_session_keyring(id: &str) -> Result<()> {
    match syscall::join_session_keyring(&CString::new(format!("_ses.{id}"))?) {
        // A kernel without keyrings, or a filter around this runtime that forbids them: there is none to share either.
        Ok(()) | Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(()),
        // A user's quota of keys is small, and the caller's keyring is no secret from a user's own container.
        Err(Errno::DQUOT) => Ok(()),
        Err(error) => Err(error).context("make a session keyring"),
    }
}

fn run_hooks_before_pivot(plan: &Plan<'_>) -> Result<()> {
    let Some(hooks) = plan.options.bundle.spec.hooks() else { return Ok(()) };
    plan.socket.send(&Message::BeforePivot)?;
    plan.socket.expect(&Message::HooksDone)?;
    let list: &[Hook] = hooks.create_container().as_deref().unwrap_or_default();
    hooks::run(
        "createContainer",
        list,
        &hooks::state_json(plan.state, Status::Creating),
        hooks::Place::bundle(plan.state),
        plan.streams,
    )
}

/// The file that takes the label of the next program, and what to write to it. Opened on the host's `/proc`: the
/// container's may be missing or be something else.
pub(super) fn security_label(
    proc: BorrowedFd<'_>,
    process: &Process,
) -> Result<Option<(File, String)>> {
    let selinux = process.selinux_label().as_ref().filter(|label| !label.is_empty());
    let apparmor = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty());
    let (paths, text): (&[&str], String) = match (selinux, apparmor) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => bail!("`selinuxLabel` and `apparmorProfile` exclude each other"),
        (Some(label), None) => (&["thread-self/attr/exec"], label.clone()),
        (None, Some(profile)) => {
            // The second is where it was before Linux 5.8.
            let paths = &["thread-self/attr/apparmor/exec", "thread-self/attr/exec"];
            (paths, format!("exec {profile}"))
        }
    };
    let open = |path: &&str| {
        rustix::fs::openat(proc, *path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    };
    let file = paths.iter().map(open).find(|file| file.is_ok());
    let file =
        file.with_context(|| format!("set the label `{text}`: open `/proc/{}`", paths[0]))??;
    Ok(Some((File::from(file), text)))
}

/// For the next program that this process starts.
pub(super) fn set_label(label: Option<(File, String)>) -> Result<()> {
    match label {
        Some((mut file, label)) => {
            file.write_all(label.as_bytes()).with_context(|| format!("set the label `{label}`"))
        }
        None => Ok(()),
    }
}

/// The user's home in the container's own `/etc/passwd`, for an environment without HOME. The file is read, not asked for
/// by NSS: that would run the image's libraries.
pub(super) fn home(rootfs: &Rootfs, process: &Process) -> Option<String> {
    if process.env().iter().flatten().any(|variable| variable.starts_with("HOME=")) {
        return None;
    }
    let find = || {
        let file = rootfs.open(Path::new("/etc/passwd"), OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
        if rustix::fs::fstat(&file).ok()?.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        const LONGEST: u64 = 1 << 20;
        let mut text = String::new();
        File::from(file).take(LONGEST).read_to_string(&mut text).ok()?;
        let uid = process.user().uid().to_string();
        // NAME:PASSWORD:UID:GID:COMMENT:HOME:SHELL, passwd(5).
        let line = text.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
        line.split(':').nth(5).filter(|home| !home.is_empty()).map(str::to_owned)
    };
    Some(find().unwrap_or_else(|| "/".to_owned()))
}

pub(super) fn environment(
    process: &Process,
    home: Option<String>,
    listen_fds: u32,
    notify: bool,
) -> Vec<String> {
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(home.map(|home| format!("HOME={home}")));
    if notify {
        env.retain(|variable| !variable.starts_with("NOTIFY_SOCKET="));
        env.push(notify_socket::variable());
    }
    if listen_fds > 0 {
        // The program is process 1 of its own pid namespace (sd_listen_fds(3)).
        env.extend([format!("LISTEN_FDS={listen_fds}"), "LISTEN_PID=1".to_owned()]);
    }
    env
}

/// Takes from this process what its program shall not have, and enters the working directory: as root if that may, as runc and crun
/// do, since an image's `/root` is its directory also where its user is somebody else. Returns the listener of a filter that
/// notifies, if it is loaded already.
pub(super) fn become_unprivileged(
    process: &Process,
    filter: Option<&Filter>,
    socket: &Socket,
    keep_groups: bool,
) -> Result<Option<OwnedFd>> {
    let mut listener = None;
    let user = process.user();
    let capabilities = process.capabilities().as_ref();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keep others out of init")?;
    process::set_umask(user.umask());
    process::own_null()?;
    process::own_stdio(user)?;
    process::drop_bounding(capabilities)?;
    if process.no_new_privileges() != Some(true)
        && let Some(filter) = filter
    {
        // Loading one takes CAP_SYS_ADMIN, unless no new privileges can be had (seccomp(2)).
        listener = filter.load(socket)?;
    }
    let entered = enter_working_directory(process.cwd());
    process::become_user(user, keep_groups)?;
    process::set_capabilities(capabilities)?;
    match entered {
        // Only its user may: a home that the owner of a network's filesystem keeps from root.
        Err(error) if matches!(error.downcast_ref(), Some(&(Errno::ACCESS | Errno::PERM))) => {
            enter_working_directory(process.cwd())?;
        }
        entered => entered?,
    }
    if process.no_new_privileges() == Some(true) {
        rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    }
    Ok(listener)
}

fn enter_working_directory(path: &Path) -> Result<()> {
    let show = || format!("enter the working directory `{}`", path.display());
    rustix::process::chdir(path).with_context(show)?;
    // A magic link in `/proc` could lead to a directory of the host's; then the kernel cannot name it from this root.
    let here = rustix::process::getcwd(Vec::new()).with_context(show)?;
    ensure!(here.to_bytes().starts_with(b"/"), "{}: it is outside of the container", show());
    Ok(())
}

/// Says that everything is ready, and waits for the start. The caller's process has its own listener then: kept here, it
/// would hide from the kernel that the agent is gone.
fn wait_for_start(plan: &Plan<'_>, listener: Option<OwnedFd>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(None).context("outlive the caller")?;
    plan.socket.send(&Message::Ready)?;
    match &plan.start_fifo {
        Some(fifo) => {
            // Without a record of it, an init that outlives its caller could not be found to be ended.
            plan.socket.expect(&Message::Recorded)?;
            drop(listener);
            wait_for_byte(fifo)?;
        }
        None => plan.socket.expect(&Message::Start)?,
    }
    Ok(())
}

fn run_start_hooks(plan: &Plan<'_>) -> Result<()> {
    let Some(hooks) = plan.options.bundle.spec.hooks() else { return Ok(()) };
    let list: &[Hook] = hooks.start_container().as_deref().unwrap_or_default();
    // In the container, they are the container's.
    let environment = plan.options.bundle.process().env().as_deref();
    let place = hooks::Place { folder: None, environment: Some(environment.unwrap_or_default()) };
    hooks::run(
        "startContainer",
        list,
        &hooks::state_json(plan.state, Status::Created),
        place,
        plan.streams,
    )
}

fn wait_for_byte(fifo: &OwnedFd) -> Result<()> {
    let mut poll = [PollFd::new(fifo, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut poll, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the start"),
        }
    }
    // Whoever starts claims the fifo, then writes: one that ended in between leaves nobody who could start this.
    ensure!(poll[0].revents().contains(PollFlags::IN), "wait for the start: it was cut short");
    Ok(())
}
