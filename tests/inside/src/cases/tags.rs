// SPDX-License-Identifier: GPL-2.0-only

//! Many roots: what a Guest that changes among them has to fault for, and what the Host takes for
//! it. A root has a tag, or it is found by its address; bit 63 of CR3 says that nothing is to be
//! forgotten.
//!
//! Each root here has the kernel's half in common with the others, and in the lower half two pages
//! of its own at the same two addresses. A Guest that goes from root to root reads both each time.
//! So every visit tells whether it was the right root, and how many page faults it took tells what
//! was known of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::exits::{folders, numbers};
use super::reclaim::drop_caches;
use crate::bare::reg::{R8, RBP, RBX, RCX, RDX};
use crate::bare::{
    Bare, END, End, FREE, LINEAR, MOST_STEPS, Outcome, PAGE, RW, RWU, Ring, STEP, STEPS,
    StepNumber, UPPER, with_module,
};
use crate::random::Random;
use crate::{code, host};

/// Roots that a shadow keeps: the book's number.
const ROOTS: u64 = 8;
/// Roots that a Guest has at most here.
const SPACES: u64 = 13;
/// Where each has its pages, at the end of memory: root, tables of levels 3, 2 and 1, two of data.
const FIRST: u64 = END - 6 * SPACES * PAGE;
/// The two addresses: too far from each other to be neighbours.
const LOW: u64 = 0x7000_0000;
const BESIDE: u64 = 0x1_0000;
/// Two pages in the kernel's half that nothing else uses, as far from each other.
const KERNEL: u64 = LINEAR + FREE + 20 * PAGE;
/// Lists of visits: 16 bytes each.
const LISTS: u64 = FREE + PAGE;
const LIST_PAGES: u64 = 16;
/// Page faults of a visit to a root of which nothing is known.
const BOTH: u64 = 2;
/// Changes of root in a row.
const MANY: u64 = 1000;
const NO_FLUSH: u64 = 1 << 63;
const NEW_PGTABLE: u64 = 4;
const FLUSH_TLB: u64 = 5;
const SEND_DMA: u64 = 13;
const FLUSH_ADDRESS: u64 = 33;

/// A page of the space of this number: see [`FIRST`].
fn page(space: u64, which: u64) -> u64 {
    FIRST + (6 * space + which) * PAGE
}

/// The entry of [`LOW`] in the space's lowest table, guest-physical.
fn entry(space: u64) -> u64 {
    page(space, 3) + 8 * (LOW >> 12 & 511)
}

/// What a visitor of the space reads in its two pages.
fn words(space: u64) -> [u64; 2] {
    [1000 + space, 5000 + 100 * space]
}

/// CR3 for a space under a tag.
fn cr3(space: u64, tag: u64, keep: bool) -> u64 {
    page(space, 0) | tag | if keep { NO_FLUSH } else { 0 }
}

/// What the Host has counted, at a moment when the Guest stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    calls: u64,
    faults: u64,
    pages: u64,
    /// Tables that were taken, and pages that were got from Linux for tables.
    taken: u64,
    supplied: u64,
}

impl Figures {
    fn now(folder: &Path) -> Result<Self> {
        let numbers = numbers(&fs::read_to_string(folder.join("exits"))?)?;
        let number = |name: &str| numbers.get(name).copied().context(name.to_owned());
        Ok(Self {
            calls: number("hypercall 31")?,
            faults: number("page-fault 14")?,
            pages: number("shadow_pages")?,
            taken: host::counter("shadow_taken")?,
            supplied: host::counter("shadow_supplied")?,
        })
    }

    /// What has come since; of the pages, how many there are.
    fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            faults: self.faults - before.faults,
            pages: self.pages,
            taken: self.taken - before.taken,
            supplied: self.supplied - before.supplied,
        }
    }
}

