//! Mounts in a running container: crun's `mounts add` and `mounts remove`. libcontainer has no such
//! commands.
//!
//! The runtime process opens the source of a mount on the host. A helper joins the container's
//! mount namespace, where a destination leads to the same place as for the container, and attaches
//! the mount there. The state records which mount that was. Only this mount is removed later, even
//! if the container has made the destination lead elsewhere since.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::process::{DumpableBehavior, PidfdFlags};
use rustix::thread::LinkNameSpaceType;

use crate::bundle::Bundle;
use crate::container::patience::Patience;
use crate::failure;
use crate::linux::cgroups::{self, Freezers};
use crate::linux::descriptors;
use crate::linux::helper::{self, Helper};
use crate::linux::host_proc::HostProc;
use crate::linux::mounts::{self, Detached, Opened, Remounted};
use crate::linux::namespaces::Namespaces;
use crate::linux::rootfs::Rootfs;
use crate::state::{AddedMount, Directory, State};
use crate::sync::Message;
use crate::syscall;

/// `<linux/stat.h>`. The kernel ignores flags that it does not know.
const STATX_MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Mounts in order. If a mount fails, those before it stay. The calling code holds the lock of the
/// directory.
pub(crate) fn add(
    directory: &Directory,
    state: &mut State,
    spec: Spec,
    entries: &[Mount],
) -> Result<()> {
    let (path, rootfs) = (state.bundle.clone(), state.rootfs.clone());
    let bundle = Bundle { path, rootfs, config: Vec::new(), spec };
    let namespaces = Namespaces::default();
    descriptors::raise_for(entries.len());
    let (mut opened, mut records) = (Vec::new(), Vec::new());
    for entry in entries {
        let show = || format!("mount `{}`", entry.destination().display());
        // A mount of another kind shows the processes or the network of the process that mounts it,
        // here the runtime process. And the container decides where the destination of a `remount`
        // leads.
        ensure!(
            mounts::binds(entry)
                || entry.typ().as_deref() == Some("tmpfs") && !mounts::remounts(entry),
            "{}: only bind mounts and tmpfs can be added",
            show()
        );
        // The memory would count for the runtime process, and a container could have any amount of
        // files at that place.
        ensure!(
            !mounts::copies_up(entry),
            "{}: the option `tmpcopyup` is for mounts of the configuration",
            show()
        );
        let found = mounts::open_detached(&bundle, &namespaces, entry).with_context(show)?;
        // A mount keeps its ids when it is attached. A copied symbolic link is not a mount, and has
        // no record.
        let record = match &found {
            Opened::Mount(mount) => {
                let destination = entry.destination().clone();
                let (id, unique) = mount.ids().with_context(show)?;
                state.added.push(AddedMount { destination, id, unique });
                Some(state.added.len() - 1)
            }
            Opened::Link(_) => None,
        };
        records.push(record);
        opened.push(Some(found));
    }
    let entrance = Entrance::open(state)?;
    // Records the mounts before they are attached: every attached mount must have a record.
    directory.write(state)?;
    let (gone, added) = entrance.inside(&mut |root, tell| {
        let none = Remounted::default();
        for (number, (entry, opened)) in entries.iter().zip(&mut opened).enumerate() {
            let show = || format!("mount `{}`", entry.destination().display());
            let mounted = mounts::mount(root, &bundle, &namespaces, entry, opened.take(), &none);
            if mounted.is_ok() {
                continue;
            }
            // Every record must have an attached mount, too. The mount that failed may be attached:
            // setting its propagation may have failed.
            let tell_what_is_gone = || {
                let table = root.proc()?;
                for &record in records[number..].iter().flatten() {
                    let id = state.added[record].id.to_string();
                    if table.mount(&id)?.is_none() {
                        tell(record)?;
                    }
                }
                Ok(())
            };
            failure::and_then_cleaned(mounted.with_context(show), tell_what_is_gone())?;
        }
        Ok(())
    });
    failure::and_then_cleaned(added, forget(directory, state, &gone))
}

/// Unmounts the mounts that [`add`] has made at these destinations, the last first. The calling
/// code holds the lock of the directory.
pub(crate) fn remove(directory: &Directory, state: &mut State, entries: &[Mount]) -> Result<()> {
    let entrance = Entrance::open(state)?;
    // If the state cannot be written, `mounts remove` fails before it has unmounted anything.
    directory.write(state)?;
    let (gone, removed) = entrance.inside(&mut |root, tell| {
        let mut left: Vec<_> = state.added.iter().enumerate().collect();
        for entry in entries.iter().rev() {
            let destination = entry.destination();
            let show = || format!("unmount `{}`", destination.display());
            // Of several mounts at one destination, the last is on top.
            let found = left.iter().rposition(|(_, mount)| mount.destination == *destination);
            let (number, added) = match found {
                Some(found) => left.remove(found),
                None => bail!("{}: `mounts add` has mounted nothing there", show()),
            };
            let mount = match find(root, added).with_context(show)? {
                Found::Here(mount) => mount,
                Found::Nowhere => {
                    tell(number)?;
                    bail!("{}: the container has unmounted it already", show());
                }
            };
            root.proc()?.unmount(mount.as_fd()).with_context(show)?;
            tell(number)?;
        }
        Ok(())
    });
    failure::and_then_cleaned(removed, forget(directory, state, &gone))
}

/// Removes mounts from the record.
fn forget(directory: &Directory, state: &mut State, gone: &[usize]) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    let mut number = 0;
    state.added.retain(|_| {
        number += 1;
        !gone.contains(&(number - 1))
    });
    directory.write(state)
}

enum Found {
    Here(OwnedFd),
    Nowhere,
}

