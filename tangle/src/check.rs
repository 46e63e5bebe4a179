// SPDX-License-Identifier: GPL-2.0

//! What CI asks of a book beyond "it tangles".

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use similar::TextDiff;

use crate::book::{Book, OutputId, Part};
use crate::config::Input;
use crate::parse::LineKind;
use crate::problem::{self, Finding, Problem};
use crate::select::Selection;
use crate::settings::Settings;
use crate::source::{Place, Source};
use crate::write;

/// Where the lines of the outputs come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Number of outputs.
    pub files: usize,
    /// Number of named chunks.
    pub chunks: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Number of hidden blocks.
    pub hidden_blocks: usize,
    /// Lines of all outputs.
    pub lines: u64,
    /// Lines of them that a reader of the page sees.
    pub shown: u64,
    /// Lines of them in hidden blocks that say why.
    pub hidden: u64,
    /// Lines of them in hidden blocks that do not.
    pub unexplained: u64,
}

/// What `check` found.
#[derive(Debug)]
pub struct Checked {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The sources the findings are about.
    pub sources: Vec<Source>,
    /// The audit, if the book can be expanded.
    pub audit: Option<Audit>,
}

/// Checks the book in `root`. Nothing is written. With `each_chapter` it is also tried whether every
/// chapter names what it needs, so that the code can be had as it is at its end.
#[must_use]
pub fn run(root: &Path, each_chapter: bool) -> Checked {
    let mut book = Book::load(root);
    let mut findings = book.findings().to_vec();
    findings.extend(traps(&book));
    let (settings, wrong) = Settings::of(book.sources());
    findings.extend(wrong);
    let mut numbers = None;
    if !book.has_errors() {
        findings.extend(labs(&book));
        if each_chapter {
            findings.extend(chapters(&book));
        }
        findings.extend(rustfmt(&book, &settings));
        findings.extend(
            write::out_of_date(&book)
                .into_iter()
                .map(|(path, state)| Finding::nowhere(Problem::OutOfDate { path, state })),
        );
        numbers = Some(audit(&book));
    }
    problem::sort(&mut findings);
    Checked { findings, sources: book.take_sources(), audit: numbers }
}

/// What is wrong with the starter of a lab and not with the whole book.
fn labs(book: &Book) -> Vec<Finding> {
    let labs = book.labs().into_iter();
    let selections = labs.map(|lab| Selection { lab: Some(lab), ..Selection::default() });
    of_selections(book, selections)
}

/// What is wrong when the book ends with a chapter, for each chapter.
fn chapters(book: &Book) -> Vec<Finding> {
    let paths = book.chapters().map(|(_, source)| source.path.clone());
    let selections = paths.map(|path| Selection { until: Some(path), ..Selection::default() });
    of_selections(book, selections)
}

/// The errors of parts of a book, each once.
fn of_selections(book: &Book, selections: impl Iterator<Item = Selection>) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for selection in selections {
        let sources = book.sources().to_vec();
        let input = Input { root: book.root().to_path_buf(), sources, findings: Vec::new() };
        let part = Book::build_with(input, &selection);
        for finding in part.findings().iter().filter(|finding| finding.is_error()) {
            if !found.iter().any(|f| f.at == finding.at && f.problem == finding.problem) {
                found.push(finding.clone());
            }
        }
    }
    found
}

/// What is wrong with the blocks as they stand in the chapters.
#[must_use]
pub fn traps(book: &Book) -> Vec<Finding> {
    let mut found = Vec::new();
    let (settings, _) = Settings::of(book.sources());
    for part in book.parts() {
        block_traps(part, &settings, &mut found);
        let source = book.source(part.source);
        for line in &part.block.lines {
            let text = &source.text[line.span.clone()];
            let mut add = |problem, from: usize, to: usize| {
                let span = line.span.start + from..line.span.start + to;
                found.push(Finding::error(problem, Place { source: part.source, span }));
            };
            let kept = text.trim_end_matches([' ', '\t']).len();
            if kept < text.len() {
                add(Problem::TrailingBlanks, kept, text.len());
            }
            if let Some(at) = text.find("{{#") {
                add(Problem::Expands, at, at + 3);
            }
            let wide = columns(text) + usize::from(line.pad);
            if settings.columns > 0 && wide > settings.columns {
                add(Problem::TooWide(wide, settings.columns), 0, text.len());
            }
            if is_rust(part) && line.kind == LineKind::Text && changed_by_mdbook(text) {
                add(Problem::HiddenLine, text.len() - text.trim_start().len(), text.len());
            }
        }
    }
    found
}