/// A Guest with [`SPACES`] roots, beside the one that it begins with.
struct Roots {
    guest: Bare,
    /// Steps that it need not fault for.
    touched: usize,
    /// Bytes of lists so far.
    listed: u64,
    walks: Vec<StepNumber>,
    marks: Vec<Figures>,
    /// At this mark Linux wants all memory back.
    squeezed: Option<usize>,
}

impl Roots {
    /// For so many steps, which it need not fault for.
    fn new(steps: usize) -> Result<Self> {
        let mut guest = Bare::new()?;
        let kernel = 8 * (LINEAR >> 39 & 511);
        for space in 0..SPACES {
            guest.write(page(space, 0) + kernel, UPPER[0] | RW);
            for (level, table) in [(4, 0), (3, 1), (2, 2)] {
                let slot = LOW >> (3 + 9 * level) & 511;
                guest.write(page(space, table) + 8 * slot, page(space, table + 1) | RWU);
            }
            guest.write(entry(space), page(space, 4) | RWU);
            guest.write(entry(space) + 8 * (BESIDE / PAGE), page(space, 5) | RWU);
            let [here, beside] = words(space);
            guest.write(page(space, 4), here);
            guest.write(page(space, 5), beside);
        }
        for (at, word) in [(KERNEL, 70), (KERNEL + BESIDE, 7)] {
            guest.write(at - LINEAR, word);
        }
        assert!(steps < MOST_STEPS && STEPS + STEP * steps as u64 <= FIRST);
        guest.touch_steps(steps);
        for list in 0..LIST_PAGES {
            guest.peek(LINEAR + LISTS + list * PAGE);
        }
        guest.go(Ring::One, code!("nop"));
        Ok(Self {
            guest,
            touched: steps,
            listed: 0,
            walks: Vec::new(),
            marks: Vec::new(),
            squeezed: None,
        })
    }

    /// Goes from root to root, so many rounds, and reads two words at and beside a place each
    /// time, whose sum must be what the list says.
    fn walk_at(&mut self, place: u64, visits: &[(u64, u64)], rounds: u64) {
        let list = LISTS + self.listed;
        for (at, (cr3, sum)) in (list..).step_by(16).zip(visits) {
            self.guest.write(at, *cr3);
            self.guest.write(at + 8, *sum);
        }
        self.listed += 16 * visits.len() as u64;
        assert!(self.listed <= LIST_PAGES * PAGE, "too many visits");
        let mut with = self.guest.registers(Ring::One);
        with.general[RBX] = place;
        with.general[RCX] = LINEAR + list;
        with.general[RDX] = LINEAR + LISTS + self.listed;
        with.general[RBP] = 0;
        with.general[R8] = rounds;
        let code = code!(
            "2:",
            "mov rsi, rcx",
            "3:",
            "mov eax, 4",
            "mov rdi, [rsi]",
            "int 0x1f",
            "mov r9, [rbx]",
            "add r9, [rbx + 0x10000]",
            "xor r9, [rsi + 8]",
            "or rbp, r9",
            "add rsi, 16",
            "cmp rsi, rdx",
            "jb 3b",
            "dec r8",
            "jnz 2b",
        );
        self.walks.push(self.guest.go_with(code, &with, 0));
    }

    /// The same in the pages of the spaces: number, tag, and whether bit 63 is set.
    fn walk(&mut self, visits: &[(u64, u64, bool)], rounds: u64) {
        let visits: Vec<_> = visits
            .iter()
            .map(|(space, tag, keep)| (cr3(*space, *tag, *keep), words(*space).iter().sum()))
            .collect();
        self.walk_at(LOW, &visits, rounds);
    }

    /// Has the Launcher read the figures.
    fn mark(&mut self) {
        self.guest.call(SEND_DMA, [3, FREE, 0, 0]);
    }

