//! Native code that modules were compiled to: files in one directory, found by what they were made from. `docs/wasm-cache.md` is
//! the page for operators.
//!
//! | file | what it is |
//! |---|---|
//! | `KEY.so` | the engine's native code, then [`About`] it as JSON, then the length of that and [`MAGIC`] |
//! | `KEY.job` | a module that is to be compiled; locked by whoever does it or has it done |
//! | `KEY.failed` | why the module cannot be compiled: it is not tried again |
//! | `KEY.part` | what becomes `KEY.so` |
//!
//! The directory is its owner's alone, and so is what is in it: native code runs in containers without being looked at. Runs in
//! the caller's process.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::state::Draft;

/// The end of a file of native code.
const MAGIC: &[u8; 8] = b"rt-wasm1";

/// The length of [`About`], as a number of 32 bits in little endian, and [`MAGIC`].
const TAIL: u64 = 4 + MAGIC.len() as u64;

/// No [`About`] is longer.
const LONGEST: u64 = 64 << 10;

/// A larger module is left to the interpreter.
const LARGEST: u64 = 256 << 20;

/// How many modules may wait to be compiled. Others are compiled after one of their next starts.
const MOST_JOBS: usize = 16;

/// What a module's native code depends on: the module, the engine, the processor, the way it is compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Key {
    pub(crate) module: blake3::Hash,
    key: blake3::Hash,
}

impl Key {
    /// `surroundings` is all but the module.
    pub(crate) fn new(surroundings: &str, module: blake3::Hash) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(surroundings.as_bytes()).update(&[0]).update(module.as_bytes());
        Key { module, key: hasher.finalize() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.key.to_hex())
    }
}

/// What is known of native code.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    pub(crate) key: String,
    /// BLAKE3 of the module, and its size.
    pub(crate) module: String,
    pub(crate) module_bytes: u64,
    /// What the container called it that was the first to run it.
    pub(crate) name: String,
    pub(crate) engine: String,
    /// BLAKE3 of the native code, and its size.
    pub(crate) native: String,
    pub(crate) native_bytes: u64,
    /// Seconds since 1970.
    pub(crate) compiled: u64,
    pub(crate) milliseconds: u64,
}

/// Why a module cannot be compiled.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Failure {
    /// BLAKE3 of the module.
    pub(crate) module: String,
    pub(crate) name: String,
    pub(crate) why: String,
}

/// A module that is to be compiled, and this process is the only one to do so.
#[derive(Debug)]
pub(crate) struct Job {
    /// The module, from its beginning. The lock goes with the descriptor to whatever process inherits it.
    pub(crate) file: OwnedFd,
}

/// What is in the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) used: SystemTime,
    /// How many starts found it, since the host was booted.
    pub(crate) hits: u64,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Native(Box<About>),
    Failed(Failure),
    /// Somebody compiles it, or waits to.
    Job,
    /// Damaged, or left by what was cut short.
    Useless,
}

#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    /// Where it is kept which files were looked at since the host was booted.
    verified: PathBuf,
}

impl Cache {
    pub(crate) fn new(directory: &Path, verified: PathBuf) -> Cache {
        Cache { directory: directory.to_owned(), verified }
    }

    fn file(&self, key: &impl ToString, end: &str) -> PathBuf {
        self.directory.join(format!("{}.{end}", key.to_string()))
    }

    /// Native code that can be trusted. None when there is none; what is damaged is removed.
    pub(crate) fn find(&self, key: &Key) -> Option<File> {
        let (file, metadata) = self.open(&self.file(key, "so"))?;
        let sound = about(&file, metadata.len())
            .filter(|about| about.key == key.to_string())
            .is_some_and(|about| self.verify(&file, &metadata, &about));
        if !sound {
            tracing::debug!("native code `{key}` is damaged: it is compiled again");
            let _ = fs::remove_file(self.file(key, "so"));
            return None;
        }
        touch(&file, &metadata);
        self.count_hit(key);
        Some(file)
    }

