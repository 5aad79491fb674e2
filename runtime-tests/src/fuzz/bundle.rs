//! Generated bundles: a valid configuration, and some twists of it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::programs;
use super::random::Random;
use super::tree::{Thing, Tree};
use super::words;

/// One change of a valid bundle.
#[derive(Clone, Debug)]
pub(super) enum Twist {
    /// Puts a thing in the rootfs.
    Put(String, Thing),
    /// Sets a value in the configuration. The keys lead to the value.
    Set(Vec<String>, Value),
    /// Adds a value at the end of a list in the configuration.
    Push(Vec<String>, Value),
    /// Removes the mounts on this destination.
    Unmount(String),
    /// Adds a volume that a neighbour shares, and puts things in it. It is mounted before all other
    /// mounts.
    Volume { destination: String, things: Vec<(String, Thing)> },
    /// A neighbour exchanges new entries of the volume for links to these targets.
    Exchange(Vec<String>),
    /// The shell commands by which a container that stays disturbs its own mounts and cgroups.
    Upset(Vec<String>),
    /// A flag of `create` and `run`.
    Flag(String),
    /// A pid file in a directory of another user. That user has put links there, under the names of
    /// files that the runtime made there before.
    PidFile(String),
    /// A service manager that waits for a readiness message (`NOTIFY_SOCKET`).
    Notify,
    /// The number of descriptors that the caller passes on.
    Descriptors(u32),
}

/// The files of a round, all below one directory.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) folder: PathBuf,
    pub(super) config: Value,
    pub(super) flags: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) exchange: Option<Vec<String>>,
    pub(super) descriptors: u32,
    things: Vec<(String, Thing)>,
    sockets: Vec<UnixDatagram>,
    listeners: Vec<UnixListener>,
}

impl Bundle {
    pub(super) fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    pub(super) fn volume(&self) -> PathBuf {
        self.folder.join("volume")
    }

    /// Restores the first content of the volume.
    pub(super) fn fill_volume(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.volume())?.flatten() {
            let path = entry.path();
            // The entry may be a directory or anything else.
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        let volume = Tree::open(&self.volume())?;
        for (place, thing) in &self.things {
            // An earlier thing may be in the way.
            let _ = volume.put(place, thing);
        }
        Ok(())
    }

    /// The directory of the pid file. Users who can write there are not trusted.
    pub(super) fn spool(&self) -> PathBuf {
        self.folder.join("spool")
    }

    pub(super) fn make(folder: &Path, twists: &[Twist], argument: &str) -> io::Result<Bundle> {
        let mut bundle = Bundle {
            folder: folder.to_owned(),
            config: good(argument),
            flags: Vec::new(),
            env: Vec::new(),
            exchange: None,
            descriptors: 0,
            things: Vec::new(),
            sockets: Vec::new(),
            listeners: Vec::new(),
        };
        for name in ["rootfs", "volume", "spool", "own"] {
            fs::create_dir_all(folder.join(name))?;
        }
        fs::write(folder.join("own/file"), "the caller's\n")?;
        fill(&bundle.rootfs())?;
        let tree = Tree::open(&bundle.rootfs())?;
        for twist in twists {
            bundle.apply(twist, &tree)?;
        }
        // In the host's pid namespace, a container that may look into other processes can reach the
        // host's files. So the witness does not look at other processes there.
        let namespaces = bundle.config["linux"]["namespaces"].as_array();
        if !namespaces.into_iter().flatten().any(|it| it["type"] == "pid" && it["path"].is_null())
            && let Some(argument) = bundle.config["process"]["args"].get_mut(2)
        {
            *argument = json!("live");
        }
        // In a joined UTS namespace, the runtime sets the configured host name, as runc does. Here
        // the namespace can be the runtime's own.
        let namespaces = bundle.config["linux"]["namespaces"].as_array();
        if namespaces.into_iter().flatten().any(|it| it["type"] == "uts" && it["path"].is_string())
        {
            bundle.config["hostname"].take();
        }
        fs::write(folder.join("config.json"), bundle.config.to_string())?;
        Ok(bundle)
    }

