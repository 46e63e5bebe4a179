// SPDX-License-Identifier: GPL-2.0

//! Where the blocks of a chapter are, as far as tangle has to know.
//!
//! What Markdown is decides `pulldown-cmark`, with the options mdBook uses, so that tangle and the
//! page agree about lists, quotes, HTML and footnotes. But it reads every word of the prose, and
//! tangle only has to know where a code block or a comment stands at the top level: nine tenths of
//! a run went into emphasis and links. So the lines are looked at first. A line that can be only
//! one thing whatever stands round it (text, a heading, a fence, a comment, none of them in a
//! container) is taken for that. Where a line is met that may be more (a list, a quote, a tag,
//! indented code, a definition), the parser gets the lines from the start of that block to the next
//! place at which nothing can be open any more: a line that is sure, in the first column, after an
//! empty one.
//!
//! That both ways see the same is tried with the examples of CommonMark's specification and with
//! random texts.

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag};

use crate::parse::closes;
use crate::source::Source;

/// Something at the top level of a chapter, or a fence that is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A fenced block: the lines of its fences, from 1. If none closes it, the second is one more
    /// than the last.
    Fence { open: u32, close: u32 },
    /// The info string of a fence in a container, and the bytes of that block.
    Nested { info: String, span: Range<usize> },
    /// The bytes of an HTML block.
    Html(Range<usize>),
    /// One or more blocks that are none of these.
    Other,
}

/// The Markdown that mdBook reads.
pub(crate) fn options() -> Options {
    Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_HEADING_ATTRIBUTES
        | Options::ENABLE_DEFINITION_LIST
        | Options::ENABLE_GFM
}

/// What of it says where blocks are. What is about words alone is left out: `~~x~~`, and `{#x}`
/// behind a heading, over which `pulldown-cmark` 0.13.6 panics if the heading is underlined and
/// stands in a footnote.
fn block_options() -> Options {
    options() - Options::ENABLE_STRIKETHROUGH - Options::ENABLE_HEADING_ATTRIBUTES
}

/// The blocks of a chapter, in order.
pub(crate) fn blocks(source: &Source) -> Vec<Seen> {
    let mut scan = Scan::new(source, block_options());
    // Blanks and line ends that nobody uses and the parser has its own mind about.
    let bytes = source.text.as_bytes();
    let odd = memchr::memchr3(b'\x0b', b'\x0c', 0, bytes).is_some();
    if odd || memchr::memchr_iter(b'\r', bytes).any(|at| bytes.get(at + 1) != Some(&b'\n')) {
        scan.parser(1, scan.last + 1);
    } else {
        scan.lines();
    }
    scan.seen
}

/// What a line is at the top level, after what can be seen before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Blank,
    /// Text of a paragraph or a row of a table.
    Text,
    /// A block that ends with the line: a heading, a rule.
    Alone,
    /// The start of a fenced block: its character, how many of them.
    Fence(u8, usize),
    /// The start of an HTML comment.
    Comment,
    /// It depends.
    Unsure,
    /// The start of HTML that an empty line does not end.
    Html,
}

struct Scan<'a> {
    source: &'a Source,
    options: Options,
    /// Where each line starts.
    starts: &'a [u32],
    /// The number of the last line.
    last: u32,
    seen: Vec<Seen>,
    /// How many lines the parser was given.
    asked: u32,
}

impl<'a> Scan<'a> {
    fn new(source: &'a Source, options: Options) -> Self {
        let (starts, last) = (source.line_starts(), source.line_count());
        Self { source, options, starts, last, seen: Vec::new(), asked: 0 }
    }

