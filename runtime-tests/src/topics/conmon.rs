//! conmon, with the command lines of CRI-O and podman. conmon calls the runtime, keeps the streams
//! of the container, and records its exit code.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};

use super::needs;
use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq, skip, wait_until};

super::tests! { "conmon":
    keeps_the_output_and_the_exit_code, gives_a_terminal, is_told_why_a_creation_failed, hears_of_a_missing_program, keeps_the_output_of_exec,
    keeps_the_output_of_exec_on_a_terminal, notices_want_of_memory, passes_on_what_is_typed, runs_a_module, stops_with_the_container,
    begins_another_log, changes_the_size_of_a_terminal, ends_an_exec_that_takes_too_long, a_client_attaches_before_the_program_begins,
}

/// The directory to which conmon writes.
pub(super) struct Conmon<'a> {
    test: &'a Test,
    pub(super) id: String,
    pub(super) folder: PathBuf,
}

impl<'a> Conmon<'a> {
    pub(super) fn new(test: &'a Test) -> Outcome<Conmon<'a>> {
        if Command::new("conmon").arg("--version").output().is_err() {
            return skip("conmon is not installed");
        }
        let id = test.id();
        let folder = test.folder.join(format!("conmon-{id}"));
        Conmon { test, id, folder: PathBuf::new() }.beside(folder)
    }

    /// The same container with another directory, as for a program of `exec`.
    pub(super) fn beside(&self, folder: PathBuf) -> Outcome<Conmon<'a>> {
        for name in ["exits", "sockets", "persist"] {
            fs::create_dir_all(folder.join(name))?;
        }
        Ok(Conmon { test: self.test, id: self.id.clone(), folder })
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// conmon with podman's arguments. The script executes it, with descriptor 3 for the message to
    /// the caller.
    fn command(&self, script: &str, args: &[&str]) -> Command {
        let host = self.test.host;
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", &self.path("said")]);
        command.args(["-c", &self.id, "-u", &self.id, "-n", "name"]);
        command.arg("-r").arg(&host.runtime);
        if host.by_systemd {
            command.arg("-s");
        }
        command.args(["-p", &self.path("pid"), "-l", &format!("k8s-file:{}", self.path("log"))]);
        command.args(["--exit-dir", &self.path("exits"), "--persist-dir", &self.path("persist")]);
        command.args(["--socket-dir-path", &self.path("sockets"), "--log-level", "error"]);
        command.arg(format!("--runtime-arg=--root={}", self.test.state_root().display()));
        command.args(["--api-version", "1"]).args(args);
        // When memory runs out, conmon also leaves a file in its working directory.
        command.current_dir(&self.folder).env("_OCI_SYNCPIPE", "3");
        // conmon keeps its streams open as long as the container lives.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs conmon, and returns its message to the caller. conmon writes the message to the
    /// descriptor that a variable names. Here the descriptor is a file.
    fn run(&self, args: &[&str]) -> Outcome<Value> {
        let said = self.folder.join("said");
        let _ = fs::remove_file(&said);
        self.command("exec 3>\"$1\"; shift; exec conmon \"$@\"", args).status()?;
        wait_until("conmon has said something", || {
            fs::read_to_string(&said).is_ok_and(|text| text.ends_with('\n') || text.ends_with('}'))
        })?;
        // For a program of `exec`, conmon adds a second line with the exit code.
        Ok(serde_json::from_str(fs::read_to_string(said)?.lines().next().unwrap_or_default())?)
    }

    /// Creates and starts a container.
    fn start(&self, bundle: &Bundle<'_>, args: &[&str]) -> Outcome {
        bundle.write()?;
        let folder = bundle.folder.display().to_string();
        let said = self.run(&[&["-b", &folder], args].concat())?;
        let state = self.test.rt(["state", &self.id])?.success()?.stdout;
        ensure_eq(&said["data"], &serde_json::from_str::<Value>(&state)?["pid"])?;
        ensure_eq(fs::read_to_string(self.path("pid"))?, said["data"].to_string())?;
        self.test.rt(["start", &self.id])?.success().map(drop)
    }

    /// The container's output, without the time at the beginning of each line.
    pub(super) fn log(&self) -> Outcome<String> {
        let text = fs::read_to_string(self.path("log"))?;
        let mut log = String::new();
        for line in text.lines() {
            let line = line.split_once(' ').map_or(line, |(_, rest)| rest).replace('\r', "");
            // If a line came in pieces, conmon marks all pieces except the last one with a P.
            match line.split_once(" P ") {
                Some((stream, piece)) => log += &format!("{stream} F {piece}"),
                None if log.is_empty() || log.ends_with('\n') => log += &(line + "\n"),
                None => {
                    let rest = line.split_once(" F ").map_or(&*line, |(_, rest)| rest);
                    log += &format!("{rest}\n");
                }
            }
        }
        Ok(log)
    }

    pub(super) fn exit_code(&self) -> Outcome<String> {
        let file = self.folder.join("exits").join(&self.id);
        wait_until("the exit file is there", || {
            fs::read(&file).is_ok_and(|text| !text.is_empty())
        })?;
        Ok(fs::read_to_string(file)?)
    }

    /// Connects to the socket through which a client attaches.
    pub(super) fn attach(&self) -> Outcome<fs::File> {
        self.attach_to(&self.folder.join("sockets").join(&self.id).join("attach"))
    }

    fn attach_to(&self, path: &Path) -> Outcome<fs::File> {
        let socket: OwnedFd =
            rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        // The path is too long for a socket address.
        let link = self.test.folder.join("a");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(path, &link)?;
        wait_until("conmon listens", || link.exists())?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&link)?)?;
        Ok(fs::File::from(socket))
    }
}

