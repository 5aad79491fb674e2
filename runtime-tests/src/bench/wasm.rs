//! The cost of modules: their start, their run and their sleep. They are compared with Linux
//! containers, crun with WasmEdge, the floor with the engine, and WasmEdge's own tool. Each value
//! is printed beside its target. No test asserts the targets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::alive::{self, Service, memory, with_sleepers};
use super::targets::Targets;
use super::{
    Contestant, StateInMemory, Times, WARM_UP, again, bundle, floor, median, repeated, round_robin,
    run_of, runtime_with, state_of, timed,
};
use crate::harness::{Host, Outcome, Stop, ensure, wait_up_to};

/// The names in the order of the columns. `rt` and `crun` interpret. `Linux` is the same source,
/// compiled for this processor. `wasmedge` is WasmEdge's tool with the file of native code that
/// `rt` uses.
const NAMES: [&str; 7] =
    ["rt", "rt, native", "crun", "floor", "floor, native", "Linux", "wasmedge"];

/// The rows in the order of the table.
const ROWS: [&str; 7] = [
    "run /bin/true",
    "run hello-world",
    "run a 2 MB module",
    "create, 5 MB module",
    "fib(35)",
    "sha256 of 100 MB",
    "nbody, 5M steps",
];

/// The number of rounds for slow actions.
const FEW: usize = 20;

const SLEEPERS: usize = 50;

/// The smallest module that sleeps. It sleeps for a million seconds.
const SLEEP: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1)) ;; a clock's subscription: the monotonic clock,
    (i64.store (i32.const 24) (i64.const 1000000000000000)) ;; in so many nanoseconds
    (drop (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

/// A bundle whose rootfs contains only a module.
pub(super) fn bundle_of(host: &Host, name: &str, module: &Path, args: &[&str]) -> Outcome<PathBuf> {
    let rootfs = |rootfs: &Path| Ok(fs::copy(module, rootfs.join("app.wasm")).map(drop)?);
    bundle(host, name, &rootfs, &|config| {
        config["process"]["args"] = json!([&["/app.wasm"], args].concat());
        config["annotations"] = json!({ "run.oci.handler": "wasm" });
    })
}

/// The ways in which `rt` and others run a module.
struct Ways<'a> {
    host: &'a Host,
    /// The benchmark's directory, with the programs to compare with.
    out: &'a Path,
    /// The file of settings for Wasm, with a cache.
    cached: PathBuf,
    /// crun with WasmEdge, and WasmEdge's tool, if they are there.
    crun: Option<PathBuf>,
    wasmedge: Option<PathBuf>,
    /// The library path of these two programs.
    libraries: String,
}

impl Ways<'_> {
    fn new<'a>(host: &'a Host, out: &'a Path) -> Outcome<Ways<'a>> {
        let cached = host.folder.join("cached.json");
        let cache = host.folder.join("cache");
        fs::write(&cached, json!({ "cache": { "directory": cache } }).to_string())?;
        let program = |path: &str| Some(out.join(path)).filter(|path| path.is_file());
        let libraries = fs::read_to_string(out.join("wasmedge/libraries")).unwrap_or_default();
        Ok(Ways {
            host,
            out,
            cached,
            crun: program("crun-wasmedge/crun"),
            wasmedge: program("wasmedge/wasmedge"),
            libraries: libraries.trim().to_owned(),
        })
    }

    fn interpreted(&self) -> Command {
        super::runtime(&self.host.runtime, self.host)
    }

    fn native(&self) -> Command {
        runtime_with(&self.host.runtime, self.host, &self.cached)
    }

    fn crun(&self) -> Option<Command> {
        let path = self.crun.as_ref()?;
        let mut command = Command::new(path);
        command.arg("--root").arg(state_of(path, self.host));
        command.env("LD_LIBRARY_PATH", &self.libraries);
        Some(command)
    }

    fn floor(&self, bundle: &Path) -> Command {
        let mut floor = floor(&self.out.join("floor"), bundle, "/app.wasm", self.host);
        floor.env("FLOOR_ENGINE", engine(self.host));
        floor
    }

    /// All ways to run the module of a bundle.
    fn runs(&self, bundle: &Path, native: &Path) -> Vec<Contestant> {
        let run = |name: &str, mut command: Command| {
            command.args(["run", "--bundle"]).arg(bundle).arg("bench");
            repeated(name, command)
        };
        let mut all = vec![run("rt", self.interpreted()), run("rt, native", self.native())];
        all.extend(self.crun().map(|crun| run("crun", crun)));
        all.push(repeated("floor", self.floor(bundle)));
        let mut floor = self.floor(bundle);
        floor.env("FLOOR_NATIVE", native);
        all.push(repeated("floor, native", floor));
        all
    }

    /// Has a module compiled, and returns the file of native code.
    fn compile(&self, module: &Path) -> Outcome<PathBuf> {
        timed(self.native().args(["wasm", "compile"]).arg(module))?;
        let entry = self.compiled(module)?.ok_or("it was not compiled")?;
        Ok(self.file(&entry))
    }

    /// The entry of a module in the cache. The size of a module distinguishes it from others.
    fn compiled(&self, module: &Path) -> Outcome<Option<Value>> {
        let list = self.native().args(["wasm", "cache", "list", "--format=json"]).output()?;
        let entries: Vec<Value> = serde_json::from_slice(&list.stdout)?;
        let bytes = fs::metadata(module)?.len();
        Ok(entries.into_iter().find(|entry| entry["native"]["moduleBytes"] == bytes))
    }

    fn file(&self, entry: &Value) -> PathBuf {
        let key = entry["key"].as_str().unwrap_or_default();
        self.host.folder.join("cache").join(format!("{key}.so"))
    }
}

