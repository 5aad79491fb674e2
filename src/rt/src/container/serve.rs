//! The runtime process, while another process becomes a program: answers that process until it is
//! ready, and finds out how it ended if it does not become ready. `create` and `exec` share this.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Error, Result, anyhow, bail};
use oci_spec::runtime::Process;
use rustix::process::Pid;

use crate::container::becoming;
use crate::container::patience::Patience;
use crate::engine::{Directory, Engines, Found};
use crate::linux::cgroups;
use crate::linux::namespaces::{self, Ending};
use crate::linux::seccomp::{Filter, Receiver};
use crate::state::{Run, State, Status};
use crate::sync::{Message, Socket};
use crate::workload::Rights;

/// The process that becomes a program, seen from the runtime process.
#[derive(Clone, Copy)]
pub(super) struct Child<'a> {
    /// The name of the process in errors.
    pub(super) name: &'static str,
    /// The probable cause if the process was killed (SIGKILL), for errors.
    pub(super) killer: Option<&'static str>,
    pub(super) socket: &'a Socket,
    pub(super) pid: Pid,
    pub(super) pidfd: &'a OwnedFd,
}

impl Child<'_> {
    /// Ends the process after an error, and returns the error to report. The process may be in any
    /// state, and its exit code is not interesting. If it has given up, its own message matters,
    /// and not the errors that follow from it.
    pub(super) fn give_up(self, error: Error) -> Error {
        cgroups::end(self.pid, self.pidfd.as_fd());
        self.socket.last_words().map_or(error, Error::msg)
    }

    /// Why the process has ended without a message. `left` is [`becoming::what_is_left`].
    fn how_it_died(self, left: &str) -> Error {
        let name = self.name;
        match (namespaces::ending(self.pid), self.killer) {
            (Ok(Some(Ending::Signal(libc::SIGKILL))), Some(cause)) => {
                anyhow!("{name} was killed: {cause}")
            }
            (Ok(Some(Ending::Signal(signal))), _) => {
                anyhow!("{name} was killed by signal {signal}{left}")
            }
            _ => anyhow!("{name} ended without a message{left}"),
        }
    }
}

/// What the runtime process has for such a process.
pub(super) struct Offer<'a> {
    pub(super) process: &'a Process,
    /// The engines that may run a module, if the container asks for one.
    pub(super) engines: Option<&'a Engines<'a>>,
    /// The rights of a module.
    pub(super) rights: &'a Rights,
    /// The way into the cgroup for modules.
    pub(super) modules: Option<OwnedFd>,
    pub(super) filter: Option<&'a Filter>,
    /// The receiver of the filter's listener.
    pub(super) agent: Option<&'a Receiver>,
    /// The container's status, for the agent.
    pub(super) status: Status,
}

/// The differences between the commands that [attend] a process.
pub(super) trait Command {
    fn state(&self) -> &State;

    /// Runs when a module has got its engine.
    fn note_engine(&mut self, _: &Served) -> Result<()> {
        Ok(())
    }

    /// Answers a message that only the processes of this command send. Returns false if there is no
    /// such message.
    fn answer(&mut self, _: &Message, _: &[OwnedFd]) -> Result<bool> {
        Ok(false)
    }
}

/// Answers a process until it is ready. Returns the engine of a module.
pub(super) fn attend(
    child: Child<'_>,
    offer: &Offer<'_>,
    patience: &Patience,
    command: &mut dyn Command,
) -> Result<Option<Served>> {
    let mut served = None;
    loop {
        let (message, files) = patience.receive_with(child.socket, child.pid)?;
        match message {
            Some(Message::Module(number)) => {
                let engine =
                    give_engine(child.socket, offer, number, files.first(), command.state())?;
                command.note_engine(&engine)?;
                served = Some(engine);
            }
            Some(Message::Part(name)) => {
                let module = (name.as_str(), files.first());
                give_part(child.socket, served.as_ref(), offer.rights, module, command.state())?;
            }
            Some(Message::Listener(number)) => {
                if let Some(agent) = offer.agent {
                    let report = command.state().report(offer.status);
                    agent.serve(child.pidfd, number, child.pid, &report)?;
                }
            }
            Some(Message::Ready) => return Ok(served),
            Some(Message::Failed(text)) => bail!(text),
            Some(message) => {
                if !command.answer(&message, &files)? {
                    bail!("{} sent {message:?}", child.name);
                }
            }
            None => {
                let left = becoming::what_is_left(offer.process, offer.filter);
                return Err(child.how_it_died(left));
            }
        }
    }
}

/// The engine that runs a module, and the module's native code, if there is any.
pub(super) struct Served {
    directory: Directory,
    found: Found,
}

impl Served {
    /// The engine's entry in the state.
    pub(super) fn run(&self) -> Run {
        self.directory.run(&self.found)
    }

    /// Has the module compiled in the background, if it should be.
    pub(super) fn compile_later(self) {
        if let Some(native) = &self.directory.native {
            native.compile_later(self.found.later);
        }
    }
}

/// Answers a process that has found a module for the engine of this number. Sends the engine, and
/// the module's native code.
fn give_engine(
    socket: &Socket,
    offer: &Offer<'_>,
    number: usize,
    module: Option<&OwnedFd>,
    state: &State,
) -> Result<Served> {
    let engines = offer.engines.context("no engine was found")?;
    let directory = engines.open(number)?;
    let name = &offer.process.args().as_deref().unwrap_or_default()[0];
    let found = directory.look_up(offer.rights.wish(), module, name, state)?;
    let plugins = engines.plugins.as_ref().map(|plugins| plugins.mount.as_fd());
    let (cgroup, native) = (offer.modules.as_ref().map(AsFd::as_fd), found.native.as_ref());
    socket.give_engine(directory.mount.as_fd(), plugins, cgroup, native.map(AsFd::as_fd))?;
    Ok(Served { directory, found })
}

/// Answers a process that has found one of several modules for the engine that it has got. Sends
/// the module's native code.
fn give_part(
    socket: &Socket,
    served: Option<&Served>,
    rights: &Rights,
    (name, module): (&str, Option<&OwnedFd>),
    state: &State,
) -> Result<()> {
    let directory = &served.context("a part of a program came before the program")?.directory;
    let module = module.context("no module came")?;
    let found = directory.look_up(rights.wish(), Some(module), name, state)?;
    let native = found.native.with_context(|| format!("`{name}` has no native code"))?;
    socket.send_with(&Message::PartNative, &[native.as_fd()])
}
