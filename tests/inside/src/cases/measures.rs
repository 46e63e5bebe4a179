// SPDX-License-Identifier: GPL-2.0-only

//! What the bench has measured in a machine that counts instructions.

use std::fs;

use anyhow::{Context, Result};

use super::{Bench, guests};
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