fn engine(host: &Host) -> PathBuf {
    let place = host.runtime.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    place.join("libexec/rt/wasmedge")
}

pub(super) fn measure(out: &Path) -> Outcome {
    let host = Host::find()?;
    if !engine(&host).join("compiler").is_dir() {
        return Err(Stop::Skipped("the engine's compiler is not there: no modules".into()));
    }
    let state = StateInMemory::mount(&host)?;
    let ways = Ways::new(&host, out)?;
    println!("\n== modules, lane {}", host.lane);
    for (name, there) in
        [("crun with WasmEdge", ways.crun.is_some()), ("wasmedge", ways.wasmedge.is_some())]
    {
        if !there {
            println!("({name} is left out: it could not be had)");
        }
    }
    let (mut times, mut targets) = (Times::new(), Targets::default());
    starts(&ways, &mut times, &mut targets)?;
    lookup(&ways, &mut times, &mut targets)?;
    work(&ways, &mut times, &mut targets)?;
    asleep(&ways, &mut targets)?;
    servers(&ways, &mut targets)?;
    print(&times);
    targets.print();
    let file = out.join("wasm.json");
    let numbers = json!({ "lane": host.lane, "milliseconds": times, "targets": targets.json() });
    fs::write(&file, serde_json::to_string_pretty(&numbers)?)?;
    println!("raw numbers: {}", file.display());
    drop(state);
    host.remove();
    Ok(())
}

/// The median of one cell of the table.
fn of(times: &Times, row: &str, name: &str) -> Outcome<f64> {
    let all = times.get(row).and_then(|names| names.get(name));
    Ok(median(all.ok_or_else(|| format!("{row}: no {name}"))?))
}

