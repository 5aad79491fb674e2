//! The steps by which a privileged process in a container becomes the program. `create` and `exec`
//! share these steps and their order. This code runs in init, and in the new process of `exec`.
//!
//! # Open descriptors
//!
//! A container chooses names: its working directory, its program, the interpreters of a script and
//! of an ELF file, the directories in `PATH`, the paths of hooks. Each name can lead through
//! `/proc/self/fd/N` to any open file of the process that looks it up. From an open directory of
//! the host, the name could lead to all of the host. So before the process looks up the first of
//! these names, it closes every descriptor except those below, by `close_range(2)`. A descriptor
//! that a later version of the code opens and forgets is closed too.
//!
//! - 0, 1, 2: the standard streams, which the caller has given to the container.
//! - From 3 on, as many as `--preserve-fds` and `LISTEN_FDS` say: the caller has given these too.
//! - The socket to the runtime process. By this socket init sends its requests, and says that it is
//!   ready. No process can open a socket by such a name.
//! - The start fifo (`create`), on which init waits. A fifo is not a program and not a directory.
//! - The output files of hooks, if annotations name them (`create`): `startContainer` hooks print
//!   there. Init closes them before the exec.
//!
//! When init has found a module, the runtime process sends more descriptors over the socket. Among
//! them are an engine's directory and the way into the cgroup for modules. Then init opens a
//! signalfd too.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ffi::CString;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capabilities, Capability, Hook, LinuxCapabilities, Process};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::CapabilitySet;

use crate::container::module;
use crate::executor::{self, Program};
use crate::linux::host_proc::HostProc;
use crate::linux::process;
use crate::linux::rootfs::Rootfs;
use crate::linux::sd_notify;
use crate::linux::seccomp::Filter;
use crate::log;
use crate::sync::{Message, Socket};
use crate::syscall;
use crate::workload::Rights;

/// The input of a process that becomes its program.
pub(super) struct Plan<'a> {
    pub(super) process: &'a Process,
    /// Whether the process waits for `start`, for an unknown time. Until then, a termination signal
    /// ends the process.
    pub(super) can_be_ended: bool,
    pub(super) socket: &'a Socket,
    /// From this number on, descriptors are the runtime's own. The caller has passed those below.
    pub(super) first_own: u32,
    /// The own descriptors that stay open, besides the socket.
    pub(super) kept: Vec<BorrowedFd<'a>>,
    /// Whether no device rules are in force. Then only the lack of the rights to make a device node
    /// keeps the program from the host's devices.
    pub(super) withhold_devices: bool,
    /// Whether the caller's additional groups stay (`run.oci.keep_original_groups`).
    pub(super) keep_groups: bool,
    /// Whether root of the host makes the process.
    pub(super) by_root: bool,
    /// Whether the container's user namespace has no id of the host's root.
    pub(super) lacks_root: bool,
    /// The rights of a module.
    pub(super) rights: &'a Rights,
    /// The hooks that run in the container before its program.
    pub(super) start_hooks: &'a [Hook],
    /// Logs that a step begins, in commands that have such steps.
    pub(super) step: fn(&str, &dyn Display),
    pub(super) request: executor::Request<'a>,
}

impl Plan<'_> {
    /// The configured capabilities, without `CAP_MKNOD` if the program must not make device nodes.
    fn capabilities(&self) -> Option<LinuxCapabilities> {
        let mut sets = self.process.capabilities().clone()?;
        if self.withhold_devices {
            let without = |set: &Option<Capabilities>| {
                let mut set = set.clone()?;
                set.remove(&Capability::Mknod);
                Some(set)
            };
            sets.set_bounding(without(sets.bounding()));
            sets.set_effective(without(sets.effective()));
            sets.set_permitted(without(sets.permitted()));
            sets.set_inheritable(without(sets.inheritable()));
            sets.set_ambient(without(sets.ambient()));
        }
        Some(sets)
    }
}

/// The prepared process. Only the start and the exec are missing.
pub(super) struct Ready<'a> {
    pub(super) program: Program,
    /// The listener of a filter that notifies an agent.
    pub(super) listener: Option<OwnedFd>,
    /// A filter that this process loads just before the exec.
    pub(super) filter: Option<&'a Filter>,
    /// The way into the cgroup for modules.
    pub(super) cgroup: Option<OwnedFd>,
    /// Readable when a termination signal has come that an engine has blocked.
    pub(super) endings: Option<OwnedFd>,
}

