//! The format of CRIU's images: messages of protocol buffers, each after its length
//! (`https://criu.org/Images`). Somebody may have made an image to use up memory, so nothing here
//! makes a copy.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};

/// The first bytes of an image: those of all images, and those of its kind (`magic.h`).
pub(in crate::container) type Magic = [u8; 8];

/// The value of a field. It is opaque: whoever looks at a value says which type the field has, and
/// any other type is an error. CRIU's parser (protobuf-c) takes a `bool` of any type, and ignores
/// further bits of a number of 32 bits. CRIU writes no field twice, except for lists.
pub(in crate::container) struct Value<'m> {
    field: u32,
    /// Whether it was in the message before.
    is_again: bool,
    raw: Raw<'m>,
}

#[derive(Clone, Copy)]
enum Raw<'m> {
    Bytes(&'m [u8]),
    Number(u64),
    /// Of a fixed length. `rt` does not look at such fields.
    Fixed,
}

impl<'m> Value<'m> {
    /// Fails if the field was in the message before. Of a message that is there twice, CRIU makes
    /// one of both.
    pub(in crate::container) fn once(&self) -> Result<()> {
        ensure!(!self.is_again, "it has the field {} twice", self.field);
        Ok(())
    }

    fn wrong(&self) -> String {
        format!("its field {} is of another type", self.field)
    }

    pub(in crate::container) fn u64(&self) -> Result<u64> {
        self.once()?;
        let Raw::Number(number) = self.raw else { bail!(self.wrong()) };
        Ok(number)
    }

    pub(in crate::container) fn u32(&self) -> Result<u32> {
        u32::try_from(self.u64()?).ok().with_context(|| self.wrong())
    }

    pub(in crate::container) fn flag(&self) -> Result<bool> {
        Ok(self.u64()? != 0)
    }

    pub(in crate::container) fn bytes(&self) -> Result<&'m [u8]> {
        self.once()?;
        self.item()
    }

    /// One of a list of bytes or of messages.
    pub(in crate::container) fn item(&self) -> Result<&'m [u8]> {
        let Raw::Bytes(bytes) = self.raw else { bail!(self.wrong()) };
        Ok(bytes)
    }

    /// Calls `look` for each number of a list: alone, or packed with others.
    pub(in crate::container) fn each_u32(
        &self,
        look: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<()> {
        let mut look = |number| look(u32::try_from(number).ok().with_context(|| self.wrong())?);
        match self.raw {
            Raw::Number(number) => look(number),
            Raw::Bytes(mut packed) => {
                while !packed.is_empty() {
                    look(varint(&mut packed)?)?;
                }
                Ok(())
            }
            Raw::Fixed => bail!(self.wrong()),
        }
    }
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
    mut message: &'m [u8],
    look: &mut dyn FnMut(u32, &Value<'m>) -> Result<()>,
) -> Result<()> {
    let mut seen = 0_u64;
    while !message.is_empty() {
        let tag = u32::try_from(varint(&mut message)?)?;
        let field = tag >> 3;
        let raw = match tag & 7 {
            0 => Raw::Number(varint(&mut message)?),
            1 => fixed(&mut message, 8)?,
            2 => {
                let length = varint(&mut message)?;
                Raw::Bytes(take(&mut message, usize::try_from(length)?)?)
            }
            5 => fixed(&mut message, 4)?,
            _ => bail!("it is damaged"),
        };
        // No field that `rt` looks at has a higher number.
        let bit = 1_u64.checked_shl(field).unwrap_or(0);
        let is_again = seen & bit == bit;
        seen |= bit;
        look(field, &Value { field, is_again, raw })?;
    }
    Ok(())
}

fn fixed<'m>(message: &mut &'m [u8], length: usize) -> Result<Raw<'m>> {
    take(message, length)?;
    Ok(Raw::Fixed)
}

fn take<'m>(rest: &mut &'m [u8], length: usize) -> Result<&'m [u8]> {
    rest.split_off(..length).context("it is too short")
}

/// A number with seven bits in each byte, of at most 64 bits.
fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        ensure!(bits << shift >> shift == bits, "it is damaged");
        number |= bits << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    bail!("it is damaged")
}

/// Fails for flags that change a file when it is opened. A file that is open does not have them.
pub(in crate::container) fn refuse_changing(flags: u32) -> Result<()> {
    let changing = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
    ensure!(
        flags & changing.unsigned_abs() == 0,
        "it opens a file with {flags:#o}, which changes the file"
    );
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at the field 3 of a message.
    fn read<'m, T>(message: &'m [u8], look: impl Fn(&Value<'m>) -> Result<T>) -> Result<Vec<T>> {
        let mut found = Vec::new();
        each(message, &mut |field, value| {
            if field == 3 {
                found.push(look(value)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn a_value_is_of_its_type() {
        let all = [
            made::number(3, 1),
            made::bytes(3, &[1]),
            [&[3 << 3 | 5], &[1; 4][..]].concat(),
            [&[3 << 3 | 1], &[1; 8][..]].concat(),
        ];
        for (at, message) in all.iter().enumerate() {
            assert_eq!(read(message, Value::u64).is_ok(), at == 0);
            assert_eq!(read(message, Value::u32).is_ok(), at == 0);
            assert_eq!(read(message, Value::flag).is_ok(), at == 0);
            assert_eq!(read(message, |value| Ok(value.bytes()?.to_owned())).is_ok(), at == 1);
            assert_eq!(read(message, |value| Ok(value.item()?.to_owned())).is_ok(), at == 1);
            assert_eq!(read(message, |value| value.each_u32(&mut |_| Ok(()))).is_ok(), at < 2);
            let other = [&made::number(2, 7), &message[..], &made::bytes(4, &[])].concat();
            read(&other, |_| Ok(())).expect("nobody looks at it");
        }
        // A group.
        read(&[3 << 3 | 3, 3 << 3 | 4], |_| Ok(())).expect_err("protobuf-c has no groups");
    }

    #[test]
    fn a_value_is_there_once() {
        let twice = made::number(3, 0).repeat(2);
        let error = read(&twice, Value::u64).expect_err("it is there twice").to_string();
        assert_eq!(error, "it has the field 3 twice");
        read(&made::bytes(3, &[]).repeat(2), |value| value.bytes().map(<[u8]>::len))
            .expect_err("it is there twice");
        assert_eq!(
            read(&made::bytes(3, &[]).repeat(2), |value| value.item().map(<[u8]>::len))
                .expect("it is a list"),
            [0, 0]
        );
        let high = made::number(64, 1);
        each(&high, &mut |_, value| value.once()).expect_err("it has no bit");
    }

    #[test]
    fn a_number_has_its_size() {
        for (number, is_small) in [(0, true), (0xffff_ffff, true), (1 << 32, false)] {
            assert_eq!(read(&made::number(3, number), Value::u64).expect("read"), [number]);
            assert_eq!(read(&made::number(3, number), Value::u32).is_ok(), is_small);
        }
        assert_eq!(read(&made::number(3, u64::MAX), Value::u64).expect("read"), [u64::MAX]);
        let long = |last: u8| [&[3 << 3], &[0x80; 9][..], &[last]].concat();
        assert_eq!(read(&long(1), Value::u64).expect("read"), [1 << 63]);
        for bad in [long(2), long(0x81), vec![3 << 3], vec![3 << 3, 0x80], vec![3 << 3 | 2, 1]] {
            read(&bad, |_| Ok(())).expect_err("it is damaged");
        }
        // The number of the field has further bits.
        read(&[0x98, 0x80, 0x80, 0x80, 0x10, 0], |_| Ok(())).expect_err("it is damaged");
    }
}
