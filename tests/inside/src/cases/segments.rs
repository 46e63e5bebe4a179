// SPDX-License-Identifier: GPL-2.0-only

//! Selectors, far transfers, flags, and all 256 `int n`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::instructions::frame_is_right;
use super::{Bench, NotHere};
use crate::bare::reg::{R8, RAX, RBP, RBX, RCX, RDI, RDX};
use crate::bare::{
    Bare, DATA1, DATA3, DIRECT, FREE, LINEAR, Outcome, Ring, Trap, USER_DATA, USER_STACK, iretq,
    must_die, with_module,
};
use crate::code;

/// What a null selector in SS comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NullSs {
    /// General protection.
    Refused,
    /// It is loaded, and ring 1 stays ring 1.
    Loaded,
    /// It is loaded, and the processor takes the ring from it: ring 0.
    Ring0,
}

/// Loads a null selector into SS in ring 1 and tries `cli`, which only ring 0 may. Then back to
/// ring 1 by `iretq`, which restores the interrupt flag as well.
fn null_ss(selector: u64) -> Result<NullSs> {
    let mut guest = Bare::new()?;
    let mut with = guest.registers(Ring::One);
    with.general[RCX] = selector;
    let step = guest.go_with(
        code!(
            // The stack must be there: a page fault in ring 0 would find no stack of its own.
            "push rcx",
            "pop rcx",
            "mov ss, ecx",
            "cli",
            "mov rdx, rsp",
            "push 0x39",
            "push rdx",
            "push 0x202",
            "push 9",
            "lea rax, [rip + 4f]",
            "push rax",
            "iretq",
            "4: nop",
        ),
        &with,
        0,
    );
    guest.survive()?;
    let start = guest.code_at(Ring::One, step);
    match guest.outcome(step) {
        Outcome::Trapped(trap) if trap.vector == 3 => Ok(NullSs::Ring0),
        Outcome::Trapped(trap) if (trap.vector, trap.error, trap.rip) == (13, 0, start + 2) => {
            Ok(NullSs::Refused)
        }
        Outcome::Trapped(trap) if (trap.vector, trap.error, trap.rip) == (13, 0, start + 4) => {
            Ok(NullSs::Loaded)
        }
        other => bail!("SS from {selector}: {other:?}"),
    }
}

/// Whether this processor makes ring 0 of a null SS. The Host can do nothing about that: the
/// instruction does not trap.
fn ss_is_broken() -> Result<bool> {
    Ok(null_ss(1)? == NullSs::Ring0)
}

pub fn null_in_ss(_: &mut Bench) -> Result<()> {
    let mut came = Vec::new();
    with_module(|| {
        for selector in 0..4 {
            came.push(null_ss(selector)?);
        }
        Ok(())
    })?;
    if came.contains(&NullSs::Ring0) {
        return Err(NotHere(
            "this QEMU makes ring 0 of ring 1 at `mov ss, 1`: it takes the ring from the null \
             descriptor. A processor does not (Intel SDM volume 2, MOV)"
                .to_owned(),
        )
        .into());
    }
    let wanted = [
        NullSs::Refused,
        NullSs::Loaded,
        NullSs::Refused,
        NullSs::Refused,
    ];
    ensure!(came == wanted, "null selectors in SS: {came:?}");
    Ok(())
}

/// Whether a data segment register takes a selector in a ring, by the Guest's GDT: slots 1 (ring-1
/// code), 4 to 6 (ring 3's) and 7 (ring-1 data).
fn readable(selector: u64, ring: Ring) -> bool {
    let (slot, table, asks) = (selector >> 3, selector & 4, selector & 3);
    let inner = ring == Ring::One && asks <= 1 && matches!(slot, 1 | 7);
    table == 0 && (inner || matches!(slot, 4..=6))
}

/// Whether LAR, LSL, VERR (the same) or VERW say yes to a selector.
fn verified(instruction: usize, selector: u64, ring: Ring) -> bool {
    readable(selector, ring) && (instruction != 3 || matches!(selector >> 3, 5 | 7))
}

fn stack_segment(selector: u64, ring: Ring) -> bool {
    match ring {
        Ring::One => selector == 0x39 || selector == 1,
        _ => selector == 0x2b,
    }
}

