//! The native code of modules: files in one directory, found by a digest of everything that the
//! code depends on. `docs/wasm-cache.md` is the page for operators.
//!
//! - `KEY.so`: the engine's native code, then [`About`] as JSON, then the length of that JSON and
//!   [`MAGIC`].
//! - `KEY.hits`: one byte for each start that used the code. The file's modification time is the
//!   time of the last start.
//! - `KEY.job`: a module that is to be compiled, locked by the process that compiles it or waits
//!   for its turn.
//! - `KEY.failed`: why the module cannot be compiled. It is not tried again.
//! - `KEY.part`: the draft of `KEY.so`.
//! - `.KEY.…`: the draft of another of these files.
//!
//! Only the owner can access the directory and the files in it, because containers run the native
//! code without a further check. All of this runs in the runtime process.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::settings::CompilerSettings;
use crate::draft::Draft;
use crate::syscall::{self, Lock};
use crate::{signals, trust};

/// The last bytes of a file of native code.
const MAGIC: &[u8; 8] = b"rt-wasm1";

/// The size in bytes of [`About`]'s length (32 bits, little endian) and of [`MAGIC`].
const TAIL: u64 = 4 + MAGIC.len() as u64;

/// The longest accepted [`About`], in bytes.
const LONGEST: u64 = 64 << 10;

/// The largest module that is compiled, in bytes. The engine interprets a larger one.
const LARGEST: u64 = 256 << 20;

/// How many modules may wait to be compiled in the background, on the host and of one tenant. Other
/// modules are compiled after one of their next starts.
const MOST_JOBS: usize = 16;
const MOST_OF_ONE: usize = 2;

/// Waiting modules may use the cache's size divided by this, so that they displace little native
/// code.
const SHARE_OF_JOBS: u64 = 4;

/// How many failures are remembered, and for how long.
const MOST_FAILURES: usize = 1000;
const LONGEST_FAILURE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest time for which a failure holds. A failure that would hold for longer was written
/// while the clock was ahead, and holds no more.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// A draft that is older was left by a killed process, because a draft is written in one go.
const DRAFT: Duration = Duration::from_secs(60);

/// The byte ranges of the locks on a job:
///
/// - `CLAIM`: held by the process that has claimed the job.
/// - `RUNS`: held while its compiler runs.
/// - `FOR`: held in the background, at the number of the tenant for whom the job is.
/// - `WAITS`: shared by the waiting processes, each at the number of its tenant.
///
/// The last two are ranges of [`TENANTS`] bytes, one byte for each tenant. All that is known about
/// a job is in locks, so it ends with the processes that hold them.
const CLAIM: u64 = 0;
const RUNS: u64 = 1;
const FOR: u64 = TENANTS;
const WAITS: u64 = 2 * TENANTS;

/// Every tenant's number is below this, and so the place of every lock fits: the largest `off_t` is
/// a little less than eight times this number.
pub(crate) const TENANTS: u64 = 1 << 60;

/// The administrator's number as a tenant.
pub(crate) const ADMINISTRATOR: u64 = 0;

/// When the cache is full, one tenant's native code may use a fourth of it, and the native code of
/// one module half of it.
const SHARE_OF_TENANT: u64 = 4;
const SHARE_OF_ONE: u64 = 2;

/// Starts beyond this number are not counted, because the file grows with each start.
const MOST_HITS: u64 = 1 << 20;

/// The kernel makes a new id at each boot of the host.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Everything that a module's native code depends on: the module, the engine, the processor, and
/// the way of compiling.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Key {
    pub(crate) module: blake3::Hash,
    key: blake3::Hash,
}

impl Key {
    /// `surroundings` is everything but the module.
    pub(crate) fn new(surroundings: &str, module: blake3::Hash) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(surroundings.as_bytes()).update(&[0]).update(module.as_bytes());
        Key { module, key: hasher.finalize() }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.key.to_hex())
    }
}

/// The description of native code.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    pub(crate) key: String,
    /// BLAKE3 of the module, and its size.
    pub(crate) module: String,
    pub(crate) module_bytes: u64,
    /// The module's name in the first container that ran it.
    pub(crate) name: String,
    pub(crate) engine: String,
    /// BLAKE3 of the native code, and its size.
    pub(crate) native: String,
    pub(crate) native_bytes: u64,
    /// Seconds since 1970.
    pub(crate) compiled: u64,
    pub(crate) milliseconds: u64,
    /// The number of the tenant that had the module compiled, or `None` for the administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<u64>,
}