    fn apply(&mut self, twist: &Twist, tree: &Tree) -> io::Result<()> {
        match twist {
            // An earlier thing may be in the way.
            Twist::Put(place, thing) => drop(tree.put(place, thing)),
            Twist::Set(keys, value) => {
                if let Some(at) = at(&mut self.config, keys) {
                    *at = value.clone();
                }
            }
            Twist::Push(keys, value) => match at(&mut self.config, keys) {
                Some(Value::Array(list)) => list.push(value.clone()),
                Some(other) => *other = json!([value]),
                None => {}
            },
            Twist::Unmount(destination) => self.unmount(destination),
            Twist::Volume { destination, things } => {
                self.things.extend(things.iter().cloned());
                self.fill_volume()?;
                self.unmount(destination);
                let mount = json!({
                    "destination": destination, "type": "bind", "source": self.volume(),
                    "options": ["rbind"],
                });
                if let Some(mounts) = self.config["mounts"].as_array_mut() {
                    // After `/proc`, because later mounts may be below `/proc`.
                    mounts.insert(mounts.len().min(1), mount);
                }
            }
            Twist::Exchange(targets) => self.exchange = Some(targets.clone()),
            Twist::Upset(lines) => drop(tree.put("/upset", &Thing::Text(lines.join("\n") + "\n"))),
            Twist::Flag(flag) => self.flags.push(flag.clone()),
            Twist::PidFile(name) => {
                self.flags.push(format!("--pid-file={}", self.spool().join(name).display()));
            }
            Twist::Notify if !self.sockets.is_empty() => {}
            Twist::Notify => {
                let path = self.folder.join("notify");
                self.sockets.push(UnixDatagram::bind(&path)?);
                self.env.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
            }
            Twist::Descriptors(count) => {
                self.descriptors = *count;
                self.flags.push(format!("--preserve-fds={count}"));
            }
        }
        Ok(())
    }

    fn unmount(&mut self, destination: &str) {
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != destination);
        }
    }

    /// A socket for `--console-socket`, which keeps the messages that the runtime sends.
    pub(super) fn console(&mut self) -> io::Result<String> {
        let path = self.folder.join("console");
        self.listeners.push(UnixListener::bind(&path)?);
        Ok(path.display().to_string())
    }
}

/// Finds a value by its keys. Makes missing objects.
fn at<'a>(value: &'a mut Value, keys: &[String]) -> Option<&'a mut Value> {
    let mut here = value;
    for key in keys {
        if here.is_null() {
            *here = json!({});
        }
        here = here.as_object_mut()?.entry(key.clone()).or_insert(Value::Null);
    }
    Some(here)
}

