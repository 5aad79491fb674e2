//! The kernel, its namespaces and security modules, engines and other programs.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;
use rustix::fs::{Access, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::{Finding, Verdict};
use crate::bundle::rootless;
use crate::container::checkpoint::criu;
use crate::engine::{self, Description, Installed, Settings};
use crate::state::Root;
use crate::syscall::{self, MountAttr};
use crate::workload::Compile;
use crate::{exe, ids, trust};

const KERNEL: &str = "kernel";
const NEWER: &str = "use Linux 5.12 or later";

pub(super) fn kernel() -> Vec<Finding> {
    let mut findings = vec![Finding::good(KERNEL, "release", release())];
    findings.push(match syscall::clone3(0, None) {
        // The new process.
        Ok(None) => syscall::exit_now(0),
        Ok(Some(pid)) => {
            let _ = crate::linux::namespaces::wait(pid);
            Finding::good(KERNEL, "clone3", "there")
        }
        Err(error) => missing("clone3", error, "Linux 5.3"),
    });
    // A kernel that has the call rejects the wrong attribute. A kernel without the call returns
    // ENOSYS.
    let wrong = MountAttr { set: u64::MAX, ..MountAttr::default() };
    let here = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    findings.push(match here.and_then(|here| syscall::mount_setattr(here.as_fd(), wrong, false)) {
        Err(Errno::NOSYS) => missing("mount_setattr", Errno::NOSYS, "Linux 5.12"),
        _ => Finding::good(KERNEL, "mount_setattr", "there"),
    });
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC;
    findings.push(match rustix::mount::open_tree(CWD, "/", flags) {
        Err(error) => missing("open_tree", error, "Linux 5.2"),
        Ok(_) => Finding::good(KERNEL, "open_tree", "there"),
    });
    let (flags, how) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::IN_ROOT);
    findings.push(match rustix::fs::openat2(CWD, "/", flags, Mode::empty(), how) {
        Ok(_) => Finding::good(KERNEL, "openat2", "there"),
        Err(error) => Finding::bad(
            KERNEL,
            "openat2",
            Verdict::Limited,
            format!("{error}: rt looks paths up step by step instead, which is slower"),
            "use Linux 5.6 or later, and allow it in the filter around rt",
        ),
    });
    findings
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn missing(call: &str, error: Errno, since: &str) -> Finding {
    Finding::bad(KERNEL, call, Verdict::Missing, format!("{error} (since {since})"), NEWER)
}

const NAMESPACES: &str = "namespaces";

pub(super) fn namespaces() -> Vec<Finding> {
    let all = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let lacks: Vec<&str> =
        all.into_iter().filter(|name| !Path::new("/proc/self/ns").join(name).exists()).collect();
    let verdict = if lacks.contains(&"mnt") || lacks.contains(&"pid") {
        Verdict::Missing
    } else {
        Verdict::Limited
    };
    let mut findings = vec![if lacks.is_empty() {
        Finding::good(NAMESPACES, "kinds", all.join(" "))
    } else {
        let detail = format!("without {}", lacks.join(" "));
        Finding::bad(NAMESPACES, "kinds", verdict, detail, "use a kernel that is built with them")
    }];
    findings.push(user_namespaces());
    if !ids::is_host_root() {
        findings.push(subordinate_ids());
    }
    findings
}

/// Containers of ordinary users require a user namespace. Containers of root may ask for one.
fn user_namespaces() -> Finding {
    let name = "user namespaces";
    let number =
        |file: &str| fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let root = ids::is_host_root();
    // Without a user namespace, an ordinary user cannot have a container.
    let verdict = if root { Verdict::Limited } else { Verdict::Missing };
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        let fix = "sysctl user.max_user_namespaces=15000";
        return Finding::bad(NAMESPACES, name, verdict, "cannot be made", fix);
    }
    for (file, bad, key) in [
        // The first key is Debian's, the second Ubuntu's.
        ("/proc/sys/kernel/unprivileged_userns_clone", 0, "kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            1,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ] {
        if !root && number(file) == Some(bad) {
            let fix = format!("sysctl {key}");
            return Finding::bad(NAMESPACES, name, verdict, "not for ordinary users", fix);
        }
    }
    let most = number("/proc/sys/user/max_user_namespaces");
    let most = most.map_or_else(|| "any number".to_owned(), |most| format!("up to {most}"));
    Finding::good(NAMESPACES, name, most)
}

fn subordinate_ids() -> Finding {
    let name = "subordinate ids";
    match rootless::helpers() {
        Ok(()) => Finding::good(NAMESPACES, name, "newuidmap and newgidmap are installed"),
        Err(error) => Finding::bad(
            NAMESPACES,
            name,
            Verdict::Limited,
            format!("{error:#}: a container has one user only"),
            "install uidmap (shadow-utils), and add the user to /etc/subuid and /etc/subgid",
        ),
    }
}

const SECURITY: &str = "security";

pub(super) fn security() -> Vec<Finding> {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let actions = actions.trim();
    let seccomp = if actions.is_empty() {
        let detail = "filters cannot be loaded: containers with a filter fail";
        let fix = "use a kernel with CONFIG_SECCOMP_FILTER";
        Finding::bad(SECURITY, "seccomp", Verdict::Limited, detail, fix)
    } else {
        Finding::good(SECURITY, "seccomp", actions)
    };
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let label = ["apparmor", "selinux"].into_iter().find(|name| modules.contains(name));
    // Not every host wants a security module.
    let label = label.map_or("neither AppArmor nor SELinux", |name| name);
    vec![seccomp, Finding::good(SECURITY, "labels", label)]
}

/// Whether a directory could be made. Otherwise returns the nearest existing path, and the error
/// there.
fn writable(directory: &Path) -> Result<(), (&Path, Errno)> {
    let nearest = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let access = rustix::fs::access(nearest, Access::WRITE_OK);
    let access = access.and(if nearest.is_dir() { Ok(()) } else { Err(Errno::NOTDIR) });
    access.map_err(|error| (nearest, error))
}

/// The root of the state.
pub(super) fn state(root: &Root) -> Finding {
    let (topic, name) = ("state", root.path().display().to_string());
    if let Err(error) = root.check() {
        let fix = "name another directory with `--root`, or let nobody else write to it";
        return Finding::bad(topic, name, Verdict::Missing, format!("{error:#}"), fix);
    }
    match writable(root.path()) {
        Ok(()) => Finding::good(topic, name, "writable"),
        Err((nearest, error)) => Finding::bad(
            topic,
            name,
            Verdict::Missing,
            format!("`{}`: {error}", nearest.display()),
            "name another directory with `--root`, or set XDG_RUNTIME_DIR",
        ),
    }
}

pub(super) fn engines(config: Option<&Path>) -> Vec<Finding> {
    let folder = match exe::engines() {
        Ok(folder) => folder,
        Err(error) => return vec![missing_engine("wasmedge", format!("{error:#}"))],
    };
    let mut findings = match engine::all(&folder) {
        Ok(all) => {
            let names: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
            let engines = all.into_iter().flat_map(|(name, it)| of_engine(&name, it, config));
            engines.chain(unknown_engines(&names, config)).collect()
        }
        Err(error) => vec![missing_engine("wasmedge", format!("{error:#}"))],
    };
    for name in engine::ENGINES {
        if !findings.iter().any(|finding| finding.name == name) {
            let detail = format!("not in `{}`: {}", folder.display(), engine::what_for(name));
            findings.push(missing_engine(name, detail));
        }
    }
    findings.push(ports());
    findings
}

/// The engines that the settings put first, and that are not installed.
fn unknown_engines(installed: &[String], config: Option<&Path>) -> Vec<Finding> {
    // Another finding reports settings that cannot be read.
    let settings = Settings::read(config).unwrap_or_default();
    let unknown = settings.engines.into_iter().filter(|name| !installed.contains(name));
    let finding = |name: String| {
        let detail = "named by `engines` in the settings, but not installed";
        let fix = "install the engine, or remove its name from `engines` in /etc/rt/wasm.json";
        Finding::bad("engines", name, Verdict::Limited, detail, fix)
    };
    unknown.map(finding).collect()
}

/// Whether modules are compiled.
fn native_code(description: &Description, config: Option<&Path>) -> Finding {
    let (topic, name) = ("engines", format!("native code of {}", description.name));
    let bad = |detail: String, fix: &str| {
        Finding::bad(topic, name.clone(), Verdict::Limited, detail, fix.to_owned())
    };
    let settings = match Settings::read(config) {
        Ok(settings) => settings,
        Err(error) => {
            return bad(format!("{error:#}"), "correct the file: no Wasm container starts with it");
        }
    };
    let without =
        if description.interprets { "are interpreted" } else { "do not start with this engine" };
    if settings.compile == Compile::Off {
        let detail = "switched off by the configuration".to_owned();
        if description.interprets {
            return Finding::good(topic, name, detail);
        }
        return bad(detail, "set `compile` to `lazy`: this engine interprets nothing");
    }
    if !description.can_compile {
        let fix =
            "install the compiler (package rt-runtime-compiler): the engine's directory `compiler`";
        let detail = format!("no compiler: modules that were not compiled before {without}");
        return bad(detail, fix);
    }
    if !ids::is_host_root() {
        let detail = format!("not for ordinary users: their modules {without}");
        return Finding::good(topic, name, detail);
    }
    let directory = &settings.cache.directory;
    match writable(directory) {
        Ok(()) => Finding::good(topic, name, format!("kept in `{}`", directory.display())),
        Err((nearest, error)) => bad(
            format!("`{}`: {error}: modules without native code {without}", nearest.display()),
            "name another `cache.directory` in /etc/rt/wasm.json",
        ),
    }
}

/// Whether the TCP ports of modules can be limited.
fn ports() -> Finding {
    let (topic, name) = ("engines", "ports of modules");
    match syscall::landlock_create_ruleset(syscall::LANDLOCK_ACCESS_NET_BIND_TCP) {
        Ok(_) => Finding::good(topic, name, "can be limited"),
        Err(_) => Finding::bad(
            topic,
            name,
            Verdict::Limited,
            "Landlock is missing or does not know ports: `run.oci.wasm.bind` and `connect` fail for TCP",
            "use Linux 6.7 or later, with `landlock` in `lsm=`",
        ),
    }
}

fn missing_engine(name: &str, detail: String) -> Finding {
    let fix = "install rt with its engine directory, `libexec/rt` beside `bin`";
    Finding::bad("engines", name, Verdict::Limited, detail, fix)
}

fn of_engine(name: &str, engine: Result<Installed>, config: Option<&Path>) -> Vec<Finding> {
    match engine {
        Ok(engine) => vec![files(&engine), native_code(&engine.description, config)],
        Err(error) => vec![missing_engine(name, format!("no Wasm container: {error:#}"))],
    }
}

/// Whether only root and this user can change an engine's files.
fn files(engine: &Installed) -> Finding {
    let Installed { path, description, .. } = engine;
    let (topic, name) = ("engines", &description.name);
    for file in description.files() {
        let file = path.join(file);
        // Containers of all users run this file.
        let there = trust::look_up(&file).and_then(|file| Ok(rustix::fs::fstat(file)?));
        let detail = match there {
            Ok(there) if trust::is_ours(&there) => continue,
            Ok(_) => format!("other users can change `{}`", file.display()),
            Err(failure) if failure.is(Errno::NOENT) => continue,
            // A link of another user leads there.
            Err(failure) => format!("{failure}"),
        };
        let fix = format!("chown root {0}; chmod go-w {0}", file.display());
        return Finding::bad(topic, name, Verdict::Limited, detail, fix);
    }
    let version = description.version.as_deref().unwrap_or("of an unknown version");
    Finding::good(topic, name, format!("{version}, in `{}`", path.display()))
}

pub(super) fn programs() -> Vec<Finding> {
    let criu = match criu::version() {
        Some(version) => Finding::good("programs", "criu", version),
        None => Finding::bad(
            "programs",
            "criu",
            Verdict::Limited,
            "not installed: no checkpoints",
            "install criu, if you need checkpoints",
        ),
    };
    vec![criu]
}
