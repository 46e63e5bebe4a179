// SPDX-License-Identifier: GPL-2.0

//! What was decided in the corners of the syntax, one test for each decision.

use std::process::Command;

use crate::common::{Project, fence, fences};
use crate::syntax::{build, codes, good, output};

const ROOT: (&str, &str) = ("c,file:a.c", "/* <<x>> */\n");

#[test]
fn a_root_without_lines_is_an_empty_file() {
    let project = Project::one(&fences(&[("c,file:a.c", ""), ("c,file:b.c", "\n\n")]));
    project.tangle();
    assert_eq!(project.get("a.c"), "");
    assert_eq!(project.get("b.c"), "");
}

#[test]
fn an_unused_chunk_is_an_error() {
    assert_eq!(codes(&fences(&[("c,file:a.c", "1\n"), ("c,chunk:x", "2\n")])), ["unused"]);
    // Only the top of an unused tree is named: the rest is used by it.
    let tree = fences(&[("c,chunk:x", "/* <<y>> */\n"), ("c,chunk:y", "2\n")]);
    assert_eq!(codes(&tree), ["unused"]);
}

#[test]
fn a_chunk_used_twice_is_expanded_twice() {
    let chapter = fences(&[("c,file:a.c", "/* <<x>> */\n  /* <<x>> */\n"), ("c,chunk:x", "1\n")]);
    assert_eq!(output(&chapter), "1\n  1\n");
}

#[test]
fn an_empty_chunk_gives_no_line() {
    let chapter = fences(&[("c,file:a.c", "1\n/* <<x>> */\n2\n"), ("c,chunk:x", "")]);
    assert_eq!(output(&chapter), "1\n2\n");
}

#[test]
fn a_second_root_without_append_is_a_duplicate() {
    let twice = fences(&[("c,file:a.c", "1\n"), ("c,file:a.c", "2\n")]);
    assert_eq!(codes(&twice), ["duplicate-root"]);
}

#[test]
fn append_on_a_first_root_or_on_a_chunk_is_an_error() {
    assert_eq!(codes(&fence("c,file:a.c,append", "1\n")), ["append-first"]);
    assert_eq!(codes(&fences(&[ROOT, ("c,chunk:x,append", "1\n")])), ["append-on-chunk"]);
}

#[test]
fn file_with_chunk_is_an_error() {
    let codes = codes(&fence("c,file:a.c,chunk:x", "1\n"));
    assert_eq!(codes, ["file-and-chunk"]);
}

#[test]
fn a_cycle_is_reported_once_and_with_its_way() {
    let book = build(&[(
        "book/a.md",
        &fences(&[
            ROOT,
            ("c,chunk:x", "/* <<y>> */\n"),
            ("c,chunk:y", "/* <<z>> */\n"),
            ("c,chunk:z", "/* <<x>> */\n/* <<z>> */\n"),
        ]),
    )]);
    let said: Vec<_> = book.findings().iter().map(|f| f.problem.to_string()).collect();
    let arrow = "\u{2192}";
    assert_eq!(
        said,
        [format!("a cycle: x {arrow} y {arrow} z {arrow} x"), format!("a cycle: z {arrow} z")]
    );
}

#[test]
fn chunks_that_multiply_are_stopped() {
    let mut chapter = fence("c,file:a.c", "/* <<x0>> */\n");
    for n in 0..40 {
        let body = format!("/* <<x{}>> */\n/* <<x{}>> */\n", n + 1, n + 1);
        chapter += &fence(&format!("c,chunk:x{n}"), &body);
    }
    chapter += &fence("c,chunk:x40", "1\n");
    assert_eq!(codes(&chapter), ["too-large"]);
}

#[test]
fn a_chain_of_ten_thousand_chunks_does_not_end_the_stack() {
    let mut chapter = fence("c,file:a.c", " /* <<x0>> */\n");
    for n in 0..10_000 {
        chapter += &fence(&format!("c,chunk:x{n}"), &format!("/* <<x{}>> */\n", n + 1));
    }
    chapter += &fence("c,chunk:x10000", "1\n");
    assert_eq!(output(&chapter), " 1\n");
}

#[test]
fn each_language_has_its_own_comments() {
    for (language, line) in [
        ("rust", "// <<x>>"),
        ("rust", "/* <<x>> */"),
        ("c", "// <<x>>"),
        ("asm", "# <<x>>"),
        ("asm", "/* <<x>> */"),
        ("toml", "# <<x>>"),
        ("make", "# <<x>>"),
        ("kbuild", "# <<x>>"),
        ("sh", "# <<x>>"),
        ("python", "# <<x>>"),
        ("yaml", "# <<x>>"),
        ("text", "# <<x>>"),
        ("ld", "/* <<x>> */"),
        ("html", "<!-- <<x>> -->"),
        ("markdown", "<!-- <<x>> -->"),
        ("zig", "// <<x>>"),
        ("zig", "# <<x>>"),
        ("zig", "<!-- <<x>> -->"),
    ] {
        let root = (&*format!("{language},file:a"), &*format!("  {line}\t \n"));
        assert_eq!(output(&fences(&[root, ("c,chunk:x", "1\n")])), "  1\n", "{language} {line}");
    }
    for (language, line) in [("rust", "# <<x>>"), ("toml", "// <<x>>"), ("ld", "// <<x>>")] {
        let kept = output(&fence(&format!("{language},file:a"), &format!("{line}\n")));
        assert_eq!(kept, format!("{line}\n"));
    }
}

