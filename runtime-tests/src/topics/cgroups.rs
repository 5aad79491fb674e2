//! Cgroups, with each way to mount them (lanes).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, skip,
};

super::tests! { "cgroups":
    no_processes_are_no_limit, no_limit_needs_no_controller, a_limit_of_no_processes_is_a_limit_since_1_3, every_access_has_a_letter, what_is_forbidden_of_many_devices_is_forbidden, memory_without_a_limit_has_none_with_swap, a_quota_goes_below_its_burst, several_lines_are_written_one_by_one, devices_are_denied_without_a_rule,
    every_number_of_bytes_is_taken, update_by_flags, update_takes_every_flag, update_by_json, update_changes_only_what_is_given, update_with_wrong_values,
    a_created_container_is_in_its_cgroup, the_path_is_taken, a_cgroup_is_removed_with_what_is_below, memory_is_limited,
    copied_memory_counts_for_the_container, processes_are_limited, processors_are_limited, a_cgroup_namespace_hides_the_path, a_cgroup_mount_shows_its_own, a_joined_namespace_shows_no_others,
    without_a_manager_there_is_none, without_systemd_its_manager_is_refused, devices_are_denied, unified_values_are_written, what_cannot_be_limited_is_an_error,
    swap_is_what_is_above_the_memory, swap_that_is_not_counted_needs_no_limit, realtime_changes_by_any_factor, what_is_idle_no_longer_has_a_weight, systemd_knows_what_is_idle,
    a_container_is_made_below_a_threaded_cgroup, a_container_is_made_below_a_cgroup_with_processes, a_threaded_cgroup_hides_nobody,
    swap_is_limited, bursts_and_idleness_are_set, realtime_is_limited, processors_and_nodes_are_chosen, disks_are_shared, huge_pages_are_limited,
    networks_have_a_class, an_empty_cpuset_above_is_filled, huge_pages_that_are_reserved_are_limited_too, a_delegated_cgroup_is_the_containers_own, systemd_knows_the_limits, systemd_knows_updated_limits,
    systemd_gets_properties_by_annotation, a_property_that_systemd_does_not_know_is_an_error, a_subgroup_is_made_in_the_scope,
    the_name_of_a_scope_is_free_after_a_deletion, a_scope_of_another_container_is_left_alone, a_users_cgroup_is_its_own_where_it_may_write,
}

/// The directory of a container's cgroup, in the hierarchy of a controller or in the only
/// hierarchy.
pub(super) fn cgroup(test: &Test, container: &Container<'_>, controller: &str) -> Outcome<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    let root = Path::new("/sys/fs/cgroup");
    if test.host.lane == "v2" {
        let path =
            table.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("not in a cgroup")?;
        return Ok(root.join(path));
    }
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
        if names.split(',').any(|name| name == controller) {
            return Ok(root.join(names).join(path.trim_start_matches('/')));
        }
    }
    skip(format!("no controller `{controller}` here"))
}

pub(crate) fn needs(test: &Test, controller: &str) -> Outcome {
    let there = match test.host.lane.as_str() {
        "v2" => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?
            .split_whitespace()
            .any(|name| name == controller),
        // The directory can exist without a hierarchy on it.
        _ => Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").exists(),
    };
    if there { Ok(()) } else { skip(format!("no cgroup controller `{controller}` in this lane")) }
}

/// The first line of a file of the container's cgroup. The file has one name in v1 and another name
/// in v2.
fn value(test: &Test, container: &Container<'_>, v1: &str, v2: &str) -> Outcome<String> {
    let file = if test.host.lane == "v2" { v2 } else { v1 };
    let controller = v1.split('.').next().unwrap_or_default();
    let path = cgroup(test, container, controller)?.join(file);
    Ok(fs::read_to_string(path)?.lines().next().unwrap_or_default().to_owned())
}

/// CRI-O writes -1 for pods without a limit of processes.
fn no_limit_needs_no_controller(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": -1 });
        config["linux"]["resources"]["memory"] = json!({ "limit": -1 });
        config["linux"]["resources"]["cpu"] = json!({ "quota": -1 });
    });
    let container = bundle.start()?;
    let command = test.command(["update", "--resources", "-", &container.id]);
    let none = r#"{"pids":{"limit":-1},"memory":{"limit":-1},"cpu":{"quota":-1}}"#;
    Output::with_input(command, none)?.success()?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// podman writes 0 for no limit.
fn no_processes_are_no_limit(test: &Test) -> Outcome {
    needs(test, "pids")?;
    let none = json!({ "limit": 0 });
    let container = test
        .sh("(true); exec sleep 60")?
        .edit(|config| config["linux"]["resources"]["pids"] = none)
        .start()?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "max")?;
    container.rt(&["update", "--pids-limit", "20"])?.success()?;
    let command = test.command(["update", "--resources", "-", &container.id]);
    Output::with_input(command, r#"{"pids":{"limit":0}}"#)?.success()?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "20")
}

/// runtime-spec 1.3 makes 0 a limit, and runc 1.4 sets it to 1. Before, runc and crun disagreed,
/// and podman up to 5.4 writes 0 for no limit.
fn a_limit_of_no_processes_is_a_limit_since_1_3(test: &Test) -> Outcome {
    test.only_rt()?;
    needs(test, "pids")?;
    for (version, limit, expected) in [
        ("1.3.0", 0, "1"),
        ("1.3.0", -1, "max"),
        ("1.3.0", 7, "7"),
        ("1.4.0-rc.1", 0, "1"),
        ("1.2.1", 0, "max"),
        ("1.0.2-dev", 0, "max"),
        ("1.2.1", -1, "max"),
    ] {
        let bundle = test.linux(&["/bin/sleep", "60"])?.edit(|config| {
            config["ociVersion"] = json!(version);
            config["linux"]["resources"]["pids"] = json!({ "limit": limit });
        });
        let there = pids_limit(test, &bundle.start()?)?;
        ensure_eq((version, limit, there.as_str()), (version, limit, expected))?;
    }
    let bundle = test.sh("(true) || true; echo forked")?.edit(|config| {
        config["ociVersion"] = json!("1.3.0");
        config["linux"]["resources"]["pids"] = json!({ "limit": 0 });
    });
    let output = bundle.run()?;
    ensure(output.stderr.contains("can't fork"), output.stderr)
}

/// The output of a script that may make device nodes, with these device rules.
fn with_devices(test: &Test, script: &str, rules: Value) -> Outcome<String> {
    let sets = json!(["CAP_MKNOD", "CAP_KILL"]);
    let bundle = test.sh(script)?.edit(|config| {
        config["process"]["capabilities"] =
            json!({ "bounding": sets, "effective": sets, "permitted": sets });
        config["linux"]["resources"]["devices"] = rules;
    });
    Ok(bundle.run()?.success()?.stdout)
}

