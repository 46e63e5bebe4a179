// SPDX-License-Identifier: GPL-2.0-only

//! What the disk says is on the disk, told round by round to whoever ends the machine.

use guest::abi::block::WRITE;
use guest::block::{self, Piece};
use guest::frames::{FRAME, take_frames};
use guest::{memory, println};

use crate::number;

/// Writes a page at a time, all over some blocks, again and again; says each time what is on the
/// disk for good. `tests/src/durable.rs` knows the same pattern.
pub fn durable() {
    let disk = block::disk(0).expect("no disk");
    let (blocks, rounds) = (number("blocks", 97), number("rounds", 1000));
    let at = take_frames(0).expect("no memory");
    let words = memory::linear(at).cast::<u64>();
    // SAFETY: It is a page of memory, ours, and no device has it but inside of `transfer`.
    let words = unsafe { core::slice::from_raw_parts_mut(words, FRAME / 8) };
    let piece: Piece = (at, FRAME as u16);
    for round in 1..=rounds {
        for (n, word) in (0..).zip(words.iter_mut()) {
            *word = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n;
            if n % 64 == 0 {
                *word = round;
            }
        }
        let sector = round % blocks * 8;
        // SAFETY: The page is left alone until the request is ended.
        let slot = unsafe { disk.begin(WRITE, sector, &[piece]) };
        disk.end(slot.expect("no slot")).expect("not written");
        disk.flush().expect("no flush");
        println!("durable {round}");
    }
}
