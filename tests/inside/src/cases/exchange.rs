// SPDX-License-Identifier: GPL-2.0-only

//! DMA from one Guest to another.
//!
//! Two bare Guests map the same page of a file. While the receiver is out, having sent something to
//! its Launcher, the sender runs from its start to its end; what it must find and leave is worked
//! out beside it with plain byte vectors.

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Bench;
use crate::bare::{Bare, END, End, FREE, Outcome, PAGE, with_module};
use crate::device::GETDMA;
use crate::random::Random;

/// The page that both map; the key is a place in it.
const SHARED: u64 = FREE;
const KEY: u64 = SHARED + 64;
/// The receiver's records, so many, at the end of their page; the sender's, from its start.
const COUNT: u64 = 3;
const BOUND: u64 = FREE + 2 * PAGE - COUNT * RECORD;
const RECORDS: u64 = FREE + PAGE;
const RECORD: u64 = 168;
/// Pages for the pieces.
const DATA: u64 = FREE + 4 * PAGE;
const PAGES: u64 = 12;
const LINE: u64 = 5;

type Pieces = Vec<(u64, u16)>;

/// Pieces at random, in one page each: many or few, small or large.
fn pieces(random: &mut Random) -> Pieces {
    let most = if random.below(2) == 0 { 40 } else { PAGE };
    (0..random.below(17))
        .map(|_| {
            let length = 1 + random.below(most);
            let page = DATA + PAGE * random.below(PAGES);
            let offset = match random.below(4) {
                0 => PAGE - length,
                1 => 0,
                _ => random.below(PAGE - length + 1),
            };
            (page + offset, length as u16)
        })
        .collect()
}

/// Writes a record.
fn record(guest: &mut Bare, at: u64, used: u32, pieces: &[(u64, u16)]) {
    let mut bytes = vec![0; RECORD as usize];
    bytes[..4].copy_from_slice(&used.to_le_bytes());
    for (n, (addr, length)) in pieces.iter().enumerate() {
        bytes[8 + 8 * n..][..8].copy_from_slice(&addr.to_le_bytes());
        bytes[136 + 2 * n..][..2].copy_from_slice(&length.to_le_bytes());
    }
    guest.write_bytes(at, &bytes);
}

fn used(guest: &Bare, at: u64) -> u32 {
    guest.read(at) as u32
}

/// A Guest with the shared page.
fn guest(file: &std::os::fd::OwnedFd) -> Result<Bare> {
    let mut guest = Bare::new()?;
    guest.share_page(SHARED, file)?;
    Ok(guest)
}

/// What the receiver has, as the oracle knows it.
struct Oracle {
    free: Vec<Option<Pieces>>,
    next: usize,
    data: Vec<u8>,
}

impl Oracle {
    /// What becomes of a send: how many bytes, and the record they went into.
    fn send(&mut self, bytes: &[u8]) -> Option<(u32, usize)> {
        let order = (0..self.free.len()).map(|n| (self.next + n) % self.free.len());
        let place = order.into_iter().find(|n| self.free[*n].is_some())?;
        let room = self.free[place].as_ref()?;
        let places = room.iter().flat_map(|(at, length)| {
            let at = (at - DATA) as usize;
            at..at + usize::from(*length)
        });
        let places: Vec<_> = places.zip(bytes).collect();
        for (at, byte) in &places {
            self.data[*at] = **byte;
        }
        if places.is_empty() {
            return None;
        }
        self.free[place] = None;
        self.next = place + 1;
        Some((places.len() as u32, place))
    }
}

/// Noise for the pieces' pages.
fn noise(random: &mut Random) -> Vec<u8> {
    let words = (0..PAGES * PAGE / 8).flat_map(|_| random.word().to_le_bytes());
    words.collect()
}

