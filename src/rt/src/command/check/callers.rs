//! The callers of `rt`: whether their configuration names it. Only installed callers are reported.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use super::{Finding, Verdict};

struct Caller {
    name: &'static str,
    /// The paths of its program.
    programs: &'static [&'static str],
    /// Its configuration files, and directories of such files.
    configuration: &'static [&'static str],
    /// The file to copy from `share/rt`, and its destination.
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
    let read = |file: PathBuf| Some((fs::read_to_string(&file).ok()?, file));
    let texts: Vec<(String, PathBuf)> = files.filter_map(read).collect();
    let mut naming = texts
        .iter()
        .flat_map(|(text, file)| paths_of_rt(text).map(move |path| (path, file.display())));
    match naming.next() {
        Some((path, file)) if path.exists() => {
            Finding::good(topic, caller.name, format!("knows rt, by `{file}`"))
        }
        Some((path, file)) => {
            let detail = format!("`{file}` names `{}`, which does not exist", path.display());
            let fix = format!("name the installed rt in `{file}`");
            Finding::bad(topic, caller.name, Verdict::Limited, detail, fix)
        }
        None => {
            let (mut from, to) = caller.copy;
            // The configuration of containerd 1 has another format, and its files contain their
            // version.
            let is_old = |(text, _): &(String, PathBuf)| {
                text.lines().any(|line| line.split_whitespace().collect::<String>() == "version=2")
            };
            if caller.name == "containerd" && texts.iter().any(is_old) {
                from = "containerd/config-v2.toml";
            }
            let detail = "is installed, but its configuration does not name rt";
            let fix = format!("add `share/rt/{from}` to `{to}`");
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

/// The paths of this program's binary or of its links: on lines that are not comments, and in
/// single or double quotes. CRI-O also has directories with these names, so the path must be below
/// `bin` or `sbin`.
fn paths_of_rt(text: &str) -> impl Iterator<Item = &Path> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.flat_map(|line| line.split(['"', '\'']));
    let is_one = |word: &&str| {
        let names = ["rt", "rt-wasm", "rt-spin"].iter();
        let mut paths = names.flat_map(|name| [format!("/bin/{name}"), format!("/sbin/{name}")]);
        word.starts_with('/') && paths.any(|path| word.ends_with(&path))
    };
    words.filter(is_one).map(Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_rt_by_its_path() {
        let names_rt = |text: &str| paths_of_rt(text).next().is_some();
        assert!(names_rt("rt = [\"/usr/bin/rt\"]"));
        assert!(names_rt("  BinaryName = '/usr/local/bin/rt-wasm'"));
        assert!(names_rt("runtime_path = \"/usr/sbin/rt-spin\""));
        assert!(!names_rt(
            "# rt = [\"/usr/bin/rt\"]\nroot = \"/run/rt\"\npath = \"/usr/bin/crun-rt-x\""
        ));
    }

    #[test]
    fn every_file_to_copy_names_it() {
        for file in [
            "podman/rt.conf",
            "crio/99-rt.conf",
            "containerd/config-v2.toml",
            "containerd/config-v3.toml",
            "docker/daemon.json",
        ] {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/callers").join(file);
            let text = fs::read_to_string(path).expect(file).replace("@PREFIX@", "/usr/lib/rt");
            let found: Vec<_> = paths_of_rt(&text).collect();
            for name in ["rt", "rt-wasm", "rt-spin"] {
                let path = Path::new("/usr/lib/rt/bin").join(name);
                assert!(found.contains(&path.as_path()), "{file}: no {name} in {found:?}");
            }
        }
    }
}
