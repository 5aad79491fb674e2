//! Templates of a Spin manifest: text with `{{ variable }}` in it.
#![forbid(unsafe_code)]

/// Replaces each variable of a template by its value.
pub fn resolve(
    template: &str,
    value: impl Fn(&str) -> Result<String, String>,
) -> Result<String, String> {
    let wrong = |why: &str| format!("the template `{template}` {why}");
    let (mut text, mut left) = (String::new(), template);
    while let Some((before, after)) = left.split_once("{{") {
        let (name, rest) = after.split_once("}}").ok_or_else(|| wrong("lacks a `}}`"))?;
        if before.contains("}}") {
            return Err(wrong("has a `}}` too many"));
        }
        text.push_str(before);
        text.push_str(&value(name.trim())?);
        left = rest;
    }
    if left.contains("}}") {
        return Err(wrong("has a `}}` too many"));
    }
    text.push_str(left);
    Ok(text)
}

/// Whether the template names a variable.
pub fn has_variables(template: &str) -> bool {
    template.contains("{{")
}

/// Whether this is the name of a variable: letters, digits and single underscores, as in
/// `api_key`.
pub fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        let mut chars = word.chars();
        chars.next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('_').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_becomes_its_value() {
        let value = |name: &str| match name {
            "a" => Ok("1".to_owned()),
            "b" => Ok("{{ a }}".to_owned()),
            _ => Err(format!("unknown {name}")),
        };
        for (template, expected) in [
            ("", ""),
            ("x", "x"),
            ("{{ a }}", "1"),
            ("x{{a}}y{{  a  }}z", "x1y1z"),
            // A value is not a template.
            ("{{b}}", "{{ a }}"),
            ("{a}", "{a}"),
        ] {
            assert_eq!(resolve(template, value).as_deref(), Ok(expected), "{template}");
        }
        for wrong in ["{{ c }}", "{{", "{{ a", "}}", "x }} {{ a }}", "{{}}"] {
            assert!(resolve(wrong, value).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_has_words() {
        for name in ["a", "api_key", "a1_2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "A", "1a", "_a", "a_", "a__b", "a-b", "a.b", "ä"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
