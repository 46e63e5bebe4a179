// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts raised by another thread while the Guest runs: none is lost, none is taken twice, and
//! none waits for the Host's clock.
//!
//! The Guest turns its interrupts off and on, computes and halts at random. The other thread raises
//! one of two lines, or both, numbers the interrupts of each line by themselves, and raises the next
//! when the Guest's handlers have shown the numbers of the last. So a line that is found raised once
//! more is noticed while only the other should be. The handlers return through the restartable
//! window of the agreement.

use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nix::unistd::Pid;

use super::Bench;
use super::guests::{pin, unpin};
use crate::bare::{Bare, End, FREE, LINEAR, Outcome, PAGE, Ring, STATE, with_module};
use crate::device::{Device, IRQ};
use crate::{code, host};

/// The lines that are raised.
const LINES: [u64; 2] = [5, 9];

/// Eight words: for each line how many were taken, the number sent, and the number seen; after those
/// of the first line, whether to end.
const WORDS: u64 = FREE + PAGE;
/// The first line's words, and the second's.
const OF_LINE: [usize; 2] = [0, 4];
const END: usize = 3;

// R12 and R13 make random numbers, R14 is the shared page, R15 the eight words.
global_asm!(
    ".pushsection .rodata.irqs, \"a\"",
    ".globl irqs_begin, irqs_first, irqs_second, irqs_window, irqs_window_end, irqs_end",
    "irqs_begin:",
    "mov r14, [rbx + 8]",
    "2: imul r12, r13",
    "inc r12",
    "mov rax, r12",
    "shr rax, 60",
    "cmp eax, 4",
    "jb 5f",
    "cmp eax, 8",
    "jb 3f",
    // Computes, with interrupts on.
    "mov dword ptr [r14], 0x200",
    "cmp dword ptr [r14 + 4], 0",
    "jne 6f",
    "mov ecx, 200",
    "9: loop 9b",
    "jmp 7f",
    // Computes, with interrupts off.
    "3: mov dword ptr [r14], 0",
    "mov ecx, 50",
    "4: loop 4b",
    "jmp 6f",
    // Halts, with interrupts off: one that waits ends it.
    "5: mov dword ptr [r14], 0",
    "mov eax, 10",
    "int 0x1f",
    // Turns them on, as the agreement says.
    "6: mov dword ptr [r14], 0x200",
    "cmp dword ptr [r14 + 4], 0",
    "je 7f",
    "xor eax, eax",
    "int 0x1f",
    "7: cmp qword ptr [r15 + 24], 0",
    "je 2b",
    "mov dword ptr [r14], 0",
    "int3",
    "irqs_second:",
    "push rax",
    "inc qword ptr [r15 + 32]",
    "mov rax, [r15 + 40]",
    "mov [r15 + 48], rax",
    "pop rax",
    "jmp irqs_window",
    "irqs_first:",
    "push rax",
    "inc qword ptr [r15]",
    "mov rax, [r15 + 8]",
    "mov [r15 + 16], rax",
    "pop rax",
    "irqs_window:",
    "mov dword ptr [r14], 0x200",
    "cmp dword ptr [r14 + 4], 0",
    "je irqs_window_end",
    "mov dword ptr [r14], 0",
    "jmp 8f",
    "irqs_window_end:",
    "iretq",
    "8: push rax",
    "push rax",
    "mov eax, 32",
    "int 0x1f",
    "test rax, rax",
    "jz 9f",
    "mov [rsp + 8], rax",
    "pop rax",
    "ret",
    "9: pop rax",
    "lea rsp, [rsp + 8]",
    "jmp irqs_window",
    "irqs_end:",
    ".popsection",
);

unsafe extern "C" {
    static irqs_begin: u8;
    static irqs_first: u8;
    static irqs_second: u8;
    static irqs_window: u8;
    static irqs_window_end: u8;
    static irqs_end: u8;
}

/// What came of a run: how long each interrupt took.
type Times = Vec<Duration>;

