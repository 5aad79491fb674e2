//! Hooks: the times at which they run, and the results of a failure.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "hooks": run_in_order, get_the_state, a_failing_hook_undoes_the_container, a_hook_that_takes_too_long_is_ended, a_hook_that_does_not_read_a_long_state_is_ended, a_timeout_that_is_none_is_an_error, have_the_environment_around_them_without_one_of_their_own, run_in_the_bundle, get_their_arguments_and_environment_only, print_to_where_annotations_say, streams_that_cannot_be_opened_are_an_error, one_that_fails_after_the_start_ends_the_container, in_the_container_have_what_its_program_has, have_run_when_the_deletion_returns,
    have_nothing_else_open_where_close_range_is_forbidden,
    one_that_fails_in_the_container_says_nothing_of_the_program,
    a_cause_comes_before_the_failure_to_clean_up,
}

fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

fn with_hooks<'a>(bundle: Bundle<'a>, hooks: Value) -> Bundle<'a> {
    bundle.edit(|config| config["hooks"] = hooks)
}

fn run_in_order(test: &Test) -> Outcome {
    let log = test.folder.join("order");
    let inside = test.folder.join("volume");
    fs::create_dir(&inside)?;
    let note = |name: &str| json!([hook(&format!("echo {name} >> {}", log.display()))]);
    // These two hooks run in the container's mount namespace, the second one with the container's
    // root.
    let create_container = json!([hook(&format!("echo createContainer >> {}", log.display()))]);
    let start_container = json!([hook("echo startContainer >> /v/order")]);
    let bundle = with_hooks(
        test.sh("echo program >> /v/order")?,
        json!({
            "prestart": note("prestart"), "createRuntime": note("createRuntime"), "createContainer": create_container,
            "startContainer": start_container, "poststart": note("poststart"), "poststop": note("poststop"),
        }),
    );
    let bundle =
        bundle.mount(json!({ "destination": "/v", "source": inside, "options": ["bind"] }));
    let container = bundle.create()?;
    ensure_eq(fs::read_to_string(&log)?.as_str(), "prestart\ncreateRuntime\ncreateContainer\n")?;
    container.start()?;
    container.wait()?;
    ensure_eq(fs::read_to_string(inside.join("order"))?.as_str(), "startContainer\nprogram\n")?;
    ensure(fs::read_to_string(&log)?.ends_with("poststart\n"), "poststart")?;
    container.delete()?;
    ensure(fs::read_to_string(&log)?.ends_with("poststart\npoststop\n"), "poststop")
}

fn get_the_state(test: &Test) -> Outcome {
    let file = test.folder.join("state.json");
    let bundle = with_hooks(
        test.sh("exec sleep 60")?,
        json!({ "createRuntime": [hook(&format!("cat > {}", file.display()))] }),
    );
    let bundle = bundle.annotation("org.example.key", "value");
    let container = bundle.create()?;
    let state: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    ensure_eq(state["id"].as_str(), Some(container.id.as_str()))?;
    ensure_eq(state["pid"].as_i64(), Some(container.pid()?.into()))?;
    ensure_eq(state["bundle"].as_str(), bundle.folder.to_str())?;
    ensure_eq(state["annotations"]["org.example.key"].as_str(), Some("value"))?;
    ensure(state["status"].as_str().is_some_and(|status| status.starts_with("creat")), state)
}

fn a_failing_hook_undoes_the_container(test: &Test) -> Outcome {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = with_hooks(test.sh("true")?, json!({ kind: [hook("exit 3")] }));
        let id = test.id();
        let output = bundle.try_create(&id)?;
        ensure(output.code != Some(0), format!("{kind}: it was created"))?;
        ensure(
            !test.host.is_rt
                || output.stderr.contains(&format!("run {kind} hook `/bin/sh`: exit status 3")),
            output.stderr,
        )?;
        ensure(test.rt(["state", &id])?.code != Some(0), "it is there")?;
    }
    Ok(())
}

fn a_hook_that_takes_too_long_is_ended(test: &Test) -> Outcome {
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = json!(1);
    let bundle = with_hooks(test.sh("true")?, json!({ "createRuntime": [slow] }));
    let output = bundle.try_create(&test.id())?;
    ensure(output.code != Some(0), "it was created")?;
    ensure(!test.host.is_rt || output.stderr.contains("it took longer than 1 s"), output.stderr)
}

