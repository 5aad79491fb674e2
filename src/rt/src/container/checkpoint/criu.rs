//! CRIU, the program that writes processes to files and makes them again from these files
//! (`criu(8)`). This file talks to it: `criu swrk N` serves one request on the socket at its
//! descriptor N (`https://criu.org/RPC`).
//!
//! The messages are rust-criu's, but the conversation is not. rust-criu's client starts CRIU in the
//! namespaces and the cgroup of the runtime process. It has no pre-dump, and only one callback for
//! all notifications. libcontainer's checkpoint uses this client, and libcontainer has no restore.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
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
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::de::DeserializeOwned;

use crate::container::checkpoint::guard::{self, Guard};
use crate::container::checkpoint::images;
use crate::container::checkpoint::yards::Yards;
use crate::draft::Draft;
use crate::interrupt::{self, Watch, is_ready};
use crate::linux::cgroups::Cgroup;
use crate::linux::helper;
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

/// The options that `checkpoint` and `restore` share.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// The directory of the checkpoint.
    pub(crate) images: &'a Path,
    /// The directory of CRIU's log, if it is another one.
    pub(crate) work: Option<&'a Path>,
    /// The host's user that is root of the container. podman gives this user the directory of the
    /// log.
    pub(crate) root: u32,
    pub(crate) tcp_established: bool,
    pub(crate) ext_unix_sk: bool,
    pub(crate) shell_job: bool,
    pub(crate) file_locks: bool,
    pub(crate) auto_dedup: bool,
    pub(crate) lazy_pages: bool,
    /// Leave out the contents of the network namespace.
    pub(crate) empty_network: bool,
    pub(crate) cgroups: Option<CgroupsMode>,
    pub(crate) network_lock: Option<NetworkLock>,
}

/// The directories of the administrator's programs, for programs that are not in the caller's
/// `PATH`.
const PROGRAMS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// CRIU's own configuration: CRIU also reads the first of these files that exists. An operator may
/// already have the files of the other runtimes.
const CONFIGURATIONS: [&str; 3] =
    ["/etc/criu/rt.conf", "/etc/criu/crun.conf", "/etc/criu/runc.conf"];

/// The annotation that names another configuration of the administrator. CRIU does as root what
/// this file says (`action-script`), and annotations are often the users'. If the file could be
/// anywhere else, each user could make one and take over the host.
const CONFIGURATION: &str = "org.criu.config";
const CONFIGURATION_FOLDER: &str = "/etc/criu";

/// Like `-v4`, which CRIU's developers ask for.
const LOG_LEVEL: i32 = 4;

impl Options<'_> {
    /// The file to which CRIU writes its log.
    fn log(&self, name: &str) -> PathBuf {
        self.work.unwrap_or(self.images).join(name)
    }

    /// Opens the directories of the checkpoint and of the log, to which no other user can write:
    /// CRIU follows the links in them, and does as root what the images say. Makes the directory of
    /// the log. Also makes that of the checkpoint, unless it is open already, for root alone:
    /// memory contains secrets.
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
        // Runs before CRIU gets any request.
        directories.refuse_others_parents(self.images)?;
        Ok(directories)
    }

    /// Opens the same directories again, when they exist.
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

    /// The part of a request that these options decide.
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
        // CRIU's own choice, iptables, requires a program. The other method does not.
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

/// The directories of a checkpoint and of CRIU's log. Other users may own the directories above
/// them. So `rt` opens them once, and reaches every file in them by these descriptors.
#[derive(Debug)]
pub(in crate::container) struct Directories {
    images: OwnedFd,
    log: OwnedFd,
}

/// The longest file that `rt` reads, in bytes. Of a longer log, `rt` reads the beginning.
const LONGEST: u64 = 64 << 20;

