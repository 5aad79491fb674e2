//! A containerd that belongs to the test, and a client that sends it the requests of a kubelet (the
//! Kubernetes container runtime interface, CRI).
//!
//! containerd runs in its own network namespace, where pods get their addresses. Its configuration
//! is the one that comes with `rt`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::harness::{
    Outcome, Output, Stop, Test, cgroups_of, ensure, skip, wait_until, wait_up_to,
};
use crate::topics::needs;

/// The directory of Debian's `containernetworking-plugins`.
const NETWORK_PLUGINS: &str = "/usr/lib/cni";

/// The names of the images. containerd asks no registry for them.
pub(crate) const LINUX: &str = "docker.io/tests/linux:1";
/// Components and a Spin app are in [`WASM`] too, if they are here.
pub(crate) const WASM: &str = "docker.io/tests/wasm:1";

/// A containerd that listens on a socket.
pub(crate) struct Daemon {
    folder: PathBuf,
    process: Child,
}

impl Daemon {
    pub(crate) fn new(test: &Test) -> Outcome<Daemon> {
        test.only_rt()?;
        let needed = ["/usr/bin/containerd", "/usr/bin/ctr"];
        if let Some(missing) = needed.iter().find(|path| !Path::new(path).exists()) {
            return skip(format!("no `{missing}`"));
        }
        let folder = test.folder.join("containerd");
        configure(test, &folder)?;
        let log = File::create(folder.join("log"))?;
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "/bin/sh",
            "-c",
            "ip link set lo up; exec containerd --config \"$1\"",
            "sh",
        ]);
        let config = folder.join("config.toml");
        let daemon = command.arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Daemon { process: daemon.spawn()?, folder })
    }

    pub(crate) fn ctr(&self, namespace: &str, args: &[&str]) -> Outcome<Output> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]).args(args);
        Output::of(command)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The end of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The test fails later if a process is left.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Kills the shim of a container or of a pod, as the kernel would do on a node without free memory.
pub(crate) fn kill_shim(id: &str) -> Outcome {
    let shim = fs::read_dir("/proc")?.flatten().find_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let words: Vec<_> = command.split(|byte| *byte == 0).collect();
        let is_shim =
            words[0].ends_with(b"containerd-shim-runc-v2") && words.contains(&id.as_bytes());
        if is_shim { process.file_name().to_str()?.parse().ok() } else { None }
    });
    let shim = rustix::process::Pid::from_raw(shim.ok_or("no shim")?).ok_or("no shim")?;
    Ok(rustix::process::kill_process(shim, rustix::process::Signal::KILL)?)
}

pub(crate) struct Kubelet<'a> {
    test: &'a Test,
    daemon: Daemon,
    waiter: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
    /// The name of the pod, and a part of the names of all its cgroups.
    name: String,
    /// The field `shareProcessNamespace` of pods.
    pub(crate) shares_processes: bool,
    /// The annotations of pods.
    pub(crate) annotations: HashMap<String, String>,
}

/// A pod with a running sandbox.
pub(crate) struct Pod {
    pub(crate) id: String,
    config: cri::PodSandboxConfig,
}

impl<'a> Kubelet<'a> {
    /// The version of containerd.
    pub(crate) fn version(&self) -> Outcome<String> {
        let version = cri::VersionRequest::default();
        Ok(self.ask(async |mut client| client.version(version).await)?.runtime_version)
    }

