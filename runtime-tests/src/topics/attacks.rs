//! Attacks that have succeeded against other runtimes: an image, or a container that shares a
//! volume with the next one, tries to reach the host. The topic `executable` has CVE-2019-5736 and
//! CVE-2024-21626.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::process::Profile;
use super::{checkpoint, rootless};
use crate::harness::{
    Bundle, Outcome, Output, Test, ensure, ensure_eq, lookups, skip, under_a_filter, wait_until,
};

super::tests! { "attacks":
    a_label_is_not_written_to_a_false_proc, a_place_that_is_exchanged_for_a_link_stays_inside,
    added_capabilities_are_not_inherited, a_linked_proc_is_refused, a_proc_that_was_moved_away_is_masked, nothing_is_made_on_the_host_through_an_exchanged_link,
    a_false_null_device_masks_nothing, a_linked_console_leads_nowhere, a_sysctl_is_not_written_to_a_false_proc,
    exec_cannot_begin_in_a_directory_of_the_hosts,
    a_masked_file_is_not_the_hosts_null_device, a_container_without_a_null_device_does_not_get_the_hosts,
    a_rootfs_is_no_link_of_another_users, a_namespace_of_the_hosts_is_none_of_the_containers, a_joined_namespace_does_not_show_the_hosts,
    exec_into_what_is_ending_stays_inside, a_full_key_quota_is_an_error, a_neighbour_fills_nobody_elses_key_quota,
    where_keys_are_forbidden_the_callers_are_not_handed_on, a_restored_container_has_not_the_callers_keyring,
    a_label_is_applied_past_a_false_proc, a_keyring_that_others_prepared_is_not_joined, what_cannot_be_covered_is_an_error,
    a_joined_namespace_shows_no_false_null_device,
}

/// Without a procfs, `/proc` comes from the image or from a volume.
fn without_proc(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
    })
}

/// CVE-2019-16884: a runtime wrote the label to a volume on `/proc`, and the program ran without a
/// label. A volume on `/proc` is refused. A directory of the image is allowed there.
fn a_label_is_not_written_to_a_false_proc(test: &Test) -> Outcome {
    let bundle = without_proc(test.sh("true")?)
        .edit(|config| config["process"]["apparmorProfile"] = json!("some-profile"));
    let (volume, files) = false_proc(&bundle)?;
    let other =
        json!({ "destination": "/proc", "source": volume, "type": "bind", "options": ["bind"] });
    ensure(bundle.clone().mount(other).run()?.code != Some(0), "a volume is mounted on /proc")?;
    let output = bundle.run()?;
    ensure(output.code != Some(0), "it ran without its label")?;
    files.iter().try_for_each(|file| ensure_eq(fs::read_to_string(file)?.as_str(), ""))
}

/// A directory in the place of `/proc`, with the files to which a runtime writes a label.
fn false_proc(bundle: &Bundle<'_>) -> Outcome<(PathBuf, Vec<PathBuf>)> {
    let volume = bundle.rootfs().join("proc");
    let mut files = Vec::new();
    for place in [
        "self/attr/apparmor",
        "thread-self/attr/apparmor",
        "self/attr",
        "thread-self/attr",
        "1/attr",
    ] {
        fs::create_dir_all(volume.join(place))?;
        files.push(volume.join(place).join("exec"));
        fs::write(volume.join(place).join("exec"), "")?;
    }
    Ok((volume, files))
}

/// On a kernel with AppArmor, the program has its profile all the same.
fn a_label_is_applied_past_a_false_proc(test: &Test) -> Outcome {
    let profile = Profile::load(test)?;
    let script = "cat /secret 2>/dev/null || echo refused; exec sleep 60";
    let bundle = without_proc(test.sh(script)?)
        .file("/secret", "secret")?
        .edit(|config| config["process"]["apparmorProfile"] = json!(profile.name));
    let (_, files) = false_proc(&bundle)?;
    let container = bundle.start()?;
    container.wait_for_output("\n")?;
    ensure_eq(container.stdout()?.as_str(), "refused\n")?;
    let label = fs::read_to_string(format!("/proc/{}/attr/current", container.pid()?))?;
    ensure_eq(label, format!("{} (enforce)\n", profile.name))?;
    files.iter().try_for_each(|file| ensure_eq(fs::read_to_string(file)?.as_str(), ""))?;
    container.kill("KILL")?;
    container.wait()
}

