// SPDX-License-Identifier: GPL-2.0

//! Everything that can be wrong with a book, and how it is said.
//!
//! A [`Problem`] is what is wrong, typed. A [`Finding`] is a problem with its place in a chapter
//! and with the other places that belong to it. [`render`] prints findings with the lines they
//! are about.

use std::fmt;

use miette::{
    Diagnostic, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use serde::Serialize;
use thiserror::Error;

use crate::source::{Place, Source};
pub use crate::sync::Refusal;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is written and the exit status is 1.
    Error,
    /// Said, and no more.
    Warning,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    // The book's own files.
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {reason}")]
    Io {
        /// What was tried: read, write, remove.
        action: &'static str,
        /// The path as it was given.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// `book.toml` is not as it must be.
    #[error("book.toml: {0}")]
    Config(String),
    /// A chapter in `SUMMARY.md` that is not there.
    #[error("SUMMARY.md lists {0}, which does not exist")]
    MissingChapter(String),
    /// A chapter that stands in `SUMMARY.md` twice.
    #[error("{0} is in SUMMARY.md twice")]
    ChapterTwice(String),
    /// A chapter outside the project.
    #[error("the chapter {0} lies outside the project")]
    ChapterOutside(String),
    /// A chapter that is asked for and does not exist.
    #[error("no chapter is called {path}")]
    UnknownChapter {
        /// The path as given.
        path: String,
        /// The nearest there is.
        nearest: Option<String>,
    },
    /// A chunk or a root that `--until` leaves out.
    #[error("{name} is needed, but {chapter} is left out")]
    LeftOut {
        /// The chunk with its quotes, or the path.
        name: String,
        /// The chapter it is in.
        chapter: String,
    },
    /// A lab that is asked for and does not exist.
    #[error("there is no lab {lab}")]
    UnknownLab {
        /// Its number.
        lab: u32,
        /// Those there are.
        known: Vec<u32>,
    },
    /// An output folder that is none.
    #[error("{folder} cannot be the output folder: {reason}")]
    BadFolder {
        /// The folder as given.
        folder: String,
        /// Why not.
        reason: &'static str,
    },
    /// A Markdown file with code for us that `SUMMARY.md` does not list.
    #[error("{0} holds chunks but is not in SUMMARY.md: they do not count")]
    NotInSummary(String),

    // Bytes and fences.
    /// Bytes that are not UTF-8.
    #[error("this is not UTF-8")]
    InvalidUtf8,
    /// A NUL byte.
    #[error("a NUL byte")]
    Nul,
    /// A carriage return without a line feed after it.
    #[error("a lone carriage return")]
    LoneCr,
    /// A fence that no line closes.
    #[error("this code block is never closed")]
    Unclosed {
        /// The fence that has to stand on a line of its own to close it.
        fence: String,
    },

    // Words after the fence.
    /// A word that is none of ours and none of rustdoc's or mdBook's.
    #[error("unknown tag `{word}`")]
    UnknownTag {
        /// The word as written.
        word: String,
        /// The nearest known word.
        nearest: Option<String>,
    },
    /// `file=x` instead of `file:x`.
    #[error("`{word}` is written with `=`")]
    EqualsTag {
        /// The word as written.
        word: String,
        /// How it is written.
        instead: String,
    },
    /// `file:` or `chunk:` without a value.
    #[error("`{0}` needs a value")]
    NoValue(&'static str),
    /// `hide:x`.
    #[error("`{0}` takes no value")]
    SpareValue(&'static str),
    /// Our word stands where the language belongs.
    #[error("the language comes first, before `{0}`")]
    LanguageFirst(String),
    /// A word twice in one info string.
    #[error("`{0}` stands here twice")]
    TagTwice(&'static str),
    /// `file:` and `chunk:` on one fence.
    #[error("a block is a file root or a chunk, not both")]
    FileAndChunk,
    /// `hide` or `append` on a fence that has neither `file:` nor `chunk:`.
    #[error("`{0}` without `file:` or `chunk:`")]
    TagAlone(&'static str),
    /// `append` on a chunk.
    #[error("`append` on a chunk: chunks of one name join without it")]
    AppendOnChunk,
    /// `append` on the first root of a file.
    #[error("`append` on the first root of {0}")]
    AppendFirst(String),
    /// A second root without `append`.
    #[error("a second root for {0}")]
    DuplicateRoot(String),
    /// A chunk name outside `[a-z0-9-]+`.
    #[error("`{0}` is not a chunk name")]
    BadName(String),
    /// Another of our words beside `replaces:`.
    #[error("`{0}` beside `replaces:`")]
    ReplacesAlone(&'static str),
    /// A lab's number that is none.
    #[error("`{0}` is not the number of a lab")]
    BadLab(String),
    /// `lab:` without `starter` or `solution`.
    #[error("`lab:` without `starter` or `solution`")]
    NoSide,
    /// `starter` or `solution` without `lab:`.
    #[error("`{0}` without `lab:`")]
    NoLab(&'static str),
    /// `starter` and `solution` on one fence.
    #[error("a block is the starter or the solution, not both")]
    BothSides,
    /// `lab:` on a file root.
    #[error("`lab:` on a file root")]
    LabOnFile,

    // Comments before a fence.
    /// `title:` or `why:` twice before one fence.
    #[error("a second `{0}:` for one block")]
    CommentTwice(&'static str),
    /// A comment `<!-- tilte: ... -->` before one of our fences.
    #[error("unknown comment `{word}:` before a block")]
    UnknownComment {
        /// The word as written.
        word: String,
        /// The nearest known word.
        nearest: &'static str,
    },
    /// A `title:` or `why:` that no block follows.
    #[error("`{0}:` belongs to no block")]
    DanglingComment(&'static str),

    // Targets.
    /// A path that cannot be a target by its form.
    #[error("`{path}` cannot be a target: {reason}")]
    BadPath {
        /// The path as written.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// A path that is a file for one root and a folder for another.
    #[error("{file} is a file here and a folder in {inside}")]
    FileAndFolder {
        /// The path that is a file.
        file: String,
        /// The path that lies under it.
        inside: String,
    },
    /// A target that is not ours to write.
    #[error("{path} may not be a target: {reason}")]
    Forbidden {
        /// The path.
        path: String,
        /// What it is.
        reason: String,
    },
    /// A target that a symbolic link takes out of the project.
    #[error("{path} leaves the project: {link} is a link to {to}")]
    LeavesTree {
        /// The path.
        path: String,
        /// The link on the way.
        link: String,
        /// Where it leads.
        to: String,
    },

    // References.
    /// A reference whose name is none.
    #[error("`{0}` is not a chunk name, and this line is a reference")]
    BadReference(String),
    /// A reference to a chunk that does not exist.
    #[error("no chunk is called `{name}`")]
    Undefined {
        /// The name.
        name: String,
        /// The nearest name there is.
        nearest: Option<String>,
        /// Why a name that is there does not count.
        hint: Option<String>,
    },
    /// A chunk that nothing refers to.
    #[error("the chunk `{name}` is never used")]
    Unused {
        /// The name.
        name: String,
        /// What may be the reason.
        hint: Option<String>,
    },
    /// `replaces:` of a chunk that is not there, or not yet.
    #[error("`replaces:{name}`, but no chunk is called so before")]
    ReplacesUnknown {
        /// The name.
        name: String,
        /// The nearest name there is before.
        nearest: Option<String>,
    },
    /// A starter without a solution.
    #[error("lab {lab} has a starter of `{name}` and no solution")]
    NoSolution {
        /// The name of the chunk.
        name: String,
        /// The lab.
        lab: u32,
    },
    /// Chunks that need each other.
    #[error("a cycle: {0}")]
    Cycle(String),
    /// Chunks that multiply beyond reason.
    #[error("{0} would have more than {1} {2}")]
    TooLarge(String, u64, &'static str),

    // Outputs.
    /// An output that was changed by hand.
    #[error("{path} was changed by hand{}", .line.map_or(String::new(), |n| format!(" (line {n})")))]
    Edited {
        /// The path.
        path: String,
        /// The first line that differs, from 1.
        line: Option<u32>,
    },
    /// An output that no chapter writes any more, and that was changed by hand.
    #[error("{0} was changed by hand, and no chapter writes it any more")]
    EditedStale(String),
    /// Writing began and could not go on. It comes after what was in the way.
    #[error("not everything was written")]
    HalfWay,
    /// A file that tangle did not write, in the place of an output.
    #[error("{path} is in the way: {reason}")]
    Foreign {
        /// The path.
        path: String,
        /// What it is.
        reason: &'static str,
    },

    // What `sync` and `fmt` cannot do.
    /// A change that cannot be taken back into a chapter.
    #[error(transparent)]
    Refused(#[from] Refusal),

    // What `check` looks for.
    /// Blanks at the end of a line.
    #[error("blanks at the end of the line")]
    TrailingBlanks,
    /// A line that mdBook changes.
    #[error("mdBook changes this line: in a Rust block a line that begins with `#` is special")]
    HiddenLine,
    /// `{{#` in a chunk.
    #[error("`{{{{#` in a chunk: mdBook may expand it on the page")]
    Expands,
    /// `hide` without a reason.
    #[error("hidden without a reason")]
    NoWhy,
    /// Too many lines in one block.
    #[error("a block of {0} lines")]
    TooLong(usize, usize),
    /// A line that is too wide for the page.
    #[error("a line of {0} columns")]
    TooWide(usize, usize),
    /// rustfmt would write it differently.
    #[error("not as rustfmt writes it: {path}:{line}")]
    NotFormatted {
        /// The output.
        path: String,
        /// Its first line that differs, from 1.
        line: u32,
        /// The difference, with `-` before our lines and `+` before rustfmt's.
        instead: String,
    },
    /// rustfmt cannot read it.
    #[error("rustfmt cannot read {path}: {reason}")]
    NotParsed {
        /// The output.
        path: String,
        /// What rustfmt said.
        reason: String,
    },
    /// An output that is not what the chapters say.
    #[error("{path} {state}")]
    OutOfDate {
        /// The output.
        path: String,
        /// In which way.
        state: &'static str,
    },
}

impl Problem {
    /// Short name of the kind, as it stands at the head of a message.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Config(_) => "config",
            Self::MissingChapter(_) => "missing-chapter",
            Self::ChapterTwice(_) => "chapter-twice",
            Self::ChapterOutside(_) => "chapter-outside",
            Self::NotInSummary(_) => "not-in-summary",
            Self::InvalidUtf8 => "invalid-utf8",
            Self::Nul => "nul",
            Self::LoneCr => "lone-cr",
            Self::Unclosed { .. } => "unclosed-fence",
            Self::UnknownTag { .. } => "unknown-tag",
            Self::EqualsTag { .. } => "equals",
            Self::NoValue(_) => "no-value",
            Self::SpareValue(_) => "spare-value",
            Self::LanguageFirst(_) => "language-first",
            Self::TagTwice(_) => "tag-twice",
            Self::FileAndChunk => "file-and-chunk",
            Self::TagAlone(_) => "tag-alone",
            Self::AppendOnChunk => "append-on-chunk",
            Self::AppendFirst(_) => "append-first",
            Self::DuplicateRoot(_) => "duplicate-root",
            Self::BadName(_) => "bad-name",
            Self::ReplacesAlone(_) => "replaces-alone",
            Self::BadLab(_) => "bad-lab",
            Self::NoSide | Self::NoLab(_) | Self::BothSides => "half-lab",
            Self::LabOnFile => "lab-on-file",
            Self::ReplacesUnknown { .. } => "replaces-unknown",
            Self::NoSolution { .. } => "no-solution",
            Self::UnknownChapter { .. } => "unknown-chapter",
            Self::LeftOut { .. } => "left-out",
            Self::UnknownLab { .. } => "unknown-lab",
            Self::BadFolder { .. } => "bad-folder",
            Self::CommentTwice(_) => "comment-twice",
            Self::UnknownComment { .. } => "unknown-comment",
            Self::DanglingComment(_) => "dangling-comment",
            Self::BadPath { .. } => "bad-path",
            Self::FileAndFolder { .. } => "file-and-folder",
            Self::Forbidden { .. } => "forbidden-target",
            Self::LeavesTree { .. } => "leaves-tree",
            Self::BadReference(_) => "bad-reference",
            Self::Undefined { .. } => "undefined",
            Self::Unused { .. } => "unused",
            Self::Cycle(_) => "cycle",
            Self::TooLarge(..) => "too-large",
            Self::Edited { .. } => "edited",
            Self::EditedStale(_) => "edited-stale",
            Self::HalfWay => "half-way",
            Self::Foreign { .. } => "foreign",
            Self::Refused(refusal) => refusal.code(),
            Self::TrailingBlanks => "trailing-blanks",
            Self::HiddenLine => "hidden-line",
            Self::Expands => "expands",
            Self::NoWhy => "no-why",
            Self::TooLong(..) => "too-long",
            Self::TooWide(..) => "too-wide",
            Self::NotFormatted { .. } => "rustfmt",
            Self::NotParsed { .. } => "rustfmt-parse",
            Self::OutOfDate { .. } => "out-of-date",
        }
    }

    /// What stands under the marked text.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::MissingChapter(_) | Self::ChapterTwice(_) | Self::ChapterOutside(_) => {
                "listed here"
            }
            Self::NotInSummary(_) => "the first of them",
            Self::Unclosed { .. } => "opened here",
            Self::DuplicateRoot(_) => "the second",
            Self::Undefined { .. } => "referred to here",
            Self::Unused { .. } | Self::NoSolution { .. } => "defined here",
            Self::LeftOut { .. } => "needed here",
            Self::Cycle(_) => "this closes it",
            Self::Edited { .. } => "the line of the chapter it came from",
            Self::Refused(refusal) => refusal.label(),
            Self::TooLong(..) | Self::NoWhy => "this block",
            _ => "here",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        const FORCE: &str = "`tangle --force` writes over it and keeps a copy under .tangle/kept/";
        let text = match self {
            Self::Io { .. } | Self::Config(_) | Self::Nul => return None,
            Self::MissingChapter(_) => "write the chapter, or take its line out of SUMMARY.md".into(),
            Self::ChapterTwice(_) => "its blocks would count twice: take one of the two out".into(),
            Self::ChapterOutside(_) => "chapters lie in the folder of book.toml or below it".into(),
            Self::NotInSummary(_) => "list it in SUMMARY.md, or take the tags off its blocks".into(),
            Self::InvalidUtf8 => "save the chapter as UTF-8".into(),
            Self::LoneCr => "lines end with LF or with CR LF".into(),
            Self::Unclosed { fence } => format!("close it with a line that holds only {fence}"),
            Self::UnknownTag { word, nearest } if word.starts_with("hidden") => {
                debug_assert!(nearest.is_some());
                "write `hide`: mdBook has a CSS class `hidden`, which takes the block off the page".into()
            }
            Self::UnknownTag { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::UnknownTag { nearest: None, .. } => {
                "known are file:, chunk:, append, hide, replaces:, lab:, starter, solution, and the \
                 words of rustdoc and mdBook"
                    .into()
            }
            Self::EqualsTag { instead, .. } => {
                format!("write `{instead}`: a word with `=` makes rustdoc skip the block silently")
            }
            Self::NoValue("file") => "write `file:path/of/the.file`".into(),
            Self::NoValue("lab") => "write `lab:2,starter` or `lab:2,solution`".into(),
            Self::NoValue(tag) => format!("write `{tag}:a-name`"),
            Self::SpareValue(tag) => format!("write `{tag}` alone"),
            Self::LanguageFirst(word) => {
                format!("write `rust,ignore,{word}`, so that mdBook and editors colour the block")
            }
            Self::TagTwice(_) => "take one of the two out".into(),
            Self::FileAndChunk => "take one of the two out; a root can hold a reference to the chunk".into(),
            Self::TagAlone("append") => "say which file it is appended to: `file:path,append`".into(),
            Self::TagAlone("hide") => "a block that is not tangled can be hidden in an HTML comment".into(),
            Self::TagAlone(_) => "say which chunk it is of: `chunk:a-name,lab:2,starter`".into(),
            Self::AppendOnChunk => "take `append` out".into(),
            Self::AppendFirst(_) => {
                "take `append` out, or move the block after the root (order of SUMMARY.md, then of lines)"
                    .into()
            }
            Self::DuplicateRoot(path) => {
                format!("write `file:{path},append` if this goes on with the file")
            }
            Self::BadName(name) | Self::BadReference(name) => {
                let fixed = plain_name(name);
                if fixed.is_empty() {
                    "a name is made of a to z, 0 to 9 and `-`".into()
                } else if matches!(self, Self::BadReference(_)) {
                    format!(
                        "a name is made of a to z, 0 to 9 and `-`: `<<{fixed}>>`? \
                         For the text itself write `\\<<{name}>>`"
                    )
                } else {
                    format!("a name is made of a to z, 0 to 9 and `-`: `{fixed}`?")
                }
            }
            Self::ReplacesAlone(_) => {
                "`replaces:a-name` stands alone; what goes on with the new body is a `chunk:a-name` \
                 after it"
                    .into()
            }
            Self::BadLab(_) => "labs are counted from 1: `lab:2,starter`".into(),
            Self::NoSide => "a lab's block is its starter or its solution: `lab:2,starter`".into(),
            Self::NoLab(side) => format!("say of which lab: `lab:2,{side}`"),
            Self::BothSides => "write two blocks; what both have needs no `lab:`".into(),
            Self::LabOnFile => {
                "put what differs into a chunk: a root can hold a reference to it".into()
            }
            Self::ReplacesUnknown { nearest: Some(nearest), .. } => {
                format!("did you mean `{nearest}`?")
            }
            Self::ReplacesUnknown { name, .. } => format!(
                "the first body is a `chunk:{name}`, earlier in the order of SUMMARY.md and of lines"
            ),
            Self::NoSolution { name, lab } => {
                format!("write a block with `chunk:{name},lab:{lab},solution`")
            }
            Self::UnknownChapter { nearest: Some(nearest), .. } => {
                format!("did you mean {nearest}?")
            }
            Self::UnknownChapter { .. } => "name it as SUMMARY.md does".into(),
            Self::LeftOut { chapter, .. } => {
                format!("say so in the chapter that needs it: `<!-- needs: {chapter} -->`")
            }
            Self::UnknownLab { known, .. } if known.is_empty() => {
                "no block of the book has `lab:`".into()
            }
            Self::UnknownLab { known, .. } => {
                let known: Vec<String> = known.iter().map(u32::to_string).collect();
                format!("there are {}", known.join(", "))
            }
            Self::BadFolder { .. } => {
                "name a new folder, or one that an earlier run has written, apart from the book".into()
            }
            Self::CommentTwice(_) => "take one of the two out".into(),
            Self::UnknownComment { nearest, .. } => format!("did you mean `{nearest}:`?"),
            Self::DanglingComment(_) => {
                "only blank lines and other such comments may stand between it and its block".into()
            }
            Self::BadPath { .. } => {
                "a target is a path from the folder of book.toml, such as `module/core.rs`".into()
            }
            Self::FileAndFolder { .. } => "give one of the two another name".into(),
            Self::Forbidden { .. } => "choose another path, in a folder that git ignores".into(),
            Self::LeavesTree { .. } => "tangle writes below the folder of book.toml only".into(),
            Self::Undefined { hint: Some(hint), .. } => hint.clone(),
            Self::Undefined { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::Undefined { name, .. } => format!("write a block with `chunk:{name}`"),
            Self::Unused { hint: Some(hint), .. } => hint.clone(),
            Self::Unused { name, .. } => {
                format!("refer to it with a comment line `<<{name}>>`, or take it out")
            }
            Self::Cycle(_) => "one of these references has to go".into(),
            Self::TooLarge(..) => "chunks that use a chunk twice, again and again, multiply".into(),
            Self::Edited { .. } => format!(
                "nothing was written. `tangle sync` takes the change into the chapter; {FORCE}"
            ),
            Self::EditedStale(path) => format!(
                "nothing was written. Take what you want to keep into a chapter, then delete \
                 {path}; {FORCE}"
            ),
            Self::HalfWay => {
                "every file is whole, the old one or the new one; the next run goes on from there"
                    .into()
            }
            Self::Foreign { path, .. } => {
                format!("nothing was written. Move {path} away or delete it; {FORCE}")
            }
            Self::Refused(refusal) => refusal.help(),
            Self::TrailingBlanks => "take them off: they get lost in editors and reviews".into(),
            Self::HiddenLine => {
                "on the page `# ` and `#` alone are hidden and `##` loses a `#`; say it another way \
                 (in `global_asm!` comments are `//`)"
                    .into()
            }
            Self::Expands => "say it another way, or split the braces".into(),
            Self::NoWhy => "write `<!-- why: ... -->` before the block; the audit page prints it".into(),
            Self::TooLong(_, most) => {
                format!("a block has at most {most} lines: split it where the prose can say why")
            }
            Self::TooWide(_, most) => format!("the page shows {most} columns"),
            Self::NotFormatted { instead, .. } => {
                format!("rustfmt would change\n{instead}\nand `tangle fmt` does it in the chapter")
            }
            Self::NotParsed { .. } => "every .rs file must parse as it is tangled".into(),
            Self::OutOfDate { .. } => "run `tangle`".into(),
        };
        Some(text)
    }
}

/// The name somebody may have meant: lower case, with `-` for what is not allowed.
fn plain_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
    }
    out.trim_matches('-').to_owned()
}

/// A problem at its place.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What is wrong.
    pub problem: Problem,
    /// How much it matters.
    pub severity: Severity,
    /// Where, if it is about a place in a file.
    pub at: Option<Place>,
    /// Other places that belong to it, each with what it is.
    pub also: Vec<(Place, String)>,
}

impl Finding {
    /// An error at a place.
    #[must_use]
    pub fn error(problem: Problem, at: Place) -> Self {
        Self { problem, severity: Severity::Error, at: Some(at), also: Vec::new() }
    }

    /// A warning at a place.
    #[must_use]
    pub fn warning(problem: Problem, at: Place) -> Self {
        Self { severity: Severity::Warning, ..Self::error(problem, at) }
    }

    /// An error that no line of a file shows.
    #[must_use]
    pub fn nowhere(problem: Problem) -> Self {
        Self { problem, severity: Severity::Error, at: None, also: Vec::new() }
    }

    /// The same, with another place that belongs to it.
    #[must_use]
    pub fn and(mut self, at: Place, what: impl Into<String>) -> Self {
        self.also.push((at, what.into()));
        self
    }

    /// Whether it is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `chapter.md:line:col`, where there is a place.
    #[must_use]
    pub fn location(&self, sources: &[Source]) -> Option<String> {
        let at = self.at.as_ref()?;
        let source = &sources[at.source.0 as usize];
        let (line, col) = source.line_col(at.span.start);
        Some(format!("{}:{line}:{col}", source.path))
    }
}

/// Puts findings in the order of the book's files and of their lines.
pub fn sort(findings: &mut [Finding]) {
    findings
        .sort_by_key(|f| f.at.as_ref().map_or((u32::MAX, 0), |at| (at.source.0, at.span.start)));
}

/// A finding together with the text it is about, as miette wants it.
struct Rendered<'a> {
    message: String,
    code: Option<&'static str>,
    severity: miette::Severity,
    help: Option<String>,
    source: Option<Text<'a>>,
    labels: Vec<LabeledSpan>,
    related: Vec<Rendered<'a>>,
}

/// The text of a source, with its name, and with its byte order mark out of the way.
struct Text<'a>(&'a Source);

impl SourceCode for Text<'_> {
    fn read_span<'b>(
        &'b self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'b> + 'b>, MietteError> {
        let found = self.0.body().read_span(span, before, after)?;
        Ok(Box::new(MietteSpanContents::new_named(
            self.0.path.clone(),
            found.data(),
            *found.span(),
            found.line(),
            found.column(),
            found.line_count(),
        )))
    }
}

fn labelled(source: &Source, at: &Place, label: &str) -> LabeledSpan {
    let start = at.span.start.saturating_sub(source.bom());
    LabeledSpan::new(Some(label.to_owned()), start, at.span.len())
}

impl<'a> Rendered<'a> {
    fn new(finding: &Finding, sources: &'a [Source]) -> Self {
        let place = finding.at.as_ref().map(|at| (at, &sources[at.source.0 as usize]));
        let mut labels = Vec::new();
        let mut related = Vec::new();
        if let Some((at, source)) = place {
            let label = labelled(source, at, finding.problem.label());
            let (text, span) = (label.label().map(str::to_owned), *label.inner());
            labels.push(LabeledSpan::new_primary_with_span(text, span));
        }
        for (also, what) in &finding.also {
            let source = &sources[also.source.0 as usize];
            // A later place in the same file nearby is marked in the same snippet; the snippet's
            // head names the place of the finding itself.
            let near = place.is_some_and(|(at, _)| {
                let lines =
                    source.line_of(also.span.start).checked_sub(source.line_of(at.span.start));
                at.source == also.source && lines.is_some_and(|lines| lines < 12)
            });
            if near {
                labels.push(labelled(source, also, what));
                continue;
            }
            related.push(Rendered {
                message: what.clone(),
                code: None,
                severity: miette::Severity::Advice,
                help: None,
                source: Some(Text(source)),
                labels: vec![labelled(source, also, "here")],
                related: Vec::new(),
            });
        }
        Self {
            message: finding.problem.to_string(),
            code: Some(finding.problem.code()),
            severity: match finding.severity {
                Severity::Error => miette::Severity::Error,
                Severity::Warning => miette::Severity::Warning,
            },
            help: finding.problem.help(),
            source: place.map(|(_, source)| Text(source)),
            labels,
            related,
        }
    }
}

impl fmt::Debug for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Rendered<'_> {}

impl Diagnostic for Rendered<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.code.map(|code| Box::new(format!("tangle::{code}")) as Box<dyn fmt::Display>)
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(self.severity)
    }

    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty())
            .then(|| Box::new(self.labels.iter().cloned()) as Box<dyn Iterator<Item = LabeledSpan>>)
    }

    fn related<'b>(&'b self) -> Option<Box<dyn Iterator<Item = &'b dyn Diagnostic> + 'b>> {
        (!self.related.is_empty()).then(|| {
            Box::new(self.related.iter().map(|r| r as &dyn Diagnostic))
                as Box<dyn Iterator<Item = &'b dyn Diagnostic>>
        })
    }
}

