//! `pause`, `resume`, and `ps`.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Container, Outcome, Test, ensure, ensure_eq, wait_until};

super::tests! { "freezer":
    a_paused_container_stands_still, a_paused_module_goes_on, a_stopped_module_goes_on, a_paused_container_can_be_killed, a_paused_container_can_be_deleted_by_force,
    a_container_that_froze_a_part_of_itself_can_be_killed, a_container_that_froze_a_part_of_itself_can_be_deleted_by_force,
    a_container_that_froze_a_part_of_itself_while_it_died_can_be_deleted, pausing_twice,
    resuming_what_is_not_paused, pausing_what_has_ended, ps_lists_the_processes, ps_passes_its_arguments_on, ps_without_a_cgroup,
}

/// A container that prints increasing numbers.
fn counting(test: &Test) -> Outcome<Container<'_>> {
    let container = test.sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")?.start()?;
    container.wait_for_output("3\n")?;
    Ok(container)
}

fn a_paused_container_stands_still(test: &Test) -> Outcome {
    let container = counting(test)?;
    container.rt(&["pause"])?.success()?;
    ensure_eq(container.status()?.as_str(), "paused")?;
    let before = container.stdout()?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    ensure_eq(container.stdout()?, before.clone())?;
    container.rt(&["resume"])?.success()?;
    ensure_eq(container.status()?.as_str(), "running")?;
    wait_until("it counts on", || container.stdout().is_ok_and(|out| out.len() > before.len()))
}

/// The pause cuts the module's system call short.
fn a_paused_module_goes_on(test: &Test) -> Outcome {
    for args in [&["sleep"][..], &["accept", "8080"]] {
        let container = test.wasm("probe", args)?.start()?;
        container.wait_for_output("ready\n")?;
        container.rt(&["pause"])?.success()?;
        container.rt(&["resume"])?.success()?;
        container.kill("STOP")?;
        container.kill("CONT")?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        ensure_eq(container.status()?.as_str(), "running")?;
        ensure_eq(container.stderr()?.as_str(), "")?;
    }
    Ok(())
}

/// The module wakes at the same time as without the stop.
fn a_stopped_module_goes_on(test: &Test) -> Outcome {
    let container = test.wasm("probe", &["sleep", "2000"])?.start()?;
    container.wait_for_output("ready\n")?;
    for _ in 0..5 {
        container.kill("STOP")?;
        container.kill("CONT")?;
    }
    container.wait()?;
    container.wait_for_output("ready\nawake\n")
}

fn a_paused_container_can_be_killed(test: &Test) -> Outcome {
    let container = counting(test)?;
    container.rt(&["pause"])?.success()?;
    container.kill("KILL")?;
    container.wait()
}

fn a_paused_container_can_be_deleted_by_force(test: &Test) -> Outcome {
    let container = counting(test)?;
    container.rt(&["pause"])?.success()?;
    ensure(container.rt(&["delete"])?.code != Some(0), "deleted without --force")?;
    container.rt(&["delete", "--force"])?.success().map(drop)
}

/// If a container may write to its cgroup, a process can wait in a frozen cgroup below.
fn partly_frozen(test: &Test) -> Outcome<Container<'_>> {
    let script = "for way in /cgroup /cgroup/freezer; do test -e $way/cgroup.procs || continue; \
                    mkdir $way/ice; sleep 60 & echo $! >$way/ice/cgroup.procs; \
                    for state in cgroup.freeze=1 freezer.state=FROZEN; do \
                      file=$way/ice/${state%=*}; test ! -e $file || echo ${state#*=} >$file; done; done; \
                  echo ready; exec sleep 60";
    let mount = json!({ "destination": "/cgroup", "type": "cgroup", "source": "cgroup" });
    let bundle = test.sh(script)?.namespace(json!({ "type": "cgroup" })).mount(mount);
    let container = bundle.start()?;
    container.wait_for_output("ready\n")?;
    Ok(container)
}