    fn hits(&self, key: &str) -> PathBuf {
        self.verified.join(format!("{key}.hits"))
    }

    /// One byte more in a file: of two processes neither loses its own.
    fn count_hit(&self, key: &Key) {
        let file = File::options().append(true).create(true).open(self.hits(&key.to_string()));
        if let Err(error) = file.and_then(|mut file| file.write_all(b".")) {
            tracing::debug!("count that `{key}` is used: {error}");
        }
    }

    /// A file of the cache's, if nobody else can have written it.
    fn open(&self, path: &Path) -> Option<(File, fs::Metadata)> {
        let own = rustix::process::geteuid().as_raw();
        let trusted =
            |metadata: &fs::Metadata| metadata.uid() == own && metadata.mode() & 0o022 == 0;
        fs::symlink_metadata(&self.directory).ok().filter(trusted)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file).filter(trusted)?;
        Some((file, metadata))
    }

    /// Whether the native code is what was written, once since the host was booted: reading it all takes longer than starting it.
    fn verify(&self, file: &File, metadata: &fs::Metadata, about: &About) -> bool {
        let known = self.verified.join(&about.key);
        let stamp = format!(
            "{} {} {} {}.{}",
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        if fs::read_to_string(&known).is_ok_and(|known| known == stamp) {
            return true;
        }
        let digest = hash(file.as_fd(), about.native_bytes);
        if !digest.is_ok_and(|(digest, _)| digest.to_hex().as_str() == about.native) {
            return false;
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.verified);
        if let Err(error) =
            made.and_then(|()| Draft::write(known, stamp.as_bytes(), 0o600)).map(Draft::publish)
        {
            tracing::debug!("keep that `{}` is sound: {error}", about.key);
        }
        true
    }

    /// Why the module cannot be compiled, if that was tried.
    pub(crate) fn failure(&self, key: &impl ToString) -> Option<Failure> {
        let (file, _) = self.open(&self.file(key, "failed"))?;
        serde_json::from_reader(file.take(LONGEST)).ok()
    }

    /// Claims a module that is to be compiled. None when another process has it, or too many wait already.
    pub(crate) fn claim(&self, key: &Key, module: BorrowedFd<'_>) -> Result<Option<Job>> {
        let show = || format!("keep a module in `{}`", self.directory.display());
        self.make().with_context(show)?;
        if self.jobs() >= MOST_JOBS {
            return Ok(None);
        }
        let path = self.file(key, "job");
        let Some(job) = lock(&path).with_context(show)? else { return Ok(None) };
        let copied = copy(module, &job).with_context(show);
        // It may have been changed since it was looked at.
        if !matches!(&copied, Ok(digest) if *digest == key.module) {
            let _ = fs::remove_file(&path);
            return copied.map(|_| None);
        }
        Ok(Some(Job { file: job.into() }))
    }

    /// Waits until nobody has a module to be compiled any more, for so long at the most.
    pub(crate) fn wait_for(&self, key: &Key, most: Duration) -> Result<()> {
        let path = self.file(key, "job");
        match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(job) => lock_within(job.as_fd(), FlockOperation::NonBlockingLockShared, most)
                .with_context(|| format!("wait for `{}`", path.display())),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("open `{}`", path.display())),
        }
    }

    fn make(&self) -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let metadata = fs::symlink_metadata(&self.directory)?;
        let own = rustix::process::geteuid().as_raw();
        ensure!(
            metadata.is_dir() && metadata.uid() == own && metadata.mode() & 0o022 == 0,
            "others can write to it"
        );
        Ok(())
    }

    fn jobs(&self) -> usize {
        let names = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let paths = names.map(|entry| entry.path());
        // What nobody works on any more is no queue.
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "job") && is_locked(path))
            .count()
    }

    /// The end of a job, whatever has become of it.
    pub(crate) fn done(&self, key: &Key) {
        // What is left is taken over by the next one.
        let _ = fs::remove_file(self.file(key, "job"));
    }

    /// Where native code is to be written.
    pub(crate) fn part(&self, key: &Key) -> Result<File> {
        let path = self.file(key, "part");
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        file.map(File::from).with_context(|| format!("make `{}`", path.display()))
    }

    /// Makes what was written to [`Cache::part`] the module's native code.
    pub(crate) fn keep(&self, key: &Key, mut part: File, mut about: About) -> Result<About> {
        let path = self.file(key, "so");
        let mut keep = || -> Result<About> {
            let (digest, bytes) = hash(part.as_fd(), u64::MAX)?;
            about.native = digest.to_hex().to_string();
            about.native_bytes = bytes;
            let text = serde_json::to_vec(&about)?;
            let length = u32::try_from(text.len()).context("too much to say of it")?;
            part.seek(io::SeekFrom::End(0))?;
            part.write_all(&[&text[..], &length.to_le_bytes(), MAGIC].concat())?;
            // The container's user reads it, by a descriptor: nobody else gets into the directory.
            rustix::fs::fchmod(&part, Mode::from_raw_mode(0o444))?;
            part.sync_all()?;
            fs::rename(self.file(key, "part"), &path)?;
            Ok(about.clone())
        };
        let kept = keep().with_context(|| format!("write `{}`", path.display()));
        kept.inspect_err(|_| self.discard(key))
    }

    pub(crate) fn discard(&self, key: &Key) {
        // The first error is the one to tell.
        let _ = fs::remove_file(self.file(key, "part"));
    }

    /// Remembers that a module cannot be compiled.
    pub(crate) fn give_up(&self, key: &Key, name: &str, why: &str) -> Result<()> {
        let path = self.file(key, "failed");
        let module = key.module.to_hex().to_string();
        let failure = Failure { module, name: name.to_owned(), why: why.to_owned() };
        Draft::write(path.clone(), &serde_json::to_vec(&failure)?, 0o600)
            .with_context(|| format!("write `{}`", path.display()))?
            .publish()
    }

    pub(crate) fn forget_failure(&self, key: &Key) {
        // As a rule there is none.
        let _ = fs::remove_file(self.file(key, "failed"));
    }

    /// All that is in it, what was used last first.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        let show = || format!("read `{}`", self.directory.display());
        let names = match fs::read_dir(&self.directory) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(show),
        };
        let mut entries = Vec::new();
        for name in names {
            entries.extend(self.entry(&name.with_context(show)?.path()));
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(entries)
    }

    /// None for what is no entry, or is gone meanwhile.
    fn entry(&self, path: &Path) -> Option<Entry> {
        let key = path.file_stem()?.to_str()?.to_owned();
        let end = path.extension()?.to_str()?;
        let metadata = fs::symlink_metadata(path).ok()?;
        let kind = match end {
            "so" => {
                let about = self.open(path).and_then(|(file, it)| about(&file, it.len()));
                about
                    .filter(|about| about.key == key)
                    .map_or(Kind::Useless, |about| Kind::Native(Box::new(about)))
            }
            "failed" => self.failure(&key).map_or(Kind::Useless, Kind::Failed),
            "job" if is_locked(path) => Kind::Job,
            // What a job is writing.
            "part" if is_locked(&path.with_extension("job")) => return None,
            "job" | "part" => Kind::Useless,
            _ => return None,
        };
        let hits = fs::metadata(self.hits(&key)).map_or(0, |hits| hits.len());
        let used = metadata.accessed().ok()?;
        Some(Entry { key, bytes: metadata.len(), used, hits, kind })
    }

    /// Removes what nobody can use any more and, of the rest, what was not used for the longest time, until no more than so many
    /// bytes are left; one is kept in any case. Returns how many entries and bytes went.
    pub(crate) fn prune(
        &self,
        most: u64,
        useful: impl Fn(&Entry) -> bool,
        kept: Option<&Key>,
    ) -> Result<(usize, u64)> {
        let kept = kept.map(ToString::to_string);
        let (mut left, mut gone) = (0_u64, (0, 0));
        for entry in self.entries()? {
            if matches!(entry.kind, Kind::Job) {
                continue;
            }
            let kept = kept.as_ref() == Some(&entry.key);
            if kept || useful(&entry) && left + entry.bytes <= most {
                left += entry.bytes;
                continue;
            }
            self.remove(&entry)?;
            gone = (gone.0 + 1, gone.1 + entry.bytes);
        }
        Ok(gone)
    }

    fn remove(&self, entry: &Entry) -> Result<()> {
        let ends: &[&str] = match entry.kind {
            Kind::Native(_) => &["so"],
            Kind::Failed(_) => &["failed"],
            Kind::Job | Kind::Useless => &["so", "failed", "job", "part"],
        };
        for end in ends {
            let path = self.file(&entry.key, end);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove `{}`", path.display()));
                }
                _ => {}
            }
        }
        for file in [self.verified.join(&entry.key), self.hits(&entry.key)] {
            let _ = fs::remove_file(file);
        }
        Ok(())
    }
}

