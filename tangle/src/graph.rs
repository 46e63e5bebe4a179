// SPDX-License-Identifier: GPL-2.0

//! From texts to the model: parses the chapters, finds the chunk of each reference, and what is
//! wrong among them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use crate::book::{Book, Chunk, ChunkId, Part, PartId, RefId, Reference};
use crate::config::Input;
use crate::parse::{self, Block, LineKind, Note, Parsed, Target, Variant};
use crate::problem::{self, Finding, Problem};
use crate::select::{self, Selection};
use crate::source::{Place, Role, Source, SourceId};
use crate::{expand, target};

impl Book {
    /// Reads the book in `root` (the folder of `book.toml`) and expands it.
    ///
    /// There is always a book; when [`Book::has_errors`] it has no outputs.
    #[must_use]
    pub fn load(root: &Path) -> Self {
        Self::checked(Input::read(root))
    }

    /// As [`Book::load`], for a part of the book and into another folder.
    #[must_use]
    pub fn load_with(root: &Path, selection: &Selection, out: Option<&Path>) -> Self {
        Self::checked_with(Input::read(root), selection, out)
    }

    /// As [`Book::load`], for an input that was read already: the targets are looked up in the file
    /// system and in git's index too.
    #[must_use]
    pub fn checked(input: Input) -> Self {
        Self::checked_with(input, &Selection::default(), None)
    }

    /// As [`Book::checked`], for a part of the book and into another folder.
    #[must_use]
    pub fn checked_with(input: Input, selection: &Selection, out: Option<&Path>) -> Self {
        let mut book = Self::build_with(input, selection);
        if let Some(out) = out {
            out.clone_into(&mut book.out);
        }
        let findings = target::check(&book);
        book.add(findings);
        book
    }

    /// Builds the model from texts alone: no file is looked at.
    #[must_use]
    pub fn build(input: Input) -> Self {
        Self::build_with(input, &Selection::default())
    }

    /// As [`Book::build`], for a part of the book.
    #[must_use]
    pub fn build_with(input: Input, selection: &Selection) -> Self {
        let Input { root, sources, findings } = input;
        let mut builder = Builder {
            book: Self {
                out: root.clone(),
                root,
                selection: selection.clone(),
                needs: Vec::new(),
                sources,
                chunks: Vec::new(),
                parts: Vec::new(),
                references: Vec::new(),
                outputs: Vec::new(),
                placements: Vec::new(),
                findings,
                names: HashMap::new(),
            },
            nested: HashMap::new(),
            said: Vec::new(),
        };
        builder.parts();
        builder.bodies();
        builder.labs();
        builder.references();
        builder.unused();
        builder.left_out();
        builder.cycles();
        builder.targets();
        let mut book = builder.book;
        book.placements = vec![Vec::new(); book.parts.len()];
        if !book.has_errors() {
            let (outputs, placements, findings) = expand::expand(&book);
            book.outputs = outputs;
            book.placements = placements;
            book.add(findings);
        }
        problem::sort(&mut book.findings);
        book
    }

    fn add(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
        problem::sort(&mut self.findings);
        if self.has_errors() {
            self.outputs.clear();
            self.placements.iter_mut().for_each(Vec::clear);
        }
    }
}

fn id(index: usize) -> u32 {
    u32::try_from(index).expect("a book has fewer than 2^32 blocks and lines")
}

struct Builder {
    book: Book,
    /// Chunk names on fences that do not count: in lists, quotes, or unlisted files.
    nested: HashMap<String, String>,
    /// The comments `needs:`.
    said: Vec<(SourceId, Note)>,
}

impl Builder {
    /// Parses every file; the chapters' blocks become parts.
    fn parts(&mut self) {
        let parsed = parse_all(&self.book.sources);
        for (index, parsed) in parsed.into_iter().enumerate() {
            let Some(parsed) = parsed else { continue };
            let source = SourceId(id(index));
            for (name, span) in parsed.nested {
                let at = Place { source, span };
                self.note_nested(name, &at, "is in a list or a quote, where blocks do not count");
            }
            if self.book.source(source).role == Role::Unlisted {
                // What is wrong in a file that does not count is nobody's business.
                self.unlisted(source, &parsed.blocks);
                continue;
            }
            self.book.findings.extend(parsed.findings);
            self.said.extend(parsed.needs.into_iter().map(|note| (source, note)));
            for block in parsed.blocks {
                self.part(source, block);
            }
        }
    }

    fn note_nested(&mut self, name: String, at: &Place, why: &str) {
        let source = self.book.source(at.source);
        let line = source.line_of(at.span.start);
        let hint = format!("the block `{name}` at {}:{line} {why}", source.path);
        self.nested.entry(name).or_insert(hint);
    }

