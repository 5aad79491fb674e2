//! Processes of a container that hold up commands. These commands wait for the processes, or look
//! for them.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{
    Bundle, Container, Outcome, Output, Test, ensure, ensure_eq, has_process, skip, wait_until,
};

super::tests! { "hold_ups":
    a_container_lives_without_its_first_thread,
    a_tracer_does_not_keep_the_first_process, nor_what_exec_has_started,
    a_terminal_that_takes_no_more_is_left,
    a_helper_that_was_killed_is_not_waited_for,
    a_lock_that_waits_for_the_container_is_freed_by_its_end,
    a_forced_deletion_ends_a_creation_that_waits_for_a_hook,
    mounts_add_refuses_another_mount_namespace, mounts_add_refuses_tmpcopyup,
    a_magic_link_is_no_way_to_a_pid_file, a_program_of_the_hosts_is_not_waited_for_without_end,
    a_full_socket_is_waited_for_but_not_without_end,
}

fn within(seconds: u32, command: &Command) -> Outcome<Output> {
    let mut limited = Command::new("timeout");
    limited.arg("--kill-after=1").arg(seconds.to_string());
    limited.arg(command.get_program()).args(command.get_args());
    Output::of(limited)
}

fn started<'a>(bundle: &Bundle<'a>, words: &str) -> Outcome<Container<'a>> {
    let container = bundle.start()?;
    container.wait_for_output(words)?;
    Ok(container)
}

fn a_container_lives_without_its_first_thread(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "$| = 1; eval 'use threads; 1' or print 'none';
        threads->create(sub { print 'ready'; sleep 60 }); sleep 1 while !threads->list; syscall(60, 0)";
    let bundle = test.perl(script)?;
    let container = bundle.start()?;
    container.wait_for_output("e")?;
    if container.stdout()?.contains("none") {
        return skip("the host's perl has no threads");
    }
    let stat = format!("/proc/{}/stat", container.pid()?);
    wait_until("its first thread has ended", || {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    })?;
    ensure_eq(container.status()?.as_str(), "running")?;
    container.rt(&["delete"])?.fails_with("not stopped")?;
    container.rt(&["kill"])?.success()?;
    test.rt(["kill", &container.id, "KILL"])?;
    container.wait()?;
    container.delete()
}

/// A tracer with `PTRACE_SEIZE` and `PTRACE_O_TRACEEXIT`: the killed first process stops before it
/// ends its namespace.
fn a_tracer_does_not_keep_the_first_process(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "$| = 1; if (!fork) { print syscall(101, 0x4206, 1, 0, 0x40) ? 'not ' : '', 'seized'; sleep 60 } sleep 60";
    let bundle = test.perl(script)?;
    let container = started(&bundle, "seized")?;
    if container.stdout()?.contains("not") {
        return skip("this kernel lets no child trace its parent");
    }
    within(9, &test.command(["delete", "--force", &container.id]))?.success().map(drop)
}

/// The kernel reports the end of the process to the tracer, which does not reap it.
fn nor_what_exec_has_started(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "$| = 1; print 'ready'; while (1) { for $p (2..200) {
        open F, \"/proc/$p/comm\" or next; $name = <F>; close F;
        if ($name eq \"sleep\\n\") { syscall(101, 0x4206, $p, 0, 0) and exit 1; kill 9, $p; sleep 60 }
    } select undef, undef, undef, 0.01 }";
    let bundle = test.perl(script)?;
    let container = started(&bundle, "ready")?;
    let exec = test.command(["exec", &container.id, "/bin/sleep", "50"]);
    within(20, &exec)?.code(137).map(drop)
}

/// The caller types more than the program reads. A process that the program has left holds the
/// terminal open.
fn a_terminal_that_takes_no_more_is_left(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let program = "stty raw -echo; head -c 100 >/dev/null; sleep 50 </dev/tty & sleep 1; exit 7";
    let exec = test.command(["exec", "--tty", &container.id, "/bin/sh", "-c", program]);
    let typed = "{ head -c 300000 /dev/zero; sleep 30; } | timeout --kill-after=1 20 \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", typed, "sh"]).arg(exec.get_program()).args(exec.get_args());
    let mut whole = Command::new("bash");
    // A shell with a pipe would also wait for the process that types.
    whole.args(["-c", "exec \"$@\"; ", "bash"]).arg(shell.get_program()).args(shell.get_args());
    within(50, &whole)?.code(7).map(drop)
}

