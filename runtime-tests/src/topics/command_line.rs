//! Flags, and the output that callers parse.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq};

super::tests! { "command_line":
    a_flag_takes_its_value_in_either_way, an_unknown_flag_is_named, version_is_what_docker_parses,
    features_are_json_without_privileges_or_a_root, spec_makes_a_configuration_that_runs,
    spec_makes_a_configuration_for_wasm, spec_does_not_overwrite, nothing_is_printed_on_success,
    the_default_root_depends_on_the_user, another_configuration_file_can_be_given, a_shell_completes_command_lines,
    what_callers_pass_for_others_sake_is_taken, has_every_flag_of_crun_and_runc, a_short_usage_is_told, spec_takes_a_file, the_log_can_be_the_journal_or_the_systems, every_level_of_runcs_log_is_known,
}

fn a_flag_takes_its_value_in_either_way(test: &Test) -> Outcome {
    let bundle = test.sh("true")?;
    bundle.write()?;
    let (folder, root) =
        (bundle.folder.display().to_string(), test.state_root().display().to_string());
    for args in [
        vec!["--root", &root, "run", "--bundle", &folder, "c1"],
        vec![&format!("--root={root}"), "run", &format!("--bundle={folder}"), "c2"],
        vec![&format!("--root={root}"), "--root", &root, "run", "-b", &folder, "c3"],
    ] {
        let mut command = Command::new(&test.host.runtime);
        command.args(args);
        Output::of(command)?.success()?;
    }
    Ok(())
}

fn an_unknown_flag_is_named(test: &Test) -> Outcome {
    for args in [["--invalidflag", "list"], ["list", "--invalidflag"]] {
        let output = test.rt(args)?;
        ensure(
            output.code != Some(0) && (output.stderr + &output.stdout).contains("invalidflag"),
            "not named",
        )?;
    }
    Ok(())
}

fn version_is_what_docker_parses(test: &Test) -> Outcome {
    let output = test.rt(["--version"])?.success()?.stdout;
    let with_version: Vec<_> = output.lines().filter(|line| line.contains("version")).collect();
    ensure_eq(with_version.len(), 1)?;
    ensure_eq(output.lines().next(), with_version.first().copied())?;
    ensure(output.lines().any(|line| line.starts_with("spec: 1.")), output)
}

fn features_are_json_without_privileges_or_a_root(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    command.arg(&test.host.runtime).arg("features");
    let output = Output::of(command)?.success()?;
    ensure_eq(output.stderr.as_str(), "")?;
    let features: Value = serde_json::from_str(&output.stdout)?;
    ensure_eq(features["ociVersionMin"].as_str(), Some("1.0.0"))?;
    ensure(
        features["ociVersionMax"].as_str().is_some_and(|version| version.starts_with("1.")),
        "ociVersionMax",
    )?;
    let has = |list: &Value, name: &str| {
        list.as_array().is_some_and(|list| list.iter().any(|entry| entry == name))
    };
    ensure(has(&features["mountOptions"], "rro"), "mountOptions")?;
    ensure(has(&features["linux"]["namespaces"], "user"), "namespaces")?;
    ensure(features["linux"]["mountExtensions"]["idmap"]["enabled"].is_boolean(), "idmap")
}

fn spec_makes_a_configuration_that_runs(test: &Test) -> Outcome {
    let bundle = test.linux(&[])?;
    test.rt(["spec", "--bundle", &bundle.folder.display().to_string()])?.success()?.stdout("")?;
    let mut bundle = bundle;
    bundle.config = serde_json::from_str(&fs::read_to_string(bundle.folder.join("config.json"))?)?;
    let bundle = bundle
        .args(&["/bin/echo", "hello"])
        .edit(|config| config["process"]["terminal"] = false.into());
    bundle.run()?.success()?.stdout("hello\n").map(drop)
}

fn spec_makes_a_configuration_for_wasm(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = crate::harness::Bundle::new(test, &[])?;
    let folder = bundle.folder.display().to_string();
    test.rt(["spec", "--wasm", "--bundle", &folder])?.success()?;
    fs::copy(test.host.guest("hello")?, bundle.rootfs().join("app.wasm"))?;
    test.rt(["run", "--bundle", &folder, &test.id()])?
        .success()?
        .stdout("Hello from Wasm!\n")
        .map(drop)
}

