//! Input that must fail: with one line, without leftovers, and without harm to what exists. The
//! harness checks for leftovers after every test.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};

use crate::harness::{
    Bundle, Outcome, Output, Test, copy_program, ensure, ensure_eq, skip, wait_until,
};

super::tests! { "bad_input":
    a_bundle_that_is_not_there, a_bundle_without_a_configuration, broken_json_is_told_with_line_and_column,
    what_must_be_configured_is_named, every_1_x_is_accepted_and_nothing_else, a_rootfs_that_is_not_there,
    a_program_that_is_not_there, a_program_that_is_not_in_path, a_program_that_may_not_be_run, a_directory_as_program,
    a_program_in_no_format, a_bad_name, a_name_that_is_taken, an_unknown_name, starting_twice, killing_what_has_ended,
    an_unknown_signal, a_console_socket_nobody_listens_on, a_terminal_that_nobody_takes, a_console_nobody_asked_for,
    a_pid_file_in_no_folder, a_million_descriptors, a_log_that_cannot_be_written, the_log_gets_the_error_as_json,
    the_log_gets_the_error_as_text, a_mount_that_fails_undoes_the_container, a_namespace_that_is_not_there, what_the_kernel_refuses_is_named,
    a_sysctl_of_the_hosts, a_newer_state_is_left_alone, a_damaged_state_can_be_removed, the_log_gets_what_is_wrong_with_a_flag, an_existing_container_is_not_harmed,
    a_bad_cgroup_path, a_cgroup_in_use, a_configuration_without_linux, mounts_without_a_mount_namespace, names_without_a_namespace, an_id_that_is_none,
    what_cannot_be_set_is_named, deleting_what_is_being_created, an_engine_without_its_program,
    files_of_an_enormous_size, a_limit_that_is_listed_twice, time_offsets_without_a_time_namespace,
    a_scheduler_that_cannot_be, an_enormous_environment, a_million_limits, twenty_thousand_masks, a_deep_configuration,
}

/// `create` fails with these words and no further output, and leaves no state.
fn create_fails(bundle: &Bundle<'_>, words: &str) -> Outcome {
    let id = bundle.test.id();
    let output = bundle.try_create(&id)?;
    if !bundle.test.host.is_rt {
        return ensure(output.code != Some(0), "it was created");
    }
    let output = output.fails_with(words)?;
    ensure(output.stderr.starts_with(&format!("rt: create `{id}`: ")), &output.stderr)?;
    ensure_eq(output.stdout.as_str(), "")?;
    let states = fs::read_dir(bundle.test.state_root()).into_iter().flatten().count();
    ensure_eq(states, 0)
}

fn a_bundle_that_is_not_there(test: &Test) -> Outcome {
    test.only_rt()?;
    test.rt(["create", "--bundle", "/not/there", "c"])?
        .fails_with("rt: create `c`: open bundle `/not/there`: No such file or directory")
        .map(drop)
}

fn a_bundle_without_a_configuration(test: &Test) -> Outcome {
    test.only_rt()?;
    let folder = test.folder.display().to_string();
    test.rt(["create", "--bundle", &folder, "c"])?
        .fails_with(&format!(
            "rt: create `c`: open bundle `{folder}`: read `config.json`: No such file or directory"
        ))
        .map(drop)
}

fn broken_json_is_told_with_line_and_column(test: &Test) -> Outcome {
    test.only_rt()?;
    fs::write(test.folder.join("config.json"), "{\n  \"ociVersion\": \"1.0.2\",\n}")?;
    let folder = test.folder.display().to_string();
    test.rt(["create", "--bundle", &folder, "c"])?.fails_with("at line 3 column 1").map(drop)
}

fn what_must_be_configured_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    for (key, words) in [
        ("ociVersion", "`ociVersion` is missing"),
        ("root", "`root` is missing"),
        ("process", "`process` is missing"),
    ] {
        let bundle = test.sh("true")?.edit(|config| {
            if let Some(config) = config.as_object_mut() {
                config.remove(key);
            }
        });
        create_fails(&bundle, words)?;
    }
    create_fails(&test.linux(&[])?, "`process.args` is empty")?;
    let bundle = test.sh("true")?.edit(|config| config["process"]["cwd"] = json!("relative"));
    create_fails(&bundle, "is not absolute")
}