/// How messages look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Colours, for a terminal.
    pub colour: bool,
    /// Columns to wrap at.
    pub width: usize,
}

impl Default for Look {
    fn default() -> Self {
        Self { colour: false, width: 100 }
    }
}

/// Where a finding is, for programs. Lines and columns are counted from 1, columns in characters; the
/// end is the first column after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Spot<'a> {
    file: &'a str,
    line: u32,
    column: u32,
    end_line: u32,
    end_column: u32,
    message: &'a str,
}

impl<'a> Spot<'a> {
    fn new(at: &Place, message: &'a str, sources: &'a [Source]) -> Self {
        let source = &sources[at.source.0 as usize];
        let (line, column) = source.line_col(at.span.start);
        let (end_line, end_column) = source.line_col(at.span.end);
        Self { file: &source.path, line, column, end_line, end_column, message }
    }
}

/// Prints findings as JSON, one object on each line.
#[must_use]
pub fn json(findings: &[Finding], sources: &[Source]) -> String {
    let mut out = String::new();
    for finding in findings {
        let spot = |at| Spot::new(at, finding.problem.label(), sources);
        let also: Vec<Spot<'_>> =
            finding.also.iter().map(|(at, what)| Spot::new(at, what, sources)).collect();
        let value = serde_json::json!({
            "severity": if finding.is_error() { "error" } else { "warning" },
            "code": finding.problem.code(),
            "message": finding.problem.to_string(),
            "help": finding.problem.help(),
            "at": finding.at.as_ref().map(spot),
            "also": also,
        });
        out.push_str(&value.to_string());
        out.push('\n');
    }
    out
}

