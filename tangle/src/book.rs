// SPDX-License-Identifier: GPL-2.0

//! The model: chunks, their parts, the references between them, the files they make.
//!
//! ```
//! use tangle::{Book, config::Input};
//!
//! let chapter = b"```rust,ignore,file:a.rs\nfn main() {\n    // <<body>>\n}\n```\n\n\
//!                 ```rust,ignore,chunk:body\nprintln!(\"hello\");\n```\n";
//! let book = Book::build(Input::from_chapters([("book/a.md", &chapter[..])]));
//! assert!(!book.has_errors());
//! assert_eq!(book.outputs()[0].text, "fn main() {\n    println!(\"hello\");\n}\n");
//! let origin = book.origin(book.output_named("a.rs").unwrap(), 2).unwrap();
//! assert_eq!((book.source(origin.source).path.as_str(), origin.line), ("book/a.md", 8));
//! ```

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::parse::{Block, Target};
use crate::problem::Finding;
use crate::select::{Need, Selection};
use crate::source::{Place, Role, Source, SourceId};

/// Index of a [`Chunk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u32);

/// Index of a [`Part`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId(pub u32);

/// Index of a [`Reference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefId(pub u32);

/// Index of an [`Output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputId(pub u32);

/// A file root or a named chunk: all its parts together.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The path of the file or the name of the chunk.
    pub target: Target,
    /// The parts of its body in the order of the book: of the last body that counts, with the
    /// variants that count. In a whole book with all solutions there is at least one.
    pub parts: Vec<PartId>,
    /// All its parts: also those that were replaced, starters, and what a selection leaves out.
    /// There is at least one.
    pub all: Vec<PartId>,
    /// The references to it from all parts, in the order of the book. Empty for a file root.
    pub uses: Vec<RefId>,
}

/// One block of a chapter.
#[derive(Debug, Clone)]
pub struct Part {
    /// The chunk it belongs to.
    pub chunk: ChunkId,
    /// Which part of its body it is, from 0.
    pub index: usize,
    /// Whether it is one of [`Chunk::parts`].
    pub active: bool,
    /// The part that begins the next body of the chunk, if it was replaced. That part has
    /// [`Variant::Replaces`](crate::Variant::Replaces).
    pub replaced_by: Option<PartId>,
    /// The chapter.
    pub source: SourceId,
    /// The block: its title, its lines, where it stands.
    pub block: Block,
    /// The references in it, from the first line to the last.
    pub references: Vec<RefId>,
}

impl Part {
    /// What a reader sees above the block: its title, or the name of its chunk.
    #[must_use]
    pub fn title(&self) -> &str {
        self.block.title.as_ref().map_or(self.block.target.name(), |note| &note.text)
    }

    /// Whether the page does not show it.
    #[must_use]
    pub fn hidden(&self) -> bool {
        self.block.hide.is_some()
    }

    /// Lines of the chapter that hold its code, from 1; empty for an empty block.
    #[must_use]
    pub fn lines(&self) -> Range<u32> {
        self.block.fence_line + 1..self.block.close_line
    }
}

/// A line `// <<name>>`.
#[derive(Debug, Clone)]
pub struct Reference {
    /// The part it stands in.
    pub part: PartId,
    /// Index into the part's lines.
    pub index: usize,
    /// Line of the chapter, from 1.
    pub line: u32,
    /// Bytes of the chapter that hold the name.
    pub span: Range<usize>,
    /// The name.
    pub name: String,
    /// The chunk of that name, if there is one.
    pub target: Option<ChunkId>,
}

/// Where a line of an output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The part that holds it.
    pub part: PartId,
    /// The chapter.
    pub source: SourceId,
    /// Line of the chapter, from 1.
    pub line: u32,
    /// Bytes of indentation that references put before it, if it is not empty.
    pub indent: u32,
    /// Bytes of the fence's own indentation that were taken off.
    pub strip: u32,
}

/// A file that tangle writes.
#[derive(Debug, Clone)]
pub struct Output {
    /// Path from the project root.
    pub path: String,
    /// The file root it comes from.
    pub chunk: ChunkId,
    /// The whole text, LF only, with one newline at its end, or empty.
    pub text: String,
    /// Number of lines.
    pub lines: u32,
    /// Where its lines come from, in order; together they cover every line.
    pub pieces: Vec<Piece>,
}

/// Lines of an output that follow one another both there and in a chapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First line in the output, from 1.
    pub first: u32,
    /// How many lines.
    pub count: u32,
    /// The part of a chunk that holds them.
    pub part: PartId,
    /// First line in the chapter, from 1.
    pub chapter_line: u32,
    /// Bytes of indentation that references put before each line that is not empty.
    pub indent: u32,
    /// Bytes of the fence's own indentation that were taken off (less where a line had less).
    pub strip: u32,
}

/// Where a part landed, together with all that its references brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The file.
    pub output: OutputId,
    /// First line, from 1.
    pub first: u32,
    /// Last line, from 1. Less than `first` if the part gives no line.
    pub last: u32,
}

/// A whole book.
#[derive(Debug)]
pub struct Book {
    pub(crate) root: PathBuf,
    pub(crate) out: PathBuf,
    pub(crate) selection: Selection,
    pub(crate) needs: Vec<Need>,
    pub(crate) sources: Vec<Source>,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) parts: Vec<Part>,
    pub(crate) references: Vec<Reference>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) placements: Vec<Vec<Placement>>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) names: HashMap<Target, ChunkId>,
}