/// Reads what an attached client gets, until these words. The first byte of each message names the
/// stream: 2 is standard output.
pub(super) fn read_attached(stream: &mut fs::File, words: &str) -> Outcome<String> {
    let (mut text, mut bytes) = (String::new(), [0; 8193]);
    while !text.contains(words) {
        let length = stream.read(&mut bytes)?;
        ensure(length > 1 && bytes[0] == 2, format!("{length} bytes after {text:?}"))?;
        text += &String::from_utf8_lossy(&bytes[1..length]).replace('\r', "");
    }
    Ok(text)
}

fn keeps_the_output_and_the_exit_code(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.sh("echo out; echo err >&2; exit 7")?, &[])?;
    ensure_eq(conmon.exit_code()?.as_str(), "7")?;
    let log = conmon.log()?;
    ensure(log.contains("stdout F out\n") && log.contains("stderr F err\n"), log)
}

fn gives_a_terminal(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    let bundle = test
        .sh("test -t 0 && test -t 2 && echo terminal; exit 3")?
        .edit(|config| config["process"]["terminal"] = json!(true));
    conmon.start(&bundle, &["-t"])?;
    ensure_eq(conmon.exit_code()?.as_str(), "3")?;
    ensure_eq(conmon.log()?.as_str(), "stdout F terminal\n")
}

/// `kubectl describe` shows this message.
fn is_told_why_a_creation_failed(test: &Test) -> Outcome {
    test.only_rt()?;
    let conmon = Conmon::new(test)?;
    let bundle = test.sh("true")?.mount(json!({
        "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"],
    }));
    bundle.write()?;
    let said = conmon.run(&["-b", &bundle.folder.display().to_string()])?;
    ensure_eq(&said["data"], &json!(-1))?;
    let message = said["message"].as_str().unwrap_or_default();
    ensure(message.contains("open source `/no/such/source`: No such file or directory"), message)
}

/// By these words, CRI-O and podman choose the exit code 127.
fn hears_of_a_missing_program(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    let bundle = test.linux(&["/none"])?;
    bundle.write()?;
    let said = conmon.run(&["-b", &bundle.folder.display().to_string()])?;
    let message = said["message"].as_str().unwrap_or_default();
    ensure(message.to_lowercase().contains("no such file or directory"), message)
}

/// Like `ExecSync` of CRI: the process description is in a file, and the output goes to a separate
/// log.
fn exec(conmon: &Conmon<'_>, script: &str, terminal: bool) -> Outcome<(String, String)> {
    let terminal: &[&str] = if terminal { &["-t"] } else { &[] };
    let second = exec_with(conmon, script, terminal)?;
    Ok((second.exit_code()?, second.log()?))
}

