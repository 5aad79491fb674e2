//! The limits of a server: those of the command line, and defaults for the others.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::time::Duration;

use rt_engine::contract::HttpLimits;

use super::inside::DEEPEST;

/// The limits of a server (`docs/wasm-http.md`, "Limits").
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Requests that run at once.
    pub(crate) requests: usize,
    /// Further requests that guests of an app send to each other.
    pub(crate) inside: usize,
    pub(crate) connections: usize,
    /// The size of a request's body, in bytes.
    pub(crate) body: u64,
    /// The number of a request's headers.
    pub(crate) headers: usize,
    pub(crate) header_bytes: usize,
    pub(crate) header_time: Duration,
    pub(crate) idle_time: Duration,
    /// The time of a request, from its headers to the end of the response.
    pub(crate) request_time: Duration,
    pub(crate) grace: Duration,
    /// The memory of each instance, in bytes.
    pub(crate) memory: Option<u64>,
    /// The number of instructions of each instance.
    pub(crate) fuel: Option<u64>,
    /// Threads that wait for files and for names' addresses.
    pub(crate) threads: usize,
}

const REQUESTS: usize = 64;
const CONNECTIONS: usize = 1024;
const BODY: u64 = 10 << 20;
const HEADERS: usize = 100;
const HEADER_BYTES: usize = 32 << 10;
const HEADER_TIME: Duration = Duration::from_secs(10);
const IDLE_TIME: Duration = Duration::from_secs(60);
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Docker and podman kill a container 10 s after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);

/// What a running request needs besides the memory of its instance: its stack, the buffers of its
/// bodies, and wasmtime's own data. Measured: 110 kB.
const REQUEST_BYTES: u64 = 256 << 10;

/// What a connection needs while it waits. Measured: 6 kB here, and the kernel's buffers.
const CONNECTION_BYTES: u64 = 16 << 10;

/// Descriptors that are not connections: files, sockets of guests, and the server's own.
const OTHER_FILES: u64 = 64;

impl Settings {
    /// `memory` is what the container may use, in bytes, and `time` the limit of a request, in
    /// milliseconds. A small container has lower defaults.
    pub(crate) fn new(
        limits: &HttpLimits,
        memory: Option<u64>,
        time: Option<c_int>,
        fuel: Option<u64>,
    ) -> Settings {
        let fitting = |most: usize, share: u64, each: u64| {
            let fitting = memory.map_or(usize::MAX, |memory| size(memory / share / each));
            most.min(fitting).max(1)
        };
        let files = size(most_files().saturating_sub(OTHER_FILES)).max(1);
        let connections = fitting(CONNECTIONS, 8, CONNECTION_BYTES).min(files);
        let time_of = |limit: Option<u64>, default| limit.map_or(default, Duration::from_millis);
        Settings {
            requests: limits.requests.map_or_else(|| fitting(REQUESTS, 4, REQUEST_BYTES), size),
            inside: 0,
            connections: limits.connections.map_or(connections, |it| size(it).min(files)),
            body: limits.body.unwrap_or(BODY),
            headers: limits.headers.map_or(HEADERS, size),
            header_bytes: limits.header_bytes.map_or(HEADER_BYTES, size),
            header_time: time_of(limits.header_timeout, HEADER_TIME),
            idle_time: time_of(limits.idle_timeout, IDLE_TIME),
            request_time: time_of(time.and_then(|it| it.try_into().ok()), REQUEST_TIME),
            grace: time_of(limits.grace, GRACE),
            memory: limits.memory,
            fuel,
            threads: 16,
        }
    }

    /// Lets guests send requests to each other.
    pub(crate) fn allow_inside(&mut self) {
        self.inside = (self.requests / 2).max(DEEPEST);
    }

    /// How many instances there are at once, at most.
    pub(crate) fn instances(&self) -> usize {
        self.requests.saturating_add(self.inside)
    }

    /// The memory that the server itself may need, in bytes.
    pub(crate) fn reserve(&self) -> u64 {
        let bytes = |count: usize, each: u64| (count as u64).saturating_mul(each);
        bytes(self.instances(), REQUEST_BYTES)
            .saturating_add(bytes(self.connections, CONNECTION_BYTES))
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The number of files that this process may open (`proc_pid_limits(5)`).
fn most_files() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_container_has_lower_defaults() {
        let of = |memory| Settings::new(&HttpLimits::default(), memory, None, None);
        let (all, small) = (of(None), of(Some(16 << 20)));
        assert_eq!((all.requests, small.requests), (REQUESTS, 16));
        assert!(small.connections <= 128, "{}", small.connections);
        for memory in [0, 4 << 20, 64 << 20, 1 << 40] {
            assert!(of(Some(memory)).reserve() <= memory.max(1 << 20), "{memory}");
        }
    }

    #[test]
    fn what_is_given_stands() {
        let limits = HttpLimits { requests: Some(9), grace: Some(5), ..HttpLimits::default() };
        let settings = Settings::new(&limits, Some(1 << 20), Some(7), None);
        assert_eq!((settings.requests, settings.grace), (9, Duration::from_millis(5)));
        assert_eq!(settings.request_time, Duration::from_millis(7));
    }
}
