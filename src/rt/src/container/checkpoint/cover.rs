//! The files that CRIU reads in the place of a checkpoint's images.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// The files of these names, in a folder of `rt`.
#[derive(Debug)]
pub(in crate::container) struct Cover {
    folder: PathBuf,
    names: Vec<String>,
}

impl Cover {
    /// Makes a folder on the host with empty images in it. Other users may search the folder,
    /// because it may be laid over the checkpoint.
    pub(in crate::container) fn new(folder: PathBuf, names: Vec<String>) -> Result<Cover> {
        let show = || format!("make `{}`", folder.display());
        DirBuilder::new().mode(0o755).create(&folder).with_context(show)?;
        rustix::fs::chmod(&folder, Mode::from_raw_mode(0o755)).with_context(show)?;
        let cover = Cover { folder, names };
        cover.names.iter().try_for_each(|name| cover.write(name, &[]))?;
        Ok(cover)
    }

    pub(in crate::container) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(in crate::container) fn write(&self, name: &str, image: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, image).with_context(|| format!("write `{}`", path.display()))
    }

    /// Mounts each file on the image of its name in a directory, if the image exists. Runs in
    /// CRIU's process, in its own mount namespace.
    pub(in crate::container) fn put_on(&self, images: BorrowedFd<'_>) -> Result<()> {
        self.names.iter().try_for_each(|name| {
            put(&self.folder.join(name), images, name).with_context(|| format!("cover `{name}`"))
        })
    }

    /// Removes them when CRIU has ended. Its mount namespace is gone then.
    pub(in crate::container) fn remove(self) {
        for name in &self.names {
            let _ = fs::remove_file(self.folder.join(name));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

fn put(cover: &Path, images: BorrowedFd<'_>, name: &str) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let image = match rustix::fs::openat(images, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        image => image.context("open it")?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let cover = rustix::mount::open_tree(rustix::fs::CWD, cover, flags)
        .with_context(|| format!("clone the mount of `{}`", cover.display()))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(cover.as_fd(), "", image.as_fd(), "", flags).context("mount on it")
}
