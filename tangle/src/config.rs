// SPDX-License-Identifier: GPL-2.0

//! Which files make the book: `book.toml`, `SUMMARY.md`, the chapters in its order.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Parser, Tag};

use crate::problem::{Finding, Problem};
use crate::source::{Place, Role, Source, SourceId};

/// The part of `book.toml` that tangle reads.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Config {
    book: BookSection,
}

#[derive(Debug, serde::Deserialize)]
#[serde(default)]
struct BookSection {
    src: PathBuf,
}

impl Default for BookSection {
    fn default() -> Self {
        Self { src: "src".into() }
    }
}

/// Everything tangle reads, each file once.
#[derive(Debug)]
pub struct Input {
    /// The folder of `book.toml`, absolute.
    pub root: PathBuf,
    /// `book.toml`, `SUMMARY.md`, the chapters in order, then Markdown files that are not listed.
    pub sources: Vec<Source>,
    /// What was wrong on the way.
    pub findings: Vec<Finding>,
}

/// Looks for the folder with `book.toml`, in `from` and above it.
#[must_use]
pub fn find_root(from: &Path) -> Option<PathBuf> {
    from.ancestors().find(|dir| dir.join("book.toml").is_file()).map(Path::to_path_buf)
}

/// The folder of the chapters, from `root`, as far as `book.toml` says one.
pub(crate) fn chapters_folder(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("book.toml")).ok()?;
    let config: Config = toml::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    normal(&config.book.src)
}

impl Input {
    /// Reads the book in `root`.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
        let mut input = Self { root, sources: Vec::new(), findings: Vec::new() };
        let Some(src) = input.read_config() else { return input };
        let Some(summary) = input.read_file(&join(&src, "SUMMARY.md"), Role::Summary) else {
            return input;
        };
        let listed = input.read_chapters(&src, summary);
        input.read_unlisted(&src, &listed);
        input
    }

    /// Makes an input out of texts, for tests and tools: `(path, text)` in the book's order.
    #[must_use]
    pub fn from_chapters<'a>(chapters: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let sources = chapters
            .into_iter()
            .map(|(path, text)| Source::new(path, Role::Chapter, text.to_vec()))
            .collect();
        Self { root: PathBuf::from("."), sources, findings: Vec::new() }
    }

    /// One number that changes when any of the files read changes.
    #[must_use]
    pub fn key(&self) -> u128 {
        let mut all = Vec::with_capacity(self.sources.len() * 48);
        all.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
        for source in &self.sources {
            all.extend_from_slice(source.path.as_bytes());
            all.push(0);
            all.push(source.role as u8);
            all.extend_from_slice(&source.hash.to_le_bytes());
        }
        crate::source::hash(&all)
    }

    fn read_file(&mut self, path: &str, role: Role) -> Option<SourceId> {
        match fs::read(self.root.join(path)) {
            Ok(bytes) => {
                self.sources.push(Source::new(path, role, bytes));
                u32::try_from(self.sources.len() - 1).ok().map(SourceId)
            }
            Err(error) => {
                self.findings.push(Finding::nowhere(Problem::Io {
                    action: "read",
                    path: path.to_owned(),
                    reason: error.to_string(),
                }));
                None
            }
        }
    }

    /// Reads `book.toml` and gives the folder of the chapters, relative to the root.
    fn read_config(&mut self) -> Option<String> {
        let id = self.read_file("book.toml", Role::Config)?;
        let config: Config = match toml::from_str(self.sources[id.0 as usize].body()) {
            Ok(config) => config,
            Err(error) => {
                let problem = Problem::Config(error.message().to_owned());
                let bom = self.sources[id.0 as usize].bom();
                let span = error.span().unwrap_or(0..0);
                let span = span.start + bom..span.end + bom;
                self.findings.push(Finding::error(problem, Place { source: id, span }));
                return None;
            }
        };
        let Some(src) = normal(&config.book.src) else {
            let problem = Problem::Config(format!(
                "`book.src` is {}, which is not below the folder of book.toml",
                config.book.src.display()
            ));
            self.findings.push(Finding::error(problem, Place { source: id, span: 0..0 }));
            return None;
        };
        Some(src)
    }

    fn read_chapters(&mut self, src: &str, summary: SourceId) -> HashSet<String> {
        let mut listed: HashSet<String> = HashSet::new();
        let links = links(&self.sources[summary.0 as usize]);
        for (target, span) in links {
            let at = Place { source: summary, span };
            let Some(path) = normal(&Path::new(src).join(&target)) else {
                self.findings.push(Finding::error(Problem::ChapterOutside(target), at));
                continue;
            };
            if !listed.insert(path.clone()) {
                self.findings.push(Finding::error(Problem::ChapterTwice(path), at));
                continue;
            }
            match fs::read(self.root.join(&path)) {
                Ok(bytes) => self.sources.push(Source::new(path, Role::Chapter, bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.findings.push(Finding::error(Problem::MissingChapter(path), at));
                }
                Err(error) => {
                    let reason = error.to_string();
                    let problem = Problem::Io { action: "read", path, reason };
                    self.findings.push(Finding::error(problem, at));
                }
            }
        }
        listed
    }

    /// Markdown files below the chapters' folder that `SUMMARY.md` does not list, sorted by path.
    fn read_unlisted(&mut self, src: &str, listed: &HashSet<String>) {
        let mut found = Vec::new();
        let mut folders = vec![src.to_owned()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(self.root.join(&folder)) else { continue };
            for entry in entries.flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = join(&folder, &name);
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() && !name.starts_with('.') {
                    folders.push(path);
                } else if kind.is_file()
                    && name.ends_with(".md")
                    && !listed.contains(&path)
                    && path != join(src, "SUMMARY.md")
                {
                    found.push(path);
                }
            }
        }
        found.sort();
        for path in found {
            self.read_file(&path, Role::Unlisted);
        }
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// A relative path without `.` and `..`, or nothing if it leaves the folder it starts in.
pub(crate) fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The chapters that `SUMMARY.md` links to, in order, with the span of each link.
fn links(summary: &Source) -> Vec<(String, std::ops::Range<usize>)> {
    let bom = summary.bom();
    Parser::new(summary.body())
        .into_offset_iter()
        .filter_map(|(event, range)| match event {
            Event::Start(Tag::Link { dest_url, .. }) if !dest_url.is_empty() => {
                Some((percent_decoded(&dest_url), range.start + bom..range.end + bom))
            }
            _ => None,
        })
        .collect()
}

fn percent_decoded(url: &str) -> String {
    let bytes = url.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| url.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap_or_else(|_| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain_or_refused() {
        assert_eq!(normal(Path::new("book/./a/../b.md")).as_deref(), Some("book/b.md"));
        assert_eq!(normal(Path::new("../x")), None);
        assert_eq!(normal(Path::new("/x")), None);
    }

    #[test]
    fn the_summary_gives_its_links_in_order() {
        let text = "# Summary\n\n[Start](start.md)\n\n# Part\n\n- [A](a%20b.md)\n  - [C](c/d.md)\n\
                    - [Draft]()\n\n<!-- [No](no.md) -->\n\n---\n\n[End](end.md)\n";
        let summary = Source::new("SUMMARY.md", Role::Summary, text.as_bytes().to_vec());
        let names: Vec<_> = links(&summary).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["start.md", "a b.md", "c/d.md", "end.md"]);
    }
}
