//! The command line: what the user typed, parsed and nothing more.
//!
//! The flags are crun's and runc's, and callers pass every one of them (conmon, go-runc, podman, CRI-O). Global flags
//! stand before the subcommand. What a flag does is said at its subcommand in `command/`.
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
    /// Print the synopsis, as programs do that use argp(3)
    #[arg(long, global = true, hide = true, action = clap::ArgAction::HelpShort)]
    usage: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Where the state of containers is kept [default: /run/rt, or $XDG_RUNTIME_DIR/rt when not root]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Where messages go: a file, to be appended to, journald:NAME or syslog:NAME
    #[arg(long, value_name = "[file:]FILE")]
    pub(crate) log: Option<PathBuf>,
    /// How to write them
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: log::Format,
    /// The least important messages to write
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub(crate) log_level: log::LogLevel,
    /// The same as --log-level=debug
    #[arg(long)]
    pub(crate) debug: bool,
    /// Let systemd make the cgroups: the same as --cgroup-manager=systemd
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Who makes the cgroups
    #[arg(long, value_name = "MANAGER", value_enum)]
    pub(crate) cgroup_manager: Option<CgroupManager>,
    /// What the host decides about modules [default: /etc/rt/wasm.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) wasm_config: Option<PathBuf>,
    /// Accepted for runc's sake: rt finds out by itself what it may do
    #[arg(long, value_name = "true|false|auto", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = ["true", "false", "auto"])]
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
    /// Remove a container that has stopped
    Delete(Delete),
    /// Create a container, start it, wait for it and delete it
    Run(Run),
    /// Stop all processes of a container where they are
    Pause(Id),
    /// Let the processes of a paused container go on
    Resume(Id),
    /// Change the limits of a container
    Update(Box<Update>),
    /// Show the processes of a container
    Ps(Ps),
    /// Mount in a container that runs, and unmount there
    Mounts(Mounts),
    /// Print what a container uses, and when it runs out of memory
    Events(Events),
    /// Write the processes of a container to files, with CRIU, and end them
    Checkpoint(Box<Checkpoint>),
    /// Make a container's processes again from a checkpoint
    Restore(Box<Restore>),
    /// List the containers
    List(List),
    /// Write a `config.json` to begin with
    Spec(Spec),
    /// Print as JSON what this runtime can do
    Features,
    /// Say what this host can do for containers, what it lacks, and what to do about it
    Check(Check),
    /// Compile modules before they are started, and look after what they were compiled to
    Wasm(Wasm),
    /// Print a script that completes command lines
    Completion(Completion),
}

