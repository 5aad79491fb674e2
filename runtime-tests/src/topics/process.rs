//! The properties of the first process, as that process sees them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Container, Outcome, Output, Test, ensure, ensure_eq, skip, wait_until};

super::tests! { "process":
    has_its_scheduler, has_its_io_priority, has_its_memory_policy, has_its_personality,
    is_the_first_of_its_pid_namespace, has_its_environment_in_order, has_home_from_passwd, has_home_from_passwd_where_it_is_empty, has_its_working_directory,
    a_missing_working_directory_is_made, begins_where_only_root_may_go, begins_where_only_its_user_may_go, has_its_user_and_groups, has_its_umask, has_its_capabilities,
    has_ambient_capabilities, has_no_ambient_capability_that_is_not_inheritable, has_its_limits, has_no_new_privileges, has_its_oom_score, has_limits_that_root_of_its_user_namespace_could_not_set, leads_a_session,
    inherits_no_descriptors, cannot_be_reached_by_a_neighbour_before_its_start, inherits_preserved_descriptors, inherits_listening_sockets, listening_sockets_are_all_there, has_no_ignored_or_blocked_signals, can_reopen_its_output,
    has_a_session_keyring, a_relative_program_is_found_in_path, an_exec_only_program_runs,
    has_its_apparmor_profile, runs_with_the_profile_that_comes_with_it, an_unknown_capability_is_a_warning,
    runs_on_all_processors_of_its_cgroup, runs_where_its_cgroup_moves_it, a_variable_has_its_last_value,
    has_a_deadline, owns_the_files_that_are_its_streams, owns_nothing_else_of_its_callers,
}

/// The output of a tool of the host about a container's first process.
fn asked(container: &Container<'_>, tool: &str) -> Outcome<String> {
    let mut command = Command::new(tool);
    command.arg("-p").arg(container.pid()?.to_string());
    Ok(Output::of(command)?.success()?.stdout)
}

fn has_its_scheduler(test: &Test) -> Outcome {
    let scheduler =
        json!({ "policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"] });
    let bundle =
        test.sh("exec sleep 60")?.edit(|config| config["process"]["scheduler"] = scheduler);
    let container = bundle.create()?;
    let policy = asked(&container, "chrt")?;
    ensure(policy.contains("SCHED_BATCH") && policy.contains("SCHED_RESET_ON_FORK"), policy)?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", container.pid()?))?;
    // The nice value (proc_pid_stat(5)).
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no stat")?.1.split_whitespace().collect();
    ensure_eq(fields[16], "5")
}

fn has_its_personality(test: &Test) -> Outcome {
    let bundle = test.linux(&["/bin/busybox", "uname", "-m"])?;
    let machine = bundle.run()?.success()?.stdout;
    let bundle =
        bundle.edit(|config| config["linux"]["personality"] = json!({ "domain": "LINUX32" }));
    let other = bundle.run()?.success()?.stdout;
    ensure(machine != other || machine.trim().len() < 5, format!("{machine} is still {other}"))
}

fn has_its_memory_policy(test: &Test) -> Outcome {
    if !Path::new("/proc/self/numa_maps").exists() {
        return skip("a kernel without NUMA");
    }
    // crun 1.28 supports this property. The version of Debian 12 does not.
    for (mode, nodes, expected) in [
        ("MPOL_BIND", "0", "bind:0"),
        ("MPOL_INTERLEAVE", "0-0", "interleave:0"),
        ("MPOL_LOCAL", "", "local"),
    ] {
        let policy = json!({ "mode": mode, "nodes": nodes });
        let bundle =
            test.sh("exec sleep 60")?.edit(|config| config["linux"]["memoryPolicy"] = policy);
        let container = bundle.start()?;
        let maps = format!("/proc/{}/numa_maps", container.pid()?);
        // In the middle of its exec, the process has no memory.
        wait_until("its memory has the policy", || {
            fs::read_to_string(&maps).is_ok_and(|maps| maps.contains(&format!(" {expected} ")))
        })?;
        let output = test.rt(["exec", &container.id, "cat", "/proc/self/numa_maps"])?.success()?;
        ensure(output.stdout.contains(&format!(" {expected} ")), output.stdout)?;
    }
    Ok(())
}

