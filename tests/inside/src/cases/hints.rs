// SPDX-License-Identifier: GPL-2.0-only

//! Hints: how many trips they save, and that they open nothing.

use anyhow::{Result, bail, ensure};

use super::Bench;
use super::neighbours::counted;
use super::reasons::shared_page;
use crate::bare::reg::RDI;
use crate::bare::{
    Bare, FREE, LINEAR, Outcome, PAGE, ROOT, RW, Ring, StepNumber, must_die, with_module,
};
use crate::{code, host};

/// Tables of levels 3, 2 and 1, and the address that they are for.
const TABLES: [u64; 3] = [FREE + PAGE, FREE + 2 * PAGE, FREE + 3 * PAGE];
const HERE: u64 = 0xffff_0000_0000_0000 | 300 << 39;
/// The same for the address of the shared page.
const OTHERS: [u64; 3] = [FREE + 4 * PAGE, FREE + 5 * PAGE, FREE + 6 * PAGE];
/// Hints at a time: as many as the ring has slots.
const ROW: u64 = 64;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const USED: u64 = RW | ACCESSED | DIRTY;
/// The last word of a page, which no step needs.
const LAST: u64 = PAGE - 8;
const FLUSH_ASYNC: u64 = 0;
const SET_PTE: u64 = 14;
const SET_PMD: u64 = 15;

/// A Guest with tables for `HERE`, all of them marked as used.
fn guest() -> Result<Bare> {
    let mut guest = Bare::new()?;
    guest.write(ROOT + 8 * 300, TABLES[0] | RW | ACCESSED);
    guest.write(TABLES[0], TABLES[1] | RW | ACCESSED);
    guest.write(TABLES[1], TABLES[2] | RW | ACCESSED);
    Ok(guest)
}

/// What the hints are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// Entries of the lowest level.
    Pages,
    /// The same without their A flag.
    Idle,
    /// The entry of a table, and with it pages.
    Table,
    /// The entry of a page of 2 MiB.
    Large,
}

/// Which pages are touched in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    /// Where they have been all the time.
    Known,
    /// Where they have just been mapped.
    New,
}

/// Page faults and hypercalls of a Guest that uses pages, maps them elsewhere, gives hints or as
/// many calls that are none, and touches the pages. They are too far apart to be neighbours.
fn mapping(about: About, hints: bool, touched: Touched) -> Result<(u64, u64)> {
    let mut guest = guest()?;
    let known = |n: u64| (8 * n + 7) * PAGE;
    let new = |n: u64| {
        HERE + if about == About::Large {
            known(n)
        } else {
            8 * n * PAGE
        }
    };
    let entry = |n: u64| match about {
        About::Pages | About::Idle => TABLES[2] + 8 * (8 * n),
        About::Table | About::Large => TABLES[1],
    };
    for n in 0..ROW {
        guest.poke(LINEAR + known(n) + LAST, 0);
    }
    for n in 0..ROW {
        let value = match about {
            About::Pages => known(n) | USED,
            About::Idle => known(n) | RW,
            About::Table => TABLES[2] | RW | ACCESSED,
            About::Large => LARGE | USED,
        };
        if about == About::Table {
            guest.write(TABLES[2] + 8 * (8 * n), known(n) | USED);
            guest.write(TABLES[1], 0);
        }
        guest.poke(LINEAR + entry(n), value);
    }
    let number = match about {
        About::Pages | About::Idle => SET_PTE,
        About::Table | About::Large => SET_PMD,
    };
    for n in 0..ROW {
        let page = if hints { new(n) } else { u64::MAX };
        guest.queue(n, number, [entry(n), page, 0, 0]);
    }
    guest.call(FLUSH_ASYNC, [0; 4]);
    for n in 0..ROW {
        let place = match touched {
            Touched::Known => LINEAR + known(n),
            Touched::New => new(n),
        };
        guest.poke(place + LAST, 0);
    }
    counted(&mut guest)
}

