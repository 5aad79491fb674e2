//! Names that lead to the host if the runtime has a directory or a program of the host open:
//! `/proc/self/fd/N` and paths above it. The runtime looks such a name up itself, or the kernel
//! does.
//!
//! The topic `descriptors` shows that no such descriptor is open, for every number at each lookup.
//! This topic is the second proof, with the means of a container. Here each number costs a
//! container or a process. So the tests try all numbers only where that is cheap: in one `PATH`,
//! and for some names of a plain container with v2. Elsewhere they try the lowest numbers, after
//! those that the caller passes on. The kernel uses the lowest free number, so any open descriptor
//! has one of these.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::descriptors::{Act, Variant, ordinary, variants};
use crate::harness::{Bundle, Outcome, Output, Test, copy_program, ensure, wait_until};

super::tests! { "hostile_names":
    run_leads_nowhere, create_leads_nowhere, exec_leads_nowhere, exec_with_a_file_leads_nowhere,
    an_ordinary_user_is_led_nowhere, a_module_leads_nowhere, a_loader_that_is_there_is_run,
}

/// A name that the container chooses, and that the runtime or the kernel looks up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Program,
    /// The descriptor itself, without a path below it.
    Itself,
    /// A link that is in the image or that the container has made.
    Link,
    Path,
    Script,
    Loader,
    Cwd,
    Hook,
}

const PLACES: [Place; 8] = [
    Place::Program,
    Place::Itself,
    Place::Link,
    Place::Path,
    Place::Script,
    Place::Loader,
    Place::Cwd,
    Place::Hook,
];

/// The host's programs print this text. The container's programs print it too, if a hook or a
/// working directory of the host has not failed.
const TRACE: &str = "of-the-host";

/// A directory of the host with programs, and later with a module.
fn of_the_host(test: &Test) -> Outcome<PathBuf> {
    let folder = test.folder.join("host");
    if !folder.exists() {
        fs::create_dir(&folder)?;
        copy_program("/bin/busybox".as_ref(), folder.join("echo"))?;
        fs::hard_link(folder.join("echo"), folder.join("true"))?;
    }
    Ok(folder)
}

/// The path from a directory of the host to a file.
fn way(number: u32, there: &Path) -> String {
    format!("/proc/self/fd/{number}/../../../../../../../../../../..{}", there.display())
}

fn path(folder: &Path) -> String {
    let all: Vec<String> = (3..1024).map(|number| way(number, folder)).collect();
    format!("PATH={}", all.join(":"))
}

/// The cases in which the tests try each number, with v2: those that need only a few milliseconds
/// for a container or a process.
const IN_FULL: [(Act, Place); 6] = [
    (Act::Run, Place::Program),
    (Act::Run, Place::Script),
    (Act::Run, Place::Loader),
    (Act::Run, Place::Cwd),
    (Act::Exec, Place::Program),
    (Act::Exec, Place::Cwd),
];

fn numbers(variant: &Variant<'_>, act: Act, place: Place) -> std::ops::Range<u32> {
    let is_plain = variant.how == "plain";
    let is_v2 = variant.bundle.test.host.lane == "v2";
    match place {
        // One `PATH` contains all numbers.
        Place::Path => 3..4,
        _ if std::env::var_os("RT_TESTS_MANAGER").is_some() => 3..if is_plain { 8 } else { 6 },
        _ if is_v2 && is_plain && IN_FULL.contains(&(act, place)) => 3..1024,
        _ if is_plain => 3..24,
        _ => 3..13,
    }
}

