//! Seccomp filters.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use base64::Engine;
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use serde_json::{Value, json};

use super::terminal::receive_with_text;
use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq, skip, under_a_filter};

super::tests! { "seccomp":
    a_call_is_refused,
    a_call_is_refused_with_its_errno,
    every_action_does_what_it_says,
    a_masked_argument_decides,
    several_comparisons_of_one_argument_mean_any_of_them,
    a_call_that_is_newer_than_the_filter_is_not_implemented,
    every_flag_is_taken,
    works_without_no_new_privileges,
    a_filter_is_loaded,
    an_unknown_call_is_no_error,
    an_unknown_call_is_an_error_if_asked_for,
    a_rule_holds_for_a_call_that_libseccomp_does_not_know,
    arguments_of_such_a_call_are_compared,
    such_a_call_can_be_allowed,
    an_agent_decides,
    an_agent_decides_without_no_new_privileges,
    an_agent_decides_for_exec_too,
    an_agent_is_found_by_annotation,
    an_agent_that_is_not_there_is_an_error,
    nobody_to_notify_is_an_error,
    a_filter_can_be_given_as_it_is_loaded,
    a_broken_filter_is_an_error,
    a_compiled_filter_is_kept,
    a_damaged_filter_is_not_used,
    a_filter_that_others_could_write_is_not_used,
    need_not_allow_what_is_done_before_the_program_runs,
    need_not_allow_messages_with_new_privileges, need_not_allow_what_the_runtime_does_first,
    what_is_left_of_the_runtimes_calls_is_named, the_profiles_of_any_year_run, the_default_profile_of_podman_runs, an_agent_may_have_a_long_path,
    a_filter_around_the_runtime_is_no_hindrance_or_is_named,
}

pub(super) fn deny(action: Value) -> Value {
    let mut rule = json!({ "names": ["mkdir", "mkdirat"] });
    if let (Some(rule), Some(action)) = (rule.as_object_mut(), action.as_object()) {
        rule.extend(action.clone());
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule] })
}

const ERRNO: &str = "SCMP_ACT_ERRNO";

fn filtered<'a>(test: &'a Test, filter: Value, script: &str) -> Outcome<Bundle<'a>> {
    Ok(test.sh(script)?.edit(|config| config["linux"]["seccomp"] = filter))
}

const MKDIR: &str = "mkdir /tmp/new || exit 0; echo made; exit 1";

fn says(test: &Test, filter: Value, no_new_privileges: bool, words: &str) -> Outcome {
    let bundle = filtered(test, filter, MKDIR)?
        .edit(|config| config["process"]["noNewPrivileges"] = json!(no_new_privileges));
    let output = bundle.run()?.success()?;
    ensure(output.stderr.contains(words), output.stderr)
}

fn a_call_is_refused(test: &Test) -> Outcome {
    says(test, deny(json!({ "action": ERRNO })), true, "Operation not permitted")
}

fn a_call_is_refused_with_its_errno(test: &Test) -> Outcome {
    // 28 is ENOSPC.
    says(test, deny(json!({ "action": ERRNO, "errnoRet": 28 })), true, "No space left on device")
}

fn every_action_does_what_it_says(test: &Test) -> Outcome {
    // 31 is SIGSYS, so the exit code is 159. Without a tracer, SCMP_ACT_TRACE makes the call fail
    // with ENOSYS.
    for (action, expected) in [
        ("SCMP_ACT_ALLOW", "made 0"),
        ("SCMP_ACT_LOG", "made 0"),
        ("SCMP_ACT_TRACE", "none 1"),
        (ERRNO, "none 1"),
        ("SCMP_ACT_KILL", "none 159"),
        ("SCMP_ACT_KILL_THREAD", "none 159"),
        ("SCMP_ACT_KILL_PROCESS", "none 159"),
        ("SCMP_ACT_TRAP", "none 159"),
    ] {
        let script = "mkdir /tmp/new 2>/dev/null; code=$?; [ -d /tmp/new ] && echo made $code || echo none $code";
        let output = filtered(test, deny(json!({ "action": action })), script)?.run()?.success()?;
        ensure_eq((action, output.stdout.trim()), (action, expected))?;
    }
    Ok(())
}

