// SPDX-License-Identifier: GPL-2.0-only

//! The tests that need no machine: cargo's, and commands that are good when they end well.

use std::process::Command;

use anyhow::{Context, Result};

use crate::chapters::in_chapters;
use crate::counts::{Fate, cargo_test_line};
use crate::report::Report;

/// Runs a command that is a test by itself: its name, and the command.
///
/// # Errors
///
/// When its log cannot be kept.
pub fn command(
    report: &mut Report,
    section: &str,
    name: &str,
    command: &mut Command,
) -> Result<()> {
    if !report.wants(section, name) {
        return Ok(());
    }
    finished(report, section, name, run(command))
}

/// The same for a command that ends with 3 where it cannot be tried, and says why in its last line.
///
/// # Errors
///
/// When its log cannot be kept.
pub fn command_or_skip(
    report: &mut Report,
    section: &str,
    name: &str,
    command: &mut Command,
) -> Result<()> {
    if !report.wants(section, name) {
        return Ok(());
    }
    let ended = run(command);
    if ended.code == Some(3) {
        report.skip(&format!("{section}/{name}"), &last_lines(&ended.text, 1));
        return Ok(());
    }
    finished(report, section, name, ended)
}

fn finished(report: &mut Report, section: &str, name: &str, ended: Ended) -> Result<()> {
    let full = format!("{section}/{name}");
    let log = report.keep(section, name, ended.text.as_bytes())?;
    if ended.good() {
        report.pass(&full);
    } else {
        report.fail(&full, &last_lines(&ended.text, 20), &log);
    }
    Ok(())
}

/// Runs `cargo test` and counts every test of it. The command gets the filters' rests.
///
/// # Errors
///
/// When its log cannot be kept.
pub fn cargo_test(report: &mut Report, section: &str, command: &mut Command) -> Result<()> {
    let Some(filters) = report.wants_section(section) else {
        return Ok(());
    };
    command.args(["--no-fail-fast", "--"]).args(filters);
    let ended = run(command);
    let (good, text) = (ended.good(), ended.text);
    let log = report.keep(section, "cargo-test", text.as_bytes())?;
    let mut passed = 0;
    let mut failed = 0;
    for (name, fate) in text.lines().filter_map(cargo_test_line) {
        match fate {
            Fate::Passed => passed += 1,
            Fate::Skipped => report.skip(&format!("{section}/{name}"), "marked as ignored"),
            Fate::Failed => {
                failed += 1;
                report.fail(&format!("{section}/{name}"), &panic_of(&text, name), &log);
            }
        }
    }
    if passed > 0 {
        report.pass_many(&format!("{section}/cargo-test"), passed);
    }
    if !good && failed == 0 {
        // It did not build, or a test program died without a word.
        report.fail(
            &format!("{section}/cargo-test"),
            &last_lines(&text, 30),
            &log,
        );
    }
    Ok(())
}

/// What a command printed, and how it ended; no status if it could not be started.
struct Ended {
    text: String,
    code: Option<i32>,
}

impl Ended {
    fn good(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Ended {
    match command
        .output()
        .with_context(|| format!("cannot start {command:?}"))
    {
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            Ended {
                text: in_chapters(&text, None),
                code: output.status.code(),
            }
        }
        Err(error) => Ended {
            text: format!("{error:#}"),
            code: None,
        },
    }
}

/// What a failed test of cargo's had to say: the part under its heading.
fn panic_of(text: &str, name: &str) -> String {
    let heading = format!("---- {name} stdout ----");
    let part = text.split_once(&heading).map_or("", |(_, rest)| rest);
    let end = part
        .find("\n---- ")
        .or_else(|| part.find("\nfailures:"))
        .unwrap_or(part.len());
    last_lines(part[..end].trim(), 20)
}

/// The last lines of a text.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_of_one_test_is_found() {
        let text =
            "\n---- a stdout ----\none\ntwo\n\n---- b stdout ----\nthree\n\nfailures:\n    a\n";
        assert_eq!(panic_of(text, "a"), "one\ntwo");
        assert_eq!(panic_of(text, "b"), "three");
        assert_eq!(panic_of(text, "c"), "");
    }

    #[test]
    fn a_command_s_end_counts() {
        let ended = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 1"]));
        assert_eq!((ended.text.as_str(), ended.code), ("out\nerr\n", Some(1)));
        assert!(!ended.good());
        assert!(!run(&mut Command::new("/nowhere/at/all")).good());
    }
}
