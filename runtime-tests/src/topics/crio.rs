//! CRI-O 1.36 without CRI-O: conmon with CRI-O's arguments, environment and pipes, the runtime with
//! CRI-O's arguments, and configurations like those that CRI-O writes for each kind of pod.

use std::cell::RefCell;
use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::conmon::{Conmon, read_attached};
use super::namespaces::give_to_root_of_the_namespace;
use super::needs;
use super::process::{PROCESSORS, first_processor};
use super::seccomp::{answering, deny, joined};
use crate::harness::{
    Bundle, Outcome, Output, Test, Tmpfs, cgroups_of, ensure, ensure_eq, has_process, kernel, skip,
    wait_until,
};

super::tests! { "crio":
    a_creation_waits_until_conmon_is_in_its_cgroup, a_pod_without_pause_has_what_is_pinned, a_pod_with_pause_has_its_processes_in_common,
    the_namespaces_of_a_pod_have_its_sysctls, a_pod_in_the_hosts_network, a_pod_among_the_hosts_processes, a_pod_with_the_hosts_ipc, a_privileged_container,
    a_pod_in_a_user_namespace, a_pod_in_a_user_namespace_in_the_hosts_network,
    a_confined_crio_confines_pause_alone, exec_begins_on_the_first_processor, exec_begins_in_the_cgroup_of_the_container, exec_begins_in_a_cgroup_below_the_containers,
    the_notifier_gets_the_calls_of_the_container_and_of_exec, a_probe_gets_the_output_and_the_code, a_probe_that_takes_too_long_is_ended, a_probe_without_its_program_fails_with_the_reason,
    exec_with_streams_gets_those_of_the_user, a_creation_that_fails_tells_the_reason_and_leaves_nothing, a_creation_that_hangs_ends_with_its_conmon,
    a_stop_ends_what_is_deaf_or_paused, a_lack_of_memory_leaves_a_file_in_the_bundle, a_log_stays_below_its_limit, input_ends_with_its_first_client, input_outlives_its_first_client,
    a_terminal_is_the_containers_and_the_probes, limits_change_by_standard_input, a_pod_of_a_module_has_a_program_as_pause,
}

/// What CRI-O gives a container without further settings.
const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
];

/// All capabilities by their numbers (`capabilities(7)`).
const ALL_CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";

/// The capabilities that the tests have. The host may have fewer than all.
fn own_capabilities() -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).ok_or("no CapEff")?;
    Ok(u64::from_str_radix(line, 16)?)
}

/// pause has -998. A lower value than one's own needs CAP_SYS_RESOURCE, number 24.
fn score_of_pause() -> Outcome<i32> {
    if own_capabilities()? & 1 << 24 != 0 {
        return Ok(-998);
    }
    Ok(fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse()?)
}

/// The name of a container: kubelet's name for it, the pod's name, namespace and number.
const NAME: &str = "k8s_c_pod_default_1234_0";

/// A program that waits for SIGTERM, like pause.
const PAUSE: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// Root of a user namespace has this id on the host.
const ROOT: u32 = 100_000;

/// A file on which a namespace is mounted.
struct Pinned {
    kind: &'static str,
    link: &'static str,
    path: PathBuf,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The test fails later if the mount is left.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// A pod, with the namespaces and files that CRI-O makes for it.
struct Pod<'a> {
    test: &'a Test,
    id: String,
    folder: PathBuf,
    /// The namespaces that are the host's, by their names in a configuration.
    host: &'static [&'static str],
    /// The list of `infra_ctr_cpuset`. CRI-O then starts conmon and the runtime by taskset(1).
    infra: Option<String>,
    /// The containers, and conmon's pid files.
    made: RefCell<Vec<(String, PathBuf)>>,
    namespaces: Vec<Pinned>,
    shm: Option<Tmpfs>,
}

