//! The open files of the runtime's processes while they look up names that the container chooses.
//! The test traces the runtime (`ptrace(2)`). It stops each process whose root is the container's,
//! before and after each such system call.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Outcome, ensure};

/// A descriptor of a process, as `/proc/PID/fd` and `/proc/PID/fdinfo` show it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Open {
    pub(crate) number: u32,
    /// `socket`, `pipe`, `anon_inode:[NAME]`, `memfd:NAME`, `fifo NAME`,
    /// `a file of the container's`, `a directory of the container's`, or a path with the words
    /// ` of the host's`.
    pub(crate) kind: String,
}

/// One path lookup.
#[derive(Debug)]
pub(crate) struct LookUp {
    /// The name of the system call, and the path.
    pub(crate) what: String,
    pub(crate) open: Vec<Open>,
    /// Whether a neighbour of the same user could trace the process, because the process has not
    /// called `PR_SET_DUMPABLE`.
    pub(crate) is_dumpable: bool,
}

/// The system calls that look up a path, and the position of the path among their arguments.
fn path_argument(number: i64) -> Option<(&'static str, usize)> {
    use nix::libc;
    Some(match number {
        libc::SYS_chdir => ("chdir", 0),
        libc::SYS_execve => ("execve", 0),
        libc::SYS_execveat => ("execveat", 1),
        libc::SYS_openat => ("openat", 1),
        libc::SYS_openat2 => ("openat2", 1),
        libc::SYS_newfstatat => ("newfstatat", 1),
        libc::SYS_statx => ("statx", 1),
        libc::SYS_faccessat => ("faccessat", 1),
        libc::SYS_faccessat2 => ("faccessat2", 1),
        libc::SYS_readlinkat => ("readlinkat", 1),
        libc::SYS_open_tree => ("open_tree", 1),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => ("open", 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat => ("stat", 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access => ("access", 0),
        _ => return None,
    })
}

/// The system call of a stopped process: the name, and the path. None if the call looks up no path.
fn call(pid: Pid) -> Option<(&'static str, String)> {
    // `NUMBER 0xARGUMENT… 0xSTACK 0xPLACE` (proc_pid_syscall(5)).
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let mut fields = text.split(' ');
    let (name, at) = path_argument(fields.next()?.parse().ok()?)?;
    let address = u64::from_str_radix(fields.nth(at)?.trim_start_matches("0x"), 16).ok()?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.seek(SeekFrom::Start(address)).ok()?;
    let mut bytes = Vec::new();
    // The kernel cuts a read at the end of a mapping.
    std::io::BufReader::new(memory.take(4096)).read_until(0, &mut bytes).ok()?;
    bytes.pop();
    Some((name, String::from_utf8_lossy(&bytes).into_owned()))
}

fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

/// The open files of a process that is stopped, or that opens no file meanwhile. A descriptor that
/// cannot be read is an error, and is never left out.
pub(crate) fn open_files(pid: Pid) -> Outcome<Vec<Open>> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let mounts: BTreeSet<&str> = mounts.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let is_own = mounts.contains(mount.ok_or("no `mnt_id`")?.trim());
        open.push(Open { number, kind: kind(&entry.path(), is_own)? });
    }
    open.sort();
    Ok(open)
}

fn kind(descriptor: &Path, is_on_a_mount_of_its_own: bool) -> Outcome<String> {
    let link = fs::read_link(descriptor)?;
    let text = link.display().to_string();
    for kind in ["socket", "pipe"] {
        if text.starts_with(&format!("{kind}:[")) {
            return Ok(kind.to_owned());
        }
    }
    if text.starts_with("anon_inode:") {
        return Ok(text);
    }
    if let Some(name) = text.strip_prefix("/memfd:") {
        return Ok(format!("memfd:{}", name.trim_end_matches(" (deleted)")));
    }
    let there = fs::metadata(descriptor)?.file_type();
    if there.is_fifo() {
        let name = link.file_name().unwrap_or_default().display().to_string();
        return Ok(format!("fifo {}", name.trim_end_matches(" (deleted)")));
    }
    Ok(match (is_on_a_mount_of_its_own, there.is_dir()) {
        (true, false) => "a file of the container's".to_owned(),
        (true, true) => "a directory of the container's".to_owned(),
        (false, _) => format!("{text} of the host's"),
    })
}

