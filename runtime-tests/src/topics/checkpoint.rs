//! Checkpoints that CRIU makes and restores. If CRIU does not work on this host, the suite skips
//! these tests: Debian 12's version is too old for new kernels.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

use super::terminal::{read_until, receive};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, cgroups_of, copy_program, ensure, ensure_eq, skip,
    wait_until,
};

super::tests! { "checkpoint":
    a_container_goes_on_under_another_name, a_file_is_written_on, the_name_is_free_after_a_checkpoint, a_container_can_be_left_running,
    memory_can_be_written_beforehand, memory_can_be_sent_to_a_page_server, memory_can_come_when_it_is_needed,
    the_caller_hears_when_memory_can_be_asked_for,
    a_restored_container_has_its_limits, a_container_at_its_limit_of_processes_comes_back, a_restored_container_can_be_entered_paused_and_deleted,
    a_terminal_is_sent_again, in_the_foreground_the_exit_code_is_the_programs, a_user_namespace_comes_back,
    a_shared_network_is_shared_again, hooks_run_at_a_restore, a_paused_container_can_be_written, a_container_can_be_moved_twice,
    null_stays_the_containers, logs_can_be_elsewhere, images_can_be_read_only,
    a_stopped_process_comes_back, a_zombie_comes_back,
}

/// A script that prints a number every tenth of a second, and never the same number twice.
pub(super) const COUNT: &str = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done";

/// CRIU, in the directories where the runtime looks for it.
pub(super) fn criu() -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}:/usr/local/sbin:/usr/sbin:/sbin")).arg("criu");
    command.stdin(Stdio::null());
    command
}

pub(super) fn needs_criu() -> Outcome {
    let output = criu().arg("check").output()?;
    if output.status.code() == Some(127) {
        return skip("criu is not installed");
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().rfind(|line| line.contains("Error"));
    if output.status.success() { Ok(()) } else { skip(last.unwrap_or("criu check fails")) }
}

fn needs_feature(feature: &str, why: &str) -> Outcome {
    needs_criu()?;
    let there = criu().args(["check", "--feature", feature]).output()?.status.success();
    if there { Ok(()) } else { skip(why) }
}

pub(super) fn images(test: &Test) -> PathBuf {
    test.folder.join("images")
}

/// Writes the checkpoint, with these flags.
pub(super) fn write(test: &Test, container: &Container<'_>, flags: &[&str]) -> Outcome<Output> {
    let images = images(test).display().to_string();
    container.rt(&[&["checkpoint", "--image-path", &images], flags].concat())
}

pub(super) fn restore_command(bundle: &Bundle<'_>, id: &str, flags: &[&str]) -> Command {
    let test = bundle.test;
    let (folder, images) =
        (bundle.folder.display().to_string(), images(test).display().to_string());
    let args = ["restore", "--bundle", &folder, "--image-path", &images];
    test.command(args.iter().chain(flags).copied().chain([id]))
}

/// `restore` from invalid images, with a Perl script in the place of CRIU.
pub(super) fn false_criu(bundle: &Bundle<'_>, script: &str, flags: &[&str]) -> Outcome<Command> {
    if !Path::new("/usr/bin/perl").exists() {
        return skip("the host has no perl");
    }
    let programs = bundle.folder.join("programs");
    fs::create_dir(&programs)?;
    let version = r#"if ($ARGV[0] ne "swrk") { print "Version: 4.2\n"; exit }"#;
    fs::write(bundle.folder.join("script"), format!("#!/usr/bin/perl\n{version}\n{script}"))?;
    copy_program(&bundle.folder.join("script"), programs.join("criu"))?;
    fs::set_permissions(programs.join("criu"), fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(images(bundle.test))?;
    let streams = json!(["/dev/null", "/dev/null", "/dev/null"]);
    fs::write(images(bundle.test).join("descriptors.json"), streams.to_string())?;
    fs::write(images(bundle.test).join("mounts.json"), "[]")?;
    let mut command = restore_command(bundle, &bundle.test.id(), flags);
    command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    Ok(command)
}

/// Restores the container in the background, under a new name.
pub(super) fn restore<'a>(bundle: &Bundle<'a>, flags: &[&str]) -> Outcome<Container<'a>> {
    let id = bundle.test.id();
    piped(bundle.test, &id, restore_command(bundle, &id, &[&["--detach"], flags].concat()))
}

