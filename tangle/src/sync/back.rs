// SPDX-License-Identifier: GPL-2.0

//! From what the files should be to the lines of the chapters that make them so.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use similar::DiffOp;

use super::merge::{differences, lines};
use super::problem::Refusal;
use super::split::split;
use super::{Between, diff};
use crate::book::{Book, OutputId, PartId};
use crate::config::Input;
use crate::parse;
use crate::problem::Finding;
use crate::source::{Place, Source, SourceId};

/// Lines of a chapter that are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The chapter.
    pub source: SourceId,
    /// Its lines, from 1, end exclusive; if there are none, new ones go before the first.
    pub lines: Range<u32>,
    /// What stands there instead, without line ends.
    pub new: Vec<String>,
    /// The file that the change is from.
    pub path: String,
    /// The first of its lines, as it should be.
    pub line: u32,
}

/// What makes the files what they should be.
#[derive(Debug)]
pub struct Back {
    /// The changes, in the order of the book.
    pub edits: Vec<Edit>,
    /// The chapters that change, with their new text.
    pub chapters: Vec<(SourceId, String)>,
}

/// Where a line of a file is from.
#[derive(Clone, Copy)]
struct Spot {
    part: PartId,
    source: SourceId,
    /// Line of the chapter.
    line: u32,
    /// Bytes of indentation.
    indent: usize,
    /// The line of the file.
    at: (OutputId, u32),
    /// Which piece of the file it is in.
    piece: usize,
}

/// One file on its way back.
struct File<'a> {
    book: &'a Book,
    id: OutputId,
    between: Between,
    /// The lines as the chapters give them.
    old: Vec<&'a str>,
    /// The lines as they should be.
    new: Vec<String>,
    edits: Vec<(Edit, Spot)>,
    findings: Vec<Finding>,
}

/// Finds the edits of the chapters after which each of these files is what it should be, and all
/// others are what they are. A blank line in a chunk that is indented comes out empty.
///
/// # Errors
///
/// Everything that stands in the way.
pub fn back(
    book: &Book,
    wanted: &[(OutputId, String)],
    between: Between,
) -> Result<Back, Vec<Finding>> {
    let mut edits = Vec::new();
    let mut findings = Vec::new();
    let mut expected: HashMap<OutputId, Vec<String>> = HashMap::new();
    for (id, text) in wanted {
        let mut file = File {
            book,
            id: *id,
            between,
            old: lines(&book.output(*id).text),
            new: text.lines().map(str::to_owned).collect(),
            edits: Vec::new(),
            findings: Vec::new(),
        };
        file.changes();
        edits.extend(file.edits);
        findings.extend(file.findings);
        expected.insert(*id, file.new);
    }
    let edits = together(book, edits, &mut findings);
    if !findings.is_empty() {
        return Err(findings);
    }
    let chapters = apply(book, &edits);
    exact(book, &chapters, &expected)?;
    Ok(Back { edits, chapters })
}

