//! Mounts, and the parts of its root that a container may see and change.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::namespaces::in_user_namespace;
use crate::harness::{
    Bundle, Outcome, Output, Test, ensure, ensure_eq, kernel, skip, under_a_filter,
};

super::tests! { "mounts":
    a_bind_mount_shows_the_host, a_bind_mount_can_be_read_only, a_file_can_be_mounted, a_missing_place_is_made,
    options_take_effect, a_tmpfs_takes_its_size_and_mode, a_tmpfs_can_copy_up, a_copied_up_tmpfs_has_the_mode_it_should, a_read_only_root_is_read_only,
    masked_paths_are_empty, read_only_paths_are_read_only, a_missing_masked_path_is_no_error,
    a_link_in_the_image_does_not_lead_out, a_dangling_link_in_the_image_does_not_lead_out, nothing_of_the_host_is_left,
    propagation_is_what_was_asked_for, a_later_mount_covers_an_earlier_one, the_root_can_be_changed_without_pivot,
    mounts_do_not_reach_the_host, recursive_read_only_reaches_submounts, recursive_read_only_goes_with_each_propagation, a_bind_mount_has_no_options_of_a_filesystem, a_slave_root_sees_what_the_host_mounts, a_slash_at_the_end_of_a_file_is_passed_over, a_mask_has_no_room, a_relative_source_is_in_the_bundle,
    ids_are_mapped_as_the_mount_says, ids_are_mapped_as_an_option_says, ids_are_mapped_as_the_user_namespace_does,
    ids_are_mapped_below_if_asked_for, a_new_filesystem_can_be_mapped, an_id_mapping_without_ids_is_an_error,
    a_source_that_only_root_can_reach_is_mounted_in_a_user_namespace, a_link_can_be_copied, a_link_in_an_earlier_mount_can_be_copied, a_file_in_an_earlier_mount_can_be_mapped, a_link_can_be_mounted,
    a_link_can_be_mounted_on, a_mount_can_be_changed, a_filesystem_can_be_changed, a_copied_up_tmpfs_can_be_read_only,
    the_host_sysfs_is_shown_where_none_can_be_made, the_host_procfs_is_shown_where_none_can_be_made, its_cgroup_is_shown_in_a_user_namespace, an_unknown_context_type_is_an_error,
    works_where_openat2_is_forbidden, the_root_has_its_propagation, links_can_be_switched_off, can_be_added_to_a_running_container, can_be_added_in_a_user_namespace, can_be_added_and_removed_below_a_link,
    what_cannot_be_added_is_refused, long_options_are_taken, a_file_does_not_go_on_a_directory, a_step_back_from_what_is_missing_is_one,
    every_flag_that_is_for_all_below_takes_effect,
}

fn volume(test: &Test) -> Outcome<std::path::PathBuf> {
    let volume = test.folder.join("volume");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("file"), "content\n")?;
    Ok(volume)
}

fn a_bind_mount_shows_the_host(test: &Test) -> Outcome {
    let volume = volume(test)?;
    let bundle = test.sh("cat /v/file; echo new > /v/new")?;
    bundle.mount(json!({ "destination": "/v", "source": volume, "type": "bind", "options": ["rbind", "rw"] })).run()?.success()?.stdout("content\n")?;
    ensure_eq(fs::read_to_string(volume.join("new"))?.as_str(), "new\n")
}

fn a_bind_mount_can_be_read_only(test: &Test) -> Outcome {
    let bundle = test.sh("cat /v/file; touch /v/new 2>/dev/null || echo refused")?;
    let bundle = bundle
        .mount(json!({ "destination": "/v", "source": volume(test)?, "options": ["bind", "ro"] }));
    bundle.run()?.success()?.stdout("content\nrefused\n").map(drop)
}

fn a_file_can_be_mounted(test: &Test) -> Outcome {
    let bundle = test.sh("cat /etc/mounted")?;
    let source = volume(test)?.join("file");
    bundle
        .mount(json!({ "destination": "/etc/mounted", "source": source, "options": ["bind"] }))
        .run()?
        .success()?
        .stdout("content\n")
        .map(drop)
}

fn a_missing_place_is_made(test: &Test) -> Outcome {
    let bundle = test.sh("cat /a/b/c/file")?;
    bundle
        .mount(json!({ "destination": "/a/b/c", "source": volume(test)?, "options": ["bind"] }))
        .run()?
        .success()?
        .stdout("content\n")
        .map(drop)
}

fn options_take_effect(test: &Test) -> Outcome {
    let bundle = test.sh("grep ' /t ' /proc/mounts | cut -d' ' -f4")?;
    let options = ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "ro", "rw"];
    let output = bundle
        .mount(
            json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options }),
        )
        .run()?
        .success()?;
    let seen: Vec<&str> = output.stdout.trim().split(',').collect();
    for option in ["rw", "nosuid", "nodev", "noexec", "noatime"] {
        ensure(seen.contains(&option), format!("no {option} in {seen:?}"))?;
    }
    Ok(())
}

