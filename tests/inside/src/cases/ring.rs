// SPDX-License-Identifier: GPL-2.0-only

//! The ring: order, borders, and somebody who writes where the Host reads.
//!
//! Nobody but the Guest can write into the shared page, and the Guest stands still while the Host
//! reads there. What it copies into the page can be written by another thread at any time, though,
//! and so can what a call points to.

use std::arch::global_asm;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::guests::{OFF, run};
use super::sweep::{CALLS, OTHER_ROOT, RECORDS, SEGMENTS};
use super::{Bench, matches};
use crate::bare::{Bare, END, End, FREE, LINEAR, Outcome, PAGE, ROOT, Ring, STATE, with_module};
use crate::random::Random;
use crate::{code, host};

/// Slots of the ring.
const SLOTS: u64 = 64;
/// The page of the programs below, behind what the calls of the sweep use.
const PROGRAM: u64 = FREE + 16 * PAGE;
/// Three words: how many turns were made, whether to end, and what was found.
const WORDS: u64 = FREE + 17 * PAGE;
/// What is copied over the ring: its statuses and calls.
const SOURCE: u64 = FREE + 18 * PAGE;
/// A segment as a Guest may have it, and one that it may not.
const GOOD: u64 = 0x00cf_f300_0000_ffff;
const CODE_SEGMENT: u64 = 0x00cf_fb00_0000_ffff;

// R14 is the shared page, R13 the three words, R15 the source, R12 the descriptors.
global_asm!(
    ".pushsection .rodata.ring, \"a\"",
    ".globl ring_begin, ring_segments, ring_end",
    // Copies all of the ring from the source and has it done. A line is pending, so that a HALT
    // comes back.
    "ring_begin:",
    "mov r14, [rbx + 8]",
    "2: mov rsi, r15",
    "lea rdi, [r14 + 0x100]",
    "mov ecx, 328",
    "rep movsq",
    "mov qword ptr [r14 + 0x40], 32",
    "xor eax, eax",
    "int 0x1f",
    "inc qword ptr [r13]",
    "cmp qword ptr [r13 + 8], 0",
    "je 2b",
    "int3",
    // Loads its segments, and looks at what it has got: data segments of ring 3.
    "ring_segments:",
    "2: mov eax, 3",
    "mov rdi, r12",
    "mov esi, 16",
    "int 0x1f",
    "mov ecx, 0x63",
    "3: lar eax, ecx",
    "jnz 4f",
    "test eax, 0x800",
    "jnz 4f",
    "add ecx, 8",
    "cmp ecx, 0x83",
    "jb 3b",
    "inc qword ptr [r13]",
    "cmp qword ptr [r13 + 8], 0",
    "je 2b",
    "int3",
    "4: mov [r13 + 16], rcx",
    "int3",
    "ring_end:",
    ".popsection",
);

unsafe extern "C" {
    static ring_begin: u8;
    static ring_segments: u8;
    static ring_end: u8;
}

/// A Guest with a ring that begins at this slot.
fn begun_at(first: u64) -> Result<Bare> {
    let mut guest = Bare::new()?;
    for slot in 0..first {
        guest.queue(slot, 5, [1, 0, 0, 0]);
    }
    guest.call(0, [0; 4]);
    Ok(guest)
}

/// The keys that a Guest has sent.
fn keys(guest: &Bare) -> Vec<u64> {
    guest.sent.iter().map(|(key, _)| *key).collect()
}

