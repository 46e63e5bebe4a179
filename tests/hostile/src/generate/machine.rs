// SPDX-License-Identifier: GPL-2.0-only

//! Ideas about what the Host does for a Guest: hypercalls, descriptors, gates, stacks, interrupts,
//! DMA.

use super::{Maker, WRITABLE, good_handler, good_stack, memory, reg};
use crate::layout::{
    DATA1, END, ENGINE, KEYS, LINEAR, LOWER2, OTHER_ROOT, PAGE, RACED, RECORDS, RING1_STACK, ROOT,
    SEGMENTS, TARGETS, TRAP_STACK, USER_DATA, USER_STACK, handler,
};
use crate::plan::{Action, Must, Ring, Run, Word};

/// Hypercalls in good order, but for those that end a Guest.
const CALLS: [(u64, [u64; 4]); 17] = [
    (0, [0; 4]),
    (3, [SEGMENTS, 16, 0, 0]),
    (4, [ROOT, 0, 0, 0]),
    (5, [1, 0, 0, 0]),
    (5, [0, 0, 0, 0]),
    (6, [50, LINEAR + ENGINE + 800, 0x201, 0]),
    (7, [LINEAR + TRAP_STACK, 2, 0, 0]),
    (8, [1, 0, 0, 0]),
    (8, [0, 0, 0, 0]),
    (9, [100_000, 0, 0, 0]),
    (12, [7, RECORDS, 2, 5]),
    (13, [3, RECORDS, 0, 0]),
    (14, [LOWER2, USER_DATA, 0, 0]),
    (16, [SEGMENTS, 0, 0, 0]),
    (18, [13, 0x00cf_f300_0000_ffff, 0, 0]),
    (32, [0; 4]),
    (33, [USER_DATA, 0, 0, 0]),
];

/// A value near a border: of memory, of a page, of words, of the halves of the address space.
fn odd(maker: &mut Maker) -> u64 {
    let near = maker.pick(&[0, 1, 4, 8, 16, 168, 176, 4032, 4096]);
    match maker.below(6) {
        0 => maker.random.word(),
        1 => {
            let bit = maker.below(64);
            (1_u64 << bit).wrapping_sub(near)
        }
        2 => END.wrapping_sub(near),
        3 => END + near,
        4 => maker.below(300),
        _ => {
            let place = [
                0,
                ROOT,
                RECORDS + PAGE,
                LINEAR,
                LINEAR + END,
                !0,
                !0 << 47,
                1 << 47,
            ];
            let place = maker.pick(&place);
            match maker.one_in(2) {
                true => place.wrapping_sub(near),
                false => place.wrapping_add(near),
            }
        }
    }
}

/// A call, and whether it is as harmless as those of the list.
fn some_call(maker: &mut Maker) -> (u64, [u64; 4], bool) {
    let (mut number, mut args) = maker.pick(&CALLS);
    if !maker.one_in(8) {
        return (number, args, true);
    }
    if maker.one_in(8) {
        number = maker.pick(&[11, 17, 19, 20, 31, 34, 255, 1 << 32, u64::MAX, 1]);
    }
    let place = maker.below(4) as usize;
    args[place] = odd(maker);
    // The Host writes into records. What the engine needs is no place for one.
    if matches!(number, 12 | 13) && args[1] < RECORDS {
        args[1] = RECORDS + args[1] % PAGE;
    }
    // A handler that the engine needs stays what it is.
    if number == 6 && args[0] < 32 && args[1] != 0 {
        args[1] = handler(args[0]);
    }
    (number, args, false)
}

/// HALT comes back when a line is pending.
fn wake(maker: &mut Maker) {
    maker.step(Action::Share(0x20, 0));
    maker.step(Action::Share(0x40, 1 << 5));
}

pub(super) fn hypercall(maker: &mut Maker) {
    for _ in 0..1 + maker.below(3) {
        let (number, args, good) = some_call(maker);
        // What a page may be as a top-level table, only `roots` tries.
        if number == 4 && !good && args[0] & 0x000f_ffff_ffff_f000 < END {
            continue;
        }
        // What the Host makes of descriptors depends on what is there.
        let must = match number {
            3 | 16 => Must::Any,
            _ => Must::Agree,
        };
        maker.judged(must, Action::Call(number, args.map(Word::from)));
        if number == 6 && args[0] < 32 {
            good_handler(maker, args[0]);
        }
        if number == 7 {
            good_stack(maker);
        }
        if number == 9 && !maker.lines {
            maker.call(9, [0; 4]);
        }
    }
    if maker.one_in(8) {
        wake(maker);
        maker.try_call(10, [0; 4]);
    }
}