fn exec_with<'a>(conmon: &Conmon<'a>, script: &str, args: &[&str]) -> Outcome<Conmon<'a>> {
    let file = process(conmon, script, args.contains(&"-t"))?;
    let second = conmon.beside(conmon.folder.join("exec"))?;
    let said = second.run(&[&["-e", "--exec-process-spec", &file], args].concat())?;
    ensure(said["data"].as_i64().is_some_and(|pid| pid > 0), &said)?;
    Ok(second)
}

/// The file with the process for `exec`.
fn process(conmon: &Conmon<'_>, script: &str, terminal: bool) -> Outcome<String> {
    let process = json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal, "user": { "uid": 0, "gid": 0 },
    });
    let file = conmon.folder.join("process.json");
    fs::write(&file, process.to_string())?;
    Ok(file.display().to_string())
}

/// `podman exec`: conmon runs the program after the client has attached, so that the client misses
/// nothing.
fn a_client_attaches_before_the_program_begins(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.sh("exec sleep 60")?, &[])?;
    let second = conmon.beside(conmon.folder.join("exec"))?;
    let file = process(&conmon, "echo begun; read line; echo got $line; exit 6", false)?;
    let (attach, ready) = UnixStream::pair()?;
    let (mut start, begin) = UnixStream::pair()?;
    let script = "exec 3>\"$1\" 4<&0 5<&1; shift; exec conmon \"$@\" </dev/null >/dev/null";
    let bundle = second.folder.display().to_string();
    let args = ["-b", &bundle, "--full-attach", "-i", "-e", "--exec-attach", "--exec-process-spec"];
    let mut command = second.command(script, &[&args[..], &[&file]].concat());
    command.envs([("_OCI_ATTACHPIPE", "4"), ("_OCI_STARTPIPE", "5")]);
    command.stdin(OwnedFd::from(ready)).stdout(OwnedFd::from(begin));
    let mut child = command.spawn()?;
    drop(command);
    start.write_all(&[0])?;
    child.wait()?;
    let mut line = String::new();
    attach.set_read_timeout(Some(Duration::from_secs(60)))?;
    BufReader::new(attach).read_line(&mut line)?;
    ensure_eq(serde_json::from_str::<Value>(&line)?, json!({ "data": 0 }))?;
    let mut client = conmon.attach_to(&second.folder.join("attach"))?;
    start.write_all(&[0])?;
    ensure_eq(read_attached(&mut client, "begun\n")?.as_str(), "begun\n")?;
    client.write_all(b"words\n")?;
    ensure_eq(read_attached(&mut client, "words\n")?.as_str(), "got words\n")?;
    ensure_eq(second.exit_code()?.as_str(), "6")
}

fn keeps_the_output_of_exec(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.sh("exec sleep 60")?, &[])?;
    let (code, log) = exec(&conmon, "echo in; echo bad >&2; exit 9", false)?;
    ensure_eq(code.as_str(), "9")?;
    ensure(log.contains("stdout F in\n") && log.contains("stderr F bad\n"), log)
}

/// Like a probe that hangs. conmon kills the process group of the program, which must be its own
/// group. CRI-O recognizes this message.
fn ends_an_exec_that_takes_too_long(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.sh("trap 'exit 5' TERM; while :; do sleep 0.1; done")?, &[])?;
    // A child is in the process group too.
    let script = "echo before; sleep 61 & sleep 61";
    for terminal in [&["--sync", "-T", "1"][..], &["--sync", "-T", "1", "-t"]] {
        let second = exec_with(&conmon, script, terminal)?;
        let said = fs::read_to_string(second.folder.join("said"))?;
        let last: Value = serde_json::from_str(said.lines().last().unwrap_or_default())?;
        ensure_eq(&last, &json!({ "data": -1, "message": "command timed out" }))?;
        ensure_eq(second.log()?.as_str(), "stdout F before\n")?;
        fs::remove_dir_all(&second.folder)?;
        let listed = || test.rt(["ps", &conmon.id]).map(|output| output.stdout);
        wait_until("it is gone", || listed().is_ok_and(|list| !list.contains("sleep 61")))?;
    }
    // The container still runs.
    let state = test.rt(["state", &conmon.id])?.success()?.stdout;
    ensure_eq(&serde_json::from_str::<Value>(&state)?["status"], &json!("running"))?;
    test.rt(["kill", &conmon.id, "TERM"])?.success()?;
    ensure_eq(conmon.exit_code()?.as_str(), "5")
}

