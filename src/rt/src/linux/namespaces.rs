//! Namespaces: which ones a container gets, which ones it joins, and the order of both
//! (`namespaces(7)`, `user_namespaces(7)`).
//!
//! This is our own code. libcontainer forks twice for every container and unshares each namespace
//! by itself, although one `clone3(2)` can make all of them. We make a second process only if the
//! kernel requires one, see [`spawn`].
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions};
use rustix::thread::{Gid, LinkNameSpaceType, Uid};

use crate::linux::helper::{self, Helper};
use crate::linux::netlink::Netlink;
use crate::linux::newuidmap;
use crate::sync::Message;
use crate::{ids, procfs, syscall};

pub(crate) const CLONE_NEWTIME: i32 = 0x80; // <linux/sched.h>

#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of the namespaces to make.
    new: i32,
    joined: Vec<Joined>,
}

#[derive(Debug)]
struct Joined {
    flag: i32,
    name: &'static str,
    kind: LinkNameSpaceType,
    namespace: OwnedFd,
    path: PathBuf,
}

impl Joined {
    fn enter(&self) -> rustix::io::Result<()> {
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(self.kind))
    }

    fn intent(&self) -> String {
        format!("join the {} namespace `{}`", self.name, self.path.display())
    }
}

impl Namespaces {
    /// Opens the namespaces that the container joins. A path to one of the runtime process's own
    /// namespaces counts as no entry: the container then stays in the runtime process's namespace,
    /// and may not change it. Runs in the runtime process.
    pub(crate) fn new(linux: &Linux) -> Result<Namespaces> {
        let mut namespaces = Namespaces::default();
        for namespace in linux.namespaces().iter().flatten() {
            let namespace_kind = namespace.typ();
            let (flag, name, kind) = describe(namespace_kind);
            let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty())
            else {
                namespaces.new |= flag;
                continue;
            };
            let show = || format!("open {name} namespace `{}`", path.display());
            let namespace = open(path).with_context(show)?;
            if is_own(&namespace, namespace_file(namespace_kind)).with_context(show)? {
                // Settings in this namespace would be settings of the host.
                ensure!(flag != libc::CLONE_NEWNS, "{}: it is the runtime process's own", show());
                continue;
            }
            let path = path.clone();
            namespaces.joined.push(Joined { flag, name, kind, namespace, path });
        }
        Ok(namespaces)
    }

    /// The namespaces of a running process that this process is not in already. Runs in the runtime
    /// process.
    pub(crate) fn of(pid: i32) -> Result<Namespaces> {
        const ALL: [LinuxNamespaceType; 8] = [
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Cgroup,
            LinuxNamespaceType::Uts,
            LinuxNamespaceType::Ipc,
            LinuxNamespaceType::User,
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Network,
            LinuxNamespaceType::Time,
        ];
        let mut namespaces = Namespaces::default();
        for kind in ALL {
            let file = namespace_file(kind);
            let path = format!("/proc/{pid}/ns/{file}");
            let show = || format!("open namespace `{path}`");
            let namespace = match open_of_process(&path) {
                Ok(namespace) => namespace,
                // Either this kernel has no namespaces of this kind, or the process is ending, so
                // that its file is missing too. Our own file tells them apart.
                Err(Errno::NOENT) if !Path::new(&format!("/proc/self/ns/{file}")).exists() => {
                    continue;
                }
                Err(error) => return Err(error).with_context(show),
            };
            // A process cannot join its own user namespace, and joining its own mount namespace
            // changes its root.
            if !is_own(&namespace, file).with_context(show)? {
                let (flag, name, kind) = describe(kind);
                let path = path.into();
                namespaces.joined.push(Joined { flag, name, kind, namespace, path });
            }
        }
        Ok(namespaces)
    }

    pub(crate) fn makes(&self, flag: i32) -> bool {
        self.new & flag != 0
    }

    /// Whether the container has its own mount namespace, so that mounts in it do not change the
    /// host.
    pub(crate) fn has_mount(&self) -> bool {
        self.has(libc::CLONE_NEWNS)
    }

    /// Whether the container has a namespace of this kind that is not the runtime process's.
    pub(crate) fn has(&self, flag: i32) -> bool {
        self.makes(flag) || self.joins(flag)
    }

    pub(crate) fn joins(&self, flag: i32) -> bool {
        self.joined(flag).is_some()
    }

    /// The namespace of this kind that the container joins.
    pub(crate) fn joined(&self, flag: i32) -> Option<BorrowedFd<'_>> {
        let joined = self.joined.iter().find(|joined| joined.flag == flag);
        joined.map(|joined| joined.namespace.as_fd())
    }

    /// The mount namespace of a process that was just made with these namespaces, by the device and
    /// the inode of its file. None if it is the runtime process's, or if the process has ended
    /// already.
    pub(crate) fn mount_namespace(&self, pid: Pid) -> Option<(u64, u64)> {
        let there = match self.joined(libc::CLONE_NEWNS) {
            Some(joined) => rustix::fs::fstat(joined),
            None if self.has_mount() => rustix::fs::stat(format!("/proc/{pid}/ns/mnt")),
            None => return None,
        };
        there.ok().map(|there| (there.st_dev, there.st_ino))
    }

    /// As [`Namespaces::joined`], by the kind's type in the configuration.
    pub(crate) fn joined_kind(&self, kind: LinuxNamespaceType) -> Option<BorrowedFd<'_>> {
        self.joined(describe(kind).0)
    }

    /// A process cannot change its own pid or time namespace, only that of its children. After a
    /// process has entered another user namespace, it may not join namespaces that the first one
    /// owns. So these kinds require a helper that joins for init.
    fn need_helper(&self) -> bool {
        let others = self.joins(libc::CLONE_NEWPID)
            || self.joins(libc::CLONE_NEWUSER)
            || self.joins(CLONE_NEWTIME);
        others
            || self.makes(CLONE_NEWTIME)
            || self.makes(libc::CLONE_NEWUSER) && !self.joined.is_empty()
    }

    /// The flags for `clone3`. Init makes the cgroup namespace later, when it is in its cgroup.
    fn clone_flags(&self) -> i32 {
        self.new & !(libc::CLONE_NEWCGROUP | CLONE_NEWTIME)
    }

    /// Joins the namespaces, unless a helper has joined them for init. Runs in init.
    pub(crate) fn join_rest(&self) -> Result<()> {
        if self.need_helper() { Ok(()) } else { self.join() }
    }

    fn join(&self) -> Result<()> {
        let (user, others): (Vec<_>, Vec<_>) =
            self.joined.iter().partition(|j| j.flag == libc::CLONE_NEWUSER);
        // A privileged process may join the other namespaces only before it enters the user
        // namespace. Root of a user namespace may join some of them only afterwards, so we try
        // those again.
        let mut later = Vec::new();
        let dumpable = dumpable()?;
        for joined in others {
            match joined.enter() {
                Err(Errno::PERM) if !user.is_empty() => later.push(joined),
                result => result.with_context(|| joined.intent())?,
            }
        }
        for joined in user.iter().copied().chain(later) {
            joined.enter().with_context(|| joined.intent())?;
        }
        if !user.is_empty() {
            become_root(dumpable)?;
        }
        self.keep_neighbours_out()
    }

    /// Until the exec, this process has the caller's rights and files. A neighbour in the same pid
    /// namespace that is privileged in this process's user namespace could take it over. So this
    /// process becomes not dumpable. For a container of root, and for a process of `exec`, that
    /// holds from the beginning.
    pub(crate) fn keep_neighbours_out(&self) -> Result<()> {
        if self.joins(libc::CLONE_NEWPID) {
            keep_others_out(DumpableBehavior::NotDumpable)?;
        }
        Ok(())
    }

    /// Makes the cgroup namespace, once init is in its cgroup. Runs in init.
    pub(crate) fn unshare_cgroup(&self) -> Result<()> {
        if self.makes(libc::CLONE_NEWCGROUP) {
            syscall::unshare(libc::CLONE_NEWCGROUP).context("make the cgroup namespace")?;
        }
        Ok(())
    }
}