/// How long a process waits for a module that another process has claimed: before the compiler
/// starts, and while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) before: Duration,
    pub(crate) during: Duration,
}

/// Why a module cannot be compiled.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Failure {
    /// BLAKE3 of the module.
    pub(crate) module: String,
    pub(crate) name: String,
    pub(crate) why: String,
    /// The limits of the compiler that failed.
    #[serde(default)]
    pub(crate) seconds: u64,
    #[serde(default)]
    pub(crate) memory_bytes: u64,
    /// If the failure holds only for a while: when the module is tried again, in seconds since
    /// 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<u64>,
}

impl Failure {
    /// Whether another try would fail too: no limit was raised, and the failure has not expired.
    pub(crate) fn holds(&self, settings: &CompilerSettings) -> bool {
        settings.seconds <= self.seconds
            && settings.memory_bytes <= self.memory_bytes
            && self.until.is_none_or(|until| {
                let left = until.saturating_sub(now());
                left > 0 && left <= LONGEST_HOLD.as_secs()
            })
    }
}

/// A module that is to be compiled, and that only this process may compile.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: Key,
    /// The module, read from its beginning. A process that inherits the descriptor also has the
    /// lock.
    pub(crate) file: OwnedFd,
}

/// An entry of the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) used: SystemTime,
    /// How many starts have used it.
    pub(crate) hits: u64,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Native(Box<About>),
    Failed(Failure),
    /// A process compiles the module, or waits to compile it.
    Job,
    /// Damaged, or left by an interrupted process.
    Useless,
}

#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    /// The directory that records which files were verified since the host's boot.
    verified: PathBuf,
    /// The maximum size in bytes.
    most: u64,
}

impl Cache {
    pub(crate) fn new(directory: &Path, verified: PathBuf, most: u64) -> Cache {
        Cache { directory: directory.to_owned(), verified, most }
    }

    fn file(&self, key: &impl ToString, end: &str) -> PathBuf {
        self.directory.join(format!("{}.{end}", key.to_string()))
    }

