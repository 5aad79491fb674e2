//! The kernel's table of the mounts that a process sees (`proc_pid_mountinfo(5)`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};

/// The `MOUNT_ATTR_*` that restrict a mount, with their names in the table.
const RESTRICTIONS: [(&str, u64); 5] = [
    ("ro", libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// All restrictions.
pub(crate) const ALL_RESTRICTIONS: u64 = {
    let [(_, a), (_, b), (_, c), (_, d), (_, e)] = RESTRICTIONS;
    a | b | c | d | e
};

/// One line of the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: String,
    /// The id of the mount that it is attached on.
    pub(crate) parent: String,
    /// `MAJOR:MINOR` of the filesystem. All mounts of one filesystem have the same.
    pub(crate) device: String,
    /// The directory of the filesystem that is mounted.
    pub(crate) root: PathBuf,
    /// The mount point, seen from that process's root.
    pub(crate) point: PathBuf,
    /// Whether this mount allows writing.
    pub(crate) writable: bool,
    /// All restrictions of this mount, read-only included: [`RESTRICTIONS`].
    pub(crate) restrictions: u64,
    /// The type of the filesystem.
    pub(crate) kind: String,
    /// The options of the filesystem as a whole, separated by commas.
    pub(crate) data: String,
}

/// The mounts that this process sees.
pub(crate) fn own() -> Result<Vec<Entry>> {
    read(Path::new("/proc/self/mountinfo"))
}

/// The mounts that another process sees.
pub(crate) fn of(pid: i32) -> Result<Vec<Entry>> {
    seen_by(Path::new(&format!("/proc/{pid}")))
}

/// The same, by the directory of a process or of a thread in `/proc`.
pub(crate) fn seen_by(process: &Path) -> Result<Vec<Entry>> {
    read(&process.join("mountinfo"))
}

/// The mounts that this process sees, read from an opened `/proc`. In the container, the path
/// `/proc` is the container's, and may lead to anything.
pub(crate) fn own_by(proc: BorrowedFd<'_>) -> Result<Vec<Entry>> {
    open(proc).and_then(all).context("read the table of mounts")
}

/// The mount with this id. A container can have as many mounts as `fs.mount-max` allows, so this
/// function holds only one line at a time.
pub(crate) fn own_one_by(proc: BorrowedFd<'_>, id: &str) -> Result<Option<Entry>> {
    let find = |file: File| {
        let (mut lines, mut line) = (BufReader::new(file), Vec::new());
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&line);
            if text.split(' ').next() == Some(id) {
                return Ok(parse(text.trim_end_matches('\n')));
            }
        }
    };
    open(proc).and_then(find).context("read the table of mounts")
}

fn open(proc: BorrowedFd<'_>) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(proc, "self/mountinfo", flags, Mode::empty())?.into())
}

fn read(path: &Path) -> Result<Vec<Entry>> {
    let file = File::open(path).map_err(anyhow::Error::from);
    file.and_then(all).with_context(|| format!("read `{}`", path.display()))
}

/// The limit of the table's size, in bytes: larger than any intended table.
const LONGEST: u64 = 64 << 20;

fn all(file: File) -> Result<Vec<Entry>> {
    let mut table = Vec::new();
    let length = file.take(LONGEST + 1).read_to_end(&mut table)?;
    ensure!(length as u64 <= LONGEST, "it has more than {LONGEST} bytes");
    Ok(entries(&table))
}

fn entries(table: &[u8]) -> Vec<Entry> {
    // A name from any container may hold any bytes. A name that is not UTF-8 cannot occur in a
    // configuration.
    String::from_utf8_lossy(table).lines().filter_map(parse).collect()
}

/// Returns None if the line does not have the format of the table.
fn parse(line: &str) -> Option<Entry> {
    // The fields before the hyphen vary in number.
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let restrictions = |options: &str| {
        let known = |option| RESTRICTIONS.iter().find(|(name, _)| *name == option);
        options.split(',').filter_map(known).fold(0, |all, (_, bit)| all | bit)
    };
    let (id, parent, device, root, point, options) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    // The type, the source, and the filesystem's own options.
    let mut after = after.split(' ');
    Some(Entry {
        id: id.to_owned(),
        parent: parent.to_owned(),
        device: device.to_owned(),
        root: unescape(root).into(),
        point: unescape(point).into(),
        writable: options.split(',').any(|option| option == "rw"),
        restrictions: restrictions(options),
        kind: after.next()?.to_owned(),
        data: unescape(after.nth(1).unwrap_or_default()),
    })
}

/// Replaces octal escapes, which the table uses for spaces and the like.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, character);
    }
    text
}

#[cfg(test)]
impl Entry {
    /// A `tmpfs`, for tests of code that searches a table.
    pub(crate) fn sample(id: &str, parent: &str, point: &str) -> Entry {
        Entry {
            id: id.to_owned(),
            parent: parent.to_owned(),
            device: "0:1".to_owned(),
            root: "/".into(),
            point: point.into(),
            writable: true,
            restrictions: 0,
            kind: "tmpfs".to_owned(),
            data: "rw".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue";
        let entry = parse(line).expect("a line of the table");
        assert_eq!((entry.id.as_str(), entry.parent.as_str()), ("36", "35"));
        assert_eq!(entry.device, "98:0");
        assert_eq!((entry.root, entry.point), ("/mnt1".into(), "/mnt 2".into()));
        assert_eq!((entry.kind.as_str(), entry.writable), ("ext3", true));
        assert_eq!(entry.data, "rw,errors=continue");
        assert_eq!(entry.restrictions, 0);
        let closed = parse(&line.replace("rw,noatime", "ro,nosuid,relatime,nosymfollow"));
        let wanted =
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOSYMFOLLOW;
        assert_eq!(closed.map(|entry| entry.restrictions), Some(wanted));
        assert_eq!(parse("36 35 98:0 /mnt1"), None);
    }
}
