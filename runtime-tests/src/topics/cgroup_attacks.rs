//! Attacks of a container or of another user on a command, through cgroups that are not genuine or
//! that belong to somebody else.

mod bus;

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, skip, wait_until,
    wait_up_to,
};

super::tests! { "cgroup_attacks":
    device_rules_hold_without_their_hierarchy,
    a_device_rule_that_is_not_understood_is_an_error,
    without_cgroups_the_hosts_devices_are_out_of_reach,
    without_cgroups_all_devices_can_be_allowed,
    without_cgroups_limits_are_an_error,
    an_empty_folder_is_no_hierarchy,
    the_deepest_cgroups_are_found,
    a_cgroup_of_another_user_is_refused,
    an_empty_cgroup_is_taken, a_process_that_cannot_be_seen_is_somebodys, a_lock_of_another_user_is_in_nobodys_way, nor_is_it_without_a_folder_for_locks,
    a_deletion_ends_nobody_who_has_the_same_cgroup, nor_does_one_without_a_state, nor_where_nobody_marks_it,
    nor_one_who_takes_it_meanwhile, nor_does_one_of_an_ordinary_user, nor_one_by_a_users_systemd, a_paused_one_in_the_same_cgroup_stays_paused,
    of_two_creations_one_has_the_cgroup,
    a_creation_that_was_cut_short_ends_nobody_else,
    nothing_is_made_in_a_frozen_cgroup,
    exec_fails_in_a_frozen_cgroup,
    exec_ends_when_its_cgroup_is_frozen_meanwhile,
    exec_ends_when_it_is_stopped, exec_ends_when_it_is_stopped_again_and_again,
    exec_ends_when_it_is_traced,
    exec_can_be_ended_while_it_waits,
    exec_waits_for_a_paused_container_if_asked_to,
    who_forks_all_the_time_is_killed_with_all,
    signals_to_all_end_where_they_are_ignored,
    no_release_agent_is_seen,
    an_annotation_replaces_nothing_of_rts,
    only_systemd_ends_its_jobs,
    a_process_that_cannot_be_read_is_alive,
    systemd_is_reached_by_its_own_socket_and_by_the_bus,
}

/// The runtime in its own mount namespace, in which a shell script runs first.
fn changed(test: &Test, script: &str, args: &[&str]) -> Command {
    let command = test.command(args);
    let mut changed = Command::new("unshare");
    changed.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    changed.arg(format!("{script}\nexec \"$@\"")).arg("sh");
    changed.arg(command.get_program()).args(command.get_args());
    changed.current_dir(&test.folder);
    changed
}

/// Runs a bundle in the foreground, in such a namespace.
fn run_changed(bundle: &Bundle<'_>, script: &str) -> Outcome<Output> {
    bundle.write()?;
    let args = bundle.command_line("run", &bundle.test.id());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Output::of(changed(bundle.test, script, &args))
}

fn only_v1(test: &Test) -> Outcome {
    if test.host.lane == "v2" { skip("cgroup v2 has one hierarchy") } else { Ok(()) }
}

fn only_v2(test: &Test) -> Outcome {
    if test.host.lane == "v2" { Ok(()) } else { skip("only cgroup v2 has this") }
}

/// The numbers of a block device of the host. Only device rules keep a container's root from
/// reading it.
fn disk() -> Outcome<(String, String)> {
    let disks = fs::read_dir("/sys/class/block")?.flatten();
    let number = disks.filter_map(|disk| fs::read_to_string(disk.path().join("dev")).ok()).next();
    let Some(number) = number else { return skip("the host has no block device") };
    let (major, minor) = number.trim().split_once(':').ok_or("no number")?;
    Ok((major.to_owned(), minor.to_owned()))
}

/// A script that makes a node of this device and opens the node.
fn reading() -> Outcome<String> {
    let (major, minor) = disk()?;
    Ok(format!(
        "mknod /disk b {major} {minor} 2>/dev/null; \
         (: < /disk) 2>/dev/null && echo opened || echo refused; \
         head -c 1 /dev/zero | wc -c"
    ))
}

fn with_mknod(bundle: Bundle<'_>) -> Bundle<'_> {
    let mknod = json!(["CAP_MKNOD", "CAP_KILL"]);
    bundle.edit(|config| {
        config["process"]["capabilities"] =
            json!({ "bounding": mknod, "effective": mknod, "permitted": mknod });
        // The container must be able to make files.
        config["root"]["readonly"] = json!(false);
    })
}

fn device_rules_hold_without_their_hierarchy(test: &Test) -> Outcome {
    only_v1(test)?;
    let output = run_changed(&with_mknod(test.sh(&reading()?)?), "umount /sys/fs/cgroup/devices")?;
    if test.host.lane == "v1" {
        return output
            .fails_with(if test.host.is_rt { "device rules cannot be enforced" } else { "" })
            .map(drop);
    }
    // `rt` enforces the rules in the v2 hierarchy. runc refuses the container here too.
    ensure(output.code != Some(0) || output.stdout == "refused\n1\n", format!("{output:?}"))
}

fn a_device_rule_that_is_not_understood_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    for (rule, words) in [
        (json!({ "type": "p", "access": "rwm" }), "the type `p`"),
        (json!({ "type": "c", "major": -5, "access": "rwm" }), "`major` is -5"),
        (json!({ "type": "b", "major": 8, "minor": -2, "access": "r" }), "`minor` is -2"),
        (json!({ "type": "c", "major": 1, "access": "" }), "`access` is empty"),
        (json!({ "type": "c", "major": 1 }), "`access` is empty"),
        (
            json!({ "type": "c", "major": 4_294_967_297_u64, "access": "r" }),
            "`major` is 4294967297",
        ),
    ] {
        let mut rule = rule;
        rule["allow"] = json!(true);
        let bundle = test.sh("true")?.edit(|config| {
            config["linux"]["resources"]["devices"] =
                json!([{ "allow": false, "access": "rwm" }, rule]);
        });
        bundle.try_create(&test.id())?.fails_with(words)?;
    }
    Ok(())
}