    /// A line, without its end and without a byte order mark.
    fn line(&self, line: u32) -> &'a [u8] {
        let text = &self.source.text.as_bytes()[self.start(line)..self.start(line + 1)];
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        text.strip_suffix(b"\r").unwrap_or(text)
    }

    /// The byte where a line starts; for one more than the last, the end.
    fn start(&self, line: u32) -> usize {
        match self.starts.get(line as usize - 1) {
            _ if line == 1 => self.source.bom(),
            Some(&start) => start as usize,
            None => self.source.text.len(),
        }
    }

    fn other(&mut self) {
        if self.seen.last() != Some(&Seen::Other) {
            self.seen.push(Seen::Other);
        }
    }

    /// The line that closes a fence, or one more than the last.
    fn close(&self, open: u32, mark: u8, ticks: usize) -> u32 {
        let mut line = open + 1;
        while line <= self.last && !closes(self.line(line), mark, ticks) {
            line += 1;
        }
        line
    }

    fn lines(&mut self) {
        let mut line = 1;
        // The first line of the paragraph that is open, and of one that only empty lines followed.
        let (mut open, mut ended) = (None, None);
        while line <= self.last {
            let text = self.line(line);
            let look = look(text, open.is_some());
            match look {
                Look::Blank => {
                    ended = open.take().or(ended);
                    line += 1;
                    continue;
                }
                Look::Text => {
                    if open.is_none() {
                        self.other();
                        open = Some(line);
                    }
                    line += 1;
                    ended = None;
                    continue;
                }
                Look::Alone => {
                    self.other();
                    line += 1;
                }
                Look::Fence(mark, ticks) => {
                    let close = self.close(line, mark, ticks);
                    self.seen.push(Seen::Fence { open: line, close });
                    line = close + 1;
                }
                Look::Comment => {
                    let end = self.comment_end(line);
                    self.seen.push(Seen::Html(self.start(line)..self.start(end + 1)));
                    line = end + 1;
                }
                Look::Unsure => {
                    // A definition belongs to the paragraph before it, also where the definition of
                    // a link, which is no block, stands between them.
                    let defines = matches!(text.trim_ascii_start(), [b':' | b'[', ..]);
                    let first = open.or(ended.filter(|_| defines)).unwrap_or(line);
                    line = self.parser(first, self.sure(first, line));
                }
                Look::Html => {
                    line = self.parser(open.unwrap_or(line), self.last + 1);
                }
            }
            (open, ended) = (None, None);
        }
    }

    /// The last line of the comment that starts at `line`.
    fn comment_end(&self, line: u32) -> u32 {
        let from = self.start(line) + 4;
        match memchr::memmem::find(&self.source.text.as_bytes()[from..], b"-->") {
            Some(at) => self.source.line_of(from + at),
            None => self.last,
        }
    }

    /// The first line after `line` at which no block that starts at `first` or later can be open,
    /// unless it is a fence at the top level.
    fn sure(&self, first: u32, line: u32) -> u32 {
        // What an empty line does not end may begin in any line, inside a container or not.
        let endless = |line| {
            let look = look(self.line(line), true);
            look == Look::Html || look == Look::Comment && self.comment_end(line) != line
        };
        if (first..=line).any(endless) {
            return self.last + 1;
        }
        let mut blank = false;
        for next in line + 1..=self.last {
            let text = self.line(next);
            let here = look(text, false);
            let column = !matches!(text.first(), None | Some(b' ' | b'\t'));
            let sure = matches!(here, Look::Text | Look::Alone | Look::Fence(..) | Look::Comment);
            if blank && column && sure {
                return next;
            }
            if endless(next) {
                return self.last + 1;
            }
            blank = here == Look::Blank;
        }
        self.last + 1
    }

    /// Gives the lines from `first` to before `end` to the parser. What comes back is the line after
    /// them, or after a fenced block at the top level that goes on.
    fn parser(&mut self, first: u32, mut end: u32) -> u32 {
        let offset = self.start(first);
        let text = &self.source.text[offset..self.start(end)];
        self.asked += end - first;
        let mut depth = 0_usize;
        for (event, range) in Parser::new_ext(text, self.options).into_offset_iter() {
            let range = range.start + offset..range.end + offset;
            match event {
                Event::Start(tag) => {
                    depth += 1;
                    match tag {
                        Tag::CodeBlock(CodeBlockKind::Fenced(info)) if depth > 1 => {
                            self.seen.push(Seen::Nested { info: info.into_string(), span: range });
                        }
                        Tag::CodeBlock(CodeBlockKind::Fenced(_)) => {
                            let open = self.source.line_of(range.start);
                            let line = self.line(open).trim_ascii_start();
                            let mark = line.first().copied().unwrap_or(b'`');
                            let ticks = line.iter().take_while(|&&b| b == mark).count();
                            let close = self.close(open, mark, ticks);
                            self.seen.push(Seen::Fence { open, close });
                            end = end.max(close + 1);
                        }
                        Tag::HtmlBlock if depth == 1 => self.seen.push(Seen::Html(range)),
                        _ if depth == 1 => self.other(),
                        _ => {}
                    }
                }
                Event::End(_) => depth -= 1,
                Event::Rule if depth == 0 => self.other(),
                _ => {}
            }
        }
        end
    }
}

