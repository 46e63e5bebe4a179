// SPDX-License-Identifier: GPL-2.0

//! Random chunk trees against a simple recursive oracle, and random Markdown against its parser.

use proptest::prelude::*;
use tangle::map::Map;
use tangle::sync::Between;
use tangle::{Book, OutputId, Placement};

use crate::syntax::build;

/// A line of a chunk.
#[derive(Debug, Clone)]
enum Line {
    /// Text, perhaps empty.
    Text(String),
    /// A reference: indentation, and which of the later chunks, counted round.
    Reference(String, usize),
}

/// A chunk: its parts, each with the way its fence is written.
#[derive(Debug, Clone)]
struct Chunk {
    parts: Vec<(Fence, Vec<Line>)>,
}

#[derive(Debug, Clone)]
struct Fence {
    mark: &'static str,
    indent: usize,
    language: &'static str,
    chapter: usize,
    crlf: bool,
}

fn blanks() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ ]{1,9}", "\t{1,2}", "[ \t]{1,4}"]
}

fn line() -> impl Strategy<Value = Line> {
    let text = prop_oneof![
        3 => "[a-z(){};<>/#*!\"\\\\ ]{0,20}",
        1 => Just(String::new()),
        1 => Just("x(); // <<c0>>".to_owned()),
        1 => Just("/// <<c0>>".to_owned()),
        1 => Just("\u{e4} {{}} \u{1f980}".to_owned()),
    ];
    prop_oneof![
        3 => (blanks(), text).prop_map(|(blanks, text)| Line::Text(blanks + &text)),
        1 => (blanks(), any::<usize>()).prop_map(|(blanks, to)| Line::Reference(blanks, to)),
    ]
}

fn fence() -> impl Strategy<Value = Fence> {
    (
        prop::sample::select(vec!["```", "~~~", "`````"]),
        0..4_usize,
        prop::sample::select(vec!["rust,ignore", "c", "sh", "html", "dts"]),
        0..3_usize,
        any::<bool>(),
    )
        .prop_map(|(mark, indent, language, chapter, crlf)| Fence {
            mark,
            indent,
            language,
            chapter,
            crlf,
        })
}

fn tree() -> impl Strategy<Value = Vec<Chunk>> {
    let part = (fence(), prop::collection::vec(line(), 0..7));
    let chunk = prop::collection::vec(part, 1..4).prop_map(|parts| Chunk { parts });
    prop::collection::vec(chunk, 1..8)
}

/// Which chunk a reference of chunk `from` leads to: a later one, so that there is no cycle.
fn target(from: usize, to: usize, count: usize) -> Option<usize> {
    let later = count - from - 1;
    (later > 0).then(|| from + 1 + to % later)
}

/// The parts of all chunks in the order of the book.
fn in_order(
    chunks: &[Chunk],
    chapter: usize,
) -> impl Iterator<Item = (usize, &(Fence, Vec<Line>))> {
    chunks
        .iter()
        .enumerate()
        .flat_map(|(index, chunk)| chunk.parts.iter().map(move |part| (index, part)))
        .filter(move |(_, (fence, _))| fence.chapter == chapter)
}

/// Whether a line of text would be taken for a reference or an escape.
fn harmless(text: &str) -> bool {
    !text.contains("<<") || text.contains("x();") || text.contains("///")
}

/// What the tool must write: chunk 0 is the file.
fn oracle(chunks: &[Chunk], index: usize, indent: &str, out: &mut Vec<String>) {
    for chapter in 0..3 {
        for (_, (_, lines)) in in_order(chunks, chapter).filter(|&(i, _)| i == index) {
            for line in lines {
                match line {
                    Line::Text(text) if text.is_empty() => out.push(String::new()),
                    Line::Text(text) => out.push(format!("{indent}{text}")),
                    Line::Reference(blanks, to) => {
                        if let Some(to) = target(index, *to, chunks.len()) {
                            oracle(chunks, to, &format!("{indent}{blanks}"), out);
                        }
                    }
                }
            }
        }
    }
}