/// None when somebody else holds it.
fn lock(path: &Path) -> Result<Option<File>> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // Whoever held it before may have removed it.
        let ours = rustix::fs::fstat(&file)?;
        match rustix::fs::lstat(path) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => {
                return Ok(Some(file.into()));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether somebody works on a job.
fn is_locked(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return false };
    let lock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
    lock == Err(Errno::WOULDBLOCK)
}

/// Locks a file, and waits for others that have it locked, for so long at the most.
pub(crate) fn lock_within(
    file: BorrowedFd<'_>,
    operation: FlockOperation,
    most: Duration,
) -> rustix::io::Result<()> {
    let end = Instant::now() + most;
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            locked => return locked,
        }
    }
}

/// What stands at the end of a file of native code. None when it is not whole.
fn about(file: &File, size: u64) -> Option<About> {
    let mut tail = [0; TAIL as usize];
    file.read_exact_at(&mut tail, size.checked_sub(TAIL)?).ok()?;
    let (length, magic) = tail.split_first_chunk()?;
    let length = u64::from(u32::from_le_bytes(*length));
    let native = size.checked_sub(TAIL)?.checked_sub(length)?;
    if magic != MAGIC || length > LONGEST {
        return None;
    }
    let mut text = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut text, native).ok()?;
    let about: About = serde_json::from_slice(&text).ok()?;
    (about.native_bytes == native).then_some(about)
}

