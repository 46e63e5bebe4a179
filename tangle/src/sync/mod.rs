// SPDX-License-Identifier: GPL-2.0

//! Takes what was changed in generated files back into the chapters.
//!
//! Three versions of each file are compared: what tangle wrote, what is on the disk, what the
//! chapters give now. Where only the file changed, its lines go to the lines of the chapter that
//! they came from; where both changed, nothing is written and both changes are shown. Before
//! anything is written the changed chapters are tangled in memory, and every file must be exactly
//! what it should be. Copies of all that is written over are kept in `.tangle/kept/`.

mod back;
mod merge;
mod problem;
mod split;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

pub use back::{Back, Edit, back};
pub use problem::Refusal;

use crate::base;
use crate::book::{Book, OutputId};
use crate::config::Input;
use crate::problem::{Finding, Problem};
use crate::source::{Source, SourceId, hash};
use crate::write::{self, OnDisk, Options, State, failed};

/// What becomes of lines that were added where one chunk ends and another begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Between {
    /// Nothing: it is said, and not done.
    #[default]
    Ask,
    /// They go to the end of the first.
    Before,
    /// They go to the start of the second.
    After,
}

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The files to take back, from the root; all of them if none is named.
    pub paths: Vec<String>,
    /// Take the file's side where both changed.
    pub force: bool,
    /// Only find out what would be done.
    pub dry: bool,
    /// Where lines between two chunks go.
    pub between: Between,
}

/// A change of a chapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The chapter.
    pub chapter: String,
    /// The first of its lines that changes, from 1, as it was.
    pub line: u32,
    /// How many lines go.
    pub removed: u32,
    /// The lines that come.
    pub added: Vec<String>,
    /// The file that the change is from.
    pub file: String,
    /// The first of its lines.
    pub file_line: u32,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files that were changed by hand and are in order now.
    pub files: Vec<String>,
    /// What changed in the chapters, in the order of the book.
    pub changes: Vec<Change>,
    /// Each file that was written over, and where its copy is.
    pub kept: Vec<(String, String)>,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    /// What was wrong; when any of it is an error nothing was written.
    pub findings: Vec<Finding>,
    /// The sources the findings are about.
    pub sources: Vec<Source>,
    /// What was done, if nothing was wrong.
    pub report: Option<Report>,
}

/// Takes the changes of the generated files of the book in `root` back into its chapters.
#[must_use]
pub fn run(root: &Path, wish: &Wish) -> Run {
    let locked = match write::lock(root) {
        Ok(locked) => locked,
        Err(problem) => {
            let findings = vec![Finding::nowhere(problem)];
            return Run { findings, sources: Vec::new(), report: None };
        }
    };
    // What is on the disk may be a lab's starter.
    let selection = State::read(root).selection().clone();
    let mut book = Book::load_with(root, &selection, None);
    let mut findings = book.findings().to_vec();
    let mut report = None;
    if !book.has_errors() {
        match sync(&book, wish) {
            Ok(done) => report = Some(done),
            Err(more) => findings.extend(more),
        }
    }
    drop(locked);
    Run { findings, sources: book.take_sources(), report }
}

/// A file that was changed by hand.
struct Changed {
    id: OutputId,
    /// Its bytes as they are on the disk.
    bytes: Vec<u8>,
    /// What it should be.
    wanted: String,
}

fn sync(book: &Book, wish: &Wish) -> Result<Report, Vec<Finding>> {
    let mut state = State::read(book.root());
    let mut leave = BTreeSet::new();
    let changed = changed(book, &state, wish, &mut leave)?;
    let wanted: Vec<_> = changed.iter().map(|file| (file.id, file.wanted.clone())).collect();
    let back = back(book, &wanted, wish.between)?;
    let path = |file: &Changed| book.output(file.id).path.clone();
    let mut report = Report {
        files: changed.iter().map(path).collect(),
        changes: changes(book, &back),
        kept: Vec::new(),
    };
    if wish.dry {
        return Ok(report);
    }
    let one = |problem| vec![Finding::nowhere(problem)];
    let half = |mut findings: Vec<Finding>| {
        if !findings.iter().any(|finding| finding.problem == Problem::HalfWay) {
            findings.push(Finding::nowhere(Problem::HalfWay));
        }
        findings
    };
    report.kept = write_chapters(book, &back)?;
    for file in &changed {
        // It may have to be written again: in lines that end differently, or with the chapter's
        // own changes. What tangle writes over it must know.
        let path = path(file);
        if file.bytes != file.wanted.as_bytes() {
            let copy = write::keep(book.root(), &path).map_err(one).map_err(half)?;
            report.kept.push((path.clone(), copy));
        }
        state.accept(&path, hash(&file.bytes));
    }
    let input = Input::read(book.root());
    let key = book.selection().key(input.key());
    let after = Book::checked_with(input, book.selection(), None);
    if after.has_errors() {
        return Err(half(after.findings().to_vec()));
    }
    // Also if nothing was to be taken back: after a run that was killed the records may be behind.
    let options = Options { leave, ..Options::default() };
    write::write_locked(&after, key, state, &options).map_err(half)?;
    Ok(report)
}