pub fn hints(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let (_, least) = counted(&mut Bare::new()?)?;
        for (about, left) in [
            (About::Pages, 0),
            (About::Idle, ROW),
            (About::Table, 0),
            (About::Large, 0),
        ] {
            let (base, calls) = mapping(about, false, Touched::Known)?;
            let (without, same) = mapping(about, false, Touched::New)?;
            let (with, all) = mapping(about, true, Touched::New)?;
            ensure!(
                [calls, same, all] == [least + 1; 3],
                "{about:?}: {calls}, {same} and {all} exits for calls, {least} without a hint"
            );
            let [without, with] = [without, with].map(|faults| faults.saturating_sub(base));
            let said = format!("{about:?}: {without} faults without hints, {with} with them");
            // One or two more if Linux has taken a page meanwhile.
            let about_right = |count: u64, wanted: u64| (wanted..=wanted + 2).contains(&count);
            ensure!(
                about_right(without, ROW) && about_right(with, left),
                "{said}"
            );
            bench.control.say("note", &said)?;
        }
        rights()?;
        replaced()?;
        let mut guest = far_away()?;
        must_die(&mut guest, "a page that it does not have", "mapped to")
    })
}

/// A place for each kind of entry, too far from the others to be their neighbour.
fn place(n: u64) -> u64 {
    HERE + 16 * n * PAGE
}

/// Its entry.
fn entry(n: u64) -> u64 {
    TABLES[2] + 8 * 16 * n
}

/// Its page, which has 1000 and `n` in it.
fn page(n: u64) -> u64 {
    FREE + (12 + n) * PAGE
}

/// A Guest with these entries, that knows all their pages, for writing.
fn with_entries(entries: &[u64]) -> Result<Bare> {
    let mut guest = guest()?;
    for (n, entry_of) in (0..).zip(entries) {
        guest.write(entry(n), *entry_of);
        guest.poke(LINEAR + page(n), 1000 + n);
    }
    Ok(guest)
}

/// Gives hints through the ring, where this slot is the next.
fn give(guest: &mut Bare, first: u64, hints: &[(u64, u64, u64)]) {
    for (slot, (number, entry, page)) in (first..).zip(hints) {
        guest.queue(slot, *number, [*entry, *page, 0, 0]);
    }
    guest.call(FLUSH_ASYNC, [0; 4]);
}

fn done(guest: &Bare, step: StepNumber) -> Result<u64> {
    match guest.outcome(step) {
        Outcome::Done(value) => Ok(value),
        other => bail!("step {step}: {other:x?}"),
    }
}

/// The step must have ended in a page fault with this code.
fn refused(guest: &Bare, step: StepNumber, code: u64, what: &str) -> Result<()> {
    match guest.outcome(step) {
        Outcome::Trapped(trap) if (trap.vector, trap.error) == (14, code) => Ok(()),
        other => bail!("{what}: {other:x?}"),
    }
}

