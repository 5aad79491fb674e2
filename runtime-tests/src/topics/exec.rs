//! `exec`: more programs in a running container.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use super::terminal::{read_all, receive};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, ensure, ensure_eq, skip, wait_until,
};

super::tests! { "exec":
    runs_in_the_same_namespaces, joins_a_user_namespace, its_exit_code_is_passed_on, it_reads_and_writes_the_callers_streams,
    is_in_the_containers_cgroup, is_in_a_cgroup_below_it, goes_where_init_is_when_the_cgroup_takes_no_process, obeys_the_seccomp_filter,
    has_the_containers_process_settings, flags_change_them, a_process_file_replaces_them, what_a_process_file_leaves_out_is_the_containers, new_privileges_are_those_of_the_container, detached_it_lives_on,
    a_pid_file_is_written_only_if_it_runs, a_pid_file_that_cannot_be_written_ends_it, nothing_after_the_name_is_a_flag, a_program_that_is_missing, a_terminal_in_the_foreground, a_terminal_by_its_socket,
    only_asked_for_descriptors_are_passed, is_a_session_leader, neighbours_cannot_reach_it_before_its_exec, not_in_a_stopped_container,
    not_in_an_unknown_container, a_broken_process_file, a_console_socket_nobody_listens_on, limits_and_oom_score, a_module_in_the_engine,
    a_native_program_beside_a_module, processors_before_and_after, in_a_created_container, a_signal_ends_it_by_128_and_more,
    it_ends_with_the_container, without_a_mount_namespace, by_an_inherited_descriptor, in_cgroups_of_some_controllers, its_executable_is_protected, not_in_a_paused_container,
    a_user_that_is_half_written, an_added_capability_is_the_users_too,
}

/// Runs a shell script with `exec` and these flags.
fn sh(test: &Test, container: &Container<'_>, flags: &[&str], script: &str) -> Outcome<Output> {
    let args = [&["exec"], flags, &[&container.id, "/bin/sh", "-c", script]].concat();
    test.rt(args)
}

fn sleeping(test: &Test) -> Outcome<Container<'_>> {
    test.sh("exec sleep 60")?.start()
}

/// A file for `--process` with a shell script: the container's own process, with changes.
fn file(test: &Test, bundle: &Bundle<'_>, change: impl FnOnce(&mut Value)) -> Outcome<String> {
    let config: Value = serde_json::from_slice(&fs::read(bundle.folder.join("config.json"))?)?;
    let mut process = config["process"].clone();
    change(&mut process);
    let path = test.folder.join("process.json");
    fs::write(&path, process.to_string())?;
    Ok(path.display().to_string())
}

fn runs_in_the_same_namespaces(test: &Test) -> Outcome {
    let bundle = test.sh("for n in mnt uts ipc pid net cgroup; do readlink /proc/self/ns/$n; done; echo done; exec sleep 60")?;
    let container = bundle.namespace(json!({ "type": "cgroup" })).start()?;
    container.wait_for_output("done")?;
    let script =
        "for n in mnt uts ipc pid net cgroup; do readlink /proc/self/ns/$n; done; echo done";
    sh(test, &container, &[], script)?.success()?.stdout(&container.stdout()?).map(drop)
}

fn joins_a_user_namespace(test: &Test) -> Outcome {
    let bundle = test
        .sh("readlink /proc/self/ns/user; cat /proc/self/uid_map; exec sleep 60")?
        .namespace(json!({ "type": "user" }))
        .edit(|config| {
            for mappings in ["uidMappings", "gidMappings"] {
                config["linux"][mappings] =
                    json!([{ "containerID": 0, "hostID": 0, "size": 70000 }]);
            }
        });
    let container = bundle.start()?;
    container.wait_for_output("70000")?;
    let script = "readlink /proc/self/ns/user; cat /proc/self/uid_map";
    sh(test, &container, &[], script)?.success()?.stdout(&container.stdout()?)?;
    sh(test, &container, &[], "id -u; cat /proc/1/comm")?.success()?.stdout("0\nsleep\n").map(drop)
}

fn its_exit_code_is_passed_on(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    for code in [0, 1, 7, 255] {
        sh(test, &container, &[], &format!("exit {code}"))?.code(code)?;
    }
    Ok(())
}

fn it_reads_and_writes_the_callers_streams(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let script = "read line; echo got $line; echo wrong >&2";
    let command = test.command(["exec", &container.id, "/bin/sh", "-c", script]);
    let output = Output::with_input(command, "a line\n")?.success()?;
    ensure_eq((output.stdout.as_str(), output.stderr.as_str()), ("got a line\n", "wrong\n"))
}

