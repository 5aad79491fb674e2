//! The second engine: the start of components and of Spin apps, the requests that they answer, and
//! their memory. They are compared with Linux containers, crun with WasmEdge, and wasmtime's own
//! tool. Each value is printed beside its target. No test asserts the targets.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::alive::{self, Service, Way, in_network, memory, pid, with_sleepers};
use super::targets::Targets;
use super::wasm::bundle_of;
use super::{
    Contestant, StateInMemory, Times, WARM_UP, again, bundle, median, repeated, round_robin,
    run_of, runtime_with, state_of, timed,
};
use crate::harness::{Host, Outcome, Stop, ensure, wait_up_to};

/// The names in the order of the columns.
const NAMES: [&str; 5] = ["rt", "rt, WasmEdge", "crun", "wasmtime", "Linux"];

/// The rows in the order of the table.
const ROWS: [&str; 9] = [
    "run /bin/true",
    "run hello, component",
    "run hello, module",
    "first response, handler",
    "first response, WASI 0.3",
    "first response, Spin app",
    "99 of 100 responses, handler",
    "99 of 100 responses, Spin app",
    "fib(38)",
];

/// How many are alive for a measurement of memory.
const SLEEPERS: usize = 10;

/// How many clients ask at the same time, how long, and how often.
const CLIENTS: usize = 32;
const TIME: Duration = Duration::from_secs(2);
const TURNS: usize = 7;

/// The number of rounds for what computes.
const FEW: usize = 7;

/// The processors of the servers and of the clients.
const SERVER: usize = 0;
const CLIENT: usize = 1;

const SPIN: &str = "Hello from Spin!";

struct Bench<'a> {
    host: &'a Host,
    /// The benchmark's directory, with the programs to compare with.
    out: &'a Path,
    /// The file of settings for Wasm, with a cache.
    settings: PathBuf,
}

pub(super) fn measure(out: &Path) -> Outcome {
    let host = Host::find()?;
    let engine = host.runtime.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let engine = engine.join("libexec/rt/wasmtime");
    if !engine.join("compiler").is_dir() {
        return Err(Stop::Skipped("the engine's compiler is not there: no components".into()));
    }
    let state = StateInMemory::mount(&host)?;
    let settings = host.folder.join("components.json");
    let cache = host.folder.join("components");
    fs::write(&settings, json!({ "cache": { "directory": cache } }).to_string())?;
    let bench = Bench { host: &host, out, settings };
    println!("\n== components, lane {}", host.lane);
    let (mut times, mut targets) = (Times::new(), Targets::default());
    bench.sizes(&engine, &mut targets)?;
    bench.starts(&mut times, &mut targets)?;
    bench.first_responses(&mut times, &mut targets)?;
    bench.requests(&mut times, &mut targets)?;
    bench.asleep(&mut targets)?;
    bench.crowd(&mut targets)?;
    bench.work(&mut times, &mut targets)?;
    print(&times);
    targets.print();
    let file = out.join("components.json");
    let numbers = json!({ "lane": host.lane, "milliseconds": times, "targets": targets.json() });
    fs::write(&file, serde_json::to_string_pretty(&numbers)?)?;
    println!("raw numbers: {}", file.display());
    drop(state);
    host.remove();
    Ok(())
}

/// The median of one cell of the table.
fn of(times: &Times, row: &str, name: &str) -> Option<f64> {
    times.get(row)?.get(name).map(|all| median(all))
}