fn fill(rootfs: &Path) -> io::Result<()> {
    for folder in ["bin", "etc", "proc", "dev", "sys", "tmp", "run", "mnt", "data", "t", "work"] {
        fs::create_dir(rootfs.join(folder))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
    for applet in ["sh", "cat", "ls", "true", "sleep"] {
        symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    fs::write(rootfs.join("witness"), programs::witness())?;
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    )?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
    fs::write(rootfs.join("t/a"), "of the image\n")
}

fn good(argument: &str) -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
    let mut args = vec!["/bin/sh", "/witness"];
    args.extend(Some(argument).filter(|argument| !argument.is_empty()));
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn keys(path: &str) -> Vec<String> {
    path.split(' ').map(str::to_owned).collect()
}

fn set(path: &str, value: impl Into<Value>) -> Twist {
    Twist::Set(keys(path), value.into())
}

fn push(path: &str, value: Value) -> Twist {
    Twist::Push(keys(path), value)
}

/// A thing that an image can have anywhere.
pub(super) fn thing(random: &mut Random) -> Thing {
    match random.below(16) {
        0..=8 => Thing::Link(words::target(random)),
        9 => Thing::Folder,
        10 => Thing::Text("root:x:".repeat(random.below(3000)) + "\n"),
        11 => Thing::Empty(if random.once_in(2) { 0o6755 } else { 0o644 }),
        12 => Thing::Fifo,
        13 => Thing::Device,
        14 => Thing::Script(words::program(random)),
        _ => Thing::Nothing,
    }
}

/// A thing that an image can have in the place of a program.
pub(super) fn program(random: &mut Random) -> Thing {
    match random.below(8) {
        0..=3 => Thing::Link(words::program(random)),
        4 => Thing::Script(words::program(random)),
        5 => Thing::Elf(words::program(random)),
        6 => Thing::Script(format!("/bin/sh {}", words::path(random))),
        _ => thing(random),
    }
}

/// A path in the container. In half of the cases with something hostile at it or above it.
fn trap(random: &mut Random) -> (String, Vec<Twist>) {
    let path = words::path(random);
    let twists = match random.below(4) {
        0 => vec![Twist::Put(path.clone(), thing(random))],
        1 => vec![Twist::Put(above(&path).to_owned(), thing(random))],
        _ => Vec::new(),
    };
    (path, twists)
}

fn above(path: &str) -> &str {
    path.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above)
}

/// A mount. From the host, it shows only the round's own directories or the mounts that every
/// caller wants.
pub(super) fn mount(random: &mut Random, destination: &str, folder: &Path) -> Value {
    let own = |name: &str| folder.join(name).display().to_string();
    let (kind, source) = match random.below(16) {
        0..=2 => ("bind", own("volume")),
        3 => ("bind", own("own")),
        4 => ("bind", own("own/file")),
        5 => ("bind", own("volume/link")),
        6..=8 => ("tmpfs", "tmpfs".to_owned()),
        9 => ("proc", "proc".to_owned()),
        10 => ("sysfs", "sysfs".to_owned()),
        11 => ("cgroup", "cgroup".to_owned()),
        12 => ("mqueue", "mqueue".to_owned()),
        13 => ("devpts", "devpts".to_owned()),
        14 => ("", String::new()),
        _ => ("bind", own("own/nothing")),
    };
    let mut options = Vec::new();
    if kind == "bind" {
        options.push(random.of(&["bind", "rbind"]).to_owned());
    }
    if source.ends_with("link") {
        // The caller decides where its own source paths lead, so a followed link would be no
        // finding. With these options, the caller wants the link itself.
        options.push(random.of(&["src-nofollow", "copy-symlink"]).to_owned());
    }
    if kind == "tmpfs" && random.once_in(2) {
        options.push("tmpcopyup".to_owned());
    }
    const OPTIONS: [&str; 24] = [
        "ro",
        "rw",
        "rro",
        "nosuid",
        "suid",
        "noexec",
        "nodev",
        "dev",
        "remount",
        "copy-symlink",
        "src-nofollow",
        "dest-nofollow",
        "idmap",
        "ridmap",
        "rprivate",
        "slave",
        "unbindable",
        "noatime",
        "mode=4777",
        "size=1k",
        "nosymfollow",
        "rnosuid",
        "context=x",
        "defaults",
    ];
    for _ in 0..random.below(4) {
        options.push(random.of(&OPTIONS).to_owned());
    }
    let mut mount =
        json!({ "destination": destination, "type": kind, "source": source, "options": options });
    if random.once_in(8) {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        mount["uidMappings"] = map.clone();
        mount["gidMappings"] = map;
    }
    mount
}

/// All twists of a round. Some twists belong together: a path, and the thing at this path.
pub(super) fn twists(random: &mut Random, folder: &Path) -> Vec<Twist> {
    let mut twists = Vec::new();
    for _ in 0..=random.below(4) {
        twists.extend(twist(random, folder));
    }
    twists
}

