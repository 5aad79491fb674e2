//! Which cgroups restored processes are in, and what the images make CRIU do in the host's
//! hierarchies.
//!
//! CRIU takes from the images, as root of the host, in which cgroups processes are, which to make,
//! and what to write to the files in them. It joins these names to a path, so that one with `..` in
//! it is any file of the host's, and it moves a process to any cgroup: to one without device rules
//! or limits. So the names are looked at before CRIU is, and the cgroup of each process before one
//! runs. Runs in the caller's process.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use protobuf::CodedInputStream;
use protobuf::rt::WireType;
use rustix::io::Errno;

use crate::container::checkpoint::confinement::{self, Status};
use crate::container::checkpoint::criu;
use crate::linux::cgroups::{Cgroup, Manager};

/// The image, and what it begins with (`images/cgroup.proto`, `magic.h`): then comes its length.
pub(in crate::container) const IMAGE: &str = "cgroup.img";
const MAGIC: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x30, 0x33, 0x38, 0x59];

/// What CRIU does in cgroups, by the images.
#[derive(Debug, Default)]
pub(in crate::container) struct Image {
    members: Vec<Member>,
    made: Vec<Made>,
}

impl Image {
    /// Reads the image. Fails for a name that leads out of where it is joined to.
    pub(in crate::container) fn read(images: BorrowedFd<'_>) -> Result<Image> {
        match criu::read_in(images, IMAGE) {
            // Written without cgroups: then CRIU does nothing with them.
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => Ok(Image::default()),
            read => read.and_then(|image| Image::parse(&image)),
        }
    }