pub(super) fn ring(maker: &mut Maker) {
    let many = match maker.below(8) {
        0 => 64,
        1 => 20,
        _ => 1 + maker.below(6),
    };
    for _ in 0..many {
        let (mut number, mut args, good) = some_call(maker);
        // Of a whole ring few would be left alive.
        if !good && (many > 6 || number == 4) {
            (number, args) = (5, [1, 0, 0, 0]);
        }
        let slot = maker.ring;
        maker.ring = (slot + 1) % 64;
        maker.step(Action::Queue(slot, number, args.map(Word::from)));
    }
    maker.try_call(0, [0; 4]);
    good_stack(maker);
}

/// Handlers of lines: each ends the step that it interrupts.
pub(super) fn handlers(maker: &mut Maker) {
    for vector in [32, 33, 37, 95] {
        maker.call(6, [vector, handler(vector), 0x201, 0]);
    }
}

/// A descriptor: of data, mostly as it may be.
fn descriptor(maker: &mut Maker) -> u64 {
    let base = maker.random.word() & 0x00ff_ffff;
    let good = base << 16 | 0x00cf_f300_0000_ffff;
    match maker.below(12) {
        0 => 0,
        1 => good & !(3 << 45),
        2 => good & !(3 << 45) | 1 << 45,
        3 => good & !(1 << 47),
        4 => good & !(1 << 40),
        5 => good | 1 << 42,
        6 => good & !(1 << 41),
        // What nobody may have.
        7 if maker.one_in(4) => {
            let bad = [1 << 43, 1 << 44, 1 << 45 | 1 << 46, 1 << 53, 1 << 54];
            good ^ maker.pick(&bad)
        }
        8 if maker.one_in(4) => maker.random.word(),
        _ => good,
    }
}

pub(super) fn descriptors(maker: &mut Maker) {
    for _ in 0..maker.below(4) {
        let slot = maker.pick(&[0, 8, 12, 13, 14, 15]);
        let value = descriptor(maker);
        maker.poke(LINEAR + SEGMENTS + 8 * slot, value);
    }
    let many = if maker.one_in(10) { odd(maker) } else { 16 };
    match maker.below(5) {
        0 => maker.try_call(3, [SEGMENTS, many, 0, 0]),
        1 => {
            let at = SEGMENTS + 8 * maker.pick(&[0, 12, 13]);
            maker.try_call(16, [at, 0, 0, 0]);
        }
        _ => {
            let slot = match maker.one_in(12) {
                true => maker.below(20),
                false => 12 + maker.below(4),
            };
            let value = descriptor(maker);
            maker.call(18, [slot, value, 0, 0]);
        }
    }
}

pub(super) fn gates(maker: &mut Maker) {
    let direct = [0, 4, 5, 16, 19, 0x80];
    let vector = match maker.below(8) {
        0..5 => maker.pick(&direct),
        5 => 32 + maker.below(224),
        _ => maker.below(300),
    };
    // Without these there is no way back into the engine.
    let vital = matches!(vector, 1 | 3 | 6 | 7 | 9..=15 | 17 | 20 | 21);
    let to = match maker.below(8) {
        0 => 0,
        1 => maker.pick(&[1, USER_DATA, LINEAR + TARGETS, 0xffff_8000_0000_0000, !0]),
        2 if maker.one_in(4) => maker.pick(&[1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff]),
        _ if vector < 256 => handler(vector),
        _ => handler(255),
    };
    let to = if vital { handler(vector) } else { to };
    let flags = match maker.below(12) {
        0 => maker.pick(&[0x200, 0x202, 0x600, 0x1000_0000_0201, 2, 0]),
        1 | 2 => 0x201,
        3 => 0x203,
        4 if direct.contains(&vector) => 0x101,
        5 | 6 if direct.contains(&vector) => 0x103,
        7 if maker.one_in(3) => 0x101,
        _ => 0x203,
    };
    maker.call(6, [vector, to, flags, 0]);
    for _ in 0..1 + maker.below(3) {
        let n = match maker.one_in(4) {
            true => maker.below(256),
            false => vector & 255,
        } as u8;
        // Arguments of a hypercall it is not meant to be.
        let n = if n == 0x1f { 0x80 } else { n };
        let ring = maker.pick(&[Ring::One, Ring::Three, Ring::Three32]);
        maker.run(Run::new(ring, &[0xcd, n]));
    }
    if vector < 256 && maker.one_in(2) && !matches!(vector, 2 | 8 | 18 | 31) {
        good_handler(maker, vector);
    }
}

