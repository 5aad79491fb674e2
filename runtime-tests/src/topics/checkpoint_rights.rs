//! The rights after a restore, if the container of the checkpoint had more than the configuration
//! gives now. The configuration is the caller's. The images are not trusted.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::checkpoint::{
    COUNT, images, move_on, needs_criu, piped, restore, restore_command, start, write,
};
use super::checkpoint_attacks::{is_refused, options_at};
use super::checkpoint_kinds::PERL_COUNT;
use crate::harness::{Bundle, Container, Outcome, Test, cgroups_of, ensure, ensure_eq, skip};

super::tests! { "checkpoint_rights":
    filesystems_of_the_kernel_are_as_read_only_as_the_configuration_says, a_mount_that_the_configuration_has_not_is_refused,
    what_is_open_below_a_new_mask_is_refused, what_is_below_a_read_only_path_is_read_only, a_part_of_a_mount_has_no_more_rights_than_that, an_overlay_of_other_directories_is_refused,
    a_process_in_another_mount_namespace_is_refused, a_mount_of_another_mount_namespace_is_refused,
    limits_are_the_configurations, priorities_are_the_configurations, real_time_is_the_configurations, what_a_process_lowered_stays_low,
    what_the_container_has_mounted_comes_back, processes_are_limited_before_they_run,
    a_mount_of_the_configuration_that_is_missing_is_refused, a_proc_that_hides_less_is_refused,
    memory_is_limited_before_it_is_used, a_container_with_many_mounts_goes_on,
}

const SETS: [&str; 3] = ["bounding", "effective", "permitted"];

fn may_mount(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        for set in SETS {
            config["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_SYS_ADMIN"]);
        }
    })
}

fn may_not_mount(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        for set in SETS {
            config["process"]["capabilities"][set] = json!(["CAP_KILL"]);
        }
    })
}

fn with_options<'a>(bundle: Bundle<'a>, destination: &str, options: &[&str]) -> Bundle<'a> {
    bundle.edit(|config| {
        let mounts = config["mounts"].as_array_mut();
        for mount in mounts.into_iter().flatten().filter(|it| it["destination"] == destination) {
            mount["options"] = json!(options);
        }
    })
}

/// Starts a container, and writes its checkpoint when the container has begun to count.
fn checkpoint<'a>(bundle: &Bundle<'a>) -> Outcome<Container<'a>> {
    let container = start(bundle)?;
    container.wait_for_output("1\n")?;
    write(bundle.test, &container, &[])?.success()?;
    Ok(container)
}

