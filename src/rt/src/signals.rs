//! Signals (`signal(7)`): the termination signals, and names and numbers as `kill` accepts them:
//! `KILL`, `SIGKILL`, `9`, `RTMIN+3`.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;

use crate::syscall;

/// The termination signals.
pub(crate) const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

/// Whether a termination signal is pending. `run` and `exec` block these signals to forward them.
pub(crate) fn is_interrupted() -> bool {
    syscall::pending(&ENDING)
}

/// The signals that have arrived at a signalfd.
pub(crate) fn read(descriptor: &OwnedFd) -> Result<Vec<i32>> {
    // The size of `struct signalfd_siginfo`, whose first field is the signal's number
    // (signalfd(2)).
    const RECORD: usize = 128;
    let mut bytes = [0; 8 * RECORD];
    match rustix::io::read(descriptor, &mut bytes) {
        Ok(length) => {
            let records = bytes[..length].chunks_exact(RECORD);
            Ok(records
                .map(|record| i32::from_ne_bytes([record[0], record[1], record[2], record[3]]))
                .collect())
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
        Err(error) => Err(error).context("read the signals"),
    }
}

const NAMES: [(&str, i32); 33] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The C library keeps 32 and 33 for itself, so users count the real-time signals from 34.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Parses a signal's name (with or without `SIG`, in any case) or number, 0 included.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let unknown = || anyhow!("unknown signal `{text}`");
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (Some(offset), _) if offset.starts_with('+') => {
            offset.parse().ok().map(|n: i32| RTMIN.saturating_add(n))
        }
        (_, Some(offset)) if offset.starts_with('-') => {
            offset.parse().ok().map(|n: i32| RTMAX.saturating_add(n))
        }
        _ => None,
    };
    real_time.filter(|number| (RTMIN..=RTMAX).contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn takes_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("0", 0),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text).ok(), Some(number), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "SIG", "SIGNO", "65", "-1", "RTMIN-1", "RTMAX+1", "RTMIN+31", "9 "] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