/// As in runc, `a` stands for `rwm`.
fn every_access_has_a_letter(test: &Test) -> Outcome {
    test.only_rt()?;
    let fuse = |allow: bool, access: &str| json!({ "allow": allow, "type": "c", "major": 10, "minor": 229, "access": access });
    let all = |allow: bool, access: &str| json!({ "allow": allow, "access": access });
    // The possible accesses. A container that may not make the node cannot open it either.
    let script = "mknod /fuse c 10 229 2> /dev/null; [ -c /fuse ] || exit 0; \
        (: < /fuse) 2>&1 | grep -q 'not permitted' || echo -n r; (: > /fuse) 2>&1 | grep -q 'not permitted' || echo -n w";
    for (rules, expected) in [
        (json!([all(false, "rwm"), fuse(true, "a")]), "rw"),
        (json!([all(false, "a"), fuse(true, "ra")]), "rw"),
        (json!([all(false, "a"), fuse(true, "r")]), "r"),
        (json!([all(true, "a"), fuse(false, "a")]), ""),
        (json!([all(true, "a")]), "rw"),
        (json!([all(false, "a")]), ""),
    ] {
        let told = rules.to_string();
        ensure_eq((&told, with_devices(test, script, rules)?.as_str()), (&told, expected))?;
    }
    Ok(())
}

/// The files of v1 cannot express each of these rules. `rt` refuses a rule that they cannot
/// express. In these files, a rule without a type applies to all devices.
fn what_is_forbidden_of_many_devices_is_forbidden(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "for device in 'c 10 229' 'c 10 230' 'b 7 5'; do
        mknod /node $device 2>&- || { echo -n '- '; continue; }
        (: < /node) 2>&1 | grep -q 'not permitted' || echo -n r; (: > /node) 2>&1 | grep -q 'not permitted' || echo -n w;
        (: <> /node) 2>&1 | grep -q 'not permitted' || echo -n b; rm /node; echo -n '. '; done";
    let script = script.replace("rm ", "/bin/busybox rm ");
    let none = json!({ "allow": false, "access": "rwm" });
    let all = json!({ "allow": true, "access": "rwm" });
    let rule = |allow: bool, access: &str, rest: &Value| {
        let mut rule = rest.clone();
        rule["allow"] = json!(allow);
        rule["access"] = json!(access);
        rule
    };
    let one = json!({ "type": "c", "major": 10, "minor": 229 });
    let major = json!({ "type": "c", "major": 10 });
    let kind = json!({ "type": "c" });
    let untyped = json!({ "major": 10, "minor": 229 });
    let any = json!({});
    for (rules, expected) in [
        (json!([none, rule(true, "rwm", &untyped)]), "rwb. . . "),
        (json!([none, rule(true, "rwm", &json!({ "type": "a", "major": 10 }))]), "rwb. rwb. . "),
        (json!([none, rule(true, "r", &any)]), "r. r. r. "),
        (json!([none, rule(true, "r", &one), rule(true, "w", &one)]), "rwb. . . "),
        (json!([all, rule(false, "rwm", &untyped)]), "- rwb. rwb. "),
        (json!([all, rule(false, "rwm", &one)]), "- rwb. rwb. "),
        (json!([all, rule(false, "m", &one)]), "- rwb. rwb. "),
    ] {
        let told = rules.to_string();
        ensure_eq((&told, with_devices(test, &script, rules)?.as_str()), (&told, expected))?;
    }
    let by_files = Path::new("/sys/fs/cgroup/devices/tasks").exists();
    for (rules, expected) in [
        (json!([none, rule(true, "rwm", &kind), rule(false, "rwm", &one)]), ". rwb. . "),
        (json!([none, rule(true, "rw", &major), rule(false, "w", &one)]), "r. rwb. . "),
        (json!([none, rule(true, "rwm", &one), rule(false, "rwm", &major)]), ". . . "),
        (json!([all, rule(false, "rwm", &major), rule(true, "rwm", &one)]), "rwb. - rwb. "),
    ] {
        let told = rules.to_string();
        if by_files {
            let bundle =
                test.sh("true")?.edit(|config| config["linux"]["resources"]["devices"] = rules);
            bundle.try_create(&test.id())?.fails_with("cannot be taken back from")?;
        } else {
            ensure_eq((&told, with_devices(test, &script, rules)?.as_str()), (&told, expected))?;
        }
    }
    Ok(())
}

fn memory_without_a_limit_has_none_with_swap(test: &Test) -> Outcome {
    needs_file(test, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")?;
    let container = test.sh("exec sleep 60")?.start()?;
    container.rt(&["update", "--memory", "104857600", "--memory-swap", "209715200"])?.success()?;
    container.rt(&["update", "--memory", "-1"])?.success()?;
    let limit = value(test, &container, "memory.limit_in_bytes", "memory.max")?;
    ensure(limit == "max" || limit.len() > 15, limit)?;
    let swap = value(test, &container, "memory.memsw.limit_in_bytes", "memory.swap.max")?;
    ensure(swap == "max" || swap.len() > 15, swap)
}

fn a_quota_goes_below_its_burst(test: &Test) -> Outcome {
    needs_file(test, "cpu", "cpu.cfs_burst_us", "cpu.max.burst")?;
    let container = test.sh("exec sleep 60")?.start()?;
    for (quota, burst) in [("100000", "50000"), ("20000", "10000"), ("200000", "150000")] {
        let flags =
            ["update", "--cpu-period", "100000", "--cpu-quota", quota, "--cpu-burst", burst];
        container.rt(&flags)?.success()?;
        let there = value(test, &container, "cpu.cfs_quota_us", "cpu.max")?;
        ensure_eq(there.trim_end_matches(" 100000"), quota)?;
        ensure_eq(value(test, &container, "cpu.cfs_burst_us", "cpu.max.burst")?.as_str(), burst)?;
    }
    Ok(())
}

fn several_lines_are_written_one_by_one(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        return skip("only cgroup v2 has files by name");
    }
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["unified"] = json!({ "cgroup.max.depth": "7\n8" });
    });
    let container = bundle.create()?;
    let path = cgroup(test, &container, "")?.join("cgroup.max.depth");
    ensure_eq(fs::read_to_string(path)?.trim(), "8")
}

fn devices_are_denied_without_a_rule(test: &Test) -> Outcome {
    test.only_rt()?;
    let mknod = json!(["CAP_MKNOD", "CAP_KILL"]);
    for none in ["a list of none", "no list", "no limits"] {
        let bundle = test.sh("mknod /kmsg c 1 11; head -c 1 /kmsg >/dev/null 2>&1 || echo refused; head -c 1 /dev/zero | wc -c")?;
        let bundle = bundle.edit(|config| {
            config["process"]["capabilities"] =
                json!({ "bounding": mknod, "effective": mknod, "permitted": mknod });
            let linux = &mut config["linux"];
            match none {
                "a list of none" => linux["resources"]["devices"] = json!([]),
                "no list" => linux["resources"] = json!({}),
                _ => drop(linux.as_object_mut().map(|linux| linux.remove("resources"))),
            }
        });
        let output = bundle.run()?.success()?;
        ensure_eq((none, output.stdout.as_str()), (none, "refused\n1\n"))?;
    }
    Ok(())
}

/// The specification has `uint64`, so the largest number is valid.
fn every_number_of_bytes_is_taken(test: &Test) -> Outcome {
    needs_file(test, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")?;
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["hugepageLimits"] =
            json!([{ "pageSize": "2MB", "limit": u64::MAX }]);
    });
    bundle.create().map(drop)
}

