// SPDX-License-Identifier: GPL-2.0-only

//! Ideas about addresses: those of nobody, those of the Host, those of the Switcher.

use super::{Maker, reg};
use crate::layout::{
    DATA1, END, KEYS, LINEAR, PAGE, RACED, RECORDS, SEGMENTS, TARGETS, USER_DATA, USER_STACK,
};
use crate::plan::{Action, Base, Must, Ring, Run, Word};

/// Pages of the Switcher that [`every_byte`] writes to: the text, and three of each of two
/// processors.
pub(super) const SWITCHER_PAGES: u64 = 7;
/// Words that a plan writes there.
const WORDS: u64 = 4;
/// So many plans write to every byte.
pub const PLANS_FOR_EVERY_BYTE: u64 = SWITCHER_PAGES * PAGE / 8 / WORDS;

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    /// Ring 1 may read and write there.
    Open,
    /// Nobody has anything there, or it is the Host's.
    Closed,
    /// One or the other.
    Unclear,
}

/// An address, and what it is.
pub(super) fn address(maker: &mut Maker) -> (Word, Is) {
    let near = maker.below(16) * 8;
    match maker.below(16) {
        0..5 => {
            let page = maker.pick(&[RECORDS, SEGMENTS, KEYS, TARGETS, DATA1]);
            ((LINEAR + page + near).into(), Is::Open)
        }
        5 => ((USER_DATA + near).into(), Is::Open),
        6 => {
            // Across the border of two pages.
            let near = maker.below(8);
            ((LINEAR + TARGETS + PAGE - near).into(), Is::Open)
        }
        7 => ((RACED + maker.below(8) * PAGE + near).into(), Is::Unclear),
        8 => {
            // The Host's memory, where the Host has it with four levels, and behind ours.
            let off = maker.below(1 << 34);
            ((LINEAR + END + off).into(), Is::Closed)
        }
        9 => {
            let base = maker.pick(&[
                0xffff_ffff_8000_0000_u64,
                0xffff_ffff_8100_0000,
                0xffff_ffff_a000_0000,
                0xffff_c900_0000_0000,
                0xffff_ea00_0000_0000,
                0xffff_fe00_0000_0000,
                0xff11_0000_0000_0000,
                0xffa0_0000_0000_0000,
            ]);
            // The Switcher may be there.
            ((base + maker.below(1 << 24)).into(), Is::Unclear)
        }
        10 => {
            let wild = [
                1 << 47,
                1 << 63,
                0xffff_7fff_ffff_fff8,
                0x7fff_ffff_ffff_fff8,
            ];
            (maker.pick(&wild).into(), Is::Closed)
        }
        11 => (maker.below(0x3f_ffff).into(), Is::Closed),
        12 => {
            let edge = [
                LINEAR - 8,
                USER_STACK,
                0x7fff_ffff_fff8,
                0xffff_8000_0000_0000,
                u64::MAX - 7,
                u64::MAX - 3,
            ];
            (maker.pick(&edge).into(), Is::Closed)
        }
        13 => {
            let off = maker.below(PAGE);
            (Word::at(Base::Text, off), Is::Unclear)
        }
        14 => {
            let off = maker.below(7 * PAGE);
            (Word::at(Base::Pages, off), Is::Unclear)
        }
        _ => {
            // The engine and the lower tables, which may only be read.
            let page = maker.pick(&[2 * PAGE, 7 * PAGE, 8 * PAGE]);
            ((LINEAR + page + near).into(), Is::Unclear)
        }
    }
}

/// Instructions that use RDI as an address, for reading and for writing.
const READS: [&[u8]; 8] = [
    b"\x48\x8b\x07",                     // mov rax, [rdi]
    b"\x8a\x07",                         // mov al, [rdi]
    b"\x48\x39\x07",                     // cmp [rdi], rax
    b"\xff\x37",                         // push qword ptr [rdi]
    b"\x0f\x18\x0f\xc6\xc0\x00\x8a\x07", // prefetcht0 [rdi]; mov al, 0; mov al, [rdi]
    b"\x48\xae",                         // scasq
    b"\x0f\xae\x3f\x8a\x07",             // clflush [rdi]; mov al, [rdi]
    b"\xf3\x0f\x6f\x07",                 // movdqu xmm0, [rdi]
];
const WRITES: [&[u8]; 8] = [
    b"\x48\x89\x07",                 // mov [rdi], rax
    b"\x88\x07",                     // mov [rdi], al
    b"\xf0\x48\x0f\xc1\x07",         // lock xadd [rdi], rax
    b"\x48\x87\x07",                 // xchg [rdi], rax
    b"\x8f\x07",                     // pop qword ptr [rdi]
    b"\xf0\x0f\xba\x2f\x05",         // lock bts dword ptr [rdi], 5
    b"\xb9\x09\x00\x00\x00\xf3\xaa", // mov ecx, 9; rep stosb
    b"\xf0\x48\x0f\xc7\x0f",         // lock cmpxchg16b [rdi]
];

