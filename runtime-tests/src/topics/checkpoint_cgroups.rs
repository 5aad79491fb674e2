//! Cgroups of restored containers. The images say which cgroups there are, and images are not
//! trusted. Whatever they say, `restore` makes and fills only cgroups inside the container's own
//! cgroup.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::checkpoint::{COUNT, images, needs_criu, piped, restore, restore_command, start, write};
use crate::harness::{Bundle, Container, Outcome, Test, cgroups_of, ensure, ensure_eq, skip};

super::tests! { "checkpoint_cgroups":
    a_process_comes_back_in_the_containers_cgroup, cgroups_of_others_stay_as_they_are, names_lead_to_no_file_of_the_hosts,
    a_root_of_a_namespace_is_the_containers_cgroup, processes_in_cgroups_side_by_side_come_back,
    cgroups_come_back_under_a_longer_name, limits_of_cgroups_below_come_back, the_containers_limits_are_the_configurations,
    the_modes_of_criu_work,
}

/// The name of a hierarchy, and the path of a process's cgroup in it.
fn cgroup_of(pid: i32) -> Outcome<(String, String)> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let paths = table.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let mut paths = paths.filter(|(name, path)| ["pids", ""].contains(name) && path.len() > 5);
    let (name, path) = paths.next().ok_or_else(|| format!("it is in no cgroup: {table}"))?;
    Ok((name.to_owned(), path.to_owned()))
}

/// Replaces bytes in the images by other bytes of the same length. The images are not trusted.
fn edit_image(test: &Test, from: &[u8], to: &[u8]) -> Outcome {
    ensure_eq(from.len(), to.len())?;
    let path = images(test).join("cgroup.img");
    let mut image = fs::read(&path)?;
    let at: Vec<usize> = (0..image.len()).filter(|at| image[*at..].starts_with(from)).collect();
    ensure(!at.is_empty(), "the image has it not")?;
    for at in at {
        image[at..at + to.len()].copy_from_slice(to);
    }
    Ok(fs::write(path, image)?)
}

/// An entry for a process's cgroup (`cg_member_entry`): the name of a hierarchy, and a path.
fn in_image(name: &str, path: &str) -> Outcome<Vec<u8>> {
    Ok([field(1, name.as_bytes())?, field(2, path.as_bytes())?].concat())
}

/// A field of a message (protobuf, "Encoding").
fn field(number: u8, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let length = u16::try_from(bytes.len())?;
    let [low, high] = [length & 0x7f, length >> 7].map(|part| u8::try_from(part).unwrap_or(0x7f));
    let length = if high == 0 { vec![low] } else { vec![low | 0x80, high] };
    Ok([&[number << 3 | 2], &length[..], bytes].concat())
}

/// Adds cgroups to the images. Each has these controllers, a path from the root, user 99 as its
/// owner, and a limit.
fn add_to_image(test: &Test, controllers: &[&[u8]], names: &[&[u8]]) -> Outcome {
    // Mode 0777, user 99 and group 99 (`cgroup_perms`).
    let everybodys = [8, 0xff, 3, 16, 99, 24, 99];
    let limit = [field(1, b"pids.max")?, field(2, b"5")?, field(3, &everybodys)?].concat();
    let mut message = Vec::new();
    for controller in controllers {
        message.extend(field(1, controller)?);
    }
    for name in names {
        let directory = [field(1, name)?, field(3, &limit)?, field(4, &everybodys)?].concat();
        message.extend(field(2, &directory)?);
    }
    let path = images(test).join("cgroup.img");
    let mut image = fs::read(&path)?;
    image.extend(field(2, &message)?);
    let length = u32::try_from(image.len() - 12)?.to_le_bytes();
    image[8..12].copy_from_slice(&length);
    Ok(fs::write(path, image)?)
}

/// A container with a checkpoint, and the cgroups of another container beside its own.
struct Beside<'a> {
    bundle: Bundle<'a>,
    /// The name of a hierarchy. Then the paths, in that hierarchy, of the container's cgroup and of
    /// the other one.
    name: String,
    own: String,
    other: String,
    /// The directories of the other cgroup, in all hierarchies.
    others: Vec<PathBuf>,
}