fn starts(ways: &Ways<'_>, times: &mut Times, targets: &mut Targets) -> Outcome {
    let host = ways.host;
    let linux = linux(host, "true", &["/bin/true"])?;
    let mut plain = vec![run_of("rt", &host.runtime, &linux, host)];
    if let Some(crun) = std::env::var_os("CRUN").map(PathBuf::from).filter(|path| path.is_file()) {
        plain.push(run_of("crun", &crun, &linux, host));
    }
    plain.push(repeated("floor", floor(&ways.out.join("floor"), &linux, "/bin/true", host)));

    let module = host.guest("hello")?;
    let hello = bundle_of(host, "hello", &module, &[])?;
    let hello = ways.runs(&hello, &ways.compile(&module)?);

    let module = host.guest("large")?;
    let large = bundle_of(host, "large", &module, &[])?;
    let mut first = ways.native();
    let first = timed(first.args(["run", "--bundle"]).arg(&large).arg("bench"))?;
    // The compiler runs in the background, with the lowest priority.
    wait_up_to(Duration::from_secs(600), "the large module is compiled", || {
        ways.compiled(&module).is_ok_and(|entry| entry.is_some())
    })?;
    let entry = ways.compiled(&module)?.ok_or("it was not compiled")?;
    let native = ways.file(&entry);
    let rows = [
        ("run /bin/true", plain),
        ("run hello-world", hello),
        ("run a 2 MB module", ways.runs(&large, &native)),
    ];
    // In the same rounds, because the rows are compared with each other.
    round_robin(&rows, super::ROUNDS, times)?;

    let hello = "run hello-world";
    let interpreted = of(times, hello, "rt")?;
    match of(times, hello, "crun") {
        Ok(crun) => targets.at_most("hello-world: rt / crun + WasmEdge", 0.25, interpreted / crun),
        // Measured on a host that had both: crun with WasmEdge took 46 ms, and `crun run /bin/true`
        // took 10 ms.
        Err(_) => targets.at_most(
            "hello-world: rt / 4.6 times crun's /bin/true, in place of crun + WasmEdge",
            0.25,
            interpreted / (4.6 * of(times, "run /bin/true", "crun")?),
        ),
    }
    let beside = interpreted / of(times, hello, "floor")?;
    targets.at_most("hello-world: rt / the floor with the engine", 1.3, beside);
    let second = of(times, hello, "rt, native")?;
    targets.at_most("hello-world: native / interpreter", 1.0, second / interpreted);
    let large = of(times, "run a 2 MB module", "rt, native")?;
    targets.at_most("2 MB module, second start / hello-world, native", 1.5, large / second);
    targets.tell("2 MB module, first start (once, the interpreter), ms", first);
    targets.tell("2 MB module, second start, ms", large);
    let milliseconds = entry["native"]["milliseconds"].as_f64().unwrap_or_default();
    targets.tell("2 MB module, compiled in the background in, s", milliseconds / 1e3);
    targets.tell("2 MB module, native code, MB", fs::metadata(native)?.len() as f64 / 1e6);
    Ok(())
}

fn linux(host: &Host, name: &str, args: &[&str]) -> Outcome<PathBuf> {
    let fill = |rootfs: &Path| host.fill_rootfs(rootfs);
    bundle(host, name, &fill, &|config| config["process"]["args"] = json!(args))
}

/// `create` ends after the lookup of the module, and before the engine starts.
fn lookup(ways: &Ways<'_>, times: &mut Times, targets: &mut Targets) -> Outcome {
    const SIZE: usize = 5_000_000;
    let mut bytes = fs::read(ways.host.guest("hello")?)?;
    // A custom section, which no engine reads.
    let length = SIZE - bytes.len();
    bytes.push(0);
    bytes
        .extend((0..5).map(|at| (length >> (7 * at)) as u8 & 0x7f | if at < 4 { 0x80 } else { 0 }));
    bytes.extend(b"\x03pad");
    bytes.extend((4..length).map(|at| (at * 31 % 256) as u8));
    let module = ways.host.folder.join("padded.wasm");
    fs::write(&module, bytes)?;
    ways.compile(&module)?;
    let folder = bundle_of(ways.host, "padded", &module, &[])?;
    let creation = |name: &str, way: &dyn Fn() -> Command| {
        let (mut create, mut delete) = (way(), way());
        create.args(["create", "--bundle"]).arg(&folder).arg("bench");
        delete.args(["delete", "--force", "bench"]);
        let once = move |_| {
            let milliseconds = timed(&mut again(&create, 0))?;
            timed(&mut again(&delete, 0))?;
            Ok(milliseconds)
        };
        Contestant { name: name.to_owned(), once: Box::new(once) }
    };
    let both =
        vec![creation("rt", &|| ways.interpreted()), creation("rt, native", &|| ways.native())];
    let row = "create, 5 MB module";
    round_robin(&[(row, both)], super::ROUNDS, times)?;
    let longer = of(times, row, "rt, native")? - of(times, row, "rt")?;
    targets.at_most(
        "lookup of a 5 MB module (create with the cache, less without), ms",
        2.0,
        longer,
    );
    Ok(())
}

