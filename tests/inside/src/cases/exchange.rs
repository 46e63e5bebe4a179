// SPDX-License-Identifier: GPL-2.0-only

//! DMA from one Guest to another.
//!
//! Two bare Guests map the same page of a file. While the receiver is out, having sent something to
//! its Launcher, the sender runs from its start to its end; what it must find and leave is worked
//! out beside it with plain byte vectors.
//!
//! And two stand-ins, each a process with a Guest of its own, send each other numbered packets,
//! until all have come, or until one of them is killed.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::signal::Signal;

use super::Bench;
use super::guests::pin;
use crate::bare::{Bare, END, End, FREE, Outcome, PAGE, with_module};
use crate::device::{Device, GETDMA};
use crate::exchange::{PAGES as FILE_PAGES, Words};
use crate::guest::{Guest, patience};
use crate::host;
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

/// A file that nobody else knows.
fn meeting_place() -> Result<OwnedFd> {
    let file = memfd_create("meeting", MFdFlags::empty())?;
    nix::unistd::ftruncate(&file, (FILE_PAGES * PAGE).cast_signed())?;
    Ok(file)
}

/// A Guest with the shared page.
fn guest(file: &OwnedFd) -> Result<Bare> {
    let mut guest = Bare::new()?;
    guest.share_page(SHARED, file, 0)?;
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
    file: &OwnedFd,
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
    let file = meeting_place()?;
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
fn one(file: &OwnedFd, piece: (u64, u16)) -> Result<(End, u32)> {
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
    let file = meeting_place()?;
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
    Ok(())
}

/// How many records were filled, how many sends looked twice, and how many found no room then.
fn counts() -> Result<[u64; 3]> {
    let all = host::counters()?;
    let names = ["dma_copied", "dma_retried", "dma_refused"];
    let found = names.map(|name| all.get(name).copied());
    let [Some(copied), Some(retried), Some(refused)] = found else {
        bail!("counters {names:?} in {all:?}");
    };
    Ok([copied, retried, refused])
}

fn since(before: [u64; 3]) -> Result<[u64; 3]> {
    let now = counts()?;
    Ok(std::array::from_fn(|n| now[n] - before[n]))
}

/// A receiver that has one record, and has come out to its Launcher.
struct Out {
    device: Device,
    guest: Bare,
}

impl Out {
    /// Binds a record to the key and comes out; what it does later is up to `then`.
    fn bound(
        mut guest: Bare,
        key: u64,
        room: &[(u64, u16)],
        then: impl FnOnce(&mut Bare),
    ) -> Result<Self> {
        record(&mut guest, BOUND, 0, room);
        let bound = guest.call(12, [key, BOUND, 1, LINE]);
        guest.call(13, [1 << 40, RECORDS, 0, 0]);
        then(&mut guest);
        let device = guest.initialize()?;
        let out = device.read(512);
        ensure!(out.is_ok(), "instead of a send: {out:?}");
        ensure!(guest.outcome(bound) == Outcome::Done(1), "not bound");
        Ok(Self { device, guest })
    }

    fn used(&self) -> u32 {
        used(&self.guest, BOUND)
    }

    fn give_back(&mut self, room: &[(u64, u16)]) {
        record(&mut self.guest, BOUND, 0, room);
    }

    /// Runs it to its end.
    fn end(mut self) -> Result<Bare> {
        let end = self.guest.go_on(&self.device, |_, _, _| Ok(()))?;
        ensure!(end == End::Off, "{end:?}");
        Ok(self.guest)
    }
}

/// Several are bound to one key: the oldest gets it, but no Guest its own.
fn crowd() -> Result<()> {
    let file = meeting_place()?;
    let (room, good) = ([(DATA, 100)], (DATA, 8));
    let mut old = Out::bound(guest(&file)?, KEY, &room, |_| {})?;
    let young = Out::bound(guest(&file)?, KEY, &room, |guest| {
        record(guest, RECORDS, 0, &[good]);
        guest.call(13, [KEY, RECORDS, 0, 0]);
    })?;
    let before = counts()?;
    ensure!(one(&file, good)? == (End::Off, 16), "two are bound");
    let both = (old.used(), young.used());
    ensure!(both == (16, 0), "{both:?}: not the older one");
    ensure!(since(before)? == [1, 0, 0], "{:?}", since(before)?);
    // The next one waits for the same, once, and is then told that there is no room.
    ensure!(one(&file, good)? == (End::Off, 0), "it has no room");
    ensure!(young.used() == 0, "it was given to the younger one");
    ensure!(since(before)? == [1, 1, 1], "{:?}", since(before)?);
    // The younger one sends: to the other. Then that one sends, and there is no other.
    old.give_back(&room);
    let young = young.end()?;
    let told = used(&young, RECORDS);
    ensure!(
        told == 8 && old.used() == 8,
        "{told} and {}: to the other one",
        old.used()
    );
    // The oldest one sends, and the next in line gets it.
    old.give_back(&room);
    record(&mut old.guest, RECORDS, 0, &[good]);
    old.guest.call(13, [KEY, RECORDS, 0, 0]);
    let next = Out::bound(guest(&file)?, KEY, &room, |_| {})?;
    let old = old.end()?;
    ensure!(
        used(&old, BOUND) == 0 && used(&old, RECORDS) == 8 && next.used() == 8,
        "the oldest sent to {}",
        next.used()
    );
    // All but the last are gone.
    let mut next = next;
    next.give_back(&room);
    ensure!(one(&file, good)? == (End::Off, 16), "one is bound");
    next.end()?;
    let before = counts()?;
    ensure!(one(&file, good)? == (End::Off, 0), "nobody is bound");
    // Nobody to wait for.
    ensure!(since(before)? == [0, 0, 0], "{:?}", since(before)?);
    Ok(())
}

/// Where a send went.
#[derive(Debug, PartialEq, Eq)]
enum Went {
    There,
    Nowhere,
    ToTheLauncher,
}
use Went::{Nowhere, There, ToTheLauncher};

/// How a page of a file is mapped: rights, and whether it is shared.
const RW: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
const SHARE: (ProtFlags, MapFlags) = (RW, MapFlags::MAP_SHARED);
const PRIVATE: (ProtFlags, MapFlags) = (RW, MapFlags::MAP_PRIVATE);
const READ: (ProtFlags, MapFlags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);

/// One side: the file and its page, where in the Guest, how, and the key's place in the page.
type Side<'a> = (&'a dyn AsFd, u64, u64, (ProtFlags, MapFlags), u64);