fn has_its_io_priority(test: &Test) -> Outcome {
    let priority = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
    let bundle =
        test.sh("exec sleep 60")?.edit(|config| config["process"]["ioPriority"] = priority);
    let container = bundle.create()?;
    ensure_eq(asked(&container, "ionice")?.as_str(), "best-effort: prio 6\n")
}

fn is_the_first_of_its_pid_namespace(test: &Test) -> Outcome {
    test.sh("echo $$")?.run()?.success()?.stdout("1\n").map(drop)
}

fn has_its_environment_in_order(test: &Test) -> Outcome {
    let bundle = test.linux(&["/bin/cat", "/proc/self/environ"])?;
    let bundle = bundle.edit(|config| {
        config["process"]["env"] = json!(["B=2", "A=1", "A=again", "HOME=/x", "E="]);
    });
    let output = bundle.run()?.success()?;
    let variables: Vec<&str> = output.stdout.split_terminator('\0').collect();
    // crun keeps a variable at the place of its first value. runc 1.1 drops an empty variable.
    if !test.host.is_rt {
        return ensure(
            variables.contains(&"A=again") && !variables.contains(&"A=1"),
            format!("{variables:?}"),
        );
    }
    ensure_eq(variables, vec!["B=2", "A=again", "HOME=/x", "E="])
}

fn has_home_from_passwd(test: &Test) -> Outcome {
    let bundle = test
        .sh("echo $HOME")?
        .edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    bundle.run()?.success()?.stdout("/home/user\n")?;
    let bundle = test
        .sh("echo $HOME")?
        .edit(|config| config["process"]["user"] = json!({ "uid": 4711, "gid": 1000 }));
    bundle.run()?.success()?.stdout("/\n").map(drop)
}

/// As in runc, an empty value counts as missing. Of several values, the last one counts.
fn has_home_from_passwd_where_it_is_empty(test: &Test) -> Outcome {
    test.only_rt()?;
    for (env, home) in [
        (json!(["HOME="]), "/home/user\n"),
        (json!(["HOME=/x", "HOME="]), "/home/user\n"),
        (json!(["HOME=", "HOME=/x"]), "/x\n"),
    ] {
        let bundle = test.sh("env | grep ^HOME= | cut -d= -f2")?.edit(|config| {
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            config["process"]["env"] = env.clone();
        });
        bundle.run()?.success()?.stdout(home)?;
    }
    let container = test.sh("exec sleep 60")?.start()?;
    let exec = ["exec", "--user=1000", "--env=HOME=", &container.id, "/bin/sh", "-c", "echo $HOME"];
    test.rt(exec)?.success()?.stdout("/home/user\n").map(drop)
}

fn has_its_working_directory(test: &Test) -> Outcome {
    test.sh("pwd")?
        .edit(|config| config["process"]["cwd"] = json!("/tmp"))
        .run()?
        .success()?
        .stdout("/tmp\n")
        .map(drop)
}

fn a_missing_working_directory_is_made(test: &Test) -> Outcome {
    let bundle = test.sh("pwd")?.edit(|config| config["process"]["cwd"] = json!("/new/folder"));
    bundle.run()?.success()?.stdout("/new/folder\n").map(drop)
}

/// `WORKDIR /root` in an image whose user is not root.
fn begins_where_only_root_may_go(test: &Test) -> Outcome {
    let bundle = test.sh("pwd")?;
    let root = bundle.rootfs().join("root");
    fs::create_dir_all(&root)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
    let bundle = bundle.edit(|config| {
        config["process"]["cwd"] = json!("/root");
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({});
    });
    bundle.run()?.success()?.stdout("/root\n")?;
    let sleeping = bundle.edit(|config| {
        config["process"]["args"] = json!(["/bin/sleep", "60"]);
        config["process"]["cwd"] = json!("/");
    });
    let container = sleeping.start()?;
    let flags = ["exec", "--cwd", "/root", &container.id, "/bin/sh", "-c", "pwd; id -u"];
    test.rt(flags)?.success()?.stdout("/root\n1000\n").map(drop)
}

/// The home is on a filesystem that refuses root, as a network filesystem may. Here root lacks the
/// capability.
fn begins_where_only_its_user_may_go(test: &Test) -> Outcome {
    let bundle = super::namespaces::in_user_namespace(test.sh("pwd")?)?;
    let home = bundle.rootfs().join("home/own");
    fs::create_dir_all(&home)?;
    // The directory belongs to an id that the user namespace does not map. Only the program's group
    // may enter it.
    std::os::unix::fs::chown(&home, Some(0), Some(101_000))?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o710))?;
    let bundle = bundle.edit(|config| {
        config["process"]["cwd"] = json!("/home/own");
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({});
    });
    bundle.run()?.success()?.stdout("/home/own\n").map(drop)
}

