//! Attacks with names that other processes change: devices on a shared volume, removed mounts,
//! masks below another name, and the host's `/proc` below a moved root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::namespaces::in_user_namespace;
use crate::harness::{Bundle, Container, Outcome, Output, Test, ensure, ensure_eq, lookups, skip};

super::tests! { "attacks_files":
    a_removal_is_not_led_to_a_read_only_path, a_removal_is_not_led_to_a_mask, a_removal_is_not_led_to_a_mount_of_the_configuration,
    a_removal_is_not_led_astray_in_a_user_namespace, a_mount_that_was_moved_is_removed, a_mount_that_is_hidden_is_left,
    a_mount_that_the_container_has_unmounted_is_forgotten, added_mounts_are_removed_from_the_top, nested_mounts_are_removed,
    a_mount_is_added_to_the_record_first, what_is_there_is_not_mounted_again, a_new_device_is_not_exchanged_for_a_file_of_the_hosts,
    a_device_that_was_there_keeps_its_mode, a_copied_file_that_becomes_a_fifo_is_not_waited_for, a_copy_has_the_modes_and_owners,
    a_proc_of_another_name_is_masked, a_sysfs_of_another_name_is_masked, a_remount_goes_to_what_is_seen,
    nothing_is_mounted_in_proc, what_lxcfs_shows_is_mounted_in_proc, a_procfs_is_mounted_on_proc, nothing_is_added_in_proc,
    no_proc_of_the_hosts_is_below_a_moved_root, no_sysfs_of_the_hosts_is_below_a_moved_root, no_hidden_proc_is_below_a_moved_root,
    no_proc_of_the_hosts_is_below_a_moved_root_in_a_user_namespace, no_proc_is_outside_of_the_chroot_of_a_moved_root,
    the_host_keeps_its_mounts_below_a_moved_root, no_proc_comes_below_a_moved_root_later, a_moved_root_can_be_entered,
    a_new_console_is_not_exchanged_for_a_link, is_removed_where_numbers_are_given_again, a_place_to_mount_in_is_not_exchanged, a_link_to_the_root_takes_no_mount,
    a_lease_holds_up_no_copy_and_no_look_up, what_is_a_link_is_seen_on_the_host, what_is_a_link_is_seen_once,
    the_depth_of_a_copy_has_an_end, a_deep_copy_that_fails_says_why, of_devices_only_the_default_ones_are_copied,
}

fn change(test: &Test, verb: &str, container: &Container<'_>, entries: &Value) -> Outcome<Output> {
    let file = test.folder.join("mounts.json");
    fs::write(&file, entries.to_string())?;
    test.rt(["mounts", verb, &container.id, &file.display().to_string()])
}

fn in_container(test: &Test, container: &Container<'_>, script: &str) -> Outcome<String> {
    Ok(test.rt(["exec", &container.id, "sh", "-c", script])?.success()?.stdout)
}

/// The mount points of a container, in order.
fn points(container: &Container<'_>) -> Outcome<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid()?))?;
    Ok(table.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())).collect())
}

fn tmpfs(destination: &str) -> Value {
    json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs" })
}

fn with_mount_rights(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
        }
    })
}

/// `mounts add` mounts on `/mnt/data`. Then the container moves `/mnt` away, and puts a link to one
/// of the protecting mounts in its place.
fn lead_astray(test: &Test, bundle: Bundle<'_>, added: Value, target: &str) -> Outcome {
    test.only_rt()?;
    let container = bundle.start()?;
    let entries = json!([added]);
    change(test, "add", &container, &entries)?.success()?;
    in_container(
        test,
        &container,
        &format!("busybox mv /mnt /mnt2 && mkdir /mnt && busybox ln -s {target} /mnt/data"),
    )?;
    let before = points(&container)?;
    ensure(before.contains(&target.to_owned()), format!("{target} is no mount: {before:?}"))?;
    ensure(before.contains(&"/mnt2/data".to_owned()), format!("{before:?}"))?;
    change(test, "remove", &container, &entries)?.success()?;
    let mut expected = before;
    expected.retain(|point| point != "/mnt2/data");
    ensure_eq(points(&container)?, expected)
}

fn protected(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        config["linux"]["maskedPaths"] = json!(["/proc/version"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    })
}

fn a_removal_is_not_led_to_a_read_only_path(test: &Test) -> Outcome {
    lead_astray(test, protected(test.sh("exec sleep 60")?), tmpfs("/mnt/data"), "/proc/sys")
}

fn a_removal_is_not_led_to_a_mask(test: &Test) -> Outcome {
    let file = test.folder.join("file");
    fs::write(&file, "")?;
    let added =
        json!({ "destination": "/mnt/data", "type": "bind", "source": file, "options": ["bind"] });
    lead_astray(test, protected(test.sh("exec sleep 60")?), added, "/proc/version")
}

fn a_removal_is_not_led_to_a_mount_of_the_configuration(test: &Test) -> Outcome {
    lead_astray(test, test.sh("exec sleep 60")?, tmpfs("/mnt/data"), "/dev/pts")?;
    let container = test.sh("exec sleep 60")?.mount(tmpfs("/v")).start()?;
    let before = points(&container)?;
    for place in ["/v", "/proc", "/", "/none"] {
        change(test, "remove", &container, &json!([{ "destination": place }]))?
            .fails_with(&format!("unmount `{place}`: `mounts add` has mounted nothing there"))?;
    }
    ensure_eq(points(&container)?, before)
}

fn a_removal_is_not_led_astray_in_a_user_namespace(test: &Test) -> Outcome {
    let bundle = in_user_namespace(protected(test.sh("exec sleep 60")?))?;
    lead_astray(test, bundle, tmpfs("/mnt/data"), "/proc/sys")
}

