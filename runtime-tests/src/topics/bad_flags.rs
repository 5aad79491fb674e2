//! Every flag that requires a value gets a wrong one, and every command gets a wrong name. The list
//! of flags comes from `--help`.

use crate::harness::{Container, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, wait_until};

super::tests! { "bad_flags": every_flag_with_a_wrong_value, every_command_with_a_wrong_name }

const COMMANDS: [&str; 26] = [
    "create",
    "start",
    "state",
    "exec",
    "kill",
    "delete",
    "run",
    "pause",
    "resume",
    "update",
    "ps",
    "mounts add",
    "mounts remove",
    "events",
    "checkpoint",
    "restore",
    "list",
    "spec",
    "features",
    "check",
    "completion",
    "wasm compile",
    "wasm cache list",
    "wasm cache prune",
    "wasm cache clear",
    "",
];

/// A value that is wrong for a flag. None if every text is valid, or if only a later step can find
/// the error.
fn wrong(command: &str, flag: &str) -> Option<&'static str> {
    Some(match (command, flag) {
        // A variable may have any value or none. SELinux, where it exists, decides about labels.
        ("exec", "--env" | "--process-label") | ("restore", "--lsm-mount-context") => return None,
        // Only a container with `linux.intelRdt` has these limits.
        ("update", "--l3-cache-schema" | "--mem-bw-schema") => return None,
        // `restore` writes this file after CRIU is done. The topic `checkpoint_failures` tests it.
        ("restore", "--pid-file") => return None,
        // Only CRIU understands this value.
        ("restore", "--lsm-profile") => return None,
        (_, "--preserve-fds") => "1000000000",
        (_, "--page-server") => "nobody",
        (_, "--parent-path") => "/far",
        ("exec", "--cgroup") => "../..",
        ("exec", "--cwd") => "/etc/passwd",
        (
            _,
            "--root" | "--log" | "--bundle" | "--config" | "--pid-file" | "--console-socket"
            | "--wasm-config" | "--pidfd-socket" | "--image-path" | "--work-path" | "--process"
            | "--resources" | "--file",
        ) => "/proc/none/such",
        _ => "wrong",
    })
}

/// Flags that do nothing, so `--help` does not list them. `rt` checks their values all the same.
const HIDDEN: [(&str, &str); 2] = [("", "--rootless"), ("update", "--kernel-memory")];

/// The flags of a command that require a value.
fn flags(test: &Test, command: &str) -> Outcome<Vec<String>> {
    let help = test.rt(command.split_whitespace().chain(["--help"]))?;
    if help.stderr.contains("`criu` is not installed") {
        return Ok(Vec::new());
    }
    let help = help.success()?.stdout;
    let flag = |line: &str| {
        let (_, rest) = line.trim_start().split_at(line.trim_start().find("--")?);
        let head = rest.split("  ").next()?;
        let (name, value) = head.split_at(head.find([' ', '[', '='])?);
        (line.trim_start().starts_with('-') && value.contains('<')).then(|| name.to_owned())
    };
    let hidden = HIDDEN.iter().filter(|(of, _)| *of == command).map(|(_, flag)| (*flag).to_owned());
    Ok(help.lines().filter_map(flag).chain(hidden).collect())
}

/// The operands that a command requires.
fn operands<'a>(command: &str, id: &'a str) -> Vec<&'a str> {
    match command {
        "" => vec!["state", id],
        "exec" => vec![id, "/bin/true"],
        "kill" => vec![id, "TERM"],
        "create" | "run" | "restore" => vec!["new"],
        "mounts add" | "mounts remove" => vec![id, "/none"],
        "completion" => vec!["bash"],
        "wasm compile" => vec!["/none"],
        "list" | "spec" | "features" | "check" | "wasm cache list" | "wasm cache prune"
        | "wasm cache clear" => vec![],
        _ => vec![id],
    }
}

/// Expects an error of one line that contains one of these words.
fn is_told(output: &Output, words: &[&str]) -> Outcome {
    let line = &output.stderr;
    ensure(output.code != Some(0), "it succeeded")?;
    ensure(line.starts_with("rt: ") && line.lines().count() == 1, line)?;
    ensure(words.iter().any(|word| line.contains(word)), line)?;
    ensure_eq(output.stdout.as_str(), "")
}

fn unharmed(test: &Test, container: &Container<'_>, pid: i32) -> Outcome {
    ensure_eq((container.status()?.as_str(), container.pid()?), ("running", pid))?;
    let states = std::fs::read_dir(test.state_root())?.flatten();
    let names: Vec<_> = states
        .map(|entry| entry.file_name())
        .filter(|name| !name.to_string_lossy().starts_with('@'))
        .collect();
    ensure_eq(names, vec![container.id.as_str().into()])?;
    // The other test in this file also uses this name, for a moment.
    wait_until("no cgroup is left", || cgroups_of("rt-new").is_empty())
}

fn every_flag_with_a_wrong_value(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let pid = container.pid()?;
    let folder = bundle.folder.display().to_string();
    let images = test.folder.join("images");
    std::fs::create_dir(&images)?;
    std::fs::write(images.join("descriptors.json"), "[]")?;
    std::fs::write(images.join("mounts.json"), "[]")?;
    let images = images.display().to_string();
    let mut tried = 0;
    for command in COMMANDS {
        for flag in flags(test, command)? {
            let Some(value) = wrong(command, &flag) else { continue };
            let flag_and_value = format!("{flag}={value}");
            let mut args: Vec<&str> = command.split_whitespace().collect();
            if matches!(command, "create" | "run" | "restore") && flag != "--bundle" {
                args.extend(["--bundle", &folder]);
            }
            if command == "restore" && flag != "--image-path" {
                args.extend(["--image-path", &images]);
            }
            args.push(&flag_and_value);
            if flag == "--wasm-config" {
                args.extend(["wasm", "cache", "list"]);
            } else if flag == "--root" {
                // For a missing root of the state, most commands only say that the container does
                // not exist. `create` fails, because it cannot make a state there.
                args.extend(["create", "--bundle", &folder, "new"]);
            } else {
                args.extend(operands(command, &container.id));
            }
            let output = test.rt(&args)?;
            let told = is_told(&output, &[&flag, value, "console"]);
            ensure(told.is_ok(), format!("{args:?}: {told:?}"))?;
            tried += 1;
        }
    }
    ensure(tried > 60, format!("only {tried} flags were found"))?;
    unharmed(test, &container, pid)
}

fn every_command_with_a_wrong_name(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let pid = container.pid()?;
    for command in COMMANDS {
        let of_none = ["", "list", "spec", "features", "check", "completion"];
        if of_none.contains(&command) || command.starts_with("wasm") {
            continue;
        }
        for id in ["nobody", "../x", "a/b", ""] {
            if matches!(command, "create" | "run" | "restore") && id == "nobody" {
                continue;
            }
            let mut args: Vec<&str> = command.split_whitespace().collect();
            let mut operands = operands(command, id);
            operands[0] = id;
            args.extend(operands);
            let output = test.rt(&args)?;
            let told =
                is_told(&output, &["does not exist", "invalid container ID format", "config.json"]);
            ensure(told.is_ok(), format!("{args:?}: {told:?}"))?;
        }
    }
    unharmed(test, &container, pid)
}
