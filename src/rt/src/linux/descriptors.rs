//! How many files a process may have open (`RLIMIT_NOFILE`): a configuration with many mounts takes
//! more than a shell's 256 or 1024.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

/// What a container takes besides its mounts.
const OTHERS: u64 = 128;

/// What [`give_back`] fails at.
pub(crate) const GIVE_BACK: &str = "give the limit of descriptors back";

/// The limit of before, to be given back to everything that is not this runtime; none if it was
/// enough.
pub(crate) type Before = Option<Rlimit>;

/// Lets this process have one descriptor more for each of so many mounts. Where that is forbidden,
/// the limit is as high as it may be.
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
    // Root may have more than the hard limit.
    let higher = before.maximum.map(|maximum| maximum.max(OTHERS.saturating_add(mounts as u64)));
    let raised = match wanted(higher) {
        Err(Errno::PERM) => wanted(before.maximum),
        raised => raised,
    };
    raised.ok().map(|()| before)
}

/// How many mounts this process can hold open at a time.
pub(crate) fn room_for_mounts() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX)
    })
}

/// Gives the limit of before back to this process. What is open stays open.
pub(crate) fn give_back(before: Before) -> rustix::io::Result<()> {
    before.map_or(Ok(()), |before| rustix::process::setrlimit(Resource::Nofile, before))
}