fn a_hook_that_does_not_read_a_long_state_is_ended(test: &Test) -> Outcome {
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = json!(1);
    let mut bundle = with_hooks(test.sh("true")?, json!({ "createRuntime": [slow] }));
    // More than a pipe can hold.
    for number in 0..100 {
        bundle = bundle.annotation(&format!("org.example.{number}"), &"x".repeat(1000));
    }
    let output = bundle.try_create(&test.id())?;
    ensure(output.code != Some(0), "it was created")?;
    ensure(!test.host.is_rt || output.stderr.contains("it took longer than 1 s"), output.stderr)
}

fn a_timeout_that_is_none_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    for timeout in [0, -1] {
        let mut hook = hook("true");
        hook["timeout"] = json!(timeout);
        let bundle = with_hooks(test.sh("true")?, json!({ "poststop": [hook] }));
        bundle.try_create(&test.id())?.fails_with("is not greater than 0")?;
    }
    Ok(())
}

/// On the host, a hook without `env` gets the caller's environment. In the container, it gets the
/// container's.
fn have_the_environment_around_them_without_one_of_their_own(test: &Test) -> Outcome {
    let file = test.folder.join("seen");
    let outside = format!("(echo $AROUND; env | grep -c ^_RT) >> {}; true", file.display());
    let hook = |script: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    let bundle = with_hooks(
        test.sh("cat /tmp/inside")?,
        json!({ "createRuntime": hook(&outside), "startContainer": hook("echo $AROUND > /tmp/inside") }),
    );
    let bundle =
        bundle.edit(|config| config["process"]["env"] = json!(["PATH=/bin", "AROUND=inside"]));
    bundle.write()?;
    let mut command =
        test.command(["run", "--bundle", &bundle.folder.display().to_string(), &test.id()]);
    command.env("AROUND", "outside");
    Output::of(command)?.success()?.stdout("inside\n")?;
    ensure_eq(fs::read_to_string(file)?.as_str(), "outside\n0\n")
}

fn run_in_the_bundle(test: &Test) -> Outcome {
    let file = test.folder.join("seen");
    let note = json!([hook(&format!("pwd >> {}", file.display()))]);
    let bundle = with_hooks(
        test.sh("true")?,
        json!({ "prestart": note, "createRuntime": note, "poststart": note, "poststop": note }),
    );
    bundle.run()?.success()?;
    let expected = format!("{}\n", bundle.folder.display()).repeat(4);
    ensure_eq(fs::read_to_string(file)?, expected)
}

fn get_their_arguments_and_environment_only(test: &Test) -> Outcome {
    let file = test.folder.join("seen");
    let script = format!(
        "echo \"$0 $1\" > {0}; env | grep -vE '^(PWD|SHLVL|_|OLDPWD)=' | sort >> {0}",
        file.display()
    );
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["A=1", "PATH=/usr/bin:/bin"] });
    with_hooks(test.sh("true")?, json!({ "createRuntime": [hook] })).run()?.success()?;
    ensure_eq(fs::read_to_string(file)?.as_str(), "zero one\nA=1\nPATH=/usr/bin:/bin\n")
}

fn print_to_where_annotations_say(test: &Test) -> Outcome {
    let [out, err] = ["out", "err"].map(|name| test.folder.join(name));
    fs::write(&out, "before\n")?;
    let say = |name: &str| json!([hook(&format!("echo {name}; echo {name} >&2"))]);
    let hooks = json!({ "createRuntime": say("createRuntime"), "createContainer": say("createContainer"),
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "echo startContainer; echo startContainer >&2"] }],
        "poststart": say("poststart"), "poststop": say("poststop") });
    let bundle = with_hooks(test.sh("true")?, hooks)
        .annotation("run.oci.hooks.stdout", &out.display().to_string())
        .annotation("run.oci.hooks.stderr", &err.display().to_string());
    let container = bundle.start()?;
    container.wait()?;
    container.delete()?;
    let mut expected: Vec<&str> =
        vec!["createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    expected.sort_unstable();
    ensure_eq(
        sorted(fs::read_to_string(err)?),
        expected.iter().map(|&name| name.to_owned()).collect(),
    )?;
    let text = fs::read_to_string(out)?;
    let rest = text.strip_prefix("before\n").ok_or("what was there is gone")?;
    ensure_eq(sorted(rest.to_owned()), expected.iter().map(|&name| name.to_owned()).collect())
}

