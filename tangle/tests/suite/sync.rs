// SPDX-License-Identifier: GPL-2.0

//! `tangle sync`: what was changed in generated files comes back to the chapters, exactly.

use std::fs;

use crate::common::{Project, Ran, fence, fences};

const CHAPTER: &str = "Prose.\n\n```rust,ignore,file:out/a.rs\nfn a() {\n    // <<body>>\n    \
                       end();\n}\n```\n\nMore prose.\n\n```rust,ignore,chunk:body\none();\n\n\
                       two();\nthree();\n```\n\nThe end.\n";
const FILE: &str = "fn a() {\n    one();\n\n    two();\n    three();\n    end();\n}\n";

fn project() -> Project {
    let project = Project::one(CHAPTER);
    project.tangle();
    assert_eq!(project.get("out/a.rs"), FILE);
    project
}

/// Syncs, which must work; then everything must be in order.
fn synced(project: &Project, args: &[&str]) -> String {
    let ran = project.run(&[&["sync"], args].concat());
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    let after = project.tangle();
    assert!(after.ends_with("nothing changed\n"), "{after}");
    ran.out
}

/// Syncs, which must be refused, and nothing may be written; gives what it said.
fn refused(project: &Project, args: &[&str]) -> String {
    let all = ["book/a.md", "out/a.rs", "out/b.rs", ".tangle/state.json", ".tangle/written"];
    let before = all.map(|path| fs::read(project.path(path)).ok());
    let Ran { status, out, err } = project.run(&[&["sync"], args].concat());
    assert_eq!((status, out.as_str()), (1, ""), "{err}");
    assert!(err.ends_with("nothing was written\n"), "{err}");
    assert_eq!(all.map(|path| fs::read(project.path(path)).ok()), before);
    assert!(!project.has(".tangle/kept"));
    err
}

#[test]
fn without_a_change_nothing_happens() {
    let project = project();
    let said = synced(&project, &[]);
    assert_eq!(said, "tangle: no generated file was changed by hand\n");
    assert_eq!(project.get("book/a.md"), CHAPTER);
    assert_eq!(synced(&project, &["-q"]), "");
}

#[test]
fn a_changed_line_goes_to_its_chunk_without_the_indentation() {
    let project = project();
    project.put("out/a.rs", FILE.replace("two", "deux"));
    let said = synced(&project, &[]);
    assert!(said.starts_with("book/a.md:15: 1 line changed (out/a.rs:4)\n"), "{said}");
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("two", "deux"));
    assert_eq!(project.get("out/a.rs"), FILE.replace("two", "deux"));
}

#[test]
fn lines_are_added_removed_and_changed_in_several_chunks_at_once() {
    let project = project();
    let file = "fn a(x: u8) {\n    one();\n    if x {\n        more();\n    }\n    three();\n    \
                the_end();\n}\n";
    project.put("out/a.rs", file);
    synced(&project, &["--between", "before"]);
    let expected = CHAPTER
        .replace("fn a()", "fn a(x: u8)")
        .replace("\ntwo();\n", "if x {\n    more();\n}\n")
        .replace("end();\n}", "the_end();\n}");
    assert_eq!(project.get("book/a.md"), expected);
}

#[test]
fn the_chapter_and_the_file_may_both_change_in_different_places() {
    let project = project();
    let chapter = format!("New prose.\n\n{}", CHAPTER.replace("one()", "uno()"));
    project.put("book/a.md", &chapter);
    project.put("out/a.rs", FILE.replace("end()", "fin()"));
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), chapter.replace("end()", "fin()"));
    let file = FILE.replace("end()", "fin()").replace("one()", "uno()");
    assert_eq!(project.get("out/a.rs"), file);
}

