// SPDX-License-Identifier: GPL-2.0-only

//! A Guest with more than four GiB: addresses of 33 bits, in the Guest and, on a Host that has so
//! much itself, in the shadow.
//!
//! A number that is cut to 32 bits somewhere does not lead out of memory; it leads to another page.
//! So each page of the top gigabyte that is touched here has a twin four GiB below it, with another
//! word in it, and must not be taken for that.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::bare::{Bare, FREE, Outcome, PAGE, ROOT, RW, must_die, with_module};
use crate::guest::Guest;
use crate::host;

const GIB: u64 = 1 << 30;
const FOUR: u64 = 4 * GIB;
/// Its memory ends with three pages after a boundary of a large page.
const PAGES: u64 = (5 * GIB) / PAGE + 3;
const END: u64 = PAGES * PAGE;
const LARGE: u64 = 1 << 7;
const SEND_DMA: u64 = 13;
const NEW_PGTABLE: u64 = 4;

/// Tables of levels 3, 2 and 1 for slot 300: below, and above four GiB.
const LOW: [u64; 3] = [FREE + PAGE, FREE + 2 * PAGE, FREE + 3 * PAGE];
const HIGH: [u64; 3] = [FOUR + 33 * PAGE, END - 2 * PAGE, 5 * GIB - PAGE];
/// The address that slot 300 begins at.
const HERE: u64 = 0xffff_0000_0000_0000 | 300 << 39;

/// Pages to be touched: the borders, the middle, twins of pages that mean something, the last.
fn places() -> Vec<u64> {
    vec![
        FOUR - PAGE,
        FOUR,
        FOUR + PAGE,
        FOUR + ROOT,
        FOUR + FREE,
        FOUR + FREE + PAGE,
        FOUR + GIB / 2 - PAGE,
        FOUR + GIB / 2,
        3 * GIB,
        5 * GIB,
        END - PAGE,
    ]
}

/// What lies in a page before the Guest starts.
fn mark(place: u64) -> u64 {
    0x5a5a_0000_0000_0000 | place
}

/// A Guest with marks in all places, and tables that map them one after another.
fn guest(tables: [u64; 3]) -> Result<Bare> {
    let mut guest = Bare::with_pages(PAGES)?;
    guest.write(ROOT + 8 * 300, tables[0] | RW);
    guest.write(tables[0], tables[1] | RW);
    guest.write(tables[1], tables[2] | RW);
    for (slot, place) in (0..).zip(places()) {
        guest.write(place + 8, mark(place));
        guest.write(tables[2] + 8 * slot, place | RW);
    }
    // The twins, four GiB below, where nothing else is.
    guest.write(FREE + 8, mark(FREE));
    guest.write(GIB + 8, mark(GIB));
    Ok(guest)
}

/// Each page is read, written and read again, by 4 KiB pages through these tables.
fn small(tables: [u64; 3]) -> Result<Vec<u64>> {
    let mut guest = guest(tables)?;
    let mut steps = Vec::new();
    for (slot, place) in (0..).zip(places()) {
        let at = HERE + slot * PAGE;
        let read = guest.peek(at + 8);
        guest.poke(at + 16, !mark(place));
        steps.push((place, read, guest.peek(at + 16)));
    }
    guest.survive()?;
    for (place, read, again) in steps {
        let outcomes = [read, again].map(|step| guest.outcome(step));
        let wanted = [mark(place), !mark(place)].map(Outcome::Done);
        ensure!(
            outcomes == wanted,
            "{place:#x}: {outcomes:x?}, not {wanted:x?}"
        );
        ensure!(
            guest.read(place + 16) == !mark(place),
            "{place:#x}: not written there"
        );
    }
    for twin in [FREE, GIB] {
        let words = [guest.read(twin + 8), guest.read(twin + 16)];
        ensure!(
            words == [mark(twin), 0],
            "the twin at {twin:#x}: {words:x?}"
        );
    }
    frames(&guest)
}

/// Where the Host has the pages that were touched, host-physical, by Linux's own account.
fn frames(guest: &Bare) -> Result<Vec<u64>> {
    let map = File::open("/proc/self/pagemap")?;
    let mut frames = Vec::new();
    for place in places() {
        let mut entry = [0; 8];
        let page = (guest.address() as u64 + place) / PAGE;
        map.read_exact_at(&mut entry, 8 * page)?;
        let entry = u64::from_le_bytes(entry);
        ensure!(entry >> 63 == 1, "{place:#x} is not there: {entry:#x}");
        frames.push((entry & ((1 << 55) - 1)) * PAGE);
    }
    Ok(frames)
}

