// SPDX-License-Identifier: GPL-2.0

//! Why a change of a generated file cannot be taken back into a chapter.

use thiserror::Error;

/// What stands in the way. `path` and `line` are those of the generated file as it is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The chapter and the file both changed the same lines.
    #[error("{path}:{line} was changed by hand, and its chapter changed too")]
    Conflict {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// What each of the two changed.
        diff: String,
    },
    /// What was changed is not known, because what tangle wrote is not known.
    #[error("{path} was changed by hand, and its chapter may have changed too")]
    NoBase {
        /// The file.
        path: String,
        /// From what the chapters say to what the file says.
        diff: String,
    },
    /// No chapter writes the file any more.
    #[error("{0} was changed by hand, and no chapter writes it any more")]
    Stale(String),
    /// Lines that were added where one chunk ends and another begins.
    #[error("{path}:{line} was added between two chunks")]
    Between {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// The line of a chapter before it.
        before: String,
        /// The line of a chapter after it.
        after: String,
    },
    /// One change of lines from several chunks.
    #[error("{path}:{line} changes lines of two chunks at once")]
    Across {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// From the lines as they were to the lines as they are.
        diff: String,
    },
    /// A line that stands in several places, changed in some of them.
    #[error("{path}:{line} comes from a chunk that is used more than once")]
    UsedTwice {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// Where else the chapter's line is, and was not changed.
        unchanged: Vec<String>,
    },
    /// A line that stands in several places, changed in different ways.
    #[error("{path}:{line} and {other} come from one line of a chapter, and differ")]
    Differ {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// The other place.
        other: String,
    },
    /// A line before which the reference would put more blanks than it has.
    #[error("{path}:{line} is indented less than its chunk is")]
    Outdented {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// How many blanks the reference puts before each line.
        indent: usize,
    },
    /// A line that would end the chapter's block.
    #[error("{path}:{line} would close the block in the chapter")]
    Closes {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// The fence as it stands.
        fence: String,
    },
    /// A byte that no chapter may hold.
    #[error("{path}:{line} has {what}")]
    Byte {
        /// The file.
        path: String,
        /// The line.
        line: u32,
        /// What it is.
        what: &'static str,
    },
    /// Something that is no plain file stands in the place of the file.
    #[error("{path} cannot be taken back: {reason}")]
    NoFile {
        /// The file.
        path: String,
        /// What it is.
        reason: &'static str,
    },
    /// The chapters would not give the file that is wanted.
    #[error("{path} cannot be taken back exactly: line {line} would be different")]
    Inexact {
        /// The file.
        path: String,
        /// The first line that would differ.
        line: u32,
    },
    /// A chapter that may not be written.
    #[error("{path} may not be written: {reason}")]
    Chapter {
        /// The chapter.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// A name that is no file of tangle's.
    #[error("{0} is not a file that tangle writes")]
    Unknown(String),
}

impl Refusal {
    /// The file it is about.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Conflict { path, .. }
            | Self::NoBase { path, .. }
            | Self::Stale(path)
            | Self::Between { path, .. }
            | Self::Across { path, .. }
            | Self::UsedTwice { path, .. }
            | Self::Differ { path, .. }
            | Self::Outdented { path, .. }
            | Self::Closes { path, .. }
            | Self::Byte { path, .. }
            | Self::NoFile { path, .. }
            | Self::Inexact { path, .. }
            | Self::Unknown(path) => Some(path),
            Self::Chapter { .. } => None,
        }
    }

    /// Short name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "sync-conflict",
            Self::NoBase { .. } => "sync-no-base",
            Self::Stale(_) => "sync-stale",
            Self::Between { .. } => "sync-between",
            Self::Across { .. } => "sync-across",
            Self::UsedTwice { .. } => "sync-used-twice",
            Self::Differ { .. } => "sync-differ",
            Self::Outdented { .. } => "sync-outdented",
            Self::Closes { .. } => "sync-closes",
            Self::Byte { .. } => "sync-byte",
            Self::NoFile { .. } => "sync-no-file",
            Self::Inexact { .. } => "sync-inexact",
            Self::Chapter { .. } => "sync-chapter",
            Self::Unknown(_) => "sync-unknown",
        }
    }

    /// What stands under the marked line of the chapter.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Between { .. } => "the line before it",
            Self::Across { .. } => "the first of the lines",
            _ => "the line of the chapter",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Conflict { path, diff, .. } => format!(
                "{diff}\nWrite into the chapter what is right, and the same into {path}; or let one \
                 side win: `tangle --force` takes the chapter's, `tangle sync --force {path}` the \
                 file's. Either keeps a copy of the other under .tangle/kept/"
            ),
            Self::NoBase { path, diff } => format!(
                "{diff}\n`tangle --force` takes what the chapters say (-), `tangle sync --force \
                 {path}` what the file says (+). Either keeps a copy of the other under \
                 .tangle/kept/"
            ),
            Self::Stale(path) => format!(
                "take what you want to keep into a chapter, then delete {path}; or `tangle --force` \
                 removes it and keeps a copy under .tangle/kept/"
            ),
            Self::Between { before, after, .. } => format!(
                "it may belong to the chunk before it ({before}) or to the one after it ({after}): \
                 write it into the right one, or say `--between before` or `--between after`"
            ),
            Self::Across { diff, .. } => format!(
                "{diff}\nWhich line belongs to which chunk cannot be seen: write it into the \
                 chapters, or change the file in two steps with a `tangle sync` after each"
            ),
            Self::UsedTwice { unchanged, .. } => format!(
                "the same line of the chapter is also {}: change it there in the same way, or in \
                 the chapter",
                unchanged.join(", ")
            ),
            Self::Differ { .. } => "make the two the same, or change the chapter".into(),
            Self::Outdented { indent, .. } => format!(
                "the reference to the chunk puts {indent} blanks before each of its lines; indent \
                 the line, or write it into the chapter where it belongs"
            ),
            Self::Closes { fence, .. } => {
                format!("make both fences of the block in the chapter longer than {fence} first")
            }
            Self::Byte { .. } => "chapters are UTF-8, with lines that end with LF or CR LF".into(),
            Self::NoFile { path, .. } => format!("move {path} away, then run `tangle`"),
            Self::Inexact { .. } => "nothing was written; change the chapter instead".into(),
            Self::Chapter { .. } => "make it an ordinary file that you may write".into(),
            Self::Unknown(_) => "name a generated file, from the folder of book.toml".into(),
        }
    }
}
