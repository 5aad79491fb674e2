//! Mounts as callers and their users write them: on the root, with relative paths, by the hundred,
//! and read-only with another mount below.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::namespaces::in_user_namespace;
use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq};

super::tests! { "mounts_in_use":
    a_mount_on_the_root_is_the_root, a_root_that_is_mounted_has_its_options, the_root_can_be_a_filesystem_of_its_own, the_root_of_what_runs_is_not_covered,
    kept_mount_namespaces_are_left_out, a_tmpfs_has_the_mode_of_what_it_covers, read_only_comes_last, read_only_comes_last_below_all_kinds,
    a_relative_destination_begins_at_the_root, a_destination_can_begin_with_the_rootfs, options_of_cgroup2_are_not_passed_over,
    hundreds_of_mounts_need_few_descriptors, descriptors_are_the_callers_again, access_times_are_kept_as_mount_says,
    access_times_below_are_kept_as_mount_says, a_source_of_an_earlier_mount_can_be_mapped,
    a_tmpfs_of_the_containers_can_be_mapped, what_is_listed_twice_is_protected_once,
    a_linked_dev_stays_inside,
}

fn folder(test: &Test, name: &str) -> Outcome<PathBuf> {
    let folder = test.folder.join(name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("file"), "content\n")?;
    Ok(folder)
}

fn bind(destination: &str, source: &Path, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options })
}

/// A rootfs to mount. The file `marker` identifies it.
fn tree(test: &Test) -> Outcome<PathBuf> {
    let tree = test.folder.join("tree");
    test.host.fill_rootfs(&tree)?;
    fs::write(tree.join("etc/marker"), "the new one\n")?;
    Ok(tree)
}

/// Adds a mount before all others.
fn first(bundle: Bundle<'_>, mount: Value) -> Bundle<'_> {
    bundle.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.insert(0, mount);
        }
    })
}

/// A shell in its own mount namespace, on one processor. Linux 6.18 numbers namespaces by
/// processor. It compares these numbers to learn which of two mount namespaces is newer.
fn in_its_own_mounts() -> Outcome<Command> {
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = allowed.unwrap_or("0").trim().split([',', '-']).next().unwrap_or("0");
    let mut command = Command::new("taskset");
    command.args(["-c", first, "unshare", "--mount", "--propagation", "private", "sh", "-ec"]);
    Ok(command)
}

/// Runs a bundle in a mount namespace in which a script runs first.
fn run_after(test: &Test, bundle: &Bundle<'_>, script: &str, folder: &Path) -> Outcome<Output> {
    bundle.write()?;
    let mut command = in_its_own_mounts()?;
    command.arg(format!("{script}; exec \"$@\"")).arg(folder).arg(&test.host.runtime);
    command.arg("--root").arg(test.state_root()).args(bundle.command_line("run", &test.id()));
    Output::of(command)
}

fn a_mount_on_the_root_is_the_root(test: &Test) -> Outcome {
    test.only_rt()?;
    let tree = tree(test)?;
    for destination in ["/", "//", "/.", "/bin/..", "/../.", "/etc/../bin/.."] {
        let mount = bind(destination, &tree, &["rbind"]);
        // As the last mount, it hides all others.
        let bundle = test.sh("cat /etc/marker; ls /proc; test -c /dev/null && echo null")?;
        bundle.mount(mount.clone()).run()?.success()?.stdout("the new one\nnull\n")?;
        let bundle = first(test.sh("cat /etc/marker; grep -c ' /proc ' /proc/mounts")?, mount);
        bundle.run()?.success()?.stdout("the new one\n1\n")?;
    }
    Ok(())
}

