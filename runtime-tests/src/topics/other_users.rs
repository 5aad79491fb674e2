//! Attacks by other users of the host: links and other traps where root writes a file, the socket
//! of a service, and forged states.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "other_users":
    a_planted_link_is_not_written_through, a_planted_hard_link_is_not_written_through,
    a_planted_fifo_holds_nobody_up, a_planted_directory_is_no_hindrance,
    a_pid_file_takes_the_place_of_a_link, a_pid_file_is_not_led_away_by_a_link_of_others,
    exec_removes_no_pid_file_behind_a_link_of_others, a_link_of_roots_leads_to_the_pid_file, a_program_that_cannot_run_leaves_no_draft,
    a_filesystem_without_nameless_files_will_do, a_log_is_not_led_away_by_a_link_of_others,
    a_log_is_not_a_hard_link_that_others_made, a_log_that_is_a_fifo_holds_nobody_up,
    a_log_is_for_its_owner_to_write, standard_error_can_be_the_log,
    what_hooks_print_is_for_its_owner, what_hooks_print_is_not_led_away, what_hooks_print_goes_to_no_disk,
    a_checkpoint_is_not_written_where_others_can, a_checkpoint_before_is_nobody_elses, the_log_of_a_checkpoint_may_be_its_roots,
    a_cache_of_modules_that_others_could_exchange_is_not_used, only_the_owner_of_the_state_can_pass,
    nobody_else_reaches_the_socket_of_a_service, nobody_else_reaches_that_of_a_user_namespace,
    nobody_else_reaches_that_in_an_older_root, root_of_a_user_namespace_tells_its_manager,
    an_ordinary_users_container_tells_its_manager, a_manager_without_a_file_hears_it_too,
    a_root_of_others_is_refused, a_root_that_others_can_write_to_is_refused,
    a_root_in_a_directory_of_others_is_refused,
    a_root_in_a_directory_that_others_can_write_to_is_refused,
    a_root_behind_a_link_of_others_is_refused, a_container_that_others_put_there_is_refused,
    in_a_root_for_all_each_container_is_looked_at, hooks_that_others_put_there_are_not_run,
    a_root_of_our_own_is_taken, root_of_a_user_namespace_has_a_root_of_its_own,
}

/// An ordinary user, and the user `nobody`.
const USERS: [u32; 2] = [1000, 65534];

fn mode(path: &Path, mode: u32) -> Outcome {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// A directory of another user.
fn of_others(test: &Test, name: &str) -> Outcome<PathBuf> {
    let path = test.folder.join(name);
    fs::create_dir(&path)?;
    chown(&path, Some(USERS[0]), Some(USERS[0]))?;
    Ok(path)
}

/// A link of another user.
fn link_of_others(target: &Path, link: &Path) -> Outcome {
    symlink(target, link)?;
    Ok(lchown(link, Some(USERS[0]), Some(USERS[0]))?)
}

/// A file that only root may change.
fn precious(test: &Test) -> Outcome<PathBuf> {
    let path = test.folder.join("precious");
    fs::write(&path, "precious")?;
    mode(&path, 0o600)?;
    Ok(path)
}

fn is_untouched(precious: &Path) -> Outcome {
    ensure_eq(fs::read_to_string(precious)?.as_str(), "precious")
}

/// A command with a time limit.
fn in_time(command: &Command) -> Command {
    let mut timeout = Command::new("timeout");
    timeout.args(["--signal=KILL", "20"]).arg(command.get_program()).args(command.get_args());
    timeout.stdin(Stdio::null());
    timeout
}

/// Another user owns the directory of the pid file, and puts something at each name that an older
/// `rt` used for a draft.
fn planted(test: &Test, plant: impl Fn(&Path) -> Outcome) -> Outcome {
    let (folder, precious) = (of_others(test, "theirs")?, precious(test)?);
    let container = test.sh("exec sleep 60")?.start()?;
    let pid_file = folder.join("c.pid");
    let bundle = test.sh("exec sleep 60")?.flag("--pid-file").flag(pid_file.display().to_string());
    bundle.write()?;
    let exec =
        ["exec", "--detach", "--pid-file", &pid_file.display().to_string(), &container.id, "true"]
            .map(str::to_owned);
    for line in [bundle.command_line("create", &test.id()), exec.to_vec()] {
        let command = in_time(&test.command(line));
        let last = fs::read_to_string("/proc/sys/kernel/ns_last_pid")?.trim().parse::<u32>()?;
        let most = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse::<u32>()?;
        for number in last..last + 4000 {
            plant(&folder.join(format!(".c.pid.{}", number % most)))?;
        }
        Output::of(command)?.success()?;
        is_untouched(&precious)?;
        let text = fs::read_to_string(&pid_file)?;
        ensure(text.parse::<u32>().is_ok_and(|pid| pid > 1), text)?;
        ensure_eq(fs::symlink_metadata(&pid_file)?.mode() & 0o170_777, 0o100_644)?;
        fs::remove_dir_all(&folder)?;
        fs::create_dir(&folder)?;
        chown(&folder, Some(USERS[0]), Some(USERS[0]))?;
    }
    Ok(())
}

fn a_planted_link_is_not_written_through(test: &Test) -> Outcome {
    planted(test, |place| link_of_others(&test.folder.join("precious"), place))
}

/// Another user can make hard links if `fs.protected_hardlinks` is 0.
fn a_planted_hard_link_is_not_written_through(test: &Test) -> Outcome {
    planted(test, |place| Ok(fs::hard_link(test.folder.join("precious"), place)?))
}

fn a_planted_fifo_holds_nobody_up(test: &Test) -> Outcome {
    planted(test, fifo)
}

fn fifo(place: &Path) -> Outcome {
    use rustix::fs::{CWD, FileType, Mode};
    rustix::fs::mknodat(CWD, place, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
    Ok(lchown(place, Some(USERS[0]), Some(USERS[0]))?)
}

fn a_planted_directory_is_no_hindrance(test: &Test) -> Outcome {
    planted(test, |place| Ok(fs::create_dir(place)?))
}

fn with_pid_file<'a>(test: &'a Test, path: &Path) -> Outcome<Bundle<'a>> {
    Ok(test.sh("exec sleep 60")?.flag("--pid-file").flag(path.display().to_string()))
}

