// SPDX-License-Identifier: GPL-2.0-only

//! What the bench has measured in a machine that counts instructions.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Bench, guests};
use crate::guest::Guest;
use crate::{host, kvm};

/// The round trip of a hypercall of ours.
pub fn round_trip(bench: &mut Bench) -> Result<()> {
    measured(bench, "round-trip", "good: round trip ")
}

/// A page fault for which only the shadow lacks an entry.
pub fn shadow_fault(bench: &mut Bench) -> Result<()> {
    measured(bench, "shadow-fault", "good: shadow fault ")
}

fn measured(bench: &mut Bench, case: &str, good: &str) -> Result<()> {
    let ended = guests::run(&[&format!("case={case}"), "rounds=10"])?;
    ended.expect_code(guests::OFF)?.expect_output(good)?;
    for line in ended.output.lines() {
        bench.control.say("note", line.trim_end())?;
    }
    Ok(())
}

/// How many rounds at the end all have to be recorded.
const LAST: usize = 10;

/// A Guest of so many rounds that is recorded from somewhere in the middle on: what each round
/// took, unless fewer than [`LAST`] came after that.
fn recorded(rounds: usize) -> Result<Option<Vec<u64>>> {
    let guest = Guest::probe(&["case=round-trip", &format!("rounds={rounds}")])?;
    let pid = guest.pid().as_raw().cast_unsigned();
    guest.wait_for("round 0: ")?;
    let folders = super::exits::folders(pid)?;
    let on = |folder: &PathBuf| fs::write(folder.join("record"), "1").is_ok();
    let recorded = folders.first().is_some_and(on);
    let ended = guest.finish()?;
    ended
        .expect_code(guests::OFF)?
        .expect_output("good: round trip ")?;
    let of_round = |line: &str| -> Option<u64> {
        let (_, counts) = line.strip_prefix("round ")?.split_once(": ")?;
        counts.split_once(" to ")?.0.parse().ok()
    };
    let counts: Vec<u64> = ended.output.lines().filter_map(of_round).collect();
    // The first rounds are from before.
    let before = *counts.first().context("no rounds")?;
    let after = counts.iter().rev().take_while(|count| **count != before);
    Ok((recorded && after.count() >= LAST).then_some(counts))
}

/// The round trip of a hypercall while every exit is recorded.
pub fn recorded_round_trip(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    // Counted this way, the machine gives this processor its turn when it likes; the Guest may have
    // ended by then, or all but ended.
    let rounds = [1000, 4000, 16000]
        .into_iter()
        .find_map(|rounds| recorded(rounds).transpose());
    let rounds = rounds.context("the Guest is always too early")??;
    let last = rounds.last_chunk::<LAST>().context("too few rounds")?;
    let least = last.iter().min().context("no rounds")?;
    ensure!(
        last.iter().all(|count| count == least) && rounds[0] < *least,
        "rounds that differ: {last:?}, the first {}",
        rounds[0]
    );
    let note = format!("good: recorded round trip {least}");
    bench.control.say("note", &note)
}

/// What system calls of a Guest's program cost.
pub fn system_calls(bench: &mut Bench) -> Result<()> {
    let ended = guests::run(&["case=syscalls", "rounds=10"])?;
    ended
        .expect_code(guests::OFF)?
        .expect_output("good: syscall reflected ")?;
    for line in ended.output.lines() {
        bench.control.say("note", line.trim_end())?;
    }
    Ok(())
}

/// What the FPU's registers cost.
pub fn fpu_trips(bench: &mut Bench) -> Result<()> {
    let ended = guests::run(&["case=fpu-trips", "rounds=10"])?;
    ended
        .expect_code(guests::OFF)?
        .expect_output("good: fpu trap ")?;
    for line in ended.output.lines() {
        bench.control.say("note", line.trim_end())?;
    }
    Ok(())
}

/// The round trip of KVM's.
pub fn kvm_round_trip(bench: &mut Bench) -> Result<()> {
    kvm::load()?;
    let rounds = kvm::round_trips()?;
    for (n, least) in rounds.iter().enumerate() {
        bench.control.say("note", &format!("round {n}: {least}"))?;
    }
    let least = rounds.iter().min().context("no rounds")?;
    bench
        .control
        .say("note", &format!("good: vmmcall round trip {least}"))
}

/// Where each function of the module is: lines of `/proc/kallsyms`, after one that says
/// where its code begins.
pub fn symbols(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let base = fs::read_to_string("/sys/module/lguest/sections/.text")?;
    bench
        .control
        .say("note", &format!("base {}", base.trim()))?;
    let text = fs::read_to_string("/proc/kallsyms")?;
    for line in text.lines().filter(|line| line.ends_with("[lguest]")) {
        bench.control.say("note", line)?;
    }
    Ok(())
}
