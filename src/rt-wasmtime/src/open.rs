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