fn disabled(bundle: &Bundle<'_>) -> Outcome<Output> {
    bundle.write()?;
    let args = bundle.command_line("run", &bundle.test.id());
    bundle.test.rt([vec!["--cgroup-manager=disabled".to_owned()], args].concat())
}

/// Without a cgroup, no device rules apply. So the container can neither make a node nor open a
/// node of the image.
fn without_cgroups_the_hosts_devices_are_out_of_reach(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = format!(
        "{}; (: < /theirs) 2>/dev/null && echo opened || echo refused; \
         grep CapBnd /proc/self/status",
        reading()?
    );
    let bundle = with_mknod(test.sh(&script)?);
    let node = bundle.rootfs().join("theirs");
    ensure(
        Command::new("mknod").arg(&node).args(["b", &disk()?.0, &disk()?.1]).status()?.success(),
        "mknod",
    )?;
    let output = disabled(&bundle)?.success()?;
    // CAP_KILL is 5.
    output.stdout("refused\n1\nrefused\nCapBnd:\t0000000000000020\n")?;
    let id = test.id();
    let sleeping = bundle.args(&["/bin/sleep", "60"]);
    sleeping.write()?;
    let args = [vec!["--cgroup-manager=disabled".to_owned()], sleeping.command_line("create", &id)];
    let container = Container::create(test, &id, test.command(args.concat()))?;
    container.start()?;
    let script = reading()?;
    let exec = ["exec", "--cap=CAP_MKNOD", &container.id, "/bin/sh", "-c", &script];
    test.rt(exec)?.success()?.stdout("refused\n1\n").map(drop)
}

/// podman configures privileged containers like this.
fn without_cgroups_all_devices_can_be_allowed(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = with_mknod(test.sh(&reading()?)?).edit(|config| {
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    });
    disabled(&bundle)?.success()?.stdout("opened\n1\n").map(drop)
}

fn without_cgroups_limits_are_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 7 });
    });
    disabled(&bundle)?.fails_with("limits in `linux.resources` need a cgroup").map(drop)
}

fn an_empty_folder_is_no_hierarchy(test: &Test) -> Outcome {
    only_v1(test)?;
    test.only_rt()?;
    // Mounts a copy over `/sys/fs/cgroup`, with more directories, for controllers that the host
    // does not have. Some distributions leave such directories.
    let script = "mkdir all; mount -t tmpfs none all
        for there in /sys/fs/cgroup/*; do
            place=all/${there##*/}; mkdir $place
            mountpoint -q $there && mount --bind $there $place
        done
        mkdir -p all/net_cls all/hugetlb all/net_cls,net_prio
        mount --rbind all /sys/fs/cgroup";
    run_changed(&test.sh("echo ran")?, script)?.success()?.stdout("ran\n")?;
    if Path::new("/sys/fs/cgroup/net_cls/cgroup.procs").exists() {
        return skip("this host has the controller `net_cls`");
    }
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["resources"]["network"] = json!({ "classID": 1 });
    });
    let script = format!("rmdir all; {script}");
    run_changed(&bundle, &script)?.fails_with("no cgroup controller `net_cls`").map(drop)
}

/// The directory of a cgroup that lists its processes.
fn directory(test: &Test, name: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    if test.host.lane == "v2" { root.join(name) } else { root.join("pids").join(name) }
}

