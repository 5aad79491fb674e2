//! Shares of a processor's cache and memory bandwidth (`linux.intelRdt`; kernel documentation,
//! `arch/x86/resctrl.rst`). Runs in the runtime process.
//!
//! This is our own code. libcontainer's code compares schemata by regular expressions, with a
//! library of a third of a megabyte.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxIntelRdt;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::linux::mount_table;

/// The container's groups in the resctrl filesystem.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Groups {
    /// The directory of all groups.
    root: PathBuf,
    /// The control group.
    control: PathBuf,
    /// Whether the control group belongs to this container alone and is removed with it.
    own: bool,
    /// The monitoring group, which always belongs to this container alone.
    monitoring: Option<PathBuf>,
}

/// The lines of `schemata` that the configuration asks for.
fn schemata(rdt: &LinuxIntelRdt) -> Vec<&str> {
    let whole = rdt.schemata().as_deref().unwrap_or_default();
    if !whole.is_empty() {
        return whole.iter().map(String::as_str).collect();
    }
    let bandwidth = rdt.mem_bw_schema().as_deref();
    let cache = rdt.l3_cache_schema().iter().flat_map(|schema| schema.lines());
    // If the bandwidth has its own field, a line for it among those for the cache is ignored.
    let cache = cache.filter(|line| bandwidth.is_none() || !line.trim_start().starts_with("MB:"));
    cache.chain(bandwidth).collect()
}

impl Groups {
    /// Decides where the groups shall be. Makes nothing yet.
    pub(crate) fn plan(rdt: &LinuxIntelRdt, id: &str) -> Result<Groups> {
        let mount = mount_table::own()?.into_iter().find(|mount| mount.kind == "resctrl");
        let root = mount
            .context("`linux.intelRdt` needs the resctrl filesystem, which is not mounted")?
            .point;
        Groups::plan_in(root, rdt, id)
    }

    fn plan_in(root: PathBuf, rdt: &LinuxIntelRdt, id: &str) -> Result<Groups> {
        let (control, own) = match rdt.clos_id().as_deref() {
            None => (root.join(id), true),
            Some("/") => (root.clone(), false),
            Some(name) => {
                let good = !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..");
                ensure!(good, "`linux.intelRdt.closID` `{name}` is not a directory name");
                let control = root.join(name);
                // A class that existed before stays when this container is removed.
                let there = control.is_dir();
                ensure!(
                    there || !schemata(rdt).is_empty(),
                    "`linux.intelRdt.closID` names `{}`, which does not exist, without schemata to make it with",
                    control.display()
                );
                (control, !there)
            }
        };
        let monitoring = *rdt.enable_monitoring() == Some(true);
        let monitoring = monitoring.then(|| control.join("mon_groups").join(id));
        Ok(Groups { root, control, own, monitoring })
    }

    /// Makes the missing groups, and moves a process, which must have one thread, into them.
    pub(crate) fn make(&mut self, rdt: &LinuxIntelRdt, pid: Pid) -> Result<()> {
        let lines = schemata(rdt);
        let file = self.control.join("schemata");
        // If this function fails, existing groups must not be removed.
        let monitoring = self.monitoring.take();
        if std::mem::take(&mut self.own) {
            make(&self.control)?;
            self.own = true;
        } else if !lines.is_empty() {
            let there =
                fs::read_to_string(&file).with_context(|| format!("read `{}`", file.display()))?;
            let there: Vec<String> = there.lines().map(normal).collect();
            let other = lines.iter().find(|line| !there.contains(&normal(line)));
            if let Some(line) = other {
                bail!("`{}` has other schemata than `{line}`", self.control.display());
            }
        }
        if self.own {
            self.set(&lines)?;
        }
        if let Some(monitoring) = monitoring {
            make(&monitoring)?;
            self.monitoring = Some(monitoring);
        }
        self.enter(pid)
    }

    /// Sets other shares, for `update`.
    pub(crate) fn update(&self, cache: Option<&str>, bandwidth: Option<&str>) -> Result<()> {
        self.set(&cache.into_iter().chain(bandwidth).collect::<Vec<_>>())
    }

    fn set(&self, lines: &[&str]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        write(&self.control.join("schemata"), &format!("{}\n", lines.join("\n")))
    }

