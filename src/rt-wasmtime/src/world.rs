//! What a component may import: WASI 0.2, with everything that the contract gives the guest.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use rt_engine::contract::Preopen;
use rt_engine::{files, variables};
use wasmtime::Engine;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};

use crate::limits::Limits;
use crate::open;
use crate::streams::Unbuffered;

/// The host's side of an instance.
pub(crate) struct World {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(crate) limits: Limits,
}

impl WasiView for World {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// All functions of WASI 0.2.
pub(crate) fn linker(engine: &Engine) -> Result<Linker<World>, String> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)
        .and_then(|()| open::guard(&mut linker))
        .map_err(|error| format!("offer WASI: {error:#}"))?;
    Ok(linker)
}

impl World {
    /// Opens the directories of the guest. No other file is open for it: not the engine's, and not
    /// its own native code.
    pub(crate) fn new(
        arguments: &[String],
        environment: &[u8],
        directories: &[Preopen<File>],
        limits: Limits,
    ) -> Result<World, String> {
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stdin()
            .stdout(Unbuffered::new(std::io::stdout())?)
            .stderr(Unbuffered::new(std::io::stderr())?)
            .args(arguments)
            // rt restricts the network of the whole process, for every engine in the same way.
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true)
            // The guest is the only one who waits.
            .allow_blocking_current_thread(true);
        for variable in variables(environment)? {
            if let Some((name, value)) = variable.split_once('=') {
                wasi.env(name, value);
            }
        }
        if let Some(directory) =
            std::env::current_dir().ok().and_then(|it| it.into_os_string().into_string().ok())
        {
            wasi.initial_cwd(directory);
        }
        for Preopen { path, read_only, descriptor } in directories {
            let rights = if *read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            let place = match descriptor {
                Some(opened) => format!("/proc/self/fd/{}/.", opened.as_raw_fd()),
                None => format!("{path}/."),
            };
            let failed = |why: &dyn Display| format!("preopen `{path}`: {why:#}");
            // Because of `/.`, this opens a directory only. Another container that shares a volume
            // could have put a fifo there.
            let opened = match File::open(place) {
                // wasmtime needs the right to read it. Without the right, the guest does not see
                // the directory.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
                opened => opened.map_err(|error| failed(&error))?,
            };
            // Another container may have moved the directory since `create`.
            if !files::is_for_guests(&opened) {
                return Err(failed(&"it belongs to the kernel"));
            }
            let place = format!("/proc/self/fd/{}/.", opened.as_raw_fd());
            wasi.preopened_dir(place, path, rights).map_err(|error| failed(&error))?;
        }
        Ok(World { wasi: wasi.build(), table: ResourceTable::new(), limits })
    }
}
