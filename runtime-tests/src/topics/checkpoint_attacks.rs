//! Attempts of an image, of a container or of a checkpoint to get more by a restore than the
//! configuration gives.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::checkpoint::{
    COUNT, images, move_on, needs_criu, restore, restore_command, start, write,
};
use crate::harness::{
    Bundle, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, has_process, wait_until,
};

super::tests! { "checkpoint_attacks":
    a_mount_that_its_name_does_not_lead_to_is_read_only_again, what_the_configuration_masks_is_masked,
    a_mount_that_no_checkpoint_has_is_refused, a_restored_process_has_no_more_than_the_configuration_gives,
    namespaces_are_not_the_hosts, a_process_that_exec_gave_more_is_refused, tmp_does_not_lead_out_of_the_root,
    files_of_a_checkpoint_are_not_links, a_log_is_not_a_link, criu_has_open_what_is_listed,
    a_name_that_criu_could_misread_is_refused, devices_of_the_hosts_cannot_be_changed,
    a_rootfs_is_not_reached_by_a_newer_link,
}

/// If one filesystem is mounted twice, CRIU 4.2.1 forgets the restrictions of one mount. In the
/// rootfs, the path in the configuration leads to the mount. In the container, a later mount covers
/// a part of the way, so the same path leads elsewhere.
fn a_mount_that_its_name_does_not_lead_to_is_read_only_again(test: &Test) -> Outcome {
    needs_criu()?;
    let folder = test.folder.join("shared");
    fs::create_dir(&folder)?;
    let bind = |destination: &str| json!({ "destination": destination, "type": "bind", "source": folder, "options": ["bind", "ro", "nosuid"] });
    for (how, prepare, real) in [
        ("nothing is there", "ln -s /real /scratch/other", "/real"),
        ("a directory is there", "mkdir -p /scratch/way/data /scratch/way/more", "/real"),
        (
            "another mount is there",
            "mkdir /scratch/way; ln -s /free /scratch/way/data; ln -s /free /scratch/way/more",
            "/real",
        ),
        // At first, `/plain` is a directory.
        ("it was moved", "mv /plain /moved; ln -s /scratch/gone /plain", "/moved"),
    ] {
        let bundle = test.sh(&format!("{prepare}; {COUNT}"))?;
        for place in ["scratch", "real/data", "real/more", "plain/data", "plain/more", "free"] {
            fs::create_dir_all(bundle.rootfs().join(place))?;
        }
        symlink("/real", bundle.rootfs().join("scratch/way"))?;
        symlink("/moved", bundle.rootfs().join("scratch/gone"))?;
        symlink("/scratch/way", bundle.rootfs().join("link"))?;
        let above = if how == "it was moved" { "/plain" } else { "/link" };
        let bundle = bundle
            .mount(json!({ "destination": "/free", "type": "bind", "source": test.folder, "options": ["bind"] }))
            .mount(bind(&format!("{above}/data")))
            .mount(bind(&format!("{above}/more")))
            .mount(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs" }));
        let restored = move_on(&bundle, "1\n")?;
        for name in ["data", "more"] {
            let options = options_at(restored.pid()?, &format!("{real}/{name}"))?;
            ensure(options.starts_with("ro,nosuid"), format!("{how}: {name} has {options}"))?;
        }
        fs::remove_dir_all(images(test))?;
    }
    Ok(())
}

/// The options of the last mount at a place in the container.
pub(super) fn options_at(pid: i32, place: &str) -> Outcome<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.into_iter().rfind(|fields| fields.get(4) == Some(&place));
    Ok(found.ok_or_else(|| format!("no mount on {place}: {table}"))?[5].to_owned())
}

/// In the checkpoint, the path is not masked: the container had another configuration, or another
/// kernel.
fn what_the_configuration_masks_is_masked(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?.file("/etc/secret", "secret")?;
    fs::create_dir_all(bundle.rootfs().join("etc/folder/inner"))?;
    fs::write(bundle.rootfs().join("etc/folder/inner/secret"), "secret")?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let bundle = bundle.edit(|config| {
        config["linux"]["maskedPaths"] =
            json!(["/etc/secret", "/proc/keys", "/proc/bus", "/none", "/etc/folder/inner"]);
        config["linux"]["readonlyPaths"] =
            json!(["/proc/sys", "/etc/folder", "/etc/folder/inner", "/none"]);
    });
    bundle.write()?;
    let restored = restore(&bundle, &[])?;
    let look = "cat /etc/secret /proc/keys; ls /proc/bus; ls /etc/folder/inner; \
                touch /etc/folder/x && echo writable; \
                echo x >/proc/sys/kernel/domainname && echo writable; touch /etc/x && echo end";
    test.rt(["exec", &restored.id, "sh", "-c", look])?.success()?.stdout("end\n").map(drop)
}