fn a_tmpfs_takes_its_size_and_mode(test: &Test) -> Outcome {
    let bundle = test.sh("stat -c %a /t; grep ' /t ' /proc/mounts")?;
    let output = bundle.mount(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1024k", "mode=1750"] })).run()?;
    ensure(
        output.stdout.starts_with("1750\n") && output.stdout.contains("size=1024k"),
        output.stdout,
    )
}

fn a_tmpfs_can_copy_up(test: &Test) -> Outcome {
    let bundle = test.sh("cat /data/file /data/folder/deep; readlink /data/link; stat -c '%a %u' /data/file; touch /data/new")?;
    let bundle = bundle.file("/data/file", "file\n")?.file("/data/folder/deep", "deep\n")?;
    symlink("file", bundle.rootfs().join("data/link"))?;
    fs::set_permissions(
        bundle.rootfs().join("data/file"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4755),
    )?;
    std::os::unix::fs::chown(bundle.rootfs().join("data/file"), Some(7), None)?;
    fs::set_permissions(
        bundle.rootfs().join("data/file"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4755),
    )?;
    let bundle = bundle.mount(json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    bundle.run()?.success()?.stdout("file\ndeep\nfile\n4755 7\n")?;
    ensure(!bundle.rootfs().join("data/new").exists(), "the rootfs was changed")
}

/// podman's `--tmpfs` and `--read-only` use such mounts.
fn a_copied_up_tmpfs_has_the_mode_it_should(test: &Test) -> Outcome {
    let mount = |path: &str, options: &[&str]| json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": options });
    let bundle = test.sh("stat -c %a /new /there /given /both")?;
    for folder in ["there", "both"] {
        let folder = bundle.rootfs().join(folder);
        fs::create_dir(&folder)?;
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o750))?;
    }
    let bundle = bundle
        .mount(mount("/new", &["tmpcopyup"]))
        .mount(mount("/there", &["tmpcopyup"]))
        .mount(mount("/given", &["tmpcopyup", "mode=700"]))
        .mount(mount("/both", &["tmpcopyup", "mode=1777"]));
    bundle.run()?.success()?.stdout("1777\n750\n700\n1777\n").map(drop)
}

fn a_read_only_root_is_read_only(test: &Test) -> Outcome {
    let bundle = test.sh("touch /new 2>/dev/null || echo refused; touch /dev/new && echo dev")?;
    bundle
        .edit(|config| config["root"]["readonly"] = json!(true))
        .run()?
        .success()?
        .stdout("refused\ndev\n")
        .map(drop)
}

fn masked_paths_are_empty(test: &Test) -> Outcome {
    let bundle = test.sh("cat /etc/secret; ls /folder | wc -l; ls /other | wc -l; touch /folder/new 2>/dev/null || echo refused")?;
    let bundle = bundle
        .file("/etc/secret", "secret")?
        .file("/folder/secret", "secret")?
        .file("/other/secret", "secret")?;
    let bundle = bundle.edit(|config| {
        config["linux"]["maskedPaths"] = json!(["/etc/secret", "/folder", "/other"]);
    });
    bundle.run()?.success()?.stdout("0\n0\nrefused\n").map(drop)
}

fn read_only_paths_are_read_only(test: &Test) -> Outcome {
    let bundle = test.sh("echo x > /proc/sys/kernel/hostname 2>/dev/null || echo refused; touch /folder/new 2>/dev/null || echo refused")?;
    let bundle = bundle.file("/folder/file", "")?;
    let bundle =
        bundle.edit(|config| config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/folder"]));
    bundle.run()?.success()?.stdout("refused\nrefused\n").map(drop)
}

fn a_missing_masked_path_is_no_error(test: &Test) -> Outcome {
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["maskedPaths"] = json!(["/no/such", "/bin/sh/below"]);
        config["linux"]["readonlyPaths"] = json!(["/no/such"]);
    });
    bundle.run()?.success().map(drop)
}

fn a_link_in_the_image_does_not_lead_out(test: &Test) -> Outcome {
    let outside = test.folder.join("outside");
    fs::create_dir(&outside)?;
    for target in [
        outside.display().to_string(),
        "../../outside".to_owned(),
        "/../../../../../../outside".to_owned(),
    ] {
        let bundle = test.sh("cat /link/file")?;
        symlink(&target, bundle.rootfs().join("link"))?;
        let bundle = bundle
            .mount(json!({ "destination": "/link", "source": volume(test)?, "options": ["bind"] }));
        bundle.run()?.success()?.stdout("content\n")?;
        ensure_eq(fs::read_dir(&outside)?.count(), 0)?;
    }
    Ok(())
}

fn a_dangling_link_in_the_image_does_not_lead_out(test: &Test) -> Outcome {
    let outside = test.folder.join("not-there");
    let bundle = test.sh("cat /link/below/file")?;
    symlink(&outside, bundle.rootfs().join("link"))?;
    let bundle = bundle.mount(
        json!({ "destination": "/link/below", "source": volume(test)?, "options": ["bind"] }),
    );
    bundle.run()?.success()?.stdout("content\n")?;
    ensure(!outside.exists(), "it was made outside")
}

fn nothing_of_the_host_is_left(test: &Test) -> Outcome {
    let output = test.sh("cut -d' ' -f2 /proc/mounts | grep -vE '^/(proc|dev|dev/pts|sys|)$' | grep -vE '^/(dev|sys)/'; true")?.run()?.success()?;
    ensure_eq(output.stdout.as_str(), "")
}