#[test]
fn what_was_taken_back_is_what_the_next_change_is_compared_with() {
    let project = project();
    project.put("out/a.rs", FILE.replace("two", "deux"));
    synced(&project, &[]);
    // Both sides again, in different lines, and on top of what was synced.
    let file = project.get("out/a.rs").replace("end()", "fin()");
    project.put("out/a.rs", &file);
    project.put("book/a.md", project.get("book/a.md").replace("one()", "un()"));
    synced(&project, &[]);
    assert_eq!(project.get("out/a.rs"), file.replace("one()", "un()"));
}

#[test]
fn both_sides_changed_is_a_conflict_shown_as_a_diff() {
    let project = project();
    project.put("book/a.md", CHAPTER.replace("two", "zwei"));
    project.put("out/a.rs", FILE.replace("two", "deux"));
    let said = refused(&project, &[]);
    for expected in [
        "tangle::sync-conflict",
        "out/a.rs:4 was changed by hand, and its chapter changed too",
        "book/a.md:15:1",
        "+++ out/a.rs\n",
        "-    two();\n",
        "+    deux();\n",
        "+++ book/a.md\n",
        "+    zwei();\n",
    ] {
        assert!(said.contains(expected), "{expected} is missing in\n{said}");
    }
    // The same on both sides is none.
    project.put("out/a.rs", FILE.replace("two", "zwei").replace("one", "eins"));
    synced(&project, &[]);
    let both = CHAPTER.replace("two", "zwei").replace("one", "eins");
    assert_eq!(project.get("book/a.md"), both);
}

#[test]
fn force_takes_the_side_of_the_file_and_keeps_the_chapter() {
    let project = project();
    let chapter = CHAPTER.replace("two", "zwei");
    project.put("book/a.md", &chapter);
    project.put("out/a.rs", FILE.replace("two", "deux"));
    let said = synced(&project, &["--force"]);
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("two", "deux"));
    assert_eq!(project.get("out/a.rs"), FILE.replace("two", "deux"));
    let copy = said.lines().find_map(|l| l.split_once("is kept as ")).expect("a copy").1;
    assert!(copy.starts_with(".tangle/kept/book/a.md."), "{said}");
    assert_eq!(project.get(copy), chapter);
}

#[test]
fn a_line_between_two_chunks_is_asked_about() {
    let file = FILE.replace("    end", "    new();\n    end");
    let project = project();
    project.put("out/a.rs", &file);
    let said = refused(&project, &[]);
    for expected in ["out/a.rs:6 was added between two chunks", "book/a.md:16", "book/a.md:6"] {
        assert!(said.contains(expected), "{said}");
    }
    synced(&project, &["--between", "after"]);
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("    end", "    new();\n    end"));

    let project = self::project();
    project.put("out/a.rs", &file);
    synced(&project, &["--between", "before"]);
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("three();\n", "three();\nnew();\n"));
}

#[test]
fn a_line_that_fits_one_side_only_goes_there() {
    let project = project();
    // Without indentation it cannot be in the chunk.
    project.put("out/a.rs", FILE.replace("    end", "#[cfg(x)]\n    end"));
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("    end", "#[cfg(x)]\n    end"));
}

#[test]
fn lines_of_two_chunks_changed_at_once() {
    let project = project();
    // As many lines as before: each for its own.
    project.put("out/a.rs", FILE.replace("three();\n    end()", "x();\n    y()"));
    synced(&project, &[]);
    let changed = CHAPTER.replace("three()", "x()").replace("end()", "y()");
    assert_eq!(project.get("book/a.md"), changed);

    // More lines, but the words on both sides of the border are still there.
    let project = self::project();
    let file = FILE.replace("three();\n    end()", "three(\n        3,\n    );\n    end(4)");
    project.put("out/a.rs", file);
    synced(&project, &[]);
    let changed = CHAPTER.replace("three();\n", "three(\n    3,\n);\n").replace("end()", "end(4)");
    assert_eq!(project.get("book/a.md"), changed);

    // Lines removed on both sides.
    let project = self::project();
    project.put("out/a.rs", FILE.replace("    three();\n    end();\n", ""));
    synced(&project, &[]);
    let changed = CHAPTER.replace("three();\n", "").replace("    end();\n", "");
    assert_eq!(project.get("book/a.md"), changed);

    // And what cannot be told apart.
    let project = self::project();
    project.put("out/a.rs", FILE.replace("three();\n    end()", "x();\n    y();\n    z()"));
    let said = refused(&project, &[]);
    assert!(said.contains("out/a.rs:5 changes lines of two chunks at once"), "{said}");
    assert!(said.contains("-    three();\n") && said.contains("+    z();\n"), "{said}");
}

