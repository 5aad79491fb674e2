//! What leads out of a container by a descriptor that the runtime has open: nothing. A container chooses the names of its program, of
//! interpreters, of directories and hooks, and each can go through `/proc/self/fd/N`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::lookups::{self, Open};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, copy_program, ensure, skip, wait_until,
};

super::tests! { "descriptors":
    init_has_open_what_is_listed, exec_has_open_what_is_listed, a_hook_has_open_what_is_listed,
    a_program_is_never_the_hosts, a_program_in_path_is_never_the_hosts, an_interpreter_is_never_the_hosts,
    a_loader_is_never_the_hosts, a_working_directory_is_never_the_hosts, a_hook_is_never_the_hosts,
    an_engine_is_no_program, exec_runs_nothing_of_the_hosts, exec_cannot_begin_outside,
    who_may_look_into_others_finds_nothing_of_the_hosts, a_neighbour_of_the_same_user_reaches_no_exec,
    a_program_by_a_magic_link_is_the_containers,
}

/// The numbers to try: all that a process can have by default, where a container is made in a few milliseconds.
fn numbers(test: &Test) -> std::ops::Range<u32> {
    let emulated = std::env::var_os("RT_TESTS_MANAGER").is_some();
    match test.host.lane.as_str() {
        _ if emulated => 3..16,
        "v2" => 3..1024,
        _ => 3..48,
    }
}

/// A folder of the host's with a program under some names, each of which leaves a trace when it runs.
fn of_the_host(test: &Test) -> Outcome<PathBuf> {
    let folder = test.folder.join("host");
    fs::create_dir(&folder)?;
    copy_program("/bin/busybox".as_ref(), folder.join("echo"))?;
    fs::hard_link(folder.join("echo"), folder.join("touch"))?;
    Ok(folder)
}

/// The way there from a directory of the host's.
fn way(number: u32, there: &std::path::Path) -> String {
    format!("/proc/self/fd/{number}/../../../../../../../../../../..{}", there.display())
}

const TRACE: &str = "of-the-host";

fn is_inside(output: &Output, how: &str) -> Outcome {
    let all = format!("{}{}", output.stdout, output.stderr);
    ensure(output.code != Some(0) && !output.stdout.contains(TRACE), format!("{how}: {all}"))?;
    ensure(!all.contains("is a directory"), format!("{how}: a directory is open: {all}"))
}

/// In these ways a container can be made.
fn variants<'a>(test: &'a Test, args: &[&str]) -> Outcome<Vec<(&'static str, Bundle<'a>)>> {
    let plain = || test.linux(args);
    let privileges = |bundle: Bundle<'a>| {
        bundle.edit(|config| {
            config["process"]["noNewPrivileges"] = json!(false);
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
        })
    };
    let user = |bundle: Bundle<'a>| {
        bundle.namespace(json!({ "type": "user" })).edit(|config| {
            let all = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            config["linux"]["uidMappings"] = all.clone();
            config["linux"]["gidMappings"] = all;
        })
    };
    let mut variants = vec![
        ("plain", plain()?),
        ("with a filter and new privileges", privileges(plain()?)),
        (
            "of another user",
            plain()?.edit(|config| {
                config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            }),
        ),
    ];
    for (_, bundle) in &variants {
        open_to_others(bundle)?;
    }
    let mapped = user(plain()?);
    open_to_others(&mapped)?;
    variants.push(("in a user namespace", mapped));
    if test.host.is_rt {
        variants.push(("under a handler", plain()?.annotation("run.oci.handler", "wasm")));
    }
    Ok(variants)
}

/// Root of a user namespace has to get there.
fn open_to_others(bundle: &Bundle<'_>) -> Outcome {
    for folder in bundle.rootfs().ancestors().take(4) {
        let mode = fs::metadata(folder)?.permissions().mode();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o055))?;
    }
    Ok(())
}

