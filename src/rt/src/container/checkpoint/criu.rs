//! CRIU, the program that writes processes to files and makes them again from there (`criu(8)`),
//! and how it is talked to: `criu swrk N` serves one request on the socket that is its descriptor N
//! (`https://criu.org/RPC`).
//!
//! The messages are rust-criu's; the conversation is not: its client starts CRIU in the caller's
//! namespaces and cgroup. It has no pre-dump, and only one callback for all notifications.
//! libcontainer's checkpoint is made with it, and it has no restore.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use protobuf::Message as _;
use rust_criu::rust_criu_protobuf::rpc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};

use crate::container::checkpoint::guard::{self, Guard};
use crate::container::checkpoint::yards::Yards;
use crate::draft::Draft;
use crate::interrupt::{self, Watch, is_ready};
use crate::linux::cgroups::Cgroup;
use crate::linux::namespaces;
use crate::procfs;
use crate::sync::{self, Message, Socket};
use crate::{scm_rights, syscall, trust};

pub(crate) use rpc::Criu_cg_mode as CgroupsMode;
pub(crate) use rpc::Criu_network_lock_method as NetworkLock;
pub(in crate::container) use rpc::{
    Criu_opts, Criu_page_server_info, Criu_req_type as Kind, Ext_mount_map, Inherit_fd,
    Join_namespace,
};

/// What a checkpoint and a restore are both told.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// The directory of the checkpoint.
    pub(crate) images: &'a Path,
    /// Where CRIU's log goes, if that is another directory.
    pub(crate) work: Option<&'a Path>,
    /// Who root of the container is on the host: podman gives that user the directory of the log.
    pub(crate) root: u32,
    pub(crate) tcp_established: bool,
    pub(crate) ext_unix_sk: bool,
    pub(crate) shell_job: bool,
    pub(crate) file_locks: bool,
    pub(crate) auto_dedup: bool,
    pub(crate) lazy_pages: bool,
    /// Leave out what is in the network namespace.
    pub(crate) empty_network: bool,
    pub(crate) cgroups: Option<CgroupsMode>,
    pub(crate) network_lock: Option<NetworkLock>,
}

/// Where a program of the host's administrator is, when the caller's `PATH` has it not.
const PROGRAMS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// CRIU's own configuration: the first of these that is there is read too. The others' are what an
/// operator may have already.
const CONFIGURATIONS: [&str; 3] =
    ["/etc/criu/rt.conf", "/etc/criu/crun.conf", "/etc/criu/runc.conf"];

/// Names another one of the administrator's. What it says is done as root (`action-script`), and
/// annotations are often the users': with a file that one of them has made, anywhere else, each
/// could have the host.
const CONFIGURATION: &str = "org.criu.config";
const CONFIGURATION_FOLDER: &str = "/etc/criu";

/// As `-v4`: what the developers of CRIU ask for.
const LOG_LEVEL: i32 = 4;