fn a_masked_argument_decides(test: &Test) -> Outcome {
    let rule = |name: &str, index: u32| {
        // The set-user-ID bit among the special bits of a mode, 07000. Docker's default filter has
        // a rule of this kind for the flags of clone(2).
        json!({ "names": [name], "action": ERRNO,
            "args": [{ "index": index, "op": "SCMP_CMP_MASKED_EQ", "value": 0o7000, "valueTwo": 0o4000 }] })
    };
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule("chmod", 1), rule("fchmodat", 2), rule("fchmodat2", 2)] });
    let script = "touch /tmp/f; chmod 0755 /tmp/f && echo plain; chmod 2755 /tmp/f && echo group; chmod 4755 /tmp/f || echo refused";
    filtered(test, filter, script)?.run()?.success()?.stdout("plain\ngroup\nrefused\n").map(drop)
}

fn several_comparisons_of_one_argument_mean_any_of_them(test: &Test) -> Outcome {
    let equal = |value: u32| json!({ "index": 0, "op": "SCMP_CMP_EQ", "value": value });
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["personality"], "action": ERRNO, "args": [equal(7), equal(8)] }] });
    // 135 is personality(2).
    let script = r#"print syscall(135, $_) < 0 ? "no " : "yes " for (0, 7, 8)"#;
    let bundle = test.perl(script)?.edit(|config| config["linux"]["seccomp"] = filter);
    bundle.run()?.success()?.stdout("yes no no ").map(drop)
}

fn a_call_that_is_newer_than_the_filter_is_not_implemented(test: &Test) -> Outcome {
    // crun answers EPERM.
    test.only_rt()?;
    let allowed = [
        "access",
        "arch_prctl",
        "brk",
        "capget",
        "capset",
        "chdir",
        "clone",
        "close",
        "dup2",
        "epoll_wait",
        "execve",
        "exit",
        "exit_group",
        "fcntl",
        "fstat",
        "futex",
        "getcwd",
        "getdents64",
        "getegid",
        "geteuid",
        "getgid",
        "getpid",
        "getppid",
        "getrandom",
        "gettid",
        "gettimeofday",
        "getuid",
        "ioctl",
        "lseek",
        "lstat",
        "mmap",
        "mprotect",
        "mremap",
        "munmap",
        "newfstatat",
        "open",
        "openat",
        "pipe2",
        "poll",
        "ppoll",
        "prctl",
        "pread64",
        "prlimit64",
        "pwrite64",
        "read",
        "readlink",
        "readv",
        "recvmsg",
        "rseq",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "sendmsg",
        "set_robust_list",
        "set_tid_address",
        "setgid",
        "setgroups",
        "setresgid",
        "setresuid",
        "setuid",
        "sigaltstack",
        "stat",
        "statfs",
        "umask",
        "uname",
        "wait4",
        "write",
        "writev",
    ];
    let filter = json!({ "defaultAction": ERRNO, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": allowed.to_vec(), "action": "SCMP_ACT_ALLOW" }] });
    // 83 is mkdir(2), which is older than rseq(2) (334). 400 and 1000 are newer.
    let script = r#"for (83, 400, 1000) { syscall($_, 0, 0) == -1 or die; print $! + 0, " " }"#;
    let bundle = test.perl(script)?.edit(|config| config["linux"]["seccomp"] = filter);
    // EPERM for the older call, ENOSYS for the newer ones.
    bundle.run()?.success()?.stdout("1 38 38 ").map(drop)
}

fn every_flag_is_taken(test: &Test) -> Outcome {
    let mut filter = deny(json!({ "action": ERRNO }));
    filter["flags"] = json!([
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    says(test, filter, true, "Operation not permitted")
}

fn works_without_no_new_privileges(test: &Test) -> Outcome {
    says(test, deny(json!({ "action": ERRNO })), false, "Operation not permitted")
}

fn a_filter_is_loaded(test: &Test) -> Outcome {
    let bundle = test.linux(&["/bin/grep", "^Seccomp:", "/proc/self/status"])?;
    bundle
        .edit(|config| config["linux"]["seccomp"] = deny(json!({ "action": ERRNO })))
        .run()?
        .success()?
        .stdout("Seccomp:\t2\n")?;
    test.linux(&["/bin/grep", "^Seccomp:", "/proc/self/status"])?
        .run()?
        .success()?
        .stdout("Seccomp:\t0\n")
        .map(drop)
}

fn unknown() -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["no_such_system_call"], "action": ERRNO }] })
}