fn pids_limit(test: &Test, container: &Container<'_>) -> Outcome<String> {
    value(test, container, "pids.max", "pids.max")
}

fn update_by_flags(test: &Test) -> Outcome {
    for controller in ["pids", "memory", "cpu"] {
        needs(test, controller)?;
    }
    let container = test.sh("exec sleep 60")?.start()?;
    let flags = ["--pids-limit=20", "--memory", "67108864", "--cpu-quota=50000", "--cpu-share=512"];
    container.rt(&[&["update"], &flags[..]].concat())?.success()?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "20")?;
    let memory = value(test, &container, "memory.limit_in_bytes", "memory.max")?;
    ensure_eq(memory.as_str(), "67108864")?;
    let quota = value(test, &container, "cpu.cfs_quota_us", "cpu.max")?;
    ensure_eq(quota.trim_end_matches(" 100000"), "50000")?;
    container.rt(&["update", "--pids-limit", "-1"])?.success()?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "max")?;
    // The limit grows again, with swap above it.
    let flags = ["--memory=134217728", "--memory-swap=268435456"];
    container.rt(&[&["update"], &flags[..]].concat())?.success()?;
    let memory = value(test, &container, "memory.limit_in_bytes", "memory.max")?;
    ensure_eq(memory.as_str(), "134217728")
}

fn update_takes_every_flag(test: &Test) -> Outcome {
    // Each flag, its file in v1 and in v2 (empty if there is none), and the value as each file
    // shows it.
    let flags = [
        ("--cpu-period=50000", "cpu.cfs_period_us", "cpu.max", "max 50000", "50000"),
        ("--cpu-rt-period=500000", "cpu.rt_period_us", "", "", "500000"),
        ("--cpuset-cpus=0", "cpuset.cpus", "cpuset.cpus", "0", "0"),
        ("--cpuset-mems=0", "cpuset.mems", "cpuset.mems", "0", "0"),
        (
            "--memory-reservation=33554432",
            "memory.soft_limit_in_bytes",
            "memory.low",
            "33554432",
            "33554432",
        ),
        ("--blkio-weight=200", "blkio.bfq.weight", "io.weight", "default 1920", "200"),
        ("--pids-limit=21", "pids.max", "pids.max", "21", "21"),
    ];
    let container = test.sh("exec sleep 60")?.start()?;
    let mut tried = 0;
    for (flag, v1, v2, on_v2, on_v1) in flags {
        let (file, expected) = if test.host.lane == "v2" { (v2, on_v2) } else { (v1, on_v1) };
        let controller = v1.split('.').next().unwrap_or_default();
        let there = !file.is_empty()
            && needs(test, if file.starts_with("io.") { "io" } else { controller }).is_ok()
            && cgroup(test, &container, controller)?.join(file).exists();
        if there {
            container.rt(&["update", flag])?.success()?;
            ensure_eq((flag, value(test, &container, v1, v2)?.as_str()), (flag, expected))?;
            tried += 1;
        }
    }
    if tried == 0 {
        return skip("no controller here has any of these");
    }
    // As in runc, `rt` accepts these flags and does nothing. No kernel has these limits any more.
    container
        .rt(&["update", "--kernel-memory=1048576", "--kernel-memory-tcp=0"])?
        .success()
        .map(drop)
}

fn update_by_json(test: &Test) -> Outcome {
    needs(test, "pids")?;
    let container = test.sh("exec sleep 60")?.start()?;
    let command = test.command(["update", "--resources", "-", &container.id]);
    Output::with_input(command, r#"{"pids":{"limit":33}}"#)?.success()?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "33")?;
    let file = test.folder.join("resources.json");
    fs::write(&file, r#"{"pids":{"limit":34},"devices":[{"allow":true,"access":"rwm"}]}"#)?;
    container.rt(&["update", &format!("--resources={}", file.display())])?.success()?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "34")?;
    // The device rules have not changed.
    test.only_rt()?;
    let script = "mknod /dev/x b 7 0 && cat /dev/x";
    let cap = "--cap=CAP_MKNOD";
    let output = test.rt(["exec", cap, &container.id, "/bin/sh", "-c", script])?;
    ensure(output.stderr.contains("not permitted"), output.stderr)
}

fn update_changes_only_what_is_given(test: &Test) -> Outcome {
    needs(test, "cpu")?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["cpu"] = json!({ "quota": 30000, "period": 60000 });
    });
    let container = bundle.start()?;
    let now = || -> Outcome<(String, String)> {
        if test.host.lane == "v2" {
            let text = value(test, &container, "cpu.max", "cpu.max")?;
            let (quota, period) = text.split_once(' ').ok_or("no period")?;
            return Ok((quota.to_owned(), period.to_owned()));
        }
        let value = |file| value(test, &container, file, file);
        Ok((value("cpu.cfs_quota_us")?, value("cpu.cfs_period_us")?))
    };
    let is = |quota: &str, period: &str| ensure_eq(now()?, (quota.to_owned(), period.to_owned()));
    is("30000", "60000")?;
    container.rt(&["update", "--cpu-period=50000"])?.success()?;
    is("30000", "50000")?;
    container.rt(&["update", "--cpu-quota=20000"])?.success()?;
    is("20000", "50000")
}

