//! What a component may import: WASI 0.2 and 0.3, with everything that the contract gives the
//! guest.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rt_engine::contract::Preopen;
use rt_engine::{files, variables};
use wasmtime::Engine;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::limits::Limits;
use crate::open;
use crate::serve::{Call, Outbound};
use crate::spin::{self, Hosts, Platform};
use crate::streams::Unbuffered;

/// The host's side of an instance.
pub(crate) struct World {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: Outbound,
    table: ResourceTable,
    pub(crate) limits: Limits,
    /// For a component of a Spin app.
    pub(crate) spin: Option<Arc<spin::Guest>>,
    /// For the same.
    pub(crate) streams: spin::Streams,
}

impl World {
    /// Begins a call of a handler, whose guest may send requests.
    pub(crate) fn begin(&mut self, call: Call) {
        self.outbound.begin(call);
    }

    /// The part that the functions of Spin use. Only the components of Spin apps can call them.
    pub(crate) fn platform(&mut self) -> Platform<'_> {
        Platform { guest: self.spin.as_deref(), table: &mut self.table }
    }
}

impl WasiView for World {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for World {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outbound }
    }
}

/// All functions of WASI 0.2, except those of HTTP. An engine for asynchronous components also has
/// those of WASI 0.3.
pub(crate) fn linker(engine: &Engine, is_asynchronous: bool) -> Result<Linker<World>, String> {
    let mut linker = Linker::new(engine);
    let add = |linker: &mut Linker<World>| {
        wasmtime_wasi::p2::add_to_linker_async(linker)?;
        open::guard(linker)?;
        if is_asynchronous {
            wasmtime_wasi::p3::add_to_linker(linker)?;
            open::newer::guard(linker)?;
        }
        Ok(())
    };
    add(&mut linker).map_err(|error| not_offered(&error))?;
    Ok(linker)
}

/// The same, with those of HTTP.
pub(crate) fn http_linker(engine: &Engine, is_asynchronous: bool) -> Result<Linker<World>, String> {
    let mut linker = linker(engine, is_asynchronous)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)
        .map_err(|error| not_offered(&error))?;
    if is_asynchronous {
        wasmtime_wasi_http::p3::add_to_linker(&mut linker).map_err(|error| not_offered(&error))?;
    }
    Ok(linker)
}

fn not_offered(error: &wasmtime::Error) -> String {
    format!("offer WASI: {error:#}")
}

/// The most resources of a guest of a server, such as files, sockets and requests; the most handles
/// of its components; and the most streams, futures and tasks. The host's side of each takes some
/// hundred bytes.
pub(crate) const MOST: usize = 1000;

/// The most bytes of the headers in one resource of a guest of a server.
const FIELDS: usize = 32 << 10;

/// The most random bytes of one call. The host makes them in one piece, while others wait.
const RANDOM: u64 = 1 << 20;

/// What each instance of a component is given.
pub(crate) struct Given {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    directory: Option<String>,
    files: WasiFilesystemCtx,
    stdout: Unbuffered,
    stderr: Unbuffered,
    /// The hosts that its sockets may reach, if not all.
    hosts: Option<Arc<Hosts>>,
    /// Whether the process may wait for a file: it has no other guest, which would wait too. Then
    /// the guest also has the standard input.
    is_alone: bool,
}

impl Given {
    /// Opens the directories of the guest. No other file is open for it: not the engine's, and not
    /// its own native code.
    pub(crate) fn new(
        arguments: Vec<String>,
        environment: &[u8],
        directories: &[Preopen<File>],
        is_alone: bool,
    ) -> Result<Given, String> {
        let variables = variables(environment)?.into_iter().filter_map(|it| it.split_once('='));
        let directory = std::env::current_dir().ok();
        Ok(Given {
            arguments,
            variables: variables.map(|(name, value)| (name.into(), value.into())).collect(),
            directory: directory.and_then(|it| it.into_os_string().into_string().ok()),
            files: open_directories(directories, is_alone)?,
            stdout: Unbuffered::new(std::io::stdout())?,
            stderr: Unbuffered::new(std::io::stderr())?,
            hosts: None,
            is_alone,
        })
    }

    /// Lets the guest's sockets reach these hosts only.
    pub(crate) fn limit_sockets(&mut self, hosts: Arc<Hosts>) {
        self.hosts = Some(hosts);
    }

    /// The world of a new instance.
    pub(crate) fn world(&self, limits: Limits, outbound: Outbound) -> World {
        let mut wasi = WasiCtx::builder();
        if self.is_alone {
            wasi.inherit_stdin();
        }
        wasi.stdout(self.stdout.clone())
            .stderr(self.stderr.clone())
            .args(&self.arguments)
            .envs(&self.variables)
            // rt restricts the network of the whole process, for every engine in the same way.
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true)
            .allow_blocking_current_thread(self.is_alone);
        if !self.is_alone {
            wasi.max_random_size(RANDOM);
        }
        if let Some(directory) = &self.directory {
            wasi.initial_cwd(directory);
        }
        if let Some(hosts) = &self.hosts {
            let hosts = Arc::clone(hosts);
            // A component without such an entry could still make sockets, which take descriptors.
            let allowed = hosts.allow_sockets();
            wasi.allow_ip_name_lookup(allowed).allow_tcp(allowed).allow_udp(allowed);
            wasi.socket_addr_check(move |address, what| {
                let allowed = hosts.allow_socket(address, what);
                Box::pin(async move { allowed })
            });
        }
        let mut wasi = wasi.build();
        wasi.filesystem().clone_from(&self.files);
        let (mut http, mut table) = (WasiHttpCtx::new(), ResourceTable::new());
        if !self.is_alone {
            // What the host keeps for a guest is not in the memory of the guest.
            table.set_max_capacity(MOST);
            http.set_field_size_limit(FIELDS);
        }
        World { wasi, http, outbound, table, limits, spin: None, streams: spin::Streams::new() }
    }
}

fn open_directories(
    directories: &[Preopen<File>],
    is_alone: bool,
) -> Result<WasiFilesystemCtx, String> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.allow_blocking_current_thread(is_alone);
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
            // wasmtime needs the right to read it. Without the right, the guest does not see the
            // directory.
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
    Ok(wasi.build().filesystem().clone())
}
