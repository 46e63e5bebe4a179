// SPDX-License-Identifier: GPL-2.0-only

//! Where what this is built from comes from: the lock files, and the scripts that fetch.
//!
//! What needs no network and no tool is looked at here; the rest does cargo-deny, by `deny.toml`.

use std::process::Command;

use anyhow::Result;

use crate::artifacts::root;
use crate::checks::{command, command_or_skip};
use crate::report::Report;

/// The tests' section.
pub const SECTION: &str = "supply";

/// Licences, bans and sources of every workspace, and, where there is a network, known holes. They
/// are for the long set, because cargo-deny takes minutes to build.
///
/// # Errors
///
/// When a log cannot be kept.
pub fn test(report: &mut Report, long: bool) -> Result<()> {
    if !long && !report.is_filtered() {
        return Ok(());
    }
    let script = root().join("setup/supply");
    let tool = root().join("setup/tool.sh");
    if !report.wants(SECTION, "licences") && !report.wants(SECTION, "advisories") {
        return Ok(());
    }
    report.section("supply: where the crates come from");
    let there = Command::new(tool).args(["cargo-deny", "ok"]).status();
    if !there.is_ok_and(|status| status.success()) {
        for name in ["licences", "advisories"] {
            if report.wants(SECTION, name) {
                let why = "cargo-deny is not here: `make setup-long` builds it";
                report.skip(&format!("{SECTION}/{name}"), why);
            }
        }
        return Ok(());
    }
    command(report, SECTION, "licences", &mut Command::new(&script))?;
    let mut advisories = Command::new(&script);
    advisories.arg("advisories");
    command_or_skip(report, SECTION, "advisories", &mut advisories)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::promises::files;

    const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
    const LOCKS: [&str; 4] = [
        "Cargo.lock",
        "book/Cargo.lock",
        "tests/guests/Cargo.lock",
        "fuzz/Cargo.lock",
    ];

    fn read(path: &str) -> String {
        fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The value of a key in a package of a lock file.
    fn value<'a>(package: &'a str, key: &str) -> Option<&'a str> {
        let value = package.lines().find_map(|line| line.strip_prefix(key))?;
        value.strip_prefix(" = \"")?.strip_suffix('"')
    }

    /// Every package of a lock file that is not in order; how many there are.
    fn disorder(lock: &str) -> (usize, Vec<String>) {
        let packages = lock.split("[[package]]").skip(1);
        let mut wrong = Vec::new();
        let mut count = 0;
        for package in packages {
            count += 1;
            let name = value(package, "name").unwrap_or("a package without a name");
            match (value(package, "source"), value(package, "checksum")) {
                // One of the workspace's own.
                (None, None) => {}
                (Some(REGISTRY), Some(sum)) if sum.len() == 64 => {}
                other => wrong.push(format!("{name}: {other:?}")),
            }
        }
        (count, wrong)
    }

    #[test]
    fn every_crate_has_a_checksum() {
        for lock in LOCKS {
            let (count, wrong) = disorder(&read(lock));
            assert!(count > 10, "{lock} has {count} packages");
            assert!(wrong.is_empty(), "{lock}: {}", wrong.join(", "));
        }
    }

    #[test]
    fn a_crate_from_elsewhere_is_found() {
        let one = |rest: &str| format!("[[package]]\nname = \"a\"\nversion = \"1\"\n{rest}");
        let sum = "0".repeat(64);
        for (rest, good) in [
            (String::new(), true),
            (
                format!("source = \"{REGISTRY}\"\nchecksum = \"{sum}\"\n"),
                true,
            ),
            (format!("source = \"{REGISTRY}\"\n"), false),
            (
                format!("source = \"git+https://a/b\"\nchecksum = \"{sum}\"\n"),
                false,
            ),
        ] {
            assert_eq!(disorder(&one(&rest)).1.is_empty(), good, "{rest}");
        }
    }

    /// The crates that have an exception in deny.toml.
    fn exceptions(deny: &str) -> BTreeSet<&str> {
        let (_, list) = deny.split_once("exceptions = [").expect("it has them");
        let (list, _) = list.split_once("\n]").expect("they end");
        let names = list.split("crate = \"").skip(1);
        names
            .filter_map(|name| Some(name.split_once('"')?.0))
            .collect()
    }

    #[test]
    fn the_guests_side_has_no_exceptions() {
        let deny = read("deny.toml");
        let exceptions = exceptions(&deny);
        assert!(exceptions.contains("miette"), "{exceptions:?}");
        for lock in ["book/Cargo.lock", "tests/guests/Cargo.lock"] {
            let text = read(lock);
            let packages = text.split("[[package]]").skip(1);
            for name in packages.filter_map(|package| value(package, "name")) {
                assert!(!exceptions.contains(name), "{lock} has {name}");
            }
        }
    }

    #[test]
    fn nothing_is_piped_into_a_shell() {
        let mut scripts = Vec::new();
        for folder in ["setup", "kernel", ".ci", "bench", "fuzz"] {
            files(&root().join(folder), &[""], &mut scripts).expect("it can be read");
        }
        scripts.push(("Makefile".to_owned(), read("Makefile")));
        assert!(scripts.len() > 20, "{} files", scripts.len());
        let mut downloads = Vec::new();
        for (path, text) in &scripts {
            if path.contains("/seeds/") {
                continue;
            }
            for line in text
                .lines()
                .map(str::trim)
                .filter(|line| !line.starts_with('#'))
            {
                let fetches = ["curl ", "wget "].iter().any(|tool| line.contains(tool));
                let shells = ["| sh", "| bash", "|sh", "|bash", "<(curl", "$(curl"];
                let piped = fetches && shells.iter().any(|shell| line.contains(shell));
                assert!(!piped, "{path}: {line}");
                if fetches && line.contains("--output \"$") {
                    downloads.push(path.clone());
                }
            }
        }
        let lib = root().join("setup/lib.sh").display().to_string();
        assert_eq!(downloads, [lib], "who downloads");
    }
}
