//! The start of an engine program: from the command line to a process that owns its descriptors,
//! and has no others that it inherited.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek};

use crate::contract::{Contract, Run};
use crate::process;

/// The inputs of an engine program.
#[derive(Debug)]
pub struct Start {
    /// `NAME=VALUE` entries, each ended by a NUL byte: see [`variables`].
    pub environment: Vec<u8>,
    pub run: Run<File>,
}

impl Start {
    /// Takes over the descriptors of the command line, closes all others from 3 on, and reads the
    /// environment. Names the process after the guest's program, and keeps the image's libraries
    /// out of name lookups.
    ///
    /// Call this before threads start, and before the process opens anything.
    pub fn new(contract: Contract) -> Result<Start, String> {
        let open = process::close_all_but(contract.descriptors())?;
        let Contract { environment, run } = contract;
        let run = run.map(|descriptor| open.own(descriptor));
        let environment = read(&open.own(environment), None)
            .map_err(|error| format!("read the environment: {error}"))?;
        process::name_process(run.program());
        process::fix_name_lookups()?;
        Ok(Start { environment, run })
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
