// SPDX-License-Identifier: GPL-2.0-only

//! Every way in which a hypercall can end a Guest, with the exact words.
//!
//! The sweep asks whether a bad call is found. Here it is what the owner of the Guest gets to read:
//! the call's name, its number, and the value that was wrong. Each line of the table is tried as a
//! direct call, through the ring, and under the real Launcher. Two tests compare the table with the
//! Host: there must be a line for each argument of each call, and one for each sentence in the
//! chapters that a hypercall can die with.

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::guests::{KILLED, run};
use super::sweep::{CALLS, OTHER_ROOT, RECORDS, SEGMENTS, UNKNOWN};
use crate::bare::{Bare, END, End, LINEAR, Outcome, PAGE, Ring, with_module};
use crate::{code, host};

/// When the call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// In a Guest that has done nothing yet, not even INIT.
    First,
    /// In a Guest that has made good calls.
    Later,
    /// The same, with this descriptor in [`SEGMENTS`] at this slot.
    Descriptor(u64, u64),
    /// The same, and it is found out at the next trip, not by the call itself.
    Afterwards,
}

/// A call, and what must be said about it.
#[derive(Clone, Debug)]
struct Line {
    when: When,
    number: u64,
    args: [u64; 4],
    /// Which argument is the bad one; none if it is the number.
    bad: Option<usize>,
    says: String,
}

/// The end of the test Guest's memory under the real Launcher, with the page of descriptors.
const PROBE_END: u64 = (16 << 20) + PAGE;
/// A data segment of ring 3, as a Guest may have it.
const GOOD: u64 = 0x00cf_f300_0000_ffff;
/// Descriptors that it may not have, and what the Host says of them.
const BAD_DESCRIPTORS: [(u64, &str); 5] = [
    (0x0000_8900_0000_ffff, "is a system descriptor"),
    (0x00cf_fb00_0000_ffff, "is a code segment"),
    (0x00ef_f300_0000_ffff, "has a reserved bit set"),
    (0x008f_f300_0000_ffff, "is a 16-bit segment"),
    (0x00cf_d300_0000_ffff, "is a segment of ring 2"),
];

/// The table, for a Guest whose memory ends there.
#[derive(Debug)]
struct Table {
    end: u64,
    lines: Vec<Line>,
}

impl Table {
    fn new(end: u64, five: bool) -> Self {
        let mut table = Self {
            end,
            lines: Vec::new(),
        };
        table.numbers();
        table.whole_guest();
        table.segments();
        table.tables(five);
        table.hints();
        table.traps();
        table.dma();
        table
    }

    /// Adds a line whose argument in this place is bad.
    fn bad(&mut self, number: u64, args: [u64; 4], place: usize, says: String) {
        self.add(When::Later, number, args, Some(place), says);
    }

    fn add(&mut self, when: When, number: u64, args: [u64; 4], bad: Option<usize>, says: String) {
        self.lines.push(Line {
            when,
            number,
            args,
            bad,
            says,
        });
    }

    /// What is said about an address that is not in memory.
    fn outside(&self, at: u64, bytes: u64) -> String {
        let end = self.end;
        format!("bad guest-physical address {at:#x}: {bytes} bytes there, memory ends at {end:#x}")
    }

    /// Addresses at which so many bytes are not in memory.
    fn addresses(&self, bytes: u64) -> Vec<u64> {
        let edge = (self.end - bytes + 8) & !7;
        let far = [self.end, 1 << 32, 1 << 63, !7];
        [&[edge][..], &far].concat()
    }

    /// Numbers that mean nothing, and all numbers before INIT.
    fn numbers(&mut self) {
        let known = CALLS.map(|(number, _, _)| number);
        let mut unknown = UNKNOWN.to_vec();
        unknown.extend([0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX - 1]);
        // What a Host would take for a good number that looked at one half of it, or at a byte.
        for number in known {
            unknown.extend([1 << 32 | number, 1 << 63 | number, 1 << 8 | number]);
            unknown.push((number as u32).wrapping_neg().into());
        }
        unknown.retain(|number| !known.contains(number));
        unknown.sort_unstable();
        unknown.dedup();
        for number in unknown {
            let says = format!("unknown hypercall {number}");
            self.add(When::Later, number, [0; 4], None, says);
        }
        for (number, _, args) in CALLS.iter().filter(|(number, _, _)| *number != 1) {
            let says = format!("hypercall {number} before INIT");
            self.add(When::First, *number, *args, None, says);
        }
        for number in [11_u64, 1 << 32 | 1, u64::MAX] {
            let says = format!("hypercall {number} before INIT");
            self.add(When::First, number, [1, 0, 0, 0], None, says);
        }
    }

