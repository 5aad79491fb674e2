//! The life of a container, from `create` to `delete`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use serde_json::{Value, json};

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, has_process, skip, wait_until};

super::tests! { "lifecycle": a_caller_that_ignores_its_children_has_them_waited_for,
    goes_through_created_running_and_stopped, program_waits_for_start, state_has_what_callers_read,
    state_of_a_stopped_container_has_no_pid, pid_file_is_a_number_and_nothing_else, pid_file_that_is_there_is_replaced,
    run_passes_on_the_exit_code, run_tells_of_a_signal_as_a_shell_does, run_leaves_nothing, run_can_keep_the_container,
    run_can_detach, kill_takes_names_and_numbers, kill_sends_term_unless_told_otherwise, kill_all_reaches_every_process, killed_it_leaves_no_process_in_the_pid_namespace_of_another, a_signal_ends_what_was_not_started,
    kill_all_of_a_stopped_container_is_no_error, delete_of_a_created_container_kills_it,
    delete_of_a_running_container_is_refused, delete_by_force_kills, delete_by_force_of_nothing_is_no_error,
    of_two_creations_with_one_name_one_wins, of_two_starts_one_wins, list_shows_every_container,
    list_of_nothing_is_a_head_or_an_empty_array, list_of_a_root_that_is_not_there_is_an_error, an_early_death_is_seen, a_creation_that_was_cut_short_can_be_deleted, a_signal_to_run_reaches_the_program, several_can_be_killed_and_deleted_by_a_regular_expression,
    the_umask_of_the_caller_changes_nothing, what_outlives_the_first_process_is_deleted_with_it,
}

/// In another container's pid namespace, a process can outlive the first process. If it is in the
/// session of the first process, it keeps that pid in use.
fn what_outlives_the_first_process_is_deleted_with_it(test: &Test) -> Outcome {
    let other = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/pid", other.pid()?);
    let mark = test.id();
    let bundle = test
        .sh(&format!("sh -c 'echo up; while :; do sleep 0.1; done # {mark}' & wait"))?
        .namespace(json!({ "type": "pid", "path": path }));
    let container = bundle.start()?;
    container.wait_for_output("up")?;
    container.kill("TERM")?;
    container.wait()?;
    ensure(has_process(&mark), "nothing has outlived it")?;
    container.delete()?;
    wait_until("no process is left", || !has_process(&mark))
}

fn goes_through_created_running_and_stopped(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    ensure_eq(container.status()?.as_str(), "created")?;
    container.start()?;
    ensure_eq(container.status()?.as_str(), "running")?;
    container.kill("KILL")?;
    container.wait()?;
    container.delete()?;
    container.rt(&["state"])?.fails_with("does not exist").map(drop)
}

fn program_waits_for_start(test: &Test) -> Outcome {
    let container = test.sh("echo started")?.create()?;
    thread::sleep(std::time::Duration::from_millis(50));
    ensure_eq(container.stdout()?.as_str(), "")?;
    container.start()?;
    container.wait()?;
    ensure_eq(container.stdout()?.as_str(), "started\n")
}

fn state_has_what_callers_read(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?.annotation("org.example.key", "value");
    let container = bundle.create()?;
    let state = container.state()?;
    ensure_eq(state["id"].as_str(), Some(container.id.as_str()))?;
    ensure_eq(state["bundle"].as_str(), bundle.folder.to_str())?;
    ensure_eq(state["rootfs"].as_str(), bundle.rootfs().to_str())?;
    ensure_eq(state["annotations"]["org.example.key"].as_str(), Some("value"))?;
    ensure_eq(state["owner"].as_str(), Some("root"))?;
    let pid = state["pid"].as_i64().unwrap_or_default();
    ensure(fs::exists(format!("/proc/{pid}/stat"))?, format!("no process {pid}"))?;
    // RFC 3339, which Go parses: 2026-01-02T03:04:05.678Z.
    let created = state["created"].as_str().unwrap_or_default();
    let shape: String = created.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    ensure(shape.starts_with("0000-00-00T00:00:00.0") && shape.ends_with('Z'), created)
}

