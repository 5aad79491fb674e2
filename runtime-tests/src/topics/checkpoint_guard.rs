//! Interruptions of a restore: `rt` or CRIU is killed, or the images make processes where `rt` does
//! not look. No process may run on that `rt` has not checked.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::checkpoint::{COUNT, images, needs_criu, restore, restore_command, start, write};
use super::checkpoint_attacks::is_refused;
use super::checkpoint_kinds::{bytes, change, with_inside};
use crate::harness::{
    Bundle, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, has_process, skip, wait_until,
    wait_up_to,
};

super::tests! { "checkpoint_guard":
    a_process_outside_of_the_tree_is_refused, a_process_outside_of_a_shared_tree_is_refused,
    nothing_runs_on_when_rt_is_killed_before_all_is_checked, nothing_runs_on_without_a_cgroup_when_rt_is_killed,
    nothing_runs_on_when_rt_and_its_guard_are_killed, a_guard_has_open_what_it_uses, a_signal_before_all_is_checked_undoes_the_restore, a_killed_criu_is_noticed,
    nothing_runs_on_when_criu_is_killed_before_all_is_checked, a_killed_criu_leaves_no_directory,
    a_file_of_another_user_is_not_read, images_are_regular_files, a_checkpoint_before_is_looked_at_too,
    a_process_without_threads_is_refused, an_area_for_rseq_is_in_the_own_memory,
    no_path_of_images_leads_out, images_empty_no_file, a_read_only_volume_is_so_from_the_beginning,
    a_deleted_file_is_not_made_on_the_host,
}

/// A container with a unique mark in its command line.
fn marked<'a>(test: &'a Test, script: &str) -> Outcome<(Bundle<'a>, String)> {
    let mark = test.id();
    Ok((test.sh(&format!("{script} # {mark}"))?, mark))
}

/// Starts a container, and writes its checkpoint when the container has begun to count.
pub(super) fn checkpoint(bundle: &Bundle<'_>) -> Outcome {
    let container = start(bundle)?;
    container.wait_for_output("1\n")?;
    write(bundle.test, &container, &[])?.success().map(drop)
}

fn is_over(mark: &str) -> Outcome {
    wait_until("no process is left", || !has_process(mark))
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The range of the first field with this number in a protobuf message. The field is a string of
/// bytes.
fn field(message: &[u8], number: u8) -> Outcome<std::ops::Range<usize>> {
    let mut at = 0;
    let varint = |at: &mut usize| -> Outcome<usize> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = *message.get(*at).ok_or("it is too short")?;
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
    };
    loop {
        let tag = varint(&mut at)?;
        match tag & 7 {
            0 => drop(varint(&mut at)?),
            2 => {
                let length = varint(&mut at)?;
                if tag >> 3 == usize::from(number) {
                    return Ok(at..at + length);
                }
                at += length;
            }
            kind => return Err(format!("a field of the kind {kind}").into()),
        }
    }
}

/// Changes the image of a process so that the process is dead (`TASK_DEAD`). The state is the first
/// field there.
fn call_dead(test: &Test, pid: &str) -> Outcome {
    let path = images(test).join(format!("core-{pid}.img"));
    let mut image = fs::read(&path)?;
    let task = field(&image[12..], 3)?.start + 12;
    ensure_eq(&image[task..task + 2], &[0x08, 1])?;
    image[task + 1] = 2;
    Ok(fs::write(path, image)?)
}

/// CRIU makes the child of a dead process and ends that process. Then the child has another parent.
fn orphan(test: &Test, bundle: &Bundle<'_>, mark: &str) -> Outcome {
    bundle.write()?;
    let id = test.id();
    // In the foreground, so that a parent reaps the container's first process.
    let mut run = test.command(bundle.command_line("run", &id));
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = run.spawn()?;
    wait_until("it runs", || has_process(mark))?;
    let state: Value = serde_json::from_str(&test.rt(["state", &id])?.success()?.stdout)?;
    let first = i32::try_from(state["pid"].as_i64().ok_or("it has no pid")?)?;
    wait_until("it has a child of a child", || {
        children(first).first().is_some_and(|child| children(*child).len() == 1)
    })?;
    let dead = children(first)[0];
    let child = children(dead)[0];
    let inside = fs::read_to_string(format!("/proc/{dead}/status"))?;
    let inside = inside.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = inside.and_then(|it| it.split_whitespace().last()).ok_or("it has no number")?;
    let images = images(test).display().to_string();
    test.rt(["checkpoint", "--image-path", &images, &id])?.success()?;
    run.wait()?;
    // CRIU gives the restored processes the same pids.
    let is_free = |pid| !Path::new("/proc").join(format!("{pid}")).exists();
    let free = || [first, dead, child].into_iter().all(is_free);
    if wait_up_to(Duration::from_secs(30), "their numbers are free", free).is_err() {
        return skip("the first process takes no note of the ends of its children");
    }
    call_dead(test, inside)?;
    is_refused(bundle, "of the checkpoint is not a descendant of its first process")?;
    is_over(mark)
}

