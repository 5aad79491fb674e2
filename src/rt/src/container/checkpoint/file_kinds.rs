//! The kinds of open files in `files.img`: a closed list.
//!
//! CRIU makes the open files of a process again as root of the host. Some kinds of open files give
//! a process what it could not get by itself: a raw socket, the host's audit messages, or a watch
//! for a file that is not in the container. `restore` refuses a kind that `rt` does not know, and
//! one for which the container has no capability.
//!
//! A watch (`inotify(7)`, `fanotify(7)`) has the kernel's handle of its file. By a handle, CRIU
//! opens any file of the same filesystem, also one of the host. With fanotify, the process would
//! get descriptors of the host's files. CRIU uses the handle only if the image has no path, and no
//! deleted file is meant.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rustix::thread::CapabilitySet;

use crate::container::checkpoint::confinement::Limits;
use crate::container::checkpoint::images::{Value, each, is_plain, shown};
use crate::container::checkpoint::process_images;

/// The filesystem and the inode of a file.
pub(in crate::container) type Identity = (u64, u64);

/// What CRIU looks up for open files, except for regular ones.
#[derive(Debug, Default)]
pub(in crate::container) struct Named {
    /// The paths of watched files and of unix sockets.
    paths: BTreeSet<PathBuf>,
    /// The watched files without a path.
    unnamed: BTreeSet<Identity>,
}

impl Named {
    /// Fails unless the watched files without a path are deleted files that CRIU makes again.
    pub(in crate::container) fn check_unnamed(&self, deleted: &BTreeSet<Identity>) -> Result<()> {
        if let Some((device, inode)) = self.unnamed.difference(deleted).next() {
            bail!("the watch for inode {inode} of {device:#x} has no path");
        }
        Ok(())
    }

    pub(in crate::container) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path)
    }
}

/// Where the owner for signals (`fown_entry`) is: the field of a `file_entry`, and the field in it.
const OWNERS: [(u32, u32); 16] = [
    (3, 5),
    (4, 13),
    (6, 6),
    (7, 11),
    (8, 3),
    (9, 3),
    (10, 3),
    (12, 3),
    (13, 4),
    (14, 3),
    (16, 9),
    (18, 4),
    (19, 4),
    (20, 4),
    (21, 4),
    (22, 5),
];

/// Fails if a file sends a signal that kills its owner while CRIU counts the threads.
fn refuse_killing(field: u32, file: &Value<'_>) -> Result<()> {
    let Some((_, owner)) = OWNERS.iter().find(|(kind, _)| *kind == field) else { return Ok(()) };
    each(file.bytes()?, &mut |field, value| match field {
        field if field == *owner => each(value.bytes()?, &mut |field, value| {
            if field == 3 {
                let signal = value.u32()?;
                ensure!(!process_images::kills(signal), "a file sends the signal {signal}");
            }
            Ok(())
        }),
        _ => Ok(()),
    })
}

/// Checks a `file_entry`.
pub(in crate::container) fn check(
    message: &[u8],
    limits: &Limits<'_>,
    named: &mut Named,
) -> Result<()> {
    each(message, &mut |kind, value| {
        value.once()?;
        refuse_killing(kind, value)?;
        check_kind(kind, value, limits, named)
    })
}

fn check_kind(kind: u32, value: &Value<'_>, limits: &Limits<'_>, named: &mut Named) -> Result<()> {
    let needs = |capability: CapabilitySet, kind: &str| -> Result<()> {
        let name = || capability_name(capability);
        ensure!(limits.gives(capability), "it has {kind}, and the container has no {}", name());
        Ok(())
    };
    match kind {
        // The kind and the number; regular files, which have their own check; namespaces, eventfd,
        // epoll, signalfd, timerfd, fifos, pipes, terminals, files in memory, and pidfds.
        1..=3 | 5 | 8..=10 | 12 | 17..=20 | 22 => Ok(()),
        4 => {
            let socket = inet_socket(value.bytes()?)?;
            if !socket.is_plain {
                needs(CapabilitySet::NET_RAW, "a raw socket")?;
            }
            if socket.has_mark && !limits.gives(CapabilitySet::NET_RAW) {
                needs(CapabilitySet::NET_ADMIN, "a socket with a mark")?;
            }
            Ok(())
        }
        6 => needs(CapabilitySet::NET_RAW, "a packet socket"),
        7 => match groups_of(value.bytes()?)? {
            None => Ok(()),
            Some(AUDIT) => needs(CapabilitySet::AUDIT_READ, "a socket for audit messages"),
            Some(_) => needs(CapabilitySet::NET_ADMIN, "a netlink socket with groups"),
        },
        11 => needs(CapabilitySet::NET_ADMIN, "a network device of its own (tun)"),
        13 => each(value.bytes()?, &mut |field, value| match field {
            5 => add_watch(value.item()?, named),
            _ => Ok(()),
        }),
        14 => {
            needs(CapabilitySet::SYS_ADMIN, "a descriptor of fanotify")?;
            ensure!(!limits.has_user_namespace(), "it has a descriptor of fanotify");
            each(value.bytes()?, &mut |field, value| match field {
                6 => add_mark(value.item()?, named),
                _ => Ok(()),
            })
        }
        16 => add_unix_socket(value.bytes()?, named),
        21 => needs(CapabilitySet::BPF, "a map for BPF"),
        kind => bail!("it has an open file of the unknown kind {kind}"),
    }
}

