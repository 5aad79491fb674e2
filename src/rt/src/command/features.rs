//! `rt features`: what this `rt` supports, as JSON (runtime-spec, `features.md`). Makes nothing.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::bundle::SPECIFICATION;
use crate::container::checkpoint::criu;
use crate::linux::mounts::NAMES as MOUNT_OPTIONS;
use crate::{engine, exe};

const FILTER_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The engines that are installed, by their names. Empty if their folder cannot be read: callers
/// need the other features all the same.
fn engines() -> String {
    let all = exe::engines().and_then(|folder| engine::all(&folder)).unwrap_or_default();
    let usable = all.into_iter().filter(|(_, engine)| engine.is_ok()).map(|(name, _)| name);
    usable.collect::<Vec<_>>().join(",")
}

pub(super) fn execute() -> Result<ExitCode> {
    let capabilities: Vec<String> = rustix::thread::CapabilitySet::all()
        .iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPECIFICATION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "archs": [
                    "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K", "SCMP_ARCH_MIPS",
                    "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64",
                    "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
                    "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_SH",
                    "SCMP_ARCH_SHEB", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
                ],
                "knownFlags": FILTER_FLAGS,
                // Only the kernel knows which flags it supports. `rt` passes them to it unchanged.
                "supportedFlags": FILTER_FLAGS,
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "mountExtensions": { "idmap": { "enabled": true } },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "netDevices": { "enabled": true },
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED", "MPOL_PREFERRED_MANY",
                    "MPOL_WEIGHTED_INTERLEAVE",
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
        },
        "annotations": {
            "dev.rt.version": env!("CARGO_PKG_VERSION"),
            "dev.rt.engines": engines(),
            "org.opencontainers.runc.checkpoint.enabled": criu::version().is_some().to_string(),
        },
        "potentiallyUnsafeConfigAnnotations": [
            "module.wasm.image/variant", "io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType",
            "io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "run.oci.", "org.systemd.property.",
            "org.criu.",
        ],
    });
    super::print(&format!("{}\n", serde_json::to_string_pretty(&features)?))?;
    Ok(ExitCode::SUCCESS)
}
