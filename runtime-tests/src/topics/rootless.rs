//! Containers of ordinary users, and of the root of a user namespace.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{
    Bundle, Outcome, Output, Test, copy_program, ensure, ensure_eq, ordinary_user,
};

super::tests! { "rootless":
    an_ordinary_user_is_root_in_its_container, a_link_can_be_copied_by_a_user, further_ids_are_those_that_the_system_has_for_the_user,
    a_configured_mapping_is_taken, ids_that_the_user_does_not_have_are_refused, a_container_goes_through_its_life,
    limits_that_cannot_be_kept_are_refused, what_takes_a_cgroup_says_so, root_of_a_user_namespace_needs_no_help, a_users_own_runtime_is_copied_before_it_enters,
    the_network_of_the_host_can_be_shared, a_device_is_found_by_its_number, a_device_of_the_rootfs_cannot_be_used, a_cgroup_cannot_be_delegated_where_there_is_none,
}

const UID: u32 = 1000;

/// A bundle whose files belong to the user, and a runtime that the user can execute.
pub(super) fn owned<'a>(test: &Test, bundle: Bundle<'a>) -> Outcome<Bundle<'a>> {
    owned_by(test, bundle, UID)
}

pub(super) fn owned_by<'a>(test: &Test, bundle: Bundle<'a>, uid: u32) -> Outcome<Bundle<'a>> {
    let runtime = test.folder.join("rt");
    if !runtime.exists() {
        copy_program(&test.host.runtime, &runtime)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir_all(test.state_root())?;
    chown(test.state_root(), Some(uid), Some(uid))?;
    own(&bundle.folder, uid)?;
    // An ordinary user may neither map group 5 nor make a cgroup.
    let bundle = bundle.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["type"] != "devpts");
        }
        config["linux"]["resources"] = json!({});
    });
    bundle.write()?;
    Ok(bundle)
}

fn own(path: &Path, uid: u32) -> Outcome {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

/// The runtime of an ordinary user with these subordinate ids.
pub(super) fn as_user(
    test: &Test,
    subids: &str,
    before: &[&str],
    args: &[&str],
) -> Outcome<Command> {
    let mut command = ordinary_user(test, Path::new("/"), subids)?;
    command.arg("--unset=XDG_RUNTIME_DIR").args(before).arg(test.folder.join("rt"));
    command.arg("--root").arg(test.state_root()).args(args);
    Ok(command)
}

pub(super) const SUBIDS: &str = "tester:100000:65536\n";

fn run(test: &Test, bundle: &Bundle<'_>, subids: &str) -> Outcome<Output> {
    let folder = bundle.folder.display().to_string();
    Output::of(as_user(test, subids, &[], &["run", "--bundle", &folder, &test.id()])?)
}

/// Runs a bundle as an ordinary user, with arguments for env(1).
pub(super) fn run_with(test: &Test, bundle: Bundle<'_>, before: &[&str]) -> Outcome<Output> {
    let bundle = owned(test, bundle)?;
    let folder = bundle.folder.display().to_string();
    Output::of(as_user(test, SUBIDS, before, &["run", "--bundle", &folder, &test.id()])?)
}

/// Replaces each run of spaces in the kernel's table by one space.
fn squeezed(output: &Output) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    output.stdout.lines().map(|line| words(line) + "\n").collect()
}

fn an_ordinary_user_is_root_in_its_container(test: &Test) -> Outcome {
    let script = "id -u; cat /proc/self/uid_map; touch /tmp/new; echo x > /dev/null";
    let bundle = owned(test, test.sh(script)?)?;
    let output = run(test, &bundle, "")?.success()?;
    ensure_eq(squeezed(&output).as_str(), "0\n0 1000 1\n")?;
    let made = fs::metadata(bundle.rootfs().join("tmp/new"))?;
    ensure_eq(std::os::unix::fs::MetadataExt::uid(&made), UID)
}

fn further_ids_are_those_that_the_system_has_for_the_user(test: &Test) -> Outcome {
    let bundle = owned(
        test,
        test.sh(
            "cat /proc/self/uid_map; cat /proc/self/gid_map; chown 7:8 /tmp; stat -c %u:%g /tmp",
        )?,
    )?;
    let bundle = bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_FOWNER"]);
        }
    });
    bundle.write()?;
    let output = run(test, &bundle, SUBIDS)?;
    ensure(output.stdout.contains("65536"), format!("{}{}", output.stdout, output.stderr))?;
    let map = "0 1000 1\n1 100000 65536\n";
    ensure(squeezed(&output).starts_with(&format!("{map}{map}")), output.stdout)
}