    pub(crate) fn new(test: &'a Test) -> Outcome<Kubelet<'a>> {
        test.only_rt()?;
        // containerd sets CPU shares for each container.
        needs(test, "cpu")?;
        if !Path::new(NETWORK_PLUGINS).exists() {
            return skip(format!("no `{NETWORK_PLUGINS}`"));
        }
        let daemon = Daemon::new(test)?;
        let waiter = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket = daemon.socket();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not used.
        let endpoint = Endpoint::from_static("http://[::1]").timeout(Duration::from_secs(60));
        let client = {
            let _guard = waiter.enter();
            RuntimeServiceClient::new(endpoint.connect_with_connector_lazy(connect))
        };
        let name = test.id();
        let (shares_processes, annotations) = (false, HashMap::new());
        let kubelet = Kubelet { test, daemon, waiter, client, name, shares_processes, annotations };
        let mut last = String::new();
        // In the machine, the first ones start while it still boots.
        let patience = Duration::from_secs(60);
        let answers = wait_up_to(patience, "containerd answers", || {
            let version = cri::VersionRequest::default();
            let answer = kubelet.ask(async |mut client| client.version(version).await);
            last = answer.as_ref().err().map(words).unwrap_or_default();
            answer.is_ok()
        });
        answers.map_err(|stop| {
            Stop::Failed(format!("{}: {last}: {}", words(&stop), kubelet.daemon.log()))
        })?;
        for (image, wasm) in [(LINUX, false), (WASM, true)] {
            let archive = image_archive(test, image, wasm)?.display().to_string();
            kubelet.daemon.ctr("k8s.io", &["images", "import", &archive])?.success()?;
        }
        Ok(kubelet)
    }

    /// Makes one request, and waits for the answer.
    pub(crate) fn ask<T>(
        &self,
        request: impl AsyncFnOnce(
            RuntimeServiceClient<Channel>,
        ) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Outcome<T> {
        let answer = self.waiter.block_on(request(self.client.clone()));
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Stop::Failed(format!("{}\n{}", status.message(), self.daemon.log())))
    }

    pub(crate) fn run_pod(&self, handler: &str) -> Outcome<Pod> {
        self.run_pod_named(&self.name, handler)
    }

    /// Starts the sandbox of a pod. A kubelet has pods of different names.
    pub(crate) fn run_pod_named(&self, name: &str, handler: &str) -> Outcome<Pod> {
        let parent = if self.test.host.by_systemd {
            "system.slice".to_owned()
        } else {
            format!("/{}", self.name)
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: format!("{}-{name}", self.name),
                namespace: "tests".into(),
                attempt: 0,
            }),
            annotations: self.annotations.clone(),
            hostname: "pod".into(),
            log_directory: self.daemon.folder.display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: parent,
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        let pod = self.ask(async |mut client| client.run_pod_sandbox(request).await)?;
        Ok(Pod { id: pod.pod_sandbox_id, config })
    }

    /// Creates a container of the pod, and does not start it. `change` changes its configuration.
    pub(crate) fn create(
        &self,
        pod: &Pod,
        image: &str,
        command: &[&str],
        change: impl FnOnce(&mut cri::ContainerConfig),
    ) -> Outcome<String> {
        let name = self.test.id();
        let mut config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(self.linux(cri::LinuxContainerResources::default())),
            ..Default::default()
        };
        change(&mut config);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.ask(async |mut client| client.create_container(request).await)?.container_id)
    }

    /// By default, a container sees its own processes only.
    fn namespaces(&self) -> cri::NamespaceOption {
        let mode = if self.shares_processes {
            cri::NamespaceMode::Pod
        } else {
            cri::NamespaceMode::Container
        };
        cri::NamespaceOption { pid: mode as i32, ..Default::default() }
    }

    /// The part of a container's configuration that has its limits.
    pub(crate) fn linux(
        &self,
        resources: cri::LinuxContainerResources,
    ) -> cri::LinuxContainerConfig {
        cri::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(self.namespaces()),
                ..Default::default()
            }),
        }
    }

    pub(crate) fn start(&self, container: &str) -> Outcome {
        let request = cri::StartContainerRequest { container_id: container.into() };
        self.ask(async |mut client| client.start_container(request).await).map(drop)
    }

    pub(crate) fn run(
        &self,
        pod: &Pod,
        image: &str,
        command: &[&str],
        change: impl FnOnce(&mut cri::ContainerConfig),
    ) -> Outcome<String> {
        let container = self.create(pod, image, command, change)?;
        self.start(&container)?;
        Ok(container)
    }

    pub(crate) fn status(&self, container: &str) -> Outcome<cri::ContainerStatus> {
        let request =
            cri::ContainerStatusRequest { container_id: container.into(), verbose: false };
        let answer = self.ask(async |mut client| client.container_status(request).await)?;
        Ok(answer.status.ok_or("no status")?)
    }

    /// Waits until the container has ended, and returns its status.
    pub(crate) fn wait(&self, container: &str) -> Outcome<cri::ContainerStatus> {
        let ended = cri::ContainerState::ContainerExited as i32;
        wait_until("it has ended", || {
            self.status(container).is_ok_and(|status| status.state == ended)
        })?;
        self.status(container)
    }

    pub(crate) fn stop(&self, container: &str, seconds: i64) -> Outcome {
        let request =
            cri::StopContainerRequest { container_id: container.into(), timeout: seconds };
        self.ask(async |mut client| client.stop_container(request).await).map(drop)
    }

    pub(crate) fn exec(&self, container: &str, command: &[&str]) -> Outcome<cri::ExecSyncResponse> {
        let request = cri::ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 20,
        };
        self.ask(async |mut client| client.exec_sync(request).await)
    }

    /// The output of the container, from the log for kubelet: `TIME STREAM TAG TEXT`.
    pub(crate) fn output(&self, container: &str) -> Outcome<String> {
        let log = fs::read_to_string(self.status(container)?.log_path)?;
        let text = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n";
        Ok(log.lines().map(text).collect())
    }

    /// A connection to an address in the network namespace of containerd.
    pub(crate) fn connect(&self, address: &str) -> Outcome<TcpStream> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.daemon.process.id()))?;
        let address = address.to_owned();
        let thread = std::thread::spawn(move || -> std::io::Result<TcpStream> {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)?;
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            Ok(stream)
        });
        Ok(thread.join().map_err(|_| "the thread panicked")??)
    }

    pub(crate) fn remove(&self, pod: &Pod) -> Outcome {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.ask(async |mut client| client.stop_pod_sandbox(request).await)?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.ask(async |mut client| client.remove_pod_sandbox(request).await).map(drop)
    }
}

