//! The messages between the runtime process and a container's first process while the container is
//! made.
//!
//! The two processes share a socket pair of type `SOCK_SEQPACKET`. A message is a tag and, for some
//! tags, a text. When one side dies, the other reads the end of the stream, so neither waits for a
//! dead peer. If the runtime process is killed half-way, init ends too.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt::Timeout};

use crate::interrupt::{self, Watch};
use crate::log;
use crate::scm_rights;

/// The files that the runtime process sends to init for a module.
#[derive(Debug)]
pub(crate) struct Given {
    /// The engine's directory.
    pub(crate) engine: OwnedFd,
    /// The plugins' directory.
    pub(crate) plugins: Option<OwnedFd>,
    /// The descriptor by which init enters the cgroup for modules.
    pub(crate) cgroup: Option<OwnedFd>,
    /// The module's native code.
    pub(crate) native: Option<OwnedFd>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    /// To init: the id mappings of the new user namespace are written.
    Mapped,
    /// To init: its cgroup exists and its limits are in force. The `tasks` files by which init has
    /// to enter the cgroup come with the message; none if init is in the cgroup already. The memory
    /// limit in bytes is for an engine.
    Cgroup { memory: Option<u64> },
    /// To init: the device rules of its cgroup are in force.
    Restricted,
    /// From the process that joins namespaces for init: init's pid.
    Init(i32),
    /// From init: the namespaces and mounts are made, and the root is not changed yet. Now the
    /// `prestart` and `createRuntime` hooks can run.
    BeforePivot,
    /// From init: a mount that requires an id mapping comes with the message, with the number of
    /// its entry.
    Map(usize),
    /// To init: the mount's ids are mapped.
    MapDone,
    /// To init: the `prestart` and `createRuntime` hooks have run.
    HooksDone,
    /// From init: the program is a module, which comes with the message, and the engine of this
    /// number will run it.
    Module(usize),
    /// To init: the engine. Its directory comes with the message, followed by the files that exist:
    /// the plugins' directory, the descriptor of the cgroup for modules, and the module's native
    /// code.
    Engine { plugins: bool, cgroup: bool, native: bool },
    /// From init: the program consists of several modules. One of them comes with the message, and
    /// this is its name.
    Part(String),
    /// To init: the native code of that module comes with the message.
    PartNative,
    /// From init: everything is done, and init waits for the start.
    Ready,
    /// To init: the state is written, so commands can find the container. From now on, init may
    /// outlive the runtime process.
    Recorded,
    /// To init: start; the state is written. Used only if there is no fifo to wait on.
    Start,
    /// From init: it loads a seccomp filter now, whose listener will have this number.
    Listener(i32),
    /// From the process that changes a container's mounts: the added mount of this number is gone.
    Gone(usize),
    /// From init: a line for the log, after its level.
    Said(String),
    /// From init: why it gave up, on one line.
    Failed(String),
}

impl Message {
    /// Writes a line for the log. Returns any other message.
    pub(crate) fn unless_said(self) -> Option<Message> {
        match self {
            Message::Said(line) => {
                log::write(&line);
                None
            }
            message => Some(message),
        }
    }
}

/// The socket is closed when the last clone is gone. Only the [log](Socket::carry_log) has a clone.
#[derive(Clone, Debug)]
pub(crate) struct Socket(Arc<OwnedFd>);

/// The longest message, because a message must fit a receive buffer. Longer error texts are cut.
const LONGEST: usize = 8192;

pub(crate) fn pair() -> Result<(Socket, Socket)> {
    let (one, other) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("make a socket pair")?;
    // `one` is the runtime process's end. That process may have blocked the signals that are to end
    // it, so its waits are limited.
    let turn = Some(interrupt::TURN);
    rustix::net::sockopt::set_socket_timeout(&one, Timeout::Recv, turn)
        .context("limit the wait for a message")?;
    Ok((Socket(Arc::new(one)), Socket(Arc::new(other))))
}

impl Socket {
    /// In a process that the runtime process makes: sends its lines for the log over this socket,
    /// until [`log::end`].
    pub(crate) fn carry_log(&self) {
        let socket = self.clone();
        // A log that cannot be written must not fail the reported step.
        log::forward(move |line| drop(socket.send(&Message::Said(line))));
    }

    pub(crate) fn send(&self, message: &Message) -> Result<()> {
        self.send_with(message, &[])
    }

