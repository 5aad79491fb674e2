//! Pods that containerd makes for a kubelet, over gRPC (CRI).

use std::fs;
use std::io::{Read, Write};

use k8s_cri::v1 as cri;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

use super::needs;
use super::wasm_cache::has_compiler_of;
use crate::harness::{
    Outcome, Test, Tmpfs, WASMTIME, cgroups_of, ensure, ensure_eq, skip, wait_until,
};
use crate::kubelet::{Kubelet, LINUX, Pod, WASM, kill_shim};

super::tests! { "cri":
    runs_a_pod_of_a_program_and_a_module, a_handler_of_its_own_needs_no_annotation,
    the_runtime_classes_of_the_shims_need_no_shim, a_pod_of_rt_wasm_may_restrict_its_module, a_pod_of_wasmtime_may_say_how_it_is_served,
    a_pod_of_spin_may_say_how_it_is_served, the_network_is_the_pods, execs, execs_in_a_module,
    execs_with_streams, stops_with_sigterm_then_with_sigkill, stops_in_a_pod_that_shares_processes, updates_and_counts, tells_of_want_of_memory, a_module_out_of_memory_stays_so, says_why_a_container_does_not_start,
    outlives_a_shim_that_was_killed, read_only_is_so_below_if_asked_for,
}

/// Adds the annotation that a pod would have for its container.
fn as_wasm(config: &mut cri::ContainerConfig) {
    config.annotations.insert("run.oci.handler".into(), "wasm".into());
}

fn runs_a_pod_of_a_program_and_a_module(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let program = kubelet.run(&pod, LINUX, &["/bin/sh", "-c", "echo native; exit 7"], |_| {})?;
    let module = kubelet.run(&pod, WASM, &["/hello.wasm"], as_wasm)?;
    let failing = kubelet.run(&pod, WASM, &["/probe.wasm", "exit", "42"], as_wasm)?;
    ensure_eq(kubelet.wait(&program)?.exit_code, 7)?;
    ensure_eq(kubelet.wait(&module)?.exit_code, 0)?;
    ensure_eq(kubelet.wait(&failing)?.exit_code, 42)?;
    ensure_eq(kubelet.output(&program)?.as_str(), "native\n")?;
    ensure_eq(kubelet.output(&module)?.as_str(), "Hello from Wasm!\n")?;
    kubelet.remove(&pod)
}

fn a_handler_of_its_own_needs_no_annotation(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt-wasm")?;
    let module = kubelet.run(&pod, WASM, &["/hello.wasm"], |_| {})?;
    let sidecar = kubelet.run(&pod, LINUX, &["/bin/echo", "native"], |_| {})?;
    ensure_eq(kubelet.wait(&module)?.exit_code, 0)?;
    ensure_eq(kubelet.wait(&sidecar)?.exit_code, 0)?;
    ensure_eq(kubelet.output(&module)?.as_str(), "Hello from Wasm!\n")?;
    ensure_eq(kubelet.output(&sidecar)?.as_str(), "native\n")
}

/// The answer to `GET /`, with its head, from a pod of the kubelet's.
pub(super) fn answer(kubelet: &Kubelet<'_>, pod: &Pod, port: u16) -> Outcome<String> {
    answer_at(kubelet, pod, port, "/")
}