impl<'a> Pod<'a> {
    fn new(test: &'a Test, host: &'static [&'static str]) -> Outcome<Pod<'a>> {
        Pod::with(test, host, false)
    }

    /// A pod with `hostUsers: false`.
    fn of_users(test: &'a Test, host: &'static [&'static str]) -> Outcome<Pod<'a>> {
        Pod::with(test, host, true)
    }

    fn with(test: &'a Test, host: &'static [&'static str], users: bool) -> Outcome<Pod<'a>> {
        let id = test.id();
        let folder = test.folder.join(format!("pod-{id}"));
        fs::create_dir_all(&folder)?;
        let (made, namespaces) = (RefCell::default(), Vec::new());
        let mut pod = Pod { test, id, folder, host, infra: None, made, namespaces, shm: None };
        pod.pin(users)?;
        if !host.contains(&"ipc") {
            let shm = pod.folder.join("shm");
            fs::create_dir(&shm)?;
            pod.shm = Some(Tmpfs::mount(shm.clone())?);
            fs::set_permissions(&shm, fs::Permissions::from_mode(0o1777))?;
            chown(&shm, pod.root(), pod.root())?;
        }
        for (name, text) in [
            ("resolv.conf", "nameserver 192.0.2.1\n"),
            ("hostname", "pod\n"),
            ("containerenv", "engine=\"cri-o\"\n"),
        ] {
            fs::write(pod.folder.join(name), text)?;
        }
        Ok(pod)
    }

    /// Like pinns: a process makes the namespaces and ends, and mounts keep the namespaces.
    fn pin(&mut self, users: bool) -> Outcome {
        let mut kinds = vec![("ipc", "ipc"), ("network", "net"), ("uts", "uts")];
        kinds.retain(|(kind, _)| !self.host.contains(kind));
        if users {
            kinds.push(("user", "user"));
        }
        let mut maker = Command::new("unshare");
        maker.args(kinds.iter().map(|(_, link)| format!("--{link}")));
        maker.args(["sh", "-c", "echo; read end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut maker = maker.spawn()?;
        let result = self.keep(&mut maker, &kinds, users);
        drop(maker.stdin.take());
        maker.wait()?;
        result?;
        if let Some(network) = self.path_of("network") {
            // The work of a CNI plugin.
            let mut ip = Command::new("nsenter");
            ip.arg(format!("--net={network}")).args(["ip", "link", "set", "lo", "up"]);
            Output::of(ip)?.success()?;
        }
        Ok(())
    }

    fn keep(
        &mut self,
        maker: &mut Child,
        kinds: &[(&'static str, &'static str)],
        users: bool,
    ) -> Outcome {
        maker.stdout.take().ok_or("no stdout")?.read_exact(&mut [0])?;
        let process = format!("/proc/{}", maker.id());
        if users {
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("{process}/{map}"), format!("0 {ROOT} 65536"))?;
            }
        }
        for (kind, link) in kinds {
            let folder = self.folder.join(format!("{link}ns"));
            fs::create_dir(&folder)?;
            let path = folder.join(&self.id);
            fs::write(&path, "")?;
            chown(&path, users.then_some(ROOT), users.then_some(ROOT))?;
            let mut mount = Command::new("mount");
            mount.arg("--bind").arg(format!("{process}/ns/{link}")).arg(&path);
            Output::of(mount)?.success()?;
            self.namespaces.push(Pinned { kind, link, path });
        }
        Ok(())
    }

    /// The path of a pinned namespace.
    fn path_of(&self, kind: &str) -> Option<String> {
        let pinned = self.namespaces.iter().find(|pinned| pinned.kind == kind)?;
        Some(pinned.path.display().to_string())
    }

    /// The id of root, in a pod with a user namespace.
    fn root(&self) -> Option<u32> {
        self.path_of("user").map(|_| ROOT)
    }

    /// The names of the pinned namespaces, as `readlink /proc/self/ns/…` shows them.
    fn pinned(&self) -> Outcome<String> {
        let mut names = String::new();
        for Pinned { link, path, .. } in &self.namespaces {
            names += &format!("{link}:[{}]\n", fs::metadata(path)?.ino());
        }
        Ok(names)
    }

    /// A script that prints the names of the pinned namespaces.
    fn print_pinned(&self) -> String {
        let links = self.namespaces.iter().map(|pinned| format!(" /proc/self/ns/{}", pinned.link));
        links.map(|link| format!("readlink{link}; ")).collect()
    }

    /// What is common to the containers of a pod and to pause.
    fn configured(&self, bundle: Bundle<'a>, id: &str, kind: &str) -> Outcome<Bundle<'a>> {
        let rootfs = bundle.rootfs();
        for folder in ["run", "etc", "proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(folder))?;
        }
        if self.root().is_some() {
            give_to_root_of_the_namespace(&rootfs)?;
            for folder in ["run", "etc"] {
                chown(rootfs.join(folder), self.root(), self.root())?;
            }
        }
        let v2 = self.test.host.lane == "v2";
        let mut namespaces = vec![json!({ "type": "mount" })];
        if !self.host.contains(&"pid") {
            namespaces.push(json!({ "type": "pid" }));
        }
        if v2 {
            namespaces.push(json!({ "type": "cgroup" }));
        }
        for Pinned { kind, path, .. } in &self.namespaces {
            namespaces.push(json!({ "type": kind, "path": path }));
        }
        let bind = |name: &str, to: &str, options: &[&str]| json!({ "destination": to, "type": "bind", "source": self.folder.join(name), "options": options });
        let shm = if self.shm.is_some() { self.folder.join("shm") } else { "/dev/shm".into() };
        let secure = ["nosuid", "noexec", "nodev", "ro"];
        let own = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": secure },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": own },
            { "destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rw", "bind"] },
            bind("resolv.conf", "/etc/resolv.conf", &["rw", "bind", "nodev", "nosuid", "noexec"]),
            bind("hostname", "/etc/hostname", &["rw", "bind"]),
            bind("containerenv", "/run/.containerenv", &["rw", "bind"]),
        ]);
        let cgroup = if self.test.host.by_systemd {
            format!("{}:crio:{id}", self.slice())
        } else {
            format!("/{}/crio-{id}", self.parent())
        };
        let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        if needs(self.test, "cpu").is_ok() {
            resources["cpu"] = json!({ "shares": 2 });
        }
        // crun 1.8 knows no limit of -1 with cgroup v1.
        if self.test.host.is_rt {
            resources["pids"] = json!({ "limit": -1 });
        }
        let bundle = bundle.edit(|config| {
            let args = config["process"]["args"].clone();
            // The versions of runc and crun that the tests know refuse a newer one.
            config["ociVersion"] = json!(if self.test.host.is_rt { "1.3.0" } else { "1.0.2" });
            config["process"] = json!({
                "user": { "uid": 0, "gid": 0, "additionalGids": [0] }, "args": args, "cwd": "/",
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", "HOSTNAME=pod"],
                "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
                "oomScoreAdj": 1000,
            });
            config["root"] = json!({ "path": rootfs });
            config["hostname"] = json!("pod");
            config["mounts"] = mounts;
            config["linux"] = json!({
                "cgroupsPath": cgroup, "namespaces": namespaces,
                "resources": resources,
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/dev"],
                "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            });
        });
        let bundle = [
            ("io.container.manager", "cri-o"),
            ("io.kubernetes.pod.name", "pod"),
            ("io.kubernetes.cri-o.ContainerType", kind),
            ("io.kubernetes.cri-o.ContainerID", id),
            ("io.kubernetes.cri-o.SandboxID", &self.id),
            ("io.kubernetes.cri-o.Labels", r#"{"io.kubernetes.pod.name":"pod"}"#),
        ]
        .iter()
        .fold(bundle, |bundle, (key, value)| bundle.annotation(key, value));
        if !self.test.host.by_systemd {
            return Ok(bundle);
        }
        Ok(bundle
            .annotation("org.systemd.property.TimeoutStopUSec", "uint64 10000000")
            .annotation("org.systemd.property.DefaultDependencies", "true")
            .annotation("org.systemd.property.After", "['crio.service']"))
    }

    fn parent(&self) -> String {
        format!("pod{}", self.id)
    }

    /// A hyphen in the name of a slice would make slices above it.
    fn slice(&self) -> String {
        format!("pod{}.slice", self.id.replace('-', "_"))
    }

    /// A container of the pod. CRI-O has written its configuration, and not yet called conmon.
    fn container<'p>(&'p self, bundle: Bundle<'a>) -> Outcome<Member<'p, 'a>> {
        let conmon = Conmon::new(self.test)?;
        let bundle = self.configured(bundle, &conmon.id, "container")?;
        let runtime = self.test.host.runtime.clone();
        Ok(Member { pod: self, conmon, bundle, runtime })
    }

    fn sh<'p>(&'p self, script: &str) -> Outcome<Member<'p, 'a>> {
        self.container(self.test.sh(script)?)
    }

    /// The container that CRI-O keeps with `drop_infra_ctr = false`, and for pods whose containers
    /// see each other's processes.
    fn pause<'p>(&'p self, bundle: Bundle<'a>) -> Outcome<Member<'p, 'a>> {
        let conmon = Conmon::new(self.test)?;
        let adjustment = score_of_pause()?;
        let bundle = self.configured(bundle, &conmon.id, "sandbox")?.edit(|config| {
            config["root"]["readonly"] = json!(true);
            config["process"]["oomScoreAdj"] = json!(adjustment);
            if let Some(list) = &self.infra {
                config["linux"]["resources"]["cpu"]["cpus"] = json!(list);
            }
            if self.root().is_some() {
                let map = json!([{ "containerID": 0, "hostID": ROOT, "size": 65536 }]);
                config["linux"]["uidMappings"] = map.clone();
                config["linux"]["gidMappings"] = map;
            }
        });
        let runtime = self.test.host.runtime.clone();
        Ok(Member { pod: self, conmon, bundle, runtime })
    }

    /// What comes before the name of each program that CRI-O starts.
    fn confinement(&self) -> Vec<String> {
        let list = self.infra.iter();
        list.flat_map(|list| ["taskset".into(), "--cpu-list".into(), list.clone()]).collect()
    }

    /// Moves a process to conmon's cgroup. By systemd, CRI-O makes a scope for it.
    fn place(&self, process: &Child, id: &str) -> Outcome {
        if self.test.host.by_systemd {
            return Ok(());
        }
        let v2 = self.test.host.lane == "v2";
        if !v2 {
            needs(self.test, "pids")?;
        }
        let hierarchy = if v2 { "" } else { "pids" };
        let cgroup = Path::new("/sys/fs/cgroup").join(hierarchy).join(self.parent());
        let cgroup = cgroup.join(format!("crio-conmon-{id}"));
        fs::create_dir_all(&cgroup)?;
        Ok(fs::write(cgroup.join("cgroup.procs"), process.id().to_string())?)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        for (id, file) in self.made.borrow().iter() {
            // The test looks for leftovers later.
            let _ = self.test.rt(["delete", "--force", id]);
            let pid = fs::read_to_string(file).unwrap_or_default();
            let _ = wait_until("conmon has ended", || {
                let command = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
                !String::from_utf8_lossy(&command).contains(id.as_str())
            });
        }
        // A process leaves its cgroup a little after its end.
        let _ = wait_until("the pod's cgroups are gone", || {
            cgroups_of(&self.parent()).iter().for_each(|cgroup| remove_cgroup(cgroup));
            cgroups_of(&self.parent()).is_empty()
        });
        if self.test.host.by_systemd {
            let _ = Command::new("systemctl").args(["stop", &self.slice()]).status();
        }
    }
}

/// Removes a cgroup with those below it. A cgroup with processes in it stays.
fn remove_cgroup(cgroup: &Path) {
    for below in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&below.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// A conmon that waits for a byte through its start pipe.
struct Waiting {
    conmon: Child,
    sync: UnixStream,
    start: UnixStream,
}

impl Waiting {
    /// CRI-O's message to conmon, and conmon's message to CRI-O. Like CRI-O, this waits until
    /// nobody holds conmon's standard error.
    fn go(mut self) -> Outcome<Value> {
        self.start.write_all(&[0])?;
        let mut text = String::new();
        self.conmon.stderr.take().ok_or("no stderr")?.read_to_string(&mut text)?;
        self.conmon.wait()?;
        let mut line = String::new();
        self.sync.set_read_timeout(Some(Duration::from_secs(60)))?;
        BufReader::new(self.sync).read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|error| format!("{error}: {line:?} {text}").into())
    }
}

/// One container of a pod.
struct Member<'p, 'a> {
    pod: &'p Pod<'a>,
    conmon: Conmon<'a>,
    bundle: Bundle<'a>,
    /// CRI-O creates a container of some platforms with another program than the handler's.
    runtime: PathBuf,
}

impl<'a> Member<'_, 'a> {
    fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.bundle.config);
        self
    }