pub fn selectors(bench: &mut Bench) -> Result<()> {
    let step = if bench.long() { 1 } else { 211 };
    with_module(|| {
        let broken = ss_is_broken()?;
        for ring in [Ring::One, Ring::Three] {
            asked(ring).with_context(|| format!("{ring:?}"))?;
            for register in 0..5 {
                // All selectors of both tables near the beginning, and then in steps.
                let first = if register == 0 && broken { 4 } else { 0 };
                loaded(ring, register, first..0x200, 1)?;
                loaded(ring, register, 0x200..0x1_0000, step)?;
                loaded(ring, register, 0xfff0..0x1_0000, 1)?;
            }
            transfers(ring).with_context(|| format!("{ring:?}"))?;
        }
        frames()
    })
}

/// LAR, LSL, VERR and VERW on all 65,536 selectors: a loop in the Guest that writes down those that
/// are good.
fn asked(ring: Ring) -> Result<()> {
    let loops: [&[u8]; 4] = [
        code!(
            "2: lar eax, ecx",
            "jnz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: inc ecx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        code!(
            "2: lsl eax, ecx",
            "jnz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: inc ecx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        code!(
            "2: verr cx",
            "jnz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: inc ecx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        code!(
            "2: verw cx",
            "jnz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: inc ecx",
            "cmp ecx, edx",
            "jb 2b"
        ),
    ];
    for (instruction, code) in loops.into_iter().enumerate() {
        let mut guest = Bare::new()?;
        guest.set_stack();
        let mut with = guest.registers(ring);
        with.general[RDX] = 0x1_0000;
        let step = guest.go_with(code, &with, 0);
        guest.survive()?;
        let good = list(&guest, ring, step)?;
        let wanted: Vec<u64> = (0..0x1_0000)
            .filter(|selector| verified(instruction, *selector, ring))
            .collect();
        ensure!(
            good == wanted,
            "instruction {instruction}: {good:x?}, not {wanted:x?}"
        );
    }
    Ok(())
}

/// The selectors that a loop has written down.
fn list(guest: &Bare, ring: Ring, step: usize) -> Result<Vec<u64>> {
    let (at, base) = match ring {
        Ring::One => (DATA1, LINEAR + DATA1),
        _ => (DATA3, USER_DATA),
    };
    match guest.outcome(step) {
        Outcome::Trapped(trap) if trap.vector == 3 => {}
        other => bail!("the loop ended with {other:?}"),
    }
    let bytes = guest.after(step).general[RDI] - base;
    Ok((0..bytes / 4)
        .map(|n| guest.read(at + n / 2 * 8) >> (32 * (n % 2)) & 0xffff_ffff)
        .collect())
}

/// Loads selectors into SS, DS, ES, FS or GS in a loop, with a handler for general protection that
/// goes on after the instruction.
fn loaded(ring: Ring, register: usize, range: std::ops::Range<u64>, step: u64) -> Result<()> {
    let code: &[u8] = match register {
        0 => code!(
            "2: mov eax, 1",
            "mov ss, ecx",
            "test eax, eax",
            "jz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: add ecx, ebx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        1 => code!(
            "2: mov eax, 1",
            "mov ds, ecx",
            "test eax, eax",
            "jz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: add ecx, ebx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        2 => code!(
            "2: mov eax, 1",
            "mov es, ecx",
            "test eax, eax",
            "jz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: add ecx, ebx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        3 => code!(
            "2: mov eax, 1",
            "mov fs, ecx",
            "test eax, eax",
            "jz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: add ecx, ebx",
            "cmp ecx, edx",
            "jb 2b"
        ),
        _ => code!(
            "2: mov eax, 1",
            "mov gs, ecx",
            "test eax, eax",
            "jz 3f",
            "mov [rdi], ecx",
            "add rdi, 4",
            "3: add ecx, ebx",
            "cmp ecx, edx",
            "jb 2b"
        ),
    };
    let mut guest = Bare::new()?;
    // The handler: RAX says that the load failed; the error code must be the selector.
    let stub = code!(
        "xor eax, eax",
        "sub r8, [rsp]",
        "mov eax, ecx",
        "and eax, -4",
        "add r8, rax",
        "xor eax, eax",
        "add qword ptr [rsp + 8], 2",
        "add rsp, 8",
        "iretq",
    );
    guest.write_bytes(FREE, stub);
    guest.set_stack();
    guest.call(6, [13, LINEAR + FREE, 0x201, 0]);
    let mut with = guest.registers(ring);
    with.general[RCX] = range.start;
    with.general[RBX] = step;
    with.general[RDX] = range.end;
    with.general[R8 + 1] = 0;
    with.general[R8] = 0;
    let number = guest.go_with(code, &with, 0);
    guest.survive()?;
    let good = list(&guest, ring, number)?;
    let wanted: Vec<u64> = range
        .step_by(step as usize)
        .filter(|selector| match register {
            0 => stack_segment(*selector, ring),
            _ => *selector < 4 || readable(*selector, ring),
        })
        .collect();
    ensure!(
        good == wanted,
        "{ring:?}, register {register}: loaded {good:x?}, not {wanted:x?}"
    );
    // Every fault had the selector, without its lowest bits, for an error code.
    let sum = guest.after(number).general[R8];
    ensure!(
        sum == 0,
        "{ring:?}, register {register}: error codes are off by {sum:#x}"
    );
    Ok(())
}