fn an_unknown_call_is_no_error(test: &Test) -> Outcome {
    filtered(test, unknown(), "echo ran")?.run()?.success()?.stdout("ran\n").map(drop)
}

fn an_unknown_call_is_an_error_if_asked_for(test: &Test) -> Outcome {
    let bundle = filtered(test, unknown(), "echo ran")?
        .annotation("run.oci.seccomp_fail_unknown_syscall", "1");
    bundle.run()?.fails_with("no_such_system_call").map(drop)
}

/// Makes system calls with these third arguments, and returns their errnos.
fn errnos(test: &Test, filter: Value, calls: &[(u32, u64)]) -> Outcome<Vec<i32>> {
    let calls: Vec<String> =
        calls.iter().map(|(call, argument)| format!("[{call}, {argument}]")).collect();
    let script = format!(
        "for ({}) {{ $! = 0; syscall($$_[0], 0, 0, $$_[1], 0, 0); print $! + 0, ' '; }}",
        calls.join(", ")
    );
    let bundle = test.perl(&script)?.edit(|config| config["linux"]["seccomp"] = filter);
    let output = bundle.run()?.success()?;
    Ok(output.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}

/// Otherwise a filter that lists forbidden calls would let this call pass.
fn a_rule_holds_for_a_call_that_libseccomp_does_not_know(test: &Test) -> Outcome {
    test.only_rt()?;
    let names =
        ["statmount", "listmount", "setxattrat", "open_tree_attr", "file_setattr", "fchmodat2"];
    let calls = [457, 458, 463, 467, 469, 452].map(|number| (number, 0));
    for architectures in
        [json!(["SCMP_ARCH_NATIVE"]), json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])]
    {
        // 77 is EBADFD. None of these calls returns it by itself.
        let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{ "names": names, "action": ERRNO, "errnoRet": 77 }] });
        ensure_eq(errnos(test, filter, &calls)?, vec![77; 6])?;
    }
    Ok(())
}

fn arguments_of_such_a_call_are_compared(test: &Test) -> Outcome {
    test.only_rt()?;
    const LARGE: u64 = (1 << 32) + 5;
    let values = [1, 5, 6, LARGE];
    let own = of_mseal(test)?;
    for (operator, value, two, matched) in [
        ("EQ", 5, 0, &[5][..]),
        ("EQ", LARGE, 0, &[LARGE]),
        ("NE", 5, 0, &[1, 6, LARGE]),
        ("LT", 5, 0, &[1]),
        ("LT", LARGE, 0, &[1, 5, 6]),
        ("LE", 5, 0, &[1, 5]),
        ("GT", 5, 0, &[6, LARGE]),
        ("GT", 1 << 32, 0, &[LARGE]),
        ("GE", 5, 0, &[5, 6, LARGE]),
        ("GE", LARGE, 0, &[LARGE]),
        ("MASKED_EQ", 6, 4, &[5, LARGE]),
        ("MASKED_EQ", 1 << 32, 0, &[1, 5, 6]),
    ] {
        let operator = format!("SCMP_CMP_{operator}");
        let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["mseal"], "action": ERRNO, "errnoRet": 77,
            "args": [{ "index": 2, "op": operator, "value": value, "valueTwo": two }],
        }]});
        let expected = values.map(|value| if matched.contains(&value) { 77 } else { own });
        let got = errnos(test, filter, &values.map(|value| (462, value)))?;
        ensure_eq((&operator, value, got), (&operator, value, expected.to_vec()))?;
    }
    // One of several conditions on an argument must match. Of several rules, the strictest action
    // counts.
    let one = |value: u32| json!({ "index": 2, "op": "SCMP_CMP_EQ", "value": value });
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mseal"], "action": "SCMP_ACT_LOG" },
        { "names": ["mseal"], "action": ERRNO, "errnoRet": 77, "args": [one(1), one(6)] },
    ]});
    let got = errnos(test, filter, &values.map(|value| (462, value)))?;
    ensure_eq(got, vec![77, own, 77, own])
}

