//! What a command costs, in events that can be counted. A time depends on the machine, and on what
//! else it does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;

use crate::harness::{Outcome, Test, ensure, skip};

super::tests! { "costs":
    no_command_makes_more_system_calls_than_the_table_has, no_command_touches_more_memory_than_the_table_has,
    no_program_is_larger_than_the_table_has,
}

/// The most that was accepted, by lane and command. Who makes a command cheaper lowers its number
/// here.
const TABLE: &str = include_str!("../../costs.json");

/// By how much a number may be exceeded, in percent. Other kernels have other files in `/proc`, and
/// other controllers.
const MARGIN_OF_CALLS: u64 = 5;

/// How many pages of a file the kernel maps at once depends on the filesystem and the processor.
const MARGIN_OF_FAULTS: u64 = 25;

/// The commands in the life of a container, with the words before and after its name.
const LIFE: [(&str, &[&str], &[&str]); 7] = [
    ("create", &["create", "--bundle"], &[]),
    ("state", &["state"], &[]),
    ("start", &["start"], &[]),
    ("exec", &["exec"], &["/bin/true"]),
    ("kill", &["kill"], &["KILL"]),
    ("delete", &["delete", "--force"], &[]),
    ("run", &["run", "--bundle"], &[]),
];

/// Compares the costs of each command of a container's life with a part of the table.
fn compare(
    test: &Test,
    part: &str,
    margin: u64,
    measure: impl Fn(&Test, Command) -> Outcome<u64>,
) -> Outcome {
    test.only_rt()?;
    if test.host.by_systemd {
        return skip("systemd makes the cgroups, in several processes of its own");
    }
    let (living, short) = (test.sh("exec sleep 60")?, test.linux(&["/bin/true"])?);
    living.write()?;
    short.write()?;
    let table: Value = serde_json::from_str(TABLE)?;
    let id = test.id();
    let mut wrong = BTreeMap::new();
    for (name, before, after) in LIFE {
        let mut words: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        match name {
            "create" => words.push(living.folder.display().to_string()),
            "run" => words.push(short.folder.display().to_string()),
            _ => {}
        }
        words.push(id.clone());
        words.extend(after.iter().map(|&word| word.to_owned()));
        let counted = measure(test, test.command(words))?;
        let most = table[part][&test.host.lane][name].as_u64().unwrap_or(0);
        if counted > most + most * margin / 100 {
            wrong.insert(name, (counted, most));
        }
    }
    ensure(wrong.is_empty(), format!("more than the table has (counted, table): {wrong:?}"))
}

fn no_command_makes_more_system_calls_than_the_table_has(test: &Test) -> Outcome {
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    compare(test, "calls", MARGIN_OF_CALLS, |test, command| {
        let file = test.folder.join("calls");
        let follows = command.get_args().any(|word| word == "run" || word == "exec");
        let mut strace = Command::new("strace");
        // strace would wait for the end of a created container.
        strace.args(follows.then_some("--follow-forks")).args(["--string-limit=1", "--output"]);
        strace.arg(&file).arg(command.get_program()).args(command.get_args());
        let status = strace.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        ensure(status.success(), format!("{command:?}: {status}"))?;
        Ok(of_rt(&fs::read_to_string(&file)?))
    })
}

/// The number of system calls in the output of strace, without those of the container's program.
fn of_rt(text: &str) -> u64 {
    let (mut first, mut programs, mut counted) = (true, Vec::new(), 0);
    for line in text.lines() {
        let (process, call) = match line.split_once(char::is_whitespace) {
            Some((process, call)) if process.bytes().all(|byte| byte.is_ascii_digit()) => {
                (process, call.trim_start())
            }
            _ => ("", line),
        };
        let is_call = call.starts_with(|first: char| first.is_ascii_lowercase());
        if !is_call || programs.contains(&process) {
            continue;
        }
        counted += 1;
        // The first one starts `rt`.
        if call.starts_with("execve(") && !std::mem::take(&mut first) {
            programs.push(process);
        }
    }
    counted
}

/// The faults of the runtime process alone: those of init include the program's.
fn no_command_touches_more_memory_than_the_table_has(test: &Test) -> Outcome {
    compare(test, "faults", MARGIN_OF_FAULTS, |_, mut command| {
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let number = Pid::from_child(&child);
        // The kernel counts until the process is waited for.
        waitid(WaitId::Pid(number), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
        let status = child.wait()?;
        ensure(status.success(), format!("{command:?}: {status}"))?;
        // The tenth field (`proc_pid_stat(5)`). The third one comes after the name.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        Ok(fields.split(' ').nth(7).unwrap_or_default().parse()?)
    })
}

fn no_program_is_larger_than_the_table_has(test: &Test) -> Outcome {
    test.only_rt()?;
    let table: Value = serde_json::from_str(TABLE)?;
    let size = fs::metadata(&test.host.runtime)?.len();
    let most = table["bytes"]["rt"].as_u64().unwrap_or(0);
    ensure(size <= most, format!("`rt` has {size} bytes, more than {most}"))
}
