//! An upgrade, and the step back to the version before: one `rt` uses what another one has made.
//!
//! `formats/` has a stored state of each earlier format. `RT_BEFORE` names an older `rt` for the
//! tests that use two programs (`make test-upgrade`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::{
    Bundle, Container, Outcome, Output, Test, copy_program, ensure, ensure_eq, skip, wait_until,
};

super::tests! { "upgrade":
    a_container_of_each_stored_format_is_listed_entered_killed_and_deleted,
    a_stopped_container_of_each_stored_format_is_deleted,
    a_created_container_of_each_stored_format_is_started,
    a_state_of_a_later_format_is_named_and_left_alone,
    a_program_that_is_replaced_under_load_loses_no_container,
    a_program_that_is_removed_and_comes_back_loses_no_container,
    either_version_lists_enters_kills_and_deletes_what_the_other_made,
    either_version_starts_what_the_other_created,
    either_version_resumes_what_the_other_paused,
    either_version_updates_and_counts_what_the_other_made,
    either_version_deletes_what_the_other_left_stopped,
    either_version_lists_and_deletes_a_module_of_the_other,
    either_version_enters_a_module_of_the_other,
    either_version_forces_the_deletion_of_what_the_other_runs,
}

const FORMATS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/formats");

/// The stored formats, by name.
fn formats() -> Outcome<Vec<(String, Value)>> {
    let Ok(folder) = fs::read_dir(FORMATS) else { return skip("the sources are not here") };
    let mut formats = Vec::new();
    for file in folder.flatten() {
        let path = file.path();
        if path.extension().is_some_and(|end| end == "json") {
            let name = file.file_name().to_string_lossy().into_owned();
            formats.push((name, serde_json::from_slice(&fs::read(path)?)?));
        }
    }
    ensure(formats.len() >= 2, "formats are missing")?;
    Ok(formats)
}

/// Replaces each `@POINTER@` by that field of `now`. Leaves out what `now` does not have.
fn fill(format: &Value, now: &Value) -> Value {
    match format {
        Value::String(text) => {
            let pointer = text.strip_prefix('@').and_then(|text| text.strip_suffix('@'));
            pointer.map_or(format.clone(), |pointer| {
                now.pointer(pointer).cloned().unwrap_or(Value::Null)
            })
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), fill(value, now)));
            Value::Object(fields.filter(|(_, value)| !value.is_null()).collect())
        }
        other => other.clone(),
    }
}

fn state_file(container: &Container<'_>) -> PathBuf {
    container.test.state_root().join(&container.id).join("state.json")
}

/// Stores the state of a container in an earlier format.
fn store(container: &Container<'_>, format: &Value) -> Outcome {
    let path = state_file(container);
    let now: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let then = fill(format, &now);
    // A version that did not store the mark of its cgroup did not make it either.
    if then["cgroup"]["mark"].is_null() {
        for folder in now["cgroup"]["paths"].as_array().into_iter().flatten() {
            let folder = folder.as_str().unwrap_or_default();
            for attribute in ["trusted.rt.container", "user.rt.container"] {
                // Only one of the directories has a mark, and root's marks are not a user's.
                let _ = rustix::fs::removexattr(folder, attribute);
            }
        }
    }
    Ok(fs::write(path, serde_json::to_vec(&then)?)?)
}

const SLEEPS: &str = "trap 'exit 0' TERM; echo ready; sleep 600 & wait";

/// Does to a running container what its callers do, and deletes it.
fn use_and_delete(
    container: &Container<'_>,
    program: &dyn Fn(&[&str]) -> Outcome<Output>,
) -> Outcome {
    let id = container.id.as_str();
    let listed = program(&["list", "--quiet"])?.success()?.stdout;
    ensure(listed.lines().any(|line| line == id), &listed)?;
    let state: Value = serde_json::from_str(&program(&["state", id])?.success()?.stdout)?;
    ensure_eq(state["status"].as_str(), Some("running"))?;
    program(&["exec", id, "/bin/sh", "-c", "exit 7"])?.code(7)?;
    ensure(program(&["ps", id])?.success()?.stdout.contains("sleep 600"), "no processes")?;
    program(&["kill", id, "TERM"])?.success()?;
    wait_until("it has stopped", || {
        program(&["state", id]).is_ok_and(|output| output.stdout.contains("\"stopped\""))
    })?;
    program(&["delete", id])?.success()?;
    let listed = program(&["list", "--quiet"])?.success()?.stdout;
    ensure(!listed.lines().any(|line| line == id), listed)
}

