//! Messages that carry descriptors over a Unix socket (`SCM_RIGHTS`, unix(7)).
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// `SCM_MAX_FD`: one message holds at most this many descriptors (unix(7)).
pub(crate) const MOST: usize = 253;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST));

/// Sends one message. A peer that has gone is an error (`EPIPE`), and no signal.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
}

/// Receives one message: the number of its bytes, and its descriptors, which an exec closes.
///
/// A message that the kernel had to cut is refused (`EBADMSG`), and so is one with more than `most`
/// descriptors. All descriptors of such a message are closed. The kernel leaves descriptors out, by
/// `MSG_CTRUNC` alone, when this process may not have more open (`RLIMIT_NOFILE`). Whoever took the
/// others would, for example, enter only some of its cgroups.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    most: usize,
) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    // The kernel closes what does not fit.
    let fits = SPACE.min(rustix::cmsg_space!(ScmRights(most)));
    let mut ancillary = RecvAncillaryBuffer::new(&mut space[..fits]);
    let buffers = &mut [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(socket, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    let is_cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if is_cut || descriptors.len() > most {
        return Err(Errno::BADMSG);
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use rustix::io::FdFlags;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::process::{Resource, Rlimit, WaitOptions};

    use super::*;
    use crate::syscall;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a pair")
    }

    /// The answer to a message with so many descriptors, all of one pipe, of which at most `most`
    /// are wanted. Whether all of them are closed by then.
    fn answer(sent: usize, most: usize) -> (Result<(usize, Vec<OwnedFd>)>, bool) {
        let (one, other) = pair();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        send(one.as_fd(), b"text", &vec![writer.as_fd(); sent]).expect("sent");
        drop(writer);
        let answer = receive(other.as_fd(), &mut [0; 8], most);
        // The end of the stream, where somebody could still write: EAGAIN.
        let closed = rustix::io::read(&reader, &mut [0; 1]) == Ok(0);
        (answer, closed)
    }

    #[test]
    fn descriptors_arrive_and_an_exec_closes_them() {
        for count in [0, 1, 2, MOST] {
            let (length, descriptors) = answer(count, count).0.expect("received");
            assert_eq!((length, descriptors.len()), (4, count));
            for descriptor in descriptors {
                let flags = rustix::io::fcntl_getfd(&descriptor).expect("flags");
                assert_eq!(flags, FdFlags::CLOEXEC);
            }
        }
        let (one, _other) = pair();
        let many = vec![one.as_fd(); MOST + 1];
        assert_eq!(send(one.as_fd(), b"text", &many), Err(Errno::INVAL));
    }

    #[test]
    fn more_descriptors_than_wanted_are_refused_and_closed() {
        // Some fit beside those that are wanted, and some do not.
        for (sent, most) in [(1, 0), (2, 1), (3, 1), (4, 1), (100, 1), (3, 2), (MOST, MOST - 1)] {
            let (answer, closed) = answer(sent, most);
            assert_eq!(answer.err(), Some(Errno::BADMSG), "{sent} of {most}");
            assert!(closed, "{sent} of {most}");
        }
    }

    /// In a process of its own, whose limit it is.
    #[test]
    fn a_message_whose_descriptors_cannot_all_be_opened_is_refused() {
        let (one, other) = pair();
        send(one.as_fd(), b"text", &[one.as_fd(); 3]).expect("sent");
        let Some(pid) = syscall::clone3(0, None).expect("a child") else {
            // No more than there are. Nothing here allocates: other threads may have held a lock.
            let next = rustix::io::dup(&other).expect("a number");
            let current = Some(next.as_raw_fd().unsigned_abs().into());
            drop(next);
            let limit = Rlimit { current, ..rustix::process::getrlimit(Resource::Nofile) };
            rustix::process::setrlimit(Resource::Nofile, limit).expect("a limit");
            let answer = receive(other.as_fd(), &mut [0; 8], 3);
            syscall::exit_now(i32::from(answer.err() != Some(Errno::BADMSG)))
        };
        let ended = rustix::process::waitpid(Some(pid), WaitOptions::empty()).expect("its end");
        assert_eq!(ended.and_then(|(_, status)| status.exit_status()), Some(0));
    }

    #[test]
    fn a_message_that_was_cut_is_refused() {
        let (one, other) = pair();
        send(one.as_fd(), b"a long text", &[]).expect("sent");
        assert_eq!(receive(other.as_fd(), &mut [0; 8], 0).err(), Some(Errno::BADMSG));
    }
}
