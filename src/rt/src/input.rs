//! Files that a command line or the host's administrator names. `rt` reads them as a whole.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The largest file in bytes that is read as a whole. The limit is only about size: the largest
/// configurations have some megabytes.
const LARGEST_FILE: u64 = 256 << 20;

/// Reads all of a file of the caller or the administrator.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read_all(&File::open(path)?)
}

/// Reads all of an open file. A file may claim any size, because a sparse one uses no space.
pub(crate) fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("it is larger than {LARGEST_FILE} bytes"));
    let length = file.metadata()?.len();
    if length > LARGEST_FILE {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // A pipe has no length.
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE { Err(too_large()) } else { Ok(bytes) }
}
