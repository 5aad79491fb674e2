//! Programs that say when they are ready (`sd_notify(3)`). When `rt` itself was started by a
//! service manager that wants to hear it, the container gets a socket of its own, and what is said
//! there is passed on: the manager's is none of the container's business, and takes nothing from
//! processes that it does not know. Runs in the caller's process, but for [`mount`].
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::linux::mounts;
use crate::linux::rootfs::Rootfs;
use crate::syscall::{self, MountAttr};
use crate::{scm_rights, trust};

/// Where the socket is in the container, and what it is called there. As with runc.
pub(crate) const FOLDER: &str = "/run/notify";
const NAME: &str = "notify.sock";

/// How long the manager may take to have understood.
const BARRIER: Duration = Duration::from_secs(30);

/// What a container may say about itself; which process it is and what it leaves with the manager
/// are not among it.
const PASSED: [&str; 8] = [
    "READY=",
    "RELOADING=",
    "STOPPING=",
    "STATUS=",
    "ERRNO=",
    "MONOTONIC_USEC=",
    "WATCHDOG=",
    "EXTEND_TIMEOUT_USEC=",
];

/// A connection to the manager, if it wants to hear something. The variable alone means little: a
/// shell that a service has started keeps it for years, and so does what is started there. Where
/// nobody listens, nobody is told.
fn manager() -> Result<Option<OwnedFd>> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let manager = socket()?;
    let connect = || -> Result<()> {
        match path.as_bytes() {
            // In the abstract namespace (unix(7)).
            [b'@', name @ ..] => {
                Ok(rustix::net::connect(&manager, &SocketAddrUnix::new_abstract_name(name)?)?)
            }
            // By descriptor: an address has no more than 108 bytes.
            _ => {
                let there = trust::look_up(Path::new(&path))?;
                let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", there.as_raw_fd()))?;
                Ok(rustix::net::connect(&manager, &address)?)
            }
        }
    };
    match connect() {
        Ok(()) => Ok(Some(manager)),
        Err(error) => {
            tracing::info!(
                "continue without the service manager: connect to NOTIFY_SOCKET `{}`: {error:#}",
                Path::new(&path).display()
            );
            Ok(None)
        }
    }
}

/// The variable for the container's environment.
pub(crate) fn variable() -> String {
    format!("NOTIFY_SOCKET={FOLDER}/{NAME}")
}

/// The folder of the socket. On the host it is in a directory that only its owner can pass, so the
/// container reaches it by its mount alone, and other users and containers do not.
#[derive(Debug)]
pub(crate) enum Folder {
    /// A mount that is not attached yet.
    Opened(OwnedFd),
    /// An ordinary user's, who may open no mount: init can, and is the same user.
    Named(PathBuf),
}

/// Makes the folder that the container will see, if its manager wants to hear something, and opens
/// it for init, which as root of a user namespace cannot come there. The socket is made when the
/// container starts.
pub(crate) fn prepare(path: PathBuf) -> Result<Option<Folder>> {
    if manager()?.is_none() {
        return Ok(None);
    }
    // In the container, for all of its users.
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
        .with_context(|| format!("make `{}`", path.display()))?;
    match mounts::detached::clone_tree(CWD, &path, false) {
        Err(Errno::PERM) => Ok(Some(Folder::Named(path))),
        mount => open(&path, mount).map(|mount| Some(Folder::Opened(mount))),
    }
}

/// Restricts the mount of the folder, if it could be opened.
fn open(path: &Path, mount: rustix::io::Result<OwnedFd>) -> Result<OwnedFd> {
    let mount = mount.with_context(|| format!("open `{}`", path.display()))?;
    // Nothing of the host's that is mounted there later shall be seen.
    let propagation = libc::MS_PRIVATE;
    let attr = MountAttr { set: RESTRICTIONS, propagation, ..MountAttr::default() };
    syscall::mount_setattr(mount.as_fd(), attr, false)
        .context("set the attributes of the mount")?;
    Ok(mount)
}

/// What the container may not do with it.
pub(crate) const RESTRICTIONS: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC;

/// Shows the folder to the container. Runs in init, before the root is changed.
pub(crate) fn mount(rootfs: &mut Rootfs, folder: Folder) -> Result<()> {
    let mount = match folder {
        Folder::Opened(mount) => mount,
        Folder::Named(path) => open(&path, mounts::detached::clone_tree(CWD, &path, false))?,
    };
    let place = rootfs.make(Path::new(FOLDER), true)?;
    rootfs
        .attach(mount.as_fd(), place.as_fd(), Path::new(FOLDER))
        .map(drop)
        .with_context(|| format!("mount `{FOLDER}`"))
}

