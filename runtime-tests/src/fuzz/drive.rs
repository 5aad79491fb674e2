//! The commands of a round, and the checks of their results.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use super::bundle::{self, Bundle, Twist};
use super::canary::{self, Canary, Change, Machine, STATE};
use super::neighbour::{self, Watch};
use super::programs::{SETTLED, STARTED};
use super::random::Random;
use super::tree::{Thing, Tree};
use super::words;

/// The limit for each command. The runtime itself gives up waiting for another process after 10 s,
/// with an error that says more.
const LONGEST: Duration = Duration::from_secs(15);

/// The limit for the program of a container. A slow program is not the runtime's fault.
const PATIENCE: Duration = Duration::from_secs(2);

/// An error names the wrong value, which can be a path.
const LONGEST_LINE: usize = 20_000;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Run,
    /// `create`, with a terminal if the bundle has one.
    Create,
    Start,
    Exec {
        flags: Vec<String>,
        args: Vec<String>,
    },
    /// `exec --process`.
    Process(Value),
    /// The container itself (`from_inside`) or a neighbour puts a thing in the rootfs or in a
    /// mounted volume.
    Put {
        from_inside: bool,
        place: String,
        thing: Thing,
    },
    /// `mounts add`. Then the container puts a thing in the way. Then `mounts remove`.
    Mounts {
        entry: Value,
        way: Option<(String, Thing)>,
    },
    /// Another command: these words, the container's id, and further words.
    Other(Vec<String>, Vec<String>),
}

/// A round. The seed and the number of the round determine all of it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) twists: Vec<Twist>,
    pub(super) steps: Vec<Step>,
    /// The argument of the witness in the container.
    pub(super) argument: &'static str,
}

impl Plan {
    pub(super) fn make(random: &mut Random, folder: &Path) -> Plan {
        let mut twists = bundle::twists(random, folder);
        if !random.once_in(3) {
            // A race rarely succeeds at the first try.
            let is_race = twists.iter().any(|twist| matches!(twist, Twist::Exchange(_)));
            let steps = vec![Step::Run; if is_race { 6 } else { 1 }];
            return Plan { twists, steps, argument: "" };
        }
        // With more twists, the container would rarely run.
        twists.truncate(random.below(3));
        let argument = random.of(&["live", "live", "snoop"]);
        if random.once_in(3) {
            twists.extend(bundle::upset(random));
        }
        let mut steps = vec![Step::Create];
        if random.once_in(4) {
            steps.push(put(random));
        }
        // The witness sends no readiness message, so `start` would wait for one.
        if !twists.iter().any(|twist| matches!(twist, Twist::Notify)) {
            steps.push(Step::Start);
        }
        for _ in 0..1 + random.below(5) {
            step(random, folder, &mut steps);
        }
        if random.once_in(2) {
            steps.push(other(&["kill"], &["KILL"]));
            steps.push(other(&["delete"], &[]));
        }
        Plan { twists, steps, argument }
    }
}

fn other(before: &[&str], after: &[&str]) -> Step {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Step::Other(own(before), own(after))
}

fn put(random: &mut Random) -> Step {
    Step::Put {
        from_inside: random.once_in(2),
        place: words::place(random),
        thing: bundle::thing(random),
    }
}

