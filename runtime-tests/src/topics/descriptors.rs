//! A process of the runtime must not have a descriptor open that leads out of the container. At
//! each lookup of a name that the container can choose, the process has exactly the listed
//! descriptors open, with any numbers. The topic `hostile_names` tries such names.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::{checkpoint, rootless};
use crate::harness::lookups::{self, LookUp};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, copy_program, ensure, ensure_eq, skip, wait_until,
};

super::tests! { "descriptors":
    run_has_open_what_is_listed, create_has_open_what_is_listed, exec_has_open_what_is_listed,
    an_ordinary_user_has_open_what_is_listed, a_hook_has_open_what_is_listed, a_module_has_open_what_is_listed,
    criu_has_open_what_is_listed, a_restored_container_has_open_what_it_had,
    an_engine_is_no_program, who_may_look_into_others_finds_nothing_of_the_hosts,
    neighbours_in_a_pid_namespace_learn_no_more_than_the_name,
    a_neighbour_of_the_same_user_reaches_no_exec, it_is_not_dumpable_after_the_change_of_the_user, the_memory_of_init_has_not_the_callers_environment, a_program_by_a_magic_link_is_the_containers,
}

/// A command that starts a program in a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    Run,
    /// `create` and `start`.
    Create,
    Exec,
    /// `exec` with `--process`.
    ExecFile,
}

impl Act {
    pub(super) fn is_exec(self) -> bool {
        matches!(self, Act::Exec | Act::ExecFile)
    }
}

/// A way to make a container.
pub(super) struct Variant<'a> {
    pub(super) how: &'static str,
    pub(super) bundle: Bundle<'a>,
    /// The number of descriptors that the caller passes to the program.
    gifts: u32,
    /// Whether an ordinary user makes the container.
    is_ordinary: bool,
    has_terminal: bool,
    /// The sockets for consoles and agents, to which the commands connect.
    listeners: RefCell<Vec<UnixListener>>,
}

const GIFTS: u32 = 2;

/// All ways in which root can make a container with a program.
pub(super) fn variants<'a>(test: &'a Test, args: &[&str]) -> Outcome<Vec<Variant<'a>>> {
    variants_of(test, &|| test.linux(args))
}

/// All ways in which root can make a container of a bundle.
fn variants_of<'a>(
    test: &'a Test,
    make: &dyn Fn() -> Outcome<Bundle<'a>>,
) -> Outcome<Vec<Variant<'a>>> {
    let plain = |how| -> Outcome<Variant<'a>> {
        let bundle = make()?;
        open_to_others(&bundle)?;
        Ok(Variant::of(how, bundle))
    };
    let edited = |how, change: &dyn Fn(&mut serde_json::Value)| -> Outcome<Variant<'a>> {
        let variant = plain(how)?;
        Ok(Variant { bundle: variant.bundle.edit(change), ..variant })
    };
    let filter = |action: &str| {
        json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["swapon"], "action": action }] })
    };
    let mut variants = vec![
        plain("plain")?,
        edited("with a filter and new privileges", &|config| {
            config["process"]["noNewPrivileges"] = json!(false);
            config["linux"]["seccomp"] = filter("SCMP_ACT_ERRNO");
        })?,
        edited("of another user", &|config| {
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        })?,
        edited("in a user namespace", &|config| {
            let all = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            config["linux"]["uidMappings"] = all.clone();
            config["linux"]["gidMappings"] = all;
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.push(json!({ "type": "user" }));
            }
        })?,
        Variant { gifts: GIFTS, ..plain("with descriptors of the caller's")? },
        Variant {
            has_terminal: true,
            ..edited("with a terminal", &|config| config["process"]["terminal"] = json!(true))?
        },
    ];
    for (how, no_new_privileges) in
        [("with an agent", true), ("with an agent and new privileges", false)]
    {
        let path = test.folder.join(format!("agent-{}", test.id()));
        let variant = edited(how, &|config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            config["linux"]["seccomp"] = filter("SCMP_ACT_NOTIFY");
            config["linux"]["seccomp"]["listenerPath"] = json!(path);
        })?;
        variant.listeners.borrow_mut().push(UnixListener::bind(&path)?);
        variants.push(variant);
    }
    if test.host.is_rt {
        let variant = plain("under a handler")?;
        let bundle = variant.bundle.annotation("run.oci.handler", "wasm");
        variants.push(Variant { bundle, ..variant });
    }
    if std::env::var_os("RT_TESTS_MANAGER").is_some() {
        // In the emulated machine, the other variants would show nothing more.
        let few = ["plain", "in a user namespace", "with a terminal"];
        variants.retain(|variant| few.contains(&variant.how));
    }
    Ok(variants)
}