fn a_mount_that_was_moved_is_removed(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = with_mount_rights(test.sh("exec sleep 60")?).start()?;
    let entries = json!([tmpfs("/data")]);
    change(test, "add", &container, &entries)?.success()?;
    in_container(
        test,
        &container,
        "mkdir /other && mount -o move /data /other && mount -t tmpfs own /data",
    )?;
    change(test, "remove", &container, &entries)?.success()?;
    let points = points(&container)?;
    ensure(!points.contains(&"/other".to_owned()), "it is still there")?;
    ensure(points.contains(&"/data".to_owned()), "the container's own is gone")
}

fn a_mount_that_is_hidden_is_left(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = with_mount_rights(test.sh("exec sleep 60")?).start()?;
    let entries = json!([tmpfs("/data")]);
    change(test, "add", &container, &entries)?.success()?;
    in_container(test, &container, "mount -t tmpfs own /data")?;
    let before = points(&container)?;
    change(test, "remove", &container, &entries)?
        .code(1)?
        .fails_with("unmount `/data`: it is hidden by another mount, at `/data`")?;
    ensure_eq(points(&container)?, before)?;
    in_container(test, &container, "busybox umount /data")?;
    change(test, "remove", &container, &entries)?.success()?;
    ensure(!points(&container)?.contains(&"/data".to_owned()), "it is still there")
}

fn a_mount_that_the_container_has_unmounted_is_forgotten(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = with_mount_rights(test.sh("exec sleep 60")?).start()?;
    let entries = json!([tmpfs("/data")]);
    change(test, "add", &container, &entries)?.success()?;
    let state = fs::read_to_string(test.state_root().join(&container.id).join("state.json"))?;
    // The new mount gets the number of the old one, because the kernel uses the lowest free number.
    // Since Linux 6.8, mounts have a unique number too. Without unique numbers the test mounts
    // nothing: a container that may unmount gains nothing by such a confusion.
    let own = if state.contains("\"unique\"") { "mount -t tmpfs own /data" } else { "true" };
    in_container(test, &container, &format!("busybox umount /data && {own}"))?;
    let before = points(&container)?;
    for words in
        ["the container has unmounted it already", "`mounts add` has mounted nothing there"]
    {
        change(test, "remove", &container, &entries)?
            .code(1)?
            .fails_with(&format!("unmount `/data`: {words}"))?;
    }
    ensure_eq(points(&container)?, before)
}

fn added_mounts_are_removed_from_the_top(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let before = points(&container)?;
    for name in ["a", "b", "c"] {
        fs::create_dir(test.folder.join(name))?;
        fs::write(test.folder.join(name).join(name), "")?;
    }
    let bind = |name: &str| json!({ "destination": "/data", "type": "bind", "source": test.folder.join(name), "options": ["bind"] });
    change(test, "add", &container, &json!([bind("a"), bind("b")]))?.success()?;
    change(test, "add", &container, &json!([bind("c")]))?.success()?;
    let one = json!([{ "destination": "/data/" }]);
    for expected in ["c\n", "b\n"] {
        ensure_eq(in_container(test, &container, "ls /data")?.as_str(), expected)?;
        change(test, "remove", &container, &one)?.success()?;
    }
    change(test, "add", &container, &json!([bind("b"), bind("c")]))?.success()?;
    change(test, "remove", &container, &json!([bind("a"), bind("b"), bind("c")]))?.success()?;
    change(test, "remove", &container, &one)?.fails_with("has mounted nothing there")?;
    ensure_eq(points(&container)?, before)
}

fn nested_mounts_are_removed(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let before = points(&container)?;
    let [outer, inner] = ["/data", "/data/deep"].map(|place| json!([tmpfs(place)]));
    let both = json!([tmpfs("/data"), tmpfs("/data/deep")]);
    change(test, "add", &container, &both)?.success()?;
    change(test, "remove", &container, &both)?.success()?;
    change(test, "add", &container, &both)?.success()?;
    change(test, "remove", &container, &inner)?.success()?;
    change(test, "remove", &container, &outer)?.success()?;
    change(test, "add", &container, &both)?.success()?;
    change(test, "remove", &container, &outer)?.success()?;
    change(test, "remove", &container, &inner)?.fails_with("has unmounted it already")?;
    ensure_eq(points(&container)?, before)
}

/// If `rt` cannot write the state, it neither mounts nor unmounts.
fn a_mount_is_added_to_the_record_first(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let entries = json!([tmpfs("/data")]);
    change(test, "add", &container, &entries)?.success()?;
    let before = points(&container)?;
    for verb in ["add", "remove"] {
        let file = test.folder.join("mounts.json");
        // A mount namespace in which the root of the state is read-only.
        let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script]).arg(test.state_root());
        let rt = test.command(["mounts", verb, &container.id, &file.display().to_string()]);
        command.arg(rt.get_program()).args(rt.get_args()).stdin(Stdio::null());
        Output::of(command)?.code(1)?.fails_with("Read-only file system")?;
        ensure_eq(points(&container)?, before.clone())?;
    }
    // If an entry fails, the entries before it are in the record.
    let twice = json!([tmpfs("/one"), { "destination": "/etc/passwd", "type": "tmpfs", "source": "tmpfs" }, tmpfs("/two")]);
    change(test, "add", &container, &twice)?.fails_with("mount `/etc/passwd`")?;
    for (place, words) in
        [("/two", "mounted nothing there"), ("/etc/passwd", "mounted nothing there")]
    {
        change(test, "remove", &container, &json!([{ "destination": place }]))?
            .fails_with(words)?;
    }
    change(test, "remove", &container, &json!([tmpfs("/data"), tmpfs("/one")]))?.success().map(drop)
}

/// A remount would change the mount to which the container has led the destination.
fn what_is_there_is_not_mounted_again(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = protected(test.sh("exec sleep 60")?).start()?;
    in_container(test, &container, "busybox ln -s /proc/sys /data")?;
    let entry = json!([{ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "rw"] }]);
    change(test, "add", &container, &entry)?
        .fails_with("only bind mounts and tmpfs can be added")?;
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid()?))?;
    ensure(table.contains(" /proc/sys ro,"), table)
}

