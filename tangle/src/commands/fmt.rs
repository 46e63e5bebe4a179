// SPDX-License-Identifier: GPL-2.0

//! `tangle fmt`.

use std::path::Path;
use std::process::ExitCode;

use tangle::fmt;

use super::sync::{listed, what_files};
use super::{Form, count, print_findings, say};

/// Format the Rust of the book: rustfmt formats the files, and its changes go into the chapters
#[derive(clap::Args)]
pub struct Args {
    /// Show what would change in the chapters, and write nothing; exit status 1 if anything would
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,
    /// Print what changed as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(root: &Path, args: &Args, form: Form) -> ExitCode {
    let run = fmt::run(root, args.dry_run);
    let consequence = match run.report {
        Some(_) => "; the files they are about are left as they are",
        None => "; nothing was written",
    };
    print_findings(form, &run.findings, &run.sources, consequence);
    let wrong = run.findings.iter().any(tangle::Finding::is_error);
    let Some(report) = run.report else { return ExitCode::FAILURE };
    if args.json {
        say(&serde_json::to_string(&report).unwrap_or_default());
    } else if !args.quiet {
        listed(&report.changes, args.dry_run);
        let end = what_files(&report.changes, args.dry_run);
        say(&format!("tangle: {} formatted{end}", count(report.files.len(), "file")));
        for (path, copy) in &report.kept {
            say(&format!("tangle: {path} as it was is kept as {copy}"));
        }
    }
    if wrong || args.dry_run && !report.files.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
