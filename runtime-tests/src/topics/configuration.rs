//! The configurations for callers that come with `rt`, compared with the formats of the callers.
//! The topics `podman`, `docker` and `cri` test their configurations with the callers themselves.
//! This topic tests the others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::harness::{Outcome, Test, ensure, ensure_eq, skip};

super::tests! { "configuration":
    kubernetes_objects_are_of_their_types, a_runtime_class_names_a_handler_of_each_caller, every_handler_gets_annotations, cri_o_knows_every_key, containerd_2_is_told_what_1_is,
}

fn read(test: &Test, name: &str) -> Outcome<String> {
    test.only_rt()?;
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/callers"));
    if folder.is_dir() {
        Ok(fs::read_to_string(folder.join(name))?)
    } else {
        skip("the sources are not here")
    }
}

/// The objects in a file. Each object must be of the type in its `kind`, with all its fields.
fn objects(test: &Test, name: &str) -> Outcome<Vec<Value>> {
    let text = read(test, name)?;
    let documents = text.split("\n---\n").map(serde_saphyr::from_str::<Value>);
    let objects = documents.collect::<Result<Vec<_>, _>>()?;
    for object in &objects {
        match object["kind"].as_str() {
            Some("DaemonSet") => is_all_of::<DaemonSet>(object)?,
            Some("Deployment") => is_all_of::<Deployment>(object)?,
            Some("RuntimeClass") => is_all_of::<RuntimeClass>(object)?,
            Some("Service") => is_all_of::<Service>(object)?,
            other => ensure(false, format!("{name}: an object of the kind {other:?}"))?,
        }
    }
    Ok(objects)
}

/// An unknown field would be lost when the object is written again.
fn is_all_of<T: DeserializeOwned + Serialize>(object: &Value) -> Outcome {
    let typed: T = serde_json::from_value(object.clone())?;
    ensure_eq(&serde_json::to_value(typed)?, object)
}

fn kubernetes_objects_are_of_their_types(test: &Test) -> Outcome {
    let classes = objects(test, "kubernetes/runtimeclass.yaml")?;
    ensure_eq(classes.len(), 4)?;
    let set = objects(test, "kubernetes/daemonset.yaml")?;
    ensure_eq(set.len(), 1)?;
    // Two labels: pods may use a node on which the DaemonSet does not install any more.
    let install = &set[0]["spec"]["template"]["spec"]["nodeSelector"];
    for class in &classes {
        let ready = &class["scheduling"]["nodeSelector"];
        ensure(ready.is_object() && ready != install, "one label for two things")?;
    }
    for file in ["kubernetes/deployment.yaml", "kubernetes/spin-deployment.yaml"] {
        let service = objects(test, file)?;
        // The service is for the pods of the deployment, and for the port of their container.
        let pod = &service[0]["spec"]["template"];
        ensure_eq(&service[1]["spec"]["selector"], &pod["metadata"]["labels"])?;
        let class = &pod["spec"]["runtimeClassName"];
        ensure(classes.iter().any(|it| it["metadata"]["name"] == *class), class)?;
        let port = &pod["spec"]["containers"][0]["ports"][0]["containerPort"];
        ensure_eq(&service[1]["spec"]["ports"][0]["targetPort"], port)?;
    }
    Ok(())
}

fn a_runtime_class_names_a_handler_of_each_caller(test: &Test) -> Outcome {
    let classes = objects(test, "kubernetes/runtimeclass.yaml")?;
    let handlers: Vec<&str> =
        classes.iter().filter_map(|class| class["handler"].as_str()).collect();
    let crio: CriO = toml::from_str(&read(test, "crio/99-rt.conf")?)?;
    let containerd = containerd(test, "v2", "io.containerd.grpc.v1.cri")?;
    for handler in handlers {
        ensure(crio.crio.runtime.runtimes.contains_key(handler), format!("CRI-O: {handler}"))?;
        ensure(containerd.contains_key(handler), format!("containerd: {handler}"))?;
    }
    Ok(())
}