/// How long an ordinary user's `exec` waits for the program of a container that was started a
/// moment ago.
const STARTING: Duration = Duration::from_secs(2);

/// Opens a namespace of a process. Before its exec, only root can open the namespaces of init.
fn open_of_process(path: &str) -> rustix::io::Result<OwnedFd> {
    let end = Instant::now() + STARTING;
    loop {
        match open(Path::new(path)) {
            Err(Errno::ACCESS) if !ids::is_host_root() && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => return opened,
        }
    }
}

fn describe(kind: LinuxNamespaceType) -> (i32, &'static str, LinkNameSpaceType) {
    match kind {
        LinuxNamespaceType::Mount => (libc::CLONE_NEWNS, "mount", LinkNameSpaceType::Mount),
        LinuxNamespaceType::Cgroup => {
            (libc::CLONE_NEWCGROUP, "cgroup", LinkNameSpaceType::ControlGroup)
        }
        LinuxNamespaceType::Uts => {
            (libc::CLONE_NEWUTS, "uts", LinkNameSpaceType::HostNameAndNISDomainName)
        }
        LinuxNamespaceType::Ipc => {
            (libc::CLONE_NEWIPC, "ipc", LinkNameSpaceType::InterProcessCommunication)
        }
        LinuxNamespaceType::User => (libc::CLONE_NEWUSER, "user", LinkNameSpaceType::User),
        LinuxNamespaceType::Pid => (libc::CLONE_NEWPID, "pid", LinkNameSpaceType::ProcessID),
        LinuxNamespaceType::Network => (libc::CLONE_NEWNET, "network", LinkNameSpaceType::Network),
        LinuxNamespaceType::Time => (CLONE_NEWTIME, "time", LinkNameSpaceType::Time),
    }
}

