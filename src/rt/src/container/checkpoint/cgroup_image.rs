//! `cgroup.img`: the cgroups into which CRIU puts restored processes, the cgroups that CRIU makes,
//! and the values that it writes to their files.
//!
//! CRIU obeys this image as root of the host: it joins names in the image to paths, moves
//! processes, and changes owners. So CRIU does not read the checkpoint's image.
//! [`Image::written_for`] makes another image, in which all paths and controllers are this
//! process's own. Each process is in the restored container's cgroup, or below it if it was below
//! the old one. The cgroups below, and their limits, are the checkpoint's. The configuration
//! decides about the container's own cgroup. [`Cover`](super::cover::Cover) puts the new image in
//! the place of the old one.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use protobuf::CodedOutputStream;

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, Value, each};

/// The image and its first bytes (`images/cgroup.proto`).
pub(in crate::container) const IMAGE: &str = "cgroup.img";
const MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x30, 0x33, 0x38, 0x59];

/// The cgroup of CRIU's process in a hierarchy in which the container has its own cgroup.
#[derive(Clone, Debug)]
pub(in crate::container) struct Home {
    /// As in `/proc/PID/cgroup`: separated by commas, and empty for cgroup v2.
    pub(in crate::container) controllers: String,
    /// From the root of the hierarchy.
    pub(in crate::container) path: PathBuf,
    /// The controllers of the cgroups below, in cgroup v2. None in v1, in which they have the
    /// controllers of the hierarchy.
    pub(in crate::container) below: Option<Vec<String>>,
}

/// The input for the new image.
#[derive(Debug)]
pub(in crate::container) struct Place<'a> {
    pub(in crate::container) homes: &'a [Home],
    /// Whether the container has a cgroup namespace of its own.
    pub(in crate::container) has_namespace: bool,
    /// The owner of the new cgroups: user and group on the host.
    pub(in crate::container) owner: (u32, u32),
}

/// The work in cgroups that an image asks of CRIU.
#[derive(Debug, Default)]
pub(in crate::container) struct Image {
    sets: Vec<Set>,
    hierarchies: Vec<Hierarchy>,
}

/// The cgroups of a process, by a number.
#[derive(Debug, Default)]
struct Set {
    id: u32,
    members: Vec<Member>,
}

/// The cgroup in one hierarchy.
#[derive(Debug, Default)]
struct Member {
    controllers: Vec<u8>,
    path: Vec<u8>,
    /// The length of the path's part that is the root of a cgroup namespace.
    prefix: Option<usize>,
}

/// The cgroups that CRIU makes in one hierarchy.
#[derive(Debug, Default)]
struct Hierarchy {
    controllers: Vec<Vec<u8>>,
    /// Paths from the root, each cgroup before those below it.
    made: Vec<Made>,
    is_threaded: bool,
}

#[derive(Debug, Default)]
struct Made {
    path: Vec<u8>,
    properties: Vec<Property>,
}

/// A file in a cgroup, and the value that CRIU writes to it.
#[derive(Debug, Default)]
struct Property {
    name: Vec<u8>,
    value: Vec<u8>,
}

/// The limits of an image, which somebody may have made to use up memory and time. A container with
/// systemd has some hundred cgroups, in about five levels.
const DEEPEST: usize = 128;
const MOST_CGROUPS: usize = 16384;
/// The number of combinations of cgroups, each with a process in it.
const MOST_SETS: usize = 4096;
/// The kernel has less than twenty controllers.
const MOST_HIERARCHIES: usize = 64;
/// The length of a path in bytes: `PATH_MAX`.
const LONGEST_PATH: usize = 4096;

/// The room for all hierarchies together. A short image can repeat a long path for each cgroup
/// below it.
#[derive(Debug)]
struct Room {
    /// The length of all paths, in bytes.
    paths: usize,
    properties: usize,
}

impl Default for Room {
    fn default() -> Room {
        Room { paths: 32 << 20, properties: 1 << 20 }
    }
}