impl File<'_> {
    fn path(&self) -> String {
        self.book.output(self.id).path.clone()
    }

    fn spot(&self, index: usize) -> Option<Spot> {
        let line = u32::try_from(index + 1).ok()?;
        let pieces = &self.book.output(self.id).pieces;
        let piece = pieces.partition_point(|piece| piece.first <= line).checked_sub(1)?;
        let origin = self.book.origin(self.id, line)?;
        Some(Spot {
            part: origin.part,
            source: origin.source,
            line: origin.line,
            indent: origin.indent as usize,
            at: (self.id, line),
            piece,
        })
    }

    /// The blanks that references put before the lines of a piece.
    fn indent(&self, spot: Spot) -> String {
        let piece = self.book.output(self.id).pieces[spot.piece];
        let first = piece.first as usize - 1;
        let lines = &self.old[first..first + piece.count as usize];
        let line = lines.iter().find(|line| !line.is_empty());
        line.and_then(|line| line.get(..spot.indent))
            .map_or_else(|| " ".repeat(spot.indent), str::to_owned)
    }

    fn refuse(&mut self, refusal: Refusal, spot: Option<Spot>) {
        self.findings.push(refused(self.book, refusal, spot.map(|spot| (spot.source, spot.line))));
    }

    fn changes(&mut self) {
        let new: Vec<String> = self.new.clone();
        let new: Vec<&str> = new.iter().map(String::as_str).collect();
        for op in differences(&self.old.clone(), &new) {
            match op {
                DiffOp::Insert { old_index, new_index, new_len } => {
                    self.insert(old_index, new_index..new_index + new_len);
                }
                _ => self.replace(op.old_range(), op.new_range()),
            }
        }
    }

    /// Lines that are replaced or removed.
    fn replace(&mut self, old: Range<usize>, new: Range<usize>) {
        let spots: Vec<Spot> = old.clone().filter_map(|index| self.spot(index)).collect();
        let borders: Vec<usize> =
            (1..spots.len()).filter(|&n| spots[n].piece != spots[n - 1].piece).collect();
        let old_lines = &self.old[old.clone()];
        let new_lines: Vec<&str> = self.new[new.clone()].iter().map(String::as_str).collect();
        let parts = if borders.is_empty() {
            Some(std::iter::once(0..new.len()).collect())
        } else if new.is_empty() {
            Some(vec![0..0; borders.len() + 1])
        } else {
            split(old_lines, &borders, &new_lines).or_else(|| {
                // As many lines as before: each stands for the one in its place.
                let ends = borders.iter().copied().chain([old.len()]);
                let mut from = 0;
                let mut next = |end| std::mem::replace(&mut from, end)..end;
                (old.len() == new.len()).then(|| ends.map(&mut next).collect())
            })
        };
        let line = u32::try_from(new.start + 1).unwrap_or(u32::MAX);
        let Some(parts) = parts else {
            let diff = diff(old_lines, &new_lines);
            let path = self.path();
            return self.refuse(Refusal::Across { path, line, diff }, spots.first().copied());
        };
        let starts = std::iter::once(0).chain(borders.iter().copied());
        let ends = borders.iter().copied().chain([old.len()]);
        for ((from, to), part) in starts.zip(ends).zip(parts) {
            let (first, last) = (spots[from], spots[to - 1]);
            let new = new.start + part.start..new.start + part.end;
            let same = self.old[old.start + from..old.start + to].iter().eq(&self.new[new.clone()]);
            if !same {
                self.edit(first, first.line..last.line + 1, new);
            }
        }
    }

    /// Lines that are added before the line `at` of the file, from 0.
    fn insert(&mut self, at: usize, new: Range<usize>) {
        let before = at.checked_sub(1).and_then(|index| self.spot(index));
        let after = self.spot(at);
        let fits = |spot: &Spot| {
            let indent = self.indent(*spot);
            let mut lines = self.new[new.clone()].iter();
            lines.all(|line| blank(line) || line.starts_with(&indent))
        };
        // Each place that the lines may go to: a line of a chapter, and whose neighbour they are.
        let one = before.map(|spot| (spot.line + 1, spot));
        let other = after.map(|spot| (spot.line, spot));
        let (to, spot) = match (one, other) {
            (None, None) => return self.first(new),
            (Some(only), None) | (None, Some(only)) => only,
            (Some(one), Some(other)) if one.1.piece == other.1.piece => other,
            (Some(one), Some(other)) => match (fits(&one.1), fits(&other.1)) {
                (true, false) => one,
                (false, true) => other,
                _ if one.1.part == other.1.part => one,
                _ => match self.between {
                    Between::Before => one,
                    Between::After => other,
                    Between::Ask => {
                        let place = |spot: Spot| {
                            format!("{}:{}", self.book.source(spot.source).path, spot.line)
                        };
                        let refusal = Refusal::Between {
                            path: self.path(),
                            line: u32::try_from(new.start + 1).unwrap_or(u32::MAX),
                            before: place(one.1),
                            after: place(other.1),
                        };
                        return self.refuse(refusal, Some(one.1));
                    }
                },
            },
        };
        self.edit(spot, to..to, new);
    }

    /// The first lines of a file that was empty: they go to the start of its root. What else
    /// its chunks have are empty lines, which go at the end of a file.
    fn first(&mut self, new: Range<usize>) {
        let chunk = self.book.output(self.id).chunk;
        let id = self.book.chunk(chunk).parts[0];
        let part = self.book.part(id);
        let line = part.block.fence_line + 1;
        let at = (self.id, 0);
        let spot = Spot { part: id, source: part.source, line, indent: 0, at, piece: 0 };
        self.edit_with(spot, line..line, new, "");
    }

    fn edit(&mut self, spot: Spot, lines: Range<u32>, new: Range<usize>) {
        let indent = self.indent(spot);
        self.edit_with(spot, lines, new, &indent);
    }

    /// One edit: the lines as they have to stand in the chapter.
    fn edit_with(&mut self, spot: Spot, lines: Range<u32>, new: Range<usize>, indent: &str) {
        let block = &self.book.part(spot.part).block;
        let text = &self.book.source(spot.source).text;
        let fence = &text[block.fence.clone()];
        let mark = fence.as_bytes()[0];
        let ticks = fence.bytes().take_while(|&byte| byte == mark).count();
        let margin = " ".repeat(block.fence.start - block.span.start);
        let first = u32::try_from(new.start + 1).unwrap_or(u32::MAX);
        let mut written = Vec::with_capacity(new.len());
        for (number, index) in (first..).zip(new) {
            let line = self.new[index].clone();
            if blank(&line) && line.len() <= indent.len() {
                // An empty line gets no indentation, so it cannot have any.
                self.new[index].clear();
                written.push(String::new());
                continue;
            }
            let Some(kept) = line.strip_prefix(indent) else {
                let refusal =
                    Refusal::Outdented { path: self.path(), line: number, indent: indent.len() };
                return self.refuse(refusal, Some(spot));
            };
            let kept = margin.clone() + &parse::written(kept, &block.language);
            if parse::closes(kept.as_bytes(), mark, ticks) {
                let fence = fence[..ticks].to_owned();
                let refusal = Refusal::Closes { path: self.path(), line: number, fence };
                return self.refuse(refusal, Some(spot));
            }
            written.push(kept);
        }
        let path = self.path();
        let edit = Edit { source: spot.source, lines, new: written, path, line: first };
        self.edits.push((edit, spot));
    }
}