fn of(container: &Container<'_>, test: &Test) -> Outcome<PathBuf> {
    let named = cgroups_of(&container.id);
    let root = if test.host.lane == "v2" { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    Ok(named.into_iter().find(|path| path.starts_with(root)).ok_or("no cgroup")?)
}

fn open(directory: &OwnedFd, name: &CString) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn open_top(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Removes the leftovers of a runtime that fails the test.
fn remove_below(directory: &OwnedFd) -> Outcome {
    for entry in Dir::read_from(directory)?.flatten() {
        let name = entry.file_name().to_owned();
        if entry.file_type() == FileType::Directory && !name.as_bytes().starts_with(b".") {
            remove_below(&open(directory, &name)?)?;
            wait_until("a cgroup can be removed", || {
                rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR).is_ok()
            })?;
        }
    }
    Ok(())
}

/// Thirty nested cgroups, with a path longer than PATH_MAX, and a process in the last one.
fn the_deepest_cgroups_are_found(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("sleep 600 & echo process $!; exec sleep 600")?.edit(|config| {
        // Without a pid namespace, the end of the first process does not end the others.
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    let container = bundle.start()?;
    container.wait_for_output("process ")?;
    let pid = container.stdout()?.trim().trim_start_matches("process ").to_owned();
    let top = of(&container, test)?;
    let name = CString::new("d".repeat(200))?;
    let mut here = open_top(&top)?;
    for _ in 0..30 {
        rustix::fs::mkdirat(&here, &name, Mode::RWXU)?;
        here = open(&here, &name)?;
    }
    let procs = rustix::fs::openat(&here, "cgroup.procs", OFlags::WRONLY, Mode::empty())?;
    rustix::io::write(&procs, pid.as_bytes())?;
    drop((procs, here));
    let listed = container.rt(&["ps", "--format=json"])?;
    let deleted = container.rt(&["delete", "--force"])?;
    let alive = Path::new("/proc").join(&pid).exists() && !is_dead(&pid);
    if alive {
        let pid = rustix::process::Pid::from_raw(pid.parse()?).ok_or("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    }
    if let Ok(left) = open_top(&top) {
        remove_below(&left)?;
    }
    let pids: Vec<i32> = serde_json::from_str(&listed.success()?.stdout)?;
    ensure(pids.contains(&pid.parse()?), format!("{pids:?} without {pid}"))?;
    deleted.success()?;
    ensure(!alive, "a process of the container lives")?;
    ensure(!top.exists(), "its cgroup is left")
}

fn is_dead(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// The directories of the cgroup with this path: one, or one in each hierarchy.
pub(super) fn everywhere(test: &Test, name: &str) -> Outcome<Vec<PathBuf>> {
    if test.host.lane == "v2" {
        return Ok(vec![directory(test, name)]);
    }
    let roots = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    Ok(roots
        .filter(|root| root.join("cgroup.procs").exists())
        .map(|root| root.join(name))
        .collect())
}

pub(super) fn remove_all(paths: &[PathBuf]) {
    for path in paths {
        let _ = fs::remove_dir(path);
    }
}

fn at<'a>(bundle: Bundle<'a>, path: &str) -> Bundle<'a> {
    bundle.edit(|config| config["linux"]["cgroupsPath"] = json!(format!("/{path}")))
}

fn a_cgroup_of_another_user_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let name = test.id();
    let all = everywhere(test, &name)?;
    // The directory of another user can be in any hierarchy.
    for path in &all {
        fs::create_dir(path)?;
        chown(path, Some(65533), Some(65533))?;
        for file in ["cgroup.procs", "tasks", "cgroup.freeze", "freezer.state"] {
            let _ = chown(path.join(file), Some(65533), Some(65533));
        }
        let output = at(test.sh("true")?, &name).run();
        let is_left = path.exists();
        remove_all(&all);
        output?.fails_with("belongs to user 65533")?;
        ensure(is_left, "what was another's was removed")?;
    }
    Ok(())
}

fn an_empty_cgroup_is_taken(test: &Test) -> Outcome {
    let name = test.id();
    let all = everywhere(test, &name)?;
    for path in &all {
        fs::create_dir(path)?;
    }
    let output = at(test.sh("echo ran")?, &name).run();
    remove_all(&all);
    output?.success()?.stdout("ran\n").map(drop)
}

/// A container that has stopped, and another one that has got its cgroup since: the same directory,
/// or a scope with the same name.
fn one_after_another(test: &Test) -> Outcome<(Container<'_>, Container<'_>)> {
    let name = test.id();
    let path = if test.host.by_systemd { format!(":rt:{name}") } else { format!("/{name}") };
    let path = |config: &mut Value| config["linux"]["cgroupsPath"] = json!(path);
    let first = test.sh("true")?.edit(path).start()?;
    first.wait()?;
    if test.host.by_systemd {
        let scope = format!("rt-{name}.scope");
        let mut show = Command::new("systemctl");
        show.args(["show", "--value", "--property=LoadState", &scope]);
        wait_until("systemd has let go of the scope", || {
            show.output().is_ok_and(|output| output.stdout == b"not-found\n")
        })?;
    }
    let second = test.sh("exec sleep 60")?.edit(path).start()?;
    Ok((first, second))
}

/// The first container has stopped. The second one has got its empty cgroup since.
fn a_deletion_ends_nobody_who_has_the_same_cgroup(test: &Test) -> Outcome {
    for all in [false, true] {
        let (first, second) = one_after_another(test)?;
        if all {
            // Whether `kill` fails or not, it must not signal the second container.
            first.rt(&["kill", "--all"])?;
        }
        first.rt(&["delete", "--force"])?;
        ensure_eq(second.status()?.as_str(), "running")?;
        test.rt(["kill", &second.id, "KILL"])?.success()?;
        second.wait()?;
        second.delete()?;
    }
    Ok(())
}

/// Only the path of the first container's cgroup is known.
fn nor_does_one_without_a_state(test: &Test) -> Outcome {
    test.only_rt()?;
    let (first, second) = one_after_another(test)?;
    fs::write(test.state_root().join(&first.id).join("state.json"), "{")?;
    first.rt(&["delete", "--force"])?.success()?;
    ensure_eq(second.status()?.as_str(), "running")?;
    second.rt(&["delete", "--force"])?.success().map(drop)
}

fn a_paused_one_in_the_same_cgroup_stays_paused(test: &Test) -> Outcome {
    test.only_rt()?;
    let (first, second) = one_after_another(test)?;
    second.rt(&["pause"])?.success()?;
    first.rt(&["resume"])?.fails_with("container not paused")?;
    first.rt(&["ps", "--format=json"])?.success()?.stdout("[]\n")?;
    first.rt(&["kill", "--all"])?.success()?;
    ensure_eq(second.status()?.as_str(), "paused")?;
    second.rt(&["delete", "--force"])?.success().map(drop)
}

/// The test stops the deletion after the check of the mark, and before the removal of the cgroup.
fn nor_one_who_takes_it_meanwhile(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let name = test.id();
    let first = at(test.sh("true")?, &name).start()?;
    first.wait()?;
    let second = at(test.sh("exec sleep 60")?, &name);
    second.write()?;
    let mut strace = Command::new("strace");
    strace.args(["--inject=fgetxattr:signal=STOP:when=1", "--output", "/dev/null"]);
    let delete = test.command(["delete", &first.id]);
    let mut deletion = strace.arg(delete.get_program()).args(delete.get_args()).spawn()?;
    let mut deleting = Vec::new();
    wait_until("the deletion is stopped", || {
        deleting = children(deletion.id(), &first.id);
        deleting.first().is_some_and(|pid| is_stopped(*pid))
    })?;
    let id = test.id();
    let mut creation = test.command(second.command_line("run", &id)).spawn()?;
    // While the deletion holds the cgroup, the creation waits.
    let lives = || test.rt(["state", &id]).is_ok_and(|state| state.stdout.contains("running"));
    let is_held = wait_up_to(Duration::from_secs(1), "it lives", lives).is_err();
    let pid = rustix::process::Pid::from_raw(deleting[0]).ok_or("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    let deleted = deletion.wait()?;
    let lived = wait_until("it lives", lives);
    test.rt(["delete", "--force", &id])?.success()?;
    creation.wait()?;
    ensure(deleted.success(), "the deletion failed")?;
    ensure(is_held, "it did not wait")?;
    lived
}

/// Whether a process stays stopped. A tracer stops it for a shorter time at each system call.
fn is_stopped(pid: i32) -> bool {
    let look = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let switches = status.lines().filter(|line| line.contains("ctxt_switches"));
        let switches: Vec<String> = switches.map(str::to_owned).collect();
        let is_stopped = status.contains("State:\tT") || status.contains("State:\tt");
        is_stopped.then_some(switches)
    };
    let before = look();
    std::thread::sleep(Duration::from_millis(300));
    before.is_some() && before == look()
}

/// Runs the runtime as an ordinary user in a cgroup, with arguments for env(1). The argument `.`
/// stands for the bundle.
fn as_user_in(
    cgroup: &Path,
    bundle: &Bundle<'_>,
    before: &[&str],
    args: &[&str],
) -> Outcome<Output> {
    let folder = bundle.folder.display().to_string();
    let args: Vec<&str> = args.iter().map(|arg| if *arg == "." { &folder } else { *arg }).collect();
    let command = super::rootless::as_user(bundle.test, super::rootless::SUBIDS, before, &args)?;
    let mut inside = Command::new("sh");
    inside.arg("-c").arg("echo 0 > \"$0/cgroup.procs\" && exec \"$@\"").arg(cgroup);
    inside.arg(command.get_program()).args(command.get_args()).current_dir(&bundle.test.folder);
    Output::of(inside)
}

/// The user has their own cgroups, and may not write root's attributes.
fn nor_does_one_of_an_ordinary_user(test: &Test) -> Outcome {
    test.only_rt()?;
    only_v2(test)?;
    if crate::harness::kernel()? < (5, 7) {
        return skip("the kernel lets an ordinary user mark no cgroup");
    }
    let name = test.id();
    let own = directory(test, &name);
    let run =
        |bundle: &Bundle<'_>, args: &[&str]| as_user_in(&own.join("outside"), bundle, &[], args);
    let bundle = |script: &str| {
        let bundle = super::rootless::owned(test, at(test.sh(script)?, &format!("{name}/inside")))?;
        bundle.write()?;
        Outcome::Ok(bundle)
    };
    let (first, second) = (test.id(), test.id());
    let try_it = || -> Outcome {
        let bundle_of = bundle("true")?;
        run(&bundle_of, &["run", "--keep", "--bundle", ".", &first])?.success()?;
        let bundle_of = bundle("exec sleep 60")?;
        run(&bundle_of, &["run", "--detach", "--bundle", ".", &second])?.success()?;
        run(&bundle_of, &["kill", "--all", &first, "KILL"])?.success()?;
        run(&bundle_of, &["delete", &first])?.success()?;
        let state = run(&bundle_of, &["state", &second])?.success()?;
        ensure(state.stdout.contains("\"running\""), state.stdout)?;
        run(&bundle_of, &["delete", "--force", &second])?.success().map(drop)
    };
    fs::create_dir(&own)?;
    fs::create_dir(own.join("outside"))?;
    for path in [&own, &own.join("outside")] {
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            chown(path.join(file), Some(1000), Some(1000))?;
        }
    }
    let outcome = try_it();
    for below in ["inside", "outside", ""] {
        let _ = wait_until("a cgroup is empty", || fs::remove_dir(own.join(below)).is_ok());
    }
    outcome
}

/// A user's systemd cannot write root's attribute. Older versions write no other attribute.
fn nor_one_by_a_users_systemd(test: &Test) -> Outcome {
    test.only_rt()?;
    if !test.host.by_systemd {
        return skip("systemd is not process 1");
    }
    let (name, unit) = (test.id(), format!("{}.service", test.id()));
    let service = Path::new("/sys/fs/cgroup/system.slice").join(&unit);
    let runtime = test.folder.join("runtime");
    fs::create_dir(&runtime)?;
    chown(&runtime, Some(1000), Some(1000))?;
    let variable = format!("XDG_RUNTIME_DIR={}", runtime.display());
    let script = "mkdir $0/caller; chown -R 1000:1000 $0; exec setpriv --reuid=1000 --regid=1000 --clear-groups \
                  env HOME=/ $1 /lib/systemd/systemd --user";
    let mut manager = Command::new("systemd-run");
    manager.args(["--property=Delegate=yes", &format!("--unit={unit}"), "sh", "-c", script]);
    Output::of({
        manager.arg(&service).arg(&variable);
        manager
    })?
    .success()?;
    let with = |script: &str| {
        let bundle = test
            .sh(script)?
            .edit(|config| config["linux"]["cgroupsPath"] = json!(format!(":rt:{name}")));
        super::rootless::owned(test, bundle)
    };
    let (ended, lasting) = (with("true")?, with("exec sleep 60")?);
    let rt = |bundle: &Bundle<'_>, args: &[&str]| {
        let args = [&["--systemd-cgroup"], args].concat();
        as_user_in(&service.join("caller"), bundle, &[&variable], &args)
    };
    let (first, second) = (test.id(), test.id());
    let try_it = || -> Outcome {
        wait_until("the manager listens", || runtime.join("systemd/private").exists())?;
        rt(&ended, &["run", "--keep", "--bundle", ".", &first])?.success()?;
        wait_until("the name of the scope is free", || {
            rt(&lasting, &["run", "--detach", "--bundle", ".", &second])
                .is_ok_and(|output| output.code == Some(0))
        })?;
        rt(&ended, &["kill", "--all", &first, "KILL"])?.success()?;
        rt(&ended, &["delete", &first])?.success()?;
        let state = rt(&ended, &["state", &second])?.success()?;
        ensure(state.stdout.contains("\"running\""), state.stdout)?;
        rt(&ended, &["delete", "--force", &second])?.success()?;
        // The name of the scope is free again.
        (0..5).try_for_each(|_| {
            rt(&ended, &["run", "--bundle", ".", &test.id()])?.success().map(drop)
        })
    };
    let outcome = try_it();
    let mut stop = Command::new("systemctl");
    stop.args(["stop", &unit]);
    Output::of(stop)?.success()?;
    outcome
}

/// Another runtime or a person has removed the first container's empty cgroup, and has made a
/// cgroup with the same name.
fn nor_where_nobody_marks_it(test: &Test) -> Outcome {
    test.only_rt()?;
    for is_known in [true, false] {
        stays_where_nobody_marks_it(test, is_known)?;
    }
    Ok(())
}

/// If `is_known` is false, the state is damaged, and `rt` can only guess the cgroup.
fn stays_where_nobody_marks_it(test: &Test, is_known: bool) -> Outcome {
    let name = test.id();
    let container = at(test.sh("true")?, &name).start()?;
    container.wait()?;
    let paths = cgroups_of(&name);
    for path in &paths {
        fs::remove_dir(path)?;
        fs::create_dir(path)?;
    }
    if !is_known {
        fs::write(test.state_root().join(&container.id).join("state.json"), "{")?;
    }
    let mut other = Command::new("sleep").arg("60").spawn()?;
    let joined = paths.iter().filter(|path| !path.starts_with("/sys/fs/cgroup/cpuset"));
    for path in joined.clone() {
        fs::write(path.join("cgroup.procs"), other.id().to_string())?;
    }
    container.rt(&["delete", "--force"])?.success()?;
    let ended = other.try_wait()?;
    other.kill()?;
    other.wait()?;
    for path in &paths {
        fs::remove_dir(path)?;
    }
    ensure(ended.is_none(), format!("it was ended: {ended:?}"))
}

/// A user who may only read a cgroup's directory can lock it.
fn a_lock_of_another_user_is_in_nobodys_way(test: &Test) -> Outcome {
    while_it_is_locked(test, &|bundle| bundle.run())
}

/// Root has no file in `/run` for its locks here. v1 has no other file that only root can open.
fn nor_is_it_without_a_folder_for_locks(test: &Test) -> Outcome {
    test.only_rt()?;
    if test.host.lane == "v1" {
        return skip("cgroup v1 has no file that only root can open");
    }
    while_it_is_locked(test, &|bundle| run_changed(bundle, "mount -t tmpfs -o ro tmpfs /run"))
}

fn while_it_is_locked(test: &Test, run: &dyn Fn(&Bundle<'_>) -> Outcome<Output>) -> Outcome {
    let name = test.id();
    let all = everywhere(test, &name)?;
    let mut holders = Vec::new();
    for path in &all {
        fs::create_dir(path)?;
        let mut holder = Command::new("setpriv");
        holder.args(["--reuid=65534", "--clear-groups", "flock", "--shared"]).arg(path);
        let script = "echo locked; exec sleep 60";
        let mut holder =
            holder.args(["sh", "-c", script]).stdout(std::process::Stdio::piped()).spawn()?;
        let mut said = [0; 7];
        if let Some(stdout) = &mut holder.stdout {
            std::io::Read::read_exact(stdout, &mut said)?;
        }
        holders.push(holder);
    }
    let output = run(&at(test.sh("echo ran")?, &name));
    for mut holder in holders {
        holder.kill()?;
        holder.wait()?;
    }
    remove_all(&all);
    output?.success()?.stdout("ran\n").map(drop)
}

/// For a runtime in a pid namespace below, the kernel lists such a process as 0. If a container got
/// the cgroup, its deletion would kill the process too.
fn a_process_that_cannot_be_seen_is_somebodys(test: &Test) -> Outcome {
    test.only_rt()?;
    if test.host.lane == "v1" {
        return skip("cgroup v1 does not list it at all");
    }
    for below in ["", "below", "below/that"] {
        let name = test.id();
        let all = everywhere(test, &name)?;
        let all: Vec<_> =
            all.into_iter().filter(|path| !path.starts_with("/sys/fs/cgroup/cpuset")).collect();
        let mut other = Command::new("sleep").arg("60").spawn()?;
        for path in &all {
            fs::create_dir_all(path.join(below))?;
            fs::write(path.join(below).join("cgroup.procs"), other.id().to_string())?;
        }
        let bundle = at(test.sh("true")?, &name);
        bundle.write()?;
        let run = test.command(bundle.command_line("run", &test.id()));
        let mut inside = Command::new("unshare");
        inside.args(["--pid", "--fork", "--mount-proc"]);
        inside.arg(run.get_program()).args(run.get_args());
        let output = Output::of(inside);
        let ended = other.try_wait()?;
        other.kill()?;
        other.wait()?;
        for path in &all {
            for below in [below, "below", ""] {
                let _ = fs::remove_dir(path.join(below));
            }
        }
        output?.fails_with("is not empty")?;
        ensure(ended.is_none(), "it was ended")?;
    }
    Ok(())
}

fn start_all(commands: Vec<Command>) -> Outcome<Vec<Child>> {
    let null = std::process::Stdio::null;
    let start = |mut command: Command| command.stdout(null()).stderr(null()).spawn();
    Ok(commands.into_iter().map(start).collect::<Result<_, _>>()?)
}

fn of_two_creations_one_has_the_cgroup(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut made = 0;
    for _ in 0..30 {
        let name = test.id();
        let bundle = at(test.sh("exec sleep 60")?, &name);
        bundle.write()?;
        let ids = [test.id(), test.id()];
        let create = |id: &String| test.command(bundle.command_line("create", id));
        let mut children = start_all(ids.iter().map(create).collect())?;
        let mut won = Vec::new();
        for (child, id) in children.iter_mut().zip(&ids) {
            if child.wait()?.success() {
                won.push(id);
            }
        }
        for id in &won {
            test.rt(["delete", "--force", id])?.success()?;
        }
        ensure(won.len() < 2, "both have it")?;
        made += won.len();
        // The loser may have made the cgroup, and left it to the winner.
        remove_all(&everywhere(test, &name)?);
    }
    ensure(made > 0, "none was ever made")
}

/// A state records the path that a container wanted. If `create` is killed before it makes the
/// first process, it is unknown whose the cgroup is.
fn a_creation_that_was_cut_short_ends_nobody_else(test: &Test) -> Outcome {
    test.only_rt()?;
    let name = test.id();
    let bundle = at(test.sh("exec sleep 600")?, &name);
    let container = bundle.start()?;
    let state = test.state_root();
    let other = test.id();
    fs::create_dir(state.join(&other))?;
    let text = fs::read_to_string(state.join(&container.id).join("state.json"))?;
    let mut json: Value = serde_json::from_str(&text)?;
    (json["id"], json["pid"], json["startTime"]) = (json!(other), json!(0), json!(0));
    fs::write(state.join(&other).join("state.json"), json.to_string())?;
    test.rt(["delete", "--force", &other])?.success()?;
    ensure_eq(container.status()?.as_str(), "running")?;
    container.rt(&["delete", "--force"])?.success()?;
    remove_all(&everywhere(test, &name)?);
    Ok(())
}

/// A command with a time limit, after which it is ended.
fn limited(seconds: u32, command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.arg(format!("--kill-after={seconds}")).arg(seconds.to_string());
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// The files that freeze a cgroup, with the values that freeze and thaw it.
fn freezers(test: &Test, name: &str) -> Vec<(PathBuf, &'static str, &'static str)> {
    let root = Path::new("/sys/fs/cgroup");
    let v1 = (root.join("freezer").join(name).join("freezer.state"), "FROZEN", "THAWED");
    let v2 = |root: &Path| (root.join(name).join("cgroup.freeze"), "1", "0");
    match test.host.lane.as_str() {
        "v2" => vec![v2(root)],
        "hybrid" if root.join("unified/cgroup.procs").exists() => {
            vec![v1, v2(&root.join("unified"))]
        }
        _ => vec![v1],
    }
}

fn nothing_is_made_in_a_frozen_cgroup(test: &Test) -> Outcome {
    test.only_rt()?;
    let name = test.id();
    for (file, frozen, thawed) in freezers(test, &name) {
        // The container's cgroup is the frozen one, or one below it.
        for below in ["", "/below"] {
            let bundle = at(test.sh("true")?, &format!("{name}{below}"));
            bundle.write()?;
            let directory = file.parent().ok_or("no directory")?;
            fs::create_dir(directory)?;
            fs::write(&file, frozen)?;
            let id = test.id();
            let command = limited(20, &test.command(bundle.command_line("create", &id)));
            let output = Output::of(command);
            fs::write(&file, thawed)?;
            let again = test.rt(["delete", "--force", &id]);
            remove_all(&everywhere(test, &format!("{name}/below"))?);
            remove_all(&everywhere(test, &name)?);
            output?.fails_with("container's cgroup unexpectedly frozen")?;
            again?.success()?;
        }
    }
    Ok(())
}

/// A container in a cgroup below the cgroup of this name.
fn below<'a>(test: &'a Test, name: &str) -> Outcome<Container<'a>> {
    at(test.sh("exec sleep 600")?, &format!("{name}/below")).start()
}

fn exec_fails_in_a_frozen_cgroup(test: &Test) -> Outcome {
    test.only_rt()?;
    let name = test.id();
    for (file, frozen, thawed) in freezers(test, &name) {
        let container = below(test, &name)?;
        fs::write(&file, frozen)?;
        let command = test.command(["exec", &container.id, "/bin/true"]);
        let output = Output::of(limited(20, &command));
        let deleted = Output::of(limited(60, &test.command(["delete", "--force", &container.id])));
        fs::write(&file, thawed)?;
        let again = container.rt(&["delete", "--force"]);
        remove_all(&everywhere(test, &name)?);
        output?.fails_with("cannot exec in a paused container")?;
        // With v1, no process dies in a cgroup that a cgroup above has frozen. Then `delete` fails.
        let deleted = deleted?;
        ensure(matches!(deleted.code, Some(0 | 1)), format!("{deleted:?}"))?;
        again?.success()?;
    }
    Ok(())
}

/// The children of a process that have this text in their arguments.
fn children(parent: u32, text: &str) -> Vec<i32> {
    let parent = format!("PPid:\t{parent}\n");
    let is_one = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&parent) && String::from_utf8_lossy(&command).contains(text)
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

/// Runs an `exec` that pauses after it has made its first process, and calls `act` meanwhile.
/// Returns the output and the exit code.
fn exec_while(
    test: &Test,
    container: &Container<'_>,
    act: impl FnOnce(i32, &[i32]) -> Outcome,
) -> Outcome<Output> {
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let log = test.folder.join("calls");
    let mut strace = Command::new("strace");
    // In the emulated machine, the search through all processes takes longer.
    let delay = if std::env::var_os("RT_TESTS_MANAGER").is_some() { 5 } else { 1 };
    strace.args(["--trace=clone3", &format!("--inject=clone3:delay_exit={delay}s"), "--output"]);
    strace.arg(log);
    let exec = test.command(["exec", &container.id, "/bin/sleep", "0"]);
    strace.arg(exec.get_program()).args(exec.get_args());
    let [out, err] = ["exec.out", "exec.err"].map(|end| test.folder.join(end));
    strace.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
    let mut child = strace.spawn()?;
    let mut runtime = Vec::new();
    let mut made = Vec::new();
    wait_until("a process is made", || {
        runtime = children(child.id(), &container.id);
        let parent = runtime.first().and_then(|pid| u32::try_from(*pid).ok());
        made = parent.map(|parent| children(parent, &container.id)).unwrap_or_default();
        !made.is_empty()
    })?;
    let acted = act(runtime[0], &made);
    let ended = wait_up_to(Duration::from_secs(20), "exec ends", || {
        child.try_wait().is_ok_and(|status| status.is_some())
    });
    if ended.is_err() {
        for pid in runtime.iter().chain(&made) {
            let pid = rustix::process::Pid::from_raw(*pid).ok_or("no pid")?;
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let status = child.wait()?;
    acted?;
    ended?;
    wait_until("nobody of it is left", || made.iter().all(|pid| is_dead(&pid.to_string())))?;
    let read = fs::read_to_string;
    Ok(Output { stdout: read(out)?, stderr: read(err)?, code: status.code() })
}

fn exec_ends_when_its_cgroup_is_frozen_meanwhile(test: &Test) -> Outcome {
    test.only_rt()?;
    let name = test.id();
    for (file, frozen, thawed) in freezers(test, &name) {
        let container = below(test, &name)?;
        let output = exec_while(test, &container, |_, _| Ok(fs::write(&file, frozen)?));
        fs::write(&file, thawed)?;
        let deleted = container.rt(&["delete", "--force"]);
        remove_all(&everywhere(test, &name)?);
        output?.fails_with("its cgroup is frozen")?;
        deleted?.success()?;
    }
    Ok(())
}

fn send(pid: i32, signal: rustix::process::Signal) -> Outcome {
    let pid = rustix::process::Pid::from_raw(pid).ok_or("no pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

fn exec_ends_when_it_is_stopped(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let output = exec_while(test, &container, |_, made| {
        made.iter().try_for_each(|pid| send(*pid, rustix::process::Signal::STOP))
    })?;
    output.fails_with("a signal has stopped it").map(drop)
}

/// A process that may stop another one may also continue it. The new process then runs for a moment
/// between two checks.
fn exec_ends_when_it_is_stopped_again_and_again(test: &Test) -> Outcome {
    use rustix::process::Signal;
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    // Then it is the program, which may be stopped for as long as its neighbour likes.
    let has_begun = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    let output = exec_while(test, &container, |runtime, made| {
        // At the end, the process is dead.
        let tell = |signal| made.iter().for_each(|pid| drop(send(*pid, signal)));
        for _ in 0..20 {
            tell(Signal::CONT);
            tell(Signal::STOP);
            let ends = || is_dead(&runtime.to_string());
            let ended = wait_up_to(Duration::from_millis(1500), "exec ends", ends).is_ok();
            if ended || made.iter().any(has_begun) {
                break;
            }
        }
        if made.iter().any(has_begun) {
            tell(Signal::CONT);
        }
        Ok(())
    })?;
    // The new process may be done after these moments. On a busy host, one stop can last so long
    // that it counts alone.
    if output.code == Some(0) {
        return Ok(());
    }
    output.fails_with("the new process in the container is held up: a signal has stopped it")?;
    Ok(())
}

/// A tracer can stop a process for good. When the process has died, the tracer must reap it before
/// the parent can.
fn exec_ends_when_it_is_traced(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let mut traced = Vec::new();
    let output = exec_while(test, &container, |_, made| {
        for pid in made.iter().copied().map(nix::unistd::Pid::from_raw) {
            nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty())?;
            nix::sys::ptrace::interrupt(pid)?;
            traced.push(pid);
        }
        Ok(())
    });
    // The processes are dead. Now the tracer reaps them.
    for pid in traced {
        let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL));
        let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL));
    }
    output?.fails_with("a signal has stopped it").map(drop)
}

