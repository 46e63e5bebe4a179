// SPDX-License-Identifier: GPL-2.0

//! From the text of a chapter to its tangled blocks.
//!
//! Where the code blocks are, and which of them lie at the top level, says [`crate::scan`]. Here
//! their info strings are read, the comments before them, and their lines.

use std::collections::HashMap;
use std::ops::Range;

use crate::problem::{Finding, Problem};
use crate::scan::{self, Seen};
use crate::source::{Place, Source, SourceId};

/// What a block is a part of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A file, by its path from the project root.
    File(String),
    /// A named chunk.
    Chunk(String),
}

impl Target {
    /// The path or the name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::File(name) | Self::Chunk(name) => name,
        }
    }
}

/// Which bodies of a chunk a block belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// All of them.
    #[default]
    Plain,
    /// `replaces:name`: from here on the chunk has a new body, which begins with this block.
    Replaces,
    /// `lab:N,starter`: what a reader begins lab N with.
    Starter(u32),
    /// `lab:N,solution`: what lab N asks for.
    Solution(u32),
}

impl Variant {
    /// The number of its lab.
    #[must_use]
    pub fn lab(self) -> Option<u32> {
        match self {
            Self::Starter(lab) | Self::Solution(lab) => Some(lab),
            Self::Plain | Self::Replaces => None,
        }
    }
}

/// A comment before a block: `<!-- title: ... -->` or `<!-- why: ... -->`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The text after the colon, blanks joined to one.
    pub text: String,
    /// The comment, as bytes of the chapter.
    pub span: Range<usize>,
}

/// One line of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Bytes of the chapter, without the fence's own indentation and without the line end.
    pub span: Range<usize>,
    /// Blanks to put before it: what is left of a tab that the fence's indentation cut.
    pub pad: u8,
    /// What it is.
    pub kind: LineKind,
}

/// What a line of a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineKind {
    /// Text that is kept as it is.
    Text,
    /// `// \<<x>>`: the backslash at this byte of the chapter goes.
    Escaped(usize),
    /// `// <<x>>`; the bytes of the chapter that hold the name.
    Reference(Range<usize>),
}

/// A block that goes into a file: one part of a file root or of a chunk.
#[derive(Debug, Clone)]
pub struct Block {
    /// The file or the chunk.
    pub target: Target,
    /// Bytes of the path or the name in the info string.
    pub target_span: Range<usize>,
    /// `replaces:`, or `lab:` with `starter` or `solution`.
    pub variant: Variant,
    /// The language: the first word of the info string, perhaps empty.
    pub language: String,
    /// `append`, with its bytes.
    pub append: Option<Range<usize>>,
    /// `hide`, with its bytes.
    pub hide: Option<Range<usize>>,
    /// `<!-- title: ... -->`.
    pub title: Option<Note>,
    /// `<!-- why: ... -->`.
    pub why: Option<Note>,
    /// From the first byte of the opening fence's line to the last of the closing fence's, without
    /// its line end.
    pub span: Range<usize>,
    /// Bytes of the opening fence with its info string, without indentation.
    pub fence: Range<usize>,
    /// Line of the opening fence, from 1; the first line of code is the next one.
    pub fence_line: u32,
    /// Line of the closing fence, from 1; one more than the last line if none closes it.
    pub close_line: u32,
    /// The lines between the fences.
    pub lines: Vec<Line>,
}

/// What one chapter holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The tangled blocks, in order.
    pub blocks: Vec<Block>,
    /// Names that stand on fences in lists or quotes, which do not count, with their place.
    pub nested: HashMap<String, Range<usize>>,
    /// The comments `<!-- needs: ... -->`.
    pub needs: Vec<Note>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Words of rustdoc and mdBook, which say nothing to tangle.
const PASSING: &[&str] = &[
    "allow_fail",
    "compile_fail",
    "custom",
    "edition2015",
    "edition2018",
    "edition2021",
    "edition2024",
    "editable",
    "ignore",
    "mdbook-runnable",
    "no_run",
    "noplaypen",
    "noplayground",
    "norun",
    "playground",
    "rust",
    "runnable",
    "should_panic",
    "standalone_crate",
    "test_harness",
];

