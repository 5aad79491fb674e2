//! The start of an engine program: from the command line to a process that owns its descriptors,
//! and has no others that it inherited.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use crate::contract::Contract;
use crate::process;

/// The inputs of an engine program.
#[derive(Debug)]
pub struct Start {
    /// The engine's directory. It stays open, because the C library may still load files from it.
    pub engine_dir: OwnedFd,
    pub module: File,
    /// The module's native code, if it has any.
    pub native: Option<OwnedFd>,
    /// `NAME=VALUE` entries, each ended by a NUL byte: see [`variables`].
    pub environment: Vec<u8>,
    /// The directory of the plugins. It stays open.
    pub plugin_dir: Option<OwnedFd>,
    /// The files in that directory to load.
    pub plugins: Vec<String>,
    pub directories: Vec<Directory>,
    /// The container's memory limit, in bytes.
    pub memory: Option<u64>,
    /// The guest's time limit, in milliseconds.
    pub timeout: Option<c_int>,
    /// The number of instructions that the guest may run.
    pub fuel: Option<u64>,
    /// The guest's arguments.
    pub arguments: Vec<String>,
}

/// A directory that the guest may use.
#[derive(Debug)]
pub struct Directory {
    /// Its name for the guest, which is also its path in the container.
    pub path: String,
    pub read_only: bool,
    /// The descriptor by which it is open already.
    pub descriptor: Option<OwnedFd>,
}

impl Start {
    /// Takes over the descriptors of the command line, closes all others from 3 on, and reads the
    /// environment. Names the process after the guest's program, and keeps the image's libraries
    /// out of name lookups.
    ///
    /// Call this before threads start, and before the process opens anything.
    pub fn new(contract: Contract) -> Result<Start, String> {
        let Contract {
            engine_dir,
            module,
            native,
            environment,
            plugin_dir,
            plugins,
            directories,
            memory,
            timeout,
            fuel,
            arguments,
        } = contract;
        let (mut places, mut opened) = (Vec::new(), Vec::new());
        for directory in directories {
            places.push((directory.path, directory.read_only, directory.descriptor.is_some()));
            opened.extend(directory.descriptor);
        }
        let list = |one| vec![one];
        let optional = |one: Option<_>| one.into_iter().collect();
        let [engine_dir, module, environment, native, plugin_dir, opened] = process::take_over([
            list(engine_dir),
            list(module),
            list(environment),
            optional(native),
            optional(plugin_dir),
            opened,
        ])?;
        let one = |list: Vec<OwnedFd>| list.into_iter().next();
        let missing = || "a descriptor is missing".to_owned();
        let mut opened = opened.into_iter();
        let directories = places.into_iter().map(|(path, read_only, is_open)| Directory {
            path,
            read_only,
            descriptor: if is_open { opened.next() } else { None },
        });
        let directories = directories.collect();
        let environment = File::from(one(environment).ok_or_else(missing)?);
        let environment =
            read(&environment, None).map_err(|error| format!("read the environment: {error}"))?;
        process::name_process(arguments.first().map(String::as_str).unwrap_or_default());
        process::fix_name_lookups()?;
        Ok(Start {
            engine_dir: one(engine_dir).ok_or_else(missing)?,
            module: File::from(one(module).ok_or_else(missing)?),
            native: one(native),
            environment,
            plugin_dir: one(plugin_dir),
            plugins,
            directories,
            memory,
            timeout,
            fuel,
            arguments,
        })
    }

    /// The guest's program, as it calls itself.
    pub fn program(&self) -> &str {
        self.arguments.first().map(String::as_str).unwrap_or_default()
    }
}

/// The maximum size in bytes of a file that is read into memory: a module, or the environment.
pub const LARGEST: u64 = 1 << 30;

/// Reads all of a file. A file may claim any size, because a sparse one uses no space. If there is
/// a memory limit, in bytes, the file must not be larger. Any thread may call this.
pub fn read(mut file: &File, memory: Option<u64>) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let length = file.metadata().map_err(failed)?.len();
    let most = memory.map_or(LARGEST, |memory| memory.min(LARGEST));
    if length > most {
        let of = if most < LARGEST { ", all that the container may use" } else { "" };
        return Err(format!("it has {length} bytes, more than {most}{of}"));
    }
    let mut bytes = Vec::new();
    file.rewind().map_err(failed)?;
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(wanted).map_err(|_| format!("no memory for its {length} bytes"))?;
    // The file may grow in the meantime.
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The entries of an environment. A name without a value is not a variable. Any thread may call
/// this.
pub fn variables(environment: &[u8]) -> Result<Vec<&str>, String> {
    let text =
        std::str::from_utf8(environment).map_err(|_| "the environment is not UTF-8".to_owned())?;
    Ok(text.split_terminator('\0').filter(|variable| variable.contains('=')).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_larger_than_the_memory() {
        let path = std::env::temp_dir().join(format!("rt-engine-read-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.expect("made");
        std::fs::remove_file(path).expect("removed");
        for (length, memory, good) in [
            (5, None, true),
            (5, Some(5), true),
            (5, Some(4), false),
            (LARGEST + 1, None, false),
            (200 << 30, None, false),
        ] {
            file.set_len(length).expect("it is sparse");
            assert_eq!(read(&file, memory).is_ok(), good, "{length} {memory:?}");
        }
    }

    #[test]
    fn a_variable_has_a_value() {
        assert_eq!(variables(b"A=1\0B\0C=\0D=x=y\0"), Ok(vec!["A=1", "C=", "D=x=y"]));
        assert!(variables(b"A=\xff\0").is_err());
        assert_eq!(variables(b""), Ok(Vec::new()));
    }
}
