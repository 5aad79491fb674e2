//! A false D-Bus with a false systemd, which can make one scope. A stranger sends a false signal
//! first.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::harness::{Outcome, Stop};

const JOB: &str = "/org/freedesktop/systemd1/job/7";
const OWNER: &str = ":1.1";
const STRANGER: &str = ":1.666";

/// Listens at a path, and moves the process of the scope into a cgroup. The thread ends with the
/// test program.
pub(super) fn start(socket: &Path, scope: PathBuf) -> Outcome {
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The end of a connection is an error too.
            let _ = serve(stream, &scope);
        }
    });
    Ok(())
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(u32::try_from(text.len()).unwrap_or(0).to_ne_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

enum Field<'a> {
    Text(u8, char, &'a str),
    Word(u8, u32),
}

fn message(kind: u8, fields: &[Field<'_>], body: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    for field in fields {
        pad(&mut list, 8);
        match field {
            Field::Text(code, 'g', value) => {
                list.extend([*code, 1, b'g', 0, u8::try_from(value.len()).unwrap_or(0)]);
                list.extend(value.as_bytes());
                list.push(0);
            }
            Field::Text(code, kind, value) => {
                list.extend([*code, 1, u8::try_from(*kind).unwrap_or(b's'), 0]);
                text(&mut list, value);
            }
            Field::Word(code, value) => {
                list.extend([*code, 1, b'u', 0]);
                pad(&mut list, 4);
                list.extend(value.to_ne_bytes());
            }
        }
    }
    let order = if cfg!(target_endian = "little") { b'l' } else { b'B' };
    let mut message = vec![order, kind, 0, 1];
    for number in [body.len(), 1, list.len()] {
        message.extend(u32::try_from(number).unwrap_or(0).to_ne_bytes());
    }
    message.extend(list);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn job_removed(sender: &str, result: &str) -> Vec<u8> {
    let mut body = 7_u32.to_ne_bytes().to_vec();
    for part in [JOB, "x.scope", result] {
        text(&mut body, part);
    }
    let fields = [
        Field::Text(1, 'o', "/org/freedesktop/systemd1"),
        Field::Text(2, 's', "org.freedesktop.systemd1.Manager"),
        Field::Text(3, 's', "JobRemoved"),
        Field::Text(7, 's', sender),
        Field::Text(8, 'g', "uoss"),
    ];
    message(4, &fields, &body)
}

fn serve(stream: UnixStream, scope: &Path) -> Result<(), Stop> {
    let mut write = stream.try_clone()?;
    let mut read = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if read.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_start_matches('\0').trim_end() {
            "DATA" => write.write_all(b"OK x\r\n")?,
            "BEGIN" => break,
            _ => write.write_all(b"DATA\r\n")?,
        }
    }
    loop {
        let mut head = [0; 16];
        read.read_exact(&mut head)?;
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (body, serial, fields) = (word(4), word(8), word(12));
        let length = usize::try_from(fields)?.next_multiple_of(8) + usize::try_from(body)?;
        let mut rest = vec![0; length];
        read.read_exact(&mut rest)?;
        let has = |name: &str| rest.windows(name.len()).any(|part| part == name.as_bytes());
        let answer = [Field::Word(5, serial), Field::Text(7, 's', OWNER)];
        if !has("StartTransientUnit") && !has("StopUnit") {
            write.write_all(&message(2, &answer, &[]))?;
            continue;
        }
        if let Some(at) = rest.windows(5).position(|part| part == b"PIDs\0") {
            // The name, the type `au` of the variant, the length of the array, the number.
            let at = (at + 5 + 4).next_multiple_of(4) + 4;
            let pid = u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            fs::create_dir_all(scope)?;
            fs::write(scope.join("cgroup.procs"), pid.to_string())?;
        }
        let mut job = Vec::new();
        text(&mut job, JOB);
        let [number, sender] = answer;
        write.write_all(&message(2, &[number, sender, Field::Text(8, 'g', "o")], &job))?;
        write.write_all(&job_removed(STRANGER, "failed"))?;
        write.write_all(&job_removed(OWNER, "done"))?;
    }
}