fn state_of_a_stopped_container_has_no_pid(test: &Test) -> Outcome {
    let container = test.sh("true")?.start()?;
    container.wait()?;
    ensure_eq(container.state()?["pid"].as_i64(), Some(0))
}

fn pid_file_is_a_number_and_nothing_else(test: &Test) -> Outcome {
    let file = test.folder.join("pid");
    let container =
        test.sh("exec sleep 60")?.flag(format!("--pid-file={}", file.display())).create()?;
    ensure_eq(fs::read_to_string(file)?, container.pid()?.to_string())
}

fn pid_file_that_is_there_is_replaced(test: &Test) -> Outcome {
    let file = test.folder.join("pid");
    fs::write(&file, "something else that is longer")?;
    let container =
        test.sh("exec sleep 60")?.flag(format!("--pid-file={}", file.display())).create()?;
    ensure_eq(fs::read_to_string(file)?, container.pid()?.to_string())
}

fn run_passes_on_the_exit_code(test: &Test) -> Outcome {
    for code in [0, 1, 7, 128, 255] {
        test.sh(&format!("exit {code}"))?.run()?.code(code)?;
    }
    Ok(())
}

fn run_tells_of_a_signal_as_a_shell_does(test: &Test) -> Outcome {
    // The kernel protects the first process of a pid namespace from its own signals, so a child of
    // the shell dies here.
    test.sh("sh -c 'kill -9 $$'; exit $?")?.run()?.code(137)?;
    let container = test.sh("exec sleep 60")?.start()?;
    container.kill("KILL")?;
    container.wait()
}

fn run_leaves_nothing(test: &Test) -> Outcome {
    test.sh("true")?.run()?.success()?;
    ensure_eq(fs::read_dir(test.state_root())?.count(), 0)
}

fn run_can_keep_the_container(test: &Test) -> Outcome {
    test.sh("true")?.flag("--keep").run()?.success()?;
    let list = test.rt(["list", "--format", "json"])?.success()?.stdout;
    ensure_eq(serde_json::from_str::<Value>(&list)?[0]["status"].as_str(), Some("stopped"))
}

fn run_can_detach(test: &Test) -> Outcome {
    test.sh("exec sleep 60")?.flag("--detach").run()?.success()?;
    let list = test.rt(["list", "--format", "json"])?.success()?.stdout;
    ensure_eq(serde_json::from_str::<Value>(&list)?[0]["status"].as_str(), Some("running"))
}

fn kill_takes_names_and_numbers(test: &Test) -> Outcome {
    let script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let container = test.sh(script)?.start()?;
    container.wait_for_output("ready")?;
    for (signal, output) in
        [("USR1", "usr1\n"), ("SIGUSR2", "usr2\n"), ("10", "usr1\n"), ("usr2", "usr2\n")]
    {
        let before = container.stdout()?.matches(output).count();
        container.kill(signal)?;
        wait_until("the signal has arrived", || {
            container.stdout().is_ok_and(|out| out.matches(output).count() > before)
        })?;
    }
    Ok(())
}

fn kill_sends_term_unless_told_otherwise(test: &Test) -> Outcome {
    let container = test
        .sh("trap 'echo term; exit 0' TERM; echo ready; while :; do sleep 0.05; done")?
        .start()?;
    container.wait_for_output("ready")?;
    container.rt(&["kill"])?.success()?;
    container.wait()?;
    ensure_eq(container.stdout()?.as_str(), "ready\nterm\n")
}