/// Far jumps, calls and returns to selectors that are none of this ring's.
fn transfers(ring: Ring) -> Result<()> {
    let ways: [(&str, &[u8]); 3] = [
        (
            "jump",
            code!(
                "mov qword ptr [rbx], rbp",
                "mov word ptr [rbx + 8], cx",
                ".byte 0x48",
                "jmp fword ptr [rbx]"
            ),
        ),
        (
            "call",
            code!(
                "mov qword ptr [rbx], rbp",
                "mov word ptr [rbx + 8], cx",
                ".byte 0x48",
                "call fword ptr [rbx]"
            ),
        ),
        ("return", code!("push rcx", "push rbp", ".byte 0x48, 0xcb")),
    ];
    let mut guest = Bare::new()?;
    guest.set_stack();
    let mut steps = Vec::new();
    for (name, code) in ways {
        for selector in (0..0x88).chain([0xff8, 0x7ff8, 0xfff8, 0xffff]) {
            let own = match ring {
                Ring::One => matches!(selector, 0x08 | 0x09),
                _ => matches!(selector >> 3, 4 | 6),
            };
            // Returns to an outer ring are the business of `frames`; what is allowed is not tried.
            let outer = name == "return" && selector & 3 > ring.cs() & 3;
            if own || outer {
                continue;
            }
            let mut with = guest.registers(ring);
            with.general[RCX] = selector;
            with.general[RBP] = with.rip;
            steps.push((name, selector, guest.go_with(code, &with, 0)));
        }
    }
    guest.survive()?;
    for (name, selector, step) in steps {
        let Outcome::Trapped(trap) = guest.outcome(step) else {
            bail!("far {name} to {selector:#x}: not reached");
        };
        // A slot may also be said to be not present.
        let fits = matches!(trap.vector, 11 | 13) && trap.error == selector & !3;
        ensure!(fits, "far {name} to {selector:#x}: {trap:?}");
        frame_is_right(&trap, ring)?;
    }
    Ok(())
}

/// What `iretq` in ring 1 may go back to: every selector of the table for CS and for SS.
fn frames() -> Result<()> {
    let mut guest = Bare::new()?;
    guest.set_stack();
    let mut steps = Vec::new();
    for cs in 0..0x70_u64 {
        for ss in [
            0, 1, 2, 3, 0x10, 0x18, 0x1b, 0x29, 0x2b, 0x33, 0x39, 0x3b, 0x40,
        ] {
            if guest.steps() > 700 {
                check_frames(&mut guest, &steps)?;
                steps.clear();
                guest = Bare::new()?;
                guest.set_stack();
            }
            let ring = if cs & 3 == 3 { Ring::Three } else { Ring::One };
            let mut with = guest.registers(ring);
            (with.cs, with.ss) = (cs, ss);
            steps.push((cs, ss, guest.go_with(&[], &with, 0)));
        }
    }
    check_frames(&mut guest, &steps)
}