fn propagation_is_what_was_asked_for(test: &Test) -> Outcome {
    for (option, field) in [("rprivate", "-"), ("rshared", "shared:"), ("rslave", "-")] {
        let bundle = test.sh("grep ' /t ' /proc/self/mountinfo | cut -d' ' -f7")?;
        let bundle = bundle.mount(
            json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": [option] }),
        );
        let output = bundle.run()?.success()?;
        ensure(output.stdout.starts_with(field), format!("{option}: {}", output.stdout))?;
    }
    Ok(())
}

fn a_later_mount_covers_an_earlier_one(test: &Test) -> Outcome {
    let bundle = test.sh("ls /a; touch /a/b/inner && cat /a/b/file")?;
    let tmpfs = |path: &str| json!({ "destination": path, "type": "tmpfs", "source": "tmpfs" });
    let bundle = bundle
        .mount(tmpfs("/a"))
        .mount(json!({ "destination": "/a/b", "source": volume(test)?, "options": ["bind"] }));
    bundle.run()?.success()?.stdout("b\ncontent\n").map(drop)
}

fn the_root_can_be_changed_without_pivot(test: &Test) -> Outcome {
    let bundle = test.sh("ls / | head -n 2")?.flag("--no-pivot");
    bundle.run()?.success()?.stdout("bin\ndev\n").map(drop)
}

fn mounts_do_not_reach_the_host(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure(
        !mounts.contains(&test.folder.display().to_string()),
        "a mount of the container's is seen on the host",
    )?;
    container.kill("KILL")
}

/// `ro` applies to the mount alone, `rro` also to the mounts below.
fn recursive_read_only_reaches_submounts(test: &Test) -> Outcome {
    test.only_rt()?;
    let source = volume(test)?;
    fs::create_dir(source.join("below"))?;
    for (option, expected, user) in [
        ("ro", "refused\nwritten\n", false),
        ("rro", "refused\nrefused\n", false),
        ("rro", "refused\nrefused\n", true),
    ] {
        let script = "for f in /v/new /v/below/new; do touch $f 2>/dev/null && echo written || echo refused; done";
        let bundle = test.sh(script)?;
        let bundle = if user { in_user_namespace(bundle)? } else { bundle };
        let bundle = bundle
            .mount(json!({ "destination": "/v", "source": source, "options": ["rbind", option] }));
        bundle.write()?;
        // The mount below is made in a separate mount namespace.
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-ec", "mount -t tmpfs below \"$0/below\"; exec \"$@\""]);
        command.arg(&source).arg(&test.host.runtime).arg("--root").arg(test.state_root());
        command.args(["run", "--bundle"]).arg(&bundle.folder).arg(test.id());
        Output::of(command)?.success()?.stdout(expected)?;
    }
    Ok(())
}

/// An unknown option is often a typing error, and without the error the mount would be writable.
fn a_bind_mount_has_no_options_of_a_filesystem(test: &Test) -> Outcome {
    test.only_rt()?;
    for option in ["readonly", "RO", "noexecc", "rr0", "uid=0", "size=1m", "x-foo"] {
        for options in [&["rbind", option][..], &["bind", "remount", option]] {
            let bundle = test.sh("true")?;
            let mount = json!({ "destination": "/v", "source": volume(test)?, "type": "bind", "options": ["rbind"] });
            let mut mounts = vec![mount.clone(), mount];
            mounts[1]["options"] = json!(options);
            let bundle = mounts.into_iter().fold(bundle, |bundle, mount| bundle.mount(mount));
            let name = option.split('=').next().unwrap_or_default();
            let words = format!("mount `/v`: a bind mount has no option `{name}`");
            bundle.run()?.fails_with(&words)?;
        }
    }
    for user in [false, true] {
        let bundle = test.sh("true")?;
        let bundle = if user { in_user_namespace(bundle)? } else { bundle };
        let mount = json!({ "destination": "/v", "source": volume(test)?, "options": ["rbind", "sync", "dirsync", "lazytime"] });
        bundle.mount(mount).run()?.success()?;
    }
    Ok(())
}

/// Runs a bundle in a separate mount namespace, from a script that mounts meanwhile. `$0` is the
/// rootfs.
fn while_the_host_mounts(
    test: &Test,
    bundle: &Bundle<'_>,
    script: &str,
    folder: &std::path::Path,
) -> Outcome<Output> {
    bundle.write()?;
    let mut command = std::process::Command::new("timeout");
    command.args(["20", "unshare", "--mount", "--propagation", "private", "sh", "-ec", script]);
    command.arg(bundle.rootfs()).arg(&test.host.runtime).arg("--root").arg(test.state_root());
    command.args(["run", "--bundle"]).arg(&bundle.folder).arg(test.id()).current_dir(folder);
    Output::of(command)
}

