// SPDX-License-Identifier: GPL-2.0

//! `tangle sync`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use tangle::sync::{self, Between, Change, Report, Wish};

use super::{Form, count, print_findings, say};

/// Take what was changed in generated files back into the chapters
#[derive(clap::Args)]
pub struct Args {
    /// Only these files [default: all that tangle writes]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where a file and its chapter both changed, take what the file says; copies of the chapters
    /// go to .tangle/kept/
    #[arg(long)]
    force: bool,
    /// Show what would change in the chapters, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Where lines go that were added between two chunks
    #[arg(long, value_name = "SIDE")]
    between: Option<Side>,
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,
    /// Print what changed as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    /// To the end of the first
    Before,
    /// To the start of the second
    After,
}

pub fn run(root: &Path, args: &Args, form: Form) -> ExitCode {
    let cwd = std::env::current_dir().unwrap_or_else(|_| root.to_path_buf());
    let path = |file: &PathBuf| tangle::locate::path_of(root, &cwd, file);
    let wish = Wish {
        paths: args.files.iter().map(path).collect(),
        force: args.force,
        dry: args.dry_run,
        between: match args.between {
            None => Between::Ask,
            Some(Side::Before) => Between::Before,
            Some(Side::After) => Between::After,
        },
    };
    let run = sync::run(root, &wish);
    print_findings(form, &run.findings, &run.sources, "; nothing was written");
    let Some(report) = run.report else { return ExitCode::FAILURE };
    if args.json {
        say(&serde_json::to_string(&report).unwrap_or_default());
    } else if !args.quiet {
        print(&report, args.dry_run);
    }
    ExitCode::SUCCESS
}

/// Says each change as a line `chapter:line: what`, and with `shown` the lines, too.
pub fn listed(changes: &[Change], shown: bool) {
    for change in changes {
        let Change { chapter, line, file, file_line, .. } = change;
        say(&format!("{chapter}:{line}: {} ({file}:{file_line})", what(change)));
        if shown {
            change.added.iter().for_each(|line| say(&format!("+{line}")));
        }
    }
}

/// How many chapters were written, or would be.
pub fn what_files(changes: &[Change], dry: bool) -> String {
    let mut chapters: Vec<&str> = changes.iter().map(|c| c.chapter.as_str()).collect();
    chapters.sort_unstable();
    chapters.dedup();
    match (chapters.len(), dry) {
        (0, _) => String::new(),
        (n, false) => format!(", {} written", count(n, "chapter")),
        (n, true) => format!(", {} would be written", count(n, "chapter")),
    }
}

fn print(report: &Report, dry: bool) {
    listed(&report.changes, dry);
    let files = count(report.files.len(), "file");
    let changed = match report.files.len() {
        0 => "no generated file was changed by hand".to_owned(),
        1 => format!("{files} was changed by hand"),
        _ => format!("{files} were changed by hand"),
    };
    let end = what_files(&report.changes, dry);
    say(&format!("tangle: {changed}{end}"));
    for (path, copy) in &report.kept {
        say(&format!("tangle: {path} as it was is kept as {copy}"));
    }
}

fn what(change: &Change) -> String {
    let (gone, come) = (change.removed as usize, change.added.len());
    match (gone, come) {
        (0, _) => format!("{} added", count(come, "line")),
        (_, 0) => format!("{} removed", count(gone, "line")),
        (a, b) if a == b => format!("{} changed", count(a, "line")),
        _ => format!("{} changed into {come}", count(gone, "line")),
    }
}