/// The time inside the guest. The guest prints it as its last word.
fn work(ways: &Ways<'_>, times: &mut Times, targets: &mut Targets) -> Outcome {
    let inside = |name: &str, command: Command| {
        let once = move |_| {
            let output = again(&command, 0).stdin(Stdio::null()).output()?;
            ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
            let text = String::from_utf8(output.stdout)?;
            let microseconds = text.split_whitespace().last().ok_or("no time")?;
            Ok(microseconds.parse::<f64>()? / 1e3)
        };
        Contestant { name: name.to_owned(), once: Box::new(once) }
    };
    let module = ways.host.guest("cpu")?;
    let native = ways.compile(&module)?;
    for (row, args) in [
        ("fib(35)", ["fib", "35"]),
        ("sha256 of 100 MB", ["sha256", "100"]),
        ("nbody, 5M steps", ["nbody", "5000000"]),
    ] {
        let run = |name: &str, mut command: Command, bundle: &Path| {
            command.args(["run", "--bundle"]).arg(bundle).arg("bench");
            inside(name, command)
        };
        let of_module = bundle_of(ways.host, args[0], &module, &args)?;
        let program = ways.out.join("cpu");
        let of_linux = bundle(
            ways.host,
            &format!("{}-linux", args[0]),
            &|rootfs| Ok(fs::copy(&program, rootfs.join("cpu")).map(drop)?),
            &|config| config["process"]["args"] = json!([&["/cpu"], &args[..]].concat()),
        )?;
        let mut all = vec![
            run("rt, native", ways.native(), &of_module),
            run("Linux", ways.interpreted(), &of_linux),
        ];
        if let Some(path) = &ways.wasmedge {
            let mut tool = Command::new(path);
            tool.env("LD_LIBRARY_PATH", &ways.libraries);
            tool.args(["run", "--run-mode", "aot"]).arg(&native).args(args);
            all.push(inside("wasmedge", tool));
        }
        round_robin(&[(row, all)], FEW, times)?;
        let own = of(times, row, "rt, native")?;
        targets.at_least(
            format!("{row}: speed / the same source compiled natively"),
            0.9,
            of(times, row, "Linux")? / own,
        );
        if let Ok(tool) = of(times, row, "wasmedge") {
            targets.at_most(format!("{row}: time / WasmEdge's own tool"), 1.05, own / tool);
        }
    }
    Ok(())
}

fn sleeper(host: &Host) -> Outcome<PathBuf> {
    let module = host.folder.join("sleep.wasm");
    fs::write(&module, wat::parse_str(SLEEP)?)?;
    Ok(module)
}