fn spec_does_not_overwrite(test: &Test) -> Outcome {
    let bundle = test.sh("true")?;
    bundle.write()?;
    let before = fs::read(bundle.folder.join("config.json"))?;
    ensure(
        test.rt(["spec", "--bundle", &bundle.folder.display().to_string()])?.code != Some(0),
        "it succeeded",
    )?;
    ensure_eq(fs::read(bundle.folder.join("config.json"))?, before)
}

fn nothing_is_printed_on_success(test: &Test) -> Outcome {
    let bundle = test.sh("exec sleep 60")?;
    let id = test.id();
    let silent = |output: Output| ensure_eq(output.success()?.stderr.as_str(), "");
    silent(bundle.try_create(&id)?)?;
    for args in [["start", &id].as_slice(), &["kill", &id, "KILL"], &["delete", "--force", &id]] {
        silent(test.rt(args)?.stdout("")?)?;
    }
    Ok(())
}

fn the_default_root_depends_on_the_user(test: &Test) -> Outcome {
    test.only_rt()?;
    // A user with this number need not exist. Only the runtime directory must exist.
    let own = test.folder.join("runtime-dir");
    fs::create_dir_all(own.join("rt/left-over"))?;
    let list = |uid: &str| {
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={uid}"), "--clear-groups"])
            .arg(&test.host.runtime)
            .args(["--debug", "list"]);
        command.env("XDG_RUNTIME_DIR", &own);
        Output::of(command)
    };
    let mention = "leave out `left-over`";
    std::os::unix::fs::chown(&own, Some(65534), Some(65534))?;
    ensure(list("65534")?.success()?.stderr.contains(mention), "the user's own root was not read")?;
    ensure(!list("0")?.success()?.stderr.contains(mention), "root's root is not the user's")
}

fn another_configuration_file_can_be_given(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("echo other")?;
    bundle.write()?;
    fs::rename(bundle.folder.join("config.json"), test.folder.join("other.json"))?;
    let (folder, file) =
        (bundle.folder.display().to_string(), test.folder.join("other.json").display().to_string());
    test.rt(["run", "-b", &folder, "-f", &file, &test.id()])?.success()?.stdout("other\n").map(drop)
}

fn a_shell_completes_command_lines(test: &Test) -> Outcome {
    test.only_rt()?;
    for shell in ["bash", "zsh", "fish"] {
        let script = test.rt(["completion", shell])?.success()?.stdout;
        ensure(script.contains("preserve-fds") && script.contains("rt"), shell)?;
    }
    let script = test.folder.join("completion.bash");
    fs::write(&script, test.rt(["completion", "bash"])?.stdout)?;
    let ask = format!(
        "source {}; COMP_WORDS=(rt pau); COMP_CWORD=1; _rt rt pau rt; echo ${{COMPREPLY[@]}}; \
         complete -p rt-wasm >/dev/null",
        script.display()
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &ask]);
    Output::of(bash)?.success()?.stdout("pause\n")?;
    test.rt(["completion", "sh"])?.fails_with("wrong value `sh`").map(drop)
}

/// Flags that some caller passes to every runtime, and that have no further effect in `rt`.
fn what_callers_pass_for_others_sake_is_taken(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.flag("--detach").flag("--no-new-keyring").create()?;
    ensure_eq(container.status()?.as_str(), "created")?;
    test.sh("true")?.flag("-no-subreaper").run()?.success()?;
    test.rt(["--rootless=false", "--debug", "list"])?.success()?;
    for value in ["auto", "true", "false"] {
        test.rt(["--rootless", value, "list"])?.success()?;
    }
    container.rt(&["checkpoint", "--tcp-close"])?.fails_with("not running: created").map(drop)
}

