//! The cgroups of restored processes, which `rt` checks before a process runs. The images do not
//! decide where CRIU puts the processes ([`super::cgroup_image`]). This check is the second one,
//! and looks at the result. Runs in the runtime process.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::container::checkpoint::cgroup_image::Home;
use crate::container::checkpoint::confinement::{self, Status};
use crate::linux::cgroups::{Cgroup, Manager};

/// The cgroup of a process or of a thread in each hierarchy, by the hierarchy's controllers.
/// `/proc` has lines of the form `ID:CONTROLLERS:PATH` (`cgroups(7)`).
pub(in crate::container) fn table(process: &Path) -> Result<Vec<(String, PathBuf)>> {
    let path = process.join("cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
    let mut table = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            bail!("`{line}` is not a cgroup")
        };
        table.push((controllers.to_owned(), path.into()));
    }
    Ok(table)
}

/// The directories of a container's cgroup, in which the container may have made other cgroups.
pub(in crate::container) fn own(cgroup: &Cgroup) -> &[PathBuf] {
    if cgroup.manager == Manager::Disabled { &[] } else { cgroup.of_init() }
}

/// The container's `own` directories that the cgroup of a process can be, by its path in `/proc`.
fn find<'o>(own: &'o [PathBuf], home: &Path) -> impl Iterator<Item = &'o PathBuf> {
    let below = home.strip_prefix("/").ok().filter(|below| *below != Path::new(""));
    let below = below.map(Path::to_owned);
    own.iter().filter(move |path| below.as_ref().is_some_and(|below| path.ends_with(below)))
}

/// Of the cgroups of a process, whose table is `home`, returns those that are the container's
/// `own`.
pub(in crate::container) fn homes(
    own: &[PathBuf],
    home: &[(String, PathBuf)],
) -> Result<Vec<Home>> {
    let mut homes = Vec::new();
    for (controllers, path) in home {
        let mut files = find(own, path).map(|path| path.join("cgroup.subtree_control"));
        let below = if controllers.is_empty() {
            let Some(file) = files.find(|file| file.exists()) else { continue };
            let text = fs::read_to_string(&file);
            let text = text.with_context(|| format!("read `{}`", file.display()))?;
            Some(text.split_whitespace().map(str::to_owned).collect())
        } else if files.any(|file| !file.exists()) {
            None
        } else {
            continue;
        };
        homes.push(Home { controllers: controllers.clone(), path: path.clone(), below });
    }
    Ok(homes)
}

/// Fails for a stopped process in a wrong cgroup. `home` is the table of a process that `rt` has
/// put into the right cgroups. A process may be in the same ones, or below them if they are a
/// container's `own`.
pub(in crate::container) fn refuse_others(
    processes: &[i32],
    own: &[PathBuf],
    home: &[(String, PathBuf)],
) -> Result<()> {
    // Cgroups below the container's cgroup are its own. In a hierarchy without a cgroup of its own,
    // the container owns nothing.
    let is_own = |home: &Path| find(own, home).next().is_some();
    for pid in processes {
        for thread in confinement::threads(*pid)? {
            if Status::read(&thread)?.has_ended()? {
                continue;
            }
            for (controllers, path) in table(&thread)? {
                let home = home.iter().find(|(name, _)| *name == controllers);
                let is_inside = home.is_some_and(|(_, home)| {
                    path == *home
                        || is_own(home)
                            && path.starts_with(home)
                            && !path.components().any(|part| part == Component::ParentDir)
                });
                ensure!(
                    is_inside,
                    "process {pid}: it is in the cgroup `{}` ({controllers}), which is not the container's",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_at_home_or_below() {
        // Threads of this process's other tests come and go.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = i32::try_from(child.id()).expect("a number");
        let home = table(&Path::new("/proc").join(pid.to_string())).expect("it is there");
        let at_home = refuse_others(&[pid], &[], &home);
        let mut elsewhere = home.clone();
        match home.iter().position(|(_, path)| path.components().count() > 1) {
            Some(number) => drop(elsewhere[number].1.pop()),
            None => elsewhere.iter_mut().for_each(|(_, path)| path.push("other")),
        }
        let above = refuse_others(&[pid], &[], &elsewhere);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        at_home.expect("it is there");
        above.expect_err("that is not its own");
    }
}
