//! Mounts, and what a container may see and change of its root.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::harness::{Outcome, Test, ensure, ensure_eq};

super::tests! { "mounts":
    a_bind_mount_shows_the_host, a_bind_mount_can_be_read_only, a_file_can_be_mounted, a_missing_place_is_made,
    options_take_effect, a_tmpfs_takes_its_size_and_mode, a_tmpfs_can_copy_up, a_read_only_root_is_read_only,
    masked_paths_are_empty, read_only_paths_are_read_only, a_missing_masked_path_is_no_error,
    a_link_in_the_image_does_not_lead_out, a_dangling_link_in_the_image_does_not_lead_out, nothing_of_the_host_is_left,
    propagation_is_what_was_asked_for, a_later_mount_covers_an_earlier_one, the_root_can_be_changed_without_pivot,
    mounts_do_not_reach_the_host, recursive_read_only_reaches_submounts, a_relative_source_is_in_the_bundle,
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

/// `ro` is for the mount alone, `rro` for what is below it too.
fn recursive_read_only_reaches_submounts(test: &Test) -> Outcome {
    test.only_rt()?;
    let source = volume(test)?;
    fs::create_dir(source.join("below"))?;
    for (option, expected) in [("ro", "refused\nwritten\n"), ("rro", "refused\nrefused\n")] {
        let script = "for f in /v/new /v/below/new; do touch $f 2>/dev/null && echo written || echo refused; done";
        let bundle = test.sh(script)?;
        let bundle = bundle
            .mount(json!({ "destination": "/v", "source": source, "options": ["rbind", option] }));
        bundle.write()?;
        // The mount below is made in a mount namespace of the test's own.
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-ec", "mount -t tmpfs below \"$0/below\"; exec \"$@\""]);
        command.arg(&source).arg(&test.host.runtime).arg("--root").arg(test.state_root());
        command.args(["run", "--bundle"]).arg(&bundle.folder).arg(test.id());
        crate::harness::Output::of(command)?.success()?.stdout(expected)?;
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