fn check_frames(guest: &mut Bare, steps: &[(u64, u64, usize)]) -> Result<()> {
    guest.survive()?;
    for (cs, ss, step) in steps {
        let Outcome::Trapped(trap) = guest.outcome(*step) else {
            bail!("iretq to {cs:#x} with {ss:#x}: not reached");
        };
        let good = match cs {
            0x09 => matches!(ss, 1 | 0x39),
            // In 32-bit code an RIP of 64 bits is the test's own mistake, so it is only looked at.
            0x23 | 0x33 => *ss == 0x2b,
            _ => false,
        };
        // QEMU 7.2 does not look at the ring in a null SS.
        if *cs == 9 && *ss < 4 && trap.vector == 3 {
            continue;
        }
        if good {
            ensure!(trap.vector == 3, "iretq to {cs:#x} with {ss:#x}: {trap:?}");
            continue;
        }
        let error = [cs & !3, ss & !3].contains(&trap.error);
        let there = trap.rip == iretq() && trap.cs == 9;
        let fits = matches!(trap.vector, 10..=13) && error && there;
        ensure!(fits, "iretq to {cs:#x} with {ss:#x}: {trap:?}");
    }
    Ok(())
}

/// Flags that a Guest may choose, beside the interrupt flag, which is its own.
const CHOSEN: u64 = 0x24_4dd5;
const TF: u64 = 1 << 8;

pub fn flags(_: &mut Bench) -> Result<()> {
    with_module(|| {
        for ring in [Ring::One, Ring::Three] {
            let mut guest = Bare::new()?;
            guest.set_stack();
            let mut steps = Vec::new();
            for bits in (0..64)
                .map(|bit| 1_u64 << bit)
                .chain([!0, 0x3000, 0x1a_0000])
            {
                // By popf, read again by pushf at once; TF apart, which is the case `steps`.
                let mut with = guest.registers(ring);
                with.general[RAX] = bits & !TF;
                let code = code!("push rax", "popfq", "pushfq", "pop rcx", "push 2", "popfq");
                steps.push((bits & !TF, true, guest.go_with(code, &with, 0)));
                // By iretq, read in the frame of the trap that follows.
                let mut with = guest.registers(ring);
                with.rflags = bits & !TF;
                steps.push((bits & !TF, false, guest.go_with(&[], &with, 0)));
            }
            guest.survive()?;
            for (bits, by_popf, step) in steps {
                let Outcome::Trapped(trap) = guest.outcome(step) else {
                    bail!("flags {bits:#x}: not reached");
                };
                ensure!(trap.vector == 3, "{ring:?}, flags {bits:#x}: {trap:?}");
                let (got, always) = if by_popf {
                    // The real interrupt flag stays on whatever is popped.
                    (guest.after(step).general[RCX], 0x202)
                } else {
                    // RF is the Guest's by iretq; the frame of the trap shows it cleared or not.
                    (trap.rflags & !(1 << 16), 2)
                };
                let wanted = bits & CHOSEN | always;
                ensure!(
                    got == wanted,
                    "{ring:?}, flags {bits:#x} by {}: {got:#x}, not {wanted:#x}",
                    if by_popf { "popf" } else { "iretq" }
                );
            }
        }
        // All of them at once, at every kind of exit: a hypercall, a trap, a page fault that the
        // Host mends, an instruction that it emulates, a record for the Launcher, the end.
        for bits in [1 << 10, 1 << 14, 1 << 18, 1 << 21, 0x24_4cd5, 0x3000, !TF] {
            let mut guest = Bare::new()?;
            guest.set_stack();
            for ring in [Ring::One, Ring::Three] {
                for code in [
                    code!("push rax", "popfq", "xor eax, eax", "int 0x1f", "ud2"),
                    code!("push rax", "popfq", "mov eax, [rdi]", "in al, dx"),
                    code!("push rax", "popfq", "int 0x80"),
                    code!(
                        "push rax",
                        "popfq",
                        "mov eax, 13",
                        "xor edi, edi",
                        "lea esi, [rbp]",
                        "int 0x1f"
                    ),
                    code!("push rax", "popfq", "mov eax, [rcx]"),
                ] {
                    let mut with = guest.registers(ring);
                    with.general[RAX] = bits;
                    with.general[RBP] = FREE;
                    with.general[RCX] = 0x5000_0000;
                    guest.go_with(code, &with, 0);
                }
            }
            let mut with = guest.registers(Ring::One);
            with.general[RCX] = bits;
            let code = code!(
                "push rcx",
                "mov eax, 2",
                "mov esi, 1",
                "xor edi, edi",
                "popfq",
                "int 0x1f"
            );
            guest.go_with(code, &with, 0);
            guest
                .survive()
                .with_context(|| format!("flags {bits:#x}"))?;
        }
        Ok(())
    })
}