impl Options<'_> {
    /// The file that CRIU writes its log to.
    fn log(&self, name: &str) -> PathBuf {
        self.work.unwrap_or(self.images).join(name)
    }

    /// Opens the directories of the checkpoint and of the log, which nobody else can write to: CRIU
    /// follows what links are there, and does as root what the images say. Makes that of the log,
    /// and that of the checkpoint unless it is open already, for root alone: memory holds secrets.
    pub(in crate::container) fn make_directories(
        &self,
        images: Option<OwnedFd>,
    ) -> Result<Directories> {
        let images = images.map_or_else(|| trust::make_own_directory(self.images, None), Ok);
        let images = images.with_context(|| show(self.images))?;
        let log = match self.work {
            Some(work) => {
                trust::make_own_directory(work, Some(self.root)).with_context(|| show(work))?
            }
            None => images.try_clone().context("duplicate a descriptor")?,
        };
        let directories = Directories { images, log };
        // Before anything is asked of CRIU.
        directories.refuse_others_parents(self.images)?;
        Ok(directories)
    }

    /// The same again, when they are there.
    fn open(&self) -> Result<Directories> {
        let images = self.open_images().with_context(|| show(self.images))?;
        let log = match self.work {
            Some(work) => {
                trust::own_directory(work, Some(self.root)).with_context(|| show(work))?
            }
            None => images.try_clone().context("duplicate a descriptor")?,
        };
        Ok(Directories { images, log })
    }

    pub(in crate::container) fn open_images(&self) -> trust::Result<OwnedFd> {
        trust::own_directory(self.images, None)
    }

    fn exchanged(&self) -> String {
        let work = self.work.map(|work| format!(" or `{}`", work.display())).unwrap_or_default();
        format!("`{}`{work} was replaced by another directory meanwhile", self.images.display())
    }

    /// The part of a request that these are.
    pub(in crate::container) fn request(
        &self,
        log: &str,
        annotation: impl Fn(&str) -> Option<String>,
    ) -> Result<Criu_opts> {
        let configuration = match annotation(CONFIGURATION) {
            Some(path) => {
                let show = || format!("the annotation `{CONFIGURATION}`: open `{path}`");
                let file = Path::new(&path).canonicalize().with_context(show)?;
                ensure!(
                    file.starts_with(CONFIGURATION_FOLDER),
                    "the annotation `{CONFIGURATION}`: `{path}` is not in `{CONFIGURATION_FOLDER}`"
                );
                Some(file.to_string_lossy().into_owned())
            }
            None => {
                let there = CONFIGURATIONS.into_iter().find(|path| Path::new(path).exists());
                there.map(str::to_owned)
            }
        };
        // CRIU's own choice, iptables, needs a program; its other way does not.
        let lock = self.network_lock.or_else(|| {
            let other = find("iptables-restore").is_none() && locks_by_nftables();
            other.then_some(NetworkLock::NFTABLES)
        });
        Ok(Criu_opts {
            log_level: Some(LOG_LEVEL),
            log_file: Some(log.to_owned()),
            notify_scripts: Some(true),
            orphan_pts_master: Some(true),
            tcp_established: Some(self.tcp_established),
            ext_unix_sk: Some(self.ext_unix_sk),
            shell_job: Some(self.shell_job),
            file_locks: Some(self.file_locks),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            empty_ns: self.empty_network.then_some(libc::CLONE_NEWNET.unsigned_abs()),
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(self.cgroups.unwrap_or(CgroupsMode::SOFT).into()),
            network_lock: lock.map(Into::into),
            config_file: configuration,
            ..Criu_opts::default()
        })
    }
}

/// The directories of a checkpoint and of CRIU's log. Those above them may be anybody's, so `rt`
/// opens them once, and reaches every file in them by these descriptors.
#[derive(Debug)]
pub(in crate::container) struct Directories {
    images: OwnedFd,
    log: OwnedFd,
}

/// `rt`'s own files in a checkpoint are short; a log may be as long as CRIU likes.
const LONGEST: u64 = 64 << 20;

impl Directories {
    /// Removes the log of an earlier attempt, whose errors are not to be quoted.
    pub(in crate::container) fn remove_log(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.log, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("remove the old `{name}`")),
        }
    }

    /// Writes a file of `rt`'s beside CRIU's images; `path` is for errors.
    pub(in crate::container) fn write(&self, path: PathBuf, text: &[u8]) -> Result<()> {
        let directory = self.images.try_clone().context("duplicate a descriptor")?;
        let show = format!("write `{}`", path.display());
        Draft::write_in(directory, path, text, 0o600).context(show)?.publish()
    }

    /// Looks at the directory of the checkpoint before, by its path from this one, and at those
    /// before it. CRIU goes there by name, at a restore too, and reads memory there: nobody else
    /// may be able to change a directory on the way.
    pub(in crate::container) fn check_parent(&self, path: &Path, shown: &Path) -> Result<()> {
        let parent = trust::directory_from(self.images.as_fd(), shown, path)?;
        each_parent(parent, shown.join(path), &|_, _| Ok(()))
    }

    fn refuse_others_parents(&self, shown: &Path) -> Result<()> {
        let images = self.images.try_clone().context("duplicate a descriptor")?;
        each_parent(images, std::path::absolute(shown)?, &|_, _| Ok(()))
    }

    /// Looks at every file that a restore may read.
    pub(in crate::container) fn refuse_others_files(&self, shown: &Path) -> Result<()> {
        let images = self.images.try_clone().context("duplicate a descriptor")?;
        each_parent(images, std::path::absolute(shown)?, &refuse_others_files)
    }

    pub(in crate::container) fn images(&self) -> BorrowedFd<'_> {
        self.images.as_fd()
    }

    /// What CRIU has made beside its log before this restore.
    pub(in crate::container) fn yards(&self) -> Result<Yards> {
        Yards::look(&self.log)
    }
}