/// The namespace's file name in `/proc/PID/ns` (`namespaces(7)`).
pub(crate) fn namespace_file(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

pub(crate) fn name_of(kind: LinuxNamespaceType) -> &'static str {
    describe(kind).1
}

/// Whether a namespace is the one that this process is in.
fn is_own(namespace: &OwnedFd, file: &str) -> rustix::io::Result<bool> {
    let there = rustix::fs::fstat(namespace)?;
    let own = rustix::fs::stat(format!("/proc/self/ns/{file}"))?;
    Ok((there.st_dev, there.st_ino) == (own.st_dev, own.st_ino))
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    // Joining notices a file that is not a namespace. Without NONBLOCK, a fifo would block here.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The two processes in which `spawn` returns.
#[derive(Debug)]
pub(crate) enum Side {
    /// The runtime process, with init's process id.
    Runtime(Pid),
    Init,
}

/// The first step of a new process, before it has anything of the container. It has the rights and
/// the key quota of the caller.
pub(crate) type First<'a> = &'a dyn Fn() -> Result<()>;

/// The way by which the processes that [`spawn`] makes report to the runtime process.
pub(crate) trait Birth {
    /// In a helper, or in init: reports init's process id, or why there is no init.
    fn tell(&self, born: Result<Pid>);
    /// In the runtime process: waits for the report of this helper.
    fn hear(&self, helper: Pid) -> Result<Pid>;
}

/// Makes init in its new namespaces, except the cgroup namespace. Returns twice: in the runtime
/// process, and, if nothing fails, in init.
///
/// If a helper is required, the runtime process clones it first. The helper joins, and clones init
/// with `CLONE_PARENT`. So init is always a child of the runtime process. When the runtime process
/// ends, init's parent is the runtime process's own subreaper.
pub(crate) fn spawn(
    namespaces: &Namespaces,
    linux: &Linux,
    cgroup: Option<BorrowedFd<'_>>,
    birth: &dyn Birth,
    first: First<'_>,
) -> Result<Side> {
    if namespaces.need_helper() {
        return by_helper(clone(0, cgroup)?, birth, || {
            first()?;
            namespaces.join()?;
            if namespaces.makes(CLONE_NEWTIME) {
                make_time_namespace(linux)?;
            }
            // The new process is in its cgroup already, because the helper was born in it.
            clone(namespaces.clone_flags() | libc::CLONE_PARENT, None)
        });
    }
    if let Some(pid) = clone(namespaces.clone_flags(), cgroup)? {
        return Ok(Side::Runtime(pid));
    }
    match first() {
        Ok(()) => Ok(Side::Init),
        Err(error) => {
            birth.tell(Err(error));
            syscall::exit_now(1)
        }
    }
}

/// Makes a process inside an existing container. Its neighbours may be hostile, and may have the
/// right to look into it (`CAP_SYS_PTRACE`). So the process is born with nothing of the host: in
/// all namespaces but its own new ones, with the container's root as its root, and with no
/// descriptor but `kept`. A helper, which the container cannot see, joins and closes
/// before. Returns twice, as [`spawn`]. Returns None if the cgroup accepts no process.
///
/// `root` is for a container without a mount namespace of its own. Descriptors from `first_own` on
/// are `rt`'s own.
pub(crate) fn spawn_inside(
    namespaces: &Namespaces,
    root: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
    birth: &dyn Birth,
    (first_own, kept): (u32, &[BorrowedFd<'_>]),
    first: First<'_>,
) -> Result<Option<Side>> {
    let helper = match syscall::clone3(0, cgroup) {
        Err(Errno::BUSY) => return Ok(None),
        helper => helper.context(CLONE)?,
    };
    let side = by_helper(helper, birth, || {
        first()?;
        namespaces.join()?;
        if let Some(root) = root {
            rustix::process::fchdir(root).context("enter the container's root")?;
            rustix::process::chroot(".").context("make it the root")?;
        }
        syscall::close_all_but(first_own, kept).context("close the host's descriptors")?;
        clone(libc::CLONE_PARENT, None)
    });
    side.map(Some)
}

/// The step that an error names if the clone fails.
pub(crate) const CLONE: &str = "make the container's first process";

fn clone(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Pid>> {
    syscall::clone3(flags, cgroup).context(CLONE)
}

/// Lets a helper, which was just cloned, make init, and waits for the helper's end. The helper ends
/// in this function.
fn by_helper(
    helper: Option<Pid>,
    birth: &dyn Birth,
    make: impl FnOnce() -> Result<Option<Pid>>,
) -> Result<Side> {
    if let Some(helper) = helper {
        let born = birth.hear(helper);
        // The helper has nothing left to do. In a frozen cgroup, it would not end by itself. If the
        // caller has set SIGCHLD to be ignored, the helper may be gone already.
        if let Ok(pidfd) = rustix::process::pidfd_open(helper, PidfdFlags::empty()) {
            crate::linux::cgroups::end(helper, pidfd.as_fd());
        }
        let pid = born?;
        // The new process can report too. A process that looks into the new process could have made
        // this report, with any process id.
        ensure!(
            pid != helper && is_child(pid)?,
            "another process claims that the new process is {pid}"
        );
        return Ok(Side::Runtime(pid));
    }
    match make().transpose() {
        None => return Ok(Side::Init),
        Some(born) => birth.tell(born),
    }
    syscall::exit_now(0)
}

/// Whether a process has ended, even if no process has waited for it yet.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)));
    Ok(ended.context("ask whether a process has ended")? > 0)
}

/// Whether a process is a child of this process, and has not been waited for.
fn is_child(pid: Pid) -> Result<bool> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match rustix::process::waitid(WaitId::Pid(pid), look) {
        Ok(_) => Ok(true),
        Err(Errno::CHILD) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at process {pid}")),
    }
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    Code(i32),
    Signal(i32),
}

/// How long a process that has closed all its files may take to end.
const ENDING: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How a child of this process has ended, or is about to end. While another process traces the
/// child, the kernel hides the end from its parent. Then `/proc` tells it. Returns None if the
/// child does not end.
pub(crate) fn ending(pid: Pid) -> Result<Option<Ending>> {
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&ENDING)))
            .with_context(|| format!("wait for process {pid}"))?;
    }
    let waited =
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::NOHANG));
    let waited = waited.with_context(|| format!("wait for process {pid}"))?;
    let Some((_, status)) = waited else {
        let stat = procfs::stat(pid)?.filter(|stat| stat.dead);
        return Ok(stat.map(|stat| match stat.status & 0x7f {
            0 => Ending::Code(stat.status >> 8 & 0xff),
            signal => Ending::Signal(signal),
        }));
    };
    let code = status.exit_status().map(Ending::Code);
    Ok(code.or_else(|| status.terminating_signal().map(Ending::Signal)))
}

