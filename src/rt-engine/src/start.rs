//! From the command line to a process that owns its descriptors, and nothing else of the caller's.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use crate::contract::Contract;
use crate::process;

/// What an engine program starts with.
#[derive(Debug)]
pub struct Start {
    /// The engine's directory. It stays open: the C library may still load files from it.
    pub engine_dir: OwnedFd,
    pub module: File,
    /// What the module was compiled to, if it was.
    pub native: Option<OwnedFd>,
    /// `NAME=VALUE` entries, each ended by a NUL byte: see [`variables`].
    pub environment: Vec<u8>,
    /// Where plugins are. It stays open.
    pub plugin_dir: Option<OwnedFd>,
    /// Which files of it to load.
    pub plugins: Vec<String>,
    pub directories: Vec<Directory>,
    /// What the container may use, in bytes.
    pub memory: Option<u64>,
    /// How long the guest may run, in milliseconds.
    pub timeout: Option<c_int>,
    /// How many instructions the guest may run.
    pub fuel: Option<u64>,
    /// The guest's.
    pub arguments: Vec<String>,
}

/// A directory that the guest may use.
#[derive(Debug)]
pub struct Directory {
    /// Its name for the guest, and its path in the container.
    pub path: String,
    pub read_only: bool,
    /// It is open already, by this descriptor.
    pub descriptor: Option<OwnedFd>,
}

impl Start {
    /// Takes over the descriptors of the command line, closes all others from 3 on, reads the
    /// environment, names the process after the guest's program, and keeps the image's libraries
    /// out of name lookups.
    ///
    /// Before threads start, and before the process has opened anything.
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

/// No file that is read into memory is larger: a module, or the environment. In bytes.
pub const LARGEST: u64 = 1 << 30;

/// Reads all of a file, which may claim any size: a sparse one takes no space. With a limit of
/// memory, in bytes, it must not be larger than that. Any thread may call this.
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
    // It may grow meanwhile.
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The entries of an environment. A name alone is no variable. Any thread may call this.
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
