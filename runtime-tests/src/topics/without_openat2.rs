//! A filter around the runtime forbids `openat2(2)`, as an older Docker's does for the programs in
//! its containers. Every lookup must have the same limits and the same results.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, under_a_filter};

super::tests! { "without_openat2":
    links_of_the_image_lead_into_it, the_runtime_is_not_one_of_the_programs,
    the_runtime_cannot_be_a_hook, a_magic_link_is_no_way_to_a_pid_file,
    tmp_is_not_led_out_of_the_root, a_modules_directory_is_not_a_link,
}

/// EPERM and ENOSYS: a filter may answer either.
const ANSWERS: [u32; 2] = [1, 38];

fn rt(test: &Test, errno: u32, words: &[String]) -> Outcome<Output> {
    const OPENAT2: u32 = 437;
    Output::of(under_a_filter(test, OPENAT2, errno, words)?)
}

fn links_of_the_image_lead_into_it(test: &Test) -> Outcome {
    let script = "cat /far/file /up/file; grep -Eo ' /(a/b|c) ' /proc/self/mountinfo";
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content\n")?;
    for errno in ANSWERS {
        let bundle = test.sh(script)?;
        symlink("/a/b", bundle.rootfs().join("far"))?;
        fs::create_dir(bundle.rootfs().join("c"))?;
        symlink("../../../c/.", bundle.rootfs().join("up"))?;
        let bind = |to: &str| json!({ "destination": to, "source": volume, "options": ["bind"] });
        let bundle = bundle.mount(bind("/far")).mount(bind("/up"));
        bundle.write()?;
        rt(test, errno, &bundle.command_line("run", &test.id()))?
            .success()?
            .stdout("content\ncontent\n /a/b \n /c \n")?;
    }
    Ok(())
}

/// CVE-2019-5736. The text of the link is a path, at which the image could have a program.
fn the_runtime_is_not_one_of_the_programs(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    for errno in ANSWERS {
        let exec = |program: &str, word: &str| {
            rt(test, errno, &["exec", &container.id, program, word].map(str::to_owned))
        };
        exec("/proc/self/exe", "--version")?
            .fails_with("leads out of the container: permission denied")?;
        exec("/proc/self/root/bin/echo", "inside")?.success()?.stdout("inside\n")?;
        for link in ["/way", "/far"] {
            let bundle = test.linux(&[link])?;
            symlink("/proc/self/exe", bundle.rootfs().join("way"))?;
            symlink("way", bundle.rootfs().join("far"))?;
            bundle.write()?;
            rt(test, errno, &bundle.command_line("run", &test.id()))?
                .fails_with("leads out of the container: permission denied")?;
        }
    }
    Ok(())
}

fn the_runtime_cannot_be_a_hook(test: &Test) -> Outcome {
    test.only_rt()?;
    for errno in ANSWERS {
        let path = "/proc/thread-self/root/link";
        let bundle = test.sh("echo ran")?.edit(|config| {
            config["hooks"] =
                json!({ "startContainer": [{ "path": path, "args": ["rt", "--version"] }] });
        });
        symlink("/proc/self/exe", bundle.rootfs().join("link"))?;
        bundle.write()?;
        rt(test, errno, &bundle.command_line("create", &test.id()))?.fails_with(&format!(
            "run startContainer hook `{path}`: leads out of the container: permission denied"
        ))?;
    }
    Ok(())
}

/// The link leads to a directory of the container. Its text leads to a directory of the host.
fn a_magic_link_is_no_way_to_a_pid_file(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.start()?;
    let inner = format!("/proc/{}", container.pid()?);
    let name = format!("rt-tests-{}", test.id());
    for errno in ANSWERS {
        for link in ["root", "cwd"] {
            let path = format!("{inner}/{link}/tmp/{name}");
            let words = ["exec", "--pid-file", &path, &container.id, "/bin/true"];
            rt(test, errno, &words.map(str::to_owned))?
                .fails_with(&format!("`{inner}/{link}` is a magic link"))?;
        }
        // `rt` follows a link that is not magic.
        let words = ["exec", "--pid-file", "/proc/self/none", &container.id, "/bin/true"];
        rt(test, errno, &words.map(str::to_owned))?
            .fails_with("write pid file `/proc/self/none`")?;
    }
    ensure(!Path::new("/tmp").join(&name).exists(), "it was written on the host")
}

/// CRIU looks for `/tmp` on the host.
fn tmp_is_not_led_out_of_the_root(test: &Test) -> Outcome {
    test.only_rt()?;
    for errno in ANSWERS {
        for (way, leads_out) in
            [("../../../etc", true), ("/etc", true), ("inner/way", true), ("elsewhere", false)]
        {
            let bundle = test.sh("exec sleep 60")?;
            let (tmp, inner) = (bundle.rootfs().join("tmp"), bundle.rootfs().join("inner"));
            fs::create_dir_all(bundle.rootfs().join("elsewhere"))?;
            let _ = fs::remove_dir(&tmp);
            symlink(way, tmp)?;
            fs::create_dir(&inner)?;
            symlink("../..", inner.join("way"))?;
            let container = bundle.start()?;
            let images = format!("--image-path={}", test.folder.join("images").display());
            let output =
                rt(test, errno, &["checkpoint", &images, &container.id].map(str::to_owned))?;
            let said = output.stderr.contains("`/tmp` in its root is a link that leads out of it");
            ensure_eq(said, leads_out)?;
        }
    }
    Ok(())
}

/// By such a link, an image could show its root in the place of a directory of data.
fn a_modules_directory_is_not_a_link(test: &Test) -> Outcome {
    const DIRS: &str = "run.oci.wasm.dirs";
    for errno in ANSWERS {
        let bundle = test.wasm("probe", &["ls", "/data"])?.annotation(DIRS, "/data");
        fs::create_dir(bundle.rootfs().join("data"))?;
        fs::write(bundle.rootfs().join("data/file"), "")?;
        bundle.write()?;
        let output = rt(test, errno, &bundle.command_line("run", &test.id()))?.success()?;
        ensure_eq(output.stdout.as_str(), "file\n")?;
        for (target, path) in [("/", "/link"), (".", "/inner/link")] {
            let bundle = test.wasm("probe", &["ls", "/"])?.annotation(DIRS, path);
            fs::create_dir(bundle.rootfs().join("inner"))?;
            symlink(target, bundle.rootfs().join(&path[1..]))?;
            bundle.write()?;
            rt(test, errno, &bundle.command_line("create", &test.id()))?
                .fails_with(&format!("`{DIRS}`: `{path}`: it leads elsewhere"))?;
        }
    }
    Ok(())
}