impl Place {
    /// Changes the configuration and the rootfs. Returns the name that the error must contain.
    fn prepare(
        self,
        config: &mut Value,
        rootfs: &Path,
        there: &Path,
        number: u32,
    ) -> Outcome<String> {
        let file = |name: &str, content: &[u8]| -> Outcome<String> {
            let path = rootfs.join(name);
            let _ = fs::remove_file(&path);
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            Ok(format!("/{name}"))
        };
        let link = |name: &str, to: String| -> Outcome<String> {
            let path = rootfs.join(name);
            let _ = fs::remove_file(&path);
            symlink(to, &path)?;
            Ok(format!("/{name}"))
        };
        let program = |name: String| (json!([name, TRACE]), name);
        let is_module = there.extension().is_some();
        let (args, name) = match self {
            Place::Program => program(way(number, there)),
            Place::Itself => program(format!("/proc/self/fd/{number}")),
            Place::Link => program(link("link", way(number, there))?),
            Place::Path => {
                config["process"]["env"] = json!([path(there.parent().ok_or("no folder")?)]);
                program(there.file_name().unwrap_or_default().display().to_string())
            }
            Place::Script => {
                program(file("script", format!("#!{} {TRACE}\n", way(number, there)).as_bytes())?)
            }
            Place::Loader => program(file("echo", &elf(&way(number, there)))?),
            Place::Cwd => {
                let cwd = format!("/proc/self/fd/{number}");
                config["process"]["cwd"] = json!(cwd);
                (json!([if is_module { "/probe.wasm" } else { "/bin/echo" }, TRACE]), cwd)
            }
            Place::Hook => {
                let hook = link("hook", way(number, &there.with_file_name("true")))?;
                config["hooks"] = json!({ "startContainer": [{ "path": hook, "args": ["true"] }] });
                (json!(["/bin/echo", TRACE]), hook)
            }
        };
        config["process"]["args"] = args;
        Ok(name)
    }
}

/// The output must be one line that names the refused name, and must show nothing of the host.
fn is_refused(said: &str, name: &str) -> Outcome {
    let said = said.replace('\r', "");
    ensure(!said.contains(TRACE), "it leads out")?;
    ensure(!said.contains("is a directory"), "a directory is open")?;
    ensure(said.lines().count() == 1 && said.ends_with('\n'), "not one line")?;
    ensure(said.contains(&format!("`{name}`")), "the name is missing")
}

/// Makes a container, or runs a program in one. Returns the whole output.
fn attempt(variant: &Variant<'_>, act: Act, running: Option<&str>) -> Outcome<String> {
    let test = variant.bundle.test;
    let id = running.map_or_else(|| test.id(), str::to_owned);
    let config = &variant.bundle.config;
    let strings = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it.as_str().map(str::to_owned))
            .collect()
    };
    let words = match act {
        Act::Run | Act::Create => {
            variant.bundle.write()?;
            Vec::new()
        }
        Act::ExecFile => [variant.process_file(config)?, id.clone()].to_vec(),
        Act::Exec => {
            let process = &config["process"];
            let mut words = vec![format!("--cwd={}", process["cwd"].as_str().unwrap_or_default())];
            words.extend(
                strings(&process["env"]).iter().map(|variable| format!("--env={variable}")),
            );
            words.push(id.clone());
            words.extend(strings(&process["args"]));
            words
        }
    };
    // The container's own output may go to files that are named after it alone.
    let streams = ["out", "err"].map(|end| test.folder.join(format!("{id}-said.{end}")));
    let [out, err] = streams.each_ref().map(fs::File::create);
    let mut command = variant.act(act, &id, &words)?;
    let status = command.stdout(out?).stderr(err?).status()?;
    drop(command);
    let mut said = String::new();
    if act == Act::Create && status.success() {
        // `start` reports the failure of a lookup by the kernel.
        let rt = |word: &str| Output::of(variant.command(&[word.to_owned(), id.clone()])?);
        rt("start")?.success()?;
        wait_until("it has ended", || rt("state").is_ok_and(|it| it.stdout.contains("stopped")))?;
        said += &variant.said_on_the_terminal()?;
        rt("delete")?.success()?;
    } else {
        ensure(!status.success(), "it succeeded")?;
    }
    for file in streams {
        said += &fs::read_to_string(&file)?;
        fs::remove_file(file)?;
    }
    let is_left = running.is_none() && test.state_root().join(&id).exists();
    ensure(!is_left, format!("it is left: {said}"))?;
    Ok(said)
}