/// The container's socket, and the way to the manager.
#[derive(Debug)]
pub(crate) struct Relay {
    ours: OwnedFd,
    manager: OwnedFd,
}

impl Relay {
    /// None when nobody wants to hear, or the container was made without a socket.
    pub(crate) fn open(folder: &Path) -> Result<Option<Relay>> {
        if !folder.is_dir() {
            return Ok(None);
        }
        let Some(manager) = manager()? else { return Ok(None) };
        let ours = socket()?;
        // The state's path may be longer than an address.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty())
            .with_context(|| format!("open `{}`", folder.display()))?;
        let path = format!("/proc/self/fd/{}/{NAME}", opened.as_raw_fd());
        let bind = || {
            // For whoever the container's user is. A socket hands its mode on to its file, less the
            // umask (unix(7)); to change that of the file would be to go by its name once more.
            rustix::fs::fchmod(&ours, Mode::from_raw_mode(0o666))?;
            let umask = rustix::process::umask(Mode::empty());
            let bound = rustix::net::bind(&ours, &SocketAddrUnix::new(&path)?);
            rustix::process::umask(umask);
            bound
        };
        bind().with_context(|| format!("make the socket `{}`", folder.join(NAME).display()))?;
        Ok(Some(Relay { ours, manager }))
    }

    /// For a list of what to wait for: readable when the container says something, never if there
    /// is no relay. Then `other` stands in for it, which must be in the list already.
    pub(crate) fn polled<'a>(relay: Option<&'a Relay>, other: &'a OwnedFd) -> PollFd<'a> {
        match relay {
            Some(relay) => PollFd::new(&relay.ours, PollFlags::IN),
            None => PollFd::new(other, PollFlags::empty()),
        }
    }

    /// Passes on one message; says whether the container is ready with it.
    pub(crate) fn pass(&self) -> Result<bool> {
        let mut bytes = [0; 4096];
        let length = match rustix::net::recv(&self.ours, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, length)) => length.min(bytes.len()),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(error).context("hear what the container says"),
        };
        let said = passed(&bytes[..length]);
        if !said.is_empty() {
            self.say(&said.join("\n"), &[])?;
        }
        Ok(said.iter().any(|line| line == "READY=1"))
    }

    /// Waits until the container is ready or has ended. Then its first process is the service,
    /// since this one ends.
    pub(crate) fn wait_until_ready(&self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        loop {
            let mut polled = [
                PollFd::new(&self.ours, PollFlags::IN),
                PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            ];
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("wait until the container is ready"),
            }
            let [said, ended] = polled.map(|polled| !polled.revents().is_empty());
            if said && self.pass()? {
                self.say(&format!("MAINPID={pid}"), &[])?;
                return self.wait_for_the_manager();
            }
            if ended && !said {
                return Ok(());
            }
        }
    }

    /// Until the manager has read all of it: it looks at who has sent a message, and this process
    /// is about to end (`sd_notify_barrier(3)`).
    fn wait_for_the_manager(&self) -> Result<()> {
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
        self.say("BARRIER=1", &[writer.as_fd()])?;
        drop(writer);
        let limit = Timespec::try_from(BARRIER)?;
        rustix::event::poll(&mut [PollFd::new(&reader, PollFlags::empty())], Some(&limit))
            .map(drop)
            .context("wait for the service manager")
    }

    fn say(&self, text: &str, files: &[BorrowedFd<'_>]) -> Result<()> {
        scm_rights::send(self.manager.as_fd(), text.as_bytes(), files)
            .context("tell the service manager")
    }
}

/// What of a message is passed on: lines of known names, of characters that can be printed. systemd
/// ends a line at a carriage return too.
fn passed(message: &[u8]) -> Vec<String> {
    let lines = message.split(|byte| matches!(byte, b'\n' | b'\r' | 0));
    let lines = lines.map(|line| String::from_utf8_lossy(line).into_owned());
    let is_passed = |line: &String| {
        PASSED.iter().any(|prefix| line.starts_with(prefix)) && !line.chars().any(char::is_control)
    };
    lines.filter(is_passed).collect()
}

fn socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("open a socket")
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn a_container_speaks_of_itself_only() {
        let message = b"STATUS=x\rMAINPID=1\rNOTIFYACCESS=all\r\nFDSTORE=1\nREADY=1\0MAINPID=2";
        assert_eq!(passed(message), ["STATUS=x", "READY=1"]);
        assert_eq!(passed(b"STATUS=a\x1b[2J\nSTATUS=\xe2\x80\xa8"), ["STATUS=\u{2028}"]);
        assert!(passed(b"XREADY=1\n\r\n =").is_empty());
    }
}
