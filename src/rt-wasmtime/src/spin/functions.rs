//! Functions of SQL in place of SQLite's own. One call of SQLite's `instr`, `replace`, `trim` or
//! `unhex` may compute for hours, because it compares each place of one text with all of another
//! one. Between the instructions of a statement, SQLite looks at the clock, and not inside one. The
//! time of these is linear in the sizes of their arguments. What they return is the same.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::memmem;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::limits::Limit;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Error, Result};

/// Replaces the functions of a connection.
pub(super) fn replace(connection: &Connection) -> Result<()> {
    // As SQLite's own. Without the last one, no schema could use them.
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    let longest = usize::try_from(connection.limit(Limit::SQLITE_LIMIT_LENGTH)?).unwrap_or(0);
    connection.create_scalar_function("instr", 2, flags, |it| instr(it))?;
    let replaced = move |context: &mut Context<'_>| replaced(context, longest);
    connection.create_scalar_function("replace", 3, flags, replaced)?;
    for (name, ends) in [("ltrim", (true, false)), ("rtrim", (false, true)), ("trim", (true, true))]
    {
        for count in [1, 2] {
            let trimmed = move |context: &mut Context<'_>| trimmed(context, ends);
            connection.create_scalar_function(name, count, flags, trimmed)?;
        }
    }
    // With one argument, SQLite's own is linear.
    connection.create_scalar_function("unhex", 2, flags, |it| unhex(it))
}

/// A text, maybe not UTF-8.
struct Text(Vec<u8>);

impl ToSql for Text {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

/// A value as text, as `CAST` makes it.
fn text(value: ValueRef<'_>) -> Option<Cow<'_, [u8]>> {
    Some(match value {
        ValueRef::Null => return None,
        ValueRef::Integer(number) => Cow::Owned(number.to_string().into_bytes()),
        ValueRef::Real(number) => Cow::Owned(real(number).into_bytes()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Cow::Borrowed(bytes),
    })
}

/// A number as SQLite writes it: with a point, and with an exponent if it is very large or small.
fn real(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "Inf".into() } else { "-Inf".into() };
    }
    let short = format!("{number:e}");
    let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..17).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let point = if digits.contains('.') { "" } else { ".0" };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}{point}e{sign}{:02}", exponent.abs())
}

fn is_inner(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// The place of the second argument in the first: in bytes if both are blobs, or else in
/// characters.
fn instr(context: &Context<'_>) -> Result<Option<i64>> {
    let (one, other) = (context.get_raw(0), context.get_raw(1));
    let are_blobs = matches!((one, other), (ValueRef::Blob(_), ValueRef::Blob(_)));
    let (Some(all), Some(part)) = (text(one), text(other)) else { return Ok(None) };
    let place = match part.first() {
        // No character begins so.
        Some(first) if is_inner(*first) && !are_blobs => all.starts_with(&part).then_some(0),
        _ => memmem::find(&all, &part),
    };
    let count = |place: usize| match are_blobs {
        true => place,
        false => all.iter().take(place + 1).skip(1).filter(|byte| !is_inner(**byte)).count(),
    };
    Ok(Some(place.map_or(0, |place| 1 + count(place).cast_signed() as i64)))
}

/// The first argument with the third in place of the second.
fn replaced(context: &Context<'_>, longest: usize) -> Result<Option<Text>> {
    let values = (text(context.get_raw(0)), text(context.get_raw(1)));
    let (Some(all), Some(part)) = values else { return Ok(None) };
    if part.first().is_none_or(|first| *first == 0) {
        return Ok(Some(Text(all.into_owned())));
    }
    let Some(new) = text(context.get_raw(2)) else { return Ok(None) };
    let (mut made, mut rest) = (Vec::new(), 0);
    for place in memmem::find_iter(&all, &*part) {
        made.extend_from_slice(&all[rest..place]);
        made.extend_from_slice(&new);
        rest = place + part.len();
        if made.len() > longest {
            return Err(Error::UserFunctionError("string or blob too big".into()));
        }
    }
    made.extend_from_slice(&all[rest..]);
    Ok(Some(Text(made)))
}

/// Characters of up to four bytes. What is not UTF-8 may have longer ones, which are left out.
struct Characters<'a> {
    short: [bool; 256],
    long: HashSet<&'a [u8]>,
}

impl<'a> Characters<'a> {
    /// Those of a text, which ends with the first NUL.
    fn of(text: &'a [u8]) -> Characters<'a> {
        let mut rest = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut all = Characters { short: [false; 256], long: HashSet::new() };
        while !rest.is_empty() {
            let (one, further) = rest.split_at(length(rest));
            match one {
                [byte] => all.short[usize::from(*byte)] = true,
                _ if one.len() <= 4 => drop(all.long.insert(one)),
                _ => {}
            }
            rest = further;
        }
        all
    }

    fn has(&self, one: &[u8]) -> bool {
        match one {
            [byte] => self.short[usize::from(*byte)],
            _ => !self.long.is_empty() && self.long.contains(one),
        }
    }

    /// The length of such a character at one end of a text: by `part`, a part of this length there.
    fn at<'b>(&self, text: usize, part: impl Fn(usize) -> &'b [u8]) -> Option<usize> {
        (1..=text.min(4)).find(|length| self.has(part(*length)))
    }
}