fn a_slave_root_sees_what_the_host_mounts(test: &Test) -> Outcome {
    test.only_rt()?;
    let inside = "touch /up; while ! test -e /go; do sleep 0.05; done; cat /late/file /early/file 2>/dev/null | tr '\\n' ' '";
    let outside = "mount --bind . . && cd \"$PWD\" && mount --make-shared . && mkdir -p early late && mount -t tmpfs early early && echo early > early/file; \
        \"$@\" & while kill -0 $! && ! test -e up; do sleep 0.05; done; mount -t tmpfs late late; echo late > late/file; umount early; touch go; wait $!";
    for (propagation, expected) in
        [("rslave", "late "), ("slave", "late "), ("private", "early "), ("rprivate", "early ")]
    {
        let bundle = test.sh(inside)?;
        let bundle =
            bundle.edit(|config| config["linux"]["rootfsPropagation"] = json!(propagation));
        bundle.write()?;
        let output = while_the_host_mounts(test, &bundle, outside, &bundle.rootfs())?;
        ensure_eq((propagation, output.success()?.stdout.as_str()), (propagation, expected))?;
    }
    Ok(())
}

/// A slash at the end of the path of a device, and of a mounted file.
fn a_slash_at_the_end_of_a_file_is_passed_over(test: &Test) -> Outcome {
    test.only_rt()?;
    for user in [false, true] {
        let bundle =
            test.sh("cat /a/file/ /a/file 2>/dev/null; test -c /dev/slash && echo there")?;
        let bundle = if user { in_user_namespace(bundle)? } else { bundle };
        let source = volume(test)?.join("file");
        let bundle = bundle
            .mount(json!({ "destination": "/a/file/", "source": source, "options": ["bind"] }))
            .edit(|config| {
                config["linux"]["devices"] =
                    json!([{ "path": "/dev/slash/", "type": "c", "major": 1, "minor": 3 }]);
            });
        bundle.run()?.success()?.stdout("content\nthere\n")?;
    }
    Ok(())
}

/// A container that may remount the mask still cannot write to it.
fn a_mask_has_no_room(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "mount -o remount,rw,bind /masked; mount -o remount,rw /masked; for f in /masked/new /masked/other; do echo x > $f; mkdir $f.d; done 2>/dev/null; ls /masked";
    let bundle = test.sh(script)?.edit(|config| {
        config["linux"]["maskedPaths"] = json!(["/masked"]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
        }
    });
    fs::create_dir(bundle.rootfs().join("masked"))?;
    bundle.run()?.success()?.stdout("").map(drop)
}

/// If the host later mounts something below, the container sees it with the host's options, by
/// propagation. A caller that promises more must ask for a private mount, as kubelet does
/// (KEP-3857).
fn recursive_read_only_goes_with_each_propagation(test: &Test) -> Outcome {
    let volume = volume(test)?;
    for folder in ["below", "late"] {
        fs::create_dir(volume.join(folder))?;
    }
    let inside = "touch /up; while ! test -e /go; do sleep 0.05; done; \
        for f in /v/new /v/below/new /v/late/new; do touch $f 2>/dev/null && echo written || echo refused; done";
    let outside = "mount --bind . . && cd \"$PWD\" && mount --make-shared . && mount -t tmpfs below below; \
        \"$@\" & while kill -0 $! && ! test -e \"$0/up\"; do sleep 0.05; done; mount -t tmpfs late late; touch \"$0/go\"; wait $!";
    for (propagation, late) in [
        ("private", "refused"),
        ("rprivate", "refused"),
        ("slave", "written"),
        ("rslave", "written"),
        ("shared", "written"),
        ("rshared", "written"),
    ] {
        let options = ["rbind", "rro", propagation];
        let mount =
            json!({ "destination": "/v", "source": volume, "type": "bind", "options": options });
        let bundle = test.sh(inside)?.mount(mount);
        bundle.write()?;
        let output = while_the_host_mounts(test, &bundle, outside, &volume)?.success()?;
        ensure_eq(
            (propagation, output.stdout),
            (propagation, format!("refused\nrefused\n{late}\n")),
        )?;
    }
    Ok(())
}

fn a_relative_source_is_in_the_bundle(test: &Test) -> Outcome {
    let bundle = test.sh("cat /v/file")?;
    fs::create_dir(bundle.folder.join("relative"))?;
    fs::write(bundle.folder.join("relative/file"), "relative\n")?;
    bundle
        .mount(json!({ "destination": "/v", "source": "relative", "options": ["bind"] }))
        .run()?
        .success()?
        .stdout("relative\n")
        .map(drop)
}

const OWNER: &str = "stat -c %u:%g /v/file; touch /v/new";

/// Runs `OWNER` in a volume with these options. Returns its output, and the owner of `file` on the
/// host.
fn owners(test: &Test, options: serde_json::Value, mappings: bool) -> Outcome<(String, u32)> {
    use std::os::unix::fs::MetadataExt;
    let volume = volume(test)?;
    let mut mount =
        json!({ "destination": "/v", "source": volume, "type": "bind", "options": options });
    if mappings {
        mount["uidMappings"] = json!([{ "containerID": 0, "hostID": 0, "size": 1 }, { "containerID": 1000, "hostID": 7, "size": 1 }]);
        mount["gidMappings"] = json!([{ "containerID": 0, "hostID": 8, "size": 1 }]);
    }
    std::os::unix::fs::chown(volume.join("file"), Some(1000), Some(0))?;
    let output = test.sh(OWNER)?.mount(mount).run()?.stdout;
    Ok((output, fs::metadata(volume.join("file"))?.uid()))
}

