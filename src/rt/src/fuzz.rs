//! Generated input for the functions that read configurations, options of mounts, mappings of ids,
//! filters, limits, states and messages. For any input, these functions must end, without a panic
//! and without an overflow. `RT_FUZZ_SECONDS` limits the time of the test; `make test` gives it a
//! minute. The seed in `RT_FUZZ_SEED` repeats a run.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// Marsaglia's xorshift, with 64 bits. One seed always gives the same inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).expect("less than a usize")
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Everything that a configuration can have, so that every part of it is changed in turn.
fn seed() -> Value {
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }, { "containerID": 1, "hostID": 100_000, "size": 65536 }]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": ["/bin/sh", "-c", "true"], "env": ["PATH=/bin", "A="], "cwd": "/", "terminal": true,
            "user": { "uid": 1, "gid": 2, "additionalGids": [3], "umask": 18 },
            "capabilities": { "bounding": ["CAP_KILL"], "ambient": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 2 }],
            "scheduler": { "policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2048, "period": 4096, "nice": -20,
                "flags": ["SCHED_FLAG_RESET_ON_FORK"] },
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 4 },
            "execCPUAffinity": { "initial": "0-1", "final": "0" },
            "oomScoreAdj": -1, "noNewPrivileges": true, "consoleSize": { "height": 1, "width": 2 },
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "h", "domainname": "d",
        "mounts": [
            { "destination": "/a", "type": "bind", "source": "/b", "options": ["rbind", "ro", "rslave", "idmap=uids=0-1-2#@3-4-5;gids=0-1-2"] },
            { "destination": "/t", "type": "tmpfs", "options": ["size=1k", "mode=755", "tmpcopyup", "rnosuid"] },
            { "destination": "/c", "type": "bind", "source": "/c", "uidMappings": map, "gidMappings": map },
        ],
        "hooks": { "createRuntime": [{ "path": "/x", "args": ["x"], "env": ["A=b"], "timeout": 5 }] },
        "annotations": {
            "org.systemd.property.TimeoutStopUSec": "uint64 1", "org.systemd.property.After": "['a', 'b']",
            "org.systemd.property.Mix": "[('a', <uint32 0x1>)]", "run.oci.systemd.subgroup": "x",
            "run.oci.delegate-cgroup": "y",
        },
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "user" }, { "type": "time" }, { "type": "network", "path": "/proc/1/ns/net" }],
            "uidMappings": map, "gidMappings": map, "cgroupsPath": "a-b.slice:c:d",
            "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 2, "fileMode": 438, "uid": 0, "gid": 0 }],
            "sysctl": { "net.ipv4.ip_forward": "1", "kernel.sem": "1" },
            "maskedPaths": ["/proc/x"], "readonlyPaths": ["/proc/y"], "rootfsPropagation": "rslave",
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    { "names": ["clone", "mkdir", "nothing"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ" }] },
                    { "names": ["write"], "action": "SCMP_ACT_TRACE", "errnoRet": 5 },
                ],
            },
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" }],
                "memory": { "limit": 1, "swap": 2, "reservation": 3, "swappiness": 4 },
                "cpu": { "shares": 1, "quota": 2, "period": 3, "cpus": "0-3,7", "mems": "0", "burst": 4, "idle": 1 },
                "pids": { "limit": 5 }, "blockIO": { "weight": 10 }, "network": { "classID": 1 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }], "rdma": { "m": { "hcaHandles": 1 } },
                "unified": { "cpu.max": "max 100000", "memory.high": "1", "cpuset.cpus": "0-1" },
            },
            "intelRdt": { "closID": "x", "l3CacheSchema": "L3:0=f" },
            "netDevices": { "eth0": { "name": "eth1" } },
            "timeOffsets": { "boottime": { "secs": 1, "nanosecs": 2 } },
            "personality": { "domain": "LINUX32" },
        },
    })
}