/// `exec` removes an old pid file before it does anything else.
fn exec_removes_no_pid_file_behind_a_link_of_others(test: &Test) -> Outcome {
    let precious = precious(test)?;
    let folder = of_others(test, "att")?;
    let above = precious.parent().ok_or("no folder")?;
    link_of_others(above, &folder.join("link"))?;
    let container = test.sh("exec sleep 60")?.start()?;
    let name = precious.file_name().ok_or("no name")?;
    let path = folder.join("link").join(name).display().to_string();
    for id in [container.id.as_str(), "there-is-none"] {
        let output = test.rt(["exec", "--detach", "--pid-file", &path, id, "true"])?;
        ensure(output.code != Some(0) || !test.host.is_rt, "it ran")?;
        ensure(precious.exists(), "a file behind the link was removed")?;
    }
    Ok(())
}

fn a_pid_file_takes_the_place_of_a_link(test: &Test) -> Outcome {
    let (folder, precious) = (of_others(test, "theirs")?, precious(test)?);
    let path = folder.join("c.pid");
    link_of_others(&precious, &path)?;
    let container = with_pid_file(test, &path)?.create()?;
    is_untouched(&precious)?;
    ensure_eq(fs::read_to_string(&path)?.parse()?, container.pid()?)?;
    ensure_eq(fs::read_dir(folder)?.count(), 1)
}

fn a_pid_file_is_not_led_away_by_a_link_of_others(test: &Test) -> Outcome {
    test.only_rt()?;
    let (folder, host) = (of_others(test, "theirs")?, test.folder.join("host"));
    fs::create_dir_all(host.join("below"))?;
    link_of_others(&host, &folder.join("link"))?;
    link_of_others(&folder.join("link"), &folder.join("second"))?;
    for way in ["link", "link/below", "second", "link/below/.."] {
        let bundle = with_pid_file(test, &folder.join(way).join("c.pid"))?;
        bundle.try_create(&test.id())?.fails_with("belongs to user 1000")?;
    }
    ensure(!host.join("c.pid").exists() && !host.join("below/c.pid").exists(), "it was written")
}

fn a_link_of_roots_leads_to_the_pid_file(test: &Test) -> Outcome {
    let real = of_others(test, "theirs")?;
    symlink("theirs", test.folder.join("link"))?;
    symlink("./link/../link", test.folder.join("second"))?;
    let container = with_pid_file(test, &test.folder.join("second/c.pid"))?.create()?;
    ensure_eq(fs::read_to_string(real.join("c.pid"))?.parse()?, container.pid()?)
}

/// The draft of the pid file exists when the exec of the program fails.
fn a_program_that_cannot_run_leaves_no_draft(test: &Test) -> Outcome {
    let folder = of_others(test, "theirs")?;
    let bundle = test.sh("exec sleep 60")?.file("bin/broken", b"\x7fELF")?;
    mode(&bundle.rootfs().join("bin/broken"), 0o755)?;
    let container = bundle.start()?;
    let pid_file = folder.join("c.pid").display().to_string();
    let output = test.rt(["exec", "--pid-file", &pid_file, &container.id, "/bin/broken"])?;
    ensure(output.code != Some(0), "it ran")?;
    ensure_eq(fs::read_dir(folder)?.count(), 0)
}

