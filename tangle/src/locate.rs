// SPDX-License-Identifier: GPL-2.0

//! From a place in a file to its place in a chapter, and back.

use std::path::{Path, PathBuf};

use crate::config::normal;
use crate::map::{Found, Map};

/// `path:line` or `path:line:col`, as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The path as written.
    pub path: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub col: Option<u32>,
}

impl std::str::FromStr for Query {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not path:line or path:line:col, both counted from 1");
        let number = |text: &str| text.parse::<u32>().ok().filter(|&n| n > 0);
        let (rest, last) = text.rsplit_once(':').ok_or_else(wrong)?;
        let last = number(last).ok_or_else(wrong)?;
        let (path, line, col) = match rest.rsplit_once(':').map(|(path, n)| (path, number(n))) {
            Some((path, Some(line))) => (path, line, Some(last)),
            _ => (rest, last, None),
        };
        if path.is_empty() {
            return Err(wrong());
        }
        Ok(Self { path: path.to_owned(), line, col })
    }
}

/// What a query led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The places, at least one.
    Places(Vec<Found<'a>>),
    /// The file is known, but no place belongs to that line.
    NoLine(String),
    /// The file is neither an output nor a chapter.
    NoFile,
}

/// Answers a query, for a path relative to `cwd`, to the folder `root` of the outputs, or to that of
/// the book.
#[must_use]
pub fn locate<'a>(map: &'a Map, root: &Path, cwd: &Path, query: &Query) -> Answer<'a> {
    let book = map.book.as_deref().unwrap_or(root);
    for folder in [cwd, root, book] {
        let full = folder.join(&query.path);
        let file = below(root, &full).filter(|path| map.files.contains_key(path));
        if let Some(path) = file {
            return match map.to_chapter(&path, query.line, query.col) {
                Some(found) => Answer::Places(vec![found]),
                None => Answer::NoLine(path),
            };
        }
        let Some(path) = below(book, &full) else { continue };
        if map.chapters.iter().any(|chapter| chapter.path == path) {
            let found = map.to_outputs(&path, query.line, query.col);
            return if found.is_empty() { Answer::NoLine(path) } else { Answer::Places(found) };
        }
    }
    Answer::NoFile
}

/// A path as the book writes it: from the root. One that is not below it stays as it is.
#[must_use]
pub fn path_of(root: &Path, cwd: &Path, path: &Path) -> String {
    let from = |folder: &Path| below(root, &folder.join(path)).filter(|p| root.join(p).exists());
    from(cwd).or_else(|| from(root)).unwrap_or_else(|| path.display().to_string())
}

/// A path from the root, if it is below it.
fn below(root: &Path, full: &Path) -> Option<String> {
    let lexical = PathBuf::from("/").join(normal(full.strip_prefix("/").ok()?)?);
    let inside = |full: &Path| normal(full.strip_prefix(root).ok()?);
    inside(&lexical).or_else(|| inside(&full.canonicalize().ok()?))
}

/// The chapters among the places and of the query that are not what the map was made from.
#[must_use]
pub fn changed(map: &Map, root: &Path, paths: &[&str]) -> Vec<String> {
    map.chapters
        .iter()
        .filter(|chapter| paths.contains(&chapter.path.as_str()))
        .filter(|chapter| {
            std::fs::read(map.book.as_deref().unwrap_or(root).join(&chapter.path))
                .map_or(true, |bytes| crate::source::hash(&bytes) != chapter.hash)
        })
        .map(|chapter| chapter.path.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = |path: &str, line, col| Ok(Query { path: path.to_owned(), line, col });
        assert_eq!("a.rs:3".parse(), query("a.rs", 3, None));
        assert_eq!("a.rs:3:4".parse(), query("a.rs", 3, Some(4)));
        assert_eq!("/x/a:b.rs:3".parse(), query("/x/a:b.rs", 3, None));
        for bad in ["a.rs", "a.rs:", "a.rs:0", ":3", "a.rs:x", "a.rs:3:0"] {
            assert!(bad.parse::<Query>().is_err(), "{bad}");
        }
    }
}