#[test]
fn a_line_from_a_reference_used_twice() {
    let chapter = fences(&[
        ("rust,ignore,file:out/a.rs", "// <<x>>\nif y {\n    // <<x>>\n}\n"),
        ("rust,ignore,file:out/b.rs", "// <<x>>\n"),
        ("rust,ignore,chunk:x", "one();\ntwo();\n"),
    ]);
    let project = Project::one(&chapter);
    project.tangle();
    let a = project.get("out/a.rs");
    project.put("out/a.rs", a.replacen("two", "deux", 1));
    let said = refused(&project, &[]);
    assert!(said.contains("out/a.rs:2 comes from a chunk that is used more than once"), "{said}");
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains("also out/a.rs:5, out/b.rs:2: change it there"), "{said}");

    project.put("out/a.rs", a.replace("two", "deux"));
    project.put("out/b.rs", "one();\nzwei();\n");
    let said = refused(&project, &[]);
    assert!(said.contains("come from one line of a chapter, and differ"), "{said}");

    project.put("out/b.rs", "one();\ndeux();\n");
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), chapter.replace("two", "deux"));
}

#[test]
fn a_line_added_to_a_chunk_used_twice() {
    let chapter = fences(&[
        ("c,file:out/a.rs", "/* <<x>> */\n  /* <<x>> */\n"),
        ("c,chunk:x", "one;\ntwo;\n"),
    ]);
    let project = Project::one(&chapter);
    project.tangle();
    project.put("out/a.rs", "one;\nnew;\ntwo;\n  one;\n  two;\n");
    assert!(refused(&project, &[]).contains("sync-used-twice"));
    project.put("out/a.rs", "one;\nnew;\ntwo;\n  one;\n  new;\n  two;\n");
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), chapter.replace("two", "new;\ntwo"));
}

#[test]
fn a_line_indented_less_than_its_chunk() {
    let project = project();
    project.put("out/a.rs", FILE.replace("    two", "  two"));
    let said = refused(&project, &[]);
    assert!(said.contains("out/a.rs:4 is indented less than its chunk is"), "{said}");
    assert!(said.contains("book/a.md:15:1"), "{said}");
}

#[test]
fn a_line_that_would_close_the_block() {
    let project = Project::one(&fence("markdown,file:out/a.rs", "one\ntwo\n"));
    project.tangle();
    project.put("out/a.rs", "one\n```\ntwo\n");
    assert!(refused(&project, &[]).contains("out/a.rs:2 would close the block"));

    let longer = "````markdown,file:out/a.rs\none\ntwo\n````\n";
    let project = Project::one(longer);
    project.tangle();
    project.put("out/a.rs", "one\n```\ntwo\n");
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), longer.replace("one\n", "one\n```\n"));
}

#[test]
fn what_looks_like_a_reference_is_written_as_text() {
    let project = project();
    let file = FILE.replace("    two();", "    // <<body>>\n    // \\<<body>>");
    project.put("out/a.rs", &file);
    synced(&project, &[]);
    let chapter = CHAPTER.replace("two();", "// \\<<body>>\n// \\\\<<body>>");
    assert_eq!(project.get("book/a.md"), chapter);
    assert_eq!(project.get("out/a.rs"), file);
}

