// SPDX-License-Identifier: GPL-2.0

//! The page that accounts for every line of the files.

use std::fmt::Write as _;

use super::links::{AUDIT_PAGE, Links, relative};
use super::words::{lines, prose, text};
use crate::book::{Book, Part, PartId};
use crate::check;

/// The page, as Markdown.
pub(super) fn page(book: &Book, links: &Links<'_>) -> String {
    let audit = check::audit(book);
    let mut out = format!(
        "# Every line accounted for\n\nThe {} files of this book have {} lines. {} of them stand in \
         blocks that a page\nshows, {} in blocks that are folded away and say why, and {} in \
         blocks that are\nfolded away and do not. There are {} blocks, {} chunks with a name, and \
         no line of\ncode that comes from anywhere else. This page is made from what is written \
         into the\nfiles; a book with a chunk that is unused, undefined or defined twice is not \
         rendered\nat all, and `tangle check` fails on a hidden block without a reason.\n\n",
        audit.files,
        audit.lines,
        audit.shown,
        audit.hidden,
        audit.unexplained,
        audit.blocks,
        audit.chunks,
    );
    out.push_str("## What is folded away\n\n");
    let hidden: Vec<PartId> = (0..)
        .map(PartId)
        .zip(book.parts())
        .filter(|(_, part)| part.hidden())
        .map(|(id, _)| id)
        .collect();
    if hidden.is_empty() {
        out.push_str("Nothing: every block is shown.\n");
    } else {
        out.push_str("<dl class=\"chunk-index\">");
        for id in hidden {
            folded(book, links, id, &mut out);
        }
        out.push_str("</dl>\n");
    }
    out.push_str("\n## Chapter by chapter\n\n");
    chapters(book, links, &mut out);
    out
}

/// One hidden block.
fn folded(book: &Book, links: &Links<'_>, id: PartId, out: &mut String) {
    let part = book.part(id);
    let why = match &part.block.why {
        Some(why) if !why.text.is_empty() => prose(&why.text),
        _ => "<strong>no reason is given</strong>".to_owned(),
    };
    let places = book.placements(id).chunk_by(|a, b| a.output == b.output).map(|file| {
        let path = text(&book.output(file[0].output).path);
        let link = links.to_line(AUDIT_PAGE, file[0].output, file[0].first);
        format!("<a href=\"{link}\">{path}</a>, {}", lines(file))
    });
    let places = places.collect::<Vec<_>>().join("; ");
    let _ = write!(
        out,
        "<dt><a href=\"{}\">{}</a></dt><dd>{why}<br>{}: {places}</dd>",
        links.to_part(AUDIT_PAGE, id),
        text(part.block.target.name()),
        text(links.name(part.source)),
    );
}

/// How much code each chapter has, and how much that is not code.
fn chapters(book: &Book, links: &Links<'_>, out: &mut String) {
    let code = |part: &Part| part.block.lines.len() - part.references.len();
    out.push_str(
        "| chapter | blocks | lines of code | lines of text |\n| --- | ---: | ---: | ---: |\n",
    );
    let mut sum = (0, 0, 0);
    let mut row = |name: &str, (blocks, code, text): (usize, usize, usize)| {
        let _ = writeln!(out, "| {name} | {blocks} | {code} | {text} |");
    };
    for (id, source) in book.chapters() {
        let parts: Vec<&Part> = book.parts_in(id).map(|(_, part)| part).collect();
        let fenced: usize = parts.iter().map(|part| part.block.lines.len() + 2).sum();
        let all = source.text.lines().filter(|line| !line.trim().is_empty()).count();
        let blank = |part: &&Part| {
            let lines = part.block.lines.iter();
            lines.filter(|line| source.text[line.span.clone()].trim().is_empty()).count()
        };
        let blank: usize = parts.iter().map(blank).sum();
        let counts = (
            parts.len(),
            parts.iter().map(|part| code(part)).sum(),
            (all + blank).saturating_sub(fenced),
        );
        sum = (sum.0 + counts.0, sum.1 + counts.1, sum.2 + counts.2);
        let link = relative(AUDIT_PAGE, links.page(id), "");
        row(&format!("<a href=\"{link}\">{}</a>", text(links.name(id))), counts);
    }
    row("**all**", sum);
}