/// Prints findings as compilers do, one line for each: `chapter.md:line:col: error: what`. One that
/// is about no line begins with `tangle: `.
#[must_use]
pub fn short(findings: &[Finding], sources: &[Source]) -> String {
    let mut out = String::new();
    for finding in findings {
        let at = finding.location(sources).unwrap_or_else(|| "tangle".to_owned());
        let severity = if finding.is_error() { "error" } else { "warning" };
        let (problem, code) = (&finding.problem, finding.problem.code());
        out.push_str(&format!("{at}: {severity}[{code}]: {problem}\n"));
    }
    out
}

/// Prints findings with the lines they are about, one blank line between them.
#[must_use]
pub fn render(findings: &[Finding], sources: &[Source], look: Look) -> String {
    let theme = if look.colour {
        miette::GraphicalTheme::unicode()
    } else {
        miette::GraphicalTheme::unicode_nocolor()
    };
    let handler = miette::GraphicalReportHandler::new_themed(theme)
        .with_width(look.width)
        .with_links(false)
        .with_context_lines(1);
    let mut out = String::new();
    for finding in findings {
        let rendered = Rendered::new(finding, sources);
        if handler.render_report(&mut out, &rendered).is_err() {
            // The place is no place in the text: say the message all the same.
            out.push_str(&format!("tangle::{}\n\n  {}\n", finding.problem.code(), finding.problem));
        }
        out.push('\n');
    }
    out
}
