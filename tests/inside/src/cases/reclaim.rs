// SPDX-License-Identifier: GPL-2.0-only

//! The shadow's tables: how many a Guest can have, and that they are given back when the Host wants
//! memory, whether the Guest runs or not, and nothing is wrong afterwards.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use crate::bare::reg::{R8, RBX, RDX, RSI};
use crate::bare::{Bare, DATA1, End, FREE, LINEAR, Outcome, PAGE, ROOT, RW, Ring, with_module};
use crate::{code, host};

/// Tables of levels 3, 2 and 1. Each has the next in all of its slots, so that a page is to be seen
/// at every multiple of 2 MiB from `HERE` on, 512 GiB long.
const TABLES: [u64; 3] = [FREE + PAGE, FREE + 2 * PAGE, FREE + 3 * PAGE];
const COUNTED: u64 = FREE + 8 * PAGE;
const HERE: u64 = 0xffff_0000_0000_0000 | 300 << 39;
const STEP: u64 = 2 << 20;
/// Where the stop sign is.
const STOP: u64 = DATA1;
/// Tables that a shadow can have, and pages: the book's numbers.
const MOST_PAGES: u64 = 2 * 4096;
/// What is left of a shadow when all is given back that can be: the Switcher's tables, and what the
/// Guest needs for its next instruction.
const LEAST: u64 = 80;
const SEND_DMA: u64 = 13;

/// Has all shrinkers asked.
pub(super) fn drop_caches() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "2").context("drop_caches")
}

/// A Guest that sees one page at many places.
fn guest() -> Result<Bare> {
    let mut guest = Bare::new()?;
    guest.write(ROOT + 8 * 300, TABLES[0] | RW);
    for slot in 0..512 {
        guest.write(TABLES[0] + 8 * slot, TABLES[1] | RW);
        guest.write(TABLES[1] + 8 * slot, TABLES[2] | RW);
    }
    guest.write(TABLES[2], COUNTED | RW);
    Ok(guest)
}

/// Adds one to the page at so many places, from the first on, over and over until the stop sign is
/// not 0; R8 counts the rounds.
fn count(guest: &mut Bare, places: u64) -> usize {
    let mut with = guest.registers(Ring::One);
    with.general[RSI] = HERE;
    with.general[RDX] = places;
    with.general[RBX] = LINEAR + STOP;
    with.general[R8] = 0;
    let code = code!(
        "2:",
        "mov rdi, rsi",
        "mov ecx, edx",
        "3:",
        "inc qword ptr [rdi]",
        "add rdi, 0x200000",
        "dec ecx",
        "jnz 3b",
        "inc r8",
        "cmp qword ptr [rbx], 0",
        "je 2b",
    );
    guest.go_with(code, &with, 0)
}

/// Checks what a Guest has counted that was stopped; gives the rounds.
fn right(guest: &Bare, step: usize, places: u64) -> Result<u64> {
    match guest.outcome(step) {
        Outcome::Trapped(trap) if trap.vector == 3 => {}
        other => bail!("the counting ended with {other:x?}"),
    }
    let rounds = guest.after(step).general[R8];
    let counted = guest.read(COUNTED);
    ensure!(
        rounds > 0 && counted == rounds * places,
        "{counted} counted in {rounds} rounds of {places}"
    );
    Ok(rounds)
}

pub fn reclaim(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        at_rest(bench)?;
        at_work(bench)?;
        at_most(bench)
    })
}

