//! The command line with which `rt` starts an engine program (`docs/engine.md`, "How it is
//! started"). The parser opens and closes nothing.
#![forbid(unsafe_code)]

use std::ffi::{OsString, c_int};
use std::str::FromStr;

use crate::Program;

/// The version of the contract.
pub const VERSION: u32 = 2;

/// The work that `rt` gives this program.
#[derive(Debug, Eq, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a process has one of it")]
pub enum Work {
    /// Run a module.
    Run(Contract),
    /// Compile a module from standard input to native code on standard output. `counting` says
    /// whether the code counts instructions.
    Compile { counting: bool },
}

/// A descriptor that the command line names and that has no owner yet. No other `Descriptor` has
/// the same number.
#[derive(Debug, Eq, PartialEq)]
pub struct Descriptor(c_int);

impl Descriptor {
    pub fn number(&self) -> c_int {
        self.0
    }

    /// The number, for the one who takes the descriptor over.
    pub(crate) fn take(self) -> c_int {
        self.0
    }
}

/// How to run a module, as the command line says it.
#[derive(Debug, Eq, PartialEq)]
pub struct Contract {
    pub environment: Descriptor,
    pub run: Run<Descriptor>,
}

/// How to run a module. `D` is a descriptor of the command line, or the file that it has become.
#[derive(Debug, Eq, PartialEq)]
pub struct Run<D> {
    /// The engine's directory. It stays open, because the C library may still load files from it.
    pub engine_dir: D,
    pub module: D,
    /// The module's native code, if it has any.
    pub native: Option<D>,
    /// The native code of an app's modules, in the order of its plan.
    pub parts: Vec<D>,
    /// The directory of the plugins, which stays open, and the files in it to load.
    pub plugin_dir: Option<D>,
    pub plugins: Vec<String>,
    pub directories: Vec<Preopen<D>>,
    /// The container's memory limit, in bytes.
    pub memory: Option<u64>,
    /// The guest's time limit, in milliseconds.
    pub timeout: Option<c_int>,
    /// The number of instructions that the guest may run.
    pub fuel: Option<u64>,
    /// How to serve HTTP, if the guest is a handler of requests.
    pub http: Option<Box<Http<D>>>,
    /// The guest's arguments.
    pub arguments: Vec<String>,
}

/// How to serve HTTP. Without a value, the program has a default.
#[derive(Debug, Eq, PartialEq)]
pub struct Http<D> {
    /// A TCP socket that listens.
    pub listener: D,
    pub limits: HttpLimits,
    /// The path at which the program itself answers whether it is ready.
    pub health: Option<String>,
    pub access_log: Option<Stream>,
    /// The servers to which the guest may send requests, as `HOST:PORT`.
    pub outbound: Vec<String>,
}

/// Limits of an HTTP server. Times are in milliseconds, sizes in bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HttpLimits {
    /// Requests that run at once.
    pub requests: Option<u64>,
    pub connections: Option<u64>,
    /// The size of a request's body.
    pub body: Option<u64>,
    /// The number of a request's headers.
    pub headers: Option<u64>,
    /// The size of a request's line and headers.
    pub header_bytes: Option<u64>,
    /// The time in which a client must send a request's headers.
    pub header_timeout: Option<u64>,
    /// The time after which a connection without a request is closed.
    pub idle_timeout: Option<u64>,
    /// The time in which requests must end after SIGTERM.
    pub grace: Option<u64>,
    /// The memory of each instance.
    pub memory: Option<u64>,
}

impl HttpLimits {
    /// The limit of an option.
    fn place(&mut self, option: &str) -> Option<&mut Option<u64>> {
        Some(match option {
            "http-requests" => &mut self.requests,
            "http-connections" => &mut self.connections,
            "http-body" => &mut self.body,
            "http-headers" => &mut self.headers,
            "http-header-bytes" => &mut self.header_bytes,
            "http-header-timeout" => &mut self.header_timeout,
            "http-idle-timeout" => &mut self.idle_timeout,
            "http-grace" => &mut self.grace,
            "http-memory" => &mut self.memory,
            _ => return None,
        })
    }
}