/// The kernel's answer to `mseal` with a third argument other than 0: EINVAL, or ENOSYS on an older
/// kernel.
fn of_mseal(test: &Test) -> Outcome<i32> {
    let errno = errnos(test, Value::Null, &[(462, 1)])?[0];
    ensure(matches!(errno, 22 | 38), errno)?;
    Ok(errno)
}

fn such_a_call_can_be_allowed(test: &Test) -> Outcome {
    test.only_rt()?;
    let known = (0..450).filter_map(|number| libseccomp::ScmpSyscall::from(number).get_name().ok());
    let names: Vec<String> = known.chain(["mseal".to_owned()]).collect();
    let filter = json!({ "defaultAction": ERRNO,
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] });
    // The kernel's own answer, then a call that is not allowed, then a call that is newer than all
    // allowed ones.
    let own = of_mseal(test)?;
    ensure_eq(errnos(test, filter, &[(462, 1), (458, 0), (467, 0)])?, vec![own, 1, 38])
}

/// Waits for a filter's listener, and answers one call with an errno. Returns the message that came
/// with the listener.
fn agent(path: PathBuf, errno: i32) -> Outcome<Agent> {
    Ok(answering(UnixListener::bind(path)?, errno))
}

pub(super) type Agent = JoinHandle<Result<Value, String>>;

pub(super) fn answering(listener: UnixListener, errno: i32) -> Agent {
    let answer = move || -> Result<Value, String> {
        let (text, descriptor) =
            receive_with_text(&listener).map_err(|stop| format!("{stop:?}"))?;
        let fd = descriptor.as_raw_fd();
        let call = ScmpNotifReq::receive(fd).map_err(|error| error.to_string())?;
        ScmpNotifResp::new_error(call.id, -errno, ScmpNotifRespFlags::empty())
            .respond(fd)
            .map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    };
    thread::spawn(answer)
}

pub(super) fn joined(agent: Agent) -> Outcome<Value> {
    Ok(agent.join().map_err(|_| "the agent died")??)
}

fn notify(test: &Test) -> (PathBuf, Value) {
    let socket = test.folder.join("agent");
    let mut filter = deny(json!({ "action": "SCMP_ACT_NOTIFY" }));
    filter["listenerPath"] = json!(socket);
    filter["listenerMetadata"] = json!("a word");
    (socket, filter)
}

fn an_agent_decides(test: &Test) -> Outcome {
    let (socket, mut filter) = notify(test);
    filter["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    let agent = agent(socket, 28)?;
    says(test, filter, true, "No space left on device")?;
    let text = joined(agent)?;
    ensure_eq(&text["fds"], &json!(["seccompFd"]))?;
    ensure_eq(&text["metadata"], &json!("a word"))?;
    ensure_eq(&text["state"]["status"], &json!("creating"))?;
    ensure_eq(&text["pid"], &text["state"]["pid"])
}

fn an_agent_decides_without_no_new_privileges(test: &Test) -> Outcome {
    let (socket, filter) = notify(test);
    let agent = agent(socket, 28)?;
    says(test, filter, false, "No space left on device")?;
    joined(agent).map(drop)
}

fn an_agent_decides_for_exec_too(test: &Test) -> Outcome {
    let (socket, filter) = notify(test);
    let first = UnixListener::bind(&socket)?;
    let container = filtered(test, filter, "sleep 100")?.start()?;
    drop(first);
    fs::remove_file(&socket)?;
    let agent = agent(socket, 28)?;
    let output = test.rt(["exec", &container.id, "mkdir", "/tmp/new"])?.code(1)?;
    ensure(output.stderr.contains("No space left on device"), output.stderr)?;
    let text = joined(agent)?;
    ensure_eq(&text["state"]["pid"], &json!(container.pid()?))?;
    ensure(text["pid"] != text["state"]["pid"], "the pid is that of the container")
}

fn an_agent_is_found_by_annotation(test: &Test) -> Outcome {
    let socket = test.folder.join("agent");
    let agent = agent(socket.clone(), 28)?;
    let bundle = filtered(test, deny(json!({ "action": "SCMP_ACT_NOTIFY" })), MKDIR)?
        .annotation("run.oci.seccomp.receiver", &socket.display().to_string());
    let output = bundle.run()?.success()?;
    ensure(output.stderr.contains("No space left on device"), output.stderr)?;
    joined(agent).map(drop)
}

fn an_agent_that_is_not_there_is_an_error(test: &Test) -> Outcome {
    let (_, filter) = notify(test);
    filtered(test, filter, "true")?.run()?.fails_with("agent").map(drop)
}

fn nobody_to_notify_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    let filter = deny(json!({ "action": "SCMP_ACT_NOTIFY" }));
    filtered(test, filter, "true")?
        .run()?
        .fails_with("there is no `linux.seccomp.listenerPath`")
        .map(drop)
}