fn a_container_of_each_stored_format_is_listed_entered_killed_and_deleted(test: &Test) -> Outcome {
    test.only_rt()?;
    for (name, format) in formats()? {
        let container = test.sh(SLEEPS)?.start()?;
        container.wait_for_output("ready")?;
        store(&container, &format)?;
        use_and_delete(&container, &|args| test.rt(args)).map_err(|stop| explained(&name, stop))?;
    }
    Ok(())
}

fn explained(what: &str, stop: crate::harness::Stop) -> crate::harness::Stop {
    match stop {
        crate::harness::Stop::Failed(text) => {
            crate::harness::Stop::Failed(format!("{what}: {text}"))
        }
        skipped @ crate::harness::Stop::Skipped(_) => skipped,
    }
}

fn a_stopped_container_of_each_stored_format_is_deleted(test: &Test) -> Outcome {
    test.only_rt()?;
    for (_, format) in formats()? {
        let container = test.sh("true")?.start()?;
        container.wait()?;
        store(&container, &format)?;
        ensure_eq(container.status()?.as_str(), "stopped")?;
        container.delete()?;
    }
    Ok(())
}

fn a_created_container_of_each_stored_format_is_started(test: &Test) -> Outcome {
    test.only_rt()?;
    for (_, format) in formats()? {
        let container = test.sh("echo started")?.create()?;
        store(&container, &format)?;
        ensure_eq(container.status()?.as_str(), "created")?;
        container.start()?;
        container.wait_for_output("started")?;
        container.wait()?;
        container.delete()?;
    }
    Ok(())
}