/// A standard stream to write to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A directory that the guest may use.
#[derive(Debug, Eq, PartialEq)]
pub struct Preopen<D> {
    /// Its name for the guest, which is also its path in the container.
    pub path: String,
    pub read_only: bool,
    /// The descriptor by which it is open already.
    pub descriptor: Option<D>,
}

impl<D> Run<D> {
    pub fn descriptors(&self) -> impl Iterator<Item = &D> {
        let directories = self.directories.iter().filter_map(|it| it.descriptor.as_ref());
        let listener = self.http.as_ref().map(|http| &http.listener);
        let own = self.native.iter().chain(&self.parts).chain(&self.plugin_dir);
        let others = own.chain(directories).chain(listener);
        [&self.engine_dir, &self.module].into_iter().chain(others)
    }

    /// Changes each descriptor.
    pub fn map<E>(self, mut change: impl FnMut(D) -> E) -> Run<E> {
        Run {
            engine_dir: change(self.engine_dir),
            module: change(self.module),
            native: self.native.map(&mut change),
            parts: self.parts.into_iter().map(&mut change).collect(),
            plugin_dir: self.plugin_dir.map(&mut change),
            plugins: self.plugins,
            directories: self
                .directories
                .into_iter()
                .map(|Preopen { path, read_only, descriptor }| Preopen {
                    path,
                    read_only,
                    descriptor: descriptor.map(&mut change),
                })
                .collect(),
            memory: self.memory,
            timeout: self.timeout,
            fuel: self.fuel,
            http: self.http.map(|http| {
                let Http { listener, limits, health, access_log, outbound } = *http;
                Box::new(Http { listener: change(listener), limits, health, access_log, outbound })
            }),
            arguments: self.arguments,
        }
    }

    /// The guest's program, as it calls itself.
    pub fn program(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }
}

impl Work {
    /// Parses all arguments of a program, the program's own name included.
    pub fn parse(args: impl Iterator<Item = OsString>, program: &Program) -> Result<Work, String> {
        let mut args = args.skip(1).peekable();
        let first = text(args.next().unwrap_or_default())?;
        if first != format!("--contract={VERSION}") {
            return Err(format!(
                "`{first}`: this engine speaks version {VERSION} of the engine contract, and is started by rt"
            ));
        }
        if args.next_if(|arg| arg == "--compile").is_some() {
            let counting = args.next_if(|arg| arg == "--counting").is_some();
            return match args.next() {
                Some(arg) => Err(format!("unknown option `{}`", text(arg)?)),
                None => Ok(Work::Compile { counting }),
            };
        }
        run(args, program).map(Work::Run)
    }
}

fn run(mut args: impl Iterator<Item = OsString>, program: &Program) -> Result<Contract, String> {
    let mut options = Options::default();
    for arg in args.by_ref() {
        let arg = text(arg)?;
        if arg == "--" {
            break;
        }
        let (name, value) = arg
            .strip_prefix("--")
            .and_then(|arg| arg.split_once('='))
            .filter(|(name, _)| is_known(name, program))
            .ok_or_else(|| unknown(&arg))?;
        match name {
            _ if name == "http" || name.starts_with("http-") => {
                options.http.set(&arg, name, value)?;
            }
            _ => options.set(&arg, name, value)?,
        }
    }
    let contract = options.finish(args.map(text).collect::<Result<_, _>>()?)?;
    contract.check()?;
    Ok(contract)
}

fn unknown(arg: &str) -> String {
    format!("unknown option `{arg}`")
}

/// Whether the program knows an option, or every program does. An unknown name is refused later.
fn is_known(name: &str, program: &Program) -> bool {
    let listed = match name {
        "plugin-dir" => "plugin",
        "fuel" | "memory" | "native" | "part" | "plugin" | "timeout" => name,
        _ if name == "http" || name.starts_with("http-") => "http",
        _ => return true,
    };
    program.options.contains(&listed)
}

/// A value that must not be 0.
fn positive<T: FromStr + PartialOrd + Default>(value: &str) -> Option<T> {
    value.parse().ok().filter(|number| *number > T::default())
}