/// What a line is that stands in no container. `open` says whether a paragraph is open before it.
fn look(line: &[u8], open: bool) -> Look {
    let blanks = line.iter().take_while(|&&b| b == b' ').count();
    let text = &line[blanks..];
    let rest = text.get(1..).unwrap_or_default();
    let run = |mark: u8| text.iter().take_while(|&&b| b == mark).count();
    let blank = |b: Option<&u8>| matches!(b, None | Some(b' ' | b'\t'));
    match text.first() {
        None => Look::Blank,
        Some(b'\t') if text.iter().all(|b| blank(Some(b))) => Look::Blank,
        Some(b'\t') => Look::Unsure,
        _ if blanks > 3 => Look::Unsure,
        Some(&mark @ (b'`' | b'~')) => {
            let ticks = run(mark);
            if ticks < 3 || mark == b'`' && text[ticks..].contains(&b'`') {
                Look::Text
            } else {
                Look::Fence(mark, ticks)
            }
        }
        Some(b'#') if run(b'#') <= 6 && blank(text.get(run(b'#'))) => Look::Alone,
        // After text it makes a heading of it, or a table.
        Some(b'-') if !open && run(b'-') >= 3 && text[run(b'-')..].trim_ascii().is_empty() => {
            Look::Alone
        }
        Some(b'-' | b'>' | b':' | b'=') => Look::Unsure,
        Some(b'+') if blank(rest.first()) => Look::Unsure,
        Some(&mark @ (b'*' | b'_'))
            if blank(rest.first()) || text.iter().all(|&b| b == mark || blank(Some(&b))) =>
        {
            Look::Unsure
        }
        Some(b'0'..=b'9') => {
            let number = text.iter().take_while(|b| b.is_ascii_digit()).count();
            let item = matches!(text.get(number), Some(b'.' | b')')) && blank(text.get(number + 1));
            if item { Look::Unsure } else { Look::Text }
        }
        Some(b'[') if rest.first() == Some(&b'^') => Look::Unsure,
        // Where a paragraph may begin it may be the definition of a link.
        Some(b'[') if !open => match rest.iter().position(|b| b"[]\\".contains(b)) {
            Some(at) if rest[at] == b']' && rest.get(at + 1) != Some(&b':') => Look::Text,
            _ => Look::Unsure,
        },
        Some(b'<') => html(text),
        _ => Look::Text,
    }
}

