//! Many containers at the same time: their memory, and their answers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::LinkNameSpaceType;
use serde_json::Value;

use super::targets::Targets;
use super::timed;
use crate::harness::{Outcome, Stop, ensure, wait_up_to};

const SERVERS: usize = 200;
const CALLERS: usize = 4;

/// A way to run a runtime, which several threads may use at once.
pub(super) type Way<'a> = &'a (dyn Fn() -> Command + Sync);

/// The memory of one of many waiting containers, in kB.
#[derive(Default)]
pub(super) struct Memory {
    /// Its own memory, and its share of shared memory.
    pub(super) own: u64,
    /// The part of it that is native code, and the native code that is in memory for it.
    pub(super) code: u64,
    pub(super) whole_code: u64,
}

/// Starts this number of containers of a bundle, waits until they sleep, and calls `look` with
/// their process ids.
pub(super) fn with_sleepers<T>(
    way: &dyn Fn() -> Command,
    bundle: &Path,
    number: usize,
    look: impl FnOnce(&[i64]) -> Outcome<T>,
) -> Outcome<T> {
    let ids: Vec<String> = (0..number).map(|number| format!("sleeper-{number}")).collect();
    for id in &ids {
        timed(way().args(["run", "--detach", "--bundle"]).arg(bundle).arg(id))?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let pids = ids.iter().map(|id| pid(way(), id)).collect::<Outcome<Vec<_>>>()?;
    let seen = look(&pids);
    for id in &ids {
        timed(way().args(["delete", "--force", id]))?;
    }
    seen
}

pub(super) fn pid(mut way: Command, id: &str) -> Outcome<i64> {
    let state = way.args(["state", id]).output()?;
    let state: Value = serde_json::from_slice(&state.stdout)?;
    Ok(state["pid"].as_i64().ok_or("no pid")?)
}

pub(super) fn memory(pids: &[i64]) -> Outcome<Memory> {
    let mut all = Memory::default();
    for pid in pids {
        // `smaps` shows the path of a single-file mount as `/`.
        let mut is_code = false;
        for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = || words[1].parse::<u64>();
            match words[0] {
                "Pss:" => {
                    all.own += number()?;
                    all.code += if is_code { number()? } else { 0 };
                }
                "Rss:" if is_code => all.whole_code += number()?,
                range if range.contains('-') => is_code = words.get(5) == Some(&"/"),
                _ => {}
            }
        }
    }
    let number = pids.len() as u64;
    Ok(Memory {
        own: all.own / number,
        code: all.code / number,
        whole_code: all.whole_code / number,
    })
}

/// A bundle that serves HTTP, and what it says.
pub(super) struct Service<'a> {
    pub(super) bundle: &'a Path,
    pub(super) port: u16,
    pub(super) path: &'a str,
    pub(super) hello: &'a str,
}

/// Many servers at the same time, each in its own network namespace.
pub(super) fn servers(
    way: Way<'_>,
    what: &str,
    service: &Service<'_>,
    targets: &mut Targets,
) -> Outcome {
    let ids: Vec<String> = (0..SERVERS).map(|number| format!("server-{number}")).collect();
    let in_parallel = |once: &(dyn Fn(&str) -> Outcome + Sync)| -> Outcome {
        let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
            let callers: Vec<_> = ids
                .chunks(SERVERS / CALLERS)
                .map(|ids| scope.spawn(move || ids.iter().try_for_each(|id| once(id))))
                .collect();
            let panicked = |_| Err(Stop::Failed("a caller panicked".into()));
            callers.into_iter().map(|caller| caller.join().unwrap_or_else(panicked)).collect()
        });
        outcomes.into_iter().collect()
    };
    let start = Instant::now();
    in_parallel(&|id| {
        let mut run = way();
        timed(run.args(["run", "--detach", "--bundle"]).arg(service.bundle).arg(id)).map(drop)
    })?;
    let rate = SERVERS as f64 / start.elapsed().as_secs_f64();
    let pids = ids.iter().map(|id| pid(way(), id)).collect::<Outcome<Vec<_>>>()?;
    let answering = pids.iter().filter(|pid| service.answers(**pid).is_ok()).count();
    let total = memory(&pids)?.own * SERVERS as u64;
    in_parallel(&|id| timed(way().args(["delete", "--force", id])).map(drop))?;
    let all = SERVERS as f64;
    targets.at_least(format!("of {SERVERS} {what} at once, answer"), all, answering as f64);
    targets.tell(format!("started in a second, by {CALLERS} callers at once"), rate);
    targets.tell(format!("PSS of all {SERVERS}, MB"), total as f64 / 1e3);
    Ok(())
}

impl Service<'_> {
    /// Sends a request to the server in a process's network namespace, as soon as it listens.
    pub(super) fn answers(&self, pid: i64) -> Outcome {
        in_network(pid, || {
            let mut stream = None;
            wait_up_to(Duration::from_secs(20), "it listens", || {
                stream = TcpStream::connect(("127.0.0.1", self.port)).ok();
                stream.is_some()
            })?;
            let mut stream = stream.ok_or("no connection")?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let path = self.path;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let is_good = answer.starts_with("HTTP/1.1 200 ") && answer.contains(self.hello);
            ensure(is_good, answer)
        })
    }
}

/// Does something in the network namespace of a process, where the loopback device is up.
pub(super) fn in_network<T: Send>(
    pid: i64,
    work: impl FnOnce() -> Outcome<T> + Send,
) -> Outcome<T> {
    let mut up = Command::new("nsenter");
    up.arg(format!("--net=/proc/{pid}/ns/net")).args(["ip", "link", "set", "lo", "up"]);
    timed(&mut up)?;
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    // Only this thread enters the namespace.
    let done = std::thread::scope(|scope| {
        let inside = || {
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
            work()
        };
        scope.spawn(inside).join()
    });
    done.unwrap_or_else(|_| Err(Stop::Failed("it panicked".into())))
}
