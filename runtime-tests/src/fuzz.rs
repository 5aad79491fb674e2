//! Generated bundles for the real program, as root, in the room: a throw-away copy of this host
//! (`runtime-tests/room`). Whatever a bundle contains, the runtime may change, read or execute
//! nothing outside the bundle, its state and its cgroup.
//!
//! `runtime-tests fuzz` runs for `RT_FUZZ_SECONDS`, with the seed in `RT_FUZZ_SEED`.
//! `RT_FUZZ_ROUND` repeats one round of a seed and prints all of it. The fuzzer reduces a finding
//! to the fewest twists that still show it.

mod bundle;
mod canary;
mod drive;
mod neighbour;
mod programs;
mod random;
mod tree;
mod words;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use canary::{Canary, ROUNDS};
use drive::{Plan, Played, play};
use random::Random;

/// The part of the rounds that must start a container, in percent. With fewer, the fuzzer tests
/// nothing.
const FEWEST_STARTED: u64 = 25;

/// The exit status of `room` if the room cannot be made on this host.
const CANNOT: i32 = 77;

/// Makes the room, and runs this program in it.
pub(crate) fn run() -> ExitCode {
    let runtime = match crate::harness::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("room");
    let Ok(tests) = std::env::current_exe() else {
        eprintln!("find the test program itself");
        return ExitCode::FAILURE;
    };
    let status = Command::new(room).arg(runtime).arg(tests).arg("fuzz-inside").status();
    let (passed, failed, skipped) = match status.map(|status| status.code()) {
        Ok(Some(0)) => (1, 0, 0),
        // Root can make the room on every host that the tests are for.
        Ok(Some(CANNOT)) if !rustix::process::geteuid().is_root() => (0, 0, 1),
        _ => (0, 1, 0),
    };
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The rounds, in the room.
pub(crate) fn inside() -> ExitCode {
    match rounds() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("the rounds ended early: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Findings that seem to have the same cause.
#[derive(Debug)]
struct Finding {
    times: u32,
    round: u64,
}

fn rounds() -> io::Result<bool> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("RT_FUZZ_SECONDS").unwrap_or(10);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("RT_FUZZ_SEED").unwrap_or(now.map_or(1, |now| now.subsec_nanos().into()));
    println!("RT_FUZZ_SEED={seed}");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut canary =
        Canary::make(&format!("canary-{:016x}", Random::of_round(seed, u64::MAX).next()))?;
    let folder = PathBuf::from(ROUNDS).join("round");

    if let Some(round) = number("RT_FUZZ_ROUND") {
        let plan = Plan::make(&mut Random::of_round(seed, round), &folder);
        let played = play(&plan, &canary, &folder, &format!("box-{round}"))?;
        println!("{plan:#?}\n{}", played.log.join("\n"));
        for (kind, detail) in &played.findings {
            println!("FOUND: {kind}: {detail}");
        }
        return Ok(played.findings.is_empty());
    }

    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut started, mut refused, mut commands, mut round) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut found: BTreeMap<String, Finding> = BTreeMap::new();
    while Instant::now() < end {
        let plan = Plan::make(&mut Random::of_round(seed, round), &folder);
        let played = play(&plan, &canary, &folder, &format!("box-{round}"))?;
        started += u64::from(played.started > 0);
        refused += u64::from(played.refused > 0);
        commands += u64::from(played.commands);
        if let Some(&(kind, _)) = played.findings.first() {
            canary.mend()?;
            let (plan, played) = reduce(plan, played, kind, &mut canary, &folder)?;
            let cause = format!("{kind}, by {}", causes(&plan));
            let finding = found.entry(cause).or_insert_with(|| {
                println!("\nround {round}: {}", describe(&plan, &played));
                Finding { times: 0, round }
            });
            finding.times += 1;
        }
        round += 1;
    }
    println!(
        "{round} bundles, {started} started a container, {refused} were refused, {commands} commands"
    );
    for (cause, finding) in &found {
        println!("FOUND {} times, first in round {}: {cause}", finding.times, finding.round);
    }
    if started * 100 < round * FEWEST_STARTED {
        println!("too few containers have started: this tests nothing");
        return Ok(false);
    }
    Ok(found.is_empty())
}

/// Removes the twists and steps that the finding does not need.
fn reduce(
    mut plan: Plan,
    mut played: Played,
    kind: &str,
    canary: &mut Canary,
    folder: &Path,
) -> io::Result<(Plan, Played)> {
    let mut number = 0;
    let mut shows = |plan: &Plan, canary: &mut Canary| -> io::Result<Option<Played>> {
        // A finding that depends on a race may need more than one try.
        for _ in 0..3 {
            number += 1;
            let played = play(plan, canary, folder, &format!("less-{number}"))?;
            if !played.findings.is_empty() {
                canary.mend()?;
            }
            if played.findings.iter().any(|(other, _)| *other == kind) {
                return Ok(Some(played));
            }
        }
        Ok(None)
    };
    for at in (0..plan.steps.len()).rev() {
        let mut less = plan.clone();
        less.steps.remove(at);
        if let Some(less_played) = shows(&less, canary)? {
            (plan, played) = (less, less_played);
        }
    }
    for at in (0..plan.twists.len()).rev() {
        let mut less = plan.clone();
        less.twists.remove(at);
        if let Some(less_played) = shows(&less, canary)? {
            (plan, played) = (less, less_played);
        }
    }
    Ok((plan, played))
}

/// The kinds of a plan's twists and steps, without details.
fn causes(plan: &Plan) -> String {
    let name = |text: String| {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        words.take(3).collect::<Vec<_>>().join(" ")
    };
    let twists = plan.twists.iter().map(|twist| match twist {
        bundle::Twist::Set(keys, _) | bundle::Twist::Push(keys, _) => keys.join("."),
        other => name(format!("{other:?}")),
    });
    let steps = plan.steps.iter().map(|step| name(format!("{step:?}")));
    let mut all: Vec<String> = twists.chain(steps).collect();
    all.sort();
    all.dedup();
    all.join(", ")
}

fn describe(plan: &Plan, played: &Played) -> String {
    let mut text = String::new();
    for (kind, detail) in &played.findings {
        text += &format!("{kind}: {detail:.1000}\n");
    }
    for twist in &plan.twists {
        text += &format!("  {twist:.600?}\n");
    }
    if !plan.argument.is_empty() {
        text += &format!("  the program: {}\n", plan.argument);
    }
    for line in &played.log {
        text += &format!("  {line}\n");
    }
    text
}
