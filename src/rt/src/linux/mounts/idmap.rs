//! ID-mapped mounts: their files seem to belong to other users (`mount_setattr(2)`, "ID-mapped
//! mounts", Linux 5.12). A user namespace provides the mappings, usually one that `rt` makes for
//! this purpose. Runs in the runtime process, because root of the container's user namespace may
//! not map the files of the host's filesystems.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Mount};
use rustix::fs::{Mode, OFlags};

use super::options::Options;
use crate::linux::namespaces::{self, Namespaces};
use crate::syscall;

/// The source of a mount's mappings.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Mapping {
    Ranges {
        uids: Vec<LinuxIdMapping>,
        gids: Vec<LinuxIdMapping>,
    },
    /// The mappings of the user namespace that the container joins.
    Namespace(PathBuf),
}

/// The mapping that the configuration asks for, by the entry's own mappings or by an option.
pub(super) fn wanted(entry: &Mount, options: &Options, linux: &Linux) -> Result<Option<Mapping>> {
    let own = |mappings: &Option<Vec<LinuxIdMapping>>| mappings.clone().unwrap_or_default();
    let (uids, gids) = (own(entry.uid_mappings()), own(entry.gid_mappings()));
    ensure!(
        uids.is_empty() == gids.is_empty(),
        "`uidMappings` and `gidMappings` of a mount need each other"
    );
    if !uids.is_empty() {
        return Ok(Some(Mapping::Ranges { uids, gids }));
    }
    let Some(option) = &options.idmap else { return Ok(None) };
    if let Some(text) = &option.mappings {
        return parse(text, linux).with_context(|| format!("the option `idmap={text}`")).map(Some);
    }
    let namespaces = linux.namespaces().iter().flatten();
    let user = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::User);
    if let Some(path) = user.filter_map(|namespace| namespace.path().clone()).next() {
        return Ok(Some(Mapping::Namespace(path)));
    }
    let (uids, gids) = (own(linux.uid_mappings()), own(linux.gid_mappings()));
    ensure!(
        !uids.is_empty() && !gids.is_empty(),
        "the option `idmap` without mappings needs a user namespace with `uidMappings` and `gidMappings`"
    );
    Ok(Some(Mapping::Ranges { uids, gids }))
}

/// Parses crun's `uids=A-B-N#A-B-N;gids=A-B-N`: N ids from A on are shown as the ids from B on.
/// After an `@`, B is an id in the container.
fn parse(text: &str, linux: &Linux) -> Result<Mapping> {
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    for part in text.split(';') {
        let (list, ranges, container) = match part.split_once('=') {
            Some(("uids", ranges)) => (&mut uids, ranges, linux.uid_mappings()),
            Some(("gids", ranges)) => (&mut gids, ranges, linux.gid_mappings()),
            _ => bail!("`{part}` is neither `uids=…` nor `gids=…`"),
        };
        for range in ranges.split('#') {
            let (digits, relative) = match range.strip_prefix('@') {
                Some(digits) => (digits, true),
                None => (range, false),
            };
            let numbers: Vec<Option<u32>> =
                digits.split('-').map(|number| number.parse().ok()).collect();
            let [Some(first), Some(mut shown), Some(count)] = numbers[..] else {
                bail!("`{range}` is not three numbers with `-` between them")
            };
            if relative {
                let host = namespaces::on_the_host(shown, container.as_deref().unwrap_or_default());
                shown = host.with_context(|| {
                    format!("`{range}`: the container has no id {shown} in its user namespace")
                })?;
            }
            let mapping = LinuxIdMappingBuilder::default()
                .container_id(first)
                .host_id(shown)
                .size(count)
                .build()?;
            list.push(mapping);
        }
    }
    ensure!(!uids.is_empty() && !gids.is_empty(), "`uids` and `gids` need each other");
    Ok(Mapping::Ranges { uids, gids })
}

impl Mapping {
    fn namespace(&self, container: &Namespaces) -> Result<OwnedFd> {
        match (self, container.joined(libc::CLONE_NEWUSER)) {
            (Mapping::Ranges { uids, gids }, _) => namespaces::user_namespace(uids, gids),
            (Mapping::Namespace(_), Some(joined)) => {
                joined.try_clone_to_owned().context("duplicate a descriptor")
            }
            // Either the runtime process's own user namespace, or a container that already runs.
            (Mapping::Namespace(path), None) => {
                rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .with_context(|| format!("open user namespace `{}`", path.display()))
            }
        }
    }

    /// Maps the ids of a detached mount. `container` are the namespaces that the container gets.
    pub(super) fn apply(
        &self,
        mount: BorrowedFd<'_>,
        recursive: bool,
        container: &Namespaces,
    ) -> Result<()> {
        let namespace = self.namespace(container);
        let namespace = namespace.context("make the user namespace of the id mapping")?;
        syscall::mount_idmap(mount, namespace.as_fd(), recursive)
            .context("map the ids of the mount: its filesystem must support that")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux() -> Linux {
        let mappings =
            r#"[{"containerID":0,"hostID":0,"size":1},{"containerID":1,"hostID":2,"size":1000}]"#;
        let json = format!(r#"{{"uidMappings":{mappings},"gidMappings":{mappings}}}"#);
        serde_json::from_str(&json).expect("a configuration")
    }

    #[test]
    fn ranges_are_read_and_made_absolute() {
        let Ok(Mapping::Ranges { uids, gids }) =
            parse("uids=0-1-10#@10-3-5;gids=@1-3-10", &linux())
        else {
            panic!("not read")
        };
        let show = |list: &[LinuxIdMapping]| -> Vec<_> {
            list.iter().map(|m| (m.container_id(), m.host_id(), m.size())).collect()
        };
        assert_eq!(show(&uids), [(0, 1, 10), (10, 4, 5)]);
        assert_eq!(show(&gids), [(1, 4, 10)]);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "uids=0-0-1",
            "uids=0-0-1;gids=",
            "uids=0-0;gids=0-0-1",
            "x=1",
            "uids=0-0-1;gids=@0-5000-1",
        ] {
            assert!(parse(text, &linux()).is_err(), "{text}");
        }
    }
}