/// Runs one function while another thread repeats the other.
fn meanwhile<T>(repeat: impl Fn() + Sync, run: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                repeat();
            }
        });
        let outcome = run();
        done.store(true, Ordering::Relaxed);
        outcome
    })
}

fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags};
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

/// A volume that another container shares is mounted on `/dev`. A neighbour exchanges each new node
/// for a link.
fn a_new_device_is_not_exchanged_for_a_file_of_the_hosts(test: &Test) -> Outcome {
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace, which holds the runtime up at the right place");
    }
    let (volume, canary) = (test.folder.join("volume"), test.folder.join("canary"));
    fs::create_dir(&volume)?;
    fs::write(&canary, "")?;
    let mode = |mode: u32| fs::set_permissions(&canary, fs::Permissions::from_mode(mode));
    let has = || Ok::<u32, std::io::Error>(fs::metadata(&canary)?.permissions().mode() & 0o7777);
    let listed = json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 5 }]);
    for (names, devices) in [(["null", "zero"], json!([])), (["mine", "mine"], listed)] {
        for name in names {
            let _ = fs::remove_file(volume.join(name));
            let _ = symlink(&canary, volume.join(format!("{name}.link")));
        }
        mode(0o600)?;
        let bundle = test
            .sh("true")?
            .edit(|config| {
                config["mounts"] =
                    json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
                config["linux"]["devices"] = devices;
            })
            .mount(json!({ "destination": "/dev", "source": volume, "options": ["bind"] }));
        bundle.write()?;
        let rt = test.command(bundle.command_line("run", &test.id()));
        let mut command = Command::new("timeout");
        command.args([
            "--signal=KILL",
            "60",
            "strace",
            "-f",
            "--trace=mknodat",
            "--output=/dev/null",
        ]);
        command.arg("--inject=mknodat:delay_exit=200000");
        command.arg(rt.get_program()).args(rt.get_args()).stdin(Stdio::null());
        let repeat = || {
            for name in names {
                let node = volume.join(name);
                if fs::symlink_metadata(&node).is_ok_and(|there| !there.is_symlink()) {
                    exchange(&node, &volume.join(format!("{name}.link")));
                }
            }
        };
        let output = meanwhile(repeat, || Output::of(command))?;
        ensure_eq(has()?, 0o600)?;
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&canary)?);
        ensure_eq(owner, 0)?;
        ensure(output.stderr.contains("another file is in its place"), &output.stderr)?;
        for name in names {
            let _ = fs::remove_file(volume.join(format!("{name}.link")));
        }
    }
    Ok(())
}

fn a_device_that_was_there_keeps_its_mode(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    let bundle = test.sh("busybox stat -c %a /dev/null /dev/zero")?;
    let bundle =
        bundle.mount(json!({ "destination": "/dev", "source": volume, "options": ["bind"] }));
    bundle.run()?.success()?.stdout("666\n666\n")?;
    fs::set_permissions(volume.join("null"), fs::Permissions::from_mode(0o600))?;
    bundle.run()?.success()?.stdout("600\n666\n").map(drop)
}

/// A fifo without a writer would block a reader for ever.
fn a_copied_file_that_becomes_a_fifo_is_not_waited_for(test: &Test) -> Outcome {
    use rustix::fs::{CWD, FileType, Mode};
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    let (file, fifo) = (volume.join("file"), test.folder.join("fifo"));
    fs::write(&file, "content\n")?;
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0)?;
    let bundle = test
        .sh("true")?
        .mount(json!({ "destination": "/v", "source": volume, "options": ["bind"] }))
        .mount(json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    bundle.write()?;
    let repeat = || {
        exchange(&file, &fifo);
    };
    meanwhile(repeat, || {
        for _ in 0..100 {
            let rt = test.command(bundle.command_line("run", &test.id()));
            let mut command = Command::new("timeout");
            command.args(["--signal=KILL", "20"]).arg(rt.get_program()).args(rt.get_args());
            Output::of(command)?.success()?;
        }
        Ok(())
    })
}

fn a_copy_has_the_modes_and_owners(test: &Test) -> Outcome {
    use std::os::unix::fs::{chown, lchown};
    let show = "cd /v && busybox find . | busybox sort | busybox xargs busybox stat -c '%n %a %u:%g %F'; cat /v/deep/file; readlink /v/link";
    let bundle = test.sh(show)?.file("/v/deep/file", "content\n")?;
    let v = bundle.rootfs().join("v");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        v.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )?;
    symlink("deep/file", v.join("link"))?;
    for (name, mode, owner) in [("fifo", 0o620, 3), ("deep/file", 0o4755, 4), ("deep", 0o2775, 5)] {
        chown(v.join(name), Some(owner), Some(owner))?;
        fs::set_permissions(v.join(name), fs::Permissions::from_mode(mode))?;
    }
    lchown(v.join("link"), Some(6), Some(6))?;
    fs::set_permissions(&v, fs::Permissions::from_mode(0o751))?;
    let mount = json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] });
    let expected = ". 751 0:0 directory\n./deep 2775 5:5 directory\n./deep/file 4755 4:4 regular file\n\
                    ./fifo 620 3:3 fifo\n./link 777 6:6 symbolic link\ncontent\ndeep/file\n";
    bundle.mount(mount).run()?.success()?.stdout(expected).map(drop)
}

