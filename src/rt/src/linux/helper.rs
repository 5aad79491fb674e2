//! A process of `rt` that does one thing for the runtime process, usually in other namespaces. The
//! helper answers [`Message::Ready`] or, with the cause, [`Message::Failed`].
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::sync::{self, Message, Socket};
use crate::{log, syscall};

#[derive(Debug)]
pub(crate) struct Helper {
    pub(crate) pid: Pid,
    /// When the runtime process closes this socket or ends, a reading helper gets the end of the
    /// stream.
    pub(crate) socket: Socket,
}

/// Makes a helper, with new namespaces by `flags` (`CLONE_NEW*`). The helper runs `work`, which
/// sends `Ready`, and ends. If `work` fails, the helper sends the cause. `what` is the step that an
/// error names if the process cannot be made.
pub(crate) fn start(
    flags: i32,
    what: &'static str,
    work: impl FnOnce(&Socket) -> Result<()>,
) -> Result<Helper> {
    let (socket, theirs) = sync::pair()?;
    let Some(pid) = syscall::clone3(flags, None).context(what)? else {
        drop(socket);
        // The helper may enter a container, and must not hold a file of the host open there.
        log::end();
        let Err(error) = work(&theirs) else { syscall::exit_now(0) };
        // If this fails, the runtime process reads the end of the stream.
        let _ = theirs.send(&Message::Failed(format!("{error:#}")));
        syscall::exit_now(1)
    };
    Ok(Helper { pid, socket })
}

/// Lets the kernel kill this process when its parent ends, which is the runtime process
/// (`PR_SET_PDEATHSIG`). A change of the user cancels this.
pub(crate) fn end_with_the_runtime_process() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("end with the runtime process")
}

/// Fails unless `answer` is the answer of a helper that is ready. `who` is for the error about a
/// helper that sends another message, or has ended.
pub(crate) fn ready(answer: Option<Message>, who: &str) -> Result<()> {
    match answer {
        Some(Message::Ready) => Ok(()),
        Some(Message::Failed(text)) => bail!(text),
        other => bail!("{who} sent {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_is_ready_or_has_said_why_not() {
        ready(Some(Message::Ready), "the helper").expect("ready");
        for (answer, expected) in [
            (Some(Message::Failed("no way".into())), "no way"),
            (None, "the helper sent None"),
            (Some(Message::Start), "the helper sent Some(Start)"),
        ] {
            let error = ready(answer, "the helper").expect_err("not ready");
            assert_eq!(error.to_string(), expected);
        }
    }
}