/// While `meanwhile` runs, exchanges a directory of a rootfs for a link that leads out of it, again
/// and again.
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
                // Fails while a mount is on the directory.
                let _ = rustix::fs::renameat_with(CWD, inside, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        let outcome = meanwhile();
        done.store(true, Ordering::Relaxed);
        outcome
    })
}

/// CVE-2021-30465: a destination became a link between the check and the mount.
fn a_place_that_is_exchanged_for_a_link_stays_inside(test: &Test) -> Outcome {
    let (host, volume) = (test.folder.join("host"), test.folder.join("volume"));
    for folder in [&host, &volume] {
        fs::create_dir(folder)?;
    }
    fs::write(volume.join("mark"), "")?;
    // The container also has `host` at `/host`. There it sees whether the mount on `/v` has come to
    // be in `host`.
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

/// CVE-2024-45310: a runtime made directories and files at the target of a link.
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

/// CVE-2022-29162: the added capabilities were inheritable, so they outlived a change of the user.
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

/// CVE-2023-27561 and CVE-2023-28642: with a link in the place of `/proc`, a runtime masked paths
/// at the target of the link.
fn a_linked_proc_is_refused(test: &Test) -> Outcome {
    let bundle = test.sh("true")?;
    fs::remove_dir(bundle.rootfs().join("proc"))?;
    fs::create_dir(bundle.rootfs().join("other"))?;
    symlink("other", bundle.rootfs().join("proc"))?;
    bundle.run()?.fails_with(if test.host.is_rt { "Not a directory" } else { "" }).map(drop)
}

/// A neighbour who shares a volume moves the procfs away, after the mounts and before the masks.
/// Here a hook does it.
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
    // A refusal is as good.
    ensure(output.code != Some(0) || output.stdout == "0\nrefused\n", output.stdout)
}

/// CVE-2025-31133: a runtime masked a file with the image's `/dev/null`, which could be a link to a
/// file that the container wants to write to.
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
            // The image's own `/dev`, with a link in the place of the device.
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

/// CVE-2025-52565: a runtime mounted the console from the target of a link, or on the target of a
/// link.
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

/// CVE-2025-52881: a runtime wrote a value for `/proc/sys` to another file.
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

/// CVE-2024-21626, with `exec`.
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

/// The container sees the host's `/dev/null`, which everybody needs. Fails if `act` changes that
/// device, and restores its mode.
fn the_null_device_stays(act: impl FnOnce() -> Outcome) -> Outcome {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let now = || fs::metadata("/dev/null").map(|there| (there.mode(), there.uid(), there.mtime()));
    let before = now()?;
    let outcome = act();
    let after = now()?;
    if before.0 != after.0 {
        fs::set_permissions("/dev/null", fs::Permissions::from_mode(before.0 & 0o7777))?;
    }
    outcome?;
    ensure_eq(after, before)
}

fn a_masked_file_is_not_the_hosts_null_device(test: &Test) -> Outcome {
    let script = "chmod 600 /proc/version; chmod 600 /data; touch -d 2001-01-01 /proc/version; cat /proc/version /data";
    let bundle = test.sh(script)?.file("/data", "hidden")?.edit(|config| {
        config["linux"]["maskedPaths"] = json!(["/proc/version", "/data"]);
    });
    the_null_device_stays(|| bundle.run()?.stdout("").map(drop))
}

/// The container has no `/dev/null`. For the standard input of `exec`, init makes a null device
/// that no other process has.
fn a_container_without_a_null_device_does_not_get_the_hosts(test: &Test) -> Outcome {
    let container = test.sh("rm /dev/null; echo gone; exec sleep 60")?.start()?;
    container.wait_for_output("gone")?;
    let script = "chmod 600 /proc/self/fd/0; stat -L -c %t:%T /proc/self/fd/0; readlink /proc/self/fd/0 | grep -c deleted";
    the_null_device_stays(|| {
        let output = test.rt(["exec", &container.id, "sh", "-c", script])?;
        ensure(output.stdout.starts_with("1:3\n"), format!("{output:?}"))
    })
}