impl Bench<'_> {
    fn rt(&self) -> Command {
        runtime_with(&self.host.runtime, self.host, &self.settings)
    }

    /// A bundle of a component, which is compiled.
    fn component(&self, name: &str, args: &[&str]) -> Outcome<PathBuf> {
        if let Some(made) = self.made(&format!("component-{name}")) {
            return Ok(made);
        }
        let component = self.host.component(name)?;
        self.compiled(bundle_of(self.host, &format!("component-{name}"), &component, args)?)
    }

    /// A bundle that was made before.
    fn made(&self, name: &str) -> Option<PathBuf> {
        let folder = self.host.folder.join("bench").join(name);
        folder.join("config.json").exists().then_some(folder)
    }

    fn compiled(&self, bundle: PathBuf) -> Outcome<PathBuf> {
        timed(self.rt().args(["wasm", "compile"]).arg(&bundle))?;
        Ok(bundle)
    }

    /// A bundle of a Spin app with one component.
    fn app(&self) -> Outcome<PathBuf> {
        if let Some(made) = self.made("app") {
            return Ok(made);
        }
        let module = self.host.guest("spin3")?;
        let manifest = "spin_manifest_version = 2\n[application]\nname = \"app\"\n\
                        [[trigger.http]]\nroute = \"/...\"\ncomponent = \"a\"\n\
                        [component.a]\nsource = \"spin3.wasm\"\n";
        let rootfs = |rootfs: &Path| {
            fs::write(rootfs.join("spin.toml"), manifest)?;
            Ok(fs::copy(&module, rootfs.join("spin3.wasm")).map(drop)?)
        };
        let made = bundle(self.host, "app", &rootfs, &|config| {
            config["process"]["args"] = json!(["/spin.toml"]);
            config["annotations"] = json!({ "run.oci.handler": "wasm" });
            config["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "0" });
        });
        self.compiled(made?)
    }

    fn sizes(&self, engine: &Path, targets: &mut Targets) -> Outcome {
        let mut bytes = 0;
        for entry in fs::read_dir(engine)? {
            let about = entry?.metadata()?;
            bytes += if about.is_file() { about.len() } else { 0 };
        }
        targets.at_most("the engine's directory without its compiler, MB", 6.0, bytes as f64 / 1e6);
        let rt = fs::metadata(&self.host.runtime)?.len();
        targets.at_most("rt, MB", 4.0, rt as f64 / 1e6);
        Ok(())
    }

    fn starts(&self, times: &mut Times, targets: &mut Targets) -> Outcome {
        let host = self.host;
        let fill = |rootfs: &Path| host.fill_rootfs(rootfs);
        let linux = bundle(host, "true", &fill, &|config| {
            config["process"]["args"] = json!(["/bin/true"]);
        })?;
        let mut plain = vec![run_of("rt", &host.runtime, &linux, host)];
        if let Some(crun) = std::env::var_os("CRUN").map(PathBuf::from) {
            plain.push(run_of("crun", &crun, &linux, host));
        }
        let run = |name: &str, mut command: Command, bundle: &Path| {
            command.args(["run", "--bundle"]).arg(bundle).arg("bench");
            repeated(name, command)
        };
        let component = self.component("hello", &[])?;
        let module = host.guest("hello")?;
        let by = |name: &str, handler: &'static str| {
            let rootfs = |rootfs: &Path| Ok(fs::copy(&module, rootfs.join("app.wasm")).map(drop)?);
            bundle(host, name, &rootfs, &|config| {
                config["process"]["args"] = json!(["/app.wasm"]);
                config["annotations"] = json!({ "run.oci.handler": handler });
            })
        };
        let by_wasmtime = self.compiled(by("hello-wasmtime", "wasmtime")?)?;
        let by_wasmedge = by("hello-wasmedge", "wasm")?;
        let mut modules = vec![run("rt", self.rt(), &by_wasmtime)];
        if self.compiled(by_wasmedge.clone()).is_ok() {
            modules.push(run("rt, WasmEdge", self.rt(), &by_wasmedge));
        }
        let crun = self.out.join("crun-wasmedge/crun");
        if crun.is_file() {
            let libraries = fs::read_to_string(self.out.join("wasmedge/libraries"))?;
            let mut command = Command::new(&crun);
            command.arg("--root").arg(state_of(&crun, host));
            command.env("LD_LIBRARY_PATH", libraries.trim());
            modules.push(run("crun", command, &by_wasmedge));
        }
        let rows = [
            ("run /bin/true", plain),
            ("run hello, component", vec![run("rt", self.rt(), &component)]),
            ("run hello, module", modules),
        ];
        // In the same rounds, because the rows are compared with each other.
        round_robin(&rows, super::ROUNDS, times)?;
        let linux = of(times, "run /bin/true", "rt").ok_or("no Linux container")?;
        let beside = of(times, "run hello, module", "crun");
        for row in ["run hello, component", "run hello, module"] {
            let own = of(times, row, "rt").ok_or("it did not run")?;
            targets.at_most(format!("{row}: by wasmtime / run /bin/true"), 1.6, own / linux);
            if let Some(crun) = beside {
                targets.at_most(format!("{row}: by wasmtime / crun + WasmEdge"), 0.2, own / crun);
            }
        }
        if let (Some(own), Some(crun)) = (of(times, "run hello, module", "rt, WasmEdge"), beside) {
            targets.at_most("run hello, module: by WasmEdge / crun + WasmEdge", 0.25, own / crun);
        }
        Ok(())
    }

    /// The time from the call of `start` to the last byte of the first response. The server listens
    /// from `create` on.
    fn first_responses(&self, times: &mut Times, targets: &mut Targets) -> Outcome {
        let handler = self.component("handler", &[])?;
        let newer = self.component("handler3", &[])?;
        let app = self.app()?;
        let services = [
            ("first response, handler", handler, 8080, "/request"),
            ("first response, WASI 0.3", newer, 8080, "/request"),
            ("first response, Spin app", app, 80, "/hello"),
        ];
        for round in 0..super::ROUNDS / 2 + WARM_UP {
            for (row, bundle, port, path) in &services {
                timed(self.rt().args(["create", "--bundle"]).arg(bundle).arg("bench"))?;
                let taken = in_network(pid(self.rt(), "bench")?, || {
                    let mut stream = TcpStream::connect(("127.0.0.1", *port))?;
                    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                    let request = request(path, "close");
                    stream.write_all(request.as_bytes())?;
                    let begun = Instant::now();
                    timed(self.rt().args(["start", "bench"]))?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    ensure(answer.starts_with("HTTP/1.1 200 "), &answer)?;
                    Ok(begun.elapsed().as_secs_f64() * 1e3)
                });
                timed(self.rt().args(["delete", "--force", "bench"]))?;
                if round >= WARM_UP {
                    let names = times.entry((*row).to_owned()).or_default();
                    names.entry("rt".into()).or_default().push(taken?);
                }
            }
        }
        for (row, ..) in &services {
            let measured = of(times, row, "rt").ok_or("no response")?;
            targets.at_most(format!("{row}, ms after `rt start`"), 10.0, measured);
        }
        Ok(())
    }

    /// Requests for an empty response, by many clients at once. Each server has one processor for
    /// itself, and the clients have another one.
    fn requests(&self, times: &mut Times, targets: &mut Targets) -> Outcome {
        let mut rates: Vec<(&str, Vec<f64>)> = Vec::new();
        let handler = self.component("handler", &[])?;
        let newer = self.component("handler3", &[])?;
        let app = self.app()?;
        let mut servers = vec![
            ("handler", "rt", self.server("handler", &handler, 8080, "/status/200")?),
            ("WASI 0.3", "rt", self.server("newer", &newer, 8080, "/status/200")?),
            ("Spin app", "rt", self.server("app", &app, 80, "/hello")?),
        ];
        match self.tool()? {
            Some(tool) => servers.push(("wasmtime serve", "wasmtime", tool)),
            None => println!("(`wasmtime serve` is left out: it is not there)"),
        }
        for turn in 0..=TURNS {
            for (what, name, server) in &servers {
                let (rate, slowest) = server.load()?;
                // The first turn does not count.
                if turn == 0 {
                    continue;
                }
                match rates.iter_mut().find(|(other, _)| other == what) {
                    Some((_, all)) => all.push(rate),
                    None => rates.push((what, vec![rate])),
                }
                let row = if *what == "Spin app" { ROWS[7] } else { ROWS[6] };
                if *what != "WASI 0.3" {
                    let names = times.entry(row.to_owned()).or_default();
                    names.entry((*name).to_owned()).or_default().push(slowest);
                }
            }
        }
        drop(servers);
        for id in ["handler", "newer", "app"] {
            timed(self.rt().args(["delete", "--force", id]))?;
        }
        let rate =
            |what: &str| rates.iter().find(|(other, _)| *other == what).map(|(_, all)| median(all));
        for (what, all) in &rates {
            targets.tell(format!("{what}: requests in a second, {CLIENTS} at once"), median(all));
        }
        if let (Some(handler), Some(app)) = (rate("handler"), rate("Spin app")) {
            targets.at_least("Spin app: requests / those of a handler", 0.9, app / handler);
            if let Some(tool) = rate("wasmtime serve") {
                targets.at_least("handler: requests / `wasmtime serve`", 1.0, handler / tool);
            }
        }
        Ok(())
    }

    fn server<'s>(&self, id: &str, bundle: &Path, port: u16, path: &'s str) -> Outcome<Loaded<'s>> {
        timed(self.rt().args(["run", "--detach", "--bundle"]).arg(bundle).arg(id))?;
        let pid = pid(self.rt(), id)?;
        Loaded::new(pid, port, path, None)
    }

    /// wasmtime's own server.
    fn tool(&self) -> Outcome<Option<Loaded<'static>>> {
        const PORT: u16 = 38_080;
        let tool = self.out.join("wasmtime/bin/wasmtime");
        if !tool.is_file() {
            return Ok(None);
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "/bin/sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]);
        command.arg(tool).args(["serve", "-S", "cli", "--addr"]).arg(format!("127.0.0.1:{PORT}"));
        command.arg(self.host.component("handler")?);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn()?;
        let pid = i64::from(child.id());
        Loaded::new(pid, PORT, "/status/200", Some(child)).map(Some)
    }

    fn asleep(&self, targets: &mut Targets) -> Outcome {
        let what = |what: &str| format!("PSS of one of {SLEEPERS}: {what}, MB");
        let way = || self.rt();
        let sleeping = self.component("probe", &["sleep"])?;
        let own = with_sleepers(&way, &sleeping, SLEEPERS, memory)?.own;
        targets.at_most(what("a sleeping component"), 0.8, own as f64 / 1e3);
        let handler = self.component("handler", &[])?;
        let newer = self.component("handler3", &[])?;
        let app = self.app()?;
        for (name, bundle, port, path) in [
            ("an idle handler", &handler, 8080, "/request"),
            ("an idle handler of WASI 0.3", &newer, 8080, "/request"),
            ("an idle Spin app", &app, 80, "/hello"),
        ] {
            let service = Service { bundle, port, path, hello: "" };
            let own = with_sleepers(&way, bundle, SLEEPERS, |pids| {
                pids.iter().try_for_each(|pid| service.answers(*pid))?;
                memory(pids)
            })?;
            targets.at_most(what(name), 1.0, own.own as f64 / 1e3);
        }
        Ok(())
    }

    fn crowd(&self, targets: &mut Targets) -> Outcome {
        let bundle = &self.app()?;
        let service = Service { bundle, port: 80, path: "/hello", hello: SPIN };
        let way: Way<'_> = &|| self.rt();
        alive::servers(way, "Spin apps", &service, targets)
    }

    /// The time inside the guest. The guest prints it as its last word.
    fn work(&self, times: &mut Times, targets: &mut Targets) -> Outcome {
        let row = "fib(38)";
        let args = ["fib", "38"];
        let inside = |name: &str, mut command: Command, bundle: &Path| {
            command.args(["run", "--bundle"]).arg(bundle).arg("bench");
            let once = move |_| {
                let output = again(&command, 0).stdin(Stdio::null()).output()?;
                ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
                let text = String::from_utf8(output.stdout)?;
                let microseconds = text.split_whitespace().last().ok_or("no time")?;
                Ok(microseconds.parse::<f64>()? / 1e3)
            };
            Contestant { name: name.to_owned(), once: Box::new(once) }
        };
        let component = self.component("cpu", &args)?;
        let module = self.host.guest("cpu")?;
        let by_wasmedge = bundle_of(self.host, "cpu-module", &module, &args)?;
        let mut all = vec![inside("rt", self.rt(), &component)];
        if self.compiled(by_wasmedge.clone()).is_ok() {
            all.push(inside("rt, WasmEdge", self.rt(), &by_wasmedge));
        }
        let program = self.out.join("cpu");
        if program.is_file() {
            let linux = bundle(
                self.host,
                "cpu-linux",
                &|rootfs| Ok(fs::copy(&program, rootfs.join("cpu")).map(drop)?),
                &|config| config["process"]["args"] = json!([&["/cpu"], &args[..]].concat()),
            )?;
            all.push(inside("Linux", self.rt(), &linux));
        }
        round_robin(&[(row, all)], FEW, times)?;
        let own = of(times, row, "rt").ok_or("it did not run")?;
        for (name, what) in
            [("Linux", "the same source compiled natively"), ("rt, WasmEdge", "by WasmEdge")]
        {
            if let Some(other) = of(times, row, name) {
                targets.tell(format!("{row}, component: speed / {what}"), other / own);
            }
        }
        Ok(())
    }
}

