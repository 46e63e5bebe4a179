// SPDX-License-Identifier: GPL-2.0

//! Small books, woven.

use std::path::Path;

use mdbook_preprocessor::book::{Book, BookItem, Chapter};

use super::links::Links;
use super::{Failure, Pages, identifiers, index, weave, weave_with};

/// A book with these chapters, `(path, text)`; the title is the path.
fn book(chapters: &[(&str, &str)]) -> Book {
    let chapter =
        |&(path, text): &(&str, &str)| Chapter::new(path, text.to_owned(), path, Vec::new());
    Book::new_with_items(chapters.iter().map(chapter).map(BookItem::from).collect())
}

/// The chapters of a woven book, and then the four pages at its end.
fn woven(chapters: &[(&str, &str)]) -> Vec<String> {
    let book = weave(Path::new("book"), book(chapters)).expect("the book has no errors");
    book.chapters().map(|chapter| chapter.content.clone()).collect()
}

/// What is put into the lists of all chunks, files and names.
fn lists(chapters: &[(&str, &str)]) -> [String; 3] {
    let (model, pages) = Pages::of(Path::new("book"), &book(chapters)).model().expect("no errors");
    let links = Links::new(&model, &pages);
    [index::chunks(&model, &links), index::files(&model, &links), identifiers::all(&model, &links)]
}

/// The first page of a book with one chapter.
fn page(text: &str) -> String {
    woven(&[("a.md", text)]).swap_remove(0)
}

/// Joins a root that uses the chunk `x` with other text.
fn with_root(text: &str) -> String {
    format!("```rust,file:a.rs\n// <<x>>\n```\n\n{text}")
}

#[track_caller]
fn has(text: &str, wanted: &str) {
    assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
}

#[track_caller]
fn has_not(text: &str, unwanted: &str) {
    assert!(!text.contains(unwanted), "`{unwanted}` in:\n{text}");
}