/// On such a filesystem, the draft has a name that nobody can guess.
fn a_filesystem_without_nameless_files_will_do(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let folder = of_others(test, "theirs")?;
    let pid_file = folder.join("c.pid");
    let draft = |path: &Path, ends_well: bool| -> Outcome<String> {
        let bundle = with_pid_file(test, path)?;
        bundle.write()?;
        let log = test.folder.join("calls");
        let create = test.command(bundle.command_line("create", &test.id()));
        let mut strace = Command::new("strace");
        strace.arg("--output").arg(&log).arg("--trace-path").arg(&folder);
        strace.arg("--inject=openat:error=EOPNOTSUPP:when=1");
        strace.arg(create.get_program()).args(create.get_args());
        ensure_eq(Output::of(in_time(&strace))?.code == Some(0), ends_well)?;
        let calls = fs::read_to_string(log)?;
        let name = calls.split('"').find(|word| word.starts_with(".rt-"));
        Ok(name.ok_or(calls.clone())?.to_owned())
    };
    let first = draft(&pid_file, true)?;
    ensure(fs::read_to_string(&pid_file)?.parse::<u32>().is_ok(), "no number")?;
    let second = draft(&pid_file, true)?;
    ensure(first != second && first.len() == ".rt-".len() + 32, format!("{first}, {second}"))?;
    ensure_eq(fs::read_dir(&folder)?.count(), 1)?;
    // The draft cannot be renamed to a directory that is not empty.
    fs::create_dir_all(folder.join("taken/below"))?;
    draft(&folder.join("taken"), false)?;
    ensure_eq(fs::read_dir(&folder)?.count(), 2)
}

/// Runs `state` for a container that does not exist. The one line of the error goes to a log.
fn logging(test: &Test, log: &Path) -> Outcome<Output> {
    let mut command = Command::new(&test.host.runtime);
    command.arg("--root").arg(test.state_root()).arg("--log").arg(log).args(["state", "none"]);
    Output::of(in_time(&command))
}

fn a_log_is_not_led_away_by_a_link_of_others(test: &Test) -> Outcome {
    test.only_rt()?;
    let (folder, precious) = (of_others(test, "theirs")?, precious(test)?);
    link_of_others(&precious, &folder.join("log"))?;
    link_of_others(&test.folder, &folder.join("above"))?;
    link_of_others(&folder.join("log"), &folder.join("second"))?;
    for way in ["log", "above/precious", "second"] {
        logging(test, &folder.join(way))?.fails_with("belongs to user 1000")?;
        is_untouched(&precious)?;
    }
    Ok(())
}

fn a_log_is_not_a_hard_link_that_others_made(test: &Test) -> Outcome {
    test.only_rt()?;
    let (folder, precious) = (of_others(test, "theirs")?, precious(test)?);
    fs::hard_link(&precious, folder.join("log"))?;
    logging(test, &folder.join("log"))?.fails_with("more than one link")?;
    is_untouched(&precious)?;
    // In a directory of root, only root could make the link.
    fs::hard_link(&precious, test.folder.join("log"))?;
    logging(test, &test.folder.join("log"))?.fails_with("does not exist")?;
    ensure(fs::read_to_string(precious)?.contains("does not exist"), "it is not logged")
}

fn a_log_that_is_a_fifo_holds_nobody_up(test: &Test) -> Outcome {
    test.only_rt()?;
    let log = of_others(test, "theirs")?.join("log");
    fifo(&log)?;
    logging(test, &log)?.fails_with("open log").map(drop)
}

fn a_log_is_for_its_owner_to_write(test: &Test) -> Outcome {
    let log = test.folder.join("log");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(&test.host.runtime).arg("--root");
    shell.arg(test.state_root()).arg("--log").arg(&log).args(["state", "none"]);
    ensure(Output::of(shell)?.code != Some(0), "it succeeded")?;
    ensure_eq(fs::metadata(log)?.mode() & 0o133, 0)
}

fn standard_error_can_be_the_log(test: &Test) -> Outcome {
    test.only_rt()?;
    for log in ["/dev/stderr", "/proc/self/fd/2", "/dev/fd/2"] {
        // The line of the log, and the line of the command.
        let lines = logging(test, Path::new(log))?.stderr;
        ensure_eq(lines.matches("does not exist").count(), 2)?;
    }
    let mut shell = Command::new("sh");
    let script = "\"$0\" --root \"$1\" --log /dev/stderr state none 2>&1 | cat";
    shell.args(["-c", script]).arg(&test.host.runtime).arg(test.state_root());
    ensure_eq(Output::of(shell)?.success()?.stdout.matches("does not exist").count(), 2)
}

fn printing<'a>(test: &'a Test, path: &Path) -> Outcome<Bundle<'a>> {
    let hook = json!([{ "path": "/bin/echo", "args": ["echo", "printed"] }]);
    let bundle = test.sh("true")?.edit(|config| config["hooks"]["createRuntime"] = hook);
    Ok(bundle.annotation("run.oci.hooks.stdout", &path.display().to_string()))
}

