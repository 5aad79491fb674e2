//! The Debian package: installed, used and removed, in the virtual machine, which nobody else needs afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "package": is_installed_used_and_removed, names_what_it_holds }

fn package() -> Outcome<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/packages");
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = files.filter(|path| path.extension().is_some_and(|kind| kind == "deb"));
    packages.next().map_or_else(|| skip("no package: `make deb` makes it"), Ok)
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