/// The options of a command line so far.
#[derive(Default)]
struct Options {
    engine_dir: Option<Descriptor>,
    module: Option<Descriptor>,
    environment: Option<Descriptor>,
    native: Option<Descriptor>,
    parts: Vec<Descriptor>,
    plugin_dir: Option<Descriptor>,
    plugins: Vec<String>,
    directories: Vec<Preopen<Descriptor>>,
    memory: Option<u64>,
    timeout: Option<c_int>,
    fuel: Option<u64>,
    http: HttpOptions,
}

#[derive(Default)]
struct HttpOptions {
    listener: Option<Descriptor>,
    limits: HttpLimits,
    health: Option<String>,
    access_log: Option<Stream>,
    outbound: Vec<String>,
}

impl Options {
    fn set(&mut self, arg: &str, name: &str, value: &str) -> Result<(), String> {
        let not = |what: &str| format!("`{arg}`: not a {what}");
        let descriptor = || descriptor(value).ok_or_else(|| not("descriptor"));
        match name {
            "engine-dir" => once(&mut self.engine_dir, descriptor()?, arg),
            "module" => once(&mut self.module, descriptor()?, arg),
            "env" => once(&mut self.environment, descriptor()?, arg),
            "native" => once(&mut self.native, descriptor()?, arg),
            "plugin-dir" => once(&mut self.plugin_dir, descriptor()?, arg),
            "memory" => {
                let limit = value.parse().map_err(|_| not("number of bytes"))?;
                once(&mut self.memory, limit, arg)
            }
            "timeout" => {
                let number = positive(value).ok_or_else(|| not("number of milliseconds"))?;
                once(&mut self.timeout, number, arg)
            }
            "fuel" => {
                let number = positive(value).ok_or_else(|| not("number of instructions"))?;
                once(&mut self.fuel, number, arg)
            }
            "part" => {
                self.parts.push(descriptor()?);
                Ok(())
            }
            "plugin" => {
                self.plugins.push(value.to_owned());
                Ok(())
            }
            "dir" | "dir-fd" => {
                let directory = if name == "dir" { directory(value) } else { opened(value) };
                self.directories.push(directory.ok_or_else(|| unknown(arg))?);
                Ok(())
            }
            _ => Err(unknown(arg)),
        }
    }

    fn finish(self, arguments: Vec<String>) -> Result<Contract, String> {
        let (Some(engine_dir), Some(module), Some(environment)) =
            (self.engine_dir, self.module, self.environment)
        else {
            return Err("`--engine-dir`, `--module` and `--env` must be given".into());
        };
        let run = Run {
            engine_dir,
            module,
            native: self.native,
            parts: self.parts,
            plugin_dir: self.plugin_dir,
            plugins: self.plugins,
            directories: self.directories,
            memory: self.memory,
            timeout: self.timeout,
            fuel: self.fuel,
            http: self.http.finish()?,
            arguments,
        };
        Ok(Contract { environment, run })
    }
}

impl HttpOptions {
    fn set(&mut self, arg: &str, name: &str, value: &str) -> Result<(), String> {
        let not = |what: &str| format!("`{arg}`: not a {what}");
        match name {
            "http" => {
                let listener = descriptor(value).ok_or_else(|| not("descriptor"))?;
                once(&mut self.listener, listener, arg)
            }
            "http-health" => {
                let path = Some(value).filter(|path| path.starts_with('/'));
                once(&mut self.health, path.ok_or_else(|| not("path"))?.to_owned(), arg)
            }
            "http-access-log" => {
                let stream = match value {
                    "stdout" => Stream::Stdout,
                    "stderr" => Stream::Stderr,
                    _ => return Err(not("standard stream")),
                };
                once(&mut self.access_log, stream, arg)
            }
            "http-outbound" => {
                self.outbound.push(value.to_owned());
                Ok(())
            }
            _ => {
                let place = self.limits.place(name).ok_or_else(|| unknown(arg))?;
                once(place, value.parse().map_err(|_| not("number"))?, arg)
            }
        }
    }