fn copying(source: &Path, destination: &str) -> Value {
    let options = ["bind", "ro", "copy-symlink"];
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

/// `rt` looks at the source on the host. At the same path in the container, a directory of the host
/// can be a link, and a link can be missing.
fn what_is_a_link_is_seen_on_the_host(test: &Test) -> Outcome {
    test.only_rt()?;
    let (folder, link) = (test.folder.join("folder"), test.folder.join("link"));
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "the host's\n")?;
    symlink(&folder, &link)?;
    for user in [false, true] {
        let bundle = test.sh("exec sleep 60")?;
        let bundle = if user { in_user_namespace(bundle)? } else { bundle };
        let inside = bundle.rootfs().join(test.folder.strip_prefix("/")?);
        fs::create_dir_all(&inside)?;
        symlink("/etc", inside.join("folder"))?;
        let container = bundle.start()?;
        let added = json!([
            copying(&link, "/copied"),
            copying(&folder, "/mounted"),
            copying(&link, "/copied-too"),
        ]);
        change(test, "add", &container, &added)?.success()?;
        let look =
            "readlink /copied; readlink /copied-too; cat /mounted/file; touch /mounted/new || true";
        let to = folder.display();
        let seen = in_container(test, &container, look)?;
        ensure_eq(seen, format!("{to}\n{to}\nthe host's\n"))?;
        ensure_eq(points(&container)?.iter().filter(|point| point.contains("copied")).count(), 0)?;
        change(test, "remove", &container, &json!([{ "destination": "/mounted" }]))?.success()?;
        change(test, "remove", &container, &json!([{ "destination": "/copied" }]))?
            .fails_with("`mounts add` has mounted nothing there")?;
        ensure(!points(&container)?.contains(&"/mounted".to_owned()), "it is mounted still")?;
    }
    Ok(())
}

/// The owner of the directory above a source exchanges a link and a directory after each lookup of
/// the source.
fn what_is_a_link_is_seen_once(test: &Test) -> Outcome {
    test.only_rt()?;
    let secret = test.folder.join("secret");
    fs::create_dir(&secret)?;
    fs::write(secret.join("file"), "secret\n")?;
    for (how, link_first) in [
        ("run", false),
        ("run", true),
        ("user", false),
        ("user", true),
        ("mapped", false),
        ("mapped", true),
        ("add", false),
        ("add", true),
    ] {
        let source = test.folder.join(format!("{how}-{link_first}"));
        let other = source.with_extension("other");
        fs::create_dir(&source)?;
        fs::write(source.join("file"), "the directory's\n")?;
        symlink(&secret, &other)?;
        ensure(!link_first || exchange(&source, &other), "exchange")?;
        let mut ends = 0;
        let mut trace = |command: &Command| {
            let path = source.display().to_string();
            lookups::trace(
                command,
                |_| false,
                |_, _, name| {
                    ends += usize::from(name == path);
                    // Each call stops twice. The second stop is the end of the call.
                    if name == path && ends % 2 == 0 {
                        ensure(exchange(&source, &other), "exchange")?;
                    }
                    Ok(())
                },
            )
        };
        let bundle = if how == "add" {
            let bundle = test.sh("exec sleep 60")?;
            let container = bundle.start()?;
            let file = test.folder.join("mounts.json");
            fs::write(&file, json!([copying(&source, "/v")]).to_string())?;
            trace(&test.command(["mounts", "add", &container.id, &file.display().to_string()]))?;
            in_container(test, &container, "cat /v/file >/tmp/seen 2>/dev/null || true")?;
            bundle
        } else {
            let bundle = test.sh("cat /v/file >/tmp/seen 2>/dev/null || true")?;
            let bundle = if how == "user" { in_user_namespace(bundle)? } else { bundle };
            let mut mount = copying(&source, "/v");
            if let Some(options) = mount["options"].as_array_mut().filter(|_| how == "mapped") {
                options.push(json!("idmap=uids=0-0-1;gids=0-0-1"));
            }
            let bundle = bundle.mount(mount);
            bundle.write()?;
            trace(&test.command(bundle.command_line("run", &test.id())))?;
            bundle
        };
        let seen = fs::read_to_string(bundle.rootfs().join("tmp/seen"))?;
        let expected = if link_first { "" } else { "the directory's\n" };
        let is_link = fs::read_link(bundle.rootfs().join("v")).is_ok();
        ensure_eq((how, seen.as_str(), is_link, ends), (how, expected, link_first, 2))?;
    }
    Ok(())
}

/// A rootfs with nested directories, of which an image may have any number, and a mount that copies
/// them up.
fn nested<'a>(test: &'a Test, name: &str, depth: usize) -> Outcome<Bundle<'a>> {
    use rustix::fs::{Mode, OFlags};
    test.only_rt()?;
    let bundle = test
        .sh("cd /v; n=0; while cd d 2>/dev/null; do n=$((n+1)); done; echo $n")?
        .file("/v/file", "")?
        .mount(json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    let mut at = rustix::fs::open(bundle.rootfs().join("v"), OFlags::PATH, Mode::empty())?;
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, name, Mode::from(0o755))?;
        at = rustix::fs::openat(&at, name, OFlags::PATH, Mode::empty())?;
    }
    Ok(bundle)
}

fn the_depth_of_a_copy_has_an_end(test: &Test) -> Outcome {
    nested(test, "d", 256)?.run()?.success()?.stdout("256\n")?;
    nested(test, "d", 257)?.run()?.fails_with("more than 256 directories in each other").map(drop)
}

/// The names alone are a hundred times longer than a message may be.
fn a_deep_copy_that_fails_says_why(test: &Test) -> Outcome {
    let name = "d".repeat(255);
    let words = format!("copy `{}…`: more than 256 directories in each other", &name[..200]);
    let output = nested(test, &name, 500)?.run()?.fails_with(&words)?;
    ensure(output.stderr.len() < 500, output.stderr)
}