fn filesystems_of_the_kernel_are_as_read_only_as_the_configuration_says(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test
        .sh(COUNT)?
        .namespace(json!({ "type": "cgroup" }))
        .mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" }))
        .mount(json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue" }))
        .mount(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs" }));
    let places = ["/proc", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/scratch"];
    let all = |options: &[&str]| {
        places.into_iter().fold(bundle.clone(), |all, place| with_options(all, place, options))
    };
    checkpoint(&all(&[]))?;
    let strict = all(&["ro", "nosuid", "nodev", "noexec"]);
    strict.write()?;
    let pid = restore(&strict, &[])?.pid()?;
    for place in places {
        let options = options_at(pid, place)?;
        ensure(options.starts_with("ro,nosuid,nodev,noexec"), format!("{place} has {options}"))?;
    }
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let mut hierarchies = table.lines().filter(|line| line.contains(" - cgroup"));
    ensure(hierarchies.all(|line| line.contains(" ro,nosuid,nodev,noexec")), table.clone())
}

fn a_mount_that_the_configuration_has_not_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    for kind in ["proc", "sysfs", "mqueue"] {
        let mount = json!({ "destination": "/more", "type": kind, "source": kind });
        checkpoint(&bundle.clone().mount(mount))?;
        let words = format!("the mount `/more` ({kind}) is not a mount of the configuration");
        is_refused(&bundle, &words)?;
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

/// CRIU opens files again by their names, before `rt` masks them.
fn what_is_open_below_a_new_mask_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    for (script, list) in [
        ("exec 3<>/proc/sys/kernel/domainname", "readonlyPaths"),
        ("exec 3</proc/sys/kernel", "readonlyPaths"),
        ("cd /proc/sys/kernel", "readonlyPaths"),
        ("exec 3</etc/inner/secret", "maskedPaths"),
        ("cd /etc/inner", "maskedPaths"),
    ] {
        let bundle = test.sh(&format!("{script}; {COUNT}"))?.file("/etc/inner/secret", "secret")?;
        checkpoint(&bundle)?;
        let strict =
            bundle.edit(|config| config["linux"][list] = json!(["/proc/sys", "/etc/inner"]));
        is_refused(&strict, "the configuration masks more than the checkpoint did")?;
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

/// The path itself may be read-only already.
fn what_is_below_a_read_only_path_is_read_only(test: &Test) -> Outcome {
    needs_criu()?;
    let bind = "mount -o bind /proc/sys/kernel /proc/sys/kernel";
    let script = format!("{bind}; mount -o remount,bind,rw /proc/sys/kernel; {COUNT}");
    let bundle = may_mount(test.sh(&script)?);
    let strict =
        bundle.clone().edit(|config| config["linux"]["readonlyPaths"] = json!(["/proc/sys"]));
    for before in [&bundle, &strict] {
        checkpoint(before)?;
        strict.write()?;
        let look = "echo x >/proc/sys/kernel/domainname && echo writable; echo end";
        let restored = restore(&strict, &[])?;
        test.rt(["exec", &restored.id, "sh", "-c", look])?.success()?.stdout("end\n")?;
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

/// A container that may mount makes such a bind mount.
fn a_part_of_a_mount_has_no_more_rights_than_that(test: &Test) -> Outcome {
    needs_criu()?;
    let folder = test.folder.join("shared");
    fs::create_dir_all(folder.join("inner"))?;
    let volume = json!({ "destination": "/data", "type": "bind", "source": folder, "options": ["bind", "ro"] });
    let script = "mkdir /part; mount -o bind /data/inner /part; mount -o remount,bind,rw /part";
    let bundle = may_mount(test.sh(&format!("{script}; {COUNT}"))?.mount(volume));
    checkpoint(&bundle)?;
    is_refused(&may_not_mount(bundle.clone()), "the mount `/part` (")?;
    bundle.write()?;
    let options = options_at(restore(&bundle, &[])?.pid()?, "/part")?;
    ensure(options.starts_with("ro,"), options)
}

/// CRIU mounts the directories of the host that the images name.
fn an_overlay_of_other_directories_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    for name in ["one", "two", "three"] {
        fs::create_dir(test.folder.join(name))?;
        fs::write(test.folder.join(name).join(name), "")?;
    }
    let bundle = test.sh(COUNT)?;
    let with = |one: &str, two: &str| {
        let [one, two] = [one, two].map(|name| test.folder.join(name).display().to_string());
        let options = [format!("lowerdir={one}:{two}")];
        bundle.clone().mount(json!({ "destination": "/layers", "type": "overlay", "source": "overlay", "options": options }))
    };
    checkpoint(&with("one", "two"))?;
    is_refused(
        &with("one", "three"),
        "the mount `/layers` (overlay) is not a mount of the configuration",
    )?;
    let same = with("one", "two");
    same.write()?;
    let restored = restore(&same, &[])?;
    test.rt(["exec", &restored.id, "ls", "/layers"])?.success()?.stdout("one\ntwo\n").map(drop)
}

/// Runs a script in another mount namespace, and counts after the script is done.
fn in_another_mount_namespace(script: &str) -> String {
    let other = format!("{script}; : >/done; exec sleep 600");
    format!(
        "unshare -m sh -c '{other}' >/dev/null 2>&1 & until test -e /done; do sleep 0.1; done; {COUNT}"
    )
}

/// No path is masked or read-only in the other namespace.
fn a_process_in_another_mount_namespace_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = may_mount(test.sh(&in_another_mount_namespace("true"))?);
    checkpoint(&bundle)?;
    let words = "it is in another mount namespace than the first process";
    is_refused(&may_not_mount(bundle.clone()), words)?;
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// The container may have another namespace, but not this mount.
fn a_mount_of_another_mount_namespace_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let mount = "mkdir /layers; mount -t overlay -o lowerdir=/bin:/etc overlay /layers";
    let container = start(&may_mount(test.sh(&in_another_mount_namespace(mount))?))?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?
        .fails_with("the mount `/layers` (overlay) is not a mount of the configuration")?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn score(pid: i32) -> Outcome<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().to_owned())
}

fn limits(pid: i32) -> Outcome<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let found = text.lines().filter(|line| {
        ["Max open files", "Max core file size"].iter().any(|name| line.starts_with(name))
    });
    Ok(found
        .flat_map(str::split_whitespace)
        .filter(|it| it.parse::<u64>().is_ok())
        .collect::<Vec<_>>()
        .join(" "))
}

fn with_limits(bundle: Bundle<'_>, score: i32, files: u64, core: u64) -> Bundle<'_> {
    bundle.edit(|config| {
        config["process"]["oomScoreAdj"] = json!(score);
        config["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": files, "hard": files },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": core },
        ]);
    })
}

fn limits_are_the_configurations(test: &Test) -> Outcome {
    needs_criu()?;
    // The limits apply to the second process too.
    let bundle = test.sh(&format!("sh -c 'while :; do sleep 1; done' & {COUNT}"))?;
    checkpoint(&with_limits(bundle.clone(), 0, 5000, 1000))?;
    let strict = with_limits(bundle, 300, 100, 0);
    strict.write()?;
    for pid in tree(restore(&strict, &[])?.pid()?)? {
        ensure_eq((score(pid)?.as_str(), limits(pid)?.as_str()), ("300", "0 0 100 100"))?;
    }
    Ok(())
}

/// A process and its children, without `sleep`.
fn tree(pid: i32) -> Outcome<Vec<i32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let is_shell = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sh\n")
    };
    Ok([pid].into_iter().chain(children.filter(is_shell)).collect())
}

