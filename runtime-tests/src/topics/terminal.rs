//! Terminals with a console socket, and terminals of `run` in the foreground.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use serde_json::json;

use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq, skip, wait_until};

super::tests! { "terminal": is_sent_to_the_console_socket, has_its_size_and_owner, run_in_the_foreground_passes_on_both_ways, begins_with_the_callers_size, a_pidfd_is_sent_to_its_socket, a_pidfd_is_sent_to_where_an_annotation_says, signals_pass_by_a_reader_that_does_not_read, a_console_socket_is_no_link_of_another_users, a_console_socket_may_have_a_long_path, a_device_of_the_image_makes_no_terminal, so_may_those_of_exec_and_of_pidfds,
    the_callers_own_is_no_controlling_one,
}

/// Creates and starts a bundle with a terminal. Returns the master of the terminal.
fn start(test: &Test, bundle: Bundle<'_>) -> Outcome<fs::File> {
    let path = test.folder.join("console");
    let listener = UnixListener::bind(&path)?;
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true));
    bundle.flag(format!("--console-socket={}", path.display())).start()?;
    Ok(receive(&listener)?.into())
}

pub(super) fn receive(listener: &UnixListener) -> Outcome<OwnedFd> {
    Ok(receive_with_text(listener)?.1)
}

/// Receives a descriptor and the text of its message.
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

pub(super) fn read_until(master: &mut fs::File, words: &str) -> Outcome<String> {
    let (mut text, mut bytes) = (String::new(), [0; 1000]);
    while !text.contains(words) {
        let length = master.read(&mut bytes)?;
        text += &String::from_utf8_lossy(&bytes[..length]).replace('\r', "");
    }
    Ok(text)
}

/// Reads the output of a terminal until its other end is closed. Then a pty returns EIO.
pub(super) fn read_all(mut master: fs::File) -> String {
    let (mut text, mut bytes) = (Vec::new(), [0; 1000]);
    while let Ok(length @ 1..) = master.read(&mut bytes) {
        text.extend_from_slice(&bytes[..length]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}

fn is_sent_to_the_console_socket(test: &Test) -> Outcome {
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; readlink /proc/self/fd/0; stat -c %F /dev/console; read line; echo got $line";
    let mut master = start(test, test.sh(script)?)?;
    // The terminal echoes the input at once, anywhere in the output.
    let mut text = read_until(&mut master, "special file\n")?;
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

/// A program asks for the size at once, and gets no signal later.
fn begins_with_the_callers_size(test: &Test) -> Outcome {
    test.only_rt()?;
    let (master, slave) = pair_of(Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 })?;
    let container = test.sh("exec sleep 60")?.start()?;
    let exec = ["exec", "--tty", &container.id, "/bin/busybox", "stty", "size"]
        .map(str::to_owned)
        .to_vec();
    let bundle = test.linux(&["/bin/busybox", "stty", "size"])?;
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true));
    bundle.write()?;
    let mut output = fs::File::from(master);
    for _ in 0..10 {
        for args in [exec.clone(), bundle.command_line("run", &test.id())] {
            let streams = [slave.try_clone()?, slave.try_clone()?];
            let mut command = test.command(args);
            let [stdin, stdout] = streams;
            ensure_eq(command.stdin(stdin).stdout(stdout).status()?.code(), Some(0))?;
            let text = read_until(&mut output, "\n")?;
            ensure_eq(text.trim(), "33 111")?;
        }
    }
    Ok(())
}

/// A terminal of the test, with this size.
pub(super) fn pair_of(size: Winsize) -> Outcome<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&slave, size)?;
    Ok((master, slave))
}

/// Creates a container, and checks the pidfd that the receiver gets.
fn pidfd_of(listener: &UnixListener, bundle: &Bundle<'_>) -> Outcome {
    let container = bundle.create()?;
    let pidfd = receive(listener)?;
    let info = fs::read_to_string(format!(
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

/// The standard output of `run` is a full pipe.
fn signals_pass_by_a_reader_that_does_not_read(test: &Test) -> Outcome {
    use rustix::process::{Pid, Signal, kill_process};
    let bundle = test.sh("trap 'exit 7' TERM; yes & wait")?;
    std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/yes"))?;
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true));
    bundle.write()?;
    let id = test.id();
    let mut command = test.command(bundle.command_line("run", &id));
    let mut run = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let pid = Pid::from_child(&run);
    let stdout = run.stdout.take().ok_or("no pipe")?;
    let mut act = || -> Outcome {
        // The pipe is full when its content stays the same.
        let (mut before, mut same) = (0, 0);
        wait_until("the pipe is full", || {
            let now = rustix::io::ioctl_fionread(&stdout).unwrap_or(0);
            same = if now > 0 && now == before { same + 1 } else { 0 };
            before = now;
            same == 50
        })?;
        kill_process(pid, Signal::TERM)?;
        wait_until("the container has ended", || {
            test.rt(["state", &id]).is_ok_and(|state| state.stdout.contains("stopped"))
        })?;
        // Nobody reads the rest of the output.
        kill_process(pid, Signal::TERM)?;
        wait_until("run has ended", || run.try_wait().is_ok_and(|status| status.is_some()))
    };
    let outcome = act();
    if outcome.is_err() {
        run.kill()?;
    }
    let status = run.wait()?;
    outcome?;
    ensure_eq(status.code(), Some(7))
}

fn a_console_socket_is_no_link_of_another_users(test: &Test) -> Outcome {
    let socket = test.folder.join("roots.sock");
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let link = test.folder.join("link");
    std::os::unix::fs::symlink(&socket, &link)?;
    std::os::unix::fs::lchown(&link, Some(1000), Some(1000))?;
    let bundle = test.sh("true")?.edit(|config| config["process"]["terminal"] = json!(true));
    let bundle = bundle.flag(format!("--console-socket={}", link.display()));
    let output = bundle.try_create(&test.id())?;
    ensure(output.code != Some(0) || !test.host.is_rt, "the terminal was sent")?;
    ensure(listener.accept().is_err() || !test.host.is_rt, "it was connected to")
}

/// An address has at most 108 bytes (`unix(7)`).
fn a_console_socket_may_have_a_long_path(test: &Test) -> Outcome {
    test.only_rt()?;
    let folder = test.folder.join("x".repeat(120));
    fs::create_dir(&folder)?;
    let listener = {
        // The test binds the socket through a shorter path.
        let short = test.folder.join("s");
        std::os::unix::fs::symlink(&folder, &short)?;
        UnixListener::bind(short.join("console"))?
    };
    let bundle = test.sh("test -t 0 && echo terminal")?;
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true));
    let path = folder.join("console").display().to_string();
    bundle.flag(format!("--console-socket={path}")).start()?;
    let text = read_all(receive(&listener)?.into());
    ensure(text.contains("terminal"), text)
}

