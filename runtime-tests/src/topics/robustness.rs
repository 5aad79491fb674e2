//! A command that fails at any point must leave nothing behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Container, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, has_process, skip, wait_until,
    wait_up_to,
};

super::tests! { "robustness":
    create_can_be_killed_at_every_system_call, run_can_be_killed_at_every_system_call, start_can_be_killed_at_every_system_call,
    exec_can_be_killed_at_every_system_call, delete_can_be_killed_at_every_system_call,
    a_filesystem_that_cannot_exchange_files_will_do, create_on_a_full_disk_leaves_nothing, a_state_root_that_is_read_only_is_an_error, create_without_descriptors_leaves_nothing,
    create_without_memory_leaves_nothing, a_container_with_too_little_memory_leaves_nothing, a_container_that_is_killed_while_it_is_made_leaves_nothing,
    delete_waits_for_a_scope_that_systemd_is_to_make,
    another_process_with_the_same_number_is_left_alone, a_state_that_is_cut_short_can_be_deleted,
}

/// A system call of a command: its name, and its position among the calls of that name, from 1.
type Call = (String, usize);

fn strace(test: &Test, option: &str, command: &Command) -> Outcome<std::process::ExitStatus> {
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    // Without `-f`, because strace would wait for the container.
    let mut strace = Command::new("timeout");
    strace.args(["--signal=KILL", "60", "strace", "--trace=all", option, "--output"]);
    strace.arg(test.folder.join("calls")).arg(command.get_program()).args(command.get_args());
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(strace.status()?)
}

/// The system calls of a command, in order: all of them in one lane, and some of them in the
/// others.
fn calls(test: &Test, command: &Command) -> Outcome<Vec<Call>> {
    let status = strace(test, "--string-limit=1", command)?;
    ensure(status.success(), format!("{status}"))?;
    let mut calls: Vec<Call> = Vec::new();
    for line in fs::read_to_string(test.folder.join("calls"))?.lines() {
        if let Some((name, _)) = line.split_once('(').filter(|(name, _)| !name.contains(' ')) {
            let before = calls.iter().filter(|(other, _)| other == name).count();
            calls.push((name.to_owned(), before + 1));
        }
    }
    ensure(calls.len() > 20, format!("so few system calls? {calls:?}"))?;
    let emulated = std::env::var_os("RT_TESTS_MANAGER").is_some();
    let step = match test.host.lane.as_str() {
        _ if emulated => 25,
        "v2" => 1,
        // A cgroup has twelve directories there, and the calls for them are alike.
        _ => 4,
    };
    Ok(calls.into_iter().step_by(step).collect())
}

/// Runs a command, and kills it at one of its system calls. The command may end without this call,
/// because two runs are not always the same.
fn kill_at(test: &Test, (name, number): &Call, command: &Command) -> Outcome<bool> {
    let option = format!("--inject={name}:signal=SIGKILL:when={number}");
    let status = strace(test, &option, command)?;
    // timeout returns 137, or dies of the signal itself.
    let killed = status.signal() == Some(9) || status.code() == Some(137);
    ensure(killed || status.success(), format!("at {name} {number}: {status}"))?;
    Ok(killed)
}

/// After `delete --force`, nothing of the container is left.
fn nothing_is_left(test: &Test, id: &str, (name, number): &Call) -> Outcome {
    let at = |what: &str| format!("killed at {name} {number}: {what}");
    let output = test.rt(["delete", "--force", id])?;
    ensure(output.code == Some(0), at(&output.stderr))?;
    ensure(!test.state_root().join(id).exists(), at("the state is left"))?;
    let cgroups = cgroups_of(id);
    ensure(cgroups.is_empty(), at(&format!("{cgroups:?} is left")))?;
    // Before its exec, init has the command line of the runtime process.
    wait_until(&at("no process is left"), || !has_process(id))
}