/// Whether a descriptor is on the list at the head of `container/becoming.rs`.
fn is_listed(file: &Open, inherited: u32) -> bool {
    let kinds = ["socket:", "pipe:", "anon_inode:"];
    file.number < 3 + inherited
        || kinds.iter().any(|kind| file.link.starts_with(kind))
        // A fifo in the directory of the state.
        || file.link.ends_with("/start") && !file.is_directory
        || file.is_on_a_mount_of_its_own
}

/// Traces a command, and looks at each look-up that a process makes whose root is the container's.
fn look(how: &str, command: &Command, bundle: &Bundle<'_>, inherited: u32) -> Outcome {
    let (status, seen) = lookups::of(command, &bundle.rootfs())?;
    ensure(status.success(), format!("{how}: {status}"))?;
    ensure(
        seen.iter().any(|look_up| look_up.what.starts_with("execve")),
        format!("{how}: no program was started: {seen:?}"),
    )?;
    for look_up in seen {
        let wrong: Vec<_> =
            look_up.open.iter().filter(|file| !is_listed(file, inherited)).collect();
        ensure(wrong.is_empty(), format!("{how}: at {}: {wrong:?}", look_up.what))?;
        // Whoever it is by then.
        ensure(look_up.owner == 0, format!("{how}: at {}: it is dumpable", look_up.what))?;
    }
    Ok(())
}

fn init_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    for (how, bundle) in variants(test, &["true"])? {
        bundle.write()?;
        look(how, &test.command(bundle.command_line("run", &test.id())), &bundle, 0)?;
    }
    // Gifts of the caller's stay.
    let bundle = test.linux(&["true"])?.flag("--preserve-fds=1");
    bundle.write()?;
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3</dev/null; exec \"$@\"", "sh"]).arg(&test.host.runtime);
    let plain = test.command(bundle.command_line("run", &test.id()));
    command.args(plain.get_args());
    look("with a descriptor of the caller's", &command, &bundle, 1)
}

fn exec_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    for (how, bundle) in variants(test, &["sleep", "60"])? {
        let container = bundle.start()?;
        look(how, &test.command(["exec", &container.id, "true"]), &bundle, 0)?;
    }
    Ok(())
}

fn a_hook_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    let [out, err] = ["out", "err"].map(|name| test.folder.join(name).display().to_string());
    let bundle = test
        .linux(&["true"])?
        .annotation("run.oci.hooks.stdout", &out)
        .annotation("run.oci.hooks.stderr", &err)
        .edit(|config| {
            config["hooks"] = json!({ "startContainer": [{ "path": "/bin/true" }] });
        });
    bundle.write()?;
    let command = test.command(bundle.command_line("run", &test.id()));
    let (status, seen) = lookups::of(&command, &bundle.rootfs())?;
    ensure(status.success(), status)?;
    let at_execs = seen.iter().filter(|look_up| look_up.what.starts_with("execve"));
    let mut execs = 0;
    for look_up in at_execs {
        execs += 1;
        // The files that hooks print to are its streams, and nothing else.
        let wrong = look_up.open.iter().find(|file| {
            file.number > 2 && (!is_listed(file, 0) || [&out, &err].contains(&&file.link))
        });
        ensure(wrong.is_none(), format!("at {}: {wrong:?}", look_up.what))?;
    }
    ensure(execs >= 2, format!("{execs} programs were started"))
}

fn a_program_is_never_the_hosts(test: &Test) -> Outcome {
    let there = of_the_host(test)?.join("echo");
    for (how, bundle) in variants(test, &["x"])? {
        for number in numbers(test) {
            for program in [format!("/proc/self/fd/{number}/."), way(number, &there)] {
                let bundle = bundle.clone().args(&[&program, TRACE]);
                is_inside(&bundle.run()?, &format!("{how}: {program}"))?;
            }
            if how != "plain" && number > 32 {
                break;
            }
        }
        // By a link that the image has.
        symlink(way(5, &there), bundle.rootfs().join("link"))?;
        is_inside(&bundle.args(&["/link", TRACE]).run()?, how)?;
    }
    Ok(())
}

