// SPDX-License-Identifier: GPL-2.0

//! What a book can choose, in `[preprocessor.weave]` of its `book.toml`.

use crate::problem::{Finding, Problem};
use crate::source::{Place, Role, Source, SourceId};

/// The choices of a book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Most columns that a line of a chapter's code may have, and the width for rustfmt; 0: any,
    /// and rustfmt's own.
    pub columns: usize,
    /// Most lines that a block may have; 0: any.
    pub lines: usize,
    /// The edition that rustfmt takes `.rs` files for.
    pub edition: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { columns: 72, lines: 30, edition: "2021".to_owned() }
    }
}

/// Our words, and those of mdBook.
const OURS: [&str; 4] = ["columns", "lines", "edition", "glossary"];
const THEIRS: [&str; 6] = ["command", "before", "after", "renderer", "renderers", "optional"];

impl Settings {
    /// Reads the settings of a book, with what is wrong about them.
    #[must_use]
    pub fn of(sources: &[Source]) -> (Self, Vec<Finding>) {
        let mut settings = Self::default();
        let mut findings = Vec::new();
        let config = (0..).map(SourceId).zip(sources).find(|(_, s)| s.role == Role::Config);
        let Some((id, source)) = config else { return (settings, findings) };
        // What is no TOML at all is said where the folder of the chapters is looked for.
        let table: Option<toml::Table> = toml::from_str(source.body()).ok();
        let weave = table.as_ref().and_then(|table| table.get("preprocessor")?.get("weave"));
        let Some(weave) = weave.and_then(toml::Value::as_table) else {
            return (settings, findings);
        };
        for (key, value) in weave {
            let number = || value.as_integer().and_then(|n| usize::try_from(n).ok());
            let wrong = match key.as_str() {
                "columns" | "lines" => match number() {
                    Some(n) if key == "columns" => {
                        settings.columns = n;
                        None
                    }
                    Some(n) => {
                        settings.lines = n;
                        None
                    }
                    None => Some(format!("`{key}` is a number, and 0 is no limit")),
                },
                "edition" => match value.as_str() {
                    Some(edition @ ("2015" | "2018" | "2021" | "2024")) => {
                        edition.clone_into(&mut settings.edition);
                        None
                    }
                    _ => Some("`edition` is \"2015\", \"2018\", \"2021\" or \"2024\"".to_owned()),
                },
                // Whether it is a chapter is known to the weave.
                "glossary" if value.is_str() => None,
                "glossary" => Some("`glossary` is the path of a chapter".to_owned()),
                other if THEIRS.contains(&other) => None,
                other => {
                    let nearest =
                        OURS.into_iter().find(|ours| strsim::osa_distance(ours, other) < 3);
                    let help =
                        nearest.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                    Some(format!("`{other}` is unknown in [preprocessor.weave]{help}"))
                }
            };
            if let Some(wrong) = wrong {
                let at = Place { source: id, span: line_of_key(source, key) };
                findings.push(Finding::error(Problem::Config(wrong), at));
            }
        }
        (settings, findings)
    }

    /// The arguments for rustfmt.
    pub(crate) fn rustfmt(&self) -> Vec<String> {
        let mut args = vec!["--edition".to_owned(), self.edition.clone()];
        if self.columns > 0 {
            args.extend(["--config".to_owned(), format!("max_width={}", self.columns)]);
        }
        args
    }
}

/// Where a key stands, as well as it can be found: the parser's tables have no places.
fn line_of_key(source: &Source, key: &str) -> std::ops::Range<usize> {
    let section = source.text.find("[preprocessor.weave]").unwrap_or(0);
    let mut at = section;
    for line in source.text[section..].split_inclusive('\n') {
        if line.trim_start().strip_prefix(key).is_some_and(|r| r.trim_start().starts_with('=')) {
            return at..at + line.trim_end().len();
        }
        at += line.len();
    }
    section..section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> (Settings, Vec<String>) {
        let source = Source::new("book.toml", Role::Config, text.as_bytes().to_vec());
        let sources = [source];
        let (settings, findings) = Settings::of(&sources);
        let said = findings.iter().map(|finding| {
            let place = finding.location(&sources).unwrap_or_default();
            format!("{place} {}", finding.problem)
        });
        (settings, said.collect())
    }

    #[test]
    fn defaults_and_choices() {
        assert_eq!(settings("[book]\n"), (Settings::default(), vec![]));
        let text = "[preprocessor.weave]\ncommand = \"x\"\ncolumns = 100\nlines = 0\n\
                    edition = \"2024\"\nglossary = \"a.md\"\n";
        let chosen = Settings { columns: 100, lines: 0, edition: "2024".into() };
        assert_eq!(settings(text), (chosen, vec![]));
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        let text = "[preprocessor.weave]\ncolumns = -1\ncolums = 3\nedition = 2021\n\
                    glossary = 4\n";
        let said = settings(text).1.join("\n");
        for expected in [
            "book.toml:2:1 book.toml: `columns` is a number",
            "book.toml:3:1 book.toml: `colums` is unknown in [preprocessor.weave]; did you mean \
             `columns`?",
            "book.toml:4:1 book.toml: `edition` is",
            "book.toml:5:1 book.toml: `glossary` is",
        ] {
            assert!(said.contains(expected), "{said}");
        }
    }
}