/// Words of ours: name, takes a value, how it is written.
const OURS: &[(&str, bool)] = &[
    ("file", true),
    ("chunk", true),
    ("append", false),
    ("hide", false),
    ("replaces", true),
    ("lab", true),
    ("starter", false),
    ("solution", false),
];

/// Reads one chapter.
#[must_use]
pub fn parse(id: SourceId, source: &Source) -> Parsed {
    let mut chapter = Chapter { id, source, out: Parsed::default() };
    chapter.bytes();
    chapter.blocks();
    chapter.out
}

/// A `title:` or `why:` that waits for its block.
struct Waiting {
    word: String,
    note: Note,
}

struct Chapter<'a> {
    id: SourceId,
    source: &'a Source,
    out: Parsed,
}

impl Chapter<'_> {
    fn error(&mut self, problem: Problem, span: Range<usize>) {
        let at = Place { source: self.id, span };
        self.out.findings.push(Finding::error(problem, at));
    }

    /// Bytes that no chapter may hold.
    fn bytes(&mut self) {
        if let Some(at) = self.source.invalid_utf8 {
            let len = self.source.text[at..].chars().next().map_or(0, char::len_utf8);
            self.error(Problem::InvalidUtf8, at..at + len);
        }
        let bytes = self.source.text.as_bytes();
        if let Some(at) = memchr::memchr(0, bytes) {
            self.error(Problem::Nul, at..at + 1);
        }
        let lone = |&at: &usize| bytes.get(at + 1) != Some(&b'\n');
        if let Some(at) = memchr::memchr_iter(b'\r', bytes).find(lone) {
            self.error(Problem::LoneCr, at..at + 1);
        }
    }

    fn blocks(&mut self) {
        let mut waiting: Vec<Waiting> = Vec::new();
        for seen in scan::blocks(self.source) {
            match seen {
                Seen::Fence { open, close } => {
                    self.fence(open, close, std::mem::take(&mut waiting));
                }
                Seen::Nested { info, span } => self.nested(&info, span),
                Seen::Html(range) => match self.comments(range) {
                    Some(more) => {
                        let (needs, more): (Vec<_>, Vec<_>) =
                            more.into_iter().partition(|found| found.word == "needs");
                        self.out.needs.extend(needs.into_iter().map(|found| found.note));
                        waiting.extend(more);
                    }
                    None => self.dangling(&mut waiting),
                },
                Seen::Other => self.dangling(&mut waiting),
            }
        }
        self.dangling(&mut waiting);
    }

    /// Says that comments wait for a block that does not come.
    fn dangling(&mut self, waiting: &mut Vec<Waiting>) {
        for Waiting { word, note } in waiting.drain(..) {
            let word = match word.as_str() {
                "title" => "title",
                "why" => "why",
                _ => continue,
            };
            let at = Place { source: self.id, span: note.span };
            self.out.findings.push(Finding::warning(Problem::DanglingComment(word), at));
        }
    }

    /// The comments `<!-- word: text -->` of an HTML block, or nothing if it holds anything else.
    fn comments(&self, range: Range<usize>) -> Option<Vec<Waiting>> {
        let text = &self.source.text;
        let mut found = Vec::new();
        let mut at = range.start;
        loop {
            let rest = text[at..range.end].trim_start();
            at = range.end - rest.len();
            if rest.is_empty() {
                return Some(found);
            }
            let inner = rest.strip_prefix("<!--")?;
            let len = inner.find("-->")?;
            let span = at..at + 4 + len + 3;
            at = span.end;
            let inner = inner[..len].trim();
            if let Some((word, text)) = inner.split_once(':')
                && !word.is_empty()
                && word.chars().all(|c| c.is_ascii_alphabetic())
            {
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                found.push(Waiting { word: word.to_owned(), note: Note { text, span } });
            }
        }
    }

    /// Remembers a name on a fence that does not count, for the help of an error.
    fn nested(&mut self, info: &str, span: Range<usize>) {
        for word in info.split([',', ' ', '\t']) {
            if let Some(name) = word.strip_prefix("chunk:") {
                self.out.nested.insert(name.to_owned(), span.clone());
            }
        }
    }

    /// Reads the block between two lines of fences, with the comments before it.
    fn fence(&mut self, fence_line: u32, close_line: u32, waiting: Vec<Waiting>) {
        let source = self.source;
        // The line may begin with a byte order mark and up to three blanks.
        let open = source.line_span(fence_line);
        let open = if fence_line == 1 { source.bom()..open.end } else { open };
        let line = &source.text[open.clone()];
        let first = open.start + line.find(['`', '~']).unwrap_or(0);
        let line = &source.text[first..open.end];
        let mark = line.as_bytes()[0];
        let ticks = line.bytes().take_while(|&b| b == mark).count();
        let indent = source.text[open.start..first].bytes().filter(|&b| b == b' ').count();
        let fence = first..first + line.trim_end().len();

        let info = self.info(first + ticks..open.end);
        if close_line > source.line_count() {
            // Its lines count all the same, or they would be reported as missing elsewhere.
            self.error(Problem::Unclosed { fence: line[..ticks].to_owned() }, fence.clone());
        }
        let Some(info) = info else { return };
        let mut lines = Vec::with_capacity((close_line - fence_line) as usize - 1);
        let forms = Forms::of(&info.language);
        for number in fence_line + 1..close_line {
            let (span, pad) = unindented(source, source.line_span(number), indent);
            let kind = self.line_kind(span.clone(), forms);
            lines.push(Line { span, pad, kind });
        }
        let (mut title, mut why) = (None, None);
        for Waiting { word, note } in waiting {
            let (slot, name) = match word.as_str() {
                "title" => (&mut title, "title"),
                "why" => (&mut why, "why"),
                other => {
                    if let Some(nearest) =
                        ["title", "why"].into_iter().find(|near| close(other, near))
                    {
                        let word = other.to_owned();
                        self.error(Problem::UnknownComment { word, nearest }, note.span);
                    }
                    continue;
                }
            };
            if slot.is_some() {
                self.error(Problem::CommentTwice(name), note.span);
            } else {
                *slot = Some(note);
            }
        }
        self.out.blocks.push(Block {
            target: info.target,
            target_span: info.target_span,
            variant: info.variant,
            language: info.language,
            append: info.append,
            hide: info.hide,
            title,
            why,
            span: open.start..source.line_span(close_line).end,
            fence,
            fence_line,
            close_line,
            lines,
        });
    }

    fn line_kind(&mut self, span: Range<usize>, forms: Forms) -> LineKind {
        match classify(&self.source.text[span.clone()], forms) {
            Class::Text => LineKind::Text,
            Class::Escaped(at) => LineKind::Escaped(span.start + at),
            Class::Reference(name) => {
                let name = span.start + name.start..span.start + name.end;
                let text = &self.source.text[name.clone()];
                if is_name(text) {
                    LineKind::Reference(name)
                } else {
                    self.error(Problem::BadReference(text.to_owned()), span);
                    LineKind::Text
                }
            }
        }
    }

    /// Reads an info string. Nothing comes back if the block is not tangled.
    fn info(&mut self, span: Range<usize>) -> Option<Info> {
        let text = self.source.text[span.clone()].trim_end_matches('\r');
        let words = words(text, span.start);
        let tangled = words
            .iter()
            .any(|(word, _)| matches!(head(word), ("file" | "chunk" | "replaces", Some(':'))));
        let mut language = String::new();
        let mut targets: Vec<(Target, Range<usize>, Range<usize>)> = Vec::new();
        let mut seen: Vec<&'static str> = Vec::new();
        let (mut append, mut hide) = (None, None);
        let mut lab = Lab::default();
        let mut replaces = false;
        for (index, (word, at)) in words.iter().enumerate() {
            let at = at.clone();
            let (name, mark) = head(word);
            let value = mark.map(|_| &word[name.len() + 1..]);
            let ours = OURS.iter().find(|(ours, _)| *ours == name);
            if index == 0 {
                // The language may be any word that cannot be taken for a tag.
                match ours {
                    Some(_) if mark.is_some() => {
                        self.error(Problem::LanguageFirst((*word).to_owned()), at.clone());
                    }
                    _ if mark.is_none() || nearest(name, false).is_none() => {
                        (*word).clone_into(&mut language);
                        continue;
                    }
                    _ => {}
                }
            }
            let Some(&(ours, takes_value)) = ours else {
                self.unknown(word, at, tangled);
                continue;
            };
            if mark == Some('=') {
                let instead = if takes_value {
                    format!("{ours}:{}", value.unwrap_or_default())
                } else {
                    ours.to_owned()
                };
                self.error(Problem::EqualsTag { word: (*word).to_owned(), instead }, at);
                continue;
            }
            match value {
                None | Some("") if takes_value => {
                    self.error(Problem::NoValue(ours), at);
                    continue;
                }
                Some(_) if !takes_value => {
                    self.error(Problem::SpareValue(ours), at);
                    continue;
                }
                _ => {}
            }
            if seen.contains(&ours) {
                self.error(Problem::TagTwice(ours), at);
                continue;
            }
            seen.push(ours);
            let value = value.unwrap_or_default();
            let value_span = at.end - value.len()..at.end;
            match ours {
                "append" => append = Some(at),
                "hide" => hide = Some(at),
                "starter" | "solution" => lab.sides.push((ours, at)),
                "lab" => match value.parse::<u32>() {
                    Ok(number) if number > 0 && !value.starts_with(['0', '+']) => {
                        lab.number = Some((number, at));
                    }
                    _ => {
                        self.error(Problem::BadLab(value.to_owned()), value_span);
                        lab.bad = true;
                    }
                },
                "file" => {
                    if let Some(reason) = bad_path(value) {
                        let path = value.to_owned();
                        self.error(Problem::BadPath { path, reason }, value_span.clone());
                    }
                    targets.push((Target::File(value.to_owned()), at, value_span));
                }
                _ => {
                    if !is_name(value) {
                        self.error(Problem::BadName(value.to_owned()), value_span.clone());
                    }
                    replaces |= ours == "replaces";
                    targets.push((Target::Chunk(value.to_owned()), at, value_span));
                }
            }
        }
        if targets.len() > 1 && !replaces {
            self.error(Problem::FileAndChunk, targets[1].1.clone());
        }
        if targets.is_empty() && !tangled {
            let number = lab.number.map(|(_, at)| ("lab", at));
            let alone = [("append", append), ("hide", hide)];
            let alone = alone.into_iter().filter_map(|(tag, at)| Some((tag, at?)));
            for (tag, at) in alone.chain(number).chain(lab.sides) {
                self.error(Problem::TagAlone(tag), at);
            }
            return None;
        }
        let variant = if replaces {
            let more = targets
                .iter()
                .filter(|(_, at, _)| !source_word(self.source, at).starts_with("replaces"));
            let more = more.map(|(target, at, _)| match target {
                Target::File(_) => ("file", at.clone()),
                Target::Chunk(_) => ("chunk", at.clone()),
            });
            let number = lab.number.take().map(|(_, at)| ("lab", at));
            let others: Vec<_> = more
                .chain(append.take().map(|at| ("append", at)))
                .chain(number)
                .chain(std::mem::take(&mut lab.sides))
                .collect();
            for (tag, at) in others {
                self.error(Problem::ReplacesAlone(tag), at);
            }
            Variant::Replaces
        } else {
            self.variant(lab, &targets)
        };
        let (target, _, target_span) = targets.into_iter().next()?;
        if let (Target::Chunk(_), Some(at)) = (&target, append.clone()) {
            self.error(Problem::AppendOnChunk, at);
            append = None;
        }
        Some(Info { target, target_span, variant, language, append, hide })
    }

    /// What the words about labs come to.
    fn variant(&mut self, lab: Lab, targets: &[(Target, Range<usize>, Range<usize>)]) -> Variant {
        let Lab { number, mut sides, bad } = lab;
        if let (Some((_, at)), Some((Target::File(_), ..))) = (&number, targets.first()) {
            self.error(Problem::LabOnFile, at.clone());
            return Variant::Plain;
        }
        if sides.len() > 1 {
            self.error(Problem::BothSides, sides[1].1.clone());
        }
        match (number, sides.pop()) {
            (Some((lab, _)), Some(("starter", _))) => Variant::Starter(lab),
            (Some((lab, _)), Some(_)) => Variant::Solution(lab),
            (Some((_, at)), None) => {
                self.error(Problem::NoSide, at);
                Variant::Plain
            }
            (None, Some((side, at))) => {
                if !bad {
                    self.error(Problem::NoLab(side), at);
                }
                Variant::Plain
            }
            (None, None) => Variant::Plain,
        }
    }

    /// A word that is none of ours.
    fn unknown(&mut self, word: &str, at: Range<usize>, tangled: bool) {
        if passes(word) {
            return;
        }
        let (name, mark) = head(word);
        let near = nearest(name, tangled);
        if !tangled && near.is_none() {
            return;
        }
        let nearest = near.map(|near| match (mark, OURS.iter().find(|(ours, _)| *ours == near)) {
            (Some(_), Some((_, true))) => format!("{near}:{}", &word[name.len() + 1..]),
            (None, Some((_, true))) => format!("{near}:..."),
            _ => near.to_owned(),
        });
        self.error(Problem::UnknownTag { word: word.to_owned(), nearest }, at);
    }
}

