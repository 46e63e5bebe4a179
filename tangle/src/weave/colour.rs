// SPDX-License-Identifier: GPL-2.0

//! Colours for the languages that the highlight.js of mdBook does not know, or breaks: the GNU
//! assembler (its `x86asm` is another assembler, with other comments), linker scripts, and
//! makefiles (where it turns tabs into blanks).
//!
//! It marks what helps to find one's way, comments above all, with the classes of highlight.js.

use super::words::push_text;

/// The colours of one block, line after line.
pub(super) struct Colours {
    language: Language,
    /// Whether a `/*` is open.
    comment: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Language {
    Assembler,
    Linker,
    Make,
}

/// Words of linker scripts.
const LINKER: &[&str] = &[
    "ADDR",
    "ALIGN",
    "ASSERT",
    "AT",
    "BYTE",
    "COMMON",
    "DEFINED",
    "ENTRY",
    "FILEHDR",
    "FLAGS",
    "INCLUDE",
    "KEEP",
    "LOADADDR",
    "LONG",
    "MEMORY",
    "NOLOAD",
    "OUTPUT_ARCH",
    "OUTPUT_FORMAT",
    "PHDRS",
    "PROVIDE",
    "PT_LOAD",
    "PT_NOTE",
    "PT_NULL",
    "QUAD",
    "SECTIONS",
    "SHORT",
    "SIZEOF",
    "SORT",
];

/// Words that begin a line of a makefile.
const MAKE: &[&str] = &[
    "define", "else", "endef", "endif", "export", "ifdef", "ifeq", "ifndef", "ifneq", "include",
    "override", "undefine", "unexport",
];

impl Colours {
    /// The colours for a language, if it is one of ours.
    pub(super) fn of(language: &str) -> Option<Self> {
        let language = match language {
            "x86asm" | "asm" | "gas" => Language::Assembler,
            "ld" => Language::Linker,
            "makefile" | "make" | "kbuild" => Language::Make,
            _ => return None,
        };
        Some(Self { language, comment: false })
    }

    /// Writes a line as HTML.
    pub(super) fn line(&mut self, line: &str, out: &mut String) {
        let mut rest = line;
        // Whether a statement may begin here.
        let mut start = true;
        while let Some(c) = rest.chars().next() {
            let (len, class) = self.token(rest, c, start);
            let (token, after) = rest.split_at(len);
            match class {
                Some(class) => {
                    out.push_str("<span class=\"hljs-");
                    out.push_str(class);
                    out.push_str("\">");
                    push_text(token, out);
                    out.push_str("</span>");
                }
                None => push_text(token, out),
            }
            start = match token {
                ":" | ";" => true,
                _ => start && (c.is_whitespace() || class == Some("comment")),
            };
            rest = after;
        }
    }

    /// Length and class of the next token of `rest`, which begins with `c`.
    fn token(&mut self, rest: &str, c: char, start: bool) -> (usize, Option<&'static str>) {
        let end = rest.len();
        if self.comment || (self.language != Language::Make && rest.starts_with("/*")) {
            let skip = if self.comment { 0 } else { 2 };
            let close = rest[skip..].find("*/");
            self.comment = close.is_none();
            return (close.map_or(end, |at| skip + at + 2), Some("comment"));
        }
        match (c, self.language) {
            ('#', Language::Assembler) if start && is_directive(rest) => (end, Some("meta")),
            ('#', Language::Assembler | Language::Make) => (end, Some("comment")),
            ('/', Language::Assembler) if rest.starts_with("//") => (end, Some("comment")),
            ('"', _) => {
                let mut escaped = false;
                let close = rest[1..].find(|c| {
                    let found = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    found
                });
                (close.map_or(end, |at| at + 2), Some("string"))
            }
            ('$', Language::Make) => (variable(rest), Some("variable")),
            ('%', Language::Assembler) => (1 + word(&rest[1..]), Some("built_in")),
            (c, _) if c.is_ascii_digit() => (word(rest), Some("number")),
            _ if word(rest) > 0 => {
                let len = word(rest);
                (len, self.word(&rest[..len], &rest[len..], start))
            }
            _ => (c.len_utf8(), None),
        }
    }

    fn word(&self, word: &str, after: &str, start: bool) -> Option<&'static str> {
        match self.language {
            Language::Assembler if !start => None,
            Language::Assembler if after.starts_with(':') => Some("title"),
            Language::Assembler if word.starts_with('.') => Some("meta"),
            Language::Assembler => Some("keyword"),
            Language::Linker => LINKER.contains(&word).then_some("keyword"),
            Language::Make => (start && MAKE.contains(&word)).then_some("keyword"),
        }
    }
}

/// Whether a line is one for the C preprocessor.
fn is_directive(line: &str) -> bool {
    let word = line[1..].trim_start();
    ["define", "elif", "else", "endif", "error", "if", "include", "undef"]
        .iter()
        .any(|known| word.starts_with(known))
}

fn word(text: &str) -> usize {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    text.find(|c| !part(c)).unwrap_or(text.len())
}

/// Length of `$(...)`, `${...}` or `$x`.
fn variable(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + c.len_utf8();
        }
    }
    text.len()
}