fn block_traps(part: &Part, settings: &Settings, found: &mut Vec<Finding>) {
    let fence = Place { source: part.source, span: part.block.fence.clone() };
    let lines = part.block.lines.len();
    if settings.lines > 0 && lines > settings.lines {
        let problem = Problem::TooLong(lines, settings.lines);
        found.push(Finding::error(problem, fence));
    }
    if let Some(span) = &part.block.hide
        && !explained(part)
    {
        let at = Place { source: part.source, span: span.clone() };
        found.push(Finding::error(Problem::NoWhy, at));
    }
}

fn explained(part: &Part) -> bool {
    part.block.why.as_ref().is_some_and(|why| !why.text.is_empty())
}

fn is_rust(part: &Part) -> bool {
    matches!(part.block.language.as_str(), "rust" | "rs")
}

fn columns(text: &str) -> usize {
    text.chars().fold(0, |at, c| if c == '\t' { (at / 4 + 1) * 4 } else { at + 1 })
}

/// Whether mdBook takes a line of a Rust block for a hidden one (`# x`, `#`) or an escaped one
/// (`##x`).
fn changed_by_mdbook(line: &str) -> bool {
    matches!(line.trim_start().as_bytes(), [b'#'] | [b'#', b' ' | b'#', ..])
}

/// Counts where the lines of the outputs come from.
#[must_use]
pub fn audit(book: &Book) -> Audit {
    let hidden = book.parts().iter().filter(|part| part.hidden()).count();
    let named = book.chunks().iter().filter(|c| matches!(c.target, crate::Target::Chunk(_)));
    let mut audit = Audit {
        files: book.outputs().len(),
        chunks: named.count(),
        blocks: book.parts().len(),
        hidden_blocks: hidden,
        ..Audit::default()
    };
    for output in book.outputs() {
        audit.lines += u64::from(output.lines);
        for piece in &output.pieces {
            let part = book.part(piece.part);
            let count = u64::from(piece.count);
            if !part.hidden() {
                audit.shown += count;
            } else if explained(part) {
                audit.hidden += count;
            } else {
                audit.unexplained += count;
            }
        }
    }
    audit
}

/// Reports each difference to what rustfmt writes at its line of the chapter.
fn rustfmt(book: &Book, settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    for (id, result) in formatted(book, settings) {
        match result {
            Ok(text) => found.extend(unformatted(book, id, &text)),
            Err(finding) => found.push(*finding),
        }
    }
    // A chunk that is used twice is wrong twice in the same way. One report is enough.
    let mut seen = HashSet::new();
    found.retain(|finding: &Finding| match &finding.problem {
        Problem::NotFormatted { instead, .. } => seen.insert((finding.at.clone(), instead.clone())),
        _ => true,
    });
    found
}

/// Each `.rs` file as rustfmt writes it, or why it cannot.
pub(crate) type Formatted = (OutputId, Result<String, Box<Finding>>);

/// Runs rustfmt on every `.rs` file, several at a time.
pub(crate) fn formatted(book: &Book, settings: &Settings) -> Vec<Formatted> {
    let args = settings.rustfmt();
    let files: Vec<OutputId> = (0..)
        .map(OutputId)
        .zip(book.outputs())
        .filter(|(_, output)| output.path.ends_with(".rs") && !output.text.is_empty())
        .map(|(id, _)| id)
        .collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    let work = || {
        let mut found = Vec::new();
        while let Some(&id) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((id, rustfmt_one(book, id, &args)));
        }
        found
    };
    let mut found = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut found = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(more) => found.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        found
    });
    found.sort_by_key(|&(id, _)| id);
    found
}

