//! What a process of the runtime has open when it looks up a name that the container chooses: the runtime is traced (`ptrace(2)`), and
//! stopped before and after each such system call that a process makes whose root is the container's.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Outcome, ensure};

/// A descriptor of a process, as `/proc/PID/fd` and `/proc/PID/fdinfo` show it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Open {
    pub(crate) number: u32,
    pub(crate) link: String,
    /// Whether it is on a mount of the process's own mount namespace.
    pub(crate) is_on_a_mount_of_its_own: bool,
    pub(crate) is_directory: bool,
}

/// One look-up.
#[derive(Debug)]
pub(crate) struct LookUp {
    /// The name of the system call, and the path.
    pub(crate) what: String,
    pub(crate) open: Vec<Open>,
    /// Whether `PR_SET_DUMPABLE` keeps neighbours out: files of `/proc/PID` are root's then.
    pub(crate) owner: u32,
}

/// The system calls that look up a path, and which of their arguments that is.
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
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => ("open", 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat => ("stat", 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access => ("access", 0),
        _ => return None,
    })
}

/// The call that a stopped process is in: its name, and the path. None for any other.
fn call(pid: Pid) -> Option<(&'static str, String)> {
    // `NUMBER 0xARGUMENT… 0xSTACK 0xPLACE` (proc_pid_syscall(5)).
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let mut fields = text.split(' ');
    let (name, at) = path_argument(fields.next()?.parse().ok()?)?;
    let address = u64::from_str_radix(fields.nth(at)?.trim_start_matches("0x"), 16).ok()?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.seek(SeekFrom::Start(address)).ok()?;
    let mut bytes = Vec::new();
    // A read across the end of a mapping is cut there.
    std::io::BufReader::new(memory.take(4096)).read_until(0, &mut bytes).ok()?;
    bytes.pop();
    Some((name, String::from_utf8_lossy(&bytes).into_owned()))
}

fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

fn open_files(pid: Pid) -> Vec<Open> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mounts: BTreeSet<&str> = mounts.lines().filter_map(|line| line.split(' ').next()).collect();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut open: Vec<Open> = entries
        .filter_map(|entry| {
            let number: u32 = entry.file_name().to_string_lossy().parse().ok()?;
            let link = fs::read_link(entry.path()).ok()?.display().to_string();
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
            let is_directory = fs::metadata(entry.path()).is_ok_and(|there| there.is_dir());
            let is_on_a_mount_of_its_own = mounts.contains(mount);
            Some(Open { number, link, is_on_a_mount_of_its_own, is_directory })
        })
        .collect();
    open.sort();
    open
}

/// Runs a command of the runtime to its end, and returns what was open at each look-up by a process whose root is `rootfs`.
pub(crate) fn of(command: &Command, rootfs: &Path) -> Outcome<(ExitStatus, Vec<LookUp>)> {
    let root = identity(&rootfs.display().to_string());
    ensure(root.is_some(), "no rootfs")?;
    let is_inside = |pid: Pid| identity(&format!("/proc/{pid}/root/.")) == root;
    let mut seen = Vec::new();
    let status = trace(command, is_inside, |pid, name, path| {
        if path != "/" && is_inside(pid) {
            let owner = fs::metadata(format!("/proc/{pid}/environ")).map_or(0, |it| it.uid());
            seen.push(LookUp { what: format!("{name} `{path}`"), open: open_files(pid), owner });
        }
        Ok(())
    })?;
    Ok((status, seen))
}

/// Runs a command of the runtime to its end, and calls `at` before and after each look-up, with the process, the system call and the
/// path, while the process is stopped. A process that has executed a program is let go of if `is_done` says so.
pub(crate) fn trace(
    command: &Command,
    is_done: impl Fn(Pid) -> bool,
    mut at: impl FnMut(Pid, &str, &str) -> Outcome,
) -> Outcome<ExitStatus> {
    // It waits until it is traced.
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
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
    // Only of this thread: others have children of their own.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let status = loop {
        let status = waitpid(None, Some(flags))?;
        let Some(pid) = status.pid() else { continue };
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
                if pid != first {
                    continue;
                }
                break match status {
                    WaitStatus::Exited(_, code) => code << 8,
                    _ => nix::libc::SIGKILL,
                };
            }
            WaitStatus::Stopped(_, signal) if signal != Signal::SIGSTOP => deliver = Some(signal),
            _ => {}
        }
        // It may be gone already.
        let _ = ptrace::syscall(pid, deliver);
    };
    for pid in traced {
        if ptrace::interrupt(pid).is_ok() {
            let _ = waitpid(pid, Some(flags));
            let _ = ptrace::detach(pid, None);
        }
    }
    // It has been waited for.
    let _ = child.try_wait();
    Ok(ExitStatus::from_raw(status))
}