fn has_its_user_and_groups(test: &Test) -> Outcome {
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6] });
    let bundle = test.sh("id -u; id -g; id -G")?.edit(|config| config["process"]["user"] = user);
    bundle.run()?.success()?.stdout("1000\n1001\n1001 5 6\n")?;
    test.sh("id -G")?.run()?.success()?.stdout("0\n").map(drop)
}

fn has_its_umask(test: &Test) -> Outcome {
    let bundle = test.sh("umask")?.edit(|config| config["process"]["user"]["umask"] = json!(0o027));
    bundle.run()?.success()?.stdout("0027\n")?;
    test.sh("umask")?.run()?.success()?.stdout("0022\n").map(drop)
}

fn status_field(bundle: crate::harness::Bundle<'_>, field: &str) -> Outcome<String> {
    let output =
        bundle.args(&["/bin/grep", &format!("^{field}:"), "/proc/self/status"]).run()?.success()?;
    Ok(output.stdout.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn has_its_capabilities(test: &Test) -> Outcome {
    // CAP_KILL is 5, CAP_NET_BIND_SERVICE is 10.
    for (field, expected) in [
        ("CapBnd", "0000000000000420"),
        ("CapEff", "0000000000000420"),
        ("CapPrm", "0000000000000420"),
    ] {
        ensure_eq(status_field(test.linux(&[])?, field)?.as_str(), expected)?;
    }
    let bundle = test.linux(&[])?.edit(|config| config["process"]["capabilities"] = json!({}));
    ensure_eq(status_field(bundle, "CapBnd")?.as_str(), "0000000000000000")
}

fn has_ambient_capabilities(test: &Test) -> Outcome {
    let set = json!(["CAP_NET_BIND_SERVICE"]);
    let all = json!({ "bounding": set, "effective": set, "permitted": set, "inheritable": set, "ambient": set });
    let edit = |config: &mut serde_json::Value| {
        config["process"]["capabilities"] = all.clone();
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    };
    for field in ["CapAmb", "CapEff"] {
        ensure_eq(status_field(test.linux(&[])?.edit(edit), field)?.as_str(), "0000000000000400")?;
    }
    Ok(())
}

/// podman's `exec --user` asks for such capabilities.
fn has_no_ambient_capability_that_is_not_inheritable(test: &Test) -> Outcome {
    let set = json!(["CAP_NET_BIND_SERVICE"]);
    let bundle = test.linux(&[])?.edit(|config| {
        config["process"]["capabilities"] =
            json!({ "bounding": set, "effective": set, "permitted": set, "ambient": set });
    });
    ensure_eq(status_field(bundle, "CapAmb")?.as_str(), "0000000000000000")
}

fn has_its_limits(test: &Test) -> Outcome {
    let bundle = test.sh("ulimit -n; ulimit -c")?;
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    bundle
        .edit(|config| config["process"]["rlimits"] = limits)
        .run()?
        .success()?
        .stdout("100\n0\n")
        .map(drop)
}

fn has_no_new_privileges(test: &Test) -> Outcome {
    ensure_eq(status_field(test.linux(&[])?, "NoNewPrivs")?.as_str(), "1")?;
    for value in [json!(false), json!(null)] {
        let bundle = test.linux(&[])?.edit(|config| {
            config["process"]["noNewPrivileges"] = value.clone();
            if value.is_null() {
                config["process"].as_object_mut().map(|process| process.remove("noNewPrivileges"));
            }
        });
        ensure_eq(status_field(bundle, "NoNewPrivs")?.as_str(), "0")?;
    }
    Ok(())
}

fn has_its_oom_score(test: &Test) -> Outcome {
    let bundle = test.linux(&["/bin/cat", "/proc/self/oom_score_adj"])?;
    bundle
        .edit(|config| config["process"]["oomScoreAdj"] = json!(555))
        .run()?
        .success()?
        .stdout("555\n")
        .map(drop)
}

/// The runtime process sets these limits, because it has rights over the whole host.
fn has_limits_that_root_of_its_user_namespace_could_not_set(test: &Test) -> Outcome {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let own = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).ok_or("no CapEff")?;
    let may = u64::from_str_radix(own, 16)? & (1 << CAP_SYS_RESOURCE) != 0;
    let bundle =
        super::namespaces::in_user_namespace(test.sh("cat /proc/self/oom_score_adj; ulimit -Hn")?)?
            .edit(|config| {
                config["process"]["oomScoreAdj"] = json!(-100);
                config["process"]["rlimits"] =
                    json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 1_000_000 }]);
            });
    if may {
        bundle.run()?.success()?.stdout("-100\n1000000\n").map(drop)
    } else {
        // The error says that the runtime has not set the value.
        bundle.run()?.fails_with("oom_score_adj").map(drop)
    }
}

