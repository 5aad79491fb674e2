//! Mounts in a checkpoint: mounts that a restore makes again, and mounts that a checkpoint must
//! refuse.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::checkpoint::{COUNT, move_on, needs_criu, piped, restore, start, write};
use crate::harness::{Bundle, Container, Outcome, Test, cgroups_of, ensure, ensure_eq, skip};

super::tests! { "checkpoint_mounts":
    mounts_come_back_in_a_rootfs_made_anew, a_cgroup_mount_shows_the_new_cgroup, a_cgroup_mount_on_the_hosts_sys_shows_no_others,
    cgroup_mounts_come_back_without_a_namespace, read_only_paths_of_the_rootfs_come_back, what_the_container_has_bound_comes_back,
    a_device_in_the_place_of_a_default_one_comes_back, a_mount_below_a_link_comes_back, a_masked_path_below_a_link_comes_back,
    a_service_comes_back, a_mount_that_was_added_is_refused, a_mount_in_the_place_of_another_is_refused,
    a_source_that_was_replaced_is_refused, a_masked_device_comes_back_masked, what_a_remount_restricts_comes_back, nested_mounts_come_back, a_read_only_root_comes_back,
}

fn mounts_come_back_in_a_rootfs_made_anew(test: &Test) -> Outcome {
    needs_criu()?;
    let host = test.folder.join("shared");
    fs::create_dir_all(host.join("inner"))?;
    fs::write(host.join("file"), "the host's\n")?;
    let script = "echo mine > /scratch/kept; echo up; while ! test -e /shared/go; do sleep 0.1; done; \
                  cat /shared/file /scratch/kept /single; echo x > /fixed/y || echo fixed; cat /proc/keys; echo end";
    let bundle = test
        .sh(script)?
        .edit(|config| config["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/acpi"]))
        .edit(|config| config["linux"]["readonlyPaths"] = json!(["/proc/sys"]))
        .mount(json!({ "destination": "/shared", "type": "bind", "source": host, "options": ["rbind"] }))
        .mount(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs" }))
        .mount(json!({ "destination": "/fixed", "type": "bind", "source": host, "options": ["bind", "ro"] }))
        .mount(json!({ "destination": "/single", "type": "bind", "source": host.join("file"), "options": ["bind"] }));
    let container = start(&bundle)?;
    container.wait_for_output("up")?;
    write(test, &container, &[])?.success()?;
    for left in ["shared", "scratch", "fixed", "proc", "dev", "sys"] {
        fs::remove_dir(bundle.rootfs().join(left))?;
    }
    fs::remove_file(bundle.rootfs().join("single"))?;
    let restored = restore(&bundle, &[])?;
    fs::write(host.join("go"), "")?;
    restored.wait_for_output("end")?;
    ensure_eq(restored.stdout()?.as_str(), "the host's\nmine\nthe host's\nfixed\nend\n")
}

/// The container has the mount of the socket by which it has sent its readiness message to a
/// service manager.
fn a_service_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let socket = test.folder.join("manager");
    let manager = UnixDatagram::bind(&socket)?;
    let bundle =
        test.sh("grep -c /run/notify /proc/self/mountinfo; while sleep 0.1; do echo on; done")?;
    bundle.write()?;
    let id = test.id();
    let mut create = test.command(bundle.command_line("create", &id));
    create.env("NOTIFY_SOCKET", &socket);
    let container = piped(test, &id, create)?;
    container.start()?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    drop(manager);
    let restored = restore(&bundle, &[])?;
    restored.wait_for_output("on\n")?;
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", restored.pid()?))?;
    ensure(mounts.contains("/notify /run/notify ro,"), mounts)
}

fn with_cgroup_mount<'a>(test: &'a Test) -> Outcome<Bundle<'a>> {
    let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
    Ok(test.sh(COUNT)?.mount(mount))
}

/// The container's `/sys/fs/cgroup` is its present cgroup, and not its former one or the host's.
fn shows_its_cgroup(test: &Test, restored: &Container<'_>) -> Outcome {
    let root = PathBuf::from(format!("/proc/{}/root/sys/fs/cgroup", restored.pid()?));
    let hierarchy = if test.host.lane == "v2" { "" } else { "pids" };
    let shown = root.join(hierarchy);
    let own = cgroups_of(&restored.id);
    let own = own.iter().find(|path| path.starts_with(Path::new("/sys/fs/cgroup").join(hierarchy)));
    let Some(own) = own else { return skip("it is in no such hierarchy") };
    let identity = |path: &Path| fs::metadata(path).map(|folder| (folder.dev(), folder.ino()));
    ensure_eq(identity(&shown)?, identity(own)?)
}