/// Runs a command that makes a container, with pipes as its streams, as callers do. Processes at
/// the other ends of the pipes write the container's output to files.
pub(super) fn piped<'a>(test: &'a Test, id: &str, command: Command) -> Outcome<Container<'a>> {
    let stream = |end: &str| -> Outcome<Stdio> {
        let file = fs::File::create(test.folder.join(format!("{id}.{end}")))?;
        let script =
            format!("cat; : >{}", test.folder.join(format!("{id}.{end}-is-over")).display());
        let mut reader = Command::new("sh");
        let reader = reader.args(["-c", &script]).stdin(Stdio::piped()).stdout(file).spawn()?;
        Ok(reader.stdin.ok_or("no pipe")?.into())
    };
    Container::create_writing_to(test, id, command, [stream("out")?, stream("err")?])
}

pub(super) fn start<'a>(bundle: &Bundle<'a>) -> Outcome<Container<'a>> {
    bundle.write()?;
    let id = bundle.test.id();
    let create = bundle.test.command(bundle.command_line("create", &id));
    let container = piped(bundle.test, &id, create)?;
    container.start()?;
    Ok(container)
}

/// Starts a container, writes its checkpoint when it has printed this text, and restores it.
pub(super) fn move_on<'a>(bundle: &Bundle<'a>, text: &str) -> Outcome<Container<'a>> {
    let container = start(bundle)?;
    container.wait_for_output(text)?;
    write(bundle.test, &container, &[])?.success()?;
    restore(bundle, &[])
}

/// The whole output of a container that has ended, by itself or by its checkpoint.
fn all_output(container: &Container<'_>) -> Outcome<String> {
    let over = container.file("out-is-over");
    wait_until("all is read", || over.exists())?;
    container.stdout()
}

fn a_container_goes_on_under_another_name(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("5\n")?;
    write(test, &container, &[])?.success()?;
    let before = all_output(&container)?;
    let restored = restore(&bundle, &[])?;
    restored.wait_for_output("\n")?;
    let last: u32 = before.lines().last().unwrap_or_default().parse()?;
    let next: u32 = restored.stdout()?.lines().next().unwrap_or_default().parse()?;
    ensure_eq(next, last + 1)?;
    ensure_eq(restored.status()?.as_str(), "running")
}

/// The standard output is a file of the host. No mount of the container contains this file.
fn a_file_is_written_on(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = bundle.start()?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let log = test.folder.join(format!("{}.out", container.id));
    let before = fs::read_to_string(&log)?;
    let id = test.id();
    let mut command = restore_command(&bundle, &id, &["--detach"]);
    let out = fs::OpenOptions::new().append(true).open(&log)?;
    let err = fs::OpenOptions::new().append(true).open(log.with_extension("err"))?;
    ensure(command.stdout(out).stderr(err).status()?.success(), "restore failed")?;
    let last: u32 = before.lines().last().unwrap_or_default().parse()?;
    let next = format!("{before}{}\n{}\n", last + 1, last + 2);
    wait_until("it goes on", || fs::read_to_string(&log).is_ok_and(|text| text.starts_with(&next)))
}

fn the_name_is_free_after_a_checkpoint(test: &Test) -> Outcome {
    needs_criu()?;
    let container = test.sh("exec sleep 60")?.start()?;
    write(test, &container, &[])?.success()?;
    container.rt(&["state"])?.fails_with("does not exist")?;
    ensure(cgroups_of(&container.id).is_empty(), "its cgroup is left")
}

fn a_container_can_be_left_running(test: &Test) -> Outcome {
    needs_criu()?;
    let container = start(&test.sh(COUNT)?)?;
    write(test, &container, &["--leave-running"])?.success()?;
    let lines = container.stdout()?.lines().count();
    ensure_eq(container.status()?.as_str(), "running")?;
    wait_until("it goes on", || container.stdout().is_ok_and(|out| out.lines().count() > lines))
}

fn memory_can_be_written_beforehand(test: &Test) -> Outcome {
    needs_feature("mem_dirty_track", "this kernel does not tell which memory has changed")?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let first = test.folder.join("first").display().to_string();
    container.rt(&["checkpoint", "--pre-dump", "--image-path", &first])?.success()?;
    ensure_eq(container.status()?.as_str(), "running")?;
    write(test, &container, &["--parent-path", "../first"])?.success()?;
    // CRIU's link to the earlier images.
    ensure_eq(fs::read_link(images(test).join("parent"))?, PathBuf::from("../first"))?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// A free port of the loopback device.
fn free_port() -> Outcome<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string())
}