    /// Returns native code that can be trusted, or `None` if there is none. Removes damaged code.
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
        Some(file)
    }

    /// Counts a use of native code by appending one byte to a file, so that two processes at the
    /// same time both count. The access time would not do, because every process that reads the
    /// file changes it.
    pub(crate) fn count_hit(&self, key: &Key) {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let count = || -> io::Result<()> {
            let path = self.file(key, "hits");
            let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
            if file.metadata()?.len() < MOST_HITS {
                return file.write_all(b".");
            }
            file.set_modified(SystemTime::now())
        };
        if let Err(error) = count() {
            // On a read-only filesystem nothing is pruned either, so the count has no use.
            tracing::debug!("count that `{key}` is used: {error}");
        }
    }

    /// Opens a file of the cache, if nobody else can have written it.
    fn open(&self, path: &Path) -> Option<(File, fs::Metadata)> {
        trust::directory(&self.directory).ok()?;
        let file = open(path).ok()?;
        rustix::fs::fstat(&file).ok().filter(trust::is_ours)?;
        let file = File::from(file);
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((file, metadata))
    }

    /// Whether the native code is unchanged since `rt` wrote it. This is verified once per boot of
    /// the host, because reading the whole file takes longer than starting the code.
    fn verify(&self, file: &File, metadata: &fs::Metadata, about: &About) -> bool {
        let known = self.verified.join(&about.key);
        // Nobody can set `ctime`, the time of the last change of any kind.
        let stamp = format!(
            "{} {} {} {} {}.{} {}.{}",
            fs::read_to_string(BOOT).unwrap_or_default().trim(),
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec()
        );
        let is_known = || fs::read_to_string(&known).is_ok_and(|known| known == stamp);
        if trust::directory(&self.verified).is_ok() && is_known() {
            return true;
        }
        let digest = hash(file.as_fd(), about.native_bytes);
        if !digest.is_ok_and(|(digest, _)| digest.to_hex().as_str() == about.native) {
            return false;
        }
        let keep = || -> Result<()> {
            // This may be the first directory that is made below the root of the state.
            if let Some(root) = self.verified.parent() {
                trust::make_shared_directory(root)?;
            }
            let directory = trust::make_directory(&self.verified)?;
            Draft::write_in(directory, known, stamp.as_bytes(), 0o600)?.publish()
        };
        if let Err(error) = keep() {
            tracing::debug!("keep that `{}` is sound: {error:#}", about.key);
        }
        true
    }

    /// Why the module cannot be compiled, if an earlier try failed.
    pub(crate) fn failure(&self, key: &impl ToString) -> Option<Failure> {
        let (file, _) = self.open(&self.file(key, "failed"))?;
        serde_json::from_reader(file.take(LONGEST)).ok()
    }

    /// Claims a module that is to be compiled, in the background for a tenant. Returns `None` if
    /// another process holds the claim or, for a background claim, if the tenant's or the host's
    /// queue is full. The module is tried again at a later start.
    pub(crate) fn claim(
        &self,
        key: &Key,
        module: BorrowedFd<'_>,
        background: Option<u64>,
    ) -> Result<Option<Job>> {
        let show = || format!("keep a module in `{}`", self.directory.display());
        self.make().with_context(show)?;
        self.tidy();
        let path = self.file(key, "job");
        let size = u64::try_from(rustix::fs::fstat(module)?.st_size).unwrap_or(0);
        if is_claimed(&path) || background.is_some_and(|whom| !self.has_room(whom, size)) {
            return Ok(None);
        }
        // Copies the module to a draft, which no other process sees or waits for. Reading the
        // module may never end if a program (FUSE) serves the image's filesystem.
        let draft = self.directory.join(format!(".{key}.job.{}", std::process::id()));
        let claim = || -> Result<Option<Job>> {
            let flags =
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&draft, flags, Mode::RUSR | Mode::WUSR)?);
            let places = [Some(CLAIM), background.map(|whom| FOR + whom)];
            for place in places.into_iter().flatten() {
                syscall::lock(file.as_fd(), Lock::Write, place, 1)?;
            }
            ensure!(copy(module, &file)? == key.module, "it was changed since it was looked at");
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(CWD, &draft, CWD, &path, flags) {
                Err(Errno::EXIST) => Ok(None),
                renamed => Ok(renamed.map(|()| Some(Job { key: key.clone(), file: file.into() }))?),
            }
        };
        let claimed = claim().with_context(show);
        discard(&draft);
        claimed
    }

    /// Waits for a tenant until no process has the module's job any more. Fails when the patience
    /// is used up or a termination signal comes. If the job is in the background, its worker then
    /// hurries.
    pub(crate) fn wait_for(&self, key: &Key, tenant: u64, patience: &mut Patience) -> Result<()> {
        let path = self.file(key, "job");
        let job = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(job) => job,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("open `{}`", path.display())),
        };
        syscall::lock(job.as_fd(), Lock::Read, WAITS + tenant, 1)
            .context("say that it is waited for")?;
        while is_locked(job.as_fd(), CLAIM, 1) {
            ensure!(!signals::is_interrupted(), "a signal came while others compile it");
            let (begun, runs) = (Instant::now(), is_locked(job.as_fd(), RUNS, 1));
            let left = if runs { &mut patience.during } else { &mut patience.before };
            ensure!(!left.is_zero(), "others have not compiled it in time");
            std::thread::sleep(TURN);
            *left = left.saturating_sub(begun.elapsed());
        }
        Ok(())
    }

    fn make(&self) -> Result<()> {
        Ok(trust::make_directory(&self.directory).map(drop)?)
    }

    /// Whether one more module of this size may wait to be compiled for the tenant.
    fn has_room(&self, whom: u64, size: u64) -> bool {
        let (mut all, mut own, mut bytes) = (0, 0, 0);
        for path in self.paths().filter(|path| path.extension().is_some_and(|end| end == "job")) {
            let Ok(job) = open(&path) else { continue };
            // A job that no process works on does not count. A job that was claimed in the
            // foreground has no lock in `FOR`, and does not count either.
            if let Ok(Some(place)) = syscall::locked(job.as_fd(), Lock::Write, FOR, TENANTS) {
                all += 1;
                own += usize::from(place == FOR + whom);
                bytes +=
                    rustix::fs::fstat(&job).map_or(0, |it| u64::try_from(it.st_size).unwrap_or(0));
            }
        }
        all < MOST_JOBS
            && own < MOST_OF_ONE
            && (all == 0 || bytes + size <= self.most / SHARE_OF_JOBS)
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> + use<> {
        fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    /// Removes the leftovers of killed processes, and old failures.
    fn tidy(&self) {
        let mut failures = Vec::new();
        for path in self.paths() {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
            let is_older = |than| age.is_some_and(|age| age > than);
            let is_draft = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
            match path.extension().and_then(|end| end.to_str()) {
                _ if is_draft && !is_older(DRAFT) => {}
                _ if is_draft => remove_unclaimed(&path),
                Some("job") => remove_unclaimed(&path),
                Some("part") if !is_claimed(&path.with_extension("job")) => discard(&path),
                Some("hits") if !path.with_extension("so").exists() => discard(&path),
                Some("failed") if is_older(LONGEST_FAILURE) => discard(&path),
                Some("failed") => failures.push((age, path)),
                _ => {}
            }
        }
        failures.sort_unstable();
        failures.iter().skip(MOST_FAILURES).for_each(|(_, path)| discard(path));
    }

    /// Ends a job, whatever its result.
    pub(crate) fn done(&self, key: &Key) {
        discard(&self.file(key, "job"));
    }

    /// Makes the draft to which native code is written.
    pub(crate) fn part(&self, key: &Key) -> Result<File> {
        let path = self.file(key, "part");
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        file.map(File::from).with_context(|| format!("make `{}`", path.display()))
    }

    /// Writes to the draft, for a tenant. If the disk is full, removes the least recently used
    /// native code to make space.
    pub(crate) fn write(
        &self,
        mut part: &File,
        mut bytes: &[u8],
        tenant: Option<u64>,
    ) -> Result<(), Unwritten> {
        while !bytes.is_empty() {
            match part.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) && self.make_room(part, tenant) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes the least recently used native code: the tenant's own while the tenant uses more
    /// than its share, otherwise anybody's. Returns false if nothing is left to remove.
    fn make_room(&self, part: &File, tenant: Option<u64>) -> bool {
        let mut entries = self.entries().unwrap_or_default();
        entries.retain(|entry| matches!(entry.kind, Kind::Native(_)));
        let own = part.metadata().map_or(0, |part| part.len());
        let all = own + bytes_of(&entries, |_| true);
        let own = own + bytes_of(&entries, |entry| entry.is_of(tenant));
        let first =
            entries.iter().rev().find(|entry| entry.is_of(tenant) && own > all / SHARE_OF_TENANT);
        first.or(entries.last()).is_some_and(|entry| self.remove(entry).is_ok())
    }

    /// Whether native code of this size is more than one module of a tenant may use.
    pub(crate) fn is_too_large(&self, bytes: u64) -> bool {
        bytes > self.most / SHARE_OF_ONE
    }

    /// Publishes the draft from [`Cache::part`] as the module's native code.
    pub(crate) fn keep(
        &self,
        key: &Key,
        mut part: File,
        mut about: About,
    ) -> Result<About, Unwritten> {
        let path = self.file(key, "so");
        let mut keep = || -> Result<About, Unwritten> {
            let (digest, bytes) = hash(part.as_fd(), u64::MAX)?;
            about.native = digest.to_hex().to_string();
            about.native_bytes = bytes;
            let text = serde_json::to_vec(&about).map_err(Error::from)?;
            let length = u32::try_from(text.len()).context("too much to say of it")?;
            part.seek(io::SeekFrom::End(0))?;
            let tail = [&text[..], &length.to_le_bytes(), MAGIC].concat();
            self.write(&part, &tail, about.tenant)?;
            // The container's user reads the file by a descriptor. Nobody else can enter the
            // directory.
            rustix::fs::fchmod(&part, Mode::from_raw_mode(0o444)).map_err(io::Error::from)?;
            part.sync_all()?;
            fs::rename(self.file(key, "part"), &path)?;
            self.forget_failure(key);
            Ok(about.clone())
        };
        keep().map_err(|unwritten| {
            self.discard(key);
            unwritten.context(format!("write `{}`", path.display()))
        })
    }

    pub(crate) fn discard(&self, key: &Key) {
        discard(&self.file(key, "part"));
    }

    /// Records that a module cannot be compiled with these limits, for the given time or until the
    /// record is forgotten.
    pub(crate) fn give_up(
        &self,
        key: &Key,
        name: &str,
        why: &str,
        settings: &CompilerSettings,
        hold: Option<Duration>,
    ) -> Result<()> {
        let path = self.file(key, "failed");
        let failure = Failure {
            module: key.module.to_hex().to_string(),
            name: name.to_owned(),
            why: why.to_owned(),
            seconds: settings.seconds,
            memory_bytes: settings.memory_bytes,
            until: hold.map(|hold| now() + hold.min(LONGEST_HOLD).as_secs()),
        };
        Draft::write(path.clone(), &serde_json::to_vec(&failure)?, 0o600)
            .with_context(|| format!("write `{}`", path.display()))?
            .publish()
    }

    pub(crate) fn forget_failure(&self, key: &Key) {
        // Usually there is no such file.
        discard(&self.file(key, "failed"));
    }

    /// All entries, the most recently used first.
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

    /// Returns `None` if the file is not an entry, or if it has disappeared.
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
            "job" if is_claimed(path) => Kind::Job,
            // A job is still writing this file.
            "part" if is_claimed(&path.with_extension("job")) => return None,
            "job" | "part" => Kind::Useless,
            _ => return None,
        };
        let mut entry =
            Entry { bytes: metadata.len(), used: metadata.modified().ok()?, hits: 0, key, kind };
        if let (Kind::Native(_), Ok(hits)) =
            (&entry.kind, fs::metadata(self.file(&entry.key, "hits")))
        {
            entry.hits = hits.len();
            entry.used = hits.modified().map_or(entry.used, |used| used.max(entry.used));
        }
        Some(entry)
    }

    /// Removes unusable entries, then the least recently used, down to `most` bytes. Jobs of other
    /// modules count towards `most`; the job of `next` does not. Returns the number of removed
    /// entries and bytes.
    ///
    /// Space for `next` comes first from the native code of its own tenant, while that tenant uses
    /// more than its share.
    pub(crate) fn prune(
        &self,
        most: u64,
        useful: impl Fn(&Entry) -> bool,
        next: Option<&Next<'_>>,
    ) -> Result<(usize, u64)> {
        let key = next.map(|next| next.key.to_string());
        let mut entries = self.entries()?;
        let is_job = |entry: &Entry| matches!(entry.kind, Kind::Job);
        let waits = |entry: &Entry| is_job(entry) && Some(&entry.key) != key.as_ref();
        let (mut left, mut gone) = (bytes_of(&entries, waits), (0, 0));
        if let Some(next) = next {
            let mut all = left + bytes_of(&entries, |entry| !is_job(entry) && useful(entry));
            let is_own = |entry: &Entry| entry.is_of(next.tenant) && useful(entry);
            let mut own = next.bytes + bytes_of(&entries, is_own);
            for at in (0..entries.len()).rev() {
                if all <= most || own <= self.most / SHARE_OF_TENANT {
                    break;
                }
                if is_own(&entries[at]) {
                    let entry = entries.remove(at);
                    self.remove(&entry)?;
                    (all, own) = (all - entry.bytes, own - entry.bytes);
                    gone = (gone.0 + 1, gone.1 + entry.bytes);
                }
            }
        }
        for entry in entries.iter().filter(|entry| !is_job(entry)) {
            if useful(entry) && left + entry.bytes <= most {
                left += entry.bytes;
                continue;
            }
            self.remove(entry)?;
            gone = (gone.0 + 1, gone.1 + entry.bytes);
        }
        self.tidy();
        Ok(gone)
    }

    fn remove(&self, entry: &Entry) -> Result<()> {
        let ends: &[&str] = match entry.kind {
            Kind::Native(_) => &["so", "hits"],
            Kind::Failed(_) => &["failed"],
            Kind::Job | Kind::Useless => &["so", "hits", "failed", "part"],
        };
        let job = self.file(&entry.key, "job");
        remove_unclaimed(&job);
        // The draft of a running job stays.
        for end in ends.iter().filter(|end| **end != "part" || !job.exists()) {
            let path = self.file(&entry.key, end);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove `{}`", path.display()));
                }
                _ => {}
            }
        }
        discard(&self.verified.join(&entry.key));
        Ok(())
    }
}