fn a_cgroup_mount_shows_the_new_cgroup(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = with_cgroup_mount(test)?.namespace(json!({ "type": "cgroup" }));
    shows_its_cgroup(test, &move_on(&bundle, "1\n")?)
}

fn a_cgroup_mount_on_the_hosts_sys_shows_no_others(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?.namespace(json!({ "type": "cgroup" })).edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/sys");
            mounts.push(json!({ "destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"] }));
            mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
        }
    });
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    if write(test, &container, &[])?.code == Some(0) {
        return shows_its_cgroup(test, &restore(&bundle, &[])?);
    }
    // If the host's cgroup mounts are shared, two mounts are at one place, and CRIU cannot
    // distinguish them.
    ensure_eq(container.status()?.as_str(), "running")
}

fn cgroup_mounts_come_back_without_a_namespace(test: &Test) -> Outcome {
    needs_criu()?;
    shows_its_cgroup(test, &move_on(&with_cgroup_mount(test)?, "1\n")?)
}

fn read_only_paths_of_the_rootfs_come_back(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test
        .sh(COUNT)?
        .edit(|config| config["linux"]["readonlyPaths"] = json!(["/etc", "/proc/sys"]));
    let restored = move_on(&bundle, "1\n")?;
    test.rt([
        "exec",
        &restored.id,
        "sh",
        "-c",
        "cat /etc/passwd | head -n 1; touch /etc/x && echo writable; touch /y && echo elsewhere",
    ])?
    .success()?
    .stdout("root:x:0:0:root:/root:/bin/sh\nelsewhere\n")
    .map(drop)
}

/// The container has bound a part of a volume of the host, and a part of its own rootfs.
fn what_the_container_has_bound_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let host = test.folder.join("shared");
    fs::create_dir_all(host.join("inner"))?;
    fs::write(host.join("inner/file"), "the host's\n")?;
    let script =
        format!("mkdir /a /b; mount -o bind /shared/inner /a; mount -o bind /etc /b; {COUNT}");
    let bundle = test
        .sh(&script)?
        .edit(|config| {
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
            }
        })
        .mount(json!({ "destination": "/shared", "type": "bind", "source": host, "options": ["rbind"] }));
    let restored = move_on(&bundle, "1\n")?;
    let look = "cat /a/file; head -n 1 /b/passwd; grep -c ' /[ab] ' /proc/self/mountinfo";
    test.rt(["exec", &restored.id, "sh", "-c", look])?
        .success()?
        .stdout("the host's\nroot:x:0:0:root:/root:/bin/sh\n2\n")
        .map(drop)
}

/// In a user namespace, devices are bind mounts from the host too.
fn a_device_in_the_place_of_a_default_one_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let bundle = test
        .sh(COUNT)?
        .namespace(json!({ "type": "user" }))
        .edit(|config| {
            config["linux"]["uidMappings"] = mapping.clone();
            config["linux"]["gidMappings"] = mapping;
        })
        .mount(json!({ "destination": "/dev/random", "type": "bind", "source": "/dev/zero", "options": ["bind"] }));
    fs::set_permissions(&test.folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let restored = move_on(&bundle, "1\n")?;
    let device = fs::metadata(format!("/proc/{}/root/dev/random", restored.pid()?))?.rdev();
    ensure_eq(device, fs::metadata("/dev/zero")?.rdev())
}

fn a_mount_below_a_link_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let host = test.folder.join("shared");
    fs::create_dir_all(&host)?;
    fs::write(host.join("file"), "the host's\n")?;
    let bundle = test.sh(COUNT)?.mount(
        json!({ "destination": "/link/data", "type": "bind", "source": host, "options": ["bind"] }),
    );
    fs::create_dir(bundle.rootfs().join("real"))?;
    std::os::unix::fs::symlink("/real", bundle.rootfs().join("link"))?;
    let restored = move_on(&bundle, "1\n")?;
    test.rt(["exec", &restored.id, "cat", "/real/data/file"])?
        .success()?
        .stdout("the host's\n")
        .map(drop)
}

fn a_masked_path_below_a_link_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test
        .sh(COUNT)?
        .file("/real/secret", "secret")?
        .edit(|config| config["linux"]["maskedPaths"] = json!(["/link/secret"]));
    std::os::unix::fs::symlink("/real", bundle.rootfs().join("link"))?;
    let restored = move_on(&bundle, "1\n")?;
    test.rt(["exec", &restored.id, "cat", "/real/secret"])?.success()?.stdout("").map(drop)
}

fn a_mount_that_was_added_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let file = test.folder.join("mounts.json");
    let mount =
        json!([{ "destination": "/later", "type": "bind", "source": "/etc", "options": ["bind"] }]);
    fs::write(&file, mount.to_string())?;
    test.rt(["mounts", "add", &container.id, &file.display().to_string()])?.success()?;
    write(test, &container, &[])?.fails_with(
        "the mount `/later` shows the host's files, and not those of an entry of `mounts`",
    )?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// A volume in a tmpfs of the container, and a volume in another volume.