fn every_1_x_is_accepted_and_nothing_else(test: &Test) -> Outcome {
    test.only_rt()?;
    for version in ["1.0.0", "1.2.1", "1.3.0", "1.99.0-dev"] {
        test.sh("true")?.edit(|config| config["ociVersion"] = json!(version)).run()?.success()?;
    }
    for version in ["0.5.0", "2.0.0", "10.0", "x"] {
        create_fails(
            &test.sh("true")?.edit(|config| config["ociVersion"] = json!(version)),
            "is not 1.x",
        )?;
    }
    Ok(())
}

fn a_rootfs_that_is_not_there(test: &Test) -> Outcome {
    create_fails(
        &test.sh("true")?.edit(|config| config["root"]["path"] = json!("elsewhere")),
        "No such file or directory",
    )
}

fn a_program_that_is_not_there(test: &Test) -> Outcome {
    create_fails(
        &test.linux(&["/no/such/program"])?,
        "`/no/such/program`: no such file or directory",
    )
}

fn a_program_that_is_not_in_path(test: &Test) -> Outcome {
    create_fails(
        &test.linux(&["no-such-program"])?,
        "`no-such-program`: executable file not found in $PATH",
    )
}

fn a_program_that_may_not_be_run(test: &Test) -> Outcome {
    create_fails(
        &test.linux(&["/data"])?.file("/data", "#!/bin/sh\n")?,
        "`/data`: permission denied",
    )
}

fn a_directory_as_program(test: &Test) -> Outcome {
    create_fails(&test.linux(&["/bin"])?, "is a directory: permission denied")
}