/// Removes a file that may be gone already or may not be removable. The caller of this function
/// reports its own, first error.
fn discard(path: &Path) {
    let _ = fs::remove_file(path);
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn is_locked(file: BorrowedFd<'_>, start: u64, length: u64) -> bool {
    // If the filesystem does not support locks, no process has one.
    syscall::locked(file, Lock::Write, start, length).is_ok_and(|place| place.is_some())
}

/// Whether a process has claimed a job.
fn is_claimed(path: &Path) -> bool {
    open(path).is_ok_and(|job| is_locked(job.as_fd(), CLAIM, 1))
}

/// Whether a process waits for the job that this process has claimed.
pub(crate) fn is_awaited(job: BorrowedFd<'_>) -> bool {
    is_locked(job, WAITS, TENANTS)
}

/// Finds a tenant that waits for a job, other than `own`.
pub(crate) fn another_that_waits(job: BorrowedFd<'_>, own: u64) -> Option<u64> {
    let others = [(WAITS, own), (WAITS + own + 1, TENANTS - own - 1)];
    // `fcntl(2)` takes a length of 0 as "to the end of the file".
    let others = others.into_iter().filter(|(_, length)| *length > 0);
    let find = |(start, length)| syscall::locked(job, Lock::Write, start, length).ok().flatten();
    others.filter_map(find).next().map(|place| place.saturating_sub(WAITS))
}

/// Marks that a job's compiler runs, or that it no longer does.
pub(crate) fn note_that_it_runs(job: BorrowedFd<'_>, runs: bool) {
    let lock = if runs { Lock::Write } else { Lock::Free };
    if let Err(error) = syscall::lock(job, lock, RUNS, 1) {
        tracing::debug!("say that a compiler runs: {error}");
    }
}

/// Native code that is to be kept when space has been made for it.
#[derive(Debug)]
pub(crate) struct Next<'a> {
    pub(crate) key: &'a Key,
    pub(crate) bytes: u64,
    /// `None` for the administrator, who may use the whole cache.
    pub(crate) tenant: Option<u64>,
}