fn twist(random: &mut Random, folder: &Path) -> Vec<Twist> {
    match random.below(34) {
        0..=5 => vec![Twist::Put(words::place(random), thing(random))],
        6..=8 => {
            let path = random.of(&[
                "/bin/tool",
                "tool",
                "/bin/ls",
                "./tool",
                "/work/tool",
                "/t/../bin/tool",
            ]);
            let place = if path == "tool" || path == "./tool" { "/bin/tool" } else { path };
            vec![
                set("process args", json!([path, "/witness"])),
                Twist::Put(place.to_owned(), program(random)),
            ]
        }
        9 => vec![set("process args", json!([words::program(random)]))],
        10 => {
            let folder = words::escape_to(random, words::OUTSIDE);
            vec![
                set("process env", json!([format!("PATH={folder}:{}:/bin", words::path(random))])),
                set("process args", json!(["tool"])),
            ]
        }
        11 | 12 => {
            let (path, mut twists) = trap(random);
            twists.push(set("process cwd", path));
            twists
        }
        13..=15 => {
            let (path, mut twists) = trap(random);
            twists.push(push("mounts", mount(random, &path, folder)));
            twists
        }
        16 => vec![Twist::Unmount(random.of(&["/dev", "/dev/pts", "/proc", "/sys"]).to_owned())],
        17 | 18 => {
            let (path, mut twists) = trap(random);
            let kind = random.of(&["c", "c", "b", "p", "u", "x"]);
            let mode = [0o666, 0o6755, 0o777, 0][random.below(4)];
            twists.push(push(
                "linux devices",
                json!({
                    "path": path, "type": kind, "major": 1, "minor": 3 + random.below(3),
                    "fileMode": mode, "uid": 0, "gid": random.below(2) * 1000,
                }),
            ));
            twists
        }
        19 => {
            let (path, mut twists) = trap(random);
            twists
                .push(push(random.of(&["linux maskedPaths", "linux readonlyPaths"]), json!(path)));
            twists
        }
        20 => vec![sysctl(random)],
        21 => vec![cgroup(random)],
        22 => vec![annotation(random, folder)],
        23 => hook(random),
        24 | 25 => namespace(random),
        26 => volume(random),
        27 => exchanged(random),
        28 | 29 => vec![user(random)],
        30 => vec![Twist::PidFile(random.of(&["pid", "c.pid", "x/../pid", ".pid"]).to_owned())],
        31 => vec![Twist::Notify, Twist::Put("/run/notify".to_owned(), thing(random))],
        32 => vec![match random.below(3) {
            0 => Twist::Flag("--no-pivot".to_owned()),
            1 => Twist::Descriptors(1 + u32::try_from(random.below(4)).unwrap_or(0)),
            _ => set("process terminal", true),
        }],
        _ => vec![other(random)],
    }
}

/// A container that has rights over its own mounts or over its own cgroup. It uses them before a
/// command enters it.
pub(super) fn upset(random: &mut Random) -> Vec<Twist> {
    let mut twists = vec![push("linux namespaces", json!({ "type": "cgroup" }))];
    if random.once_in(2) {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let all = json!([
            "CAP_SYS_ADMIN",
            "CAP_SYS_PTRACE",
            "CAP_SYS_CHROOT",
            "CAP_MKNOD",
            "CAP_DAC_OVERRIDE",
            "CAP_KILL",
            "CAP_SETUID"
        ]);
        twists.push(push("linux namespaces", json!({ "type": "user" })));
        twists.push(set("linux uidMappings", map.clone()));
        twists.push(set("linux gidMappings", map));
        twists.push(set(
            "process capabilities",
            json!({ "bounding": all, "effective": all, "permitted": all }),
        ));
    }
    if random.once_in(2) {
        // The container's own cgroups, writable.
        twists.push(push(
            "mounts",
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" }),
        ));
    }
    let lines = (0..=random.below(5)).map(|_| command(random)).collect();
    twists.push(Twist::Upset(lines));
    twists
}