/// A filter in the kernel's format that answers mkdir(2) with an errno.
fn raw(errno: u32) -> Vec<u8> {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat()
    };
    // ld [nr]; jeq mkdir; ret ERRNO; ret ALLOW.
    [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, 83),
        instruction(0x06, 0, 0, 0x0005_0000 | errno),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat()
}

fn encoded(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn a_filter_can_be_given_as_it_is_loaded(test: &Test) -> Outcome {
    if !cfg!(target_arch = "x86_64") {
        return skip("its numbers are those of x86-64");
    }
    let bundle = filtered(test, deny(json!({ "action": ERRNO })), MKDIR)?
        .annotation("run.oci.seccomp_bpf_data", &encoded(&raw(28)));
    let output = bundle.run()?.success()?;
    ensure(output.stderr.contains("No space left on device"), output.stderr)
}

fn a_broken_filter_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    for (text, words) in [("%", "Invalid"), ("AAAA", "8 bytes"), ("", "8 bytes")] {
        let bundle = test.sh("true")?.annotation("run.oci.seccomp_bpf_data", text);
        bundle.run()?.fails_with(words)?;
    }
    // This filter has the right form, but the kernel refuses it because of an invalid instruction.
    let bundle = test.sh("true")?.annotation("run.oci.seccomp_bpf_data", &encoded(&[0xff; 8]));
    bundle.run()?.fails_with("load the seccomp filter").map(drop)
}

/// The only compiled filter in the cache.
fn kept(test: &Test) -> Outcome<PathBuf> {
    let files: Vec<PathBuf> = fs::read_dir(test.state_root().join("@seccomp"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    ensure_eq(files.len(), 1)?;
    Ok(files[0].clone())
}

fn a_compiled_filter_is_kept(test: &Test) -> Outcome {
    test.only_rt()?;
    a_call_is_refused(test)?;
    let file = kept(test)?;
    let first = fs::metadata(&file)?.modified()?;
    a_call_is_refused(test)?;
    ensure_eq(fs::metadata(kept(test)?)?.modified()?, first)
}

fn a_damaged_filter_is_not_used(test: &Test) -> Outcome {
    test.only_rt()?;
    a_call_is_refused(test)?;
    let file = kept(test)?;
    let good = fs::read(&file)?;
    // The right form with another program behind the old digest, a truncated file, and an empty
    // file.
    for damaged in [[&good[..32], &raw(28)].concat(), good[..40].to_vec(), Vec::new()] {
        fs::write(&file, damaged)?;
        a_call_is_refused(test)?;
        ensure_eq(&fs::read(&file)?, &good)?;
    }
    Ok(())
}

fn a_filter_that_others_could_write_is_not_used(test: &Test) -> Outcome {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    test.only_rt()?;
    a_call_is_refused(test)?;
    let file = kept(test)?;
    chown(&file, Some(1000), None)?;
    a_call_is_refused(test)?;
    ensure_eq(fs::metadata(&file)?.uid(), 0)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    a_call_is_refused(test)?;
    ensure_eq(fs::metadata(&file)?.mode() & 0o22, 0)
}

/// A filter that allows these calls only.
fn allow(names: &[&str]) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] })
}

