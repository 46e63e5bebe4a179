// SPDX-License-Identifier: GPL-2.0

//! `tangle fmt`: what rustfmt does to the files is done to the chapters.

use crate::common::{Project, Ran, fence, fences};

/// Formats, which must work; afterwards `check` must have nothing to say and a second run nothing to
/// do.
fn formatted(project: &Project) -> String {
    let ran = project.run(&["fmt"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    let check = project.run(&["check"]);
    assert_eq!((check.status, check.err.as_str()), (0, ""));
    assert_eq!(project.run(&["fmt"]).out, "tangle: 0 files formatted\n");
    ran.out
}

#[test]
fn chunks_are_formatted_where_they_land() {
    let chapter = format!(
        "Text.\n\n{}More text.\n\n{}The end.\n",
        fence("rust,ignore,file:a.rs", "mod m {\n  fn f( x:u8 ){\n        // <<body>>\n }\n}\n"),
        fence("rust,ignore,chunk:body", "let a=1;\nlet b = g( a,x );\n\n\nh(b)\n")
    );
    let project = Project::one(&chapter);
    project.tangle();
    let said = formatted(&project);
    assert!(said.ends_with(&format!(
        "tangle: 1 file formatted, 1 chapter written\ntangle: book/a.md as it was is kept as {}\n",
        said.trim_end().rsplit(' ').next().expect("a path")
    )));
    let expected = format!(
        "Text.\n\n{}More text.\n\n{}The end.\n",
        fence(
            "rust,ignore,file:a.rs",
            "mod m {\n    fn f(x: u8) {\n        // <<body>>\n    }\n}\n"
        ),
        fence("rust,ignore,chunk:body", "let a = 1;\nlet b = g(a, x);\n\nh(b)\n")
    );
    assert_eq!(project.get("book/a.md"), expected);
}

#[test]
fn the_width_counts_where_a_chunk_lands() {
    let call = format!("let value = {}(first, second);\n", "f".repeat(37));
    let chapter = fences(&[
        ("rust,ignore,file:a.rs", "mod m {\n    fn f() {\n        // <<x>>\n    }\n}\n"),
        ("rust,ignore,chunk:x", &call),
    ]);
    let project = Project::one(&chapter);
    formatted(&project);
    let broken = "let value =\n    ";
    assert!(project.get("book/a.md").contains(broken), "{}", project.get("book/a.md"));
    // A book may be wider.
    let project = Project::one(&chapter);
    project.put("book.toml", "[book]\nsrc = \"book\"\n[preprocessor.weave]\ncolumns = 100\n");
    project.tangle();
    formatted(&project);
    assert_eq!(project.get("book/a.md"), chapter);
}

#[test]
fn a_border_between_chunks_stays_where_it_is() {
    let root = "fn f() {\n    // <<one>>\n    // <<two>>\n}\n";
    let chapter = |one: &str, two: &str| {
        fences(&[
            ("rust,ignore,file:a.rs", root),
            ("rust,ignore,chunk:one", one),
            ("rust,ignore,chunk:two", two),
        ])
    };
    let call = "let a = call(first_of_all, second_of_all, third_of_all, fourth, fifth);\n";
    let project = Project::one(&chapter(call, "let b = Some( S{ a, b } );\n"));
    formatted(&project);
    // One line has become several, and the next chunk still begins with its own.
    let text = project.get("book/a.md");
    let (one, two) = text.split_once("chunk:two\n").expect("both are there");
    assert!(two.starts_with("let b = Some(S { a, b });\n```\n"), "{text}");
    assert!(one.contains("fifth") && !one.contains(call), "{text}");
}

#[test]
fn a_chunk_used_twice_is_formatted_if_both_places_agree() {
    let two = "fn f() {\n    // <<x>>\n}\n\nfn g() {\n    if y {\n        // <<x>>\n    }\n}\n";
    let chapter = |x: &str| fences(&[("rust,ignore,file:a.rs", two), ("rust,ignore,chunk:x", x)]);
    let project = Project::one(&chapter("let a=1;\n"));
    formatted(&project);
    assert_eq!(project.get("book/a.md"), chapter("let a = 1;\n"));

    // Narrow enough in the first place, too wide in the second.
    let call = format!("let value = {}(first, second);\n", "f".repeat(37));
    let other = fence("rust,ignore,file:b.rs", "fn h( ){}\n");
    let text = chapter(&call) + &other;
    let project = Project::one(&text);
    let Ran { status, err, .. } = project.run(&["fmt"]);
    assert_eq!(status, 1);
    assert!(err.contains("comes from a chunk that is used more than once"), "{err}");
    assert!(err.ends_with("the files they are about are left as they are\n"), "{err}");
    let expected = text.replace("fn h( ){}", "fn h() {}");
    assert_eq!(project.get("book/a.md"), expected, "the other file is formatted all the same");
}

#[test]
fn the_starter_of_a_lab_is_formatted_too() {
    let blocks = |starter: &str, solution: &str| {
        fences(&[
            ("rust,ignore,file:a.rs", "fn f() {\n    // <<x>>\n}\n"),
            ("rust,ignore,chunk:x,lab:1,starter", starter),
            ("rust,ignore,chunk:x,lab:1,solution", solution),
        ])
    };
    let project = Project::one(&blocks("todo!( );\n", "done( );\n"));
    formatted(&project);
    assert_eq!(project.get("book/a.md"), blocks("todo!();\n", "done();\n"));
    assert_eq!(project.get("a.rs"), "fn f() {\n    done();\n}\n");
}

#[test]
fn a_dry_run_shows_what_it_would_do() {
    let chapter = fence("rust,ignore,file:a.rs", "fn f( ){}\n");
    let project = Project::one(&chapter);
    project.tangle();
    let ran = project.run(&["fmt", "-n"]);
    assert_eq!(ran.status, 1);
    let said = "book/a.md:2: 1 line changed (a.rs:1)\n+fn f() {}\ntangle: 1 file formatted, 1 chapter \
                would be written\n";
    assert_eq!(ran.out, said);
    assert_eq!(project.get("book/a.md"), chapter);
}

#[test]
fn what_cannot_be_formatted_is_said_at_its_line() {
    let chapter = fences(&[
        ("rust,ignore,file:a.rs", "fn f( ){}\nlet = 3;\n"),
        ("rust,ignore,file:b.rs", "fn g( ){}\n"),
    ]);
    let project = Project::one(&chapter);
    project.tangle();
    let ran = project.run(&["fmt"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("rustfmt cannot read a.rs"), "{}", ran.err);
    assert!(ran.err.contains("book/a.md:3:1"), "{}", ran.err);
    assert_eq!(project.get("book/a.md"), chapter.replace("g( ){}", "g() {}"));
}

#[test]
fn a_file_changed_by_hand_is_synced_first() {
    let project = Project::one(&fence("rust,ignore,file:a.rs", "fn f( ){}\n"));
    project.tangle();
    project.put("a.rs", "fn g( ){}\n");
    let ran = project.run(&["fmt"]);
    assert_eq!((ran.status, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("a.rs was changed by hand"), "{}", ran.err);
    assert_eq!(project.run(&["sync", "-q"]).status, 0);
    formatted(&project);
    assert_eq!(project.get("book/a.md"), fence("rust,ignore,file:a.rs", "fn g() {}\n"));
}