fn a_program_in_no_format(test: &Test) -> Outcome {
    test.only_rt()?;
    if fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.count() > 2) {
        return skip("formats are registered with binfmt_misc here");
    }
    let bundle = test.linux(&["/data"])?.file("/data", "just a text")?;
    fs::set_permissions(
        bundle.rootfs().join("data"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    create_fails(&bundle, "neither an ELF program nor a `#!` script")
}

fn a_bad_name(test: &Test) -> Outcome {
    let bundle = test.sh("true")?;
    let long = "x".repeat(256);
    for id in ["", "..", ".", "/", "a/b", "a b", &long] {
        let output = bundle.try_create(id)?;
        ensure(output.code != Some(0), format!("{id:?} was taken"))?;
        ensure(
            !test.host.is_rt || output.stderr.contains("invalid container ID format"),
            output.stderr,
        )?;
    }
    Ok(())
}

fn a_name_that_is_taken(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    bundle.try_create(&container.id)?.fails_with("already exists")?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn an_unknown_name(test: &Test) -> Outcome {
    for command in ["state", "start", "delete", "kill"] {
        test.rt([command, "nobody"])?.fails_with("does not exist")?;
    }
    Ok(())
}

fn starting_twice(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    let again = container.rt(&["start"])?;
    if test.host.is_rt {
        again.fails_with("cannot start an already running container").map(drop)
    } else {
        ensure(again.code != Some(0), "started")
    }
}

fn killing_what_has_ended(test: &Test) -> Outcome {
    let container = test.sh("true")?.start()?;
    container.wait()?;
    container.rt(&["kill"])?.fails_with("container not running").map(drop)
}

fn an_unknown_signal(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    for signal in ["NOSUCH", "65", "-1"] {
        ensure(test.rt(["kill", &container.id, signal])?.code != Some(0), signal)?;
    }
    ensure_eq(container.status()?.as_str(), "running")
}

fn a_console_socket_nobody_listens_on(test: &Test) -> Outcome {
    let bundle = test.sh("true")?.edit(|config| config["process"]["terminal"] = json!(true));
    let flag = |path: &str| bundle.clone().flag(format!("--console-socket={path}"));
    create_fails(
        &flag("/no/such/socket"),
        "open the console socket: connect to `/no/such/socket`: No such file or directory",
    )?;
    let path = test.folder.join("dead");
    drop(UnixListener::bind(&path)?);
    create_fails(&flag(&path.display().to_string()), "`: Connection refused")?;
    // The queue of this socket is full, so nobody accepts the connection.
    let path = test.folder.join("full");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
    rustix::net::listen(&listener, 0)?;
    let _first = UnixStream::connect(&path)?;
    create_fails(&flag(&path.display().to_string()), "nobody has taken the connection within 10 s")
}

fn a_terminal_that_nobody_takes(test: &Test) -> Outcome {
    create_fails(
        &test.sh("true")?.edit(|config| config["process"]["terminal"] = json!(true)),
        "console-socket",
    )
}

fn a_console_nobody_asked_for(test: &Test) -> Outcome {
    create_fails(
        &test.sh("true")?.flag("--console-socket=/no/such/socket"),
        "`process.terminal` is not set",
    )
}

fn a_pid_file_in_no_folder(test: &Test) -> Outcome {
    create_fails(
        &test.sh("true")?.flag("--pid-file=/no/such/folder/pid"),
        "write pid file `/no/such/folder/pid`: No such file or directory",
    )
}

fn a_million_descriptors(test: &Test) -> Outcome {
    test.only_rt()?;
    for number in ["1", "1000000", "4294967295"] {
        let bundle = test.sh("true")?.flag(format!("--preserve-fds={number}"));
        let said = format!("`--preserve-fds` {number}: descriptor 3 is not open");
        bundle.write()?;
        let create = test.command(bundle.command_line("create", "c"));
        // The process that has started the tests may have left descriptor 3 open.
        let mut closed = Command::new("sh");
        closed.args(["-c", "exec \"$@\" 3>&-", "sh"]);
        closed.arg(create.get_program()).args(create.get_args());
        Output::of(closed)?.fails_with(&said)?;
    }
    Ok(())
}

fn a_log_that_cannot_be_written(test: &Test) -> Outcome {
    test.rt(["--log", "/no/such/folder/log", "state", "c"])?
        .fails_with("/no/such/folder/log")
        .map(drop)
}

/// The log of a failing command.
fn log_of_failure(test: &Test, format: &str) -> Outcome<String> {
    let log = test.folder.join("log");
    let log_flag = format!("--log={}", log.display());
    test.rt([&log_flag, format, "state", "nobody"])?.fails_with("does not exist")?;
    Ok(fs::read_to_string(log)?)
}

fn the_log_gets_the_error_as_json(test: &Test) -> Outcome {
    let log = log_of_failure(test, "--log-format=json")?;
    // podman parses the whole file as one object.
    let entry: Value = serde_json::from_str(&log)?;
    ensure_eq(entry["level"].as_str(), Some("error"))?;
    ensure(entry["msg"].as_str().is_some_and(|message| message.contains("does not exist")), &log)?;
    ensure(entry["time"].as_str().is_some_and(|time| time.contains('T')), log)
}

fn the_log_gets_the_error_as_text(test: &Test) -> Outcome {
    let log = log_of_failure(test, "--log-format=text")?;
    ensure(log.contains("does not exist") && log.lines().count() == 1, log)
}

fn a_mount_that_fails_undoes_the_container(test: &Test) -> Outcome {
    let bundle =
        test.sh("true")?.mount(json!({ "destination": "/x", "type": "nosuchfs", "source": "x" }));
    create_fails(&bundle, "mount `/x`: open filesystem type `nosuchfs`: No such device")?;
    let bundle = test.sh("true")?.mount(
        json!({ "destination": "/x", "type": "tmpfs", "source": "x", "options": ["size=many"] }),
    );
    create_fails(&bundle, "mount `/x`: set option `size`")?;
    let bundle = test
        .sh("true")?
        .mount(json!({ "destination": "/x", "source": "/no/such", "options": ["bind"] }));
    create_fails(&bundle, "open source `/no/such`: No such file or directory")
}

fn a_namespace_that_is_not_there(test: &Test) -> Outcome {
    create_fails(
        &test.sh("true")?.namespace(json!({ "type": "network", "path": "/no/such/namespace" })),
        "open network namespace `/no/such/namespace`: No such file or directory",
    )?;
    // A namespace of another kind.
    create_fails(
        &test.sh("true")?.namespace(json!({ "type": "network", "path": "/proc/self/ns/uts" })),
        "join the network namespace `/proc/self/ns/uts`: Invalid argument",
    )?;
    create_fails(
        &test.sh("true")?.namespace(json!({ "type": "user", "path": "/etc/passwd" })),
        "join the user namespace `/etc/passwd`: Invalid argument",
    )
}

/// An error names the property of the configuration, and not only the kernel's error.
fn what_the_kernel_refuses_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    let users = |uids: Value, gids: Value| -> Outcome<Bundle<'_>> {
        Ok(test.sh("true")?.namespace(json!({ "type": "user" })).edit(|config| {
            config["linux"]["uidMappings"] = uids;
            config["linux"]["gidMappings"] = gids;
        }))
    };
    let one = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let twice = json!([one[0], one[0]]);
    let none = json!([{ "containerID": 0, "hostID": 0, "size": 0 }]);
    create_fails(&users(twice.clone(), one.clone())?, "write `uidMappings`")?;
    create_fails(&users(one.clone(), twice)?, "write `gidMappings`")?;
    create_fails(&users(none, one)?, "write `uidMappings`")?;
    let score = |score: i32| -> Outcome<Bundle<'_>> {
        Ok(test.sh("true")?.edit(|config| config["process"]["oomScoreAdj"] = json!(score)))
    };
    create_fails(&score(1001)?, "`oomScoreAdj`, 1001,")?;
    create_fails(&score(-1001)?, "`oomScoreAdj`, -1001,")
}