    /// INIT, SHUTDOWN, TS and SET_CLOCKEVENT.
    fn whole_guest(&mut self) {
        for version in [0, 2, 1 << 32 | 1, u64::MAX] {
            let says = format!("INIT (1): the Guest wants version {version}, this is 1");
            self.add(When::First, 1, [version, 0, 0, 0], Some(0), says);
        }
        for version in [0, 1] {
            let says = "INIT (1) a second time".to_owned();
            self.bad(1, [version, 0, 0, 0], 0, says);
        }
        for how in [0, 4, 1 << 32 | 1, u64::MAX] {
            let says = format!("SHUTDOWN (2): how is {how}?");
            self.bad(2, [0, how, 16, 0], 1, says);
        }
        for at in self.addresses(16) {
            let says = format!("SHUTDOWN (2): {}", self.outside(at, 16));
            self.bad(2, [at, 3, 16, 0], 0, says);
        }
        for bytes in [9, 256, 257, u64::MAX] {
            let at = self.end - 8;
            let says = format!("SHUTDOWN (2): {}", self.outside(at, bytes.min(256)));
            self.bad(2, [at, 3, bytes, 0], 2, says);
        }
        for on in [2, 1 << 32, u64::MAX] {
            self.bad(8, [on, 0, 0, 0], 0, format!("TS (8): on is {on:#x}"));
        }
        for ns in [1 << 63, 1 << 63 | 1, u64::MAX] {
            let says = format!("SET_CLOCKEVENT (9): {ns} ns are over 292 years");
            self.bad(9, [ns, 0, 0, 0], 0, says);
        }
    }

    /// The three calls for segments.
    fn segments(&mut self) {
        for count in [17, 1 << 32, u64::MAX] {
            let says = format!("LOAD_GDT (3): {count} entries are too many");
            self.bad(3, [SEGMENTS, count, 0, 0], 1, says);
        }
        for at in self.addresses(128) {
            let says = format!("LOAD_GDT (3): {}", self.outside(at, 128));
            self.bad(3, [at, 16, 0, 0], 0, says);
        }
        for at in self.addresses(24) {
            let says = format!("LOAD_TLS (16): {}", self.outside(at, 24));
            self.bad(16, [at, 0, 0, 0], 0, says);
        }
        for slot in [0, 8, 11, 16, 1 << 32 | 12, u64::MAX] {
            let says = format!("LOAD_GDT_ENTRY (18): slot {slot} is not the Guest's");
            self.bad(18, [slot, GOOD, 0, 0], 0, says);
        }
        for (slot, (word, what)) in [12, 13, 14, 15, 12].into_iter().zip(BAD_DESCRIPTORS) {
            let says = |call: &str| format!("{call}: slot {slot} {what} ({word:#x})");
            self.bad(18, [slot, word, 0, 0], 1, says("LOAD_GDT_ENTRY (18)"));
            let when = When::Descriptor(slot, word);
            let whole = [SEGMENTS, 16, 0, 0];
            self.add(when, 3, whole, Some(0), says("LOAD_GDT (3)"));
            if slot < 15 {
                let three = [SEGMENTS + 12 * 8, 0, 0, 0];
                self.add(when, 16, three, Some(0), says("LOAD_TLS (16)"));
            }
        }
    }

    /// Page tables and flushes.
    fn tables(&mut self, five: bool) {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        for cr3 in [self.end, 1 << 32 | 5, ADDRESS, 1 << 63 | 1 << 40, u64::MAX] {
            let root = cr3 & ADDRESS;
            let why = self.outside(root, PAGE);
            let says = format!("NEW_PGTABLE (4): CR3 {cr3:#x}, {why}");
            self.bad(4, [cr3, 0, 0, 0], 0, says);
        }
        for scope in [2, 1 << 32, u64::MAX] {
            let says = format!("FLUSH_TLB (5): scope {scope}");
            self.bad(5, [scope, 0, 0, 0], 0, says);
        }
        let mut addresses = vec![1 << 56, 1 << 63, !0 << 56 ^ 1 << 63];
        if !five {
            addresses.extend([1 << 47, (!0 << 47) - 1]);
        }
        for at in addresses {
            let says = format!("FLUSH_ADDRESS (33): {at:#x} is not canonical");
            self.bad(33, [at, 0, 0, 0], 0, says);
        }
    }