    fn unlisted(&mut self, source: SourceId, blocks: &[Block]) {
        let Some(first) = blocks.first() else { return };
        let at = Place { source, span: first.fence.clone() };
        let problem = Problem::NotInSummary(self.book.source(source).path.clone());
        self.book.findings.push(Finding::warning(problem, at));
        for block in blocks {
            if let Target::Chunk(name) = &block.target {
                let at = Place { source, span: block.fence.clone() };
                self.note_nested(name.clone(), &at, "is in a file that SUMMARY.md does not list");
            }
        }
    }

    fn part(&mut self, source: SourceId, block: Block) {
        let book = &mut self.book;
        let at = Place { source, span: block.target_span.clone() };
        let part = PartId(id(book.parts.len()));
        let chunk = match book.names.get(&block.target) {
            Some(&chunk) => {
                if let (Target::File(path), None) = (&block.target, &block.append) {
                    let first = book.chunks[chunk.0 as usize].all[0];
                    let finding = Finding::error(Problem::DuplicateRoot(path.clone()), at)
                        .and(book.place_of(first), format!("the first root of {path}"));
                    book.findings.push(finding);
                }
                chunk
            }
            None => {
                if let (Target::File(path), Some(span)) = (&block.target, &block.append) {
                    let at = Place { source, span: span.clone() };
                    let problem = Problem::AppendFirst(path.clone());
                    book.findings.push(Finding::error(problem, at));
                }
                if let (Target::Chunk(name), Variant::Replaces) = (&block.target, block.variant) {
                    let (name, nearest) = (name.clone(), nearest_chunk(book, name));
                    let problem = Problem::ReplacesUnknown { name, nearest };
                    book.findings.push(Finding::error(problem, at));
                }
                let chunk = ChunkId(id(book.chunks.len()));
                let target = block.target.clone();
                let (parts, all, uses) = (Vec::new(), Vec::new(), Vec::new());
                book.chunks.push(Chunk { target, parts, all, uses });
                book.names.insert(block.target.clone(), chunk);
                chunk
            }
        };
        book.chunks[chunk.0 as usize].all.push(part);
        book.parts.push(Part {
            chunk,
            index: 0,
            active: false,
            replaced_by: None,
            source,
            block,
            references: Vec::new(),
        });
    }

    /// Decides which parts make the bodies of the chunks.
    fn bodies(&mut self) {
        let book = &mut self.book;
        let (needs, findings) = select::needs(book, &self.said);
        book.findings.extend(findings);
        let included = match select::included(book, &book.selection, &needs) {
            Ok(included) => included,
            Err(finding) => {
                book.findings.push(*finding);
                None
            }
        };
        book.needs = needs;
        for chunk in &mut book.chunks {
            for (n, &id) in chunk.all.iter().enumerate() {
                let part = &mut book.parts[id.0 as usize];
                let variant = part.block.variant;
                let counts = included.as_ref().is_none_or(|these| these.contains(&part.source));
                part.active = counts && book.selection.takes(variant);
                if part.active && variant == Variant::Replaces {
                    chunk.parts.clear();
                    for &before in &chunk.all[..n] {
                        let before = &mut book.parts[before.0 as usize];
                        before.active = false;
                        before.replaced_by.get_or_insert(id);
                    }
                }
                let part = &mut book.parts[id.0 as usize];
                part.index = chunk.parts.len();
                if part.active {
                    chunk.parts.push(id);
                }
            }
        }
    }

    /// Looks at the labs: each starter has a solution, and the lab asked for is there.
    fn labs(&mut self) {
        let book = &mut self.book;
        let mut findings = Vec::new();
        for chunk in &book.chunks {
            let variant = |id: &PartId| book.parts[id.0 as usize].block.variant;
            // Each body on its own.
            for body in chunk.all.chunk_by(|_, next| variant(next) != Variant::Replaces) {
                let mut seen = BTreeSet::new();
                for id in body {
                    let Variant::Starter(lab) = variant(id) else { continue };
                    let solved = body.iter().any(|id| variant(id) == Variant::Solution(lab));
                    if !solved && seen.insert(lab) {
                        let name = chunk.target.name().to_owned();
                        let problem = Problem::NoSolution { name, lab };
                        findings.push(Finding::error(problem, book.place_of(*id)));
                    }
                }
            }
        }
        let known = book.labs();
        if let Some(lab) = book.selection.lab
            && !known.contains(&lab)
        {
            findings.push(Finding::nowhere(Problem::UnknownLab { lab, known }));
        }
        book.findings.extend(findings);
    }

