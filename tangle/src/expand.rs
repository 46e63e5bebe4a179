// SPDX-License-Identifier: GPL-2.0

//! From chunks to files, with the origin of each line.

use crate::book::{Book, ChunkId, Output, OutputId, Part, PartId, Piece, Placement};
use crate::parse::{Line, LineKind, Target};
use crate::problem::{Finding, Problem};

/// More lines than any file of a book has.
const MOST_LINES: u64 = 1_000_000;
/// And more bytes.
const MOST_BYTES: u64 = 64 << 20;

/// Files, the placements of each part, and what was wrong.
type Expanded = (Vec<Output>, Vec<Vec<Placement>>, Vec<Finding>);

/// Expands every file root. The book has no undefined name and no cycle.
pub(crate) fn expand(book: &Book) -> Expanded {
    let mut roots: Vec<(&str, ChunkId)> = (0..)
        .map(ChunkId)
        .zip(book.chunks())
        .filter_map(|(id, chunk)| match &chunk.target {
            Target::File(path) if !chunk.parts.is_empty() => Some((path.as_str(), id)),
            _ => None,
        })
        .collect();
    roots.sort_unstable();
    let (sizes, findings) = sizes(book, &roots);
    let mut placements = vec![Vec::new(); book.parts().len()];
    let mut outputs = Vec::with_capacity(roots.len());
    if findings.is_empty() {
        for (id, (path, chunk)) in (0..).map(OutputId).zip(roots) {
            let size = sizes[chunk.0 as usize].unwrap_or_default().bytes;
            let size = usize::try_from(size).unwrap_or(0);
            outputs.push(expand_one(book, id, path, chunk, size, &mut placements));
        }
    }
    (outputs, placements, findings)
}

/// Counts what each chunk expands to before anything is expanded: a chunk that uses another twice,
/// which uses a third twice, and so on, would fill the memory with a few lines of book; and so would
/// indentation that grows from reference to reference.
fn sizes(book: &Book, roots: &[(&str, ChunkId)]) -> (Vec<Option<Size>>, Vec<Finding>) {
    let mut sizes: Vec<Option<Size>> = vec![None; book.chunks().len()];
    let mut findings = Vec::new();
    for &(path, root) in roots {
        let mut stack = vec![root];
        while let Some(&chunk) = stack.last() {
            if sizes[chunk.0 as usize].is_some() {
                stack.pop();
                continue;
            }
            let mut sum = Size::default();
            let before = stack.len();
            for &part in &book.chunk(chunk).parts {
                let part = book.part(part);
                sum.add(Size::of(part));
                for &reference in &part.references {
                    let reference = book.reference(reference);
                    let Some(target) = reference.target else { continue };
                    match sizes[target.0 as usize] {
                        Some(known) => {
                            let line = &part.block.lines[reference.index];
                            let before = reference.span.start - line.span.start;
                            sum.add(known.indented(before + usize::from(line.pad)));
                        }
                        None => stack.push(target),
                    }
                }
            }
            if stack.len() == before {
                sizes[chunk.0 as usize] = Some(sum);
                stack.pop();
            }
        }
        let size = sizes[root.0 as usize].unwrap_or_default();
        let limits = [(size.lines, MOST_LINES, "lines"), (size.bytes, MOST_BYTES, "bytes")];
        if let Some((_, most, unit)) = limits.into_iter().find(|(size, most, _)| size > most) {
            let problem = Problem::TooLarge(path.to_owned(), most, unit);
            findings.push(Finding::error(problem, book.first_place(root)));
        }
    }
    (sizes, findings)
}

/// What something expands to, at most.
#[derive(Clone, Copy, Default)]
struct Size {
    lines: u64,
    bytes: u64,
}

impl Size {
    /// The lines of a part without what its references bring.
    fn of(part: &Part) -> Self {
        let lines = part.block.lines.iter().filter(|l| !matches!(l.kind, LineKind::Reference(_)));
        let mut size = Self::default();
        for line in lines {
            size.lines += 1;
            size.bytes += (line.span.len() + usize::from(line.pad) + 1) as u64;
        }
        size
    }