/// The same words by large pages.
fn large() -> Result<()> {
    for (level, start) in [(3, FOUR), (2, FOUR), (2, FOUR + GIB / 2)] {
        let mut guest = guest(HIGH)?;
        let table = HIGH[3 - level];
        let size = 1 << (12 + 9 * (level - 1));
        guest.write(table, start | RW | LARGE);
        let inside = |place: &u64| (start..start + size).contains(place);
        let mut steps = Vec::new();
        for place in places().into_iter().filter(inside) {
            steps.push((place, guest.peek(HERE + place - start + 8)));
        }
        ensure!(!steps.is_empty(), "nothing to look at");
        guest.survive()?;
        for (place, step) in steps {
            let (outcome, wanted) = (guest.outcome(step), Outcome::Done(mark(place)));
            ensure!(outcome == wanted, "level {level}, {place:#x}: {outcome:x?}");
        }
    }
    Ok(())
}

/// A root and a DMA record up there.
fn named() -> Result<()> {
    for root in [FOUR + 77 * PAGE, END - PAGE] {
        let mut guest = guest(LOW)?;
        for slot in 0..512 {
            let entry = guest.read(ROOT + 8 * slot);
            guest.write(root + 8 * slot, entry);
        }
        // In the first root this slot is empty.
        guest.write(root + 8 * 301, LOW[0] | RW);
        let other = HERE + (1 << 39);
        let before = guest.peek(other + 8);
        guest.call(NEW_PGTABLE, [root, 0, 0, 0]);
        let after = guest.peek(other + 8);
        let record = END - 2048;
        guest.call(SEND_DMA, [7, record, 0, 0]);
        guest.survive()?;
        let missing = matches!(guest.outcome(before), Outcome::Trapped(trap) if trap.vector == 14);
        let wanted = Outcome::Done(mark(places()[0]));
        let got = guest.outcome(after);
        ensure!(missing && got == wanted, "root {root:#x}: {got:x?}");
        ensure!(guest.sent == [(7, record)], "sent: {:x?}", guest.sent);
    }
    Ok(())
}

/// One page further, and numbers that would be good if they were cut to 32 bits.
fn beyond() -> Result<()> {
    for frame in [END, END + PAGE, 2 * FOUR, 2 * FOUR + FREE, 1 << 40 | FREE] {
        let mut first = guest(LOW)?;
        first.write(LOW[2], frame | RW);
        first.peek(HERE);
        let says = format!("mapped to bad guest-physical address {frame:#x}");
        must_die(&mut first, &format!("a page at {frame:#x}"), &says)?;
        let mut second = guest(LOW)?;
        second.write(LOW[1], frame | RW);
        second.peek(HERE);
        let says = format!("bad guest-physical address {frame:#x}");
        must_die(&mut second, &format!("a table at {frame:#x}"), &says)?;
    }
    // Memory ends inside of it, behind the third page.
    let mut last = guest(LOW)?;
    last.write(LOW[1], (5 * GIB) | RW | LARGE);
    last.write(END - 8, mark(END));
    let good = last.peek(HERE + 3 * PAGE - 8);
    last.peek(HERE + 3 * PAGE);
    must_die(&mut last, "behind the last", &format!("{END:#x}"))?;
    let outcome = last.outcome(good);
    ensure!(
        outcome == Outcome::Done(mark(END)),
        "the last word: {outcome:x?}"
    );
    let mut record = guest(LOW)?;
    record.call(SEND_DMA, [7, END, 0, 0]);
    must_die(&mut record, "a record behind the end", &format!("{END:#x}"))
}

/// The Launcher: its Guest runs if Linux gives so much, and else it says why not.
fn launched(bench: &mut Bench) -> Result<()> {
    let guest = Guest::launch(&["5120", "/guests/probe", "case=hello"])?;
    let ended = guest.finish()?;
    let text = if host::meminfo("MemTotal")? * 1024 > 5 * GIB {
        // Its page tables are at the top of its memory.
        ended.expect_code(0)?.expect_output("hello from ring 1")?;
        "the Launcher runs a Guest of 5 GiB"
    } else {
        ended
            .expect_code(2)?
            .expect_error("Linux does not give 5120 MiB")?;
        "the Launcher is not given 5 GiB, and says so"
    };
    bench.control.say("note", text)
}

pub fn high(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        small(LOW)?;
        let frames = small(HIGH)?;
        let high = frames.iter().filter(|frame| **frame >= FOUR).count();
        let much = host::meminfo("MemTotal")? * 1024 > 5 * GIB;
        let text = format!(
            "{} pages of a Guest of {END:#x} bytes, {high} of them above four GiB of the Host's",
            frames.len()
        );
        bench.control.say("note", &text)?;
        ensure!(!much || high > 0, "{text}: the Host has so much");
        large().context("large pages")?;
        named()?;
        beyond()?;
        launched(bench)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_in_memory_and_apart() {
        let places = places();
        assert!(places.iter().all(|place| place + PAGE <= END));
        assert!(
            HIGH.iter()
                .all(|table| table + PAGE <= END && !places.contains(table))
        );
        assert!(HIGH.iter().all(|table| *table >= FOUR));
    }
}