fn a_root_that_is_mounted_has_its_options(test: &Test) -> Outcome {
    test.only_rt()?;
    let tree = tree(test)?;
    let script =
        "cat /etc/marker; touch /new 2>/dev/null || echo refused; cat /proc/version | wc -c";
    let expected = "the new one\nrefused\n0\n";
    let with = |options: &[&str]| -> Outcome<Bundle<'_>> {
        Ok(first(test.sh(script)?, bind("/", &tree, options))
            .edit(|config| config["linux"]["maskedPaths"] = json!(["/proc/version"])))
    };
    with(&["rbind", "ro"])?.run()?.success()?.stdout(expected)?;
    with(&["rbind", "rshared", "ro"])?.run()?.success()?.stdout(expected)?;
    with(&["rbind", "ro"])?.flag("--no-pivot").run()?.success()?.stdout(expected)?;
    for path in ["", "proc", "dev", "sys"] {
        chown(tree.join(path), Some(100_000), Some(100_000))?;
    }
    in_user_namespace(with(&["rbind", "ro"])?)?.run()?.success()?.stdout(expected)?;
    let bundle = with(&["rbind"])?.edit(|config| config["root"]["readonly"] = json!(true));
    bundle.run()?.success()?.stdout(expected)?;
    // The tree on the host has not changed.
    ensure(!tree.join("new").exists(), "a read-only root was written to")?;
    let bundle = first(test.sh("true")?, bind("/", &tree.join("etc/marker"), &["bind"]));
    bundle.try_create(&test.id())?.fails_with("ot a directory").map(drop)
}

fn the_root_can_be_a_filesystem_of_its_own(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("stat -c %a /; touch /new && ls /")?;
    let bundle = first(bundle, bind("/bin", &tree(test)?.join("bin"), &["bind"]));
    let bundle = first(bundle, tmpfs("/", &["mode=751"]));
    bundle.run()?.success()?.stdout("751\nbin\ndev\nnew\nproc\nsys\n").map(drop)
}

fn the_root_of_what_runs_is_not_covered(test: &Test) -> Outcome {
    test.only_rt()?;
    // A program of `exec` sees the same root as the container's program.
    let bundle = first(test.sh("exec sleep 60")?, bind("/", &tree(test)?, &["rbind"]));
    let container = bundle.start()?;
    test.rt(["exec", &container.id, "cat", "/etc/marker"])?.success()?.stdout("the new one\n")?;
    let container = test.sh("exec sleep 60")?.start()?;
    for destination in ["/", "/bin/..", "//"] {
        let file = test.folder.join("mounts.json");
        fs::write(&file, json!([tmpfs(destination, &[])]).to_string())?;
        test.rt(["mounts", "add", &container.id, &file.display().to_string()])?
            .fails_with("the root of a container that is there already")?;
    }
    test.rt(["exec", &container.id, "test", "-e", "/bin/sh"])?.success().map(drop)
}

/// `unshare --mount=FILE` and snapd keep such files. The kernel attaches no tree that contains one
/// of them to a newer mount namespace.
fn kept_mount_namespaces_are_left_out(test: &Test) -> Outcome {
    let source = folder(test, "source")?;
    fs::create_dir(source.join("ns"))?;
    fs::write(source.join("ns/one"), "")?;
    let keep = "mount --bind \"$0\" \"$0\"; mount --make-private \"$0\"; unshare --mount=\"$0/ns/one\" true";
    let script = "cat /v/file; test -e /v/ns/one && echo there";
    let run = |bundle: Bundle<'_>| run_after(test, &bundle, keep, &source);
    let plain =
        || -> Outcome<Bundle<'_>> { Ok(test.sh(script)?.mount(bind("/v", &source, &["rbind"]))) };
    run(plain()?)?.success()?.stdout("content\nthere\n")?;
    run(in_user_namespace(plain()?)?)?.success()?.stdout("content\nthere\n")?;
    // The host's root as the source.
    let bundle =
        test.sh(&format!("cat /v{0}/file; test -e /v{0}/ns/one && echo there", source.display()))?;
    let bundle = bundle.mount(bind("/v", Path::new("/"), &["rbind", "ro"]));
    run(in_user_namespace(bundle)?)?.success()?.stdout("content\nthere\n")?;
    // A mount of the file itself shows the file below the namespace.
    let bundle = test.sh("cat /v && echo empty")?;
    let bundle = bundle.mount(bind("/v", &source.join("ns/one"), &["bind"]));
    run(in_user_namespace(bundle)?)?.success()?.stdout("empty\n")?;
    if !test.host.is_rt {
        return Ok(());
    }
    let option = "ridmap=uids=0-5-1;gids=0-5-1";
    let bundle = test.sh("stat -c %u /v/file")?.mount(bind("/v", &source, &["rbind", option]));
    run(bundle)?.success()?.stdout("5\n")?;
    for bundle in [test.sh("exec sleep 60")?, in_user_namespace(test.sh("exec sleep 60")?)?] {
        bundle.write()?;
        let (id, file) = (test.id(), test.folder.join("mounts.json"));
        fs::write(&file, json!([bind("/v", &source, &["rbind"])]).to_string())?;
        let script = format!(
            "{keep}; $1 --root $2 run --detach --bundle $3 {id}; $1 --root $2 mounts add {id} $4; $1 --root $2 exec {id} cat /v/file"
        );
        let mut command = in_its_own_mounts()?;
        command.arg(&script).arg(&source);
        command.arg(&test.host.runtime).arg(test.state_root()).arg(&bundle.folder).arg(&file);
        Output::of(command)?.success()?.stdout("content\n")?;
    }
    Ok(())
}

