// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts, by way of the console: what is typed arrives with one.

use abi::dma::CONSOLE_IRQ;
use abi::hypercall::HALT;
use rt::{boot, console, hypercall, println, share, shared, traps};

/// How many console interrupts have come.
fn came() -> u64 {
    traps::irqs()[CONSOLE_IRQ as usize]
}

/// Takes the input and prints it.
fn echo() {
    let mut bytes = [0; 256];
    let used = console::take_input(&mut bytes);
    let text = core::str::from_utf8(&bytes[..used]).unwrap_or("(not text)");
    println!("got {:?}", text.trim_end());
}

/// Input while the Guest spins with interrupts on: the Host must break in.
pub fn while_spinning() {
    console::bind_input();
    hypercall::enable_interrupts();
    println!("waiting");
    for round in 1..=3 {
        while came() < round {
            core::hint::spin_loop();
        }
        echo();
    }
    println!("good: {} interrupts while spinning", came());
}

/// Input while the Guest sleeps: the Host must wake it.
pub fn while_halting() {
    console::bind_input();
    println!("waiting");
    for round in 1..=3 {
        // An interrupt between the question and HALT must not be taken: nobody would ask again.
        wait_for_round(round);
        echo();
    }
    println!("good: {} interrupts while halting", came());
}

/// Sleeps until input has come so many times.
fn wait_for_round(round: u64) {
    while came() < round {
        hypercall::disable_interrupts();
        if came() < round {
            hypercall::call(HALT, [0; 4]);
        }
        hypercall::enable_interrupts();
    }
}

/// Calls `each` with what comes in, the first line of it, and sleeps until the next.
pub fn with_lines(each: impl Fn(&str)) {
    console::bind_input();
    hypercall::enable_interrupts();
    for round in 1.. {
        wait_for_round(round);
        let mut bytes = [0; 256];
        let used = console::take_input(&mut bytes);
        let text = core::str::from_utf8(&bytes[..used]).unwrap_or("");
        text.lines().take(1).for_each(&each);
    }
}

/// Makes another number of each that comes in, and sleeps until the next.
pub fn answer() {
    console::bind_input();
    hypercall::enable_interrupts();
    println!("waiting");
    let mut answered = 0;
    for round in 1.. {
        wait_for_round(round);
        let mut bytes = [0; 256];
        let used = console::take_input(&mut bytes);
        let text = core::str::from_utf8(&bytes[..used]).unwrap_or("");
        let Ok(number) = text.trim_end().parse::<u64>() else {
            break;
        };
        let result = (0..1000).fold(number, |sum: u64, n| {
            sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n)
        });
        println!("answer {number} is {result}");
        answered += 1;
    }
    println!("good: answered {answered}");
}

/// Input while interrupts are off: it waits, is announced, and comes when they are turned on. A
/// line that is blocked does not come even then.
pub fn while_off() {
    console::bind_input();
    hypercall::disable_interrupts();
    println!("waiting");
    while shared!(irq_pending) == 0 {
        core::hint::spin_loop();
    }
    assert!(came() == 0, "an interrupt came while they were off");
    let bit = 1 << CONSOLE_IRQ;
    assert!(
        shared!(pending[0]) & bit != 0,
        "the line is not marked as pending"
    );
    share!(bit => blocked[0]);
    hypercall::enable_interrupts();
    hypercall::call(abi::hypercall::FLUSH_ASYNC, [0; 4]);
    assert!(came() == 0, "an interrupt came on a blocked line");
    share!(0 => blocked[0]);
    hypercall::call(abi::hypercall::FLUSH_ASYNC, [0; 4]);
    assert!(
        came() == 1,
        "{} interrupts came when the line was unblocked",
        came()
    );
    echo();
    println!("good: an interrupt waited until it was wanted");
}

/// Offers the Launcher a record that leads out of memory. Does not come back once it is used.
pub fn bad_record() {
    console::bind_input();
    console::spoil_input(boot::end() - 8, 16);
    hypercall::enable_interrupts();
    println!("waiting");
    while came() == 0 {
        core::hint::spin_loop();
    }
    println!("bad: the Launcher took it");
}
