// SPDX-License-Identifier: GPL-2.0-only

//! The processor's own interrupt table, as it is while a Guest runs.
//!
//! A Guest may read that page, and not write it. So it asks for everything that it may ask for,
//! reads the table, and every bit of every gate is compared with what the manual and the agreement
//! want there.

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use super::Bench;
use super::guests::{pin, unpin};
use super::sweep::reserved;
use crate::bare::reg::{RCX, RDI, RSI};
use crate::bare::{Bare, DIRECT, FREE, LINEAR, PAGE, Ring, StepNumber, handler, with_module};
use crate::code;

const MASK: u64 = 1 << 9;
/// Bytes between two stubs of the Switcher.
const STUB: u64 = 8;
/// The page of the first processor that holds its table: one page comes before all, then each
/// processor has three.
const TABLE: u64 = 3 * PAGE;

/// Vectors that a Guest may have nothing at.
const REFUSED: [u64; 4] = [2, 8, 18, 31];
/// Vectors whose gate may lead into ring 1.
const MAY_DIRECT: [u64; 9] = [0, 3, 4, 5, 6, 16, 17, 19, 0x80];
/// Vectors that the Guest's programs may reach by `int`, if its kernel lets them.
const MAY_INT: [u64; 8] = [0, 3, 4, 5, 6, 16, 19, 0x80];

/// What a Guest has asked for at a vector: handler and flags.
type Wish = Option<(u64, u64)>;

/// A step that copies the table to this page.
fn read_table(guest: &mut Bare, pages: u64, to: u64) -> StepNumber {
    let mut with = guest.registers(Ring::One);
    with.general[RSI] = pages + TABLE;
    with.general[RDI] = LINEAR + to;
    with.general[RCX] = 512;
    guest.go_with(code!("cld", "rep movsq"), &with, 0)
}

/// Compares a table that was copied to this page with what was asked for.
fn compare(guest: &Bare, at: u64, wishes: &[Wish], text: [u64; 2]) -> Result<u64> {
    let gate = |vector: u64| [0, 8].map(|half| guest.read(at + 16 * vector + half));
    let offset = |[low, high]: [u64; 2]| low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    // The last is always the Switcher's.
    let stubs = offset(gate(255)).wrapping_sub(255 * STUB);
    let inside = text[0] <= stubs && stubs + 256 * STUB <= text[1];
    ensure!(inside, "stubs at {stubs:#x}, text at {text:x?}");
    let mut direct = 0;
    for (vector, wish) in (0..).zip(wishes) {
        let unasked = match vector {
            31 => 1,
            3 | 4 => 3,
            _ => 0,
        };
        let dpl = match wish {
            Some((_, flags)) if MAY_INT.contains(&vector) => flags & 3,
            _ => unasked,
        };
        let (to, selector, kind) = match wish {
            Some((to, flags)) if flags & DIRECT != 0 => {
                direct += 1;
                (*to, 0x09, 0xf)
            }
            _ => (stubs + vector * STUB, 0x10, 0xe),
        };
        // IST 0, and all that is reserved 0; then the type, the DPL, and that it is there.
        let attributes = kind << 40 | dpl << 45 | 1 << 47;
        let low = to & 0xffff | selector << 16 | attributes | (to & 0xffff_0000) << 32;
        let wanted = [low, to >> 32];
        let got = gate(vector);
        ensure!(
            got == wanted,
            "vector {vector}, {wish:x?}: {got:x?}, not {wanted:x?}"
        );
    }
    Ok(direct)
}

/// Addresses that are in order, and odd: the ends of both halves, and what is the Host's.
fn handlers(reserved: &[u64; 4]) -> Vec<u64> {
    let mut all = vec![
        1,
        0x7fff_ffff_ffff,
        0xffff_8000_0000_0000,
        u64::MAX,
        0x1234_5678_9abc,
        0xffff_fedc_ba98_7654,
    ];
    all.extend(reserved);
    all.retain(|address| matches!(address.cast_signed() >> 47, 0 | -1));
    all
}

pub fn gates(bench: &mut Bench) -> Result<()> {
    let here = Pid::from_raw(0);
    pin(here, 0)?;
    let result = with_module(|| {
        let ranges = reserved()?;
        let [text, text_end, pages, _] = ranges;
        let odd = handlers(&ranges);
        let (mut tables, mut direct) = (0, 0);
        for flags in [
            1,
            3,
            1 | MASK,
            3 | MASK,
            1 | DIRECT,
            3 | DIRECT,
            3 | DIRECT | MASK,
        ] {
            let what = || format!("flags {flags:#x}");
            let mut guest = Bare::new()?;
            // Nothing asked for but what is needed to come back from a step.
            guest.handlers(&[(3, 3)]);
            let mut wishes: Vec<Wish> = vec![None; 256];
            wishes[3] = Some((handler(3), 3));
            let first = wishes.clone();
            read_table(&mut guest, pages, FREE);
            for vector in (0..256).filter(|vector| !REFUSED.contains(vector)) {
                let straight = MAY_DIRECT.contains(&vector);
                let flags = if straight { flags } else { flags & !DIRECT };
                let to = match vector {
                    3 => handler(3),
                    _ => odd[vector as usize % odd.len()],
                };
                guest.call(6, [vector, to, flags, 0]);
                wishes[vector as usize] = Some((to, flags));
            }
            read_table(&mut guest, pages, FREE + PAGE);
            for vector in (0..256).filter(|vector| *vector != 3 && !REFUSED.contains(vector)) {
                guest.call(6, [vector, 0, 0, 0]);
            }
            guest.call(6, [3, handler(3), 3, 0]);
            read_table(&mut guest, pages, FREE + 2 * PAGE);
            guest.survive().with_context(what)?;
            for (at, wishes) in [(0, &first), (1, &wishes), (2, &first)] {
                let at = FREE + at * PAGE;
                direct += compare(&guest, at, wishes, [text, text_end]).with_context(what)?;
                tables += 1;
            }
        }
        ensure!(
            direct == 3 * MAY_DIRECT.len() as u64,
            "{direct} direct gates"
        );
        let note = format!("{tables} tables of 256 gates, {direct} gates of them direct");
        bench.control.say("note", &note)
    });
    unpin(here).and(result)
}