fn a_program_in_path_is_never_the_hosts(test: &Test) -> Outcome {
    let there = of_the_host(test)?;
    for (how, bundle) in variants(test, &["echo", TRACE])? {
        for flag in [None, Some("--preserve-fds=0")] {
            let path: Vec<String> = (3..1024).map(|number| way(number, &there)).collect();
            let mut bundle = bundle.clone().edit(|config| {
                config["process"]["env"] = json!([format!("PATH={}", path.join(":"))]);
            });
            bundle.flags.extend(flag.map(str::to_owned));
            is_inside(&bundle.run()?, how)?;
        }
    }
    Ok(())
}

/// A script's: the kernel looks it up by itself.
fn an_interpreter_is_never_the_hosts(test: &Test) -> Outcome {
    let there = of_the_host(test)?.join("echo");
    for (how, bundle) in variants(test, &["/script"])? {
        for number in numbers(test).take(if how == "plain" { 1024 } else { 32 }) {
            let bundle =
                bundle.clone().file("/script", format!("#!{} {TRACE}\n", way(number, &there)))?;
            let script = bundle.rootfs().join("script");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
            is_inside(&bundle.run()?, &format!("{how}: {number}"))?;
        }
    }
    Ok(())
}

/// The smallest dynamic program: an ELF header, and a program header that names its interpreter.
fn elf(interpreter: &str) -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(0x40_0000_u64.to_le_bytes()); // entry
    file.extend(64_u64.to_le_bytes()); // program headers
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for short in [64_u16, 56, 2, 64, 0, 0] {
        file.extend(short.to_le_bytes());
    }
    let name = [interpreter.as_bytes(), b"\0"].concat();
    let at = 64 + 2 * 56_u64;
    for (kind, offset, address, size) in
        [(3_u32, at, at, name.len() as u64), (1, 0, 0x40_0000, at + name.len() as u64)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(5_u32.to_le_bytes());
        for word in [offset, address, address, size, size, 0x1000] {
            file.extend(word.to_le_bytes());
        }
    }
    [file, name].concat()
}

/// An ELF file's: the same.
fn a_loader_is_never_the_hosts(test: &Test) -> Outcome {
    let there = of_the_host(test)?.join("echo");
    // It finds one that is there.
    let good = test.linux(&["/program", TRACE])?.file("/program", elf("/bin/busybox"))?;
    let program = good.rootfs().join("program");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    // Which is no loader, and breaks down.
    ensure(good.run()?.code == Some(139), "an interpreter that is there was not run")?;
    for (how, bundle) in variants(test, &["/echo", TRACE])? {
        for number in numbers(test).take(if how == "plain" { 1024 } else { 32 }) {
            let bundle = bundle.clone().file("/echo", elf(&way(number, &there)))?;
            let program = bundle.rootfs().join("echo");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            let output = bundle.run()?;
            // The kernel's word for it comes through the runtime.
            let missing = output.code != Some(139) && !output.stderr.is_empty();
            ensure(missing, format!("{how}: descriptor {number} leads out: {output:?}"))?;
        }
    }
    Ok(())
}

fn a_working_directory_is_never_the_hosts(test: &Test) -> Outcome {
    for (how, bundle) in variants(test, &["echo", TRACE])? {
        for number in numbers(test).take(if how == "plain" { 1024 } else { 32 }) {
            for cwd in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/.")] {
                let bundle = bundle.clone().edit(|config| config["process"]["cwd"] = json!(cwd));
                is_inside(&bundle.run()?, &format!("{how}: {cwd}"))?;
            }
        }
    }
    Ok(())
}