fn request(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n")
}

/// A server that is asked by many clients at once.
struct Loaded<'a> {
    pid: i64,
    port: u16,
    path: &'a str,
    /// The server's process, if no container has it.
    child: Option<Child>,
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl<'a> Loaded<'a> {
    fn new(pid: i64, port: u16, path: &'a str, child: Option<Child>) -> Outcome<Loaded<'a>> {
        let loaded = Loaded { pid, port, path, child };
        wait_up_to(Duration::from_secs(60), "the server answers", || {
            let bundle = Path::new("");
            Service { bundle, port, path, hello: "" }.answers(pid).is_ok()
        })?;
        // All threads, and those that they start.
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?.file_name().to_string_lossy().parse::<i32>()?;
            pin(rustix::process::Pid::from_raw(thread), SERVER)?;
        }
        Ok(loaded)
    }

    /// Asks for some time. Returns the number of responses in a second, and the milliseconds in
    /// which 99 of 100 responses come.
    fn load(&self) -> Outcome<(f64, f64)> {
        let mut taken = in_network(self.pid, || {
            pin(None, CLIENT)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let end = Instant::now() + TIME;
                let clients = (0..CLIENTS).map(|_| {
                    tokio::task::spawn(ask(self.port, request(self.path, "keep-alive"), end))
                });
                let mut all = Vec::new();
                for client in clients.collect::<Vec<_>>() {
                    all.extend(client.await??);
                }
                Ok(all)
            })
        })?;
        taken.sort_by(f64::total_cmp);
        let slowest = *taken.get(taken.len() * 99 / 100).ok_or("no response")?;
        Ok((taken.len() as f64 / TIME.as_secs_f64(), slowest))
    }
}