/// The words of an info string that are about a lab.
#[derive(Default)]
struct Lab {
    number: Option<(u32, Range<usize>)>,
    /// `starter` and `solution`, as many as there are.
    sides: Vec<(&'static str, Range<usize>)>,
    /// Whether a number was there and was none.
    bad: bool,
}

struct Info {
    target: Target,
    target_span: Range<usize>,
    variant: Variant,
    language: String,
    append: Option<Range<usize>>,
    hide: Option<Range<usize>>,
}

/// Splits an info string as rustdoc and mdBook do, at commas and blanks.
fn words(text: &str, start: usize) -> Vec<(&str, Range<usize>)> {
    let mut at = start;
    let mut found = Vec::new();
    for word in text.split([',', ' ', '\t']) {
        if !word.is_empty() {
            found.push((word, at..at + word.len()));
        }
        at += word.len() + 1;
    }
    found
}

fn source_word<'a>(source: &'a Source, at: &Range<usize>) -> &'a str {
    &source.text[at.clone()]
}

/// The word before `:` or `=`, and which of the two it was.
fn head(word: &str) -> (&str, Option<char>) {
    match word.find([':', '=']) {
        Some(at) => (&word[..at], word[at..].chars().next()),
        None => (word, None),
    }
}

/// Whether a word belongs to rustdoc or mdBook.
fn passes(word: &str) -> bool {
    let error_code =
        |w: &str| w.len() == 5 && w.starts_with('E') && w[1..].bytes().all(|b| b.is_ascii_digit());
    PASSING.contains(&word)
        || error_code(word)
        || word.starts_with("ignore-")
        || word.starts_with("hidelines=")
}

