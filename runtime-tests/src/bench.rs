//! The benchmark (`docs/testing.md`) runs the runtimes in turn, so that other load on the host
//! affects all of them alike. It prints medians, and ratios to crun.

mod alive;
mod components;
mod crowd;
mod report;
mod soak;
mod targets;
mod wasm;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Host, Outcome, Stop};

const ROUNDS: usize = 60;
const WARM_UP: usize = 5;

/// `OUT` measures Linux containers. `OUT wasm` measures modules, and `OUT components` what the
/// second engine runs. `OUT soak` looks for what a long load leaves behind, and
/// `OUT report` draws what the others have measured.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let out = args.first().map_or_else(|| PathBuf::from("target/bench"), PathBuf::from);
    let measured = match args.get(1).map(String::as_str) {
        Some("wasm") => wasm::measure(&out),
        Some("components") => components::measure(&out),
        Some("soak") => soak::measure(),
        Some("report") => report::write(&out),
        _ => measure(&out),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(message) | Stop::Skipped(message)) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

/// One timed action: a name for the table, and a function that does it once.
struct Contestant {
    name: String,
    once: Box<dyn Fn(usize) -> Outcome<f64>>,
}

/// The names of the runtimes, and the first copies of their programs.
type Runtimes = Vec<(String, PathBuf)>;

/// The number of copies of each program, which take turns. Two copies of one file can differ by a
/// tenth of a `run`, as long as both stay in the page cache.
const COPIES: usize = 6;

/// The names in the order of the columns.
const NAMES: [&str; 5] = ["rt", BEFORE, "crun", "runc", "floor"];

/// An earlier `rt`, whose program `RT_BEFORE` names.
const BEFORE: &str = "before";

/// The rows in the order of the table.
const ROWS: [&str; 25] = [
    "run /bin/true",
    "run, as Docker's",
    "create",
    "state",
    "start",
    "exec /bin/true",
    "kill",
    "delete",
    "--version",
    "run hello.wasm",
    "run, 10 mounts",
    "run, 100 mounts",
    "run, 500 mounts",
    "create beside 10",
    "create beside 100",
    "create beside 1000",
    "state beside 10",
    "state beside 100",
    "state beside 1000",
    "delete beside 10",
    "delete beside 100",
    "delete beside 1000",
    "list of 10",
    "list of 100",
    "list of 1000",
];

/// Milliseconds, by row and then by contestant.
type Times = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

fn measure(out: &Path) -> Outcome {
    let host = Host::find()?;
    let bundles = Bundles::make(&host)?;
    let state = StateInMemory::mount(&host)?;
    let runtimes = runtimes(&bundles, &host)?;
    if host.by_systemd {
        // Cgroups have all controllers here.
        wasm::memory_in_cgroups(&host)?;
    }
    let manager = if host.by_systemd { ", cgroups by systemd" } else { "" };
    println!("\n== lane {}{manager}: medians of {ROUNDS}, in milliseconds", host.lane);
    let mut times = Times::new();
    single_commands(&runtimes, &bundles, out, &host, &mut times)?;
    lives(&runtimes, &bundles, &host, &mut times)?;
    if host.by_systemd {
        // The remaining measurements do not depend on the maker of the cgroups.
        print(&times);
    } else {
        bundles_in_turn(&runtimes, &bundles, &host, &mut times)?;
        let sleep = bundles.linux.with_file_name("sleep");
        times.extend(crowd::growth(&runtimes, &sleep, &host)?);
        print(&times);
        print_of_crowds(&runtimes, &sleep, &host)?;
        write(out, &times, &host)?;
    }
    drop(state);
    host.remove();
    Ok(())
}