/// A container that an ordinary user makes.
pub(super) fn ordinary<'a>(test: &'a Test, args: &[&str]) -> Outcome<Variant<'a>> {
    let bundle = rootless::owned(test, test.linux(args)?)?;
    Ok(Variant { is_ordinary: true, ..Variant::of("of an ordinary user", bundle) })
}

/// Ways in which an ordinary user can make a container with a program.
fn ordinary_variants<'a>(test: &'a Test, args: &[&str]) -> Outcome<Vec<Variant<'a>>> {
    let edited = |how, change: &dyn Fn(&mut serde_json::Value)| -> Outcome<Variant<'a>> {
        let variant = ordinary(test, args)?;
        Ok(Variant { how, bundle: variant.bundle.edit(change), ..variant })
    };
    Ok(vec![
        ordinary(test, args)?,
        Variant {
            has_terminal: true,
            ..edited("of an ordinary user, with a terminal", &|config| {
                config["process"]["terminal"] = json!(true);
                if let Some(mounts) = config["mounts"].as_array_mut() {
                    mounts.push(json!({ "destination": "/dev", "type": "tmpfs", "source": "dev" }));
                    mounts.push(json!({ "destination": "/dev/pts", "type": "devpts",
                        "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] }));
                }
            })?
        },
        edited("of an ordinary user, with new privileges", &|config| {
            config["process"]["noNewPrivileges"] = json!(false);
        })?,
    ])
}

impl<'a> Variant<'a> {
    pub(super) fn of(how: &'static str, bundle: Bundle<'a>) -> Variant<'a> {
        let (gifts, is_ordinary, has_terminal) = (0, false, false);
        Variant { how, bundle, gifts, is_ordinary, has_terminal, listeners: RefCell::default() }
    }

    /// The runtime with these arguments.
    pub(super) fn command(&self, args: &[String]) -> Outcome<Command> {
        let test = self.bundle.test;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if self.is_ordinary {
            return rootless::as_user(test, rootless::SUBIDS, &[], &args);
        }
        let command = test.command(args);
        if self.gifts == 0 {
            return Ok(command);
        }
        let mut giving = Command::new("sh");
        giving.args(["-c", "exec 3</dev/null 4</dev/zero; exec \"$@\"", "sh"]);
        giving.arg(command.get_program()).args(command.get_args());
        Ok(giving)
    }

    /// A command that makes a container, or that starts a program in one.
    pub(super) fn act(&self, act: Act, id: &str, words: &[String]) -> Outcome<Command> {
        let mut args = match act {
            Act::Run => self.bundle.command_line("run", id),
            Act::Create => self.bundle.command_line("create", id),
            Act::Exec | Act::ExecFile => ["exec".to_owned()].to_vec(),
        };
        let flags = 1;
        if self.gifts > 0 {
            args.insert(flags, format!("--preserve-fds={}", self.gifts));
        }
        if self.has_terminal && act == Act::Create {
            args.insert(flags, format!("--console-socket={}", self.console()?));
        }
        if self.has_terminal && act == Act::Exec {
            args.insert(flags, "--tty".to_owned());
        }
        args.extend(words.iter().cloned());
        self.command(&args)
    }

    /// A socket for a terminal. Nobody reads from it: the message stays in the kernel's queue.
    fn console(&self) -> Outcome<String> {
        let path = self.bundle.test.folder.join(format!("console-{}", self.bundle.test.id()));
        self.listeners.borrow_mut().push(UnixListener::bind(&path)?);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(path.display().to_string())
    }

    /// The whole output on the newest terminal.
    pub(super) fn said_on_the_terminal(&self) -> Outcome<String> {
        if !self.has_terminal {
            return Ok(String::new());
        }
        let listener = self.listeners.borrow_mut().pop().ok_or("no terminal")?;
        Ok(super::terminal::read_all(super::terminal::receive(&listener)?.into()))
    }

    /// Starts a container that waits. Returns its id.
    pub(super) fn start(&self) -> Outcome<String> {
        let test = self.bundle.test;
        self.bundle.write()?;
        let id = test.id();
        for command in
            [self.act(Act::Create, &id, &[])?, self.command(&["start".into(), id.clone()])?]
        {
            Output::of(command)?.success()?;
        }
        Ok(id)
    }

    /// The flag for `exec --process`, with a file that contains the process of a configuration.
    pub(super) fn process_file(&self, config: &serde_json::Value) -> Outcome<String> {
        let path = self.bundle.folder.join("process.json");
        fs::write(&path, config["process"].to_string())?;
        Ok(format!("--process={}", path.display()))
    }

    /// Traces a command. At each lookup by a process whose root is the container's, compares the
    /// open descriptors with the list.
    fn look(&self, command: &Command, listed: &dyn Fn(&LookUp) -> List) -> Outcome {
        let (status, seen) = lookups::of(command, &self.bundle.rootfs())?;
        let how = self.how;
        ensure(status.success(), format!("{how}: {status}: {command:?}"))?;
        ensure(
            seen.iter().any(|look_up| look_up.what.starts_with("execve")),
            format!("{how}: no program was started: {seen:?}"),
        )?;
        for look_up in &seen {
            is_listed(look_up, self.gifts, &listed(look_up))
                .map_err(|why| format!("{how}: {why}"))?;
        }
        Ok(())
    }
}

/// The root of a user namespace must reach the rootfs.
fn open_to_others(bundle: &Bundle<'_>) -> Outcome {
    for folder in bundle.rootfs().ancestors().take(4) {
        let mode = fs::metadata(folder)?.permissions().mode();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o055))?;
    }
    Ok(())
}

