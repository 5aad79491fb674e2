//! The container's terminal: a pseudo-terminal whose master end goes to the caller (`pty(7)`).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{BoxBuilder, Process};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FsWord, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

use crate::linux::mounts;
use crate::linux::rootfs::Rootfs;
use crate::linux::sd_notify::Relay;
use crate::{scm_rights, trust};

/// How long a caller's socket may be full.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a socket of the caller. Runs in the runtime process.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // If the listener has a full queue, we wait, but not for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))
        .context("limit the wait for the socket")?;
    // By descriptor, so that no link of another user leads there, and because an address has at
    // most 108 bytes.
    let connect = || -> Result<()> {
        let there = trust::look_up(path)?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", there.as_raw_fd()))?;
        match rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)) {
            Err(Errno::AGAIN) => {
                bail!("nobody has taken the connection within {} s", PATIENCE.as_secs())
            }
            connected => Ok(connected?),
        }
    };
    connect().with_context(|| format!("connect to `{}`", path.display()))?;
    Ok(socket)
}

/// Sends one descriptor, with a name for the receiver's logs.
pub(crate) fn send(socket: BorrowedFd<'_>, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
    scm_rights::send(socket, name.as_bytes(), &[descriptor])
        .with_context(|| format!("send `{name}`"))
}

/// If standard input is a terminal, copies its size to the process of a `run` in the foreground. A
/// program looks at the size before our first change of it could reach the program.
pub(crate) fn begin_with_own_size(process: &mut Process) {
    let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) else { return };
    if size.ws_row != 0
        && size.ws_col != 0
        && let Ok(cells) = BoxBuilder::default().height(size.ws_row).width(size.ws_col).build()
    {
        process.set_console_size(Some(cells));
    }
}

/// Receives one descriptor. Runs in the runtime process, for `run` in the foreground.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut name = [0; 64];
    let (_, mut descriptors) =
        scm_rights::receive(socket, &mut name, 1).context("receive the terminal")?;
    descriptors.pop().context("receive the terminal: the message held none")
}

/// Makes the terminal in the container's own devpts, makes it this process's standard streams and
/// controlling terminal, and sends the master to the caller. The first process's terminal is the
/// container's `/dev/console` too. Runs in init, as a session leader, before init changes the root,
/// and in a process of `exec`.
pub(crate) fn set_up(
    rootfs: &Rootfs,
    process: &Process,
    socket: BorrowedFd<'_>,
    is_console: bool,
) -> Result<()> {
    let master = open_ptmx(rootfs).context("open `/dev/pts/ptmx` in the rootfs")?;
    rustix::pty::unlockpt(&master).context("unlock the terminal")?;
    // By descriptor, because a path to the slave could lead to another file by now.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).context("open the terminal")?;
    if let Some(size) = process.console_size() {
        let cells = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: cells(size.height()),
            ws_col: cells(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).context("set the size of the terminal")?;
    }
    let user = process.user();
    if user.uid() != 0 {
        let (uid, gid) = (Uid::from_raw(user.uid()), None::<Gid>);
        rustix::fs::fchown(&slave, Some(uid), gid)
            .context("give the terminal to the container's user")?;
    }
    if is_console {
        // By a mount: a device node of the same number would be the host's console. The link of an
        // image must not redirect this mount (CVE-2025-52565).
        let console = rootfs.make_without_following(Path::new("/dev/console"), false)?;
        let mount = mounts::detached::clone_tree(slave.as_fd(), Path::new(""), false)
            .context("clone the terminal's mount")?;
        mounts::detached::attach(mount.as_fd(), console.as_fd()).context("mount `/dev/console`")?;
    }

    send(socket, "/dev/ptmx", master.as_fd())?;
    rustix::process::ioctl_tiocsctty(&slave).context("make it the controlling terminal")?;
    rustix::stdio::dup2_stdin(&slave).context("make it standard input")?;
    rustix::stdio::dup2_stdout(&slave).context("make it standard output")?;
    rustix::stdio::dup2_stderr(&slave).context("make it standard error")
}

/// From `<linux/magic.h>`.
const DEVPTS_SUPER_MAGIC: FsWord = 0x1cd1;

/// Opens the device that makes a terminal. We do not open another device that an image may have put
/// there, because opening a device may already have an effect.
fn open_ptmx(rootfs: &Rootfs) -> Result<OwnedFd> {
    const MISSING: &str = "a terminal needs a devpts mount";
    let folder =
        rootfs.open(Path::new("/dev/pts"), OFlags::PATH | OFlags::DIRECTORY).context(MISSING)?;
    let is_devpts = rustix::fs::fstatfs(&folder)?.f_type == DEVPTS_SUPER_MAGIC;
    ensure!(is_devpts, "`/dev/pts` is another filesystem: {MISSING}");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&folder, "ptmx", flags, Mode::empty())?)
}

/// Whether a file is a pseudo-terminal that a program made, and not a terminal of the host, such as
/// its console.
pub(crate) fn is_in_devpts(file: BorrowedFd<'_>) -> bool {
    let found = rustix::fs::fstatfs(file);
    found.is_ok_and(|there| there.f_type == DEVPTS_SUPER_MAGIC) && rustix::termios::isatty(file)
}

/// Passes bytes between this process's own terminal and a container's, for `run` in the foreground.
#[derive(Debug)]
pub(crate) struct Proxy {
    master: OwnedFd,
    /// The original settings of our own terminal, if standard input is one. They are restored at
    /// the end.
    saved: Option<Termios>,
    to_container: Vec<u8>,
    to_us: Vec<u8>,
    stdin_open: bool,
}