    /// The container joins this pid namespace.
    fn among(mut self, path: &str) -> Self {
        self.bundle = self.bundle.namespace(json!({ "type": "pid", "path": path }));
        self
    }

    fn id(&self) -> &str {
        &self.conmon.id
    }

    fn test(&self) -> &'a Test {
        self.pod.test
    }

    fn state_root(&self) -> String {
        self.test().state_root().display().to_string()
    }

    /// Starts conmon. Descriptor 3 is the sync pipe, and 4 the start pipe.
    fn conmon(&self, folder: &Path, args: &[&str]) -> Outcome<Waiting> {
        let (sync, theirs) = UnixStream::pair()?;
        let (start, begin) = UnixStream::pair()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 3<&0 4<&1 </dev/null >&2; exec \"$@\"", "sh"]);
        command.args(self.pod.confinement()).arg("conmon").args(args).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs([
            ("_OCI_SYNCPIPE", "3"),
            ("_OCI_STARTPIPE", "4"),
            ("XDG_RUNTIME_DIR", "/run"),
        ]);
        command.current_dir(folder).process_group(0);
        command.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(begin)).stderr(Stdio::piped());
        Ok(Waiting { conmon: command.spawn()?, sync, start })
    }

    fn launch(&self, flags: &[&str]) -> Outcome<Waiting> {
        self.bundle.write()?;
        let bundle = self.bundle.folder.display();
        let (id, runtime, own) = (self.id(), self.runtime.display(), self.conmon.folder.display());
        let file = self.bundle.folder.join("conmon-pidfile");
        self.pod.made.borrow_mut().push((id.to_owned(), file));
        let manager = if self.test().host.by_systemd { " -s" } else { "" };
        let args = format!(
            "-b {bundle} -c {id} --exit-dir {own}/exits -l {own}/log --log-level info -n {NAME} \
             -P {bundle}/conmon-pidfile -p {bundle}/pidfile --persist-dir {own}/persist -r {runtime} \
             --runtime-arg --root={} --socket-dir-path {own}/sockets --syslog -u {id}{manager}",
            self.state_root()
        );
        let args: Vec<&str> = args.split(' ').chain(flags.iter().copied()).collect();
        self.conmon(&self.bundle.folder, &args)
    }

    /// Creates the container, and returns conmon's message.
    fn try_create(&self, flags: &[&str]) -> Outcome<Value> {
        let waiting = self.launch(flags)?;
        self.pod.place(&waiting.conmon, self.id())?;
        waiting.go()
    }

    /// Creates the container. CRI-O compares the pid later with the one in the pid file.
    fn create(&self, flags: &[&str]) -> Outcome {
        let said = self.try_create(flags)?;
        ensure(said["pid"].as_i64().is_some_and(|pid| pid > 0), &said)?;
        let file = fs::read_to_string(self.bundle.folder.join("pidfile"))?;
        ensure_eq(said, json!({ "pid": file.parse::<i64>()? }))
    }

    fn start(&self, flags: &[&str]) -> Outcome {
        self.create(flags)?;
        self.rt(&["start", self.id()])?.success().map(drop)
    }

    /// Creates and starts the container, and waits for a line of its output.
    fn begin(&self, flags: &[&str], words: &str) -> Outcome {
        self.start(flags)?;
        self.wait_for(words)
    }

    fn wait_for(&self, words: &str) -> Outcome {
        wait_until(&format!("{words:?} is in the log"), || {
            self.conmon.log().is_ok_and(|log| log.contains(words))
        })
    }

    /// The runtime, as CRI-O calls it directly: without a path for programs.
    fn command(&self, args: &[&str]) -> Command {
        let mut words = self.pod.confinement();
        words.push(self.test().host.runtime.display().to_string());
        words.extend(["--root".into(), self.state_root()]);
        if self.test().host.by_systemd && args.first() != Some(&"update") {
            words.push("--systemd-cgroup".into());
        }
        words.extend(args.iter().map(|&arg| arg.to_owned()));
        let mut command = Command::new("/usr/bin/env");
        command.args(["-i", "XDG_RUNTIME_DIR=/run"]).args(words).stdin(Stdio::null());
        command
    }

    fn rt(&self, args: &[&str]) -> Outcome<Output> {
        Output::of(self.command(args))
    }

    fn pid(&self) -> Outcome<String> {
        Ok(fs::read_to_string(self.bundle.folder.join("pidfile"))?)
    }

    /// The file with the process for `exec`: the container's, with other arguments.
    fn process(&self, script: &str, terminal: bool) -> Outcome<String> {
        let mut process = self.bundle.config["process"].clone();
        process["args"] = json!(["/bin/sh", "-c", script]);
        process["terminal"] = json!(terminal);
        self.write("exec-process", &process)
    }

    fn write(&self, name: &str, text: impl Display) -> Outcome<String> {
        let file = self.test().folder.join(format!("{name}-{}", self.test().id()));
        fs::write(&file, text.to_string())?;
        Ok(file.display().to_string())
    }

    /// `ExecSync`: conmon's message, and the output.
    fn exec_in(
        &self,
        process: &str,
        flags: &[&str],
        place: impl FnOnce(&Child) -> Outcome,
    ) -> Outcome<(Value, String)> {
        let second = self.conmon.beside(self.conmon.folder.join(self.test().id()))?;
        let (pid, log) = (self.write("pidfile", "")?, second.path("log"));
        fs::write(&log, "")?;
        let (runtime, sockets) = (self.runtime.display(), self.conmon.path("sockets"));
        let flags: String = flags.iter().map(|flag| format!(" {flag}")).collect();
        let manager = if self.test().host.by_systemd { " -s" } else { "" };
        let args = format!(
            "-c {} -n {NAME} -r {runtime} -p {pid} -e -l {log} --socket-dir-path {sockets} --log-level info --sync \
             --log-global-size-max 16777216{flags}{manager} --exec-process-spec {process} --runtime-arg --root={}",
            self.id(),
            self.state_root()
        );
        let args: Vec<&str> = args.split(' ').collect();
        let waiting = self.conmon(Path::new("/"), &args)?;
        place(&waiting.conmon)?;
        Ok((waiting.go()?, second.log()?))
    }

    fn exec(&self, script: &str, flags: &[&str]) -> Outcome<(Value, String)> {
        let process = self.process(script, flags.contains(&"-t"))?;
        self.exec_in(&process, flags, |_| Ok(()))
    }

    /// The output of a script in the container, by `ExecSync`.
    fn inside(&self, script: &str) -> Outcome<String> {
        let (said, log) = self.exec(script, &[])?;
        ensure_eq(said, json!({ "exit_code": 0 }))?;
        Ok(log.replace("stdout F ", ""))
    }

    fn exit_code(&self) -> Outcome<String> {
        self.conmon.exit_code()
    }

    /// CRI-O asks the runtime, and for its exit code looks at conmon's file.
    fn status(&self) -> Outcome<String> {
        let state: Value =
            serde_json::from_str(&self.rt(&["state", self.id()])?.success()?.stdout)?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    fn delete(&self) -> Outcome {
        self.rt(&["delete", "--force", self.id()])?.success().map(drop)
    }
}