/// After a step back by more than the versions allow. What this version does not know it leaves
/// alone.
fn a_state_of_a_later_format_is_named_and_left_alone(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh(SLEEPS)?.start()?;
    let path = state_file(&container);
    let now = fs::read(&path)?;
    let mut later: Value = serde_json::from_slice(&now)?;
    later["version"] = Value::from(1000);
    fs::write(&path, serde_json::to_vec(&later)?)?;
    let said = test.rt(["list"])?.success()?.stderr;
    ensure(said.contains(&format!("leave out container `{}`", container.id)), said)?;
    for command in [&["state"][..], &["delete", "--force"], &["exec"]] {
        container.rt(command)?.fails_with("format 1000 was written by a newer rt")?;
    }
    fs::write(&path, now)?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// The runtime at a path of its own, beside links to the engines.
fn own_copy(test: &Test) -> Outcome<PathBuf> {
    let folder = test.folder.join("installed/bin");
    fs::create_dir_all(&folder)?;
    let copy = folder.join("rt");
    copy_program(&test.host.runtime, &copy)?;
    Ok(copy)
}

fn with(test: &Test, program: &Path, args: &[&str]) -> Outcome<Output> {
    let own = test.command(args);
    let mut command = Command::new(program);
    command.args(own.get_args()).stdin(std::process::Stdio::null());
    Output::of(command)
}

/// As a package manager does it: the new file takes the name of the old one.
fn a_program_that_is_replaced_under_load_loses_no_container(test: &Test) -> Outcome {
    test.only_rt()?;
    let program = own_copy(test)?;
    let long = test.sh(SLEEPS)?.start()?;
    long.wait_for_output("ready")?;
    let stop = AtomicBool::new(false);
    let load = || -> Outcome<usize> {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            let bundle = test.sh("true")?;
            bundle.write()?;
            let id = test.id();
            let line = bundle.command_line("run", &id);
            let line: Vec<&str> = line.iter().map(String::as_str).collect();
            with(test, &program, &line)?.success()?;
            with(test, &program, &["exec", &long.id, "/bin/true"])?.success()?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let rounds = std::thread::scope(|scope| {
        let loads: Vec<_> = (0..2).map(|_| scope.spawn(load)).collect();
        let replaced = (0..20).try_for_each(|_| -> Outcome {
            let draft = program.with_extension("new");
            copy_program(&test.host.runtime, &draft)?;
            Ok(fs::rename(&draft, &program)?)
        });
        // The load ends only by this.
        stop.store(true, Ordering::Relaxed);
        let mut rounds = 0;
        for load in loads {
            rounds += load.join().map_err(|_| "a thread panicked")??;
        }
        replaced.map(|()| rounds)
    })?;
    ensure(rounds >= 2, "there was no load")?;
    use_and_delete(&long, &|args| with(test, &program, args))
}

fn a_program_that_is_removed_and_comes_back_loses_no_container(test: &Test) -> Outcome {
    test.only_rt()?;
    let program = own_copy(test)?;
    let bundle = test.sh(SLEEPS)?;
    bundle.write()?;
    let (created, running) = (test.id(), test.id());
    for id in [&created, &running] {
        create_by(&bundle, &program, id)?;
    }
    with(test, &program, &["start", &running])?.success()?;
    fs::remove_file(&program)?;
    let (created, running) = (Container::named(test, &created), Container::named(test, &running));
    ensure_eq(running.status()?.as_str(), "running")?;
    copy_program(&test.host.runtime, &program)?;
    with(test, &program, &["start", &created.id])?.success()?;
    for container in [&created, &running] {
        wait_until("its process sleeps", || {
            container.rt(&["ps"]).is_ok_and(|output| output.stdout.contains("sleep 600"))
        })?;
        use_and_delete(container, &|args| with(test, &program, args))?;
    }
    Ok(())
}

/// Runs `create` of a program, with the container's output in the files of [`Container`].
fn create_by<'a>(bundle: &Bundle<'a>, program: &Path, id: &str) -> Outcome<Container<'a>> {
    bundle.write()?;
    let test = bundle.test;
    let own = test.command(bundle.command_line("create", id));
    let mut command = Command::new(program);
    command.args(own.get_args()).stdin(std::process::Stdio::null());
    Container::create(test, id, command)
}

/// The tested program and an older one, as (maker, user), both ways.
fn either_way(test: &Test, each: impl Fn(&Path, &Path) -> Outcome) -> Outcome {
    test.only_rt()?;
    let Some(before) = std::env::var_os("RT_BEFORE").map(PathBuf::from) else {
        return skip("`RT_BEFORE` names no older rt: `make test-upgrade`");
    };
    let now = &test.host.runtime;
    each(&before, now).map_err(|stop| explained("made by the older one", stop))?;
    each(now, &before).map_err(|stop| explained("used by the older one", stop))
}

fn either_version_lists_enters_kills_and_deletes_what_the_other_made(test: &Test) -> Outcome {
    either_way(test, |maker, user| {
        let container = create_by(&test.sh(SLEEPS)?, maker, &test.id())?;
        with(test, maker, &["start", &container.id])?.success()?;
        container.wait_for_output("ready")?;
        use_and_delete(&container, &|args| with(test, user, args))
    })
}

fn either_version_starts_what_the_other_created(test: &Test) -> Outcome {
    either_way(test, |maker, user| {
        let container = create_by(&test.sh(SLEEPS)?, maker, &test.id())?;
        with(test, user, &["start", &container.id])?.success()?;
        container.wait_for_output("ready")?;
        use_and_delete(&container, &|args| with(test, user, args))
    })
}