/// A profile that somebody has recorded from the program alone.
fn need_not_allow_what_is_done_before_the_program_runs(test: &Test) -> Outcome {
    let filter = allow(&[
        "access",
        "arch_prctl",
        "brk",
        "close",
        "execve",
        "exit_group",
        "fstat",
        "getrandom",
        "getuid",
        "mmap",
        "mprotect",
        "munmap",
        "newfstatat",
        "openat",
        "pread64",
        "prlimit64",
        "read",
        "rseq",
        "set_robust_list",
        "set_tid_address",
        "write",
    ]);
    let bundle = test.linux(&["/bin/busybox", "true"])?.edit(|config| {
        config["process"]["noNewPrivileges"] = json!(true);
        config["linux"]["seccomp"] = filter;
    });
    bundle.run()?.success()?;
    bundle.start()?.wait()?;
    // The same for a program of `exec`.
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["sendmsg", "recvmsg", "poll", "ppoll", "fcntl", "rt_sigprocmask"], "action": "SCMP_ACT_KILL_PROCESS" }] });
    let bundle = test.linux(&["/bin/busybox", "sleep", "60"])?.edit(|config| {
        config["process"]["noNewPrivileges"] = json!(true);
        config["linux"]["seccomp"] = filter;
    });
    let container = bundle.start()?;
    test.rt(["exec", &container.id, "/bin/busybox", "true"])?.success().map(drop)
}

fn need_not_allow_messages_with_new_privileges(test: &Test) -> Outcome {
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["sendmsg", "sendto", "recvmsg", "recvfrom", "socket", "connect"], "action": ERRNO }] });
    let bundle = test.linux(&["/bin/true"])?.edit(|config| {
        config["process"]["noNewPrivileges"] = json!(false);
        config["linux"]["seccomp"] = filter;
    });
    bundle.run()?.success()?;
    bundle.start()?.wait().map(drop)
}

/// The system calls that the runtime itself makes before the program. The author of a filter thinks
/// of the program only.
fn need_not_allow_what_the_runtime_does_first(test: &Test) -> Outcome {
    test.only_rt()?;
    let calls = [
        "faccessat2",
        "openat2",
        "statx",
        "fstatfs",
        "chdir",
        "getcwd",
        "setgroups",
        "setresuid",
        "setresgid",
        "prctl",
        "close_range",
        "keyctl",
        "sendmsg",
        "recvmsg",
        "landlock_create_ruleset",
        "memfd_create",
        "rt_sigaction",
        "getgroups",
        "capget",
        "faccessat",
        "mount_setattr",
    ];
    for no_new_privileges in [false, true] {
        for errno in [1, 38] {
            // One call after the other, and all at once.
            let mut sets: Vec<&[&str]> = calls.chunks(1).collect();
            sets.push(&calls);
            for names in sets {
                let bundle = test.linux(&["/bin/true"])?.edit(|config| {
                    config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                    config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                        "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno }] });
                });
                let how = |output: &Output| {
                    format!("{names:?}, errno {errno}, {no_new_privileges}: {output:?}")
                };
                let output = bundle.run()?;
                ensure(output.code == Some(0), how(&output))?;
            }
        }
        let bundle = test.linux(&["sleep", "60"])?.edit(|config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            // Like the default profile of runtime-tools, which CRI-O uses for privileged pods: an
            // unlisted call is EPERM.
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }] });
        });
        let container = bundle.start()?;
        test.rt(["exec", &container.id, "/bin/true"])?.success()?;
    }
    Ok(())
}