fn each_cgroup(commands: &str) -> String {
    format!("for way in /sys/fs/cgroup /sys/fs/cgroup/*; do {commands}; done")
}

/// A line of the script `/upset`.
fn command(random: &mut Random) -> String {
    const FOLDERS: [&str; 9] =
        ["/proc", "/proc/sys", "/dev", "/sys", "/sys/fs/cgroup", "/mnt", "/t", "/", "/run"];
    let folder = random.of(&FOLDERS);
    let place = words::place(random);
    let target = words::escape(random);
    let tool = "/bin/busybox";
    match random.below(18) {
        0 | 1 => format!("{tool} mount -t tmpfs none {folder}"),
        2 => format!("{tool} mount --bind {} {folder}", random.of(&FOLDERS)),
        3 => format!("{tool} umount -l {folder}"),
        4 => format!("{tool} mount -o remount,ro,bind {folder}"),
        5 => format!("{tool} mount --move {folder} {}", random.of(&FOLDERS)),
        6 => format!("{tool} mount -t proc proc {folder}"),
        7 => format!("{tool} mv {folder} {folder}-moved; {tool} ln -s {target} {folder}"),
        8 | 9 => format!("{tool} rm -f {place}; {tool} ln -s {target} {place}"),
        10 => format!("{tool} rm -f {place}; {tool} mkfifo {place}"),
        11 => format!(
            "{tool} mkdir -p {folder}/self/fd {folder}/self/attr; {tool} ln -s {target} {folder}/self/exe"
        ),
        12 => each_cgroup("/bin/busybox mkdir -p $way/a/b/c; echo 0 >$way/a/b/cgroup.procs"),
        13 => each_cgroup(
            "/bin/busybox mkdir $way/$$; echo threaded >$way/$$/cgroup.type; \
             echo 0 >$way/$$/cgroup.threads",
        ),
        // Freezes another process of the container, in its own cgroup.
        14 => {
            let freeze = "/bin/busybox mkdir $way/ice; echo 0 >$way/ice/cgroup.procs; \
                          echo 1 >$way/ice/cgroup.freeze; echo FROZEN >$way/ice/freezer.state";
            format!("({}; sleep 60) &", each_cgroup(freeze))
        }
        15 => "number=0; while [ $number -lt 30 ]; do (sleep 60) & number=$((number + 1)); done"
            .to_owned(),
        16 => random.of(&["exit 3", "kill -STOP $$", "exec 60</; cd /proc/self/fd"]).to_owned(),
        _ => format!("{tool} chmod 0 {folder}"),
    }
}

fn sysctl(random: &mut Random) -> Twist {
    const NAMES: [&str; 16] = [
        "net.ipv4.ip_forward",
        "net/ipv4/ip_forward",
        "kernel.core_pattern",
        "kernel/core_pattern",
        "kernel.hostname",
        "kernel.domainname",
        "net/../kernel/core_pattern",
        "net/ipv4/../../kernel/domainname",
        "kernel.sem",
        "fs.mqueue.msg_max",
        "fs.suid_dumpable",
        "net.core.somaxconn",
        "vm.swappiness",
        "kernel.shm_rmid_forced",
        "/kernel/domainname",
        "net..core",
    ];
    let name = if random.once_in(4) {
        format!("net.{}", words::name(random))
    } else {
        random.of(&NAMES).to_owned()
    };
    Twist::Set(
        [keys("linux sysctl"), vec![name]].concat(),
        json!(random.of(&["1", "0", "core.fuzz", "a\nb"])),
    )
}

fn cgroup(random: &mut Random) -> Twist {
    let name = words::name(random);
    let path = match random.below(5) {
        0 => name,
        1 => format!("/fuzz/{name}"),
        2 => format!("/fuzz/a/{name}/x"),
        3 => format!("fuzz//{name}"),
        _ => "/fuzz/a/b".to_owned(),
    };
    set("linux cgroupsPath", path)
}