fn what_hooks_print_is_for_its_owner(test: &Test) -> Outcome {
    test.only_rt()?;
    let file = test.folder.join("printed");
    printing(test, &file)?.run()?.success()?;
    ensure_eq(fs::read_to_string(&file)?.as_str(), "printed\n")?;
    ensure_eq(fs::metadata(file)?.mode() & 0o777, 0o600)
}

fn what_hooks_print_goes_to_no_disk(test: &Test) -> Outcome {
    test.only_rt()?;
    let file = test.folder.join("disk");
    fs::write(&file, [0; 4096])?;
    let losetup = |args: &[&std::ffi::OsStr]| Command::new("losetup").args(args).output();
    let Ok(made) = losetup(&["--find".as_ref(), "--show".as_ref(), file.as_ref()]) else {
        return skip("there is no losetup");
    };
    if !made.status.success() {
        return skip("no disk can be made of a file here");
    }
    let disk = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let output = printing(test, Path::new(&disk)).and_then(|bundle| bundle.run());
    losetup(&["--detach".as_ref(), disk.as_ref()])?;
    output?.fails_with("it is a disk")?;
    ensure(fs::read(file)? == [0; 4096], "it was written to")
}

fn what_hooks_print_is_not_led_away(test: &Test) -> Outcome {
    test.only_rt()?;
    let (folder, precious) = (of_others(test, "theirs")?, precious(test)?);
    let file = folder.join("printed");
    link_of_others(&precious, &file)?;
    printing(test, &file)?.run()?.fails_with("belongs to user 1000")?;
    is_untouched(&precious)
}

fn a_checkpoint_is_not_written_where_others_can(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let theirs = of_others(test, "theirs")?;
    let shared = test.folder.join("shared");
    fs::create_dir(&shared)?;
    mode(&shared, 0o775)?;
    let link = test.folder.join("link");
    fs::create_dir(test.folder.join("own"))?;
    link_of_others(&test.folder.join("own"), &link)?;
    let behind = link.join("new");
    for (path, words) in [
        (&theirs, "belongs to user 1000"),
        (&shared, "others can write"),
        (&link, "belongs to"),
        (&behind, "belongs to"),
    ] {
        for flag in ["--image-path", "--work-path"] {
            let mut command = test.command(["checkpoint", flag]);
            let other = if flag == "--work-path" { "--image-path" } else { "--work-path" };
            command.arg(path).arg(other).arg(test.folder.join("images")).arg(&container.id);
            Output::of(command)?.fails_with(words)?;
            ensure_eq(container.status()?.as_str(), "running")?;
        }
        ensure_eq(fs::read_dir(path).map_or(0, Iterator::count), 0)?;
    }
    ensure(!behind.exists(), "it was made behind the link")
}

/// The earlier checkpoint is named by `--parent-path` or by CRIU's link in the images. A user who
/// can exchange its directory decides which memory is restored.
fn a_checkpoint_before_is_nobody_elses(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    let container = bundle.start()?;
    let theirs = of_others(test, "theirs")?;
    for base in ["theirs/base", "base"] {
        fs::create_dir(test.folder.join(base))?;
    }
    link_of_others(&test.folder.join("base"), &test.folder.join("link"))?;
    let images = test.folder.join("images");
    fs::create_dir(&images)?;
    fs::write(images.join("descriptors.json"), json!(["", "", ""]).to_string())?;
    fs::write(images.join("mounts.json"), "[]")?;
    let folder = bundle.folder.display().to_string();
    let run = |mut command: Command, id: &str| {
        command.arg("--image-path").arg(&images).arg(id);
        Output::of(command)
    };
    let checkpoint = |flags: &[&str]| {
        run(test.command([&["checkpoint", "--leave-running"], flags].concat()), &container.id)
    };
    let restore = || run(test.command(["restore", "--bundle", &folder]), &test.id());
    // `rt` checks each checkpoint in a chain.
    symlink("../theirs/base", test.folder.join("base/parent"))?;
    for (parent, owner) in
        [("../theirs/base", "user 1000"), ("../link", "user 1000"), ("../base", "user 1000")]
    {
        checkpoint(&["--parent-path", parent])?.fails_with(owner)?;
        symlink(parent, images.join("parent"))?;
        checkpoint(&[])?.fails_with(owner)?;
        restore()?.fails_with(owner)?;
        fs::remove_file(images.join("parent"))?;
    }
    // In a directory with the sticky bit, other users can add files, but cannot exchange existing
    // ones.
    fs::remove_file(test.folder.join("base/parent"))?;
    mode(&test.folder, 0o1777)?;
    symlink("../base", images.join("parent"))?;
    for output in [checkpoint(&["--parent-path", "../base"])?, checkpoint(&[])?] {
        ensure(!output.stderr.contains("the checkpoint before"), output.stderr)?;
    }
    // If it is restored, it holds what it writes to until it ends.
    let (id, errors) = (test.id(), test.folder.join("errors"));
    let mut restore = test.command(["restore", "--detach", "--bundle", &folder]);
    restore.arg("--image-path").arg(&images).arg(&id);
    restore
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&errors)?)
        .status()?;
    let errors = fs::read_to_string(errors)?;
    ensure(!errors.contains("the checkpoint before"), errors)?;
    test.rt(["delete", "--force", &id])?;
    mode(&test.folder, 0o755)?;
    ensure_eq(fs::read_dir(theirs.join("base"))?.count(), 0)
}

