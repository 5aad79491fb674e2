//! The callers' configurations that come with `rt`, held against what their programs take: where these run, they are given them
//! (topics `podman`, `docker`, `cri`); these are the others.

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
    kubernetes_objects_are_of_their_types, a_runtime_class_names_a_handler_of_each_caller, cri_o_knows_every_key, containerd_2_is_told_what_1_is,
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

/// The objects of a file, each of which has to be of the type that its `kind` says, down to the last field.
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

/// What the type does not know is lost when it is written again.
fn is_all_of<T: DeserializeOwned + Serialize>(object: &Value) -> Outcome {
    let typed: T = serde_json::from_value(object.clone())?;
    ensure_eq(&serde_json::to_value(typed)?, object)
}

fn kubernetes_objects_are_of_their_types(test: &Test) -> Outcome {
    ensure_eq(objects(test, "kubernetes/runtimeclass.yaml")?.len(), 2)?;
    ensure_eq(objects(test, "kubernetes/daemonset.yaml")?.len(), 1)?;
    let service = objects(test, "kubernetes/deployment.yaml")?;
    // The service is for the pods that the deployment makes, at the port that their container has.
    let pod = &service[0]["spec"]["template"];
    ensure_eq(&service[1]["spec"]["selector"], &pod["metadata"]["labels"])?;
    let port = &pod["spec"]["containers"][0]["ports"][0]["containerPort"];
    ensure_eq(&service[1]["spec"]["ports"][0]["targetPort"], port)
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

/// crio.conf(5), "CRIO.RUNTIME.RUNTIMES TABLE".
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriOHandler {
    runtime_path: String,
    runtime_type: String,
    runtime_root: String,
    #[serde(default)]
    allowed_annotations: Vec<String>,
    #[serde(default)]
    platform_runtime_paths: BTreeMap<String, String>,
}

/// What CRI-O lets through: names that begin with one of these.
const CRI_O_ANNOTATIONS: [&str; 3] =
    ["run.oci.", "module.wasm.image/variant", "io.containers.trace-syscall"];

fn cri_o_knows_every_key(test: &Test) -> Outcome {
    let crio: CriO = toml::from_str(&read(test, "crio/99-rt.conf")?)?;
    for (name, handler) in &crio.crio.runtime.runtimes {
        ensure_eq(handler.runtime_type.as_str(), "oci")?;
        ensure(handler.runtime_path.ends_with(&format!("/bin/{name}")), &handler.runtime_path)?;
        // One state: what one creates, the other deletes.
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

/// The runtimes in one of containerd's files.
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

/// The one that runs in the tests is of version 1.
fn containerd_2_is_told_what_1_is(test: &Test) -> Outcome {
    ensure_eq(
        containerd(test, "v3", "io.containerd.cri.v1.runtime")?,
        containerd(test, "v2", "io.containerd.grpc.v1.cri")?,
    )
}