/// With `noNewPrivileges`, the filter must allow the exec only. Without, some calls cannot be
/// replaced. Then `create` already fails, with one line that names the call.
fn what_is_left_of_the_runtimes_calls_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    let works = [
        "poll",
        "ppoll",
        "close",
        "exit_group",
        "exit",
        "fcntl",
        "rt_sigprocmask",
        "rt_sigreturn",
        "wait4",
        "getpid",
        "lseek",
        "recvfrom",
        "sendto",
        "pipe2",
        "signalfd4",
    ];
    let filter = |names: &[&str], errno: u32| {
        json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": names, "action": ERRNO, "errnoRet": errno }] })
    };
    let bundle = |no_new_privileges: bool, names: &[&str], errno: u32| -> Outcome<Bundle<'_>> {
        Ok(test.linux(&["/bin/true"])?.edit(|config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            config["linux"]["seccomp"] = filter(names, errno);
        }))
    };
    // A program that cannot end has a fault in place of an end, with the C library of 2025.
    let ends = |name: &str, output: &Output| {
        let good = output.code == Some(0) || name == "exit_group" && output.code == Some(139);
        ensure(good, format!("{name}: {output:?}"))
    };
    for errno in [1, 38] {
        for name in works.into_iter().chain(["capset", "read", "write"]) {
            let bundle = bundle(true, &[name], errno)?;
            ends(name, &bundle.run()?)?;
            let container = bundle.start()?;
            container.wait()?;
        }
        for name in works {
            let bundle = bundle(false, &[name], errno)?;
            ends(name, &bundle.run()?)?;
            let container = bundle.start()?;
            container.wait()?;
            ensure_eq(container.stderr()?.as_str(), "")?;
        }
        for names in [&["capset"][..], &["read"], &["write"], &["poll", "ppoll"]] {
            let bundle = bundle(false, names, errno)?;
            bundle.try_create(&test.id())?.fails_with(&format!("`{}`", names[0]))?;
            if names[0] != "poll" {
                bundle.run()?.fails_with(&format!("`{}`", names[0]))?;
            }
        }
    }
    Ok(())
}

/// The profiles of callers allow nearly all calls up to a certain year, and Landlock's newer calls.
/// So no call counts as newer than such a filter.
fn the_profiles_of_any_year_run(test: &Test) -> Outcome {
    test.only_rt()?;
    // The profiles do not allow privileged calls.
    const PRIVILEGED: [&str; 32] = [
        "acct",
        "add_key",
        "bpf",
        "clock_adjtime",
        "clock_settime",
        "delete_module",
        "finit_module",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "init_module",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "quotactl",
        "request_key",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "umount2",
        "unshare",
        "userfaultfd",
    ];
    // The last calls of Linux 4.11, 4.18, 5.3, 5.9, 5.14 and 6.6.
    for last in [332, 334, 435, 440, 448, 453] {
        for errno in [1, 38] {
            let known = (0..=last)
                .filter_map(|number| libseccomp::ScmpSyscall::from(number).get_name().ok())
                .filter(|name| !PRIVILEGED.contains(&name.as_str()));
            let landlock =
                ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"];
            let names: Vec<String> = known.chain(landlock.map(str::to_owned)).collect();
            let filter = json!({ "defaultAction": ERRNO, "defaultErrnoRet": errno,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] });
            runs(test, &filter, &format!("up to {last}, errno {errno}"))?;
        }
    }
    Ok(())
}