fn answer_at(kubelet: &Kubelet<'_>, pod: &Pod, port: u16, path: &str) -> Outcome<String> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let status = kubelet.ask(async |mut client| client.pod_sandbox_status(request).await)?;
    let network = status.status.and_then(|status| status.network).ok_or("no network")?;
    let mut stream = None;
    wait_until("the server listens", || {
        stream = kubelet.connect(&format!("{}:{port}", network.ip)).ok();
        stream.is_some()
    })?;
    let mut stream = stream.ok_or("no connection")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The handlers `wasmtime` and `spin` are the names that containerd's shims have.
fn the_runtime_classes_of_the_shims_need_no_shim(test: &Test) -> Outcome {
    if !has_compiler_of(test, WASMTIME) {
        return skip("the engine's compiler is not installed here");
    }
    let kubelet = Kubelet::new(test)?;
    for (handler, command, port, hello) in [
        ("wasmtime", "/article.wasm", 8080, "Hello from Wasm!"),
        ("spin", "/spin.toml", 80, "Hello from Spin!"),
    ] {
        let pod = kubelet.run_pod(handler)?;
        let server = kubelet.run(&pod, WASM, &[command], |_| {})?;
        let sidecar = kubelet.run(&pod, LINUX, &["/bin/echo", "native"], |_| {})?;
        let text = answer(&kubelet, &pod, port)?;
        ensure(text.contains(hello), text)?;
        ensure_eq(kubelet.wait(&sidecar)?.exit_code, 0)?;
        kubelet.stop(&server, 20)?;
        kubelet.remove(&pod)?;
    }
    Ok(())
}

/// containerd silently drops an annotation that its configuration does not list for the handler. A
/// module would then have more rights than its pod says.
fn a_pod_of_rt_wasm_may_restrict_its_module(test: &Test) -> Outcome {
    let mut kubelet = Kubelet::new(test)?;
    let (name, none) = ("run.oci.wasm.dirs", String::new);
    let list = |kubelet: &Kubelet<'_>, pod: &Pod, own: bool| -> Outcome<i32> {
        let module = kubelet.run(pod, WASM, &["/probe.wasm", "ls", "/"], |config| {
            if own {
                config.annotations.insert(name.into(), none());
            }
        })?;
        Ok(kubelet.wait(&module)?.exit_code)
    };
    let pod = kubelet.run_pod("rt-wasm")?;
    ensure_eq(list(&kubelet, &pod, false)?, 0)?;
    // The annotation of a container.
    ensure_eq(list(&kubelet, &pod, true)?, 1)?;
    kubelet.remove(&pod)?;
    kubelet.annotations.insert(name.into(), none());
    let pod = kubelet.run_pod("rt-wasm")?;
    ensure_eq(list(&kubelet, &pod, false)?, 1)
}

fn a_pod_of_wasmtime_may_say_how_it_is_served(test: &Test) -> Outcome {
    is_served_as_annotated(test, "wasmtime", "/handler.wasm", 8080)
}

fn a_pod_of_spin_may_say_how_it_is_served(test: &Test) -> Outcome {
    is_served_as_annotated(test, "spin", "/spin.toml", 80)
}

/// The server itself answers at the path of the annotation, of a container or of its pod.
fn is_served_as_annotated(test: &Test, handler: &str, command: &str, port: u16) -> Outcome {
    if !has_compiler_of(test, WASMTIME) {
        return skip("the engine's compiler is not installed here");
    }
    let mut kubelet = Kubelet::new(test)?;
    let health = ("run.oci.wasm.http-health".to_owned(), "/healthy".to_owned());
    for of_the_pod in [false, true] {
        if of_the_pod {
            kubelet.annotations.extend([health.clone()]);
        }
        let pod = kubelet.run_pod(handler)?;
        let server = kubelet.run(&pod, WASM, &[command], |config| {
            if !of_the_pod {
                config.annotations.extend([health.clone()]);
            }
        })?;
        let text = answer_at(&kubelet, &pod, port, "/healthy")?;
        ensure(text.ends_with("\r\n\r\nok\n"), text)?;
        kubelet.stop(&server, 20)?;
        kubelet.remove(&pod)?;
    }
    Ok(())
}

fn the_network_is_the_pods(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let status = kubelet.ask(async |mut client| client.pod_sandbox_status(request).await)?;
    let network = status.status.and_then(|status| status.network).ok_or("no network")?;
    let looking = kubelet.run(&pod, LINUX, &["/bin/sh", "-c", "ip addr; hostname"], |_| {})?;
    kubelet.wait(&looking)?;
    let output = kubelet.output(&looking)?;
    ensure(output.contains(&format!("inet {}/", network.ip)), &output)?;
    ensure(output.ends_with("pod\n"), output)
}

