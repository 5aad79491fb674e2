//! A node of Kubernetes with a real kubelet, containerd and API server, and the manifests that come
//! with `rt`. `make test-kubernetes` starts this node.
//!
//! The tests of this topic share the node. They leave the Deployments there for the tests of
//! `cluster_again`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::harness::{Outcome, Output, Stop, Test, ensure, ensure_eq, skip, wait_up_to};

super::tests! { "cluster":
    a_daemon_set_has_put_rt_on_the_node,
    a_deployment_of_a_module_answers_through_its_service,
    a_deployment_of_a_spin_app_answers_through_its_service,
    a_rolling_update_keeps_answering,
    a_component_runs_by_its_runtime_class,
    native_programs_run_by_each_runtime_class,
    exec_and_logs_reach_a_container,
    exec_reaches_a_module,
    probes_decide_who_is_ready_and_who_starts_again,
    a_module_passes_an_exec_probe,
    who_takes_too_much_memory_is_told_as_oomkilled,
    limits_are_those_of_the_pod,
    init_containers_come_first_and_share_a_volume,
    a_program_that_fails_is_started_again,
    a_pod_has_a_time_to_end,
    a_pod_may_share_the_nodes_namespaces,
    containers_may_share_their_processes,
    a_privileged_pod_has_the_capabilities_of_the_node,
    a_user_without_rights_is_who_the_pod_says,
    a_class_whose_handler_is_missing_is_told,
    a_program_that_is_missing_is_told,
    restarted_daemons_lose_no_pod,
}

const ADMINISTRATOR: &str = "/etc/kubernetes/admin.conf";
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers/kubernetes");
/// Where the node has `rt` from the DaemonSet.
const RT: &str = "/usr/lib/rt/bin/rt";
const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const MODULES: &str = "http://10.0.0.1:31001/";
pub(super) const APPS: &str = "http://10.0.0.1:31002/";

/// What a kubectl prints.
pub(super) fn kubectl(args: &[&str]) -> Outcome<Output> {
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig", ADMINISTRATOR]).args(args);
    Output::of(command)
}

fn manifest(name: &str) -> String {
    format!("{MANIFESTS}/{name}")
}

fn apply(namespace: &str, object: &Value) -> Outcome {
    let mut kubectl = Command::new("kubectl")
        .args(["--kubeconfig", ADMINISTRATOR, "--namespace", namespace, "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    kubectl.stdin.take().ok_or("no input")?.write_all(object.to_string().as_bytes())?;
    let output = kubectl.wait_with_output()?;
    ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))
}

/// Waits until the node is ready, with the API server that it belongs to.
pub(super) fn wait_for_the_node() -> Outcome {
    if !Path::new(ADMINISTRATOR).exists() {
        return skip("no node of Kubernetes: `make test-kubernetes`");
    }
    wait_up_to(PATIENCE, "the node is ready", || {
        let form = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        std::thread::sleep(Duration::from_secs(1));
        kubectl(&["get", "nodes", "--output", form]).is_ok_and(|output| output.stdout == "True")
    })
}

/// Whether the node has `rt`. Only the first test installs it.
static READY: Mutex<Option<Result<(), String>>> = Mutex::new(None);

/// The tests share the node. Only one of them kills the node's services, and is alone then.
static NODE: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "the guards are only held")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A namespace of a test, with its pods.
struct Space {
    name: String,
    _turn: Turn,
}

impl Space {
    fn new(test: &Test) -> Outcome<Space> {
        let turn = Turn::Shared(NODE.read().map_err(|_| "a test panicked")?);
        Space::in_turn(test, turn)
    }

    fn alone(test: &Test) -> Outcome<Space> {
        let turn = Turn::Alone(NODE.write().map_err(|_| "a test panicked")?);
        Space::in_turn(test, turn)
    }

