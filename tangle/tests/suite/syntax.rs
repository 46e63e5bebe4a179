// SPDX-License-Identifier: GPL-2.0

//! The rows of the syntax table.

use tangle::config::Input;
use tangle::{Book, Target};

use crate::common::{Project, fence, fences};

/// A book from texts, without errors.
pub fn good(chapters: &[(&str, &str)]) -> Book {
    let book = build(chapters);
    let said = tangle::problem::render(book.findings(), book.sources(), Default::default());
    assert!(book.findings().is_empty(), "{said}");
    book
}

/// A book from texts.
pub fn build(chapters: &[(&str, &str)]) -> Book {
    Book::build(Input::from_chapters(chapters.iter().map(|(path, text)| (*path, text.as_bytes()))))
}

/// The text of the only output of a chapter.
pub fn output(chapter: &str) -> String {
    let book = good(&[("book/a.md", chapter)]);
    assert_eq!(book.outputs().len(), 1);
    book.outputs()[0].text.clone()
}

/// The codes of the findings of a chapter.
pub fn codes(chapter: &str) -> Vec<&'static str> {
    build(&[("book/a.md", chapter)]).findings().iter().map(|f| f.problem.code()).collect()
}

#[test]
fn a_file_root_and_a_named_chunk() {
    let book = good(&[(
        "book/a.md",
        &fences(&[
            ("rust,ignore,file:module/core.rs", "// <<map-switcher>>\n"),
            ("rust,ignore,chunk:map-switcher", "fn map_switcher() {}\n"),
        ]),
    )]);
    assert_eq!(book.outputs()[0].path, "module/core.rs");
    assert_eq!(book.outputs()[0].text, "fn map_switcher() {}\n");
    let chunk = book.chunk_named("map-switcher").expect("it is there");
    assert_eq!(book.chunk(chunk).target, Target::Chunk("map-switcher".into()));
    assert_eq!(book.chunk(chunk).uses.len(), 1);
    assert!(book.root_of("module/core.rs").is_some());
}

#[test]
fn parts_join_in_the_order_of_the_summary_then_of_lines() {
    let project = Project::new(&[
        ("z.md", &fences(&[("c,file:a.c", "1\n/* <<x>> */\n"), ("c,chunk:x", "x1\n")])),
        ("a.md", &fences(&[("c,chunk:x", "x2\n"), ("c,file:a.c,append", "2\n")])),
        ("m.md", &fences(&[("c,file:a.c,append", "3\n"), ("c,chunk:x", "x3\n")])),
    ]);
    project.tangle();
    assert_eq!(project.get("a.c"), "1\nx1\nx2\nx3\n2\n3\n");
}

#[test]
fn a_chapter_outside_the_summary_does_not_count_and_is_said() {
    let project = Project::one(&fence("c,file:a.c", "1\n"));
    project.put("book/extra/draft.md", fences(&[("c,file:b.c", "2\n"), ("c,chunk:x", "3\n")]));
    project.put("book/notes.md", "no code of ours\n");
    let ran = project.run(&[]);
    assert_eq!(ran.status, 0);
    assert!(
        ran.err.contains("book/extra/draft.md holds chunks but is not in SUMMARY.md"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("notes.md"), "{}", ran.err);
    assert!(!project.has("b.c"));
    // It is said each time, also when nothing changed.
    assert_eq!(project.run(&[]).err, ran.err);
    assert!(project.run(&[]).out.contains("nothing changed"));
}

#[test]
fn a_title_is_free_text_and_its_default_is_the_name() {
    let chapter = format!(
        "<!-- title: How the `Switcher`:\n  is mapped -->\n{}{}",
        fence("c,file:a.c", "/* <<x>> */\n"),
        fence("c,chunk:x", "1\n")
    );
    let book = good(&[("book/a.md", &chapter)]);
    let titles: Vec<_> = book.parts().iter().map(|part| part.title()).collect();
    assert_eq!(titles, ["How the `Switcher`: is mapped", "x"]);
}

#[test]
fn hidden_parts_are_tangled_and_keep_their_reason() {
    let chapter =
        format!("<!-- why: every file has it -->\n{}", fence("c,hide,file:a.c", "/* licence */\n"));
    let book = good(&[("book/a.md", &chapter)]);
    let part = &book.parts()[0];
    assert!(part.hidden());
    assert_eq!(part.block.why.as_ref().map(|why| why.text.as_str()), Some("every file has it"));
    assert_eq!(book.outputs()[0].text, "/* licence */\n");
}

#[test]
fn bytes_are_kept_but_line_ends_marks_and_last_newlines() {
    let text = |body: &str| fence("text,file:a", body);
    assert_eq!(output(&text("a \u{e4}\t\\x\n")), "a \u{e4}\t\\x\n");
    assert_eq!(output(&text("a\n\n\n")), "a\n");
    assert_eq!(output(&text("\n\na\n")), "\n\na\n");
    assert_eq!(output(&text("a\nb\n").replace('\n', "\r\n")), "a\nb\n");
    assert_eq!(output(&format!("\u{feff}{}", text("a\n"))), "a\n");
    assert_eq!(output("```text,file:a\na\n```"), "a\n");
}

#[test]
fn fences_with_backticks_and_tildes_long_and_indented() {
    assert_eq!(output("~~~text,file:a\n```\n~~~~\n"), "```\n");
    assert_eq!(output("````text,file:a\n```\nx\n```\n````\n"), "```\nx\n```\n");
    assert_eq!(output("   ```text,file:a\n   a\n     b\n  c\n ```\n"), "a\n  b\nc\n");
    assert_eq!(
        output("text before\n```text,file:a\n    ```\n``` x\n`````  \n"),
        "    ```\n``` x\n"
    );
    assert_eq!(output("  ```text,file:a\n\tx\n \ty\n```\n"), "  x\n  y\n");
    assert_eq!(output("``` text ignore   file:a ,, \na\n```\n"), "a\n");
}

#[test]
fn only_the_top_level_counts() {
    for nested in [
        "- item\n  ```c,file:b.c\n  x\n  ```\n",
        "1. item\n\n   ```c,file:b.c\n   x\n   ```\n",
        "> ```c,file:b.c\n> x\n> ```\n",
        "<!--\n```c,file:b.c\nx\n```\n-->\n",
        "<div>\n```c,file:b.c\nx\n```\n</div>\n",
        "    ```c,file:b.c\n    x\n    ```\n",
        "````markdown\n```c,file:b.c\nx\n```\n````\n",
        "[^1]: note\n\n    ```c,file:b.c\n    x\n    ```\n",
    ] {
        let chapter = format!("{nested}\n{}", fence("c,file:a.c", "1\n"));
        assert_eq!(output(&chapter), "1\n", "{nested}");
    }
}

#[test]
fn blocks_that_are_not_ours_are_left_alone() {
    let chapter = fences(&[
        ("rust", "fn example() {}\n"),
        ("rust,ignore", "// <<shown-only>>\n"),
        ("", "plain\n"),
        ("console", "$ x\n"),
        ("js title=\"x\" {1,3}", "x\n"),
        ("text", "// <<nothing>>\n"),
    ]);
    assert!(good(&[("book/a.md", &chapter)]).outputs().is_empty());
}