fn a_tmpfs_has_the_mode_of_what_it_covers(test: &Test) -> Outcome {
    let modes = [("a", 0o500), ("b", 0o712), ("c", 0o1777), ("d", 0o2775), ("e", 0o000)];
    for user in [false, true] {
        for (options, expected) in [
            (&[][..], "500\n712\n1777\n2775\n0\n711\n1777\n"),
            (&["size=64k", "nosuid"], "500\n712\n1777\n2775\n0\n711\n1777\n"),
            (&["ro", "size=5%"], "500\n712\n1777\n2775\n0\n711\n1777\n"),
            (&["mode=700"], "700\n700\n700\n700\n700\n700\n700\n"),
        ] {
            let mut bundle = test.sh("stat -c %a /a /b /c /d /e /link/ /new")?;
            for (name, mode) in modes.into_iter().chain([("to", 0o711)]) {
                let folder = bundle.rootfs().join(name);
                fs::create_dir(&folder)?;
                // The mode must not depend on the owner.
                chown(&folder, Some(100_007), None)?;
                fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
            }
            symlink("/to", bundle.rootfs().join("link"))?;
            for path in ["/a", "/b", "/c", "/d", "/e", "/link", "/new"] {
                bundle = bundle.mount(tmpfs(path, options));
            }
            let bundle = if user { in_user_namespace(bundle)? } else { bundle };
            bundle.run()?.success()?.stdout(expected)?;
        }
    }
    Ok(())
}

fn read_only_comes_last(test: &Test) -> Outcome {
    let source = folder(test, "source")?;
    let below = folder(test, "below")?;
    for user in [false, true] {
        let run = |script: &str, mounts: &[Value]| -> Outcome<Output> {
            let bundle = mounts.iter().cloned().fold(test.sh(script)?, Bundle::mount);
            let bundle = if user { in_user_namespace(bundle)? } else { bundle };
            bundle.run()?.success()
        };
        for path in [&source, &below] {
            let owner = Some(if user { 100_000 } else { 0 });
            chown(path, owner, owner)?;
        }
        let look = "for f in /t/new /t/a/new /t/a/b/new; do touch $f 2>/dev/null && echo made || echo refused; done";
        let mounts = [tmpfs("/t", &["ro"]), bind("/t/a/b", &below, &["rbind"])];
        run(look, &mounts)?.stdout("refused\nrefused\nmade\n")?;
        let mounts = [bind("/t", &source, &["rbind", "ro"]), tmpfs("/t/a/b", &["size=64k"])];
        run(look, &mounts)?.stdout("refused\nrefused\nmade\n")?;
        fs::remove_dir_all(source.join("a"))?;
        fs::remove_file(below.join("new"))?;
        // A later mount wins.
        let again = json!({ "destination": "/t", "options": ["bind", "remount", "rw"] });
        if test.host.is_rt {
            let mounts = [tmpfs("/t", &["ro", "mode=777"]), again];
            run("touch /t/new && echo made", &mounts)?.stdout("made\n")?;
        }
    }
    Ok(())
}