    /// The node gets `rt` before the first test, as an administrator would do it.
    fn in_turn(test: &Test, turn: Turn) -> Outcome<Space> {
        wait_for_the_node()?;
        let mut ready = READY.lock().map_err(|_| "a test panicked")?;
        let installed = ready.get_or_insert_with(|| match install() {
            Ok(()) => Ok(()),
            Err(Stop::Failed(text) | Stop::Skipped(text)) => Err(text),
        });
        if let Err(text) = installed {
            return Err(Stop::Failed(format!("rt is not on the node: {text}")));
        }
        drop(ready);
        let name = test.id().to_lowercase().replace(['_', '.'], "-");
        let space = Space { name, _turn: turn };
        kubectl(&["create", "namespace", &space.name])?.success()?;
        wait_up_to(PATIENCE, "the namespace has an account", || {
            kubectl(&["get", "serviceaccount", "default", "--namespace", &space.name])
                .is_ok_and(|output| output.code == Some(0))
        })?;
        Ok(space)
    }

    fn kubectl(&self, args: &[&str]) -> Outcome<Output> {
        kubectl(&[&["--namespace", &self.name], args].concat())
    }

    /// A pod with one container, which `change` may change.
    fn pod(
        &self,
        name: &str,
        class: &str,
        command: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Outcome {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "runtimeClassName": class,
                "terminationGracePeriodSeconds": 5,
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main",
                    "image": "registry.example/linux:1",
                    "imagePullPolicy": "Never",
                    "command": command,
                }],
            },
        });
        change(&mut pod["spec"]);
        apply(&self.name, &pod)
    }

    /// A field of a pod, as a JSONPath.
    fn get(&self, pod: &str, path: &str) -> Outcome<String> {
        let form = format!("jsonpath={{{path}}}");
        Ok(self.kubectl(&["get", "pod", pod, "--output", &form])?.success()?.stdout)
    }

    fn wait_for(&self, pod: &str, path: &str, value: &str) -> Outcome {
        let mut last = String::new();
        wait_up_to(PATIENCE, &format!("{path} of `{pod}` is {value}"), || {
            std::thread::sleep(Duration::from_millis(500));
            last = self.get(pod, path).unwrap_or_default();
            last == value
        })
        .map_err(|stop| self.explained(pod, stop, &last))
    }

    /// Adds to a failure what Kubernetes says about the pod.
    fn explained(&self, pod: &str, stop: Stop, last: &str) -> Stop {
        let Stop::Failed(text) = stop else { return stop };
        let said = self.kubectl(&["describe", "pod", pod]).map(|output| output.stdout);
        let said = said.unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let end = lines[lines.len().saturating_sub(12)..].join("\n");
        let states = self.get(pod, ".status.containerStatuses[*].state").unwrap_or_default();
        Stop::Failed(format!("{text}; it is `{last}`\n{states}\n{end}"))
    }

    fn wait_until_ready(&self, pod: &str) -> Outcome {
        self.wait_for(pod, ".status.conditions[?(@.type=='Ready')].status", "True")
    }

    fn wait_until_running(&self, pod: &str) -> Outcome {
        self.wait_for(pod, ".status.phase", "Running")
    }

    /// The output of a pod that ends by itself.
    fn output(&self, pod: &str) -> Outcome<String> {
        self.wait_for(pod, ".status.phase", "Succeeded")?;
        Ok(self.kubectl(&["logs", pod])?.success()?.stdout)
    }

    /// What the events of the namespace say, once they say `text`.
    fn wait_for_event(&self, text: &str) -> Outcome {
        let mut last = String::new();
        wait_up_to(PATIENCE, &format!("an event says `{text}`"), || {
            std::thread::sleep(Duration::from_secs(1));
            last = self.kubectl(&["get", "events"]).map(|output| output.stdout).unwrap_or_default();
            last.contains(text)
        })
        .map_err(|stop| match stop {
            Stop::Failed(failure) => Stop::Failed(format!("{failure}\n{last}")),
            Stop::Skipped(_) => stop,
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Its pods end by themselves, while the next test runs.
        let _ = self.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// Installs `rt` by the DaemonSet, and configures containerd as the DaemonSet's log says.
fn install() -> Outcome {
    kubectl(&["label", "node", "node", "rt.install=true"])?.success()?;
    kubectl(&["apply", "--filename", &manifest("daemonset.yaml")])?.success()?;
    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    let rollout = ["rollout", "status", "daemonset/rt-install", "--namespace", "kube-system"];
    kubectl(&[&rollout[..], &[&patience]].concat())?.success()?;
    let part = fs::read_to_string("/usr/lib/rt/share/rt/containerd/config-v2.toml")?;
    // The node has no systemd.
    let part = part.replace("SystemdCgroup = true", "SystemdCgroup = false");
    let file = "/etc/containerd/config.toml";
    fs::write(file, fs::read_to_string(file)? + &part)?;
    restart("containerd")?;
    kubectl(&["label", "node", "node", "rt.ready=true"])?.success()?;
    kubectl(&["apply", "--filename", &manifest("runtimeclass.yaml")])?.success()?;
    Ok(())
}

/// Kills a service. The node starts it again.
fn restart(service: &str) -> Outcome {
    let file = format!("/run/node/{service}");
    let before = fs::read_to_string(&file)?;
    let pid = Pid::from_raw(before.trim().parse()?).filter(|pid| !pid.is_init()).ok_or("no pid")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    let serves = || {
        let mut ctr = Command::new("ctr");
        ctr.arg("version");
        Output::of(ctr).is_ok_and(|output| output.code == Some(0))
    };
    wait_up_to(PATIENCE, "it is started again", || {
        fs::read_to_string(&file).is_ok_and(|now| now != before) && serves()
    })
}

/// The answer of a service of the node.
pub(super) fn answer(address: &str) -> String {
    let mut wget = Command::new("busybox");
    wget.args(["wget", "-q", "-T", "20", "-O", "-", address]);
    Output::of(wget).map(|output| output.stdout).unwrap_or_default()
}

pub(super) fn wait_for_answer(address: &str, text: &str) -> Outcome {
    let mut last = String::new();
    wait_up_to(PATIENCE, &format!("{address} answers"), || {
        last = answer(address);
        last.contains(text)
    })
    .map_err(|stop| match stop {
        Stop::Failed(failure) => Stop::Failed(format!("{failure}: {last:?}")),
        Stop::Skipped(_) => stop,
    })
}

pub(super) fn wait_for_deployment(name: &str) -> Outcome {
    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    let deployment = format!("deployment/{name}");
    kubectl(&["rollout", "status", &deployment, &patience])?.success()?;
    Ok(())
}

fn a_daemon_set_has_put_rt_on_the_node(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let version = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version");
        Output::of(command)?.success().map(|output| output.stdout)
    };
    ensure_eq(version(RT)?, version(&test.host.runtime.display().to_string())?)?;
    let logs = ["logs", "daemonset/rt-install", "--namespace", "kube-system", "-c", "install"];
    // The restarted containerd answers kubelet later than `ctr`.
    wait_up_to(PATIENCE, "its log says where rt is", || {
        space.kubectl(&logs).is_ok_and(|output| output.stdout.contains("rt is in /usr/lib/rt"))
    })
}

fn a_deployment_of_a_module_answers_through_its_service(test: &Test) -> Outcome {
    let _space = Space::new(test)?;
    kubectl(&["apply", "--filename", &manifest("deployment.yaml")])?.success()?;
    wait_for_deployment("wasm-http-service")?;
    wait_for_answer(MODULES, "Hello from Wasm!")
}

fn a_deployment_of_a_spin_app_answers_through_its_service(test: &Test) -> Outcome {
    let _space = Space::new(test)?;
    kubectl(&["apply", "--filename", &manifest("spin-deployment.yaml")])?.success()?;
    wait_for_deployment("wasm-spin-service")?;
    wait_for_answer(APPS, "Hello from Spin!")
}

/// The service has three replicas, and the update replaces them one by one.
fn a_rolling_update_keeps_answering(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let text = fs::read_to_string(manifest("deployment.yaml"))?;
    let text = text.replace("31001", "31003");
    let file = test.folder.join("deployment.yaml");
    fs::write(&file, text)?;
    space.kubectl(&["apply", "--filename", &file.display().to_string()])?.success()?;
    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    let status = ["rollout", "status", "deployment/wasm-http-service", &patience];
    space.kubectl(&status)?.success()?;
    let address = "http://10.0.0.1:31003/";
    wait_for_answer(address, "Hello from Wasm!")?;
    let change = ["set", "env", "deployment/wasm-http-service", "VERSION=2"];
    space.kubectl(&change)?.success()?;
    let mut rollout = Command::new("kubectl");
    rollout.args(["--kubeconfig", ADMINISTRATOR, "--namespace", &space.name]).args(status);
    let mut rollout = rollout.stdout(Stdio::null()).spawn()?;
    let (mut answered, mut silent, mut longest) = (0, None, Duration::ZERO);
    while rollout.try_wait()?.is_none() {
        if answer(address).contains("Hello") {
            answered += 1;
            silent = None;
        } else {
            // A pod that has just ended may still be in the table of the proxy.
            longest = longest.max(silent.get_or_insert_with(Instant::now).elapsed());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure(rollout.wait()?.success(), "the update did not end")?;
    ensure(answered > 0 && longest < Duration::from_secs(60), format!("silent for {longest:?}"))?;
    wait_for_answer(address, "Hello from Wasm!")
}

fn a_component_runs_by_its_runtime_class(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("component", "wasmtime", &["/article.wasm"], |spec| {
        spec["containers"][0]["image"] = json!("registry.example/wasm-service:1.0");
        spec["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": 8080 } });
    })?;
    space.wait_until_ready("component")?;
    let address = format!("http://{}:8080/", space.get("component", ".status.podIP")?);
    wait_for_answer(&address, "Hello from Wasm!")
}

fn native_programs_run_by_each_runtime_class(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let classes = ["rt", "rt-wasm", "wasmtime", "spin"];
    for class in classes {
        space.pod(class, class, &["echo", "native", class], |_| ())?;
    }
    for class in classes {
        ensure_eq(space.output(class)?, format!("native {class}\n"))?;
    }
    Ok(())
}

const SLEEPS: [&str; 3] = ["sh", "-c", "echo begun; trap 'exit 0' TERM; sleep 3600 & wait"];

fn exec_and_logs_reach_a_container(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt", &SLEEPS, |_| ())?;
    space.wait_until_running("pod")?;
    let inside = ["exec", "pod", "--", "sh", "-c", "echo out; echo err >&2; exit 3"];
    let output = space.kubectl(&inside)?;
    ensure_eq(output.stdout.as_str(), "out\n")?;
    ensure(output.stderr.contains("err\n"), &output.stderr)?;
    ensure_eq(output.code, Some(3))?;
    ensure_eq(space.kubectl(&["logs", "pod"])?.success()?.stdout, "begun\n".to_owned())
}

fn exec_reaches_a_module(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt-wasm", &["/http-server.wasm"], |spec| {
        spec["containers"][0]["image"] = json!("registry.example/wasm-service:1.0");
    })?;
    space.wait_until_running("pod")?;
    let exec = ["exec", "pod", "--", "/probe.wasm", "args", "a", "b c"];
    let output = space.kubectl(&exec)?.success()?;
    ensure(output.stdout.contains("b c"), output.stdout)
}