/// Whether the hardware's gate at a vector lets `int n` through, when the Guest has asked for
/// `wish` as its outermost ring there.
fn admitted(vector: u8, wish: Option<u64>, ring: Ring) -> bool {
    let outermost = match (vector, wish) {
        (0 | 3..=6 | 16 | 19 | 0x80, Some(wish)) => wish,
        (0x1f, _) => 1,
        (3 | 4, None) => 3,
        _ => 0,
    };
    outermost >= ring.cs() & 3
}

/// `int n` as an instruction.
fn int(vector: u8) -> [u8; 2] {
    [0xcd, vector]
}

/// The vectors that a Guest may load.
fn loadable(vector: u8) -> bool {
    !matches!(vector, 2 | 8 | 18 | 0x1f)
}

/// Checks what came of `int n`.
fn check_int(guest: &Bare, step: usize, vector: u8, ring: Ring, through: bool) -> Result<()> {
    let start = guest.code_at(ring, step);
    let Outcome::Trapped(trap) = guest.outcome(step) else {
        bail!("not reached");
    };
    let number = u64::from(vector);
    let fits = if vector == 0x1f && through {
        (trap.vector, trap.rip) == (3, start + 3)
    } else if through {
        (trap.vector, trap.error, trap.rip) == (number, 0, start + 2)
    } else {
        // QEMU 7.2 counts 16 where 8 is right.
        let code = [8 * number + 2, 16 * number + 2].contains(&trap.error);
        (trap.vector, trap.rip) == (13, start) && code
    };
    ensure!(fits, "{trap:?}");
    let direct = trap.rflags & 0x200 != 0;
    let trap = Trap {
        rflags: trap.rflags & !0x200,
        ..trap
    };
    ensure!(!direct || through, "the interrupt flag shows");
    frame_is_right(&trap, ring)
}

pub fn vectors(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let before = interrupts()?;
        let begun = Instant::now();
        let mut tried = 0;
        // With a handler wherever there may be one, for ring 1 alone and for ring 3 too, through
        // the Host and, where that can be, directly; and with the fewest handlers.
        for (wish, direct) in [
            (Some(1), false),
            (Some(3), false),
            (Some(3), true),
            (None, false),
        ] {
            for ring in [Ring::One, Ring::Three] {
                let mut guest = Bare::new()?;
                guest.handlers(&handlers(wish, direct));
                guest.set_stack();
                // Without a handler, overflow would end the Guest: it has a gate for everybody.
                let steps: Vec<_> = (0..=255)
                    .filter(|vector| wish.is_some() || *vector != 4)
                    .map(|vector| (vector, guest.go(ring, &int(vector))))
                    .collect();
                guest
                    .survive()
                    .with_context(|| format!("{wish:?} {direct} {ring:?}"))?;
                for (vector, step) in steps {
                    tried += 1;
                    let wish = if vector == 3 { Some(3) } else { wish };
                    let through = admitted(vector, wish, ring);
                    check_int(&guest, step, vector, ring, through).with_context(|| {
                        format!(
                            "int {vector:#x} from {ring:?}, asked for {wish:?}, direct {direct}"
                        )
                    })?;
                }
            }
        }
        // Without any handler: a readable end, each time.
        for vector in 0..=255_u8 {
            let mut guest = Bare::new()?;
            guest.handlers(&[]);
            let step = guest.go(Ring::One, &int(vector));
            tried += 1;
            if vector == 0x1f {
                // It comes back, and the breakpoint after it is the end.
                must_die(&mut guest, "int 0x1f", "unhandled trap 3")?;
            } else {
                let trap = if matches!(vector, 3 | 4) { vector } else { 13 };
                let at = guest.code_at(Ring::One, step);
                let at = if trap == 13 { at } else { at + 2 };
                let says = format!("unhandled trap {trap} at {at:#x}");
                must_die(&mut guest, &format!("int {vector:#x}"), &says)?;
            }
        }
        // Those that would be interrupts of the Host's, over and over.
        const EACH: u64 = 640;
        for vector in [0xec, 0xf6, 0xfb, 0xfc, 0xfd] {
            for ring in [Ring::One, Ring::Three] {
                let mut guest = Bare::new()?;
                guest.set_stack();
                for _ in 0..EACH {
                    guest.go(ring, &int(vector));
                }
                guest.survive()?;
            }
            tried += 2 * EACH;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let counted = compare(&before, &interrupts()?, 2 * EACH, seconds)?;
        bench
            .control
            .say("note", &format!("{tried} tried; {counted}"))
    })
}

