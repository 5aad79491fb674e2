//! Messages to and from a D-Bus, as far as `rt` requires them for systemd (D-Bus Specification,
//! "Type System" and "Message Protocol").
//!
//! This is our own code. libcgroups receives no signals, and runs a program, `busctl`, to learn who
//! the user is. The published synchronous client leaves its socket open to children, cannot
//! authenticate in a user namespace, and spins on a closed connection.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// A value with its type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Byte(u8),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    ObjectPath(String),
    Signature(String),
    /// The type of the elements, and the elements.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub(super) fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    pub(super) fn bytes(bytes: &[u8]) -> Value {
        Value::Array("y".to_owned(), bytes.iter().map(|byte| Value::Byte(*byte)).collect())
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::ObjectPath(text) => Some(text),
            Value::Variant(value) => value.as_text(),
            _ => None,
        }
    }

    pub(super) fn as_bytes(&self) -> Option<Vec<u8>> {
        let byte = |value: &Value| if let Value::Byte(byte) = value { Some(*byte) } else { None };
        match self {
            Value::Array(_, values) => values.iter().map(byte).collect(),
            Value::Variant(value) => value.as_bytes(),
            _ => None,
        }
    }

    pub(super) fn as_fields(&self) -> Option<&[Value]> {
        match self {
            Value::Struct(fields) => Some(fields),
            Value::Variant(value) => value.as_fields(),
            _ => None,
        }
    }

    pub(super) fn signature(&self) -> String {
        match self {
            Value::Bool(_) => "b".into(),
            Value::Byte(_) => "y".into(),
            Value::Int32(_) => "i".into(),
            Value::Uint32(_) => "u".into(),
            Value::Int64(_) => "x".into(),
            Value::Uint64(_) => "t".into(),
            Value::Double(_) => "d".into(),
            Value::Text(_) => "s".into(),
            Value::ObjectPath(_) => "o".into(),
            Value::Signature(_) => "g".into(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(values) => format!("({})", signature(values)),
            Value::Variant(_) => "v".into(),
        }
    }
}

