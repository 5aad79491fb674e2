//! Checkpoints and restores that must fail, and interruptions of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::cgroup_attacks::{everywhere, remove_all};
use super::cgroups::cgroup;
use super::checkpoint::{
    COUNT, criu, images, needs_criu, piped, restore, restore_command, start, write,
};
use super::checkpoint_attacks::is_refused;
use super::checkpoint_guard::checkpoint;
use super::checkpoint_images::{limited, most_meanwhile};
use super::needs;
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, has_process, skip,
    wait_until,
};

super::tests! { "checkpoint_failures":
    a_failing_hook_undoes_the_restore, a_cgroup_that_stays_has_the_limits_of_the_configuration, more_processes_than_the_limit_are_refused,
    many_processes_do_not_raise_the_limit_of_memory_for_ever, a_pid_file_that_cannot_be_written_undoes_the_restore, a_restore_that_is_killed_can_be_deleted,
    a_restore_that_is_killed_can_be_deleted_without_a_cgroup, a_checkpoint_that_is_killed_lets_the_container_go_on,
    a_container_that_ends_meanwhile_is_not_written, a_cgroup_in_use_is_left_alone, a_damaged_checkpoint_leaves_nothing,
    what_cannot_be_written_is_refused, namespaces_that_could_not_be_restored_are_refused, what_cannot_be_restored_is_refused,
    only_the_administrators_configuration_is_taken, what_would_be_lost_is_refused, without_criu_it_says_so, cgroups_of_others_are_not_made_again,
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

/// While CRIU works, the container has more memory.
fn a_cgroup_that_stays_has_the_limits_of_the_configuration(test: &Test) -> Outcome {
    needs_criu()?;
    needs(test, "memory")?;
    if test.host.by_systemd {
        return skip("systemd makes each scope anew");
    }
    let bundle = limited(test.sh(COUNT)?);
    checkpoint(&bundle)?;
    let name = test.id();
    let cgroups = everywhere(test, &name)?;
    cgroups.iter().try_for_each(fs::create_dir)?;
    let bundle = bundle.edit(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        config["hooks"]["createRuntime"] = json!([{ "path": "/bin/false" }]);
    });
    let refused = is_refused(&bundle, "run createRuntime hook `/bin/false`");
    let files = ["memory.max", "memory.limit_in_bytes"];
    let files = cgroups.iter().flat_map(|cgroup| files.map(|file| cgroup.join(file)));
    let limits: Vec<_> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    remove_all(&cgroups);
    refused?;
    ensure_eq(limits, vec![format!("{}\n", 64 << 20)])
}

/// CRIU is in the cgroup for a time. The container forks all the time.
fn more_processes_than_the_limit_are_refused(test: &Test) -> Outcome {
    needs_criu()?;
    needs(test, "pids")?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let limited = |limit: i64| {
        let bundle = bundle.clone();
        bundle.edit(|config| config["linux"]["resources"]["pids"] = json!({ "limit": limit }))
    };
    is_refused(&limited(1), "the checkpoint has 2 processes and threads, and the limit is 1")?;
    let bundle = limited(2);
    bundle.write()?;
    let container = restore(&bundle, &[])?;
    wait_until("it goes on", || container.stdout().is_ok_and(|text| text.lines().count() > 5))?;
    ensure_eq(container.status()?.as_str(), "running")?;
    let file = cgroup(test, &container, "pids")?.join("pids.current");
    for _ in 0..100 {
        ensure(fs::read_to_string(&file)?.trim().parse::<u32>()? <= 2, "more than the limit")?;
    }
    Ok(())
}

/// A process of the images gives memory to CRIU, but not without end.
fn many_processes_do_not_raise_the_limit_of_memory_for_ever(test: &Test) -> Outcome {
    needs_criu()?;
    needs(test, "memory")?;
    let bundle =
        limited(test.sh(&format!(
            "n=0; while [ $n -lt 150 ]; do sleep 1000 & n=$((n + 1)); done; {COUNT}"
        ))?);
    checkpoint(&bundle)?;
    let bundle = bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 24 << 20, "swap": 24 << 20 });
    });
    bundle.write()?;
    let id = test.id();
    let most = most_meanwhile(&bundle, &id, ["memory.max", "memory.limit_in_bytes"])?;
    test.rt(["delete", "--force", &id])?;
    ensure_eq(most >> 20, 24 + 128 + 4 * 24)
}

