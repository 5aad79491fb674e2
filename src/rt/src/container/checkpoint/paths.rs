//! The paths of files and of unix sockets in images, which CRIU follows as root of the host.
//!
//! CRIU opens them in the container's mounts. But the container's procfs shows the process of CRIU
//! too, and that process has a descriptor of the host's `/proc` open. So a path through
//! `/proc/self/fd` led CRIU to any file of the host, and the process got it. A link of the rootfs
//! can lead there as well. (On other mounts, CRIU cannot follow links: see
//! [`mount_images`](super::mount_images).) The path of an open file never goes through a link, so
//! `restore` refuses one that goes through a link of procfs.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::interrupt;
use crate::walk;

/// `PATH_MAX`.
const LONGEST: usize = 4096;

/// A filesystem with files that require more than their mode says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::container) enum KernelFs {
    Proc,
    Sysfs,
}

/// The mounts that matter for paths. `rt` compares each path of the images with each of them.
#[derive(Debug, Default)]
pub(in crate::container) struct Places(Vec<Place>);

#[derive(Debug, Eq, PartialEq)]
pub(in crate::container) struct Place {
    pub(in crate::container) kind: KernelFs,
    pub(in crate::container) point: PathBuf,
    /// The directory or file of the filesystem that is there.
    pub(in crate::container) root: PathBuf,
    /// Whether the processes of a procfs are not only the container's: it is one of the host.
    pub(in crate::container) is_the_hosts: bool,
}

impl Place {
    /// The path in the filesystem.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.point).ok()?;
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        Some(root.iter().chain(below).collect())
    }
}

/// What a process requires to open a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::container) struct Required {
    pub(in crate::container) capability: CapabilitySet,
    /// Whether the capability counts only outside of user namespaces.
    pub(in crate::container) is_the_hosts: bool,
}

/// Looks at a path that CRIU opens.
pub(in crate::container) type Look<'a> = &'a dyn Fn(&Path) -> Result<()>;

impl Places {
    /// Mount namespaces usually have the same places. A container has about ten.
    pub(in crate::container) fn add(&mut self, place: Place) -> Result<()> {
        const MOST: usize = 128;
        if !self.0.contains(&place) {
            ensure!(self.0.len() < MOST, "more than {MOST} places have a procfs or a sysfs");
            self.0.push(place);
        }
        Ok(())
    }

    /// Fails if a path leads out of the container. `opened` is for a path that CRIU opens, and gets
    /// the paths to which it can lead.
    pub(in crate::container) fn check(
        &self,
        rootfs: BorrowedFd<'_>,
        path: &Path,
        opened: Option<Look<'_>>,
    ) -> Result<()> {
        let shown = || path.display().to_string().escape_debug().to_string();
        ensure!(path.as_os_str().len() < LONGEST, "a path is longer than {LONGEST} bytes");
        let lead = || format!("the path `{}`", shown());
        let mut rest: VecDeque<OsString> = parts(path).collect();
        // Where `..` leads depends on the links before it, which another mount may hide.
        let goes_up = rest.iter().any(|part| part == "..");
        ensure!(!goes_up, "the path `{}` has `..`", shown());
        let (mut there, mut links) = (PathBuf::from("/"), 0);
        self.check_text(&there, &rest, opened).with_context(lead)?;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                there.pop();
                continue;
            }
            let next = there.join(&part);
            // Also of the rootfs below another mount: a mount of the images may not be on top.
            match link(rootfs, &there, &part).with_context(lead)? {
                Some(target) => {
                    links += 1;
                    let goes_up =
                        parts(&target).skip_while(|part| part == "..").any(|part| part == "..");
                    ensure!(!goes_up, "the path `{}` goes through a link with `..`", shown());
                    ensure!(links <= walk::MOST_LINKS, "the path `{}` has too many links", shown());
                    if target.is_absolute() {
                        there = PathBuf::from("/");
                    }
                    for part in parts(&target).rev() {
                        rest.push_front(part);
                    }
                    self.check_text(&there, &rest, opened).with_context(lead)?;
                }
                None => there = next,
            }
        }
        Ok(())
    }

    fn check_text(
        &self,
        there: &Path,
        rest: &VecDeque<OsString>,
        opened: Option<Look<'_>>,
    ) -> Result<()> {
        interrupt::glance()?;
        let mut path = there.to_owned();
        for part in rest {
            if part == ".." {
                path.pop();
            } else {
                path.push(part);
            }
        }
        for place in self.0.iter().filter(|place| place.kind == KernelFs::Proc) {
            let Some(inside) = place.inside(&path) else { continue };
            let parts = path.ancestors().zip(inside.ancestors());
            if let Some((link, _)) = parts.filter(|(_, inside)| is_link(inside)).last() {
                bail!("it goes through the link `{}`", link.display());
            }
        }
        opened.map_or(Ok(()), |look| look(&path))
    }

    /// The capabilities that a process requires to open a file of procfs or sysfs, or to see its
    /// content. The kernel asks for them only when the file is opened, or asks who has opened it.
    /// In a pid namespace of its own, a container has only its own processes to look into, by its
    /// own procfs.
    pub(in crate::container) fn required(&self, path: &Path, has_own_pids: bool) -> Vec<Required> {
        let of = |place: &Place| required(place, &place.inside(path)?, has_own_pids);
        self.0.iter().filter_map(of).collect()
    }
}

