//! The bodies of requests and responses, counted and limited.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::sync::Notify;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::instances::Guest;
use super::requests::Exchange;
use super::statistics::{Counter, add};

/// What is known about the body of a request.
#[derive(Debug, Default)]
pub(super) struct Upload {
    /// The client has sent all of it.
    pub(super) is_whole: AtomicBool,
    /// The client has sent more than it may.
    is_too_large: AtomicBool,
    told: Notify,
}

impl Upload {
    /// Waits until the body is too large.
    pub(super) async fn too_large(&self) {
        while !self.is_too_large.load(Ordering::Relaxed) {
            self.told.notified().await;
        }
    }
}

/// The body of a request, as the guest reads it.
pub(super) struct Received<B> {
    body: B,
    left: u64,
    upload: Arc<Upload>,
    /// Whether a client sends it.
    is_counted: bool,
}

impl<B: Body> Received<B> {
    pub(super) fn new(body: B, most: u64, upload: Arc<Upload>, is_counted: bool) -> Received<B> {
        upload.is_whole.store(body.is_end_stream(), Ordering::Relaxed);
        Received { body, left: most, upload, is_counted }
    }
}

impl<B> Body for Received<B>
where
    B: Body<Data = Bytes> + Unpin,
    Error: From<B::Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if self.body.is_end_stream() || frame.is_none() {
            self.upload.is_whole.store(true, Ordering::Relaxed);
        }
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = frame.map_err(Error::from)?;
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        if self.is_counted {
            add(Counter::BytesReceived, length);
        }
        let Some(left) = self.left.checked_sub(length) else {
            self.upload.is_too_large.store(true, Ordering::Relaxed);
            self.upload.told.notify_one();
            return Poll::Ready(Some(Err(Error::HttpRequestBodySize(None))));
        };
        self.left = left;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a guest's response. The guest, which may still run, is told if nobody wants the
/// rest.
pub(super) struct Given {
    body: HyperOutgoingBody,
    guest: Guest,
}

impl Given {
    pub(super) fn new(body: HyperOutgoingBody, guest: Guest) -> Given {
        let mut given = Given { body, guest };
        given.leave_if_complete();
        given
    }

    fn leave_if_complete(&mut self) {
        if self.body.is_end_stream() {
            self.guest.leave();
        }
    }
}

impl Body for Given {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            // If the guest failed, its body ends as if it were complete.
            None if self.guest.has_failed() => Some(Err(Error::HttpResponseIncomplete)),
            None => {
                self.guest.leave();
                None
            }
            frame => frame,
        };
        self.leave_if_complete();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response, as the client gets it. The exchange ends with it.
pub(super) struct Sent {
    content: Content,
    exchange: Exchange,
    /// The guest has failed, and what it sent before is on its way.
    is_failing: bool,
}

enum Content {
    Own(Full<Bytes>),
    Guests(Given),
}

impl Sent {
    pub(super) fn own(text: Bytes, exchange: Exchange) -> Sent {
        Sent { content: Content::Own(Full::new(text)), exchange, is_failing: false }
    }

    pub(super) fn guests(body: Given, exchange: Exchange) -> Sent {
        Sent { content: Content::Guests(body), exchange, is_failing: false }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Sent { content, is_failing, .. } = &mut *self;
        let frame = match content {
            Content::Own(text) => {
                ready!(Pin::new(text).poll_frame(context)).map(|frame| frame.map_err(Error::from))
            }
            Content::Guests(body) => match ready!(Pin::new(&mut *body).poll_frame(context)) {
                // First, hyper sends what it has: after an error, it sends nothing.
                Some(Err(_)) if body.guest.has_failed() && !*is_failing => {
                    *is_failing = true;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                frame => frame,
            },
        };
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, Buf::remaining);
            self.exchange.sent(length as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_end_stream(),
            Content::Guests(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => text.size_hint(),
            Content::Guests(body) => body.size_hint(),
        }
    }
}