/// A daemon of CRIU. It ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn memory_can_be_sent_to_a_page_server(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    fs::create_dir(images(test))?;
    let port = free_port()?;
    let mut server = criu();
    server.args(["page-server", "--address", "127.0.0.1", "--port", &port, "--images-dir"]);
    let server = Daemon(server.arg(images(test)).stderr(Stdio::null()).spawn()?);
    let listens = format!(":{:04X} ", port.parse::<u16>()?);
    wait_until("it listens", || {
        fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.contains(&listens))
    })?;
    let server_address = format!("127.0.0.1:{port}");
    write(test, &container, &["--page-server", &server_address])?.success()?;
    drop(server);
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// Writes a checkpoint that keeps the memory until somebody asks for it at this port. Waits until
/// `checkpoint` accepts such requests.
fn write_lazily(test: &Test, container: &Container<'_>, port: &str) -> Outcome<Daemon> {
    let images = images(test).display().to_string();
    let server = format!("127.0.0.1:{port}");
    let args = ["checkpoint", "--lazy-pages", "--page-server", &server, "--status-fd", "9"];
    let command = test.command([&args[..], &["--image-path", &images, &container.id]].concat());
    let (mut ready, writer) = std::io::pipe()?;
    // The shell gives descriptor 9 to the runtime.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 9>&0 0</dev/null", "sh"]);
    shell.arg(command.get_program()).args(command.get_args()).stdin(writer).stderr(Stdio::null());
    let source = Daemon(shell.spawn()?);
    drop(shell);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        sender.send(ready.read_to_end(&mut said).map(|_| said))
    });
    ensure_eq(receiver.recv_timeout(Duration::from_secs(10))??, vec![0])?;
    Ok(source)
}

fn the_caller_hears_when_memory_can_be_asked_for(test: &Test) -> Outcome {
    needs_feature("uffd-noncoop", "this kernel cannot tell that memory is needed")?;
    let container = start(&test.sh(COUNT)?)?;
    container.wait_for_output("1\n")?;
    let port = free_port()?;
    let mut source = write_lazily(test, &container, &port)?;
    drop(TcpStream::connect(format!("127.0.0.1:{port}"))?);
    wait_until("it ends with who asked", || source.0.try_wait().is_ok_and(|end| end.is_some()))
}

/// The checkpoint is written, but the memory stays in the old container's process until the
/// restored process needs it.
fn memory_can_come_when_it_is_needed(test: &Test) -> Outcome {
    needs_feature("uffd-noncoop", "this kernel cannot tell that memory is needed")?;
    let version = String::from_utf8(criu().arg("--version").output()?.stdout)?;
    if !version.starts_with("Version: 3") {
        return skip("CRIU 4.2.1 fails to send it by itself too: \"page-pipe: splice\"");
    }
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let port = free_port()?;
    let mut source = write_lazily(test, &container, &port)?;
    let mut pages = criu();
    pages.args(["lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", &port]);
    pages.arg("--images-dir").arg(images(test)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut pages = Daemon(pages.spawn()?);
    wait_until("it listens", || images(test).join("lazy-pages.socket").exists())?;
    let restored = restore(&bundle, &["--lazy-pages"])?;
    restored.wait_for_output("\n")?;
    let ended = |daemon: &mut Daemon| daemon.0.try_wait().is_ok_and(|end| end.is_some());
    wait_until("all memory has come", || ended(&mut source) && ended(&mut pages))?;
    ensure(source.0.wait()?.success(), "the checkpoint failed")?;
    ensure(pages.0.wait()?.success(), "the memory did not come")?;
    container.rt(&["state"])?.fails_with("does not exist").map(drop)
}

fn logs_can_be_elsewhere(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let work = test.folder.join("work").display().to_string();
    write(test, &container, &["--work-path", &work])?.success()?;
    restore(&bundle, &["--work-path", &work])?.wait_for_output("\n")?;
    for log in ["dump.log", "restore.log"] {
        ensure(test.folder.join("work").join(log).exists(), format!("no {log}"))?;
        ensure(!images(test).join(log).exists(), format!("{log} is with the images"))?;
    }
    Ok(())
}

fn images_can_be_read_only(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let work = test.folder.join("work").display().to_string();
    let read_only = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    for (flags, code) in [(vec!["--detach"], 1), (vec!["--detach", "--work-path", &work], 0)] {
        let id = test.id();
        let restore = restore_command(&bundle, &id, &flags);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", read_only]).arg(images(test));
        command.arg(restore.get_program()).args(restore.get_args());
        // The container has this open too, and so would hold up the test as a pipe.
        let errors = test.folder.join("errors");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&errors)?);
        let status = command.status()?;
        let error = fs::read_to_string(errors)?;
        test.rt(["delete", "--force", &id])?;
        ensure_eq((status.code(), error.contains("`--work-path`")), (Some(code), code == 1))?;
    }
    Ok(())
}

