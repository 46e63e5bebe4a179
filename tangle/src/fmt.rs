// SPDX-License-Identifier: GPL-2.0

//! Formats the Rust of a book: rustfmt formats the files, and its changes go back to the chapters as
//! somebody's changes would (see [`crate::sync`]).
//!
//! So rustfmt sees whole files and never a chunk, whose lines alone need not be Rust. Where a line
//! of a chunk would have to be two different lines in two places, the files in question are left
//! as they are and it is said.

use std::collections::BTreeMap;
use std::path::Path;

use crate::book::{Book, OutputId};
use crate::check;
use crate::config::Input;
use crate::problem::{Finding, Problem};
use crate::select::Selection;
use crate::settings::Settings;
use crate::source::Source;
use crate::sync::{Back, Between, Change, back, changes, write_chapters};
use crate::write::{self, Options, State};

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Files that come out differently.
    pub files: Vec<String>,
    /// What changed in the chapters, in the order of the book.
    pub changes: Vec<Change>,
    /// Each chapter that was written over, and where its copy is.
    pub kept: Vec<(String, String)>,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    /// What was wrong. Files that no finding is about are formatted all the same, if there is a
    /// report.
    pub findings: Vec<Finding>,
    /// The sources the findings are about.
    pub sources: Vec<Source>,
    /// What was done, if anything could be.
    pub report: Option<Report>,
}

/// Formats the Rust of the book in `root`, the starters of its labs too; with `dry` nothing is
/// written.
#[must_use]
pub fn run(root: &Path, dry: bool) -> Run {
    let locked = match write::lock(root) {
        Ok(locked) => locked,
        Err(problem) => {
            let findings = vec![Finding::nowhere(problem)];
            return Run { findings, sources: Vec::new(), report: None };
        }
    };
    let whole = State::read(root).selection().clone();
    let mut total = Report::default();
    let mut found = Vec::new();
    let mut selections = vec![whole];
    let mut next = 0;
    let sources = loop {
        let mut book = Book::load_with(root, &selections[next], None);
        if next == 0 {
            let labs = book.labs().into_iter().map(Some);
            let labs = labs.map(|lab| Selection { lab, ..Selection::default() });
            let more: Vec<_> = labs.filter(|selection| *selection != selections[0]).collect();
            selections.extend(more);
            found.extend(book.findings().iter().cloned());
        }
        let on_disk = next == 0;
        let refused = match format(&book, dry, on_disk) {
            Ok((report, findings)) => {
                total.files.extend(report.files);
                total.changes.extend(report.changes);
                total.kept.extend(report.kept);
                found.extend(findings);
                false
            }
            Err(findings) => {
                found.extend(findings);
                true
            }
        };
        next += 1;
        if refused {
            drop(locked);
            return Run { findings: found, sources: book.take_sources(), report: None };
        }
        if next == selections.len() {
            break book.take_sources();
        }
    };
    drop(locked);
    Run { findings: found, sources, report: Some(total) }
}

type Formatted = (Report, Vec<Finding>);

fn format(book: &Book, dry: bool, on_disk: bool) -> Result<Formatted, Vec<Finding>> {
    if book.has_errors() {
        return Err(Vec::new());
    }
    let state = State::read(book.root());
    if on_disk {
        // A file that was changed by hand would be in the way afterwards.
        write::check(book, &state)?;
    }
    let (settings, mut findings) = Settings::of(book.sources());
    let mut wanted = BTreeMap::new();
    for (id, result) in check::formatted(book, &settings) {
        match result {
            Ok(text) if text == book.output(id).text => {}
            Ok(text) => drop(wanted.insert(id, text)),
            Err(finding) => findings.push(*finding),
        }
    }
    let back = as_far_as_possible(book, wanted, &mut findings);
    let path = |id: &OutputId| book.output(*id).path.clone();
    let mut report = Report {
        files: back.0.keys().map(path).collect(),
        changes: changes(book, &back.1),
        kept: Vec::new(),
    };
    if dry || back.1.chapters.is_empty() {
        return Ok((report, findings));
    }
    report.kept = write_chapters(book, &back.1)?;
    if on_disk {
        let input = Input::read(book.root());
        let key = book.selection().key(input.key());
        let after = Book::checked_with(input, book.selection(), None);
        if after.has_errors() {
            return Err(after.findings().to_vec());
        }
        write::write_locked(&after, key, state, &Options::default())?;
    }
    Ok((report, findings))
}

/// The edits for as many files as go together.
fn as_far_as_possible(
    book: &Book,
    mut wanted: BTreeMap<OutputId, String>,
    findings: &mut Vec<Finding>,
) -> (BTreeMap<OutputId, String>, Back) {
    loop {
        let list: Vec<(OutputId, String)> =
            wanted.iter().map(|(id, text)| (*id, text.clone())).collect();
        match back(book, &list, Between::Before) {
            Ok(back) => return (wanted, back),
            Err(more) => {
                let before = wanted.len();
                for finding in &more {
                    let Problem::Refused(refusal) = &finding.problem else { continue };
                    if let Some(id) = refusal.path().and_then(|path| book.output_named(path)) {
                        wanted.remove(&id);
                    }
                }
                findings.extend(more);
                if wanted.len() == before {
                    wanted.clear();
                }
            }
        }
    }
}