fn update_with_wrong_values(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let json = |text: &str, words: &str| {
        let command = test.command(["update", "--resources=-", &container.id]);
        Output::with_input(command, text)?.fails_with(words).map(drop)
    };
    json("{\n\"pids\":", "line 2")?;
    json(r#"{"pids":{"limit":"many"}}"#, "many")?;
    container.rt(&["update", "--resources=/no/such/file"])?.fails_with("/no/such/file")?;
    container.rt(&["update", "--memory=much"])?.fails_with("--memory")?;
    container.rt(&["update", "--pids-limit=x"])?.fails_with("--pids-limit")?;
    container
        .rt(&["update", "--resources=-", "--pids-limit=1"])?
        .fails_with("exclude each other")?;
    test.rt(["update", "--pids-limit=1", "nobody"])?.fails_with("does not exist")?;
    if needs(test, "memory").is_ok() {
        json(r#"{"memory":{"limit":4096,"checkBeforeUpdate":true}}"#, "more than the limit")?;
    }
    ensure_eq(container.status()?.as_str(), "running")?;
    container.kill("KILL")?;
    container.wait()?;
    container.rt(&["update", "--pids-limit=1"])?.fails_with("container not running").map(drop)
}

fn a_created_container_is_in_its_cgroup(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    let table = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    for line in table.lines() {
        let hierarchy = line.split(':').nth(1).unwrap_or_default();
        // crun and runc leave out the v2 hierarchy of a hybrid host. No runtime can make a cgroup
        // in a hierarchy that is not mounted.
        if hierarchy.is_empty() && (test.host.lane == "v1" || !test.host.is_rt)
            || test.host.lane == "v2" && !hierarchy.is_empty()
        {
            continue;
        }
        ensure(!own.contains(line), format!("still in the caller's cgroup: {line}"))?;
    }
    Ok(())
}

fn the_path_is_taken(test: &Test) -> Outcome {
    let name = test.id();
    let bundle = test
        .sh("exec sleep 60")?
        .edit(|config| config["linux"]["cgroupsPath"] = json!(format!("/{name}/below")));
    let container = bundle.create()?;
    let table = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    ensure(table.contains(&format!(":/{name}/below\n")), table)?;
    let path = cgroup(test, &container, "pids")?;
    container.delete()?;
    ensure(!path.exists(), "it is still there")?;
    // The caller has chosen the path, so the caller removes the cgroup above. Here the test is the
    // caller.
    remove_everywhere(&name)
}

fn remove_everywhere(name: &str) -> Outcome {
    let root = Path::new("/sys/fs/cgroup");
    for hierarchy in
        fs::read_dir(root)?.flatten().map(|entry| entry.path()).chain([root.to_owned()])
    {
        let path = hierarchy.join(name);
        if path.is_dir() {
            fs::remove_dir(path)?;
        }
    }
    Ok(())
}

fn a_cgroup_is_removed_with_what_is_below(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let path = cgroup(test, &container, "pids")?;
    fs::create_dir_all(path.join("a/b"))?;
    container.rt(&["delete", "--force"])?.success()?;
    ensure(!path.exists(), "it is still there")
}

/// The memory that `tmpcopyup` fills, with v1 and v2.
fn copied_memory_counts_for_the_container(test: &Test) -> Outcome {
    const SIZE: usize = 8 << 20;
    needs(test, "memory")?;
    let bundle = test.sh("exec sleep 60")?.file("/v/file", vec![1; SIZE])?.mount(json!({
        "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    let container = bundle.create()?;
    let used = value(test, &container, "memory.usage_in_bytes", "memory.current")?;
    ensure(used.parse::<usize>()? >= SIZE, used)
}

fn memory_is_limited(test: &Test) -> Outcome {
    needs(test, "memory")?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["memory"] =
            json!({ "limit": 67_108_864, "reservation": 33_554_432 });
    });
    let container = bundle.create()?;
    let path = cgroup(test, &container, "memory")?;
    let file = if test.host.lane == "v2" { "memory.max" } else { "memory.limit_in_bytes" };
    ensure_eq(fs::read_to_string(path.join(file))?.trim(), "67108864")
}

fn processes_are_limited(test: &Test) -> Outcome {
    needs(test, "pids")?;
    let bundle = test.sh("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all; kill -9 -1")?;
    let output =
        bundle.edit(|config| config["linux"]["resources"]["pids"] = json!({ "limit": 5 })).run()?;
    ensure(
        output.stderr.contains("fork") && !output.stdout.contains("all\nall"),
        format!("{output:?}"),
    )
}

fn processors_are_limited(test: &Test) -> Outcome {
    needs(test, "cpu")?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["cpu"] =
            json!({ "shares": 512, "quota": 50000, "period": 100_000 });
    });
    let container = bundle.create()?;
    let path = cgroup(test, &container, "cpu")?;
    if test.host.lane == "v2" {
        return ensure_eq(fs::read_to_string(path.join("cpu.max"))?.trim(), "50000 100000");
    }
    for (file, value) in
        [("cpu.cfs_quota_us", "50000"), ("cpu.cfs_period_us", "100000"), ("cpu.shares", "512")]
    {
        ensure_eq(fs::read_to_string(path.join(file))?.trim(), value)?;
    }
    Ok(())
}

fn a_cgroup_namespace_hides_the_path(test: &Test) -> Outcome {
    let bundle = test.sh("cut -d: -f3 /proc/self/cgroup | sort -u")?;
    let output = bundle.namespace(json!({ "type": "cgroup" })).run()?.success()?;
    // In a hierarchy that is not mounted, the container has no cgroup.
    let hidden = output.stdout.lines().all(|path| path == "/" || path.starts_with("/.."));
    ensure(hidden, output.stdout)
}

fn a_cgroup_mount_shows_its_own(test: &Test) -> Outcome {
    let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"] });
    for own in [true, false] {
        let script = "for cgroup in /sys/fs/cgroup/pids /sys/fs/cgroup; do
            [ -f $cgroup/cgroup.procs ] && cat $cgroup/cgroup.procs && break; done
            mkdir /sys/fs/cgroup/new 2>/dev/null || echo refused";
        let mut bundle = test.sh(script)?.mount(mount.clone());
        if own {
            bundle = bundle.namespace(json!({ "type": "cgroup" }));
        }
        let output = bundle.run()?.success()?;
        ensure(
            output.stdout.starts_with("1\n") && output.stdout.ends_with("refused\n"),
            format!("{own}: {output:?}"),
        )?;
    }
    Ok(())
}

/// The user namespace does not own the joined cgroup namespace, so the kernel refuses a new mount
/// of cgroups.
fn a_joined_namespace_shows_no_others(test: &Test) -> Outcome {
    test.only_rt()?;
    if test.host.lane != "v2" {
        return skip("hierarchies of v1 cannot be mounted in such a namespace");
    }
    let other = test.sh("exec sleep 60")?.namespace(json!({ "type": "cgroup" })).start()?;
    let path = format!("/proc/{}/ns/cgroup", other.pid()?);
    let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"] });
    let bundle = test.sh("find /sys/fs/cgroup -type d; cat /sys/fs/cgroup/cgroup.procs")?;
    let bundle = super::namespaces::in_user_namespace(bundle)?
        .namespace(json!({ "type": "cgroup", "path": path }))
        .mount(mount);
    let output = bundle.run()?;
    if test.host.by_systemd {
        // systemd has not chosen the path of the cgroup at this time.
        return output.fails_with("Operation not permitted").map(drop);
    }
    let output = output.success()?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    ensure(lines.len() <= 4 && lines[..2] == ["/sys/fs/cgroup", "1"], output.stdout)
}

fn without_a_manager_there_is_none(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("cat /proc/self/cgroup")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let output = test
        .rt(["--cgroup-manager=disabled", "run", "--bundle", &folder, &test.id()])?
        .success()?;
    ensure_eq(output.stdout, fs::read_to_string("/proc/self/cgroup")?)
}

fn without_systemd_its_manager_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    if Path::new("/run/systemd/system").exists() && test.host.lane == "v2" {
        return skip("systemd runs here");
    }
    let bundle =
        test.sh("true")?.edit(|config| config["linux"]["cgroupsPath"] = json!("a.slice:b:c"));
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    for flag in ["--systemd-cgroup", "--cgroup-manager=systemd"] {
        test.rt([flag, "create", "--bundle", &folder, &test.id()])?
            .fails_with("a running systemd and cgroup v2")?;
    }
    Ok(())
}

fn devices_are_denied(test: &Test) -> Outcome {
    let mknod = json!(["CAP_MKNOD", "CAP_KILL"]);
    let bundle = test.sh("mknod /kmsg c 1 11; head -c 1 /kmsg >/dev/null 2>&1 || echo refused; head -c 1 /dev/zero | wc -c")?;
    let bundle = bundle.edit(|config| {
        config["process"]["capabilities"] =
            json!({ "bounding": mknod, "effective": mknod, "permitted": mknod });
    });
    bundle.run()?.success()?.stdout("refused\n1\n").map(drop)
}