    /// Runs the Guest to its end, and says what has come between each mark and the next.
    fn run(&mut self) -> Result<Vec<Figures>> {
        let steps = self.guest.steps();
        ensure!(steps <= self.touched, "{steps} steps");
        let device = self.guest.initialize()?;
        let folders = folders(std::process::id())?;
        ensure!(folders.len() == 1, "{folders:?} are there for one Guest");
        let (marks, squeezed) = (&mut self.marks, self.squeezed);
        let end = self.guest.go_on(&device, |_, _, _| {
            if squeezed == Some(marks.len()) {
                drop_caches()?;
            }
            marks.push(Figures::now(&folders[0])?);
            Ok(())
        })?;
        let reached = self.guest.reached();
        ensure!(end == End::Off, "step {reached}: {end:?}");
        for (number, walk) in self.walks.iter().enumerate() {
            match self.guest.outcome(*walk) {
                Outcome::Trapped(trap) if trap.vector == 3 => {}
                other => bail!("walk {number}: {other:x?}"),
            }
            let after = self.guest.after(*walk).general;
            ensure!(
                (after[RBP], after[R8]) == (0, 0),
                "walk {number}: another root's page was seen, bits {:#x}",
                after[RBP]
            );
        }
        let pairs = self.marks.windows(2);
        Ok(pairs.map(|pair| pair[1].since(&pair[0])).collect())
    }
}

pub fn tags(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        kept(bench)?;
        short_of_tables(bench)?;
        flushed(bench)?;
        stale(bench)?;
        evicted(bench)?;
        at_random(bench)
    })
}

/// Every space under a tag of its own, with bit 63.
fn tagged(spaces: std::ops::Range<u64>) -> Vec<(u64, u64, bool)> {
    spaces.map(|space| (space, 1 + space, true)).collect()
}

/// As many tags as there are roots: who comes back finds all as it was.
fn kept(bench: &mut Bench) -> Result<()> {
    let rounds = MANY / ROOTS * if bench.long() { 100 } else { 1 };
    let mut roots = Roots::new(64)?;
    let all = tagged(0..ROOTS);
    roots.mark();
    roots.walk(&all, 1);
    roots.mark();
    roots.walk(&all, rounds);
    roots.mark();
    // In the kernel's half, under each of them.
    let kernel: Vec<_> = all
        .iter()
        .map(|(space, tag, _)| (cr3(*space, *tag, true), 77))
        .collect();
    roots.walk_at(KERNEL, &kernel, 1);
    roots.mark();
    let figures = roots.run()?;
    let [first, again, kernel] = figures[..] else {
        bail!("{} marks", figures.len());
    };
    let said = format!(
        "{ROOTS} tags: {} faults in the first round, then {} in {} changes; {} and {} shadow \
         pages, {} tables taken, {} pages from Linux",
        first.faults,
        again.faults,
        again.calls - 1,
        first.pages,
        again.pages,
        again.taken,
        again.supplied
    );
    ensure!(
        first.faults == BOTH * ROOTS
            && again.calls == ROOTS * rounds + 1
            && (again.faults, again.taken, again.supplied) == (0, 0, 0)
            && again.pages == first.pages,
        "{said}"
    );
    bench.control.say("note", &said)?;
    let said = format!(
        "in the kernel's half: {} faults for two pages under {ROOTS} tags",
        kernel.faults
    );
    ensure!(kernel.faults == BOTH, "{said}");
    bench.control.say("note", &said)
}