fn nested_mounts_come_back(test: &Test) -> Outcome {
    needs_criu()?;
    for name in ["first", "second"] {
        fs::create_dir_all(test.folder.join(name).join("deep"))?;
        fs::write(test.folder.join(name).join("file"), format!("{name}\n"))?;
    }
    let bind = |destination: &str, name: &str| json!({ "destination": destination, "type": "bind", "source": test.folder.join(name), "options": ["rbind", "ro"] });
    let bundle = test
        .sh(COUNT)?
        .mount(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }))
        .mount(bind("/t/inner", "first"))
        .mount(bind("/over", "second"))
        .mount(bind("/over/deep", "first"));
    let restored = move_on(&bundle, "1\n")?;
    let look = "cat /t/inner/file /over/file /over/deep/file; touch /t/x && echo own; for i in /t/inner /over /over/deep; do touch $i/x && echo writable; done; echo end";
    test.rt(["exec", &restored.id, "sh", "-c", look])?
        .success()?
        .stdout("first\nsecond\nfirst\nown\nend\n")
        .map(drop)
}

fn a_read_only_root_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?.edit(|config| {
        config["root"]["readonly"] = json!(true);
        config["linux"]["maskedPaths"] = json!(["/proc/keys", "/sys/firmware", "/etc"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/bus", "/dev"]);
    });
    fs::remove_dir(bundle.rootfs().join("tmp"))?;
    let restored = move_on(&bundle, "1\n")?;
    let look =
        "touch /x || echo fixed; touch /dev/x || echo fixed; ls /etc; cat /proc/keys; echo end";
    test.rt(["exec", &restored.id, "sh", "-c", look])?
        .success()?
        .stdout("fixed\nfixed\nend\n")
        .map(drop)
}

/// By its place, the mount could be the one of the configuration.
fn a_mount_in_the_place_of_another_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    for name in ["own", "other"] {
        fs::create_dir(test.folder.join(name))?;
    }
    let bind = |name: &str| json!({ "destination": "/data", "type": "bind", "source": test.folder.join(name), "options": ["bind"] });
    let tmpfs = json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs" });
    for (added, words) in [
        (bind("other"), "shows the host's files, and not those"),
        (tmpfs, "cannot tell them apart"),
    ] {
        let container = test.sh("exec sleep 60")?.mount(bind("own")).start()?;
        let file = test.folder.join("mounts.json");
        fs::write(&file, json!([added]).to_string())?;
        test.rt(["mounts", "add", &container.id, &file.display().to_string()])?.success()?;
        write(test, &container, &[])?.fails_with(words)?;
        ensure_eq(container.status()?.as_str(), "running")?;
    }
    Ok(())
}

/// Editors replace files like this, and so does kubelet with a `subPath`.
fn a_source_that_was_replaced_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let source = test.folder.join("source");
    fs::write(&source, "old")?;
    let mount =
        json!({ "destination": "/file", "type": "bind", "source": source, "options": ["bind"] });
    let container = test.sh("exec sleep 60")?.mount(mount).start()?;
    fs::write(test.folder.join("new"), "new")?;
    fs::rename(test.folder.join("new"), &source)?;
    write(test, &container, &[])?.fails_with("shows the host's files, and not those")?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// In a user namespace, a device is a bind mount from the host. The mask is another mount, at the
/// same place or instead of it.
fn a_masked_device_comes_back_masked(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh(COUNT)?.edit(|config| {
        let device = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666 });
        config["linux"]["devices"] = json!([device]);
        config["linux"]["maskedPaths"] = json!(["/dev/fuse"]);
    });
    needs_criu()?;
    let restored = move_on(&bundle, "1\n")?;
    let device = fs::metadata(format!("/proc/{}/root/dev/fuse", restored.pid()?))?.rdev();
    ensure_eq(device, fs::metadata("/dev/null")?.rdev())
}

/// CRIU forgets the restrictions of the second mount of one filesystem.
fn what_a_remount_restricts_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    let bind = |destination: &str, options: &[&str]| json!({ "destination": destination, "type": "bind", "source": folder, "options": options });
    let bundle = test
        .sh(COUNT)?
        .mount(bind("/first", &["bind", "ro"]))
        .mount(bind("/second", &["bind"]))
        .mount(bind("/second", &["bind", "remount", "ro"]));
    let restored = move_on(&bundle, "1\n")?;
    let look = "for i in /first /second; do touch $i/x && echo writable; done; echo end";
    test.rt(["exec", &restored.id, "sh", "-c", look])?.success()?.stdout("end\n").map(drop)
}
