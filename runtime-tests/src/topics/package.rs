//! The packages: the one of Debian is installed, used and removed in the virtual machine, which nobody else needs afterwards; the
//! others in a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "package":
    is_installed_used_and_removed, names_what_it_holds, the_rpm_is_installed_and_removed, the_tarball_is_unpacked, the_sums_are_theirs,
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/packages");

fn package_with(end: &str) -> Outcome<PathBuf> {
    let files = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = files.filter(|path| path.to_string_lossy().ends_with(end));
    packages.next().map_or_else(|| skip(format!("no `*{end}` in target/packages")), Ok)
}

fn package() -> Outcome<PathBuf> {
    package_with(".deb")
}

fn output(program: &str, args: &[&str]) -> Outcome<Output> {
    let mut command = Command::new(program);
    command.args(args);
    Output::of(command)
}

/// Beside the client of Request Tracker, which is called the same.
fn is_installed_used_and_removed(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package()?;
    if !Path::new("/run/systemd/system").exists() || !test.host.by_systemd {
        return skip("only once, in the virtual machine");
    }
    fs::write("/usr/bin/rt-4", "#!/bin/sh\necho tracker\n")?;
    output("chmod", &["+x", "/usr/bin/rt-4"])?.success()?;
    let alternatives = ["--install", "/usr/bin/rt", "rt", "/usr/bin/rt-4", "260"];
    output("update-alternatives", &alternatives)?.success()?;
    output("dpkg", &["--install", &package.display().to_string()])?.success()?;
    output("rt", &["--version"])?.success()?.stdout("tracker\n")?;
    let choice = ["--set", "rt", "/usr/lib/rt/bin/rt"];
    output("update-alternatives", &choice)?.success()?;
    ensure(output("rt", &["--version"])?.success()?.stdout.starts_with("rt version"), "not rt")?;
    // As a caller's configuration names it.
    let bundle = test.sh("echo installed")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let root = test.state_root().display().to_string();
    let run = ["--root", &root, "run", "--bundle", &folder, "packaged"];
    output("/usr/lib/rt/bin/rt", &run)?.success()?.stdout("installed\n")?;
    let bundle = test.wasm("hello", &[])?;
    let bundle = bundle.edit(|config| config["annotations"] = serde_json::json!({}));
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let run = ["--root", &root, "run", "--bundle", &folder, "packaged"];
    output("rt-wasm", &run)?.success()?.stdout("Hello from Wasm!\n")?;
    ensure(Path::new("/usr/share/man/man1/rt.1.gz").exists(), "no manual page")?;
    output("dpkg", &["--remove", "rt-runtime"])?.success()?;
    output("rt", &[])?.success()?.stdout("tracker\n")?;
    output("update-alternatives", &["--remove", "rt", "/usr/bin/rt-4"])?.success()?;
    fs::remove_file("/usr/bin/rt-4")?;
    ensure(
        !Path::new("/usr/lib/rt").exists() && !Path::new("/usr/bin/rt-wasm").exists(),
        "files are left",
    )
}

fn names_what_it_holds(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package()?.display().to_string();
    let list = output("dpkg-deb", &["--contents", &package])?.success()?.stdout;
    for file in [
        "/usr/lib/rt/bin/rt",
        "/usr/lib/rt/bin/rt-wasm",
        "/usr/lib/rt/share/rt/podman/rt.conf",
        "/usr/lib/rt/libexec/rt/wasmedge/licences/libwasmedge0",
        "/usr/share/man/man1/rt-runtime.1.gz",
        "/usr/share/man/man7/rt-annotations.7.gz",
        "/usr/share/bash-completion/completions/rt",
        "/usr/share/doc/rt-runtime/copyright",
    ] {
        ensure(
            list.lines().any(|line| line.contains(&format!(".{file}"))),
            format!("no {file} in {list}"),
        )?;
    }
    // Nothing that somebody else could change is run as root.
    let open: Vec<&str> =
        list.lines().filter(|line| line.starts_with('-') && line.as_bytes()[8] == b'w').collect();
    ensure_eq(open, Vec::new())?;
    ensure(list.lines().all(|line| line.contains(" root/root ")), "not root's")
}

/// Its scripts are not run: they are for a root that has a shell.
fn the_rpm_is_installed_and_removed(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package_with(".rpm")?.display().to_string();
    if !Path::new("/usr/bin/rpm").exists() {
        return skip("no `rpm`");
    }
    let root = test.folder.join("root");
    fs::create_dir(&root)?;
    let path = root.display().to_string();
    let rpm = |args: &[&str]| output("rpm", &[&["--root", &path], args].concat());
    rpm(&["--install", "--noscripts", "--nodeps", &package])?.success()?;
    runs_from(&root)?;
    let scripts = rpm(&["--query", "--scripts", "rt-runtime"])?.success()?.stdout;
    ensure(scripts.contains("--install /usr/bin/rt rt /usr/lib/rt/bin/rt"), &scripts)?;
    ensure(scripts.contains("--remove rt /usr/lib/rt/bin/rt"), scripts)?;
    rpm(&["--verify", "--nodeps", "rt-runtime"])?.success()?;
    rpm(&["--erase", "--noscripts", "rt-runtime"])?.success()?;
    let names = ["usr/lib/rt", "usr/bin/rt-wasm", "usr/share/doc/rt-runtime"];
    ensure(!names.iter().any(|name| root.join(name).exists()), "files are left")
}

fn the_tarball_is_unpacked(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package_with(".tar.gz")?.display().to_string();
    let root = test.folder.join("root");
    fs::create_dir(&root)?;
    output("tar", &["-C", &root.display().to_string(), "-xzf", &package])?.success()?;
    runs_from(&root)?;
    ensure(root.join("usr/share/man/man1/rt.1.gz").exists(), "no manual page")
}

fn runs_from(root: &Path) -> Outcome {
    let program = root.join("usr/lib/rt/bin/rt").display().to_string();
    let version = output(&program, &["--version"])?.success()?.stdout;
    ensure(version.starts_with("rt version"), version)
}

fn the_sums_are_theirs(test: &Test) -> Outcome {
    test.only_rt()?;
    let sum = package_with(".sha256")?;
    let mut command = Command::new("sha256sum");
    command.arg("--check").arg(sum).current_dir(FOLDER);
    Output::of(command)?.success().map(drop)
}