/// podman gives the directory of the log to the root of the container's user namespace.
fn the_log_of_a_checkpoint_may_be_its_roots(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = mapped(test.sh("exec sleep 60")?).start()?;
    let work = test.folder.join("work");
    fs::create_dir(&work)?;
    let checkpoint = |path: &str| {
        let mut command = test.command(["checkpoint", "--leave-running", "--work-path"]);
        command.arg(&work).arg("--image-path").arg(test.folder.join(path)).arg(&container.id);
        Output::of(command)
    };
    chown(&work, Some(100_000), Some(100_000))?;
    // The checkpoint may fail later, for example without CRIU.
    ensure(!checkpoint("images")?.stderr.contains("belongs to"), "it was refused")?;
    ensure(test.folder.join("images").is_dir(), "it did not come so far")?;
    chown(&work, Some(100_001), None)?;
    checkpoint("images")?.fails_with("belongs to user 100001")?;
    fs::create_dir(test.folder.join("theirs"))?;
    chown(test.folder.join("theirs"), Some(100_000), None)?;
    checkpoint("theirs")?.fails_with("belongs to user 100000").map(drop)
}

fn a_cache_of_modules_that_others_could_exchange_is_not_used(test: &Test) -> Outcome {
    super::wasm_cache::host(test, json!({}))?;
    let module = test.host.guest("hello")?.display().to_string();
    let use_cache = |path: &Path| -> Outcome<Output> {
        let settings = json!({ "cache": { "directory": path } });
        fs::write(test.folder.join("wasm.json"), settings.to_string())?;
        test.rt(["wasm", "compile", &module])
    };
    let theirs = of_others(test, "theirs")?;
    use_cache(&theirs.join("cache"))?.fails_with("belongs to user 1000")?;
    ensure_eq(fs::read_dir(&theirs)?.count(), 0)?;
    let shared = test.folder.join("shared");
    fs::create_dir(&shared)?;
    mode(&shared, 0o777)?;
    use_cache(&shared.join("cache"))?.fails_with("others can write")?;
    fs::create_dir(test.folder.join("own"))?;
    link_of_others(&test.folder.join("own"), &test.folder.join("link"))?;
    use_cache(&test.folder.join("link/cache"))?.fails_with("belongs to user 1000").map(drop)
}

fn only_the_owner_of_the_state_can_pass(test: &Test) -> Outcome {
    test.only_rt()?;
    let mapped = mapped(test.sh("exec sleep 60")?);
    for bundle in [test.sh("exec sleep 60")?, mapped] {
        let container = bundle.create()?;
        for path in [test.state_root(), test.state_root().join(&container.id)] {
            ensure_eq(fs::metadata(path)?.mode() & 0o7777, 0o700)?;
        }
    }
    Ok(())
}

