// SPDX-License-Identifier: GPL-2.0

//! One block as HTML: caption, code, links.
//!
//! Markdown ends a block of HTML at an empty line, and code is full of them; so the line end before
//! an empty line of code is written as a character reference.

use std::fmt::Write as _;

use similar::{ChangeTag, TextDiff};

use super::colour::Colours;
use super::context::{self, Context};
use super::links::{CHUNKS_PAGE, Links, relative};
use super::words::{lines, list, name, plain, prose, push_text, text};
use crate::book::{Book, Part, PartId};
use crate::parse::{Line, LineKind, Target, Variant};
use crate::source::Source;

/// How many places a caption names before it refers to the index.
const PLACES: usize = 3;

/// Writes the figure of a part; `files` has the lines of each file.
pub(super) fn figure(
    book: &Book,
    links: &Links<'_>,
    files: &[Vec<&str>],
    id: PartId,
    out: &mut String,
) {
    let part = book.part(id);
    let page = links.page(part.source);
    let anchor = links.anchor(id);
    // A root begins its file: there is nothing round it.
    let context = match book.chunk(part.chunk).target {
        Target::File(_) if part.index == 0 => Context::default(),
        _ => context::of(book, files, id),
    };
    let (outer, inner) =
        if part.hidden() { ("details", "summary") } else { ("figure", "figcaption") };
    let _ = write!(out, "<{outer} class=\"chunk\" id=\"{anchor}\"><{inner}>");
    caption(book, links, id, out);
    let _ = write!(out, "</{inner}>");
    if let Some(why) = part.block.why.as_ref().filter(|_| part.hidden()) {
        let _ = write!(out, "<p class=\"chunk-why\">{}</p>", prose(&why.text));
    }
    let around = |lines: &str, out: &mut String| {
        // It is there for the eye: not copied with the code, and not found in its place.
        if !lines.is_empty() {
            let lines = text(lines).replace('\n', "&#10;");
            let _ = write!(
                out,
                "<div class=\"chunk-context\" aria-hidden=\"true\" data-lines=\"{lines}\"></div>"
            );
        }
    };
    around(&context.before.join("\n"), out);
    code(book, links, part, context.indent, out);
    around(context.after.as_deref().unwrap_or_default(), out);
    before(book, links, id, out);
    neighbours(book, links, id, page, out);
    let _ = write!(out, "</{outer}>");
}

/// What it is, which part of it, and where it lands.
fn caption(book: &Book, links: &Links<'_>, id: PartId, out: &mut String) {
    let part = book.part(id);
    let anchor = links.anchor(id);
    let chunk = book.chunk(part.chunk);
    let title = if part.block.title.is_some() { prose(part.title()) } else { name(&chunk.target) };
    let _ = write!(out, "<a class=\"chunk-title\" href=\"#{anchor}\">{title}</a> ");
    if let (Target::Chunk(_), Some(_)) = (&chunk.target, &part.block.title) {
        let _ = write!(out, "{} ", name(&chunk.target));
    }
    if part.active && chunk.parts.len() > 1 {
        let (k, n) = (part.index + 1, chunk.parts.len());
        let _ = write!(out, "part {k} of {n} ");
    }
    out.push_str("<span class=\"chunk-place\">");
    places(book, links, id, out);
    out.push_str("</span>");
}

/// Files and lines: `a.rs, lines 3–9 and 20–26; b.rs, line 4`.
fn places(book: &Book, links: &Links<'_>, id: PartId, out: &mut String) {
    let part = book.part(id);
    let page = links.page(part.source);
    let lab = |lab: u32| format!("what lab {lab} starts from");
    match (part.replaced_by, part.block.variant) {
        (Some(by), _) => {
            let _ = write!(out, "until {}", link(book, links, page, part, by));
        }
        (None, Variant::Starter(number)) => out.push_str(&lab(number)),
        _ => {}
    }
    let all = book.placements(id);
    let shown = if all.len() > PLACES + 1 { &all[..PLACES] } else { all };
    let mut files = shown.chunk_by(|a, b| a.output == b.output).peekable();
    while let Some(file) = files.next() {
        let output = book.output(file[0].output);
        let link = links.to_line(page, file[0].output, file[0].first.min(output.lines));
        let _ = write!(out, "<a href=\"{link}\">{}</a>, {}", text(&output.path), lines(file));
        if files.peek().is_some() {
            out.push_str("; ");
        }
    }
    if all.len() > shown.len() {
        let link = relative(page, CHUNKS_PAGE, links.anchor_of(part.chunk));
        let more = all.len() - shown.len();
        let _ = write!(out, " and <a href=\"{link}\">{more} other places</a>");
    }
}