fn every_level_of_runcs_log_is_known(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?;
    bundle.write()?;
    let lines = |level: &str| -> Outcome<usize> {
        let log = test.folder.join(format!("{level}.log"));
        let mut command = Command::new(&test.host.runtime);
        command.arg("--root").arg(test.state_root()).arg("--log").arg(&log);
        command.args(["--log-level", level, "run", "--bundle"]).arg(&bundle.folder).arg(test.id());
        Output::of(command)?.success()?;
        Ok(fs::read_to_string(log).map_or(0, |text| text.lines().count()))
    };
    for level in ["info", "warn", "warning", "error", "fatal", "panic"] {
        ensure_eq((level, lines(level)?), (level, 0))?;
    }
    ensure_eq(lines("trace")?, lines("debug")?)
}

/// Flags and commands that `rt` lacks, and the reasons.
const LACKS: &[(&str, &str, &str)] = &[
    ("runc", "--criu", "CRIU is looked for in PATH, as runc does itself since 1.2"),
    ("runc", "help", "`--help` says it"),
];

/// The long and short flags in a help text, and whether each flag requires a value. A flag is a
/// word at the beginning of a line, after a comma or after brackets.
fn flags(help: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for line in help.lines().map(str::trim_start).filter(|line| line.starts_with('-')) {
        // The description begins after two spaces.
        let names = line.split("  ").next().unwrap_or_default();
        // `--flag=VALUE` and `--flag[=VALUE]` of crun, `--flag value` of runc.
        let has_value = (names.contains('=') && !names.contains("[="))
            || names.split([' ', ',']).any(|word| !word.is_empty() && !word.starts_with('-'));
        for word in names.split([' ', ',']).filter(|word| word.starts_with('-')) {
            let word = word.split(['=', '[']).next().unwrap_or_default();
            if word.len() > 1 && word != "-?" && !found.iter().any(|(name, _)| name == word) {
                found.push((word.to_owned(), has_value));
            }
        }
    }
    found
}