/// A container with a user namespace, whose root is a user of the host without any files there.
pub(super) fn mapped(bundle: Bundle<'_>) -> Bundle<'_> {
    // The container's root cannot make these directories.
    for place in ["usr", "run/notify"] {
        let _ = fs::create_dir_all(bundle.rootfs().join(place));
    }
    bundle.namespace(json!({ "type": "user" })).edit(|config| {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    })
}

fn manager(test: &Test) -> Outcome<UnixDatagram> {
    let socket = UnixDatagram::bind(test.folder.join("manager"))?;
    mode(&test.folder.join("manager"), 0o777)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

fn hear(manager: &UnixDatagram) -> Outcome<String> {
    let mut bytes = [0; 4096];
    let length = manager.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

const SAY: &str = r#"
    use Socket;
    socket(S, AF_UNIX, SOCK_DGRAM, 0);
    my $a = pack_sockaddr_un($ARGV[0] || $ENV{NOTIFY_SOCKET});
    sub say { defined send(S, $_[0], 0, $a) or die "$!\n" }
"#;

/// A container that sends a message, and then lives until it is killed.
fn speaking<'a>(test: &'a Test) -> Outcome<Bundle<'a>> {
    test.perl(&format!("{SAY} say('STATUS=first'); sleep 60"))
}

/// Starts `run` in the foreground. While it runs, it passes on the container's messages.
fn serve(test: &Test, bundle: &Bundle<'_>, manager: &str) -> Outcome<(String, Child)> {
    bundle.write()?;
    let id = test.id();
    let mut run = test.command(bundle.command_line("run", &id));
    let run = run.env("NOTIFY_SOCKET", manager).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((id, run.spawn()?))
}

/// Kills the container, and checks that `run` has passed on no further message.
fn end(test: &Test, (id, mut run): (String, Child), manager: &UnixDatagram) -> Outcome {
    test.rt(["kill", &id, "KILL"])?.success()?;
    run.wait()?;
    manager.set_nonblocking(true)?;
    let mut bytes = [0; 4096];
    match manager.recv(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        heard => {
            let text = String::from_utf8_lossy(&bytes[..heard?]).into_owned();
            Err(format!("the manager has heard {text:?}").into())
        }
    }
}

/// Other users send messages in its place. One of them is the user that is the container's root.
fn forge(test: &Test, bundle: &Bundle<'_>) -> Outcome {
    test.only_rt()?;
    let manager = manager(test)?;
    let path = test.folder.join("manager").display().to_string();
    let service = serve(test, bundle, &path)?;
    ensure_eq(hear(&manager)?.as_str(), "STATUS=first")?;
    let socket = test.state_root().join(&service.0).join("notify/notify.sock");
    ensure(socket.exists(), "there is no socket")?;
    for user in USERS.into_iter().chain([100_000]) {
        let mut perl = Command::new("setpriv");
        let user = user.to_string();
        perl.args(["--reuid", &user, "--regid", &user, "--clear-groups", "perl", "-e"]);
        perl.arg(format!("{SAY} say('WATCHDOG=trigger')")).arg(&socket);
        Output::of(perl)?.fails_with("Permission denied")?;
    }
    end(test, service, &manager)
}

fn nobody_else_reaches_the_socket_of_a_service(test: &Test) -> Outcome {
    forge(test, &speaking(test)?)
}

fn nobody_else_reaches_that_of_a_user_namespace(test: &Test) -> Outcome {
    forge(test, &mapped(speaking(test)?))
}

/// The root of the state allows others to pass, because an older `rt` made it.
fn nobody_else_reaches_that_in_an_older_root(test: &Test) -> Outcome {
    fs::create_dir(test.state_root())?;
    mode(&test.state_root(), 0o711)?;
    forge(test, &speaking(test)?)
}

fn root_of_a_user_namespace_tells_its_manager(test: &Test) -> Outcome {
    let manager = manager(test)?;
    // Like the directory of a caller that keeps its own state.
    fs::create_dir(test.state_root())?;
    mode(&test.state_root(), 0o700)?;
    let path = test.folder.join("manager").display().to_string();
    let service = serve(test, &mapped(speaking(test)?), &path)?;
    ensure_eq(hear(&manager)?.as_str(), "STATUS=first")?;
    end(test, service, &manager)
}

/// An ordinary user may open no mount before the user namespace exists.
fn an_ordinary_users_container_tells_its_manager(test: &Test) -> Outcome {
    test.only_rt()?;
    let manager = manager(test)?;
    let bundle = test.perl(&format!("{SAY} say('STATUS=first')"))?;
    let socket = test.folder.join("manager").display().to_string();
    let before = [format!("NOTIFY_SOCKET={socket}")];
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    super::rootless::run_with(test, bundle, &before)?.success()?;
    ensure_eq(hear(&manager)?.as_str(), "STATUS=first")
}

/// The manager's socket has an abstract name, which any process in its network namespace can use.
/// The socket for the container has no abstract name.
fn a_manager_without_a_file_hears_it_too(test: &Test) -> Outcome {
    use std::os::linux::net::SocketAddrExt;
    test.only_rt()?;
    let name = test.id();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
    let manager = UnixDatagram::bind_addr(&address)?;
    manager.set_read_timeout(Some(Duration::from_secs(10)))?;
    let service = serve(test, &speaking(test)?, &format!("@{name}"))?;
    ensure_eq(hear(&manager)?.as_str(), "STATUS=first")?;
    let pid = service.1.id().to_string();
    let own: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.replace(']', "")))
        .collect();
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let named = sockets.lines().filter(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 7 && words[7].starts_with('@') && own.iter().any(|inode| inode == words[6])
    });
    ensure_eq(named.count(), 0)?;
    end(test, service, &manager)
}

/// Every command that uses a root of the state, for a container `c`.
fn commands(test: &Test) -> Outcome<Vec<Vec<String>>> {
    let bundle = test.sh("true")?;
    bundle.write()?;
    fs::write(test.folder.join("mounts.json"), "[]")?;
    fs::create_dir_all(test.folder.join("images"))?;
    fs::write(test.folder.join("images/descriptors.json"), "[]")?;
    let (bundle, folder) = (bundle.folder.display().to_string(), test.folder.display());
    let lines = [
        "state c".to_owned(),
        "list".to_owned(),
        "kill c KILL".to_owned(),
        "delete c".to_owned(),
        "delete --force c".to_owned(),
        "delete --regex c".to_owned(),
        "exec c true".to_owned(),
        "start c".to_owned(),
        "ps c".to_owned(),
        "update --pids-limit 5 c".to_owned(),
        "events --stats c".to_owned(),
        "pause c".to_owned(),
        "resume c".to_owned(),
        format!("checkpoint --image-path {folder}/images c"),
        format!("mounts add c {folder}/mounts.json"),
        format!("mounts remove c {folder}/mounts.json"),
        format!("create --bundle {bundle} c"),
        format!("run --bundle {bundle} c"),
        format!("restore --bundle {bundle} --image-path {folder}/images c"),
    ];
    Ok(lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect())
}

