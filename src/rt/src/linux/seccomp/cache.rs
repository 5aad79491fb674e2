//! Compiled filters, kept beside the containers' states. The key is a digest of the input of the
//! compilation. Runs in the runtime process.
//!
//! A file's name is the digest of the configuration and of everything else that the program depends
//! on. The file begins with the digest of the program. A damaged file, or a file that another user
//! could have written, is not used.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use libseccomp::ScmpVersion;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{FileType, Mode, OFlags};

use crate::draft::Draft;
use crate::trust;

/// Raise this number when the same configuration compiles to another program.
const FORMAT: u32 = 2;

/// A host has a handful of different filters. The oldest are removed first.
const MOST: usize = 64;

const DIGEST: usize = blake3::OUT_LEN;

pub(super) fn key(seccomp: &LinuxSeccomp, strict: bool) -> Result<String> {
    let library = ScmpVersion::current()?;
    let kernel = rustix::system::uname();
    let mut seccomp = seccomp.clone();
    // These fields do not change the program.
    seccomp.set_listener_path(None).set_listener_metadata(None).set_flags(None);
    let mut hasher = blake3::Hasher::new();
    // libseccomp asks the kernel which actions it has.
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

/// Returns None if there is no file, or none that can be trusted.
pub(super) fn read(cache: &Path, key: &str) -> Option<Vec<u8>> {
    let directory = trust::directory(cache).ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, key, flags, Mode::empty()).ok()?;
    let there = rustix::fs::fstat(&file).ok().filter(trust::is_ours)?;
    if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut file = File::from(file);
    let mut text = Vec::new();
    file.by_ref().take((DIGEST + super::LONGEST * 8) as u64).read_to_end(&mut text).ok()?;
    let (digest, program) = text.split_at_checked(DIGEST)?;
    (blake3::hash(program).as_bytes() == digest).then(|| program.to_vec())
}

/// If a filter cannot be kept, it is compiled again the next time.
pub(super) fn write(cache: &Path, key: &str, program: &[u8]) {
    let write = || -> Result<()> {
        // This directory may be the first one below the root of the state.
        if let Some(root) = cache.parent() {
            trust::make_shared_directory(root)?;
        }
        let directory = trust::make_directory(cache)?;
        make_room(cache)?;
        let text = [blake3::hash(program).as_bytes(), program].concat();
        Draft::write_in(directory, cache.join(key), &text, 0o600)?.publish()
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