    /// Entries that are none, and pages that are none.
    fn hints(&mut self) {
        const ENTRY: u64 = PAGE;
        for (number, name) in [(14, "SET_PTE (14)"), (15, "SET_PMD (15)")] {
            for at in self.addresses(8) {
                let says = format!("{name}: {}", self.outside(at, 8));
                self.bad(number, [at, LINEAR, 0, 0], 0, says);
            }
            for at in [ENTRY + 1, ENTRY + 4, ENTRY + 7] {
                let says = format!("{name}: no entry is at {at:#x}");
                self.bad(number, [at, u64::MAX, 0, 0], 0, says);
            }
            for page in [LINEAR + 8, 1, 1 << 47, 1 << 63, u64::MAX - 1, PAGE - 1] {
                let says = format!("{name}: no page is at {page:#x}");
                self.bad(number, [ENTRY, page, 0, 0], 1, says);
            }
        }
    }

    /// What happens at a vector, and the stack for it.
    fn traps(&mut self) {
        let handler = LINEAR + 8 * PAGE;
        let name = "LOAD_IDT_ENTRY (6)";
        for vector in [256, 1 << 32 | 3, u64::MAX] {
            let says = format!("{name}: there is no vector {vector}");
            self.bad(6, [vector, handler, 0x201, 0], 0, says);
        }
        for vector in [2, 8, 18, 31] {
            let says = format!("{name}: vector {vector} is the Host's");
            self.bad(6, [vector, handler, 0x201, 0], 0, says);
        }
        for at in [1 << 47, 1 << 63, (!0 << 47) - 1] {
            let says = format!("{name}: bad handler address {at:#x}");
            self.bad(6, [50, at, 0x201, 0], 1, says);
        }
        for flags in [5, 0x401, 1 << 32 | 1, u64::MAX] {
            let says = format!("{name}: unknown IDT flags {flags:#x}");
            self.bad(6, [50, handler, flags, 0], 2, says);
        }
        for flags in [0, 2, 0x202] {
            let says = format!("{name}: IDT entry with DPL {}", flags & 3);
            self.bad(6, [50, handler, flags, 0], 2, says);
        }
        for vector in [1, 7, 13, 14, 50, 255] {
            let says = format!("{name}: vector {vector} cannot be direct");
            self.bad(6, [vector, handler, 0x101, 0], 2, says);
        }
        let stack = LINEAR + 16 * PAGE;
        for top in [stack + 8, stack + 1, 1 << 47, 1 << 63, u64::MAX] {
            let says = format!("SET_STACK (7): top {top:#x}, 2 pages");
            self.bad(7, [top, 2, 0, 0], 0, says);
        }
        for pages in [0, 3, 1 << 32 | 1, u64::MAX] {
            let says = format!("SET_STACK (7): top {stack:#x}, {pages} pages");
            self.bad(7, [stack, pages, 0, 0], 1, says);
        }
        // In form, but there is no such page; or it may not be written.
        let top = 0x5000_1000;
        let says = format!(
            "SET_STACK (7): bad stack page {:#x} (error 0x2)",
            top - PAGE
        );
        self.add(When::Afterwards, 7, [top, 1, 0, 0], Some(0), says);
    }

    /// Records.
    fn dma(&mut self) {
        for line in [64, 1 << 32 | 1, u64::MAX] {
            let says = format!("BIND_DMA (12): there is no line {line}");
            self.bad(12, [7, RECORDS, 2, line], 3, says);
        }
        let not_within = |name: &str, count: u64, at: u64| {
            format!("{name}: {count} records at {at:#x} are not within a page")
        };
        for count in [25, 1 << 32 | 1, u64::MAX, u64::MAX / 168 + 1] {
            let says = not_within("BIND_DMA (12)", count, RECORDS);
            self.bad(12, [7, RECORDS, count, 5], 2, says);
        }
        for at in [RECORDS + 4, RECORDS + PAGE - 160, u64::MAX, u64::MAX - 7] {
            let says = not_within("BIND_DMA (12)", 2, at);
            self.bad(12, [7, at, 2, 5], 1, says);
            let says = not_within("SEND_DMA (13)", 1, at);
            self.bad(13, [3, at, 0, 0], 1, says);
        }
        for at in [self.end, 1 << 32, 1 << 63] {
            let says = format!("BIND_DMA (12): {}", self.outside(at, 336));
            self.bad(12, [7, at, 2, 5], 1, says);
            let says = format!("SEND_DMA (13): {}", self.outside(at, 168));
            self.bad(13, [3, at, 0, 0], 1, says);
        }
    }
}

/// The address of the shared page, which is the same for every Guest.
pub(super) fn shared_page() -> Result<u64> {
    let mut guest = Bare::new()?;
    guest.raw();
    let init = guest.call(1, [1, 0, 0, 0]);
    guest.survive()?;
    match guest.outcome(init) {
        Outcome::Done(address) => Ok(address),
        other => bail!("INIT: {other:?}"),
    }
}

