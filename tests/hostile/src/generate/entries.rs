// SPDX-License-Identifier: GPL-2.0-only

//! Ideas about page tables: entries, roots, flushes and hints.

use super::{Maker, reg};
use crate::layout::{
    END, END_SLOT, LINEAR, OTHER_ROOT, PAGE, ROOT, TABLES, TABLES_END, TARGETS, USER_DATA,
};
use crate::plan::{Action, Must, Ring, Run, Word};

const RW: u64 = 3;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;

/// What an entry makes of the way that it is part of.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// The way ends here: no access can come through.
    closed: bool,
    /// No write can.
    read_only: bool,
    /// Whatever comes of it.
    unclear: bool,
    /// The way ends here, in a large page.
    large: bool,
}

/// An entry of a level, meant to lead to a table or a page.
fn entry(maker: &mut Maker, level: u64, next: u64) -> (u64, Turn) {
    let good = next | RW;
    let turn = Turn::default();
    let closed = Turn {
        closed: true,
        ..turn
    };
    match maker.below(24) {
        0 => (good & !1, closed),
        1 => {
            let read_only = true;
            (good & !2, Turn { read_only, ..turn })
        }
        // Bits without a meaning, caching, and what the processor sets itself.
        2 => (good | 1 << (8 + maker.below(4)), turn),
        3 => (good | 1 << (52 + maker.below(11)), turn),
        4 => (good | maker.pick(&[0x08, 0x10, 0x18, 0x20, 0x60]), turn),
        5 => (good | NX, turn),
        6 | 7 => (good | USER, turn),
        // No large pages at the top; elsewhere only on their own boundary.
        8 if level == 4 => (good | LARGE, closed),
        8 | 9 if level == 2 || level == 3 => {
            let bits = if level == 2 { 13..21 } else { 13..30 };
            let bit = bits.start + maker.below(bits.end - bits.start);
            (1 << bit | LARGE | RW, closed)
        }
        10 | 11 if level == 2 || level == 3 => {
            let large = true;
            let rights = maker.pick(&[RW, RW | USER, RW | NX, RW | 1 << 12]);
            (LARGE | rights, Turn { large, ..turn })
        }
        8 if level == 1 => (good | LARGE, turn),
        // Somewhere else: this very table, the root, any page. What is there is read as an entry.
        12 if level > 1 && maker.one_in(3) => {
            let unclear = true;
            let page = maker.pick(&[ROOT, OTHER_ROOT, next, TABLES, TARGETS]);
            (
                page | maker.pick(&[1, RW, RW | USER]),
                Turn { unclear, ..turn },
            )
        }
        // Out of memory: that ends the Guest.
        13 if maker.one_in(4) => {
            let far = [
                END,
                END + PAGE,
                END - PAGE + (1 << 32),
                1 << 40,
                1 << 51,
                0x000f_ffff_ffff_f000,
            ];
            (maker.pick(&far) | RW, closed)
        }
        _ => (good, turn),
    }
}

/// A page for a table.
fn table(maker: &mut Maker) -> u64 {
    let page = maker.table;
    maker.table += PAGE;
    if maker.table == TABLES_END {
        maker.table = TABLES;
    }
    page
}

/// A way through four new entries, and what comes through it.
pub(super) fn tables(maker: &mut Maker) {
    if maker.slot == END_SLOT {
        return maker.call(5, [1, 0, 0, 0]);
    }
    let slot = maker.slot;
    maker.slot += 1;
    if maker.table + 3 * PAGE >= TABLES_END {
        // What lay there has been used before.
        maker.table = TABLES;
    }
    let places = [table(maker), table(maker), table(maker)];
    // Mostly a low index: of a large page at level 3 the Guest has the beginning.
    let second = if maker.one_in(6) { maker.below(512) } else { 0 };
    let indices = [maker.below(4), second, maker.below(512)];
    let page = TARGETS + PAGE * maker.below(2);
    let nexts = [places[0], places[1], places[2], page];
    let mut all = Turn::default();
    let mut user = true;
    let mut done = false;
    let mut writes = Vec::new();
    for (n, next) in nexts.into_iter().enumerate() {
        let level = 4 - n as u64;
        let (value, turn) = entry(maker, level, next);
        let places = match n {
            0 => vec![ROOT + 8 * slot, OTHER_ROOT + 8 * slot],
            _ => vec![places[n - 1] + 8 * indices[n - 1]],
        };
        writes.extend(places.into_iter().map(|place| (place, value)));
        if done {
            continue;
        }
        all.closed |= turn.closed;
        all.read_only |= turn.read_only;
        all.unclear |= turn.unclear;
        user &= value & USER != 0;
        done = turn.large || turn.unclear;
        // Of a gigabyte the Guest has the first two megabytes only; of two megabytes all.
        all.unclear |= turn.large && level == 3 && indices[1] != 0;
    }
    // A table that is changed while it is in use is as it should be from the flush on.
    for (place, value) in writes {
        maker.poke(LINEAR + place, value);
    }
    maker.call(5, [1, 0, 0, 0]);
    let address = 0xffff_0000_0000_0000 | slot << 39 | indices[0] << 30 | indices[1] << 21;
    let word = 8 * maker.below(500);
    let address = address | indices[2] << 12 | word;
    for _ in 0..1 + maker.below(3) {
        touch(maker, address, all, user);
    }
    if maker.one_in(4) {
        // Weaker or stronger, with a flush or without.
        let (place, next) = match maker.one_in(2) {
            true => (places[2] + 8 * indices[2], page),
            false => (places[1] + 8 * indices[1], places[2]),
        };
        let value = maker.pick(&[0, next | 1, next | RW, next | RW | USER]);
        maker.poke(LINEAR + place, value);
        match maker.below(3) {
            0 => maker.call(5, [1, 0, 0, 0]),
            1 => maker.call(33, [address, 0, 0, 0]),
            _ => {}
        }
        maker.peek(address);
        if !all.large && !all.unclear {
            maker.poke(address, 0);
        }
    }
}