fn signature(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

/// The alignment of a value of this type, in bytes.
fn alignment(kind: u8) -> usize {
    match kind {
        b'y' | b'g' | b'v' => 1,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 4,
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn aligned(&mut self, bytes: &[u8]) {
        self.align(bytes.len());
        self.0.extend(bytes);
    }

    /// The length of a text of less than 4 GiB. No bus accepts a longer text.
    fn length(&mut self, length: usize) {
        self.aligned(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    }

    fn write(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => self.aligned(&u32::from(*value).to_ne_bytes()),
            Value::Byte(value) => self.0.push(*value),
            Value::Int32(value) => self.aligned(&value.to_ne_bytes()),
            Value::Uint32(value) => self.aligned(&value.to_ne_bytes()),
            Value::Int64(value) => self.aligned(&value.to_ne_bytes()),
            Value::Uint64(value) => self.aligned(&value.to_ne_bytes()),
            Value::Double(value) => self.aligned(&value.to_ne_bytes()),
            Value::Text(text) | Value::ObjectPath(text) => {
                self.length(text.len());
                self.0.extend(text.as_bytes());
                self.0.push(0);
            }
            Value::Signature(text) => {
                self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                self.0.extend(text.as_bytes());
                self.0.push(0);
            }
            Value::Array(element, values) => {
                self.length(0);
                let at = self.0.len();
                self.align(alignment(element.as_bytes().first().copied().unwrap_or(b'y')));
                let start = self.0.len();
                for value in values {
                    self.write(value);
                }
                let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
                self.0[at - 4..at].copy_from_slice(&length.to_ne_bytes());
            }
            Value::Struct(values) => {
                self.align(8);
                for value in values {
                    self.write(value);
                }
            }
            Value::Variant(value) => {
                self.write(&Value::Signature(value.signature()));
                self.write(value);
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..length));
        self.at += length;
        taken.context("a message is shorter than it says")
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn word(&mut self) -> Result<u32> {
        self.align(4);
        Ok(u32::from_ne_bytes(self.take(4)?.try_into()?))
    }

    fn long(&mut self) -> Result<[u8; 8]> {
        self.align(8);
        Ok(self.take(8)?.try_into()?)
    }

    fn string(&mut self, length: usize) -> Result<String> {
        let text = String::from_utf8(self.take(length)?.to_vec())?;
        self.take(1)?;
        Ok(text)
    }

    /// Reads one value of the first type in a signature. Returns it with the rest of the signature.
    fn value<'s>(&mut self, signature: &'s [u8], depth: u8) -> Result<(Value, &'s [u8])> {
        ensure!(depth < 32, "a value is nested too deeply");
        let (&kind, rest) = signature.split_first().context("a value without a type")?;
        let value = match kind {
            b'y' => Value::Byte(self.take(1)?[0]),
            b'b' => Value::Bool(self.word()? != 0),
            b'i' => Value::Int32(self.word()?.cast_signed()),
            b'u' | b'h' => Value::Uint32(self.word()?),
            b'x' => Value::Int64(i64::from_ne_bytes(self.long()?)),
            b't' => Value::Uint64(u64::from_ne_bytes(self.long()?)),
            b'd' => Value::Double(f64::from_ne_bytes(self.long()?)),
            b's' | b'o' => {
                let length = usize::try_from(self.word()?)?;
                let text = self.string(length)?;
                if kind == b's' { Value::Text(text) } else { Value::ObjectPath(text) }
            }
            b'g' => {
                let length = usize::from(self.take(1)?[0]);
                Value::Signature(self.string(length)?)
            }
            b'v' => {
                let (Value::Signature(inner), _) = self.value(b"g", depth + 1)? else {
                    bail!("a variant without a type")
                };
                Value::Variant(Box::new(self.value(inner.as_bytes(), depth + 1)?.0))
            }
            // An entry of a dictionary has the layout of a structure.
            b'(' | b'{' => {
                self.align(8);
                let (mut fields, mut inner) = (Vec::new(), rest);
                while inner.first() != Some(&end_of(kind)) {
                    let (field, after) = self.value(inner, depth + 1)?;
                    fields.push(field);
                    inner = after;
                }
                return Ok((Value::Struct(fields), &inner[1..]));
            }
            b'a' => {
                let end = usize::try_from(self.word()?)?;
                let element = rest.first().copied().context("an array without a type")?;
                self.align(alignment(element));
                let end = self.at + end;
                let mut values = Vec::new();
                let after = skip(rest)?;
                while self.at < end {
                    let before = self.at;
                    values.push(self.value(rest, depth + 1)?.0);
                    ensure!(self.at > before, "an array of nothing");
                }
                let element = &rest[..rest.len() - after.len()];
                let element = String::from_utf8_lossy(element).into_owned();
                return Ok((Value::Array(element, values), after));
            }
            kind => bail!("a value of the unknown type `{}`", char::from(kind)),
        };
        Ok((value, rest))
    }
}

fn end_of(bracket: u8) -> u8 {
    if bracket == b'(' { b')' } else { b'}' }
}

/// The rest of a signature after its first type.
fn skip(signature: &[u8]) -> Result<&[u8]> {
    let (&kind, mut rest) = signature.split_first().context("a type is missing")?;
    match kind {
        b'a' => skip(rest),
        b'(' | b'{' => {
            while rest.first() != Some(&end_of(kind)) {
                rest = skip(rest)?;
            }
            Ok(&rest[1..])
        }
        _ => Ok(rest),
    }
}

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// The specification's limit of a message, in bytes.
const LONGEST: usize = 128 << 20;

const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// A method call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) body: Vec<Value>,
}

impl Call<'_> {
    fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Writer::default();
        for value in &self.body {
            body.write(value);
        }
        let field = |code: u8, value: Value| {
            Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))])
        };
        let mut fields = vec![
            field(PATH, Value::ObjectPath(self.path.to_owned())),
            field(INTERFACE, Value::text(self.interface)),
            field(MEMBER, Value::text(self.member)),
            field(DESTINATION, Value::text(self.destination)),
        ];
        if !self.body.is_empty() {
            fields.push(field(SIGNATURE, Value::Signature(signature(&self.body))));
        }
        let mut message = Writer(vec![ORDER, METHOD_CALL, 0, 1]);
        message.length(body.0.len());
        message.write(&Value::Uint32(serial));
        message.write(&Value::Array("(yv)".to_owned(), fields));
        message.align(8);
        message.0.extend(body.0);
        message.0
    }
}

/// The only signal that `rt` waits for. systemd's own socket gives all signals. Their content can
/// be of any type, so the content of others is not read.
pub(super) const JOB_REMOVED: &str = "JobRemoved";

/// A received message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: u8,
    reply_to: u32,
    /// The unique name of the sender, which the bus's daemon writes. systemd writes its own name if
    /// there is no daemon.
    pub(super) sender: String,
    pub(super) member: String,
    error: String,
    pub(super) body: Vec<Value>,
}

impl Message {
    /// Whether it is a signal that nothing waits for.
    fn is_unheard(&self) -> bool {
        self.kind == SIGNAL && self.member != JOB_REMOVED
    }
}

