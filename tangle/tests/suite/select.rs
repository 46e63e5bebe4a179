// SPDX-License-Identifier: GPL-2.0

//! Parts of a book: up to a chapter, with a lab's starter, before a chunk was replaced.

use tangle::config::Input;
use tangle::{Book, Selection};

use crate::common::{Project, Ran, fence, fences};
use crate::syntax::{codes, good, output};

const ROOT: (&str, &str) = ("c,file:out/a.c", "/* <<x>> */\n");

fn until(project: &Project, chapter: &str) -> Ran {
    project.run(&["--until", chapter, "--out", "part"])
}

/// Runs up to a chapter, which must work; gives the text of `out/a.c`.
fn text_until(project: &Project, chapter: &str) -> String {
    let ran = until(project, chapter);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{chapter}");
    project.get("part/out/a.c")
}

#[test]
fn a_replaced_chunk_has_the_last_body() {
    let chapter = fences(&[ROOT, ("c,chunk:x", "one;\n"), ("c,replaces:x", "two;\n")]);
    assert_eq!(output(&chapter), "two;\n");
    // All parts of the body go, and what is appended later goes to the new one.
    let chapter = fences(&[
        ROOT,
        ("c,chunk:x", "one;\n"),
        ("c,chunk:x", "more of one;\n"),
        ("c,replaces:x", "two;\n"),
        ("c,chunk:x", "more of two;\n"),
        ("c,replaces:x", "three;\n"),
        ("c,chunk:x", "more of three;\n"),
    ]);
    assert_eq!(output(&chapter), "three;\nmore of three;\n");
    let book = good(&[("book/a.md", &chapter)]);
    let chunk = book.chunk(book.chunk_named("x").expect("it is there"));
    assert_eq!((chunk.parts.len(), chunk.all.len()), (2, 6));
    let part = |n: usize| book.part(chunk.all[n]);
    let seen: Vec<_> = (0..6).map(|n| (part(n).index, part(n).active)).collect();
    let expected = [(0, false), (1, false), (0, false), (1, false), (0, true), (1, true)];
    assert_eq!(seen, expected);
    assert_eq!(part(0).replaced_by, Some(chunk.all[2]));
    assert_eq!(part(3).replaced_by, Some(chunk.all[4]));
    assert_eq!(part(5).replaced_by, None);
    assert!(book.placements(chunk.all[0]).is_empty());
}

#[test]
fn until_a_chapter_gives_the_body_of_then() {
    let project = Project::new(&[
        ("a.md", &fences(&[ROOT, ("c,chunk:x", "one;\n")])),
        ("b.md", &fences(&[("c,replaces:x", "two;\n"), ("c,file:out/b.c", "b;\n")])),
        ("c.md", &fences(&[("c,chunk:x", "three;\n"), ("c,file:out/b.c,append", "c;\n")])),
    ]);
    project.tangle();
    assert_eq!(project.get("out/a.c"), "two;\nthree;\n");
    assert_eq!(text_until(&project, "a.md"), "one;\n");
    assert!(!project.has("part/out/b.c"), "its root comes later");
    assert_eq!(text_until(&project, "b.md"), "two;\n");
    assert_eq!(project.get("part/out/b.c"), "b;\n");
    assert_eq!(text_until(&project, "c.md"), "two;\nthree;\n");
    assert_eq!(text_until(&project, "book/a.md"), "one;\n", "and back");
    assert!(!project.has("part/out/b.c"), "what is stale is removed there, too");
    // The plain outputs are not touched by any of it.
    assert!(project.tangle().ends_with("nothing changed\n"));
    assert_eq!(until(&project, "a.md").out, "tangle: 1 file, nothing changed\n");
}

#[test]
fn replaces_stands_alone_and_after_what_it_replaces() {
    let with = |info: &str| codes(&fences(&[ROOT, ("c,chunk:x", "one;\n"), (info, "two;\n")]));
    for more in ["append", "lab:1,starter", "chunk:y", "file:b.c"] {
        let codes = with(&format!("c,replaces:x,{more}"));
        assert!(codes.contains(&"replaces-alone"), "{more}: {codes:?}");
    }
    assert_eq!(with("c,replaces:z"), ["replaces-unknown"]);
    assert_eq!(with("c,replaces:"), ["no-value"]);
    assert_eq!(with("c,replaces=x"), ["equals"]);
    assert_eq!(with("c,replaces:X"), ["bad-name", "replaces-unknown"]);
    let early = fences(&[ROOT, ("c,replaces:x", "two;\n"), ("c,chunk:x", "one;\n")]);
    assert_eq!(codes(&early), ["replaces-unknown"]);
}

