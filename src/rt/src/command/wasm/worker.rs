//! `rt wasm worker`: compiles one module. Started by `create`, `run`, `exec` and `rt wasm compile`, with the module as standard input;
//! the lock on that file says that it is being compiled. One runs at a time on a host.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::confine;
use crate::cli::{Global, WasmWorker};
use crate::container::{self, Container};
use crate::engine::cache::{About, Entry, Key, Kind};
use crate::engine::{self, Description, Native};
use crate::state::Root;

pub(super) fn work(root: &Root, global: &Global, args: &WasmWorker) -> Result<()> {
    let (description, native) = super::compiler(root, global)?;
    let module =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).context("take the module")?;
    if args.background && confine::leave_caller(super::super::manager(global))? {
        return Ok(());
    }
    let key = native.key(module.as_fd(), args.counting)?.context("it is too large")?;
    let outcome = compile(global, &native, &description, &key, args);
    native.cache.done(&key);
    outcome
}

fn compile(
    global: &Global,
    native: &Native,
    description: &Description,
    key: &Key,
    args: &WasmWorker,
) -> Result<()> {
    let name = &args.name;
    let place = confine::Place::new()?;
    // Somebody waits for it, or nobody does.
    let patience = if args.background {
        Duration::from_secs(100 * native.settings.compiler.seconds)
    } else {
        native.patience()
    };
    let _lock = place.one_at_a_time(patience)?;
    // Somebody may have been faster.
    if native.cache.find(key).is_some() {
        return Ok(());
    }
    let begun = Instant::now();
    let part = native.cache.part(key)?;
    match run(&place, global, native, description, &part, args) {
        Ok(Outcome::Compiled) => {}
        Ok(Outcome::Ended(signal)) => bail!("the compiler was ended by signal {signal}"),
        Ok(Outcome::Failed(why)) => {
            native.cache.discard(key);
            native.cache.give_up(key, name, &why)?;
            bail!(why);
        }
        Err(error) => {
            native.cache.discard(key);
            return Err(error);
        }
    }
    let module = rustix::fs::fstat(rustix::stdio::stdin()).context("stat the module")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let about = About {
        key: key.to_string(),
        module: key.module.to_hex().to_string(),
        module_bytes: u64::try_from(module.st_size).unwrap_or(0),
        name: name.clone(),
        engine: description.label(),
        native: String::new(),
        native_bytes: 0,
        compiled: now.as_secs(),
        milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    native.cache.keep(key, part, about)?;
    // Another rt on this host may have use for what is foreign to this one.
    let useful = |entry: &Entry| !matches!(entry.kind, Kind::Useless);
    native.cache.prune(native.settings.cache.max_bytes, useful, Some(key)).map(drop)
}

enum Outcome {
    Compiled,
    /// Because of the module: it would fail again.
    Failed(String),
    /// By a signal.
    Ended(i32),
}

/// The two ends of what the compiler prints.
struct Pipes {
    out: File,
    err: File,
}

/// Runs the compiler in a container of its own, and writes what it makes to a file.
fn run(
    place: &confine::Place,
    global: &Global,
    native: &Native,
    description: &Description,
    part: &File,
    args: &WasmWorker,
) -> Result<Outcome> {
    place.clean()?;
    let manager = super::super::manager(global);
    let bundle = place.bundle(description, &native.settings.compiler, manager, args)?;
    let own = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
    let pipes = take_streams()?;
    let made = place.create(&bundle, manager);
    // The container has them now.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open `/dev/null`")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&own)?;
    let container = made?;
    let seconds = native.settings.compiler.seconds;
    // The limit is of the processor's time; on a busy host that takes longer.
    let end = Instant::now() + Duration::from_secs(100 * seconds);
    let outcome = follow(&container, pipes, part, end);
    let oom = container.state.cgroup.was_out_of_memory();
    container::delete(&container.directory, &container.state, true)?;
    match outcome? {
        Outcome::Ended(libc::SIGKILL) if oom => {
            Ok(Outcome::Failed("it takes more memory than the compiler may use".into()))
        }
        Outcome::Ended(libc::SIGXCPU) => Ok(Outcome::Failed(format!(
            "it takes longer than {seconds} s of the processor's time to be compiled"
        ))),
        // Of its own doing: it would do it again.
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

/// Makes pipes of the standard streams, which the container's process inherits. What goes in is the module, open for reading only.
fn take_streams() -> Result<Pipes> {
    // By a read-only mount: init gives the container's user what it reads from, and a file of the cache's is not to be given away,
    // nor opened once more for writing. Its lock is in another place: the caller of this function holds it.
    let mount = engine::cut_off_file(rustix::stdio::stdin())?;
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

/// Takes what the compiler makes until it has ended.
fn follow(
    container: &Container,
    mut pipes: Pipes,
    mut part: &File,
    end: Instant,
) -> Result<Outcome> {
    /// More than the module's size by far; a compiler that writes for ever is ended.
    const LARGEST: u64 = 4 << 30;
    const LONGEST: usize = 4096;
    container.go()?;
    let (mut written, mut said) = (0_u64, Vec::new());
    let mut buffer = vec![0; 64 << 10];
    let mut open = [true, true];
    while open != [false, false] {
        let left = end.saturating_duration_since(Instant::now());
        let mut polled = [
            PollFd::new(&pipes.out, if open[0] { PollFlags::IN } else { PollFlags::empty() }),
            PollFd::new(&pipes.err, if open[1] { PollFlags::IN } else { PollFlags::empty() }),
        ];
        match rustix::event::poll(&mut polled, Some(&Timespec::try_from(left)?)) {
            Ok(0) => bail!("the compiler did not end in time"),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the compiler"),
        }
        let ready = polled.map(|polled| !polled.revents().is_empty());
        if open[0] && ready[0] {
            let length = pipes.out.read(&mut buffer).context("read from the compiler")?;
            open[0] = length > 0;
            written += length as u64;
            ensure!(written <= LARGEST, "the compiler writes more than {LARGEST} bytes");
            part.write_all(&buffer[..length]).context("write native code")?;
        }
        if open[1] && ready[1] {
            let length = pipes.err.read(&mut buffer).context("read from the compiler")?;
            open[1] = length > 0;
            said.extend(&buffer[..length.min(LONGEST.saturating_sub(said.len()))]);
        }
    }
    let status = container::wait(container.pid)?;
    if status.exit_status() == Some(0) && is_elf(part)? {
        return Ok(Outcome::Compiled);
    }
    // It ends by itself when its time is over.
    let signal = match status.exit_status() {
        Some(OUT_OF_TIME) => Some(libc::SIGXCPU),
        _ => status.terminating_signal(),
    };
    if let Some(signal) = signal {
        return Ok(Outcome::Ended(signal));
    }
    let said = crate::one_line(String::from_utf8_lossy(&said).trim());
    let said = if said.is_empty() { "the compiler failed without a word".into() } else { said };
    Ok(Outcome::Failed(said))
}

/// By a handler, as an engine ends by others: 128 and the signal's number (`docs/engine.md`).
const OUT_OF_TIME: i32 = 128 + libc::SIGXCPU;

fn is_elf(file: &File) -> Result<bool> {
    let mut head = [0; 4];
    let length = rustix::io::pread(file, &mut head, 0).context("read native code")?;
    Ok(length == head.len() && head == *b"\x7fELF")
}