fn a_sysctl_of_the_hosts(test: &Test) -> Outcome {
    for name in ["kernel.panic", "vm.swappiness", "net/../kernel/panic"] {
        create_fails(
            &test.sh("true")?.edit(|config| config["linux"]["sysctl"] = json!({ name: "1" })),
            "sysctl",
        )?;
    }
    Ok(())
}

fn a_newer_state_is_left_alone(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let file = test.state_root().join(&container.id).join("state.json");
    let before = fs::read_to_string(&file)?;
    let mut state: Value = serde_json::from_str(&before)?;
    state["version"] = json!(1000);
    fs::write(&file, state.to_string())?;
    container.rt(&["delete", "--force"])?.fails_with("written by a newer rt")?;
    fs::write(&file, before)?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn a_damaged_state_can_be_removed(test: &Test) -> Outcome {
    test.only_rt()?;
    for damage in ["", "{", "{}", "\0\0\0", r#"{"version":1,"pid":"x"}"#] {
        let container = test.sh("exec sleep 60")?.start()?;
        let process = format!("/proc/{}", container.pid()?);
        let file = test.state_root().join(&container.id).join("state.json");
        fs::write(&file, damage)?;
        container.rt(&["state"])?.fails_with("state.json")?;
        container.rt(&["delete"])?.fails_with("state.json")?;
        ensure(Path::new(&process).exists(), "it was killed without --force")?;
        container.rt(&["delete", "--force"])?.success()?;
        wait_until("its process has ended", || !Path::new(&process).exists())?;
    }
    Ok(())
}

fn the_log_gets_what_is_wrong_with_a_flag(test: &Test) -> Outcome {
    test.only_rt()?;
    let log = test.folder.join("log");
    let log_flag = format!("--log={}", log.display());
    test.rt([&log_flag, "--log-format=json", "list", "--no-such-flag"])?
        .fails_with("no-such-flag")?;
    let entry: Value = serde_json::from_str(&fs::read_to_string(log)?)?;
    ensure(entry["msg"].as_str().is_some_and(|message| message.contains("no-such-flag")), entry)
}

fn an_existing_container_is_not_harmed(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let failing = test.linux(&["/no/such/program"])?;
    let output: Output = failing.try_create(&test.id())?;
    ensure(output.code != Some(0), "it was created")?;
    ensure(failing.try_create(&container.id)?.code != Some(0), "it was created")?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn a_bad_cgroup_path(test: &Test) -> Outcome {
    test.only_rt()?;
    create_fails(
        &test.sh("true")?.edit(|config| config["linux"]["cgroupsPath"] = json!("/../../outside")),
        "`..`",
    )?;
    for root in ["/", "//", ".", "/."] {
        let bundle = test.sh("true")?.edit(|config| config["linux"]["cgroupsPath"] = json!(root));
        create_fails(&bundle, "is the root")?;
    }
    Ok(())
}

/// A second container with the same cgroup must not touch the processes of the first, even if
/// `create` fails.
fn a_cgroup_in_use(test: &Test) -> Outcome {
    test.only_rt()?;
    let name = test.id();
    let shared = |config: &mut Value| config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    let container = test.sh("exec sleep 60")?.edit(shared).start()?;
    let second = test.linux(&["/no/such/program"])?.edit(shared);
    second.try_create(&test.id())?.fails_with("is not empty")?;
    ensure_eq(container.status()?.as_str(), "running")?;
    container.rt(&["delete", "--force"])?.success().map(drop)
}

/// Without a mount namespace, the mounts would be on the host, and would stay there.
fn mounts_without_a_mount_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    let tmpfs = json!([{ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }]);
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    for (mounts, masked, fixed) in [
        (tmpfs, json!([]), json!([])),
        (json!([]), json!(["/etc/passwd"]), json!([])),
        (json!([]), json!([]), json!(["/proc/sys"])),
    ] {
        let bundle = test.sh("true")?.edit(|config| {
            config["mounts"] = mounts;
            config["linux"]["maskedPaths"] = masked;
            config["linux"]["readonlyPaths"] = fixed;
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "mount");
            }
        });
        create_fails(&bundle, "need a mount namespace of the container's own")?;
    }
    ensure_eq(fs::read_to_string("/proc/self/mountinfo")?, before)
}