/// A lookup itself opens at most these for a moment. For a program: the found file, and the file
/// that it reads. For `/proc`: its directory, and its table of mounts or its directory of
/// descriptors.
const ON_THE_WAY: [(&str, usize); 2] =
    [("a file of the container's", 2), ("a directory of the container's", 2)];

/// The kinds of descriptors that are open in a situation, and the number of each kind.
type List = Vec<(&'static str, usize)>;

/// Compares the open descriptors with the list at the beginning of `container/becoming.rs`. Each
/// kind must be open as often as the situation says, and no other kind.
fn is_listed(look_up: &LookUp, gifts: u32, listed: &List) -> Result<(), String> {
    let count = |kind: &str| {
        look_up.open.iter().filter(|file| file.number >= 3 + gifts && file.kind == kind).count()
    };
    let complain = |what: &str| Err(format!("at {}: {what}: {:?}", look_up.what, look_up.open));
    for (kind, expected) in listed {
        if count(kind) != *expected {
            return complain(&format!("{} of `{kind}`, not {expected}", count(kind)));
        }
    }
    for file in look_up.open.iter().filter(|file| file.number >= 3 + gifts) {
        let way = ON_THE_WAY.iter().find(|(kind, _)| file.kind == *kind);
        let is_on_the_way = way.is_some_and(|(kind, most)| count(kind) <= *most);
        if !is_on_the_way && !listed.iter().any(|(kind, _)| file.kind == *kind) {
            return complain(&format!("{file:?} is not listed"));
        }
    }
    let given = look_up.open.iter().filter(|file| (3..3 + gifts).contains(&file.number));
    if given.count() != gifts as usize {
        return complain("a gift is missing");
    }
    if look_up.is_dumpable { complain("it is dumpable") } else { Ok(()) }
}

/// The socket to the runtime process.
const SOCKET: (&str, usize) = ("socket", 1);
const FIFO: (&str, usize) = ("fifo start", 1);

fn run_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    for variant in variants(test, &["true"])? {
        variant.bundle.write()?;
        variant.look(&variant.act(Act::Run, &test.id(), &[])?, &|_| vec![SOCKET])?;
    }
    Ok(())
}

