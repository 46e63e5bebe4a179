// SPDX-License-Identifier: GPL-2.0

//! A page for each file: the whole of it, each line linked to the chunk that it comes from.

use std::fmt::Write as _;

use super::colour::Colours;
use super::index::heading;
use super::links::{FILES_PAGE, Links, relative};
use super::words::{list, plain, push_text, text};
use crate::book::{Book, Output, OutputId, Piece};
use crate::source::SourceId;

/// The main part of the page of a file.
pub(super) fn page(book: &Book, links: &Links<'_>, id: OutputId) -> String {
    let output = book.output(id);
    let page = links.code(id);
    let mut out = String::with_capacity(output.text.len() * 3 + output.pieces.len() * 256);
    out.push_str(&heading(1, "top", &text(&output.path)));
    head(book, links, output, page, &mut out);
    if output.lines == 0 {
        return out;
    }
    let digits = output.lines.ilog10() + 1;
    let _ =
        write!(out, "<div class=\"whole\" style=\"--digits:{digits}\"><div class=\"whole-lines\">");
    for together in output.pieces.chunk_by(|a, b| a.part == b.part) {
        numbers(book, links, page, together, &mut out);
    }
    out.push_str("</div>");
    code(book, output, &mut out);
    out.push_str("</div>\n");
    out
}

/// How long it is, and where it is explained.
fn head(book: &Book, links: &Links<'_>, output: &Output, page: &str, out: &mut String) {
    let mut chapters: Vec<SourceId> = Vec::new();
    for piece in &output.pieces {
        let chapter = book.part(piece.part).source;
        if !chapters.contains(&chapter) {
            chapters.push(chapter);
        }
    }
    let chapters = chapters.into_iter().map(|chapter| {
        let link = relative(page, links.page(chapter), "");
        format!("<a href=\"{link}\">{}</a>", text(links.name(chapter)))
    });
    let chapters = list(chapters);
    let pieces = relative(page, FILES_PAGE, links.anchor_of(output.chunk));
    let lines = match output.lines {
        1 => "One line".to_owned(),
        lines => format!("{lines} lines"),
    };
    let from = if chapters.is_empty() { String::new() } else { format!(" from {chapters}") };
    let _ = writeln!(
        out,
        "<p>{lines}{from}. A number leads to where its line is explained. \
         <a href=\"{pieces}\">The pieces in a list</a>.</p>"
    );
}

/// The numbers of lines that come from one part: one link.
fn numbers(book: &Book, links: &Links<'_>, page: &str, pieces: &[Piece], out: &mut String) {
    let (first, last) = (&pieces[0], &pieces[pieces.len() - 1]);
    let part = book.part(first.part);
    let (from, to) = (first.first, last.first + last.count - 1);
    let title = text(&plain(part.title()));
    let lines = if from == to { format!("Line {from}") } else { format!("Lines {from} to {to}") };
    let link = links.to_part(page, first.part);
    let _ = write!(out, "<a href=\"{link}\" title=\"{title}\" aria-label=\"{lines}: {title}\">");
    for line in from..=to {
        let _ = writeln!(out, "<span id=\"L{line}\">{line}</span>");
    }
    out.push_str("</a>");
}

fn code(book: &Book, output: &Output, out: &mut String) {
    let language = &book.part(book.chunk(output.chunk).parts[0]).block.language;
    match Colours::of(language) {
        None => {
            let _ = write!(out, "<pre><code class=\"language-{}\">", text(language));
            push_text(&output.text, out);
        }
        Some(mut colours) => {
            out.push_str("<pre><code class=\"nohighlight\">");
            for line in output.text.lines() {
                colours.line(line, out);
                out.push('\n');
            }
        }
    }
    out.push_str("</code></pre>");
}
