//! Checkpoints, which CRIU makes and restores. Where it does not run, they are skipped: Debian 12's is too old for new kernels.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;

use super::terminal::{read_until, receive};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, has_process, skip,
    wait_until,
};

super::tests! { "checkpoint":
    a_container_goes_on_under_another_name, a_file_is_written_on, the_name_is_free_after_a_checkpoint, a_container_can_be_left_running,
    memory_can_be_written_beforehand, a_restored_container_has_its_limits, a_restored_container_can_be_entered_paused_and_deleted,
    a_terminal_is_sent_again, in_the_foreground_the_exit_code_is_the_programs, mounts_come_back_in_a_rootfs_made_anew,
    a_user_namespace_comes_back, a_shared_network_is_shared_again, cgroup_mounts_come_back, hooks_run_at_a_restore,
    a_failing_hook_undoes_the_restore, a_pid_file_that_cannot_be_written_undoes_the_restore, a_paused_container_can_be_written, a_container_can_be_moved_twice, null_stays_null, a_service_comes_back,
    a_restore_that_is_killed_can_be_deleted, a_damaged_checkpoint_leaves_nothing, what_cannot_be_written_is_refused,
    what_cannot_be_restored_is_refused, without_criu_it_says_so,
}

/// Prints numbers, one every tenth of a second, and never the same twice.
const COUNT: &str = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done";

pub(super) fn needs_criu() -> Outcome {
    let Ok(output) = Command::new("criu").arg("check").output() else {
        return skip("criu is not installed");
    };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().rfind(|line| line.contains("Error"));
    if output.status.success() { Ok(()) } else { skip(last.unwrap_or("criu check fails")) }
}

fn images(test: &Test) -> PathBuf {
    test.folder.join("images")
}

/// Writes the checkpoint with these flags.
fn write(test: &Test, container: &Container<'_>, flags: &[&str]) -> Outcome<Output> {
    let images = images(test).display().to_string();
    container.rt(&[&["checkpoint", "--image-path", &images], flags].concat())
}

fn restore_command(bundle: &Bundle<'_>, id: &str, flags: &[&str]) -> Command {
    let test = bundle.test;
    let (folder, images) =
        (bundle.folder.display().to_string(), images(test).display().to_string());
    let args = ["restore", "--bundle", &folder, "--image-path", &images];
    test.command(args.iter().chain(flags).copied().chain([id]))
}

/// Restores it in the background, under a new name.
fn restore<'a>(bundle: &Bundle<'a>, flags: &[&str]) -> Outcome<Container<'a>> {
    let id = bundle.test.id();
    piped(bundle.test, &id, restore_command(bundle, &id, &[&["--detach"], flags].concat()))
}

/// With pipes for its streams, as callers do it; what comes out at the other ends is the container's output.
fn piped<'a>(test: &'a Test, id: &str, command: Command) -> Outcome<Container<'a>> {
    let stream = |end: &str| -> Outcome<Stdio> {
        let file = fs::File::create(test.folder.join(format!("{id}.{end}")))?;
        let reader = Command::new("cat").stdin(Stdio::piped()).stdout(file).spawn()?;
        Ok(reader.stdin.ok_or("no pipe")?.into())
    };
    Container::create_writing_to(test, id, command, [stream("out")?, stream("err")?])
}

fn start<'a>(bundle: &Bundle<'a>) -> Outcome<Container<'a>> {
    bundle.write()?;
    let id = bundle.test.id();
    let create = bundle.test.command(bundle.command_line("create", &id));
    let container = piped(bundle.test, &id, create)?;
    container.start()?;
    Ok(container)
}

/// Starts it, writes its checkpoint when it has printed a text, and restores it.
fn move_on<'a>(bundle: &Bundle<'a>, text: &str) -> Outcome<Container<'a>> {
    let container = start(bundle)?;
    container.wait_for_output(text)?;
    write(bundle.test, &container, &[])?.success()?;
    restore(bundle, &[])
}

