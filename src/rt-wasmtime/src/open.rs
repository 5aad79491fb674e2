//! Which files a guest may open: no file of the kernel's own, and no device.
//!
//! The root of a container shows `/proc`, `/sys` and `/dev`. By `/proc/self/mem`, a guest could
//! write to this process, and would no longer be a guest. wasmtime opens a path with
//! `RESOLVE_BENEATH` (openat2(2)), which refuses the magic links of procfs, and does not look at
//! the filesystem. So this file replaces the one function by which a guest opens files.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use cap_primitives::fs::{FileTypeExt, FollowSymlinks, Metadata, stat};
use rt_engine::files::is_for_guests;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, Host, HostDescriptor, OpenFlags, PathFlags,
};

use crate::world::World;

pub(crate) const TYPES: &str = "wasi:filesystem/types@0.2.12";
pub(crate) const OPEN_AT: &str = "[method]descriptor.open-at";

pub(crate) type Arguments = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
pub(crate) type Opened = Result<Resource<Descriptor>, ErrorCode>;

/// Replaces the function in a linker that has all of WASI. Fails if the linker has no such
/// function, because then wasmtime calls it something else.
pub(crate) fn guard(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    if define(linker).is_ok() {
        wasmtime::bail!("`{OPEN_AT}` of `{TYPES}` is not the function that opens files");
    }
    linker.allow_shadowing(true);
    let defined = define(linker);
    linker.allow_shadowing(false);
    defined
}

fn define(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    linker.instance(TYPES)?.func_wrap_async(
        OPEN_AT,
        |mut store: StoreContextMut<'_, World>, arguments: Arguments| {
            Box::new(async move { Ok((open(store.data_mut(), arguments).await?,)) })
        },
    )
}

/// The same for WASI 0.3.
pub(crate) mod newer {
    use std::fs::File;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use cap_primitives::fs::{FileTypeExt, Metadata, read_base_dir};
    use rt_engine::files::is_for_guests;
    use tokio::sync::oneshot;
    use wasmtime::StoreContextMut;
    use wasmtime::component::{
        Access, Accessor, Destination, FutureReader, Linker, Resource, StreamProducer,
        StreamReader, StreamResult, VecBuffer,
    };
    use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
    use wasmtime_wasi::p3::bindings::filesystem::types::{
        DescriptorFlags, DescriptorType, DirectoryEntry, ErrorCode, HostDescriptorWithStore,
        OpenFlags, PathFlags,
    };

    use super::{OPEN_AT, look, waits};
    use crate::kept::{Items, Kept};
    use crate::world::World;

    pub(crate) const TYPES: &str = "wasi:filesystem/types@0.3.0";

    pub(crate) type Arguments =
        (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
    pub(crate) type Opened = Result<Resource<Descriptor>, ErrorCode>;

    pub(crate) const READ_DIRECTORY: &str = "[method]descriptor.read-directory";

    /// What a stream of entries consists of: the stream, and its result.
    pub(crate) type Entries = (StreamReader<DirectoryEntry>, FutureReader<Result<(), ErrorCode>>);

    /// The most entries of a directory that a guest of a server reads, and the most bytes of them.
    const MOST: usize = 100_000;
    const MOST_BYTES: usize = 8 << 20;

    pub(crate) fn guard(linker: &mut Linker<World>) -> wasmtime::Result<()> {
        replace(linker, OPEN_AT, |linker| {
            linker.instance(TYPES)?.func_wrap_concurrent(
                OPEN_AT,
                |accessor: &Accessor<World>, arguments: Arguments| {
                    Box::pin(async move { Ok((open(accessor, arguments).await?,)) })
                },
            )
        })?;
        replace(linker, READ_DIRECTORY, |linker| {
            linker.instance(TYPES)?.func_wrap(
                READ_DIRECTORY,
                |store: StoreContextMut<'_, World>, (directory,): (Resource<Descriptor>,)| {
                    Ok((read_directory(store, directory)?,))
                },
            )
        })
    }

    fn replace(
        linker: &mut Linker<World>,
        name: &str,
        define: impl Fn(&mut Linker<World>) -> wasmtime::Result<()>,
    ) -> wasmtime::Result<()> {
        if define(linker).is_ok() {
            wasmtime::bail!("`{TYPES}` has no function `{name}` that could be replaced");
        }
        linker.allow_shadowing(true);
        let defined = define(linker);
        linker.allow_shadowing(false);
        defined
    }

