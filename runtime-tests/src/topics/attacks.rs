//! What has gone wrong in other runtimes, tried here: an image, or a container that shares a volume with the next one, tries to
//! reach the host. CVE-2019-5736 and CVE-2024-21626 are in `executable`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::{Bundle, Outcome, Test, ensure, ensure_eq};

super::tests! { "attacks":
    a_label_is_not_written_to_a_false_proc, a_place_that_is_exchanged_for_a_link_stays_inside,
    added_capabilities_are_not_inherited, a_linked_proc_is_refused, a_proc_that_was_moved_away_is_masked, nothing_is_made_on_the_host_through_an_exchanged_link,
    a_false_null_device_masks_nothing, a_linked_console_leads_nowhere, a_sysctl_is_not_written_to_a_false_proc,
    exec_cannot_begin_in_a_directory_of_the_hosts,
}

/// Without a procfs, `/proc` is the image's, or a volume's.
fn without_proc(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
    })
}

/// CVE-2019-16884: a volume over `/proc` took the label, and the program ran without one. A volume is refused there; what the image
/// has is not.
fn a_label_is_not_written_to_a_false_proc(test: &Test) -> Outcome {
    if Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        return crate::harness::skip("this kernel has AppArmor, which would take the label");
    }
    let bundle = without_proc(test.sh("true")?)
        .edit(|config| config["process"]["apparmorProfile"] = json!("some-profile"));
    let volume = bundle.rootfs().join("proc");
    let places = [
        "self/attr/apparmor",
        "thread-self/attr/apparmor",
        "self/attr",
        "thread-self/attr",
        "1/attr",
    ];
    for place in places {
        fs::create_dir_all(volume.join(place))?;
        fs::write(volume.join(place).join("exec"), "")?;
    }
    let other =
        json!({ "destination": "/proc", "source": volume, "type": "bind", "options": ["bind"] });
    ensure(bundle.clone().mount(other).run()?.code != Some(0), "a volume is mounted on /proc")?;
    let output = bundle.run()?;
    ensure(output.code != Some(0), "it ran without its label")?;
    for place in places {
        ensure_eq(fs::read_to_string(volume.join(place).join("exec"))?.as_str(), "")?;
    }
    Ok(())
}

/// Exchanges, again and again, a directory of a rootfs for a link that leads out of it.
fn exchanging<T>(
    inside: &Path,
    outside: &Path,
    meanwhile: impl FnOnce() -> Outcome<T>,
) -> Outcome<T> {
    use rustix::fs::{CWD, RenameFlags};
    let link = inside.with_extension("link");
    fs::create_dir_all(inside)?;
    symlink(outside, &link)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Fails for a moment when a mount is on it.
                let _ = rustix::fs::renameat_with(CWD, inside, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        let outcome = meanwhile();
        done.store(true, Ordering::Relaxed);
        outcome
    })
}

/// CVE-2021-30465: a destination became a link between the look and the mount.
fn a_place_that_is_exchanged_for_a_link_stays_inside(test: &Test) -> Outcome {
    let (host, volume) = (test.folder.join("host"), test.folder.join("volume"));
    for folder in [&host, &volume] {
        fs::create_dir(folder)?;
    }
    fs::write(volume.join("mark"), "")?;
    // In the container, all of `host` is what can be seen of it from outside.
    let bundle = test.sh("test -e /host/mark && echo out; true")?;
    let bundle = bundle
        .mount(json!({ "destination": "/host", "source": host, "options": ["bind"] }))
        .mount(json!({ "destination": "/v", "source": volume, "options": ["bind"] }));
    exchanging(&bundle.rootfs().join("v"), &host, || {
        let mut ran = 0;
        for _ in 0..100 {
            let output = bundle.run()?;
            ensure(!output.stdout.contains("out"), "a mount came to be outside of the rootfs")?;
            ran += usize::from(output.code == Some(0));
        }
        ensure(ran > 0, "it never ran")
    })
}

/// CVE-2024-45310: folders and files were made at the other end of a link.
fn nothing_is_made_on_the_host_through_an_exchanged_link(test: &Test) -> Outcome {
    let (host, volume) = (test.folder.join("host"), test.folder.join("volume"));
    for folder in [&host, &volume] {
        fs::create_dir(folder)?;
    }
    fs::write(volume.join("file"), "")?;
    let bundle = test.sh("true")?;
    let bundle = bundle
        .mount(json!({ "destination": "/v/a/b/file", "source": volume.join("file"), "options": ["bind"] }))
        .mount(json!({ "destination": "/v/c/d", "source": volume, "options": ["bind"] }));
    exchanging(&bundle.rootfs().join("v"), &host, || {
        let mut ran = 0;
        for _ in 0..100 {
            ran += usize::from(bundle.run()?.code == Some(0));
            let made: Vec<_> = fs::read_dir(&host)?.flatten().map(|entry| entry.path()).collect();
            ensure(made.is_empty(), format!("{made:?} was made"))?;
            let _ = fs::remove_dir_all(bundle.rootfs().join("v/a"));
            let _ = fs::remove_dir_all(bundle.rootfs().join("v/c"));
        }
        ensure(ran > 0, "it never ran")
    })
}

/// CVE-2022-29162: they outlived a change of the user.
fn added_capabilities_are_not_inherited(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let args = [
        "exec",
        "--cap",
        "CAP_SYS_PTRACE",
        &container.id,
        "grep",
        "^Cap[IPB]",
        "/proc/self/status",
    ];
    let output = test.rt(args)?.success()?.stdout;
    let set = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap_or("x").trim(), 16).unwrap_or(u64::MAX)
    };
    // CAP_SYS_PTRACE is 19.
    ensure(set("CapPrm:") & 1 << 19 != 0, &output)?;
    ensure_eq(set("CapInh:"), 0)
}