fn probes_decide_who_is_ready_and_who_starts_again(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt", &SLEEPS, |spec| {
        spec["restartPolicy"] = json!("Always");
        let container = &mut spec["containers"][0];
        let exists = |file: &str| json!(["test", "-e", file]);
        container["readinessProbe"] =
            json!({ "exec": { "command": exists("/tmp/ready") }, "periodSeconds": 1, "timeoutSeconds": 60 });
        container["livenessProbe"] = json!({
            "exec": { "command": json!(["sh", "-c", "! test -e /tmp/dead"]) },
            "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 1,
        });
    })?;
    space.wait_until_running("pod")?;
    ensure_eq(space.get("pod", ".status.containerStatuses[0].ready")?, "false".to_owned())?;
    space.kubectl(&["exec", "pod", "--", "touch", "/tmp/ready"])?.success()?;
    space.wait_until_ready("pod")?;
    space.kubectl(&["exec", "pod", "--", "touch", "/tmp/dead"])?.success()?;
    space.wait_for("pod", ".status.containerStatuses[0].restartCount", "1")?;
    // The new container has a new filesystem.
    space.wait_for("pod", ".status.containerStatuses[0].ready", "false")
}

fn a_module_passes_an_exec_probe(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt-wasm", &["/http-server.wasm"], |spec| {
        let container = &mut spec["containers"][0];
        container["image"] = json!("registry.example/wasm-service:1.0");
        container["readinessProbe"] = json!({
            "exec": { "command": ["/probe.wasm", "exit", "0"] }, "periodSeconds": 1, "timeoutSeconds": 60,
        });
    })?;
    space.wait_until_ready("pod")
}

