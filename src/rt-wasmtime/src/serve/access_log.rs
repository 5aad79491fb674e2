//! The access log, in the Combined Log Format of Apache's `mod_log_config`.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode, header};
use rt_engine::contract::Stream;
use rt_engine::process;

use super::standard;
use super::statistics::{Counter, count};

#[derive(Debug)]
pub(super) struct AccessLog(File);

/// The longest line, in bytes: what a pipe accepts in one piece (`PIPE_BUF`, pipe(7)).
const LONGEST: usize = 4096;

/// One request. The text of the request is the client's.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) client: IpAddr,
    pub(super) begun: SystemTime,
    /// The request's line: method, target and version.
    pub(super) line: &'a str,
    pub(super) status: StatusCode,
    /// The size of the response's body, in bytes.
    pub(super) sent: u64,
    pub(super) referer: &'a [u8],
    pub(super) agent: &'a [u8],
}

impl AccessLog {
    pub(super) fn new(stream: Stream) -> Result<AccessLog, String> {
        standard(stream).map(AccessLog).map_err(|error| format!("open the access log: {error}"))
    }

    /// Writes a line, if that is possible without a wait: a log that nobody reads must not stop the
    /// server.
    pub(super) fn write(&self, entry: &Entry<'_>) {
        let line = entry.text();
        if !process::can_write(&self.0) || (&self.0).write_all(line.as_bytes()).is_err() {
            count(Counter::LogLinesLost);
        }
    }
}

impl Entry<'_> {
    fn text(&self) -> String {
        let Entry { client, begun, line, status, sent, referer, agent } = self;
        let time = time(*begun);
        let status = status.as_u16();
        // Half of the line is for the request, and a quarter each for the other two.
        let line = quoted(line.as_bytes(), LONGEST / 2 - 200);
        let (referer, agent) = (quoted(referer, LONGEST / 4), quoted(agent, LONGEST / 4));
        let sent = if *sent > 0 { sent.to_string() } else { "-".to_owned() };
        format!("{client} - - [{time}] {line} {status} {sent} {referer} {agent}\n")
    }
}

/// The two headers that the format has.
pub(super) fn headers(headers: &HeaderMap) -> [Vec<u8>; 2] {
    [header::REFERER, header::USER_AGENT]
        .map(|name| headers.get(name).map_or_else(Vec::new, |value| value.as_bytes().to_vec()))
}

/// Quotes a client's text as Apache does: a quotation mark and a backslash get a backslash, and
/// what is not printable ASCII becomes `\xhh`. So a client can neither end a line nor command a
/// terminal.
fn quoted(text: &[u8], most: usize) -> String {
    if text.is_empty() {
        return "\"-\"".to_owned();
    }
    let mut quoted = String::from("\"");
    for byte in text {
        if quoted.len() > most - 8 {
            quoted.push_str("...");
            break;
        }
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => quoted.push(char::from(*byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(quoted, "\\x{byte:02x}")),
        }
    }
    quoted.push('"');
    quoted
}

/// A time as the format has it, always in UTC.
fn time(time: SystemTime) -> String {
    // `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, "Date/Time Formats").
    let date = httpdate::fmt_http_date(time);
    let parts: Vec<&str> = date.split(' ').collect();
    match parts.as_slice() {
        [_, day, month, year, time, _] => format!("{day}/{month}/{year}:{time} +0000"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_in_the_combined_format() {
        let entry = Entry {
            client: [127, 0, 0, 1].into(),
            begun: SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777),
            line: "GET /a?b HTTP/1.1",
            status: StatusCode::OK,
            sent: 12,
            referer: b"",
            agent: b"x\"\n\x1b[31m\\\xff",
        };
        assert_eq!(
            entry.text(),
            "127.0.0.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /a?b HTTP/1.1\" 200 12 \"-\" \
             \"x\\\"\\x0a\\x1b[31m\\\\\\xff\"\n"
        );
    }

    #[test]
    fn a_line_fits_into_a_pipe() {
        let long = "\u{1}".repeat(100_000);
        let (referer, agent) = (long.as_bytes(), long.as_bytes());
        let entry = Entry {
            client: [0xfd00; 8].into(),
            begun: SystemTime::UNIX_EPOCH,
            line: &long,
            status: StatusCode::OK,
            sent: u64::MAX,
            referer,
            agent,
        };
        assert!(entry.text().len() <= LONGEST, "{}", entry.text().len());
    }
}