/// CVE-2023-27561 and CVE-2023-28642: with a link in place of `/proc`, what should be hidden was where the link was.
fn a_linked_proc_is_refused(test: &Test) -> Outcome {
    let bundle = test.sh("true")?;
    fs::remove_dir(bundle.rootfs().join("proc"))?;
    fs::create_dir(bundle.rootfs().join("other"))?;
    symlink("other", bundle.rootfs().join("proc"))?;
    bundle.run()?.fails_with(if test.host.is_rt { "Not a directory" } else { "" }).map(drop)
}

/// The same by whoever shares a volume, after the mounts and before the masks: here, a hook.
fn a_proc_that_was_moved_away_is_masked(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    fs::create_dir_all(volume.join("p"))?;
    let exchange = format!("cd {} && mv p q && mkdir p", volume.display());
    let script = "wc -c < /v/q/version; touch /v/q/sys/kernel/domainname; \
                  echo x 2>/dev/null > /v/q/sys/kernel/domainname || echo refused";
    let bundle = test
        .sh(script)?
        .mount(json!({ "destination": "/v", "source": volume, "options": ["rbind"] }))
        .mount(json!({ "destination": "/v/p", "type": "proc", "source": "proc" }))
        .edit(|config| {
            config["linux"]["maskedPaths"] = json!(["/v/p/version"]);
            config["linux"]["readonlyPaths"] = json!(["/v/p/sys"]);
            config["hooks"] = json!({ "createRuntime": [
                { "path": "/bin/sh", "args": ["sh", "-c", exchange], "env": ["PATH=/usr/bin:/bin"] },
            ]});
        });
    let output = bundle.run()?;
    // To refuse it is as good.
    ensure(output.code != Some(0) || output.stdout == "0\nrefused\n", output.stdout)
}

/// CVE-2025-31133: what masks a file was taken from the image, and could be a link to what the container wants to write to.
fn a_false_null_device_masks_nothing(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("secret"), "secret\n")?;
    let target = volume.join("target");
    fs::write(&target, "target\n")?;
    let bundle = test.sh("cat /v/secret; echo changed > /v/secret; true")?;
    let bundle = bundle
        .mount(json!({ "destination": "/v", "source": volume, "options": ["bind"] }))
        .edit(|config| {
            config["linux"]["maskedPaths"] = json!(["/v/secret"]);
            // The image's own /dev, with a link where the device should be.
            if let Some(mounts) = config["mounts"].as_array_mut() {
                mounts.retain(|mount| {
                    !mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev"))
                });
            }
        });
    symlink("/v/target", bundle.rootfs().join("dev/null"))?;
    let output = bundle.run()?;
    ensure(!output.stdout.contains("secret") && !output.stdout.contains("target"), &output.stdout)?;
    ensure_eq(fs::read_to_string(target)?.as_str(), "target\n")?;
    ensure_eq(fs::read_to_string(volume.join("secret"))?.as_str(), "secret\n")
}

/// CVE-2025-52565: the console was mounted from, or on, what a link led to.
fn a_linked_console_leads_nowhere(test: &Test) -> Outcome {
    let script =
        "test -t 0 && echo terminal; cat /etc/target; test -c /proc/version && echo mounted; true";
    let bundle = test.sh(script)?.file("/etc/target", "target\n")?.edit(|config| {
        config["process"]["terminal"] = json!(true);
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/dev");
        }
        config["linux"]["readonlyPaths"] = json!(["/proc/sysrq-trigger"]);
    });
    symlink("/proc/version", bundle.rootfs().join("dev/console"))?;
    let socket = test.folder.join("console");
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let id = test.id();
    let bundle = bundle.flag(format!("--console-socket={}", socket.display()));
    let output = bundle.try_create(&id)?;
    if output.code != Some(0) {
        return Ok(());
    }
    let master = super::terminal::receive(&listener)?;
    test.rt(["start", &id])?.success()?;
    let text = super::terminal::read_all(master.into());
    ensure(text.contains("terminal") && text.contains("target"), &text)?;
    ensure(!text.contains("mounted"), "the console is on what the link leads to")
}

/// CVE-2025-52881: what was meant for `/proc/sys` went to another file.
fn a_sysctl_is_not_written_to_a_false_proc(test: &Test) -> Outcome {
    let bundle = without_proc(test.sh("true")?)
        .file("/proc/sys/net/ipv4/ip_forward", "false\n")?
        .edit(|config| config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" }));
    let volume = bundle.rootfs().join("proc/sys");
    let mount = json!({ "destination": "/proc/sys", "source": volume, "options": ["bind"] });
    for bundle in [bundle.clone().mount(mount), bundle] {
        bundle.run()?;
        ensure_eq(fs::read_to_string(volume.join("net/ipv4/ip_forward"))?.as_str(), "false\n")?;
    }
    Ok(())
}

/// CVE-2024-21626, by `exec`.
fn exec_cannot_begin_in_a_directory_of_the_hosts(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    for number in 3..20 {
        let cwd = format!("--cwd=/proc/self/fd/{number}");
        let output = test.rt(["exec", &cwd, &container.id, "sh", "-c", "ls -a ../../../../.."])?;
        ensure(
            output.code != Some(0) || !output.stdout.contains("boot"),
            format!("descriptor {number} leads out: {}", output.stdout),
        )?;
    }
    Ok(())
}