/// `rt` cannot compare a mount that the record does not list.
fn a_mount_that_no_checkpoint_has_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let record = images(test).join("mounts.json");
    let mut mounts: Vec<Value> = serde_json::from_slice(&fs::read(&record)?)?;
    let last = mounts.pop().ok_or("nothing is recorded")?;
    fs::write(&record, serde_json::to_string(&mounts)?)?;
    is_refused(&bundle, "is not a mount of the checkpoint")?;
    let mut other = last.clone();
    other["points"][0] = json!("/other");
    mounts.extend([last, other]);
    fs::write(&record, serde_json::to_string(&mounts)?)?;
    is_refused(&bundle, "the mount `/other` of the checkpoint was not restored")
}

/// The restore fails with one line that contains these words, and leaves nothing behind.
pub(super) fn is_refused(bundle: &Bundle<'_>, words: &str) -> Outcome {
    bundle.write()?;
    let test = bundle.test;
    let id = test.id();
    let failed = Output::of(restore_command(bundle, &id, &["--detach"]))?.fails_with(words)?;
    ensure_eq(failed.stderr.lines().count(), 1)?;
    test.rt(["state", &id])?.fails_with("does not exist")?;
    ensure(cgroups_of(&id).is_empty(), "its cgroup is left")
}

fn a_restored_process_has_no_more_than_the_configuration_gives(test: &Test) -> Outcome {
    needs_criu()?;
    // Processes with this mark in their arguments count too.
    let mark = test.id();
    // The second process has the mark too, and would write a file if it ran.
    let trace =
        format!("sh -c 'while :; do : >/ran; sleep 0.05; done # {mark}' & {COUNT} # {mark}");
    let bundle = test.sh(&trace)?.edit(|config| {
        config["process"]["noNewPrivileges"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_NET_ADMIN"]);
        }
    });
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let fewer = |change: &dyn Fn(&mut Value)| bundle.clone().edit(|config| change(config));
    for (bundle, words) in [
        (
            fewer(&|config| {
                for set in ["bounding", "effective", "permitted"] {
                    config["process"]["capabilities"][set] = json!(["CAP_KILL"]);
                }
            }),
            "`process.capabilities` lacks (CapBnd: CAP_NET_ADMIN)",
        ),
        (
            fewer(&|config| {
                config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
            }),
            "it has no seccomp filter, which `linux.seccomp` asks for",
        ),
    ] {
        let _ = fs::remove_file(bundle.rootfs().join("ran"));
        is_refused(&bundle, words)?;
        wait_until("no process is left", || !has_process(&mark))?;
        ensure(!bundle.rootfs().join("ran").exists(), format!("it ran on: {words}"))?;
    }
    // The restored process gets `no_new_privs`, also from a CRIU that does not know it (before
    // 4.0).
    let bundle = bundle.edit(|config| config["process"]["noNewPrivileges"] = json!(true));
    bundle.write()?;
    let restored = restore(&bundle, &[])?;
    restored.wait_for_output("\n")?;
    let status = fs::read_to_string(format!("/proc/{}/status", restored.pid()?))?;
    ensure(status.contains("NoNewPrivs:\t1\n"), status)
}

fn namespaces_are_not_the_hosts(test: &Test) -> Outcome {
    needs_criu()?;
    for kind in ["ipc", "uts", "network"] {
        let whole = test.sh(COUNT)?;
        let shared = whole.clone().edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != kind);
            }
            // A new sysfs belongs to a network namespace.
            if let Some(mounts) = config["mounts"].as_array_mut() {
                mounts.retain(|mount| mount["destination"] != "/sys");
            }
        });
        let container = start(&shared)?;
        container.wait_for_output("1\n")?;
        write(test, &container, &[])?.success()?;
        let whole = whole.edit(|config| config["mounts"] = shared.config["mounts"].clone());
        is_refused(&whole, &format!("it is in the host's {kind} namespace"))?;
        fs::remove_dir_all(images(test))?;
    }
    // A user namespace with other ids is refused too.
    let mapping = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 65536 }]);
    let mapped = |host: u32| -> Outcome<Bundle<'_>> {
        Ok(test.sh(COUNT)?.namespace(json!({ "type": "user" })).edit(|config| {
            config["linux"]["uidMappings"] = mapping(host);
            config["linux"]["gidMappings"] = mapping(host);
        }))
    };
    fs::set_permissions(&test.folder, fs::Permissions::from_mode(0o755))?;
    let bundle = mapped(100_000)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    let other = bundle.edit(|config| config["linux"]["gidMappings"] = mapping(200_000));
    is_refused(&other, "its `gid_map` is not the mapping that the configuration has")
}