/// A handler for every vector that may have one, or only for general protection and breakpoints.
fn handlers(wish: Option<u64>, direct: bool) -> Vec<(u64, u64)> {
    let Some(wish) = wish else {
        return vec![(13, 0x201), (3, 0x203)];
    };
    (0..=255_u8)
        .filter(|vector| loadable(*vector))
        .map(|vector| {
            let may = matches!(vector, 0 | 3..=6 | 16 | 19 | 0x80);
            let flags = if direct && may { DIRECT } else { 0x200 };
            (
                vector.into(),
                wish.max(if vector == 3 { 3 } else { 1 }) | flags,
            )
        })
        .collect()
}

/// How often each interrupt that is no device's has come, on all CPUs together.
fn interrupts() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let numbers = rest
            .split_whitespace()
            .map_while(|word| word.parse::<u64>().ok());
        counts.insert(name.trim().to_owned(), numbers.sum());
    }
    Ok(counts)
}

/// Compares counts: lines that grow by themselves must not have grown by what was tried, and others
/// not at all.
fn compare(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    tried: u64,
    seconds: f64,
) -> Result<String> {
    let mut said = Vec::new();
    for name in [
        "LOC", "RES", "CAL", "TLB", "IWI", "SPU", "PMI", "RTR", "THR", "TRM", "DFR", "MCE", "NMI",
        "ERR", "MIS", "PIN", "NPI", "PIW", "HYP",
    ] {
        let (Some(before), Some(after)) = (before.get(name), after.get(name)) else {
            continue;
        };
        let grown = after.wrapping_sub(*before);
        // The tick comes 250 times a second on each of at most two busy CPUs, and timers besides.
        let most = match name {
            "LOC" => tried / 2 + (seconds * 1500.0) as u64,
            "RES" | "CAL" | "TLB" | "IWI" => tried / 2 + (seconds * 100.0) as u64,
            _ => 0,
        };
        ensure!(
            grown <= most,
            "{name} has grown by {grown} in {seconds:.1} s"
        );
        if grown > 0 {
            said.push(format!("{name} {grown}"));
        }
    }
    ensure!(before.contains_key("LOC"), "no LOC in /proc/interrupts");
    Ok(format!(
        "in {seconds:.1} s the Host counted {}",
        said.join(", ")
    ))
}