/// The configuration names the runtime's own namespace by its path. A setting there would change
/// the host.
fn a_namespace_of_the_hosts_is_none_of_the_containers(test: &Test) -> Outcome {
    // These namespaces stand for those of the host.
    let run = |bundle: &Bundle<'_>| {
        bundle.write()?;
        let plain = test.command(bundle.command_line("run", &test.id()));
        let script = "cat /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_default_ttl; \"$@\"; echo $?; \
                      cat /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_default_ttl; test -d /usr && echo root";
        let mut command = Command::new("unshare");
        command.args(["--net", "--uts", "--mount", "sh", "-c", script, "sh"]);
        command.arg(plain.get_program()).args(plain.get_args());
        Output::of(command)
    };
    let own = |kind: &str| format!("/proc/self/ns/{kind}");
    let network = test.sh("true")?.namespace(json!({ "type": "network", "path": own("net") }));
    let network = network
        .edit(|config| config["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" }));
    let uts = test.sh("true")?.namespace(json!({ "type": "uts", "path": own("uts") }));
    let uts = uts.edit(|config| config["hostname"] = json!("changed"));
    let mount = test.sh("true")?.namespace(json!({ "type": "mount", "path": own("mnt") }));
    for bundle in [network, uts, mount] {
        let output = run(&bundle)?;
        let lines: Vec<&str> = output.stdout.lines().collect();
        let [name, ttl, code, name_after, ttl_after, root] = lines[..] else {
            return ensure(false, format!("{output:?}"));
        };
        ensure(code != "0", "it is made")?;
        ensure_eq((name_after, ttl_after, root), (name, ttl, "root"))?;
    }
    // If the configuration sets nothing in the namespace, the path is allowed.
    let bundle = test.sh("true")?.namespace(json!({ "type": "network", "path": own("net") }));
    bundle.run()?.success().map(drop)
}

/// In a user namespace, the kernel may refuse a new procfs or sysfs. If the configuration joins
/// another container's namespace, `rt` must not show the host's filesystem instead.
fn a_joined_namespace_does_not_show_the_hosts(test: &Test) -> Outcome {
    let other = test.sh("exec sleep 60")?.start()?;
    let pid = other.pid()?;
    for (kind, file, script) in [
        ("pid", "pid", "ls -d /proc/[0-9]* | wc -l"),
        ("network", "net", "ls /sys/class/net | wc -l"),
    ] {
        let bundle = test.sh(script)?.namespace(json!({ "type": "user" })).edit(|config| {
            let all = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            config["linux"]["uidMappings"] = all.clone();
            config["linux"]["gidMappings"] = all;
        });
        let path = format!("/proc/{pid}/ns/{file}");
        let bundle = bundle.namespace(json!({ "type": kind, "path": path }));
        let output = bundle.run()?;
        let few = output.stdout.trim().parse::<u32>().is_ok_and(|count| count < 6);
        ensure(output.code != Some(0) || few, format!("{kind}: {output:?}"))?;
    }
    Ok(())
}

/// The first process ends while `exec` opens its namespaces, one after the other.
fn exec_into_what_is_ending_stays_inside(test: &Test) -> Outcome {
    for kind in ["mnt", "uts", "net", "time"] {
        // With its own pid namespace, the container would end together with the first process.
        let bundle = test.sh("exec sleep 60")?.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "pid");
            }
        });
        bundle.write()?;
        let id = test.id();
        let mut parent = test.command(bundle.command_line("run", &id)).spawn()?;
        let state = || test.rt(["state", &id]).map(|output| output.stdout).unwrap_or_default();
        wait_until("it runs", || state().contains("running"))?;
        let state: serde_json::Value = serde_json::from_str(&state())?;
        let path = format!("/proc/{}/ns/{kind}", state["pid"]);
        // A stopped parent does not reap the first process, so its pid stays in use.
        let parents = nix::unistd::Pid::from_raw(i32::try_from(parent.id())?);
        nix::sys::signal::kill(parents, nix::sys::signal::Signal::SIGSTOP)?;
        let command = test.command(["exec", &id, "/bin/true"]);
        let mut killed = false;
        let status = lookups::trace(
            &command,
            |_| false,
            |_, _, name| {
                if name == path && !killed {
                    killed = true;
                    test.rt(["kill", &id, "KILL"])?.success()?;
                    wait_until("it has ended", || fs::read_link(&path).is_err())?;
                }
                Ok(())
            },
        );
        nix::sys::signal::kill(parents, nix::sys::signal::Signal::SIGCONT)?;
        let status = status?;
        ensure(killed, format!("{path} was not opened"))?;
        ensure(!status.success(), format!("{kind}: a program ran"))?;
        parent.wait()?;
    }
    Ok(())
}