fn asleep(ways: &Ways<'_>, targets: &mut Targets) -> Outcome {
    let host = ways.host;
    let (interpreted, native) = (|| ways.interpreted(), || ways.native());
    let megabytes = |kilobytes: u64| kilobytes as f64 / 1e3;
    let what = |what: &str| format!("PSS of one of {SLEEPERS}: {what}, MB");
    let module = sleeper(host)?;
    ways.compile(&module)?;
    let small = bundle_of(host, "sleeper", &module, &[])?;
    let pss =
        |way: &dyn Fn() -> Command, bundle: &Path| with_sleepers(way, bundle, SLEEPERS, memory);
    let compiled = pss(&native, &small)?;
    targets.at_most(what("a sleeping module, native"), 2.5, megabytes(compiled.own));
    let memory = pss(&interpreted, &small)?;
    targets.at_most(what("a sleeping module, interpreter"), 2.5, megabytes(memory.own));
    if ways.crun.is_some() {
        let crun = || ways.crun().unwrap_or_else(|| Command::new("false"));
        let memory = pss(&crun, &small)?;
        targets.tell(what("a sleeping module, crun + WasmEdge"), megabytes(memory.own));
    }
    let memory = pss(&interpreted, &linux(host, "sleep", &["/bin/sleep", "1000000"])?)?;
    targets.tell(what("busybox's `sleep`, a Linux container"), megabytes(memory.own));
    let large = bundle_of(host, "large-sleeper", &host.guest("large")?, &["sleep"])?;
    let memory = pss(&native, &large)?;
    targets.tell(what("a 2 MB module, native"), megabytes(memory.own));
    targets.tell("  of it, native code, which all share, MB", megabytes(memory.code));
    targets.tell("  in memory of native code, MB", megabytes(memory.whole_code));
    let memory = pss(&interpreted, &large)?;
    targets.tell(what("a 2 MB module, interpreter"), megabytes(memory.own));
    Ok(())
}

fn servers(ways: &Ways<'_>, targets: &mut Targets) -> Outcome {
    let module = ways.host.guest("http-server")?;
    ways.compile(&module)?;
    let bundle = &bundle_of(ways.host, "http-server", &module, &[])?;
    let service = Service { bundle, port: 8080, path: "/", hello: "Hello from Wasm!" };
    alive::servers(&|| ways.native(), "HTTP servers", &service, targets)
}

/// The memory that the kernel charges to a sleeping container, where cgroups have all controllers.
pub(super) fn memory_in_cgroups(host: &Host) -> Outcome {
    const NUMBER: usize = 10;
    let cached = host.folder.join("cached.json");
    let settings =
        json!({ "compile": "eager", "cache": { "directory": host.folder.join("cache") } });
    fs::write(&cached, settings.to_string())?;
    let interpreted = || super::runtime(&host.runtime, host);
    let native = || runtime_with(&host.runtime, host, &cached);
    let small = bundle_of(host, "sleeper", &sleeper(host)?, &[])?;
    let linux = linux(host, "sleeping", &["/bin/sleep", "1000000"])?;
    let current = |way: &dyn Fn() -> Command, bundle: &Path| -> Outcome<f64> {
        let all = with_sleepers(way, bundle, NUMBER, |pids| {
            let current = |pid: &i64| -> Outcome<f64> {
                let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
                let path = cgroup.trim().strip_prefix("0::").ok_or("no cgroup of v2")?;
                let current = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.current"))?;
                Ok(current.trim().parse::<f64>()? / 1e6)
            };
            pids.iter().map(current).collect::<Outcome<Vec<_>>>()
        })?;
        Ok(median(&all))
    };
    // The kernel charges the shared files to the first container.
    let linux = current(&interpreted, &linux)?;
    let interpreted = current(&interpreted, &small)?;
    let mut targets = Targets::default();
    let what = |what: &str| format!("memory.current, median of {NUMBER} that sleep: {what}, MB");
    targets.tell(what("busybox's `sleep`, a Linux container"), linux);
    targets.at_most(what("a module, interpreter"), linux + 3.0, interpreted);
    if engine(host).join("compiler").is_dir() {
        targets.at_most(what("a module, native"), linux + 3.0, current(&native, &small)?);
    }
    targets.print();
    Ok(())
}

fn print(times: &Times) {
    println!(
        "medians of {} and, of what computes, {FEW}, in milliseconds, after {WARM_UP} that do not count",
        super::ROUNDS,
    );
    println!("{:22}{}", "", NAMES.map(|name| format!("{name:>15}")).concat());
    for row in ROWS {
        let Some(contestants) = times.get(row) else { continue };
        let cells = NAMES.map(|name| {
            contestants
                .get(name)
                .map_or_else(|| format!("{:>15}", "-"), |all| format!("{:>15.2}", median(all)))
        });
        println!("{row:22}{}", cells.concat());
    }
}
