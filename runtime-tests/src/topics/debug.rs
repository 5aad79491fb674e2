//! `--debug`: the present step of a command, as `docs/operation.md` numbers the steps.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::checkpoint;
use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq};

super::tests! { "debug":
    create_tells_each_step, a_container_with_a_helper_tells_each_step, start_exec_and_delete_tell_each_step, run_tells_the_steps_of_three_commands,
    checkpoint_and_restore_tell_each_step, the_last_step_is_the_one_that_fails,
    lines_are_text_or_json, nothing_is_told_without_it, no_secret_is_told, init_holds_no_log,
}

const OPERATION: &str = include_str!("../../../docs/operation.md");

/// The steps of a command in the document, for example `12: init mounts`.
fn steps(heading: &str) -> Vec<String> {
    let level = heading.split(' ').next().unwrap_or_default();
    let is_next = |line: &str| {
        line.split_once("# ")
            .is_some_and(|(above, _)| above.len() < level.len() && !line.contains('|'))
    };
    let lines = OPERATION.lines().skip_while(|line| *line != heading).skip(1);
    let section = lines.take_while(|line| !is_next(line));
    let step = |line: &str| {
        let (number, rest) = line.split_once(". **")?;
        number.parse::<u8>().ok()?;
        let name = rest.split("**").next()?.trim_end_matches('.');
        let is_capital = |at: usize| name[at..].starts_with(char::is_uppercase);
        let first = if is_capital(1) { &name[..1] } else { &name[..1].to_lowercase() };
        Some(format!("{number}: {first}{}", &name[1..]))
    };
    section.filter_map(step).collect()
}

/// A log file, and the flags for it.
fn log(test: &Test) -> (PathBuf, Vec<String>) {
    let path = test.folder.join(format!("{}.log", test.id()));
    let shown = path.display().to_string();
    (path, ["--debug", "--log-format", "json", "--log", &shown].map(str::to_owned).to_vec())
}

fn messages(log: &str) -> Outcome<Vec<String>> {
    let message = |line: &str| -> Outcome<String> {
        let line: Value = serde_json::from_str(line)?;
        Ok(line["msg"].as_str().unwrap_or_default().to_owned())
    };
    log.lines().map(message).collect()
}

/// The logged steps of a command, without their objects.
fn told(log: &str, command: &str) -> Outcome<Vec<String>> {
    let begin = format!("{command}, step ");
    let messages = messages(log)?;
    let told = messages.iter().filter_map(|message| message.strip_prefix(&begin));
    let two = |told: &str| told.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ");
    Ok(told.map(two).collect())
}

/// Runs a command with a log. Returns its output and the log.
fn logged(test: &Test, args: &[&str]) -> Outcome<(Output, String)> {
    let (path, flags) = log(test);
    let (out, err) = (path.with_extension("out"), path.with_extension("err"));
    let args: Vec<&str> = flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
    let status = test
        .command(args)
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::create(&err)?)
        .status()?;
    let (stdout, stderr) = (fs::read_to_string(out)?, fs::read_to_string(err)?);
    Ok((Output { code: status.code(), stdout, stderr }, fs::read_to_string(path)?))
}

fn create_tells(bundle: &Bundle<'_>) -> Outcome<String> {
    bundle.write()?;
    let (test, id) = (bundle.test, bundle.test.id());
    let folder = bundle.folder.display().to_string();
    let (output, log) = logged(test, &["create", "--bundle", &folder, &id])?;
    output.success()?;
    ensure_eq(told(&log, "create")?, steps("## create"))?;
    Ok(id)
}

fn hooks(script: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
}

fn create_tells_each_step(test: &Test) -> Outcome {
    test.only_rt()?;
    ensure_eq(steps("## create").len(), 21)?;
    create_tells(&test.sh("true")?)?;
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
    create_tells(&test.sh("true")?.edit(|config| {
        config["hooks"] = json!({ "prestart": hooks("true"), "createContainer": hooks("true") });
        config["process"]["noNewPrivileges"] = json!(false);
        config["linux"]["seccomp"] = filter;
    }))
    .map(drop)
}

fn a_container_with_a_helper_tells_each_step(test: &Test) -> Outcome {
    test.only_rt()?;
    let other = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/pid", other.pid()?);
    let bundle = test.sh("true")?.edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        for namespace in namespaces.into_iter().flatten().filter(|it| it["type"] == "pid") {
            namespace["path"] = json!(path);
        }
    });
    create_tells(&bundle).map(drop)
}

fn start_exec_and_delete_tell_each_step(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.create()?;
    let id = container.id.as_str();
    for (args, heading) in [
        (vec!["start", id], "## start"),
        (vec!["exec", id, "true"], "## exec"),
        (vec!["exec", "--detach", id, "true"], "## exec"),
        (vec!["delete", "--force", id], "## delete"),
    ] {
        let (output, log) = logged(test, &args)?;
        output.success()?;
        ensure_eq((args[0], told(&log, args[0])?), (args[0], steps(heading)))?;
    }
    Ok(())
}

fn run_tells_the_steps_of_three_commands(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("echo hello")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let (output, log) = logged(test, &["run", "--bundle", &folder, &test.id()])?;
    output.success()?.stdout("hello\n")?;
    ensure_eq(told(&log, "create")?, steps("## create"))?;
    ensure_eq(told(&log, "start")?, steps("## start").split_off(2))?;
    ensure_eq(told(&log, "delete")?, steps("## delete"))
}