/// The name of a namespace of the tests, which is the host's.
fn of_the_host(link: &str) -> Outcome<String> {
    Ok(format!("{}\n", fs::read_link(format!("/proc/self/ns/{link}"))?.display()))
}

fn a_creation_waits_until_conmon_is_in_its_cgroup(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?;
    let waiting = container.launch(&[])?;
    std::thread::sleep(Duration::from_millis(200));
    ensure(!test.state_root().join(container.id()).exists(), "it did not wait")?;
    pod.place(&waiting.conmon, container.id())?;
    let said = waiting.go()?;
    let of = |pid: &Value| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let (end, parent) = if test.host.by_systemd {
        (format!("/{}/crio-{}.scope", pod.slice(), container.id()), pod.slice())
    } else {
        (format!("/{}/crio-{}", pod.parent(), container.id()), pod.parent())
    };
    let cgroups = of(&said["pid"])?;
    let own: Vec<&str> = cgroups.lines().filter(|line| line.contains(&parent)).collect();
    ensure(!own.is_empty() && own.iter().all(|line| line.ends_with(&end)), &cgroups)?;
    if !test.host.by_systemd {
        let conmon = fs::read_to_string(container.bundle.folder.join("conmon-pidfile"))?;
        let cgroups = of(&serde_json::from_str(&conmon)?)?;
        ensure(cgroups.contains(&format!("/crio-conmon-{}\n", container.id())), cgroups)?;
    }
    Ok(())
}

/// `drop_infra_ctr = true`, the default.
fn a_pod_without_pause_has_what_is_pinned(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let script = format!("{}hostname; cat /etc/hostname; ip address show lo", pod.print_pinned());
    let first = pod.sh(
        "touch /dev/shm/file; echo $$; trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done",
    )?;
    first.begin(&[], "up")?;
    ensure_eq(first.conmon.log()?.as_str(), "stdout F 1\nstdout F up\n")?;
    let seen = first.inside(&script)?;
    ensure(seen.starts_with(&format!("{}pod\npod\n", pod.pinned()?)), &seen)?;
    ensure(seen.contains("127.0.0.1") && seen.contains("LOWER_UP"), &seen)?;
    first.rt(&["kill", first.id(), "15"])?.success()?;
    ensure_eq(first.exit_code()?.as_str(), "3")?;
    first.delete()?;
    // kubelet restarts a container. Its pod is still the same.
    let second = pod.sh("exec sleep 60")?;
    second.start(&[])?;
    ensure_eq(second.inside(&script)?, seen)?;
    ensure_eq(second.inside("ls /dev/shm")?.as_str(), "file\n")?;
    ensure(fs::read_to_string("/proc/sys/kernel/hostname")?.trim() != "pod", "the host's name")
}

/// `shareProcessNamespace`, for which CRI-O keeps pause.
fn a_pod_with_pause_has_its_processes_in_common(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let pause = pod.pause(test.linux(&["/bin/sh", "-c", PAUSE, "a-pause"])?)?;
    pause.start(&[])?;
    let path = format!("/proc/{}/ns/pid", pause.pid()?);
    let mark = format!("child-of-{}", pod.id);
    let forking = format!("sh -c 'while :; do sleep 1; done' {mark} & echo up; exec sleep 60");
    let first = pod.sh(&forking)?.among(&path);
    first.begin(&[], "up")?;
    let second =
        pod.sh("test $$ -gt 1 && echo joined; cat /proc/1/cmdline; exec sleep 60")?.among(&path);
    second.begin(&[], "joined")?;
    second.wait_for("a-pause")?;
    ensure(second.inside("ps")?.contains(&mark), "it does not see the other container")?;
    ensure_eq(second.inside(&pod.print_pinned())?, pod.pinned()?)?;
    // The end of the first process does not end its children.
    first.rt(&["kill", first.id(), "15"])?.success()?;
    ensure_eq(first.exit_code()?.as_str(), "143")?;
    first.delete()?;
    wait_until("its child has ended too", || !has_process(&mark))?;
    ensure_eq(second.status()?.as_str(), "running")?;
    second.delete()?;
    pause.rt(&["kill", pause.id(), "15"])?.success()?;
    ensure_eq(pause.exit_code()?.as_str(), "0")
}

