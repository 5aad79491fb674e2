//! Bundles: a directory with a rootfs and a configuration. The configuration is JSON, so a test can
//! also make an invalid one.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Container, Outcome, Output, Test, skip};

#[derive(Clone, Debug)]
pub(crate) struct Bundle<'a> {
    pub(crate) test: &'a Test,
    pub(crate) folder: PathBuf,
    pub(crate) config: Value,
    /// Flags for `create` and `run`.
    pub(crate) flags: Vec<String>,
}

impl<'a> Bundle<'a> {
    /// Makes a bundle with an empty rootfs, and with the namespaces and mounts that every caller
    /// asks for.
    pub(crate) fn new(test: &'a Test, args: &[&str]) -> Outcome<Bundle<'a>> {
        let folder = test.folder.join(format!("bundle-{}", test.id()));
        fs::create_dir_all(folder.join("rootfs"))?;
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {
                    "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
                    "effective": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
                    "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
                },
                "noNewPrivileges": true,
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            ],
            "linux": {
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
                "namespaces": [
                    { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                ],
            },
        });
        Ok(Bundle { test, folder, config, flags: Vec::new() })
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// Changes the configuration.
    pub(crate) fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    pub(crate) fn annotation(self, key: &str, value: &str) -> Self {
        self.edit(|config| config["annotations"][key] = json!(value))
    }

    pub(crate) fn args(self, args: &[&str]) -> Self {
        self.edit(|config| config["process"]["args"] = json!(args))
    }

    pub(crate) fn mount(self, mount: Value) -> Self {
        self.edit(|config| {
            if let Some(mounts) = config["mounts"].as_array_mut() {
                mounts.push(mount);
            }
        })
    }

    /// Adds a namespace, or replaces the namespace of the same type.
    pub(crate) fn namespace(self, namespace: Value) -> Self {
        self.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|other| other["type"] != namespace["type"]);
                namespaces.push(namespace);
            }
        })
    }

    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Writes a file in the rootfs.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Outcome<Self> {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, content)?;
        Ok(self)
    }

    pub(crate) fn write(&self) -> Outcome {
        let path = self.config["linux"]["cgroupsPath"].as_str();
        if self.test.host.by_systemd && path.is_some_and(|path| !path.contains(':')) {
            return skip("a path of cgroupfs, which systemd does not take");
        }
        fs::write(self.folder.join("config.json"), serde_json::to_string_pretty(&self.config)?)?;
        Ok(())
    }

    pub(crate) fn command_line(&self, command: &str, id: &str) -> Vec<String> {
        let mut args =
            vec![command.to_owned(), "--bundle".into(), self.folder.display().to_string()];
        args.extend(self.flags.iter().cloned());
        args.push(id.to_owned());
        args
    }

    /// Runs the bundle in the foreground, to its end.
    pub(crate) fn run(&self) -> Outcome<Output> {
        self.run_with("")
    }

    /// Runs the bundle with a text on its standard input.
    pub(crate) fn run_with(&self, input: &str) -> Outcome<Output> {
        self.write()?;
        let command = self.test.command(self.command_line("run", &self.test.id()));
        Output::with_input(command, input)
    }

    /// Runs `create`, and returns its output.
    pub(crate) fn try_create(&self, id: &str) -> Outcome<Output> {
        self.write()?;
        Output::of(self.test.command(self.command_line("create", id)))
    }

    /// Creates a container, with standard output and standard error in files.
    pub(crate) fn create(&self) -> Outcome<Container<'a>> {
        self.write()?;
        let id = self.test.id();
        Container::create(self.test, &id, self.test.command(self.command_line("create", &id)))
    }

    /// Creates and starts a container.
    pub(crate) fn start(&self) -> Outcome<Container<'a>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }
}