/// Kills a command at each of its system calls in turn. `prepare` returns the command for a
/// container's id.
fn kill_at_every_call(test: &Test, prepare: impl Fn(&str) -> Outcome<Command>) -> Outcome {
    test.only_rt()?;
    let id = test.id();
    let calls = calls(test, &prepare(&id)?)?;
    test.rt(["delete", "--force", &id])?.success()?;
    let mut killed = 0;
    for call in &calls {
        let id = test.id();
        killed += usize::from(kill_at(test, call, &prepare(&id)?)?);
        nothing_is_left(test, &id, call)?;
    }
    let most = calls.len() - calls.len() / 10 - 2;
    ensure(killed >= most, format!("{killed} of {} were killed", calls.len()))
}

fn create_can_be_killed_at_every_system_call(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    kill_at_every_call(test, |id| Ok(test.command(["create", "--bundle", &folder, id])))
}

fn run_can_be_killed_at_every_system_call(test: &Test) -> Outcome {
    let bundle = test.sh("exit 0")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    kill_at_every_call(test, |id| Ok(test.command(["run", "--bundle", &folder, id])))
}

/// `create` exchanges the first state for the last one.
fn a_filesystem_that_cannot_exchange_files_will_do(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    for option in ["--inject=renameat2:error=EINVAL", "--string-limit=1"] {
        let id = test.id();
        let create = test.command(["create", "--bundle", &folder, &id]);
        ensure(strace(test, option, &create)?.success(), "create fails")?;
        let calls = fs::read_to_string(test.folder.join("calls"))?;
        ensure_eq(calls.contains("(INJECTED)"), option.contains("inject"))?;
        ensure(calls.contains("RENAME_EXCHANGE"), "no exchange")?;
        let files = fs::read_dir(test.state_root().join(&id))?.flatten();
        let drafts = files.filter(|file| file.file_name().to_string_lossy().starts_with(".rt-"));
        ensure_eq(drafts.count(), 0)?;
        ensure_eq(Container::named(test, &id).status()?.as_str(), "created")?;
    }
    Ok(())
}

/// Does the same with a command for an existing container.
fn with_a_container(test: &Test, started: bool, before: &[&str], after: &[&str]) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    kill_at_every_call(test, |id| {
        test.rt(["create", "--bundle", &folder, id])?.success()?;
        if started {
            test.rt(["start", id])?.success()?;
        }
        Ok(test.command([before, &[id], after].concat()))
    })
}

fn start_can_be_killed_at_every_system_call(test: &Test) -> Outcome {
    with_a_container(test, false, &["start"], &[])
}

fn exec_can_be_killed_at_every_system_call(test: &Test) -> Outcome {
    with_a_container(test, true, &["exec"], &["true"])
}

fn delete_can_be_killed_at_every_system_call(test: &Test) -> Outcome {
    with_a_container(test, true, &["delete", "--force"], &[])
}

/// The test kills `create` after it has asked systemd for a scope and before systemd starts the
/// scope, which waits for a slow service. If `delete` did not wait, the scope and its name would
/// stay.
fn delete_waits_for_a_scope_that_systemd_is_to_make(test: &Test) -> Outcome {
    test.only_rt()?;
    if !test.host.by_systemd {
        return skip("cgroups are not made by systemd here");
    }
    let (id, bundle) = (test.id(), test.sh("exec sleep 60")?);
    let (slow, go) = (format!("{id}-slow.service"), test.folder.join("go"));
    let mut start = Command::new("systemd-run");
    start.args(["--no-block", "--property=Type=oneshot", &format!("--unit={slow}"), "sh", "-c"]);
    start.arg(format!("until [ -e {} ]; do sleep 0.05; done", go.display()));
    Output::of(start)?.success()?;
    let waiting = bundle.annotation("org.systemd.property.After", &format!("['{slow}']"));
    waiting.write()?;
    let create = test.command(waiting.command_line("create", &id));
    let outcome = is_made_and_deleted(test, &id, create, &go);
    fs::write(&go, "")?;
    outcome?;
    // The name is free at once.
    let again = test.sh("exec sleep 60")?;
    again.write()?;
    test.rt(again.command_line("create", &id))?.success()?;
    test.rt(["delete", "--force", &id])?.success().map(drop)
}