fn mapped<'a>(test: &'a Test, first: u32) -> Outcome<Bundle<'a>> {
    let bundle = test.sh("cat /proc/self/uid_map")?.namespace(json!({ "type": "user" }));
    let bundle = bundle.edit(|config| {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }, { "containerID": 5, "hostID": first, "size": 10 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    owned(test, bundle)
}

fn a_configured_mapping_is_taken(test: &Test) -> Outcome {
    let output = run(test, &mapped(test, 100_007)?, SUBIDS)?.success()?;
    ensure_eq(squeezed(&output).as_str(), "0 1000 1\n5 100007 10\n")
}

fn ids_that_the_user_does_not_have_are_refused(test: &Test) -> Outcome {
    run(test, &mapped(test, 5)?, SUBIDS)?.fails_with("newgidmap").map(drop)
}

fn a_container_goes_through_its_life(test: &Test) -> Outcome {
    let bundle = owned(test, test.sh("exec sleep 60")?)?;
    let (folder, id) = (bundle.folder.display().to_string(), test.id());
    let rt = |args: &[&str]| Output::of(as_user(test, SUBIDS, &[], args)?);
    rt(&["create", "--bundle", &folder, &id])?.success()?;
    rt(&["start", &id])?.success()?;
    rt(&["exec", &id, "id", "-u"])?.success()?.stdout("0\n")?;
    let state: serde_json::Value = serde_json::from_str(&rt(&["state", &id])?.success()?.stdout)?;
    ensure_eq(state["status"].as_str(), Some("running"))?;
    rt(&["kill", &id, "KILL"])?.success()?;
    crate::harness::wait_until("it is dead", || {
        rt(&["state", &id]).is_ok_and(|output| output.stdout.contains("stopped"))
    })?;
    rt(&["delete", &id])?.success()?;
    rt(&["state", &id])?.fails_with("does not exist").map(drop)
}

/// Without a cgroup, these commands fail with this error. They do not print an empty list or
/// another error.
fn what_takes_a_cgroup_says_so(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = owned(test, test.sh("exec sleep 60")?)?.edit(|config| {
        config["linux"].as_object_mut().map(|linux| linux.remove("cgroupsPath"));
    });
    bundle.write()?;
    let (folder, id) = (bundle.folder.display().to_string(), test.id());
    let rt = |args: &[&str]| Output::of(as_user(test, SUBIDS, &[], args)?);
    rt(&["run", "--detach", "--bundle", &folder, &id])?.success()?;
    let state: serde_json::Value = serde_json::from_str(&rt(&["state", &id])?.success()?.stdout)?;
    rt(&["ps", "--format=json", &id])?.success()?.stdout(&format!("[{}]\n", state["pid"]))?;
    for args in
        [&["pause", &id][..], &["update", "--pids-limit=9", &id], &["events", "--stats", &id]]
    {
        rt(args)?.fails_with("the container has no cgroup of its own")?;
    }
    rt(&["delete", "--force", &id])?.success().map(drop)
}

fn limits_that_cannot_be_kept_are_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = owned(test, test.sh("true")?)?
        .edit(|config| config["linux"]["resources"] = json!({ "pids": { "limit": 9 } }));
    bundle.write()?;
    run(test, &bundle, SUBIDS)?.fails_with("limits need a cgroup").map(drop)
}

/// Init clones the link, because it has the rights in the user namespace.
fn a_link_can_be_copied_by_a_user(test: &Test) -> Outcome {
    let link = test.folder.join("link");
    std::os::unix::fs::symlink("file", &link)?;
    let mount =
        json!({ "destination": "/etc/link", "source": link, "options": ["bind", "copy-symlink"] });
    let bundle = owned(test, test.sh("readlink /etc/link")?)?.mount(mount);
    bundle.write()?;
    run(test, &bundle, SUBIDS)?.success()?.stdout("file\n").map(drop)
}

/// podman runs its runtime like this.
fn root_of_a_user_namespace_needs_no_help(test: &Test) -> Outcome {
    let bundle = owned(test, test.sh("id -u; cat /proc/self/uid_map; echo x > /dev/null")?)?;
    let (folder, id) = (bundle.folder.display().to_string(), test.id());
    let before = ["unshare", "--user", "--map-root-user", "--mount"];
    let command = as_user(test, "", &before, &["run", "--bundle", &folder, &id])?;
    let output = Output::of(command)?.success()?;
    ensure_eq(squeezed(&output).as_str(), "0\n0 1000 1\n")
}

