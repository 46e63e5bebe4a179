// SPDX-License-Identifier: GPL-2.0-only

//! A Guest that sends numbered packets to another, and checks those that it gets from there.
//!
//! Two of these stand-ins map the same file. Its first page is where their Guests meet. Each of the
//! next two has the words of one of them, which the case reads while they run.

use std::arch::global_asm;
use std::fs::OpenOptions;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::bare::{Bare, End, FREE, LINEAR, Outcome, PAGE, Ring, STATE};
use crate::code;
use crate::exchange::{BAD, PAGES, WORDS, Words};
use crate::host;

const WORDS_AT: u64 = FREE + PAGE;
const KEYS: u64 = FREE + 2 * PAGE;
/// The records that are bound, and what is in them.
const BOUND: u64 = FREE + 3 * PAGE;
const COUNT: u64 = 8;
const RECORD: u64 = 168;
const LINE: u64 = 5;
/// The record that is sent.
const SENT: u64 = FREE + 4 * PAGE;
/// What is sent: two pieces, of which the first is at the end of a page.
const FROM: u64 = FREE + 6 * PAGE - 29;
/// Where it goes: likewise, two pages for each record.
const TO: u64 = FREE + 8 * PAGE - 1003;

// A packet is a number, and words made from it; how many, its last byte says. R15 has the words of
// this Guest, R14 the shared page, R12 the number of the record that comes next, R13 whether there
// was nothing to do lately, R10 whether the records are bound. R8 and R9 make words.
global_asm!(
    ".pushsection .rodata.talk, \"a\"",
    ".globl talk_begin, talk_end",
    "talk_begin:",
    "mov r14, [rbx + 8]",
    "5: xor r12d, r12d",
    "mov eax, 12",
    "mov rdi, [r15 + 32]",
    "mov esi, {bound}",
    "mov edx, {count}",
    "mov ecx, {line}",
    "int 0x1f",
    "mov ebp, 1",
    "cmp rax, 1",
    "jne 99f",
    "mov r10d, 1",
    // What has come?
    "70: cmp qword ptr [r15 + 104], 0",
    "jne 90f",
    "imul rsi, r12, {record}",
    "add rsi, r11",
    "mov ecx, [rsi]",
    "test ecx, ecx",
    "jz 30f",
    // Its number follows the last one's. After a death on the other side it may be the first again;
    // and who is new here may come in the middle.
    "mov rdi, r12",
    "shl rdi, 13",
    "add rdi, [r15 + 40]",
    "mov rax, [r15 + 152]",
    "inc rax",
    "mov rdx, [rdi]",
    "mov ebp, 2",
    "cmp rdx, rax",
    "je 12f",
    "cmp qword ptr [r15 + 64], 0",
    "je 99f",
    "cmp rax, 1",
    "je 71f",
    "cmp rdx, 1",
    "jne 99f",
    "71: inc qword ptr [r15 + 56]",
    "12: mov [r15 + 152], rdx",
    "mov rbx, rdx",
    "movzx eax, dl",
    "add eax, 4",
    "lea r13d, [rax * 8]",
    "mov ebp, 3",
    "cmp r13d, ecx",
    "jne 99f",
    "mov ebp, 4",
    "13: mov rdx, [rdi]",
    "cmp rdx, rbx",
    "jne 99f",
    "mov qword ptr [rdi], 0",
    "imul rbx, r8",
    "add rbx, r9",
    "add rdi, 8",
    "dec eax",
    "jnz 13b",
    "mov rdi, r12",
    "shl rdi, 13",
    "add rdi, [r15 + 40]",
    "mov rcx, [r15 + 88]",
    "jrcxz 15f",
    "14: loop 14b",
    "15: mov dword ptr [rsi], 0",
    "inc r12d",
    "cmp r12d, {count}",
    "jb 16f",
    "xor r12d, r12d",
    "16: xor r13d, r13d",
    "inc qword ptr [r15 + 8]",
    // Now and then the records are taken back. From then on nobody fills one.
    "mov rcx, [r15 + 120]",
    "test rcx, rcx",
    "jz 70b",
    "mov rax, [r15 + 8]",
    "xor edx, edx",
    "div rcx",
    "test rdx, rdx",
    "jnz 70b",
    "xor r10d, r10d",
    "mov eax, 12",
    "mov rdi, [r15 + 32]",
    "mov esi, {bound}",
    "mov edx, {count}",
    "xor ecx, ecx",
    "int 0x1f",
    "jmp 70b",
    "30: test r10d, r10d",
    "jnz 40f",
    "mov ecx, 3000",
    "31: loop 31b",
    "mov ecx, {count}",
    "mov rdi, r11",
    "mov ebp, 5",
    "32: cmp dword ptr [rdi], 0",
    "jne 99f",
    "add rdi, {record}",
    "loop 32b",
    "inc qword ptr [r15 + 128]",
    "jmp 5b",
    // What is to go?
    "40: mov rax, [r15]",
    "cmp rax, [r15 + 24]",
    "jae 60f",
    "inc rax",
    "movzx edx, al",
    "add edx, 4",
    "cmp rax, [r15 + 96]",
    "je 42f",
    "mov [r15 + 96], rax",
    "mov rdi, [r15 + 48]",
    "mov ecx, edx",
    "41: mov [rdi], rax",
    "imul rax, r8",
    "add rax, r9",
    "add rdi, 8",
    "dec ecx",
    "jnz 41b",
    "42: shl edx, 3",
    "mov rsi, [r15 + 112]",
    "mov dword ptr [rsi], -1",
    "lea eax, [rdx - 29]",
    "mov [rsi + 138], ax",
    "mov ebx, edx",
    "mov eax, 13",
    "mov rdi, [r15 + 72]",
    "mov esi, {sent}",
    "xor edx, edx",
    "xor ecx, ecx",
    "int 0x1f",
    "mov rsi, [r15 + 112]",
    "mov ecx, [rsi]",
    "jrcxz 43f",
    "mov ebp, 6",
    "cmp ecx, ebx",
    "jne 99f",
    "inc qword ptr [r15]",
    "xor r13d, r13d",
    "jmp 70b",
    "43: inc qword ptr [r15 + 16]",
    "jmp 70b",
    // Nothing to send. Until all has come, it sleeps: after it has taken the line and looked again.
    "60: cmp [r15 + 8], rax",
    "jae 90f",
    "test r13d, r13d",
    "jnz 61f",
    "inc r13d",
    "mov eax, 32",
    "int 0x1f",
    "jmp 70b",
    "61: inc qword ptr [r15 + 80]",
    "mov eax, 10",
    "int 0x1f",
    "xor r13d, r13d",
    "jmp 70b",
    "90: xor ebp, ebp",
    "99: mov [r15 + 136], rbp",
    "mov [r15 + 144], rdx",
    "int3",
    "talk_end:",
    ".popsection",
    bound = const BOUND,
    count = const COUNT,
    record = const RECORD,
    line = const LINE,
    sent = const SENT,
);

