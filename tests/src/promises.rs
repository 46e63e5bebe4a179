// SPDX-License-Identifier: GPL-2.0-only

//! `PROMISES.md`: each promise names the tests that keep it, and each test exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// A promise: the line it begins at, and the tests that keep it.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    line: usize,
    tests: Vec<String>,
}

/// What stands before the tests' names.
const KEPT: &str = "(kept by ";

/// The promises of a text.
fn promises(text: &str) -> Result<Vec<Promise>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let Some(first) = line.strip_prefix("- ") else {
            continue;
        };
        let rest = lines[n + 1..]
            .iter()
            .take_while(|line| line.starts_with("  "));
        let whole = rest.fold(first.to_owned(), |all, line| all + " " + line.trim());
        let kept = whole
            .split_once(KEPT)
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        let kept = kept.with_context(|| format!("line {}: no `{KEPT}...)` at its end", n + 1))?;
        let mut tests = Vec::new();
        for name in kept.split(", ") {
            let name = name
                .strip_prefix('`')
                .and_then(|name| name.strip_suffix('`'));
            let name = name.with_context(|| format!("line {}: {kept}", n + 1))?;
            tests.push(name.to_owned());
        }
        found.push(Promise { line: n + 1, tests });
    }
    Ok(found)
}

/// The names of all functions that are tests of cargo's, in the text of a source or a chapter.
fn tests_of_cargo(text: &str, names: &mut BTreeSet<String>) {
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if marked {
                names.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
            }
            marked = false;
        }
    }
}

/// All files below a folder with one of these endings.
pub(crate) fn files(
    folder: &Path,
    endings: &[&str],
    found: &mut Vec<(String, String)>,
) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "node_modules") {
                files(&path, endings, found)?;
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            found.push((path.display().to_string(), text));
        }
    }
    Ok(())
}

/// What there is to be named.
struct Known {
    /// Functions that are tests of cargo's.
    functions: BTreeSet<String>,
    /// The sources of the suite: a test `section/name` is a word in one of them.
    suite: Vec<(String, String)>,
}

impl Known {
    fn of(root: &Path) -> Result<Self> {
        let mut sources = Vec::new();
        files(&root.join("book"), &[".md"], &mut sources)?;
        let mut suite = Vec::new();
        files(&root.join("tests/src"), &[".rs"], &mut suite)?;
        let mut functions = BTreeSet::new();
        for (_, text) in sources.iter().chain(&suite) {
            tests_of_cargo(text, &mut functions);
        }
        // What names a test here is no test.
        suite.retain(|(path, _)| !path.ends_with("/promises.rs"));
        Ok(Self { functions, suite })
    }

    /// Whether there is a test of this name.
    fn has(&self, name: &str) -> Result<()> {
        if let Some(function) = name.strip_suffix("()") {
            ensure!(
                self.functions.contains(function),
                "no test of cargo's is called {name}"
            );
        } else if let Some((section, test)) = name.split_once('/') {
            let word = |text: &str, word: &str| text.contains(&format!("\"{word}\""));
            // The section's own file, or the suite itself.
            let own = self.suite.iter().find(|(path, _)| {
                path.ends_with(&format!("/{section}.rs"))
                    || path.ends_with(&format!("/{section}/mod.rs"))
            });
            let in_own = own.is_some_and(|(_, text)| word(text, test));
            let in_suite = self.suite.iter().any(|(path, text)| {
                path.ends_with("/bin/suite.rs") && word(text, section) && word(text, test)
            });
            ensure!(in_own || in_suite, "no test of the suite is called {name}");
        } else if inside::cases::find(name).is_none() {
            bail!("no case is called {name}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::root;

    #[test]
    fn every_promise_is_kept_by_tests_that_exist() {
        let text = fs::read_to_string(root().join("PROMISES.md")).expect("it is there");
        let promises = promises(&text).expect("each line names its tests");
        assert!(promises.len() >= 30, "only {} promises", promises.len());
        let known = Known::of(&root()).expect("the sources can be read");
        let mut wrong = Vec::new();
        for promise in &promises {
            for test in &promise.tests {
                if let Err(error) = known.has(test) {
                    wrong.push(format!("PROMISES.md:{}: {error}", promise.line));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_test_that_is_missing_is_named() {
        let known = Known::of(&root()).expect("the sources can be read");
        for (name, why) in [
            ("no-such-case", "no case is called"),
            ("tools/no-such-test", "no test of the suite"),
            ("nowhere/clippy", "no test of the suite"),
            ("root()", "no test of cargo's"),
        ] {
            let error = known.has(name).expect_err(name).to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
        for name in [
            "walls",
            "tools/clippy",
            "trip/counted",
            "a_frame_leads_back()",
        ] {
            known.has(name).expect(name);
        }
    }

    #[test]
    fn a_promise_without_a_test_is_a_mistake() {
        let good = "# A\n\n- One\n  two. (kept by `a`,\n  `b()`)\n- Three. (kept by `c/d`)\n";
        let found = promises(good).expect("it is in order");
        let tests: Vec<_> = found
            .iter()
            .map(|one| (one.line, one.tests.join(" ")))
            .collect();
        assert_eq!(tests, [(3, "a b()".to_owned()), (6, "c/d".to_owned())]);
        assert!(promises("- A wish.\n").is_err());
        assert!(promises("- A wish. (kept by walls)\n").is_err());
    }
}
