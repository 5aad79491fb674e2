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

/// Refuses images by which CRIU would leave the cgroups that it makes.
pub(in crate::container) fn check_image(images: BorrowedFd<'_>) -> Result<()> {
    match criu::read_in(images, IMAGE) {
        // Written without cgroups: then CRIU does nothing with them.
        Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => Ok(()),
        read => read.and_then(|image| check(&image)),
    }
}

fn check(image: &[u8]) -> Result<()> {
    let rest = image.strip_prefix(&MAGIC).context("it is not an image of cgroups")?;
    let (length, rest) = rest.split_first_chunk().context("it is too short")?;
    let length = usize::try_from(u32::from_le_bytes(*length))?;
    let message = rest.get(..length).context("it is too short")?;
    let mut members = Vec::new();
    each(message, &mut |field| match field {
        (1, Value::Bytes(set)) => each(set, &mut |field| {
            if let (2, Value::Bytes(it)) = field {
                members.push(member(it)?);
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    each(message, &mut |field| match field {
        (2, Value::Bytes(controller)) => check_controller(controller, &members),
        _ => Ok(()),
    })
}

/// The cgroup of processes in one hierarchy, by its controllers.
struct Member<'m> {
    controllers: &'m [u8],
    path: &'m Path,
}

/// `cg_member_entry`.
fn member(message: &[u8]) -> Result<Member<'_>> {
    let (mut controllers, mut path, mut prefix) = (None, None, None);
    each(message, &mut |field| match field {
        (1, Value::Bytes(text)) => once(&mut controllers, text),
        (2, Value::Bytes(text)) => once(&mut path, text),
        (3, Value::Number(length)) => once(&mut prefix, length),
        _ => Ok(()),
    })?;
    let (controllers, text) = controllers.zip(path).context("a cgroup has no path")?;
    // As much of the path is a namespace's root: CRIU cuts it off there.
    let prefix = usize::try_from(prefix.unwrap_or(0))?;
    let ends = prefix == 0 || prefix == text.len() || text.get(prefix) == Some(&b'/');
    ensure!(text.first() == Some(&b'/') && ends, "the cgroup {} is not a path", show(text));
    check_path(text)?;
    Ok(Member { controllers, path: Path::new(OsStr::from_bytes(text)) })
}

/// `cg_controller_entry`: what is made in a hierarchy. CRIU makes it below the restored container's
/// cgroup if it is above the cgroup of a process, and where it was otherwise.
fn check_controller(message: &[u8], members: &[Member<'_>]) -> Result<()> {
    let (mut names, mut directory) = (Vec::new(), None);
    each(message, &mut |field| match field {
        (1, Value::Bytes(name)) => {
            names.push(name);
            Ok(())
        }
        (2, Value::Bytes(it)) => once(&mut directory, it),
        _ => Ok(()),
    })?;
    let Some(directory) = directory else { return Ok(()) };
    let name = check_directory(directory, 0)?;
    let top = Path::new("/").join(OsStr::from_bytes(name));
    let is_of_it = |member: &&Member<'_>| {
        let of: Vec<&[u8]> = member.controllers.split(|byte| *byte == b',').collect();
        names.iter().all(|name| of.contains(name))
    };
    let mut of_it = members.iter().filter(is_of_it).peekable();
    ensure!(
        of_it.peek().is_some() && of_it.all(|member| member.path.starts_with(&top)),
        "the cgroup {} is not the one that its processes are in",
        show(name)
    );
    Ok(())
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
        let member = |path: &[u8], prefix: u8| {
            field(1, &field(2, &[field(1, b"pids"), field(2, path), vec![3 << 3, prefix]].concat()))
        };
        let controller = |name: &[u8], directory: &[u8]| {
            [member(b"/a/b", 2), field(2, &[field(1, name), field(2, directory)].concat())].concat()
        };
        let directory = |directory: &[u8]| controller(b"pids", directory);
        let below = |name: &[u8]| directory(&[field(1, b"a"), field(2, &field(1, name))].concat());
        let file = |name: &[u8]| directory(&[field(1, b"a"), field(3, &field(1, name))].concat());
        for good in [
            member(b"/a/b", 4),
            member(b"/a/..b", 2),
            below(b"b"),
            below(b"..b"),
            file(b"pids.max"),
            directory(&field(1, b"a/b")),
            directory(&field(1, b"")),
            Vec::new(),
        ] {
            check(&image(&good)).expect("it is good");
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
            directory(&field(1, b"b")),
            controller(b"ids", &field(1, b"a")),
            file(b"../a"),
            file(b"a/b"),
            file(b".."),
            vec![2 << 3 | 2, 9, 1],
        ] {
            check(&image(&bad)).expect_err("it is not");
        }
        let good = image(&member(b"/a", 0));
        check(&good[..good.len() - 1]).expect_err("it is cut short");
        check(&good[1..]).expect_err("it is another image");
    }
}