fn a_container_goes_on_under_another_name(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("5\n")?;
    write(test, &container, &[])?.success()?;
    let before = container.stdout()?;
    let restored = restore(&bundle, &[])?;
    restored.wait_for_output("\n")?;
    let last: u32 = before.lines().last().unwrap_or_default().parse()?;
    let next: u32 = restored.stdout()?.lines().next().unwrap_or_default().parse()?;
    ensure_eq(next, last + 1)?;
    ensure_eq(restored.status()?.as_str(), "running")
}

/// A standard output that is a file of the host's, which no mount of the container's holds.
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
    needs_criu()?;
    if !Command::new("criu")
        .args(["check", "--feature", "mem_dirty_track"])
        .output()?
        .status
        .success()
    {
        return skip("this kernel does not tell which memory has changed");
    }
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let first = test.folder.join("first").display().to_string();
    container.rt(&["checkpoint", "--pre-dump", "--image-path", &first])?.success()?;
    ensure_eq(container.status()?.as_str(), "running")?;
    write(test, &container, &["--parent-path", "../first"])?.success()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

fn a_restored_container_has_its_limits(test: &Test) -> Outcome {
    needs_criu()?;
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let has_pids =
        v2.is_ok_and(|list| list.contains("pids")) || PathBuf::from("/sys/fs/cgroup/pids").exists();
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
    if let Some(limit) = limit {
        ensure_eq(limit.trim(), "77")?;
    }
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

fn a_restored_container_can_be_entered_paused_and_deleted(test: &Test) -> Outcome {
    needs_criu()?;
    let restored = move_on(&test.sh(COUNT)?, "1\n")?;
    let exec = test.rt(["exec", &restored.id, "sh", "-c", "echo $$; kill -0 1 && echo there"])?;
    ensure(exec.success()?.stdout.ends_with("there\n"), "not in its pid namespace")?;
    if restored.rt(&["pause"])?.success().is_ok() {
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

fn mounts_come_back_in_a_rootfs_made_anew(test: &Test) -> Outcome {
    needs_criu()?;
    let host = test.folder.join("shared");
    fs::create_dir_all(host.join("inner"))?;
    fs::write(host.join("file"), "the host's\n")?;
    let script = "echo mine > /scratch/kept; echo up; while ! test -e /shared/go; do sleep 0.1; done; \
                  cat /shared/file /scratch/kept /single; echo x > /fixed/y || echo fixed; cat /proc/keys; echo end";
    let bundle = test
        .sh(script)?
        .edit(|config| config["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/acpi"]))
        .edit(|config| config["linux"]["readonlyPaths"] = json!(["/proc/sys"]))
        .mount(json!({ "destination": "/shared", "type": "bind", "source": host, "options": ["rbind"] }))
        .mount(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs" }))
        .mount(json!({ "destination": "/fixed", "type": "bind", "source": host, "options": ["bind", "ro"] }))
        .mount(json!({ "destination": "/single", "type": "bind", "source": host.join("file"), "options": ["bind"] }));
    let container = start(&bundle)?;
    container.wait_for_output("up")?;
    write(test, &container, &[])?.success()?;
    for left in ["shared", "scratch", "fixed", "proc", "dev", "sys"] {
        fs::remove_dir(bundle.rootfs().join(left))?;
    }
    fs::remove_file(bundle.rootfs().join("single"))?;
    let restored = restore(&bundle, &[])?;
    fs::write(host.join("go"), "")?;
    restored.wait_for_output("end")?;
    ensure_eq(restored.stdout()?.as_str(), "the host's\nmine\nthe host's\nfixed\nend\n")
}

fn a_user_namespace_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let bundle = test.sh(COUNT)?.namespace(json!({ "type": "user" })).edit(|config| {
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
    });
    fs::set_permissions(&test.folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
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

fn cgroup_mounts_come_back(test: &Test) -> Outcome {
    needs_criu()?;
    let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
    let list = format!("ls /sys/fs/cgroup | head -n 1; {COUNT}");
    let bundle = test.sh(&list)?.mount(mount.clone()).namespace(json!({ "type": "cgroup" }));
    let restored = move_on(&bundle, "1\n")?;
    let look = [
        "exec",
        &restored.id,
        "sh",
        "-c",
        "ls /sys/fs/cgroup | wc -l; grep -c . /proc/self/cgroup",
    ];
    let looked = test.rt(look)?.success()?.stdout;
    ensure(!looked.starts_with("0\n"), looked)?;
    let pid = restored.pid()?;
    let shown = test.rt(["exec", &restored.id, "cat", "/proc/1/cgroup"])?.success()?.stdout;
    let own = |line: &&str| line.starts_with("0::");
    let outside = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    if outside.lines().find(own).is_some_and(|line| line.contains(&restored.id)) {
        ensure_eq(shown.lines().find(own), Some("0::/"))?;
    }
    Ok(())
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

fn a_failing_hook_undoes_the_restore(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let bundle =
        bundle.edit(|config| config["hooks"]["createRuntime"] = json!([{ "path": "/bin/false" }]));
    bundle.write()?;
    let id = test.id();
    Output::of(restore_command(&bundle, &id, &["--detach"]))?
        .fails_with("run createRuntime hook `/bin/false`")?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn a_pid_file_that_cannot_be_written_undoes_the_restore(test: &Test) -> Outcome {
    needs_criu()?;
    // Others count too.
    let mark = test.id();
    let bundle = test.sh(&format!("{COUNT} # {mark}"))?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let id = test.id();
    let flags = ["--detach", "--pid-file", "/no/such/folder/pid"];
    Output::of(restore_command(&bundle, &id, &flags))?.fails_with("write pid file")?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    wait_until("no process is left", || !has_process(&mark))
}

fn a_paused_container_can_be_written(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    if container.rt(&["pause"])?.success().is_err() {
        return skip("this host has no freezer");
    }
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

/// A stream that is the host's `/dev/null` is the container's own from the start.
fn null_stays_null(test: &Test) -> Outcome {
    needs_criu()?;
    let restored = move_on(&test.sh(COUNT)?, "1\n")?;
    let stdin = fs::read_link(format!("/proc/{}/fd/0", restored.pid()?))?;
    ensure_eq(stdin, PathBuf::from("/dev/null"))
}

/// With the mount of the socket by which it has told a service manager that it is ready.
fn a_service_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let socket = test.folder.join("manager");
    let manager = UnixDatagram::bind(&socket)?;
    let bundle =
        test.sh("grep -c /run/notify /proc/self/mountinfo; while sleep 0.1; do echo on; done")?;
    bundle.write()?;
    let id = test.id();
    let mut create = test.command(bundle.command_line("create", &id));
    create.env("NOTIFY_SOCKET", &socket);
    let container = piped(test, &id, create)?;
    container.start()?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    drop(manager);
    restore(&bundle, &[])?.wait_for_output("on\n")
}

fn a_restore_that_is_killed_can_be_deleted(test: &Test) -> Outcome {
    needs_criu()?;
    // Others count too.
    let mark = test.id();
    let bundle = test.sh(&format!("{COUNT} # {mark}"))?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let reached = test.folder.join("reached");
    let script = format!("touch {}; sleep 60", reached.display());
    let hook =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
    let bundle = bundle.edit(|config| config["hooks"]["createRuntime"] = hook);
    bundle.write()?;
    let id = test.id();
    let mut restore = restore_command(&bundle, &id, &["--detach"]).spawn()?;
    wait_until("its hook runs", || reached.exists())?;
    restore.kill()?;
    restore.wait()?;
    test.rt(["delete", "--force", &id])?.success()?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")?;
    wait_until("no process is left", || !has_process(&mark))
}

fn a_damaged_checkpoint_leaves_nothing(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    for image in fs::read_dir(images(test))?.flatten() {
        let name = image.file_name().to_string_lossy().into_owned();
        if name.starts_with("core-") {
            fs::write(image.path(), "cut")?;
        }
    }
    let id = test.id();
    let failed =
        Output::of(restore_command(&bundle, &id, &["--detach"]))?.fails_with("restore.log`")?;
    ensure_eq(failed.stderr.lines().count(), 1)?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn what_cannot_be_written_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let images = images(test).display().to_string();
    let checkpoint = |id: &str| test.rt(["checkpoint", "--image-path", &images, id]);
    checkpoint("nobody")?.fails_with("checkpoint `nobody`: container does not exist")?;
    let container = test.sh("exec sleep 60")?.create()?;
    checkpoint(&container.id)?.fails_with("the container is not running: created")?;
    container.start()?;
    let far =
        [&["checkpoint", "--parent-path", "/far"], ["--image-path", &images].as_slice()].concat();
    container.rt(&far)?.fails_with("`--parent-path` is relative")?;
    container
        .rt(&["checkpoint", "--page-server", "here"])?
        .fails_with("wrong value `here` for `--page-server`")?;
    container
        .rt(&["checkpoint", "--status-fd", "99"])?
        .fails_with("wrong value `99` for `--status-fd`")?;
    container
        .rt(&["checkpoint", "--manage-cgroups-mode", "x"])?
        .fails_with("one of soft, full, strict, ignore")?;
    container
        .rt(&["checkpoint", "--image-path", "/proc/none/x"])?
        .fails_with("make `/proc/none/x`")?;
    ensure_eq(container.status()?.as_str(), "running")?;
    container.kill("KILL")?;
    container.wait()?;
    checkpoint(&container.id)?.fails_with("the container is not running: stopped")?;
    let module = test.wasm("hello", &["sleep"])?.start();
    if let Ok(module) = module
        && module.status()? == "running"
    {
        checkpoint(&module.id)?.fails_with("its program is a WebAssembly module")?;
    }
    Ok(())
}

fn what_cannot_be_restored_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let id = test.id();
    let try_it = |flags: &[&str]| Output::of(restore_command(&bundle, &id, flags));
    try_it(&["--detach"])?
        .fails_with("images/descriptors.json` of the checkpoint: No such file or directory")?;
    fs::create_dir_all(images(test))?;
    fs::write(images(test).join("descriptors.json"), "{}")?;
    try_it(&["--detach"])?.fails_with("descriptors.json` of the checkpoint: invalid type")?;
    try_it(&["--console-socket", "/none"])?.fails_with("`process.terminal` is not set")?;
    // By these words CRI-O finds out that pods can be restored.
    test.rt(["restore", "--lsm-mount-context"])?.fails_with("flag needs an argument")?;
    for help in ["checkpoint", "restore"] {
        test.rt([help, "--help"])?.success()?;
    }
    let running = bundle.start()?;
    fs::write(images(test).join("descriptors.json"), "[]")?;
    Output::of(restore_command(&bundle, &running.id, &["--detach"]))?
        .fails_with("container with given ID already exists")?;
    ensure_eq(running.status()?.as_str(), "running")
}

fn without_criu_it_says_so(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let images = images(test).display().to_string();
    let command = test.command(["checkpoint", "--image-path", &images, &container.id]);
    let words: Vec<String> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    // Where it is installed, it is hidden from this one.
    let script = "PATH=/none; for criu in /usr/sbin/criu /usr/local/sbin/criu; do \
                  [ ! -e $criu ] || /bin/mount --bind /dev/null $criu; done; exec \"$@\"";
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "/bin/sh", "-c", script, "sh"]).args(words);
    Output::of(hidden)?.fails_with("find the program `criu`")?;
    ensure_eq(container.status()?.as_str(), "running")
}