fn has_zombie(parent: i32) -> bool {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let is_zombie = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") Z ")
    };
    children.is_ok_and(|children| children.split_whitespace().any(is_zombie))
}

/// CRIU gives the thread of such a process any number.
fn a_zombie_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh("sleep 0.1 & echo 1; exec sleep 1000")?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let first = container.pid()?;
    wait_until("it has a zombie", || has_zombie(first))?;
    write(test, &container, &[])?.success()?;
    let restored = restore(&bundle, &[])?.pid()?;
    wait_until("it has the zombie again", || has_zombie(restored))
}

/// The freezer of cgroup v1 holds such a process so that nobody can trace it.
fn a_stopped_process_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!("sleep 1000 & kill -STOP $!; {COUNT}");
    let bundle = test.sh(&script)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let images = images(test).display().to_string();
    let checkpoint = test.command(["checkpoint", "--image-path", &images, &container.id]);
    let mut limited = Command::new("timeout");
    limited.args(["-s", "KILL", "20"]).arg(checkpoint.get_program()).args(checkpoint.get_args());
    Output::of(limited)?.success()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// Whether this host has a controller that counts processes.
fn has_pids() -> bool {
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    v2.is_ok_and(|list| list.contains("pids"))
        || Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists()
}

fn a_restored_container_has_its_limits(test: &Test) -> Outcome {
    needs_criu()?;
    let has_pids = has_pids();
    let bundle = test.sh(COUNT)?.edit(|config| {
        if has_pids {
            config["linux"]["resources"]["pids"] = json!({ "limit": 77 });
        }
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 99 }]);
        config["process"]["oomScoreAdj"] = json!(123);
    });
    let restored = move_on(&bundle, "1\n")?;
    let cgroups = cgroups_of(&restored.id);
    let limit = cgroups.iter().find_map(|path| fs::read_to_string(path.join("pids.max")).ok());
    ensure_eq(limit.as_deref().map(str::trim), has_pids.then_some("77"))?;
    let pid = restored.pid()?.to_string();
    let listed = |path: &PathBuf| {
        fs::read_to_string(path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .any(|line| line == pid)
    };
    ensure(
        !cgroups.is_empty() && cgroups.iter().all(listed),
        format!("{pid} is not in {cgroups:?}"),
    )?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    ensure_eq(read("oom_score_adj")?.trim(), "123")?;
    ensure(read("limits")?.contains("Max open files            99"), read("limits")?)
}

/// CRIU works in the container's cgroup, with its own processes.
fn a_container_at_its_limit_of_processes_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    if !has_pids() {
        return skip("no controller `pids` here");
    }
    // sleep(1) would end early, because the kernel restarts its system call.
    let bundle = test.sh("exec 3<>/fifo; echo up; read line <&3")?;
    let mut mkfifo = Command::new("mkfifo");
    mkfifo.arg(bundle.rootfs().join("fifo"));
    Output::of(mkfifo)?.success()?;
    let limited =
        bundle.edit(|config| config["linux"]["resources"]["pids"] = json!({ "limit": 1 }));
    let container = start(&limited)?;
    let limits = |id: &str| -> Vec<String> {
        let read = |path: &PathBuf| fs::read_to_string(path.join("pids.max")).ok();
        cgroups_of(id).iter().filter_map(read).collect()
    };
    write(test, &container, &[])?.success()?;
    let restored = restore(&limited, &[])?;
    ensure_eq(restored.status()?.as_str(), "running")?;
    ensure_eq(limits(&restored.id), vec!["1\n".to_owned()])
}

fn a_restored_container_can_be_entered_paused_and_deleted(test: &Test) -> Outcome {
    needs_criu()?;
    let restored = move_on(&test.sh(COUNT)?, "1\n")?;
    let exec = test.rt(["exec", &restored.id, "sh", "-c", "echo $$; kill -0 1 && echo there"])?;
    ensure(exec.success()?.stdout.ends_with("there\n"), "not in its pid namespace")?;
    if has_freezer(test) {
        restored.rt(&["pause"])?.success()?;
        ensure_eq(restored.status()?.as_str(), "paused")?;
        restored.rt(&["resume"])?.success()?;
    }
    restored.kill("KILL")?;
    restored.wait()?;
    restored.delete()
}