fn a_pid_file_that_cannot_be_written_undoes_the_restore(test: &Test) -> Outcome {
    needs_criu()?;
    // Processes with this mark in their arguments count too.
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

fn a_restore_that_is_killed_can_be_deleted(test: &Test) -> Outcome {
    killed_and_deleted(test, &test.sh(COUNT)?, &[])
}

/// Without a cgroup, `delete` cannot find the processes by the cgroup.
fn a_restore_that_is_killed_can_be_deleted_without_a_cgroup(test: &Test) -> Outcome {
    killed_and_deleted(test, &test.sh(COUNT)?, &["--cgroup-manager=disabled"])
}

fn killed_and_deleted(test: &Test, bundle: &Bundle<'_>, flags: &[&str]) -> Outcome {
    needs_criu()?;
    // Processes with this mark in their arguments count too.
    let mark = test.id();
    let bundle = bundle.clone().args(&["/bin/sh", "-c", &format!("{COUNT} # {mark}")]);
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let reached = test.folder.join("reached");
    let script = format!("touch {}; sleep 2", reached.display());
    let hook =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
    let bundle = bundle.edit(|config| config["hooks"]["createRuntime"] = hook);
    bundle.write()?;
    let id = test.id();
    let restore = restore_command(&bundle, &id, &["--detach"]);
    let mut command = Command::new(restore.get_program());
    command.args(flags).args(restore.get_args()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut restore = command.spawn()?;
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
        // `rt` itself does not read these.
        if name.starts_with("fs-") {
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
    for address in ["here", ":80", "a:0", "::1:80"] {
        container
            .rt(&["checkpoint", "--page-server", address])?
            .fails_with(&format!("wrong value `{address}` for `--page-server`"))?;
    }
    // Numbers that are not open in the caller, including those that the runtime has opened itself.
    for number in ["99", "-1", "2", "3", "4", "5", "6"] {
        container.rt(&["checkpoint", &format!("--status-fd={number}")])?.fails_with(&format!(
            "wrong value `{number}` for `--status-fd`: Bad file descriptor"
        ))?;
    }
    container
        .rt(&["checkpoint", "--manage-cgroups-mode", "x"])?
        .fails_with("one of soft, full, strict, ignore")?;
    container
        .rt(&["checkpoint", "--image-path", "/proc/none/x"])?
        .fails_with("open `/proc/none/x`")?;
    ensure_eq(container.status()?.as_str(), "running")?;
    container.kill("KILL")?;
    container.wait()?;
    checkpoint(&container.id)?.fails_with("the container is not running: stopped")?;
    let module = test.wasm("probe", &["sleep"])?.start()?;
    checkpoint(&module.id)?.fails_with("its program is a WebAssembly module")?;
    ensure_eq(module.status()?.as_str(), "running")
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
    // CRI-O learns by these words that it can restore pods.
    test.rt(["restore", "--lsm-mount-context"])?.fails_with("flag needs an argument")?;
    test.rt(["restore", "--help"])?.success()?;
    let running = bundle.start()?;
    fs::write(images(test).join("descriptors.json"), "[]")?;
    // Another runtime does not record the restrictions of mounts.
    try_it(&["--detach"])?
        .fails_with("mounts.json` of the checkpoint: No such file or directory")?;
    fs::write(images(test).join("mounts.json"), "[]")?;
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
    // If CRIU is installed, the script hides it from this runtime.
    let script = "PATH=/none; for criu in /usr/sbin/criu /usr/local/sbin/criu; do \
                  [ ! -e $criu ] || /bin/mount --bind /dev/null $criu; done; exec \"$@\"";
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "/bin/sh", "-c", script, "sh"]).args(words);
    Output::of(hidden)?.fails_with("find the program `criu`")?;
    ensure_eq(fs::read_dir(&images)?.count(), 0)?;
    // By the exit code, CRI-O and go-runc learn whether checkpoints are possible at all.
    let installed = criu().arg("--version").output()?.status.success();
    let help = test.rt(["checkpoint", "--help"])?;
    ensure_eq(help.code, Some(if installed { 0 } else { 1 }))?;
    let features = test.rt(["features"])?.success()?.stdout;
    let claimed = features.contains("checkpoint.enabled\": \"true\"");
    ensure_eq(claimed, installed)?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// A program `criu` that reports its start, and becomes CRIU after a signal file appears.
fn waiting_criu(test: &Test) -> Outcome<PathBuf> {
    let folder = test.folder.join("bin");
    fs::create_dir(&folder)?;
    let script = format!(
        "#!/bin/sh\nPATH={}:/usr/sbin:/usr/bin:/bin\n[ \"$1\" = swrk ] || exec criu \"$@\"\necho $$ >{here}/started\n\
         i=0; while [ $i -lt 100 ] && [ ! -e {here}/go ]; do sleep 0.05; i=$((i + 1)); done\nexec criu \"$@\"\n",
        std::env::var("PATH").unwrap_or_default(),
        here = test.folder.display(),
    );
    fs::write(folder.join("criu"), script)?;
    fs::set_permissions(folder.join("criu"), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Starts a checkpoint. CRIU waits for the permission to go on.
fn write_slowly(test: &Test, container: &Container<'_>) -> Outcome<Child> {
    let images = images(test).display().to_string();
    let mut command = test.command(["checkpoint", "--image-path", &images, &container.id]);
    let checkpoint = command.env("PATH", waiting_criu(test)?).stderr(Stdio::null()).spawn()?;
    let started = test.folder.join("started");
    wait_until("CRIU runs", || fs::read_to_string(&started).is_ok_and(|pid| pid.ends_with('\n')))?;
    Ok(checkpoint)
}

fn a_checkpoint_that_is_killed_lets_the_container_go_on(test: &Test) -> Outcome {
    needs_criu()?;
    test.only_rt()?;
    let container = start(&test.sh(COUNT)?)?;
    container.wait_for_output("1\n")?;
    let mut checkpoint = write_slowly(test, &container)?;
    checkpoint.kill()?;
    checkpoint.wait()?;
    fs::write(test.folder.join("go"), "")?;
    let criu = fs::read_to_string(test.folder.join("started"))?;
    let criu = PathBuf::from("/proc").join(criu.trim());
    wait_until("CRIU has ended", || !criu.exists())?;
    ensure_eq(container.status()?.as_str(), "running")?;
    let lines = container.stdout()?.lines().count();
    wait_until("it goes on", || {
        container.stdout().is_ok_and(|out| out.lines().count() > lines + 1)
    })?;
    write(test, &container, &[])?.success().map(drop)
}

fn a_container_that_ends_meanwhile_is_not_written(test: &Test) -> Outcome {
    needs_criu()?;
    test.only_rt()?;
    let container = start(&test.sh(COUNT)?)?;
    container.wait_for_output("1\n")?;
    let mut checkpoint = write_slowly(test, &container)?;
    container.kill("KILL")?;
    container.wait()?;
    fs::write(test.folder.join("go"), "")?;
    ensure(!checkpoint.wait()?.success(), "a dead container was written")?;
    ensure_eq(container.status()?.as_str(), "stopped")
}

/// A restore that fails does not undo the work of others.
fn a_cgroup_in_use_is_left_alone(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &["--leave-running"])?.success()?;
    let id = test.id();
    let flags = ["--detach"];
    let path = if test.host.by_systemd {
        format!("system.slice:rt:{}", container.id)
    } else {
        format!("/rt-{}", container.id)
    };
    let bundle = bundle.edit(|config| config["linux"]["cgroupsPath"] = json!(path));
    fs::write(bundle.folder.join("config.json"), bundle.config.to_string())?;
    let output = Output::of(restore_command(&bundle, &id, &flags))?;
    ensure(output.code != Some(0), "restored into another's cgroup")?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure_eq(container.status()?.as_str(), "running")?;
    ensure(!cgroups_of(&container.id).is_empty(), "the other's cgroup is gone")
}

/// The checkpoint fails before the container ends.
fn namespaces_that_could_not_be_restored_are_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let other = test.sh("exec sleep 60")?.namespace(json!({ "type": "cgroup" })).start()?;
    let path = format!("/proc/{}/ns/cgroup", other.pid()?);
    let bundle = test.sh("exec sleep 60")?.namespace(json!({ "type": "cgroup", "path": path }));
    let container = bundle.start()?;
    write(test, &container, &[])?.fails_with("cannot restore into a cgroup namespace")?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// Properties that the restored container would lose.
fn what_would_be_lost_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let user = test.sh("exec sleep 60")?.namespace(json!({ "type": "user" })).edit(|config| {
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
    });
    fs::set_permissions(&test.folder, fs::Permissions::from_mode(0o755))?;
    let container = user.start()?;
    write(test, &container, &["--parent-path", "../first"])?
        .fails_with("cannot be reached at a restore with a user namespace")
        .map(drop)
}

/// CRIU runs what its configuration says as root.
fn only_the_administrators_configuration_is_taken(test: &Test) -> Outcome {
    test.only_rt()?;
    let own = test.folder.join("criu.conf");
    fs::write(&own, "action-script /bin/true\n")?;
    let own = own.display().to_string();
    let bundle = test.sh("exec sleep 60")?.annotation("org.criu.config", &own);
    let container = bundle.start()?;
    write(test, &container, &[])?
        .fails_with(&format!("the annotation `org.criu.config`: `{own}` is not in `/etc/criu`"))?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// CRIU also dumps the cgroups below the cgroup of a process: here below the root of a hierarchy,
/// or below the caller's cgroup.
fn cgroups_of_others_are_not_made_again(test: &Test) -> Outcome {
    needs_criu()?;
    let hierarchy = test.folder.join("hierarchy");
    fs::create_dir(&hierarchy)?;
    let mount = |program: &str, args: &[&str]| -> Outcome {
        let mut command = Command::new(program);
        command.args(args).arg(&hierarchy);
        Output::of(command)?.success().map(drop)
    };
    mount("mount", &["-t", "cgroup2", "cgroup2"])?;
    let check = || -> Outcome {
        let table = fs::read_to_string("/proc/self/cgroup")?;
        let own = table.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("in no cgroup")?;
        let bundle = test.sh(COUNT)?;
        bundle.write()?;
        let folder = bundle.folder.display().to_string();
        for manager in [&[][..], &["--cgroup-manager=disabled"]] {
            let other = hierarchy.join(own).join(format!("of-others-{}", test.id()));
            fs::create_dir(&other)?;
            let id = test.id();
            let create = [manager, &["create", "--bundle", &folder, &id]].concat();
            let container = piped(test, &id, test.command(create))?;
            container.start()?;
            container.wait_for_output("1\n")?;
            let written = write(test, &container, &[]);
            fs::remove_dir(&other)?;
            written?.success()?;
            let id = test.id();
            let restore = restore_command(&bundle, &id, &["--detach"]);
            let args: Vec<_> = manager
                .iter()
                .map(|flag| (*flag).to_owned())
                .chain(restore.get_args().map(|arg| arg.to_string_lossy().into_owned()))
                .collect();
            let mut command = Command::new(restore.get_program());
            command.args(args);
            let restored = piped(test, &id, command)?;
            let again = fs::remove_dir(&other).is_ok();
            restored.kill("KILL")?;
            restored.wait()?;
            restored.delete()?;
            ensure(!again, format!("{manager:?}: it was made again"))?;
            fs::remove_dir_all(images(test))?;
        }
        Ok(())
    };
    let checked = check();
    mount("umount", &[])?;
    checked
}