fn streams_that_cannot_be_opened_are_an_error(test: &Test) -> Outcome {
    let bundle = with_hooks(test.sh("true")?, json!({ "createRuntime": [hook("true")] }));
    let bundle = bundle.annotation("run.oci.hooks.stdout", "/no/such/folder/file");
    bundle.try_create(&test.id())?.fails_with("/no/such/folder/file").map(drop)
}

/// runtime-spec 1.3: the failure of such a hook is an error. The runtime stops and deletes the
/// container, and does not run the remaining hooks.
fn one_that_fails_after_the_start_ends_the_container(test: &Test) -> Outcome {
    // runc 1.1 runs `poststart` hooks at `create`. crun only warns.
    test.only_rt()?;
    let [third, stopped] = ["third", "stopped"].map(|name| test.folder.join(name));
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = json!(1);
    let missing = json!({ "path": "/no/such/program" });
    for (failing, words) in [
        (hook("exit 3"), "run poststart hook `/bin/sh`: exit status 3"),
        (missing, "run poststart hook `/no/such/program`: No such file or directory"),
        (slow, "it took longer than 1 s"),
        (hook("kill -9 $$"), "killed by signal 9"),
    ] {
        let touch = |file: &std::path::Path| hook(&format!("echo >> {}", file.display()));
        let mark = test.id();
        let bundle = with_hooks(
            test.sh(&format!("sleep 1000; # {mark}"))?,
            json!({ "poststart": [hook("true"), failing, touch(&third)], "poststop": [touch(&stopped)] }),
        );
        let container = bundle.create()?;
        container.rt(&["start"])?.fails_with(words)?;
        container.rt(&["state"])?.fails_with("does not exist")?;
        bundle.run()?.code(1)?.fails_with(words)?;
        bundle.clone().flag("--detach").run()?.code(1)?.fails_with(words)?;
        ensure(!crate::harness::has_process(&mark), "its program is left")?;
        ensure(!third.exists(), "a later hook has run")?;
        ensure_eq(fs::read_to_string(&stopped)?.as_str(), "\n\n\n")?;
        fs::remove_file(&stopped)?;
    }
    Ok(())
}

fn in_the_container_have_what_its_program_has(test: &Test) -> Outcome {
    let note =
        |to: &str| format!("(env | grep -vE '^(SHLVL|_)=' | sort; id -u; id -g; pwd) > {to}");
    let script = note("/tmp/hook");
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    for (user, env) in [
        (0, json!(["PATH=/bin", "A=1"])),
        (1000, json!(["PATH=/bin"])),
        (4711, json!(["PATH=/bin", "HOME=/h"])),
    ] {
        let bundle = with_hooks(
            test.sh(&format!(
                "{}; cmp /tmp/hook /tmp/program || diff /tmp/hook /tmp/program",
                note("/tmp/program")
            ))?,
            json!({ "startContainer": hook }),
        );
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(bundle.rootfs().join("tmp"), fs::Permissions::from_mode(0o1777))?;
        let bundle = bundle.edit(|config| {
            config["process"]["user"] = json!({ "uid": user, "gid": user });
            config["process"]["env"] = env;
        });
        bundle.run()?.success()?.stdout("")?;
        let seen = fs::read_to_string(bundle.rootfs().join("tmp/hook"))?;
        ensure(seen.contains("HOME=/"), seen)?;
    }
    Ok(())
}

/// For podman, the codes 126 and 127 say that the program cannot run or does not exist.
fn one_that_fails_in_the_container_says_nothing_of_the_program(test: &Test) -> Outcome {
    test.only_rt()?;
    for (hook, words) in [
        (json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] }), "exit status 3"),
        (json!({ "path": "/no/such/program" }), "No such file or directory"),
        (json!({ "path": "/etc/passwd" }), "Permission denied"),
        (json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 127"] }), "exit status 127"),
    ] {
        let bundle = with_hooks(test.sh("true")?, json!({ "startContainer": [hook] }));
        bundle.run()?.code(1)?.fails_with(words)?;
    }
    Ok(())
}

