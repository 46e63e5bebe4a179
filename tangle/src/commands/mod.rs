// SPDX-License-Identifier: GPL-2.0

//! What the commands print. What they do is in the library.

pub mod fmt;
pub mod sync;
pub mod watch;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tangle::problem::{self, Look, Problem};
use tangle::{Finding, Source};

pub fn count(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

/// A line on standard output. That nobody reads it is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// How what is wrong is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// With the lines it is about and what to do
    #[default]
    Human,
    /// One line each: chapter.md:line:col: error[code]: what
    Short,
    /// One JSON object on each line
    Json,
}

pub fn print_findings(form: Form, findings: &[Finding], sources: &[Source], consequence: &str) {
    if findings.is_empty() {
        return;
    }
    match form {
        Form::Human => {
            let terminal = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let look = Look { colour: terminal, ..Look::default() };
            eprint!("{}", problem::render(findings, sources, look));
        }
        Form::Short => eprint!("{}", problem::short(findings, sources)),
        Form::Json => return eprint!("{}", problem::json(findings, sources)),
    }
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let warnings = findings.len() - errors;
    let said: Vec<String> = [(errors, "error"), (warnings, "warning")]
        .into_iter()
        .filter(|&(n, _)| n > 0)
        .map(|(n, word)| count(n, word))
        .collect();
    let begun = findings.iter().any(|finding| finding.problem == Problem::HalfWay);
    let end = if errors > 0 && !begun { consequence } else { "" };
    eprintln!("tangle: {}{end}", said.join(", "));
}
