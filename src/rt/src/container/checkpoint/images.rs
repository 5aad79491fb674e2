//! The format of CRIU's images: messages of protocol buffers, each after its length
//! (`https://criu.org/Images`). Somebody may have made an image to use up memory, so nothing here
//! makes a copy.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, ensure};
use protobuf::CodedInputStream;
use protobuf::rt::WireType;
use rustix::fs::{Mode, OFlags};

/// The first bytes of an image: those of all images, and those of its kind (`magic.h`).
pub(in crate::container) type Magic = [u8; 8];

/// The value of a field.
pub(in crate::container) enum Value<'m> {
    Bytes(&'m [u8]),
    Number(u64),
}

/// Calls `look` for each message of an image.
pub(in crate::container) fn each_message<'i>(
    image: &'i [u8],
    magic: &Magic,
    look: &mut dyn FnMut(&'i [u8]) -> Result<()>,
) -> Result<()> {
    let mut rest = start(image, magic)?;
    while !rest.is_empty() {
        let (message, after) = split(rest)?;
        look(message)?;
        rest = after;
    }
    Ok(())
}

/// The only message of an image. CRIU does not read any others that follow. The inventory has only
/// the first bytes of its kind.
pub(in crate::container) fn message<'i>(image: &'i [u8], magic: &[u8]) -> Result<&'i [u8]> {
    Ok(split(start(image, magic)?)?.0)
}

fn start<'i>(image: &'i [u8], magic: &[u8]) -> Result<&'i [u8]> {
    image.strip_prefix(magic).context("it is an image of another kind")
}

/// The first message, and the rest.
fn split(image: &[u8]) -> Result<(&[u8], &[u8])> {
    let (length, rest) = image.split_first_chunk().context("it is too short")?;
    let length = usize::try_from(u32::from_le_bytes(*length))?;
    rest.split_at_checked(length).context("it is too short")
}

/// Calls `look` for each field of a message, with the field's number.
pub(in crate::container) fn each<'m>(
    message: &'m [u8],
    look: &mut dyn FnMut((u32, Value<'m>)) -> Result<()>,
) -> Result<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        let (number, kind) = (tag >> 3, WireType::new(tag & 7).context("it is damaged")?);
        match kind {
            WireType::LengthDelimited => {
                let length = stream.read_raw_varint32()?;
                let start = usize::try_from(stream.pos())?;
                stream.skip_raw_bytes(length)?;
                look((number, Value::Bytes(&message[start..usize::try_from(stream.pos())?])))?;
            }
            WireType::Varint => look((number, Value::Number(stream.read_raw_varint64()?)))?,
            kind => stream.skip_field(kind)?,
        }
    }
    Ok(())
}

/// The same for a message in which no field repeats. Of a message that is there twice, CRIU makes
/// one of both, and `rt` looks at each alone.
pub(in crate::container) fn each_once<'m>(
    message: &'m [u8],
    look: &mut dyn FnMut((u32, Value<'m>)) -> Result<()>,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    each(message, &mut |(number, value)| {
        ensure!(seen.insert(number), "it has the field {number} twice");
        look((number, value))
    })
}

/// Calls `look` for each number of a field that repeats: alone, or packed with others.
pub(in crate::container) fn each_number(
    value: &Value<'_>,
    look: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    match value {
        Value::Number(number) => look(*number),
        Value::Bytes(packed) => {
            let mut stream = CodedInputStream::from_bytes(packed);
            while !stream.eof()? {
                look(stream.read_raw_varint64()?)?;
            }
            Ok(())
        }
    }
}

/// Fails for flags that change a file when it is opened. A file that is open does not have them.
pub(in crate::container) fn refuse_changing(flags: u64) -> Result<()> {
    let changing = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
    ensure!(
        flags & u64::from(changing.unsigned_abs()) == 0,
        "it opens a file with {flags:#o}, which changes the file"
    );
    Ok(())
}

/// A number of 32 bits. CRIU ignores further bits.
pub(in crate::container) fn small(number: u64) -> Result<u64> {
    Ok(u64::from(u32::try_from(number)?))
}

pub(in crate::container) fn shown(path: &[u8]) -> String {
    OsStr::from_bytes(path).display().to_string().escape_debug().to_string()
}

/// Whether a path from the root has no `..`, and is the same for a program in C: not longer than
/// `PATH_MAX`.
pub(in crate::container) fn is_plain(path: &[u8]) -> bool {
    path.starts_with(b"/")
        && path.len() < 4096
        && !path.contains(&0)
        && !path.split(|byte| *byte == b'/').any(|part| part == b"..")
}

/// The images whose names begin so.
pub(in crate::container) fn names_with(images: BorrowedFd<'_>, start: &str) -> Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(images, ".", flags, Mode::empty())
        .and_then(rustix::fs::Dir::new)
        .context("read the directory of the checkpoint")?;
    let mut found = Vec::new();
    for entry in folder {
        let name = entry.context("read the directory of the checkpoint")?;
        // CRIU's own names are of this form.
        if let Ok(name) = name.file_name().to_str()
            && name.starts_with(start)
        {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

/// Images for tests.
#[cfg(test)]
pub(in crate::container) mod made {
    use protobuf::CodedOutputStream;

    use super::Magic;

    fn written(write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        write(&mut out).and_then(|()| out.flush()).expect("it is in memory");
        drop(out);
        bytes
    }

    /// A field with a number.
    pub(in crate::container) fn number(field: u32, value: u64) -> Vec<u8> {
        written(|out| out.write_uint64(field, value))
    }

    /// A field with bytes.
    pub(in crate::container) fn bytes(field: u32, bytes: &[u8]) -> Vec<u8> {
        written(|out| out.write_bytes(field, bytes))
    }

    pub(in crate::container) fn image(magic: Magic, messages: &[Vec<u8>]) -> Vec<u8> {
        let framed = |message: &Vec<u8>| {
            let length = u32::try_from(message.len()).expect("short").to_le_bytes();
            [&length[..], message].concat()
        };
        [magic.to_vec(), messages.iter().flat_map(framed).collect()].concat()
    }
}