fn step(random: &mut Random, folder: &Path, steps: &mut Vec<Step>) {
    match random.below(16) {
        0..=4 => {
            let (flags, mut args) =
                (exec_flags(random), vec!["/bin/sh".to_owned(), "/witness".to_owned()]);
            match random.below(4) {
                0 | 1 => {
                    let place = random.of(&["/bin/ls", "/bin/tool", "/t/x"]).to_owned();
                    steps.push(Step::Put {
                        from_inside: false,
                        place: place.clone(),
                        thing: bundle::program(random),
                    });
                    args = vec![if random.once_in(3) {
                        place[1 + place.rfind('/').unwrap_or(0)..].to_owned()
                    } else {
                        place
                    }];
                }
                2 => args = vec![words::program(random)],
                _ => {}
            }
            steps.push(Step::Exec { flags, args });
        }
        5 => steps.push(Step::Process(json!({
            "args": [words::program(random)], "cwd": words::path(random),
            "env": [format!("PATH={}:/bin", words::escape_to(random, words::OUTSIDE))],
            "user": { "uid": random.below(2) * 1000, "gid": 0 },
        }))),
        6 | 7 => steps.push(put(random)),
        8..=10 => {
            let destination = if random.once_in(3) {
                words::path(random)
            } else {
                format!("/mnt/{}", random.of(&["data", "a/b", "x"]))
            };
            let way = (!random.once_in(3)).then(|| {
                let mut place = destination.as_str();
                if random.once_in(3) {
                    place = place.rsplit_once('/').map_or(place, |(above, _)| above);
                }
                (place.to_owned(), bundle::thing(random))
            });
            steps.push(Step::Mounts { entry: bundle::mount(random, &destination, folder), way });
        }
        11 => {
            let value = words::name(random);
            let number = random.of(&["0", "-1", "4096", "16777216", "9223372036854775807"]);
            let flag = random.of(&[
                "--memory",
                "--pids-limit",
                "--cpu-quota",
                "--cpu-share",
                "--cpu-period",
            ]);
            let flag = if random.once_in(2) {
                format!("--cpuset-cpus={value}")
            } else {
                format!("{flag}={number}")
            };
            steps.push(Step::Other(vec!["update".to_owned(), flag], Vec::new()));
        }
        12 => steps.push(other(&["ps"], &[])),
        13 => steps.push(other(&["events", "--stats"], &[])),
        14 => {
            steps.extend(["pause", "state", "resume"].map(|word| other(&[word], &[])));
        }
        _ => steps.push(other(
            &["kill"],
            &[random.of(&["TERM", "HUP", "WINCH", "0", "SIGRTMIN+3", "99", "-1"])],
        )),
    }
}

fn exec_flags(random: &mut Random) -> Vec<String> {
    match random.below(10) {
        0 => vec![format!("--cwd={}", words::path(random))],
        1 => vec![format!("--cwd={}", words::escape_to(random, words::OUTSIDE))],
        2 => vec![format!(
            "--user={}",
            random.of(&["1000", "1000:1000", "-1", "4294967295", "root", "0:4294967296"])
        )],
        3 => vec!["--cap=CAP_SYS_PTRACE".to_owned()],
        4 => vec![format!("--env=PATH={}:/bin", words::escape_to(random, words::OUTSIDE))],
        5 => vec![format!("--cgroup={}", words::name(random))],
        6 => vec!["--tty".to_owned()],
        _ => Vec::new(),
    }
}

/// The results of a round.
#[derive(Debug, Default)]
pub(super) struct Played {
    pub(super) started: u32,
    pub(super) refused: u32,
    pub(super) commands: u32,
    /// The findings: kind and details.
    pub(super) findings: Vec<Change>,
    /// The commands and their output.
    pub(super) log: Vec<String>,
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    hung: bool,
    out: String,
    err: String,
}

struct Play<'a> {
    canary: &'a Canary,
    bundle: Bundle,
    id: String,
    played: Played,
    /// The output files of a created container.
    streams: Vec<File>,
}

/// Makes the bundle, runs the plan's steps, and then checks everything.
pub(super) fn play(plan: &Plan, canary: &Canary, folder: &Path, id: &str) -> io::Result<Played> {
    fs::create_dir_all(folder)?;
    let bundle = Bundle::make(folder, &plan.twists, plan.argument)?;
    let spool = bundle.spool();
    neighbour::plant(&spool);
    let watch = Watch::begin(&spool)?;
    let mut play =
        Play { canary, bundle, id: id.to_owned(), played: Played::default(), streams: Vec::new() };
    let machine = Machine::now();
    play.all(&plan.steps)?;
    watch.end();
    let mut played = play.played;
    played.findings.extend(canary.changes());
    played.findings.extend(machine.changes(&play.bundle.config.to_string()));
    // Whatever a container has made in its rootfs, no mount of it is left there.
    if let Err(error) = fs::remove_dir_all(folder) {
        played.findings.push(("the bundle cannot be removed", error.to_string()));
        let _ = fs::rename(folder, folder.with_extension("left"));
    }
    Ok(played)
}