impl Book {
    /// Gives the sources away, when the book is not needed any more.
    pub(crate) fn take_sources(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.sources)
    }

    /// The folder of `book.toml`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that the outputs go to: that of `book.toml`, if no other was chosen.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Which chapters and variants count.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// What the comments `<!-- needs: ... -->` say.
    #[must_use]
    pub fn needs(&self) -> &[Need] {
        &self.needs
    }

    /// The numbers of all labs, sorted.
    #[must_use]
    pub fn labs(&self) -> Vec<u32> {
        let labs = self.parts.iter().filter_map(|part| part.block.variant.lab());
        labs.collect::<BTreeSet<u32>>().into_iter().collect()
    }

    /// All files read: `book.toml`, `SUMMARY.md`, the chapters in order, unlisted Markdown files.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// One of them.
    #[must_use]
    pub fn source(&self, id: SourceId) -> &Source {
        &self.sources[id.0 as usize]
    }

    /// The chapters, in the order of `SUMMARY.md`.
    pub fn chapters(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        (0..).map(SourceId).zip(&self.sources).filter(|(_, source)| source.role == Role::Chapter)
    }

    /// A chapter by its path from the project root, such as `book/host.md`.
    #[must_use]
    pub fn chapter_named(&self, path: &str) -> Option<SourceId> {
        self.chapters().find(|(_, source)| source.path == path).map(|(id, _)| id)
    }

    /// All chunks and file roots, in the order of their first parts.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The place where a chunk or a file is first defined.
    pub(crate) fn first_place(&self, chunk: ChunkId) -> Place {
        self.place_of(self.chunk(chunk).all[0])
    }

    /// One chunk.
    #[must_use]
    pub fn chunk(&self, id: ChunkId) -> &Chunk {
        &self.chunks[id.0 as usize]
    }

    /// The named chunk `name`.
    #[must_use]
    pub fn chunk_named(&self, name: &str) -> Option<ChunkId> {
        self.names.get(&Target::Chunk(name.to_owned())).copied()
    }

    /// The root of the file `path`.
    #[must_use]
    pub fn root_of(&self, path: &str) -> Option<ChunkId> {
        self.names.get(&Target::File(path.to_owned())).copied()
    }

    /// All parts, in the order of the book.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// One part.
    #[must_use]
    pub fn part(&self, id: PartId) -> &Part {
        &self.parts[id.0 as usize]
    }

    /// The parts of one chapter, in order.
    pub fn parts_in(&self, chapter: SourceId) -> impl Iterator<Item = (PartId, &Part)> {
        (0..).map(PartId).zip(&self.parts).filter(move |(_, part)| part.source == chapter)
    }

    /// All references, in the order of the book.
    #[must_use]
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// One reference.
    #[must_use]
    pub fn reference(&self, id: RefId) -> &Reference {
        &self.references[id.0 as usize]
    }

    /// The files, sorted by path. Empty when there are errors.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// One file.
    #[must_use]
    pub fn output(&self, id: OutputId) -> &Output {
        &self.outputs[id.0 as usize]
    }

    /// A file by its path from the project root.
    #[must_use]
    pub fn output_named(&self, path: &str) -> Option<OutputId> {
        let index = self.outputs.binary_search_by(|output| output.path.as_str().cmp(path)).ok()?;
        u32::try_from(index).ok().map(OutputId)
    }

    /// Where a part lands: one entry for each time it is expanded, in the order of files and lines.
    #[must_use]
    pub fn placements(&self, part: PartId) -> &[Placement] {
        &self.placements[part.0 as usize]
    }

    /// Where line `line` (from 1) of an output comes from.
    #[must_use]
    pub fn origin(&self, output: OutputId, line: u32) -> Option<Origin> {
        let pieces = &self.output(output).pieces;
        let piece = &pieces[pieces.partition_point(|p| p.first <= line).checked_sub(1)?];
        (line < piece.first + piece.count).then(|| Origin {
            part: piece.part,
            source: self.part(piece.part).source,
            line: piece.chapter_line + (line - piece.first),
            indent: piece.indent,
            strip: piece.strip,
        })
    }

    /// The lines of outputs that come from a line of a chapter, both from 1.
    #[must_use]
    pub fn lines_from(&self, chapter: SourceId, line: u32) -> Vec<(OutputId, u32)> {
        let mut found = Vec::new();
        for (id, output) in (0..).map(OutputId).zip(&self.outputs) {
            for piece in &output.pieces {
                let lines = piece.chapter_line..piece.chapter_line + piece.count;
                if self.part(piece.part).source == chapter && lines.contains(&line) {
                    found.push((id, piece.first + (line - piece.chapter_line)));
                }
            }
        }
        found
    }

    /// What is wrong, in the order of the book.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether any finding is an error. Then nothing may be written.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }

    /// The place of a part's path or name in its info string.
    #[must_use]
    pub fn place_of(&self, part: PartId) -> Place {
        let part = self.part(part);
        Place { source: part.source, span: part.block.target_span.clone() }
    }

    pub(crate) fn place_of_reference(&self, id: RefId) -> Place {
        let reference = self.reference(id);
        Place { source: self.part(reference.part).source, span: reference.span.clone() }
    }
}