fn ids_are_mapped_as_the_mount_says(test: &Test) -> Outcome {
    let (seen, there) = owners(test, json!(["bind"]), true)?;
    ensure_eq(seen.as_str(), "7:8\n")?;
    ensure_eq(there, 1000)
}

fn ids_are_mapped_as_an_option_says(test: &Test) -> Outcome {
    let option = "idmap=uids=0-0-1#1000-9-1;gids=0-10-1";
    ensure_eq(owners(test, json!(["bind", option]), false)?.0.as_str(), "9:10\n")
}

/// Files of the host's root belong to the container's root. Files that the container makes belong
/// to the host's root.
fn ids_are_mapped_as_the_user_namespace_does(test: &Test) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    let volume = volume(test)?;
    let bundle = in_user_namespace(test.sh(OWNER)?)?
        .mount(json!({ "destination": "/v", "source": volume, "options": ["bind", "idmap"] }));
    bundle.run()?.success()?.stdout("0:0\n")?;
    ensure_eq(fs::metadata(volume.join("new"))?.uid(), 0)
}

/// Whether the ids of a tmpfs can be mapped (Linux 6.3).
pub(super) fn needs_a_mappable_tmpfs() -> Outcome {
    if kernel()? >= (6, 3) {
        Ok(())
    } else {
        skip("this kernel's tmpfs cannot be mapped: Linux 6.3")
    }
}

fn ids_are_mapped_below_if_asked_for(test: &Test) -> Outcome {
    needs_a_mappable_tmpfs()?;
    let source = volume(test)?;
    fs::create_dir(source.join("below"))?;
    for (option, expected) in [("idmap", "0\n"), ("ridmap", "5\n")] {
        let bundle = test.sh("stat -c %u /v/below/file")?;
        let option = format!("{option}=uids=0-5-1;gids=0-5-1");
        let bundle = bundle
            .mount(json!({ "destination": "/v", "source": source, "options": ["rbind", option] }));
        bundle.write()?;
        let mut command = std::process::Command::new("unshare");
        let script = "mount -t tmpfs below \"$0/below\"; touch \"$0/below/file\"; exec \"$@\"";
        command.args(["--mount", "sh", "-ec", script]);
        command.arg(&source).arg(&test.host.runtime).arg("--root").arg(test.state_root());
        command.args(["run", "--bundle"]).arg(&bundle.folder).arg(test.id());
        Output::of(command)?.success()?.stdout(expected)?;
    }
    Ok(())
}

fn a_new_filesystem_can_be_mapped(test: &Test) -> Outcome {
    needs_a_mappable_tmpfs()?;
    let ids = json!([{ "containerID": 0, "hostID": 5, "size": 1 }]);
    let mount = json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "uidMappings": ids, "gidMappings": ids });
    test.sh("stat -c %u:%g /v")?.mount(mount).run()?.success()?.stdout("5:5\n").map(drop)
}

fn an_id_mapping_without_ids_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    let ids = json!([{ "containerID": 0, "hostID": 5, "size": 1 }]);
    for (options, uids, words) in [
        (json!(["bind", "idmap"]), json!(null), "needs a user namespace"),
        (json!(["bind", "idmap=uids=0-1"]), json!(null), "`0-1` is not three numbers"),
        (json!(["bind"]), ids, "`uidMappings` and `gidMappings` of a mount need each other"),
    ] {
        let mut mount = json!({ "destination": "/v", "source": volume(test)?, "options": options });
        mount["uidMappings"] = uids;
        test.sh("true")?.mount(mount).run()?.fails_with(words)?;
    }
    Ok(())
}

fn a_source_that_only_root_can_reach_is_mounted_in_a_user_namespace(test: &Test) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let closed = test.folder.join("closed");
    fs::create_dir_all(closed.join("volume"))?;
    fs::write(closed.join("volume/file"), "content\n")?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
    let bundle = in_user_namespace(test.sh("cat /v/file")?)?;
    let mount = json!({ "destination": "/v", "source": closed.join("volume"), "options": ["rbind", "ro", "nosuid"] });
    bundle.mount(mount).run()?.success()?.stdout("content\n").map(drop)
}

fn linked(test: &Test) -> Outcome<std::path::PathBuf> {
    let link = volume(test)?.join("link");
    symlink("file", &link)?;
    Ok(link)
}

fn a_link_can_be_copied(test: &Test) -> Outcome {
    let mount = json!({ "destination": "/a/link", "source": linked(test)?, "options": ["bind", "copy-symlink"] });
    let bundle = test.sh("readlink /a/link; grep -c /a/link /proc/self/mountinfo")?;
    let bundle = bundle.mount(mount);
    bundle.run()?.code(1)?.stdout("file\n0\n")?;
    // The link is there now, and the same link may stay. Any other file is an error.
    bundle.run()?.code(1)?.stdout("file\n0\n")?;
    fs::remove_file(bundle.rootfs().join("a/link"))?;
    fs::write(bundle.rootfs().join("a/link"), "")?;
    ensure(bundle.run()?.code == Some(1), "the file was taken for the link")
}

