//! Many containers at once, and many mounts in one container: the throughput, and the growth of a
//! command's time with the number of containers.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::{Runtimes, Times, median, runtime, state_of, timed};
use crate::harness::{Host, Outcome, Stop};

const CONTAINERS: usize = 200;
const CALLERS: usize = 4;

/// The numbers of other containers that are alive when a command is timed.
const ALIVE: [usize; 3] = [10, 100, 1000];

/// The containers per second that four callers create at the same time and then delete.
pub(super) fn throughput(
    runtimes: &Runtimes,
    bundle: &Path,
    host: &Host,
) -> Outcome<Vec<(String, f64)>> {
    let mut rates = Vec::new();
    for (name, path) in runtimes {
        let start = Instant::now();
        let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    scope.spawn(move || -> Outcome {
                        let ids: Vec<String> = (0..CONTAINERS / CALLERS)
                            .map(|number| format!("crowd-{caller}-{number}"))
                            .collect();
                        for id in &ids {
                            timed(
                                runtime(path, host)
                                    .args(["create", "--bundle"])
                                    .arg(bundle)
                                    .arg(id),
                            )?;
                        }
                        for id in &ids {
                            timed(runtime(path, host).args(["delete", "--force", id]))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            let panicked = |_| Err(Stop::Failed("a caller panicked".into()));
            callers.into_iter().map(|caller| caller.join().unwrap_or_else(panicked)).collect()
        });
        outcomes.into_iter().collect::<Outcome>()?;
        rates.push((name.clone(), CONTAINERS as f64 / start.elapsed().as_secs_f64()));
    }
    Ok(rates)
}

/// The time of commands while other containers are alive: rows by number, then by runtime.
pub(super) fn growth(runtimes: &Runtimes, bundle: &Path, host: &Host) -> Outcome<Times> {
    let mut times = Times::new();
    let mut note = |row: String, name: &str, milliseconds: f64| {
        times.entry(row).or_default().entry(name.to_owned()).or_default().push(milliseconds);
    };
    // runc takes 20 ms for each container, so only the other runtimes are measured.
    for (name, path) in runtimes.iter().filter(|(name, _)| name != "runc") {
        let mut alive = 0;
        for target in ALIVE {
            while alive < target {
                let id = format!("alive-{alive}");
                timed(runtime(path, host).args(["create", "--bundle"]).arg(bundle).arg(id))?;
                alive += 1;
            }
            for round in 0..10 {
                let id = format!("one-{round}");
                let step = |args: &[&str]| timed(runtime(path, host).args(args).arg(&id));
                let folder = bundle.display().to_string();
                note(
                    format!("create beside {target}"),
                    name,
                    step(&["create", "--bundle", &folder])?,
                );
                note(format!("state beside {target}"), name, step(&["state"])?);
                note(format!("delete beside {target}"), name, step(&["delete", "--force"])?);
                note(format!("list of {target}"), name, timed(runtime(path, host).arg("list"))?);
            }
        }
        for number in 0..alive {
            timed(runtime(path, host).args(["delete", "--force", &format!("alive-{number}")]))?;
        }
    }
    Ok(times)
}

/// The peak memory of a command and of the processes that it waited for, in kB.
pub(super) fn peak(path: &Path, bundle: &Path, host: &Host) -> Outcome<f64> {
    let mut all = Vec::new();
    for round in 0..5 {
        let id = format!("peak-{round}");
        // A forked process begins with the memory of its parent. busybox has little.
        let mut time = Command::new("busybox");
        time.args(["time", "-f", "%M", "-o"]).arg(host.folder.join("peak")).arg(path);
        time.arg("--root").arg(state_of(path, host)).args(["create", "--bundle"]).arg(bundle);
        timed(time.arg(&id))?;
        let text = std::fs::read_to_string(host.folder.join("peak"))?;
        // busybox takes the kernel's kilobytes for pages of 4 kB, and multiplies them by four.
        all.push(text.trim().parse::<f64>()? / 4.0);
        timed(runtime(path, host).args(["delete", "--force", &id]))?;
    }
    Ok(median(&all))
}
