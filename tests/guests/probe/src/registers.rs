// SPDX-License-Identifier: GPL-2.0-only

//! Hypercalls, and what they leave in the registers.

use core::arch::{asm, global_asm};

use rt::{boot, hypercall, println};

/// RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15, the flags, and the base of FS.
const WATCHED: usize = 16;

global_asm!(
    // RDI: what to load. RSI: where to put what is there after the call. The answer goes to RAX
    // and out as the result.
    ".globl probe_call",
    "probe_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rsi",
    "mov rax, [rdi + 120]",
    "wrfsbase rax",
    "push qword ptr [rdi + 112]",
    "mov rbx, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rsi, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov r8, [rdi + 48]",
    "mov r9, [rdi + 56]",
    "mov r10, [rdi + 64]",
    "mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rdi, [rdi + 32]",
    // FLUSH_ASYNC, by a move that leaves the flags alone.
    "mov eax, 0",
    "popfq",
    "int 0x1f",
    "pushfq",
    // On the stack: the flags, then where to put it all.
    "push rdi",
    "mov rdi, [rsp + 16]",
    "mov [rdi], rbx",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rsi",
    "pop rbx",
    "mov [rdi + 32], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], r8",
    "mov [rdi + 56], r9",
    "mov [rdi + 64], r10",
    "mov [rdi + 72], r11",
    "mov [rdi + 80], r12",
    "mov [rdi + 88], r13",
    "mov [rdi + 96], r14",
    "mov [rdi + 104], r15",
    "pop rbx",
    "mov [rdi + 112], rbx",
    "rdfsbase rbx",
    "mov [rdi + 120], rbx",
    "cld",
    "pop rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn probe_call(before: *const u64, after: *mut u64) -> u64;
}

/// A stream of numbers that looks random and is the same for the same seed.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        // Marsaglia's xorshift with the multiplier of Vigna's xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Bit 1 of the flags is always on, and so is the real interrupt flag.
const FLAGS_ALWAYS: u64 = 0x202;
/// Carry, parity, adjust, zero, sign, direction, overflow and identification.
const FLAGS_FREE: u64 = 0x20_0cd5;

/// The selectors that nobody changes: CS, SS, DS, ES, FS and GS.
fn selectors() -> [u16; 6] {
    let (cs, ss, ds, es, fs, gs): (u16, u16, u16, u16, u16, u16);
    // SAFETY: Reading a selector touches no memory and is allowed in every ring.
    unsafe {
        asm!(
            "mov {0:x}, cs", "mov {1:x}, ss", "mov {2:x}, ds",
            "mov {3:x}, es", "mov {4:x}, fs", "mov {5:x}, gs",
            out(reg) cs, out(reg) ss, out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack),
        );
    }
    [cs, ss, ds, es, fs, gs]
}

/// The base of GS.
fn gs_base() -> u64 {
    let base;
    // SAFETY: The instruction is allowed in ring 1 and touches no memory.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}

/// One call with every register full of something; panics when one came back different.
pub fn checked_call(numbers: &mut Numbers, round: u64) {
    let mut before = [0; WATCHED];
    for value in &mut before {
        *value = numbers.next();
    }
    before[14] = (before[14] & FLAGS_FREE) | FLAGS_ALWAYS;
    // An address that the processor would translate, in the lower half.
    before[15] &= 0x7fff_ffff_f000;
    let mut after = [0; WATCHED];
    let selectors_before = selectors();
    // SAFETY: The function reads 16 words and writes 16 words, which both arrays have. FS is
    // nobody else's in this program.
    let answer = unsafe { probe_call(before.as_ptr(), after.as_mut_ptr()) };
    assert!(answer == 0, "round {round}: the answer is {answer:#x}");
    for (place, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(
            before == after,
            "round {round}, register {place}: {before:#x} became {after:#x}"
        );
    }
    assert!(
        selectors() == selectors_before,
        "round {round}: a selector changed"
    );
    let data = hypercall::data() as u64;
    assert!(
        gs_base() == data,
        "round {round}: the base of GS is {:#x}",
        gs_base()
    );
}

/// Many hypercalls, every register checked after each.
pub fn hypercalls() {
    let rounds = boot::number("rounds").unwrap_or(10_000);
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for round in 0..rounds {
        checked_call(&mut numbers, round);
    }
    println!("good: {rounds} hypercalls, every register as before");
}

/// Works and calls until something is typed, and checks that its own values are its own. `seed=`
/// makes one Guest differ from another.
pub fn work() {
    let seed = boot::number("seed").unwrap_or(1);
    rt::console::bind_input();
    hypercall::enable_interrupts();
    let page = rt::memory::linear::<u64>(rt::memory::page());
    let mut numbers = Numbers(seed | 1);
    println!("working with seed {seed}");
    let mut round = 0_u64;
    while rt::traps::irqs()[abi::dma::CONSOLE_IRQ as usize] == 0 {
        round += 1;
        checked_call(&mut numbers, round);
        // Values in registers and memory across a stretch in which interrupts and NMIs come.
        let mut sum = seed;
        for step in 0..2000_u64 {
            let place = (step % 512) as usize;
            // SAFETY: The page is this program's own and has 512 words.
            unsafe { page.add(place).write_volatile(seed ^ step) };
            // SAFETY: As above.
            sum = sum.wrapping_add(unsafe { page.add(place).read_volatile() } ^ seed);
        }
        let expected = seed + 1999 * 2000 / 2;
        assert!(
            sum == expected,
            "round {round}: the sum is {sum}, not {expected}"
        );
    }
    println!("good: seed {seed}, all values right in {round} rounds");
}

/// The time-stamp counter, on both sides of one hypercall that does nothing.
///
/// There is one copy of this, which a debugger looks for.
#[inline(never)]
pub fn one_trip() -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: As in `hypercall::call`; RDTSC changes RAX and RDX only.
    unsafe {
        asm!(
            "rdtsc",
            "mov esi, eax",
            "mov eax, 0",
            "int 0x1f",
            "rdtsc",
            out("rsi") before,
            out("rax") after,
            out("rdx") _,
            in("rdi") 0_u64,
            in("rcx") 0_u64,
        );
    }
    (after as u32).wrapping_sub(before as u32).into()
}

/// Measures the round trip of a hypercall: the fewest ticks seen in each of `rounds` times 1,000.
pub fn round_trip() {
    let rounds = boot::number("rounds").unwrap_or(5);
    let mut best = u64::MAX;
    for round in 0..rounds {
        let mut least = u64::MAX;
        let mut most = 0;
        for _ in 0..1000 {
            let ticks = one_trip();
            least = least.min(ticks);
            most = most.max(ticks);
        }
        println!("round {round}: {least} to {most}");
        best = best.min(least);
    }
    println!("good: round trip {best}");
}