fn required(place: &Place, path: &Path, has_own_pids: bool) -> Option<Required> {
    /// Files of a process that only who may trace the process can open.
    const TRACED: [&str; 12] = [
        "auxv",
        "clear_refs",
        "environ",
        "io",
        "maps",
        "mem",
        "numa_maps",
        "pagemap",
        "personality",
        "smaps",
        "smaps_rollup",
        "stack",
    ];
    let hosts = |capability| Some(Required { capability, is_the_hosts: true });
    let name = path.file_name()?.to_str()?;
    if place.kind == KernelFs::Sysfs {
        // Of a device on the PCI bus.
        if name == "config" {
            return hosts(CapabilitySet::SYS_ADMIN);
        }
        // Of a module of the kernel.
        let is_section = path.parent()?.file_name()? == "sections";
        return if is_section { hosts(CapabilitySet::SYSLOG) } else { None };
    }
    match name {
        // The addresses of physical memory.
        "pagemap" => hosts(CapabilitySet::SYS_ADMIN),
        _ if path.starts_with("bus/pci") => hosts(CapabilitySet::SYS_ADMIN),
        _ if path.iter().nth(1).is_some() => {
            let has_others = place.is_the_hosts || !has_own_pids;
            let is_traced = has_others && TRACED.contains(&name);
            let capability = CapabilitySet::SYS_PTRACE;
            is_traced.then_some(Required { capability, is_the_hosts: place.is_the_hosts })
        }
        // The addresses of the kernel.
        "kallsyms" | "kmsg" | "modules" => hosts(CapabilitySet::SYSLOG),
        "kcore" => hosts(CapabilitySet::SYS_RAWIO),
        "iomem" | "ioports" => hosts(CapabilitySet::SYS_ADMIN),
        _ => None,
    }
}

/// Whether a path of procfs is a link of the kernel's, to anywhere.
pub(in crate::container) fn is_link(path: &Path) -> bool {
    let mut parts = path.iter().rev();
    let (last, above) = (parts.next(), parts.next());
    let is = |part: Option<&OsStr>, names: &[&str]| {
        names.iter().any(|name| part == Some(OsStr::new(name)))
    };
    is(last, &["cwd", "exe", "root"]) || is(above, &["fd", "map_files", "ns"])
}

/// The names in a path, without empty ones and `.`.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let text = path.as_os_str().as_bytes();
    let parts = text.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.map(|part| OsStr::from_bytes(part).to_owned())
}