#[test]
fn what_a_replaced_or_later_body_uses_is_used() {
    let chapter = fences(&[
        ROOT,
        ("c,chunk:x", "/* <<y>> */\n"),
        ("c,chunk:y", "why;\n"),
        ("c,replaces:x", "two;\n"),
    ]);
    assert_eq!(output(&chapter), "two;\n");
    // A cycle of bodies that never meet is none.
    let chapter = fences(&[
        ROOT,
        ("c,chunk:x", "/* <<y>> */\n"),
        ("c,chunk:y", "why;\n"),
        ("c,replaces:x", "two;\n"),
        ("c,replaces:y", "/* <<x>> */\n"),
    ]);
    assert_eq!(output(&chapter), "two;\n");
    // But a name that is nowhere is wrong in every body.
    let chapter = fences(&[ROOT, ("c,chunk:x", "/* <<gone>> */\n"), ("c,replaces:x", "two;\n")]);
    assert_eq!(codes(&chapter), ["undefined"]);
    let project = Project::new(&[
        ("a.md", &fences(&[("c,file:out/a.c", "a;\n"), ("c,chunk:x", "one;\n")])),
        ("b.md", &fence("c,file:out/b.c", "/* <<x>> */\n")),
    ]);
    assert_eq!(text_until(&project, "a.md"), "a;\n", "its chunk is used later");
}

#[test]
fn until_wants_what_is_needed_to_be_named() {
    let early = fences(&[("c,file:out/a.c", "/* <<tools>> */\n"), ("c,file:out/b.c", "b;\n")]);
    let chapters = |early: &str, late: &str| {
        Project::new(&[
            ("a.md", early),
            ("b.md", "Prose.\n"),
            ("deep/late.md", late),
            ("z.md", &fence("c,chunk:more", "more;\n")),
        ])
    };
    let late = fence("c,chunk:tools", "tools;\n");
    let rest = fence("c,file:out/z.c", "/* <<more>> */\n");
    let late_and_rest = format!("{late}{rest}");
    let project = chapters(&early, &late_and_rest);
    let said = until(&project, "b.md");
    assert_eq!(said.status, 1);
    let expected = "`tools` is needed, but deep/late.md is left out";
    assert!(said.err.contains(expected) && said.err.contains("book/a.md:2:6"), "{}", said.err);
    assert!(!project.has("part/out/a.c"));

    project.tangle();
    assert_eq!(project.run(&["check"]).status, 0);
    let said = project.run(&["check", "--each-chapter", "--message-format", "short"]);
    let expected = "book/a.md:2:6: error[left-out]: `tools` is needed, but deep/late.md is left out\n\
                    book/deep/late.md:6:6: error[left-out]: `more` is needed, but z.md is left \
                    out\ntangle: 2 errors\n";
    assert_eq!((said.status, said.err.as_str()), (1, expected));

    // Named by a chapter that counts, at any place of it.
    let early = format!("<!-- needs: deep/late.md -->\n\nText.\n\n{early}");
    let said = until(&chapters(&early, &late_and_rest), "b.md");
    assert!(said.err.contains("`more` is needed, but z.md is left out"), "{}", said.err);
    // A needed chapter says itself what it needs.
    let project = chapters(&early, &format!("{late_and_rest}<!-- needs: z.md, b.md -->\n"));
    assert_eq!(text_until(&project, "a.md"), "tools;\n");
    assert_eq!(project.get("part/out/z.c"), "more;\n");

    let project = chapters("<!-- needs: deep/lat.md -->\n", &format!("{late}{rest}"));
    let said = project.run(&[]);
    assert!(said.err.contains("no chapter is called deep/lat.md"), "{}", said.err);
    assert!(said.err.contains("did you mean deep/late.md?"), "{}", said.err);
    assert!(said.err.contains("book/a.md:1:1"), "{}", said.err);
}

#[test]
fn a_file_continued_needs_its_root() {
    let project = Project::new(&[
        ("a.md", "<!-- needs: c.md -->\n"),
        ("b.md", &fence("c,file:out/a.c", "one;\n")),
        ("c.md", &fence("c,file:out/a.c,append", "two;\n")),
    ]);
    let said = until(&project, "a.md");
    let expected = "the first root of out/a.c is needed, but b.md is left out";
    assert!(said.err.contains(expected), "{}", said.err);
    assert_eq!(text_until(&project, "b.md"), "one;\ntwo;\n");
}

