// SPDX-License-Identifier: GPL-2.0-only

//! The ring of asynchronous hypercalls.

use abi::data::{RING_FREE, RING_READY, RING_SLOTS, RingCall};
use abi::hypercall::{FLUSH_ASYNC, FLUSH_TLB, LOAD_IDT_ENTRY};
use rt::{hypercall, println, share, shared, traps};

/// Fills the ring several times round and has it drained; the calls in it must have been done, in
/// their order.
pub fn ring() {
    for slot in 0..RING_SLOTS {
        assert!(
            shared!(ring_status[slot]) == RING_FREE,
            "slot {slot} is not free at the start"
        );
    }
    for round in 0..3_u64 {
        for slot in 0..RING_SLOTS {
            // The breakpoint's vector, to another handler each time; the last one counts.
            let vector = 40 + (slot as u8 % 4);
            let flags = 1 | abi::hypercall::IdtFlags::MASK.bits();
            let call = if slot % 2 == 0 {
                RingCall {
                    number: FLUSH_TLB,
                    args: [slot as u64 / 2 % 2, 0, 0, 0],
                }
            } else {
                let handler = traps::stub(vector) + round;
                RingCall {
                    number: LOAD_IDT_ENTRY,
                    args: [vector.into(), handler, flags, 0],
                }
            };
            share!(call => ring[slot]);
            share!(RING_READY => ring_status[slot]);
        }
        hypercall::call(FLUSH_ASYNC, [0; 4]);
        for slot in 0..RING_SLOTS {
            let status = shared!(ring_status[slot]);
            assert!(
                status == RING_FREE,
                "round {round}: slot {slot} has status {status:#x}"
            );
        }
    }
    // Order: two calls for one vector, of which the second must win.
    let flags = 3 | abi::hypercall::IdtFlags::MASK.bits();
    for (slot, handler) in [(0, traps::stub(4)), (1, traps::stub(3))] {
        let call = RingCall {
            number: LOAD_IDT_ENTRY,
            args: [3, handler, flags, 0],
        };
        share!(call => ring[slot]);
        share!(RING_READY => ring_status[slot]);
    }
    hypercall::call(FLUSH_ASYNC, [0; 4]);
    traps::expect(|frame| {
        SEEN.set(frame.vector);
        true
    });
    // SAFETY: The handler above takes the trap and goes on after it.
    unsafe { core::arch::asm!("int3") };
    assert!(
        SEEN.get() == 3,
        "the breakpoint arrived as trap {}",
        SEEN.get()
    );
    println!("good: the ring was drained in order");
}

static SEEN: rt::Global<u64> = rt::Global::new(0);