/// The holder of the lease does not react. An open that waits would take 45 s (`lease-break-time`,
/// `fcntl(2)`).
fn a_lease_holds_up_no_copy_and_no_look_up(test: &Test) -> Outcome {
    if !Path::new("/usr/bin/perl").exists() {
        return skip("the host has no perl");
    }
    let bundle = test.sh("echo $HOME")?.file("/v/file", "content\n")?.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    let hold = |path: &str| -> Outcome<std::process::Child> {
        // F_SETLEASE, F_WRLCK.
        let script = r#"$SIG{IO} = "IGNORE"; open(my $file, "+<", $ARGV[0]) or die; $| = 1;
            print fcntl($file, 1024, 1) ? "held\n" : "no\n"; sleep 60"#;
        let mut holder = Command::new("/usr/bin/perl");
        holder.args(["-e", script]).arg(bundle.rootfs().join(path)).stdout(Stdio::piped());
        let mut holder = holder.spawn()?;
        let mut said = String::new();
        let stdout = holder.stdout.take().ok_or("no stdout")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said)?;
        if said == "held\n" {
            return Ok(holder);
        }
        holder.kill()?;
        holder.wait()?;
        skip("this filesystem has no leases")
    };
    let copying =
        bundle.clone().mount(json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup"] }));
    let mut holder = hold("v/file")?;
    let copied = copying.run();
    holder.kill()?;
    holder.wait()?;
    let mut holder = hold("etc/passwd")?;
    let looked_up = bundle.run();
    holder.kill()?;
    holder.wait()?;
    copied?.fails_with("copy the directory up: copy `file`: ")?;
    // `rt` cannot read the home directory from the leased file.
    looked_up?.success()?.stdout("/\n").map(drop)
}

/// Where no device rules apply, a node of the image gives access to the host's device.
fn of_devices_only_the_default_ones_are_copied(test: &Test) -> Outcome {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let bundle = test.sh("echo /v/*")?.file("/v/file", "")?;
    for (name, minor) in [("kmsg", 11), ("null", 3)] {
        let place = bundle.rootfs().join("v").join(name);
        mknodat(CWD, place, FileType::CharacterDevice, Mode::RUSR, makedev(1, minor))?;
    }
    let mount = json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] });
    bundle.mount(mount).run()?.success()?.stdout("/v/file /v/null\n").map(drop)
}

const CHANGE: &str = "wc -c < /proc/version; echo x 2>/dev/null > /proc/sys/kernel/domainname || echo refused; \
                      touch /proc/sys/kernel/domainname 2>/dev/null || echo refused";

/// A second procfs is mounted on `/proc`, under another name.
fn a_proc_of_another_name_is_masked(test: &Test) -> Outcome {
    for name in ["/mnt/../proc", "/proc/../proc", "/tmp/./../proc"] {
        let bundle = protected(test.sh(CHANGE)?);
        fs::create_dir_all(bundle.rootfs().join("mnt"))?;
        let mount = json!({ "destination": name, "type": "proc", "source": "proc" });
        bundle.mount(mount).run()?.success()?.stdout("0\nrefused\nrefused\n")?;
    }
    // A link in the image can make another name, too.
    let bundle = protected(test.sh(CHANGE)?);
    symlink("/proc", bundle.rootfs().join("link"))?;
    let mount = json!({ "destination": "/link/../proc", "type": "bind", "source": "/proc", "options": ["rbind"] });
    bundle.mount(mount).run()?.success()?.stdout("0\nrefused\nrefused\n").map(drop)
}

fn a_sysfs_of_another_name_is_masked(test: &Test) -> Outcome {
    if fs::read_dir("/sys/firmware").map_or(0, Iterator::count) == 0 {
        return skip("the host has no /sys/firmware");
    }
    let bundle = test.sh("ls /sys/firmware; touch /sys/kernel/mm 2>/dev/null || echo refused")?;
    fs::create_dir_all(bundle.rootfs().join("mnt"))?;
    bundle
        .mount(json!({ "destination": "/mnt/../sys", "type": "sysfs", "source": "sysfs" }))
        .edit(|config| {
            config["linux"]["maskedPaths"] = json!(["/sys/firmware"]);
            config["linux"]["readonlyPaths"] = json!(["/sys/kernel"]);
        })
        .run()?
        .success()?
        .stdout("refused\n")
        .map(drop)
}

fn a_remount_goes_to_what_is_seen(test: &Test) -> Outcome {
    let bundle = test.sh("touch /proc/sys/kernel/domainname 2>/dev/null || echo refused")?;
    fs::create_dir_all(bundle.rootfs().join("mnt"))?;
    bundle
        .mount(json!({ "destination": "/mnt/../proc", "type": "proc", "source": "proc" }))
        .mount(json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["remount", "bind", "ro"] }))
        .run()?
        .success()?
        .stdout("refused\n")
        .map(drop)
}

/// runc has the same rule. The content of `/proc` must come from the kernel.
fn nothing_is_mounted_in_proc(test: &Test) -> Outcome {
    test.only_rt()?;
    let volume = test.folder.join("volume");
    fs::create_dir_all(volume.join("attr"))?;
    fs::write(volume.join("file"), "")?;
    let bind = |destination: &str, source: &Path, option: &str| json!({ "destination": destination, "source": source, "type": "bind", "options": ["bind", option] });
    for (mount, words) in [
        (bind("/proc", &volume, "rw"), "only a procfs can be mounted on `/proc`"),
        (bind("/proc", Path::new("/proc/sys"), "rw"), "only a procfs can be mounted on `/proc`"),
        (tmpfs("/proc"), "only a procfs can be mounted on `/proc`"),
        (tmpfs("/tmp/../proc"), "only a procfs can be mounted on `/proc`"),
        (bind("/proc/self", &volume, "rw"), "nothing can be mounted inside of `/proc`"),
        (
            bind("/proc/self", &volume.join("file"), "dest-nofollow"),
            "nothing can be mounted inside of `/proc`",
        ),
        (bind("/proc/1/attr", &volume, "rw"), "nothing can be mounted inside of `/proc`"),
        (bind("/link", &volume, "rw"), "nothing can be mounted inside of `/proc`"),
        (
            bind("/proc/version", &volume.join("file"), "rw"),
            "nothing can be mounted inside of `/proc`",
        ),
        (tmpfs("/proc/sys"), "nothing can be mounted inside of `/proc`"),
        (
            json!({ "destination": "/proc/driver", "type": "proc", "source": "proc" }),
            "nothing can be mounted inside of `/proc`",
        ),
        (
            json!({ "destination": "/proc/fs", "type": "cgroup", "source": "cgroup" }),
            "nothing can be mounted inside of `/proc`",
        ),
    ] {
        let bundle = test.sh("true")?;
        symlink("/proc/self/attr", bundle.rootfs().join("link"))?;
        bundle.mount(mount).try_create(&test.id())?.fails_with(words)?;
    }
    Ok(())
}

