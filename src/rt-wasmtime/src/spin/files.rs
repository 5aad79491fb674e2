//! The files of a Spin component: those that its manifest lists, and no others, read-only.
//!
//! A listed directory is preopened. For the files of a pattern, the manifest's directory is
//! preopened, and the functions that take a path show only the matching files. Nothing is copied.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use cap_primitives::fs::{MetadataExt as _, open_dir, open_dir_nofollow};
use glob::{MatchOptions, Pattern};
use rt_engine::contract::Preopen;
use rt_engine::files::is_for_guests;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p2::FsError;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorStat, DirectoryEntry, DirectoryEntryStream, ErrorCode, Host,
    HostDescriptor, HostDirectoryEntryStream, MetadataHashValue, OpenFlags, PathFlags,
};

use crate::open::{self, OPEN_AT, TYPES};
use crate::world::World;
use rt_spin::plan;

/// The most files that the patterns of a component may match, the most that are looked at, and the
/// deepest directory.
const MOST: usize = 20_000;
const MOST_SEEN: usize = 200_000;
const DEEPEST: usize = 32;

/// The directory of the manifest. `None` if its user may not read it.
pub(super) struct Place(Option<File>);

/// The files of a component.
pub(super) struct Files {
    pub(super) directories: Vec<Preopen<File>>,
    pub(super) shown: Option<Arc<Shown>>,
}

/// The device and the inode of a file.
pub(super) type Identity = (u64, u64);

/// The names that a directory shows, and whether each is a directory.
pub(super) type Names = BTreeMap<String, bool>;

/// The files that a guest sees below the manifest's directory: by their identity, because a path
/// may lead to another file by the time it is opened.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    files: BTreeSet<Identity>,
    /// The directories above these files, with the names that they show.
    pub(super) directories: HashMap<Identity, Arc<Names>>,
}

/// The names that a stream of entries shows, by the number of the stream. Others show all.
pub(crate) type Streams = HashMap<u32, Arc<Names>>;

pub(super) fn identity(file: &File) -> std::io::Result<Identity> {
    let about = file.metadata()?;
    Ok((about.dev(), about.ino()))
}

impl Place {
    /// By the contract, `rt` has opened the manifest's directory, and no other.
    pub(super) fn new(directories: Vec<Preopen<File>>) -> Result<Place, String> {
        let opened = directories.into_iter().find_map(|it| it.descriptor);
        let opened = opened.ok_or("the directory of its manifest is missing")?;
        match File::open(format!("/proc/self/fd/{}/.", opened.as_raw_fd())) {
            Ok(opened) => Ok(Place(Some(opened))),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(Place(None)),
            Err(error) => Err(format!("open the directory of its manifest: {error}")),
        }
    }

    /// Finds the files of a component.
    pub(super) fn open(&self, component: &plan::Component) -> Result<Files, String> {
        let mut files = Files { directories: Vec::new(), shown: None };
        if component.files.is_empty() {
            return Ok(files);
        }
        let top = self.0.as_ref().ok_or("the directory of its manifest is not readable")?;
        let mut patterns = Vec::new();
        for entry in &component.files {
            match entry {
                plan::Files::Matching(pattern) => patterns.push(compiled(pattern)?),
                plan::Files::Directory { source, destination } => {
                    let show =
                        |why: &dyn std::fmt::Display| format!("`{source}` in `files`: {why}");
                    let opened = open_dir(top, Path::new(source)).map_err(|error| show(&error))?;
                    if !is_for_guests(&opened) {
                        return Err(show(&"it belongs to the kernel"));
                    }
                    files.add(destination, opened)?;
                }
            }
        }
        if !patterns.is_empty() {
            let exclude = component.exclude.iter().map(|it| compiled(it));
            let exclude = exclude.collect::<Result<Vec<_>, _>>()?;
            let mut search = Search { patterns, exclude, shown: Shown::default(), seen: 0 };
            search.walk(top, Path::new(""), 0)?;
            for Preopen { path, descriptor, .. } in &files.directories {
                let own = descriptor.as_ref().map(identity).transpose();
                let own = own.map_err(|error| error.to_string())?;
                if own.is_some_and(|own| search.shown.directories.contains_key(&own)) {
                    return Err(format!(
                        "the directory at `{path}` in `files` has files that match a pattern, too"
                    ));
                }
            }
            files.add("/", top.try_clone().map_err(|error| error.to_string())?)?;
            files.shown = Some(Arc::new(search.shown));
        }
        Ok(files)
    }
}

