//! `top`: the live table on a terminal, and the table and the JSON of `--once`.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::terminal::pair_of;
use super::wasm_http::client;
use super::{events, needs};
use crate::harness::{
    Container, Outcome, Output, Test, copy_program, ensure, ensure_eq, skip, wait_until,
};
use screen::Live;

mod screen;

super::tests! { "top":
    once_prints_a_table, once_prints_json_with_numbers, cpu_is_in_percent_of_one_cpu, nothing_runs, wrong_flags_are_errors, a_missing_program_is_named,
    the_program_is_no_engine, without_a_terminal_it_names_once, a_module_has_an_engine_and_a_mode, a_server_has_requests, a_state_that_cannot_be_read_has_a_name,
    control_characters_are_escaped, containers_may_go_meanwhile, a_small_terminal_shows_a_part, the_table_is_live, keys_sort_and_scroll, a_new_size_is_used,
    the_terminal_is_given_back, signals_end_it, it_ends_with_its_terminal,
}

/// Skips the test if the program of `top` is not built.
fn built(test: &Test) -> Outcome {
    test.only_rt()?;
    let prefix = test.host.runtime.ancestors().nth(2).ok_or("no prefix")?;
    if prefix.join("libexec/rt/rt-top").exists() {
        Ok(())
    } else {
        skip("rt-top is not built: `make top`")
    }
}

fn once(test: &Test, args: &[&str]) -> Outcome<Output> {
    built(test)?;
    test.rt([&["top", "--once", "--interval=0.1"], args].concat())?.success()
}

/// The object of one container.
fn object(test: &Test, container: &Container<'_>) -> Outcome<Value> {
    let all: Value = serde_json::from_str(&once(test, &["--format=json"])?.stdout)?;
    let mut all = all.as_array().ok_or("no array")?.iter();
    let found = all.find(|it| it["id"] == json!(container.id));
    Ok(found.ok_or("the container is not there")?.clone())
}

/// The words of the line that begins with a container's name.
fn words(text: &str, id: &str) -> Outcome<Vec<String>> {
    let line = text.lines().find(|line| line.split(' ').next() == Some(id));
    let line = line.ok_or_else(|| format!("no {id} in {text}"))?;
    Ok(line.split_whitespace().map(str::to_owned).collect())
}

fn once_prints_a_table(test: &Test) -> Outcome {
    let (running, created) =
        (test.sh("exec sleep 60")?.start()?, test.sh("exec sleep 60")?.create()?);
    let stopped = test.sh("true")?.start()?;
    stopped.wait()?;
    let text = once(test, &[])?.stdout;
    let head = text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    let columns =
        ["ID", "STATUS", "CPU%", "MEM", "LIMIT", "PROCS", "REQ/S", "ENGINE", "MODE"].to_vec();
    ensure_eq(head, columns)?;
    ensure_eq(text.lines().count(), 4)?;
    ensure_eq(&words(&text, &running.id)?[1], &"running".to_owned())?;
    ensure_eq(&words(&text, &created.id)?[1], &"created".to_owned())?;
    ensure_eq(words(&text, &stopped.id)?[1..].join(" "), "stopped - - - - - - -".to_owned())
}

fn once_prints_json_with_numbers(test: &Test) -> Outcome {
    needs(test, "memory")?;
    needs(test, "pids")?;
    let bundle = test.sh("sleep 60 & wait")?.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    });
    let container = bundle.start()?;
    wait_until("there are two processes", || {
        object(test, &container).is_ok_and(|it| it["processes"] == json!(2))
    })?;
    let mut it = object(test, &container)?;
    ensure(it["memoryBytes"].as_u64().is_some_and(|bytes| bytes < 64 << 20), &it)?;
    ensure(it["cpuPercent"].as_f64().is_some_and(|percent| percent < 100.0), &it)?;
    (it["memoryBytes"], it["cpuPercent"]) = (Value::Null, Value::Null);
    let expected = json!({
        "id": container.id, "status": "running", "cpuPercent": null, "memoryBytes": null,
        "memoryLimitBytes": 64 << 20, "processes": 2, "requestsPerSecond": null,
        "engine": null, "mode": null,
    });
    ensure_eq(it, expected)
}