/// The chapters of a tree. Chunks that nothing uses get a file of their own to be used in.
fn chapters(chunks: &[Chunk]) -> Vec<(String, String)> {
    let mut seen_root = false;
    let mut used = vec![false; chunks.len()];
    for (index, chunk) in chunks.iter().enumerate() {
        for line in chunk.parts.iter().flat_map(|(_, lines)| lines) {
            if let Line::Reference(_, to) = line
                && let Some(to) = target(index, *to, chunks.len())
            {
                used[to] = true;
            }
        }
    }
    let mut all = Vec::new();
    for chapter in 0..3 {
        let mut text = format!("# Chapter {chapter}\n\n");
        for (index, (fence, lines)) in in_order(chunks, chapter) {
            let name = match index {
                0 if seen_root => "file:out,append".to_owned(),
                0 => "file:out".to_owned(),
                _ => format!("chunk:c{index}"),
            };
            seen_root |= index == 0;
            let margin = " ".repeat(fence.indent);
            let end = if fence.crlf { "\r\n" } else { "\n" };
            text += &format!("Prose.\n\n{margin}{}{},{name}{end}", fence.mark, fence.language);
            for line in lines {
                let line = match line {
                    Line::Text(text) => text.clone(),
                    Line::Reference(blanks, to) => match target(index, *to, chunks.len()) {
                        Some(to) => {
                            let (open, close) = match fence.language {
                                "sh" => ("# ", ""),
                                "html" => ("<!--", " -->"),
                                "c" => ("/* ", " */ "),
                                _ => ("//", "  "),
                            };
                            format!("{blanks}{open}<<c{to}>>{close}")
                        }
                        None => continue,
                    },
                };
                let margin = if line.is_empty() { "" } else { &margin };
                text += &format!("{margin}{line}{end}");
            }
            text += &format!("{margin}{}{end}\n", fence.mark);
        }
        all.push((format!("book/{chapter}.md"), text));
    }
    let unused: String = (1..chunks.len())
        .filter(|&index| !used[index])
        .map(|index| format!("# <<c{index}>>\n"))
        .collect();
    all.push(("book/rest.md".to_owned(), format!("```sh,file:rest\n{unused}```\n")));
    all
}

fn book_of(chapters: &[(String, String)]) -> Book {
    let chapters: Vec<_> = chapters.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    build(&chapters)
}

fn outputs(book: &Book) -> impl Iterator<Item = (OutputId, &tangle::Output)> {
    (0..).map(OutputId).zip(book.outputs())
}

