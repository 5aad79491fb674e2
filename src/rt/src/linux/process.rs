//! The properties of a process besides its program: user, groups, capabilities, limits (`process`
//! in `config.json`). Runs in init.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxCapabilities, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType, Process, Scheduler,
    User,
};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet, Gid, Uid};

use crate::ids::is_host_root;
use crate::linux::mounts::{self, detached};
use crate::linux::terminal;
use crate::syscall::{self, SchedAttr};

/// Sets `rlimits` and `oomScoreAdj`, of this process or of another one.
pub(crate) fn limit(pid: Option<Pid>, process: &Process) -> Result<()> {
    if let Some(value) = process.oom_score_adj() {
        set_oom_score_adj(pid, value)?;
    }
    set_limits(pid, process.rlimits().as_deref().unwrap_or_default())
}

fn set_limits(pid: Option<Pid>, limits: &[PosixRlimit]) -> Result<()> {
    for limit in limits {
        rustix::process::prlimit(pid, resource(limit.typ()), limit_of(limit))
            .map(drop)
            .with_context(|| format!("set {} to {}:{}", limit.typ(), limit.soft(), limit.hard()))?;
    }
    Ok(())
}

pub(crate) fn limit_of(limit: &PosixRlimit) -> Rlimit {
    // RLIM_INFINITY is the largest number, and None for rustix.
    let number = |number| Some(number).filter(|number| *number != u64::MAX);
    Rlimit { current: number(limit.soft()), maximum: number(limit.hard()) }
}

pub(crate) fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

pub(crate) fn set_oom_score_adj(pid: Option<Pid>, value: i32) -> Result<()> {
    let pid = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let path = format!("/proc/{pid}/oom_score_adj");
    match fs::write(&path, value.to_string()) {
        // An ordinary user may only raise its own score.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && !is_host_root() => Ok(()),
        result => result.with_context(|| format!("write `oomScoreAdj`, {value}, to `{path}`")),
    }
}

/// Drops the caller's CPU affinity (`taskset(1)`, a service's `CPUAffinity=`). So the processes of
/// the container run on every processor that its cgroup allows. runc does the same.
pub(crate) fn forget_affinity() {
    // A filter around `rt` may forbid the call. Then the container has fewer processors, and
    // nothing else changes.
    if let Err(error) = syscall::run_on_all_processors() {
        tracing::debug!("run on all processors: {error}");
    }
}

/// Sets the processors to run on, as a list like `0-3,7` (`process.execCPUAffinity`,
/// `sched_setaffinity(2)`).
pub(crate) fn set_affinity(pid: Option<Pid>, list: &str) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    rustix::thread::sched_setaffinity(pid, &processors(list)?)
        .with_context(|| format!("run on the processors `{list}`"))
}

/// Sets the scheduler and the i/o priority (`process.scheduler`, `process.ioPriority`). Runs in the
/// runtime process, which has rights that root of a user namespace may lack.
pub(crate) fn set_priorities(pid: Pid, process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        let name = scheduler.policy();
        let attr = scheduling(scheduler)?;
        syscall::sched_setattr(pid, attr)
            .with_context(|| format!("set the scheduler to {name}"))?;
    }
    set_io_priority(pid, process)
}

pub(crate) fn set_io_priority(pid: Pid, process: &Process) -> Result<()> {
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = priority.priority();
        let wrong = || format!("`ioPriority.priority` {level} is not 0 to 7");
        let level = i32::try_from(level).ok().filter(|level| (0..=7).contains(level));
        let level = level.with_context(wrong)?;
        syscall::ioprio_set(pid, class, level)
            .with_context(|| format!("set the i/o priority to {} {level}", priority.class()))?;
    }
    Ok(())
}

pub(crate) fn scheduling(scheduler: &Scheduler) -> Result<SchedAttr> {
    use LinuxSchedulerFlag as Flag;
    // Numbers from <linux/sched.h>.
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &Flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = scheduler.priority().unwrap_or(0);
    Ok(SchedAttr {
        policy,
        flags: scheduler.flags().iter().flatten().map(flag).sum(),
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(priority)
            .with_context(|| format!("`scheduler.priority` {priority} is less than 0"))?,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    })
}

fn processors(list: &str) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| -> Result<usize> {
            let number = text.trim().parse().with_context(|| format!("`{list}` is not a list"))?;
            ensure!(number < CpuSet::MAX_CPU, "`{list}`: there is no processor {number}");
            Ok(number)
        };
        for processor in number(first)?..=number(last)? {
            set.set(processor);
        }
    }
    Ok(set)
}

