// SPDX-License-Identifier: GPL-2.0

//! Two pages at the end of the book: all chunks by name, all files by path.
//!
//! Each is first a stub, which mdBook renders, and then filled in.

use std::fmt::Write as _;

use super::links::{CHUNKS, CHUNKS_PAGE, FILES, FILES_PAGE, Links};
use super::words::{lines, list, prose, text};
use crate::book::{Book, Chunk, ChunkId, Output, PartId, Placement};
use crate::parse::{LineKind, Target};

/// What stands in a stub until it is filled, and for ever on the page for the printer.
pub(super) const STUB: &str = "<p class=\"weave-stub\">This list is on the pages for the screen \
                               only.</p>";

/// The named chunks, by name.
fn named(book: &Book) -> Vec<(&str, ChunkId, &Chunk)> {
    let mut named: Vec<_> = (0..)
        .map(ChunkId)
        .zip(book.chunks())
        .filter_map(|(id, chunk)| match &chunk.target {
            Target::Chunk(name) => Some((name.as_str(), id, chunk)),
            Target::File(_) => None,
        })
        .collect();
    named.sort_unstable_by_key(|&(name, ..)| name);
    named
}

/// The page of all named chunks, before it is filled.
pub(super) fn chunks_stub(book: &Book) -> String {
    format!(
        "# All chunks\n\nThe {} named pieces of code in this book, by name: in which chapter each \
         is shown,\nwhere its lines land, and which other piece brings it in. The files they make \
         are on\n[the next page]({FILES}).\n\n{STUB}\n",
        named(book).len()
    )
}

/// All named chunks: where they are defined, where they land, where they are used.
pub(super) fn chunks(book: &Book, links: &Links<'_>) -> String {
    let named = named(book);
    let mut out = String::new();
    for group in named.chunk_by(|(a, ..), (b, ..)| a.as_bytes()[0] == b.as_bytes()[0]) {
        let letter = char::from(group[0].0.as_bytes()[0]).to_ascii_uppercase();
        let _ = write!(
            out,
            "{}<dl class=\"chunk-index\">",
            heading(2, &format!("letter-{letter}"), &letter.to_string())
        );
        for &(_, id, chunk) in group {
            entry(book, links, id, chunk, &mut out);
        }
        out.push_str("</dl>\n");
    }
    out
}

fn entry(book: &Book, links: &Links<'_>, id: ChunkId, chunk: &Chunk, out: &mut String) {
    let anchor = links.anchor_of(id);
    let first = links.to_part(CHUNKS_PAGE, chunk.parts[0]);
    let called = text(chunk.target.name());
    let _ = write!(out, "<dt id=\"{anchor}\"><a href=\"{first}\">{called}</a></dt><dd>");
    for (index, &part) in chunk.parts.iter().enumerate() {
        let block = &book.part(part).block;
        let mut label = match &block.title {
            Some(title) => prose(&title.text),
            None if chunk.parts.len() > 1 => format!("part {}", index + 1),
            None => String::new(),
        };
        // The name above leads to the first part already.
        if index > 0 {
            label = format!("<a href=\"{}\">{label}</a>", links.to_part(CHUNKS_PAGE, part));
        }
        if !label.is_empty() {
            label.push_str(", in ");
        }
        let chapter = text(links.name(book.part(part).source));
        let places = places(book, links, part);
        let _ = write!(out, "{label}{chapter}: {places}<br>");
    }
    let mut users: Vec<PartId> = chunk.uses.iter().map(|&id| book.reference(id).part).collect();
    users.dedup();
    let users = users.into_iter().map(|user| {
        let link = links.to_part(CHUNKS_PAGE, user);
        let block = &book.part(user).block;
        let label = match &block.title {
            Some(title) => prose(&title.text),
            None => text(block.target.name()),
        };
        format!("<a href=\"{link}\">{label}</a>")
    });
    let _ = write!(out, "used in {}</dd>", list(users));
}

fn places(book: &Book, links: &Links<'_>, part: PartId) -> String {
    let files = book.placements(part).chunk_by(|a, b| a.output == b.output).map(|file| {
        let output = book.output(file[0].output);
        let link = links.to_line(CHUNKS_PAGE, file[0].output, file[0].first.min(output.lines));
        format!("<a href=\"{link}\">{}</a>, {}", text(&output.path), lines(file))
    });
    files.collect::<Vec<_>>().join("; ")
}