/// `drop_infra_ctr = false`. The configuration has the sysctls beside the paths of the namespaces.
fn the_namespaces_of_a_pod_have_its_sysctls(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let pause = pod.pause(test.sh(PAUSE)?)?.edit(|config| {
        config["linux"]["sysctl"] =
            json!({ "net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1" });
    });
    pause.start(&[])?;
    ensure_eq(pause.inside("cat /proc/1/oom_score_adj")?, format!("{}\n", score_of_pause()?))?;
    let (said, log) = pause.exec("touch /new", &[])?;
    ensure(said["exit_code"] == 1 && log.contains("Read-only file system"), log)?;
    let container = pod.sh("exec sleep 60")?;
    container.start(&[])?;
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced /proc/1/oom_score_adj";
    ensure_eq(container.inside(script)?.as_str(), "77\n1\n1000\n")?;
    ensure_eq(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?.trim(), "0")
}

/// `hostNetwork`. The host name is the pod's even so.
fn a_pod_in_the_hosts_network(test: &Test) -> Outcome {
    let pod = Pod::new(test, &["network"])?;
    let own = pod.folder.join("hosts");
    fs::write(&own, "192.0.2.7 node\n")?;
    let container = pod.sh("exec sleep 60")?.edit(|config| {
        config["hostname"] = json!("node-of-pod");
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.push(json!({ "destination": "/etc/hosts", "type": "bind", "source": own, "options": ["rw", "bind"] }));
            // CRI-O puts these behind the others.
            let (mut later, mut first): (Vec<Value>, Vec<Value>) = mounts
                .drain(..)
                .partition(|mount| mount["destination"].as_str().is_some_and(|to| to.starts_with("/sys")));
            first.append(&mut later);
            *mounts = first;
        }
    });
    container.start(&[])?;
    ensure_eq(container.inside("readlink /proc/self/ns/net")?, of_the_host("net")?)?;
    ensure_eq(container.inside(&pod.print_pinned())?, pod.pinned()?)?;
    ensure_eq(
        container.inside("hostname; cat /etc/hosts")?.as_str(),
        "node-of-pod\n192.0.2.7 node\n",
    )?;
    // The sysfs is of the same network.
    let number = fs::read_to_string("/sys/class/net/lo/ifindex")?;
    ensure_eq(container.inside("cat /sys/class/net/lo/ifindex")?, number)?;
    ensure(
        fs::read_to_string("/proc/sys/kernel/hostname")?.trim() != "node-of-pod",
        "the host's name",
    )
}

/// `hostPID`. CRI-O kills what a container leaves, by `kill -a`.
fn a_pod_among_the_hosts_processes(test: &Test) -> Outcome {
    let pod = Pod::new(test, &["pid"])?;
    let mark = format!("child-of-{}", pod.id);
    let script = format!(
        "sh -c 'while :; do sleep 1; done' {mark} & trap 'exit 4' TERM; echo $$; while :; do sleep 0.1; done"
    );
    let container = pod.sh(&script)?;
    container.begin(&[], "stdout F ")?;
    ensure_eq(container.conmon.log()?, format!("stdout F {}\n", container.pid()?))?;
    ensure_eq(container.inside("readlink /proc/self/ns/pid")?, of_the_host("pid")?)?;
    let own = std::process::id().to_string();
    let seen = container.inside(&format!("cat /proc/{own}/comm"))?;
    ensure_eq(seen, fs::read_to_string("/proc/self/comm")?)?;
    container.rt(&["kill", container.id(), "15"])?.success()?;
    ensure_eq(container.exit_code()?.as_str(), "4")?;
    ensure_eq(container.status()?.as_str(), "stopped")?;
    ensure(has_process(&mark), "the child has ended with the container")?;
    container.rt(&["kill", "-a", container.id(), "9"])?.success()?;
    wait_until("the child has ended", || !has_process(&mark))?;
    container.delete()
}

fn a_pod_with_the_hosts_ipc(test: &Test) -> Outcome {
    let pod = Pod::new(test, &["ipc"])?;
    let container = pod.sh("exec sleep 60")?;
    container.start(&[])?;
    ensure_eq(container.inside("readlink /proc/self/ns/ipc")?, of_the_host("ipc")?)?;
    let file = Path::new("/dev/shm").join(format!("crio-{}", pod.id));
    fs::write(&file, "the host's\n")?;
    let seen = container.inside(&format!("cat {}", file.display()));
    fs::remove_file(file)?;
    ensure_eq(seen?.as_str(), "the host's\n")
}

fn a_privileged_container(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let own = own_capabilities()?;
    let names = ALL_CAPABILITIES.split_whitespace().enumerate();
    let names = names.filter(|(number, _)| own & 1 << number != 0);
    let all: Vec<String> = names.map(|(_, name)| format!("CAP_{name}")).collect();
    let container = pod.sh("exec sleep 60")?.edit(|config| {
        config["process"]["capabilities"] =
            json!({ "bounding": all, "effective": all, "permitted": all, "inheritable": all });
        for mount in config["mounts"].as_array_mut().into_iter().flatten() {
            if let Some(options) = mount["options"].as_array_mut()
                && options.contains(&json!("ro"))
            {
                options.retain(|option| option != "ro");
                options.extend([json!("rw"), json!("rslave")]);
            }
        }
        let linux = &mut config["linux"];
        linux["maskedPaths"] = Value::Null;
        linux["readonlyPaths"] = Value::Null;
        linux["namespaces"].as_array_mut().into_iter().for_each(|all| all.retain(|one| one["type"] != "cgroup"));
        linux["devices"] = json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600, "uid": 0, "gid": 0 }]);
        linux["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    });
    container.start(&[])?;
    let seen = container.inside("grep CapEff /proc/self/status")?;
    ensure_eq(seen, format!("CapEff:\t{own:016x}\n"))?;
    ensure_eq(container.inside("grep -c ' /proc/' /proc/self/mountinfo; true")?.as_str(), "0\n")?;
    // A device that CRI-O lists, and one that nobody lists.
    let script = "mknod /tmp/kmsg c 1 11 && for f in /dev/kmsg /tmp/kmsg; do : > $f && echo opened; done; \
                  grep -c ' /sys rw,\\| /sys/fs/cgroup rw,' /proc/self/mountinfo";
    ensure_eq(container.inside(script)?.as_str(), "opened\nopened\n2\n")
}

