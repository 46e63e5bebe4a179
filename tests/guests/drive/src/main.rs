// SPDX-License-Identifier: GPL-2.0-only

//! A test Guest that is built on the Guest of the book: it tries the drivers. `case=` on its
//! command line says which; a line that begins with `good:` says that it went as it should.

#![no_std]
#![no_main]

extern crate alloc;

mod disk;
mod durable;
mod random;

use guest::abi::hypercall::Shutdown;
use guest::{BootInfo, bus, console, host, interrupts, start};

guest::main!(run);

fn run(_: &'static BootInfo) -> ! {
    console::init();
    interrupts::enable();
    bus::start(bus::DRIVERS);
    let name = option("case").unwrap_or("");
    let Some((_, case)) = CASES.iter().find(|(known, _)| *known == name) else {
        panic!("no case is called {name}");
    };
    case();
    host::shutdown(Shutdown::PowerOff, "");
}

/// The word after `name=` on the command line.
fn option(name: &str) -> Option<&'static str> {
    let words = start::command_line().split(' ');
    let mut values = words.filter_map(|word| word.split_once('='));
    values.find_map(|(key, value)| (key == name).then_some(value))
}

/// The number after `name=`, or another.
fn number(name: &str, default: u64) -> u64 {
    let number = option(name).map(|text| text.parse().expect("a number"));
    number.unwrap_or(default)
}

/// The cases by name.
const CASES: &[(&str, fn())] = &[
    ("random", random::random),
    ("disk", disk::all),
    ("disk-bytes", disk::bytes),
    ("disk-errors", disk::errors),
    ("disk-shrinks", disk::shrinks),
    ("disk-impossible", disk::impossible),
    ("disk-durable", durable::durable),
    ("disk-cost", disk::cost),
    ("console-cost", disk::console_cost),
];
