//! Runs the tests in several lanes, one after the other, and adds up the results.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::again;
use crate::rows::{self, Results};

pub(crate) fn run(lanes: &[&str], args: &[String]) -> ExitCode {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lane");
    let Ok(program) = std::env::current_exe() else {
        eprintln!("find the test program itself");
        return ExitCode::FAILURE;
    };
    let mut all: Vec<(String, Results)> = Vec::new();
    let mut good = true;
    for lane in lanes {
        println!("\n== lane {lane}");
        let file =
            std::env::temp_dir().join(format!("rt-tests-results-{}-{lane}", std::process::id()));
        let mut command = Command::new(&script);
        if args.is_empty() && !all.is_empty() {
            command.env(again::VARIABLE, "lane");
        }
        command.arg(lane).arg(&program).args(args);
        if !args.iter().any(|arg| arg.starts_with("--test-threads")) {
            command.arg(format!("--test-threads={}", threads()));
        }
        let status = command.arg("--results").arg(&file).env("RT_TESTS_LANE", lane).status();
        good &= status.is_ok_and(|status| status.success());
        if !file.exists() {
            println!("lane {lane} ended before its tests did");
            good = false;
        }
        all.push(((*lane).to_owned(), rows::read(&file)));
        // The results are read. A file that stays in /tmp does no harm.
        let _ = std::fs::remove_file(&file);
    }
    // With a filter, most rows have no test that could show them.
    if args.is_empty() {
        let missing = rows::print(&all, false);
        for row in &missing {
            println!("no lane has shown the row `{row}`");
        }
        good &= missing.is_empty();
    }
    println!("\nlane      passed  failed skipped");
    let mut total = [0; 3];
    for (lane, results) in &all {
        let count = |end: &str| results.values().filter(|other| *other == end).count();
        let counts = [count("passed"), count("failed"), count("skipped")];
        println!("{lane:8}{:>8}{:>8}{:>8}", counts[0], counts[1], counts[2]);
        for (sum, number) in total.iter_mut().zip(counts) {
            *sum += number;
        }
    }
    let [passed, mut failed, skipped] = total;
    // A lane that ended before its tests did counts as a failure too.
    failed += usize::from(failed == 0 && !good);
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many tests run at the same time. They wait more than half of the time.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |processors| 2 * processors.get())
}

/// `rows NAME=FILE…`: prints the rows for the results that `--results` has left in the machine.
pub(crate) fn rows(files: &[String]) -> ExitCode {
    let read = |argument: &String| {
        let (name, file) = argument.split_once('=').unwrap_or(("", argument));
        (name.to_owned(), rows::read(&PathBuf::from(file)))
    };
    let lanes: Vec<(String, Results)> = files.iter().map(read).collect();
    let missing = rows::print(&lanes, true);
    for row in &missing {
        println!("the machine has not shown the row `{row}`");
    }
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
