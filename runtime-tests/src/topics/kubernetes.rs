//! The files for a cluster: the script that installs `rt` on a node runs on a directory that stands
//! for the node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Outcome, Output, Test, copy_program, ensure, ensure_eq, skip};

super::tests! { "kubernetes":
    the_script_puts_rt_on_a_node, a_second_run_changes_nothing, what_is_broken_is_repaired, another_prefix_is_refused, a_new_version_replaces_the_old, containerd_is_left_alone, a_wrong_tree_is_refused,
    a_nodes_image_needs_nothing_but_busybox,
}

const CALLERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers");

struct Node {
    tree: PathBuf,
    root: PathBuf,
}

/// The tree of a package, and a node with CRI-O.
fn node(test: &Test) -> Outcome<Node> {
    test.only_rt()?;
    if !Path::new(CALLERS).is_dir() {
        return skip("the sources are not here");
    }
    let (tree, root) = (test.folder.join("tree"), test.folder.join("node"));
    for folder in ["bin", "share/rt/crio"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    copy_program(&test.host.runtime, tree.join("bin/rt"))?;
    std::os::unix::fs::symlink("rt", tree.join("bin/rt-wasm"))?;
    let text = fs::read_to_string(format!("{CALLERS}/crio/99-rt.conf"))?;
    fs::write(tree.join("share/rt/crio/99-rt.conf"), text.replace("@PREFIX@", "/usr/lib/rt"))?;
    for folder in ["usr/lib", "etc/crio"] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(Node { tree, root })
}

impl Node {
    fn install(&self) -> Outcome<Output> {
        self.install_by(Command::new("sh"))
    }

    fn install_by(&self, mut shell: Command) -> Outcome<Output> {
        shell.arg(format!("{CALLERS}/kubernetes/install-on-node")).arg(&self.tree).arg(&self.root);
        Output::of(shell)
    }
}

fn the_script_puts_rt_on_a_node(test: &Test) -> Outcome {
    let node = node(test)?;
    let said = node.install()?.success()?.stdout;
    ensure(said.contains("restart crio when it suits"), said)?;
    let mut version = Command::new(node.root.join("usr/lib/rt/bin/rt-wasm"));
    version.arg("--version");
    ensure(Output::of(version)?.success()?.stdout.starts_with("rt version"), "it does not run")?;
    let configuration = fs::read_to_string(node.root.join("etc/crio/crio.conf.d/99-rt.conf"))?;
    ensure(configuration.contains("\"/usr/lib/rt/bin/rt\""), configuration)
}

fn a_second_run_changes_nothing(test: &Test) -> Outcome {
    let node = node(test)?;
    node.install()?.success()?;
    let time =
        || fs::metadata(node.root.join("usr/lib/rt/bin/rt")).and_then(|file| file.modified());
    let before = time()?;
    node.install()?.success()?.stdout("rt is there already\nCRI-O knows it already\n")?;
    ensure_eq(time()?, before)
}

fn what_is_broken_is_repaired(test: &Test) -> Outcome {
    let node = node(test)?;
    node.install()?.success()?;
    let (link, program) = ("usr/lib/rt/bin/rt-wasm", node.root.join("usr/lib/rt/bin/rt"));
    fs::remove_file(node.root.join(link))?;
    ensure(node.install()?.success()?.stdout.starts_with("rt is in"), "the link was not missed")?;
    ensure(node.root.join(link).exists(), "the link is not there")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644))?;
    ensure(node.install()?.success()?.stdout.starts_with("rt is in"), "it is taken for a program")?;
    ensure_eq(fs::metadata(program)?.permissions().mode() & 0o111, 0o111)
}

fn another_prefix_is_refused(test: &Test) -> Outcome {
    let node = node(test)?;
    let file = node.tree.join("share/rt/crio/99-rt.conf");
    fs::write(&file, fs::read_to_string(&file)?.replace("/usr/lib/rt", "/usr/local"))?;
    node.install()?.fails_with("was not made for /usr/lib/rt")?;
    ensure(!node.root.join("usr/lib/rt").exists(), "something was made")
}