/// Another value in the place of one of those in it.
fn change(value: &mut Value, random: &mut Random) {
    let children = match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if children > 0 && random.below(8) > 0 {
        let at = random.below(children);
        let child = match value {
            Value::Object(map) => map.values_mut().nth(at),
            Value::Array(list) => list.get_mut(at),
            _ => None,
        };
        return change(child.expect("one of its children"), random);
    }
    const NUMBERS: [i64; 12] =
        [0, 1, -1, 2, 7, 64, 255, 65_536, i32::MAX as i64, u32::MAX as i64, i64::MAX, i64::MIN];
    *value = match (random.below(9), &*value) {
        (0, _) => Value::Null,
        (1, _) => json!(random.next()),
        (2, Value::Array(list)) => {
            let mut list = list.clone();
            let twice = list.clone();
            list.extend(twice);
            Value::Array(list)
        }
        (3, Value::Array(list)) => Value::Array(list[..random.below(list.len())].to_vec()),
        (4, Value::Object(map)) => {
            let mut map = map.clone();
            let at = random.below(map.len());
            let key = map.keys().nth(at).cloned();
            key.and_then(|key| map.remove(&key));
            Value::Object(map)
        }
        (_, Value::Number(_)) => json!(random.of(&NUMBERS)),
        (_, Value::String(text)) => Value::String(scramble(text, random)),
        (_, Value::Bool(flag)) => Value::Bool(!flag),
        (5, _) => json!(""),
        (_, other) => other.clone(),
    };
}

/// A text that is nearly the same.
fn scramble(text: &str, random: &mut Random) -> String {
    const PIECES: [&str; 24] = [
        "",
        "/",
        "..",
        "-",
        ",",
        ":",
        ";",
        "#",
        "@",
        "=",
        "'",
        "[",
        "(",
        "<",
        "\\",
        "\0",
        "\n",
        " ",
        "0",
        "-1",
        "18446744073709551616",
        "ä",
        "uint64 ",
        "%",
    ];
    let mut characters: Vec<char> = text.chars().collect();
    for _ in 0..=random.below(3) {
        let at = random.below(characters.len() + 1);
        match random.below(4) {
            0 => characters.truncate(at),
            1 if at < characters.len() => {
                characters.remove(at);
            }
            2 => characters = characters.repeat(2),
            _ => {
                let piece: Vec<char> = random.of(&PIECES).chars().collect();
                characters.splice(at..at, piece);
            }
        }
        characters.truncate(4096);
    }
    characters.into_iter().collect()
}

fn scramble_bytes(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(3) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            _ if !bytes.is_empty() => bytes[at] = *random.of(&[0, 1, 0x7f, 0x80, 0xff]),
            _ => bytes.push(0),
        }
    }
    bytes
}

/// Does with a configuration what `create` does before it makes anything.
fn understand(config: &[u8]) {
    let Ok(spec) = crate::bundle::parse(config) else { return };
    understand_spec(&spec);
}

fn understand_spec(spec: &Spec) {
    let Some(linux) = spec.linux() else { return };
    for entry in spec.mounts().iter().flatten() {
        let _ = crate::linux::fuzzed::mount(entry, linux);
    }
    if let Some(seccomp) = linux.seccomp() {
        let _ = crate::linux::fuzzed::seccomp(seccomp);
    }
    let annotations = spec.annotations().clone().unwrap_or_default().into_iter().collect();
    let path = linux.cgroups_path().as_deref();
    let _ = crate::linux::fuzzed::cgroup(path, linux.resources().as_ref(), &annotations);
    let _ = crate::linux::fuzzed::process(spec, linux);
}

#[test]
fn nothing_from_outside_makes_it_panic() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = Duration::from_secs(number("RT_FUZZ_SECONDS").unwrap_or(1));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = number("RT_FUZZ_SEED").unwrap_or(now.expect("a clock").subsec_nanos().into());
    println!("RT_FUZZ_SEED={first}");
    let mut random = Random(first | 1);
    let (seed, text) = (seed(), seed().to_string());
    assert!(crate::bundle::parse(text.as_bytes()).is_ok(), "the seed is no configuration");
    let state = crate::state::sample();
    let message = crate::linux::fuzzed::message();
    let end = Instant::now() + time;
    let mut rounds = 0_u64;
    while Instant::now() < end {
        let mut config = seed.clone();
        for _ in 0..=random.below(4) {
            change(&mut config, &mut random);
        }
        understand(config.to_string().as_bytes());
        understand(&scramble_bytes(text.as_bytes(), &mut random));
        let _ = crate::state::parse(&scramble_bytes(&state, &mut random));
        let mut changed = serde_json::from_slice(&state).expect("a state");
        change(&mut changed, &mut random);
        let _ = crate::state::parse(changed.to_string().as_bytes());
        crate::linux::fuzzed::hear(&scramble_bytes(&message, &mut random));
        let _ = crate::signals::parse(&scramble("SIGRTMIN+3", &mut random));
        rounds += 1;
    }
    println!("{rounds} rounds");
}