const NESTED: &str = "(sh -c 'while :; do sleep 1000; done; true";

fn a_process_outside_of_the_tree_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let mark = test.id();
    let bundle = test.sh(&format!("{NESTED} # {mark}' & wait) & wait"))?.edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    orphan(test, &bundle, &mark)
}

fn a_process_outside_of_a_shared_tree_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    // This process reaps every process whose parent it becomes.
    let pause = test.perl("$SIG{CHLD} = 'IGNORE'; sleep 1000")?.start()?;
    let path = format!("/proc/{}/ns/pid", pause.pid()?);
    let mark = test.id();
    let bundle = test.sh(&format!("{NESTED} # {mark}' & wait) & wait"))?.edit(|config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            if namespace["type"] == "pid" {
                namespace["path"] = json!(path);
            }
        }
    });
    orphan(test, &bundle, &mark)
}

/// Starts a restore that takes long where it sets the limits of the restored processes, and waits
/// until it is there.
fn stand_where_it_is_checked(
    bundle: &Bundle<'_>,
    id: &str,
    flags: &[&str],
    long: &str,
) -> Outcome<Child> {
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let log = images(bundle.test).join("restore.log");
    let _ = fs::remove_file(&log);
    let restore = restore_command(bundle, id, &["--detach"]);
    let mut command = Command::new("strace");
    command.arg(format!("--inject=ioprio_set:delay_enter={long}")).arg("--output=/dev/null");
    command.arg(restore.get_program()).args(flags).args(restore.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn()?;
    wait_up_to(Duration::from_secs(30), "it is checked", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("Running pre-resume"))
    })?;
    Ok(child)
}

/// With an I/O priority, `rt` calls `ioprio_set` for the restored processes, and strace can delay
/// that call.
fn long_checked<'a>(bundle: Bundle<'a>) -> Bundle<'a> {
    bundle.edit(|config| {
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 5 });
    })
}

fn kill_a_child(of: &Child, signal: &str) -> Outcome {
    let of = i32::try_from(of.id())?;
    wait_until("strace has a child", || !children(of).is_empty())?;
    let child = children(of).first().ok_or("it has ended")?.to_string();
    let killed = Command::new("kill").args(["-s", signal, &child]).status()?;
    ensure(killed.success(), "it has ended")
}

/// The number of directories in which CRIU has mounted cgroups.
fn yards(test: &Test) -> Outcome<usize> {
    let names = fs::read_dir(images(test))?.flatten().map(|entry| entry.file_name());
    Ok(names.filter(|name| name.to_string_lossy().starts_with(".criu.cgyard.")).count())
}