/// CRIU's link in the images to those of the checkpoint before (`CR_PARENT_LINK`).
const PARENT: &str = "parent";

/// More checkpoints than this, each the parent of the next, are a loop.
const MOST_PARENTS: u32 = 1000;

/// Looks at the directory of a checkpoint, and at those of the checkpoints before. Fails where
/// another user could change one on the way.
fn each_parent(
    mut images: OwnedFd,
    mut shown: PathBuf,
    look: &dyn Fn(&OwnedFd, &Path) -> Result<()>,
) -> Result<()> {
    for _ in 0..MOST_PARENTS {
        look(&images, &shown)?;
        match rustix::fs::statat(&images, PARENT, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            there => drop(there?),
        }
        let path = shown.join(PARENT);
        images = trust::directory_from(images.as_fd(), &shown, Path::new(PARENT))
            .with_context(|| format!("open `{}`, the checkpoint before", path.display()))?;
        shown = path;
    }
    bail!("`{}` leads to more than {MOST_PARENTS} checkpoints", shown.display())
}

fn show(path: &Path) -> String {
    format!("open `{}`", path.display())
}

/// Reads a regular file of that name that nobody else can change, by another name neither: CRIU
/// reads some of them again. A link is not followed, and a fifo not waited for.
pub(in crate::container) fn read_in(directory: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>> {
    Ok(read_if_there(directory, name)?.ok_or(Errno::NOENT)?)
}

/// None if it is not there.
pub(in crate::container) fn read_if_there(
    directory: BorrowedFd<'_>,
    name: &str,
) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        file => fs::File::from(file?),
    };
    let there = rustix::fs::fstat(&file)?;
    ensure!(
        FileType::from_raw_mode(there.st_mode) == FileType::RegularFile,
        "it is not a regular file"
    );
    refuse_others_file(&there)?;
    ensure!(there.st_nlink == 1, "it has another name");
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(Some(text))
}

/// Fails for a file that another user owns or can write to, who may have it open.
fn refuse_others_file(there: &Stat) -> Result<()> {
    ensure!(
        trust::is_ours(there),
        "it can be changed by others: it belongs to user {}, and has mode {:04o}",
        there.st_uid,
        there.st_mode & 0o7777
    );
    Ok(())
}

