// SPDX-License-Identifier: GPL-2.0-only

//! Packets of UDP and echoes, by sockets.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use guest::abi::syscall::{Address, SOCKET_ECHO, SOCKET_UDP};
use guest::net::{self, Socket};
use guest::stack::PACKET_BYTES;
use guest::{address, bus, interrupts, println, task, time};

use crate::{number, word};

/// Port of the numbered packets.
const PORT: u16 = 7000;
/// Whether the other side has all packets.
static SENT: AtomicBool = AtomicBool::new(false);

/// Starts the network; everything is as in the kernel.
fn start() {
    bus::start(bus::DRIVERS);
    interrupts::enable();
    assert!(net::info().present == 1, "the network did not start");
}

/// The address behind `to=`.
fn to(port: u16) -> Address {
    let text = word("to").expect("to=");
    let ip = address::parse(text).expect("to= an address");
    Address {
        ip,
        port,
        reserved: 0,
    }
}

/// Packet number `n`.
fn packet(n: u32) -> Vec<u8> {
    let length = 4 + (n as usize * 37) % (PACKET_BYTES - 3);
    let word = n.wrapping_mul(0x9e37_79b9).to_le_bytes();
    let mut packet: Vec<_> = word.iter().copied().cycle().take(length).collect();
    packet[..4].copy_from_slice(&n.to_le_bytes());
    packet
}

/// Says a word to the other side until it says the same.
fn agree(socket: &Socket, word: &[u8]) {
    let to = to(PORT + 1);
    let end = time::uptime() + 60_000_000_000;
    loop {
        assert!(time::uptime() < end, "the other side says nothing");
        // It may not be there yet.
        let _ = socket.send_to(word, to);
        let heard = socket.receive(100_000_000);
        if heard.is_ok_and(|packet| packet.bytes == word) {
            // It is there now, and may have missed all the others.
            socket.send_to(word, to).expect("it can be sent");
            return;
        }
    }
}

/// Sends `packets=` packets to `to=` and expects as many, in order. `pause=` nanoseconds pass after
/// each that was read.
pub fn udp() {
    start();
    let (packets, pause) = (number("packets", 0) as u32, number("pause", 0));
    // One socket each way: who sends waits, and must not keep the other from reading.
    let open = || Socket::open(SOCKET_UDP).expect("a socket");
    let (sender, receiver, control) = (open(), open(), open());
    receiver.bind(PORT).expect("the port");
    control.bind(PORT + 1).expect("the port");
    agree(&control, b"hello");
    println!("talking");
    let send = move || {
        for n in 0..packets {
            sender
                .send_to(&packet(n), to(PORT))
                .expect("it can be sent");
        }
        // What is still on its way goes with the socket.
        while !SENT.load(Ordering::Relaxed) {
            task::give_way();
            let _ = sender.receive(10_000_000);
        }
    };
    task::spawn("sender", send).expect("a task");
    for n in 0..packets {
        let found = receiver.receive(60_000_000_000).expect("more packets");
        assert!(found.bytes == packet(n), "not packet {n}, or it is mangled");
        if pause != 0 {
            let _ = control.receive(pause);
        }
    }
    agree(&control, b"done");
    SENT.store(true, Ordering::Relaxed);
    // The other side hears it, too.
    let _ = receiver.receive(300_000_000);
    let info = net::info();
    println!(
        "good: {packets} packets; sent={} received={} dropped={}",
        info.sent, info.received, info.dropped
    );
}

/// Sends `packets=` echo requests to `to=` and expects them back.
pub fn ping() {
    start();
    let socket = Socket::open(SOCKET_ECHO).expect("a socket");
    let (packets, to) = (number("packets", 0) as u16, to(0));
    for n in 0..packets {
        let mut request = n.to_be_bytes().to_vec();
        request.extend(packet(u32::from(n)).iter().take(1000));
        socket.send_to(&request, to).expect("it can be sent");
        let found = socket.receive(5_000_000_000).expect("an answer");
        assert!(found.bytes == request, "answer {n} is mangled");
        assert!(
            found.from.ip == to.ip,
            "answer {n} comes from somebody else"
        );
    }
    println!("good: {packets} echoes");
}

/// Answers, until it is told to end.
pub fn answer() {
    start();
    guest::console::init();
    println!("ready");
    let key = guest::console::read();
    let info = net::info();
    println!(
        "good: ended by {key}; received {} frames, sent {}",
        info.received, info.sent
    );
}