impl Play<'_> {
    fn all(&mut self, steps: &[Step]) -> io::Result<()> {
        if let Some(targets) = self.bundle.exchange.clone() {
            // Each attempt of a race begins with a fresh volume.
            let is_race = steps.iter().all(|step| matches!(step, Step::Run));
            for attempt in steps.chunks(if is_race { 1 } else { steps.len().max(1) }) {
                self.bundle.fill_volume()?;
                let volume = self.bundle.volume();
                neighbour::exchanging(&volume, &targets, || self.steps(attempt))?;
            }
        } else {
            self.steps(steps)?;
        }
        // The caller has chosen the path of the cgroup, so the caller removes the cgroups above it.
        if let Some(path) = self.bundle.config["linux"]["cgroupsPath"].as_str() {
            canary::remove_cgroups_above(path);
        }
        Ok(())
    }

    fn steps(&mut self, steps: &[Step]) -> io::Result<()> {
        for step in steps {
            if !self.step(step)? {
                break;
            }
        }
        if Path::new(STATE).join(&self.id).exists() {
            self.command(&["delete", "--force"], &[])?;
        }
        // The output of a created container until now, including standard error.
        for stream in std::mem::take(&mut self.streams) {
            let text = read(&stream)?;
            self.saw(&text, "the container");
        }
        Ok(())
    }

    /// Returns false if the following steps make no sense.
    fn step(&mut self, step: &Step) -> io::Result<bool> {
        match step {
            Step::Run => {
                let said = self.creation("run", None)?;
                self.played.started += u32::from(said.out.contains(STARTED));
                self.played.refused +=
                    u32::from(said.code != Some(0) && said.err.starts_with("rt: "));
                return Ok(true);
            }
            Step::Create => {
                let console = if self.bundle.config["process"]["terminal"] == true {
                    Some(self.bundle.console()?)
                } else {
                    None
                };
                let said = self.creation("create", console)?;
                self.played.refused += u32::from(said.code != Some(0));
                for path in canary::open_to_others(Path::new(STATE)) {
                    self.found("a state is open to other users", path.display().to_string());
                }
                return Ok(said.code == Some(0));
            }
            Step::Start => {
                let said = self.command(&["start"], &[])?;
                self.played.started += u32::from(said.code == Some(0));
                if said.code == Some(0) {
                    self.settle()?;
                }
                return Ok(said.code == Some(0));
            }
            Step::Exec { flags, args } => {
                let words: Vec<&str> =
                    ["exec"].into_iter().chain(flags.iter().map(String::as_str)).collect();
                self.command(&words, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
            }
            Step::Process(process) => {
                let file = self.bundle.folder.join("process.json");
                fs::write(&file, process.to_string())?;
                self.command(&["exec", "--process", &file.display().to_string()], &[])?;
            }
            Step::Put { from_inside, place, thing } => self.put(*from_inside, place, thing),
            Step::Mounts { entry, way } => self.mounts(entry, way.as_ref())?,
            Step::Other(before, after) => {
                let [before, after] = [before, after]
                    .map(|words| words.iter().map(String::as_str).collect::<Vec<_>>());
                self.command(&before, &after)?;
            }
        }
        Ok(true)
    }

    /// Waits until the witness has looked around. The witness may have been replaced by a program
    /// that prints nothing.
    fn settle(&mut self) -> io::Result<()> {
        let end = Instant::now() + Duration::from_millis(30);
        let Some(out) = self.streams.first() else { return Ok(()) };
        while !read(out)?.contains(SETTLED) && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    fn put(&mut self, from_inside: bool, place: &str, thing: &Thing) {
        let root = match self.pid().filter(|_| from_inside) {
            Some(pid) => format!("/proc/{pid}/root").into(),
            None => self.bundle.rootfs(),
        };
        let put = Tree::open(&root).and_then(|tree| tree.put(place, thing));
        self.played.log.push(format!("put {thing:?} at {place:?} of {}: {put:?}", root.display()));
    }

    fn mounts(&mut self, entry: &Value, way: Option<&(String, Thing)>) -> io::Result<()> {
        let file = self.bundle.folder.join("mounts.json");
        fs::write(&file, json!([entry]).to_string())?;
        let file = file.display().to_string();
        let before = self.mount_ids();
        if self.command(&["mounts", "add"], &[&file])?.code != Some(0) {
            return Ok(());
        }
        if let Some((place, thing)) = way {
            self.put(false, place, thing);
        }
        self.command(&["mounts", "remove"], &[&file])?;
        let after = self.mount_ids();
        if !after.is_empty() {
            for gone in before.difference(&after) {
                self.found("`mounts remove` took another mount away", gone.clone());
            }
        }
        Ok(())
    }

    /// The mounts that the container sees, by number and type.
    fn mount_ids(&self) -> BTreeSet<String> {
        let Some(pid) = self.pid() else { return BTreeSet::new() };
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let id = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            // Not by place, because the container can move a mount.
            Some(format!(
                "{} of {}",
                words.first()?,
                words.get(words.iter().position(|word| *word == "-")? + 1)?
            ))
        };
        text.lines().filter_map(id).collect()
    }

    fn pid(&self) -> Option<i64> {
        let text = fs::read(Path::new(STATE).join(&self.id).join("state.json")).ok()?;
        find_pid(&serde_json::from_slice(&text).ok()?)
    }

    fn creation(&mut self, command: &str, console: Option<String>) -> io::Result<Said> {
        let bundle = self.bundle.folder.display().to_string();
        let mut words = vec![command.to_owned(), "--bundle".to_owned(), bundle];
        words.extend(self.bundle.flags.iter().cloned());
        words.extend(console.map(|path| format!("--console-socket={path}")));
        self.command(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    }

    fn command(&mut self, before: &[&str], after: &[&str]) -> io::Result<Said> {
        let id = self.id.clone();
        let mut words = vec!["--root", STATE];
        words.extend(before);
        words.push(&id);
        words.extend(after);
        let mut command = if self.bundle.descriptors == 0 {
            Command::new("/room/bin/rt")
        } else {
            // The descriptors lead to `/dev/null`.
            let mut command = Command::new("/bin/busybox");
            let open: String = (3..3 + self.bundle.descriptors)
                .map(|number| format!("{number}</dev/null "))
                .collect();
            command.args(["sh", "-c", &format!("exec {open} \"$@\""), "sh", "/room/bin/rt"]);
            command
        };
        command.args(&words).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.bundle.env.iter().cloned());
        let [out, err] = [memory()?, memory()?];
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
        let mut child = command.spawn()?;
        let runs_program = matches!(before.first(), Some(&("run" | "exec")));
        let hung = self.wait(&mut child, runs_program)?;
        let code = child.wait()?.code();
        let said = Said { code, hung, out: read(&out)?, err: read(&err)? };
        self.played.commands += 1;
        self.played.log.push(format!(
            "rt {words:.300?}: {:?}\n    out: {:.600?}\n    err: {:.600?}",
            said.code, said.out, said.err
        ));
        self.judge(before, &said);
        if before.first() == Some(&"create") && code == Some(0) {
            self.streams.extend([out, err]);
        }
        Ok(said)
    }

    /// Waits until a command has ended. Returns true if the command did not end by itself.
    fn wait(&mut self, child: &mut Child, runs_program: bool) -> io::Result<bool> {
        let pid = rustix::process::Pid::from_child(child);
        let end = Instant::now() + LONGEST;
        if runs_program && !ends(pid, PATIENCE)? {
            // Once the container's program runs, it may take any time. It must end when
            // `delete --force` kills it.
            let mut delete = Command::new("/room/bin/rt");
            delete.args(["--root", STATE, "delete", "--force", &self.id]);
            delete.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let is_there = self.pid().is_some();
            let mut delete = delete.spawn()?;
            if is_there && !ends(rustix::process::Pid::from_child(&delete), LONGEST)? {
                self.found("a command hangs", "`delete --force` of what did not end".to_owned());
                delete.kill()?;
            }
            delete.wait()?;
            self.played.log.push("deleted, since it had not ended".to_owned());
        }
        if ends(pid, end.saturating_duration_since(Instant::now()))? {
            return Ok(false);
        }
        let at = |name: &str| {
            fs::read_to_string(format!("/proc/{}/{name}", child.id()))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        self.found("a command hangs", format!("in {} {}", at("wchan"), at("syscall")));
        child.kill()?;
        Ok(true)
    }

    /// Checks whether the output is what such a command may print.
    fn judge(&mut self, words: &[&str], said: &Said) {
        let what = words.first().copied().unwrap_or_default();
        self.saw(&said.out, what);
        self.saw(&said.err, what);
        if said.hung {
            return;
        }
        if said.code.is_none() {
            self.found("a command was ended by a signal", what.to_owned());
        }
        let own: Vec<&str> = said.err.lines().filter(|line| line.starts_with("rt: ")).collect();
        // Init reports why it did not become the program, and the runtime process may report a
        // `poststart` hook that failed at the same time.
        let is_inits = |line: &str| what == "run" && line.starts_with("rt: start `");
        let (inits, errors): (Vec<&str>, Vec<&str>) = own
            .iter()
            .filter(|line| !line.starts_with("rt: warning: "))
            .partition(|it| is_inits(it));
        let errors = errors.len().max(inits.len());
        let others = said.err.lines().filter(|line| !line.starts_with("rt: "));
        // Programs of the container write to the same streams. The witness writes to standard
        // output only. The shell and the programs of busybox begin their messages with a name and
        // `: `.
        let strays: Vec<&str> =
            others.filter(|line| !line.is_empty() && !line.contains(": ")).collect();
        let is_strict = !matches!(what, "run" | "exec");
        if is_strict && said.err.lines().count() != own.len() || errors > 1 || !strays.is_empty() {
            self.found(
                "standard error has more than one line of the runtime's",
                format!("{:.2000?}", said.err),
            );
        }
        if is_strict && (said.code == Some(0)) != (errors == 0) {
            self.found(
                "exit code and standard error disagree",
                format!("{what}: {:?} {:.500?}", said.code, said.err),
            );
        }
        for line in own {
            if line.len() > LONGEST_LINE {
                self.found("an error is very long", format!("{} bytes: {line:.300}", line.len()));
            }
            if line.chars().any(char::is_control) {
                self.found("an error has control characters", format!("{line:.500?}"));
            }
            if line.contains("os error") || line.contains("panicked") {
                self.found("an error is Rust's", format!("{line:.500}"));
            }
        }
        if said.err.contains("panicked") || said.code == Some(101) {
            self.found("a panic", format!("{:.2000}", said.err));
        }
    }

    /// The output of a container or of the runtime must contain nothing of the host.
    fn saw(&mut self, text: &str, whose: &str) {
        if text.contains(&self.canary.token) || text.contains("LEAK") {
            let lines = text
                .lines()
                .filter(|line| line.contains(&self.canary.token) || line.contains("LEAK"));
            let lines: Vec<&str> = lines.take(3).collect();
            let kind = if text.contains("was executed") {
                "a program of the host's was executed"
            } else {
                "a file of the host's was read"
            };
            self.found(kind, format!("{whose}: {lines:.800?}"));
        }
    }

    fn found(&mut self, kind: &'static str, detail: String) {
        self.played.findings.push((kind, detail));
    }
}

/// Finds the pid anywhere in a state.
fn find_pid(state: &Value) -> Option<i64> {
    match state {
        Value::Object(map) => {
            map.get("pid").and_then(Value::as_i64).or_else(|| map.values().find_map(find_pid))
        }
        _ => None,
    }
}

fn ends(pid: rustix::process::Pid, within: Duration) -> io::Result<bool> {
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let mut files = [PollFd::new(&process, PollFlags::IN)];
    let time = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(0),
        tv_nsec: within.subsec_nanos().into(),
    };
    Ok(rustix::event::poll(&mut files, Some(&time))? > 0)
}

fn memory() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)?))
}

/// Reads the whole file, without moving the position for writing.
fn read(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0).min(1 << 20)];
    let length = file.read_at(&mut bytes, 0)?;
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
