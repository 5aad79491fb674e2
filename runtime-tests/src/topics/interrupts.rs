//! Signals to `run` and `exec` in the foreground while there is no program yet. Such a signal must
//! end a command that would not end by itself.

use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::harness::{
    Bundle, Outcome, Output, Test, ensure, ensure_eq, has_process, lookups, wait_until, wait_up_to,
};

super::tests! { "interrupts":
    nothing_is_blocked_before_something_is_made, a_filter_with_too_many_rules_is_refused, end_a_hook_that_never_ends,
    end_a_start_that_an_agent_holds_up, end_the_container_when_a_hook_after_its_start_never_ends, end_an_exec_that_an_agent_holds_up,
    leave_the_hooks_alone_that_clean_up,
}

/// Starts `run` in the foreground.
fn begin(bundle: &Bundle<'_>, id: &str) -> Outcome<Child> {
    bundle.write()?;
    let said = fs::File::create(bundle.folder.join("said"))?;
    let mut command = bundle.test.command(bundle.command_line("run", id));
    Ok(command.stdout(Stdio::null()).stderr(said).spawn()?)
}

/// The exit status after a signal, within twenty seconds.
fn ended_by(name: &str, mut caller: Child) -> Outcome<ExitStatus> {
    let kill = |name: &str| Command::new("kill").args([name, &caller.id().to_string()]).status();
    kill(name)?;
    let mut status = None;
    let ended = wait_up_to(Duration::from_secs(20), "it is ended by a signal", || {
        status = caller.try_wait().ok().flatten();
        status.is_some()
    });
    if ended.is_err() {
        caller.kill()?;
        caller.wait()?;
    }
    ended?;
    status.ok_or_else(|| "no status".into())
}

/// The command fails with one line that contains these words, and leaves nothing behind.
pub(super) fn ends_cleanly(
    bundle: &Bundle<'_>,
    id: &str,
    caller: Child,
    signal: &str,
    words: &str,
) -> Outcome {
    let status = ended_by(signal, caller)?;
    ensure_eq(status.code(), Some(1))?;
    let said = fs::read_to_string(bundle.folder.join("said"))?;
    ensure(said.contains(words) && said.ends_with("stopped by a termination signal\n"), &said)?;
    bundle.test.rt(["state", id])?.fails_with("does not exist").map(drop)
}

fn hook(script: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
}

/// A filter may take long to compile. Before, a signal ends the command as it ends any process.
fn nothing_is_blocked_before_something_is_made(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
    });
    bundle.write()?;
    bundle.run()?.success()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // A shell lets its background processes ignore these signals.
        if is_ignored(signal)? {
            continue;
        }
        let id = test.id();
        let mut sent = 0;
        // `rt` looks up the compiled filter. If it is missing, `rt` compiles the filter next.
        let command = test.command(bundle.command_line("run", &id));
        let status = lookups::trace(
            &command,
            |_| false,
            |pid, _, path| {
                if path.contains("@seccomp") && sent == 0 {
                    sent += 1;
                    kill(pid, signal)?;
                }
                Ok(())
            },
        )?;
        ensure_eq((sent, status.signal()), (1, Some(signal as i32)))?;
        test.rt(["state", &id])?.fails_with("does not exist")?;
    }
    Ok(())
}

/// Whether this process, and so its children, ignore a signal.
fn is_ignored(signal: Signal) -> Outcome<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let ignored =
        status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).ok_or("no SigIgn")?;
    Ok(u64::from_str_radix(ignored, 16)? >> (signal as i32 - 1) & 1 == 1)
}