    /// Opens a file for a guest.
    pub(crate) async fn open(
        accessor: &Accessor<World>,
        (directory, path_flags, path, open_flags, flags): Arguments,
    ) -> wasmtime::Result<Opened> {
        if let Some(from) = accessor.with(|mut access| access.get().waits_elsewhere(&directory))? {
            let follow = path_flags.contains(PathFlags::SYMLINK_FOLLOW);
            if look(from, &path, follow).await.is_some_and(|found| waits(&found)) {
                return Ok(Err(ErrorCode::Access));
            }
        }
        let files = accessor.with_getter::<WasiFilesystem>(World::filesystem);
        let opened =
            WasiFilesystem::open_at(&files, directory, path_flags, path, open_flags, flags).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return error.downcast().map(Err),
        };
        accessor.with(|mut access| {
            let table = access.get().filesystem().table;
            let is_for_guests = match table.get(&opened)? {
                Descriptor::File(file) => is_for_guests(&*file.file),
                Descriptor::Dir(directory) => is_for_guests(&*directory.dir),
            };
            if is_for_guests {
                return Ok(Ok(opened));
            }
            table.delete(opened)?;
            Ok(Err(ErrorCode::Access))
        })
    }

    /// Reads a directory for a guest.
    ///
    /// wasmtime's own function keeps a thread of the pool until the guest has read the last entry,
    /// and the guest may never do that. So for the guests of a server, a thread reads all entries,
    /// and the stream is from memory.
    pub(crate) fn read_directory(
        mut store: StoreContextMut<'_, World>,
        directory: Resource<Descriptor>,
    ) -> wasmtime::Result<Entries> {
        let Some(from) = store.data_mut().waits_elsewhere(&directory)? else {
            let files = Access::new(store, |world: &mut World| world.filesystem());
            return WasiFilesystem::read_directory(files, directory);
        };
        let (ended, end) = oneshot::channel();
        let reading = Reading::Waiting(Box::pin(read(from)));
        let entries = StreamReader::new(&mut store, Stream { reading, ended: Some(ended) })?;
        Ok((entries, FutureReader::new(&mut store, end)?))
    }

    async fn read(directory: Arc<File>) -> Result<Items<DirectoryEntry>, ErrorCode> {
        let kept = Kept::take_at_most(MOST_BYTES).await.ok_or(ErrorCode::InsufficientMemory)?;
        let entries = tokio::task::spawn_blocking(move || read_all(&directory, kept));
        entries.await.unwrap_or(Err(ErrorCode::Io))
    }

    fn type_of(found: &Metadata) -> DescriptorType {
        let kind = found.file_type();
        match () {
            () if kind.is_file() => DescriptorType::RegularFile,
            () if kind.is_dir() => DescriptorType::Directory,
            () if kind.is_symlink() => DescriptorType::SymbolicLink,
            () if kind.is_fifo() => DescriptorType::Fifo,
            () if kind.is_socket() => DescriptorType::Socket,
            () if kind.is_block_device() => DescriptorType::BlockDevice,
            () if kind.is_char_device() => DescriptorType::CharacterDevice,
            () => DescriptorType::Other(None),
        }
    }

    /// `kept` is for the entries, and has room for the most of them.
    fn read_all(directory: &File, mut kept: Kept) -> Result<Items<DirectoryEntry>, ErrorCode> {
        let (mut entries, mut size) = (Vec::new(), 0);
        for entry in read_base_dir(directory)? {
            let entry = entry?;
            let type_ = type_of(&entry.metadata()?);
            let name = entry.file_name().into_string();
            let name = name.map_err(|_| ErrorCode::IllegalByteSequence)?;
            size += size_of::<DirectoryEntry>() + name.len();
            if entries.len() == MOST || size > kept.bytes() {
                return Err(ErrorCode::InsufficientMemory);
            }
            entries.push(DirectoryEntry { type_, name });
        }
        kept.shrink(size);
        Ok(Items::new(entries, kept))
    }

    type Read = Pin<Box<dyn Future<Output = Result<Items<DirectoryEntry>, ErrorCode>> + Send>>;

    enum Reading {
        Waiting(Read),
        Done(Items<DirectoryEntry>),
    }

    /// The entries of a directory.
    struct Stream {
        reading: Reading,
        /// Told how the stream ends.
        ended: Option<oneshot::Sender<Result<(), ErrorCode>>>,
    }

    impl Stream {
        fn end(&mut self, result: Result<(), ErrorCode>) {
            if let Some(ended) = self.ended.take() {
                let _ = ended.send(result);
            }
        }
    }

    impl Drop for Stream {
        fn drop(&mut self) {
            self.end(Ok(()));
        }
    }

    impl<D> StreamProducer<D> for Stream {
        type Item = DirectoryEntry;
        type Buffer = VecBuffer<DirectoryEntry>;

        fn poll_produce<'a>(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            store: StoreContextMut<'a, D>,
            destination: Destination<'a, DirectoryEntry, VecBuffer<DirectoryEntry>>,
            finish: bool,
        ) -> Poll<wasmtime::Result<StreamResult>> {
            loop {
                match &mut self.reading {
                    Reading::Done(items) => {
                        let produced =
                            Pin::new(items).poll_produce(context, store, destination, finish);
                        return produced;
                    }
                    Reading::Waiting(read) => match read.as_mut().poll(context) {
                        Poll::Pending if finish => {
                            return Poll::Ready(Ok(StreamResult::Cancelled));
                        }
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(items)) => self.reading = Reading::Done(items),
                        Poll::Ready(Err(error)) => {
                            self.end(Err(error));
                            return Poll::Ready(Ok(StreamResult::Dropped));
                        }
                    },
                }
            }
        }
    }
}