    fn finish(self) -> Result<Option<Box<Http<Descriptor>>>, String> {
        let HttpOptions { listener, limits, health, access_log, outbound } = self;
        let is_plain = limits == HttpLimits::default()
            && (&health, &access_log) == (&None, &None)
            && outbound.is_empty();
        match listener {
            None if !is_plain => Err("`--http-…` needs `--http`".into()),
            None => Ok(None),
            Some(listener) => {
                Ok(Some(Box::new(Http { listener, limits, health, access_log, outbound })))
            }
        }
    }
}

impl Contract {
    /// All descriptors of the command line.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.run.descriptors().chain([&self.environment])
    }

    fn check(&self) -> Result<(), String> {
        let mut numbers: Vec<c_int> = self.descriptors().map(Descriptor::number).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() < count {
            return Err("the descriptors of the command line must differ".into());
        }
        let Run { plugins, plugin_dir, .. } = &self.run;
        if plugins.is_empty() != plugin_dir.is_none()
            || plugins.iter().any(|file| file.is_empty() || file.contains('/'))
        {
            return Err("`--plugin` names a file in `--plugin-dir`".into());
        }
        Ok(())
    }
}

/// Refuses an option that is given twice, because its meaning would be ambiguous.
fn once<T>(place: &mut Option<T>, value: T, arg: &str) -> Result<(), String> {
    match place.replace(value) {
        Some(_) => Err(format!("`{arg}`: given twice")),
        None => Ok(()),
    }
}

fn descriptor(value: &str) -> Option<Descriptor> {
    value.parse().ok().filter(|number| *number > 2).map(Descriptor)
}

fn directory(value: &str) -> Option<Preopen<Descriptor>> {
    let (right, path) = value.split_once(':')?;
    let read_only = match right {
        "ro" => true,
        "rw" => false,
        _ => return None,
    };
    let path = path.starts_with('/').then(|| path.to_owned())?;
    Some(Preopen { path, read_only, descriptor: None })
}

/// A directory with its descriptor in front.
fn opened(value: &str) -> Option<Preopen<Descriptor>> {
    let (number, rest) = value.split_once(':')?;
    let descriptor = Some(descriptor(number)?);
    Some(Preopen { descriptor, ..directory(rest)? })
}