/// A Guest that makes the call, directly or through the ring.
fn bare(line: &Line, through_ring: bool, shared: u64) -> Result<Bare> {
    let mut guest = Bare::new()?;
    for slot in 0..512 {
        let entry = guest.read(crate::bare::ROOT + 8 * slot);
        guest.write(OTHER_ROOT + 8 * slot, entry);
    }
    let mut slot = 0;
    match line.when {
        When::First => guest.raw(),
        When::Later | When::Afterwards => {
            // Some calls before it, so that it is not in slot 0.
            slot = 3;
            (0..slot).for_each(|slot| guest.queue(slot, 5, [1, 0, 0, 0]));
            guest.call(0, [0; 4]);
        }
        When::Descriptor(slot, word) => guest.write(SEGMENTS + 8 * slot, word),
    }
    if !through_ring {
        guest.call(line.number, line.args);
    } else if line.when == When::First {
        // Nobody has told the Guest where the ring is, but it may know.
        guest.poke(shared + 0x140, line.number);
        for (place, value) in (1..).zip(line.args) {
            guest.poke(shared + 0x140 + 8 * place, value);
        }
        // Its status is a byte among seven others, which are free.
        guest.poke(shared + 0x100, !0xff);
        guest.call(0, [0; 4]);
    } else {
        guest.queue(slot, line.number, line.args);
        guest.call(0, [0; 4]);
    }
    if line.when == When::Afterwards {
        guest.set_stack();
        guest.go(Ring::Three, code!("int 0x80"));
    }
    Ok(guest)
}

/// The same by the test Guest and the real Launcher, where the call needs no preparations.
fn under_the_launcher(line: &Line) -> Result<bool> {
    let words = match line.when {
        When::First => "raw",
        When::Later | When::Afterwards => "cooked",
        When::Descriptor(..) => return Ok(false),
    };
    let names = ["a", "b", "c", "d"].iter().zip(line.args);
    let mut all = vec![
        "case=hostile".to_owned(),
        words.to_owned(),
        format!("number={}", line.number),
    ];
    all.extend(names.map(|(name, value)| format!("{name}={value}")));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let ended = run(&all)?;
    let wanted = format!("lguest: the Host killed the Guest: {}\n", line.says);
    ended.expect_code(KILLED)?;
    ensure!(
        ended.errors == wanted,
        "the Launcher said {:?}, not {wanted:?}",
        ended.errors
    );
    Ok(true)
}

pub fn reasons(bench: &mut Bench) -> Result<()> {
    let long = bench.long();
    with_module(|| {
        let five = host::five_levels();
        let shared = shared_page()?;
        let table = Table::new(END, five);
        for line in &table.lines {
            for through_ring in [false, true] {
                let mut guest = bare(line, through_ring, shared)?;
                let end = guest.run()?;
                let wanted = End::Dead(line.says.clone());
                ensure!(
                    end == wanted,
                    "{line:x?}, through the ring: {through_ring}: {end:?}"
                );
                // Whatever it sent before, it sent nothing after.
                ensure!(guest.sent.is_empty(), "{line:x?}: {:x?}", guest.sent);
            }
        }
        // Under the Launcher all of them in the long set; else one for each call and argument.
        let (mut launched, mut last) = (0, None);
        for line in &Table::new(PROBE_END, five).lines {
            let what = Some((line.when, line.number, line.bad));
            if !long && last == what || line.bad.is_none() && launched > 2 && !long {
                continue;
            }
            last = what;
            let done = under_the_launcher(line).with_context(|| format!("{line:x?}"))?;
            launched += usize::from(done);
        }
        let count = table.lines.len();
        let said = format!("{count} reasons, twice each, and {launched} under the Launcher");
        bench.control.say("note", &said)
    })
}

#[cfg(test)]
mod tests {
    use super::super::matches;
    use super::super::sweep::unused;
    use super::*;

    /// Arguments of which no value is bad.
    const ANYTHING: [(u64, usize); 2] = [(12, 0), (13, 0)];