fn side((file, page, at, (protection, flags), within): Side<'_>) -> Result<(Bare, u64)> {
    let mut guest = Bare::new()?;
    guest.map_page(at, file.as_fd(), page, protection, flags)?;
    Ok((guest, at + within))
}

/// One sends to what the other has bound.
fn went(receiver: Side<'_>, sender: Side<'_>) -> Result<Went> {
    let (receiver, key) = side(receiver)?;
    let receiver = Out::bound(receiver, key, &[(DATA, 100)], |_| {})?;
    let (mut sender, key) = side(sender)?;
    record(&mut sender, RECORDS, 77, &[(DATA, 8)]);
    sender.call(13, [key, RECORDS, 0, 0]);
    sender.survive()?;
    let told = used(&sender, RECORDS);
    Ok(match (&sender.sent[..], told, receiver.used()) {
        ([], 8, 8) => There,
        ([], 0, 0) => Nowhere,
        ([(sent, RECORDS)], 77, 0) if *sent == key => ToTheLauncher,
        other => bail!("{other:x?}"),
    })
}

/// What is the same memory, and what is not.
fn keys() -> Result<()> {
    let (file, other) = (meeting_place()?, meeting_place()?);
    let named = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let again = OpenOptions::new().read(true).write(true).open(&named)?;
    let read_only = File::open(&named)?;
    let far = FREE + 30 * PAGE;
    let usual: Side<'_> = (&file, 1, SHARED, SHARE, 64);
    let all: [(&str, Side<'_>, Side<'_>, Went); 12] = [
        ("the same", usual, usual, There),
        ("opened twice", usual, (&again, 1, SHARED, SHARE, 64), There),
        (
            "elsewhere in the Guest",
            usual,
            (&file, 1, far, SHARE, 64),
            There,
        ),
        (
            "a byte, of any address",
            (&file, 1, far, SHARE, 4095),
            (&file, 1, SHARED, SHARE, 4095),
            There,
        ),
        (
            "the next byte",
            usual,
            (&file, 1, SHARED, SHARE, 65),
            Nowhere,
        ),
        (
            "another page of it",
            usual,
            (&file, 2, SHARED, SHARE, 64),
            Nowhere,
        ),
        (
            "another file",
            usual,
            (&other, 1, SHARED, SHARE, 64),
            Nowhere,
        ),
        (
            "a sender's private copy",
            usual,
            (&file, 1, SHARED, PRIVATE, 64),
            ToTheLauncher,
        ),
        (
            "a receiver's private copy",
            (&file, 1, SHARED, PRIVATE, 64),
            usual,
            Nowhere,
        ),
        (
            "both private",
            (&file, 1, SHARED, PRIVATE, 64),
            (&file, 1, SHARED, PRIVATE, 64),
            ToTheLauncher,
        ),
        (
            "a sender that may only read",
            usual,
            (&read_only, 1, SHARED, READ, 64),
            ToTheLauncher,
        ),
        (
            "a receiver that may only read",
            (&read_only, 1, SHARED, READ, 64),
            usual,
            Nowhere,
        ),
    ];
    for (what, receiver, sender, wanted) in all {
        let found = went(receiver, sender).with_context(|| what.to_owned())?;
        ensure!(found == wanted, "{what}: {found:?}, not {wanted:?}");
    }
    Ok(())
}

