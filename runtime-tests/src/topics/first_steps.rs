//! The commands of `docs/first-steps.md`, by podman. A section of the page is a script: its blocks
//! `sh` are commands, `text` is the expected output, and a block with the name of a file is that
//! file.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use super::podman::Podman;
use super::wasm_cache::has_compiler_of;
use crate::harness::{Outcome, Output, Test, WASMTIME, ensure, skip};

super::tests! { "first_steps":
    every_section_has_a_test, the_targets_are_there, a_linux_program, a_core_module, a_component, a_handler_of_http_requests, a_spin_app,
}

const PAGE: &str = include_str!("../../../docs/first-steps.md");

/// podman, as the page has it, with the tested runtime and storage of its own. Its containers share
/// one network namespace, because podman's own network requires iptables on the host. So nothing
/// publishes a port.
const PODMAN: &str = r#"
podman() {
  local words=()
  while [ $# -gt 0 ]; do
    case $1 in
      --publish) port=${2#*:} && shift ;;
      run) words+=(run --network host --ulimit nofile=1024:1024 --ulimit nproc=1000:1000) ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  "${PODMAN[@]}" "${words[@]}"
}
curl() {
  nsenter --net="/proc/$HOLDER/ns/net" curl "${@/:8080/:$port}"
}
"#;

fn every_section_has_a_test(_test: &Test) -> Outcome {
    for section in PAGE.split("\n## ").skip(1).filter(|section| section.contains("```sh\n")) {
        let title = section.lines().next().unwrap_or_default();
        let name = format!("first_steps::{}", title.to_lowercase().replace(' ', "_"));
        ensure(TESTS.iter().any(|(test, _)| *test == name), format!("no test `{name}`"))?;
    }
    Ok(())
}

/// The commands before the first section.
fn the_targets_are_there(test: &Test) -> Outcome {
    test.only_rt()?;
    if Command::new("rustup").arg("--version").output().is_err() {
        return skip("rustup is not installed");
    }
    let (script, _) = script_of(PAGE.lines().next().unwrap_or_default())?;
    ensure(script.contains("rustup target add"), &script)?;
    let mut shell = Command::new("bash");
    shell.args(["-e", "-c", &script]).current_dir(&test.folder);
    let output = Output::of(shell)?;
    if output.stderr.contains("could not download") {
        return skip("rustup does not reach its server");
    }
    output.success().map(drop)
}

/// The script of a section, and the output that the page promises.
fn script_of(title: &str) -> Outcome<(String, String)> {
    let section = PAGE
        .split("\n## ")
        .find(|section| section.lines().next() == Some(title))
        .ok_or_else(|| format!("no section `{title}`"))?;
    let (mut script, mut expected) = (String::new(), String::new());
    for block in section.split("\n```").skip(1).step_by(2) {
        let (head, text) = block.split_once('\n').ok_or("a block of one line")?;
        match head.split_once(' ') {
            None if head == "sh" => writeln!(script, "{text}")?,
            None if head == "text" => expected += text,
            Some((_, file)) => {
                writeln!(script, "cat >{file} <<'END OF FILE'\n{text}\nEND OF FILE")?;
            }
            None => return Err(format!("a block of the kind `{head}`").into()),
        }
    }
    Ok((script, expected))
}

fn does_what_the_page_says(test: &Test, title: &str) -> Outcome {
    test.only_rt()?;
    if Command::new("cargo").arg("--version").output().is_err() {
        return skip("cargo is not installed");
    }
    let mut podman = Podman::new(test, false)?;
    let holder = podman.have_network()?;
    let command = podman.command(&[]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| format!("'{}'", word.display())).collect();
    let (script, expected) = script_of(title)?;
    let file = test.folder.join("script");
    let head = format!("set -e\nHOLDER={holder}\nPODMAN=({})\n", words.join(" "));
    fs::write(&file, head + PODMAN + &script)?;
    let mut shell = Command::new("bash");
    shell.arg(file).current_dir(&test.folder);
    let output = Output::of(shell)?;
    if output.stderr.contains("failed to download") || output.stderr.contains("failed to query") {
        return skip("cargo does not reach its registry");
    }
    let output = output.success()?;
    ensure(output.stdout.contains(&expected), format!("{title}: {}", output.stdout))
}

fn a_linux_program(test: &Test) -> Outcome {
    does_what_the_page_says(test, "A Linux program")
}

fn a_core_module(test: &Test) -> Outcome {
    does_what_the_page_says(test, "A core module")
}

fn a_component(test: &Test) -> Outcome {
    needs_wasmtime(test)?;
    does_what_the_page_says(test, "A component")
}

fn a_handler_of_http_requests(test: &Test) -> Outcome {
    needs_wasmtime(test)?;
    does_what_the_page_says(test, "A handler of HTTP requests")
}

fn a_spin_app(test: &Test) -> Outcome {
    needs_wasmtime(test)?;
    does_what_the_page_says(test, "A Spin app")
}

fn needs_wasmtime(test: &Test) -> Outcome {
    if has_compiler_of(test, WASMTIME) {
        return Ok(());
    }
    skip("the engine's compiler is not installed here")
}