fn execs(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let container = kubelet.run(&pod, LINUX, &["/bin/sleep", "100"], |_| {})?;
    let said = kubelet.exec(&container, &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure_eq(said.exit_code, 3)?;
    ensure_eq((&said.stdout[..], &said.stderr[..]), (&b"out\n"[..], &b"err\n"[..]))?;
    // A readiness probe whose program does not exist sees this error.
    ensure(kubelet.exec(&container, &["/none"]).is_err(), "it was there")
}

/// Like a probe of a container with a module.
fn execs_in_a_module(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let container = kubelet.run(&pod, WASM, &["/probe.wasm", "sleep"], as_wasm)?;
    let said = kubelet.exec(&container, &["/probe.wasm", "exit", "9"])?;
    ensure_eq(said.exit_code, 9)
}

/// `kubectl exec -it`: a WebSocket with a channel for each stream (`v4.channel.k8s.io`).
fn execs_with_streams(test: &Test) -> Outcome {
    const STDIN: u8 = 0;
    const STDOUT: u8 = 1;
    const STATUS: u8 = 3;
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let container = kubelet.run(&pod, LINUX, &["/bin/sleep", "100"], |_| {})?;
    let script = "test -t 0 && read line && echo \"got $line\"; exit 5";
    let request = cri::ExecRequest {
        container_id: container,
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let url = kubelet.ask(async |mut client| client.exec(request).await)?.url;
    let rest = url.strip_prefix("http://").ok_or("not http")?;
    let (address, _) = rest.split_once('/').ok_or("no path")?;
    let mut request = format!("ws://{rest}").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse()?);
    let (mut socket, _) = tungstenite::client(request, kubelet.connect(address)?)?;
    socket.send(Message::binary([&[STDIN][..], b"a word\n"].concat()))?;
    let (mut output, mut status) = (String::new(), String::new());
    while status.is_empty() {
        let message = socket.read()?;
        ensure(!message.is_close(), "it was closed without a status")?;
        let bytes = message.into_data();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match bytes.split_first() {
            Some((&STDOUT, rest)) => output += &text(rest),
            Some((&STATUS, rest)) => status += &text(rest),
            _ => {}
        }
    }
    ensure(output.contains("got a word"), &output)?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    ensure_eq(&status["details"]["causes"][0]["message"], &serde_json::json!("5"))
}

fn stops_with_sigterm_then_with_sigkill(test: &Test) -> Outcome {
    stop_three(Kubelet::new(test)?)
}

/// With a shared pid namespace, the end of the first process does not end its children.
fn stops_in_a_pod_that_shares_processes(test: &Test) -> Outcome {
    let mut kubelet = Kubelet::new(test)?;
    kubelet.shares_processes = true;
    stop_three(kubelet)
}

fn stop_three(kubelet: Kubelet<'_>) -> Outcome {
    let pod = kubelet.run_pod("rt")?;
    let ends = |image: &str, command: &[&str], change: fn(&mut cri::ContainerConfig), seconds| {
        let container = kubelet.run(&pod, image, command, change)?;
        wait_until("it is ready", || {
            kubelet.output(&container).is_ok_and(|out| out.contains("up"))
        })?;
        kubelet.stop(&container, seconds)?;
        Ok(kubelet.wait(&container)?.exit_code)
    };
    let asleep = "echo up; trap 'exit 9' TERM; while :; do sleep 0.1; done";
    let code: Outcome<i32> = ends(LINUX, &["/bin/sh", "-c", asleep], |_| {}, 20);
    ensure_eq(code?, 9)?;
    let deaf = "echo up; trap '' TERM; while :; do sleep 0.1; done";
    let code: Outcome<i32> = ends(LINUX, &["/bin/sh", "-c", deaf], |_| {}, 1);
    ensure_eq(code?, 137)?;
    let module = kubelet.run(&pod, WASM, &["/probe.wasm", "sleep"], as_wasm)?;
    wait_until("the engine runs", || kubelet.exec(&module, &["/probe.wasm", "exit", "0"]).is_ok())?;
    kubelet.stop(&module, 20)?;
    ensure_eq(kubelet.wait(&module)?.exit_code, 143)
}

fn updates_and_counts(test: &Test) -> Outcome {
    needs(test, "memory")?;
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let limited =
        |bytes| cri::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    let container = kubelet.run(&pod, LINUX, &["/bin/sleep", "100"], |config| {
        config.linux = Some(kubelet.linux(limited(64 << 20)));
    })?;
    ensure_eq(memory_limit(&container)?, 64 << 20)?;
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(limited(96 << 20)),
        ..Default::default()
    };
    kubelet.ask(async |mut client| client.update_container_resources(request).await)?;
    ensure_eq(memory_limit(&container)?, 96 << 20)?;
    let request = cri::ContainerStatsRequest { container_id: container };
    let stats = kubelet.ask(async |mut client| client.container_stats(request).await)?;
    let memory =
        stats.stats.and_then(|stats| stats.memory).and_then(|memory| memory.working_set_bytes);
    ensure(memory.is_some_and(|bytes| bytes.value > 0), format!("{memory:?}"))
}