/// For a stopped container, a running one, one that was never started, and after `run`.
fn have_run_when_the_deletion_returns(test: &Test) -> Outcome {
    let file = test.folder.join("ran");
    let slow = json!([hook(&format!("sleep 0.3; echo ran > {}", file.display()))]);
    let bundle = with_hooks(test.sh("sleep 1000")?, json!({ "poststop": slow }));
    let ran = |what: &str| {
        ensure(file.exists(), format!("not yet: {what}"))?;
        Ok::<_, crate::harness::Stop>(fs::remove_file(&file)?)
    };
    let container = bundle.start()?;
    container.kill("KILL")?;
    container.wait()?;
    container.delete()?;
    ran("of a stopped one")?;
    if test.host.is_rt {
        // The end of the first process takes a while, because it waits for all other processes.
        let many = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; echo up; wait";
        for _ in 0..5 {
            let container = bundle.clone().args(&["/bin/sh", "-c", many]).start()?;
            container.wait_for_output("up")?;
            container.kill("KILL")?;
            container.delete()?;
            ran("right after SIGKILL")?;
        }
    }
    let container = bundle.start()?;
    container.rt(&["delete", "--force"])?.success()?;
    ran("of one that runs")?;
    bundle.create()?.rt(&["delete", "--force"])?.success()?;
    ran("of one that was not started")?;
    bundle.clone().args(&["/bin/true"]).run()?.success()?;
    ran("after `run`")
}

/// For hooks in the container, the container's filter is in force. The caller may have passed
/// descriptors with any numbers.
fn have_nothing_else_open_where_close_range_is_forbidden(test: &Test) -> Outcome {
    test.only_rt()?;
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return skip("the host has no perl");
    }
    let script = "use POSIX; $^F = 9999; open(my $f, '<', '/'); POSIX::dup2(fileno($f), $_) for 3 .. 2 + $ARGV[0]; exec @ARGV[1 .. $#ARGV]";
    for (gifts, errno) in [(1, 1), (1100, 1), (5000, 38)] {
        let bundle = with_hooks(
            test.sh("cat /tmp/open")?,
            json!({ "startContainer": [hook("for f in /proc/self/fd/*; do echo ${f##*/}; done > /tmp/open")] }),
        );
        let bundle = bundle.flag(format!("--preserve-fds={gifts}")).edit(|config| {
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls":
                [{ "names": ["close_range"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno }] });
        });
        bundle.write()?;
        let run = test.command(bundle.command_line("run", &test.id()));
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 8192; exec \"$@\"", "sh", "perl", "-e", script]);
        command.arg(gifts.to_string()).arg(run.get_program()).args(run.get_args());
        let open = Output::of(command)?.success()?.stdout;
        // The last descriptor belongs to the shell, or is the directory that it reads.
        let highest = open.lines().filter_map(|line| line.parse().ok()).max().unwrap_or(0);
        ensure(highest <= 10, format!("{gifts} gifts: {highest} is open"))?;
    }
    Ok(())
}

/// A hook mounts something in the state directory, so that it cannot be removed, and fails.
fn a_cause_comes_before_the_failure_to_clean_up(test: &Test) -> Outcome {
    test.only_rt()?;
    for (command, kind) in
        [("create", "createRuntime"), ("run", "poststart"), ("start", "poststart")]
    {
        let id = test.id();
        let place = test.state_root().join(&id).join("place");
        let script = format!("mkdir {0} && mount -t tmpfs tmpfs {0}; exit 3", place.display());
        let bundle = with_hooks(test.sh("sleep 60")?, json!({ kind: [hook(&script)] }));
        bundle.write()?;
        let output = if command == "start" {
            let create = test.command(bundle.command_line("create", &id));
            Container::create(test, &id, create)?.rt(&["start"])?
        } else {
            test.rt(bundle.command_line(command, &id))?
        };
        let mut unmount = Command::new("umount");
        unmount.arg("--lazy").arg(&place);
        Output::of(unmount)?.success()?;
        test.rt(["delete", "--force", &id])?.success()?;
        let cause = format!("rt: {command} `{id}`: run {kind} hook `/bin/sh`: exit status 3");
        let left = format!("{}`: Resource busy\n", test.state_root().join(&id).display());
        let line = output.fails_with("; then cleaning up failed: remove `")?.stderr;
        ensure(line.starts_with(&cause) && line.ends_with(&left), line)?;
    }
    Ok(())
}