pub fn order(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        for first in [0, 1, 40, 63] {
            // All of the ring, and the direct call behind it.
            let mut guest = begun_at(first)?;
            for n in 0..SLOTS {
                guest.queue((first + n) % SLOTS, 13, [n, RECORDS, 0, 0]);
            }
            guest.call(13, [SLOTS, RECORDS, 0, 0]);
            guest.survive()?;
            let wanted: Vec<u64> = (0..=SLOTS).collect();
            ensure!(keys(&guest) == wanted, "from {first}: {:?}", keys(&guest));
            // Without an exit in between: each takes back what the one before has done, so that
            // the last one counts.
            let mut guest = begun_at(first)?;
            for n in 0..SLOTS {
                let word = if n % 2 == 0 { GOOD } else { 0 };
                guest.queue((first + n) % SLOTS, 18, [13, word, 0, 0]);
            }
            guest.call(18, [13, GOOD, 0, 0]);
            guest.set_stack();
            let there = guest.go(Ring::Three, code!("mov eax, 0x6b", "mov es, eax"));
            guest.queue(first, 18, [13, GOOD, 0, 0]);
            guest.call(18, [13, 0, 0, 0]);
            let gone = guest.go(Ring::Three, code!("mov eax, 0x6b", "mov es, eax"));
            guest.survive()?;
            let vector = |step| match guest.outcome(step) {
                Outcome::Trapped(trap) => Ok(trap.vector),
                other => bail!("step {step}: {other:?}"),
            };
            ensure!(vector(there)? == 3, "the direct call was not the last");
            ensure!(vector(gone)? == 13, "the direct call was not the last");
            // A bad call is the last of all, wherever it is.
            for place in [0, 1, 31, 63] {
                let mut guest = begun_at(first)?;
                for n in 0..SLOTS {
                    let number = if n == place { 77 } else { 13 };
                    guest.queue((first + n) % SLOTS, number, [n, RECORDS, 0, 0]);
                }
                let direct = guest.call(13, [SLOTS, RECORDS, 0, 0]);
                let end = guest.run()?;
                let wanted = End::Dead("unknown hypercall 77".to_owned());
                ensure!(end == wanted, "a bad call at {place}: {end:?}");
                ensure!(guest.outcome(direct) == Outcome::Never, "it lived on");
                let wanted: Vec<u64> = (0..place).collect();
                ensure!(keys(&guest) == wanted, "{place}: {:?}", keys(&guest));
            }
        }
        statuses()?;
        let slowest = refilled()?;
        bench.control.say(
            "note",
            &format!("a ring filled again and again: a signal waited {slowest:?}"),
        )
    })
}

/// Whatever is neither "ready" nor "free" is not ready, until it is.
fn statuses() -> Result<()> {
    let all: Vec<u8> = (1..=254).collect();
    for some in all.chunks(30) {
        let mut guest = Bare::new()?;
        let mut slot = 0;
        for status in some {
            let next = [slot, (slot + 1) % SLOTS, (slot + 2) % SLOTS];
            slot = (slot + 3) % SLOTS;
            for (key, slot) in (0..).zip(next) {
                guest.queue(slot, 13, [key, RECORDS, 0, 0]);
            }
            guest.poke_shared_byte(0x100 + next[1], *status);
            guest.call(13, [9, RECORDS, 0, 0]);
            guest.poke_shared_byte(0x100 + next[1], 0);
            guest.call(0, [0; 4]);
        }
        guest.survive()?;
        for (sent, status) in keys(&guest).chunks(4).zip(some) {
            ensure!(sent == [0, 9, 1, 2], "status {status}: {sent:?}");
        }
        ensure!(keys(&guest).len() == 4 * some.len(), "{:?}", keys(&guest));
    }
    Ok(())
}

/// A Guest with one of the programs above.
fn programmed(entry: *const u8) -> Result<Bare> {
    let mut guest = Bare::new()?;
    for slot in 0..512 {
        let entry = guest.read(ROOT + 8 * slot);
        guest.write(OTHER_ROOT + 8 * slot, entry);
    }
    let begin = (&raw const ring_begin).addr();
    let length = (&raw const ring_end).addr() - begin;
    // SAFETY: The bytes between the two labels are constants of this program.
    let program = unsafe { std::slice::from_raw_parts(&raw const ring_begin, length) };
    guest.write_bytes(PROGRAM, program);
    let mut with = guest.registers(Ring::One);
    with.rip = LINEAR + PROGRAM + (entry.addr() - begin) as u64;
    with.general[1] = LINEAR + STATE;
    with.general[11] = SEGMENTS;
    with.general[12] = LINEAR + WORDS;
    with.general[14] = LINEAR + SOURCE;
    guest.go_with(code!("nop"), &with, 0);
    Ok(guest)
}