#[test]
fn blanks_round_the_name_do_not_matter_and_doc_comments_are_no_references() {
    for line in ["//<<x>>", "//   <<  x\t>>  ", "\t// <<x>>"] {
        let chapter = fences(&[("c,file:a.c", &format!("{line}\n")), ("c,chunk:x", "1\n")]);
        assert_eq!(output(&chapter).trim(), "1");
    }
    for line in ["/// <<x>>", "//! <<x>>", "// <<x>> y", "y // <<x>>"] {
        let chapter = fence("rust,ignore,file:a.rs", &format!("{line}\n"));
        assert_eq!(output(&chapter), format!("{line}\n"));
    }
}

#[test]
fn a_bad_name_in_a_references_place_is_an_error() {
    for line in ["// <<X>>", "// <<a b>>", "// <<>>", "// <<a_b>>", "// <<a.b>>"] {
        let chapter = fence("c,file:a.c", &format!("{line}\n"));
        assert_eq!(codes(&chapter), ["bad-reference"], "{line}");
    }
    for name in ["X", "a_b", "\u{e4}"] {
        let codes = codes(&fence(&format!("c,chunk:{name}"), ""));
        assert!(codes.contains(&"bad-name"), "{name}: {codes:?}");
    }
}

#[test]
fn a_backslash_gives_the_literal_text() {
    assert_eq!(output(&fence("c,file:a.c", "  // \\<<x>>\n")), "  // <<x>>\n");
    assert_eq!(output(&fence("c,file:a.c", "// \\\\<<No Name>>\n")), "// \\<<No Name>>\n");
    assert_eq!(output(&fence("sh,file:a", "echo \\<<x>>\n")), "echo \\<<x>>\n");
}

#[test]
fn words_of_rustdoc_and_mdbook_pass() {
    let words = "ignore,no_run,should_panic,compile_fail,edition2021,noplayground,editable,\
                 mdbook-runnable,E0308,ignore-x86_64,hidelines=!";
    assert!(good(&[("book/a.md", &fence(&format!("rust,{words}"), ""))]).findings().is_empty());
    let _ = good(&[("book/a.md", &fence(&format!("rust,{words},file:a.rs"), ""))]);
}

#[test]
fn a_word_close_to_ours_or_ours_with_equals_is_an_error_in_any_fence() {
    for (info, code) in [
        ("rust,hidden", "unknown-tag"),
        ("rust,ignore,chnk:x", "unknown-tag"),
        ("rust,appnd", "unknown-tag"),
        ("rust,file=a.rs", "equals"),
        ("rust chunk=a", "equals"),
        ("rust,hide=yes", "equals"),
        ("rust,file:", "no-value"),
        ("rust,chunk", "no-value"),
        ("rust,hide", "tag-alone"),
        ("rust,append", "tag-alone"),
        ("file:a.rs", "language-first"),
        ("chunk:a", "language-first"),
    ] {
        let codes = codes(&fence(info, ""));
        assert!(codes.contains(&code), "{info}: {codes:?}");
    }
    // In a block of ours every other word is one, too.
    assert_eq!(codes(&fence("rust,file:a.rs,banana", "")), ["unknown-tag"]);
    assert_eq!(codes(&fence("rust,file:a.rs,hide:x", "")), ["spare-value"]);
    assert_eq!(codes(&fence("rust,file:a.rs,hide,hide", "")), ["tag-twice"]);
}

#[test]
fn blank_lines_may_stand_between_a_comment_and_its_fence() {
    let chapter = format!(
        "Text.\n<!-- title: T -->\n\n<!-- why: W -->\n\n\n{}",
        fence("c,file:a.c,hide", "1\n")
    );
    let book = good(&[("book/a.md", &chapter)]);
    let block = &book.parts()[0].block;
    assert_eq!(block.title.as_ref().map(|note| note.text.as_str()), Some("T"));
    assert_eq!(block.why.as_ref().map(|note| note.text.as_str()), Some("W"));
}

#[test]
fn a_comment_that_misses_its_block_is_said() {
    let block = fence("c,file:a.c", "1\n");
    assert_eq!(codes(&format!("<!-- title: T -->\n\nProse.\n\n{block}")), ["dangling-comment"]);
    assert_eq!(codes(&format!("{block}<!-- why: W -->\n")), ["dangling-comment"]);
    assert_eq!(codes(&format!("<!-- title: T -->\n<!-- title: U -->\n{block}")), ["comment-twice"]);
    assert_eq!(codes(&format!("<!-- tilte: T -->\n{block}")), ["unknown-comment"]);
    // Other comments are nobody's business.
    let _ = good(&[("book/a.md", &format!("<!-- TODO: x -->\n\n<!-- needs: a.md -->\n{block}"))]);
}

