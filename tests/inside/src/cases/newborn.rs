// SPDX-License-Identifier: GPL-2.0-only

//! What a Guest finds at its first instruction: what the agreement says, and nothing of anybody's.
//!
//! A program stores every register that it can read, before it changes any, and then all of the
//! shared page. Before it another Guest has left marks in all of them, and its Launcher has the
//! FPU's registers full of random bits.

use std::arch::global_asm;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::fpu::{Machine, both_ways, initial};
use super::sweep::{Numbers, reserved};
use crate::bare::{Bare, DATA1, End, FREE, LINEAR, PAGE, Ring};
use crate::code;

/// What is stored, in this order; the others are the FPU's image and the shared page.
const NAMES: [&str; 25] = [
    "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15", "RFLAGS", "CS", "SS", "DS", "ES", "FS", "GS", "FS base", "GS base",
];
/// Where the agreement has other values than 0.
const NOT_ZERO: [(&str, u64); 3] = [("RFLAGS", 0x202), ("CS", 0x09), ("SS", 0x39)];
/// What is there before anything is stored; where the FPU's image comes there are zeros, since not
/// every emulator stores all of it.
const NOTHING: u64 = 0x5a5a_5a5a_5a5a_5a5a;

global_asm!(
    ".pushsection .rodata.newborn, \"a\"",
    ".balign 64",
    ".globl newborn_begin, newborn_words, newborn_image, newborn_page, newborn_end",
    "newborn_begin:",
    "mov [rip + newborn_words], rax",
    "mov [rip + newborn_words + 8], rbx",
    "mov [rip + newborn_words + 16], rcx",
    "mov [rip + newborn_words + 24], rdx",
    "mov [rip + newborn_words + 32], rsi",
    "mov [rip + newborn_words + 40], rdi",
    "mov [rip + newborn_words + 48], rbp",
    "mov [rip + newborn_words + 56], rsp",
    "mov [rip + newborn_words + 64], r8",
    "mov [rip + newborn_words + 72], r9",
    "mov [rip + newborn_words + 80], r10",
    "mov [rip + newborn_words + 88], r11",
    "mov [rip + newborn_words + 96], r12",
    "mov [rip + newborn_words + 104], r13",
    "mov [rip + newborn_words + 112], r14",
    "mov [rip + newborn_words + 120], r15",
    "fxsave64 [rip + newborn_image]",
    "lea rsp, [rip + newborn_stack]",
    "pushfq",
    "pop rax",
    "mov [rip + newborn_words + 128], rax",
    "mov eax, cs",
    "mov [rip + newborn_words + 136], rax",
    "mov eax, ss",
    "mov [rip + newborn_words + 144], rax",
    "mov eax, ds",
    "mov [rip + newborn_words + 152], rax",
    "mov eax, es",
    "mov [rip + newborn_words + 160], rax",
    "mov eax, fs",
    "mov [rip + newborn_words + 168], rax",
    "mov eax, gs",
    "mov [rip + newborn_words + 176], rax",
    "rdfsbase rax",
    "mov [rip + newborn_words + 184], rax",
    "rdgsbase rax",
    "mov [rip + newborn_words + 192], rax",
    "mov eax, 1",
    "mov edi, 1",
    "int 0x1f",
    "mov rsi, rax",
    "lea rdi, [rip + newborn_page]",
    "mov ecx, 512",
    "rep movsq",
    "mov eax, 2",
    "xor edi, edi",
    "mov esi, 1",
    "xor edx, edx",
    "int 0x1f",
    "ud2",
    ".balign 64",
    "newborn_words: .fill 64, 4, 0x5a5a5a5a",
    "newborn_image: .fill 128, 4, 0",
    ".fill 8, 8, 0",
    "newborn_stack:",
    "newborn_page: .fill 1024, 4, 0x5a5a5a5a",
    "newborn_end:",
    ".popsection",
);

unsafe extern "C" {
    static newborn_begin: u8;
    static newborn_words: u8;
    static newborn_image: u8;
    static newborn_page: u8;
    static newborn_end: u8;
}

/// A Guest that leaves marks wherever it can.
fn former(machine: &Machine, numbers: &mut Numbers) -> Result<()> {
    let mut guest = Bare::new()?;
    let pattern = machine.pattern(numbers);
    guest.write_bytes(DATA1, &pattern.0[..512]);
    guest.go(Ring::One, code!("fxrstor64 [rbx]"));
    guest.poke_shared(0x20, 0x1111_2222_3333_4444);
    guest.poke_shared(0xb40, 0x5555_6666_7777_8888);
    guest.poke_shared(0xff8, 0x5555_6666_7777_8888);
    let mut with = guest.registers(Ring::One);
    with.general = std::array::from_fn(|_| numbers.next());
    // The last thing it does; it never comes back.
    guest.go_with(
        code!(
            "mov eax, 0x2b",
            "mov ds, eax",
            "mov es, eax",
            "mov rax, 0x123456789000",
            "wrfsbase rax",
            "wrgsbase rax",
            "mov eax, 0x77777777",
            "int 0x1f"
        ),
        &with,
        0,
    );
    let end = guest.run()?;
    let wanted = End::Dead(format!("unknown hypercall {}", 0x7777_7777));
    ensure!(end == wanted, "the Guest before: {end:?}");
    Ok(())
}

pub fn newborn(bench: &mut Bench) -> Result<()> {
    let machine = Machine::new()?;
    both_ways(|_| {
        let mut numbers = Numbers(0xb0_2026);
        let ranges = reserved()?;
        for round in 0..5 {
            former(&machine, &mut numbers)?;
            let mut guest = Bare::new()?;
            let begin = (&raw const newborn_begin).addr();
            let length = (&raw const newborn_end).addr() - begin;
            // SAFETY: The bytes between the two labels are constants of this program.
            let program = unsafe { std::slice::from_raw_parts(&raw const newborn_begin, length) };
            guest.write_bytes(FREE, program);
            guest.start[2] = LINEAR + FREE;
            let place = |label: *const u8| FREE + (label.addr() - begin) as u64;
            let device = guest.initialize()?;
            machine.run_filled(&device, &mut numbers)?;
            let word = |label, n: u64| guest.read(place(label) + 8 * n);
            for (n, name) in (0..).zip(NAMES) {
                let wanted = NOT_ZERO.iter().find(|(other, _)| *other == name);
                let wanted = wanted.map_or(0, |(_, value)| *value);
                let found = word(&raw const newborn_words, n);
                ensure!(
                    found == wanted,
                    "round {round}: {name} is {found:#x}, not {wanted:#x}"
                );
            }
            for (n, wanted) in (0..).zip(initial()) {
                let mask = if n == 3 { 0xffff_ffff } else { !0 };
                let found = word(&raw const newborn_image, n) & mask;
                ensure!(
                    found == wanted,
                    "round {round}: word {n} of the FPU is {found:#x}"
                );
            }
            for n in 0..PAGE / 8 {
                let wanted = match 8 * n {
                    // The time, and how fast it goes: somebody else's test.
                    0x80..0xb8 => continue,
                    0xb8 => 2,
                    at @ 0xc0..0xe0 => ranges[(at as usize - 0xc0) / 8],
                    0x100..0x140 => u64::MAX,
                    _ => 0,
                };
                let found = word(&raw const newborn_page, n);
                ensure!(
                    found == wanted && found != NOTHING,
                    "round {round}: the shared page has {found:#x} at {:#x}",
                    8 * n
                );
            }
        }
        Ok(())
    })
    .context("a new Guest")?;
    let note = format!("{} registers, the FPU and the shared page", NAMES.len());
    bench.control.say("note", &note)
}
