//! Load for a long time: many containers are alive, and a kubelet's calls come in its rhythm. The
//! runtime must leave nothing behind: no mount, cgroup, process, file or memory of the kernel.
//!
//! `RT_SOAK_CONTAINERS` (1000) and `RT_SOAK_SECONDS` (3600) set the size. Each container gets a
//! `state` and an `events --stats` every 10 s. A tenth of them gets an `exec` every second, as from
//! a probe. One container is replaced every second. With `CRUN`, crun does the same afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{StateInMemory, bundle, runtime, state_of, timed};
use crate::harness::{Host, Outcome, Stop, ensure, wait_up_to};

const CALLERS: usize = 2;

/// The seconds from one `state` of a container to its next one.
const PERIOD: usize = 10;

/// Milliseconds, by command.
type Times = BTreeMap<&'static str, Vec<f64>>;

struct Load<'a> {
    name: &'a str,
    path: &'a Path,
    bundle: &'a Path,
    host: &'a Host,
    containers: usize,
    seconds: usize,
}

pub(super) fn measure() -> Outcome {
    let number = |name: &str, default: usize| -> Outcome<usize> {
        Ok(std::env::var(name).map_or(Ok(default), |text| text.parse())?)
    };
    let (containers, seconds) =
        (number("RT_SOAK_CONTAINERS", 1000)?, number("RT_SOAK_SECONDS", 3600)?);
    let host = Host::find()?;
    let fill = |rootfs: &Path| host.fill_rootfs(rootfs);
    let bundle = bundle(&host, "sleep", &fill, &|config| {
        config["process"]["args"] = serde_json::json!(["/bin/sleep", "100000"]);
    })?;
    let state = StateInMemory::mount(&host)?;
    let mut runtimes = vec![("rt", host.runtime.clone())];
    runtimes.extend(std::env::var_os("CRUN").map(|path| ("crun", PathBuf::from(path))));
    let mut outcome = Ok(());
    for (name, path) in &runtimes {
        let load = Load { name, path, bundle: &bundle, host: &host, containers, seconds };
        // What the other runtime leaves behind is told, and fails nothing.
        match load.soak() {
            Err(Stop::Failed(why)) if *name != "rt" => println!("{why}"),
            soaked => outcome = outcome.and(soaked),
        }
    }
    drop(state);
    host.remove();
    outcome
}

impl Load<'_> {
    fn soak(&self) -> Outcome {
        println!("\n== {}: {} containers, {} s", self.name, self.containers, self.seconds);
        let before = Remains::now(&state_of(self.path, self.host));
        let done = self.live();
        // Whatever has happened, nothing of it stays on the host.
        for number in 0..self.containers {
            // A container that was not made is not there to be deleted.
            let _ = self.one(number, &["delete", "--force"]);
        }
        let times = done?;
        print(&times);
        let mut left = String::new();
        wait_up_to(Duration::from_secs(60), "nothing of the containers is left", || {
            left = Remains::now(&state_of(self.path, self.host)).more_than(&before, 0);
            left.is_empty()
        })
        .map_err(|_| Stop::Failed(format!("{} leaves behind: {left}", self.name)))
    }

    /// Makes all containers, and calls the runtime as long as it takes. Fails if there is more at
    /// the end than when all containers were alive and had been used once.
    fn live(&self) -> Outcome<Times> {
        self.by_callers(|caller| {
            let mut times = Times::new();
            for number in (caller..self.containers).step_by(CALLERS) {
                self.make(number, &mut times)?;
            }
            Ok(times)
        })?;
        self.by_callers(|caller| self.call(caller, PERIOD))?;
        let root = state_of(self.path, self.host);
        let begin = Remains::now(&root);
        let times = self.by_callers(|caller| self.call(caller, self.seconds))?;
        let end = Remains::now(&root);
        println!("at the begin: {begin:?}\nat the end:   {end:?}");
        // Other programs of the host come and go, too.
        let more = end.more_than(&begin, 32);
        ensure(more.is_empty(), format!("{} needs more and more: {more}", self.name))?;
        Ok(times)
    }

    /// The calls of one caller for some seconds, each second's calls when it begins.
    fn call(&self, caller: usize, seconds: usize) -> Outcome<Times> {
        let mut times = Times::new();
        let begin = Instant::now();
        for second in 0..seconds {
            for number in (caller..self.containers).step_by(CALLERS) {
                if number % PERIOD == second % PERIOD {
                    self.note(&mut times, "state", number, &["state"])?;
                    if self.name == "rt" {
                        self.note(&mut times, "events --stats", number, &["events", "--stats"])?;
                    }
                }
                if number < self.containers / 10 {
                    let start = Instant::now();
                    let id = id(number);
                    timed(runtime(self.path, self.host).args(["exec", &id, "/bin/true"]))?;
                    add(&mut times, "exec", start);
                }
            }
            if second % CALLERS == caller {
                let number = self.containers - 1 - second % (self.containers / 2);
                self.replace(number, &mut times)?;
            }
            let next = Duration::from_secs(second as u64 + 1);
            std::thread::sleep(next.saturating_sub(begin.elapsed()));
            if begin.elapsed() > next + Duration::from_secs(1) {
                add(&mut times, "late seconds", begin + next);
            }
        }
        Ok(times)
    }

    fn make(&self, number: usize, times: &mut Times) -> Outcome {
        let folder = self.bundle.display().to_string();
        self.note(times, "create", number, &["create", "--bundle", &folder])?;
        self.note(times, "start", number, &["start"])
    }

    fn replace(&self, number: usize, times: &mut Times) -> Outcome {
        let start = Instant::now();
        timed(runtime(self.path, self.host).args(["kill", &id(number), "KILL"]))?;
        add(times, "kill", start);
        self.note(times, "delete", number, &["delete", "--force"])?;
        self.make(number, times)
    }

    fn note(&self, times: &mut Times, what: &'static str, number: usize, args: &[&str]) -> Outcome {
        let start = Instant::now();
        self.one(number, args)?;
        add(times, what, start);
        Ok(())
    }

    fn one(&self, number: usize, args: &[&str]) -> Outcome {
        let mut command: Command = runtime(self.path, self.host);
        timed(command.args(args).arg(id(number))).map(drop)
    }

    fn by_callers(&self, work: impl Fn(usize) -> Outcome<Times> + Sync) -> Outcome<Times> {
        let work = &work;
        let all: Vec<Outcome<Times>> = std::thread::scope(|scope| {
            let callers: Vec<_> =
                (0..CALLERS).map(|caller| scope.spawn(move || work(caller))).collect();
            let panicked = |_| Err(Stop::Failed("a caller panicked".into()));
            callers.into_iter().map(|caller| caller.join().unwrap_or_else(panicked)).collect()
        });
        let mut together = Times::new();
        for times in all {
            for (what, times) in times? {
                together.entry(what).or_default().extend(times);
            }
        }
        Ok(together)
    }
}