    /// Moves a process into the groups.
    pub(crate) fn enter(&self, pid: Pid) -> Result<()> {
        for group in [Some(&self.control), self.monitoring.as_ref()].into_iter().flatten() {
            write(&group.join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Removes the groups that belong to the container alone.
    pub(crate) fn remove(&self) -> Result<()> {
        for group in [self.monitoring.as_ref(), self.own.then_some(&self.control)] {
            let Some(group) = group else { continue };
            // Whatever a state file says, this directory is never a container's group.
            if group == &self.root || !group.starts_with(&self.root) {
                bail!("`{}` is not a container's group", group.display());
            }
            match fs::remove_dir(group) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove `{}`", group.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Fails if the group exists already. An existing group may be the administrator's, and would be
/// removed with the container.
fn make(group: &Path) -> Result<()> {
    fs::create_dir(group).with_context(|| format!("make `{}`", group.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    // The kernel gives its reason in `info/last_cmd_status`.
    fs::write(file, text)
        .with_context(|| format!("write `{}` to `{}`", text.trim(), file.display()))
}

/// Normalizes a line of `schemata`: spaces, leading zeroes, upper case, and the order of domains do
/// not matter.
fn normal(line: &str) -> String {
    let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    let Some((name, domains)) = line.split_once(':') else { return line };
    let mut domains: Vec<String> = domains
        .split(';')
        .filter(|domain| !domain.is_empty())
        .map(|domain| {
            let (id, share) = domain.split_once('=').unwrap_or((domain, ""));
            format!("{id}={}", share.trim_start_matches('0').to_ascii_lowercase())
        })
        .collect();
    domains.sort();
    format!("{name}:{}", domains.join(";"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These tests cannot count on a processor with resctrl, so a plain directory stands for the
    /// filesystem.
    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("rt-resctrl-{}-{name}", std::process::id()));
        fs::create_dir_all(&root).expect("a directory");
        root
    }

    fn rdt(json: &str) -> LinuxIntelRdt {
        serde_json::from_str(json).expect("a configuration")
    }

    #[test]
    fn a_group_is_made_filled_and_removed() {
        let root = root("own");
        let rdt = rdt(r#"{"l3CacheSchema":"L3:0=f\nMB:0=10","memBwSchema":"MB:0=50"}"#);
        let mut groups = Groups::plan_in(root.clone(), &rdt, "c").expect("a plan");
        groups.make(&rdt, Pid::from_raw(7).expect("a pid")).expect("made");
        let read = |name: &str| fs::read_to_string(root.join("c").join(name)).expect("a file");
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("L3:0=f\nMB:0=50\n", "7"));
        for file in ["schemata", "tasks"] {
            fs::remove_file(root.join("c").join(file)).expect("removed");
        }
        groups.remove().expect("removed");
        assert!(!root.join("c").exists());
        fs::remove_dir(root).expect("empty");
    }

    /// The container has the name of a class or a monitoring group of the administrator.
    #[test]
    fn what_is_there_is_neither_taken_nor_removed() {
        let root = root("others");
        let pid = Pid::from_raw(7).expect("a pid");
        for (json, group) in [
            (r#"{"l3CacheSchema":"L3:0=f"}"#, "gold"),
            (r#"{"enableMonitoring":true}"#, "gold"),
            (r#"{"closID":"silver","enableMonitoring":true}"#, "silver/mon_groups/gold"),
        ] {
            fs::create_dir_all(root.join(group)).expect("made");
            let rdt = rdt(json);
            let mut groups = Groups::plan_in(root.clone(), &rdt, "gold").expect("a plan");
            assert!(groups.make(&rdt, pid).is_err(), "{json}");
            groups.remove().expect("nothing to remove");
            assert!(root.join(group).is_dir(), "{json}");
        }
        fs::remove_dir_all(root).expect("removed");
    }

    #[test]
    fn a_class_that_is_there_must_have_the_same_schemata() {
        let root = root("class");
        fs::create_dir(root.join("gold")).expect("made");
        fs::write(root.join("gold/schemata"), "    L3:0=00f;1=0ff\n    MB:0=100\n")
            .expect("written");
        let pid = Pid::from_raw(7).expect("a pid");
        for (json, good) in [
            (r#"{"closID":"gold"}"#, true),
            (r#"{"closID":"gold","l3CacheSchema":"L3:1=FF;0=f"}"#, true),
            (r#"{"closID":"gold","schemata":["L3:0=1"]}"#, false),
        ] {
            let rdt = rdt(json);
            let mut groups = Groups::plan_in(root.clone(), &rdt, "c").expect("a plan");
            assert_eq!(groups.make(&rdt, pid).is_ok(), good, "{json}");
            groups.remove().expect("nothing to remove");
        }
        assert!(Groups::plan_in(root.clone(), &rdt(r#"{"closID":"silver"}"#), "c").is_err());
        assert!(Groups::plan_in(root.clone(), &rdt(r#"{"closID":"../x"}"#), "c").is_err());
        fs::remove_dir_all(root).expect("removed");
    }
}