/// Whether one word may be a slip of the pen for another.
fn close(word: &str, known: &str) -> bool {
    let allowed = if known.len() <= 5 { 1 } else { 2 };
    word.len().abs_diff(known.len()) <= allowed
        && strsim::osa_distance(&word.to_ascii_lowercase(), known) <= allowed
}

/// The nearest word of ours, or with `all` also of rustdoc's and mdBook's.
fn nearest(name: &str, all: bool) -> Option<&'static str> {
    if name == "hidden" {
        return Some("hide");
    }
    let ours = OURS.iter().map(|&(ours, _)| ours);
    let theirs = PASSING.iter().copied().filter(|_| all);
    ours.chain(theirs)
        .filter(|known| close(name, known))
        .min_by_key(|known| strsim::osa_distance(name, known))
}

/// Whether a text is a chunk name: `[a-z0-9-]+`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Why a path cannot be a target by its form alone.
fn bad_path(path: &str) -> Option<&'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._/+~-".contains(&b);
    if path.starts_with('/') {
        return Some("it is absolute");
    }
    if path.contains('\\') {
        return Some("it has a backslash");
    }
    if !path.bytes().all(allowed) {
        return Some("a path is made of letters, digits and `._/+~-`");
    }
    if path.ends_with('/') {
        return Some("it names a folder");
    }
    path.split('/').find_map(|part| match part {
        "" => Some("it has an empty part"),
        "." => Some("it has a part `.`"),
        ".." => Some("it has a part `..`"),
        _ => None,
    })
}