    /// Sends open files along with the message.
    pub(crate) fn send_with(&self, message: &Message, files: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = encode(message);
        ensure!(files.len() <= scm_rights::MOST, "send {} files at once", files.len());
        let sent = if files.is_empty() {
            // Not sendmsg(2): init may be under the container's filter, which need not allow that
            // call. SIGPIPE is ignored, or ends an init whose runtime process has gone.
            rustix::io::write(&self.0, &bytes).map(drop)
        } else {
            scm_rights::send(self.0.as_fd(), &bytes, files)
        };
        match sent {
            // The other side has died. The process that waits for its next message finds that out,
            // and why.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error).context("send to the other process"),
        }
    }

    /// The number of the next descriptor that this process opens.
    pub(crate) fn next_descriptor(&self) -> Result<i32> {
        Ok(self.0.try_clone()?.as_raw_fd())
    }

    /// Returns `None` if the other side is gone.
    pub(crate) fn receive(&self) -> Result<Option<Message>> {
        let (mut buffer, mut watch) = ([0; LONGEST], Watch::default());
        loop {
            // Not recvmsg(2), for the same reason as in sending.
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => return decode(&buffer[..length]).map(Some),
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => watch.turn().context("wait for the other process")?,
                Err(error) => return Err(error).context("receive from the other process"),
            }
        }
    }

    /// Why the other side gave up, if it has said so. Does not wait, because the other side has
    /// ended.
    pub(crate) fn last_words(&self) -> Option<String> {
        /// More messages than either side sends without an answer, lines for the log included.
        const MOST: u32 = 64;
        let mut buffer = [0; LONGEST];
        for _ in 0..MOST {
            match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return None,
                Ok((length, _)) => {
                    let message = decode(&buffer[..length]).map(Message::unless_said);
                    if let Ok(Some(Message::Failed(text))) = message {
                        return Some(text);
                    }
                }
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Receives a message and the files that come with it.
    pub(crate) fn receive_with(&self) -> Result<(Option<Message>, Vec<OwnedFd>)> {
        let (mut buffer, mut watch) = ([0; LONGEST], Watch::default());
        let (length, files) = loop {
            match scm_rights::receive(self.0.as_fd(), &mut buffer, scm_rights::MOST) {
                Ok(received) => break received,
                // If the other side died with unread messages, the kernel reports ECONNRESET once,
                // before that side's last messages.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => watch.turn().context("wait for the other process")?,
                Err(error) => return Err(error).context("receive from the other process"),
            }
        };
        Ok((if length == 0 { None } else { Some(decode(&buffer[..length])?) }, files))
    }

    /// In init: waits for a certain message. If the runtime process is gone, init has nobody to
    /// report to.
    pub(crate) fn expect(&self, expected: &Message) -> Result<()> {
        match self.receive()? {
            Some(message) if message == *expected => Ok(()),
            other => bail!("waited for {expected:?}, got {other:?}"),
        }
    }

    /// In init: waits until its cgroup exists. Returns the memory limit, and the files by which
    /// init enters the cgroup.
    pub(crate) fn expect_cgroup(&self) -> Result<(Option<u64>, Vec<OwnedFd>)> {
        match self.receive_with()? {
            (Some(Message::Cgroup { memory }), files) => Ok((memory, files)),
            (other, _) => bail!("waited for the cgroup, got {other:?}"),
        }
    }

    /// In init: sends the runtime process a module and the number of its engine. Receives the files
    /// to run the module.
    pub(crate) fn ask_for_engine(&self, number: usize, module: BorrowedFd<'_>) -> Result<Given> {
        self.send_with(&Message::Module(number), &[module])?;
        match self.receive_with()? {
            (Some(Message::Engine { plugins, cgroup, native }), files) => {
                let mut files = files.into_iter();
                let mut take = |there: bool| if there { files.next() } else { None };
                Ok(Given {
                    engine: take(true).context("no engine came")?,
                    plugins: take(plugins),
                    cgroup: take(cgroup),
                    native: take(native),
                })
            }
            (other, _) => bail!("waited for the engine, got {other:?}"),
        }
    }

    /// In init: sends the runtime process a module of several, and receives its native code.
    pub(crate) fn ask_for_part(&self, name: &str, module: BorrowedFd<'_>) -> Result<OwnedFd> {
        self.send_with(&Message::Part(name.to_owned()), &[module])?;
        match self.receive_with()? {
            (Some(Message::PartNative), files) => {
                files.into_iter().next().context("no native code came")
            }
            (other, _) => bail!("waited for native code, got {other:?}"),
        }
    }

    /// In the runtime process: answers [`Socket::ask_for_engine`].
    pub(crate) fn give_engine(
        &self,
        engine: BorrowedFd<'_>,
        plugins: Option<BorrowedFd<'_>>,
        cgroup: Option<BorrowedFd<'_>>,
        native: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let message = Message::Engine {
            plugins: plugins.is_some(),
            cgroup: cgroup.is_some(),
            native: native.is_some(),
        };
        let files = [Some(engine), plugins, cgroup, native];
        self.send_with(&message, &files.into_iter().flatten().collect::<Vec<_>>())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn encode(message: &Message) -> Vec<u8> {
    let (tag, text) = match message {
        Message::Mapped => (b'M', Vec::new()),
        Message::Cgroup { memory } => {
            (b'G', memory.map(|limit| limit.to_string().into_bytes()).unwrap_or_default())
        }
        Message::Restricted => (b'D', Vec::new()),
        Message::Init(pid) => (b'I', pid.to_string().into_bytes()),
        Message::Listener(number) => (b'L', number.to_string().into_bytes()),
        Message::Gone(number) => (b'U', number.to_string().into_bytes()),
        Message::Map(number) => (b'A', number.to_string().into_bytes()),
        Message::MapDone => (b'Z', Vec::new()),
        Message::BeforePivot => (b'P', Vec::new()),
        Message::HooksDone => (b'H', Vec::new()),
        Message::Module(number) => (b'E', number.to_string().into_bytes()),
        Message::Engine { plugins, cgroup, native } => {
            (b'N', [plugins, cgroup, native].map(|&there| u8::from(there)).to_vec())
        }
        Message::Part(name) => (b'Q', name.bytes().take(LONGEST - 1).collect()),
        Message::PartNative => (b'Y', Vec::new()),
        Message::Ready => (b'R', Vec::new()),
        Message::Recorded => (b'W', Vec::new()),
        Message::Start => (b'S', Vec::new()),
        Message::Said(text) => (b'T', text.bytes().take(LONGEST - 1).collect()),
        Message::Failed(text) => (b'F', text.bytes().take(LONGEST - 1).collect()),
    };
    [vec![tag], text].concat()
}

fn decode(bytes: &[u8]) -> Result<Message> {
    let text = || String::from_utf8_lossy(&bytes[1..]).into_owned();
    Ok(match bytes[0] {
        b'M' => Message::Mapped,
        b'G' => {
            let limit = Some(text()).filter(|text| !text.is_empty());
            let memory = limit.map(|text| text.parse()).transpose();
            Message::Cgroup { memory: memory.context("parse a limit of memory")? }
        }
        b'D' => Message::Restricted,
        b'I' => Message::Init(text().parse().context("parse the process id of init")?),
        b'L' => Message::Listener(text().parse().context("parse the number of a descriptor")?),
        b'U' => Message::Gone(text().parse().context("parse the number of a mount")?),
        b'A' => Message::Map(text().parse().context("parse the number of a mount")?),
        b'Z' => Message::MapDone,
        b'P' => Message::BeforePivot,
        b'H' => Message::HooksDone,
        b'E' => Message::Module(text().parse().context("parse the number of an engine")?),
        b'N' => {
            let there = <[u8; 3]>::try_from(&bytes[1..]).context("parse what comes with it")?;
            let [plugins, cgroup, native] = there;
            Message::Engine { plugins: plugins == 1, cgroup: cgroup == 1, native: native == 1 }
        }
        b'Q' => Message::Part(text()),
        b'Y' => Message::PartNative,
        b'R' => Message::Ready,
        b'W' => Message::Recorded,
        b'S' => Message::Start,
        b'T' => Message::Said(text()),
        b'F' => Message::Failed(text()),
        tag => bail!("unknown message {tag:#x} from the other process"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (one, other) = pair().expect("a pair");
        for message in [
            Message::Mapped,
            Message::Cgroup { memory: None },
            Message::Cgroup { memory: Some(64 << 20) },
            Message::Restricted,
            Message::Init(4711),
            Message::Listener(7),
            Message::Gone(3),
            Message::Map(12),
            Message::MapDone,
            Message::BeforePivot,
            Message::HooksDone,
            Message::Module(1),
            Message::Engine { plugins: true, cgroup: false, native: true },
            Message::Part("/app.wasm".into()),
            Message::PartNative,
            Message::Ready,
            Message::Recorded,
            Message::Start,
            Message::Said("debug a step".into()),
            Message::Failed("no such file".into()),
        ] {
            one.send(&message).expect("sent");
            assert_eq!(other.receive().expect("received"), Some(message));
        }
        drop(one);
        assert_eq!(other.receive().expect("received"), None);
    }
}
