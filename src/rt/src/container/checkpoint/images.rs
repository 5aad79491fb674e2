//! The format of CRIU's images: messages of protocol buffers, each after its length
//! (`https://criu.org/Images`). Somebody may have made an image to use up memory, so nothing here
//! makes a copy.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use protobuf::CodedInputStream;
use protobuf::rt::WireType;

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