fn unified_values_are_written(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["unified"] = json!({ "cgroup.max.depth": "7" });
    });
    if test.host.lane != "v2" {
        test.only_rt()?;
        return bundle
            .try_create(&test.id())?
            .fails_with("`resources.unified` is for cgroup v2")
            .map(drop);
    }
    let container = bundle.create()?;
    ensure_eq(
        fs::read_to_string(cgroup(test, &container, "")?.join("cgroup.max.depth"))?.trim(),
        "7",
    )
}

fn what_cannot_be_limited_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": "3MB", "limit": 1 }]);
    });
    bundle.try_create(&test.id())?.fails_with("hugetlb.3MB").map(drop)
}

fn systemctl(unit: &str, property: &str) -> Outcome<String> {
    let mut command = std::process::Command::new("systemctl");
    command.args(["show", "--value", "--property", property, unit]);
    Ok(Output::of(command)?.success()?.stdout.trim().to_owned())
}

fn by_systemd(test: &Test) -> Outcome {
    if test.host.by_systemd {
        Ok(())
    } else {
        skip("systemd does not make the cgroups in this lane")
    }
}

/// The scope of a container without a `cgroupsPath`.
fn scope(test: &Test, container: &Container<'_>) -> Outcome<String> {
    let path = cgroup(test, container, "memory")?;
    let mut parts = path.iter().map(|part| part.to_string_lossy().into_owned());
    Ok(parts.find(|part| part.ends_with(".scope")).ok_or("in no scope")?)
}

fn systemd_knows_the_limits(test: &Test) -> Outcome {
    by_systemd(test)?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["memory"] =
            json!({ "limit": 100 << 20, "swap": 150 << 20, "reservation": 50 << 20 });
        config["linux"]["resources"]["cpu"] =
            json!({ "shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1" });
        config["linux"]["resources"]["pids"] = json!({ "limit": 77 });
        config["linux"]["resources"]["unified"] = json!({ "memory.high": "90000000" });
    });
    let container = bundle.start()?;
    let scope = scope(test, &container)?;
    for (property, expected) in [
        ("MemoryMax", "104857600"),
        ("MemorySwapMax", "52428800"),
        ("MemoryLow", "52428800"),
        ("MemoryHigh", "90000000"),
        ("CPUWeight", "100"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("AllowedCPUs", "0-1"),
        ("TasksMax", "77"),
        ("DevicePolicy", "strict"),
        ("Delegate", "yes"),
    ] {
        ensure_eq((property, systemctl(&scope, property)?.as_str()), (property, expected))?;
    }
    let devices = systemctl(&scope, "DeviceAllow")?;
    ensure(devices.contains("/dev/char/1:3 rwm") && devices.contains("char-pts rwm"), devices)?;
    // When systemd reloads its configuration, it applies its own copy of the limits.
    let mut reload = std::process::Command::new("systemctl");
    reload.arg("daemon-reload");
    Output::of(reload)?.success()?;
    ensure_eq(value(test, &container, "memory.max", "memory.max")?.as_str(), "104857600")?;
    ensure_eq(pids_limit(test, &container)?.as_str(), "77")
}

fn systemd_knows_updated_limits(test: &Test) -> Outcome {
    by_systemd(test)?;
    let container = test.sh("exec sleep 60")?.start()?;
    test.rt(["update", "--pids-limit", "55", "--memory", "64m", &container.id])?.success()?;
    let scope = scope(test, &container)?;
    ensure_eq(systemctl(&scope, "TasksMax")?.as_str(), "55")?;
    ensure_eq(systemctl(&scope, "MemoryMax")?.as_str(), "67108864")
}

fn systemd_gets_properties_by_annotation(test: &Test) -> Outcome {
    by_systemd(test)?;
    let bundle = test
        .sh("exec sleep 60")?
        .annotation("org.systemd.property.TimeoutStopSec", "uint64 7")
        .annotation("org.systemd.property.Description", "'a word'")
        .annotation("org.systemd.property.After", "['basic.target']");
    let container = bundle.start()?;
    let scope = scope(test, &container)?;
    ensure_eq(systemctl(&scope, "TimeoutStopUSec")?.as_str(), "7s")?;
    ensure_eq(systemctl(&scope, "Description")?.as_str(), "a word")?;
    let after = systemctl(&scope, "After")?;
    ensure(after.split(' ').any(|unit| unit == "basic.target"), after)
}

fn a_property_that_systemd_does_not_know_is_an_error(test: &Test) -> Outcome {
    by_systemd(test)?;
    for (key, text, words) in [
        ("NoSuchProperty", "true", "NoSuchProperty"),
        ("TasksMax", "uint64 x", "`uint64` needs a number"),
        ("Description", "'", "`'` is missing"),
        ("a/b", "true", "`a/b` is not the name of a property"),
    ] {
        let key = format!("org.systemd.property.{key}");
        let id = test.id();
        test.sh("true")?.annotation(&key, text).try_create(&id)?.fails_with(words)?;
    }
    Ok(())
}

fn a_subgroup_is_made_in_the_scope(test: &Test) -> Outcome {
    by_systemd(test)?;
    let bundle = test.sh("exec sleep 60")?.annotation("run.oci.systemd.subgroup", "inner");
    let container = bundle.start()?;
    let path = cgroup(test, &container, "memory")?;
    ensure(path.ends_with(format!("rt-{}.scope/inner", container.id)), path.display())?;
    let output = test.rt(["exec", &container.id, "cat", "/proc/self/cgroup"])?.success()?;
    ensure(output.stdout.trim().ends_with("/inner"), output.stdout)?;
    test.rt(["delete", "--force", &container.id])?.success()?;
    ensure(!path.exists(), "it is still there")
}

fn the_name_of_a_scope_is_free_after_a_deletion(test: &Test) -> Outcome {
    by_systemd(test)?;
    let bundle = test.sh("exit 3")?.edit(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("system.slice:rt:{}", test.id()));
    });
    for _ in 0..5 {
        bundle.run()?.code(3)?;
    }
    Ok(())
}

fn a_scope_of_another_container_is_left_alone(test: &Test) -> Outcome {
    by_systemd(test)?;
    let container = test.sh("exec sleep 60")?.start()?;
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["cgroupsPath"] = json!(format!(":rt:{}", container.id));
    });
    let id = test.id();
    bundle
        .try_create(&id)?
        .fails_with(&format!("make the systemd scope `rt-{}.scope`", container.id))?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn a_delegated_cgroup_is_the_containers_own(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        return skip("handing on cgroups of v1 is not safe");
    }
    needs(test, "pids")?;
    let script = "cat /proc/self/cgroup; mkdir /sys/fs/cgroup/own/below && cat /sys/fs/cgroup/own/below/cgroup.controllers; exec sleep 60";
    let bundle = test
        .sh(script)?
        .annotation("run.oci.systemd.subgroup", "inner")
        .annotation("run.oci.delegate-cgroup", "own")
        .namespace(json!({ "type": "cgroup" }))
        .mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] }));
    let container = bundle.start()?;
    container.wait_for_output("0::/own\n")?;
    ensure(cgroup(test, &container, "pids")?.ends_with("own"), "not in its own")?;
    // The container may pass on the controllers that it has.
    let path = cgroup(test, &container, "pids")?;
    wait_for(&path.join("cgroup.controllers"), "pids")
}

