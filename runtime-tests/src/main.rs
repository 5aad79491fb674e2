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

mod bench;
mod fuzz;
mod harness;
mod kubelet;
mod lanes;
mod rows;
mod topics;

use std::process::ExitCode;
use std::sync::Mutex;

use harness::{Host, Stop, Test};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The outcome of each test that has ended.
static ENDS: Mutex<rows::Results> = Mutex::new(rows::Results::new());

/// Whether a test is slow and does not depend on the maker of the cgroups. With systemd, the tests
/// run in the emulated machine, which has already run these tests with cgroupfs.
fn is_the_same_by_systemd(name: &str) -> bool {
    let topics = [
        "attacks_files",
        "descriptors",
        "hostile_names",
        "other_users",
        "interrupts",
        "hold_ups",
        "wasm_shares",
        "wasi",
        "wasm_http",
    ];
    // A process enters its cgroup in another way with systemd, so it has other files open.
    let is_list = name.starts_with("descriptors::") && name.ends_with("_has_open_what_is_listed");
    let mut topic = name.split_once("::").map(|(topic, _)| topic).into_iter();
    !is_list && topic.any(|topic| topics.contains(&topic))
}

/// Whether this lane is not the first one that shows the test, and the test has the same result in
/// each lane. A run of selected tests skips none for that reason.
fn is_shown_already(name: &str) -> bool {
    let topics = [
        "bad_flags",
        "configuration",
        "kubernetes",
        "package",
        "wasm_components",
        "wasm_engine",
        "wasm_http_limits",
        "wasm_http_outbound",
        "wasm_http_protocol",
        "wasm_inspect",
        "wasm_source",
        "wasm_spin",
    ];
    let topic = name.split_once("::").map_or(name, |(topic, _)| topic);
    std::env::var_os(lanes::IS_AGAIN).is_some() && topics.contains(&topic)
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
            let outcome = if host.by_systemd && is_the_same_by_systemd(name) {
                harness::skip(
                    "it is the same with each way to make cgroups, and shown with cgroupfs",
                )
            } else if is_shown_already(name) {
                harness::skip("it is the same in each lane, and shown in the first one")
            } else {
                Test::run(host, test)
            };
            let end = match &outcome {
                Ok(()) => "passed",
                Err(Stop::Skipped(_)) => "skipped",
                Err(Stop::Failed(_)) => "failed",
            };
            if let Ok(mut ends) = ENDS.lock() {
                ends.insert(name.to_owned(), end.to_owned());
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
    if let (Some(path), Ok(ends)) = (results, ENDS.lock())
        && let Err(error) = rows::write(&path, &ends)
    {
        eprintln!("write `{path}`: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
