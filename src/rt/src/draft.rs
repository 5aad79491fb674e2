//! Files that are written whole or not at all: a process that opens one sees the old text or the
//! new text, never a part.
//!
//! The directory may belong to anybody, like that of a pid file. So `rt` opens it once and works by
//! that descriptor. The draft has no name yet, or one that nobody can guess. So `rt` never writes
//! to a file or a link that others put there.
//!
//! In a directory of others, a draft has no name, because `rt` does not tidy up there. Nothing is
//! left of the draft if `rt` is killed. In its own directories, a draft has a name from the start.
//! It requires a name to replace an existing file. On ext4, a rename takes 1.6 ms right after the
//! file got its name, otherwise 0.3 ms (on tmpfs: 25 µs and 15 µs in all). Most of that time goes
//! to the disk: when a rename replaces a file, ext4 begins to write the new content (ext4(5),
//! `auto_da_alloc`). [`Draft::exchange`] does without.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use crate::trust;

#[derive(Debug)]
pub(crate) struct Draft {
    /// The path of the published file.
    path: PathBuf,
    name: OsString,
    directory: OwnedFd,
    /// Kept open while it has no name.
    file: File,
    /// The name until the draft is published.
    temporary: Option<String>,
}

/// Removes a file in a directory that may belong to anybody, if the file exists. Follows no link of
/// others.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let name = path.file_name().context("not a path of a file")?;
    let gone = trust::enter(above.unwrap_or(Path::new(".")))
        .and_then(|directory| Ok(rustix::fs::unlinkat(&directory, name, AtFlags::empty())?));
    match gone {
        Err(failure) if failure.is(Errno::NOENT) => Ok(()),
        gone => Ok(gone?),
    }
}

impl Draft {
    /// Makes the draft of a file in a directory that may belong to anybody. `mode` is the file's
    /// mode, from which the umask may remove bits.
    pub(crate) fn write(path: PathBuf, text: &[u8], mode: u32) -> Result<Draft> {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let directory = trust::enter(above.unwrap_or(Path::new(".")))?;
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(&directory, ".", flags, Mode::from_raw_mode(mode)) {
            // EISDIR comes from a kernel or a filesystem that takes the flag for O_DIRECTORY
            // (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                Draft::write_in(directory, path, text, mode)
            }
            file => Draft::fill(directory, path, file?, None, text),
        }
    }

    /// Makes the draft of our own file, in the open directory of this path.
    pub(crate) fn write_in(
        directory: OwnedFd,
        path: PathBuf,
        text: &[u8],
        mode: u32,
    ) -> Result<Draft> {
        let temporary = unguessable()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = rustix::fs::openat(&directory, &temporary, flags, mode)?;
        Draft::fill(directory, path, file, Some(temporary), text)
    }

    fn fill(
        directory: OwnedFd,
        path: PathBuf,
        file: OwnedFd,
        temporary: Option<String>,
        text: &[u8],
    ) -> Result<Draft> {
        let name = path.file_name().unwrap_or_default().to_owned();
        // From here on, a draft with a name is removed when it is dropped.
        let mut draft = Draft { path, name, directory, file: file.into(), temporary };
        draft.file.write_all(text)?;
        Ok(draft)
    }

    pub(crate) fn publish(mut self) -> Result<()> {
        let publish = |draft: &mut Draft| -> Result<()> {
            if draft.temporary.is_none() {
                match draft.link(&draft.name) {
                    // Only a rename replaces an existing file.
                    Err(Errno::EXIST) => {
                        let temporary = unguessable()?;
                        draft.link(&temporary)?;
                        draft.temporary = Some(temporary);
                    }
                    linked => return Ok(linked?),
                }
            }
            if let Some(temporary) = &draft.temporary {
                let directory = &draft.directory;
                rustix::fs::renameat(directory, temporary, directory, &draft.name)?;
                draft.temporary = None;
            }
            Ok(())
        };
        publish(&mut self).with_context(|| format!("write `{}`", self.path.display()))
    }

    /// Publishes a draft that has a name, in place of an existing file. If the host loses its power
    /// within seconds, the file can be empty afterwards. So this is only for files about processes:
    /// none of these is left then.
    pub(crate) fn exchange(self) -> Result<()> {
        if let Some(temporary) = &self.temporary {
            let (directory, flags) = (&self.directory, RenameFlags::EXCHANGE);
            // Not every filesystem can do this, and there may be no other file. Then a rename tells
            // what is wrong. Otherwise the draft has the old content, and is removed.
            if rustix::fs::renameat_with(directory, temporary, directory, &self.name, flags).is_ok()
            {
                return Ok(());
            }
        }
        self.publish()
    }

    /// Gives the draft a name. Uses procfs, because the other way, `AT_EMPTY_PATH`, requires
    /// `CAP_DAC_READ_SEARCH` (open(2), "O_TMPFILE").
    fn link(&self, name: impl rustix::path::Arg) -> rustix::io::Result<()> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, own, &self.directory, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The first error is the one to report.
            let _ = rustix::fs::unlinkat(&self.directory, temporary, AtFlags::empty());
        }
    }
}

/// A name of 128 random bits, which nobody can guess.
fn unguessable() -> Result<String> {
    let mut bytes = [0_u8; 16];
    let length = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty());
    // getrandom(2) never returns fewer bytes for so small a request.
    anyhow::ensure!(length.context("get random bytes")? == bytes.len(), "too few random bytes");
    let mut name = String::from(".rt-");
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    Ok(name)
}