fn read_only_comes_last_below_all_kinds(test: &Test) -> Outcome {
    // `rt` makes devices, a devpts and a working directory in mounts that become read-only.
    for user in [false, true] {
        let script = "test -c /dev/null && test -e /dev/pts/ptmx && echo there; touch /dev/new 2>/dev/null || echo refused; pwd";
        let bundle = test.sh(script)?.mount(tmpfs("/work", &["ro"])).edit(|config| {
            config["process"]["cwd"] = json!("/work/a/b");
            for mount in config["mounts"].as_array_mut().into_iter().flatten() {
                if mount["destination"] == "/dev" {
                    mount["options"] = json!(["nosuid", "ro", "mode=755"]);
                }
            }
        });
        let bundle = if user { in_user_namespace(bundle)? } else { bundle };
        bundle.run()?.success()?.stdout("there\nrefused\n/work/a/b\n")?;
    }
    // An option for all mounts below has the same effect: a mount that exists already stays
    // read-only.
    test.only_rt()?;
    let source = folder(test, "source")?;
    fs::create_dir(source.join("there"))?;
    let script = "for f in /v/new /v/there/new /v/made/new; do touch $f 2>/dev/null && echo made || echo refused; done";
    let bundle = test
        .sh(script)?
        .mount(bind("/v", &source, &["rbind", "rro"]))
        .mount(tmpfs("/v/made", &["mode=755"]));
    let output = run_after(test, &bundle, "mount -t tmpfs x \"$0/there\"", &source)?;
    output.success()?.stdout("refused\nrefused\nmade\n").map(drop)
}

fn a_relative_destination_begins_at_the_root(test: &Test) -> Outcome {
    let source = folder(test, "source")?;
    for (destination, place) in [
        ("rel", "/rel"),
        ("./a/b", "/a/b"),
        ("../x", "/x"),
        ("../../../../../../../y/z", "/y/z"),
        ("a/../w", "/w"),
    ] {
        let bundle = test.sh(&format!("cat {place}/file"))?;
        let bundle = bundle.mount(bind(destination, &source, &["rbind"]));
        let output = bundle.run()?.success()?.stdout("content\n")?;
        ensure(
            !test.host.is_rt || output.stderr.contains(&format!("`{destination}` is not absolute")),
            output.stderr,
        )?;
    }
    // A procfs may have a relative destination too. Its masks apply.
    let bundle = test.sh("cat /proc/version | wc -c")?.edit(|config| {
        config["mounts"][0]["destination"] = json!("proc");
        config["linux"]["maskedPaths"] = json!(["/proc/version"]);
    });
    bundle.run()?.success()?.stdout("0\n")?;
    let bundle = test.sh("true")?.mount(bind("", &source, &["rbind"]));
    bundle.try_create(&test.id())?.fails_with(if test.host.is_rt { "is empty" } else { "" })?;
    Ok(())
}

fn a_destination_can_begin_with_the_rootfs(test: &Test) -> Outcome {
    let source = folder(test, "source")?;
    for rest in ["data", "data/below", "etc/../data"] {
        let bundle = test.sh(&format!("cat /{rest}/file; ls / | grep -c tmp"))?;
        let destination = bundle.rootfs().join(rest).display().to_string();
        bundle
            .mount(bind(&destination, &source, &["rbind"]))
            .run()?
            .success()?
            .stdout("content\n1\n")?;
    }
    // The path of another directory that begins with the same letters is not in the rootfs.
    test.only_rt()?;
    let bundle = test.sh("true")?;
    let other = format!("{}-other", bundle.rootfs().display());
    let bundle = bundle.args(&["/bin/cat", &format!("{other}/file")]);
    bundle.mount(bind(&other, &source, &["rbind"])).run()?.success()?.stdout("content\n").map(drop)
}