/// libseccomp would take minutes for these rules.
fn a_filter_with_too_many_rules_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let rules: Vec<Value> = (0..20_000)
        .map(|number| {
            json!({ "names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 1, "value": number, "op": "SCMP_CMP_EQ" }] })
        })
        .collect();
    let bundle = test.sh("true")?.edit(|config| {
        config["linux"]["seccomp"] =
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
    });
    bundle.write()?;
    let command = test.command(bundle.command_line("create", &test.id()));
    let mut limited = Command::new("timeout");
    limited.args(["-k", "1", "30"]).arg(command.get_program()).args(command.get_args());
    Output::of(limited)?
        .fails_with("20000 rules with arguments, of which a filter has 4096 at most")
        .map(drop)
}

fn end_a_hook_that_never_ends(test: &Test) -> Outcome {
    test.only_rt()?;
    for kind in ["prestart", "createRuntime"] {
        let mark = test.folder.join(kind);
        let script = format!("touch {0}; exec tail -f {0}", mark.display());
        let bundle = test.sh("true")?.edit(|config| config["hooks"][kind] = hook(&script));
        let id = test.id();
        let caller = begin(&bundle, &id)?;
        wait_until("the hook runs", || mark.exists())?;
        ends_cleanly(&bundle, &id, caller, "-TERM", &format!("run {kind} hook `/bin/sh`: "))?;
        ensure(!has_process(&mark.display().to_string()), "the hook is left")?;
    }
    Ok(())
}

/// A container whose filter has an agent decide on a system call that comes before the exec.
fn held_up<'a>(test: &'a Test, path: &Path) -> Outcome<Bundle<'a>> {
    Ok(test.sh("exec sleep 60")?.edit(|config| {
        config["process"]["noNewPrivileges"] = json!(false);
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{ "names": ["capset"], "action": "SCMP_ACT_NOTIFY" }],
        });
    }))
}

fn end_a_start_that_an_agent_holds_up(test: &Test) -> Outcome {
    test.only_rt()?;
    let path = test.folder.join("agent");
    let agent = UnixListener::bind(&path)?;
    let bundle = held_up(test, &path)?;
    let id = test.id();
    let caller = begin(&bundle, &id)?;
    let (stream, _) = agent.accept()?;
    rustix::net::recv(&stream, &mut [0], rustix::net::RecvFlags::PEEK)?;
    ends_cleanly(&bundle, &id, caller, "-INT", "wait for the other process: ")
}

/// The container is made without a filter. The test adds a filter to the recorded configuration,
/// which `exec` reads.
fn end_an_exec_that_an_agent_holds_up(test: &Test) -> Outcome {
    test.only_rt()?;
    let path = test.folder.join("agent");
    let container = test.sh("exec sleep 60")?.start()?;
    let held = held_up(test, &path)?;
    held.write()?;
    let kept = test.state_root().join(&container.id).join("config.json");
    fs::copy(held.folder.join("config.json"), kept)?;
    let agent = UnixListener::bind(&path)?;
    let mut command = test.command(["exec", &container.id, "/bin/true"]);
    let caller = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let (stream, _) = agent.accept()?;
    rustix::net::recv(&stream, &mut [0], rustix::net::RecvFlags::PEEK)?;
    ensure_eq(ended_by("-TERM", caller)?.code(), Some(255))?;
    ensure_eq(container.status()?.as_str(), "running")
}

fn end_the_container_when_a_hook_after_its_start_never_ends(test: &Test) -> Outcome {
    test.only_rt()?;
    let mark = test.folder.join("mark");
    let script = format!("touch {0}; exec tail -f {0}", mark.display());
    let bundle = test.sh("trap 'exit 7' TERM; while :; do sleep 0.1; done")?;
    let bundle = bundle.edit(|config| config["hooks"]["poststart"] = hook(&script));
    let caller = begin(&bundle, &test.id())?;
    wait_until("the hook runs", || mark.exists())?;
    ensure_eq(ended_by("-TERM", caller)?.code(), Some(1))?;
    ensure(!has_process(&mark.display().to_string()), "the hook is left")
}

fn leave_the_hooks_alone_that_clean_up(test: &Test) -> Outcome {
    test.only_rt()?;
    let [mark, cleaned] = ["mark", "cleaned"].map(|name| test.folder.join(name));
    let wait = format!("touch {0}; exec tail -f {0}", mark.display());
    let clean = format!("sleep 3; touch {}", cleaned.display());
    let bundle = test.sh("true")?.edit(|config| {
        config["hooks"] = json!({ "prestart": hook(&wait), "poststop": hook(&clean) });
    });
    let id = test.id();
    let caller = begin(&bundle, &id)?;
    wait_until("the hook runs", || mark.exists())?;
    ends_cleanly(&bundle, &id, caller, "-TERM", "run prestart hook")?;
    ensure(cleaned.exists(), "the poststop hook was ended")
}