/// Reads, writes or executes through such a way.
fn touch(maker: &mut Maker, address: u64, way: Turn, user: bool) {
    let must = |write: bool| match way {
        // An earlier turn may already have ended it.
        Turn { unclear: true, .. } => Must::Any,
        Turn { closed: true, .. } => Must::Fail,
        Turn {
            read_only: true, ..
        } if write => Must::Fail,
        _ => Must::Work,
    };
    match maker.below(6) {
        0 | 1 => maker.judged(must(false), Action::Peek(address.into())),
        // Through a large page anything could be hit.
        2 | 3 if !way.large && !way.unclear => {
            let value = maker.random.word();
            maker.judged(must(true), Action::Poke(address.into(), value.into()));
        }
        4 => {
            let must = match (user, must(false)) {
                (_, Must::Any) => Must::Any,
                (true, Must::Work) => Must::Any,
                _ => Must::Fail,
            };
            // mov rax, [rdi]
            let run = Run::new(Ring::Three, b"\x48\x8b\x07").with(reg::RDI, address);
            maker.judged(must, Action::Run(run));
        }
        5 => {
            let ring = maker.pick(&[Ring::One, Ring::Three]);
            let mut run = Run::new(ring, &[]);
            run.rip = Some(address.into());
            // A page of anything: one instruction of it, and a debug trap.
            run.rflags = Some(0x302);
            maker.run(run);
        }
        _ => maker.peek(address),
    }
}

/// Other roots: tags, bit 63, copies, and now and then nonsense.
pub(super) fn roots(maker: &mut Maker) {
    let tag = match maker.below(4) {
        0 => 0,
        1 => maker.below(6),
        _ => maker.below(0x1000),
    };
    let keep = if maker.one_in(2) { 1 << 63 } else { 0 };
    if maker.one_in(30) {
        let page = maker.pick(&[0, TARGETS, 3 * PAGE, END - PAGE, END, 1 << 40]);
        return maker.spoil(Action::Call(
            4,
            [page | tag | keep, 0, 0, 0].map(Word::from),
        ));
    }
    let mut root = maker.pick(&[ROOT, OTHER_ROOT]);
    if maker.one_in(3) {
        // A copy, by `cld; rep movsq`.
        root = table(maker);
        let run = Run::new(Ring::One, b"\xfc\xf3\x48\xa5")
            .with(reg::RSI, LINEAR + ROOT)
            .with(reg::RDI, LINEAR + root)
            .with(reg::RCX, 512);
        maker.run(run);
    }
    maker.try_call(4, [root | tag | keep, 0, 0, 0]);
    for _ in 0..maker.below(4) {
        match maker.below(4) {
            0 => maker.peek(LINEAR + TARGETS),
            1 => {
                let run = Run::new(Ring::Three, b"\x48\x8b\x07").with(reg::RDI, USER_DATA);
                maker.run(run);
            }
            2 => maker.call(5, [tag & 1, 0, 0, 0]),
            _ => maker.call(33, [USER_DATA, 0, 0, 0]),
        }
    }
    // A copy is made over before long.
    if !matches!(root, ROOT | OTHER_ROOT) || maker.one_in(3) {
        maker.call(4, [ROOT, 0, 0, 0]);
    }
}

/// Hints, right and wrong, in the ring or directly.
pub(super) fn hints(maker: &mut Maker) {
    for _ in 0..1 + maker.below(4) {
        let number = 14 + maker.below(2);
        let entry = match maker.below(8) {
            0 => ROOT + 8 * maker.below(512),
            1 => 7 * PAGE + 8 * maker.below(8),
            2 => END - 8,
            3 if maker.one_in(8) => END,
            _ => TABLES + 8 * maker.below((TABLES_END - TABLES) / 8),
        };
        let slot = maker.slot;
        let page = match maker.below(4) {
            0 => u64::MAX,
            1 => USER_DATA,
            2 => 0xffff_0000_0000_0000 | (slot - maker.below(2)) << 39 | maker.below(512) << 12,
            _ => LINEAR + PAGE * maker.below(520),
        };
        if maker.one_in(2) {
            let slot = maker.ring;
            maker.ring = (slot + 1) % 64;
            let args = [entry, page, 0, 0].map(Word::from);
            maker.step(Action::Queue(slot, number, args));
        } else {
            maker.call(number, [entry, page, 0, 0]);
        }
    }
    maker.try_call(0, [0; 4]);
    maker.peek(USER_DATA);
}
