//! Text that a container may have chosen, made safe for a terminal.

/// Whether a terminal would obey a character, or hide it.
fn is_hidden(c: char) -> bool {
    c.is_control()
        // Marks and overrides of the text direction, and characters without a width.
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Escapes what a terminal would obey or hide, as `rt` does.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// The same for JSON text, as JSON escapes. All these characters are in strings, and have four
/// digits at most.
pub(crate) fn visible_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hidden(c) {
            shown += &format!("\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_commanded() {
        assert_eq!(visible("a\u{1b}[31m\n\u{9b}b\u{202e}ü"), "a\\u{1b}[31m\\n\\u{9b}b\\u{202e}ü");
        let value = serde_json::json!({ "id": "a\u{1b}\u{7f}\u{9b}\u{202e}\u{feff}ü\n" });
        let json = visible_json(&value.to_string());
        assert!(!json.chars().any(is_hidden), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON"), value);
    }
}
