// SPDX-License-Identifier: GPL-2.0-only

//! Guests for as long as one likes, while all is done to them that can be; and what was counted,
//! kept as data.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::artifacts::{self, Artifacts};
use crate::chapters::in_chapters;
use crate::cleanup;
use crate::control::{Message, Verdict};
use crate::hosts::Kind;
use crate::machine::Machine;

/// Where the data are kept, from the root of the checkout.
pub const DATA: &str = "bench/soak.json";
/// The chapter that tells them.
pub const PAGE: &str = "book/mastery/faults.md";
/// How long Linux may take to come up.
const BOOT: Duration = Duration::from_secs(180);
/// How long the machine may be silent beyond the time that was asked for.
const SILENT: Duration = Duration::from_secs(900);
/// How long it may take to end.
const END: Duration = Duration::from_secs(30);
/// How the line with the figures begins.
const FIGURES: &str = "figures: ";

/// Runs the case for so many minutes, and prints what it says; gives what it has counted.
///
/// # Errors
///
/// When the machine does not come up, or the case fails; `keep` has the figures even so.
pub fn soak(minutes: u64, seed: Option<u64>, keep: &mut Option<String>) -> Result<String> {
    cleanup::watch_signals()?;
    let kind = Kind::named("5").context("there is no first kind of Host")?;
    let artifacts = Artifacts::collect()?.with_test_guests()?;
    let mut settings = kind.settings(&artifacts)?;
    settings.log = artifacts::log_directory()?.join("soak.log");
    let mut machine = Machine::start(&settings)?;
    let facts = machine.wait_until_ready(BOOT)?;
    kind.check(&facts)?;
    println!("up: Linux {facts}; its log: {}", machine.log().display());
    let seed = seed.map(|seed| format!(" seed={seed}")).unwrap_or_default();
    machine.tell(&format!("case soak minutes={minutes}{seed}"))?;
    let patience = Duration::from_secs(60 * minutes) + SILENT;
    loop {
        match machine.hear(patience)? {
            Message::Start(_) => {}
            Message::Note(text) => {
                println!("  {text}");
                if let Some(figures) = text.strip_prefix(FIGURES) {
                    *keep = Some(figures.to_owned());
                }
            }
            Message::Inject(what) => {
                machine.inject(what)?;
                machine.tell("done")?;
            }
            Message::End(Verdict::Pass, _) => break,
            Message::End(verdict, text) => {
                bail!(
                    "{verdict:?}: {}",
                    in_chapters(&text, kind.module(&artifacts).as_deref())
                )
            }
            other => bail!("the machine says {other:?}"),
        }
    }
    machine.quit(END)?;
    let release = facts.split(' ').next().unwrap_or_default();
    Ok(release.to_owned())
}

/// The figures of a line as they are kept: numbers by name, and what they were counted with.
///
/// # Errors
///
/// When a word is not a name and a number.
pub fn data(minutes: u64, figures: &str, versions: Value) -> Result<Value> {
    let mut all = Map::new();
    all.insert(
        "command".to_owned(),
        json!(format!("make soak MINUTES={minutes}")),
    );
    for word in figures.split_whitespace() {
        let (name, number) = word.split_once('=').with_context(|| word.to_owned())?;
        let number: Value = serde_json::from_str(number).with_context(|| word.to_owned())?;
        ensure!(number.is_number(), "{word} is not a number");
        all.insert(name.to_owned(), number);
    }
    all.insert("versions".to_owned(), versions);
    Ok(Value::Object(all))
}

/// What it ran with.
///
/// # Errors
///
/// When a program does not say its version.
pub fn versions(linux: &str) -> Result<Value> {
    let first = |program: &str| -> Result<String> {
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| format!("cannot start {program}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    Ok(json!({
        "linux": linux,
        "qemu": first("qemu-system-x86_64")?,
        "rustc": first("rustc")?,
    }))
}

/// Checks that the chapter's table has exactly the numbers that are kept; gives how many.
///
/// # Errors
///
/// When a file cannot be read, or a number is missing or another.
pub fn compare(root: &Path) -> Result<usize> {
    let read = |name: &str| {
        let path = root.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let data: Map<String, Value> = serde_json::from_str(&read(DATA)?)?;
    let page = read(PAGE)?;
    let mut wrong = Vec::new();
    let numbers: Vec<_> = data.iter().filter(|(_, value)| value.is_number()).collect();
    for (name, value) in &numbers {
        let row = format!("| `{name}` | {value} |");
        if !page.lines().any(|line| line.starts_with(&row)) {
            wrong.push(row);
        }
    }
    ensure!(
        wrong.is_empty(),
        "{PAGE} has no row that begins so, as {DATA} has it:\n{}",
        wrong.join("\n")
    );
    Ok(numbers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_data() {
        let value = data(2, "seed=7 rounds=3 slope=-0.250", json!({})).expect("numbers");
        assert_eq!(value["command"], "make soak MINUTES=2");
        assert_eq!(value["rounds"], 3);
        assert_eq!(value["slope"], -0.25);
        assert!(data(2, "rounds=many", json!({})).is_err());
        assert!(data(2, "rounds", json!({})).is_err());
    }
}
