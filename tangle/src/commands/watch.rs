// SPDX-License-Identifier: GPL-2.0

//! `tangle watch`.

use std::path::Path;
use std::process::ExitCode;

use tangle::watch;
use tangle::write::{Options, Run};

use super::{Form, count, print_findings, say};

/// Tangles and says what came of it, again and again.
pub fn run(root: &Path, options: &Options, poll: bool, quiet: bool, form: Form) -> ExitCode {
    let mut first = true;
    let said = |run: Run| {
        // Between two runs that found something nothing else need be said.
        print_findings(form, &run.findings, &run.sources, "; nothing was written");
        let Some(report) = run.report else { return };
        for (path, copy) in &report.kept {
            eprintln!("tangle: {path} was not tangle's; a copy is {copy}");
        }
        if quiet {
            return;
        }
        for path in &report.written {
            say(&format!("tangle: {path} written"));
        }
        for path in &report.removed {
            say(&format!("tangle: {path} removed"));
        }
        if std::mem::take(&mut first) {
            let files = count(report.files, "file");
            say(&format!("tangle: {files}; watching, Ctrl-C ends it"));
        }
    };
    match watch::watch(root, options, poll, said) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tangle: {error}");
            ExitCode::FAILURE
        }
    }
}