/// Reads, writes and executes at some address, in ring 1 or 3.
pub(super) fn addresses(maker: &mut Maker) {
    let (at, is) = address(maker);
    let must = match is {
        Is::Open => Must::Work,
        Is::Closed => Must::Fail,
        Is::Unclear => Must::Any,
    };
    match maker.below(6) {
        0 => maker.judged(must, Action::Peek(at)),
        1 if is == Is::Open => {
            let value = maker.random.word();
            maker.judged(must, Action::Poke(at, value.into()));
        }
        1 => maker.judged(must, Action::Poke(at, 0.into())),
        2 => {
            let mut run = Run::new(Ring::One, &[]);
            run.rip = Some(at);
            // One instruction of whatever is there, and a debug trap.
            run.rflags = Some(0x302);
            run.rsp = maker.one_in(4).then(|| address(maker).0);
            maker.run(run);
        }
        n => {
            let ring = if n == 3 { Ring::One } else { Ring::Three };
            let code = match maker.one_in(2) {
                true => maker.pick(&READS),
                false => maker.pick(&WRITES),
            };
            // All that is open to ring 1 is closed to ring 3, but for its own page.
            let own = at.base == Base::Zero && (0x40_0000..0x80_0000).contains(&at.offset);
            let must = match ring {
                Ring::Three if is == Is::Open && !own => Must::Fail,
                _ if is == Is::Closed => Must::Fail,
                _ => Must::Any,
            };
            let run = Run::new(ring, code).with(reg::RDI, at);
            maker.judged(must, Action::Run(run));
        }
    }
}

/// What must come of a write by ring 1 to a byte of the Switcher's pages.
fn written(at: Word) -> Must {
    match (at.base, at.offset / PAGE) {
        (Base::Text, 0) => Must::Fail,
        // The first page is the shared one; then three for each processor, of which the first has
        // the registers, and may be written on the processor that the Guest is on.
        (Base::Pages, page) if page > 0 && page % 3 != 1 => Must::Fail,
        _ => Must::Any,
    }
}

/// Writes that come to every byte in so many plans.
pub(super) fn every_byte(maker: &mut Maker, number: u64) {
    maker.topic = crate::plan::Topic::Switcher;
    let first = number % PLANS_FOR_EVERY_BYTE * WORDS;
    for word in first..first + WORDS {
        let offset = 8 * word;
        let at = match offset / PAGE {
            0 => Word::at(Base::Text, offset),
            _ => Word::at(Base::Pages, offset),
        };
        maker.judged(written(at), Action::Poke(at, 0x5a5a.into()));
    }
}

/// One of the Switcher's pages, read, written, executed, or used as a stack.
pub(super) fn switcher(maker: &mut Maker) {
    let at = match maker.one_in(3) {
        true => Word::at(Base::Text, maker.below(PAGE)),
        false => Word::at(Base::Pages, PAGE + maker.below(6 * PAGE)),
    };
    match maker.below(8) {
        0 => maker.peek(at),
        1..4 => {
            // Not over the border of two pages, of which one might be writable.
            let at = Word::at(at.base, at.offset & !7);
            let value = maker.random.word();
            maker.judged(written(at), Action::Poke(at, value.into()));
        }
        4 => {
            let at = Word::at(at.base, at.offset & !15);
            let code = maker.pick(&WRITES);
            let run = Run::new(Ring::One, code).with(reg::RDI, at);
            maker.judged(written(at), Action::Run(run));
        }
        5 => {
            let code = match maker.one_in(2) {
                true => maker.pick(&READS),
                false => maker.pick(&WRITES),
            };
            let run = Run::new(Ring::Three, code).with(reg::RDI, at);
            maker.judged(Must::Fail, Action::Run(run));
        }
        6 => {
            let ring = maker.pick(&[Ring::One, Ring::Three]);
            let mut run = Run::new(ring, &[]);
            run.rip = Some(at);
            maker.run(run);
        }
        _ => {
            // A trap that finds its stack there ends the Guest, and a hypercall needs none.
            let ends = maker.one_in(8);
            let code: &[u8] = if ends {
                b"\x0f\x0b"
            } else {
                b"\x31\xc0\xcd\x1f\x48\x89\xdc"
            };
            let mut run = Run::new(Ring::One, code);
            run.rsp = Some(at);
            run = run.with(reg::RBX, LINEAR + crate::layout::RING1_STACK);
            maker.run(run);
        }
    }
}

/// Nonsense in the shared page.
pub(super) fn scribble(maker: &mut Maker) {
    for _ in 0..1 + maker.below(5) {
        let value = match maker.below(3) {
            0 => maker.random.word(),
            1 => 0,
            _ => 1 << maker.below(64),
        };
        match maker.below(4) {
            0 => {
                let at = 0x100 + maker.below(64);
                maker.step(Action::ShareByte(at, value as u8));
            }
            1 => {
                let at = 8 * maker.below(512);
                maker.step(Action::Share(at, value));
            }
            _ => {
                let at = 8 * maker.below(0x20);
                maker.step(Action::Share(at, value));
            }
        }
    }
    // No line is blocked, or a HALT would be the last thing that it does.
    maker.step(Action::Share(0x20, 0));
}
