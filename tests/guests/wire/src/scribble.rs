// SPDX-License-Identifier: GPL-2.0-only

//! A Guest that means no good: it writes over everybody's MAC, listens to everybody's key, and
//! sends whatever comes to its mind.

use guest::abi::addresses::{GuestPhys, PAGE_SIZE};
use guest::abi::dma::Dma;
use guest::abi::net::{Mac, NET_SLOTS, key_offset, mac_offset};
use guest::link::Link;
use guest::{host, memory, println};

use crate::{card, device};

/// Never ends by itself.
pub fn scribble() {
    let mut card = card();
    let macs = device().descriptor.first + PAGE_SIZE;
    // Records of nothing, bound to the keys of the others. They were there first, or they are not.
    let records = memory::take_frame().expect("a frame");
    for slot in (0..16).filter(|slot| *slot != card.slot()) {
        let key = macs + key_offset(slot);
        let at = memory::linear(records).cast::<Dma>();
        // SAFETY: The frame is used for nothing else, and its records have no pieces.
        unsafe { host::bind_dma(key, at, 8, device().line()) };
    }
    println!("scribbling");
    let (mut random, mut noise) = (0x2545_f491_4f6c_dd1d_u64, [0_u8; 128]);
    loop {
        for slot in 0..NET_SLOTS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let bytes = random.to_le_bytes();
            let mac: Mac = match random >> 56 & 7 {
                0 => [0; 6],
                1 => [0xff; 6],
                2..5 => [2, 0, 0, 0, 0, bytes[0] % 4],
                _ => [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]],
            };
            let at = GuestPhys(macs + mac_offset(slot));
            // SAFETY: In the device's page, where anybody may write.
            unsafe { memory::linear(at).cast::<Mac>().write_volatile(mac) };
            noise[slot] ^= bytes[6];
            noise[127 - slot] = bytes[5];
        }
        // To one of those who are talking, sometimes with the right type of frame, never with the
        // right sum.
        noise[12..14].copy_from_slice(&[8, (random >> 8) as u8 & 6]);
        card.offer(random as usize % 4, &noise[..14 + random as usize % 100]);
    }
}