impl Entry {
    /// Whether this is native code that the tenant had compiled. The administrator's code belongs
    /// to no tenant.
    fn is_of(&self, tenant: Option<u64>) -> bool {
        matches!(&self.kind, Kind::Native(about) if tenant.is_some() && about.tenant == tenant)
    }
}

fn bytes_of(entries: &[Entry], which: impl Fn(&Entry) -> bool) -> u64 {
    entries.iter().filter(|entry| which(entry)).map(|entry| entry.bytes).sum()
}

/// Removes a job that no process works on any more. A new job gets this name only if the name is
/// free. So, of all processes that find the job, only the one that has locked it removes it.
fn remove_unclaimed(path: &Path) {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(job) = rustix::fs::open(path, flags, Mode::empty()) else { return };
    if syscall::lock(job.as_fd(), Lock::Write, CLAIM, 1).is_err() {
        return;
    }
    if let (Ok(ours), Ok(there)) = (rustix::fs::fstat(&job), rustix::fs::lstat(path))
        && (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
    {
        discard(path);
    }
}

/// The number of a tenant, used as the place of a lock. The modules of one tenant are compiled one
/// at a time.
pub(crate) fn number_of(tenant: &str) -> u64 {
    let digest = blake3::hash(tenant.as_bytes());
    let (first, _) = digest.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*first) % TENANTS
}