/// Words of a Guest's memory that several threads use.
fn words<const N: usize>(guest: &Bare, at: u64) -> &[AtomicU64; N] {
    assert!(at.is_multiple_of(8) && at + 8 * N as u64 <= END);
    let words = guest.address() + at as usize;
    // SAFETY: Aligned words inside of the Guest's memory, which lives as long as what is borrowed.
    // Whoever uses them while the Guest runs does so atomically.
    unsafe { &*(words as *const [AtomicU64; N]) }
}

/// Has the ring full of the longest calls at each exit, and sends a signal: how long that takes to
/// be heard.
fn refilled() -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for number in [3, 5, 4] {
        let mut guest = programmed(&raw const ring_begin)?;
        let args = if number == 3 {
            [SEGMENTS, 16]
        } else {
            [ROOT, 0]
        };
        let args = if number == 5 { [1, 0] } else { args };
        let source = words::<328>(&guest, SOURCE);
        for (n, word) in source.iter().enumerate().skip(8) {
            let value = [number, args[0], args[1], 0, 0][(n - 8) % 5];
            word.store(value, Ordering::Relaxed);
        }
        guest.limit = Duration::from_millis(500);
        let begun = Instant::now();
        let end = guest.run()?;
        let late = begun.elapsed().saturating_sub(guest.limit);
        slowest = slowest.max(late);
        ensure!(end == End::Running, "call {number}: {end:?}");
        let turns = guest.read(WORDS);
        ensure!(turns > 2, "call {number}: {turns} turns");
        ensure!(
            late < Duration::from_secs(2) * host::patience(),
            "call {number}: a signal was heard after {late:?}"
        );
    }
    Ok(slowest)
}

/// Makes calls at random over the source until it is told to stop; after a while it asks the Guest
/// to end. Each word is written by itself, so that the Guest copies halves of two calls as well.
fn scribble(address: usize, stop: &AtomicBool, random: &mut Random, mild: bool) {
    let place = |at: u64| address + at as usize;
    // SAFETY: As in `words`: the Guest's memory outlives this thread.
    let source = unsafe { &*(place(SOURCE) as *const [AtomicU64; 328]) };
    // SAFETY: The same.
    let words = unsafe { &*(place(WORDS) as *const [AtomicU64; 3]) };
    let begun = Instant::now();
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if turn % 256 == 0 && begun.elapsed() > Duration::from_millis(300) {
            words[1].store(1, Ordering::Relaxed);
        }
        let slot = random.below(SLOTS) as usize;
        let (mut number, _, mut args) = CALLS[random.below(CALLS.len() as u64) as usize];
        // A Guest that ends at once has not seen much.
        if mild && matches!(number, 1 | 2) {
            number = 0;
        }
        if random.below(if mild { 50_000 } else { 100 }) == 0 {
            args[random.below(4) as usize] = random.word();
        }
        if number == 4 && random.below(2) == 0 {
            args[0] = ROOT;
        }
        let call = [number, args[0], args[1], args[2], args[3]];
        // Arguments first, so that few calls get those of others.
        for (n, value) in call.iter().enumerate().rev() {
            source[8 + 5 * slot + n].store(*value, Ordering::Relaxed);
        }
        let statuses = match random.below(4) {
            0 => random.word(),
            1 => random.word() | random.word(),
            _ => 0,
        };
        source[random.below(8) as usize].store(statuses, Ordering::Relaxed);
    }
}

/// Reasons for which a Guest with a ring of halves of calls may die: those of its calls, and of
/// tables that are none.
fn allowed(reason: &str) -> bool {
    let named = CALLS.iter().any(|(number, name, _)| {
        let call = format!("{name} ({number})");
        reason.starts_with(&call)
    });
    let others = [
        "unknown hypercall *",
        "CRASH: *",
        "unhandled trap 14 at *",
        "page tables at *",
    ];
    named || others.iter().any(|pattern| matches(pattern, reason))
}

