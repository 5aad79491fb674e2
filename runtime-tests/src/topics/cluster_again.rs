//! The node of the topic `cluster`, after its power has gone and come back.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::cluster::{
    APPS, MODULES, kubectl, wait_for_answer, wait_for_deployment, wait_for_the_node,
};
use crate::harness::{Outcome, Output, Test, ensure, ensure_eq, skip, wait_up_to};

super::tests! { "cluster_again":
    the_deployments_answer_again, nothing_of_before_is_left,
}

fn node() -> Outcome {
    if !Path::new("/power-is-gone").exists() {
        return skip("no node whose power has gone: `make test-kubernetes`");
    }
    wait_for_the_node()
}

fn the_deployments_answer_again(_test: &Test) -> Outcome {
    node()?;
    wait_for_deployment("wasm-http-service")?;
    wait_for_deployment("wasm-spin-service")?;
    wait_for_answer(MODULES, "Hello from Wasm!")?;
    wait_for_answer(APPS, "Hello from Spin!")
}

/// The containers that `rt` lists are those that containerd knows, and all of them are alive.
fn nothing_of_before_is_left(test: &Test) -> Outcome {
    node()?;
    let listed = || -> Outcome<Vec<Value>> {
        let mut list = std::process::Command::new(&test.host.runtime);
        list.args(["--root", "/run/containerd/rt/k8s.io", "list", "--format", "json"]);
        let list = Output::of(list)?.success()?.stdout;
        Ok(serde_json::from_str::<Option<Vec<Value>>>(&list)?.unwrap_or_default())
    };
    let mut last = String::new();
    wait_up_to(Duration::from_secs(300), "what rt lists is alive", || {
        let all = listed().unwrap_or_default();
        last = format!("{all:?}");
        !all.is_empty() && all.iter().all(|one| one["status"] == "running")
    })?;
    let pods = kubectl(&["get", "pods", "--output", "name"])?.success()?.stdout;
    // Each pod of the two Deployments has a sandbox and a container.
    ensure_eq(pods.lines().count(), 6)?;
    ensure(listed()?.len() >= 12, last)
}