/// The installed runtimes that can run here, `rt` first.
fn runtimes(bundles: &Bundles, host: &Host) -> Outcome<Runtimes> {
    let mut runtimes = vec![("rt".to_owned(), host.runtime.clone())];
    for (name, path) in [
        (BEFORE, std::env::var_os("RT_BEFORE").map(PathBuf::from)),
        ("crun", std::env::var_os("CRUN").map(PathBuf::from)),
        ("runc", Some("/usr/sbin/runc".into())),
    ] {
        // A runtime may not be installed, or may not support this way to mount cgroups. crun
        // requires v2 without v1 beside it.
        match path.filter(|path| path.is_file()) {
            Some(path) if works(&path, &bundles.linux, host) => {
                runtimes.push((name.to_owned(), path));
            }
            None if name == BEFORE => {}
            _ => println!("({name} is left out: it is not there, or cannot run here)"),
        }
    }
    let copied = |(name, path): (String, PathBuf)| {
        let copy = copies(&name, &path, host)?;
        Ok((name, copy))
    };
    runtimes.into_iter().map(copied).collect()
}

/// Copies a program, and returns the first copy. [`turn`] returns the others.
fn copies(name: &str, program: &Path, host: &Host) -> Outcome<PathBuf> {
    let place = |number: usize| {
        let folder = host.folder.join("copies").join(number.to_string()).join(name);
        folder.join("bin").join(program.file_name().unwrap_or_default())
    };
    for copy in (0..COPIES).map(place) {
        let folder = copy.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        fs::copy(program, &copy)?;
        // The engines of `rt`.
        let engines = program.parent().and_then(Path::parent).map(|prefix| prefix.join("libexec"));
        if let Some(engines) = engines.filter(|engines| engines.join("rt").exists()) {
            std::os::unix::fs::symlink(engines, folder.with_file_name("libexec"))?;
        }
    }
    Ok(place(0))
}

/// The copy of a program whose turn it is. A program without copies is used in each round.
fn turn(program: &Path, round: usize) -> PathBuf {
    let copy = format!("/copies/{}/", round % COPIES);
    program.display().to_string().replace("/copies/0/", &copy).into()
}

/// Whether a program is an `rt`, by the name of its copies.
fn is_rt(program: &Path, host: &Host) -> bool {
    let name = program.ancestors().nth(2).and_then(Path::file_name);
    program == host.runtime || name.is_some_and(|name| name == "rt" || name == BEFORE)
}

/// `run` and `--version`.
fn single_commands(
    runtimes: &Runtimes,
    bundles: &Bundles,
    out: &Path,
    host: &Host,
    times: &mut Times,
) -> Outcome {
    let mut contestants: Vec<Contestant> =
        runtimes.iter().map(|(name, path)| run_of(name, path, &bundles.linux, host)).collect();
    if !host.by_systemd {
        let program = copies("floor", &out.join("floor"), host)?;
        contestants.push(repeated("floor", floor(&program, &bundles.linux, "/bin/true", host)));
    }
    round_robin(&[("run /bin/true", contestants)], ROUNDS, times)?;
    let version = |(name, path): &(String, PathBuf)| {
        let path = path.clone();
        let once = move |round| timed(Command::new(turn(&path, round)).arg("--version"));
        Contestant { name: name.clone(), once: Box::new(once) }
    };
    let versions = runtimes.iter().map(version).collect();
    round_robin(&[("--version", versions)], ROUNDS, times)
}

/// Each command in the life of a container.
fn lives(runtimes: &Runtimes, bundles: &Bundles, host: &Host, times: &mut Times) -> Outcome {
    for round in 0..ROUNDS + WARM_UP {
        for (name, path) in runtimes {
            let steps = life(&turn(path, round), &bundles.linux, host, round)?;
            for (step, milliseconds) in steps {
                if round >= WARM_UP {
                    times
                        .entry(step.to_owned())
                        .or_default()
                        .entry(name.clone())
                        .or_default()
                        .push(milliseconds);
                }
            }
        }
    }
    Ok(())
}