/// A caller drops an annotation silently if it is not listed for the handler, even one that takes
/// rights from a module.
fn every_handler_gets_annotations(test: &Test) -> Outcome {
    let crio: CriO = toml::from_str(&read(test, "crio/99-rt.conf")?)?;
    let runtimes = &crio.crio.runtime.runtimes;
    let expected = &runtimes["rt"].allowed_annotations;
    ensure(expected.contains(&"run.oci.".to_owned()), format!("{expected:?}"))?;
    for handler in runtimes.values() {
        ensure_eq(&handler.allowed_annotations, expected)?;
    }
    let containerd = containerd(test, "v2", "io.containerd.grpc.v1.cri")?;
    let handlers = containerd.iter().filter(|(name, _)| *name != "runc");
    for (name, handler) in handlers {
        for key in ["pod_annotations", "container_annotations"] {
            let expected = toml::Value::from(vec!["run.oci.*", "module.wasm.image/*"]);
            ensure(handler.get(key) == Some(&expected), format!("{name}: {key}"))?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriO {
    crio: CriOSection,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriOSection {
    runtime: CriORuntime,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriORuntime {
    runtimes: BTreeMap<String, CriOHandler>,
}

/// All keys of CRI-O's `RuntimeHandler` (`pkg/config/config.go` of version 1.33; crio.conf(5),
/// "CRIO.RUNTIME.RUNTIMES TABLE").
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(dead_code, reason = "what CRI-O knows, whether a file of ours uses it or not")]
struct CriOHandler {
    runtime_config_path: String,
    runtime_path: String,
    runtime_type: String,
    runtime_root: String,
    privileged_without_host_devices: bool,
    allowed_annotations: Vec<String>,
    monitor_path: String,
    monitor_cgroup: String,
    monitor_env: Vec<String>,
    monitor_exec_cgroup: String,
    platform_runtime_paths: BTreeMap<String, String>,
    runtime_pull_image: bool,
    container_min_memory: String,
    no_sync_log: bool,
    inherit_default_runtime: bool,
    default_annotations: BTreeMap<String, String>,
}

/// `AllAllowedAnnotations` of CRI-O's `pkg/annotations/annotations.go`. With any other annotation,
/// CRI-O does not start.
const CRI_O_ANNOTATIONS: [&str; 26] = [
    "bundle",
    "cpu-c-states.crio.io",
    "cpu-freq-governor.crio.io",
    "cpu-load-balancing.crio.io",
    "cpu-quota.crio.io",
    "cpu-shared.crio.io",
    "io.containers.trace-syscall",
    "io.kubernetes.cri-o.Devices",
    "io.kubernetes.cri-o.DisableFIPS",
    "io.kubernetes.cri-o.LinkLogs",
    "io.kubernetes.cri-o.PodLinuxOverhead",
    "io.kubernetes.cri-o.PodLinuxResources",
    "io.kubernetes.cri-o.ShmSize",
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel",
    "io.kubernetes.cri-o.UnifiedCgroup",
    "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
    "io.kubernetes.cri-o.seccompNotifierAction",
    "io.kubernetes.cri-o.umask",
    "io.kubernetes.cri-o.userns-mode",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.rdt-class",
    "irq-load-balancing.crio.io",
    "module.wasm.image/variant",
    "org.criu.config",
    "org.systemd.property.",
    "run.oci.",
];

fn cri_o_knows_every_key(test: &Test) -> Outcome {
    let crio: CriO = toml::from_str(&read(test, "crio/99-rt.conf")?)?;
    for (name, handler) in &crio.crio.runtime.runtimes {
        ensure_eq(handler.runtime_type.as_str(), "oci")?;
        // The two RuntimeClasses of containerd's shims have names that are not programs.
        let program = match name.as_str() {
            "wasmtime" => "rt-wasm",
            "spin" => "rt-spin",
            name => name,
        };
        ensure(handler.runtime_path.ends_with(&format!("/bin/{program}")), &handler.runtime_path)?;
        // All handlers share one state, so each can delete the containers of the others.
        ensure_eq(handler.runtime_root.as_str(), "/run/rt")?;
        for annotation in &handler.allowed_annotations {
            ensure(CRI_O_ANNOTATIONS.contains(&annotation.as_str()), annotation)?;
        }
        for (platform, path) in &handler.platform_runtime_paths {
            ensure(platform.starts_with("wasi/wasm"), platform)?;
            ensure(path.ends_with("/bin/rt-wasm"), path)?;
        }
    }
    Ok(())
}

/// The table of runtimes in one of the files for containerd.
fn containerd(test: &Test, version: &str, plugin: &str) -> Outcome<toml::Table> {
    let file: toml::Table =
        toml::from_str(&read(test, &format!("containerd/config-{version}.toml"))?)?;
    let mut table = file;
    for key in ["plugins", plugin, "containerd", "runtimes"] {
        table = match table.remove(key) {
            Some(toml::Value::Table(inner)) if table.is_empty() => inner,
            _ => return Err(format!("{version}: `{key}` is not the only table").into()),
        };
    }
    Ok(table)
}

/// The tests usually run containerd 1, so they do not try the file for containerd 2.
fn containerd_2_is_told_what_1_is(test: &Test) -> Outcome {
    ensure_eq(
        containerd(test, "v3", "io.containerd.cri.v1.runtime")?,
        containerd(test, "v2", "io.containerd.grpc.v1.cri")?,
    )
}