/// Init sees this link, but the runtime process does not.
fn a_link_in_an_earlier_mount_can_be_copied(test: &Test) -> Outcome {
    let link = linked(test)?;
    let folder = link.parent().ok_or("no folder")?;
    for more in [None, Some("idmap=uids=0-5-1;gids=0-5-1")] {
        let bundle = test.sh("readlink /etc/link; grep -c /etc/link /proc/self/mountinfo")?;
        let options: Vec<_> = ["bind", "copy-symlink"].into_iter().chain(more).collect();
        let source = bundle.rootfs().join("v/link");
        let bundle = bundle
            .mount(json!({ "destination": "/v", "source": folder, "options": ["bind"] }))
            .mount(json!({ "destination": "/etc/link", "source": source, "options": options }));
        bundle.run()?.code(1)?.stdout("file\n0\n")?;
    }
    Ok(())
}

/// The path must not get a `/` at its end, as if the file were a directory.
fn a_file_in_an_earlier_mount_can_be_mapped(test: &Test) -> Outcome {
    let volume = volume(test)?;
    let bundle = test.sh("stat -c %u /etc/file")?;
    let source = bundle.rootfs().join("v/file");
    let options = ["bind", "idmap=uids=0-5-1;gids=0-5-1"];
    bundle
        .mount(json!({ "destination": "/v", "source": volume, "options": ["bind"] }))
        .mount(json!({ "destination": "/etc/file", "source": source, "options": options }))
        .run()?
        .success()?
        .stdout("5\n")
        .map(drop)
}

fn a_link_can_be_mounted(test: &Test) -> Outcome {
    let options = ["bind", "src-nofollow", "dest-nofollow"];
    let mount = json!({ "destination": "/etc/link", "source": linked(test)?, "options": options });
    test.sh("readlink /etc/link")?.mount(mount).run()?.success()?.stdout("file\n").map(drop)
}

fn a_link_can_be_mounted_on(test: &Test) -> Outcome {
    let bundle = test.sh("cat /etc/link /etc/target")?.file("/etc/target", "target\n")?;
    symlink("target", bundle.rootfs().join("etc/link"))?;
    let source = volume(test)?.join("file");
    let mount =
        |options| json!({ "destination": "/etc/link", "source": source, "options": options });
    // The mount hides the link, and the target of the link has not changed.
    bundle
        .mount(mount(json!(["bind", "dest-nofollow"])))
        .run()?
        .success()?
        .stdout("content\ntarget\n")
        .map(drop)
}

fn a_mount_can_be_changed(test: &Test) -> Outcome {
    let bundle =
        test.sh("touch /v/new || echo refused; grep ' /v ' /proc/self/mountinfo | grep -c noexec")?;
    let bundle = bundle
        .mount(json!({ "destination": "/v", "source": volume(test)?, "options": ["bind"] }))
        .mount(json!({ "destination": "/v", "options": ["bind", "remount", "ro", "noexec"] }));
    bundle.run()?.success()?.stdout("refused\n1\n").map(drop)
}

fn a_filesystem_can_be_changed(test: &Test) -> Outcome {
    let script = "cat /v/file 2>/dev/null; stat -f -c %b:%S /v";
    let bundle = test.sh(script)?
        .mount(json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"] }))
        .mount(json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "size=128k"] }));
    bundle.run()?.success()?.stdout("32:4096\n").map(drop)
}

fn a_copied_up_tmpfs_can_be_read_only(test: &Test) -> Outcome {
    let bundle = test
        .sh("cat /v/there; touch /v/new 2>/dev/null || echo refused")?
        .file("/v/there", "there\n")?;
    let mount = json!({ "destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"] });
    bundle.mount(mount).run()?.success()?.stdout("there\nrefused\n").map(drop)
}

/// A sysfs shows a network namespace, and only the owner of that namespace may mount it.
fn the_host_sysfs_is_shown_where_none_can_be_made(test: &Test) -> Outcome {
    let bundle = in_user_namespace(
        test.sh("test -d /sys/kernel && echo there; touch /sys/x 2>/dev/null || echo refused")?,
    )?
    .edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    });
    bundle.run()?.success()?.stdout("there\nrefused\n").map(drop)
}

fn the_host_procfs_is_shown_where_none_can_be_made(test: &Test) -> Outcome {
    let own = std::process::id();
    let script = format!(
        "test -d /proc/{own} && echo there; cat /proc/version | wc -c; echo x 2>/dev/null > /proc/sys/kernel/domainname || echo refused"
    );
    let bundle = in_user_namespace(test.sh(&script)?)?.edit(|config| {
        config["linux"]["maskedPaths"] = json!(["/proc/version"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
    bundle.run()?.success()?.stdout("there\n0\nrefused\n").map(drop)
}

fn its_cgroup_is_shown_in_a_user_namespace(test: &Test) -> Outcome {
    for own in [true, false] {
        let script = "ls -d /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs 2>/dev/null | grep -q . && echo there; exec sleep 60";
        let bundle = in_user_namespace(test.sh(script)?)?.mount(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"],
        }));
        let bundle = bundle.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "cgroup");
                if own {
                    namespaces.push(json!({ "type": "cgroup" }));
                }
            }
            if let Some(mounts) = config["mounts"].as_array_mut() {
                let last = mounts.len() - 1;
                let mut seen = 0;
                mounts.retain(|mount| {
                    seen += 1;
                    mount["destination"] != "/sys/fs/cgroup" || seen > last
                });
            }
        });
        let container = bundle.start()?;
        container.wait_for_output("there\n")?;
    }
    Ok(())
}