fn cpu_is_in_percent_of_one_cpu(test: &Test) -> Outcome {
    let container = test.sh("while :; do :; done")?.start()?;
    wait_until("it uses a fifth of a CPU", || {
        let percent = object(test, &container).map(|it| it["cpuPercent"].as_f64());
        // The kernel counts in ticks, so a short sample can be a tick too long.
        percent.is_ok_and(|percent| percent.is_some_and(|it| (20.0..130.0).contains(&it)))
    })
}

fn nothing_runs(test: &Test) -> Outcome {
    test.sh("true")?.run()?.success()?;
    ensure_eq(once(test, &[])?.stdout.lines().count(), 1)?;
    ensure_eq(once(test, &["--format=json"])?.stdout, "[]\n".to_owned())?;
    let mut live = Live::start(test, (80, 10), &[])?;
    live.shows("rt top: 0 containers")
}

fn wrong_flags_are_errors(test: &Test) -> Outcome {
    built(test)?;
    test.sh("true")?.run()?.success()?;
    for (args, words) in [
        (&["--interval=0"][..], "rt: top: wrong value `0` for `--interval`"),
        (&["--once", "--interval=2s"], "rt: top: wrong value `2s` for `--interval`"),
        (&["--format=json"], "rt: top: `--format json` requires `--once`"),
        (&["--format=xml"], "wrong value `xml` for `--format`: one of table, json"),
        (&["--once", "more"], "unknown flag or argument `more`"),
    ] {
        test.rt([&["top"], args].concat())?.fails_with(words)?;
    }
    let mut command = Command::new(&test.host.runtime);
    command.args(["--root", "/there/is/no/root", "top", "--once"]);
    Output::of(command)?.fails_with("rt: top: list: read `/there/is/no/root`").map(drop)
}

fn a_missing_program_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    let prefix = test.folder.join("prefix");
    fs::create_dir_all(prefix.join("bin"))?;
    copy_program(&test.host.runtime, prefix.join("bin/rt"))?;
    let mut command = Command::new(prefix.join("bin/rt"));
    command.args(["top", "--once"]);
    let program = prefix.join("libexec/rt/rt-top");
    let expected = format!("rt: top: the program `{}` is not installed\n", program.display());
    ensure_eq(Output::of(command)?.code(1)?.stderr, expected)
}

fn the_program_is_no_engine(test: &Test) -> Outcome {
    built(test)?;
    let report = test.rt(["check", "--format=json"])?.stdout;
    ensure(!report.contains("rt-top"), report)
}

fn without_a_terminal_it_names_once(test: &Test) -> Outcome {
    built(test)?;
    test.rt(["top"])?.fails_with("must be a terminal: `--once` prints").map(drop)
}

fn a_module_has_an_engine_and_a_mode(test: &Test) -> Outcome {
    let container = test.wasm("probe", &["sleep"])?.start()?;
    container.wait_for_output("ready\n")?;
    let module = events::stats(test, &container)?["data"]["wasm"].clone();
    let it = object(test, &container)?;
    ensure(it["engine"].is_string(), &it)?;
    ensure_eq((&it["engine"], &it["mode"]), (&module["engine"], &module["mode"]))
}

fn a_server_has_requests(test: &Test) -> Outcome {
    built(test)?;
    let server = client::serve(test, &[])?;
    // From then on, the server counts.
    server.get("/")?.is(200)?;
    let mut top = test.command(["top", "--once", "--interval=1", "--format=json"]);
    let mut top = top.stdout(Stdio::piped()).spawn()?;
    while top.try_wait()?.is_none() {
        server.get("/")?.is(200)?;
    }
    let all: Value = serde_json::from_slice(&top.wait_with_output()?.stdout)?;
    let rate = all[0]["requestsPerSecond"].as_f64();
    ensure(rate.is_some_and(|rate| rate > 0.0), &all)?;
    server.end()
}