/// Both have the same page in their memories, and their pieces overlap in it, or are the records
/// themselves.
fn overlapping() -> Result<()> {
    let file = meeting_place()?;
    let noise: Vec<u8> = (0..PAGE).map(|n| (n * 31 % 251) as u8).collect();
    for (from, to) in [(100, 101), (101, 100), (7, 7), (0, 1000), (1000, 0)] {
        let shared = || -> Result<Bare> {
            let mut guest = guest(&file)?;
            guest.share_page(DATA, &file, 1)?;
            Ok(guest)
        };
        let mut receiver = Out::bound(shared()?, KEY, &[(DATA + to, 3000)], |_| {})?;
        receiver.guest.write_bytes(DATA, &noise);
        let mut sender = shared()?;
        record(&mut sender, RECORDS, 77, &[(DATA + from, 2500)]);
        sender.call(13, [KEY, RECORDS, 0, 0]);
        sender.survive()?;
        let mut wanted = noise.clone();
        let (from, to) = (from as usize, to as usize);
        wanted.copy_within(from..from + 2500, to);
        let found = receiver.guest.read_bytes(DATA, PAGE as usize);
        ensure!(receiver.used() == 2500, "{} bytes", receiver.used());
        ensure!(found == wanted, "{from} to {to}: the page is another");
    }
    // A record counts as it was when it was looked at; its first word is written last.
    let itself = (BOUND, RECORD as u16);
    let receiver = Out::bound(guest(&file)?, KEY, &[itself], |_| {})?;
    let mut sender = guest(&file)?;
    sender.write_bytes(DATA, &noise);
    record(&mut sender, RECORDS, 77, &[(DATA, 1000)]);
    sender.call(13, [KEY, RECORDS, 0, 0]);
    sender.survive()?;
    let found = receiver.guest.read_bytes(BOUND, RECORD as usize);
    let mut wanted = noise[..RECORD as usize].to_vec();
    wanted[..4].copy_from_slice(&(RECORD as u32).to_le_bytes());
    ensure!(found == wanted, "a record that receives itself");
    ensure!(used(&sender, RECORDS) == RECORD as u32, "its sender");
    Ok(())
}