fn wait_for(file: &Path, word: &str) -> Outcome {
    crate::harness::wait_until(&format!("{} holds {word}", file.display()), || {
        fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|name| name == word))
    })
}

/// A systemd in a container with a user namespace needs this.
fn a_users_cgroup_is_its_own_where_it_may_write(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        return skip("handing on cgroups of v1 is not safe");
    }
    for (option, expected) in [("rw", "made\n"), ("ro", "refused\n")] {
        let script = "mkdir /sys/fs/cgroup/below 2>/dev/null && echo made || echo refused; rmdir /sys/fs/cgroup/below 2>/dev/null";
        let bundle = super::namespaces::in_user_namespace(test.sh(&format!("{script}; true"))?)?
            .namespace(json!({ "type": "cgroup" }))
            .mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [option] }));
        bundle.run()?.success()?.stdout(expected)?;
    }
    Ok(())
}

/// Sets a part of `resources`, then compares the files of v1 or of v2.
fn written(
    test: &Test,
    controller: &str,
    (part, value): (&str, Value),
    v1: &[(&str, &str)],
    v2: &[(&str, &str)],
) -> Outcome {
    needs(test, controller)?;
    let files = if test.host.lane == "v2" { v2 } else { v1 };
    if files.is_empty() {
        return skip("only the other version of cgroups has this");
    }
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.edit(|config| config["linux"]["resources"][part] = value).create()?;
    let path = cgroup(test, &container, controller)?;
    for (file, expected) in files {
        let text = fs::read_to_string(path.join(file))
            .map_err(|error| format!("{}: {error}", path.join(file).display()))?;
        let there = text.lines().any(|line| line.trim() == *expected);
        ensure(there, format!("{file}: {text:?}, not {expected:?}"))?;
    }
    Ok(())
}

/// Skips the test if the kernel's controller lacks this file.
fn needs_file(test: &Test, controller: &str, v1: &str, v2: &str) -> Outcome {
    needs(test, controller)?;
    let container = test.sh("exec sleep 60")?.create()?;
    let file = if test.host.lane == "v2" { v2 } else { v1 };
    if cgroup(test, &container, controller)?.join(file).exists() {
        Ok(())
    } else {
        skip(format!("this kernel has no `{file}`"))
    }
}