/// A change to a known root takes nothing even when the Host is about to get more pages.
fn short_of_tables(bench: &mut Bench) -> Result<()> {
    const PLACES: u64 = 24;
    let mut roots = Roots::new(200)?;
    // Every 2 MiB the same page again, with a table of the shadow's for each.
    let table = page(0, 2) + 8 * (LOW >> 21 & 511);
    for place in 1..=PLACES {
        roots.guest.write(table + 8 * place, page(0, 3) | RWU);
    }
    roots.walk(&tagged(0..2), 1);
    roots.mark();
    let mut touched = Vec::new();
    for place in 1..=PLACES {
        roots.guest.call(NEW_PGTABLE, [cr3(0, 1, true), 0, 0, 0]);
        touched.push(roots.guest.peek(LOW + (place << 21)));
        roots.mark();
        roots.guest.call(NEW_PGTABLE, [cr3(1, 2, true), 0, 0, 0]);
        roots.guest.call(NEW_PGTABLE, [cr3(0, 1, true), 0, 0, 0]);
        roots.mark();
    }
    let figures = roots.run()?;
    for step in touched {
        let outcome = roots.guest.outcome(step);
        ensure!(outcome == Outcome::Done(words(0)[0]), "{outcome:x?}");
    }
    // By turns: one place touched, and two calls.
    let sum_of = |which| {
        let some = figures.iter().skip(which).step_by(2);
        some.fold(Figures::default(), |sum, some| Figures {
            faults: sum.faults + some.faults,
            taken: sum.taken + some.taken,
            supplied: sum.supplied + some.supplied,
            ..sum
        })
    };
    let [touching, changing] = [0, 1].map(sum_of);
    let said = format!(
        "between {} new tables, for which Linux gave {} pages: {} faults, {} tables taken, {} \
         pages from Linux for {} changes",
        touching.taken,
        touching.supplied,
        changing.faults,
        changing.taken,
        changing.supplied,
        2 * PLACES
    );
    ensure!(
        (touching.faults, touching.taken) == (PLACES, PLACES)
            && touching.supplied > 0
            && (changing.faults, changing.taken, changing.supplied) == (0, 0, 0),
        "{said}"
    );
    bench.control.say("note", &said)
}

/// What each way to flush takes, of the root in force, of the others, and of the kernel's half.
fn flushed(bench: &mut Bench) -> Result<()> {
    let all = tagged(0..ROOTS);
    let mut roots = Roots::new(120)?;
    roots.walk(&all, 1);
    roots.walk_at(KERNEL, &[(cr3(0, 1, true), 77)], 1);
    roots.mark();
    // Under tag 4 in each case, which is that of space 3.
    let goes = |roots: &mut Roots| roots.guest.call(NEW_PGTABLE, [cr3(3, 4, true), 0, 0, 0]);
    let mut wanted = Vec::new();
    let mut now = |roots: &mut Roots, what, faults| {
        // What was forgotten, wherever it was, is missed now, and after that nothing is.
        roots.walk(&all, 2);
        roots.walk_at(KERNEL, &[(cr3(0, 1, true), 77)], 1);
        roots.mark();
        wanted.push((what, faults));
    };
    now(&mut roots, "nothing", 0);
    roots.walk(&[(3, 4, false)], 1);
    now(&mut roots, "a change with bit 63 clear", BOTH);
    goes(&mut roots);
    roots.guest.call(FLUSH_TLB, [0, 0, 0, 0]);
    now(&mut roots, "FLUSH_TLB(0)", BOTH);
    goes(&mut roots);
    roots.guest.call(FLUSH_ADDRESS, [LOW, 0, 0, 0]);
    now(&mut roots, "FLUSH_ADDRESS of one of its own pages", 1);
    goes(&mut roots);
    roots.guest.call(FLUSH_ADDRESS, [KERNEL, 0, 0, 0]);
    now(&mut roots, "FLUSH_ADDRESS of one of the kernel's", 1);
    // The tag is given to another root, and comes back: each time nothing of it is true any more.
    roots.walk(&[(ROOTS, 4, true)], 1);
    now(
        &mut roots,
        "another root with the same tag, bit 63 set",
        2 * BOTH,
    );
    let figures = roots.run()?;
    ensure!(figures.len() == wanted.len(), "{} marks", figures.len());
    for ((what, faults), figures) in wanted.into_iter().zip(&figures) {
        let said = format!("faults after {what}: {}", figures.faults);
        ensure!(figures.faults == faults, "{said}, not {faults}");
        bench.control.say("note", &said)?;
    }
    Ok(())
}

/// What becomes of an entry while its tag is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weaker {
    Gone,
    Elsewhere,
    ReadOnly,
}

/// How the Guest says so, once it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Cr3,
    Address,
    Lower,
    All,
}