fn a_helper_that_was_killed_is_not_waited_for(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let exec = test.command(["exec", "--ignore-paused", &container.id, "/bin/true"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "--output=/dev/null", "--trace=setns", "--inject=setns:signal=KILL:when=1"]);
    strace.arg(exec.get_program()).args(exec.get_args());
    within(20, &strace)?.code(255)?.fails_with("was killed").map(drop)
}

/// The test holds the lock, and frees it when the container has ended.
fn a_lock_that_waits_for_the_container_is_freed_by_its_end(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let lock = fs::File::open(test.state_root().join(&container.id))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let process = format!("/proc/{}/stat", container.pid()?);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let ended = || fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
            let _ =
                crate::harness::wait_up_to(std::time::Duration::from_secs(30), "its end", ended);
            drop(lock);
        });
        within(40, &test.command(["delete", "--force", &container.id]))?.success().map(drop)
    })
}

/// The hooks of the first two run in the runtime process, and that of the last one in init.
fn a_forced_deletion_ends_a_creation_that_waits_for_a_hook(test: &Test) -> Outcome {
    test.only_rt()?;
    let kinds =
        [("create", "createRuntime"), ("run", "createRuntime"), ("create", "createContainer")];
    // Each deletion has ten seconds of patience.
    let ends = |(command, kind): (&str, &str)| -> Outcome {
        let id = format!("{}-{command}-{kind}", test.id());
        let mark = format!("hook-of-{id}");
        let hook = json!({ "path": "/bin/sh",
            "args": ["sh", "-c", "for i in $(seq 120); do sleep 1; done", mark], "env": ["PATH=/usr/bin:/bin"] });
        let bundle = test.sh("true")?.edit(|config| config["hooks"][kind] = json!([hook]));
        bundle.write()?;
        let mut creation = test.command(bundle.command_line(command, &id));
        let mut creation = creation.stderr(Stdio::null()).spawn()?;
        wait_until("the hook runs", || has_process(&mark))?;
        within(35, &test.command(["delete", "--force", &id]))?.success()?;
        ensure(!creation.wait()?.success(), "it was created")?;
        wait_until("the hook has ended", || !has_process(&mark))?;
        ensure(!test.state_root().join(&id).exists(), "the state is left")
    };
    std::thread::scope(|scope| {
        let all = kinds.map(|kind| scope.spawn(move || ends(kind)));
        all.into_iter().try_for_each(|one| one.join().map_err(|_| "a panic")?)
    })
}

/// In its own user and mount namespace, the first process may change every mount. There,
/// `mounts add` would give it a read-only mount that it can make writable.
fn mounts_add_refuses_another_mount_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    let source = test.folder.join("source");
    fs::create_dir(&source)?;
    let file = test.folder.join("mounts.json");
    let entry = json!([{ "destination": "/tmp/added", "type": "bind", "source": source, "options": ["bind", "ro"] }]);
    fs::write(&file, entry.to_string())?;
    let file = file.display().to_string();
    // CLONE_NEWUSER | CLONE_NEWNS.
    let script = "$| = 1; print 'ready'; sleep 1 while !-e '/tmp/go'; print syscall(272, 0x10020000) ? 'not ' : '', 'moved'; sleep 60";
    let bundle = test.perl(script)?;
    let container = started(&bundle, "ready")?;
    test.rt(["mounts", "add", &container.id, &file])?.success()?;
    fs::write(bundle.rootfs().join("tmp/go"), "")?;
    container.wait_for_output("moved")?;
    if container.stdout()?.contains("not") {
        return skip("this kernel makes no user namespace here");
    }
    for verb in ["add", "remove", "remove"] {
        test.rt(["mounts", verb, &container.id, &file])?
            .fails_with("not in the mount namespace that the container was made with")?;
    }
    let seen = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid()?))?;
    ensure_eq(seen.matches(" /tmp/added ").count(), 1)
}

