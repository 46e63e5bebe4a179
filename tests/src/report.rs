// SPDX-License-Identifier: GPL-2.0-only

//! What a run of the tests prints, and what it keeps.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::counts::Counts;

/// Everything that a run has found so far.
#[derive(Debug)]
pub struct Report {
    counts: Counts,
    failures: Vec<String>,
    directory: PathBuf,
    filter: Option<String>,
}

impl Report {
    /// A report that keeps logs in a directory and tells of the tests that a filter lets through.
    pub fn new(directory: PathBuf, filter: Option<String>) -> Self {
        Self {
            counts: Counts::default(),
            failures: Vec::new(),
            directory,
            filter,
        }
    }

    /// Whether the test `section/name` is wanted.
    pub fn wants(&self, section: &str, name: &str) -> bool {
        let full = format!("{section}/{name}");
        self.filter
            .as_deref()
            .is_none_or(|filter| full.contains(filter))
    }

    /// Whether only some tests were asked for.
    pub fn is_filtered(&self) -> bool {
        self.filter.is_some()
    }

    /// What the filter leaves of a whole section whose tests are not known beforehand: nothing at
    /// all, or the part of their names that is asked for.
    pub fn wants_section(&self, section: &str) -> Option<&str> {
        let Some(filter) = &self.filter else {
            return Some("");
        };
        let rest = filter.strip_prefix(section)?;
        if rest.is_empty() {
            Some("")
        } else {
            rest.strip_prefix('/')
        }
    }

    /// Begins a section.
    pub fn section(&self, title: &str) {
        println!("\n{title}");
    }

    /// Says something that is neither good nor bad.
    pub fn remark(&self, text: &str) {
        println!("     {text}");
    }

    /// A test has passed.
    pub fn pass(&mut self, name: &str) {
        self.counts.passed += 1;
        println!("ok   {name}");
    }

    /// Many tests have passed whose names are not worth a line each.
    pub fn pass_many(&mut self, what: &str, count: usize) {
        self.counts.passed += count;
        println!("ok   {what}: {count}");
    }

    /// A test was not run.
    pub fn skip(&mut self, name: &str, why: &str) {
        self.counts.skipped += 1;
        println!("skip {name}: {why}");
    }

    /// A test has failed; `log` is where the whole story is.
    pub fn fail(&mut self, name: &str, why: &str, log: &Path) {
        self.counts.failed += 1;
        println!("FAIL {name}");
        for line in why.lines() {
            println!("     {line}");
        }
        println!("     log: {}", log.display());
        self.failures
            .push(format!("{name} (log: {})", log.display()));
    }

    /// Where the log of a test goes.
    pub fn log_path(&self, section: &str, name: &str) -> PathBuf {
        let name: String = name
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '-' })
            .collect();
        self.directory.join(format!("{section}-{name}.log"))
    }

    /// Keeps a text as the log of a test.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn keep(&self, section: &str, name: &str, text: &[u8]) -> Result<PathBuf> {
        let path = self.log_path(section, name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The counts so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Lists what failed and prints the line with the counts, the last of all. Gives whether all
    /// is well.
    pub fn end(self) -> bool {
        if !self.failures.is_empty() {
            println!("\nFailed:");
            for failure in &self.failures {
                println!("     {failure}");
            }
        }
        println!("\n{}", self.counts);
        self.counts.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(filter: &str) -> Report {
        Report::new(PathBuf::from("/nowhere"), Some(filter.to_owned()))
    }

    #[test]
    fn a_filter_is_part_of_the_full_name() {
        assert!(with("hello").wants("host-5", "hello"));
        assert!(with("host-5/h").wants("host-5", "hello"));
        assert!(!with("host-4").wants("host-5", "hello"));
        assert!(Report::new(PathBuf::new(), None).wants("a", "b"));
    }

    #[test]
    fn a_section_is_asked_for_by_its_name() {
        assert_eq!(with("tools").wants_section("tools"), Some(""));
        assert_eq!(with("tools/cpio").wants_section("tools"), Some("cpio"));
        assert_eq!(with("hello").wants_section("tools"), None);
        assert_eq!(with("toolsy").wants_section("tools"), None);
        assert_eq!(
            Report::new(PathBuf::new(), None).wants_section("tools"),
            Some("")
        );
    }
}
