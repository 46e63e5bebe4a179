// SPDX-License-Identifier: GPL-2.0

//! Which chapters count, and which variants of their chunks.
//!
//! The book as a whole has every chapter, the last body of each chunk that is replaced, and the
//! solution of every lab. `--until` leaves later chapters out, and `--lab` takes one lab's starter.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::parse::Variant;
use crate::problem::{Finding, Problem};
use crate::source::{Place, Role, SourceId};

/// A state of the code that the book describes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The last chapter that counts, as `SUMMARY.md` names it; beside it and those before it count
    /// the chapters that they name in `<!-- needs: ... -->`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The lab of which the starter is taken; of all others it is the solution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<u32>,
}

impl Selection {
    /// Whether it is the whole book with all solutions.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// Whether blocks of a variant belong to it.
    pub(crate) fn takes(&self, variant: Variant) -> bool {
        match variant {
            Variant::Plain | Variant::Replaces => true,
            Variant::Starter(lab) => self.lab == Some(lab),
            Variant::Solution(lab) => self.lab != Some(lab),
        }
    }

    /// A number that differs for different selections of the same input.
    pub(crate) fn key(&self, input: u128) -> u128 {
        if self.is_whole() {
            return input;
        }
        crate::source::hash(format!("{input:032x} {self:?}").as_bytes())
    }
}

/// A chapter that another one cannot do without: `<!-- needs: path -->`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The chapter that says it.
    pub by: SourceId,
    /// The chapter it names.
    pub chapter: SourceId,
}

/// The chapter that a path means, written as in `SUMMARY.md` or from the project root.
pub(crate) fn chapter(book: &Book, path: &str) -> Option<SourceId> {
    let summary = book.sources.iter().find(|source| source.role == Role::Summary);
    let folder =
        summary.and_then(|summary| summary.path.rsplit_once('/')).map(|(folder, _)| folder);
    let below = folder.map(|folder| format!("{folder}/{path}"));
    let named = |wanted: &str| book.chapter_named(wanted);
    let found = below.as_deref().and_then(named).or_else(|| named(path));
    // A model built from texts alone has no SUMMARY.md: one chapter may end in the path.
    found.or_else(|| {
        let end = format!("/{path}");
        let mut fitting = book.chapters().filter(|(_, source)| source.path.ends_with(&end));
        match (summary, fitting.next(), fitting.next()) {
            (None, Some((id, _)), None) => Some(id),
            _ => None,
        }
    })
}

/// A chapter's path as `SUMMARY.md` writes it.
pub(crate) fn short(book: &Book, path: &str) -> String {
    let summary = book.sources.iter().find(|source| source.role == Role::Summary);
    let folder =
        summary.and_then(|summary| summary.path.rsplit_once('/')).map(|(folder, _)| folder);
    let below = folder.and_then(|folder| path.strip_prefix(folder)?.strip_prefix('/'));
    below.unwrap_or(path).to_owned()
}

/// That no chapter is called so, with the nearest that is.
pub(crate) fn unknown_chapter(book: &Book, path: &str) -> Problem {
    let names = book.chapters().map(|(_, source)| short(book, &source.path));
    let allowed = (path.len() / 3).max(2);
    let nearest = names
        .map(|name| {
            let file = name.rsplit('/').next() == path.rsplit('/').next();
            (if file { 0 } else { strsim::osa_distance(&name, path) }, name)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name);
    Problem::UnknownChapter { path: path.to_owned(), nearest }
}

/// The chapters that count, or nothing if all do.
pub(crate) fn included(
    book: &Book,
    selection: &Selection,
    needs: &[Need],
) -> Result<Option<BTreeSet<SourceId>>, Box<Finding>> {
    let Some(until) = &selection.until else { return Ok(None) };
    let last = chapter(book, until)
        .ok_or_else(|| Box::new(Finding::nowhere(unknown_chapter(book, until))))?;
    let mut found: BTreeSet<SourceId> =
        book.chapters().map(|(id, _)| id).take_while(|&id| id <= last).collect();
    // What a needed chapter needs is needed, too.
    loop {
        let before = found.len();
        for need in needs {
            if found.contains(&need.by) {
                found.insert(need.chapter);
            }
        }
        if found.len() == before {
            return Ok(Some(found));
        }
    }
}

/// Looks the chapters up that `needs:` comments name.
pub(crate) fn needs(
    book: &Book,
    said: &[(SourceId, crate::parse::Note)],
) -> (Vec<Need>, Vec<Finding>) {
    let mut needs = Vec::new();
    let mut findings = Vec::new();
    for (by, note) in said {
        for path in note.text.split([',', ' ']).filter(|path| !path.is_empty()) {
            match chapter(book, path) {
                Some(chapter) => needs.push(Need { by: *by, chapter }),
                None => {
                    let at = Place { source: *by, span: note.span.clone() };
                    findings.push(Finding::error(unknown_chapter(book, path), at));
                }
            }
        }
    }
    (needs, findings)
}
