// SPDX-License-Identifier: GPL-2.0

//! The `tangle` command.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tangle::problem::{self, Look};
use tangle::write::{self, Options};
use tangle::{Finding, Source, config};

/// Takes the code out of the chapters of a book, and finds its way back.
#[derive(Parser)]
#[command(version, after_help = "Exit status: 0 done, 1 something is wrong with the book, 2 wrong usage.")]
struct Cli {
    /// The folder of book.toml [default: the nearest one at or above the current folder]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    tangle: TangleArgs,
    #[command(subcommand)]
    command: Option<Cmd>,
}

#[derive(clap::Args)]
struct TangleArgs {
    /// Write over files that were changed by hand, after copying them to .tangle/kept/
    #[arg(long)]
    force: bool,
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Cmd {
    /// Write what changed (the same as no command)
    Tangle(TangleArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(root) = root(cli.root) else {
        eprintln!("tangle: no book.toml here or above; say where it is with --root");
        return ExitCode::from(2);
    };
    match cli.command {
        None => tangle(&root, &cli.tangle),
        Some(Cmd::Tangle(args)) => tangle(&root, &args),
    }
}

fn root(given: Option<PathBuf>) -> Option<PathBuf> {
    match given {
        Some(root) => root.join("book.toml").is_file().then_some(root),
        None => config::find_root(&std::env::current_dir().ok()?),
    }
}

fn tangle(root: &std::path::Path, args: &TangleArgs) -> ExitCode {
    let run = write::run(root, Options { force: args.force });
    print_findings(&run.findings, &run.sources);
    let Some(report) = run.report else { return ExitCode::FAILURE };
    for (path, copy) in &report.kept {
        eprintln!("tangle: {path} was not tangle's; a copy is {copy}");
    }
    if !args.quiet {
        let line = match (report.written.len(), report.removed.len()) {
            (0, 0) => format!("tangle: {} files, nothing changed", report.files),
            (written, 0) => format!("tangle: {} files, {written} written", report.files),
            (written, removed) => {
                format!("tangle: {} files, {written} written, {removed} removed", report.files)
            }
        };
        // A closed pipe is no reason to fail.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    ExitCode::SUCCESS
}

fn print_findings(findings: &[Finding], sources: &[Source]) {
    if findings.is_empty() {
        return;
    }
    let terminal = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let look = Look { colour: terminal, ..Look::default() };
    eprint!("{}", problem::render(findings, sources, look));
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let warnings = findings.len() - errors;
    let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let said: Vec<String> = [(errors, "error"), (warnings, "warning")]
        .into_iter()
        .filter(|&(n, _)| n > 0)
        .map(|(n, word)| count(n, word))
        .collect();
    let end = if errors > 0 { "; nothing was written" } else { "" };
    eprintln!("tangle: {}{end}", said.join(", "));
}
