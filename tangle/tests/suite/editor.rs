// SPDX-License-Identifier: GPL-2.0

//! The repository's `.vscode/tasks.json`: its pattern is held against real messages.

use std::path::Path;

use regex::Regex;
use serde_json::Value;

use crate::common::{Project, fence, fences};

/// The tasks with a pattern, each with its name.
fn patterns() -> Vec<(String, Regex, Value)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.vscode/tasks.json");
    let text = std::fs::read_to_string(&path).expect("the repository has its editor tasks");
    let tasks: Value = serde_json::from_str(&text).expect("JSON");
    let tasks = tasks["tasks"].as_array().expect("a list").iter();
    tasks
        .filter_map(|task| {
            let pattern = task["problemMatcher"]["pattern"].clone();
            let regex = Regex::new(pattern["regexp"].as_str()?).expect("a pattern");
            Some((task["label"].as_str()?.to_owned(), regex, pattern))
        })
        .collect()
}

/// What an editor reads in a line: file, line, column, severity, message.
fn read(pattern: &(String, Regex, Value), line: &str) -> Option<[String; 5]> {
    let (_, regex, groups) = pattern;
    let found = regex.captures(line)?;
    let group = |name: &str| {
        let index = groups[name].as_u64().expect("the number of a group") as usize;
        found.get(index).map_or("", |text| text.as_str()).to_owned()
    };
    Some(["file", "line", "column", "severity", "message"].map(group))
}

#[test]
fn an_editor_finds_the_places_in_all_messages() {
    let all = patterns();
    assert!(all.len() >= 6, "{all:?}");
    let wrong = Project::one(&fence("c,file:a.c", "/* <<gone>> */\n"));
    let ours = wrong.run(&["--message-format", "short"]).err;
    let project = Project::one(&fences(&[
        ("rust,ignore,file:m/a.rs", "fn f() {\n    // <<x>>\n}\n"),
        ("rust,ignore,chunk:x", "g();\n"),
    ]));
    project.tangle();
    let compilers = "m/a.rs:2:5: error[E0425]: cannot find function `g`\n\
                     m/a.rs:2:7: warning: unused\nm/a.rs:1:1: note: here\nother.c:1:2: error: no\n";
    let said = project.run_in(&project.root(), &["filter"], compilers);
    let theirs = String::from_utf8(said.stdout).expect("UTF-8");
    for pattern in &all {
        let found: Vec<_> = ours.lines().filter_map(|line| read(pattern, line)).collect();
        let expected = ["book/a.md", "2", "6", "error", "no chunk is called `gone`"];
        assert_eq!(found, [expected.map(str::to_owned)], "{} in {ours}", pattern.0);
        let found: Vec<_> = theirs.lines().filter_map(|line| read(pattern, line)).collect();
        let expected = [
            ["book/a.md", "8", "1", "error", "cannot find function `g` (m/a.rs:2)"],
            ["book/a.md", "8", "3", "warning", "unused (m/a.rs:2)"],
            ["book/a.md", "2", "1", "note", "here (m/a.rs:1)"],
        ];
        assert_eq!(
            found,
            expected.map(|line| line.map(str::to_owned)),
            "{} in {theirs}",
            pattern.0
        );
    }
}
