//! New namespaces, and joined ones.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip, under_a_filter_of_families};

super::tests! { "namespaces":
    are_all_new, are_the_hosts_when_not_asked_for, can_be_joined_by_path, a_pid_namespace_can_be_joined,
    have_their_host_name, a_network_device_whose_name_is_taken_stays, take_sysctls_for_all_before_those_for_one, have_loopback_up, have_loopback_up_in_a_service_of_few_addresses, take_sysctls, take_sysctls_of_users, take_no_sysctl_that_another_field_sets, a_user_namespace_maps_root, a_user_namespace_can_join_a_network,
    a_time_namespace_has_its_offsets, a_user_namespace_without_mappings_has_its_makers_ids, one_of_two_mappings_is_an_error,
    root_of_a_namespace_with_all_ids_is_not_root_of_the_host,
    a_network_device_moves_in, a_network_device_moves_into_a_namespace_that_is_joined,
}

/// Compares the namespaces of a container's first process with those of the tests.
fn differ(test: &Test, kinds: &[(&str, &str)], expected: bool) -> Outcome {
    let mut bundle = test.sh("exec sleep 60")?;
    for (kind, _) in kinds {
        bundle = bundle.namespace(json!({ "type": kind }));
    }
    if !expected {
        bundle = bundle.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] == "mount");
            }
        });
    }
    let pid = bundle.start()?.pid()?;
    for (kind, link) in kinds {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{link}"))?;
        let ours = fs::read_link(format!("/proc/self/ns/{link}"))?;
        ensure(
            (theirs != ours) == expected,
            format!("{kind}: {} and {}", theirs.display(), ours.display()),
        )?;
    }
    Ok(())
}

fn are_all_new(test: &Test) -> Outcome {
    let kinds = [
        ("pid", "pid"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("mount", "mnt"),
        ("cgroup", "cgroup"),
    ];
    differ(test, &kinds, true)
}

fn are_the_hosts_when_not_asked_for(test: &Test) -> Outcome {
    differ(test, &[("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")], false)
}

fn can_be_joined_by_path(test: &Test) -> Outcome {
    let first =
        test.sh("exec sleep 60")?.edit(|config| config["hostname"] = json!("first")).start()?;
    let pid = first.pid()?;
    let mut bundle = test.sh("exec sleep 60")?;
    for (kind, link) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        bundle =
            bundle.namespace(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{link}") }));
    }
    let second = bundle.start()?.pid()?;
    for link in ["net", "ipc", "uts"] {
        ensure_eq(
            fs::read_link(format!("/proc/{second}/ns/{link}"))?,
            fs::read_link(format!("/proc/{pid}/ns/{link}"))?,
        )?;
    }
    ensure(
        fs::read_link(format!("/proc/{second}/ns/pid"))?
            != fs::read_link(format!("/proc/{pid}/ns/pid"))?,
        "pid",
    )
}

fn a_pid_namespace_can_be_joined(test: &Test) -> Outcome {
    let first = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/pid", first.pid()?);
    let bundle = test
        .sh("[ $$ -gt 1 ] && ps | grep -c 'sleep 60'")?
        .namespace(json!({ "type": "pid", "path": path }));
    let output = bundle.run()?.success()?;
    ensure(output.stdout.trim() != "0", output.stdout)
}

fn have_their_host_name(test: &Test) -> Outcome {
    let bundle = test.sh("hostname; cat /proc/sys/kernel/domainname")?;
    bundle
        .edit(|config| {
            config["hostname"] = json!("this-one");
            if test.host.is_rt {
                config["domainname"] = json!("example.org");
            }
        })
        .run()?
        .success()
        .and_then(|output| ensure(output.stdout.starts_with("this-one\n"), output.stdout))
}

fn have_loopback_up(test: &Test) -> Outcome {
    let output = test.sh("ip address show lo")?.run()?.success()?;
    ensure(output.stdout.contains("127.0.0.1") && output.stdout.contains("LOWER_UP"), output.stdout)
}

fn take_sysctls(test: &Test) -> Outcome {
    let bundle = test.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced")?;
    let sysctl = json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" });
    bundle.edit(|config| config["linux"]["sysctl"] = sysctl).run()?.success()?.stdout("1\n1\n")?;
    ensure(
        fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?.trim() == "0",
        "the host was changed",
    )
}

/// Changes the owner of the directories. All rootfs have the same busybox, so that stays root's.
pub(super) fn give_to_root_of_the_namespace(rootfs: &Path) -> Outcome {
    for path in ["", "proc", "dev", "sys", "tmp"] {
        std::os::unix::fs::chown(rootfs.join(path), Some(100_000), Some(100_000))?;
    }
    Ok(())
}

/// The root of the user namespace has another id on the host.
pub(super) fn in_user_namespace<'a>(
    bundle: crate::harness::Bundle<'a>,
) -> Outcome<crate::harness::Bundle<'a>> {
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    give_to_root_of_the_namespace(&bundle.rootfs())?;
    Ok(bundle.namespace(json!({ "type": "user" })).edit(|config| {
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    }))
}