fn exec_can_be_ended_while_it_waits(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let output = exec_while(test, &container, |runtime, made| {
        made.iter().try_for_each(|pid| send(*pid, rustix::process::Signal::STOP))?;
        send(runtime, rustix::process::Signal::TERM)
    })?;
    output.fails_with("stopped by a termination signal").map(drop)
}

fn exec_waits_for_a_paused_container_if_asked_to(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    container.rt(&["pause"])?.success()?;
    let command = test.command(["exec", "--ignore-paused", &container.id, "/bin/true"]);
    let mut children_of = start_all(vec![limited(60, &command)])?;
    let exec = &mut children_of[0];
    wait_until("a process is made", || {
        let runtime = children(exec.id(), &container.id).first().copied();
        let runtime = runtime.and_then(|pid| u32::try_from(pid).ok());
        runtime.is_some_and(|pid| !children(pid, &container.id).is_empty())
    })?;
    container.rt(&["resume"])?.success()?;
    ensure(exec.wait()?.success(), "exec failed")
}

const CHURN: &str = "trap '' TERM
    for i in 1 2 3 4 5 6 7 8; do
        sh -c 'trap \"\" TERM; while :; do (sleep 0.01) & wait; done' &
    done
    echo all; while :; do sleep 1; done";

/// v1 has no `cgroup.kill`, so `rt` signals the processes one by one.
fn who_forks_all_the_time_is_killed_with_all(test: &Test) -> Outcome {
    let bundle = test.sh(CHURN)?.edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    let container = bundle.start()?;
    container.wait_for_output("all")?;
    let path = of(&container, test)?;
    test.rt(["kill", "--all", &container.id, "KILL"])?.success()?;
    wait_until("all are dead", || {
        // systemd removes an empty cgroup.
        fs::read_to_string(path.join("cgroup.procs")).map_or(!path.exists(), |text| text.is_empty())
    })?;
    container.wait()?;
    container.delete()
}

