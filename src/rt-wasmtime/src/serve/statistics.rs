//! Counters of a server, where `rt events` reads them (`docs/engine.md`, "Statistics").
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use rt_engine::process::{self, COUNTERS};

type Page = [AtomicU64; COUNTERS];

/// A page of numbers. It begins with the magic number and the number of counters.
static PAGE: OnceLock<&'static Page> = OnceLock::new();

/// The page that nobody reads, where the process cannot have another.
static UNREAD: Page = [const { AtomicU64::new(0) }; COUNTERS];

fn page() -> &'static Page {
    PAGE.get_or_init(|| process::statistics().unwrap_or(&UNREAD))
}

/// `rt-http1` in ASCII.
const MAGIC: u64 = u64::from_be_bytes(*b"rt-http1");

/// The counters, in the order of the page.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    /// Requests whose headers were read.
    Requests = 2,
    /// Requests that have not ended.
    RequestsNow,
    /// Responses by the first digit of their status, from 1 to 5. The other four follow.
    Responses,
    /// The time of all ended requests, in microseconds.
    Microseconds = 9,
    /// Ended requests that took at most 1 ms. The other five follow: 10 ms, 100 ms, 1 s, 10 s,
    /// more.
    Durations,
    Instances = 16,
    InstancesNow,
    /// Instances that ended with a trap.
    Traps,
    /// Requests whose time was over.
    TimedOut,
    /// Requests that got no instance, because too many ran or too little memory was left.
    Refused,
    Connections,
    ConnectionsNow,
    /// Connections that were closed to make room for others.
    ConnectionsDisplaced,
    /// Bytes of requests' and of responses' bodies.
    BytesReceived,
    BytesSent,
    /// Requests of guests to other servers, and those that were not allowed.
    Outbound,
    OutboundRefused,
    /// Lines of the access log that nobody read in time.
    LogLinesLost,
}

/// The number of counters.
const COUNT: u64 = Counter::LogLinesLost as u64 - 1;

/// Shows the counters to `rt events`.
pub(super) fn publish() {
    page()[0].store(MAGIC, Ordering::Relaxed);
    page()[1].store(COUNT, Ordering::Relaxed);
}

fn add_at(place: usize, number: u64) {
    page()[place].fetch_add(number, Ordering::Relaxed);
}

pub(super) fn add(counter: Counter, number: u64) {
    add_at(counter as usize, number);
}

pub(super) fn count(counter: Counter) {
    add(counter, 1);
}

/// Counts something that is there now, until this is dropped.
#[derive(Debug)]
pub(super) struct Now(Counter);

impl Now {
    pub(super) fn new(counter: Counter) -> Now {
        count(counter);
        Now(counter)
    }
}

impl Drop for Now {
    fn drop(&mut self) {
        page()[self.0 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts an ended request.
pub(super) fn count_response(status: StatusCode, took: Duration) {
    let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
    add_at(Counter::Responses as usize + class, 1);
    add(Counter::Microseconds, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    let most = [1, 10, 100, 1000, 10_000].map(Duration::from_millis);
    let place = most.iter().position(|most| took <= *most).unwrap_or(most.len());
    add_at(Counter::Durations as usize + place, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_follow_each_other() {
        assert_eq!(Counter::Responses as usize + 5, Counter::Microseconds as usize);
        assert_eq!(Counter::Durations as usize + 6, Counter::Instances as usize);
        assert_eq!(COUNT, 27);
        let before = page()[Counter::Responses as usize + 3].load(Ordering::Relaxed);
        count_response(StatusCode::NOT_FOUND, Duration::from_secs(100));
        let after = page()[Counter::Responses as usize + 3].load(Ordering::Relaxed);
        assert_eq!((before + 1, page()[15].load(Ordering::Relaxed)), (after, 1));
    }
}
