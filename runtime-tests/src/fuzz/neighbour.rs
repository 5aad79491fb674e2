//! Neighbours of the runtime: one shares a volume with the container, and one owns the directory of
//! a pid file.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, RenameFlags, inotify};

use super::words::OUTSIDE;

/// Names that have appeared in volumes. A neighbour who has watched one start of a container knows
/// the names that the next start uses.
static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The position in [`SEEN`] of the next names to exchange.
static TURN: AtomicUsize = AtomicUsize::new(0);

const AT_ONCE: usize = 6;

/// Names that have appeared in directories of pid files. Only names that end with a number, without
/// this number.
static DRAFTS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// While `meanwhile` runs, exchanges entries of a volume for links to these targets, again and
/// again.
pub(super) fn exchanging<T>(volume: &Path, targets: &[String], meanwhile: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let names: Vec<String> =
                SEEN.lock().map(|seen| seen.iter().cloned().collect()).unwrap_or_default();
            // A few names at a time, because fewer exchanges are faster.
            let first = TURN.fetch_add(3, Ordering::Relaxed) % names.len().max(1);
            let some = names.iter().cycle().skip(first).take(AT_ONCE.min(names.len()));
            let mut pairs = Vec::new();
            for (name, target) in some.zip(targets.iter().cycle()) {
                let link = volume.join(format!("{name}.link"));
                // A target that is not a valid path has no link.
                if symlink(target, &link).is_ok() {
                    pairs.push((volume.join(name), link));
                }
            }
            let mut round = 0_u32;
            while !done.load(Ordering::Relaxed) {
                for (place, link) in &pairs {
                    // Fails while nothing is there, and while a mount is on it.
                    let _ = rustix::fs::renameat_with(CWD, place, CWD, link, RenameFlags::EXCHANGE);
                }
                if round.is_multiple_of(1024) {
                    notice(volume);
                }
                round = round.wrapping_add(1);
            }
            notice(volume);
        });
        let outcome = meanwhile();
        done.store(true, Ordering::Relaxed);
        outcome
    })
}

fn notice(volume: &Path) {
    let Ok(mut seen) = SEEN.lock() else { return };
    for entry in fs::read_dir(volume).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // The fuzzer's own names, which are not new.
        if !name.ends_with(".link") && !name.starts_with("moved-") && seen.len() < 40 {
            seen.insert(name);
        }
    }
}

/// Watches a directory, to learn the names of new files.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub(super) fn begin(folder: &Path) -> io::Result<Watch> {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, folder, inotify::WatchFlags::CREATE)?;
        Ok(Watch(watch))
    }

    pub(super) fn end(self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        while let Ok(event) = events.next() {
            let name = event.file_name().and_then(|name| name.to_str().ok()).unwrap_or_default();
            let draft = name.trim_end_matches(|c: char| c.is_ascii_digit());
            if draft != name
                && let Ok(mut drafts) = DRAFTS.lock()
            {
                drafts.insert(draft.to_owned());
            }
        }
    }
}

/// Puts links to a file of the host where the runtime may make a file. Guesses the names from
/// earlier ones, with numbers that follow the pid of the newest process.
pub(super) fn plant(folder: &Path) {
    let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last: u32 = loads.split_whitespace().last().and_then(|pid| pid.parse().ok()).unwrap_or(0);
    for draft in DRAFTS.lock().map(|drafts| drafts.clone()).unwrap_or_default() {
        for number in last..last + 100 {
            // A link may be there already.
            let _ = symlink(format!("{OUTSIDE}/secret"), folder.join(format!("{draft}{number}")));
        }
    }
}
