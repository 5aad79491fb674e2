//! Readiness notifications of programs (`sd_notify(3)`). If a service manager started `rt` and
//! wants notifications, the container gets a socket of its own. `rt` passes the messages on. The
//! container must not reach the manager's socket itself, and the manager accepts no messages from
//! processes that it does not know. Runs in the runtime process, except [`mount`].
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

/// The socket's directory and name in the container. As with runc.
pub(crate) const FOLDER: &str = "/run/notify";
const NAME: &str = "notify.sock";

/// How long the manager may take to read the messages.
const BARRIER: Duration = Duration::from_secs(30);

/// The messages that a container may send about itself. It may not change the main process, or
/// store descriptors in the manager.
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

/// A connection to the manager, if it wants messages. The variable alone does not mean that: a
/// shell of a service keeps it for years, and so do the shell's children. If no manager listens,
/// `rt` sends nothing.
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
            // By descriptor, because an address has at most 108 bytes.
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

/// The directory of the socket. On the host, it is in a directory that only its owner can enter. So
/// the container reaches it only through its mount, and other users and containers do not reach it.
#[derive(Debug)]
pub(crate) enum Folder {
    /// A detached mount.
    Opened(OwnedFd),
    /// The path, for an ordinary user's runtime process, which may not open mounts. Init may, and
    /// runs as the same user.
    Named(PathBuf),
}

/// Makes the directory that the container will see, if the manager wants messages. Opens it for
/// init, because root of a user namespace cannot reach it. `start` makes the socket.
pub(crate) fn prepare(path: PathBuf) -> Result<Option<Folder>> {
    if manager()?.is_none() {
        return Ok(None);
    }
    // All users of the container need access.
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
        .with_context(|| format!("make `{}`", path.display()))?;
    match mounts::detached::clone_tree(CWD, &path, false) {
        Err(Errno::PERM) => Ok(Some(Folder::Named(path))),
        mount => open(&path, mount).map(|mount| Some(Folder::Opened(mount))),
    }
}

/// Restricts the mount of the directory, if it could be opened.
fn open(path: &Path, mount: rustix::io::Result<OwnedFd>) -> Result<OwnedFd> {
    let mount = mount.with_context(|| format!("open `{}`", path.display()))?;
    // The container shall not see later mounts of the host in this directory.
    let propagation = libc::MS_PRIVATE;
    let attr = MountAttr { set: RESTRICTIONS, propagation, ..MountAttr::default() };
    syscall::mount_setattr(mount.as_fd(), attr, false)
        .context("set the attributes of the mount")?;
    Ok(mount)
}

/// The restrictions of the mount.
pub(crate) const RESTRICTIONS: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC;

/// Shows the directory to the container. Runs in init, before init changes the root.
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

/// The container's socket, and the connection to the manager.
#[derive(Debug)]
pub(crate) struct Relay {
    ours: OwnedFd,
    manager: OwnedFd,
}

impl Relay {
    /// Returns None if no manager listens, or if the container was made without a socket.
    pub(crate) fn open(folder: &Path) -> Result<Option<Relay>> {
        if !folder.is_dir() {
            return Ok(None);
        }
        let Some(manager) = manager()? else { return Ok(None) };
        let ours = socket()?;
        // The state's path may be longer than a socket address.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty())
            .with_context(|| format!("open `{}`", folder.display()))?;
        let path = format!("/proc/self/fd/{}/{NAME}", opened.as_raw_fd());
        let bind = || {
            // The socket is for any user of the container. A socket passes its mode on to its file,
            // less the umask (unix(7)). To change the file's mode would be a second look-up of its
            // name.
            rustix::fs::fchmod(&ours, Mode::from_raw_mode(0o666))?;
            let umask = rustix::process::umask(Mode::empty());
            let bound = rustix::net::bind(&ours, &SocketAddrUnix::new(&path)?);
            rustix::process::umask(umask);
            bound
        };
        bind().with_context(|| format!("make the socket `{}`", folder.join(NAME).display()))?;
        Ok(Some(Relay { ours, manager }))
    }

    /// An entry for a list to poll: readable when the container sends a message. Without a relay,
    /// the entry never becomes readable: `other`, which must be in the list already, stands in for
    /// it.
    pub(crate) fn polled<'a>(relay: Option<&'a Relay>, other: &'a OwnedFd) -> PollFd<'a> {
        match relay {
            Some(relay) => PollFd::new(&relay.ours, PollFlags::IN),
            None => PollFd::new(other, PollFlags::empty()),
        }
    }

    /// Passes on one message. Returns whether it says that the container is ready.
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

    /// Waits until the container is ready or has ended. If it is ready, its first process becomes
    /// the service's main process, because the runtime process ends.
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

    /// Waits until the manager has read all messages. The manager looks at the sender of a message,
    /// and the runtime process is about to end (`sd_notify_barrier(3)`).
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

/// The lines of a message to pass on: known names, and printable characters only. systemd ends a
/// line at a carriage return too.
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