#[test]
fn a_caption_says_title_name_file_and_lines() {
    let page = page(
        "<!-- title: The `main` file -->\n```rust,ignore,file:src/a.rs\nfn main() {\n    // <<x>>\n}\n\
         ```\n\n<!-- title: Its body -->\n```rust,ignore,chunk:x\none();\ntwo();\n```\n",
    );
    has(&page, r##"<figure class="chunk" id="file-src-a-rs"><figcaption><a class="chunk-title" "##);
    has(&page, r##"href="#file-src-a-rs">The <span class="chunk-code">main</span> file</a>"##);
    has(&page, r#"<a href="code/src/a.rs.html#L1">src/a.rs</a>, lines 1–4<"#);
    has(&page, r##"<a class="chunk-title" href="#chunk-x">Its body</a>"##);
    has(&page, r#"<span class="chunk-name">&lt;&lt;x&gt;&gt;</span>"#);
    has(&page, r#"src/a.rs</a>, lines 2–3<"#);
    has_not(&page, "title:");
    has_not(&page, "part ");
}

#[test]
fn without_a_title_the_name_is_the_title_once() {
    let page = page(&with_root("```rust,chunk:x\ny();\n```\n"));
    let figure = page.lines().find(|line| line.contains("id=\"chunk-x\"")).expect("a figure");
    has(figure, r##"href="#chunk-x"><span class="chunk-name">&lt;&lt;x&gt;&gt;</span></a>"##);
    assert_eq!(figure.matches("&lt;&lt;x&gt;&gt;").count(), 1);
    has(figure, ", line 1<");
}

#[test]
fn a_reference_is_a_link_in_any_language() {
    let page = page(
        "```rust,file:a.rs\n    // <<x>>\n```\n\n```makefile,file:Kbuild\n\t# <<x>>\n```\n\n\
         <!-- title: A \"thing\" -->\n```rust,chunk:x\ny();\n```\n",
    );
    let link = r##"<a class="chunk-ref" href="#chunk-x" data-title="A &quot;thing&quot;">"##;
    has(&page, &format!("<!---->    {link}// &lt;&lt;x&gt;&gt;</a>&#10;</code>"));
    let comment = r#"<span class="hljs-comment"># &lt;&lt;x&gt;&gt;</span>"#;
    has(&page, &format!("<!---->\t{link}{comment}</a>&#10;</code>"));
}

#[test]
fn links_find_their_way_between_folders() {
    let pages = woven(&[
        ("host/a.md", "```rust,file:a.rs\n// <<x>>\n// <<y>>\n```\n"),
        ("guest/b c.md", "```rust,chunk:x\nx();\n```\n"),
        ("host/d.md", "```rust,chunk:y\ny();\n```\n"),
    ]);
    has(&pages[0], r#"href="../guest/b%20c.html#chunk-x""#);
    has(&pages[0], r#"href="d.html#chunk-y""#);
    has(&pages[1], r#"Used in <a href="../host/a.html#file-a-rs">"#);
    has(&pages[1], "</a> in <em>host/a.md</em>");
    has(&pages[2], r#"<a href="../code/a.rs.html#L2">a.rs</a>"#);
}

#[test]
fn parts_say_which_they_are_and_lead_to_each_other() {
    let page = page(&with_root(
        "<!-- title: One -->\n```rust,chunk:x\na();\n```\n\n<!-- title: Two -->\n\
         ```rust,chunk:x\nb();\n```\n\n```rust,chunk:x\nc();\n```\n",
    ));
    has(&page, "part 1 of 3");
    has(&page, r##"Continued in <a class="chunk-next" href="#chunk-x-2">Two</a>"##);
    has(&page, "part 2 of 3");
    has(&page, r##"Continues <a href="#chunk-x">One</a>"##);
    has(&page, r##"</a> (part 3). Used in <a"##);
    has(&page, r##"id="chunk-x-3""##);
    has(&page, r##"data-title="One, and 2 more parts""##);
}

#[test]
fn a_chunk_used_twice_names_both_places() {
    let text = "```rust,file:a.rs\n// <<x>>\nmid();\n// <<x>>\n```\n\n```rust,file:b.rs\n// <<x>>\n\
                ```\n\n```rust,chunk:x\none();\ntwo();\n```\n";
    let page = page(text);
    has(&page, "a.rs</a>, lines 1–2 and 4–5; ");
    has(&page, "b.rs</a>, lines 1–2<");
    let used = r##"Used in <a href="#file-a-rs"><span class="chunk-name">a.rs</span></a> and "##;
    has(&page, used);
}

#[test]
fn many_places_are_left_to_the_index() {
    let uses = "// <<x>>\nmid();\n".repeat(9);
    let text = format!("```rust,file:a.rs\n{uses}```\n\n```rust,chunk:x\none();\n```\n");
    let chapters = [("a.md", text.as_str())];
    has(
        &woven(&chapters)[0],
        "lines 1, 3 and 5 and <a href=\"chunks.html#chunk-x\">6 other places</a>",
    );
    has(&lists(&chapters)[0], "lines 1, 3, 5, 7, 9, 11, 13, 15 and 17");
}

#[test]
fn code_stays_code() {
    let page = page(
        "```rust,file:a.rs\n# hidden?\n\n<p>{{#include b.md}} & \"é\"\n// \\<<y>>\n```\nmore *text*\n",
    );
    let code = "<!----># hidden?&#10;\n&lt;p&gt;&#123;&#123;#include b.md}} &amp; &quot;é&quot;\n\
                // &lt;&lt;y&gt;&gt;&#10;</code></pre>";
    has(&page, code);
    // The figure has no empty line in it and one after it, where Markdown goes on.
    let figure = page.trim_start().split("\n\n").next();
    assert!(figure.is_some_and(|figure| figure.ends_with("</figure>")), "{page}");
    has(&page, "\n\n\nmore *text*\n");
}

#[test]
fn empty_lines_do_not_end_the_figure() {
    for (code, shown) in [
        ("", "<!----></code>"),
        ("\n\n\n", "<!---->&#10;&#10;&#10;</code>"),
        ("a\n\n \t\nb\n\n", "<!---->a&#10;&#10; \t\nb&#10;&#10;</code>"),
    ] {
        let page = page(&format!("```rust,file:a.rs\n{code}```\n"));
        has(&page, shown);
        let figure = page.trim_start().split("\n\n").next();
        assert!(figure.is_some_and(|figure| figure.ends_with("</figure>")), "{page}");
    }
}

#[test]
fn indentation_of_a_fence_is_taken_off() {
    let page = page("  ```rust,file:a.rs\n    x();\n\ty();\n  ```\n");
    has(&page, "<!---->  x();\n  y();&#10;");
}

#[test]
fn hidden_code_is_folded_and_says_why() {
    let page = page(&with_root("<!-- why: It is <dull>. -->\n```rust,hide,chunk:x\ny();\n```\n"));
    has(&page, r#"<details class="chunk" id="chunk-x"><summary>"#);
    has(&page, r#"</summary><p class="chunk-why">It is &lt;dull&gt;.</p><pre>"#);
    has_not(&page, "why:");
}

#[test]
fn blocks_that_are_not_tangled_are_left_alone() {
    let text = "# A\n\n```rust,ignore\n// <<x>>\n```\n\n- a\n  ```rust,chunk:x\n  y\n  ```\n";
    assert_eq!(page(text), text);
    // And a book without any gets no indexes.
    assert_eq!(woven(&[("a.md", text)]).len(), 1);
}

#[test]
fn no_two_anchors_are_alike() {
    let text = "```rust,file:a.rs\n// <<x>>\n// <<x-2>>\n```\n\n```rust,file:a-rs\n```\n\n\
                ```rust,chunk:x\na();\n```\n\n```rust,chunk:x\nb();\n```\n\n\
                ```rust,chunk:x-2\nc();\n```\n";
    let page = page(text);
    let ids: Vec<&str> =
        page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(ids, ["file-a-rs", "file-a-rs_", "chunk-x", "chunk-x-2_", "chunk-x-2"]);
    has(&page, r##"Continued in <a class="chunk-next" href="#chunk-x-2_">"##);
}

#[test]
fn the_indexes_list_everything_in_order() {
    let [chunks, files, _] = lists(&[(
        "a.md",
        "<!-- title: All -->\n```rust,file:src/a.rs\nfn a() {\n    // <<x>>\n}\n```\n\n\
         ```rust,chunk:x\none();\n// <<y>>\n```\n\n```rust,chunk:x\nthree();\n```\n\n\
         <!-- title: Inner -->\n```rust,chunk:y\ntwo();\n\n\n```\n",
    )]);
    has(
        &chunks,
        "<h2 id=\"letter-X\"><a class=\"header\" href=\"#letter-X\">X</a></h2>\n\
         <dl class=\"chunk-index\"><dt id=\"chunk-x\"><a href=\"a.html#chunk-x\">",
    );
    has(
        &chunks,
        "<a href=\"a.html#chunk-x-2\">part 2</a>, in a.md: <a href=\"code/src/a.rs.html#L6\">",
    );
    has(&chunks, "used in <a href=\"a.html#file-src-a-rs\">All</a>");
    has(&files, "<h3 id=\"file-src-a-rs\"><a href=\"code/src/a.rs.html\">src/a.rs</a></h3>");
    let rows: Vec<&str> = files.split("<li style=\"--depth:").skip(1).collect();
    let wanted = [
        ("1–7", 0, "file-src-a-rs", "All"),
        ("2–5", 1, "chunk-x", "x"),
        ("3–5", 2, "chunk-y", "Inner"),
        ("6", 1, "chunk-x-2", "x"),
    ];
    assert_eq!(rows.len(), wanted.len(), "{files}");
    for (row, (lines, depth, anchor, title)) in rows.iter().zip(wanted) {
        let head = format!("{depth}\">{lines}<a href=\"a.html#{anchor}\">{title}</a>a.md</li>");
        assert!(row.starts_with(&head), "{row} is not {head}");
    }
}

#[test]
fn assembler_is_coloured_line_by_line() {
    let page = page(
        "```x86asm,file:a.S\n#include \"x.h\"\nstart:\tmovq\t$16, %rax // and so\n/* one\ntwo */ \
         .byte 1 # x\n```\n",
    );
    let spans = [
        r#"<span class="hljs-meta">#include &quot;x.h&quot;</span>"#,
        r#"<span class="hljs-title">start</span>:	<span class="hljs-keyword">movq</span>	"#,
        r#"$<span class="hljs-number">16</span>, <span class="hljs-built_in">%rax</span> "#,
        r#"<span class="hljs-comment">// and so</span>"#,
        "<span class=\"hljs-comment\">/* one</span>\n<span class=\"hljs-comment\">two */</span> ",
        r#"<span class="hljs-meta">.byte</span> <span class="hljs-number">1</span> "#,
        r#"<span class="hljs-comment"># x</span>"#,
    ];
    for span in spans {
        has(&page, span);
    }
    has(&page, r#"<code class="nohighlight">"#);
}

#[test]
fn makefiles_and_linker_scripts_have_colours_too() {
    let page = page(
        "```makefile,file:Kbuild\nifeq ($(A_$(B)),y) # if\n\t$(call x, $@) $^\n```\n\n\
         ```ld,file:a.ld\nENTRY(start) /* # */\n. = 0x10; \"a\\\"b\" é\n```\n",
    );
    let spans = [
        r#"<span class="hljs-keyword">ifeq</span> (<span class="hljs-variable">$(A_$(B))</span>,y)"#,
        r#"<span class="hljs-comment"># if</span>"#,
        r#"<span class="hljs-variable">$(call x, $@)</span> <span class="hljs-variable">$^</span>"#,
        r#"<span class="hljs-keyword">ENTRY</span>(start) <span class="hljs-comment">/* # */</span>"#,
        r#"<span class="hljs-number">0x10</span>; <span class="hljs-string">&quot;a\&quot;b&quot;</span> é"#,
    ];
    for span in spans {
        has(&page, span);
    }
}

#[test]
fn a_book_with_errors_is_not_woven() {
    let text = "```rust,file:a.rs\n// <<y>>\n```\n";
    let Err(Failure::Book { findings, sources }) =
        weave(Path::new("book"), book(&[("host/a.md", text)]))
    else {
        panic!("woven");
    };
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].location(&sources).as_deref(), Some("book/host/a.md:2:6"));
}

#[test]
fn a_chapter_in_the_place_of_an_index_is_refused() {
    for place in ["files.md", "audit.md", "code/x.md"] {
        let result = weave(Path::new("book"), book(&[(place, "")]));
        assert!(matches!(result, Err(Failure::Taken(path)) if path == place), "{place}");
    }
}

#[test]
fn mdbook_is_answered_in_its_own_words() {
    let talk = |renderer: &str| {
        let book = book(&[("a.md", "```rust,file:a.rs\n```\n")]);
        let context = serde_json::json!({
            "root": "/", "renderer": renderer, "mdbook_version": "0.5.4",
            "config": { "book": { "src": "book" } },
        });
        let mut out = Vec::new();
        let input = serde_json::json!([context, book]).to_string();
        super::run(input.as_bytes(), &mut out).expect("woven");
        let woven: Book = serde_json::from_slice(&out).expect("a book");
        (book, woven)
    };
    let (before, after) = talk("test");
    assert_eq!(before, after, "`mdbook test` sees the examples as they are");
    let (_, after) = talk("html");
    assert_eq!(after.chapters().count(), 5);
    assert!(super::supports("html") && super::supports("test") && !super::supports("pages"));
    let error = super::run(&b"{}"[..], Vec::new()).expect_err("that is no book");
    assert!(matches!(error, Failure::Protocol(_)), "{error}");
}

#[test]
fn what_stands_round_a_piece_is_shown_faded() {
    let page = page(
        "```rust,file:a.rs\nimpl A {\n    fn a() {\n    }\n\n    // <<x>>\n}\n```\n\n\
         ```rust,chunk:x\nfn x() {}\n```\n",
    );
    let figure = page.lines().find(|line| line.contains("id=\"chunk-x\"")).expect("a figure");
    let before =
        "aria-hidden=\"true\" data-lines=\"impl A &#123;&#10;    fn a() &#123; \u{2026} }\">";
    has(figure, before);
    has(figure, "<pre style=\"--indent:4\"><code");
    has(&page, "aria-hidden=\"true\" data-lines=\"}\"></div>");
    let root = page.lines().find(|line| line.contains("id=\"file-a-rs\"")).expect("a figure");
    has_not(root, "chunk-context");
}

#[test]
fn names_say_where_they_are_defined_and_used() {
    let [_, _, names] = lists(&[(
        "a.md",
        "```rust,file:src/a.rs\nimpl Thing {\n    // <<x>>\n}\n\n#[cfg(test)]\nmod tests {\n    \
         fn unseen() {}\n}\n```\n\n<!-- title: Running -->\n```rust,chunk:x\npub fn running() {}\n\
         ```\n\n```rust,file:b.rs\nfn other() {\n    running();\n}\n```\n",
    )]);
    has(
        &names,
        "<dt><code>running</code></dt><dd>function of <code>Thing</code>: \
         <a href=\"a.html#chunk-x\">Running</a>, <a href=\"code/src/a.rs.html#L2\">src/a.rs, \
         line 2</a><br>used in <a href=\"a.html#file-b-rs\">b.rs</a></dd>",
    );
    has(&names, "<code>other</code>");
    has_not(&names, "unseen");
}

#[test]
fn the_audit_counts_and_gives_reasons() {
    let text = with_root("<!-- why: It is dull. -->\n```rust,hide,chunk:x\na();\nb();\n```\n");
    let pages = woven(&[("a.md", &text)]);
    let audit = pages.last().expect("the audit");
    has(audit, "The 1 files of this book have 2 lines. 0 of them");
    has(
        audit,
        ">x</a></dt><dd>It is dull.<br>a.md: <a href=\"code/a.rs.html#L1\">a.rs</a>, lines 1–2",
    );
    has(audit, "| <a href=\"a.html\">a.md</a> | 2 | 2 | 1 |");
}

#[test]
fn a_file_is_a_page_with_a_link_for_every_line() {
    let text = "```rust,file:src/a.rs\nfn a() {\n    // <<x>>\n}\n```\n\n<!-- title: `In` it -->\n\
                ```rust,chunk:x\none(1 < 2);\n\ntwo();\n```\n";
    let book = book(&[("p/a.md", text)]);
    let (model, pages) = Pages::of(Path::new("book"), &book).model().expect("no errors");
    let links = Links::new(&model, &pages);
    let page = super::code::page(&model, &links, crate::OutputId(0));
    has(&page, "<p>5 lines from <a href=\"../../p/a.html\">p/a.md</a>.");
    has(
        &page,
        "<a href=\"../../p/a.html#chunk-x\" title=\"In it\" aria-label=\"Lines 2 to 4: In it\">\
         <span id=\"L2\">2</span>\n<span id=\"L3\">3</span>\n<span id=\"L4\">4</span>\n</a>",
    );
    has(
        &page,
        "<code class=\"language-rust\">fn a() &#123;\n    one(1 &lt; 2);\n\n    two();\n}\n</code>",
    );
}

#[test]
fn a_replaced_body_is_shown_beside_what_replaces_it() {
    let text = with_root(
        "<!-- title: First -->\n```rust,chunk:x\none();\ntwo();\n```\n\n\
         <!-- title: Second -->\n```rust,replaces:x\none();\nthree();\n```\n",
    );
    let page = page(&text);
    let mut figures = page.split("<figure ").skip(2);
    let first = figures.next().expect("the old body");
    has(first, "id=\"chunk-x-before\"");
    has(first, "<span class=\"chunk-place\">until <a href=\"#chunk-x\">Second</a></span>");
    has_not(first, "Used in");
    let second = figures.next().expect("the new body");
    has(second, "id=\"chunk-x\"");
    has(second, "What changed since <a href=\"#chunk-x-before\">First</a>");
    let lines = "<span> one();</span>&#10;<del>-two();</del>&#10;<ins>+three();</ins>&#10;</code>";
    has(second, lines);
    has(second, "a.rs</a>, lines 1–2<");
}

/// A chapter beside a glossary, woven.
fn with_terms(text: &str) -> String {
    let glossary = "# Glossary\n\n<!-- only in italics: line,\nuser -->\n\ngate\n: Where a \
                    *vector* leads, | or `x`. ([Gates](a.md#gates))\n\ninterrupt gate, TS\n: \
                    Another \"one\".\n\nline\n: A number.\n\npage table\n: A table.\n\nentry\n\
                    : One.\n\nsupervisor, user\n: Two.\n";
    let chapters = [("p/a.md", text), ("glossary.md", glossary)];
    let woven = weave_with(Path::new("book"), Some(Path::new("glossary.md")), book(&chapters));
    let book = woven.expect("the book has no errors");
    book.chapters().next().expect("a chapter").content.clone()
}

/// A link to a term of that glossary.
fn term(anchor: &str, meaning: &str, text: &str) -> String {
    format!("<a class=\"term\" href=\"../glossary.html#{anchor}\" title=\"{meaning}\">{text}</a>")
}

#[test]
fn the_first_use_of_a_term_leads_to_the_glossary() {
    let gate = |text| term("gate", "Where a vector leads, &#124; or x.", text);
    let other = |text| term("interrupt-gate-ts", "Another &quot;one&quot;.", text);
    let table = |text| term("page-table", "A table.", text);
    for (text, woven) in [
        ("A gate. A gate.\n", format!("A {}. A gate.\n", gate("gate"))),
        // Capitals and plurals; and a term may go over the end of a line, in a quote too.
        ("Gates: TS's\n", format!("{}: {}'s\n", gate("Gates"), other("TS"))),
        ("> a page\n> table!\n", format!("> a {}!\n", table("page\n> table"))),
        ("two entries\n", format!("two {}\n", term("entry", "One.", "entries"))),
        // The longest term that stands there, whether it is linked or not.
        (
            "interrupt gate; interrupt gates; a *gate*\n",
            format!("{}; interrupt gates; a *{}*\n", other("interrupt gate"), gate("gate")),
        ),
        // One link for terms that are explained together.
        (
            "supervisor, then *user*\n",
            format!("{}, then *user*\n", term("supervisor-user", "Two.", "supervisor")),
        ),
        // Everyday words in italics only, and alone there.
        (
            "a line, a *long line*, a *line*\n",
            format!("a line, a *long line*, a *{}*\n", term("line", "A number.", "line")),
        ),
        (
            "| a | b |\n|---|---|\n| x | gate |\n",
            format!("| a | b |\n|---|---|\n| x | {} |\n", gate("gate")),
        ),
    ] {
        assert_eq!(with_terms(text), woven);
    }
}

#[test]
fn a_term_is_left_alone_where_it_is_none() {
    for text in [
        "# A gate\n",
        "`gate` and [a gate](b.md) and ![gate](b.svg)\n",
        "```text\ngate\n```\n\n    gate\n",
        "<div>\ngate\n</div>\n\n<!-- gate -->\n\na <kbd>gate</kbd>\n",
        "a/gate gate.rs gate-like agate gate_x ts 2-gate gate\\_x &gate; $gate\n",
        "{{#include gate}}\n",
        "<!-- not as in the glossary: gate -->\n\nA gate\n",
        "| gate |\n|---|\n| x |\n",
        "page *table*\n",
    ] {
        assert_eq!(with_terms(text), text);
    }
}

#[test]
fn the_glossary_must_be_one() {
    let chapters = [("a.md", "x\n"), ("g.md", "<!-- only in italics: y -->\n\nx\n: X.\n")];
    for (path, said) in [("b.md", "the glossary b.md is no chapter"), ("g.md", "no term `y`")] {
        let woven = weave_with(Path::new("book"), Some(Path::new(path)), book(&chapters));
        let error = woven.expect_err("a mistake").to_string();
        assert!(error.contains(said), "{error}");
    }
}