impl Proxy {
    pub(crate) fn new(master: OwnedFd) -> Result<Proxy> {
        let stdin = rustix::stdio::stdin();
        let saved = rustix::termios::tcgetattr(stdin).ok();
        // A writable terminal may accept only a part of the bytes. Without NONBLOCK, the owner of
        // the other end could block this process for ever.
        let flags = rustix::fs::fcntl_getfl(&master).context("look at the terminal")?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)
            .context("make the terminal one that is not waited for")?;
        let proxy =
            Proxy { master, saved, to_container: Vec::new(), to_us: Vec::new(), stdin_open: true };
        if let Some(saved) = &proxy.saved {
            let mut raw = saved.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)
                .context("set the terminal to raw mode")?;
            proxy.resize();
        }
        Ok(proxy)
    }

    /// Runs until the container has ended and all its output is passed on. `forward` gets each
    /// signal but SIGWINCH, which means a new size.
    pub(crate) fn run(
        mut self,
        pidfd: BorrowedFd<'_>,
        signals: &OwnedFd,
        relay: Option<&Relay>,
        mut forward: impl FnMut(i32),
    ) -> Result<()> {
        let (mut ended, mut drained) = (false, false);
        loop {
            let read_stdin = self.stdin_open && self.to_container.len() < BUFFER;
            let mut master_events = PollFlags::empty();
            master_events.set(PollFlags::IN, self.to_us.len() < BUFFER);
            master_events.set(PollFlags::OUT, !self.to_container.is_empty());
            let none = PollFlags::empty();
            let only_if = |wanted: bool, events| if wanted { events } else { none };
            let holds_back = !self.to_us.is_empty();
            let mut polled = [
                PollFd::from_borrowed_fd(
                    rustix::stdio::stdin(),
                    only_if(read_stdin, PollFlags::IN),
                ),
                PollFd::from_borrowed_fd(
                    rustix::stdio::stdout(),
                    only_if(holds_back, PollFlags::OUT),
                ),
                // `poll(2)` would report a hung-up terminal again and again.
                if drained {
                    PollFd::new(signals, none)
                } else {
                    PollFd::new(&self.master, master_events)
                },
                PollFd::from_borrowed_fd(pidfd, only_if(!ended, PollFlags::IN)),
                PollFd::new(signals, PollFlags::IN),
                Relay::polled(relay, signals),
            ];
            // After the container's end, we pass on the rest in the terminal without waiting for
            // more.
            let limit = (ended && !holds_back).then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
            match rustix::event::poll(&mut polled, limit.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("wait for the terminal"),
            }
            let [stdin, stdout, mut master, process, signal, said] =
                polled.map(|polled| polled.revents());
            if drained {
                master = PollFlags::empty();
            }
            ended |= !process.is_empty();
            if let (true, Some(relay)) = (said.contains(PollFlags::IN), relay) {
                relay.pass()?;
            }
            if !signal.is_empty() {
                for signal in crate::signals::read(signals)? {
                    if signal == libc::SIGWINCH {
                        self.resize();
                    } else {
                        forward(signal);
                    }
                    // The output is not being read, and this signal asks for an end.
                    if ended && crate::signals::ENDING.contains(&signal) {
                        return Ok(());
                    }
                }
            }
            if read_stdin && !stdin.is_empty() {
                self.stdin_open = receive_into(rustix::stdio::stdin(), &mut self.to_container);
            }
            if master.contains(PollFlags::OUT) {
                send_from(self.master.as_fd(), &mut self.to_container);
            }
            // Signals are passed on meanwhile: a reader that does not read must not block this
            // process.
            if holds_back && !stdout.is_empty() {
                send_from(rustix::stdio::stdout(), &mut self.to_us);
            }
            let mut more = false;
            if master.contains(PollFlags::IN) {
                more = receive_into(self.master.as_fd(), &mut self.to_us);
            }
            // A hang-up means that no process in the container has the terminal open. A process may
            // open it again.
            drained |= ended && !more;
            if drained && self.to_us.is_empty() {
                return Ok(());
            }
            if !ended && master.contains(PollFlags::HUP) && !master.contains(PollFlags::IN) {
                rustix::event::poll(
                    &mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)],
                    Some(&HUNG_UP),
                )?;
            }
        }
    }

    fn resize(&self) {
        // Not every standard input has a size.
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // The terminal may be gone. We cannot do anything about that.
            let _ =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, saved);
        }
    }
}

const BUFFER: usize = 8192;

/// How long to ignore a hung-up terminal, which `poll(2)` reports at once and for ever.
const HUNG_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Returns false at the end of the stream. A pty answers EIO for that.
fn receive_into(from: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> bool {
    let mut bytes = [0; BUFFER];
    match rustix::io::read(from, &mut bytes) {
        Ok(0) => false,
        Ok(length) => {
            buffer.extend_from_slice(&bytes[..length]);
            true
        }
        Err(error) => matches!(error, Errno::INTR | Errno::AGAIN),
    }
}

/// Returns false if the other side accepts no more bytes. The rest is dropped then.
fn send_from(to: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> bool {
    // The number of bytes that a pipe accepts without blocking after `poll(2)` has reported it
    // writable.
    const CHUNK: usize = 4096;
    match rustix::io::write(to, &buffer[..buffer.len().min(CHUNK)]) {
        Ok(length) => {
            buffer.drain(..length);
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Err(_) => {
            buffer.clear();
            false
        }
    }
}