pub(crate) fn set_personality(personality: &LinuxPersonality) -> Result<()> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        bail!("`personality.flags` are not supported");
    }
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000, // PER_LINUX, <linux/personality.h>
        LinuxPersonalityDomain::PerLinux32 => 0x0008, // PER_LINUX32
    };
    syscall::personality(domain).context("set the personality")
}

pub(crate) fn set_umask(umask: Option<u32>) {
    rustix::process::umask(Mode::from_raw_mode(umask.unwrap_or(0o022)));
}

/// Converts names to the kernel's set of capabilities.
pub(crate) fn set(names: Option<&Capabilities>) -> Result<CapabilitySet> {
    let mut set = CapabilitySet::empty();
    for name in names.into_iter().flatten() {
        let name = name.to_string();
        set |= CapabilitySet::from_name(&name)
            .with_context(|| format!("unknown capability `CAP_{name}`"))?;
    }
    Ok(set)
}

/// Drops all other capabilities from the bounding set, for this process and all its descendants.
/// This process must still be privileged, because dropping requires CAP_SETPCAP.
pub(crate) fn drop_bounding(capabilities: Option<&LinuxCapabilities>) -> Result<()> {
    let keep = set(capabilities.and_then(|capabilities| capabilities.bounding().as_ref()))?;
    // By number, because a kernel may have more capabilities than the library has names for. The
    // kernel's set has 64 bits.
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // This kernel has no more capabilities.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).context("drop capabilities from the bounding set"),
        }
    }
    Ok(())
}

/// Becomes the container's user, and keeps the capabilities for the moment. `is_root` means that
/// root of the host makes the container.
pub(crate) fn become_user(user: &User, keep_groups: bool, is_root: bool) -> Result<()> {
    if !keep_groups {
        let groups: Vec<Gid> =
            user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        match rustix::thread::set_thread_groups(&groups) {
            // If a user namespace forbids setgroups(2), this process cannot drop groups, but the
            // configuration asks for none either. An ordinary user's groups stay
            // (`user_namespaces(7)`). Root's groups would give the container extra rights.
            Err(Errno::PERM) if groups.is_empty() && (!is_root || has_no_groups()?) => {}
            result => result.context("set the additional groups")?,
        }
    }
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    rustix::thread::set_keep_capabilities(true).context("keep capabilities")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .with_context(|| format!("become group {}", user.gid()))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .with_context(|| format!("become user {}", user.uid()))
}

fn has_no_groups() -> Result<bool> {
    let groups = rustix::process::getgroups().context("ask for the additional groups")?;
    Ok(groups.is_empty())
}

/// Sets the capabilities that the program starts with. The `spare` ones are permitted too, but not
/// effective. The order is the kernel's (`capabilities(7)`): a capability must be permitted and
/// inheritable before it can be ambient.
pub(crate) fn set_capabilities(
    capabilities: Option<&LinuxCapabilities>,
    spare: CapabilitySet,
) -> Result<()> {
    let mut sets = sets(capabilities)?;
    sets.permitted |= spare;
    rustix::thread::set_capabilities(None, sets).context("set the capabilities")?;
    rustix::thread::clear_ambient_capability_set().context("clear the ambient capabilities")?;
    for capability in set(capabilities.and_then(|c| c.ambient().as_ref()))?.iter() {
        match rustix::thread::configure_capability_in_ambient_set(capability, true) {
            // The capability is not both permitted and inheritable. podman's `exec --user` writes
            // such sets, and runc and crun ignore the ambient capability.
            Err(Errno::PERM) => {}
            set => set.with_context(|| format!("set ambient capability {capability:?}"))?,
        }
    }
    Ok(())
}

/// Runs a step that requires capabilities which [`set_capabilities`] has spared, and drops them.
/// The drop is one system call. The container's filter must allow this call if it was loaded in
/// between.
pub(crate) fn with_spare<T>(
    capabilities: Option<&LinuxCapabilities>,
    spare: CapabilitySet,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let given = sets(capabilities)?;
    let mut raised = given;
    raised.permitted |= spare;
    raised.effective |= spare;
    rustix::thread::set_capabilities(None, raised).context("set the capabilities")?;
    let done = act()?;
    if raised.permitted != given.permitted || raised.effective != given.effective {
        rustix::thread::set_capabilities(None, given).context(
            "give capabilities up: without `noNewPrivileges`, a seccomp filter has to allow `capset`",
        )?;
    }
    Ok(done)
}

fn sets(capabilities: Option<&LinuxCapabilities>) -> Result<CapabilitySets> {
    let part = |part: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        set(capabilities.and_then(|c| part(c).as_ref()))
    };
    Ok(CapabilitySets {
        effective: part(LinuxCapabilities::effective)?,
        permitted: part(LinuxCapabilities::permitted)?,
        inheritable: part(LinuxCapabilities::inheritable)?,
    })
}

