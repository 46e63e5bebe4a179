// SPDX-License-Identifier: GPL-2.0-only

//! Numbered frames to and from others, by the driver alone: no stack, no sockets.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use guest::abi::net::{FRAME_BYTES, Mac};
use guest::card::Card;
use guest::link::Link;
use guest::outbox::Outbox;
use guest::sleep::WaitQueue;
use guest::{interrupts, println, time};

use crate::{card, device, number, numbers};

/// Bytes of a frame before what it carries: Ethernet's, and ours.
const HEADER: usize = 14 + 12;

static CAME: AtomicBool = AtomicBool::new(false);
static FRAMES: WaitQueue = WaitQueue::new();

/// FNV-1a.
fn sum(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

/// Frame number `n` of the Guest in slot `from`, and nobody else's.
fn frame(to: Mac, from: usize, n: u32) -> Vec<u8> {
    let length = HEADER + (n as usize * 37 + from) % (FRAME_BYTES - HEADER + 1);
    let mut frame = vec![0; length];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, from as u8 + 1]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14] = from as u8;
    frame[16..18].copy_from_slice(&(length as u16).to_le_bytes());
    frame[18..22].copy_from_slice(&n.to_le_bytes());
    let mut word = n.wrapping_mul(0x9e37_79b9) ^ from as u32;
    for byte in &mut frame[HEADER..] {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (word >> 24) as u8;
    }
    let check = sum(&frame[14..22]) ^ sum(&frame[HEADER..]);
    frame[22..26].copy_from_slice(&check.to_le_bytes());
    frame
}

/// The slot that a frame comes from, and its number. `None` if it is not one of ours at all; one
/// that is and was changed on the way ends everything.
fn read(frame: &[u8]) -> Option<(usize, u32)> {
    if frame.len() < HEADER || frame[12..14] != [0x88, 0xb5] {
        return None;
    }
    let field =
        |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let (n, length) = (field(18), field(16) as u16);
    let check = sum(&frame[14..22]) ^ sum(&frame[HEADER..]);
    let whole = usize::from(length) == frame.len() && check == field(22);
    assert!(whole, "frame {n} of {} bytes is mangled", frame.len());
    Some((usize::from(frame[14]), n))
}

/// Somebody to talk to.
struct Peer {
    slot: usize,
    sent: u32,
    got: u32,
}

/// Sends `packets=` frames to each of the slots `peers=`, and expects as many from each, in order.
/// `pause=` nanoseconds pass after each frame that was read. For the first `deaf=` milliseconds
/// nothing is read. It begins when a key is pressed. With `for=` milliseconds it ends when they are over, and frames may be missing.
pub fn talk() {
    let (packets, pause) = (number("packets", 0) as u32, number("pause", 0));
    let timed = number("for", 0) * 1_000_000;
    let mut card = card();
    interrupts::register(device().line(), || {
        CAME.store(true, Ordering::Relaxed);
        FRAMES.wake();
    });
    interrupts::enable();
    let others = numbers("peers").into_iter();
    let mut peers: Vec<_> = others
        .map(|slot| Peer {
            slot,
            sent: 0,
            got: 0,
        })
        .collect();
    println!("slot {}", card.slot());
    // The others may be about to start, and what stands in their slots may be of former ones.
    guest::console::init();
    guest::console::read();
    println!("talking");
    let start = time::uptime();
    let mut read_from = start + number("deaf", 0) * 1_000_000;
    let (mut outbox, mut bytes) = (Outbox::default(), Vec::new());
    let (mut late, mut foreign, mut turns) = (0_u32, 0_u32, 0_u64);
    loop {
        turns += 1;
        let now = time::uptime();
        card.publish();
        let over = timed != 0 && now >= start + timed;
        fill(
            &mut outbox,
            &card,
            &mut peers,
            if over { 0 } else { packets },
        );
        let mut busy = outbox.flush(&mut card, now);
        if now >= read_from && card.receive(&mut bytes) {
            busy = true;
            read_from = if pause == 0 { 0 } else { now + pause };
            match read(&bytes) {
                Some((from, n)) => {
                    let peer = peers.iter_mut().find(|peer| peer.slot == from);
                    let peer = peer.expect("a frame of somebody unknown");
                    // When MACs are forged, frames may be lost or come late.
                    let expected = timed != 0 || n == peer.got;
                    assert!(expected, "frame {n} of slot {from}, not {}", peer.got);
                    peer.got = peer.got.max(n + 1);
                    late += u32::from(now + timed / 4 >= start + timed);
                }
                None => foreign += 1,
            }
        }
        let all = |peer: &Peer| peer.sent >= packets && peer.got >= packets;
        if over || timed == 0 && outbox.is_empty() && peers.iter().all(all) {
            break;
        }
        if !busy {
            rest(outbox.again(), read_from, now);
        }
    }
    let (sent, time) = (outbox.sent, (time::uptime() - start) / 1000);
    let got: u32 = peers.iter().map(|peer| peer.got).sum();
    println!(
        "good: got={got} taken={} refused={} dropped={} late={late} foreign={foreign} us={time} \
         turns={turns}",
        sent.taken, sent.refused, sent.dropped
    );
}

/// Fills the outbox, a frame for each in turn.
fn fill(outbox: &mut Outbox, card: &Card, peers: &mut [Peer], packets: u32) {
    loop {
        let mut none = true;
        for peer in &mut *peers {
            if outbox.has_room() && peer.sent < packets {
                // Whoever scribbles over the page of MACs must not change what is meant.
                let to = [2, 0, 0, 0, 0, peer.slot as u8 + 1];
                outbox.put(frame(to, card.slot(), peer.sent));
                peer.sent += 1;
                none = false;
            }
        }
        if none {
            return;
        }
    }
}

/// Sleeps until a frame comes or it is time for something.
fn rest(again: Option<u64>, read_from: u64, now: u64) {
    let until = [
        again,
        (read_from > now).then_some(read_from),
        Some(now + 10_000_000),
    ];
    let until = until.into_iter().flatten().min().unwrap_or(now);
    // While nothing is read, a frame that comes is no reason to wake up.
    let came = || (read_from <= now && CAME.swap(false, Ordering::Relaxed)).then_some(());
    let _ = FRAMES.wait_until_or(until, came);
}