/// The word that an access came to, or the error code of its page fault.
fn came(outcome: Outcome) -> Result<Result<u64, u64>> {
    match outcome {
        Outcome::Done(word) => Ok(Ok(word)),
        Outcome::Trapped(trap) if trap.vector == 14 => Ok(Err(trap.error)),
        other => bail!("neither done nor refused: {other:x?}"),
    }
}

/// Entries that are changed while their tag is kept. What was weakened may be seen as it was until
/// the tag is flushed, and not afterwards; what was made stronger may be used at once.
fn stale(bench: &mut Bench) -> Result<()> {
    let (here, away) = (cr3(2, 3, true), cr3(1, 2, true));
    let at = LINEAR + entry(2);
    let [old, other] = [2, 5].map(|space| words(space)[0]);
    let mut roots = Roots::new(200)?;
    let guest = &mut roots.guest;
    let go = |guest: &mut Bare, cr3| guest.call(NEW_PGTABLE, [cr3, 0, 0, 0]);
    let mut tries = Vec::new();
    for weaker in [Weaker::Gone, Weaker::Elsewhere, Weaker::ReadOnly] {
        let access = |guest: &mut Bare| match weaker {
            Weaker::ReadOnly => guest.poke(LOW, old),
            _ => guest.peek(LOW),
        };
        for flush in [Flush::Cr3, Flush::Address, Flush::Lower, Flush::All] {
            guest.poke(at, page(2, 4) | RWU);
            go(guest, here & !NO_FLUSH);
            let before = access(guest);
            go(guest, away);
            let entry = match weaker {
                Weaker::Gone => 0,
                Weaker::Elsewhere => page(5, 4) | RWU,
                Weaker::ReadOnly => page(2, 4) | RWU & !2,
            };
            guest.poke(at, entry);
            go(guest, here);
            let kept = access(guest);
            match flush {
                Flush::Cr3 => go(guest, here & !NO_FLUSH),
                Flush::Address => guest.call(FLUSH_ADDRESS, [LOW, 0, 0, 0]),
                Flush::Lower => guest.call(FLUSH_TLB, [0, 0, 0, 0]),
                Flush::All => guest.call(FLUSH_TLB, [1, 0, 0, 0]),
            };
            tries.push((weaker, flush, [before, kept, access(guest)]));
        }
    }
    // Stronger: from nothing to a page for reading, and to one for writing.
    guest.poke(at, 0);
    go(guest, here & !NO_FLUSH);
    let mut stronger = Vec::new();
    for rights in [RWU & !2, RWU] {
        go(guest, away);
        guest.poke(at, page(2, 4) | rights);
        go(guest, here);
        stronger.push(guest.peek(LOW));
    }
    stronger.push(guest.poke(LOW, old));
    roots.run()?;

    let guest = &roots.guest;
    let mut seen = 0;
    for (weaker, flush, steps) in &tries {
        let [before, kept, after] = steps.map(|step| guest.outcome(step));
        let [before, kept, after] = [came(before)?, came(kept)?, came(after)?];
        // A write answers with the word that was written.
        let new = match weaker {
            Weaker::Gone => Err(0),
            Weaker::Elsewhere => Ok(other),
            Weaker::ReadOnly => Err(3),
        };
        let said = format!("{weaker:?}, {flush:?}: {before:x?}, {kept:x?}, {after:x?}");
        ensure!(before == Ok(old), "before, {said}");
        ensure!(kept == Ok(old) || kept == new, "with the tag kept, {said}");
        ensure!(after == new, "after the flush, {said}");
        seen += u64::from(kept != new);
    }
    for step in stronger {
        let outcome = guest.outcome(step);
        ensure!(
            outcome == Outcome::Done(old) && guest.traps(step) == 0,
            "made stronger, and yet: {outcome:x?}"
        );
    }
    bench.control.say(
        "note",
        &format!(
            "weakened under a kept tag: as before in {seen} of {} tries, in none after a flush",
            tries.len()
        ),
    )
}

