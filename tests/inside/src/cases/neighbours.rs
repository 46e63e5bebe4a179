// SPDX-License-Identifier: GPL-2.0-only

//! Neighbours that come into the shadow with a page that was touched: how many trips that saves,
//! and that they may do no more than the Guest's tables allow.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::exits::{folders, numbers};
use crate::bare::reg::RDI;
use crate::bare::{
    Bare, End, FREE, LINEAR, Outcome, PAGE, ROOT, RW, Ring, StepNumber, with_module,
};
use crate::code;

/// Tables of levels 3, 2 and 1, and the address that they are for.
const TABLES: [u64; 3] = [FREE + PAGE, FREE + 2 * PAGE, FREE + 3 * PAGE];
const HERE: u64 = 0xffff_0000_0000_0000 | 300 << 39;
/// Pages that are touched one after another: how many, and where they are.
const ROW: u64 = 64;
const FIRST: u64 = 200;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const FLUSH_TLB: u64 = 5;

/// A Guest with tables for `HERE`, but for the lowest.
fn guest() -> Result<Bare> {
    let mut guest = Bare::new()?;
    guest.write(ROOT + 8 * 300, TABLES[0] | RW);
    guest.write(TABLES[0], TABLES[1] | RW);
    guest.write(TABLES[1], TABLES[2] | RW);
    Ok(guest)
}

/// Runs a Guest to its end; its page faults and hypercalls, as the Host has counted them.
pub(super) fn counted(guest: &mut Bare) -> Result<(u64, u64)> {
    let device = guest.initialize()?;
    let folders = folders(std::process::id())?;
    ensure!(folders.len() == 1, "{folders:?} are there for one Guest");
    let end = guest.go_on(&device, |_, _, _| Ok(()))?;
    ensure!(end == End::Off, "step {}: {end:?}", guest.reached());
    let numbers = numbers(&fs::read_to_string(folders[0].join("exits"))?)?;
    let number = |name: &str| numbers.get(name).copied().context(name.to_owned());
    Ok((number("page-fault 14")?, number("hypercall 31")?))
}

/// What the Guest has beside a page that it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    /// Entries of pages that were used.
    Used,
    /// The same entries, with their A flag cleared.
    Idle,
    /// More of the same page of 2 MiB.
    Large,
}

/// The page faults of a Guest that touches pages, forgets everything, and touches them again; the
/// second time either all, or one of them as often.
fn touching(beside: Beside, all: bool) -> Result<u64> {
    let mut guest = guest()?;
    let mut first = HERE;
    if beside == Beside::Large {
        guest.write(TABLES[1], LARGE | RW);
        first += FIRST * PAGE;
    }
    for n in 0..ROW {
        guest.write(TABLES[2] + 8 * n, ((FIRST + n) * PAGE) | RW);
    }
    for n in 0..ROW {
        guest.peek(first + n * PAGE);
    }
    let accessed = if beside == Beside::Idle { 0 } else { ACCESSED };
    for n in 0..ROW {
        let entry = ((FIRST + n) * PAGE) | RW | accessed;
        guest.poke(LINEAR + TABLES[2] + 8 * n, entry);
    }
    guest.call(FLUSH_TLB, [1, 0, 0, 0]);
    for n in 0..ROW {
        guest.peek(first + if all { n * PAGE } else { 0 });
    }
    Ok(counted(&mut guest)?.0)
}

pub fn neighbours(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        for (beside, least, most) in [
            (Beside::Used, ROW / 8 + 1, ROW / 8 + 3),
            (Beside::Idle, ROW, ROW + 2),
            (Beside::Large, ROW / 8 + 1, ROW / 8 + 3),
        ] {
            let faults = 1 + touching(beside, true)? - touching(beside, false)?;
            let said = format!("{beside:?}: {faults} faults for {ROW} pages");
            ensure!((least..=most).contains(&faults), "{said}");
            bench.control.say("note", &said)?;
        }
        rights()
    })
}

/// A line with one entry of each kind, of which the first two are asked for. All pages are known to
/// the Host, for writing.
fn rights() -> Result<()> {
    let mut guest = guest()?;
    let page = |n: u64| FREE + (8 + n) * PAGE;
    let flags = [
        RW | ACCESSED | DIRTY,
        1 | ACCESSED,
        RW | ACCESSED,
        RW,
        2 | ACCESSED | DIRTY,
        RW | ACCESSED | DIRTY | NX,
        RW | ACCESSED | DIRTY,
    ];
    for (n, flags) in (0..).zip(flags) {
        guest.write(TABLES[2] + 8 * n, page(n) | flags);
        guest.poke(LINEAR + page(n), 1000 + n);
    }
    // A frame that the Guest does not have, and a slot whose page was exchanged.
    guest.write(TABLES[2] + 8 * 7, 1 << 40 | RW | ACCESSED | DIRTY);
    let peek = |guest: &mut Bare, n: u64| guest.peek(HERE + n * PAGE);
    let main = peek(&mut guest, 0);
    let read = [1, 2, 5, 6].map(|n| (peek(&mut guest, n), 1000 + n));
    let entry = |guest: &mut Bare, n: u64| guest.peek(LINEAR + TABLES[2] + 8 * n);
    let clean = entry(&mut guest, 2);
    let idle = entry(&mut guest, 3);
    let write = guest.poke(HERE + 2 * PAGE, 7);
    let dirty = entry(&mut guest, 2);
    let readonly = guest.poke(HERE + PAGE, 7);
    let absent = peek(&mut guest, 4);
    let mut with = guest.registers(Ring::One);
    with.rip = HERE + 5 * PAGE;
    let executed = guest.go_with(&[], &with, 0);
    guest.set_stack();
    let mut with = guest.registers(Ring::Three);
    with.general[RDI] = HERE + 6 * PAGE;
    let ring3 = guest.go_with(code!("mov rax, [rdi]"), &with, 0);
    guest.survive()?;

    let done = |step: StepNumber| match guest.outcome(step) {
        Outcome::Done(value) => Ok(value),
        other => anyhow::bail!("step {step}: {other:x?}"),
    };
    ensure!(done(main)? == 1000, "the first page: {}", done(main)?);
    for (step, wanted) in read {
        ensure!(done(step)? == wanted, "{} is not {wanted}", done(step)?);
    }
    ensure!(done(clean)? & DIRTY == 0, "dirty without a write");
    ensure!(
        done(idle)? & ACCESSED == 0,
        "accessed, and nobody was there"
    );
    done(write)?;
    ensure!(done(dirty)? & DIRTY != 0, "not dirty after a write");
    for (step, code, what) in [
        (readonly, 3, "a read-only page, written"),
        (absent, 0, "an absent page"),
        (executed, 0x11, "a page that may not be executed"),
        (ring3, 5, "ring 1's page, read by ring 3"),
    ] {
        match guest.outcome(step) {
            Outcome::Trapped(trap) if (trap.vector, trap.error) == (14, code) => {}
            other => anyhow::bail!("{what}: {other:x?}"),
        }
    }
    Ok(())
}
