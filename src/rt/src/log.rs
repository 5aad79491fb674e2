//! The log: `--log`, `--log-format`, `--log-level`.
//!
//! A leaf, but for [`trust`]. Callers parse it: podman reads the whole file as *one* JSON object,
//! containerd a stream of them, of which the last with `"level":"error"` counts. So at the default
//! level nothing is written but the one error of a failed command.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
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

#[derive(Debug)]
struct Log {
    file: Option<File>,
    format: Format,
    level: LogLevel,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log for appending; with none, messages below the error go to standard error.
pub(crate) fn open(path: Option<&Path>, format: Format, level: LogLevel) -> Result<()> {
    let file = match path {
        None => None,
        Some(path) => {
            Some(open_file(path).with_context(|| format!("open log `{}`", path.display()))?)
        }
    };
    let quiet = matches!(level, LogLevel::Error | LogLevel::Fatal);
    if LOG.set(Log { file, format, level }).is_ok() && !quiet {
        // Fails only if a subscriber is there already, and there is only this one.
        let _ = tracing::subscriber::set_global_default(Lines);
    }
    Ok(())
}

fn open_file(path: &Path) -> Result<File> {
    // crun's spelling `file:PATH`.
    let path = path
        .to_str()
        .and_then(|text| text.strip_prefix("file:"))
        .map_or(path.to_owned(), PathBuf::from);
    if path
        .to_str()
        .is_some_and(|text| text.starts_with("journald:") || text.starts_with("syslog:"))
    {
        bail!("rt logs to files only");
    }
    // For others to read, as containerd's umask of 0 would let them write too.
    trust::append(&path, 0o644)
}

/// The one line of a command that failed, into the log if there is one. Standard error is the caller's business.
pub(crate) fn error(message: &str) {
    if let Some(log) = LOG.get().filter(|log| log.file.is_some()) {
        log.write("error", message);
    }
}

impl Log {
    fn write(&self, level: &str, message: &str) {
        let time = jiff::Timestamp::now();
        let line = match self.format {
            Format::Text => format!("time=\"{time:.6}\" level={level} msg={message:?}\n"),
            Format::Json => {
                let time = format!("{time:.6}");
                format!("{}\n", serde_json::json!({ "level": level, "msg": message, "time": time }))
            }
        };
        // A log that cannot be written must not fail what it reports on.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// Writes each event of `tracing` as a line; spans are of no interest in a program this short.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let limit = match LOG.get().map(|log| log.level) {
            Some(LogLevel::Debug) => Level::DEBUG,
            Some(LogLevel::Info) => Level::INFO,
            Some(LogLevel::Warn) => Level::WARN,
            _ => Level::ERROR,
        };
        metadata.is_event() && *metadata.level() <= limit
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
        if let Some(log) = LOG.get() {
            let level = match *event.metadata().level() {
                Level::ERROR => "error",
                Level::WARN => "warning",
                Level::INFO => "info",
                _ => "debug",
            };
            log.write(level, &message.0);
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