/// A Guest that waits for its Launcher while the tables are given back.
fn at_rest(bench: &mut Bench) -> Result<()> {
    const PLACES: u64 = 200;
    let mut guest = guest()?;
    guest.write(COUNTED, 77);
    let peek = |guest: &mut Bare| -> Vec<usize> {
        (0..PLACES).map(|n| guest.peek(HERE + n * STEP)).collect()
    };
    let mut steps = peek(&mut guest);
    guest.call(SEND_DMA, [3, FREE, 0, 0]);
    steps.extend(peek(&mut guest));
    let (mut before, mut after) = (0, 0);
    let end = guest.run_with(|_, _, _| {
        before = host::counter("shadow_pages")?;
        drop_caches()?;
        after = host::counter("shadow_pages")?;
        Ok(())
    })?;
    ensure!(end == End::Off, "{end:?}");
    for step in steps {
        let outcome = guest.outcome(step);
        ensure!(outcome == Outcome::Done(77), "step {step}: {outcome:x?}");
    }
    let said = format!("at rest: {before} shadow pages, then {after}");
    ensure!(before >= 2 * PLACES && after <= LEAST, "{said}");
    bench.control.say("note", &said)
}

/// Runs a counting Guest, and meanwhile a function on another thread, after which the Guest stops.
fn with_counting<T: Send>(
    places: u64,
    meanwhile: impl FnOnce() -> Result<T> + Send,
) -> Result<(u64, T)> {
    let mut guest = guest()?;
    guest.limit = Duration::from_secs(100) * host::patience();
    let step = count(&mut guest, places);
    let stop = guest.address() + STOP as usize;
    let (end, result) = thread::scope(|scope| {
        let other = scope.spawn(move || {
            let result = meanwhile();
            let stop = std::ptr::with_exposed_provenance_mut::<u64>(stop);
            // SAFETY: A word of the Guest's memory, which outlives this thread; the Guest only
            // reads it.
            unsafe { stop.write_volatile(1) };
            result
        });
        (guest.run(), other.join())
    });
    let end = end?;
    let result = result.map_err(|_| anyhow::anyhow!("the other thread panicked"))??;
    ensure!(end == End::Off, "{end:?}");
    Ok((right(&guest, step, places)?, result))
}

/// A Guest that counts meanwhile.
fn at_work(bench: &mut Bench) -> Result<()> {
    const PLACES: u64 = 200;
    let times = if bench.long() { 200 } else { 20 };
    let (rounds, fallen) = with_counting(PLACES, move || {
        let mut fallen = 0;
        for _ in 0..times {
            let end = Instant::now() + Duration::from_secs(10) * host::patience();
            while host::counter("shadow_pages")? < 2 * PLACES {
                ensure!(Instant::now() < end, "the shadow does not grow again");
                thread::yield_now();
            }
            drop_caches()?;
            // On a slow machine the Guest may have it all back by now.
            fallen += u64::from(host::counter("shadow_pages")? < 2 * PLACES);
        }
        Ok(fallen)
    })?;
    let said = format!("at work: {times} times, seen {fallen} times; {rounds} rounds are right");
    bench.control.say("note", &said)
}

/// A Guest that wants more tables than there can be.
fn at_most(bench: &mut Bench) -> Result<()> {
    const PLACES: u64 = 6000;
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let (rounds, falls) = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if let Ok(pages) = host::counter("shadow_pages") {
                    most.fetch_max(pages, Ordering::Relaxed);
                }
                thread::yield_now();
            }
        });
        let result = with_counting(PLACES, || {
            // Until it has been full, and empty again, twice.
            let end = Instant::now() + Duration::from_secs(60) * host::patience();
            let (mut falls, mut before) = (0, 0);
            while falls < 2 {
                ensure!(Instant::now() < end, "it was emptied {falls} times");
                let now = host::counter("shadow_pages")?;
                falls += u64::from(now + 1000 < before);
                before = now;
                thread::yield_now();
            }
            Ok(falls)
        });
        done.store(true, Ordering::Relaxed);
        result
    })?;
    let most = most.into_inner();
    let said = format!(
        "at most: {most} pages of {MOST_PAGES}, emptied {falls} times; {rounds} rounds are right"
    );
    ensure!((MOST_PAGES / 2..=MOST_PAGES).contains(&most), "{said}");
    bench.control.say("note", &said)
}