/// Without `linux`, the container has no namespace of its own. So `rt` must refuse settings that
/// would change the host.
fn a_configuration_without_linux(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?.edit(|config| {
        config.as_object_mut().map(|config| config.remove("linux"));
    });
    create_fails(&bundle, "need a mount namespace of the container's own")?;
    let bundle = bundle.edit(|config| {
        config.as_object_mut().map(|config| config.remove("mounts"));
    });
    create_fails(
        &bundle.edit(|config| config["hostname"] = json!("changed")),
        "`hostname` needs a uts namespace",
    )
}

fn names_without_a_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    for name in ["hostname", "domainname"] {
        let bundle = test.sh("true")?.edit(|config| {
            config[name] = json!("changed");
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "uts");
            }
        });
        create_fails(&bundle, &format!("`{name}` needs a uts namespace"))?;
    }
    ensure(
        !fs::read_to_string("/proc/sys/kernel/hostname")?.contains("changed"),
        "the host was renamed",
    )
}

/// To the kernel, this id is -1, which means no change. The process would stay root.
fn an_id_that_is_none(test: &Test) -> Outcome {
    test.only_rt()?;
    for user in [
        json!({ "uid": u32::MAX, "gid": 0 }),
        json!({ "uid": 0, "gid": u32::MAX }),
        json!({ "uid": 0, "gid": 0, "additionalGids": [u32::MAX] }),
    ] {
        create_fails(
            &test.sh("true")?.edit(|config| config["process"]["user"] = user),
            "which is not an id",
        )?;
    }
    Ok(())
}