fn either_version_resumes_what_the_other_paused(test: &Test) -> Outcome {
    either_way(test, |maker, user| {
        let container = create_by(&test.sh(SLEEPS)?, maker, &test.id())?;
        let id = container.id.as_str();
        with(test, maker, &["start", id])?.success()?;
        container.wait_for_output("ready")?;
        let paused = with(test, maker, &["pause", id])?;
        if paused.code != Some(0) {
            return skip(paused.stderr);
        }
        ensure(with(test, user, &["state", id])?.stdout.contains("\"paused\""), "not paused")?;
        with(test, user, &["resume", id])?.success()?;
        use_and_delete(&container, &|args| with(test, user, args))
    })
}

fn either_version_updates_and_counts_what_the_other_made(test: &Test) -> Outcome {
    crate::topics::needs(test, "pids")?;
    either_way(test, |maker, user| {
        let container = create_by(&test.sh(SLEEPS)?, maker, &test.id())?;
        let id = container.id.as_str();
        with(test, maker, &["start", id])?.success()?;
        container.wait_for_output("ready")?;
        with(test, user, &["update", "--pids-limit", "77", id])?.success()?;
        let stats = with(test, maker, &["events", "--stats", id])?.success()?.stdout;
        let stats: Value = serde_json::from_str(&stats)?;
        ensure_eq(stats["data"]["pids"]["limit"].as_u64(), Some(77))?;
        use_and_delete(&container, &|args| with(test, user, args))
    })
}

fn either_version_deletes_what_the_other_left_stopped(test: &Test) -> Outcome {
    either_way(test, |maker, user| {
        let container = create_by(&test.sh("true")?, maker, &test.id())?;
        with(test, maker, &["start", &container.id])?.success()?;
        container.wait()?;
        with(test, user, &["delete", &container.id])?.success()?;
        Ok(())
    })
}

/// Whether a program has an engine for modules beside it. An engine belongs to a version of `rt`.
fn has_engine(program: &Path) -> bool {
    program.parent().is_some_and(|bin| bin.join("../libexec/rt/wasmedge").exists())
}

/// Only the version that makes the container requires an engine.
fn either_version_lists_and_deletes_a_module_of_the_other(test: &Test) -> Outcome {
    if !has_engine(&test.host.runtime) {
        return skip("the engine is not here");
    }
    either_way(test, |maker, user| {
        if !has_engine(maker) {
            return Ok(());
        }
        let container = create_by(&test.wasm("probe", &["sleep", "600000"])?, maker, &test.id())?;
        let id = container.id.as_str();
        with(test, maker, &["start", id])?.success()?;
        container.wait_for_output("ready")?;
        let listed = with(test, user, &["list", "--quiet"])?.success()?.stdout;
        ensure(listed.lines().any(|line| line == id), listed)?;
        let state: Value = serde_json::from_str(&with(test, user, &["state", id])?.stdout)?;
        ensure_eq(state["status"].as_str(), Some("running"))?;
        with(test, user, &["kill", id, "KILL"])?.success()?;
        container.wait()?;
        with(test, user, &["delete", id])?.success()?;
        Ok(())
    })
}

fn either_version_enters_a_module_of_the_other(test: &Test) -> Outcome {
    either_way(test, |maker, user| {
        if !has_engine(maker) || !has_engine(user) {
            return skip("one of the two has no engine");
        }
        let container = create_by(&test.wasm("probe", &["sleep", "600000"])?, maker, &test.id())?;
        let id = container.id.as_str();
        with(test, maker, &["start", id])?.success()?;
        with(test, user, &["exec", id, "/probe.wasm", "exit", "7"])?.code(7)?;
        with(test, user, &["kill", id, "KILL"])?.success()?;
        container.wait()?;
        with(test, user, &["delete", id])?.success()?;
        Ok(())
    })
}

fn either_version_forces_the_deletion_of_what_the_other_runs(test: &Test) -> Outcome {
    either_way(test, |maker, user| {
        let container = create_by(&test.sh("sleep 600")?, maker, &test.id())?;
        with(test, maker, &["start", &container.id])?.success()?;
        with(test, user, &["delete", "--force", &container.id])?.success()?;
        Ok(())
    })
}
