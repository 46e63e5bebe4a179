// SPDX-License-Identifier: GPL-2.0

//! `tangle check`.

use crate::common::{Project, fence, fences};

/// Tangles, then checks; gives the codes of what was found with their places.
fn check(chapter: &str) -> Vec<String> {
    let project = Project::one(chapter);
    project.tangle();
    let checked = tangle::check::run(&project.root(), false);
    let found: Vec<String> = checked
        .findings
        .iter()
        .map(|f| {
            let place = f.location(&checked.sources).unwrap_or_default();
            format!("{} {}", f.problem.code(), place.trim_start_matches("book/a.md:"))
        })
        .collect();
    let ran = project.run(&["check"]);
    assert_eq!(ran.status, i32::from(!found.is_empty()), "{}", ran.err);
    found
}

#[test]
fn a_good_book_passes_and_is_counted() {
    let project = Project::one(&format!(
        "{}<!-- why: dull -->\n{}",
        fences(&[
            ("rust,ignore,file:a.rs", "fn f() {\n    // <<x>>\n    // <<y>>\n}\n"),
            ("rust,ignore,chunk:x", "g();\n")
        ]),
        fence("rust,ignore,chunk:y,hide", "h();\n")
    ));
    project.tangle();
    let ran = project.run(&["check"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "tangle: 4 lines in 1 file from 3 blocks: 3 shown, 1 hidden with a reason, \
         0 hidden without\n"
    );
    assert_eq!(project.run(&["check", "-q"]).out, "");
    let json = project.run(&["check", "--json"]).out;
    let audit: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&audit["lines"], &audit["hidden"]), (&4.into(), &1.into()));
}

#[test]
fn rustfmt_is_reported_at_the_line_of_the_chapter() {
    let chapter = fences(&[
        ("rust,ignore,file:a.rs", "fn f() {\n    // <<x>>\n    // <<x>>\n}\n"),
        ("rust,ignore,chunk:x", "g();\nh( 1 );\n"),
    ]);
    assert_eq!(check(&chapter), ["rustfmt 10:1"], "once, though it is expanded twice");
    // Narrow enough in the chapter, but not where it lands.
    let deep = "mod m {\n    fn f() {\n        // <<x>>\n    }\n}\n";
    let call = |name: usize| format!("let value = {}(first, second);\n", "f".repeat(name));
    let book =
        |call: &str| fences(&[("rust,ignore,file:a.rs", deep), ("rust,ignore,chunk:x", call)]);
    assert_eq!(check(&book(&call(36))), Vec::<String>::new(), "72 columns in the file");
    let wide = book(&call(37));
    assert_eq!(check(&wide), ["rustfmt 10:1"]);
}

#[test]
fn what_does_not_parse_is_reported_at_the_line_of_the_chapter() {
    let chapter = fences(&[
        ("rust,ignore,file:a.rs", "fn f() {\n    // <<x>>\n}\n"),
        ("rust,ignore,chunk:x", "g();\nlet = ;\n"),
    ]);
    assert_eq!(check(&chapter), ["rustfmt-parse 9:1"]);
}

#[test]
fn trailing_blanks() {
    assert_eq!(
        check(&fence("c,file:a.c", "int a; \nb\n \n")),
        ["trailing-blanks 2:7", "trailing-blanks 4:1"]
    );
}

#[test]
fn lines_that_mdbook_would_change() {
    let rust = "fn f() {\n    r\"\n# x\n#\n##y\n    \";\n}\n";
    let found = check(&fence("rust,ignore,file:a.rs", rust));
    assert_eq!(found, ["hidden-line 4:1", "hidden-line 5:1", "hidden-line 6:1"]);
    // Elsewhere `#` is an ordinary character.
    assert!(check(&fence("sh,file:a", "# x\n#\n## y\n")).is_empty());
    assert!(
        check(&fence("rust,ignore,file:a.rs", "#![no_std]\n\n#[test]\nfn f() {}\n")).is_empty()
    );
    assert_eq!(check(&fence("text,file:a", "a {{#include x}}\n")), ["expands 2:3"]);
}

#[test]
fn hide_wants_a_reason() {
    assert_eq!(check(&fence("c,file:a.c,hide", "int a;\n")), ["no-why 1:15"]);
    let empty = format!("<!-- why: -->\n{}", fence("c,file:a.c,hide", "int a;\n"));
    assert_eq!(check(&empty), ["no-why 2:15"]);
}

#[test]
fn no_block_is_longer_than_thirty_lines() {
    assert!(check(&fence("c,file:a.c", &"x\n".repeat(30))).is_empty());
    assert_eq!(check(&fence("c,file:a.c", &"x\n".repeat(31))), ["too-long 1:1"]);
}

#[test]
fn no_line_is_wider_than_the_page() {
    assert!(check(&fence("c,file:a.c", &format!("{}\n", "\u{e4}".repeat(72)))).is_empty());
    assert_eq!(check(&fence("c,file:a.c", &format!("{}\n", "x".repeat(73)))), ["too-wide 2:1"]);
}

#[test]
fn outputs_are_what_a_fresh_tangle_gives() {
    let project = Project::one(&fences(&[("text,file:a", "1\n"), ("text,file:b", "1\n")]));
    let codes = |project: &Project| {
        let checked = tangle::check::run(&project.root(), false);
        checked.findings.iter().map(|f| f.problem.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&project), ["a is missing", "b is missing"]);
    project.tangle();
    assert!(codes(&project).is_empty());
    project.put("a", "2\n");
    assert_eq!(codes(&project), ["a is not what the chapters say"]);
    project.put("a", "1\n");
    project.put("book/a.md", fence("text,file:a", "1\n"));
    assert_eq!(codes(&project), ["b is stale: no chapter writes it any more"]);
    assert_eq!(project.get("b"), "1\n", "check writes nothing");
}

#[test]
fn errors_of_the_book_come_with_the_traps() {
    let project = Project::one(&fence("c,file:a.c,hide", "// <<gone>>\nx \n"));
    let checked = tangle::check::run(&project.root(), false);
    let codes: Vec<_> = checked.findings.iter().map(|f| f.problem.code()).collect();
    assert_eq!(codes, ["no-why", "undefined", "trailing-blanks"]);
    assert!(checked.audit.is_none());
}