    fn add(&mut self, other: Self) {
        self.lines = self.lines.saturating_add(other.lines);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// The same with blanks before each line: no fewer than there will be.
    fn indented(self, blanks: usize) -> Self {
        let more = self.lines.saturating_mul(blanks as u64);
        Self { bytes: self.bytes.saturating_add(more), ..self }
    }
}

/// A chunk on the way: which part, which line comes next, how long the indentation is.
struct Frame {
    chunk: ChunkId,
    part: usize,
    line: usize,
    /// Next reference of the part.
    reference: usize,
    indent: usize,
    /// Line of the output where the part began.
    began: u32,
}

fn expand_one(
    book: &Book,
    id: OutputId,
    path: &str,
    chunk: ChunkId,
    size: usize,
    placements: &mut [Vec<Placement>],
) -> Output {
    let mut text = String::with_capacity(size);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut placed: Vec<(PartId, u32, u32)> = Vec::new();
    let mut indent = String::new();
    let mut line_number = 1_u32;
    let frame =
        |chunk, indent, began| Frame { chunk, part: 0, line: 0, reference: 0, indent, began };
    let mut stack = vec![frame(chunk, 0, 1)];
    while let Some(top) = stack.last_mut() {
        indent.truncate(top.indent);
        let Some(&part_id) = book.chunk(top.chunk).parts.get(top.part) else {
            stack.pop();
            continue;
        };
        let part = book.part(part_id);
        let source = book.source(part.source).text.as_str();
        let mut inner = None;
        while let Some(line) = part.block.lines.get(top.line) {
            let body = &source[line.span.clone()];
            let index = top.line;
            top.line += 1;
            let escaped = match line.kind {
                LineKind::Text => None,
                LineKind::Escaped(at) => Some(at - line.span.start),
                LineKind::Reference(_) => {
                    let reference = book.reference(part.references[top.reference]);
                    top.reference += 1;
                    for _ in 0..line.pad {
                        indent.push(' ');
                    }
                    let blanks = body.len() - body.trim_start_matches([' ', '\t']).len();
                    indent.push_str(&body[..blanks]);
                    inner = reference.target;
                    break;
                }
            };
            // Lines that follow one another in the chapter and get nothing before them go together.
            let mut count = 1;
            if indent.is_empty() && as_it_is(line) {
                let rest = &part.block.lines[top.line..];
                let mut end = line.span.end;
                while let Some(next) = rest.get(count as usize - 1)
                    && as_it_is(next)
                    && next.span.start == end + 1
                {
                    end = next.span.end;
                    count += 1;
                }
                text.push_str(&source[line.span.start..end]);
                top.line += count as usize - 1;
            } else if !body.is_empty() || line.pad > 0 {
                text.push_str(&indent);
                for _ in 0..line.pad {
                    text.push(' ');
                }
                match escaped {
                    Some(at) => {
                        text.push_str(&body[..at]);
                        text.push_str(&body[at + 1..]);
                    }
                    None => text.push_str(body),
                }
            }
            text.push('\n');
            let chapter_line = part.block.fence_line + 1 + u32::try_from(index).unwrap_or(u32::MAX);
            match pieces.last_mut() {
                Some(piece)
                    if piece.part == part_id
                        && piece.indent as usize == indent.len()
                        && piece.chapter_line + piece.count == chapter_line =>
                {
                    piece.count += count;
                }
                _ => pieces.push(Piece {
                    first: line_number,
                    count,
                    part: part_id,
                    chapter_line,
                    indent: u32::try_from(indent.len()).unwrap_or(u32::MAX),
                    strip: u32::try_from(part.block.fence.start - part.block.span.start)
                        .unwrap_or(0),
                }),
            }
            line_number += count;
        }
        if let Some(target) = inner {
            let indent = indent.len();
            stack.push(frame(target, indent, line_number));
        } else {
            placed.push((part_id, top.began, line_number - 1));
            top.part += 1;
            top.line = 0;
            top.reference = 0;
            top.began = line_number;
        }
    }
    let lines = end_with_one_newline(&mut text, line_number - 1);
    pieces.retain_mut(|piece| {
        piece.count = piece.count.min((lines + 1).saturating_sub(piece.first));
        piece.count > 0
    });
    placed.sort_by_key(|&(_, first, _)| first);
    for (part, first, last) in placed {
        placements[part.0 as usize].push(Placement { output: id, first, last: last.min(lines) });
    }
    Output { path: path.to_owned(), chunk, text, lines, pieces }
}

/// Whether a line goes into the file as it stands in the chapter.
fn as_it_is(line: &Line) -> bool {
    line.pad == 0 && line.kind == LineKind::Text
}

/// Takes empty lines off the end and says how many lines are left.
fn end_with_one_newline(text: &mut String, lines: u32) -> u32 {
    let kept = text.trim_end_matches('\n').len();
    let newlines = text.len() - kept;
    if kept == 0 {
        text.clear();
        return 0;
    }
    text.truncate(kept + 1);
    lines - u32::try_from(newlines - 1).unwrap_or(0)
}