fn keeps_the_output_of_exec_on_a_terminal(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.sh("exec sleep 60")?, &[])?;
    let (code, log) = exec(&conmon, "test -t 1 && echo terminal; exit 4", true)?;
    ensure_eq((code.as_str(), log.as_str()), ("4", "stdout F terminal\n"))
}

/// conmon makes a file with the name `oom`, which CRI-O looks for.
fn notices_want_of_memory(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    needs(test, "memory")?;
    if test.host.by_systemd {
        // If the kernel reports the lack of memory before it kills a process, conmon 2.1.6 stops
        // watching. Then conmon looks once more at the end.
        return skip("systemd removes the cgroup before conmon looks, at times");
    }
    let script = "sh -c 'x=x; while :; do x=$x$x; done'; exit 9";
    let bundle = test.sh(script)?.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    });
    conmon.start(&bundle, &[])?;
    ensure_eq(conmon.exit_code()?.as_str(), "9")?;
    ensure(conmon.folder.join("persist/oom").exists(), "no file `oom`")
}

fn passes_on_what_is_typed(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    let bundle = test.sh("read line; echo got $line; read line || exit 5")?;
    conmon.start(&bundle, &["-i"])?;
    let mut stream = conmon.attach()?;
    stream.write_all(b"words\n")?;
    ensure_eq(read_attached(&mut stream, "words\n")?.as_str(), "got words\n")
}

/// When a log has grown, kubelet moves it away, and CRI-O asks conmon for a new one.
fn begins_another_log(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    let bundle = test.sh("echo one; while ! test -e /go; do sleep 0.1; done; echo two; exit 4")?;
    conmon.start(&bundle, &[])?;
    wait_until("the first line is there", || conmon.log().is_ok_and(|log| log.contains("one")))?;
    fs::rename(conmon.path("log"), conmon.path("log.1"))?;
    fs::write(bundle.folder.join("ctl"), "2 0 0\n")?;
    wait_until("there is another", || conmon.folder.join("log").exists())?;
    fs::write(bundle.rootfs().join("go"), "")?;
    ensure_eq(conmon.exit_code()?.as_str(), "4")?;
    ensure_eq(conmon.log()?.as_str(), "stdout F two\n")
}

fn changes_the_size_of_a_terminal(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    let bundle = test
        .sh("trap 'busybox stty size; exit 5' WINCH; echo up; while :; do sleep 0.1; done")?
        .edit(|config| config["process"]["terminal"] = json!(true));
    conmon.start(&bundle, &["-t"])?;
    wait_until("it waits", || conmon.log().is_ok_and(|log| log.contains("up")))?;
    fs::write(bundle.folder.join("ctl"), "1 33 99\n")?;
    ensure_eq(conmon.exit_code()?.as_str(), "5")?;
    ensure(conmon.log()?.ends_with("stdout F 33 99\n"), conmon.log()?)
}

fn runs_a_module(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.wasm("probe", &["exit", "42"])?, &[])?;
    ensure_eq(conmon.exit_code()?.as_str(), "42")
}

fn stops_with_the_container(test: &Test) -> Outcome {
    let conmon = Conmon::new(test)?;
    conmon.start(&test.sh("trap 'exit 6' TERM; echo ready; while :; do sleep 0.1; done")?, &[])?;
    wait_until("it is ready", || conmon.log().is_ok_and(|log| log.contains("ready")))?;
    test.rt(["kill", &conmon.id, "TERM"])?.success()?;
    ensure_eq(conmon.exit_code()?.as_str(), "6")?;
    test.rt(["delete", &conmon.id])?.success().map(drop)
}