fn annotation(random: &mut Random, folder: &Path) -> Twist {
    let scratch = folder.join("spool/out").display().to_string();
    let name = words::name(random);
    let (key, value) = match random.below(14) {
        0 => ("run.oci.delegate-cgroup", name),
        1 => ("run.oci.systemd.subgroup", name),
        2 => ("org.criu.config", words::escape(random)),
        3 => ("run.oci.hooks.stdout", scratch),
        4 => ("run.oci.hooks.stderr", scratch),
        5 => ("run.oci.handler", "wasm".to_owned()),
        6 => ("run.oci.wasm.dirs", words::path(random)),
        7 => ("run.oci.wasm.plugins", words::path(random)),
        8 => ("run.oci.wasm.bind", name),
        9 => ("run.oci.mount_context_type", name),
        10 => ("run.oci.seccomp_bpf_data", "BgAAAAAA/38=".to_owned()),
        11 => ("run.oci.keep_original_groups", "1".to_owned()),
        12 => ("org.systemd.property.After", "['a\nb']".to_owned()),
        _ => ("module.wasm.image/variant", "compat".to_owned()),
    };
    Twist::Set([keys("annotations"), vec![key.to_owned()]].concat(), json!(value))
}

fn hook(random: &mut Random) -> Vec<Twist> {
    // The paths of all other hooks are paths of the host, which the configuration may choose.
    let others = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    if random.once_in(3) {
        let hook =
            json!({ "path": random.of(&["/bin/true", "/bin/false", "/nothing"]), "timeout": 5 });
        return vec![push(&format!("hooks {}", random.of(&others)), hook)];
    }
    let path = random.of(&["/hook", "/bin/hook", "/bin/sh"]);
    vec![
        push(
            "hooks startContainer",
            json!({ "path": path, "args": ["hook", "/witness"], "timeout": 5 }),
        ),
        Twist::Put(path.to_owned(), program(random)),
    ]
}

fn namespace(random: &mut Random) -> Vec<Twist> {
    let all = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    match random.below(6) {
        0 | 1 => {
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            vec![
                push("linux namespaces", json!({ "type": "user" })),
                set("linux uidMappings", map.clone()),
                set("linux gidMappings", map),
            ]
        }
        2 => vec![push("linux namespaces", json!({ "type": random.of(&["cgroup", "time"]) }))],
        3 => {
            let kind = random.of(&["ipc", "uts", "network"]);
            let file = if kind == "network" { "net" } else { kind };
            let path = match random.below(3) {
                // The runtime's own namespace.
                0 => format!("/proc/self/ns/{file}"),
                1 => format!("/proc/1/ns/{file}"),
                _ => words::escape(random),
            };
            let mut others: Vec<Value> = all[..5]
                .iter()
                .filter(|other| **other != kind)
                .map(|other| json!({ "type": other }))
                .collect();
            others.push(json!({ "type": kind, "path": path }));
            vec![set("linux namespaces", others)]
        }
        4 => {
            let without = random.of(&all[..5]);
            let others = all[..5].iter().filter(|other| **other != without);
            vec![set(
                "linux namespaces",
                others.map(|other| json!({ "type": other })).collect::<Vec<_>>(),
            )]
        }
        _ => vec![set("hostname", words::name(random))],
    }
}

/// Things in a volume that a neighbour shares.
fn things(random: &mut Random) -> Vec<(String, Thing)> {
    let places = ["a", "a/b", "link", "null", "pts", "x", "file", "sys", "passwd"];
    (0..random.below(4)).map(|_| (random.of(&places).to_owned(), thing(random))).collect()
}