/// The target of a link in a directory of the rootfs.
fn link(rootfs: BorrowedFd<'_>, there: &Path, part: &OsStr) -> Result<Option<PathBuf>> {
    let path = there.strip_prefix("/").unwrap_or(there).join(part);
    // `there` has no links.
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let file = match walk::open(rootfs, &path, flags, ResolveFlags::BENEATH) {
        Ok(file) => file,
        // CRIU fails, or the path is on another mount.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open `{}`", path.display())),
    };
    match rustix::fs::readlinkat(&file, "", Vec::new()) {
        Ok(target) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
        // It is not a link.
        Err(Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read the link `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_path_goes_through_procfs() {
        let folder = std::env::temp_dir().join(format!("rt-paths-{}", std::process::id()));
        let make = |name: &str| std::fs::create_dir_all(folder.join(name)).expect("made");
        let lead = |name: &str, to: &str| symlink(to, folder.join(name)).expect("made");
        make("etc/deep");
        make("run");
        make("var");
        lead("var/run", "/run");
        lead("etc/out", "/proc/self/fd/121");
        lead("etc/deep/far", "../out/2");
        lead("etc/loop", "loop");
        lead("etc/up", "../../..");
        lead("etc/back", "/run/../x");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let rootfs = rustix::fs::open(&folder, flags, rustix::fs::Mode::empty());
        let rootfs = rootfs.expect("opened");
        let mut places = Places::default();
        let mut add = |kind, point: &str, root: &str, is_the_hosts| {
            let place = Place { kind, point: point.into(), root: root.into(), is_the_hosts };
            places.add(place).expect("it has room");
        };
        for (point, root, is_the_hosts) in [
            ("/proc", "/", false),
            ("/mnt/proc", "/", false),
            ("/host", "/", true),
            ("/mnt/first", "/1", true),
            ("/mnt/kmsg", "/kmsg", true),
        ] {
            add(KernelFs::Proc, point, root, is_the_hosts);
        }
        add(KernelFs::Sysfs, "/sys", "/", false);
        add(KernelFs::Sysfs, "/mnt/ext4", "/module/ext4/sections", true);
        let check = |path: &str| places.check(rootfs.as_fd(), Path::new(path), None);
        for path in [
            "/",
            "/etc/file",
            "/var/run/socket",
            "/proc/1/status",
            "/proc/1/fd",
            "/proc/self/task/1/stat",
            "/srv/fd/1",
            "/dev/null",
            "/dev/pts/0",
            "/etc/up/etc",
            "/etc/.hidden",
        ] {
            check(path).expect(path);
        }
        for path in [
            "/proc/self/fd/121/1/root/etc/shadow",
            "/proc//self/./fd/121",
            "/proc/1/root",
            "/proc/1/task/1/cwd/x",
            "/proc/1/exe",
            "/proc/1/ns/net",
            "/mnt/proc/1/map_files/1-2",
            "/mnt/first/cwd",
            "/etc/out/1/root",
            "/etc/deep/far/root",
            "/etc/up/proc/1/root",
            "/etc/../x",
            "/etc/back",
            "/etc/loop/x",
        ] {
            check(path).expect_err(path);
        }
        let hosts = |capability| Some(Required { capability, is_the_hosts: true });
        let traced = Some(Required { capability: CapabilitySet::SYS_PTRACE, is_the_hosts: false });
        let traced_of_host = hosts(CapabilitySet::SYS_PTRACE);
        for (path, own, required) in [
            ("/proc/1/mem", false, traced),
            ("/proc/1/mem", true, None),
            ("/host/1/mem", true, traced_of_host),
            ("/host/1/status", true, None),
            ("/mnt/first/environ", true, traced_of_host),
            ("/mnt/kmsg", true, hosts(CapabilitySet::SYSLOG)),
            ("/mnt/ext4/.text", true, hosts(CapabilitySet::SYSLOG)),
            ("/proc/1/task/1/pagemap", true, hosts(CapabilitySet::SYS_ADMIN)),
            ("/proc/1/mountinfo", false, None),
            ("/mnt/proc/kmsg", true, hosts(CapabilitySet::SYSLOG)),
            ("/proc/kallsyms", true, hosts(CapabilitySet::SYSLOG)),
            ("/proc/iomem", true, hosts(CapabilitySet::SYS_ADMIN)),
            ("/proc/bus/pci/00/00.0", true, hosts(CapabilitySet::SYS_ADMIN)),
            ("/sys/devices/pci0000:00/0000:00:00.0/config", true, hosts(CapabilitySet::SYS_ADMIN)),
            ("/sys/module/ext4/sections/.text", true, hosts(CapabilitySet::SYSLOG)),
            ("/sys/module/ext4/refcnt", true, None),
            ("/srv/1/mem", false, None),
        ] {
            let found = places.required(Path::new(path), own);
            assert_eq!(found, Vec::from_iter(required), "{path}");
        }
        let opened = |path: &str| {
            let seen = std::cell::RefCell::new(Vec::new());
            let look = |path: &Path| {
                seen.borrow_mut().push(path.to_owned());
                Ok(())
            };
            places.check(rootfs.as_fd(), Path::new(path), Some(&look)).expect("it is opened");
            seen.into_inner()
        };
        assert_eq!(opened("/dev/x/y"), [Path::new("/dev/x/y")]);
        assert_eq!(opened("/var/run/x"), ["/var/run/x", "/run/x"].map(Path::new));
        check(&"/x".repeat(LONGEST)).expect_err("it is too long");
        // Many mounts at few places, and few mounts at many places.
        let mut add = |number: usize| {
            let (kind, point) = (KernelFs::Proc, format!("/tmp/{number}").into());
            places.add(Place { kind, point, root: "/".into(), is_the_hosts: false })
        };
        (0..10_000).try_for_each(|number| add(number % 100)).expect("they are the same");
        (0..1000).try_for_each(&mut add).expect_err("they are too many");
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