/// A hook that runs in the container, by a path that the image makes a link.
fn a_hook_is_never_the_hosts(test: &Test) -> Outcome {
    let there = of_the_host(test)?.join("touch");
    for (how, bundle) in variants(test, &["true"])? {
        let bundle = bundle.edit(|config| {
            config["hooks"] = json!({ "startContainer": [
                { "path": "/hook", "args": ["touch", "/tmp/trace"] } ] });
        });
        let tmp = bundle.rootfs().join("tmp");
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
        for number in numbers(test).take(if how == "plain" { 1024 } else { 32 }) {
            let _ = fs::remove_file(bundle.rootfs().join("hook"));
            symlink(way(number, &there), bundle.rootfs().join("hook"))?;
            let output = bundle.run()?;
            ensure(output.code != Some(0), format!("{how}: descriptor {number}: it ran"))?;
            ensure(!tmp.join("trace").exists(), format!("{how}: descriptor {number} leads out"))?;
        }
    }
    Ok(())
}

/// The engine's directory is open only when a module was found.
fn an_engine_is_no_program(test: &Test) -> Outcome {
    let bundle = test.linux(&["engine.json"])?.annotation("run.oci.handler", "wasm");
    test.only_rt()?;
    let path: Vec<String> = (3..1024).map(|number| format!("/proc/self/fd/{number}")).collect();
    let bundle = bundle.edit(|config| {
        config["process"]["env"] = json!([format!("PATH={}", path.join(":"))]);
    });
    bundle.run()?.fails_with("executable file not found in $PATH").map(drop)
}

/// What a container that is hostile can do with an operator's `exec`, and what who may choose the arguments can.
fn exec_runs_nothing_of_the_hosts(test: &Test) -> Outcome {
    let there = of_the_host(test)?.join("echo");
    for (how, bundle) in variants(test, &["sleep", "60"])? {
        let container = bundle.start()?;
        let exec = |program: &str| test.rt(["exec", &container.id, program, TRACE]);
        for number in numbers(test).take(if how == "plain" { 1024 } else { 32 }) {
            for program in [format!("/proc/self/fd/{number}/."), way(number, &there)] {
                is_inside(&exec(&program)?, &format!("{how}: {program}"))?;
            }
        }
        for number in 3..32 {
            // The container puts a link in the place of its own program.
            let link = bundle.rootfs().join("link");
            let _ = fs::remove_file(&link);
            symlink(way(number, &there), &link)?;
            is_inside(&exec("/link")?, &format!("{how}: a link by {number}"))?;
            fs::write(
                bundle.rootfs().join("script"),
                format!("#!{} {TRACE}\n", way(number, &there)),
            )?;
            let script = bundle.rootfs().join("script");
            fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
            is_inside(&exec("/script")?, &format!("{how}: a script by {number}"))?;
        }
        let folder = there.parent().ok_or("no folder")?;
        let path: Vec<String> = (3..1024).map(|number| way(number, folder)).collect();
        let path = format!("--env=PATH={}", path.join(":"));
        is_inside(&test.rt(["exec", &path, &container.id, "echo", TRACE])?, how)?;
    }
    Ok(())
}

fn exec_cannot_begin_outside(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.start()?;
    for number in numbers(test) {
        let ends = ["", "/.", "/..", "/../../../.."];
        for end in &ends[..if number < 48 { ends.len() } else { 1 }] {
            let cwd = format!("--cwd=/proc/self/fd/{number}{end}");
            let output = test.rt(["exec", &cwd, &container.id, "echo", TRACE])?;
            is_inside(&output, &cwd)?;
        }
    }
    Ok(())
}

