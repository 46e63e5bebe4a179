// SPDX-License-Identifier: GPL-2.0-only

//! The timer.

use abi::dma::TIMER_IRQ;
use abi::hypercall::{HALT, SET_CLOCKEVENT};
use rt::{hypercall, println, shared, traps};

/// How many times it has fired.
fn came() -> u64 {
    traps::irqs()[TIMER_IRQ as usize]
}

fn set(nanoseconds: u64) {
    hypercall::call(SET_CLOCKEVENT, [nanoseconds, 0, 0, 0]);
}

/// Sleeps until it has fired so often.
fn sleep_until(times: u64) {
    while came() < times {
        hypercall::disable_interrupts();
        // It may have come right before that. If it comes now, HALT does not sleep.
        if came() < times {
            hypercall::call(HALT, [0; 4]);
        }
        hypercall::enable_interrupts();
    }
}

/// A timer while the Guest computes, and while it sleeps. By the time that it is told with each,
/// none is early.
pub fn timer() {
    let step = 1_000_000;
    hypercall::enable_interrupts();
    let mut last = shared!(time[2]);
    for n in 1..=40 {
        set(step);
        if n <= 20 {
            while came() < n {
                core::hint::spin_loop();
            }
        } else {
            sleep_until(n);
        }
        assert!(came() == n, "timer {n} fired {} times", came());
        // The timer and the time may go by clocks that differ by half a thousandth.
        let now = shared!(time[2]);
        let took = now - last;
        assert!(took >= step - step / 1000, "timer {n} took {took} ns");
        last = now;
    }
    println!("good: {} timers", came());
}

/// One after another, for ever.
pub fn always() {
    hypercall::enable_interrupts();
    println!("always");
    for n in 1.. {
        set(100_000);
        sleep_until(n);
    }
}