pub(super) fn memory_limit(container: &str) -> Outcome<u64> {
    let files = cgroups_of(container);
    let read = |name: &str| files.iter().find_map(|path| fs::read_to_string(path.join(name)).ok());
    let text = read("memory.max").or_else(|| read("memory.limit_in_bytes")).ok_or("no limit")?;
    Ok(text.trim().parse()?)
}

fn tells_of_want_of_memory(test: &Test) -> Outcome {
    needs(test, "memory")?;
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    // The first process lives a little longer. So containerd hears of the lack of memory before it
    // hears of the end.
    let greedy = "sh -c 'x=x; while :; do x=$x$x; done'; sleep 2; exit 9";
    let container = kubelet.run(&pod, LINUX, &["/bin/sh", "-c", greedy], |config| {
        config.linux = Some(kubelet.linux(memory(16 << 20)));
    })?;
    let status = kubelet.wait(&container)?;
    ensure_eq((status.exit_code, status.reason.as_str()), (9, "OOMKilled"))
}

/// A memory limit without swap.
fn memory(bytes: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        memory_swap_limit_in_bytes: bytes,
        ..Default::default()
    }
}

/// A stop that comes later changes nothing.
fn a_module_out_of_memory_stays_so(test: &Test) -> Outcome {
    needs(test, "memory")?;
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    // The module ends at once. containerd removes its cgroup then, and sometimes has not yet read
    // there that the kernel killed it for memory.
    for _ in 0..4 {
        let fill = ["/probe.wasm", "fill", "/dev/shm/file"];
        let container = kubelet.run(&pod, WASM, &fill, |config| {
            as_wasm(config);
            config.linux = Some(kubelet.linux(memory(48 << 20)));
        })?;
        let status = kubelet.wait(&container)?;
        ensure_eq(status.exit_code, 137)?;
        if status.reason == "OOMKilled" {
            kubelet.stop(&container, 5)?;
            let status = kubelet.status(&container)?;
            return ensure_eq((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
        }
        ensure_eq(status.reason.as_str(), "Error")?;
    }
    ensure(test.host.by_systemd, "containerd has never heard of the want of memory")?;
    skip("containerd has missed what was told by a cgroup that systemd has removed")
}

/// KEP-3857: containerd asks `rt features` whether a handler supports recursive read-only mounts,
/// and then uses the option `rro`.
fn read_only_is_so_below_if_asked_for(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    if !kubelet.version()?.trim_start_matches('v').starts_with("2.") {
        return skip("recursive read-only volumes are containerd 2's");
    }
    let request = cri::StatusRequest { verbose: false };
    let status = kubelet.ask(async |mut client| client.status(request).await)?;
    for name in ["rt", "rt-wasm"] {
        let handler = status.runtime_handlers.iter().find(|handler| handler.name == name);
        let features = handler.and_then(|handler| handler.features.as_ref()).ok_or(name)?;
        ensure(features.recursive_read_only_mounts, format!("{name}: {features:?}"))?;
    }
    let volume = test.folder.join("volume");
    fs::create_dir_all(volume.join("below"))?;
    let _below = Tmpfs::mount(volume.join("below"))?;
    let mount = |readonly, recursive_read_only, propagation| cri::Mount {
        container_path: "/v".into(),
        host_path: volume.display().to_string(),
        readonly,
        recursive_read_only,
        propagation: propagation as i32,
        ..Default::default()
    };
    let pod = kubelet.run_pod("rt")?;
    let script =
        "for f in /v/new /v/below/new; do touch $f 2>/dev/null && echo made || echo refused; done";
    let private = cri::MountPropagation::PropagationPrivate;
    for (recursive, expected) in [(false, "refused\nmade\n"), (true, "refused\nrefused\n")] {
        let container = kubelet.run(&pod, LINUX, &["/bin/sh", "-c", script], |config| {
            config.mounts = vec![mount(true, recursive, private)];
        })?;
        ensure_eq(kubelet.wait(&container)?.exit_code, 0)?;
        ensure_eq(kubelet.output(&container)?.as_str(), expected)?;
    }
    let module = ["/probe.wasm", "write", "/v/below/file", "x"];
    let module = kubelet.run(&pod, WASM, &module, |config| {
        as_wasm(config);
        config.mounts = vec![mount(true, true, private)];
    })?;
    ensure_eq(kubelet.wait(&module)?.exit_code, 1)?;
    // containerd refuses an impossible combination before it calls the runtime.
    let slave = cri::MountPropagation::PropagationHostToContainer;
    for wrong in [mount(false, true, private), mount(true, true, slave)] {
        let made =
            kubelet.create(&pod, LINUX, &["/bin/true"], |config| config.mounts = vec![wrong]);
        ensure(made.is_err(), "it was made")?;
    }
    kubelet.remove(&pod)
}

fn says_why_a_container_does_not_start(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    let pod = kubelet.run_pod("rt")?;
    let container = kubelet.create(&pod, LINUX, &["/none"], |_| {})?;
    let error = match kubelet.start(&container) {
        Ok(()) => "it started".to_owned(),
        Err(crate::harness::Stop::Failed(text) | crate::harness::Stop::Skipped(text)) => text,
    };
    ensure(error.contains("exec: `/none`: no such file or directory"), error)
}

/// All containers of a pod have one shim. If it is killed, they have ended, nothing of them is
/// left, and another pod can run.
fn outlives_a_shim_that_was_killed(test: &Test) -> Outcome {
    let kubelet = Kubelet::new(test)?;
    if kubelet.version()?.trim_start_matches('v').starts_with("2.") {
        return skip(
            "containerd 2 lets the containers of a shim that was killed run on, and forgets them",
        );
    }
    let pod = kubelet.run_pod("rt")?;
    let program = kubelet.run(&pod, LINUX, &["/bin/sleep", "100"], |_| {})?;
    let module = kubelet.run(&pod, WASM, &["/probe.wasm", "sleep"], as_wasm)?;
    kill_shim(&pod.id)?;
    for container in [&program, &module] {
        ensure(kubelet.wait(container)?.exit_code != 0, "it has ended well")?;
    }
    for id in [&pod.id, &program, &module] {
        wait_until("its state is gone", || !test.state_root().join("k8s.io").join(id).exists())?;
        ensure_eq(cgroups_of(id), Vec::new())?;
    }
    kubelet.remove(&pod)?;
    let pod = kubelet.run_pod("rt")?;
    let again = kubelet.run(&pod, WASM, &["/hello.wasm"], as_wasm)?;
    ensure_eq(kubelet.wait(&again)?.exit_code, 0)
}
