//! Programs that send a readiness message to a service manager.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq};

super::tests! { "sd_notify":
    start_waits_until_the_container_is_ready, run_passes_on_what_the_container_says, a_container_that_ends_is_not_waited_for,
    without_a_manager_there_is_no_socket, exec_does_not_hand_on_the_socket_of_the_manager, a_manager_that_is_gone_is_nobody, a_manager_may_have_a_long_path,
}

/// The socket of a service manager.
fn manager(test: &Test) -> Outcome<UnixDatagram> {
    let socket = UnixDatagram::bind(test.folder.join("manager"))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

fn hear(manager: &UnixDatagram) -> Outcome<String> {
    let mut bytes = [0; 4096];
    // The kernel closes a descriptor in the message at once. A sender with a barrier waits for
    // that.
    let length = manager.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

fn saying<'a>(test: &'a Test, words: &str, then: &str) -> Outcome<Bundle<'a>> {
    test.perl(&format!(
        r#"use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); defined send(S, "{words}", 0, pack_sockaddr_un($ENV{{NOTIFY_SOCKET}})) or die $!; {then}"#
    ))
}

fn as_service(test: &Test, mut command: Command) -> Command {
    command.env("NOTIFY_SOCKET", test.folder.join("manager"));
    command
}

fn start_waits_until_the_container_is_ready(test: &Test) -> Outcome {
    let manager = manager(test)?;
    let bundle = saying(test, "STATUS=up\\nMAINPID=77\\nREADY=1", "sleep 60")?;
    bundle.write()?;
    let id = test.id();
    let folder = bundle.folder.display().to_string();
    let create = as_service(test, test.command(["create", "--bundle", &folder, &id]));
    crate::harness::Output::of(create)?.success()?;
    let mut start = as_service(test, test.command(["start", &id])).stdout(Stdio::null()).spawn()?;
    let said = hear(&manager)?;
    ensure(said.contains("READY=1") && !said.contains("MAINPID=77"), &said)?;
    let state = test.rt(["state", &id])?.success()?.stdout;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    let mut rest = hear(&manager)?;
    if !rest.contains("BARRIER=1") {
        rest += &hear(&manager)?;
    }
    ensure(rest.contains(&format!("MAINPID={}", state["pid"])), &rest)?;
    ensure(start.wait()?.success(), "start failed")
}

fn run_passes_on_what_the_container_says(test: &Test) -> Outcome {
    // crun's `run` passes on readiness only.
    test.only_rt()?;
    let manager = manager(test)?;
    let bundle = saying(test, "READY=1\\nSTATUS=going on", "exit 5")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let run = as_service(test, test.command(["run", "--bundle", &folder, &test.id()]));
    crate::harness::Output::of(run)?.code(5)?;
    ensure_eq(hear(&manager)?.as_str(), "READY=1\nSTATUS=going on")
}

fn a_container_that_ends_is_not_waited_for(test: &Test) -> Outcome {
    let _manager = manager(test)?;
    let bundle = test.sh("echo $NOTIFY_SOCKET; exit 1")?;
    bundle.write()?;
    let id = test.id();
    let folder = bundle.folder.display().to_string();
    let create = as_service(test, test.command(["create", "--bundle", &folder, &id]));
    crate::harness::Output::of(create)?.success()?;
    crate::harness::Output::of(as_service(test, test.command(["start", &id])))?.success().map(drop)
}

fn without_a_manager_there_is_no_socket(test: &Test) -> Outcome {
    let bundle = test.sh("echo \"<$NOTIFY_SOCKET>\"; test -e /run/notify || echo none")?;
    bundle.run()?.success()?.stdout("<>\nnone\n").map(drop)
}

/// A service that uses `exec`, such as CRI-O, has such a socket.
fn exec_does_not_hand_on_the_socket_of_the_manager(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let exec = test.command(["exec", &container.id, "sh", "-c", "echo \"<$NOTIFY_SOCKET>\""]);
    crate::harness::Output::of(as_service(test, exec))?.success()?.stdout("<>\n").map(drop)
}

/// A shell that a service has started keeps the variable.
fn a_manager_that_is_gone_is_nobody(test: &Test) -> Outcome {
    test.only_rt()?;
    // The address does not exist, is a file of a socket without a listener, is an ordinary file, or
    // is an abstract name.
    drop(UnixDatagram::bind(test.folder.join("left"))?);
    std::fs::write(test.folder.join("file"), "")?;
    let path = |name: &str| test.folder.join(name).display().to_string();
    for variable in [path("nowhere"), path("left"), path("file"), "@rt-tests-nobody".into()] {
        let bundle = test.sh("echo \"<$NOTIFY_SOCKET>\"")?;
        bundle.write()?;
        let with = |args: Vec<String>| {
            let mut command = test.command(args);
            command.env("NOTIFY_SOCKET", &variable);
            crate::harness::Output::of(command)
        };
        with(bundle.command_line("run", &test.id()))?.success()?.stdout("<>\n")?;
        let id = test.id();
        with(bundle.command_line("create", &id))?.success()?;
        with(vec!["start".into(), id])?.success()?;
    }
    // The manager ends between `create` and `start`.
    let manager = manager(test)?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let id = test.id();
    let create = as_service(test, test.command(bundle.command_line("create", &id)));
    crate::harness::Output::of(create)?.success()?;
    drop(manager);
    crate::harness::Output::of(as_service(test, test.command(["start", &id])))?.success().map(drop)
}

/// The address of a socket has 108 bytes.
fn a_manager_may_have_a_long_path(test: &Test) -> Outcome {
    test.only_rt()?;
    let folder = test.folder.join("x".repeat(120));
    std::fs::create_dir(&folder)?;
    let short = test.folder.join("s");
    std::os::unix::fs::symlink(&folder, &short)?;
    let manager = UnixDatagram::bind(short.join("manager"))?;
    manager.set_read_timeout(Some(Duration::from_secs(10)))?;
    let bundle = saying(test, "READY=1\\nSTATUS=going on", "exit 5")?;
    bundle.write()?;
    let mut run = test.command(bundle.command_line("run", &test.id()));
    run.env("NOTIFY_SOCKET", folder.join("manager"));
    crate::harness::Output::of(run)?.code(5)?;
    ensure_eq(hear(&manager)?.as_str(), "READY=1\nSTATUS=going on")
}