/// When `exec` has ended, its child is a child of the first process.
fn a_process_that_exec_gave_more_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let container = start(&test.sh(COUNT)?)?;
    container.wait_for_output("1\n")?;
    let script = "setsid sleep 600 </dev/null >/dev/null 2>&1 &";
    test.rt(["exec", "--cap", "CAP_NET_ADMIN", &container.id, "sh", "-c", script])?.success()?;
    write(test, &container, &[])?
        .fails_with("(`sleep`): it has capabilities that `process.capabilities` lacks (CapBnd: CAP_NET_ADMIN), as by `exec --cap`")?;
    ensure_eq(container.status()?.as_str(), "running")?;
    let lines = container.stdout()?.lines().count();
    wait_until("it goes on", || container.stdout().is_ok_and(|out| out.lines().count() > lines))
}

/// CRIU looks for `/tmp` on the host.
fn tmp_does_not_lead_out_of_the_root(test: &Test) -> Outcome {
    test.only_rt()?;
    let outside = test.folder.join("outside");
    fs::create_dir(&outside)?;
    let ways = |bundle: &Bundle<'_>| -> [PathBuf; 3] {
        let up = bundle.rootfs().components().map(|_| "..").collect::<PathBuf>();
        [
            up.join(outside.strip_prefix("/").unwrap_or(&outside)),
            outside.clone(),
            "inner/way".into(),
        ]
    };
    let exchange = |bundle: &Bundle<'_>, way: &Path| -> Outcome {
        let (tmp, inner) = (bundle.rootfs().join("tmp"), bundle.rootfs().join("inner"));
        let _ = fs::remove_dir(&tmp).or_else(|_| fs::remove_file(&tmp));
        symlink(way, tmp)?;
        if !inner.exists() {
            fs::create_dir(&inner)?;
            symlink("../../../bundle", inner.join("way"))?;
        }
        Ok(())
    };
    for number in 0..3 {
        let bundle = test.sh("exec sleep 60")?;
        exchange(&bundle, &ways(&bundle)[number])?;
        let container = bundle.start()?;
        write(test, &container, &[])?
            .fails_with("`/tmp` in its root is a link that leads out of it")?;
        ensure_eq(container.status()?.as_str(), "running")?;
    }
    needs_criu()?;
    let bundle = test.sh(COUNT)?.edit(|config| config["root"]["readonly"] = json!(true));
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    for way in ways(&bundle) {
        exchange(&bundle, &way)?;
        is_refused(&bundle, "`/tmp` in its root is a link that leads out of it")?;
    }
    ensure_eq(fs::read_dir(&outside)?.count(), 0)?;
    // Inside the root, the link may lead anywhere.
    fs::remove_file(bundle.rootfs().join("tmp"))?;
    fs::create_dir(bundle.rootfs().join("elsewhere"))?;
    symlink("elsewhere", bundle.rootfs().join("tmp"))?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

fn files_of_a_checkpoint_are_not_links(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    fs::create_dir(images(test))?;
    for name in ["descriptors.json", "mounts.json"] {
        let (file, other) = (images(test).join(name), test.folder.join(name));
        fs::write(&other, "[]")?;
        symlink(&other, &file)?;
        is_refused(&bundle, &format!("{name}` of the checkpoint: "))?;
        fs::remove_file(&file)?;
        fs::write(&file, "[]")?;
    }
    // `rt` reads nothing from a directory that others can write to.
    fs::write(images(test).join("descriptors.json"), "wrong")?;
    fs::set_permissions(images(test), fs::Permissions::from_mode(0o777))?;
    is_refused(&bundle, "others can write to")
}