#[test]
fn until_needs_a_folder_of_its_own() {
    let project = Project::new(&[("a.md", &fence("c,file:out/a.c", "a;\n")), ("b.md", "Text.\n")]);
    assert_eq!(project.run(&["--until", "a.md"]).status, 2);
    let root = project.root();
    let root = root.to_str().expect("UTF-8");
    project.put("mine/notes", "x\n");
    project.put("plain", "x\n");
    for (folder, reason) in [
        (".", "the book is in it"),
        (root, "the book is in it"),
        ("..", "the book is in it"),
        ("book/part", "it is among the chapters"),
        (".tangle/part", "records are there"),
        ("mine", "it has files that tangle did not write"),
        ("plain", "it is a file"),
    ] {
        let ran = project.run(&["--until", "a.md", "--out", folder]);
        assert_eq!(ran.status, 1, "{folder}: {}", ran.out);
        assert!(ran.err.contains(reason), "{folder}: {}", ran.err);
    }
    assert!(!project.has("book/part") && !project.has(".tangle/part"), "none of them is left");
    assert_eq!(project.get("mine/notes"), "x\n");
    let said = until(&project, "c.md");
    assert!(said.err.contains("no chapter is called c.md"), "{}", said.err);
    assert_eq!(text_until(&project, "a.md"), "a;\n");

    let outside = tempfile::TempDir::new().expect("a temporary folder");
    let folder = outside.path().join("new/part");
    let ran = project.run(&["--until", "a.md", "--out", folder.to_str().expect("UTF-8")]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(folder.join("out/a.c").is_file() && folder.join(".tangle/map.json").is_file());
    assert!(!project.has(".tangle/state.json"), "the book's own records are not touched");
}

#[test]
fn what_lies_in_another_folder_is_guarded_and_located_all_the_same() {
    let project = Project::one(&fence("c,file:out/a.c", "one;\ntwo;\n"));
    text_until(&project, "a.md");
    project.put("part/out/a.c", "mine;\n");
    let ran = until(&project, "a.md");
    assert!(ran.err.contains("out/a.c was changed by hand"), "{}", ran.err);
    let ran = project.run(&["--until", "a.md", "--out", "part", "--force"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let copy = ran.err.trim().rsplit(' ').next().expect("a path").to_owned();
    assert_eq!(project.get(&format!("part/{copy}")), "mine;\n");

    let located = |place: &str| project.run(&["locate", "--out", "part", place]).out;
    assert_eq!(located("part/out/a.c:2"), "book/a.md:3\n");
    assert_eq!(located("out/a.c:2"), "book/a.md:3\n");
    assert_eq!(located("book/a.md:3"), "out/a.c:2\n");
    let said = "out/a.c:2:1: error: no\n";
    let ran = project.run_in(&project.path("part"), &["filter", "--out", "."], said);
    let text = String::from_utf8(ran.stdout).expect("UTF-8");
    assert_eq!(text, "book/a.md:3:1: error: no (out/a.c:2)\n");
}

const LAB: &[(&str, &str)] = &[
    ROOT,
    ("c,chunk:x", "before;\n"),
    ("c,chunk:x,lab:2,starter", "todo;\n"),
    ("c,chunk:x,lab:2,solution", "done;\n"),
    ("c,chunk:x", "between;\n"),
    ("c,chunk:x,lab:3,solution", "three;\n"),
    ("c,chunk:x", "after;\n"),
];

#[test]
fn a_lab_has_a_starter_and_a_solution() {
    let project = Project::one(&fences(LAB));
    project.tangle();
    let solved = "before;\ndone;\nbetween;\nthree;\nafter;\n";
    assert_eq!(project.get("out/a.c"), solved);
    let lab = |number: &str| {
        let ran = project.run(&["--lab", number]);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        project.get("out/a.c")
    };
    assert_eq!(lab("2"), "before;\ntodo;\nbetween;\nthree;\nafter;\n");
    assert_eq!(lab("3"), "before;\ndone;\nbetween;\nafter;\n", "with nothing to begin with");
    assert_eq!(project.run(&["--lab", "3"]).out, "tangle: 1 file, nothing changed\n");
    assert_eq!(project.tangle(), "tangle: 1 file, 1 written\n");
    assert_eq!(project.get("out/a.c"), solved);
    let ran = project.run(&["--lab", "2", "--out", "labs/2"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(project.get("labs/2/out/a.c").contains("todo;"));
    assert_eq!(project.get("out/a.c"), solved);
    assert_eq!(project.run(&["check"]).status, 0);
}

#[test]
fn a_starter_without_a_solution_and_an_unknown_lab_are_errors() {
    let with = |blocks: &[(&str, &str)]| {
        let text = fences(&[&[ROOT, ("c,chunk:x", "one;\n")], blocks].concat());
        codes(&text)
    };
    assert_eq!(with(&[("c,chunk:x,lab:2,starter", "")]), ["no-solution"]);
    // The solution of another lab, or of a body that was replaced, is none.
    let other = [("c,chunk:x,lab:2,starter", ""), ("c,chunk:x,lab:3,solution", "")];
    assert_eq!(with(&other), ["no-solution"]);
    let replaced =
        [("c,chunk:x,lab:2,solution", ""), ("c,replaces:x", ""), ("c,chunk:x,lab:2,starter", "")];
    assert_eq!(with(&replaced), ["no-solution"]);
    for (info, code) in [
        ("c,chunk:x,lab:2", "half-lab"),
        ("c,chunk:x,starter", "half-lab"),
        ("c,chunk:x,lab:2,starter,solution", "half-lab"),
        ("c,chunk:x,lab:two,starter", "bad-lab"),
        ("c,chunk:x,lab:0,solution", "bad-lab"),
        ("c,chunk:x,lab:007,solution", "bad-lab"),
        ("c,chunk:x,lab:,solution", "no-value"),
        ("c,file:b.c,lab:2,solution", "lab-on-file"),
        ("c,lab:2,starter", "tag-alone"),
        ("c,solution", "tag-alone"),
        ("c,chunk:x,lab:2,lab:3,solution", "tag-twice"),
    ] {
        let codes = with(&[(info, "")]);
        assert!(codes.contains(&code), "{info}: {codes:?}");
    }
    let project = Project::one(&fences(LAB));
    let ran = project.run(&["--lab", "5"]);
    assert!(ran.err.contains("there is no lab 5"), "{}", ran.err);
    assert!(ran.err.contains("there are 2, 3"), "{}", ran.err);
    assert_eq!(ran.status, 1);
}

#[test]
fn what_only_a_starter_uses_is_used_and_its_cycle_is_found_by_check() {
    let blocks = [
        ROOT,
        ("c,chunk:x,lab:1,starter", "/* <<hint>> */\n"),
        ("c,chunk:x,lab:1,solution", "done;\n"),
        ("c,chunk:hint", "hint;\n"),
    ];
    let project = Project::one(&fences(&blocks));
    project.tangle();
    assert_eq!(project.get("out/a.c"), "done;\n");
    assert_eq!(project.run(&["--lab", "1", "-q"]).status, 0);
    assert_eq!(project.get("out/a.c"), "hint;\n");

    let round = [&blocks[..3], &[("c,chunk:hint", "/* <<x>> */\n")]].concat();
    let project = Project::one(&fences(&round));
    project.tangle();
    assert!(project.run(&["--lab", "1"]).err.contains("a cycle: "));
    let said = project.run(&["check"]).err;
    assert!(said.contains("a cycle: x \u{2192} hint \u{2192} x"), "{said}");
}

#[test]
fn what_was_changed_in_a_starter_goes_back_to_the_starter() {
    let project = Project::one(&fences(LAB));
    assert_eq!(project.run(&["--lab", "2"]).status, 0);
    let text = project.get("out/a.c").replace("todo;", "to do;").replace("after;", "behind;");
    project.put("out/a.c", &text);
    let ran = project.run(&["sync"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(project.get("out/a.c"), text);
    let chapter = fences(LAB).replace("todo;", "to do;").replace("after;", "behind;");
    assert_eq!(project.get("book/a.md"), chapter);
    assert_eq!(project.run(&["--lab", "2"]).out, "tangle: 1 file, nothing changed\n");
}

#[test]
fn a_part_of_a_book_in_memory() {
    let chapters = [
        ("book/a.md", fences(&[ROOT, ("c,chunk:x", "one;\n")])),
        ("book/b.md", fence("c,replaces:x", "two;\n")),
    ];
    let selection = Selection { until: Some("a.md".into()), lab: None };
    let input = Input::from_chapters(chapters.iter().map(|(p, t)| (*p, t.as_bytes())));
    let book = Book::build_with(input, &selection);
    assert!(!book.has_errors());
    assert_eq!(book.outputs()[0].text, "one;\n");
    assert_eq!(book.selection(), &selection);
}