#[test]
fn fences_with_indentation_crlf_and_tabs() {
    let chapter = "\u{feff}Text.\r\n\r\n  ~~~c,file:out/a.rs\r\n  one;\r\n  \t/* <<x>> */\r\n  \
                   ~~~\r\n\r\n```c,chunk:x\r\ntwo;\r\n```\r\n";
    let project = Project::one(chapter);
    project.tangle();
    assert_eq!(project.get("out/a.rs"), "one;\n\ttwo;\n");
    project.put("out/a.rs", "one;\n\n  more;\n\ttwo;\n\t\tand more;\n");
    synced(&project, &["--between", "before"]);
    let expected = chapter
        .replace("  one;\r\n", "  one;\r\n\r\n    more;\r\n")
        .replace("two;\r\n", "two;\r\n\tand more;\r\n");
    assert_eq!(project.get("book/a.md"), expected);
}

#[test]
fn a_file_saved_with_other_line_ends_is_put_in_order() {
    let project = project();
    let theirs = FILE.replace("two", "deux").replace('\n', "\r\n") + "\r\n\r\n";
    project.put("out/a.rs", format!("\u{feff}{theirs}"));
    let said = synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("two", "deux"));
    assert_eq!(project.get("out/a.rs"), FILE.replace("two", "deux"));
    assert!(
        said.contains("tangle: out/a.rs as it was is kept as .tangle/kept/out/a.rs."),
        "{said}"
    );
}

#[test]
fn bytes_that_no_chapter_may_hold() {
    for (bytes, what) in [
        (&b"fn a() {\n\0\n}\n"[..], "out/a.rs:2 has a NUL byte"),
        (b"fn a() {\nx\ry\n}\n", "out/a.rs:2 has a lone carriage return"),
        (b"fn a() {\n\xff\n}\n", "out/a.rs:2 has bytes that are not UTF-8"),
    ] {
        let project = project();
        project.put("out/a.rs", bytes);
        let said = refused(&project, &[]);
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn an_empty_file_and_an_emptied_one() {
    let project = Project::one(&fence("c,file:out/a.rs", ""));
    project.tangle();
    project.put("out/a.rs", "one;\n\ntwo;\n");
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), fence("c,file:out/a.rs", "one;\n\ntwo;\n"));
    project.put("out/a.rs", "");
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), fence("c,file:out/a.rs", ""));
}