    /// Where the sentences are: a chapter, the words before the first of them, and those after the
    /// last.
    const CHAPTERS: [(&str, &str, &str); 9] = [
        (
            include_str!("../../../../book/host/hints.md"),
            "chunk:hints-hint",
            "```\n",
        ),
        (
            include_str!("../../../../book/host/timer.md"),
            "chunk:timer-set",
            "```\n",
        ),
        (
            include_str!("../../../../book/host/hypercalls.md"),
            "## The calls",
            "## What it shows",
        ),
        (
            include_str!("../../../../book/host/dma.md"),
            "chunk:dma-calls",
            "chunk:dma-get",
        ),
        (
            include_str!("../../../../book/host/segments.md"),
            "chunk:segments-set",
            "## When they are copied",
        ),
        (
            include_str!("../../../../book/host/segments.md"),
            "chunk:logic-segments-error",
            "## A selector left behind",
        ),
        (
            include_str!("../../../../book/host/fpu.md"),
            "/// The hypercall.",
            "```\n",
        ),
        (
            include_str!("../../../../book/host/demand.md"),
            "chunk:demand-stack-page",
            "```\n",
        ),
        (
            include_str!("../../../../book/host/descriptors.md"),
            "for IdtError {",
            "```\n",
        ),
    ];

    /// Sentences that no argument leads to.
    const NOT_HERE: [&str; 1] = ["{who}: no memory for tables"];

    /// What follows each of the words that come before a sentence.
    fn sentences(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for before in ["format_args!(", "write!(f, ", "Err("] {
            for rest in text.split(before).skip(1) {
                let Some(rest) = rest.trim_start().strip_prefix('"') else {
                    continue;
                };
                let sentence = rest.split('"').next().expect("it ends");
                let pieces = sentence.split("\\\n").map(str::trim_start);
                found.push(pieces.collect());
            }
        }
        found
    }

    /// The sentence as a pattern for a part of a line: `*` for what is in braces.
    fn pattern(sentence: &str) -> String {
        let mut pattern = "*".to_owned();
        for piece in sentence.split_inclusive(['{', '}']) {
            match piece.strip_suffix('{') {
                Some(words) => pattern.extend([words, "*"]),
                None if piece.ends_with('}') => {}
                None => pattern.push_str(piece),
            }
        }
        pattern.push('*');
        pattern
    }

    #[test]
    fn every_sentence_of_the_chapters_has_a_line() {
        let lines = Table::new(END, true).lines;
        let mut count = 0;
        for (chapter, from, to) in CHAPTERS {
            let (_, rest) = chapter.split_once(from).expect(from);
            let (part, _) = rest.split_once(to).expect(to);
            let all = sentences(part);
            assert!(!all.is_empty(), "nothing after {from:?}");
            for sentence in all.iter().filter(|s| !NOT_HERE.contains(&s.as_str())) {
                let pattern = pattern(sentence);
                let said = lines.iter().any(|line| matches(&pattern, &line.says));
                assert!(said, "{sentence:?}, as {pattern:?}, is in no line");
                count += 1;
            }
        }
        // No fewer than there were when this was written.
        assert!(count >= 30, "{count} sentences");
    }

    #[test]
    fn a_sentence_is_found() {
        let text = "kill(format_args!(\n    \"a {x} \\\n     b\"\n)); Err(\"c\"); Err(d)";
        assert_eq!(sentences(text), ["a {x} b", "c"]);
        assert_eq!(pattern("a {x:#x} b"), "*a * b*");
    }

    #[test]
    fn every_argument_has_a_line() {
        let table = Table::new(END, true);
        for (number, name, _) in CALLS {
            for place in (0..4).filter(|place| !unused(number, *place)) {
                let there = |line: &&Line| (line.number, line.bad) == (number, Some(place));
                let count = table.lines.iter().filter(there).count();
                let anything = ANYTHING.contains(&(number, place));
                assert_eq!(count == 0, anything, "{name}, argument {place}");
            }
        }
    }

    #[test]
    fn every_line_names_number_and_value() {
        for line in Table::new(END, true).lines {
            let Line { number, says, .. } = &line;
            let named = says.contains(&format!("({number})"))
                || says.contains(&format!("hypercall {number}"));
            assert!(named, "{line:x?}");
            let Some(value) = line.bad.map(|place| line.args[place]) else {
                continue;
            };
            let whole = says.contains(&value.to_string()) || says.contains(&format!("{value:#x}"));
            // Of a descriptor in memory the slot and the word are said, and so on.
            let other = match says.split_once(": ").map(|(_, what)| what) {
                _ if says == "INIT (1) a second time" => true,
                Some(what) if what.contains(" with DPL ") => true,
                Some(what) if what.contains(" cannot be direct") => true,
                Some(what) if what.starts_with("slot ") => true,
                Some(what) if what.starts_with("bad stack page ") => true,
                // At most 256 bytes of a message are read.
                Some(what) if what.contains(": 256 bytes there") => true,
                _ => false,
            };
            assert!(whole || other, "{line:x?}");
        }
    }
}
