//! The log: `--log`, `--log-format`, `--log-level`.
//!
//! This module imports only [`trust`]. Callers parse the log: podman reads the whole file as *one*
//! JSON object. containerd reads a stream of objects, and uses the last one with `"level":"error"`.
//! So at the default level, `rt` writes nothing but the one error of a failed command.
//!
//! Only the runtime process writes. A process that enters a container sends its lines to the
//! runtime process ([`forward`]). So it need not keep a file of the host open for them.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::trust;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum LogLevel {
    #[value(alias = "trace")]
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    #[default]
    Error,
    #[value(alias = "panic")]
    Fatal,
}

/// The destination of messages.
enum Target {
    /// No log was requested.
    Stderr,
    File(File),
    /// systemd's journal, with a name (its "Native Journal Protocol").
    Journal(UnixDatagram, String),
    /// The system's log, with a name (`syslog(3)`).
    Syslog(UnixDatagram, String),
    /// The runtime process, which gets a level and a message.
    Forward(Box<dyn Fn(String) + Send>),
}

struct Log {
    target: Target,
    format: Format,
    level: LogLevel,
    /// Lines of another process that came before their turn, or `None` while lines need not wait.
    held: Option<Vec<String>>,
}

/// `None` until the log is opened, and in a process whose lines nobody receives.
static LOG: Mutex<Option<Log>> = Mutex::new(None);

/// Whether steps are logged. Without `--debug`, a step costs one load of this flag.
static TELLS_STEPS: AtomicBool = AtomicBool::new(false);

#[inline(never)]
fn with_log(act: &mut dyn FnMut(&mut Log)) {
    if let Ok(mut log) = LOG.lock()
        && let Some(log) = &mut *log
    {
        act(log);
    }
}

fn replace(new: Option<Log>) {
    if let Ok(mut log) = LOG.lock() {
        *log = new;
    }
}

/// Opens the log for appending. Without a log, messages below the error go to standard error.
pub(crate) fn open(path: Option<&Path>, format: Format, level: LogLevel) -> Result<()> {
    let target = match path {
        None => Target::Stderr,
        Some(path) => {
            open_target(path).with_context(|| format!("open log `{}`", path.display()))?
        }
    };
    replace(Some(Log { target, format, level, held: None }));
    TELLS_STEPS.store(level == LogLevel::Debug, Ordering::Relaxed);
    if !matches!(level, LogLevel::Error | LogLevel::Fatal) {
        // Fails only if there is a subscriber already, and this is the only one.
        let _ = tracing::subscriber::set_global_default(Lines);
    }
    Ok(())
}

/// As in crun: `journald:NAME`, `syslog:NAME`, `file:PATH` or a path.
fn open_target(path: &Path) -> Result<Target> {
    let text = path.to_str().unwrap_or_default();
    if let Some(name) = text.strip_prefix("journald:") {
        let name = named(name)?;
        return Ok(Target::Journal(connect("/run/systemd/journal/socket")?, name));
    }
    if let Some(name) = text.strip_prefix("syslog:") {
        let name = named(name)?;
        return Ok(Target::Syslog(connect("/dev/log")?, name));
    }
    open_file(text.strip_prefix("file:").map_or(path, Path::new)).map(Target::File)
}

fn named(name: &str) -> Result<String> {
    ensure!(!name.is_empty() && !name.contains(char::is_control), "a name is missing");
    Ok(name.to_owned())
}

fn connect(path: &str) -> Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A log that nobody empties must not block the reporting process.
    socket.set_nonblocking(true)?;
    socket.connect(path).with_context(|| format!("connect to `{path}`"))?;
    Ok(socket)
}

fn open_file(path: &Path) -> Result<File> {
    // Others may read the log. With containerd's umask of 0, a larger mode would let them write
    // too.
    let file = trust::append(path, 0o644)?;
    // A fifo whose reader does not read must not block the reporting process.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    Ok(file)
}

/// From now on, this process sends its lines to the runtime process, and closes the log.
pub(crate) fn forward(say: impl Fn(String) + Send + 'static) {
    let mut target = Some(Target::Forward(Box::new(say)));
    with_log(&mut |log| {
        if let Some(target) = target.take() {
            log.target = target;
        }
    });
}