#[test]
fn only_the_files_named() {
    let chapter = fences(&[("c,file:out/a.rs", "one;\n"), ("c,file:out/b.rs", "one;\n")]);
    let project = Project::one(&chapter);
    project.tangle();
    project.put("out/a.rs", "two;\n");
    project.put("out/b.rs", "\0");
    let ran = project.run(&["sync", "out/a.rs"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(project.get("book/a.md"), chapter.replacen("one", "two", 1));
    // The other is left as it is, and is still in the way of what `tangle` does.
    assert_eq!(project.get("out/b.rs"), "\0");
    assert!(project.run(&[]).err.contains("out/b.rs was changed by hand"));
    project.put("out/b.rs", "three;\n");
    synced(&project, &[]);
    assert_eq!(project.get("book/a.md"), chapter.replacen("one", "two", 1).replace("one", "three"));
    let said = refused(&Project::one(&chapter), &["out/c.rs"]);
    assert!(said.contains("out/c.rs is not a file that tangle writes"), "{said}");
}

#[test]
fn a_stale_file_a_foreign_one_and_what_is_no_file() {
    let project = project();
    project.put("book/a.md", "Nothing.\n");
    project.put("out/a.rs", "mine\n");
    let said = refused(&project, &[]);
    assert!(said.contains("out/a.rs was changed by hand, and no chapter writes it"), "{said}");

    // What tangle wrote there, if it wrote, is not known.
    let project = Project::one(CHAPTER);
    project.put("out/a.rs", FILE.replace("two", "deux"));
    let said = refused(&project, &[]);
    assert!(said.contains("sync-no-base") && said.contains("+    deux();\n"), "{said}");
    synced(&project, &["--force", "out/a.rs"]);
    assert_eq!(project.get("book/a.md"), CHAPTER.replace("two", "deux"));

    let project = self::project();
    fs::remove_file(project.path("out/a.rs")).expect("removed");
    fs::create_dir(project.path("out/a.rs")).expect("made");
    assert!(refused(&project, &[]).contains("out/a.rs cannot be taken back: it is a folder"));
}

#[test]
fn a_deleted_file_is_not_taken_for_an_emptied_one() {
    let project = project();
    fs::remove_file(project.path("out/a.rs")).expect("removed");
    let ran = project.run(&["sync"]);
    assert_eq!(ran.out, "tangle: no generated file was changed by hand\n");
    assert_eq!(project.get("book/a.md"), CHAPTER);
}

#[test]
fn a_dry_run_shows_and_writes_nothing() {
    let project = project();
    let file = FILE.replace("two", "deux");
    project.put("out/a.rs", &file);
    let ran = project.run(&["sync", "-n"]);
    assert_eq!(
        ran.out,
        "book/a.md:15: 1 line changed (out/a.rs:4)\n+deux();\ntangle: 1 file was changed by hand, \
         1 chapter would be written\n"
    );
    assert_eq!((project.get("book/a.md"), project.get("out/a.rs")), (CHAPTER.into(), file));
    let ran = project.run(&["sync", "-n", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    let change = &json["changes"][0];
    assert_eq!((&change["chapter"], &change["line"]), (&"book/a.md".into(), &15.into()));
    assert_eq!((&change["added"][0], &change["removed"]), (&"deux();".into(), &1.into()));
}

#[test]
fn every_chapter_that_changes_is_kept() {
    let project = project();
    project.put("out/a.rs", FILE.replace("two", "deux"));
    let said = synced(&project, &[]);
    let copy = said.trim_end().rsplit(' ').next().expect("a path");
    assert_eq!(project.get(copy), CHAPTER);
}

#[test]
fn a_chapter_that_may_not_be_written_stays() {
    use std::os::unix::fs::PermissionsExt;
    let project = project();
    project.put("out/a.rs", FILE.replace("two", "deux"));
    let path = project.path("book/a.md");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("mode set");
    assert!(refused(&project, &[]).contains("book/a.md may not be written: it is read-only"));
    let elsewhere = project.path("elsewhere.md");
    fs::rename(&path, &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, &path).expect("linked");
    assert!(refused(&project, &[]).contains("there is a symbolic link on the way to it"));
}

#[test]
fn a_run_that_was_killed_between_two_chapters_is_finished_by_the_next() {
    let chapters = [
        ("a.md", fence("c,file:out/a.rs", "one;\n/* <<x>> */\nthree;\n")),
        ("b.md", fence("c,chunk:x", "two;\n")),
    ];
    let project =
        Project::new(&[("a.md", chapters[0].1.as_str()), ("b.md", chapters[1].1.as_str())]);
    project.tangle();
    let file = "1;\n2;\n3;\n";
    project.put("out/a.rs", file);
    // As if the first chapter had been written and not the second.
    let half = chapters[0].1.replace("one", "1").replace("three", "3");
    project.put("book/a.md", &half);
    synced(&project, &[]);
    assert_eq!((project.get("book/a.md"), project.get("out/a.rs")), (half, file.into()));
    assert_eq!(project.get("book/b.md"), chapters[1].1.replace("two", "2"));
}

#[test]
fn a_book_with_errors_is_not_touched() {
    let project = project();
    project.put("out/a.rs", FILE.replace("two", "deux"));
    project.put("book/a.md", CHAPTER.replace("chunk:body", "chunk:boby"));
    let said = refused(&project, &[]);
    assert!(said.contains("no chunk is called `body`"), "{said}");
}