unsafe extern "C" {
    static talk_begin: u8;
    static talk_end: u8;
}

/// A record, as the Guest has it before anything happens.
fn record(guest: &mut Bare, at: u64, pieces: [(u64, u16); 2]) {
    let mut bytes = [0; RECORD as usize];
    for (n, (addr, length)) in pieces.iter().enumerate() {
        bytes[8 + 8 * n..][..8].copy_from_slice(&addr.to_le_bytes());
        bytes[136 + 2 * n..][..2].copy_from_slice(&length.to_le_bytes());
    }
    guest.write_bytes(at, &bytes);
}

/// Words: the file, which of the two this is, how many packets to send and to get, whether either
/// may die, how slowly it works, and after how many packets it takes its records back (0: never).
pub fn talk(words: &[String]) -> Result<()> {
    let [path, numbers @ ..] = words else {
        bail!("which file?")
    };
    let numbers: Result<Vec<u64>, _> = numbers.iter().map(|word| word.parse()).collect();
    let [role, packets, mortal, slow, again] = numbers?[..] else {
        bail!("role, packets, mortal, slow, again?")
    };
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| path.clone())?;
    let mut guest = Bare::new()?;
    guest.limit = Duration::from_secs(600) * host::patience();
    ensure!(file.metadata()?.len() == PAGES * PAGE, "the file's length");
    guest.share_page(KEYS, &file, 0)?;
    guest.share_page(WORDS_AT, &file, 1 + role)?;
    let length = (&raw const talk_end).addr() - (&raw const talk_begin).addr();
    // SAFETY: The bytes between the two labels are constants of this program.
    let program = unsafe { std::slice::from_raw_parts(&raw const talk_begin, length) };
    guest.write_bytes(FREE, program);
    for n in 0..COUNT {
        let (to, next) = (TO + 2 * PAGE * n, TO + 2 * PAGE * n + 1003);
        record(&mut guest, BOUND + RECORD * n, [(to, 1003), (next, 1500)]);
    }
    record(&mut guest, SENT, [(FROM, 29), (FROM + 29, 1)]);
    for n in 0..WORDS {
        guest.write(WORDS_AT + 8 * n, 0);
    }
    let keys = [KEYS + 64 * role, KEYS + 64 * (1 - role)];
    let set = [
        (24, packets),
        (32, keys[0]),
        (40, LINEAR + TO),
        (48, LINEAR + FROM),
        (64, mortal),
        (72, keys[1]),
        (88, slow),
        (112, LINEAR + SENT),
        (120, again),
        (136, BAD),
    ];
    for (at, value) in set {
        guest.write(WORDS_AT + at, value);
    }
    // A line that nobody handles wakes nobody.
    let vector = 32 + LINE;
    guest.call(6, [vector, crate::bare::handler(3), 0x201, 0]);
    let mut with = guest.registers(Ring::One);
    with.rip = LINEAR + FREE;
    with.general[1] = LINEAR + STATE;
    with.general[7..15].copy_from_slice(&[
        6_364_136_223_846_793_005,
        1_442_695_040_888_963_407,
        0,
        LINEAR + BOUND,
        0,
        0,
        0,
        LINEAR + WORDS_AT,
    ]);
    let step = guest.go_with(code!("nop"), &with, 0);
    println!("talking");
    let end = guest.run()?;
    let words = Words::of(&file, role)?;
    ensure!(end == End::Off, "{end:?}, {words:?}");
    let trapped = matches!(guest.outcome(step), Outcome::Trapped(trap) if trap.vector == 3);
    ensure!(trapped, "{:?}, {words:?}", guest.outcome(step));
    ensure!(words.verdict == 0, "{words:?}");
    println!("{words:?}");
    Ok(())
}