/// How often a waiting process looks again.
pub(crate) const TURN: Duration = Duration::from_millis(20);

/// Why native code was not written.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// The filesystem or the quota is full.
    Full(Error),
    Otherwise(Error),
}

impl Unwritten {
    pub(crate) fn context(self, what: impl Display + Send + Sync + 'static) -> Unwritten {
        match self {
            Unwritten::Full(error) => Unwritten::Full(error.context(what)),
            Unwritten::Otherwise(error) => Unwritten::Otherwise(error.context(what)),
        }
    }
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Unwritten {
        let is_full = is_full(&error);
        if is_full { Unwritten::Full(error.into()) } else { Unwritten::Otherwise(error.into()) }
    }
}

impl From<Error> for Unwritten {
    fn from(error: Error) -> Unwritten {
        Unwritten::Otherwise(error)
    }
}

/// Whether the filesystem or the quota is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Reads the description at the end of a file of native code. Returns `None` if the file is
/// incomplete.
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

/// The digest of at most the first `most` bytes of a file, and how many bytes were read.
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

/// The digest of a module, or `None` if the module is too large to be compiled.
pub(crate) fn digest(module: BorrowedFd<'_>) -> Result<Option<blake3::Hash>> {
    let (digest, length) = hash(module, LARGEST + 1).context("read the module")?;
    Ok((length <= LARGEST).then_some(digest))
}

/// Copies a module to an empty file, and returns the digest of the copied bytes.
fn copy(module: BorrowedFd<'_>, to: &File) -> io::Result<blake3::Hash> {
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