fn leads_a_session(test: &Test) -> Outcome {
    let output = test.sh("cut -d' ' -f6 /proc/1/stat")?.run()?.success()?;
    output.stdout("1\n").map(drop)
}

/// Runs a bundle from a shell that first opens descriptors, which the runtime inherits.
fn run_from_shell(bundle: &crate::harness::Bundle<'_>, open: &str, flags: &str) -> Outcome<Output> {
    try_from_shell(bundle, open, flags)?.success()
}

fn try_from_shell(bundle: &crate::harness::Bundle<'_>, open: &str, flags: &str) -> Outcome<Output> {
    bundle.write()?;
    let test = bundle.test;
    let (runtime, root) = (test.host.runtime.display(), test.state_root());
    let (root, folder, id) = (root.display(), bundle.folder.display(), test.id());
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{open} exec {runtime} --root {root} run {flags} -b {folder} {id}")]);
    Output::of(command)
}

fn inherits_no_descriptors(test: &Test) -> Outcome {
    // The shell tests the links itself: a pipe or an open directory would be one more descriptor.
    let script = "for n in 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ -L /proc/1/fd/$n ] && echo $n; done; echo end";
    run_from_shell(&test.sh(script)?, "exec 7</etc/passwd;", "")?.stdout("end\n").map(drop)
}

/// In a shared pid namespace, another container of the same user must not reach init's descriptors.
/// It could start the container through them.
fn cannot_be_reached_by_a_neighbour_before_its_start(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("echo started")?.create()?;
    let path = format!("/proc/{}/ns/pid", container.pid()?);
    let script = "for n in 3 4 5 6 7 8 9; do echo s > /proc/1/fd/$n; done 2>/dev/null; true";
    test.sh(script)?.namespace(json!({ "type": "pid", "path": path })).run()?.success()?;
    ensure_eq(container.status()?.as_str(), "created")?;
    ensure_eq(container.stdout()?.as_str(), "")
}

fn inherits_preserved_descriptors(test: &Test) -> Outcome {
    let (one, two) = (test.folder.join("one"), test.folder.join("two"));
    fs::write(&one, "one\n")?;
    fs::write(&two, "two\n")?;
    let open = format!("exec 3<{}; exec 4<{}; exec 5</etc/passwd;", one.display(), two.display());
    let script = "cat <&3; cat <&4; [ -L /proc/1/fd/5 ] && echo five; true";
    run_from_shell(&test.sh(script)?, &open, "--preserve-fds 2")?.stdout("one\ntwo\n").map(drop)
}

fn inherits_listening_sockets(test: &Test) -> Outcome {
    let file = test.folder.join("file");
    fs::write(&file, "content\n")?;
    // Like systemd: the descriptors begin at 3, and `LISTEN_PID` is the pid of the process that
    // gets them.
    let open = format!("exec 3<{}; LISTEN_FDS=1 LISTEN_PID=$$", file.display());
    let bundle = test.sh("echo $LISTEN_FDS $LISTEN_PID; cat <&3")?;
    run_from_shell(&bundle, &open, "")?.stdout("1 1\ncontent\n").map(drop)
}

/// If the caller has not opened a number, a file of the runtime itself could have it.
fn listening_sockets_are_all_there(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("ls /proc/self/fd")?;
    for flag in ["", "--preserve-fds 1"] {
        let open = "exec 3</etc/passwd; LISTEN_FDS=60 LISTEN_PID=$$";
        try_from_shell(&bundle, open, flag)?
            .fails_with("`LISTEN_FDS` is 60: descriptor")?
            .fails_with("is not open")?;
    }
    Ok(())
}