impl Directories {
    /// Removes the log of an earlier attempt. Its errors must not be quoted.
    pub(in crate::container) fn remove_log(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.log, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ROFS) => bail!(
                "write `{name}`: its directory is read-only, and `--work-path` can name another one"
            ),
            Err(error) => Err(error).with_context(|| format!("remove the old `{name}`")),
        }
    }

    /// Writes a file of `rt` beside CRIU's images. `path` is for errors.
    pub(in crate::container) fn write(&self, path: PathBuf, text: &[u8]) -> Result<()> {
        let directory = self.images.try_clone().context("duplicate a descriptor")?;
        let show = format!("write `{}`", path.display());
        Draft::write_in(directory, path, text, 0o600).context(show)?.publish()
    }

    /// Checks the directory of the checkpoint before, by its path from this one, and the
    /// directories of the checkpoints before that. CRIU goes there by name and reads memory there,
    /// at a restore too. So no other user may be able to change a directory on the way.
    pub(in crate::container) fn check_parent(&self, path: &Path, shown: &Path) -> Result<()> {
        let parent = trust::directory_from(self.images.as_fd(), shown, path)?;
        each_parent(parent, shown.join(path), &mut |_, _| Ok(()))
    }

    fn refuse_others_parents(&self, shown: &Path) -> Result<()> {
        each_checkpoint(self.images(), shown, &mut |_, _| Ok(()))
    }

    /// Checks every file that a restore may read.
    pub(in crate::container) fn refuse_others_files(&self, shown: &Path) -> Result<()> {
        each_checkpoint(self.images(), shown, &mut |images, shown| {
            refuse_others_files(images, shown)
        })
    }

    /// Whether there is a checkpoint before this one.
    pub(in crate::container) fn has_parent(&self) -> bool {
        rustix::fs::statat(&self.images, PARENT, AtFlags::SYMLINK_NOFOLLOW).err()
            != Some(Errno::NOENT)
    }

    pub(in crate::container) fn images(&self) -> BorrowedFd<'_> {
        self.images.as_fd()
    }

    /// The directories that CRIU has made beside its log before this restore.
    pub(in crate::container) fn yards(&self) -> Result<Yards> {
        Yards::look(&self.log)
    }
}

/// CRIU's link from the images to those of the checkpoint before (`CR_PARENT_LINK`).
const PARENT: &str = "parent";

/// If more checkpoints than this are each the parent of the next, they are a loop.
pub(in crate::container) const MOST_PARENTS: u32 = 1000;