pub fn scribbled(bench: &mut Bench) -> Result<()> {
    let seed = bench.number("seed").unwrap_or(20_261_123);
    let long = bench.long();
    let seconds = bench.number("seconds").unwrap_or(if long { 60 } else { 4 });
    with_module(|| {
        let mut random = Random::new(seed);
        let (mut dead, mut turns, mut sent) = (0_u64, 0, 0);
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < Duration::from_secs(seconds) {
            round += 1;
            let mut guest = programmed(&raw const ring_begin)?;
            guest.limit = Duration::from_millis(300) * host::patience();
            let mut other = random.clone();
            random.word();
            let stop = AtomicBool::new(false);
            let device = guest.initialize()?;
            let address = guest.address();
            let end = thread::scope(|scope| {
                let stop = &stop;
                scope.spawn(move || scribble(address, stop, &mut other, round % 3 != 0));
                let end = guest.go_on(&device, |_, _, _| Ok(()));
                stop.store(true, Ordering::Relaxed);
                end
            })?;
            match &end {
                End::Dead(reason) => {
                    dead += 1;
                    ensure!(allowed(reason), "seed {seed}: it died of {reason:?}");
                }
                End::Off | End::Restart | End::Running => {}
            }
            turns += guest.read(WORDS);
            sent += guest.sent.len();
        }
        let note =
            format!("seed {seed}: {round} Guests, {dead} dead, {turns} rings, {sent} records sent");
        bench.control.say("note", &note)?;
        ensure!(dead > 0 && turns > round, "{note}: too little was tried");
        let note = fetched_once(Duration::from_secs(seconds))?;
        bench.control.say("note", &note)
    })?;
    // The Host is none the worse.
    let ended = run(&["case=hypercalls", "rounds=100"])?;
    ended.expect_code(OFF)?;
    host::wait_until_free()
}

/// Descriptors that change from good to bad and back while the Host reads them: the Guest dies of
/// what was read, or has what was checked.
fn fetched_once(time: Duration) -> Result<String> {
    let begun = Instant::now();
    let (mut guests, mut loads) = (0_u64, 0);
    while begun.elapsed() < time {
        let mut guest = programmed(&raw const ring_segments)?;
        guest.limit = Duration::from_millis(300) * host::patience();
        for slot in 12..16 {
            guest.write(SEGMENTS + 8 * slot, GOOD);
        }
        let stop = AtomicBool::new(false);
        let device = guest.initialize()?;
        let address = guest.address();
        let end = thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                let table = address + SEGMENTS as usize + 8 * 12;
                // SAFETY: As in `words`: the Guest's memory outlives this thread.
                let table = unsafe { &*(table as *const [AtomicU64; 4]) };
                while !stop.load(Ordering::Relaxed) {
                    // As long as it takes to check a table or so; mostly the Host is to find it
                    // good.
                    (0..40).for_each(|_| table[3].store(CODE_SEGMENT, Ordering::Release));
                    (0..120).for_each(|_| table[3].store(GOOD, Ordering::Release));
                }
            });
            let end = guest.go_on(&device, |_, _, _| Ok(()));
            stop.store(true, Ordering::Relaxed);
            end
        })?;
        guests += 1;
        loads += guest.read(WORDS);
        let got = guest.read(WORDS + 16);
        ensure!(got == 0, "the Guest has a bad segment at selector {got:#x}");
        let wanted = format!("LOAD_GDT (3): slot 15 is a code segment ({CODE_SEGMENT:#x})");
        let fits = match &end {
            End::Dead(reason) => *reason == wanted,
            other => *other == End::Running,
        };
        ensure!(fits, "{end:?}");
    }
    ensure!(loads > 0, "no table was ever loaded");
    Ok(format!(
        "{loads} tables loaded by {guests} Guests while they changed"
    ))
}