impl Files {
    fn add(&mut self, path: &str, opened: File) -> Result<(), String> {
        if self.directories.iter().any(|it| it.path == path) {
            return Err(format!("two entries of `files` are at `{path}`"));
        }
        let descriptor = Some(opened);
        self.directories.push(Preopen { path: path.to_owned(), read_only: true, descriptor });
        Ok(())
    }
}

fn compiled(pattern: &str) -> Result<Pattern, String> {
    let plain = pattern.strip_prefix("./").unwrap_or(pattern);
    Pattern::new(plain).map_err(|error| format!("`{pattern}` in `files`: {error}"))
}

/// `*` does not match a slash.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

struct Search {
    patterns: Vec<Pattern>,
    exclude: Vec<Pattern>,
    shown: Shown,
    seen: usize,
}

impl Search {
    /// Looks for matching files in a directory and below it. Returns whether there are any. Follows
    /// no symbolic link.
    fn walk(&mut self, directory: &File, path: &Path, depth: usize) -> Result<bool, String> {
        let show =
            |error: std::io::Error| format!("look for `files` in `/{}`: {error}", path.display());
        let own = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let mut names = Names::new();
        for entry in std::fs::read_dir(own).map_err(show)? {
            let entry = entry.map_err(show)?;
            self.seen += 1;
            if self.seen > MOST_SEEN {
                return Err(format!("there are more than {MOST_SEEN} files beside its manifest"));
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            let inner = path.join(&name);
            let kind = entry.file_type().map_err(show)?;
            if kind.is_dir() && depth < DEEPEST && self.may_match_below(&inner) {
                let Ok(opened) = open_dir_nofollow(directory, Path::new(&name)) else { continue };
                if is_for_guests(&opened) && self.walk(&opened, &inner, depth + 1)? {
                    names.insert(name, true);
                }
            } else if kind.is_file() && self.matches(&inner) {
                let about = entry.metadata().map_err(show)?;
                self.shown.files.insert((about.dev(), about.ino()));
                names.insert(name, false);
                if self.shown.files.len() > MOST {
                    return Err(format!("its `files` are more than {MOST}"));
                }
            }
        }
        let found = !names.is_empty();
        if found || depth == 0 {
            self.shown.directories.insert(identity(directory).map_err(show)?, Arc::new(names));
        }
        Ok(found)
    }

    fn matches(&self, path: &Path) -> bool {
        let any = |patterns: &[Pattern]| {
            patterns.iter().any(|pattern| pattern.matches_path_with(path, OPTIONS))
        };
        any(&self.patterns) && !any(&self.exclude)
    }

    /// Whether a pattern may match a file below this directory.
    fn may_match_below(&self, directory: &Path) -> bool {
        self.patterns.iter().any(|pattern| {
            let mut parts = Path::new(pattern.as_str()).components();
            for name in directory.components() {
                let Some(part) = parts.next() else { return false };
                let part = part.as_os_str().to_string_lossy();
                if part == "**" {
                    return true;
                }
                let matches = Pattern::new(&part).is_ok_and(|part| {
                    part.matches_with(&name.as_os_str().to_string_lossy(), OPTIONS)
                });
                if !matches {
                    return false;
                }
            }
            parts.next().is_some()
        })
    }
}

impl Shown {
    /// Whether a guest may see a file that was opened from this directory.
    pub(super) fn has(&self, from: Identity, opened: Identity) -> bool {
        // A directory that is listed as such is not among these.
        !self.directories.contains_key(&from)
            || self.files.contains(&opened)
            || self.directories.contains_key(&opened)
    }
}

type Answer<T> = wasmtime::Result<Result<T, ErrorCode>>;

/// Replaces the functions that take a path, in a linker that has [`open::guard`]'s.
pub(super) fn guard(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    type Place = (Resource<Descriptor>, PathFlags, String);
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async(
        OPEN_AT,
        |mut store: StoreContextMut<'_, World>, arguments: open::Arguments| {
            Box::new(async move { Ok((open_at(store.data_mut(), arguments).await?,)) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.stat-at",
        |mut store: StoreContextMut<'_, World>, place: Place| {
            Box::new(async move { Ok((stat_at(store.data_mut(), place).await?,)) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.metadata-hash-at",
        |mut store: StoreContextMut<'_, World>, place: Place| {
            Box::new(async move { Ok((metadata_hash_at(store.data_mut(), place).await?,)) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.readlink-at",
        |mut store: StoreContextMut<'_, World>, place: (Resource<Descriptor>, String)| {
            Box::new(async move { Ok((readlink_at(store.data_mut(), place).await?,)) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.read-directory",
        |mut store: StoreContextMut<'_, World>, (directory,): (Resource<Descriptor>,)| {
            Box::new(async move { Ok((read_directory(store.data_mut(), directory).await?,)) })
        },
    )?;
    types.func_wrap_async(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: StoreContextMut<'_, World>, (stream,): (Resource<DirectoryEntryStream>,)| {
            Box::new(async move { Ok((read_entry(store.data_mut(), stream).await?,)) })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

impl World {
    /// Whether some files are withheld from this directory. If so, its identity.
    pub(super) fn hides_in(
        &mut self,
        directory: &Resource<Descriptor>,
    ) -> wasmtime::Result<Option<Identity>> {
        let Some(shown) = self.shown() else { return Ok(None) };
        let Descriptor::Dir(own) = self.filesystem().table.get(directory)? else { return Ok(None) };
        Ok(Some(identity(&own.dir)?).filter(|it| shown.directories.contains_key(it)))
    }

    /// Whether something at a path in such a directory is shown. A file that is not must not even
    /// be opened, because it may be a FIFO, and every such path gives the same error.
    pub(super) fn shows(
        &mut self,
        directory: &Resource<Descriptor>,
        from: Identity,
        path: &str,
        follow: bool,
    ) -> wasmtime::Result<impl Future<Output = bool> + Send + use<>> {
        let (shown, directory) = (self.shown(), self.waits_elsewhere(directory)?);
        let path = path.to_owned();
        Ok(async move {
            let (Some(shown), Some(directory)) = (shown, directory) else { return false };
            let found = open::look(directory, &path, follow).await;
            found.is_some_and(|found| shown.has(from, (found.dev(), found.ino())))
        })
    }

    pub(super) fn shown(&self) -> Option<Arc<Shown>> {
        self.spin.as_ref()?.shown.clone()
    }
}

/// Passes an error on to the guest, unless it is a trap.
fn answer<T>(world: &mut World, result: Result<T, FsError>) -> Answer<T> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => world.filesystem().convert_error_code(error).map(Err),
    }
}

async fn open_at(world: &mut World, arguments: open::Arguments) -> Answer<Resource<Descriptor>> {
    let Some(from) = world.hides_in(&arguments.0)? else {
        return open::open(world, arguments).await;
    };
    let follow = arguments.1.contains(PathFlags::SYMLINK_FOLLOW);
    if !world.shows(&arguments.0, from, &arguments.2, follow)?.await {
        return Ok(Err(ErrorCode::NoEntry));
    }
    let opened = match open::open(world, arguments).await? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let own = match world.filesystem().table.get(&opened)? {
        Descriptor::File(file) => identity(&file.file)?,
        Descriptor::Dir(directory) => identity(&directory.dir)?,
    };
    if world.shown().is_some_and(|shown| shown.has(from, own)) {
        return Ok(Ok(opened));
    }
    world.filesystem().table.delete(opened)?;
    Ok(Err(ErrorCode::NoEntry))
}

/// Opens a file for a look at it only.
async fn look_at(
    world: &mut World,
    (directory, flags, path): (Resource<Descriptor>, PathFlags, String),
) -> Answer<Resource<Descriptor>> {
    open_at(world, (directory, flags, path, OpenFlags::empty(), DescriptorFlags::READ)).await
}

async fn stat_at(
    world: &mut World,
    place: (Resource<Descriptor>, PathFlags, String),
) -> Answer<DescriptorStat> {
    if world.hides_in(&place.0)?.is_none() {
        let (directory, flags, path) = place;
        let stat = world.filesystem().stat_at(directory, flags, path).await;
        return answer(world, stat);
    }
    let opened = match look_at(world, place).await? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let stat = world.filesystem().stat(Resource::new_borrow(opened.rep())).await;
    world.filesystem().table.delete(opened)?;
    answer(world, stat)
}

async fn metadata_hash_at(
    world: &mut World,
    place: (Resource<Descriptor>, PathFlags, String),
) -> Answer<MetadataHashValue> {
    if world.hides_in(&place.0)?.is_none() {
        let (directory, flags, path) = place;
        let hash = world.filesystem().metadata_hash_at(directory, flags, path).await;
        return answer(world, hash);
    }
    let opened = match look_at(world, place).await? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let hash = world.filesystem().metadata_hash(Resource::new_borrow(opened.rep())).await;
    world.filesystem().table.delete(opened)?;
    answer(world, hash)
}

async fn readlink_at(
    world: &mut World,
    (directory, path): (Resource<Descriptor>, String),
) -> Answer<String> {
    if world.hides_in(&directory)?.is_some() {
        // No pattern matches a symbolic link.
        return Ok(Err(ErrorCode::NoEntry));
    }
    let link = world.filesystem().readlink_at(directory, path).await;
    answer(world, link)
}

async fn read_directory(
    world: &mut World,
    directory: Resource<Descriptor>,
) -> Answer<Resource<DirectoryEntryStream>> {
    let own = world.hides_in(&directory)?;
    let shown = world.shown();
    let stream = world.filesystem().read_directory(directory).await;
    let stream = match answer(world, stream)? {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error)),
    };
    // The number may have been that of another stream.
    world.streams.remove(&stream.rep());
    if let Some(names) = own.and_then(|own| shown?.directories.get(&own).cloned()) {
        world.streams.insert(stream.rep(), names);
    }
    Ok(Ok(stream))
}

async fn read_entry(
    world: &mut World,
    stream: Resource<DirectoryEntryStream>,
) -> Answer<Option<DirectoryEntry>> {
    let names = world.streams.get(&stream.rep()).cloned();
    loop {
        let own = Resource::new_borrow(stream.rep());
        let entry = world.filesystem().read_directory_entry(own).await;
        let is_hidden = |entry: &DirectoryEntry| {
            names.as_ref().is_some_and(|names| !names.contains_key(&entry.name))
        };
        match entry {
            Ok(Some(entry)) if is_hidden(&entry) => {}
            entry => return answer(world, entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(patterns: &[&str]) -> Search {
        let patterns = patterns.iter().map(|it| compiled(it).expect("a pattern")).collect();
        let exclude = vec![compiled("**/*.bak").expect("a pattern")];
        Search { patterns, exclude, shown: Shown::default(), seen: 0 }
    }

    #[test]
    fn a_pattern_matches_by_this_table() {
        for (pattern, path, expected) in [
            ("*.txt", "a.txt", true),
            ("./*.txt", "a.txt", true),
            ("*.txt", "a/b.txt", false),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/**/*", "a/b/c", true),
            ("**/*", "a", true),
            ("**/*", "a/b.bak", false),
            ("a.txt", "a.txt", true),
            ("[ab].txt", "b.txt", true),
        ] {
            assert_eq!(search(&[pattern]).matches(Path::new(path)), expected, "{pattern} {path}");
        }
        for (pattern, directory, expected) in [
            ("*.txt", "a", false),
            ("a/*", "a", true),
            ("a/*", "b", false),
            ("a/*", "a/b", false),
            ("*/x", "b", true),
            ("a/**/x", "a/b/c", true),
            ("a", "a", false),
        ] {
            let may = search(&[pattern]).may_match_below(Path::new(directory));
            assert_eq!(may, expected, "{pattern} {directory}");
        }
    }

    #[test]
    fn a_search_follows_no_link_and_hides_the_rest() {
        let top = std::env::temp_dir().join(format!("rt-spin-files-{}", std::process::id()));
        std::fs::create_dir_all(top.join("a/b")).expect("made");
        std::fs::create_dir_all(top.join("empty")).expect("made");
        for name in ["a/1.txt", "a/b/2.txt", "a/secret", "3.txt"] {
            std::fs::write(top.join(name), name).expect("written");
        }
        std::os::unix::fs::symlink("/etc", top.join("a/etc")).expect("linked");
        std::os::unix::fs::symlink("secret", top.join("a/link.txt")).expect("linked");
        let opened = File::open(&top).expect("opened");
        let mut search = search(&["a/**/*.txt"]);
        assert!(search.walk(&opened, Path::new(""), 0).expect("walked"));
        let shown = search.shown;
        let of = |name: &str| identity(&File::open(top.join(name)).expect(name)).expect("known");
        for (name, expected) in [
            ("a/1.txt", true),
            ("a/b/2.txt", true),
            ("a", true),
            ("a/b", true),
            ("a/secret", false),
            ("3.txt", false),
            ("empty", false),
        ] {
            assert_eq!(shown.has(of("."), of(name)), expected, "{name}");
        }
        let names = shown.directories[&of("a")].keys().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(names, ["1.txt", "b"]);
        std::fs::remove_dir_all(top).expect("removed");
    }

    #[test]
    fn a_component_has_each_path_once() {
        let mut files = Files { directories: Vec::new(), shown: None };
        let opened = || File::open("/").expect("opened");
        files.add("/", opened()).expect("added");
        files.add("/a", opened()).expect("added");
        assert!(files.add("/", opened()).is_err());
    }
}