    /// Finds what chapters that count need from chapters that do not.
    fn left_out(&mut self) {
        let book = &self.book;
        if book.selection.until.is_none() {
            return;
        }
        let counts: BTreeSet<SourceId> = match select::included(book, &book.selection, &book.needs)
        {
            Ok(Some(counts)) => counts,
            _ => return,
        };
        let mut found = Vec::new();
        let left = |chunk: &Chunk, name: String, at: Place| {
            let first = book.part(chunk.all[0]).source;
            let chapter = select::short(book, &book.source(first).path);
            Finding::error(Problem::LeftOut { name, chapter }, at)
                .and(book.place_of(chunk.all[0]), "it is here")
        };
        for (reference, id) in book.references.iter().zip((0..).map(RefId)) {
            let Some(target) = reference.target else { continue };
            let chunk = book.chunk(target);
            let there = chunk.all.iter().any(|&part| counts.contains(&book.part(part).source));
            if book.part(reference.part).active && !there {
                let name = format!("`{}`", chunk.target.name());
                found.push(left(chunk, name, book.place_of_reference(id)));
            }
        }
        for chunk in &book.chunks {
            if let (Target::File(path), Some(&part)) = (&chunk.target, chunk.parts.first())
                && part != chunk.all[0]
            {
                let name = format!("the first root of {path}");
                found.push(left(chunk, name, book.place_of(part)));
            }
        }
        self.book.findings.extend(found);
    }

    /// Finds the chunk of each reference.
    fn references(&mut self) {
        let book = &mut self.book;
        let mut undefined = Vec::new();
        for (number, part) in book.parts.iter_mut().enumerate() {
            let text = &book.sources[part.source.0 as usize].text;
            for (index, line) in part.block.lines.iter().enumerate() {
                let LineKind::Reference(span) = &line.kind else { continue };
                let reference = RefId(id(book.references.len()));
                let name = text[span.clone()].to_owned();
                let key = Target::Chunk(name);
                let target = book.names.get(&key).copied();
                let Target::Chunk(name) = key else { continue };
                match target {
                    Some(chunk) => book.chunks[chunk.0 as usize].uses.push(reference),
                    None => undefined.push(reference),
                }
                part.references.push(reference);
                book.references.push(Reference {
                    part: PartId(id(number)),
                    index,
                    line: part.block.fence_line + 1 + id(index),
                    span: span.clone(),
                    name,
                    target,
                });
            }
        }
        for reference in undefined {
            let name = book.reference(reference).name.clone();
            let hint = self.nested.get(&name).cloned();
            let nearest = nearest_chunk(book, &name);
            let at = book.place_of_reference(reference);
            let also = nearest.as_ref().and_then(|near| book.chunk_named(near));
            let mut finding = Finding::error(Problem::Undefined { name, nearest, hint }, at);
            if let Some(chunk) = also {
                let place = book.first_place(chunk);
                let what = format!("`{}` is defined here", book.chunk(chunk).target.name());
                finding = finding.and(place, what);
            }
            book.findings.push(finding);
        }
    }

    /// Finds chunks that nothing refers to.
    fn unused(&mut self) {
        let book = &self.book;
        let mut found = Vec::new();
        for chunk in &book.chunks {
            let Target::Chunk(name) = &chunk.target else { continue };
            // Nothing can refer to a name that is none, and that was said already.
            if !chunk.uses.is_empty() || !parse::is_name(name) {
                continue;
            }
            let first = book.part(chunk.all[0]);
            // That what it would replace is not there was said, too.
            if first.block.variant == Variant::Replaces {
                continue;
            }
            let at = Place { source: first.source, span: first.block.target_span.clone() };
            let hint = self.mention(name);
            found.push(Finding::error(Problem::Unused { name: name.clone(), hint }, at));
        }
        self.book.findings.extend(found);
    }

    /// A line with `<<name>>` that is not a reference, which may be why a chunk is unused.
    fn mention(&self, name: &str) -> Option<String> {
        let wanted = format!("<<{name}>>");
        for part in &self.book.parts {
            let source = self.book.source(part.source);
            for (index, line) in part.block.lines.iter().enumerate() {
                if line.kind == LineKind::Text && source.text[line.span.clone()].contains(&wanted) {
                    let number = part.block.fence_line as usize + 1 + index;
                    let language = match part.block.language.as_str() {
                        "" => "none",
                        language => language,
                    };
                    return Some(format!(
                        "`{wanted}` at {}:{number} does not count: a reference stands alone on \
                         its line, in a comment of the block's language (here {language})",
                        source.path,
                    ));
                }
            }
        }
        None
    }