/// The size of the fixed part of a message's header, with the length of the fields.
const FIXED: usize = 16;

fn decode(bytes: &[u8]) -> Result<Message> {
    let mut message = Message {
        kind: bytes[1],
        reply_to: 0,
        sender: String::new(),
        member: String::new(),
        error: String::new(),
        body: Vec::new(),
    };
    let mut reader = Reader { bytes, at: 12 };
    let (fields, _) = reader.value(b"a(yv)", 0)?;
    let Value::Array(_, fields) = fields else { bail!("a message without a header") };
    let mut types = String::new();
    for field in fields {
        let Value::Struct(pair) = field else { continue };
        let [Value::Byte(code), Value::Variant(value)] = &pair[..] else { continue };
        match (*code, &**value) {
            (SENDER, Value::Text(text)) => message.sender.clone_from(text),
            (MEMBER, Value::Text(text)) => message.member.clone_from(text),
            (ERROR_NAME, Value::Text(text)) => message.error.clone_from(text),
            (REPLY_SERIAL, Value::Uint32(serial)) => message.reply_to = *serial,
            (SIGNATURE, Value::Signature(text)) => types.clone_from(text),
            _ => {}
        }
    }
    if message.is_unheard() {
        return Ok(message);
    }
    reader.align(8);
    let rest = bytes.get(reader.at..).unwrap_or_default();
    let mut body = Reader { bytes: rest, at: 0 };
    let mut types = types.as_bytes();
    while !types.is_empty() {
        let (value, rest) = body.value(types, 0)?;
        message.body.push(value);
        types = rest;
    }
    Ok(message)
}

/// The error that the other side answers.
#[derive(Debug)]
pub(super) struct Refusal {
    /// For example `org.freedesktop.DBus.Error.AccessDenied`.
    pub(super) name: String,
    pub(super) text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text.trim_end_matches('.');
        f.write_str(if text.is_empty() { &self.name } else { text })
    }
}

impl std::error::Error for Refusal {}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(Box<Refusal>),
    /// The other side could not be reached, or its answer could not be understood.
    Unanswered(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Unanswered(error)
    }
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> anyhow::Error {
        match failure {
            Failure::Refused(refusal) => (*refusal).into(),
            Failure::Unanswered(error) => error,
        }
    }
}

/// A connection, after authentication.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    serial: u32,
    /// Bytes that are written with the next call.
    unsent: Vec<u8>,
    /// Bytes that were read and are of no message yet.
    unread: Vec<u8>,
    /// Messages that arrived during the wait for another one.
    waiting: Vec<Message>,
    end: Instant,
}

impl Connection {
    /// All calls of the connection must have ended at `end`.
    pub(super) fn open(path: &Path, end: Instant) -> Result<Connection> {
        let show = || format!("connect to `{}`", path.display());
        let stream = UnixStream::connect(path).with_context(show)?;
        let (unsent, unread, waiting) = (Vec::new(), Vec::new(), Vec::new());
        let mut connection = Connection { stream, serial: 0, unsent, unread, waiting, end };
        connection.authenticate().with_context(show)?;
        Ok(connection)
    }

    /// Authenticates without a user name. The kernel names the user, even if a user namespace shows
    /// this process another uid. `BEGIN` need not wait for the answer: who is not let in is refused
    /// whatever follows.
    fn authenticate(&mut self) -> Result<()> {
        self.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        // One answer to each of the first two. systemd before 242 says OK to both.
        let first = self.line()?;
        let last = if first.starts_with(b"REJECTED") { first.clone() } else { self.line()? };
        let is_in = first.starts_with(b"OK") || last.starts_with(b"OK");
        ensure!(is_in, "not let in: {}", String::from_utf8_lossy(&last).trim_end());
        Ok(())
    }

    /// Reads a line, with its end.
    fn line(&mut self) -> Result<Vec<u8>> {
        const END: &[u8] = b"\r\n";
        loop {
            if let Some(at) = self.unread.windows(END.len()).position(|bytes| bytes == END) {
                return Ok(self.unread.drain(..at + END.len()).collect());
            }
            ensure!(self.unread.len() < 16384, "no answer to the authentication");
            self.read()?;
        }
    }

