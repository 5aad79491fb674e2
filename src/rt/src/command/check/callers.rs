//! The programs that call a runtime: whether their configuration knows this one. Only those that are installed are spoken of.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use super::{Finding, Verdict};

struct Caller {
    name: &'static str,
    /// Where its program is.
    programs: &'static [&'static str],
    /// Files, and directories of files, that configure it.
    configuration: &'static [&'static str],
    /// What to copy from `share/rt`, and where to.
    copy: (&'static str, &'static str),
}

const CALLERS: [Caller; 4] = [
    Caller {
        name: "podman",
        programs: &["/usr/bin/podman", "/usr/local/bin/podman"],
        configuration: &[
            "/usr/share/containers/containers.conf",
            "/etc/containers/containers.conf",
            "/usr/share/containers/containers.conf.d",
            "/etc/containers/containers.conf.d",
        ],
        copy: ("podman/rt.conf", "/etc/containers/containers.conf.d/rt.conf"),
    },
    Caller {
        name: "CRI-O",
        programs: &["/usr/bin/crio", "/usr/local/bin/crio"],
        configuration: &["/etc/crio/crio.conf", "/etc/crio/crio.conf.d"],
        copy: ("crio/99-rt.conf", "/etc/crio/crio.conf.d/99-rt.conf"),
    },
    Caller {
        name: "containerd",
        programs: &["/usr/bin/containerd", "/usr/local/bin/containerd"],
        configuration: &["/etc/containerd/config.toml", "/etc/containerd/conf.d"],
        copy: ("containerd/config-v3.toml", "/etc/containerd/config.toml"),
    },
    Caller {
        name: "Docker",
        programs: &["/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"],
        configuration: &["/etc/docker/daemon.json"],
        copy: ("docker/daemon.json", "/etc/docker/daemon.json"),
    },
];

pub(super) fn all() -> Vec<Finding> {
    let installed = |caller: &&Caller| caller.programs.iter().any(|path| Path::new(path).exists());
    CALLERS.iter().filter(installed).map(check).collect()
}

fn check(caller: &Caller) -> Finding {
    let topic = "callers";
    let files = caller.configuration.iter().flat_map(|path| files(Path::new(path)));
    let naming: Vec<PathBuf> =
        files.filter(|file| fs::read_to_string(file).is_ok_and(|text| names_rt(&text))).collect();
    match naming.first() {
        Some(file) => {
            Finding::good(topic, caller.name, format!("knows rt, by `{}`", file.display()))
        }
        None => {
            let (from, to) = caller.copy;
            let detail = "is installed, and its configuration does not name rt";
            let fix = format!("take `share/rt/{from}` into `{to}`");
            Finding::bad(topic, caller.name, Verdict::Limited, detail, fix)
        }
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Whether a line that is no comment has a path that ends in the name of this program, or of its link.
fn names_rt(text: &str) -> bool {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines
        .flat_map(|line| line.split('"'))
        .any(|word| word.starts_with('/') && (word.ends_with("/rt") || word.ends_with("/rt-wasm")))
}

#[cfg(test)]
mod tests {
    use super::names_rt;

    #[test]
    fn a_configuration_names_rt_by_its_path() {
        assert!(names_rt("rt = [\"/usr/bin/rt\"]"));
        assert!(names_rt("  BinaryName = \"/usr/local/bin/rt-wasm\""));
        assert!(!names_rt(
            "# rt = [\"/usr/bin/rt\"]\nroot = \"/run/crio\"\npath = \"/usr/bin/crun-rt-x\""
        ));
    }
}
