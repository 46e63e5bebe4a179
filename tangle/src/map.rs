// SPDX-License-Identifier: GPL-2.0

//! The side-car map: for each line of each output, the line of the chapter it came from.
//!
//! It lies in `.tangle/map.json` and describes the outputs as they were last written, so that a
//! compiler's message about them finds its chapter even while the chapter is being edited.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::config::normal;

/// Where the map lies, from the project root.
pub const PATH: &str = ".tangle/map.json";

/// The form of the file. A map of another form is not read.
const VERSION: u32 = 1;

/// The map of all outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    version: u32,
    /// The folder of `book.toml`, if the outputs are in another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub book: Option<PathBuf>,
    /// The chapters, in the order of the book.
    pub chapters: Vec<Chapter>,
    /// Names of the chunks and paths of the file roots.
    pub chunks: Vec<String>,
    /// The outputs, by path from the project root.
    pub files: BTreeMap<String, Vec<Piece>>,
}

/// A chapter as it was when the map was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chapter {
    /// Path from the project root.
    pub path: String,
    /// Hash of its bytes.
    #[serde(with = "hex")]
    pub hash: u128,
}

/// Lines that follow one another in an output and in a chapter. In the file it is a list of the
/// seven numbers, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u32; 7]", into = "[u32; 7]")]
pub struct Piece {
    /// First line of the output, from 1.
    pub first: u32,
    /// How many lines.
    pub count: u32,
    /// Index into [`Map::chapters`].
    pub chapter: u32,
    /// First line of the chapter, from 1.
    pub chapter_line: u32,
    /// Bytes of indentation that references put before each line.
    pub indent: u32,
    /// Bytes of the fence's own indentation that were taken off.
    pub strip: u32,
    /// Index into [`Map::chunks`].
    pub chunk: u32,
}

impl From<[u32; 7]> for Piece {
    fn from([first, count, chapter, chapter_line, indent, strip, chunk]: [u32; 7]) -> Self {
        Self { first, count, chapter, chapter_line, indent, strip, chunk }
    }
}

impl From<Piece> for [u32; 7] {
    fn from(p: Piece) -> Self {
        [p.first, p.count, p.chapter, p.chapter_line, p.indent, p.strip, p.chunk]
    }
}

/// A place in a chapter that a place in an output came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found<'a> {
    /// Path from the project root.
    pub path: &'a str,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub col: Option<u32>,
    /// The chunk, or the path of the file root.
    pub chunk: &'a str,
}

impl Map {
    /// The map of a book's outputs.
    #[must_use]
    pub fn of(book: &Book) -> Self {
        let mut index = vec![0; book.sources().len()];
        let mut chapters = Vec::new();
        for (id, source) in book.chapters() {
            index[id.0 as usize] = u32::try_from(chapters.len()).unwrap_or(u32::MAX);
            chapters.push(Chapter { path: source.path.clone(), hash: source.hash });
        }
        let chunks = book.chunks().iter().map(|chunk| chunk.target.name().to_owned()).collect();
        let pieces = |output: &crate::book::Output| {
            output
                .pieces
                .iter()
                .map(|piece| {
                    let part = book.part(piece.part);
                    Piece {
                        first: piece.first,
                        count: piece.count,
                        chapter: index[part.source.0 as usize],
                        chapter_line: piece.chapter_line,
                        indent: piece.indent,
                        strip: piece.strip,
                        chunk: part.chunk.0,
                    }
                })
                .collect()
        };
        let files = book.outputs().iter().map(|o| (o.path.clone(), pieces(o))).collect();
        let apart = book.out() != book.root();
        let book = apart.then(|| book.root().to_path_buf());
        Self { version: VERSION, book, chapters, chunks, files }
    }

    /// Reads the map below a project root; nothing if there is none that can be read.
    #[must_use]
    pub fn read(root: &Path) -> Option<Self> {
        let map: Self = serde_json::from_slice(&fs::read(root.join(PATH)).ok()?).ok()?;
        (map.version == VERSION).then_some(map)
    }

    /// Where a line of an output came from, both from 1; a column is taken along.
    #[must_use]
    pub fn to_chapter(&self, path: &str, line: u32, col: Option<u32>) -> Option<Found<'_>> {
        let pieces = self.files.get(path)?;
        let piece = pieces.get(pieces.partition_point(|p| p.first <= line).checked_sub(1)?)?;
        let offset = line - piece.first;
        (offset < piece.count).then_some(())?;
        Some(Found {
            path: &self.chapters.get(piece.chapter as usize)?.path,
            line: piece.chapter_line + offset,
            col: col.map(|col| col.saturating_sub(piece.indent).max(1) + piece.strip),
            chunk: self.chunks.get(piece.chunk as usize)?,
        })
    }

    /// The output that a compiler's name for a source file means, and where a line of it came from.
    /// The file may have been compiled in another checkout.
    #[must_use]
    pub fn of_source(&self, file: &str, line: u32) -> Option<(&str, Found<'_>)> {
        let file = normal(Path::new(file.trim_start_matches('/')))?;
        let fits = |path: &&String| {
            file.strip_suffix(path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        };
        let path = self.files.keys().filter(fits).max_by_key(|path| path.len())?;
        Some((path, self.to_chapter(path, line, None)?))
    }

    /// The places in outputs that a line of a chapter went to, sorted by path and line.
    #[must_use]
    pub fn to_outputs(&self, chapter: &str, line: u32, col: Option<u32>) -> Vec<Found<'_>> {
        let Some(index) = self.chapters.iter().position(|c| c.path == chapter) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (path, pieces) in &self.files {
            for piece in pieces {
                let lines = piece.chapter_line..piece.chapter_line.saturating_add(piece.count);
                if piece.chapter as usize == index && lines.contains(&line) {
                    found.push(Found {
                        path,
                        line: piece.first + (line - piece.chapter_line),
                        col: col.map(|col| col.saturating_sub(piece.strip).max(1) + piece.indent),
                        chunk: self.chunks.get(piece.chunk as usize).map_or("", |name| name),
                    });
                }
            }
        }
        found
    }
}

/// Hashes as 32 hexadecimal digits.
pub(crate) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(hash: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{hash:032x}"))
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<u128, D::Error> {
        let text = <std::borrow::Cow<'a, str>>::deserialize(from)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}