/// Runs a bundle while the caller's session keyring holds a key. 250 is keyctl(2), 248 is
/// add_key(2).
fn with_a_secret(test: &Test, bundle: &Bundle<'_>) -> Outcome<Output> {
    if !Path::new("/proc/keys").exists() || !cfg!(target_arch = "x86_64") {
        return skip("a kernel without keyrings, or other numbers of system calls");
    }
    bundle.write()?;
    Output::of(keeping_a_secret(&test.command(bundle.command_line("run", &test.id()))))
}

fn keeping_a_secret(plain: &Command) -> Command {
    let script = r#"
        syscall(250, 1, my $name = "callers") > 0 or die; my ($type, $key, $text) = ("user", "the-callers-secret", "x");
        syscall(248, $type, $key, $text, 1, -3) > 0 or die; exec @ARGV"#;
    let mut command = Command::new("/usr/bin/perl");
    command.args(["-e", script]).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

/// Gives the bundle a user namespace with ids that no user of the host has.
fn mapped(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.namespace(json!({ "type": "user" })).edit(|config| {
        let one = json!([{ "containerID": 0, "hostID": 2_147_000_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = one.clone();
        config["linux"]["gidMappings"] = one;
    })
}

/// A user may have 200 keys, and a neighbour with the same mapping can make all of them. The kernel
/// charges a new keyring to the caller, who has another quota.
fn a_neighbour_fills_nobody_elses_key_quota(test: &Test) -> Outcome {
    let fill = r#"
        $| = 1; for (1..230) { my $pid = fork; next if $pid;
            my $made = syscall(250, 1, my $name = "full$_"); print "full\n" if $made < 0; sleep 60; exit } sleep 60"#;
    let perl = |script: &str| -> Outcome<Bundle<'_>> {
        let bundle = test.perl(script)?;
        // The root of the user namespace cannot make this directory.
        fs::create_dir(bundle.rootfs().join("usr"))?;
        Ok(mapped(bundle))
    };
    let neighbour = perl(fill)?.start()?;
    neighbour.wait_for_output("full")?;
    // Other runtimes may fail, but must not pass on the caller's keyring.
    let bundle = perl(SEARCH)?;
    let refused = |output: &Output| {
        !test.host.is_rt && output.code != Some(0) && output.stderr.contains("key")
    };
    let output = with_a_secret(test, &bundle)?;
    ensure(output.stdout == "nothing\n" || refused(&output), format!("{output:?}"))?;
    // `exec` into the neighbour's container works too.
    let output = test.rt(["exec", &neighbour.id, "/bin/true"])?;
    ensure(output.code == Some(0) || refused(&output), format!("{output:?}"))?;
    // A container without a user namespace always gets its own keyring.
    with_a_secret(test, &test.perl(SEARCH)?)?.success()?.stdout("nothing\n").map(drop)
}

/// The caller is an ordinary user who has used up the quota of keys. No other test has this user.
fn a_full_key_quota_is_an_error(test: &Test) -> Outcome {
    const USER: u32 = 2_146_900_000;
    test.only_rt()?;
    if !Path::new("/proc/keys").exists() || !cfg!(target_arch = "x86_64") {
        return skip("a kernel without keyrings, or other numbers of system calls");
    }
    let bundle = test.sh("echo ran")?.namespace(json!({ "type": "user" })).edit(|config| {
        let own = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
        config["linux"]["uidMappings"] = own.clone();
        config["linux"]["gidMappings"] = own;
    });
    let (bundle, runtime) = (rootless::owned_by(test, bundle, USER)?, test.folder.join("rt"));
    let state = test.state_root();
    let id = test.id();
    let run = |keys: u32, flags: &[&str]| -> Outcome<Output> {
        // For a moment, the kernel still counts the keys of processes that have ended
        // (`keyrings(7)`).
        wait_until("all keys of the user's are gone", || {
            let users = fs::read_to_string("/proc/key-users").unwrap_or_default();
            !users.contains(&format!("{USER}:"))
        })?;
        // setresgid, setresuid, then add_key to the user's own session keyring.
        let script = r#"
            ($user, $keys) = map { 0 + $_ } splice(@ARGV, 0, 2); $) = '0 0'; syscall(119, $user, $user, $user) == 0 or die; syscall(117, $user, $user, $user) == 0 or die;
            syscall(250, 1, 0) > 0 or die; my ($type, $text) = ("user", "x"); delete $ENV{XDG_RUNTIME_DIR};
            for (1..$keys) { my $name = "key$_"; syscall(248, $type, $name, $text, 1, -3) > 0 or last } exec @ARGV"#;
        let mut command = Command::new("/usr/bin/perl");
        command.args(["-e", script, &USER.to_string(), &keys.to_string()]).arg(&runtime);
        command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle.folder);
        command.args(flags).arg(&id);
        Output::of(command)
    };
    run(0, &[])?.success()?.stdout("ran\n")?;
    // More keys than `/proc/sys/kernel/keys/maxkeys` allows.
    run(1000, &[])?.fails_with("make a session keyring: the user has too many keys")?;
    ensure(!state.join(&id).exists(), "the container is left")?;
    run(1000, &["--no-new-keyring"])?.success()?.stdout("ran\n").map(drop)
}

/// The runtime runs under a filter, which the container inherits. The kernel's own lookups in the
/// keyring need no system call. So the container could use the caller's keys.
fn where_keys_are_forbidden_the_callers_are_not_handed_on(test: &Test) -> Outcome {
    const KEYCTL: u32 = 250;
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let bundle = bundle.args(&["echo", "ran"]);
    bundle.write()?;
    let keeping = bundle.clone().flag("--no-new-keyring");
    for (errno, name) in [(1, "operation not permitted"), (13, "permission denied")] {
        let run = |args: Vec<String>| Output::of(under_a_filter(test, KEYCTL, errno, &args)?);
        let exec = ["exec", &container.id, "echo", "ran"].map(str::to_owned).to_vec();
        for args in [bundle.command_line("run", &test.id()), exec] {
            let output = run(args)?.fails_with("make a session keyring: `keyctl` is forbidden")?;
            ensure(output.stderr.to_lowercase().contains(name), output.stderr)?;
        }
        // With `--no-new-keyring`, the caller agrees.
        run(keeping.command_line("run", &test.id()))?.success()?.stdout("ran\n")?;
    }
    // A kernel without keyrings returns ENOSYS (38), and LXC does too.
    let without = under_a_filter(test, KEYCTL, 38, &bundle.command_line("run", &test.id()))?;
    Output::of(without)?.success()?.stdout("ran\n").map(drop)
}

/// The restored processes inherit CRIU's keyring, which is that of `restore`.
fn a_restored_container_has_not_the_callers_keyring(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/proc/keys").exists() || !cfg!(target_arch = "x86_64") {
        return skip("a kernel without keyrings, or other numbers of system calls");
    }
    let said = test.folder.join("said");
    let script =
        format!("{SEARCH}; exit 1").replace("print ", "print {open(my $f, '>', 'SAID'); $f} ");
    let script = script.replace("SAID", &said.display().to_string());
    for (flags, expected) in [(&[] as &[&str], "nothing\n"), (&["--no-new-keyring"], "found\n")] {
        let bundle = test.sh("true")?;
        bundle.write()?;
        let restore = checkpoint::false_criu(&bundle, &script, flags)?;
        let output = Output::of(keeping_a_secret(&restore))?;
        ensure(output.code != Some(0), "a script restored it")?;
        ensure_eq((flags, fs::read_to_string(&said)?.as_str()), (flags, expected))?;
    }
    Ok(())
}