#[derive(Args, Debug)]
pub(crate) struct Wasm {
    #[command(subcommand)]
    pub(crate) command: WasmCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WasmCommand {
    /// Compile a module, or the one that a bundle runs
    Compile(WasmCompile),
    /// Look at what modules were compiled to, and remove it
    Cache(WasmCache),
    /// Compile the module on standard input: started by rt itself
    #[command(hide = true)]
    Worker(WasmWorker),
}

#[derive(Args, Debug)]
pub(crate) struct WasmCompile {
    /// A module, or the directory of a bundle
    pub(crate) path: PathBuf,
    /// Also when it could not be compiled before
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct WasmCache {
    #[command(subcommand)]
    pub(crate) command: WasmCacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WasmCacheCommand {
    /// List it, what was used last first
    List(WasmCacheList),
    /// Remove what this rt cannot use and, until no more than a size is left, what was not used for the longest time
    Prune(WasmCachePrune),
    /// Remove all of it
    Clear,
}

#[derive(Args, Debug)]
pub(crate) struct WasmCacheList {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
}

#[derive(Args, Debug)]
pub(crate) struct WasmCachePrune {
    /// What may be left, in bytes or with a unit: k, m, g [default: `cache.maxBytes` of the configuration]
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct WasmWorker {
    /// What the container calls the module
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub(crate) name: String,
    /// Return at once, and compile afterwards
    #[arg(long)]
    pub(crate) background: bool,
    /// With instructions that count
    #[arg(long)]
    pub(crate) counting: bool,
    /// Whom it is for [default: the administrator]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) tenant: Option<u64>,
    /// How long to wait for the compilers of others, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub(crate) wait: u64,
}

/// A container's name, and what is none of this program's: after the name nothing is a flag, whatever it looks like. A caller
/// puts what its own users typed there (`kubectl exec`).
#[derive(Args, Debug)]
pub(crate) struct Words {
    /// The container's name; then, for `exec` the program and its arguments, for `ps` arguments of ps(1) [default: -ef]
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
    /// The container's name
    pub(crate) id: String,
}

/// What the caller gets of a new process, and what it passes on to it.
#[derive(Args, Debug)]
pub(crate) struct Handover {
    /// Write the new process's id to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Send the master end of its terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Send a pidfd of it to this socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Pass this many more descriptors, from 3 on, to it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

/// What `create` and `run` share.
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The container's name
    pub(crate) id: String,
    /// The directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// The configuration, if it is not the bundle's `config.json`
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) handover: Handover,
    /// Change the root with chroot(2), for a host whose root is a ramdisk
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
    /// Accepted for go-runc's sake: a created container is always detached
    #[arg(short, long)]
    detach: bool,
    /// Accepted for crun's sake: rt never becomes a subreaper
    #[arg(long)]
    no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Return as soon as the program runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Do not delete the container when it has stopped
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted for runc's sake: rt never becomes a subreaper
    #[arg(long)]
    no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) words: Words,
    /// Take everything from this file, a `process` as in `config.json`
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Return as soon as the program runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) handover: Handover,
    /// Start it in this cgroup below the container's; with cgroup v1, in those of some controllers only
    #[arg(long, value_name = "[CONTROLLER[,CONTROLLER]:]PATH")]
    pub(crate) cgroup: Vec<PathBuf>,
    /// Its working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Set a variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Its user
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Add a group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
    /// It and what it starts can gain no privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Its SELinux label
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// Its AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Also when the container is paused
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Accepted for runc's sake: rt never becomes a subreaper
    #[arg(long)]
    no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Kill {
    /// The container's name
    pub(crate) id: String,
    /// A signal, by name or number
    #[arg(default_value = "TERM", allow_hyphen_values = true)]
    pub(crate) signal: String,
    /// Send it to every process of the container
    #[arg(short, long)]
    pub(crate) all: bool,
    /// ID is a regular expression: all containers whose names it is found in
    #[arg(short, long)]
    pub(crate) regex: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    /// The container's name
    pub(crate) id: String,
    /// Kill it first if it runs; a container that is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// ID is a regular expression: all containers whose names it is found in
    #[arg(short, long)]
    pub(crate) regex: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// How to print it
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
    /// The shell that is to complete command lines
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Sizes are in bytes, or with a unit: k, m, g. -1 is no limit.
#[derive(Args, Debug)]
pub(crate) struct Update {
    /// The container's name
    pub(crate) id: String,
    /// Take the limits from this file, a `linux.resources` as in `config.json`; `-` is standard input
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) resources: Option<PathBuf>,
    /// Memory
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Memory that is not taken away easily
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Kernels no longer have this limit; a value is ignored
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) kernel_memory: Option<String>,
    /// Memory of TCP buffers, cgroup v1
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Share of the processors, 2 to 262144; 1024 is the default
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    pub(crate) cpu_share: Option<u64>,
    /// Microseconds of processor time in each period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Length of a period
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,
    /// How much unused quota can be saved up
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_burst: Option<u64>,
    /// 1: run only when nobody else wants to
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,
    /// Length of a period of realtime scheduling, cgroup v1
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Realtime processor time in each period, cgroup v1
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// The processors to run on, as 0-3,7
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// The memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// How many processes and threads
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Share of the disks, 10 to 1000
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u16>,
    /// Share of the third-level cache (Intel RDT), as a line of `schemata`
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,
    /// Share of the memory bandwidth (Intel RDT), as a line of `schemata`
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Ps {
    #[command(flatten)]
    pub(crate) words: Words,
    /// How to print them
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
    /// Mount what a file lists: bind mounts and tmpfs
    Add(MountsChange),
    /// Unmount what `mounts add` has mounted at the destinations in a file
    Remove(MountsChange),
}

#[derive(Args, Debug)]
pub(crate) struct MountsChange {
    /// The container's name
    pub(crate) id: String,
    /// An array as `mounts` in `config.json`
    pub(crate) file: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// The container's name
    pub(crate) id: String,
    /// How long to wait between two lines: 5s, 500ms, 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(crate) interval: String,
    /// Print one line and end
    #[arg(long)]
    pub(crate) stats: bool,
}

/// What `checkpoint` and `restore` share; most is CRIU's own and said at length in criu(8).
#[derive(Args, Debug)]
pub(crate) struct Images {
    /// The directory of the checkpoint
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub(crate) image_path: PathBuf,
    /// Where CRIU writes its log [default: the directory of the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub(crate) work_path: Option<PathBuf>,
    /// With TCP connections that are open
    #[arg(long)]
    pub(crate) tcp_established: bool,
    /// With Unix sockets whose other end is outside
    #[arg(long)]
    pub(crate) ext_unix_sk: bool,
    /// With a terminal that is not the container's own
    #[arg(long)]
    pub(crate) shell_job: bool,
    /// With locks on files
    #[arg(long)]
    pub(crate) file_locks: bool,
    /// Remove pages from earlier images that a later one has too
    #[arg(long)]
    pub(crate) auto_dedup: bool,
    /// The memory stays where it is, and comes over the network when it is needed
    #[arg(long)]
    pub(crate) lazy_pages: bool,
    /// Leave out what is in a namespace: `network` is the one that can be
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub(crate) empty_ns: Vec<String>,
    /// What is written and restored of cgroups [default: soft]
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) manage_cgroups_mode: Option<CgroupsMode>,
    /// How packets are held back meanwhile [default: iptables; nftables where that is not installed and CRIU is 4.0 or later]
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
    /// The container's name
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) images: Images,
    /// The checkpoint before, as a path relative to this one's
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_path: Option<PathBuf>,
    /// Write the memory only, and let the container run on: the next checkpoint takes less time
    #[arg(long)]
    pub(crate) pre_dump: bool,
    /// Let the container run on
    #[arg(long)]
    pub(crate) leave_running: bool,
    /// Files that were removed and are still open get a name for the time being
    #[arg(long)]
    pub(crate) link_remap: bool,
    /// Without TCP connections that are open: they are closed at the restore
    #[arg(long)]
    pub(crate) tcp_close: bool,
    /// Without TCP connections that are being made
    #[arg(long)]
    pub(crate) tcp_skip_in_flight: bool,
    /// Send the memory to a `criu page-server`
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) page_server: Option<String>,
    /// Write a NUL to this descriptor when the memory can be asked for (--lazy-pages)
    #[arg(long, value_name = "FD")]
    pub(crate) status_fd: Option<i32>,
}