/// Tries all places for such a name, with a path to a program of the host.
fn leads_nowhere(variant: &mut Variant<'_>, act: Act, places: &[Place], there: &Path) -> Outcome {
    let running = if act.is_exec() { Some(variant.start()?) } else { None };
    leads_nowhere_from(variant, act, places, there, running.as_deref())
}

/// The same, with the id of a container that runs already.
fn leads_nowhere_from(
    variant: &mut Variant<'_>,
    act: Act,
    places: &[Place],
    there: &Path,
    running: Option<&str>,
) -> Outcome {
    let plain = variant.bundle.config.clone();
    let rootfs = variant.bundle.rootfs();
    for place in places.iter().filter(|place| !act.is_exec() || **place != Place::Hook) {
        for number in numbers(variant, act, *place) {
            variant.bundle.config = plain.clone();
            let name = place.prepare(&mut variant.bundle.config, &rootfs, there, number)?;
            let said = attempt(variant, act, running);
            let how = variant.how;
            said.and_then(|said| {
                is_refused(&said, &name).map_err(|why| format!("{why:?}: {said}").into())
            })
            .map_err(|why: crate::harness::Stop| {
                format!("{act:?}, {how}, {place:?} by {number}: {why:?}")
            })?;
        }
    }
    variant.bundle.config = plain;
    Ok(())
}

/// Tries all ways to make a container.
fn all_lead_nowhere(test: &Test, act: Act) -> Outcome {
    let there = of_the_host(test)?.join("echo");
    for mut variant in variants(test, &["sleep", "60"])? {
        leads_nowhere(&mut variant, act, &PLACES, &there)?;
    }
    Ok(())
}

fn run_leads_nowhere(test: &Test) -> Outcome {
    all_lead_nowhere(test, Act::Run)
}

fn create_leads_nowhere(test: &Test) -> Outcome {
    all_lead_nowhere(test, Act::Create)
}

/// A hostile container can attack an operator's `exec` like this, and so can a user who may choose
/// the arguments.
fn exec_leads_nowhere(test: &Test) -> Outcome {
    all_lead_nowhere(test, Act::Exec)
}

fn exec_with_a_file_leads_nowhere(test: &Test) -> Outcome {
    all_lead_nowhere(test, Act::ExecFile)
}

fn an_ordinary_user_is_led_nowhere(test: &Test) -> Outcome {
    test.only_rt()?;
    let there = of_the_host(test)?.join("echo");
    let mut variant = ordinary(test, &["sleep", "60"])?;
    for act in [Act::Run, Act::Create, Act::Exec, Act::ExecFile] {
        leads_nowhere(&mut variant, act, &PLACES, &there)?;
    }
    Ok(())
}

/// A module of the host is not a program of the container either.
fn a_module_leads_nowhere(test: &Test) -> Outcome {
    let there = of_the_host(test)?.join("hello.wasm");
    fs::copy(test.host.guest("hello")?, &there)?;
    fs::set_permissions(&there, fs::Permissions::from_mode(0o755))?;
    let mut variant = variants(test, &[])?.swap_remove(0);
    variant.bundle = test.wasm("probe", &["sleep"])?;
    let places = [Place::Program, Place::Itself, Place::Link, Place::Path, Place::Cwd];
    for act in [Act::Run, Act::Create, Act::Exec] {
        leads_nowhere(&mut variant, act, &places, &there)?;
    }
    Ok(())
}

/// `exec` into a restored container.
pub(super) fn exec_leads_nowhere_after_a_restore(bundle: Bundle<'_>, id: &str) -> Outcome {
    let there = of_the_host(bundle.test)?.join("echo");
    let mut variant = Variant::of("restored", bundle);
    for act in [Act::Exec, Act::ExecFile] {
        leads_nowhere_from(&mut variant, act, &PLACES, &there, Some(id))?;
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

/// Otherwise the tests of a loader would show nothing.
fn a_loader_that_is_there_is_run(test: &Test) -> Outcome {
    let good = test.linux(&["/program", TRACE])?.file("/program", elf("/bin/busybox"))?;
    let program = good.rootfs().join("program");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    // busybox is not a loader, and crashes.
    ensure(good.run()?.code == Some(139), "an interpreter that is there was not run")
}
