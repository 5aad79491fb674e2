//! cgroup v1 by cgroupfs: one hierarchy per controller, or per group of controllers (kernel
//! documentation, `cgroup-v1/`).
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};

use super::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FREEZING, ROOT};

/// The directory where systemd mounts v2 beside v1.
const UNIFIED: &str = "unified";

/// The roots of all mounted hierarchies, including a named one (`systemd`) and a v2 hierarchy
/// beside them. A process of a container shall be in the container's cgroup in all of them.
///
/// `rt` looks for them where every distribution mounts them, `/sys/fs/cgroup/CONTROLLERS`, so that
/// it does not have to read the mount table. It does not use hierarchies that are mounted
/// elsewhere.
pub(super) fn hierarchies() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/cgroup").context("read `/proc/self/cgroup`")?;
    let mut roots = Vec::new();
    for line in table.lines() {
        // ID:CONTROLLERS:PATH, `cgroups(7)`.
        let Some(controllers) = line.split(':').nth(1) else { continue };
        let root = Path::new(ROOT).join(match controllers {
            "" => UNIFIED,
            controllers => controllers.strip_prefix("name=").unwrap_or(controllers),
        });
        let is_cgroup = |stat: rustix::fs::StatFs| {
            [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&stat.f_type)
        };
        if rustix::fs::statfs(&root).is_ok_and(is_cgroup) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// The container's directory in the hierarchy of a controller.
pub(super) fn of_controller<'a>(paths: &'a [PathBuf], controller: &str) -> Option<&'a PathBuf> {
    paths.iter().find(|path| {
        let hierarchy = path.strip_prefix(ROOT).ok().and_then(|path| path.components().next());
        hierarchy.is_some_and(|name| {
            name.as_os_str().to_string_lossy().split(',').any(|name| name == controller)
        })
    })
}

/// The container's directory in the v2 hierarchy of a hybrid host.
pub(super) fn unified(paths: &[PathBuf]) -> Option<&PathBuf> {
    paths.iter().find(|path| is_unified(path))
}

fn is_unified(path: &Path) -> bool {
    path.starts_with(Path::new(ROOT).join(UNIFIED))
}

/// The files by which a process that was born in [`unified`] enters all other hierarchies.
pub(super) fn tasks(paths: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    let open = |path: &PathBuf| {
        let path = path.join("tasks");
        let tasks = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("open `{}`", path.display()))?;
        super::refuse_others(tasks.as_fd(), &path)?;
        Ok(tasks)
    };
    let unified = unified(paths);
    paths.iter().filter(|path| Some(*path) != unified).map(open).collect()
}

/// Freezes a cgroup. The kernel sends no event, and forking processes can keep the cgroup at
/// `FREEZING` until `rt` writes again (kernel documentation, `freezer-subsystem.rst`).
pub(super) fn freeze(path: &Path) -> Result<()> {
    let file = path.join("freezer.state");
    let end = Instant::now() + FREEZING;
    while Instant::now() < end {
        super::write(&file, "FROZEN")?;
        let state =
            fs::read_to_string(&file).with_context(|| format!("read `{}`", file.display()))?;
        if state.trim() == "FROZEN" {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("`{}` is not `FROZEN` after {} s", file.display(), FREEZING.as_secs())
}

/// Makes a cgroup and those above it.
pub(super) fn make(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => made.push(path.to_owned()),
        // Another program may have left an empty cpuset.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make(path.parent().ok_or(error)?, made)?;
            return make(path, made);
        }
        Err(error) => return Err(error),
    }
    if is_unified(path) {
        super::v2::take_processes(path)?;
    }
    ["cpuset.cpus", "cpuset.mems"].into_iter().try_for_each(|file| fill(path, file).map(drop))
}

/// A cpuset accepts no process until it has processors and memory nodes (cpuset(7)). It can only
/// have those that the cpuset above has. So an empty one gets the values of the nearest one above
/// that is not empty, as with runc. Returns the value of the file then. Returns nothing if the file
/// does not exist, as above the root of the hierarchy.
fn fill(path: &Path, file: &str) -> io::Result<String> {
    let there = match fs::read_to_string(path.join(file)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        there => there?.trim().to_owned(),
    };
    let Some(above) = path.parent().filter(|_| there.is_empty()) else { return Ok(there) };
    let above = fill(above, file)?;
    if !above.is_empty() {
        fs::write(path.join(file), &above)?;
    }
    Ok(above)
}