fn options_of_cgroup2_are_not_passed_over(test: &Test) -> Outcome {
    test.only_rt()?;
    for own in [false, true] {
        let with = |kind: &str, option: &str| -> Outcome<Bundle<'_>> {
            let options = ["nosuid", "noexec", "nodev", "ro", option];
            let bundle = test.sh("exec true")?.mount(json!({
                "destination": "/sys/fs/cgroup", "type": kind, "source": "cgroup", "options": options,
            }));
            Ok(if own { bundle.namespace(json!({ "type": "cgroup" })) } else { bundle })
        };
        for option in ["nsdelegate", "memory_recursiveprot", "memory_localevents"] {
            with("cgroup2", option)?.run()?.success()?;
        }
        for option in ["nsdelegat", "size=1", "nsdelegate=1x", "memory_recursiveprot_"] {
            with("cgroup2", option)?
                .try_create(&test.id())?
                .fails_with("mount `/sys/fs/cgroup`: set option `")?;
        }
        let output = with("cgroup", "no-such-option")?.try_create(&test.id())?;
        output.fails_with("no-such-option")?;
    }
    Ok(())
}

/// Runs a bundle with limits of open files.
fn limited(test: &Test, limit: &str, bundle: &Bundle<'_>) -> Outcome<Output> {
    bundle.write()?;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"]).arg(&test.host.runtime);
    command.arg("--root").arg(test.state_root()).args(bundle.command_line("run", &test.id()));
    Output::of(command)
}

fn hundreds_of_mounts_need_few_descriptors(test: &Test) -> Outcome {
    let source = folder(test, "source")?;
    let script = "grep -c ' /m/' /proc/mounts; ulimit -Sn; cat /m/7/file";
    for (limit, count, soft, options, user) in [
        ("-Sn 256", 300, 256, &["rbind"][..], true),
        ("-Sn 256", 300, 256, &["rbind", "ro"], true),
        ("-Sn 1024", 1100, 1024, &["rbind"], true),
        ("-Sn 256", 300, 256, &["rbind", "ro"], false),
        // A hard limit, which only a privileged process can raise.
        ("-n 256", 300, 256, &["rbind", "ro"], true),
    ] {
        let mut bundle = test.sh(script)?;
        for number in 0..count {
            bundle = bundle.mount(bind(&format!("/m/{number}"), &source, options));
        }
        let bundle = if user { in_user_namespace(bundle)? } else { bundle };
        let expected = format!("{count}\n{soft}\ncontent\n");
        limited(test, limit, &bundle)?.success()?.stdout(&expected)?;
    }
    Ok(())
}

