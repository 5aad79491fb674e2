//! What `rt` says about its containers: `rt list --format json`, and `rt events --stats` for each
//! container that has processes.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::usage::{Container, Sample, Usage};

/// The program `rt`, and the root of the state that it is to read.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) rt: OsString,
    pub(crate) root: OsString,
}

/// The status of a container whose state `rt` cannot read.
pub(crate) const UNREADABLE: &str = "unreadable";

impl Source {
    /// Asks for all containers. Leaves out one that goes meanwhile.
    pub(crate) fn sample(&self) -> Result<Sample, String> {
        let listed = self.ask(["list", "--format", "json"])?;
        if !listed.status.success() {
            return Err(reason(&listed));
        }
        let list: Vec<Value> = serde_json::from_slice(&listed.stdout)
            .map_err(|error| format!("understand `rt list`: {error}"))?;
        let mut sample = Sample::default();
        for line in String::from_utf8_lossy(&listed.stderr).lines() {
            let note = line.strip_prefix("rt: warning: ").unwrap_or(line);
            sample.containers.extend(unreadable(note));
            sample.notes.push(note.to_owned());
        }
        for listed in &list {
            let Some(container) = container(listed) else { continue };
            let container = match container.status.as_str() {
                "creating" | "stopped" => Some(container),
                _ => self.with_usage(container, &mut sample.notes)?,
            };
            sample.containers.extend(container);
        }
        Ok(sample)
    }

    /// Adds a container's usage. Returns `None` if the container is gone.
    fn with_usage(
        &self,
        mut container: Container,
        notes: &mut Vec<String>,
    ) -> Result<Option<Container>, String> {
        let told = self.ask(["events", "--stats", &container.id])?;
        container.at = Instant::now();
        if told.status.success() {
            let event: Value = serde_json::from_slice(&told.stdout)
                .map_err(|error| format!("understand `rt events`: {error}"))?;
            add_usage(&mut container, &event["data"]);
            return Ok(Some(container));
        }
        // The container has stopped or is gone, or has no cgroup.
        let state = self.ask(["state", &container.id])?;
        if state.status.success() {
            let state: Value = serde_json::from_slice(&state.stdout)
                .map_err(|error| format!("understand `rt state`: {error}"))?;
            if let Some(status) = state["status"].as_str() {
                status.clone_into(&mut container.status);
            }
            return Ok(Some(container));
        }
        let reason = reason(&state);
        if reason.contains("container does not exist") {
            return Ok(None);
        }
        notes.push(reason);
        container.status = UNREADABLE.into();
        Ok(Some(container))
    }

    fn ask<const N: usize>(&self, args: [&str; N]) -> Result<Output, String> {
        let args = args.map(OsStr::new);
        let mut command = Command::new(&self.rt);
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command.output().map_err(|error| format!("run `{}`: {error}", self.rt.display()))
    }
}

/// The line in which `rt` says why it failed.
fn reason(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().last().unwrap_or("`rt` failed without a word");
    line.strip_prefix("rt: ").unwrap_or(line).to_owned()
}

/// The container that a warning of `rt list` names.
fn unreadable(note: &str) -> Option<Container> {
    let (id, _) = note.strip_prefix("leave out container `")?.split_once('`')?;
    Some(Container { status: UNREADABLE.into(), ..Container::new(id) })
}

fn container(listed: &Value) -> Option<Container> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let annotations = &listed["annotations"];
    Some(Container {
        status: text(&listed["status"])?,
        created: text(&listed["created"]).unwrap_or_default(),
        engine: text(&annotations["run.oci.engine"]),
        mode: text(&annotations["run.oci.engine.mode"]),
        ..Container::new(listed["id"].as_str()?)
    })
}

/// Takes what `rt events` prints. A limit of half the address space or more is none (with cgroup
/// v1, the kernel's largest number of whole pages). Without a controller, its numbers are 0.
fn add_usage(container: &mut Container, data: &Value) {
    let number = |path: &str| data.pointer(path).and_then(Value::as_u64);
    let memory = number("/memory/usage/usage").unwrap_or(0);
    let limit = number("/memory/usage/limit").unwrap_or(0);
    container.usage = Some(Usage {
        cpu: number("/cpu/usage/total").unwrap_or(0),
        memory: (memory > 0 || limit > 0).then_some(memory),
        limit: Some(limit).filter(|limit| (1..1 << 62).contains(limit)),
        processes: number("/pids/current").filter(|processes| *processes > 0),
        requests: number("/wasm/http/requests"),
    });
    // Only `rt` writes these, and anybody the annotations.
    let text = |path: &str| data.pointer(path).and_then(Value::as_str).map(str::to_owned);
    container.engine = text("/wasm/engine");
    container.mode = text("/wasm/mode");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_usage_is_what_events_print() {
        let listed = json!({ "id": "c", "status": "running", "created": "now",
            "annotations": { "run.oci.engine": "made up" } });
        let mut read = container(&listed).expect("a container");
        let usage = |limit: u64| {
            json!({
                "cpu": { "usage": { "total": 7 } }, "memory": { "usage": { "usage": 5, "limit": limit } },
                "pids": { "current": 2, "limit": 0 },
                "wasm": { "engine": "wasmtime 48.0.8", "mode": "aot", "http": { "requests": 3 } },
            })
        };
        add_usage(&mut read, &usage(9));
        let expected = Usage {
            cpu: 7,
            memory: Some(5),
            limit: Some(9),
            processes: Some(2),
            requests: Some(3),
        };
        assert_eq!(read.usage, Some(expected));
        assert_eq!(
            (read.engine.as_deref(), read.mode.as_deref()),
            (Some("wasmtime 48.0.8"), Some("aot"))
        );
        for none in [0, u64::MAX, 0x7fff_ffff_ffff_f000] {
            add_usage(&mut read, &usage(none));
            assert_eq!(read.usage.as_ref().and_then(|usage| usage.limit), None);
        }
        add_usage(&mut read, &Value::Null);
        assert_eq!(read.usage, Some(Usage::default()));
        assert_eq!(read.engine, None);
    }

    #[test]
    fn a_container_that_cannot_be_read_has_its_name() {
        let read = unreadable("leave out container `a`: read `state.json`: wrong").expect("one");
        assert_eq!((read.id.as_str(), read.status.as_str()), ("a", UNREADABLE));
        assert!(unreadable("something else").is_none());
    }
}