/// A shell command that makes a container and starts it.
fn create_and_start(variant: &Variant<'_>) -> Outcome<Command> {
    let id = variant.bundle.test.id();
    variant.bundle.write()?;
    let quoted = |command: &Command| {
        let quote = |word: &std::ffi::OsStr| {
            format!("'{}' ", word.display().to_string().replace('\'', r"'\''"))
        };
        std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(quote)
            .collect::<String>()
    };
    let create = variant.act(Act::Create, &id, &[])?;
    let start = variant.command(&["start".to_owned(), id])?;
    let mut both = Command::new("sh");
    both.args(["-c", &format!("{} && {}", quoted(&create), quoted(&start))]);
    both.current_dir(&variant.bundle.test.folder);
    Ok(both)
}

fn create_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    for variant in variants(test, &["true"])? {
        variant.look(&create_and_start(&variant)?, &|_| vec![SOCKET, FIFO])?;
    }
    Ok(())
}

/// `exec` makes a terminal inside the container, by descriptors, and sends it over a second socket.
fn sockets_of_exec(variant: &Variant<'_>, look_up: &LookUp) -> (&'static str, usize) {
    let is_early = ["/dev/pts", "`ptmx`", "/etc/passwd"].iter().any(|it| look_up.what.contains(it));
    ("socket", if variant.has_terminal && is_early { 2 } else { 1 })
}

/// Looks at `exec` with flags, and at `exec` with a file.
fn look_at_exec(variant: &Variant<'_>) -> Outcome {
    let listed = |look_up: &LookUp| vec![sockets_of_exec(variant, look_up)];
    let id = variant.start()?;
    let words = [id.clone(), "true".to_owned()];
    variant.look(&variant.act(Act::Exec, &id, &words)?, &listed)?;
    let bundle = variant.bundle.clone().args(&["true"]);
    let words = [variant.process_file(&bundle.config)?, id.clone()];
    variant.look(&variant.act(Act::ExecFile, &id, &words)?, &listed)
}

fn exec_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    variants(test, &["sleep", "60"])?.iter().try_for_each(look_at_exec)
}

fn an_ordinary_user_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    for variant in ordinary_variants(test, &["true"])? {
        variant.bundle.write()?;
        variant.look(&variant.act(Act::Run, &test.id(), &[])?, &|_| vec![SOCKET])?;
        variant.look(&create_and_start(&variant)?, &|_| vec![SOCKET, FIFO])?;
    }
    ordinary_variants(test, &["sleep", "60"])?.iter().try_for_each(look_at_exec)
}

/// While init makes a hook, the hook's standard input is open.
fn standard_input(look_up: &LookUp) -> (&'static str, usize) {
    let is_made = look_up.what == "open `/dev/null`";
    let is_there = look_up.open.iter().any(|file| file.number > 2 && file.kind == "memfd:state");
    ("memfd:state", usize::from(is_made && is_there))
}

fn a_hook_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    let [out, err] = ["out", "err"].map(|name| test.folder.join(name).display().to_string());
    for mut variant in variants(test, &["true"])? {
        variant.bundle = variant
            .bundle
            .annotation("run.oci.hooks.stdout", &out)
            .annotation("run.oci.hooks.stderr", &err)
            .edit(|config| {
                config["hooks"] = json!({ "startContainer": [{ "path": "/bin/true" }] });
            });
        variant.bundle.write()?;
        let command = variant.act(Act::Run, &test.id(), &[])?;
        let (status, seen) = lookups::of(&command, &variant.bundle.rootfs())?;
        let how = variant.how;
        ensure(status.success(), format!("{how}: {status}"))?;
        let [to_out, to_err] = [&out, &err].map(|path| format!("{path} of the host's"));
        let mut execs = 0;
        for mut look_up in seen {
            let is_exec = look_up.what.starts_with("execve");
            let is_hook = is_exec && look_up.what.contains("/bin/true") && execs == 0;
            execs += usize::from(is_exec);
            // Until the exec, init has the files open to which hooks print. In the hook itself,
            // they are its streams. The hook reports over a pipe that it could not exec its
            // program.
            let is_printed = |file: &lookups::Open| {
                file.number > 2 && (file.kind == to_out || file.kind == to_err)
            };
            let printed = look_up.open.iter().filter(|file| is_printed(file)).count();
            let (listed, files) = match (is_hook, is_exec) {
                (true, _) => (vec![("pipe", 1)], 0),
                (false, true) => (vec![SOCKET], 0),
                (false, false) => (vec![SOCKET, standard_input(&look_up)], 2),
            };
            ensure(printed == files, format!("{how}: {look_up:?}"))?;
            look_up.open.retain(|file| !is_printed(file));
            let gifts = if is_hook { 0 } else { variant.gifts };
            is_listed(&look_up, gifts, &listed).map_err(|why| format!("{how}: {why}"))?;
        }
        ensure(execs >= 2, format!("{how}: {execs} programs were started"))?;
    }
    Ok(())
}

