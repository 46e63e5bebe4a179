// SPDX-License-Identifier: GPL-2.0-only

//! A Guest that calculates.

use core::arch::asm;

use rt::{boot, hypercall, println};

use crate::registers::{Numbers, one_trip};

/// What FXSAVE writes.
#[repr(C, align(16))]
struct Image([u64; 64]);

/// One round: everything loaded from an image, hypercalls and a stretch of work in between, and
/// everything stored into the other image.
fn round(from: &Image, to: &mut Image, calls: u64) {
    // SAFETY: Both images have 512 bytes and are aligned. Nothing else in this program uses the
    // FPU. FLUSH_ASYNC changes RAX only.
    unsafe {
        asm!(
            "fxrstor64 [{from}]",
            "2:",
            "mov eax, 0",
            "int 0x1f",
            "mov eax, 3000",
            "3: paddq xmm15, xmm14",
            "dec eax",
            "jnz 3b",
            "dec {calls}",
            "jnz 2b",
            "fxsave64 [{to}]",
            from = in(reg) from,
            to = in(reg) to,
            calls = inout(reg) calls => _,
            out("rax") _,
            in("rdi") 0_u64,
            in("rsi") 0_u64,
            in("rdx") 0_u64,
            in("rcx") 0_u64,
        );
    }
}

/// The place of an XMM register in an image, in words.
const fn xmm(n: usize) -> usize {
    20 + 2 * n
}

/// Calculates until something is typed, and checks that its own values are its own. `seed=` makes
/// one Guest differ from another.
pub fn work() {
    let seed = boot::number("seed").unwrap_or(1);
    rt::console::bind_input();
    hypercall::enable_interrupts();
    let mut numbers = Numbers(seed | 1);
    let mut to = Image([0; 64]);
    println!("calculating with seed {seed}");
    let mut rounds = 0_u64;
    while rt::traps::irqs()[abi::dma::CONSOLE_IRQ as usize] == 0 {
        rounds += 1;
        let mut from = Image([0; 64]);
        // Rounding of x87 and SSE, all x87 registers full, and random contents.
        let turn = numbers.next() & 3;
        from.0[0] = 0x037f | turn << 10 | 0xff << 32;
        from.0[3] = 0x1f80 | turn << 13;
        for st in 0..8 {
            from.0[4 + 2 * st] = numbers.next() | 1 << 63;
            from.0[5 + 2 * st] = numbers.next() & 0x7fff;
        }
        for word in &mut from.0[xmm(0)..xmm(16)] {
            *word = numbers.next();
        }
        let calls = 1 + numbers.next() % 40;
        round(&from, &mut to, calls);
        // What the additions come to.
        for half in 0..2 {
            let added = from.0[xmm(14) + half].wrapping_mul(3000 * calls);
            let sum = &mut from.0[xmm(15) + half];
            *sum = sum.wrapping_add(added);
        }
        let control = |image: &Image| (image.0[0] & 0xff_ffff_ffff, image.0[3] as u32);
        assert!(
            control(&from) == control(&to),
            "round {rounds}: control words {:x?} became {:x?}",
            control(&from),
            control(&to)
        );
        for (place, (from, to)) in from.0.iter().zip(&to.0).enumerate().take(xmm(16)).skip(4) {
            assert!(
                from == to,
                "round {rounds}, word {place}: {from:#x} became {to:#x}"
            );
        }
    }
    println!("good: seed {seed}, all values right in {rounds} rounds");
}

/// The time-stamp counter, on both sides of one instruction of the FPU.
fn one_use() -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: Nothing else in this program uses XMM0 meanwhile; RDTSC changes RAX and RDX only.
    unsafe {
        asm!(
            "rdtsc",
            "mov esi, eax",
            "movq xmm0, rax",
            "rdtsc",
            out("rsi") before,
            out("rax") after,
            out("rdx") _,
        );
    }
    (after as u32).wrapping_sub(before as u32).into()
}

/// Measures a trip without and with the FPU's registers, and a use that has to ask for them: the
/// fewest ticks seen in so many rounds.
pub fn trips() {
    const TS: u64 = 8;
    let rounds = boot::number("rounds").unwrap_or(5) * 100;
    let least = || (0..8).map(|_| one_trip()).min().unwrap_or(0);
    let mut best = [u64::MAX; 3];
    for _ in 0..rounds {
        // Whoever clears TS has the registers for the next sixteen trips.
        hypercall::call(TS, [0; 4]);
        let with = least();
        (0..16).for_each(|_| _ = one_trip());
        let now = [least(), with, one_use()];
        best.iter_mut()
            .zip(now)
            .for_each(|(best, now)| *best = now.min(*best));
    }
    let [without, with, trap] = best;
    println!("good: fpu without {without}");
    println!("good: fpu with {with}");
    println!("good: fpu trap {trap}");
}