fn cgroups_of(pid: i32) -> Outcome<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
}

/// Starts a detached `sleep` with these flags. Returns its pid.
fn detached(test: &Test, container: &Container<'_>, flags: &[&str]) -> Outcome<i32> {
    let path = test.folder.join("exec.pid");
    let flag = format!("--pid-file={}", path.display());
    let args = [&["exec", "--detach", &flag], flags, &[&container.id, "/bin/sleep", "60"]].concat();
    test.rt(args)?.success()?;
    Ok(fs::read_to_string(path)?.parse()?)
}

fn is_in_the_containers_cgroup(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let pid = detached(test, &container, &[])?;
    ensure_eq(cgroups_of(pid)?, cgroups_of(container.pid()?)?)
}

fn is_in_a_cgroup_below_it(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = sleeping(test)?;
    let own = cgroups_of(container.pid()?)?;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let roots = match (test.host.lane.as_str(), name) {
            ("v2", _) => "/sys/fs/cgroup".to_owned(),
            (_, "") => "/sys/fs/cgroup/unified".to_owned(),
            (_, name) => format!("/sys/fs/cgroup/{name}"),
        };
        if path.contains(&container.id) && Path::new(&roots).join("cgroup.procs").exists() {
            let below = format!("{roots}{path}/below");
            fs::create_dir(&below)?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(above) = fs::read_to_string(format!("{roots}{path}/{file}"))
                    && test.host.lane != "v2"
                {
                    fs::write(format!("{below}/{file}"), above)?;
                }
            }
        }
    }
    let pid = detached(test, &container, &["--cgroup", "below"])?;
    let inside = cgroups_of(pid)?;
    ensure(
        inside.lines().any(|line| line.contains(&container.id) && line.ends_with("/below")),
        &inside,
    )?;
    sh(test, &container, &["--cgroup", "../.."], "true")?.fails_with("leads out of")?;
    sh(test, &container, &["--cgroup", "nowhere"], "true")?.fails_with("nowhere").map(drop)
}

fn goes_where_init_is_when_the_cgroup_takes_no_process(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        return skip("a rule of cgroup v2");
    }
    let container = sleeping(test)?;
    let pid = container.pid()?;
    let path_of = |pid| -> Outcome<String> {
        let table = cgroups_of(pid)?;
        let path = table.lines().find_map(|line| line.strip_prefix("0::"));
        Ok(path.ok_or("no second-version cgroup")?.to_owned())
    };
    let own = path_of(pid)?;
    let path = format!("/sys/fs/cgroup{own}");
    let available = fs::read_to_string(format!("{path}/cgroup.controllers"))?;
    // The rule about inner processes applies to domain controllers only, and not to threaded ones.
    let domain = ["memory", "hugetlb", "io", "rdma", "misc"];
    let Some(controller) = available.split_whitespace().find(|name| domain.contains(name)) else {
        return skip("no domain controller is left to cgroup v2 here");
    };
    fs::create_dir(format!("{path}/init"))?;
    fs::write(format!("{path}/init/cgroup.procs"), pid.to_string())?;
    fs::write(format!("{path}/cgroup.subtree_control"), format!("+{controller}"))?;
    let pid = detached(test, &container, &[])?;
    ensure_eq(path_of(pid)?, format!("{own}/init"))
}

fn obeys_the_seccomp_filter(test: &Test) -> Outcome {
    for no_new_privileges in [true, false] {
        let bundle = test.sh("exec sleep 60")?.edit(|config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]
            });
        });
        let container = bundle.start()?;
        let output = sh(test, &container, &[], "mkdir /tmp/new")?;
        ensure(output.stderr.contains("No space left on device"), output.stderr)?;
    }
    Ok(())
}

const STATUS: &str =
    "id -u; id -g; umask; pwd; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status";

fn has_the_containers_process_settings(test: &Test) -> Outcome {
    let script = format!("{STATUS}; echo done; exec sleep 60");
    let bundle = test.sh(&script)?.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "umask": 0o27 });
        config["process"]["cwd"] = json!("/tmp");
        config["process"]["noNewPrivileges"] = json!(true);
    });
    let container = bundle.start()?;
    container.wait_for_output("done")?;
    let expected = container.stdout()?.replace("done\n", "");
    sh(test, &container, &[], STATUS)?.success()?.stdout(&expected).map(drop)
}

