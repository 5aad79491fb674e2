//! What this process keeps for guests of WASI 0.3 until they read it: entries of directories, rows
//! and keys. No limit of a guest's own memory counts that, so all of it together has a limit.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Lower, StreamProducer, StreamResult, VecBuffer};

/// The most of all guests, in bytes, and the share of the container's memory if that is less.
const MOST: u64 = 16 << 20;
const SHARE: u64 = 32;

/// How long a guest waits until others have read theirs.
const TIME: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });

/// The unit of the limit, in bytes.
const UNIT: usize = 1 << 10;

/// The limit, and what is left of it. Both in units.
static ROOM: OnceLock<(u32, Arc<Semaphore>)> = OnceLock::new();

/// Sets the limit by the memory of the container, in bytes. Only the first call has an effect.
pub(crate) fn limit(memory: Option<u64>) {
    ROOM.get_or_init(|| {
        let most = memory.map_or(MOST, |memory| (memory / SHARE).min(MOST));
        let most = units(usize::try_from(most).unwrap_or(usize::MAX));
        (most, Arc::new(Semaphore::new(most as usize)))
    });
}

fn room() -> &'static (u32, Arc<Semaphore>) {
    limit(None);
    ROOM.wait()
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// A part of the limit.
#[derive(Debug)]
pub(crate) struct Kept(OwnedSemaphorePermit);

impl Kept {
    /// Takes a part of the limit for this many bytes. Waits for a while until there is room.
    pub(crate) async fn take(bytes: usize) -> Option<Kept> {
        let (most, left) = room();
        if units(bytes) > *most {
            return None;
        }
        let taken = Arc::clone(left).acquire_many_owned(units(bytes));
        timeout(TIME, taken).await.ok()?.ok().map(Kept)
    }

    /// Takes this many bytes, or all that there may be.
    pub(crate) async fn take_at_most(bytes: usize) -> Option<Kept> {
        Kept::take(bytes.min(room().0 as usize * UNIT)).await
    }

    /// How many bytes it is for.
    pub(crate) fn bytes(&self) -> usize {
        self.0.num_permits() * UNIT
    }

    /// Gives back what is more than this many bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let more = self.0.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.0.split(more));
    }
}

/// A stream of such items. Each is handed over when the guest reads it.
pub(crate) struct Items<T> {
    items: std::vec::IntoIter<T>,
    _kept: Kept,
}

impl<T> Items<T> {
    pub(crate) fn new(items: Vec<T>, kept: Kept) -> Items<T> {
        Items { items: items.into_iter(), _kept: kept }
    }
}

impl<D, T: Lower + Unpin + Send + Sync + 'static> StreamProducer<D> for Items<T> {
    type Item = T;
    type Buffer = VecBuffer<T>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, T, VecBuffer<T>>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if self.items.as_slice().is_empty() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        // No more than what the guest takes now: the rest stays here.
        let wanted = destination.remaining(&mut store).unwrap_or(1);
        let items: Vec<T> = self.items.by_ref().take(wanted).collect();
        destination.set_buffer(items.into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_guests_together_have_a_limit() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time();
        runtime.build().expect("a runtime").block_on(async {
            assert!(Kept::take(MOST as usize + 1).await.is_none());
            let mut all = Kept::take_at_most(usize::MAX).await.expect("all");
            assert_eq!(all.bytes(), MOST as usize);
            assert!(Kept::take(1).await.is_none());
            all.shrink(MOST as usize / 2);
            let half = Kept::take(MOST as usize / 2).await;
            assert!(half.is_some() && Kept::take(1).await.is_none());
            drop(all);
            assert!(Kept::take(1).await.is_some());
        });
    }
}