fn an_unknown_context_type_is_an_error(test: &Test) -> Outcome {
    let bundle = test.sh("true")?.annotation("run.oci.mount_context_type", "size").edit(|config| {
        config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    });
    bundle.run()?.fails_with("size").map(drop)
}

/// Runs a bundle under an older filter, for example that of a container that makes containers.
pub(super) fn run_without_openat2(test: &Test, bundle: &Bundle<'_>) -> Outcome<Output> {
    const OPENAT2: u32 = 437;
    bundle.write()?;
    Output::of(under_a_filter(test, OPENAT2, 1, &bundle.command_line("run", &test.id()))?)
}

fn works_where_openat2_is_forbidden(test: &Test) -> Outcome {
    let bundle = test.sh("cat /a/b/file /v/file; readlink /proc/self/ns/mnt | wc -l")?;
    symlink("/a/b", bundle.rootfs().join("v"))?;
    let bundle = bundle
        .mount(json!({ "destination": "/v", "source": volume(test)?, "options": ["bind"] }))
        .edit(|config| config["linux"]["maskedPaths"] = json!(["/proc/version", "/v/none"]));
    let output = run_without_openat2(test, &bundle)?.success()?;
    output.stdout("content\ncontent\n1\n").map(drop)
}

fn the_root_has_its_propagation(test: &Test) -> Outcome {
    for (propagation, expected) in
        [("private", ""), ("rslave", "master:"), ("unbindable", "unbindable")]
    {
        let bundle = test.sh("grep ' / / ' /proc/self/mountinfo || cat /proc/self/mountinfo")?;
        let bundle =
            bundle.edit(|config| config["linux"]["rootfsPropagation"] = json!(propagation));
        let output = bundle.run()?.success()?.stdout;
        let root =
            output.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
        let fields = root.split(" - ").next().unwrap_or_default();
        ensure(!fields.contains("shared:"), format!("{propagation}: {fields}"))?;
        // If the host's mount is not shared, a slave mount is private, so `fields` depends on the
        // host.
        ensure(
            expected != "unbindable" || fields.contains(expected),
            format!("{propagation}: {fields}"),
        )?;
    }
    let bundle = test.sh("true")?;
    bundle
        .edit(|config| config["linux"]["rootfsPropagation"] = json!("sideways"))
        .run()?
        .fails_with("sideways")
        .map(drop)
}

fn links_can_be_switched_off(test: &Test) -> Outcome {
    let source = volume(test)?;
    symlink("file", source.join("link"))?;
    for (option, expected) in [("nosymfollow", "refused\n"), ("symfollow", "content\n")] {
        let bundle = test.sh("cat /v/link 2>/dev/null || echo refused")?;
        let mount = json!({ "destination": "/v", "source": source, "options": ["bind", option] });
        bundle.mount(mount).run()?.success()?.stdout(expected)?;
    }
    Ok(())
}

/// Adds or removes the mounts that a file lists.
fn change(test: &Test, verb: &str, id: &str, entries: &serde_json::Value) -> Outcome<Output> {
    let file = test.folder.join("mounts.json");
    fs::write(&file, entries.to_string())?;
    test.rt(["mounts", verb, id, &file.display().to_string()])
}

fn added_and_removed(test: &Test, bundle: &Bundle<'_>) -> Outcome {
    let folder = test.folder.join("later");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "the host's\n")?;
    let container = bundle.start()?;
    let entries = json!([
        { "destination": "/later", "type": "bind", "source": folder, "options": ["bind", "ro"] },
        { "destination": "/later2/deep", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"] },
    ]);
    change(test, "add", &container.id, &entries)?.success()?;
    let script =
        "cat /later/file; echo x > /later/new || echo fixed; echo y > /later2/deep/new && echo own";
    let look = |script: &str| test.rt(["exec", &container.id, "sh", "-c", script]);
    look(script)?.success()?.stdout("the host's\nfixed\nown\n")?;
    change(test, "remove", &container.id, &entries)?.success()?;
    look("ls /later /later2/deep; grep -c later /proc/1/mountinfo || true")?
        .success()?
        .stdout("/later:\n\n/later2/deep:\n0\n")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure(!mounts.contains("later"), "the host has it too")
}

fn can_be_added_to_a_running_container(test: &Test) -> Outcome {
    test.only_rt()?;
    added_and_removed(test, &test.sh("exec sleep 60")?)
}