fn with_root(test: &Test, root: &Path, line: &[String]) -> Outcome<Output> {
    let mut command = Command::new(&test.host.runtime);
    command.arg("--root").arg(root).args(line).stdin(Stdio::null());
    Output::of(command)
}

/// All these commands fail, name the directory, and make nothing.
fn refused(test: &Test, root: &Path, words: &str, directory: &Path) -> Outcome {
    test.only_rt()?;
    let count = || fs::read_dir(root).map_or(0, Iterator::count);
    let before = count();
    for line in commands(test)? {
        let output = with_root(test, root, &line)?;
        let at = |what: &str| format!("`{}`: {what}: {}", line.join(" "), output.stderr);
        ensure(output.code.is_some_and(|code| code != 0), at("it succeeded"))?;
        let named = output.stderr.contains(&format!("`{}`", directory.display()));
        ensure(named && output.stderr.contains(words), at("the error says something else"))?;
        ensure_eq(output.stderr.matches('\n').count(), 1)?;
        ensure_eq(count(), before)?;
    }
    Ok(())
}

fn a_root_of_others_is_refused(test: &Test) -> Outcome {
    for (number, user) in USERS.into_iter().enumerate() {
        let root = test.folder.join(format!("root{number}"));
        fs::create_dir(&root)?;
        chown(&root, Some(user), Some(user))?;
        refused(test, &root, &format!("belongs to user {user}"), &root)?;
    }
    let check = with_root(test, &test.folder.join("root0"), &["check".to_owned()])?.code(1)?;
    ensure(check.stdout.contains("belongs to user 1000"), check.stdout)?;
    // A caller may give a relative path.
    let mut command = Command::new(&test.host.runtime);
    command.args(["--root", "root0/.", "list"]).current_dir(&test.folder);
    Output::of(command)?.fails_with("belongs to user 1000").map(drop)
}

fn a_root_that_others_can_write_to_is_refused(test: &Test) -> Outcome {
    let root = test.folder.join("root");
    fs::create_dir(&root)?;
    for (mode, shown) in [(0o770, "0770"), (0o707, "0707"), (0o777, "0777"), (0o2775, "2775")] {
        self::mode(&root, mode)?;
        refused(test, &root, &format!("has mode {shown}"), &root)?;
    }
    Ok(())
}

fn a_root_in_a_directory_of_others_is_refused(test: &Test) -> Outcome {
    let theirs = of_others(test, "theirs")?;
    fs::create_dir_all(theirs.join("a/b"))?;
    for root in ["a", "a/b", "a/none", "none"] {
        refused(test, &theirs.join(root), "belongs to user 1000", &theirs)?;
    }
    Ok(())
}

fn a_root_in_a_directory_that_others_can_write_to_is_refused(test: &Test) -> Outcome {
    let shared = test.folder.join("shared");
    fs::create_dir_all(shared.join("a/b"))?;
    for (mode, root) in [(0o777, "a"), (0o775, "a/b"), (0o730, "none"), (0o702, "a/../a")] {
        self::mode(&shared, mode)?;
        refused(test, &shared.join(root), "others can write to", &shared)?;
    }
    Ok(())
}

fn a_root_behind_a_link_of_others_is_refused(test: &Test) -> Outcome {
    let own = test.folder.join("own");
    fs::create_dir_all(own.join("below"))?;
    let (first, second) = (test.folder.join("first"), test.folder.join("second"));
    link_of_others(&own, &first)?;
    // A link of root leads to a link of the other user.
    symlink("first/below", &second)?;
    for root in [&first, &first.join("below"), &second] {
        refused(test, root, "belongs to user 1000", &first)?;
    }
    // In a directory that everybody can write to, the owner of a link decides whether to trust it.
    let public = test.folder.join("public");
    fs::create_dir(&public)?;
    mode(&public, 0o1777)?;
    link_of_others(&own, &public.join("link"))?;
    refused(test, &public.join("link"), "belongs to user 1000", &public.join("link"))
}

fn a_container_that_others_put_there_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let directory = test.state_root().join(&container.id);
    let state = |words: &str| container.rt(&["state"])?.fails_with(words).map(drop);
    chown(&directory, Some(1000), None)?;
    state("belongs to user 1000")?;
    container.rt(&["delete", "--force"])?.fails_with("belongs to user 1000")?;
    chown(&directory, Some(0), None)?;
    mode(&directory, 0o770)?;
    state("others can write to")?;
    mode(&directory, 0o700)?;
    let moved = test.state_root().join("moved");
    fs::rename(&directory, &moved)?;
    link_of_others(&moved, &directory)?;
    state("does not exist")?;
    fs::remove_file(&directory)?;
    fs::rename(moved, directory)?;
    ensure_eq(container.status()?.as_str(), "running")
}