/// Finds the files that were changed by hand, and what each should be. Those that were not asked for
/// are to be left as they are.
fn changed(
    book: &Book,
    state: &State,
    wish: &Wish,
    leave: &mut BTreeSet<String>,
) -> Result<Vec<Changed>, Vec<Finding>> {
    let mut found = Vec::new();
    let mut findings = Vec::new();
    let mut asked: BTreeSet<&str> = wish.paths.iter().map(String::as_str).collect();
    let all = asked.is_empty();
    for (id, output) in (0..).map(OutputId).zip(book.outputs()) {
        let path = output.path.as_str();
        let named = asked.remove(path);
        if !all && !named {
            leave.insert(path.to_owned());
            continue;
        }
        let bytes = match write::on_disk(&book.root().join(path)) {
            Ok(OnDisk::File(bytes)) => bytes,
            // What is not there was not changed.
            Ok(OnDisk::Nothing) => continue,
            Ok(OnDisk::Other(reason)) => {
                let path = path.to_owned();
                findings.push(back::refused(book, Refusal::NoFile { path, reason }, None));
                continue;
            }
            Err(error) => {
                findings.push(Finding::nowhere(failed("read", path, &error)));
                continue;
            }
        };
        if bytes == output.text.as_bytes() || state.wrote(path, hash(&bytes)) {
            continue;
        }
        let theirs = match readable(path, &bytes) {
            Ok(theirs) => theirs,
            Err(refusal) => {
                findings.push(back::refused(book, refusal, None));
                continue;
            }
        };
        let base = base_of(book, id, state).or_else(|| wish.force.then(|| output.text.clone()));
        let Some(base) = base else {
            let diff = diff(&merge::lines(&output.text), &merge::lines(&theirs));
            let path = path.to_owned();
            findings.push(back::refused(book, Refusal::NoBase { path, diff }, None));
            continue;
        };
        match merge::merge(&base, &theirs, &output.text) {
            Ok(wanted) => found.push(Changed { id, bytes, wanted }),
            Err(_) if wish.force => found.push(Changed { id, bytes, wanted: theirs }),
            Err(clashes) => {
                let clash = |clash| conflict(book, id, &base, &theirs, &clash);
                findings.extend(clashes.into_iter().map(clash));
            }
        }
    }
    for path in state.paths().filter(|path| book.output_named(path).is_none()) {
        if !asked.remove(path.as_str()) && !all {
            leave.insert(path.clone());
            continue;
        }
        if let Ok(OnDisk::File(bytes)) = write::on_disk(&book.root().join(path))
            && !state.wrote(path, hash(&bytes))
        {
            findings.push(back::refused(book, Refusal::Stale(path.clone()), None));
        }
    }
    for path in asked {
        findings.push(back::refused(book, Refusal::Unknown(path.to_owned()), None));
    }
    if findings.is_empty() { Ok(found) } else { Err(findings) }
}

/// What tangle wrote, if that is known.
fn base_of(book: &Book, id: OutputId, state: &State) -> Option<String> {
    let output = book.output(id);
    let written = state.written(&output.path)?;
    if written == hash(output.text.as_bytes()) {
        return Some(output.text.clone());
    }
    base::find(book.root(), &output.path, written)
}

/// The text of a file in the form that tangle gives to files.
fn readable(path: &str, bytes: &[u8]) -> Result<String, Refusal> {
    let refused = |at: usize, what| {
        let line = memchr::memchr_iter(b'\n', &bytes[..at]).count() + 1;
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        Refusal::Byte { path: path.to_owned(), line, what }
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| refused(error.valid_up_to(), "bytes that are not UTF-8"))?;
    if let Some(at) = memchr::memchr(0, bytes) {
        return Err(refused(at, "a NUL byte"));
    }
    let lone = |&at: &usize| bytes.get(at + 1) != Some(&b'\n');
    if let Some(at) = memchr::memchr_iter(b'\r', bytes).find(lone) {
        return Err(refused(at, "a lone carriage return"));
    }
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let kept = text.trim_end_matches('\n');
    Ok(if kept.is_empty() { String::new() } else { format!("{kept}\n") })
}

