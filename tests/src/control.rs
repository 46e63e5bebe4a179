// SPDX-License-Identifier: GPL-2.0-only

//! The channel between a test command and the program inside the machine.
//!
//! Both send lines. What the program inside may say is [`Message`]; what it is asked is one of
//! `case NAME`, `beside NUMBER ...`, `guest MODE ...`, `sections`, `done`, and `quit`.

use inside::protocol::{Injection, unescape};

/// One line from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The machine is up. The text says which kernel, and how many levels its tables have.
    Ready(String),
    /// A case has begun.
    Start(String),
    /// A case remarks something for its log.
    Note(String),
    /// A case says how to come back to where it is, should the machine die of what it does now.
    At(String),
    /// A case is over.
    End(Verdict, String),
    /// Something is to be injected; inside waits for `done`.
    Inject(Injection),
    /// The Guest that the user was talking to is over; its exit status.
    Exit(i32),
    /// A Guest beside that one is over by itself; its number and exit status.
    Over(u32, i32),
    /// A Guest beside that one was stopped, because that one is over; its number and exit status.
    Stopped(u32, i32),
    /// Anything else: something inside is broken.
    Unknown(String),
}

/// How a case went, as the program inside sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Pass,
    /// Not so; the text says what.
    Fail,
    /// It could not be tried; the text says why.
    Skip,
}

impl Message {
    /// The meaning of one line.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let unknown = || Self::Unknown(line.to_owned());
        match word {
            "ready" => Self::Ready(rest.to_owned()),
            "start" => Self::Start(rest.to_owned()),
            "note" => Self::Note(unescape(rest)),
            "at" => Self::At(unescape(rest)),
            "pass" => Self::End(Verdict::Pass, unescape(rest)),
            "fail" => Self::End(Verdict::Fail, unescape(rest)),
            "skip" => Self::End(Verdict::Skip, unescape(rest)),
            "inject" => match Injection::parse(rest) {
                Some(injection) => Self::Inject(injection),
                None => unknown(),
            },
            "exit" => match rest.parse() {
                Ok(status) => Self::Exit(status),
                Err(_) => unknown(),
            },
            "over" => numbers(rest).map_or_else(unknown, |(n, status)| Self::Over(n, status)),
            "stopped" => numbers(rest).map_or_else(unknown, |(n, status)| Self::Stopped(n, status)),
            _ => unknown(),
        }
    }
}

/// Two numbers with a space between.
fn numbers(text: &str) -> Option<(u32, i32)> {
    let (one, other) = text.split_once(' ')?;
    Some((one.parse().ok()?, other.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use inside::protocol::escape;

    #[test]
    fn what_inside_says_is_understood() {
        assert_eq!(
            Message::parse("ready 7.3.4 5\r\n"),
            Message::Ready("7.3.4 5".into())
        );
        assert_eq!(
            Message::parse("pass"),
            Message::End(Verdict::Pass, String::new())
        );
        assert_eq!(Message::parse("exit 3"), Message::Exit(3));
        assert_eq!(Message::parse("at a b=1"), Message::At("a b=1".into()));
        assert_eq!(Message::parse("exit x"), Message::Unknown("exit x".into()));
        assert_eq!(Message::parse("over 2 5"), Message::Over(2, 5));
        assert_eq!(Message::parse("stopped 3 143"), Message::Stopped(3, 143));
        for bad in ["over 2", "over x 5", "stopped -1 0", "stopped 2 "] {
            assert_eq!(Message::parse(bad), Message::Unknown(bad.trim_end().into()));
        }
        assert_eq!(Message::parse(""), Message::Unknown(String::new()));
    }

    #[test]
    fn a_text_of_several_lines_survives() {
        let text = "one\ntwo \\ three\r\n\tfour\u{1b}";
        let line = format!("fail {}", escape(text));
        assert!(!line.contains('\n'));
        assert_eq!(
            Message::parse(&line),
            Message::End(Verdict::Fail, text.into())
        );
    }
}