/// `mounts add` must not copy up either, because the kernel would charge the memory to the caller.
fn mounts_add_refuses_tmpcopyup(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let file = test.folder.join("mounts.json");
    let entry = json!([{ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }]);
    fs::write(&file, entry.to_string())?;
    test.rt(["mounts", "add", &container.id, &file.display().to_string()])?
        .fails_with("mount `/etc`: the option `tmpcopyup` is for mounts of the configuration")
        .map(drop)
}

/// The link leads to a directory of the container. Its text leads to a directory of the host.
fn a_magic_link_is_no_way_to_a_pid_file(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let inner = format!("/proc/{}", container.pid()?);
    let name = format!("rt-tests-{}", test.id());
    for link in ["root", "cwd"] {
        let path = format!("{inner}/{link}/tmp/{name}");
        test.rt(["exec", "--pid-file", &path, &container.id, "/bin/true"])?
            .fails_with(&format!("`{inner}/{link}` is a magic link"))?;
    }
    ensure(!Path::new("/tmp").join(&name).exists(), "it was written on the host")
}

/// ps(1) reads the memory of every process. A part of that memory may be a file in a filesystem of
/// a container, which may never answer.
fn a_program_of_the_hosts_is_not_waited_for_without_end(test: &Test) -> Outcome {
    test.only_rt()?;
    let tools = test.folder.join("tools");
    fs::create_dir(&tools)?;
    for tool in ["ps", "newuidmap", "newgidmap"] {
        fs::write(tools.join(tool), "#!/bin/sh\necho PID; exec sleep 1000\n")?;
        fs::set_permissions(tools.join(tool), fs::Permissions::from_mode(0o755))?;
    }
    let path = format!("PATH={}:/usr/bin:/bin", tools.display());
    let container = test.sh("exec sleep 60")?.start()?;
    let held_up = &|command: Command| -> Outcome {
        let mut limited = Command::new("timeout");
        limited.arg("--kill-after=1").arg("60").arg("env").arg(&path);
        limited.arg(command.get_program()).args(command.get_args());
        Output::of(limited)?.code(1)?.fails_with("it took longer than 30 s").map(drop)
    };
    let ps = |words: &[&str]| test.command([&["ps", &container.id], words].concat());
    let commands = vec![ps(&[]), ps(&["-ef"]), ps(&["-e", "-o", "pid,comm"])];
    std::thread::scope(|scope| {
        let ends: Vec<_> =
            commands.into_iter().map(|command| scope.spawn(move || held_up(command))).collect();
        ends.into_iter().try_for_each(|end| end.join().map_err(|_| "a thread has panicked")?)
    })?;
    // `rt` has sent no signal to the process that `ps` shows.
    ensure_eq(container.status()?.as_str(), "running")
}

/// A listening socket whose queue is full.
fn full(path: &Path) -> Outcome<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, socket};
    let address = SocketAddrUnix::new(path)?;
    let [listener, first] =
        [(), ()].map(|()| socket(AddressFamily::UNIX, SocketType::STREAM, None));
    let (listener, first) = (listener?, first?);
    bind(&listener, &address)?;
    listen(&listener, 0)?;
    connect(&first, &address)?;
    Ok((listener, first))
}

/// The queue is full when many containers start at the same time.
fn a_full_socket_is_waited_for_but_not_without_end(test: &Test) -> Outcome {
    test.only_rt()?;
    let socket = test.folder.join("socket");
    let path = socket.display().to_string();
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
        "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_NOTIFY" }] });
    let terminal = test.sh("true")?.edit(|config| config["process"]["terminal"] = json!(true));
    for bundle in [
        terminal.flag("--detach").flag("--console-socket").flag(&path),
        test.sh("true")?.flag("--detach").flag("--pidfd-socket").flag(&path),
        test.sh("true")?.flag("--detach").edit(|config| config["linux"]["seccomp"] = filter),
    ] {
        let (listener, _first) = full(&socket)?;
        let output = std::thread::scope(|scope| -> Outcome<Output> {
            // This is later than an immediate failure.
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(700));
                rustix::net::accept(&listener)
            });
            bundle.run()
        })?;
        output.success()?;
        fs::remove_file(&socket)?;
        let (_listener, _first) = full(&socket)?;
        bundle.run()?.code(1)?.fails_with("nobody has taken the connection within 10 s")?;
        fs::remove_file(&socket)?;
    }
    Ok(())
}