fn who_takes_too_much_memory_is_told_as_oomkilled(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt", &["sh", "-c", "tail /dev/zero"], |spec| {
        spec["containers"][0]["resources"] = json!({ "limits": { "memory": "32Mi" } });
    })?;
    space.wait_for("pod", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled")?;
    let code = space.get("pod", ".status.containerStatuses[0].state.terminated.exitCode")?;
    ensure_eq(code, "137".to_owned())
}

fn limits_are_those_of_the_pod(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares";
    space.pod("pod", "rt", &["sh", "-c", script], |spec| {
        spec["containers"][0]["resources"] = json!({
            "requests": { "memory": "16Mi", "cpu": "100m" },
            "limits": { "memory": "64Mi", "cpu": "200m" },
        });
    })?;
    let output = space.output("pod")?;
    let lines: Vec<&str> = output.lines().collect();
    ensure_eq(&lines[..], &["67108864", "20000", "100000", "102"])
}

fn init_containers_come_first_and_share_a_volume(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt", &["cat", "/shared/file", "/config/key"], |spec| {
        let mounts = json!([
            { "name": "shared", "mountPath": "/shared" },
            { "name": "config", "mountPath": "/config" },
        ]);
        spec["containers"][0]["volumeMounts"] = mounts.clone();
        let mut first = spec["containers"][0].clone();
        first["name"] = json!("first");
        first["command"] = json!(["sh", "-c", "echo from the first >/shared/file"]);
        spec["initContainers"] = json!([first]);
        spec["volumes"] = json!([
            { "name": "shared", "emptyDir": { "medium": "Memory" } },
            { "name": "config", "configMap": { "name": "config" } },
        ]);
    })?;
    let config = ["create", "configmap", "config", "--from-literal=key=configured"];
    space.kubectl(&config)?.success()?;
    ensure_eq(space.output("pod")?, "from the first\nconfigured".to_owned())
}