/// A line as it is written in a block of `language` so that the file gets exactly this text:
/// `// <<x>>` would be a reference, and needs a backslash.
pub(crate) fn written(line: &str, language: &str) -> String {
    let forms = Forms::of(language);
    let at = match classify(line, forms) {
        Class::Text => return line.to_owned(),
        Class::Escaped(at) => at,
        // Blanks may stand between `<<` and the name, nothing else.
        Class::Reference(name) => line[..name.start].rfind("<<").unwrap_or(name.start),
    };
    format!("{}\\{}", &line[..at], &line[at..])
}

/// Whether a line closes a fence of `ticks` times `mark`.
pub(crate) fn closes(line: &[u8], mark: u8, ticks: usize) -> bool {
    let blanks = line.iter().take(4).take_while(|&&b| b == b' ').count();
    let rest = &line[blanks..];
    if blanks > 3 || rest.first() != Some(&mark) {
        return false;
    }
    let run = rest.iter().take_while(|&&b| b == mark).count();
    run >= ticks && rest[run..].iter().all(|&b| b == b' ' || b == b'\t')
}

/// Takes up to `indent` columns of blanks off a line, as CommonMark does for an indented fence.
fn unindented(source: &Source, span: Range<usize>, indent: usize) -> (Range<usize>, u8) {
    let mut start = span.start;
    let mut column = 0;
    for &byte in &source.text.as_bytes()[span.clone()] {
        if column >= indent {
            break;
        }
        match byte {
            b' ' => column += 1,
            b'\t' => column = (column / 4 + 1) * 4,
            _ => break,
        }
        start += 1;
    }
    let pad = u8::try_from(column.saturating_sub(indent)).unwrap_or(0);
    (start..span.end, pad)
}