/// Raises at least so many interrupts, or as many as there is time for, in a Guest with these random
/// numbers. Gives how long each round of one or two took, and how many interrupts there were.
///
/// With `apart` the two sides keep to a processor each, if there are two.
fn race(most: u64, time: Duration, random: [u64; 2], apart: bool) -> Result<(Times, u64)> {
    let apart = apart && host::cpus() > 1;
    let here = Pid::from_raw(0);
    let begin = (&raw const irqs_begin).addr();
    let at = |label: *const u8| LINEAR + FREE + (label.addr() - begin) as u64;
    let length = (&raw const irqs_end).addr() - begin;
    // SAFETY: The bytes between the two labels are constants of this program.
    let program = unsafe { std::slice::from_raw_parts(&raw const irqs_begin, length) };
    let mut guest = Bare::new()?;
    guest.limit = Duration::from_secs(280) * host::patience();
    guest.write_bytes(FREE, program);
    guest.poke_shared(0x60, at(&raw const irqs_window));
    guest.poke_shared(0x68, at(&raw const irqs_window_end));
    for (line, handler) in LINES
        .iter()
        .zip([&raw const irqs_first, &raw const irqs_second])
    {
        guest.call(6, [32 + line, at(handler), 0x201, 0]);
    }
    let mut with = guest.registers(Ring::One);
    with.rip = LINEAR + FREE;
    with.general[1] = LINEAR + STATE;
    with.general[11..15].copy_from_slice(&[random[0], random[1], 0, LINEAR + WORDS]);
    let step = guest.go_with(code!("nop"), &with, 0);
    let words = guest.address() + WORDS as usize;
    // SAFETY: Eight aligned words of the Guest's memory, which outlives the threads below; whoever
    // uses them while the Guest runs does so atomically.
    let words = unsafe { &*(words as *const [AtomicU64; 8]) };
    let device = guest.initialize()?;
    let (end, times) = thread::scope(|scope| {
        let other = scope.spawn(|| {
            if apart {
                pin(here, 0)?;
            }
            let times = inject(&device, words, most, time);
            // Whatever came of it, the Guest is to end, and may have to be woken for that.
            words[END].store(1, Ordering::SeqCst);
            let _ = device.request(&[IRQ, LINES[0]]);
            times
        });
        let pinned = if apart { pin(here, 1) } else { Ok(()) };
        let end = pinned.and_then(|()| guest.go_on(&device, |_, _, _| Ok(())));
        let unpinned = unpin(here);
        let times = other
            .join()
            .map_err(|_| anyhow!("the other thread panicked"));
        (unpinned.and(end), times)
    });
    let (times, raised) = times??;
    let end = end?;
    ensure!(end == End::Off, "{end:?}");
    let trapped = matches!(guest.outcome(step), Outcome::Trapped(trap) if trap.vector == 3);
    ensure!(trapped, "{:?}", guest.outcome(step));
    // The last one, which ended it, may have come before the end or not.
    let taken = OF_LINE.map(|first| words[first].load(Ordering::SeqCst));
    let last = [raised[0] + 1, raised[1]];
    ensure!(
        taken == raised || taken == last,
        "{taken:?} interrupts were taken of {raised:?}"
    );
    Ok((times, raised.iter().sum()))
}

/// Raises them one after another, or both lines at once; gives how long each time took, and how
/// often each line was raised.
fn inject(
    device: &Device,
    words: &[AtomicU64; 8],
    most: u64,
    time: Duration,
) -> Result<(Times, [u64; 2])> {
    let end = Instant::now() + time;
    let patience = Duration::from_secs(10) * host::patience();
    let mut times = Times::new();
    let mut raised = [0; 2];
    let mut random = 1_u64;
    while raised.iter().sum::<u64>() < most {
        let begun = Instant::now();
        if begun > end {
            break;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let which: &[usize] = match random >> 61 {
            0 => &[0, 1],
            1 => &[1, 0],
            2..=4 => &[0],
            _ => &[1],
        };
        for line in which {
            raised[*line] += 1;
            words[OF_LINE[*line] + 1].store(raised[*line], Ordering::SeqCst);
            let answer = device.request(&[IRQ, LINES[*line]]);
            ensure!(answer == Ok(16), "IRQ of another thread: {answer:?}");
        }
        let mut looks = 0_u32;
        while OF_LINE.map(|first| words[first + 2].load(Ordering::SeqCst)) != raised {
            ensure!(begun.elapsed() < patience, "one of {raised:?} is lost");
            looks += 1;
            if looks.is_multiple_of(64) {
                thread::yield_now();
            }
        }
        let taken = OF_LINE.map(|first| words[first].load(Ordering::SeqCst));
        ensure!(
            taken == raised,
            "{taken:?} interrupts were taken, {raised:?} raised"
        );
        times.push(begun.elapsed());
    }
    Ok((times, raised))
}

pub fn race_of_threads(bench: &mut Bench) -> Result<()> {
    let (most, seconds) = match bench.long() {
        true => (2_000_000, 240),
        false => (20_000, 5),
    };
    with_module(|| {
        let time = Duration::from_secs(seconds);
        let (times, raised) = race(most, time, [1, 6_364_136_223_846_793_005], false)?;
        let all: Duration = times.iter().sum();
        ensure!(raised >= 50, "only {raised} interrupts in {seconds} s");
        bench.control.say(
            "note",
            &format!("{raised} interrupts, each taken once, in {all:.1?}"),
        )
    })
}

/// A Guest that only computes has no exits but those that others make.
pub fn kicked(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        // A busy machine makes some of them late, and for a while perhaps nearly all. Without the
        // kick nearly all are, each time.
        for attempt in 1..=5 {
            let (mut times, raised) = race(500, Duration::from_secs(60), [0xf << 60, 1], true)?;
            ensure!(raised >= 500, "only {raised} in a minute");
            times.sort_unstable();
            let rounds = times.len();
            let (tenth, median, most) = (times[rounds / 10], times[rounds / 2], times[rounds - 1]);
            let text = format!(
                "{raised} interrupts, a tenth of them within {tenth:.0?}, half within {median:.0?}, \
                 all within {most:.0?}"
            );
            bench.control.say("note", &text)?;
            // On one processor the other thread can run only when the Guest does not. And judged in
            // the long set only: in some boots all of them took a tick, and why is not known yet.
            let judged = bench.long() && host::cpus() > 1 && host::patience() == 1;
            if !judged || tenth < Duration::from_micros(500) {
                return Ok(());
            }
            ensure!(
                attempt < 5,
                "they wait for the Host's clock, which ticks every 4 ms"
            );
        }
        Ok(())
    })
}