#[test]
fn a_root_may_not_name_a_source() {
    for path in ["book/a.md", "book/SUMMARY.md", "book.toml", ".git/config", ".tangle/x"] {
        let project = Project::one(&fence(&format!("text,file:{path}"), "x\n"));
        let before = project.get("book/a.md");
        let said = project.fails();
        assert!(said.contains("tangle::forbidden-target"), "{path}: {said}");
        assert_eq!(project.get("book/a.md"), before);
    }
}

#[test]
fn a_root_may_not_name_what_git_tracks() {
    let project = Project::one(&fence("text,file:module/x", "x\n"));
    let git = |args: &[&str]| {
        let done = Command::new("git").arg("-C").arg(project.root()).args(args).output();
        assert!(done.expect("git runs").status.success(), "git {args:?}");
    };
    git(&["init", "-q"]);
    project.tangle();
    // Adding the output makes a book wrong that was right, though no chapter changed.
    git(&["add", "-f", "module/x"]);
    let ran = project.run(&[]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("module/x may not be a target: git tracks it"), "{}", ran.err);
    git(&["rm", "-q", "--cached", "module/x"]);
    assert!(project.tangle().contains("nothing changed"));
}

#[test]
fn a_link_may_not_lead_out_of_the_tree() {
    let outside = tempfile::TempDir::new().expect("a temporary folder");
    let project = Project::one(&fence("text,file:module/deep/x", "x\n"));
    std::os::unix::fs::symlink(outside.path(), project.path("module")).expect("link made");
    let said = project.fails();
    assert!(said.contains("leaves the project: module is a link to"), "{said}");
    assert_eq!(std::fs::read_dir(outside.path()).expect("it is there").count(), 0);
}

#[test]
fn a_link_inside_the_tree_does_not_hide_a_source() {
    let project = Project::one(&fence("text,file:module/a.md", "x\n"));
    std::os::unix::fs::symlink("book", project.path("module")).expect("link made");
    let said = project.fails();
    assert!(said.contains("through a link it is book/a.md, and it is a chapter"), "{said}");
}

#[test]
fn paths_with_dots_or_double_slashes_are_refused() {
    for path in ["./a", "a//b", "a/./b", "a/../b", "../a", "/a", "a/", "a\\b"] {
        assert_eq!(codes(&fence(&format!("text,file:{path}"), "")), ["bad-path"], "{path}");
    }
}

#[test]
fn a_path_is_not_both_a_file_and_a_folder() {
    let both = fences(&[("text,file:a", ""), ("text,file:a/b/c", "")]);
    assert_eq!(codes(&both), ["file-and-folder"]);
    let _ = good(&[("book/a.md", &fences(&[("text,file:a", ""), ("text,file:a.b", "")]))]);
}

#[test]
fn bytes_that_no_chapter_may_hold_have_their_place() {
    for (bytes, code, place) in [
        (&b"ok\nab\0c\n"[..], "nul", "book/a.md:2:3"),
        (b"ok\nab\rc\n", "lone-cr", "book/a.md:2:3"),
        (b"ok\r\nab\xff\xfec\n", "invalid-utf8", "book/a.md:2:3"),
        (b"ok\n\n```c,file:a.c\nx\n", "unclosed-fence", "book/a.md:3:1"),
        (b"ok\n\n~~~~c\nx\n~~~\n", "unclosed-fence", "book/a.md:3:1"),
    ] {
        let input = tangle::config::Input::from_chapters([("book/a.md", bytes)]);
        let book = tangle::Book::build(input);
        let found: Vec<_> = book
            .findings()
            .iter()
            .map(|f| (f.problem.code(), f.location(book.sources()).unwrap_or_default()))
            .collect();
        assert_eq!(found, [(code, place.to_owned())]);
    }
}

#[test]
fn all_kinds_of_errors_come_in_one_run() {
    let project = Project::new(&[
        (
            "a.md",
            &fences(&[("c,file:a.c", "// <<gone>>\n"), ("c,file:a.c", ""), ("c,file:/x", "")]),
        ),
        (
            "b.md",
            &fences(&[("c,chunk:x", "// <<x>>\n"), ("c,chunk:y,banana", ""), ("c", "\u{0}\n")]),
        ),
    ]);
    let said = project.fails();
    for code in ["undefined", "duplicate-root", "bad-path", "cycle", "unused", "unknown-tag", "nul"]
    {
        assert!(said.contains(&format!("tangle::{code}\n")), "{code} is missing in {said}");
    }
    assert!(said.ends_with("tangle: 7 errors; nothing was written\n"), "{said}");
}