/// The engine of a module is a file of the host. Init gets it after the lookup of the module. From
/// then on, init looks up no name that the container chooses, but the modules of an app, for which
/// it follows no magic link (`wasm_spin::a_module_is_not_looked_up_through…`).
fn a_module_has_open_what_is_listed(test: &Test) -> Outcome {
    let engine = "/ of the host's";
    let environment = "memfd:environment";
    let listed = |look_up: &LookUp| {
        let has = |kind: &str| look_up.open.iter().filter(|file| file.kind == kind).count();
        let is = |what: &str| look_up.what.starts_with(what);
        match (has(environment), has("pipe")) {
            // A hook.
            (_, 1) => vec![("pipe", 1)],
            (0, _) => vec![SOCKET],
            // Init execs the engine through a link in `/proc`. Before, it proves that the link
            // leads to the engine.
            _ if has(engine) == 2 && (is("openat `") || is("statx `")) => {
                vec![SOCKET, (environment, 1), (engine, 2)]
            }
            _ => vec![SOCKET, (environment, 1), (engine, 1), standard_input(look_up)],
        }
    };
    let hello = || {
        let bundle = test.wasm("hello", &[])?.edit(|config| {
            config["hooks"] = json!({ "startContainer": [{ "path": "/true", "args": ["true"] }] });
        });
        copy_program("/bin/busybox".as_ref(), bundle.rootfs().join("true"))?;
        Ok(bundle)
    };
    // A hook gets no descriptors of the caller's. The root of a user namespace does not reach the
    // files of the tests.
    let reach = |variant: &Variant<'_>| variant.gifts == 0 && variant.how != "in a user namespace";
    for variant in variants_of(test, &hello)?.into_iter().filter(reach) {
        variant.bundle.write()?;
        variant.look(&variant.act(Act::Run, &test.id(), &[])?, &listed)?;
    }
    let probe = || test.wasm("probe", &["sleep", "60000"]);
    for variant in variants_of(test, &probe)?.into_iter().filter(reach) {
        let id = variant.start()?;
        copy_program(&test.host.guest("hello")?, variant.bundle.rootfs().join("hello.wasm"))?;
        let words = [id.clone(), "/hello.wasm".to_owned()];
        variant.look(&variant.act(Act::Exec, &id, &words)?, &|look_up| {
            let rest = listed(look_up).into_iter().filter(|kind| *kind != SOCKET);
            std::iter::once(sockets_of_exec(&variant, look_up)).chain(rest).collect()
        })?;
    }
    Ok(())
}

