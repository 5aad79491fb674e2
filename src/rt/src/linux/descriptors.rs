//! The number of files that a process may have open (`RLIMIT_NOFILE`). A configuration with many
//! mounts requires more than a shell's 256 or 1024.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

/// The number of descriptors that a container requires besides its mounts.
const OTHERS: u64 = 128;

/// The step that an error of [`give_back`] names.
pub(crate) const GIVE_BACK: &str = "give the limit of descriptors back";

/// The previous limit, which every process that is not `rt` must get back. None if the previous
/// limit was enough.
pub(crate) type Before = Option<Rlimit>;

/// Raises the limit of this process by one descriptor for each of `mounts` mounts. If the kernel
/// forbids that, this function raises the limit as far as it may.
pub(crate) fn raise_for(mounts: usize) -> Before {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let wanted = OTHERS.saturating_add(mounts as u64);
    if before.current.is_none_or(|current| current >= wanted) {
        return None;
    }
    let wanted = |maximum: Option<u64>| {
        let most = maximum.map_or(wanted, |maximum| maximum.min(wanted));
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum })
    };
    // Root may exceed the hard limit.
    let higher = before.maximum.map(|maximum| maximum.max(OTHERS.saturating_add(mounts as u64)));
    let raised = match wanted(higher) {
        Err(Errno::PERM) => wanted(before.maximum),
        raised => raised,
    };
    raised.ok().map(|()| before)
}

/// The number of mounts that this process can hold open at a time.
pub(crate) fn room_for_mounts() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX)
    })
}

/// Restores the previous limit of this process. Open files stay open.
pub(crate) fn give_back(before: Before) -> rustix::io::Result<()> {
    before.map_or(Ok(()), |before| rustix::process::setrlimit(Resource::Nofile, before))
}