fn flags_change_them(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let flags = ["--user", "33:34", "--cwd", "/tmp", "--env", "ONE=1", "-e", "TWO=2=2"];
    let script = "id -u; id -g; pwd; echo $ONE $TWO";
    sh(test, &container, &flags, script)?.success()?.stdout("33\n34\n/tmp\n1 2=2\n")?;
    let flags = ["--user=33", "--additional-gids=7", "--additional-gids=8"];
    let groups = sh(test, &container, &flags, "grep ^Groups: /proc/self/status")?.success()?.stdout;
    ensure_eq(groups.split_whitespace().collect(), vec!["Groups:", "7", "8"])?;
    // Bit 12 is CAP_NET_ADMIN.
    let script = "grep CapEff /proc/self/status";
    let capability = |flags: &[&str]| -> Outcome<bool> {
        let output = sh(test, &container, flags, script)?.success()?.stdout;
        let set = output.split_whitespace().last().unwrap_or_default();
        Ok(u64::from_str_radix(set, 16)? & (1 << 12) != 0)
    };
    ensure(!capability(&[])? && capability(&["--cap", "CAP_NET_ADMIN"])?, "not added")?;
    let flags = ["--no-new-privs"];
    let script = "grep NoNewPrivs /proc/self/status";
    sh(test, &container, &flags, script)?.success()?.stdout("NoNewPrivs:\t1\n").map(drop)
}

fn a_process_file_replaces_them(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let file = file(test, &bundle, |process| {
        process["args"] = json!(["/bin/sh", "-c", "id -u; umask; echo $HOW; pwd"]);
        process["env"] = json!(["PATH=/bin", "HOW=by file"]);
        process["user"] = json!({ "uid": 5, "gid": 6, "umask": 0o77 });
        process["cwd"] = json!("/etc");
    })?;
    container.rt(&["exec", "--process", &file])?.success()?.stdout("5\n0077\nby file\n/etc\n")?;
    test.rt(["exec", "--process", &file, &container.id, "/bin/true"])?
        .fails_with("exclude each other")
        .map(drop)
}

fn what_a_process_file_leaves_out_is_the_containers(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        config["process"]["user"] = json!({ "uid": 0, "gid": 7 });
        config["process"]["cwd"] = json!("/tmp");
        config["process"]["env"] = json!(["PATH=/bin", "HOW=as the container"]);
        config["process"]["rlimits"] =
            json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 100 }]);
        config["process"]["capabilities"] = json!({ "bounding": ["CAP_CHOWN", "CAP_NOPE"],
            "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] });
    });
    let container = bundle.start()?;
    let file = test.folder.join("process.json");
    let script = "id -g; pwd; echo $HOW; ulimit -n; grep CapEff /proc/self/status";
    fs::write(&file, json!({ "args": ["/bin/sh", "-c", script] }).to_string())?;
    let file = file.display().to_string();
    let expected = "7\n/tmp\nas the container\n99\nCapEff:\t0000000000000001\n";
    test.only_rt()?;
    container.rt(&["exec", "--process", &file])?.success()?.stdout(expected).map(drop)
}

/// The process in a file has the container's `noNewPrivileges`, unless the file has its own value.
/// For runc and crun, a file without a value allows new privileges.
fn new_privileges_are_those_of_the_container(test: &Test) -> Outcome {
    test.only_rt()?;
    for (container, file, expected) in [
        (json!(true), json!({}), 1),
        (json!(true), json!({ "noNewPrivileges": true }), 1),
        (json!(true), json!({ "noNewPrivileges": false }), 0),
        (json!(false), json!({}), 0),
        (json!(null), json!({}), 0),
        (json!(false), json!({ "noNewPrivileges": true }), 1),
    ] {
        let bundle = test
            .sh("exec sleep 60")?
            .edit(|config| config["process"]["noNewPrivileges"] = container.clone());
        let bundle = if container.is_null() {
            bundle.edit(|config| {
                config["process"].as_object_mut().map(|process| process.remove("noNewPrivileges"));
            })
        } else {
            bundle
        };
        let mut process = file.clone();
        process["args"] = json!(["grep", "NoNewPrivs", "/proc/self/status"]);
        let path = test.folder.join("process.json");
        fs::write(&path, process.to_string())?;
        let output = bundle.start()?.rt(&["exec", "--process", &path.display().to_string()])?;
        let output = output.success()?.stdout;
        ensure_eq(
            (&container, &file, output),
            (&container, &file, format!("NoNewPrivs:\t{expected}\n")),
        )?;
    }
    Ok(())
}