fn blank(line: &str) -> bool {
    line.trim_matches([' ', '\t']).is_empty()
}

/// A finding at a line of a chapter.
pub(super) fn refused(book: &Book, refusal: Refusal, at: Option<(SourceId, u32)>) -> Finding {
    let place = at.map(|(source, line)| {
        let span = book.source(source).line_span(line);
        Place { source, span }
    });
    Finding { at: place, ..Finding::nowhere(refusal.into()) }
}

/// Makes one edit of those that mean the same lines of a chapter, and says where they disagree.
fn together(book: &Book, edits: Vec<(Edit, Spot)>, findings: &mut Vec<Finding>) -> Vec<Edit> {
    let mut places: BTreeMap<(SourceId, u32, u32), Vec<(Edit, Spot)>> = BTreeMap::new();
    for (edit, spot) in edits {
        places
            .entry((edit.source, edit.lines.start, edit.lines.end))
            .or_default()
            .push((edit, spot));
    }
    let mut kept: Vec<Edit> = Vec::new();
    for group in places.into_values() {
        let (first, spot) = &group[0];
        let at = Some((spot.source, spot.line));
        let differ = |edit: &Edit, other: &Edit| {
            let (path, line) = (edit.path.clone(), edit.line);
            let other = format!("{}:{}", other.path, other.line);
            refused(book, Refusal::Differ { path, line, other }, at)
        };
        if let Some((other, _)) = group.iter().find(|(other, _)| other.new != first.new) {
            findings.push(differ(other, first));
            continue;
        }
        let all = book.lines_from(spot.source, spot.line);
        if all.len() > group.len() {
            let unchanged = all
                .iter()
                .filter(|place| group.iter().all(|(_, spot)| spot.at != **place))
                .map(|&(id, line)| format!("{}:{line}", book.output(id).path))
                .take(4)
                .collect();
            let (path, line) = (first.path.clone(), first.line);
            findings.push(refused(book, Refusal::UsedTwice { path, line, unchanged }, at));
            continue;
        }
        if let Some(before) = kept.last()
            && before.source == first.source
            && before.lines.end > first.lines.start
        {
            findings.push(differ(first, before));
            continue;
        }
        kept.push(first.clone());
    }
    kept
}

/// The chapters with their edits.
fn apply(book: &Book, edits: &[Edit]) -> Vec<(SourceId, String)> {
    let mut chapters: Vec<(SourceId, String)> = Vec::new();
    for of_one in edits.chunk_by(|a, b| a.source == b.source) {
        let source = book.source(of_one[0].source);
        let mut text = String::with_capacity(source.text.len() + 256);
        let mut at = 0;
        for edit in of_one {
            let start = source.line_span(edit.lines.start).start;
            let end = source.line_span(edit.lines.end).start;
            // The lines of a block end as its opening fence does.
            let before = source.line_span(edit.lines.start - 1);
            let crlf = source.text[before.end..].starts_with("\r\n");
            text.push_str(&source.text[at..start]);
            for line in &edit.new {
                text.push_str(line);
                text.push_str(if crlf { "\r\n" } else { "\n" });
            }
            at = end;
        }
        text.push_str(&source.text[at..]);
        chapters.push((of_one[0].source, text));
    }
    chapters
}

/// Tangles the changed chapters and compares every file.
fn exact(
    book: &Book,
    chapters: &[(SourceId, String)],
    expected: &HashMap<OutputId, Vec<String>>,
) -> Result<(), Vec<Finding>> {
    let mut sources = book.sources().to_vec();
    for (id, text) in chapters {
        let source = &mut sources[id.0 as usize];
        *source = Source::new(source.path.clone(), source.role, text.clone().into_bytes());
    }
    let input = Input { root: book.root().to_path_buf(), sources, findings: Vec::new() };
    let after = Book::build_with(input, book.selection());
    let mut findings = Vec::new();
    for (id, output) in (0..).map(OutputId).zip(book.outputs()) {
        let found = after.output_named(&output.path).map(|id| lines(&after.output(id).text));
        let found = found.unwrap_or_default();
        let wanted: Vec<&str> = match expected.get(&id) {
            Some(lines) => lines.iter().map(String::as_str).collect(),
            None => lines(&output.text),
        };
        // Empty lines at the end of a file go, however they came there.
        let kept = wanted.iter().rposition(|line| !line.is_empty()).map_or(0, |at| at + 1);
        if found != wanted[..kept] {
            let same = found.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
            let line = u32::try_from(same + 1).unwrap_or(u32::MAX);
            let refusal = Refusal::Inexact { path: output.path.clone(), line };
            findings.push(refused(book, refusal, None));
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(findings) }
}