fn volume(random: &mut Random) -> Vec<Twist> {
    let destination =
        random.of(&["/data", "/dev", "/etc", "/run", "/mnt", "/t", "/proc", "/bin"]).to_owned();
    vec![Twist::Volume { destination, things: things(random) }]
}

/// A volume in which a neighbour exchanges entries, and something that the runtime makes in it.
fn exchanged(random: &mut Random) -> Vec<Twist> {
    let destination = random.of(&["/data", "/dev", "/dev", "/etc", "/run", "/t"]).to_owned();
    let targets = (0..=random.below(3))
        .map(|_| {
            if random.once_in(2) {
                format!(
                    "{}/{}",
                    words::OUTSIDE,
                    random.of(&["secret", "folder", "device", "empty"])
                )
            } else {
                words::escape(random)
            }
        })
        .collect();
    let below = format!("{destination}/{}", random.of(&["x", "a/b", "a", "new/file", "a/b/c"]));
    let mut twists =
        vec![Twist::Volume { destination, things: things(random) }, Twist::Exchange(targets)];
    match random.below(6) {
        0 => twists.push(push(
            "linux devices",
            json!({ "path": below, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 }),
        )),
        1 => twists.push(push(
            "mounts",
            json!({ "destination": below, "type": "tmpfs", "options": ["tmpcopyup"] }),
        )),
        2 => twists.push(push(
            "mounts",
            json!({
                "destination": below, "type": "bind", "source": "/etc/hostname", "options": ["bind"],
            }),
        )),
        3 => twists.push(set("process cwd", below)),
        4 => twists.push(push("linux maskedPaths", json!(below))),
        _ => {}
    }
    twists
}

fn user(random: &mut Random) -> Twist {
    match random.below(6) {
        0 => set("process user", json!({ "uid": 1000, "gid": 1000 })),
        1 => set(
            "process user",
            json!({ "uid": 1000, "gid": 0, "additionalGids": [5, 4_294_967_294_u32], "umask": 0 }),
        ),
        2 => set("process user", json!({ "uid": 4_294_967_295_u32, "gid": 0 })),
        3 => set("process noNewPrivileges", false),
        4 => {
            let some =
                json!(["CAP_SYS_PTRACE", "CAP_KILL", "CAP_SETUID", "CAP_FOWNER", "CAP_CHOWN"]);
            set(
                "process capabilities",
                json!({
                    "bounding": some, "effective": some, "permitted": some, "inheritable": some,
                    "ambient": some,
                }),
            )
        }
        _ => set("process capabilities", json!({})),
    }
}

fn other(random: &mut Random) -> Twist {
    match random.below(12) {
        0 => set("root readonly", true),
        1 => set(
            "root path",
            random.of(&["./rootfs/", "rootfs/.", "rootfs/../rootfs", "volume", "nothing"]),
        ),
        2 => set(
            "linux rootfsPropagation",
            random.of(&["private", "rslave", "slave", "unbindable", "runbindable", "x"]),
        ),
        3 => set(
            "linux seccomp",
            json!({
                "defaultAction": random.of(&["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_ERRNO"]),
                "syscalls": [{
                    "names": [random.of(&["mkdir", "chown", "execve", "openat2", "fchdir"])],
                    "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
                }],
            }),
        ),
        4 => set("linux intelRdt", json!({ "closID": words::name(random) })),
        5 => set(
            "process rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 1 + random.below(30), "hard": 64 }]),
        ),
        6 => set("process oomScoreAdj", json!([-1000, 0, 1000, 5000][random.below(4)])),
        7 => set("linux resources pids", json!({ "limit": random.below(3) })),
        8 => set("linux resources unified", json!({ words::name(random): "1" })),
        9 => set(
            "linux resources memory",
            json!({ "limit": ([0, 4096, 1 << 24, -1][random.below(4)]) }),
        ),
        10 => set("process apparmorProfile", words::name(random)),
        _ => set("linux netDevices", json!({ "lo": { "name": words::name(random) } })),
    }
}
