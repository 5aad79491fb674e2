//! A node that runs every kind of workload at the same time: programs, core modules, components and
//! Spin apps.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_cri::v1 as cri;

use super::cri::answer;
use super::podman::Podman;
use super::wasm_cache::has_compiler_of;
use crate::harness::{Outcome, Output, Test, WASMTIME, ensure, ensure_eq, skip, wait_up_to};
use crate::kubelet::{self, Kubelet};

super::tests! { "node":
    kubelet_runs_ten_of_each_kind, podman_runs_ten_of_each_kind,
}

/// A kind of workload. Each is a server that says hello.
struct Kind {
    name: &'static str,
    /// The handler of containerd: that of a Kubernetes RuntimeClass.
    handler: &'static str,
    /// The annotation for podman.
    annotation: &'static str,
    wasm: bool,
    command: &'static [&'static str],
    port: u16,
    hello: &'static str,
}

/// The first process of a pid namespace ends by SIGTERM only if it has a handler.
const SERVE: &str = "trap exit TERM; echo Hello from Linux! >/tmp/index.html; \
                     busybox httpd -p 80 -h /tmp; sleep 600 & wait";

const KINDS: [Kind; 4] = [
    Kind {
        name: "program",
        handler: "rt",
        annotation: "none=of-these",
        wasm: false,
        command: &["/bin/sh", "-c", SERVE],
        port: 80,
        hello: "Hello from Linux!",
    },
    Kind {
        name: "module",
        handler: "rt-wasm",
        annotation: "run.oci.handler=wasmedge",
        wasm: true,
        command: &["/http-server.wasm"],
        port: 8080,
        hello: "Hello from Wasm!",
    },
    Kind {
        name: "component",
        handler: "wasmtime",
        annotation: "run.oci.handler=wasmtime",
        wasm: true,
        command: &["/article.wasm"],
        port: 8080,
        hello: "Hello from Wasm!",
    },
    Kind {
        name: "app",
        handler: "spin",
        annotation: "run.oci.handler=spin",
        wasm: true,
        command: &["/spin.toml"],
        port: 80,
        hello: "Hello from Spin!",
    },
];

/// How many there are of each kind.
const EACH: usize = 10;

fn kubelet_runs_ten_of_each_kind(test: &Test) -> Outcome {
    if !has_compiler_of(test, WASMTIME) {
        return skip("the engine's compiler is not installed here");
    }
    let kubelet = Kubelet::new(test)?;
    let mut all = Vec::new();
    for number in 0..EACH {
        for kind in &KINDS {
            let pod = kubelet.run_pod_named(&format!("{}-{number}", kind.name), kind.handler)?;
            let image = if kind.wasm { kubelet::WASM } else { kubelet::LINUX };
            let container = kubelet.run(&pod, image, kind.command, |_| {})?;
            all.push((kind, pod, container));
        }
    }
    for (kind, pod, _) in &all {
        let text = answer(&kubelet, pod, kind.port)?;
        ensure(text.contains(kind.hello), format!("{}: {text}", kind.name))?;
    }
    let request = cri::ListContainersRequest::default();
    let list = kubelet.ask(async |mut client| client.list_containers(request).await)?;
    let running = cri::ContainerState::ContainerRunning as i32;
    let alive = list.containers.iter().filter(|container| container.state == running);
    ensure_eq(alive.count(), all.len())?;
    // As a node that is drained: each server ends by SIGTERM within its time.
    for (kind, pod, container) in all {
        kubelet.stop(&container, 20)?;
        let code = kubelet.status(&container)?.exit_code;
        ensure(code != 137, format!("the {} had to be killed", kind.name))?;
        kubelet.remove(&pod)?;
    }
    Ok(())
}

fn podman_runs_ten_of_each_kind(test: &Test) -> Outcome {
    if !has_compiler_of(test, WASMTIME) {
        return skip("the engine's compiler is not installed here");
    }
    let podman = Podman::new_in(test, "linux", false)?;
    let _modules = Podman::new_in(test, "wasm", true)?;
    let mut all = Vec::new();
    for number in 0..EACH {
        // Each container has its own network, so that they may listen on the same ports.
        let pod = format!("pod-{number}");
        podman.podman(&["pod", "create", "--infra=false", "--name", &pod])?.success()?;
        for kind in &KINDS {
            let name = format!("{}-{number}", kind.name);
            let image = if kind.wasm { "wasm" } else { "linux" };
            let args =
                ["--detach", "--pod", &pod, "--name", &name, "--annotation", kind.annotation];
            let low = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=0"];
            podman.run(&[&args[..], &low[..], &[image], kind.command].concat())?.success()?;
            all.push((kind, name));
        }
    }
    for (kind, name) in &all {
        let pid = podman.inspect("{{.State.Pid}}", name)?;
        let mut last = String::new();
        let answers = wait_up_to(Duration::from_secs(30), "it answers", || {
            let mut wget = std::process::Command::new("nsenter");
            wget.arg(format!("--net=/proc/{pid}/ns/net"));
            wget.args(["busybox", "wget", "-q", "-O", "-"]);
            wget.arg(format!("http://127.0.0.1:{}/", kind.port));
            last = Output::of(wget).map(|output| output.stdout).unwrap_or_default();
            last.trim() == kind.hello
        });
        ensure(answers.is_ok(), format!("`{name}` answers {last:?}"))?;
    }
    let list =
        podman.podman(&["ps", "--pod", "--format", "{{.Names}} {{.PodName}}"])?.success()?.stdout;
    let pods: BTreeSet<&str> = list.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    ensure_eq((list.lines().count(), pods.len()), (all.len(), EACH))?;
    for number in 0..EACH {
        let pod = format!("pod-{number}");
        podman.podman(&["pod", "rm", "--force", "--time", "20", &pod])?.success()?;
    }
    Ok(())
}
