//! `rt spec`: writes an initial `config.json`.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{bundle, cli};

pub(super) fn execute(args: &cli::Spec) -> Result<ExitCode> {
    // Relative to the bundle, as with crun.
    let path = args.bundle.join(args.file.as_deref().unwrap_or(Path::new("config.json")));
    let write = || -> Result<()> {
        let text = serde_json::to_string_pretty(&template(args))? + "\n";
        // Never overwrites an existing configuration, because it is somebody's work.
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(file.write_all(text.as_bytes())?)
    };
    write().with_context(|| format!("spec: write `{}`", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn template(args: &cli::Spec) -> Value {
    let mut spec = bundle::template();
    if args.wasm {
        wasm(&mut spec);
    }
    if args.rootless {
        rootless(&mut spec);
    }
    spec
}

/// A module at `/app.wasm`, in a rootfs that requires no other file.
fn wasm(spec: &mut Value) {
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/app.wasm"]);
    spec["annotations"] = json!({ "run.oci.handler": "wasm" });
}

/// As runc does: root is mapped to the caller's ids, the host's network is kept, and `/sys` is the
/// host's.
fn rootless(spec: &mut Value) {
    let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    let linux = &mut spec["linux"];
    linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user" }));
    }
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
            });
        }
        // The group tty is not mapped.
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
}