pub fn guest_to_guest(bench: &mut Bench) -> Result<()> {
    let seed = bench.seed();
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
        mistakes()?;
        crowd()?;
        keys()?;
        overlapping()
    })?;
    ensure!(all.0 > 0, "nothing was received at all");
    let (records, bytes) = all;
    bench
        .control
        .say("note", &format!("{records} records filled, {bytes} bytes"))
}

/// A file in a file system of its own: that one cannot be taken away as long as anybody, the Host
/// among them, holds the file.
struct Meeting {
    file: File,
    path: String,
}

const ROOM: &str = "/tmp/meeting";

impl Meeting {
    fn new() -> Result<Self> {
        fs::create_dir_all(ROOM)?;
        let none: Option<&str> = None;
        mount(Some("tmpfs"), ROOM, Some("tmpfs"), MsFlags::empty(), none)?;
        let path = format!("{ROOM}/place");
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(FILE_PAGES * PAGE)?;
        Ok(Self { file, path })
    }

    /// One of the two, running.
    fn talker(&self, role: u64, [packets, mortal, slow, again]: [u64; 4]) -> Result<Guest> {
        let words = [role, packets, mortal, slow, again].map(|n| n.to_string());
        let mut all = vec!["talk", &self.path];
        all.extend(words.iter().map(String::as_str));
        let guest = Guest::stand_in(&all)?;
        guest.wait_for("talking")?;
        Ok(guest)
    }

    fn words(&self) -> Result<[Words; 2]> {
        Ok([Words::of(&self.file, 0)?, Words::of(&self.file, 1)?])
    }