/// `config.json` is JSON, so all its strings are UTF-8.
fn text(arg: OsString) -> Result<String, String> {
    arg.into_string().map_err(|arg| format!("the argument {arg:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "rt-test",
        options: &["fuel", "http", "memory", "native", "part", "plugin", "timeout"],
    };

    fn work(args: &[&str]) -> Result<Work, String> {
        Work::parse(["rt-test"].iter().chain(args).map(OsString::from), &PROGRAM)
    }

    fn parse(args: &[&str]) -> Result<Contract, String> {
        match work(args)? {
            Work::Run(contract) => Ok(contract),
            Work::Compile { .. } => Err("to compile".into()),
        }
    }

    const FDS: [&str; 4] = ["--contract=2", "--engine-dir=3", "--module=4", "--env=5"];

    #[test]
    fn takes_what_rt_gives() {
        let args = [
            &FDS[..],
            &[
                "--native=6",
                "--part=10",
                "--part=9",
                "--memory=1048576",
                "--timeout=1500",
                "--fuel=5000000000",
                "--dir=ro:/",
                "--dir=rw:/a:b",
                "--dir-fd=8:ro:/c",
                "--",
                "/app.wasm",
                "--dir=x",
                "--",
            ],
        ]
        .concat();
        let contract = parse(&args).expect("taken");
        let Contract { environment, run } = contract;
        let numbers = [&run.engine_dir, &run.module, &environment].map(Descriptor::number);
        assert_eq!((numbers, &run.native), ([3, 4, 5], &Some(Descriptor(6))));
        assert_eq!(run.parts, [Descriptor(10), Descriptor(9)]);
        assert_eq!(run.fuel, Some(5_000_000_000));
        assert_eq!((run.memory, run.timeout), (Some(1 << 20), Some(1500)));
        let directories: Vec<_> = run
            .directories
            .iter()
            .map(|it| (it.path.as_str(), it.read_only, it.descriptor.as_ref().map(|it| it.0)))
            .collect();
        assert_eq!(directories, [("/", true, None), ("/a:b", false, None), ("/c", true, Some(8))]);
        assert_eq!(run.arguments, ["/app.wasm", "--dir=x", "--"]);
    }

    #[test]
    fn refuses_everything_else() {
        assert!(parse(&[]).is_err_and(|error| error.contains("contract")));
        assert!(parse(&["--contract=9"]).is_err_and(|error| error.contains("`--contract=9`")));
        assert!(parse(&FDS[..3]).is_err());
        assert!(parse(&["--contract=2", "--engine-dir=3", "--module=4", "--env=4"]).is_err());
        for wrong in [
            &["--native=4"][..],
            &["--part=4"],
            &["--part=7", "--part=7"],
            &["--dir-fd=4:ro:/"],
            &["--dir-fd=7:ro:/a", "--dir-fd=7:ro:/b"],
            &["--plugin=x.so"],
            &["--plugin-dir=7"],
            &["--plugin-dir=7", "--plugin=../x"],
        ] {
            assert!(parse(&[&FDS[..], wrong].concat()).is_err(), "{wrong:?}");
        }
        for twice in ["--module=7", "--fuel=1", "--memory=1", "--timeout=1", "--native=7"] {
            let error = parse(&[&FDS[..], &[twice, twice]].concat()).expect_err(twice);
            assert!(error.contains("given twice"), "{error}");
        }
        let plugins =
            parse(&[&FDS[..], &["--plugin-dir=7", "--plugin=x.so"]].concat()).expect("taken").run;
        assert_eq!(
            (plugins.plugin_dir, plugins.plugins),
            (Some(Descriptor(7)), vec!["x.so".to_owned()])
        );
        for (counting, args) in [(false, &["--compile"][..]), (true, &["--compile", "--counting"])]
        {
            let args = [&["--contract=2"], args].concat();
            assert_eq!(work(&args), Ok(Work::Compile { counting }));
        }
        assert!(work(&["--contract=2", "--compile", "x"]).is_err());
        assert!(work(&["--compile"]).is_err());
        for bad in [
            "--frob=1",
            "--dir=/x",
            "--dir=ro:x",
            "--dir-fd=2:ro:/x",
            "--module=2",
            "--module=x",
            "--memory=x",
            "--memory=-1",
            "--timeout=0",
            "--timeout=1s",
            "--fuel=0",
            "--fuel=many",
            "x",
        ] {
            let error = parse(&[&FDS[..], &[bad]].concat()).expect_err(bad);
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn takes_how_to_serve() {
        let args = [
            "--http=9",
            "--http-requests=5",
            "--http-header-timeout=250",
            "--http-health=/healthz",
            "--http-access-log=stderr",
            "--http-outbound=a:80",
            "--http-outbound=*.b:8080",
        ];
        let http = parse(&[&FDS[..], &args].concat()).expect("taken").run.http.expect("there");
        assert_eq!((http.listener.number(), http.health.as_deref()), (9, Some("/healthz")));
        let HttpLimits { requests, header_timeout, body, .. } = http.limits;
        assert_eq!((requests, header_timeout, body), (Some(5), Some(250), None));
        assert_eq!((http.access_log, http.outbound.len()), (Some(Stream::Stderr), 2));
        for wrong in [
            &["--http=4"][..],
            &["--http-requests=5"],
            &["--http=9", "--http-request=5"],
            &["--http=9", "--http-requests=x"],
            &["--http=9", "--http-requests=5", "--http-requests=5"],
            &["--http=9", "--http-health=x"],
            &["--http=9", "--http-access-log=file"],
        ] {
            assert!(parse(&[&FDS[..], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn refuses_options_that_the_program_does_not_list() {
        const PLAIN: Program = Program { name: "rt-plain", options: &[] };
        for option in [
            "--fuel=1",
            "--http=6",
            "--memory=1",
            "--native=6",
            "--part=6",
            "--plugin-dir=6",
            "--timeout=1",
        ] {
            let args = [&["rt-plain"][..], &FDS, &[option]].concat();
            let error = Work::parse(args.iter().map(OsString::from), &PLAIN).expect_err(option);
            assert!(error.contains("unknown option"), "{error}");
        }
    }
}
