// SPDX-License-Identifier: GPL-2.0-only

//! The figures that `make bench` measured, and the page of the book that tells them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Where the figures are, from the root of the checkout.
pub const FIGURES: &str = "bench/figures.json";
/// The page that tells them.
pub const PAGE: &str = "book/appendix/figures.md";

/// Checks that the page's table holds exactly the figures that were measured, and that each is
/// within its limit. Gives how many there are.
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
        if let Some(limit) = figure["limit"].as_f64().filter(|limit| number > *limit) {
            wrong.push(format!(
                "{name} is {number} {unit}, and may be {limit} at most"
            ));
        }
        let measured = (number.to_string(), unit.to_owned());
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

/// The rows of the page's table: a name in backquotes, a value, a unit.
fn rows(page: &str) -> BTreeMap<&str, (String, String)> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let name = cells.next()?.strip_suffix('`')?;
            Some((name, (cells.next()?.to_owned(), cells.next()?.to_owned())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PAGE: &str = "text\n\n| figure | value | unit |\n|---|---|---|\n| `a` | 3 | ms |\n";

    #[test]
    fn a_page_that_tells_the_truth_passes() {
        let figures = json!({"a": {"value": 3, "unit": "ms", "limit": 3}});
        assert_eq!(disagreements(&figures, PAGE).unwrap(), 1);
    }

    #[test]
    fn every_kind_of_lie_is_named() {
        for (figures, word) in [
            (json!({"a": {"value": 4, "unit": "ms"}}), "page says"),
            (json!({"a": {"value": 3, "unit": "s"}}), "page says"),
            (
                json!({"a": {"value": 3, "unit": "ms", "limit": 2.5}}),
                "at most",
            ),
            (json!({"b": {"value": 3, "unit": "ms"}}), "not in the table"),
            (
                json!({"a": {"value": 3, "unit": "ms"}, "b": {"value": 1, "unit": "s"}}),
                "b is not",
            ),
            (json!({}), "no figures"),
        ] {
            let error = disagreements(&figures, PAGE).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