#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// The container's name
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) images: Images,
    /// The directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// The configuration, if it is not the bundle's `config.json`
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Return as soon as the container runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Write the first process's id to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Send the master end of its terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Close TCP connections that were open
    #[arg(long)]
    pub(crate) tcp_close: bool,
    /// Its security label, as selinux:LABEL or apparmor:PROFILE
    #[arg(long, value_name = "TYPE:NAME")]
    pub(crate) lsm_profile: Option<String>,
    /// The SELinux label of its mounts
    #[arg(long, value_name = "LABEL")]
    pub(crate) lsm_mount_context: Option<String>,
    /// Accepted for runc's sake: rt never becomes a subreaper
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted for conmon's sake: CRIU changes the root in its own way
    #[arg(long)]
    no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
    /// Print the names only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum ListFormat {
    #[default]
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Spec {
    /// The directory to write `config.json` to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// The file to write, in place of `config.json` in that directory
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// For a user who is not root
    #[arg(long)]
    pub(crate) rootless: bool,
    /// For a WebAssembly module, `/app.wasm`
    #[arg(long)]
    pub(crate) wasm: bool,
}

/// What became of the arguments.
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
    // Callers ask for it at every start of theirs; clap need not be set up for that, which is most of what it would take.
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

/// Parses with the one subcommand that the words name: clap makes all flags of all subcommands otherwise, which takes longer
/// than what most commands do. None when that is not the whole truth (a mistake, help, a value that is the name of a command):
/// then all of them are needed, if only to say what is wrong.
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

/// Of a help text, what `--usage` prints.
fn usage(help: &str) -> String {
    let usage = help.lines().skip_while(|line| !line.starts_with("Usage:"));
    usage.take_while(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

/// go-runc writes one flag with a single dash, which Go's own flag package takes. The first is meant: later ones are a program's.
fn double_dash(mut args: Vec<OsString>) -> Option<Vec<OsString>> {
    let flag = args.iter_mut().find(|arg| *arg == "-no-subreaper")?;
    *flag = "--no-subreaper".into();
    Some(args)
}

/// The value of a global flag, in a command line that clap may not take as a whole. They stand before the command; what stands
/// behind it may be a container's business.
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
            let man = clap_mangen::Man::new(command.clone().disable_help_flag(true)).source("rt");
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
