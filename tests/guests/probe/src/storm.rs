// SPDX-License-Identifier: GPL-2.0-only

//! A bit of everything that leads through the Switcher, over and over, every value checked.

use rt::memory::{self, PRESENT, WRITABLE, entry, write_entry};
use rt::traps::{attempt_read, attempt_write};
use rt::user::{Attempt, attempt};
use rt::{boot, hypercall, println};

use crate::registers::{Numbers, checked_call};

/// An address that nothing is mapped at.
const NOWHERE: u64 = 0x5000_0000;
/// An address that a page is mapped at and taken away from.
const SOMETIMES: u64 = 0x5100_0000;

/// Hypercalls, faults that the Host mends, faults that come back, ring 3 and its system calls,
/// until something is typed.
pub fn storm() {
    let seed = boot::number("seed").unwrap_or(1);
    rt::console::bind_input();
    hypercall::enable_interrupts();
    let page = memory::page();
    let place = entry(memory::first_root(), SOMETIMES, 1);
    let mut numbers = Numbers(seed | 1);
    println!("working with seed {seed}");
    let mut round = 0_u64;
    while rt::traps::irqs()[abi::dma::CONSOLE_IRQ as usize] == 0 {
        round += 1;
        for _ in 0..16 {
            checked_call(&mut numbers, round);
        }

        // The Host fills its shadow, silently.
        write_entry(place, page | PRESENT | WRITABLE);
        let mark = seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let written = attempt_write(SOMETIMES, mark);
        assert!(written.is_ok(), "round {round}: {written:?}");
        let read = attempt_read(SOMETIMES);
        assert!(read == Ok(mark), "round {round}: {read:x?}, not {mark:#x}");

        // Taken away, the same access is a fault of ours.
        write_entry(place, 0);
        hypercall::call(abi::hypercall::FLUSH_ADDRESS, [SOMETIMES, 0, 0, 0]);
        for address in [SOMETIMES, NOWHERE] {
            let fault = attempt_read(address).expect_err("nothing is there");
            assert!(
                fault.vector == 14 && fault.error == 0 && fault.address == address,
                "round {round}: {fault:?}"
            );
        }

        // A thousand system calls, none of which leaves the Guest.
        if round.is_multiple_of(4) {
            let done = attempt(Attempt::SystemCalls, 0);
            assert!(done == Ok(1000), "round {round}: {done:?}");
        }
    }
    println!("good: seed {seed}, all values right in {round} rounds");
}