fn detached_it_lives_on(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let pid = detached(test, &container, &[])?;
    ensure_eq(fs::read_to_string(format!("/proc/{pid}/comm"))?.as_str(), "sleep\n")
}

fn a_pid_file_is_written_only_if_it_runs(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let path = test.folder.join("exec.pid");
    // CRI-O makes an empty file beforehand.
    let flag = format!("--pid-file={}", path.display());
    let fails = |args: &[&str]| {
        fs::write(&path, "")?;
        let output = test.rt([&["exec", "--detach", &flag], args].concat())?;
        ensure(output.code.is_some_and(|code| code != 0), format!("{args:?} was started"))?;
        // A reader would take an empty file for pid 0.
        ensure(!path.exists(), format!("{args:?} leaves a pid file"))
    };
    fails(&[&container.id, "/no/such"])?;
    if test.host.is_rt {
        fails(&["nobody", "/bin/true"])?;
        fails(&["--process=/no/such", &container.id])?;
        container.rt(&["pause"])?.success()?;
        fails(&[&container.id, "/bin/true"])?;
        container.rt(&["resume"])?.success()?;
        container.kill("KILL")?;
        container.wait()?;
        fails(&[&container.id, "/bin/true"])?;
    }
    Ok(())
}

fn a_pid_file_that_cannot_be_written_ends_it(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = sleeping(test)?;
    let before = container.rt(&["ps", "--format=json"])?.success()?.stdout;
    for flags in [&["--detach"][..], &[]] {
        let args = [&["exec", "--pid-file=/no/such/pid"], flags, &[&container.id, "sleep", "60"]];
        let output = test.rt(args.concat())?.code(255)?;
        output.fails_with("write pid file `/no/such/pid`: No such file or directory")?;
    }
    container.rt(&["ps", "--format=json"])?.success()?.stdout(&before).map(drop)
}

/// A caller passes the words of its own users there. As flags, they could give other rights or
/// reach files of the host.
fn nothing_after_the_name_is_a_flag(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let log = test.folder.join("other.log");
    let (log_flag, pid_flag) =
        (format!("--log={}", log.display()), format!("--pid-file={}", log.display()));
    for word in ["--user=1000", "--help", "-p", &log_flag, &pid_flag] {
        let output = test.rt(["exec", &container.id, word])?;
        ensure(output.code.is_some_and(|code| code != 0), format!("{word}: {}", output.stdout))?;
        ensure(!log.exists(), format!("{word} was obeyed"))?;
    }
    let echo = ["exec", &container.id, "/bin/echo", "-no-subreaper", "--user=1000", "--", "-d"];
    test.rt(echo)?.success()?.stdout("-no-subreaper --user=1000 -- -d\n").map(drop)
}

fn a_program_that_is_missing(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    for (program, words) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such/program", "no such file or directory"),
        ("/etc", "permission denied"),
    ] {
        let output = test.rt(["exec", &container.id, program])?;
        ensure(
            output.code != Some(0) && output.stderr.to_lowercase().contains(&words.to_lowercase()),
            &output.stderr,
        )?;
        ensure_eq(output.stderr.lines().count(), 1)?;
    }
    ensure_eq(container.status()?.as_str(), "running")
}

fn a_terminal_in_the_foreground(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let script = "test -t 0 && test -t 1 && tty; read line; echo got $line; exit 5";
    let mut exec = test.command(["exec", "--tty", &container.id, "/bin/sh", "-c", script]);
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    exec.stdin.as_mut().ok_or("no stdin")?.write_all(b"words\n")?;
    let output = exec.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    ensure_eq(output.status.code(), Some(5))?;
    ensure(text.contains("/dev/pts/") && text.contains("got words"), text)
}

fn a_terminal_by_its_socket(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let path = test.folder.join("console");
    let listener = UnixListener::bind(&path)?;
    let file = file(test, &bundle, |process| {
        process["args"] = json!(["/bin/sh", "-c", "stty size; test -t 0 && echo terminal"]);
        process["terminal"] = json!(true);
        process["consoleSize"] = json!({ "height": 20, "width": 70 });
    })?;
    let socket = format!("--console-socket={}", path.display());
    container.rt(&["exec", "--detach", "--process", &file, &socket])?.success()?;
    ensure_eq(read_all(receive(&listener)?.into()).as_str(), "20 70\nterminal\n")
}