fn a_user_namespace_maps_root(test: &Test) -> Outcome {
    let bundle = in_user_namespace(
        test.sh("id -u; touch /tmp/new; echo x > /dev/null; head -c 1 /dev/zero | wc -c")?,
    )?;
    bundle.run()?.success()?.stdout("0\n1\n")?;
    let made = fs::metadata(bundle.rootfs().join("tmp/new"))?;
    ensure_eq(std::os::unix::fs::MetadataExt::uid(&made), 100_000)
}

fn a_user_namespace_can_join_a_network(test: &Test) -> Outcome {
    let first = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/net", first.pid()?);
    // Without a sysfs, which only the owner of the network namespace may mount.
    let bundle = in_user_namespace(test.sh("readlink /proc/self/ns/net")?)?.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["type"] != "sysfs");
        }
    });
    let expected = fs::read_link(&path)?;
    let output = bundle.namespace(json!({ "type": "network", "path": path })).run()?.success()?;
    output.stdout(&format!("{}\n", expected.display())).map(drop)
}

fn a_time_namespace_has_its_offsets(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("cat /proc/uptime")?.namespace(json!({ "type": "time" }));
    let output = bundle
        .edit(|config| {
            config["linux"]["timeOffsets"] =
                json!({ "boottime": { "secs": 1_000_000_000, "nanosecs": 0 } });
        })
        .run()?
        .success()?;
    let uptime: f64 = output.stdout.split(' ').next().unwrap_or_default().parse()?;
    ensure(uptime > 1e9, output.stdout)
}

/// Runs a bundle in a network namespace with `v0`, one end of a pair of veth devices, which has an
/// address.
fn with_cable(test: &Test, bundle: &crate::harness::Bundle<'_>) -> Outcome<Output> {
    if !Path::new("/usr/sbin/ip").exists() {
        return skip("the host has no iproute2");
    }
    bundle.write()?;
    let mut command = std::process::Command::new("unshare");
    let script = format!(
        "/usr/sbin/ip link add v0 type veth peer v1; /usr/sbin/ip addr add 10.9.8.7/24 dev v0; \"$@\" || code=$?; /usr/sbin/ip -o link > {}/left; exit ${{code:-0}}",
        test.folder.display()
    );
    command.args(["--net", "sh", "-ec", &script, "sh"]).arg(&test.host.runtime);
    command.arg("--root").arg(test.state_root());
    if test.host.by_systemd {
        command.arg("--systemd-cgroup");
    }
    command.args(["run", "--bundle"]).arg(&bundle.folder).arg(test.id());
    Output::of(command)
}

fn a_network_device_moves_in(test: &Test) -> Outcome {
    let bundle = test.sh(
        "ip -o addr show dev eth7 | grep -o 10.9.8.7/24; ip -o link show dev eth7 | grep -o ,UP",
    )?;
    let bundle =
        bundle.edit(|config| config["linux"]["netDevices"] = json!({ "v0": { "name": "eth7" } }));
    with_cable(test, &bundle)?.success()?.stdout("10.9.8.7/24\n,UP\n")?;
    let left = fs::read_to_string(test.folder.join("left"))?;
    ensure(!left.contains("v0"), left)
}

fn a_network_device_moves_into_a_namespace_that_is_joined(test: &Test) -> Outcome {
    let other = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/net", other.pid()?);
    let bundle = test
        .sh("ip -o addr show dev v0 | grep -o 10.9.8.7/24")?
        .namespace(json!({ "type": "network", "path": path }))
        .edit(|config| config["linux"]["netDevices"] = json!({ "v0": {} }));
    with_cable(test, &bundle)?.success()?.stdout("10.9.8.7/24\n").map(drop)
}

/// If the new name is taken, the device must stay on the host. Otherwise the kernel would delete it
/// together with the namespace.
fn a_network_device_whose_name_is_taken_stays(test: &Test) -> Outcome {
    test.only_rt()?;
    let other = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/net", other.pid()?);
    for joined in [false, true] {
        let bundle = test.sh("true")?.edit(|config| {
            config["linux"]["netDevices"] = json!({ "v0": { "name": "lo" } });
        });
        let network = json!({ "type": "network", "path": path });
        let bundle = if joined { bundle.namespace(network) } else { bundle };
        with_cable(test, &bundle)?.fails_with("has a device `lo` already")?;
        let left = fs::read_to_string(test.folder.join("left"))?;
        ensure(left.contains("v0"), left)?;
    }
    Ok(())
}