/// `run` of other bundles.
fn bundles_in_turn(
    runtimes: &Runtimes,
    bundles: &Bundles,
    host: &Host,
    times: &mut Times,
) -> Outcome {
    let pair: Runtimes = runtimes.iter().filter(|(name, _)| name != "runc").cloned().collect();
    let runs = |bundle: &Path| -> Vec<Contestant> {
        pair.iter().map(|(name, path)| run_of(name, path, bundle, host)).collect()
    };
    round_robin(&[("run, as Docker's", runs(&bundles.docker))], ROUNDS, times)?;
    for (number, bundle) in &bundles.mounts {
        let row = format!("run, {number} mounts");
        round_robin(&[(&row, runs(bundle))], ROUNDS, times)?;
    }
    if let Some(wasm) = &bundles.wasm {
        let both = runtimes.iter().filter(|(name, _)| ["rt", BEFORE].contains(&name.as_str()));
        let both = both.map(|(name, path)| run_of(name, path, wasm, host)).collect();
        round_robin(&[("run hello.wasm", both)], ROUNDS, times)?;
    }
    Ok(())
}

fn print_of_crowds(runtimes: &Runtimes, sleep: &Path, host: &Host) -> Outcome {
    for (name, rate) in crowd::throughput(runtimes, sleep, host)? {
        println!("{name}: {rate:.0} containers/s, 200 created by 4 callers at once, then deleted");
    }
    for (name, path) in runtimes {
        println!("{name}: {:.0} kB at most in `create`", crowd::peak(path, sleep, host)?);
    }
    Ok(())
}

/// Writes the raw numbers, from which [`report`] draws.
fn write(out: &Path, times: &Times, host: &Host) -> Outcome {
    let file = out.join(format!("{}.json", host.lane));
    fs::write(
        &file,
        serde_json::to_string_pretty(&json!({ "lane": host.lane, "milliseconds": times }))?,
    )?;
    println!("raw numbers: {}", file.display());
    Ok(())
}

/// All contestants take turns, in all of these rows.
fn round_robin(rows: &[(&str, Vec<Contestant>)], rounds: usize, times: &mut Times) -> Outcome {
    for round in 0..rounds + WARM_UP {
        for (row, contestant) in
            rows.iter().flat_map(|(row, all)| all.iter().map(move |one| (row, one)))
        {
            let milliseconds = (contestant.once)(round)?;
            if round >= WARM_UP {
                times
                    .entry((*row).to_owned())
                    .or_default()
                    .entry(contestant.name.clone())
                    .or_default()
                    .push(milliseconds);
            }
        }
    }
    Ok(())
}

fn timed(command: &mut Command) -> Outcome<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status()?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    if status.success() {
        Ok(milliseconds)
    } else {
        Err(Stop::Failed(format!("{command:?}: {status}")))
    }
}

/// A tmpfs for the states. Runtimes keep their states in `/run`, which is in memory on every real
/// host, but not on all hosts where the benchmark runs. A disk's journal must not affect the
/// result. The lane has its own mount namespace.
struct StateInMemory(PathBuf);

impl StateInMemory {
    fn mount(host: &Host) -> Outcome<StateInMemory> {
        let folder = host.folder.join("state");
        fs::create_dir_all(&folder)?;
        timed(Command::new("mount").args(["-t", "tmpfs", "state"]).arg(&folder))?;
        Ok(StateInMemory(folder))
    }
}

