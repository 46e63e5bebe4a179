// SPDX-License-Identifier: GPL-2.0-only

//! The time in the shared page, against the Host's clocks.

use std::arch::x86_64::_rdtsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};

use super::Bench;
use crate::bare::{Bare, END, End, FREE, Outcome, with_module};
use crate::host;

/// How often the Guest looks.
const LOOKS: usize = 50;
/// The words from 0x80 on: pvclock's four, the wall clock's two, and the TSC's kHz.
const WORDS: u64 = 7;

/// A clock of the Host's, in nanoseconds.
fn now(id: ClockId) -> Result<u64> {
    let now = clock_gettime(id)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Whether Linux keeps the time by the TSC. In its first seconds it has not made up its mind.
fn tsc_is_the_clock() -> Result<bool> {
    let end = Instant::now() + Duration::from_secs(30) * host::patience();
    loop {
        let source = host::clock_source();
        if source != "tsc-early" {
            return Ok(source == "tsc");
        }
        ensure!(Instant::now() < end, "the clock is still {source}");
        thread::sleep(Duration::from_millis(100));
    }
}

pub fn clock(bench: &mut Bench) -> Result<()> {
    let trusted = tsc_is_the_clock()?;
    with_module(|| {
        let mut guest = Bare::new()?;
        let looks: Vec<_> = (0..LOOKS)
            .map(|_| {
                let words = (0..WORDS)
                    .map(|n| guest.peek_shared(0x80 + 8 * n))
                    .collect();
                guest.call(13, [3, FREE, 0, 0]);
                words
            })
            .collect::<Vec<Vec<_>>>();
        ensure!(FREE < END);
        let begun = now(ClockId::CLOCK_MONOTONIC_RAW)?;
        let end = guest.run()?;
        let ended = now(ClockId::CLOCK_MONOTONIC_RAW)?;
        ensure!(end == End::Off, "{end:?}");
        ensure!(guest.sent.len() == LOOKS, "{} records", guest.sent.len());
        let (mut version, mut last) = (0, begun);
        let mut words = [0; WORDS as usize];
        for look in &looks {
            for (word, step) in words.iter_mut().zip(look) {
                *word = match guest.outcome(*step) {
                    Outcome::Done(value) => value,
                    other => bail!("{other:?}"),
                };
            }
            let time = words[2];
            ensure!((last..=ended).contains(&time), "{last}, {time}, {ended}");
            let told = words[0];
            ensure!(told % 2 == 0 && told > version, "version {told}");
            (version, last) = (told, time);
        }
        let [_, stamp, time, rate, wall, nanoseconds, khz] = words;
        let wall = (wall >> 32) * 1_000_000_000 + nanoseconds;
        let host = now(ClockId::CLOCK_REALTIME)? - now(ClockId::CLOCK_MONOTONIC_RAW)?;
        let off = wall.abs_diff(host);
        ensure!(off < 1_000_000_000, "the wall clock is {off} ns off");
        ensure!((khz == 0) == (rate == 0), "{khz} kHz, rate {rate:#x}");
        ensure!(
            !trusted || khz != 0,
            "Linux trusts the TSC, the module does not"
        );
        let mut said = format!("{LOOKS} looks, {khz} kHz");
        if khz != 0 {
            let shift = (rate >> 32) as u8 as i8;
            let before = now(ClockId::CLOCK_MONOTONIC_RAW)?;
            // SAFETY: Every x86-64 processor has a TSC.
            let ticks = unsafe { _rdtsc() } - stamp;
            let after = now(ClockId::CLOCK_MONOTONIC_RAW)?;
            let by = u32::from(shift.unsigned_abs());
            let ticks = if shift < 0 { ticks >> by } else { ticks << by };
            let time = time + ((u128::from(ticks) * u128::from(rate as u32)) >> 32) as u64;
            let inside = (before - 20_000..=after + 20_000).contains(&time);
            ensure!(inside, "{before}, {time} by the formula, {after}");
            said += ", the formula agrees";
        }
        bench.control.say("note", &said)
    })
}