/// CRIU becomes the processes of a checkpoint. It is a child of `restore`, and gets its streams and
/// both ends of the socket to `rt`: it waits if `rt` is gone.
fn criu_has_open_what_is_listed(test: &Test) -> Outcome {
    test.only_rt()?;
    let list = test.folder.join("list");
    // Perl has its script open, and the directory that it reads.
    let script = r#"
        opendir(my $all, "/proc/self/fd"); open(my $list, ">", "LIST");
        for (grep { /\d/ && $_ > 2 } readdir $all) { my $to = readlink "/proc/self/fd/$_"; print $list "$_ $to\n" }"#;
    let script = script.replace("LIST", &list.display().to_string());
    let bundle = test.sh("true")?;
    bundle.write()?;
    let output = Output::of(checkpoint::false_criu(&bundle, &script, &[])?)?;
    ensure(output.code != Some(0), "a script restored it")?;
    let text = fs::read_to_string(list).map_err(|error| format!("{error}: {output:?}"))?;
    let of_perl = ["/programs/criu", "/fd", "/list"];
    let own: Vec<&str> =
        text.lines().filter(|line| !of_perl.iter().any(|end| line.ends_with(end))).collect();
    let are_sockets = own.iter().all(|line| line.contains(" socket:"));
    ensure(own.len() == 2 && are_sockets, format!("{own:?}"))
}

fn a_restored_container_has_open_what_it_had(test: &Test) -> Outcome {
    checkpoint::needs_criu()?;
    let bundle = test.sh(checkpoint::COUNT)?;
    let container = checkpoint::move_on(&bundle, "3\n")?;
    let open = lookups::open_files(nix::unistd::Pid::from_raw(container.pid()?))?;
    ensure(open.iter().all(|file| file.number < 3), format!("{open:?}"))?;
    super::hostile_names::exec_leads_nowhere_after_a_restore(bundle, &container.id)
}

fn an_engine_is_no_program(test: &Test) -> Outcome {
    let bundle = test.linux(&["engine.json"])?.annotation("run.oci.handler", "wasm");
    test.only_rt()?;
    let path: Vec<String> = (3..1024).map(|number| format!("/proc/self/fd/{number}")).collect();
    let bundle = bundle.edit(|config| {
        config["process"]["env"] = json!([format!("PATH={}", path.join(":"))]);
    });
    bundle.run()?.fails_with("executable file not found in $PATH").map(drop)
}

/// A container in which a script looks into every new process, and prints everything of the host
/// that it finds.
fn spy<'a>(test: &'a Test, file: &std::path::Path) -> Outcome<Bundle<'a>> {
    let script = r#"
        $| = 1; my $file = "FILE"; print "ready\n";
        while (1) {
            print "looking\n"; select(undef, undef, undef, 0.001);
            opendir(my $all, "/proc") or die;
            for my $pid (grep { /^\d+$/ && $_ > 1 } readdir $all) {
                for my $way ("environ", "cmdline") {
                    open(my $f, "<", "/proc/$pid/$way") or next; local $/; my $said = <$f> // "";
                    print "FOUND by $way\n" if $said =~ /RT_TESTS_SECRET|--root/;
                }
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
        let mut exec = container.test.command(args);
        exec.env("RT_TESTS_SECRET", "the caller's");
        Output::of(exec)?.success()?;
    }
    let said = container.stdout()?;
    match said.lines().find(|line| line.starts_with("FOUND")) {
        Some(found) => ensure(false, found),
        None => Ok(()),
    }
}

/// With `CAP_SYS_PTRACE`, a process can open `/proc/PID/root` and `/proc/PID/fd` of every process
/// of its container (`ptrace(2)`).
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

/// As in a pod, two containers share a pid namespace. Until `start`, the first process of the
/// second container is still the runtime.
fn neighbours_in_a_pid_namespace_learn_no_more_than_the_name(test: &Test) -> Outcome {
    test.only_rt()?;
    let spy = spy(test, &test.folder.join("nothing"))?.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
        }
    });
    let spy = spy.start()?;
    spy.wait_for_output("ready")?;
    let path = format!("/proc/{}/ns/pid", spy.pid()?);
    for hooked in [false, true] {
        let bundle = test.linux(&["/bin/true"])?.namespace(json!({ "type": "pid", "path": path }));
        let bundle = bundle.edit(|config| {
            if hooked {
                // Without its own `env`, the hook would get the caller's environment.
                config["hooks"] =
                    json!({ "createContainer": [{ "path": "/bin/true", "env": ["A=1"] }] });
            }
        });
        bundle.write()?;
        let id = test.id();
        let mut create = test.command(bundle.command_line("create", &id));
        create.env("RT_TESTS_SECRET", "the caller's");
        let container = Container::create(test, &id, create)?;
        let command = fs::read(format!("/proc/{}/cmdline", container.pid()?))?;
        let words: Vec<_> =
            command.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
        let name = test.host.runtime.file_name().ok_or("no name")?.as_encoded_bytes();
        ensure_eq(words, vec![name, b"create", container.id.as_bytes()])?;
        // The spy has looked at the process more than once.
        let looks = spy.stdout()?.len();
        wait_until("it has looked", || spy.stdout().is_ok_and(|said| said.len() > looks + 20))?;
        let said = spy.stdout()?;
        let found = said.lines().find(|line| line.starts_with("FOUND"));
        ensure(found.is_none(), found.unwrap_or_default())?;
        container.start()?;
    }
    Ok(())
}