fn signals_to_all_end_where_they_are_ignored(test: &Test) -> Outcome {
    let container = test.sh(CHURN)?.start()?;
    container.wait_for_output("all")?;
    let command = test.command(["kill", "--all", &container.id, "TERM"]);
    Output::of(limited(60, &command))?.success()?;
    // No process is left stopped.
    ensure_eq(container.status()?.as_str(), "running")?;
    container.rt(&["delete", "--force"])?.success().map(drop)
}

/// The kernel runs the release agent as root of the host when a v1 cgroup is empty (CVE-2022-0492).
fn no_release_agent_is_seen(test: &Test) -> Outcome {
    only_v1(test)?;
    for own in [true, false] {
        let script =
            "find /sys/fs/cgroup -name release_agent; cat /sys/fs/cgroup/pids/notify_on_release";
        let mut bundle = test
            .sh(script)?
            .mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["rw"] }));
        if own {
            bundle = bundle.namespace(json!({ "type": "cgroup" }));
        }
        let output = bundle.run()?.success()?;
        ensure(!output.stdout.contains("release_agent"), &output.stdout)?;
        ensure_eq((own, output.stdout.as_str()), (own, "0\n"))?;
    }
    Ok(())
}

/// The traces of a running systemd that a runtime looks for.
const SYSTEMD: &str = "mount -t tmpfs none /run; mkdir -p /run/systemd/system";