/// `hostUsers: false`. Volumes are mapped, and pause has the mappings beside the path.
fn a_pod_in_a_user_namespace(test: &Test) -> Outcome {
    let pod = Pod::of_users(test, &[])?;
    let pause = pod.pause(test.sh(PAUSE)?)?;
    pause.start(&[])?;
    let volume = pod.folder.join("volume");
    fs::create_dir(&volume)?;
    let container = pod.sh("touch /tmp/new /dev/shm/new; echo up; exec sleep 60")?.edit(|config| {
        let map = json!([{ "containerID": 0, "hostID": ROOT, "size": 65536 }]);
        let mut mount = json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "rprivate", "rw", "bind"] });
        mount["uidMappings"] = map.clone();
        mount["gidMappings"] = map;
        config["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(mount.clone()));
    });
    container.begin(&[], "up")?;
    for member in [&pause, &container] {
        ensure_eq(member.inside(&pod.print_pinned())?, pod.pinned()?)?;
        let map = member.inside("id -u; cat /proc/self/uid_map")?;
        ensure_eq(map.split_whitespace().collect::<Vec<_>>(), vec!["0", "0", "100000", "65536"])?;
    }
    container.inside("touch /volume/new && echo x > /dev/null")?;
    let owner = |path: PathBuf| fs::metadata(path).map(|file| file.uid());
    ensure_eq(owner(container.bundle.rootfs().join("tmp/new"))?, ROOT)?;
    ensure_eq(owner(pod.folder.join("shm/new"))?, ROOT)?;
    ensure_eq(owner(volume.join("new"))?, 0)?;
    ensure_eq(fs::metadata(format!("/proc/{}", container.pid()?))?.uid(), ROOT)
}

/// Such a pod may not mount a sysfs of the host's network. CRI-O mounts the host's.
fn a_pod_in_a_user_namespace_in_the_hosts_network(test: &Test) -> Outcome {
    let pod = Pod::of_users(test, &["network"])?;
    let container = pod.sh("exec sleep 60")?.edit(|config| {
        for mount in config["mounts"].as_array_mut().into_iter().flatten() {
            if mount["destination"] == "/sys" {
                *mount = json!({ "destination": "/sys", "type": "bind", "source": "/sys",
                    "options": ["nosuid", "noexec", "nodev", "ro", "rbind"] });
            }
        }
    });
    container.start(&[])?;
    ensure_eq(container.inside("readlink /proc/self/ns/net")?, of_the_host("net")?)?;
    ensure_eq(container.inside(&pod.print_pinned())?, pod.pinned()?)?;
    ensure_eq(
        container.inside("id -u; test -L /sys/class/net/lo && echo lo")?.as_str(),
        "0\nlo\n",
    )?;
    let (said, _) = container.exec("echo x > /sys/kernel/mm/ksm/run", &[])?;
    ensure(said["exit_code"] != 0, "it changes the host")
}

/// A pod under `infra_ctr_cpuset`, and the list of all processors.
fn confined(test: &Test) -> Outcome<(Pod<'_>, String)> {
    let all = test.sh(PROCESSORS)?.run()?.success()?.stdout;
    if !all.contains(['-', ',']) {
        return skip("there is one processor");
    }
    let mut pod = Pod::new(test, &[])?;
    pod.infra = Some(first_processor(&all));
    Ok((pod, all))
}

/// `infra_ctr_cpuset`: CRI-O starts conmon and the runtime by taskset(1). runc before 1.4 and crun
/// pass on the processors of their caller.
fn a_confined_crio_confines_pause_alone(test: &Test) -> Outcome {
    test.only_rt()?;
    needs(test, "cpuset")?;
    let (pod, all) = confined(test)?;
    let pause = pod.pause(test.sh(&format!("{PROCESSORS}; {PAUSE}"))?)?.edit(|config| {
        config["linux"]["resources"]["cpu"]["mems"] = json!("0");
    });
    pause.begin(&[], "Cpus")?;
    let one = format!("Cpus_allowed_list:\t{}\n", first_processor(&all));
    ensure_eq(pause.conmon.log()?, format!("stdout F {one}"))?;
    ensure_eq(pause.inside(PROCESSORS)?, one)?;
    let container = pod.sh(&format!("{PROCESSORS}; exec sleep 60"))?;
    container.begin(&[], "Cpus")?;
    ensure_eq(container.conmon.log()?, format!("stdout F {all}"))?;
    ensure_eq(container.inside(PROCESSORS)?, all.clone())?;
    let file = container.process(PROCESSORS, false)?;
    container.rt(&["exec", "--process", &file, container.id()])?.success()?.stdout(&all).map(drop)
}

/// `exec_cpu_affinity = "first"`: the container's process has this field, and each `exec` has it
/// too.
fn exec_begins_on_the_first_processor(test: &Test) -> Outcome {
    // runc knows the field since 1.3, and crun since 1.20.
    test.only_rt()?;
    needs(test, "cpuset")?;
    let all = test.sh(PROCESSORS)?.run()?.success()?.stdout;
    let list = all.split_whitespace().last().unwrap_or_default().to_owned();
    let pod = Pod::new(test, &[])?;
    let container = pod.sh(&format!("{PROCESSORS}; exec sleep 60"))?.edit(|config| {
        config["process"]["execCPUAffinity"] = json!({ "initial": first_processor(&all) });
        config["linux"]["resources"]["cpu"] = json!({ "shares": 1024, "cpus": list, "mems": "0" });
    });
    container.begin(&[], "Cpus")?;
    ensure_eq(container.conmon.log()?, format!("stdout F {all}"))?;
    let seen = container.inside(PROCESSORS)?;
    let one = format!("Cpus_allowed_list:\t{}\n", first_processor(&all));
    // The move to the container's cpuset keeps the affinity since Linux 6.2.
    ensure(seen == one || seen == all && kernel()? < (6, 2), seen)
}

/// `monitor_exec_cgroup = "container"`: CRI-O moves the conmon of a probe to the container's
/// cgroup.
fn exec_begins_in_the_cgroup_of_the_container(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?;
    container.start(&[])?;
    let own = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    let place = |conmon: &Child| -> Outcome {
        for cgroup in cgroups_of(&format!("crio-{}", container.id())) {
            fs::write(cgroup.join("cgroup.procs"), conmon.id().to_string())?;
        }
        Ok(())
    };
    let process = container.process("cat /proc/self/cgroup; exit 5", false)?;
    let (said, log) = container.exec_in(&process, &[], place)?;
    ensure_eq(said, json!({ "exit_code": 5 }))?;
    if test.host.lane == "v2" {
        return ensure(log.ends_with("stdout F 0::/\n"), log);
    }
    ensure_eq(log.replace("stdout F ", ""), own)
}