fn only_asked_for_descriptors_are_passed(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    // The shell opens descriptors 3, 4 and 9. `ls` opens one itself.
    for (flag, expected) in [("--preserve-fds=0", "0 1 2 3"), ("--preserve-fds=1", "0 1 2 3 4")] {
        let script = format!(
            "exec 3</dev/null 4</dev/null 9</dev/null; exec {} --root {} exec {flag} {} /bin/ls /proc/self/fd",
            test.host.runtime.display(),
            test.state_root().display(),
            container.id
        );
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", &script]);
        let output = Output::of(command)?.success()?;
        ensure_eq(
            output.stdout.split_whitespace().collect::<Vec<_>>().join(" ").as_str(),
            expected,
        )?;
    }
    Ok(())
}

fn is_a_session_leader(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let pid = detached(test, &container, &[])?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no stat")?.1.split_whitespace().collect();
    // Process group and session (proc_pid_stat(5)).
    ensure_eq((fields[2], fields[3]), (pid.to_string().as_str(), pid.to_string().as_str()))
}

fn neighbours_cannot_reach_it_before_its_exec(test: &Test) -> Outcome {
    // The script looks at the descriptors of every process, until it is ended.
    let script = "trap 'exit 0' TERM; while :; do for p in /proc/[0-9]*; do \
        if [ $p != /proc/1 ] && ls -l $p/fd 2>/dev/null | grep -qE 'socket:|/proc$|net:|mnt:'; then echo reached; fi; done; done";
    let bundle = test.sh(script)?.edit(|config| {
        config["process"]["capabilities"] = json!({
            "bounding": ["CAP_SYS_PTRACE", "CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]
        });
    });
    let container = bundle.start()?;
    for _ in 0..20 {
        test.rt(["exec", &container.id, "/bin/true"])?.success()?;
    }
    container.kill("TERM")?;
    ensure_eq(container.stdout()?.as_str(), "")
}

fn not_in_a_stopped_container(test: &Test) -> Outcome {
    let container = test.sh("exit 0")?.start()?;
    container.wait()?;
    let output = test.rt(["exec", &container.id, "/bin/true"])?;
    ensure(output.code != Some(0) && !output.stderr.is_empty(), "it ran")
}

fn not_in_a_paused_container(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    container.rt(&["pause"])?.success()?;
    let output = test.rt(["exec", &container.id, "/bin/true"])?;
    ensure(output.code != Some(0) && output.stderr.contains("paused"), output.stderr)?;
    container.rt(&["resume"])?.success()?;
    test.rt(["exec", &container.id, "/bin/true"])?.success().map(drop)
}

fn not_in_an_unknown_container(test: &Test) -> Outcome {
    let output = test.rt(["exec", "nobody", "/bin/true"])?;
    ensure(output.code != Some(0) && output.stderr.contains("does not exist"), output.stderr)
}

fn a_broken_process_file(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = sleeping(test)?;
    let path = test.folder.join("process.json");
    for (text, words) in [
        ("{\n\"args\": [}", "line 2"),
        (r#"{"args":[],"cwd":"/","user":{"uid":0,"gid":0}}"#, "`process.args` is empty"),
        (r#"{"args":["true"],"cwd":"not/absolute","user":{"uid":0,"gid":0}}"#, "is not absolute"),
        (r#"{"args":["true"],"cwd":"/","user":{"uid":4294967295,"gid":0}}"#, "is not an id"),
    ] {
        fs::write(&path, text)?;
        container.rt(&["exec", "--process", &path.display().to_string()])?.fails_with(words)?;
    }
    container.rt(&["exec", "--process", "/no/such/file"])?.fails_with("/no/such/file")?;
    sh(test, &container, &["--user", "root"], "true")?.fails_with("--user")?;
    sh(test, &container, &["--env", "novalue"], "true")?.fails_with("--env")?;
    sh(test, &container, &["--cap", "CAP_NONE"], "true")?.fails_with("--cap")?;
    sh(test, &container, &["--cwd", "/no/such"], "true")?.fails_with("/no/such")?;
    sh(test, &container, &["--tty", "--detach"], "true")?.fails_with("--console-socket")?;
    container.rt(&["exec"])?.fails_with("no program given")?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn a_console_socket_nobody_listens_on(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = sleeping(test)?;
    sh(test, &container, &["--tty", "--console-socket=/no/such/socket"], "true")?
        .fails_with("/no/such/socket")
        .map(drop)
}

fn limits_and_oom_score(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let file = file(test, &bundle, |process| {
        process["args"] = json!(["/bin/sh", "-c", "ulimit -n; cat /proc/self/oom_score_adj"]);
        process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 100 }]);
        process["oomScoreAdj"] = json!(321);
    })?;
    container.rt(&["exec", "--process", &file])?.success()?.stdout("99\n321\n").map(drop)
}

fn a_module_in_the_engine(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.wasm("probe", &["sleep"])?;
    let bundle = bundle.file("hello.wasm", fs::read(test.host.guest("hello")?)?)?;
    let container = bundle.start()?;
    let output = test.rt(["exec", &container.id, "/hello.wasm"])?.success()?;
    ensure(output.stdout.contains("Hello"), output.stdout)
}

fn a_native_program_beside_a_module(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.wasm("probe", &["sleep"])?;
    let bundle = bundle.file("bin/sh", fs::read("/bin/busybox")?)?;
    let sh = bundle.rootfs().join("bin/sh");
    fs::set_permissions(sh, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let container = bundle.start()?;
    test.rt(["exec", &container.id, "/bin/sh", "-c", "echo native; exit 3"])?
        .code(3)?
        .stdout("native\n")
        .map(drop)
}

fn processors_before_and_after(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let mut affinities = vec![json!({ "final": "0" })];
    if test.host.lane != "v2" {
        // The move into a cgroup with a cpuset undoes the initial affinity, as the specification
        // says.
        affinities.push(json!({ "initial": "0" }));
    }
    for affinity in affinities {
        let file = file(test, &bundle, |process| {
            process["args"] = json!(["/bin/grep", "Cpus_allowed_list", "/proc/self/status"]);
            process["execCPUAffinity"] = affinity;
        })?;
        let output = container.rt(&["exec", "--process", &file])?.success()?;
        output.stdout("Cpus_allowed_list:\t0\n")?;
    }
    Ok(())
}

fn in_a_created_container(test: &Test) -> Outcome {
    let container = test.sh("echo started")?.create()?;
    sh(test, &container, &[], "echo before")?.success()?.stdout("before\n")?;
    ensure_eq(container.status()?.as_str(), "created")
}

fn a_signal_ends_it_by_128_and_more(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    sh(test, &container, &[], "kill -KILL $$")?.code(137)?;
    let mut exec = test.command(["exec", &container.id, "/bin/sleep", "60"]).spawn()?;
    let pid = rustix::process::Pid::from_child(&exec);
    wait_until("it runs", || {
        sh(test, &container, &[], "ps | grep -c '[s]leep 60'")
            .is_ok_and(|output| output.stdout.trim() == "2")
    })?;
    // The `exec` in the foreground passes the signal on.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    ensure_eq(exec.wait()?.code(), Some(143))
}

fn it_ends_with_the_container(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    let pid = detached(test, &container, &[])?;
    container.kill("KILL")?;
    container.wait()?;
    let gone = || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
    };
    wait_until("it has ended too", gone)
}

fn without_a_mount_namespace(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?.edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "mount");
        }
        config["mounts"] = json!([]);
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config["root"]["readonly"] = json!(false);
    });
    let container = bundle.file("mark", "the container's")?.start()?;
    sh(test, &container, &[], "cat /mark")?.success()?.stdout("the container's").map(drop)
}