fn beside<'a>(test: &'a Test, bundle: Bundle<'a>) -> Outcome<Beside<'a>> {
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let (name, own) = cgroup_of(container.pid()?)?;
    // The other path is as long as the container's, so that it can replace that path in the images.
    let changed = |path: &str| format!("{}x", &path[..path.len() - 1]);
    let all = cgroups_of(&container.id);
    let others = all.iter().map(|path| changed(&path.display().to_string()).into()).collect();
    write(test, &container, &[])?.success()?;
    drop(container);
    let other = changed(&own);
    let beside = Beside { bundle, name, own, other, others };
    beside.others.iter().try_for_each(fs::create_dir)?;
    Ok(beside)
}

impl Beside<'_> {
    /// Fails if the other cgroups have changed, and removes them.
    fn are_as_they_were(&self) -> Outcome {
        for other in &self.others {
            let there = fs::metadata(other)?;
            let limit = fs::read_to_string(other.join("pids.max")).unwrap_or("max\n".into());
            let processes = fs::read_to_string(other.join("cgroup.procs"))?;
            fs::remove_dir(other)?;
            ensure_eq((there.mode() & 0o777, there.uid(), limit.as_str()), (0o755, 0, "max\n"))?;
            ensure(processes.is_empty(), processes)?;
        }
        Ok(())
    }

    /// Restores the container from images that `add` has changed.
    fn restore_with(&self, add: &dyn Fn(&Test) -> Outcome) -> Outcome<()> {
        let test = self.bundle.test;
        let path = images(test).join("cgroup.img");
        let saved = fs::read(&path)?;
        add(test)?;
        let restored = restore(&self.bundle, &[]);
        fs::write(path, saved)?;
        let (_, path) = cgroup_of(restored?.pid()?)?;
        ensure(path != self.other, path)
    }
}

fn a_process_comes_back_in_the_containers_cgroup(test: &Test) -> Outcome {
    needs_criu()?;
    let beside = beside(test, test.sh(COUNT)?)?;
    beside.restore_with(&|test| {
        let [own, other] = [&beside.own, &beside.other].map(|path| in_image(&beside.name, path));
        edit_image(test, &own?, &other?)
    })?;
    beside.are_as_they_were()
}

fn cgroups_of_others_stay_as_they_are(test: &Test) -> Outcome {
    needs_criu()?;
    let beside = beside(test, test.sh(COUNT)?)?;
    let (name, other) = (beside.name.as_bytes(), &beside.other.as_bytes()[1..]);
    let below = [other, b"/made"].concat();
    for controllers in [vec![name], vec![name, name], vec![b"x\0pids", name], vec![b",", name]] {
        for names in [vec![other, &below], vec![b"", other]] {
            beside.restore_with(&|test| add_to_image(test, &controllers, &names))?;
        }
    }
    beside.are_as_they_were()
}

fn names_lead_to_no_file_of_the_hosts(test: &Test) -> Outcome {
    needs_criu()?;
    let beside = beside(test, test.sh(COUNT)?)?;
    // A directory beside CRIU's own one, in the directory of the images.
    let hosts = test.folder.join("hosts");
    fs::create_dir(&hosts)?;
    let joined = images(test).join(format!("e,{}", beside.name));
    fs::create_dir(&joined)?;
    symlink(&hosts, joined.join("link"))?;
    let made = test.folder.join("made").display().to_string();
    let up = format!("{}{made}", "../".repeat(20));
    let (name, up) = (beside.name.as_bytes(), up.as_bytes());
    for (controllers, names) in [
        (vec![&b"../e"[..], name], vec![&b"link"[..], b"link/made"]),
        (vec![name], vec![up]),
        (vec![up, name], vec![b"link"]),
        (vec![made.as_bytes(), name], vec![b"link"]),
    ] {
        beside.restore_with(&|test| add_to_image(test, &controllers, &names))?;
    }
    beside.restore_with(&|test| edit_image(test, b"cgroup.", b"../../."))?;
    beside.are_as_they_were()?;
    let there = fs::metadata(&hosts)?;
    ensure_eq((there.mode() & 0o777, there.uid()), (0o755, 0))?;
    ensure(fs::read_dir(&hosts)?.next().is_none(), "something was made")?;
    ensure(!Path::new(&made).exists(), "something was made")
}

