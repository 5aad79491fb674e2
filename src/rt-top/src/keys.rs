//! The keys that a user types, from the bytes of a terminal in raw mode.

/// What the table does at a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Escape,
}

/// Finds the keys in what a terminal sends. A terminal sends all bytes of a key at once, so an
/// escape character at the end of the bytes is the key of that name. Other sequences are skipped.
pub(crate) fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        let (key, after) = match (first, rest) {
            (0x1b, [b'[', rest @ ..]) => {
                // Parameters, and a last byte that is a letter or `~`.
                let is_last = |byte: &u8| (0x40..=0x7e).contains(byte);
                let end = rest.iter().position(is_last).map_or(rest.len(), |at| at + 1);
                (sequence(&rest[..end]), &rest[end..])
            }
            (0x1b, [b'O', last, rest @ ..]) => (sequence(&[*last]), rest),
            (0x1b, []) => (Some(Key::Escape), rest),
            // A character with Alt.
            (0x1b, [_, rest @ ..]) => (None, rest),
            (byte, rest) if byte.is_ascii() => (Some(Key::Char(char::from(*byte))), rest),
            (_, rest) => (None, rest),
        };
        keys.extend(key);
        bytes = after;
    }
    keys
}

/// The key of a sequence, as xterm and its successors send it.
fn sequence(bytes: &[u8]) -> Option<Key> {
    Some(match bytes {
        b"A" => Key::Up,
        b"B" => Key::Down,
        b"H" | b"1~" | b"7~" => Key::Home,
        b"F" | b"4~" | b"8~" => Key::End,
        b"5~" => Key::PageUp,
        b"6~" => Key::PageDown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_terminal_are_keys() {
        assert_eq!(keys(b"q\x1b[A\x1bOBj"), [Key::Char('q'), Key::Up, Key::Down, Key::Char('j')]);
        assert_eq!(
            keys(b"\x1b[5~\x1b[6~\x1b[H\x1b[4~"),
            [Key::PageUp, Key::PageDown, Key::Home, Key::End]
        );
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        // Other keys are no letters of the table: F5, Control and an arrow, Alt and q, ü.
        assert_eq!(keys(b"\x1b[15~\x1b[1;5C\x1bq\xc3\xbcc"), [Key::Char('c')]);
        assert_eq!(keys(b"\x1b["), []);
        assert_eq!(keys(b"\x1bO"), []);
    }
}