/// The length of the first character of a text that is not empty.
fn length(text: &[u8]) -> usize {
    match text[0] {
        0xc0.. => 1 + text.iter().skip(1).take_while(|byte| is_inner(**byte)).count(),
        _ => 1,
    }
}

/// The first argument without the characters of the second, or spaces, at these ends.
fn trimmed(context: &Context<'_>, (left, right): (bool, bool)) -> Result<Option<Text>> {
    let Some(all) = text(context.get_raw(0)) else { return Ok(None) };
    let set = match context.len() {
        1 => Some(Cow::Borrowed(&b" "[..])),
        _ => text(context.get_raw(1)),
    };
    let Some(set) = set else { return Ok(None) };
    let set = Characters::of(&set);
    let mut rest = &*all;
    while let Some(length) = set.at(rest.len(), |length| &rest[..length]).filter(|_| left) {
        rest = &rest[length..];
    }
    while let Some(length) =
        set.at(rest.len(), |length| &rest[rest.len() - length..]).filter(|_| right)
    {
        rest = &rest[..rest.len() - length];
    }
    Ok(Some(Text(rest.to_vec())))
}

/// The bytes that the first argument has as hexadecimal digits. Between two bytes, there may be
/// characters of the second argument.
fn unhex(context: &Context<'_>) -> Result<Option<Vec<u8>>> {
    let values = (text(context.get_raw(0)), text(context.get_raw(1)));
    let (Some(all), Some(set)) = values else { return Ok(None) };
    let set = Characters::of(&set);
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = all.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut made = Vec::new();
    while let Some(first) = rest.first() {
        if let Some(high) = digit(*first) {
            let Some(low) = rest.get(1).copied().and_then(digit) else { return Ok(None) };
            made.push(high << 4 | low);
            rest = &rest[2..];
            continue;
        }
        let (one, further) = rest.split_at(length(rest));
        if !set.has(one) {
            return Ok(None);
        }
        rest = further;
    }
    Ok(Some(made))
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Value;

    use super::*;

    /// These functions return what SQLite's own return.
    #[test]
    fn the_functions_are_those_of_sqlite() {
        let theirs = Connection::open_in_memory().expect("opened");
        let ours = Connection::open_in_memory().expect("opened");
        replace(&ours).expect("replaced");
        let all = [
            "NULL",
            "''",
            "'a'",
            "'abcabc'",
            "'bc'",
            "'äöüä'",
            "'ü'",
            "' a b '",
            "'  '",
            "x''",
            "x'00'",
            "x'616263'",
            "x'62'",
            "x'c3'",
            "x'a4'",
            "x'c3a4'",
            "x'80'",
            "x'8080'",
            "x'ff80'",
            "'a' || char(0) || 'b'",
            "char(0)",
            "1",
            "-12",
            "1.0",
            "0.1",
            "1e20",
            "-2.5e-7",
            "1e300",
            "123456789012345680.0",
            "1234567890123456.5",
            "1e999",
            "0.00001",
            "3.0e-5",
            "100000.0",
            "'€uro€'",
            "'€'",
            "'616263'",
            "'61 62-63'",
            "' -'",
            "'6 1'",
            "'616'",
            "'61ä62'",
            "'0'",
            "'AbCd'",
        ];
        let is_broken =
            |text: &str| ["x'c3'", "x'a4'", "x'80'", "x'8080'", "x'ff80'"].contains(&text);
        let mut calls = Vec::new();
        for one in all {
            for name in ["trim", "ltrim", "rtrim"] {
                calls.push(format!("{name}({one})"));
            }
            calls.push(format!("replace({one}, 'b', {one})"));
            for other in all {
                for name in ["instr", "trim", "ltrim", "rtrim", "unhex"] {
                    calls.push(format!("{name}({one}, {other})"));
                }
                // The only difference: for SQLite, all that is not UTF-8 is one character.
                if is_broken(one) && is_broken(other) {
                    calls.pop();
                }
                for new in ["NULL", "''", "'xyz'", "x'ff'", "7"] {
                    calls.push(format!("replace({one}, {other}, {new})"));
                }
            }
        }
        for call in calls {
            // As a blob, because a text may not be UTF-8.
            let sql = format!("SELECT typeof({call}), CAST({call} AS BLOB)");
            let get = |connection: &Connection| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                connection.query_row(&sql, [], row).map(|it: (String, Value)| it)
            };
            assert_eq!(get(&ours).expect(&call), get(&theirs).expect(&call), "{call}");
        }
    }

    #[test]
    fn a_schema_may_use_them() {
        let connection = Connection::open_in_memory().expect("opened");
        let off = rusqlite::config::DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA;
        connection.set_db_config(off, false).expect("set");
        replace(&connection).expect("replaced");
        let sql = "CREATE TABLE t (a CHECK (instr(a, 'x')), b AS (trim(a)));\
                   CREATE INDEX i ON t (replace(a, 'x', 'y')); INSERT INTO t VALUES ('x ')";
        connection.execute_batch(sql).expect("created");
        assert!(connection.execute_batch("INSERT INTO t VALUES ('y')").is_err());
    }
}