/// So many in an ordinary run; `TANGLE_CASES` says another number.
fn cases(few: u32) -> u32 {
    std::env::var("TANGLE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(40), ..ProptestConfig::default() })]

    #[test]
    fn a_tree_is_what_the_oracle_says(chunks in tree()) {
        let texts = chunks.iter().flat_map(|c| c.parts.iter().flat_map(|(_, lines)| lines));
        prop_assume!(texts.clone().all(|line| !matches!(line, Line::Text(t) if !harmless(t))));
        let chapters = chapters(&chunks);
        let book = book_of(&chapters);
        let said = tangle::problem::render(book.findings(), book.sources(), Default::default());
        prop_assert!(book.findings().is_empty(), "{}\n{:?}", said, chapters);
        let mut lines = Vec::new();
        oracle(&chunks, 0, "", &mut lines);
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let output = book.output(book.output_named("out").expect("the file"));
        prop_assert_eq!(&output.text, &expected, "{:?}", chapters);
        prop_assert_eq!(output.lines as usize, lines.len());
    }

    #[test]
    fn every_line_knows_where_it_is_from(chunks in tree()) {
        let texts = chunks.iter().flat_map(|c| c.parts.iter().flat_map(|(_, lines)| lines));
        prop_assume!(texts.clone().all(|line| !matches!(line, Line::Text(t) if !harmless(t))));
        let book = book_of(&chapters(&chunks));
        let map = Map::of(&book);
        let again: Map = serde_json::from_slice(&serde_json::to_vec(&map).expect("JSON")).expect("JSON");
        prop_assert_eq!(&map, &again);
        for (id, output) in outputs(&book) {
            for (number, line) in (1..).zip(output.text.lines()) {
                let origin = book.origin(id, number).expect("every line has an origin");
                let source = book.source(origin.source);
                let there = source.line(origin.line);
                // The same text, but for indentation: some came from references, some went with
                // the fence's own.
                prop_assert_eq!(there.trim_start(), line.trim_start());
                if !line.is_empty() {
                    let kept = line.get(origin.indent as usize..).expect("the indentation is there");
                    prop_assert!(there.ends_with(kept));
                }
                let part = book.part(origin.part);
                prop_assert!(part.lines().contains(&origin.line));
                let inside = |p: &Placement| p.output == id && (p.first..=p.last).contains(&number);
                let placed = book.placements(origin.part).iter().any(inside);
                prop_assert!(placed);
                prop_assert!(book.lines_from(origin.source, origin.line).contains(&(id, number)));
                let found = map.to_chapter(&output.path, number, Some(1)).expect("in the map");
                prop_assert_eq!((found.path, found.line), (source.path.as_str(), origin.line));
                let back = map.to_outputs(found.path, found.line, None);
                prop_assert!(back.iter().any(|b| b.path == output.path && b.line == number));
            }
            prop_assert!(book.origin(id, output.lines + 1).is_none());
        }
    }

    /// A file that was changed anywhere comes back exactly, or it is said why not.
    #[test]
    fn edits_come_back_exactly(
        chunks in tree(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), edit()), 1..4),
        between in prop::sample::select(vec![Between::Ask, Between::Before, Between::After]),
    ) {
        let texts = chunks.iter().flat_map(|c| c.parts.iter().flat_map(|(_, lines)| lines));
        prop_assume!(texts.clone().all(|line| !matches!(line, Line::Text(t) if !harmless(t))));
        let book = book_of(&chapters(&chunks));
        let id = book.output_named("out").expect("the file");
        let mut lines: Vec<String> = book.output(id).text.lines().map(str::to_owned).collect();
        for (at, edit) in edits {
            match edit {
                Edit::Remove if lines.is_empty() => {}
                Edit::Remove => drop(lines.remove(at.index(lines.len()))),
                Edit::Change(text) if !lines.is_empty() => {
                    let line = at.index(lines.len());
                    let kept = lines[line].len() - lines[line].trim_start().len();
                    lines[line] = format!("{}{text}", &lines[line][..kept]);
                }
                Edit::Change(text) | Edit::Add(text) => lines.insert(at.index(lines.len() + 1), text),
            }
        }
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        let wanted: String = lines.iter().map(|line| format!("{line}\n")).collect();
        match tangle::sync::back(&book, &[(id, wanted.clone())], between) {
            Ok(back) => {
                let mut texts: Vec<(String, String)> =
                    book.chapters().map(|(_, source)| (source.path.clone(), source.text.clone())).collect();
                for (source, text) in &back.chapters {
                    let path = &book.source(*source).path;
                    let old = texts.iter_mut().find(|(name, _)| name == path).expect("a chapter");
                    old.1.clone_from(text);
                }
                let after = book_of(&texts);
                prop_assert!(after.findings().is_empty());
                for output in book.outputs() {
                    let found = &after.output(after.output_named(&output.path).expect("there")).text;
                    let wanted = if output.path == "out" { &wanted } else { &output.text };
                    // What is only blank may have become empty.
                    let blank = |text: &str| -> Vec<String> {
                        text.trim_end().lines().map(|line| if line.trim().is_empty() { String::new() } else { line.to_owned() }).collect()
                    };
                    prop_assert_eq!(blank(found), blank(wanted));
                }
            }
            Err(findings) => {
                let codes: Vec<_> = findings.iter().map(|f| f.problem.code()).collect();
                prop_assert!(!codes.is_empty());
                for code in codes {
                    prop_assert!(code.starts_with("sync-") && code != "sync-inexact", "{}", code);
                }
            }
        }
    }

    /// Whatever a chapter holds, the lines of its blocks are those that the Markdown parser sees.
    #[test]
    fn blocks_are_those_of_the_parser(pieces in prop::collection::vec(piece(), 0..24)) {
        let text: String = pieces.concat();
        let book = build(&[("book/a.md", &text)]);
        let ours: Vec<String> = book
            .parts()
            .iter()
            .map(|part| {
                part.block
                    .lines
                    .iter()
                    .map(|line| {
                        let pad = " ".repeat(usize::from(line.pad));
                        format!("{pad}{}\n", &text[line.span.clone()])
                    })
                    .collect()
            })
            .collect();
        // A block that is never closed may end without a line end.
        let text = if text.ends_with('\n') { text } else { text + "\n" };
        prop_assert_eq!(ours, top_level_blocks(&text), "{:?}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "([`~<>!#/*\\-=:,.\\\\ \t\r\n\u{0}\u{feff}a-c]|file:|chunk:|```|<<|>>){0,60}") {
        let book = build(&[("book/a.md", &text), ("book/b.md", &text)]);
        let _ = tangle::problem::render(book.findings(), book.sources(), Default::default());
        let _ = tangle::check::traps(&book);
    }
}

/// What somebody does to a line of a generated file.
#[derive(Debug, Clone)]
enum Edit {
    Add(String),
    Change(String),
    Remove,
}

fn edit() -> impl Strategy<Value = Edit> {
    let text = prop_oneof![
        "[a-z(){};]{0,12}",
        "[ \t]{0,9}[a-z]{1,5}",
        Just("// <<c1>>".to_owned()),
        Just("# \\<<c1>>".to_owned()),
        Just("```".to_owned()),
        Just("  ~~~~~~".to_owned()),
    ];
    prop_oneof![text.clone().prop_map(Edit::Add), text.prop_map(Edit::Change), Just(Edit::Remove),]
}

fn piece() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "```c,chunk:a\n",
        "~~~c,chunk:b\n",
        "````c,chunk:c\n",
        " ```c,chunk:d\n",
        "   ```c,chunk:e\n",
        "    ```c,chunk:f\n",
        "```\n",
        "~~~\n",
        "````\n",
        "  ```\n",
        "```  \n",
        "- ",
        "1. ",
        "> ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\n",
        "text\n",
        "x\r\n",
        "<!--\n",
        "-->\n",
        "<div>\n",
        "# Title\n",
        "---\n",
        "[^1]: ",
        "| a |\n|---|\n",
        ": ",
        "`",
        "<!-- title: x -->\n",
        "\u{e4}\n",
    ])
    .prop_map(str::to_owned)
}

/// The text of the tangled blocks at the top level, from the parser's own events.
fn top_level_blocks(text: &str) -> Vec<String> {
    use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_HEADING_ATTRIBUTES
        | Options::ENABLE_DEFINITION_LIST
        | Options::ENABLE_GFM;
    let mut depth = 0;
    let mut open = false;
    let mut found: Vec<String> = Vec::new();
    for event in Parser::new_ext(text, options) {
        match event {
            Event::Start(tag) => {
                if depth == 0
                    && let Tag::CodeBlock(CodeBlockKind::Fenced(info)) = &tag
                    && info.contains("chunk:")
                {
                    open = true;
                    found.push(String::new());
                }
                depth += 1;
            }
            Event::End(end) => {
                depth -= 1;
                open &= end != TagEnd::CodeBlock;
            }
            Event::Text(text) if open => {
                if let Some(last) = found.last_mut() {
                    last.push_str(&text.replace("\r\n", "\n"));
                }
            }
            _ => {}
        }
    }
    found
}