fn a_program_that_fails_is_started_again(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt", &["sh", "-c", "exit 7"], |spec| {
        spec["restartPolicy"] = json!("Always");
    })?;
    let code = ".status.containerStatuses[0].lastState.terminated.exitCode";
    space.wait_for("pod", code, "7")?;
    let waits = ".status.containerStatuses[0].state.waiting.reason";
    space.wait_for("pod", waits, "CrashLoopBackOff")
}

fn a_pod_has_a_time_to_end(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let polite = "trap 'echo ended >/shared/end; exit 0' TERM; echo ready; sleep 3600 & wait";
    space.pod("pod", "rt", &["sh", "-c", polite], |spec| {
        spec["terminationGracePeriodSeconds"] = json!(60);
        spec["containers"][0]["volumeMounts"] =
            json!([{ "name": "shared", "mountPath": "/shared" }]);
        spec["volumes"] = json!([{ "name": "shared", "hostPath": { "path": test.folder } }]);
    })?;
    space.wait_until_running("pod")?;
    wait_up_to(PATIENCE, "it is ready", || {
        space.kubectl(&["logs", "pod"]).is_ok_and(|output| output.stdout == "ready\n")
    })?;
    space.kubectl(&["delete", "pod", "pod"])?.success()?;
    ensure_eq(fs::read_to_string(test.folder.join("end"))?, "ended\n".to_owned())
}

fn a_pod_may_share_the_nodes_namespaces(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let script = "for kind in net ipc pid mnt; do busybox readlink /proc/self/ns/$kind; done";
    space.pod("pod", "rt", &["sh", "-c", script], |spec| {
        for field in ["hostNetwork", "hostIPC", "hostPID"] {
            spec[field] = json!(true);
        }
    })?;
    let output = space.output("pod")?;
    let inside: Vec<&str> = output.lines().collect();
    let outside = |kind: &str| {
        fs::read_link(format!("/proc/self/ns/{kind}")).map(|link| link.display().to_string())
    };
    ensure_eq(inside.len(), 4)?;
    let shared = [outside("net")?, outside("ipc")?, outside("pid")?];
    ensure_eq(inside[..3].join(" "), shared.join(" "))?;
    ensure(inside[3] != outside("mnt")?, "it has the node's mounts")
}