fn a_container_that_froze_a_part_of_itself_can_be_killed(test: &Test) -> Outcome {
    let container = partly_frozen(test)?;
    container.kill("KILL")?;
    container.wait()
}

fn a_container_that_froze_a_part_of_itself_can_be_deleted_by_force(test: &Test) -> Outcome {
    partly_frozen(test)?.rt(&["delete", "--force"])?.success().map(drop)
}

/// As if the container had frozen the process after `kill` had thawed all of them.
fn a_container_that_froze_a_part_of_itself_while_it_died_can_be_deleted(test: &Test) -> Outcome {
    let container = partly_frozen(test)?;
    let pid = rustix::process::Pid::from_raw(container.pid()?).ok_or("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    container.rt(&["delete"])?.success().map(drop)
}

fn pausing_twice(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = counting(test)?;
    container.rt(&["pause"])?.success()?;
    container.rt(&["pause"])?.success()?;
    container.rt(&["resume"])?.success()?;
    container.rt(&["resume"])?.fails_with("container not paused").map(drop)
}

fn resuming_what_is_not_paused(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = counting(test)?;
    container.rt(&["resume"])?.fails_with("container not paused")?;
    container.kill("KILL")?;
    container.wait()?;
    container.rt(&["resume"])?.fails_with("container not paused").map(drop)
}

fn pausing_what_has_ended(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exit 0")?.start()?;
    container.wait()?;
    container.rt(&["pause"])?.fails_with("container not running")?;
    test.rt(["pause", "nobody"])?.fails_with("does not exist").map(drop)
}

fn ps_lists_the_processes(test: &Test) -> Outcome {
    let container = test.sh("sleep 61 & sleep 62 & echo done; wait")?.start()?;
    container.wait_for_output("done")?;
    let json = container.rt(&["ps", "--format", "json"])?.success()?.stdout;
    let pids: Vec<i64> = serde_json::from_str::<Value>(&json)?
        .as_array()
        .ok_or("no array")?
        .iter()
        .filter_map(Value::as_i64)
        .collect();
    ensure(pids.len() == 3 && pids.contains(&container.pid()?.into()), &json)?;
    let table = container.rt(&["ps"])?.success()?.stdout;
    let lines: Vec<&str> = table.lines().collect();
    ensure(lines.len() == 4 && lines[0].contains("PID") && table.contains("sleep 62"), table)
}

fn ps_passes_its_arguments_on(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let pid = container.pid()?;
    let mut rows = Vec::new();
    // At first, the shell runs.
    wait_until("`sleep` runs", || {
        let table = test.rt(["ps", &container.id, "-e", "-o", "pid,comm"]);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        rows = table.map(|table| table.stdout.lines().map(words).collect()).unwrap_or_default();
        rows.iter().any(|row: &String| row.ends_with(" sleep"))
    })?;
    ensure_eq(rows, vec!["PID COMMAND".to_owned(), format!("{pid} sleep")])?;
    test.only_rt()?;
    test.rt(["ps", &container.id, "-e", "-o", "comm"])?.fails_with("no column PID")?;
    test.rt(["ps", &container.id, "--no-such-flag"])?.fails_with("`ps --no-such-flag`").map(drop)
}

fn ps_without_a_cgroup(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["cgroupsPath"] = json!("");
    });
    bundle.write()?;
    let id = test.id();
    let folder = bundle.folder.display().to_string();
    let flag = "--cgroup-manager=disabled";
    test.rt([flag, "run", "--detach", "--bundle", &folder, &id])?.success()?;
    let state: Value = serde_json::from_str(&test.rt(["state", &id])?.success()?.stdout)?;
    let pid = state["pid"].to_string();
    test.rt(["ps", "-f", "json", &id])?.success()?.stdout(&format!("[{pid}]\n"))?;
    test.rt(["pause", &id])?.fails_with("no cgroup")?;
    ensure(fs::metadata(format!("/proc/{pid}")).is_ok(), "it has ended")?;
    test.rt(["delete", "--force", &id])?.success().map(drop)
}
