//! The options of a mount in `config.json`: those of `mount(8)`, of the runtime specification
//! (`config.md`, "Linux mount options"), and crun's.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};

use crate::syscall::MountAttr;

/// The parsed options of one mount.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Options {
    /// `Some(true)` for `rbind`, `Some(false)` for `bind`.
    pub(crate) bind: Option<bool>,
    /// Attributes of the mount itself.
    pub(crate) attr: MountAttr,
    /// Attributes of the mount and all mounts below it: the `r…` options.
    pub(crate) recursive: MountAttr,
    /// `MS_SHARED` and so on, and whether the mounts below are meant too. This is a list, because
    /// each propagation has to be set by a call of its own.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Flags of the filesystem as a whole: `sync`, `dirsync`, `lazytime`.
    pub(crate) superblock: Vec<&'static str>,
    /// All other options: the filesystem's own.
    pub(crate) data: Vec<(String, Option<String>)>,
    /// Fill a new tmpfs with the files that the rootfs has in its place.
    pub(crate) copy_up: bool,
    /// `idmap`, or `ridmap` for the mounts below too, with the mappings that may follow.
    pub(crate) idmap: Option<IdMap>,
    /// Change the existing mount.
    pub(crate) remount: bool,
    /// If the source is a symbolic link, init copies the link to the destination, and does not
    /// mount it.
    pub(crate) copy_symlink: bool,
    /// If the source is a symbolic link, the link itself is mounted.
    pub(crate) source_no_follow: bool,
    /// If the destination is a symbolic link, the mount is attached on the link itself.
    pub(crate) destination_no_follow: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct IdMap {
    pub(crate) recursive: bool,
    /// crun's `uids=A-B-N#…;gids=…`.
    pub(crate) mappings: Option<String>,
}

/// Every option that is not the filesystem's own, for `features`.
pub(crate) const NAMES: &[&str] = &[
    "async",
    "atime",
    "bind",
    "copy-symlink",
    "defaults",
    "dest-nofollow",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "src-nofollow",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// `MOUNT_ATTR_NOSYMFOLLOW`, Linux 5.14, `<linux/mount.h>`.
const NOSYMFOLLOW: u64 = 0x0020_0000;

impl Options {
    pub(crate) fn is_read_only(&self) -> bool {
        self.attr.set & libc::MOUNT_ATTR_RDONLY != 0
    }

    pub(crate) fn parse(options: &[String]) -> Result<Options> {
        let mut parsed = Options::default();
        let (mut own, mut below) = (AccessTimes::default(), AccessTimes::default());
        for option in options {
            if own.add(option) || option.strip_prefix('r').is_some_and(|name| below.add(name)) {
                continue;
            }
            parsed.add(option)?;
        }
        if let Some(flag) = own.flag() {
            apply(&mut parsed.attr, (flag, libc::MOUNT_ATTR__ATIME));
        }
        if below.named {
            // `mount_setattr(2)` requires one of the three flags. The flag of relatime is 0.
            let flag = below.flag().unwrap_or(libc::MOUNT_ATTR_RELATIME);
            apply(&mut parsed.recursive, (flag, libc::MOUNT_ATTR__ATIME));
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        if let Some(set) = attribute(option) {
            apply(&mut self.attr, set);
            return Ok(());
        }
        if let Some(set) = option.strip_prefix('r').and_then(attribute) {
            apply(&mut self.recursive, set);
            return Ok(());
        }
        match option {
            // Defaults, and flags that kernels do not use any more.
            "defaults" | "async" | "loud" | "silent" | "mand" | "nomand" | "iversion"
            | "noiversion" | "rasync" | "rmand" | "rnomand" | "" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "shared" => self.propagation.push((libc::MS_SHARED, false)),
            "rshared" => self.propagation.push((libc::MS_SHARED, true)),
            "slave" => self.propagation.push((libc::MS_SLAVE, false)),
            "rslave" => self.propagation.push((libc::MS_SLAVE, true)),
            "private" => self.propagation.push((libc::MS_PRIVATE, false)),
            "rprivate" => self.propagation.push((libc::MS_PRIVATE, true)),
            "unbindable" => self.propagation.push((libc::MS_UNBINDABLE, false)),
            "runbindable" => self.propagation.push((libc::MS_UNBINDABLE, true)),
            "sync" => self.superblock.push("sync"),
            "dirsync" => self.superblock.push("dirsync"),
            "lazytime" => self.superblock.push("lazytime"),
            "tmpcopyup" => self.copy_up = true,
            "remount" => self.remount = true,
            "copy-symlink" => self.copy_symlink = true,
            "src-nofollow" => self.source_no_follow = true,
            "dest-nofollow" => self.destination_no_follow = true,
            "rsync" | "rdirsync" => {
                bail!(
                    "the option `{option}`: it applies to a whole filesystem, not to one of its mounts"
                )
            }
            _ if self.add_idmap(option) => {}
            _ => self.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            }),
        }
        Ok(())
    }
}