/// Waits for a process that no other process can hold up.
pub(crate) fn wait(pid: Pid) -> Result<rustix::process::WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).with_context(|| format!("wait for process {pid}")),
        }
    }
}

/// Makes the time namespace. Its offsets can only be written before a process is in it: init, which
/// is cloned next, is the first one (`time_namespaces(7)`). Runs in the helper.
fn make_time_namespace(linux: &Linux) -> Result<()> {
    syscall::unshare(CLONE_NEWTIME).context("make the time namespace")?;
    let mut lines = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            lines,
            "{clock} {} {}",
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0)
        );
    }
    if !lines.is_empty() {
        fs::write("/proc/self/timens_offsets", lines)
            .context("write `/proc/self/timens_offsets`")?;
    }
    Ok(())
}

/// Writes the id mappings of init's new user namespace. Runs in the runtime process.
pub(crate) fn write_id_mappings(init: Pid, linux: &Linux) -> Result<()> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    // [`crate::bundle`] completes a configuration without any mappings.
    for (name, mappings) in [("uidMappings", uids), ("gidMappings", gids)] {
        ensure!(!mappings.is_empty(), "`linux.{name}` is missing for the new user namespace");
    }
    write_maps(init, uids, gids)
}

/// The id outside of a user namespace with these mappings.
pub(crate) fn on_the_host(id: u32, mappings: &[LinuxIdMapping]) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let above = id.checked_sub(mapping.container_id())?;
        (above < mapping.size()).then(|| mapping.host_id().checked_add(above))?
    })
}