/// `rt` does not even open the device, because opening it could have an effect.
fn a_device_of_the_image_makes_no_terminal(test: &Test) -> Outcome {
    test.only_rt()?;
    let path = test.folder.join("console");
    let _listener = UnixListener::bind(&path)?;
    let bundle = test.sh("tty")?.edit(|config| {
        config["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
        config["process"]["terminal"] = json!(true);
    });
    let folder = bundle.rootfs().join("dev/pts");
    fs::create_dir_all(&folder)?;
    let (mode, zero) = (rustix::fs::Mode::from(0o666), rustix::fs::makedev(1, 5));
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("ptmx"), kind, mode, zero)?;
    let bundle = bundle.flag(format!("--console-socket={}", path.display()));
    bundle.try_create(&test.id())?.fails_with("a terminal needs a devpts mount").map(drop)
}

fn so_may_those_of_exec_and_of_pidfds(test: &Test) -> Outcome {
    test.only_rt()?;
    let folder = test.folder.join("x".repeat(120));
    fs::create_dir(&folder)?;
    let short = test.folder.join("s");
    std::os::unix::fs::symlink(&folder, &short)?;
    let long = |name: &str| folder.join(name).display().to_string();
    let container = test.sh("exec sleep 60")?.start()?;
    let listener = UnixListener::bind(short.join("exec"))?;
    let flag = format!("--console-socket={}", long("exec"));
    let program = ["/bin/sh", "-c", "test -t 0 && echo terminal"];
    test.rt([&["exec", "--tty", "--detach", &flag, &container.id][..], &program].concat())?
        .success()?;
    let text = read_all(receive(&listener)?.into());
    ensure(text.contains("terminal"), text)?;
    let listener = UnixListener::bind(short.join("pidfd"))?;
    let flag = format!("--pidfd-socket={}", long("pidfd"));
    pidfd_of(&listener, &test.sh("sleep 60")?.flag(flag))?;
    let listener = UnixListener::bind(short.join("annotated"))?;
    let bundle = test.sh("sleep 60")?.annotation("run.oci.pidfd_receiver", &long("annotated"));
    pidfd_of(&listener, &bundle)
}

/// A program without its own terminal may have the caller's terminal as a stream. If that were its
/// controlling terminal, the program could type into it (TIOCSTI), and the caller's shell would
/// obey.
fn the_callers_own_is_no_controlling_one(test: &Test) -> Outcome {
    // 0x540e is TIOCSCTTY, 0x5412 is TIOCSTI.
    const PROBE: &str = r#"-t STDIN or die "no terminal"; my $typed = "x"; $| = 1;
        print "taken\n" if ioctl STDIN, 0x540e, 0; print "typed\n" if ioctl STDIN, 0x5412, $typed;
        print "opened\n" if open my $terminal, "+<", "/dev/tty"; print "tried\n""#;
    if !std::path::Path::new("/usr/bin/script").exists() {
        return skip("no script(1)");
    }
    let on_a_terminal = |line: &str| -> Outcome<String> {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", line, "/dev/null"]);
        Ok(Output::of(command)?.success()?.stdout)
    };
    let bundle = test.perl("")?.file("/probe", PROBE)?.args(&["/usr/bin/perl", "/probe"]);
    bundle.write()?;
    let by_itself =
        on_a_terminal(&format!("/usr/bin/perl {}", bundle.rootfs().join("probe").display()))?;
    ensure(by_itself.contains("opened"), format!("no controlling terminal: {by_itself}"))?;
    let rt = |args: &[String]| -> String {
        let command = test.command(args);
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|word| format!("'{}' ", word.display())).collect()
    };
    let word = |word: &str, id: &str| rt(&[word.to_owned(), id.to_owned()]);
    let (id, running) = (test.id(), bundle.clone().args(&["/bin/sleep", "60"]).start()?);
    bundle.write()?;
    let program = ["/usr/bin/perl", "/probe"].map(str::to_owned);
    for line in [
        rt(&bundle.command_line("run", &test.id())),
        format!(
            "{} && {} && until {} | grep -q stopped; do sleep 0.05; done && {}",
            rt(&bundle.command_line("create", &id)),
            word("start", &id),
            word("state", &id),
            word("delete", &id)
        ),
        rt(&[&["exec".to_owned(), running.id.clone()][..], &program].concat()),
    ] {
        let said = on_a_terminal(&line)?;
        ensure_eq((line.as_str(), said.replace('\r', "")), (line.as_str(), "tried\n".to_owned()))?;
    }
    Ok(())
}
