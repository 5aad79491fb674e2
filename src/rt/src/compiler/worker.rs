//! The worker: compiles one module. `create`, `run`, `exec` and `rt wasm compile` start it, with
//! the module as standard input. The lock on that file says that the module is being compiled. Of a
//! host's workers, one or two have a turn to compile ([`queue::turn`]). A worker in the background
//! gives way to a worker for which a process waits, and starts again later.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::confine;
use super::queue::{self, Applicant, Turn};
use crate::container::{self, Container};
use crate::engine::cache::{self, About, Entry, Key, Kind, Next, Unwritten};
use crate::engine::{self, Installed, Native};
use crate::linux::cgroups::Manager;
use crate::linux::helper;

/// The task of a worker.
#[derive(Debug)]
pub(crate) struct Order {
    /// The module's name in its container.
    pub(crate) name: String,
    /// The native code is to count instructions.
    pub(crate) counting: bool,
    /// The tenant for which the module is compiled, or `None` for the administrator.
    pub(crate) tenant: Option<u64>,
    /// How long the worker waits for its turn, or `None` in the background, where no process waits
    /// for it.
    pub(crate) wait: Option<Duration>,
}

/// How a worker has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// The module is compiled, or will be in the background.
    Well,
    /// The compilers of others did not end in time.
    Busy,
}

/// Compiles the module on standard input for an engine.
pub(crate) fn work(
    order: &Order,
    engine: &Installed,
    native: &Native,
    manager: Manager,
) -> Result<Ended> {
    let module =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).context("take the module")?;
    match order.wait {
        None => {
            if confine::leave_caller(manager)? {
                return Ok(Ended::Well);
            }
        }
        // Nobody else waits for this worker, which would keep its slot in the queue. Its compiler
        // ends with it, and the next worker removes what is left.
        Some(_) => helper::end_with_the_runtime_process()?,
    }
    let key = native.key(module.as_fd(), order.counting)?.context("it is too large")?;
    let what = What { order, key: &key, module: module.as_fd(), engine, native, manager };
    let outcome = compile(&what);
    native.cache.done(&key);
    outcome
}

/// The module to compile, and the means to compile it.
struct What<'a> {
    order: &'a Order,
    key: &'a Key,
    /// The job, which is locked.
    module: BorrowedFd<'a>,
    engine: &'a Installed,
    native: &'a Native,
    manager: Manager,
}

impl What<'_> {
    /// Whether a process waits for the module. This may start while the worker is in the
    /// background.
    fn is_awaited(&self) -> bool {
        self.order.wait.is_some() || cache::is_awaited(self.module)
    }

    /// The tenants for which the module is compiled: the one whose container was the first to want
    /// it, and one that waits for it.
    fn tenants(&self) -> Vec<u64> {
        let own = self.order.tenant.unwrap_or(cache::ADMINISTRATOR);
        [own].into_iter().chain(cache::another_that_waits(self.module, own)).collect()
    }
}

/// A compiler may run this many times longer than its limit of processor time. The host may be
/// busy, and the compiler may have the lowest priority.
const LONGEST: u64 = 10;

/// How long it is remembered that a module was not compiled in that time, and that the disk had no
/// space for its native code.
const SLOW: Duration = Duration::from_secs(24 * 3600);
const FULL: Duration = Duration::from_secs(600);

fn compile(what: &What<'_>) -> Result<Ended> {
    let (key, native, order) = (what.key, what.native, what.order);
    let settings = &native.settings.compiler;
    let in_background = Duration::from_secs(settings.seconds.saturating_mul(100));
    let mut left = order.wait.unwrap_or(in_background);
    let module = rustix::fs::fstat(what.module).context("stat the module")?;
    let mut applicant = Applicant {
        tenants: &|| what.tenants(),
        is_awaited: &|| what.is_awaited(),
        bytes: u64::try_from(module.st_size).unwrap_or(0),
        gave_way: false,
        wait: Duration::from_secs(settings.wait_seconds),
    };
    loop {
        let begun = Instant::now();
        let Some(turn) = queue::turn(&applicant, begun + left)? else { return Ok(Ended::Busy) };
        // The time of the worker's own compiler does not count as waiting.
        left = left.saturating_sub(begun.elapsed());
        // Another worker may have been faster.
        if native.cache.find(key).is_some() {
            return Ok(Ended::Well);
        }
        cache::note_that_it_runs(what.module, true);
        let outcome = make(&turn, what);
        cache::note_that_it_runs(what.module, false);
        if !matches!(outcome, Ok(Outcome::Compiled)) {
            native.cache.discard(key);
        }
        let (why, hold) = match outcome {
            Ok(Outcome::Compiled) => return Ok(Ended::Well),
            Ok(Outcome::GaveWay) => {
                applicant.gave_way |= turn.is_urgent;
                continue;
            }
            Ok(Outcome::Failed(why)) => (why, None),
            Ok(Outcome::TooSlow(why) | Outcome::TooLarge(why)) => (why, Some(SLOW)),
            Ok(Outcome::Ended(signal)) => bail!("the compiler was ended by signal {signal}"),
            Ok(Outcome::Full(why)) => (why, Some(FULL)),
            Err(error) => return Err(error),
        };
        native.cache.give_up(key, &order.name, &why, settings, hold)?;
        bail!(why);
    }
}