/// Everybody can make files in this root, as on a tmpfs that was mounted without a mode.
fn in_a_root_for_all_each_container_is_looked_at(test: &Test) -> Outcome {
    test.only_rt()?;
    fs::create_dir(test.state_root())?;
    mode(&test.state_root(), 0o1777)?;
    let container = test.sh("exec sleep 60")?.start()?;
    let (own, theirs) = (test.state_root().join(&container.id), test.state_root().join("theirs"));
    fs::create_dir(&theirs)?;
    fs::copy(own.join("state.json"), theirs.join("state.json"))?;
    lchown(&theirs, Some(USERS[0]), None)?;
    test.rt(["state", "theirs"])?.fails_with("belongs to user 1000")?;
    test.rt(["delete", "--force", "theirs"])?.fails_with("belongs to user 1000")?;
    let listed = test.rt(["list", "--quiet"])?.success()?.stdout;
    ensure_eq(listed, format!("{}\n", container.id))?;
    fs::remove_dir_all(theirs)?;
    container.rt(&["delete", "--force"])?.success().map(drop)
}

/// The original attack: the owner of a directory above exchanges the root of the state for another
/// one.
fn hooks_that_others_put_there_are_not_run(test: &Test) -> Outcome {
    test.only_rt()?;
    let mark = test.folder.join("mark");
    let bundle = test.sh("true")?;
    let hook = json!([{ "path": "/bin/touch", "args": ["touch", mark] }]);
    let bundle = bundle.edit(|config| config["hooks"]["poststop"] = hook);
    bundle.write()?;
    let root = test.folder.join("theirs/root");
    fs::create_dir_all(&root)?;
    let id = test.id();
    let line = bundle.command_line("create", &id);
    with_root(test, &root, &line)?.success()?;
    chown(test.folder.join("theirs"), Some(1000), None)?;
    let delete = ["delete", "--force", &id].map(str::to_owned);
    with_root(test, &root, &delete)?.fails_with("belongs to user 1000")?;
    ensure(!mark.exists(), "the hook has run")?;
    chown(test.folder.join("theirs"), Some(0), None)?;
    with_root(test, &root, &delete)?.success()?;
    ensure(mark.exists(), "the hook has not run")
}

fn a_root_of_our_own_is_taken(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let public = test.folder.join("public");
    fs::create_dir_all(public.join("own"))?;
    mode(&public, 0o1777)?;
    fs::create_dir(test.folder.join("own"))?;
    symlink("own", test.folder.join("link"))?;
    symlink(test.folder.join("link/../link"), test.folder.join("second"))?;
    let older = test.folder.join("older");
    fs::create_dir(&older)?;
    mode(&older, 0o711)?;
    let shown = |name: &str| test.folder.join(name).display().to_string();
    let roots = [
        shown("public/own"),
        shown("public/new"),
        shown("link"),
        shown("second/below/../new"),
        shown("older"),
        shown("new/a/b"),
        "relative".to_owned(),
        "./own/../other/".to_owned(),
    ];
    fs::create_dir(test.folder.join("own/below"))?;
    for root in roots {
        let rt = |line: &[&str]| {
            let mut command = Command::new(&test.host.runtime);
            command.args(["--root", &root]).args(line).current_dir(&test.folder);
            Output::of(command)
        };
        let folder = bundle.folder.display().to_string();
        let id = test.id();
        rt(&["create", "--bundle", &folder, &id])?.success()?;
        ensure(rt(&["list"])?.success()?.stdout.contains("created"), &root)?;
        ensure(rt(&["state", &id])?.success()?.stdout.contains("created"), &root)?;
        rt(&["delete", "--force", &id])?.success()?;
    }
    // An existing root keeps its mode, because its owner may want it.
    ensure_eq(fs::metadata(older)?.mode() & 0o777, 0o711)
}

/// In this user namespace, the files of the host's root seem to belong to `nobody`.
fn root_of_a_user_namespace_has_a_root_of_its_own(test: &Test) -> Outcome {
    test.only_rt()?;
    let unshare = |root: &Path| -> Outcome<Output> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
        command.args(["unshare", "--user", "--map-root-user"]).arg(&test.host.runtime);
        command.arg("--root").arg(root).arg("list");
        Output::of(command)
    };
    let own = of_others(test, "own")?;
    unshare(&own)?.success()?;
    mode(&own, 0o777)?;
    unshare(&own)?.fails_with("others can write to")?;
    // The owner cannot be determined: root, or another user.
    let other = test.folder.join("other");
    fs::create_dir(&other)?;
    unshare(&other)?.fails_with("belongs to user 65534")?;
    unshare(&other.join("none"))?.fails_with("No such file or directory").map(drop)
}