/// Fails for a file in a directory of images that another user can change, or that is none. CRIU
/// opens them by name, follows links, and writes to some.
fn refuse_others_files(images: &OwnedFd, shown: &Path) -> Result<()> {
    let show = |name: &OsStr| format!("`{}` of the checkpoint", shown.join(name).display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(images, ".", flags, Mode::empty())
        .and_then(rustix::fs::Dir::new)
        .with_context(|| format!("read `{}`", shown.display()))?;
    for entry in folder {
        let entry = entry.with_context(|| format!("read `{}`", shown.display()))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if matches!(name.as_bytes(), b"." | b"..") || name == PARENT {
            continue;
        }
        let there = match rustix::fs::statat(images, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            // Another restore from these images has removed it.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error).with_context(|| show(name)),
        };
        match FileType::from_raw_mode(there.st_mode) {
            // The socket is that of `criu lazy-pages`.
            FileType::RegularFile | FileType::Socket => {
                refuse_others_file(&there).with_context(|| show(name))?;
            }
            // CRIU reads nothing in it.
            FileType::Directory => {}
            _ => bail!("{}: it is not a regular file", show(name)),
        }
    }
    Ok(())
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// A CRIU that waits for its request.
#[derive(Debug)]
pub(in crate::container) struct Criu {
    kind: Kind,
    /// None when all is said.
    socket: Option<OwnedFd>,
    pid: Pid,
    pidfd: OwnedFd,
    /// It has been waited for.
    is_over: bool,
    /// Of what it restores.
    guard: Option<Guard>,
    /// It was told what to do.
    is_asked: bool,
    /// Of the images and of the log, opened in CRIU's mount namespace: CRIU mounts in them, and can
    /// only do so in what that holds. It reaches them by `/proc` and this process's numbers for
    /// them.
    directories: Vec<OwnedFd>,
}

/// How long CRIU may take to put things in order when nobody listens any more.
const PATIENCE: Duration = Duration::from_secs(10);

impl Drop for Criu {
    fn drop(&mut self) {
        // First of all: it would let go of what it has restored, and not all of that was checked.
        self.guard = None;
        if !self.is_asked {
            // It holds nothing yet, and would print that no request has come.
            self.kill();
        }
        // It ends by itself then, and lets go of the processes that it holds.
        self.socket = None;
        if self.is_over {
            return;
        }
        if !matches!(is_ready(self.pidfd.as_fd(), PollFlags::IN, PATIENCE), Ok(true)) {
            if !is_expendable(self.kind) {
                return;
            }
            self.kill();
        }
        let _ = namespaces::wait(self.pid);
    }
}

/// Whether it may be ended at any time: a half-made container is of no use to anybody. A dump has
/// stopped one that is.
fn is_expendable(kind: Kind) -> bool {
    kind == Kind::RESTORE
}

/// What CRIU says when all that it restores has its credentials, and is stopped still. It does not
/// heed the answer, so who refuses has to end the processes first: see [`Guard`].
pub(in crate::container) const BEFORE_IT_RUNS: &str = "pre-resume";

/// What CRIU says when the first process is there, and does nothing yet.
const FIRST_IS_THERE: &str = "setup-namespaces";

/// What is done in CRIU's process before it becomes CRIU.
pub(in crate::container) struct Prepare<'a> {
    pub(in crate::container) place: &'a dyn Fn(&Socket) -> Result<()>,
    /// With the directory of the images, as CRIU will see it.
    pub(in crate::container) images: &'a dyn Fn(BorrowedFd<'_>) -> Result<()>,
}

/// For a CRIU that writes a checkpoint.
pub(in crate::container) const NOTHING: Prepare<'_> =
    Prepare { place: &|_| Ok(()), images: &|_| Ok(()) };

/// What CRIU says when something is about to be done or has been done.
pub(in crate::container) struct Notice {
    pub(in crate::container) script: String,
    /// The container's first process, where it is told of.
    pub(in crate::container) pid: i32,
    pub(in crate::container) descriptor: Option<OwnedFd>,
}

