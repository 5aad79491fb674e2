//! The files of a Spin component by WASI 0.3: the same as by WASI 0.2 (`files.rs`).
#![forbid(unsafe_code)]

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, FutureReader, Linker, Resource, StreamReader};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode,
    HostDescriptorWithStore, MetadataHashValue, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::FilesystemError;

use super::files::identity;
use crate::open::OPEN_AT;
use crate::open::newer::{self, Arguments, Entries, READ_DIRECTORY, TYPES};
use crate::world::World;

type Answer<T> = wasmtime::Result<Result<T, ErrorCode>>;
type Place = (Resource<Descriptor>, PathFlags, String);
type Guest = Accessor<World>;

/// Replaces the functions that take a path, in a linker that has [`newer::guard`]'s.
pub(super) fn guard(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_concurrent(OPEN_AT, |guest: &Guest, arguments: Arguments| {
        Box::pin(async move { Ok((open_at(guest, arguments).await?,)) })
    })?;
    types.func_wrap_concurrent("[method]descriptor.stat-at", |guest: &Guest, place: Place| {
        Box::pin(async move { Ok((stat_at(guest, place).await?,)) })
    })?;
    types.func_wrap_concurrent(
        "[method]descriptor.metadata-hash-at",
        |guest: &Guest, place: Place| {
            Box::pin(async move { Ok((metadata_hash_at(guest, place).await?,)) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.readlink-at",
        |guest: &Guest, place: (Resource<Descriptor>, String)| {
            Box::pin(async move { Ok((readlink_at(guest, place).await?,)) })
        },
    )?;
    types.func_wrap(
        READ_DIRECTORY,
        |store: StoreContextMut<'_, World>, (directory,): (Resource<Descriptor>,)| {
            Ok((read_directory(store, directory)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Passes an error on to the guest, unless it is a trap.
fn answer<T>(result: Result<T, FilesystemError>) -> Answer<T> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => error.downcast().map(Err),
    }
}

fn files(guest: &Guest) -> Accessor<World, WasiFilesystem> {
    guest.with_getter::<WasiFilesystem>(World::filesystem)
}

/// Whether some files are withheld from this directory.
fn is_hiding(guest: &Guest, directory: &Resource<Descriptor>) -> wasmtime::Result<bool> {
    guest.with(|mut access| Ok(access.get().hides_in(directory)?.is_some()))
}

async fn open_at(guest: &Guest, arguments: Arguments) -> Answer<Resource<Descriptor>> {
    let Some(from) = guest.with(|mut access| access.get().hides_in(&arguments.0))? else {
        return newer::open(guest, arguments).await;
    };
    let follow = arguments.1.contains(PathFlags::SYMLINK_FOLLOW);
    let shows =
        guest.with(|mut access| access.get().shows(&arguments.0, from, &arguments.2, follow))?;
    if !shows.await {
        return Ok(Err(ErrorCode::NoEntry));
    }
    let opened = match newer::open(guest, arguments).await? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    guest.with(|mut access| {
        let world = access.get();
        let own = match world.filesystem().table.get(&opened)? {
            Descriptor::File(file) => identity(&file.file)?,
            Descriptor::Dir(directory) => identity(&directory.dir)?,
        };
        if world.shown().is_some_and(|shown| shown.has(from, own)) {
            return Ok(Ok(opened));
        }
        world.filesystem().table.delete(opened)?;
        Ok(Err(ErrorCode::NoEntry))
    })
}

/// Opens a file for a look at it only.
async fn look_at(guest: &Guest, (directory, flags, path): Place) -> Answer<Resource<Descriptor>> {
    let arguments = (directory, flags, path, OpenFlags::empty(), DescriptorFlags::READ);
    open_at(guest, arguments).await
}

fn close(guest: &Guest, opened: Resource<Descriptor>) -> wasmtime::Result<()> {
    guest.with(|mut access| {
        access.get().filesystem().table.delete(opened)?;
        Ok(())
    })
}

async fn stat_at(guest: &Guest, place: Place) -> Answer<DescriptorStat> {
    if !is_hiding(guest, &place.0)? {
        let (directory, flags, path) = place;
        return answer(WasiFilesystem::stat_at(&files(guest), directory, flags, path).await);
    }
    let opened = match look_at(guest, place).await? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let own = Resource::new_borrow(opened.rep());
    let stat = WasiFilesystem::stat(&files(guest), own).await;
    close(guest, opened)?;
    answer(stat)
}

async fn metadata_hash_at(guest: &Guest, place: Place) -> Answer<MetadataHashValue> {
    if !is_hiding(guest, &place.0)? {
        let (directory, flags, path) = place;
        let hash = WasiFilesystem::metadata_hash_at(&files(guest), directory, flags, path).await;
        return answer(hash);
    }
    let opened = match look_at(guest, place).await? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let own = Resource::new_borrow(opened.rep());
    let hash = WasiFilesystem::metadata_hash(&files(guest), own).await;
    close(guest, opened)?;
    answer(hash)
}

async fn readlink_at(
    guest: &Guest,
    (directory, path): (Resource<Descriptor>, String),
) -> Answer<String> {
    if is_hiding(guest, &directory)? {
        // No pattern matches a symbolic link.
        return Ok(Err(ErrorCode::NoEntry));
    }
    answer(WasiFilesystem::readlink_at(&files(guest), directory, path).await)
}

fn read_directory(
    mut store: StoreContextMut<'_, World>,
    directory: Resource<Descriptor>,
) -> wasmtime::Result<Entries> {
    let world = store.data_mut();
    let shown = world.shown();
    let names = match world.hides_in(&directory)? {
        Some(own) => shown.and_then(|shown| shown.directories.get(&own).cloned()),
        None => None,
    };
    let Some(names) = names else {
        return newer::read_directory(store, directory);
    };
    let entries = names.iter().map(|(name, is_directory)| DirectoryEntry {
        type_: match is_directory {
            true => DescriptorType::Directory,
            false => DescriptorType::RegularFile,
        },
        name: name.clone(),
    });
    let entries: Vec<DirectoryEntry> = entries.collect();
    let result = async { wasmtime::error::Ok(Ok(())) };
    Ok((StreamReader::new(&mut store, entries)?, FutureReader::new(&mut store, result)?))
}
