//! The part of the room that is outside of all bundles, and the check that it has not changed.
//!
//! `/srv/canary` is the target of escapes. The other files of the host are below an overlay, so
//! that every change of them shows in one directory. The files in `/srv/canary` contain a token,
//! which must not appear in any output.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::words::OUTSIDE;
use super::{programs, tree};

/// The root of the state of the tested runtime.
pub(super) const STATE: &str = "/run/rt";

/// The file in which `create` holds locks. Its content never changes.
const CLAIMS: &str = "/run/rt-claims";

/// The directory of all files that a round makes.
pub(super) const ROUNDS: &str = "/tmp";

/// The overlay's copies of changed files of the host, devices, and everything else outside of the
/// bundles.
const WATCHED: [&str; 4] = ["/srv", "/dev", "/run", "/room/changes"];

/// Kernel parameters of the namespaces in which the runtime starts. The room has its own.
const PARAMETERS: [&str; 12] = [
    "kernel/domainname",
    "kernel/hostname",
    "kernel/msgmax",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmmax",
    "kernel/shm_rmid_forced",
    "fs/mqueue/msg_max",
    "net/core/somaxconn",
    "net/ipv4/ip_forward",
    "net/ipv4/ping_group_range",
    "net/ipv4/ip_unprivileged_port_start",
];

/// Kernel parameters of the whole host. Other processes may change them meanwhile.
const SHARED: [&str; 12] = [
    "kernel/core_pattern",
    "kernel/core_uses_pid",
    "kernel/kptr_restrict",
    "kernel/modprobe",
    "kernel/panic",
    "kernel/randomize_va_space",
    "kernel/sysrq",
    "kernel/threads-max",
    "fs/protected_symlinks",
    "fs/suid_dumpable",
    "vm/overcommit_memory",
    "vm/swappiness",
];

#[derive(Clone, Debug, Eq, PartialEq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    device: u64,
    /// The beginning of a small file, or the target of a link.
    content: String,
}

/// A difference from the recorded state: its kind, and its details.
pub(super) type Change = (&'static str, String);

#[derive(Debug)]
pub(super) struct Canary {
    pub(super) token: String,
    /// Programs that the rounds need.
    programs: Vec<(PathBuf, Vec<u8>)>,
    files: BTreeMap<PathBuf, Entry>,
    parameters: BTreeMap<&'static str, String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<u32>,
}

impl Canary {
    pub(super) fn make(token: &str) -> std::io::Result<Canary> {
        fs::create_dir_all(STATE)?;
        fs::write(CLAIMS, "")?;
        fs::set_permissions(CLAIMS, Permissions::from_mode(0o600))?;
        let mut canary = Canary {
            token: token.to_owned(),
            programs: ["/bin/busybox", "/room/bin/rt"]
                .into_iter()
                .map(|path| Ok((PathBuf::from(path), fs::read(path)?)))
                .collect::<std::io::Result<_>>()?,
            files: BTreeMap::new(),
            parameters: BTreeMap::new(),
            mounts: BTreeSet::new(),
            cgroups: BTreeSet::new(),
            processes: BTreeSet::new(),
        };
        canary.mend()?;
        Ok(canary)
    }

    /// Restores the canary and the programs, and records the present state of everything else.
    pub(super) fn mend(&mut self) -> std::io::Result<()> {
        for (path, content) in &self.programs {
            let is_good = |path: &Path| {
                let data = path.metadata()?;
                Ok::<_, std::io::Error>(data.mode() == 0o100_755 && fs::read(path)? == *content)
            };
            if !is_good(path).unwrap_or(false) {
                // The present file may be in use.
                let new = path.with_extension("new");
                fs::write(&new, content)?;
                fs::set_permissions(&new, Permissions::from_mode(0o755))?;
                fs::rename(new, path)?;
            }
        }
        self.tidy();
        // The directory may be missing.
        let _ = fs::remove_dir_all(OUTSIDE);
        let at = |name: &str| Path::new(OUTSIDE).join(name);
        fs::create_dir_all(at("folder"))?;
        fs::create_dir(at("empty"))?;
        let texts = [("public", 0o644), ("secret", 0o600), ("folder/file", 0o640)];
        for (name, mode) in texts {
            fs::write(at(name), format!("{}\n", self.token))?;
            fs::set_permissions(at(name), Permissions::from_mode(mode))?;
        }
        fs::write(at("tool"), programs::elf(&format!("{} was executed", self.token), None))?;
        fs::set_permissions(at("tool"), Permissions::from_mode(0o755))?;
        fs::set_permissions(at("empty"), Permissions::from_mode(0o700))?;
        symlink("public", at("link"))?;
        tree::device(&at("device"), 0o600)?;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from(0o600),
            0,
        )?;
        for (name, value) in &self.parameters {
            let path = Path::new("/proc/sys").join(name);
            if fs::read_to_string(&path).is_ok_and(|now| now != *value) {
                fs::write(path, value)?;
            }
        }
        self.files = files();
        self.parameters = parameters(&PARAMETERS);
        self.mounts = mounts();
        self.cgroups = cgroups();
        self.processes = processes();
        Ok(())
    }

    /// Kills, unmounts and removes the leftovers of a round.
    fn tidy(&self) {
        if self.processes.is_empty() {
            return;
        }
        for process in processes().difference(&self.processes) {
            if let Some(pid) = rustix::process::Pid::from_raw(process.cast_signed()) {
                // All of them are descendants of this process, in a pid namespace that ends with
                // it.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for cgroup in cgroups().difference(&self.cgroups) {
            // SIGKILL alone does not end a process that a v1 cgroup has frozen.
            let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
        }
        settle(|| processes().is_subset(&self.processes));
        for line in mounts().difference(&self.mounts) {
            if let Some(path) = line.split(' ').nth(4) {
                // Mounts below go with it.
                let _ = std::process::Command::new("umount").args(["-R", "-l", path]).output();
            }
        }
        for cgroup in cgroups().difference(&self.cgroups).collect::<Vec<_>>().into_iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        for entry in fs::read_dir(STATE).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }

    /// All differences from the recorded state.
    pub(super) fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        let now = files();
        for (path, entry) in &self.files {
            match now.get(path) {
                None => changes.push(("a file of the host's is gone", path.display().to_string())),
                Some(other) if other != entry => changes.push((
                    "a file of the host's was changed",
                    format!("{}:\n    was {entry:x?}\n    is {other:x?}", path.display()),
                )),
                Some(_) => {}
            }
        }
        for path in now.keys().filter(|path| !self.files.contains_key(*path)) {
            changes.push(("a file of the host's is new", path.display().to_string()));
        }
        let now = parameters(&PARAMETERS);
        for (name, value) in &self.parameters {
            if now.get(name) != Some(value) {
                let detail = format!("{name}: was {value:?}, is {:?}", now.get(name));
                changes.push(("a parameter of the host's was changed", detail));
            }
        }
        let now = mounts();
        if now != self.mounts {
            let new: Vec<_> = now.difference(&self.mounts).collect();
            let gone: Vec<_> = self.mounts.difference(&now).collect();
            changes
                .push(("the host's mounts were changed", format!("new: {new:?}, gone: {gone:?}")));
        }
        // A killed process and its cgroup take a moment to disappear.
        settle(|| processes().is_subset(&self.processes));
        for process in processes().difference(&self.processes) {
            let read = |name: &str| {
                let text = fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
                String::from_utf8_lossy(&text).replace('\0', " ")
            };
            let detail = format!("{process}: {} ({})", read("cmdline"), read("wchan"));
            changes.push(("a process is left", detail));
        }
        for cgroup in cgroups().symmetric_difference(&self.cgroups) {
            changes.push(("a cgroup is left or gone", cgroup.display().to_string()));
        }
        for entry in fs::read_dir(STATE).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // The runtime keeps files that belong to no container under such names.
            if !name.starts_with(['@', '.']) {
                changes.push(("a state is left", name));
            }
        }
        changes
    }
}