/// Replaces the host's `/dev/null` by the container's own, as runc does. The host's file is on a
/// mount of the host, which a program could look at, and which no checkpoint could contain. Runs in
/// the container's root.
pub(crate) fn own_null(lacks_root: bool) -> Result<()> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let theirs = streams.map(detached::is_null);
    if theirs == [false; 3] {
        return Ok(());
    }
    let null = match open_null().map_or_else(private_null, Ok) {
        Ok(null) => null,
        // In a user namespace, no process can make a device. If the namespace lacks the host's
        // root, none of its users may change the host's `/dev/null`.
        Err(_) if lacks_root => return Ok(()),
        Err(error) => return Err(error),
    };
    let [stdin, stdout, stderr] = theirs;
    let put = || {
        stdin.then(|| rustix::stdio::dup2_stdin(&null)).transpose()?;
        stdout.then(|| rustix::stdio::dup2_stdout(&null)).transpose()?;
        stderr.then(|| rustix::stdio::dup2_stderr(&null)).transpose()
    };
    put().map(drop).context("take the container's `/dev/null`")
}

/// Makes a null device that no other process has, on a detached mount. It is for a container that
/// has lost its own.
fn private_null() -> Result<OwnedFd> {
    let make = || -> Result<OwnedFd> {
        let options = mounts::Options::parse(&["size=4k", "nr_inodes=2"].map(str::to_owned))?;
        let folder = detached::make("tmpfs", Some(Path::new("tmpfs")), &options)?;
        let mode = Mode::from_raw_mode(0o666);
        let number = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(&folder, "null", FileType::CharacterDevice, mode, number)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&folder, "null", flags, Mode::empty())?)
    };
    make().context("the container has no `/dev/null`: make one")
}

/// Opens the `/dev/null` that this process sees. Returns None if the file is missing or is not the
/// null device.
pub(crate) fn open_null() -> Option<OwnedFd> {
    // Without NONBLOCK, a fifo would block here.
    let flags =
        OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).ok()?;
    if !detached::is_null(null.as_fd()) {
        return None;
    }
    rustix::fs::fcntl_setfl(&null, OFlags::RDWR).ok()?;
    Some(null)
}

/// Gives the standard streams to the container's user, as crun does. Otherwise a program could not
/// open `/dev/stdout` again. The group changes too, for a file that only its group may write to. A
/// terminal keeps its group, `tty`.
///
/// An owner can change the mode, and so write to a file that was opened for reading. So the user
/// gets a regular file only if it was opened for writing. The user never gets a directory or a
/// device of the host, such as its console or `/dev/tty`.
pub(crate) fn own_stdio(user: &User) -> Result<()> {
    let streams: [BorrowedFd<'_>; 3] =
        [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    for stream in streams {
        let Ok(there) = rustix::fs::fstat(stream) else { continue };
        let group = match FileType::from_raw_mode(there.st_mode) {
            FileType::CharacterDevice if terminal::is_in_devpts(stream) => None,
            FileType::RegularFile if can_write(stream) => Some(gid),
            FileType::Fifo | FileType::Socket => Some(gid),
            _ => continue,
        };
        if there.st_uid == user.uid() && group.is_none_or(|_| there.st_gid == user.gid()) {
            continue;
        }
        match rustix::fs::fchown(stream.as_fd(), Some(uid), group) {
            // This process may not change the owner: the file belongs to another user, or is on a
            // read-only or foreign filesystem.
            Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS | Errno::ACCESS) => {}
            Err(error) => {
                return Err(error).context("give standard streams to the container's user");
            }
        }
    }
    Ok(())
}

fn can_write(file: BorrowedFd<'_>) -> bool {
    let mode = rustix::fs::fcntl_getfl(file).map(|flags| flags & OFlags::RWMODE);
    mode.is_ok_and(|mode| mode == OFlags::WRONLY || mode == OFlags::RDWR)
}

#[cfg(test)]
pub(crate) fn understand(process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        let _ = scheduling(scheduler);
    }
    for list in
        process.exec_cpu_affinity().iter().flat_map(|a| [a.initial(), a.cpu_affinity_final()])
    {
        let _ = list.as_deref().map(processors);
    }
    set(process.capabilities().as_ref().and_then(|sets| sets.bounding().as_ref())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::processors;

    #[test]
    fn processors_are_numbers_and_ranges() {
        let set = processors("0-2,5").expect("a list");
        let listed: Vec<usize> = (0..8).filter(|processor| set.is_set(*processor)).collect();
        assert_eq!(listed, [0, 1, 2, 5]);
        for wrong in ["", "x", "1-", "99999", "1,,2"] {
            assert!(processors(wrong).is_err(), "{wrong}");
        }
    }
}
