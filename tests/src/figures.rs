// SPDX-License-Identifier: GPL-2.0-only

//! The figures that `make bench` measured, and the page of the book that tells them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Where the figures are, from the root of the checkout.
pub const FIGURES: &str = "bench/figures.json";
/// The page that tells them.
pub const PAGE: &str = "book/appendix/figures.md";

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// This.
    Exactly(f64),
    /// Whatever it is: it belongs to somebody else.
    None,
}

impl Goal {
    /// Whether a figure reaches it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Exactly(only) => value == only,
            Self::None => true,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (words, number) = text.rsplit_once(' ').context("a goal of one word")?;
        let number = number
            .parse()
            .with_context(|| format!("the goal {text:?}"))?;
        match words {
            "at most" => Ok(Self::AtMost(number)),
            "at least" => Ok(Self::AtLeast(number)),
            "exactly" => Ok(Self::Exactly(number)),
            _ => bail!("a goal is none, at most, at least or exactly, not {text:?}"),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(number) => write!(f, "at most {number}"),
            Self::AtLeast(number) => write!(f, "at least {number}"),
            Self::Exactly(number) => write!(f, "exactly {number}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// Checks that the page's table holds exactly the figures that were measured, and that each reaches
/// its goal. Gives how many there are.
///
/// # Errors
///
/// When a file cannot be read, or something does not agree; all that does not is named.
pub fn compare(root: &Path) -> Result<usize> {
    let read = |name: &str| {
        let path = root.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let figures = serde_json::from_str(&read(FIGURES)?).with_context(|| FIGURES.to_owned())?;
    disagreements(&figures, &read(PAGE)?)
}

/// The comparison itself.
fn disagreements(figures: &Value, page: &str) -> Result<usize> {
    let figures = figures
        .as_object()
        .context("the figures are not an object")?;
    let rows = rows(page);
    let mut wrong = Vec::new();
    for (name, figure) in figures {
        let number = figure["value"]
            .as_f64()
            .with_context(|| format!("{name} has no value"))?;
        let unit = figure["unit"]
            .as_str()
            .with_context(|| format!("{name} has no unit"))?;
        let goal = figure["goal"]
            .as_str()
            .with_context(|| format!("{name} has no goal"))?;
        if !Goal::parse(goal)?.holds(number) {
            wrong.push(format!("{name} is {number} {unit}, and has to be {goal}"));
        }
        let measured = [number.to_string(), unit.to_owned(), goal.to_owned()];
        match rows.get(name.as_str()) {
            Some(told) if *told == measured => {}
            Some(told) => wrong.push(format!("{name} is {measured:?}, the page says {told:?}")),
            None => wrong.push(format!("{name} is not in the table of {PAGE}")),
        }
    }
    for name in rows.keys().filter(|name| !figures.contains_key(**name)) {
        wrong.push(format!("{name} is in the table, but was not measured"));
    }
    ensure!(!figures.is_empty(), "there are no figures");
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(figures.len())
}

/// The rows of the page's table: a name in backquotes, a value, a unit, a goal.
fn rows(page: &str) -> BTreeMap<&str, [String; 3]> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let name = cells.next()?.strip_suffix('`')?;
            let mut cell = || cells.next().map(str::to_owned);
            Some((name, [cell()?, cell()?, cell()?]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PAGE: &str = "text\n\n| figure | value | unit | goal |\n|---|---|---|---|\n\
                        | `a` | 3 | ms | at most 3 |\n";

    #[test]
    fn a_page_that_tells_the_truth_passes() {
        let figures = json!({"a": {"value": 3, "unit": "ms", "goal": "at most 3"}});
        assert_eq!(disagreements(&figures, PAGE).unwrap(), 1);
    }

    #[test]
    fn every_kind_of_lie_is_named() {
        let a = |value: u32, unit: &str, goal: &str| json!({"value": value, "unit": unit, "goal": goal});
        for (figures, word) in [
            (json!({"a": a(2, "ms", "at most 3")}), "page says"),
            (json!({"a": a(3, "s", "at most 3")}), "page says"),
            (json!({"a": a(3, "ms", "at most 4")}), "page says"),
            (json!({"a": a(4, "ms", "at most 3")}), "has to be at most"),
            (json!({"a": a(3, "ms", "at least 8")}), "has to be at least"),
            (json!({"a": a(3, "ms", "exactly 2")}), "has to be exactly"),
            (json!({"a": a(3, "ms", "about 3")}), "a goal is"),
            (json!({"b": a(3, "ms", "none")}), "not in the table"),
            (
                json!({"a": a(3, "ms", "at most 3"), "b": a(1, "s", "none")}),
                "b is not",
            ),
            (json!({}), "no figures"),
        ] {
            let error = disagreements(&figures, PAGE).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_goal_reads_as_it_is_written() {
        for goal in [
            Goal::AtMost(2.5),
            Goal::AtLeast(8.0),
            Goal::Exactly(2.0),
            Goal::None,
        ] {
            assert_eq!(Goal::parse(&goal.to_string()).unwrap(), goal);
        }
        assert!(Goal::AtMost(3.0).holds(3.0) && !Goal::AtMost(3.0).holds(3.1));
        assert!(Goal::AtLeast(8.0).holds(8.0) && !Goal::AtLeast(8.0).holds(7.9));
    }
}