fn an_annotation_replaces_nothing_of_rts(test: &Test) -> Outcome {
    only_v2(test)?;
    test.only_rt()?;
    for (key, value) in [
        ("PIDs", "[uint32 4711, uint32 1]"),
        ("Slice", "'-.slice'"),
        ("Delegate", "false"),
        ("DevicePolicy", "'auto'"),
        ("DeviceAllow", "[('block-*', 'rwm')]"),
        ("TasksAccounting", "false"),
        ("TasksMax", "uint64 9999"),
        ("TasksMaxScale", "uint32 4294967295"),
    ] {
        let key = format!("org.systemd.property.{key}");
        let id = test.id();
        let bundle = test.sh("true")?.annotation(&key, value).edit(|config| {
            config["linux"]["cgroupsPath"] = json!(format!("system.slice:rt:{id}"));
            config["linux"]["resources"]["pids"] = json!({ "limit": 7 });
        });
        bundle.write()?;
        let args = [vec!["--systemd-cgroup".to_owned()], bundle.command_line("run", &id)].concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let script = if test.host.by_systemd { "" } else { SYSTEMD };
        Output::of(changed(test, script, &args))?.fails_with(&format!("the annotation `{key}`"))?;
    }
    Ok(())
}

/// Every user of the system bus may send signals to every other.
fn only_systemd_ends_its_jobs(test: &Test) -> Outcome {
    only_v2(test)?;
    test.only_rt()?;
    if test.host.by_systemd {
        return skip("this host has a systemd, beside which none can be put");
    }
    let id = test.id();
    let bundle = test.sh("echo ran")?.edit(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("system.slice:rt:{id}"));
    });
    bundle.write()?;
    let socket = test.folder.join("bus");
    bus::start(&socket, Path::new("/sys/fs/cgroup").join(format!("rt-{id}.scope")))?;
    let args = [vec!["--systemd-cgroup".to_owned()], bundle.command_line("run", &id)].concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = changed(test, SYSTEMD, &args);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", socket.display()));
    let output = Output::of(command);
    let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(format!("rt-{id}.scope")));
    output?.success()?.stdout("ran\n").map(drop)
}

