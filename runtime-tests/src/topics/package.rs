//! The packages. The deb is installed, used and removed in the machine, which is thrown away
//! afterwards. The others are installed in a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "package":
    is_installed_used_and_removed, names_what_it_holds, the_rpm_is_installed_and_removed, the_tarball_is_unpacked, the_sums_are_theirs,
    make_installs_manual_pages_and_completions, a_shell_completes_either_name, says_under_which_licences_it_is, the_compiler_is_a_package_of_its_own,
    modules_are_compiled_where_the_compiler_is_installed,
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/packages");

fn packages_with(end: &str) -> Outcome<Vec<PathBuf>> {
    let files = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    let packages: Vec<_> = files.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    if packages.is_empty() { skip(format!("no `*{end}` in target/packages")) } else { Ok(packages) }
}

/// The package with the compiler of modules, or the package without it.
fn package_with(end: &str, compiler: bool) -> Outcome<String> {
    let is_compiler = |path: &PathBuf| path.to_string_lossy().contains("rt-runtime-compiler");
    let mut packages = packages_with(end)?.into_iter();
    match packages.find(|path| is_compiler(path) == compiler) {
        Some(path) => Ok(path.display().to_string()),
        None => skip("no such package: was the engine not built?"),
    }
}

fn package() -> Outcome<String> {
    package_with(".deb", false)
}

fn compiler() -> Outcome<String> {
    package_with(".deb", true)
}

fn output(program: &str, args: &[&str]) -> Outcome<Output> {
    let mut command = Command::new(program);
    command.args(args);
    Output::of(command)
}

/// The client of Request Tracker, which has the same name, is installed too.
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
    output("dpkg", &["--install", &package])?.success()?;
    a_container_outlives_upgrades(test, &package)?;
    output("dpkg", &["--install", &compiler()?])?.success()?;
    output("rt", &["--version"])?.success()?.stdout("tracker\n")?;
    let choice = ["--set", "rt", "/usr/lib/rt/bin/rt"];
    output("update-alternatives", &choice)?.success()?;
    ensure(output("rt", &["--version"])?.success()?.stdout.starts_with("rt version"), "not rt")?;
    // The program at the path that the callers' configurations name.
    let bundle = test.sh("echo installed")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let root = test.state_root().display().to_string();
    let settings = test.wasm_config().display().to_string();
    let flags = ["--root", &root, "--wasm-config", &settings];
    let run = [&flags[..], &["run", "--bundle", &folder, "packaged"]].concat();
    output("/usr/lib/rt/bin/rt", &run)?.success()?.stdout("installed\n")?;
    let bundle = test.wasm("hello", &[])?;
    let bundle = bundle.edit(|config| config["annotations"] = serde_json::json!({}));
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let run = [&flags[..], &["run", "--bundle", &folder, "packaged"]].concat();
    output("rt-wasm", &run)?.success()?.stdout("Hello from Wasm!\n")?;
    ensure(Path::new("/usr/share/man/man1/rt.1.gz").exists(), "no manual page")?;
    // The package of the compiler depends on this one.
    ensure(output("dpkg", &["--remove", "rt-runtime"])?.code != Some(0), "it was removed")?;
    output("dpkg", &["--remove", "rt-runtime-compiler"])?.success()?;
    ensure(!Path::new("/usr/lib/rt/libexec/rt/wasmedge/compiler").exists(), "it is left")?;
    output("rt-wasm", &run)?.success()?.stdout("Hello from Wasm!\n")?;
    output("dpkg", &["--remove", "rt-runtime"])?.success()?;
    output("rt", &[])?.success()?.stdout("tracker\n")?;
    output("update-alternatives", &["--remove", "rt", "/usr/bin/rt-4"])?.success()?;
    fs::remove_file("/usr/bin/rt-4")?;
    ensure(
        !Path::new("/usr/lib/rt").exists() && !Path::new("/usr/bin/rt-wasm").exists(),
        "files are left",
    )
}

