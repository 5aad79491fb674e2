//! The executable of `rt`: where it is installed, and how it is kept out of a container's reach.
//!
//! An image can name `/proc/self/exe` as its program or as a script's interpreter. The kernel then
//! runs the executable of `rt` inside the container. The container can open it for writing once
//! `rt` has exited (CVE-2019-5736). So a command that enters a container first goes over to a
//! detached, read-only clone of the file. Then a write through `/proc/self/exe` fails with EROFS,
//! whatever the capabilities.
//!
//! The process goes over in place: it maps its own code from the clone. If the kernel does not
//! allow that, it execs the clone, which takes a tenth of `run` more. The other known way is to
//! copy the file to a sealed memfd, which takes 4 ms. `rt` uses it where no clone can be made.
#![forbid(unsafe_code)]

use std::env;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{Access, CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use crate::procfs;
use crate::syscall::{self, MountAttr};

/// The variable that passes the directory of the engines over the exec. After the exec,
/// `/proc/self/exe` no longer shows the path of the installation.
pub(crate) const ENGINES: &str = "_RT_ENGINES";

/// The directory of the engines, if this process has gone over to a clone of its executable.
static INSTALLED: OnceLock<PathBuf> = OnceLock::new();

/// Makes sure that this process runs from a file that nothing can write to, by going over to
/// another file if necessary. Runs in the runtime process, before it opens anything.
pub(crate) fn protect() -> Result<()> {
    if is_read_only()? {
        return Ok(());
    }
    // The kernel clones no mount for a process without CAP_SYS_ADMIN in the user namespace of its
    // mount namespace. It does not clone an unbindable mount, or one that is not in this mount
    // namespace, as that of a file in memory. A filter may forbid it.
    let Ok(clone) = read_only_clone() else {
        return match copy_if_writable()? {
            Some(copy) => exec(copy.as_fd()),
            None => Ok(()),
        };
    };
    // A kernel without CONFIG_CHECKPOINT_RESTORE does not let a process go over. A filter around
    // `rt` may forbid it too.
    if go_over(clone.as_fd()).is_none() {
        return exec(clone.as_fd());
    }
    ensure!(is_read_only()?, "the clone of `/proc/self/exe` can be written to");
    Ok(())
}

fn read_only_clone() -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = rustix::mount::open_tree(CWD, "/proc/self/exe", flags)?;
    let read_only = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    syscall::mount_setattr(clone.as_fd(), read_only, false)?;
    Ok(clone)
}

/// Whether this process runs from a file on a read-only mount.
fn is_read_only() -> Result<bool> {
    let exe = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("open `/proc/self/exe`")?;
    let mount = rustix::fs::fstatvfs(&exe).context("statvfs `/proc/self/exe`")?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Makes this process run from the clone of its executable, without an exec. Returns None if that
/// did not work.
fn go_over(clone: BorrowedFd<'_>) -> Option<()> {
    let engines = installed_engines().ok()?;
    // The kernel takes no descriptor that was opened with O_PATH.
    let path = format!("/proc/self/fd/{}", clone.as_raw_fd());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let id = |file| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    if id(file.as_fd()).ok()? != id(clone).ok()? {
        return None;
    }
    syscall::run_from(file.as_fd(), procfs::own_memory()?).ok()?;
    INSTALLED.set(engines).ok()
}

/// Makes a sealed copy of the executable, if this user could change the file, and with the user
/// also root of the user's own container. Returns `None` otherwise, and if this process runs from
/// such a copy already.
fn copy_if_writable() -> Result<Option<OwnedFd>> {
    let owner = fs::metadata("/proc/self/exe").context("stat `/proc/self/exe`")?.uid();
    let own = owner == rustix::process::geteuid().as_raw();
    if !own && rustix::fs::access("/proc/self/exe", Access::WRITE_OK).is_err() {
        return Ok(None);
    }
    let mut exe = File::open("/proc/self/exe").context("open `/proc/self/exe`")?;
    if rustix::fs::fcntl_get_seals(&exe).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
        return Ok(None);
    }
    let mut copy = || -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Linux 6.3 requires a flag for files to be executed. Older kernels do not know this flag.
        let memory = rustix::fs::memfd_create("rt", flags | MemfdFlags::EXEC)
            .or_else(|_| rustix::fs::memfd_create("rt", flags))?;
        let mut memory = File::from(memory);
        io::copy(&mut exe, &mut memory)?;
        rustix::fs::fcntl_add_seals(
            &memory,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        // A file that is open for writing cannot be executed.
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        Ok(File::open(path)?.into())
    };
    copy().context("copy `/proc/self/exe`").map(Some)
}

/// Runs another file of the same program in this process.
fn exec(program: BorrowedFd<'_>) -> Result<()> {
    let argv = env::args_os().map(|arg| c_string(arg.into_vec())).collect::<Result<Vec<_>>>()?;
    let mut envp = env::vars_os()
        .filter(|(name, _)| name != ENGINES)
        .map(|(name, value)| c_string([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<Vec<_>>>()?;
    // Without a place of installation, no engine can be found. A Linux program needs none.
    if let Ok(engines) = installed_engines() {
        envp.push(c_string([ENGINES.as_bytes(), b"=", engines.as_os_str().as_bytes()].concat())?);
    }
    Err(syscall::fexecve(program, &argv, &envp))
        .context("exec the protected copy of `/proc/self/exe`")
}

fn c_string(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).context("a NUL byte in the arguments")
}

/// The directory that contains one directory for each engine: `../libexec/rt` relative to `bin/rt`,
/// or the directory that the process found before it ran from another file.
pub(crate) fn engines() -> Result<PathBuf> {
    if let Some(engines) = INSTALLED.get() {
        return Ok(engines.clone());
    }
    let path = fs::read_link("/proc/self/exe").context("read link `/proc/self/exe`")?;
    // A file on a detached mount shows no parent directory.
    match env::var_os(ENGINES) {
        Some(engines) if path.parent().is_none_or(|parent| parent == Path::new("/")) => {
            Ok(engines.into())
        }
        _ => installed_engines(),
    }
}

/// The path of this program, which other programs can run later.
pub(crate) fn path() -> Result<PathBuf> {
    let path = fs::read_link("/proc/self/exe").context("read link `/proc/self/exe`")?;
    // A file on a detached mount shows no parent directory.
    let is_lost = path.parent().is_none_or(|parent| parent == Path::new("/"));
    Ok(if is_lost { engines()?.join("../../bin/rt") } else { path })
}

/// Runs this program again. Its environment contains only the directory of the engines. It runs
/// from the same file, which nothing can write to.
pub(crate) fn again() -> Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("rt").env_clear().env(ENGINES, engines()?);
    Ok(command)
}

fn installed_engines() -> Result<PathBuf> {
    let path = fs::read_link("/proc/self/exe").context("read link `/proc/self/exe`")?;
    let prefix = path.parent().and_then(Path::parent);
    prefix
        .map(|prefix| prefix.join("libexec/rt"))
        .ok_or_else(|| anyhow!("`{}` is not in a bin folder", path.display()))
}