/// The code, each reference a link.
fn code(book: &Book, links: &Links<'_>, part: &Part, indent: usize, out: &mut String) {
    let source = book.source(part.source);
    let mut colours = Colours::of(&part.block.language);
    // Without a `language-` class highlight.js keeps off.
    let class = match &colours {
        Some(_) => "nohighlight".to_owned(),
        None => format!("language-{}", text(&part.block.language)),
    };
    // mdBook changes the code of a block with nothing but text in it: it would hide lines.
    let style = match indent {
        0 => String::new(),
        indent => format!(" style=\"--indent:{indent}\""),
    };
    let _ = write!(out, "<pre{style}><code class=\"{class}\"><!---->");
    let mut references = part.references.iter();
    for (index, line) in part.block.lines.iter().enumerate() {
        let shown = shown(source, line);
        match index {
            0 => {}
            _ if shown.trim().is_empty() => out.push_str("&#10;"),
            _ => out.push('\n'),
        }
        let mut write = |shown: &str, out: &mut String| match &mut colours {
            Some(colours) => colours.line(shown, out),
            None => push_text(shown, out),
        };
        let reference = match line.kind {
            LineKind::Reference(_) => references.next().map(|&id| book.reference(id)),
            LineKind::Text | LineKind::Escaped(_) => None,
        };
        match reference.and_then(|reference| reference.target) {
            None => write(&shown, out),
            Some(target) => {
                let first = book.chunk(target).parts[0];
                let link = links.to_part(links.page(part.source), first);
                let mark = shown.trim();
                let start = shown.len() - shown.trim_start().len();
                let _ = write!(out, "{}<a class=\"chunk-ref\" href=\"{link}\"", &shown[..start]);
                if let Some(title) = &book.part(first).block.title {
                    let _ = write!(out, " data-title=\"{}", text(&plain(&title.text)));
                    match book.chunk(target).parts.len() - 1 {
                        0 => {}
                        1 => out.push_str(", and one more part"),
                        more => {
                            let _ = write!(out, ", and {more} more parts");
                        }
                    }
                    out.push('"');
                }
                out.push('>');
                write(mark, out);
                out.push_str("</a>");
            }
        }
    }
    if !part.block.lines.is_empty() {
        out.push_str("&#10;");
    }
    out.push_str("</code></pre>");
}

/// What a part replaces: the old body, the lines that go and come marked.
fn before(book: &Book, links: &Links<'_>, id: PartId, out: &mut String) {
    let part = book.part(id);
    let old = book.chunk(part.chunk).all.iter();
    let old: Vec<PartId> =
        old.copied().filter(|&old| book.part(old).replaced_by == Some(id)).collect();
    let Some(&first) = old.first() else { return };
    let text = |parts: &[PartId]| {
        let mut text = String::new();
        for &id in parts {
            let part = book.part(id);
            let source = book.source(part.source);
            for line in &part.block.lines {
                text.push_str(&shown(source, line));
                text.push('\n');
            }
        }
        text
    };
    let page = links.page(part.source);
    let _ = write!(
        out,
        "<details class=\"chunk-was\"><summary>What changed since {}</summary>\
         <pre><code class=\"nohighlight\"><!---->",
        link(book, links, page, part, first)
    );
    let (was, is) = (text(&old), text(&[id]));
    for change in TextDiff::from_lines(&was, &is).iter_all_changes() {
        let (mark, sign) = match change.tag() {
            ChangeTag::Equal => ("span", ' '),
            ChangeTag::Delete => ("del", '-'),
            ChangeTag::Insert => ("ins", '+'),
        };
        let _ = write!(out, "<{mark}>{sign}");
        push_text(change.value().trim_end_matches('\n'), out);
        let _ = write!(out, "</{mark}>&#10;");
    }
    out.push_str("</code></pre></details>");
}

/// A line as it goes into its file, without what references put before it.
fn shown(source: &Source, line: &Line) -> String {
    let body = &source.text[line.span.clone()];
    let mut shown = " ".repeat(usize::from(line.pad));
    match line.kind {
        LineKind::Escaped(at) => {
            shown.push_str(&source.text[line.span.start..at]);
            shown.push_str(&source.text[at + 1..line.span.end]);
        }
        LineKind::Text | LineKind::Reference(_) => shown.push_str(body),
    }
    shown
}

/// Where the chunk goes on, where it came from, where it is used.
fn neighbours(book: &Book, links: &Links<'_>, id: PartId, page: &str, out: &mut String) {
    let part = book.part(id);
    let chunk = book.chunk(part.chunk);
    if !part.active {
        // What does not go into a file has no neighbours there.
        return;
    }
    let mut said = Vec::new();
    if let Some(&before) = part.index.checked_sub(1).and_then(|index| chunk.parts.get(index)) {
        said.push(format!("Continues {}", link(book, links, page, part, before)));
    }
    if let Some(&after) = chunk.parts.get(part.index + 1) {
        let after = link(book, links, page, part, after);
        // What opens the chunk in place goes on there.
        let after = after.replacen("<a ", "<a class=\"chunk-next\" ", 1);
        said.push(format!("Continued in {after}"));
    }
    if !chunk.uses.is_empty() {
        let mut users: Vec<PartId> = chunk.uses.iter().map(|&id| book.reference(id).part).collect();
        users.dedup();
        let users = users.into_iter().map(|user| link(book, links, page, part, user));
        said.push(format!("Used in {}", list(users)));
    }
    if !said.is_empty() {
        let _ = write!(out, "<div class=\"chunk-links\">{}.</div>", said.join(". "));
    }
}

/// A link to `to` that says which part it is and, if it is not the reader's, which chapter.
fn link(book: &Book, links: &Links<'_>, page: &str, from: &Part, to: PartId) -> String {
    let part = book.part(to);
    let chunk = book.chunk(part.chunk);
    let href = links.to_part(page, to);
    let title = match &part.block.title {
        Some(title) => prose(&title.text),
        None => name(&chunk.target),
    };
    let mut out = format!("<a href=\"{href}\">{title}</a>");
    // Parts without a title are all called the same.
    if part.active && chunk.parts.len() > 1 && part.block.title.is_none() {
        let _ = write!(out, " (part {})", part.index + 1);
    }
    if part.source != from.source {
        let _ = write!(out, " in <em>{}</em>", text(links.name(part.source)));
    }
    out
}
