//! Where the build takes WasmEdge from (`packaging/wasmedge/source`). The archive of Debian and the
//! releases of WasmEdge are made up here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "wasm_source":
    the_next_stable_release_comes_first, then_comes_sid, then_come_the_releases_of_wasmedge, an_archive_of_another_digest_is_refused,
    without_any_there_is_advice, a_directory_of_the_packager_is_the_only_place, a_version_without_tests_is_not_used,
    what_was_found_is_not_looked_for_again, make_fails_before_it_builds_anything,
}

/// Makes an archive with the package `libwasmedge-dev`, from arguments SUITE=VERSION, and a
/// configuration of apt that knows it. A suite without a version has another package.
const ARCHIVE: &str = r##"
set -eu
architecture=$(dpkg --print-architecture)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
for pair in "$release=" "$@"; do
  suite=${pair%%=*} version=${pair#*=} package=libwasmedge-dev
  [ -n "$version" ] || { package=other version=1-1; }
  binary=archive/dists/$suite/main/binary-$architecture
  mkdir -p "$binary" archive/pool
  rm -rf tree
  mkdir -p tree/DEBIAN tree/usr/include/wasmedge
  inside=${version#*:}; inside=${inside%-*}; inside=${inside%%+*}
  echo "#define WASMEDGE_VERSION \"$inside\"" >tree/usr/include/wasmedge/version.h
  printf 'Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: none <none@localhost>\nDescription: none\n' \
    "$package" "$version" "$architecture" >tree/DEBIAN/control
  file=archive/pool/$suite.deb
  dpkg-deb --root-owner-group --build tree "$file" >/dev/null
  { cat tree/DEBIAN/control
    printf 'Filename: pool/%s.deb\nSize: %s\nSHA256: %s\n\n' "$suite" "$(stat -c %s "$file")" "$(sha256sum "$file" | cut -d' ' -f1)"
  } >"$binary/Packages"
  (cd "archive/dists/$suite"; file=main/binary-$architecture/Packages
    printf 'Suite: %s\nCodename: %s\nDate: %s\nArchitectures: %s\nComponents: main\nSHA256:\n %s %s %s\n' "$suite" "$suite" \
      "$(LC_ALL=C date -Ru)" "$architecture" "$(sha256sum "$file" | cut -d' ' -f1)" "$(stat -c %s "$file")" "$file" >Release)
done
mkdir -p lists/partial
echo "deb [trusted=yes] copy:$PWD/archive $release main" >sources.list
cat >apt.conf <<CONF
Dir::Etc::SourceList "$PWD/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$PWD/lists";
Acquire::AllowInsecureRepositories "true";
APT::Get::AllowUnauthenticated "true";
CONF
APT_CONFIG=$PWD/apt.conf apt-get -qq -o APT::Sandbox::User=root update
"##;

/// Makes a directory as WasmEdge's releases have it, from arguments DIRECTORY and VERSION, and an
/// archive of it.
const RELEASE: &str = r##"
set -eu
mkdir -p "$1/include/wasmedge" "$1/lib64"
echo "#define WASMEDGE_VERSION \"$2\"" >"$1/include/wasmedge/version.h"
echo "#include <wasmedge/version.h>" >"$1/include/wasmedge/wasmedge.h"
echo "double WasmEdge_Test(double x) { return __builtin_sin(x); }" >wasmedge.c
cc -shared -fPIC -o "$1/lib64/libwasmedge.so.0" wasmedge.c -Wl,-soname,libwasmedge.so.0 -lm
ln -sf libwasmedge.so.0 "$1/lib64/libwasmedge.so"
mkdir -p "releases/$2"
tar -czf "releases/$2/release.tar.gz" "$1"
"##;

/// A copy of the scripts, and of the makefile with others in place of all other scripts.
struct Tree {
    folder: PathBuf,
}

fn shell(folder: &Path, script: &str, arguments: &[&str]) -> Outcome<Output> {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).args(arguments).current_dir(folder);
    Output::of(shell)
}

impl Tree {
    fn new(test: &Test, suites: &[&str]) -> Outcome<Tree> {
        test.only_rt()?;
        let programs = ["apt-get", "dpkg-deb", "cc", "curl", "make"];
        if let Some(missing) = programs.iter().find(|it| !Path::new("/usr/bin").join(it).exists()) {
            return skip(format!("there is no {missing} here"));
        }
        let folder = test.folder.join("tree");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let scripts = folder.join("packaging/wasmedge");
        fs::create_dir_all(&scripts)?;
        for name in ["source", "build", "private-apt", "tested"] {
            fs::copy(from.join("packaging/wasmedge").join(name), scripts.join(name))?;
        }
        fs::copy(from.join("Makefile"), folder.join("Makefile"))?;
        for name in [
            "packaging/dependencies",
            "packaging/build-rt",
            "packaging/wasmtime/build",
            "packaging/demo",
            "runtime-tests/guests/build",
        ] {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().ok_or("no folder")?)?;
            fs::write(&path, format!("#!/bin/sh\necho ran {name}\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        shell(&folder, ARCHIVE, suites)?.success()?;
        Ok(Tree { folder })
    }

    /// Makes a release of version 0.17.1, which `tested` has with its digest.
    fn with_release(self) -> Outcome<Tree> {
        shell(&self.folder, RELEASE, &["WasmEdge-0.17.1-Linux", "0.17.1"])?.success()?;
        let archive = self.folder.join("releases/0.17.1/release.tar.gz");
        let sum = shell(&self.folder, "sha256sum \"$1\"", &[&archive.display().to_string()])?;
        let digest = sum.stdout.split_whitespace().next().ok_or("no digest")?.to_owned();
        let machine = std::env::consts::ARCH;
        fs::write(
            self.folder.join("packaging/wasmedge/tested"),
            format!("# A list.\n0.17.1 {machine} {digest} release.tar.gz\n"),
        )?;
        Ok(self)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.folder);
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        let releases = format!("file://{}/releases", self.folder.display());
        command.env("WASMEDGE_RELEASES", releases).env_remove("WASMEDGE_ROOT");
        command.env_remove("MAKEFLAGS").env("LC_ALL", "C");
        command
    }

    fn find(&self) -> Outcome<Output> {
        Output::of(self.command("packaging/wasmedge/source", &["found"]))
    }

    fn read(&self, path: &str) -> Outcome<String> {
        Ok(fs::read_to_string(self.folder.join(path))?)
    }
}

/// The last line of the output names the place.
fn comes_from(output: &Output, place: &str) -> Outcome {
    let last = output.stdout.lines().last().unwrap_or_default();
    ensure_eq(last, format!("   WasmEdge 0.17.1 from {place}").as_str())
}

/// A message on some lines, as one line.
fn paragraph(output: &Output) -> String {
    output.stderr.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn the_next_stable_release_comes_first(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.17.1-3", "sid=0.17.1-4"])?;
    comes_from(&tree.find()?.success()?, "Debian forky (libwasmedge-dev 0.17.1-3)")?;
    let header = tree.read("found/root/usr/include/wasmedge/version.h")?;
    ensure_eq(header.as_str(), "#define WASMEDGE_VERSION \"0.17.1\"\n")?;
    // The packages are known by version and digest.
    let digest = shell(&tree.folder, "sha256sum archive/pool/forky.deb", &[])?.stdout;
    let digest = digest.split_whitespace().next().ok_or("no digest")?;
    let packages = format!("libwasmedge-dev 0.17.1-3 {digest}\n");
    ensure_eq(tree.read("found/packages")?, packages)
}

fn then_comes_sid(test: &Test) -> Outcome {
    // A newer version, none, and an unreadable suite.
    for suites in [
        &["forky=0.18.0-1", "sid=1:0.17.1+ds-2+b3"][..],
        &["forky=", "sid=1:0.17.1+ds-2+b3"],
        &["sid=1:0.17.1+ds-2+b3"],
    ] {
        let tree = Tree::new(test, suites)?;
        let place = "Debian sid (libwasmedge-dev 1:0.17.1+ds-2+b3)";
        comes_from(&tree.find()?.success()?, place)?;
        fs::remove_dir_all(tree.folder)?;
    }
    Ok(())
}

fn then_come_the_releases_of_wasmedge(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.18.0-1", "sid=0.17.0-1"])?.with_release()?;
    let place = format!("file://{}/releases/0.17.1/release.tar.gz", tree.folder.display());
    comes_from(&tree.find()?.success()?, &place)?;
    // The library, and what it needs of this machine.
    let libraries = shell(&tree.folder, "ls found/root/usr/lib/*/", &[])?.success()?.stdout;
    for name in ["libwasmedge.so.0", "libm.so.6", "libc.so.6", "libgcc_s.so.1"] {
        ensure(libraries.lines().any(|line| line == name), format!("no {name} in {libraries}"))?;
    }
    ensure(tree.read("found/packages")?.starts_with("wasmedge 0.17.1 "), "it is not noted")
}

fn an_archive_of_another_digest_is_refused(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=", "sid="])?.with_release()?;
    let archive = tree.folder.join("releases/0.17.1/release.tar.gz");
    let mut bytes = fs::read(&archive)?;
    bytes.push(0);
    fs::write(&archive, bytes)?;
    let output = tree.find()?.code(3)?;
    let said = paragraph(&output);
    ensure(said.contains("release.tar.gz has another digest than expected"), said)?;
    ensure(!tree.folder.join("found/root").exists(), "it was unpacked")
}

fn without_any_there_is_advice(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.18.0-1", "sid="])?;
    let said = paragraph(&tree.find()?.code(3)?);
    for words in [
        "a version with which the tests have passed (0.17.1): Debian forky has 0.18.0-1; \
         Debian sid has no WasmEdge; file://",
        "/releases cannot be reached (curl: (37) ",
        "For Linux containers alone, run `make rt`.",
        "run `make build WASMEDGE_ROOT=DIRECTORY`:",
        "add it to packaging/wasmedge/tested.",
    ] {
        ensure(said.contains(words), format!("no {words:?} in: {said}"))?;
    }
    // The build does not go further.
    let build = tree.command("packaging/wasmedge/build", &["out"]);
    let said = paragraph(&Output::of(build)?.code(3)?);
    ensure(said.contains("run `make rt`"), said)?;
    ensure(!tree.folder.join("out").exists(), "something was built")
}

fn a_directory_of_the_packager_is_the_only_place(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.17.1-3", "sid=0.17.1-4"])?;
    shell(&tree.folder, RELEASE, &["own", "0.17.1"])?.success()?;
    let find = |root: &str| {
        let mut command = tree.command("packaging/wasmedge/source", &["found"]);
        command.env("WASMEDGE_ROOT", root);
        Output::of(command)
    };
    let own = tree.folder.join("own");
    comes_from(&find("own")?.success()?, "WASMEDGE_ROOT=own")?;
    let libraries = shell(&tree.folder, "ls found/root/usr/lib/*/", &[])?.success()?.stdout;
    ensure(libraries.contains("libwasmedge.so.0\n"), libraries)?;
    // A changed library is taken again, and an incomplete directory is an error.
    let noted = tree.read("found/packages")?;
    shell(&tree.folder, "cc -shared -o own/lib64/libwasmedge.so.0 -x c /dev/null", &[])?
        .success()?;
    find("own")?.success()?;
    ensure(tree.read("found/packages")? != noted, "the old library is still there")?;
    let refused = |root: &str, why: &str| -> Outcome {
        let said = paragraph(&find(root)?.code(3)?);
        let words = format!("WASMEDGE_ROOT={root} cannot be used: {why}");
        ensure(said.contains(&words), format!("no {words:?} in: {said}"))?;
        ensure(said.contains("run `make rt`"), said)
    };
    let other = "it has WasmEdge 0.18.0, and the tests have passed with 0.17.1.";
    fs::write(own.join("include/wasmedge/version.h"), "#define WASMEDGE_VERSION \"0.18.0\"\n")?;
    fs::write(own.join("lib64/libwasmedge.so.0"), "no library")?;
    refused("own", other)?;
    fs::write(own.join("include/wasmedge/version.h"), "#define WASMEDGE_VERSION \"0.17.1\"\n")?;
    refused("own", "its library cannot be loaded (")?;
    fs::remove_file(own.join("lib64/libwasmedge.so"))?;
    refused("own", "it has no include/wasmedge/wasmedge.h, or no lib/libwasmedge.so.")?;
    refused("/none", "it has no include/wasmedge/wasmedge.h, or no lib/libwasmedge.so.")
}

fn a_version_without_tests_is_not_used(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.17.1-3", "sid=0.17.2-1"])?;
    let list = tree.folder.join("packaging/wasmedge/tested");
    fs::write(&list, "# 0.17.1 has no tests\n0.17.2 none 0 none\n")?;
    let output = tree.find()?.success()?;
    let last = output.stdout.lines().last().unwrap_or_default();
    ensure_eq(last, "   WasmEdge 0.17.2 from Debian sid (libwasmedge-dev 0.17.2-1)")
}

fn what_was_found_is_not_looked_for_again(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.17.1-3", "sid=0.17.1-4"])?;
    tree.find()?.success()?;
    fs::remove_dir_all(tree.folder.join("archive"))?;
    let again = tree.find()?.success()?;
    ensure_eq(
        again.stdout.as_str(),
        "   WasmEdge 0.17.1 from Debian forky (libwasmedge-dev 0.17.1-3)\n",
    )?;
    // It is, if the list of versions has changed.
    let list = tree.folder.join("packaging/wasmedge/tested");
    fs::write(&list, "0.17.2 none 0 none\n")?;
    tree.find()?.code(3).map(drop)
}

fn make_fails_before_it_builds_anything(test: &Test) -> Outcome {
    let tree = Tree::new(test, &["forky=0.18.0-1", "sid=0.18.0-1"])?;
    for target in ["build", "demo", "engines"] {
        let output = Output::of(tree.command("make", &[target]))?.code(2)?;
        let said = paragraph(&output);
        ensure(said.contains("For Linux containers alone, run `make rt`."), said)?;
        ensure(!output.stdout.contains("ran packaging/wasmtime/build"), output.stdout.as_str())?;
        ensure(!output.stdout.contains("ran packaging/demo"), output.stdout)?;
    }
    let output = Output::of(tree.command("make", &["rt"]))?.success()?;
    ensure(output.stdout.contains("ran packaging/build-rt"), output.stdout)?;
    // A directory on the command line reaches the script.
    let output = Output::of(tree.command("make", &["build", "WASMEDGE_ROOT=/none"]))?.code(2)?;
    let said = paragraph(&output);
    ensure(said.contains("WASMEDGE_ROOT=/none cannot be used"), said)
}
