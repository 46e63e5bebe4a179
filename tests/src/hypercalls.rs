// SPDX-License-Identifier: GPL-2.0-only

//! The chapter's table of all hypercalls, held against the code.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::root;

/// The chapter with the table and with the Host's dispatch.
pub(crate) const CHAPTER: &str = "book/host/hypercalls.md";
/// The chapter that the crate `abi` comes from, which has a table of its own.
pub(crate) const AGREEMENT: &str = "book/preparation/the-agreement.md";

/// What is known of a call: its number, how many arguments, and who does it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    number: u64,
    arguments: usize,
    function: String,
}

/// The code of all parts of a chunk.
fn chunk(chapter: &str, name: &str) -> Result<String> {
    let head = format!("chunk:{name}\n");
    let parts = chapter.split(&head).skip(1);
    let parts: Vec<_> = parts
        .filter_map(|part| part.split_once("\n```"))
        .map(|(code, _)| code)
        .collect();
    ensure!(!parts.is_empty(), "there is no chunk {name}");
    Ok(parts.join("\n"))
}

/// The constants of the crate `abi`, by name.
fn numbers(agreement: &str) -> Result<BTreeMap<String, u64>> {
    let code = chunk(agreement, "hypercall-numbers")?;
    let lines = code
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "));
    lines
        .map(|line| {
            let (name, value) = line.split_once(": u64 = ").context("no number")?;
            let value = value.trim_end_matches(';').parse();
            Ok((name.to_owned(), value.context(line.to_owned())?))
        })
        .collect()
}

/// The arms of the Host's dispatch, by name.
fn arms(chapter: &str, numbers: &BTreeMap<String, u64>) -> Result<BTreeMap<String, Call>> {
    let code = ["hypercalls-all", "hypercalls-others"].map(|name| chunk(chapter, name));
    let [all, segments] = code;
    let code = format!("{}\n{}", all?, segments?);
    let mut arms = BTreeMap::new();
    for arm in code.split("hypercall::").skip(1) {
        let Some((name, body)) = arm.split_once(" => ") else {
            continue;
        };
        let number = *numbers.get(name).with_context(|| name.to_owned())?;
        // Nothing to do is done where it is asked for.
        let function = match body.split_once("self.") {
            Some((_, call)) if !body.starts_with('0') => call.split('(').next(),
            _ => Some("do_hypercalls"),
        };
        let words = body.split("_ =>").next().unwrap_or(body);
        let words = words.split(|c: char| !c.is_alphanumeric() && c != '_');
        let arguments = words.filter(|word| ["a", "b", "c", "d"].contains(word));
        let call = Call {
            number,
            arguments: arguments.count(),
            function: function.context("no function")?.to_owned(),
        };
        arms.insert(name.to_owned(), call);
    }
    Ok(arms)
}

/// The rows of a table that begin with a number, as cells.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = lines.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    rows.filter(|row| row[0].parse::<u64>().is_ok())
}

/// The rows of the chapter's table, by name.
fn table(chapter: &str) -> Result<BTreeMap<String, Call>> {
    let (_, rest) = chapter.split_once("## All of them").context("no table")?;
    let (text, _) = rest.split_once("\n## ").context("no end")?;
    let mut calls = BTreeMap::new();
    for row in rows(text) {
        let [number, name, arguments, ends, answer, then, function, ""] = row[..] else {
            bail!("a row of {} cells: {row:?}", row.len());
        };
        for cell in [arguments, ends, answer, then] {
            ensure!(!cell.is_empty(), "{name} has an empty cell");
        }
        let number: u64 = number.parse()?;
        let new = number >= 32;
        ensure!(new == (then == "new"), "{name} is {number} and {then:?}");
        let arguments = match arguments {
            "none" => 0,
            more => more.split(';').count(),
        };
        let call = Call {
            number,
            arguments,
            function: function.trim_matches('`').to_owned(),
        };
        let twice = calls.insert(name.to_owned(), call);
        ensure!(twice.is_none(), "{name} has two rows");
    }
    Ok(calls)
}

/// Holds everything against everything else. Gives how many calls there are.
pub(crate) fn check(chapter: &str, agreement: &str) -> Result<usize> {
    let numbers = numbers(agreement)?;
    let arms = arms(chapter, &numbers)?;
    let table = table(chapter)?;
    for (name, number) in &numbers {
        let arm = arms.get(name).with_context(|| format!("{name}: no arm"))?;
        let row = table.get(name).with_context(|| format!("{name}: no row"))?;
        ensure!(
            row == arm,
            "{name}: the table has {row:?}, the code {arm:?}"
        );
        let number = number.to_string();
        let mut agreed = rows(agreement).filter(|row| row[..2] == [&number, name]);
        let agreed = agreed
            .next()
            .with_context(|| format!("{name} is not agreed"))?;
        let given = agreed[2..].iter().filter(|cell| !cell.is_empty()).count();
        ensure!(given == row.arguments, "{name}: {given} arguments agreed");
    }
    for name in table.keys() {
        ensure!(numbers.contains_key(name), "{name}: no such call");
    }
    Ok(numbers.len())
}

#[test]
fn the_table_is_the_code() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (chapter, agreement) = (read(CHAPTER), read(AGREEMENT));
    assert!(check(&chapter, &agreement).unwrap() >= 16);
    // And every difference is found.
    for (from, to) in [
        ("| 5 | FLUSH_TLB |", "| 6 | FLUSH_TLB |"),
        ("| 8 | TS |", "| 8 | TSS |"),
        ("| `load_idt_entry` |", "| `load_guest_idt_entry` |"),
        ("; pages, 1 or 2 |", ", pages, 1 or 2 |"),
        (
            "hypercall::TS => self.ts(a)",
            "hypercall::TS => self.ts(a, b)",
        ),
        (
            "hypercall::HALT => self.halt()",
            "hypercall::HALT => self.sleep()",
        ),
    ] {
        let other = chapter.replacen(from, to, 1);
        assert_ne!(other, chapter, "{from}");
        assert!(check(&other, &agreement).is_err(), "{from}");
    }
    for (from, to) in [
        ("pub const TS: u64 = 8;", "pub const TS: u64 = 9;"),
        ("| 8 | TS | 1 on, 0 off | |", "| 8 | TS | 1 on, 0 off | x |"),
        (
            "pub const HALT: u64 = 10;",
            "pub const HALT: u64 = 10;\npub const NAP: u64 = 34;",
        ),
    ] {
        let other = agreement.replacen(from, to, 1);
        assert_ne!(other, agreement, "{from}");
        assert!(check(&chapter, &other).is_err(), "{from}");
    }
}