    /// Reads this many bytes.
    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.unread.len() < length {
            self.read()?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    /// Reads what is there, or waits for more.
    fn read(&mut self) -> Result<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer in time");
        self.stream.set_read_timeout(Some(left))?;
        let mut buffer = [0; 4096];
        let length = loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                length => break length.context("wait for an answer")?,
            }
        };
        ensure!(length > 0, "wait for an answer: the connection is closed");
        self.unread.extend(&buffer[..length]);
        Ok(())
    }

    /// Calls a method together with the next calls. Returns the serial number of the call.
    pub(super) fn call_later(&mut self, call: &Call<'_>) -> u32 {
        self.serial += 1;
        self.unsent.extend(call.encode(self.serial));
        self.serial
    }

    /// Calls several methods at once, and returns the serial numbers of the calls.
    pub(super) fn call_all(&mut self, calls: &[Call<'_>]) -> Result<Vec<u32>> {
        let (mut bytes, mut serials) = (std::mem::take(&mut self.unsent), Vec::new());
        for call in calls {
            self.serial += 1;
            serials.push(self.serial);
            bytes.extend(call.encode(self.serial));
        }
        self.stream.write_all(&bytes).context("write to the bus")?;
        Ok(serials)
    }

    /// Waits for a method's result.
    pub(super) fn answer(&mut self, serial: u32) -> Result<Vec<Value>, Failure> {
        Ok(self.reply(serial)?.body)
    }

    /// The same, with the sender.
    pub(super) fn reply(&mut self, serial: u32) -> Result<Message, Failure> {
        let answers = |message: &Message| {
            matches!(message.kind, METHOD_RETURN | ERROR) && message.reply_to == serial
        };
        let message = self.wait(answers)?;
        if message.kind == ERROR {
            let text = message.body.first().and_then(Value::as_text).unwrap_or_default();
            let text = text.to_owned();
            return Err(Failure::Refused(Box::new(Refusal { name: message.error, text })));
        }
        Ok(message)
    }

    /// Waits for a message that `wanted` accepts. Other messages are kept.
    pub(super) fn wait(&mut self, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        if let Some(at) = self.waiting.iter().position(&wanted) {
            return Ok(self.waiting.remove(at));
        }
        loop {
            let message = self.receive()?;
            if wanted(&message) {
                return Ok(message);
            }
            if !message.is_unheard() {
                self.waiting.push(message);
            }
        }
    }

    fn receive(&mut self) -> Result<Message> {
        let mut bytes = self.take(FIXED)?;
        ensure!(bytes[0] == ORDER, "a message in another byte order than this machine's");
        let word = |at: usize| -> Result<usize> {
            Ok(usize::try_from(u32::from_ne_bytes(bytes[at..at + 4].try_into()?))?)
        };
        let (body, fields) = (word(4)?, word(12)?);
        let length = (FIXED + fields).next_multiple_of(8) + body;
        ensure!(length <= LONGEST, "a message of {length} bytes");
        bytes.extend(self.take(length - FIXED)?);
        decode(&bytes)
    }
}

#[cfg(test)]
pub(super) fn encode(call: &Call<'_>) -> Vec<u8> {
    call.encode(1)
}

#[cfg(test)]
pub(super) fn body(message: &[u8]) -> Result<Vec<Value>> {
    ensure!(message.len() >= FIXED, "too short");
    decode(message).map(|message| message.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let body = vec![
            Value::text("unit"),
            Value::Array(
                "(sv)".to_owned(),
                vec![
                    Value::Struct(vec![
                        Value::text("PIDs"),
                        Value::Variant(Box::new(Value::Array(
                            "u".to_owned(),
                            vec![Value::Uint32(7)],
                        ))),
                    ]),
                    Value::Struct(vec![
                        Value::text("Weight"),
                        Value::Variant(Box::new(Value::Uint64(1 << 40))),
                    ]),
                ],
            ),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
            Value::Array(
                "{sv}".to_owned(),
                vec![Value::Struct(vec![
                    Value::text("ActiveState"),
                    Value::Variant(Box::new(Value::text("active"))),
                ])],
            ),
            Value::Bool(true),
            Value::bytes(&[1, 2, 3]),
            Value::Double(1.5),
            Value::Int64(-1),
        ];
        let call = Call {
            destination: "a.b",
            path: "/a/b",
            interface: "a.b.C",
            member: "D",
            body: body.clone(),
        };
        let message = decode(&call.encode(5)).expect("a message");
        assert_eq!((message.kind, message.member.as_str()), (METHOD_CALL, "D"));
        assert_eq!(message.body, body);
    }

    #[test]
    fn a_broken_message_is_an_error() {
        let call = Call {
            destination: "a",
            path: "/",
            interface: "a",
            member: "b",
            body: vec![Value::text("text")],
        };
        let good = call.encode(1);
        for end in 16..good.len() {
            assert!(decode(&good[..end]).is_err(), "{end}");
        }
        for at in 12..good.len() {
            let mut broken = good.clone();
            broken[at] = 0xff;
            // The bytes may still be a message. The test only checks that decoding ends.
            let _ = decode(&broken);
        }
    }
}
