//! Runs the tests in several lanes, one after the other, and adds up.

use std::path::Path;
use std::process::{Command, ExitCode};

pub(crate) fn run(lanes: &[&str], args: &[String]) -> ExitCode {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lane");
    let Ok(program) = std::env::current_exe() else {
        eprintln!("find the test program itself");
        return ExitCode::FAILURE;
    };
    let mut table = Vec::new();
    let mut total = [0_u64; 3];
    let mut good = true;
    for lane in lanes {
        println!("\n== lane {lane}");
        let counts =
            std::env::temp_dir().join(format!("rt-tests-counts-{}-{lane}", std::process::id()));
        let status = Command::new(&script)
            .arg(lane)
            .arg(&program)
            .args(args)
            .arg("--counts")
            .arg(&counts)
            .env("RT_TESTS_LANE", lane)
            .status();
        good &= status.is_ok_and(|status| status.success());
        let text = std::fs::read_to_string(&counts).unwrap_or_default();
        // The counts are read; a file that is left in /tmp does no harm.
        let _ = std::fs::remove_file(&counts);
        let numbers: Vec<u64> = text.split(' ').filter_map(|number| number.parse().ok()).collect();
        let Ok(numbers) = <[u64; 3]>::try_from(numbers) else {
            println!("lane {lane} ended before its tests did");
            good = false;
            total[1] += 1;
            continue;
        };
        for (sum, number) in total.iter_mut().zip(numbers) {
            *sum += number;
        }
        table.push(format!("{lane:8}{:>8}{:>8}{:>8}", numbers[0], numbers[1], numbers[2]));
    }
    println!("\nlane      passed  failed skipped\n{}\n", table.join("\n"));
    let [passed, failed, skipped] = total;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