fn has_no_ignored_or_blocked_signals(test: &Test) -> Outcome {
    let bundle = test.linux(&["/bin/grep", "-E", "^(SigBlk|SigIgn)", "/proc/self/status"])?;
    bundle.write()?;
    let mut command = Command::new("nohup");
    command.arg0("nohup").arg(&test.host.runtime).arg("--root").arg(test.state_root());
    command.args(["run", "-b"]).arg(&bundle.folder).arg(test.id());
    let output = Output::of(command)?.success()?;
    if !test.host.is_rt {
        return Ok(());
    }
    output.stdout("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n").map(drop)
}

fn can_reopen_its_output(test: &Test) -> Outcome {
    let bundle = test.sh("echo again > /dev/stdout")?;
    bundle
        .edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }))
        .run()?
        .success()?;
    Ok(())
}

fn has_a_session_keyring(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/proc/keys").exists() {
        return skip("this kernel has no keyrings");
    }
    let container = test.linux(&["/bin/cat", "/proc/keys"])?.start()?;
    container.wait()?;
    ensure(container.stdout()?.contains(&format!("_ses.{}", container.id)), container.stdout()?)
}

fn a_relative_program_is_found_in_path(test: &Test) -> Outcome {
    test.linux(&["echo", "found"])?.run()?.success()?.stdout("found\n").map(drop)
}

fn an_exec_only_program_runs(test: &Test) -> Outcome {
    let bundle = test.linux(&["/busybox", "echo", "ran"])?;
    fs::copy("/bin/busybox", bundle.rootfs().join("busybox"))?;
    fs::set_permissions(bundle.rootfs().join("busybox"), PermissionsExt::from_mode(0o711))?;
    let bundle =
        bundle.edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    bundle.run()?.success()?.stdout("ran\n").map(drop)
}

/// An AppArmor profile that denies its programs the file `/secret`. Dropping this value removes the
/// profile.
pub(super) struct Profile {
    pub(super) name: String,
    path: std::path::PathBuf,
}

impl Profile {
    pub(super) fn load(test: &Test) -> Outcome<Profile> {
        if !Path::new("/sys/kernel/security/apparmor").exists() {
            return skip("this kernel has no AppArmor");
        }
        let rules =
            "file, capability, network, signal, ptrace, mount, umount, pivot_root, deny /secret r,";
        let flags = "flags=(attach_disconnected,mediate_deleted)";
        let name = test.id();
        let text = format!("profile {name} {flags} {{ {rules} }}\n");
        Profile::load_text(test, name, &text)
    }

    fn load_text(test: &Test, name: String, text: &str) -> Outcome<Profile> {
        let path = test.folder.join(format!("profile-{name}"));
        fs::write(&path, text)?;
        let profile = Profile { name, path };
        let Ok(loaded) = profile.parser("--replace") else {
            return skip("there is no apparmor_parser");
        };
        ensure(loaded.status.success(), String::from_utf8_lossy(&loaded.stderr))?;
        Ok(profile)
    }

    fn parser(&self, flag: &str) -> std::io::Result<std::process::Output> {
        Command::new("apparmor_parser").arg(flag).arg(&self.path).output()
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // A profile that was not loaded cannot be removed.
        let _ = self.parser("--remove");
    }
}

/// The programs of `exec` have the profile too.
fn has_its_apparmor_profile(test: &Test) -> Outcome {
    let profile = Profile::load(test)?;
    let name = &profile.name;
    let look = "cat /proc/self/attr/current; cat /secret 2>/dev/null || echo refused";
    let expected = format!("{name} (enforce)\nrefused\n");
    let bundle = test
        .sh(&format!("{look}; exec sleep 60"))?
        .file("/secret", "secret")?
        .edit(|config| config["process"]["apparmorProfile"] = json!(name));
    let container = bundle.start()?;
    container.wait_for_output("refused")?;
    ensure_eq(container.stdout()?, expected.clone())?;
    test.rt(["exec", &container.id, "sh", "-c", look])?.success()?.stdout(&expected)?;
    container.kill("KILL")?;
    container.wait()
}