/// Checks the directory of a checkpoint, and those of the checkpoints before. Fails if another user
/// could change a directory on the way.
fn each_parent(
    mut images: OwnedFd,
    mut shown: PathBuf,
    look: &mut dyn FnMut(&OwnedFd, &Path) -> Result<()>,
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

/// Calls `look` for the directory of a checkpoint, and for those of the checkpoints before.
pub(in crate::container) fn each_checkpoint(
    images: BorrowedFd<'_>,
    shown: &Path,
    look: &mut dyn FnMut(&OwnedFd, &Path) -> Result<()>,
) -> Result<()> {
    let images = images.try_clone_to_owned().context("duplicate a descriptor")?;
    each_parent(images, std::path::absolute(shown)?, look)
}

fn show(path: &Path) -> String {
    format!("open `{}`", path.display())
}

/// Reads a regular file of this name. Fails if another user can change the file, also by another
/// name: CRIU reads some of these files again. Does not follow a link, and does not wait for a
/// fifo.
pub(in crate::container) fn read_in(directory: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>> {
    Ok(read_if_there(directory, name)?.ok_or(Errno::NOENT)?)
}

/// Returns None if the file does not exist. Fails if it is too long: CRIU would read the rest too.
pub(in crate::container) fn read_if_there(
    directory: BorrowedFd<'_>,
    name: &str,
) -> Result<Option<Vec<u8>>> {
    let text = read_start(directory, name)?;
    if let Some(text) = &text {
        ensure!(u64::try_from(text.len())? <= LONGEST, "it is longer than {LONGEST} bytes");
    }
    Ok(text)
}

/// A file of `rt` in a checkpoint.
pub(in crate::container) fn read_json<T: DeserializeOwned>(
    directory: BorrowedFd<'_>,
    name: &str,
) -> Result<T> {
    /// In bytes. Each of some thousand mounts has a record.
    const LONGEST: u64 = 4 << 20;
    let text = read_to(directory, name, LONGEST + 1)?.ok_or(Errno::NOENT)?;
    ensure!(u64::try_from(text.len())? <= LONGEST, "it is longer than {LONGEST} bytes");
    Ok(serde_json::from_slice(&text)?)
}

/// The first bytes of a file, with the first message of an image.
pub(in crate::container) fn read_beginning(
    directory: BorrowedFd<'_>,
    name: &str,
) -> Result<Vec<u8>> {
    const LENGTH: u64 = 64 << 10;
    Ok(read_to(directory, name, LENGTH)?.ok_or(Errno::NOENT)?)
}

/// The first bytes of a file: one more than `LONGEST` if it is longer.
fn read_start(directory: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    read_to(directory, name, LONGEST + 1)
}

fn read_to(directory: BorrowedFd<'_>, name: &str, length: u64) -> Result<Option<Vec<u8>>> {
    interrupt::glance()?;
    let Some(file) = open(directory, name)? else { return Ok(None) };
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text)?;
    Ok(Some(text))
}

/// Calls `look` for each image whose name begins so, with its content. `show` names an image in
/// errors.
pub(in crate::container) fn each_image(
    directory: BorrowedFd<'_>,
    start: &str,
    show: &dyn Fn(&str) -> String,
    look: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    for name in images::names_with(directory, start)? {
        read_in(directory, &name).and_then(|image| look(&image)).with_context(|| show(&name))?;
    }
    Ok(())
}

/// The length of a file in bytes.
pub(in crate::container) fn length(directory: BorrowedFd<'_>, name: &str) -> Result<u64> {
    Ok(open(directory, name)?.ok_or(Errno::NOENT)?.metadata()?.len())
}

/// A page of a file of pages, which have no head.
pub(in crate::container) fn read_page(
    directory: BorrowedFd<'_>,
    name: &str,
    page: u64,
) -> Result<Vec<u8>> {
    let file = open(directory, name)?.ok_or(Errno::NOENT)?;
    let mut bytes = vec![0; 4096];
    let at = page.checked_mul(4096).context("it has too many pages")?;
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Opens the checkpoint before this one. [`Directories`] has checked who can change it.
pub(in crate::container) fn open_parent(images: BorrowedFd<'_>) -> Result<OwnedFd> {
    let path = Path::new(PARENT);
    trust::directory_from(images, path, path).context("open the checkpoint before")
}

fn open(directory: BorrowedFd<'_>, name: &str) -> Result<Option<fs::File>> {
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
    Ok(Some(file))
}

/// Fails for a file that another user owns or can write to. That user may have it open.
fn refuse_others_file(there: &Stat) -> Result<()> {
    ensure!(
        trust::is_ours(there),
        "it can be changed by others: it belongs to user {}, and has mode {:04o}",
        there.st_uid,
        there.st_mode & 0o7777
    );
    Ok(())
}

/// Fails if a directory of images contains an entry that another user can change, or that is not a
/// file. CRIU opens the files by name, follows links, and writes to some files.
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
            // Another restore from these images has removed the file.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error).with_context(|| show(name)),
        };
        match FileType::from_raw_mode(there.st_mode) {
            // The socket is that of `criu lazy-pages`.
            FileType::RegularFile | FileType::Socket => {
                refuse_others_file(&there).with_context(|| show(name))?;
            }
            // CRIU reads nothing in a directory.
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

/// A CRIU process that waits for its request.
#[derive(Debug)]
pub(in crate::container) struct Criu {
    kind: Kind,
    /// None when the conversation is over.
    socket: Option<OwnedFd>,
    pid: Pid,
    pidfd: OwnedFd,
    /// Whether this process has waited for CRIU's end.
    is_over: bool,
    /// The guard of the processes that CRIU restores.
    guard: Option<Guard>,
    /// Whether CRIU has got its request.
    is_asked: bool,
    /// The directories of the images and of the log, opened in CRIU's mount namespace. CRIU mounts
    /// in them, and can only do so in mounts of this namespace. CRIU reaches the directories by
    /// `/proc` and their descriptor numbers in this process.
    directories: Vec<OwnedFd>,
}

/// How long CRIU may take to clean up when no process listens any more.
const PATIENCE: Duration = Duration::from_secs(10);

impl Drop for Criu {
    fn drop(&mut self) {
        // The guard's work comes first: CRIU would let go of the restored processes, and `rt` has
        // not checked all of them.
        self.guard = None;
        // Without a request, CRIU holds no process yet, and would print that none has come. At a
        // restore, the end of this socket does not end CRIU.
        if !self.is_asked || is_expendable(self.kind) {
            self.kill();
        }
        // When the socket is closed, CRIU ends by itself and lets go of the processes that it
        // holds.
        self.socket = None;
        if self.is_over {
            return;
        }
        let is_over = matches!(is_ready(self.pidfd.as_fd(), PollFlags::IN, PATIENCE), Ok(true));
        if is_over || is_expendable(self.kind) {
            let _ = namespaces::wait(self.pid);
        }
    }
}

/// Whether CRIU may be killed at any time. At a restore it may, because a half-made container has
/// no use. During a dump, CRIU has stopped a running container.
fn is_expendable(kind: Kind) -> bool {
    kind == Kind::RESTORE
}

/// CRIU's notification when all restored processes have their credentials and are still stopped.
/// CRIU ignores the answer. So to refuse, `rt` must end the processes first: see [`Guard`].
pub(in crate::container) const BEFORE_IT_RUNS: &str = "pre-resume";

/// CRIU's notification when the first process exists, and does nothing yet.
const FIRST_IS_THERE: &str = "setup-namespaces";

/// The steps in CRIU's process before it becomes CRIU.
pub(in crate::container) struct Prepare<'a> {
    pub(in crate::container) place: &'a dyn Fn(&Socket) -> Result<()>,
    /// With the directory of the images, as CRIU will see it.
    pub(in crate::container) images: &'a dyn Fn(BorrowedFd<'_>) -> Result<()>,
}