fn a_state_that_cannot_be_read_has_a_name(test: &Test) -> Outcome {
    built(test)?;
    let (good, bad) = (test.sh("exec sleep 60")?.start()?, test.sh("exec sleep 60")?.start()?);
    let file = test.state_root().join(&bad.id).join("state.json");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, "no state")?;
    let check = || -> Outcome {
        let output = once(test, &[])?;
        ensure_eq(&words(&output.stdout, &bad.id)?[1], &"unreadable".to_owned())?;
        ensure_eq(&words(&output.stdout, &good.id)?[1], &"running".to_owned())?;
        let warning = format!("rt: warning: leave out container `{}`: ", bad.id);
        ensure(output.stderr.starts_with(&warning), output.stderr)?;
        let mut live = Live::start(test, (80, 10), &[])?;
        live.shows(&format!("leave out container `{}`: ", bad.id))?;
        live.shows("unreadable")
    };
    let outcome = check();
    fs::write(&file, text)?;
    outcome
}

/// A stopped container has no statistics, so the annotations that `list` prints name its engine.
fn control_characters_are_escaped(test: &Test) -> Outcome {
    let bundle = test.sh("true")?.annotation("run.oci.engine", "\u{1b}[31mred\u{7}\n\u{9b}2J");
    let container = bundle.start()?;
    container.wait()?;
    let escaped = "\\u{1b}[31mred\\u{7}\\n\\u{9b}2J";
    let (table, json) = (once(test, &[])?.stdout, once(test, &["--format=json"])?.stdout);
    ensure(table.contains(escaped), &table)?;
    for text in [table, json] {
        ensure(!text.chars().any(|c| c.is_control() && c != '\n'), format!("{text:?}"))?;
        ensure(text.lines().count() <= 2, format!("{text:?}"))?;
    }
    ensure(object(test, &container)?["engine"] == json!("\u{1b}[31mred\u{7}\n\u{9b}2J"), "JSON")?;
    let mut live = Live::start(test, (120, 10), &[])?;
    live.shows(escaped)
}

fn containers_may_go_meanwhile(test: &Test) -> Outcome {
    built(test)?;
    let stays = test.sh("exec sleep 60")?.start()?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    std::thread::scope(|scope| -> Outcome {
        let rounds = scope.spawn(|| -> Outcome {
            for _ in 0..30 {
                let container = bundle.start()?;
                test.rt(["delete", "--force", &container.id])?.success()?;
            }
            Ok(())
        });
        while !rounds.is_finished() {
            let output = once(test, &[])?;
            ensure_eq(&words(&output.stdout, &stays.id)?[1], &"running".to_owned())?;
        }
        rounds.join().map_err(|_| "the thread panicked")?
    })
}

/// Creates this many containers, and returns their names in order.
fn many(test: &Test, count: usize) -> Outcome<Vec<String>> {
    let bundle = test.sh("exec sleep 60")?;
    let ids: Outcome<Vec<_>> = (0..count).map(|_| Ok(bundle.create()?.id)).collect();
    let mut ids = ids?;
    ids.sort();
    Ok(ids)
}

fn a_small_terminal_shows_a_part(test: &Test) -> Outcome {
    built(test)?;
    many(test, 30)?;
    let mut live = Live::start(test, (40, 10), &[])?;
    live.shows("rt top: 30 containers, 1-7 shown")?;
    live.types("G")?;
    live.shows("30 containers, 24-30 shown")?;
    ensure_eq(live.line(1).split_whitespace().next(), Some("ID"))
}