/// One sender's life, checked against the oracle; how many records were filled, and bytes.
fn send_some(
    receiver: &mut Bare,
    file: &std::os::fd::OwnedFd,
    random: &mut Random,
    oracle: &mut Oracle,
) -> Result<(u64, u64)> {
    // Records that were filled are given back, with other pieces, or not.
    for n in 0..COUNT as usize {
        if random.below(3) != 0 {
            let room = pieces(random);
            record(receiver, BOUND + RECORD * n as u64, 0, &room);
            oracle.free[n] = Some(room);
        }
    }
    let mut sender = guest(file)?;
    let own = noise(random);
    sender.write_bytes(DATA, &own);
    let ring = random.below(2) == 0;
    let (mut wanted, mut bytes) = (Vec::new(), 0);
    for n in 0..1 + random.below(6) {
        let from = pieces(random);
        record(&mut sender, RECORDS + RECORD * n, 77, &from);
        let row = from
            .iter()
            .flat_map(|(at, length)| own[(at - DATA) as usize..][..usize::from(*length)].iter());
        let row: Vec<u8> = row.copied().collect();
        let taken = oracle.send(&row);
        bytes += taken.map_or(0, |(taken, _)| u64::from(taken));
        wanted.push(taken);
        if ring {
            sender.queue(n, 13, [KEY, RECORDS + RECORD * n, 0, 0]);
        } else {
            sender.call(13, [KEY, RECORDS + RECORD * n, 0, 0]);
        }
    }
    sender.call(0, [0; 4]);
    sender.survive()?;
    ensure!(
        sender.sent.is_empty(),
        "its Launcher got {:x?}",
        sender.sent
    );
    for (n, wanted) in (0..).zip(&wanted) {
        let told = used(&sender, RECORDS + RECORD * n);
        let taken = wanted.map_or(0, |(taken, _)| taken);
        ensure!(told == taken, "send {n}: {told} bytes, not {taken}");
        if let Some((taken, place)) = wanted {
            let found = used(receiver, BOUND + RECORD * *place as u64);
            ensure!(found == *taken, "record {place}: {found}, not {taken}");
        }
    }
    let found = receiver.read_bytes(DATA, (PAGES * PAGE) as usize);
    let differs = found.iter().zip(&oracle.data).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "byte {differs:x?} of the receiver's");
    Ok((wanted.iter().flatten().count() as u64, bytes))
}

/// Many senders, one receiver.
fn against_the_oracle(random: &mut Random, rounds: usize) -> Result<(u64, u64)> {
    let file = memfd_create("meeting", MFdFlags::empty())?;
    nix::unistd::ftruncate(&file, PAGE.cast_signed())?;
    let mut receiver = guest(&file)?;
    let mut oracle = Oracle {
        free: vec![None; COUNT as usize],
        next: 0,
        data: noise(random),
    };
    receiver.write_bytes(DATA, &oracle.data);
    for n in 0..COUNT {
        record(&mut receiver, BOUND + RECORD * n, 1, &[]);
    }
    let bound = receiver.call(12, [KEY, BOUND, COUNT, LINE]);
    let mut looks = Vec::new();
    for _ in 0..rounds {
        receiver.poke_shared(0x40, 0);
        receiver.call(13, [1 << 40, RECORDS, 0, 0]);
        looks.push(receiver.peek_shared(0x40));
    }
    let (mut raised, mut all) = (Vec::new(), (0, 0));
    let device = receiver.initialize()?;
    let end = receiver.go_on(&device, |receiver, _, _| {
        let (records, bytes) = send_some(receiver, &file, random, &mut oracle)?;
        raised.push(records != 0);
        all = (all.0 + records, all.1 + bytes);
        Ok(())
    })?;
    ensure!(end == End::Off, "the receiver: {end:?}");
    ensure!(receiver.outcome(bound) == Outcome::Done(1), "not bound");
    for (look, raised) in looks.into_iter().zip(raised) {
        let wanted = Outcome::Done(u64::from(raised) << LINE);
        let found = receiver.outcome(look);
        ensure!(found == wanted, "lines {found:x?}, not {wanted:x?}");
    }
    Ok(all)
}

/// A sender with one record, run to its end while the receiver is out; what it is told.
fn one(file: &std::os::fd::OwnedFd, piece: (u64, u16)) -> Result<(End, u32)> {
    let mut sender = guest(file)?;
    record(&mut sender, RECORDS, 77, &[(DATA, 8), piece]);
    sender.call(13, [KEY, RECORDS, 0, 0]);
    let end = sender.run()?;
    ensure!(
        sender.sent.is_empty(),
        "its Launcher got {:x?}",
        sender.sent
    );
    Ok((end, used(&sender, RECORDS)))
}