/// KEYCTL_SEARCH in the session keyring.
const SEARCH: &str = r#"
    my ($type, $key) = ("user", "the-callers-secret");
    print syscall(250, 10, -3, $type, $key, 0) > 0 ? "found" : "nothing", "\n""#;

/// Any user of the host can make a keyring with any name, and allow everybody to search it.
fn a_keyring_that_others_prepared_is_not_joined(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/proc/keys").exists() || !cfg!(target_arch = "x86_64") {
        return skip("a kernel without keyrings, or other numbers of system calls");
    }
    // KEYCTL_DESCRIBE of the session keyring.
    let describe =
        r#"my $text = " " x 200; syscall(250, 6, -3, $text, 200) > 0 or die; print $text"#;
    let bundle = test.perl(describe)?;
    bundle.write()?;
    let id = test.id();
    // Joins a session keyring, adds a key, allows everybody to search the keyring (KEYCTL_SETPERM),
    // and waits.
    let prepare = r#"
        $> = $< = 65534; my $ring = syscall(250, 1, my $name = "_ses.$ARGV[0]"); $ring > 0 or die;
        my ($type, $key, $text) = ("user", "planted", "x"); syscall(248, $type, $key, $text, 1, -3) > 0 or die;
        syscall(250, 5, -3, 0x3f3f3f3f) == 0 or die; print "ready\n"; close STDOUT; sleep 60"#;
    let mut attacker = Command::new("/usr/bin/perl")
        .args(["-e", prepare, &id])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut ready = String::new();
    if let Some(stdout) = attacker.stdout.take() {
        std::io::Read::read_to_string(&mut std::io::BufReader::new(stdout), &mut ready)?;
    }
    let output = Output::of(test.command(bundle.command_line("run", &id)));
    attacker.kill()?;
    attacker.wait()?;
    ensure_eq(ready.as_str(), "ready\n")?;
    let output = output?.success()?;
    // `TYPE;UID;GID;PERM;DESCRIPTION`
    let own = output.stdout.contains(&format!(";0;0;3f130000;_ses.{id}."));
    ensure(own, output.stdout)
}