fn take(room: &mut usize, amount: usize, why: &'static str) -> Result<()> {
    *room = room.checked_sub(amount).context(why)?;
    Ok(())
}

impl Image {
    /// Reads the image of a checkpoint.
    pub(in crate::container) fn read(images: BorrowedFd<'_>) -> Result<Image> {
        match criu::read_if_there(images, IMAGE)? {
            Some(image) => Image::parse(&image),
            // The checkpoint was written without cgroups. Then CRIU does nothing with them.
            None => Ok(Image::default()),
        }
    }

    fn parse(image: &[u8]) -> Result<Image> {
        let message = images::message(image, &MAGIC)?;
        let (mut image, mut room) = (Image::default(), Room::default());
        each(message, &mut |field, value| {
            match field {
                1 => {
                    ensure!(image.sets.len() < MOST_SETS, "it has too many sets of cgroups");
                    image.sets.push(set(value.item()?)?);
                }
                2 => {
                    let there = image.hierarchies.len();
                    ensure!(there < MOST_HIERARCHIES, "it has too many hierarchies");
                    image.hierarchies.push(hierarchy(value.item()?, &mut room)?);
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(image)
    }

    /// The image that CRIU reads instead of this one.
    pub(in crate::container) fn written_for(&self, place: &Place<'_>) -> Result<Vec<u8>> {
        let moves: Vec<Move<'_>> = place.homes.iter().map(|home| self.to(home)).collect();
        let message = written(|out| {
            // If no hierarchy has a cgroup of the container, CRIU has nothing to do for any
            // process.
            for set in self.sets.iter().filter(|_| !moves.is_empty()) {
                out.write_bytes(1, &set.write(&moves, place)?)?;
            }
            for step in &moves {
                out.write_bytes(2, &step.write(place)?)?;
            }
            Ok(())
        })?;
        let length = u32::try_from(message.len()).context("it is too large")?;
        Ok([&MAGIC[..], &length.to_le_bytes(), &message].concat())
    }

    fn to<'i>(&'i self, home: &'i Home) -> Move<'i> {
        let mut all = self.hierarchies.iter();
        let hierarchy = all.find(|it| is_same(it.controllers.iter().map(Vec::as_slice), home));
        let mut members = self
            .sets
            .iter()
            .flat_map(|set| &set.members)
            .filter(|it| it.is_of(home))
            .filter_map(|it| it.path.get(..it.prefix.filter(|prefix| *prefix > 0)?));
        let namespace = members.next().map(absolute);
        let old = namespace.or_else(|| hierarchy.and_then(Hierarchy::common_path));
        Move { home, hierarchy, old }
    }
}

/// From the old container's cgroup in one hierarchy to the new one.
struct Move<'i> {
    home: &'i Home,
    hierarchy: Option<&'i Hierarchy>,
    /// The old container's own cgroup: the root of its cgroup namespace. Without such a namespace,
    /// the common beginning of the paths of all made cgroups.
    old: Option<PathBuf>,
}

impl Move<'_> {
    /// The new path of a cgroup: the container's own if the cgroup was not below the old
    /// container's. An example is the cgroup of the CRIU that has written the images.
    fn path(&self, old: &[u8]) -> Result<PathBuf> {
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let old = absolute(old);
        let below = self.old.as_ref().and_then(|root| old.strip_prefix(root).ok());
        let below = below.filter(|below| {
            below.components().all(is_plain) && !below.as_os_str().as_bytes().contains(&0)
        });
        joined(&self.home.path, below)
    }

    fn write(&self, place: &Place<'_>) -> Result<Vec<u8>> {
        let permissions = |mode: u32| {
            written(|out| {
                out.write_uint32(1, mode)?;
                out.write_uint32(2, place.owner.0)?;
                Ok(out.write_uint32(3, place.owner.1)?)
            })
        };
        let (of_directory, of_file) = (permissions(0o755)?, permissions(0o644)?);
        written(|out| {
            for name in self.home.controllers.split(',') {
                out.write_bytes(1, name.as_bytes())?;
            }
            for made in self.hierarchy.iter().flat_map(|it| &it.made) {
                let path = self.path(&made.path)?;
                if path == self.home.path {
                    continue;
                }
                let path = path.strip_prefix("/").context("it is not from the root")?;
                let directory = written(|out| {
                    out.write_bytes(1, path.as_os_str().as_bytes())?;
                    let properties = made.properties.iter();
                    for property in properties.filter(|it| it.may_be_set(self.home)) {
                        let property = written(|out| {
                            out.write_bytes(1, &property.name)?;
                            out.write_bytes(2, &property.value)?;
                            Ok(out.write_bytes(3, &of_file)?)
                        })?;
                        out.write_bytes(3, &property)?;
                    }
                    Ok(out.write_bytes(4, &of_directory)?)
                })?;
                out.write_bytes(2, &directory)?;
            }
            Ok(out.write_bool(3, self.hierarchy.is_some_and(|it| it.is_threaded))?)
        })
    }
}

impl Set {
    fn write(&self, moves: &[Move<'_>], place: &Place<'_>) -> Result<Vec<u8>> {
        written(|out| {
            out.write_uint32(1, self.id)?;
            for step in moves {
                let home = step.home;
                let member = self.members.iter().find(|member| member.is_of(home));
                let path =
                    member.map_or_else(|| Ok(home.path.clone()), |it| step.path(&it.path))?;
                let member = written(|out| {
                    out.write_bytes(1, home.controllers.as_bytes())?;
                    out.write_bytes(2, path.as_os_str().as_bytes())?;
                    if place.has_namespace {
                        let prefix = u32::try_from(home.path.as_os_str().len())?;
                        out.write_uint32(3, prefix)?;
                    }
                    Ok(())
                })?;
                out.write_bytes(2, &member)?;
            }
            Ok(())
        })
    }
}

impl Member {
    fn is_of(&self, home: &Home) -> bool {
        is_same(self.controllers.split(|byte| *byte == b','), home)
    }
}

impl Hierarchy {
    /// The common beginning of the paths of all made cgroups.
    fn common_path(&self) -> Option<PathBuf> {
        let mut common = absolute(&self.made.first()?.path);
        for other in &self.made {
            let other = absolute(&other.path);
            while !other.starts_with(&common) {
                common.pop();
            }
        }
        Some(common)
    }
}

impl Property {
    /// Whether the file is a limit of a cgroup below the container's. The list of a cgroup's
    /// processes is not a limit. Neither is the switch that stops them (CRIU is in such a cgroup
    /// itself). With v2, neither are the files of controllers that the restored cgroup does not
    /// have.
    fn may_be_set(&self, home: &Home) -> bool {
        const OTHERS: [&[u8]; 12] = [
            // The cgroup above does not bound these two: they are priorities of the host's disks.
            b"blkio.prio.class",
            b"io.prio.class",
            b"cgroup.freeze",
            b"cgroup.kill",
            b"cgroup.procs",
            b"cgroup.threads",
            // The kernel uses the highest one for all processors of the host.
            b"cpuset.sched_relax_domain_level",
            b"freezer.state",
            // The cgroup above does not bound these two: they are what the host's firewall sees.
            b"net_cls.classid",
            b"net_prio.ifpriomap",
            b"release_agent",
            b"tasks",
        ];
        const LONGEST: usize = 255;
        let is_plain = !self.name.iter().any(|byte| matches!(byte, 0 | b'/'))
            && !matches!(self.name.as_slice(), b"" | b"." | b"..")
            && self.name.len() <= LONGEST;
        let controller = self.name.split(|byte| *byte == b'.').next().unwrap_or_default();
        let is_there = home.below.as_ref().is_none_or(|below| {
            controller == b"cgroup" || below.iter().any(|it| it.as_bytes() == controller)
        });
        is_plain && is_there && !OTHERS.contains(&self.name.as_slice())
    }
}

/// Whether these are the controllers of a hierarchy, in any order.
fn is_same<'c>(controllers: impl Iterator<Item = &'c [u8]>, home: &Home) -> bool {
    let mut names: Vec<&[u8]> = controllers.collect();
    let mut wanted: Vec<&[u8]> = home.controllers.split(',').map(str::as_bytes).collect();
    names.sort_unstable();
    wanted.sort_unstable();
    names == wanted
}

/// CRIU writes some paths with a `/` at their beginning, and others without.
fn absolute(path: &[u8]) -> PathBuf {
    Path::new("/").join(std::ffi::OsStr::from_bytes(path)).components().collect()
}

fn joined(home: &Path, below: Option<&Path>) -> Result<PathBuf> {
    /// CRIU has room for `PATH_MAX` bytes, in which it writes more than this path.
    const LONGEST: usize = 3000;
    let path = below.filter(|below| *below != Path::new(""));
    let path = path.map_or_else(|| home.to_owned(), |below| home.join(below));
    ensure!(path.as_os_str().len() <= LONGEST, "the path of a cgroup is too long");
    Ok(path)
}

fn written(write: impl FnOnce(&mut CodedOutputStream<'_>) -> Result<()>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    Ok(bytes)
}

/// `cg_set_entry`.
fn set(message: &[u8]) -> Result<Set> {
    let mut set = Set::default();
    each(message, &mut |field, value| {
        match field {
            1 => set.id = value.u32()?,
            2 => {
                ensure!(set.members.len() < MOST_HIERARCHIES, "it has too many hierarchies");
                set.members.push(member(value.item()?)?);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(set)
}

/// `cg_member_entry`.
fn member(message: &[u8]) -> Result<Member> {
    let mut member = Member::default();
    let text = |value: &Value<'_>| -> Result<Vec<u8>> {
        let text = value.bytes()?;
        ensure!(text.len() < LONGEST_PATH, "the path of a cgroup is too long");
        Ok(text.to_owned())
    };
    each(message, &mut |field, value| {
        match field {
            1 => member.controllers = text(value)?,
            2 => member.path = text(value)?,
            3 => member.prefix = Some(usize::try_from(value.u32()?)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(member)
}

/// `cg_controller_entry`.
fn hierarchy(message: &[u8], room: &mut Room) -> Result<Hierarchy> {
    let mut hierarchy = Hierarchy::default();
    each(message, &mut |field, value| {
        match field {
            1 => {
                let there = hierarchy.controllers.len();
                ensure!(there < MOST_HIERARCHIES, "it has too many controllers");
                hierarchy.controllers.push(value.item()?.to_owned());
            }
            2 => directory(value.item()?, b"", &mut hierarchy.made, 0, room)?,
            3 => hierarchy.is_threaded = value.u32()? != 0,
            _ => {}
        }
        Ok(())
    })?;
    Ok(hierarchy)
}

/// `cgroup_dir_entry`, and the entries below it.
fn directory(
    message: &[u8],
    above: &[u8],
    all: &mut Vec<Made>,
    depth: usize,
    room: &mut Room,
) -> Result<()> {
    ensure!(depth < DEEPEST, "its cgroups are too deep");
    ensure!(all.len() < MOST_CGROUPS, "it has too many cgroups");
    let (mut made, mut name) = (Made::default(), Vec::new());
    let mut children = Vec::new();
    each(message, &mut |field, value| {
        match field {
            1 => name = value.bytes()?.to_owned(),
            2 => {
                ensure!(children.len() < MOST_CGROUPS, "it has too many cgroups");
                children.push(value.item()?);
            }
            3 => {
                take(&mut room.properties, 1, "it has too many values for cgroups")?;
                made.properties.push(property(value.item()?)?);
            }
            _ => {}
        }
        Ok(())
    })?;
    made.path = if above.is_empty() { name } else { [above, b"/", &name].concat() };
    ensure!(made.path.len() < LONGEST_PATH, "the path of a cgroup is too long");
    take(&mut room.paths, made.path.len(), "the paths of its cgroups are too long")?;
    let path = made.path.clone();
    all.push(made);
    children.into_iter().try_for_each(|child| directory(child, &path, all, depth + 1, room))
}

/// `cgroup_prop_entry`.
fn property(message: &[u8]) -> Result<Property> {
    let mut property = Property::default();
    each(message, &mut |field, value| {
        match field {
            1 => property.name = value.bytes()?.to_owned(),
            2 => property.value = value.bytes()?.to_owned(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(property)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
        written(|out| Ok(out.write_bytes(number, bytes)?)).expect("written")
    }

    fn number(number: u32, value: u32) -> Vec<u8> {
        written(|out| Ok(out.write_uint32(number, value)?)).expect("written")
    }

    fn image(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short").to_le_bytes();
        [&MAGIC[..], &length, message].concat()
    }

    /// A process in this cgroup of these controllers.
    fn process(id: u32, controllers: &[u8], path: &[u8], prefix: Option<u32>) -> Vec<u8> {
        let prefix = prefix.map(|prefix| number(3, prefix)).unwrap_or_default();
        let member = [field(1, controllers), field(2, path), prefix].concat();
        field(1, &[number(1, id), field(2, &member)].concat())
    }

    fn directory(path: &[u8], inside: &[Vec<u8>]) -> Vec<u8> {
        field(2, &[field(1, path), inside.concat()].concat())
    }

    fn limit(name: &[u8], value: &[u8]) -> Vec<u8> {
        let given = [number(1, 0), number(2, 99), number(3, 99)].concat();
        field(3, &[field(1, name), field(2, value), field(3, &given)].concat())
    }

    fn made(controllers: &[&[u8]], directories: &[Vec<u8>]) -> Vec<u8> {
        let names: Vec<Vec<u8>> = controllers.iter().map(|name| field(1, name)).collect();
        field(2, &[names.concat(), directories.concat(), number(3, 1)].concat())
    }

    /// The rewritten image for `pids` at `/new`.
    fn rewritten(message: &[Vec<u8>], has_namespace: bool) -> Image {
        let home = |controllers: &str, below: Option<Vec<String>>| Home {
            controllers: controllers.to_owned(),
            path: "/new".into(),
            below,
        };
        let homes = [home("pids", None), home("", Some(vec!["memory".to_owned()]))];
        let place = Place { homes: &homes, has_namespace, owner: (7, 7) };
        let old = Image::parse(&image(&message.concat())).expect("it is an image");
        Image::parse(&old.written_for(&place).expect("written")).expect("an image again")
    }

    /// The paths of processes in `pids`, and of the cgroups made there.
    fn of_pids(image: &Image) -> (Vec<String>, Vec<String>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let members = image.sets.iter().map(|set| &set.members[0]);
        let members = members.map(|member| text(&member.path)).collect();
        (members, image.hierarchies[0].made.iter().map(|made| text(&made.path)).collect())
    }

    #[test]
    fn processes_are_where_they_were_below_the_container() {
        let pids: &[u8] = b"pids";
        for (old, members, directories) in [
            // As with systemd, below the root of a cgroup namespace.
            (
                vec![
                    process(1, pids, b"/a/b", Some(2)),
                    process(2, pids, b"/a/c/d", Some(2)),
                    // CRIU's own process.
                    process(3, pids, b"/elsewhere", None),
                    made(
                        &[pids],
                        &[directory(b"a/b", &[]), directory(b"a/c", &[directory(b"d", &[])])],
                    ),
                ],
                vec!["/new/b", "/new/c/d", "/new"],
                vec!["new/b", "new/c", "new/c/d"],
            ),
            // Without a cgroup namespace.
            (
                vec![
                    process(1, pids, b"/a", None),
                    process(2, pids, b"/a/b", None),
                    made(&[pids], &[directory(b"a", &[directory(b"b", &[])])]),
                ],
                vec!["/new", "/new/b"],
                vec!["new/b"],
            ),
            // One name begins with the other.
            (
                vec![
                    process(1, pids, b"/new/b", Some(4)),
                    process(2, pids, b"/new/bc", Some(4)),
                    made(&[pids], &[directory(b"new/b", &[]), directory(b"new/bc", &[])]),
                ],
                vec!["/new/b", "/new/bc"],
                vec!["new/b", "new/bc"],
            ),
        ] {
            let written = rewritten(&old, false);
            let expected = |all: Vec<&str>| all.into_iter().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(of_pids(&written), (expected(members), expected(directories)));
            assert_eq!(written.sets.iter().map(|set| set.id).max(), Some(old.len() as u32 - 1));
        }
    }

    #[test]
    fn nothing_leads_out_of_the_container() {
        let pids: &[u8] = b"pids";
        let hostile: [&[u8]; 9] =
            [b"/a/../b", b"/a/b/../../c", b"/..", b"/", b"", b"/ab", b"/a/\0/b", b"/z", b"../a"];
        for path in hostile {
            for prefix in [None, Some(0), Some(1), Some(2), Some(3), Some(200)] {
                let old = [
                    process(1, pids, path, prefix),
                    process(2, pids, b"/a/b", None),
                    made(
                        &[pids],
                        &[directory(path, &[]), directory(b"a/b", &[directory(path, &[])])],
                    ),
                ];
                let (members, directories) = of_pids(&rewritten(&old, true));
                for path in members
                    .iter()
                    .map(|path| &path[1..])
                    .chain(directories.iter().map(|path| &**path))
                {
                    let parts: Vec<&str> = path.split('/').collect();
                    assert_eq!(parts[0], "new", "{path}");
                    assert!(parts.iter().all(|part| !matches!(*part, "" | "." | "..")), "{path}");
                }
            }
        }
    }

    #[test]
    fn controllers_and_prefixes_are_the_hosts() {
        let names: [&[&[u8]]; 5] =
            [&[b"../e", b"pids"], &[b"pids", b""], &[b"x\0pids"], &[b"pids", b"pids"], &[b"/tmp"]];
        for names in names {
            let joined = names.join(&b","[..]);
            let old =
                [process(1, &joined, b"/a/b", Some(2)), made(names, &[directory(b"a/b", &[])])];
            let written = rewritten(&old, true);
            let of: Vec<_> = written.hierarchies.iter().map(|it| it.controllers.clone()).collect();
            assert_eq!(of, [vec![b"pids".to_vec()], vec![b"".to_vec()]]);
            assert!(written.hierarchies.iter().all(|it| it.made.is_empty() && !it.is_threaded));
            let members = &written.sets[0].members;
            let of: Vec<&[u8]> = members.iter().map(|it| it.controllers.as_slice()).collect();
            assert_eq!(of, [&b"pids"[..], b""]);
            assert!(members.iter().all(|it| it.path == b"/new" && it.prefix == Some(4)));
        }
    }

    #[test]
    fn limits_are_those_of_cgroups_below() {
        let all = [
            limit(b"memory.max", b"5"),
            limit(b"pids.max", b"6"),
            limit(b"cgroup.type", b"threaded"),
            limit(b"cgroup.procs", b"1"),
            limit(b"freezer.state", b"FROZEN"),
            limit(b"../memory.max", b"7"),
            limit(b"..", b"8"),
        ];
        let below = [directory(b"b", &all)];
        let old = [made(&[b""], &[directory(b"a", &[all.concat(), below.concat()])])];
        let written = rewritten(&old, false);
        let made = &written.hierarchies[1].made;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(made.iter().map(|made| text(&made.path)).collect::<Vec<_>>(), ["new/b"]);
        // The container's cgroup has no controller `pids` for the cgroups below.
        let names: Vec<_> = made[0].properties.iter().map(|it| text(&it.name)).collect();
        assert_eq!(names, ["memory.max", "cgroup.type"]);
    }

    #[test]
    fn no_hierarchy_sets_what_its_parent_does_not_limit() {
        let all = [
            limit(b"pids.max", b"6"),
            limit(b"net_cls.classid", b"1"),
            limit(b"net_prio.ifpriomap", b"eth0 5"),
            limit(b"blkio.prio.class", b"promote-to-rt"),
            limit(b"cpuset.sched_relax_domain_level", b"5"),
            limit(b"freezer.state", b"FROZEN"),
            limit(b"tasks", b"1"),
        ];
        let old = [made(&[b"pids"], &[directory(b"a", &[directory(b"b", &all)])])];
        let properties = &rewritten(&old, false).hierarchies[0].made[0].properties;
        let names: Vec<&[u8]> = properties.iter().map(|it| it.name.as_slice()).collect();
        assert_eq!(names, [b"pids.max"]);
    }

    #[test]
    fn an_image_that_is_too_large_is_an_error() {
        let many = |one: &[u8], count: usize| image(&one.repeat(count));
        let set = process(1, b"pids", b"/a", None);
        let members =
            field(1, &field(2, &[field(1, b"pids"), field(2, b"/a")].concat()).repeat(65));
        let in_one = |one: &[u8], count| image(&made(&[b"pids"], &[one.repeat(count)]));
        let long = directory(&[b'a'; 4095], &[directory(b"b", &[])]);
        let repeated = directory(&[b'a'; 4090], &[directory(b"b", &[]).repeat(8400)]);
        let values = directory(b"a", &[field(3, b"").repeat((1 << 20) + 1)]);
        let deep = |levels: u32| (0..levels).fold(Vec::new(), |inner, _| directory(b"a", &[inner]));
        for (image, why) in [
            (many(&set, 4097), "sets"),
            (image(&members), "hierarchies"),
            (many(&made(&[b"pids"], &[]), 65), "hierarchies"),
            (in_one(&directory(b"a", &[]), 16385), "too many cgroups"),
            (in_one(&long, 1), "too long"),
            (in_one(&deep(129), 1), "too deep"),
            (in_one(&repeated, 1), "the paths of its cgroups are too long"),
            (
                in_one(&directory(b"a", &[directory(b"b", &[]).repeat(16385)]), 1),
                "too many cgroups",
            ),
            (image(&made(&[&b"a"[..]; 65], &[])), "too many controllers"),
            (in_one(&values, 1), "too many values"),
        ] {
            let error = Image::parse(&image).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        for image in [many(&set, 4096), in_one(&directory(b"a", &[]), 16384), in_one(&deep(128), 1)]
        {
            Image::parse(&image).expect("it is not too large");
        }
    }

    #[test]
    fn an_owner_is_the_hosts() {
        let old =
            [made(&[b"pids"], &[directory(b"a", &[directory(b"b", &[limit(b"pids.max", b"1")])])])];
        let home = Home { controllers: "pids".into(), path: "/new".into(), below: None };
        let place = Place { homes: &[home], has_namespace: false, owner: (7, 7) };
        let image = Image::parse(&image(&old.concat())).expect("it is an image");
        let written = image.written_for(&place).expect("written");
        for mode in [0o755, 0o644] {
            let given = [number(1, mode), number(2, 7), number(3, 7)].concat();
            assert!(written.windows(given.len()).any(|part| part == given), "{mode:o}");
        }
        assert!(!written.contains(&99));
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        let good = image(&process(1, b"pids", b"/a", None));
        Image::parse(&good[..good.len() - 1]).expect_err("it is cut short");
        Image::parse(&good[1..]).expect_err("it is another image");
        Image::parse(&image(&[2 << 3 | 2, 9, 1])).expect_err("it is damaged");
    }
}