/// From now on, nobody receives this process's lines.
pub(crate) fn end() {
    TELLS_STEPS.store(false, Ordering::Relaxed);
    replace(None);
}

/// From now on, lines of another process wait for the next step of this one, or for the error.
pub(crate) fn hold() {
    with_log(&mut |log| log.held = Some(Vec::new()));
}

/// Writes a line that another process has [forwarded](forward): its level and its message.
pub(crate) fn write(line: &str) {
    with_log(&mut |log| match &mut log.held {
        Some(held) => held.push(line.to_owned()),
        None => log.pass(line),
    });
}

/// Logs the start of a numbered step of `docs/operation.md`, with its name there. The operand is a
/// path, an id or a count. It is never an argument, a variable or an annotation, because those may
/// be secret.
#[inline(never)]
pub(crate) fn step(name: &str, operand: &dyn fmt::Display) {
    if TELLS_STEPS.load(Ordering::Relaxed) {
        let operand = operand.to_string();
        let colon = if operand.is_empty() { "" } else { ": " };
        let message = format!("{name}{colon}{operand}");
        with_log(&mut |log| {
            log.write("debug", &message);
            log.release();
        });
    }
}

/// Writes the one line of a failed command to the log, if there is one. The line on standard error
/// is printed elsewhere.
pub(crate) fn error(message: &str) {
    with_log(&mut |log| {
        log.release();
        if !matches!(log.target, Target::Stderr) {
            log.write("error", message);
        }
    });
}

/// The priorities of `syslog(3)`.
fn priority(level: &str) -> u8 {
    match level {
        "error" => 3,
        "warning" => 4,
        "info" => 6,
        _ => 7,
    }
}

impl Log {
    fn release(&mut self) {
        for line in self.held.take().unwrap_or_default() {
            self.pass(&line);
        }
    }

    fn pass(&self, line: &str) {
        let (level, message) = line.split_once(' ').unwrap_or(("", line));
        let level = ["error", "warning", "info"].into_iter().find(|it| *it == level);
        self.write(level.unwrap_or("debug"), message);
    }

    fn write(&self, level: &str, message: &str) {
        if let Target::Forward(say) = &self.target {
            return say(format!("{level} {message}"));
        }
        let time = jiff::Timestamp::now();
        let line = match self.format {
            Format::Text => format!("time=\"{time:.6}\" level={level} msg={message:?}\n"),
            Format::Json => {
                let time = format!("{time:.6}");
                format!("{}\n", serde_json::json!({ "level": level, "msg": message, "time": time }))
            }
        };
        // A log that cannot be written must not fail the reported step.
        let _ = match &self.target {
            Target::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Target::File(file) => (&*file).write_all(line.as_bytes()),
            Target::Journal(socket, name) => {
                let text = format!(
                    "PRIORITY={}\nSYSLOG_IDENTIFIER=rt\nID={name}\nMESSAGE={}\n",
                    priority(level),
                    message.replace('\n', " ")
                );
                socket.send(text.as_bytes()).map(drop)
            }
            Target::Syslog(socket, name) => {
                // The facility "user". The log's reader adds the time.
                const USER: u8 = 1 << 3;
                let (priority, pid) = (USER | priority(level), std::process::id());
                let text = format!("<{priority}>{name}[{pid}]: {}", message.replace('\n', " "));
                socket.send(text.as_bytes()).map(drop)
            }
            Target::Forward(_) => Ok(()),
        };
    }
}

/// Writes each event of `tracing` as a line. Spans are of no use in so short a program.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let mut limit = Level::ERROR;
        with_log(&mut |log| {
            limit = match log.level {
                LogLevel::Debug => Level::DEBUG,
                LogLevel::Info => Level::INFO,
                LogLevel::Warn => Level::WARN,
                _ => Level::ERROR,
            };
        });
        // libcgroups warns of each unknown controller of the host, for every container.
        let is_own = !metadata.target().starts_with("libcgroups");
        metadata.is_event() && *metadata.level() <= limit && is_own
    }

    fn event(&self, event: &Event<'_>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                use fmt::Write as _;
                // Writing to a String cannot fail.
                let _ = match field.name() {
                    "message" => write!(self.0, "{value:?}"),
                    name => write!(self.0, " {name}={value:?}"),
                };
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            _ => "debug",
        };
        with_log(&mut |log| log.write(level, &message.0));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