fn a_new_version_replaces_the_old(test: &Test) -> Outcome {
    let node = node(test)?;
    node.install()?.success()?;
    fs::write(node.root.join("usr/lib/rt/old-file"), "")?;
    let said = node.install()?.success()?.stdout;
    ensure(said.starts_with("rt is in /usr/lib/rt\n"), said)?;
    let left: Vec<_> =
        fs::read_dir(node.root.join("usr/lib"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure_eq(left, vec!["rt".into()])?;
    ensure(!node.root.join("usr/lib/rt/old-file").exists(), "the old one is there still")
}

fn containerd_is_left_alone(test: &Test) -> Outcome {
    let node = node(test)?;
    fs::create_dir_all(node.root.join("etc/containerd"))?;
    let file = node.root.join("etc/containerd/config.toml");
    fs::write(&file, "version = 2\n")?;
    let said = node.install()?.success()?.stdout;
    ensure(said.contains("containerd: take /usr/lib/rt/share/rt/containerd/"), said)?;
    ensure_eq(fs::read_to_string(file)?.as_str(), "version = 2\n")
}

fn a_wrong_tree_is_refused(test: &Test) -> Outcome {
    let node = node(test)?;
    fs::remove_file(node.tree.join("bin/rt"))?;
    node.install()?.fails_with("holds no rt")?;
    ensure(!node.root.join("usr/lib/rt").exists(), "something was made")
}

/// As in the image of the `DaemonSet`: only busybox's applets are in `PATH`, and the tree has an
/// engine.
fn a_nodes_image_needs_nothing_but_busybox(test: &Test) -> Outcome {
    let node = node(test)?;
    let engine = node.tree.join("libexec/rt/wasmedge");
    fs::create_dir_all(engine.join("lib"))?;
    fs::create_dir(engine.join("licences"))?;
    for (name, mode) in [("engine.json", 0o644), ("ld.so", 0o755), ("lib/libwasmedge.so.0", 0o664)]
    {
        fs::write(engine.join(name), name)?;
        fs::set_permissions(engine.join(name), fs::Permissions::from_mode(mode))?;
    }
    std::os::unix::fs::symlink("libwasmedge.so.0", engine.join("lib/libwasmedge.so"))?;
    let image = test.folder.join("image");
    fs::create_dir(&image)?;
    fs::copy("/bin/busybox", image.join("busybox"))?;
    let shell = |script: &[&str]| {
        let mut command = Command::new(image.join("busybox"));
        command.env_clear().env("PATH", &image).arg("sh").args(script);
        command
    };
    let applets = shell(&["-c", "busybox --install -s \"$PATH\""]);
    Output::of(applets)?.success()?;
    let said = node.install_by(shell(&[]))?.success()?;
    ensure(said.stdout.starts_with("rt is in /usr/lib/rt\n"), said.stdout)?;
    ensure_eq(said.stderr.as_str(), "")?;
    node.install_by(shell(&[]))?
        .success()?
        .stdout("rt is there already\nCRI-O knows it already\n")?;
    let place = node.root.join("usr/lib/rt/libexec/rt/wasmedge");
    ensure_eq(
        fs::read_to_string(place.join("lib/libwasmedge.so"))?.as_str(),
        "lib/libwasmedge.so.0",
    )?;
    let mode = |name: &str| -> Outcome<u32> {
        Ok(fs::metadata(place.join(name))?.permissions().mode() & 0o777)
    };
    // Only root may write to files that root runs.
    ensure_eq((mode("ld.so")?, mode("lib/libwasmedge.so.0")?), (0o755, 0o644))?;
    // With these applets, the script also notices a changed library and an additional file.
    for (name, text) in [("lib/libwasmedge.so.0", "changed"), ("lib/other.so", "")] {
        fs::write(place.join(name), text)?;
        ensure(node.install_by(shell(&[]))?.success()?.stdout.starts_with("rt is in"), name)?;
    }
    ensure(!place.join("lib/other.so").exists(), "it is there still")?;
    fs::remove_file(node.tree.join("bin/rt"))?;
    node.install_by(shell(&[]))?.fails_with("holds no rt").map(drop)
}