impl Criu {
    /// Starts CRIU, which inherits the three standard streams and the descriptors in `keep`, by the
    /// same numbers. Between the start of the process and `serve`, it waits at the other end of the
    /// socket for what `prepare` expects.
    pub(in crate::container) fn start(
        kind: Kind,
        (options, checked): (&Options<'_>, &Directories),
        birthplace: Option<BorrowedFd<'_>>,
        keep: &[BorrowedFd<'_>],
        prepare: &Prepare<'_>,
        serve: impl FnOnce(Pid, &Socket) -> Result<()>,
    ) -> Result<Criu> {
        let program = program()?;
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("make a socket pair")?;
        let (caller, child) = sync::pair()?;
        let Some(pid) = syscall::clone3(0, birthplace).context("make a process for `criu`")? else {
            drop(caller);
            drop(socket);
            let error = become_criu(kind, options, &program, &theirs, keep, prepare, &child);
            let _ = child.send(&Message::Failed(format!("{error:#}")));
            syscall::exit_now(1)
        };
        drop(theirs);
        drop(child);
        // A child stays until it has been waited for.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("open a pidfd of `criu`")?;
        let mut criu = Criu {
            kind,
            socket: Some(socket),
            pid,
            pidfd,
            is_over: false,
            guard: None,
            is_asked: false,
            directories: Vec::new(),
        };
        if let Err(error) = serve(pid, &caller) {
            // At its end it stops waiting for what does not come.
            drop(caller);
            return Err(error);
        }
        loop {
            let (message, directories) = caller.receive_with()?;
            let message = match message.map(Message::unless_said) {
                Some(None) => continue,
                message => message.flatten(),
            };
            match message {
                Some(Message::Ready) => {
                    let [images, log] = &directories[..] else {
                        bail!("the process for `criu` sent {} directories", directories.len())
                    };
                    ensure!(
                        is_same(images, &checked.images)? && is_same(log, &checked.log)?,
                        options.exchanged()
                    );
                    criu.directories = directories;
                }
                // The exec closes its end.
                None => return Ok(criu),
                Some(Message::Failed(text)) => bail!(text),
                Some(message) => bail!("the process for `criu` sent {message:?}"),
            }
        }
    }

    pub(in crate::container) fn process(&self) -> Pid {
        self.pid
    }

    /// From now on, until all is checked, whatever becomes of `rt` or of CRIU ends what CRIU has
    /// restored into this cgroup.
    pub(in crate::container) fn guard(&mut self, cgroup: &Cgroup, yards: &Yards) -> Result<()> {
        self.guard = Some(Guard::start(self.pid, self.pidfd.as_fd(), cgroup, yards)?);
        Ok(())
    }

    /// What `/proc` says of it counts only while it is there.
    pub(in crate::container) fn refuse_ended(&self) -> Result<()> {
        let ended = is_ready(self.pidfd.as_fd(), PollFlags::IN, Duration::ZERO)?;
        if ended { Err(self.how_it_ended()) } else { Ok(()) }
    }

    /// Waits for its end, which may not be there yet when its socket is closed.
    fn how_it_ended(&self) -> anyhow::Error {
        let ended = is_ready(self.pidfd.as_fd(), PollFlags::IN, PATIENCE).unwrap_or(false);
        let stat = if ended { procfs::stat(self.pid).ok().flatten() } else { None };
        match stat.map_or(0, |stat| stat.status & 0x7f) {
            0 => anyhow!("`criu` ended without an answer"),
            signal => anyhow!("`criu` was ended by signal {signal}"),
        }
    }

    /// Has CRIU read the checkpoint by another way to it.
    pub(in crate::container) fn read_through(&mut self, images: OwnedFd) {
        if let Some(first) = self.directories.first_mut() {
            *first = images;
        }
    }

    /// Has CRIU do one thing, and waits until it is done. `on_notice` can forbid what it hears of.
    pub(in crate::container) fn call(
        mut self,
        mut options: Criu_opts,
        on_notice: &mut dyn FnMut(Notice) -> Result<()>,
    ) -> Result<()> {
        options.images_dir_fd = self.directories.first().map(AsRawFd::as_raw_fd);
        options.work_dir_fd = self.directories.get(1).map(AsRawFd::as_raw_fd);
        let mut request = rpc::Criu_req::new();
        request.set_type(self.kind);
        request.opts = Some(options).into();
        self.is_asked = true;
        self.send(&request)?;
        let mut refused = None;
        let answer = loop {
            let (answer, descriptor) = match self.receive() {
                Ok(received) => received,
                // It may end at once when something is forbidden.
                Err(error) => return Err(refused.unwrap_or(error)),
            };
            if answer.type_() != Kind::NOTIFY {
                break answer;
            }
            let notice = Notice {
                script: answer.notify.script().to_owned(),
                pid: answer.notify.pid(),
                descriptor,
            };
            tracing::debug!("criu: {}", notice.script);
            if notice.script == FIRST_IS_THERE && self.guard.is_some() {
                guard::spare(self.pid);
            }
            let is_last_chance = notice.script == BEFORE_IT_RUNS;
            let allowed = on_notice(notice);
            if is_last_chance {
                // Without its answer CRIU waits until the guard has ended all. If CRIU has ended
                // meanwhile, that is why what it has restored was not found.
                allowed.map_err(|error| self.refuse_ended().err().unwrap_or(error))?;
                self.guard.take().map_or(Ok(()), Guard::dismiss)?;
                let mut reply = rpc::Criu_req::new();
                reply.set_type(Kind::NOTIFY);
                reply.set_notify_success(true);
                self.send(&reply)?;
                continue;
            }
            let mut reply = rpc::Criu_req::new();
            reply.set_type(Kind::NOTIFY);
            reply.set_notify_success(allowed.is_ok());
            self.send(&reply)?;
            refused = refused.or(allowed.err());
        };
        if let Some(error) = refused {
            return Err(error);
        }
        if !answer.success() {
            return Err(anyhow!("`criu` failed"));
        }
        ensure!(self.guard.is_none(), "`criu` has not said when all was restored");
        // It waits for another request after one of these.
        if self.kind == Kind::PRE_DUMP {
            return Ok(());
        }
        self.socket = None;
        let status = namespaces::wait(self.pid)?;
        self.is_over = true;
        ensure!(status.exit_status() == Some(0), "`criu` failed after it had answered");
        Ok(())
    }

    fn kill(&self) {
        // Who has ended is waited for all the same.
        let _ = syscall::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    fn socket(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.socket.as_ref().context("the conversation with `criu` is over")?.as_fd())
    }

    fn send(&self, request: &rpc::Criu_req) -> Result<()> {
        let bytes = request.write_to_bytes().context("write a request to `criu`")?;
        match rustix::net::send(self.socket()?, &bytes, SendFlags::NOSIGNAL) {
            // It has ended: the next answer is the end of the stream.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error).context("send a request to `criu`"),
        }
    }

    /// Waits for an answer. What CRIU has made holds its end of the socket too, so the end of the
    /// stream alone does not tell of its end.
    fn wait(&self) -> Result<()> {
        let (mut watch, turn) = (Watch::default(), Timespec::try_from(interrupt::TURN)?);
        loop {
            let socket = self.socket()?;
            let mut polled = [
                PollFd::from_borrowed_fd(socket, PollFlags::IN),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ];
            match rustix::event::poll(&mut polled, Some(&turn)) {
                Ok(0) => watch.turn().context("wait for `criu`")?,
                // It may have answered before its end.
                Ok(_)
                    if !polled[0].revents().is_empty()
                        || is_ready(socket, PollFlags::IN, Duration::ZERO)? =>
                {
                    return Ok(());
                }
                Ok(_) => return Err(self.how_it_ended()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for `criu`"),
            }
        }
    }

    fn receive(&self) -> Result<(rpc::Criu_resp, Option<OwnedFd>)> {
        self.wait()?;
        let mut buffer = [0; 16 << 10];
        let (length, mut descriptors) = loop {
            match scm_rights::receive(self.socket()?, &mut buffer, 1) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => break (0, Vec::new()),
                Err(error) => return Err(error).context("receive from `criu`"),
            }
        };
        if length == 0 {
            return Err(self.how_it_ended());
        }
        let answer = rpc::Criu_resp::parse_from_bytes(&buffer[..length])
            .context("understand what `criu` answered")?;
        Ok((answer, descriptors.pop()))
    }
}

/// Returns only when it failed. Runs in CRIU's process.
fn become_criu(
    kind: Kind,
    options: &Options<'_>,
    program: &Path,
    socket: &OwnedFd,
    keep: &[BorrowedFd<'_>],
    prepare: &Prepare<'_>,
    caller: &Socket,
) -> anyhow::Error {
    let run = || -> Result<std::convert::Infallible> {
        if !is_expendable(kind) {
            // Without its caller it lets the container run on, and ends, when it has something to
            // say and nobody hears it. The terminal's signals are for the caller alone.
            rustix::process::setpgid(None, None).context("make a process group")?;
        }
        (prepare.place)(caller)?;
        let directories = options.open()?;
        (prepare.images)(directories.images.as_fd())?;
        caller
            .send_with(&Message::Ready, &[directories.images.as_fd(), directories.log.as_fd()])?;
        drop(directories);
        // All but: the standard streams; the namespaces in `keep`, which the container is to share;
        // the socket that CRIU is told by; the socket to the caller, which the exec closes. What
        // the caller has left open, or `rt` forgets one day, is neither for CRIU nor for what it
        // restores.
        let kept: Vec<_> = keep.iter().copied().chain([socket.as_fd(), caller.as_fd()]).collect();
        syscall::close_all_but(3, &kept).context("close the host's descriptors")?;
        for descriptor in keep.iter().copied().chain([socket.as_fd()]) {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).context("keep a descriptor")?;
        }
        // What this process has blocked to pass it on is for the container.
        syscall::block_only(&[]);
        if is_expendable(kind) {
            syscall::default_signal_actions();
        }
        let string = |text: &[u8]| CString::new(text).map_err(|_| Errno::INVAL);
        let argv = [
            string(b"criu")?,
            string(b"swrk")?,
            string(socket.as_raw_fd().to_string().as_bytes())?,
        ];
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os().filter(|(name, _)| name != "PATH") {
            environment.push(string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
        environment.push(string(&[b"PATH=", path().as_bytes()].concat())?);
        let path = string(program.as_os_str().as_bytes())?;
        Err(syscall::execve(&path, &argv, &environment))
            .with_context(|| format!("exec `{}`", program.display()))
    };
    match run() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// The caller's `PATH`, and where an administrator's programs are.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(PROGRAMS);
    path
}

/// Where a program is that CRIU is, or needs.
fn find(name: &str) -> Option<PathBuf> {
    let path = path();
    let mut places = path.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
    places.find_map(|place| {
        let program = Path::new(place).join(name);
        let good = program.is_absolute()
            && program.is_file()
            && rustix::fs::access(&program, Access::EXEC_OK).is_ok();
        good.then_some(program)
    })
}

/// CRIU itself.
pub(in crate::container) fn program() -> Result<PathBuf> {
    find("criu")
        .ok_or(Errno::NOENT)
        .context("find the program `criu`, which must be installed for checkpoints")
}

/// Whether this CRIU can be trusted with nftables: 3.17 leaves its table in the network namespace,
/// where it goes on holding packets back, and its complaint on the container's standard output
/// (measured).
fn locks_by_nftables() -> bool {
    major_version().is_some_and(|major| major >= 4)
}

/// Whether this CRIU's newer way to restore mounts fails where two show different directories of
/// one filesystem that the host has mounted shared, "Failed to copy sharing" (3.17, measured; 4.2.1
/// can); then its older way is to be taken.
pub(in crate::container) fn shares_mounts_wrongly() -> bool {
    major_version().is_some_and(|major| major < 4)
}

fn major_version() -> Option<u32> {
    version()?.split('.').next()?.parse().ok()
}

/// The version of the CRIU that is installed, if one is.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(find("criu")?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // `Version: 4.2.1`
    let (_, rest) = text.split_once("Version: ")?;
    rest.lines().next().map(|version| version.trim().to_owned())
}

/// An error with what CRIU has written to its log about it, which says more than its answer.
pub(in crate::container) fn explain(
    error: anyhow::Error,
    directories: &Directories,
    options: &Options<'_>,
    name: &str,
) -> anyhow::Error {
    let Ok(text) = read_in(directories.log.as_fd(), name) else { return error };
    let log = options.log(name);
    let causes = errors_in(&String::from_utf8_lossy(&text));
    let causes = if causes.is_empty() { String::new() } else { format!(": {}", causes.join("; ")) };
    anyhow!("{error:#}{causes}: see `{}`", log.display())
}

/// The last things that CRIU calls errors, without time and place:
/// `(00.04) Error (criu/files-reg.c:1790): Can't …`.
fn errors_in(log: &str) -> Vec<String> {
    const MOST: usize = 3;
    // What is said on the way out of any failure, and where a kernel lacks something that may not
    // be needed.
    const NOISE: [&str; 4] = [
        "FAILED.",
        "RLIMIT_NOFILE for self: Operation not permitted",
        "-restore -V failed",
        "cgroupd: recv req error",
    ];
    let mut errors: Vec<String> = Vec::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once("Error (") else { continue };
        let text = rest.split_once("): ").map_or(rest, |(_, text)| text).trim();
        let noise = NOISE.iter().any(|noise| text.contains(noise));
        if !noise && errors.last().is_none_or(|last| last != text) {
            errors.push(text.to_owned());
        }
    }
    errors.split_off(errors.len().saturating_sub(MOST))
}

/// Says to a descriptor of the caller's that pages can be asked for now.
pub(in crate::container) fn say_ready(descriptor: &mut fs::File) -> Result<()> {
    descriptor.write_all(&[0]).context("write to the descriptor of `--status-fd`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_of_a_log_are_quoted_without_time_and_place() {
        let log = "(00.04) Warn  (criu/a.c:1): x\n(00.05) Error (criu/files-reg.c:1790): Can't lookup mount=59\n\
                   (00.06) Error (criu/cr-dump.c:1545): Dump files (pid: 7) failed with -1\n\
                   (00.06) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
        assert_eq!(errors_in(log), ["Can't lookup mount=59", "Dump files (pid: 7) failed with -1"]);
        assert_eq!(errors_in(""), Vec::<String>::new());
    }
}