fn its_executable_is_protected(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.file("self", "#!/proc/self/exe\n")?;
    let path = container.rootfs().join("self");
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let container = container.start()?;
    // The interpreter of this script is the runtime itself. It must refuse a write to itself
    // (CVE-2019-5736).
    let output = test.rt(["exec", &container.id, "/self", "--version"])?;
    ensure(output.stdout.is_empty() || output.stdout.contains("rt version"), output.stdout)?;
    let mut command = test.command(["exec", &container.id, "/bin/sleep", "1"]);
    let mut exec = command.spawn()?;
    let exe = format!("/proc/{}/exe", exec.id());
    wait_until("it runs from a read-only file", || {
        rustix::fs::statvfs(exe.as_str())
            .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    })?;
    exec.wait()?;
    Ok(())
}

fn a_user_that_is_half_written(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = sleeping(test)?;
    for user in
        ["1:", ":1", ":", "", "+1", "1:+1", "-1", "1:-1", "1:2:3", "1: 2", "0x1", "root", "1:users"]
    {
        let flag = format!("--user={user}");
        let words = format!("wrong value `{user}` for `--user`");
        test.rt(["exec", &flag, &container.id, "id", "-u"])?.code(255)?.fails_with(&words)?;
    }
    for user in ["4294967295", "1:4294967295"] {
        let flag = format!("--user={user}");
        test.rt(["exec", &flag, &container.id, "id"])?
            .fails_with("4294967295, which is not an id")?;
    }
    test.rt(["exec", "--user=4294967296", &container.id, "id"])?.fails_with("wrong value")?;
    let file = test.folder.join("process.json");
    let limit = json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 });
    let process = json!({ "args": ["id"], "cwd": "/", "rlimits": [limit, limit] });
    fs::write(&file, process.to_string())?;
    let output = container.rt(&["exec", "--process", &file.display().to_string()])?;
    output.fails_with("`process.rlimits[1]`: RLIMIT_CORE is listed twice").map(drop)
}