fn killed_where_it_is_checked(test: &Test, flags: &[&str]) -> Outcome {
    needs_criu()?;
    let (bundle, mark) = marked(test, &format!("echo 1; sleep 1; : >/ran; {COUNT}"))?;
    let bundle = long_checked(bundle);
    checkpoint(&bundle)?;
    let id = test.id();
    let mut restore = stand_where_it_is_checked(&bundle, &id, flags, "60000000")?;
    kill_a_child(&restore, "KILL")?;
    restore.wait()?;
    is_over(&mark)?;
    ensure(!bundle.rootfs().join("ran").exists(), "it ran on")?;
    wait_until("what CRIU has made is removed", || yards(test).is_ok_and(|left| left == 0))?;
    wait_until("it is stopped", || {
        test.rt(["state", &id]).is_ok_and(|state| state.stdout.contains("\"stopped\""))
    })?;
    test.rt(["delete", &id])?.success()?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn nothing_runs_on_when_rt_is_killed_before_all_is_checked(test: &Test) -> Outcome {
    killed_where_it_is_checked(test, &[])
}

fn nothing_runs_on_without_a_cgroup_when_rt_is_killed(test: &Test) -> Outcome {
    killed_where_it_is_checked(test, &["--cgroup-manager=disabled"])
}

/// The processes of a restore that runs under strace.
struct Restoring {
    rt: i32,
    criu: i32,
    guard: i32,
}

fn restoring(strace: &Child) -> Outcome<Restoring> {
    let rt = *children(i32::try_from(strace.id())?).first().ok_or("rt has ended")?;
    let made = children(rt);
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let guard = made.iter().find(|pid| program(**pid) == program(rt));
    let (criu, guard) = (made.first().ok_or("CRIU has ended")?, guard.ok_or("it has no guard")?);
    Ok(Restoring { rt, criu: *criu, guard: *guard })
}

/// Besides the standard streams, the guard has a pipe, a pidfd of CRIU, CRIU's socket, and the
/// directory of the log.
fn a_guard_has_open_what_it_uses(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = long_checked(test.sh(COUNT)?);
    checkpoint(&bundle)?;
    let id = test.id();
    let mut restore = stand_where_it_is_checked(&bundle, &id, &[], "2000000")?;
    let folder = format!("/proc/{}/fd", restoring(&restore)?.guard);
    let mut open = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        if number > 2 {
            let to = fs::read_link(entry.path())?.display().to_string();
            open.push(to.split([':', '[']).next().unwrap_or_default().to_owned());
        }
    }
    open.sort_unstable();
    restore.wait()?;
    test.rt(["delete", "--force", &id])?.success()?;
    let images = images(test).canonicalize()?.display().to_string();
    ensure_eq(open, vec![images, "anon_inode".to_owned(), "pipe".to_owned(), "socket".to_owned()])
}