fn is_made_and_deleted(test: &Test, id: &str, mut create: Command, go: &Path) -> Outcome {
    let mut create = create.spawn()?;
    let mut job = Command::new("systemctl");
    job.args(["show", "--property=Job", "--value", &format!("rt-{id}.scope")]);
    let asked = wait_until("systemd is asked for the scope", || {
        job.output().is_ok_and(|output| output.stdout.iter().any(u8::is_ascii_digit))
    });
    create.kill()?;
    create.wait()?;
    asked?;
    let mut delete = test.command(["delete", "--force", id]).spawn()?;
    // Longer than a `delete` that does not wait, also in the emulated machine.
    let patience = Duration::from_secs(4);
    let early = wait_up_to(patience, "delete ends", || !matches!(delete.try_wait(), Ok(None)));
    fs::write(go, "")?;
    ensure(delete.wait()?.success(), "delete failed")?;
    ensure(early.is_err(), "delete did not wait for the scope")?;
    let cgroups = cgroups_of(id);
    ensure(cgroups.is_empty(), format!("{cgroups:?} is left"))
}

/// Runs a script in its own mount namespace. In the script, `"$@"` creates a container, and
/// `$STATE` is the root of the state.
fn in_a_shell(test: &Test, script: &str) -> Outcome<Output> {
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    fs::create_dir_all(test.state_root())?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&test.host.runtime);
    command.env("STATE", test.state_root()).env("RT", &test.host.runtime);
    if test.host.by_systemd {
        command.arg("--systemd-cgroup");
    }
    let id = test.id();
    command.env("ID", &id);
    command.arg("--root").arg(test.state_root()).args(["create", "--bundle"]).arg(&bundle.folder);
    command.arg(&id);
    let output = Output::of(command)?;
    let cgroups = cgroups_of(&id);
    ensure(cgroups.is_empty(), format!("{cgroups:?} is left: {}", output.stderr))?;
    wait_until("no process is left", || !has_process(&id))?;
    Ok(output)
}

fn create_on_a_full_disk_leaves_nothing(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut seen = Vec::new();
    let sizes = [
        "size=4k",
        "size=8k",
        "nr_inodes=1",
        "nr_inodes=2",
        "nr_inodes=3",
        "nr_inodes=4",
        "nr_inodes=5",
        "size=1m",
    ];
    for option in sizes {
        let script = format!(
            "mount -t tmpfs -o {option} state $STATE; \"$@\" && echo made || echo failed; ls $STATE/$ID 2>/dev/null | wc -l; $RT --root $STATE delete --force $ID; ls $STATE"
        );
        let output = in_a_shell(test, &script)?;
        let mut lines = output.stdout.lines();
        let (made, files) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        ensure(
            made == "made" || files == "0",
            format!("{option}: {}{}", output.stdout, output.stderr),
        )?;
        ensure(
            made == "made" || output.stderr.contains("No space left on device"),
            &output.stderr,
        )?;
        ensure_eq(lines.next(), None)?;
        seen.push(made == "made");
    }
    ensure(seen.contains(&false) && seen.last() == Some(&true), format!("{seen:?}"))
}

fn a_state_root_that_is_read_only_is_an_error(test: &Test) -> Outcome {
    let output = in_a_shell(test, "mount -t tmpfs -o ro state $STATE; \"$@\"")?;
    output.fails_with("Read-only file system").map(drop)
}

fn create_without_descriptors_leaves_nothing(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut made = 0;
    for number in 3..40 {
        let script = format!(
            "(ulimit -S -n {number}; \"$@\") && echo made; $RT --root $STATE delete --force $ID; ls $STATE"
        );
        let output = in_a_shell(test, &script)?;
        let is_made = output.stdout.contains("made");
        ensure(
            is_made || output.stderr.lines().count() == 1 && output.stderr.starts_with("rt: "),
            format!("with {number} descriptors: {}{}", output.stdout, output.stderr),
        )?;
        ensure(
            output.stdout.trim_start_matches("made").trim().is_empty(),
            format!("with {number} descriptors something is left: {}", output.stdout),
        )?;
        made += u32::from(is_made);
    }
    ensure(made > 0, "it was never made")
}

