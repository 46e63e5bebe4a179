// SPDX-License-Identifier: GPL-2.0-only

//! What a run of the tests prints, and what it keeps.

use std::cell::RefCell;
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
    /// What is asked for; nothing is everything.
    filters: Vec<String>,
    /// What is to be printed with the next result, where others print at the same time.
    held: Option<RefCell<String>>,
}

impl Report {
    /// A report that keeps logs in a directory and tells of the tests that one of the filters lets
    /// through, or of all if there is none.
    pub fn new(directory: PathBuf, filters: Vec<String>) -> Self {
        Self {
            counts: Counts::default(),
            failures: Vec::new(),
            directory,
            filters,
            held: None,
        }
    }

    /// A report of the same kind for something that goes on beside this: what it says of one test
    /// is printed in one piece. It comes back by [`Report::join`].
    pub fn apart(&self) -> Self {
        Self {
            held: Some(RefCell::default()),
            ..Self::new(self.directory.clone(), self.filters.clone())
        }
    }

    /// Takes in what was found beside this.
    pub fn join(&mut self, other: Self) {
        other.flush();
        self.counts += other.counts;
        self.failures.extend(other.failures);
    }

    /// Prints a line, or keeps it for [`Report::flush`].
    fn say(&self, line: &str) {
        match &self.held {
            Some(held) => {
                let mut held = held.borrow_mut();
                held.push_str(line);
                held.push('\n');
            }
            None => println!("{line}"),
        }
    }

    /// Prints what was kept.
    fn flush(&self) {
        if let Some(held) = &self.held {
            print!("{}", held.take());
        }
    }

    /// Whether the test `section/name` is wanted.
    pub fn wants(&self, section: &str, name: &str) -> bool {
        let full = format!("{section}/{name}");
        self.filters.is_empty() || self.filters.iter().any(|filter| full.contains(filter))
    }

    /// Whether only some tests were asked for.
    pub fn is_filtered(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Whether a section was asked for by its name.
    pub fn names(&self, section: &str) -> bool {
        self.filters
            .iter()
            .any(|filter| filter.starts_with(section))
    }

    /// What the filters leave of a whole section whose tests are not known beforehand: nothing at
    /// all, or the parts of their names that are asked for, where none means all.
    pub fn wants_section(&self, section: &str) -> Option<Vec<&str>> {
        let rests = self.filters.iter().filter_map(|filter| {
            let rest = filter.strip_prefix(section)?;
            if rest.is_empty() {
                Some(rest)
            } else {
                rest.strip_prefix('/')
            }
        });
        let mut rests: Vec<_> = rests.collect();
        if rests.is_empty() && self.is_filtered() {
            return None;
        }
        if rests.contains(&"") {
            rests.clear();
        }
        Some(rests)
    }

    /// Begins a section.
    pub fn section(&self, title: &str) {
        self.say(&format!("\n{title}"));
        self.flush();
    }

    /// Says something that is neither good nor bad.
    pub fn remark(&self, text: &str) {
        self.say(&format!("     {text}"));
    }

    /// A test has passed.
    pub fn pass(&mut self, name: &str) {
        self.counts.passed += 1;
        self.say(&format!("ok   {name}"));
        self.flush();
    }

    /// Many tests have passed whose names are not worth a line each.
    pub fn pass_many(&mut self, what: &str, count: usize) {
        self.counts.passed += count;
        self.say(&format!("ok   {what}: {count}"));
        self.flush();
    }

    /// A test was not run.
    pub fn skip(&mut self, name: &str, why: &str) {
        self.counts.skipped += 1;
        self.say(&format!("skip {name}: {why}"));
        self.flush();
    }

    /// A test has failed; `log` is where the whole story is.
    pub fn fail(&mut self, name: &str, why: &str, log: &Path) {
        self.counts.failed += 1;
        self.say(&format!("FAIL {name}"));
        for line in why.lines() {
            self.say(&format!("     {line}"));
        }
        self.say(&format!("     log: {}", log.display()));
        self.flush();
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
        Report::new(PathBuf::from("/nowhere"), vec![filter.to_owned()])
    }

    #[test]
    fn a_filter_is_part_of_the_full_name() {
        assert!(with("hello").wants("host-5", "hello"));
        assert!(with("host-5/h").wants("host-5", "hello"));
        assert!(!with("host-4").wants("host-5", "hello"));
        assert!(Report::new(PathBuf::new(), Vec::new()).wants("a", "b"));
    }

    #[test]
    fn what_was_found_beside_is_taken_in() {
        let mut report = with("host");
        report.pass("host-5/hello");
        let mut apart = report.apart();
        assert!(apart.wants("host-4", "hello") && !apart.wants("tools", "hello"));
        apart.remark("said of host-4/hello");
        apart.fail("host-4/hello", "why", Path::new("/nowhere/log"));
        apart.skip("host-4/walls", "why");
        report.join(apart);
        let counts = report.counts();
        assert_eq!(
            (counts.passed, counts.failed, counts.skipped),
            (1, 1, 1),
            "{counts}"
        );
        assert!(!report.end());
    }

    #[test]
    fn a_section_is_asked_for_by_its_name() {
        assert_eq!(with("tools").wants_section("tools"), Some(vec![]));
        assert_eq!(
            with("tools/cpio").wants_section("tools"),
            Some(vec!["cpio"])
        );
        assert_eq!(with("hello").wants_section("tools"), None);
        let two = ["tools/cpio", "host-5", "tools/elf"].map(str::to_owned);
        let two = Report::new(PathBuf::new(), two.to_vec());
        assert_eq!(two.wants_section("tools"), Some(vec!["cpio", "elf"]));
        assert!(two.names("host-5") && two.wants("host-5", "hello") && !two.names("host-4"));
        assert_eq!(with("toolsy").wants_section("tools"), None);
        assert_eq!(
            Report::new(PathBuf::new(), Vec::new()).wants_section("tools"),
            Some(vec![])
        );
    }
}