/// The policy and the nice value of a process.
fn scheduling(pid: i32) -> Outcome<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok((fields[38].to_owned(), fields[16].to_owned()))
}

fn with_scheduler<'a>(bundle: &Bundle<'a>, scheduler: &Value) -> Bundle<'a> {
    bundle.clone().edit(|config| config["process"]["scheduler"] = scheduler.clone())
}

fn low() -> Value {
    json!({ "policy": "SCHED_OTHER", "nice": 7 })
}

fn priorities_are_the_configurations(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let urgent = json!({ "policy": "SCHED_OTHER", "nice": -9 });
    for (scheduler, nice) in [(json!(null), "0"), (low(), "7")] {
        checkpoint(&with_scheduler(&bundle, &urgent))?;
        let bundle = with_scheduler(&bundle, &scheduler);
        bundle.write()?;
        ensure_eq(scheduling(restore(&bundle, &[])?.pid()?)?, ("0".to_owned(), nice.to_owned()))?;
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

fn real_time_is_the_configurations(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let real_time = json!({ "policy": "SCHED_FIFO", "priority": 10 });
    let Ok(container) = start(&with_scheduler(&bundle, &real_time)) else {
        return skip("no process of a cgroup gets real time here");
    };
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let bundle = with_scheduler(&bundle, &low());
    bundle.write()?;
    ensure_eq(scheduling(restore(&bundle, &[])?.pid()?)?, ("0".to_owned(), "7".to_owned()))
}

fn what_a_process_lowered_stays_low(test: &Test) -> Outcome {
    needs_criu()?;
    // CRIU gets descriptors from the process. The kernel refuses to send any while as many of the
    // user's are on their way as this limit allows, whoever sends them.
    let script = format!(
        "ulimit -n 500; echo 400 >/proc/self/oom_score_adj; renice -n 5 -p $$ >/dev/null; {COUNT}"
    );
    let bundle = with_limits(test.sh(&script)?, 0, 1000, 0);
    let pid = move_on(&bundle, "1\n")?.pid()?;
    ensure_eq((score(pid)?.as_str(), limits(pid)?.as_str()), ("400", "0 0 500 500"))?;
    ensure_eq(scheduling(pid)?, ("0".to_owned(), "5".to_owned()))
}

fn what_the_container_has_mounted_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let script = "mkdir /a /b /c; mount -t proc proc /a; mount -t tmpfs tmpfs /b; echo mine >/b/file; mount -t mqueue mqueue /c";
    let restored = move_on(&may_mount(test.sh(&format!("{script}; {COUNT}"))?), "1\n")?;
    let look = "cat /a/1/comm /b/file; grep -c ' /[abc] ' /proc/self/mountinfo";
    test.rt(["exec", &restored.id, "sh", "-c", look])?.success()?.stdout("sh\nmine\n3\n").map(drop)
}

/// If the limits came later, the processes made before would stay.
fn processes_are_limited_before_they_run(test: &Test) -> Outcome {
    needs_criu()?;
    super::needs(test, "pids")?;
    let script = "$| = 1; print \"1\\n\"; while (1) { my $p = fork; if (defined $p && !$p) { sleep 1000; exit } }";
    let bundle = test.perl(script)?.edit(|config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 20 });
    });
    checkpoint(&bundle)?;
    let container = restore(&bundle, &[])?;
    let pid = container.pid()?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let count = children.split_whitespace().count();
    ensure(count < 20, format!("{count} children"))
}

