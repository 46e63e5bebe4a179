// SPDX-License-Identifier: GPL-2.0-only

//! The archive that is published: the same bytes twice, and all of it there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artifacts::root;
use crate::browser::render;

/// Renders and packs the book twice; gives how large the archive is.
///
/// # Errors
///
/// When it cannot be packed, differs, or lacks something.
pub fn twice() -> Result<String> {
    let folder = tempfile::tempdir()?;
    let first = packed(&folder.path().join("one"), "022")?;
    // Another folder, another moment, another umask.
    let second = packed(&folder.path().join("two"), "077")?;
    ensure!(
        fs::read(&first)? == fs::read(&second)?,
        "the archive has other bytes the second time"
    );
    let output = Command::new("tar").arg("-tzf").arg(&first).output()?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let has = |path: &str| {
        listed
            .lines()
            .any(|line| line == format!("lguest-rs/{path}"))
    };
    for path in ["book/index.html", "book/print.html", "code/map.json"] {
        ensure!(has(path), "{path} is not in the archive");
    }
    let map = tangle::map::Map::read(&root()).context("there is no map: make tangle")?;
    for path in map.files.keys() {
        let page = format!("book/code/{path}.html");
        ensure!(has(&format!("code/{path}")), "{path} is not in the archive");
        ensure!(has(&page), "{page} is not in the archive");
    }
    let size = fs::metadata(&first)?.len() >> 10;
    Ok(format!("{} files of code in {size} KiB", map.files.len()))
}

fn packed(folder: &Path, umask: &str) -> Result<std::path::PathBuf> {
    render(&folder.join("book"))?;
    let archive = folder.join("release.tar.gz");
    let script = format!("umask {umask}; exec setup/release \"$@\"");
    let output = Command::new("bash")
        .current_dir(root())
        .args(["-c", &script, "release"])
        .args([&folder.join("book/html"), &archive])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(archive)
}
