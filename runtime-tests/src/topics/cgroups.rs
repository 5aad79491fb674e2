//! Control groups, in whichever way the lane mounts them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Container, Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "cgroups":
    update_by_flags, update_by_json, update_changes_only_what_is_given, update_with_wrong_values,
    a_created_container_is_in_its_cgroup, the_path_is_taken, a_cgroup_is_removed_with_what_is_below, memory_is_limited,
    processes_are_limited, processors_are_limited, a_cgroup_namespace_hides_the_path, a_cgroup_mount_shows_its_own,
    without_a_manager_there_is_none, without_systemd_its_manager_is_refused, devices_are_denied, unified_values_are_written, what_cannot_be_limited_is_an_error,
}

/// The directory of a container's cgroup in the hierarchy of a controller, or in the only one.
fn cgroup(test: &Test, container: &Container<'_>, controller: &str) -> Outcome<PathBuf> {
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

fn needs(test: &Test, controller: &str) -> Outcome {
    let there = match test.host.lane.as_str() {
        "v2" => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?
            .split_whitespace()
            .any(|name| name == controller),
        _ => Path::new("/sys/fs/cgroup").join(controller).exists(),
    };
    if there { Ok(()) } else { skip(format!("no cgroup controller `{controller}` in this lane")) }
}

/// The first line of a container's cgroup file, which has one name with v1 and another with v2.
fn value(test: &Test, container: &Container<'_>, v1: &str, v2: &str) -> Outcome<String> {
    let file = if test.host.lane == "v2" { v2 } else { v1 };
    let controller = v1.split('.').next().unwrap_or_default();
    let path = cgroup(test, container, controller)?.join(file);
    Ok(fs::read_to_string(path)?.lines().next().unwrap_or_default().to_owned())
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
    // Up again, with swap above it.
    let flags = ["--memory=134217728", "--memory-swap=268435456"];
    container.rt(&[&["update"], &flags[..]].concat())?.success()?;
    let memory = value(test, &container, "memory.limit_in_bytes", "memory.max")?;
    ensure_eq(memory.as_str(), "134217728")
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
    // Device rules are what they were.
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
        // crun and runc leave out the second-version hierarchy of a hybrid host; what is not mounted nobody can fill.
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
    // The one above belongs to whoever asked for the path, who here are the tests.
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
    // A hierarchy that is not mounted has no cgroup of the container's.
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
