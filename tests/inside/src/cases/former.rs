// SPDX-License-Identifier: GPL-2.0-only

//! A Guest that was on another processor a moment ago.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::guests::{OFF, pin};
use super::{Bench, NotHere};
use crate::guest::{Guest, patience};
use crate::host;

const ROUNDS: usize = 10;
/// The pages that every processor's Guests see: the Switcher's text and the shared page.
const COMMON: u32 = 2;
/// The pages of one processor: registers, state, IDT.
const EACH: u32 = 3;

/// The Guest flushes an address and sleeps, both in one trip; it wakes on another processor. Of the
/// reserved pages it must then see the new processor's, and no longer those of the former one,
/// whose state page holds the Host's CR3 and stack.
pub fn former_cpu(bench: &mut Bench) -> Result<()> {
    if host::cpus() < 2 {
        return Err(NotHere("needs two processors".into()).into());
    }
    host::load_module()?;
    let rounds = format!("rounds={ROUNDS}");
    let mut guest = Guest::probe(&["case=former-cpu", &rounds])?;
    guest.wait_for("waiting")?;
    let mut seen: Vec<(usize, u64)> = Vec::new();
    for round in 1..=ROUNDS {
        let cpu = round % 2;
        wait_until_asleep()?;
        pin(guest.pid(), cpu)?;
        guest.send(b"look\n")?;
        let line = guest.line_with(&format!("round {round}: readable 0x"))?;
        let pages = u64::from_str_radix(line.trim(), 16).with_context(|| line.clone())?;
        seen.push((cpu, pages));
    }
    guest.finish()?.expect_code(OFF)?.expect_output("good:")?;
    let (first, second) = (seen[0].1, seen[1].1);
    bench.control.say(
        "note",
        &format!("reserved pages that can be read: {first:#b}, {second:#b}"),
    )?;
    for (round, (cpu, pages)) in seen.iter().enumerate() {
        let (same, other) = if round % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let all = pages.count_ones();
        ensure!(
            all == COMMON + EACH,
            "round {round}, on CPU {cpu}: {all} reserved pages can be read ({pages:#b}), not {}: \
             the former CPU's are still there",
            COMMON + EACH
        );
        ensure!(
            *pages == same && (pages & other).count_ones() == COMMON,
            "round {round}, on CPU {cpu}: {pages:#b} can be read, on the other CPU {other:#b}"
        );
    }
    host::wait_until_free()
}

/// Waits until no Guest runs: the world has not been switched for a while.
fn wait_until_asleep() -> Result<()> {
    let end = Instant::now() + patience();
    while Instant::now() < end {
        let before = host::counter("world_switches")?;
        thread::sleep(Duration::from_millis(30));
        if host::counter("world_switches")? == before {
            return Ok(());
        }
    }
    bail!("the Guest does not go to sleep")
}