/// For a CRIU that writes a checkpoint.
pub(in crate::container) const NOTHING: Prepare<'_> =
    Prepare { place: &|_| Ok(()), images: &|_| Ok(()) };

/// A notification of CRIU: it is about to do something, or has done it.
pub(in crate::container) struct Notice {
    pub(in crate::container) script: String,
    /// The container's first process, if CRIU names it.
    pub(in crate::container) pid: i32,
    pub(in crate::container) descriptor: Option<OwnedFd>,
}

impl Criu {
    /// Starts CRIU. It inherits the three standard streams and the descriptors in `keep`, with the
    /// same numbers. `prepare` runs in CRIU's process and can wait for messages on the socket.
    /// `serve` runs in this process and sends them.
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
        let (ours, child) = sync::pair()?;
        let Some(pid) = syscall::clone3(0, birthplace).context("make a process for `criu`")? else {
            drop(ours);
            // At a restore, CRIU has the other end of its own socket too. So without the runtime
            // process and its guard, CRIU waits for an answer that never comes, instead of letting
            // go of processes that nobody has checked. Somebody can have it continue: a program of
            // its session by SIGCONT, or systemd.
            let other = is_expendable(kind).then_some(socket);
            let keep: Vec<_> =
                keep.iter().copied().chain(other.as_ref().map(OwnedFd::as_fd)).collect();
            let error = become_criu(kind, options, &program, &theirs, &keep, prepare, &child);
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
        if let Err(error) = serve(pid, &ours) {
            // When the socket is closed, CRIU's process stops waiting for the messages.
            drop(ours);
            return Err(error);
        }
        loop {
            let (message, directories) = ours.receive_with()?;
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
                // The exec closes CRIU's end of the socket.
                None => return Ok(criu),
                Some(Message::Failed(text)) => bail!(text),
                Some(message) => bail!("the process for `criu` sent {message:?}"),
            }
        }
    }

    pub(in crate::container) fn process(&self) -> Pid {
        self.pid
    }

    /// Starts the guard. From now on, until `rt` has checked everything, the guard ends the
    /// processes that CRIU restores into this cgroup, if `rt` or CRIU ends.
    pub(in crate::container) fn guard(&mut self, cgroup: &Cgroup, yards: &Yards) -> Result<()> {
        self.guard =
            Some(Guard::start(self.pid, self.pidfd.as_fd(), self.socket()?, cgroup, yards)?);
        Ok(())
    }

    /// Fails if CRIU has ended: `/proc` describes CRIU only while it exists.
    pub(in crate::container) fn refuse_ended(&self) -> Result<()> {
        let ended = is_ready(self.pidfd.as_fd(), PollFlags::IN, Duration::ZERO)?;
        if ended { Err(self.how_it_ended()) } else { Ok(()) }
    }

    /// Waits for CRIU's end, which may come later than the end of its socket.
    fn how_it_ended(&self) -> anyhow::Error {
        let ended = is_ready(self.pidfd.as_fd(), PollFlags::IN, PATIENCE).unwrap_or(false);
        let stat = if ended { procfs::stat(self.pid).ok().flatten() } else { None };
        match stat.map_or(0, |stat| stat.status & 0x7f) {
            0 => anyhow!("`criu` ended without an answer"),
            signal => anyhow!("`criu` was ended by signal {signal}"),
        }
    }

    /// Lets CRIU read the checkpoint through another mount of it.
    pub(in crate::container) fn read_through(&mut self, images: OwnedFd) {
        if let Some(first) = self.directories.first_mut() {
            *first = images;
        }
    }

    /// Has CRIU do one thing, and waits until it is done. `on_notice` can forbid a step that it is
    /// told of.
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
                // CRIU may end at once when a step is forbidden.
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
            // If CRIU has ended meanwhile, this is the reason that its processes were not found.
            let allowed =
                on_notice(notice).map_err(|error| self.refuse_ended().err().unwrap_or(error));
            if is_last_chance {
                // Without an answer, CRIU waits until the guard has ended all processes.
                allowed?;
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
        // After a request of this kind, CRIU waits for another one.
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
        // If CRIU has ended already, this process waits for it all the same.
        let _ = syscall::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    fn socket(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.socket.as_ref().context("the conversation with `criu` is over")?.as_fd())
    }

    fn send(&self, request: &rpc::Criu_req) -> Result<()> {
        let bytes = request.write_to_bytes().context("write a request to `criu`")?;
        match rustix::net::send(self.socket()?, &bytes, SendFlags::NOSIGNAL) {
            // CRIU has ended. The next answer is the end of the stream.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error).context("send a request to `criu`"),
        }
    }

    /// Waits for an answer. The processes that CRIU has made hold its end of the socket too, so the
    /// end of the stream alone does not show CRIU's end.
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
                // CRIU may have answered before its end.
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