/// Asks again and again on one connection, and returns the milliseconds that each response took.
async fn ask(port: u16, request: String, end: Instant) -> std::io::Result<Vec<f64>> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut all, mut buffer) = (Vec::new(), Vec::with_capacity(4096));
    while Instant::now() < end {
        let begun = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        buffer.clear();
        while !is_complete(&buffer) {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !buffer.starts_with(b"HTTP/1.1 200 ") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&buffer).into_owned()));
        }
        all.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(all)
}

/// Whether a response is complete, whose length is told, or which is in chunks.
fn is_complete(response: &[u8]) -> bool {
    let find = |text: &[u8]| response.windows(text.len()).position(|it| it == text);
    let Some(head) = find(b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&response[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    match length.and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => response.len() >= head + 4 + length,
        None => response.ends_with(b"0\r\n\r\n"),
    }
}

/// Lets a thread, or the calling one, run on one processor only.
fn pin(thread: Option<rustix::process::Pid>, processor: usize) -> Outcome {
    let mut only = rustix::thread::CpuSet::new();
    only.set(processor);
    Ok(rustix::thread::sched_setaffinity(thread, &only)?)
}

fn print(times: &Times) {
    println!(
        "medians of {} ({} for first responses, {TURNS} for requests, {FEW} for what computes), in milliseconds",
        super::ROUNDS,
        super::ROUNDS / 2
    );
    println!("{:32}{}", "", NAMES.map(|name| format!("{name:>13}")).concat());
    for row in ROWS.iter().filter(|row| times.contains_key(**row)) {
        let cells = NAMES.map(|name| {
            of(times, row, name).map_or_else(|| format!("{:>13}", "-"), |it| format!("{it:>13.2}"))
        });
        println!("{row:32}{}", cells.concat());
    }
}
