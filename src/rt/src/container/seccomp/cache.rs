//! Compiled filters, kept beside the containers' states and found by what they were compiled from. Runs in the caller's process.
//!
//! A file is named after the digest of the configuration and of everything else that the program depends on, and begins with the
//! digest of the program. One that is damaged, or that another user could have written, is not used.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use libcontainer::oci_spec::runtime::LinuxSeccomp;
use libseccomp::ScmpVersion;
use rustix::fs::{Mode, OFlags};

use crate::state::Draft;

/// To be raised when the same configuration comes to be compiled to something else.
const FORMAT: u32 = 2;

/// A host has a handful of different filters; the oldest go first.
const MOST: usize = 64;

const DIGEST: usize = blake3::OUT_LEN;

pub(super) fn key(seccomp: &LinuxSeccomp, strict: bool) -> Result<String> {
    let library = ScmpVersion::current()?;
    let kernel = rustix::system::uname();
    let mut seccomp = seccomp.clone();
    // Not part of the program.
    seccomp.set_listener_path(None).set_listener_metadata(None).set_flags(None);
    let mut hasher = blake3::Hasher::new();
    // libseccomp asks the kernel which actions there are.
    let surroundings = format!(
        "{FORMAT} {} {library} {} {} {strict}\n",
        env!("CARGO_PKG_VERSION"),
        kernel.machine().to_string_lossy(),
        kernel.release().to_string_lossy(),
    );
    hasher.update(surroundings.as_bytes());
    hasher.update(&serde_json::to_vec(&seccomp).context("write the configuration")?);
    Ok(hasher.finalize().to_hex().to_string())
}

/// None when there is none, or none that can be trusted.
pub(super) fn read(cache: &Path, key: &str) -> Option<Vec<u8>> {
    let own = rustix::process::geteuid().as_raw();
    let trusted = |metadata: fs::Metadata| metadata.uid() == own && metadata.mode() & 0o022 == 0;
    if !trusted(fs::symlink_metadata(cache).ok()?) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(cache.join(key), flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    if !trusted(metadata) {
        return None;
    }
    let mut text = Vec::new();
    file.by_ref().take((DIGEST + super::LONGEST * 8) as u64).read_to_end(&mut text).ok()?;
    let (digest, program) = text.split_at_checked(DIGEST)?;
    (blake3::hash(program).as_bytes() == digest).then(|| program.to_vec())
}

/// A filter that cannot be kept is compiled again the next time.
pub(super) fn write(cache: &Path, key: &str, program: &[u8]) {
    let write = || -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(cache)?;
        make_room(cache)?;
        let text = [blake3::hash(program).as_bytes(), program].concat();
        Draft::write(cache.join(key), &text, 0o600)?.publish()
    };
    if let Err(error) = write() {
        tracing::debug!("keep the compiled seccomp filter in `{}`: {error:#}", cache.display());
    }
}

fn make_room(cache: &Path) -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(cache)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let age = entry.metadata().and_then(|metadata| metadata.modified());
            Some((age.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()))
        })
        .collect();
    files.sort();
    for (_, path) in files.iter().take((files.len() + 1).saturating_sub(MOST)) {
        fs::remove_file(path)?;
    }
    Ok(())
}
