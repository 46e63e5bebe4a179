// SPDX-License-Identifier: GPL-2.0-only

//! Hypercalls with arguments at every border, one by one and at random.
//!
//! [`fate`] says what must become of a call. It is written from the agreement and not from the
//! Host, so that the two can disagree. The sweep takes a call in good order and puts each
//! interesting value into each of its arguments. The fuzz makes lists of such calls at random,
//! directly and through the ring. Either way a Guest must live through what is in order, and die
//! at the first call that is not, of a reason that names it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Bench;
use crate::bare::{
    Bare, END, End, FREE, LINEAR, LOWER, PAGE, ROOT, TRAP_STACK, USER_DATA, handler, with_module,
};
use crate::host;

/// What must become of a Guest that makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lives; the answer, where it is known.
    Lives(Option<u64>),
    /// It ends as it wanted.
    Ends(End),
    /// It dies, and one of these texts is in the reason.
    Dies(&'static [&'static str]),
    /// It lives, or dies with one of these texts in the reason: that depends on what lies in its
    /// memory there.
    Either(&'static [&'static str]),
    /// It runs on, on tables of nonsense, as long as it can.
    Doubtful,
}

use Fate::{Dies, Doubtful, Either, Ends, Lives};

/// One hypercall: its number, its name, and arguments in good order.
pub(super) type Call = (u64, &'static str, [u64; 4]);

/// Where a record may lie: a page that nothing else uses.
pub(super) const RECORDS: u64 = FREE;
/// A copy of the top-level table.
pub(super) const OTHER_ROOT: u64 = FREE + PAGE;
/// Pages of zeros, which are empty descriptors.
pub(super) const SEGMENTS: u64 = FREE + 2 * PAGE;
const SEGMENTS_END: u64 = FREE + 8 * PAGE;

/// A page of a file, which other Guests could have as well: keys in it lead to them.
const KEYS: u64 = FREE + 9 * PAGE;
/// Calls with such a key.
const SHARED_CALLS: [Call; 2] = [
    (12, "BIND_DMA", [KEYS, RECORDS, 2, 5]),
    (13, "SEND_DMA", [KEYS + 1, RECORDS, 0, 0]),
];

/// Every hypercall there is. A test compares this list with the agreement.
pub(super) const CALLS: [Call; 19] = [
    (0, "FLUSH_ASYNC", [0; 4]),
    (1, "INIT", [1, 0, 0, 0]),
    (2, "SHUTDOWN", [0, 3, 16, 0]),
    (3, "LOAD_GDT", [SEGMENTS, 16, 0, 0]),
    (4, "NEW_PGTABLE", [OTHER_ROOT, 0, 0, 0]),
    (5, "FLUSH_TLB", [1, 0, 0, 0]),
    (6, "LOAD_IDT_ENTRY", [50, LINEAR + 8 * PAGE, 0x201, 0]),
    (7, "SET_STACK", [LINEAR + TRAP_STACK, 2, 0, 0]),
    (8, "TS", [1, 0, 0, 0]),
    (9, "SET_CLOCKEVENT", [100_000, 0, 0, 0]),
    (10, "HALT", [0; 4]),
    (12, "BIND_DMA", [7, RECORDS, 2, 5]),
    (13, "SEND_DMA", [3, RECORDS, 0, 0]),
    (14, "SET_PTE", [LOWER[2], USER_DATA, 0, 0]),
    (15, "SET_PMD", [LOWER[1] + 16, USER_DATA, 0, 0]),
    (16, "LOAD_TLS", [SEGMENTS, 0, 0, 0]),
    (18, "LOAD_GDT_ENTRY", [13, 0x00cf_f300_0000_ffff, 0, 0]),
    (32, "NEXT_IRQ", [0; 4]),
    (33, "FLUSH_ADDRESS", [USER_DATA, 0, 0, 0]),
];

/// Numbers that mean nothing.
pub(super) const UNKNOWN: [u64; 9] = [11, 17, 19, 20, 31, 34, 255, 1 << 32, u64::MAX];

/// Whether bits 63 to `highest` are all alike.
fn alike(address: u64, highest: u32) -> bool {
    let top = address.cast_signed() >> highest;
    top == 0 || top == -1
}

/// What the Guest's tables allow ring 1 to write.
fn writable(address: u64) -> bool {
    let within = |start: u64, bytes: u64| (start..start + bytes).contains(&address);
    within(LINEAR, END) || within(USER_DATA, 2 * PAGE) || within(0x60_0000, END - 128 * PAGE)
}

/// Whether so many records may lie there.
fn records_fit(at: u64, count: u64) -> bool {
    let Some(bytes) = count.checked_mul(168) else {
        return false;
    };
    at.is_multiple_of(8)
        && at % PAGE + bytes.min(2 * PAGE) <= PAGE
        && bytes <= PAGE
        && fits(at, bytes)
}

/// Whether so many bytes are memory.
fn fits(at: u64, bytes: u64) -> bool {
    at.checked_add(bytes).is_some_and(|end| end <= END)
}

/// Whether a descriptor is one that a Guest may have: none, or 32-bit data of ring 0 (which becomes
/// ring 1), 1 or 3.
fn segment(word: u64) -> bool {
    let bits = |low: u32, count: u32| word >> low & ((1 << count) - 1);
    word == 0 || bits(43, 2) == 2 && bits(53, 2) == 2 && bits(45, 2) != 2
}

/// What must become of a call that reads so many descriptors, of which these last count.
fn segments(at: u64, count: u64, last: u64, names: &'static [&'static str]) -> Fate {
    let bytes = count * 8;
    if count > 16 || !fits(at, bytes) {
        Dies(names)
    } else if count <= last || SEGMENTS <= at && at + bytes <= SEGMENTS_END {
        Lives(Some(0))
    } else {
        Either(names)
    }
}