/// A heading like those that mdBook makes; the text is HTML.
pub(super) fn heading(level: u8, anchor: &str, text: &str) -> String {
    format!(
        "<h{level} id=\"{anchor}\"><a class=\"header\" href=\"#{anchor}\">{text}</a></h{level}>\n"
    )
}

/// The page of all files, before it is filled.
pub(super) fn files_stub(book: &Book) -> String {
    let total: u32 = book.outputs().iter().map(|output| output.lines).sum();
    format!(
        "# All files\n\nThe {} files that `tangle` writes out of this book, {total} lines. Each \
         can be read\nas a whole, every line of it linked to the place in the book that explains \
         it.\nBelow each are the pieces that it is made of, in the order of its lines; a piece\n\
         stands further to the right than the one that brings it in. The pieces by name are\non \
         [the page before]({CHUNKS}).\n\n{STUB}\n",
        book.outputs().len()
    )
}

/// All files: for each its pieces in the order of its lines, each below the one that brings it in.
pub(super) fn files(book: &Book, links: &Links<'_>) -> String {
    let mut out = String::new();
    let folder =
        |output: &Output| output.path.split_once('/').map_or("", |(top, _)| top).to_owned();
    for group in book.outputs().chunk_by(|a, b| folder(a) == folder(b)) {
        let top = folder(&group[0]);
        let top = if top.is_empty() { "At the top".to_owned() } else { text(&top) };
        out.push_str(&heading(2, &format!("in-{top}").replace(' ', "-"), &top));
        for output in group {
            let anchor = links.anchor_of(output.chunk);
            let id = book.output_named(&output.path).expect("it is the book's");
            let link = links.to_line(FILES_PAGE, id, 0);
            let _ = write!(
                out,
                "<h3 id=\"{anchor}\"><a href=\"{link}\">{}</a></h3>\n<ol class=\"file-index\">",
                text(&output.path)
            );
            let mut rows = Rows { book, links, output, next: 1, depth: 0, out: &mut out };
            rows.chunk(output.chunk);
            out.push_str("</ol>\n");
        }
    }
    out
}

/// The rows of one file, made by going through it as the expansion does.
struct Rows<'a> {
    book: &'a Book,
    links: &'a Links<'a>,
    output: &'a Output,
    /// The next line of the file.
    next: u32,
    depth: usize,
    out: &'a mut String,
}

impl Rows<'_> {
    fn chunk(&mut self, id: ChunkId) {
        for &part in &self.book.chunk(id).parts {
            self.part(part);
        }
    }

    fn part(&mut self, id: PartId) {
        let book = self.book;
        let part = book.part(id);
        let first = self.next;
        // The row comes before those of what the part brings in, but its last line after.
        let outer = std::mem::take(self.out);
        let mut references = part.references.iter();
        self.depth += 1;
        for line in &part.block.lines {
            let target = match line.kind {
                LineKind::Reference(_) => {
                    references.next().and_then(|&id| book.reference(id).target)
                }
                LineKind::Text | LineKind::Escaped(_) => {
                    self.next += 1;
                    None
                }
            };
            if let Some(target) = target {
                self.chunk(target);
            }
        }
        self.depth -= 1;
        let inner = std::mem::replace(self.out, outer);
        let last = (self.next - 1).min(self.output.lines);
        self.row(id, first, last);
        self.out.push_str(&inner);
    }

    fn row(&mut self, id: PartId, first: u32, last: u32) {
        let part = self.book.part(id);
        let output = self.book.output_named(&self.output.path);
        let place = output.map(|output| Placement { output, first, last });
        let place = lines(place.as_slice());
        let place = place.trim_start_matches("lines ").trim_start_matches("line ");
        let label = match &part.block.title {
            Some(title) => prose(&title.text),
            None => text(part.block.target.name()),
        };
        let link = self.links.to_part(FILES_PAGE, id);
        let chapter = text(self.links.name(part.source));
        // Three items of a grid: two of them need no element of their own.
        let _ = write!(
            self.out,
            "<li style=\"--depth:{}\">{place}<a href=\"{link}\">{label}</a>{chapter}</li>",
            self.depth
        );
    }
}
