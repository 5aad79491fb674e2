//! `/dev`.

use serde_json::json;

use super::namespaces::in_user_namespace;
use crate::harness::{Bundle, Outcome, Output, Test, cgroups_of, ensure, ensure_eq};

super::tests! { "devices": the_default_ones_are_there, the_links_are_there, listed_ones_are_made, a_mount_takes_the_place_of_a_default_one, another_file_in_its_place_is_refused,
    have_their_owner_and_mode_in_a_user_namespace, have_an_owner_that_is_mapped, the_default_rules_are_those_of_runc_and_crun,
}

fn the_default_ones_are_there(test: &Test) -> Outcome {
    let bundle = test.sh("cd /dev; stat -c '%n %t:%T %a' full null random tty urandom zero")?;
    let expected =
        "full 1:7 666\nnull 1:3 666\nrandom 1:8 666\ntty 5:0 666\nurandom 1:9 666\nzero 1:5 666\n";
    bundle.run()?.success()?.stdout(expected).map(drop)
}

fn the_links_are_there(test: &Test) -> Outcome {
    let bundle =
        test.sh("cd /dev; for link in fd stdin stdout stderr ptmx; do readlink $link; done")?;
    let links = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    bundle.run()?.success()?.stdout(links).map(drop)
}

fn listed_ones_are_made(test: &Test) -> Outcome {
    let bundle = test.sh("stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/sub/disk /dev/fifo")?;
    let devices = json!([
        { "path": "/dev/mine", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "uid": 7, "gid": 8 },
        { "path": "/dev/sub/disk", "type": "b", "major": 7, "minor": 1, "fileMode": 0o600 },
        { "path": "/dev/fifo", "type": "p", "fileMode": 0o644 },
    ]);
    let output = bundle.edit(|config| config["linux"]["devices"] = devices).run()?.success()?;
    let expected = "/dev/mine character special file a:e5 620 7:8\n/dev/sub/disk block special file 7:1 600 0:0\n/dev/fifo fifo 0:0 644 0:0\n";
    output.stdout(expected).map(drop)
}

/// `podman run -v /dev/urandom:/dev/random` makes such a mount.
fn a_mount_takes_the_place_of_a_default_one(test: &Test) -> Outcome {
    let bundle = test.sh("stat -c '%t:%T' /dev/random")?.mount(json!({
        "destination": "/dev/random", "type": "bind", "source": "/dev/urandom", "options": ["bind"]
    }));
    bundle.run()?.success()?.stdout("1:9\n").map(drop)
}

fn another_file_in_its_place_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] == "/proc");
        }
    });
    bundle
        .file("/dev/null", "not a device")?
        .try_create(&test.id())?
        .fails_with("another file is in its place")
        .map(drop)
}

/// Root of the host makes the devices: in the container's own user namespace, and in a joined one.
/// The host does not have these names. runc shows the host's files, so it supports neither.
fn have_their_owner_and_mode_in_a_user_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    let devices = json!([
        { "path": "/dev/foo", "type": "c", "major": 10, "minor": 200, "fileMode": 0o620, "uid": 7, "gid": 8 },
        { "path": "/dev/sub/disk", "type": "b", "major": 7, "minor": 1, "fileMode": 0o600, "uid": 1000 },
        { "path": "/nothing", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 },
        { "path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o604, "gid": 5 },
        { "path": "/dev/fifo", "type": "p", "fileMode": 0o640, "uid": 7, "gid": 8 },
    ]);
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/foo /dev/sub/disk /nothing /dev/zero /dev/fifo; \
        echo x > /nothing; head -c 3 /dev/zero | wc -c; \
        grep -E ' (/dev/foo|/dev/sub/disk|/nothing|/dev/zero|/dev/null) ' /proc/self/mountinfo | grep -c ' [a-z,]*nosuid[a-z,]*noexec'; \
        exec sleep 60";
    let expected = "/dev/foo character special file a:c8 620 7:8\n/dev/sub/disk block special file 7:1 600 1000:0\n\
        /nothing character special file 1:3 666 0:0\n/dev/zero character special file 1:5 604 0:5\n/dev/fifo fifo 0:0 640 7:8\n\
        3\n5\n";
    let bundle = || -> Outcome<Bundle<'_>> {
        Ok(in_user_namespace(test.sh(script)?)?
            .edit(|config| config["linux"]["devices"] = devices.clone()))
    };
    let first = bundle()?.start()?;
    first.wait_for_output("\n5\n")?;
    ensure_eq(first.stdout()?.as_str(), expected)?;
    // The joined namespace has mappings. The configuration has none.
    let path = format!("/proc/{}/ns/user", first.pid()?);
    let joined = bundle()?.namespace(json!({ "type": "user", "path": path })).edit(|config| {
        for mappings in ["uidMappings", "gidMappings"] {
            config["linux"].as_object_mut().map(|linux| linux.remove(mappings));
        }
    });
    let second = joined.start()?;
    second.wait_for_output("\n5\n")?;
    ensure_eq(second.stdout()?.as_str(), expected)
}

