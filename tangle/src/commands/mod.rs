// SPDX-License-Identifier: GPL-2.0

//! What the commands print. What they do is in the library.

pub mod sync;

use std::io::{self, IsTerminal, Write};

use tangle::problem::{self, Look};
use tangle::{Finding, Source};

pub fn count(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

/// A line on standard output. That nobody reads it is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

pub fn print_findings(findings: &[Finding], sources: &[Source], consequence: &str) {
    if findings.is_empty() {
        return;
    }
    let terminal = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let look = Look { colour: terminal, ..Look::default() };
    eprint!("{}", problem::render(findings, sources, look));
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let warnings = findings.len() - errors;
    let said: Vec<String> = [(errors, "error"), (warnings, "warning")]
        .into_iter()
        .filter(|&(n, _)| n > 0)
        .map(|(n, word)| count(n, word))
        .collect();
    let end = if errors > 0 { consequence } else { "" };
    eprintln!("tangle: {}{end}", said.join(", "));
}