/// The covered place exists: it is a part of a volume that the container may write to.
fn a_mount_of_the_configuration_that_is_missing_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let folder = test.folder.join("shared");
    fs::create_dir_all(folder.join("inner"))?;
    let volume = |destination: &str, source: &Path, option: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind", option] });
    let bundle = may_not_mount(test.sh(COUNT)?).mount(volume("/data", &folder, "rw"));
    let strict = bundle.clone().mount(volume("/data/inner", &folder.join("inner"), "ro"));
    checkpoint(&bundle)?;
    is_refused(&strict, "the configuration has a mount on `/data/inner`, which is missing")?;
    fs::remove_dir_all(images(test))?;
    checkpoint(&strict)?;
    strict.write()?;
    let options = options_at(restore(&strict, &[])?.pid()?, "/data/inner")?;
    ensure(options.starts_with("ro,"), options)
}

fn a_proc_that_hides_less_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = may_not_mount(test.sh(COUNT)?);
    let strict = with_options(bundle.clone(), "/proc", &["hidepid=2"]);
    checkpoint(&bundle)?;
    is_refused(&strict, "the mount `/proc` (proc) is not a mount of the configuration")?;
    fs::remove_dir_all(images(test))?;
    checkpoint(&strict)?;
    strict.write()?;
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", restore(&strict, &[])?.pid()?))?;
    ensure(table.contains("hidepid="), table)
}

/// The limit covers all memory, except for CRIU's own memory until CRIU has ended.
fn memory_is_limited_before_it_is_used(test: &Test) -> Outcome {
    const MIB: u64 = 1 << 20;
    needs_criu()?;
    super::needs(test, "memory")?;
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let v2 = test.host.lane == "v2";
    let script = "$| = 1; print \"1\\n\"; 1 until -e '/go'; my @all; push @all, 'x' x 1048576 while @all < 600; sleep 60";
    let limits = [
        json!({ "memory": { "limit": 64 * MIB, "swap": 64 * MIB } }),
        json!({ "unified": { "memory.max": (64 * MIB).to_string(), "memory.swap.max": "0" } }),
    ];
    for limits in limits.iter().take(if v2 { 2 } else { 1 }) {
        let bundle = test.perl(script)?.edit(|config| {
            for (key, value) in limits.as_object().into_iter().flatten() {
                config["linux"]["resources"][key] = value.clone();
            }
        });
        checkpoint(&bundle)?;
        fs::write(bundle.rootfs().join("go"), "")?;
        // The runtime waits for CRIU's end for a while, and the container already runs then.
        let id = test.id();
        let restore = restore_command(&bundle, &id, &["--detach"]);
        let mut held_up = Command::new("strace");
        held_up.args(["--inject=wait4,waitid:delay_enter=2000000", "--output=/dev/null"]);
        held_up.arg(restore.get_program()).args(restore.get_args());
        let container = piped(test, &id, held_up)?;
        let peak = if v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let files = cgroups_of(&container.id).into_iter().map(|path| path.join(peak));
        let Some(file) = files.into_iter().find(|file| file.exists()) else {
            return skip("this kernel does not tell the most memory that was used");
        };
        // The process dies when it has used too much memory. systemd then removes its cgroup.
        let process = format!("/proc/{}/stat", container.pid()?);
        let mut most = 0_u64;
        crate::harness::wait_up_to(std::time::Duration::from_secs(60), "its end", || {
            let peak = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            most = most.max(peak.unwrap_or(0));
            fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "))
        })?;
        container.wait()?;
        ensure(most < 110 * MIB, format!("it had {} MiB, with {limits}", most / MIB))?;
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

/// A restore would compare all mounts with each other.
fn a_container_with_many_mounts_goes_on(test: &Test) -> Outcome {
    needs_criu()?;
    // `mount`, with `MS_BIND`.
    let script = r#"
        $| = 1;
        mkdir("/m");
        my ($at, $kind) = ("/m", "none");
        for (1..4100) { syscall(165, $at, $at, $kind, 4096, 0) == 0 or die; }
    "#;
    let bundle = may_mount(test.perl(&format!("{script}{PERL_COUNT}"))?);
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let words = "it could not be restored: it has more than 4096 mounts";
    write(test, &container, &[])?.fails_with(words)?;
    ensure_eq(container.status()?.as_str(), "running")
}
