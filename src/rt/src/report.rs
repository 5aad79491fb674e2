//! Errors and warnings on standard error: one line each, which any terminal can show.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use crate::{ids, log, syscall};

/// Prints the error in one `write(2)`, because conmon reads standard error only once.
pub(crate) fn fail(line: &str) -> ExitCode {
    let line = &format!("{line}{}", what_a_filter_forbids(line));
    log::error(line);
    // If standard error is closed, nobody can see the error.
    let _ = io::stderr().write_all(format!("rt: {line}\n").as_bytes());
    ExitCode::FAILURE
}

/// For an error that looks like a filter's: lists the calls that a filter of a service manager or a
/// sandbox around `rt` forbids.
fn what_a_filter_forbids(line: &str) -> String {
    let errors = [
        "Operation not permitted",
        "Function not implemented",
        "Address family not supported by protocol",
        "Permission denied",
    ];
    if !errors.iter().any(|error| line.ends_with(error)) {
        return String::new();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.contains("\nSeccomp:\t2\n") {
        return String::new();
    }
    // Bit 21 is CAP_SYS_ADMIN.
    let sets = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let sets = sets.and_then(|sets| u64::from_str_radix(sets.trim(), 16).ok());
    let privileged = sets.is_some_and(|sets| sets & 1 << 21 != 0) && ids::is_host_root();
    match syscall::forbidden(privileged)[..] {
        [] => String::new(),
        ref calls => format!(": a filter around rt forbids `{}`", calls.join("`, `")),
    }
}

/// Reports a problem that is not a failure of the command.
pub(crate) fn warn(line: &str) {
    // One `write(2)`, as for an error.
    let _ = io::stderr().write_all(format!("rt: warning: {}\n", one_line(line)).as_bytes());
}

/// The causes of an error on one line, outermost first, without Rust's ` (os error N)`.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    one_line(&format!("{error:#}"))
}

pub(crate) fn one_line(text: &str) -> String {
    let mut line = text.replace('\n', " ");
    while let Some(start) = line.find(" (os error ") {
        let Some(length) = line[start..].find(')') else { break };
        line.replace_range(start..=start + length, "");
    }
    visible(&line)
}

/// Escapes a text for a terminal, which would obey control characters: an image chooses the names
/// of programs and modules.
pub(crate) fn visible(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            // Marks and overrides of the text direction, and characters without a width.
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_is_one_line_without_numbers() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOENT))
            .context("read `config.json`")
            .context("open bundle `/b`")
            .expect_err("it is one");
        assert_eq!(
            describe(&error),
            "open bundle `/b`: read `config.json`: No such file or directory"
        );
    }
}