/// After 1.36, CRI-O starts an `exec` with streams in a cgroup `exec` below the container's.
fn exec_begins_in_a_cgroup_below_the_containers(test: &Test) -> Outcome {
    if test.host.lane != "v2" {
        return skip("CRI-O does so only with cgroup v2");
    }
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?;
    container.start(&[])?;
    let found = cgroups_of(&format!("crio-{}", container.id()));
    let below = found.first().ok_or("no cgroup")?.join("exec");
    fs::create_dir(&below)?;
    let file = container.process("cat /proc/self/cgroup; exit 6", false)?;
    let runtime = container.command(&["exec", "--process", &file, container.id()]);
    let mut command = Command::new("sh");
    let script = "echo $$ > \"$1\"/cgroup.procs; shift; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(&below);
    command.arg(runtime.get_program()).args(runtime.get_args()).stdin(Stdio::null());
    let seen = Output::of(command)?.code(6)?.stdout;
    ensure(seen.ends_with("0::/\n"), seen)?;
    container.delete()?;
    ensure(!below.exists(), "the cgroup below is left")
}

/// CRI-O changes the actions of a filter to `SCMP_ACT_NOTIFY`, and answers ENOSYS.
fn the_notifier_gets_the_calls_of_the_container_and_of_exec(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let script = "mkdir /tmp/new; echo up; exec sleep 60";
    let socket = pod.folder.join("notifier");
    let listener = UnixListener::bind(&socket)?;
    let container = pod.sh(script)?.edit(|config| {
        let mut filter = deny(json!({ "action": "SCMP_ACT_NOTIFY" }));
        filter["listenerPath"] = json!(socket);
        config["linux"]["seccomp"] = filter;
        config["annotations"]["seccomp-notifier-action.crio.io"] = json!("stop");
    });
    // 38 is ENOSYS.
    let agent = answering(listener.try_clone()?, 38);
    container.begin(&[], "up")?;
    ensure(container.conmon.log()?.contains("Function not implemented"), container.conmon.log()?)?;
    let text = joined(agent)?;
    ensure_eq(&text["fds"], &json!(["seccompFd"]))?;
    ensure_eq(&text["state"]["id"], &json!(container.id()))?;
    let agent = answering(listener, 38);
    let (said, log) = container.exec("mkdir /tmp/new", &[])?;
    ensure(said["exit_code"] == 1 && log.contains("Function not implemented"), log)?;
    ensure_eq(&joined(agent)?["fds"], &json!(["seccompFd"]))
}

fn a_probe_gets_the_output_and_the_code(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?.edit(|config| {
        config["process"]["user"] =
            json!({ "uid": 1000, "gid": 1000, "additionalGids": [1000, 7] });
        config["process"]["cwd"] = json!("/tmp");
    });
    container.start(&[])?;
    let (said, log) = container.exec("pwd; id; echo bad >&2; exit 9", &[])?;
    ensure_eq(said, json!({ "exit_code": 9 }))?;
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    ensure_eq(lines.len(), 3)?;
    ensure_eq((lines[0], lines[1]), ("stderr F bad", "stdout F /tmp"))?;
    ensure(lines[2].contains("uid=1000") && lines[2].contains("7"), log)
}

/// conmon kills the process group of the program. CRI-O recognizes this message.
fn a_probe_that_takes_too_long_is_ended(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done")?;
    container.begin(&[], "up")?;
    let mark = format!("probe-of-{}", pod.id);
    let script = format!("echo before; sh -c 'while :; do sleep 1; done' {mark} & sleep 60");
    let (said, log) = container.exec(&script, &["-T", "1"])?;
    ensure_eq(said, json!({ "exit_code": -1, "message": "command timed out" }))?;
    ensure_eq(log.as_str(), "stdout F before\n")?;
    wait_until("it is gone", || !has_process(&mark))?;
    container.rt(&["kill", container.id(), "15"])?.success()?;
    ensure_eq(container.exit_code()?.as_str(), "5")
}

/// CRI-O has made the pid file, and it is empty.
fn a_probe_without_its_program_fails_with_the_reason(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?;
    container.start(&[])?;
    let mut process = container.bundle.config["process"].clone();
    process["args"] = json!(["/none"]);
    let file = container.write("exec-process", process)?;
    let (said, _) = container.exec_in(&file, &[], |_| Ok(()))?;
    ensure_eq(&said["exit_code"], &json!(-1))?;
    let message = said["message"].as_str().unwrap_or_default().to_lowercase();
    ensure(message.contains("/none") && message.contains("no such file or directory"), said)
}

/// `kubectl exec -i`. CRI-O gives its pipe to the container's user.
fn exec_with_streams_gets_those_of_the_user(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    container.start(&[])?;
    let script = "cat /dev/stdin; env | grep -c 'NOTIFY\\|RUNTIME_DIR'; echo bad >&2; exit 4";
    let file = container.process(script, false)?;
    // CRI-O can be a service that tells systemd when it is ready.
    let runtime = container.command(&["exec", "--process", &file, container.id()]);
    let mut command = Command::new("/usr/bin/env");
    command.args(["-i", "NOTIFY_SOCKET=/run/none"]).args(runtime.get_args().skip(1));
    let (pipe, mut input) = std::io::pipe()?;
    std::os::unix::fs::fchown(&pipe, Some(1000), Some(1000))?;
    command.stdin(pipe).stdout(Stdio::piped()).stderr(Stdio::piped());
    let exec = command.spawn()?;
    drop(command);
    input.write_all(b"words\n")?;
    drop(input);
    let output = exec.wait_with_output()?;
    ensure_eq(String::from_utf8(output.stdout)?.as_str(), "words\n0\n")?;
    ensure_eq(String::from_utf8(output.stderr)?.as_str(), "bad\n")?;
    ensure_eq(output.status.code(), Some(4))
}

/// CRI-O shows the message after `container create failed: `, and deletes the container.
fn a_creation_that_fails_tells_the_reason_and_leaves_nothing(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.container(test.linux(&["/none"])?)?;
    let said = container.try_create(&[])?;
    ensure_eq(&said["pid"], &json!(-1))?;
    let message = said["message"].as_str().unwrap_or_default().to_lowercase();
    ensure(message.contains("no such file or directory"), &said)?;
    container.delete()?;
    ensure_eq(cgroups_of(&format!("crio-{}", container.id())), Vec::new())
}

/// The runtime and the hook end with conmon. Then CRI-O deletes the container.
fn a_creation_that_hangs_ends_with_its_conmon(test: &Test) -> Outcome {
    test.only_rt()?;
    let pod = Pod::new(test, &[])?;
    let mark = format!("hook-of-{}", pod.id);
    let container = pod.sh("exec sleep 60")?.edit(|config| {
        config["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh",
            "args": ["sh", "-c", "for i in $(seq 120); do sleep 1; done", mark], "env": ["PATH=/usr/bin:/bin"] }]);
    });
    let mut waiting = container.launch(&[])?;
    pod.place(&waiting.conmon, container.id())?;
    waiting.start.write_all(&[0])?;
    wait_until("the hook runs", || has_process(&mark))?;
    waiting.conmon.wait()?;
    let file = fs::read_to_string(container.bundle.folder.join("conmon-pidfile"))?;
    let pid = Pid::from_raw(file.parse()?).filter(|pid| !pid.is_init()).ok_or("no pid")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    container.delete()?;
    wait_until("the hook has ended", || !has_process(&mark))?;
    ensure(!test.state_root().join(container.id()).exists(), "the state is left")?;
    ensure_eq(cgroups_of(&format!("crio-{}", container.id())), Vec::new())
}

