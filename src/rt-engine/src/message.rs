//! An engine program's own messages: one line each, on standard error.
#![forbid(unsafe_code)]

use std::io::Write;
use std::sync::OnceLock;

static NAME: OnceLock<&'static str> = OnceLock::new();

/// Sets the name at the beginning of messages. Only the first call has an effect.
pub(crate) fn set_name(name: &'static str) {
    NAME.get_or_init(|| name);
}

/// A message as it is written.
pub(crate) fn line(message: &str) -> String {
    format!("{}: {}\n", NAME.get().unwrap_or(&"engine"), visible(message))
}

/// Writes one line to standard error. Any thread may call this.
pub fn say(message: &str) {
    // If standard error is closed, nobody can see the message.
    let _ = std::io::stderr().write_all(line(message).as_bytes());
}

/// Escapes a message so that a terminal shows it and does not obey it, because the module chooses
/// its names. Cuts a message that is longer than the kernel writes in one piece (`PIPE_BUF`,
/// pipe(7)).
pub fn visible(message: &str) -> String {
    const LONGEST: usize = 4000;
    let is_hidden = |c: char| {
        c.is_control()
            // Marks and overrides of the text direction, and characters without a width.
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::new();
    for c in message.chars() {
        if shown.len() > LONGEST {
            shown.push('…');
            break;
        }
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_commands_no_terminal() {
        assert_eq!(visible("a\u{1b}[31m\nb\u{202e}ü"), "a\\u{1b}[31m\\nb\\u{202e}ü");
        assert!(visible(&"\n".repeat(10_000)).len() < 4096);
    }
}