fn what_cannot_be_set_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    let scheduler = json!({ "policy": "SCHED_BATCH", "priority": -1 });
    let bundle = test.sh("true")?.edit(|config| config["process"]["scheduler"] = scheduler);
    create_fails(&bundle, "`process.scheduler.priority` is -1")?;
    let priority = json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 });
    let bundle = test.sh("true")?.edit(|config| config["process"]["ioPriority"] = priority);
    create_fails(&bundle, "`ioPriority.priority` 8 is not 0 to 7")?;
    let policy = json!({ "mode": "MPOL_BIND", "nodes": "" });
    let bundle = test.sh("true")?.edit(|config| config["linux"]["memoryPolicy"] = policy);
    create_fails(&bundle, "set `linux.memoryPolicy`: ")?;
    let devices = json!({ "no-such-device": {} });
    let bundle = test.sh("true")?.edit(|config| config["linux"]["netDevices"] = devices);
    create_fails(&bundle, "move network device `no-such-device`: No such device")?;
    let devices = json!({ "lo": { "name": "a/b" } });
    let bundle = test.sh("true")?.edit(|config| config["linux"]["netDevices"] = devices);
    create_fails(&bundle, "`a/b` is not the name of a network device")?;
    if fs::read_to_string("/proc/self/mountinfo")?.contains(" - resctrl ") {
        return Ok(());
    }
    let bundle =
        test.sh("true")?.edit(|config| config["linux"]["intelRdt"] = json!({ "closID": "x" }));
    create_fails(&bundle, "needs the resctrl filesystem, which is not mounted")
}

fn deleting_what_is_being_created(test: &Test) -> Outcome {
    test.only_rt()?;
    let started = test.folder.join("started");
    let script = format!("touch {}; sleep 1", started.display());
    let hook =
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] });
    let bundle = test
        .sh("exec sleep 60")?
        .edit(|config| config["hooks"] = json!({ "createRuntime": [hook] }));
    let id = test.id();
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| bundle.try_create(&id));
        wait_until("the hook runs", || started.exists())?;
        test.rt(["delete", &id])?.fails_with("another process is creating or deleting it")?;
        creation.join().map_err(|_| "a panic")??.success()?;
        test.rt(["state", &id])?.success().map(drop)
    })
}

fn an_engine_without_its_program(test: &Test) -> Outcome {
    test.only_rt()?;
    let prefix = test.folder.join("prefix");
    let engine = prefix.join("libexec/rt/wasmedge");
    fs::create_dir_all(prefix.join("bin"))?;
    fs::create_dir_all(&engine)?;
    copy_program(&test.host.runtime, prefix.join("bin/rt"))?;
    fs::write(
        engine.join("engine.json"),
        r#"{"contract":2,"name":"wasmedge","version":"1","program":"not-there"}"#,
    )?;
    let bundle = test.wasm("hello", &[])?;
    bundle.write()?;
    let mut command = Command::new(prefix.join("bin/rt"));
    command
        .arg("--root")
        .arg(test.state_root())
        .args(["create", "--bundle"])
        .arg(&bundle.folder)
        .arg(test.id());
    Output::of(command)?.fails_with("find `not-there`: No such file or directory").map(drop)
}

/// Files from the caller and the administrator's file. A sparse file can claim any size.
fn files_of_an_enormous_size(test: &Test) -> Outcome {
    test.only_rt()?;
    let large = test.folder.join("large");
    fs::File::create(&large)?.set_len(1 << 30)?;
    let large = large.display().to_string();
    let words = "it is larger than 268435456 bytes";
    let bundle = test.sh("exec sleep 60")?;
    create_fails(&bundle.clone().flag(format!("--config={large}")), words)?;
    let container = bundle.start()?;
    for args in [
        ["exec", "--process", &large, &container.id],
        ["update", "--resources", &large, &container.id],
    ] {
        test.rt(args)?.fails_with(words)?;
    }
    test.rt(["mounts", "add", &container.id, &large])?.fails_with(words)?;
    let mut update = test.command(["update", "--resources", "-", &container.id]);
    update.stdin(fs::File::open(&large)?);
    let said = update.output()?;
    ensure(String::from_utf8_lossy(&said.stderr).contains(words), "an update of standard input")?;
    let module = test.wasm("hello", &[])?;
    fs::rename(&large, test.folder.join("wasm.json"))?;
    module.try_create(&test.id())?.fails_with(words).map(drop)
}

