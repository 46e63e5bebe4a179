// SPDX-License-Identifier: GPL-2.0-only

//! The Guest's initial disk: its programs, and a few things to look at.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::initramfs::Archive;

/// What `cat /etc/motd` shows.
const MOTD: &str = "This machine is a Guest. All there is of it is in a book.\n";

/// The shell is what a Guest begins with.
const INIT: &str = "sh";

/// Packs the programs whose sources are in `sources` and which were built in `built`.
///
/// # Errors
///
/// When there is no source, or a program was not built.
pub fn pack(sources: &Path, built: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for directory in ["bin", "etc", "tmp"] {
        archive.directory(directory);
    }
    archive.copy("init", &built.join(INIT))?;
    for name in names(sources)? {
        archive.copy(&format!("bin/{name}"), &built.join(&name))?;
    }
    archive.file("etc/motd", 0o644, MOTD.as_bytes());
    Ok(archive.finish())
}

/// The names of the programs, in order.
///
/// # Errors
///
/// When there are none.
pub fn names(sources: &Path) -> Result<Vec<String>> {
    let folder = fs::read_dir(sources)
        .with_context(|| format!("no programs at {}: `make tangle`", sources.display()))?;
    let mut names = Vec::new();
    for entry in folder {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().context("a file without a name")?;
            names.push(name.to_string_lossy().into_owned());
        }
    }
    ensure!(!names.is_empty(), "no programs at {}", sources.display());
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_packed_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (sources, built) = (folder.path().join("src"), folder.path().join("built"));
        fs::create_dir(&sources).unwrap();
        fs::create_dir(&built).unwrap();
        assert!(pack(&sources, &built).is_err());
        for name in ["sh", "cat"] {
            fs::write(sources.join(name).with_extension("rs"), "").unwrap();
        }
        fs::write(built.join("sh"), "the shell").unwrap();
        let error = format!("{:#}", pack(&sources, &built).unwrap_err());
        assert!(error.contains("built/cat"), "{error}");
        fs::write(built.join("cat"), "the cat").unwrap();
        let bytes = pack(&sources, &built).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("the shell").count(), 2);
        assert_eq!(text.matches("the cat").count(), 1);
        assert!(text.contains("bin/cat\0") && text.contains("init\0"));
    }
}