/// The annotation that keeps the caller's additional groups.
pub(super) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// Does everything except the start and the exec. Closes the descriptors that the process had
/// before: see [`syscall::close_all_but`].
pub(super) fn ready<'a>(plan: &Plan<'_>, filter: Option<&'a Filter>) -> Result<Ready<'a>> {
    let capabilities = plan.capabilities();
    let rights = NewRights {
        capabilities: capabilities.as_ref(),
        no_new_privileges: plan.process.no_new_privileges() == Some(true),
        // Without `noNewPrivileges`, loading a filter requires this capability too (`seccomp(2)`).
        spare: match filter {
            Some(_) if plan.process.no_new_privileges() != Some(true) => CapabilitySet::SYS_ADMIN,
            _ => CapabilitySet::empty(),
        },
    };
    close_descriptors(plan, &rights)?;
    change_user(plan, &rights)?;
    let program = find_program(plan)?;
    load_filter(plan, filter, &rights, program)
}

/// The privileges of the program.
struct NewRights<'a> {
    capabilities: Option<&'a LinuxCapabilities>,
    no_new_privileges: bool,
    /// The capabilities that this process keeps until its filter is loaded.
    spare: CapabilitySet,
}

/// Closes the host's descriptors, keeps other processes out, and gives the program the files that
/// only root can give.
fn close_descriptors(plan: &Plan<'_>, rights: &NewRights<'_>) -> Result<()> {
    (plan.step)("create, step 17: init closes descriptors", &"");
    use std::os::fd::AsFd;
    let kept: Vec<_> = plan.kept.iter().copied().chain([plan.socket.as_fd()]).collect();
    syscall::close_all_but(plan.first_own, &kept).context("close the host's descriptors")?;
    let user = plan.process.user();
    keep_neighbours_out()?;
    process::set_umask(user.umask());
    process::own_null(plan.lacks_root)?;
    process::own_stdio(user)?;
    process::drop_bounding(rights.capabilities)
}

/// Drops the privileges that the program must not have, and enters the working directory. Like runc
/// and crun, this process first tries to enter it as root. So an image's `/root` can be the working
/// directory of a container whose user is not root.
fn change_user(plan: &Plan<'_>, rights: &NewRights<'_>) -> Result<()> {
    let process = plan.process;
    (plan.step)("create, step 18: init changes the user", &process.user().uid());
    let mut entered = enter(process.cwd());
    process::become_user(process.user(), plan.keep_groups, plan.by_root)?;
    process::set_capabilities(rights.capabilities, rights.spare)?;
    // The change of the user has undone this. The later steps only drop privileges, which does not
    // undo it.
    keep_neighbours_out()?;
    if let Err(Errno::ACCESS | Errno::PERM) = entered {
        // Only the user may enter it, for example a home on a network filesystem whose owner keeps
        // root out.
        entered = enter(process.cwd());
    }
    let show = || format!("enter the working directory `{}`", process.cwd().display());
    ensure!(entered.with_context(show)?, "{}: it is outside of the container", show());
    if rights.no_new_privileges {
        rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    }
    Ok(())
}

/// Runs as the container's user, and before a filter is loaded, so that the filter need not allow
/// the calls of a look-up.
fn find_program(plan: &Plan<'_>) -> Result<Program> {
    let name = plan.request.args.first().map_or("", String::as_str);
    (plan.step)("create, step 19: init finds the program", &name);
    let program = executor::prepare(&plan.request)?;
    for hook in plan.start_hooks {
        executor::check_hook(hook.path())
            .with_context(|| format!("run startContainer hook `{}`", hook.path().display()))?;
    }
    Ok(program)
}