/// An added capability is ambient only if the configuration has it among the inheritable ones, as
/// in runc. `exec` adds none to these (CVE-2022-29162).
fn an_added_capability_is_the_users_too(test: &Test) -> Outcome {
    // CAP_KILL is 5, CAP_NET_ADMIN is 12. The order is Inh, Prm, Eff, Bnd, Amb.
    let (kill, admin) = (1_u64 << 5, 1_u64 << 12);
    for (inheritable, user, added, expected) in [
        (
            json!(["CAP_KILL", "CAP_NET_ADMIN"]),
            "1000",
            "CAP_NET_ADMIN",
            [kill | admin, admin, admin, kill | admin, admin],
        ),
        (json!(["CAP_KILL"]), "1000", "CAP_NET_ADMIN", [kill, 0, 0, kill | admin, 0]),
        (json!(["CAP_KILL"]), "1000", "CAP_KILL", [kill, kill, kill, kill | admin, kill]),
        (json!([]), "1000", "CAP_KILL", [0, 0, 0, kill | admin, 0]),
        (json!([]), "0", "CAP_NET_ADMIN", [0, kill | admin, kill | admin, kill | admin, 0]),
    ] {
        let bundle = test.sh("exec sleep 60")?.edit(|config| {
            let set = json!(["CAP_KILL"]);
            config["process"]["capabilities"] = json!({ "bounding": ["CAP_KILL", "CAP_NET_ADMIN"], "effective": set, "permitted": set, "inheritable": inheritable });
            config["process"]["noNewPrivileges"] = json!(false);
        });
        let container = bundle.start()?;
        let flags = ["--cap", added, "--user", user];
        let output = sh(test, &container, &flags, "grep ^Cap /proc/self/status")?.success()?;
        let sets: Vec<u64> = output
            .stdout
            .lines()
            .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
            .collect();
        ensure_eq((added, user, sets), (added, user, expected.to_vec()))?;
    }
    Ok(())
}