fn kill_all_reaches_every_process(test: &Test) -> Outcome {
    // In the host's pid namespace, the children outlive the first process.
    let bundle = test.sh("sleep 1000 & sleep 1000 & echo ready; wait")?;
    let bundle = bundle.edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    let container = bundle.start()?;
    container.wait_for_output("ready")?;
    let pid = container.pid()?;
    let children =
        || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<String> = children().split_whitespace().map(str::to_owned).collect();
    ensure_eq(children.len(), 2)?;
    test.rt(["kill", "--all", &container.id, "KILL"])?.success()?;
    let dead = |pid: &String| {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    };
    wait_until("the children are dead", || children.iter().all(dead))
}

fn kill_all_of_a_stopped_container_is_no_error(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("true")?.start()?;
    container.wait()?;
    test.rt(["kill", "--all", &container.id, "9"])?.success().map(drop)
}

fn delete_of_a_created_container_kills_it(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    let pid = container.pid()?;
    container.delete()?;
    let gone = || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    };
    wait_until("the process is gone", gone)
}

fn delete_of_a_running_container_is_refused(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    ensure(container.rt(&["delete"])?.code != Some(0), "it was deleted")?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn delete_by_force_kills(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    container.rt(&["delete", "--force"])?.success()?;
    ensure(container.rt(&["state"])?.code != Some(0), "it is still there")
}

fn delete_by_force_of_nothing_is_no_error(test: &Test) -> Outcome {
    test.rt(["delete", "--force", "nothing"])?.success()?.stdout("").map(drop)
}

fn of_two_creations_with_one_name_one_wins(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let id = test.id();
    let winners = thread::scope(|scope| {
        let tries: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bundle.try_create(&id).is_ok_and(|out| out.code == Some(0))))
            .collect();
        tries.into_iter().filter_map(|one| one.join().ok()).filter(|won| *won).count()
    });
    ensure_eq(winners, 1)?;
    test.rt(["start", &id])?.success().map(drop)
}

fn of_two_starts_one_wins(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    let winners = thread::scope(|scope| {
        let tries: Vec<_> = (0..4).map(|_| scope.spawn(|| container.start().is_ok())).collect();
        tries.into_iter().filter_map(|one| one.join().ok()).filter(|won| *won).count()
    });
    ensure_eq(winners, 1)
}

/// A root that the caller names may be a mistake. `rt` makes the default root with the first
/// container.
fn list_of_a_root_that_is_not_there_is_an_error(test: &Test) -> Outcome {
    let file = test.folder.join("file");
    fs::write(&file, "")?;
    for (root, words) in
        [("none", "o such file"), ("none/deep", "o such file"), ("file", "ot a directory")]
    {
        for args in [&["list"][..], &["list", "-q"], &["list", "--format=json"]] {
            let mut command = std::process::Command::new(&test.host.runtime);
            command.arg("--root").arg(test.folder.join(root)).args(args);
            Output::of(command)?.fails_with(words)?;
        }
        ensure(!test.folder.join("none").exists(), "it was made")?;
    }
    Ok(())
}

fn list_shows_every_container(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let (one, two) = (bundle.create()?, bundle.start()?);
    let list = test.rt(["list", "--format=json"])?.success()?.stdout;
    let list: Value = serde_json::from_str(&list)?;
    let seen: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| (c["id"].as_str(), c["status"].as_str()))
        .collect();
    ensure_eq(
        seen,
        vec![(Some(one.id.as_str()), Some("created")), (Some(two.id.as_str()), Some("running"))],
    )?;
    test.rt(["list", "-q"])?.stdout(&format!("{}\n{}\n", one.id, two.id))?;
    let table = test.rt(["list"])?.success()?.stdout;
    ensure(
        table.lines().count() == 3 && table.contains("STATUS") && table.contains("created"),
        table,
    )
}

fn list_of_nothing_is_a_head_or_an_empty_array(test: &Test) -> Outcome {
    test.only_rt()?;
    fs::create_dir(test.state_root())?;
    fs::set_permissions(test.state_root(), fs::Permissions::from_mode(0o700))?;
    test.rt(["list", "--format=json"])?.success()?.stdout("[]\n")?;
    test.rt(["list", "--quiet"])?.success()?.stdout("").map(drop)
}