/// Opens a file for a guest.
pub(crate) async fn open(
    world: &mut World,
    (directory, path_flags, path, open_flags, flags): Arguments,
) -> wasmtime::Result<Opened> {
    if let Some(from) = world.waits_elsewhere(&directory)? {
        let follow = path_flags.contains(PathFlags::SYMLINK_FOLLOW);
        if look(from, &path, follow).await.is_some_and(|found| waits(&found)) {
            return Ok(Err(ErrorCode::Access));
        }
    }
    let mut view = world.filesystem();
    let opened = match view.open_at(directory, path_flags, path, open_flags, flags).await {
        Ok(opened) => opened,
        Err(error) => return view.convert_error_code(error).map(Err),
    };
    let is_for_guests = match view.table.get(&opened)? {
        Descriptor::File(file) => is_for_guests(&*file.file),
        Descriptor::Dir(directory) => is_for_guests(&*directory.dir),
    };
    if is_for_guests {
        return Ok(Ok(opened));
    }
    view.table.delete(opened)?;
    Ok(Err(ErrorCode::Access))
}

impl World {
    /// The directory, if a thread of the pool waits for the files below it: a command waits itself.
    pub(crate) fn waits_elsewhere(
        &mut self,
        directory: &Resource<Descriptor>,
    ) -> wasmtime::Result<Option<Arc<File>>> {
        if self.limits.are_of_a_command() {
            return Ok(None);
        }
        Ok(match self.filesystem().table.get(directory)? {
            Descriptor::Dir(directory) => Some(Arc::clone(&directory.dir)),
            Descriptor::File(_) => None,
        })
    }
}

/// The metadata of the file at a path, without opening the file. `None` if there is no file, or if
/// the guest may not know of it.
pub(crate) async fn look(directory: Arc<File>, path: &str, follow: bool) -> Option<Metadata> {
    let path = path.to_owned();
    let follow = if follow { FollowSymlinks::Yes } else { FollowSymlinks::No };
    let found = tokio::task::spawn_blocking(move || stat(&directory, Path::new(&path), follow));
    found.await.ok()?.ok()
}

/// Whether opening this file may wait for another process. A process that opens a FIFO waits until
/// another one opens the other end. That would hold a thread of the small pool for longer than the
/// guest's request. A socket cannot be opened at all.
///
/// A neighbour that shares a volume with the container could put a FIFO at the path after this
/// check. Then a thread waits until a process opens the other end. The neighbour must hit that
/// moment once for each thread, and gains nothing else.
pub(crate) fn waits(found: &Metadata) -> bool {
    let kind = found.file_type();
    kind.is_fifo() || kind.is_socket()
}
