// SPDX-License-Identifier: GPL-2.0-only

//! The chapter that adds a hypercall is a patch, and here it is applied to a copy of the book.
//!
//! The patch is what stands in the chapter's fences for `diff`, one after the other. What it makes
//! of the book is then looked at by the test that compares the table of all calls with the code.
//! The long set also builds the module and the Guest's kernel of it, and tries its pure part.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::artifacts::root;

/// The chapter with the walk.
const WALK: &str = "book/mastery/add-a-hypercall.md";
/// How its patches begin and end: they contain shorter fences.
const FENCE: &str = "````";

/// The chapter's patches, in order.
fn patches(chapter: &str) -> Vec<&str> {
    let begin = format!("{FENCE}diff\n");
    let ends = chapter.split(&begin).skip(1);
    let end = format!("\n{FENCE}\n");
    ends.filter_map(|rest| Some(rest.split_once(&end)?.0))
        .collect()
}

/// The file that a patch changes.
fn target(patch: &str) -> Result<&str> {
    let mut lines = patch.lines();
    let name = lines.find_map(|line| line.strip_prefix("+++ b/"));
    name.context("a patch without a file")
}

/// Applies a patch to the files below a folder.
fn apply(folder: &Path, patch: &str) -> Result<()> {
    let mut git = Command::new("git")
        .current_dir(folder)
        // The folder is in no repository, whatever surrounds it.
        .env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap_or(folder))
        .args(["apply", "--recount", "-C1", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start git")?;
    let mut input = git.stdin.take().context("no pipe")?;
    writeln!(input, "{patch}")?;
    drop(input);
    let done = git.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{}: {said}", target(patch)?);
    Ok(())
}

/// Changes the chapters below a folder as the walk does. Gives how many patches that took.
///
/// # Errors
///
/// When one does not fit.
pub fn change(folder: &Path) -> Result<usize> {
    let chapter = fs::read_to_string(root().join(WALK)).context(WALK)?;
    let mut count = 0;
    for patch in patches(&chapter) {
        if target(patch)?.starts_with("book/") {
            apply(folder, patch)?;
            count += 1;
        }
    }
    ensure!(count > 5, "{count} patches of chapters");
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercalls::{AGREEMENT, CHAPTER, check};

    /// Walks the whole way in a copy of the files that it touches. Gives how many calls there are then.
    fn walk(chapter: &str) -> Result<usize> {
        let patches = patches(chapter);
        ensure!(patches.len() > 5, "{} patches", patches.len());
        let folder = tempfile::tempdir()?;
        for patch in &patches {
            let name = target(patch)?;
            let copy = folder.path().join(name);
            if !copy.exists() {
                fs::create_dir_all(copy.parent().context("no folder")?)?;
                fs::copy(root().join(name), &copy).with_context(|| name.to_owned())?;
            }
            apply(folder.path(), patch)?;
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        check(&read(CHAPTER)?, &read(AGREEMENT)?)
    }

    #[test]
    fn the_walk_can_be_walked() {
        let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
        let before = check(&read(CHAPTER), &read(AGREEMENT)).unwrap();
        let chapter = read(WALK);
        assert_eq!(walk(&chapter).unwrap(), before + 1);
        // What does not fit is found, and so is a step that was left out.
        let other = chapter.replacen(" pub const FLUSH_ADDRESS", " pub const FLUSH_ADDRESSES", 1);
        assert_ne!(other, chapter);
        assert!(walk(&other).is_err());
        let without = chapter.replacen("+hypercall::EXITS => self.how_often(a),\n", "", 1);
        assert_ne!(without, chapter);
        let said = walk(&without).unwrap_err().to_string();
        assert!(said.contains("EXITS: no arm"), "{said}");
    }
}