fn an_early_death_is_seen(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    container.kill("KILL")?;
    container.wait()?;
    container.rt(&["start"])?.fails_with("cannot start").map(drop)
}

/// A hook kills the runtime in the middle of `create`.
fn a_creation_that_was_cut_short_can_be_deleted(test: &Test) -> Outcome {
    test.only_rt()?;
    let hook =
        serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID; sleep 2"] });
    let cut = |config: &mut Value| config["hooks"] = serde_json::json!({ "createRuntime": [hook] });
    for manager in ["cgroupfs", "disabled"] {
        let bundle = test.sh("exec sleep 60")?.edit(cut);
        bundle.write()?;
        let (id, folder) = (test.id(), bundle.folder.display().to_string());
        let manager = format!("--cgroup-manager={manager}");
        let output = test.rt([&manager, "create", "--bundle", &folder, &id])?;
        ensure(output.code != Some(0), "it was created")?;
        test.rt(["delete", "--force", &id])?.success()?;
        test.rt(["state", &id])?.fails_with("does not exist")?;
        test.sh("true")?.try_create(&id)?.success()?;
        test.rt(["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

fn a_signal_to_run_reaches_the_program(test: &Test) -> Outcome {
    let bundle = test.sh("trap 'exit 9' TERM; touch /tmp/ready; while :; do sleep 0.05; done")?;
    bundle.write()?;
    let mut run = test
        .command(["run", "--bundle", &bundle.folder.display().to_string(), &test.id()])
        .spawn()?;
    let ready = bundle.rootfs().join("tmp/ready");
    wait_until("the program runs", || ready.exists())?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(run.id())?).ok_or("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    ensure_eq(run.wait()?.code(), Some(9))
}

fn several_can_be_killed_and_deleted_by_a_regular_expression(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let containers = [bundle.start()?, bundle.start()?, bundle.start()?];
    let [first, second, third] = &containers;
    let pattern = format!("({}|{})$", first.id, second.id);
    test.rt(["kill", "--regex", &pattern, "KILL"])?.success()?;
    first.wait()?;
    second.wait()?;
    ensure_eq(third.status()?.as_str(), "running")?;
    test.rt(["delete", "--regex", &pattern])?.success()?;
    test.rt(["state", &first.id])?.fails_with("does not exist")?;
    ensure_eq(third.status()?.as_str(), "running")?;
    // No container matches.
    test.rt(["delete", "--regex", "^no-such-"])?.success()?;
    if test.host.is_rt {
        test.rt(["delete", "--regex", "("])?.fails_with("`(` is not a regular expression")?;
    }
    third.kill("KILL")
}

/// containerd's umask is 0, so everybody could write to the state. With other umasks, users could
/// not read directories that are made for them.
fn the_umask_of_the_caller_changes_nothing(test: &Test) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    for umask in ["0", "077"] {
        let bundle = test.sh("pwd; umask; exec sleep 60")?.edit(|config| {
            config["process"]["cwd"] = json!("/new/folder");
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        });
        bundle.write()?;
        let id = test.id();
        let create =
            test.command(["create", "--bundle", &bundle.folder.display().to_string(), &id]);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
        shell.arg(create.get_program()).args(create.get_args());
        Output::of(shell)?.success()?;
        ensure_eq(fs::metadata(bundle.rootfs().join("new/folder"))?.mode() & 0o777, 0o755)?;
        if test.host.is_rt {
            for file in ["state.json", "config.json"] {
                let mode = fs::metadata(test.state_root().join(&id).join(file))?.mode();
                ensure_eq((file, mode & 0o777), (file, 0o600))?;
            }
        }
        test.rt(["start", &id])?.success()?;
        test.rt(["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

/// The kernel ends all processes together only with the first process of a pid namespace.
fn killed_it_leaves_no_process_in_the_pid_namespace_of_another(test: &Test) -> Outcome {
    // runc does so since version 1.2. crun does not.
    test.only_rt()?;
    let other = test.sh("exec sleep 60")?.start()?;
    let joined = json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", other.pid()?) });
    // The host's pid namespace, and twice that of another container. In the last case, the first
    // process has already ended by itself.
    for (namespace, ends) in [(None, false), (Some(&joined), false), (Some(&joined), true)] {
        let mark = test.id();
        let end = if ends { "exit" } else { "wait" };
        let script = format!("sh -c 'echo up; while :; do sleep 0.1; done # {mark}' & {end}");
        let mut bundle = test.sh(&script)?.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "pid");
            }
        });
        if let Some(namespace) = namespace {
            bundle = bundle.namespace(namespace.clone());
        }
        let container = bundle.start()?;
        container.wait_for_output("up")?;
        if ends {
            container.wait()?;
        }
        ensure(has_process(&mark), "it is not there")?;
        container.kill("KILL")?;
        wait_until("no process is left", || !has_process(&mark))?;
        container.wait()?;
        // A process that has just died may be in its cgroup for a moment.
        wait_until("its cgroup is empty", || {
            let again = test.rt(["kill", &container.id, "KILL"]);
            again.is_ok_and(|output| output.code != Some(0))
        })?;
        test.rt(["kill", &container.id, "KILL"])?.fails_with("container not running")?;
        container.delete()?;
    }
    Ok(())
}

/// As the first process of its pid namespace, init would not notice the signal. runc's init ends
/// too. The test runs without a filter, and with a filter of either kind.
fn a_signal_ends_what_was_not_started(test: &Test) -> Outcome {
    // crun's init continues.
    test.only_rt()?;
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }] });
    for (filter, no_new_privileges) in [(None, true), (Some(&filter), true), (Some(&filter), false)]
    {
        for signal in ["TERM", "INT", "HUP", "QUIT"] {
            let bundle = test.sh("echo ran")?.edit(|config| {
                config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                if let Some(filter) = filter {
                    config["linux"]["seccomp"] = filter.clone();
                }
            });
            let container = bundle.create()?;
            // Other signals are for the program.
            container.kill("USR1")?;
            container.kill("WINCH")?;
            ensure_eq(container.status()?.as_str(), "created")?;
            container.kill(signal)?;
            container.wait()?;
            container.rt(&["start"])?.fails_with("has stopped")?;
            ensure_eq(container.stdout()?.as_str(), "")?;
            container.delete()?;
        }
    }
    Ok(())
}

/// If SIGCHLD is ignored, the kernel reaps children itself. A caller may pass this setting on
/// (`execve(2)`).
fn a_caller_that_ignores_its_children_has_them_waited_for(test: &Test) -> Outcome {
    test.only_rt()?;
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return skip("the host has no perl");
    }
    let ignoring = |args: Vec<String>| {
        let mut command = std::process::Command::new("/usr/bin/perl");
        let runtime = test.command(args);
        command.args(["-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV"]).arg(runtime.get_program());
        command.args(runtime.get_args());
        Output::of(command)
    };
    let bundle = test.sh("grep SigIgn /proc/self/status | grep -c '0000$'; exit 7")?;
    let bundle = bundle.edit(|config| {
        config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }], "createContainer": [{ "path": "/bin/true" }] });
    });
    bundle.write()?;
    ignoring(bundle.command_line("run", &test.id()))?.code(7)?.stdout("1\n")?;
    let container = test.sh("exec sleep 60")?.start()?;
    let exec = ["exec", &container.id, "/bin/sh", "-c", "exit 8"].map(str::to_owned);
    ignoring(exec.to_vec())?.code(8)?;
    ignoring(vec!["delete".into(), "--force".into(), container.id.clone()])?.success().map(drop)
}