fn descriptors_are_the_callers_again(test: &Test) -> Outcome {
    let source = folder(test, "source")?;
    let mut bundle = in_user_namespace(test.sh("true")?)?;
    for number in 0..300 {
        bundle = bundle.mount(bind(&format!("/m/{number}"), &source, &["rbind", "ro"]));
    }
    let said = |name: &str| test.folder.join(name);
    let hook = |name: &str| {
        let script = format!("ulimit -Sn > {}", said(name).display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    for name in ["createContainer", "createRuntime", "poststart", "poststop"] {
        // The container's root writes to this file.
        fs::write(said(name), "")?;
        fs::set_permissions(said(name), fs::Permissions::from_mode(0o666))?;
        bundle = bundle.edit(|config| config["hooks"][name] = hook(name));
    }
    limited(test, "-Sn 256", &bundle)?.success()?;
    for name in ["createContainer", "createRuntime", "poststart", "poststop"] {
        ensure_eq((name, fs::read_to_string(said(name))?.as_str()), (name, "256\n"))?;
    }
    Ok(())
}

/// A source that is mounted with a flag, and the flag that a container sees with each option.
fn access_times(test: &Test, below: bool, cases: &[(&str, [&str; 3])]) -> Outcome {
    let source = folder(test, "source")?;
    for (number, flag) in ["relatime", "noatime", "strictatime"].into_iter().enumerate() {
        for (options, expected) in cases {
            let options: Vec<&str> =
                ["rbind"].into_iter().chain(options.split_whitespace()).collect();
            let place = if below { "/v/below" } else { "/v" };
            let bundle = test.sh(&format!(
                "grep ' {place} ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f2-"
            ))?;
            let bundle = bundle.mount(bind("/v", &source, &options));
            let script = format!(
                "mount -t tmpfs -o {flag} x \"$0\"; mkdir \"$0/below\"; mount -t tmpfs -o {flag} x \"$0/below\""
            );
            let output = run_after(test, &bundle, &script, &source)?.success()?;
            // The kernel shows nothing for `strictatime`.
            let seen = output.stdout.trim().replace("rw", "strictatime");
            ensure_eq((flag, &options, seen.as_str()), (flag, &options, expected[number]))?;
        }
    }
    Ok(())
}

/// Each case has the expected results for a source with relatime, noatime and strictatime.
fn access_times_are_kept_as_mount_says(test: &Test) -> Outcome {
    const OF_SOURCE: [&str; 3] = ["relatime", "noatime", "strictatime"];
    access_times(
        test,
        false,
        &[
            ("", OF_SOURCE),
            ("atime", OF_SOURCE),
            ("norelatime", OF_SOURCE),
            ("nostrictatime", OF_SOURCE),
            ("noatime", ["noatime"; 3]),
            ("relatime", ["relatime"; 3]),
            ("strictatime", ["strictatime"; 3]),
            ("noatime relatime", ["noatime"; 3]),
            ("strictatime noatime", ["strictatime"; 3]),
        ],
    )
}

fn access_times_below_are_kept_as_mount_says(test: &Test) -> Outcome {
    access_times(
        test,
        true,
        &[
            ("rnorelatime", ["relatime"; 3]),
            ("ratime", ["relatime"; 3]),
            ("rnoatime", ["noatime"; 3]),
            ("rstrictatime", ["strictatime"; 3]),
            ("rnoatime rrelatime", ["noatime"; 3]),
        ],
    )
}

fn a_source_of_an_earlier_mount_can_be_mapped(test: &Test) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    test.only_rt()?;
    let source = folder(test, "source")?;
    chown(source.join("file"), Some(1000), Some(1000))?;
    let ids = json!([{ "containerID": 1000, "hostID": 7, "size": 1 }, { "containerID": 0, "hostID": 0, "size": 1 }]);
    let mapped = |mut mount: Value| {
        mount["uidMappings"] = ids.clone();
        mount["gidMappings"] = ids.clone();
        mount
    };
    // The mount point may also exist on the host, as an empty directory.
    for there in [false, true] {
        let bundle = test.sh("stat -c %u:%g /v/file; cat /v/file")?;
        let rootfs = bundle.rootfs();
        if there {
            fs::create_dir(rootfs.join("a"))?;
        }
        let mount = mapped(bind("/v", &rootfs.join("a"), &["rbind"]));
        let bundle = bundle.mount(bind("/a", &source, &["rbind"])).mount(mount);
        bundle.run()?.success()?.stdout("7:7\ncontent\n")?;
    }
    let bundle = test.sh("stat -c %u /v/file; touch /v/new")?;
    let rootfs = bundle.rootfs();
    chown(&source, Some(0), Some(0))?;
    chown(source.join("file"), Some(0), Some(0))?;
    let bundle = in_user_namespace(bundle)?.mount(bind("/a", &source, &["rbind"])).mount(bind(
        "/v",
        &rootfs.join("a"),
        &["bind", "idmap"],
    ));
    bundle.run()?.success()?.stdout("0\n")?;
    ensure_eq(fs::metadata(source.join("new"))?.uid(), 0)
}

/// The path of the source is relative.
fn a_tmpfs_of_the_containers_can_be_mapped(test: &Test) -> Outcome {
    test.only_rt()?;
    super::mounts::needs_a_mappable_tmpfs()?;
    let ids = json!([{ "containerID": 0, "hostID": 5, "size": 1 }]);
    let bundle = test.sh("stat -c %u /v")?.mount(tmpfs("/a", &[])).mount(json!({
        "destination": "/v", "type": "bind", "source": "rootfs/a", "options": ["bind"], "uidMappings": ids, "gidMappings": ids,
    }));
    bundle.run()?.success()?.stdout("5\n").map(drop)
}

fn what_is_listed_twice_is_protected_once(test: &Test) -> Outcome {
    test.only_rt()?;
    let script = "for p in /etc/file /etc/folder /etc/fixed; do grep -c \" $p \" /proc/self/mountinfo; done; cat /etc/file; ls /etc/folder; touch /etc/fixed/new 2>/dev/null || echo refused";
    let bundle = test
        .sh(script)?
        .file("/etc/file", "secret")?
        .file("/etc/folder/secret", "")?
        .file("/etc/fixed/file", "")?;
    symlink("/etc/folder", bundle.rootfs().join("link"))?;
    let bundle = bundle.edit(|config| {
        config["linux"]["maskedPaths"] = json!([
            "/etc/file",
            "/etc/file",
            "/etc/../etc/file",
            "/etc/folder",
            "/etc//folder/",
            "/link"
        ]);
        config["linux"]["readonlyPaths"] =
            json!(["/etc/fixed", "/etc/fixed", "/etc/folder", "/etc/./fixed"]);
    });
    bundle.run()?.success()?.stdout("1\n1\n1\nrefused\n")?;
    // `rt` looks up the kernel's files in two ways.
    let bundle = test.sh("grep -c ' /proc/version ' /proc/self/mountinfo; cat /proc/version")?;
    let bundle = bundle.edit(|config| {
        config["linux"]["maskedPaths"] =
            json!(["/proc/version", "/proc/version", "/proc/../proc/version"]);
    });
    bundle.run()?.success()?.stdout("1\n").map(drop)
}

/// The image's `/dev` is a link. `rt` makes the devices at the target of the link inside the
/// rootfs.
fn a_linked_dev_stays_inside(test: &Test) -> Outcome {
    let outside = test.folder.join("outside");
    fs::create_dir(&outside)?;
    for target in [
        outside.display().to_string(),
        "../../outside".to_owned(),
        "/../../outside".to_owned(),
        "/real".to_owned(),
        "real/../real".to_owned(),
    ] {
        for mounted in [false, true] {
            let bundle =
                test.sh("test -c /dev/null && echo x > /dev/null && test -L /dev && echo there")?;
            fs::create_dir(bundle.rootfs().join("real"))?;
            fs::remove_dir(bundle.rootfs().join("dev"))?;
            symlink(&target, bundle.rootfs().join("dev"))?;
            let bundle = bundle.edit(|config| {
                if let (Some(mounts), false) = (config["mounts"].as_array_mut(), mounted) {
                    mounts.retain(|mount| {
                        !mount["destination"].as_str().is_some_and(|it| it.starts_with("/dev"))
                    });
                }
                config["linux"]["devices"] =
                    json!([{ "path": "/dev/sub/mine", "type": "c", "major": 1, "minor": 3 }]);
            });
            bundle.run()?.success()?.stdout("there\n")?;
            ensure_eq(fs::read_dir(&outside)?.count(), 0)?;
        }
    }
    // If `/dev` leads to `/proc`, no node can be made there, and `rt` mounts nothing there.
    test.only_rt()?;
    for mounted in [false, true] {
        let bundle = test.sh("true")?;
        fs::remove_dir(bundle.rootfs().join("dev"))?;
        symlink("/proc", bundle.rootfs().join("dev"))?;
        let bundle = bundle.edit(|config| {
            if let (Some(mounts), false) = (config["mounts"].as_array_mut(), mounted) {
                mounts.truncate(1);
            }
        });
        let words = if mounted { "only a procfs" } else { "make device `/dev/null`" };
        bundle.try_create(&test.id())?.fails_with(words)?;
    }
    Ok(())
}