/// Whether a process of the same user could trace a stopped process, or read its memory
/// (`ptrace(2)`, "Ptrace access mode checking").
fn is_dumpable(pid: Pid) -> Outcome<bool> {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    // The files of an undumpable process belong to root.
    if fs::metadata(format!("/proc/{pid}/environ"))?.uid() != 0 {
        return Ok(true);
    }
    // If the process is root's, its files belong to root anyway. So this thread gives up one
    // capability, and then has the rights of a neighbour of the same user. The other threads keep
    // the capability.
    let all = capabilities(None)?;
    let mut fewer = all;
    fewer.effective.remove(CapabilitySet::SYS_PTRACE);
    set_capabilities(None, fewer)?;
    // This needs access of the kind `PTRACE_MODE_READ_FSCREDS`, and no further right.
    let read = fs::read_link(format!("/proc/{pid}/cwd"));
    set_capabilities(None, all)?;
    match read {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs a command of the runtime to its end. Returns the open files at each lookup by a process
/// whose root is `rootfs`.
pub(crate) fn of(command: &Command, rootfs: &Path) -> Outcome<(ExitStatus, Vec<LookUp>)> {
    let root = identity(&rootfs.display().to_string());
    ensure(root.is_some(), "no rootfs")?;
    let is_inside = |pid: Pid| identity(&format!("/proc/{pid}/root/.")) == root;
    let mut seen = Vec::new();
    let status = trace(command, is_inside, |pid, name, path| {
        if path != "/" && is_inside(pid) {
            let (open, is_dumpable) = (open_files(pid)?, is_dumpable(pid)?);
            seen.push(LookUp { what: format!("{name} `{path}`"), open, is_dumpable });
        }
        Ok(())
    })?;
    Ok((status, seen))
}

/// Runs a command of the runtime until it and all processes that it leaves have ended. Calls `at`
/// before and after each lookup, with the process, the system call and the path. The process is
/// stopped meanwhile. After an exec, `trace` lets go of a process if `is_done` says so.
pub(crate) fn trace(
    command: &Command,
    is_done: impl Fn(Pid) -> bool,
    mut at: impl FnMut(Pid, &str, &str) -> Outcome,
) -> Outcome<ExitStatus> {
    // The shell stops itself, and waits for the tracer.
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = shell.spawn()?;
    let first = Pid::from_raw(i32::try_from(child.id())?);
    waitpid(first, Some(WaitPidFlag::WUNTRACED))?;
    ptrace::seize(
        first,
        Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL,
    )?;
    kill(first, Signal::SIGCONT)?;
    let mut traced: BTreeSet<Pid> = [first].into();
    // Only the children of this thread: other threads have their own.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let mut ended = None;
    let mut end = Instant::now();
    while ended.is_none() || !traced.is_empty() {
        let status = if ended.is_none() {
            waitpid(None, Some(flags))?
        } else {
            // A created container waits for `start`, and then execs its program.
            ensure(Instant::now() < end, format!("{traced:?} do not end"))?;
            waitpid(None, Some(flags | WaitPidFlag::WNOHANG))?
        };
        let Some(pid) = status.pid() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        traced.insert(pid);
        let mut deliver = None;
        match status {
            WaitStatus::PtraceSyscall(_) => {
                if let Some((name, path)) = call(pid) {
                    at(pid, name, &path)?;
                }
            }
            WaitStatus::PtraceEvent(_, _, event)
                if event == nix::libc::PTRACE_EVENT_EXEC && is_done(pid) =>
            {
                traced.remove(&pid);
                let _ = ptrace::detach(pid, None);
                continue;
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                traced.remove(&pid);
                if pid == first {
                    end = Instant::now() + Duration::from_secs(20);
                    ended = Some(match status {
                        WaitStatus::Exited(_, code) => code << 8,
                        WaitStatus::Signaled(_, signal, _) => signal as i32,
                        _ => nix::libc::SIGKILL,
                    });
                }
                continue;
            }
            WaitStatus::Stopped(_, signal) if signal != Signal::SIGSTOP => deliver = Some(signal),
            _ => {}
        }
        // The process may be gone already.
        let _ = ptrace::syscall(pid, deliver);
    }
    // `waitpid` has already reaped the child.
    let _ = child.try_wait();
    Ok(ExitStatus::from_raw(ended.ok_or("it has no status")?))
}