fn create_without_memory_leaves_nothing(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut made = Vec::new();
    // The address space in KiB.
    for size in [512, 1024, 2048, 3072, 4096, 5120, 6144, 8192, 16384, 65536] {
        let script = format!(
            "(ulimit -S -v {size}; \"$@\") && echo made; $RT --root $STATE delete --force $ID; ls $STATE"
        );
        let output = in_a_shell(test, &script)?;
        ensure(
            output.stdout.trim_start_matches("made").trim().is_empty(),
            format!("with {size} KiB something is left: {}", output.stdout),
        )?;
        made.push(output.stdout.contains("made"));
    }
    ensure(made.last() == Some(&true), format!("{made:?}"))
}

/// The container's cgroup has too little memory. The host has enough.
fn a_container_with_too_little_memory_leaves_nothing(test: &Test) -> Outcome {
    test.only_rt()?;
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    if test.host.lane == "v2" && !controllers.is_ok_and(|list| list.contains("memory")) {
        return skip("no cgroup controller `memory` in this lane");
    }
    for limit in [4096, 65_536, 262_144, 1_048_576] {
        let bundle = test.sh("true")?.edit(|config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
        });
        let id = test.id();
        let output = bundle.try_create(&id)?;
        if output.code == Some(0) {
            test.rt(["delete", "--force", &id])?.success()?;
            continue;
        }
        ensure(
            output.stderr.lines().count() == 1 && output.stderr.starts_with("rt: "),
            &output.stderr,
        )?;
        ensure(!test.state_root().join(&id).exists(), format!("{limit}: the state is left"))?;
        ensure_eq(cgroups_of(&id), Vec::new())?;
    }
    Ok(())
}

/// The kernel does this if the container has too little memory for init.
fn a_container_that_is_killed_while_it_is_made_leaves_nothing(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "kill -KILL $(grep -o '\"pid\":[0-9]*' | cut -d: -f2)";
    let hook =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
    let bundle = test.sh("true")?.edit(|config| config["hooks"] = json!({ "createRuntime": hook }));
    let id = test.id();
    bundle.try_create(&id)?.fails_with("init was killed")?;
    ensure(!test.state_root().join(&id).exists(), "the state is left")?;
    ensure_eq(cgroups_of(&id), Vec::new())
}

/// The kernel uses pids again.
fn another_process_with_the_same_number_is_left_alone(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    // The kernel counts start times in hundredths of a second.
    std::thread::sleep(Duration::from_millis(50));
    let mut other = Command::new("sleep").arg("60").spawn()?;
    let file = test.state_root().join(&container.id).join("state.json");
    let good = fs::read_to_string(&file)?;
    let mut state: Value = serde_json::from_str(&good)?;
    state["pid"] = json!(other.id());
    fs::write(&file, state.to_string())?;
    let check = || -> Outcome {
        ensure_eq(container.status()?.as_str(), "stopped")?;
        test.rt(["kill", &container.id, "KILL"])?.fails_with("container not running")?;
        test.rt(["exec", &container.id, "true"])?.fails_with("stopped container").map(drop)
    };
    let outcome = check();
    fs::write(&file, good)?;
    let spared = other.try_wait()?.is_none();
    other.kill()?;
    other.wait()?;
    outcome?;
    ensure(spared, "the other process was killed")
}

fn a_state_that_is_cut_short_can_be_deleted(test: &Test) -> Outcome {
    test.only_rt()?;
    let length = {
        let container = test.sh("exec sleep 60")?.create()?;
        fs::metadata(test.state_root().join(&container.id).join("state.json"))?.len()
    };
    for keep in (0..length).step_by(usize::try_from(length / 7)?) {
        let container = test.sh("exec sleep 60")?.start()?;
        let file = test.state_root().join(&container.id).join("state.json");
        fs::OpenOptions::new().write(true).open(&file)?.set_len(keep)?;
        for command in [&["state"][..], &["start"], &["delete"]] {
            let output = test.rt(command.iter().chain([&container.id.as_str()]))?;
            ensure(output.code == Some(1) && output.stderr.lines().count() == 1, output.stderr)?;
        }
        let output = test.rt(["delete", "--force", &container.id])?;
        ensure(output.code == Some(0), output.stderr)?;
        ensure_eq(cgroups_of(&container.id), Vec::new())?;
    }
    Ok(())
}