/// When the kernel updates access times: three flags of `mount(2)`, each with an option that
/// revokes it. If no flag is left, a mount stays as it is. As with runc and crun, the last option
/// does not win.
#[derive(Default)]
struct AccessTimes {
    never: bool,
    relative: bool,
    always: bool,
    named: bool,
}

impl AccessTimes {
    /// Whether the option is one of these.
    fn add(&mut self, option: &str) -> bool {
        match option {
            "noatime" => self.never = true,
            "atime" => self.never = false,
            "relatime" => self.relative = true,
            "norelatime" => self.relative = false,
            "strictatime" => self.always = true,
            "nostrictatime" => self.always = false,
            _ => return false,
        }
        self.named = true;
        true
    }

    fn flag(&self) -> Option<u64> {
        let flags = [
            (self.always, libc::MOUNT_ATTR_STRICTATIME),
            (self.never, libc::MOUNT_ATTR_NOATIME),
            (self.relative, libc::MOUNT_ATTR_RELATIME),
        ];
        flags.into_iter().find_map(|(is_set, flag)| is_set.then_some(flag))
    }
}

impl Options {
    fn add_idmap(&mut self, option: &str) -> bool {
        let (name, mappings) = match option.split_once('=') {
            Some((name, mappings)) => (name, Some(mappings.to_owned())),
            None => (option, None),
        };
        let recursive = name == "ridmap";
        let is_idmap = recursive || name == "idmap";
        if is_idmap {
            self.idmap = Some(IdMap { recursive, mappings });
        }
        is_idmap
    }
}

/// Bits to set and bits to clear.
type Change = (u64, u64);

fn attribute(option: &str) -> Option<Change> {
    use libc::{
        MOUNT_ATTR_NODEV as NODEV, MOUNT_ATTR_NODIRATIME as NODIRATIME,
        MOUNT_ATTR_NOEXEC as NOEXEC, MOUNT_ATTR_NOSUID as NOSUID, MOUNT_ATTR_RDONLY as RDONLY,
    };
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        _ => return None,
    })
}

/// The last option wins, as in mount(8).
fn apply(attr: &mut MountAttr, (set, clear): Change) {
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !set | clear;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Options::parse(&options).expect("known options")
    }

    #[test]
    fn the_last_of_two_opposite_options_wins() {
        assert_eq!(parse(&["ro", "rw"]).attr, parse(&["rw"]).attr);
        assert_eq!(parse(&["noexec", "exec", "noexec"]).attr, parse(&["noexec"]).attr);
    }

    #[test]
    fn of_access_times_the_strongest_counts() {
        use libc::{MOUNT_ATTR_NOATIME as NEVER, MOUNT_ATTR_STRICTATIME as ALWAYS};
        let all = libc::MOUNT_ATTR__ATIME;
        for (options, expected) in [
            (&["noatime", "relatime"][..], (NEVER, all)),
            (&["strictatime", "noatime"], (ALWAYS, all)),
            (&["relatime"], (0, all)),
            (&["norelatime"], (0, 0)),
            (&["noatime", "atime"], (0, 0)),
        ] {
            let attr = parse(options).attr;
            assert_eq!((attr.set, attr.clear & all), expected, "{options:?}");
        }
        for (option, set) in [("rnorelatime", 0), ("ratime", 0), ("rnoatime", NEVER)] {
            let attr = parse(&[option]).recursive;
            assert_eq!((attr.set, attr.clear & all), (set, all), "{option}");
        }
    }

    #[test]
    fn recursive_options_are_kept_apart() {
        let options = parse(&["rbind", "rro", "nosuid", "rslave"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.propagation, [(libc::MS_SLAVE, true)]);
    }

    #[test]
    fn an_id_mapping_can_follow() {
        let options = parse(&["ridmap=uids=0-1-10#10-11-10;gids=@0-100-10"]);
        let mappings = Some("uids=0-1-10#10-11-10;gids=@0-100-10".to_owned());
        assert_eq!(options.idmap, Some(IdMap { recursive: true, mappings }));
        assert_eq!(parse(&["idmap"]).idmap, Some(IdMap { recursive: false, mappings: None }));
        assert_eq!(parse(&["idmapped"]).data.len(), 1);
    }

    #[test]
    fn what_is_left_is_the_filesystems() {
        let options = parse(&["mode=755", "size=64k", "newinstance"]);
        let data: Vec<_> =
            options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(data, [("mode", Some("755")), ("size", Some("64k")), ("newinstance", None)]);
    }
}