/// The rootfs is in a directory of another user, who has replaced the rootfs by a link to the
/// host's root.
fn a_rootfs_is_no_link_of_another_users(test: &Test) -> Outcome {
    let folder = test.folder.join("theirs");
    fs::create_dir(&folder)?;
    symlink("/", folder.join("rootfs"))?;
    for path in [folder.clone(), folder.join("rootfs")] {
        std::os::unix::fs::lchown(path, Some(1000), Some(1000))?;
    }
    let bundle = test
        .linux(&["/bin/true"])?
        .edit(|config| config["root"]["path"] = json!(folder.join("rootfs")));
    let output = bundle.run()?;
    ensure(output.code != Some(0), "it ran in the host's root")?;
    // `rt` follows a link of its own user.
    let bundle = test.sh("echo ran")?;
    fs::rename(bundle.rootfs(), bundle.folder.join("real"))?;
    symlink("real", bundle.rootfs())?;
    if !test.host.is_rt {
        return Ok(());
    }
    bundle.run()?.success()?.stdout("ran\n").map(drop)
}

/// The image has a link that leads to itself, at a path to mask or to make read-only. So `rt`
/// cannot look up this path.
fn what_cannot_be_covered_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    for (list, what) in
        [("maskedPaths", "mask `/loop`"), ("readonlyPaths", "make `/loop` read-only")]
    {
        let bundle =
            test.sh("true")?.edit(|config| config["linux"][list] = json!(["/none", "/loop"]));
        symlink("loop", bundle.rootfs().join("loop"))?;
        let output = bundle.try_create(&test.id())?;
        output.fails_with(what)?;
    }
    Ok(())
}

/// The owner of the joined mount namespace has replaced `/dev/null`. A mask must not show the
/// replacement.
fn a_joined_namespace_shows_no_false_null_device(test: &Test) -> Outcome {
    test.only_rt()?;
    let script =
        "mkfifo fifo; echo false > file; mount --bind $0 /dev/null; echo ready; exec sleep 60";
    for there in ["file", "fifo", "/dev/zero"] {
        let mut holder = Command::new("unshare");
        holder.args([
            "--mount",
            "sh",
            "-ec",
            &script.replace("mkfifo fifo", "test -p fifo || mkfifo fifo"),
            there,
        ]);
        holder.current_dir(&test.folder).stdout(std::process::Stdio::piped());
        let mut holder = holder.spawn()?;
        let mut said = [0; 6];
        if let Some(stdout) = &mut holder.stdout {
            std::io::Read::read_exact(stdout, &mut said)?;
        }
        let path = format!("/proc/{}/ns/mnt", holder.id());
        let bundle = test.sh("echo ran")?.file("/etc/secret", "secret")?;
        let bundle = bundle
            .namespace(json!({ "type": "mount", "path": path }))
            .edit(|config| config["linux"]["maskedPaths"] = json!(["/etc/secret"]));
        let output = bundle.run();
        holder.kill()?;
        holder.wait()?;
        output?.fails_with("open `/dev/null`: it is another file")?;
    }
    Ok(())
}