/// Loads the filter, unless it can wait until just before the exec.
fn load_filter<'a>(
    plan: &Plan<'_>,
    filter: Option<&'a Filter>,
    rights: &NewRights<'_>,
    mut program: Program,
) -> Result<Ready<'a>> {
    (plan.step)("create, step 20: init loads the filter and waits", &"");
    // The runtime process will soon stop listening, and a filter need not allow log messages to it.
    log::end();
    let cgroup = program.cgroup.take();
    if program.is_module {
        module::confine(plan.rights, cgroup.as_ref())?;
    }
    // From now on, the container can receive signals.
    program.set_signal_mask();
    let endings = if plan.can_be_ended { program.can_be_ended()? } else { None };
    let mut ready = Ready { program, listener: None, filter: None, cgroup, endings };
    let Some(filter) = filter else {
        outlive_the_runtime_process()?;
        return Ok(ready);
    };
    // With `noNewPrivileges`, loading a filter requires no privilege, so this process loads it just
    // before the exec.
    if rights.no_new_privileges && filter.can_wait() {
        outlive_the_runtime_process()?;
        ready.filter = Some(filter);
        return Ok(ready);
    }
    if !filter.notifies() {
        outlive_the_runtime_process()?;
    }
    let announce = || plan.socket.send(&Message::Listener(plan.socket.next_descriptor()?));
    let load = || filter.load(announce);
    ready.listener = process::with_spare(rights.capabilities, rights.spare, load)?;
    check_what_is_left(plan)?;
    if filter.notifies() {
        // Until now, this process ended with the runtime process. Otherwise it could have waited
        // for its own answer.
        outlive_the_runtime_process()?;
    }
    Ok(ready)
}

/// A hint for the error message about a process that ended without one. A filter that is loaded
/// before the exec may forbid sending the message, too.
pub(super) fn what_is_left(process: &Process, filter: Option<&Filter>) -> &'static str {
    match (filter, process.no_new_privileges()) {
        (None, _) | (_, Some(true)) => "",
        _ => {
            ": without `noNewPrivileges`, a seccomp filter has to allow `capset`, `read` and `write`"
        }
    }
}

/// Fails if the new filter forbids a call that this process must make before its exec, while this
/// process can still report it. If the filter forbids `write`, the runtime process notices.
fn check_what_is_left(plan: &Plan<'_>) -> Result<()> {
    rustix::io::read(plan.socket, &mut [0_u8; 0])
        .map(drop)
        .context("the seccomp filter forbids `read`, which init needs without `noNewPrivileges`")?;
    if plan.can_be_ended {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        syscall::poll(&mut [], Some(&now)).map(drop).context(
            "the seccomp filter forbids `poll` and `ppoll`: init needs one of them without `noNewPrivileges`",
        )?;
    }
    Ok(())
}

/// Cancels the signal at the end of the runtime process (`PR_SET_PDEATHSIG`). From now on, this
/// process waits for a message of the runtime process, and so notices by itself when the runtime
/// process ends.
fn outlive_the_runtime_process() -> Result<()> {
    rustix::process::set_parent_process_death_signal(None).context("outlive the runtime process")
}

/// Another process of the same user and in the same pid namespace could reach this one's memory and
/// descriptors. The exec ends this protection.
fn keep_neighbours_out() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keep others out of the container's process")
}

/// Makes a directory the working directory. Returns whether it is in the container. A magic link in
/// `/proc` could lead to a directory of the host, which the kernel cannot name from this root.
fn enter(directory: &Path) -> rustix::io::Result<bool> {
    rustix::process::chdir(directory)?;
    Ok(rustix::process::getcwd(Vec::new())?.to_bytes().starts_with(b"/"))
}

/// Does everything that is left between the start and the exec. `run_hooks` runs the
/// `startContainer` hooks.
///
/// 1. The process enters the cgroup for modules by a `write`, so this comes before the filter,
///    which then need not allow that call. The hooks run in this cgroup, because they have the
///    module's other restrictions too ([`module::confine`]).
/// 2. The filter comes before the hooks, as with runc and crun. The hooks run programs of the
///    container, and must not make calls that the container's program may not make.
/// 3. The hooks come last.
pub(super) fn last_steps(
    cgroup: Option<OwnedFd>,
    filter: Option<&Filter>,
    run_hooks: impl FnOnce() -> Result<()>,
) -> Result<()> {
    module::enter(cgroup)?;
    filter.map_or(Ok(()), Filter::load_unheard)?;
    run_hooks()
}