/// The profile exists where podman is installed. The test uses its rules for a container without
/// capabilities.
fn the_default_profile_of_podman_runs(test: &Test) -> Outcome {
    let Ok(text) = fs::read("/usr/share/containers/seccomp.json") else {
        return skip("no profile of podman's");
    };
    let profile: Value = serde_json::from_slice(&text)?;
    let mut rules = Vec::new();
    for rule in profile["syscalls"].as_array().into_iter().flatten() {
        let conditions = |key: &str| rule["includes"][key].as_array().cloned().unwrap_or_default();
        let arches = conditions("arches");
        let is_ours = arches.is_empty() || arches.contains(&json!("amd64"));
        if !is_ours || !conditions("caps").is_empty() || !rule["includes"]["minKernel"].is_null() {
            continue;
        }
        let mut rule = rule.clone();
        if let Some(rule) = rule.as_object_mut() {
            rule.retain(|key, value| {
                matches!(key.as_str(), "names" | "action" | "args" | "errnoRet") && !value.is_null()
            });
        }
        rules.push(rule);
    }
    let filter = json!({ "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules });
    runs(test, &filter, "podman's")
}

/// Checks `run`, `create` and `exec`, with and without new privileges.
fn runs(test: &Test, filter: &Value, what: &str) -> Outcome {
    for no_new_privileges in [false, true] {
        let bundle = test.linux(&["/bin/sleep", "60"])?.edit(|config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            config["linux"]["seccomp"] = filter.clone();
        });
        let well = |output: Output| ensure(output.code == Some(0), format!("{what}: {output:?}"));
        well(bundle.clone().args(&["/bin/true"]).run()?)?;
        let container = bundle.start()?;
        well(test.rt(["exec", &container.id, "/bin/true"])?)?;
        container.rt(&["delete", "--force"])?.success()?;
    }
    Ok(())
}

fn an_agent_may_have_a_long_path(test: &Test) -> Outcome {
    test.only_rt()?;
    let folder = test.folder.join("x".repeat(120));
    fs::create_dir(&folder)?;
    let short = test.folder.join("s");
    std::os::unix::fs::symlink(&folder, &short)?;
    let (_, mut filter) = notify(test);
    filter["listenerPath"] = json!(folder.join("agent"));
    let agent = agent(short.join("agent"), 28)?;
    says(test, filter, true, "No space left on device")?;
    joined(agent).map(drop)
}

/// A service manager or a sandbox has such a filter for the programs that it starts.
fn a_filter_around_the_runtime_is_no_hindrance_or_is_named(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = filtered(test, deny(json!({ "action": ERRNO })), "echo ran")?.edit(|config| {
        config["hostname"] = json!("name");
        let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 100 });
        config["process"]["rlimits"] = json!([limit]);
    });
    bundle.write()?;
    let run = |call: u32, errno: u32| {
        Output::of(under_a_filter(test, call, errno, &bundle.command_line("run", &test.id()))?)
    };
    for errno in [1, 38] {
        // io_uring_setup, openat2, faccessat2, fspick, name_to_handle_at, landlock_create_ruleset,
        // fchmodat2, memfd_create.
        for call in [425, 437, 439, 433, 303, 444, 452, 319] {
            let output = run(call, errno)?;
            ensure(output.stdout == "ran\n", format!("{call}, {errno}: {output:?}"))?;
        }
        for (call, name) in [
            (435, "clone3"),
            (442, "mount_setattr"),
            (428, "open_tree"),
            (436, "close_range"),
            (434, "pidfd_open"),
            (332, "statx"),
            (431, "fsconfig"),
            (430, "fsopen"),
            (432, "fsmount"),
            (429, "move_mount"),
            (165, "mount"),
            (166, "umount2"),
            (155, "pivot_root"),
            (53, "socketpair"),
            (170, "sethostname"),
            (259, "mknodat"),
            (126, "capset"),
            (302, "prlimit64"),
            (318, "getrandom"),
            (47, "recvmsg"),
            (73, "flock"),
        ] {
            let output = run(call, errno)?;
            ensure(output.code == Some(1), format!("{name}, {errno}: {output:?}"))?;
            output.fails_with(&format!("a filter around rt forbids `{name}`"))?;
        }
        // `rt` must not pass on the caller's session keyring.
        let output = run(250, errno)?;
        match output.code {
            Some(0) => {}
            _ => output.fails_with("`keyctl` is forbidden").map(drop)?,
        }
        // In cgroup v2, device rules are BPF programs.
        let output = run(321, errno)?;
        match output.code {
            Some(0) if test.host.lane != "v2" => {}
            _ => output.fails_with("a filter around rt forbids `bpf`").map(drop)?,
        }
        // A late failure leaves nothing behind. The call is sendmsg, which `rt` does not need in
        // each lane.
        let output = run(46, errno)?;
        if output.code != Some(0) {
            output.fails_with("rt: run")?;
        }
    }
    let left = fs::read_dir(test.state_root())?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| !name.to_string_lossy().starts_with('@')).collect();
    ensure(left.is_empty(), format!("{left:?} is left"))
}