fn the_table_is_live(test: &Test) -> Outcome {
    let first = test.sh("exec sleep 60")?.create()?;
    let mut live = Live::start(test, (120, 20), &["--interval=0.1"])?;
    live.shows("created")?;
    first.start()?;
    live.shows("running")?;
    let second = test.sh("exec sleep 60")?.create()?;
    live.shows(&second.id)?;
    second.rt(&["delete", "--force"])?.success()?;
    live.shows("rt top: 1 container,")?;
    first.kill("KILL")?;
    live.shows("stopped")
}

fn keys_sort_and_scroll(test: &Test) -> Outcome {
    built(test)?;
    let ids = many(test, 12)?;
    // The only one with two processes.
    let two = test.sh("sleep 60 & wait")?.start()?;
    wait_until("there are two processes", || {
        events::stats(test, &two).is_ok_and(|it| it["data"]["pids"]["current"] != json!(1))
    })?;
    let mut live = Live::start(test, (120, 10), &[])?;
    live.types("n")?;
    live.first_row_is(&ids[0])?;
    live.types("j")?;
    live.first_row_is(&ids[1])?;
    live.types("\x1b[B\x1b[A\x1bOA")?;
    live.first_row_is(&ids[0])?;
    live.types("?")?;
    live.shows("sort: CPU MEM PROCS name")?;
    live.types("?")?;
    live.first_row_is(&ids[0])?;
    if needs(test, "pids").is_ok() {
        live.types("p")?;
        live.first_row_is(&two.id)?;
    }
    live.types("m")?;
    live.shows("by memory")?;
    live.types("c")?;
    live.shows("by CPU")
}

fn a_new_size_is_used(test: &Test) -> Outcome {
    built(test)?;
    let ids = many(test, 12)?;
    let mut live = Live::start(test, (120, 8), &["--interval=3600"])?;
    live.shows("1-5 shown")?;
    live.resize((60, 30))?;
    live.shows("rt top: 12 containers")?;
    live.shows(&ids[11])?;
    live.resize((40, 10))?;
    live.shows("1-7 shown")
}

fn the_terminal_is_given_back(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    for key in ["q", "\x03"] {
        let mut live = Live::start(test, (80, 10), &[])?;
        live.shows(&container.id)?;
        ensure(live.is_raw()?, "the terminal echoes")?;
        live.types(key)?;
        ensure_eq(live.ends()?.code(), Some(0))?;
        live.is_given_back()?;
    }
    Ok(())
}

fn signals_end_it(test: &Test) -> Outcome {
    use rustix::process::Signal;
    let container = test.sh("exec sleep 60")?.create()?;
    for (signal, status) in
        [(Signal::INT, 130), (Signal::TERM, 143), (Signal::QUIT, 131), (Signal::HUP, 129)]
    {
        let mut live = Live::start(test, (80, 10), &["--interval=3600"])?;
        live.shows(&container.id)?;
        live.signal(signal)?;
        ensure_eq(live.ends()?.code(), Some(status))?;
        live.is_given_back()?;
    }
    Ok(())
}

fn it_ends_with_its_terminal(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    let mut live = Live::start(test, (80, 10), &["--interval=3600"])?;
    live.shows(&container.id)?;
    let status = live.hang_up()?;
    ensure(status.signal().is_none() && !status.success(), status)
}

/// A terminal of the test, with so many columns and rows.
fn terminal((columns, rows): (u16, u16)) -> Outcome<(OwnedFd, OwnedFd)> {
    pair_of(size((columns, rows)))
}

fn size((columns, rows): (u16, u16)) -> rustix::termios::Winsize {
    rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// `setsid(1)` gives the program its own session, of which the terminal is the controlling one.
fn on(test: &Test, slave: &OwnedFd, args: &[&str]) -> Outcome<Command> {
    if !Path::new("/usr/bin/setsid").exists() {
        return skip("no setsid(1)");
    }
    let top = test.command([&["top"], args].concat());
    let mut command = Command::new("setsid");
    command.arg("--ctty").arg(top.get_program()).args(top.get_args()).env("TERM", "xterm");
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
    Ok(command)
}
