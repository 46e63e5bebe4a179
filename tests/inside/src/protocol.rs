// SPDX-License-Identifier: GPL-2.0-only

//! What both sides of the control channel must write alike: texts of several lines in a channel of
//! lines, and what QEMU is asked to inject.

/// Something that QEMU's monitor is asked to do to the machine, as fast as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// So many NMIs, each on every CPU that has its NMI line connected.
    Nmi {
        /// How many.
        count: u32,
    },
    /// So many machine checks.
    MachineCheck {
        /// How many.
        count: u32,
        /// On which CPU.
        cpu: u32,
        /// What MCG_STATUS says: can the program that was interrupted go on?
        global: u64,
        /// What the bank's status says: what it is.
        status: u64,
    },
}

impl Injection {
    /// As words on a line.
    pub fn words(self) -> String {
        match self {
            Self::Nmi { count } => format!("nmi {count}"),
            Self::MachineCheck {
                count,
                cpu,
                global,
                status,
            } => format!("mce {count} {cpu} {global} {status}"),
        }
    }

    /// What the words mean, if they mean anything.
    pub fn parse(words: &str) -> Option<Self> {
        let words: Vec<&str> = words.split(' ').collect();
        match words[..] {
            ["nmi", count] => Some(Self::Nmi {
                count: count.parse().ok()?,
            }),
            ["mce", count, cpu, global, status] => Some(Self::MachineCheck {
                count: count.parse().ok()?,
                cpu: cpu.parse().ok()?,
                global: global.parse().ok()?,
                status: status.parse().ok()?,
            }),
            _ => None,
        }
    }
}

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
    fn an_injection_arrives_as_it_was_meant() {
        let mce = Injection::MachineCheck {
            count: 3,
            cpu: 1,
            global: 5,
            status: 1 << 63,
        };
        for injection in [Injection::Nmi { count: 7 }, mce] {
            assert_eq!(Injection::parse(&injection.words()), Some(injection));
        }
        assert_eq!(Injection::parse("nmi"), None);
        assert_eq!(Injection::parse("mce 1 2 3 x"), None);
    }

    #[test]
    fn a_stray_backslash_stays() {
        assert_eq!(unescape("a\\b\\u{zz}\\"), "a\\b\\u{zz}\\");
    }
}