/// One entry of each kind, a hint for each, and hints that do not fit.
fn rights() -> Result<()> {
    let (shared, five) = (shared_page()?, host::five_levels());
    let mut guest = with_entries(&[
        page(0) | USED,
        page(1) | 1 | ACCESSED,
        page(2) | RW | ACCESSED,
        page(3) | RW,
        page(4) | 2 | ACCESSED | DIRTY,
        page(5) | USED | NX,
        page(6) | USED,
        1 << 40 | USED,
        0,
        0,
    ])?;
    // No page of 2 MiB begins there: bits that must be 0 are not.
    guest.write(TABLES[1] + 8, page(0) | USED | LARGE);
    // And where the Host's shared page is, a page of the Guest's. With five levels that place is
    // beyond all tables of a Guest.
    let index = |level: u64| 8 * (shared >> (3 + 9 * level) & 511);
    if !five {
        ensure!(guest.read(ROOT + index(4)) == 0, "{shared:#x} is taken");
        let tables = [ROOT, OTHERS[0], OTHERS[1], OTHERS[2], page(9)];
        for (level, pair) in [4, 3, 2, 1].into_iter().zip(tables.windows(2)) {
            guest.write(pair[0] + index(level), pair[1] | USED);
        }
    }

    let mut hints: Vec<_> = (0..10).map(|n| (SET_PTE, entry(n), place(n))).collect();
    if !five {
        hints.push((SET_PTE, OTHERS[2] + index(1), shared));
        hints.push((SET_PMD, OTHERS[1] + index(2), shared));
    }
    hints.extend([
        // The entry of another page, of another level, or none.
        (SET_PTE, entry(0), place(1)),
        (SET_PTE, entry(0), place(4)),
        (SET_PTE, entry(4), place(0)),
        (SET_PTE, TABLES[1], place(1)),
        (SET_PMD, entry(1), place(1)),
        (SET_PMD, TABLES[1], place(4)),
        (SET_PMD, TABLES[1], place(9)),
        (SET_PMD, TABLES[0], place(4)),
        (SET_PTE, 0, place(9)),
        (SET_PTE, entry(0), 0),
        (SET_PTE, entry(0), u64::MAX),
        (SET_PMD, TABLES[1] + 8, HERE + (2 << 20)),
    ]);
    give(&mut guest, 0, &hints);
    let look = |guest: &mut Bare, n: u64| guest.peek(LINEAR + entry(n));
    let (clean, idle) = (look(&mut guest, 2), look(&mut guest, 3));
    let read = [1, 2, 5, 6].map(|n| (guest.peek(place(n)), 1000 + n));
    let theirs = guest.peek(shared);
    let write = guest.poke(place(2), 7);
    let dirty = look(&mut guest, 2);
    let refusals = [
        (guest.poke(place(1), 7), 3, "a read-only page, written"),
        (guest.peek(place(4)), 0, "an absent page"),
        (guest.peek(HERE + (2 << 20)), 9, "a reserved bit"),
        (guest.peek(place(9)), 0, "an empty entry"),
    ];
    let mut with = guest.registers(Ring::One);
    with.rip = place(5);
    let executed = guest.go_with(&[], &with, 0);
    // Taken away without a flush: only what a hint has brought in is still there.
    guest.poke(LINEAR + entry(0), 0);
    let remembered = guest.peek(place(0));
    guest.set_stack();
    let mut with = guest.registers(Ring::Three);
    with.general[RDI] = place(6);
    let ring3 = guest.go_with(code!("mov rax, [rdi]"), &with, 0);
    guest.survive()?;

    let marked = |step, flag| done(&guest, step).map(|entry| entry & flag != 0);
    ensure!(!marked(clean, DIRTY)?, "dirty without a write");
    ensure!(!marked(idle, ACCESSED)?, "accessed, and nobody was there");
    for (step, wanted) in read.into_iter().chain([(remembered, 1000)]) {
        let value = done(&guest, step)?;
        ensure!(value == wanted, "{value} is not {wanted}");
    }
    ensure!(done(&guest, theirs)? != 1009, "a page over the Host's");
    done(&guest, write)?;
    ensure!(marked(dirty, DIRTY)?, "not dirty after a write");
    for (step, code, what) in refusals {
        refused(&guest, step, code, what)?;
    }
    refused(&guest, executed, 0x11, "a page that may not be executed")?;
    refused(&guest, ring3, 5, "ring 1's page, read by ring 3")
}

/// An entry that changes twice: to another page, and to a weaker one.
fn replaced() -> Result<()> {
    let mut guest = with_entries(&[page(0) | USED, 0])?;
    let hint = [(SET_PTE, entry(0), place(0))];
    let first = guest.peek(place(0));
    guest.poke(LINEAR + entry(0), page(1) | USED);
    give(&mut guest, 0, &hint);
    let second = guest.peek(place(0));
    guest.poke(LINEAR + entry(0), page(1) | 1 | ACCESSED);
    give(&mut guest, 1, &hint);
    let weaker = guest.poke(place(0), 7);
    guest.survive()?;
    ensure!(
        (done(&guest, first)?, done(&guest, second)?) == (1000, 1001),
        "a hint for another page was not followed"
    );
    refused(&guest, weaker, 3, "read-only since the hint")
}

/// A Guest with a hint for a page that it does not have, which it touches then.
fn far_away() -> Result<Bare> {
    let mut guest = with_entries(&[1 << 40 | USED])?;
    give(&mut guest, 0, &[(SET_PTE, entry(0), place(0))]);
    guest.peek(place(0));
    Ok(guest)
}