/// A program `criu` that runs a script before CRIU. The directory of the images is its second
/// argument.
fn other_criu(test: &Test, script: &str) -> Outcome<PathBuf> {
    let folder = test.folder.join("bin");
    fs::create_dir_all(&folder)?;
    let script = format!(
        "#!/bin/sh\nPATH={}:/usr/sbin:/usr/bin:/bin\n[ \"$1\" = swrk ] || exec criu \"$@\"\n{script}\n",
        std::env::var("PATH").unwrap_or_default(),
    );
    fs::write(folder.join("criu"), script)?;
    fs::set_permissions(folder.join("criu"), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// `rt` quotes errors from CRIU's log. The owner of the log's directory must not choose another
/// file to quote.
fn a_log_is_not_a_link(test: &Test) -> Outcome {
    test.only_rt()?;
    let secret = test.folder.join("secret");
    fs::write(&secret, "(00.04) Error (criu/a.c:1): hidden\n")?;
    let log = images(test).join("dump.log");
    let script = format!("ln -s {} {}; exit 1", secret.display(), log.display());
    let container = test.sh("exec sleep 60")?.start()?;
    let images = images(test).display().to_string();
    let mut command = test.command(["checkpoint", "--image-path", &images, &container.id]);
    command.env("PATH", other_criu(test, &script)?);
    let failed = Output::of(command)?.fails_with("`criu` ended without an answer")?;
    ensure(!failed.stderr.contains("hidden"), failed.stderr)?;
    ensure(log.is_symlink(), "no link was made")?;
    // `rt` does not remove the target of the link either.
    write(test, &container, &["--tcp-established"]).map(drop)?;
    ensure(secret.exists(), "the file of another is gone")
}

/// CRIU must not have the open files of the caller or of `rt`.
fn criu_has_open_what_is_listed(test: &Test) -> Outcome {
    needs_criu()?;
    test.only_rt()?;
    let list = test.folder.join("open");
    let script = format!("(exec ls -l /proc/$$/fd >>{})\nexec criu \"$@\"", list.display());
    let path = other_criu(test, &script)?;
    let bundle = test.sh(COUNT)?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let images = images(test).display().to_string();
    let checkpoint = test.command(["checkpoint", "--image-path", &images, &container.id]);
    let restore = restore_command(&bundle, &test.id(), &["--detach"]);
    for (how, command) in [("checkpoint", checkpoint), ("restore", restore)] {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "exec 7</ 9</etc/passwd; exec \"$@\" </dev/null >/dev/null 2>&1", "sh"]);
        shell.arg(command.get_program()).args(command.get_args()).env("PATH", &path);
        ensure(shell.status()?.success(), format!("{how} failed"))?;
        let open = fs::read_to_string(&list)?;
        // The format is `… NUMBER -> LINK`. The shell keeps its script open.
        let links = open.lines().filter_map(|line| line.rsplit_once(" -> "));
        let wrong = links.map(|(rest, link)| (rest.rsplit(' ').next(), link)).find(|(fd, link)| {
            let is_stream = matches!(fd, Some("0" | "1" | "2"));
            !is_stream && !link.starts_with("socket:") && !link.ends_with("/bin/criu")
        });
        ensure(wrong.is_none(), format!("{how}: {wrong:?} is open: {open}"))?;
        ensure(open.contains("socket:"), format!("{how}: {open}"))?;
    }
    Ok(())
}

/// CRIU writes `mnt[NAME]:SOURCE` and reads it again.
fn a_name_that_criu_could_misread_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let source = test.folder.join("source");
    fs::create_dir(&source)?;
    let secret = test.folder.join("secret");
    fs::create_dir(&secret)?;
    for place in [format!("x]:{}", secret.display()), "line\nbreak".to_owned()] {
        let bundle = test.sh("exec sleep 60")?;
        fs::create_dir_all(bundle.rootfs().join(&place))?;
        // By this link, the image leads the mount to the place with that name.
        symlink(format!("/{place}"), bundle.rootfs().join("data"))?;
        let bundle = bundle.mount(json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind"] }));
        let container = bundle.start()?;
        write(test, &container, &[])?.fails_with("`criu` cannot be told of such a name")?;
        ensure_eq(container.status()?.as_str(), "running")?;
    }
    Ok(())
}

/// In a user namespace, device nodes are bind mounts from the host.
fn devices_of_the_hosts_cannot_be_changed(test: &Test) -> Outcome {
    needs_criu()?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let bundle = test.sh(COUNT)?.namespace(json!({ "type": "user" })).edit(|config| {
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
    });
    fs::set_permissions(&test.folder, fs::Permissions::from_mode(0o755))?;
    let restored = move_on(&bundle, "1\n")?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let options = options_at(restored.pid()?, &format!("/dev/{name}"))?;
        ensure(options.starts_with("ro,"), format!("/dev/{name} has the options {options}"))?;
    }
    Ok(())
}

/// The owner of a directory above the rootfs replaces the directory by a link while the container
/// runs. CRIU or `rt` would then look at the host's files.
fn a_rootfs_is_not_reached_by_a_newer_link(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let moved = test.folder.join("moved");
    for (part, target) in [
        (bundle.folder.clone(), moved.clone()),
        (bundle.rootfs(), moved.clone()),
        (bundle.rootfs(), PathBuf::from("/")),
    ] {
        fs::rename(&part, &moved)?;
        symlink(&target, &part)?;
        write(test, &container, &[])?.fails_with("open the rootfs: ")?;
        fs::remove_file(&part)?;
        fs::rename(&moved, &part)?;
    }
    ensure_eq(container.status()?.as_str(), "running")
}