/// Traps of rings 1 and 3 on stacks of all kinds.
pub(super) fn stacks(maker: &mut Maker) {
    let traps: [&[u8]; 7] = [
        b"\x0f\x0b",                         // ud2
        b"\xcc",                             // int3
        b"\xcd\x80",                         // int 0x80
        b"\xf4",                             // hlt
        b"\x31\xd2\xf7\xf2",                 // xor edx, edx; div edx
        b"\x48\x8b\x04\x25\x00\x00\x00\x50", // mov rax, [0x50000000]
        b"\x0f\x05",                         // syscall
    ];
    let good = [
        LINEAR + RING1_STACK,
        LINEAR + TARGETS + 0x800,
        LINEAR + DATA1 + PAGE,
        USER_STACK,
        USER_DATA + PAGE,
    ];
    let mut stack: Word = maker.pick(&good).into();
    if maker.one_in(6) {
        stack = memory::address(maker).0;
    } else if maker.one_in(8) {
        stack = (RACED + maker.below(8) * PAGE + 0x800).into();
    }
    let code = maker.pick(&traps);
    if maker.one_in(2) {
        // As the stack for traps from ring 3.
        let pages = if maker.one_in(20) { maker.below(5) } else { 1 };
        stack.offset &= !15;
        maker.step(Action::Call(7, [stack, pages.into(), 0.into(), 0.into()]));
        if code != b"\xf4" {
            let ring = maker.pick(&[Ring::Three, Ring::Three32]);
            maker.run(Run::new(ring, code));
        }
        good_stack(maker);
    } else {
        // `hlt` of ring 1 with interrupts off ends the Guest.
        let code = if code == b"\xf4" { b"\x0f\x0b" } else { code };
        let mut run = Run::new(Ring::One, code);
        if maker.one_in(3) {
            stack.offset = stack.offset.wrapping_sub(maker.below(24));
        }
        run.rsp = Some(stack);
        maker.run(run);
    }
}

pub(super) fn interrupts(maker: &mut Maker) {
    for _ in 0..1 + maker.below(3) {
        match maker.below(8) {
            0 => {
                let on = maker.pick(&[0, 0x200, 0x1_0000_0200, 0x201, 0xffff_ffff]);
                maker.step(Action::Share(0, on));
            }
            1 => {
                let lines = maker.pick(&[1, 2, 0x23, 1 << 63, u64::MAX]);
                maker.step(Action::Share(0x40, lines));
                maker.try_call(0, [0; 4]);
            }
            2 => {
                let lines = maker.pick(&[0, 1, 0x22, 1 << 63]);
                maker.step(Action::Share(0x20, lines));
            }
            3 => {
                // The window and the stubs: all the engine, nothing, or nonsense.
                let at = maker.pick(&[0x60, 0x70]);
                let start = maker.pick(&[0, LINEAR + TARGETS, 1 << 47, 1 << 63, !0]);
                let end = match maker.below(3) {
                    0 => LINEAR + ENGINE + 2 * PAGE,
                    1 => maker.random.word(),
                    _ => 0,
                };
                maker.step(Action::Share(at, start));
                maker.step(Action::Share(at + 8, end));
                maker.step(Action::Share(0x40, 2));
                maker.step(Action::Share(0, 0x200));
                maker.try_call(0, [0; 4]);
                maker.step(Action::Share(at + 8, 0));
                maker.step(Action::Share(at, 0));
            }
            4 => {
                wake(maker);
                maker.try_call(10, [0; 4]);
            }
            5 => maker.try_call(32, [0; 4]),
            6 => {
                let when = maker.pick(&[1, 1000, 50_000, 1 << 62, 0]);
                maker.call(9, [when, 0, 0, 0]);
            }
            _ => {
                // sti; nop; cli, and pushf; popf, with a line that waits.
                maker.step(Action::Share(0x40, 1));
                maker.run(Run::new(Ring::One, b"\xfb\x90\xfa\x9c\x9d\x90"));
            }
        }
    }
    maker.step(Action::Share(0x20, 0));
    maker.step(Action::Share(0, 0));
}