/// The user and group mappings of an existing user namespace. A helper joins the namespace for a
/// moment and shows the mappings. The helper has the runtime process's memory, so it is not
/// dumpable, and no process in the namespace can reach it. Runs in the runtime process.
pub(crate) fn mappings_of(
    user: BorrowedFd<'_>,
) -> Result<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)> {
    let Helper { pid, socket } = helper::start(0, "make a process", |socket| {
        let kind = Some(LinkNameSpaceType::User);
        rustix::thread::move_into_link_name_space(user, kind).context("join the user namespace")?;
        // Entering another user namespace makes the process dumpable again.
        keep_others_out(DumpableBehavior::NotDumpable)?;
        socket.send(&Message::Ready)?;
        // Waits until the runtime process has read the mappings or has ended.
        socket.receive().map(drop)
    })?;
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        let table = fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
        ids::parse_map(&table).with_context(|| format!("read `{path}`"))
    };
    let is_ready = || helper::ready(socket.receive()?, "the process in the user namespace");
    let both = is_ready().and_then(|()| Ok((read("uid_map")?, read("gid_map")?)));
    drop(socket);
    wait(pid)?;
    both
}

/// The ids of the container's root, seen from outside.
pub(crate) fn root_on_the_host(linux: &Linux) -> (Uid, Gid) {
    let root = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let mut mappings = mappings.iter().flatten();
        mappings.find(|mapping| mapping.container_id() == 0).map_or(0, LinuxIdMapping::host_id)
    };
    (Uid::from_raw(root(linux.uid_mappings())), Gid::from_raw(root(linux.gid_mappings())))
}

/// Whether the mappings of a container's user namespace are known, and do not contain the host's
/// root.
pub(crate) fn lacks_root(linux: Option<&Linux>) -> bool {
    let mappings = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
    !mappings.is_empty() && mappings.iter().all(|mapping| mapping.host_id() != 0)
}

