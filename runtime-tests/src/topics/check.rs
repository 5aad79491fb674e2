//! `check`: the report about the host for an operator.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Outcome, Output, Test, WASMTIME, copy_program, ensure, ensure_eq};

super::tests! { "check":
    a_host_that_runs_containers_is_usable, every_problem_has_a_fix, what_cannot_be_written_to_is_missing, an_engine_that_is_not_there_is_told, an_engine_that_others_can_change_is_told, what_modules_can_have_is_told,
    both_engines_are_told, it_makes_nothing,
}

fn findings(output: &Output) -> Outcome<Vec<Value>> {
    let report: Value = serde_json::from_str(&output.stdout)?;
    Ok(report["findings"].as_array().ok_or("no findings")?.clone())
}

fn verdict<'a>(findings: &'a [Value], name: &str) -> &'a str {
    let finding = findings.iter().find(|finding| finding["name"] == name);
    finding.and_then(|finding| finding["verdict"].as_str()).unwrap_or("not looked at")
}

fn a_host_that_runs_containers_is_usable(test: &Test) -> Outcome {
    test.only_rt()?;
    let report = test.rt(["check"])?.success()?.stdout;
    ensure(
        report.lines().last().is_some_and(|last| last.starts_with("rt can be used here")),
        &report,
    )?;
    let findings = findings(&test.rt(["check", "--format=json"])?.success()?)?;
    for name in ["clone3", "mount_setattr", "open_tree", "openat2", "kinds", "rights", "seccomp"] {
        ensure_eq(verdict(&findings, name), "good")?;
    }
    if test.host.lane == "v2" {
        ensure_eq(verdict(&findings, "device rules"), "good")?;
    }
    let version = if test.host.lane == "v2" { "2" } else { "1" };
    let found = findings.iter().find(|finding| finding["name"] == "version").ok_or("no version")?;
    ensure(found["detail"].as_str().is_some_and(|detail| detail.starts_with(version)), found)
}

fn every_problem_has_a_fix(test: &Test) -> Outcome {
    test.only_rt()?;
    for finding in findings(&test.rt(["check", "--format=json"])?)? {
        let has_fix = finding["fix"].as_str().is_some_and(|fix| !fix.is_empty());
        ensure_eq(has_fix, finding["verdict"] != "good")?;
    }
    Ok(())
}

fn what_cannot_be_written_to_is_missing(test: &Test) -> Outcome {
    test.only_rt()?;
    let report = Output::of({
        let mut command = Command::new(&test.host.runtime);
        command.args(["--root", "/dev/null/none", "check"]);
        command
    })?
    .code(1)?
    .stdout;
    ensure(report.contains("MISSING  /dev/null/none"), &report)?;
    ensure(report.ends_with("rt cannot be used here: 1 things are missing.\n"), &report)
}

fn an_engine_that_is_not_there_is_told(test: &Test) -> Outcome {
    test.only_rt()?;
    fs::create_dir(test.folder.join("bin"))?;
    let copy = test.folder.join("bin/rt");
    copy_program(&test.host.runtime, &copy)?;
    let mut command = Command::new(copy);
    command.args(["check", "--format=json"]);
    let findings = findings(&Output::of(command)?.success()?)?;
    for engine in ["wasmedge", WASMTIME] {
        ensure_eq((engine, verdict(&findings, engine)), (engine, "limited"))?;
    }
    Ok(())
}

fn both_engines_are_told(test: &Test) -> Outcome {
    test.only_rt()?;
    let findings = findings(&test.rt(["check", "--format=json"])?.success()?)?;
    let prefix = test.host.runtime.ancestors().nth(2).ok_or("no prefix")?;
    for engine in ["wasmedge", WASMTIME] {
        let is_there = prefix.join("libexec/rt").join(engine).join("engine.json").exists();
        let expected = if is_there { "good" } else { "limited" };
        ensure_eq((engine, verdict(&findings, engine)), (engine, expected))?;
        let native = format!("native code of {engine}");
        ensure_eq(verdict(&findings, &native) != "not looked at", is_there)?;
    }
    Ok(())
}

fn an_engine_that_others_can_change_is_told(test: &Test) -> Outcome {
    test.only_rt()?;
    let (copy, engine) = (test.folder.join("bin/rt"), test.folder.join("libexec/rt/own"));
    fs::create_dir(test.folder.join("bin"))?;
    copy_program(&test.host.runtime, &copy)?;
    fs::create_dir_all(&engine)?;
    let program = engine.join("own");
    let description = json!({ "contract": 2, "name": "own", "program": "own", "options": [] });
    fs::write(engine.join("engine.json"), description.to_string())?;
    let told = || -> Outcome<String> {
        let mut command = Command::new(&copy);
        command.args(["check", "--format=json"]);
        Ok(verdict(&findings(&Output::of(command)?.success()?)?, "own").to_owned())
    };
    fs::write(&program, "")?;
    ensure_eq(told()?.as_str(), "good")?;
    chown(&program, Some(1000), None)?;
    ensure_eq(told()?.as_str(), "limited")?;
    chown(&program, Some(0), None)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o775))?;
    ensure_eq(told()?.as_str(), "limited")?;
    fs::remove_file(&program)?;
    symlink("/bin/sh", &program)?;
    ensure_eq(told()?.as_str(), "good")?;
    lchown(&program, Some(1000), None)?;
    ensure_eq(told()?.as_str(), "limited")
}

fn what_modules_can_have_is_told(test: &Test) -> Outcome {
    test.only_rt()?;
    let file = test.folder.join("wasm.json");
    let told = |settings: &str| -> Outcome<(String, String)> {
        fs::write(&file, settings)?;
        let findings = findings(&test.rt(["check", "--format=json"])?.success()?)?;
        let name = "native code of wasmedge";
        let found = findings.iter().find(|finding| finding["name"] == name).ok_or("not told")?;
        let detail = found["detail"].as_str().unwrap_or_default().to_owned();
        Ok((verdict(&findings, name).to_owned(), detail))
    };
    ensure_eq(told(r#"{ "compile": "off" }"#)?.1.as_str(), "switched off by the configuration")?;
    let (verdict, detail) = told(r#"{ "compile": 1 }"#)?;
    ensure(verdict == "limited" && detail.contains("wasm.json`: "), detail)?;
    let (verdict, detail) = told(r#"{ "cache": { "directory": "/dev/null/none" } }"#)?;
    if super::wasm_cache::has_compiler(test) {
        ensure(verdict == "limited" && detail.contains("`/dev/null`"), detail)?;
        ensure_eq(told("{}")?.1.as_str(), "kept in `/var/cache/rt/wasm`")?;
    }
    Ok(())
}

fn it_makes_nothing(test: &Test) -> Outcome {
    test.only_rt()?;
    test.rt(["check"])?.success()?;
    ensure(!test.state_root().exists(), "it has made the root of the state")
}