/// Replaces the caller's session keyring in this process, because otherwise the container's
/// programs would possess it. Runs before the process enters a user namespace. So the new keyring
/// counts for the caller, and not for a quota that neighbours can fill (`keyrings(7)`).
pub(super) fn leave_session_keyring(id: &str) -> Result<()> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .context("get a random number")?;
    // The random number makes the name unknown to others. If another user has made a keyring of
    // this name and allows others to search it, the kernel would join that keyring.
    let name = format!("_ses.{id}.{:016x}", u64::from_ne_bytes(random));
    match syscall::join_session_keyring(&CString::new(name)?) {
        // A kernel without keyrings. A filter around `rt` may return the same error, as LXC's
        // filters do: docs/security.md, "Keyrings".
        Err(Errno::NOSYS) if !syscall::has_keyctl() => Ok(()),
        // Here the caller's keyring would stay, without permission for the container to have it.
        Err(error @ (Errno::PERM | Errno::ACCESS)) => Err(error).context(
            "make a session keyring: `keyctl` is forbidden (`--no-new-keyring` keeps the caller's)",
        ),
        Err(Errno::DQUOT) => Err(Errno::DQUOT).context(
            "make a session keyring: the user has too many keys (sysctl `kernel.keys.maxkeys`)",
        ),
        joined => joined.context("make a session keyring"),
    }
}

/// Sets the label that the program gets. Uses the host's `/proc`, because the container's may be
/// missing or be something else.
pub(super) fn set_security_label(process: &Process, proc: &HostProc) -> Result<()> {
    let Some((paths, text)) = security_label(process)? else { return Ok(()) };
    let file = paths.iter().map(|path| proc.open_to_write(path)).find(|file| file.is_ok());
    let file =
        file.with_context(|| format!("set the label `{text}`: open `/proc/{}`", paths[0]))??;
    File::from(file).write_all(text.as_bytes()).with_context(|| format!("set the label `{text}`"))
}

/// Returns the files that accept a label for the next program, and the text to write. The first
/// existing file counts.
fn security_label(process: &Process) -> Result<Option<(&'static [&'static str], String)>> {
    let selinux = process.selinux_label().as_ref().filter(|label| !label.is_empty());
    let apparmor = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty());
    match (selinux, apparmor) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => bail!("`selinuxLabel` and `apparmorProfile` exclude each other"),
        (Some(label), None) => Ok(Some((&["thread-self/attr/exec"], label.clone()))),
        // The second path is the one before Linux 5.8.
        (None, Some(profile)) => Ok(Some((
            &["thread-self/attr/apparmor/exec", "thread-self/attr/exec"],
            format!("exec {profile}"),
        ))),
    }
}

/// The user's home according to the container's own `/etc/passwd`. Like runc, for an environment in
/// which HOME is missing or empty. This process reads the file and does not ask NSS, which would
/// run the image's libraries.
pub(super) fn home(rootfs: &Rootfs, process: &Process) -> Option<String> {
    let last = process.env().iter().flatten().rev().find_map(|it| it.strip_prefix("HOME="));
    if last.is_some_and(|home| !home.is_empty()) {
        return None;
    }
    let find = || {
        let file = rootfs.open_regular(Path::new("/etc/passwd")).ok()?;
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

/// The environment of a program: the configured variables, and the variables that `rt` adds.
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
        env.push(sd_notify::variable());
    }
    if listen_fds > 0 {
        // The program is process 1 of its own pid namespace (sd_listen_fds(3)).
        env.extend([format!("LISTEN_FDS={listen_fds}"), "LISTEN_PID=1".to_owned()]);
    }
    last_of_each_name(env)
}

/// Of several variables with one name, keeps the last one, as crun and runc do. Otherwise the
/// program's libc would decide which one counts.
fn last_of_each_name(env: Vec<String>) -> Vec<String> {
    let mut names = HashSet::new();
    let mut kept: Vec<bool> =
        env.iter().rev().map(|variable| names.insert(variable.split('=').next())).collect();
    kept.reverse();
    drop(names);
    env.into_iter().zip(kept).filter_map(|(variable, kept)| kept.then_some(variable)).collect()
}

/// The environment of a module.
pub(super) fn configured_environment(process: &Process) -> Vec<String> {
    last_of_each_name(process.env().clone().unwrap_or_default())
}