fn have_an_owner_that_is_mapped(test: &Test) -> Outcome {
    test.only_rt()?;
    for (key, id, words) in [
        ("uid", 70_000, "the user namespace has no user 70000"),
        ("gid", 65_536, "the user namespace has no group 65536"),
    ] {
        let mut device = json!({ "path": "/dev/foo", "type": "c", "major": 10, "minor": 200 });
        device[key] = json!(id);
        let good = json!({ "path": "/dev/bar", "type": "c", "major": 10, "minor": 200 });
        let bundle = in_user_namespace(test.sh("true")?)?;
        let bundle = bundle.edit(|config| config["linux"]["devices"] = json!([good, device]));
        let output = bundle.try_create(&test.id())?.fails_with(words)?;
        ensure(output.stderr.contains("`/dev/foo` (`linux.devices[1]`)"), output.stderr)?;
    }
    Ok(())
}

/// Compares the devices that each installed runtime allows without a rule for them. The container
/// opens device nodes that it has made.
fn the_default_rules_are_those_of_runc_and_crun(test: &Test) -> Outcome {
    const DEVICES: [&str; 15] = [
        "c 1 3", "c 1 5", "c 1 7", "c 1 8", "c 1 9", "c 5 0", "c 5 2", "c 10 200", "c 136 0",
        "c 1 11", "c 4 0", "c 10 229", "c 10 237", "b 7 0", "b 7 1",
    ];
    // For each device: r, w, m, or -.
    let mut script = String::new();
    for device in DEVICES {
        script += &format!(
            "mknod /node {device} && m=m || m=-; \
             (: < /node) 2>&1 | grep -q 'not permitted' && r=- || r=r; (: > /node) 2>&1 | grep -q 'not permitted' && w=- || w=w; \
             rm -f /node; echo $r$w$m; "
        );
    }
    let sets = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
    let mut columns = Vec::new();
    for name in ["", "runc", "crun"] {
        // runc applies its own default only after a rule that forbids everything. The bundle has
        // this rule.
        let bundle = test.sh(&script.replace("rm -f", "/bin/busybox rm -f"))?.edit(|config| {
            config["process"]["capabilities"] =
                json!({ "bounding": sets, "effective": sets, "permitted": sets });
        });
        bundle.write()?;
        let path = ["/usr/sbin", "/usr/bin"].map(|folder| std::path::Path::new(folder).join(name));
        let runtime = if name.is_empty() {
            test.host.runtime.clone()
        } else {
            let Some(path) = path.into_iter().find(|path| path.is_file()) else { continue };
            path
        };
        let id = test.id();
        let root = test.folder.join(format!("state-{name}"));
        let mut command = std::process::Command::new(&runtime);
        command.arg("--root").arg(root).arg("run").arg("--bundle").arg(&bundle.folder).arg(&id);
        let output = Output::of(command)?;
        if name.is_empty() {
            columns.push(("tested".to_owned(), output.success()?.stdout));
        } else if output.code == Some(0) {
            columns.push((name.to_owned(), output.stdout));
        } else {
            println!(
                "{name} makes no container in the lane {}: {}",
                test.host.lane,
                output.stderr.trim()
            );
            // crun leaves the cgroup of a container that fails.
            for left in cgroups_of(&id) {
                std::fs::remove_dir(left)?;
            }
        }
    }
    let mut table = format!("what is allowed by default, lane {}:\n{:10}", test.host.lane, "");
    for (name, _) in &columns {
        table += &format!(" {name:8}");
    }
    for (row, device) in DEVICES.iter().enumerate() {
        table += &format!("\n{device:10}");
        for (_, column) in &columns {
            table += &format!(" {:8}", column.lines().nth(row).unwrap_or("?"));
        }
    }
    println!("{table}");
    let allowed = 9;
    for (name, column) in &columns {
        for (row, line) in column.lines().enumerate() {
            // crun of Debian 12 does not allow this device with v1.
            if name == "crun" && DEVICES[row] == "c 10 200" {
                continue;
            }
            let expected = if row < allowed { "rwm" } else { "--m" };
            ensure(
                line == expected,
                format!("{name}: {}: {line}, not {expected}\n{table}", DEVICES[row]),
            )?;
        }
    }
    Ok(())
}
