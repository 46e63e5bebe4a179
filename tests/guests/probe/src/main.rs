// SPDX-License-Identifier: GPL-2.0-only

//! The test Guest. `case=` on its command line says what it tries; it prints a line that begins
//! with `good:` when it went as it should, and crashes with a text when it did not. What the Host
//! is expected to kill it for comes back as no line at all.

#![no_std]
#![no_main]

mod calls;
mod disk;
mod faults;
mod fpu;
mod hostile;
mod interrupts;
mod paging;
mod registers;
mod state;
mod storm;
mod syscalls;
mod timer;
mod walls;

use rt::{boot, println, start};

rt::main!(run);

fn run(_: &'static str) {
    let name = boot::option("case").unwrap_or("hello");
    let Some((_, case)) = CASES.iter().find(|(known, _)| *known == name) else {
        panic!("no case is called {name}");
    };
    case();
}

/// The cases by name.
const CASES: &[(&str, fn())] = &[
    ("hello", hello),
    ("off", || start::power_off()),
    ("crash", || start::crash("as I was told")),
    ("panic", || panic!("as I was told")),
    ("restart", || start::restart()),
    ("spin", spin),
    ("initial-disk", disk::initial),
    ("lives", disk::lives),
    ("named", disk::named),
    ("memory", paging::memory),
    ("tables", paging::tables),
    ("hypercalls", registers::hypercalls),
    ("round-trip", registers::round_trip),
    ("shadow-fault", paging::shadow_fault),
    ("work", registers::work),
    ("storm", storm::storm),
    ("syscalls", syscalls::syscalls),
    ("former-cpu", walls::former_cpu),
    ("ring", calls::ring),
    ("fault", faults::fault),
    ("traps", faults::traps),
    ("ports", faults::ports),
    ("fpu", fpu::work),
    ("fpu-trips", fpu::trips),
    ("privileged", faults::privileged),
    ("user", walls::user),
    ("walls", walls::walls),
    ("console-spin", interrupts::while_spinning),
    ("console-halt", interrupts::while_halting),
    ("console-blocked", interrupts::while_off),
    ("bad-record", interrupts::bad_record),
    ("answer", interrupts::answer),
    ("timer", timer::timer),
    ("timer-always", timer::always),
    ("hostile", hostile::hostile),
    ("state", state::state),
];

/// The least a Guest can do.
fn hello() {
    println!("good: hello from ring {}", ring());
}

/// The ring that this runs in.
fn ring() -> u16 {
    let selector: u16;
    // SAFETY: Reading CS touches no memory and is allowed in every ring.
    unsafe { core::arch::asm!("mov {0:x}, cs", out(reg) selector, options(nomem, nostack)) };
    selector & 3
}

/// Never lets go of the processor by itself.
fn spin() {
    println!("spinning");
    loop {
        core::hint::spin_loop();
    }
}
