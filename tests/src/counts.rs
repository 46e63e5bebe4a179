// SPDX-License-Identifier: GPL-2.0-only

//! Passed, failed and skipped, and the line that says so.

use std::fmt;
use std::ops::AddAssign;

/// How many tests went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that were not run, each with a reason printed.
    pub skipped: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// One line of what `cargo test` prints, if it tells the fate of one test: its name and fate.
pub fn cargo_test_line(line: &str) -> Option<(&str, Fate)> {
    let (name, fate) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match fate {
        "ok" => Some((name, Fate::Passed)),
        "FAILED" => Some((name, Fate::Failed)),
        _ if fate.starts_with("ignored") => Some((name, Fate::Skipped)),
        _ => None,
    }
}

/// How one test went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It did what it should.
    Passed,
    /// It did not.
    Failed,
    /// It was not run.
    Skipped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_reads_as_promised() {
        let mut counts = Counts {
            passed: 3,
            failed: 0,
            skipped: 1,
        };
        counts += Counts {
            passed: 1,
            failed: 2,
            skipped: 0,
        };
        assert_eq!(counts.to_string(), "4 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn lines_of_cargo_test_are_told_apart() {
        assert_eq!(
            cargo_test_line("test a::b ... ok"),
            Some(("a::b", Fate::Passed))
        );
        assert_eq!(
            cargo_test_line("test a ... FAILED"),
            Some(("a", Fate::Failed))
        );
        assert_eq!(
            cargo_test_line("test a ... ignored, slow"),
            Some(("a", Fate::Skipped))
        );
        assert_eq!(cargo_test_line("test result: ok. 3 passed; 0 failed"), None);
        assert_eq!(cargo_test_line("running 3 tests"), None);
    }
}