/// Makes a user namespace with these mappings, in which no process remains. Runs in the runtime
/// process.
pub(crate) fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let Helper { pid, socket } =
        helper::start(libc::CLONE_NEWUSER, "make a process in it", |socket| {
            // Waits until the runtime process has opened the namespace or has ended.
            socket.receive().map(drop)
        })?;
    let namespace = write_maps(pid, uids, gids).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        open(Path::new(&path)).with_context(|| format!("open `{path}`"))
    });
    drop(socket);
    wait(pid)?;
    namespace
}

fn write_maps(pid: Pid, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    let write = |file: &str, field: &str, mappings: &[LinuxIdMapping]| {
        let path = format!("/proc/{pid}/{file}");
        let lines: String = mappings
            .iter()
            .map(|mapping| {
                format!("{} {} {}\n", mapping.container_id(), mapping.host_id(), mapping.size())
            })
            .collect();
        // One write(2), because the kernel accepts a map only as a whole.
        fs::write(&path, lines).with_context(|| format!("write `{field}` to `{path}`"))
    };
    let (write_uids, write_gids) =
        (|| write("uid_map", "uidMappings", uids), || write("gid_map", "gidMappings", gids));
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        write_gids()?;
        return write_uids();
    }
    if newuidmap::is_own_only(gids, gid.as_raw()) {
        // Without privileges, a process may write a group map only if it can no longer drop groups.
        let path = format!("/proc/{pid}/setgroups");
        fs::write(&path, "deny").with_context(|| format!("write `{path}`"))?;
        write_gids()?;
    } else {
        newuidmap::map("newgidmap", pid, gids)?;
    }
    if newuidmap::is_own_only(uids, uid.as_raw()) {
        return write_uids();
    }
    newuidmap::map("newuidmap", pid, uids)
}

/// Becomes root of the user namespace that this process has just entered. Until then, this process
/// is nobody in it, and owns nothing. If the process was not dumpable before, this function
/// restores that: entering another user namespace and changing the user set it to
/// `fs.suid_dumpable` (`PR_SET_DUMPABLE(2const)`).
pub(crate) fn become_root(before: DumpableBehavior) -> Result<()> {
    keep_others_out(before)?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .context("become root's group")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context("become root")?;
    keep_others_out(before)
}

pub(crate) fn dumpable() -> Result<DumpableBehavior> {
    rustix::process::dumpable_behavior().context("ask who may reach this process")
}

fn keep_others_out(before: DumpableBehavior) -> Result<()> {
    if before == DumpableBehavior::NotDumpable {
        rustix::process::set_dumpable_behavior(before).context("keep others out")?;
    }
    Ok(())
}

/// Brings up loopback in a new network namespace, because every program expects it. Runs in init.
///
/// A service may restrict sockets to a few address families (`RestrictAddressFamilies=`,
/// `systemd.exec(5)`): to Netlink, or to those of the Internet. Either works here.
pub(crate) fn bring_loopback_up() -> Result<()> {
    // The loopback device has this index in each namespace: `LOOPBACK_IFINDEX`,
    // `<net/net_namespace.h>`.
    const LOOPBACK: u32 = 1;
    bring_loopback_up_by_ioctl().or_else(|first| {
        let by_netlink = Netlink::open().and_then(|netlink| netlink.bring_up(LOOPBACK));
        by_netlink.map_err(|second| first.context(format!("by Netlink: {second:#}; by ioctl")))
    })
}

fn bring_loopback_up_by_ioctl() -> Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("open a socket")?;
    syscall::loopback_up(socket.as_fd()).context("bring up the loopback interface")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_child_is_taken_for_the_new_process() {
        let child = syscall::clone3(0, None).expect("a child");
        let Some(child) = child else { syscall::exit_now(7) };
        assert!(is_child(child).expect("asked"));
        assert_eq!(ending(child).expect("asked"), Some(Ending::Code(7)));
        assert!(!is_child(child).expect("asked"));
        assert!(!is_child(Pid::INIT).expect("asked"));
    }
}