/// Instructions without end, until the timer comes.
pub(super) fn loops(maker: &mut Maker) {
    let loops: [&[u8]; 5] = [
        b"\xeb\xfe",                 // jmp .
        b"\xf3\x90\xeb\xfc",         // pause; jmp
        b"\x48\x8b\x07\xeb\xfb",     // mov rax, [rdi]; jmp
        b"\xf0\x48\xff\x07\xeb\xfa", // lock inc qword ptr [rdi]; jmp
        b"\x0f\xa2\xeb\xfc",         // cpuid; jmp
    ];
    if !maker.lines {
        // Or so many times.
        let run = Run::new(Ring::One, b"\xe2\xfe").with(reg::RCX, 5000);
        return maker.run(run);
    }
    maker.call(6, [32, handler(32), 0x201, 0]);
    maker.step(Action::Share(0x20, 0));
    maker.step(Action::Share(0x40, 0));
    maker.call(9, [200_000, 0, 0, 0]);
    maker.step(Action::Share(0, 0x200));
    let code = maker.pick(&loops);
    let ring = maker.pick(&[Ring::One, Ring::Three, Ring::Three32]);
    let mut run = Run::new(ring, code);
    if ring != Ring::Three32 && maker.one_in(2) {
        let page = RACED + maker.below(8) * PAGE;
        run = run.with(reg::RDI, page);
        // Faults of a page that comes and goes are no end.
        run.resume = 1 << 14;
    }
    maker.run(run);
    maker.step(Action::Share(0, 0));
}

/// Where no record can be.
fn far(maker: &mut Maker) -> u64 {
    maker.pick(&[RECORDS + PAGE - 160, RECORDS + 4, END, END - 8, 1 << 32, !7])
}

pub(super) fn dma(maker: &mut Maker) {
    let record = RECORDS + 168 * maker.below(4);
    let keys = [
        0,
        7,
        1 << 40,
        KEYS,
        KEYS + 1,
        KEYS + 0x800,
        RECORDS,
        u64::MAX,
    ];
    for _ in 0..maker.below(5) {
        let place = record + 8 * maker.below(21);
        let value = match maker.below(6) {
            0 => 0,
            1 => TARGETS + maker.below(PAGE),
            2 => 0x0010_0010_0010_0010,
            3 => maker.pick(&[END, END - 8, END - 16, 1 << 40, !0, !7]),
            4 => maker.random.word() | 1 << 40,
            _ => WRITABLE[1] - LINEAR,
        };
        maker.poke(LINEAR + place, value);
    }
    for _ in 0..1 + maker.below(3) {
        let key = maker.pick(&keys);
        if maker.one_in(2) {
            let many = if maker.one_in(16) {
                odd(maker)
            } else {
                maker.below(5)
            };
            let line = if maker.one_in(16) {
                odd(maker)
            } else {
                maker.below(8)
            };
            let at = if maker.one_in(16) {
                far(maker)
            } else {
                RECORDS
            };
            // The answer depends on what is bound already.
            maker.try_call(12, [key, at, many, line]);
        } else {
            let at = if maker.one_in(16) { far(maker) } else { record };
            maker.try_call(13, [key, at, 0, 0]);
        }
    }
}

/// The end that the Guest chooses.
pub(super) fn end(maker: &mut Maker) {
    let how = match maker.one_in(6) {
        true => odd(maker),
        false => 1 + maker.below(3),
    };
    let at = maker.pick(&[0, END - 16, OTHER_ROOT, TARGETS, END - 1]);
    let bytes = maker.pick(&[0, 1, 16, 256, 4096, u64::MAX]);
    maker.call(2, [at, how, bytes, 0]);
}
