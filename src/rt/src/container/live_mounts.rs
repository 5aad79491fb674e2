//! Mounts in a container that runs already: crun's `mounts add` and `mounts remove`. libcontainer has nothing like it.
//!
//! What is mounted is opened on the host, by the caller; a process of its own joins the container's mount namespace, where a
//! destination leads to what it is for the container, and puts it there.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use libcontainer::oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::LinkNameSpaceType;

use super::mounts::{self, Detached};
use super::namespaces::{self, Namespaces};
use super::rootfs::Rootfs;
use super::sync::{self, Message};
use crate::bundle::Bundle;
use crate::state::State;
use crate::syscall;

/// Mounts in order. When one fails, those before it stay.
pub(crate) fn add(state: &State, spec: Spec, entries: &[Mount]) -> Result<()> {
    let (path, rootfs) = (state.bundle.clone(), state.rootfs.clone());
    let bundle = Bundle { path, rootfs, config: Vec::new(), spec };
    let namespaces = Namespaces::default();
    let mut opened = Vec::new();
    for entry in entries {
        let show = || format!("mount `{}`", entry.destination().display());
        // Others show who mounts them: the caller's processes, its network.
        ensure!(
            mounts::binds(entry) || entry.typ().as_deref() == Some("tmpfs"),
            "{}: only bind mounts and tmpfs can be added",
            show()
        );
        let mount = mounts::open_detached(&bundle, &namespaces, entry).with_context(show)?;
        opened.push(Some(mount));
    }
    inside(state, |root| {
        for (entry, opened) in entries.iter().zip(&mut opened) {
            let show = || format!("mount `{}`", entry.destination().display());
            let opened: Option<Detached> = opened.take();
            mounts::mount(root, &bundle, &namespaces, entry, opened).with_context(show)?;
        }
        Ok(())
    })
}

/// Unmounts what is at these destinations, the last first.
pub(crate) fn remove(state: &State, entries: &[Mount]) -> Result<()> {
    inside(state, |_| {
        for entry in entries.iter().rev() {
            let destination = entry.destination();
            let show = || format!("unmount `{}`", destination.display());
            ensure!(
                identity(destination).with_context(show)? != identity(Path::new("/"))?,
                "{}: it is the container's root",
                show()
            );
            // Links lead where they led when it was added; in this process they cannot lead out of the container.
            rustix::mount::unmount(destination, UnmountFlags::DETACH).with_context(show)?;
        }
        Ok(())
    })
}

/// Which mount a file is looked at through, and which file it is.
fn identity(path: &Path) -> rustix::io::Result<(u64, u64)> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::INO;
    let found = rustix::fs::statx(CWD, path, AtFlags::empty(), wanted)?;
    Ok((found.stx_mnt_id, found.stx_ino))
}

/// Does something in a process that sees the container's mounts, and whose root is the container's.
pub(super) fn inside(state: &State, mut act: impl FnMut(&mut Rootfs) -> Result<()>) -> Result<()> {
    // In there, the container's processes could reach it, and what it has open (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keep the container out")?;
    let init = state.process()?.context("the container does not run")?;
    let path = format!("/proc/{}/ns/mnt", state.pid);
    let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `{path}`"))?;
    // If it lives still, its pid was nobody else's when that was opened.
    syscall::pidfd_send_signal(init.as_fd(), 0).context("the container does not run")?;
    let theirs = rustix::fs::fstat(&namespace)?;
    let ours = rustix::fs::stat("/proc/self/ns/mnt")?;
    ensure!(
        (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino),
        "the container has no mount namespace of its own"
    );
    let (caller, child) = sync::pair()?;
    let Some(pid) = syscall::clone3(0, None).context("make a process in it")? else {
        drop(caller);
        let kind = Some(LinkNameSpaceType::Mount);
        let outcome = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .context("end with the caller")
            .and_then(|()| {
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
                    .context("join the mount namespace")
            })
            .and_then(|()| Rootfs::open_as_is(Path::new("/")).context("open the container's root"))
            .and_then(|mut root| act(&mut root));
        let message = match outcome {
            Ok(()) => Message::Ready,
            Err(error) => Message::Failed(format!("{error:#}")),
        };
        let _ = child.send(&message);
        syscall::exit_now(0)
    };
    drop(child);
    let message = caller.receive();
    namespaces::wait(pid)?;
    match message? {
        Some(Message::Ready) => Ok(()),
        Some(Message::Failed(text)) => bail!(text),
        other => bail!("the process in the container sent {other:?}"),
    }
}