/// What a line is that begins with `<`.
fn html(text: &[u8]) -> Look {
    // `<!-->` and `<!--->` are comments, too, and end where others begin.
    let odd = text.starts_with(b"<!-->") || text.starts_with(b"<!--->");
    if text.starts_with(b"<!--") && !odd {
        return Look::Comment;
    }
    let endless = ["<!", "<?", "<script", "<pre", "<style", "<textarea"];
    let starts = |with: &str| {
        text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
    };
    if endless.into_iter().any(starts) { Look::Html } else { Look::Unsure }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::Role;

    fn source(text: &str) -> Source {
        Source::new("book/a.md", Role::Chapter, text.as_bytes().to_vec())
    }

    /// What a chapter is read as, and no more: HTML without the blanks round it, and other blocks
    /// only where a comment waits for its fence. (A term may begin a list of definitions or belong
    /// to the one before it; both are other blocks.)
    fn plain(source: &Source, seen: Vec<Seen>) -> Vec<Seen> {
        let mut waits = false;
        let mut plain = Vec::new();
        for seen in seen {
            match seen {
                Seen::Html(range) => {
                    waits = true;
                    let text = &source.text[range.clone()];
                    let start = range.start + text.len() - text.trim_start().len();
                    plain.push(Seen::Html(start..start + text.trim().len()));
                }
                Seen::Other if !waits => {}
                Seen::Other | Seen::Fence { .. } => {
                    waits = false;
                    plain.push(seen);
                }
                Seen::Nested { .. } => plain.push(seen),
            }
        }
        plain
    }

    /// The blocks as the parser alone sees them, with all that mdBook has it read; nothing if it
    /// panics.
    fn by_parser(source: &Source) -> Option<Vec<Seen>> {
        let all = || {
            let mut scan = Scan::new(source, options());
            scan.parser(1, scan.last + 1);
            scan.seen
        };
        std::panic::catch_unwind(all).ok()
    }

    /// Both ways, for a text.
    fn both(text: &str) -> (Vec<Seen>, Option<Vec<Seen>>) {
        let source = source(text);
        let theirs = by_parser(&source).map(|seen| plain(&source, seen));
        (plain(&source, blocks(&source)), theirs)
    }

    /// Whether the parser was spared a text.
    fn spared(text: &str) -> bool {
        let source = source(text);
        let mut scan = Scan::new(&source, block_options());
        scan.lines();
        scan.asked == 0
    }

    #[test]
    fn an_ordinary_chapter_is_read_without_the_parser() {
        let text = "# A\n\nText, *of* `it` and [more](b.md).\n**Bold** 12 of _it_, 3.5\n\n\
                    [A link](x.md) begins a line\n\n<!-- title: x -->\n```rust,chunk:x\na\n\n- b\n\
                    ```\n\n---\n\n| a | b |\n|---|---|\n| c | d |\n\n![picture](a.svg)\n\n~~~\n~~~\n";
        assert!(spared(text));
        let (ours, theirs) = both(text);
        assert_eq!(Some(&ours), theirs.as_ref());
        assert!(ours.contains(&Seen::Fence { open: 9, close: 13 }), "{ours:?}");
        assert!(!spared("- a\n"));
    }

    /// The pieces that lines are made of. Each of them is the start of something, or its end.
    const PIECES: &[&str] = &[
        "",
        "",
        "",
        "",
        "x",
        "word word",
        "```",
        "```",
        "```c,chunk:x",
        "````",
        "~~~",
        "~~~~ a",
        "``` a ` b",
        "`a`",
        "``",
        "~~a~~",
        "<!-- title: x -->",
        "<!--",
        "-->",
        "a -->",
        "<!-->",
        "<!--->",
        "<!-- a --> b",
        "<!-- a",
        "<div>",
        "</div>",
        "<div",
        "<pre>",
        "</pre>",
        "<PRE",
        "<script>",
        "</script>",
        "<style",
        "<textarea>",
        "<foo>",
        "</foo>",
        "<foo a=\"",
        "<http://a.b>",
        "<?x",
        "?>",
        "<!X",
        ">",
        "<![CDATA[",
        "]]>",
        "---",
        "--",
        "- - -",
        "***",
        "* * *",
        "___",
        "===",
        "=",
        "-",
        "*",
        "+",
        "1.",
        "2)",
        "1234567890. a",
        "12",
        "1)x",
        "| a | b |",
        "|---|---|",
        "| --- |",
        "a | b",
        "--- | ---",
        ":-- | --:",
        "|",
        "[a]: /b",
        "[a]:",
        "[a](b)",
        "[a",
        "b]: /x",
        "'title'",
        "\"title",
        "[^1]",
        "[^1]: a",
        "[!NOTE]",
        "[ ] a",
        "# a",
        "#",
        "####### a",
        "## a #",
        "*a*",
        "**a",
        "_a_",
        ": a",
        ":",
        ":::",
        "\\",
        "\\```",
        "&amp;",
        "{#a}",
        "\u{e4}",
        "\u{a0}a",
        "\u{2003}",
        "a  ",
        "a\\",
        "$$",
        "^a",
        "@a",
        "+++",
        "%a",
        "!a",
        "(a",
        "1",
        "0.",
        "a\tb",
    ];

    /// What may stand before them.
    const MARKS: &[&str] = &[
        "> ", ">", "- ", "* ", "+ ", "1. ", "2. ", "10) ", "- [ ] ", ": ", "[^1]: ", "-   ", "-\t",
        ">\t", "  - ", "   > ", ":   ",
    ];

    const INDENTS: &[&str] =
        &["", "", "", "", "", " ", "  ", "   ", "    ", "      ", "\t", " \t", "  \t", "\t\t"];

    fn line() -> impl Strategy<Value = String> {
        let marks = prop::collection::vec(prop::sample::select(MARKS), 0..3);
        let marks = prop_oneof![4 => Just(Vec::new()), 1 => marks];
        let end = prop_oneof![12 => Just("\n"), 1 => Just("\r\n"), 1 => Just(" \n")];
        let indent = prop::sample::select(INDENTS);
        let piece = prop::sample::select(PIECES);
        let line = (indent, marks, piece, end).prop_map(|(indent, marks, piece, end)| {
            format!("{indent}{}{piece}{end}", marks.concat())
        });
        prop_oneof![1 => Just("\n".to_owned()), 3 => line]
    }

    fn text() -> impl Strategy<Value = String> {
        (prop::collection::vec(line(), 1..14), any::<bool>(), 0..20_u8).prop_map(
            |(lines, end, mark)| {
                let text = lines.concat();
                let text = if end { text } else { text.trim_end_matches('\n').to_owned() };
                if mark == 0 { format!("\u{feff}{text}") } else { text }
            },
        )
    }

    fn same(text: &str) -> Result<(), TestCaseError> {
        let (ours, theirs) = both(text);
        if let Some(theirs) = theirs {
            prop_assert_eq!(ours, theirs, "{:?}", text);
        }
        Ok(())
    }

    /// So many in an ordinary run; else fifty times what `TANGLE_CASES` says: each is short.
    #[test]
    fn random_texts_are_what_the_parser_says() {
        let cases = std::env::var("TANGLE_CASES").ok().and_then(|cases| cases.parse::<u32>().ok());
        let config = ProptestConfig {
            cases: cases.map_or(300, |cases| 50 * cases),
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let done = proptest::test_runner::TestRunner::new(config).run(&text(), |text| same(&text));
        if let Err(error) = done {
            panic!("{error}");
        }
    }

    /// The examples of CommonMark's specification, and those of its extensions: the parser's own
    /// tests, out of the sources that cargo has fetched.
    fn examples() -> Vec<String> {
        let metadata = std::process::Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        let metadata: serde_json::Value =
            serde_json::from_slice(&metadata.stdout).expect("cargo says JSON");
        let packages = metadata["packages"].as_array().expect("packages");
        let parser = packages.iter().find(|package| package["name"] == "pulldown-cmark");
        let manifest = parser.and_then(|parser| parser["manifest_path"].as_str());
        let tests = manifest.expect("the parser").replace("Cargo.toml", "tests/suite");
        let mut found = Vec::new();
        for file in std::fs::read_dir(tests).expect("the parser's tests") {
            let text = std::fs::read_to_string(file.expect("a file").path()).expect("text");
            for start in text.split("let original = r##\"").skip(1) {
                let (example, _) = start.split_once("\"##;").expect("an end");
                found.push(example.to_owned());
            }
        }
        assert!(found.len() > 1000, "{} examples", found.len());
        found
    }

    #[test]
    fn the_specifications_examples_are_what_the_parser_says() {
        let examples = examples();
        let check = |text: &str| {
            let (ours, theirs) = both(text);
            assert!(theirs.is_none_or(|theirs| theirs == ours), "{text:?}: {ours:?}");
        };
        for (example, next) in examples.iter().zip(examples.iter().cycle().skip(1)) {
            check(&format!("{example}\n{next}"));
            if std::env::var_os("TANGLE_CASES").is_some() {
                for between in ["", "\n\n", "```c,chunk:x\n", "\n<!-- title: x -->\n```c\n"] {
                    check(&format!("{example}{between}{next}"));
                }
            }
        }
    }

    #[test]
    fn what_the_parser_panics_over_is_read() {
        let text = "[^1]: a\n      {#a}\n    ---\n\n```c,file:a.c\n```\n";
        let (ours, theirs) = both(text);
        assert_eq!(ours.last(), Some(&Seen::Fence { open: 5, close: 6 }));
        assert_eq!(theirs, None, "it does not any more: `block_options` may be `options`");
    }
}