fn a_stop_ends_what_is_deaf_or_paused(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("trap '' TERM; echo up; while :; do sleep 0.1; done")?;
    container.begin(&[], "up")?;
    let id = container.id();
    if test.host.lane == "v2" || needs(test, "freezer").is_ok() {
        container.rt(&["pause", id])?.success()?;
        ensure_eq(container.status()?.as_str(), "paused")?;
        container.rt(&["resume", id])?.success()?;
    }
    container.rt(&["kill", id, "15"])?.success()?;
    ensure_eq(container.status()?.as_str(), "running")?;
    // CRI-O repeats this until the process is gone, and expects one of these errors.
    container.rt(&["kill", id, "KILL"])?.success()?;
    ensure_eq(container.exit_code()?.as_str(), "137")?;
    let mut again = container.rt(&["kill", id, "KILL"])?;
    if !test.host.is_rt {
        // crun has a capital letter here.
        again.stderr.make_ascii_lowercase();
    }
    let words = ["container not running", "no such process", "invalid process"];
    ensure(
        again.code != Some(0) && words.iter().any(|word| again.stderr.contains(word)),
        again.stderr,
    )?;
    ensure_eq(container.status()?.as_str(), "stopped")?;
    container.delete()?;
    container.delete()?;
    ensure(container.rt(&["state", id])?.code != Some(0), "it is still there")
}

/// CRI-O looks for the file in the bundle, which is conmon's working directory.
fn a_lack_of_memory_leaves_a_file_in_the_bundle(test: &Test) -> Outcome {
    needs(test, "memory")?;
    if test.host.by_systemd {
        return skip("systemd removes the cgroup before conmon looks, at times");
    }
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("sh -c 'x=x; while :; do x=$x$x; done'; exit 9")?.edit(|config| {
        let limit = 16 << 20;
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
    });
    container.start(&[])?;
    ensure_eq(container.exit_code()?.as_str(), "9")?;
    ensure(container.bundle.folder.join("oom").exists(), "no file `oom`")
}

/// `log_size_max`: conmon begins the log anew. The container writes on.
fn a_log_stays_below_its_limit(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i of a log that is too long; done; exit 2";
    let container = pod.sh(script)?;
    container.start(&["--log-size-max", "8192", "--no-sync-log"])?;
    ensure_eq(container.exit_code()?.as_str(), "2")?;
    let log = container.conmon.log()?;
    ensure(log.ends_with("stdout F line 100 of a log that is too long\n"), &log)?;
    ensure(fs::metadata(container.conmon.folder.join("log"))?.len() <= 8192, log)
}

/// `stdin` with `stdinOnce`.
fn input_ends_with_its_first_client(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("cat; echo end; exit 3")?;
    container.start(&["-i"])?;
    let mut client = container.conmon.attach()?;
    client.write_all(b"words\n")?;
    read_attached(&mut client, "words\n")?;
    drop(client);
    ensure_eq(container.exit_code()?.as_str(), "3")?;
    ensure_eq(container.conmon.log()?.as_str(), "stdout F words\nstdout F end\n")
}

fn input_outlives_its_first_client(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("read a; echo $a; read b; echo $b; exit 3")?;
    container.start(&["--leave-stdin-open", "-i"])?;
    for words in ["first\n", "second\n"] {
        let mut client = container.conmon.attach()?;
        client.write_all(words.as_bytes())?;
        ensure_eq(read_attached(&mut client, words)?.as_str(), words)?;
    }
    ensure_eq(container.exit_code()?.as_str(), "3")
}

/// `tty`. CRI-O runs the probes of such a container on a terminal too.
fn a_terminal_is_the_containers_and_the_probes(test: &Test) -> Outcome {
    let pod = Pod::new(test, &[])?;
    let script = "trap 'busybox stty size' WINCH; trap 'exit 5' TERM; test -t 0 && test -t 2 && echo up; while :; do sleep 0.1; done";
    let container = pod.sh(script)?.edit(|config| config["process"]["terminal"] = json!(true));
    container.begin(&["-t"], "up")?;
    fs::write(container.bundle.folder.join("ctl"), "1 33 99\n")?;
    container.wait_for("33 99")?;
    let (said, log) = container.exec("test -t 0 && echo terminal; exit 4", &["-t"])?;
    ensure_eq((said, log.as_str()), (json!({ "exit_code": 4 }), "stdout F terminal\n"))?;
    container.rt(&["kill", container.id(), "15"])?.success()?;
    ensure_eq(container.exit_code()?.as_str(), "5")
}

/// `update` comes without `--systemd-cgroup`.
fn limits_change_by_standard_input(test: &Test) -> Outcome {
    needs(test, "pids")?;
    let pod = Pod::new(test, &[])?;
    let container = pod.sh("exec sleep 60")?;
    container.start(&[])?;
    let update = container.command(&["update", "--resources", "-", container.id()]);
    Output::with_input(update, r#"{"pids":{"limit":37}}"#)?.success()?;
    let found = cgroups_of(&format!("crio-{}", container.id()));
    let read = |cgroup: &PathBuf| fs::read_to_string(cgroup.join("pids.max")).ok();
    ensure_eq(found.iter().find_map(read).as_deref(), Some("37\n"))
}

/// An annotation of the pod reaches pause too. `platform_runtime_paths`: CRI-O creates the
/// container and runs its probes with one program, and starts, stops and deletes it with the other.
fn a_pod_of_a_module_has_a_program_as_pause(test: &Test) -> Outcome {
    test.only_rt()?;
    let pod = Pod::new(test, &[])?;
    let pause = pod.pause(test.sh(PAUSE)?)?.edit(|config| {
        config["annotations"]["run.oci.handler"] = json!("wasm");
    });
    pause.start(&[])?;
    ensure_eq(pause.inside("echo a program")?.as_str(), "a program\n")?;
    let mut module = pod.container(test.wasm("probe", &["sleep"])?)?;
    let link = test.folder.join("rt-wasm");
    std::os::unix::fs::symlink(&test.host.runtime, &link)?;
    module.runtime = link;
    if let Some(all) = module.bundle.config["annotations"].as_object_mut() {
        all.remove("run.oci.handler");
    }
    module.start(&[])?;
    let mut process = module.bundle.config["process"].clone();
    process["args"] = json!(["/probe.wasm", "exit", "42"]);
    let file = module.write("exec-process", process)?;
    let (said, _) = module.exec_in(&file, &[], |_| Ok(()))?;
    ensure_eq(said, json!({ "exit_code": 42 }))?;
    module.rt(&["kill", module.id(), "15"])?.success()?;
    ensure_eq(module.exit_code()?.as_str(), "143")?;
    module.delete()
}