/// AppArmor gives a profile to a program by the program's path.
fn runs_with_the_profile_that_comes_with_it(test: &Test) -> Outcome {
    test.only_rt()?;
    let others = Profile::load(test)?;
    if !Path::new("/etc/apparmor.d/abi/4.0").exists() {
        return skip("this AppArmor is older than version 4");
    }
    let text =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers/apparmor/rt"));
    let name = test.id();
    let text = text
        .replace("@PREFIX@/bin/rt", &test.host.runtime.display().to_string())
        .replace("profile rt ", &format!("profile {name} "));
    let profile = Profile::load_text(test, name, &text)?;
    for (asked, expected) in [
        (None, format!("{} (unconfined)\n", profile.name)),
        (Some(&others.name), format!("{} (enforce)\n", others.name)),
    ] {
        let bundle = test.sh("exec sleep 60")?.edit(|config| {
            if let Some(name) = asked {
                config["process"]["apparmorProfile"] = json!(name);
            }
        });
        let container = bundle.start()?;
        let look = ["exec", &container.id, "cat", "/proc/self/attr/current"];
        test.rt(look)?.success()?.stdout(&expected)?;
        container.kill("TERM")?;
        container.kill("KILL")?;
        container.wait()?;
        container.delete()?;
    }
    Ok(())
}

/// The capability may be newer than the runtime.
fn an_unknown_capability_is_a_warning(test: &Test) -> Outcome {
    let bundle = test.sh("grep CapBnd /proc/self/status")?.edit(|config| {
        config["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_NOPE"]);
        for set in ["effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_CHOWN"]);
        }
    });
    let output = bundle.run()?.success()?.stdout("CapBnd:\t0000000000000001\n")?;
    ensure(
        !test.host.is_rt || output.stderr.contains("unknown capability `CAP_NOPE`"),
        output.stderr,
    )
}

/// Prints the list of processors on which the process may run.
pub(super) const PROCESSORS: &str = "grep Cpus_allowed_list /proc/self/status";

/// The first processor in the output of `PROCESSORS`.
pub(super) fn first_processor(list: &str) -> String {
    let digit = |letter: &char| letter.is_ascii_digit();
    list.chars().skip_while(|letter| !digit(letter)).take_while(digit).collect()
}

/// The runtime with a caller that is confined to one processor, and the output of `PROCESSORS` in a
/// container without such a caller.
fn by_a_confined_caller(test: &Test) -> Outcome<(impl Fn(&[&str]) -> Command, String)> {
    let expected = test.sh(PROCESSORS)?.run()?.success()?.stdout;
    if !expected.contains(['-', ',']) {
        return skip("there is one processor");
    }
    let first = first_processor(&expected);
    let confined = move |args: &[&str]| {
        let runtime = test.command(args);
        let mut command = Command::new("taskset");
        command.args(["-c", &first]).arg(runtime.get_program()).args(runtime.get_args());
        command.stdin(std::process::Stdio::null());
        command
    };
    Ok((confined, expected))
}

/// runc before 1.4 and crun pass on the processors of their caller.
fn runs_on_all_processors_of_its_cgroup(test: &Test) -> Outcome {
    test.only_rt()?;
    let (confined, expected) = by_a_confined_caller(test)?;
    let note = test.folder.join("note");
    fs::create_dir(&note)?;
    let hook = |name: &str, folder: &str| {
        let script = format!("{PROCESSORS} > {folder}/{name}");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
    };
    let outside = note.display().to_string();
    let bundle = test.sh(&format!("{PROCESSORS}; exec sleep 60"))?.edit(|config| {
        config["hooks"] = json!({
            "createRuntime": hook("createRuntime", &outside), "createContainer": hook("createContainer", &outside),
            "startContainer": hook("startContainer", "/note"), "poststart": hook("poststart", &outside),
            "poststop": hook("poststop", &outside),
        });
    });
    let bundle =
        bundle.mount(json!({ "destination": "/note", "source": note, "options": ["bind"] }));
    bundle.write()?;
    let (id, folder) = (test.id(), bundle.folder.display().to_string());
    let container = Container::create(test, &id, confined(&["create", "--bundle", &folder, &id]))?;
    Output::of(confined(&["start", &id]))?.success()?;
    container.wait_for_output("list")?;
    ensure_eq(container.stdout()?, expected.clone())?;
    let exec = confined(&["exec", &id, "sh", "-c", PROCESSORS]);
    Output::of(exec)?.success()?.stdout(&expected)?;
    Output::of(confined(&["delete", "--force", &id]))?.success()?;
    for name in ["createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        ensure_eq((name, fs::read_to_string(note.join(name))?), (name, expected.clone()))?;
    }
    let module = test.wasm("probe", &["sleep"])?;
    module.write()?;
    let (id, folder) = (test.id(), module.folder.display().to_string());
    let container = Container::create(test, &id, confined(&["create", "--bundle", &folder, &id]))?;
    container.start()?;
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid()?))?;
    ensure(status.contains(&expected), status)
}