fn swap_is_limited(test: &Test) -> Outcome {
    needs_file(test, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")?;
    let memory = json!({ "limit": 64 << 20, "swap": 80 << 20 });
    let v1 = [("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "83886080")];
    written(test, "memory", ("memory", memory), &v1, &[("memory.swap.max", "16777216")])
}

fn update(test: &Test, container: &Container<'_>, resources: &Value) -> Outcome<Output> {
    let command = test.command(["update", "--resources=-", &container.id]);
    Output::with_input(command, &resources.to_string())
}

/// Only v2 has a file for swap alone. The file of v1 and the configuration count memory and swap
/// together.
fn swap_is_what_is_above_the_memory(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        return skip("only cgroup v2 has a file of swap alone");
    }
    needs_file(test, "memory", "", "memory.swap.max")?;
    let container = test.sh("exec sleep 60")?.start()?;
    const LIMIT: i64 = 64 << 20;
    for (limit, swap, expected) in [
        (LIMIT, LIMIT + 4096, "4096"),
        // 0 stands for a value that is not given.
        (LIMIT, 0, "4096"),
        (0, 0, "4096"),
        (LIMIT, LIMIT, "0"),
        (-1, LIMIT, "67108864"),
        (-1, 0, "max"),
        (LIMIT, LIMIT + 8192, "8192"),
        (LIMIT, -1, "max"),
    ] {
        update(test, &container, &json!({ "memory": { "limit": limit, "swap": swap } }))?
            .success()?;
        let there = value(test, &container, "", "memory.swap.max")?;
        ensure_eq((limit, swap, there.as_str()), (limit, swap, expected))?;
        if test.host.by_systemd {
            let known = systemctl(&scope(test, &container)?, "MemorySwapMax")?;
            let expected = if expected == "max" { "infinity" } else { expected };
            ensure_eq((limit, swap, known.as_str()), (limit, swap, expected))?;
        }
    }
    test.only_rt()?;
    for (memory, words) in [
        (json!({ "limit": LIMIT, "swap": 4096 }), "less than `memory.limit`"),
        (json!({ "swap": LIMIT }), "needs `memory.limit`"),
    ] {
        update(test, &container, &json!({ "memory": memory }))?.fails_with(words)?;
    }
    Ok(())
}

/// The kernel does not account swap, or the lane has no memory controller.
fn swap_that_is_not_counted_needs_no_limit(test: &Test) -> Outcome {
    let v2 = test.host.lane == "v2";
    let file = if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    let container = test
        .sh("exec sleep 60")?
        .edit(|config| config["linux"]["resources"]["memory"] = json!({ "swap": -1 }))
        .start()?;
    if cgroup(test, &container, "memory")?.join(file).exists() {
        return skip("this kernel counts swap");
    }
    update(test, &container, &json!({ "memory": { "swap": -1 } }))?.success()?;
    // Without the controller, the file of the limit is missing.
    let same =
        update(test, &container, &json!({ "memory": { "limit": 1 << 26, "swap": 1 << 26 } }))?;
    if needs(test, "memory").is_ok() {
        same.success()?;
    } else {
        same.fails_with("memory.max")?;
    }
    let more = json!({ "memory": { "limit": 1 << 26, "swap": 1 << 27 } });
    update(test, &container, &more)?.fails_with(file).map(drop)
}

/// Sometimes the old runtime does not fit in the new period, and sometimes the new runtime does not
/// fit in the old period.
fn realtime_changes_by_any_factor(test: &Test) -> Outcome {
    needs_file(test, "cpu", "cpu.rt_runtime_us", "cpu.rt_runtime_us")?;
    let container = test.sh("exec sleep 60")?.start()?;
    for (period, runtime) in
        [("1000000", "50000"), ("10000", "500"), ("1000000", "50000"), ("100000", "9000")]
    {
        let flags = ["--cpu-rt-period", period, "--cpu-rt-runtime", runtime];
        container.rt(&[&["update"], &flags[..]].concat())?.success()?;
        let there = |file| value(test, &container, file, file);
        ensure_eq(there("cpu.rt_period_us")?.as_str(), period)?;
        ensure_eq(there("cpu.rt_runtime_us")?.as_str(), runtime)?;
    }
    container.rt(&["update", "--cpu-rt-period", "8000"])?.fails_with("write `8000` to").map(drop)
}

/// The kernel refuses a weight for an idle cgroup.
fn what_is_idle_no_longer_has_a_weight(test: &Test) -> Outcome {
    needs_file(test, "cpu", "cpu.idle", "cpu.idle")?;
    let container = test
        .sh("exec sleep 60")?
        .edit(|config| config["linux"]["resources"]["cpu"] = json!({ "idle": 1, "shares": 512 }))
        .start()?;
    let is = |idle: &str, shares: &str, weight: &str| -> Outcome {
        ensure_eq(value(test, &container, "cpu.idle", "cpu.idle")?.as_str(), idle)?;
        let expected = if test.host.lane == "v2" { weight } else { shares };
        ensure_eq(value(test, &container, "cpu.shares", "cpu.weight")?.as_str(), expected)
    };
    let set = |resources: Value| update(test, &container, &resources)?.success().map(drop);
    let is_idle = || ensure_eq(value(test, &container, "cpu.idle", "cpu.idle")?.as_str(), "1");
    is_idle()?;
    set(json!({ "cpu": { "idle": 0, "shares": 2 } }))?;
    is("0", "2", "1")?;
    // The second update changes nothing.
    for _ in 0..2 {
        set(json!({ "cpu": { "idle": 1, "shares": 512 } }))?;
        is_idle()?;
    }
    set(json!({ "cpu": { "idle": 0 } }))?;
    is("0", "1024", "100")?;
    if test.host.lane != "v2" {
        return Ok(());
    }
    for _ in 0..2 {
        set(json!({ "unified": { "cpu.weight": "7", "cpu.idle": "1" } }))?;
        is_idle()?;
    }
    set(json!({ "unified": { "cpu.weight": "7", "cpu.idle": "0" } }))?;
    is("0", "", "7")
}

/// If systemd did not know about `cpu.idle`, it would reset it together with another limit.
fn systemd_knows_what_is_idle(test: &Test) -> Outcome {
    by_systemd(test)?;
    needs_file(test, "cpu", "cpu.idle", "cpu.idle")?;
    let container = test
        .sh("exec sleep 60")?
        .edit(|config| config["linux"]["resources"]["cpu"] = json!({ "idle": 1, "shares": 512 }))
        .start()?;
    let scope = scope(test, &container)?;
    let is = |idle: &str, weight: &str| -> Outcome {
        let there = value(test, &container, "cpu.idle", "cpu.idle")?;
        let known = systemctl(&scope, "CPUWeight")?;
        ensure_eq((there.as_str(), known.as_str()), (idle, weight))
    };
    is("1", "idle")?;
    container.rt(&["update", "--cpu-quota=50000"])?.success()?;
    is("1", "idle")?;
    container.rt(&["update", "--cpu-idle=0"])?.success()?;
    is("0", "100")?;
    container.rt(&["update", "--cpu-share=2"])?.success()?;
    // The cgroup is not idle, so the weight stays.
    container.rt(&["update", "--cpu-idle=0", "--cpu-quota=40000"])?.success()?;
    is("0", "1")
}

/// A cgroup in the v2 hierarchy. At the end, the test removes it and the cgroups below it.
struct Above(PathBuf);

impl Above {
    fn make(test: &Test) -> Outcome<Above> {
        let root = match test.host.lane.as_str() {
            "v2" if test.host.by_systemd => return skip("systemd makes no threaded cgroups"),
            "v2" => Path::new("/sys/fs/cgroup"),
            "hybrid" => Path::new("/sys/fs/cgroup/unified"),
            _ => return skip("only cgroup v2 has threaded cgroups"),
        };
        if !root.join("cgroup.procs").exists() {
            return skip("this host has no hierarchy of the second version");
        }
        let above = Above(root.join(test.id()));
        fs::create_dir(&above.0)?;
        Ok(above)
    }

    /// Makes the cgroup `domain threaded`.
    fn with_threads(test: &Test) -> Outcome<Above> {
        let above = Above::make(test)?;
        fs::create_dir(above.0.join("threads"))?;
        fs::write(above.0.join("threads/cgroup.type"), "threaded")?;
        Ok(above)
    }

    fn name(&self) -> std::borrow::Cow<'_, str> {
        self.0.file_name().unwrap_or_default().to_string_lossy()
    }

    /// Starts a container in a cgroup below.
    fn start<'a>(&self, bundle: Bundle<'a>, below: &str) -> Outcome<Container<'a>> {
        let path = format!("/{}/{below}", self.name());
        bundle.edit(|config| config["linux"]["cgroupsPath"] = json!(path)).start()
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        // The deepest cgroups are last.
        for path in cgroups_of(&self.name()).iter().rev() {
            for below in ["own", "threads/own", "threads", "new/own", "new"] {
                let _ = fs::remove_dir(path.join(below));
            }
            let _ = fs::remove_dir(path);
        }
    }
}

/// Below a threaded cgroup, a new cgroup accepts no process until it is threaded too.
fn a_container_is_made_below_a_threaded_cgroup(test: &Test) -> Outcome {
    let above = Above::with_threads(test)?;
    for below in ["own", "new/own", "threads/own"] {
        // runc and crun make only the last cgroup threaded.
        if below == "new/own" && !test.host.is_rt {
            continue;
        }
        let container = above.start(test.sh("(sleep 60) & exec sleep 60")?, below)?;
        let show = ["exec", &container.id, "cat", "/proc/self/cgroup"];
        let output = test.rt(show)?.success()?;
        ensure(output.stdout.contains(&format!("0::/{}/{below}\n", above.name())), output.stdout)?;
        container.rt(&["pause"])?.success()?;
        ensure_eq(container.status()?.as_str(), "paused")?;
        container.rt(&["resume"])?.success()?;
        container.rt(&["delete", "--force"])?.success()?;
        ensure(!above.0.join(below).exists(), "its cgroup is left")?;
    }
    Ok(())
}

/// When the runtime passes on controllers, the kernel makes this cgroup `domain threaded`.
fn a_container_is_made_below_a_cgroup_with_processes(test: &Test) -> Outcome {
    let above = Above::make(test)?;
    let mut process = std::process::Command::new("sleep").arg("600").spawn()?;
    let try_it = || -> Outcome {
        fs::write(above.0.join("cgroup.procs"), process.id().to_string())?;
        above.start(test.sh("exec sleep 60")?, "own")?.rt(&["delete", "--force"])?.success()?;
        ensure(!above.0.join("own").exists(), "its cgroup is left")
    };
    let tried = try_it();
    process.kill()?;
    process.wait()?;
    tried
}