/// Mistakes of either side, and the ends of a binding.
fn mistakes() -> Result<()> {
    let file = memfd_create("meeting", MFdFlags::empty())?;
    nix::unistd::ftruncate(&file, PAGE.cast_signed())?;
    let good = (DATA, 8);
    ensure!(one(&file, good)? == (End::Off, 0), "nobody is bound");
    // A piece that is none: the one who named it dies, and the other does not notice.
    let bad = [
        (DATA + 4090, 7),
        (END - 1, 2),
        (u64::MAX - 1, 4),
        (END, 1),
        (DATA, 4097),
    ];
    for piece in bad {
        let mut receiver = guest(&file)?;
        record(&mut receiver, BOUND, 0, &[(DATA, 100)]);
        receiver.call(12, [KEY, BOUND, 1, LINE]);
        receiver.call(13, [1 << 40, RECORDS, 0, 0]);
        let end = receiver.run_with(|receiver, _, _| {
            let (end, _) = one(&file, piece)?;
            let text = format!("{:#x}", piece.0);
            let said = matches!(&end, End::Dead(reason)
                if reason.contains("SEND_DMA (13): piece 1") && reason.contains(&text));
            ensure!(said, "the sender of {piece:x?}: {end:?}");
            ensure!(used(receiver, BOUND) == 0, "something was received");
            record(receiver, BOUND, 0, &[(DATA, 4), piece]);
            ensure!(
                one(&file, good)? == (End::Off, 0),
                "a bad record was filled"
            );
            Ok(())
        })?;
        let said = matches!(&end, End::Dead(reason)
            if reason.contains("BIND_DMA (12)") && reason.contains("piece 1"));
        ensure!(said, "the receiver of {piece:x?}: {end:?}");
        ensure!(one(&file, good)? == (End::Off, 0), "a dead Guest received");
    }
    // Bound, GETDMA, taken back, bound again, closed; and never by itself.
    let mut receiver = guest(&file)?;
    record(&mut receiver, BOUND, 0, &[(DATA, 100)]);
    record(&mut receiver, RECORDS, 0, &[(DATA, 100)]);
    receiver.call(12, [KEY, BOUND, 1, LINE]);
    receiver.call(13, [KEY, RECORDS, 0, 0]);
    receiver.call(13, [1, RECORDS, 0, 0]);
    receiver.call(12, [KEY, BOUND, 1, 0]);
    receiver.call(13, [2, RECORDS, 0, 0]);
    receiver.call(12, [KEY, BOUND, 1, LINE]);
    receiver.call(13, [3, RECORDS, 0, 0]);
    let device = receiver.initialize()?;
    let end = receiver.go_on(&device, |receiver, device, (key, _)| {
        match key {
            1 => {
                ensure!(used(receiver, BOUND) == 0, "it sent to itself");
                ensure!(one(&file, good)? == (End::Off, 16), "bound, and not filled");
                ensure!(one(&file, good)? == (End::Off, 0), "filled twice");
                let none = device.request(&[GETDMA, KEY]);
                ensure!(
                    none == Err(libc::ENOENT),
                    "GETDMA of a full record: {none:?}"
                );
                record(receiver, BOUND, 0, &[(DATA, 100)]);
                let got = device.request(&[GETDMA, KEY]);
                ensure!(got == Ok(BOUND as usize), "GETDMA: {got:?}");
                ensure!(one(&file, good)? == (End::Off, 0), "taken, and filled");
            }
            2 => ensure!(one(&file, good)? == (End::Off, 0), "taken back, and filled"),
            _ => ensure!(
                one(&file, good)? == (End::Off, 0),
                "GETDMA's record, and filled"
            ),
        }
        if key == 2 {
            record(receiver, BOUND, u32::from(LINE as u16), &[(DATA, 100)]);
        }
        Ok(())
    })?;
    ensure!(end == End::Off, "{end:?}");
    ensure!(one(&file, good)? == (End::Off, 0), "over, and filled");
    // A private page under the same number leads to the Launcher.
    let mut private = Bare::new()?;
    private.call(13, [KEY, RECORDS, 0, 0]);
    private.survive()?;
    ensure!(private.sent == [(KEY, RECORDS)], "sent {:x?}", private.sent);
    Ok(())
}

pub fn guest_to_guest(bench: &mut Bench) -> Result<()> {
    let seed = bench.number("seed").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_millis() as u64)
    });
    let rounds = if bench.long() { 400 } else { 40 };
    bench.control.say("note", &format!("seed={seed}"))?;
    let mut random = Random::new(seed);
    let mut all = (0, 0);
    with_module(|| {
        for round in 0..if bench.long() { 10 } else { 3 } {
            let (records, bytes) = against_the_oracle(&mut random, rounds / 4)
                .with_context(|| format!("seed={seed}, receiver {round}"))?;
            all = (all.0 + records, all.1 + bytes);
        }
        mistakes()
    })?;
    ensure!(all.0 > 0, "nothing was received at all");
    let (records, bytes) = all;
    bench
        .control
        .say("note", &format!("{records} records filled, {bytes} bytes"))
}