/// Becomes CRIU. Returns only if that failed. Runs in CRIU's process.
fn become_criu(
    kind: Kind,
    options: &Options<'_>,
    program: &Path,
    socket: &OwnedFd,
    keep: &[BorrowedFd<'_>],
    prepare: &Prepare<'_>,
    runtime: &Socket,
) -> anyhow::Error {
    let run = || -> Result<std::convert::Infallible> {
        let parent = rustix::process::getppid();
        if is_expendable(kind) {
            helper::end_with_the_runtime_process()?;
        } else {
            // The terminal's signals are for the runtime process alone. Without the runtime
            // process, CRIU lets the container run on, and ends when it has a message to send.
            rustix::process::setpgid(None, None).context("make a process group")?;
        }
        (prepare.place)(runtime)?;
        let directories = options.open()?;
        (prepare.images)(directories.images.as_fd())?;
        runtime
            .send_with(&Message::Ready, &[directories.images.as_fd(), directories.log.as_fd()])?;
        drop(directories);
        // Keeps the standard streams, and the namespaces in `keep`, which the container is to
        // share. Also keeps the socket for CRIU's request and, until the exec, the socket to the
        // runtime process. Other descriptors, which the caller has left open or `rt` might forget
        // to close, are neither for CRIU nor for the processes that it restores.
        let kept: Vec<_> = keep.iter().copied().chain([socket.as_fd(), runtime.as_fd()]).collect();
        syscall::close_all_but(3, &kept).context("close the host's descriptors")?;
        for descriptor in keep.iter().copied().chain([socket.as_fd()]) {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).context("keep a descriptor")?;
        }
        // Signals that this process has blocked to pass them on are for the container.
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
        if is_expendable(kind) {
            // From the exec on, CRIU traces processes that would run if it ended. If the guard is
            // killed together with the runtime process, they and CRIU stay stopped.
            rustix::process::set_parent_process_death_signal(Some(Signal::STOP))
                .context("stop with the runtime process")?;
            ensure!(rustix::process::getppid() == parent, "the runtime process has ended");
        }
        Err(syscall::execve(&path, &argv, &environment))
            .with_context(|| format!("exec `{}`", program.display()))
    };
    match run() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// The caller's `PATH`, then the directories of an administrator's programs.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(PROGRAMS);
    path
}

