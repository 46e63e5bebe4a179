// SPDX-License-Identifier: GPL-2.0

//! Text files as they were read, and places in them.

use std::ops::Range;
use std::sync::OnceLock;

/// Which source a [`Place`] is in: an index into [`crate::Book::sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// A stretch of bytes in one source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file.
    pub source: SourceId,
    /// Byte offsets into [`Source::text`], end exclusive.
    pub span: Range<usize>,
}

/// What a source is to the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `book.toml`.
    Config,
    /// `SUMMARY.md`.
    Summary,
    /// A chapter that `SUMMARY.md` lists.
    Chapter,
    /// A Markdown file beside the chapters that `SUMMARY.md` does not list: its code does not count.
    Unlisted,
}

/// One file of the book, read once.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path relative to the project root, with `/` between its parts.
    pub path: String,
    /// What it is to the book.
    pub role: Role,
    /// The text as it stands in the file: line ends and a byte order mark are still in it. Bytes
    /// that are not UTF-8 are replaced, and [`Source::invalid_utf8`] says where the first was.
    pub text: String,
    /// Byte offset of the first byte that is not UTF-8.
    pub invalid_utf8: Option<usize>,
    /// Hash of the bytes of the file.
    pub hash: u128,
    /// Looked for when the first line is asked for: a run with no change asks for none.
    line_starts: OnceLock<Vec<u32>>,
}

impl Source {
    /// Makes a source out of the bytes of a file.
    #[must_use]
    pub fn new(path: impl Into<String>, role: Role, bytes: Vec<u8>) -> Self {
        let hash = hash(&bytes);
        let (text, invalid_utf8) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(at))
            }
        };
        Self { path: path.into(), role, text, invalid_utf8, hash, line_starts: OnceLock::new() }
    }

    /// The bytes where lines start, in order; one more if the text ends with a line's end.
    pub(crate) fn line_starts(&self) -> &[u32] {
        self.line_starts.get_or_init(|| {
            let ends = memchr::memchr_iter(b'\n', self.text.as_bytes());
            let starts = ends.map(|at| u32::try_from(at + 1).unwrap_or(u32::MAX));
            std::iter::once(0).chain(starts).collect()
        })
    }

    /// Length in bytes of the byte order mark at the start of the text: 3 or 0.
    #[must_use]
    pub fn bom(&self) -> usize {
        if self.text.starts_with('\u{feff}') { 3 } else { 0 }
    }

    /// The text without a byte order mark, which is what mdBook hands to a preprocessor.
    #[must_use]
    pub fn body(&self) -> &str {
        &self.text[self.bom()..]
    }

    /// Number of lines, counting a last one without a line end.
    #[must_use]
    pub fn line_count(&self) -> u32 {
        let starts = u32::try_from(self.line_starts().len()).unwrap_or(u32::MAX);
        if self.text.ends_with('\n') { starts - 1 } else { starts }
    }

    /// The line, counted from 1, that holds the byte at `offset`.
    #[must_use]
    pub fn line_of(&self, offset: usize) -> u32 {
        let line = self.line_starts().partition_point(|&start| start as usize <= offset);
        u32::try_from(line).unwrap_or(u32::MAX)
    }

    /// Line and column of a byte, both counted from 1, the column in characters.
    #[must_use]
    pub fn line_col(&self, offset: usize) -> (u32, u32) {
        let line = self.line_of(offset);
        let start = self.line_starts()[line as usize - 1] as usize;
        let start = if line == 1 { start + self.bom() } else { start };
        let before = self.text.get(start..offset).unwrap_or_default();
        (line, u32::try_from(before.chars().count() + 1).unwrap_or(u32::MAX))
    }

    /// Byte span of a line counted from 1, without its line end (LF or CR LF).
    #[must_use]
    pub fn line_span(&self, line: u32) -> Range<usize> {
        let index = line as usize - 1;
        let starts = self.line_starts();
        let Some(&start) = starts.get(index) else {
            return self.text.len()..self.text.len();
        };
        let start = start as usize;
        let mut end = starts.get(index + 1).map_or(self.text.len(), |&n| n as usize - 1);
        if end > start && self.text.as_bytes()[end - 1] == b'\r' {
            end -= 1;
        }
        start..end
    }

    /// Text of a line counted from 1, without its line end.
    #[must_use]
    pub fn line(&self, line: u32) -> &str {
        &self.text[self.line_span(line)]
    }
}

/// The hash used everywhere for "is this still what it was": fast, and not for secrets.
#[must_use]
pub fn hash(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("book/a.md", Role::Chapter, text.as_bytes().to_vec())
    }

    #[test]
    fn lines_and_columns_count_from_one() {
        let s = source("ab\nü c\r\n\nlast");
        assert_eq!(s.line_count(), 4);
        assert_eq!(s.line_col(0), (1, 1));
        assert_eq!(s.line_col(3), (2, 1));
        assert_eq!(s.line_col("ab\nü ".len()), (2, 3));
        assert_eq!(s.line(2), "ü c");
        assert_eq!(s.line(3), "");
        assert_eq!(s.line(4), "last");
        assert_eq!(source("a\n").line_count(), 1);
    }

    #[test]
    fn a_byte_order_mark_takes_no_column() {
        let s = source("\u{feff}abc\n");
        assert_eq!(s.body(), "abc\n");
        assert_eq!(s.line_col(3), (1, 1));
    }

    #[test]
    fn invalid_utf8_is_remembered_with_its_place() {
        let s = Source::new("a", Role::Chapter, b"ab\n\xff\xfe\n".to_vec());
        assert_eq!(s.invalid_utf8, Some(3));
        assert_eq!(s.line_col(3), (2, 1));
    }
}