    fn parse(image: &[u8]) -> Result<Image> {
        let rest = image.strip_prefix(&MAGIC).context("it is not an image of cgroups")?;
        let (length, rest) = rest.split_first_chunk().context("it is too short")?;
        let length = usize::try_from(u32::from_le_bytes(*length))?;
        let message = rest.get(..length).context("it is too short")?;
        let Image { mut members, mut made } = Image::default();
        each(message, &mut |field| {
            match field {
                (1, Value::Bytes(set)) => each(set, &mut |field| {
                    if let (2, Value::Bytes(it)) = field {
                        members.push(member(it)?);
                    }
                    Ok(())
                })?,
                (2, Value::Bytes(controller)) => made.push(made_by(controller)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(Image { members, made })
    }

    /// Fails where CRIU would make a cgroup that is neither one of `roots`, the [`table`] of CRIU's
    /// process, nor below it. Where a process is moved to is not asked here: the images also have
    /// cgroups that no process is in, as that of the CRIU which has written them.
    ///
    /// To replace the old root by the new one, CRIU goes through what it makes, and for each through
    /// the processes whose path begins with that name, letter by letter, whether or not a name ends
    /// there. What it has replaced once, it may replace again. So this does the same, and looks at
    /// each result.
    pub(in crate::container) fn refuse_leaving(&self, roots: &[(String, PathBuf)]) -> Result<()> {
        let mut members = self.members.clone();
        for made in &self.made {
            let root = made.root(roots)?;
            let is_of_it = |member: &&mut Member| made.is_of(member);
            for name in &made.cgroups {
                let wrong = || format!("{} is not the one that its processes are in", show(name));
                let mut is_replaced = false;
                for member in members.iter_mut().filter(is_of_it) {
                    if !member.path[1..].starts_with(name) {
                        continue;
                    }
                    let (path, cgroup) = match member.prefix {
                        0 => (member.path.get(name.len() + 1..), Some(&b""[..])),
                        // Beyond the end of a name, CRIU would take what lies behind it in memory.
                        prefix => (member.path.get(prefix..), name.get(prefix - 1..)),
                    };
                    let both =
                        path.zip(cgroup).filter(|(path, cgroup)| is_rest(path) && is_rest(cgroup));
                    let (path, _) = both.with_context(|| format!("the cgroup {}", wrong()))?;
                    member.path = [root, path].concat();
                    member.prefix = if member.prefix == 0 { 0 } else { root.len() };
                    is_replaced = true;
                }
                ensure!(is_replaced, "the cgroup {}", wrong());
            }
        }
        Ok(())
    }
}

/// Whether this can follow the path of a directory.
fn is_rest(path: &[u8]) -> bool {
    path.is_empty() || path.starts_with(b"/")
}

/// The cgroup of processes in one hierarchy, by its controllers.
#[derive(Clone, Debug)]
struct Member {
    controllers: Vec<u8>,
    path: Vec<u8>,
    /// As much of the path is the root of a cgroup namespace. 0 without one.
    prefix: usize,
}

/// The cgroups that are made in one hierarchy, by the names that CRIU joins to its root.
#[derive(Debug)]
struct Made {
    controllers: Vec<Vec<u8>>,
    cgroups: Vec<Vec<u8>>,
}

impl Made {
    /// Whether CRIU takes a process's cgroup for one of this hierarchy: it compares the ends of names.
    /// That of cgroup v2 is empty.
    fn is_of(&self, member: &Member) -> bool {
        let names: Vec<&[u8]> = member.controllers.split(|byte| *byte == b',').collect();
        let is_same = |name: &[u8], it: &[u8]| name == it || !it.is_empty() && name.ends_with(it);
        self.controllers.iter().all(|it| names.iter().any(|name| is_same(name, it)))
    }

    /// What CRIU is told to take for the old root.
    fn root<'r>(&self, roots: &'r [(String, PathBuf)]) -> Result<&'r [u8]> {
        let shown = || show(&self.controllers.join(&b','));
        let has = |names: &str| {
            names.split(',').any(|name| self.controllers.iter().any(|it| it == name.as_bytes()))
        };
        let mut roots = roots.iter().filter(|(names, _)| has(names));
        let root = roots.next().map(|(_, root)| root.as_os_str().as_bytes());
        root.filter(|root| *root != b"/" && roots.next().is_none())
            .with_context(|| format!("the container has no cgroup of its own of {}", shown()))
    }
}

/// `cg_member_entry`.
fn member(message: &[u8]) -> Result<Member> {
    let (mut controllers, mut path, mut prefix) = (None, None, None);
    each(message, &mut |field| match field {
        (1, Value::Bytes(text)) => once(&mut controllers, text),
        (2, Value::Bytes(text)) => once(&mut path, text),
        (3, Value::Number(length)) => once(&mut prefix, length),
        _ => Ok(()),
    })?;
    let (controllers, path) = controllers.zip(path).context("a cgroup has no path")?;
    let prefix = usize::try_from(prefix.unwrap_or(0))?;
    let ends = prefix == 0 || path.get(prefix..).is_some_and(is_rest);
    ensure!(path.first() == Some(&b'/') && ends, "the cgroup {} is not a path", show(path));
    check_path(path)?;
    Ok(Member { controllers: controllers.to_owned(), path: path.to_owned(), prefix })
}

/// `cg_controller_entry`.
fn made_by(message: &[u8]) -> Result<Made> {
    let mut made = Made { controllers: Vec::new(), cgroups: Vec::new() };
    each(message, &mut |field| {
        match field {
            (1, Value::Bytes(name)) => made.controllers.push(name.to_owned()),
            (2, Value::Bytes(directory)) => {
                made.cgroups.push(check_directory(directory, 0)?.to_owned());
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(made)
}

/// What is there twice could be read in two ways.
fn once<T>(place: &mut Option<T>, value: T) -> Result<()> {
    ensure!(place.replace(value).is_none(), "a field is there twice");
    Ok(())
}

/// `cgroup_dir_entry`: a cgroup that is made, and those below it. Returns its name.
fn check_directory(directory: &[u8], depth: u32) -> Result<&[u8]> {
    /// More than the kernel makes in each other: CRIU's paths have 4096 bytes.
    const DEEPEST: u32 = 1024;
    ensure!(depth < DEEPEST, "cgroups are {DEEPEST} deep in each other");
    let mut name = None;
    each(directory, &mut |field| match field {
        (1, Value::Bytes(text)) => {
            check_path(text)?;
            once(&mut name, text)
        }
        (2, Value::Bytes(below)) => check_directory(below, depth + 1).map(drop),
        // `cgroup_prop_entry`: a file, and what is written to it.
        (3, Value::Bytes(property)) => each(property, &mut |field| match field {
            (1, Value::Bytes(name)) => check_file(name),
            _ => Ok(()),
        }),
        _ => Ok(()),
    })?;
    name.context("a cgroup has no name")
}

fn check_path(path: &[u8]) -> Result<()> {
    let path = Path::new(OsStr::from_bytes(path));
    ensure!(
        !path.components().any(|part| part == Component::ParentDir)
            && !path.as_os_str().as_bytes().contains(&0),
        "the cgroup {} leads out of where it is made",
        show(path.as_os_str().as_bytes())
    );
    Ok(())
}

fn check_file(name: &[u8]) -> Result<()> {
    let is_plain = !name.contains(&b'/') && !matches!(name, b"" | b"." | b"..");
    ensure!(is_plain, "{} is not a file of a cgroup", show(name));
    Ok(())
}

fn show(name: &[u8]) -> String {
    format!("`{}`", String::from_utf8_lossy(name).escape_debug())
}

enum Value<'m> {
    Bytes(&'m [u8]),
    Number(u64),
}

/// Calls `look` for each field of a message, by its number.
fn each<'m>(message: &'m [u8], look: &mut dyn FnMut((u32, Value<'m>)) -> Result<()>) -> Result<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        let (number, kind) = (tag >> 3, WireType::new(tag & 7).context("it is damaged")?);
        match kind {
            WireType::LengthDelimited => {
                let length = stream.read_raw_varint32()?;
                let start = usize::try_from(stream.pos())?;
                stream.skip_raw_bytes(length)?;
                look((number, Value::Bytes(&message[start..usize::try_from(stream.pos())?])))?;
            }
            WireType::Varint => look((number, Value::Number(stream.read_raw_varint64()?)))?,
            kind => stream.skip_field(kind)?,
        }
    }
    Ok(())
}

/// The cgroup of a process or of a thread in each hierarchy, by its controllers, as `/proc` has it
/// (`cgroups(7)`): `ID:CONTROLLERS:PATH`.
pub(in crate::container) fn table(process: &Path) -> Result<Vec<(String, PathBuf)>> {
    let path = process.join("cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
    let mut table = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            bail!("`{line}` is not a cgroup")
        };
        table.push((controllers.to_owned(), path.into()));
    }
    Ok(table)
}

/// The directories of a container's cgroup, in which it may have made others.
pub(in crate::container) fn own(cgroup: &Cgroup) -> &[PathBuf] {
    if cgroup.manager == Manager::Disabled { &[] } else { cgroup.of_init() }
}

/// Fails for a stopped process, or one that descends from it, in another cgroup than a process that
/// was put where they belong, whose table is `home`, unless that is below one of a container's
/// `own`.
pub(in crate::container) fn refuse_others(
    first: i32,
    own: &[PathBuf],
    home: &[(String, PathBuf)],
) -> Result<()> {
    // What is below the container's cgroup is its own; of another hierarchy it has nothing.
    let is_own = |home: &Path| {
        home.strip_prefix("/").is_ok_and(|below| {
            below != Path::new("") && own.iter().any(|path| path.ends_with(below))
        })
    };
    for pid in confinement::tree(first)? {
        for thread in confinement::threads(pid)? {
            if Status::read(&thread)?.has_ended()? {
                continue;
            }
            for (controllers, path) in table(&thread)? {
                let home = home.iter().find(|(name, _)| *name == controllers);
                let is_inside = home.is_some_and(|(_, home)| {
                    path == *home
                        || is_own(home)
                            && path.starts_with(home)
                            && !path.components().any(|part| part == Component::ParentDir)
                });
                ensure!(
                    is_inside,
                    "process {pid}: it is in the cgroup `{}` ({controllers}), which is not the container's",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).expect("short")], bytes].concat()
    }

    fn image(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short").to_le_bytes();
        [&MAGIC[..], &length, message].concat()
    }

    #[test]
    fn processes_are_at_home_or_below() {
        // Threads of this process's other tests come and go.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = i32::try_from(child.id()).expect("a number");
        let home = table(&Path::new("/proc").join(pid.to_string())).expect("it is there");
        let at_home = refuse_others(pid, &[], &home);
        let mut elsewhere = home.clone();
        match home.iter().position(|(_, path)| path.components().count() > 1) {
            Some(number) => drop(elsewhere[number].1.pop()),
            None => elsewhere.iter_mut().for_each(|(_, path)| path.push("other")),
        }
        let above = refuse_others(pid, &[], &elsewhere);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        at_home.expect("it is there");
        above.expect_err("that is not its own");
    }

    #[test]
    fn names_stay_where_cgroups_are_made() {
        let roots = [("pids".to_owned(), PathBuf::from("/new")), ("cpu".to_owned(), "/".into())];
        let read = |message: &[u8]| Image::parse(&image(message))?.refuse_leaving(&roots);
        let member = |path: &[u8], prefix: u8| {
            field(1, &field(2, &[field(1, b"pids"), field(2, path), vec![3 << 3, prefix]].concat()))
        };
        let controller = |name: &[u8], directory: &[u8]| {
            [member(b"/a/b", 2), field(2, &[field(1, name), field(2, directory)].concat())].concat()
        };
        let directory = |directory: &[u8]| controller(b"pids", directory);
        let below = |name: &[u8]| directory(&[field(1, b"a"), field(2, &field(1, name))].concat());
        let file = |name: &[u8]| directory(&[field(1, b"a"), field(3, &field(1, name))].concat());
        let two = |first: &[u8], second: &[u8]| {
            field(
                2,
                &[field(1, b"pids"), field(2, &field(1, first)), field(2, &field(1, second))]
                    .concat(),
            )
        };
        for good in [
            member(b"/a/b", 4),
            member(b"/a/..b", 2),
            below(b"b"),
            below(b"..b"),
            file(b"pids.max"),
            // Of processes in two cgroups, of which neither is in the other.
            [member(b"/a/b", 2), member(b"/a/c", 2), two(b"a/b", b"a/c")].concat(),
            [member(b"/new/b", 4), member(b"/new/c", 4), two(b"new/b", b"new/c")].concat(),
            // No process is in the second.
            [directory(&field(1, b"a")), member(b"/d", 0)].concat(),
            Vec::new(),
        ] {
            read(&good).expect("it is good");
        }
        for bad in [
            member(b"/a/../b", 0),
            member(b"a", 0),
            member(b"/a", 3),
            member(b"/a", 1),
            member(b"/a\0b", 0),
            below(b".."),
            below(b"x/../../y"),
            directory(&field(1, b"../a")),
            directory(&[field(1, b"../a"), field(1, b"a")].concat()),
            // A name begins with it, and a path does not.
            [member(b"/ab", 0), field(2, &[field(1, b"pids"), field(2, &field(1, b"a"))].concat())]
                .concat(),
            // It ends before the root of the namespace does.
            directory(&field(1, b"")),
            // What has replaced the first begins with the second.
            [member(b"/a/x", 0), member(b"/ne", 0), two(b"a", b"ne")].concat(),
            // The second is left where it was.
            [member(b"/a/b", 2), two(b"a/b", b"d")].concat(),
            directory(&field(1, b"b")),
            controller(b"ids", &field(1, b"a")),
            // A hierarchy that the container is not in.
            [member(b"/a", 0), controller(b"cpu", &field(1, b"a"))].concat(),
            file(b"../a"),
            file(b"a/b"),
            file(b".."),
            vec![2 << 3 | 2, 9, 1],
        ] {
            read(&bad).expect_err("it is not");
        }
        let good = image(&member(b"/a", 0));
        Image::parse(&good[..good.len() - 1]).expect_err("it is cut short");
        Image::parse(&good[1..]).expect_err("it is another image");
    }
}
