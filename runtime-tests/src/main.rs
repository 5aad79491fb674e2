//! Black-box tests for OCI container runtimes. A test runs a runtime's command line, and reads the
//! effect from inside the containers. `docs/testing.md` says how to run the tests and how to add
//! one.
//!
//!  `runtime-tests [FILTER]` tests on the host as it is.
//!  `runtime-tests --lanes hybrid,v1,v2 [FILTER]` tests in each of these ways to mount cgroups.
//!  `runtime-tests bench` measures. `runtime-tests fuzz` generates bundles.
#![forbid(unsafe_code)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "a test reads better when a helper takes what it is given"
)]

mod again;
mod bench;
mod fuzz;
mod harness;
mod kubelet;
mod lanes;
mod rows;
mod topics;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use harness::{Host, Stop, Test};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The outcome of each test that has ended.
static ENDS: Mutex<rows::Results> = Mutex::new(rows::Results::new());

/// How long each test has taken.
static TIMES: Mutex<Vec<(&str, Duration)>> = Mutex::new(Vec::new());

/// Prints what has taken the most time, for those who want the suite to be faster.
fn print_times() {
    let Ok(mut tests) = TIMES.lock() else { return };
    let mut topics = BTreeMap::new();
    for (name, time) in &*tests {
        *topics.entry(again::topic_of(name)).or_default() += *time;
    }
    let mut topics: Vec<(&str, Duration)> = topics.into_iter().collect();
    for (what, times) in [("topics", &mut topics), ("tests", &mut *tests)] {
        times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let total: Duration = times.iter().map(|(_, time)| *time).sum();
        let longest =
            times.iter().take(24).map(|(name, time)| format!("{name} {}", time.as_secs()));
        let longest = longest.collect::<Vec<_>>().join(", ");
        println!("seconds of all {what}: {}; of the longest: {longest}", total.as_secs());
    }
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("bench") => return bench::run(&args[2..]),
        Some("fuzz") => return fuzz::run(),
        Some("fuzz-inside") => return fuzz::inside(),
        Some("rows") => return lanes::rows(&args[2..]),
        Some("--lanes") => {
            let Some(lanes) = args.get(2) else {
                eprintln!("--lanes needs a list of lanes");
                return ExitCode::from(2);
            };
            return lanes::run(&lanes.split(',').collect::<Vec<_>>(), &args[3..]);
        }
        _ => {}
    }
    // `lanes` passes the file in which to leave the outcome of each test.
    let results = match args.iter().position(|arg| arg == "--results") {
        Some(at) if at + 1 < args.len() => {
            args.remove(at);
            Some(args.remove(at))
        }
        _ => None,
    };
    let host: &'static Host = match Host::find() {
        Ok(host) => Box::leak(Box::new(host)),
        Err(error) => {
            eprintln!("prepare the tests: {error}");
            return ExitCode::FAILURE;
        }
    };
    let arguments = Arguments::from_iter(args);
    let trials = topics::all().into_iter().map(|(name, test)| {
        Trial::ignorable_test(name, move || {
            let begin = Instant::now();
            let outcome = again::unless_shown(host, name).and_then(|()| Test::run(host, test));
            let end = match &outcome {
                Ok(()) => "passed",
                Err(Stop::Skipped(_)) => "skipped",
                Err(Stop::Failed(_)) => "failed",
            };
            if let Ok(mut ends) = ENDS.lock() {
                ends.insert(name.to_owned(), end.to_owned());
            }
            if let Ok(mut times) = TIMES.lock() {
                times.push((name, begin.elapsed()));
            }
            match outcome {
                Ok(()) => Ok(Completion::Completed),
                Err(Stop::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
                Err(Stop::Failed(message)) => Err(Failed::from(message)),
            }
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    host.remove();
    print_times();
    if let (Some(path), Ok(ends)) = (results, ENDS.lock())
        && let Err(error) = rows::write(&path, &ends)
    {
        eprintln!("write `{path}`: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
