//! `rt top`: a live table of the containers below one root. `rt` execs this program, which knows
//! containers only by the command line of `rt` ([`source`]): so it needs no rights of its own, and
//! the state has one reader.
//!
//! The command line is the one that `rt top` writes:
//! `rt-top RT --root=DIR [--interval=SECONDS] [--once] [--format=table|json]`.
#![forbid(unsafe_code)]

mod keys;
mod live;
mod source;
mod table;
mod text;
mod usage;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use source::Source;
use table::Sort;

fn main() -> ExitCode {
    let done = Arguments::parse(std::env::args_os().skip(1)).and_then(|arguments| run(&arguments));
    done.unwrap_or_else(|error| {
        // If standard error is closed, nobody can see the error.
        let line = format!("rt: top: {}\n", text::visible(&error));
        let _ = std::io::stderr().write_all(line.as_bytes());
        ExitCode::FAILURE
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    if arguments.once {
        return once(arguments).map(|()| ExitCode::SUCCESS);
    }
    if arguments.json {
        return Err("`--format json` requires `--once`".into());
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        let advice = "`--once` prints the table without one";
        return Err(format!("standard input and output must be a terminal: {advice}"));
    }
    live::run(arguments.source.clone(), arguments.interval.unwrap_or(Duration::from_secs(2)))
}

/// Prints one table, or one array. A rate requires two samples.
fn once(arguments: &Arguments) -> Result<(), String> {
    let mut before = None;
    let mut now = arguments.source.sample()?;
    if now.containers.iter().any(|container| container.usage.is_some()) {
        thread::sleep(arguments.interval.unwrap_or(Duration::from_millis(500)));
        before = Some(now);
        now = arguments.source.sample()?;
    }
    let mut rows = usage::rows(before.as_ref(), &now);
    table::sort(&mut rows, Sort::Name);
    for note in &now.notes {
        // The rest of the answer is worth more than a complaint about standard error.
        let _ = writeln!(std::io::stderr(), "rt: warning: {}", text::visible(note));
    }
    let answer = if arguments.json {
        table::json(&rows)
    } else {
        table::lines(&rows, None).iter().map(|line| format!("{line}\n")).collect()
    };
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| format!("write to standard output: {error}"))
}

#[derive(Debug)]
struct Arguments {
    source: Source,
    interval: Option<Duration>,
    once: bool,
    json: bool,
}

impl Arguments {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
        let rt = args.next().ok_or("`rt top` starts this program")?;
        let mut source = Source { rt, root: OsString::new() };
        let (mut interval, mut once, mut json) = (None, false, false);
        for arg in args {
            let (flag, value) = match arg.as_bytes().iter().position(|byte| *byte == b'=') {
                Some(at) => (&arg.as_bytes()[..at], &arg.as_bytes()[at + 1..]),
                None => (arg.as_bytes(), &b""[..]),
            };
            match flag {
                b"--root" => source.root = OsString::from_vec(value.to_owned()),
                b"--interval" => interval = Some(seconds(&String::from_utf8_lossy(value))?),
                b"--once" => once = true,
                b"--format" => json = value == b"json",
                _ => return Err(format!("unknown flag or argument `{}`", arg.display())),
            }
        }
        Ok(Arguments { source, interval, once, json })
    }
}

/// The time between two samples. The shortest one is not much longer than a sample takes.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|number| (0.1..=86400.0).contains(number));
    number.map(Duration::from_secs_f64).ok_or_else(|| {
        format!("wrong value `{text}` for `--interval`: a number of seconds from 0.1 to 86400")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
        for wrong in ["", "x", "0", "-1", "1s", "nan", "inf", "86401", "1e99"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_that_of_rt() {
        let parse = |args: &[&str]| Arguments::parse(args.iter().map(OsString::from));
        let parsed = parse(&["/bin/rt", "--root=/a=b", "--once", "--format=json"]).expect("good");
        assert_eq!((parsed.source.rt, parsed.source.root), ("/bin/rt".into(), "/a=b".into()));
        assert!(parsed.once && parsed.json && parsed.interval.is_none());
        assert!(parse(&[]).is_err() && parse(&["/bin/rt", "more"]).is_err());
    }
}
