//! Which files a guest may open: no file of the kernel's own, and no device.
//!
//! The root of a container shows `/proc`, `/sys` and `/dev`. By `/proc/self/mem`, a guest could
//! write to this process, and would no longer be a guest. wasmtime opens a path with
//! `RESOLVE_BENEATH` (openat2(2)), which refuses the magic links of procfs, and does not look at
//! the filesystem. So this file replaces the one function by which a guest opens files.
#![forbid(unsafe_code)]

use rt_engine::files::is_for_guests;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, Host, HostDescriptor, OpenFlags, PathFlags,
};

pub(crate) const TYPES: &str = "wasi:filesystem/types@0.2.12";
pub(crate) const OPEN_AT: &str = "[method]descriptor.open-at";

pub(crate) type Arguments = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
pub(crate) type Opened = Result<Resource<Descriptor>, ErrorCode>;

/// Replaces the function in a linker that has all of WASI. Fails if the linker has no such
/// function, because then wasmtime calls it something else.
pub(crate) fn guard<T: WasiView + WasiFilesystemView>(
    linker: &mut Linker<T>,
) -> wasmtime::Result<()> {
    if define(linker).is_ok() {
        wasmtime::bail!("`{OPEN_AT}` of `{TYPES}` is not the function that opens files");
    }
    linker.allow_shadowing(true);
    let defined = define(linker);
    linker.allow_shadowing(false);
    defined
}

fn define<T: WasiView + WasiFilesystemView>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    linker.instance(TYPES)?.func_wrap_async(
        OPEN_AT,
        |mut store: StoreContextMut<'_, T>, arguments: Arguments| {
            Box::new(async move { Ok((open(store.data_mut(), arguments).await?,)) })
        },
    )
}

/// The same for WASI 0.3.
pub(crate) mod newer {
    use rt_engine::files::is_for_guests;
    use wasmtime::component::{Accessor, Linker, Resource};
    use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
    use wasmtime_wasi::p3::bindings::filesystem::types::{
        DescriptorFlags, ErrorCode, HostDescriptorWithStore, OpenFlags, PathFlags,
    };

    use super::OPEN_AT;
    use crate::world::World;

    pub(crate) const TYPES: &str = "wasi:filesystem/types@0.3.0";

    pub(crate) type Arguments =
        (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
    pub(crate) type Opened = Result<Resource<Descriptor>, ErrorCode>;

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
        linker.instance(TYPES)?.func_wrap_concurrent(
            OPEN_AT,
            |accessor: &Accessor<World>, arguments: Arguments| {
                Box::pin(async move { Ok((open(accessor, arguments).await?,)) })
            },
        )
    }

    /// Opens a file for a guest.
    pub(crate) async fn open(
        accessor: &Accessor<World>,
        (directory, path_flags, path, open_flags, flags): Arguments,
    ) -> wasmtime::Result<Opened> {
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
}

/// Opens a file for a guest.
pub(crate) async fn open<T: WasiFilesystemView>(
    data: &mut T,
    (directory, path_flags, path, open_flags, flags): Arguments,
) -> wasmtime::Result<Opened> {
    let mut view = data.filesystem();
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