fn containers_may_share_their_processes(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let script = "until ps | grep -q '[n]eighbour'; do sleep 1; done; ps | grep -v grep";
    space.pod("pod", "rt", &["sh", "-c", script], |spec| {
        spec["shareProcessNamespace"] = json!(true);
        let mut other = spec["containers"][0].clone();
        other["name"] = json!("other");
        other["command"] = json!(["sh", "-c", "sleep 20; : neighbour"]);
        spec["containers"].as_array_mut().expect("containers").push(other);
    })?;
    space.wait_for("pod", ".status.phase", "Succeeded")?;
    let said = space.kubectl(&["logs", "pod", "-c", "main"])?.success()?.stdout;
    ensure(said.contains("neighbour") && said.contains("sleep infinity"), said)
}

fn a_privileged_pod_has_the_capabilities_of_the_node(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let script =
        "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted; ls /dev/kmsg";
    space.pod("pod", "rt", &["sh", "-c", script], |spec| {
        spec["containers"][0]["securityContext"] = json!({ "privileged": true });
    })?;
    let said = space.output("pod")?;
    let own = fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find(|line| line.starts_with("CapEff")).ok_or("no capabilities")?;
    ensure(said.contains(own), &said)?;
    ensure(said.contains("mounted\n") && said.contains("/dev/kmsg"), said)
}

fn a_user_without_rights_is_who_the_pod_says(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let script = "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status
        touch /x 2>&1; true";
    space.pod("pod", "rt", &["sh", "-c", script], |spec| {
        spec["securityContext"] = json!({
            "runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "runAsNonRoot": true,
            "seccompProfile": { "type": "RuntimeDefault" },
        });
        spec["containers"][0]["securityContext"] = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
    })?;
    let said = space.output("pod")?;
    let lines: Vec<&str> = said.lines().collect();
    ensure_eq(&lines[..3], &["1000", "2000", "2000 3000"])?;
    let expected = ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"];
    ensure_eq(&lines[3..6], &expected)?;
    ensure(said.contains("Read-only file system"), said)
}

fn a_class_whose_handler_is_missing_is_told(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": { "name": "missing" }, "handler": "missing",
    });
    apply("default", &class)?;
    space.pod("pod", "missing", &SLEEPS, |_| ())?;
    space.wait_for_event("no runtime for \"missing\" is configured")
}

fn a_program_that_is_missing_is_told(test: &Test) -> Outcome {
    let space = Space::new(test)?;
    space.pod("pod", "rt", &["/missing"], |_| ())?;
    space.wait_for("pod", ".status.phase", "Failed")?;
    let ended = ".status.containerStatuses[0].state.terminated";
    ensure_eq(space.get("pod", &format!("{ended}.reason"))?.as_str(), "StartError")?;
    let said = space.get("pod", &format!("{ended}.message"))?;
    ensure(said.contains("/missing") && said.contains("no such file"), said)
}

/// A restart of containerd and of kubelet changes no container.
fn restarted_daemons_lose_no_pod(test: &Test) -> Outcome {
    let space = Space::alone(test)?;
    space.pod("pod", "rt", &SLEEPS, |_| ())?;
    space.wait_until_running("pod")?;
    let container = || space.get("pod", ".status.containerStatuses[0].containerID");
    let before = container()?;
    for service in ["containerd", "kubelet"] {
        restart(service)?;
    }
    wait_up_to(PATIENCE, "exec works again", || {
        space.kubectl(&["exec", "pod", "--", "true"]).is_ok_and(|output| output.code == Some(0))
    })?;
    let state: BTreeMap<&str, String> = BTreeMap::from([
        ("container", container()?),
        ("restarts", space.get("pod", ".status.containerStatuses[0].restartCount")?),
    ]);
    ensure_eq(state, BTreeMap::from([("container", before), ("restarts", "0".to_owned())]))
}