fn a_limit_that_is_listed_twice(test: &Test) -> Outcome {
    test.only_rt()?;
    let limit =
        |kind: &str, soft: u64, hard: u64| json!({ "type": kind, "soft": soft, "hard": hard });
    let (files, core) = (limit("RLIMIT_NOFILE", 99, 100), limit("RLIMIT_CORE", 0, 0));
    for (limits, words) in [
        (json!([files, files]), "`process.rlimits[1]`: RLIMIT_NOFILE is listed twice"),
        (
            json!([core, files, limit("RLIMIT_CORE", 1, 2)]),
            "`process.rlimits[2]`: RLIMIT_CORE is listed twice",
        ),
        (
            json!([core, limit("RLIMIT_NPROC", 5, 4)]),
            "`process.rlimits[1]`: RLIMIT_NPROC has the soft limit 5",
        ),
    ] {
        let bundle = test.sh("true")?.edit(|config| config["process"]["rlimits"] = limits);
        create_fails(&bundle, words)?;
    }
    Ok(())
}

fn time_offsets_without_a_time_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    let offsets = json!({ "boottime": { "secs": 5, "nanosecs": 0 } });
    let set = |config: &mut Value| config["linux"]["timeOffsets"] = offsets.clone();
    create_fails(
        &test.sh("true")?.edit(set),
        "`linux.timeOffsets` needs a new time namespace in `linux.namespaces`",
    )?;
    for (offsets, words) in [
        (json!({ "realtime": { "secs": 1 } }), "the clock `realtime`"),
        (json!({ "boottime": { "secs": 1 }, "Monotonic": { "secs": 1 } }), "the clock `Monotonic`"),
        (
            json!({ "monotonic": { "secs": 1, "nanosecs": 1_000_000_000 } }),
            "`linux.timeOffsets.monotonic.nanosecs`",
        ),
    ] {
        let bundle = test.sh("true")?.namespace(json!({ "type": "time" }));
        create_fails(&bundle.edit(|config| config["linux"]["timeOffsets"] = offsets), words)?;
    }
    let words = "and `linux.namespaces` names one to join";
    let first = test.sh("exec sleep 60")?.namespace(json!({ "type": "time" })).start()?;
    for path in [format!("/proc/{}/ns/time", first.pid()?), "/proc/self/ns/time".to_owned()] {
        let bundle = test.sh("true")?.namespace(json!({ "type": "time", "path": path }));
        let output = bundle.edit(set).try_create(&test.id())?;
        output.fails_with(words)?;
    }
    // This map is empty.
    let bundle = test.sh("true")?.edit(|config| config["linux"]["timeOffsets"] = json!({}));
    bundle.run()?.success().map(drop)
}

fn a_scheduler_that_cannot_be(test: &Test) -> Outcome {
    test.only_rt()?;
    let deadline = |runtime: u64, deadline: u64, period: u64| json!({ "policy": "SCHED_DEADLINE", "runtime": runtime, "deadline": deadline, "period": period });
    for (scheduler, words) in [
        (deadline(0, 2000, 3000), "`process.scheduler.runtime` is missing, or 0"),
        (deadline(1024, 0, 3000), "`process.scheduler.deadline` is missing, or 0"),
        (deadline(1023, 2000, 3000), "`process.scheduler.runtime` is 1023, less than 1024 ns"),
        (
            deadline(2001, 2000, 3000),
            "`process.scheduler.runtime` is 2001, more than `deadline`, 2000",
        ),
        (
            deadline(1024, 3001, 3000),
            "`process.scheduler.deadline` is 3001, more than `period`, 3000",
        ),
        (
            deadline(1024, 2000, 1 << 63),
            "`process.scheduler.period` is 9223372036854775808, 2^63 ns or more",
        ),
        (
            json!({ "policy": "SCHED_OTHER", "runtime": 5 }),
            "`process.scheduler.runtime` is 5: it is for SCHED_DEADLINE",
        ),
        (
            json!({ "policy": "SCHED_BATCH", "priority": 5 }),
            "`process.scheduler.priority` is 5: with SCHED_BATCH, it is 0",
        ),
        (
            json!({ "policy": "SCHED_FIFO" }),
            "`process.scheduler.priority` is 0: with SCHED_FIFO, it is 1 to 99",
        ),
        (json!({ "policy": "SCHED_RR", "priority": 100 }), "`process.scheduler.priority` is 100"),
        (
            json!({ "policy": "SCHED_OTHER", "nice": 20 }),
            "`process.scheduler.nice` is 20, not -20 to 19",
        ),
        (json!({ "policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_NOPE"] }), "SCHED_FLAG_NOPE"),
    ] {
        let bundle = test.sh("true")?.edit(|config| config["process"]["scheduler"] = scheduler);
        create_fails(&bundle, words)?;
    }
    Ok(())
}