/// In a threaded cgroup, only `cgroup.threads` lists a process. The test looks in the container's
/// own cgroup and in one below.
fn a_threaded_cgroup_hides_nobody(test: &Test) -> Outcome {
    test.only_rt()?;
    let above = Above::with_threads(test)?;
    let bundle = test.sh("sleep 600 & echo process $!; exec sleep 600")?.edit(|config| {
        // Without a pid namespace, the end of the first process does not end the others.
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    let container = above.start(bundle, "own")?;
    container.wait_for_output("process ")?;
    let pid: i32 = container.stdout()?.trim().trim_start_matches("process ").parse()?;
    let hidden = above.0.join("own/hidden");
    fs::create_dir(&hidden)?;
    fs::write(hidden.join("cgroup.type"), "threaded")?;
    fs::write(hidden.join("cgroup.procs"), pid.to_string())?;
    let listed = container.rt(&["ps", "--format=json"])?.success()?;
    let mut listed: Vec<i32> = serde_json::from_str(&listed.stdout)?;
    let mut all = [container.pid()?, pid];
    listed.sort_unstable();
    all.sort_unstable();
    ensure_eq(&listed[..], &all[..])?;
    container.rt(&["delete", "--force"])?.success()?;
    ensure(!above.0.join("own").exists(), "its cgroup is left")
}

fn bursts_and_idleness_are_set(test: &Test) -> Outcome {
    needs_file(test, "cpu", "cpu.cfs_burst_us", "cpu.max.burst")?;
    let cpu = json!({ "quota": 50_000, "period": 100_000, "burst": 20_000 });
    let v1 = [("cpu.cfs_burst_us", "20000")];
    written(test, "cpu", ("cpu", cpu), &v1, &[("cpu.max.burst", "20000")])?;
    let idle = json!({ "idle": 1 });
    written(test, "cpu", ("cpu", idle), &[("cpu.idle", "1")], &[("cpu.idle", "1")])
}

fn realtime_is_limited(test: &Test) -> Outcome {
    needs_file(test, "cpu", "cpu.rt_runtime_us", "cpu.rt_runtime_us")?;
    let cpu = json!({ "realtimePeriod": 500_000 });
    written(test, "cpu", ("cpu", cpu), &[("cpu.rt_period_us", "500000")], &[])
}

fn processors_and_nodes_are_chosen(test: &Test) -> Outcome {
    let cpu = json!({ "cpus": "0", "mems": "0" });
    let files = [("cpuset.cpus", "0"), ("cpuset.mems", "0")];
    written(test, "cpuset", ("cpu", cpu), &files, &files)
}

fn disks_are_shared(test: &Test) -> Outcome {
    let controller = if test.host.lane == "v2" { "io" } else { "blkio" };
    needs_file(test, controller, "blkio.throttle.read_bps_device", "io.max")?;
    // A whole disk, and not a partition.
    let disk = fs::read_dir("/sys/block")?
        .flatten()
        .find(|disk| disk.file_name().to_string_lossy().starts_with(['v', 's', 'n']));
    let Some(disk) = disk else { return skip("no disk here") };
    let number = fs::read_to_string(disk.path().join("dev"))?;
    let (major, minor) = number.trim().split_once(':').ok_or("no number")?;
    let (major, minor): (u32, u32) = (major.parse()?, minor.parse()?);
    let io =
        json!({ "throttleReadBpsDevice": [{ "major": major, "minor": minor, "rate": 1_048_576 }] });
    let v1 = format!("{major}:{minor} 1048576");
    let v2 = format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=max");
    written(
        test,
        controller,
        ("blockIO", io),
        &[("blkio.throttle.read_bps_device", &v1)],
        &[("io.max", &v2)],
    )
}

fn huge_pages_are_limited(test: &Test) -> Outcome {
    needs_file(test, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")?;
    let limits = json!([{ "pageSize": "2MB", "limit": 4_194_304 }]);
    let v1 = [("hugetlb.2MB.limit_in_bytes", "4194304")];
    written(
        test,
        "hugetlb",
        ("hugepageLimits", limits.clone()),
        &v1,
        &[("hugetlb.2MB.max", "4194304")],
    )?;
    // The same limit for reserved huge pages.
    let (v1, v2) = ("hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max");
    needs_file(test, "hugetlb", v1, v2)?;
    test.only_rt()?;
    written(test, "hugetlb", ("hugepageLimits", limits), &[(v1, "4194304")], &[(v2, "4194304")])
}

fn networks_have_a_class(test: &Test) -> Outcome {
    let network = json!({ "classID": 1_048_577 });
    written(test, "net_cls", ("network", network), &[("net_cls.classid", "1048577")], &[])
}

/// With v1, somebody has made the cgroup above and left its cpuset empty: one cgroup, several
/// cgroups, and one with processors only.
fn an_empty_cpuset_above_is_filled(test: &Test) -> Outcome {
    needs(test, "cpuset")?;
    if test.host.lane == "v2" {
        return skip("with cgroup v2 an empty cpuset is its parent's");
    }
    if test.host.runtime.ends_with("crun") {
        return skip("crun fails");
    }
    let root = Path::new("/sys/fs/cgroup/cpuset");
    let read = |path: &Path, file: &str| -> Outcome<String> {
        Ok(fs::read_to_string(path.join(file))?.trim().to_owned())
    };
    let [cpus, mems] = ["cpuset.cpus", "cpuset.mems"];
    for (depth, filled) in [(1, None), (3, None), (2, Some(cpus))] {
        let name = test.id();
        let top = root.join(&name);
        let mut at = top.clone();
        for _ in 1..depth {
            at = at.join("b");
        }
        fs::create_dir_all(&at)?;
        if let Some(file) = filled {
            fs::write(top.join(file), "0")?;
        }
        let path = format!("/{}/own", at.strip_prefix(root)?.display());
        let bundle = test.sh("exec sleep 60")?.edit(|config| {
            config["linux"]["cgroupsPath"] = json!(path);
        });
        let container = bundle.start()?;
        let expected = if filled == Some(cpus) { "0".to_owned() } else { read(root, cpus)? };
        ensure_eq(read(&at.join("own"), cpus)?, expected)?;
        ensure_eq(read(&at.join("own"), mems)?, read(root, mems)?)?;
        container.rt(&["delete", "--force"])?.success()?;
        for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            for depth in (0..depth).rev() {
                let _ = fs::remove_dir(
                    (0..depth).fold(hierarchy.path().join(&name), |at, _| at.join("b")),
                );
            }
        }
    }
    Ok(())
}

/// runc's test suite checks both limits.
fn huge_pages_that_are_reserved_are_limited_too(test: &Test) -> Outcome {
    // systemd passes on this controller only if asked to.
    needs_file(test, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")?;
    let limits: Vec<Value> = fs::read_dir("/sys/kernel/mm/hugepages")?
        .flatten()
        .filter_map(|entry| {
            let kilobytes = entry
                .file_name()
                .to_string_lossy()
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse::<u64>()
                .ok()?;
            let size = if kilobytes >= 1 << 20 {
                format!("{}GB", kilobytes >> 20)
            } else {
                format!("{}MB", kilobytes >> 10)
            };
            Some(json!({ "pageSize": size, "limit": kilobytes << 11 }))
        })
        .collect();
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["hugepageLimits"] = json!(limits);
    });
    let container = bundle.start()?;
    let end = if test.host.lane == "v2" { "max" } else { "limit_in_bytes" };
    let folder = cgroup(test, &container, "hugetlb")?;
    for limit in &limits {
        let size = limit["pageSize"].as_str().unwrap_or_default();
        for kind in ["", "rsvd."] {
            let file = folder.join(format!("hugetlb.{size}.{kind}{end}"));
            if file.exists() {
                ensure_eq(
                    (size, fs::read_to_string(file)?.trim().to_owned()),
                    (size, limit["limit"].to_string()),
                )?;
            }
        }
    }
    Ok(())
}
