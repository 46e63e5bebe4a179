// SPDX-License-Identifier: GPL-2.0

//! How messages look: snapshots, so that a change is seen and agreed to.

use tangle::problem::{Look, render};

use crate::common::fence;
use crate::syntax::build;

/// The messages of a book.
fn messages(chapters: &[(&str, &str)]) -> String {
    let book = build(chapters);
    // Control characters made visible, so that a snapshot is text.
    let said = render(book.findings(), book.sources(), Look::default());
    said.replace('\0', "\u{2400}").replace('\r', "\u{240d}")
}

macro_rules! message {
    ($name:ident, $($text:expr),+) => {
        #[test]
        fn $name() {
            let chapter = [$($text),+].concat();
            insta::assert_snapshot!(messages(&[("book/a.md", &chapter)]));
        }
    };
}

const ROOT: &str = "# Title\n\n```rust,ignore,file:module/a.rs\n// <<start>>\n```\n\n";
const START: &str = "```rust,ignore,chunk:start\nfn start() {}\n```\n\n";

message!(
    undefined_with_a_near_name,
    ROOT,
    "Prose.\n\n",
    START,
    "```c,file:b.c\n  /* <<strat>> */\n```\n"
);
message!(undefined_with_nothing_near, "```toml,file:Cargo.toml\n# <<quite-different>>\n```\n");
message!(
    undefined_but_in_a_list,
    ROOT,
    "- item\n  ```rust,ignore,chunk:start\n  fn f() {}\n  ```\n"
);
message!(unused, ROOT, START, "```c,chunk:lonely\nint a;\n```\n");
message!(unused_because_of_its_place, START, "```rust,ignore,file:a.rs\nf(); // <<start>>\n```\n");
message!(unused_because_of_the_language, START, "```toml,file:a\n// <<start>>\n```\n");
message!(cycle, "```c,chunk:a\n// <<b>>\n```\n\n```c,chunk:b\n// <<a>>\n```\n");
message!(duplicate_root, ROOT, START, "```rust,ignore,file:module/a.rs\n```\n");
message!(append_first, "```rust,ignore,file:module/a.rs,append\n```\n");
message!(append_on_chunk, "```c,file:a.c\n// <<x>>\n```\n\n```c,chunk:x,append\n```\n");
message!(file_and_chunk, "```c,file:a.c,chunk:x\n```\n");
message!(unknown_tag, "```rust,ignore,fiel:a.rs\n```\n");
message!(unknown_tag_with_nothing_near, "```rust,ignore,file:a.rs,banana\n```\n");
message!(hidden_is_hide, "```rust,ignore,file:a.rs,hidden\n```\n");
message!(equals, "```rust,ignore,file=a.rs\n```\n");
message!(no_value, "```rust,chunk:\n```\n\n```rust,file\n```\n");
message!(tag_alone, "```rust,hide\n```\n\n```rust,append\n```\n");
message!(spare_value_and_twice, "```rust,file:a.rs,hide:x,hide,hide\n```\n");
message!(language_first, "```file:a.rs\n```\n");
message!(bad_name, "```c,chunk:My_Chunk\n```\n");
message!(bad_reference, "```c,file:a.c\n// <<My Chunk>>\n```\n");
message!(bad_path, "```c,file:../a.c\n```\n\n```c,file:/etc/passwd\n```\n");
message!(file_and_folder, "```c,file:a\n```\n\n```c,file:a/b\n```\n");
message!(forbidden, "```c,file:book/a.md\n```\n");
message!(
    labs,
    "```c,file:a.c\n/* <<x>> */\n```\n\n```c,chunk:x,lab:3,starter\n```\n\n",
    "```c,chunk:x,lab:three,solution\n```\n\n```c,chunk:x,starter\n```\n"
);
message!(
    replaces,
    "```c,file:a.c\n/* <<body>> */\n```\n\n```c,chunk:body\n```\n\n",
    "```c,replaces:bdy\n```\n\n```c,replaces:body,append\n```\n\n<!-- needs: a.mt -->\n"
);
message!(unclosed, "```c,file:a.c\nint a;\n");
message!(nul_and_lone_cr, "a\0b\n\nc\rd\n");
message!(comments, "<!-- tilte: T -->\n```c,file:a.c\n```\n\n<!-- title: lost -->\n\nProse.\n");

#[test]
fn places_in_two_chapters() {
    insta::assert_snapshot!(messages(&[
        ("book/one.md", &fence("c,file:a.c", "int a;\n")),
        ("book/two.md", &format!("\u{feff}{}", fence("c,file:a.c", "int b;\n"))),
    ]));
}

#[test]
fn invalid_utf8() {
    let input = tangle::config::Input::from_chapters([("book/a.md", &b"ok\nfine \xff here\n"[..])]);
    let book = tangle::Book::build(input);
    insta::assert_snapshot!(render(book.findings(), book.sources(), Look::default()));
}

#[test]
fn what_check_says() {
    let chapter = "```rust,ignore,file:a.rs,hide\nfn f() {} \n# x {{#y}}\n```\n";
    let book = build(&[("book/a.md", chapter)]);
    let traps = tangle::check::traps(&book);
    insta::assert_snapshot!(render(&traps, book.sources(), Look::default()));
}

#[test]
fn for_programs() {
    use crate::common::Project;
    let chapter =
        "Text.\n\n```c,file:a.c\n/* \u{e4} */\n  /* <<gone>> */\n```\n\n```c,chunk:x\n```\n";
    let project = Project::one(chapter);
    let ran = project.run(&["--message-format", "short"]);
    assert_eq!(ran.status, 1);
    assert_eq!(
        ran.err,
        "book/a.md:5:8: error[undefined]: no chunk is called `gone`\nbook/a.md:8:12: \
         error[unused]: the chunk `x` is never used\ntangle: 2 errors; nothing was written\n"
    );
    let ran = project.run(&["check", "--message-format=json"]);
    let lines: Vec<serde_json::Value> =
        ran.err.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{}", ran.err);
    let expected = serde_json::json!({
        "severity": "error",
        "code": "undefined",
        "message": "no chunk is called `gone`",
        "help": "write a block with `chunk:gone`",
        "at": {
            "file": "book/a.md", "line": 5, "column": 8, "end_line": 5, "end_column": 12,
            "message": "referred to here",
        },
        "also": [],
    });
    assert_eq!(lines[0], expected);
    // A finding that is about no line of a file.
    project.put("book/a.md", fence("c,file:a.c", "1\n"));
    let ran = project.run(&["check", "--message-format", "short"]);
    let said = "tangle: error[out-of-date]: a.c is missing\ntangle: 1 error\n";
    assert_eq!(ran.err, said);
}

#[test]
fn outputs_in_the_way() {
    use crate::common::Project;
    let project = Project::one(&fence("c,file:a.c", "int a;\nint b;\n"));
    project.put("a.c", "foreign\n");
    let foreign = project.fails();
    std::fs::remove_file(project.path("a.c")).expect("removed");
    project.tangle();
    project.put("a.c", "int a;\nint c;\n");
    let edited = project.run(&[]).err;
    project.put("book/a.md", "Nothing.\n");
    let stale = project.run(&[]).err;
    insta::assert_snapshot!([foreign, edited, stale].concat());
}