/// Otherwise the root of the container could change the runtime through `/proc/self/exe`
/// (CVE-2019-5736).
fn a_users_own_runtime_is_copied_before_it_enters(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = owned(test, test.sh("true")?)?;
    chown(test.folder.join("rt"), Some(UID), Some(UID))?;
    let (folder, id) = (bundle.folder.display().to_string(), test.id());
    let pid_file = test.state_root().join("pid");
    let pid_option = format!("--pid-file={}", pid_file.display());
    let create = as_user(test, "", &[], &["create", "--bundle", &folder, &pid_option, &id])?;
    Output::of(create)?.success()?;
    let exe = fs::read_link(format!("/proc/{}/exe", fs::read_to_string(&pid_file)?))?;
    fs::remove_file(pid_file)?;
    ensure(exe.starts_with("/memfd:rt (deleted)"), exe.display())
}

fn the_network_of_the_host_can_be_shared(test: &Test) -> Outcome {
    let bundle = test.sh("test -d /sys/class/net/lo && echo there")?.edit(|config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    });
    run(test, &owned(test, bundle)?, "")?.success()?.stdout("there\n").map(drop)
}

fn a_cgroup_cannot_be_delegated_where_there_is_none(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = owned(test, test.sh("echo ran")?.annotation("run.oci.delegate-cgroup", "own"))?;
    let output = run(test, &bundle, "")?;
    if test.host.lane == "v2" {
        return output.success()?.stdout("ran\n").map(drop);
    }
    output.fails_with("handing on cgroups of v1 is not safe").map(drop)
}

/// Only the host's root may load the BPF program that would forbid the device. The cases are: the
/// container's own `/dev`, the `/dev` of the rootfs, and the root of a user namespace, as in LXC.
fn a_device_of_the_rootfs_cannot_be_used(test: &Test) -> Outcome {
    test.only_rt()?;
    let script =
        "(: > /node) 2>/dev/null && echo opened || echo refused; echo x > /dev/null && echo null";
    for (before, own_dev) in [
        (&[][..], true),
        (&[], false),
        (&["unshare", "--user", "--map-root-user", "--mount"], true),
    ] {
        // The kernel's log. Everybody may open it for writing, and that does no harm.
        let bundle = test.sh(script)?;
        let node = bundle.rootfs().join("node");
        let mut mknod = Command::new("mknod");
        let made = mknod.args(["-m", "666"]).arg(&node).args(["c", "1", "11"]).status()?;
        ensure(made.success(), "mknod")?;
        let bundle = owned(test, bundle)?;
        let bundle = bundle.edit(|config| {
            if let Some(mounts) = config["mounts"].as_array_mut() {
                mounts.retain(|mount| own_dev || mount["destination"] != "/dev");
            }
        });
        bundle.write()?;
        let (folder, id) = (bundle.folder.display().to_string(), test.id());
        let command = as_user(test, "", before, &["run", "--bundle", &folder, &id])?;
        Output::of(command)?.success()?.stdout("refused\nnull\n")?;
    }
    Ok(())
}

/// An ordinary user cannot make device nodes. The container sees the host's nodes, and `rt` asks
/// the kernel for their paths.
fn a_device_is_found_by_its_number(test: &Test) -> Outcome {
    test.only_rt()?;
    let device =
        |path: &str, minor: u32| json!({ "path": path, "type": "c", "major": 1, "minor": minor });
    let bundle =
        test.sh("echo x > /dev/nothing; head -c 3 /zeroes | wc -c; stat -c %t:%T /dev/full")?;
    let devices = json!([device("/dev/nothing", 3), device("/zeroes", 5), device("/dev/full", 7)]);
    let bundle = owned(test, bundle.edit(|config| config["linux"]["devices"] = devices))?;
    run(test, &bundle, "")?.success()?.stdout("3\n1:7\n")?;
    let bundle = owned(
        test,
        test.sh("true")?.edit(|config| {
            config["linux"]["devices"] = json!([device("/dev/full", 7), device("/dev/x", 99_999)]);
        }),
    )?;
    let output = run(test, &bundle, "")?.fails_with("the host has no char device 1:99999")?;
    ensure(output.stderr.contains("`linux.devices[1]`"), output.stderr)
}
