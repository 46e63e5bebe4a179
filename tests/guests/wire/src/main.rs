// SPDX-License-Identifier: GPL-2.0-only

//! The Guest of the network's cases. It consists of the book's own driver and sockets; `case=` on
//! its command line says what they do. It prints a line that begins with `good:` when it went as it
//! should, and crashes with a text when it did not.

#![no_std]
#![no_main]

extern crate alloc;

mod cards;
mod packets;
mod scribble;
mod talk;

use alloc::vec::Vec;

use guest::BootInfo;
use guest::abi::addresses::GuestPhys;
use guest::abi::hypercall::Shutdown;
use guest::card::Card;
use guest::{bus, host, start};

guest::main!(run);

fn run(_: &'static BootInfo) -> ! {
    match word("case") {
        Some("talk") => talk::talk(),
        Some("scribble") => scribble::scribble(),
        Some("udp") => packets::udp(),
        Some("cards") => cards::cards(),
        Some("ping") => packets::ping(),
        Some("answer") => packets::answer(),
        other => panic!("no case is called {other:?}"),
    }
    host::shutdown(Shutdown::PowerOff, "")
}

/// What stands behind `name=` on the command line.
fn word(name: &str) -> Option<&'static str> {
    let mut words = start::command_line().split_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The number there, or another one.
fn number(name: &str, default: u64) -> u64 {
    let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("{name}={text}?"));
    word(name).map_or(default, parse)
}

/// The numbers there, between commas.
fn numbers(name: &str) -> Vec<usize> {
    let text = word(name).unwrap_or_else(|| panic!("no {name}="));
    text.split(',')
        .map(|n| n.parse().expect("numbers"))
        .collect()
}

/// The network device.
fn device() -> bus::Device {
    let mut all = bus::scan();
    let network = guest::abi::devices::NETWORK;
    let found = all.find(|device| device.descriptor.kind == network);
    found.expect("there is no network device")
}

/// Its driver, started.
fn card() -> Card {
    let device = device();
    let first = GuestPhys(device.descriptor.first);
    Card::start(first, device.line()).expect("the driver starts")
}