/// Waits up to a second. The caller checks the result itself.
fn settle(mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        reap();
        if holds() || Instant::now() > end {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Containers whose caller has ended are children of this process.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

fn files() -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    for folder in WATCHED {
        walk(Path::new(folder), &mut found);
    }
    found
}

fn walk(path: &Path, found: &mut BTreeMap<PathBuf, Entry>) {
    let Ok(data) = path.symlink_metadata() else { return };
    let is_device = data.rdev() != 0;
    let content = if data.is_symlink() {
        fs::read_link(path).unwrap_or_default().display().to_string()
    } else if data.is_file() && data.size() < 100 {
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    } else {
        String::new()
    };
    let entry = Entry {
        mode: data.mode(),
        owner: (data.uid(), data.gid()),
        size: data.size(),
        // The modification time of a terminal is the time of its last use.
        modified: if is_device { (0, 0) } else { (data.mtime(), data.mtime_nsec()) },
        changed: (data.ctime(), data.ctime_nsec()),
        device: data.rdev(),
        content,
    };
    found.insert(path.to_owned(), entry);
    // Terminals appear and disappear.
    if data.is_dir() && path != Path::new("/dev/pts") {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path == Path::new(STATE) {
                continue;
            }
            walk(&path, found);
        }
    }
}

fn parameters(names: &[&'static str]) -> BTreeMap<&'static str, String> {
    let read = |name: &&'static str| {
        Some((*name, fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?))
    };
    names.iter().filter_map(read).collect()
}

/// Kernel parameters of the whole host, which no container may change.
#[derive(Debug)]
pub(super) struct Machine(BTreeMap<&'static str, String>);

impl Machine {
    pub(super) fn now() -> Machine {
        Machine(parameters(&SHARED))
    }

    /// The parameters that have changed since, if the configuration mentions them. Otherwise
    /// somebody else has changed them. Restores their values.
    pub(super) fn changes(&self, config: &str) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, value) in parameters(&SHARED) {
            let Some(before) = self.0.get(name).filter(|before| **before != value) else {
                continue;
            };
            if Path::new(name)
                .file_name()
                .is_some_and(|name| config.contains(&*name.to_string_lossy()))
            {
                let detail = format!("{name}: was {before:?}, is {value:?}");
                changes.push(("a parameter of the machine's was changed", detail));
                // The old value is valid.
                let _ = fs::write(Path::new("/proc/sys").join(name), before);
            }
        }
        changes
    }
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn cgroups() -> BTreeSet<PathBuf> {
    fn walk(folder: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), found);
                found.insert(entry.path());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

/// The files that another user of the host could read, or connect to.
pub(super) fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut open = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(data) = entry.path().symlink_metadata() else { continue };
        if data.is_dir() && data.mode() & 0o001 != 0 {
            open.extend(open_to_others(&entry.path()));
        } else if !data.is_dir() && !data.is_symlink() && data.mode() & 0o006 != 0 {
            open.push(entry.path());
        }
    }
    open
}

/// Removes the empty cgroups above a container's cgroup, in each hierarchy. `create` had to make
/// them.
pub(super) fn remove_cgroups_above(path: &str) {
    let path = path.trim_start_matches('/');
    for folder in Path::new(path).ancestors().skip(1).filter(|folder| *folder != Path::new("")) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(folder));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(folder));
    }
}

fn processes() -> BTreeSet<u32> {
    let folder = fs::read_dir("/proc").into_iter().flatten().flatten();
    folder.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