/// As if the kernel had killed all processes of their cgroup.
fn nothing_runs_on_when_rt_and_its_guard_are_killed(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, mark) = marked(test, &format!("echo 1; sleep 1; : >/ran; {COUNT}"))?;
    let bundle = long_checked(bundle);
    checkpoint(&bundle)?;
    let id = test.id();
    let mut restore = stand_where_it_is_checked(&bundle, &id, &[], "60000000")?;
    let Restoring { rt, criu, guard } = restoring(&restore)?;
    let all = [rt, guard].map(|pid| pid.to_string());
    ensure(Command::new("kill").arg("-KILL").args(all).status()?.success(), "they have ended")?;
    restore.wait()?;
    let state = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    wait_until("CRIU is stopped", || state(criu) == Some('T'))?;
    ensure(has_process(&mark), "it was killed by somebody")?;
    // A program of the same session may do that, whoever its user is.
    let criu_again = ["-CONT", &criu.to_string()];
    ensure(Command::new("kill").args(criu_again).status()?.success(), "CRIU has ended")?;
    let ran = bundle.rootfs().join("ran");
    ensure(wait_up_to(Duration::from_secs(3), "", || ran.exists()).is_err(), "it ran on")?;
    ensure_eq(test.rt(["delete", "--force", &id])?.code, Some(0))?;
    is_over(&mark)?;
    wait_until("CRIU has ended", || !matches!(state(criu), Some('T' | 't' | 'S' | 'R')))?;
    ensure(!ran.exists(), "it ran on")?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn a_signal_before_all_is_checked_undoes_the_restore(test: &Test) -> Outcome {
    needs_criu()?;
    for signal in ["TERM", "HUP", "INT", "QUIT"] {
        let (bundle, mark) = marked(test, COUNT)?;
        let bundle = long_checked(bundle);
        checkpoint(&bundle)?;
        let id = test.id();
        let mut restore = stand_where_it_is_checked(&bundle, &id, &[], "1000000")?;
        kill_a_child(&restore, signal)?;
        ensure_eq(restore.wait()?.code(), Some(1))?;
        is_over(&mark)?;
        test.rt(["state", &id])?.fails_with("does not exist")?;
        ensure(cgroups_of(&id).is_empty(), "its cgroup is left")?;
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

/// Adds a hook that kills the first child of `rt`, which is CRIU.
fn killing_criu(bundle: Bundle<'_>) -> Bundle<'_> {
    let script = "read criu rest </proc/$PPID/task/$PPID/children; kill -KILL $criu";
    let hook =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
    bundle.edit(|config| config["hooks"]["createRuntime"] = hook)
}

/// Runs a restore with a time limit.
fn restore_in_time(bundle: &Bundle<'_>, id: &str) -> Outcome<Output> {
    let restore = restore_command(bundle, id, &["--detach"]);
    let mut limited = Command::new("timeout");
    limited.args(["-s", "KILL", "20"]).arg(restore.get_program()).args(restore.get_args());
    Output::of(limited)
}

/// The processes that CRIU has made also have its socket open.
fn a_killed_criu_is_noticed(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, mark) = marked(test, COUNT)?;
    checkpoint(&bundle)?;
    let bundle = killing_criu(bundle);
    bundle.write()?;
    let id = test.id();
    let failed = restore_in_time(&bundle, &id)?.fails_with("`criu` was ended by signal 9")?;
    ensure_eq(failed.stderr.lines().count(), 1)?;
    is_over(&mark)?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn nothing_runs_on_when_criu_is_killed_before_all_is_checked(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, mark) = marked(test, COUNT)?;
    let bundle = long_checked(bundle);
    checkpoint(&bundle)?;
    let id = test.id();
    let mut restore = stand_where_it_is_checked(&bundle, &id, &[], "3000000")?;
    let criu = restoring(&restore)?.criu.to_string();
    ensure(Command::new("kill").args(["-KILL", &criu]).status()?.success(), "it has ended")?;
    // The processes end at once, and not only at the next check by `rt`.
    is_over(&mark)?;
    ensure(restore.try_wait()?.is_none(), "it was rt that has ended it")?;
    ensure_eq(restore.wait()?.code(), Some(1))?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn a_killed_criu_leaves_no_directory(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let kept = images(test).join(".criu.cgyard.before");
    fs::create_dir(&kept)?;
    let bundle = killing_criu(bundle);
    bundle.write()?;
    restore_in_time(&bundle, &test.id())?.fails_with("`criu` was ended by signal 9")?;
    ensure_eq(yards(test)?, 1)?;
    ensure(kept.exists(), "what was there before is gone")
}

/// The owner of the file may have it open, and could write to it after the check.
fn a_file_of_another_user_is_not_read(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let names = ["descriptors.json", "mounts.json", "cgroup.img", "core-1.img", "pstree.img"];
    for name in names {
        let file = images(test).join(name);
        chown(&file, Some(1000), None)?;
        is_refused(&bundle, "it belongs to user 1000")?;
        chown(&file, Some(0), None)?;
    }
    let other = test.folder.join("other");
    fs::hard_link(images(test).join("descriptors.json"), &other)?;
    is_refused(&bundle, "it has another name")?;
    fs::remove_file(other)?;
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// Otherwise CRIU would fill memory from a file of the host.
fn images_are_regular_files(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let secret = test.folder.join("secret");
    // `rt` reads the first one itself.
    for (name, words) in [
        ("pages-1.img", "read `pages-1.img`: Symbolic link loop"),
        ("fs-1.img", "fs-1.img` of the checkpoint: it is not a regular file"),
    ] {
        let image = images(test).join(name);
        fs::rename(&image, &secret)?;
        symlink(&secret, &image)?;
        is_refused(&bundle, words)?;
        fs::rename(&secret, &image)?;
    }
    Ok(())
}

fn a_checkpoint_before_is_looked_at_too(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let parent = test.folder.join("before");
    fs::create_dir(&parent)?;
    fs::write(parent.join("pages-1.img"), "")?;
    symlink("../before", images(test).join("parent"))?;
    chown(parent.join("pages-1.img"), Some(1000), None)?;
    is_refused(&bundle, "parent/pages-1.img` of the checkpoint: it can be changed by others")
}

/// CRIU counts them, and would count wrongly.
fn a_process_without_threads_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("pstree.img");
    let mut image = fs::read(&path)?;
    // The first message ends with the first process's only thread.
    let end = 12 + usize::from(image[8]);
    ensure_eq(&image[end - 2..end], &[0x28, 1])?;
    image.drain(end - 2..end);
    image[8] -= 2;
    fs::write(path, image)?;
    is_refused(&bundle, "pstree.img` of the checkpoint: process 1 has no threads")?;
    ensure(!images(test).join("restore.log").exists(), "CRIU has looked at it")
}

/// While others can write to it, the kernel goes on where they say, with all that root may do.
fn an_area_for_rseq_is_in_the_own_memory(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("core-1.img");
    let area = bytes(15, &[8, 0xa0, 0x06, 16, 32, 24, 1]);
    change(&path, 8, &|core| with_inside(core, 5, &area))?;
    is_refused(&bundle, "mm-1.img` of the checkpoint: the rseq area at 0x320 is not in its memory")
}

/// Replaces a part of an image by another of the same length.
pub(super) fn replace(test: &Test, name: &str, from: &[u8], to: &[u8]) -> Outcome {
    ensure_eq(from.len(), to.len())?;
    for entry in fs::read_dir(images(test))? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(name)) {
            continue;
        }
        let mut image = fs::read(&path)?;
        let at = image.windows(from.len()).position(|part| part == from);
        let at = at.ok_or_else(|| format!("{} has it not", path.display()))?;
        image[at..at + to.len()].copy_from_slice(to);
        fs::write(path, image)?;
    }
    Ok(())
}

/// A container that has a file of a volume open, and the file.
pub(super) fn with_volume<'a>(test: &'a Test) -> Outcome<(Bundle<'a>, std::path::PathBuf)> {
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "precious")?;
    let bundle = test.sh(&format!("exec 5</vol/file; {COUNT}"))?;
    fs::create_dir(bundle.rootfs().join("vol"))?;
    let mount = json!({ "destination": "/vol", "type": "bind", "source": volume, "options": ["bind", "ro"] });
    Ok((bundle.mount(mount), volume.join("file")))
}