fn can_be_added_and_removed_below_a_link(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?.file("/real", "")?;
    symlink("/real", bundle.rootfs().join("link"))?;
    let file = test.folder.join("file");
    fs::write(&file, "the host's\n")?;
    let container = bundle.start()?;
    let entries =
        json!([{ "destination": "/link", "type": "bind", "source": file, "options": ["bind"] }]);
    let look = || Ok(test.rt(["exec", &container.id, "cat", "/real"])?.success()?.stdout);
    change(test, "add", &container.id, &entries)?.success()?;
    let seen: Outcome<String> = look();
    ensure_eq(seen?.as_str(), "the host's\n")?;
    change(test, "remove", &container.id, &entries)?.success()?;
    let seen: Outcome<String> = look();
    ensure_eq(seen?.as_str(), "")
}

fn can_be_added_in_a_user_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    added_and_removed(test, &in_user_namespace(test.sh("exec sleep 60")?)?)
}

fn what_cannot_be_added_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let add = |entries| change(test, "add", &container.id, &entries);
    let bind = |source: &str| json!([{ "destination": "/x", "type": "bind", "source": source, "options": ["bind"] }]);
    add(bind("/no/such"))?.fails_with("open source `/no/such`: No such file or directory")?;
    add(json!([{ "destination": "/x", "type": "proc", "source": "proc" }]))?
        .fails_with("only bind mounts and tmpfs")?;
    add(json!([{ "destination": "", "type": "tmpfs" }]))?
        .fails_with("the destination of a mount is empty")?;
    add(json!({}))?.fails_with("parse `")?;
    for wrong in ["/etc", "/", "/etc/..", "/none"] {
        change(test, "remove", &container.id, &json!([{ "destination": wrong }]))?
            .fails_with(&format!("unmount `{wrong}`: `mounts add` has mounted nothing there"))?;
    }
    change(test, "add", "nobody", &bind("/etc"))?
        .fails_with("add mounts to `nobody`: container does not exist")?;
    let seen = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid()?))?;
    ensure(!seen.contains(" /x "), seen)
}

/// The layers of an overlay, which are too long for one value of `fsconfig(2)`.
fn long_options_are_taken(test: &Test) -> Outcome {
    let layers: Vec<_> =
        ["a", "b"].map(|name| test.folder.join(name.repeat(120)).join(name.repeat(120))).into();
    for (number, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer)?;
        fs::write(layer.join(number.to_string()), "")?;
    }
    let lower = format!("lowerdir={}:{}", layers[0].display(), layers[1].display());
    let bundle = test.sh("ls /o; touch /o/new 2>/dev/null || echo refused; grep -c ' /o ' /proc/self/mountinfo; grep ' /o ' /proc/self/mountinfo | grep nodev | grep -c noatime")?.mount(json!({
        "destination": "/o", "type": "overlay", "source": "overlay", "options": [lower, "ro", "nodev", "noatime"],
    }));
    bundle.run()?.success()?.stdout("0\n1\nrefused\n1\n1\n").map(drop)
}

fn a_file_does_not_go_on_a_directory(test: &Test) -> Outcome {
    let volume = volume(test)?;
    for (source, destination) in [(volume.join("file"), "/tmp"), (volume, "/etc/passwd")] {
        let bundle = test.sh("true")?;
        fs::write(bundle.rootfs().join("etc/passwd"), "")?;
        let bundle = bundle
            .mount(json!({ "destination": destination, "source": source, "options": ["bind"] }));
        bundle.try_create(&test.id())?.fails_with("ot a directory")?;
    }
    Ok(())
}

fn a_step_back_from_what_is_missing_is_one(test: &Test) -> Outcome {
    let bundle = test.sh("cat /tmp/b/file")?.mount(
        json!({ "destination": "/tmp/a/../b", "source": volume(test)?, "options": ["bind"] }),
    );
    bundle.run()?.success()?.stdout("content\n").map(drop)
}

fn every_flag_that_is_for_all_below_takes_effect(test: &Test) -> Outcome {
    // A volume of the host, with a mount below that has other flags.
    let volume = volume(test)?;
    let below = volume.join("below");
    fs::create_dir(&below)?;
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "ro,nosuid,nodev,noexec,relatime", "tmpfs"]).arg(&below);
    Output::of(mount)?.success()?;
    let flags_with = |option: &str| -> Outcome<String> {
        let bundle = test
            .sh("grep ' /v/below ' /proc/self/mountinfo | cut -d' ' -f6")?
            .mount(json!({ "destination": "/v", "source": volume, "options": ["rbind", option] }));
        Ok(bundle.run()?.success()?.stdout.trim().to_owned())
    };
    let check = || {
        for (option, flag, there) in [
            ("rrw", "ro", false),
            ("rsuid", "nosuid", false),
            ("rdev", "nodev", false),
            ("rexec", "noexec", false),
            ("rro", "ro", true),
            ("rnosuid", "nosuid", true),
            ("rnodev", "nodev", true),
            ("rnoexec", "noexec", true),
            ("rnoatime", "noatime", true),
            ("rnodiratime", "nodiratime", true),
            ("rnosymfollow", "nosymfollow", true),
        ] {
            let flags = flags_with(option)?;
            ensure(
                flags.split(',').any(|word| word == flag) == there,
                format!("{option}: {flags}"),
            )?;
        }
        Ok(())
    };
    let outcome = check();
    let mut unmount = std::process::Command::new("umount");
    unmount.arg(&below);
    Output::of(unmount)?.success()?;
    outcome
}