fn what_lxcfs_shows_is_mounted_in_proc(test: &Test) -> Outcome {
    let file = test.folder.join("file");
    fs::write(&file, "1.00 2.00\n")?;
    let bundle = test.sh("cat /proc/uptime /proc/sys/kernel/ns_last_pid")?;
    let at = |name: &str| json!({ "destination": name, "source": file, "options": ["bind", "ro"] });
    bundle
        .mount(at("/proc/uptime"))
        .mount(at("/proc/sys/kernel/ns_last_pid"))
        // `rt` accepts this mount, but the kernel drops it.
        .mount(at("/proc/net/dev"))
        .run()?
        .success()?
        .stdout(&"1.00 2.00\n".repeat(2))
        .map(drop)
}

fn a_procfs_is_mounted_on_proc(test: &Test) -> Outcome {
    let bundle = test.sh("test -e /proc/self/maps && echo there")?;
    let mount =
        json!({ "destination": "/proc", "source": "/proc", "type": "bind", "options": ["rbind"] });
    let bundle = bundle.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    bundle.mount(mount).run()?.success()?.stdout("there\n").map(drop)
}

fn nothing_is_added_in_proc(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    in_container(test, &container, "busybox ln -s /proc/1 /data")?;
    let before = points(&container)?;
    for (place, words) in [
        ("/proc", "only a procfs can be mounted on `/proc`"),
        ("/proc/sys", "nothing can be mounted inside of `/proc`"),
        ("/data/attr", "nothing can be mounted inside of `/proc`"),
    ] {
        change(test, "add", &container, &json!([tmpfs(place)]))?.fails_with(words)?;
    }
    ensure_eq(points(&container)?, before)
}

/// Does the same as `unshare -mrpf` (and `-n`), then mounts, and prints the result. The numbers are
/// for x86-64 and aarch64.
const UNSHARE: &str = r#"
    my ($unshare, $mount) = `uname -m` =~ /aarch64/ ? (97, 40) : (272, 165);
    my ($uid, $gid) = ($>, $) + 0);
    syscall($unshare, 0x10000000 | 0x20000 | 0x20000000 | 0x40000000) == 0 or die "unshare: $!\n";
    my $write = sub { open(my $file, ">", $_[0]) or die "$_[0]: $!\n"; syswrite($file, $_[1]) or die "$_[0]: $!\n" };
    $write->("/proc/self/setgroups", "deny");
    $write->("/proc/self/uid_map", "0 $uid 1");
    $write->("/proc/self/gid_map", "0 $gid 1");
    my $child = fork;
    if ($child == 0) {
        my $none = "";
        for my $kind (split / /, "KINDS") {
            my $place = "/tmp";
            # MS_RDONLY is not asked for: a writable one is what would do harm.
            my $done = syscall($mount, $kind, $place, $kind, 14, $none);
            print "$kind ", $done == 0 ? "mounted" : "refused", "\n";
        }
        exit 0;
    }
    waitpid $child, 0;
"#;

/// A container that may make user namespaces, with its own procfs and sysfs, which are masked, and
/// with a moved root.
fn unsharing<'a>(test: &'a Test, kinds: &str) -> Outcome<Bundle<'a>> {
    let bundle = test.perl(&UNSHARE.replace("KINDS", kinds))?;
    let bundle = protected(bundle).flag("--no-pivot").edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["env"] = json!(["PATH=/usr/bin:/bin"]);
        config["linux"]["maskedPaths"] = json!(["/proc/version", "/sys/kernel"]);
    });
    Ok(bundle)
}

/// The kernel refuses these mounts, with a pivoted root and with a moved root.
fn are_refused(bundle: &Bundle<'_>, expected: &str) -> Outcome {
    let mut pivoted = bundle.clone();
    pivoted.flags.clear();
    let output = pivoted.run()?;
    if output.stderr.contains("unshare: ") || output.stderr.contains("_map: ") {
        return skip(format!("no user namespace can be made here: {}", output.stderr.trim()));
    }
    output.success()?.stdout(expected)?;
    bundle.run()?.success()?.stdout(expected).map(drop)
}

/// The host's whole `/proc`, in which nothing is masked, was still there below the root. So the
/// kernel allowed a new procfs.
fn no_proc_of_the_hosts_is_below_a_moved_root(test: &Test) -> Outcome {
    are_refused(&unsharing(test, "proc")?, "proc refused\n")
}

fn no_sysfs_of_the_hosts_is_below_a_moved_root(test: &Test) -> Outcome {
    are_refused(&unsharing(test, "sysfs proc")?, "sysfs refused\nproc refused\n")
}

/// Runs the bundle in a mount namespace in which a script runs first. `$0` is the test's directory.
fn run_after(test: &Test, bundle: &Bundle<'_>, script: &str) -> Outcome<Output> {
    bundle.write()?;
    let rt = test.command(bundle.command_line("run", &test.id()));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{script}; exec \"$@\"")]).arg(&test.folder);
    command.arg(rt.get_program()).args(rt.get_args()).stdin(Stdio::null());
    Output::of(command)
}