/// The images say that the root of the container's cgroup namespace is the host's root cgroup.
fn a_root_of_a_namespace_is_the_containers_cgroup(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test
        .sh("while :; do cat /proc/self/cgroup >/now; mv /now /shown; echo 1; sleep 0.1; done")?
        .namespace(json!({ "type": "cgroup" }))
        .edit(|config| config["root"]["readonly"] = json!(false));
    let beside = beside(test, bundle)?;
    let own = in_image(&beside.name, &beside.own)?;
    let length = u8::try_from(beside.own.len())?;
    beside.restore_with(&|test| {
        let with = |length: u8| [&own[..], &[3 << 3, length]].concat();
        edit_image(test, &with(length), &with(0))
    })?;
    beside.are_as_they_were()?;
    let shown = fs::read_to_string(beside.bundle.rootfs().join("shown"))?;
    // In other hierarchies, the container has no cgroup.
    ensure(!shown.contains("rt-t"), shown)
}

/// As with a systemd in the container, no process is in the container's own cgroup.
fn side_by_side(test: &Test) -> Outcome<(Bundle<'_>, Container<'_>)> {
    let script =
        "for h in /sys/fs/cgroup /sys/fs/cgroup/pids; do test -e $h/cgroup.procs || continue
            busybox mkdir $h/a $h/b || exit; echo 17 > $h/b/pids.max
            (echo 0 > $h/b/cgroup.procs; while :; do sleep 1; done) & echo 0 > $h/a/cgroup.procs
        done; echo 1; while :; do sleep 1; done";
    let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" });
    let bundle = test.sh(script)?.namespace(json!({ "type": "cgroup" })).mount(mount);
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    write(test, &container, &[])?.success()?;
    Ok((bundle, container))
}

/// Checks that the first process is in cgroup `a` of the container, and another process in `b`.
fn are_side_by_side(restored: &Container<'_>) -> Outcome {
    let (_, path) = cgroup_of(restored.pid()?)?;
    // systemd adds to the name.
    ensure(path.contains(&restored.id) && path.ends_with("/a"), path)?;
    let all = cgroups_of(&restored.id);
    let of_b = all.iter().map(|path| fs::read_to_string(path.join("b/cgroup.procs")));
    ensure(of_b.flatten().any(|pids| !pids.is_empty()), format!("{all:?}"))
}

fn processes_in_cgroups_side_by_side_come_back(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = side_by_side(test)?;
    are_side_by_side(&restore(&bundle, &[])?)
}

/// The default path contains the name.
fn cgroups_come_back_under_a_longer_name(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, container) = side_by_side(test)?;
    let id = format!("{}-longer", container.id);
    are_side_by_side(&piped(test, &id, restore_command(&bundle, &id, &["--detach"]))?)
}

fn limits_of_cgroups_below_come_back(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, container) = side_by_side(test)?;
    let limit = |id: &str| -> Option<String> {
        let all = cgroups_of(id);
        all.iter().find_map(|path| fs::read_to_string(path.join("b/pids.max")).ok())
    };
    let restored = restore(&bundle, &[])?;
    drop(container);
    match limit(&restored.id) {
        Some(limit) => ensure_eq(limit.as_str(), "17\n"),
        None => skip("the container's cgroups have no controller `pids` here"),
    }
}

/// In the mode `full`, CRIU applies everything in the images. The limits are the configuration's
/// all the same.
fn the_containers_limits_are_the_configurations(test: &Test) -> Outcome {
    needs_criu()?;
    let beside = beside(test, test.sh(COUNT)?)?;
    let own = &beside.own.as_bytes()[1..];
    add_to_image(test, &[beside.name.as_bytes()], &[own])?;
    let restored = restore(&beside.bundle, &["--manage-cgroups-mode=full"])?;
    for path in cgroups_of(&restored.id) {
        let there = fs::metadata(&path)?;
        ensure_eq((there.mode() & 0o777, there.uid()), (0o755, 0))?;
        // systemd sets its own limit.
        let limit = fs::read_to_string(path.join("pids.max")).unwrap_or_default();
        ensure(limit != "5\n", limit)?;
        if let Ok(devices) = fs::read_to_string(path.join("devices.list")) {
            ensure(!devices.contains("a *:* rwm"), devices)?;
        }
    }
    beside.are_as_they_were()
}

fn the_modes_of_criu_work(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = side_by_side(test)?;
    for mode in ["soft", "full", "strict"] {
        are_side_by_side(&restore(&bundle, &[&format!("--manage-cgroups-mode={mode}")])?)?;
    }
    Ok(())
}
