// SPDX-License-Identifier: GPL-2.0

//! Small pieces of HTML and of English: texts, titles, lists, line numbers.

use std::fmt::Write as _;

use crate::book::Placement;
use crate::parse::Target;

/// Lines of one file: `line 4`, `lines 3–9 and 20–26`.
pub(super) fn lines(places: &[Placement]) -> String {
    let places: Vec<_> = places.iter().filter(|place| place.last >= place.first).collect();
    let one = |place: &Placement| match place.last - place.first {
        0 => place.first.to_string(),
        _ => format!("{}\u{2013}{}", place.first, place.last),
    };
    match &places[..] {
        [] => "no lines".to_owned(),
        [place] if place.first == place.last => format!("line {}", place.first),
        [before @ .., last] => {
            let mut text = "lines ".to_owned();
            for (index, place) in before.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                text.push_str(&one(place));
            }
            if !before.is_empty() {
                text.push_str(" and ");
            }
            text + &one(last)
        }
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match &items[..] {
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => items.concat(),
    }
}

/// A chunk's name in its marks, or a path, in the letters of code.
pub(super) fn name(target: &Target) -> String {
    match target {
        Target::Chunk(name) => {
            format!("<span class=\"chunk-name\">&lt;&lt;{}&gt;&gt;</span>", text(name))
        }
        Target::File(path) => format!("<span class=\"chunk-name\">{}</span>", text(path)),
    }
}

/// Text as HTML. A brace is written so that mdBook's `{{#include}}` is not seen in it.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    push_text(text, &mut out);
    out
}

/// As [`text`], at the end of `out`.
pub(super) fn push_text(text: &str, out: &mut String) {
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let written = match byte {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'"' => "&quot;",
            b'{' => "&#123;",
            _ => continue,
        };
        out.push_str(&text[from..at]);
        out.push_str(written);
        from = at + 1;
    }
    out.push_str(&text[from..]);
}

/// A title or a reason: text in which backquotes stand round code.
pub(super) fn prose(note: &str) -> String {
    let mut out = String::new();
    let mut rest = note;
    while let Some((before, code, after)) = split_code(rest) {
        let _ = write!(out, "{}<span class=\"chunk-code\">{}</span>", text(before), text(code));
        rest = after;
    }
    out + &text(rest)
}

pub(super) fn plain(note: &str) -> String {
    note.replace('`', "")
}

fn split_code(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('`')?;
    let (code, after) = rest.split_once('`')?;
    Some((before, code, after))
}
