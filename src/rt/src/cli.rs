//! The command line: what the user typed, parsed and nothing more.
//!
//! The flags are crun's and runc's, and callers pass every one of them (conmon, go-runc, podman,
//! CRI-O). Global flags come before the subcommand. The file of a subcommand in `command/` explains
//! its flags.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, FromArgMatches, Parser, Subcommand};

use crate::log;

#[derive(Debug, Parser)]
#[command(
    name = "rt",
    about = "An OCI container runtime for Linux and WebAssembly workloads",
    disable_help_subcommand = true,
    args_override_self = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long)]
    pub(crate) version: bool,
    /// Print the synopsis, as programs that use argp(3) do
    #[arg(long, global = true, hide = true, action = clap::ArgAction::HelpShort)]
    usage: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Directory for the state of containers [default: /run/rt, or $XDG_RUNTIME_DIR/rt when not
    /// root]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Destination of messages: a file to append to, journald:NAME or syslog:NAME
    #[arg(long, value_name = "[file:]FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Format of messages
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: log::Format,
    /// Lowest level of messages to log
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub(crate) log_level: log::LogLevel,
    /// Log each step of the command; same as --log-level=debug
    #[arg(long)]
    pub(crate) debug: bool,
    /// Same as --cgroup-manager=systemd
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Manager that makes the cgroups [default: cgroupfs]
    #[arg(long, value_name = "MANAGER", value_enum)]
    pub(crate) cgroup_manager: Option<CgroupManager>,
    /// File with the host's settings for WebAssembly [default: /etc/rt/wasm.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) wasm_config: Option<PathBuf>,
    /// Accepted for compatibility with runc and ignored: rt finds out by itself what it may do
    #[arg(long, hide = true, value_name = "true|false|auto", value_parser = ["true", "false", "auto"])]
    rootless: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum CgroupManager {
    Cgroupfs,
    Systemd,
    Disabled,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container from a bundle; its program waits for `start`
    Create(Creation),
    /// Start the program of a created container
    Start(Id),
    /// Print the state of a container as JSON
    State(Id),
    /// Run another program in a container
    Exec(Box<Exec>),
    /// Send a signal to a container
    Kill(Kill),
    /// Delete a stopped container
    Delete(Delete),
    /// Create and start a container, wait for its end, and delete it
    Run(Run),
    /// Pause all processes of a container
    Pause(Id),
    /// Resume all processes of a paused container
    Resume(Id),
    /// Change the resource limits of a container
    Update(Box<Update>),
    /// List the processes of a container
    Ps(Ps),
    /// Add mounts to a running container, and remove them
    Mounts(Mounts),
    /// Print the resource usage and the OOM kills of a container, one JSON object per line
    Events(Events),
    /// Write the processes of a container to a checkpoint with CRIU, and end them
    Checkpoint(Box<Checkpoint>),
    /// Restore a container from a checkpoint
    Restore(Box<Restore>),
    /// List all containers
    List(List),
    /// Show the CPU, memory, processes, engines and requests of all containers in a live table
    Top(Top),
    /// Write a `config.json` as a starting point
    Spec(Spec),
    /// Print the features of this runtime as JSON
    Features,
    /// Check what this host lacks for containers, and print how to fix it
    Check(Check),
    /// Inspect and compile WebAssembly modules, and manage their native code
    Wasm(Wasm),
    /// Print a completion script for a shell
    Completion(Completion),
}

#[derive(Args, Debug)]
pub(crate) struct Wasm {
    #[command(subcommand)]
    pub(crate) command: WasmCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WasmCommand {
    /// Compile a module, or the module of a bundle
    Compile(WasmCompile),
    /// Print the kind, the imports and exports of a module, the engine that would run it, and
    /// missing imports
    Inspect(WasmInspect),
    /// List or remove native code
    Cache(WasmCache),
    /// Compile the module on standard input; rt itself starts this
    #[command(hide = true)]
    Worker(WasmWorker),
}

#[derive(Args, Debug)]
pub(crate) struct WasmCompile {
    /// File of a module, or directory of a bundle
    pub(crate) path: PathBuf,
    /// Compile even if an earlier attempt failed
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct WasmInspect {
    /// File of a module, or directory of a bundle
    pub(crate) path: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: CheckFormat,
}

#[derive(Args, Debug)]
pub(crate) struct WasmCache {
    #[command(subcommand)]
    pub(crate) command: WasmCacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WasmCacheCommand {
    /// List native code, most recently used first
    List(WasmCacheList),
    /// Remove unusable entries, then the least recently used, down to SIZE
    Prune(WasmCachePrune),
    /// Remove all entries except modules that are being compiled
    Clear,
}

#[derive(Args, Debug)]
pub(crate) struct WasmCacheList {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
}

#[derive(Args, Debug)]
pub(crate) struct WasmCachePrune {
    /// Size to keep, in bytes or with a unit: k, m, g [default: `cache.maxBytes` of the settings]
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct WasmWorker {
    /// Name of the engine that runs the native code
    #[arg(long, value_name = "NAME")]
    pub(crate) engine: String,
    /// Name of the module in its container
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub(crate) name: String,
    /// Return at once and compile in the background
    #[arg(long)]
    pub(crate) background: bool,
    /// Make native code that counts instructions
    #[arg(long)]
    pub(crate) counting: bool,
    /// Number of the tenant [default: the administrator]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) tenant: Option<u64>,
    /// Time limit to wait for other compilers, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub(crate) wait: u64,
}

/// A container's name, and the words after it. After the name, no word is a flag of `rt`. A caller
/// passes on the words of its own users there (`kubectl exec`).
#[derive(Args, Debug)]
pub(crate) struct Words {
    /// Each command has its own text.
    #[arg(required = true, value_names = ["ID", "ARG"], num_args = 1.., trailing_var_arg = true)]
    words: Vec<String>,
}

impl Words {
    pub(crate) fn id(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn others(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

#[derive(Args, Debug)]
pub(crate) struct Id {
    /// Container ID
    pub(crate) id: String,
}

/// The files and sockets that the caller names for a new process, and the descriptors that it
/// passes on.
#[derive(Args, Debug)]
pub(crate) struct Handover {
    /// File to write the PID of the new process to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that gets the master end of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the new process
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Number of extra file descriptors to pass, starting at 3
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

/// What `create` and `run` share.
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Container ID
    pub(crate) id: String,
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Configuration file [default: `config.json` in the bundle]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) handover: Handover,
    /// Use chroot(2) instead of pivot_root(2), for a host whose root is a ramdisk
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Creation {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Accepted for compatibility with runc and ignored: `create` always detaches
    #[arg(short, long, hide = true)]
    detach: bool,
    /// Accepted for compatibility with crun and ignored: rt never becomes a subreaper
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Return when the program has started
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container after its program has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted for compatibility with runc and ignored: rt never becomes a subreaper
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

#[derive(Args, Debug)]
#[command(mut_arg("words", |words| words.help("Container ID, then the program and its arguments")))]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) words: Words,
    /// JSON file that describes the process, as `process` in `config.json`
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Return when the program has started
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) handover: Handover,
    /// Cgroup for the process, relative to the container's; with cgroup v1, optionally for some
    /// controllers
    #[arg(long, value_name = "[CONTROLLER[,CONTROLLER]:]PATH")]
    pub(crate) cgroup: Vec<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Environment variable to set
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// User, and optionally group
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Additional group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Additional capability
    #[arg(short, long, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
    /// Prevent the process from gaining privileges (no_new_privs)
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Accept a paused container, and wait until it is resumed
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Accepted for compatibility with runc and ignored: rt never becomes a subreaper
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Kill {
    /// Container ID
    pub(crate) id: String,
    /// Signal name or number
    #[arg(default_value = "TERM", allow_hyphen_values = true)]
    pub(crate) signal: String,
    /// Send the signal to all processes of the container
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Treat ID as a regular expression, and use all containers whose IDs match
    #[arg(short, long)]
    pub(crate) regex: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    /// Container ID
    pub(crate) id: String,
    /// Kill a running container first; succeed if the container does not exist
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Treat ID as a regular expression, and use all containers whose IDs match
    #[arg(short, long)]
    pub(crate) regex: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: CheckFormat,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum CheckFormat {
    #[default]
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Completion {
    /// Shell to write the script for
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
#[command(after_help = "A SIZE is in bytes, or has a unit: k, m or g. -1 means no limit.")]
pub(crate) struct Update {
    /// Container ID
    pub(crate) id: String,
    /// JSON file with the limits, as `linux.resources` in `config.json`; `-` for standard input
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) resources: Option<PathBuf>,
    /// Memory limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Limit of memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Accepted for compatibility with runc and ignored: kernels no longer have this limit
    #[arg(long, hide = true, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) kernel_memory: Option<String>,
    /// Memory limit of TCP buffers (cgroup v1)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// CPU weight, 2 to 262144; the kernel's default is 1024
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    pub(crate) cpu_share: Option<u64>,
    /// CPU time limit in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Length of a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,
    /// Unused quota that can be saved for later periods, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_burst: Option<u64>,
    /// 1: run only when the CPU is otherwise idle
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,
    /// Length of a realtime period, in microseconds (cgroup v1)
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Realtime CPU time limit in each period, in microseconds (cgroup v1)
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// CPUs to run on, for example 0-3,7
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes to use, for example 0-1
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Limit of processes and threads; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// I/O weight, 10 to 1000
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u16>,
    /// L3 cache allocation (Intel RDT), as a line of `schemata`
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,
    /// Memory bandwidth allocation (Intel RDT), as a line of `schemata`
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
}

#[derive(Args, Debug)]
#[command(mut_arg("words", |words| words.help("Container ID, then arguments of ps(1) [default: -ef]")))]
pub(crate) struct Ps {
    #[command(flatten)]
    pub(crate) words: Words,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
}

#[derive(Args, Debug)]
pub(crate) struct Mounts {
    #[command(subcommand)]
    pub(crate) command: MountsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MountsCommand {
    /// Add the bind mounts and tmpfs in FILE
    Add(MountsChange),
    /// Remove mounts that `mounts add` has made, at the destinations in FILE
    Remove(MountsChange),
}

#[derive(Args, Debug)]
pub(crate) struct MountsChange {
    /// Container ID
    pub(crate) id: String,
    /// JSON file with an array, as `mounts` in `config.json`
    pub(crate) file: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Container ID
    pub(crate) id: String,
    /// Time between two lines, for example 5s, 500ms or 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(crate) interval: String,
    /// Print one line and exit
    #[arg(long)]
    pub(crate) stats: bool,
}

/// The common flags of `checkpoint` and `restore`. Most are CRIU's, and criu(8) explains them.
#[derive(Args, Debug)]
pub(crate) struct Images {
    /// Directory of the checkpoint
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub(crate) image_path: PathBuf,
    /// Directory of CRIU's log [default: the directory of the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub(crate) work_path: Option<PathBuf>,
    /// Include established TCP connections
    #[arg(long)]
    pub(crate) tcp_established: bool,
    /// Include Unix sockets whose other end is outside of the container
    #[arg(long)]
    pub(crate) ext_unix_sk: bool,
    /// Include a terminal that is not the container's own
    #[arg(long)]
    pub(crate) shell_job: bool,
    /// Include file locks
    #[arg(long)]
    pub(crate) file_locks: bool,
    /// Remove memory pages from earlier images if a later image has them too
    #[arg(long)]
    pub(crate) auto_dedup: bool,
    /// Transfer memory pages over the network when they are needed
    #[arg(long)]
    pub(crate) lazy_pages: bool,
    /// Leave out the content of a namespace: only `network` is possible
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub(crate) empty_ns: Vec<String>,
    /// Mode to save and restore cgroups [default: soft]
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) manage_cgroups_mode: Option<CgroupsMode>,
    /// Method to block packets [default: iptables, or nftables if iptables is missing (CRIU 4.0)]
    #[arg(long, value_name = "METHOD", value_enum)]
    pub(crate) network_lock: Option<NetworkLock>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum CgroupsMode {
    Soft,
    Full,
    Strict,
    Ignore,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum NetworkLock {
    Iptables,
    Nftables,
    Skip,
}

#[derive(Args, Debug)]
pub(crate) struct Checkpoint {
    /// Container ID
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) images: Images,
    /// Earlier checkpoint, as a path relative to this one
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_path: Option<PathBuf>,
    /// Write the memory only and keep the container running, so that the next checkpoint is faster
    #[arg(long)]
    pub(crate) pre_dump: bool,
    /// Keep the container running
    #[arg(long)]
    pub(crate) leave_running: bool,
    /// Give temporary names to removed files that are still open
    #[arg(long)]
    pub(crate) link_remap: bool,
    /// Leave out established TCP connections: `restore` closes them
    #[arg(long)]
    pub(crate) tcp_close: bool,
    /// Leave out TCP connections that are being established
    #[arg(long)]
    pub(crate) tcp_skip_in_flight: bool,
    /// Send the memory to a `criu page-server`
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) page_server: Option<String>,
    /// File descriptor to write a NUL to when the memory is available (--lazy-pages)
    #[arg(long, value_name = "FD")]
    pub(crate) status_fd: Option<i32>,
}

#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// Container ID
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) images: Images,
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Configuration file [default: `config.json` in the bundle]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Return when the container runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File to write the PID of the first process to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that gets the master end of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Close TCP connections that were established
    #[arg(long)]
    pub(crate) tcp_close: bool,
    /// Security label, as selinux:LABEL or apparmor:PROFILE
    #[arg(long, value_name = "TYPE:NAME")]
    pub(crate) lsm_profile: Option<String>,
    /// SELinux label of the mounts
    #[arg(long, value_name = "LABEL")]
    pub(crate) lsm_mount_context: Option<String>,
    /// Accepted for compatibility with runc and ignored: rt never becomes a subreaper
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// Accepted for compatibility with conmon and ignored: CRIU changes the root
    #[arg(long, hide = true)]
    no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
    /// Print only container IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// Seconds between two samples [default: 2, or 0.5 with --once]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) interval: Option<String>,
    /// Print the table once and exit
    #[arg(long)]
    pub(crate) once: bool,
    /// Output format; json requires --once
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum ListFormat {
    #[default]
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Spec {
    /// Directory to write `config.json` to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// File to write instead of `config.json` in that directory
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Write a configuration for an ordinary user
    #[arg(long)]
    pub(crate) rootless: bool,
    /// Write a configuration for the WebAssembly module `/app.wasm`
    #[arg(long)]
    pub(crate) wasm: bool,
}

/// The result of parsing.
pub(crate) enum Parsed {
    Command(Box<Global>, Command),
    Version,
    /// Help, to be printed on standard output.
    Help(String),
    /// One line that says what is wrong, and where callers look for it.
    Wrong {
        line: String,
        log: Option<PathBuf>,
        log_format: log::Format,
    },
}

pub(crate) fn parse(args: Vec<OsString>) -> Parsed {
    // Callers ask for the version whenever they start. Setting up clap would be most of the time,
    // so this answers without clap.
    if let [_, only] = &args[..]
        && (only == "--version" || only == "-v" || only == "-V")
    {
        return Parsed::Version;
    }
    let wrong = {
        let value = |flag: &str| last_value(&args, flag);
        let (log, format) = (value("--log"), value("--log-format"));
        let json = format.is_some_and(|format| format == "json");
        let log_format = if json { log::Format::Json } else { log::Format::Text };
        move |line| Parsed::Wrong { line, log: log.map(PathBuf::from), log_format }
    };
    if let Some((global, command)) = parse_one(&args) {
        return Parsed::Command(Box::new(global), command);
    }
    let wants_usage = args.iter().any(|arg| arg == "--usage")
        && !args.iter().any(|arg| arg == "--help" || arg == "-h");
    let parsed = Cli::try_parse_from(&args).or_else(|error| match double_dash(args) {
        Some(args) => Cli::try_parse_from(args),
        None => Err(error),
    });
    match parsed {
        Ok(Cli { version: true, .. }) => Parsed::Version,
        Ok(Cli { command: Some(command), global, .. }) => {
            Parsed::Command(Box::new(global), command)
        }
        Ok(Cli { command: None, .. }) => wrong("no command given: see `rt --help`".into()),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            let help = error.to_string();
            Parsed::Help(if wants_usage { usage(&help) } else { help })
        }
        Err(error) => wrong(one_line(&error)),
    }
}

/// Parses with only the subcommand that the words name. With all subcommands, clap would make all
/// their flags, which takes longer than most commands. Returns None for a mistake, for help, and
/// for a value that is the name of a command. Then the caller parses with all subcommands.
fn parse_one(args: &[OsString]) -> Option<(Global, Command)> {
    macro_rules! one {
        ($($name:literal => $variant:ident($args:ty),)*) => {{
            let known = [$($name),*];
            let name = args.iter().skip(1).find_map(|arg| known.into_iter().find(|name| arg == name))?;
            let subcommand = clap::Command::new(name);
            let subcommand = match name {
                $($name => <$args>::augment_args(subcommand),)*
                _ => return None,
            };
            let whole = Global::augment_args(clap::Command::new("rt"))
                .args_override_self(true)
                .subcommand(subcommand);
            let matches = whole.try_get_matches_from(args).ok()?;
            let global = Global::from_arg_matches(&matches).ok()?;
            let (_, own) = matches.subcommand()?;
            let command = match name {
                $($name => Command::$variant(<$args>::from_arg_matches(own).ok()?.into()),)*
                _ => return None,
            };
            Some((global, command))
        }};
    }
    one! {
        "create" => Create(Creation),
        "start" => Start(Id),
        "state" => State(Id),
        "exec" => Exec(Exec),
        "kill" => Kill(Kill),
        "delete" => Delete(Delete),
        "run" => Run(Run),
        "list" => List(List),
        "ps" => Ps(Ps),
        "update" => Update(Update),
        "pause" => Pause(Id),
        "resume" => Resume(Id),
        "events" => Events(Events),
        "checkpoint" => Checkpoint(Checkpoint),
        "restore" => Restore(Restore),
    }
}

/// The part of a help text that `--usage` prints.
fn usage(help: &str) -> String {
    let usage = help.lines().skip_while(|line| !line.starts_with("Usage:"));
    usage.take_while(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

/// go-runc writes one flag with a single dash, which Go's flag package accepts. Only the first such
/// word is a flag of `rt`: later ones belong to a program.
fn double_dash(mut args: Vec<OsString>) -> Option<Vec<OsString>> {
    let flag = args.iter_mut().find(|arg| *arg == "-no-subreaper")?;
    *flag = "--no-subreaper".into();
    Some(args)
}

/// The value of a global flag, in a command line that clap may refuse. Global flags come before the
/// subcommand. Words after the subcommand may belong to a program.
fn last_value(args: &[OsString], flag: &str) -> Option<OsString> {
    let mut found = None;
    for (at, arg) in args.iter().enumerate() {
        let is_command = Command::has_subcommand(&arg.to_string_lossy());
        if is_command && at > 0 && !args[at - 1].as_bytes().starts_with(b"--") {
            break;
        }
        if arg == flag {
            found = args.get(at + 1).cloned();
        } else if let Some(rest) = arg.as_bytes().strip_prefix(flag.as_bytes())
            && let Some(value) = rest.strip_prefix(b"=")
        {
            found = Some(OsString::from_vec(value.to_owned()));
        }
    }
    found
}

/// clap explains over several lines; callers want one.
fn one_line(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let arg = text(ContextKind::InvalidArg).unwrap_or_default();
    let arg = arg.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => format!("unknown flag or argument `{arg}`"),
        ErrorKind::InvalidSubcommand => {
            format!(
                "unknown command `{}`",
                text(ContextKind::InvalidSubcommand).unwrap_or_default()
            )
        }
        // The words that Go's flag packages use, which callers look for.
        ErrorKind::InvalidValue
            if text(ContextKind::InvalidValue).is_none_or(|value| value.is_empty()) =>
        {
            format!("flag needs an argument: `{arg}`")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let known = text(ContextKind::ValidValue)
                .map(|known| format!(": one of {known}"))
                .unwrap_or_default();
            format!("wrong value `{value}` for `{arg}`{known}")
        }
        ErrorKind::MissingRequiredArgument => {
            format!("missing argument {}", text(ContextKind::InvalidArg).unwrap_or_default())
        }
        _ => {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// All of rt(1): what clap says of every command, and what it cannot know.
    fn manual() -> String {
        let page = |command: &clap::Command, parts: &[Part]| {
            // Flags that do nothing are hidden from `--help` only.
            let shown =
                |arg: clap::Arg| if arg.get_id() == "usage" { arg } else { arg.hide(false) };
            let command = command.clone().disable_help_flag(true).mut_args(shown);
            let man = clap_mangen::Man::new(command).source("rt");
            let mut page = Vec::new();
            for part in parts {
                part(&man, &mut page).expect("written to memory");
            }
            String::from_utf8(page).expect("text")
        };
        let mut cli = Cli::command();
        cli.build();
        let mut text = page(
            &cli,
            &[
                |man, page| man.render_title(page),
                |man, page| man.render_name_section(page),
                |man, page| man.render_synopsis_section(page),
                |man, page| man.render_options_section(page),
            ],
        );
        text += ".SH COMMANDS\n";
        for (name, command) in leaves(&cli, "") {
            let parts: [Part; 2] = [
                |man, page| man.render_synopsis_section(page),
                |man, page| man.render_options_section(page),
            ];
            let about = command.get_about().expect("every command says what it does");
            let own = page(command, &parts)
                .replace(".SH SYNOPSIS\n", "")
                .replace(".SH OPTIONS\n", ".PP\n");
            text += &format!(".SS {name}\n{about}.\n.PP\n{own}");
            if let Some(more) = command.get_after_help() {
                text += &format!(".PP\n{}\n", more.to_string().replace('-', "\\-"));
            }
        }
        text + include_str!("../../../packaging/man/rt.tail")
    }

    /// The commands that do something, with all words of their names.
    fn leaves<'a>(command: &'a clap::Command, above: &str) -> Vec<(String, &'a clap::Command)> {
        let below = command.get_subcommands().filter(|below| !below.is_hide_set());
        let leaves = below.flat_map(|below| {
            let name = format!("{above} {}", below.get_name()).trim_start().to_owned();
            if below.has_subcommands() { leaves(below, &name) } else { vec![(name, below)] }
        });
        leaves.collect()
    }

    type Part = fn(&clap_mangen::Man, &mut Vec<u8>) -> std::io::Result<()>;

    /// With `RT_WRITE_MANUAL=1` it is written instead.
    #[test]
    fn the_manual_page_is_that_of_this_command_line() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/man/rt.1");
        let manual = manual();
        if std::env::var_os("RT_WRITE_MANUAL").is_some() {
            std::fs::write(path, &manual).expect("written");
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            there == manual,
            "packaging/man/rt.1 is old: RT_WRITE_MANUAL=1 cargo test -p rt manual"
        );
    }

    #[test]
    fn the_examples_of_the_manual_page_are_command_lines() {
        let page = include_str!("../../../packaging/man/rt.tail").replace("\\-", "-");
        let examples: Vec<&str> = page.lines().filter(|line| line.starts_with("rt ")).collect();
        assert!(examples.len() >= 10, "{examples:?}");
        for line in examples {
            let args = line.split(' ').map(OsString::from).collect();
            assert!(matches!(parse(args), Parsed::Command(..)), "{line}");
        }
    }

    fn wrong(args: &[&str]) -> String {
        match parse(["rt"].iter().chain(args).map(OsString::from).collect()) {
            Parsed::Wrong { line, .. } => line,
            _ => panic!("{args:?} was taken"),
        }
    }

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn takes_a_value_after_a_space_and_after_an_equals_sign() {
        for args in
            [["rt", "--root", "/r", "state", "c"].as_slice(), &["rt", "--root=/r", "state", "c"]]
        {
            let Parsed::Command(global, Command::State(id)) =
                parse(args.iter().map(OsString::from).collect())
            else {
                panic!("{args:?} was refused");
            };
            assert_eq!((global.root, id.id.as_str()), (Some("/r".into()), "c"));
        }
    }

    #[test]
    fn a_value_that_is_the_name_of_a_command_is_a_value() {
        let args = ["rt", "--root", "run", "state", "create"].map(OsString::from).to_vec();
        assert!(parse_one(&args).is_none(), "not by the one subcommand that is named first");
        let Parsed::Command(global, Command::State(id)) = parse(args) else { panic!("refused") };
        assert_eq!((global.root, id.id.as_str()), (Some("run".into()), "create"));
    }

    #[test]
    fn takes_a_repeated_flag_and_a_single_dash_one() {
        let args = ["rt", "--root=/a", "--root=/b", "run", "-no-subreaper", "c"];
        let Parsed::Command(global, Command::Run(_)) =
            parse(args.iter().map(OsString::from).collect())
        else {
            panic!("refused");
        };
        assert_eq!(global.root, Some("/b".into()));
    }

    #[test]
    fn nothing_is_a_flag_after_the_name() {
        for words in [
            ["exec", "c", "--user=0", "--cap=CAP_SYS_ADMIN"],
            ["exec", "c", "echo", "-no-subreaper"],
            ["exec", "c", "--help", "--"],
            ["ps", "c", "-ef", "--format=json"],
        ] {
            let args = ["rt"].iter().chain(&words).map(OsString::from).collect();
            let Parsed::Command(_, command) = parse(args) else { panic!("{words:?} was refused") };
            let others = match &command {
                Command::Exec(exec) => (exec.words.id(), exec.words.others(), exec.user.is_none()),
                Command::Ps(ps) => (ps.words.id(), ps.words.others(), true),
                _ => panic!("another command"),
            };
            assert_eq!(
                others,
                (
                    "c",
                    &words[2..].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()[..],
                    true
                )
            );
        }
        let args = ["rt", "exec", "--frob", "c", "--log=/l"].map(OsString::from).to_vec();
        let Parsed::Wrong { line, log: None, .. } = parse(args) else { panic!("taken") };
        assert_eq!(line, "unknown flag or argument `--frob`");
    }

    #[test]
    fn names_what_is_wrong_in_one_line() {
        assert_eq!(
            wrong(&["--invalidflag", "state", "c"]),
            "unknown flag or argument `--invalidflag`"
        );
        assert_eq!(
            wrong(&["state", "--invalidflag", "c"]),
            "unknown flag or argument `--invalidflag`"
        );
        assert_eq!(wrong(&["frob"]), "unknown command `frob`");
        assert_eq!(wrong(&["state"]), "missing argument <ID>");
        assert_eq!(wrong(&["create", "c", "--bundle"]), "flag needs an argument: `--bundle`");
        assert_eq!(
            wrong(&["--log-format=xml", "list"]),
            "wrong value `xml` for `--log-format`: one of text, json"
        );
        assert_eq!(
            wrong(&["create", "c", "--preserve-fds=x"]),
            "wrong value `x` for `--preserve-fds`"
        );
        let args = ["rt", "--log", "/l", "--log-format=json", "frob"].map(OsString::from);
        let Parsed::Wrong { log, log_format, .. } = parse(args.to_vec()) else {
            panic!("`frob` was taken");
        };
        assert_eq!((log, log_format), (Some("/l".into()), log::Format::Json));
        assert_eq!(wrong(&[]), "no command given: see `rt --help`");
    }
}
