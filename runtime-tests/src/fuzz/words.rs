//! Generated words for a bundle: paths that lead out of it, or that try to.
//!
//! The grammar knows the kernel's ways out (`/proc/…/fd/N`, `/proc/…/root`, `..`) and the targets
//! outside. Chance chooses the number, the count of `..`, and the use of the path.

use super::random::Random;

/// The canary, which is outside of all bundles.
pub(super) const OUTSIDE: &str = "/srv/canary";

/// Names in the canary, existing and new.
const THINGS: [&str; 13] = [
    "public",
    "secret",
    "tool",
    "tool",
    "folder",
    "empty",
    "device",
    "fifo",
    "link",
    "folder/file",
    "new",
    "folder/new",
    "",
];

/// Places in a rootfs that a runtime looks at, and some places of the image.
pub(super) const PLACES: [&str; 43] = [
    "/dev",
    "/dev/null",
    "/dev/zero",
    "/dev/pts",
    "/dev/pts/ptmx",
    "/dev/console",
    "/dev/ptmx",
    "/dev/tty",
    "/dev/shm",
    "/dev/fd",
    "/dev/mqueue",
    "/dev/x",
    "/proc",
    "/proc/sys",
    "/proc/self",
    "/sys",
    "/sys/fs",
    "/sys/fs/cgroup",
    "/etc",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/run",
    "/run/notify",
    "/run/notify/notify.sock",
    "/tmp",
    "/mnt",
    "/mnt/data",
    "/mnt/a/b",
    "/data",
    "/data/a",
    "/data/a/b",
    "/data/link",
    "/bin",
    "/bin/sh",
    "/bin/ls",
    "/bin/busybox",
    "/work",
    "/work/a",
    "/t",
    "/t/a/b",
    "/witness",
    "/",
];

/// Files that a container sees, but must not change or must not reach.
const INSIDE: [&str; 14] = [
    "/proc/sys",
    "/proc/sys/kernel",
    "/proc/timer_list",
    "/proc/kcore",
    "/proc",
    "/proc/self/exe",
    "/proc/self/fd",
    "/proc/1",
    "/sys",
    "/sys/fs/cgroup",
    "/dev",
    "/dev/null",
    "/etc/passwd",
    "/",
];

pub(super) fn place(random: &mut Random) -> String {
    random.of(&PLACES).to_owned()
}

/// A path of the host. No path in a bundle may lead to it.
fn outside(random: &mut Random) -> String {
    if random.once_in(10) {
        let others = [
            "/etc/passwd",
            "/dev/null",
            "/bin/busybox",
            "/room/bin/rt",
            "/run/new",
            "/etc/new",
            "/usr/bin/id",
        ];
        return random.of(&others).to_owned();
    }
    format!("{OUTSIDE}/{}", random.of(&THINGS))
}

fn up(random: &mut Random) -> String {
    // Too many `..` do no harm, because `/..` is `/`.
    let steps = if random.once_in(3) { 1 + random.below(4) } else { 5 + random.below(8) };
    "../".repeat(steps)
}

fn process(random: &mut Random) -> &'static str {
    random.of(&["self", "self", "self", "thread-self", "1", "self/task/1"])
}

/// A path that leads outside if the runtime looks it up with a wrong root or through a forgotten
/// descriptor.
pub(super) fn escape(random: &mut Random) -> String {
    let target = outside(random);
    escape_to(random, &target)
}

pub(super) fn escape_to(random: &mut Random, target: &str) -> String {
    let (process, up) = (process(random), up(random));
    match random.below(12) {
        0..=5 => format!("/proc/{process}/fd/{}/{up}{}", 3 + random.below(28), &target[1..]),
        6 => format!("/dev/fd/{}/{up}{}", 3 + random.below(28), &target[1..]),
        7 => format!("/proc/{process}/{}{target}", random.of(&["root", "cwd"])),
        8 => format!("/proc/{process}/cwd/{up}{}", &target[1..]),
        9 => format!("{up}{}", &target[1..]),
        _ => target.to_owned(),
    }
}

/// An escape in the place of a program.
pub(super) fn program(random: &mut Random) -> String {
    let tool = format!("{OUTSIDE}/tool");
    if random.once_in(4) { target(random) } else { escape_to(random, &tool) }
}

/// The target of a symbolic link.
pub(super) fn target(random: &mut Random) -> String {
    match random.below(16) {
        0..=7 => escape(random),
        8..=10 => random.of(&INSIDE).to_owned(),
        // Two such links can make a loop.
        11 | 12 => place(random),
        13 => random.of(&[".", "..", "a", "b", "/", "link", "//"]).to_owned(),
        14 => odd(random),
        _ => format!(
            "/proc/{}/{}",
            process(random),
            random.of(&["exe", "root", "cwd", "ns/mnt", "fd/3", "fd/5", "mem"])
        ),
    }
}

/// Strings that are hardly paths.
fn odd(random: &mut Random) -> String {
    match random.below(6) {
        0 => "/a".repeat(1 + random.below(2200)),
        1 => format!("/{}", "n".repeat(200 + random.below(100))),
        2 => "/line\nbreak".to_owned(),
        3 => "/\u{1b}[31m\u{202e}".to_owned(),
        4 => format!("/{}", "../".repeat(40 + random.below(1400))),
        _ => "/a/../".repeat(1 + random.below(900)),
    }
}

/// A path that a configuration uses for a place in the container.
pub(super) fn path(random: &mut Random) -> String {
    let place = place(random);
    match random.below(14) {
        0..=5 => place,
        6 => format!("/{place}"),
        7 => format!("{place}/."),
        8 => format!("{place}/"),
        9 => format!("{place}/../{}", random.of(&["x", "..", "../..", "../../srv/canary"])),
        10 => place.replace('/', "/./"),
        11 => place.replacen('/', "/x/../", 1 + random.below(2)),
        12 => odd(random),
        _ => escape(random),
    }
}

/// A name of a cgroup, of a sysctl or of a group.
pub(super) fn name(random: &mut Random) -> String {
    match random.below(10) {
        0 => "..".to_owned(),
        1 => "../..".to_owned(),
        2 => format!("{}x", up(random)),
        3 => "/".to_owned(),
        4 => "a\nb".to_owned(),
        5 => "a/../../b".to_owned(),
        6 => "x".repeat(1 + random.below(400)),
        7 => ".".to_owned(),
        8 => String::new(),
        _ => "cgroup.procs".to_owned(),
    }
}
