//! Terminals: by a console socket, and of `run` in the foreground.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq};

super::tests! { "terminal": is_sent_to_the_console_socket, has_its_size_and_owner, run_in_the_foreground_passes_on_both_ways, a_pidfd_is_sent_to_its_socket, a_pidfd_is_sent_to_where_an_annotation_says }

/// Creates and starts a bundle with a terminal; returns its master.
fn start(test: &Test, bundle: Bundle<'_>) -> Outcome<std::fs::File> {
    let path = test.folder.join("console");
    let listener = UnixListener::bind(&path)?;
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true));
    bundle.flag(format!("--console-socket={}", path.display())).start()?;
    Ok(receive(&listener)?.into())
}

pub(super) fn receive(listener: &UnixListener) -> Outcome<OwnedFd> {
    Ok(receive_with_text(listener)?.1)
}

/// A descriptor, and the text that came with it.
pub(super) fn receive_with_text(listener: &UnixListener) -> Outcome<(String, OwnedFd)> {
    let (stream, _) = listener.accept()?;
    let mut text = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            text.truncate(received.bytes);
            return Ok((String::from_utf8(text)?, descriptors.next().ok_or("no descriptor")?));
        }
    }
    Err("no descriptor was sent".into())
}

pub(super) fn read_until(master: &mut std::fs::File, words: &str) -> Outcome<String> {
    let (mut text, mut bytes) = (String::new(), [0; 1000]);
    while !text.contains(words) {
        let length = master.read(&mut bytes)?;
        text += &String::from_utf8_lossy(&bytes[..length]).replace('\r', "");
    }
    Ok(text)
}

/// All that is written to a terminal until the other end is closed, for which a pty says EIO.
pub(super) fn read_all(mut master: std::fs::File) -> String {
    let (mut text, mut bytes) = (Vec::new(), [0; 1000]);
    while let Ok(length @ 1..) = master.read(&mut bytes) {
        text.extend_from_slice(&bytes[..length]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}

fn is_sent_to_the_console_socket(test: &Test) -> Outcome {
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; readlink /proc/self/fd/0; stat -c %F /dev/console; read line; echo got $line";
    let mut master = start(test, test.sh(script)?)?;
    // What is typed is shown at once, wherever the output has come to.
    let mut text = read_until(&mut master, "special file")?;
    master.write_all(b"some words\n")?;
    text += &read_all(master);
    let lines: Vec<&str> = text.lines().filter(|line| *line != "some words").collect();
    ensure_eq(lines, vec!["terminal", "/dev/pts/0", "character special file", "got some words"])
}

fn has_its_size_and_owner(test: &Test) -> Outcome {
    let bundle =
        test.sh("stat -c %u /dev/pts/0; echo x > /dev/console; sleep 0.2")?.edit(|config| {
            config["process"]["consoleSize"] = json!({ "height": 33, "width": 111 });
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        });
    let master = start(test, bundle)?;
    let size = rustix::termios::tcgetwinsize(&master)?;
    ensure_eq((size.ws_row, size.ws_col), (33, 111))?;
    ensure_eq(read_all(master).as_str(), "1000\nx\n")
}

fn run_in_the_foreground_passes_on_both_ways(test: &Test) -> Outcome {
    let bundle = test.sh("test -t 1 && echo terminal; read line; echo got $line; exit 5")?;
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true));
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let mut run = test.command(["run", "--bundle", &folder, &test.id()]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = run.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"some words\n")?;
    let mut text = String::new();
    run.stdout.take().ok_or("no stdout")?.read_to_string(&mut text)?;
    ensure_eq(run.wait()?.code(), Some(5))?;
    drop(stdin);
    ensure(text.contains("terminal") && text.contains("got some words"), text)
}

/// Creates a container, and returns what the receiver got.
fn pidfd_of(listener: &UnixListener, bundle: &Bundle<'_>) -> Outcome {
    let container = bundle.create()?;
    let pidfd = receive(listener)?;
    let info = std::fs::read_to_string(format!(
        "/proc/self/fdinfo/{}",
        std::os::fd::AsRawFd::as_raw_fd(&pidfd)
    ))?;
    ensure(info.contains(&format!("Pid:\t{}\n", container.pid()?)), info)
}

fn a_pidfd_is_sent_to_its_socket(test: &Test) -> Outcome {
    test.only_rt()?;
    let path = test.folder.join("pidfd");
    let listener = UnixListener::bind(&path)?;
    pidfd_of(&listener, &test.sh("sleep 60")?.flag(format!("--pidfd-socket={}", path.display())))
}

fn a_pidfd_is_sent_to_where_an_annotation_says(test: &Test) -> Outcome {
    let path = test.folder.join("pidfd");
    let listener = UnixListener::bind(&path)?;
    let path = path.display().to_string();
    pidfd_of(&listener, &test.sh("sleep 60")?.annotation("run.oci.pidfd_receiver", &path))
}