/// Both changes of the same lines, one below the other.
fn conflict(book: &Book, id: OutputId, base: &str, theirs: &str, clash: &merge::Clash) -> Finding {
    let output = book.output(id);
    let (was, theirs, ours) =
        (merge::lines(base), merge::lines(theirs), merge::lines(&output.text));
    let number = |index: usize| u32::try_from(index + 1).unwrap_or(u32::MAX);
    let origin = book
        .origin(id, number(clash.ours.start))
        .or_else(|| book.origin(id, number(clash.ours.start).saturating_sub(1)));
    let at = origin.map(|origin| (origin.source, origin.line));
    let chapter = at.map_or("the chapter".to_owned(), |(id, _)| book.source(id).path.clone());
    let was = &was[clash.base.clone()];
    let diff = format!(
        "--- as tangle wrote it\n+++ {}\n{}--- as tangle wrote it\n+++ {chapter}\n{}",
        output.path,
        diff(was, &theirs[clash.theirs.clone()]),
        diff(was, &ours[clash.ours.clone()]),
    );
    let line = number(clash.theirs.start);
    back::refused(book, Refusal::Conflict { path: output.path.clone(), line, diff }, at)
}

/// From one text to another: lines that go with `-`, lines that come with `+`, not too many.
pub(crate) fn diff(old: &[&str], new: &[&str]) -> String {
    const MOST: usize = 24;
    let mut out = String::new();
    let mut count = 0;
    for op in merge::differences(old, new) {
        let gone = old[op.old_range()].iter().map(|line| ('-', line));
        let come = new[op.new_range()].iter().map(|line| ('+', line));
        for (sign, line) in gone.chain(come) {
            count += 1;
            if count <= MOST {
                out.push_str(&format!("{sign}{line}\n"));
            }
        }
    }
    if count > MOST {
        out.push_str(&format!("... and {} more lines\n", count - MOST));
    }
    out
}

pub(crate) fn changes(book: &Book, back: &Back) -> Vec<Change> {
    let change = |edit: &Edit| Change {
        chapter: book.source(edit.source).path.clone(),
        line: edit.lines.start,
        removed: edit.lines.end - edit.lines.start,
        added: edit.new.clone(),
        file: edit.path.clone(),
        file_line: edit.line,
    };
    back.edits.iter().map(change).collect()
}

/// Writes the chapters, each after a copy of it was kept; gives the copies.
pub(crate) fn write_chapters(
    book: &Book,
    back: &Back,
) -> Result<Vec<(String, String)>, Vec<Finding>> {
    let root = book.root();
    let mut findings = Vec::new();
    for &(id, _) in &back.chapters {
        if let Err(problem) = may_write(root, book.source(id)) {
            findings.push(Finding::nowhere(problem));
        }
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    let one = |problem| vec![Finding::nowhere(problem)];
    let mut kept = Vec::new();
    for (id, _) in &back.chapters {
        let path = &book.source(*id).path;
        kept.push((path.clone(), write::keep(root, path).map_err(one)?));
    }
    for (n, (id, text)) in back.chapters.iter().enumerate() {
        replace_chapter(root, *id, book, text).map_err(|problem| {
            let mut findings = one(problem);
            findings.extend((n > 0).then(|| Finding::nowhere(Problem::HalfWay)));
            findings
        })?;
    }
    Ok(kept)
}

fn replace_chapter(root: &Path, id: SourceId, book: &Book, text: &str) -> Result<(), Problem> {
    let source = book.source(id);
    // Somebody's editor may have saved it since it was read.
    may_write(root, source)?;
    write::replace(root, &source.path, text.as_bytes())
}

/// Whether a chapter is an ordinary file of the project and still what was read.
fn may_write(root: &Path, source: &Source) -> Result<(), Problem> {
    let path = &source.path;
    let refused = |reason| Problem::from(Refusal::Chapter { path: path.clone(), reason });
    let full = root.join(path);
    let real = full.canonicalize().map_err(|e| failed("read", path, &e))?;
    if real != full {
        return Err(refused("there is a symbolic link on the way to it"));
    }
    let meta = fs::metadata(&full).map_err(|e| failed("read", path, &e))?;
    if meta.permissions().readonly() {
        return Err(refused("it is read-only"));
    }
    let bytes = fs::read(&full).map_err(|e| failed("read", path, &e))?;
    if hash(&bytes) != source.hash {
        return Err(refused("somebody is just changing it"));
    }
    Ok(())
}
