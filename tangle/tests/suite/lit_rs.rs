// SPDX-License-Identifier: GPL-2.0

//! Ten things that lit-rs, the closest relative of this tool, does wrong. Here they are right.

use std::fs;

use crate::common::{Project, fence, fences};

/// A chain of three was cut after the second, and its placeholder stayed in the output.
#[test]
fn defect_01_a_grandchild_is_expanded() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:a.rs", "// <<child>>\n"),
        ("rust,ignore,chunk:child", "// <<grandchild>>\n"),
        ("rust,ignore,chunk:grandchild", "// <<great-grandchild>>\n"),
        ("rust,ignore,chunk:great-grandchild", "fn f() {}\n"),
    ]));
    project.tangle();
    assert_eq!(project.get("a.rs"), "fn f() {}\n");
}

/// A child whose parent had no slot for it was dropped, with exit status 0.
#[test]
fn defect_02_a_chunk_without_a_place_is_an_error() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:a.rs", "fn f() {}\n"),
        ("rust,ignore,chunk:child", "fn g() {}\n"),
    ]));
    let said = project.fails();
    assert!(said.contains("the chunk `child` is never used"), "{said}");
    assert!(said.contains("book/a.md:5:"), "{said}");
    assert!(!project.has("a.rs"));
}

/// The name of a parent that does not exist was not reported.
#[test]
fn defect_03_an_unknown_name_is_an_error() {
    let project = Project::one(&fence("rust,ignore,file:a.rs", "// <<nowhere>>\n"));
    let said = project.fails();
    assert!(said.contains("no chunk is called `nowhere`"), "{said}");
    assert!(!project.has("a.rs"));
}

/// Two blocks that need each other both vanished, with exit status 0.
#[test]
fn defect_04_a_cycle_is_an_error() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:a.rs", "fn f() {}\n"),
        ("rust,ignore,chunk:one", "// <<two>>\n"),
        ("rust,ignore,chunk:two", "// <<one>>\n"),
    ]));
    let said = project.fails();
    assert!(said.contains("a cycle: one \u{2192} two \u{2192} one"), "{said}");
}

/// The placeholder `{{}}` was found in `format!("{{}}")`.
#[test]
fn defect_05_braces_are_just_text() {
    let line = "let s = format!(\"{{}} {{{}}}\", \"<<x>>\"); // <<x>> {{}}\n";
    let project = Project::one(&fence("rust,ignore,file:a.rs", line));
    project.tangle();
    assert_eq!(project.get("a.rs"), line);
}

/// A misspelt option was ignored, and with it what it meant.
#[test]
fn defect_06_a_misspelt_tag_is_an_error() {
    for (info, nearest) in [
        ("rust,ignore,flie:a.rs", "file:a.rs"),
        ("rust,ignore,file:a.rs,apend", "append"),
        ("rust,ignore,file:a.rs,hdie", "hide"),
        ("rust,ignroe,file:a.rs", "ignore"),
        ("rust,ignore,chunks:a", "chunk:a"),
    ] {
        let said = Project::one(&fence(info, "")).fails();
        assert!(said.contains(&format!("did you mean `{nearest}`?")), "{info}: {said}");
    }
}

/// Errors had neither file nor line.
#[test]
fn defect_07_an_error_has_file_line_and_column() {
    let chapter =
        format!("# Title\n\nText.\n\n{}", fence("c,file:a.c", "int a;\n  /* <<gone>> */\n"));
    let project = Project::new(&[("first.md", "# One\n"), ("deep/second.md", &chapter)]);
    let said = project.fails();
    assert!(said.contains("book/deep/second.md:7:8"), "{said}");
}

/// Every run touched every output, so that make rebuilt everything.
#[test]
fn defect_08_a_run_without_a_change_touches_nothing() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:a.rs", "fn f() {}\n"),
        ("rust,ignore,file:b/b.rs", "fn g() {}\n"),
    ]));
    project.tangle();
    let stamp = |path: &str| {
        let meta = fs::metadata(project.path(path)).expect("the file is there");
        (meta.modified().expect("it has a time"), std::os::unix::fs::MetadataExt::ino(&meta))
    };
    let all = ["a.rs", "b/b.rs", ".tangle/state.json", ".tangle/map.json"];
    let before = all.map(stamp);
    assert_eq!(project.tangle(), "tangle: 2 files, nothing changed\n");
    assert_eq!(all.map(stamp), before);

    // Only the one that changed is written, also when prose moves everything down.
    let text = project.get("book/a.md");
    project.put("book/a.md", format!("New prose.\n\n{}", text.replace("fn g", "fn h")));
    assert_eq!(project.tangle(), "tangle: 2 files, 1 written\n");
    assert_eq!(stamp("a.rs"), before[0]);
    assert_ne!(stamp("b/b.rs"), before[1]);
}

/// A renamed target left the old file behind.
#[test]
fn defect_09_a_stale_output_is_removed() {
    let project = Project::one(&fence("rust,ignore,file:old/deep/a.rs", "fn f() {}\n"));
    project.tangle();
    project.put("book/a.md", fence("rust,ignore,file:new/a.rs", "fn f() {}\n"));
    assert_eq!(project.tangle(), "tangle: 1 file, 1 written, 1 removed\n");
    assert!(!project.has("old"), "the folders go with their last file");
    assert_eq!(project.get("new/a.rs"), "fn f() {}\n");
}

/// Only the first line of what replaced a placeholder was indented.
#[test]
fn defect_10_every_line_is_indented() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:a.rs", "mod m {\n    // <<body>>\n}\n"),
        ("rust,ignore,chunk:body", "fn f() {\n\n\t// <<inner>>\n}\n"),
        ("rust,ignore,chunk:inner", "one();\n  two();\n"),
    ]));
    project.tangle();
    let expected = "mod m {\n    fn f() {\n\n    \tone();\n    \t  two();\n    }\n}\n";
    assert_eq!(project.get("a.rs"), expected);
}