fn a_terminal_is_sent_again(test: &Test) -> Outcome {
    needs_criu()?;
    let path = test.folder.join("console");
    let listener = UnixListener::bind(&path)?;
    let flag = format!("--console-socket={}", path.display());
    let bundle = test
        .sh("while read line; do echo got $line; done")?
        .edit(|config| config["process"]["terminal"] = json!(true))
        .flag(flag.clone());
    let container = start(&bundle)?;
    let mut master: fs::File = receive(&listener)?.into();
    master.write_all(b"one\n")?;
    read_until(&mut master, "got one")?;
    write(test, &container, &[])?.success()?;
    drop(master);
    restore(&bundle, &[&flag])?;
    let mut master: fs::File = receive(&listener)?.into();
    master.write_all(b"two\n")?;
    read_until(&mut master, "got two").map(drop)
}

fn in_the_foreground_the_exit_code_is_the_programs(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh("echo up; while ! test -e /go; do sleep 0.1; done; echo done; exit 7")?;
    let container = start(&bundle)?;
    container.wait_for_output("up")?;
    write(test, &container, &[])?.success()?;
    fs::write(bundle.rootfs().join("go"), "")?;
    let id = test.id();
    Output::of(restore_command(&bundle, &id, &[]))?.code(7)?.stdout("done\n")?;
    test.rt(["state", &id])?.fails_with("does not exist").map(drop)
}

fn a_user_namespace_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let bundle = test.sh(COUNT)?.namespace(json!({ "type": "user" })).edit(|config| {
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
    });
    fs::set_permissions(&test.folder, fs::Permissions::from_mode(0o755))?;
    let restored = move_on(&bundle, "1\n")?;
    let map = fs::read_to_string(format!("/proc/{}/uid_map", restored.pid()?))?;
    ensure_eq(map.split_ascii_whitespace().collect::<Vec<_>>(), vec!["0", "100000", "65536"])
}

fn a_shared_network_is_shared_again(test: &Test) -> Outcome {
    needs_criu()?;
    let other = test.sh("exec sleep 60")?.start()?;
    let network = PathBuf::from(format!("/proc/{}/ns/net", other.pid()?));
    let bundle = test.sh(COUNT)?.namespace(json!({ "type": "network", "path": network }));
    let restored = move_on(&bundle, "1\n")?;
    let own = fs::read_link(format!("/proc/{}/ns/net", restored.pid()?))?;
    ensure_eq(own, fs::read_link(network)?)
}

fn hooks_run_at_a_restore(test: &Test) -> Outcome {
    needs_criu()?;
    let log = test.folder.join("hooks").display().to_string();
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let hook = |name: &str| {
        let script = format!("echo {name} $(cat | grep -o '\"pid\":[0-9]*') >> {log}");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
    };
    let bundle = bundle.edit(|config| {
        for name in ["prestart", "createRuntime", "poststart", "poststop"] {
            config["hooks"][name] = hook(name);
        }
    });
    bundle.write()?;
    let restored = restore(&bundle, &[])?;
    let pid = restored.pid()?;
    let expected =
        format!("prestart \"pid\":{pid}\ncreateRuntime \"pid\":{pid}\npoststart \"pid\":{pid}\n");
    ensure_eq(fs::read_to_string(&log)?, expected.clone())?;
    test.rt(["delete", "--force", &restored.id])?.success()?;
    ensure_eq(fs::read_to_string(&log)?, expected + "poststop \"pid\":0\n")
}

fn has_freezer(test: &Test) -> bool {
    test.host.lane == "v2" || Path::new("/sys/fs/cgroup/freezer/cgroup.procs").exists()
}

fn a_paused_container_can_be_written(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    if !has_freezer(test) {
        return skip("this host has no freezer");
    }
    container.rt(&["pause"])?.success()?;
    write(test, &container, &[])?.success()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

fn a_container_can_be_moved_twice(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let restored = move_on(&bundle, "1\n")?;
    restored.wait_for_output("\n")?;
    write(test, &restored, &[])?.success()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// The runtime replaces a stream that is the host's `/dev/null` by the container's own device from
/// the start.
fn null_stays_the_containers(test: &Test) -> Outcome {
    needs_criu()?;
    let restored = move_on(&test.sh(COUNT)?, "1\n")?;
    let process = PathBuf::from(format!("/proc/{}", restored.pid()?));
    let device =
        |path: &str| fs::metadata(process.join(path)).map(|file| (file.dev(), file.rdev()));
    ensure_eq(device("fd/0")?, device("root/dev/null")?)?;
    ensure(device("fd/0")?.0 != fs::metadata("/dev/null")?.dev(), "it is the host's")
}