/// Installs a newer package and then the older one again, while callers use a container.
fn a_container_outlives_upgrades(test: &Test, package: &str) -> Outcome {
    let unpacked = test.folder.join("newer").display().to_string();
    let newer = test.folder.join("newer.deb").display().to_string();
    output("dpkg-deb", &["--raw-extract", package, &unpacked])?.success()?;
    let control = format!("{unpacked}/DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let version = text.lines().find(|line| line.starts_with("Version: ")).ok_or("no version")?;
    fs::write(&control, text.replace(version, &format!("{version}.1")))?;
    output("dpkg-deb", &["-Znone", "--build", &unpacked, &newer])?.success()?;

    let program = "/usr/lib/rt/bin/rt";
    let root = test.state_root().display().to_string();
    let rt = |args: &[&str]| output(program, &[&["--root", &root], args].concat());
    let bundle = test.sh("sleep 600")?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    rt(&["run", "--detach", "--bundle", &folder, "outlives"])?.success()?;
    let stop = AtomicBool::new(false);
    let load = || -> Outcome<usize> {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            rt(&["exec", "outlives", "/bin/true"])?.success()?;
            rt(&["state", "outlives"])?.success()?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let rounds = std::thread::scope(|scope| {
        let load = scope.spawn(load);
        let installed = [newer.as_str(), package]
            .iter()
            .try_for_each(|package| output("dpkg", &["--install", package])?.success().map(drop));
        stop.store(true, Ordering::Relaxed);
        let rounds = load.join().map_err(|_| "the thread panicked")??;
        installed.map(|()| rounds)
    })?;
    ensure(rounds > 0, "there was no load")?;
    rt(&["delete", "--force", "outlives"])?.success()?;
    Ok(())
}

fn names_what_it_holds(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package()?;
    let list = output("dpkg-deb", &["--contents", &package])?.success()?.stdout;
    for file in [
        "/usr/lib/rt/bin/rt",
        "/usr/lib/rt/bin/rt-wasm",
        "/usr/lib/rt/bin/rt-spin",
        "/usr/lib/rt/share/rt/podman/rt.conf",
        "/usr/lib/rt/libexec/rt/rt-top",
        "/usr/lib/rt/libexec/rt/wasmedge/licences/libwasmedge0",
        "/usr/share/man/man1/rt-runtime.1.gz",
        "/usr/share/man/man7/rt-annotations.7.gz",
        "/usr/share/bash-completion/completions/rt",
        "/usr/share/bash-completion/completions/rt-wasm",
        "/usr/share/zsh/vendor-completions/_rt",
        "/usr/share/fish/vendor_completions.d/rt.fish",
        "/usr/share/doc/rt-runtime/copyright",
    ] {
        ensure(
            list.lines().any(|line| line.contains(&format!(".{file}"))),
            format!("no {file} in {list}"),
        )?;
    }
    // Root must not run files that others can change.
    let open: Vec<&str> =
        list.lines().filter(|line| line.starts_with('-') && line.as_bytes()[8] == b'w').collect();
    ensure_eq(open, Vec::new())?;
    ensure(list.lines().all(|line| line.contains(" root/root ")), "not root's")
}

/// The package's scripts do not run, because they need a root with a shell.
fn the_rpm_is_installed_and_removed(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package_with(".rpm", false)?;
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
    let compilers = root.join("usr/lib/rt/libexec/rt/wasmedge/compiler");
    ensure(!compilers.exists(), "the compiler is in both")?;
    rpm(&["--install", "--nodeps", &package_with(".rpm", true)?])?.success()?;
    ensure(compilers.is_dir(), "no compiler")?;
    let needs = rpm(&["--query", "--requires", "rt-runtime-compiler"])?.success()?.stdout;
    ensure(needs.contains("rt-runtime = "), needs)?;
    rpm(&["--erase", "rt-runtime-compiler"])?.success()?;
    ensure(!compilers.exists(), "the compiler is left")?;
    rpm(&["--erase", "--noscripts", "rt-runtime"])?.success()?;
    let names = ["usr/lib/rt", "usr/bin/rt-wasm", "usr/share/doc/rt-runtime"];
    ensure(!names.iter().any(|name| root.join(name).exists()), "files are left")
}

fn the_tarball_is_unpacked(test: &Test) -> Outcome {
    test.only_rt()?;
    let package = package_with(".tar.gz", false)?;
    let root = test.folder.join("root");
    fs::create_dir(&root)?;
    output("tar", &["-C", &root.display().to_string(), "-xzf", &package])?.success()?;
    runs_from(&root)?;
    ensure(root.join("usr/lib/rt/libexec/rt/wasmedge/compiler").is_dir(), "no compiler")?;
    ensure(root.join("usr/share/man/man1/rt.1.gz").exists(), "no manual page")
}

fn runs_from(root: &Path) -> Outcome {
    let program = root.join("usr/lib/rt/bin/rt").display().to_string();
    let version = output(&program, &["--version"])?.success()?.stdout;
    ensure(version.starts_with("rt version"), version)
}

fn the_sums_are_theirs(test: &Test) -> Outcome {
    test.only_rt()?;
    let mut command = Command::new("sha256sum");
    command.arg("--check").args(packages_with(".sha256")?).current_dir(FOLDER);
    Output::of(command)?.success().map(drop)
}

/// Installs in a directory, as a packager would. bash and fish load one file per command, and find
/// one for each name.
fn make_installs_manual_pages_and_completions(test: &Test) -> Outcome {
    test.only_rt()?;
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    if !Path::new(sources).join("Makefile").exists() {
        return skip("the sources are not here");
    }
    let root = test.folder.join("root");
    let dist = test.host.runtime.ancestors().nth(2).ok_or("no prefix")?.display().to_string();
    let (dist, to) = (format!("DIST={dist}"), format!("DESTDIR={}", root.display()));
    let make = ["--no-print-directory", "-C", sources, "install", &dist, &to, "PREFIX=/opt/rt"];
    output("make", &make)?.success()?;
    let share = root.join("opt/rt/share");
    let starts = |file: &str, words: &str| -> Outcome {
        let text =
            fs::read_to_string(share.join(file)).map_err(|error| format!("{file}: {error}"))?;
        ensure(text.contains(words), format!("no {words:?} in {file}"))
    };
    starts("man/man1/rt.1", ".SH \"EXIT STATUS\"")?;
    starts("man/man7/rt-annotations.7", "run.oci.handler")?;
    starts("zsh/site-functions/_rt", "#compdef rt rt-wasm\n")?;
    for name in ["rt", "rt-wasm"] {
        starts(&format!("bash-completion/completions/{name}"), "-o default rt rt-wasm\n")?;
        starts(&format!("fish/vendor_completions.d/{name}.fish"), "complete -c rt-wasm -w rt\n")?;
    }
    starts("rt/podman/rt.conf", "rt = [\"/opt/rt/bin/rt\"]")
}

/// The files of the deb, in the directory of bash-completion.
fn a_shell_completes_either_name(test: &Test) -> Outcome {
    test.only_rt()?;
    let root = test.folder.join("root").display().to_string();
    output("dpkg-deb", &["--extract", &package()?, &root])?.success()?;
    for name in ["rt", "rt-wasm"] {
        let file = format!("{root}/usr/share/bash-completion/completions/{name}");
        let ask = format!(
            "source {file}; complete -p {name}; COMP_WORDS=({name} pau); COMP_CWORD=1; \
             _rt {name} pau {name}; echo ${{COMPREPLY[@]}}"
        );
        let said = output("bash", &["-c", &ask])?.success()?.stdout;
        ensure(said.ends_with(&format!(" -F _rt {name}\npause\n")), said)?;
    }
    Ok(())
}

/// The licences of `rt`, and of everything that is linked into it.
fn says_under_which_licences_it_is(test: &Test) -> Outcome {
    test.only_rt()?;
    let root = test.folder.join("root");
    output("dpkg-deb", &["--extract", &package()?, &root.display().to_string()])?.success()?;
    let text = fs::read_to_string(root.join("usr/share/doc/rt-runtime/copyright"))?;
    for words in [
        "Apache License",
        "libseccomp: LGPL-2.1-only",
        "GNU LESSER GENERAL PUBLIC LICENSE",
        "can be linked anew",
        "Copyright © 2005-2020 Rich Felker",
        "\nserde_json 1.",
        "\nlibcontainer 0.",
        "\nlibseccomp-sys 0.",
        "\nratatui 0.",
        "Permission is hereby granted",
    ] {
        ensure(text.contains(words), format!("no {words:?}"))?;
    }
    // A crate that is used only for the build is not a part of the program.
    for name in ["syn", "serde_derive", "clap_mangen", "runtime-tests"] {
        ensure(!text.contains(&format!("\n{name} ")), name)?;
    }
    Ok(())
}

/// The second package contains nothing else. A system that installs one also installs the other,
/// unless its user forbids that.
fn the_compiler_is_a_package_of_its_own(test: &Test) -> Outcome {
    test.only_rt()?;
    let (rt, compiler) = (package()?, compiler()?);
    let contents = |package: &str| -> Outcome<String> {
        Ok(output("dpkg-deb", &["--contents", package])?.success()?.stdout)
    };
    ensure(!contents(&rt)?.contains("/compiler/"), "it is in both")?;
    let list = contents(&compiler)?;
    for file in ["wasmedge/compiler/libLLVM", "wasmtime/compiler/rt-wasmtime-compiler"] {
        ensure(list.contains(&format!("/usr/lib/rt/libexec/rt/{file}")), &list)?;
    }
    let others = |line: &&str| {
        line.starts_with('-') && !line.contains("/compiler/") && !line.contains("/lintian/")
    };
    ensure_eq(list.lines().filter(others).collect::<Vec<_>>(), Vec::new())?;
    let field = |package: &str, name: &str| -> Outcome<String> {
        Ok(output("dpkg-deb", &["--field", package, name])?.success()?.stdout.trim().to_owned())
    };
    let version = field(&rt, "Version")?;
    ensure_eq(field(&compiler, "Depends")?, format!("rt-runtime (= {version})"))?;
    ensure_eq(field(&rt, "Recommends")?, format!("rt-runtime-compiler (= {version})"))
}

/// Without the compiler, the engine interprets modules.
fn modules_are_compiled_where_the_compiler_is_installed(test: &Test) -> Outcome {
    test.only_rt()?;
    let (rt, compiler) = (package()?, compiler()?);
    let root = test.folder.join("root").display().to_string();
    let program = format!("{root}/usr/lib/rt/bin/rt");
    let settings = serde_json::json!({
        "compile": "eager", "cache": { "directory": test.folder.join("cache") },
    });
    fs::write(test.folder.join("wasm.json"), settings.to_string())?;
    let bundle = test.wasm("probe", &["sleep"])?;
    bundle.write()?;
    for (package, mode) in [(rt, "interpreter"), (compiler, "aot")] {
        output("dpkg-deb", &["--extract", &package, &root])?.success()?;
        let id = test.id();
        let command = |args: &[String]| {
            // The same arguments, for another program.
            let of = test.command(args);
            let mut command = Command::new(&program);
            command.args(of.get_args()).stdin(std::process::Stdio::null());
            Output::of(command)
        };
        let mut run = bundle.command_line("run", &id);
        run.insert(1, "--detach".into());
        // A warning says why a module is interpreted.
        run.splice(0..0, ["--log-level".into(), "warn".into()]);
        let said = command(&run)?.success()?.stderr;
        let state = command(&["state".into(), id.clone()])?.success()?.stdout;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        ensure(state["annotations"]["run.oci.engine.mode"] == mode, format!("not {mode}: {said}"))?;
        command(&["delete".into(), "--force".into(), id])?.success()?;
    }
    Ok(())
}
