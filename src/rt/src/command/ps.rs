//! `rt ps`: the processes of a container, as the host's ps(1) shows them, or their pids as JSON.
#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::cli::{self, ListFormat};
use crate::interrupt;
use crate::state::{Root, State};

pub(super) fn execute(root: &Root, args: &cli::Ps) -> Result<ExitCode> {
    ps(root, args).with_context(|| format!("ps `{}`", args.words.id()))?;
    Ok(ExitCode::SUCCESS)
}

fn ps(root: &Root, args: &cli::Ps) -> Result<()> {
    let (_, state) = root.load(args.words.id())?;
    let pids = processes(&state)?;
    match args.format {
        ListFormat::Json => super::print(&format!("{}\n", serde_json::to_string(&pids)?)),
        ListFormat::Table => {
            let default = ["-ef".to_owned()];
            let options =
                if args.words.others().is_empty() { &default[..] } else { args.words.others() };
            let mut command = Command::new("ps");
            command.args(options);
            let output = interrupt::output(command).context("run `ps`")?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr);
                bail!("`ps {}`: {}", options.join(" "), text.lines().next().unwrap_or_default());
            }
            super::print(&table(&String::from_utf8_lossy(&output.stdout), &pids)?)
        }
    }
}

fn processes(state: &State) -> Result<Vec<i32>> {
    if state.cgroup.has_none() {
        // Without a cgroup, only the first process is known.
        return Ok(state.process()?.map(|_| state.pid).into_iter().collect());
    }
    Ok(state.processes()?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect())
}

/// The head line and the lines of these processes.
fn table(text: &str, pids: &[i32]) -> Result<String> {
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.context("the output of `ps` has no column PID")?;
    let of_container = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok([head]
        .into_iter()
        .chain(lines.filter(of_container))
        .map(|line| format!("{line}\n"))
        .collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn keeps_the_lines_of_the_container() {
        let text = "UID   PID CMD\nroot    1 init\nroot   22 sleep 1\n";
        assert_eq!(
            super::table(text, &[22]).expect("a table"),
            "UID   PID CMD\nroot   22 sleep 1\n"
        );
        assert!(super::table("UID CMD\n", &[22]).is_err());
    }
}
