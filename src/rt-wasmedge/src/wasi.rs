//! The functions that a module may import: those of WASI preview1 and of plugins.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rt_engine::{Run, variables};
use wasmedge_sdk::plugin::PluginManager;
use wasmedge_sdk::vm::SyncInst;
use wasmedge_sdk::wasi::WasiModule;
use wasmedge_sdk::{AsInstance, Instance, Module};

use crate::os;
use crate::run::one_line;

const WASI: &str = "wasi_snapshot_preview1";

/// The modules from which a guest imports.
pub(crate) struct World {
    pub(crate) wasi: WasiModule,
    /// The plugins' modules, by name.
    pub(crate) offered: HashMap<String, Instance>,
}

impl World {
    /// Makes everything that the contract gives the guest. From here on, WasmEdge opens files only
    /// for the guest.
    pub(crate) fn new(
        run: &mut Run<File>,
        environment: &[u8],
        module: &Module,
    ) -> Result<World, String> {
        let wasi = preview1(run, environment)?;
        // WasmEdge has opened the directories itself.
        run.directories.clear();
        load_plugins(run.plugin_dir.as_ref(), &run.plugins)?;
        os::guard_files();
        let mut world = World { wasi, offered: HashMap::new() };
        for import in module.imports() {
            let (from, name) = (import.module_name(), import.name());
            if !world.has(&from, &name) {
                return Err(format!("unknown import `{name}` from `{from}`"));
            }
        }
        Ok(world)
    }

    /// Whether this function exists.
    fn has(&mut self, from: &str, name: &str) -> bool {
        if from == WASI {
            return self.wasi.as_mut().get_func(name).is_ok();
        }
        if !self.offered.contains_key(from)
            && let Some(instance) = plugin_module(from)
        {
            self.offered.insert(from.to_owned(), instance);
        }
        self.offered.get(from).is_some_and(|it| it.get_func(name).is_ok())
    }

    /// The instances with which a virtual machine links a module.
    pub(crate) fn instances(&mut self) -> HashMap<String, &mut dyn SyncInst> {
        let mut instances: HashMap<String, &mut dyn SyncInst> = HashMap::new();
        instances.insert(WASI.to_owned(), self.wasi.as_mut());
        for (name, instance) in &mut self.offered {
            instances.insert(name.clone(), instance);
        }
        instances
    }
}

/// Loads the plugins that the host allows and the container asks for. Searches no other place.
fn load_plugins(directory: Option<&File>, files: &[String]) -> Result<(), String> {
    let Some(directory) = directory else { return Ok(()) };
    for file in files {
        let path = format!("/proc/self/fd/{}/{file}", directory.as_raw_fd());
        let before = PluginManager::count();
        let loaded = PluginManager::load(Some(Path::new(&path)));
        // If WasmEdge skips a file, it says so only in its log.
        if loaded.is_err() || PluginManager::count() == before {
            let why = one_line(
                "it is not a plugin of this WasmEdge, or a library that it needs is missing".into(),
            );
            return Err(format!("load the plugin `{file}`: {why}"));
        }
    }
    Ok(())
}

/// A module of this name from a plugin.
fn plugin_module(name: &str) -> Option<Instance> {
    let plugins = PluginManager::names();
    let plugins = plugins.iter().filter_map(|plugin| PluginManager::find(plugin).ok());
    let mut offering = plugins.filter(|plugin| plugin.mod_names().iter().any(|it| it == name));
    offering.next()?.mod_instance(name).ok()
}

/// WASI preview1 with everything that the contract gives the guest. Strings from the command line
/// and from a NUL-separated file contain no NUL, for which the Rust API would panic.
fn preview1(run: &Run<File>, environment: &[u8]) -> Result<WasiModule, String> {
    let mut preopens = Vec::new();
    for directory in &run.directories {
        // WasmEdge's syntax is GUEST:HOST[:readonly]. It has no way to write a colon in a path.
        if directory.path.contains(':') {
            return Err(format!(
                "preopen `{}`: WasmEdge cannot name a directory with a colon",
                directory.path
            ));
        }
        let right = if directory.read_only { ":readonly" } else { "" };
        let place = match &directory.descriptor {
            // Because of `/.`, the last component is not a link: WasmEdge follows no link there.
            Some(opened) => format!("/proc/self/fd/{}/.", opened.as_raw_fd()),
            None => directory.path.clone(),
        };
        preopens.push(format!("{}:{place}{right}", directory.path));
    }
    let arguments = run.arguments.iter().map(String::as_str).collect();
    let environment = variables(environment)?;
    let preopens = preopens.iter().map(String::as_str).collect();
    WasiModule::create(Some(arguments), Some(environment), Some(preopens))
        .map_err(|error| format!("make the WASI module: {error}"))
}