/// Compares with the installed runtimes. If a new version has a new flag, this test fails.
fn has_every_flag_of_crun_and_runc(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut asked = 0;
    let mut missing = Vec::new();
    for other in ["crun", "runc"] {
        let help = |command: &[&str]| -> Option<String> {
            let output = Command::new(other).args(command).arg("--help").output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let Some(global) = help(&[]) else { continue };
        // `	create      - create a container`, or `   create      create a container`.
        let commands = global.lines().filter_map(|line| {
            let name = line.trim_start().split([' ', ',']).next()?;
            let is_listed = line.starts_with(['\t', ' ']) && !name.is_empty();
            (is_listed && name.chars().all(|c| c.is_ascii_lowercase())).then_some(name)
        });
        // The first word is the program's own name.
        let commands: Vec<&str> = commands.filter(|name| *name != other).collect();
        ensure(commands.len() > 12, format!("{other} has {commands:?}"))?;
        let mut all = vec![(String::new(), flags(&global))];
        for command in commands {
            all.push((command.to_owned(), flags(&help(&[command]).unwrap_or_default())));
        }
        for (command, flags) in all {
            let lacked = |of: &str, word: &str| {
                LACKS.iter().any(|(name, lacked, _)| (*name, *lacked) == (of, word))
            };
            if lacked(other, &command) {
                continue;
            }
            if !command.is_empty()
                && test
                    .command([command.as_str(), "--help"])
                    .output()?
                    .stderr
                    .starts_with(b"rt: unknown command")
            {
                missing.push(format!("{other} {command}"));
                continue;
            }
            for (flag, has_value) in flags {
                let name = format!("{other} {command}");
                let name = name.trim_end();
                if lacked(name, &flag) {
                    continue;
                }
                asked += 1;
                // `rt` names the first unknown word. The value is `5`, which can be wrong for the
                // flag.
                let value = if has_value { "5" } else { "" };
                let words = [command.as_str(), &flag, value, "--no-such-flag"];
                let mut rt = test.command(words.iter().filter(|word| !word.is_empty()));
                // `spec` writes a file.
                rt.current_dir(&test.folder);
                let output = Output::of(rt)?;
                let unknown = [
                    "unknown flag or argument `{}`",
                    "unknown command `5`",
                    "unknown flag or argument `5`",
                ];
                if unknown.iter().any(|words| output.stderr.contains(&words.replace("{}", &flag))) {
                    missing.push(format!("{name} {flag} {value}"));
                }
            }
        }
    }
    ensure(missing.is_empty(), format!("rt lacks {missing:?}"))?;
    if asked == 0 { crate::harness::skip("neither crun nor runc is here") } else { Ok(()) }
}

/// All programs that use argp(3) have these flags, and so has crun.
fn a_short_usage_is_told(test: &Test) -> Outcome {
    test.only_rt()?;
    for (args, words) in [
        (&["--usage"][..], "Usage: rt "),
        (&["run", "--usage"], "Usage: rt run "),
        (&["exec", "--tty", "--usage"], "Usage: rt exec "),
        (&["-V"], "rt version "),
        (&["-v"], "rt version "),
    ] {
        let output = test.rt(args)?.success()?;
        ensure(output.stdout.starts_with(words), format!("{args:?}: {}", output.stdout))?;
    }
    // After the container's name, the flag belongs to the program.
    let container = test.sh("exec sleep 60")?.start()?;
    let output = test.rt(["exec", &container.id, "/bin/echo", "--usage"])?.success()?;
    output.stdout("--usage\n").map(drop)
}

fn spec_takes_a_file(test: &Test) -> Outcome {
    test.only_rt()?;
    let folder = test.folder.join("b");
    fs::create_dir(&folder)?;
    let (bundle, elsewhere) = (folder.display().to_string(), test.folder.join("else.json"));
    test.rt(["spec", "--bundle", &bundle, "--file", "other.json"])?.success()?;
    test.rt(["spec", "-f", &elsewhere.display().to_string()])?.success()?;
    let text = fs::read_to_string(folder.join("other.json"))?;
    ensure_eq(fs::read_to_string(elsewhere)?, text)?;
    ensure(!folder.join("config.json").exists(), "there is another one")?;
    test.rt(["spec", "--bundle", &bundle, "-f", "other.json"])?.fails_with("File exists")?;
    test.rt(["spec", "--file", "/no/such/folder/x"])?.fails_with("/no/such/folder/x").map(drop)
}

/// The test listens on sockets in the places of journald's and syslog's.
fn the_log_can_be_the_journal_or_the_systems(test: &Test) -> Outcome {
    use std::os::unix::net::UnixDatagram;
    test.only_rt()?;
    let listen = |name: &str| -> Outcome<UnixDatagram> {
        let socket = UnixDatagram::bind(test.folder.join(name))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        Ok(socket)
    };
    let (journal, system) = (listen("journal")?, listen("log")?);
    let script = "mount -t tmpfs none /run; mkdir -p /run/systemd/journal; mount -t tmpfs none /dev
        for to in /run/systemd/journal/socket /dev/log; do touch $to; done
        mount --bind journal /run/systemd/journal/socket; mount --bind log /dev/log; exec \"$@\"";
    let with = |log: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script, "sh"]).current_dir(&test.folder);
        command.arg(&test.host.runtime).args(["--log", log, "--root"]).arg(test.state_root());
        command.args(["state", "no-such"]);
        Output::of(command)
    };
    let hear = |socket: &UnixDatagram| -> Outcome<String> {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    with("journald:name of it")?.fails_with("does not exist")?;
    let said = hear(&journal)?;
    for line in ["PRIORITY=3", "SYSLOG_IDENTIFIER=rt", "ID=name of it"] {
        ensure(said.lines().any(|there| there == line), &said)?;
    }
    ensure(said.contains("MESSAGE=state `no-such`"), &said)?;
    with("syslog:name")?.fails_with("does not exist")?;
    let said = hear(&system)?;
    ensure(said.starts_with("<11>name[") && said.contains("]: state `no-such`"), &said)?;
    let file = test.folder.join("file.log");
    with(&format!("file:{}", file.display()))?.fails_with("does not exist")?;
    ensure(fs::read_to_string(file)?.contains("no-such"), "nothing in the file")?;
    with("journald:")?.fails_with("a name is missing")?;
    test.rt(["--log", "syslog:", "list"])?.fails_with("a name is missing").map(drop)
}