/// The path of CRIU, or of a program that it requires.
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

/// Whether nftables works with this CRIU. 3.17 leaves its table in the network namespace, where the
/// table continues to hold packets back. It also leaves its error message on the container's
/// standard output (measured).
fn locks_by_nftables() -> bool {
    major_version().is_some_and(|major| major >= 4)
}

/// Whether this CRIU's newer way to restore mounts fails with "Failed to copy sharing". It fails if
/// two mounts show different directories of one filesystem that the host has mounted shared (3.17,
/// measured; 4.2.1 can restore them). Then `rt` chooses CRIU's older way.
pub(in crate::container) fn shares_mounts_wrongly() -> bool {
    major_version().is_some_and(|major| major < 4)
}

fn major_version() -> Option<u32> {
    version()?.split('.').next()?.parse().ok()
}

/// The version of the installed CRIU, if CRIU is installed.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(find("criu")?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // `Version: 4.2.1`
    let (_, rest) = text.split_once("Version: ")?;
    rest.lines().next().map(|version| version.trim().to_owned())
}

/// Adds to an error the messages in CRIU's log, which say more than CRIU's answer.
pub(in crate::container) fn explain(
    error: anyhow::Error,
    directories: &Directories,
    options: &Options<'_>,
    name: &str,
) -> anyhow::Error {
    let Ok(Some(text)) = read_start(directories.log.as_fd(), name) else { return error };
    let log = options.log(name);
    let causes = errors_in(&String::from_utf8_lossy(&text));
    let causes = if causes.is_empty() { String::new() } else { format!(": {}", causes.join("; ")) };
    anyhow!("{error:#}{causes}: see `{}`", log.display())
}

/// The last messages in the log that CRIU calls errors, without time and place:
/// `(00.04) Error (criu/files-reg.c:1790): Can't …`.
fn errors_in(log: &str) -> Vec<String> {
    const MOST: usize = 3;
    // CRIU writes these messages after any failure, or if the kernel lacks something that may not
    // be required.
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

/// Writes to the caller's descriptor that the caller can ask for pages now.
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