fn runs_where_its_cgroup_moves_it(test: &Test) -> Outcome {
    test.only_rt()?;
    super::needs(test, "cpuset")?;
    let (confined, _) = by_a_confined_caller(test)?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["linux"]["resources"]["cpu"] = json!({ "cpus": "0", "mems": "0" });
    });
    bundle.write()?;
    let (id, folder) = (test.id(), bundle.folder.display().to_string());
    let container = Container::create(test, &id, confined(&["create", "--bundle", &folder, &id]))?;
    container.start()?;
    for cpus in ["0", "1", "0-1"] {
        container.rt(&["update", "--cpuset-cpus", cpus])?.success()?;
        let expected = format!("Cpus_allowed_list:\t{cpus}\n");
        let status = fs::read_to_string(format!("/proc/{}/status", container.pid()?))?;
        ensure(status.contains(&expected), format!("{cpus}: {status}"))?;
        let exec = confined(&["exec", &id, "sh", "-c", PROCESSORS]);
        Output::of(exec)?.success()?.stdout(&expected)?;
    }
    Ok(())
}

/// For the program, for each way of `exec`, for hooks in the container, and for modules.
fn a_variable_has_its_last_value(test: &Test) -> Outcome {
    let twice = json!(["A=1", "PATH=/bin", "HOME=/", "A=2", "B=x=1", "B=", "B=x=y", "A="]);
    let expected = "PATH=/bin\0HOME=/\0B=x=y\0A=\0";
    let look = json!(["/bin/cat", "/proc/self/environ"]);
    // crun keeps a variable at the place of its first value. runc 1.1 drops an empty variable.
    let is = |there: &str| {
        let values = [("A=1", false), ("A=2", false), ("B=x=1", false), ("B=x=y", true)];
        let has = |value: &str| there.split('\0').any(|variable| variable == value);
        let good = values.iter().all(|(value, expected)| has(value) == *expected);
        ensure(if test.host.is_rt { there == expected } else { good }, format!("{there:?}"))
    };
    let bundle = test.linux(&["/bin/sleep", "60"])?.file("/hook", "")?.edit(|config| {
        config["process"]["env"] = twice.clone();
        config["hooks"]["startContainer"] = json!([{
            "path": "/bin/sh", "args": ["sh", "-c", "cat /proc/$$/environ > /hook; true"], "env": twice,
        }]);
    });
    let container = bundle.start()?;
    let own = format!("/proc/{}/environ", container.pid()?);
    wait_until("its program runs", || {
        fs::read_to_string(&own).is_ok_and(|own| own.contains("B=x=y"))
    })?;
    is(&fs::read_to_string(&own)?)?;
    let file = test.folder.join("process.json");
    let process = json!({ "args": look, "env": twice, "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    fs::write(&file, process.to_string())?;
    let file = file.display().to_string();
    is(&container.rt(&["exec", "--process", &file])?.success()?.stdout)?;
    is(&test.rt(["exec", &container.id, "/bin/cat", "/proc/self/environ"])?.success()?.stdout)?;
    let flags = ["exec", "--env", "A=1", "--env", "B=x=1", "--env", "B=x=y", "--env", "A="];
    is(&test
        .rt([&flags[..], &[&container.id, "/bin/cat", "/proc/self/environ"]].concat())?
        .success()?
        .stdout)?;
    if !test.host.is_rt {
        return Ok(());
    }
    is(&fs::read_to_string(bundle.rootfs().join("hook"))?)?;
    let module = test.wasm("probe", &["env"])?;
    let output = module.edit(|config| config["process"]["env"] = twice).run()?.success()?;
    let lines: Vec<&str> = output.stdout.lines().filter(|line| !line.starts_with("PWD=")).collect();
    ensure_eq(lines, vec!["PATH=/bin", "HOME=/", "B=x=y", "A="])
}

/// The test uses the specification's names of the flags.
fn has_a_deadline(test: &Test) -> Outcome {
    test.only_rt()?;
    for flags in [
        json!([]),
        json!(["SCHED_FLAG_DL_OVERRUN"]),
        json!(["SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_RESET_ON_FORK"]),
    ] {
        let bundle = test.linux(&["/bin/sleep", "60"])?.edit(|config| {
            config["process"]["scheduler"] = json!({ "policy": "SCHED_DEADLINE", "flags": flags,
                "runtime": 1_000_000, "deadline": 10_000_000, "period": 20_000_000 });
        });
        bundle.write()?;
        let id = test.id();
        let output = bundle.try_create(&id)?;
        if output.stderr.contains("set the scheduler to SCHED_DEADLINE: ") {
            return skip("this kernel gives nobody a deadline");
        }
        output.success()?;
        let state: serde_json::Value =
            serde_json::from_str(&test.rt(["state", &id])?.success()?.stdout)?;
        let mut chrt = Command::new("chrt");
        let said = Output::of({
            chrt.arg("-p").arg(state["pid"].to_string());
            chrt
        })?
        .success()?
        .stdout;
        ensure(
            said.contains("SCHED_DEADLINE") && said.contains("1000000/10000000/20000000"),
            said,
        )?;
        test.rt(["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

fn owns_nothing_else_of_its_callers(test: &Test) -> Outcome {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    test.only_rt()?;
    let [input, folder, console] =
        ["input", "folder", "console"].map(|name| test.folder.join(name));
    // The file is open for reading only. Its owner could write to it.
    fs::write(&input, "text")?;
    fs::create_dir(&folder)?;
    let mknod = Command::new("mknod").arg(&console).args(["c", "5", "1"]).status()?;
    ensure(mknod.success(), "mknod")?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1001 });
    });
    bundle.write()?;
    let container = bundle.start()?;
    for path in [&input, &folder, &console] {
        // O_NOCTTY
        let file = fs::OpenOptions::new().read(true).custom_flags(0o400).open(path);
        let file = match file {
            Err(_) if *path == console => return skip("the host has no console"),
            file => file?,
        };
        for args in [
            bundle.command_line("run", &test.id()),
            ["exec", "--user", "1000:1001", &container.id, "true"].map(str::to_owned).to_vec(),
        ] {
            let mut command = test.command(args);
            command.stdin(file.try_clone()?);
            if command.get_args().any(|arg| arg == "run") {
                bundle.clone().args(&["/bin/true"]).write()?;
            }
            Output::of(command)?.success()?;
            let there = fs::metadata(path)?;
            ensure_eq((path, there.uid(), there.gid()), (path, 0, 0))?;
        }
    }
    Ok(())
}

/// crun does the same. runc does not change the group.
fn owns_the_files_that_are_its_streams(test: &Test) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    let owners = |paths: &[&Path]| -> Outcome<Vec<(u32, u32)>> {
        let owner = |path: &&Path| Ok(fs::metadata(path).map(|there| (there.uid(), there.gid()))?);
        paths.iter().map(owner).collect()
    };
    let null = owners(&[Path::new("/dev/null")])?;
    let input = test.folder.join("input");
    for (user, group) in [(1000, 1001), (0, 1001), (1000, 0)] {
        let expected = (user, if test.host.runtime.ends_with("runc") { 0 } else { group });
        let bundle = test.sh("cat; id -u > /dev/stdout; exec sleep 60")?.edit(|config| {
            config["process"]["user"] = json!({ "uid": user, "gid": group });
        });
        bundle.write()?;
        fs::write(&input, "")?;
        std::os::unix::fs::chown(&input, Some(0), Some(0))?;
        let id = test.id();
        let mut command = test.command(bundle.command_line("create", &id));
        command.stdin(fs::OpenOptions::new().read(true).write(true).open(&input)?);
        let container = Container::create(test, &id, command)?;
        let (out, err) = (container.file("out"), container.file("err"));
        ensure_eq(owners(&[&input, &out, &err])?, vec![expected; 3])?;
        // For `exec`, runc passes bytes between pipes and the caller's streams.
        if !test.host.is_rt {
            continue;
        }
        let other = test.folder.join("exec");
        let file = fs::File::create(&other)?;
        let mut command =
            test.command(["exec", "--user", &format!("{}:{group}", user + 1), &id, "/bin/true"]);
        ensure(
            command.stdout(file).stderr(std::process::Stdio::null()).status()?.success(),
            "exec",
        )?;
        ensure_eq(owners(&[&other])?, vec![(user + 1, expected.1)])?;
    }
    ensure_eq(owners(&[Path::new("/dev/null")])?, null)
}