/// A sysctl for all interfaces also sets the value of each interface.
fn take_sysctls_for_all_before_those_for_one(test: &Test) -> Outcome {
    test.only_rt()?;
    for _ in 0..5 {
        let bundle = test
            .sh("cd /proc/sys/net/ipv4; cat ip_forward conf/lo/forwarding conf/all/forwarding")?;
        let sysctl = json!({ "net.ipv4.ip_forward": "1", "net.ipv4.conf.lo.forwarding": "0", "net.ipv4.conf.all.rp_filter": "1" });
        let bundle = bundle.edit(|config| config["linux"]["sysctl"] = sysctl.clone());
        bundle.run()?.success()?.stdout("1\n0\n1\n")?;
    }
    Ok(())
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// crun does the same. runc refuses such a configuration.
fn a_user_namespace_without_mappings_has_its_makers_ids(test: &Test) -> Outcome {
    test.only_rt()?;
    let script =
        "cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/new; stat -c %u:%g /tmp/new";
    let own = fs::read_to_string("/proc/self/uid_map")?;
    let first = own.split_whitespace().collect::<Vec<_>>();
    let map = [first[0], first[0], first[2]];
    for (user, group) in [(0, 0), (1000, 1001)] {
        let bundle = test.sh(script)?.namespace(json!({ "type": "user" })).edit(|config| {
            config["process"]["user"] = json!({ "uid": user, "gid": group });
        });
        std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(user), Some(group))?;
        let output = bundle.run()?.success()?;
        let owner = format!("{user}:{group}");
        ensure_eq(words(&output.stdout), [&map[..], &map, &[owner.as_str()]].concat())?;
    }
    // If the caller's user namespace has fewer ids, the new one has these.
    let bundle = test.sh("cat /proc/self/uid_map")?.namespace(json!({ "type": "user" }));
    let bundle = bundle.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["type"] != "devpts");
        }
    });
    bundle.write()?;
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(&test.host.runtime);
    command.arg("--root").arg(test.state_root()).args([
        "--cgroup-manager",
        "disabled",
        "run",
        "--bundle",
    ]);
    let output = Output::of({
        command.arg(&bundle.folder).arg(test.id());
        command
    })?;
    ensure_eq(words(&output.success()?.stdout), vec!["0", "0", "1"])
}

fn one_of_two_mappings_is_an_error(test: &Test) -> Outcome {
    test.only_rt()?;
    for (given, missing) in [("uidMappings", "gidMappings"), ("gidMappings", "uidMappings")] {
        let bundle = test.sh("true")?.namespace(json!({ "type": "user" })).edit(|config| {
            config["linux"][given] = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
        });
        let words = format!("`linux.{missing}` is missing for the new user namespace");
        bundle.try_create(&test.id())?.fails_with(&words)?;
    }
    Ok(())
}

/// systemd's `PrivateUsers=full` makes such a namespace: it has the id map of the initial
/// namespace, but not its rights.
fn root_of_a_namespace_with_all_ids_is_not_root_of_the_host(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test
        .sh("cat /proc/self/uid_map; echo x > /dev/null; stat -c %t:%T /dev/null; exec sleep 60")?;
    bundle.write()?;
    let id = test.id();
    let root = test.state_root().display().to_string();
    let folder = bundle.folder.display().to_string();
    // The script waits until the ids are mapped.
    let script = format!(
        "read mapped; rt() {{ {} --root {root} \"$@\"; }}; rt create --bundle {folder} {id} && rt start {id} && \
         until grep -q 1:3 \"$0\"; do sleep 0.05; done; rt exec {id} id -u; \
         rt checkpoint {id} 2>&1; rt kill {id} KILL; until rt delete {id} 2> /dev/null; do :; done",
        test.host.runtime.display()
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--mount", "timeout", "30", "sh", "-c", &script]);
    let [out, err] = ["out", "err"].map(|name| test.folder.join(name));
    command.arg(&out);
    command.stdin(std::process::Stdio::piped());
    command.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
    let mut child = command.spawn()?;
    let namespace = format!("/proc/{}/ns/user", child.id());
    let own = fs::read_link("/proc/self/ns/user")?;
    crate::harness::wait_until("it is in its namespace", || {
        fs::read_link(&namespace).is_ok_and(|there| there != own)
    })?;
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), "0 0 4294967295")?;
    }
    use std::io::Write;
    child.stdin.take().ok_or("no input")?.write_all(b"\n")?;
    let status = child.wait()?;
    let (said, wrong) = (fs::read_to_string(out)?, fs::read_to_string(err)?);
    ensure(status.success(), format!("{said}{wrong}"))?;
    ensure(
        words(&said).starts_with(&["0", "0", "4294967295", "1:3", "0"]),
        format!("{said}{wrong}"),
    )?;
    ensure(said.contains("a checkpoint requires root of the host"), format!("{said}{wrong}"))
}