/// More roots than the Host keeps, without tags. The one that was used longest ago goes, and never
/// the one in force.
fn evicted(bench: &mut Bench) -> Result<()> {
    const ALL: u64 = 12;
    const ROUNDS: u64 = 10;
    let all: Vec<_> = (0..ALL).map(|space| (space, 0, true)).collect();
    let mut roots = Roots::new(64)?;
    roots.mark();
    roots.walk(&all, 1);
    roots.mark();
    roots.walk(&all, ROUNDS);
    roots.mark();
    // Between any two of the others, the first: it is in force whenever another has to go.
    roots.walk(&all[..1], 1);
    roots.mark();
    let in_turn: Vec<_> = all[1..].iter().flat_map(|other| [*other, all[0]]).collect();
    roots.walk(&in_turn, ROUNDS);
    roots.mark();
    // As many as there is room for.
    roots.walk(&all[..ROOTS as usize], 1);
    roots.mark();
    roots.walk(&all[..ROOTS as usize], ROUNDS);
    // And now Linux takes what it can get: all of them, but for what the Guest stands on.
    roots.squeezed = Some(6);
    roots.mark();
    roots.walk(&all[..ROOTS as usize], ROUNDS);
    roots.mark();
    let figures = roots.run()?;
    let [first, round, _, turns, _, few, squeezed] = figures[..] else {
        bail!("{} marks", figures.len());
    };
    let said = format!(
        "{ALL} roots in {ROOTS}: {} faults in {} changes; with one of them in between, {} in \
         {}; {ROOTS} of them, {} in {}; {} and {} shadow pages",
        round.faults,
        round.calls - 1,
        turns.faults,
        turns.calls - 1,
        few.faults,
        few.calls - 1,
        first.pages,
        round.pages
    );
    ensure!(
        round.faults == BOTH * ALL * ROUNDS
            && turns.faults == BOTH * (ALL - 1) * ROUNDS
            && few.faults == 0
            && first.pages == round.pages,
        "{said}"
    );
    bench.control.say("note", &said)?;
    let said = format!(
        "{} shadow pages, then {}: {} faults in {} changes",
        roots.marks[5].pages,
        roots.marks[6].pages,
        squeezed.faults,
        squeezed.calls - 1
    );
    ensure!(squeezed.faults >= BOTH * ROOTS, "{said}");
    bench.control.say("note", &said)
}

/// Which roots the Host should know, the one that was used last at the end: tag and space.
struct Known(Vec<(u64, u64)>);

impl Known {
    /// Visits a space; the faults that this costs.
    fn visit(&mut self, space: u64, tag: u64, keep: bool) -> u64 {
        let found = self
            .0
            .iter()
            .position(|known| *known == (tag, space) || (tag != 0 && known.0 == tag));
        let same = found.is_some_and(|place| self.0.remove(place) == (tag, space));
        if self.0.len() == ROOTS as usize {
            self.0.remove(0);
        }
        self.0.push((tag, space));
        if same && keep { 0 } else { BOTH }
    }
}

/// Spaces at random, some with a tag of their own, some with one that they share, some without.
fn at_random(bench: &mut Bench) -> Result<()> {
    const VISITS: u64 = 800;
    let seed = bench.seed();
    let mut random = Random::new(seed);
    let mut known = Known(Vec::new());
    let (mut visits, mut faults) = (Vec::new(), 0);
    for _ in 0..VISITS {
        let space = random.below(SPACES);
        let tag = match space {
            0..5 => 0,
            5..9 => space,
            _ => 100 + space % 2,
        };
        let keep = random.below(8) != 0;
        faults += known.visit(space, tag, keep);
        visits.push((space, tag, keep));
    }
    let mut roots = Roots::new(32)?;
    roots.mark();
    roots.walk(&visits, 1);
    roots.mark();
    let figures = roots.run().with_context(|| format!("seed {seed}"))?;
    let got = figures[0].faults;
    let said = format!("{VISITS} at random, seed {seed}: {got} faults, {faults} as reckoned");
    ensure!(got == faults, "{said}");
    bench.control.say("note", &said)
}