/// More procfs mounts are elsewhere: one is on another, and one is below a mount that hides it.
fn no_hidden_proc_is_below_a_moved_root(test: &Test) -> Outcome {
    let bundle = unsharing(test, "proc sysfs")?;
    are_refused(&bundle, "proc refused\nsysfs refused\n")?;
    for folder in ["a/b", "c"] {
        fs::create_dir_all(test.folder.join(folder))?;
    }
    let script = "mount -t proc proc $0/a/b; mount -t tmpfs tmpfs $0/a; mount -t proc proc $0/c; mount -t proc proc $0/c; \
                  mount --bind /sys $0/a; mount --rbind /proc /mnt";
    run_after(test, &bundle, script)?.success()?.stdout("proc refused\nsysfs refused\n").map(drop)
}

/// In a user namespace, `rt` cannot unmount the host's mounts. It covers them.
fn no_proc_of_the_hosts_is_below_a_moved_root_in_a_user_namespace(test: &Test) -> Outcome {
    are_refused(
        &in_user_namespace(unsharing(test, "proc sysfs")?)?,
        "proc refused\nsysfs refused\n",
    )
}

/// A runtime in a chroot does not see mounts outside of it. The container's mount namespace has
/// them all the same.
fn no_proc_is_outside_of_the_chroot_of_a_moved_root(test: &Test) -> Outcome {
    if test.host.by_systemd {
        return skip("a chroot without `/run` has no way to systemd");
    }
    let bundle = unsharing(test, "proc sysfs")?;
    are_refused(&bundle, "proc refused\nsysfs refused\n")?;
    bundle.write()?;
    let rt = test.command(bundle.command_line("run", &test.id()));
    fs::create_dir(test.folder.join("root"))?;
    let script = "mount --bind / $0/root; mount -t proc proc $0/root/proc; mount --rbind /sys $0/root/sys; \
                  mount --rbind /dev $0/root/dev; exec chroot $0/root \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script]).arg(&test.folder);
    command.arg(rt.get_program()).args(rt.get_args()).stdin(Stdio::null());
    Output::of(command)?.success()?.stdout("proc refused\nsysfs refused\n").map(drop)
}

/// This also holds with a propagation that passes the container's mounts on to the host.
fn the_host_keeps_its_mounts_below_a_moved_root(test: &Test) -> Outcome {
    for (propagation, prepare) in [
        ("private", "true"),
        ("rslave", "true"),
        ("rshared", "true"),
        // The rootfs is on its own mount, and not on the host's root mount.
        ("rshared", "mount --bind $1 $1; mount --make-rprivate $1"),
    ] {
        let bundle = test
            .sh("true")?
            .flag("--no-pivot")
            .edit(|config| config["linux"]["rootfsPropagation"] = json!(propagation));
        bundle.write()?;
        let rt = test.command(bundle.command_line("run", &test.id()));
        let mut command = Command::new("unshare");
        let script = format!(
            "mount --make-rshared /; {prepare}; shift; cat /proc/self/mountinfo > $0/before; \"$@\"; cat /proc/self/mountinfo > $0/after"
        );
        command.args(["--mount", "--propagation=private", "sh", "-ec", &script]).arg(&test.folder);
        command.arg(bundle.rootfs()).arg(rt.get_program()).args(rt.get_args());
        command.stdin(Stdio::null());
        Output::of(command)?.success()?;
        let read = |name: &str| fs::read_to_string(test.folder.join(name));
        ensure_eq(read("after")?, read("before")?)?;
    }
    Ok(())
}

/// The host mounts a procfs when the container already runs.
fn no_proc_comes_below_a_moved_root_later(test: &Test) -> Outcome {
    for user_namespace in [false, true] {
        let mut bundle = unsharing(test, "proc")?;
        if user_namespace {
            bundle = in_user_namespace(bundle)?;
        }
        are_refused(&bundle, "proc refused\n")?;
        let wait = r#"open(my $ready, ">", "/tmp/ready") or die $!; for (1..2000) { last if -e "/tmp/go"; select(undef, undef, undef, 0.005) }"#;
        let script = format!("{wait} {}", UNSHARE.replace("KINDS", "proc"));
        let bundle = bundle.args(&["/usr/bin/perl", "-e", &script]);
        let tmp = bundle.rootfs().join("tmp");
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o777))?;
        bundle.write()?;
        let late = test.folder.join(format!("late-{user_namespace}"));
        fs::create_dir(&late)?;
        let rt = test.command(bundle.command_line("run", &test.id()));
        let mut command = Command::new("unshare");
        let script = "mount --make-rshared /; tmp=$1; shift; \"$@\" & i=0; \
                      while [ ! -e $tmp/ready ] && [ $i -lt 2000 ]; do sleep 0.005; i=$((i + 1)); done; \
                      mount -t proc proc $0; touch $tmp/go; wait $!";
        command.args(["--mount", "--propagation=private", "sh", "-ec", script]).arg(&late);
        command.arg(&tmp).arg(rt.get_program()).args(rt.get_args()).stdin(Stdio::null());
        Output::of(command)?.success()?.stdout("proc refused\n")?;
    }
    Ok(())
}

/// `exec` and `mounts add` enter the mount namespace and come to its root, which must be the
/// container's.
fn a_moved_root_can_be_entered(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.flag("--no-pivot").start()?;
    let entries = json!([tmpfs("/data")]);
    change(test, "add", &container, &entries)?.success()?;
    ensure_eq(
        in_container(test, &container, "ls -d /bin /data /usr /proc/1 2>/dev/null; true")?.as_str(),
        "/bin\n/data\n/proc/1\n",
    )?;
    ensure(points(&container)?.contains(&"/data".to_owned()), "it is not mounted")?;
    change(test, "remove", &container, &entries)?.success()?;
    ensure(!points(&container)?.contains(&"/data".to_owned()), "it is mounted still")
}