/// CRIU would mount, open and make what is on the host.
fn no_path_of_images_leads_out(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = with_volume(test)?;
    checkpoint(&bundle)?;
    for (name, from, to) in
        [("mountpoints-", "/rootfs", "/../../"), ("files.img", "/vol/file", "/../vfile")]
    {
        replace(test, name, from.as_bytes(), to.as_bytes())?;
        is_refused(&bundle, "its path is not a plain one")?;
        replace(test, name, to.as_bytes(), from.as_bytes())?;
    }
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// CRIU would open it as the images say, before the volume is read-only.
fn images_empty_no_file(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, file) = with_volume(test)?;
    checkpoint(&bundle)?;
    // O_LARGEFILE alone, and O_TRUNC besides.
    replace(test, "files.img", &[16, 0x80, 0x80, 2], &[16, 0x80, 0x84, 2])?;
    is_refused(&bundle, "files.img` of the checkpoint: it opens a file with")?;
    ensure_eq(fs::read_to_string(file)?.as_str(), "precious")
}

/// By the images, CRIU would open it for writing, and the volume would be read-only only later.
fn a_read_only_volume_is_so_from_the_beginning(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = with_volume(test)?;
    checkpoint(&bundle)?;
    for entry in fs::read_dir(images(test))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|it| it.to_string_lossy().starts_with("mountpoints-")) {
            let mut image = fs::read(&path)?;
            // The flags come before the root and the mount point: without `MS_RDONLY`, which is the
            // lowest bit.
            let point = image.windows(6).position(|part| part == b"\x3a\x04/vol");
            let before = &image[..point.ok_or("it has no volume")?];
            let flags = before.windows(2).rposition(|part| part == [40, 0x81]);
            image[flags.ok_or("it is not read-only")? + 1] = 0x80;
            fs::write(path, image)?;
        }
    }
    // O_LARGEFILE alone, and O_RDWR besides.
    replace(test, "files.img", &[16, 0x80, 0x80, 2], &[16, 0x82, 0x80, 2])?;
    is_refused(&bundle, "Read-only file system")
}

/// A directory of the rootfs is a link by then, which CRIU follows on the host.
fn a_deleted_file_is_not_made_on_the_host(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!("mkdir /d; exec 5>/d/file; echo 1 >&5; rm /d/file; {COUNT}");
    let bundle = test.sh(&script)?;
    checkpoint(&bundle)?;
    fs::remove_dir(bundle.rootfs().join("d"))?;
    let folder = test.folder.join("of-the-host");
    fs::create_dir(&folder)?;
    symlink(&folder, bundle.rootfs().join("d"))?;
    is_refused(&bundle, "remap-fpath.img` of the checkpoint: open `d` in the rootfs")
}