/// The digest of the first bytes of a file, at most so many, and how many they were.
pub(crate) fn hash(file: BorrowedFd<'_>, most: u64) -> io::Result<(blake3::Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    while at < most {
        let wanted = usize::try_from(most - at).unwrap_or(usize::MAX).min(buffer.len());
        let length = rustix::io::pread(file, &mut buffer[..wanted], at)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok((hasher.finalize(), at))
}

/// The digest of a module. None for one that is too large to be compiled.
pub(crate) fn digest(module: BorrowedFd<'_>) -> Result<Option<blake3::Hash>> {
    let (digest, length) = hash(module, LARGEST + 1).context("read the module")?;
    Ok((length <= LARGEST).then_some(digest))
}

/// Copies a module into an empty file, and says what was copied.
fn copy(module: BorrowedFd<'_>, to: &File) -> io::Result<blake3::Hash> {
    to.set_len(0)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    while at <= LARGEST {
        let length = rustix::io::pread(module, &mut buffer, at)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        to.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
    Ok(hasher.finalize())
}

/// Notes that native code is used, for [`Cache::prune`]: not at every start of a crowd.
fn touch(file: &File, metadata: &fs::Metadata) {
    const OFTEN: Duration = Duration::from_secs(60);
    let lately = metadata.accessed().is_ok_and(|used| used.elapsed().is_ok_and(|age| age < OFTEN));
    if lately {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let times = Timestamps {
        last_access: Timespec { tv_sec: seconds, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    // On a read-only filesystem nothing is removed either.
    let _ = rustix::fs::futimens(file, &times);
}