impl Drop for Kubelet<'_> {
    fn drop(&mut self) {
        // The test fails later if a pod is left.
        let pods = self.ask(async |mut client| {
            client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await
        });
        for pod in pods.map(|pods| pods.items).unwrap_or_default() {
            let _ = self.remove(&Pod { id: pod.id, config: cri::PodSandboxConfig::default() });
        }
        // The cgroups of the pod. kubelet would make and remove them.
        for parent in cgroups_of(&self.name) {
            let _ = fs::remove_dir(parent);
        }
    }
}

fn words(stop: &Stop) -> String {
    match stop {
        Stop::Skipped(text) | Stop::Failed(text) => text.clone(),
    }
}

/// Writes the configuration, with the part that comes with `rt`, for a prefix in the test's
/// directory.
fn configure(test: &Test, folder: &Path) -> Outcome {
    let prefix = folder.join("prefix");
    fs::create_dir_all(prefix.join("bin"))?;
    for name in ["rt", "rt-wasm", "rt-spin"] {
        std::os::unix::fs::symlink(&test.host.runtime, prefix.join("bin").join(name))?;
    }
    let part =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers/containerd/config-v2.toml");
    let mut part = fs::read_to_string(part)?.replace("@PREFIX@", &prefix.display().to_string());
    // Once a runtime is configured, containerd has no default runtime. The part has the lines for
    // it as comments.
    part = part.replace("\n#[", "\n[").replace("\n#  ", "\n  ");
    let root = format!("Root = '{}'", test.state_root().display());
    part = part.replace("Root = '/run/containerd/rt'", &root);
    if !test.host.by_systemd {
        part = part.replace("SystemdCgroup = true", "SystemdCgroup = false");
    }
    let here = folder.display();
    // Where root may not lower the OOM score of a process, containerd must not do so for sandboxes.
    let mut lowers = Command::new("sh");
    lowers.args(["-c", "echo -998 >/proc/self/oom_score_adj"]);
    let restricted = !lowers.stderr(Stdio::null()).status()?.success();
    let own = format!(
        "version = 2\nroot = '{here}/root'\nstate = '{here}/run'\n[grpc]\naddress = '{here}/socket'\n\
         [plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = '{LINUX}'\nstream_server_address = '127.0.0.1'\n\
         restrict_oom_score_adj = {restricted}\n\
         [plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '{NETWORK_PLUGINS}'\nconf_dir = '{here}/cni'\n"
    );
    fs::write(folder.join("config.toml"), own + &part)?;
    fs::create_dir(folder.join("cni"))?;
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.88.0.0/24" }]],
                "dataDir": folder.join("addresses"),
            },
        }],
    });
    fs::write(folder.join("cni/10-pods.conflist"), network.to_string())?;
    Ok(())
}

/// An image of one layer, in the format of `docker save`. Its program waits, as a sandbox's program
/// must.
fn image_archive(test: &Test, name: &str, wasm: bool) -> Outcome<PathBuf> {
    let kind = if wasm { "wasm" } else { "linux" };
    let layer = test.image_archive(&format!("layer-{kind}"), wasm)?;
    let folder = test.folder.join(format!("archive-{kind}"));
    fs::create_dir(&folder)?;
    fs::rename(layer, folder.join("layer.tar"))?;
    let mut sum = Command::new("sha256sum");
    let sum = Output::of({
        sum.arg(folder.join("layer.tar"));
        sum
    })?
    .success()?
    .stdout;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let archive = test.folder.join(format!("{kind}.tar"));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&folder).arg("-cf").arg(&archive);
    let made = tar.args(["manifest.json", "config.json", "layer.tar"]).status()?;
    ensure(made.success(), "tar")?;
    Ok(archive)
}
