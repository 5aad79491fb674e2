//! A rootfs or a volume into which the fuzzer puts hostile things. A thing must not lead a later
//! one out of the tree. So the kernel looks up all paths as if the tree's root were `/`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, RenameFlags, ResolveFlags};

use super::programs;

#[derive(Clone, Debug)]
pub(super) enum Thing {
    Link(String),
    Folder,
    Text(String),
    /// An empty file with this mode, which can include setuid.
    Empty(u32),
    /// A script that begins with `#!` and this text.
    Script(String),
    /// An ELF program with this interpreter.
    Elf(String),
    Fifo,
    Device,
    Nothing,
}

#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
}

/// The number of things that were moved aside.
static MOVED: AtomicU32 = AtomicU32::new(0);

const EXECUTABLE: u32 = 0o755;

impl Tree {
    pub(super) fn open(root: &Path) -> io::Result<Tree> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Tree { root: rustix::fs::open(root, flags, Mode::empty())? })
    }

    fn folder(&self, path: &str) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// Puts a thing at a place, and makes the directories above it. Renames an existing entry, as a
    /// container would, because something may be mounted on it.
    pub(super) fn put(&self, place: &str, thing: &Thing) -> io::Result<()> {
        let place = place.trim_end_matches('/');
        let (parent, name) = place.rsplit_once('/').unwrap_or(("", place));
        if matches!(name, "" | "." | "..") {
            return Ok(());
        }
        let mut above = String::new();
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            // If this fails and the directory does not exist, the next call fails too.
            let _ = rustix::fs::mkdirat(self.folder(&above)?, part, Mode::from(EXECUTABLE));
            above = format!("{above}/{part}");
        }
        let folder = self.folder(parent)?;
        if rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            // Does not replace another entry, because the kernel would remove mounts on that entry
            // from the container.
            let aside = format!("moved-{}", MOVED.fetch_add(1, Ordering::Relaxed));
            rustix::fs::renameat_with(&folder, name, &folder, aside, RenameFlags::NOREPLACE)?;
        }
        let node =
            |kind, mode, device| rustix::fs::mknodat(&folder, name, kind, Mode::from(mode), device);
        match thing {
            Thing::Link(target) => rustix::fs::symlinkat(target, &folder, name)?,
            Thing::Folder => rustix::fs::mkdirat(&folder, name, Mode::from(EXECUTABLE))?,
            Thing::Text(text) => file(&folder, name, text.as_bytes(), 0o644)?,
            Thing::Empty(mode) => file(&folder, name, b"", *mode)?,
            Thing::Script(interpreter) => {
                file(&folder, name, format!("#!{interpreter}\n").as_bytes(), EXECUTABLE)?;
            }
            Thing::Elf(interpreter) => {
                file(
                    &folder,
                    name,
                    &programs::elf("an image's program", Some(interpreter)),
                    EXECUTABLE,
                )?;
            }
            Thing::Fifo => node(FileType::Fifo, 0o666, 0)?,
            Thing::Device => node(FileType::CharacterDevice, 0o666, rustix::fs::makedev(1, 3))?,
            Thing::Nothing => {}
        }
        Ok(())
    }
}

fn file(folder: impl AsFd, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(folder, name, flags, Mode::from(0o600))?);
    file.write_all(content)?;
    rustix::fs::fchmod(&file, Mode::from(mode))?;
    Ok(())
}

/// A device node, at a path that is known to be good.
pub(super) fn device(path: &Path, mode: u32) -> io::Result<()> {
    let null: Dev = rustix::fs::makedev(1, 3);
    Ok(rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::from(mode), null)?)
}