/// What CPUID says in a Guest is what it says in the Host's programs, but for two bits that tell
/// what the operating system has switched on.
pub fn cpuid(bench: &mut Bench) -> Result<()> {
    super::tables::pin(std::iter::once(0))?;
    let result = with_module(|| {
        let ask = |leaf: u32, sub: u32| {
            let r = std::arch::x86_64::__cpuid_count(leaf, sub);
            [r.eax, r.ebx, r.ecx, r.edx].map(u64::from)
        };
        let mut leaves = Vec::new();
        for base in [0, 0x4000_0000, 0x8000_0000] {
            let most = ask(base, 0)[0].clamp(u64::from(base), u64::from(base) + 64) as u32;
            for leaf in base..=most.min(base + 0x30) {
                leaves.extend((0..4).map(|sub| (leaf, sub)));
            }
        }
        // Beyond all of them.
        leaves.extend([(0x7fff_ffff, 0), (0xffff_ffff, 0)]);
        for ring in [Ring::One, Ring::Three] {
            let mut guest = Bare::new()?;
            guest.set_stack();
            let mut steps = Vec::new();
            for (leaf, sub) in &leaves {
                let mut with = guest.registers(ring);
                with.general[RAX] = (*leaf).into();
                with.general[RCX] = (*sub).into();
                steps.push(guest.go_with(code!("cpuid"), &with, 0));
            }
            guest.survive()?;
            for ((leaf, sub), step) in leaves.iter().zip(steps) {
                let general = guest.after(step).general;
                let got = [RAX, RBX, RCX, RDX].map(|place| general[place]);
                let mut wanted = ask(*leaf, *sub);
                match (leaf, sub) {
                    // OSXSAVE and OSPKE.
                    (1, _) => wanted[2] &= !(1 << 27),
                    (7, 0) => wanted[2] &= !(1 << 4),
                    _ => {}
                }
                ensure!(
                    got == wanted,
                    "{ring:?}, CPUID {leaf:#x}.{sub}: {got:x?}, in the Host {wanted:x?}"
                );
            }
        }
        bench
            .control
            .say("note", &format!("{} leaves", leaves.len()))
    });
    super::tables::pin(0..crate::host::cpus())?;
    result
}

/// In a 32-bit segment ring 3 has instructions that 64-bit code has not.
pub fn compatibility(_: &mut Bench) -> Result<()> {
    with_module(|| {
        let mut guest = Bare::new()?;
        guest.set_stack();
        let gp = |error| (13, error);
        let tries: Vec<(&str, &[u8], (u64, u64))> = vec![
            ("int 0x80", &[0xcd, 0x80], (0x80, 0)),
            ("into with OF", &[0xb0, 0x7f, 0x04, 0x01, 0xce], (4, 0)),
            ("into without", &[0x31, 0xc0, 0xce], (3, 0)),
            ("bound", &[0xb0, 5, 0x62, 0x03], (5, 0)),
            ("arpl", &[0x63, 0xc8], (3, 0)),
            ("aam 0", &[0xd4, 0], (0, 0)),
            ("push cs, pop ds", &[0x0e, 0x1f], (3, 0)),
            ("push es, pop ss", &[0x6a, 0x2b, 0x17], (3, 0)),
            ("pop ss of ring 1", &[0x6a, 0x39, 0x17], gp(0x38)),
            ("pop ss of nothing", &[0x6a, 0, 0x17], gp(0)),
            ("jump to ring 1", &[0xea, 0, 0, 0, 0, 0x09, 0], gp(0x08)),
            ("jump to ring 0", &[0xea, 0, 0, 0, 0, 0x10, 0], gp(0x10)),
            ("call to the task", &[0x9a, 0, 0, 0, 0, 0x40, 0], gp(0x40)),
            ("sysenter", &[0x0f, 0x34], (6, 0)),
            ("syscall", &[0x0f, 0x05], (6, 0)),
            ("hlt", &[0xf4], gp(0)),
            ("cli", &[0xfa], gp(0)),
            ("in", &[0xec], gp(0)),
            ("mov cr3", &[0x0f, 0x20, 0xd8], gp(0)),
            ("int 0x1f", &[0xcd, 0x1f], gp(0x1f * 8 + 2)),
        ];
        let mut steps = Vec::new();
        for (name, code, wanted) in &tries {
            let mut with = guest.registers(Ring::Three32);
            with.rsp = USER_STACK - 64;
            steps.push((name, wanted, guest.go_with(code, &with, 0)));
        }
        guest.survive()?;
        for (name, wanted, step) in steps {
            let Outcome::Trapped(trap) = guest.outcome(step) else {
                bail!("{name}: not reached");
            };
            let (vector, error) = *wanted;
            // `sysenter` is an instruction on Intel processors; QEMU 7.2's error code of `int n`.
            let other = match *name {
                "sysenter" => trap.vector == 13,
                "int 0x1f" => trap.vector == 13 && trap.error == 0x1f * 16 + 2,
                _ => false,
            };
            ensure!(
                other || (trap.vector, trap.error) == (vector, error),
                "{name}: {trap:?}"
            );
            frame_is_right(&trap, Ring::Three32)?;
        }
        Ok(())
    })
}