/// Whether a hint is one: of an entry in memory, and a page or none.
fn hint(entry: u64, page: u64) -> bool {
    let page = page == u64::MAX || page.is_multiple_of(PAGE) && alike(page, 47);
    entry.is_multiple_of(8) && fits(entry, 8) && page
}

/// What must become of a Guest that makes this call. Fewer than 32 arrays
/// are bound.
pub(super) fn fate(number: u64, args: [u64; 4], five: bool) -> Fate {
    let [a, b, c, d] = args;
    let lives_if = |good: bool, names: &'static [&'static str], answer| {
        if good { Lives(answer) } else { Dies(names) }
    };
    match number {
        0 | 10 => Lives(Some(0)),
        1 => Dies(&["INIT (1)"]),
        2 => match b {
            1 => Ends(End::Off),
            2 => Ends(End::Restart),
            3 if fits(a, c.min(256)) => Dies(&["CRASH: "]),
            _ => Dies(&["SHUTDOWN (2)"]),
        },
        3 => segments(a, b.min(17), 12, &["LOAD_GDT (3)"]),
        14 => lives_if(hint(a, b), &["SET_PTE (14)"], Some(0)),
        15 => lives_if(hint(a, b), &["SET_PMD (15)"], Some(0)),
        16 => segments(a, 3, 0, &["LOAD_TLS (16)"]),
        18 => {
            let good = (12..16).contains(&a) && segment(b);
            lives_if(good, &["LOAD_GDT_ENTRY (18)"], Some(0))
        }
        4 => match a & 0x000f_ffff_ffff_f000 {
            ROOT | OTHER_ROOT => Lives(Some(0)),
            // What is in the shadow of the kernel's half is still there.
            root if fits(root, PAGE) => Doubtful,
            _ => Dies(&["NEW_PGTABLE (4)"]),
        },
        5 => lives_if(a <= 1, &["FLUSH_TLB (5)"], Some(0)),
        6 => {
            let direct = matches!(a, 0 | 3..=6 | 16 | 17 | 19 | 0x80);
            let flags = matches!(c & 3, 1 | 3) && c & !0x303 == 0 && (c & 0x100 == 0 || direct);
            let theirs = a < 256 && !matches!(a, 2 | 8 | 18 | 31);
            let good = theirs && (b == 0 || alike(b, 47) && flags);
            lives_if(good, &["LOAD_IDT_ENTRY (6)"], Some(0))
        }
        7 => {
            let form = alike(a, 47) && a.is_multiple_of(16) && matches!(b, 1 | 2);
            let pages =
                (0..if form { b } else { 0 }).all(|page| writable(a.wrapping_sub(PAGE * page + 1)));
            lives_if(form && pages, &["SET_STACK (7)"], Some(0))
        }
        8 => lives_if(a <= 1, &["TS (8)"], Some(0)),
        9 => lives_if(a >> 63 == 0, &["SET_CLOCKEVENT (9)"], Some(0)),
        12 => {
            let good = d < 64 && records_fit(b, c);
            lives_if(good, &["BIND_DMA (12)"], Some(1))
        }
        // The Host reads a record for another Guest and writes to it: an empty one does no harm.
        13 if records_fit(b, 1) && (KEYS..KEYS + PAGE).contains(&a) => match b & !(PAGE - 1) {
            RECORDS | SEGMENTS..KEYS => Lives(Some(0)),
            _ => Doubtful,
        },
        13 => lives_if(records_fit(b, 1), &["SEND_DMA (13)"], Some(0)),
        32 => Lives(None),
        33 => lives_if(
            alike(a, if five { 56 } else { 47 }),
            &["FLUSH_ADDRESS (33)"],
            Some(0),
        ),
        _ => Dies(&["unknown hypercall"]),
    }
}

