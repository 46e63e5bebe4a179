// SPDX-License-Identifier: GPL-2.0-only

//! The book's table of other people's bugs, against the cases that there are.

use inside::cases;

use crate::fit;
use crate::hosts::Kind;

/// The rows of the table: whose, what, and what is done about it here.
fn rows(chapter: &str) -> Vec<[&str; 3]> {
    let (_, rest) = chapter
        .split_once("## Other people's bugs")
        .unwrap_or_default();
    let (section, _) = rest.split_once("\n## ").unwrap_or((rest, ""));
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter_map(|line| line.split(" | ").collect::<Vec<_>>().try_into().ok())
        .skip(1)
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What is wrong with a row, if anything.
fn fault(row: [&str; 3]) -> Option<String> {
    let [whose, bug, here] = row;
    let mut shown = here.contains("[by construction](");
    for name in quoted(here) {
        let known = match name.split_once('/') {
            Some((fit::SECTION, name)) => fit::MACHINES.iter().any(|m| m.name == name),
            _ => cases::find(name).is_some() || Kind::named(name).is_some(),
        };
        if !known {
            return Some(format!("{whose}, {bug}: there is no case {name}"));
        }
        shown = true;
    }
    (!shown).then(|| format!("{whose}, {bug}: neither a case nor an argument"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAPTER: &str = include_str!("../../book/mastery/hostile-guests.md");

    #[test]
    fn every_bug_of_the_book_has_its_case() {
        let rows = rows(CHAPTER);
        assert!(rows.len() >= 20, "{} rows", rows.len());
        let faults: Vec<String> = rows.into_iter().filter_map(fault).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn a_row_without_a_case_is_noticed() {
        assert!(fault(["x", "y", "`steps`"]).is_none());
        assert!(fault(["x", "y", "[by construction](z.md)"]).is_none());
        assert!(fault(["x", "y", "`fit/no-nx`"]).is_none());
        assert!(fault(["x", "y", "`steps` `stepz`"]).is_some());
        assert!(fault(["x", "y", "`fit/no-nz`"]).is_some());
        assert!(fault(["x", "y", "surely"]).is_some());
    }
}