/// CVE-2025-52565 by a neighbour who shares a volume: a link appears where no console was.
fn a_new_console_is_not_exchanged_for_a_link(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    let script = "test -t 0 && echo terminal; test -c /proc/version && echo mounted; true";
    let bundle = test.sh(script)?.edit(|config| {
        config["process"]["terminal"] = json!(true);
        config["mounts"][1] =
            json!({ "destination": "/dev", "source": volume, "options": ["bind"] });
    });
    let console = volume.join("console");
    let repeat = || {
        let _ = symlink("/proc/version", &console);
        let _ = fs::remove_file(&console);
    };
    let socket = test.folder.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let bundle = bundle.flag(format!("--console-socket={}", socket.display()));
    meanwhile(repeat, || {
        let mut ran = 0;
        for _ in 0..100 {
            let id = test.id();
            // A `create` that fails may have sent its terminal before.
            let created = bundle.try_create(&id)?.code == Some(0);
            listener.set_nonblocking(!created)?;
            let Ok(master) = super::terminal::receive(&listener) else { continue };
            if created {
                test.rt(["start", &id])?.success()?;
                let text = super::terminal::read_all(master.into());
                ensure(text.contains("terminal"), &text)?;
                ensure(!text.contains("mounted"), "the console is on what the link leads to")?;
                test.rt(["delete", "--force", &id])?.success()?;
                ran += 1;
            }
        }
        ensure(ran > 0, "it never ran")
    })
}

/// Before Linux 6.8, mounts have no unique numbers.
fn is_removed_where_numbers_are_given_again(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = protected(test.sh("exec sleep 60")?).start()?;
    let before = points(&container)?;
    let entries = json!([tmpfs("/mnt/data")]);
    change(test, "add", &container, &entries)?.success()?;
    let file = test.state_root().join(&container.id).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file)?)?;
    state["added"][0].as_object_mut().map(|added| added.remove("unique"));
    fs::write(&file, state.to_string())?;
    in_container(
        test,
        &container,
        "busybox mv /mnt /mnt2 && mkdir /mnt && busybox ln -s /proc/sys /mnt/data",
    )?;
    change(test, "remove", &container, &entries)?.success()?;
    ensure_eq(points(&container)?, before)?;
    // A state of an older `rt` has no record of added mounts.
    change(test, "add", &container, &json!([tmpfs("/other")]))?.success()?;
    let mut state: Value = serde_json::from_slice(&fs::read(&file)?)?;
    state.as_object_mut().map(|state| state.remove("added"));
    fs::write(&file, state.to_string())?;
    change(test, "remove", &container, &json!([tmpfs("/other")]))?
        .fails_with("`mounts add` has mounted nothing there")
        .map(drop)
}

/// The layers of this overlay are too long for `fsconfig(2)`. The owner of a directory above the
/// rootfs exchanges it as soon as the overlay is mounted.
fn a_place_to_mount_in_is_not_exchanged(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace, which holds the runtime up at the right place");
    }
    let theirs = test.folder.join("theirs");
    let (real, false_one) = (theirs.join("real"), theirs.join("false"));
    let (layer, secret) = (test.folder.join("layer".repeat(40)), test.folder.join("secret"));
    let layer = layer.join("layer".repeat(40));
    for folder in [&real, &false_one, &layer, &secret] {
        fs::create_dir_all(folder)?;
    }
    fs::write(layer.join("of the layer"), "")?;
    fs::write(secret.join("of the host"), "")?;
    let bundle = test.sh("ls /o")?;
    let moved = real.join("rootfs");
    fs::rename(bundle.rootfs(), &moved)?;
    symlink(&secret, false_one.join("rootfs"))?;
    for path in [&theirs, &real, &false_one] {
        std::os::unix::fs::chown(path, Some(1000), Some(1000))?;
    }
    let lower = format!("lowerdir={}:/usr/share", layer.display());
    let bundle = bundle
        .mount(json!({ "destination": "/o", "type": "overlay", "source": "overlay", "options": [lower, "ro"] }))
        .edit(|config| config["root"]["path"] = json!(moved));
    bundle.write()?;
    let rt = test.command(bundle.command_line("run", &test.id()));
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60", "strace", "-f", "--trace=mount,open_tree,umount2"]);
    command.args(["--output=/dev/null", "--inject=mount:delay_exit=900000"]);
    command.arg("--inject=umount2:delay_enter=500000");
    command.arg(rt.get_program()).args(rt.get_args()).stdin(Stdio::null());
    let exchanged = AtomicBool::new(false);
    let is_mounted = || {
        let tables = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut tables =
            tables.filter_map(|process| fs::read_to_string(process.path().join("mountinfo")).ok());
        tables.any(|table| table.contains(&layer.display().to_string()))
    };
    let repeat = || {
        if !exchanged.load(Ordering::Relaxed) && is_mounted() {
            exchanged.store(exchange(&real, &false_one), Ordering::Relaxed);
        }
    };
    let output = meanwhile(repeat, || Output::of(command))?;
    ensure(exchanged.load(Ordering::Relaxed), "nothing was exchanged")?;
    let listed = output.success()?.stdout;
    ensure(listed.contains("of the layer") && !listed.contains("of the host"), listed)
}

/// A mount on a link to the root would cover the whole rootfs, and `rt` would not find it by its
/// destination.
fn a_link_to_the_root_takes_no_mount(test: &Test) -> Outcome {
    test.only_rt()?;
    for destination in ["/link", "/link/.", "/link/tmp/.."] {
        let bundle = test.sh("true")?.mount(tmpfs(destination));
        symlink("/", bundle.rootfs().join("link"))?;
        bundle.try_create(&test.id())?.fails_with("it is a link to the root")?;
    }
    Ok(())
}