/// Which comments a language has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forms {
    slashes: bool,
    stars: bool,
    hash: bool,
    angle: bool,
}

impl Forms {
    fn of(language: &str) -> Self {
        let none = Self { slashes: false, stars: false, hash: false, angle: false };
        match language.to_ascii_lowercase().as_str() {
            "rust" | "rs" | "c" | "h" | "cpp" | "c++" => {
                Self { slashes: true, stars: true, ..none }
            }
            "asm" | "assembler" | "assembly" | "x86asm" | "gas" | "s" | "armasm" | "nasm" => {
                Self { slashes: true, stars: true, hash: true, ..none }
            }
            "toml" | "make" | "makefile" | "mk" | "kbuild" | "kconfig" | "sh" | "bash"
            | "shell" | "zsh" | "console" | "python" | "py" | "yaml" | "yml" | "text" | "txt"
            | "plaintext" | "plain" => Self { hash: true, ..none },
            "ld" | "lds" | "linker" | "ldscript" | "linkerscript" | "linker-script" => {
                Self { stars: true, ..none }
            }
            "html" | "markdown" | "md" => Self { angle: true, ..none },
            _ => Self { slashes: true, stars: true, hash: true, angle: true },
        }
    }
}

/// What a line says to tangle.
#[derive(Debug, PartialEq, Eq)]
enum Class {
    Text,
    /// The backslash is at this byte.
    Escaped(usize),
    /// The name, good or bad, is in these bytes.
    Reference(Range<usize>),
}

fn blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