/// Runs the compiler, and keeps its result.
fn make(turn: &Turn, what: &What<'_>) -> Result<Outcome> {
    let (native, order) = (what.native, what.order);
    let begun = Instant::now();
    let part = native.cache.part(what.key)?;
    let outcome = run(turn, &part, what)?;
    if !matches!(outcome, Outcome::Compiled) {
        return Ok(outcome);
    }
    let module = rustix::fs::fstat(what.module).context("stat the module")?;
    let about = About {
        key: what.key.to_string(),
        module: what.key.module.to_hex().to_string(),
        module_bytes: u64::try_from(module.st_size).unwrap_or(0),
        name: order.name.clone(),
        engine: what.engine.description.label(),
        native: String::new(),
        native_bytes: 0,
        compiled: cache::now(),
        milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        tenant: order.tenant,
    };
    // Another `rt` on this host may use an entry that is foreign to this one.
    let useful = |entry: &Entry| !matches!(entry.kind, Kind::Useless);
    let own = part.metadata().context("stat native code")?.len();
    if order.tenant.is_some() && native.cache.is_too_large(own) {
        return Ok(Outcome::TooLarge("its native code is more than half of the cache".into()));
    }
    let others = native.settings.cache.max_bytes.saturating_sub(own);
    let next = Next { key: what.key, bytes: own, tenant: order.tenant };
    native.cache.prune(others, useful, Some(&next))?;
    match native.cache.keep(what.key, part, about) {
        Ok(_) => Ok(Outcome::Compiled),
        Err(unwritten) => Outcome::unwritten(unwritten),
    }
}

enum Outcome {
    Compiled,
    /// Because of the module, so it would fail again.
    Failed(String),
    /// Because of the module, or because the host was busy.
    TooSlow(String),
    /// Larger than a container's native code may be.
    TooLarge(String),
    /// The disk has no space for its native code.
    Full(String),
    /// To another worker, for which a process waits.
    GaveWay,
    /// By a signal.
    Ended(i32),
}

impl Outcome {
    fn unwritten(unwritten: Unwritten) -> Result<Outcome> {
        match unwritten {
            Unwritten::Full(error) => Ok(Outcome::Full(format!("{error:#}"))),
            Unwritten::Otherwise(error) => Err(error),
        }
    }
}

/// The reading ends of the compiler's standard output and standard error.
struct Pipes {
    out: File,
    err: File,
}

/// Runs the compiler in a container of its own, and writes its output to a file.
fn run(turn: &Turn, part: &File, what: &What<'_>) -> Result<Outcome> {
    let What { order, native, manager, .. } = *what;
    let slot = &turn.slot;
    slot.clean()?;
    let settings = &native.settings.compiler;
    // If the turn is urgent, a process waits for this compiler.
    let is_idle = settings.idle && !turn.is_urgent;
    let bundle = confine::bundle(slot, what.engine, settings, manager, order.counting, is_idle)?;
    let own = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
    let pipes = take_streams(what.module)?;
    let made = confine::create(slot, &bundle, manager);
    // The container has inherited the streams.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open `/dev/null`")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&own)?;
    let container = made?;
    confine::set_idle(&container.state.cgroup, is_idle);
    // The limit is in processor time. On a busy host, that takes longer.
    let seconds = settings.seconds;
    let longest = Duration::from_secs(LONGEST.saturating_mul(seconds));
    let gives_way = || Ok(!turn.is_urgent && what.is_awaited() || turn.is_wanted()?);
    let write = |bytes: &[u8]| native.cache.write(part, bytes, order.tenant);
    let outcome = follow(&container, pipes, part, write, longest, gives_way);
    // The compiler may have little time left to end.
    confine::set_idle(&container.state.cgroup, false);
    let oom = container.state.cgroup.was_out_of_memory();
    container::delete(&container.directory, &container.state, true)?;
    match outcome? {
        Outcome::Ended(libc::SIGKILL) if oom => {
            Ok(Outcome::Failed("it requires more memory than the compiler may use".into()))
        }
        Outcome::Ended(libc::SIGXCPU) => Ok(Outcome::Failed(format!(
            "it takes longer than {seconds} s of the processor's time to be compiled"
        ))),
        // The compiler ended by its own fault, and would do so again.
        Outcome::Ended(
            signal @ (libc::SIGSEGV
            | libc::SIGABRT
            | libc::SIGBUS
            | libc::SIGILL
            | libc::SIGFPE
            | libc::SIGSYS
            | libc::SIGXFSZ),
        ) => Ok(Outcome::Failed(format!("the compiler was ended by signal {signal}"))),
        Outcome::Ended(signal) => bail!("the compiler was ended by signal {signal}"),
        outcome => Ok(outcome),
    }
}

