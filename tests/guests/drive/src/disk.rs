// SPDX-License-Identifier: GPL-2.0-only

//! Disks, and what they and the console cost.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use guest::abi::addresses::GuestPhys;
use guest::abi::block::{BLOCK_SLOTS, FLUSH, READ, SECTOR, WRITE};
use guest::block::{self, BlockError, Disk, MOST, Piece};
use guest::frames::{FRAME, take_frames};
use guest::{console, memory, println};

use crate::{number, option};

fn disk() -> Arc<Disk> {
    block::disk(0).expect("no disk")
}

/// What belongs at a word of the disk.
fn pattern(seed: u64, word: u64) -> u64 {
    (word + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Memory for one request, side by side.
struct Buffer(GuestPhys);

impl Buffer {
    fn new() -> Self {
        Self(take_frames(MOST.ilog2() as usize - 12).expect("no memory"))
    }

    /// Its words. Nothing is under way in it.
    fn words(&mut self) -> &mut [u64] {
        let words = memory::linear(self.0).cast::<u64>();
        // SAFETY: It is memory of this size, ours, and no device has it now.
        unsafe { core::slice::from_raw_parts_mut(words, MOST / 8) }
    }

    /// Its first bytes, page by page.
    fn pieces(&self, bytes: usize) -> Vec<Piece> {
        let pages = (0..bytes).step_by(FRAME);
        let piece = |at: usize| {
            let bytes = FRAME.min(bytes - at);
            (GuestPhys(self.0.0 + at as u64), bytes as u16)
        };
        pages.map(piece).collect()
    }
}

/// Writes all of a disk and reads it back, with as many requests under way as there can be.
pub fn all() {
    let disk = disk();
    let (seed, all) = (number("seed", 1), disk.bytes());
    let most = pass(&disk, WRITE, all, |at, words| {
        for (n, word) in (at / 8..).zip(words) {
            *word = pattern(seed, n);
        }
    });
    println!("good: {all} bytes written, at most {most} under way");
    disk.flush().expect("no flush");
    println!("flushed");
    if option("wait").is_some() {
        console::read();
    }
    let most = pass(&disk, READ, all, |at, words| {
        for (n, word) in (at / 8..).zip(words) {
            assert!(*word == pattern(seed, n), "word {n} is {word:#x}");
        }
    });
    println!("good: {all} bytes read back, at most {most} under way");
}

/// Goes over a disk; before writing, or after reading, `f` gets what is at a byte. Says how many
/// requests were under way at once at most.
fn pass(disk: &Disk, operation: u32, all: u64, mut f: impl FnMut(u64, &mut [u64])) -> usize {
    let mut buffers: [Buffer; BLOCK_SLOTS] = core::array::from_fn(|_| Buffer::new());
    let mut begun: [Option<(usize, u64, usize)>; BLOCK_SLOTS] = [None; BLOCK_SLOTS];
    let mut most = 0;
    let steps = all.div_ceil(MOST as u64);
    for step in 0..steps + BLOCK_SLOTS as u64 {
        let (n, at) = (step as usize % BLOCK_SLOTS, step * MOST as u64);
        if let Some((slot, at, bytes)) = begun[n].take() {
            disk.end(slot).expect("an error");
            if operation == READ {
                f(at, &mut buffers[n].words()[..bytes / 8]);
            }
        }
        if step >= steps {
            continue;
        }
        let bytes = (all - at).min(MOST as u64) as usize;
        if operation == WRITE {
            f(at, &mut buffers[n].words()[..bytes / 8]);
        }
        let pieces = buffers[n].pieces(bytes);
        // SAFETY: The buffer is left alone until the request is ended.
        let slot = unsafe { disk.begin(operation, at / SECTOR, &pieces) };
        begun[n] = Some((slot.expect("no slot"), at, bytes));
        let under_way = begun.iter().flatten();
        most = most.max(under_way.filter(|(slot, ..)| !disk.is_done(*slot)).count());
    }
    most
}

/// Reads and writes bytes anywhere, and does the same to a copy.
pub fn bytes() {
    let disk = disk();
    let mut random = number("seed", 1) | 1;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let size = disk.bytes();
    let mut copy = vec![0; size as usize];
    read_all(&disk, &mut copy);
    let mut buffer = vec![0_u8; 80_000];
    for round in 0..number("rounds", 300) {
        let (at, bytes) = (next(size + 2), next(80_000) as usize);
        let there = (bytes as u64).min(size.saturating_sub(at)) as usize;
        let here = &mut buffer[..bytes];
        if next(2) == 0 {
            here.fill(0xaa);
            let done = disk.read(at, here).expect("a read");
            assert!(
                done <= there && (done > 0 || there == 0),
                "{done} of {there}"
            );
            let end = at as usize + done;
            if done > 0 {
                assert!(
                    here[..done] == copy[at as usize..end],
                    "read {round} at {at}"
                );
            }
            assert!(
                here[done..].iter().all(|byte| *byte == 0xaa),
                "too much at {at}"
            );
        } else {
            here.iter_mut().for_each(|byte| *byte = next(256) as u8);
            let done = disk.write(at, here).expect("a write");
            assert!(
                done <= there && (done > 0 || there == 0),
                "{done} of {there}"
            );
            if done > 0 {
                copy[at as usize..at as usize + done].copy_from_slice(&here[..done]);
            }
        }
    }
    let mut now = vec![0; size as usize];
    read_all(&disk, &mut now);
    assert!(now == copy, "the disk is not what was written");
    println!("good: bytes anywhere");
}

fn read_all(disk: &Disk, to: &mut [u8]) {
    let mut done = 0;
    while done < to.len() {
        let n = disk.read(done as u64, &mut to[done..]).expect("a read");
        assert!(n > 0, "the end at {done}");
        done += n;
    }
}

/// What a disk says to what cannot be.
pub fn errors() {
    let disk = disk();
    let buffer = Buffer::new();
    let sectors = disk.sectors();
    let ask = |operation, sector, bytes| {
        let pieces = buffer.pieces(bytes);
        // SAFETY: The buffer is ours and used for nothing else.
        unsafe { disk.transfer(operation, sector, &pieces) }
    };
    assert!(ask(READ, sectors - 1, 512) == Ok(()));
    for (sector, bytes) in [(sectors, 512), (sectors - 1, 1024), (u64::MAX, 512)] {
        assert!(ask(READ, sector, bytes) == Err(BlockError::Outside));
    }
    for bytes in [0, 1, 511, 4097] {
        assert!(ask(READ, 0, bytes) == Err(BlockError::BadRequest));
    }
    for operation in [0, FLUSH + 1, u32::MAX] {
        assert!(ask(operation, 0, 512) == Err(BlockError::BadRequest));
    }
    let wrote = ask(WRITE, 0, 512);
    if disk.is_read_only() {
        assert!(wrote == Err(BlockError::ReadOnly));
        println!("good: read only");
    } else {
        assert!(wrote == Ok(()));
        println!("good: can be written");
    }
    assert!(disk.flush() == Ok(()));
    println!("good: errors");
}

/// Reads a sector, waits for a line, and reads it again: then it is no longer there.
pub fn shrinks() {
    let disk = disk();
    let mut sector = [0; 512];
    assert!(disk.read(4096, &mut sector) == Ok(512));
    println!("ready");
    console::read();
    assert!(disk.read(4096, &mut sector) == Err(BlockError::Io));
    assert!(disk.read(0, &mut sector) == Ok(512));
    assert!(disk.write(1024, &sector) == Ok(512));
    println!("good: a disk that shrinks");
}

/// Sends what no driver would.
pub fn impossible() {
    let device = guest::bus::scan().find(|device| device.descriptor.kind == 3);
    let device = device.expect("no disk");
    let record = Buffer::new();
    let record = memory::linear(record.0).cast::<guest::abi::dma::Dma>();
    // SAFETY: The record is memory of ours. What it names may be anything: that is what is tried.
    unsafe {
        record.write_bytes(0, 1);
        (*record).addr[0] = number("address", 0);
        (*record).len[0] = number("bytes", 512) as u16;
        let slot = memory::linear(GuestPhys(device.descriptor.first + 16)).cast::<u32>();
        slot.write_volatile(READ);
        guest::host::send_dma(device.key(number("key", 0)), record);
    }
    println!("good: survived");
}

fn now() -> u64 {
    // SAFETY: Reading the counter is allowed in ring 1 and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The fewest instructions that it took, of so many times.
fn least(what: &str, mut f: impl FnMut()) {
    let mut least = u64::MAX;
    for _ in 0..number("rounds", 300) {
        let start = now();
        f();
        least = least.min(now() - start);
    }
    println!("good: {what} {least}");
}

/// What a read of 4 KiB costs that the Host has in its cache.
pub fn cost() {
    let disk = disk();
    let buffer = Buffer::new();
    let pieces = buffer.pieces(4096);
    least("block read", || {
        // SAFETY: The buffer is ours and used for nothing else.
        unsafe { disk.transfer(READ, 8, &pieces) }.expect("a read");
    });
    let piece = buffer.pieces(512);
    least("sector read", || {
        // SAFETY: As above.
        unsafe { disk.transfer(READ, 8, &piece) }.expect("a read");
    });
    let mut bytes = [0; 4096];
    least("block read by bytes", || {
        assert!(disk.read(4096, &mut bytes) == Ok(4096));
    });
}

/// What a line of 62 bytes costs.
pub fn console_cost() {
    let line = [b'x'; 61].into_iter().chain([b'\n']);
    let line: Vec<u8> = line.collect();
    least("console write", || console::write(&line));
}