/// Runs a bundle in which the value `LARGE` is replaced by a large text. `serde_json` would take
/// long to make such a value.
fn run_large(bundle: &Bundle<'_>, text: &str) -> Outcome<Output> {
    bundle.write()?;
    let file = bundle.folder.join("config.json");
    fs::write(&file, fs::read_to_string(&file)?.replacen("\"LARGE\"", text, 1))?;
    Output::of(bundle.test.command(bundle.command_line("run", &bundle.test.id())))
}

/// The kernel accepts less (`execve(2)`, E2BIG). The error appears when init execs the program.
fn an_enormous_environment(test: &Test) -> Outcome {
    test.only_rt()?;
    let variables: Vec<String> = (0..1_000_000).map(|number| format!("\"V{number}=x\"")).collect();
    let bundle = test.sh("true")?.edit(|config| config["process"]["env"] = json!("LARGE"));
    run_large(&bundle, &format!("[{}]", variables.join(",")))?
        .code(126)?
        .fails_with("exec `/bin/sh`: Argument list too long")
        .map(drop)
}

fn a_million_limits(test: &Test) -> Outcome {
    test.only_rt()?;
    let limit = r#"{"type":"RLIMIT_NOFILE","soft":99,"hard":100}"#;
    let bundle = test.sh("true")?.edit(|config| config["process"]["rlimits"] = json!("LARGE"));
    run_large(&bundle, &format!("[{}{limit}]", format!("{limit},").repeat(999_999)))?
        .fails_with("`process.rlimits[1]`: RLIMIT_NOFILE is listed twice")
        .map(drop)
}

fn twenty_thousand_masks(test: &Test) -> Outcome {
    let bundle =
        test.sh("cat /m/0 /m/19999; grep -c ' /m/' /proc/mounts")?.file("/m/0", "secret")?;
    for number in 1..20_000 {
        fs::write(bundle.rootfs().join("m").join(number.to_string()), "secret")?;
    }
    let masks: Vec<String> = (0..20_000).map(|number| format!("/m/{number}")).collect();
    let bundle = bundle.edit(|config| config["linux"]["maskedPaths"] = json!(masks));
    bundle.run()?.success()?.stdout("20000\n").map(drop)
}

/// A parser needs a piece of its stack for each level. `rt` skips values that it does not use.
fn a_deep_configuration(test: &Test) -> Outcome {
    test.only_rt()?;
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let run = |key: &str| {
        run_large(&test.sh("echo ran")?.edit(|config| config[key] = json!("LARGE")), &deep)
    };
    run("unknown")?.success()?.stdout("ran\n")?;
    run("annotations")?.fails_with("expected a map")?;
    let file = test.folder.join("deep.json");
    fs::write(&file, &deep)?;
    let (deep, container) = (file.display().to_string(), test.sh("exec sleep 60")?.start()?);
    for args in [
        ["exec", "--process", &deep, &container.id],
        ["update", "--resources", &deep, &container.id],
        ["mounts", "add", &container.id, &deep],
    ] {
        test.rt(args)?.fails_with(&format!("parse `{deep}`"))?;
    }
    Ok(())
}
