// SPDX-License-Identifier: GPL-2.0

//! What stands round a piece of code in its file: the lines that a reader needs to see where he is.
//!
//! Indentation is all that is looked at, so it works alike for Rust, for scripts and for tables.

use crate::book::{Book, Output, PartId, Placement};

/// So far up or down a line is looked for.
const FAR: usize = 600;

/// Lines round a piece of code.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// Before it: what it is inside of, and what comes just before.
    pub(super) before: Vec<String>,
    /// What comes just after.
    pub(super) after: Option<String>,
    /// Columns that the code is moved to the right there.
    pub(super) indent: usize,
}

/// The context of a part where it first lands.
pub(super) fn of(book: &Book, lines: &[Vec<&str>], id: PartId) -> Context {
    let Some(place) = book.placements(id).iter().find(|place| place.last >= place.first) else {
        return Context::default();
    };
    let output = book.output(place.output);
    let lines = lines[place.output.0 as usize].as_slice();
    around(lines, place, columns(output, lines, id, place))
}

/// Lines of each file, for [`of`].
pub(super) fn lines(book: &Book) -> Vec<Vec<&str>> {
    book.outputs().iter().map(|output| output.text.lines().collect()).collect()
}

/// How far references moved a part to the right.
fn columns(output: &Output, lines: &[&str], id: PartId, place: &Placement) -> usize {
    let from = output.pieces.partition_point(|piece| piece.first < place.first);
    let mut pieces = output.pieces[from..].iter().take_while(|piece| piece.first <= place.last);
    let bytes = match pieces.find(|piece| piece.part == id) {
        Some(piece) => piece.indent as usize,
        // It is made of nothing but references.
        None => indent(lines[place.first as usize - 1]),
    };
    let first = lines[place.first as usize - 1..place.last as usize].iter();
    let width = |line: &&str| line.get(..bytes).map(|blanks| blanks.matches('\t').count());
    let tabs = first.filter_map(width).next().unwrap_or(0);
    // A tab is as wide as the theme has it.
    bytes + tabs * (TAB - 1)
}

/// Columns of a tab on the page.
const TAB: usize = 8;

fn around(lines: &[&str], place: &Placement, indent: usize) -> Context {
    let first = place.first as usize - 1;
    let last = place.last as usize;
    let mut before = Vec::new();
    if let Some(at) = above(lines, first, |line| !line.trim().is_empty()) {
        let (near, from) = folded(lines, at);
        if indent > 0
            && let Some(outer_at) = above(lines, first, |line| inside(line, indent))
            && outer_at < from
        {
            let (outer, _) = folded(lines, outer_at);
            before.push(outer);
            if above(lines, from, |line| !line.trim().is_empty()) != Some(outer_at) {
                before.push(format!("{:indent$}\u{22ee}", ""));
            }
        }
        before.push(near);
    }
    let after = lines[last..].iter().take(FAR).find(says);
    Context { before, after: after.map(|line| (*line).to_owned()), indent }
}

/// The nearest line above the line `from` that is wanted.
fn above(lines: &[&str], from: usize, wanted: impl Fn(&str) -> bool) -> Option<usize> {
    (from.saturating_sub(FAR)..from).rev().find(|&at| wanted(lines[at]))
}

fn indent(line: &str) -> usize {
    line.bytes().map(|b| if b == b'\t' { TAB } else { 1 }).take(blanks(line)).sum()
}

fn blanks(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Whether a line, further to the left than `indent`, opens what lies below it.
fn inside(line: &str, indent: usize) -> bool {
    !line.trim().is_empty() && self::indent(line) < indent
}

/// Whether a line only ends what others began.
fn closes(line: &str) -> bool {
    line.trim_start().starts_with(['}', ')', ']'])
}

/// Whether a line is code, and not a comment or an attribute before some.
fn says(line: &&&str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//") && !line.starts_with("#[")
}

/// A line; one that only ends something together with the line that began it. And where it begins.
fn folded(lines: &[&str], at: usize) -> (String, usize) {
    let line = lines[at];
    if !closes(line) {
        return (line.to_owned(), at);
    }
    let column = indent(line);
    let began = |above: &str| !above.trim().is_empty() && indent(above) <= column && !closes(above);
    match above(lines, at, began) {
        Some(from) if indent(lines[from]) == column => {
            (format!("{} \u{2026} {}", lines[from], line.trim_start()), from)
        }
        _ => (line.to_owned(), at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::OutputId;

    #[track_caller]
    fn shown(text: &str, first: u32, last: u32, indent: usize) -> (Vec<String>, Option<String>) {
        let lines: Vec<&str> = text.lines().collect();
        let place = Placement { output: OutputId(0), first, last };
        let context = around(&lines, &place, indent);
        (context.before, context.after)
    }

    const TEXT: &str = "struct A {\n    x: u8,\n}\n\nimpl A {\n    fn one() {\n        1;\n    }\n\n    \
                        /// Two.\n    fn two(\n        x: u8,\n    ) -> u8 {\n        2;\n        \
                        3\n    }\n\n    // Three.\n    #[cold]\n    fn three() {}\n}\n";

    #[test]
    fn a_piece_at_the_start_has_nothing_before_it() {
        assert_eq!(shown(TEXT, 1, 3, 0), (vec![], Some("impl A {".to_owned())));
    }

    #[test]
    fn what_ends_is_shown_with_its_beginning() {
        let (before, after) = shown(TEXT, 5, 21, 0);
        assert_eq!(before, ["struct A { \u{2026} }"]);
        assert_eq!(after, None);
    }

    #[test]
    fn a_piece_inside_of_something_says_of_what() {
        let (before, after) = shown(TEXT, 10, 16, 4);
        assert_eq!(before, ["impl A {", "    fn one() { \u{2026} }"]);
        assert_eq!(after.as_deref(), Some("    fn three() {}"));
    }

    #[test]
    fn what_lies_between_is_a_mark() {
        let (before, after) = shown(TEXT, 18, 20, 4);
        assert_eq!(before[0], "impl A {");
        assert_eq!(before[1], "    \u{22ee}");
        assert_eq!(before[2], "    fn two( \u{2026} }");
        assert_eq!(after.as_deref(), Some("}"));
    }

    #[test]
    fn a_long_head_is_one_line() {
        let (before, _) = shown(TEXT, 14, 15, 8);
        assert_eq!(before, ["    fn two( \u{2026} ) -> u8 {"]);
    }

    #[test]
    fn the_line_just_before_may_be_what_it_is_inside_of() {
        let (before, after) = shown("a:\n\tb\n\tc\n", 2, 2, 8);
        assert_eq!((before.as_slice(), after.as_deref()), (&["a:".to_owned()][..], Some("\tc")));
    }
}