/// Finds the recorded mount itself, by descriptor. The container may have moved the directory that
/// the mount is on, replaced it by a link, or mounted something else on it.
fn find(root: &Rootfs, added: &AddedMount) -> Result<Found> {
    let open = |path: &Path| root.open(path, OFlags::PATH).ok().filter(|it| is(it.as_fd(), added));
    if let Some(mount) = open(&added.destination) {
        return Ok(Found::Here(mount));
    }
    let Some(entry) = root.proc()?.mount(&added.id.to_string())? else {
        return Ok(Found::Nowhere);
    };
    if let Some(mount) = open(&entry.point) {
        return Ok(Found::Here(mount));
    }
    let there = root.open(&entry.point, OFlags::PATH);
    let there = match there {
        // The container had moved the mount away for a moment.
        Ok(there) if is(there.as_fd(), added) => return Ok(Found::Here(there)),
        there => there.and_then(|there| look(there.as_fd())),
    };
    // Another mount has got the id.
    if there.is_ok_and(|there| there.is_root && there.id == Some(added.id)) {
        return Ok(Found::Nowhere);
    }
    bail!("it is hidden by another mount, at `{}`", entry.point.display())
}

/// Whether a file is the root of that mount.
fn is(file: BorrowedFd<'_>, added: &AddedMount) -> bool {
    look(file).is_ok_and(|there| {
        there.is_root
            && match added.unique {
                Some(_) => there.unique == added.unique,
                None => there.id == Some(added.id),
            }
    })
}

/// The mount through which a file is seen.
struct Look {
    id: Option<u64>,
    unique: Option<u64>,
    is_root: bool,
}

fn look(file: BorrowedFd<'_>) -> rustix::io::Result<Look> {
    let ask = |what: StatxFlags| {
        let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, what)?;
        let known = found.stx_mask & what.bits() != 0;
        let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Ok((known.then_some(found.stx_mnt_id), is_root))
    };
    let ((unique, _), (id, is_root)) = (ask(STATX_MNT_ID_UNIQUE)?, ask(StatxFlags::MNT_ID)?);
    Ok(Look { id, unique, is_root })
}

impl Detached {
    /// The ids, in the form that [`AddedMount`] has.
    fn ids(&self) -> Result<(u64, Option<u64>)> {
        let found = look(self.as_fd())?;
        Ok((found.id.context("the kernel tells no number of it")?, found.unique))
    }
}

/// The way into a container's mount namespace.
#[derive(Debug)]
pub(super) struct Entrance {
    namespace: OwnedFd,
    proc: HostProc,
}

/// An action inside the namespace. It reports the mounts that are gone, by their numbers.
type Act<'a> = dyn FnMut(&mut Rootfs, &dyn Fn(usize) -> Result<()>) -> Result<()> + 'a;

impl Entrance {
    pub(super) fn open(state: &State) -> Result<Entrance> {
        let entrance = Entrance::open_other(state, Path::new(&format!("/proc/{}", state.pid)))?;
        let theirs = rustix::fs::fstat(&entrance.namespace)?;
        // Its first process may have made another mount namespace since, in a user namespace of its
        // own. There the container may change any mount, whatever the mount's options say. And the
        // mounts that were added before are still in the first mount namespace.
        ensure!(
            state.mount_namespace == Some((theirs.st_dev, theirs.st_ino)),
            "its first process is not in the mount namespace that the container was made with"
        );
        Ok(entrance)
    }

    /// Opens the mount namespace of a process of the container. The process is stopped, or is the
    /// first process.
    pub(super) fn open_other(state: &State, process: &Path) -> Result<Entrance> {
        // In the namespace, the container's processes could otherwise reach the helper and its open
        // files (CVE-2016-9962).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .context("keep the container out")?;
        let init = state.process()?.context("the container does not run")?;
        let path = process.join("ns/mnt");
        let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("open `{}`", path.display()))?;
        // If init is still alive, its pid was not reused when the namespace was opened.
        syscall::pidfd_send_signal(init.as_fd(), 0).context("the container does not run")?;
        let theirs = rustix::fs::fstat(&namespace)?;
        let ours = rustix::fs::stat("/proc/self/ns/mnt")?;
        ensure!(
            (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino),
            "the container has no mount namespace of its own"
        );
        Ok(Entrance { namespace, proc: HostProc::open()? })
    }

    /// Does something in a process that sees the container's mounts and has the container's root.
    /// Also returns the numbers of the mounts that are gone, even if the action failed half-way.
    pub(super) fn inside(self, act: &mut Act<'_>) -> (Vec<usize>, Result<()>) {
        let mut gone = Vec::new();
        let done = self.enter(act, &mut gone);
        (gone, done)
    }

    fn enter(self, act: &mut Act<'_>, gone: &mut Vec<usize>) -> Result<()> {
        let Helper { pid, socket } = helper::start(0, "make a process in it", |socket| {
            helper::end_with_the_runtime_process()?;
            let kind = Some(LinkNameSpaceType::Mount);
            rustix::thread::move_into_link_name_space(self.namespace.as_fd(), kind)
                .context("join the mount namespace")?;
            let mut root = Rootfs::of_running(self.proc).context("open the container's root")?;
            act(&mut root, &|number| socket.send(&Message::Gone(number)))?;
            socket.send(&Message::Ready)
        })?;
        let patience = Patience::with_new(Freezers::default(), false, false);
        let message = loop {
            match patience.receive(&socket, pid) {
                Ok(Some(Message::Gone(number))) => gone.push(number),
                other => break other,
            }
        };
        // A filesystem of the container may block the helper for ever.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        cgroups::end(pid, pidfd.as_fd());
        helper::ready(message?, "the process in the container")
    }
}