pub(in crate::container) fn capability_name(capability: CapabilitySet) -> String {
    let names: Vec<_> = capability.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    names.join(", ")
}

/// What `rt` looks at in an `inet_sk_entry`.
#[derive(Debug, Default, Eq, PartialEq)]
struct InetSocket {
    /// Whether any user can make such a socket.
    is_plain: bool,
    has_mark: bool,
}

fn inet_socket(message: &[u8]) -> Result<InetSocket> {
    let (mut family, mut kind, mut socket) = (0, 0, InetSocket::default());
    each(message, &mut |field, value| {
        match field {
            3 => family = value.u32()?,
            4 => kind = value.u32()?,
            // `sk_opts_entry`
            14 => each(value.bytes()?, &mut |field, value| {
                if field == 10 {
                    socket.has_mark = value.u32()? != 0;
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    let is = |number: u32, known: libc::c_int| number == known.unsigned_abs();
    let is_internet = is(family, libc::AF_INET) || is(family, libc::AF_INET6);
    ensure!(is_internet, "it has a socket of the unknown family {family}");
    socket.is_plain = is(kind, libc::SOCK_STREAM) || is(kind, libc::SOCK_DGRAM);
    Ok(socket)
}

/// `NETLINK_AUDIT`.
const AUDIT: u32 = libc::NETLINK_AUDIT.unsigned_abs();

/// The protocol of a `netlink_sk_entry` whose socket gets messages that not every user may have.
fn groups_of(message: &[u8]) -> Result<Option<u32>> {
    /// Protocols whose messages every user may have: about network devices, and about devices.
    const OPEN: [libc::c_int; 2] = [libc::NETLINK_ROUTE, libc::NETLINK_KOBJECT_UEVENT];
    let (mut protocol, mut has_groups) = (0, false);
    each(message, &mut |field, value| {
        match field {
            3 => protocol = value.u32()?,
            8 => value.each_u32(&mut |group| {
                has_groups |= group != 0;
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    let is_open = OPEN.iter().any(|open| open.unsigned_abs() == protocol);
    Ok((has_groups && !is_open).then_some(protocol))
}

/// `unix_sk_entry`. Fails for a name that is longer than an address of the kernel, into which CRIU
/// copies the name.
fn add_unix_socket(message: &[u8], named: &mut Named) -> Result<()> {
    const LONGEST: usize = 108;
    let (mut name, mut folder): (&[u8], &[u8]) = (b"", b"/");
    each(message, &mut |field, value| {
        match field {
            11 => {
                name = value.bytes()?;
                ensure!(name.len() <= LONGEST, "the name of a unix socket is too long");
            }
            14 => folder = value.bytes()?,
            _ => {}
        }
        Ok(())
    })?;
    // A name that begins with 0 is not in a filesystem. Another one ends at 0.
    let text = |bytes: &'_ [u8]| -> PathBuf {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        OsStr::from_bytes(&bytes[..end]).into()
    };
    let name = text(name);
    if name.as_os_str() != "" {
        // CRIU begins in the root, and enters the directory.
        let folder = Path::new("/").join(text(folder));
        named.paths.insert(folder.join(name));
        named.paths.insert(folder);
    }
    Ok(())
}

/// `inotify_wd_entry`.
fn add_watch(message: &[u8], named: &mut Named) -> Result<()> {
    let mut file = WatchedFile::default();
    each(message, &mut |field, value| {
        match field {
            2 => file.inode = value.u64()?,
            5 => file.device = value.u32()?.into(),
            7 => file.read_handle(value.bytes()?)?,
            _ => {}
        }
        Ok(())
    })?;
    file.add_to(named);
    Ok(())
}

/// `fanotify_mark_entry`.
fn add_mark(message: &[u8], named: &mut Named) -> Result<()> {
    /// Of a mount. CRIU finds the mount by its number.
    const MOUNT: u32 = 2;
    let (mut file, mut kind) = (WatchedFile::default(), 0);
    each(message, &mut |field, value| {
        match field {
            2 => kind = value.u32()?,
            6 => file.device = value.u32()?.into(),
            // `fanotify_inode_mark_entry`
            7 => each(value.bytes()?, &mut |field, value| {
                match field {
                    1 => file.inode = value.u64()?,
                    2 => file.read_handle(value.bytes()?)?,
                    _ => {}
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    if kind != MOUNT {
        file.add_to(named);
    }
    Ok(())
}

#[derive(Debug, Default)]
struct WatchedFile {
    device: u64,
    inode: u64,
    path: Option<PathBuf>,
}

impl WatchedFile {
    /// `fh_entry`.
    fn read_handle(&mut self, message: &[u8]) -> Result<()> {
        each(message, &mut |field, value| {
            if field == 4 {
                let path = value.bytes()?;
                ensure!(
                    is_plain(path),
                    "the watch for `{}`: its path is not a plain one",
                    shown(path)
                );
                self.path = Some(PathBuf::from(OsStr::from_bytes(path)));
            }
            Ok(())
        })
    }

    fn add_to(self, named: &mut Named) {
        match self.path {
            Some(path) => drop(named.paths.insert(path)),
            None => drop(named.unnamed.insert((self.device, self.inode))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::checkpoint::images::made::{bytes, number};

    #[test]
    fn only_usual_sockets_are_plain() {
        let read = |family: u64, kind: u64, mark: u64| {
            let options = bytes(14, &number(10, mark));
            inet_socket(&[number(3, family), number(4, kind), options].concat())
        };
        let plain = InetSocket { is_plain: true, has_mark: false };
        assert_eq!(read(2, 1, 0).expect("it is TCP"), plain);
        assert_eq!(read(10, 2, 0).expect("it is UDP"), plain);
        // `SOCK_RAW`, `SOCK_RAW | SOCK_NONBLOCK`, and `SOCK_PACKET`.
        for kind in [3, 0x803, 10] {
            assert!(!read(2, kind, 0).expect("it is read").is_plain);
        }
        assert!(read(2, 1, 7).expect("it is read").has_mark);
        read(17, 2, 0).expect_err("it is a packet socket");
        read(2 | 1 << 32, 2, 0).expect_err("for CRIU, it has 32 bits");
    }

    #[test]
    fn a_file_does_not_kill() {
        let check = |kind, owner, signal| {
            let file = bytes(kind, &bytes(owner, &number(3, signal)));
            each(&file, &mut |kind, file| refuse_killing(kind, file))
        };
        for (kind, owner) in OWNERS {
            check(kind, owner, 29).expect("it is SIGIO");
            check(kind, owner, 9).expect_err("it kills");
        }
        check(17, 4, 9).expect("it has no owner");
    }

    #[test]
    fn a_unix_socket_has_a_path() {
        let paths = |name: &[u8], folder: &[u8]| {
            let mut named = Named::default();
            let message = [bytes(11, name), bytes(14, folder)].concat();
            add_unix_socket(&message, &mut named)
                .map(|()| named.paths().map(Path::to_owned).collect())
        };
        let both = |folder: &str, path: &str| [folder, path].map(PathBuf::from).to_vec();
        let read =
            |name: &[u8], folder: &[u8]| -> Vec<PathBuf> { paths(name, folder).expect("read") };
        assert_eq!(read(b"/run/x\0", b"/etc"), both("/etc", "/run/x"));
        assert_eq!(read(b"x", b"/etc"), both("/etc", "/etc/x"));
        assert_eq!(read(b"x", b"etc\0/run"), both("/etc", "/etc/x"));
        assert_eq!(read(b"\0/run/x", b"/etc"), Vec::<PathBuf>::new());
        paths(&[b'x'; 109], b"/").expect_err("it is too long");
    }

    #[test]
    fn groups_of_protocols_are_told_apart() {
        let read = |protocol, groups: &[Vec<u8>]| {
            groups_of(&[number(3, protocol), groups.concat()].concat()).expect("it is read")
        };
        assert_eq!(read(0, &[number(8, 1)]), None);
        assert_eq!(read(15, &[number(8, 1)]), None);
        assert_eq!(read(9, &[number(8, 0)]), None);
        assert_eq!(read(9, &[number(8, 0), number(8, 1)]), Some(AUDIT));
        assert_eq!(read(12, &[bytes(8, &[0, 1])]), Some(12));
    }

    #[test]
    fn a_watch_has_a_path_or_a_deleted_file() {
        type Add = fn(&[u8], &mut Named) -> Result<()>;
        type Message = fn(&[u8]) -> Vec<u8>;
        fn mark(kind: u64, handle: &[u8]) -> Vec<u8> {
            let inode = [number(1, 7), bytes(2, handle)].concat();
            [number(2, kind), number(6, 3), bytes(7, &inode)].concat()
        }
        let path = bytes(4, b"/etc");
        let unnamed = number(1, 8);
        let both: [(Message, Add); 2] = [
            (|handle| [number(2, 7), number(5, 3), bytes(7, handle)].concat(), add_watch),
            (|handle| mark(1, handle), add_mark),
        ];
        for (message, add) in both {
            let mut named = Named::default();
            add(&message(&path), &mut named).expect("it has a path");
            named.check_unnamed(&BTreeSet::new()).expect("it has a path");
            add(&message(&unnamed), &mut named).expect("it is read");
            named.check_unnamed(&BTreeSet::from([(3, 7)])).expect("it is deleted");
            named.check_unnamed(&BTreeSet::from([(3, 8)])).expect_err("another one is deleted");
            for path in [&b"/../etc"[..], b"etc", b""] {
                add(&message(&bytes(4, path)), &mut named).expect_err("it is not plain");
            }
        }
        let mut named = Named::default();
        add_mark(&mark(2, &unnamed), &mut named).expect("it is of a mount");
        named.check_unnamed(&BTreeSet::new()).expect("it is of a mount");
    }
}