fn checkpoint_and_restore_tell_each_step(test: &Test) -> Outcome {
    test.only_rt()?;
    checkpoint::needs_criu()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let images = checkpoint::images(test).display().to_string();
    let (output, log) = logged(test, &["checkpoint", "--image-path", &images, &container.id])?;
    output.success()?;
    ensure_eq(told(&log, "checkpoint")?, steps("### checkpoint"))?;
    let folder = bundle.folder.display().to_string();
    let id = test.id();
    let args = ["restore", "--detach", "--bundle", &folder, "--image-path", &images, &id];
    let (output, log) = logged(test, &args)?;
    output.success()?;
    ensure_eq(told(&log, "restore")?, steps("### Steps of `restore`"))
}

fn the_last_step_is_the_one_that_fails(test: &Test) -> Outcome {
    test.only_rt()?;
    let missing = json!({ "destination": "/a", "source": "/none", "options": ["bind"] });
    let edited =
        |change: fn(&mut Value)| Ok::<_, crate::harness::Stop>(test.sh("true")?.edit(change));
    for (step, cause, bundle) in [
        (3, "ociVersion", edited(|config| config["ociVersion"] = json!("2.0"))?),
        (12, "mount `/a`: open source `/none`", test.sh("true")?.mount(missing)),
        (
            14,
            "exit status 3",
            edited(|config| config["hooks"] = json!({ "prestart": hooks("exit 3") }))?,
        ),
        (
            15,
            "exit status 4",
            edited(|config| config["hooks"] = json!({ "createContainer": hooks("exit 4") }))?,
        ),
        (13, "working directory", edited(|config| config["process"]["cwd"] = json!("/proc/none"))?),
        (19, "no such file", test.linux(&["/none"])?),
    ] {
        bundle.write()?;
        let folder = bundle.folder.display().to_string();
        let (output, log) = logged(test, &["create", "--bundle", &folder, &test.id()])?;
        output.fails_with(cause)?;
        let all = told(&log, "create")?;
        ensure_eq(all.last(), steps("## create").get(step - 1))?;
        let last = messages(&log)?.pop().unwrap_or_default();
        ensure(last.starts_with("create `") && last.contains(cause), last)?;
    }
    Ok(())
}

fn lines_are_text_or_json(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let run = |flags: &[&str]| {
        let id = test.id();
        let args = [flags, &["run", "--bundle", &folder, &id]].concat();
        test.rt(args)?.success()
    };
    let text = run(&["--debug"])?.stderr;
    let step =
        format!("level=debug msg=\"create, step 12: init mounts: {}", bundle.rootfs().display());
    let is_line = |line: &str| line.starts_with("time=\"") && line.contains("level=debug msg=\"");
    ensure(text.contains(&step) && text.lines().all(is_line), &text)?;
    let json = run(&["--log-level", "debug", "--log-format", "json"])?.stderr;
    ensure_eq(told(&json, "create")?, steps("## create"))?;
    let level =
        |line: &str| serde_json::from_str::<Value>(line).map(|line| line["level"] == "debug");
    ensure(json.lines().all(|line| level(line).unwrap_or(false)), &json)
}

fn nothing_is_told_without_it(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?;
    bundle.write()?;
    let (path, folder) = (test.folder.join("log"), bundle.folder.display().to_string());
    let shown = path.display().to_string();
    for level in ["error", "warn", "info"] {
        let args = ["--log", &shown, "--log-level", level, "run", "--bundle", &folder, &test.id()];
        ensure_eq(test.rt(args)?.success()?.stderr.as_str(), "")?;
        ensure_eq(fs::read_to_string(&path)?.as_str(), "")?;
    }
    Ok(())
}

fn no_secret_is_told(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true # secret-1")?.annotation("org.example", "secret-2").edit(|config| {
        config["process"]["env"] = json!(["PATH=/bin:/usr/bin", "A=secret-3"]);
        config["hooks"] = json!({ "prestart": hooks("true # secret-4") });
    });
    let id = create_tells(&bundle)?;
    test.rt(["start", &id])?.success()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let args = ["exec", "--env", "B=secret-5", &container.id, "true", "secret-6"];
    logged(test, &args)?.0.success()?;
    let logs = fs::read_dir(&test.folder)?.filter_map(|it| Some(it.ok()?.path()));
    let logs: Vec<_> = logs.filter(|it| it.extension().is_some_and(|it| it == "log")).collect();
    ensure_eq(logs.len(), 2)?;
    for log in logs {
        let text = fs::read_to_string(log)?;
        ensure(text.contains("step") && !text.contains("secret"), text)?;
    }
    Ok(())
}

/// While init waits for the hooks of the runtime process, it has already mounted the image's files.
fn init_holds_no_log(test: &Test) -> Outcome {
    test.only_rt()?;
    let list = test.folder.join("descriptors");
    let script = format!(
        r#"pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/'); ls -l /proc/$pid/fd > {}"#,
        list.display()
    );
    let bundle = test.sh("true")?.edit(|config| {
        config["hooks"] = json!({ "prestart": hooks(&script) });
    });
    create_tells(&bundle)?;
    let list = fs::read_to_string(list)?;
    ensure(list.contains("socket:") && !list.contains(".log"), list)
}