/// Makes pipes of the standard streams, which the container's process inherits. Standard input is
/// the module, open for reading only.
fn take_streams(module: BorrowedFd<'_>) -> Result<Pipes> {
    // Opens the module through a read-only mount. Init makes the container's user the owner of its
    // standard input, and must not give away a file of the cache. The compiler must not be able to
    // open the file again for writing either. The lock of the job is elsewhere: the caller of this
    // function holds it.
    let mount = engine::cut_off_file(module)?;
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let module = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open the module")?;
    rustix::stdio::dup2_stdin(&module).context("take the module")?;
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe");
    let ((out, their_out), (err, their_err)) = (pipe()?, pipe()?);
    rustix::stdio::dup2_stdout(&their_out)?;
    rustix::stdio::dup2_stderr(&their_err)?;
    Ok(Pipes { out: out.into(), err: err.into() })
}

/// Reads the compiler's output until the compiler has ended, must give way, or has taken too long.
fn follow(
    container: &Container,
    mut pipes: Pipes,
    part: &File,
    write: impl Fn(&[u8]) -> Result<(), Unwritten>,
    longest: Duration,
    gives_way: impl Fn() -> Result<bool>,
) -> Result<Outcome> {
    /// Much more than the largest module's size. A compiler that writes without end is ended.
    const LARGEST: u64 = 4 << 30;
    const MOST_SAID: usize = 4096;
    /// How often the worker checks whether it must give way.
    const TURN: Duration = Duration::from_millis(50);
    container.go()?;
    let end = Instant::now() + longest;
    let (mut written, mut said) = (0_u64, Vec::new());
    let mut buffer = vec![0; 64 << 10];
    let mut open = [true, true];
    while open != [false, false] {
        let left = end.saturating_duration_since(Instant::now());
        let mut polled = [
            PollFd::new(&pipes.out, if open[0] { PollFlags::IN } else { PollFlags::empty() }),
            PollFd::new(&pipes.err, if open[1] { PollFlags::IN } else { PollFlags::empty() }),
        ];
        match rustix::event::poll(&mut polled, Some(&Timespec::try_from(left.min(TURN))?)) {
            Ok(_) if left.is_zero() => {
                let why = format!("it was not compiled in {} s", longest.as_secs());
                return Ok(Outcome::TooSlow(why));
            }
            Ok(_) if gives_way()? => return Ok(Outcome::GaveWay),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the compiler"),
        }
        let ready = polled.map(|polled| !polled.revents().is_empty());
        if open[0] && ready[0] {
            let length = pipes.out.read(&mut buffer).context("read from the compiler")?;
            open[0] = length > 0;
            written += length as u64;
            if written > LARGEST {
                let why = format!("its native code is larger than {LARGEST} bytes");
                return Ok(Outcome::Failed(why));
            }
            if let Err(unwritten) = write(&buffer[..length]) {
                return Outcome::unwritten(unwritten.context("write native code"));
            }
        }
        if open[1] && ready[1] {
            let length = pipes.err.read(&mut buffer).context("read from the compiler")?;
            open[1] = length > 0;
            said.extend(&buffer[..length.min(MOST_SAID.saturating_sub(said.len()))]);
        }
    }
    let status = crate::linux::namespaces::wait(container.pid)?;
    if status.exit_status() == Some(0) && is_compiled(part)? {
        return Ok(Outcome::Compiled);
    }
    // The compiler ends itself when its time is over.
    let signal = match status.exit_status() {
        Some(OUT_OF_TIME) => Some(libc::SIGXCPU),
        _ => status.terminating_signal(),
    };
    if let Some(signal) = signal {
        return Ok(Outcome::Ended(signal));
    }
    let said = crate::report::one_line(String::from_utf8_lossy(&said).trim());
    let said = if said.is_empty() { "the compiler failed without a message".into() } else { said };
    Ok(Outcome::Failed(said))
}

/// The compiler's handler exits with this, as an engine does after other signals: 128 and the
/// signal's number (`docs/engine.md`).
const OUT_OF_TIME: i32 = 128 + libc::SIGXCPU;

/// Whether a file is native code, or the plan of an app.
fn is_compiled(file: &File) -> Result<bool> {
    let mut head = [0; 4];
    let length = rustix::io::pread(file, &mut head, 0).context("read native code")?;
    Ok(length == head.len() && [*b"\x7fELF", engine::PLAN].contains(&head))
}