/// `RestrictAddressFamilies=` of a service is a filter around the runtime. With another family,
/// socket(2) fails with EAFNOSUPPORT.
fn have_loopback_up_in_a_service_of_few_addresses(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("cat /sys/class/net/lo/flags")?;
    bundle.write()?;
    // AF_UNIX and AF_NETLINK, then AF_UNIX and AF_INET. In a joined network namespace, `rt` does
    // not bring up loopback.
    for allowed in [[1, 16], [1, 2]] {
        let args = bundle.command_line("run", &test.id());
        // IFF_UP and IFF_LOOPBACK (`<linux/if.h>`).
        let output = Output::of(under_a_filter_of_families(test, &allowed, &args)?)?;
        output.success()?.stdout("0x9\n")?;
    }
    let args = bundle.command_line("run", &test.id());
    let output = Output::of(under_a_filter_of_families(test, &[1, 1], &args)?)?;
    output.fails_with("a filter around rt forbids `socket(AF_INET)`, `socket(AF_NETLINK)`")?;
    let other = test.sh("exec sleep 60")?.start()?;
    let path = format!("/proc/{}/ns/net", other.pid()?);
    let bundle = test.sh("echo ran")?.namespace(json!({ "type": "network", "path": path }));
    bundle.write()?;
    let args = bundle.command_line("run", &test.id());
    Output::of(under_a_filter_of_families(test, &[1, 1], &args)?)?.success()?.stdout("ran\n")?;
    Ok(())
}

fn take_sysctls_of_users(test: &Test) -> Outcome {
    // runc supports them since version 1.4.
    test.only_rt()?;
    let names = ["user.max_net_namespaces", "user/max_user_namespaces", "user.max_ipc_namespaces"];
    let script = "cd /proc/sys/user; cat max_net_namespaces max_user_namespaces max_ipc_namespaces";
    let before = fs::read_to_string("/proc/sys/user/max_net_namespaces")?;
    let sysctl = |values: [&str; 3]| -> Value {
        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
    };
    let bundle =
        test.sh(script)?.edit(|config| config["linux"]["sysctl"] = sysctl(["3", "4", "5"]));
    let own = in_user_namespace(bundle.clone())?;
    own.run()?.success()?.stdout("3\n4\n5\n")?;
    ensure_eq(fs::read_to_string("/proc/sys/user/max_net_namespaces")?, before)?;
    // In a joined user namespace.
    let other = in_user_namespace(test.sh("exec sleep 60")?)?.start()?;
    let path = format!("/proc/{}/ns/user", other.pid()?);
    let joined = own.clone().namespace(json!({ "type": "user", "path": path }));
    joined.run()?.success()?.stdout("3\n4\n5\n")?;
    // Without a user namespace, these sysctls are the host's.
    test.sh(script)?
        .edit(|config| config["linux"]["sysctl"] = sysctl(["3", "4", "5"]))
        .run()?
        .fails_with("is not in a namespace of the container's own")
        .map(drop)
}

fn take_no_sysctl_that_another_field_sets(test: &Test) -> Outcome {
    // runc always refuses `kernel.hostname`. crun behaves as this test expects.
    test.only_rt()?;
    for (name, field) in [
        ("kernel.hostname", "hostname"),
        ("kernel/hostname", "hostname"),
        ("kernel.domainname", "domainname"),
    ] {
        let with = |field: Option<&str>| -> Outcome<crate::harness::Bundle<'_>> {
            Ok(test.sh("cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname")?.edit(
                |config| {
                    config["linux"]["sysctl"] = json!({ name: "by-sysctl" });
                    if let Some(object) = config.as_object_mut() {
                        object.remove("hostname");
                    }
                    if let Some(field) = field {
                        config[field] = json!("by-field");
                    }
                },
            ))
        };
        with(Some(field))?.run()?.fails_with(&format!("`{field}` set the same"))?;
        let output = with(None)?.run()?.success()?;
        ensure(output.stdout.contains("by-sysctl\n"), output.stdout)?;
        // A container without its own UTS namespace.
        let bundle = with(None)?.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "uts");
            }
        });
        bundle.run()?.fails_with("is not in a namespace of the container's own")?;
    }
    Ok(())
}
