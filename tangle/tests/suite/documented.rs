// SPDX-License-Identifier: GPL-2.0

//! What the README and the book's page on building promise to programs: exit statuses, the fields
//! of all JSON, and the examples.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::{Project, fence, fences};

/// The pages that say it.
fn pages() -> [(PathBuf, String); 2] {
    let tangle = Path::new(env!("CARGO_MANIFEST_DIR"));
    [tangle.join("README.md"), tangle.join("../book/appendix/building.md")].map(|path| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, text)
    })
}

/// The names of all fields, also of objects inside.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.insert(name.clone());
                fields(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn every_field_is_on_both_pages() {
    let both = fences(&[
        ("rust,ignore,file:a.rs", "fn f() {\n    // <<x>>\n}\n"),
        ("rust,ignore,chunk:x", "g();\n"),
    ]);
    let project = Project::one(&both);
    project.tangle();
    let mut found = BTreeSet::new();
    let mut all = |args: &[&str]| {
        let ran = project.run(args);
        assert_eq!(ran.status, 0, "{args:?}: {}", ran.err);
        ran.out.lines().for_each(|line| fields(&json(line), &mut found));
    };
    all(&["check", "--json"]);
    all(&["locate", "--json", "a.rs:2:5"]);
    project.put("a.rs", "fn f() {\n    h();\n}\n");
    all(&["sync", "--json"]);
    project.put("book/a.md", both.replace("g();", "g( );"));
    all(&["fmt", "--json"]);
    project.put("book/a.md", both.replace("chunk:x", "chunk:y"));
    let ran = project.run(&["--message-format", "json"]);
    assert_eq!(ran.status, 1);
    ran.err.lines().for_each(|line| fields(&json(line), &mut found));
    assert!(found.len() > 25, "{found:?}");
    for (path, text) in pages() {
        for field in &found {
            assert!(text.contains(&format!("`{field}`")), "{} lacks `{field}`", path.display());
        }
    }
}

#[test]
fn the_exit_status_is_as_both_pages_say() {
    let good = Project::one(&fence("c,file:a.c", "1\n"));
    let bad = Project::one(&fence("c,file:a.c", "/* <<gone>> */\n"));
    let warned = Project::one("<!-- title: lost -->\n\nText.\n");
    let none = tempfile::TempDir::new().expect("a temporary folder");
    for args in [&["tangle"][..], &["check"], &["sync"], &["fmt", "-n"], &["locate", "a.c:1"]] {
        assert_eq!(good.run(args).status, 0, "{args:?}");
        assert_eq!(bad.run(args).status, 1, "{args:?}");
        let ran = good.run_in(none.path(), args, "");
        assert_eq!(ran.status.code(), Some(2), "{args:?} where no book is");
    }
    assert_eq!(warned.run(&[]).status, 0);
    assert_ne!(warned.run(&[]).err, "");
    for args in [&["--lab", "x"][..], &["nothing"], &["locate"], &["check", "--until", "a.md"]] {
        assert_eq!(good.run(args).status, 2, "{args:?}");
    }
    for (path, text) in pages() {
        for (status, what) in [(0, "done"), (1, "something is wrong"), (2, "wrong usage")] {
            let row = format!("| {status} | {what}");
            assert!(text.contains(&row), "{} lacks {row}", path.display());
        }
    }
}

/// An example as cargo has built it for these tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("this program");
    let folder = test.parent().and_then(Path::parent).expect("the target folder");
    Command::new(folder.join("examples").join(name))
}

#[test]
fn the_examples_run() {
    let sundials = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/second-book");
    let ran = example("outline").arg(sundials).output().expect("the example");
    assert!(ran.status.success());
    let said = String::from_utf8(ran.stdout).expect("UTF-8");
    assert!(said.starts_with("Makefile (3 lines)\n  "), "{said}");
    assert!(said.lines().any(|line| line.starts_with("    ")), "chunks in chunks: {said}");

    let project = Project::new(&[]);
    let ran = example("big_book").arg(project.root()).output().expect("the example");
    assert!(ran.status.success());
    assert_eq!(project.tangle(), "tangle: 40 files, 40 written\n");
}
