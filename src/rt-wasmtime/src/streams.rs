//! The guest's standard output and standard error. wasmtime's own streams keep the last line in a
//! buffer, which is lost when a signal ends the process. These write at once.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// A standard stream of this process.
#[derive(Clone, Debug)]
pub(crate) struct Unbuffered(Arc<File>);

impl Unbuffered {
    pub(crate) fn new(stream: impl AsFd) -> Result<Unbuffered, String> {
        let own = stream.as_fd().try_clone_to_owned();
        let own = own.map_err(|error| format!("keep a standard stream: {error}"))?;
        Ok(Unbuffered(Arc::new(own.into())))
    }
}

impl IsTerminal for Unbuffered {
    fn is_terminal(&self) -> bool {
        io::IsTerminal::is_terminal(&*self.0)
    }
}

impl StdoutStream for Unbuffered {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

/// The most bytes that a guest may write in one call.
const MOST: usize = 64 << 10;

impl OutputStream for Unbuffered {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        (&*self.0).write_all(&bytes).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => StreamError::Closed,
            _ => StreamError::LastOperationFailed(error.into()),
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MOST)
    }
}

#[async_trait::async_trait]
impl Pollable for Unbuffered {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Unbuffered {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready((&*self.0).write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