impl Drop for StateInMemory {
    fn drop(&mut self) {
        // If this fails, the mount ends with the mount namespace.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn state_of(path: &Path, host: &Host) -> PathBuf {
    // The path as one name: two programs may have the same name. Copies of one program have one
    // state.
    let copies = host.folder.join("copies");
    let path = match path.strip_prefix(&copies) {
        Ok(copy) => copy.components().skip(1).collect(),
        Err(_) => path.to_owned(),
    };
    let name = path.display().to_string().replace('/', "-");
    host.folder.join("state").join(name)
}

fn runtime(path: &Path, host: &Host) -> Command {
    runtime_with(path, host, &host.folder.join("wasm.json"))
}

/// `modules` is the host's file of settings for Wasm. Only an `rt` has a flag for it.
fn runtime_with(path: &Path, host: &Host, modules: &Path) -> Command {
    let mut command = Command::new(path);
    command.arg("--root").arg(state_of(path, host));
    if host.by_systemd {
        command.arg("--systemd-cgroup");
    }
    if is_rt(path, host) {
        command.arg("--wasm-config").arg(modules);
    }
    command
}

fn works(path: &Path, bundle: &Path, host: &Host) -> bool {
    timed(runtime(path, host).args(["run", "--bundle"]).arg(bundle).arg("probe")).is_ok()
}

fn run_of(name: &str, path: &Path, bundle: &Path, host: &Host) -> Contestant {
    let mut command = runtime(path, host);
    command.args(["run", "--bundle"]).arg(bundle).arg("bench");
    repeated(name, command)
}

fn repeated(name: &str, command: Command) -> Contestant {
    let once = move |round| timed(&mut again(&command, round));
    Contestant { name: name.to_owned(), once: Box::new(once) }
}

/// The same command with the copy of its program whose turn it is.
fn again(command: &Command, round: usize) -> Command {
    let mut again = Command::new(turn(Path::new(command.get_program()), round));
    again.args(command.get_args());
    again.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    again
}

/// The floor with a bundle's program, and with the variables that `floor.c` reads.
fn floor(floor: &Path, bundle: &Path, program: &str, host: &Host) -> Command {
    let roots: Vec<PathBuf> = match host.lane.as_str() {
        "v2" => vec!["/sys/fs/cgroup".into()],
        _ => fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect(),
    };
    let roots: Vec<String> = roots
        .iter()
        .filter(|root| root.join("cgroup.procs").exists() && !root.is_symlink())
        .map(|root| root.display().to_string())
        .collect();
    let mut command = Command::new(floor);
    command.arg(bundle.join("rootfs")).arg(program).env("FLOOR_CGROUPS", roots.join(":"));
    command
}

/// Runs the commands of one container's life, and times each of them.
fn life(
    path: &Path,
    bundle: &Path,
    host: &Host,
    round: usize,
) -> Outcome<Vec<(&'static str, f64)>> {
    let id = format!("life-{round}");
    let step = |args: &[&str]| timed(runtime(path, host).args(args).arg(&id));
    let folder = bundle.with_file_name("sleep").display().to_string();
    Ok(vec![
        ("create", step(&["create", "--bundle", &folder])?),
        ("state", step(&["state"])?),
        ("start", step(&["start"])?),
        ("exec /bin/true", timed(runtime(path, host).args(["exec", &id, "/bin/true"]))?),
        ("kill", timed(runtime(path, host).args(["kill", &id, "KILL"]))?),
        ("delete", {
            wait_until_stopped(path, host, &id)?;
            step(&["delete"])?
        }),
    ])
}

fn wait_until_stopped(path: &Path, host: &Host, id: &str) -> Outcome {
    crate::harness::wait_until("it has stopped", || {
        let state = runtime(path, host).args(["state", id]).output();
        state.is_ok_and(|state| String::from_utf8_lossy(&state.stdout).contains("\"stopped\""))
    })
}

fn print(times: &Times) {
    println!(
        "{:20}{}",
        "",
        NAMES.map(|name| format!("{name:>9}")).concat() + "   rt/crun  rt/floor rt/before"
    );
    for row in ROWS.iter().filter_map(|row| Some((row, times.get(*row)?))) {
        let (name, contestants) = row;
        let medians = NAMES.map(|name| contestants.get(name).map(|all| median(all)));
        let cells = medians.map(|median| {
            median.map_or_else(|| format!("{:>9}", "-"), |median| format!("{median:>9.2}"))
        });
        let ratio = |other: Option<f64>| match (medians[0], other) {
            (Some(rt), Some(other)) => format!("{:>10.2}", rt / other),
            _ => format!("{:>10}", "-"),
        };
        let ratios = [2, 4, 1].map(|other| ratio(medians[other]));
        println!("{name:20}{}{}", cells.concat(), ratios.concat());
    }
}

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Writes a bundle. Its configuration is the template of `rt`, which is like those of runc and
/// crun.
fn bundle(
    host: &Host,
    name: &str,
    rootfs: &dyn Fn(&Path) -> Outcome,
    change: &dyn Fn(&mut Value),
) -> Outcome<PathBuf> {
    let folder = host.folder.join("bench").join(name);
    fs::create_dir_all(folder.join("rootfs"))?;
    rootfs(&folder.join("rootfs"))?;
    let made = Command::new(&host.runtime).args(["spec", "--bundle"]).arg(&folder).status()?;
    crate::harness::ensure(made.success(), "spec")?;
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    config["process"]["terminal"] = json!(false);
    change(&mut config);
    fs::write(file, config.to_string())?;
    Ok(folder)
}

/// The bundles that the benchmark runs.
struct Bundles {
    linux: PathBuf,
    /// With the seccomp filter, the mounts and the masked paths of Docker.
    docker: PathBuf,
    mounts: Vec<(usize, PathBuf)>,
    wasm: Option<PathBuf>,
}

impl Bundles {
    fn make(host: &Host) -> Outcome<Bundles> {
        let bundle =
            |name: &str, rootfs: &dyn Fn(&Path) -> Outcome, change: &dyn Fn(&mut Value)| {
                bundle(host, name, rootfs, change)
            };
        let linux = |args: &'static [&'static str]| {
            move |config: &mut Value| config["process"]["args"] = json!(args)
        };
        let fill = |rootfs: &Path| host.fill_rootfs(rootfs);
        let linux_bundle = bundle("true", &fill, &linux(&["/bin/true"]))?;
        bundle("sleep", &fill, &linux(&["/bin/sleep", "1000"]))?;
        let docker = bundle("docker", &fill, &|config| {
            config["process"]["args"] = json!(["/bin/true"]);
            config["linux"]["seccomp"] = filter();
            config["linux"]["maskedPaths"] = json!([
                "/proc/asound",
                "/proc/acpi",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
            ]);
            add_mounts(config, 14);
        })?;
        let mounts = [10, 100, 500].map(|number| {
            let made = bundle(&format!("mounts-{number}"), &fill, &|config| {
                config["process"]["args"] = json!(["/bin/true"]);
                add_mounts(config, number);
            });
            made.map(|made| (number, made))
        });
        let mounts = mounts.into_iter().collect::<Outcome<Vec<_>>>()?;
        let wasm =
            host.guest("hello").ok().map(|hello| wasm::bundle_of(host, "hello", &hello, &[]));
        Ok(Bundles { linux: linux_bundle, docker, mounts, wasm: wasm.transpose()? })
    }
}