fn systemd_is_reached_by_its_own_socket_and_by_the_bus(test: &Test) -> Outcome {
    test.only_rt()?;
    if !test.host.by_systemd {
        return skip("cgroups are not made by systemd here");
    }
    let (own, bus) = ("/run/systemd/private", "/run/dbus/system_bus_socket");
    let hide = |socket: &str| format!("mount --bind /dev/null {socket}");
    let bundle = test.sh("cat /proc/self/cgroup")?;
    for script in [hide(bus), hide(own), format!("export DBUS_SYSTEM_BUS_ADDRESS=unix:path={bus}")]
    {
        let output = run_changed(&bundle, &script)?.success()?;
        ensure(output.stdout.contains(".scope"), output.stdout)?;
    }
    run_changed(&bundle, &format!("{}; {}", hide(own), hide(bus)))?
        .fails_with("connect to `/run/dbus/system_bus_socket`")
        .map(drop)
}

fn a_process_that_cannot_be_read_is_alive(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let script = format!("mount --bind /dev/null /proc/{}/stat", container.pid()?);
    for args in [&["delete"][..], &["delete", "--force"], &["state"], &["kill"]] {
        let args = [args, &[&container.id]].concat();
        Output::of(changed(test, &script, &args))?.fails_with("/stat`")?;
    }
    ensure_eq(container.status()?.as_str(), "running")
}