/// A container in which a script looks into every process that comes, and prints what it finds of the host's.
fn spy<'a>(test: &'a Test, file: &std::path::Path) -> Outcome<Bundle<'a>> {
    let script = r#"
        $| = 1; my $file = "FILE"; print "ready\n";
        while (1) {
            opendir(my $all, "/proc") or die;
            for my $pid (grep { /^\d+$/ && $_ > 1 } readdir $all) {
                for my $way ("root", "cwd") {
                    print "FOUND by $way\n" if open(my $f, "<", "/proc/$pid/$way$file");
                }
                opendir(my $fds, "/proc/$pid/fd") or next;
                for my $fd (grep { /^\d+$/ } readdir $fds) {
                    my $up = "/proc/$pid/fd/$fd" . "/.." x 12 . $file;
                    print "FOUND by $fd\n" if open(my $f, "<", $up);
                }
            }
        }"#;
    test.perl(&script.replace("FILE", &file.display().to_string()))
}

fn times(test: &Test) -> u32 {
    if std::env::var_os("RT_TESTS_MANAGER").is_some() || !test.host.is_rt { 20 } else { 100 }
}

fn finds_nothing(container: &Container<'_>, exec: &[&str]) -> Outcome {
    container.wait_for_output("ready")?;
    for _ in 0..times(container.test) {
        let args = [exec, &[container.id.as_str(), "/bin/true"]].concat();
        container.test.rt(args)?.success()?;
    }
    let said = container.stdout()?;
    match said.lines().find(|line| line.starts_with("FOUND")) {
        Some(found) => ensure(false, found),
        None => Ok(()),
    }
}

/// `CAP_SYS_PTRACE` opens `/proc/PID/root` and `/proc/PID/fd` of every process of a container (`ptrace(2)`).
fn who_may_look_into_others_finds_nothing_of_the_hosts(test: &Test) -> Outcome {
    let secret = test.folder.join("secret");
    fs::write(&secret, "")?;
    let bundle = spy(test, &secret)?.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
        }
    });
    finds_nothing(&bundle.start()?, &["exec"])
}

/// With `fs.suid_dumpable=1`, a change of the user leaves a process open to others of that user.
fn a_neighbour_of_the_same_user_reaches_no_exec(test: &Test) -> Outcome {
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            // The machine's own value; nothing can be done about a failure.
            let _ = fs::write("/proc/sys/fs/suid_dumpable", self.0.trim());
        }
    }
    let path = "/proc/sys/fs/suid_dumpable";
    let before = Restore(fs::read_to_string(path)?);
    if fs::write(path, "1").is_err() {
        return skip("this host's fs.suid_dumpable cannot be set");
    }
    let secret = test.folder.join("secret");
    fs::write(&secret, "")?;
    std::os::unix::fs::chown(&secret, Some(1000), Some(1000))?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let bundle = spy(test, &secret)?.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!([]);
        }
    });
    let outcome = finds_nothing(&bundle.start()?, &["exec", "--user", "1000:1000"]);
    drop(before);
    outcome
}

/// What is not the host's stays allowed: the program of the first process.
fn a_program_by_a_magic_link_is_the_containers(test: &Test) -> Outcome {
    let container = test.linux(&["sleep", "60"])?.start()?;
    wait_until("the program runs", || {
        let exe = container.pid().map(|pid| format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| fs::read_link(exe).is_ok_and(|exe| exe.ends_with("busybox")))
    })?;
    for program in ["/proc/1/root/bin/echo", "/proc/self/root/bin/echo", "/proc/self/cwd/bin/echo"]
    {
        test.rt(["exec", &container.id, program, "inside"])?.success()?.stdout("inside\n")?;
    }
    // It runs, and does not know that name.
    test.rt(["exec", &container.id, "/proc/1/exe"])?.fails_with("exe: applet not found")?;
    test.linux(&["/proc/self/root/bin/echo", "inside"])?.run()?.success()?.stdout("inside\n")?;
    if !test.host.is_rt {
        return Ok(());
    }
    // The runtime itself is none of its programs.
    let output = test.rt(["exec", &container.id, "/proc/self/exe", "--version"])?;
    output.fails_with("leads out of the container: permission denied").map(drop)
}