/// Like `exec --process <(…)` in a shell. The program does not get the caller's other descriptors.
fn by_an_inherited_descriptor(test: &Test) -> Outcome {
    // crun closes the descriptor first.
    test.only_rt()?;
    let container = sleeping(test)?;
    let own = |script: &str| json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] });
    let listing =
        "cd /proc/self/fd; for f in [3-9] [1-9][0-9]; do [ -e $f ] && echo $f; done; echo ran";
    let file = test.folder.join("process.json");
    fs::write(&file, own(listing).to_string())?;
    let [resources, mounts, config] =
        ["resources", "mounts", "config"].map(|name| test.folder.join(name));
    fs::write(&resources, "{}")?;
    fs::write(&mounts, "[]")?;
    let bundle = test.sh(listing)?;
    fs::write(&config, bundle.config.to_string())?;
    let id = &container.id;
    let shell = |script: &str| {
        let mut bash = std::process::Command::new("bash");
        let runtime = test.command([""; 0]);
        let words = runtime.get_args().map(|arg| arg.to_string_lossy().into_owned());
        let words: Vec<String> = words.collect();
        bash.args(["-c", &format!("rt() {{ \"$0\" \"$@\"; }}; {script}")]);
        bash.arg(runtime.get_program()).current_dir(&test.folder);
        bash.env("FLAGS", words.join(" ")).stdin(Stdio::null());
        Output::of(bash)
    };
    for script in [
        "rt $FLAGS exec --process /dev/fd/5 ID 5<process.json 6<config 7<mounts",
        "rt $FLAGS exec --process /proc/self/fd/31 ID 31<process.json 3<config",
        "rt $FLAGS exec --process <(cat process.json) ID 9<config",
        "rt $FLAGS exec -p /dev/fd/4 ID 4< <(cat process.json)",
        "rt $FLAGS exec --process=/dev/stdin ID <process.json",
        "rt $FLAGS run --config /dev/fd/5 --bundle BUNDLE NEW 5<config 6<mounts",
        "rt $FLAGS run -f <(cat config) -b BUNDLE NEW",
        "rt $FLAGS run -f config -b /proc/self/fd/5 NEW 5<BUNDLE 6<mounts",
    ] {
        let script =
            script.replace("ID", id).replace("BUNDLE", &bundle.folder.display().to_string());
        let output = shell(&script.replace("NEW", &test.id()))?;
        ensure(
            (output.code, output.stdout.as_str()) == (Some(0), "ran\n"),
            format!("{script}: {output:?}"),
        )?;
    }
    for script in [
        "rt $FLAGS update --resources /dev/fd/5 ID 5<resources",
        "rt $FLAGS update --resources <(cat resources) ID",
        "rt $FLAGS mounts add ID /dev/fd/5 5<mounts",
        "rt --log /dev/fd/5 $FLAGS exec ID /bin/true 5>log",
        "rt --log /dev/fd/5 $FLAGS exec ID /no/such 5>log; grep -q such log",
    ] {
        let output = shell(&script.replace("ID", id))?;
        ensure(output.code == Some(0), format!("{script}: {output:?}"))?;
    }
    // One of these descriptors is also for the program.
    let script = format!(
        "rt $FLAGS exec --preserve-fds 2 --process /dev/fd/5 {id} 3<config 4<config 5<process.json 6<config"
    );
    shell(&script)?.success()?.stdout("3\n4\nran\n").map(drop)
}

/// With v1, as runc does.
fn in_cgroups_of_some_controllers(test: &Test) -> Outcome {
    let container = sleeping(test)?;
    if test.host.lane == "v2" {
        test.only_rt()?;
        let output = sh(test, &container, &["--cgroup", "pids:below"], "true")?;
        return output.fails_with("no hierarchies of controllers").map(drop);
    }
    if test.host.runtime.ends_with("crun") {
        return skip("crun takes a path only");
    }
    let own = cgroups_of(container.pid()?)?;
    let line = |table: &str, controller: &str| -> Outcome<String> {
        let has = |line: &&str| {
            line.split(':')
                .nth(1)
                .is_some_and(|names| names.split(',').any(|name| name == controller))
        };
        Ok(table.lines().find(has).ok_or("no such controller")?.to_owned())
    };
    for controller in ["pids", "freezer", "memory"] {
        super::cgroups::needs(test, controller)?;
        let path = line(&own, controller)?;
        let (names, path) =
            path.split_once(':').and_then(|(_, rest)| rest.split_once(':')).ok_or("no path")?;
        fs::create_dir_all(format!("/sys/fs/cgroup/{names}{path}/below/it"))?;
    }
    let is = |flags: &[&str], expected: &[(&str, &str)]| -> Outcome {
        let pid = detached(test, &container, flags)?;
        let table = cgroups_of(pid)?;
        for (controller, suffix) in expected {
            ensure_eq(line(&table, controller)?, line(&own, controller)? + suffix)?;
        }
        Ok(())
    };
    is(&["--cgroup", "pids:below"], &[("pids", "/below"), ("memory", ""), ("freezer", "")])?;
    is(
        &["--cgroup=pids,freezer:below/it"],
        &[("pids", "/below/it"), ("memory", ""), ("freezer", "/below/it")],
    )?;
    is(
        &["--cgroup", "pids:/below", "--cgroup", "memory:below/it"],
        &[("pids", "/below"), ("memory", "/below/it"), ("freezer", "")],
    )?;
    test.only_rt()?;
    for (flags, words) in [
        (&["--cgroup", "pids:../.."][..], "leads out of"),
        (&["--cgroup", "nonsense:below"], "no cgroup of `nonsense`"),
        (&["--cgroup", "pids:nowhere"], "nowhere"),
        (&["--cgroup", "pids:below", "--cgroup", "pids:below/it"], "has another one already"),
        (&["--cgroup", "below", "--cgroup", "below"], "another one already"),
    ] {
        sh(test, &container, flags, "true")?.fails_with(words)?;
    }
    Ok(())
}