/// Values at borders: of small numbers, of memory, of words, of the halves of the address space.
fn interesting(reserved: &[u64]) -> Vec<u64> {
    let mut values = vec![
        0, 1, 2, 3, 4, 6, 13, 14, 16, 17, 18, 23, 24, 25, 31, 32, 50, 128,
    ];
    values.extend([
        0x101, 0x103, 0x201, 0x202, 0x300, 0x303, 0x400, 168, 336, 4032,
    ]);
    // Around every power of two.
    for bit in [
        6, 7, 8, 12, 16, 20, 21, 31, 32, 40, 46, 47, 48, 51, 52, 55, 56, 57, 62, 63,
    ] {
        values.extend([(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1, 1 << bit | 8]);
        values.extend([!0 << bit, (!0_u64 << bit) - 1, (!0_u64 << bit) - 16]);
    }
    // Around the end of memory, the end of everything, and places in memory.
    for place in [
        END,
        0,
        ROOT,
        RECORDS,
        RECORDS + PAGE,
        KEYS,
        LINEAR,
        LINEAR + END,
        LINEAR + TRAP_STACK,
    ] {
        for off in [
            1, 4, 8, 16, 24, 160, 168, 176, 256, 257, 336, 4032, 4096, 4097, 8192,
        ] {
            values.extend([place.wrapping_sub(off), place, place.wrapping_add(off)]);
        }
    }
    // Descriptors: nearly all data of ring 3, code, systems, other rings, and the one after.
    for high in [
        0x00cf_f300_u64,
        0x0040_7200,
        0x00cf_9200,
        0x00cf_b600,
        0x00cf_d300,
        0x00cf_fb00,
        0x00af_9b00,
        0x00ef_f300,
        0x008f_f300,
        0x00cf_e300,
        0x0000_8900,
        0x0000_ec00,
    ] {
        values.push(high << 32 | 0xffff);
    }
    // With something in the upper half of the word.
    values.extend([
        1 << 32 | RECORDS,
        1 << 32 | 1,
        1 << 52 | RECORDS,
        1 << 63 | RECORDS,
    ]);
    values.extend([
        USER_DATA,
        USER_DATA + 16,
        USER_DATA + PAGE,
        USER_DATA + 2 * PAGE,
    ]);
    values.extend(reserved);
    values.extend(reserved.iter().map(|address| address + PAGE));
    values.sort_unstable();
    values.dedup();
    values
}

/// A Guest in which the calls of the list are in order.
fn prepared() -> Result<Bare> {
    let mut guest = Bare::new()?;
    let file = memfd_create("keys", MFdFlags::empty())?;
    nix::unistd::ftruncate(&file, PAGE.cast_signed())?;
    guest.share_page(KEYS, &file, 0)?;
    for slot in 0..512 {
        let entry = guest.read(ROOT + 8 * slot);
        guest.write(OTHER_ROOT + 8 * slot, entry);
    }
    Ok(guest)
}

/// The ranges that the Host keeps for itself: start and end, in turn.
pub(super) fn reserved() -> Result<[u64; 4]> {
    let mut guest = Bare::new()?;
    let count = guest.peek_shared(0xb8);
    let words = [0xc0, 0xc8, 0xd0, 0xd8].map(|offset| guest.peek_shared(offset));
    guest.survive()?;
    let get = |step| match guest.outcome(step) {
        crate::bare::Outcome::Done(value) => Ok(value),
        other => bail!("the shared page: {other:?}"),
    };
    ensure!(get(count)? == 2, "{} reserved ranges", get(count)?);
    let [a, b, c, d] = words;
    Ok([get(a)?, get(b)?, get(c)?, get(d)?])
}

/// Checks how a Guest ended that was to make these calls, each directly or through the ring.
fn check(guest: &Bare, end: &End, fates: &[(usize, Fate)]) -> Result<()> {
    use crate::bare::Outcome;
    for (step, fate) in fates {
        match fate {
            Lives(answer) => match guest.outcome(*step) {
                Outcome::Done(got) if answer.is_none_or(|answer| answer == got) => {}
                other => bail!("step {step}: {other:?}, not {fate:?}; the end: {end:?}"),
            },
            Doubtful => return Ok(()),
            Either(texts) => {
                if guest.outcome(*step) == Outcome::Done(0) {
                    continue;
                }
                let End::Dead(reason) = end else {
                    bail!("step {step}: {end:?}, not {fate:?}");
                };
                ensure!(
                    texts.iter().any(|text| reason.contains(text)),
                    "step {step}: died of {reason:?}, not of {texts:?}"
                );
                return Ok(());
            }
            Ends(wanted) => {
                ensure!(end == wanted, "step {step}: {end:?}, not {wanted:?}");
                return Ok(());
            }
            Dies(texts) => {
                let End::Dead(reason) = end else {
                    bail!("step {step}: {end:?}, not {fate:?}");
                };
                ensure!(
                    texts.iter().any(|text| reason.contains(text)),
                    "step {step}: died of {reason:?}, not of {texts:?}"
                );
                return Ok(());
            }
        }
    }
    ensure!(*end == End::Off, "{end:?} after everything was done");
    Ok(())
}

/// One call as a step; through the ring it is a FLUSH_ASYNC with the call in a slot before.
fn make(guest: &mut Bare, number: u64, args: [u64; 4], slot: Option<u64>) -> usize {
    // Line 5 is pending, so that HALT comes back.
    if number == 10 {
        guest.poke_shared(0x40, 1 << 5);
    }
    match slot {
        Some(slot) => {
            guest.queue(slot, number, args);
            guest.call(0, [0; 4])
        }
        None => guest.call(number, args),
    }
}

/// Through the ring nobody hears an answer.
fn fate_here(fate: Fate, slot: Option<u64>) -> Fate {
    match (fate, slot) {
        (Lives(_), Some(_)) => Lives(Some(0)),
        (fate, _) => fate,
    }
}

pub fn sweep(bench: &mut Bench) -> Result<()> {
    let long = bench.long();
    with_module(|| {
        let five = host::five_levels();
        let values = interesting(&reserved()?);
        let (mut tried, mut guests) = (0, 0);
        let mut living: Vec<(u64, [u64; 4], bool)> = Vec::new();
        let all = CALLS
            .iter()
            .chain(&SHARED_CALLS)
            .flat_map(|(number, _, args)| (0..4).map(move |place| (*number, *args, place)));
        for (nth, (number, good, place)) in all.enumerate() {
            for (turn, value) in values.iter().enumerate() {
                let mut args = good;
                args[place] = *value;
                let fate = fate(number, args, five);
                for through_ring in [false, true] {
                    // Directly or through the ring; the long set does both at the borders.
                    let both = long && at_border(*value);
                    if !both && (turn % 2 == 0) == through_ring {
                        continue;
                    }
                    if matches!(fate, Lives(_)) {
                        tried += 1;
                        living.push((number, args, through_ring));
                        continue;
                    }
                    // Each of these takes a Guest. An ordinary run takes all values at the two
                    // borders that count, and one in twelve of the others; an argument that nobody
                    // looks at cannot change much.
                    let skipped = !long && !at_border(*value) && (turn + nth) % 12 != 0;
                    if skipped || unused(number, place) && turn > 3 {
                        continue;
                    }
                    (tried, guests) = (tried + 1, guests + 1);
                    run_all(&[(number, args, through_ring)], five)?;
                }
            }
        }
        for number in UNKNOWN {
            (tried, guests) = (tried + 1, guests + 1);
            run_all(&[(number, [0; 4], false)], five)?;
        }
        for calls in living.chunks(40) {
            guests += 1;
            run_all(calls, five)?;
        }
        let said = format!("{tried} calls in {guests} Guests");
        bench.control.say("note", &said)
    })
}

/// Whether a value is close to the end of memory, or to the end of the page of the records.
fn at_border(value: u64) -> bool {
    [END, RECORDS + PAGE]
        .iter()
        .any(|border| border.abs_diff(value) <= 176)
}

/// Whether a call does not look at this argument.
pub(super) fn unused(number: u64, place: usize) -> bool {
    let used = match number {
        1 | 4 | 5 | 8 | 9 | 16 | 33 => 1,
        3 | 7 | 14 | 15 | 18 => 2,
        // SEND_DMA's key may be anything.
        13 => 2,
        2 | 6 => 3,
        12 => 4,
        _ => 0,
    };
    place >= used
}

/// Runs one Guest that makes these calls one after another, until one of them ends it.
fn run_all(calls: &[(u64, [u64; 4], bool)], five: bool) -> Result<()> {
    let mut guest = prepared()?;
    let mut fates = Vec::new();
    let mut slot = 0;
    for (number, args, through_ring) in calls {
        let at = through_ring.then(|| {
            slot += 1;
            slot - 1
        });
        let mut fate = fate_here(fate(*number, *args, five), at);
        // Line 0 takes a binding back and answers 1 as well; nothing more is to be known here.
        if *number == 12 && at.is_none() && fate == Lives(Some(1)) {
            fate = Lives(None);
        }
        fates.push((make(&mut guest, *number, *args, at), fate));
        if *number == 4 {
            // Back to what the others rely on.
            guest.call(4, [ROOT, 0, 0, 0]);
        }
    }
    if fates.iter().any(|(_, fate)| *fate == Doubtful) {
        guest.limit = Duration::from_millis(500);
    }
    let end = guest.run()?;
    check(&guest, &end, &fates).with_context(|| format!("{calls:x?}"))
}

/// Numbers that look random and are the same for the same seed.
pub(super) struct Numbers(pub u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        // Marsaglia's xorshift with the multiplier of Vigna's xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 33) % limit as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// A call at random: mostly in order, with one or two arguments that may not be.
fn random_call(numbers: &mut Numbers, values: &[u64]) -> (u64, [u64; 4]) {
    let (mut number, _, mut args) = CALLS[numbers.below(CALLS.len())];
    if numbers.one_in(40) {
        number = UNKNOWN[numbers.below(UNKNOWN.len())];
    }
    // Most Guests are not to end at once.
    if number <= 2 && !numbers.one_in(6) {
        number = 0;
    }
    for _ in 0..numbers.below(3) {
        let value = values[numbers.below(values.len())];
        args[numbers.below(4)] = match numbers.below(4) {
            0 => numbers.next(),
            1 => value.wrapping_add(numbers.next() % 32).wrapping_sub(16),
            _ => value,
        };
    }
    (number, args)
}

pub fn fuzz(bench: &mut Bench) -> Result<()> {
    let seed = bench.seed();
    let rounds = bench.number("rounds");
    let rounds = rounds.unwrap_or(if bench.long() { 8_000 } else { 300 });
    bench
        .control
        .say("note", &format!("seed={seed} rounds={rounds}"))?;
    with_module(|| {
        let five = host::five_levels();
        let mut values = interesting(&reserved()?);
        // Borders are worth more than what is far from any.
        let borders: Vec<_> = values.iter().copied().filter(|v| at_border(*v)).collect();
        for _ in 0..8 {
            values.extend(&borders);
        }
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut calls = 0;
        for round in 0..rounds {
            let list: Vec<_> = (0..1 + numbers.below(24))
                .map(|_| {
                    let (number, args) = random_call(&mut numbers, &values);
                    (number, args, numbers.one_in(2))
                })
                .collect();
            calls += list.len();
            fuzz_one(&list, &mut numbers, five)
                .with_context(|| format!("seed={seed}, round {round}: {list:x?}"))?;
        }
        bench
            .control
            .say("note", &format!("{calls} calls in {rounds} Guests"))
    })
}

/// One Guest of the fuzz, with nonsense in the shared page between the calls.
fn fuzz_one(list: &[(u64, [u64; 4], bool)], numbers: &mut Numbers, five: bool) -> Result<()> {
    let mut guest = prepared()?;
    let mut fates = Vec::new();
    let mut slot = 0;
    for (number, args, through_ring) in list {
        // What the Host never believes: pending and blocked lines, ranges, times, the ranges it
        // has announced itself, and the bytes after the ring.
        let offset = [
            0x28, 0x60, 0x70, 0x78, 0x80, 0xb0, 0xb8, 0xc0, 0xd8, 0xb48, 0xff8,
        ];
        guest.poke_shared(offset[numbers.below(offset.len())], numbers.next());
        // A slot further on that says neither "ready" nor "free".
        guest.poke_shared_byte(0x100 + (slot + 5) % 64, 1 + numbers.below(254) as u8);
        // Handlers stay as they are, or the engine would not come back.
        let (number, mut args) = (*number, *args);
        if number == 6 && args[0] < 32 && args[1] != 0 {
            args[1] = handler(args[0] as u8);
        }
        let at = through_ring.then_some(slot % 64);
        slot += u64::from(*through_ring);
        let mut fate = fate_here(fate(number, args, five), at);
        if number == 12 && fate == Lives(Some(1)) {
            fate = Lives(None);
        }
        let dead = !matches!(fate, Lives(_));
        fates.push((make(&mut guest, number, args, at), fate));
        if number == 4 {
            guest.call(4, [ROOT, 0, 0, 0]);
        }
        if dead {
            break;
        }
    }
    if fates.iter().any(|(_, fate)| *fate == Doubtful) {
        guest.limit = Duration::from_millis(500);
    }
    let end = guest.run()?;
    check(&guest, &end, &fates)
}

pub fn ring_end(_: &mut Bench) -> Result<()> {
    with_module(|| {
        // After SHUTDOWN nothing is done any more: no BIND_DMA, no line on the console.
        for how in [1, 2, 3, 4] {
            let mut guest = prepared()?;
            guest.queue(0, 13, [0, RECORDS, 0, 0]);
            guest.queue(1, 2, [0, how, 16, 0]);
            guest.queue(2, 12, [9, RECORDS, 1, 5]);
            guest.queue(3, 13, [9, RECORDS, 0, 0]);
            let after = guest.call(0, [0; 4]);
            let device = guest.initialize()?;
            let end = guest.go_on(&device, |_, _, _| Ok(()))?;
            let fits = match (&end, how) {
                (End::Off, 1) | (End::Restart, 2) => true,
                (End::Dead(reason), 3) => reason.starts_with("CRASH: "),
                (End::Dead(reason), 4) => reason.contains("SHUTDOWN (2)"),
                _ => false,
            };
            ensure!(fits, "SHUTDOWN {how} in the ring: {end:?}");
            ensure!(
                guest.sent == [(0, RECORDS)],
                "sent around SHUTDOWN {how}: {:x?}",
                guest.sent
            );
            let bound = device.request(&[crate::device::GETDMA, 9]);
            ensure!(bound == Err(libc::ENOENT), "GETDMA after it: {bound:?}");
            ensure!(
                guest.outcome(after) == crate::bare::Outcome::Never,
                "the Guest ran on after SHUTDOWN {how}"
            );
        }
        // All 64 slots busy, from any slot on; and statuses that mean nothing stop it.
        for first in [0, 1, 31, 63] {
            let mut guest = prepared()?;
            for slot in 0..first {
                guest.queue(slot, 5, [1, 0, 0, 0]);
            }
            guest.call(0, [0; 4]);
            let full: Vec<u64> = (0..64).collect();
            for slot in &full {
                guest.queue(*slot, 13, [*slot, RECORDS, 0, 0]);
            }
            guest.call(0, [0; 4]);
            let statuses: Vec<_> = (0..8).map(|n| guest.peek_shared(0x100 + 8 * n)).collect();
            guest.survive()?;
            let keys: Vec<u64> = guest.sent.iter().map(|(key, _)| *key).collect();
            let wanted: Vec<u64> = (0..64).map(|n| (first + n) % 64).collect();
            ensure!(keys == wanted, "a full ring from {first}: {keys:?}");
            for step in statuses {
                let status = guest.outcome(step);
                let free = crate::bare::Outcome::Done(u64::MAX);
                ensure!(status == free, "after a full ring: {status:x?}");
            }
        }
        for status in [1, 2, 0x7f, 0x80, 0xfe] {
            let mut guest = prepared()?;
            guest.queue(0, 13, [1, RECORDS, 0, 0]);
            guest.queue(1, 13, [2, RECORDS, 0, 0]);
            guest.poke_shared_byte(0x101, status);
            guest.queue(2, 13, [3, RECORDS, 0, 0]);
            guest.call(0, [0; 4]);
            guest.survive()?;
            ensure!(
                guest.sent == [(1, RECORDS)],
                "status {status}: {:x?}",
                guest.sent
            );
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agreement's chapter, where the numbers come from.
    const AGREEMENT: &str = include_str!("../../../../book/preparation/the-agreement.md");

    #[test]
    fn every_hypercall_is_swept() {
        let parts = AGREEMENT.split("chunk:hypercall-numbers\n").skip(1);
        let mut there: Vec<(u64, &str)> = parts
            .map(|part| part.split_once("\n```").expect("it ends").0)
            .flat_map(str::lines)
            .filter_map(|line| line.strip_prefix("pub const "))
            .map(|line| {
                let (name, value) = line.split_once(": u64 = ").expect("a number");
                let value = value.trim_end_matches(';').parse().expect("decimal");
                (value, name)
            })
            .collect();
        let mut swept: Vec<_> = CALLS.iter().map(|(n, name, _)| (*n, *name)).collect();
        there.sort_unstable();
        swept.sort_unstable();
        assert_eq!(
            swept, there,
            "a hypercall without a sweep, or a sweep of none"
        );
    }

    #[test]
    fn calls_in_good_order_live() {
        for (number, name, args) in CALLS {
            let ends = matches!(name, "INIT" | "SHUTDOWN");
            let fate = fate(number, args, true);
            assert_eq!(matches!(fate, Lives(_)), !ends, "{name}: {fate:?}");
        }
    }
}
