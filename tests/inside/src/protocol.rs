// SPDX-License-Identifier: GPL-2.0-only

//! Texts of several lines in a channel of lines.

/// Writes a text so that it fits on a line: line ends, backslashes and control characters become
/// escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// The text that [`escape`] was given. What is no escape of ours stays as it is.
pub fn unescape(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (c, length) = match after.as_bytes().first() {
            Some(b'\\') => (Some('\\'), 1),
            Some(b'n') => (Some('\n'), 1),
            Some(b'r') => (Some('\r'), 1),
            Some(b't') => (Some('\t'), 1),
            Some(b'u') => code_point(after),
            _ => (None, 0),
        };
        out.push(c.unwrap_or('\\'));
        rest = if c.is_some() { &after[length..] } else { after };
    }
    out.push_str(rest);
    out
}

/// The character of an escape `u{1b}` at the start of a text, and how many bytes that takes.
fn code_point(text: &str) -> (Option<char>, usize) {
    let digits = text
        .strip_prefix("u{")
        .and_then(|rest| rest.split_once('}'));
    let c = digits.and_then(|(digits, _)| u32::from_str_radix(digits, 16).ok());
    let length = digits.map_or(0, |(digits, _)| digits.len() + 3);
    (c.and_then(char::from_u32), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for text in [
            "",
            "plain",
            "a\nb\r\n",
            "back\\slash\\n",
            "\u{1b}[1m",
            "ü\u{7f}\\u{1}",
            "\\",
        ] {
            assert_eq!(unescape(&escape(text)), text);
            assert!(!escape(text).contains(char::is_control));
        }
    }

    #[test]
    fn a_stray_backslash_stays() {
        assert_eq!(unescape("a\\b\\u{zz}\\"), "a\\b\\u{zz}\\");
    }
}
