// SPDX-License-Identifier: GPL-2.0-only

//! A card that the Host has no room for, and cards that come and go: each must leave no frame taken,
//! no MAC behind, and no binding.

use guest::abi::addresses::{GuestPhys, PAGE_SIZE};
use guest::abi::dma::{Dma, MAX_DMA_BINDINGS};
use guest::abi::net::{Mac, NetCard, mac_offset};
use guest::card::Card;
use guest::frames::free_frames;
use guest::link::NOBODY;
use guest::{host, memory, println};

use crate::device;

/// Keys that nobody else has.
const KEYS: u64 = 0x100_0000;

/// Binds records of nothing to a key; 0 unbinds it.
fn bind(records: GuestPhys, key: u64, line: u32) -> bool {
    let at = memory::linear(records).cast::<Dma>();
    // SAFETY: The frame is used for nothing else, and its records have no pieces.
    unsafe { host::bind_dma(KEYS + 4 * key, at, 1, line) }
}

pub fn cards() {
    let (first, line) = (GuestPhys(device().descriptor.first), device().line());
    // SAFETY: The Launcher has put it there.
    let printed = unsafe { memory::linear(first).cast::<NetCard>().read_volatile() };
    let at = first.0 + PAGE_SIZE + mac_offset(printed.slot.into());
    let at = memory::linear(GuestPhys(at)).cast::<Mac>();
    // SAFETY: In the device's page, where MACs are.
    let published = || unsafe { at.read_volatile() };
    let start = || Card::start(first, line);

    let records = memory::take_frame().expect("a frame");
    let taken = (0..=MAX_DMA_BINDINGS as u64).take_while(|key| bind(records, *key, line));
    let taken = taken.count() as u64;
    assert!((1..=MAX_DMA_BINDINGS as u64).contains(&taken), "{taken}");
    let free = free_frames();
    assert!(start().is_none(), "one binding too many");
    assert_eq!(
        free_frames(),
        free,
        "frames after a card that did not start"
    );
    assert_eq!(published(), NOBODY, "its MAC");

    assert!(bind(records, 0, 0));
    // More often than there are bindings.
    let rounds = 2 * MAX_DMA_BINDINGS;
    for round in 0..rounds {
        let card = start().expect("there is room for one");
        assert_eq!(published(), printed.mac, "round {round}");
        assert!(free_frames() < free);
        drop(card);
        assert_eq!(free_frames(), free, "frames after round {round}");
        assert_eq!(published(), NOBODY, "the MAC after round {round}");
    }
    println!("good: others={taken} rounds={rounds}");
}