fn add_mounts(config: &mut Value, number: usize) {
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.extend((0..number).map(|at| {
            json!({ "destination": format!("/tmp/m{at}"), "source": "/etc", "type": "bind", "options": ["rbind", "ro", "nosuid"] })
        }));
    }
}

/// A filter of the size and with the kinds of rules of Docker's default: it allows some hundred
/// calls, some of them by their arguments.
fn filter() -> Value {
    let refused = [
        "acct",
        "add_key",
        "bpf",
        "clock_settime",
        "clone",
        "clone3",
        "create_module",
        "delete_module",
        "finit_module",
        "init_module",
        "ioperm",
        "iopl",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "mount",
        "move_mount",
        "nfsservctl",
        "open_by_handle_at",
        "perf_event_open",
        "personality",
        "pivot_root",
        "quotactl",
        "reboot",
        "request_key",
        "setns",
        "settimeofday",
        "socket",
        "swapoff",
        "swapon",
        "umount2",
        "unshare",
        "uselib",
        "userfaultfd",
        "vm86",
    ];
    let call = |number| libseccomp::ScmpSyscall::from_raw_syscall(number).get_name().ok();
    let allowed: Vec<String> =
        (0..470).filter_map(call).filter(|name| !refused.contains(&name.as_str())).collect();
    let argument =
        |value: u64, operator: &str| json!([{ "index": 0, "value": value, "op": operator }]);
    let allow = |name: &str, args: Value| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args });
    let mut rules = vec![
        json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" }),
        allow("socket", argument(40, "SCMP_CMP_NE")),
        allow(
            "clone",
            json!([{ "index": 0, "value": 2_114_060_288_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }]),
        ),
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }),
    ];
    rules.extend(
        [0, 8, 131_072, 131_080, 0xffff_ffff]
            .map(|value| allow("personality", argument(value, "SCMP_CMP_EQ"))),
    );
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules,
    })
}