/// Decides whether a line is only a comment that holds `<<name>>`.
fn classify(line: &str, forms: Forms) -> Class {
    // Nearly every line is told by its first character.
    let blanks = line.bytes().take_while(|&b| b == b' ' || b == b'\t').count();
    if !matches!(line.as_bytes().get(blanks), Some(b'/' | b'#' | b'<')) {
        return Class::Text;
    }
    let text = line[blanks..].trim_end_matches(blank);
    let inner = match text.as_bytes() {
        [b'/', b'/', ..] if forms.slashes => &text[2..],
        [b'/', b'*', .., b'*', b'/'] if forms.stars && text.len() >= 4 => &text[2..text.len() - 2],
        [b'#', ..] if forms.hash => &text[1..],
        [b'<', b'!', b'-', b'-', .., b'-', b'-', b'>'] if forms.angle && text.len() >= 7 => {
            &text[4..text.len() - 3]
        }
        _ => return Class::Text,
    };
    let inner = inner.trim_matches(blank);
    let plain = inner.trim_start_matches('\\');
    let Some(body) = plain.strip_prefix("<<").and_then(|rest| rest.strip_suffix(">>")) else {
        return Class::Text;
    };
    if body.contains("<<") || body.contains(">>") {
        return Class::Text;
    }
    // All of these are slices of `line`, so their addresses give the offsets.
    let offset = |part: &str| part.as_ptr() as usize - line.as_ptr() as usize;
    if plain.len() < inner.len() {
        return Class::Escaped(offset(inner));
    }
    let name = body.trim_matches(blank);
    Class::Reference(offset(name)..offset(name) + name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class<'a>(language: &str, line: &'a str) -> Option<&'a str> {
        match classify(line, Forms::of(language)) {
            Class::Reference(name) => Some(&line[name]),
            _ => None,
        }
    }

    #[test]
    fn comment_forms_by_language() {
        for (language, forms) in [
            ("rust", "// /*"),
            ("c", "// /*"),
            ("x86asm", "// /* #"),
            ("toml", "#"),
            ("make", "#"),
            ("kbuild", "#"),
            ("sh", "#"),
            ("python", "#"),
            ("yaml", "#"),
            ("text", "#"),
            ("ld", "/*"),
            ("html", "<!--"),
            ("markdown", "<!--"),
            ("dts", "// /* # <!--"),
            ("", "// /* # <!--"),
        ] {
            for (form, line) in [
                ("//", "  // <<a-b>>"),
                ("/*", "/* <<a-b>> */"),
                ("#", "# <<a-b>>"),
                ("<!--", "<!-- <<a-b>> -->"),
            ] {
                let expected = forms.split(' ').any(|f| f == form).then_some("a-b");
                assert_eq!(class(language, line), expected, "{language} {line}");
            }
        }
    }

    #[test]
    fn blanks_do_not_matter() {
        for line in ["//<<x>>", "// << x >>", "\t//\t<<x>>\t ", "/*<<x>>*/", "/* <<x>>*/  "] {
            assert_eq!(class("rust", line), Some("x"), "{line}");
        }
    }

    #[test]
    fn anything_else_on_the_line_is_no_reference() {
        for line in [
            "/// <<x>>",
            "//! <<x>>",
            "// see <<x>>",
            "// <<x>> there",
            "x(); // <<x>>",
            "// <<x>> <<y>>",
            "/** <<x>> */",
            "/* <<x>>",
            "<<x>>",
            "// <x>",
            "## <<x>>",
        ] {
            assert_eq!(classify(line, Forms::of("rust")), Class::Text, "{line}");
        }
        assert_eq!(classify("## <<x>>", Forms::of("sh")), Class::Text);
    }

    #[test]
    fn a_backslash_keeps_the_text() {
        assert_eq!(classify("// \\<<x>>", Forms::of("rust")), Class::Escaped(3));
        assert_eq!(classify("  # \\\\<<X y>>", Forms::of("sh")), Class::Escaped(4));
    }

    #[test]
    fn what_looks_like_a_reference_gets_a_backslash() {
        for (line, language, expected) in [
            ("// <<x>>", "rust", "// \\<<x>>"),
            ("  /* << x >> */", "c", "  /* \\<< x >> */"),
            ("// \\<<x>>", "rust", "// \\\\<<x>>"),
            ("# <<x>>", "rust", "# <<x>>"),
            ("x(); // <<x>>", "rust", "x(); // <<x>>"),
        ] {
            assert_eq!(written(line, language), expected);
        }
    }

    #[test]
    fn closing_fences() {
        assert!(closes(b"```", b'`', 3));
        assert!(closes(b"   ````  \t", b'`', 3));
        assert!(!closes(b"    ```", b'`', 3));
        assert!(!closes(b"``", b'`', 3));
        assert!(!closes(b"~~~", b'`', 3));
        assert!(!closes(b"``` rust", b'`', 3));
    }

    #[test]
    fn paths() {
        for good in ["a", "module/core.rs", "a/.hidden", "a-b_c/x+y.S", "workspace/Cargo.toml"] {
            assert_eq!(bad_path(good), None, "{good}");
        }
        for bad in ["/a", "a/../b", "..", "./a", "a/.", "a//b", "a/", "a\\b", "a b", "a:b", "ä"] {
            assert!(bad_path(bad).is_some(), "{bad}");
        }
    }
}