    /// Finds chunks that need each other. Each reference that closes a cycle is one finding.
    fn cycles(&mut self) {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let book = &self.book;
        let edges: Vec<Vec<RefId>> = book
            .chunks
            .iter()
            .map(|chunk| {
                let parts = chunk.parts.iter();
                parts.flat_map(|&part| book.part(part).references.iter().copied()).collect()
            })
            .collect();
        let mut state = vec![State::New; book.chunks.len()];
        let mut found = Vec::new();
        for start in 0..book.chunks.len() {
            if state[start] != State::New {
                continue;
            }
            // Each entry is a chunk, the next of its references to follow, and the reference
            // that led to it.
            let mut path = vec![(start, 0_usize, None::<RefId>)];
            state[start] = State::Open;
            while let Some((chunk, next, _)) = path.last_mut() {
                let Some(&reference) = edges[*chunk].get(*next) else {
                    state[*chunk] = State::Done;
                    path.pop();
                    continue;
                };
                *next += 1;
                let Some(target) = book.reference(reference).target else { continue };
                let target = target.0 as usize;
                match state[target] {
                    State::Done => {}
                    State::New => {
                        state[target] = State::Open;
                        path.push((target, 0, Some(reference)));
                    }
                    State::Open => {
                        let from = path.iter().position(|&(c, ..)| c == target).unwrap_or(0);
                        found.push(cycle(book, &path[from..], target, reference));
                    }
                }
            }
        }
        self.book.findings.extend(found);
    }

    /// Looks at the targets as a set: no file may be a folder for another, none may be a source.
    fn targets(&mut self) {
        let book = &self.book;
        let mut found = Vec::new();
        let roots: BTreeMap<&str, &Chunk> = book
            .chunks
            .iter()
            .filter_map(|chunk| match &chunk.target {
                Target::File(path) => Some((path.as_str(), chunk)),
                Target::Chunk(_) => None,
            })
            .collect();
        for (path, chunk) in &roots {
            let at = book.place_of(chunk.all[0]);
            let folders = path.match_indices('/').map(|(slash, _)| &path[..slash]);
            for folder in folders {
                if let Some(other) = roots.get(folder) {
                    let problem = Problem::FileAndFolder {
                        file: folder.to_owned(),
                        inside: (*path).to_owned(),
                    };
                    let other = book.place_of(other.all[0]);
                    found.push(
                        Finding::error(problem, at.clone())
                            .and(other, format!("{folder} as a file")),
                    );
                }
            }
            if let Some(reason) = target::reserved(book, path) {
                let problem = Problem::Forbidden { path: (*path).to_owned(), reason };
                found.push(Finding::error(problem, at));
            }
        }
        self.book.findings.extend(found);
    }
}

/// One cycle: `path` are the open chunks from `target` on, and `reference` closes it.
fn cycle(
    book: &Book,
    path: &[(usize, usize, Option<RefId>)],
    target: usize,
    reference: RefId,
) -> Finding {
    let mut names: Vec<&str> =
        path.iter().map(|&(chunk, ..)| book.chunks[chunk].target.name()).collect();
    names.push(book.chunks[target].target.name());
    let problem = Problem::Cycle(names.join(" \u{2192} "));
    let mut finding = Finding::error(problem, book.place_of_reference(reference));
    for (_, _, via) in &path[1..] {
        if let Some(via) = *via {
            let name = &book.reference(via).name;
            finding = finding.and(book.place_of_reference(via), format!("leads to `{name}`"));
        }
    }
    finding
}

/// The chunk whose name is nearest to `name`, if any is near.
fn nearest_chunk(book: &Book, name: &str) -> Option<String> {
    let allowed = (name.len() / 3).clamp(1, 4);
    book.chunks
        .iter()
        .filter_map(|chunk| match &chunk.target {
            Target::Chunk(other) if other.len().abs_diff(name.len()) <= allowed => {
                Some((strsim::osa_distance(name, other), other))
            }
            _ => None,
        })
        .filter(|&(distance, _)| distance <= allowed)
        .min()
        .map(|(_, other)| other.clone())
}

/// Parses all Markdown files, on two threads when there is enough to do.
fn parse_all(sources: &[Source]) -> Vec<Option<Parsed>> {
    let one = |(index, source): (usize, &Source)| {
        matches!(source.role, Role::Chapter | Role::Unlisted)
            .then(|| parse::parse(SourceId(id(index)), source))
    };
    let total: usize = sources.iter().map(|source| source.text.len()).sum();
    if total < 128 * 1024 {
        return sources.iter().enumerate().map(one).collect();
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(source) = sources.get(index) else { return done };
            done.push((index, one((index, source))));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut all = work();
        match other.join() {
            Ok(more) => all.extend(more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        all
    });
    all.sort_by_key(|&(index, _)| index);
    all.into_iter().map(|(_, parsed)| parsed).collect()
}
