// SPDX-License-Identifier: GPL-2.0

//! Whether the targets of a book are ours to write: no link on their way leads out of the tree,
//! and git does not track them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::book::Book;
use crate::parse::Target;
use crate::problem::{Finding, Problem};
use crate::source::Role;

/// Looks the targets of a book up in the file system and in git's index.
pub(crate) fn check(book: &Book) -> Vec<Finding> {
    let tracked = tracked(book.out());
    let mut links = Links { root: book.out(), known: HashMap::new() };
    let mut findings = Vec::new();
    for chunk in book.chunks() {
        let Target::File(path) = &chunk.target else { continue };
        let at = book.place_of(chunk.all[0]);
        // A path with `..` or the like was reported already.
        if Path::new(path).is_absolute() || path.split('/').any(|part| part == "..") {
            continue;
        }
        let real = match links.folder(path) {
            Ok(None) => path.clone(),
            Ok(Some(real)) => real,
            Err((link, to)) => {
                let problem = Problem::LeavesTree { path: path.clone(), link, to };
                findings.push(Finding::error(problem, at));
                continue;
            }
        };
        let reason = if tracked.contains(&real) {
            Some("git tracks it".to_owned())
        } else if real == *path {
            None
        } else {
            reserved(book, &real).map(|reason| format!("through a link it is {real}, and {reason}"))
        };
        if let Some(reason) = reason {
            let problem = Problem::Forbidden { path: path.clone(), reason };
            findings.push(Finding::error(problem, at));
        }
    }
    findings
}

/// Why a path is not for tangle to write, as far as the book itself knows.
pub(crate) fn reserved(book: &Book, path: &str) -> Option<String> {
    let top = path.split('/').next().unwrap_or(path);
    match top {
        ".git" => return Some("it is git's".into()),
        ".tangle" => return Some("tangle keeps its own records there".into()),
        _ => {}
    }
    if path == "book.toml" {
        return Some("it configures the book".into());
    }
    book.sources().iter().find(|source| source.path == path).map(|source| {
        match source.role {
            Role::Chapter => "it is a chapter",
            Role::Summary => "it lists the chapters",
            Role::Config => "it configures the book",
            Role::Unlisted => "it lies among the chapters",
        }
        .to_owned()
    })
}

/// Where the folders of targets really are.
struct Links<'a> {
    root: &'a Path,
    /// For a folder: nothing if no link is on its way, else where it is, or the link and its end.
    known: HashMap<String, Result<Option<String>, (String, String)>>,
}

impl Links<'_> {
    /// The real path of a target, if a link lies on its way.
    fn folder(&mut self, path: &str) -> Result<Option<String>, (String, String)> {
        let Some((folder, name)) = path.rsplit_once('/') else { return Ok(None) };
        let found = match self.known.get(folder) {
            Some(found) => found.clone(),
            None => {
                let found = self.look(folder);
                self.known.insert(folder.to_owned(), found.clone());
                found
            }
        };
        Ok(found?
            .map(|real| if real.is_empty() { name.to_owned() } else { format!("{real}/{name}") }))
    }

    fn look(&self, folder: &str) -> Result<Option<String>, (String, String)> {
        let mut at = PathBuf::from(self.root);
        let mut linked = None;
        let mut parts = folder.split('/');
        for part in parts.by_ref() {
            at.push(part);
            match fs::symlink_metadata(&at) {
                Ok(meta) if meta.file_type().is_symlink() => {
                    let link = at.strip_prefix(self.root).unwrap_or(&at).display().to_string();
                    // A link that leads nowhere is as bad as one that leads out.
                    let to = at.canonicalize().or_else(|_| fs::read_link(&at)).unwrap_or_default();
                    if !to.starts_with(self.root) {
                        return Err((link, to.display().to_string()));
                    }
                    at = to;
                    linked = Some(());
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        if linked.is_none() {
            return Ok(None);
        }
        at.extend(parts);
        let real = at.strip_prefix(self.root).unwrap_or(&at);
        Ok(Some(real.to_string_lossy().into_owned()))
    }
}

/// The paths below `root` that git tracks; none where there is no repository or no git.
fn tracked(root: &Path) -> HashSet<String> {
    if !root.ancestors().any(|dir| dir.join(".git").exists()) {
        return HashSet::new();
    }
    let listed = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output();
    match listed {
        Ok(listed) if listed.status.success() => String::from_utf8_lossy(&listed.stdout)
            .split('\0')
            .filter(|path| !path.is_empty())
            .map(str::to_owned)
            .collect(),
        _ => HashSet::new(),
    }
}

/// What git's index looked like: changes when something is added to it or taken out.
pub(crate) fn index_stamp(root: &Path) -> Option<(u64, u128)> {
    let dot_git = root.ancestors().map(|dir| dir.join(".git")).find(|path| path.exists())?;
    let folder = if dot_git.is_file() {
        let text = fs::read_to_string(&dot_git).ok()?;
        let named = PathBuf::from(text.strip_prefix("gitdir:")?.trim());
        dot_git.parent()?.join(named)
    } else {
        dot_git
    };
    let meta = fs::metadata(folder.join("index")).ok()?;
    let modified = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((meta.len(), modified.as_nanos()))
}