fn id(number: usize) -> String {
    format!("soak-{number}")
}

fn add(times: &mut Times, what: &'static str, start: Instant) {
    times.entry(what).or_default().push(start.elapsed().as_secs_f64() * 1e3);
}

fn print(times: &Times) {
    println!("{:16}{:>9}{:>9}{:>9}{:>9}", "ms", "number", "median", "p99", "most");
    for (what, times) in times {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let [median, p99, most] = [50, 99, 100].map(at);
        println!("{what:16}{:>9}{median:>9.2}{p99:>9.2}{most:>9.2}", times.len());
    }
}

/// What the host has of everything that a runtime could leave behind.
#[derive(Debug)]
struct Remains {
    mounts: usize,
    cgroups: usize,
    processes: usize,
    /// The files of the runtime's states.
    state: usize,
    /// The open files of all processes.
    open: usize,
    /// Memory of the kernel that it cannot give back, in MB.
    kernel: usize,
    keys: usize,
}

impl Remains {
    fn now(state: &Path) -> Remains {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kernel = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];
        let memory = text("/proc/meminfo");
        let memory = memory.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            kernel.contains(&words.next()?).then(|| words.next()?.parse::<usize>().ok())?
        });
        let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        Remains {
            mounts: text("/proc/self/mountinfo").lines().count(),
            cgroups: count(Path::new("/sys/fs/cgroup"), &|entry| entry.is_dir()),
            processes: processes
                .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
                .count(),
            state: count(state, &|_| true),
            open: text("/proc/sys/fs/file-nr")
                .split_whitespace()
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
            kernel: memory.sum::<usize>() / 1024,
            keys: text("/proc/keys").lines().count(),
        }
    }

    /// What there is more of than before, by more than `slack`. The kernel counts open files and
    /// its memory later than they are given back.
    fn more_than(&self, before: &Remains, slack: usize) -> String {
        let fields = [
            ("mounts", self.mounts, before.mounts, 0),
            ("cgroups", self.cgroups, before.cgroups, 0),
            ("files of the state", self.state, before.state, 0),
            ("processes", self.processes, before.processes, slack.max(8)),
            ("open files", self.open, before.open, 512),
            ("MB of the kernel", self.kernel, before.kernel, 64),
            ("keys", self.keys, before.keys, 8),
        ];
        let more = fields.into_iter().filter(|(_, now, before, slack)| *now > before + slack);
        more.map(|(what, now, before, _)| format!("{what}: {before}, then {now}; ")).collect()
    }
}

/// The number of entries below a directory that `is` holds for.
fn count(folder: &Path, is: &dyn Fn(&Path) -> bool) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let counted = entries.map(|entry| {
        let path = entry.path();
        let below = if path.is_dir() && !path.is_symlink() { count(&path, is) } else { 0 };
        usize::from(is(&path)) + below
    });
    counted.sum()
}