/// Restores the host's value of the parameter when dropped.
struct Dumpable<'a> {
    before: String,
    /// No other test changes the parameter meanwhile.
    _lock: std::sync::MutexGuard<'a, ()>,
}

impl Drop for Dumpable<'_> {
    fn drop(&mut self) {
        // If the write fails, the test can do nothing.
        let _ = fs::write(SUID_DUMPABLE, self.before.trim());
    }
}

const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";

/// With `fs.suid_dumpable=1`, a process stays open to others of its new user after a change of the
/// user.
fn dumpable_by_a_change_of_the_user() -> Outcome<Dumpable<'static>> {
    static LOCK: Mutex<()> = Mutex::new(());
    let _lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = fs::read_to_string(SUID_DUMPABLE)?;
    if fs::write(SUID_DUMPABLE, "1").is_err() {
        return skip("this host's fs.suid_dumpable cannot be set");
    }
    Ok(Dumpable { before, _lock })
}

fn it_is_not_dumpable_after_the_change_of_the_user(test: &Test) -> Outcome {
    test.only_rt()?;
    let _restored = dumpable_by_a_change_of_the_user()?;
    let changes =
        |variant: &Variant<'_>| ["of another user", "in a user namespace"].contains(&variant.how);
    for variant in variants(test, &["true"])?.into_iter().filter(changes) {
        variant.bundle.write()?;
        variant.look(&variant.act(Act::Run, &test.id(), &[])?, &|_| vec![SOCKET])?;
    }
    variants(test, &["sleep", "60"])?.iter().filter(|it| changes(it)).try_for_each(look_at_exec)
}

fn a_neighbour_of_the_same_user_reaches_no_exec(test: &Test) -> Outcome {
    let _restored = dumpable_by_a_change_of_the_user()?;
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
    finds_nothing(&bundle.start()?, &["exec", "--user", "1000:1000"])
}

/// A process that may trace init can read the environment until the exec.
fn the_memory_of_init_has_not_the_callers_environment(test: &Test) -> Outcome {
    test.only_rt()?;
    let secret = format!("the-callers-{}", test.id());
    let bundle = test.sh("true")?;
    bundle.write()?;
    let id = test.id();
    let mut create = test.command(bundle.command_line("create", &id));
    create.env("RT_TESTS_SECRET", &secret);
    let pid = Container::create(test, &id, create)?.pid()?;
    let table = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut looked_at = 0;
    for line in table.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split_once(' ').and_then(|(at, _)| at.split_once('-')).ok_or("")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        memory.read_exact_at(&mut bytes, start)?;
        looked_at += 1;
        let found = bytes.windows(secret.len()).any(|at| at == secret.as_bytes());
        ensure(!found, format!("it is in {line}"))?;
    }
    ensure(looked_at > 2, table)
}

/// A link to a file of the container stays allowed, such as the program of the first process.
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
    // The program runs. It is busybox, which does not know that name.
    test.rt(["exec", &container.id, "/proc/1/exe"])?.fails_with("exe: applet not found")?;
    test.linux(&["/proc/self/root/bin/echo", "inside"])?.run()?.success()?.stdout("inside\n")?;
    if !test.host.is_rt {
        return Ok(());
    }
    // The runtime itself is not a program of the container.
    let output = test.rt(["exec", &container.id, "/proc/self/exe", "--version"])?;
    output.fails_with("leads out of the container: permission denied").map(drop)
}