/// The place in the chapter of a line of a file.
fn place(book: &Book, id: OutputId, line: u32) -> Option<Place> {
    let origin = book.origin(id, line).or_else(|| book.origin(id, book.output(id).lines));
    origin.map(|origin| Place {
        source: origin.source,
        span: book.source(origin.source).line_span(origin.line),
    })
}

fn rustfmt_one(book: &Book, id: OutputId, args: &[String]) -> Result<String, Box<Finding>> {
    let output = book.output(id);
    let done = run_rustfmt(&output.text, args).map_err(|error| {
        let (path, reason) = ("rustfmt".to_owned(), error.to_string());
        Box::new(Finding::nowhere(Problem::Io { action: "run", path, reason }))
    })?;
    if done.stdout.is_empty() {
        let said = String::from_utf8_lossy(&done.stderr);
        let (line, reason) = first_error(&said);
        let problem = Problem::NotParsed { path: output.path.clone(), reason };
        return Err(Box::new(Finding { at: place(book, id, line), ..Finding::nowhere(problem) }));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Where a file differs from what rustfmt writes.
fn unformatted(book: &Book, id: OutputId, formatted: &str) -> Vec<Finding> {
    let output = book.output(id);
    let text = output.text.as_str();
    let diff = TextDiff::from_lines(text, formatted);
    let old: Vec<&str> = text.lines().collect();
    let new: Vec<&str> = formatted.lines().collect();
    diff.grouped_ops(0)
        .iter()
        .filter_map(|group| {
            let (first, last) = (group.first()?, group.last()?);
            let line = u32::try_from(first.old_range().start + 1).ok()?;
            let ours = &old[first.old_range().start..last.old_range().end];
            let theirs = &new[first.new_range().start..last.new_range().end];
            let instead = [listed('-', ours), listed('+', theirs)].concat();
            let instead = instead.trim_end().to_owned();
            let problem = Problem::NotFormatted { path: output.path.clone(), line, instead };
            Some(Finding { at: place(book, id, line), ..Finding::nowhere(problem) })
        })
        .collect()
}

/// Lines of one side of a difference, not too many.
fn listed(sign: char, lines: &[&str]) -> String {
    let mut out: String = lines.iter().take(8).map(|line| format!("{sign}{line}\n")).collect();
    if lines.len() > 8 {
        out.push_str("  ...\n");
    }
    out
}

fn run_rustfmt(text: &str, args: &[String]) -> std::io::Result<std::process::Output> {
    let mut child = Command::new("rustfmt")
        .args(args)
        // Away from the tree: the rustfmt.toml of the tools is not for the book.
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // rustfmt reads all of its input before it writes, so this cannot block for ever. If it
        // dies early its message tells more than the broken pipe.
        let _ = stdin.write_all(text.as_bytes());
    }
    child.wait_with_output()
}

/// Line and text of the first error rustfmt printed.
fn first_error(said: &str) -> (u32, String) {
    let reason = said.lines().find_map(|line| line.strip_prefix("error: "));
    let place = said.lines().find_map(|line| line.trim_start().strip_prefix("--> <stdin>:"));
    let line = place.and_then(|place| place.split(':').next()?.parse().ok()).unwrap_or(1);
    (line, reason.unwrap_or("it printed nothing").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_mdbook_changes() {
        for line in ["# use x;", "    # x", "#", "##x", "  ## x"] {
            assert!(changed_by_mdbook(line), "{line}");
        }
        for line in ["#[test]", "#![no_std]", "x # y", "", "\"# x\""] {
            assert!(!changed_by_mdbook(line), "{line}");
        }
    }

    #[test]
    fn tabs_go_to_the_next_stop() {
        assert_eq!(columns("\ta\tb"), 9);
        assert_eq!(columns("äö"), 2);
    }

    #[test]
    fn the_first_error_of_rustfmt() {
        let said = "error: expected one of `!` or `::`, found `y`\n --> <stdin>:3:7\n  |\n";
        assert_eq!(first_error(said), (3, "expected one of `!` or `::`, found `y`".to_owned()));
    }
}