    fn end(self) -> Result<()> {
        drop(self.file);
        let end = Instant::now() + patience();
        // The last reference may be given back a little later, by a worker of Linux's.
        while let Err(error) = umount(ROOM) {
            ensure!(Instant::now() < end, "{ROOM} is still in use: {error}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// How long two may talk.
fn time_to_talk() -> Duration {
    Duration::from_secs(250) * host::patience()
}

/// So many packets each way; how slow both are, and after how many they take their records back.
struct Talk {
    about: &'static str,
    packets: u64,
    slow: u64,
    again: u64,
    one_cpu: bool,
}

impl Talk {
    /// Has it done, and checks what can be counted. Slow receivers are to have no room for some: who
    /// has a turn when is not for us to say, so they get three chances.
    fn done(&self, bench: &mut Bench) -> Result<()> {
        let about = self.about;
        for left in (0..3).rev() {
            let [retried, refused] = self.once(bench)?;
            if self.slow == 0 || (refused > 0 && retried > refused) {
                break;
            }
            ensure!(
                left > 0,
                "{about}: {retried} second looks, {refused} refused"
            );
        }
        Ok(())
    }

    /// Has it done once; how often was looked twice, and how often that was in vain.
    fn once(&self, bench: &mut Bench) -> Result<[u64; 2]> {
        let &Self {
            about,
            packets,
            slow,
            again,
            one_cpu,
        } = self;
        let meeting = Meeting::new()?;
        let before = counts()?;
        let how = [packets, 0, slow, again];
        let both = [meeting.talker(0, how)?, meeting.talker(1, how)?];
        for guest in both.iter().filter(|_| one_cpu) {
            pin(guest.pid(), 0)?;
        }
        for guest in both {
            let ended = guest.finish_within(time_to_talk());
            let ended = ended.with_context(|| format!("{:?}", meeting.words()))?;
            ended.expect_code(0)?;
        }
        let words = meeting.words()?;
        let [copied, retried, refused] = since(before)?;
        let good = |one: &Words| {
            (one.sent, one.received, one.verdict) == (packets, packets, 0)
                && (again == 0 || one.rebound == packets / again)
        };
        ensure!(words.iter().all(good), "{words:?}");
        let told: u64 = words.iter().map(|one| one.refused).sum();
        // Some were sent before the other had bound anything.
        ensure!(
            copied == 2 * packets && refused <= told && refused <= retried,
            "{copied} copies of {}, {retried} looked twice, {refused} refused, {told} told so",
            2 * packets
        );
        let sleeps: u64 = words.iter().map(|one| one.sleeps).sum();
        let note = format!(
            "{about}: {packets} packets each way; {retried} looked twice, {} of them with success; \
             {sleeps} sleeps",
            retried - refused
        );
        bench.control.say("note", &note)?;
        host::wait_until_free()?;
        meeting.end()?;
        Ok([retried, refused])
    }
}

pub fn talk(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let times = bench.number("times");
    let times = times.unwrap_or(if bench.long() { 2 } else { 1 });
    // A kernel with nets takes ten times as long for each.
    let part = if host::patience() > 5 { 10 } else { 1 };
    for talk in [
        Talk {
            about: "at will",
            packets: 10_000 * times / part,
            slow: 0,
            again: 0,
            one_cpu: false,
        },
        Talk {
            about: "slow receivers, one processor",
            packets: 1000 * times / part,
            slow: 20_000,
            again: 0,
            one_cpu: true,
        },
        Talk {
            about: "bound anew after each 97",
            packets: 3000 * times / part,
            slow: 0,
            again: 97,
            one_cpu: false,
        },
    ] {
        talk.done(bench).with_context(|| talk.about)?;
    }
    Ok(())
}

/// Waits until each of the two has got some packets more.
fn both_get_on(meeting: &Meeting, both: &mut [Option<Guest>; 2]) -> Result<()> {
    let end = Instant::now() + patience();
    let before = meeting.words()?;
    loop {
        let now = meeting.words()?;
        if (0..2).all(|n| now[n].received > before[n].received + 5) {
            return Ok(());
        }
        for guest in both.iter_mut().flatten() {
            if !guest.alive()? {
                // It has ended, so this fails with all that it has said.
                guest.wait_for("all is well with what has ended")?;
            }
        }
        ensure!(
            Instant::now() < end,
            "no packet in time: {before:?}, {now:?}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn talk_killed(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let seed = bench.seed();
    let kills = bench.number("kills");
    let kills = kills.unwrap_or(if bench.long() { 100 } else { 25 });
    bench
        .control
        .say("note", &format!("seed={seed}, {kills} kills"))?;
    let mut random = Random::new(seed);
    let meeting = Meeting::new()?;
    let before = counts()?;
    let how = |random: &mut Random| {
        [
            1 << 60,
            1,
            random.below(2) * random.below(5000),
            random.below(2) * 31,
        ]
    };
    let mut both = [
        Some(meeting.talker(0, how(&mut random))?),
        Some(meeting.talker(1, how(&mut random))?),
    ];
    for n in 0..kills {
        let what = || format!("kill {n} of seed={seed}");
        if random.below(4) != 0 {
            both_get_on(&meeting, &mut both).with_context(what)?;
        }
        thread::sleep(Duration::from_micros(random.below(20_000)));
        let role = random.below(2);
        let place = &mut both[role as usize];
        let guest = place.as_ref().context("the one to kill")?;
        guest.signal(Signal::SIGKILL)?;
        let killed = place.take().context("the one to kill")?.finish();
        killed
            .and_then(|ended| ended.expect_code(137).map(drop))
            .with_context(what)?;
        // Nothing of it is left to be sent to.
        if random.below(2) == 0 {
            let before = counts()?;
            thread::sleep(Duration::from_micros(random.below(3000)));
            let [copied, ..] = since(before)?;
            ensure!(copied == 0, "{}: something was sent to it", what());
        }
        *place = Some(meeting.talker(role, how(&mut random)).with_context(what)?);
    }
    both_get_on(&meeting, &mut both)?;
    let mut resets = 0;
    for (role, guest) in (0..).zip(both.into_iter().flatten()) {
        Words::end(&meeting.file, role)?;
        guest.finish()?.expect_code(0)?;
        resets += meeting.words()?[role as usize].resets;
    }
    let [copied, retried, refused] = since(before)?;
    let note = format!(
        "{copied} packets, all whole; {retried} looked twice, {} of them with success; the last \
         two saw {resets} new neighbours",
        retried - refused
    );
    bench.control.say("note", &note)?;
    ensure!(copied > 10 * kills, "only {copied} packets");
    host::wait_until_free()?;
    meeting.end()
}
